//! Name → what it does and where its keys are, for every write command up to Redis 8.10, Valkey 9.2 and KeyDB 6.3.
//!
//! Checked against the servers' own COMMAND GETKEYS in `tests/command_keys.rs`.

mod keys;

use super::what::{Access, Command, KeyArg, Kind, SplitKind};
use crate::error::{Error, ErrorKind, Result};
use Access::{Read, Write};
use keys::{
    ALL, ALL_BUT_LAST, ALL_READ, BOTH, FROM_REST, FROM_SECOND, Keys, ONE, ONE_READ, PAIRS, SECOND,
    TRIPLES, find, may_be_key,
};

/// A row of the table.
pub struct Spec {
    pub name: &'static str,
    pub kind: Kind,
    /// One of its forms sets an expiry.
    pub carries_expiry: bool,
    keys: Keys,
}

impl Spec {
    /// Whether argument `i` of `count`, the name being the first, may be a key, whatever the others say.
    pub fn may_be_key(&self, i: usize, count: usize) -> bool {
        may_be_key(&self.keys, i, count)
    }

    /// Whether a call of it may change what the server holds; what a script calls counts for itself.
    pub fn may_write(&self) -> bool {
        !self.kind.changes_nothing() && !matches!(self.kind, Kind::Eval | Kind::Script)
    }

    /// The keys in the order of the arguments; an error when the command's shape does not fit.
    pub fn keys(&self, cmd: &Command<'_>, out: &mut Vec<KeyArg>) -> Result<()> {
        out.clear();
        match find(&self.keys, cmd, out) {
            Some(()) => Ok(()),
            None => Err(Error::new(
                ErrorKind::Protocol,
                format!(
                    "the keys of {} with {} arguments cannot be found",
                    self.name,
                    cmd.len()
                ),
            )),
        }
    }
}

const fn spec(name: &'static str, kind: Kind, keys: Keys) -> Spec {
    Spec {
        name,
        kind,
        carries_expiry: false,
        keys,
    }
}

pub(super) const fn write(name: &'static str) -> Spec {
    spec(name, Kind::Write, ONE)
}

const fn keyed(name: &'static str, keys: Keys) -> Spec {
    spec(name, Kind::Write, keys)
}

const fn timed(name: &'static str) -> Spec {
    Spec {
        name,
        kind: Kind::Write,
        carries_expiry: true,
        keys: ONE,
    }
}

const fn read(name: &'static str) -> Spec {
    spec(name, Kind::Read, ONE_READ)
}

pub(super) const fn plain(name: &'static str, kind: Kind) -> Spec {
    spec(name, kind, Keys::None)
}

