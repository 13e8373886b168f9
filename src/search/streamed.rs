//! The FT.* commands of a stream: what the target gets of each, and what its answers mean.

use crate::command::Command;

/// What the target gets of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Streamed {
    pub words: Vec<Vec<u8>>,
    /// What of it the target does not get, and why.
    pub warning: Option<&'static str>,
}

const TEMPORARY: &str = "the index is temporary at the source and made without TEMPORARY at the target: there it would delete its documents once nobody has searched it for that time";
const PREFIX: &str = "the plan renames keys, and a prefix of the index fits only some of them: it covers what begins so at the target";

/// The command as the target gets it: with `rename` for its prefixes (`None`: not exact), without TEMPORARY, and with
/// the name of a client's command for one between shards.
pub fn translated(
    cmd: &Command<'_>,
    rename: impl Fn(&[u8]) -> Option<Vec<u8>>,
) -> Option<Streamed> {
    let name = cmd.name().to_ascii_uppercase();
    // One of valkey-search repeats in a form of its own what FT.CREATE has said.
    if name == b"FT.INTERNAL_UPDATE" {
        return None;
    }
    let mut words = vec![name.strip_prefix(b"_").unwrap_or(&name).to_vec()];
    words.extend(
        (1..cmd.len())
            .filter_map(|i| cmd.arg(i))
            .map(<[u8]>::to_vec),
    );
    let mut warning = None;
    let creates = words
        .first()
        .is_some_and(|w| w == b"FT.CREATE" || w == b"FT._CREATEIFNX");
    let schema = words.iter().position(|w| w.eq_ignore_ascii_case(b"SCHEMA"));
    if let (true, Some(schema)) = (creates, schema) {
        let mut head: Vec<Vec<u8>> = words.drain(..schema).collect();
        if let Some(at) = place(&head, b"TEMPORARY") {
            head.drain(at..(at + 2).min(head.len()));
            warning = Some(TEMPORARY);
        }
        if let Some(at) = place(&head, b"PREFIX") {
            let count = (head.get(at + 1)).and_then(|n| std::str::from_utf8(n).ok()?.parse().ok());
            for prefix in head.iter_mut().skip(at + 2).take(count.unwrap_or(0)) {
                match rename(prefix) {
                    Some(other) => *prefix = other,
                    None => warning = Some(PREFIX),
                }
            }
        }
        head.append(&mut words);
        words = head;
    }
    Some(Streamed { words, warning })
}

/// Where an option of FT.CREATE stands, and not a value that is called so.
fn place(words: &[Vec<u8>], option: &[u8]) -> Option<usize> {
    let mut at = 2;
    while let Some(word) = words.get(at) {
        let is = |name: &[u8]| word.eq_ignore_ascii_case(name);
        if is(option) {
            return Some(at);
        }
        let valued: [&[u8]; 9] = [
            b"ON",
            b"FILTER",
            b"LANGUAGE",
            b"LANGUAGE_FIELD",
            b"SCORE",
            b"SCORE_FIELD",
            b"PAYLOAD_FIELD",
            b"TEMPORARY",
            b"INDEXALL",
        ];
        at += 1;
        if is(b"PREFIX") || is(b"STOPWORDS") {
            let count = words.get(at).and_then(|n| std::str::from_utf8(n).ok());
            let count = count.and_then(|n| n.parse::<usize>().ok()).unwrap_or(0);
            at = at.saturating_add(count).saturating_add(1);
        } else if valued.iter().any(|name| is(name)) {
            at += 1;
        }
    }
    None
}

