//! The connection for questions: what a broken or hostile peer can do to it, and what servers are never sent by it.

use crate::journeys::story;
use crate::support::hostile::{Hostile, Says};
use crate::support::keyferry::{Outcome, Plan};
use crate::support::profile;
use crate::support::server::Server;
use crate::support::story::Endpoint;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
/// What the whole program may take with `limits.memory_bytes` of 64 MiB.
const MEMORY: u64 = 64 * MIB;

/// Runs `check` against a peer that answers a command so; returns how it ended, the peak memory and what the peer could send.
fn met(to: &'static str, first: &str, again: &[u8], every: Duration) -> (Outcome, u64, u64) {
    let says = Says {
        to,
        first: first.as_bytes().to_vec(),
        again: again.to_vec(),
        every,
    };
    let peer = Hostile::start(says);
    // The source is asked first.
    let plan = Plan::new(&peer.url(), "redis://127.0.0.1:1");
    let mut running = plan.start("check");
    let (mut peak, began) = (0, Instant::now());
    while running.ended().is_none() && began.elapsed() < Duration::from_secs(100) {
        peak = running.peak_memory().max(peak);
        std::thread::sleep(Duration::from_micros(500));
    }
    (running.wait(Duration::ZERO), peak, peer.sent())
}

#[test]
fn no_reply_takes_more_memory_than_replies_of_servers_do() {
    let xs = vec![b'x'; 64 << 10];
    let numbers = b":1\r\n".repeat(16 << 10);
    let letters = b"$1\r\na\r\n".repeat(8 << 10);
    let all_letters = format!("*425000\r\n{}", "$1\r\na\r\n".repeat(425_000));
    let arrays = b"*1\r\n".repeat(1 << 10);
    let wide = b"*4096\r\n:1\r\n".to_vec();
    let strings = [
        b"$4000000\r\n".to_vec(),
        vec![b'x'; 4_000_000],
        b"\r\n".to_vec(),
    ]
    .concat();
    let once = Duration::ZERO;
    for (name, to, first, again, said) in [
        (
            "a long string",
            "INFO",
            "$1099511627776\r\n",
            &xs,
            "1099511627776 bytes",
        ),
        (
            "a line",
            "INFO",
            "+",
            &xs,
            "a line of more than 65536 bytes",
        ),
        (
            "an error",
            "INFO",
            "-ERR ",
            &xs,
            "a line of more than 65536 bytes",
        ),
        (
            "a number",
            "INFO",
            ":1",
            &b"1".repeat(4096),
            "a number without an end",
        ),
        (
            "a long array",
            "INFO",
            "*1000000000\r\n",
            &numbers,
            "1000000000 elements",
        ),
        (
            "numbers",
            "INFO",
            "*425984\r\n",
            &numbers,
            "more than 425984 elements",
        ),
        (
            "letters",
            "INFO",
            "*425984\r\n",
            &letters,
            "more than 425984 elements",
        ),
        // Whole ones that are allowed, after which the peer is asked no more.
        (
            "all letters",
            "INFO",
            all_letters.as_str(),
            &Vec::new(),
            "the connection",
        ),
        ("one long string", "INFO", "$16000000\r\n", &xs, "byte 0x78"),
        (
            "arrays",
            "INFO",
            "*1\r\n",
            &arrays,
            "16 arrays inside each other",
        ),
        (
            "wide arrays",
            "INFO",
            "*2\r\n:1\r\n",
            &wide,
            "16 arrays inside each other",
        ),
        (
            "strings",
            "INFO",
            "*100\r\n",
            &strings,
            "more than 16777216 bytes",
        ),
        (
            "another protocol",
            "INFO",
            "HTTP/1.1 400 Bad Request\r\n",
            &xs,
            "byte 0x48",
        ),
        ("RESP 3", "INFO", "%1\r\n+a\r\n+b\r\n", &xs, "byte 0x25"),
        (
            "half a reply",
            "INFO",
            "$100\r\nabc",
            &Vec::new(),
            "the connection",
        ),
        (
            "libraries",
            "FUNCTION",
            "*100\r\n",
            &strings,
            "more than 25165824 bytes",
        ),
        (
            "one long library",
            "FUNCTION",
            "$25000000\r\n",
            &xs,
            "byte 0x78",
        ),
    ] {
        let began = Instant::now();
        let (ended, peak, sent) = met(to, first, again, once);
        println!(
            "{name}: peak {:.1} MiB, {:.1} MiB sent, {:?}: {}",
            peak as f64 / MIB as f64,
            sent as f64 / MIB as f64,
            began.elapsed(),
            ended.stdout.lines().next().unwrap_or_default()
        );
        let ended = ended.exits(1);
        assert!(ended.stdout.contains(said), "{name}: {}", ended.stdout);
        assert!(peak > 0 && peak < MEMORY, "{name}: {peak} bytes");
    }
}

