//! A large value that no command puts together (of a module, an array) onto the target: RESTORE, piece by piece, over
//! a connection of its own, as what is on its way by the others is kept until it is answered.

use crate::error::{Context, Error, ErrorKind, Result};
use crate::migrate::context::ShardContext;
use crate::migrate::write::door::Pass;
use crate::migrate::write::{losses, module_way};
use crate::net::{self, REPLY_LIMIT};
use crate::plan::Endpoint;
use crate::rdb::file::LargeEntry;
use crate::rdb::large::Restore;
use crate::rdb::modules::ways::Way;
use crate::rdb::opcode::{Dialect, MODULE_2};
use crate::rdb::payload::{self, Fit};
use crate::resp::Reply;
use crate::types::ExpireAt;
use crate::types::address::split;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::time::Duration;
use tokio::runtime::Handle;

/// Bytes of a value, behind its type, in a file.
pub(crate) struct Carried {
    pub type_id: u8,
    pub dialect: Dialect,
    pub file: File,
    pub from: u64,
    pub len: u64,
}

/// How long an error is awaited of a server that has closed the connection.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A value that is to be written so, once nothing else is on its way.
pub(crate) struct Delivery {
    pub pass: Pass,
    pub key: Vec<u8>,
    pub value: Carried,
    pub expire: Option<ExpireAt>,
}

fn failed() -> String {
    "keep a large value in a file".to_owned()
}

/// Takes a value of a snapshot to a file, as the length comes first in RESTORE.
pub(crate) fn spill<R: Read>(ctx: &ShardContext, large: LargeEntry<'_, R>) -> Result<Carried> {
    let (type_id, dialect) = (large.header().type_id, large.dialect());
    let mut file = tempfile::tempfile_in(ctx.spool.dir()).context(ErrorKind::Disk, failed)?;
    let len = large.copy(&mut file)?;
    Ok(Carried {
        type_id,
        dialect,
        file,
        from: 0,
        len,
    })
}

/// The bytes of a module's value that only commands bring, where it can be held.
pub(crate) fn for_commands(
    ctx: &ShardContext,
    format: &payload::Target,
    value: &mut Carried,
) -> Result<Option<Vec<u8>>> {
    let most = ctx.job().limits.element() as u64;
    if value.type_id != MODULE_2 || value.len > most {
        return Ok(None);
    }
    if module_way::way(ctx, format, &beginning(value, 16)?) != Way::Commands {
        return Ok(None);
    }
    beginning(value, value.len).map(Some)
}

/// The first bytes of a value, or all of them.
fn beginning(value: &mut Carried, len: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let (from, file) = (value.from, &mut value.file);
    file.seek(SeekFrom::Start(from))
        .and_then(|_| file.take(len).read_to_end(&mut bytes))
        .context(ErrorKind::Disk, failed)?;
    Ok(bytes)
}

/// Whether the target can hold a value at all; false when it is a listed loss.
pub(crate) fn is_held(
    ctx: &ShardContext,
    format: &payload::Target,
    pass: Pass,
    key: &[u8],
    value: &mut Carried,
) -> Result<bool> {
    match payload::fit_of(value.type_id, value.dialect, false, &|| false, format) {
        Fit::Impossible(why) => {
            ctx.lose(pass.db(), key, losses::TYPE, why)?;
            return Ok(false);
        }
        Fit::Module => {
            let head = beginning(value, 16)?;
            match module_way::way(ctx, format, &head) {
                Way::Restore => {}
                Way::Commands => {
                    ctx.lose(pass.db(), key, losses::MODULE, module_way::TOO_LARGE)?;
                    return Ok(false);
                }
                Way::Lost(why) => {
                    ctx.lose(pass.db(), key, losses::MODULE, &why)?;
                    return Ok(false);
                }
            }
            if module_way::is_series(&head) && !ctx.job().renames.is_empty() {
                ctx.note("series_rules", module_way::RULES_OF_RENAMED);
            }
        }
        Fit::AsIs | Fit::Transcode | Fit::Rebuild if ctx.facts().modules.no_restore => {
            ctx.lose(pass.db(), key, losses::TYPE, losses::ONLY_BY_RESTORE)?;
            return Ok(false);
        }
        Fit::AsIs | Fit::Transcode | Fit::Rebuild => {}
    }
    Ok(true)
}

/// Writes such a value to a node and waits for the answer; nothing else may be on its way to the key. `footer` is the
/// RDB version that the target takes.
pub(crate) fn deliver(
    endpoint: &Endpoint,
    address: &str,
    runtime: &Handle,
    delivery: &mut Delivery,
    footer: u16,
) -> Result<()> {
    let Delivery {
        pass,
        key,
        value,
        expire,
    } = delivery;
    let mut address = address.to_owned();
    let db = pass.db();
    let mut asking = false;
    loop {
        (value.file.seek(SeekFrom::Start(value.from))).context(ErrorKind::Disk, failed)?;
        let mut restore = Restore::new(key, *expire, value.type_id, &value.file, value.len, footer);
        let reply = runtime.block_on(async {
            let mut conn = net::connect(endpoint, &address).await?;
            conn.select(db).await?;
            // In the middle of a command nobody logs in anew.
            conn.stays_as_it_is();
            if asking {
                conn.call(&[b"ASKING"]).await?;
            }
            while restore.piece(conn.outgoing())? {
                let sent = tokio::time::timeout(REPLY_LIMIT, conn.flush()).await;
                let cut = match sent {
                    Ok(Ok(())) => continue,
                    Ok(Err(e)) => e,
                    Err(_) => Error::new(ErrorKind::Connection, format!("{address} takes nothing")),
                };
                // It may say why before it closes.
                let said = tokio::time::timeout(LAST_WORDS, conn.reply()).await;
                return said.unwrap_or(Err(cut));
            }
            conn.reply().await
        })?;
        match reply {
            // The slot is on its way to another node, and the key is not there yet.
            Reply::Error(text) if text.starts_with("ASK ") && !asking => {
                address = net::leads_to(&text, split(&address).0);
                asking = true;
            }
            Reply::Error(text) if text.contains("bulk length") => {
                return Err(net::refusal("RESTORE", &text).hint(
                    "raise the target's proto-max-bulk-len over the size of the value, or leave the key out with filter.exclude",
                ));
            }
            Reply::Error(text) => return Err(net::refusal("RESTORE", &text)),
            _ => return Ok(()),
        }
    }
}
