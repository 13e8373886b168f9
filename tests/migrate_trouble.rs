//! What can go wrong at either end: each ends in the exit code and the sentence of the contract, and can be run again.

use crate::support::cluster::Cluster;
use crate::support::dataset::fill_volume;
use crate::support::keyferry::{Outcome, Plan};
use crate::support::server::{Server, Setup, free_port};
use crate::support::story::{Endpoint, Story};
use crate::support::wire::{Client, Command};
use crate::support::{need, skip, tls::Tls, wait_until};
use serde_json::json;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
/// What a source logs when it cuts a replica that does not keep up.
const CUT: &str = "output buffer limits";
/// The limits that cut a replica soon, and no large backlog that would raise them.
const SMALL_BUFFER: [&str; 2] = [
    "client-output-buffer-limit replica 32mb 16mb 10",
    "repl-backlog-size 1mb",
];

#[test]
fn a_source_that_is_down_ends_with_3() {
    let Some([name]) = need(["any"]) else { return };
    let target = Server::start(&name);
    let nobody = format!("redis://127.0.0.1:{}", free_port().expect("a port"));
    let plan = Plan::new(&nobody, &target.url());
    let outcome = plan
        .start("migrate --json")
        .wait(Duration::from_secs(120))
        .exits(3);
    outcome.says(&["source", nobody.trim_start_matches("redis://")]);
    assert_eq!(target.run("DBSIZE").int(), Some(0));
}

/// However often it is looked at: the plan's patience is one.
#[test]
fn a_target_that_stays_away_ends_with_3() {
    let Some([name]) = need(["any"]) else { return };
    let (source, mut target) = (Server::start(&name), Server::start(&name));
    let mut plan = Plan::new(&source.url(), &target.url());
    plan.set("/limits", json!({ "outage_s": 3 }));
    let mut running = plan.start("migrate --json");
    plan.wait_caught_up(&mut running, Duration::from_secs(60));
    target.kill();
    source.run("SET a 1");
    let outcome = running.wait(Duration::from_secs(60)).exits(3);
    outcome.says(&["the target was not usable for 3 s"]);
}

#[test]
fn a_target_that_refuses_the_password_ends_with_3() {
    let Some([name]) = need(["any"]) else { return };
    let source = Server::start(&name);
    source.run("SET a 1");
    let target = Setup::new(&name).line("requirepass right-horse").start();
    let mut plan = Plan::new(&source.url(), &target.url());
    std::fs::write(plan.dir().join("password"), "wrong-horse\n").expect("the password is written");
    plan.set("/target/password", json!({ "file": "password" }));
    let outcome = plan
        .run("migrate --json")
        .exits(3)
        .says(&["target", "password"]);
    assert!(
        !outcome.stderr.contains("wrong-horse"),
        "a secret is shown: {}",
        outcome.stderr
    );
    // The right password, and the same command goes on.
    std::fs::write(plan.dir().join("password"), "right-horse\n").expect("the password is written");
    plan.run("migrate --until caught-up --json").exits(0);
    plan.run("verify --json").exits(0);
}

#[test]
fn a_full_target_ends_with_3_and_goes_on_when_it_has_room() {
    let Some([name]) = need(["any"]) else { return };
    let story = Story::new(
        Endpoint::alone(Setup::new(&name)),
        Endpoint::alone(
            Setup::new(&name).lines(&["maxmemory 20mb", "maxmemory-policy noeviction"]),
        ),
    );
    story.fill(2_000);
    fill_volume(&mut story.source.nodes()[0].client(), 40_000, 1_000)
        .expect("the volume is written");
    story
        .plan
        .run("migrate --json")
        .exits(3)
        .says(&["target", "memory"]);
    story.target.nodes()[0].run("CONFIG SET maxmemory 0");
    story.plan.run("migrate --until caught-up --json").exits(0);
    story.verify();
    story.judge();
}

