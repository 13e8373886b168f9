//! The cutover under live clients that move by a hook: nothing lost, nothing doubled, and a way back.

use crate::cutover_closed::users;
use crate::support::clients::{self, Clients, Options, Report, point};
use crate::support::cutter::Cutter;
use crate::support::keyferry::{Outcome, Plan};
use crate::support::need;
use crate::support::server::Setup;
use crate::support::story::{Endpoint, Story};
use crate::support::wait_until;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A migration with clients, and hooks that move them by a file.
pub struct Move {
    pub story: Story,
    pub file: PathBuf,
}

impl Move {
    pub fn new(source: Endpoint, target: Endpoint, cutover: Value) -> Move {
        Move::with(Story::new(source, target), cutover)
    }

    pub fn with(mut story: Story, cutover: Value) -> Move {
        let file = story.plan.dir().join("clients-at");
        point(&file, "source").expect("the file is written");
        let hook = |side: &str| {
            let (new, old) = (file.with_extension("hook"), file.display());
            let script = format!(
                "echo {side} > {} && mv {} {old}",
                new.display(),
                new.display()
            );
            json!(["sh", "-c", script])
        };
        let mut plan = json!({
            "watch_s": 2,
            "hooks": { "switch": hook("target"), "switch_back": hook("source") },
        });
        for (key, value) in cutover.as_object().into_iter().flatten() {
            match value {
                Value::Object(hooks) => {
                    for (name, hook) in hooks {
                        plan[key][name] = hook.clone();
                    }
                }
                other => plan[key] = other.clone(),
            }
        }
        story.plan.set("/cutover", plan);
        Move { story, file }
    }

    pub fn usual(cutover: Value) -> Option<Move> {
        let [name] = need(["any"])?;
        Some(Move::new(
            Endpoint::alone(Setup::new(&name).line("repl-backlog-size 64mb")),
            Endpoint::cluster(Setup::new(&name)),
            cutover,
        ))
    }

    pub fn plan(&self) -> &Plan {
        &self.story.plan
    }

    pub fn clients(&self, rate: u64) -> Clients {
        let story = &self.story;
        let side = |end: &Endpoint| (end.url(), end.is_cluster());
        clients::start(&Options {
            file: self.file.clone(),
            sides: [side(&story.source), side(&story.target)],
            clients: 10,
            rate,
        })
        .expect("the clients start")
    }

    /// Where the hook has sent the clients.
    pub fn at(&self) -> String {
        let text = std::fs::read_to_string(&self.file).unwrap_or_default();
        text.trim().to_owned()
    }

    /// Every acknowledged increment is there, and none twice.
    #[track_caller]
    pub fn exact(&self, side: &Endpoint, report: &Report) {
        let wrong = clients::wrong(&mut side.side(), report).expect("the counters are read");
        assert!(wrong.is_empty(), "{wrong:?}");
        assert!(report.writes > 100, "{report:?}");
    }

    /// The source takes writes.
    #[track_caller]
    pub fn thawed(&self, side: &Endpoint) {
        let began = Instant::now();
        let reply = side.nodes()[0].run("EVAL return(1) 0");
        assert!(!reply.is_error(), "{reply:?}");
        let mut open = side.side();
        let set = crate::support::wire::Command::new("SET")
            .key("thawed")
            .arg("1");
        let reply = open.run(&set).expect("an answer");
        assert!(!reply.is_error(), "{reply:?}");
        assert!(began.elapsed() < Duration::from_secs(1), "it was frozen");
    }
}

pub fn answer(outcome: &Outcome) -> &Value {
    println!("{}\n{}", outcome.stdout, outcome.stderr);
    &outcome.json
}

/// The whole story with a migration of its own; the pause is below a second.
#[test]
fn clients_move_without_losing_a_write() {
    let Some(it) = Move::usual(json!({})) else {
        return;
    };
    it.story.fill(3_000);
    it.plan().run("migrate --until caught-up --json").exits(0);
    let clients = it.clients(2_000);
    let rehearsed = it.plan().run("cutover --dry-run --json").exits(0);
    assert!(answer(&rehearsed)["predicted_pause_ms"].as_u64() < Some(2_000));
    assert_eq!(it.at(), "source");
    let outcome = it.plan().run("cutover --json").exits(0);
    let told = answer(&outcome);
    assert_eq!(told["clients_at"], "target");
    let report = clients.stop();
    println!("the clients saw a pause of {:?}", report.pause);
    assert_eq!(it.at(), "target");
    it.exact(&it.story.target, &report);
    assert!(report.pause < Duration::from_secs(2), "{:?}", report.pause);
    assert!(told["pause_ms"].as_f64() < Some(1_500.0), "{told}");
    assert_eq!(it.plan().status()["phase"], "switched");
    // Nothing of the old side is applied any more.
    it.plan()
        .run("migrate --until caught-up")
        .exits(3)
        .says(&["rollback"]);
    it.plan().run("cutover --json").exits(0);
}

