//! Each contradiction a plan can hold, and what each remarkable thing becomes.

use super::*;
use crate::plan::{OnExisting, Redacted, Secret};
use serde_json::{Value, json};

fn base() -> Value {
    json!({"name": "a", "source": {"url": "redis://s:1"}, "target": {"url": "redis://t:2"}})
}

/// The base plan with some places changed; a place is a JSON pointer to an existing parent.
fn plan(changes: &[(&str, Value)]) -> Plan {
    let mut value = base();
    for (pointer, new) in changes {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        value
            .pointer_mut(parent)
            .unwrap()
            .as_object_mut()
            .unwrap()
            .insert(key.to_string(), new.clone());
    }
    Plan::parse(&value.to_string()).unwrap()
}

fn job(changes: &[(&str, Value)]) -> Job {
    validate(&plan(changes)).unwrap()
}

#[test]
fn each_contradiction_is_refused_in_a_sentence_that_names_the_path() {
    let tls = |t: Value| vec![("/source/url", json!("rediss://s")), ("/source/tls", t)];
    let cases: Vec<(Vec<(&str, Value)>, &str)> = vec![
        (vec![("/name", json!(""))], "name is empty"),
        (vec![("/name", json!("a/b"))], "name holds '/'"),
        (vec![("/name", json!(".."))], "name begins with a dot"),
        (
            vec![("/max_loss_percent", json!(101))],
            "max_loss_percent is a share",
        ),
        (vec![("/name", json!("x".repeat(101)))], "name is longer"),
        (vec![("/source", json!({}))], "source.url is missing"),
        (
            vec![("/source/url", json!("http://x"))],
            "source.url has the scheme http://",
        ),
        (
            vec![("/source/url", json!("redis://x:0"))],
            "source.url has port 0",
        ),
        (
            vec![("/source/path", json!("d.rdb"))],
            "source.path is only for mode",
        ),
        (
            vec![("/source/mode", json!("rdb"))],
            "source.url has no meaning",
        ),
        (
            vec![("/source", json!({"mode": "rdb"}))],
            "source.path is missing",
        ),
        (
            vec![(
                "/source",
                json!({"mode": "replica", "url": "redis://s", "topology": "proxy"}),
            )],
            "source.mode \"replica\" does not",
        ),
        (
            vec![("/source/tls", json!({"ca": "x"}))],
            "source.tls.ca is given, but source.url is not TLS",
        ),
        (
            vec![("/target/tls", json!({"insecure": true}))],
            "target.tls.insecure is given",
        ),
        (tls(json!({"cert": "c"})), "source.tls.cert needs"),
        (tls(json!({"key": "k"})), "source.tls.key needs"),
        (tls(json!({"ca": ""})), "source.tls.ca is empty"),
        (
            vec![("/target/password", json!(""))],
            "target.password is empty",
        ),
        (
            vec![("/target/password", json!({}))],
            "target.password must have exactly one",
        ),
        (
            vec![("/target/password", json!({"env": "A", "file": "b"}))],
            "target.password must have exactly one",
        ),
        (
            vec![("/target/password", json!({"env": "A=b"}))],
            "target.password.env is not",
        ),
        (
            vec![("/target/password", json!({"env": "A", "refresh_s": 5}))],
            "target.password.refresh_s has",
        ),
        (
            vec![("/target/password", json!({"command": []}))],
            "target.password.command is empty",
        ),
        (
            vec![("/target/username", json!(""))],
            "target.username is empty",
        ),
        (
            vec![
                ("/target/url", json!("redis://u@t")),
                ("/target/username", json!("u")),
            ],
            "target.username is also",
        ),
        (
            vec![
                ("/target/url", json!("redis://:p@t")),
                ("/target/password", json!("p")),
            ],
            "target.password is also",
        ),
        (
            vec![("/source/address_map", json!({"h": "i:1"}))],
            "source.address_map[\"h\"] has no port",
        ),
        (
            vec![("/source/address_map", json!({"h:1": "i:x"}))],
            "source.address_map[\"h:1\"] has a port",
        ),
        (
            vec![("/target/url", json!("redis://S:1/1"))],
            "source.url and target.url are the same",
        ),
        (
            vec![
                ("/target/url", json!("redis://localhost")),
                ("/source/url", json!("redis://127.0.0.1")),
            ],
            "source.url and target.url",
        ),
        (
            vec![("/databases", json!({"include": []}))],
            "databases.include is empty",
        ),
        (
            vec![("/databases", json!({"include": [1, 1]}))],
            "databases.include names database 1 twice",
        ),
        (
            vec![("/databases", json!({"include": [4294967295u32]}))],
            "databases.include[0] is not",
        ),
        (
            vec![("/databases", json!({"map": {"x": 0}}))],
            "databases.map[\"x\"] is not",
        ),
        (
            vec![("/databases", json!({"map": {"1": 0, "01": 0}}))],
            "databases.map names database 1 twice",
        ),
        (
            vec![("/databases", json!({"include": [0], "map": {"1": 0}}))],
            "databases.map[\"1\"] maps a database that",
        ),
        (
            vec![
                ("/source/url", json!("redis://s/3")),
                ("/databases", json!({"include": [0]})),
            ],
            "source.url names database 3",
        ),
        (
            vec![("/target/url", json!("redis://t/3"))],
            "target.url names database 3, but several",
        ),
        (
            vec![
                ("/target/url", json!("redis://t/3")),
                ("/databases", json!({"include": [0], "map": {"0": 1}})),
            ],
            "target.url names database 3, and",
        ),
        (
            vec![
                ("/target/topology", json!("cluster")),
                ("/databases", json!({"include": [0, 1]})),
            ],
            "database 1 would go to database 1",
        ),
        (
            vec![
                ("/target/topology", json!("proxy")),
                ("/databases", json!({"map": {"0": 2}})),
            ],
            "database 0 would go to database 2",
        ),
        (
            vec![
                ("/target/topology", json!("cluster")),
                ("/target/url", json!("redis://t/1")),
            ],
            "target.url names database 1, but",
        ),
        (
            vec![
                ("/source/topology", json!("cluster")),
                ("/source/url", json!("redis://s/1")),
            ],
            "source.url names database 1, but",
        ),
        (
            vec![
                ("/source/mode", json!("scan")),
                ("/on_existing", json!("replace")),
            ],
            "on_existing \"replace\" does not go with source.mode \"scan\"",
        ),
        (
            vec![("/filter", json!({"include": ["a[b"]}))],
            "read filter.include[0]: the glob",
        ),
        (
            vec![("/verify", json!({"exclude": ["ok", ""]}))],
            "read verify.exclude[1]",
        ),
        (
            vec![("/filter", json!({"types": ["strin"]}))],
            "filter.types[0] is not a type",
        ),
        (
            vec![("/limits", json!({"spool_bytes": 1}))],
            "limits.spool_bytes is 1",
        ),
        (
            vec![("/cutover", json!({"hooks": {"switch": [""]}}))],
            "cutover.hooks.switch begins",
        ),
        (
            vec![("/latency", json!({"workloads": ["x"]}))],
            "latency.workloads[0]",
        ),
        (
            vec![("/latency", json!({"workloads": ["file:"]}))],
            "latency.workloads[0]",
        ),
        (
            vec![(
                "/price",
                json!({"source": -1.0, "target": 1.0, "currency": "EUR"}),
            )],
            "price.source",
        ),
        (
            vec![("/latency", json!({"rates": [0.0]}))],
            "latency.rates[0]",
        ),
        (vec![("/latency", json!({"blocks": 0}))], "latency.blocks"),
    ];
    for (changes, wanted) in cases {
        let error = validate(&plan(&changes)).expect_err(wanted);
        assert!(
            error.to_string().starts_with(wanted),
            "wanted {wanted}\n   got {error}"
        );
        assert_eq!(error.exit_code(), 2);
    }
}

