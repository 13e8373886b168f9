//! The cutover under live clients that move by a hook: nothing lost, nothing doubled, and a way back.

use crate::support::clients::{self, Clients, Options, Report, point};
use crate::support::keyferry::{Outcome, Plan};
use crate::support::need;
use crate::support::server::{Server, Setup};
use crate::support::story::{Endpoint, Story};
use crate::support::wait_until;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A migration with clients, and hooks that move them by a file.
struct Move {
    story: Story,
    file: PathBuf,
}

impl Move {
    fn new(source: Endpoint, target: Endpoint, cutover: Value) -> Move {
        let mut story = Story::new(source, target);
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

    fn usual(cutover: Value) -> Option<Move> {
        let [name] = need(["any"])?;
        Some(Move::new(
            Endpoint::alone(Setup::new(&name).line("repl-backlog-size 64mb")),
            Endpoint::cluster(Setup::new(&name)),
            cutover,
        ))
    }

    fn plan(&self) -> &Plan {
        &self.story.plan
    }

    fn clients(&self, rate: u64) -> Clients {
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
    fn at(&self) -> String {
        let text = std::fs::read_to_string(&self.file).unwrap_or_default();
        text.trim().to_owned()
    }

    /// Every acknowledged increment is there, and none twice.
    #[track_caller]
    fn exact(&self, side: &Endpoint, report: &Report) {
        let wrong = clients::wrong(&mut side.side(), report).expect("the counters are read");
        assert!(wrong.is_empty(), "{wrong:?}");
        assert!(report.writes > 100, "{report:?}");
    }

    /// The source takes writes.
    #[track_caller]
    fn thawed(&self, side: &Endpoint) {
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

fn answer(outcome: &Outcome) -> &Value {
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
