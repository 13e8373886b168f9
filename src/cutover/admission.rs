//! A way in to the side that the clients have left, which is closed to writers: for what measures it.

use crate::cutover::side::{Closed, Freezer, closed};
use crate::error::{Error, ErrorKind, Result};
use crate::plan::{Job, Source};
use crate::store::{Lock, Stage, Store};
use std::path::Path;

/// Lets `job` write to its source, where a cutover has closed that; `home` is the folder of the plan's state.
///
/// Errors: `Refused` while it is closed by a pause, which keeps everybody out; `Locked` while a cutover watches it.
pub async fn admit(job: &mut Job, home: &Path) -> Result<()> {
    let Some(store) = Store::open_readonly(home)? else {
        return Ok(());
    };
    let stage = store.stage()?;
    drop(store);
    if !matches!(stage, Stage::Switched | Stage::Committed) {
        return Ok(());
    }
    let Source::Server { endpoint, .. } = &mut job.source else {
        return Ok(());
    };
    match closed(home)? {
        Some(Closed::ByRights) => {}
        Some(Closed::ByPause) => {
            return Err(Error::new(
                ErrorKind::Refused,
                "the source is closed to writers by a pause, since the clients have left it",
            )
            .hint("`keyferry cutover PLAN --reopen` opens it; or measure without latency.allow_writes"));
        }
        Some(Closed::Watched | Closed::Open) | None => return Ok(()),
    }
    // The way back of a cutover that still watches writes as the same user.
    let _lock = Lock::acquire(&home.join("cutover"))?;
    let mut freezer = Freezer::open(endpoint, &job.cutover, "source", home.to_owned()).await?;
    if let Some((user, password)) = freezer.way_back_user().await? {
        *endpoint = endpoint.entered_as(user, password);
    }
    Ok(())
}
