//! Ways in which people's servers are reached: several addresses, a cluster whose first node is gone, Sentinel with a
//! login of its own, certificates as they are found, renamed commands, a socket.

use crate::support::cluster::Cluster;
use crate::support::keyferry::{self, Outcome, Plan};
use crate::support::server::{Server, Setup, free_port};
use crate::support::story::{Endpoint, Story};
use crate::support::tls::Tls;
use crate::support::wait_until;
use crate::support::wire::Value;
use crate::support::{need, skip};
use crate::topology::Sentinel;
use serde_json::json;
use std::net::TcpListener;
use std::time::{Duration, Instant};

/// An address at which nobody listens.
fn nobody() -> String {
    format!("127.0.0.1:{}", free_port().expect("a free port"))
}

/// A server that takes connections and never says anything.
fn silent() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").expect("a free port")
}

fn validate(plan: &Plan) -> Outcome {
    keyferry::run(&["plan", "validate", &plan.path().to_string_lossy()])
}

#[track_caller]
fn moves(plan: &Plan) {
    let done = plan.run("migrate --json --until caught-up").exits(0);
    assert!(done.json["keys_written"].as_u64() > Some(0), "{done:?}");
    let verified = plan.run("verify --json").exits(0);
    assert_eq!(verified.json["equal"], true, "{}", verified.stdout);
}

#[test]
fn the_first_address_that_answers_is_taken() {
    let Some([name]) = need(["any"]) else { return };
    let story = Story::new(
        Endpoint::alone(Setup::new(&name)),
        Endpoint::cluster(Setup::new(&name)),
    );
    story.fill(500);
    let black_hole = silent();
    let hole = black_hole.local_addr().expect("an address");
    let source = format!(
        "{}/0",
        story
            .source
            .url()
            .replace("://", &format!("://{},{hole},", nobody()))
    );
    let nodes = story.target.nodes();
    let target = format!("redis://{},{}", nobody(), nodes[1].address());
    let mut plan = Plan::new(&source, &target);
    let began = Instant::now();
    plan.run("check --json").exits(0);
    moves(&plan);
    // The silent one is given up soon, and once only in each run.
    assert!(
        began.elapsed() < Duration::from_secs(30),
        "{:?}",
        began.elapsed()
    );
    story.judge();
    // IPv6 in brackets, and the same server is found on both sides.
    plan.set(
        "/target/url",
        json!(format!(
            "redis://[::1]:1,{}",
            story.source.nodes()[0].address()
        )),
    );
    validate(&plan).exits(2).says(&["the same server"]);
    plan.set(
        "/source/url",
        json!(format!("redis://{},{}", nobody(), nobody())),
    );
    plan.set("/target/url", json!(target));
    let none = plan.run("check").exits(1);
    assert!(none.stdout.contains("none of 127.0.0.1:"), "{none:?}");
}

/// The cluster of the source: three masters with a replica each, of which the plan names the first.
fn gone(story: &mut Story) {
    let Endpoint::Cluster(cluster) = &mut story.source else {
        unreachable!()
    };
    let id = cluster.nodes()[0].run("CLUSTER MYID").text();
    cluster.node_mut(0).kill();
    let left = &cluster.nodes()[1..];
    wait_until("a replica has taken over", Duration::from_secs(60), || {
        left.iter().all(|node| {
            let nodes = node.run("CLUSTER NODES").text();
            let serves = |line: &str| line.contains("master") && line.split(' ').count() > 8;
            nodes
                .lines()
                .filter(|l| serves(l) && !l.starts_with(&id))
                .count()
                == 3
                && node
                    .client()
                    .info_of("CLUSTER INFO", "cluster_state")
                    .as_deref()
                    == Some("ok")
        })
    });
}

