//! RESP in both directions: commands of the stream with their keys and parts, replies of the target.
#![no_main]

use keyferry::formats::command::{Command, Kind, lookup, split};
use keyferry::formats::resp;
use keyferry::Slot;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut args = Vec::new();
    let mut keys = Vec::new();
    let mut rest = bytes;
    while let Ok(Some(len)) = resp::parse_command(rest, &mut args) {
        assert!(len > 0 && len <= rest.len());
        let cmd = Command { raw: &rest[..len], args: &args };
        if let Some(spec) = lookup(cmd.name()) {
            if spec.keys(&cmd, &mut keys).is_ok() {
                assert!(keys.iter().all(|k| k.index < cmd.len()));
            }
            if let Kind::Split(kind) = spec.kind {
                let _ = split::by_slot(&cmd, kind, Slot::of, |_, part, _| {
                    let mut args = Vec::new();
                    assert_eq!(resp::parse_command(part, &mut args).ok().flatten(), Some(part.len()));
                });
            }
        }
        rest = &rest[len..];
        if rest.is_empty() {
            break;
        }
    }
    let parsed = resp::parse_reply(bytes);
    let skimmed = resp::skim_reply(bytes);
    if let (Ok(Some((_, a))), Ok(Some((_, b)))) = (parsed, skimmed) {
        assert_eq!(a, b);
    }
});
