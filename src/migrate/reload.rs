//! An append-only file that has to be loaded again from its beginning, because a run ended inside its commands.

use crate::command::{self, Command};
use crate::error::Result;
use crate::migrate::admission::Admission;
use crate::migrate::pump::{Pump, READ_BYTES};
use crate::resp;
use crate::source::spool::StreamTail;
use crate::types::DbIndex;

impl Pump {
    /// Before a file is loaded again: removes every key that its commands have written.
    pub(super) fn forget_streamed(&mut self) -> Result<()> {
        let mut tail = StreamTail::new(self.spool.clone(), self.spool.stream_start());
        let (mut buf, mut args, mut keys) = (Vec::new(), Vec::new(), Vec::new());
        let mark = self.loading_mark();
        while tail.read(&mut buf, READ_BYTES)? > 0 {
            let mut used = 0;
            while let Some(len) =
                resp::parse_command(buf.get(used..).unwrap_or_default(), &mut args)?
            {
                let raw = buf.get(used..used + len).unwrap_or_default();
                let cmd = Command { raw, args: &args };
                used += len;
                let Some(spec) = command::lookup(cmd.name()) else {
                    continue;
                };
                if spec.keys(&cmd, &mut keys).is_err() {
                    continue;
                }
                for key in keys.iter().filter(|k| k.access == command::Access::Write) {
                    let key = cmd.arg(key.index).unwrap_or_default();
                    if let Admission::Yes(db) = self.admission(self.db, key)? {
                        self.remove(db, key, mark)?;
                    }
                }
                if cmd.name().eq_ignore_ascii_case(b"SELECT") {
                    let db = cmd.arg(1).and_then(|n| std::str::from_utf8(n).ok());
                    self.db = DbIndex(db.and_then(|n| n.parse().ok()).unwrap_or(0));
                }
            }
            buf.drain(..used);
        }
        self.db = DbIndex::ZERO;
        self.settle_all().map(drop)
    }
}