#[test]
fn a_token_of_entra_id_has_one_identity_and_nothing_beside_it() {
    let of = |password: &str| {
        let text = format!(
            r#"{{"name": "a", "source": {{"url": "redis://s", "password": {password}}}, "target": {{"url": "redis://t"}}}}"#
        );
        Plan::parse(&text).and_then(|plan| validate(&plan))
    };
    for identity in [r#""system""#, r#""environment""#, r#"{"client_id": "c"}"#] {
        let job = of(&format!(r#"{{"entra": {{"identity": {identity}}}}}"#));
        assert_eq!(job.is_ok(), cfg!(feature = "entra"), "{identity}");
    }
    for (wrong, says) in [
        (r#"{"entra": {"identity": "sistem"}}"#, "system"),
        (r#"{"entra": {"identity": {"client": "c"}}}"#, "client_id"),
        (r#"{"entra": {"identity": {"client_id": ""}}}"#, "entra"),
        (r#"{"entra": {}}"#, "identity"),
        (r#"{"entra": {"identity": "system"}, "env": "A"}"#, "beside"),
        (
            r#"{"entra": {"identity": "system"}, "refresh_s": 9}"#,
            "beside",
        ),
    ] {
        let e = of(wrong).unwrap_err();
        let said = format!("{e} {}", e.remedy());
        assert!(
            said.contains("source.password") && said.contains(says),
            "{said}"
        );
    }
}

#[test]
fn what_is_remarkable_is_a_warning() {
    for (changes, wanted) in [
        (
            vec![("/target/password", json!("s3cret"))],
            "target.password holds a password as plain text",
        ),
        (
            vec![("/target/url", json!("redis://:s3cret@t"))],
            "target.url holds a password",
        ),
        (
            vec![("/source/username", json!("u"))],
            "source has a username and no password",
        ),
        (
            vec![
                ("/source/url", json!("rediss://s")),
                ("/source/tls", json!({"insecure": true})),
            ],
            "source.tls.insecure accepts",
        ),
        (
            vec![("/source/url", json!("redis://s/0"))],
            "source.url names database 0, so only",
        ),
        (
            vec![("/target/url", json!("redis://t/0"))],
            "target.url names database 0, which has no",
        ),
        (
            vec![("/databases", json!({"include": [0, 1], "map": {"1": 0}}))],
            "databases 0 and 1 are merged into database 0",
        ),
        (
            vec![("/databases", json!({"map": {"1": 0}}))],
            "databases 0 and 1 are merged into database 0",
        ),
    ] {
        let job = job(&changes);
        assert!(
            matches!(&job.warnings[..], [one] if one.starts_with(wanted)),
            "{wanted}: {:?}",
            job.warnings
        );
        assert!(!format!("{job:?}").contains("s3cret"));
    }
    assert!(job(&[]).warnings.is_empty());
    assert!(
        job(&[("/databases", json!({"map": {"1": 0, "0": 1}}))])
            .warnings
            .is_empty(),
        "a swap is no merge"
    );
}

#[test]
fn the_targets_own_keys_can_be_kept_from_a_server_and_from_a_file() {
    let skip = ("/on_existing", json!("skip"));
    let rdb = json!({"mode": "rdb", "path": "dump.rdb"});
    for changes in [vec![skip.clone()], vec![skip, ("/source", rdb)]] {
        assert_eq!(job(&changes).on_existing, OnExisting::Skip);
    }
}

#[test]
fn databases_are_included_and_mapped() {
    let of = |d: Value| job(&[("/databases", d)]).databases;
    let all = of(json!({}));
    assert!(all.is_identity());
    assert_eq!(all.map(DbIndex(7)), Some(DbIndex(7)));
    let some = of(json!({"include": [0, 1], "map": {"1": 4}}));
    assert_eq!(
        [0, 1, 2].map(|d| some.map(DbIndex(d))),
        [Some(DbIndex(0)), Some(DbIndex(4)), None]
    );
    let by_url = job(&[
        ("/source/url", json!("redis://s/3")),
        ("/target/url", json!("redis://t/5")),
    ])
    .databases;
    assert_eq!(
        [3, 5].map(|d| by_url.map(DbIndex(d))),
        [Some(DbIndex(5)), None]
    );
}

#[test]
fn a_filter_takes_include_without_exclude() {
    let filter = job(&[(
        "/filter",
        json!({"include": ["s:*"], "exclude": ["*:tmp"], "types": ["hash"]}),
    )])
    .filter;
    assert!(filter.accepts(b"s:1") && !filter.accepts(b"s:tmp") && !filter.accepts(b"x"));
    assert!(filter.accepts_value("hash", true) && !filter.accepts_value("set", true));
    assert!(
        job(&[]).filter.is_empty()
            && job(&[]).filter.accepts(b"\xff")
            && job(&[]).filter.accepts_value("set", false)
    );
}

#[test]
fn a_filter_by_expiry_looks_inside() {
    let filter = job(&[("/filter", json!({"expiry": "without"}))]).filter;
    assert!(filter.looks_inside() && !filter.is_empty());
    assert!(filter.accepts_value("set", false) && !filter.accepts_value("set", true));
    assert_eq!(filter.to_string(), "without an expiry");
}

#[test]
fn two_prefixes_cannot_become_one() {
    let plan = plan(&[("/rename", json!({"a:": "c:", "b:": "c:"}))]);
    let error = validate(&plan).unwrap_err().to_string();
    assert!(error.contains(r#"both "a:" and "b:" to "c:""#), "{error}");
}

#[test]
fn an_endpoint_shows_its_url_without_the_password() {
    let job = job(&[("/target/url", json!("rediss://us%25er:p@[::1]:7/0"))]);
    assert_eq!(job.target.redacted_url(), "rediss://us%er@[::1]:7/0");
    assert_eq!(job.target.address(), "[::1]:7");
    assert_eq!(
        job.target.password,
        Some(Secret::Plain(Redacted::new("p".into())))
    );
}

#[test]
fn the_fingerprint_changes_with_what_is_moved_and_not_with_how() {
    let of = |changes: &[(&str, Value)]| job(changes).fingerprint;
    let base = of(&[]);
    assert_eq!(
        base,
        of(&[
            ("/source/password", json!("p")),
            ("/on_existing", json!("replace")),
            ("/limits", json!({"keys_per_s": 5}))
        ])
    );
    let changed = |now: String| {
        base.split(' ')
            .zip(now.split(' '))
            .filter(|(a, b)| a != b)
            .map(|(a, _)| a.split_once('=').unwrap().0.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        changed(of(&[("/source/url", json!("redis://s:9"))])),
        ["source"]
    );
    assert_eq!(
        changed(of(&[("/on_existing", json!("skip"))])),
        ["on_existing"]
    );
    assert_eq!(
        changed(of(&[("/target/url", json!("redis://s:9"))])),
        ["target"]
    );
    assert_eq!(
        changed(of(&[("/databases", json!({"include": [0]}))])),
        ["databases"]
    );
    for (path, value) in [
        ("/filter", json!({"include": ["a"]})),
        ("/filter", json!({"expiry": "with"})),
        ("/rename", json!({"a:": "b:"})),
    ] {
        assert_eq!(changed(of(&[(path, value)])), ["filter"]);
    }
}

#[test]
fn what_listens_for_notifications_has_its_own_name_at_a_source_that_is_scanned() {
    for name in ["PSUBSCRIBE", "ping"] {
        for (mode, is_refused) in [("auto", true), ("scan", true), ("replica", false)] {
            let names = ("/source/commands", json!({ name: "x9" }));
            let judged = validate(&plan(&[names, ("/source/mode", json!(mode))]));
            let refused = judged
                .err()
                .is_some_and(|e| e.to_string().contains("listen"));
            assert_eq!(refused, is_refused, "{name} {mode}");
        }
    }
}
