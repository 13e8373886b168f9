//! The client of the tests says what the server has said, and the `redis` crate's word on slots is keyferry's too.

use crate::support::cluster::Cluster;
use crate::support::server::{Server, Setup};
use crate::support::side::{Side, slot};
use crate::support::wire::{Client, Command, Value};
use crate::support::{need, wait_until};
use proptest::collection::vec;
use proptest::prelude::*;
use std::time::Duration;

fn bulk(text: &str) -> Value {
    Value::Bulk(text.as_bytes().to_vec())
}

#[test]
fn every_kind_of_reply_is_what_the_server_has_said() {
    let Some([name]) = need(["any"]) else { return };
    let server = Server::start(&name);
    let mut client = server.client();
    let bytes: Vec<u8> = (0..=255).chain(*b"\r\n$-1\r\n").collect();
    let cases = [
        (
            Command::new("SET b").arg(&bytes),
            Value::Status("OK".into()),
        ),
        (Command::new("GET b"), Value::Bulk(bytes.clone())),
        (Command::new("STRLEN b"), Value::Int(bytes.len() as i64)),
        (
            Command::new("SET empty").arg(""),
            Value::Status("OK".into()),
        ),
        (Command::new("GET empty"), bulk("")),
        (Command::new("GET none"), Value::Nil),
        (Command::new("BLPOP none 0.01"), Value::Nil),
        (Command::new("LRANGE none 0 -1"), Value::Array(Vec::new())),
        (Command::new("TYPE b"), Value::Status("string".into())),
        (Command::new("DECR n"), Value::Int(-1)),
        (
            Command::new("EVAL")
                .arg("return {1, false, {'a', {}}, {err = 'ODD one'}}")
                .arg(0),
            Value::Array(vec![
                Value::Int(1),
                Value::Nil,
                Value::Array(vec![bulk("a"), Value::Array(Vec::new())]),
                Value::Error("ODD one".into()),
            ]),
        ),
        (
            Command::new("ECHO").arg(i64::MIN),
            bulk("-9223372036854775808"),
        ),
        (
            Command::new("ECHO").arg(u64::MAX),
            bulk("18446744073709551615"),
        ),
    ];
    for (command, _) in &cases {
        client.push(command);
    }
    let replies = client.replies().expect("replies");
    for ((_, wanted), reply) in cases.iter().zip(&replies) {
        assert_eq!(reply, wanted);
    }
    assert_eq!((replies.len(), client.waiting()), (cases.len(), 0));
}

/// Codes that the crate knows, codes that it does not know, and a code alone: word by word what was sent.
#[test]
fn an_error_is_a_value_with_the_server_s_own_words() {
    let Some([name]) = need(["any"]) else { return };
    let server = Server::start(&name);
    let mut client = server.client();
    let said = [
        "ERR a  text: with - signs ",
        "MOVED 1 127.0.0.1:1",
        "ODD one",
        "BUSYGROUP x",
        "TRYAGAIN",
    ];
    client.push(&Command::new("RPUSH list a"));
    for text in said {
        let script = "return redis.error_reply(ARGV[1])";
        client.push(&Command::new("EVAL").arg(script).arg(0).arg(text));
    }
    client.push(&Command::new("INCR list"));
    client.push(&Command::new("LLEN list"));
    let replies = client.replies().expect("errors do not end a pipeline");
    for (text, reply) in said.iter().zip(&replies[1..]) {
        // Redis 7 puts ERR before a code without a text.
        let given = reply.text();
        assert!(
            reply.is_error()
                && given.strip_prefix("ERR ").unwrap_or(&given)
                    == text.strip_prefix("ERR ").unwrap_or(text),
            "{text}: {reply:?}"
        );
    }
    let wrong = "WRONGTYPE Operation against a key holding the wrong kind of value";
    assert_eq!(replies[said.len() + 1], Value::Error(wrong.into()));
    assert_eq!(replies[said.len() + 2], Value::Int(1));
    let error = client.words("INCR list").expect_err("an error");
    assert_eq!(error.to_string(), wrong);
}

/// The crate wants text in errors; what is none ends the connection, and is never taken for another command's reply.
#[test]
fn an_error_that_is_no_text_ends_the_connection() {
    let Some([name]) = need(["any"]) else { return };
    let server = Server::start(&name);
    let mut client = server.client();
    let script = "return redis.error_reply(ARGV[1])";
    client.push(&Command::new("EVAL").arg(script).arg(0).arg(b"ODD \xff"));
    client.push(&Command::new("PING"));
    assert!(client.replies().is_err());
    assert!(client.read().is_err() && client.words("PING").is_err());
    assert!(server.client().words("PING").is_ok());
}

#[test]
fn a_late_reply_answers_no_other_command() {
    let Some([name]) = need(["any"]) else { return };
    let server = Server::start(&name);
    let mut client = server.client();
    client
        .patience(Duration::from_millis(100))
        .expect("a socket");
    assert!(client.words("BLPOP none 0.4").is_err());
    client.patience(Duration::from_secs(5)).expect("a socket");
    assert_eq!(client.words("INCR n").expect("a reply"), Value::Int(1));
}

#[test]
fn a_server_that_goes_is_an_error_at_once() {
    let Some([name]) = need(["any"]) else { return };
    let mut server = Server::start(&name);
    let mut client = server.client();
    server.kill();
    let began = std::time::Instant::now();
    assert!(client.words("PING").is_err() && client.words("PING").is_err());
    assert!(Client::connect(&server.address()).is_err());
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
}

