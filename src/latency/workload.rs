//! What is asked of a server while it is measured: which requests, on which keys, how often each.
//!
//! Real keys are only read. What is written (only with `allow_writes`) lies under a prefix of its own, ends by itself,
//! and is removed afterwards.

use super::file::{self, Fill, Template};
use super::own::{LIFE_S, OWN, TOGETHER, own};
use super::request::{Exchange, Request, What};
use super::rng::Rng;
use crate::error::Result;
use crate::plan::{Renames, WORKLOAD_FILE};
use crate::resp;
use crate::source::mix::Mix;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// How uneven the keys' popularity is (Zipf).
const SKEW: f64 = 0.99;
/// Keys of the source that may be read, as they are called on one side.
#[derive(Debug, Clone, Default)]
pub struct RealKeys {
    /// By their types, popular ones first.
    keys: BTreeMap<String, Vec<Vec<u8>>>,
    /// Of every type.
    all: Vec<Vec<u8>>,
    /// The middle length of its strings; 0 where there are none.
    value_bytes: usize,
}

/// Without strings of the source's, this is how long a value is.
const VALUE_BYTES: usize = 200;
/// Longer ones are not made up.
const LONGEST_VALUE: usize = 64 << 10;

impl RealKeys {
    /// As the target calls them.
    pub fn renamed(&self, renames: &Renames) -> RealKeys {
        let names = |keys: &Vec<Vec<u8>>| {
            let named = keys.iter().filter_map(|k| renames.to_target(k));
            named.map(|k| k.into_owned()).collect()
        };
        let each = self.keys.iter();
        let named = each.map(|(kind, keys)| (kind.clone(), names(keys)));
        RealKeys::new(named.collect(), self.value_bytes)
    }

    pub fn new(keys: BTreeMap<String, Vec<Vec<u8>>>, value_bytes: usize) -> RealKeys {
        let mut all: Vec<Vec<u8>> = keys.values().flatten().cloned().collect();
        // Of every type, some are popular.
        Rng::new(1).shuffle(&mut all);
        RealKeys {
            all,
            keys,
            value_bytes,
        }
    }

    /// Those of one type; all for `None`.
    fn of(&self, kind: Option<&str>) -> &[Vec<u8>] {
        match kind {
            Some(kind) => self.keys.get(kind).map_or(&[], Vec::as_slice),
            None => &self.all,
        }
    }

    /// Some of all, at most `n`.
    pub fn some(&self, n: usize) -> impl Iterator<Item = &[u8]> {
        // They are in no order.
        self.all.iter().take(n).map(Vec::as_slice)
    }

    pub fn count(&self) -> usize {
        self.keys.values().map(Vec::len).sum()
    }

    /// A value as long as the source's are.
    pub fn value(&self) -> Vec<u8> {
        let bytes = match self.value_bytes {
            0 => VALUE_BYTES,
            n => n.min(LONGEST_VALUE),
        };
        vec![b'v'; bytes]
    }
}

/// Which requests, in which proportion.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    parts: Vec<(What, f64)>,
    /// The share of the traffic that is left out, with the reason.
    pub left_out: Vec<(String, f64)>,
    templates: Vec<Template>,
}

