//! A drain that a cutover asks for: to where the source stands then; and the fence behind it, where what comes is only
//! counted.

use crate::command::{self, Access, Command, Kind};
use crate::error::{Error, ErrorKind, Result};
use crate::migrate::context::ShardContext;
use crate::migrate::control::orders::LATE_KEYS;
use crate::net::{self, Control, server};
use crate::resp;
use crate::source::place::Place;
use crate::types::{DbIndex, ReplOffset};
use std::time::{Duration, Instant};

/// How soon an order is noticed while a cutover is connected.
pub(crate) const ATTENDED_POLL: Duration = Duration::from_millis(2);
/// How long the source may take to tell where it stands: whoever asks waits for it, with the writers.
const STANDS_LIMIT: Duration = Duration::from_secs(5);

/// How often a connection is opened ahead of time, when that fails.
const PREPARE_EVERY: Duration = Duration::from_secs(10);

/// A drain that was asked for, and what came behind the fence after it.
#[derive(Debug)]
pub(crate) struct Drain {
    number: u64,
    /// Where the source stood then.
    goal: ReplOffset,
    done: bool,
    /// The last fence that was asked for: its number, and where the source stood then.
    fence: Option<(u64, ReplOffset)>,
    /// How many bytes that have come behind the fence were looked at.
    looked: usize,
    behind: Behind,
}

/// What was written behind the fence.
#[derive(Debug)]
struct Behind {
    /// The source's database at the end of what was looked at.
    db: DbIndex,
    /// Commands that write.
    late: u64,
    /// The first keys of theirs.
    keys: Vec<(DbIndex, Vec<u8>)>,
}

impl Drain {
    /// The drain of this number, to where the source stands.
    pub fn begin(number: u64, goal: ReplOffset) -> Drain {
        Drain {
            number,
            goal,
            done: false,
            fence: None,
            looked: 0,
            behind: Behind {
                db: DbIndex::ZERO,
                late: 0,
                keys: Vec::new(),
            },
        }
    }

    pub fn is_number(&self, number: u64) -> bool {
        self.number == number
    }

    /// Whether everything up to the goal is routed, and the rest is still to be done.
    pub fn is_reached(&self, at: ReplOffset) -> bool {
        !self.done && at >= self.goal
    }

    pub fn done(&mut self) {
        self.done = true;
    }

    /// Where the source stood when the fence of this number was put up, once that is known.
    pub fn fence(&self, number: u64) -> Option<ReplOffset> {
        let (_, at) = self.fence.filter(|(n, _)| *n == number)?;
        Some(at)
    }

    /// Whether a fence was put up before: the clients may be on their way.
    pub fn is_fenced(&self) -> bool {
        self.fence.is_some()
    }

    /// Notes where the source stands for the fence of this number; `db` is the stream's database where routing has ended.
    pub fn put_fence(&mut self, number: u64, at: ReplOffset, db: DbIndex) {
        if self.fence.is_none() {
            self.behind.db = db;
        }
        self.fence = Some((number, at));
    }

    /// Looks at what has come behind the fence: `buf` is not routed and reaches up to `to`. Returns whether everything
    /// up to the fence, or `most` bytes, has been looked at.
    pub fn look(
        &mut self,
        buf: &[u8],
        to: ReplOffset,
        most: usize,
        may_expire: impl Fn(&[u8]) -> bool,
    ) -> bool {
        let Some((_, fence)) = self.fence else {
            return false;
        };
        // Nothing is taken out of the buffer meanwhile.
        let unseen = buf.get(self.looked..).unwrap_or_default();
        self.looked += self.behind.look(unseen, may_expire);
        if to < fence && buf.len() < most {
            return false;
        }
        if to < fence {
            // So much more was not to come, whatever it is.
            self.behind.late = self.behind.late.max(1);
        }
        true
    }

    /// How many commands that write have come behind the fence, and the first keys that they name.
    pub fn late(&self) -> (u64, &[(DbIndex, Vec<u8>)]) {
        (self.behind.late, &self.behind.keys)
    }
}

impl Behind {
    /// Looks at a piece of the stream; returns how long its whole commands are.
    fn look(&mut self, mut stream: &[u8], may_expire: impl Fn(&[u8]) -> bool) -> usize {
        let (mut args, all) = (Vec::new(), stream.len());
        while let Ok(Some(len)) = resp::parse_command(stream, &mut args) {
            let raw = stream.get(..len).unwrap_or_default();
            let cmd = Command { raw, args: &args };
            if !self.is_harmless(&cmd, &may_expire) {
                self.late += 1;
                self.name_keys(&cmd);
            }
            stream = stream.get(len..).unwrap_or_default();
        }
        all - stream.len()
    }

    fn is_harmless(&mut self, cmd: &Command<'_>, may_expire: impl Fn(&[u8]) -> bool) -> bool {
        let kind = command::lookup(cmd.name()).map(|spec| spec.kind);
        if kind == Some(Kind::Select) {
            let db = cmd.number(1).and_then(|n| u32::try_from(n).ok());
            self.db = db.map_or(self.db, DbIndex);
        }
        let known = kind.is_some_and(|k| k.changes_nothing() || k == Kind::TrimSlots);
        known || cmd.is_empty() || command::removes_expired(cmd, may_expire)
    }

