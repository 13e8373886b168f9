//! Search indexes as a part of the migration: made, followed, compared and reported.

use crate::support::cluster::Cluster;
use crate::support::keyferry::{Plan, Running};
use crate::support::server::{Server, Setup};
use crate::support::wire::{Client, Command};
use crate::support::{need, wait_until};
use serde_json::{Value, json};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// Every option that FT.INFO tells.
const FULL: &str = "FT.CREATE full ON HASH PREFIX 2 doc: art: FILTER @year>2000 LANGUAGE german LANGUAGE_FIELD lang SCORE 0.7 SCORE_FIELD sc PAYLOAD_FIELD pay MAXTEXTFIELDS NOOFFSETS NOHL NOFIELDS NOFREQS STOPWORDS 2 the foo SCHEMA title AS t TEXT NOSTEM WEIGHT 2.5 WITHSUFFIXTRIE INDEXEMPTY INDEXMISSING SORTABLE UNF body TEXT SORTABLE NOINDEX tag TAG SEPARATOR ; CASESENSITIVE WITHSUFFIXTRIE INDEXEMPTY INDEXMISSING SORTABLE year NUMERIC INDEXMISSING SORTABLE loc GEO INDEXMISSING geom GEOSHAPE FLAT INDEXMISSING geos GEOSHAPE v VECTOR HNSW 10 TYPE FLOAT32 DIM 4 DISTANCE_METRIC COSINE M 20 EF_CONSTRUCTION 300 w VECTOR FLAT 6 TYPE FLOAT64 DIM 2 DISTANCE_METRIC L2";
const HASHES: &str = "FT.CREATE hashes PREFIX 1 h: SCHEMA name TEXT SORTABLE tags TAG n NUMERIC SORTABLE at GEO v VECTOR HNSW 6 TYPE FLOAT32 DIM 2 DISTANCE_METRIC L2";
const DOCUMENTS: &str = "FT.CREATE documents ON JSON PREFIX 1 j: STOPWORDS 0 SCHEMA $.name AS name TEXT $.tags[*] AS tags TAG $.n AS n NUMERIC SORTABLE $.at AS at GEO $.v AS v VECTOR FLAT 6 TYPE FLOAT32 DIM 2 DISTANCE_METRIC L2";
/// Answered alike on both sides.
const SEARCHES: [&str; 8] = [
    "FT.SEARCH hashes hello SORTBY n LIMIT 0 5",
    "FT.SEARCH hashes @tags:{red} SORTBY n LIMIT 0 5",
    "FT.SEARCH hashes @n:[10,(20] SORTBY n LIMIT 0 20",
    "FT.SEARCH hashes @at:[13.0,52.5,200,km] SORTBY n LIMIT 0 5",
    "FT.SEARCH documents hello SORTBY n LIMIT 0 5",
    "FT.SEARCH documents @tags:{red} SORTBY n LIMIT 0 5",
    "FT.SEARCH documents @n:[10,(20] SORTBY n LIMIT 0 20",
    "FT.SEARCH documents @at:[13.0,52.5,200,km] SORTBY n LIMIT 0 5",
];

fn ok(server: &Server, words: &str) {
    let answer = server.run(words);
    assert!(!answer.is_error(), "{words}: {}", answer.text());
}

/// Documents number `range`, a hash and a JSON document each.
pub fn fill(client: &mut Client, range: std::ops::Range<u32>) {
    for n in range {
        let tag = ["red", "green", "blue"][n as usize % 3];
        let (lon, lat) = (f64::from(n % 60) / 10.0 + 10.0, 52.5);
        let v: Vec<u8> = [n as f32, 1.0]
            .iter()
            .flat_map(|f| f.to_le_bytes())
            .collect();
        let hash =
            Command::new("HSET")
                .key(format!("h:{n}"))
                .args(["name", "hello world", "tags", tag]);
        let hash = hash
            .arg("n")
            .arg(n)
            .arg("at")
            .arg(format!("{lon},{lat}"))
            .arg("v")
            .arg(v);
        client.push(&hash);
        let document = json!({"name": "hello you", "tags": [tag, "x"], "n": n, "at": format!("{lon},{lat}"), "v": [n, 1]});
        let set = Command::new("JSON.SET")
            .key(format!("j:{n}"))
            .arg("$")
            .arg(document.to_string());
        client.push(&set);
    }
    for answer in client.replies().expect("answers") {
        assert!(!answer.is_error(), "{}", answer.text());
    }
}