/// The same by the name that every client may use, for servers that lack the forms which may run twice.
pub fn public_form(words: &[Vec<u8>]) -> Option<Vec<Vec<u8>>> {
    let name: &[u8] = match words.first()?.as_slice() {
        b"FT._CREATEIFNX" => b"FT.CREATE",
        b"FT._ALTERIFNX" => b"FT.ALTER",
        b"FT._ALIASADDIFNX" => b"FT.ALIASADD",
        b"FT._ALIASDELIFX" => b"FT.ALIASDEL",
        b"FT._DROPINDEXIFX" | b"FT._DROPIFX" => b"FT.DROPINDEX",
        _ => return None,
    };
    let rest = words.iter().skip(1);
    let rest = rest.filter(|w| !w.eq_ignore_ascii_case(b"_FORCEKEEPDOCS"));
    Some([name.to_vec()].into_iter().chain(rest.cloned()).collect())
}

/// An error that says that there was nothing left to do, as when a command runs for the second time.
pub fn is_moot(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    [
        "already exists",
        "duplicate field",
        "unknown index name",
        "does not exist",
        "not found",
        "no such index",
    ]
    .iter()
    .any(|said| text.contains(said))
}

/// An error that says that the server has no such command.
pub fn lacks_search(text: &str) -> bool {
    text.to_ascii_lowercase().contains("unknown command")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::resp;

    fn sent(line: &str) -> (String, bool) {
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        let (mut raw, mut args) = (Vec::new(), Vec::new());
        resp::command(&mut raw, &words);
        resp::parse_command(&raw, &mut args).unwrap();
        let cmd = Command {
            raw: &raw,
            args: &args,
        };
        let rename = |p: &[u8]| match p {
            b"old:" => Some(b"new:".to_vec()),
            b"ol" => None,
            other => Some(other.to_vec()),
        };
        let Some(streamed) = translated(&cmd, rename) else {
            return (String::new(), false);
        };
        let text = String::from_utf8(streamed.words.join(&b' ')).unwrap();
        (text, streamed.warning.is_some())
    }

    #[test]
    fn an_index_of_the_stream_is_neither_temporary_nor_of_old_names() {
        let plain = "FT._CREATEIFNX i ON HASH PREFIX 2 a: b: SCHEMA PREFIX TAG";
        assert_eq!(sent(plain), (plain.into(), false));
        for (line, expected, warned) in [
            (
                "_FT.CREATE i PREFIX 2 old: b: SCHEMA t TEXT",
                "FT.CREATE i PREFIX 2 new: b: SCHEMA t TEXT",
                false,
            ),
            (
                "FT._CREATEIFNX i PREFIX 1 TEMPORARY TEMPORARY 60 STOPWORDS 1 PREFIX SCHEMA t TEXT",
                "FT._CREATEIFNX i PREFIX 1 TEMPORARY STOPWORDS 1 PREFIX SCHEMA t TEXT",
                true,
            ),
            (
                "FT._CREATEIFNX i PREFIX 1 ol SCHEMA t TEXT",
                "FT._CREATEIFNX i PREFIX 1 ol SCHEMA t TEXT",
                true,
            ),
            ("FT.INTERNAL_UPDATE i x y", "", false),
            (
                "FT.CREATE i PREFIX 18446744073709551615 b: SCHEMA t TEXT",
                "FT.CREATE i PREFIX 18446744073709551615 b: SCHEMA t TEXT",
                false,
            ),
            (
                "FT.CREATE i STOPWORDS 18446744073709551615 PREFIX SCHEMA t TEXT",
                "FT.CREATE i STOPWORDS 18446744073709551615 PREFIX SCHEMA t TEXT",
                false,
            ),
        ] {
            assert_eq!(sent(line), (expected.into(), warned), "{line}");
        }
    }

    #[test]
    fn forms_that_may_run_twice_have_names_for_everybody() {
        let words = |line: &str| -> Vec<Vec<u8>> {
            line.split(' ').map(|w| w.as_bytes().to_vec()).collect()
        };
        let public = public_form(&words("FT._DROPINDEXIFX i _FORCEKEEPDOCS"));
        assert_eq!(public, Some(words("FT.DROPINDEX i")));
        assert_eq!(public_form(&words("FT.DICTADD d w")), None);
    }
}