/// Beside a migration that runs: it goes on when a gate refuses, and ends with the switch.
#[test]
fn a_planted_difference_leaves_everything_as_it_was() {
    let Some(it) = Move::usual(json!({})) else {
        return;
    };
    it.story.fill(1_000);
    let mut running = it.story.migrate();
    it.story.wait_loaded(&mut running);
    let clients = it.clients(500);
    it.plan()
        .wait_caught_up(&mut running, Duration::from_secs(60));
    let mut target = it.story.target.side();
    let set = crate::support::wire::Command::new("SET")
        .key("planted")
        .arg("1");
    target.run(&set).expect("a key is planted");
    let outcome = it.plan().run("cutover --json").exits(1);
    let told = answer(&outcome);
    assert_eq!(told["refused"]["gate"], "warm-up");
    assert!(
        told["refused"]["why"]
            .as_str()
            .unwrap_or("")
            .contains("planted"),
        "{told}"
    );
    assert_eq!(
        (it.at().as_str(), &told["clients_at"]),
        ("source", &json!("source"))
    );
    assert!(running.ended().is_none());
    it.thawed(&it.story.source);
    let unset = crate::support::wire::Command::new("DEL").key("planted");
    target.run(&unset).expect("it is removed");
    it.plan().run("cutover --json").exits(0);
    wait_until("the migration has ended", Duration::from_secs(20), || {
        running.ended().is_some()
    });
    let report = clients.stop();
    it.exact(&it.story.target, &report);
}

/// Back after a while of writes on the new side: the old side has them all.
#[test]
fn what_was_written_to_the_new_side_comes_back() {
    let Some(it) = Move::usual(json!({})) else {
        return;
    };
    it.story.fill(2_000);
    it.plan().run("migrate --until caught-up --json").exits(0);
    let clients = it.clients(1_000);
    it.plan().run("cutover --json").exits(0);
    assert_eq!(it.at(), "target");
    let options = crate::support::traffic::Options {
        rate: 500,
        seconds: 60,
        ..crate::support::traffic::Options::new(&it.story.target.url(), true)
    };
    let more = crate::support::traffic::start(&options).expect("traffic on the new side");
    let seconds = if std::env::var_os("KEYFERRY_FULL").is_some() {
        60
    } else {
        4
    };
    std::thread::sleep(Duration::from_secs(seconds));
    more.stop();
    let outcome = it.plan().run("rollback --json").exits(0);
    let told = answer(&outcome);
    assert_eq!(told["clients_at"], "source");
    assert_eq!(it.at(), "source");
    std::thread::sleep(Duration::from_millis(300));
    let report = clients.stop();
    println!("the clients saw a pause of {:?}", report.pause);
    it.exact(&it.story.source, &report);
    assert_eq!(it.plan().status()["phase"], "rolled-back");
    it.plan().run("rollback --json").exits(0);
    it.plan().run("cutover --json").exits(3).says(&["--fresh"]);
    // And there once more, from the beginning.
    let mut again = Plan::new(&it.story.source.url(), &it.story.target.url());
    again.set("/on_existing", json!("reconcile"));
    again.run("migrate --until caught-up --json").exits(0);
    again.run("verify --json").exits(0);
}

/// Each gate refuses: the clients are where they were, and nothing is frozen.
#[test]
fn gates_refuse_and_let_the_writers_go() {
    let hang = json!(["sh", "-c", "sleep 60"]);
    for (cutover, gate, why) in [
        (
            json!({"hooks": {"switch": ["sh", "-c", "echo no way; exit 1"]}}),
            "switch",
            "no way",
        ),
        (
            json!({"hooks": {"switch": hang}, "max_pause_ms": 1_500}),
            "switch",
            "longer than",
        ),
        (
            json!({"hooks": {"switch": ["/nowhere/hook"]}}),
            "switch",
            "start the switch hook",
        ),
        (
            json!({"freeze": "acl", "users": ["nobody"]}),
            "preflight",
            "nobody",
        ),
    ] {
        let Some(it) = Move::usual(cutover) else {
            return;
        };
        it.story.fill(500);
        let mut running = it.story.migrate();
        it.story.wait_loaded(&mut running);
        let clients = it.clients(300);
        it.plan()
            .wait_caught_up(&mut running, Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(700));
        let outcome = it.plan().run("cutover --json");
        let told = answer(&outcome).clone();
        let code = outcome.code;
        it.thawed(&it.story.source);
        assert!(running.ended().is_none(), "the migration goes on");
        let report = clients.stop();
        it.story.catch_up_and_stop(running);
        assert_eq!(it.at(), "source", "{gate}");
        if code != 2 {
            assert_eq!(code, 1, "{gate}");
            assert_eq!(told["refused"]["gate"], gate);
            let said = told["refused"]["why"].as_str().unwrap_or("").to_owned();
            assert!(said.contains(why), "{gate}: {said}");
        } else {
            assert!(outcome.stderr.contains(why), "{gate}");
        }
        it.exact(&it.story.source, &report);
        assert!(
            report.pause < Duration::from_secs(4),
            "{gate}: {:?}",
            report.pause
        );
    }
}