#[test]
fn a_target_with_keys_is_refused_before_anything_is_written() {
    let Some([name]) = need(["any"]) else { return };
    let story = Story::new(
        Endpoint::alone(Setup::new(&name)),
        Endpoint::cluster(Setup::new(&name)),
    );
    story.fill(500);
    story
        .target
        .side()
        .run(&Command::new("SET").key("already-here").arg("1"))
        .expect("a key is set");
    story
        .plan
        .run("migrate --json")
        .exits(3)
        .says(&["target", "on_existing"]);
    assert_eq!(story.target.side().size().ok(), Some(1));
}

#[test]
fn existing_keys_are_replaced_or_skipped_as_the_plan_says() {
    let Some([name]) = need(["any"]) else { return };
    for (policy, expected) in [("replace", "from the source"), ("skip", "already here")] {
        let (source, target) = (Server::start(&name), Server::start(&name));
        let set = |server: &Server, key: &str, value: &str| {
            server
                .client()
                .expect(&Command::new("SET").key(key).arg(value))
                .expect("a key is set");
        };
        set(&source, "both", "from the source");
        set(&source, "new", "from the source");
        set(&target, "both", "already here");
        let mut plan = Plan::new(&source.url(), &target.url());
        plan.set("/on_existing", json!(policy));
        plan.run("migrate --until caught-up --json").exits(0);
        assert_eq!(target.run("GET both").text(), expected, "{policy}");
        assert_eq!(target.run("GET new").text(), "from the source", "{policy}");
        // A key that the plan says to keep is no difference.
        let outcome = plan.run("verify --json").exits(0);
        assert_eq!(outcome.json["equal"], true, "{}", outcome.stdout);
    }
}

#[test]
fn an_expiry_off_by_more_than_the_tolerance_is_a_difference() {
    let Some([name]) = need(["any"]) else { return };
    let (source, target) = (Server::start(&name), Server::start(&name));
    source.run("SET near 1 PX 900000");
    source.run("SET far 1 PX 900000");
    source.run("SET gone 1 PX 900000");
    let mut plan = Plan::new(&source.url(), &target.url());
    plan.set("/verify", json!({ "ttl_tolerance_ms": 5000 }));
    plan.run("migrate --until caught-up --json").exits(0);
    plan.run("verify --json").exits(0);
    target.run("PEXPIRE near 899000");
    target.run("PEXPIRE far 890000");
    target.run("PERSIST gone");
    let outcome = plan.run("verify --json").exits(1);
    let found: Vec<(&str, &str)> = outcome.json["different"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|d| {
            (
                d["key"].as_str().expect("a key"),
                d["reason"].as_str().expect("a reason"),
            )
        })
        .collect();
    assert_eq!(found, [("far", "expiry"), ("gone", "expiry")]);
}

#[test]
fn a_limit_of_keys_per_second_is_kept() {
    let Some([name]) = need(["any"]) else { return };
    let (source, target) = (Server::start(&name), Server::start(&name));
    fill_volume(&mut source.client(), 3_000, 10).expect("keys are written");
    let mut plan = Plan::new(&source.url(), &target.url());
    plan.set("/limits", json!({ "keys_per_s": 1000 }));
    let outcome = plan.run("migrate --until caught-up --json").exits(0);
    let took = outcome.json["elapsed_ms"].as_u64().expect("a number");
    assert!(took >= 2_500, "3000 keys at 1000 keys/s took {took} ms");
}

