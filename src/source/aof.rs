//! Append-only files as a source: an RDB preamble, or a folder with a manifest, then commands (aof.c).
//!
//! The commands become a stream in the spool, from offset 0; what a crash left unfinished at the end is left out.

use crate::error::{Context, Error, ErrorKind, Result};
use crate::rdb::file::{Item, Options, Snapshot};
use crate::resp;
use crate::source::spool::SpoolWriter;
use crate::source::unpack;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

const CHUNK: usize = 1 << 20;

/// What a file source consists of.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Parts {
    /// The file that holds (or begins with) a snapshot.
    pub snapshot: Option<PathBuf>,
    /// It is compressed.
    pub packed: bool,
    /// Files of commands in order, each from a position on.
    pub commands: Vec<(PathBuf, u64)>,
}

/// Looks at what `path` names: an RDB file, packed or not, an append-only file, its folder, or its manifest.
pub fn parts(path: &Path) -> Result<Parts> {
    let failed = || format!("open the snapshot {}", path.display());
    let meta = std::fs::metadata(path).context(ErrorKind::Disk, failed)?;
    if meta.is_dir() {
        return folder(path);
    }
    if path.extension().is_some_and(|e| e == "manifest") {
        return manifest(path);
    }
    single(path)
}

fn single(path: &Path) -> Result<Parts> {
    let mut start = Vec::with_capacity(16);
    File::open(path)
        .and_then(|f| f.take(16).read_to_end(&mut start))
        .context(ErrorKind::Disk, || {
            format!("open the snapshot {}", path.display())
        })?;
    if unpack::is_packed(&start) {
        return Ok(Parts {
            snapshot: Some(path.to_owned()),
            packed: true,
            commands: Vec::new(),
        });
    }
    if start.starts_with(b"REDIS") || start.starts_with(b"VALKEY") {
        let mut parts = Parts {
            snapshot: Some(path.to_owned()),
            ..Parts::default()
        };
        if let Some(end) = preamble(path)? {
            parts.commands.push((path.to_owned(), end));
        }
        return Ok(parts);
    }
    if start.starts_with(b"*") || start.starts_with(b"#") || start.is_empty() {
        return Ok(Parts {
            commands: vec![(path.to_owned(), 0)],
            ..Parts::default()
        });
    }
    Err(Error::new(
        ErrorKind::Corrupt,
        format!("{} is neither an RDB file nor an append-only file", path.display()),
    )
    .hint("name a file written by SAVE, BGSAVE or BGREWRITEAOF (also compressed), or the folder of a multi-part append-only file"))
}

/// Where the commands begin in a file that says of itself that commands follow its snapshot.
fn preamble(path: &Path) -> Result<Option<u64>> {
    let file = File::open(path).context(ErrorKind::Disk, || {
        format!("open the snapshot {}", path.display())
    })?;
    let mut snapshot = Snapshot::open(file, Options::default())?;
    let mut says_so = false;
    loop {
        match snapshot.next()? {
            Item::Aux { name, value } => {
                says_so |= (name == b"aof-preamble" || name == b"aof-base") && value == b"1";
            }
            Item::End => break,
            // These fields come before the first key.
            _ if !says_so => return Ok(None),
            _ => {}
        }
    }
    let end = snapshot.position();
    let len = std::fs::metadata(path).map_or(0, |m| m.len());
    Ok((says_so && len > end).then_some(end))
}

/// The folder `appendonlydir` of a server: it holds one manifest.
fn folder(dir: &Path) -> Result<Parts> {
    let entries =
        std::fs::read_dir(dir).context(ErrorKind::Disk, || format!("list {}", dir.display()))?;
    let mut manifests: Vec<PathBuf> = entries
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(|p| p.extension().is_some_and(|e| e == "manifest"))
        .collect();
    match (manifests.pop(), manifests.is_empty()) {
        (Some(one), true) => manifest(&one),
        (None, _) => Err(Error::new(
            ErrorKind::Corrupt,
            format!("the folder {} holds no .manifest file", dir.display()),
        )
        .hint("name the folder that the server's appenddirname says, or a single file")),
        _ => Err(Error::new(
            ErrorKind::Corrupt,
            format!(
                "the folder {} holds more than one .manifest file",
                dir.display()
            ),
        )
        .hint("name the one manifest that is meant")),
    }
}

/// `file NAME seq N type b|h|i` for each part (aof.c aofLoadManifestFromFile).
fn manifest(path: &Path) -> Result<Parts> {
    let text = std::fs::read_to_string(path)
        .context(ErrorKind::Disk, || format!("read {}", path.display()))?;
    let dir = path.parent().unwrap_or(Path::new("."));
    let (mut base, mut increments) = (None, Vec::new());
    for (n, line) in text.lines().enumerate() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if words.is_empty() || line.starts_with('#') {
            continue;
        }
        let value = |key: &str| {
            words
                .chunks_exact(2)
                .find(|pair| pair.first() == Some(&key))
                .and_then(|pair| pair.get(1).copied())
        };
        let bad = || {
            Error::new(
                ErrorKind::Corrupt,
                format!(
                    "line {} of {} is not \"file NAME seq N type T\"",
                    n + 1,
                    path.display()
                ),
            )
        };
        let name = value("file").ok_or_else(bad)?.trim_matches('"');
        if name.contains('/') {
            return Err(bad());
        }
        let seq: u64 = value("seq").and_then(|s| s.parse().ok()).ok_or_else(bad)?;
        match value("type") {
            Some("b") => base = Some(dir.join(name)),
            Some("i") => increments.push((seq, dir.join(name))),
            // History: parts that a rewrite has replaced.
            Some("h") => {}
            _ => return Err(bad()),
        }
    }
    increments.sort();
    let mut parts = match base {
        Some(base) => single(&base)?,
        None => Parts::default(),
    };
    parts
        .commands
        .extend(increments.into_iter().map(|(_, p)| (p, 0)));
    Ok(parts)
}

