//! Findings on the snapshot files of mode "rdb": whether they are there and readable, and of which version.

use super::finding::{Finding, Severity, add};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::plan::RdbPath;
use crate::rdb::file::{Options, Snapshot};
use crate::source::{files, unpack};
use std::io::Read;
use std::path::Path;

/// Looks at the beginning of each file; what stands further on, the migration reads.
pub fn findings(path: &RdbPath, findings: &mut Vec<Finding>) {
    let looked = files::named(path).and_then(|named| {
        // What one file is, the migration finds out: that of an append-only file may take a while.
        if named.len() > 1 {
            files::parts(&named)?;
        }
        named.iter().try_for_each(|file| {
            let Some(newer) = newer(file)? else {
                return Ok(());
            };
            add(
                findings,
                "newer_format",
                Severity::Warning,
                format!("{}: {newer}", file.display()),
                "try it with --dry-run, which reads all of it; `migrate --strict` refuses such a file",
            );
            Ok(())
        })
    });
    if let Err(e) = looked {
        let e: Error = e;
        add(
            findings,
            "snapshot_file",
            Severity::Blocker,
            e.to_string(),
            e.remedy(),
        );
    }
}

fn newer(file: &Path) -> Result<Option<String>> {
    let failed = || format!("read {}", file.display());
    let input = std::fs::File::open(file).context(ErrorKind::Disk, failed)?;
    if input.metadata().is_ok_and(|m| m.is_dir()) {
        return Ok(None);
    }
    let mut input = unpack::unpacked(Box::new(input)).map_err(|e| e.context(failed()))?;
    let mut start = Vec::new();
    (input.by_ref().take(9).read_to_end(&mut start)).context(ErrorKind::Disk, failed)?;
    if !start.starts_with(b"REDIS") && !start.starts_with(b"VALKEY") {
        // Commands, or a manifest.
        return Ok(None);
    }
    let input = start.as_slice().chain(input);
    let snapshot = Snapshot::open(input, Options::default()).map_err(|e| e.context(failed()))?;
    Ok(snapshot.head().newer())
}
