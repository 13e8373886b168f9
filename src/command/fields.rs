//! Fields of a hash, as a command names them: those it gives an expiry, builds upon, deletes or writes.

use super::{Command, Spec};

/// Some of a command's arguments: the first of them, how far apart, how many at most.
pub struct Fields<'c, 'a> {
    cmd: &'c Command<'a>,
    at: usize,
    step: usize,
    left: usize,
}

impl<'a> Iterator for Fields<'_, 'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        self.left = self.left.checked_sub(1)?;
        let field = self.cmd.arg(self.at);
        self.at += self.step;
        field
    }
}

fn from<'c, 'a>(cmd: &'c Command<'a>, step: usize, left: usize) -> Fields<'c, 'a> {
    Fields {
        cmd,
        at: 2,
        step,
        left,
    }
}

/// Those after `FIELDS n`.
fn listed<'c, 'a>(cmd: &'c Command<'a>, step: usize) -> Fields<'c, 'a> {
    let at = cmd.find(2, b"FIELDS").unwrap_or(cmd.len());
    let left = cmd.number(at + 1).and_then(|n| usize::try_from(n).ok());
    Fields {
        cmd,
        at: at + 2,
        step,
        left: left.unwrap_or(0),
    }
}

/// Fields that have an expiry afterwards, or may have.
pub fn timed<'c, 'a>(spec: &Spec, cmd: &'c Command<'a>) -> Fields<'c, 'a> {
    match spec.name {
        "HEXPIRE" | "HPEXPIRE" | "HEXPIREAT" | "HPEXPIREAT" | "HGETEX" => listed(cmd, 1),
        "HSETEX" => listed(cmd, 2),
        _ => from(cmd, 1, 0),
    }
}

/// Fields that a command builds upon, so that it must not run when one has expired a moment early.
pub fn needed<'c, 'a>(spec: &Spec, cmd: &'c Command<'a>) -> Fields<'c, 'a> {
    match spec.name {
        "HINCRBY" | "HINCRBYFLOAT" => from(cmd, 1, 1),
        "HSETEX" if [&b"FXX"[..], b"KEEPTTL"].iter().any(|w| stands(cmd, w)) => listed(cmd, 2),
        _ => from(cmd, 1, 0),
    }
}

/// Whether the word is an option of an HSETEX, which come before its fields.
fn stands(cmd: &Command<'_>, word: &[u8]) -> bool {
    let fields = cmd.find(2, b"FIELDS").unwrap_or(cmd.len());
    cmd.find(2, word).is_some_and(|at| at < fields)
}

/// Fields that are gone afterwards.
pub fn deleted<'c, 'a>(spec: &Spec, cmd: &'c Command<'a>) -> Fields<'c, 'a> {
    match spec.name {
        "HDEL" => from(cmd, 1, cmd.len()),
        "HGETDEL" => listed(cmd, 1),
        _ => from(cmd, 1, 0),
    }
}

/// Fields that are there afterwards; one that is given an expiry is there as well.
pub fn written<'c, 'a>(spec: &Spec, cmd: &'c Command<'a>) -> Fields<'c, 'a> {
    match spec.name {
        "HSET" | "HMSET" => from(cmd, 2, cmd.len()),
        "HSETNX" | "HINCRBY" | "HINCRBYFLOAT" => from(cmd, 1, 1),
        _ => timed(spec, cmd),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use crate::command::{self, Command};
    use crate::resp;

    fn told(line: &str) -> String {
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        let (mut raw, mut args) = (Vec::new(), Vec::new());
        resp::command(&mut raw, &words);
        resp::parse_command(&raw, &mut args).unwrap();
        let cmd = Command {
            raw: &raw,
            args: &args,
        };
        let spec = command::lookup(cmd.name()).unwrap();
        let join = |fields: super::Fields<'_, '_>| {
            fields
                .map(|f| String::from_utf8_lossy(f).into_owned())
                .collect::<Vec<_>>()
                .join(" ")
        };
        [
            join(super::timed(spec, &cmd)),
            join(super::needed(spec, &cmd)),
            join(super::deleted(spec, &cmd)),
            join(super::written(spec, &cmd)),
        ]
        .join("|")
    }

    #[test]
    fn each_command_names_its_fields() {
        for (line, expected) in [
            ("HPEXPIREAT h 5 NX FIELDS 2 FIELDS b", "FIELDS b|||FIELDS b"),
            ("hpexpireat h 5 FIELDS 999999999 a", "a|||a"),
            ("HGETEX h PXAT 5 FIELDS 1 a", "a|||a"),
            ("HSETEX h PXAT 5 FIELDS 2 a 1 b 2", "a b|||a b"),
            ("HSETEX h FXX KEEPTTL FIELDS 1 a 1", "a|a||a"),
            ("HSETEX h PXAT 5 FIELDS 1 KEEPTTL 1", "KEEPTTL|||KEEPTTL"),
            ("HINCRBY h a 1", "|a||a"),
            ("HINCRBYFLOAT h a 1.5", "|a||a"),
            ("HSET h a 1 b 2", "|||a b"),
            ("HSETNX h a 1", "|||a"),
            ("HDEL h a b", "||a b|"),
            ("HGETDEL h FIELDS 2 a b", "||a b|"),
            ("HPERSIST h FIELDS 1 a", "|||"),
            ("SET FIELDS 1 2", "|||"),
        ] {
            assert_eq!(told(line), expected, "{line}");
        }
    }
}
