//! The digest over encodings, orders, parts and what stands beside a value.

use super::*;
use crate::rdb::encoding::listpack::{Builder, Packed};
use crate::rdb::encoding::{put_length, put_string};
use crate::rdb::file::{Options, Snapshot};
use crate::rdb::opcode;

fn digest(type_id: u8, body: &[u8]) -> u64 {
    of_body(type_id, Dialect::Redis, 11, body).unwrap().value
}

#[test]
fn encodings_do_not_matter_and_order_only_where_it_counts() {
    let mut lp = Builder::default();
    for e in [Packed::Int(7), Packed::Bytes(b"abc"), Packed::Bytes(b"x")] {
        assert!(lp.push(e));
    }
    let mut packed = Vec::new();
    put_string(&mut packed, &lp.finish());
    let plain = |items: &[&[u8]]| {
        let mut out = vec![items.len() as u8];
        items.iter().for_each(|i| put_string(&mut out, i));
        out
    };
    let set = digest(opcode::SET_LISTPACK, &packed);
    assert_eq!(set, digest(opcode::SET, &plain(&[b"abc", b"x", b"7"])));
    assert_eq!(
        set,
        digest(opcode::SET, b"\x03\xc0\x07\x03abc\x01x"),
        "an integer-encoded member"
    );
    assert_ne!(set, digest(opcode::SET, &plain(&[b"abc", b"x", b"8"])));
    let list = digest(opcode::LIST, &plain(&[b"a", b"b"]));
    assert_ne!(list, digest(opcode::LIST, &plain(&[b"b", b"a"])));
    assert_ne!(
        list,
        digest(opcode::SET, &plain(&[b"a", b"b"])),
        "the type counts"
    );
}

#[test]
fn a_string_in_parts_is_the_string() {
    for width in [Width::Bits64, Width::Bits128] {
        let digest = |parts: &[&[u8]]| {
            let mut d = Digester::new(ValueKind::String, 0, width);
            for part in parts {
                d.string_part(part, false).unwrap();
            }
            d.string_part(b"", true).unwrap();
            d.finish().unwrap()
        };
        let mut whole = Digester::new(ValueKind::String, 0, width);
        whole.string(b"hello world").unwrap();
        let whole = whole.finish().unwrap();
        assert_eq!(digest(&[b"hello", b" world"]), whole);
        assert_ne!(digest(&[b"hello", b"\0world"]), whole);
        assert_eq!(whole.wide != 0, width == Width::Bits128);
    }
}

#[test]
fn an_expiry_off_by_a_millisecond_changes_the_sum() {
    let value = of_body(0, Dialect::Redis, 11, b"\x01a").unwrap();
    let sum = |expire| {
        let mut s = SlotSum::default();
        s.add(DbIndex::ZERO, b"k", &value, expire);
        s
    };
    assert_ne!(sum(Some(ExpireAt(5))), sum(Some(ExpireAt(6))));
    assert_ne!(sum(Some(ExpireAt(0))), sum(None));
}

#[test]
fn two_values_swapped_between_two_keys_change_the_sum() {
    let (a, b) = (
        of_body(0, Dialect::Redis, 11, b"\x01a").unwrap(),
        of_body(0, Dialect::Redis, 11, b"\x01b").unwrap(),
    );
    let sum = |x: &KeyDigest, y: &KeyDigest| {
        let mut s = SlotSum::default();
        s.add(DbIndex::ZERO, b"k1", x, None);
        s.add(DbIndex::ZERO, b"k2", y, None);
        s
    };
    assert_ne!(sum(&a, &b), sum(&b, &a));
    assert_eq!(sum(&a, &b), sum(&a, &b));
}

/// A vector set of two dimensions; of each vector its name, its value and its place in the graph.
fn vectors(ranged: bool, of: &[(u8, u8, u8)]) -> Vec<u8> {
    let id = 0xbde7_2da2_bb1e_b400u64.to_be_bytes();
    let mut body = [&[0x81], id.as_slice()].concat();
    body.extend([2, 2, 2, of.len() as u8, 2, u8::from(ranged), 2, 0]);
    for (name, value, place) in of {
        body.extend([5, 1, *name, 5, 2, *value, 7, 2, 3, 2, *place, 2, 9]);
        // The range, where there is one, and the length.
        body.extend([2, 0x81, *place, 0, 0, 0, 0, 0, 0, *value]);
    }
    body.push(0);
    body
}