#[test]
fn a_cluster_is_found_when_the_node_of_the_plan_is_gone() {
    let Some([name]) = need(["any"]) else { return };
    let mut story = Story::new(
        Endpoint::replicated(Setup::new(&name)),
        Endpoint::alone(Setup::new(&name)),
    );
    let hooks = json!({ "hooks": { "switch": ["true"] } });
    story.plan.set("/cutover", hooks);
    story.fill(1_000);
    moves(&story.plan);
    gone(&mut story);
    let verified = story.plan.run("verify --json").exits(0);
    assert_eq!(verified.json["equal"], true, "{}", verified.stdout);
    story.plan.run("check --json").exits(0);
    let Endpoint::Cluster(cluster) = &story.source else {
        unreachable!()
    };
    let other = crate::support::side::Side::open(&cluster.nodes()[1].url(), true);
    let mut other = other.expect("the cluster answers");
    let set = crate::support::wire::Command::new("SET")
        .key("later")
        .arg("1");
    assert!(other.run(&set).is_ok_and(|a| !a.is_error()));
    let mut running = story.migrate();
    story
        .plan
        .wait_caught_up(&mut running, Duration::from_secs(60));
    let status = story.plan.status();
    assert_eq!(status["phase"], "stream", "{status}");
    let outcome = story.plan.run("cutover --dry-run --json");
    assert_eq!(outcome.code, 0, "{outcome:?}");
    running.interrupt();
    running.wait(Duration::from_secs(30)).exits(130);
    assert_eq!(story.target.nodes()[0].run("GET later").text(), "1");
    // Without what the state keeps, nobody knows of the others.
    let other = Plan::new(&story.source.url(), &story.target.url());
    other.run("verify").exits(3).says(&["refused"]);
}

/// Nodes that are known from before are not used when they belong to another cluster, nor when the plan's answers.
#[test]
fn another_cluster_is_not_taken_for_the_one_that_was_known() {
    let Some([name]) = need(["any"]) else { return };
    let mut first = Cluster::start(&name, 2);
    let target = Server::start(&name);
    let plan = Plan::new(&first.url(), &target.url());
    moves_nothing(&plan);
    // The second node is made one of another cluster; its address stays.
    first.node_mut(0).kill();
    let second = &first.nodes()[1];
    second.run("FLUSHALL");
    second.run("CLUSTER RESET HARD");
    let slots: Vec<String> = (0..16_384).map(|n| n.to_string()).collect();
    second.run(&format!("CLUSTER ADDSLOTS {}", slots.join(" ")));
    wait_until(
        "it is a cluster of its own",
        Duration::from_secs(30),
        || {
            second
                .client()
                .info_of("CLUSTER INFO", "cluster_state")
                .as_deref()
                == Some("ok")
        },
    );
    second.run("SET stranger 1");
    plan.run("verify")
        .exits(3)
        .says(&["another cluster", "refused"]);
}

#[track_caller]
fn moves_nothing(plan: &Plan) {
    plan.run("migrate --json --until caught-up").exits(0);
}

