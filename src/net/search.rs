//! Search indexes of a side's servers: asked for, and commands sent to the nodes that take them.
//!
//! Where a cluster's modules work together, any node tells all and takes all; where they do not, each node has indexes
//! of its own, and a command whose index another node has is answered with MOVED.

use super::refusals::{is_elsewhere, passes, refusal, said};
use super::{Control, control, server};
use crate::error::{Error, ErrorKind, Result};
use crate::plan::{Endpoint, Indexes, Job, is_for_good};
use crate::rdb::modules::ways::Loaded;
use crate::resp::Reply;
use crate::search::{Definition, is_moot, lacks_search, public_form};
use crate::types::DbIndex;
use std::collections::{BTreeMap, BTreeSet};

/// Most indexes of one side that are looked at.
pub const MOST: usize = 10_000;

/// Terms of an index by the groups of synonyms that they are in.
pub type Synonyms = BTreeMap<Vec<u8>, BTreeSet<Vec<u8>>>;

/// An index of a side.
#[derive(Debug, Clone)]
pub struct Found {
    pub definition: Definition,
    pub synonyms: Synonyms,
    /// Why its synonyms are not known.
    pub untold: Option<String>,
    /// How many of the side's nodes have it.
    pub nodes: usize,
}

/// What a side tells of its indexes.
#[derive(Debug, Clone)]
pub enum Told {
    Indexes(BTreeMap<Vec<u8>, Found>),
    /// It has no search.
    NoSearch,
    /// It does not tell, and why.
    Refused(String),
}

/// Asks every one of some nodes.
///
/// Errors: of the connection, and what passes by itself.
pub async fn indexes(endpoint: &Endpoint, nodes: &[String]) -> Result<Told> {
    let mut found: BTreeMap<Vec<u8>, Found> = BTreeMap::new();
    // A server without modules would count the question as an error of its own.
    if server::modules(endpoint)
        .await?
        .is_some_and(|all| !has_search(&all))
    {
        return Ok(Told::NoSearch);
    }
    for node in nodes {
        let mut conn = control(endpoint, node).await?;
        let list = match conn.ask(&[b"FT._LIST"]).await? {
            Reply::Error(text) if lacks_search(&text) => return Ok(Told::NoSearch),
            Reply::Error(text) if passes(&text) => return Err(refusal("FT._LIST", &text)),
            Reply::Error(text) => return Ok(Told::Refused(said(&text))),
            reply => reply,
        };
        let names = list.array().unwrap_or_default().iter();
        for name in names.filter_map(Reply::bytes).take(MOST) {
            if let Some(known) = found.get_mut(name) {
                known.nodes = known.nodes.saturating_add(1);
                continue;
            }
            let info = match conn.ask(&[b"FT.INFO", name]).await? {
                Reply::Error(text) if passes(&text) => return Err(refusal("FT.INFO", &text)),
                // It was dropped between the questions.
                Reply::Error(text) if is_moot(&text) => continue,
                Reply::Error(text) => return Ok(Told::Refused(said(&text))),
                reply => reply,
            };
            if let Some(definition) = Definition::from_info(&info) {
                let (synonyms, untold) = match one(endpoint, &mut conn, b"FT.SYNDUMP", name).await?
                {
                    Ok(reply) => (synonyms(&reply), None),
                    Err(why) => (Synonyms::new(), why),
                };
                let index = Found {
                    definition,
                    synonyms,
                    untold,
                    nodes: 1,
                };
                found.insert(name.to_vec(), index);
            }
        }
    }
    Ok(Told::Indexes(found))
}

/// Names of all that some nodes list.
///
/// Errors: of the connection, and of a node that does not list any more.
pub async fn listed(endpoint: &Endpoint, nodes: &[String]) -> Result<BTreeSet<Vec<u8>>> {
    let mut listed = BTreeSet::new();
    for node in nodes {
        let list = control(endpoint, node).await?.call(&[b"FT._LIST"]).await?;
        let names = list.array().unwrap_or_default().iter();
        listed.extend(names.filter_map(Reply::bytes).map(<[u8]>::to_vec));
    }
    Ok(listed)
}

