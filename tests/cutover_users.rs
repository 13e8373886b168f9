//! Who is kept out of the side that the clients have left: everybody, whatever becomes of users and servers meanwhile.

use crate::cutover::{Move, answer};
use crate::cutover_closed::users;
use crate::support::server::Setup;
use crate::support::story::Endpoint;
use crate::support::wait_until;
use crate::support::{need, skip};
use crate::topology::Sentinel;
use serde_json::json;
use std::time::Duration;

/// A plan that names the application's users shuts out the others as well: after the switch, nobody writes.
#[test]
fn users_that_the_plan_does_not_name_are_kept_out_too() {
    let Some(it) = Move::usual(json!({"watch_s": 4, "users": ["app"]})) else {
        return;
    };
    let source = &it.story.source.nodes()[0];
    for user in ["app on", "cron on", "sleeper off"] {
        source.run(&format!("ACL SETUSER {user} nopass ~* +@all"));
    }
    it.story.fill(200);
    it.plan().run("migrate --until caught-up --json").exits(0);
    let watching = it.plan().start("cutover --json");
    wait_until("the clients are moved", Duration::from_secs(60), || {
        it.plan().status()["cutover"]["stage"] == "switched"
    });
    let mut cron = source.client();
    cron.words("AUTH cron x").expect("it gets in");
    assert!(cron.words("INCR cron").is_err());
    // Somebody gives rights while one watches: they are taken again, and it is said.
    source.run("ACL SETUSER sleeper on");
    source.run("ACL SETUSER late on nopass ~* +@all");
    let mut late = source.client();
    late.words("AUTH late x").expect("it gets in");
    wait_until("it is kept out", Duration::from_secs(3), || {
        late.words("SET late 1").is_err()
    });
    let mut sleeper = source.client();
    sleeper.words("AUTH sleeper x").expect("it gets in");
    assert!(sleeper.words("SET sleeper 1").is_err());
    let outcome = watching.wait(Duration::from_secs(60)).exits(1);
    assert!(
        answer(&outcome)["refused"]["why"]
            .as_str()
            .is_some_and(|w| w.contains("could write for a while")),
        "{}",
        outcome.json
    );
    it.plan().run("rollback --accept-late --json").exits(0);
    for (client, key) in [
        (&mut cron, "cron"),
        (&mut late, "late"),
        (&mut sleeper, "sleeper"),
    ] {
        client
            .words(&format!("INCR again:{key}"))
            .expect("it writes again");
    }
}

/// A cutover that was killed while it watched, and a source that was started anew meanwhile: it has forgotten whom it
/// was to keep out, and that is seen before anything is written to it.
#[test]
fn a_source_that_was_started_anew_is_seen_by_the_next_cutover() {
    let Some([name]) = need(["any"]) else { return };
    let mut it = Move::new(
        Endpoint::alone(Setup::new(&name).line("repl-backlog-size 64mb")),
        Endpoint::cluster(Setup::new(&name)),
        json!({"watch_s": 60}),
    );
    it.story.fill(200);
    it.plan().run("migrate --until caught-up --json").exits(0);
    let watching = it.plan().start("cutover --json");
    wait_until("the way back is open", Duration::from_secs(60), || {
        let status = it.plan().status();
        status["cutover"]["way_back"]["ready"] == true
    });
    watching.signal("KILL");
    watching.wait(Duration::from_secs(10));
    let Endpoint::Alone(source) = &mut it.story.source else {
        return;
    };
    source.client().words("SAVE").expect("it is saved");
    source.restart();
    source
        .client()
        .words("SET stray 1")
        .expect("nobody keeps it out");
    it.story.plan.set("/cutover/watch_s", json!(1));
    let outcome = it.plan().run("cutover --json").exits(1);
    assert!(
        answer(&outcome)["refused"]["why"]
            .as_str()
            .is_some_and(|w| w.contains("may have been written")),
        "{}",
        outcome.json
    );
    let source = &it.story.source.nodes()[0];
    assert_eq!(
        source
            .client()
            .words("GET stray")
            .expect("it is read")
            .text(),
        "1"
    );
    assert!(
        source.client().words("SET stray 2").is_err(),
        "it is closed again"
    );
    it.plan().run("cutover --reopen").exits(0);
    source.client().words("SET stray 2").expect("it is open");
}

