//! What the file loop must survive and where it can go on.

use super::*;

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

#[test]
fn a_modules_value_comes_whole_where_others_come_in_pieces() {
    let text = [b'x'; 200];
    // "k" as a module's value: its id, a string, the end; "s" as a string of as many bytes.
    let mut bytes = b"REDIS0011".to_vec();
    bytes.extend([op::MODULE_2, 1, b'k', 0x81, 0, 0, 0, 0, 0, 0, 0, 1]);
    bytes.extend([5, 0x40, 200]);
    bytes.extend(text);
    bytes.push(0);
    bytes.extend([op::STRING, 1, b's', 0x40, 200]);
    bytes.extend(text);
    bytes.extend([op::EOF, 0, 0, 0, 0, 0, 0, 0, 0]);
    let options = Options {
        whole_value_limit: 100,
        ..Options::default()
    };
    let mut snapshot = Snapshot::open(bytes.as_slice(), options).unwrap();
    assert!(matches!(snapshot.next().unwrap(), Item::Entry(e) if e.header.key == b"k"));
    match snapshot.next().unwrap() {
        Item::Large(l) => {
            assert_eq!(l.header().key, b"s");
            l.decode(&mut Nothing).unwrap();
        }
        _ => panic!("not in pieces"),
    }
    assert!(matches!(snapshot.next().unwrap(), Item::End));
}
