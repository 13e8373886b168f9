//! Commands of modules that come to another result when they are run a second time, on another server.
//!
//! Measured on Redis Stack 7.4: replicas of the source itself differ from it after these.

use super::table::Spec;
use super::what::Command;

/// Whether a command that runs again, on the value it ran on before, comes to the same value.
pub fn repeats(cmd: &Command<'_>, spec: &Spec) -> bool {
    match spec.name {
        // A count that is crowded out decays by chance.
        "TOPK.ADD" | "TOPK.INCRBY" => false,
        // Which points are merged depends on when the source's readers asked, which the stream does not hold.
        "TDIGEST.ADD" | "TDIGEST.MERGE" => false,
        // Without a time they take the clock of the server that runs them: they are replicated as they were called.
        "TS.INCRBY" | "TS.DECRBY" => {
            let at = cmd.find(3, b"TIMESTAMP");
            // A label may have any name.
            let labels = cmd.find(3, b"LABELS").unwrap_or(cmd.len());
            at.is_some_and(|at| at < labels && cmd.number(at + 1).is_some())
        }
        _ => true,
    }
}

#[cfg(test)]
#[allow(clippy::expect_used)]
mod tests {
    use super::*;
    use crate::resp;

    fn repeated(line: &str) -> bool {
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        let (mut raw, mut args) = (Vec::new(), Vec::new());
        resp::command(&mut raw, &words);
        resp::parse_command(&raw, &mut args).expect("a command");
        let cmd = Command {
            raw: &raw,
            args: &args,
        };
        let name = cmd.name().to_ascii_uppercase();
        let mut specs = crate::command::table::SPECS.iter();
        let spec = specs.find(|s| s.name.as_bytes() == name);
        let spec = spec.expect("it is in the table");
        repeats(&cmd, spec)
    }

    #[test]
    fn what_depends_on_chance_or_a_clock_does_not_repeat() {
        for line in [
            "TOPK.ADD k a",
            "topk.incrby k a 2",
            "TDIGEST.ADD k 1",
            "TDIGEST.MERGE k 1 j",
            "ts.incrby k 5",
            "TS.DECRBY k 5 TIMESTAMP *",
            "TS.INCRBY k 5 LABELS timestamp 7",
        ] {
            assert!(!repeated(line), "{line}");
        }
        for line in [
            "TS.INCRBY k 5 TIMESTAMP 1000",
            "TS.ADD k 1000 5",
            "CF.ADD k a",
            "BF.ADD k a",
            "JSON.SET k $ 1",
            "FT.SUGADD k a 1",
            "CMS.INCRBY k a 1",
        ] {
            assert!(repeated(line), "{line}");
        }
    }
}
