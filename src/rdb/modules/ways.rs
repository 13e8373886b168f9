//! Which way a module's value goes to a target: RESTORE, the module's own commands, or not at all.
//!
//! RESTORE is chosen only where the target's module is known to load the encoding version: RedisJSON 2.8 panics on
//! version 4 and takes its server down, and a payload of a module that is not there makes Redis 5 and 6 exit.

use super::commands;
use crate::rdb::payload::Target;

/// A module that a server has loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    pub name: String,
    /// As MODULE LIST tells it: 20803 is 2.8.3, and from Redis 8 on 80200 is 8.2.0; `None` where it is not told.
    pub version: Option<u64>,
}

/// What is known of a target's modules.
#[derive(Debug, Clone, Default)]
pub struct Takes {
    /// `None` where the target does not tell them in any way.
    pub target: Option<Vec<Loaded>>,
    /// Those of the source; none of a file.
    pub source: Vec<Loaded>,
    /// The source is a Valkey.
    pub source_valkey: bool,
    /// The target refuses RESTORE.
    pub no_restore: bool,
}

/// Which way a value goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// RESTORE of the same value.
    Restore,
    /// Commands of the module.
    Commands,
    /// Not at all, and why.
    Lost(String),
}

/// Who brings a type: names of modules, and whether those are modules of Valkey.
struct Provider {
    type_name: &'static str,
    redis: &'static [&'static str],
    valkey: &'static [&'static str],
}

const fn provider(
    type_name: &'static str,
    redis: &'static [&'static str],
    valkey: &'static [&'static str],
) -> Provider {
    Provider {
        type_name,
        redis,
        valkey,
    }
}

/// Modules by the names of their types. Valkey's Bloom module is called "bf" as well, and its filters are of another
/// type and hash otherwise; its search has no suggestions.
const PROVIDERS: [Provider; 12] = [
    provider("ReJSON-RL", &["rejson"], &["json", "rejson"]),
    provider("MBbloom--", &["bf"], &[]),
    provider("MBbloomCF", &["bf"], &[]),
    provider("CMSk-TYPE", &["bf"], &[]),
    provider("TopK-TYPE", &["bf"], &[]),
    provider("TDIS-TYPE", &["bf"], &[]),
    provider("bloomfltr", &[], &["bf", "bloom"]),
    provider("TSDB-TYPE", &["timeseries"], &["timeseries"]),
    provider("trietype0", &["search", "ft"], &[]),
    provider("graphdata", &["graph"], &["graph"]),
    provider(
        "hellotype",
        &["hellotype", "helloworld"],
        &["hellotype", "helloworld"],
    ),
    provider("vectorset", &["vectorset"], &[]),
];

/// The modules that have a type, by the commands that only they have, where MODULE LIST is refused.
pub const BY_COMMAND: [(&str, &str); 5] = [
    ("ReJSON", "JSON.GET"),
    ("json", "JSON.GET"),
    ("bf", "BF.EXISTS"),
    ("timeseries", "TS.GET"),
    ("search", "FT.SUGLEN"),
];

/// The encoding versions of a type that a module loads; `None` where any is taken on trust.
fn loads(type_name: &str, version: Option<u64>, valkey: bool) -> Option<&'static [u16]> {
    // A version that is not told is taken for the oldest that is common.
    let v = version.unwrap_or(20_000);
    Some(match type_name {
        "ReJSON-RL" if valkey => &[0, 3],
        "ReJSON-RL" => match v {
            ..20_000 => &[0],
            20_000..80_800 => &[0, 2, 3],
            _ => &[0, 2, 3, 4],
        },
        "MBbloom--" | "MBbloomCF" => &[0, 1, 2, 3, 4],
        "CMSk-TYPE" | "TopK-TYPE" | "TDIS-TYPE" => &[0],
        "TSDB-TYPE" => match v {
            ..80_600 => &[0, 1, 2, 3, 4, 5, 6, 7, 8],
            _ => &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
        },
        "trietype0" => &[0, 1],
        _ => return None,
    })
}