impl Recipe {
    /// One of the named workloads; with real keys alone when nothing may be written.
    ///
    /// `None` when nothing of it can be run; an error when it is a file that cannot be used.
    pub fn named(name: &str, mix: &Mix, writes: bool) -> Result<Option<Recipe>> {
        let (mut left_out, mut templates) = (Vec::new(), Vec::new());
        let parts = match name {
            "observed" => observed(mix, writes, &mut left_out),
            "session-store" => vec![
                (What::Get, 50.0),
                (What::HGetAll, 30.0),
                (What::SetEx, 10.0),
                (What::Expire, 5.0),
                (What::EvalLock, 5.0),
            ],
            "cache-aside" if writes => vec![(What::CacheAside, 100.0)],
            "cache-aside" => vec![(What::Get, 100.0)],
            "entity-lookup" => vec![(What::MGet, 90.0), (What::HGetAll, 10.0)],
            "counter" => vec![
                (What::Incr, 50.0),
                (What::ZIncrBy, 25.0),
                (What::ZRange, 25.0),
            ],
            "pipeline" => vec![(What::Pipeline, 100.0)],
            file => {
                let path = file.strip_prefix(WORKLOAD_FILE).unwrap_or(file);
                templates = file::read(Path::new(path))?;
                let all: f64 = templates.iter().map(|t| t.weight).sum();
                let mut parts = Vec::new();
                for (at, template) in templates.iter().enumerate() {
                    match writes || !template.writes {
                        true => parts.push((What::File(at), template.weight)),
                        false => left_out.push((
                            format!("{}: writes are not allowed", template.name),
                            template.weight / all,
                        )),
                    }
                }
                parts
            }
        };
        let parts: Vec<(What, f64)> = parts
            .into_iter()
            .filter(|(what, _)| writes || !what.writes())
            .collect();
        Ok((!parts.is_empty()).then_some(Recipe {
            parts,
            left_out,
            templates,
        }))
    }

    /// What it calls its own keys, beside those that are always there.
    pub fn own_names(&self) -> BTreeSet<String> {
        file::names(&self.templates)
    }
}

fn kind(what: What, templates: &[Template]) -> &'static str {
    match what {
        What::File(at) => templates.get(at).map_or(what.name(), |t| t.name),
        _ => what.name(),
    }
}

/// What the source's own traffic comes to.
fn observed(mix: &Mix, writes: bool, left_out: &mut Vec<(String, f64)>) -> Vec<(What, f64)> {
    let mut parts: BTreeMap<What, f64> = BTreeMap::new();
    let all = mix.total().max(f64::MIN_POSITIVE);
    for (command, rate) in &mix.per_s {
        match What::of(command) {
            Some(what) if writes || !what.writes() => *parts.entry(what).or_default() += rate,
            Some(_) => left_out.push((format!("{command}: writes are not allowed"), rate / all)),
            None => left_out.push((format!("{command}: not imitated"), rate / all)),
        }
    }
    parts.into_iter().collect()
}

/// A recipe with the keys of one side.
pub struct Workload {
    /// Each kind with the sum of the weights up to it, and the keys it reads.
    parts: Vec<(f64, What, Vec<Vec<u8>>)>,
    popularity: BTreeMap<usize, Vec<f64>>,
    templates: Vec<Template>,
    real: RealKeys,
    value: Vec<u8>,
    /// MGET asks for one key only, as several may lie in several slots.
    apart: bool,
    /// Kinds of request that are left out, as there are no keys for them, with their share.
    pub without_keys: Vec<(String, f64)>,
}

/// Fills the places of a file's request.
struct Filler<'a>(&'a Workload, &'a mut Rng);

impl Fill for Filler<'_> {
    fn key(&mut self, kind: Option<&str>) -> Vec<u8> {
        let Filler(load, rng) = self;
        let keys = load.real.of(kind);
        keys.get(load.popular(keys.len(), rng))
            .cloned()
            .unwrap_or_default()
    }

    fn number(&mut self, n: u64) -> u64 {
        (self.1.unit() * n as f64) as u64
    }
}

