//! What unit tests of connections need: the endpoint that a plan makes of an address.

use crate::plan::{Endpoint, Plan, validate};
use serde_json::{Value, json};
use std::net::SocketAddr;

/// The target of a plan; `password` as in the plan.
pub fn endpoint(address: SocketAddr, password: Option<Value>) -> Endpoint {
    let mut target = json!({ "url": format!("redis://{address}") });
    if let Some(password) = password {
        target["password"] = password;
    }
    let source = json!({ "url": "redis://127.0.0.1:1" });
    let plan = json!({ "name": "unit", "source": source, "target": target });
    let plan = Plan::parse(&plan.to_string()).expect("a plan");
    validate(&plan).expect("a valid one").target
}
