//! Forms of commands that the target does not know: its version lacks the command, or an option of it.
//!
//! Such a command is refused whatever its keys hold, so the next one of its form is not sent: its keys are healed.
//! What a refusal owes to the keys' state is not learned here.

use crate::command::Command;
use std::collections::BTreeSet;

/// Options that came with a later version of a command: an older server refuses the command for them, with an error that
/// may say no such thing ("Invalid stream ID" for XADD … DELREF).
const LATER_OPTIONS: [&str; 27] = [
    "ACKED",
    "ANDOR",
    "CH",
    "CLAIM",
    "DELREF",
    "DIFF",
    "DIFF1",
    "ENTRIESADDED",
    "ENTRIESREAD",
    "EXACTLY",
    "FNX",
    "FXX",
    "GT",
    "IDMP",
    "IDMPAUTO",
    "IFDEQ",
    "IFDNE",
    "IFEQ",
    "IFNE",
    "KEEPREF",
    "KEEPTTL",
    "LIMIT",
    "LT",
    "MAXDELETEDID",
    "MINID",
    "NOMKSTREAM",
    "ONE",
];

/// What a refused command has that the target may not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    /// The command itself.
    Name,
    Option(&'static str),
    /// So many arguments.
    Arguments(usize),
}

/// What the target has refused as unknown, by the command's name.
#[derive(Debug, Default)]
pub(crate) struct Forms(BTreeSet<(String, Part)>);

impl Forms {
    /// Takes in a refusal; true when it says that the target does not know this form.
    pub fn learn(&mut self, cmd: &Command<'_>, refusal: &str) -> bool {
        let name = String::from_utf8_lossy(cmd.name()).to_ascii_uppercase();
        let lower = refusal.to_ascii_lowercase();
        if lower.contains("unknown command") || lower.contains("unknown subcommand") {
            return self.0.insert((name, Part::Name));
        }
        let unknown = ["syntax error", "wrong number of arg", "invalid stream id"];
        if !unknown.iter().any(|says| lower.contains(says)) {
            // It complains of what the keys hold.
            return false;
        }
        let mut parts: Vec<Part> = options(cmd).map(Part::Option).collect();
        if parts.is_empty() {
            parts.push(Part::Arguments(cmd.len()));
        }
        let before = self.0.len();
        self.0
            .extend(parts.into_iter().map(|part| (name.clone(), part)));
        self.0.len() > before
    }

    /// Whether the target is known to refuse a command of this form.
    pub fn has(&self, cmd: &Command<'_>) -> bool {
        if self.0.is_empty() {
            return false;
        }
        let name = String::from_utf8_lossy(cmd.name()).to_ascii_uppercase();
        let parts = [Part::Name, Part::Arguments(cmd.len())];
        (parts.into_iter().chain(options(cmd).map(Part::Option)))
            .any(|part| self.0.contains(&(name.clone(), part)))
    }
}

/// Which of the later options stand in a command; a value or a name that looks like one costs a heal, no more.
fn options<'a>(cmd: &'a Command<'_>) -> impl Iterator<Item = &'static str> + 'a {
    let is_word = |word: &str| {
        (1..cmd.len()).any(|i| {
            cmd.arg(i)
                .is_some_and(|arg| arg.eq_ignore_ascii_case(word.as_bytes()))
        })
    };
    LATER_OPTIONS.into_iter().filter(move |word| is_word(word))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::resp;

    fn with<T>(line: &str, work: impl FnOnce(&Command<'_>) -> T) -> T {
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        let (mut raw, mut args) = (Vec::new(), Vec::new());
        resp::command(&mut raw, &words);
        resp::parse_command(&raw, &mut args).unwrap();
        work(&Command {
            raw: &raw,
            args: &args,
        })
    }

    #[test]
    fn a_form_is_learned_from_its_refusal() {
        let mut forms = Forms::default();
        let invalid = "ERR Invalid stream ID specified as stream command argument";
        assert!(with("XADD s DELREF MAXLEN = 2 1-1 f v", |c| forms
            .learn(c, invalid)));
        assert!(with("xadd t delref maxlen = 9 2-1 f v", |c| forms.has(c)));
        assert!(!with("XADD s MAXLEN = 2 1-1 f v", |c| forms.has(c)));
        assert!(!with("XTRIM s MAXLEN = 2 DELREF", |c| forms.has(c)));
        assert!(with("HSETEX h FIELDS 1 f v", |c| forms
            .learn(c, "ERR unknown command 'HSETEX'")));
        assert!(with("HSETEX other FIELDS 1 f v", |c| forms.has(c)));
        let wrong = "ERR wrong number of arguments for 'lpop' command";
        assert!(with("LPOP l 2", |c| forms.learn(c, wrong)));
        assert!(with("LPOP other 3", |c| forms.has(c)));
        assert!(!with("LPOP l", |c| forms.has(c)));
    }

    #[test]
    fn what_the_keys_state_has_caused_is_not_learned() {
        let mut forms = Forms::default();
        for (line, refusal) in [
            (
                "XADD s DELREF MAXLEN = 2 1-1 f v",
                "WRONGTYPE Operation against a key",
            ),
            (
                "XADD s 1-1 f v",
                "ERR The ID specified in XADD is equal or smaller",
            ),
            ("RENAME a b", "ERR no such key"),
            ("SET k v IFEQ x", "OOM command not allowed"),
        ] {
            assert!(!with(line, |c| forms.learn(c, refusal)), "{line}");
            assert!(!with(line, |c| forms.has(c)), "{line}");
        }
    }
}
