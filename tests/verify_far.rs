//! A verification far from both sides: it finds what one nearby finds, in about as many round trips however many keys
//! there are, and within its memory.

use crate::support::far::{Far, Line};
use crate::support::keyferry::Plan;
use crate::support::server::Setup;
use crate::support::story::Endpoint;
use crate::support::wire::Command;
use crate::support::{need, wait_until};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const ONE_WAY: Duration = Duration::from_millis(20);
const ROUND_TRIP: f64 = 0.040;
/// Round trips one after the other that a verification of a few ten thousand keys may take: looking at both sides,
/// connecting to them, listing, reading, and the questions at the end. It takes a third of that on a machine at rest.
const TRIPS: f64 = 150.0;

/// Two sides behind lines that can be made long.
struct Pair {
    source: Endpoint,
    target: Endpoint,
    line: Line,
    plan: Plan,
    _fars: Vec<Far>,
}

impl Pair {
    fn new(source: Endpoint, target: Endpoint) -> Pair {
        let line = Line::default();
        let mut plan = Plan::new(&source.url(), &target.url());
        let mut fars = Vec::new();
        for (name, end) in [("source", &source), ("target", &target)] {
            match end {
                Endpoint::Alone(server) => {
                    let far = Far::with(&server.address(), line.clone());
                    plan.set(&format!("/{name}/url"), json!(far.url()));
                    fars.push(far);
                }
                Endpoint::Cluster(cluster) => {
                    let (more, map) = Far::before(cluster.addresses(), &line);
                    plan.set(&format!("/{name}/address_map"), map);
                    fars.extend(more);
                }
            }
        }
        Pair {
            source,
            target,
            line,
            plan,
            _fars: fars,
        }
    }

    /// Gives both sides the same keys.
    fn fill(&self, commands: &[Command]) {
        for end in [&self.source, &self.target] {
            let answers = end.side().all(commands).expect("answers");
            assert!(!answers.iter().any(|a| a.is_error()), "{answers:?}");
        }
    }

    fn verify(&self, code: i32) -> (Value, f64) {
        let began = Instant::now();
        let found = self.plan.run("verify --json --fresh").exits(code).json;
        (found, began.elapsed().as_secs_f64())
    }

    /// Nearby and far away: the same is found, and distance costs no more than so many round trips.
    fn near_and_far(&self, code: i32, trips: f64) -> Value {
        self.line.delay(Duration::ZERO);
        let (near, took) = self.verify(code);
        self.line.delay(ONE_WAY);
        let (far, far_took) = self.verify(code);
        self.line.delay(Duration::ZERO);
        for field in [
            "equal",
            "keys_source",
            "keys_target",
            "missing",
            "extra",
            "different",
            "unprovable_count",
        ] {
            assert_eq!(near[field], far[field], "{field}");
        }
        // What else the machine does is no distance.
        let more = (far_took - 2.0 * took) / ROUND_TRIP;
        println!("{took:.2} s near, {far_took:.2} s far: {more:.0} round trips");
        assert!(
            more < trips,
            "{more:.0} round trips: {took:.2} s near, {far_took:.2} s far"
        );
        far
    }
}

/// Strings, some with an expiry, and some hashes.
fn keys(many: u32) -> Vec<Command> {
    let key = |n: u32| match n {
        n if n % 50 == 0 => Command::new("HSET")
            .key(format!("hash:{n}"))
            .arg("f")
            .arg(n),
        n => Command::new("SET").key(format!("key:{n}")).arg(n),
    };
    let expiry = |n: u32| {
        let command = Command::new("PEXPIREAT").key(format!("key:{n}"));
        command.arg(4_000_000_000_000u64)
    };
    let expiries = (0..many).step_by(7).map(expiry);
    (0..many).map(key).chain(expiries).collect()
}

/// A difference of each kind at the target; two of them are values.
fn damage(pair: &Pair) {
    let mut side = pair.target.side();
    for (command, key, rest) in [
        ("DEL", "key:1", &[][..]),
        ("SET", "key:2", &["other"]),
        ("HSET", "hash:50", &["f", "other"]),
        ("SET", "extra:1", &["x"]),
        ("PERSIST", "key:7", &[]),
        ("PEXPIREAT", "key:3", &["4000000000000"]),
    ] {
        let command = Command::new(command).key(key).args(rest.iter().copied());
        let answer = side.run(&command).expect("an answer");
        assert!(!answer.is_error(), "{answer:?}");
    }
}

