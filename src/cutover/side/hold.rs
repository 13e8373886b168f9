//! The side that the clients are moved to, where nobody writes before it is certain that they stay there.
//!
//! Clients that have moved and are led back again would leave behind what they have written in between.

use crate::cutover::side::nodes::{LEASE, Nodes};
use crate::error::Result;
use crate::plan::Endpoint;

/// Writes to a side wait as long as it is held.
pub struct Hold {
    masters: Nodes,
    held: bool,
}

impl Hold {
    /// Ready to hold a side; `None` where that is not allowed.
    pub async fn prepare(endpoint: &Endpoint) -> Result<Option<Hold>> {
        let mut masters = Nodes::masters(endpoint).await?;
        match masters.rehearse_pause(true).await {
            Ok(()) => Ok(Some(Hold {
                masters,
                held: false,
            })),
            Err(e) => {
                tracing::debug!("writes to the new side cannot be held: {e}");
                Ok(None)
            }
        }
    }

    /// Holds it for three seconds more.
    pub async fn renew(&mut self) -> Result<()> {
        self.held = true;
        self.masters.pause(LEASE).await
    }

    /// Whether nobody can have written since it was held first.
    pub fn has_held(&self) -> bool {
        self.held && !self.masters.has_gap()
    }

    /// Lets writes go on; with `undone`, those that wait are not run: their clients are led back.
    pub async fn end(&mut self, undone: bool) -> Result<()> {
        if !std::mem::take(&mut self.held) {
            return Ok(());
        }
        let cut = match undone {
            true => self.masters.cut_clients().await.map(drop),
            false => Ok(()),
        };
        let ended = self.masters.unpause().await;
        cut.and(ended)
    }
}
