//! Programs with a wrong clock: a library that shifts what they read of it, compiled once with the system's cc.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The variables that shift a program's clock by `seconds`; `None` where there is no C compiler.
pub fn skewed(seconds: i64) -> Option<[(String, String); 2]> {
    let library = library()?.to_str()?.to_owned();
    Some([
        ("LD_PRELOAD".to_owned(), library),
        ("SKEW_S".to_owned(), seconds.to_string()),
    ])
}

fn library() -> Option<&'static PathBuf> {
    static MADE: OnceLock<Option<PathBuf>> = OnceLock::new();
    MADE.get_or_init(|| {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tools/skew.c");
        let made = std::env::temp_dir().join(format!("keyferry-skew-{}.so", std::process::id()));
        let status = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(&made)
            .args([source, "-ldl"])
            .stderr(Stdio::null())
            .status();
        status.ok()?.success().then_some(made)
    })
    .as_ref()
}
