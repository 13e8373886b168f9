//! Which commands tell what they change by keyspace notifications: the table against real servers.

use crate::support::server::{self, SERVERS, Server};
use crate::support::skip;
use crate::support::wire::{Client, Command, Value};
use keyferry::unnotified::{Effect, Version, class_of, effect};
use std::collections::BTreeSet;

/// What is done before, a call that changes something, and the keys that it changes; `{d}` is the payload of the key d.
const CALLS: &[&str] = &[
    "| SET a 1 | a",
    "| SET a 1 EX 100 | a",
    "SET a 1 | SET a 1 PXAT 1 | a",
    "| SETEX a 100 1 | a",
    "| PSETEX a 100000 1 | a",
    "SET a 1 | GETEX a EX 100 | a",
    "SET a 1 EX 100 | GETEX a PERSIST | a",
    "SET a 1 | GETEX a PXAT 1 | a",
    "SET a 1 | GETDEL a | a",
    "SET a 1 | DELIFEQ a 1 | a",
    "SET a 101 | BITOP NOT b a | b",
    "SET b 1 | BITOP AND b x y | b",
    "| MSETEX 2 a 1 b 2 EX 100 | a b",
    "| SETNX a 1 | a",
    "| GETSET a 1 | a",
    "| APPEND a 1 | a",
    "| SETRANGE a 3 x | a",
    "| SETBIT a 3 1 | a",
    "| BITFIELD a SET u8 0 200 | a",
    "| BITFIELD a INCRBY u8 0 20 | a",
    "| INCR a | a",
    "| INCRBY a 2 | a",
    "| DECR a | a",
    "| DECRBY a 2 | a",
    "| INCRBYFLOAT a 1.5 | a",
    "| MSET a 1 b 2 | a b",
    "| MSETNX a 1 b 2 | a b",
    "| PFADD a x | a",
    "PFADD b y | PFMERGE a b | a",
    "SET a 1 | DEL a | a",
    "SET a 1;SET b 1 | UNLINK a b | a b",
    "SET a 1 | EXPIRE a 100 | a",
    "SET a 1 | EXPIRE a -1 | a",
    "SET a 1 | PEXPIRE a 100000 | a",
    "SET a 1 | EXPIREAT a 9999999999 | a",
    "SET a 1 | PEXPIREAT a 9999999999999 | a",
    "SET a 1 | PEXPIREAT a 1 | a",
    "SET a 1 EX 100 | PERSIST a | a",
    "SET a 1 | RENAME a b | a b",
    "SET a 1;SET b 2 | RENAME a b | a b",
    "SET a 1 | RENAMENX a b | a b",
    "SET a 1 | COPY a b | b",
    "SET a 1 | COPY a b DB 3 | 3:b",
    "SET a 1 | MOVE a 3 | a 3:a",
    "SET d 1 | RESTORE a 0 {d} | a",
    "SET d 1;SET a 1 | RESTORE a 1 {d} REPLACE ABSTTL | a",
    "SET d 1 | RESTORE-ASKING a 0 {d} | a",
    "RPUSH l 2 1 | SORT l STORE a | a",
    "SET a 1 | SORT l STORE a | a",
    "RPUSH a 1 2 | LPOP a | a",
    "RPUSH a 1 | LPOP a | a",
    "RPUSH a 1 2 | RPOP a | a",
    "RPUSH a 1 1 | LREM a 0 1 | a",
    "RPUSH a 1 2 | LREM a 0 1 | a",
    "RPUSH a 1 2 | LTRIM a 1 1 | a",
    "RPUSH a 1 2 | LTRIM a 5 6 | a",
    "RPUSH a 1 | LMOVE a b LEFT LEFT | a b",
    "RPUSH a 1 2 | LMOVE a a LEFT RIGHT | a",
    "RPUSH a 1 | RPOPLPUSH a b | a b",
    "RPUSH a 1 | BLMOVE a b LEFT LEFT 1 | a b",
    "RPUSH a 1 | BRPOPLPUSH a b 1 | a b",
    "RPUSH a 1 | BLPOP a 1 | a",
    "RPUSH a 1 | BRPOP a 1 | a",
    "RPUSH a 1 | LMPOP 1 a LEFT | a",
    "RPUSH a 1 2 | BLMPOP 1 1 a LEFT | a",
    "| LPUSH a 1 | a",
    "| RPUSH a 1 | a",
    "RPUSH a 1 | LPUSHX a 1 | a",
    "RPUSH a 1 | RPUSHX a 1 | a",
    "RPUSH a 1 | LSET a 0 2 | a",
    "RPUSH a 1 | LINSERT a BEFORE 1 2 | a",
    "SADD a 1 2 | SREM a 1 | a",
    "SADD a 1 | SREM a 1 | a",
    "SADD a 1 2 | SPOP a | a",
    "SADD a 1 2 | SPOP a 5 | a",
    "SADD a 1 | SPOP a | a",
    "SADD a 1 | SMOVE a b 1 | a b",
    "SADD b 1 | SINTERSTORE a b | a",
    "SADD a 1 | SINTERSTORE a x y | a",
    "SADD b 1 | SUNIONSTORE a b | a",
    "SADD b 1 | SDIFFSTORE a b | a",
    "SADD a 1 | SDIFFSTORE a x | a",
    "| SADD a 1 | a",
    "ZADD a 1 x 2 y | ZREM a x | a",
    "ZADD a 1 x | ZREM a x | a",
    "ZADD a 1 x | ZPOPMIN a | a",
    "ZADD a 1 x 2 y | ZPOPMAX a | a",
    "ZADD a 1 x | BZPOPMIN a 1 | a",
    "ZADD a 1 x | BZPOPMAX a 1 | a",
    "ZADD a 1 x | ZMPOP 1 a MIN | a",
    "ZADD a 1 x | BZMPOP 1 1 a MAX | a",
    "ZADD a 1 x 2 y | ZREMRANGEBYRANK a 0 0 | a",
    "ZADD a 1 x | ZREMRANGEBYSCORE a 0 9 | a",
    "ZADD a 1 x | ZREMRANGEBYLEX a - + | a",
    "ZADD b 1 x | ZUNIONSTORE a 1 b | a",
    "ZADD a 1 x | ZUNIONSTORE a 1 b | a",
    "ZADD b 1 x | ZINTERSTORE a 1 b | a",
    "ZADD a 1 x | ZINTERSTORE a 1 b | a",
    "ZADD b 1 x | ZDIFFSTORE a 1 b | a",
    "ZADD b 1 x | ZRANGESTORE a b 0 -1 | a",
    "ZADD a 1 x | ZRANGESTORE a b 0 -1 | a",
    "GEOADD b 1 2 x | GEOSEARCHSTORE a b FROMLONLAT 1 2 BYRADIUS 3 km | a",
    "GEOADD b 1 2 x | GEORADIUS b 1 2 3 km STORE a | a",
    "SET a 1 | GEORADIUS b 1 2 3 km STORE a | a",
    "GEOADD b 1 2 x | GEORADIUSBYMEMBER b x 3 km STORE a | a",
    "| ZADD a 1 x | a",
    "ZADD a 1 x | ZADD a INCR 2 x | a",
    "| ZINCRBY a 1 x | a",
    "| GEOADD a 1 2 x | a",
    "HSET a f v g v | HDEL a f | a",
    "HSET a f v | HDEL a f | a",
    "HSET a f v g v | HGETDEL a FIELDS 1 f | a",
    "HSET a f v | HGETDEL a FIELDS 1 f | a",
    "| HSETEX a EX 100 FIELDS 1 f v | a",
    "HSET a f v | HSETEX a PXAT 1 FIELDS 1 f v | a",
    "HSET a f v | HGETEX a EX 100 FIELDS 1 f | a",
    "HSET a f v | HGETEX a PXAT 1 FIELDS 1 f | a",
    "HSETEX a EX 100 FIELDS 1 f v | HGETEX a PERSIST FIELDS 1 f | a",
    "HSET a f v | HEXPIRE a 100 FIELDS 1 f | a",
    "HSET a f v | HEXPIRE a 0 FIELDS 1 f | a",
    "HSET a f v | HPEXPIRE a 100000 FIELDS 1 f | a",
    "HSET a f v | HEXPIREAT a 9999999999 FIELDS 1 f | a",
    "HSET a f v g v | HPEXPIREAT a 1 FIELDS 1 f | a",
    "HSET a f v;HEXPIRE a 100 FIELDS 1 f | HPERSIST a FIELDS 1 f | a",
    "| HSET a f v | a",
    "| HMSET a f v | a",
    "| HSETNX a f v | a",
    "| HINCRBY a f 2 | a",
    "| HINCRBYFLOAT a f 2.5 | a",
    "| XADD a * f v | a",
    "XADD a 1-1 f v;XADD a 2-1 f v | XADD a MAXLEN 1 3-1 f v | a",
    "XADD a 1-1 f v | XDEL a 1-1 | a",
    "XADD a 1-1 f v | XTRIM a MAXLEN 0 | a",
    "XADD a 1-1 f v | XSETID a 9-9 | a",
    "XADD a 1-1 f v | XDELEX a KEEPREF IDS 1 1-1 | a",
    "| XGROUP CREATE a g $ MKSTREAM | a",
    "XADD a 1-1 f v;XGROUP CREATE a g 0 | XGROUP DESTROY a g | a",
    "XADD a 1-1 f v;XGROUP CREATE a g 0 | XGROUP SETID a g $ | a",
    "XADD a 1-1 f v;XGROUP CREATE a g 0 | XGROUP CREATECONSUMER a g c | a",
    "XADD a 1-1 f v;XGROUP CREATE a g 0;XGROUP CREATECONSUMER a g c | XGROUP DELCONSUMER a g c | a",
    "XADD a 1-1 f v;XGROUP CREATE a g 0 | XREADGROUP GROUP g c STREAMS a > | a",
    "XADD a 1-1 f v;XGROUP CREATE a g 0;XREADGROUP GROUP g c STREAMS a > | XREADGROUP GROUP g c STREAMS a 0 | a",
    "XADD a 1-1 f v;XGROUP CREATE a g 0;XREADGROUP GROUP g c STREAMS a > | XACK a g 1-1 | a",
    "XADD a 1-1 f v;XGROUP CREATE a g 0;XREADGROUP GROUP g c STREAMS a >;XGROUP CREATECONSUMER a g d | XCLAIM a g d 0 1-1 | a",
    "XADD a 1-1 f v;XGROUP CREATE a g 0;XREADGROUP GROUP g c STREAMS a >;XGROUP CREATECONSUMER a g d | XAUTOCLAIM a g d 0 0 | a",
    "XADD a 1-1 f v;XGROUP CREATE a g 0;XREADGROUP GROUP g c STREAMS a > | XACKDEL a g KEEPREF IDS 1 1-1 | a",
    "| VADD a VALUES 2 1 2 x | a",
    "VADD a VALUES 2 1 2 x;VADD a VALUES 2 1 3 y | VREM a x | a",
    "VADD a VALUES 2 1 2 x | VREM a x | a",
    "VADD a VALUES 2 1 2 x | VSETATTR a x {} | a",
    "PFADD a x | PFCOUNT a | a",
    "SET a 1 | FLUSHALL | a",
    "SET a 1 | FLUSHDB | a",
    "SET a 1 | SWAPDB 0 3 | a",
];

