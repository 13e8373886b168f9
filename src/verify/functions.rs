//! Function libraries of both sides: by name and code, on every master of the target.

use super::check::{Check, Origin};
use crate::error::Result;
use crate::plan::OnExisting;
use crate::source::keys::functions;

/// The libraries that differ, each with what is wrong.
pub async fn compare(check: &Check) -> Result<Vec<String>> {
    let target = &check.target;
    let ours = match &check.origin {
        Origin::File(file) => file.functions(),
        Origin::Server(side) => {
            let Some(ours) = functions::of(side).await? else {
                return Ok(Vec::new());
            };
            ours
        }
    };
    let mut found = Vec::new();
    let layout = target.layout();
    let asked = (layout.masters.iter()).map(|m| functions::libraries(target, &m.address));
    let told = futures::future::try_join_all(asked).await?;
    for (master, theirs) in layout.masters.iter().zip(told) {
        // A target without functions was said when it was loaded.
        let Some(theirs) = theirs else {
            continue;
        };
        for (name, code) in &ours {
            match theirs.get(name) {
                None => found.push(format!("{name}: missing on {}", master.address)),
                Some(other) if other != code => {
                    found.push(format!("{name}: other code on {}", master.address));
                }
                Some(_) => {}
            }
        }
        // Those may be the target's own, which stay.
        let keeps_own = matches!(
            check.job.on_existing,
            OnExisting::Skip | OnExisting::Replace
        );
        for name in (theirs.keys()).filter(|n| !keeps_own && !ours.contains_key(*n)) {
            found.push(format!("{name}: extra on {}", master.address));
        }
    }
    Ok(found)
}