/// The answer of a command that takes one word; or why there is none, where there is one to tell.
///
/// Errors: of the connection, and what passes by itself; a reply that is too large is no error.
async fn one(
    endpoint: &Endpoint,
    conn: &mut Control,
    command: &[u8],
    word: &[u8],
) -> Result<std::result::Result<Reply, Option<String>>> {
    let shown = String::from_utf8_lossy(command).into_owned();
    match conn.ask(&[command, word]).await {
        Ok(Reply::Error(text)) if passes(&text) => Err(refusal(&shown, &text)),
        Ok(Reply::Error(text)) if !is_refused(&text) => Ok(Err(None)),
        Ok(Reply::Error(text)) => Ok(Err(Some(format!(
            "{shown} is refused ({}): give keyferry's user +{} there and start again",
            said(&text),
            shown.to_ascii_lowercase()
        )))),
        Ok(reply) => Ok(Ok(reply)),
        Err(e) if is_too_large(&e) => {
            *conn = control(endpoint, conn.address()).await?;
            Ok(Err(Some(format!(
                "the reply of {shown} is too large to be taken"
            ))))
        }
        Err(e) => Err(e),
    }
}

/// Whether this user may not ask it, in a server's words or in ours.
fn is_refused(text: &str) -> bool {
    text.starts_with("NOPERM") || (is_for_good(text) && !lacks_search(text))
}

/// After it the connection is of no use.
fn is_too_large(e: &Error) -> bool {
    matches!(e.kind(), ErrorKind::Oversized | ErrorKind::Protocol)
}

fn synonyms(reply: &Reply) -> Synonyms {
    let mut found = Synonyms::new();
    for pair in reply.array().unwrap_or_default().chunks_exact(2) {
        let [term, groups] = pair else { continue };
        let (Some(term), Some(groups)) = (term.bytes(), groups.array()) else {
            continue;
        };
        for group in groups.iter().filter_map(Reply::bytes) {
            let terms = found.entry(group.to_vec()).or_default();
            terms.insert(term.to_vec());
        }
    }
    found
}

/// Questions sent at a time.
const AT_A_TIME: usize = 32;

/// What some words stand for, and what is not known of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named<T> {
    pub found: BTreeMap<Vec<u8>, T>,
    pub untold: Vec<String>,
}

/// Which of some words are aliases, and of which index.
pub async fn aliases<'w>(
    endpoint: &Endpoint,
    node: &str,
    words: impl Iterator<Item = &'w [u8]>,
) -> Result<Named<Vec<u8>>> {
    let take = |word: &[u8], reply: &Reply| {
        let index = Definition::from_info(reply).filter(|i| i.name() != word);
        index.map(|i| i.name().to_vec())
    };
    of_each(endpoint, node, b"FT.INFO", words, take).await
}

/// Which of some words are dictionaries, and what they hold.
pub async fn dictionaries<'w>(
    endpoint: &Endpoint,
    node: &str,
    words: impl Iterator<Item = &'w [u8]>,
) -> Result<Named<Vec<Vec<u8>>>> {
    let take = |_: &[u8], reply: &Reply| {
        let terms = reply.array().unwrap_or_default().iter();
        let terms: Vec<Vec<u8>> = terms.filter_map(Reply::bytes).map(<[u8]>::to_vec).collect();
        (!terms.is_empty()).then_some(terms)
    };
    of_each(endpoint, node, b"FT.DICTDUMP", words, take).await
}

