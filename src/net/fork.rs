//! Products that speak the protocol of Redis and are built anew: what they say they are, and what they cannot do.

use crate::resp::info;

/// A product of its own, which tells a version of Redis only for clients' sake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    Dragonfly,
    Garnet,
    Kvrocks,
}

impl Fork {
    /// From the answer of INFO.
    pub fn parse(text: &str) -> Option<Fork> {
        [Fork::Dragonfly, Fork::Garnet, Fork::Kvrocks]
            .into_iter()
            .find(|fork| info::field(text, &format!("{}_version", fork.name())).is_some())
    }

    pub fn name(self) -> &'static str {
        match self {
            Fork::Dragonfly => "dragonfly",
            Fork::Garnet => "garnet",
            Fork::Kvrocks => "kvrocks",
        }
    }

    /// DUMP answers for values of every type. Garnet's knows strings only, and may say of others that they are not there.
    pub fn dumps(self) -> bool {
        self != Fork::Garnet
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_is_known_by_its_own_version() {
        for (text, fork) in [
            (
                "# Server\r\nredis_version:7.4.0\r\ndragonfly_version:df-v1.40.1\r\n",
                Some(Fork::Dragonfly),
            ),
            (
                "# Server\r\ngarnet_version:1.0.65\r\nos:Unix\r\n",
                Some(Fork::Garnet),
            ),
            (
                "version:2.12.0\r\nkvrocks_version:2.12.0\r\nredis_version:7.0.0\r\n",
                Some(Fork::Kvrocks),
            ),
            ("redis_version:6.3.4\r\n# KeyDB\r\nmvcc_depth:0\r\n", None),
            (
                "redis_version:8.0.0\r\nexecutable:/opt/dragonfly_version/redis\r\n",
                None,
            ),
        ] {
            assert_eq!(Fork::parse(text), fork, "{text}");
        }
    }
}