/// A login in the url is one that the way back must not meet a second time.
#[test]
fn a_login_in_the_url_has_a_way_back() {
    let Some(mut it) = Move::usual(json!({"watch_s": 1})) else {
        return;
    };
    let source = &it.story.source.nodes()[0];
    source.run("ACL SETUSER mover on >secret ~* +@all");
    source.client().words("ACL SETUSER mover allchannels").ok();
    let url = format!("redis://mover:secret@{}", source.address());
    it.story.plan.set("/source/url", json!(url));
    it.story.fill(200);
    it.plan().run("migrate --until caught-up --json").exits(0);
    let before = users(&it.story.source);
    let outcome = it.plan().run("cutover --json").exits(0);
    assert_eq!(answer(&outcome)["way_back"]["ready"], true);
    let source = &it.story.source.nodes()[0];
    assert!(source.client().words("SET late 1").is_err());
    it.plan().run("rollback --json").exits(0);
    assert_eq!(users(&it.story.source), before);
    it.thawed(&it.story.source);
    let saved = std::fs::read_dir(it.plan().work_dir().join("test")).expect("the state");
    for file in saved.flatten().filter(|f| f.path().is_file()) {
        let bytes = std::fs::read(file.path()).expect("it is read");
        assert!(
            !bytes.windows(6).any(|w| w == b"secret"),
            "{:?}",
            file.path()
        );
    }
}

/// Sentinels that take the servers' login, and know nobody else, tell the master on the way back too, and to the
/// measurement after the switch.
#[test]
fn sentinels_that_want_the_servers_login_know_the_way_back() {
    let Some([name]) = need(["redis-7.0"]) else {
        return;
    };
    let mut it = Move::new(
        Endpoint::alone(Setup::new(&name).line("repl-backlog-size 64mb")),
        Endpoint::cluster(Setup::new(&name)),
        json!({"watch_s": 1}),
    );
    let source = &it.story.source.nodes()[0];
    let user = "mover on >hidden ~* &* +@all";
    source.run(&format!("ACL SETUSER {user}"));
    let lines = ["user default off".to_owned(), format!("user {user}")];
    let Some(sentinel) = Sentinel::with(&name, source, &lines, "mover:hidden@") else {
        return skip("needs a sentinel");
    };
    let url = format!(
        "redis+sentinel://mover:hidden@127.0.0.1:{}/mymaster",
        sentinel.port
    );
    it.story.plan.set("/source/url", json!(url));
    let mix = json!({
        "workloads": ["counter"], "rates": [1.0], "blocks": 2, "block_s": 1, "connections": 2, "allow_writes": true,
    });
    it.story.plan.set("/latency", mix);
    it.story.fill(200);
    it.plan().run("migrate --until caught-up --json").exits(0);
    let outcome = it.plan().run("cutover --json").exits(0);
    assert_eq!(answer(&outcome)["way_back"]["ready"], true);
    it.plan().run("latency --json").exits(0);
    it.plan().run("rollback --json").exits(0);
    it.thawed(&it.story.source);
}

/// A replica has users of its own, and may go for good: neither keeps the others from being closed and opened.
#[test]
fn replicas_that_are_unlike_or_gone_are_left_as_they_are() {
    let Some([name]) = need(["any"]) else { return };
    let mut it = Move::new(
        Endpoint::alone(Setup::new(&name).line("repl-backlog-size 64mb")),
        Endpoint::cluster(Setup::new(&name)),
        json!({"watch_s": 1, "users": ["app"]}),
    );
    let master = &it.story.source.nodes()[0];
    master.run("ACL SETUSER app on nopass ~* +@all");
    let replica = Setup::new(&name).replica_of(master).start();
    replica.wait_in_step();
    let before = users(&it.story.source);
    it.story.fill(200);
    it.plan().run("migrate --until caught-up --json").exits(0);
    it.plan().run("cutover --json").exits(0);
    assert!(
        it.story.source.nodes()[0]
            .client()
            .words("SET late 1")
            .is_err()
    );
    drop(replica);
    it.plan().run("cutover --reopen --json").exits(0);
    assert_eq!(users(&it.story.source), before);
    it.story.plan.set("/cutover/watch_s", json!(1));
    it.thawed(&it.story.source);
}

/// Both sides are measured after the cutover as before it, with writes of our own, by a login that has lost its rights:
/// nobody else gets in.
#[test]
fn a_closed_side_can_be_measured() {
    let Some(mut it) = Move::usual(json!({"watch_s": 1})) else {
        return;
    };
    let source = &it.story.source.nodes()[0];
    source.run("ACL SETUSER mover on >hidden ~* +@all");
    it.story.plan.set("/source/username", json!("mover"));
    it.story.plan.set("/source/password", json!("hidden"));
    it.story.plan.set(
        "/latency",
        json!({
            "workloads": ["counter"], "rates": [1.0], "blocks": 2, "block_s": 1,
            "connections": 2, "allow_writes": true,
        }),
    );
    it.story.fill(200);
    it.plan().run("migrate --until caught-up --json").exits(0);
    it.plan().run("cutover --json").exits(0);
    let measured = it.plan().run("latency --json").exits(0);
    let of = &measured.json["results"][0]["endpoints"];
    for side in ["source", "target"] {
        assert!(of[side]["count"].as_u64() > Some(0), "{side}: {of}");
        assert_eq!(of[side]["errors"], 0, "{side}: {of}");
    }
    let source = &it.story.source.nodes()[0];
    assert!(source.client().words("SET late 1").is_err());
}
