//! Keys whose time to live is renewed while the target is behind: none is lost.

use crate::faults::pick;
use crate::support::cutter::Cutter;
use crate::support::keyferry::Plan;
use crate::support::server::{Server, Setup};
use crate::support::story::{Endpoint, Story};
use crate::support::wire::Command;
use crate::support::{need, wait_until};
use serde_json::json;
use std::time::Duration;

/// Two servers, and to the target a line of 100 ms, which is to be kept.
fn far(name: &str) -> (Story, Cutter) {
    let source = Endpoint::alone(Setup::new(name));
    let target = Endpoint::alone(Setup::new(name));
    let line = Cutter::far(&target.nodes()[0].address(), Duration::from_millis(100));
    let mut story = Story::new(source, target);
    story.plan.set("/target/url", json!(line.url()));
    (story, line)
}

/// Renewed in the last moment of their lives, over a line on which that comes too late: nothing is counted anew.
#[test]
fn renewals_that_come_too_late_lose_nothing() {
    let Some([name]) = need(["any"]) else { return };
    let (story, _line) = far(&name);
    story.fill(40);
    let mut running = story.migrate();
    story
        .plan
        .wait_caught_up(&mut running, Duration::from_secs(60));
    // What the first catching-up holds back is released by now.
    std::thread::sleep(Duration::from_secs(2));
    let mut client = story.source.nodes()[0].client();
    for round in 0..25 {
        for n in 0..40 {
            for words in [
                format!("INCR late:{n}"),
                format!("PEXPIRE late:{n} 390"),
                format!("ZADD late:{{{n}}}:z {round} m{round}"),
                format!("PEXPIRE late:{{{n}}}:z 390"),
                format!("ZUNIONSTORE late:{{{n}}}:u 1 late:{{{n}}}:z"),
            ] {
                client.words(&words).expect("an answer");
            }
        }
        std::thread::sleep(Duration::from_millis(320));
    }
    for n in 0..40 {
        for key in [format!("late:{n}"), format!("late:{{{n}}}:z")] {
            client
                .words(&format!("PEXPIRE {key} 600000"))
                .expect("an answer");
        }
    }
    story.catch_up_and_stop(running);
    story.verify();
    story.judge();
}

/// The same with fields of hashes, which have an expiry of their own: alone and in a transaction.
#[test]
fn fields_renewed_too_late_are_not_lost() {
    let Some([name]) = need(["redis-8.0"]) else {
        return;
    };
    let (story, _line) = far(&name);
    story.fill(40);
    let mut running = story.migrate();
    let soon = Duration::from_secs(60);
    story.plan.wait_caught_up(&mut running, soon);
    std::thread::sleep(Duration::from_secs(2));
    let mut client = story.source.nodes()[0].client();
    let mut run = |words: String| {
        client.words(&words).expect("an answer");
    };
    for n in 0..40 {
        run(format!("HSET late:{n} f {n} g {n}"));
    }
    for _ in 0..5 {
        for n in 0..40 {
            run(format!("HPEXPIRE late:{n} 390 FIELDS 1 f"));
        }
        std::thread::sleep(Duration::from_millis(320));
        for n in 0..40 {
            if n % 2 == 0 {
                run(format!("HPERSIST late:{n} FIELDS 1 f"));
            } else {
                run("MULTI".into());
                run(format!("HSET late:{n} h {n}"));
                run(format!("HPERSIST late:{n} FIELDS 1 f"));
                run("EXEC".into());
            }
        }
    }
    story.catch_up_and_stop(running);
    story.verify();
    story.judge();
}

/// Counters in such fields, counted and then renewed in the last moment: none begins anew at the target.
#[test]
fn counters_in_fields_go_on() {
    let Some([name]) = need(["redis-8.0"]) else {
        return;
    };
    let (story, _line) = far(&name);
    let mut client = story.source.nodes()[0].client();
    let mut run = |words: String| {
        client.words(&words).expect("an answer");
    };
    // Some come with the snapshot, some with the stream, some under another name.
    for n in 0..40 {
        run(format!("HSET count:{n} f 1000 g {n}"));
        run(format!("HPEXPIRE count:{n} 60000 FIELDS 1 f"));
    }
    let mut running = story.migrate();
    let soon = Duration::from_secs(60);
    story.plan.wait_caught_up(&mut running, soon);
    std::thread::sleep(Duration::from_secs(2));
    for n in 0..40 {
        match n % 4 {
            0 => run(format!("HDEL count:{n} f")),
            1 => run(format!("RENAME count:{n} count:new:{n}")),
            _ => {}
        }
    }
    let key = |n: u32| match n % 4 {
        1 => format!("count:new:{n}"),
        _ => format!("count:{n}"),
    };
    for round in 0..3 {
        // None after the last count: what follows there must not come so late that it tells that a field was gone.
        if round > 0 {
            std::thread::sleep(Duration::from_millis(320));
        }
        for n in 0..40 {
            let key = key(n);
            match n % 3 {
                0 => run(format!("HINCRBYFLOAT {key} f 1.5")),
                1 => run(format!("HINCRBY {key} f 1")),
                _ => {
                    run("MULTI".into());
                    run(format!("HSET {key} h {round}"));
                    run(format!("HINCRBY {key} f 1"));
                    run("EXEC".into());
                }
            }
            // As the count has just been sent, the renewal is not what tells that the field was gone.
            run(format!("HPEXPIRE {key} 390 FIELDS 1 f"));
        }
    }
    for n in 0..40 {
        let key = key(n);
        run(format!("HINCRBY {key} g 1"));
        run(format!("HPERSIST {key} FIELDS 1 f"));
    }
    story.catch_up_and_stop(running);
    story.verify();
    story.judge();
}

