//! `keyferry rdb json|resp|summary`: a look into a snapshot file.

mod json;
mod members;
mod resp;
mod shared;
mod summary;

pub use json::write_json;
pub use resp::write_resp;

use self::shared::{options, to_stdout};
use super::output::print;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::source::gzip;
use clap::Subcommand;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

#[derive(Subcommand)]
pub enum RdbCommand {
    /// Print each key as a line of JSON, in the file's order
    Json {
        /// The snapshot, also gzipped; "-" is standard input
        file: PathBuf,
        /// Read on although the file's checksum is wrong
        #[arg(long)]
        ignore_checksum: bool,
    },
    /// Write commands that recreate the data, for `redis-cli --pipe`
    Resp {
        /// The snapshot, also gzipped; "-" is standard input
        file: PathBuf,
        /// Read on although the file's checksum is wrong
        #[arg(long)]
        ignore_checksum: bool,
    },
    /// Count keys, bytes and memory by type, encoding, database and prefix; name the largest keys and what each server version would take
    Summary {
        /// The snapshot, also gzipped; "-" is standard input
        file: PathBuf,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
        /// Read on although the file's checksum is wrong
        #[arg(long)]
        ignore_checksum: bool,
    },
}

pub fn run(command: RdbCommand) -> Result<u8> {
    match command {
        RdbCommand::Json {
            file,
            ignore_checksum,
        } => stream_out(&file, |input, out| write_json(input, out, ignore_checksum))?,
        RdbCommand::Resp {
            file,
            ignore_checksum,
        } => stream_out(&file, |input, out| write_resp(input, out, ignore_checksum))?,
        RdbCommand::Summary {
            file,
            json,
            ignore_checksum,
        } => {
            let summary = summary::read(open(&file)?, options(ignore_checksum))
                .map_err(|e| e.context(format!("read {}", file.display())))?;
            print(&if json {
                summary.json().to_string()
            } else {
                summary.text()
            })?;
        }
    }
    Ok(0)
}

/// Runs `work` from the file to standard output; what came before a break is written whatever broke.
fn stream_out(
    file: &Path,
    work: impl FnOnce(Box<dyn Read>, &mut BufWriter<std::io::StdoutLock<'static>>) -> Result<()>,
) -> Result<()> {
    let mut out = BufWriter::with_capacity(256 << 10, std::io::stdout().lock());
    let written = work(open(file)?, &mut out);
    let flushed = out.flush();
    match (written, flushed) {
        // The reader of a pipe has seen enough.
        (Err(e), _) if is_broken_pipe(&e) => Ok(()),
        (Err(e), _) => Err(e.context(format!("read {}", file.display()))),
        (Ok(()), Err(e)) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(e).context(ErrorKind::Disk, to_stdout)
        }
        _ => Ok(()),
    }
}

fn is_broken_pipe(e: &Error) -> bool {
    let cause = std::error::Error::source(e).and_then(|c| c.downcast_ref::<std::io::Error>());
    cause.is_some_and(|c| c.kind() == std::io::ErrorKind::BrokenPipe)
}

fn open(path: &Path) -> Result<Box<dyn Read>> {
    let input: Box<dyn Read> = if path.as_os_str() == "-" {
        Box::new(std::io::stdin().lock())
    } else {
        let file = std::fs::File::open(path)
            .context(ErrorKind::Disk, || format!("open {}", path.display()))?;
        Box::new(file)
    };
    gzip::unpacked(input).context(ErrorKind::Disk, || format!("read {}", path.display()))
}