fn every_kind(pair: &Pair, trips: f64) {
    let equal = pair.near_and_far(0, trips);
    assert_eq!(equal["equal"], true);
    damage(pair);
    // What differs is read several times before it is called so.
    let found = pair.near_and_far(1, trips + 60.0);
    let names = |list: &str| -> Vec<(String, String)> {
        let keys = found[list].as_array().into_iter().flatten();
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let mut names: Vec<_> = keys
            .map(|k| (text(&k["key"]), text(&k["reason"])))
            .collect();
        names.sort();
        names
    };
    let own = |names: &[(&str, &str)]| -> Vec<(String, String)> {
        let pair = |(a, b): &(&str, &str)| ((*a).to_owned(), (*b).to_owned());
        names.iter().map(pair).collect()
    };
    assert_eq!(names("missing"), own(&[("key:1", "missing")]));
    assert_eq!(names("extra"), own(&[("extra:1", "extra")]));
    let different = own(&[
        ("hash:50", "value"),
        ("key:2", "value"),
        ("key:3", "expiry"),
        ("key:7", "expiry"),
    ]);
    assert_eq!(names("different"), different);
}

#[test]
fn every_difference_is_found_far_from_a_server_and_a_cluster() {
    let Some([name]) = need(["any"]) else { return };
    let pair = Pair::new(
        Endpoint::alone(Setup::new(&name)),
        Endpoint::cluster(Setup::new(&name)),
    );
    pair.fill(&keys(20_000));
    every_kind(&pair, TRIPS);
}

#[test]
fn every_difference_is_found_far_from_two_clusters() {
    let Some([name]) = need(["any"]) else { return };
    let pair = Pair::new(
        Endpoint::cluster(Setup::new(&name)),
        Endpoint::cluster(Setup::new(&name)),
    );
    pair.fill(&keys(20_000));
    every_kind(&pair, TRIPS);
}

#[test]
fn every_difference_is_found_far_away_in_several_databases() {
    let Some([name]) = need(["any"]) else { return };
    let pair = Pair::new(
        Endpoint::alone(Setup::new(&name)),
        Endpoint::alone(Setup::new(&name)),
    );
    pair.fill(&keys(20_000));
    for end in [&pair.source, &pair.target] {
        let mut client = end.nodes()[0].client();
        client.words("SELECT 3").expect("a database");
        for command in keys(3_000) {
            client.push(&command);
        }
        client.flush().expect("it is sent");
        client.replies().expect("answers");
    }
    every_kind(&pair, TRIPS);
    let mut client = pair.target.nodes()[0].client();
    client.words("SELECT 3").expect("a database");
    client.words("DEL key:11").expect("an answer");
    client.words("SET extra:3 x").expect("an answer");
    let (found, _) = pair.verify(1);
    assert_eq!(found["missing_count"], 2, "{found}");
    assert_eq!(found["extra_count"], 2, "{found}");
}

/// Many keys that differ are confirmed together.
#[test]
fn many_differences_take_no_more_round_trips_than_a_few() {
    let Some([name]) = need(["any"]) else { return };
    let pair = Pair::new(
        Endpoint::alone(Setup::new(&name)),
        Endpoint::alone(Setup::new(&name)),
    );
    pair.fill(&keys(2_000));
    let side = |end: &Endpoint, value: &str| {
        let key = |n| Command::new("SET").key(format!("apart:{n}")).arg(value);
        let sets: Vec<Command> = (0..15_000).map(key).collect();
        end.side().all(&sets).expect("answers");
    };
    side(&pair.source, "here");
    side(&pair.target, "there");
    let found = pair.near_and_far(1, TRIPS + 100.0);
    assert_eq!(found["different_count"], 15_000);
}