#[test]
fn vector_sets_are_the_same_in_any_order_and_graph() {
    let digest = |ranged, of: &[_]| of_body(7, Dialect::Redis, 12, &vectors(ranged, of)).unwrap();
    let one = digest(false, &[(b'a', 1, 4), (b'b', 2, 5)]);
    assert_eq!(one, digest(false, &[(b'b', 2, 8), (b'a', 1, 9)]));
    assert_ne!(one, digest(false, &[(b'a', 2, 4), (b'b', 1, 5)]));
    assert_ne!(one, digest(false, &[(b'a', 1, 4)]));
    assert_ne!(one, digest(true, &[(b'a', 1, 4), (b'b', 2, 5)]));
    let ranged = digest(true, &[(b'a', 1, 4), (b'b', 2, 5)]);
    assert_ne!(ranged, digest(true, &[(b'a', 1, 3), (b'b', 2, 5)]));
    // The same in pieces.
    let body = vectors(false, &[(b'b', 2, 8), (b'a', 1, 9)]);
    let dump = [&[7], body.as_slice()].concat();
    let options = Options::default();
    let mut snapshot = Snapshot::resume(
        dump.as_slice(),
        0,
        DbIndex::ZERO,
        Dialect::Redis,
        12,
        options,
    );
    let mut digester = Digester::new(ValueKind::Module, 0, Width::Bits64);
    snapshot.dumped().unwrap().decode(&mut digester).unwrap();
    assert_eq!(digester.finish(), Some(one));
    // One that is cut off.
    for n in 9..body.len() {
        assert!(of_body(7, Dialect::Redis, 12, &body[..n]).is_err() || n < 17);
    }
}

#[test]
fn a_hyperloglog_is_the_same_in_both_layouts_and_in_parts() {
    // All registers are zero; the count beside them does not matter.
    let header = |layout, count| {
        [
            b"HYLL".as_slice(),
            &[layout, 0, 0, 0, count, 0, 0, 0, 0, 0, 0, 0],
        ]
        .concat()
    };
    let sparse = [header(1, 0), vec![0x7f, 0xff]].concat();
    let dense = [header(0, 7), vec![0; 12288]].concat();
    let mut other = dense.clone();
    other[9_000] = 1;
    for width in [Width::Bits64, Width::Bits128] {
        let one = of_string(&sparse, width).unwrap();
        assert_eq!(one, of_string(&dense, width).unwrap());
        assert_ne!(one, of_string(&other, width).unwrap());
        assert_ne!(one, of_bytes(&sparse, width).unwrap());
        let in_parts = |parts: &[&[u8]]| {
            let mut digester = Digester::new(ValueKind::String, 0, width);
            for part in parts {
                digester.string_part(part, false).unwrap();
            }
            digester.string_part(b"", true).unwrap();
            digester.finish().unwrap()
        };
        assert_eq!(in_parts(&[&dense]), one);
        // What only begins like one is its bytes.
        let long = [&dense[..], b"more"].concat();
        assert_eq!(
            in_parts(&[&dense, b"more"]),
            of_string(&long, width).unwrap()
        );
        let not = b"HYLL, said the clerk.";
        assert_eq!(in_parts(&[not]), of_bytes(not, width).unwrap());
        assert_eq!(
            of_string(not, width).unwrap(),
            of_bytes(not, width).unwrap()
        );
    }
}

/// A module's value of these items, a string as it is or as LZF packs it.
fn module_value(version: u64, run: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    put_length(&mut body, 0x1234_5678_9abc_d000 | version);
    body.extend_from_slice(&[2, 7, 5]);
    body.extend_from_slice(run);
    body.push(0);
    body
}

#[test]
fn a_module_value_is_the_same_packed_or_not_and_in_parts() {
    let mut plain = Vec::new();
    put_string(&mut plain, &[b'a'; 100]);
    let packed = [0xc3, 5, 0x40, 100, 0, b'a', 0xe0, 90, 0];
    for width in [Width::Bits64, Width::Bits128] {
        let held = |body: &[u8]| {
            let mut d = Digester::new(ValueKind::Module, 0, width);
            d.module("some-type", 1, body).unwrap();
            d.finish().unwrap()
        };
        let whole = held(&module_value(1, &plain));
        assert_eq!(held(&module_value(2, &packed)), whole);
        assert_ne!(held(&module_value(1, &plain[..100])), whole);
        for size in [1, 2, 3, 7] {
            let mut d = Digester::new(ValueKind::Module, 0, width);
            for part in module_value(1, &packed).chunks(size) {
                d.module_part("some-type", 1, part, false).unwrap();
            }
            d.module_part("some-type", 1, &[], true).unwrap();
            assert_eq!(d.finish().unwrap(), whole, "pieces of {size}");
        }
        let mut other = Digester::new(ValueKind::Module, 0, width);
        (other.module("some-tyqe", 1, &module_value(1, &plain))).unwrap();
        assert_ne!(other.finish().unwrap(), whole, "the type's name counts");
    }
}
