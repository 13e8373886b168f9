//! A snapshot that consists of files of the user's, read where they lie as if they were one; and where, in them, a
//! snapshot begins: each file has one, and several may be joined in a file.

use super::files::create;
use super::shared::Spool;
use super::state::Part;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::source::unpack;
use siphasher::sip::SipHasher13;
use std::fs::File;
use std::hash::{Hash, Hasher};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// The starts of snapshots that are joined in a file, as far as they were read.
const STARTS: &str = "joined";
/// More are not joined by anyone.
const MOST_STARTS: u64 = 1 << 12;

impl Spool {
    /// Takes files of the user's, one behind the other, for the snapshot; `commands`: what is behind it comes as the
    /// stream.
    pub fn use_files(&self, paths: &[PathBuf], commands: bool) -> Result<()> {
        let (mut parts, mut from) = (Vec::new(), 0u64);
        for path in paths {
            let meta = std::fs::metadata(path).context(ErrorKind::Disk, || {
                format!("open the snapshot {}", path.display())
            })?;
            let part = Part {
                path: path.clone(),
                from,
                len: meta.len(),
            };
            from = part.end();
            parts.push(part);
        }
        let mut state = self.state();
        state.snapshot.parts = parts;
        state.snapshot.commands = commands;
        state.snapshot.len = from;
        state.snapshot.complete = true;
        state.snapshot.durable = true;
        Ok(())
    }

    /// Unpacks the `n`th file beside the spool; what is there of an earlier run is whole, and is taken if it is of the
    /// same file.
    pub fn unpack(&self, n: usize, packed: &Path) -> Result<PathBuf> {
        let failed = || format!("unpack {}", packed.display());
        let meta = std::fs::metadata(packed).context(ErrorKind::Disk, failed)?;
        let mut hasher = SipHasher13::new();
        (packed, meta.len(), meta.modified().ok()).hash(&mut hasher);
        let names = format!("part-{n}-");
        let name = format!("{names}{:016x}.rdb", hasher.finish());
        let path = self.dir().join(&name);
        if path.exists() {
            return Ok(path);
        }
        self.remove_named(|other| other.starts_with(&names))?;
        let input = File::open(packed).context(ErrorKind::Disk, failed)?;
        let mut input = unpack::unpacked(Box::new(input)).map_err(|e| e.context(failed()))?;
        let half = path.with_extension("half");
        let mut out = create(&half, true)?;
        let mut buf = vec![0u8; 1 << 20];
        loop {
            let n = input.read(&mut buf).context(ErrorKind::Disk, failed)?;
            if n == 0 {
                break;
            }
            let piece = buf.get(..n).unwrap_or_default();
            out.write_all(piece).context(ErrorKind::Disk, failed)?;
        }
        out.sync_data().context(ErrorKind::Disk, failed)?;
        std::fs::rename(&half, &path).context(ErrorKind::Disk, failed)?;
        Ok(path)
    }

    /// Commands behind the snapshot's files come as the stream.
    pub fn has_commands(&self) -> bool {
        self.state().snapshot.commands
    }

    /// The file that byte `at` of the snapshot lies in, or the last one.
    pub fn part(&self, at: u64) -> Option<Part> {
        let state = self.state();
        let parts = &state.snapshot.parts;
        (parts.iter().rev().find(|p| p.from <= at)).cloned()
    }

    /// Where the file after the one that begins at `from` begins.
    pub fn part_after(&self, from: u64) -> Option<u64> {
        let state = self.state();
        (state.snapshot.parts.iter().map(|p| p.from)).find(|next| *next > from)
    }

    /// Forgets where snapshots are joined: it is read from the beginning.
    pub fn forget_joined(&self) -> Result<()> {
        remove(&self.dir().join(STARTS))
    }

    /// Remembers, also for the next run, that a snapshot begins at `start` in the middle of a file.
    pub fn note_joined(&self, start: u64) -> Result<()> {
        if self.snapshot_start(start)? == start {
            return Ok(());
        }
        let path = self.dir().join(STARTS);
        let failed = || format!("write {}", path.display());
        let mut file = create(&path, false)?;
        let len = file.metadata().context(ErrorKind::Disk, failed)?.len();
        if len / 8 >= MOST_STARTS {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("more than {MOST_STARTS} snapshots are joined in the files"),
            )
            .hint("name the snapshots as files of their own"));
        }
        file.write_all(&start.to_le_bytes())
            .context(ErrorKind::Disk, failed)?;
        file.sync_data().context(ErrorKind::Disk, failed)
    }

    /// Where the snapshot begins that byte `at` belongs to.
    pub fn snapshot_start(&self, at: u64) -> Result<u64> {
        let path = self.dir().join(STARTS);
        let starts = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(e) => {
                return Err(e).context(ErrorKind::Disk, || format!("read {}", path.display()));
            }
        };
        let joined = (starts.as_chunks::<8>().0.iter())
            .map(|start| u64::from_le_bytes(*start))
            .filter(|start| *start <= at)
            .max();
        let part = self.part(at).map_or(0, |part| part.from);
        Ok(joined.map_or(part, |joined| joined.max(part)))
    }

    /// Removes what was unpacked, and what was remembered of files.
    pub(super) fn remove_parts(&self) -> Result<()> {
        self.forget_joined()?;
        self.remove_named(|name| {
            name.starts_with("part-") && (name.ends_with(".rdb") || name.ends_with(".half"))
        })
    }

    fn remove_named(&self, is_one: impl Fn(&str) -> bool) -> Result<()> {
        for entry in std::fs::read_dir(self.dir())
            .into_iter()
            .flatten()
            .flatten()
        {
            if is_one(&entry.file_name().to_string_lossy()) {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).context(ErrorKind::Disk, || format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
