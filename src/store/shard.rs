//! What is remembered of one source master.

use crate::types::{DbIndex, ReplId, ReplOffset, ShardId};

/// One source master's state.
#[derive(Debug, Clone)]
pub struct ShardState {
    pub shard: ShardId,
    pub address: String,
    pub slots: String,
    pub replid: Option<ReplId>,
    /// The offset that FULLRESYNC named.
    pub snapshot_offset: Option<ReplOffset>,
    pub snapshot_complete: bool,
    pub snapshot_len: u64,
    pub snapshot_loaded: bool,
    /// The mark inside the snapshot.
    pub snapshot_at: u64,
    pub snapshot_db: DbIndex,
    pub snapshot_version: u32,
    pub snapshot_valkey: bool,
    /// Every write before it was acknowledged by the target.
    pub applied: Option<ReplOffset>,
    pub applied_db: DbIndex,
    pub stable: Option<ReplOffset>,
    pub source_offset: Option<ReplOffset>,
    /// No key of the target is ahead of this.
    pub fence_high: Option<ReplOffset>,
    /// Nothing beyond `applied` has touched the target.
    pub clean: bool,
    /// After the snapshot, keys that the source no longer holds are to be removed.
    pub reconcile: bool,
    pub keys_read: u64,
    pub keys_written: u64,
    pub bytes_read: u64,
    pub bytes_total: u64,
    pub commands_applied: u64,
    pub healed_keys: u64,
    pub lag_ms: u64,
    pub updated_at: i64,
}

impl ShardState {
    pub fn new(shard: ShardId, address: String, slots: String) -> ShardState {
        ShardState {
            shard,
            address,
            slots,
            replid: None,
            snapshot_offset: None,
            snapshot_complete: false,
            snapshot_len: 0,
            snapshot_loaded: false,
            snapshot_at: 0,
            snapshot_db: DbIndex::ZERO,
            snapshot_version: 0,
            snapshot_valkey: false,
            applied: None,
            applied_db: DbIndex::ZERO,
            stable: None,
            source_offset: None,
            fence_high: None,
            clean: false,
            reconcile: false,
            keys_read: 0,
            keys_written: 0,
            bytes_read: 0,
            bytes_total: 0,
            commands_applied: 0,
            healed_keys: 0,
            lag_ms: 0,
            updated_at: 0,
        }
    }
}