pub static SPECS: &[Spec] = &[
    // strings
    timed("SET"),
    timed("SETEX"),
    timed("PSETEX"),
    timed("GETEX"),
    timed("INCREX"),
    write("SETNX"),
    write("GETSET"),
    write("GETDEL"),
    write("APPEND"),
    write("SETRANGE"),
    write("SETBIT"),
    write("BITFIELD"),
    write("INCR"),
    write("INCRBY"),
    write("DECR"),
    write("DECRBY"),
    write("INCRBYFLOAT"),
    write("DELEX"),
    write("DELIFEQ"),
    spec("MSET", Kind::Split(SplitKind::Pairs), PAIRS),
    spec("MSETNX", Kind::Split(SplitKind::Pairs), PAIRS),
    Spec {
        name: "MSETEX",
        kind: Kind::Split(SplitKind::MsetEx),
        carries_expiry: true,
        keys: Keys::MsetEx,
    },
    keyed("BITOP", Keys::Runs(&[(2, 2, 1, Write), (3, -1, 1, Read)])),
    // keys
    spec("DEL", Kind::Split(SplitKind::Keys), ALL),
    spec("UNLINK", Kind::Split(SplitKind::Keys), ALL),
    spec("TOUCH", Kind::Read, ALL_READ),
    timed("EXPIRE"),
    timed("PEXPIRE"),
    timed("EXPIREAT"),
    timed("PEXPIREAT"),
    write("PERSIST"),
    keyed("RENAME", BOTH),
    keyed("RENAMENX", BOTH),
    keyed("COPY", Keys::Runs(&[(1, 1, 1, Read), (2, 2, 1, Write)])),
    spec("MOVE", Kind::Move, ONE),
    timed("RESTORE"),
    timed("RESTORE-ASKING"),
    keyed("MIGRATE", Keys::Migrate),
    keyed("SORT", Keys::Sort),
    // lists
    write("LPUSH"),
    write("RPUSH"),
    write("LPUSHX"),
    write("RPUSHX"),
    write("LPOP"),
    write("RPOP"),
    write("LSET"),
    write("LINSERT"),
    write("LREM"),
    write("LTRIM"),
    keyed("LMOVE", BOTH),
    keyed("LMOVEM", BOTH),
    keyed("RPOPLPUSH", BOTH),
    keyed("BLMOVE", BOTH),
    keyed("BLMOVEM", BOTH),
    keyed("BRPOPLPUSH", BOTH),
    keyed("BLPOP", ALL_BUT_LAST),
    keyed("BRPOP", ALL_BUT_LAST),
    keyed(
        "LMPOP",
        Keys::Counted {
            count: 1,
            first: 2,
            access: Write,
        },
    ),
    keyed(
        "BLMPOP",
        Keys::Counted {
            count: 2,
            first: 3,
            access: Write,
        },
    ),
    // sets
    write("SADD"),
    write("SREM"),
    write("SPOP"),
    keyed("SMOVE", BOTH),
    keyed("SINTERSTORE", FROM_REST),
    keyed("SUNIONSTORE", FROM_REST),
    keyed("SDIFFSTORE", FROM_REST),
    // sorted sets
    write("ZADD"),
    write("ZINCRBY"),
    write("ZREM"),
    write("ZPOPMIN"),
    write("ZPOPMAX"),
    write("ZREMRANGEBYRANK"),
    write("ZREMRANGEBYSCORE"),
    write("ZREMRANGEBYLEX"),
    keyed("BZPOPMIN", ALL_BUT_LAST),
    keyed("BZPOPMAX", ALL_BUT_LAST),
    keyed(
        "ZMPOP",
        Keys::Counted {
            count: 1,
            first: 2,
            access: Write,
        },
    ),
    keyed(
        "BZMPOP",
        Keys::Counted {
            count: 2,
            first: 3,
            access: Write,
        },
    ),
    keyed("ZUNIONSTORE", Keys::Store),
    keyed("ZINTERSTORE", Keys::Store),
    keyed("ZDIFFSTORE", Keys::Store),
    keyed("ZRANGESTORE", FROM_SECOND),
    write("GEOADD"),
    keyed("GEOSEARCHSTORE", FROM_SECOND),
    keyed("GEORADIUS", Keys::GeoRadius(6)),
    keyed("GEORADIUSBYMEMBER", Keys::GeoRadius(5)),
    // hashes
    write("HSET"),
    write("HMSET"),
    write("HSETNX"),
    write("HDEL"),
    write("HINCRBY"),
    write("HINCRBYFLOAT"),
    write("HGETDEL"),
    timed("HSETEX"),
    timed("HGETEX"),
    timed("HEXPIRE"),
    timed("HPEXPIRE"),
    timed("HEXPIREAT"),
    timed("HPEXPIREAT"),
    write("HPERSIST"),
    write("HSETC"),
    // Its SET comes as a RESTORE; should anything else of it come, its key is read.
    keyed("HIMPORT", SECOND),
    // streams
    write("XADD"),
    write("XDEL"),
    write("XTRIM"),
    write("XSETID"),
    write("XACK"),
    write("XCLAIM"),
    write("XAUTOCLAIM"),
    write("XACKDEL"),
    write("XDELEX"),
    write("XNACK"),
    write("XCFGSET"),
    keyed("XGROUP", SECOND),
    keyed("XREADGROUP", Keys::Streams),
    write("XIDMPRECORD"),
    // HyperLogLog: counting may rewrite the cached count
    write("PFADD"),
    keyed("PFCOUNT", ALL),
    keyed("PFMERGE", FROM_REST),
    keyed("PFDEBUG", SECOND),
    // vector sets, arrays, rate limiter
    write("VADD"),
    write("VREM"),
    write("VSETATTR"),
    write("ARSET"),
    write("ARMSET"),
    write("ARINSERT"),
    write("ARRING"),
    write("ARDEL"),
    write("ARDELRANGE"),
    write("ARSEEK"),
    write("ARPOP"),
    write("ARSETRANGE"),
    write("ARTRIM"),
    write("GCRA"),
    // hashes of prefixes (Valkey 9.2)
    write("PHSET"),
    write("PHMSET"),
    write("PHDEL"),
    write("PHDELPREFIX"),
    // KeyDB: expiries of members, fields renamed, scripts that run by the clock
    spec("EXPIREMEMBER", Kind::Unheld, ONE),
    spec("EXPIREMEMBERAT", Kind::Unheld, ONE),
    spec("PEXPIREMEMBERAT", Kind::Unheld, ONE),
    spec("KEYDB.CRON", Kind::Unheld, ONE),
    spec("KEYDB.NHSET", Kind::Unheld, ONE),
    write("KEYDB.HRENAME"),
    write("KEYDB.MVCCRESTORE"),
    plain("RREPLAY", Kind::Replay),
    // modules
    write("JSON.SET"),
    write("JSON.DEL"),
    write("JSON.FORGET"),
    write("JSON.NUMINCRBY"),
    write("JSON.NUMMULTBY"),
    write("JSON.NUMPOWBY"),
    write("JSON.STRAPPEND"),
    write("JSON.ARRAPPEND"),
    write("JSON.ARRINSERT"),
    write("JSON.ARRPOP"),
    write("JSON.ARRTRIM"),
    write("JSON.TOGGLE"),
    write("JSON.CLEAR"),
    write("JSON.MERGE"),
    keyed("JSON.MSET", TRIPLES),
    write("BF.RESERVE"),
    write("BF.ADD"),
    write("BF.MADD"),
    write("BF.INSERT"),
    write("BF.LOADCHUNK"),
    write("BF.LOAD"),
    write("CF.RESERVE"),
    write("CF.ADD"),
    write("CF.ADDNX"),
    write("CF.INSERT"),
    write("CF.INSERTNX"),
    write("CF.DEL"),
    write("CF.LOADCHUNK"),
    write("CMS.INITBYDIM"),
    write("CMS.INITBYPROB"),
    write("CMS.INCRBY"),
    keyed("CMS.MERGE", Keys::Store),
    write("TOPK.RESERVE"),
    write("TOPK.ADD"),
    write("TOPK.INCRBY"),
    read("TOPK.COUNT"),
    write("TDIGEST.CREATE"),
    write("TDIGEST.RESET"),
    write("TDIGEST.ADD"),
    keyed("TDIGEST.MERGE", Keys::Store),
    write("TS.CREATE"),
    write("TS.ALTER"),
    write("TS.ADD"),
    keyed("TS.MADD", TRIPLES),
    write("TS.INCRBY"),
    write("TS.DECRBY"),
    write("TS.DEL"),
    keyed("TS.CREATERULE", BOTH),
    keyed("TS.DELETERULE", BOTH),
    write("FT.SUGADD"),
    write("FT.SUGDEL"),
    // scripts as they were called
    spec(
        "EVAL",
        Kind::Eval,
        Keys::Counted {
            count: 2,
            first: 3,
            access: Write,
        },
    ),
    spec(
        "EVALSHA",
        Kind::Eval,
        Keys::Counted {
            count: 2,
            first: 3,
            access: Write,
        },
    ),
    spec(
        "FCALL",
        Kind::Eval,
        Keys::Counted {
            count: 2,
            first: 3,
            access: Write,
        },
    ),
    // not about keys
    plain("MULTI", Kind::Multi),
    plain("EXEC", Kind::Exec),
    plain("DISCARD", Kind::Discard),
    plain("SELECT", Kind::Select),
    plain("PING", Kind::Ping),
    plain("REPLCONF", Kind::Replconf),
    plain("FLUSHDB", Kind::FlushDb),
    plain("FLUSHALL", Kind::FlushAll),
    plain("SWAPDB", Kind::SwapDb),
    plain("TRIMSLOTS", Kind::TrimSlots),
    plain("SCRIPT", Kind::Script),
    plain("FUNCTION", Kind::Function),
    plain("PUBLISH", Kind::Publish),
    plain("SPUBLISH", Kind::Publish),
    plain("CLUSTER", Kind::Ignore),
    plain("OPINFO", Kind::Ignore),
    plain("COMMANDLOG", Kind::Ignore),
    plain("TIMESERIES.REFRESHCLUSTER", Kind::Ignore),
    plain("DEBUG", Kind::Ignore),
    plain("WAIT", Kind::Ignore),
    // reads do not belong into a stream, but harm nothing
    read("GET"),
    read("STRLEN"),
    read("EXISTS"),
    read("TYPE"),
    read("TTL"),
    read("PTTL"),
    read("HGET"),
    read("HGETALL"),
    read("LRANGE"),
    read("SMEMBERS"),
    read("ZRANGE"),
    read("XRANGE"),
    read("BITCOUNT"),
    read("GETBIT"),
    read("GETRANGE"),
    read("DUMP"),
];
