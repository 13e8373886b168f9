//! Properties of values: parts joined are the value, a converted value is the same value, and no bytes cost more than
//! they are worth.

use keyferry::ExpireAt;
use keyferry::Result;
use keyferry::formats::digest;
use keyferry::formats::rdb::encoding::{Builder, Packed};
use keyferry::formats::rdb::encoding::{put_length, put_string};
use keyferry::formats::rdb::file::{Item, Options, Snapshot};
use keyferry::formats::rdb::opcode::{self as op, Dialect};
use keyferry::formats::rdb::payload::{self, Fit, KNOWN};
use keyferry::formats::rdb::value::{self, ValueSink};
use keyferry::formats::rdb::value::{StreamId, StreamMeta};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

/// A value in the bytes of a type, made here.
#[derive(Debug, Clone)]
struct Made {
    type_id: u8,
    dialect: Dialect,
    body: Vec<u8>,
}

fn made(type_id: u8, body: Vec<u8>) -> Made {
    let valkey = type_id == op::HASH_22 || type_id == op::PATH_HASH;
    Made {
        type_id,
        dialect: if valkey {
            Dialect::Valkey
        } else {
            Dialect::Redis
        },
        body,
    }
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        vec(any::<u8>(), 0..40),
        any::<i64>().prop_map(|n| n.to_string().into_bytes()),
        vec(any::<u8>(), 60..70),
    ]
}

fn listpack(elements: &[Vec<u8>]) -> Vec<u8> {
    let mut pack = Builder::default();
    for e in elements {
        assert!(pack.push(Packed::Bytes(e)));
    }
    let mut body = Vec::new();
    put_string(&mut body, &pack.finish());
    body
}

fn value() -> impl Strategy<Value = Made> {
    let items = || vec(bytes(), 1..40);
    let map = || btree_map(bytes(), bytes(), 1..40);
    let timed = || btree_map(bytes(), (bytes(), prop::option::of(1..i64::MAX / 2)), 1..40);
    let scores = || {
        btree_map(
            bytes(),
            any::<f64>().prop_filter("a number", |f| !f.is_nan()),
            1..40,
        )
    };
    prop_oneof![
        bytes().prop_map(|b| {
            let mut body = Vec::new();
            put_string(&mut body, &b);
            made(op::STRING, body)
        }),
        items().prop_map(|items| {
            let mut body = Vec::new();
            put_length(&mut body, items.len() as u64);
            items.iter().for_each(|i| put_string(&mut body, i));
            made(op::LIST, body)
        }),
        (items(), items(), bytes()).prop_map(|(a, b, plain)| {
            let mut body = vec![3, 2];
            body.extend(listpack(&a));
            body.push(1);
            put_string(&mut body, &plain);
            body.push(2);
            body.extend(listpack(&b));
            made(op::LIST_QUICKLIST_2, body)
        }),
        map().prop_map(|m| {
            let members: Vec<Vec<u8>> = m.into_keys().collect();
            made(op::SET_LISTPACK, listpack(&members))
        }),
        map().prop_map(|m| {
            let mut body = Vec::new();
            put_length(&mut body, m.len() as u64);
            m.keys().for_each(|k| put_string(&mut body, k));
            made(op::SET, body)
        }),
        scores().prop_map(|m| {
            let mut body = Vec::new();
            put_length(&mut body, m.len() as u64);
            for (member, score) in &m {
                put_string(&mut body, member);
                body.extend_from_slice(&score.to_le_bytes());
            }
            made(op::ZSET_2, body)
        }),
        map().prop_map(|m| {
            let flat: Vec<Vec<u8>> = m.into_iter().flat_map(|(f, v)| [f, v]).collect();
            made(op::HASH_LISTPACK, listpack(&flat))
        }),
        timed().prop_map(|m| {
            let mut body = Vec::new();
            put_length(&mut body, m.len() as u64);
            for (field, (value, at)) in &m {
                put_string(&mut body, field);
                put_string(&mut body, value);
                body.extend_from_slice(&at.unwrap_or(-1).to_le_bytes());
            }
            made(op::HASH_22, body)
        }),
        (map(), map()).prop_map(|(a, b)| {
            let mut body = vec![2];
            for (path, fields) in [(&b""[..], &a), (b"/p", &b)] {
                put_string(&mut body, path);
                put_length(&mut body, fields.len() as u64);
                for (field, value) in fields {
                    put_string(&mut body, field);
                    put_string(&mut body, value);
                }
            }
            made(op::PATH_HASH, body)
        }),
        timed().prop_map(|m| {
            let least = m.values().filter_map(|v| v.1).min().unwrap_or(1);
            let mut body = least.to_le_bytes().to_vec();
            put_length(&mut body, m.len() as u64);
            for (field, (value, at)) in &m {
                put_length(&mut body, at.map_or(0, |at| (at - least + 1) as u64));
                put_string(&mut body, field);
                put_string(&mut body, value);
            }
            made(op::HASH_METADATA, body)
        }),
    ]
}

