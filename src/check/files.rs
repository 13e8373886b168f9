//! Findings on the snapshot files of mode "rdb": whether they are there and readable, and of which version.

use super::finding::{Finding, Severity, add};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::plan::RdbPath;
use crate::rdb::file::{Options, Snapshot};
use crate::source::{files, unpack};
use std::path::Path;

/// Looks at the beginning of each file; what stands further on, the migration reads.
pub fn findings(path: &RdbPath, findings: &mut Vec<Finding>) {
    let looked = files::named(path).and_then(|named| {
        let parts = files::parts(&named)?;
        (parts.iter().filter_map(|p| p.snapshot.as_deref())).try_for_each(|file| {
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
    let input = unpack::unpacked(Box::new(input)).map_err(|e| e.context(failed()))?;
    let snapshot = Snapshot::open(input, Options::default()).map_err(|e| e.context(failed()))?;
    Ok(snapshot.head().newer())
}
