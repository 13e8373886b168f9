//! A drain that a cutover asks for: to where the source stands then; and the fence behind it, where what comes is only
//! counted.

use crate::command::{self, Command, Kind};
use crate::error::{Error, ErrorKind};
use crate::migrate::context::ShardContext;
use crate::net::{self, server};
use crate::resp;
use crate::source::place::Place;
use crate::types::ReplOffset;
use std::time::Duration;

/// How soon an order is noticed while a cutover is connected.
pub(crate) const ATTENDED_POLL: Duration = Duration::from_millis(2);
/// How long the source may take to tell where it stands: whoever asks waits for it, with the writers.
const STANDS_LIMIT: Duration = Duration::from_secs(5);

/// A drain that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Drain {
    number: u64,
    /// Where the source stood then.
    goal: ReplOffset,
    done: bool,
    /// Where the source stood when the fence was put up.
    fence: Option<ReplOffset>,
    /// How many bytes that have come behind the fence were looked at, and how many commands in them write.
    looked: usize,
    late: u64,
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
            late: 0,
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

    /// Where the source stood when the fence was put up, once that is known.
    pub fn fence(&self) -> Option<ReplOffset> {
        self.fence
    }

    /// Looks at what has come behind the fence: `buf` is not routed and reaches up to `to`. Returns how many commands of
    /// it write, once everything up to the fence, or `most` bytes, has been looked at.
    pub fn look(
        &mut self,
        fence: ReplOffset,
        buf: &[u8],
        to: ReplOffset,
        most: usize,
        may_expire: impl Fn(&[u8]) -> bool,
    ) -> Option<u64> {
        self.fence = Some(fence);
        // Nothing is taken out of the buffer meanwhile.
        let (writes, len) = writes_in(buf.get(self.looked..).unwrap_or_default(), may_expire);
        self.looked += len;
        self.late += writes;
        // So much more was not to come, whatever it is.
        (to >= fence || buf.len() >= most).then(|| self.late.max(u64::from(to < fence)))
    }
}

/// Where the source stands; `None` when it cannot be asked at the moment: the next round asks again.
pub(crate) fn source_stands_at(ctx: &ShardContext, place: &Place) -> Option<ReplOffset> {
    let asked = ctx
        .shared
        .runtime
        .block_on(tokio::time::timeout(STANDS_LIMIT, async {
            let mut conn = net::connect(place.endpoint(), &place.address()).await?;
            server::settled_offset(&mut conn).await
        }));
    let late = |_| Error::new(ErrorKind::Connection, "the source does not answer");
    (asked.map_err(late).flatten())
        .inspect_err(|e| tracing::warn!("the source cannot be asked where it stands: {e}"))
        .ok()
}

/// How many commands that write lie in a piece of the stream, and how long its whole commands are.
fn writes_in(mut stream: &[u8], may_expire: impl Fn(&[u8]) -> bool) -> (u64, usize) {
    let (mut writes, mut args, all) = (0, Vec::new(), stream.len());
    while let Ok(Some(len)) = resp::parse_command(stream, &mut args) {
        let cmd = Command {
            raw: stream,
            args: &args,
        };
        let harmless = (command::lookup(cmd.name())).is_some_and(|spec| {
            matches!(
                spec.kind,
                Kind::Ping
                    | Kind::Replconf
                    | Kind::Select
                    | Kind::Read
                    | Kind::Ignore
                    | Kind::Multi
                    | Kind::Exec
                    | Kind::Discard
                    | Kind::Publish
                    | Kind::TrimSlots
            )
        });
        let harmless = harmless || cmd.is_empty() || command::removes_expired(&cmd, &may_expire);
        writes += u64::from(!harmless);
        stream = stream.get(len..).unwrap_or_default();
    }
    (writes, all - stream.len())
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
        let fence = ReplOffset(200);
        assert_eq!(
            drain.look(fence, &buf, ReplOffset(190), 1 << 20, |_| true),
            None
        );
        assert_eq!(drain.looked, whole);
        buf.extend_from_slice(b"$1\r\nk\r\n");
        // A key that has expired is no write.
        assert_eq!(drain.look(fence, &buf, fence, 1 << 20, |_| true), Some(1));
        assert_eq!(drain.look(fence, &buf, fence, 1 << 20, |_| true), Some(1));
        // More than is held was not to come.
        let mut drain = Drain::begin(2, ReplOffset(100));
        assert_eq!(
            drain.look(fence, &buf, ReplOffset(190), 10, |_| false),
            Some(2)
        );
    }
}
