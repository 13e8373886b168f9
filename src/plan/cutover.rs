//! The part of a plan that says how the clients are moved.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The bounds and hooks of the switch to the target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CutoverPlan {
    /// The lag at which the switch may begin.
    pub max_lag_ms: u64,
    /// How long writers may be paused; a cutover that takes longer gives up, and they go on at the source.
    pub max_pause_ms: u64,
    /// How writers are kept from writing.
    pub freeze: FreezeWay,
    /// The ACL users of the application, for freeze "acl"; empty is all that may log in.
    pub users: Vec<String>,
    /// How long the cutover waits for the lag to fall below its bound, and for an operator to stop the writers.
    pub wait_s: u64,
    /// How long the new side is watched, with the way back kept open, before the cutover ends.
    pub watch_s: u64,
    /// After the switch, clients and subscribers that are still connected to the old side are cut off.
    pub cut_clients: bool,
    /// Whether writes to the new side wait until it is certain that the clients stay there (where CLIENT PAUSE is
    /// allowed): clients that are led back leave no write behind.
    pub hold_new_side: bool,
    /// Whether writers are kept out of the old side after the switch.
    pub old_side: OldSide,
    /// Programs that move the clients.
    pub hooks: HooksPlan,
}

impl Default for CutoverPlan {
    fn default() -> CutoverPlan {
        CutoverPlan {
            max_lag_ms: 500,
            max_pause_ms: 10_000,
            freeze: FreezeWay::Auto,
            users: Vec::new(),
            wait_s: 60,
            watch_s: 10,
            cut_clients: true,
            hold_new_side: true,
            old_side: OldSide::Closed,
            hooks: HooksPlan::default(),
        }
    }
}

/// Programs that move the clients; each is a program with its arguments.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HooksPlan {
    /// Points the clients to the target.
    pub switch: Vec<String>,
    /// Points the clients back to the source.
    pub switch_back: Vec<String>,
    /// Keeps the clients from writing, for freeze "hook"; which side is in KEYFERRY_SIDE.
    pub freeze: Vec<String>,
    /// Lets them write again, after a switch or without one: KEYFERRY_CLIENTS_AT says where they are.
    pub thaw: Vec<String>,
    /// Variables that hold passwords, which these programs do not inherit. Those that the plan names are found.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(skip)]
    pub without: Vec<String>,
}

/// What becomes of the side that the clients have left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OldSide {
    /// Writers stay shut out until `keyferry cutover --reopen`; where the server allows that to nobody, it is watched
    /// until the commit, and what is written there is listed.
    #[default]
    Closed,
    /// Whoever still comes may write there; what the way back brings overwrites it.
    Open,
}

/// How writers are kept from writing while the clients are moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FreezeWay {
    /// The first of these that the server allows and the plan provides for.
    #[default]
    Auto,
    /// CLIENT PAUSE … WRITE, renewed, so that it ends by itself.
    Pause,
    /// The users lose the right to write.
    Acl,
    /// The programs cutover.hooks.freeze and thaw.
    Hook,
    /// A person stops the writers; that the source stands still is the proof.
    Operator,
}
