//! Function libraries of both sides: by name and code, on every master of the target.

use super::side::Side;
use super::{Check, Origin};
use crate::error::Result;
use crate::resp::Reply;
use std::collections::BTreeMap;

/// The libraries that differ, each with what is wrong.
pub async fn compare(check: &Check) -> Result<Vec<String>> {
    let target = &check.target;
    let ours = match &check.origin {
        Origin::File(file) => file.functions(),
        Origin::Server(side) => {
            let layout = side.layout();
            let Some(first) = layout.masters.first() else {
                return Ok(Vec::new());
            };
            let Some(ours) = libraries(side, &first.address).await? else {
                return Ok(Vec::new());
            };
            ours
        }
    };
    let mut found = Vec::new();
    for master in &target.layout().masters {
        // A target without functions was said when it was loaded.
        let Some(theirs) = libraries(target, &master.address).await? else {
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
        for name in theirs.keys().filter(|n| !ours.contains_key(*n)) {
            found.push(format!("{name}: extra on {}", master.address));
        }
    }
    Ok(found)
}

/// Name to code; `None` where FUNCTION is not known or not allowed.
async fn libraries(side: &Side, address: &str) -> Result<Option<BTreeMap<String, Vec<u8>>>> {
    let mut conn = side.connect(address).await?;
    let reply = conn.ask(&[b"FUNCTION", b"LIST", b"WITHCODE"]).await?;
    let Reply::Array(list) = reply else {
        return Ok(None);
    };
    let mut found = BTreeMap::new();
    for library in &list {
        let parts = library.array().unwrap_or_default();
        let field = |name: &[u8]| {
            let pair =
                (parts.chunks_exact(2)).find(|p| p.first().and_then(Reply::bytes) == Some(name))?;
            pair.get(1)?.bytes()
        };
        if let (Some(name), Some(code)) = (field(b"library_name"), field(b"library_code")) {
            found.insert(String::from_utf8_lossy(name).into_owned(), code.to_vec());
        }
    }
    Ok(Some(found))
}
