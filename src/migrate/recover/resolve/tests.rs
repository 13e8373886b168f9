//! Trouble by table: for each kind of unit and each fate, what is done about it.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::migrate::testing;
use crate::target::Database;
use serde_json::{Value, json};

const LOADING: &str = "LOADING the dataset is in memory";
const MOVED: &str = "MOVED 7 other:1";
const ASK: &str = "ASK 7 other:1";
const TRYAGAIN: &str = "TRYAGAIN Multiple keys request during rehashing of slot";
const WRONGTYPE: &str = "WRONGTYPE Operation against a key";
const EXECABORT: &str = "EXECABORT Transaction discarded";

fn refused(text: &str) -> Fate {
    Fate::Refused(text.to_owned())
}

/// Commands parted by `;`, as one unit.
fn unit(lines: &str, fate: Fate) -> Unit {
    let (mut bytes, mut commands) = (Vec::new(), 0);
    for line in lines.split("; ") {
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        resp::command(&mut bytes, &words);
        commands += 1;
    }
    Unit {
        bytes,
        commands,
        db: Database::ZERO,
        state: false,
        fate,
    }
}

fn state(lines: &str, fate: Fate) -> Unit {
    Unit {
        state: true,
        ..unit(lines, fate)
    }
}

fn in_db(db: u32, unit: Unit) -> Unit {
    let db = testing::databases(16).get(DbIndex(db)).flatten().unwrap();
    Unit { db, ..unit }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The commands of a unit in a line.
fn line(unit: &Unit) -> String {
    let (mut at, mut args, mut lines) = (0, Vec::new(), Vec::new());
    while let Some(len) = resp::parse_command(&unit.bytes[at..], &mut args).unwrap() {
        let words: Vec<String> = (args.iter())
            .map(|range| text(&unit.bytes[at..][range.clone()]))
            .collect();
        lines.push(words.join(" "));
        at += len;
    }
    assert_eq!(lines.len() as u32, unit.commands);
    lines.join("; ")
}

fn named(keys: &[Key]) -> String {
    let names = keys.iter().map(|(db, key)| format!("{db}:{}", text(key)));
    names.collect::<Vec<_>>().join(" ")
}

fn says(action: &Action) -> String {
    match action {
        Action::Resend(unit, Some(key)) => format!("resend {} to {}", line(unit), text(key)),
        Action::Resend(unit, None) => format!("resend {} to all", line(unit)),
        Action::Redirect(unit, ask) => format!("redirect {} by {ask}", line(unit)),
        Action::Heal(keys) => format!("heal {}", named(keys)).trim_end().to_owned(),
        Action::CompareFlushed(None) => "compare all".into(),
        Action::CompareFlushed(Some(db)) => format!("compare {db}"),
        Action::CompareFunctions => "compare functions".into(),
        Action::Learn(unit, why) => format!("learn {} by {}", line(unit), word(why)),
        Action::StateRefused(keys, name, why) => {
            format!("{name} refused {} by {}", named(keys), word(why))
        }
        Action::Note(why) => format!("note {}", word(why)),
        Action::Script(name, why) => format!("script {name}: {}", word(why)),
    }
}

fn word(text: &str) -> &str {
    text.split(' ').next().unwrap_or_default()
}

/// What is known beside the units: keys that wait, keys that may expire.
struct Known {
    loading: bool,
    scan: bool,
    asks: bool,
    plan: Value,
    waits: &'static [&'static str],
    may_expire: &'static [&'static str],
}

const STREAM: Known = Known {
    loading: false,
    scan: false,
    asks: true,
    plan: Value::Null,
    waits: &[],
    may_expire: &[],
};
const LOAD: Known = Known {
    loading: true,
    ..STREAM
};
const FILE: Known = Known {
    asks: false,
    ..STREAM
};

