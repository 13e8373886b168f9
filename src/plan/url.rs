//! `redis://user:password@host:port/db`, taken apart and put together.
//!
//! Invariant: no error shows the url, because it may hold a password.

use super::secret::Redacted;
use crate::error::{Error, ErrorKind, Result};
use crate::types::address;

pub(super) struct ServerUrl {
    pub tls: bool,
    pub location: Location,
    pub db: Option<u32>,
    pub username: Option<String>,
    pub password: Option<Redacted>,
}

const DEFAULT_PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

/// Where a side is found. Addresses are `host:port`, an IPv6 address in brackets; there is at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// At the first of these that answers.
    Addresses(Vec<String>),
    /// The master of this name, at the address that the first of these sentinels tells.
    Sentinels { name: String, nodes: Vec<String> },
    /// At this socket of this machine.
    Socket(String),
}

impl Location {
    /// The url, without a password.
    pub fn url(&self, tls: bool, user: Option<&str>, db: Option<u32>) -> String {
        let scheme = if tls { "rediss" } else { "redis" };
        let user = user.map(|u| format!("{u}@")).unwrap_or_default();
        let path = db.map(|d| format!("/{d}")).unwrap_or_default();
        match self {
            Location::Addresses(at) => format!("{scheme}://{user}{}{path}", at.join(",")),
            Location::Sentinels { name, nodes } => {
                format!("{scheme}+sentinel://{user}{}/{name}{path}", nodes.join(","))
            }
            Location::Socket(file) => {
                let codes = [("%", "%25"), ("?", "%3F"), ("#", "%23"), ("@", "%40")];
                let file =
                    (codes.iter()).fold(file.clone(), |file, (c, code)| file.replace(c, code));
                let db = db.map(|d| format!("?db={d}")).unwrap_or_default();
                format!("redis+unix://{user}{file}{db}")
            }
        }
    }
}

const FORM: &str = "write redis://host:port or rediss://host:port for TLS";
const ADDRESSES: &str =
    "write host:port, several with commas in between, and an IPv6 address in brackets: [::1]:6379";
const PASSWORD: &str = "if the password holds one of : / @ # ? %, write it percent-encoded (%3A %2F %40 %23 %3F %25), or leave it out of the url and use \"password\": {\"env\": \"NAME\"}";

/// What stands between the scheme and the path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Addresses,
    Sentinels,
    Socket,
}

/// Reads the url that stands at `path` in the plan.
pub(super) fn parse(path: &str, text: &str) -> Result<ServerUrl> {
    let wrong = |what: &str| Error::new(ErrorKind::Plan, format!("{path} {what}"));
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(wrong("has no scheme").hint(FORM));
    };
    let (tls, form) = match scheme.to_ascii_lowercase().as_str() {
        "redis" | "valkey" => (false, Form::Addresses),
        "rediss" | "valkeys" => (true, Form::Addresses),
        "redis+sentinel" | "valkey+sentinel" => (false, Form::Sentinels),
        "rediss+sentinel" | "valkeys+sentinel" => (true, Form::Sentinels),
        "redis+unix" | "valkey+unix" => (false, Form::Socket),
        // The scheme is shown only when it cannot be a piece of a password.
        other if other.len() <= 12 && other.bytes().all(|b| b.is_ascii_lowercase()) => {
            let hint = if other == "unix" {
                "write redis+unix:///path/to/the.sock"
            } else {
                FORM
            };
            return Err(wrong(&format!(
                "has the scheme {other}://, which is not supported"
            ))
            .hint(hint));
        }
        _ => return Err(wrong("has a scheme that is not supported").hint(FORM)),
    };
    // Where there is a user, what does not fit may be a piece of its password.
    let wrong = |what: &str, hint: &str| {
        wrong(what).hint(match rest.contains('@') {
            true => format!("{PASSWORD}; else {hint}"),
            false => hint.to_owned(),
        })
    };
    let (authority, after) = rest.split_once('/').unwrap_or((rest, ""));
    let (user, at) = match authority.rsplit_once('@') {
        Some((user, at)) => (Some(user), at),
        None => (None, authority),
    };
    if user.is_some_and(|u| u.contains('@') && u.contains(',')) {
        return Err(wrong(
            "has a user before more than one address",
            "write the user once, before the first address",
        ));
    }
    let (username, password) = match user {
        Some(user) => login(user).ok_or_else(|| {
            wrong(
                "has a user or password that is not percent-encoded text",
                ADDRESSES,
            )
        })?,
        None => (None, None),
    };
    if form != Form::Socket && rest_has_query(at, after) {
        return Err(wrong(
            "has a query or fragment, which has no meaning here",
            "use the plan's own keys for options",
        ));
    }
    let (location, db) = match form {
        Form::Addresses => (
            Location::Addresses(
                addresses(at, DEFAULT_PORT).map_err(|what| wrong(what, ADDRESSES))?,
            ),
            after,
        ),
        Form::Sentinels => {
            let (name, db) = after.split_once('/').unwrap_or((after, ""));
            if name.is_empty() {
                return Err(wrong(
                    "does not name the master that Sentinel watches",
                    "write redis+sentinel://host:26379/mymaster; several sentinels with commas in between",
                ));
            }
            let nodes = addresses(at, SENTINEL_PORT).map_err(|what| wrong(what, ADDRESSES))?;
            let name = name.to_owned();
            (Location::Sentinels { name, nodes }, db)
        }
        Form::Socket => {
            let (file, db) = socket(at, after).map_err(|what| {
                wrong(
                    what,
                    "write redis+unix:///path/to/the.sock, with ?db=1 for a database; user and password have keys of their own in the plan",
                )
            })?;
            (Location::Socket(file), db)
        }
    };
    let db = match db.trim_end_matches('/') {
        "" => None,
        number => match number.parse::<u32>() {
            Ok(n) if n <= i32::MAX as u32 => Some(n),
            _ => {
                return Err(wrong(
                    "has a path that is not a database number",
                    "write /0, /1 and so on, or nothing",
                ));
            }
        },
    };
    Ok(ServerUrl {
        tls,
        location,
        db,
        username,
        password,
    })
}

