//! The files in a spool's folder.

use crate::error::{Context, ErrorKind, Result};
use crate::task::private_file;
use crate::types::ReplOffset;
use std::fs::File;
use std::io::Write;
use std::path::Path;

/// The stream segments in a folder, in order: first offset and length.
pub fn segments(dir: &Path) -> Result<Vec<(ReplOffset, u64)>> {
    let mut found = Vec::new();
    let entries =
        std::fs::read_dir(dir).context(ErrorKind::Disk, || format!("list {}", dir.display()))?;
    for entry in entries {
        let entry = entry.context(ErrorKind::Disk, || format!("list {}", dir.display()))?;
        let name = entry.file_name();
        if let Some(start) = name
            .to_str()
            .and_then(|n| n.strip_prefix("stream-"))
            .and_then(|n| n.parse().ok())
        {
            found.push((ReplOffset(start), entry.metadata().map_or(0, |m| m.len())));
        }
    }
    found.sort_unstable();
    Ok(found)
}

pub fn create(path: &Path, truncate: bool) -> Result<File> {
    private_file()
        .create(true)
        .write(true)
        .truncate(truncate)
        .append(!truncate)
        .open(path)
        .context(ErrorKind::Disk, || format!("open {}", path.display()))
}

pub fn write(file: &mut File, bytes: &[u8], path: &Path) -> Result<()> {
    file.write_all(bytes).context(ErrorKind::Disk, || {
        format!("write to the spool {}", path.display())
    })
}
