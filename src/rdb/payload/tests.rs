//! What payloads are told by, and opened as.

use super::*;

#[test]
fn a_payload_of_another_kind_is_told_from_a_damaged_one() {
    let sealed = |type_id: u8, version: u16| {
        let mut out = Vec::new();
        seal(&mut out, &[], type_id, b"\x01a", version);
        out
    };
    for (type_id, version, foreign) in [
        (op::STRING, 9, false),
        (op::HASH_22, 80, false),
        (op::STREAM_4, 13, false),
        (op::GCRA, 14, false),
        (30, 9, true),
        (37, 9, true),
        (op::STREAM_4, 9, true),
        (200, 12, true),
    ] {
        let mut payload = sealed(type_id, version);
        assert_eq!(is_foreign(&payload), foreign, "{type_id} {version}");
        // Whether its checksum is right is another question.
        let last = payload.len() - 1;
        payload[last] ^= 1;
        assert_eq!(is_foreign(&payload), foreign, "{type_id} {version}");
    }
    assert!(is_foreign(b"raw") && is_foreign(b""));
}

#[test]
fn the_checksum_is_the_one_of_redis() {
    assert_eq!(crc(b"123456789"), 0xe9c6_d914_c4b8_d9ca);
}

#[test]
fn a_sealed_payload_opens_and_a_changed_one_does_not() {
    let mut bytes = Vec::new();
    seal(&mut bytes, &[], op::STRING, b"\x03abc", 11);
    let payload = open(&bytes).unwrap();
    assert_eq!(
        (payload.type_id, &*payload.body, payload.version),
        (0, b"\x03abc".as_slice(), 11)
    );
    for i in 0..bytes.len() {
        let mut broken = bytes.clone();
        broken[i] ^= 1;
        assert!(open(&broken).is_err(), "byte {i}");
    }
}