/// Far away more is on its way, but no more than the memory allows.
#[test]
fn values_of_all_sizes_far_away_stay_within_the_memory() {
    let Some([name]) = need(["any"]) else { return };
    let pair = Pair::new(
        Endpoint::alone(Setup::new(&name)),
        Endpoint::alone(Setup::new(&name)),
    );
    // What cannot be compressed.
    let mut seed = 7u64;
    let mut noise = |bytes: usize| -> Vec<u8> {
        let word = |_| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33).to_le_bytes()
        };
        (0..bytes / 8).flat_map(word).collect()
    };
    let mut commands = Vec::new();
    for n in 0..20_000u32 {
        // Every value that is called large somewhere, and those right below.
        let bytes = match n {
            n if n % 400 == 0 => 1_900_000,
            n if n % 50 == 0 => 100_000,
            n if n % 3 == 0 => 4_000,
            _ => 40,
        };
        let key = format!("key:{n}");
        commands.push(match n % 2 {
            0 => Command::new("SET").key(key).arg(noise(bytes)),
            _ => Command::new("RPUSH")
                .key(key)
                .arg(noise(bytes / 2))
                .arg(noise(bytes / 2)),
        });
        if commands.len() == 1_000 {
            pair.fill(&commands);
            commands.clear();
        }
    }
    pair.line.delay(ONE_WAY);
    let (found, _) = pair.verify(0);
    let peak = found["peak_rss_bytes"].as_u64().expect("a peak");
    println!("{} MiB", peak >> 20);
    assert!(peak < 256 << 20, "{} MiB", peak >> 20);
}

/// Stopped in the middle, far away, it goes on there and finds what is behind it and what is before.
#[test]
fn stopped_far_away_it_goes_on() {
    let Some([name]) = need(["any"]) else { return };
    let ends = [
        (
            Endpoint::alone(Setup::new(&name)),
            Endpoint::cluster(Setup::new(&name)),
        ),
        (
            Endpoint::cluster(Setup::new(&name)),
            Endpoint::alone(Setup::new(&name)),
        ),
    ];
    for (source, target) in ends {
        let mut pair = Pair::new(source, target);
        pair.fill(&keys(20_000));
        damage(&pair);
        pair.line.delay(ONE_WAY / 4);
        pair.plan.set("/limits", json!({ "keys_per_s": 5_000 }));
        let mut running = pair.plan.start("verify --json");
        let state = pair.plan.work_dir().join("test/state.sqlite");
        wait_until("progress is saved", Duration::from_secs(30), || {
            assert!(running.ended().is_none(), "it ended before it was stopped");
            saved(&state).is_some_and(|n| n >= 6_000)
        });
        running.interrupt();
        running.wait(Duration::from_secs(10)).exits(130);
        pair.plan.set("/limits", json!({}));
        let found = pair.plan.run("verify --json").exits(1).json;
        assert_eq!(found["resumed"], true, "{found}");
        let counts = ["missing_count", "extra_count", "different_count"];
        let counts = counts.map(|c| found[c].as_u64());
        assert_eq!(counts, [Some(1), Some(1), Some(4)], "{found}");
        assert_eq!(found["keys_source"], 20_000, "{found}");
        assert_eq!(found["keys_target"], 20_000, "{found}");
    }
}

/// How many keys the saved progress counts.
fn saved(state: &std::path::Path) -> Option<u64> {
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let db = rusqlite::Connection::open_with_flags(state, flags).ok()?;
    let at = db.query_row("SELECT at FROM verify_progress", [], |row| {
        row.get::<_, String>(0)
    });
    let at: Value = serde_json::from_str(&at.ok()?).ok()?;
    at["compared"].as_u64()
}

/// Where the keys of both sides are the same, the target is listed once, beside the source; else once more.
#[test]
fn the_target_is_listed_again_only_for_what_the_source_lacks() {
    let Some([name]) = need(["any"]) else { return };
    let pair = Pair::new(
        Endpoint::alone(Setup::new(&name)),
        Endpoint::alone(Setup::new(&name)),
    );
    pair.fill(&keys(20_000));
    let target = pair.target.nodes()[0].client();
    let scans = |mut client: crate::support::wire::Client| {
        let stats = client.info("commandstats", "cmdstat_scan");
        let stats = stats.unwrap_or_default();
        let calls = stats.split(',').find_map(|f| f.strip_prefix("calls="));
        let calls = calls.and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        (client, calls)
    };
    let (target, _) = scans(target);
    pair.verify(0);
    let (target, once) = scans(target);
    assert!((15..30).contains(&once), "{once}");
    pair.target.nodes()[0].run("SET extra x");
    let (found, _) = pair.verify(1);
    assert_eq!(found["extra_count"], 1, "{found}");
    let (_, then) = scans(target);
    assert!((2 * 15..2 * 30).contains(&(then - once)), "{once} {then}");
}
