//! A whole snapshot file, in every way that it is read: as JSON, as commands, framed only, and in small pieces.
#![no_main]

use keyferry::{write_json, write_resp};
use keyferry::formats::rdb::file::{Item, Options, Snapshot};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = write_json(bytes, &mut std::io::sink(), true);
    let _ = write_resp(bytes, &mut std::io::sink(), true);
    // Every value in pieces.
    let options = Options { whole_value_limit: 0, unpacked_limit: 0, ignore_checksum: true };
    if let Ok(mut snapshot) = Snapshot::open(bytes, options) {
        while let Ok(item) = snapshot.next() {
            if matches!(item, Item::End) {
                break;
            }
        }
    }
});
