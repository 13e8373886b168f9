//! What the file loop must survive and where it can go on.

use super::*;
use crate::rdb::value;

fn drain(bytes: &[u8]) -> Result<usize> {
    let mut snapshot = Snapshot::open(bytes, Options::default())?;
    let mut keys = 0;
    loop {
        match snapshot.next()? {
            Item::End => return Ok(keys),
            Item::Entry(e) => {
                keys += 1;
                let (h, v) = (e.header, e.value.to_vec());
                let _ = value::decode(h.type_id, Dialect::Redis, 11, &v, 0, &mut Nothing);
            }
            _ => {}
        }
    }
}

#[test]
fn every_truncation_is_an_error_and_no_flip_panics() {
    for name in ["redis-7.4-cluster", "valkey-9.1-cluster", "redis-8.6-lfu"] {
        let path = format!(
            "{}/tests/fixtures/rdb/{name}.rdb",
            env!("CARGO_MANIFEST_DIR")
        );
        let bytes = std::fs::read(path).unwrap();
        assert!(drain(&bytes).unwrap() > 0);
        for cut in (0..bytes.len()).step_by(7) {
            assert!(drain(&bytes[..cut]).is_err(), "{name} cut at {cut}");
        }
        for i in (0..bytes.len()).step_by(5) {
            let mut broken = bytes.clone();
            broken[i] ^= 0x41;
            assert!(drain(&broken).is_err(), "{name} with byte {i} changed");
        }
    }
}

#[test]
fn a_resumed_snapshot_yields_the_rest() {
    let bytes = std::fs::read(format!(
        "{}/tests/fixtures/rdb/redis-8.8-all.rdb",
        env!("CARGO_MANIFEST_DIR")
    ))
    .unwrap();
    let options = Options {
        whole_value_limit: 4000,
        ..Options::default()
    };
    let mut snapshot = Snapshot::open(bytes.as_slice(), options).unwrap();
    let mut marks = Vec::new();
    loop {
        let mark = (snapshot.position(), snapshot.db());
        match snapshot.next().unwrap() {
            Item::End => break,
            Item::Entry(e) => marks.push((mark, e.header.key.to_vec())),
            Item::Large(l) => {
                marks.push((mark, l.header().key.to_vec()));
                l.decode(&mut Nothing).unwrap();
            }
            _ => {}
        }
    }
    assert!(marks.len() > 100);
    for ((at, db), key) in marks {
        let mut rest = Snapshot::resume(
            &bytes[at as usize..],
            at,
            db,
            Dialect::Redis,
            14,
            Options::default(),
        );
        match rest.next().unwrap() {
            Item::Entry(e) => assert_eq!((e.header.key, e.header.db), (key.as_slice(), db)),
            Item::Database(_) => {}
            _ => panic!("not a key at {at}"),
        }
    }
}

/// What was told of a module's value in pieces.
#[derive(Default)]
struct Told {
    bytes: Vec<u8>,
    ended: bool,
}

impl ValueSink for Told {
    fn module_part(&mut self, _: &str, _: u16, part: &[u8], last: bool) -> Result<()> {
        self.bytes.extend_from_slice(part);
        self.ended = last;
        Ok(())
    }
}

#[test]
fn large_values_of_modules_come_as_they_are() {
    let text = [b'x'; 200];
    // "k" as a module's value: its id, a string, a number, a double, the end.
    let mut value = vec![0x81, 0, 0, 0, 0, 0, 0, 4, 1, 5, 0x40, 200];
    value.extend(text);
    value.extend([2, 0x40, 77, 4, 1, 2, 3, 4, 5, 6, 7, 8, 0]);
    let mut bytes = b"REDIS0011".to_vec();
    bytes.extend([op::MODULE_2, 1, b'k']);
    bytes.extend(&value);
    bytes.extend([op::STRING, 1, b's', 0x40, 200]);
    bytes.extend(text);
    bytes.extend([op::EOF, 0, 0, 0, 0, 0, 0, 0, 0]);
    let options = Options {
        whole_value_limit: 100,
        ..Options::default()
    };
    for raw in [true, false] {
        let mut snapshot = Snapshot::open(bytes.as_slice(), options).unwrap();
        let Item::Large(large) = snapshot.next().unwrap() else {
            panic!("not in pieces")
        };
        assert_eq!(large.header().key, b"k");
        let mut told = Told::default();
        match raw {
            true => assert_eq!(large.copy(&mut told.bytes).unwrap(), value.len() as u64),
            false => large.decode(&mut told).unwrap(),
        }
        assert_eq!((told.bytes, told.ended), (value.clone(), !raw));
        match snapshot.next().unwrap() {
            Item::Large(l) => {
                assert_eq!(l.header().key, b"s");
                l.decode(&mut Nothing).unwrap();
            }
            _ => panic!("not in pieces"),
        }
        assert!(matches!(snapshot.next().unwrap(), Item::End));
    }
}

/// Reads a snapshot again from each place where a record begins.
fn read_again_from_everywhere(bytes: &[u8]) {
    let options = Options {
        joined: true,
        commands: true,
        ..Options::default()
    };
    let mut snapshot = Snapshot::open(bytes, options).unwrap();
    let mut places = vec![(snapshot.position(), snapshot.db())];
    let mut keys = Vec::new();
    loop {
        let place = (snapshot.position(), snapshot.db());
        match snapshot.next().unwrap() {
            Item::End => break,
            Item::Entry(e) => keys.push((place.0, e.header.key.to_vec())),
            _ => {}
        }
        places.push(place);
    }
    for (from, db) in places {
        let head = Snapshot::head_at(bytes, 0, from, options).unwrap();
        let mut rest = Snapshot::resume_with(&bytes[from as usize..], from, db, head, options);
        let mut found = Vec::new();
        loop {
            let at = rest.position();
            match rest.next().unwrap_or_else(|e| panic!("from {from}: {e}")) {
                Item::End => break,
                Item::Entry(e) => found.push((at, e.header.key.to_vec())),
                _ => {}
            }
        }
        let expected: Vec<_> = keys.iter().filter(|(at, _)| *at >= from).cloned().collect();
        assert_eq!(found, expected, "from {from}");
    }
}

#[test]
fn commands_behind_a_preamble_are_left_alone_wherever_reading_begins() {
    let mut bytes = b"REDIS0011\xfa\x0caof-preamble\xc0\x01\xfe\x00".to_vec();
    for key in [b'a', b'b', b'c'] {
        bytes.extend([op::STRING, 1, key, 1, b'v']);
    }
    bytes.extend([op::EOF, 0, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend(b"*1\r\n$4\r\nPING\r\n");
    read_again_from_everywhere(&bytes);
}

#[test]
fn a_snapshot_with_templates_is_read_again_from_before_and_behind_them() {
    let mut bytes = b"REDIS0015\xfa\x01x\x01y".to_vec();
    bytes.extend([op::OPCODE_242, 0, 1, 1, b'f', op::SELECTDB, 0]);
    bytes.extend([op::OPCODE_242, 1, 1, 1, b'g', op::RESIZEDB, 2, 0]);
    bytes.extend([op::HASH_TEMPLATE_ARRAY_REF, 1, b'a', 0, 1, b'v']);
    bytes.extend([op::HASH_TEMPLATE_ARRAY_REF, 1, b'b', 1, 1, b'w']);
    bytes.extend([op::EOF, 0, 0, 0, 0, 0, 0, 0, 0]);
    read_again_from_everywhere(&bytes);
}
