//! The files of mode "rdb": which ones a plan names, and what they are together.

use crate::error::{Error, ErrorKind, Result};
use crate::plan::RdbPath;
use crate::source::aof::{self, Parts};
use std::path::{Path, PathBuf};

/// The files that a plan names, in its order; those of a glob are sorted by name. Standard input has none.
///
/// Errors: `Plan` for a glob that matches nothing.
pub fn named(path: &RdbPath) -> Result<Vec<PathBuf>> {
    match path {
        RdbPath::Stdin => Ok(Vec::new()),
        RdbPath::Files(files) => expanded(files),
    }
}

/// The files behind names that may be globs; one that is named twice is taken once.
pub fn expanded(names: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = Vec::new();
    for name in names {
        let found = match is_glob(name) {
            true => matched(name)?,
            false => vec![name.clone()],
        };
        for file in found {
            if !files.contains(&file) {
                files.push(file);
            }
        }
    }
    Ok(files)
}

/// A file that is there is itself, whatever its name.
fn is_glob(name: &Path) -> bool {
    name.to_string_lossy().contains(['*', '?', '[']) && !name.exists()
}

fn matched(pattern: &Path) -> Result<Vec<PathBuf>> {
    let wrong = |problem: &str| {
        Error::new(
            ErrorKind::Plan,
            format!("the glob {} {problem}", pattern.display()),
        )
    };
    let found = glob::glob(&pattern.to_string_lossy())
        .map_err(|e| wrong(&format!("cannot be read: {}", e.msg)))?;
    let mut files = Vec::new();
    for file in found {
        files.push(
            file.map_err(|e| wrong(&format!("cannot be followed at {}", e.path().display())))?,
        );
    }
    if files.is_empty() {
        return Err(wrong("matches no file").hint(
            "correct source.path; it is read relative to the folder that keyferry is started in",
        ));
    }
    files.sort();
    Ok(files)
}

/// What the files are; several are all snapshots.
pub fn parts(files: &[PathBuf]) -> Result<Vec<Parts>> {
    let parts: Vec<Parts> = files.iter().map(|f| aof::parts(f)).collect::<Result<_>>()?;
    if parts.len() > 1
        && let Some((file, _)) = (files.iter().zip(&parts)).find(|(_, p)| !p.commands.is_empty())
    {
        return Err(Error::new(
            ErrorKind::Plan,
            format!(
                "{} is an append-only file, whose commands belong behind its own snapshot alone",
                file.display()
            ),
        )
        .hint("migrate it by a plan of its own, or write a snapshot of it (BGSAVE)"));
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_glob_is_sorted_and_one_without_a_match_is_named() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["shard-2.rdb", "shard-10.rdb", "other.rdb", "odd[1].rdb"] {
            std::fs::write(dir.path().join(name), b"").unwrap();
        }
        let at = |name: &str| dir.path().join(name);
        let found = expanded(&[at("other.rdb"), at("shard-*.rdb"), at("shard-2.rdb")]).unwrap();
        assert_eq!(
            found,
            [at("other.rdb"), at("shard-10.rdb"), at("shard-2.rdb")]
        );
        assert_eq!(expanded(&[at("odd[1].rdb")]).unwrap(), [at("odd[1].rdb")]);
        let e = expanded(&[at("none-*.rdb")]).unwrap_err();
        assert_eq!(e.exit_code(), 2);
        assert!(e.to_string().contains("none-*.rdb matches no file"), "{e}");
    }
}
