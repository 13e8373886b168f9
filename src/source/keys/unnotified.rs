//! Which commands tell of their changes by keyspace notifications, of which class, and which tell nobody.
//!
//! Checked against real servers in `tests/notified.rs`: each command is run, and what it tells is listened to.
//! A command that is not in this table may do anything.

/// What is known of a command's changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It changes no key. What a script, a function or a transaction runs is counted as itself.
    None,
    /// Every key that it changes is told, by events of these classes of `notify-keyspace-events`.
    Told(&'static str),
    /// It may change the state of a stream's groups without a word; nothing else.
    Groups,
    /// It changes libraries of functions.
    Functions,
    /// It changes keys, or how changes are told, without a word.
    Untold,
}

/// What of a server's version decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Version {
    pub before_6_2: bool,
    pub valkey: bool,
}

/// Commands by the classes that tell what they change, in every outcome that they can have.
const TOLD: &[(&str, &str)] = &[
    (
        "$",
        "set setex psetex msetex setnx getset append setrange setbit bitfield incr incrby decr decrby incrbyfloat mset msetnx pfadd pfmerge",
    ),
    ("$g", "bitop"),
    (
        "g",
        "getex getdel delifeq del unlink expire pexpire expireat pexpireat persist rename renamenx copy move restore restore-asking migrate",
    ),
    ("lg", "sort"),
    (
        "l",
        "lpush rpush lpushx rpushx lset linsert lpop rpop lrem ltrim lmove rpoplpush blmove brpoplpush blpop brpop lmpop blmpop",
    ),
    ("s", "sadd srem spop smove"),
    ("sg", "sinterstore sunionstore sdiffstore"),
    (
        "z",
        "zadd zincrby geoadd zrem zpopmin zpopmax bzpopmin bzpopmax zmpop bzmpop zremrangebyrank zremrangebyscore zremrangebylex",
    ),
    (
        "zg",
        "zunionstore zinterstore zdiffstore zrangestore geosearchstore georadius georadiusbymember",
    ),
    (
        "h",
        "hset hmset hsetnx hincrby hincrbyfloat hdel hgetdel hsetex hgetex hexpire hpexpire hexpireat hpexpireat hpersist",
    ),
    (
        "t",
        "xadd xdel xtrim xsetid xdelex xgroup|create xgroup|destroy xgroup|setid xgroup|createconsumer xgroup|delconsumer",
    ),
];

/// With an expiry that has passed these tell of a deletion (class g) on Valkey, of an expiry (x) from 8.1 on.
const PAST_ON_VALKEY: &str = "set getex expire pexpire expireat pexpireat";

/// Before 6.2 an empty result removes the destination without a word.
const UNTOLD_BEFORE_6_2: &str = "georadius georadiusbymember";

/// Commands that change nothing but a stream's groups, and do not always tell.
const GROUPS: &str = "xack xreadgroup xclaim xautoclaim xackdel xgroup";

const FUNCTIONS: &str = "function|load function|delete function|flush function|restore";

/// Commands that are known to change keys, or what is told of them, without a word.
const UNTOLD: &str = "vadd vrem vsetattr flushall flushdb swapdb debug pfdebug config config|set config|resetstat function replicaof slaveof failover cluster|flushslot cluster|flushslots cluster|reset cluster|migrateslots cluster|syncslots client|import-source module|load module|loadex module|unload";

/// Commands that change no key; of a HyperLogLog, counting changes only the count that is kept beside its registers.
const NONE: &str = "
acl acl|cat acl|deluser acl|dryrun acl|genpass acl|getuser acl|help acl|list acl|load acl|log acl|save acl|setuser
acl|users acl|whoami asking auth bgrewriteaof bgsave bitcount bitfield_ro bitpos client client|caching client|capa
client|getname client|getredir client|help client|id client|info client|kill client|list client|no-evict
client|no-touch client|pause client|reply client|setinfo client|setname client|tracking client|trackinginfo
client|unblock client|unpause cluster cluster|addslots cluster|addslotsrange cluster|bumpepoch
cluster|cancelslotmigrations cluster|count-failure-reports cluster|countkeysinslot cluster|delslots
cluster|delslotsrange cluster|failover cluster|forget cluster|getkeysinslot cluster|getslotmigrations cluster|help
cluster|info cluster|keyslot cluster|links cluster|meet cluster|myid cluster|myshardid cluster|nodes cluster|replicas
cluster|replicate cluster|saveconfig cluster|set-config-epoch cluster|setslot cluster|shards cluster|slaves
cluster|slot-stats cluster|slots clusterscan command command|count command|docs command|getkeys
command|getkeysandflags command|help command|info command|list commandlog commandlog|get commandlog|help
commandlog|len commandlog|reset config|get config|help config|rewrite dbsize discard dump echo eval eval_ro evalsha
evalsha_ro exec exists expiretime fcall fcall_ro function|dump function|help function|kill function|list
function|stats geodist geohash geopos georadius_ro georadiusbymember_ro geosearch get getbit getrange hello hexists
hexpiretime hget hgetall hkeys hlen hmget hpexpiretime hpttl hrandfield hscan hstrlen httl hvals info keys lastsave
latency latency|doctor latency|graph latency|help latency|histogram latency|history latency|latest latency|reset lcs
lindex llen lolwut lpos lrange memory memory|doctor memory|help memory|malloc-stats memory|purge memory|stats
memory|usage mget module module|help module|list monitor multi object object|encoding object|freq object|help
object|idletime object|refcount pexpiretime pfcount pfselftest ping post host: psubscribe psync pttl publish pubsub
pubsub|channels pubsub|help pubsub|numpat pubsub|numsub pubsub|shardchannels pubsub|shardnumsub punsubscribe quit
randomkey readonly readwrite replconf reset role save scan scard script script|debug script|exists script|flush
script|help script|kill script|load script|show sdiff select shutdown sinter sintercard sismember slowlog slowlog|get
slowlog|help slowlog|len slowlog|reset smembers smismember sort_ro spublish srandmember sscan ssubscribe stralgo
strlen subscribe substr sunion sunsubscribe sync time touch ttl type unsubscribe unwatch vcard vdim vemb vgetattr
vinfo vismember vlinks vrandmember vrange vsim wait waitaof watch xgroup|help xinfo xinfo|consumers xinfo|groups
xinfo|help xinfo|stream xlen xpending xrange xread xrevrange zcard zcount zdiff zinter zintercard zlexcount zmscore
zrandmember zrange zrangebylex zrangebyscore zrank zrevrange zrevrangebylex zrevrangebyscore zrevrank zscan zscore
zunion";

