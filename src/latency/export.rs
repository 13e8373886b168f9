//! The raw histograms as files that HdrHistogram's own tools read: `.hlog` with a line for each block, `.hgrm` with the
//! percentiles of all blocks together.

use crate::error::{Context, Error, ErrorKind, Result};
use crate::histogram::{self, Times};
use crate::store::LatencyBlock;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Writes both files for each workload, rate and side.
pub fn write(dir: &Path, blocks: &[LatencyBlock]) -> Result<()> {
    let mut groups: BTreeMap<String, Vec<&LatencyBlock>> = BTreeMap::new();
    for block in blocks {
        let name = format!("{}-x{}-{}", block.workload, block.rate, block.side);
        // A workload of the user's is called by its path.
        let name = name.replace(|c: char| !c.is_ascii_alphanumeric() && c != '.', "-");
        groups.entry(name).or_default().push(block);
    }
    for (name, blocks) in groups {
        let histograms: Vec<Times> = blocks
            .iter()
            .map(|b| histogram::unpacked(&b.response))
            .collect::<Result<_>>()?;
        let log = log(&blocks, &histograms)?;
        whole(&dir.join(format!("{name}.hlog")), &log)?;
        let text = percentiles(&histogram::merged(&histograms));
        whole(&dir.join(format!("{name}.hgrm")), text.as_bytes())?;
    }
    Ok(())
}

/// A file that is there whole or not at all.
fn whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let new = path.with_extension("new");
    std::fs::write(&new, bytes)
        .and_then(|()| std::fs::rename(&new, path))
        .context(ErrorKind::Disk, || format!("write {}", path.display()))
}

fn log(blocks: &[&LatencyBlock], histograms: &[Times]) -> Result<Vec<u8>> {
    let failed = |e: String| Error::new(ErrorKind::Bug, format!("write a histogram log: {e}"));
    let (mut out, mut serializer) = (Vec::new(), V2DeflateSerializer::new());
    let at = |ms: i64| SystemTime::UNIX_EPOCH + Duration::from_millis(ms.unsigned_abs());
    let first = blocks.first().map_or(0, |b| b.started_ms);
    let mut writer = IntervalLogWriterBuilder::new()
        .add_comment("response times in microseconds, by keyferry")
        .with_start_time(at(first))
        .with_max_value_divisor(1_000.0)
        .begin_log_with(&mut out, &mut serializer)
        .map_err(|e| failed(e.to_string()))?;
    for (block, histogram) in blocks.iter().zip(histograms) {
        let since = Duration::from_millis((block.started_ms - first).unsigned_abs());
        let tag = Tag::new(&block.side);
        writer
            .write_histogram(histogram, since, Duration::from_secs(1), tag)
            .map_err(|e| failed(format!("{e:?}")))?;
    }
    Ok(out)
}

/// The text form of HistogramLogProcessor: value in ms, percentile, count, 1/(1-percentile).
fn percentiles(h: &Times) -> String {
    let mut text = format!(
        "{:>12} {:>14} {:>10} {:>14}\n\n",
        "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
    );
    for v in h.iter_quantiles(5) {
        let q = v.quantile_iterated_to();
        // Writing to a String cannot fail.
        let _ = match q < 1.0 {
            true => writeln!(
                text,
                "{:>12.3} {q:>14.12} {:>10} {:>14.2}",
                v.value_iterated_to() as f64 / 1000.0,
                h.count_between(0, v.value_iterated_to()),
                1.0 / (1.0 - q)
            ),
            false => writeln!(
                text,
                "{:>12.3} {q:>14.12} {:>10}",
                v.value_iterated_to() as f64 / 1000.0,
                h.len()
            ),
        };
    }
    let _ = writeln!(
        text,
        "#[Mean    = {:>12.3}, StdDeviation   = {:>12.3}]\n#[Max     = {:>12.3}, Total count    = {:>12}]\n#[Buckets = {:>12}, SubBuckets     = {:>12}]",
        h.mean() / 1000.0,
        h.stdev() / 1000.0,
        h.max() as f64 / 1000.0,
        h.len(),
        1,
        2048
    );
    text
}
