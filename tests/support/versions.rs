//! Which servers are here, what each of them can do, and which one a test gets that takes any.
//!
//! A test that needs a feature names the feature, not a version: `need(["any:functions"])`, `need(["any:tls+cli"])`.
//! The draw depends on KEYFERRY_SEED (else the clock) and the test's name, so runs spread over the versions, and all
//! draws within a test agree. KEYFERRY_ANY=redis-7.0 gives that server to every test whose features it has.

use super::clock::skewed;
use super::rng::Rng;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};

/// The versions that every snapshot and command is tried with.
pub const SERVERS: [&str; 9] = [
    "redis-6.0",
    "redis-6.2",
    "redis-7.0",
    "redis-8.0",
    "redis-8.2",
    "redict-7.3",
    "valkey-8.0",
    "valkey-8.1",
    "valkey-9.1",
];

/// Servers with JSON, search, Bloom and time series loaded; a test names them, none draws them.
pub const MODULE_SERVERS: [&str; 2] = ["modules-7.4", "modules-8.2"];

/// Servers whose version is whatever this machine offers.
const OTHERS: [&str; 2] = ["path", "local"];

/// Features that came with a version: the first of Redis and of Valkey. Redict is Redis 7.2.
const SINCE: [(&str, [u32; 2], [u32; 2]); 7] = [
    ("acl-channels", [6, 2], [7, 2]),
    ("client-pause-write", [6, 2], [7, 2]),
    ("functions", [7, 0], [7, 2]),
    // Permissions on keys to read or to write only, and several sets of them for a user.
    ("acl-selectors", [7, 0], [7, 2]),
    // PEXPIRETIME and CLUSTER SHARDS came with it too.
    ("entries-read", [7, 0], [7, 2]),
    ("consumer-active-time", [7, 2], [7, 2]),
    ("field-expiry", [7, 4], [9, 0]),
];

/// Where `tests/servers.sh` puts the servers.
pub fn servers_dir() -> PathBuf {
    match std::env::var_os("KEYFERRY_SERVERS") {
        Some(dir) => PathBuf::from(dir),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join(".servers"),
    }
}

/// The name under which a wanted server is to be had here.
pub fn find(wanted: &str) -> Option<String> {
    let Some(features) = wanted.strip_prefix("any") else {
        return program(wanted).map(|_| wanted.to_owned());
    };
    let features: Vec<&str> = (features.strip_prefix(':').unwrap_or_default().split('+'))
        .filter(|f| !f.is_empty())
        .collect();
    let able = |name: &&str| program(name).is_some() && features.iter().all(|f| has(name, f));
    let able: Vec<&str> = (OTHERS.iter().chain(&SERVERS).copied())
        .filter(able)
        .collect();
    let forced = std::env::var("KEYFERRY_ANY").unwrap_or_default();
    assert!(
        forced.is_empty() || program(&forced).is_some(),
        "KEYFERRY_ANY names {forced:?}, which is not here"
    );
    let seed = seed();
    let test = std::thread::current().name().unwrap_or("").to_owned();
    let drawn = match able.iter().find(|name| **name == forced) {
        Some(name) => name,
        None => draw(&able, seed, &test)?,
    };
    println!("\"{wanted}\" is {drawn} (KEYFERRY_SEED={seed}, or KEYFERRY_ANY={drawn})");
    Some((*drawn).to_owned())
}

/// The server with the highest number, so that one more or less on the machine changes few draws, and a test that
/// wants features gets the same server as without them, where it has them.
fn draw<'a>(names: &[&'a str], seed: u64, test: &str) -> Option<&'a str> {
    let number = |name: &str| {
        let bytes = test.bytes().chain([0]).chain(name.bytes());
        let hash = bytes.fold(seed, |h, b| {
            Rng::new(h ^ u64::from(b)).next() ^ h.rotate_left(9)
        });
        Rng::new(hash).next()
    };
    names.iter().copied().max_by_key(|name| number(name))
}

/// What every random choice of a run follows from: KEYFERRY_SEED, else the clock.
pub fn seed() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    *SEED.get_or_init(|| match std::env::var("KEYFERRY_SEED") {
        Ok(text) => text.parse().expect("KEYFERRY_SEED is a number"),
        Err(_) => keyferry::unix_ms() as u64 % 1_000_000,
    })
}

/// Random numbers of this run.
pub fn seeded() -> Rng {
    println!("KEYFERRY_SEED={}", seed());
    Rng::new(seed())
}