/// Appends all whole commands to the stream; returns how many bytes at the very end were left out.
pub fn spool_commands(parts: &Parts, writer: &mut SpoolWriter) -> Result<u64> {
    let mut left_out = 0;
    for (path, from) in &parts.commands {
        if left_out > 0 {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "the append-only file before {} ends inside a command",
                    path.display()
                ),
            ));
        }
        left_out = commands(path, *from, writer)?;
    }
    Ok(left_out)
}

fn commands(path: &Path, from: u64, writer: &mut SpoolWriter) -> Result<u64> {
    let failed = || format!("read {}", path.display());
    let mut file = File::open(path).context(ErrorKind::Disk, failed)?;
    file.seek(SeekFrom::Start(from))
        .context(ErrorKind::Disk, failed)?;
    let mut input = BufReader::with_capacity(CHUNK, file);
    let (mut buf, mut args) = (Vec::new(), Vec::new());
    let (mut out, mut held) = (Vec::new(), Vec::new());
    let mut at = from;
    let mut inside = false;
    loop {
        let mut used = 0;
        loop {
            let rest = buf.get(used..).unwrap_or_default();
            if rest.first() == Some(&b'#') {
                // A timestamp.
                let Some(end) = memchr::memchr(b'\n', rest) else {
                    break;
                };
                used += end + 1;
                continue;
            }
            let parsed = resp::parse_command(rest, &mut args).map_err(|e| {
                e.context(format!(
                    "{}, byte {}",
                    path.display(),
                    at.saturating_add(used as u64)
                ))
            })?;
            let Some(len) = parsed else { break };
            let name = args
                .first()
                .and_then(|r| rest.get(r.clone()))
                .unwrap_or_default();
            inside |= name.eq_ignore_ascii_case(b"MULTI");
            let ends = name.eq_ignore_ascii_case(b"EXEC");
            let into = if inside { &mut held } else { &mut out };
            into.extend_from_slice(rest.get(..len).unwrap_or_default());
            if ends {
                inside = false;
                out.append(&mut held);
            }
            used += len;
        }
        buf.drain(..used);
        at = at.saturating_add(used as u64);
        if !out.is_empty() {
            writer.append_stream(&out, 0)?;
            out.clear();
        }
        let n = input
            .by_ref()
            .take(CHUNK as u64)
            .read_to_end(&mut buf)
            .context(ErrorKind::Disk, failed)?;
        if n == 0 {
            return Ok((buf.len() + held.len()) as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::spool::{Spool, StreamTail};
    use crate::types::ReplOffset;

    fn write(dir: &Path, name: &str, text: &[u8]) {
        std::fs::write(dir.join(name), text).unwrap();
    }

    #[test]
    fn a_manifest_names_the_parts_and_whole_commands_are_taken() {
        let dir = tempfile::tempdir().unwrap();
        write(
            dir.path(),
            "a.manifest",
            b"file a.2.incr.aof seq 2 type i\nfile a.1.base.aof seq 1 type b\nfile old seq 9 type h\nfile a.1.incr.aof seq 1 type i\n",
        );
        write(
            dir.path(),
            "a.1.base.aof",
            b"*1\r\n$4\r\nPING\r\n#TS:1\r\n*1\r\n$4\r\nTIME\r\n",
        );
        write(dir.path(), "a.1.incr.aof", b"*1\r\n$3\r\nONE\r\n");
        write(
            dir.path(),
            "a.2.incr.aof",
            b"*1\r\n$3\r\nTWO\r\n*1\r\n$5\r\nMULTI\r\n*1\r\n$3\r\nNOT\r\n*2\r\n$3\r\ncut",
        );
        let parts = parts(dir.path()).unwrap();
        assert_eq!(parts.commands.len(), 3);
        let spool = Spool::open(&dir.path().join("spool"), 1 << 30).unwrap();
        let left = spool_commands(&parts, &mut SpoolWriter::new(spool.clone())).unwrap();
        assert_eq!(left, 15 + 13 + 11);
        let mut buf = Vec::new();
        StreamTail::new(spool, ReplOffset(0))
            .read(&mut buf, 1 << 20)
            .unwrap();
        let text = String::from_utf8(buf).unwrap();
        assert!(text.contains("TIME") && text.contains("ONE") && text.ends_with("TWO\r\n"));
    }

    #[test]
    fn a_file_that_is_neither_is_refused_with_its_name() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "x", b"hello");
        let e = parts(&dir.path().join("x")).unwrap_err();
        assert!(e.to_string().contains("neither an RDB file"), "{e}");
    }
}
