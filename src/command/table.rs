//! Name → what it does and where its keys are, for every write command up to Redis 8.10, Valkey 9.2 and KeyDB 6.3.
//!
//! Checked against the servers' own COMMAND GETKEYS in `tests/command_keys.rs`.

use super::what::{Access, Command, KeyArg, Kind, SplitKind};
use crate::error::{Error, ErrorKind, Result};
use Access::{Read, Write};

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

/// Where keys stand.
pub enum Keys {
    None,
    /// Runs of arguments: first, last (negative counts from the end), step. Only the first must have a key.
    Runs(&'static [(usize, i64, usize, Access)]),
    /// A count at the first place, keys from the second on.
    Counted {
        count: usize,
        first: usize,
        access: Access,
    },
    /// Destination at 1, a count at 2, sources from 3 on.
    Store,
    /// A count at 1, then pairs of key and value.
    MsetEx,
    Sort,
    GeoRadius(usize),
    Streams,
    Migrate,
}

const ONE: Keys = Keys::Runs(&[(1, 1, 1, Write)]);
const ONE_READ: Keys = Keys::Runs(&[(1, 1, 1, Read)]);
const SECOND: Keys = Keys::Runs(&[(2, 2, 1, Write)]);
const ALL: Keys = Keys::Runs(&[(1, -1, 1, Write)]);
const ALL_READ: Keys = Keys::Runs(&[(1, -1, 1, Read)]);
const ALL_BUT_LAST: Keys = Keys::Runs(&[(1, -2, 1, Write)]);
const BOTH: Keys = Keys::Runs(&[(1, 2, 1, Write)]);
const FROM_SECOND: Keys = Keys::Runs(&[(1, 1, 1, Write), (2, 2, 1, Read)]);
const FROM_REST: Keys = Keys::Runs(&[(1, 1, 1, Write), (2, -1, 1, Read)]);
const PAIRS: Keys = Keys::Runs(&[(1, -1, 2, Write)]);
const TRIPLES: Keys = Keys::Runs(&[(1, -1, 3, Write)]);

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

/// Appends the keys of `cmd`; `None` when its shape does not fit.
pub fn find(keys: &Keys, cmd: &Command<'_>, out: &mut Vec<KeyArg>) -> Option<()> {
    let mut push = |index: usize, access: Access| out.push(KeyArg { index, access });
    match keys {
        Keys::None => {}
        Keys::Runs(runs) => {
            for (n, (first, last, step, access)) in runs.iter().enumerate() {
                let last = cmd.place(*last)?;
                if n > 0 && last + 1 == *first {
                    // No sources: a PFMERGE of its destination alone.
                    continue;
                }
                cmd.places(*first, last as i64, *step)?
                    .for_each(|i| push(i, *access));
            }
        }
        Keys::Counted {
            count,
            first,
            access,
        } => {
            for i in counted(cmd, *count, *first, 1)? {
                push(i, *access);
            }
        }
        Keys::Store => {
            push(1, Write);
            for i in counted(cmd, 2, 3, 1)? {
                push(i, Read);
            }
        }
        Keys::MsetEx => {
            for i in counted(cmd, 1, 2, 2)? {
                push(i, Write);
            }
        }
        Keys::Sort => {
            cmd.arg(1)?;
            push(1, Read);
            // The last STORE counts, and patterns may be called so: options are walked.
            let (mut i, mut store) = (2, None);
            while let Some(word) = cmd.arg(i) {
                i += if word.eq_ignore_ascii_case(b"LIMIT") {
                    3
                } else if word.eq_ignore_ascii_case(b"BY") || word.eq_ignore_ascii_case(b"GET") {
                    2
                } else if word.eq_ignore_ascii_case(b"STORE") {
                    store = Some(i + 1);
                    2
                } else {
                    1
                };
            }
            if let Some(i) = store.filter(|i| *i < cmd.len()) {
                push(i, Write);
            }
        }
        Keys::GeoRadius(options) => {
            cmd.arg(1)?;
            push(1, Read);
            // The last one counts, and a key may be called "store": options are walked.
            let (mut i, mut store) = (*options, None);
            while let Some(word) = cmd.arg(i) {
                i += if word.eq_ignore_ascii_case(b"STORE")
                    || word.eq_ignore_ascii_case(b"STOREDIST")
                {
                    store = Some(i + 1);
                    2
                } else if word.eq_ignore_ascii_case(b"COUNT") {
                    2
                } else {
                    1
                };
            }
            if let Some(i) = store.filter(|i| *i < cmd.len()) {
                push(i, Write);
            }
        }
        Keys::Streams => {
            // A group or a consumer may be called "streams", and GROUP need not come first: options are walked.
            let mut i = 1;
            loop {
                let word = cmd.arg(i)?;
                let is = |names: &[&[u8]]| names.iter().any(|n| word.eq_ignore_ascii_case(n));
                i += if is(&[b"STREAMS"]) {
                    break;
                } else if is(&[b"GROUP"]) {
                    3
                } else if is(&[b"COUNT", b"BLOCK", b"CLAIM"]) {
                    2
                } else {
                    1
                };
            }
            let n = (cmd.len() - i - 1) / 2;
            (i + 1..i + 1 + n).for_each(|i| push(i, Write));
        }
        Keys::Migrate => match cmd.arg(3)? {
            [] => {
                // A user or a password may be called "keys": options are walked.
                let mut i = 6;
                loop {
                    let word = cmd.arg(i)?;
                    i += if word.eq_ignore_ascii_case(b"KEYS") {
                        break;
                    } else if word.eq_ignore_ascii_case(b"AUTH2") {
                        3
                    } else if word.eq_ignore_ascii_case(b"AUTH") {
                        2
                    } else {
                        1
                    };
                }
                (i + 1..cmd.len()).for_each(|i| push(i, Write));
            }
            _ => push(3, Write),
        },
    }
    Some(())
}

/// Whether argument `i` of `count` may be a key, before the others are known.
pub fn may_be_key(keys: &Keys, i: usize, count: usize) -> bool {
    match keys {
        Keys::None => false,
        Keys::Runs(runs) => runs.iter().any(|(first, last, step, _)| {
            let last = match usize::try_from(*last) {
                Ok(last) => last,
                Err(_) => count.saturating_sub(last.unsigned_abs() as usize),
            };
            (*first..=last).contains(&i) && (i - first).is_multiple_of(*step)
        }),
        Keys::Counted { first, .. } => i >= *first,
        Keys::MsetEx => i >= 2 && i.is_multiple_of(2),
        Keys::Store | Keys::Sort | Keys::GeoRadius(_) | Keys::Streams | Keys::Migrate => true,
    }
}

/// The places of as many keys as the argument at `count` says.
fn counted(
    cmd: &Command<'_>,
    count: usize,
    first: usize,
    step: usize,
) -> Option<impl Iterator<Item = usize>> {
    let n = usize::try_from(cmd.number(count)?).ok()?;
    let last = first.checked_add(n.checked_mul(step)?)?;
    (last <= cmd.len()).then(|| (first..last).step_by(step))
}
