//! An append-only file that has to be loaded again from its beginning, because a run ended inside its commands.

use crate::command::{self, Access, Command};
use crate::error::Result;
use crate::migrate::context::ShardContext;
use crate::migrate::stream::long_command::READ_BYTES;
use crate::migrate::write::door::{Admission, Door};
use crate::migrate::write::target_writer::TargetWriter;
use crate::migrate::write::wire::Wire;
use crate::resp;
use crate::source::spool::StreamTail;
use crate::types::{DbIndex, Mark};

/// Before a file is loaded again: removes every key that its commands have written.
pub(crate) fn forget_streamed<W: Wire>(
    ctx: &ShardContext,
    door: &mut Door,
    writer: &mut TargetWriter<W>,
    mark: Mark,
) -> Result<()> {
    let mut tail = StreamTail::new(ctx.spool.clone(), ctx.spool.stream_start());
    let (mut buf, mut args, mut keys) = (Vec::new(), Vec::new(), Vec::new());
    let mut selected = DbIndex::ZERO;
    while tail.read(&mut buf, READ_BYTES)? > 0 {
        let mut used = 0;
        while let Some(len) = resp::parse_command(buf.get(used..).unwrap_or_default(), &mut args)? {
            let raw = buf.get(used..used + len).unwrap_or_default();
            let cmd = Command { raw, args: &args };
            used += len;
            let Some(spec) = command::lookup(cmd.name()) else {
                continue;
            };
            if spec.keys(&cmd, &mut keys).is_err() {
                continue;
            }
            for key in keys.iter().filter(|k| k.access == Access::Write) {
                let key = cmd.arg(key.index).unwrap_or_default();
                if let Admission::Yes(pass) = door.admit(selected, key)? {
                    writer.remove(pass, key, mark)?;
                }
            }
            if cmd.name().eq_ignore_ascii_case(b"SELECT") {
                let db = cmd.arg(1).and_then(|n| std::str::from_utf8(n).ok());
                selected = DbIndex(db.and_then(|n| n.parse().ok()).unwrap_or(0));
            }
        }
        buf.drain(..used);
    }
    Ok(())
}