/// Some sources replicate HINCRBYFLOAT as an HSET, after which a field would be there for ever: its expiry is asked for.
#[test]
fn fields_keep_the_expiry_that_the_stream_hides() {
    let Some([name]) = need(["redis-8.0"]) else {
        return;
    };
    for right in ["", "-hpexpiretime"] {
        let user = format!("user default on nopass ~* &* +@all {right}");
        keep_expiries(Story::new(
            Endpoint::alone(Setup::new(&name).line(&user)),
            Endpoint::alone(Setup::new(&name)),
        ));
    }
}

fn keep_expiries(story: Story) {
    let mut client = story.source.nodes()[0].client();
    let mut run = |words: String| {
        client.words(&words).expect("an answer");
    };
    let mut make = |n: u32| {
        run(format!("HSET float:{n} f 1 g 2"));
        run(format!("HPEXPIRE float:{n} 900000 FIELDS 1 f"));
    };
    (0..20).for_each(&mut make);
    let mut running = story.migrate();
    let soon = Duration::from_secs(60);
    story.plan.wait_caught_up(&mut running, soon);
    (20..40).for_each(&mut make);
    for n in 0..40 {
        if n % 2 == 0 {
            run(format!("HINCRBYFLOAT float:{n} f 1.5"));
        } else {
            run("MULTI".into());
            run(format!("HINCRBYFLOAT float:{n} f 1.5"));
            run(format!("HSET float:{n} g 3"));
            run("EXEC".into());
        }
        if n % 5 == 0 {
            run(format!("HSET float:{n} f 4"));
        }
    }
    story.catch_up_and_stop(running);
    story.verify();
    // The judge asks for what the plan's user may not.
    story.source.nodes()[0].run("ACL SETUSER default +hpexpiretime");
    story.judge();
}

/// Keys whose TTL is renewed all the time are all there after a load that takes far longer than the TTL.
#[test]
fn renewed_expiries_survive_a_slow_load() {
    let Some([name]) = need(["any"]) else { return };
    let keys = pick(5_000, 50_000);
    let stretch = pick(12, 60);
    let mut story = Story::new(
        Endpoint::alone(Setup::new(&name).line("repl-backlog-size 256mb")),
        Endpoint::alone(Setup::new(&name)),
    );
    story.fill(2_000);
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writer = {
        let (stop, address) = (stop.clone(), story.source.nodes()[0].address());
        std::thread::spawn(move || renew(&address, keys, &stop))
    };
    wait_until(
        "the first round is written",
        Duration::from_secs(20),
        || story.source.nodes()[0].run("DBSIZE").int().unwrap_or(0) as u64 >= keys,
    );
    story
        .plan
        .set("/limits", json!({ "keys_per_s": (keys + 2_000) / stretch }));
    let mut running = story.migrate();
    story.wait_loaded(&mut running);
    story
        .plan
        .wait_caught_up(&mut running, Duration::from_secs(60));
    // While they are still renewed, none of them may be missing.
    let mut missing = 0;
    let mut client = story.target.nodes()[0].client();
    for n in 0..keys {
        client.push(&crate::support::wire::Command::new("EXISTS").key(format!("renewed:{n}")));
    }
    client.flush().expect("the questions are sent");
    for reply in client.replies().expect("the answers") {
        missing += u64::from(reply.int() != Some(1));
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    writer.join().expect("the writer");
    assert_eq!(missing, 0, "of {keys}");
    story.catch_up_and_stop(running);
    story.judge();
}

/// Sets every key with 5 s to live, again every 2 s.
fn renew(address: &str, keys: u64, stop: &std::sync::atomic::AtomicBool) {
    use crate::support::wire::{Client, Command};
    let mut client = Client::connect(address).expect("a connection");
    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
        let round = std::time::Instant::now();
        for chunk in (0..keys).collect::<Vec<_>>().chunks(500) {
            for n in chunk {
                let set = Command::new("SET").key(format!("renewed:{n}")).arg("x");
                client.push(&set.args(["PX", "5000"]));
            }
            client.flush().expect("the writes are sent");
            client.replies().expect("the answers");
        }
        std::thread::sleep(Duration::from_secs(2).saturating_sub(round.elapsed()));
    }
}

/// Redis 6 sends expiries that count from when the command ran; what is written while a snapshot comes waits for its end.
#[test]
fn what_was_written_while_the_snapshot_came_expires_in_time() {
    let Some([name, target]) = need(["redis-6.2", "any"]) else {
        return;
    };
    let (source, target) = (Server::start(&name), Server::start(&target));
    let mut client = source.client();
    for n in 0..400 {
        let set = Command::new("SET").key(format!("key:{n}")).arg("value");
        client.expect(&set).expect("SET");
    }
    // A snapshot of four seconds.
    client
        .words("CONFIG SET rdb-key-save-delay 10000")
        .expect("an answer");
    let plan = Plan::new(&source.url(), &target.url());
    let mut running = plan.start("migrate --json");
    let limit = Duration::from_secs(60);
    wait_until("the snapshot comes", limit, || {
        source.info("replication", "connected_slaves") == 1
    });
    for n in 0..50 {
        let words = match n % 2 {
            0 => format!("SET written:{n} x EX 1000"),
            _ => format!("EXPIRE key:{n} 1000"),
        };
        client.words(&words).expect("an answer");
    }
    plan.wait_caught_up(&mut running, limit);
    plan.run("verify --json").exits(0);
    running.interrupt();
    running.wait(limit).exits(130);
}