/// What FT.INFO tells of how an index was made.
fn made(server: &Server, name: &str) -> String {
    let info = server.run(&format!("FT.INFO {name}"));
    assert!(!info.is_error(), "{name}: {}", info.text());
    let pairs = info.items().chunks_exact(2);
    let wanted = [
        "index_name",
        "index_options",
        "index_definition",
        "attributes",
        "stopwords_list",
    ];
    let told: Vec<String> = pairs
        .filter(|pair| wanted.contains(&pair[0].text().as_str()))
        .map(|pair| format!("{pair:?}"))
        .collect();
    assert!(told.len() >= 4, "{info:?}");
    told.join("\n")
}

/// How many documents an index holds.
fn count(server: &Server, name: &str) -> String {
    let info = server.run(&format!("FT.INFO {name}"));
    let mut pairs = info.items().chunks_exact(2);
    let pair = pairs.find(|pair| pair[0].text() == "num_docs");
    pair.map(|pair| pair[1].text()).unwrap_or_default()
}

fn list(server: &Server) -> Vec<String> {
    let list = server.run("FT._LIST");
    let mut names: Vec<String> = list.items().iter().map(|n| n.text()).collect();
    names.sort();
    names
}

pub fn same_answers(a: &Server, b: &Server) {
    for search in SEARCHES {
        let (ours, theirs) = (a.run(search), b.run(search));
        assert!(ours.items().len() > 2, "{search}: {ours:?}");
        assert_eq!(format!("{ours:?}"), format!("{theirs:?}"), "{search}");
    }
    let near: Vec<u8> = [7.2f32, 1.0].iter().flat_map(|f| f.to_le_bytes()).collect();
    for index in ["hashes", "documents"] {
        let knn = Command::new("FT.SEARCH")
            .arg(index)
            .arg("*=>[KNN 3 @v $q AS d]");
        let knn = knn
            .args(["PARAMS", "2", "q"])
            .arg(near.clone())
            .args(["RETURN", "1", "n", "SORTBY", "d", "DIALECT", "2"]);
        let ours = a.client().run(&knn).expect("an answer");
        assert_eq!(ours.items().len(), 7, "{ours:?}");
        let theirs = b.client().run(&knn).expect("an answer");
        assert_eq!(format!("{ours:?}"), format!("{theirs:?}"));
    }
}

fn stop(running: Running) -> Value {
    running.interrupt();
    running.wait(LIMIT).exits(130).json
}

fn verified(plan: &Plan, code: i32) -> Value {
    plan.run("verify --json").exits(code).json
}

fn state_of<'v>(answer: &'v Value, name: &str) -> &'v Value {
    let list = answer["indexes"].as_array().expect("a list");
    let one = list.iter().find(|i| i["name"] == name);
    &one.unwrap_or_else(|| panic!("no {name}: {answer}"))["state"]
}

/// A source with both kinds of documents and three indexes, and a plan to `target`.
/// One of every kind of field, one of hashes, one of documents.
pub fn create(server: &Server) {
    for create in [FULL, HASHES, DOCUMENTS] {
        ok(server, create);
    }
}

fn scene(name: &str, target: &str, mode: &str) -> (Server, Plan) {
    let source = Server::start(name);
    create(&source);
    ok(&source, "FT.SYNUPDATE hashes g1 hello salut");
    ok(&source, "FT.ALIASADD before hashes");
    ok(&source, "FT.DICTADD earlier three four");
    fill(&mut source.client(), 0..300);
    let mut plan = Plan::new(&source.url(), target);
    plan.set("/source/mode", json!(mode));
    (source, plan)
}