#[test]
fn a_small_output_buffer_and_a_slow_target_do_not_cut_the_link() {
    let Some([name]) = need(["redis-7.0"]) else {
        return;
    };
    let source = Endpoint::alone(Setup::new(&name).lines(&SMALL_BUFFER));
    let story = Story::new(source, Endpoint::alone(Setup::new(&name)));
    story.fill(5_000);
    fill_volume(&mut story.source.nodes()[0].client(), 20_000, 1_000)
        .expect("the volume is written");
    let mut running = story.migrate();
    // The target takes nothing for longer than the 10 s of the soft limit, while far more than 32 MB are written.
    std::thread::sleep(Duration::from_millis(300));
    story.target.nodes()[0].run("CLIENT PAUSE 12000 ALL");
    for _ in 0..8 {
        fill_volume(&mut story.source.nodes()[0].client(), 12_000, 1_000)
            .expect("the volume is written");
        std::thread::sleep(Duration::from_millis(1_200));
        assert!(
            running.ended().is_none(),
            "it ended: {}",
            running.stderr_now()
        );
    }
    story.wait_loaded(&mut running);
    story.catch_up_and_stop(running);
    assert_eq!(story.source.info("stats", "sync_full"), 1);
    assert_eq!(story.source.info("stats", "sync_partial_ok"), 0);
    assert!(
        !story.source.nodes()[0]
            .log_tail()
            .contains("output buffer limits")
    );
    story.verify();
    story.judge();
}

/// The test above can fail: with the same limits, a replica that does not read is cut.
#[test]
fn a_replica_that_does_not_read_is_cut() {
    let Some([name]) = need(["redis-7.0"]) else {
        return;
    };
    let source = Setup::new(&name)
        .lines(&SMALL_BUFFER)
        .diskless(true)
        .start();
    let mut replica = source.client();
    replica.push(&Command::new("PSYNC ? -1"));
    replica.flush().expect("the command is sent");
    std::thread::sleep(Duration::from_millis(300));
    fill_volume(&mut source.client(), 60_000, 1_000).expect("the volume is written");
    wait_until("the source cuts the link", Duration::from_secs(20), || {
        source.log().contains(CUT)
    });
}

#[test]
fn memory_stays_bounded() {
    let Some([name]) = need(["any"]) else { return };
    let story = Story::new(
        Endpoint::alone(Setup::new(&name)),
        Endpoint::alone(Setup::new(&name)),
    );
    let full = std::env::var_os("KEYFERRY_FULL").is_some();
    let mut client = story.source.nodes()[0].client();
    fill_volume(&mut client, if full { 500_000 } else { 75_000 }, 4_000)
        .expect("the volume is written");
    // One large hash, and one large string.
    for n in 0..40_000 {
        client.push(
            &Command::new("HSET large")
                .arg(format!("field {n}"))
                .arg("v".repeat(1_000)),
        );
        if n % 1_000 == 0 {
            client.replies().expect("the hash is written");
        }
    }
    client.replies().expect("the hash is written");
    client
        .expect(&Command::new("SETRANGE string 30000000 end"))
        .expect("the string is written");
    let mut running = story.migrate();
    story.wait_loaded(&mut running);
    story
        .plan
        .wait_caught_up(&mut running, Duration::from_secs(60));
    let peak = running.peak_memory();
    running.interrupt();
    running.wait(Duration::from_secs(30)).exits(130);
    println!("peak memory {} MiB", peak / MIB);
    assert!(
        peak > 0 && peak < 256 * MIB,
        "peak memory {} MiB",
        peak / MIB
    );
    story.judge();
}

