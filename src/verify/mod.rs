//! Verification: per-slot checksums of both sides, drill-down to keys, differences confirmed by fenced reads.
//!
//! First every key of both sides is read and summed by slot; then the keys of slots whose sums differ are compared one
//! by one; what still differs is read again on both sides until it is equal, or stands still and differs.
//! Invariant: a key is called different only if the source did not change between the readings that say so.

mod functions;
mod walk;

use crate::digest::{self, SlotSum};
use crate::error::{Error, ErrorKind, Result};
use crate::net::scan;
use crate::net::server::{self, Layout};
use crate::net::{self, Conn};
use crate::plan::{Endpoint, Job, OnExisting, Source};
use crate::rdb::value::ValueKind;
use crate::resp::Reply;
use crate::source::private_dir;
use crate::store::{Difference, Existing, Lock, Phase, Run, SlotRow, Store};
use crate::task::{Shutdown, Throttle, peak_rss};
use crate::types::unix_ms;
use crate::types::{DbIndex, SLOTS, Slot, SlotSet};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use walk::{KeyFact, Rules, Side};

/// How a verification is run, beside its plan.
#[derive(Debug, Clone)]
pub struct Options {
    /// The plan's own folder.
    pub work_dir: PathBuf,
    /// Only these slots; `None` is all of them.
    pub slots: Option<SlotSet>,
}

/// The slots that `--slots` names.
pub fn slots(text: &str) -> Result<SlotSet> {
    SlotSet::parse(text)
        .filter(|s| s.count() > 0)
        .ok_or_else(|| {
            Error::new(ErrorKind::Usage, format!("--slots cannot be {text:?}"))
                .hint("give numbers and ranges of 0 to 16383, as in 0-4095,8000")
        })
}

/// A share of the slots, spread over all of them; the same share is always the same slots.
pub fn sample(text: &str) -> Result<SlotSet> {
    let percent = text.trim().strip_suffix('%').unwrap_or("").trim();
    match percent.parse::<f64>() {
        Ok(percent) if percent > 0.0 && percent <= 100.0 => {
            let wanted = (percent / 100.0 * SLOTS as f64).ceil() as usize;
            // An odd step visits every slot once.
            let visited =
                (0..wanted.min(SLOTS)).map(|i| Slot::numbered((i * 6_151 % SLOTS) as u16));
            Ok(visited.collect())
        }
        _ => Err(
            Error::new(ErrorKind::Usage, format!("--sample cannot be {text:?}"))
                .hint("give a share of the slots, as in 1%"),
        ),
    }
}

/// A key in the answer.
#[derive(Debug, Clone, Serialize)]
pub struct KeyReport {
    pub db: u32,
    pub key: String,
    pub slot: u16,
    pub reason: String,
}

/// The answer of `verify --json`.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    pub equal: bool,
    pub slots: usize,
    /// Fewer with --slots or --sample.
    pub slots_compared: usize,
    pub slots_different: usize,
    pub keys_source: u64,
    pub keys_target: u64,
    pub missing: Vec<KeyReport>,
    pub missing_count: u64,
    pub extra: Vec<KeyReport>,
    pub extra_count: u64,
    pub different: Vec<KeyReport>,
    pub different_count: u64,
    pub unprovable: Vec<KeyReport>,
    pub unprovable_count: u64,
    pub repaired_count: u64,
    /// Keys that are not compared, because the migration has listed them as losses.
    pub known_losses: u64,
    /// Function libraries that are missing at the target, are too much there, or have other code.
    pub functions_different: Vec<String>,
    pub elapsed_ms: u64,
    pub keys_per_s: u64,
    pub peak_rss_bytes: u64,
}

const LISTED: usize = 1000;
/// Keys compared at once in the drill-down; slots are taken in groups of about this many keys.
const GROUP_KEYS: u64 = 200_000;
/// How often a key that differs is read again before it is called unprovable.
const CONFIRM_TRIES: u32 = 12;

/// What was found out about one key.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Equal,
    Missing,
    Extra,
    Different(&'static str),
    Unprovable,
}