impl Known {
    fn judges(&self, units: Vec<Unit>) -> Vec<String> {
        let members = match &self.plan {
            Value::Null => json!({}),
            plan => plan.clone(),
        };
        let job = testing::job(members);
        let has = |list: &[&str], key: &[u8]| list.iter().any(|k| k.as_bytes() == key);
        let of = Circumstances {
            loading: self.loading,
            scan: self.scan,
            asks: self.asks,
            databases: &job.databases,
            may_expire: &|key| has(self.may_expire, key),
            waits: &|db, key| db == DbIndex::ZERO && has(self.waits, key),
        };
        judge(units, &of).iter().map(says).collect()
    }

    #[track_caller]
    fn check(&self, units: Vec<Unit>, wanted: &[&str]) {
        let what = units.clone();
        assert_eq!(self.judges(units), wanted, "{what:?}");
    }

    /// The same for several fates of one unit.
    #[track_caller]
    fn check_all(&self, made: impl Fn(Fate) -> Unit, table: &[(Fate, &[&str])]) {
        for (fate, wanted) in table {
            self.check(vec![made(fate.clone())], wanted);
        }
    }
}

#[test]
fn one_command() {
    STREAM.check_all(
        |fate| unit("INCR n", fate),
        &[
            (Fate::Unsent, &["resend INCR n to n"]),
            (Fate::Uncertain, &["heal 0:n"]),
            (refused(LOADING), &["resend INCR n to n"]),
            (refused(MOVED), &["resend INCR n to n"]),
            (refused(TRYAGAIN), &["resend INCR n to n"]),
            (refused(ASK), &["redirect INCR n by ASK 7 other:1"]),
            (refused(NOTHING_THERE), &["heal 0:n"]),
            (
                refused(WRONGTYPE),
                &["learn INCR n by WRONGTYPE", "heal 0:n"],
            ),
        ],
    );
    // Only what is written is read.
    STREAM.check_all(
        |fate| unit("SINTERSTORE d a b", fate),
        &[
            (Fate::Unsent, &["resend SINTERSTORE d a b to d"]),
            (Fate::Uncertain, &["heal 0:d"]),
        ],
    );
}

#[test]
fn a_transaction() {
    STREAM.check_all(
        |fate| unit("MULTI; INCR n; APPEND a x; EXEC", fate),
        &[
            (
                Fate::Unsent,
                &["resend MULTI; INCR n; APPEND a x; EXEC to n"],
            ),
            (Fate::Uncertain, &["heal 0:n 0:a"]),
            (
                refused(EXECABORT),
                &["resend MULTI; INCR n; APPEND a x; EXEC to n"],
            ),
            (
                refused(LOADING),
                &["resend MULTI; INCR n; APPEND a x; EXEC to n"],
            ),
            (refused(NOTHING_THERE), &["heal 0:n 0:a"]),
            (
                refused(WRONGTYPE),
                &[
                    "learn MULTI; INCR n; APPEND a x; EXEC by WRONGTYPE",
                    "heal 0:n 0:a",
                ],
            ),
        ],
    );
}

#[test]
fn the_state_of_a_key() {
    STREAM.check_all(
        |fate| state("RESTORE k 0 p REPLACE", fate),
        &[
            (Fate::Unsent, &["resend RESTORE k 0 p REPLACE to k"]),
            (Fate::Uncertain, &["heal 0:k"]),
            (refused(LOADING), &["resend RESTORE k 0 p REPLACE to k"]),
            (
                refused(ASK),
                &["redirect RESTORE k 0 p REPLACE by ASK 7 other:1"],
            ),
            (
                refused("ERR Bad data format"),
                &["RESTORE refused 0:k by ERR", "heal 0:k"],
            ),
        ],
    );
    STREAM.check_all(
        |fate| state("DEL k", fate),
        &[
            (Fate::Uncertain, &["heal 0:k"]),
            (refused("ERR no"), &["DEL refused 0:k by ERR", "heal 0:k"]),
        ],
    );
}

