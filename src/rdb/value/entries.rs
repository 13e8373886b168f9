//! The entries of streams: nodes, each a listpack (t_stream.c).

use crate::error::Result;
use crate::rdb::cursor::Reader;
use crate::rdb::encoding::listpack::Listpack;
use crate::rdb::encoding::{length, string};
use crate::rdb::value::sink::ValueSink;
use crate::rdb::value::stream::{StreamId, meta, raw_id};

/// A whole stream.
pub fn decode(type_id: u8, r: &mut Reader<'_>, sink: &mut impl ValueSink) -> Result<()> {
    let nodes = length(r, "the number of stream nodes")?;
    for _ in 0..nodes {
        node(r, sink)?;
    }
    let meta = meta(type_id, r)?;
    sink.stream_meta(&meta)
}

/// One node: its first id and the listpack of its entries.
pub fn node(r: &mut Reader<'_>, sink: &mut impl ValueSink) -> Result<()> {
    let key = string(r, "a stream node's id")?;
    let master = raw_id(&mut Reader::new(&key, r.position()))?;
    let at = r.position();
    let bytes = string(r, "a stream node")?;
    let bad = |what: &str| Reader::new(&[], at).fail("a stream node", what);
    let mut lp = Listpack::new(&bytes, at)?;
    let mut d = [0u8; 20];
    let number = |lp: &mut Listpack<'_>| {
        lp.need()?
            .int()
            .ok_or_else(|| bad("text where a number must be"))
    };
    let live = number(&mut lp)?;
    let deleted = number(&mut lp)?;
    let fields = number(&mut lp)?;
    let mut names = Vec::new();
    for _ in 0..fields {
        names.push(lp.need()?.text(&mut d).to_vec());
    }
    number(&mut lp)?;
    let entries = live
        .checked_add(deleted)
        .filter(|n| *n >= 0)
        .ok_or_else(|| bad("a wrong number of entries"))?;
    let mut pairs: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    for _ in 0..entries {
        let flags = number(&mut lp)?;
        let id = StreamId {
            ms: master.ms.wrapping_add(number(&mut lp)? as u64),
            seq: master.seq.wrapping_add(number(&mut lp)? as u64),
        };
        pairs.clear();
        if flags & 2 != 0 {
            for name in &names {
                pairs.push((name.clone(), lp.need()?.text(&mut d).to_vec()));
            }
        } else {
            let n = number(&mut lp)?;
            for _ in 0..n {
                let field = lp.need()?.text(&mut d).to_vec();
                pairs.push((field, lp.need()?.text(&mut d).to_vec()));
            }
        }
        number(&mut lp)?;
        if flags & 1 == 0 {
            sink.stream_entry(id, &pairs)?;
        }
    }
    match lp.next()? {
        None => Ok(()),
        Some(_) => Err(bad("more elements than its entries need")),
    }
}
