//! The tests' own tools do what they claim: servers start, clusters form, the judge sees every kind of difference.

use crate::support::cluster::Cluster;
use crate::support::compare::{Rules, compare};
use crate::support::dataset::{Fill, fill};
use crate::support::server::{Server, Setup, find};
use crate::support::side::Side;
use crate::support::tls::Tls;
use crate::support::traffic::{self, Mix, Options, wrong_counters};
use crate::support::{need, wait_until};
use std::time::Duration;

fn side(server: &Server) -> Side {
    Side::open(&server.url(), false).expect("the server answers")
}

#[test]
fn the_judge_finds_a_replica_equal_under_traffic() {
    let all = [
        "redis-6.0",
        "redis-6.2",
        "redis-7.0",
        "redict-7.3",
        "redis-8.0",
        "valkey-8.0",
    ];
    let mut names: Vec<String> = all
        .into_iter()
        .chain(["valkey-8.1", "valkey-9.1"])
        .filter_map(find)
        .collect();
    if names.is_empty() {
        let Some([name]) = need(["any"]) else { return };
        names.push(name);
    }
    names.iter().for_each(|name| replica_is_equal(name));
}

fn replica_is_equal(name: &str) {
    println!("{name}");
    let source = Server::start(name);
    fill(&mut side(&source), &Fill::new(5_000)).expect("the data set is written");
    let replica = Setup::new(name).replica_of(&source).start();
    let options = Options {
        seconds: 3,
        ..Options::new(&source.url(), false)
    };
    let report = traffic::start(&options).expect("the traffic starts").wait();
    assert!(report.total() > 5_000, "{report:?}");
    println!("{:?} {:?}", report.acknowledged, report.refused);
    assert!(report.broken.is_empty(), "{:?}", report.broken);
    assert_eq!(source.run("WAIT 1 5000").int(), Some(1));
    let found = compare(&mut side(&source), &mut side(&replica), &Rules::default())
        .expect("the judge reads");
    assert!(found.equal() && found.keys_a > 4_000, "{name}: {found}");
    let wrong =
        wrong_counters(&mut side(&replica), &report.counters).expect("the counters are read");
    assert!(wrong.is_empty() && !report.counters.is_empty(), "{wrong:?}");
}

#[test]
fn the_judge_sees_every_kind_of_difference() {
    let Some([name]) = need(["any"]) else { return };
    let source = Server::start(&name);
    let what = Fill {
        expiring_soon: false,
        ..Fill::new(1_500)
    };
    fill(&mut side(&source), &what).expect("the data set is written");
    let copy = Setup::new(&name).replica_of(&source).start();
    // Some servers count a replica for WAIT before it has loaded the snapshot.
    wait_until("the copy is loaded", Duration::from_secs(20), || {
        let link = copy.client().info("replication", "master_link_status");
        link.is_ok_and(|status| status == "up")
    });
    copy.run("REPLICAOF NO ONE");
    let changes = [
        ("SET zoo:raw other", "different"),
        ("DEL zoo:lzf", "missing"),
        ("SET zoo:new 1", "extra"),
        ("RPUSH zoo:list:small one", "different"),
        ("SREM zoo:set:int16 7", "different"),
        ("ZADD zoo:zset:odd-scores 3.0000000000000009 f", "different"),
        ("HSET zoo:hash:hashtable field other", "different"),
        ("XDEL zoo:stream:small 1001-0", "different"),
        ("XACK zoo:stream:groups second 1000-1", "different"),
        ("XGROUP DESTROY zoo:stream:groups unread", "different"),
        ("PEXPIRE zoo:embstr 1000000", "different"),
        ("RENAME zoo:set:int32 zoo:list:lzf", "different"),
    ];
    for (words, _) in changes {
        copy.run(words);
    }
    let found = compare(&mut side(&source), &mut side(&copy), &Rules::default());
    let found = found.expect("the judge reads");
    for (words, kind) in changes {
        let key = words
            .split(' ')
            .find(|w| w.starts_with("zoo:"))
            .unwrap_or_default();
        let findings = match kind {
            "missing" => &found.missing,
            "extra" => &found.extra,
            _ => &found.different,
        };
        // What was renamed is missing; what it was renamed to is of another type.
        let missing = found.missing.kept.iter().any(|(k, _)| k == key.as_bytes());
        let seen = missing || findings.kept.iter().any(|(k, _)| k == key.as_bytes());
        assert!(seen, "{words} was not seen: {found}");
    }
    let all = found.missing.count + found.extra.count + found.different.count;
    // Two changes meet in one stream; the rename counts twice.
    assert_eq!(all, changes.len() as u64, "{found}");
}

#[test]
fn a_cluster_forms_with_replicas() {
    let Some([name]) = need(["any"]) else { return };
    let cluster = Cluster::with(&Setup::new(&name), 3, 1);
    assert_eq!(cluster.replicas().len(), 3);
    let mut side = cluster.side();
    fill(&mut side, &Fill::new(3_000)).expect("the data set is written");
    let options = Options {
        seconds: 2,
        ..Options::new(&cluster.url(), true)
    };
    let report = traffic::start(&options).expect("the traffic starts").wait();
    assert!(
        report.total() > 3_000 && report.broken.is_empty(),
        "{report:?}"
    );
    let crossed: Vec<_> = report
        .refused
        .values()
        .filter(|(_, text)| text.starts_with("CROSSSLOT"))
        .collect();
    assert!(crossed.is_empty(), "{crossed:?}");
}

#[test]
fn a_server_takes_tls_and_acl() {
    let Some([name]) = need(["valkey-8.1"]) else {
        return;
    };
    let Some(tls) = Tls::make() else {
        return crate::support::skip("needs the openssl program");
    };
    let server = Setup::new(&name)
        .tls(&tls)
        .line("user app on >secret ~* &* +@all")
        .line("user default off")
        .start();
    let url = format!("redis://app:secret@{}", server.address());
    assert!(Side::open(&url, false).is_ok());
    assert!(Side::open(&server.url(), false).is_err());
    assert_ne!(server.tls_port(), server.port());
}

#[test]
fn traffic_stops_by_count() {
    let Some([name]) = need(["any"]) else { return };
    let server = Server::start(&name);
    let options = Options {
        count: 1_001,
        mix: Mix::Counters,
        ..Options::new(&server.url(), false)
    };
    let report = traffic::start(&options).expect("the traffic starts").wait();
    assert_eq!(report.total(), 1_001);
}
