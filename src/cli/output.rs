//! What leaves the program: results on standard output, errors and what is told meanwhile on standard error.
//!
//! Invariant: nothing of a server's text or a key's name does anything to a terminal; only [`clear`] does.

use crate::error::{Error, ErrorKind, Result, acts, printable};
use crate::report::grouped;
use crate::store::UnknownCommand;
use serde::Serialize;
use std::fmt::Write as _;
use std::io::{ErrorKind as Io, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

static CLOSED: AtomicBool = AtomicBool::new(false);

/// Whether nobody reads standard output any more (`keyferry … | head`).
pub fn closed() -> bool {
    CLOSED.load(Relaxed)
}

/// Writes a result; a reader that has gone is not an error.
pub fn print(text: &str) -> Result<()> {
    write(&printable(text, "\n\t"))
}

/// Empties a terminal.
pub fn clear() -> Result<()> {
    match std::io::stdout().is_terminal() {
        true => write("\x1b[H\x1b[J"),
        false => Ok(()),
    }
}

fn write(text: &str) -> Result<()> {
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

/// A command that is not known, for people: its name, how many, what became of them.
pub fn unknown_command(c: &UnknownCommand) -> String {
    let mut text = format!("{} from offset {} of {}", c.name, c.first_offset, c.source);
    for (n, what) in [
        (c.left_out, "left out"),
        (c.read_again, "whose keys were read instead"),
    ] {
        if n > 0 {
            text += &format!(", {} {what}", grouped(n));
        }
    }
    text
}

/// Writes one JSON object, over several lines.
pub fn json(value: &impl Serialize) -> Result<()> {
    print(&(escaped(&serde_json::to_string_pretty(value).map_err(no_json)?) + "\n"))
}

/// Writes one JSON object as a line.
pub fn json_line(value: &impl Serialize) -> Result<()> {
    print(&(escaped(&serde_json::to_string(value).map_err(no_json)?) + "\n"))
}

fn no_json(e: serde_json::Error) -> Error {
    Error::new(ErrorKind::Bug, "write the answer as JSON").cause(e)
}

/// JSON in which nothing acts on a terminal, of the same meaning: JSON escapes only some of these itself.
pub fn escaped(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match acts(c) && c != '\n' {
            // All of them are of the first plane. Writing to a String cannot fail.
            true => drop(write!(out, "\\u{:04x}", u32::from(c))),
            false => out.push(c),
        }
    }
    out
}

/// Writes a line on standard error.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{}", printable(line, "\n\t"));
}

/// Writes an error as its sentence, and below it what can be done.
pub fn error(e: &Error) {
    say(&format!("error: {e}\n  hint: {}", e.remedy()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn json_means_the_same_and_does_nothing_to_a_terminal() {
        let value = json!({ "k\u{9b}": "\u{1b}[2J\u{202e}\u{7f} ключ\n" });
        let text = escaped(&serde_json::to_string_pretty(&value).unwrap());
        assert!(!text.chars().any(|c| acts(c) && c != '\n'), "{text:?}");
        assert!(text.contains("ключ"), "{text}");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
    }
}
