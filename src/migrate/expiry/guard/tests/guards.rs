//! Which keys and fields a command is guarded for, by what was sent before it.

use super::*;

/// What was sent before (`FLUSHALL` stands for a flush, `1:` for database 1), a command, and its guards.
#[test]
fn guards_by_table() {
    let table: &[(&[&str], &str, &str)] = &[
        (&[], "INCR k", ""),
        (&["SET k v PXAT 9"], "INCR k", "k"),
        (&["PEXPIREAT k 9"], "APPEND k x", "k"),
        (&["SET k v PXAT 9"], "INCR other", ""),
        // What replaces the key or tells by itself that nothing was there.
        (&["SET k v PXAT 9"], "SET k v", ""),
        (&["SET k v PXAT 9"], "SET k v KEEPTTL", "k"),
        (&["SET k v PXAT 9"], "DEL k", ""),
        (&["SET k v PXAT 9"], "PERSIST k", ""),
        (&["SET k v PXAT 9"], "SINTERSTORE d k o", "k"),
        (&["SET d v PXAT 9"], "SINTERSTORE d k", ""),
        (&["SET k v PXAT 9"], "RENAME k n", "k"),
        (&["SET k v PXAT 9"], "RENAME n k", ""),
        // Gone, in its database, until it is made anew.
        (&["SET k v PXAT 9", "DEL k"], "INCR k", ""),
        (&["SET k v PXAT 9", "UNLINK o k"], "INCR k", ""),
        (&["SET k v PXAT 9", "GETDEL k"], "INCR k", ""),
        (&["SET k v PXAT 9", "1:DEL k"], "INCR k", "k"),
        (&["SET k v PXAT 9", "DEL k", "INCR k"], "INCR k", "k"),
        (&["SET k v PXAT 9", "DEL k", "1:INCR k"], "INCR k", ""),
        (&["SET k v PXAT 9", "DEL k", "FLUSHALL"], "INCR k", "k"),
        // Renamed and copied.
        (&["SET k v PXAT 9", "RENAME k n"], "INCR n", "n"),
        (&["SET k v PXAT 9", "RENAME k n"], "INCR k", ""),
        (&["SET k v PXAT 9", "RENAMENX k n"], "INCR n", "n"),
        (&["SET k v PXAT 9", "COPY k n"], "INCR n", "n"),
        (&["SET k v PXAT 9", "COPY k n"], "INCR k", "k"),
        (&["RENAME k n"], "INCR n", ""),
        (&["COPY k n"], "INCR n", ""),
        (&["SET k v PXAT 9", "DEL k", "RENAME o k"], "INCR k", "k"),
        // Fields.
        (&["HPEXPIREAT h 9 FIELDS 1 f"], "HINCRBY h f 1", "h h.f"),
        (&["HPEXPIREAT h 9 FIELDS 1 f"], "HINCRBY h g 1", "h"),
        (&["HPEXPIREAT h 9 FIELDS 1 f"], "HSET h f v", "h"),
        (
            &["HPEXPIREAT h 9 FIELDS 1 f", "HDEL h f"],
            "HINCRBY h f 1",
            "h",
        ),
        (
            &["HPEXPIREAT h 9 FIELDS 1 f", "HGETDEL h FIELDS 1 f"],
            "HINCRBY h f 1",
            "h",
        ),
        (
            &["HPEXPIREAT h 9 FIELDS 1 f", "HDEL h f", "HSET h f v"],
            "HINCRBY h f 1",
            "h h.f",
        ),
        (
            &["HPEXPIREAT h 9 FIELDS 1 f", "1:HDEL h f"],
            "HINCRBY h f 1",
            "h h.f",
        ),
        (
            &["HPEXPIREAT h 9 FIELDS 1 f", "HDEL h f", "FLUSHALL"],
            "HINCRBY h f 1",
            "h h.f",
        ),
        (
            &["HSETEX h PXAT 9 FIELDS 1 f v"],
            "HSETEX h KEEPTTL FIELDS 2 f v g w",
            "h h.f",
        ),
        // Nobody knows which fields of a copy have one.
        (
            &["HPEXPIREAT h 9 FIELDS 1 f", "RENAME h n"],
            "HINCRBY n g 1",
            "n n.g",
        ),
        (
            &["HPEXPIREAT h 9 FIELDS 1 f", "COPY h n"],
            "HINCRBY n f 1",
            "n n.f",
        ),
        (&["RESTORE n 0 payload"], "HINCRBY n f 1", "n n.f"),
    ];
    for (before, line, wanted) in table {
        let mut bench = Bench::new();
        for line in *before {
            match (*line, line.strip_prefix("1:")) {
                ("FLUSHALL", _) => bench.guard.observe_flush(),
                (line, None) => bench.sent(0, line),
                (_, Some(line)) => bench.sent(1, line),
            }
        }
        assert_eq!(bench.guards(0, line), *wanted, "{before:?} {line}");
    }
}

#[test]
fn what_was_read_says_whether_a_key_is_there() {
    let mut bench = Bench::new();
    bench.sent(0, "SET k v PXAT 9");
    bench.guard.observe_read(DbIndex(0), b"k", false);
    assert_eq!(bench.guards(0, "INCR k"), "");
    bench.guard.observe_read(DbIndex(0), b"k", true);
    assert_eq!(bench.guards(0, "INCR k"), "k");
}

#[test]
fn a_value_tells_what_has_an_expiry() {
    let mut bench = Bench::new();
    let note = |bench: &mut Bench, key: &'static [u8], expire, type_id| {
        let header = Header {
            type_id,
            ..header(key, expire)
        };
        (bench.guard).note_value(&header, None, Dialect::Redis);
    };
    note(&mut bench, b"plain", None, opcode::STRING);
    note(&mut bench, b"timed", Some(99), opcode::STRING);
    note(&mut bench, b"hash", None, opcode::HASH_METADATA);
    assert!(!bench.guard.may(b"plain") && bench.guard.may(b"timed") && bench.guard.may(b"hash"));
    // Which of its fields, nobody has looked.
    assert!((bench.guard).expects_field(DbIndex(2), b"hash", b"any"));
    assert!(!(bench.guard).expects_field(DbIndex(2), b"timed", b"any"));
    assert_eq!(bench.guards(2, "HINCRBY hash any 1"), "hash hash.any");
    // It goes to disk once.
    bench.guard.save().unwrap().write().unwrap();
    let relied = bench.guard.save().unwrap();
    assert!(relied.timed.is_none() && relied.files.is_empty());
    bench.again();
    assert!(bench.guard.may(b"timed") && !bench.guard.may(b"plain"));
}