/// Compares source and target of `job`.
///
/// Errors: as for any connection; `Unsupported` when the source is a file (compare against a snapshot is not built yet).
pub async fn run(job: Job, options: Options, stop: Shutdown) -> Result<Summary> {
    let started = Instant::now();
    let started_ms = unix_ms();
    private_dir(&options.work_dir)?;
    let verify_dir = options.work_dir.join("verify");
    private_dir(&verify_dir)?;
    // A migration may run meanwhile; only a second verification may not.
    let _lock = Lock::acquire(&verify_dir)?;
    let Source::Server {
        endpoint: source, ..
    } = &job.source
    else {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "verification against a snapshot file is not built yet",
        )
        .hint("load the file into a server and verify against that"));
    };
    let mut store = Store::open(&options.work_dir)?;
    store.begin_run(&Run {
        plan: job.name.clone(),
        fingerprint: job.fingerprint.clone(),
        redacted: job.redacted.clone(),
        mode: "replica".into(),
        source: source.redacted_url(),
        target: job.target.redacted_url(),
        started_ms,
    })?;
    let mut apart = (job.on_existing == OnExisting::Skip)
        .then(|| Existing::load(&options.work_dir))
        .flatten()
        .unwrap_or_default();
    let losses = store.losses(i64::MAX as u64)?;
    for (db, key, _) in &losses {
        apart.insert(*db, key);
    }
    let check = Check {
        source: open_side(source, "source").await?,
        target: open_side(&job.target, "target").await?,
        rules: Rules {
            job: &job,
            stop: &stop,
            throttle: Throttle::new(job.limits.keys_per_s, job.limits.bytes_per_s),
            apart,
            slots: options.slots.clone(),
        },
    };
    let found = check.run().await?;
    let functions = functions::compare(&check.source, &check.target).await?;
    let rows: Vec<SlotRow> = Slot::all()
        .filter(|slot| (options.slots.as_ref()).is_none_or(|s| s.has(*slot)))
        .map(|slot| {
            let of = |sums: &[SlotSum]| sums.get(slot.index()).copied().unwrap_or_default();
            let (source, target) = (of(&found.sums.0), of(&found.sums.1));
            SlotRow {
                slot: slot.number(),
                source_keys: source.count,
                source_sum: source.sum,
                target_keys: target.count,
                target_sum: target.sum,
                state: if found.bad_slots.contains(&slot.number()) {
                    "different"
                } else {
                    "equal"
                },
            }
        })
        .collect();
    store.save_slot_sums(&rows, unix_ms())?;
    store.replace_differences(&found.differences)?;
    let mut summary = found.summary(started);
    summary.known_losses = losses.len() as u64;
    summary.slots_compared = options.slots.as_ref().map_or(SLOTS, SlotSet::count);
    summary.functions_different = functions;
    summary.equal &= summary.functions_different.is_empty();
    let value = serde_json::to_value(&summary).unwrap_or_default();
    store.save_verify(&value, started_ms, unix_ms(), summary.equal)?;
    // A later difference takes the word back.
    match store.phase()? {
        Phase::Stream if summary.equal && options.slots.is_none() => {
            store.enter_phase(Phase::Verified, unix_ms())?
        }
        Phase::Verified if !summary.equal => store.enter_phase(Phase::Stream, unix_ms())?,
        _ => {}
    }
    Ok(summary)
}

async fn open_side(endpoint: &Endpoint, name: &str) -> Result<Place> {
    let (layout, server) = server::layout(endpoint)
        .await
        .map_err(|e| e.context(format!("look at the {name}")))?;
    Ok(Place {
        endpoint: endpoint.clone(),
        layout,
        pexpiretime: server.has_pexpiretime(),
    })
}

/// One side: where it is and what it consists of.
pub struct Place {
    endpoint: Endpoint,
    layout: Layout,
    pexpiretime: bool,
}

struct Check<'a> {
    source: Place,
    target: Place,
    rules: Rules<'a>,
}

struct Found {
    sums: (Vec<SlotSum>, Vec<SlotSum>),
    keys: (u64, u64),
    bad_slots: BTreeSet<u16>,
    differences: Vec<Difference>,
    unprovable: Vec<Difference>,
}

