//! What is too large to be held: long commands and transactions of the stream, large values that are read again.

use crate::support::cutter::Cutter;
use crate::support::dataset::fill_volume;
use crate::support::keyferry::Running;
use crate::support::rng::Rng;
use crate::support::server::Setup;
use crate::support::story::{Endpoint, Story};
use crate::support::wire::{Client, Command};
use crate::support::{need, wait_until};
use serde_json::json;
use std::time::Duration;

const MIB: u64 = 1 << 20;
/// What the plan allows.
const MEMORY: u64 = 64 * MIB;

/// Two servers whose migration has little memory.
fn narrow(name: &str) -> Story {
    let lines = [
        "repl-backlog-size 512mb",
        "client-output-buffer-limit replica 0 0 0",
    ];
    let mut story = Story::new(
        Endpoint::alone(Setup::new(name).lines(&lines)),
        Endpoint::alone(Setup::new(name)),
    );
    story.plan.set("/limits", json!({ "memory_bytes": MEMORY }));
    story
}

/// A migration that has caught up.
#[track_caller]
fn following(story: &Story) -> Running {
    let mut running = story.migrate();
    story
        .plan
        .wait_caught_up(&mut running, Duration::from_secs(60));
    running
}

/// A migration that has been stopped when it had caught up, and goes on without saving: what follows is a window after
/// a crash. What it has applied only the target tells.
#[track_caller]
fn following_unsaved(story: &Story) -> Running {
    story.catch_up_and_stop(story.migrate());
    story
        .plan
        .start_with("migrate --json", &[("KEYFERRY_BENCH_SAVE_MS", "600000")])
}

fn send(client: &mut Client, command: &Command) {
    let answer = client.expect(command).expect("an answer");
    assert!(!answer.is_error(), "{}", answer.text());
}

/// Ends the migration when all is applied, and looks at the memory that it took.
#[track_caller]
fn ends_within_bounds(story: &Story, running: Running) {
    let mut running = running;
    story
        .plan
        .wait_caught_up(&mut running, Duration::from_secs(120));
    let peak = running.peak_memory();
    story.catch_up_and_stop(running);
    println!("peak memory {} MiB", peak / MIB);
    assert!(peak > 0 && peak < MEMORY, "peak memory {} MiB", peak / MIB);
    story.judge();
}

#[test]
fn what_is_too_long_to_be_held_is_applied() {
    let Some([name]) = need(["any"]) else { return };
    let story = narrow(&name);
    let mut running = following(&story);
    let mut client = story.source.nodes()[0].client();
    // DUMP packs what repeats.
    let mut rng = Rng::new(9);
    let mut large = |mb: usize| rng.bytes(mb << 20);
    send(
        &mut client,
        &Command::new("SET long:1")
            .arg(large(48))
            .arg("PX")
            .arg("500000"),
    );
    send(&mut client, &Command::new("APPEND long:1 x"));
    let mut many = Command::new("MSET");
    for n in 0..40 {
        many = many.arg(format!("long:many:{n}")).arg(large(1));
    }
    send(&mut client, &many);
    let items = (0..30).map(|_| large(1));
    send(
        &mut client,
        &Command::new("RPUSH long:list first").args(items),
    );
    send(&mut client, &Command::new("RPUSH long:list last"));
    // A transaction that is as long, in two databases, with a large value inside.
    let script = "for n = 1, 30 do redis.call('INCRBY', 'tx:n', n) \
         redis.call('SET', 'tx:' .. n, string.rep('x', 1000000)) end \
         redis.call('SET', 'tx:long', string.rep('y', 20000000)) \
         redis.call('SELECT', 3) redis.call('SET', 'other', 'database') \
         for n = 1, 10 do redis.call('APPEND', 'tx', string.rep('z', 1000000)) end \
         redis.call('SELECT', 0) redis.call('INCR', 'tx:n')";
    send(&mut client, &Command::new("EVAL").arg(script).arg("0"));
    send(&mut client, &Command::new("INCR tx:n"));
    story
        .plan
        .wait_status(&mut running, "healed", Duration::from_secs(60), |s| {
            s["healed_keys"].as_u64() >= Some(43)
        });
    ends_within_bounds(&story, running);
}

