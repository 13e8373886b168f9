//! What a pump does when a cutover asks: drain to where the source stands, then hold still.

use crate::command::{self, Command, Kind};
use crate::error::Result;
use crate::migrate::control::Order;
use crate::migrate::pump::Pump;
use crate::migrate::sweep::Sweeper;
use crate::net::{self, server};
use crate::resp;
use crate::types::ReplOffset;
use std::time::{Duration, Instant};

/// How soon an order is noticed while a cutover is connected.
pub(super) const SOON: Duration = Duration::from_millis(2);

/// A drain that was asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Drain {
    number: u64,
    /// Where the source stood then.
    goal: ReplOffset,
    done: bool,
}

impl Pump {
    /// Does what is asked; true while nothing may be routed. `buf` holds what has arrived and is not routed.
    pub(super) fn obey(&mut self, buf: &[u8]) -> Result<bool> {
        match self.shared.control.order() {
            Order::Follow => {
                self.drain = None;
                Ok(false)
            }
            Order::Drain(number) => {
                if self.drain.is_none_or(|d| d.number != number) {
                    let goal = self.source_stands_at()?;
                    self.drain = Some(Drain {
                        number,
                        goal,
                        done: false,
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
                if self.has_lost() {
                    self.shared.control.lost();
                }
                self.shared.control.late(self.shard.shard.0, writes_in(buf));
                Ok(true)
            }
        }
    }

    /// Everything routed is answered, and no expiry is held back; false when something is still missing.
    fn finish_drain(&mut self) -> Result<bool> {
        self.heal_dirty()?;
        if self.window_end > self.at || self.has_lost() {
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

    fn source_stands_at(&mut self) -> Result<ReplOffset> {
        let Some(place) = self.source.clone() else {
            return Ok(self.spool.stream_end());
        };
        let runtime = self.shared.runtime.clone();
        runtime.block_on(async {
            let mut conn = net::connect(place.endpoint(), &place.address()).await?;
            server::replication_offset(&mut conn).await
        })
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
                control.late(self.pump.shard.shard.0, late);
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

/// How many commands that write lie in a piece of the stream.
fn writes_in(mut stream: &[u8]) -> u64 {
    let (mut writes, mut args) = (0, Vec::new());
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
            )
        });
        writes += u64::from(!harmless && !cmd.is_empty());
        stream = stream.get(len..).unwrap_or_default();
    }
    writes
}
