//! What a cutover asks of mode "scan": to bring everything over, and to look what is written behind the fence.

use crate::error::Result;
use crate::migrate::control::orders::{LATE_KEYS, Order};
use crate::migrate::scan::sweep::{Drain, Sweeper};
use crate::migrate::scan::told::Drained;
use crate::source::keys::events::Name;
use crate::source::keys::hearing::{self, Looks};
use std::time::Instant;

impl Sweeper<'_> {
    /// Does what a cutover asks for; true while nothing may be written.
    pub(super) fn obey(&mut self) -> Result<bool> {
        match self.ctx.shared.control.order() {
            Order::Follow => self.drain = None,
            Order::Drain(number) if self.drain.is_none_or(|d| d.number != number) => {
                // Whoever has taken the source's place is to be asked and read.
                self.hearing.ask_anew();
                self.source.reset();
                self.ahead.reset();
                self.drain = Some(Drain {
                    number,
                    since: Instant::now(),
                    sweeps: self.sweeps,
                    done: false,
                });
            }
            Order::Drain(_) => {}
            Order::Fence(number) => {
                if self.changes.fenced != number {
                    self.look_behind(number)?;
                }
                return Ok(true);
            }
        }
        self.changes.fenced = 0;
        Ok(false)
    }

    /// Whether a cutover waits for what no sweep has to find.
    pub(super) fn is_needless(&self) -> bool {
        let Order::Drain(number) = self.ctx.shared.control.order() else {
            return false;
        };
        let done = self.drain.is_some_and(|d| d.number == number && d.done);
        !done && self.stands()
    }

    /// Looks at all that was written up to now behind the fence of this number.
    fn look_behind(&mut self, number: u64) -> Result<()> {
        let control = self.ctx.shared.control.clone();
        if self.changes.fenced == 0 {
            self.settle()?;
        }
        if self.core.marks().has_lost() {
            control.lost();
        }
        let done = self.drain.is_some_and(|d| d.done);
        let Some(drained) = self.changes.drained.take().filter(|_| done) else {
            // Nothing was drained, so nothing is in order.
            control.lost();
            return Ok(());
        };
        let found = self.late(&drained);
        self.changes.drained = Some(drained);
        if let Some((late, names)) = found? {
            self.changes.fenced = number;
            control.fenced(self.ctx.id.0, number, late, &names);
        }
        Ok(())
    }

    /// How many keys were written since all was drained and are not at the target, with names as far as they are known;
    /// `None` when that has to be asked again.
    fn late(&mut self, drained: &Drained) -> Result<Option<(u64, Vec<Name>)>> {
        self.hearing.ask_anew();
        if let Some(ground) = &drained.ground {
            // Each fence is seen from where everything was drained.
            match self.hearing.advance(&mut ground.clone()) {
                Ok(called) => {
                    let (mut late, mut names) = self.waiting(called.writes > 0);
                    if called.functions {
                        late += 1;
                    }
                    if called.groups {
                        for name in self.groups_apart()? {
                            if !names.contains(&name) {
                                late += 1;
                                names.push(name);
                            }
                        }
                    }
                    return Ok(Some((late, names)));
                }
                Err(why) => {
                    tracing::warn!("what is written behind the fence is only counted: {why}")
                }
            }
        }
        let looks = match self.hearing.looks() {
            Ok(looks) => looks,
            Err(why) => {
                tracing::warn!("{why}");
                return Ok(None);
            }
        };
        let writes = drained
            .looks
            .as_ref()
            .and_then(|before: &Looks| hearing::writes_between(before, &looks));
        if writes.is_none() {
            self.ctx.shared.control.blind();
            self.ctx.shared.event(
                "warning",
                "scan_fence",
                "the source does not tell whether anybody writes to it (INFO commandstats, INFO persistence): what is written to it behind the fence cannot be noticed",
            );
        }
        // What only expires is nobody's write.
        let (told, names) = self.waiting(writes.is_some_and(|n| n > 0));
        Ok(Some((writes.unwrap_or(0).max(told), names)))
    }

    /// Keys that were told and are not written; those that have expired count where somebody has written at all.
    fn waiting(&self, others: bool) -> (u64, Vec<Name>) {
        let job = &self.ctx.shared.job;
        let waiting = self.hearing.events.waiting(LATE_KEYS, |(db, key)| {
            let to = job.databases.map(*db);
            to.is_some_and(|to| job.filter.accepts(key) && !self.is_own(to, key))
        });
        let late = waiting.written + if others { waiting.others } else { 0 };
        let mut names = waiting.names;
        names.truncate(usize::try_from(late).unwrap_or(usize::MAX));
        (late, names)
    }
}
