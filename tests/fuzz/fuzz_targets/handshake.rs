//! What a source says before and around a snapshot: the answer to PSYNC, the snapshot's head, its end in the bytes.
#![no_main]

use keyferry::handshake;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let line = bytes.split(|b| *b == b'\n').next().unwrap_or_default();
    let _ = handshake::answer(line);
    if let Ok(mut framing) = handshake::framing(line) {
        let rest = bytes.get(line.len() + 1..).unwrap_or_default();
        let (snapshot, mark, done) = handshake::cut(&mut framing, rest);
        assert!(snapshot + mark <= rest.len());
        assert!(done || mark == 0);
    }
});