/// The lag stays above its bound.
#[test]
fn a_lag_is_a_gate() {
    let Some([name]) = need(["any"]) else { return };
    let mut it = Move::new(
        Endpoint::alone(Setup::new(&name)),
        Endpoint::alone(Setup::new(&name)),
        json!({"wait_s": 2, "max_lag_ms": 30}),
    );
    let line = Cutter::far(
        &it.story.target.nodes()[0].address(),
        Duration::from_millis(60),
    );
    let url = line.url();
    it.story.plan.set("/target/url", json!(url));
    it.story.fill(200);
    let clients = it.clients(300);
    let mut running = it.story.migrate();
    it.story.wait_loaded(&mut running);
    std::thread::sleep(Duration::from_secs(3));
    let outcome = it.plan().run("cutover --json").exits(1);
    let told = answer(&outcome);
    assert_eq!(told["refused"]["gate"], "preflight");
    assert!(
        told["refused"]["why"]
            .as_str()
            .unwrap_or("")
            .contains("lag"),
        "{told}"
    );
    it.thawed(&it.story.source);
    running.interrupt();
    running.wait(Duration::from_secs(60)).exits(130);
    it.exact(&it.story.source, &clients.stop());
}

/// The target has no memory left while the clients are to be moved.
#[test]
fn a_full_target_is_a_gate() {
    let Some([name]) = need(["any"]) else { return };
    let it = Move::new(
        Endpoint::alone(Setup::new(&name)),
        Endpoint::alone(Setup::new(&name)),
        json!({"max_pause_ms": 2_000}),
    );
    it.story.fill(500);
    let mut running = it.story.migrate();
    it.story.wait_loaded(&mut running);
    it.plan()
        .wait_caught_up(&mut running, Duration::from_secs(60));
    let target = &it.story.target.nodes()[0];
    let used = target.info("memory", "used_memory");
    target.run(&format!("CONFIG SET maxmemory {used}"));
    let clients = it.clients(300);
    std::thread::sleep(Duration::from_millis(500));
    let outcome = it.plan().run("cutover --json").exits(1);
    let told = answer(&outcome);
    assert!(
        told["refused"]["why"]
            .as_str()
            .is_some_and(|w| !w.is_empty()),
        "{told}"
    );
    assert_eq!(it.at(), "source");
    it.thawed(&it.story.source);
    let report = clients.stop();
    it.exact(&it.story.source, &report);
}

/// A key that expires at the old side right after the switch, and is made anew at the new one, lives.
#[test]
fn a_late_expiry_of_the_old_side_harms_nobody() {
    let Some(it) = Move::usual(json!({"watch_s": 4})) else {
        return;
    };
    it.story.fill(500);
    let mut running = it.story.migrate();
    it.story.wait_loaded(&mut running);
    it.plan()
        .wait_caught_up(&mut running, Duration::from_secs(60));
    let source = it.story.source.nodes()[0].client();
    let mut source = source;
    for n in 0..100 {
        source
            .words(&format!("SET late:{n} old PX 2500"))
            .expect("a key with an expiry");
    }
    let outcome = it.plan().start("cutover --json");
    wait_until(
        "the clients are at the target",
        Duration::from_secs(30),
        || it.at() == "target",
    );
    let mut target = it.story.target.side();
    let command = |words: &str, key: &str| crate::support::wire::Command::new(words).key(key);
    for n in 0..100 {
        let set = command("SET", &format!("late:{n}")).arg("new");
        target.run(&set).expect("it is made anew");
    }
    answer(&outcome.wait(Duration::from_secs(60)).exits(0));
    std::thread::sleep(Duration::from_secs(1));
    for n in 0..100 {
        let reply = target
            .run(&command("GET", &format!("late:{n}")))
            .expect("an answer");
        assert_eq!(reply.text(), "new", "late:{n}");
    }
    wait_until("the migration has ended", Duration::from_secs(20), || {
        running.ended().is_some()
    });
}

