//! A time series: its samples and settings as commands, and its payload under other names.
//!
//! A snapshot's payload holds the series' own name, the name of the series that it is compacted from, and its rules with
//! the names of the series that they fill and what the open bucket has gathered. DUMP leaves both out, and tells no rules.

use super::fields::Fields;
use super::gather::Commands;
use super::gorilla;
use crate::error::Result;
use crate::rdb::commands::score_text;
use crate::rdb::cursor::{Reader, corrupt};
use crate::rdb::encoding::{length, put_length, put_string};
use crate::rdb::value::ModuleItem;
use std::borrow::Cow;

const WHAT: &str = "a time series";
/// Encoding versions whose layout is known here.
pub(super) const KNOWN: std::ops::RangeInclusive<u16> = 6..=8;
/// The options of a series that is not compressed.
const UNCOMPRESSED: u64 = 1;
/// DUPLICATE_POLICY by its number.
const POLICIES: [&str; 7] = ["", "BLOCK", "LAST", "FIRST", "MIN", "MAX", "SUM"];
/// Samples of one TS.MADD.
const BATCH: usize = 512;

struct Head<'a> {
    retention: u64,
    chunk_size: u64,
    uncompressed: bool,
    policy: u64,
    /// Samples are left out that are nearer to the last one, in ms and by their value.
    ignore: (u64, f64),
    labels: Vec<Cow<'a, [u8]>>,
    rules: u64,
}

fn head<'a>(fields: &mut Fields<'a>) -> Result<Head<'a>> {
    let version = fields.version();
    fields.text()?;
    let (retention, chunk_size, options) = (fields.number()?, fields.number()?, fields.number()?);
    // The last sample, and how many there are.
    fields.number()?;
    fields.double()?;
    fields.number()?;
    let policy = fields.number()?;
    if fields.number()? != 0 {
        fields.text()?;
    }
    let mut ignore = (0, 0.0);
    if version >= 8 {
        ignore = (fields.number()?, fields.double()?);
    }
    let mut labels = Vec::new();
    for _ in 0..fields.number()?.saturating_mul(2) {
        labels.push(fields.text()?);
    }
    Ok(Head {
        retention,
        chunk_size,
        uncompressed: options & UNCOMPRESSED != 0,
        policy,
        ignore,
        labels,
        rules: fields.number()?,
    })
}

/// How many items a rule has gathered in its open bucket, by the number of its aggregation.
fn gathered(aggregation: u64) -> Result<usize> {
    Ok(match aggregation {
        3 | 5 | 7 => 1,
        1 | 2 | 6 | 8 => 2,
        4 | 9..=12 => 3,
        13 => 10,
        other => return Err(corrupt(0, WHAT, format_args!("the aggregation {other}"))),
    })
}

/// Steps over a rule; returns the name of the series that it fills.
fn skip_rule(fields: &mut Fields<'_>) -> Result<Vec<u8>> {
    let name = fields.text()?.into_owned();
    // The length of a bucket, where buckets begin.
    for _ in 0..2 {
        fields.number()?;
    }
    let gathered = gathered(fields.number()?)?;
    // Where the open bucket begins, and what it holds.
    for _ in 0..gathered.saturating_add(1) {
        fields.item()?;
    }
    Ok(name)
}

/// Hands every sample behind the head to `each`, the oldest first.
fn samples(
    fields: &mut Fields<'_>,
    uncompressed: bool,
    mut each: impl FnMut(u64, f64) -> Result<()>,
) -> Result<()> {
    for _ in 0..fields.number()? {
        if uncompressed {
            let (_, count, _) = (fields.number()?, fields.number()?, fields.number()?);
            let data = fields.text()?;
            let mut r = Reader::new(&data, 0);
            for _ in 0..count {
                let ts = r.i64(WHAT)? as u64;
                each(ts, f64::from_le_bytes(r.array(WHAT)?))?;
            }
        } else {
            let (_, count, _) = (fields.number()?, fields.number()?, fields.number()?);
            let value = f64::from_bits(fields.number()?);
            let first = (fields.number()?, value);
            for _ in 0..5 {
                fields.number()?;
            }
            gorilla::samples(&fields.text()?, count, first, &mut each)?;
        }
    }
    fields.finish()
}

/// Whether the commands of a module take every sample of a series.
pub(super) fn is_plain(body: &[u8]) -> Result<bool> {
    let mut fields = Fields::new(body)?;
    let head = head(&mut fields)?;
    for _ in 0..head.rules {
        skip_rule(&mut fields)?;
    }
    let mut plain = true;
    samples(&mut fields, head.uncompressed, |_, value| {
        plain &= value.is_finite();
        Ok(())
    })?;
    Ok(plain)
}

/// The series that the rules of a series fill, as far as its payload tells.
pub fn rules(body: &[u8]) -> Result<Vec<Vec<u8>>> {
    let mut fields = Fields::new(body)?;
    let mut names = Vec::new();
    if KNOWN.contains(&fields.version()) {
        for _ in 0..head(&mut fields)?.rules {
            names.push(skip_rule(&mut fields)?);
        }
    }
    Ok(names)
}

