//! The packed encodings by themselves.
#![no_main]

use keyferry::formats::rdb::encoding::Listpack;
use keyferry::formats::rdb::encoding::Ziplist;
use keyferry::formats::rdb::encoding::{intset, lzf, zipmap};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut elements = 0;
    if let Ok(mut listpack) = Listpack::new(bytes, 0) {
        while let Ok(Some(_)) = listpack.next() {
            elements += 1;
        }
    }
    if let Ok(mut ziplist) = Ziplist::new(bytes, 0) {
        while let Ok(Some(_)) = ziplist.next() {
            elements += 1;
        }
    }
    let _ = intset(bytes, 0, |_| {
        elements += 1;
        Ok(())
    });
    let _ = zipmap(bytes, 0, |_, _| {
        elements += 1;
        Ok(())
    });
    // An element takes at least a byte.
    assert!(elements <= 4 * bytes.len());
    if let Some((plain, packed)) = bytes.split_first_chunk::<3>() {
        let plain = u64::from(plain[0]) | u64::from(plain[1]) << 8 | u64::from(plain[2]) << 16;
        if let Ok(out) = lzf::decompress(packed, plain, 0) {
            assert_eq!(out.len() as u64, plain);
        }
    }
});
