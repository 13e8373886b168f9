//! Search indexes of a side's servers: asked for, and commands sent to the nodes that take them.
//!
//! Where a cluster's modules work together, any node tells all and takes all; where they do not, each node has indexes
//! of its own, and a command whose index another node has is answered with MOVED.

use super::refusals::{is_elsewhere, passes, refusal, said};
use super::{Control, control, server};
use crate::error::Result;
use crate::plan::{Endpoint, Indexes, Job};
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
                let synonyms = synonyms(&mut conn, name).await?;
                let index = Found {
                    definition,
                    synonyms,
                    nodes: 1,
                };
                found.insert(name.to_vec(), index);
            }
        }
    }
    Ok(Told::Indexes(found))
}

/// None where it does not tell.
async fn synonyms(conn: &mut Control, index: &[u8]) -> Result<Synonyms> {
    let reply = conn.ask(&[b"FT.SYNDUMP", index]).await?;
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
    Ok(found)
}

/// Questions sent at a time.
const AT_A_TIME: usize = 32;

/// Which of some words are aliases, and of which index.
pub async fn aliases<'w>(
    endpoint: &Endpoint,
    node: &str,
    words: impl Iterator<Item = &'w [u8]>,
) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut found = BTreeMap::new();
    for (word, reply) in of_each(endpoint, node, b"FT.INFO", words).await? {
        let index = Definition::from_info(&reply);
        if let Some(index) = index.filter(|i| i.name() != word) {
            found.insert(word, index.name().to_vec());
        }
    }
    Ok(found)
}

/// Which of some words are dictionaries, and what they hold.
pub async fn dictionaries<'w>(
    endpoint: &Endpoint,
    node: &str,
    words: impl Iterator<Item = &'w [u8]>,
) -> Result<BTreeMap<Vec<u8>, Vec<Vec<u8>>>> {
    let mut found = BTreeMap::new();
    for (word, reply) in of_each(endpoint, node, b"FT.DICTDUMP", words).await? {
        let terms = reply.array().unwrap_or_default().iter();
        let terms: Vec<Vec<u8>> = terms.filter_map(Reply::bytes).map(<[u8]>::to_vec).collect();
        if !terms.is_empty() {
            found.insert(word, terms);
        }
    }
    Ok(found)
}

/// The answers of a command that takes one word.
async fn of_each<'w>(
    endpoint: &Endpoint,
    node: &str,
    command: &[u8],
    words: impl Iterator<Item = &'w [u8]>,
) -> Result<Vec<(Vec<u8>, Reply)>> {
    let mut conn = control(endpoint, node).await?;
    let words: Vec<&[u8]> = words.collect();
    let mut answers = Vec::new();
    for some in words.chunks(AT_A_TIME) {
        let asked: Vec<[&[u8]; 2]> = some.iter().map(|word| [command, word]).collect();
        let asked: Vec<&[&[u8]]> = asked.iter().map(|words| words.as_slice()).collect();
        let replies = conn.ask_all(&asked).await?;
        let told = some.iter().zip(replies);
        let told = told.filter(|(_, reply)| !matches!(reply, Reply::Error(_)));
        answers.extend(told.map(|(word, reply)| (word.to_vec(), reply)));
    }
    Ok(answers)
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
    for node in nodes {
        let mut conn = control(endpoint, node).await?;
        let mut reply = ask(&mut conn, words).await?;
        if matches!(&reply, Reply::Error(text) if lacks_search(text))
            && let Some(public) = public_form(words)
        {
            reply = ask(&mut conn, &public).await?;
        }
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