/// Made as they were, with the documents; every search is answered alike; what happens in the stream happens there too.
#[test]
fn indexes_arrive_and_follow_the_stream() {
    let Some([old, new]) = need(["modules-7.4", "modules-8.2"]) else {
        return;
    };
    for to in [&old, &new] {
        let target = Server::start(to);
        let (source, plan) = scene(&old, &target.url(), "replica");
        let report = plan.run("check --json").exits(0).json;
        let findings = report["findings"].as_array().expect("findings");
        let one = findings.iter().find(|f| f["id"] == "search_indexes");
        let one = one.expect("a finding");
        assert_eq!(one["severity"], "info", "{one}");
        for word in [
            "3 search indexes",
            "full",
            "hashes",
            "documents",
            "PHONETIC",
        ] {
            assert!(one["message"].to_string().contains(word), "{one}");
        }
        let mut running = plan.start("migrate --json");
        plan.wait_caught_up(&mut running, LIMIT);
        assert_eq!(list(&target), ["documents", "full", "hashes"]);
        for name in ["full", "hashes", "documents"] {
            assert_eq!(made(&source, name), made(&target, name));
        }
        for words in [
            "FT.CREATE later PREFIX 1 h: SCHEMA n NUMERIC",
            "FT.ALTER later SCHEMA ADD tags TAG",
            "FT.ALIASADD al later",
            "FT.ALIASUPDATE al hashes",
            "FT.SYNUPDATE hashes g1 servus",
            "FT.DICTADD words one two",
            "FT.DICTDEL words one",
            "FT.DROPINDEX full",
            "HSET d:1 name gone",
            "FT.CREATE dropped PREFIX 1 d: SCHEMA name TEXT",
            "FT.DROPINDEX dropped DD",
            "FT.CREATE passing PREFIX 1 p: TEMPORARY 3600 SCHEMA name TEXT",
        ] {
            ok(&source, words);
        }
        let mut client = source.client();
        for words in [
            "MULTI",
            "FT.CREATE within PREFIX 1 h: SCHEMA n NUMERIC",
            "SET within 1",
            "EXEC",
        ] {
            client.words(words).expect("an answer");
        }
        fill(&mut client, 300..320);
        plan.wait_caught_up(&mut running, LIMIT);
        let names = ["documents", "hashes", "later", "passing", "within"];
        assert_eq!(list(&source), names);
        wait_until("the stream is followed", LIMIT, || {
            list(&target) == names && count(&target, "hashes") == "320"
        });
        assert_eq!(made(&source, "later"), made(&target, "later"));
        assert!(
            running.stderr_now().contains("TEMPORARY"),
            "{}",
            running.stderr_now()
        );
        for words in [
            "FT.SEARCH before hello LIMIT 0 0",
            "FT.DICTDUMP earlier",
            "FT.SEARCH al hello LIMIT 0 0",
            "FT.DICTDUMP words",
            "EXISTS d:1",
            "FT.SEARCH hashes servus LIMIT 0 0",
        ] {
            assert_eq!(
                format!("{:?}", source.run(words)),
                format!("{:?}", target.run(words)),
                "{words}"
            );
        }
        same_answers(&source, &target);
        let answer = verified(&plan, 0);
        for name in names {
            assert_eq!(state_of(&answer, name), "equal", "{answer}");
        }
        stop(running);
        // Found where it is missing, and made again.
        ok(&target, "FT.DROPINDEX hashes");
        let answer = verified(&plan, 1);
        assert_eq!(
            (state_of(&answer, "hashes"), state_of(&answer, "documents")),
            (&json!("missing"), &json!("equal"))
        );
        assert_eq!(
            (&answer["equal"], &answer["different_count"]),
            (&json!(false), &json!(0))
        );
        plan.run("migrate --until caught-up --json").exits(0);
        let answer = verified(&plan, 0);
        assert_eq!(state_of(&answer, "hashes"), "equal", "{answer}");
        plan.run("report").exits(0);
        let markdown = std::fs::read_to_string(plan.work_dir().join("test/report/report.md"))
            .expect("a report");
        assert!(
            markdown.contains("Search indexes") && markdown.contains("hashes"),
            "{markdown}"
        );
    }
}