fn rest_has_query(at: &str, after: &str) -> bool {
    [at, after].iter().any(|part| part.contains(['?', '#']))
}

/// Username and password of `user:password`; `None` when they are not percent-encoded text.
fn login(text: &str) -> Option<(Option<String>, Option<Redacted>)> {
    let (name, secret) = text.split_once(':').unwrap_or((text, ""));
    let decoded = |text: &str| match text {
        "" => Some(None),
        text => percent_decoded(text).map(Some),
    };
    Some((decoded(name)?, decoded(secret)?.map(Redacted::new)))
}

/// Addresses with commas in between, each with a port.
fn addresses(text: &str, port: u16) -> std::result::Result<Vec<String>, &'static str> {
    let address = |text: &str| {
        let (host, given) = host_and_port(text)?;
        Ok(address::join(&host, given.unwrap_or(port)))
    };
    text.split(',').map(address).collect()
}

/// The path of a socket, and the database as it is written.
fn socket<'a>(at: &str, after: &'a str) -> std::result::Result<(String, &'a str), &'static str> {
    let (file, query) = after.split_once('?').unwrap_or((after, ""));
    if !at.is_empty() || file.is_empty() || file.ends_with('/') {
        return Err("does not name a socket by its whole path");
    }
    if after.contains('#') {
        return Err("has a fragment, which has no meaning here");
    }
    let db = match query.split_once('=') {
        Some(("db", db)) if !db.is_empty() => db,
        None if query.is_empty() => "",
        _ => return Err("has a query other than ?db="),
    };
    let file = percent_decoded(file).ok_or("has a path that is not percent-encoded text")?;
    Ok((format!("/{file}"), db))
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
        let at =
            |list: &[&str]| Location::Addresses(list.iter().map(|a| (*a).to_owned()).collect());
        assert_eq!(
            (u.tls, u.location, u.db),
            (true, at(&["h.example:6380"]), Some(3))
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
            (u.location, u.db, u.username),
            (at(&["[::1]:6379"]), None, None)
        );
        assert_eq!(parse("x", "redis://h/").map(|u| u.db).unwrap(), None);
        let u = parse("x", "rediss://u:a,b@b:7,[::1]:8,a/2").unwrap();
        assert_eq!(
            (u.location, u.db, u.username.as_deref()),
            (at(&["b:7", "[::1]:8", "a:6379"]), Some(2), Some("u"))
        );
        assert_eq!(u.password.as_ref().map(Redacted::reveal), Some("a,b"));
    }

    #[test]
    fn what_is_put_together_is_read_again() {
        for (url, again) in [
            ("redis://a:1,b:2/3", "redis://a:1,b:2/3"),
            ("rediss://[::1]", "rediss://[::1]:6379"),
            (
                "rediss+sentinel://s,t:7/the-master/4",
                "rediss+sentinel://s:26379,t:7/the-master/4",
            ),
            (
                "redis+unix:///run/a%3Fb.sock",
                "redis+unix:///run/a%3Fb.sock",
            ),
            ("redis+unix://u@/s?db=5", "redis+unix:///s?db=5"),
        ] {
            let u = parse("x", url).unwrap();
            assert_eq!(u.location.url(u.tls, None, u.db), again, "{url}");
        }
        let u = parse("x", "redis+unix:///run/a%3Fb.sock").unwrap();
        assert_eq!(u.location, Location::Socket("/run/a?b.sock".into()));
    }

    #[test]
    fn a_password_that_breaks_the_url_is_explained() {
        for url in [
            "redis://u:s3/cret@h:1/0",
            "redis://u:12/cret@h:1",
            "redis://:cret:1/@h",
            "redis://u:cret%@h",
            "rediss+sentinel://u:a/cret@h/name",
            "redis://u:cret@a:1,u:cret@b:2",
        ] {
            let Err(e) = parse("source.url", url) else {
                panic!("{url} was taken")
            };
            let text = format!("{e} {}", e.remedy());
            assert!(
                text.contains("percent-encoded")
                    && text.contains("\"env\"")
                    && !text.contains("cret"),
                "{url}: {text}"
            );
        }
    }

    #[test]
    fn a_wrong_url_is_one_sentence_without_the_password() {
        for (url, part) in [
            ("host:1", "has no scheme"),
            ("http://h", "scheme http://"),
            ("unix:///tmp/s", "redis+unix://"),
            ("rediss+unix:///tmp/s", "not supported"),
            ("redis+unix://h/s", "whole path"),
            ("redis+unix:///", "whole path"),
            ("redis+unix:///s?pass=cret", "query other than"),
            ("redis+unix:///s?db=x", "database number"),
            ("redis+sentinel://h", "Sentinel"),
            ("redis://a:1,,b:2", "has no host"),
            ("redis://a:1,b:x", "not a number"),
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