impl Takes {
    /// The target's module that has a type.
    fn holder<'a>(of: &'a [Loaded], type_name: &str, valkey: bool) -> Option<&'a Loaded> {
        let by = PROVIDERS.iter().find(|p| p.type_name == type_name);
        let by = by.map_or(&[] as &[&str], |p| if valkey { p.valkey } else { p.redis });
        of.iter().find(|m| {
            by.iter().any(|b| m.name.eq_ignore_ascii_case(b))
                || m.name.eq_ignore_ascii_case(type_name.trim_end_matches('-'))
        })
    }

    /// Which way a value of a type in an encoding version goes to `target`.
    pub fn way(&self, type_name: &str, encoding: u16, target: &Target) -> Way {
        let valkey = target.valkey;
        let a_value = format!("it is a value of the module type {type_name}");
        let Some(modules) = &self.target else {
            return Way::Lost(format!(
                "{a_value}, and the target tells neither its modules (MODULE LIST) nor its commands (COMMAND INFO): allow one of them"
            ));
        };
        let built_in = type_name == "vectorset" && !valkey && target.version >= (8, 0, 0);
        let holder = Takes::holder(modules, type_name, valkey);
        if holder.is_none() && !built_in {
            return Way::Lost(match (type_name, valkey) {
                ("MBbloom--", true) if modules.iter().any(|m| m.name == "bf") => format!(
                    "{a_value}, and filters of the target's Bloom module hash otherwise: make a new filter there from the items"
                ),
                _ => format!("{a_value}, and the target does not have that module"),
            });
        }
        let known = holder.and_then(|m| loads(type_name, m.version, valkey));
        let same_or_newer = || {
            let of = Takes::holder(&self.source, type_name, self.source_valkey);
            self.source_valkey == valkey
                && of.is_some_and(|of| {
                    of.version.is_some() && holder.is_some_and(|h| h.version >= of.version)
                })
        };
        let taken = known.is_none_or(|list| list.contains(&encoding)) || same_or_newer();
        if taken && !self.no_restore {
            return Way::Restore;
        }
        match commands::why_not(type_name, encoding) {
            None => Way::Commands,
            Some(why) if taken => {
                Way::Lost(format!("{a_value}, the target refuses RESTORE, and {why}"))
            }
            Some(why) => Way::Lost(format!(
                "{a_value} in encoding version {encoding}, which the target's {} does not load, and {why}: take a target whose module is not older than the source's",
                holder.map_or_else(String::new, Loaded::text)
            )),
        }
    }

    /// The types that the source's modules bring; vector sets are the server's own.
    pub fn types(&self) -> impl Iterator<Item = &'static str> {
        (PROVIDERS.iter().map(|p| p.type_name)).filter(|name| {
            *name != "vectorset" && Takes::holder(&self.source, name, self.source_valkey).is_some()
        })
    }

    /// Which way values of a type go, as the source's module writes them.
    pub fn way_of_type(&self, type_name: &str, target: &Target) -> Way {
        let of = Takes::holder(&self.source, type_name, self.source_valkey);
        let written = loads(type_name, of.and_then(|m| m.version), self.source_valkey);
        let newest = written.and_then(|list| list.last()).copied();
        self.way(type_name, newest.unwrap_or(0), target)
    }

    /// The modules of both sides that have a type, for people.
    pub fn between(&self, type_name: &str, target: &Target) -> (String, String) {
        let text = |of: &[Loaded], valkey| {
            Takes::holder(of, type_name, valkey)
                .map_or_else(|| "no such module".to_owned(), Loaded::text)
        };
        (
            text(&self.source, self.source_valkey),
            text(self.target.as_deref().unwrap_or_default(), target.valkey),
        )
    }
}

impl Loaded {
    /// "ReJSON 2.8.3".
    pub fn text(&self) -> String {
        match self.version {
            Some(v) => format!("{} {}.{}.{}", self.name, v / 10_000, v / 100 % 100, v % 100),
            None => self.name.clone(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::expect_used, clippy::panic)]
mod tests;