impl Check<'_> {
    async fn run(&self) -> Result<Found> {
        let (a, b) = tokio::try_join!(
            walk::sums(&self.source, Side::Source, &self.rules),
            walk::sums(&self.target, Side::Target, &self.rules),
        )?;
        let unequal: Vec<u16> = (0..SLOTS)
            .filter(|i| a.get(*i) != b.get(*i))
            .map(|i| i as u16)
            .collect();
        let count = |sums: &[SlotSum]| sums.iter().map(|s| s.count).sum::<u64>();
        let mut found = Found {
            keys: (count(&a), count(&b)),
            sums: (a, b),
            bad_slots: BTreeSet::new(),
            differences: Vec::new(),
            unprovable: Vec::new(),
        };
        // Slots are drilled down in groups, so that memory does not grow with the number of differences.
        let mut group: BTreeSet<u16> = BTreeSet::new();
        let mut keys = 0;
        for slot in unequal {
            let size = |sums: &[SlotSum]| sums.get(usize::from(slot)).map_or(0, |s| s.count);
            keys += size(&found.sums.0).max(size(&found.sums.1));
            group.insert(slot);
            if keys >= GROUP_KEYS {
                self.drill(&std::mem::take(&mut group), &mut found).await?;
                keys = 0;
            }
        }
        if !group.is_empty() {
            self.drill(&group, &mut found).await?;
        }
        Ok(found)
    }

    /// Compares the keys of some slots one by one.
    async fn drill(&self, slots: &BTreeSet<u16>, found: &mut Found) -> Result<()> {
        let (mut a, b) = tokio::try_join!(
            walk::facts(&self.source, Side::Source, &self.rules, slots),
            walk::facts(&self.target, Side::Target, &self.rules, slots),
        )?;
        let mut candidates: Vec<(DbIndex, Vec<u8>)> = Vec::new();
        for (key, theirs) in b {
            match a.remove(&key) {
                Some(ours) if self.same(&ours, &theirs) => {}
                _ => candidates.push(key),
            }
        }
        candidates.extend(a.into_keys());
        candidates.sort();
        for chunk in candidates.chunks(256) {
            for ((db, key), verdict) in chunk.iter().zip(self.confirm(chunk).await?) {
                let slot = Slot::of(key).number();
                let difference = |reason: &str| Difference {
                    db: *db,
                    key: key.clone(),
                    slot,
                    reason: reason.to_owned(),
                    detail: String::new(),
                };
                match verdict {
                    Verdict::Equal => {}
                    Verdict::Missing => found.differences.push(difference("missing")),
                    Verdict::Extra => found.differences.push(difference("extra")),
                    Verdict::Different(reason) => found.differences.push(difference(reason)),
                    Verdict::Unprovable => found
                        .unprovable
                        .push(difference("written while it was compared")),
                }
                if !matches!(verdict, Verdict::Equal | Verdict::Unprovable) {
                    found.bad_slots.insert(slot);
                }
            }
        }
        Ok(())
    }

    /// The source's database names the key; whether its facts on both sides agree.
    fn same(&self, a: &KeyFact, b: &KeyFact) -> bool {
        reason(a, b, self.rules.job.verify.ttl_tolerance_ms).is_none()
    }

    /// Reads keys that differ again, source before and after the target, until each is proven one way or the other.
    async fn confirm(&self, keys: &[(DbIndex, Vec<u8>)]) -> Result<Vec<Verdict>> {
        let mut verdicts: Vec<Option<Verdict>> = vec![None; keys.len()];
        // A difference seen before must be seen again after the stream has had time to bring what is on its way.
        let mut seen: HashMap<usize, (Option<KeyFact>, Option<KeyFact>)> = HashMap::new();
        for attempt in 0..CONFIRM_TRIES {
            let open: Vec<usize> = (0..keys.len())
                .filter(|i| verdicts.get(*i).is_some_and(Option::is_none))
                .collect();
            if open.is_empty() {
                break;
            }
            if attempt > 0 {
                tokio::time::sleep(Duration::from_millis(100 + 50 * u64::from(attempt))).await;
            }
            let list: Vec<(DbIndex, &[u8])> = open
                .iter()
                .filter_map(|i| keys.get(*i))
                .map(|(db, k)| (*db, k.as_slice()))
                .collect();
            let before = walk::read(&self.source, Side::Source, self.rules.job, &list).await?;
            let there = walk::read(&self.target, Side::Target, self.rules.job, &list).await?;
            let after = walk::read(&self.source, Side::Source, self.rules.job, &list).await?;
            for (n, i) in open.iter().enumerate() {
                let (Some(before), Some(there), Some(after)) =
                    (before.get(n), there.get(n), after.get(n))
                else {
                    continue;
                };
                let tolerance = self.rules.job.verify.ttl_tolerance_ms;
                let verdict = match (before, there) {
                    (None, None) => Some(Verdict::Equal),
                    (Some(a), Some(b)) if reason(a, b, tolerance).is_none() => Some(Verdict::Equal),
                    // The source moved on: look again.
                    _ if before != after => None,
                    _ if seen.get(i) != Some(&(before.clone(), there.clone())) || attempt < 3 => {
                        None
                    }
                    (Some(_), None) => Some(Verdict::Missing),
                    (None, Some(_)) => Some(Verdict::Extra),
                    (Some(a), Some(b)) => reason(a, b, tolerance).map(Verdict::Different),
                };
                seen.insert(*i, (before.clone(), there.clone()));
                if let Some(place) = verdicts.get_mut(*i) {
                    *place = verdict;
                }
            }
        }
        Ok(verdicts
            .into_iter()
            .map(|v| v.unwrap_or(Verdict::Unprovable))
            .collect())
    }
}

