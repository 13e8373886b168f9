//! Search indexes of both sides: how they are made, their synonyms, and how many documents they hold.
//!
//! Documents come and go while writes go on, and an index is built behind them: what does not agree is read again, and
//! numbers that do not stand still prove nothing.

use super::check::{Check, Origin};
use crate::error::Result;
use crate::net::search::{self, Found, Told, led, left_out};
use crate::net::server;
use crate::plan::{Job, OnExisting};
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
    /// `equal`, `missing`, `different`, `unprovable` (its documents changed faster than they could be compared, or its
    /// synonyms are not told) or `not_compared`.
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
            .map(|(name, index)| one(&check.job, index, theirs.get(name), (from.len(), to.len())))
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

/// `nodes`: the source's and the target's.
fn one(job: &Job, ours: &Found, theirs: Option<&Found>, nodes: (usize, usize)) -> IndexReport {
    let (wanted, _) = led(job, &ours.definition);
    let documents = theirs.map(|t| t.definition.documents());
    let source_documents = ours.definition.documents();
    let keeps_own = matches!(job.on_existing, OnExisting::Skip | OnExisting::Replace);
    let told = |f: &Found, side: &str| {
        let why = f.untold.as_ref()?;
        Some(format!("the {side} does not tell its synonyms: {why}"))
    };
    let untold = told(ours, "source").or_else(|| told(theirs?, "target"));
    let apart = |side: &str, nodes: usize| {
        format!(
            "it is on one of the {side}'s {nodes} nodes, whose search modules do not work together: it holds that node's documents only"
        )
    };
    let (state, reason) = match theirs {
        None => ("missing", None),
        Some(t) if !t.definition.is_made_like(&wanted) => (
            "different",
            Some("its schema or its options are others".to_owned()),
        ),
        Some(t) if untold.is_none() && t.synonyms != ours.synonyms => {
            ("different", Some("its synonyms are others".to_owned()))
        }
        Some(t) if nodes.1 > 1 && t.nodes == 1 => ("not_compared", Some(apart("target", nodes.1))),
        Some(_) if nodes.0 > 1 && ours.nodes == 1 => {
            ("not_compared", Some(apart("source", nodes.0)))
        }
        Some(_) if !job.filter.is_empty() || keeps_own => (
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
    let (state, reason) = match (state, untold) {
        ("equal", Some(why)) => ("unprovable", Some(why)),
        (state, _) => (state, reason),
    };
    IndexReport {
        name: ours.definition.shown(),
        state,
        source_documents,
        target_documents: documents,
        reason,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::plan::{Plan, validate};
    use crate::resp::Reply;
    use crate::search::Definition;

    fn found(documents: i64, nodes: usize) -> Found {
        let text = |t: &str| Reply::Bulk(t.into());
        let info = [
            text("index_name"),
            text("i"),
            text("num_docs"),
            Reply::Int(documents),
        ];
        Found {
            definition: Definition::from_info(&Reply::Array(info.to_vec())).unwrap(),
            synonyms: Default::default(),
            untold: None,
            nodes,
        }
    }

    #[test]
    fn documents_of_one_node_of_several_and_synonyms_that_are_not_told_prove_nothing() {
        let plan = r#"{"name": "unit", "source": {"url": "redis://127.0.0.1:1"}, "target": {"url": "redis://127.0.0.1:2"}}"#;
        let job = validate(&Plan::parse(plan).unwrap()).unwrap();
        let state = |ours: &Found, theirs: &Found, nodes| {
            let report = one(&job, ours, Some(theirs), nodes);
            (report.state, report.reason.unwrap_or_default())
        };
        let (part, whole) = (found(3, 1), found(9, 1));
        let (not, why) = state(&part, &whole, (3, 1));
        assert_eq!(not, "not_compared");
        assert!(why.contains("the source's 3 nodes"), "{why}");
        assert_eq!(state(&found(3, 3), &whole, (3, 1)).0, UNPROVEN);
        assert_eq!(state(&whole, &whole, (1, 1)).0, "equal");
        let mut silent = whole.clone();
        silent.untold = Some("FT.SYNDUMP is refused".into());
        for (ours, theirs) in [(&silent, &whole), (&whole, &silent)] {
            let (state, why) = state(ours, theirs, (1, 1));
            assert_eq!(state, "unprovable");
            assert!(why.contains("FT.SYNDUMP"), "{why}");
        }
    }
}