/// What is taken of the answers of a command that takes one word.
async fn of_each<'w, T>(
    endpoint: &Endpoint,
    node: &str,
    command: &[u8],
    words: impl Iterator<Item = &'w [u8]>,
    take: impl Fn(&[u8], &Reply) -> Option<T>,
) -> Result<Named<T>> {
    let mut named = Named {
        found: BTreeMap::new(),
        untold: Vec::new(),
    };
    let words: Vec<&[u8]> = words.collect();
    let Some((first, rest)) = words.split_first() else {
        return Ok(named);
    };
    let mut conn = control(endpoint, node).await?;
    // One alone shows whether the others need to be sent.
    match one(endpoint, &mut conn, command, first).await? {
        Ok(reply) => named
            .found
            .extend(take(first, &reply).map(|t| (first.to_vec(), t))),
        Err(why) => {
            named.untold.extend(
                why.map(|why| match endpoint.learnt.refuses(&[command, first]) {
                    true => why,
                    false => format!("{} is left out: {why}", String::from_utf8_lossy(first)),
                }),
            )
        }
    }
    if endpoint.learnt.refuses(&[command, first]) {
        return Ok(named);
    }
    for some in rest.chunks(AT_A_TIME) {
        let asked: Vec<[&[u8]; 2]> = some.iter().map(|word| [command, word]).collect();
        let asked: Vec<&[&[u8]]> = asked.iter().map(|words| words.as_slice()).collect();
        let replies = match conn.ask_all(&asked).await {
            Ok(replies) => replies,
            Err(e) if is_too_large(&e) => {
                conn = control(endpoint, node).await?;
                for word in some {
                    match one(endpoint, &mut conn, command, word).await? {
                        Ok(reply) => {
                            let taken = take(word, &reply).map(|t| (word.to_vec(), t));
                            named.found.extend(taken);
                        }
                        Err(why) => named.untold.extend(why.map(|why| {
                            format!("{} is left out: {why}", String::from_utf8_lossy(word))
                        })),
                    }
                }
                continue;
            }
            Err(e) => return Err(e),
        };
        for (word, reply) in some.iter().zip(&replies) {
            match reply {
                Reply::Error(text) if passes(text) => return Err(refusal("FT.*", text)),
                Reply::Error(_) => {}
                reply => {
                    let taken = take(word, reply).map(|t| (word.to_vec(), t));
                    named.found.extend(taken);
                }
            }
        }
    }
    Ok(named)
}

/// What has become of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// By so many of the nodes; the others have sent it elsewhere.
    By(usize),
    /// There was nothing left to do.
    Moot,
    NoSearch,
    /// By none, and why.
    Refused(String),
}

/// Sends a command to each of some nodes.
///
/// Errors: of the connection, and what passes by itself.
pub async fn tell(endpoint: &Endpoint, nodes: &[String], words: &[Vec<u8>]) -> Result<Taken> {
    let (mut took, mut moot, mut refused, mut elsewhere) = (0usize, false, None, None);
    let public = public_form(words);
    for node in nodes {
        let mut conn = control(endpoint, node).await?;
        let known = |words: &[Vec<u8>]| {
            let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
            endpoint.learnt.refuses(&words)
        };
        let reply = match &public {
            Some(public) if known(words) => ask(&mut conn, public).await?,
            Some(public) => match ask(&mut conn, words).await? {
                Reply::Error(text) if is_for_good(&text) => ask(&mut conn, public).await?,
                reply => reply,
            },
            None => ask(&mut conn, words).await?,
        };
        match reply {
            Reply::Error(text) if lacks_search(&text) => return Ok(Taken::NoSearch),
            Reply::Error(text) if is_elsewhere(&text) => elsewhere = Some(text),
            Reply::Error(text) if passes(&text) => return Err(refusal("FT.*", &text)),
            Reply::Error(text) if is_moot(&text) => moot = true,
            Reply::Error(text) => refused = Some(said(&text)),
            _ => took = took.saturating_add(1),
        }
    }
    Ok(match (took, moot, refused, elsewhere) {
        (1.., ..) => Taken::By(took),
        (_, true, ..) => Taken::Moot,
        (.., Some(why), _) => Taken::Refused(why),
        // The node that has it is not in our picture yet.
        (.., None, Some(text)) => return Err(refusal("FT.*", &text)),
        (.., None, None) => Taken::Moot,
    })
}

