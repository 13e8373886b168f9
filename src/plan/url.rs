//! A server's url taken apart: redis://user:password@host:port/db, rediss:// for TLS.

/// The parts of a url.
pub struct Url {
    pub tls: bool,
    pub user: Option<String>,
    pub password: Option<String>,
    pub host: String,
    pub port: u16,
    pub db: Option<u32>,
}

/// Takes a url apart; the error says what is wrong with it, without its text, which may hold a password.
pub fn parse_url(url: &str) -> Result<Url, String> {
    let (scheme, rest) = url.split_once("://").ok_or("has no scheme")?;
    let tls = match scheme {
        "redis" | "valkey" => false,
        "rediss" | "valkeys" => true,
        other => return Err(format!("has the scheme {other:?}, which is not known")),
    };
    let (login, place) = rest
        .rsplit_once('@')
        .map_or((None, rest), |(l, p)| (Some(l), p));
    let (user, password) = match login.map(|l| l.split_once(':').unwrap_or((l, ""))) {
        None => (None, None),
        Some((u, p)) => {
            let text = |t: &str| (!t.is_empty()).then(|| decode_percent(t));
            (text(u), text(p))
        }
    };
    let (place, db) = place.split_once('/').map_or((place, ""), |(p, d)| (p, d));
    let db = if db.is_empty() {
        None
    } else {
        Some(
            db.parse()
                .map_err(|_| "names a database that is not a number")?,
        )
    };
    let (host, port) = match place.strip_prefix('[') {
        Some(v6) => {
            let (host, rest) = v6.split_once(']').ok_or("has an IPv6 address without ]")?;
            (host, rest.strip_prefix(':'))
        }
        None => place
            .split_once(':')
            .map_or((place, None), |(h, p)| (h, Some(p))),
    };
    if host.is_empty() {
        return Err("names no host".into());
    }
    let port = match port {
        None => 6379,
        Some(p) => p
            .parse()
            .ok()
            .filter(|p| *p != 0)
            .ok_or("names a port that is not a number from 1 to 65535")?,
    };
    Ok(Url {
        tls,
        user,
        password,
        host: host.to_owned(),
        port,
        db,
    })
}

fn decode_percent(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = (bytes[i] == b'%')
            .then(|| text.get(i + 1..i + 3))
            .flatten()
            .and_then(|h| u8::from_str_radix(h, 16).ok());
        out.push(hex.unwrap_or(bytes[i]));
        i += if hex.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}