/// Without a stream, the source is asked now and then.
#[test]
fn a_scan_brings_indexes_and_sees_them_change() {
    let Some([old, new]) = need(["modules-7.4", "modules-8.2"]) else {
        return;
    };
    let target = Server::start(&new);
    let (source, plan) = scene(&old, &target.url(), "scan");
    let mut running = plan.start("migrate --json");
    wait_until("the indexes are there", LIMIT, || {
        list(&target).len() == 3 && count(&target, "hashes") == "300"
    });
    same_answers(&source, &target);
    // Not as at the source for ever, as at a server that tells more of each: it is not made anew for that.
    ok(&target, "FT.ALTER hashes SCHEMA ADD own TAG");
    ok(&source, "FT.DROPINDEX full");
    ok(&source, "FT.ALTER documents SCHEMA ADD $.more AS more TAG");
    ok(&source, "FT.CREATE later PREFIX 1 h: SCHEMA n NUMERIC");
    let names = ["documents", "hashes", "later"];
    wait_until("the changes are there", LIMIT, || {
        list(&target) == names && made(&source, "documents") == made(&target, "documents")
    });
    assert!(made(&target, "hashes").contains("own"));
    plan.wait_caught_up(&mut running, LIMIT);
    let answer = verified(&plan, 1);
    for name in ["documents", "later"] {
        assert_eq!(state_of(&answer, name), "equal", "{answer}");
    }
    assert_eq!(state_of(&answer, "hashes"), "different", "{answer}");
    stop(running);
    // An emptied source, of which nobody knows that it was meant, takes no index away.
    ok(&source, "FLUSHALL");
    assert!(list(&source).is_empty());
    let told = plan.run("migrate --until caught-up --json");
    told.says(&["the target's indexes stay", "--accept-loss"]);
    assert_eq!(list(&target), names);
}

/// Killed when all is loaded and nothing is made yet, it makes them in the next run; they are waited for.
#[test]
fn a_killed_run_makes_them_in_the_next() {
    let Some([name]) = need(["modules-7.4"]) else {
        return;
    };
    let target = Server::start(&name);
    let (source, mut plan) = scene(&name, &target.url(), "replica");
    let dry = plan
        .run("migrate --dry-run --until caught-up --json")
        .exits(0);
    assert!(list(&target).is_empty(), "{}", dry.stderr);
    let killed = plan.start_with("migrate --json", &[("KEYFERRY_FAILPOINT", "load-done:1")]);
    assert_eq!(killed.wait(LIMIT).code, -1);
    assert!(list(&target).is_empty());
    ok(&source, "FT.CREATE between PREFIX 1 h: SCHEMA n NUMERIC");
    ok(&source, "FT.DROPINDEX full");
    // What a killed run has made is ours.
    let killed = plan.start_with("migrate --json", &[("KEYFERRY_FAILPOINT", "index-made:1")]);
    assert_eq!(killed.wait(LIMIT).code, -1);
    assert_eq!(list(&target).len(), 1);
    plan.run("migrate --until caught-up --json").exits(0);
    assert_eq!(list(&target), ["between", "documents", "hashes"]);
    plan.run("report").exits(0);
    let path = plan.work_dir().join("test/report/report.json");
    let report: Value =
        serde_json::from_slice(&std::fs::read(path).expect("a report")).expect("JSON");
    for name in list(&target) {
        let state = &report["indexes"][&name]["state"];
        assert_eq!(state, "created", "{}", report["indexes"]);
    }
    same_answers(&source, &target);
    verified(&plan, 0);
    // The plan leaves them out: what is there stays, and no command of the stream ends the run.
    plan.set("/indexes", json!("skip"));
    ok(&source, "FT.CREATE skipped PREFIX 1 h: SCHEMA n NUMERIC");
    let done = plan.run("migrate --until caught-up --json").exits(0);
    assert_eq!(done.json["skipped"]["search"], 1, "{}", done.stdout);
    assert_eq!(list(&target), ["between", "documents", "hashes"]);
    let answer = verified(&plan, 0);
    assert_eq!(state_of(&answer, "hashes"), "not_compared", "{answer}");
}