async fn ask(conn: &mut Control, words: &[Vec<u8>]) -> Result<Reply> {
    let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
    conn.ask(&words).await
}

fn has_search(modules: &[Loaded]) -> bool {
    modules.iter().any(|m| m.name.starts_with("search"))
}

/// Why indexes are left out; `None` where they are brought. A target that does not tell its modules is asked.
pub fn left_out(job: &Job, target_modules: Option<&[Loaded]>) -> Option<&'static str> {
    if job.indexes == Indexes::Skip {
        Some("the plan leaves search indexes out (\"indexes\": \"skip\")")
    } else if job.databases.map(DbIndex::ZERO) != Some(DbIndex::ZERO) {
        Some(
            "search indexes are of database 0, which the plan does not move to database 0 of the target",
        )
    } else if target_modules.is_some_and(|all| !has_search(all)) {
        Some(NO_SEARCH)
    } else {
        None
    }
}

pub const NO_SEARCH: &str = "the target has no search module: searches will fail there until the indexes are made at a server that has one";

/// An index as the target is to have it, and what of it is not as at the source.
pub fn led(job: &Job, ours: &Definition) -> (Definition, Vec<String>) {
    let mut notes: Vec<String> = (ours.unknown())
        .map(|what| format!("not known, so left as the target makes it: {what}"))
        .collect();
    let mut prefixes = Vec::new();
    for prefix in ours.prefixes() {
        prefixes.push(match job.renames.prefix_to_target(prefix) {
            Some(there) => there,
            None => {
                notes.push(format!(
                    "the plan renames some of the keys that begin with {}: the index keeps this prefix",
                    String::from_utf8_lossy(prefix)
                ));
                prefix.clone()
            }
        });
    }
    (ours.clone().with_prefixes(prefixes), notes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::net::testing;
    use std::sync::{Arc, Mutex};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    type Answer = fn(&str) -> String;

    /// An endpoint that stands in for a server whose rights and whose replies are to be set; and what it was asked.
    async fn stand_in(answer: Answer) -> (Endpoint, String, Arc<Mutex<Vec<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let asked = heard.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let asked = asked.clone();
                tokio::spawn(async move {
                    let mut buf = vec![0; 1 << 16];
                    while let Ok(n @ 1..) = stream.read(&mut buf).await {
                        for command in String::from_utf8_lossy(&buf[..n]).split('*').skip(1) {
                            let words = command.split("\r\n").skip(2).step_by(2);
                            let words = words.collect::<Vec<_>>().join(" ");
                            let reply = match words.as_str() {
                                "PING" => "+PONG\r\n".to_owned(),
                                words => answer(words),
                            };
                            asked.lock().unwrap().push(words);
                            if stream.write_all(reply.as_bytes()).await.is_err() {
                                return;
                            }
                        }
                    }
                });
            }
        });
        (testing::endpoint(address, None), address.to_string(), heard)
    }

    fn words(line: &str) -> Vec<Vec<u8>> {
        line.split(' ').map(|w| w.as_bytes().to_vec()).collect()
    }

    fn heard_of(heard: &Mutex<Vec<String>>) -> Vec<String> {
        let mut heard = heard.lock().unwrap();
        heard.retain(|words| words.starts_with("FT."));
        std::mem::take(&mut heard)
    }

    #[tokio::test]
    async fn the_form_for_everybody_is_used_wherever_the_other_is_not_to_be_had() {
        let answers: [Answer; 2] = [
            |words| match words.starts_with("FT._") {
                true => {
                    "-NOPERM this user has no permissions to run the 'ft._createifnx' command\r\n"
                        .into()
                }
                false => "+OK\r\n".into(),
            },
            |words| match words.starts_with("FT._") {
                true => "-ERR unknown command 'FT._CREATEIFNX'\r\n".into(),
                false => "+OK\r\n".into(),
            },
        ];
        for answer in answers {
            let (endpoint, node, heard) = stand_in(answer).await;
            for name in ["a", "b"] {
                let create = words(&format!("FT._CREATEIFNX {name} SCHEMA t TEXT"));
                let taken = tell(&endpoint, std::slice::from_ref(&node), &create).await;
                assert_eq!(taken.unwrap(), Taken::By(1), "{name}");
                let heard = heard_of(&heard);
                let last = format!("FT.CREATE {name} SCHEMA t TEXT");
                assert_eq!(heard.last(), Some(&last), "{heard:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_server_without_search_says_so_each_time() {
        let (endpoint, node, _heard) = stand_in(|words| match words.starts_with("FT.") {
            true => "-ERR unknown command 'FT._LIST', with args beginning with: \r\n".into(),
            false => {
                "-NOPERM this user has no permissions to run the 'module|list' command\r\n".into()
            }
        })
        .await;
        for _ in 0..2 {
            let told = indexes(&endpoint, std::slice::from_ref(&node))
                .await
                .unwrap();
            assert!(matches!(told, Told::NoSearch), "{told:?}");
        }
    }

    #[tokio::test]
    async fn what_is_refused_is_asked_once_and_what_is_too_large_is_named() {
        let texts: Vec<Vec<u8>> = (0..100).map(|n| format!("d{n}").into_bytes()).collect();
        let all = || texts.iter().map(Vec::as_slice);
        let (endpoint, node, heard) = stand_in(|_| {
            "-NOPERM this user has no permissions to run the 'ft.dictdump' command\r\n".into()
        })
        .await;
        let named = dictionaries(&endpoint, &node, all()).await.unwrap();
        assert_eq!(heard_of(&heard), ["FT.DICTDUMP d0"]);
        assert!(named.untold[0].contains("+ft.dictdump"), "{named:?}");
        let (endpoint, node, _heard) = stand_in(|words| match words {
            "FT.DICTDUMP d7" => "*1\r\n$99999999999\r\n".into(),
            "FT.DICTDUMP d5" | "FT.DICTDUMP d9" => "*1\r\n$1\r\na\r\n".into(),
            _ => "*0\r\n".into(),
        })
        .await;
        let named = dictionaries(&endpoint, &node, all()).await.unwrap();
        assert_eq!(named.found.len(), 2, "{named:?}");
        assert_eq!(named.untold.len(), 1, "{named:?}");
        assert!(named.untold[0].contains("d7"), "{named:?}");
    }

    #[tokio::test]
    async fn synonyms_that_are_not_told_are_not_taken_for_none() {
        fn answer(words: &str, synonyms: &str) -> String {
            match words {
                "FT._LIST" => "*1\r\n$1\r\ni\r\n",
                "FT.INFO i" => "*2\r\n$10\r\nindex_name\r\n$1\r\ni\r\n",
                "FT.SYNDUMP i" => synonyms,
                _ => "-ERR unknown command\r\n",
            }
            .to_owned()
        }
        let answers: [(Answer, bool); 3] = [
            (
                |w| {
                    answer(
                        w,
                        "-NOPERM this user has no permissions to run the 'ft.syndump' command\r\n",
                    )
                },
                true,
            ),
            (|w| answer(w, "*1\r\n$99999999999\r\n"), true),
            // A server that has no synonyms.
            (
                |w| answer(w, "-ERR unknown command 'FT.SYNDUMP'\r\n"),
                false,
            ),
        ];
        for (answer, untold) in answers {
            let (endpoint, node, _heard) = stand_in(answer).await;
            for _ in 0..2 {
                let Told::Indexes(all) = indexes(&endpoint, std::slice::from_ref(&node))
                    .await
                    .unwrap()
                else {
                    panic!("no indexes");
                };
                assert_eq!(all[b"i".as_slice()].untold.is_some(), untold, "{all:?}");
            }
        }
    }
}