/// Whether a server that is here has a feature.
pub fn has(name: &str, feature: &str) -> bool {
    let file = |program: &str| servers_dir().join(name).join(program).is_file();
    match feature {
        "cli" => file("redis-cli"),
        "tls" => what_it_is(name).tls,
        // It can run with another clock: servers that bring an old C library of their own cannot.
        "clock" => skewed(0).is_some_and(|clock| {
            let mut server = Command::new(program(name).expect("it is here"));
            let out = server.arg("--version").envs(clock).output();
            out.is_ok_and(|o| o.status.success() && !o.stdout.is_empty())
        }),
        _ => {
            let (_, redis, valkey) = (SINCE.iter().find(|(f, ..)| *f == feature))
                .unwrap_or_else(|| panic!("no test knows the feature {feature:?}"));
            let it = what_it_is(name);
            it.version >= if it.valkey { *valkey } else { *redis }
        }
    }
}

/// What gives a user every right: the first servers with users knew none on channels.
pub fn all_rights(name: &str) -> &'static str {
    match has(name, "acl-channels") {
        true => "~* &* +@all",
        false => "~* +@all",
    }
}

#[derive(Clone, Copy)]
struct Kind {
    valkey: bool,
    version: [u32; 2],
    tls: bool,
}

/// What a server says of itself; asked once.
fn what_it_is(name: &str) -> Kind {
    static KNOWN: Mutex<Option<HashMap<String, Kind>>> = Mutex::new(None);
    let mut known = KNOWN.lock().unwrap_or_else(|e| e.into_inner());
    let known = known.get_or_insert_default();
    if let Some(kind) = known.get(name) {
        return *kind;
    }
    let run = |args: &[&str]| {
        let program = program(name).unwrap_or_else(|| panic!("{name} is not here"));
        let out = Command::new(program).args(args).output();
        out.map(|o| {
            String::from_utf8_lossy(&o.stdout).into_owned() + &String::from_utf8_lossy(&o.stderr)
        })
        .unwrap_or_default()
    };
    let text = run(&["--version"]);
    let after = text.split(" v=").nth(1).unwrap_or_default();
    let mut numbers = after.split(['.', ' ']).map_while(|n| n.parse().ok());
    let mut version = [numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)];
    if text.starts_with("Redict") {
        version = [7, 2];
    }
    // A server built without TLS refuses the word at once; one with TLS refuses to start without a certificate.
    let refusal = run(&[
        "--port",
        "0",
        "--tls-port",
        "1",
        "--tls-cert-file",
        "/nonexistent",
    ]);
    let kind = Kind {
        valkey: text.starts_with("Valkey"),
        version,
        tls: !refusal.contains("Bad directive"),
    };
    known.insert(name.to_owned(), kind);
    kind
}

/// The program of a server, where it is here.
pub fn program(name: &str) -> Option<PathBuf> {
    let installed = servers_dir().join(name).join("redis-server");
    if installed.is_file() {
        return Some(installed);
    }
    if name != "path" {
        return None;
    }
    let path = std::env::var_os("PATH")?;
    let candidates = std::env::split_paths(&path)
        .flat_map(|dir| ["valkey-server", "redis-server"].map(|p| dir.join(p)));
    candidates.into_iter().find(|p| p.is_file())
}

/// Each server is drawn now and then, and a wish for features changes the draw only where it must.
#[test]
fn any_is_every_server_in_turn() {
    let mut count = HashMap::new();
    for seed in 0..200 {
        for test in ["faults::a", "faults::b"] {
            let of_all = draw(&SERVERS, seed, test).unwrap_or_default();
            let of_few = draw(&SERVERS[2..], seed, test).unwrap_or_default();
            assert!(of_few == of_all || SERVERS[..2].contains(&of_all));
            *count.entry(of_all).or_insert(0) += 1;
        }
    }
    for name in SERVERS {
        let times = count.get(name).copied().unwrap_or(0);
        assert!((20..80).contains(&times), "{name} was drawn {times} times");
    }
    assert_eq!(draw(&[], 1, "a"), None);
}

/// What the servers here say of their features agrees with the table's versions.
#[test]
fn a_feature_is_known_by_trying() {
    for name in SERVERS.iter().filter(|name| program(name).is_some()) {
        let server = super::server::Server::start(name);
        let mut client = server.client();
        for (feature, words) in [
            ("functions", "FUNCTION LIST"),
            ("acl-channels", "ACL SETUSER one &*"),
            ("acl-selectors", "ACL SETUSER one %R~a"),
            ("client-pause-write", "CLIENT PAUSE 1 WRITE"),
            ("field-expiry", "HPEXPIRETIME none FIELDS 1 f"),
        ] {
            assert_eq!(
                client.words(words).is_ok(),
                has(name, feature),
                "{name} {feature}"
            );
        }
        client.words("XADD s 1-1 a b").expect("a stream");
        client.words("XGROUP CREATE s g 0").expect("a group");
        let groups = format!("{:?}", client.words("XINFO GROUPS s").expect("groups"));
        let known = groups.contains(&format!("{:?}", b"entries-read".to_vec()));
        assert_eq!(known, has(name, "entries-read"), "{name} {groups}");
    }
}