/// A master and its replica without a password, and a sentinel that wants one and speaks TLS.
#[test]
fn sentinel_has_a_login_and_tls_of_its_own() {
    let Some([name]) = need(["redis-7.0"]) else {
        return;
    };
    let Some(tls) = Tls::make() else {
        return skip("needs openssl");
    };
    let master = Setup::new(&name).line("repl-backlog-size 64mb").start();
    let mut replica = Some(Setup::new(&name).replica_of(&master).start());
    let tls_port = free_port().expect("a free port");
    let lines = [
        format!("tls-port {tls_port}"),
        format!("tls-cert-file \"{}\"", tls.cert().display()),
        format!("tls-key-file \"{}\"", tls.key().display()),
        format!("tls-ca-cert-file \"{}\"", tls.ca().display()),
        "tls-auth-clients no".to_owned(),
        "user default off".to_owned(),
        "user watcher on >s3cret allchannels +@all".to_owned(),
    ];
    let login = "watcher:s3cret@";
    let Some(sentinel) = Sentinel::with(&name, &master, &lines, login) else {
        return skip("needs a sentinel");
    };
    let mut story = Story::new(
        Endpoint::Alone(Box::new(master)),
        Endpoint::alone(Setup::new(&name)),
    );
    story.fill(1_000);
    let url = |port: u16| format!("redis+sentinel://127.0.0.1:{port}/mymaster");
    story.plan.set("/source/url", json!(url(tls_port)));
    let own = json!({
        "username": "watcher", "password": { "env": "SENTINEL_PASSWORD" }, "tls": { "ca": tls.ca() },
    });
    story.plan.set("/source/sentinel", own);
    let mut running = story
        .plan
        .start_with("migrate --json", &[("SENTINEL_PASSWORD", "s3cret")]);
    story.wait_loaded(&mut running);
    // Followed through a failover.
    let Endpoint::Alone(master) = &mut story.source else {
        unreachable!()
    };
    // One that is promoted before it holds anything has lost the data.
    replica.iter().for_each(Server::wait_in_step);
    let promoted = replica.as_ref().map(|r| r.port().to_string());
    wait_until(
        "sentinel knows the replica",
        Duration::from_secs(30),
        || {
            let told = sentinel.run("SENTINEL REPLICAS mymaster");
            let words = told.items().iter().flat_map(|r| r.items());
            words.map(Value::text).any(|w| Some(w) == promoted)
        },
    );
    master.kill();
    wait_until("the replica is the master", Duration::from_secs(60), || {
        sentinel.ask() == promoted
    });
    let replica = replica.take().expect("the replica");
    wait_until("it takes writes", Duration::from_secs(30), || {
        let mut client = replica.client();
        client.words("SET after 1").is_ok_and(|a| !a.is_error())
    });
    story.source = Endpoint::Alone(Box::new(replica));
    story
        .plan
        .wait_caught_up(&mut running, Duration::from_secs(60));
    running.interrupt();
    running.wait(Duration::from_secs(30)).exits(130);
    assert_eq!(story.target.nodes()[0].run("GET after").text(), "1");
    story.plan.environment = vec![("SENTINEL_PASSWORD".into(), "s3cret".into())];
    story.verify();
    // Also without TLS to it, and with a wrong password, which is not told.
    story.plan.set("/source/url", json!(url(sentinel.port)));
    story.plan.set("/source/sentinel/tls", json!(false));
    story.plan.run("check").exits(0);
    story.plan.environment[0].1 = "wr0ng".into();
    let refused = story.plan.run("check").exits(1);
    assert!(refused.stdout.contains("sentinel"), "{refused:?}");
    assert!(!refused.stdout.contains("wr0ng"), "{refused:?}");
    // The way it is written down and validated.
    story.plan.set("/source/url", json!("redis://127.0.0.1:1"));
    validate(&story.plan)
        .exits(2)
        .says(&["source.sentinel is given", "redis+sentinel://"]);
    let new = keyferry::run(&["plan", "new", "--source", &url(7).replace("//", "//u:pw@")]);
    assert_eq!(new.json["source"]["url"], url(7), "{new:?}");
}

/// A source without TLS, and a plan whose target has it.
fn to_tls(source: &Server, target: &Server) -> Plan {
    let url = format!("rediss://127.0.0.1:{}", target.tls_port());
    Plan::new(&source.url(), &url)
}

