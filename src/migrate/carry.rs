//! A large value that no command puts together (of a module, an array) onto the target: RESTORE, piece by piece, over
//! a connection of its own, as what is on its way by the others is kept until it is answered.

use crate::error::{Context, Error, ErrorKind, Result};
use crate::migrate::losses;
use crate::migrate::pump::Pump;
use crate::net::{self, REPLY_LIMIT};
use crate::rdb::file::LargeEntry;
use crate::rdb::large::Restore;
use crate::rdb::opcode::Dialect;
use crate::rdb::payload::{self, Fit};
use crate::resp::Reply;
use crate::target::Database;
use crate::types::{ExpireAt, Slot, shown};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::time::Duration;

/// Bytes of a value, behind its type, in a file.
pub(super) struct Carried {
    pub type_id: u8,
    pub dialect: Dialect,
    pub file: File,
    pub from: u64,
    pub len: u64,
}

/// How long an error is awaited of a server that has closed the connection.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What has become of one.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    Done,
    /// A listed loss.
    Lost,
    /// The snapshot is to be read again from its mark.
    Again,
}

fn failed() -> String {
    "keep a large value in a file".to_owned()
}

impl Pump {
    /// Takes a value of a snapshot to a file, as the length comes first in RESTORE.
    pub(super) fn spill<R: Read>(&self, large: LargeEntry<'_, R>) -> Result<Carried> {
        let (type_id, dialect) = (large.header().type_id, large.dialect());
        let mut file = tempfile::tempfile_in(self.spool.dir()).context(ErrorKind::Disk, failed)?;
        let len = large.copy(&mut file)?;
        Ok(Carried {
            type_id,
            dialect,
            file,
            from: 0,
            len,
        })
    }

    /// Writes such a value and waits for the answer.
    pub(super) fn carry(
        &mut self,
        db: Database,
        key: &[u8],
        mut value: Carried,
        expire: Option<ExpireAt>,
    ) -> Result<Delivery> {
        match payload::fit_of(value.type_id, value.dialect, false, &|| false, &self.format) {
            Fit::Impossible(why) => {
                return self
                    .lose(db.index(), key, losses::TYPE, why)
                    .map(|()| Delivery::Lost);
            }
            Fit::Module => {
                let mut head = Vec::new();
                let file = &mut value.file;
                file.seek(SeekFrom::Start(value.from))
                    .and_then(|_| file.take(16).read_to_end(&mut head))
                    .context(ErrorKind::Disk, failed)?;
                if let Some(why) = self.lacks_module(&head) {
                    return self
                        .lose(db.index(), key, losses::MODULE, &why)
                        .map(|()| Delivery::Lost);
                }
            }
            Fit::AsIs | Fit::Transcode | Fit::Rebuild => {}
        }
        if self.shared.dry_run {
            return Ok(Delivery::Done);
        }
        // What was sent before may be on the same key.
        if self.settle_all()? {
            return Ok(Delivery::Again);
        }
        self.asked("writing a large value", |me| {
            me.restore(db, key, &mut value, expire)
        })
        .map_err(|e| e.context(format!("write the key {} to the target", shown(key))))?;
        Ok(Delivery::Done)
    }

    fn restore(
        &mut self,
        db: Database,
        key: &[u8],
        value: &mut Carried,
        expire: Option<ExpireAt>,
    ) -> Result<()> {
        let endpoint = self.pipe.endpoint().clone();
        let mut address = (self.pipe)
            .address(self.pipe.node_of(Slot::of(key)))
            .to_owned();
        let footer = payload::footer_version(&self.format);
        let runtime = self.shared.runtime.clone();
        let mut asking = false;
        loop {
            (value.file.seek(SeekFrom::Start(value.from))).context(ErrorKind::Disk, failed)?;
            let mut restore =
                Restore::new(key, expire, value.type_id, &value.file, value.len, footer);
            let reply = runtime.block_on(async {
                let mut conn = net::connect(&endpoint, &address).await?;
                conn.select(db.index()).await?;
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
                        Err(_) => {
                            Error::new(ErrorKind::Connection, format!("{address} takes nothing"))
                        }
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
                    address = net::leads_to(&text, &endpoint.host);
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
}