    fn name_keys(&mut self, cmd: &Command<'_>) {
        for (key, access) in command::keys_in(cmd.raw) {
            let named = (self.db, key);
            if access != Access::Read && self.keys.len() < LATE_KEYS && !self.keys.contains(&named)
            {
                self.keys.push(named);
            }
        }
    }
}

/// Asks the source where it stands, over a connection that is kept for it: writers wait for the answer.
#[derive(Default)]
pub(crate) struct Standing {
    conn: Option<Control>,
    /// When it was opened ahead of time, or that was tried.
    prepared: Option<Instant>,
}

impl Standing {
    /// Opens the connection ahead of time.
    pub fn prepare(&mut self, ctx: &ShardContext, place: &Place) {
        let tried = self.prepared.is_some_and(|at| at.elapsed() < PREPARE_EVERY);
        if self.conn.is_none() && !tried {
            self.prepared = Some(Instant::now());
            self.conn = (ctx.shared.runtime)
                .block_on(tokio::time::timeout(STANDS_LIMIT, connect(place)))
                .map_or(None, Result::ok);
        }
    }

    /// Where the source stands; `None` when it cannot be asked at the moment: the next round asks again.
    ///
    /// `anew`: whoever answers at the source's address now is asked, as another server may have taken its place.
    pub fn ask(&mut self, ctx: &ShardContext, place: &Place, anew: bool) -> Option<ReplOffset> {
        let kept = self.conn.take().filter(|_| !anew);
        let asked = async {
            if let Some(mut conn) = kept
                && let Ok(at) = server::settled_offset(&mut conn).await
            {
                return Ok((at, conn));
            }
            let mut conn = connect(place).await?;
            Ok::<_, Error>((server::settled_offset(&mut conn).await?, conn))
        };
        let runtime = &ctx.shared.runtime;
        let asked = runtime.block_on(async { tokio::time::timeout(STANDS_LIMIT, asked).await });
        let late = |_| Error::new(ErrorKind::Connection, "the source does not answer");
        match asked.map_err(late).flatten() {
            Ok((at, conn)) => {
                self.conn = Some(conn);
                Some(at)
            }
            Err(e) => {
                tracing::warn!("the source cannot be asked where it stands: {e}");
                None
            }
        }
    }
}

async fn connect(place: &Place) -> Result<Control> {
    net::control(place.endpoint(), &place.address()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behind_the_fence_commands_that_write_are_counted_once() {
        let mut drain = Drain::begin(1, ReplOffset(100));
        assert!(!drain.is_reached(ReplOffset(99)) && drain.is_reached(ReplOffset(100)));
        drain.done();
        assert!(!drain.is_reached(ReplOffset(100)));
        let mut buf = Vec::new();
        resp::command(&mut buf, &[b"PING"]);
        resp::command(&mut buf, &[b"SET", b"k", b"v"]);
        let whole = buf.len();
        // Half a command is not looked at yet.
        buf.extend_from_slice(b"*2\r\n$3\r\nDEL\r\n");
        let (fence, at) = (ReplOffset(200), ReplOffset(190));
        assert!(
            !drain.look(&buf, at, 1 << 20, |_| true),
            "no fence was asked for"
        );
        drain.put_fence(1, fence, DbIndex(3));
        assert_eq!((drain.fence(1), drain.fence(2)), (Some(fence), None));
        assert!(!drain.look(&buf, at, 1 << 20, |_| true));
        assert_eq!(drain.looked, whole);
        buf.extend_from_slice(b"$1\r\nk\r\n");
        // A key that has expired is no write.
        for _ in 0..2 {
            assert!(drain.look(&buf, fence, 1 << 20, |_| true));
            assert_eq!(drain.late(), (1, &[(DbIndex(3), b"k".to_vec())][..]));
        }
        // A second fence is a new barrier, and what comes before it counts with the rest.
        drain.put_fence(2, ReplOffset(300), DbIndex(0));
        assert!(!drain.look(&buf, fence, 1 << 20, |_| true));
        resp::command(&mut buf, &[b"SELECT", b"7"]);
        resp::command(&mut buf, &[b"MSET", b"a", b"1", b"b", b"2"]);
        assert!(drain.look(&buf, ReplOffset(300), 1 << 20, |_| true));
        let (late, keys) = drain.late();
        let named = |db, key: &[u8]| (DbIndex(db), key.to_vec());
        assert_eq!(late, 2);
        assert_eq!(keys, [named(3, b"k"), named(7, b"a"), named(7, b"b")]);
        // More than is held was not to come.
        let mut drain = Drain::begin(2, ReplOffset(100));
        drain.put_fence(1, fence, DbIndex(0));
        assert!(drain.look(&buf[..40], at, 10, |_| false));
        assert!(drain.late().0 > 0);
    }
}