#[test]
fn what_concerns_no_key() {
    let flush_db = |fate| in_db(3, unit("FLUSHDB", fate));
    for fate in [
        Fate::Unsent,
        Fate::Uncertain,
        refused(LOADING),
        refused("ERR no"),
    ] {
        STREAM.check(vec![unit("FLUSHALL", fate.clone())], &["compare all"]);
        STREAM.check(vec![flush_db(fate.clone())], &["compare 3"]);
        let function = unit("FUNCTION LOAD code", fate);
        STREAM.check(vec![function], &["compare functions"]);
    }
    // A file cannot be asked for its libraries.
    FILE.check_all(
        |fate| unit("FUNCTION LOAD code", fate),
        &[
            (Fate::Unsent, &["resend FUNCTION LOAD code to all"]),
            (Fate::Uncertain, &["resend FUNCTION LOAD code to all"]),
            (refused(LOADING), &["resend FUNCTION LOAD code to all"]),
            (refused("ERR it exists"), &["note ERR"]),
        ],
    );
    STREAM.check_all(
        |fate| unit("SCRIPT LOAD code", fate),
        &[
            (Fate::Unsent, &["resend SCRIPT LOAD code to all"]),
            (Fate::Uncertain, &["resend SCRIPT LOAD code to all"]),
            (refused(LOADING), &["resend SCRIPT LOAD code to all"]),
            (refused("NOPERM no"), &["note NOPERM"]),
        ],
    );
}

#[test]
fn a_script_on_keys_is_not_made_good_by_reading_them() {
    STREAM.check_all(
        |fate| unit("EVAL code 1 k", fate),
        &[
            (Fate::Unsent, &["resend EVAL code 1 k to k"]),
            (Fate::Uncertain, &["script EVAL: keys"]),
            (refused(LOADING), &["resend EVAL code 1 k to k"]),
            (refused(WRONGTYPE), &["script EVAL: WRONGTYPE"]),
            (refused(NOTHING_THERE), &["script EVAL: keys"]),
        ],
    );
    // Nothing is done about what comes behind it.
    let units = vec![
        unit("INCR a", Fate::Uncertain),
        unit("EVALSHA sha 1 k", Fate::Uncertain),
        unit("INCR b", Fate::Uncertain),
    ];
    STREAM.check(units, &["heal 0:a", "script EVALSHA: keys"]);
    // It reads what is being healed.
    let units = vec![
        unit("INCR k", Fate::Uncertain),
        unit("FCALL f 1 k", Fate::Unsent),
    ];
    STREAM.check(units, &["heal 0:k", "script FCALL: keys"]);
}

#[test]
fn what_comes_behind_a_heal_of_its_key_is_healed_as_well() {
    let units = || {
        vec![
            unit("INCR a", Fate::Uncertain),
            unit("INCR b", Fate::Unsent),
            unit("RENAME a c", Fate::Unsent),
            unit("INCR c", Fate::Unsent),
            in_db(1, unit("INCR a", Fate::Unsent)),
            unit("SINTERSTORE d a", refused(LOADING)),
            unit("SINTERSTORE e b", refused(ASK)),
            unit("APPEND d x", refused(ASK)),
        ]
    };
    STREAM.check(
        units(),
        &[
            "heal 0:a",
            "resend INCR b to b",
            "heal 0:a 0:c",
            "heal 0:c",
            "resend INCR a to a",
            "heal 0:d",
            "redirect SINTERSTORE e b by ASK 7 other:1",
            "heal 0:d",
        ],
    );
    // A key that waits already is no different, in its own database.
    let waits = Known {
        waits: &["a"],
        ..STREAM
    };
    waits.check(
        vec![
            unit("INCR a", Fate::Unsent),
            in_db(1, unit("INCR a", Fate::Unsent)),
            unit("SINTERSTORE d a", Fate::Unsent),
            unit("INCR b", Fate::Unsent),
            unit("INCR d", Fate::Unsent),
        ],
        &[
            "heal 0:a",
            "resend INCR a to a",
            "heal 0:d",
            "resend INCR b to b",
            "heal 0:d",
        ],
    );
}