#[test]
fn certificates_are_verified_as_far_as_the_plan_says() {
    let Some([name]) = need(["redis-7.0"]) else {
        return;
    };
    let elsewhere = "subjectAltName=DNS:elsewhere.example\n";
    let odd = format!("{elsewhere}1.2.3.4=critical,DER:05:00\n");
    let second = "subjectAltName=DNS:second.invalid\n";
    let made = [elsewhere, "", &odd, second].map(Tls::with_extensions);
    let [Some(elsewhere), Some(old), Some(odd), Some(second)] = made else {
        return skip("needs openssl");
    };
    let source = Server::start(&name);
    source.run("SET k v");
    let protocols = ["TLSv1.2", "TLSv1.3"];
    let start = |tls: &Tls, protocol: &str| {
        let line = format!("tls-protocols {protocol}");
        Setup::new(&name).tls(tls).line(&line).start()
    };
    let says = |plan: &Plan, words: &[&str]| {
        let said = plan.run("check --no-write").exits(1).stdout;
        for word in words {
            assert!(said.contains(word), "{word}: {said}");
        }
    };
    // Chain without name.
    let target = start(&elsewhere, protocols[1]);
    let mut plan = to_tls(&source, &target);
    let ca = json!(elsewhere.ca());
    plan.set("/target/tls", json!({ "ca": ca }));
    says(&plan, &["target_tls", "tls.server_name", "tls.verify"]);
    plan.set("/target/tls", json!({ "ca": ca, "verify": "ca" }));
    let report = plan.run("check --json").exits(0);
    assert!(!report.stdout.contains("target_certificate"), "{report:?}");
    moves(&plan);
    plan.set("/target/tls", json!({ "ca": old.ca(), "verify": "ca" }));
    says(&plan, &["target_tls", "unknown authority"]);
    // Any certificate, of version 1 and with extensions that nobody knows.
    for tls in [&old, &odd] {
        for protocol in protocols {
            let target = start(tls, protocol);
            let mut plan = to_tls(&source, &target);
            for none in [json!({ "insecure": true }), json!({ "verify": "none" })] {
                plan.set("/target/tls", none);
                let report = plan.run("check --json").exits(0);
                assert!(report.stdout.contains("target_certificate"), "{report:?}");
                assert!(report.json["target"]["tls"] == true, "{report:?}");
            }
            moves(&plan);
            for verify in ["full", "ca"] {
                plan.set("/target/tls", json!({ "ca": tls.ca(), "verify": verify }));
                says(&plan, &["target_tls", "tls.verify to \"none\""]);
            }
        }
    }
    let target = start(&old, protocols[1]);
    let mut plan = to_tls(&source, &target);
    plan.set("/target/tls", json!({ "ca": old.ca(), "verify": "ca" }));
    says(&plan, &["X.509 version 1"]);
    // A node that is known by its number has one of the plan's names.
    let target = start(&second, protocols[1]);
    let port = target.tls_port();
    let url = |second: &str| format!("rediss://first.invalid:1,{second}127.0.0.1:{port}");
    plan.set("/target/tls", json!({ "ca": second.ca() }));
    plan.set("/target/url", json!(url("")));
    says(&plan, &["first.invalid or 127.0.0.1"]);
    plan.set("/target/url", json!(url("second.invalid:1,")));
    plan.run("check --json").exits(0);
    // What contradicts itself.
    plan.set("/target/tls", json!({ "verify": "ca", "insecure": true }));
    validate(&plan).exits(2).says(&["target.tls.insecure"]);
    plan.set("/target/tls", json!({ "verify": "some" }));
    validate(&plan)
        .exits(2)
        .says(&["target.tls.verify", "full"]);
    plan.set("/target/tls", json!({ "verify": "ca" }));
    validate(&plan).exits(0).says(&[]);
}

#[test]
fn a_server_that_wants_a_client_certificate_says_so() {
    let Some([name]) = need(["redis-7.0"]) else {
        return;
    };
    let (Some(tls), Some(other)) = (Tls::make(), Tls::make()) else {
        return skip("needs openssl");
    };
    let source = Server::start(&name);
    source.run("SET k v");
    for protocol in ["TLSv1.2", "TLSv1.3"] {
        let lines = [
            format!("tls-protocols {protocol}"),
            "tls-auth-clients yes".into(),
        ];
        let target = Setup::new(&name)
            .tls(&tls)
            .lines(&lines.each_ref().map(String::as_str))
            .start();
        let mut plan = to_tls(&source, &target);
        for password in [json!(null), json!({ "env": "HOME" })] {
            plan.set("/target/password", password);
            plan.set("/target/tls", json!({ "ca": tls.ca() }));
            let said = plan.run("check").exits(1).stdout;
            let words = [
                "target_tls",
                "wants a client certificate",
                "tls.cert and tls.key",
            ];
            for word in words {
                assert!(said.contains(word), "{protocol}, {word}: {said}");
            }
        }
        let began = Instant::now();
        plan.run("verify").exits(3).says(&["tls.cert and tls.key"]);
        assert!(began.elapsed() < Duration::from_secs(10));
        // One of another authority, and the right one.
        let with = |of: &Tls| json!({ "ca": tls.ca(), "cert": of.cert(), "key": of.key() });
        plan.set("/target/tls", with(&other));
        let said = plan.run("check").exits(1).stdout;
        assert!(
            said.contains("refuses the client certificate"),
            "{protocol}: {said}"
        );
        plan.set("/target/password", json!(null));
        plan.set("/target/tls", with(&tls));
        moves(&plan);
    }
}

