//! The key-position table against the servers themselves: every command they replicate, and where they find its
//! keys, also in the shortest call that they take.

use crate::support::server::{self, SERVERS, Server};
use crate::support::skip;
use crate::support::versions::MODULE_SERVERS;
use crate::support::wire::{Command as Ask, Value};
use keyferry::formats::command::{Command, lookup};
use std::collections::BTreeSet;

/// Calls whose keys do not stand at fixed places, or whose shape a filler would not have.
const CALLS: &[&str] = &[
    "BITOP AND dest a b c",
    "BITOP NOT dest a",
    "BLMPOP 0 2 a b LEFT",
    "BLMPOP 0 1 a RIGHT COUNT 3",
    "BZMPOP 0 2 a b MIN",
    "COPY a b",
    "COPY a b DB 3 REPLACE",
    "EVAL code 2 a b arg",
    "EVAL code 0",
    "EVALSHA sha 1 a arg arg",
    "FCALL f 2 a b arg",
    "GEORADIUS g 1 2 3 km STORE dest",
    "GEORADIUS g 1 2 3 km",
    "GEORADIUS g 1 2 3 km COUNT 3 ASC STOREDIST dest",
    "GEORADIUS g 1 2 3 km STORE store",
    "GEORADIUSBYMEMBER g m 3 km STORE dest",
    "GEORADIUSBYMEMBER g STORE 3 km",
    "GEORADIUSBYMEMBER g m 3 km",
    "GEOSEARCHSTORE dest src FROMLONLAT 1 2 BYRADIUS 3 km",
    "LMPOP 2 a b LEFT COUNT 2",
    "LMPOP 1 a LEFT",
    "MIGRATE host 6379 key 0 100 COPY REPLACE",
    "MSET a 1 b 2 c 3",
    "MSETNX a 1 b 2",
    "MSETEX 2 a 1 b 2 EX 10",
    "MSETEX 1 a 1",
    "SINTERSTORE d a b",
    "SINTERSTORE d a",
    "SORT l BY w_* LIMIT 0 5 GET # DESC ALPHA STORE dest",
    "SORT l STORE one STORE two",
    "SORT l",
    "XGROUP CREATE x g $ MKSTREAM",
    "XGROUP CREATECONSUMER x g c",
    "XGROUP DELCONSUMER x g c",
    "XGROUP DESTROY x g",
    "XGROUP SETID x g $",
    "XREADGROUP GROUP g c COUNT 1 NOACK STREAMS a b > 0-0",
    "XREADGROUP GROUP streams streams STREAMS a >",
    "ZDIFFSTORE d 2 a b",
    "ZDIFFSTORE d 1 a",
    "ZINTERSTORE d 2 a b WEIGHTS 1 2 AGGREGATE SUM",
    "ZINTERSTORE d 1 a",
    "ZMPOP 2 a b MIN COUNT 2",
    "ZMPOP 1 a MAX",
    "ZRANGESTORE d s 0 -1",
    "ZUNIONSTORE d 3 a b c",
    "ZUNIONSTORE d 1 a",
    "CMS.MERGE d 2 a b WEIGHTS 1 2",
    "TDIGEST.MERGE d 1 a",
    "TS.CREATERULE a b AGGREGATION avg 10",
    "TS.DELETERULE a b",
    "TS.MADD a 1 2 b 3 4",
    "JSON.MSET a $ 1 b $ 2",
];

/// Commands of modules that name fewer keys to their server than they have.
const NAMED_IN_PART: &[&str] = &[
    "CMS.MERGE",
    "TDIGEST.MERGE",
    "TS.CREATERULE",
    "TS.DELETERULE",
];

/// Commands of modules that say they write and are not in the table: those about indexes have no keys.
fn may_be_unknown(name: &str) -> bool {
    name.starts_with("FT.") || name == "TOPK.COUNT"
}

fn words(line: &str) -> Vec<&str> {
    line.split(' ').collect()
}

/// Where the table finds keys.
fn ours(line: &str) -> Result<Vec<String>, String> {
    let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
    let (mut raw, mut args, mut found) = (Vec::new(), Vec::new(), Vec::new());
    keyferry::formats::resp::command(&mut raw, &words);
    keyferry::formats::resp::parse_command(&raw, &mut args).map_err(|e| e.to_string())?;
    let cmd = Command {
        raw: &raw,
        args: &args,
    };
    let spec = lookup(cmd.name()).ok_or("not in the table")?;
    spec.keys(&cmd, &mut found).map_err(|e| e.to_string())?;
    Ok(found
        .iter()
        .map(|k| String::from_utf8_lossy(cmd.arg(k.index).unwrap_or_default()).into_owned())
        .collect())
}

