//! Libraries that servers load, compiled once from `tests/tools` with the system's cc.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Mutex;

/// The library made of `tests/tools/NAME.c`; `None` where there is no C compiler.
pub fn compiled(name: &'static str) -> Option<PathBuf> {
    static MADE: Mutex<Option<HashMap<&str, Option<PathBuf>>>> = Mutex::new(None);
    let mut made = MADE.lock().unwrap_or_else(|e| e.into_inner());
    let made = made.get_or_insert_default().entry(name);
    made.or_insert_with(|| compile(name)).clone()
}

fn compile(name: &str) -> Option<PathBuf> {
    let root = env!("CARGO_MANIFEST_DIR");
    let made = std::env::temp_dir().join(format!("keyferry-{name}-{}.so", std::process::id()));
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .arg(&made)
        .args([&format!("{root}/tests/tools/{name}.c"), "-ldl"])
        .stderr(Stdio::null())
        .status();
    status.ok()?.success().then_some(made)
}
