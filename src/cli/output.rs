//! What leaves the program: results on standard output, errors on standard error.

use crate::error::{Error, ErrorKind, Result};
use serde::Serialize;
use std::io::{ErrorKind as Io, Write};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

static CLOSED: AtomicBool = AtomicBool::new(false);

/// Whether nobody reads standard output any more (`keyferry … | head`).
pub fn closed() -> bool {
    CLOSED.load(Relaxed)
}

/// Writes a result; a reader that has gone is not an error.
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == Io::BrokenPipe => {
            CLOSED.store(true, Relaxed);
            Ok(())
        }
        Err(e) => Err(Error::new(ErrorKind::Disk, "write to standard output").cause(e)),
        Ok(()) => Ok(()),
    }
}

/// Writes one JSON object.
pub fn json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Error::new(ErrorKind::Bug, "write the answer as JSON").cause(e))?;
    print(&(text + "\n"))
}

/// Writes an error as its sentence, and below it what can be done.
pub fn error(e: &Error) {
    let _ = writeln!(std::io::stderr(), "error: {e}\n  hint: {}", e.remedy());
}
