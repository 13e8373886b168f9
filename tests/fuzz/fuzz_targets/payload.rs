//! A DUMP payload: opened, digested, fitted to every target, converted and read again.
#![no_main]

use keyferry::rdb::payload::{self, Fit, KNOWN};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // A checksum that fits, so that the mutations reach the value.
    let Some((footer, value)) = bytes.split_first_chunk::<2>() else { return };
    let Some((type_id, body)) = value.split_first() else { return };
    let version = u16::from_le_bytes(*footer) % 100;
    let mut sealed = Vec::new();
    payload::seal(&mut sealed, &[], *type_id, body, version);
    let Ok(opened) = payload::open(&sealed) else { return };
    let digest = keyferry::digest::of_body(opened.type_id, opened.dialect, u32::from(version), opened.body);
    for (_, target) in KNOWN {
        if payload::fit(opened.type_id, opened.dialect, u32::from(version), opened.body, &target) != Fit::Transcode {
            continue;
        }
        let mut out = Vec::new();
        let converted =
            payload::transcode(opened.type_id, opened.dialect, u32::from(version), opened.body, &target, &mut out);
        if let Ok(new) = converted {
            let dialect = keyferry::rdb::opcode::Dialect::of_version(u32::from(payload::footer_version(&target)));
            let again = keyferry::digest::of_body(new, dialect, u32::from(payload::footer_version(&target)), &out);
            // Streams lose in an older layout what that layout lacks; everything else stays.
            if let (Ok(a), Ok(b)) = (&digest, again)
                && a.kind != keyferry::rdb::value::ValueKind::Stream
            {
                assert_eq!(*a, b);
            }
        }
    }
});
