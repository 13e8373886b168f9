//! The nodes that clusters have told, so that one is found also when the node that the plan names is gone.

use super::record::NODES;
use super::state::Store;
use super::workers::workers;
use crate::error::Result;
use crate::plan::{Endpoint, Job};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;

impl Store {
    /// Keeps the nodes that the sides' clusters have told, for [`recall_nodes`].
    pub fn keep_nodes(&mut self, job: &Job) -> Result<()> {
        let saved = self.json(NODES)?.unwrap_or_default();
        let mut all = saved.as_object().cloned().unwrap_or_default();
        for endpoint in sides(job) {
            let nodes = endpoint.learnt.nodes();
            if !nodes.is_empty() {
                let nodes: Map<String, Value> = (nodes.into_iter())
                    .map(|(id, address)| (id, address.into()))
                    .collect();
                all.insert(endpoint.address(), nodes.into());
            }
        }
        match !all.is_empty() && saved != Value::Object(all.clone()) {
            true => self.put_json(NODES, &all.into()),
            false => Ok(()),
        }
    }
}

/// Tells the sides of a plan the nodes that earlier runs have seen, its workers' too; where no state can be read, there
/// are none.
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
            let nodes = saved.get(endpoint.address()).cloned().unwrap_or_default();
            let nodes: BTreeMap<String, String> = serde_json::from_value(nodes).unwrap_or_default();
            endpoint.learnt.recall_nodes(nodes);
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