/// Writes a series without its rules.
pub(super) fn write<F: FnMut(&mut Vec<u8>, u32) -> Result<()>>(
    fields: &mut Fields<'_>,
    key: &[u8],
    out: &mut Commands<'_, F>,
) -> Result<()> {
    let head = head(fields)?;
    let chunk_size = head.chunk_size.to_string();
    let encoding: &[u8] = match head.uncompressed {
        true => b"UNCOMPRESSED",
        false => b"COMPRESSED",
    };
    let mut create: Vec<&[u8]> = vec![b"TS.CREATE", key, b"ENCODING", encoding];
    // Without it, the server's own default would keep samples out.
    create.extend([b"RETENTION".as_slice(), b"0"]);
    create.extend([b"CHUNK_SIZE", chunk_size.as_bytes()]);
    let policy = usize::try_from(head.policy).ok();
    if let Some(policy) = policy
        .and_then(|n| POLICIES.get(n))
        .filter(|p| !p.is_empty())
    {
        create.extend([b"DUPLICATE_POLICY", policy.as_bytes()]);
    }
    if !head.labels.is_empty() {
        create.push(b"LABELS");
        create.extend(head.labels.iter().map(|label| &**label));
    }
    out.push(&create)?;
    for _ in 0..head.rules {
        skip_rule(fields)?;
    }
    let mut batch: Vec<(String, String)> = Vec::new();
    let send = |batch: &mut Vec<(String, String)>, out: &mut Commands<'_, F>| {
        let mut add: Vec<&[u8]> = vec![b"TS.MADD"];
        for (ts, value) in batch.iter() {
            add.extend([key, ts.as_bytes(), value.as_bytes()]);
        }
        let sent = out.push(&add);
        batch.clear();
        sent
    };
    samples(fields, head.uncompressed, |ts, value| {
        batch.push((ts.to_string(), score_text(value)));
        match batch.len() >= BATCH {
            true => send(&mut batch, out),
            false => Ok(()),
        }
    })?;
    if !batch.is_empty() {
        send(&mut batch, out)?;
    }
    // Last, as both would keep samples out.
    let (retention, ms, by) = (
        head.retention.to_string(),
        head.ignore.0.to_string(),
        score_text(head.ignore.1),
    );
    let mut alter: Vec<&[u8]> = vec![b"TS.ALTER", key];
    if head.retention > 0 {
        alter.extend([b"RETENTION", retention.as_bytes()]);
    }
    if head.ignore != (0, 0.0) {
        alter.extend([b"IGNORE", ms.as_bytes(), by.as_bytes()]);
    }
    match alter.len() > 2 {
        true => out.push(&alter),
        false => Ok(()),
    }
}

/// A value that is written again while it is read.
struct Copy<'a> {
    fields: Fields<'a>,
    out: Vec<u8>,
}

impl Copy<'_> {
    fn number(&mut self) -> Result<u64> {
        let n = self.fields.number()?;
        put_length(&mut self.out, 2);
        put_length(&mut self.out, n);
        Ok(n)
    }

    fn text(&mut self, name: impl FnOnce(&[u8]) -> Option<Vec<u8>>) -> Result<bool> {
        let text = self.fields.text()?;
        put_length(&mut self.out, 5);
        let new = name(&text);
        put_string(&mut self.out, new.as_deref().unwrap_or(&text));
        Ok(new.is_some())
    }

    /// Copies an item; false behind the last.
    fn item(&mut self) -> Result<bool> {
        let out = &mut self.out;
        match self.fields.item()? {
            None => {
                put_length(out, 0);
                return Ok(false);
            }
            Some(ModuleItem::Signed(n)) => {
                put_length(out, 1);
                put_length(out, n as u64);
            }
            Some(ModuleItem::Unsigned(n)) => {
                put_length(out, 2);
                put_length(out, n);
            }
            Some(ModuleItem::Float(n)) => {
                put_length(out, 3);
                out.extend(n.to_le_bytes());
            }
            Some(ModuleItem::Double(n)) => {
                put_length(out, 4);
                out.extend(n.to_le_bytes());
            }
            Some(ModuleItem::Text(text)) => {
                put_length(out, 5);
                put_string(out, &text);
            }
        }
        Ok(true)
    }

    fn items(&mut self, n: u64) -> Result<()> {
        for _ in 0..n {
            self.item()?;
        }
        Ok(())
    }
}

/// Whether it is known where the names stand in the value of a series.
pub fn holds_known_names(body: &[u8]) -> Result<bool> {
    Ok(KNOWN.contains(&Fields::new(body)?.version()))
}

/// The value of a series with other names in it: its own, and those of its source and of the series that its rules fill.
///
/// `None` when one of them has no other name. Only of a value that [`holds_known_names`].
pub fn renamed(body: &[u8], name: impl Fn(&[u8]) -> Option<Vec<u8>>) -> Result<Option<Vec<u8>>> {
    let fields = Fields::new(body)?;
    let version = fields.version();
    let mut out = Vec::with_capacity(body.len().saturating_add(64));
    put_length(&mut out, length(&mut Reader::new(body, 0), WHAT)?);
    let mut copy = Copy { fields, out };
    let mut all = copy.text(&name)?;
    // Retention, size of chunks, options, the last sample, how many there are, the policy.
    copy.items(7)?;
    if copy.number()? != 0 {
        all &= copy.text(&name)?;
    }
    if version >= 8 {
        copy.items(2)?;
    }
    let labels = copy.number()?;
    copy.items(labels.saturating_mul(2))?;
    for _ in 0..copy.number()? {
        all &= copy.text(&name)?;
        copy.items(2)?;
        let gathered = gathered(copy.number()?)?;
        copy.items(gathered as u64 + 1)?;
    }
    while copy.item()? {}
    Ok(all.then_some(copy.out))
}

#[cfg(test)]
#[allow(clippy::expect_used, clippy::panic)]
mod tests;
