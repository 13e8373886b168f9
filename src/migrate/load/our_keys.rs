//! The target's keys that are ours, listed page by page: what a new full sync or a flush may have made stale.

use crate::error::{Error, Result};
use crate::migrate::context::ShardContext;
use crate::migrate::write::door::Door;
use crate::net::scan::{self, Scan};
use crate::net::{self, Conn};
use crate::types::DbIndex;
use std::collections::VecDeque;

/// Keys that are listed at a time.
const PAGE: u32 = 1_000;

/// Keys of one of the target's databases, by their names there.
pub(crate) type KeyPage = (DbIndex, Vec<Vec<u8>>);

/// A listing under way.
pub(crate) struct OurKeys {
    /// Nodes still to be listed.
    nodes: VecDeque<String>,
    /// The node that is listed now.
    conn: Option<Conn>,
    /// Databases of it still to be listed.
    databases: VecDeque<DbIndex>,
    scan: Option<(DbIndex, Scan)>,
    /// Only this database of the target.
    only: Option<DbIndex>,
}

impl OurKeys {
    /// Lists the keys of some nodes, or of one database there.
    pub fn of(nodes: impl IntoIterator<Item = String>, only: Option<DbIndex>) -> OurKeys {
        OurKeys {
            nodes: nodes.into_iter().collect(),
            conn: None,
            databases: VecDeque::new(),
            scan: None,
            only,
        }
    }

    /// The next keys; `None` at the end, and `Interrupted` when a stop is asked for.
    pub fn next(&mut self, ctx: &ShardContext, door: &Door) -> Result<Option<KeyPage>> {
        let runtime = ctx.shared.runtime.clone();
        loop {
            if ctx.shared.stop.requested() {
                return Err(interrupted());
            }
            let Some(conn) = &mut self.conn else {
                let Some(address) = self.nodes.pop_front() else {
                    return Ok(None);
                };
                let endpoint = &ctx.job().target;
                let mut conn = runtime.block_on(net::connect(endpoint, &address))?;
                let moved = |db: &DbIndex| ctx.job().databases.sources_of(*db).next().is_some();
                let wanted = |db: &DbIndex| self.only.is_none_or(|only| only == *db);
                self.databases = (runtime.block_on(scan::databases(&mut conn))?.into_iter())
                    .map(|(db, _)| db)
                    .filter(|db| moved(db) && wanted(db))
                    .collect();
                self.conn = Some(conn);
                continue;
            };
            let Some((db, scan)) = &mut self.scan else {
                match self.databases.pop_front() {
                    Some(db) => {
                        runtime.block_on(conn.select(db))?;
                        self.scan = Some((db, Scan::new()));
                    }
                    None => self.conn = None,
                }
                continue;
            };
            let db = *db;
            let Some(mut page) = runtime.block_on(scan.next(&ctx.job().target, conn, PAGE))? else {
                self.scan = None;
                continue;
            };
            page.retain(|key| {
                ctx.accepts(key) && door.slots().owns(ctx, key) && !ctx.shared.own.has(db, key)
            });
            return Ok(Some((db, page)));
        }
    }
}

/// A stop while keys are compared.
pub(crate) fn interrupted() -> Error {
    Error::stopped("stopped while comparing the target's older keys with the source's")
}