/// What follows such a command may read what it has written: alone, or in a transaction.
#[test]
fn what_follows_a_long_command_sees_its_value() {
    let Some([name]) = need(["any"]) else { return };
    let story = narrow(&name);
    let running = following(&story);
    let mut client = story.source.nodes()[0].client();
    let mut rng = Rng::new(11);
    for n in 0..6 {
        client.push(&Command::new(&format!("SET big:{n} old")));
        client.push(&Command::new(&format!("SET big:{n}")).arg(rng.bytes(5 << 20)));
        if n % 3 > 0 {
            client.push(&Command::new("MULTI"));
            client.push(&Command::new(&format!("APPEND big:{n} x")));
            client.push(&Command::new(&format!("RENAME big:{n} other:{n}")));
            client.push(&Command::new(&format!("INCR count:{n}")));
            client.push(&Command::new("EXEC"));
        } else {
            client.push(&Command::new(&format!("RENAME big:{n} other:{n}")));
            client.push(&Command::new(&format!("APPEND other:{n} x")));
        }
        client.replies().expect("answers");
    }
    ends_within_bounds(&story, running);
}

/// In the middle of such a transaction; the next run may have room for all of it.
#[test]
fn a_crash_within_a_transaction_counts_nothing_twice_with_more_memory() {
    let Some([name]) = need(["any"]) else { return };
    let mut story = narrow(&name);
    // So slow that the crash comes before its end has.
    let line = Cutter::far(&story.source.nodes()[0].address(), Duration::from_millis(5));
    story.plan.set("/source/url", json!(line.url()));
    let mut running = story.plan.start_with(
        "migrate --json",
        &[("KEYFERRY_FAILPOINT", "stream-command:150")],
    );
    story
        .plan
        .wait_caught_up(&mut running, Duration::from_secs(60));
    let mut client = story.source.nodes()[0].client();
    let script = "for n = 1, 60 do redis.call('INCR', 'n') redis.call('INCR', 'n:' .. n) \
         redis.call('RPUSH', 'l', string.rep('x', 100000)) end";
    send(&mut client, &Command::new("EVAL").arg(script).arg("0"));
    running.wait(Duration::from_secs(20));
    let mut target = story.target.nodes()[0].client();
    let there = target.words("EXISTS n:60 n:5").expect("an answer").int();
    assert_eq!(there, Some(1), "it is not applied in part");
    client.words("INCR n").expect("an answer");
    story
        .plan
        .set("/limits", json!({ "memory_bytes": 512 * MIB }));
    story.catch_up_and_stop(story.migrate());
    story.judge();
}

/// In the middle of such a transaction.
#[test]
fn a_crash_within_a_long_transaction_counts_nothing_twice() {
    let Some([name]) = need(["any"]) else { return };
    let story = narrow(&name);
    let running = following(&story);
    let mut client = story.source.nodes()[0].client();
    let script = "redis.call('SELECT', 2) \
         for n = 1, 400 do redis.call('INCR', 'n') redis.call('INCR', 'n:' .. n) \
         redis.call('RPUSH', 'l', string.rep('x', 100000)) end redis.call('SELECT', 0)";
    send(&mut client, &Command::new("EVAL").arg(script).arg("0"));
    let mut target = story.target.nodes()[0].client();
    target.words("SELECT 2").expect("an answer");
    wait_until("it is applied in part", Duration::from_secs(20), || {
        target.words("EXISTS n:50").expect("an answer").int() == Some(1)
    });
    running.signal("KILL");
    running.wait(Duration::from_secs(10));
    client.words("INCR n").expect("an answer");
    ends_within_bounds(&story, story.migrate());
}

/// Marks that are not saved: all that was written is read again.
#[test]
fn large_values_are_read_again_in_bounded_memory() {
    let Some([name]) = need(["any"]) else { return };
    let story = narrow(&name);
    let mut client = story.source.nodes()[0].client();
    fill_volume(&mut client, 16, 4_000_000).expect("the volume is written");
    let running = following_unsaved(&story);
    let keys = client.words("KEYS *").expect("an answer");
    for key in keys.items() {
        send(
            &mut client,
            &Command::new("APPEND").arg(key.bytes()).arg("x"),
        );
    }
    for n in 0..60_000 {
        client.push(
            &Command::new("HSET large")
                .arg(format!("field {n}"))
                .arg(Rng::new(n).word(200)),
        );
        if n % 1_000 == 0 {
            client.replies().expect("the hash is written");
        }
    }
    client.replies().expect("the hash is written");
    send(&mut client, &Command::new("EXPIRE large 1000"));
    let mut target = story.target.nodes()[0].client();
    wait_until("it is applied", Duration::from_secs(60), || {
        target.words("TTL large").expect("an answer").int() > Some(0)
    });
    running.signal("KILL");
    running.wait(Duration::from_secs(10));
    client.words("HINCRBY large n 1").expect("an answer");
    let mut running = story.migrate();
    story
        .plan
        .wait_status(&mut running, "healed", Duration::from_secs(60), |s| {
            s["healed_keys"].as_u64() >= Some(17)
        });
    ends_within_bounds(&story, running);
}