#[test]
fn what_may_have_expired_meanwhile_is_read() {
    let timed = |asks, loading| Known {
        asks,
        loading,
        may_expire: &["t"],
        ..STREAM
    };
    timed(true, false).check(
        vec![
            unit("INCR t", Fate::Unsent),
            unit("INCR n", Fate::Unsent),
            unit("SINTERSTORE d t", refused(LOADING)),
            // It brings the key whole, or its node knows better.
            unit("RESTORE t 9 p", Fate::Unsent),
            unit("APPEND t x", refused(ASK)),
        ],
        &[
            "heal 0:t",
            "resend INCR n to n",
            "heal 0:d",
            "heal 0:t",
            "heal 0:t",
        ],
    );
    timed(true, false).check(
        vec![unit("RESTORE t 9 p", Fate::Unsent)],
        &["resend RESTORE t 9 p to t"],
    );
    timed(true, false).check(
        vec![unit("APPEND t x", refused(ASK))],
        &["redirect APPEND t x by ASK 7 other:1"],
    );
    timed(false, false).check(vec![unit("INCR t", Fate::Unsent)], &["resend INCR t to t"]);
    timed(true, true).check(
        vec![unit("SET t v", Fate::Unsent)],
        &["resend SET t v to t"],
    );
}

#[test]
fn a_string_of_several_is_taken_apart_while_its_slot_moves() {
    let ours = "MSET a 1 b 2";
    LOAD.check_all(
        |fate| state(ours, fate),
        &[
            (Fate::Unsent, &["resend MSET a 1 b 2 to a"]),
            (refused(MOVED), &["resend MSET a 1 b 2 to a"]),
            (
                refused(TRYAGAIN),
                &["resend SET a 1 to a", "resend SET b 2 to b"],
            ),
            (
                refused(ASK),
                &[
                    "redirect SET a 1 by ASK 7 other:1",
                    "redirect SET b 2 by ASK 7 other:1",
                ],
            ),
        ],
    );
    // One of the source's stays one, and any other command is not touched.
    STREAM.check(
        vec![unit(ours, refused(TRYAGAIN))],
        &["resend MSET a 1 b 2 to a"],
    );
    LOAD.check(
        vec![state("RESTORE k 0 p", refused(ASK))],
        &["redirect RESTORE k 0 p by ASK 7 other:1"],
    );
}

#[test]
fn a_scan_reads_whatever_was_in_trouble() {
    let scan = Known {
        scan: true,
        ..STREAM
    };
    for fate in [
        Fate::Unsent,
        Fate::Uncertain,
        refused(LOADING),
        refused(WRONGTYPE),
    ] {
        scan.check(vec![unit("DEL a b", fate)], &["heal 0:a 0:b"]);
    }
}

#[test]
fn keys_are_healed_from_the_first_database_that_leads_to_theirs() {
    let mapped = Known {
        plan: json!({"databases": {"map": {"2": 5, "5": 9}}}),
        ..STREAM
    };
    let units = vec![
        in_db(5, unit("INCR n", Fate::Uncertain)),
        in_db(1, unit("INCR n", Fate::Uncertain)),
        in_db(9, unit("INCR n", Fate::Uncertain)),
        in_db(5, unit("FLUSHDB", Fate::Uncertain)),
    ];
    // What is compared is the target's.
    mapped.check(units, &["heal 2:n", "heal 1:n", "heal 5:n", "compare 5"]);
}

