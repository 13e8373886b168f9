//! What a pump does when a cutover asks: drain to where the source stands, then hold still.

use crate::command::{self, Command, Kind};
use crate::error::{Error, ErrorKind, Result};
use crate::migrate::control::Order;
use crate::migrate::pump::Pump;
use crate::migrate::sweep::Sweeper;
use crate::net::{self, server};
use crate::resp;
use crate::types::ReplOffset;
use std::time::{Duration, Instant};

/// How soon an order is noticed while a cutover is connected.
pub(super) const SOON: Duration = Duration::from_millis(2);

/// How long the source may take to tell where it stands: whoever asks waits for it, with the writers.
const STANDS_LIMIT: Duration = Duration::from_secs(5);

/// A drain that was asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Drain {
    number: u64,
    /// Where the source stood then.
    goal: ReplOffset,
    done: bool,
    /// Where the source stood when the fence was put up.
    fence: Option<ReplOffset>,
    /// How much of what has come behind the fence was looked at, and how many commands in it write.
    looked: usize,
    late: u64,
}

impl Pump {
    /// Does what is asked; true while nothing may be routed. `buf` holds what has arrived, up to `to`, and is not routed.
    pub(super) fn obey(&mut self, buf: &[u8], to: ReplOffset) -> Result<bool> {
        match self.shared.control.order() {
            Order::Follow => {
                self.drain = None;
                Ok(false)
            }
            Order::Drain(number) => {
                if self.drain.is_none_or(|d| d.number != number) {
                    let Some(goal) = self.source_stands_at() else {
                        return Ok(false);
                    };
                    self.drain = Some(Drain {
                        number,
                        goal,
                        done: false,
                        fence: None,
                        looked: 0,
                        late: 0,
                    });
                }
                if let Some(drain) = &mut self.drain
                    && !drain.done
                    && self.at >= drain.goal
                {
                    drain.done = true;
                    if !self.finish_drain()? {
                        // Not yet: the next round tries again.
                        if let Some(drain) = &mut self.drain {
                            drain.done = false;
                        }
                    }
                }
                Ok(false)
            }
            Order::Fence => {
                self.hold_still(buf, to);
                Ok(true)
            }
        }
    }

    /// Behind the fence: what has come, up to where the source stood when it was put up, is looked at.
    fn hold_still(&mut self, buf: &[u8], to: ReplOffset) {
        if self.has_lost() {
            self.shared.control.lost();
        }
        let Some(drain) = self.drain else {
            // Nothing was drained, so nothing is in order.
            return self.shared.control.lost();
        };
        let Some(goal) = drain.fence.or_else(|| self.source_stands_at()) else {
            return;
        };
        // Nothing is taken out of the buffer meanwhile.
        let new = buf.get(drain.looked..).unwrap_or_default();
        let (writes, len) = writes_in(new, |key| self.timed.may(key));
        let drain = Drain {
            fence: Some(goal),
            looked: drain.looked + len,
            late: drain.late + writes,
            ..drain
        };
        self.drain = Some(drain);
        if to >= goal || buf.len() >= self.longest() {
            // So much more was not to come, whatever it is.
            let late = drain.late.max(u64::from(to < goal));
            self.shared.control.fenced(self.shard.shard.0, late);
        }
    }

    /// Everything routed is answered, and no expiry is held back; false when something is still missing.
    fn finish_drain(&mut self) -> Result<bool> {
        self.heal_queued()?;
        self.settle_all()?;
        self.finish_flush()?;
        let unsettled = self.shared.ownership.as_ref();
        if self.window_end > self.at
            || self.has_lost()
            || unsettled.is_some_and(|o| o.unsettled_ms().is_some())
        {
            return Ok(false);
        }
        self.release_held()?;
        self.pay_debts()?;
        self.settle_all()?;
        self.holding = false;
        self.save(false)?;
        self.shared.control.drained(self.shard.shard.0);
        Ok(true)
    }

    /// `None` when it cannot be asked at the moment; the next round asks again.
    fn source_stands_at(&mut self) -> Option<ReplOffset> {
        let Some(place) = self.source.clone() else {
            return Some(self.spool.stream_end());
        };
        let runtime = self.shared.runtime.clone();
        let asked = runtime.block_on(tokio::time::timeout(STANDS_LIMIT, async {
            let mut conn = net::connect(place.endpoint(), &place.address()).await?;
            server::settled_offset(&mut conn).await
        }));
        let late = |_| Error::new(ErrorKind::Connection, "the source does not answer");
        (asked.map_err(late).flatten())
            .inspect_err(|e| tracing::warn!("the source cannot be asked where it stands: {e}"))
            .ok()
    }
}

/// The same in mode "scan".
impl Sweeper<'_> {
    /// Does what a cutover asks for; true while nothing may be written.
    pub(super) fn obey(&mut self, due: &mut Instant) -> bool {
        let control = &self.pump.shared.control;
        match control.order() {
            Order::Follow => self.drain = None,
            Order::Drain(number) if self.drain.is_none_or(|(n, _, _)| n != number) => {
                self.drain = Some((number, Instant::now(), false));
                self.told_then = self.events.told();
                *due = Instant::now();
            }
            Order::Drain(_) => {}
            Order::Fence => {
                let late = self.events.told() - self.told_then;
                control.fenced(self.pump.shard.shard.0, late);
                return true;
            }
        }
        false
    }

    /// A sweep has ended: whether it is the one that a cutover waits for.
    pub(super) fn finish_drain(&mut self, alike: bool, began: Instant) {
        if let Some((_, since, done @ false)) = &mut self.drain
            && alike
            && began >= *since
        {
            *done = true;
            self.told_then = self.events.told();
            self.pump.shared.control.drained(self.pump.shard.shard.0);
        }
    }
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
        let harmless = harmless || cmd.is_empty() || removes_expired(&cmd, &may_expire);
        writes += u64::from(!harmless);
        stream = stream.get(len..).unwrap_or_default();
    }
    (writes, all - stream.len())
}

/// Whether a command may be what a master sends when a key has expired.
pub(super) fn removes_expired(cmd: &Command<'_>, may_expire: impl Fn(&[u8]) -> bool) -> bool {
    let name = cmd.name();
    (name.eq_ignore_ascii_case(b"DEL") || name.eq_ignore_ascii_case(b"UNLINK"))
        && cmd.len() == 2
        && cmd.arg(1).is_some_and(may_expire)
}
