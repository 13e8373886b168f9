//! How many round trips a migration waits for, one after the other, from its start to its end when it has caught up.

use crate::support::far::{Far, Line};
use crate::support::need;
use crate::support::server::Setup;
use crate::support::story::{Endpoint, Story};
use crate::support::wire::Command;
use std::time::{Duration, Instant};

/// Long next to what a busy machine adds.
const ONE_WAY: Duration = Duration::from_millis(40);
/// A machine that is busy elsewhere makes one look longer, never shorter.
const ATTEMPTS: usize = 3;

/// Nothing is waited for that comes with the clock alone: a checkpoint is made once in a second.
const NEAR: Duration = Duration::from_secs(1);

struct Distance {
    story: Story,
    lines: [Line; 2],
    _fars: Vec<Far>,
}

impl Distance {
    fn between(source: Endpoint, target: Endpoint) -> Distance {
        let lines = [Line::default(), Line::default()];
        let mut story = Story::new(source, target);
        let mut fars = Vec::new();
        let ends = [&story.source, &story.target].map(|end| {
            let nodes = end.nodes().iter().map(|n| n.address());
            nodes.collect::<Vec<String>>()
        });
        for ((name, nodes), line) in ["source", "target"].iter().zip(ends).zip(&lines) {
            let (far, map) = Far::before(nodes, line);
            fars.extend(far);
            story.plan.set(&format!("/{name}/address_map"), map);
        }
        let keys = (0..300).map(|n| format!("string:{n}"));
        let sets: Vec<Command> = keys
            .map(|key| Command::new("SET").key(key).arg("a value"))
            .collect();
        story.source.side().all(&sets).expect("they are set");
        Distance {
            story,
            lines,
            _fars: fars,
        }
    }

    /// How long a migration takes until it has caught up, with the servers so far away.
    fn took(&self, one_way: Duration, words: &str) -> Duration {
        for line in &self.lines {
            line.delay(one_way);
        }
        if words.contains("--fresh") {
            for node in self.story.target.nodes() {
                node.run("FLUSHALL");
            }
        }
        let began = Instant::now();
        let outcome = (self.story.plan).run(&format!("migrate --json --until caught-up {words}"));
        let took = began.elapsed();
        let outcome = outcome.exits(0);
        println!("{took:?}\n{}", outcome.stderr);
        assert_eq!(outcome.json["caught_up"], true, "{}", outcome.stdout);
        took
    }

    /// How long it takes near, and how many round trips it waits for far away.
    fn chain(&self, words: &str) -> (Duration, f64) {
        let near = self.took(Duration::ZERO, words);
        let far = self.took(ONE_WAY, words);
        let more = far.saturating_sub(near);
        (near, more.as_secs_f64() / (2 * ONE_WAY).as_secs_f64())
    }

    #[track_caller]
    fn within(&self, what: &str, words: &str, most: f64) {
        let mut seen = Vec::new();
        for _ in 0..ATTEMPTS {
            let (near, trips) = self.chain(words);
            println!("{what}: {near:?} near; far away {trips:.1} round trips one after the other");
            if trips <= most && near < NEAR {
                return;
            }
            seen.push((near, trips));
        }
        panic!("{what}: not within {NEAR:?} near and {most} round trips more far away: {seen:?}");
    }
}

fn begins_and_goes_on(target: fn(Setup) -> Endpoint, most: f64) {
    let Some([name]) = need(["any"]) else { return };
    let setup = Setup::new(&name);
    let distance = Distance::between(Endpoint::alone(setup.clone()), target(setup));
    distance.within("a new migration", "--fresh", most);
    distance.within("one that goes on", "", most);
    for line in &distance.lines {
        line.delay(Duration::ZERO);
    }
    distance.story.judge();
}

#[test]
fn one_server_to_another() {
    begins_and_goes_on(Endpoint::alone, 35.0);
}

#[test]
fn one_server_to_a_cluster() {
    begins_and_goes_on(Endpoint::cluster, 35.0);
}
