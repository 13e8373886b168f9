//! Search indexes of both sides: how they are made, their synonyms, and how many documents they hold.
//!
//! Documents come and go while writes go on, and an index is built behind them: what does not agree is read again, and
//! numbers that do not stand still prove nothing.

use super::check::{Check, Origin};
use crate::error::Result;
use crate::net::search::{self, Found, Told, led, left_out};
use crate::net::server;
use crate::plan::OnExisting;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// How often both sides are read at most, and the pause between.
const READS: usize = 24;
const PAUSE: Duration = Duration::from_millis(250);
/// Numbers that were the same for so many readings stand still.
const STILL: usize = 12;

/// An index in the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IndexReport {
    pub name: String,
    /// `equal`, `missing`, `different`, `unprovable` (its documents changed faster than they could be compared) or
    /// `not_compared`.
    pub state: &'static str,
    pub source_documents: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_documents: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl IndexReport {
    /// It is missing, or another.
    pub fn differs(&self) -> bool {
        matches!(self.state, "missing" | "different")
    }
}

type Indexes = BTreeMap<Vec<u8>, Found>;

/// The source's indexes, each with what has been found of it at the target.
pub async fn compare(check: &Check) -> Result<Vec<IndexReport>> {
    let (Origin::Server(source), Some(endpoint)) = (&check.origin, check.job.source.endpoint())
    else {
        return Ok(Vec::new());
    };
    let nodes = |side: &crate::source::keys::side::Side| -> Vec<String> {
        let layout = side.layout();
        layout.masters.iter().map(|m| m.address.clone()).collect()
    };
    let (from, to) = (nodes(source), nodes(&check.target));
    let Told::Indexes(ours) = search::indexes(endpoint, &from).await? else {
        return Ok(Vec::new());
    };
    if ours.is_empty() {
        return Ok(Vec::new());
    }
    let modules = server::modules(&check.job.target).await?;
    if let Some(why) = left_out(&check.job, modules.as_deref()) {
        return Ok(not_compared(&ours, why));
    }
    let (mut last, mut same, mut found) = (Vec::new(), 0, Vec::new());
    for read in 0..READS {
        if read > 0 {
            check.go_on()?;
            tokio::time::sleep(PAUSE).await;
        }
        let Told::Indexes(ours) = search::indexes(endpoint, &from).await? else {
            return Ok(Vec::new());
        };
        let theirs = match search::indexes(&check.job.target, &to).await? {
            Told::Indexes(theirs) => theirs,
            Told::NoSearch => return Ok(not_compared(&ours, "the target has no search")),
            Told::Refused(why) => return Ok(not_compared(&ours, &why)),
        };
        found = (ours.iter())
            .map(|(name, index)| one(check, index, theirs.get(name), to.len()))
            .collect();
        if !found.iter().any(|r| r.differs() || r.state == UNPROVEN) {
            return Ok(found);
        }
        same = match last == found {
            true => same + 1,
            false => 0,
        };
        last = found.clone();
        if same >= STILL {
            break;
        }
    }
    for report in &mut found {
        if report.state == UNPROVEN {
            report.state = match same >= STILL {
                true => "different",
                false => "unprovable",
            };
        }
    }
    Ok(found)
}

/// Not yet told whether it is a difference.
const UNPROVEN: &str = "documents";

fn not_compared(ours: &Indexes, why: &str) -> Vec<IndexReport> {
    let report = |found: &Found| IndexReport {
        name: found.definition.shown(),
        state: "not_compared",
        source_documents: found.definition.documents(),
        target_documents: None,
        reason: Some(why.to_owned()),
    };
    ours.values().map(report).collect()
}

fn one(check: &Check, ours: &Found, theirs: Option<&Found>, nodes: usize) -> IndexReport {
    let (wanted, _) = led(&check.job, &ours.definition);
    let documents = theirs.map(|t| t.definition.documents());
    let source_documents = ours.definition.documents();
    let keeps_own = matches!(
        check.job.on_existing,
        OnExisting::Skip | OnExisting::Replace
    );
    let (state, reason) = match theirs {
        None => ("missing", None),
        Some(t) if !t.definition.is_made_like(&wanted) => (
            "different",
            Some("its schema or its options are others".to_owned()),
        ),
        Some(t) if t.synonyms != ours.synonyms => {
            ("different", Some("its synonyms are others".to_owned()))
        }
        Some(t) if nodes > 1 && t.nodes == 1 => (
            "not_compared",
            Some(format!(
                "it is on one of the target's {nodes} nodes, whose search modules do not work together: it holds that node's documents only"
            )),
        ),
        Some(_) if !check.job.filter.is_empty() || keeps_own => (
            "equal",
            Some("documents are not counted: the plan moves a part of the keys, or the target has keys of its own".to_owned()),
        ),
        Some(t) if t.definition.is_indexing() || ours.definition.is_indexing() => {
            (UNPROVEN, Some("it is still being built".to_owned()))
        }
        Some(_) if documents != Some(source_documents) => {
            (UNPROVEN, Some("it holds another number of documents".to_owned()))
        }
        Some(_) => ("equal", None),
    };
    IndexReport {
        name: ours.definition.shown(),
        state,
        source_documents,
        target_documents: documents,
        reason,
    }
}
