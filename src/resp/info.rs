//! The text that INFO answers: lines of `name:value`, some of them with pairs for a value, `db0:keys=2,expires=1`.

use crate::types::{DbIndex, ReplOffset};

/// The value of the line of that name; CLUSTER INFO is written the same.
pub fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim_end)
}

/// A count out of an INFO reply.
///
/// Some servers print a difference that has become negative as a number near 2^64 (`used_memory_dataset` of a Redis 8
/// without data): it is taken for 0.
pub fn number(info: &str, name: &str) -> Option<u64> {
    count(field(info, name)?)
}

fn count(text: &str) -> Option<u64> {
    let n = text.trim().parse::<u64>().ok()?;
    Some(if i64::try_from(n).is_ok() { n } else { 0 })
}

pub fn is_replica(info: &str) -> bool {
    field(info, "role") == Some("slave")
}

/// How far the server is in its replication stream: what a master has written, what a replica has taken.
pub fn offset(info: &str) -> Option<ReplOffset> {
    let name = match is_replica(info) {
        true => "slave_repl_offset",
        false => "master_repl_offset",
    };
    // Servers count by signed numbers: more than those hold is no offset.
    let offset = field(info, name)?.parse::<i64>().ok()?;
    u64::try_from(offset).ok().map(ReplOffset)
}

/// The `name=value` pairs of one line.
#[derive(Debug, Clone, Copy)]
pub struct Pairs<'a>(&'a str);

impl<'a> Pairs<'a> {
    pub fn get(self, name: &str) -> Option<&'a str> {
        self.0
            .split(',')
            .find_map(|pair| pair.trim().strip_prefix(name)?.strip_prefix('='))
    }

    /// The same as a count, see [`number`].
    pub fn count(self, name: &str) -> Option<u64> {
        count(self.get(name)?)
    }
}

/// The lines whose name begins so: the rest of the name, and the pairs.
pub fn lines<'a>(info: &'a str, prefix: &str) -> impl Iterator<Item = (&'a str, Pairs<'a>)> {
    info.lines().filter_map(move |line| {
        let (name, pairs) = line.strip_prefix(prefix)?.split_once(':')?;
        Some((name, Pairs(pairs)))
    })
}

/// The databases that hold keys.
pub fn databases(info: &str) -> impl Iterator<Item = (DbIndex, Pairs<'_>)> {
    lines(info, "db").filter_map(|(db, pairs)| Some((DbIndex(db.parse().ok()?), pairs)))
}

/// The commands that were called, in small letters, a subcommand behind a `|`.
pub fn commands(info: &str) -> impl Iterator<Item = (String, Pairs<'_>)> {
    lines(info, "cmdstat_").map(|(name, pairs)| (name.to_ascii_lowercase(), pairs))
}

/// The replicas that follow, as their master tells.
pub fn replicas(info: &str) -> impl Iterator<Item = Pairs<'_>> {
    let numbered = lines(info, "slave").filter(|(n, _)| n.parse::<u32>().is_ok());
    let follows = numbered.filter(|(_, replica)| replica.get("state") == Some("online"));
    follows.map(|(_, replica)| replica)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_that_has_become_negative_is_none() {
        let info = "used_memory:1024\r\nused_memory_dataset:18446744073709551000\r\nkeys:7\r\n";
        assert_eq!(number(info, "used_memory_dataset"), Some(0));
        assert_eq!(number(info, "used_memory"), Some(1024));
        assert_eq!(number(info, "maxmemory"), None);
        assert_eq!(count("9223372036854775807"), Some(i64::MAX as u64));
    }

    #[test]
    fn lines_of_pairs_are_taken_apart() {
        let info = "# Keyspace\r\ndb0:keys=2,expires=1,avg_ttl=0\r\ndb11:keys=7,expires=0\r\n\
            db_fields:3\r\ncmdstat_CONFIG|get:calls=10,usec=25,usec_per_call=2.50\r\n";
        let keys = databases(info).map(|(db, of)| (db.0, of.count("keys"), of.count("expires")));
        let keys: Vec<_> = keys.collect();
        assert_eq!(keys, [(0, Some(2), Some(1)), (11, Some(7), Some(0))]);
        let called: Vec<_> = commands(info)
            .map(|(name, of)| (name, of.count("calls")))
            .collect();
        assert_eq!(called, [("config|get".to_owned(), Some(10))]);
    }

    #[test]
    fn only_replicas_that_follow_are_told() {
        let info = "role:master\r\nmaster_repl_offset:20\r\nconnected_slaves:3\r\n\
            slave0:ip=10.0.0.1,port=6380,state=wait_bgsave,offset=0,lag=0\r\n\
            slave1:ip=10.0.0.2,port=6381,state=online,offset=14,lag=1,type=replica\r\n\
            slave2:ip=::1,port=7,state=online,offset=15,lag=0\r\n";
        let told: Vec<_> = replicas(info)
            .map(|r| (r.get("ip"), r.count("offset")))
            .collect();
        assert_eq!(
            told,
            [(Some("10.0.0.2"), Some(14)), (Some("::1"), Some(15))]
        );
        assert_eq!(offset(info), Some(ReplOffset(20)));
        let replica =
            "role:slave\r\nslave_repl_offset:9\r\nmaster_repl_offset:20\r\nslave_priority:1\r\n";
        assert!(is_replica(replica) && replicas(replica).next().is_none());
        assert_eq!(offset(replica), Some(ReplOffset(9)));
    }
}
