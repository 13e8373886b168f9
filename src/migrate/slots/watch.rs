//! Follows the source cluster: failovers, reshards, new masters.

use crate::error::Result;
use crate::migrate::shard::set::Shards;
use crate::migrate::slots::ownership::{self, Ownership, owners};
use crate::migrate::workers;
use crate::net::server::Master;
use crate::types::{ShardId, Slot};
use std::time::Duration;

/// How often the source is asked for its masters.
const EVERY: Duration = Duration::from_secs(1);

/// Looks at the source cluster every second: failovers move places, reshards move slots, new masters get a shard.
///
/// Slots that go to or come from another worker's master end the run with an error: nobody can order that.
pub(crate) async fn watch(shards: &Shards, ownership: &Ownership) -> Result<()> {
    let mut crossed = false;
    loop {
        if !shards.stop().sleep(EVERY).await {
            return Ok(());
        }
        let places = shards.places();
        let Some((_, first)) = places.first() else {
            return Ok(());
        };
        let Ok(mut masters) = first.ask().await else {
            continue;
        };
        if let Some(claimed) = ownership.claimed() {
            if let Some(crossing) = workers::crossing(claimed, &masters) {
                // What has left is let go of at once, so that it is copied when it comes back.
                let here = |m: &&Master| places.iter().find(|(_, p)| p.address() == m.address);
                let at = |m: &&Master| {
                    here(m).map_or(ShardId(ownership::ELSEWHERE), |(shard, _)| *shard)
                };
                let mut picture = owners(masters.iter().map(|m| (at(&m), &m.slots)));
                for (slot, owner) in Slot::all().zip(&mut picture) {
                    if !claimed.has(slot) {
                        *owner = ownership::NOBODY;
                    }
                }
                ownership.observe(&picture);
                // One node's picture may be older than the others': seen twice it is true.
                if std::mem::replace(&mut crossed, true) {
                    return Err(crossing);
                }
                continue;
            }
            masters.retain(|m| workers::touches(claimed, m));
        }
        crossed = false;
        let taken: Vec<String> = places.iter().map(|(_, p)| p.address()).collect();
        let mut known: Vec<(ShardId, &Master)> = Vec::new();
        for (shard, place) in &places {
            if !place.follow(&masters, &taken) {
                // All its slots have gone to others: nothing will come from it any more.
                shards.remove(*shard);
                ownership.leave(*shard);
                continue;
            }
            let address = place.address();
            known.extend(
                masters
                    .iter()
                    .filter(|m| m.address == address)
                    .map(|m| (*shard, m)),
            );
        }
        let followed = |m: &Master| known.iter().any(|(_, k)| k.address == m.address);
        for master in masters.iter().filter(|m| !followed(m)) {
            shards.add(master, ownership)?;
        }
        let begun = ownership.observe(&owners(known.iter().map(|(shard, m)| (*shard, &m.slots))));
        if begun > 0 {
            shards.event(
                "info",
                "source_slots",
                &format!("{begun} slots have moved inside the source"),
            );
        }
    }
}