/// Prefixes are renamed with the keys; an index of the same name that the target has stays, and is told.
#[test]
fn prefixes_are_renamed_and_another_index_is_left_alone() {
    let Some([name]) = need(["modules-7.4"]) else {
        return;
    };
    let (source, target) = (Server::start(&name), Server::start(&name));
    ok(&source, "FT.CREATE i PREFIX 1 old: SCHEMA a TEXT");
    ok(&source, "FT.CREATE half PREFIX 1 o SCHEMA a TEXT");
    ok(&source, "FT.CREATE other PREFIX 1 old: SCHEMA a TEXT");
    ok(&target, "FT.CREATE other PREFIX 1 x: SCHEMA b TAG");
    ok(&source, "HSET old:1 a hello");
    let mut plan = Plan::new(&source.url(), &target.url());
    plan.set("/rename", json!({"old:": "new:"}));
    plan.set("/indexes", json!("create-before-load"));
    let report = plan.run("check --json").exits(0).json.to_string();
    for said in [
        "search_indexes_unlike",
        "another index of this name",
        "half",
    ] {
        assert!(report.contains(said), "{said}: {report}");
    }
    let mut running = plan.start("migrate --json");
    plan.wait_caught_up(&mut running, LIMIT);
    // None of these is ours, whatever the stream says.
    let own = ["mine", "other"];
    ok(&target, "FT.CREATE mine PREFIX 1 x: SCHEMA b TAG");
    let before = own.map(|name| made(&target, name));
    ok(&source, "FT.ALTER other SCHEMA ADD c TEXT");
    ok(&source, "FT.SYNUPDATE other group one two");
    for line in ["CREATE mine SCHEMA a TEXT", "ALTER mine SCHEMA ADD c TEXT"] {
        ok(&source, &format!("FT.{line}"));
    }
    ok(&source, "FT.DROPINDEX mine");
    ok(&source, "FT.CREATE streamed PREFIX 1 old: SCHEMA a TEXT");
    wait_until("the stream is followed", LIMIT, || {
        list(&target) == ["half", "i", "mine", "other", "streamed"]
    });
    assert_eq!(own.map(|name| made(&target, name)), before);
    assert!(target.run("FT.SYNDUMP other").items().is_empty());
    for index in ["i", "streamed"] {
        assert!(
            made(&target, index).contains("new:"),
            "{}",
            made(&target, index)
        );
        wait_until("it is built", LIMIT, || count(&target, index) == "1");
    }
    assert!(made(&target, "other").contains("x:"));
    stop(running);
    let answer = verified(&plan, 1);
    assert_eq!(state_of(&answer, "other"), "different", "{answer}");
    assert_eq!(state_of(&answer, "i"), "equal", "{answer}");
}

/// A target that cannot search gets the documents; what is missing is said, and ends nothing.
#[test]
fn a_target_without_search_gets_the_documents() {
    let Some([name, plain]) = need(["modules-7.4", "valkey-9.1"]) else {
        return;
    };
    let (source, target) = (Server::start(&name), Server::start(&plain));
    ok(&source, HASHES);
    ok(&source, "HSET h:1 name hello");
    let plan = Plan::new(&source.url(), &target.url());
    let report = plan.run("check --json").exits(0).json;
    let findings = report["findings"].as_array().expect("findings");
    let one = findings.iter().find(|f| f["id"] == "search_indexes");
    let one = one.expect("a finding");
    assert_eq!(one["severity"], "warning");
    assert!(one["message"].to_string().contains("hashes"), "{one}");
    let mut running = plan.start("migrate --json");
    plan.wait_caught_up(&mut running, LIMIT);
    ok(&source, "FT.CREATE later PREFIX 1 h: SCHEMA n NUMERIC");
    ok(&source, "HSET h:2 name hello");
    wait_until("the stream goes on", LIMIT, || {
        target.run("EXISTS h:2").int() == Some(1)
    });
    stop(running);
    let done = plan.run("migrate --until caught-up --json").exits(0);
    assert!(
        done.json["skipped"]["search"].as_u64() >= Some(1),
        "{}",
        done.stdout
    );
    done.says(&["no search module"]);
    let answer = verified(&plan, 0);
    assert_eq!(state_of(&answer, "hashes"), "not_compared", "{answer}");
    plan.run("report").exits(0);
    let path = plan.work_dir().join("test/report/report.json");
    let report: Value =
        serde_json::from_slice(&std::fs::read(path).expect("a report")).expect("JSON");
    assert_eq!(
        report["indexes"]["hashes"]["state"], "skipped",
        "{}",
        report["indexes"]
    );
    assert!(report["unproven"].to_string().contains("hashes"));
}