#[test]
fn fatal_by_table() {
    use ErrorKind::{OutOfMemory, Refused};
    let oom = "OOM command not allowed";
    let restore = "RESTORE k 0 p";
    let table = [
        (unit("INCR n", Fate::Unsent), None, None),
        (unit("INCR n", Fate::Uncertain), None, None),
        (unit("INCR n", refused(LOADING)), None, None),
        (unit("INCR n", refused(NOTHING_THERE)), None, None),
        (
            unit("INCR n", refused(oom)),
            Some(OutOfMemory),
            Some(OutOfMemory),
        ),
        (unit("INCR n", refused(WRONGTYPE)), None, Some(Refused)),
        (
            unit("RESTORE k 0 p", refused("ERR Bad data")),
            None,
            Some(Refused),
        ),
        (
            state(restore, refused("ERR Bad data")),
            Some(Refused),
            Some(Refused),
        ),
        (state(restore, refused(LOADING)), None, None),
        (state(restore, refused(ASK)), None, None),
        (
            state(restore, refused(oom)),
            Some(OutOfMemory),
            Some(OutOfMemory),
        ),
        // Rebuilt by commands: it is read and written again first.
        (state("RPUSH k a", refused("ERR no")), None, Some(Refused)),
        (unit("FUNCTION LOAD code", refused("ERR no")), None, None),
        (unit("SCRIPT LOAD code", refused(EXECABORT)), None, None),
    ];
    for (unit, streaming, loading) in table {
        for (is_loading, wanted) in [(false, streaming), (true, loading)] {
            let found = fatal(std::slice::from_ref(&unit), is_loading);
            let what = (line(&unit), &unit.fate, is_loading);
            assert_eq!(found.as_ref().map(Error::kind), wanted, "{what:?}");
            // Another one in front of it changes nothing.
            let before = self::unit("INCR other", Fate::Unsent);
            let found = fatal(&[before, unit.clone()], is_loading);
            assert_eq!(found.map(|e| e.kind()), wanted, "{what:?}");
        }
    }
    for text in [
        "NOPERM this user has no permissions",
        "NOAUTH Authentication required.",
    ] {
        for loading in [false, true] {
            assert!(fatal(&[unit("INCR n", refused(text))], loading).is_some());
        }
    }
    let e = fatal(&[state(restore, refused("ERR Bad data"))], false).unwrap();
    assert!(e.chain().contains("\"k\"") && e.chain().contains("Bad data"));
}

#[test]
fn what_is_told_of_several_units() {
    let expired = || unit("EXPIRE k 5", refused(NOTHING_THERE));
    let units = [expired(), unit("INCR n", Fate::Unsent)];
    assert!(only_expired(&units) && wants_wait(&units));
    assert!(!wants_wait(&[expired()]));
    assert!(!only_expired(&units[1..]) && !only_expired(&[]));
    assert!(!only_expired(&[expired(), unit("INCR n", Fate::Uncertain)]));
    for (text, waits) in [
        (MOVED, false),
        (ASK, false),
        (LOADING, true),
        (WRONGTYPE, true),
    ] {
        assert_eq!(
            wants_wait(&[unit("INCR n", refused(text))]),
            waits,
            "{text}"
        );
    }
    assert_eq!(first_refusal(&units), Some(NOTHING_THERE));
    assert_eq!(first_refusal(&units[1..]), None);
    // Inside a transaction it answers QUEUED.
    assert_eq!(expecting(&expired()), [0]);
    assert!(expecting(&unit("INCR n", Fate::Unsent)).is_empty());
    assert!(expecting(&unit("MULTI; EXPIRE k 5; EXEC", Fate::Unsent)).is_empty());
    let learned = first_command(&unit("GETEX k; GET k", Fate::Unsent), |cmd| cmd.len());
    assert_eq!(learned, Some(2));
}

#[test]
fn an_mset_that_is_refused_for_itself_is_not_used_again() {
    for (line, fate, wanted) in [
        ("MSET a 1 b 2", refused("NOPERM no MSET"), true),
        ("MSET a 1 b 2", refused("ERR unknown command"), true),
        ("MSET a 1 b 2", refused("OOM full"), false),
        ("MSET a 1 b 2", refused(LOADING), false),
        ("MSET a 1 b 2", refused(TRYAGAIN), false),
        ("MSET a 1 b 2", Fate::Uncertain, false),
        ("SET a 1", refused("NOPERM no SET"), false),
    ] {
        assert_eq!(
            refused_pairs(&unit(line, fate.clone())),
            wanted,
            "{line} {fate:?}"
        );
    }
}
