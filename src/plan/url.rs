//! `redis://user:password@host:port/db`, taken apart.
//!
//! Invariant: no error shows the url, because it may hold a password.

use super::secret::Redacted;
use crate::error::{Error, ErrorKind, Result};
use crate::types::address;

pub(super) struct ServerUrl {
    pub tls: bool,
    pub host: String,
    pub port: u16,
    pub db: Option<u32>,
    pub username: Option<String>,
    pub password: Option<Redacted>,
    pub sentinel: Option<Sentinel>,
}

const DEFAULT_PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

/// The sentinels that watch a master.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sentinel {
    /// The master's name there.
    pub name: String,
    /// `host:port` of each.
    pub nodes: Vec<String>,
}

/// Reads the url that stands at `path` in the plan.
pub(super) fn parse(path: &str, text: &str) -> Result<ServerUrl> {
    let wrong = |what: &str| Error::new(ErrorKind::Plan, format!("{path} {what}"));
    let form = "write redis://host:port or rediss://host:port for TLS";
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(wrong("has no scheme").hint(form));
    };
    let tls = match scheme.to_ascii_lowercase().as_str() {
        "redis" | "valkey" => false,
        "rediss" | "valkeys" => true,
        "redis+sentinel" | "valkey+sentinel" => false,
        "rediss+sentinel" | "valkeys+sentinel" => true,
        // The scheme is shown only when it cannot be a piece of a password.
        other if other.len() <= 12 && other.bytes().all(|b| b.is_ascii_lowercase()) => {
            return Err(wrong(&format!(
                "has the scheme {other}://, which is not supported"
            ))
            .hint(form));
        }
        _ => return Err(wrong("has a scheme that is not supported").hint(form)),
    };
    let (authority, after) = rest.split_once('/').unwrap_or((rest, ""));
    let (user, address) = match authority.rsplit_once('@') {
        Some((user, address)) => (Some(user), address),
        None => (None, authority),
    };
    let (mut username, mut password) = (None, None);
    if let Some(user) = user {
        let (name, secret) = user
            .split_once(':')
            .map_or((user, None), |(n, s)| (n, Some(s)));
        let decode = |t: &str| {
            percent_decoded(t).ok_or_else(|| {
                wrong("has a user or password that is not percent-encoded text")
                    .hint("write % as %25, @ as %40, / as %2F and : as %3A")
            })
        };
        if !name.is_empty() {
            username = Some(decode(name)?);
        }
        if let Some(secret) = secret.filter(|s| !s.is_empty()) {
            password = Some(Redacted::new(decode(secret)?));
        }
    }
    let (mut after, mut sentinel) = (after, None);
    let mut address = address;
    if scheme.ends_with("+sentinel") {
        let (name, rest) = after.split_once('/').unwrap_or((after, ""));
        if name.is_empty() {
            return Err(wrong("does not name the master that Sentinel watches")
                .hint("write redis+sentinel://host:26379/mymaster; several sentinels with commas in between"));
        }
        let mut nodes = Vec::new();
        for node in address.split(',') {
            let (host, port) = host_and_port(node).map_err(|what| wrong(what).hint(form))?;
            nodes.push(address::join(&host, port.unwrap_or(SENTINEL_PORT)));
        }
        address = address.split(',').next().unwrap_or(address);
        sentinel = Some(Sentinel {
            name: name.to_owned(),
            nodes,
        });
        after = rest;
    }
    let (host, port) = host_and_port(address).map_err(|what| {
        wrong(what).hint("write host:port, and an IPv6 address in brackets: [::1]:6379")
    })?;
    if after.contains(['?', '#']) || address.contains(['?', '#']) {
        return Err(wrong("has a query or fragment, which has no meaning here")
            .hint("use the plan's own keys for options"));
    }
    let db = match after.trim_end_matches('/') {
        "" => None,
        number => match number.parse::<u32>() {
            Ok(n) if n <= i32::MAX as u32 => Some(n),
            _ => {
                return Err(wrong("has a path that is not a database number")
                    .hint("write /0, /1 and so on, or nothing"));
            }
        },
    };
    Ok(ServerUrl {
        tls,
        host,
        port: port.unwrap_or(DEFAULT_PORT),
        db,
        username,
        password,
        sentinel,
    })
}

