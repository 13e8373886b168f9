//! The nodes that clusters have told, so that one is found also when the node that the plan names is gone.

use super::record::NODES;
use super::state::Store;
use super::workers::workers;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::{Endpoint, Job};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// What a cluster has told at one moment.
#[derive(Serialize, Deserialize)]
struct Told {
    /// Addresses by ids.
    nodes: BTreeMap<String, String>,
    told_ms: i64,
}

impl Told {
    /// What is saved of an endpoint's cluster.
    fn of(saved: &Value, endpoint: &Endpoint) -> Option<Told> {
        Told::deserialize(saved.get(endpoint.address())?).ok()
    }
}

impl Store {
    /// Keeps the nodes that the sides' clusters have told, for [`recall_nodes`].
    pub fn keep_nodes(&mut self, job: &Job) -> Result<()> {
        let saved = self.json(NODES)?.unwrap_or_default();
        let mut all = saved.as_object().cloned().unwrap_or_default();
        for endpoint in sides(job) {
            let told = Told {
                nodes: endpoint.learnt.nodes(),
                told_ms: endpoint.learnt.nodes_told_ms(),
            };
            let before = Told::of(&saved, endpoint).map_or(0, |before| before.told_ms);
            if !told.nodes.is_empty() && told.told_ms > before {
                let told = serde_json::to_value(&told).map_err(|e| {
                    Error::new(ErrorKind::Bug, "nodes that cannot be written").cause(e)
                })?;
                all.insert(endpoint.address(), told);
            }
        }
        match !all.is_empty() && saved != Value::Object(all.clone()) {
            true => self.put_json(NODES, &all.into()),
            false => Ok(()),
        }
    }
}

/// Tells the sides of a plan the nodes that earlier runs have seen, its workers' too, and of these the latest; where no
/// state can be read, there are none.
pub fn recall_nodes(dir: &Path, job: &Job) {
    let mut stores: Vec<Store> = Vec::new();
    match Store::open_readonly(dir) {
        Ok(own) => stores.extend(own),
        Err(e) => tracing::debug!("{e}"),
    }
    stores.extend(
        workers(dir)
            .unwrap_or_default()
            .into_iter()
            .map(|w| w.store),
    );
    for store in stores {
        let saved = store.json(NODES).ok().flatten().unwrap_or_default();
        for endpoint in sides(job) {
            if let Some(told) = Told::of(&saved, endpoint) {
                endpoint.learnt.recall_nodes(told.nodes, told.told_ms);
            }
        }
    }
}

/// Tells a migration of its own what another one of the same sides knows of their nodes, before it begins.
pub fn pass_on_nodes(from: &Path, to: &Path) -> Result<()> {
    let Some(nodes) = Store::open_readonly(from)?
        .map(|s| s.json(NODES))
        .transpose()?
        .flatten()
    else {
        return Ok(());
    };
    let mut new = Store::open(to)?;
    match new.json(NODES)? {
        None => new.put_json(NODES, &nodes),
        Some(_) => Ok(()),
    }
}

fn sides(job: &Job) -> impl Iterator<Item = &Endpoint> {
    job.source.endpoint().into_iter().chain([&job.target])
}