/// It takes a minute, so it is part of the long runs only.
#[test]
fn a_reply_that_never_ends_is_given_up() {
    if std::env::var_os("KEYFERRY_FULL").is_none() {
        return;
    }
    let began = Instant::now();
    let (ended, _, _) = met("INFO", "$100\r\n", b"x", Duration::from_secs(2));
    let told = ended.exits(1).stdout;
    assert!(told.contains("did not answer for 60 s"), "{told}");
    assert!(began.elapsed() < Duration::from_secs(75));
}

/// What a client library would send by itself is refused to our user from now on.
pub fn refuse_greetings(end: &Endpoint) {
    for node in end.nodes() {
        node.run("ACL SETUSER ferry -hello");
        // Redis has it since 7.2.
        let name = node.name();
        if !name.starts_with("redis-6") && !name.starts_with("redis-7.0") {
            node.run("ACL SETUSER ferry -client|setinfo");
        }
        node.run("ACL LOG RESET");
    }
}

/// Errors that a server has answered with, by their first word; none where it does not count them.
fn errors(node: &Server) -> Vec<String> {
    let text = node.run("INFO errorstats").text();
    let lines = text.lines().filter(|l| l.starts_with("errorstat_"));
    lines.map(str::to_owned).collect()
}

#[test]
fn servers_are_sent_nothing_by_the_library_itself_and_nothing_that_they_refuse_twice() {
    let (from, to) = (&profile::AIVEN_VALKEY, &profile::AZURE_MANAGED_OSS);
    let Some((story, ours, theirs)) = story("aiven-valkey-to-azure-managed", None, from, to) else {
        return;
    };
    let ends = [(&story.source, &ours), (&story.target, &theirs)];
    ends.iter().for_each(|(end, _)| refuse_greetings(end));
    let mut running = story.migrate();
    story.wait_loaded(&mut running);
    for (end, provided) in ends {
        let refused = provided.refused(end);
        println!("refused: {refused:?}");
        assert!(refused.values().all(|n| *n == 1), "{refused:?}");
        let greeting = |name: &&String| name.contains("hello") || name.contains("setinfo");
        assert_eq!(refused.keys().find(greeting), None);
        for node in end.nodes() {
            let clients = node.run("CLIENT LIST").text();
            let ferry = |line: &&str| line.contains(" user=ferry ");
            let clients: Vec<&str> = clients.lines().filter(ferry).collect();
            assert!(!clients.is_empty(), "keyferry is there");
            for line in clients {
                let told = line.split(' ').filter_map(|w| w.split_once('='));
                let mut told = told.filter(|(name, _)| ["lib-name", "lib-ver"].contains(name));
                assert!(told.all(|(_, value)| value.is_empty()), "{line}");
                assert!(line.contains(" resp=2"), "{line}");
            }
            node.run("CONFIG RESETSTAT");
        }
    }
    story.catch_up_and_stop(running);
    story.verify();
    for (end, provided) in ends {
        assert!(provided.refused(end).is_empty());
        for node in end.nodes() {
            let errors = errors(node);
            println!("{}: {errors:?}", node.name());
            assert!(!errors.iter().any(|e| e.contains("NOPERM")), "{errors:?}");
            let calls = node.run("INFO commandstats").text();
            for never in ["cmdstat_hello:", "cmdstat_client|setinfo:"] {
                assert!(!calls.contains(never), "{never}");
            }
        }
    }
}