fn is_in(list: &str, name: &str) -> bool {
    list.split_whitespace().any(|known| known == name)
}

/// What becomes of the changes of a command of a server, by its name in INFO commandstats; `None` of one that is not
/// known.
pub fn effect(name: &str, of: Version) -> Option<Effect> {
    if of.before_6_2 && is_in(UNTOLD_BEFORE_6_2, name) {
        return Some(Effect::Untold);
    }
    if let Some((classes, _)) = TOLD.iter().find(|(_, names)| is_in(names, name)) {
        return Some(match of.valkey && is_in(PAST_ON_VALKEY, name) {
            true if classes.contains('$') => Effect::Told("$gx"),
            true => Effect::Told("gx"),
            false => Effect::Told(classes),
        });
    }
    let lists = [
        (NONE, Effect::None),
        (GROUPS, Effect::Groups),
        (FUNCTIONS, Effect::Functions),
        (UNTOLD, Effect::Untold),
    ];
    (lists.iter().find(|(list, _)| is_in(list, name))).map(|(_, effect)| *effect)
}

/// Events that tell which class of notifications is on.
const EVENTS: &[(char, &str)] = &[
    ('$', "set setrange incrby decrby incrbyfloat append setbit"),
    (
        'g',
        "del expire rename_from rename_to move_from move_to persist restore copy_to",
    ),
    ('l', "lpush rpush lpop rpop lset linsert lrem ltrim"),
    ('s', "sadd srem spop"),
    ('z', "zadd zincr zrem"),
    ('h', "hset hdel hincrby hincrbyfloat"),
    ('t', "xadd xdel xtrim xsetid xgroup-create"),
    ('x', "expired"),
    ('e', "evicted"),
];

/// The class of an event, where that is certain.
pub fn class_of(event: &[u8]) -> Option<char> {
    let event = std::str::from_utf8(event).ok()?;
    (EVENTS.iter().find(|(_, list)| is_in(list, event))).map(|(class, _)| *class)
}

/// Whether an event is no client's write: what has expired, what memory was short of, what was looked for in vain.
pub fn is_no_write(event: &[u8]) -> bool {
    [&b"expired"[..], b"hexpired", b"evicted", b"keymiss", b"new"].contains(&event)
}

/// Whether a key may be a stream with groups after an event.
pub fn may_bring_groups(event: &[u8]) -> bool {
    event.starts_with(b"xgroup-")
        || [&b"restore"[..], b"copy_to", b"rename_to", b"move_to"].contains(&event)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_in_one_list() {
        let told = TOLD.iter().map(|(_, names)| *names);
        let lists: Vec<&str> = told.chain([GROUPS, FUNCTIONS, UNTOLD, NONE]).collect();
        let mut names: Vec<&str> = lists.iter().flat_map(|l| l.split_whitespace()).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(all, names.len());
        let (redis, old) = (
            Version::default(),
            Version {
                before_6_2: true,
                valkey: false,
            },
        );
        let valkey = Version {
            before_6_2: false,
            valkey: true,
        };
        assert_eq!(effect("set", redis), Some(Effect::Told("$")));
        assert_eq!(effect("set", valkey), Some(Effect::Told("$gx")));
        assert_eq!(effect("georadius", redis), Some(Effect::Told("zg")));
        assert_eq!(effect("georadius", old), Some(Effect::Untold));
        assert_eq!(effect("xack", redis), Some(Effect::Groups));
        assert_eq!(effect("bf.add", redis), None);
    }
}