/// The target's connections are cut while the parts of such a value are on their way.
#[test]
fn a_large_value_that_is_cut_off_is_begun_again() {
    let Some([name]) = need(["any"]) else { return };
    let mut story = narrow(&name);
    let line = Cutter::start(&story.target.nodes()[0].address(), 7, 8_000_000);
    story.plan.set("/target/url", json!(line.url()));
    let running = following(&story);
    let mut client = story.source.nodes()[0].client();
    for n in 0..2 {
        let key = format!("long:{n}");
        let value = Rng::new(n).bytes(32_000_000);
        send(&mut client, &Command::new("SET").arg(&key).arg(value));
        send(&mut client, &Command::new("APPEND").arg(&key).arg("x"));
    }
    wait_until("it is cut a few times", Duration::from_secs(60), || {
        line.cuts() >= 3
    });
    line.calm();
    ends_within_bounds(&story, running);
}

/// Vector sets are modules' values: no command puts one together, so each is one RESTORE whatever its size.
#[test]
fn a_large_value_of_a_module_arrives() {
    let Some([name]) = need(["redis-8.0"]) else {
        return;
    };
    let mut story = narrow(&name);
    let mut client = story.source.nodes()[0].client();
    let mut rng = Rng::new(5);
    let mut add = |client: &mut Client, n: usize| {
        let vector = rng.bytes(1_536).into_iter();
        let vector: Vec<u8> = vector.flat_map(|b| f32::from(b).to_le_bytes()).collect();
        let command = Command::new("VADD vectors FP32").arg(vector);
        client.push(&command.arg(format!("e{n}")).arg("NOQUANT"));
    };
    (0..1_200).for_each(|n| add(&mut client, n));
    client.replies().expect("the vectors are written");
    client.words("EXPIRE vectors 5000").expect("an answer");
    let running = following_unsaved(&story);
    let count = |story: &Story| story.target.nodes()[0].run("VCARD vectors").int();
    assert_eq!(count(&story), Some(1_200));
    // Read again after a crash.
    add(&mut client, 1_200);
    client.replies().expect("a vector is written");
    wait_until("it is applied", Duration::from_secs(10), || {
        count(&story) == Some(1_201)
    });
    running.signal("KILL");
    running.wait(Duration::from_secs(10));
    let running = following(&story);
    let peak = running.peak_memory();
    assert!(peak > 0 && peak < MEMORY, "peak memory {} MiB", peak / MIB);
    // Each server links the vectors in its own way: that is no difference.
    add(&mut client, 1_201);
    client
        .words("VADD small VALUES 3 1 2 3 a SETATTR {\"n\":1}")
        .expect("an answer");
    client
        .words("VADD small VALUES 3 2 2 3 b")
        .expect("an answer");
    client.replies().expect("a vector is written");
    story.catch_up_and_stop(running);
    story.verify();
    story.target.nodes()[0].run("VSETATTR small a {}");
    story.plan.run("verify --json").exits(1);
    // Without a stream.
    story.target.nodes()[0].run("FLUSHALL");
    story.plan.set("/source/mode", json!("scan"));
    story
        .plan
        .run("migrate --fresh --until caught-up --json")
        .exits(0);
    assert_eq!(count(&story), Some(1_202));
    story.verify();
}

/// A large hash goes to a target whose fields cannot expire, without their expiries: a loss that is told.
#[test]
fn expiries_of_fields_in_a_large_hash_are_a_listed_loss() {
    let Some([new, old]) = need(["redis-8.0", "redis-7.0"]) else {
        return;
    };
    let mut story = Story::new(
        Endpoint::alone(Setup::new(&new)),
        Endpoint::alone(Setup::new(&old)),
    );
    story.plan.set("/limits", json!({ "memory_bytes": MEMORY }));
    let mut client = story.source.nodes()[0].client();
    let mut rng = Rng::new(3);
    for n in 0..40_000 {
        let value = rng.word(150);
        client.push(&Command::new("HSET large").arg(format!("f{n}")).arg(value));
        if n % 1_000 == 0 {
            client.replies().expect("the hash is written");
        }
    }
    client.replies().expect("the hash is written");
    client
        .words("HPEXPIRE large 5000000 FIELDS 1 f7")
        .expect("an answer");
    story
        .plan
        .run("migrate --until caught-up --json")
        .exits(3)
        .says(&["large", "expiry"]);
    story.plan.set("/on_loss", json!("list"));
    story.plan.set("/on_existing", json!("replace"));
    story.plan.run("migrate --fresh --until caught-up --json");
    let len = story.target.nodes()[0].run("HLEN large").int();
    assert_eq!(len, Some(40_000));
    let skipped = story.plan.status()["skipped"].to_string();
    assert!(skipped.contains("field_expiry"), "{skipped}");
}