/// A user without FT.* at the target: a warning with the remedy, and the keys arrive.
#[test]
fn a_target_that_refuses_them_gets_the_documents() {
    let Some([name]) = need(["modules-7.4"]) else {
        return;
    };
    let source = Server::start(&name);
    let target = Setup::new(&name)
        .line("user ferry on >it ~* &* +@all -ft.create -ft._createifnx -ft._list")
        .start();
    ok(&source, HASHES);
    ok(&source, "HSET h:1 name hello");
    let mut plan = Plan::new(&source.url(), &target.url());
    plan.set("/target/username", json!("ferry"));
    plan.set("/target/password", json!("it"));
    let done = plan.run("migrate --until caught-up --json").exits(0);
    done.says(&["hashes", "+@search"]);
    assert_eq!(target.run("EXISTS h:1").int(), Some(1));
    assert!(list(&target).is_empty());
}

/// Nodes whose modules do not work together: each index goes to the node that takes it, and what that means is said.
#[test]
fn a_cluster_gets_each_index_where_it_is_taken() {
    let Some([name, clustered]) = need(["modules-7.4", "modules-8.2"]) else {
        return;
    };
    let cluster = Cluster::start(&clustered, 3);
    let (source, plan) = scene(&name, &cluster.url(), "replica");
    let mut running = plan.start("migrate --json");
    plan.wait_caught_up(&mut running, LIMIT);
    ok(&source, "FT.CREATE later PREFIX 1 h: SCHEMA n NUMERIC");
    ok(&source, "FT.ALTER hashes SCHEMA ADD more TAG");
    ok(&source, "FT.DROPINDEX full");
    ok(&source, "FT.DICTADD words one");
    let everywhere = || {
        let mut names: Vec<String> = cluster.masters().iter().flat_map(list).collect();
        names.sort();
        names
    };
    wait_until("the stream is followed", LIMIT, || {
        everywhere() == ["documents", "hashes", "later"]
            && (cluster.masters().iter()).all(|m| m.run("FT.DICTDUMP words").items().len() == 1)
    });
    let holder = cluster
        .masters()
        .iter()
        .find(|m| list(m).contains(&"hashes".to_owned()));
    wait_until("it is altered", LIMIT, || {
        made(holder.expect("a node"), "hashes") == made(&source, "hashes")
    });
    stop(running);
    let answer = verified(&plan, 0);
    assert_eq!(state_of(&answer, "hashes"), "not_compared", "{answer}");
    assert!(
        answer.to_string().contains("do not work together"),
        "{answer}"
    );
}

/// A file's definitions are not made, which is said.
#[test]
fn a_file_says_that_its_indexes_are_not_made() {
    let Some([name]) = need(["modules-7.4"]) else {
        return;
    };
    let (source, target) = (Server::start(&name), Server::start(&name));
    ok(&source, HASHES);
    ok(&source, "HSET h:1 name hello");
    ok(&source, "SAVE");
    let file = source.dir().join("dump.rdb");
    let plan = Plan::of(
        json!({"name": "test", "source": {"mode": "rdb", "path": file}, "target": {"url": target.url()}}),
    );
    plan.run("migrate --json")
        .exits(0)
        .says(&["search indexes", "FT.CREATE"]);
    assert_eq!(target.run("EXISTS h:1").int(), Some(1));
}