/// Everything a sink is told, in its order; parts of a string joined.
#[derive(Default, Debug, PartialEq)]
struct Told(Vec<String>, Vec<u8>);

impl ValueSink for Told {
    fn string(&mut self, value: &[u8]) -> Result<()> {
        self.0.push(format!("{value:?}"));
        Ok(())
    }
    fn string_part(&mut self, part: &[u8], last: bool) -> Result<()> {
        self.1.extend_from_slice(part);
        if last {
            self.0.push(format!("{:?}", std::mem::take(&mut self.1)));
        }
        Ok(())
    }
    fn list_item(&mut self, item: &[u8]) -> Result<()> {
        self.0.push(format!("{item:?}"));
        Ok(())
    }
    fn set_member(&mut self, member: &[u8]) -> Result<()> {
        self.0.push(format!("{member:?}"));
        Ok(())
    }
    fn zset_member(&mut self, member: &[u8], score: f64) -> Result<()> {
        self.0.push(format!("{member:?} {:x}", score.to_bits()));
        Ok(())
    }
    fn hash_field(&mut self, field: &[u8], value: &[u8], at: Option<ExpireAt>) -> Result<()> {
        self.0.push(format!("{field:?} {value:?} {at:?}"));
        Ok(())
    }
    fn path_field(&mut self, path: &[u8], field: &[u8], value: &[u8]) -> Result<()> {
        self.0.push(format!("{path:?} {field:?} {value:?}"));
        Ok(())
    }
    fn stream_entry(&mut self, id: StreamId, fields: &[(Vec<u8>, Vec<u8>)]) -> Result<()> {
        self.0.push(format!("{id} {fields:?}"));
        Ok(())
    }
    fn stream_meta(&mut self, meta: &StreamMeta) -> Result<()> {
        self.0.push(format!("{meta:?}"));
        Ok(())
    }
}