/// Commands that servers take for writing, though they change no key, or only by what they run.
const NO_WRITES: [&str; 8] = [
    "pfcount",
    "eval",
    "evalsha",
    "fcall",
    "publish",
    "spublish",
    "script",
    "script|load",
];

fn version(server: &Server) -> Version {
    let text = server.run("INFO server").text();
    Version {
        before_6_2: text.contains("redis_version:6.0"),
        valkey: text.contains("server_name:valkey"),
    }
}

/// All commands in small letters, and whether each writes.
fn commands(server: &Server) -> Vec<(String, bool)> {
    fn walk(rows: &[Value], out: &mut Vec<(String, bool)>) {
        for row in rows {
            let row = row.items();
            let flags: Vec<String> = row[2].items().iter().map(Value::text).collect();
            let writes = flags.iter().any(|f| f == "write" || f == "may_replicate");
            out.push((row[0].text().to_lowercase(), writes));
            if let Some(subcommands) = row.get(9) {
                walk(subcommands.items(), out);
            }
        }
    }
    let mut out = Vec::new();
    walk(server.run("COMMAND").items(), &mut out);
    out
}

/// Runs a call with these classes of notifications on; the keys that were told with their events, or `None` where the
/// server does not know the call.
fn told(
    client: &mut Client,
    listener: &mut Client,
    line: &str,
    classes: &str,
) -> Option<Vec<(String, String)>> {
    let parts: Vec<&str> = line.trim_start_matches("| ").split(" | ").collect();
    let (before, call) = match parts.as_slice() {
        [before, call, _] => (*before, *call),
        [call, _] => ("", *call),
        _ => panic!("{line}"),
    };
    for words in ["CONFIG SET notify-keyspace-events", "SELECT 0", "FLUSHALL"] {
        let mut command = Command::new(words);
        if words.starts_with("CONFIG") {
            command = command.arg("");
        }
        client.run(&command).expect("an answer");
    }
    for words in before.split(';').filter(|w| !w.is_empty()) {
        if client
            .run(&Command::new(words))
            .expect("an answer")
            .is_error()
        {
            return None;
        }
    }
    let dump = client.run(&Command::new("DUMP d")).expect("an answer");
    client
        .run(&Command::new("CONFIG SET notify-keyspace-events").arg(format!("K{classes}")))
        .expect("an answer");
    let mut words = call.split(' ');
    let mut command = Command::new(words.next().unwrap_or_default());
    for word in words {
        command = match word {
            "{d}" => command.arg(dump.bytes()),
            word => command.arg(word),
        };
    }
    if client.run(&command).expect("an answer").is_error() {
        return None;
    }
    listener.push(&Command::new("PING end"));
    listener.flush().expect("it is sent");
    let mut heard = Vec::new();
    loop {
        let message = listener.read().expect("a message");
        let parts: Vec<String> = message.items().iter().map(Value::text).collect();
        if parts[0] == "pong" {
            return Some(heard);
        }
        let (db, key) = parts[2]["__keyspace@".len()..]
            .split_once("__:")
            .expect("a channel");
        let key = if db == "0" {
            key.to_owned()
        } else {
            format!("{db}:{key}")
        };
        heard.push((key, parts[3].clone()));
    }
}