/// Tests read command statistics: a connection sends what it has to, and nothing about itself.
#[test]
fn a_connection_sends_the_login_and_nothing_else() {
    let Some([name]) = need(["any"]) else { return };
    let server = Setup::new(&name)
        .line("user app on >se%cret ~* +@all")
        .start();
    // A server may ask itself for its configuration when it starts.
    server.run("CONFIG RESETSTAT");
    let url = format!("redis://app:se%25cret@{}/3", server.address());
    Client::open(&url)
        .expect("it logs in")
        .words("SET k v")
        .expect("it writes");
    let text = server.run("INFO commandstats").text();
    let sent = text
        .lines()
        .filter_map(|l| l.strip_prefix("cmdstat_")?.split(':').next());
    let mut sent: Vec<&str> = sent.filter(|c| !c.starts_with("config")).collect();
    sent.sort_unstable();
    assert_eq!(sent, ["auth", "select", "set"], "{text}");
    assert_eq!(
        server.client().words("EXISTS k").expect("a reply"),
        Value::Int(0)
    );
    let wrong = Client::open(&format!("redis://app:other@{}", server.address()));
    let wrong = wrong.err().expect("it is refused").to_string();
    assert!(
        wrong.contains("WRONGPASS") && !wrong.contains("other"),
        "{wrong}"
    );
}

/// Where `Side` writes, there the crate's own cluster client reads, and so the other way round.
#[test]
fn keys_lie_where_the_crate_s_cluster_client_looks_for_them() {
    let Some([name]) = need(["any"]) else { return };
    let cluster = Cluster::with(&Setup::new(&name), 3, 1);
    let mut side = cluster.side();
    let node = side
        .run(&Command::new("CLUSTER MYID").routed(""))
        .expect("an answer");
    assert!(!node.is_error());
    let client = redis::cluster::ClusterClient::new([cluster.url()]).expect("a url");
    let mut theirs = client.get_connection().expect("a connection");
    let keys = (0..300).map(|n| match n % 3 {
        0 => format!("k{n}"),
        1 => format!("{{tag{}}}k{n}", n % 7),
        _ => format!("a{{}}b{n}{{c}}"),
    });
    let keys: Vec<String> = keys.collect();
    let set: Vec<Command> = (keys.iter())
        .map(|k| Command::new("SET").key(k).arg(k))
        .collect();
    assert!(
        side.all(&set)
            .expect("replies")
            .iter()
            .all(|r| *r == Value::Status("OK".into()))
    );
    let get: Vec<Command> = keys.iter().map(|k| Command::new("GET").key(k)).collect();
    let mut used = [0; 3];
    for (key, found) in keys.iter().zip(side.all(&get).expect("replies")) {
        assert_eq!(found, bulk(key));
        used[side.node_of(key.as_bytes())] += 1;
        let read: String = redis::cmd("GET")
            .arg(key)
            .query(&mut theirs)
            .expect("it is there");
        assert_eq!(read, *key);
        let gone: i64 = redis::cmd("DEL")
            .arg(key)
            .query(&mut theirs)
            .expect("it is deleted");
        assert_eq!(gone, 1);
    }
    assert!(used.iter().all(|n| *n > 20), "{used:?}");
    assert_eq!(side.size().expect("sizes"), 0);
    let told = || Side::of_replicas(&cluster.url()).is_ok_and(|mut s| s.nodes().len() == 3);
    wait_until(
        "each master names its replica",
        Duration::from_secs(20),
        told,
    );
}

#[test]
fn a_cluster_that_lacks_a_slot_is_no_side() {
    let Some([name]) = need(["any"]) else { return };
    let cluster = Cluster::start(&name, 3);
    cluster.nodes()[2].run("CLUSTER DELSLOTS 16383");
    let error = Side::open(&cluster.nodes()[2].url(), true).err();
    let error = error.expect("a slot is missing").to_string();
    assert!(error.contains("every slot"), "{error}");
}

fn agree(key: &[u8]) {
    let ours = keyferry::Slot::of(key).number();
    assert_eq!(ours, slot(key), "{}", key.escape_ascii());
}

#[test]
fn slots_of_odd_keys_are_keyferry_s_and_the_crate_s() {
    let odd = [
        "",
        "{",
        "}",
        "{}",
        "}{",
        "{}a",
        "{}{a}",
        "{{}}",
        "{a",
        "a}",
        "a{b}c{d}",
        "{{a}}",
        "}{a}",
        "{a}{b}",
        "foo{}{bar}",
        "foo{{bar}}zap",
        "{\r\n}",
        "123456789",
    ];
    odd.iter().for_each(|k| agree(k.as_bytes()));
    let braces = |n: u32| (0..5).map(move |at| b"{}a\xff"[(n >> (2 * at)) as usize & 3]);
    (0..1 << 10).for_each(|n| agree(&braces(n).collect::<Vec<u8>>()));
    // The cluster specification's own example.
    assert_eq!(slot(b"123456789"), 0x31c3);
    assert_eq!(slot(b"{user1000}.following"), slot(b"user1000"));
}

proptest! {
    #[test]
    fn slots_of_all_keys_are_keyferry_s_and_the_crate_s(
        any in vec(any::<u8>(), 0..64),
        braces in vec(prop_oneof![Just(b'{'), Just(b'}'), any::<u8>()], 0..24),
    ) {
        agree(&any);
        agree(&braces);
    }
}
