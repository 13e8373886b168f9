//! A DUMP payload: opened, digested, fitted to every target, converted and read again.
#![no_main]

use keyferry::formats::rdb::payload::{self, Fit, KNOWN};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // A checksum that fits, so that the mutations reach the value.
    let Some((footer, value)) = bytes.split_first_chunk::<2>() else { return };
    let Some((type_id, body)) = value.split_first() else { return };
    let version = u16::from_le_bytes(*footer) % 100;
    let mut sealed = Vec::new();
    payload::seal(&mut sealed, &[], *type_id, body, version);
    let Ok(opened) = payload::open(&sealed) else { return };
    // Past the first millisecond of 1970: layouts differ in how they write an expiry of 0.
    let digest = keyferry::formats::digest::of_payload(&sealed, 1, keyferry::formats::digest::Width::Bits128);
    for (_, target) in KNOWN {
        if payload::fit(opened.type_id, opened.dialect, u32::from(version), opened.body, &target) != Fit::Transcode {
            continue;
        }
        let mut out = Vec::new();
        let converted =
            payload::transcode(opened.type_id, opened.dialect, u32::from(version), opened.body, &target, &mut out);
        if let Ok(new) = converted {
            let mut again = Vec::new();
            payload::seal(&mut again, &[], new, &out, payload::footer_version(&target));
            let again = keyferry::formats::digest::of_payload(&again, 1, keyferry::formats::digest::Width::Bits128);
            // Streams lose in an older layout what that layout lacks; everything else stays.
            if let (Ok(Some(a)), Ok(Some(b))) = (&digest, again)
                && a.kind != keyferry::formats::rdb::value::ValueKind::Stream
            {
                assert_eq!(*a, b);
            }
        }
    }
});