/// Where the server finds them; `None` where it says that there are none, or that the call is wrong.
fn theirs(server: &Server, line: &str) -> Result<Vec<String>, String> {
    let ask = Ask::new("COMMAND GETKEYS").args(words(line));
    let answer = server.client().run(&ask).map_err(|e| e.to_string())?;
    if answer.is_error() {
        return match answer.text() {
            t if t.contains("no key arguments") => Ok(Vec::new()),
            // The 6.x servers say so of EVAL without keys.
            t if t.contains("Invalid arguments") && line.ends_with(" 0") => Ok(Vec::new()),
            // From 7.0 on they say so of PFMERGE without sources, and run it.
            t if t.contains("Invalid arguments") && line.starts_with("PFMERGE ") => {
                assert!(!server.run(line).is_error(), "{}: {line}", server.name());
                Ok(vec![words(line)[1].to_owned()])
            }
            t => Err(t),
        };
    }
    Ok(answer.items().iter().map(Value::text).collect())
}

/// A command of the server's table.
struct Row {
    name: String,
    arity: i64,
    first: i64,
    last: i64,
    step: i64,
    movable: bool,
    /// False for one that writes nothing but may be replicated, as PUBLISH.
    writes: bool,
}

/// The commands that write or may be replicated, subcommands under their container's name.
fn replicated_commands(server: &Server) -> Vec<Row> {
    fn walk(rows: &[Value], out: &mut Vec<Row>) {
        for row in rows {
            let row = row.items();
            let number = |i: usize| row.get(i).and_then(Value::int).unwrap_or(0);
            let flags: Vec<String> = row
                .get(2)
                .map(|f| f.items().iter().map(Value::text).collect())
                .unwrap_or_default();
            let has = |flag: &str| flags.iter().any(|f| f == flag);
            if has("write") || has("may_replicate") {
                out.push(Row {
                    name: row[0].text().to_uppercase(),
                    arity: number(1),
                    first: number(3),
                    last: number(4),
                    step: number(5),
                    movable: has("movablekeys"),
                    writes: has("write"),
                });
            }
            if let Some(subcommands) = row.get(9) {
                walk(subcommands.items(), out);
            }
        }
    }
    let mut out = Vec::new();
    walk(server.run("COMMAND").items(), &mut out);
    assert!(out.len() > 80, "only {} write commands", out.len());
    out
}

/// Calls of a command whose keys stand at fixed places: the shortest that the server takes, and one of three runs.
fn fillers(row: &Row) -> [String; 2] {
    let least = (row.arity.unsigned_abs() as i64).max(row.last + 1);
    let mut len = least;
    if row.last < 0 {
        // Room for three runs, and none of them cut short.
        len = (row.first + 3 * row.step - row.last - 1).max(least);
    }
    [least, len].map(|len| filled(row, len))
}

fn filled(row: &Row, len: i64) -> String {
    (1..len).fold(row.name.replace('|', " "), |line, i| {
        format!("{line} argument{i}")
    })
}

#[test]
fn every_replicated_command_is_known_and_its_keys_are_where_the_servers_find_them() {
    let mut asked = 0;
    let mut wrong = BTreeSet::new();
    let mut unknown = BTreeSet::new();
    for name in SERVERS.into_iter().chain(MODULE_SERVERS) {
        if server::find(name).is_none() {
            skip(&format!("{name} is not here"));
            continue;
        }
        let server = Server::start(name);
        let mut compare = |line: &str| {
            let (mut theirs, mut ours) = (theirs(&server, line), ours(line));
            // The 6.x servers name the destination last.
            for keys in [&mut theirs, &mut ours] {
                let _ = keys.as_mut().map(|k| k.sort());
            }
            let in_part = NAMED_IN_PART.contains(&words(line)[0])
                && matches!((&theirs, &ours), (Ok(a), Ok(b)) if a.iter().all(|k| b.contains(k)));
            if theirs.is_ok() && (theirs == ours || in_part) {
                asked += 1;
            } else {
                wrong.insert(format!("{name}: {line}: {theirs:?}, in the table {ours:?}"));
            }
        };
        let rows = replicated_commands(&server);
        let sampled: BTreeSet<&str> = CALLS.iter().map(|c| words(c)[0]).collect();
        for row in &rows {
            let head = row.name.split('|').next().unwrap_or_default();
            // The servers take the name of an index for a key.
            if head.starts_with("FT.") && !head.starts_with("FT.SUG") || head.starts_with("_FT.") {
                continue;
            }
            if lookup(head.as_bytes()).is_none() && head.contains('.') {
                unknown.insert(head.to_owned());
            } else if lookup(head.as_bytes()).is_none() {
                compare(&row.name);
            } else if sampled.contains(head) || row.first <= 0 || !row.writes {
                continue;
            } else if !row.movable {
                fillers(row).iter().for_each(|call| compare(call));
            } else {
                compare(&format!("{} needs a call in CALLS", row.name));
            }
        }
        for call in CALLS {
            let head = words(call)[0];
            let knows = server.run(&format!("COMMAND INFO {head}"));
            if knows.items().first().is_some_and(|r| !r.items().is_empty()) {
                compare(call);
            }
        }
    }
    println!("modules' commands that are not in the table: {unknown:?}");
    unknown.retain(|name| !may_be_unknown(name));
    assert!(unknown.is_empty(), "not in the table: {unknown:?}");
    let shown: Vec<&String> = wrong.iter().collect();
    assert!(wrong.is_empty(), "{} differ:\n{shown:#?}", wrong.len());
    assert!(
        asked > 100 || server::find("any").is_none(),
        "{asked} calls compared"
    );
}