/// Splits `host:port`; the port may be absent, an IPv6 address stands in brackets.
pub(super) fn host_and_port(
    address: &str,
) -> std::result::Result<(String, Option<u16>), &'static str> {
    let (host, port) = match address.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']').ok_or("has a [ without its ]")?;
            if host.parse::<std::net::Ipv6Addr>().is_err() {
                return Err("has brackets around something that is not an IPv6 address");
            }
            (
                host,
                if after.is_empty() {
                    None
                } else {
                    Some(
                        after
                            .strip_prefix(':')
                            .ok_or("has text between ] and the port")?,
                    )
                },
            )
        }
        None => match address.rsplit_once(':') {
            Some((host, _)) if host.contains(':') => {
                return Err("has an IPv6 address without brackets");
            }
            Some((host, port)) => (host, Some(port)),
            None => (address, None),
        },
    };
    if host.is_empty() {
        return Err("has no host");
    }
    if host.contains(char::is_whitespace) || host.contains('@') {
        return Err("has a host with a space or @ in it");
    }
    let port = match port {
        None => None,
        Some(p) => match p.parse::<u16>() {
            Ok(0) => return Err("has port 0"),
            Ok(n) if !p.starts_with('+') => Some(n),
            _ => return Err("has a port that is not a number from 1 to 65535"),
        },
    };
    Ok((host.to_string(), port))
}

/// The url with `***` for its password.
pub(super) fn without_password(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else {
        // Not a url: it may be anything, a password too.
        return if text.contains('@') {
            "***".into()
        } else {
            text.to_string()
        };
    };
    let end = rest.find('/').unwrap_or(rest.len());
    // A password with a raw slash in it: hide up to the last @ of the whole text.
    let split = rest
        .rfind('@')
        .filter(|at| *at < end || rest.get(..end).is_some_and(|a| a.contains(':')));
    match split {
        None => text.to_string(),
        Some(at) => {
            let (user, address) = rest.split_at(at);
            match user.split_once(':') {
                Some((name, _)) => format!("{scheme}://{name}:***{address}"),
                None => text.to_string(),
            }
        }
    }
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        if b == b'%' {
            let mut digit = || bytes.next().and_then(|d| char::from(d).to_digit(16));
            let (high, low) = (digit()?, digit()?);
            out.push((high * 16 + low) as u8);
        } else {
            out.push(b);
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_apart() {
        let u = parse("source.url", "rediss://us%40er:p%3Aw%2F@h.example:6380/3").unwrap();
        assert_eq!(
            (u.tls, u.host.as_str(), u.port, u.db),
            (true, "h.example", 6380, Some(3))
        );
        assert_eq!(
            (
                u.username.as_deref(),
                u.password.as_ref().map(Redacted::reveal)
            ),
            (Some("us@er"), Some("p:w/"))
        );
        let u = parse("source.url", "redis://:pw@[::1]").unwrap();
        assert_eq!(
            (u.host.as_str(), u.port, u.db, u.username),
            ("::1", 6379, None, None)
        );
        assert_eq!(parse("x", "redis://h/").map(|u| u.db).unwrap(), None);
    }

    #[test]
    fn a_wrong_url_is_one_sentence_without_the_password() {
        for (url, part) in [
            ("host:1", "has no scheme"),
            ("http://h", "scheme http://"),
            ("unix:///tmp/s", "scheme unix://"),
            ("redis+sentinel://h", "Sentinel"),
            ("redis://", "has no host"),
            ("redis://:6379", "has no host"),
            ("redis://h:0", "port 0"),
            ("redis://h:70000", "not a number from 1"),
            ("redis://::1:6379", "without brackets"),
            ("redis://[::1", "without its ]"),
            ("redis://[::x]:1", "not an IPv6"),
            ("redis://h/a", "database number"),
            ("redis://h/0?x=1", "database number"),
            ("redis://h?x=1", "query"),
            ("redis://u:s3%zzcret@h", "percent-encoded"),
            ("redis://u:s3cret@h:nope", "not a number"),
        ] {
            let e = match parse("target.url", url) {
                Err(e) => e,
                Ok(_) => panic!("{url} was taken"),
            };
            let text = format!("{e} {}", e.remedy());
            assert!(
                text.starts_with("target.url ") && !text.contains("cret"),
                "{text}"
            );
            if url != "redis://h/0?x=1" {
                assert!(text.contains(part), "{url}: {text}");
            }
            assert_eq!(e.kind(), ErrorKind::Plan);
        }
    }

    #[test]
    fn a_password_is_hidden_wherever_it_ends() {
        assert_eq!(without_password("redis://u:p@h:1/2"), "redis://u:***@h:1/2");
        assert_eq!(without_password("redis://u:p@x@h"), "redis://u:***@h");
        assert_eq!(without_password("redis://u:p/q@h"), "redis://u:***@h");
        assert_eq!(without_password("redis://u@h"), "redis://u@h");
        assert_eq!(without_password("redis://h:1/0"), "redis://h:1/0");
    }
}
