//! Every type number and opcode, by dialect (rdb.h of Redis and Valkey).

/// Who wrote the bytes: some numbers mean different things to Redis and to Valkey 9.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    Redis,
    Valkey,
}

impl Dialect {
    /// The dialect of a payload or file version: Valkey begins at 80.
    pub fn of_version(version: u32) -> Dialect {
        if version >= 80 {
            Dialect::Valkey
        } else {
            Dialect::Redis
        }
    }

    /// The newest version whose types and opcodes are all known.
    pub fn newest(self) -> u32 {
        match self {
            Dialect::Redis => 15,
            Dialect::Valkey => 81,
        }
    }
}

pub const STRING: u8 = 0;
pub const LIST: u8 = 1;
pub const SET: u8 = 2;
pub const ZSET: u8 = 3;
pub const HASH: u8 = 4;
pub const ZSET_2: u8 = 5;
pub const MODULE_PRE_GA: u8 = 6;
pub const MODULE_2: u8 = 7;
pub const HASH_ZIPMAP: u8 = 9;
pub const LIST_ZIPLIST: u8 = 10;
pub const SET_INTSET: u8 = 11;
pub const ZSET_ZIPLIST: u8 = 12;
pub const HASH_ZIPLIST: u8 = 13;
pub const LIST_QUICKLIST: u8 = 14;
pub const STREAM: u8 = 15;
pub const HASH_LISTPACK: u8 = 16;
pub const ZSET_LISTPACK: u8 = 17;
pub const LIST_QUICKLIST_2: u8 = 18;
pub const STREAM_2: u8 = 19;
pub const SET_LISTPACK: u8 = 20;
pub const STREAM_3: u8 = 21;
/// Redis 7.4 rc: hash with absolute field TTLs. Valkey 9: hash with field expiry.
pub const HASH_22: u8 = 22;
/// Redis 7.4 rc: listpack of triples.
pub const HASH_LISTPACK_EX_PRE_GA: u8 = 23;
pub const HASH_METADATA: u8 = 24;
pub const HASH_LISTPACK_EX: u8 = 25;
pub const STREAM_4: u8 = 26;
pub const STREAM_5: u8 = 27;
pub const ARRAY: u8 = 28;
/// Only builds of Redis 8.8 with ENABLE_GCRA, under version 14.
pub const GCRA_8_8: u8 = 29;
/// From version 15 on (Redis 8.10): hashes whose field names stand in a template. What is read as such comes out as
/// [`HASH`].
pub const HASH_TEMPLATE_LISTPACK: u8 = 29;
pub const HASH_TEMPLATE_LISTPACK_REF: u8 = 30;
pub const HASH_TEMPLATE_ARRAY: u8 = 31;
pub const HASH_TEMPLATE_ARRAY_REF: u8 = 32;
pub const GCRA: u8 = 33;
/// Valkey 9.2 (version 81), where Redis has [`HASH_LISTPACK_EX_PRE_GA`].
pub const PATH_HASH: u8 = 23;

/// Redis Enterprise: a hint before a key, with one length.
pub const RAM_LRU: u8 = 107;
/// The same, of the key's slot.
pub const SLOT_NUM: u8 = 121;
/// Redis 8.10: the field names of hashes. Valkey 9.2: a command that ran while the snapshot was written.
pub const OPCODE_242: u8 = 242;

pub const KEY_META: u8 = 243;
pub const SLOT_INFO: u8 = 244;
pub const FUNCTION2: u8 = 245;
pub const FUNCTION_PRE_GA: u8 = 246;
pub const MODULE_AUX: u8 = 247;
pub const IDLE: u8 = 248;
pub const FREQ: u8 = 249;
pub const AUX: u8 = 250;
pub const RESIZEDB: u8 = 251;
pub const EXPIRETIME_MS: u8 = 252;
pub const EXPIRETIME: u8 = 253;
pub const SELECTDB: u8 = 254;
pub const EOF: u8 = 255;
