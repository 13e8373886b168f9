//! The libraries of functions of a server.

use super::side::Side;
use crate::error::Result;
use crate::net::Control;
use crate::resp::Reply;
use std::collections::BTreeMap;

/// Name to code.
pub type Libraries = BTreeMap<String, Vec<u8>>;

/// Those of a side, as its first master has them; `None` where FUNCTION is not known or not allowed.
pub async fn of(side: &Side) -> Result<Option<Libraries>> {
    match side.layout().masters.first() {
        Some(first) => libraries(side, &first.address).await,
        None => Ok(None),
    }
}

/// Name to code; `None` where FUNCTION is not known or not allowed.
pub async fn libraries(side: &Side, address: &str) -> Result<Option<Libraries>> {
    libraries_at(&mut side.control(address).await?).await
}

/// The same over a connection.
pub async fn libraries_at(conn: &mut Control) -> Result<Option<Libraries>> {
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
