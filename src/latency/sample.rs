//! What the source's own traffic is like: which commands, how often, on which keys, of what size.

use super::lines::Lines;
use super::rng::Rng;
use super::workload::RealKeys;
use crate::error::Result;
use crate::net::scan::{self, Scan};
use crate::net::{self, Conn, server};
use crate::plan::{Endpoint, Job};
use crate::resp::Reply;
use crate::source::mix::{self, Mix};
use crate::store::{MIX, Store};
use crate::types::DbIndex;
use std::collections::BTreeMap;
use std::time::Duration;

/// How long the source's own traffic is looked at.
const WINDOW: Duration = Duration::from_secs(3);
/// Keys that are read are a sample of so many.
const SAMPLE: usize = 5_000;
/// Of these, each side is asked for so many.
const ASKED: usize = 300;

/// The source's traffic of now; that of an earlier look where it is idle by now.
pub async fn observe(endpoint: &Endpoint, store: &mut Store) -> Result<Mix> {
    let now = mix::observe(endpoint, WINDOW).await?;
    if now.total() >= mix::IDLE {
        store.put_json(MIX, &serde_json::to_value(&now).unwrap_or_default())?;
        return Ok(now);
    }
    let saved = store
        .json(MIX)?
        .and_then(|v| serde_json::from_value(v).ok());
    Ok(saved.unwrap_or(now))
}

/// The share of the keys that a side holds, of some of them; `None` when there are none.
pub async fn there(lines: &mut Lines, keys: &RealKeys) -> Result<Option<f64>> {
    let (mut asked, mut held) = (0, 0);
    for key in keys.some(ASKED) {
        asked += 1;
        held += usize::from(lines.holds(key).await?);
    }
    Ok((asked > 0).then(|| held as f64 / asked as f64))
}

/// What is known of a key.
struct Seen {
    kind: String,
    /// How often it is used, as the server counts (LFU); 0 where it does not.
    freq: i64,
    name: Vec<u8>,
}

/// Keys of the source that the plan moves, by their types; which are popular is the server's word, else drawn.
///
/// The flag says whether the server has told.
pub async fn keys(job: &Job, endpoint: &Endpoint) -> Result<(RealKeys, bool)> {
    let (mut seen, mut lengths) = (Vec::new(), Vec::new());
    let (layout, _) = server::layout(endpoint).await?;
    let each = SAMPLE / layout.masters.len().max(1);
    for master in &layout.masters {
        let mut conn = net::connect(endpoint, &master.address).await?;
        // Only database 0, where the target has no other.
        let dbs = scan::databases(&mut conn).await?;
        if job.databases.map(DbIndex::ZERO).is_none() || dbs.is_empty() {
            continue;
        }
        let (mut scan, before) = (Scan::new(), seen.len());
        while let Some(page) = scan.next(endpoint, &mut conn, 500).await? {
            let wanted = page.into_iter().filter(|k| job.filter.accepts(k)).collect();
            look(&mut conn, wanted, &mut seen, &mut lengths).await?;
            if seen.len() - before >= each {
                break;
            }
        }
    }
    let told = seen.iter().any(|k| k.freq > 0);
    // The popular ones are not those that come first.
    Rng::new(1).shuffle(&mut seen);
    seen.sort_by_key(|k| std::cmp::Reverse(k.freq));
    let mut by_type: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
    for key in seen {
        by_type.entry(key.kind).or_default().push(key.name);
    }
    lengths.sort_unstable();
    let middle = lengths.get(lengths.len() / 2).copied().unwrap_or(0);
    Ok((RealKeys::new(by_type, middle), told))
}

/// Asks for the type, the use and the length of each key.
async fn look(
    conn: &mut Conn,
    keys: Vec<Vec<u8>>,
    seen: &mut Vec<Seen>,
    lengths: &mut Vec<usize>,
) -> Result<()> {
    for key in &keys {
        conn.push(&[b"TYPE", key]);
        conn.push(&[b"OBJECT", b"FREQ", key]);
        conn.push(&[b"STRLEN", key]);
    }
    conn.flush().await?;
    for name in keys {
        let (kind, freq) = (conn.reply().await?, conn.reply().await?);
        // An error for what is no string.
        if let Reply::Int(bytes @ 1..) = conn.reply().await? {
            lengths.push(usize::try_from(bytes).unwrap_or(usize::MAX));
        }
        let Some(kind) = kind.text().filter(|k| k != "none") else {
            continue;
        };
        seen.push(Seen {
            kind: kind.into_owned(),
            freq: freq.int().unwrap_or(0),
            name,
        });
    }
    Ok(())
}