/// The name of a call in the table, of a command or of its subcommand.
fn name_of(call: &str, of: Version) -> String {
    let mut words = call.split(' ').map(str::to_lowercase);
    let first = words.next().unwrap_or_default();
    let both = format!("{first}|{}", words.next().unwrap_or_default());
    match effect(&both, of) {
        Some(_) => both,
        None => first,
    }
}

fn call_of(line: &str) -> (&str, &str) {
    let mut parts = line.rsplit(" | ");
    let keys = parts.next().unwrap_or_default();
    let call = parts.next().unwrap_or_default();
    (call.trim_start_matches("| "), keys)
}

#[test]
fn the_table_says_what_servers_tell() {
    let (mut wrong, mut run) = (BTreeSet::new(), 0);
    for name in SERVERS {
        if server::find(name).is_none() {
            skip(&format!("{name} is not here"));
            continue;
        }
        let server = Server::start(name);
        let of = version(&server);
        let (mut client, mut listener) = (server.client(), server.client());
        listener
            .words("PSUBSCRIBE __key*@*__:*")
            .expect("an answer");
        let mut tried = BTreeSet::new();
        for line in CALLS {
            let (call, keys) = call_of(line);
            let known = effect(&name_of(call, of), of);
            let classes = match known {
                Some(Effect::Told(classes)) => classes,
                _ => "g$lshzxetd",
            };
            let Some(heard) = told(&mut client, &mut listener, line, classes) else {
                continue;
            };
            run += 1;
            tried.insert(name_of(call, of));
            let all = keys
                .split(' ')
                .all(|key| heard.iter().any(|(k, _)| k == key));
            if matches!(known, Some(Effect::Told(_))) != all && known != Some(Effect::Groups) {
                wrong.insert(format!("{name}: {line}: {known:?}, heard {heard:?}"));
            }
            // What an event says of its class holds for the class alone.
            for (_, event) in &heard {
                let Some(class) = class_of(event.as_bytes()) else {
                    continue;
                };
                let alone = told(&mut client, &mut listener, line, &class.to_string());
                if !alone.unwrap_or_default().iter().any(|(_, e)| e == event) {
                    wrong.insert(format!("{name}: {line}: {event} is not of class {class}"));
                }
            }
        }
        for (command, writes) in commands(&server) {
            let known = effect(&command, of);
            let complaint = match known {
                None => "is not in the table",
                Some(Effect::None) if writes && !NO_WRITES.contains(&command.as_str()) => {
                    "writes, in the table it does not"
                }
                // MIGRATE needs a second server, and deletes as DEL does.
                Some(Effect::Told(_)) if !tried.contains(&command) && command != "migrate" => {
                    "is in the table without having been tried"
                }
                _ => continue,
            };
            wrong.insert(format!("{name}: {command} {complaint}"));
        }
    }
    let shown: Vec<&String> = wrong.iter().collect();
    assert!(wrong.is_empty(), "{} differ:\n{shown:#?}", wrong.len());
    assert!(run > 300 || server::find("any").is_none(), "{run} calls");
}
