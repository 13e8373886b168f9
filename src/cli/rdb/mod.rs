//! `keyferry rdb json|resp|summary`: a look into a snapshot file.

mod json;
mod members;
mod resp;
mod shared;
mod summary;

use self::shared::{options, to_stdout};
use super::output::print;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::rdb::file::Options;
use crate::source::{files, unpack};
use clap::{Args, Subcommand};
use std::io::{BufWriter, Read, StdoutLock, Write};
use std::path::{Path, PathBuf};

#[derive(Subcommand)]
pub enum RdbCommand {
    /// Print each key as a line of JSON, in the file's order
    Json {
        #[command(flatten)]
        files: Files,
    },
    /// Write commands that recreate the data, for `redis-cli --pipe`
    Resp {
        #[command(flatten)]
        files: Files,
    },
    /// Count keys, bytes and memory by type, encoding, database and prefix; name the largest keys and what each server version would take
    Summary {
        #[command(flatten)]
        files: Files,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

/// What is read, and how.
#[derive(Args)]
pub struct Files {
    /// The snapshot, also compressed (gzip, zstd, LZ4); several files, or a glob in quotes, are one data set; "-" is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Read on although a file's checksum is wrong
    #[arg(long)]
    ignore_checksum: bool,
    /// Refuse a snapshot whose RDB version is newer than all that are known (else: a warning)
    #[arg(long)]
    strict: bool,
}

impl Files {
    /// Reads one file after the other.
    fn each(&self, mut read: impl FnMut(Box<dyn Read>, Options) -> Result<()>) -> Result<()> {
        for file in files::expanded(&self.files)? {
            open(&file)
                .and_then(|(input, commands)| {
                    let options = Options {
                        commands,
                        ..options(self.ignore_checksum, self.strict)
                    };
                    read(input, options)
                })
                .map_err(|e| e.context(format!("read {}", file.display())))?;
        }
        Ok(())
    }
}

/// Writes every key of a snapshot as a line of JSON.
pub fn write_json(input: impl Read, out: &mut impl Write, ignore_checksum: bool) -> Result<()> {
    json::write_json(input, out, options(ignore_checksum, false))
}

/// Writes commands for every key of a snapshot.
pub fn write_resp(input: impl Read, out: &mut impl Write, ignore_checksum: bool) -> Result<()> {
    resp::write_resp(input, out, options(ignore_checksum, false), &mut 0)
}

pub fn run(command: RdbCommand) -> Result<u8> {
    match command {
        RdbCommand::Json { files } => {
            stream_out(|out| files.each(|input, options| json::write_json(input, out, options)))?;
        }
        RdbCommand::Resp { files } => {
            let mut selected = 0;
            stream_out(|out| {
                files.each(|input, options| resp::write_resp(input, out, options, &mut selected))
            })?;
        }
        RdbCommand::Summary { files, json } => {
            let mut summary = summary::Summary::default();
            files.each(|input, options| summary::read(&mut summary, input, options))?;
            print(&if json {
                summary.json().to_string()
            } else {
                summary.text()
            })?;
        }
    }
    Ok(0)
}

/// Runs `work` to standard output; what came before a break is written whatever broke.
fn stream_out(work: impl FnOnce(&mut BufWriter<StdoutLock<'static>>) -> Result<()>) -> Result<()> {
    let mut out = BufWriter::with_capacity(256 << 10, std::io::stdout().lock());
    let written = work(&mut out);
    let flushed = out.flush();
    match (written, flushed) {
        // The reader of a pipe has seen enough.
        (Err(e), _) if is_broken_pipe(&e) => Ok(()),
        (Err(e), _) => Err(e),
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

/// The file's bytes, unpacked; and whether commands behind a snapshot are passed over, as in an append-only file that
/// lies there as it was written.
fn open(path: &Path) -> Result<(Box<dyn Read>, bool)> {
    let is_stdin = path.as_os_str() == "-";
    let input: Box<dyn Read> = if is_stdin {
        Box::new(std::io::stdin().lock())
    } else {
        let file = std::fs::File::open(path)
            .context(ErrorKind::Disk, || format!("open {}", path.display()))?;
        Box::new(file)
    };
    let (input, packed) = unpack::unpacked_or_plain(input)?;
    Ok((input, !packed && !is_stdin))
}
