//! Findings about search indexes: which there are, what becomes of each, and what of it cannot be made alike.

use super::finding::{Finding, Severity, add};
use super::probe::Facts;
use crate::error::Result;
use crate::net::search::{self, NO_SEARCH, Told, led, left_out};
use crate::net::server;
use crate::plan::{Endpoint, Indexes, Job};
use crate::search::TOLD_BY_NOBODY;

/// Names in a message.
const SHOWN: usize = 10;

/// `endpoint` is the source's, which has `count` indexes.
pub async fn findings(
    job: &Job,
    endpoint: &Endpoint,
    count: u64,
    target: &Facts,
    findings: &mut Vec<Finding>,
) -> Result<()> {
    let nodes = |layout: server::Layout| -> Vec<String> {
        layout.masters.into_iter().map(|m| m.address).collect()
    };
    let from = nodes(server::layout(endpoint).await?.0);
    let told = search::indexes(endpoint, &from).await?;
    let counted = match count {
        1 => "1 search index".to_owned(),
        n => format!("{n} search indexes"),
    };
    let ours = match &told {
        Told::Indexes(ours) => ours.values().map(|f| &f.definition).collect(),
        Told::NoSearch | Told::Refused(_) => Vec::new(),
    };
    let names: Vec<String> = ours.iter().take(SHOWN).map(|d| d.shown()).collect();
    let more = match ours.len() > SHOWN {
        true => ", …",
        false => "",
    };
    let which = match names.is_empty() {
        true => counted,
        false => format!("{counted} ({}{more})", names.join(", ")),
    };
    let to = nodes(server::layout(&job.target).await?.0);
    let theirs = search::indexes(&job.target, &to).await?;
    let lacks = matches!(theirs, Told::NoSearch).then_some(NO_SEARCH);
    if let Some(why) = left_out(job, target.loaded.as_deref()).or(lacks) {
        add(
            findings,
            "search_indexes",
            Severity::Warning,
            format!(
                "the source has {which}, which are left out: {why}; documents are moved all the same"
            ),
            "searches that clients send will fail at the target; take a target with the search module, or have the clients do without",
        );
        return Ok(());
    }
    if let Told::Refused(why) = &told {
        add(
            findings,
            "search_indexes",
            Severity::Warning,
            format!(
                "the source has {which} and does not tell how they were made ({why}): none is made at the target"
            ),
            "give keyferry's user +ft._list, +ft.info and +ft.syndump at the source, or make them by hand at the target (FT.CREATE)",
        );
        return Ok(());
    }
    let when = match job.indexes {
        Indexes::CreateBeforeLoad => "before the load",
        _ => "after the load",
    };
    add(
        findings,
        "search_indexes",
        Severity::Info,
        format!(
            "the source has {which}, which are made at the target {when} and followed; {TOLD_BY_NOBODY}"
        ),
        "compare with how your application makes its indexes, and set at the target what it sets beside",
    );
    let mut apart = Vec::new();
    let theirs = match theirs {
        Told::Indexes(theirs) => theirs,
        Told::NoSearch => Default::default(),
        Told::Refused(why) => {
            apart.push(format!("the target does not let us make any ({why})"));
            Default::default()
        }
    };
    for definition in ours {
        let (wanted, notes) = led(job, definition);
        let notes = notes.into_iter();
        apart.extend(notes.map(|note| format!("{}: {note}", definition.shown())));
        if (theirs.get(definition.name())).is_some_and(|t| !t.definition.is_made_like(&wanted)) {
            apart.push(format!(
                "{}: the target has another index of this name, which is left as it is",
                definition.shown()
            ));
        }
    }
    if !apart.is_empty() {
        let more = apart.len().saturating_sub(SHOWN);
        apart.truncate(SHOWN);
        if more > 0 {
            apart.push(format!("{more} more"));
        }
        add(
            findings,
            "search_indexes_unlike",
            Severity::Warning,
            format!(
                "search indexes that will not be as at the source: {}",
                apart.join("; ")
            ),
            "make these at the target by hand (FT.DROPINDEX without DD, then FT.CREATE) once the load is over",
        );
    }
    Ok(())
}