impl Workload {
    /// `None` when no part has keys to read.
    pub fn new(recipe: &Recipe, real: &RealKeys, writes: bool, apart: bool) -> Option<Workload> {
        let (mut parts, mut sum) = (Vec::new(), 0.0);
        let mut without_keys = Vec::new();
        let all: f64 = recipe.parts.iter().map(|(_, weight)| weight).sum();
        let mut popularity = BTreeMap::new();
        for (what, weight) in &recipe.parts {
            let keys = match (what.writes(), what.reads()) {
                (true, _) => Vec::new(),
                (false, kind) => real.of(kind).to_vec(),
            };
            match what {
                What::File(at) => {
                    let mut wants = recipe
                        .templates
                        .get(*at)
                        .into_iter()
                        .flat_map(Template::wants);
                    if wants.any(|kind| real.of(kind).is_empty()) {
                        let what = format!("{}: no such keys", kind(*what, &recipe.templates));
                        without_keys.push((what, weight / all));
                        continue;
                    }
                }
                // Nothing to read, and nothing may be put there.
                _ if !what.writes() && keys.is_empty() && !writes => {
                    without_keys.push((format!("{}: no such keys", what.name()), weight / all));
                    continue;
                }
                _ => {}
            }
            sum += weight;
            popularity
                .entry(keys.len().max(1))
                .or_insert_with_key(|n| zipf(*n));
            parts.push((sum, *what, keys));
        }
        for n in real
            .keys
            .values()
            .map(Vec::len)
            .chain([OWN, real.all.len()])
        {
            popularity.entry(n.max(1)).or_insert_with_key(|n| zipf(*n));
        }
        (!parts.is_empty()).then_some(Workload {
            parts,
            popularity,
            templates: recipe.templates.clone(),
            value: real.value(),
            real: real.clone(),
            apart,
            without_keys,
        })
    }

    /// Whether it reads keys of the source.
    pub fn reads_real_keys(&self) -> bool {
        let wants = |at: usize| {
            self.templates
                .get(at)
                .is_some_and(|t| t.wants().next().is_some())
        };
        self.parts.iter().any(|(_, what, keys)| match what {
            What::File(at) => wants(*at),
            _ => !keys.is_empty(),
        })
    }

    /// Each kind of request with its weight.
    pub fn kinds(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let mut before = 0.0;
        self.parts.iter().map(move |(sum, what, _)| {
            let weight = sum - before;
            before = *sum;
            (kind(*what, &self.templates), weight)
        })
    }

    fn popular(&self, n: usize, rng: &mut Rng) -> usize {
        let at = rng.unit();
        let Some(sums) = self.popularity.get(&n) else {
            return rng.below(n);
        };
        sums.partition_point(|s| *s < at).min(n.saturating_sub(1))
    }

    /// The next request.
    pub fn next(&self, rng: &mut Rng) -> Request {
        let all = self.parts.last().map_or(0.0, |(sum, ..)| *sum);
        let at = rng.unit() * all;
        let place = self.parts.partition_point(|(sum, ..)| *sum <= at);
        let Some((_, what, keys)) = self.parts.get(place).or(self.parts.last()) else {
            return own(What::Get, 0, 0, &self.value);
        };
        if let What::File(at) = what
            && let Some(template) = self.templates.get(*at)
        {
            return self.templated(template, rng);
        }
        if keys.is_empty() {
            // Some of the keys of cache-aside are not there.
            let n = match what {
                What::CacheAside => self.popular(OWN, rng) + OWN * usize::from(rng.unit() < 0.05),
                _ => self.popular(OWN, rng),
            };
            return own(*what, n, rng.below(1000), &self.value);
        }
        let key = |rng: &mut Rng| {
            let place = self.popular(keys.len(), rng);
            keys.get(place).cloned().unwrap_or_default()
        };
        let first = key(rng);
        let mut frame = Vec::new();
        match what {
            What::HGetAll => resp::command(&mut frame, &[b"HGETALL", &first]),
            What::LRange => resp::command(&mut frame, &[b"LRANGE", &first, b"0", b"9"]),
            What::SCard => resp::command(&mut frame, &[b"SCARD", &first]),
            What::ZRange => resp::command(&mut frame, &[b"ZRANGE", &first, b"0", b"9"]),
            What::Exists => resp::command(&mut frame, &[b"EXISTS", &first]),
            What::MGet => {
                let mut names = vec![first.clone()];
                names.extend((1..TOGETHER).filter(|_| !self.apart).map(|_| key(rng)));
                let mut words: Vec<&[u8]> = vec![b"MGET"];
                words.extend(names.iter().map(Vec::as_slice));
                resp::command(&mut frame, &words);
            }
            What::Pipeline => {
                // On a cluster an application has a pipeline for each node: here, for one slot.
                for i in 0..TOGETHER {
                    let key = match i == 0 || self.apart {
                        true => first.clone(),
                        false => key(rng),
                    };
                    resp::command(&mut frame, &[b"GET", &key]);
                }
                return Request {
                    key: first,
                    kind: what.name(),
                    exchange: Exchange::All(frame, TOGETHER as u32),
                };
            }
            _ => resp::command(&mut frame, &[b"GET", &first]),
        }
        Request {
            key: first,
            kind: what.name(),
            exchange: Exchange::One(frame),
        }
    }