/// What a command is called at a server that has renamed it.
fn renamed(commands: &[&str]) -> (Vec<String>, serde_json::Value) {
    let here = |c: &str| format!("{}-x9", c.to_lowercase());
    let lines = commands
        .iter()
        .map(|c| format!("rename-command {c} {}", here(c)));
    let names: serde_json::Map<_, _> = (commands.iter())
        .map(|c| ((*c).to_owned(), json!(here(c))))
        .collect();
    (lines.collect(), names.into())
}

const RENAMED: [&str; 12] = [
    "REPLCONF", "CONFIG", "SCAN", "DUMP", "RESTORE", "ROLE", "TYPE", "CLIENT", "ACL", "MEMORY",
    "COMMAND", "MULTI",
];

#[test]
fn renamed_commands_are_called_by_their_other_names() {
    let Some([name]) = need(["redis-7.0"]) else {
        return;
    };
    let (lines, names) = renamed(&RENAMED);
    let setup = lines.iter().fold(Setup::new(&name), |s, line| s.line(line));
    let source = setup.clone().start();
    let target = Setup::new(&name)
        .lines(&["rename-command CONFIG config-x9"])
        .start();
    for n in 0..300 {
        source.run(&format!("SET key:{n} {}", "x".repeat(100)));
    }
    source.run("RPUSH list a b c");
    let mut plan = Plan::new(&source.url(), &target.url());
    plan.set("/cutover", json!({ "hooks": { "switch": ["true"] } }));
    // Refused by its own name.
    let said = plan.run("check").exits(1).stdout;
    for word in ["source refuses DUMP", "psync_refused", "source.commands"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    // And by a wrong one, which is told with it.
    let mut wrong = names.clone();
    wrong["DUMP"] = json!("nothing");
    plan.set("/source/commands", wrong);
    let said = plan.run("check").exits(1).stdout;
    assert!(
        said.contains("source refuses DUMP (here: nothing)"),
        "{said}"
    );
    plan.set("/source/commands", names.clone());
    plan.set("/target/commands", json!({ "config": "config-x9" }));
    let report = plan.run("check --json").exits(0).json;
    assert_eq!(report["mode"], "replica", "{report}");
    assert_eq!(report["source"]["commands"]["CONFIG GET"], true, "{report}");
    assert_eq!(report["target"]["commands"]["CONFIG GET"], true, "{report}");
    let mut running = plan.start("migrate --json");
    plan.wait_caught_up(&mut running, Duration::from_secs(60));
    source.run("RPUSH list d");
    source.run("SET after 1");
    plan.wait_caught_up(&mut running, Duration::from_secs(60));
    let outcome = plan.run("cutover --dry-run --json").exits(0);
    assert_eq!(outcome.json["done"], true, "{outcome:?}");
    let verified = plan.run("verify --json").exits(0);
    assert_eq!(verified.json["keys_source"], 302, "{verified:?}");
    assert_eq!(target.run("LLEN list").int(), Some(4));
    running.interrupt();
    running.wait(Duration::from_secs(30)).exits(130);
    // Nothing was asked by a name that the source has not.
    source.run("config-x9 RESETSTAT");
    plan.run("verify --json").exits(0);
    assert_eq!(source.info("stats", "total_error_replies"), 0);
}

/// Servers look at the word PSYNC: by another name they answer as SYNC, without offsets.
#[test]
fn a_source_with_a_renamed_psync_is_scanned() {
    for version in ["redis-6.2", "redis-8.2", "valkey-8.0"] {
        let Some([name]) = need([version]) else {
            continue;
        };
        let (lines, names) = renamed(&["PSYNC", "SCAN", "DUMP", "CONFIG"]);
        let setup = lines.iter().fold(Setup::new(&name), |s, line| s.line(line));
        let (source, target) = (setup.start(), Server::start(&name));
        source.run("SET k v");
        source.run("RPUSH list a b c");
        let mut plan = Plan::new(&source.url(), &target.url());
        plan.set("/source/commands", names);
        validate(&plan).exits(2).says(&["PSYNC", "SYNC", "scan"]);
        plan.set("/source/mode", json!("auto"));
        let report = plan.run("check --json").exits(0);
        assert_eq!(report.json["mode"], "scan", "{report:?}");
        assert!(report.stdout.contains("renamed PSYNC"), "{report:?}");
        moves(&plan);
        assert_eq!(target.run("LLEN list").int(), Some(3));
        let stats = source.run("INFO commandstats").text();
        for command in ["scan", "dump"] {
            let line = format!("cmdstat_{command}:");
            assert!(stats.contains(&line), "{command}: {stats}");
        }
    }
}

/// What clients write by another name stands by that name in the stream, also where it is called as before in the
/// statistics: the run ends there and says so, and validation has warned of it.
#[test]
fn a_renamed_write_stands_in_the_stream_by_its_other_name() {
    for version in ["redis-6.0", "redis-7.0", "valkey-8.1"] {
        let Some([name]) = need([version]) else {
            continue;
        };
        let (lines, names) = renamed(&["SADD", "SET"]);
        let setup = lines.iter().fold(Setup::new(&name), |s, line| s.line(line));
        let (source, target) = (setup.start(), Server::start(&name));
        source.run("set-x9 a 1");
        let mut plan = Plan::new(&source.url(), &target.url());
        plan.set("/source/commands", names);
        let valid = validate(&plan).exits(0);
        assert!(valid.stdout.contains("SADD, SET"), "{valid:?}");
        let mut running = plan.start("migrate --json");
        plan.wait_caught_up(&mut running, Duration::from_secs(60));
        source.run("sadd-x9 s 1");
        running
            .wait(Duration::from_secs(60))
            .exits(3)
            .says(&["sadd-x9"]);
        let stats = source.run("INFO commandstats").text();
        assert!(stats.contains("cmdstat_sadd:"), "{stats}");
        plan.run("rollback").says(&[]);
    }
    let (source, target) = ("redis://a:1", "redis://b:1");
    let mut plan = Plan::new(source, target);
    plan.set("/target/commands", json!({ "SET": "set-x9" }));
    validate(&plan).exits(2).says(&["target.commands", "SET"]);
    plan.set("/target/commands", json!({ "CONFIG": "a b" }));
    validate(&plan)
        .exits(2)
        .says(&["target.commands", "CONFIG"]);
    plan.set("/target/commands", json!({ "CONFIG": "a", "ACL": "A" }));
    validate(&plan).exits(2).says(&["by one name"]);
}

#[test]
fn a_socket_of_this_machine_is_a_source_and_a_target() {
    let Some([name]) = need(["any"]) else { return };
    let dir = tempfile::tempdir().expect("a folder");
    let socket = |n: &str| dir.path().join(n).display().to_string();
    let at = |n: &str| format!("unixsocket {}", socket(n));
    let source = Setup::new(&name)
        .lines(&[&at("a%b"), "requirepass s3cret"])
        .start();
    let _target = Setup::new(&name).line(&at("t")).start();
    let mut client = source.client();
    let mut run = |words: &str| client.words(words).expect("an answer");
    run("AUTH s3cret");
    run("SET zero 1");
    run("SELECT 1");
    for n in 0..100 {
        run(&format!("SET key:{n} 1"));
    }
    let url = format!("redis+unix://:s3cret@{}?db=1", socket("a%25b"));
    let mut plan = Plan::new(&url, &format!("redis+unix://{}", socket("t")));
    let report = plan.run("check --json").exits(0).json;
    assert_eq!(report["mode"], "replica", "{report}");
    let shown = format!("redis+unix://{}?db=1", socket("a%25b"));
    assert_eq!(report["source"]["url"], json!(shown), "{report}");
    let mut running = plan.start("migrate --json");
    plan.wait_caught_up(&mut running, Duration::from_secs(60));
    run("SET later 1");
    plan.wait_caught_up(&mut running, Duration::from_secs(60));
    running.interrupt();
    running.wait(Duration::from_secs(30)).exits(130);
    let verified = plan.run("verify --json").exits(0);
    assert_eq!(verified.json["keys_target"], 101, "{verified:?}");
    // Where nobody listens.
    plan.set(
        "/source/url",
        json!(format!("redis+unix://{}", socket("none"))),
    );
    let said = plan.run("check").exits(1).stdout;
    assert!(said.contains("unixsocket"), "{said}");
    let new = keyferry::run(&["plan", "new", "--source", &url]);
    assert_eq!(new.json["source"]["url"], json!(shown), "{new:?}");
}
