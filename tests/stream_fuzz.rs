//! The fuzz of the stream over pairs of versions, drawn and seeded; see `support/fuzz`.
//!
//!     KEYFERRY_FUZZ="source=redis-7.0 target=redis-8.0-cluster plan=skip commands=300000 seed=7" ./test.sh as_asked

use crate::support::fuzz::{Asked, run, time};
use crate::support::rng::Rng;
use crate::support::versions::{find, program, seed};
use crate::support::{need, skip};

const FORMS: [&str; 9] = [
    "plain",
    "skip",
    "replace",
    "filter",
    "types",
    "rename",
    "small",
    "skip+rename",
    "filter+rename",
];

/// One pair of those that are here, and a form of the plan; with KEYFERRY_FULL all pairs, for minutes.
fn one_of(pairs: &[(&str, &str)], salt: u64) {
    if std::env::var_os("KEYFERRY_FUZZ").is_some() {
        return skip("KEYFERRY_FUZZ asks for another run");
    }
    let mut rng = Rng::new(seed() ^ salt);
    let is_here = |name: &str| program(name.trim_end_matches("-cluster")).is_some();
    let mut pairs: Vec<(String, String)> = (pairs.iter())
        .filter(|(source, target)| is_here(source) && is_here(target))
        .map(|(source, target)| ((*source).to_owned(), (*target).to_owned()))
        .collect();
    if pairs.is_empty() {
        let Some([any]) = need(["any"]) else { return };
        pairs.push((any.clone(), any));
    }
    if std::env::var_os("KEYFERRY_FULL").is_none() {
        pairs = vec![pairs.swap_remove(rng.below(pairs.len() as u64) as usize)];
    }
    for (source, target) in pairs {
        let form = rng.one_of(&FORMS);
        run(&Asked::new(
            &source,
            &target,
            form,
            rng.below(1 << 32),
            time(8, 3),
        ));
    }
}

#[test]
fn older_servers() {
    one_of(&[("redis-6.2", "redis-7.0"), ("redis-7.0", "redis-7.0")], 1);
}

#[test]
fn newer_servers_and_clusters() {
    let pairs = [
        ("redis-8.0", "redis-8.0-cluster"),
        ("redis-8.0", "valkey-9.1"),
        ("valkey-9.1-cluster", "valkey-9.1-cluster"),
    ];
    one_of(&pairs, 2);
}

#[test]
fn the_newest_streams() {
    one_of(
        &[("redis-8.2", "redis-7.0"), ("redis-8.2", "valkey-9.1")],
        3,
    );
}

/// The run that KEYFERRY_FUZZ asks for.
#[test]
fn as_asked() {
    if let Some(asked) = Asked::from_environment() {
        run(&asked);
    }
}

/// A key that is not what it should be is found, and the way there is made short.
#[test]
fn the_fuzz_can_fail() {
    let Some(any) = find("any") else {
        return skip("needs a server");
    };
    let mut asked = Asked::new(&any, &any, "plain", 1, time(60, 1));
    asked.spoil = true;
    asked.trouble = false;
    asked.commands = 2_000;
    asked.shorten = std::time::Duration::from_secs(2);
    let panic = std::panic::catch_unwind(|| run(&asked)).expect_err("nothing was found");
    let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
    assert!(text.contains("1 keys differ: \"{a}s0\""), "{text}");
}
