//! Bloom and cuckoo filters as LOADCHUNK takes them: a header that is byte for byte what SCANDUMP tells, then the bits.

use super::fields::Fields;
use super::gather::Commands;
use crate::error::Result;
use crate::rdb::cursor::corrupt;
use std::borrow::Cow;

/// Bits of one LOADCHUNK, in bytes; each piece lies within one layer.
const PIECE: usize = 256 << 10;
/// More layers no filter has.
const LAYERS: u64 = 1 << 16;

struct Filter<'a> {
    verb: &'static [u8],
    header: Vec<u8>,
    layers: Vec<Cow<'a, [u8]>>,
}

fn layers(n: u64) -> Result<u64> {
    match n <= LAYERS {
        true => Ok(n),
        false => Err(corrupt(0, "a filter", format_args!("{n} layers"))),
    }
}

/// A number in fewer bytes than it is told in.
fn short<T: TryFrom<u64>>(n: u64) -> Result<T> {
    T::try_from(n).map_err(|_| corrupt(0, "a filter", format_args!("{n} where less must be")))
}

fn bloom<'a>(fields: &mut Fields<'a>) -> Result<Filter<'a>> {
    let mut header = Vec::new();
    header.extend(fields.number()?.to_le_bytes());
    let count = layers(fields.number()?)?;
    header.extend(short::<u32>(count)?.to_le_bytes());
    // Options and growth.
    for _ in 0..2 {
        header.extend(short::<u32>(fields.number()?)?.to_le_bytes());
    }
    let mut layers = Vec::new();
    for _ in 0..count {
        let entries = fields.number()?;
        let (error, hashes, per_entry) = (fields.double()?, fields.number()?, fields.double()?);
        let (bits, power) = (fields.number()?, fields.number()?);
        let data = fields.text()?;
        let items = fields.number()?;
        header.extend((data.len() as u64).to_le_bytes());
        header.extend(bits.to_le_bytes());
        header.extend(items.to_le_bytes());
        header.extend(error.to_le_bytes());
        header.extend(per_entry.to_le_bytes());
        header.extend(short::<u32>(hashes)?.to_le_bytes());
        header.extend(entries.to_le_bytes());
        header.push(short(power)?);
        layers.push(data);
    }
    Ok(Filter {
        verb: b"BF.LOADCHUNK",
        header,
        layers,
    })
}

fn cuckoo<'a>(fields: &mut Fields<'a>) -> Result<Filter<'a>> {
    let count = layers(fields.number()?)?;
    let (buckets, items, deleted) = (fields.number()?, fields.number()?, fields.number()?);
    let mut header = Vec::new();
    for n in [items, buckets, deleted, count] {
        header.extend(n.to_le_bytes());
    }
    // The size of a bucket, the tries, the growth.
    for _ in 0..3 {
        header.extend(short::<u16>(fields.number()?)?.to_le_bytes());
    }
    let mut layers = Vec::new();
    for _ in 0..count {
        fields.number()?;
        layers.push(fields.text()?);
    }
    Ok(Filter {
        verb: b"CF.LOADCHUNK",
        header,
        layers,
    })
}

/// Writes a filter.
pub(super) fn write<F: FnMut(&mut Vec<u8>, u32) -> Result<()>>(
    fields: &mut Fields<'_>,
    is_bloom: bool,
    key: &[u8],
    out: &mut Commands<'_, F>,
) -> Result<()> {
    let filter = match is_bloom {
        true => bloom(fields)?,
        false => cuckoo(fields)?,
    };
    fields.finish()?;
    out.push(&[filter.verb, key, b"1", &filter.header])?;
    let mut at = 1;
    for layer in &filter.layers {
        for piece in layer.chunks(PIECE) {
            // A piece is named by where it ends.
            at += piece.len();
            out.push(&[filter.verb, key, at.to_string().as_bytes(), piece])?;
        }
    }
    Ok(())
}