/// What the target holds of old is removed, although the connection that does it is cut.
#[test]
fn cut_connections_leave_nothing_of_old() {
    let Some([name]) = need(["any"]) else { return };
    let mut story = Story::new(
        Endpoint::alone(Setup::new(&name)),
        Endpoint::alone(Setup::new(&name)),
    );
    story.fill(100);
    let mut target = story.target.nodes()[0].client();
    fill_volume(&mut target, 50_000, 10).expect("the target is filled");
    story.plan.set("/on_existing", json!("reconcile"));
    let running = story.migrate();
    let size = |target: &mut Client| target.words("DBSIZE").expect("an answer").int();
    let full = size(&mut target);
    wait_until("some are removed", Duration::from_secs(60), || {
        size(&mut target) < full.map(|n| n - 1_000)
    });
    let mut cuts = 0;
    let began = Instant::now();
    while size(&mut target) > Some(5_000) && cuts < 2 && began.elapsed().as_secs() < 10 {
        // Not the one that lists the keys: with it, the listing begins again.
        let clients = target.words("CLIENT LIST").expect("an answer").text();
        let writes = |line: &&str| line.contains(" cmd=del ");
        for line in clients.lines().filter(writes) {
            let id = line
                .split(' ')
                .next()
                .unwrap_or_default()
                .replace("id=", "");
            let _ = target.words(&format!("CLIENT KILL ID {id}"));
            cuts += 1;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(cuts > 1, "it was over too soon");
    story.catch_up_and_stop(running);
    story.judge();
}

#[test]
fn both_ends_with_tls_and_acl() {
    let Some([name]) = need(["redis-7.0"]) else {
        return;
    };
    let Some(tls) = Tls::make() else {
        return skip("needs the openssl program");
    };
    let acl = [
        "user default off",
        "user mover on >secret-horse ~* &* +@all",
    ];
    let start = || Setup::new(&name).tls(&tls).lines(&acl).start();
    let (source, target) = (start(), start());
    let login = Command::new("AUTH mover secret-horse");
    let mut client = source.client();
    client.expect(&login).expect("the login is taken");
    client.words("SET a 1").expect("a key is set");
    let url = |server: &Server| format!("rediss://127.0.0.1:{}", server.tls_port());
    let mut plan = Plan::new(&url(&source), &url(&target));
    std::fs::write(plan.dir().join("password"), "secret-horse\n").expect("the password is written");
    for end in ["source", "target"] {
        plan.set(&format!("/{end}/tls"), json!({ "ca": tls.ca() }));
        plan.set(&format!("/{end}/username"), json!("mover"));
        plan.set(&format!("/{end}/password"), json!({ "file": "password" }));
    }
    plan.run("migrate --until caught-up --json").exits(0);
    let mut client = target.client();
    client.expect(&login).expect("the login is taken");
    assert_eq!(client.words("GET a").expect("an answer").text(), "1");
    plan.run("verify --json").exits(0);
    // A certificate that nobody vouches for is refused.
    plan.set("/target/tls", json!({ "insecure": false }));
    let refused: Outcome = plan.run("migrate --fresh --json").exits(3);
    refused.says(&["certificate"]);
}

#[test]
fn verify_finds_what_was_changed_behind_its_back() {
    let Some([name]) = need(["any"]) else { return };
    let story = Story::new(
        Endpoint::alone(Setup::new(&name)),
        Endpoint::cluster(Setup::new(&name)),
    );
    story.fill(1_000);
    story.plan.run("migrate --until caught-up --json").exits(0);
    story.verify();
    let mut target = story.target.side();
    for change in [
        Command::new("DEL").key("zoo:raw"),
        Command::new("SET").key("not-there").arg("1"),
        Command::new("HSET")
            .key("zoo:hash:hashtable")
            .arg("field 7")
            .arg("other"),
    ] {
        target.run(&change).expect("the change is made");
    }
    let answer = story.plan.run("verify --json").exits(1).json;
    assert_eq!(answer["equal"], false, "{answer}");
    for (list, key) in [
        ("missing", "zoo:raw"),
        ("extra", "not-there"),
        ("different", "zoo:hash:hashtable"),
    ] {
        let found = answer[list]
            .as_array()
            .is_some_and(|l| l.len() == 1 && l[0]["key"] == key);
        assert!(found, "{list} should hold {key}: {answer}");
        assert_eq!(answer[format!("{list}_count")], 1, "{answer}");
    }
}

#[test]
fn a_dry_run_writes_nothing() {
    let Some([name]) = need(["any"]) else { return };
    let story = Story::new(
        Endpoint::alone(Setup::new(&name)),
        Endpoint::cluster(Setup::new(&name)),
    );
    story.fill(2_000);
    story
        .plan
        .run("migrate --dry-run --until caught-up --json")
        .exits(0);
    assert_eq!(story.target.side().size().ok(), Some(0));
    story.plan.run("migrate --until caught-up --json").exits(0);
    story.judge();
}

/// Strings go several in one command where that is allowed, and one by one where it is not.
#[test]
fn a_target_that_refuses_mset_gets_its_strings_one_by_one() {
    let Some([name]) = need(["any"]) else { return };
    let (source, target) = (Server::start(&name), Server::start(&name));
    let mut client = Client::open(&source.url()).expect("it answers");
    for n in 0..3_000 {
        client
            .words(&format!("SET key:{n} value-{n}"))
            .expect("a string");
    }
    client.words("SET number 12345").expect("a string");
    let long = "SETRANGE compressed 900 x";
    client.words(long).expect("a string");
    let calls = |command: &str| {
        let stats = target
            .client()
            .info("commandstats", &format!("cmdstat_{command}"));
        stats.unwrap_or_default()
    };
    target.run("ACL SETUSER mover on >pw ~* +@all -mset");
    let url = target.url().replace("redis://", "redis://mover:pw@");
    for (url, together) in [(url, false), (target.url(), true)] {
        target.run("FLUSHALL");
        target.run("CONFIG RESETSTAT");
        let plan = Plan::new(&source.url(), &url);
        plan.run("migrate --json --until caught-up").exits(0);
        plan.run("verify --json").exits(0);
        let mset = calls("mset");
        let ran = !mset.is_empty() && !mset.starts_with("calls=0,");
        assert_eq!(ran, together, "{mset}");
        assert_eq!(target.run("GET number").text(), "12345");
        assert_eq!(target.run("STRLEN compressed").int(), Some(901));
    }
}

/// A source over its maxmemory: Redis 6.0 to 7.0 then refuses what is read inside MULTI.
#[test]
fn a_full_source_is_read_all_the_same() {
    let names = ["redis-6.0", "redis-6.2", "redis-7.0", "redis-8.0"];
    let Some([any]) = need(["any"]) else { return };
    let target = Cluster::start(&any, 3);
    for name in names {
        let Some([name]) = need([name]) else { continue };
        let source = Server::start(&name);
        target.side().everywhere("FLUSHALL").expect("an answer");
        let plan = Plan::new(&source.url(), &target.url());
        let mut running = plan.start("migrate --json");
        let limit = Duration::from_secs(60);
        plan.wait_caught_up(&mut running, limit);
        let mut client = source.client();
        let big = Command::new("SET big").arg("x".repeat(3_000_000));
        client.expect(&big).expect("SET");
        for n in 0..300 {
            let key = Command::new("SET").key(format!("a:{n}")).arg(n.to_string());
            client.expect(&key.arg("PX").arg("1000000")).expect("SET");
        }
        client.words("CONFIG SET maxmemory 2mb").expect("an answer");
        let full = client.run(&Command::new("SET one more"));
        assert!(full.expect("an answer").is_error(), "it is full");
        // Each leads to other slots, so that both keys are read; and they are written to meanwhile.
        for round in 0..4 {
            let (from, to) = [("a", "b"), ("b", "a")][round % 2];
            for n in 0..300 {
                client.push(&Command::new(&format!("RENAME {from}:{n} {to}:{n}")));
                client.push(&Command::new(&format!("PEXPIRE {to}:{n} 200000{round}")));
            }
            client.flush().expect("sent");
            assert!(
                client
                    .replies()
                    .expect("answers")
                    .iter()
                    .all(|r| !r.is_error())
            );
        }
        client.words("RENAME a:7 seven").expect("an answer");
        plan.wait_caught_up(&mut running, limit);
        let mut side = target.side();
        wait_until("it arrives", limit, || {
            let get = Command::new("GET").key("seven");
            side.run(&get).expect("an answer").text() == "7"
        });
        plan.wait_caught_up(&mut running, limit);
        let verified = plan.run("verify --json").exits(0);
        assert_eq!(verified.json["keys_target"], 301, "{}", verified.stdout);
        running.interrupt();
        running.wait(limit).exits(130);
    }
}
