//! Series as Redis Stack 7.4 wrote them to a snapshot: samples as commands, names exchanged.

use super::*;
use crate::rdb::modules::commands;

/// "a:ts", compressed, with a label, DUPLICATE_POLICY LAST and a rule that fills "a:to" with averages of 1000 ms.
const COMPRESSED: &str = "814d20c1f9360f10080504613a74730200023002020280000dbba0049c7500883ce4377e0205020202000200040000000000000000020105016c05017602010504613a746f0243e8020002040280000dbba0049c7500883ce4377e04000000000000f03f02000201023002050240e102813ff00000000000000243e80280000dbba00280000db30802817e37e43c8800759c020002020530479f83f2ff91bd887a0c1e3c0f801fa96c03c0a03feb001079c85b7c010000000000000000000000000000000000000000";
/// "a:to", not compressed, filled from "a:ts".
const PLAIN: &str = "814d20c1f9360f10080504613a746f0200023002010247d004000000000000e4bf0202020002010504613a747302000400000000000000000200020002010243e8020202300530e803000000000000000000000000f83fd007000000000000000000000000e4bf0000000000000000000000000000000000";

fn bytes(hex: &str) -> Vec<u8> {
    let digit = |i: usize| u8::from_str_radix(hex.get(i..i + 2).unwrap_or("0"), 16).unwrap_or(0);
    (0..hex.len()).step_by(2).map(digit).collect()
}

/// The commands as words.
fn commands_of(body: &[u8]) -> Vec<String> {
    let mut all = Vec::new();
    commands::write(b"k", body, None, &mut Vec::new(), |out, _| {
        all.append(out);
        Ok(())
    })
    .expect("commands");
    let (mut args, mut words, mut rest) = (Vec::new(), Vec::new(), all.as_slice());
    while let Some(n) = crate::resp::parse_command(rest, &mut args).expect("RESP") {
        let (one, behind) = rest.split_at(n);
        let text = |r: &std::ops::Range<usize>| {
            String::from_utf8_lossy(one.get(r.clone()).unwrap_or_default()).into_owned()
        };
        words.push(args.iter().map(text).collect::<Vec<_>>().join(" "));
        rest = behind;
        if rest.is_empty() {
            break;
        }
    }
    words
}

#[test]
fn samples_come_out_as_they_went_in() {
    assert_eq!(
        commands_of(&bytes(COMPRESSED)),
        [
            "DEL k",
            "TS.CREATE k ENCODING COMPRESSED RETENTION 0 CHUNK_SIZE 48 DUPLICATE_POLICY LAST LABELS l v",
            "TS.MADD k 1000 1 k 1500 2 k 2100 5.25 k 2200 -6.5 k 900000 1e+300",
        ]
    );
    assert_eq!(
        commands_of(&bytes(PLAIN)),
        [
            "DEL k",
            "TS.CREATE k ENCODING UNCOMPRESSED RETENTION 0 CHUNK_SIZE 48",
            "TS.MADD k 1000 1.5 k 2000 -0.625",
        ]
    );
    assert_eq!(rules(&bytes(COMPRESSED)).expect("rules"), [b"a:to"]);
    assert!(!commands::exact(&bytes(COMPRESSED)).expect("a value"));
}

#[test]
fn names_are_exchanged_and_the_rest_stays() {
    let to = |name: &[u8]| Some([b"other-prefix:", name.strip_prefix(b"a:")?].concat());
    let back = |name: &[u8]| Some([b"a:", name.strip_prefix(b"other-prefix:")?].concat());
    for sample in [COMPRESSED, PLAIN] {
        let body = bytes(sample);
        let new = renamed(&body, to).expect("a value").expect("names");
        assert_eq!(commands_of(&new), commands_of(&body));
        let text = String::from_utf8_lossy(&new).into_owned();
        assert_eq!(text.matches("other-prefix:t").count(), 2, "{text}");
        assert!(!text.contains("a:t"), "{text}");
        let again = renamed(&new, back).expect("a value").expect("names");
        assert_eq!(again, body);
        // One of the names has nowhere to go.
        let one = |name: &[u8]| (name != b"a:to").then(|| name.to_vec());
        assert_eq!(renamed(&body, one).expect("a value"), None);
    }
}

#[test]
fn what_is_cut_off_is_an_error() {
    for sample in [COMPRESSED, PLAIN] {
        let body = bytes(sample);
        for end in 0..body.len() {
            let cut = body.get(..end).unwrap_or_default();
            assert!(renamed(cut, |n| Some(n.to_vec())).is_err(), "{end} bytes");
            assert!(
                commands::write(b"k", cut, None, &mut Vec::new(), |_, _| Ok(())).is_err()
                    || end + 1 == body.len()
            );
        }
    }
}