    fn templated(&self, template: &Template, rng: &mut Rng) -> Request {
        let n = self.popular(OWN, rng) as u64;
        let (frame, key, owned) = template.frame(n, &mut Filler(self, rng));
        let mut life = Vec::new();
        for key in &owned {
            resp::command(&mut life, &[b"EXPIRE", key, LIFE_S.as_bytes()]);
        }
        Request {
            key,
            kind: template.name,
            exchange: match template.writes {
                true => Exchange::Ending {
                    frame,
                    life,
                    n: owned.len() as u32,
                },
                false => Exchange::One(frame),
            },
        }
    }
}

/// Sums of a Zipf distribution over `n` keys, the most popular first.
fn zipf(n: usize) -> Vec<f64> {
    let weights: Vec<f64> = (1..=n).map(|i| 1.0 / (i as f64).powf(SKEW)).collect();
    let all: f64 = weights.iter().sum();
    let mut sum = 0.0;
    let step = |w: f64| {
        sum += w / all;
        sum
    };
    weights.into_iter().map(step).collect()
}

#[cfg(test)]
mod tests {
    use super::super::own::PREFIX;
    use super::*;

    fn mix(parts: &[(&str, f64)]) -> Mix {
        Mix {
            per_s: parts
                .iter()
                .map(|(name, n)| (name.to_string(), *n))
                .collect(),
            ..Mix::default()
        }
    }

    #[test]
    fn what_was_observed_becomes_requests_and_the_rest_is_told() {
        let mix = mix(&[("get", 60.0), ("set", 30.0), ("object|freq", 10.0)]);
        let named = |name: &str, mix: &Mix, writes| Recipe::named(name, mix, writes).unwrap();
        let read = named("observed", &mix, false).unwrap();
        assert_eq!(read.parts, [(What::Get, 60.0)]);
        assert_eq!(read.left_out.len(), 2);
        let all = named("observed", &mix, true).unwrap();
        assert_eq!(all.parts.len(), 2);
        assert!(named("observed", &Mix::default(), true).is_none());
        // Without writes, a counter can only be looked at.
        assert_eq!(
            named("counter", &mix, false).unwrap().parts,
            [(What::ZRange, 25.0)]
        );
    }

    #[test]
    fn requests_keep_to_real_keys_or_to_the_prefix() {
        let strings = ("string".to_string(), vec![b"a".to_vec(), b"b".to_vec()]);
        let real = RealKeys::new([strings].into(), 0);
        for name in ["session-store", "cache-aside", "pipeline", "counter"] {
            let recipe = Recipe::named(name, &Mix::default(), true).unwrap().unwrap();
            let workload = Workload::new(&recipe, &real, true, true).unwrap();
            let mut rng = Rng::new(7);
            for _ in 0..2_000 {
                let request = workload.next(&mut rng);
                let own = request.key.starts_with(PREFIX.as_bytes());
                let reads = ["GET", "10 GET in one write"].contains(&request.kind);
                assert!(own || reads, "{}", request.kind);
            }
        }
    }

    #[test]
    fn the_first_keys_are_the_popular_ones() {
        let sums = zipf(1000);
        assert!((sums[999] - 1.0).abs() < 1e-9);
        assert!(sums[9] > 0.35, "{}", sums[9]);
    }
}