fn file_of(made: &Made) -> Vec<u8> {
    let magic: &[u8] = match made.dialect {
        Dialect::Redis => b"REDIS0015",
        Dialect::Valkey => b"VALKEY081",
    };
    let mut file = [magic, &[made.type_id, 3], b"key", &made.body].concat();
    file.extend_from_slice(&[op::EOF, 0, 0, 0, 0, 0, 0, 0, 0]);
    file
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..Default::default() })]

    #[test]
    fn parts_joined_are_the_value(made in value()) {
        let mut whole = Told::default();
        value::decode(made.type_id, made.dialect, 12, &made.body, 0, &mut whole).unwrap();
        let file = file_of(&made);
        for limit in [0, 1 << 20] {
            let options = Options { whole_value_limit: limit, unpacked_limit: limit as u64, ..Options::default() };
            let mut snapshot = Snapshot::open(file.as_slice(), options).unwrap();
            let mut told = Told::default();
            loop {
                match snapshot.next().unwrap() {
                    Item::End => break,
                    Item::Large(large) => large.decode(&mut told).unwrap(),
                    Item::Entry(e) => {
                        prop_assert_eq!(e.value, made.body.as_slice());
                        value::decode(made.type_id, made.dialect, 12, e.value, 0, &mut told).unwrap();
                    }
                    _ => {}
                }
            }
            prop_assert_eq!(&told, &whole);
        }
    }

    #[test]
    fn a_converted_value_is_the_same_value(made in value()) {
        let before = digest::of_body(made.type_id, made.dialect, 12, &made.body).unwrap();
        let mut converted = 0;
        for (name, target) in KNOWN {
            if payload::fit(made.type_id, made.dialect, 12, &made.body, &target) != Fit::Transcode {
                continue;
            }
            let mut out = Vec::new();
            let new = payload::transcode(made.type_id, made.dialect, 12, &made.body, &target, &mut out).unwrap();
            let footer = u32::from(payload::footer_version(&target));
            let after = digest::of_body(new, Dialect::of_version(footer), footer, &out).unwrap();
            prop_assert_eq!(&before, &after, "{}", name);
            // What was made for a target is taken by it as it is.
            prop_assert_eq!(payload::fit(new, Dialect::of_version(footer), footer, &out, &target), Fit::AsIs);
            converted += 1;
        }
        prop_assert!(converted > 0 || made.type_id < op::ZSET_2 || made.type_id == op::PATH_HASH);
    }

    #[test]
    fn a_hash_with_a_template_is_the_plain_hash(m in btree_map(bytes(), bytes(), 1..40)) {
        let mut pairs: Vec<(Vec<u8>, Vec<u8>)> = m.into_iter().collect();
        pairs.sort_by(|a, b| (a.0.len(), &a.0).cmp(&(b.0.len(), &b.0)));
        let (mut names, mut values) = (Vec::new(), Vec::new());
        let mut plain = Vec::new();
        put_length(&mut plain, pairs.len() as u64);
        for (name, value) in &pairs {
            put_string(&mut names, name);
            put_string(&mut values, value);
            put_string(&mut plain, name);
            put_string(&mut plain, value);
        }
        let mut count = Vec::new();
        put_length(&mut count, pairs.len() as u64);
        let mut packed = vec![b"0".to_vec()];
        packed.extend(pairs.iter().map(|p| p.1.clone()));
        let packed = listpack(&packed);
        let records = [
            &[242, 0][..], &count, &names,
            &[29, 1, b'a', 1], &count, &names, &packed,
            &[30, 1, b'a'], &packed,
            &[31, 1, b'a', 1], &count, &names, &values,
            &[32, 1, b'a', 0], &values,
        ].concat();
        let file = [b"REDIS0015".as_slice(), &records, &[op::EOF], &[0; 8]].concat();
        let mut expected = Told::default();
        value::decode(op::HASH, Dialect::Redis, 15, &plain, 0, &mut expected).unwrap();
        for limit in [0, 1 << 20] {
            let options = Options { whole_value_limit: limit, ..Options::default() };
            let mut snapshot = Snapshot::open(file.as_slice(), options).unwrap();
            let mut keys = 0;
            loop {
                let mut told = Told::default();
                match snapshot.next().unwrap() {
                    Item::End => break,
                    Item::Large(large) => large.decode(&mut told).unwrap(),
                    Item::Entry(e) => {
                        prop_assert_eq!(e.header.type_id, op::HASH);
                        value::decode(op::HASH, Dialect::Redis, 15, e.value, 0, &mut told).unwrap();
                    }
                    _ => continue,
                }
                keys += 1;
                prop_assert_eq!(&told, &expected);
            }
            prop_assert_eq!(keys, 4);
        }
        for (type_id, body) in [
            (29, [&[1][..], &count, &names, &packed].concat()),
            (31, [&[1][..], &count, &names, &values].concat()),
        ] {
            let mut dump = Vec::new();
            payload::seal(&mut dump, &[], type_id, &body, 15);
            let opened = payload::open(&dump).unwrap();
            let mut told = Told::default();
            value::decode(opened.type_id, Dialect::Redis, 15, &opened.body, 0, &mut told).unwrap();
            prop_assert_eq!(&told, &expected);
        }
    }

    #[test]
    fn any_bytes_end_in_order(noise in vec(any::<u8>(), 0..300), type_id in 0u8..34, valkey: bool) {
        let dialect = if valkey { Dialect::Valkey } else { Dialect::Redis };
        let made = Made { type_id, dialect, body: noise };
        let _ = value::decode(type_id, dialect, 12, &made.body, 0, &mut Told::default());
        let _ = keyferry::write_json(file_of(&made).as_slice(), &mut std::io::sink(), true);
        for (_, target) in KNOWN {
            let mut out = Vec::new();
            let _ = payload::fit(type_id, dialect, 12, &made.body, &target);
            let _ = payload::transcode(type_id, dialect, 12, &made.body, &target, &mut out);
            // Plain text of integers is at most twenty times its bytes.
            prop_assert!(out.len() <= 32 * made.body.len() + 64 + 264 * made.body.len());
        }
    }
}