/// A managed source that is scanned, and a managed cluster: no CLIENT PAUSE, no ACL; the writers are frozen by a hook.
#[test]
fn by_scan_between_managed_providers() {
    let name = "azure-cache-scan";
    let from = &crate::support::profile::AZURE_CACHE;
    let to = &crate::support::profile::AZURE_MANAGED_OSS;
    let Some((story, ..)) = crate::journeys::story(name, None, from, to) else {
        return;
    };
    let hook = |word: &str| {
        json!([
            "sh",
            "-c",
            format!("echo {word} > at.new && mv at.new at; sleep 0.4")
        ])
    };
    let mut it = Move::with(story, json!({}));
    // The clients obey the same file.
    let file = it.file.display().to_string();
    let hook = |word: &str| {
        let mut hook = hook(word);
        hook[2] = json!(
            hook[2]
                .as_str()
                .unwrap_or("")
                .replace("at.new", &format!("{file}.new"))
                .replace(" at;", &format!(" {file};"))
        );
        hook
    };
    it.story.plan.set(
        "/cutover",
        json!({
            "watch_s": 1, "max_pause_ms": 30_000, "freeze": "hook",
            "hooks": {
                "switch": hook("target"), "switch_back": hook("source"),
                "freeze": hook("hold"), "thaw": hook("$KEYFERRY_CLIENTS_AT"),
            },
        }),
    );
    let mut running = it.story.migrate();
    it.story.wait_loaded(&mut running);
    let clients = it.clients(500);
    std::thread::sleep(Duration::from_secs(2));
    let outcome = it.plan().run("cutover --json").exits(0);
    let told = answer(&outcome);
    println!(
        "by scan the writers were paused for {} ms",
        told["pause_ms"]
    );
    wait_until("the migration has ended", Duration::from_secs(20), || {
        running.ended().is_some()
    });
    std::thread::sleep(Duration::from_secs(1));
    let outcome = it.plan().run("rollback --json").exits(0);
    println!("back again: {} ms", answer(&outcome)["pause_ms"]);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(it.at(), "source");
    let report = clients.stop();
    it.exact(&it.story.source, &report);
}

/// Where CLIENT PAUSE is not to be had, users lose the right to write, and get back what they had.
#[test]
fn users_lose_and_regain_their_rights() {
    let Some(it) =
        Move::usual(json!({"freeze": "acl", "hooks": {"switch": ["sh", "-c", "exit 9"]}}))
    else {
        return;
    };
    let source = &it.story.source.nodes()[0];
    source.run("ACL SETUSER app on nopass ~* +@all -@dangerous +info");
    let before = users(&it.story.source);
    it.story.fill(500);
    let mut running = it.story.migrate();
    it.story.wait_loaded(&mut running);
    let clients = it.clients(500);
    it.plan()
        .wait_caught_up(&mut running, Duration::from_secs(60));
    let outcome = it.plan().run("cutover --json").exits(1);
    assert_eq!(answer(&outcome)["refused"]["gate"], "switch");
    it.thawed(&it.story.source);
    assert_eq!(users(&it.story.source), before);
    let report = clients.stop();
    assert!(report.refused > 0, "nobody was refused while it was frozen");
    it.story.catch_up_and_stop(running);
    it.exact(&it.story.source, &report);
}

/// A person stops the writers; that nothing is written is the proof.
#[test]
fn an_operator_freezes() {
    let Some(it) = Move::usual(json!({"freeze": "operator", "wait_s": 4, "watch_s": 1})) else {
        return;
    };
    it.story.fill(500);
    it.plan().run("migrate --until caught-up --json").exits(0);
    let clients = it.clients(500);
    std::thread::sleep(Duration::from_millis(500));
    // Nobody stops them.
    let outcome = it.plan().run("cutover --json").exits(1);
    assert_eq!(answer(&outcome)["refused"]["gate"], "wait-for-operator");
    let cutover = it.plan().start("cutover --json");
    std::thread::sleep(Duration::from_secs(2));
    point(&it.file, "hold").expect("the clients are stopped");
    answer(&cutover.wait(Duration::from_secs(60)).exits(0));
    std::thread::sleep(Duration::from_millis(300));
    it.exact(&it.story.target, &clients.stop());
}

pub fn full() -> bool {
    std::env::var_os("KEYFERRY_FULL").is_some()
}
