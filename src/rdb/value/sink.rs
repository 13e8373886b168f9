//! Who takes a value's elements.

use crate::error::Result;
use crate::rdb::value::stream::{Group, Pending, StreamId, StreamMeta};
use crate::types::ExpireAt;

/// Takes a value's elements in the order of its bytes; every method does nothing unless overridden.
#[allow(unused_variables)]
pub trait ValueSink {
    fn string(&mut self, value: &[u8]) -> Result<()> {
        Ok(())
    }
    /// A piece of a string too large to be held; after the last piece comes an empty one with `last`.
    fn string_part(&mut self, part: &[u8], last: bool) -> Result<()> {
        Ok(())
    }
    fn list_item(&mut self, item: &[u8]) -> Result<()> {
        Ok(())
    }
    fn set_member(&mut self, member: &[u8]) -> Result<()> {
        Ok(())
    }
    fn zset_member(&mut self, member: &[u8], score: f64) -> Result<()> {
        Ok(())
    }
    fn hash_field(&mut self, field: &[u8], value: &[u8], expire: Option<ExpireAt>) -> Result<()> {
        Ok(())
    }
    fn stream_entry(&mut self, id: StreamId, fields: &[(Vec<u8>, Vec<u8>)]) -> Result<()> {
        Ok(())
    }
    /// Everything of a stream but its entries; comes last. The four that follow are its parts, in their order.
    fn stream_meta(&mut self, meta: &StreamMeta) -> Result<()> {
        self.stream_head(meta)?;
        let mut groups: Vec<&Group> = meta.groups.iter().collect();
        groups.sort_by(|a, b| a.name.cmp(&b.name));
        for group in groups {
            self.stream_group(group)?;
            for consumer in &group.consumers {
                self.stream_consumer(&group.name, &consumer.name, consumer.pending.is_empty())?;
            }
            let owners = group.owners();
            let mut pending: Vec<&Pending> = group.pending.iter().collect();
            pending.sort_by_key(|p| p.id);
            for p in pending {
                self.stream_pending(&group.name, p, owners.get(&p.id).copied())?;
            }
        }
        Ok(())
    }
    /// What a stream has but entries and groups.
    fn stream_head(&mut self, head: &StreamMeta) -> Result<()> {
        Ok(())
    }
    /// A group without its pending entries and consumers; groups come in the order of their names.
    fn stream_group(&mut self, group: &Group) -> Result<()> {
        Ok(())
    }
    /// A consumer of a group, which may come before or after its pending entries; `idle` has none.
    fn stream_consumer(&mut self, group: &[u8], name: &[u8], idle: bool) -> Result<()> {
        Ok(())
    }
    /// A pending entry of a group, in the order of ids.
    fn stream_pending(
        &mut self,
        group: &[u8],
        pending: &Pending,
        owner: Option<&[u8]>,
    ) -> Result<()> {
        Ok(())
    }
    /// The array's cursor (Redis 8.8) comes before its elements.
    fn array_cursor(&mut self, next: Option<u64>) -> Result<()> {
        Ok(())
    }
    fn array_element(&mut self, index: u64, text: &[u8]) -> Result<()> {
        Ok(())
    }
    /// A field of a path hash (Valkey 9.2).
    fn path_field(&mut self, path: &[u8], field: &[u8], value: &[u8]) -> Result<()> {
        Ok(())
    }
    fn number(&mut self, n: u64) -> Result<()> {
        Ok(())
    }
    fn module(&mut self, name: &str, version: u16, raw: &[u8]) -> Result<()> {
        Ok(())
    }
    /// What a vector set's vectors have in common; they come next.
    fn vector_set(&mut self, dimensions: u64, config: u64, projection: &[u8]) -> Result<()> {
        Ok(())
    }
    /// `scale` holds the vector's length, and its range where it was made smaller.
    fn vector(&mut self, name: &[u8], attributes: &[u8], vector: &[u8], scale: u64) -> Result<()> {
        Ok(())
    }
    /// A piece of a module's value too large to be held; after the last piece comes an empty one with `last`.
    fn module_part(&mut self, name: &str, version: u16, part: &[u8], last: bool) -> Result<()> {
        Ok(())
    }
}
