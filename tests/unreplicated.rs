//! What a source does not replicate, so that no replica of it gets it: listed, and no difference; all else is one.

use crate::cutover::Move;
use crate::faults::fail_over;
use crate::support::need;
use crate::support::server::{self, Server, Setup};
use crate::support::skip;
use crate::support::story::{Endpoint, Story};
use crate::support::wait_until;
use crate::support::wire::Command;
use serde_json::{Value, json};
use std::time::Duration;

const STREAMS: usize = 5;

fn entries_read(server: &Server, key: &str) -> Value {
    let groups = server.run(&format!("XINFO GROUPS {key}"));
    let group = groups.items()[0].items();
    let at = group.iter().position(|f| f.text() == "entries-read");
    json!(at.and_then(|at| group[at + 1].int()))
}

#[test]
fn what_no_replica_gets_is_listed_and_is_no_difference() {
    for name in ["redis-6.2", "redis-7.0", "redis-8.0", "valkey-9.1"] {
        if server::find(name).is_none() {
            skip(&format!("{name} is not here"));
            continue;
        }
        let story = Story::new(
            Endpoint::alone(Setup::new(name)),
            Endpoint::alone(Setup::new(name)),
        );
        let it = Move::with(story, json!({}));
        let (source, target) = (&it.story.source.nodes()[0], &it.story.target.nodes()[0]);
        let each = |command: &str| {
            (0..STREAMS).for_each(|n| drop(source.run(&command.replace("{#}", &n.to_string()))));
        };
        for id in 1..5 {
            each(&format!("XADD s{{#}} {id}-0 field value"));
        }
        each("XGROUP CREATE s{#} g 0");
        let mut running = it.story.migrate();
        it.story.wait_loaded(&mut running);
        each("XREADGROUP GROUP g c COUNT 3 STREAMS s{#} >");
        // Its history once more, and that of one who has none.
        each("XREADGROUP GROUP g c STREAMS s{#} 0");
        each("XREADGROUP GROUP g fresh STREAMS s{#} 0");
        it.story.catch_up_and_stop(running);
        let answer = it.plan().run("verify --json").exits(0).json;
        assert_eq!(answer["equal"], true, "{name}: {answer}");
        assert_eq!(answer["not_replicated_count"], STREAMS, "{name}: {answer}");
        let listed = answer["not_replicated"].as_array().expect("a list");
        let reason = listed[0]["reason"].as_str().unwrap_or_default();
        assert!(reason.contains("not replicated"), "{answer}");
        assert_eq!(answer["slots_different"], 0, "{answer}");
        let said = it.plan().run("verify").exits(0).stdout;
        assert!(said.contains("no replica of the source has it"), "{said}");
        // Nor is it a reason not to move.
        it.plan().run("cutover --dry-run").exits(0);
        // What else a group may differ in is a difference.
        let mut wrong = vec![
            ("XACK s0 g 1-0", "s0"),
            ("XCLAIM s1 g c 0 1-0 RETRYCOUNT 9", "s1"),
            ("XGROUP CREATECONSUMER s2 g stranger", "s2"),
            ("XGROUP SETID s3 g 2-0", "s3"),
        ];
        if !name.starts_with("redis-6") {
            // The master that was read at is the master still: what its group has read is known.
            wrong.push(("XGROUP SETID s4 g 3-0 ENTRIESREAD 2", "s4"));
        }
        for (command, _) in &wrong {
            assert!(!target.run(command).is_error(), "{name}: {command}");
        }
        let answer = it.plan().run("verify --json").exits(1).json;
        let different = answer["different"].as_array().expect("a list");
        let found: Vec<_> = different
            .iter()
            .map(|d| (&d["key"], &d["reason"]))
            .collect();
        for (command, key) in &wrong {
            let wanted = (&json!(key), &json!("group state"));
            assert!(found.contains(&wanted), "{name}: {command}: {answer}");
        }
        it.plan().run("cutover --dry-run").exits(1);
        let repaired = it.plan().run("verify --repair --json").exits(0).json;
        assert_eq!(repaired["repaired_count"], wrong.len(), "{repaired}");
    }
}

/// Replicas of Redis 7.0 do not know how much a group has read: the one that is promoted has less than the target.
#[test]
fn what_a_promoted_replica_lacks_is_no_difference() {
    let Some([name]) = need(["redis-7.0"]) else {
        return;
    };
    let mut story = Story::new(
        Endpoint::replicated(Setup::new(&name)),
        Endpoint::alone(Setup::new(&name)),
    );
    let mut running = story.migrate();
    let mut side = story.source.side();
    let mut run = |before: &str, n: usize, after: &str| {
        let command = Command::new(before).key(format!("s{n}"));
        let command = after.split(' ').fold(command, |c, word| c.arg(word));
        let answer = side.run(&command).expect("an answer");
        assert!(!answer.is_error(), "{before} {after}: {}", answer.text());
    };
    for n in 0..60 {
        run("XADD", n, "1-0 field value");
        run("XADD", n, "2-0 field value");
        run("XGROUP CREATE", n, "g 0");
    }
    story.wait_loaded(&mut running);
    for n in 0..60 {
        run("XREADGROUP GROUP g c COUNT 1 STREAMS", n, ">");
    }
    let target = &story.target.nodes()[0];
    wait_until("what was read is known", Duration::from_secs(30), || {
        (0..60).all(|n| entries_read(target, &format!("s{n}")) == 1)
    });
    let Endpoint::Cluster(cluster) = &mut story.source else {
        unreachable!()
    };
    fail_over(cluster, 0, Duration::ZERO);
    story.catch_up_and_stop(running);
    let answer = story.verify().json;
    assert!(
        answer["not_replicated_count"].as_u64() > Some(5),
        "{answer}"
    );
    assert_eq!(answer["different_count"], 0, "{answer}");
}
