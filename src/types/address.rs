//! `host:port`, put together and taken apart: an IPv6 address stands in brackets.

use std::fmt::Display;

/// Puts a host and a port together; the host may have its brackets already.
pub fn join(host: &str, port: impl Display) -> String {
    if host.contains(':') && !host.starts_with('[') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// The host without brackets, and the port as it is written.
pub fn split(address: &str) -> (&str, Option<&str>) {
    let (host, port) = match address.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (address, None),
    };
    (host.trim_matches(['[', ']']), port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_together_comes_apart_again() {
        for (host, address) in [
            ("h.example", "h.example:6380"),
            ("10.0.0.1", "10.0.0.1:6380"),
            ("::1", "[::1]:6380"),
        ] {
            assert_eq!(join(host, 6380), address);
            assert_eq!(split(address), (host, Some("6380")));
        }
        assert_eq!(join("[::1]", "1"), "[::1]:1");
        assert_eq!((split("h"), split("[::1]")), (("h", None), ("::1", None)));
    }
}