/// Why two keys differ; `None` when they do not.
fn reason(a: &KeyFact, b: &KeyFact, tolerance_ms: i64) -> Option<&'static str> {
    if a.digest.kind != b.digest.kind {
        return Some("type");
    }
    if a.digest.value != b.digest.value {
        return Some("value");
    }
    if a.digest.beside != b.digest.beside {
        return Some(match a.digest.kind {
            ValueKind::Hash => "field expiry",
            ValueKind::Stream => "group state",
            _ => "value",
        });
    }
    match (a.expire, b.expire) {
        (None, None) => None,
        (Some(x), Some(y)) if (x.0 - y.0).abs() <= tolerance_ms => None,
        _ => Some("expiry"),
    }
}

impl Found {
    fn summary(&self, started: Instant) -> Summary {
        let list = |keep: &dyn Fn(&str) -> bool, from: &[Difference]| {
            let all: Vec<&Difference> = from.iter().filter(|d| keep(&d.reason)).collect();
            let shown = all.iter().take(LISTED).map(|d| KeyReport {
                db: d.db.0,
                key: String::from_utf8_lossy(&d.key).into_owned(),
                slot: d.slot,
                reason: d.reason.clone(),
            });
            (shown.collect(), all.len() as u64)
        };
        let (missing, missing_count) = list(&|r| r == "missing", &self.differences);
        let (extra, extra_count) = list(&|r| r == "extra", &self.differences);
        let (different, different_count) =
            list(&|r| r != "missing" && r != "extra", &self.differences);
        let (unprovable, unprovable_count) = list(&|_| true, &self.unprovable);
        let elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        Summary {
            equal: self.differences.is_empty() && self.unprovable.is_empty(),
            slots: SLOTS,
            slots_compared: SLOTS,
            slots_different: self.bad_slots.len(),
            keys_source: self.keys.0,
            keys_target: self.keys.1,
            missing,
            missing_count,
            extra,
            extra_count,
            different,
            different_count,
            unprovable,
            unprovable_count,
            repaired_count: 0,
            known_losses: 0,
            functions_different: Vec::new(),
            elapsed_ms,
            keys_per_s: (self.keys.0 + self.keys.1).saturating_mul(1000) / elapsed_ms.max(1),
            peak_rss_bytes: peak_rss(),
        }
    }
}

impl Place {
    async fn connect(&self, address: &str) -> Result<Conn> {
        net::connect(&self.endpoint, address).await
    }

    /// The master that serves a key.
    fn address_of(&self, key: &[u8]) -> &str {
        let slot = Slot::of(key);
        let master = self
            .layout
            .masters
            .iter()
            .find(|m| m.slots.has(slot))
            .or(self.layout.masters.first());
        master.map_or("", |m| m.address.as_str())
    }
}

/// The databases of a side that hold keys.
async fn databases(conn: &mut Conn, cluster: bool) -> Result<Vec<DbIndex>> {
    match cluster {
        true => Ok(vec![DbIndex::ZERO]),
        false => scan::databases(conn).await,
    }
}

/// Groups keys by what `of` says, keeping each key's place.
fn grouped<'k, G: Ord>(
    keys: &[(DbIndex, &'k [u8])],
    of: impl Fn(DbIndex, &[u8]) -> Option<G>,
) -> BTreeMap<G, Vec<(usize, &'k [u8])>> {
    let mut groups: BTreeMap<G, Vec<(usize, &[u8])>> = BTreeMap::new();
    for (i, (db, key)) in keys.iter().enumerate() {
        if let Some(group) = of(*db, key) {
            groups.entry(group).or_default().push((i, key));
        }
    }
    groups
}

fn expiry_of(reply: &Reply, now: i64) -> Option<i64> {
    reply.int().filter(|n| *n >= 0).map(|n| n + now)
}

fn digest_of(dump: &[u8]) -> Result<Option<digest::KeyDigest>> {
    digest::of_payload(dump, unix_ms())
}
