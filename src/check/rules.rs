//! What follows from the facts: findings with a weight and a remedy.

use super::differences;
use super::finding::{Finding, Severity, add};
use super::merge::Conflicts;
use super::probe::Facts;
use crate::error::{ErrorKind, Result};
use crate::plan::{CommandNames, Endpoint, Job, Mode, OnLoss, Source, TlsVerify, UnknownCommands};
use crate::types::{DbIndex, unix_ms};

/// Connections that we open at most to a server: loops, heals, watcher, verification.
const CONNECTIONS: u64 = 32;
/// Clocks that differ by more than this let keys expire early or late beyond the tolerance.
const CLOCK_WARNING_MS: i64 = 250;
/// A certificate should last longer than a migration with its cutover and a way back.
const CERTIFICATE_DAYS: i64 = 14;
/// The share of a target that may be full after the move.
const FULL: u64 = 80;
/// Keys per second that a copy reaches on an ordinary line; the same for bytes.
const KEYS_PER_S: u64 = 40_000;
const BYTES_PER_S: u64 = 40 << 20;

/// A side that does not answer blocks, with the error's own remedy.
pub fn reached(
    side: &'static str,
    facts: Result<Facts>,
    findings: &mut Vec<Finding>,
) -> Option<Facts> {
    match facts {
        Ok(facts) => Some(facts),
        Err(e) => {
            let id = match (side, e.kind()) {
                ("source", ErrorKind::Tls) => "source_tls",
                ("source", ErrorKind::Auth) => "source_auth",
                ("source", _) => "source_unreachable",
                (_, ErrorKind::Tls) => "target_tls",
                (_, ErrorKind::Auth) => "target_auth",
                _ => "target_unreachable",
            };
            add(
                findings,
                id,
                Severity::Blocker,
                format!("the {side} cannot be probed: {}", e.chain()),
                e.remedy(),
            );
            None
        }
    }
}

/// A certificate that ends soon cuts every connection that is opened after it.
pub fn certificate(
    endpoint: &Endpoint,
    facts: &Facts,
    side: &str,
    id: &'static str,
    findings: &mut Vec<Finding>,
) {
    if endpoint
        .tls
        .as_ref()
        .is_some_and(|t| t.verify == TlsVerify::None)
    {
        add(
            findings,
            id,
            Severity::Warning,
            format!(
                "the {side} is not verified (tls.verify \"none\"): whoever is in between can read and change everything"
            ),
            "set tls.ca to the provider's CA file, and tls.verify to \"full\", or to \"ca\" where the certificate does not hold the address",
        );
    }
    let Some(ends) = facts.certificate_ends_ms else {
        return;
    };
    let days = ends.saturating_sub(unix_ms()).div_euclid(86_400_000);
    if days < CERTIFICATE_DAYS {
        let when = match days {
            ..0 => "has ended".to_owned(),
            0 => "ends within a day".to_owned(),
            days => format!("ends in {days} days"),
        };
        add(
            findings,
            id,
            Severity::Warning,
            format!("the certificate of the {side} {when}"),
            "have it renewed before the migration begins",
        );
    }
}

pub fn merge(found: Result<Conflicts>, findings: &mut Vec<Finding>) {
    let fix = "rename such keys at the source, or lead the databases to different ones with databases.map";
    match found {
        Ok(found) if found.count > 0 => add(
            findings,
            "databases_conflict",
            Severity::Blocker,
            format!(
                "{} names stand in more than one of the databases that are merged, so only one key of each would arrive: {}",
                found.count,
                found.names.join(", ")
            ),
            fix,
        ),
        Ok(found) if found.unknown => add(
            findings,
            "databases_conflict",
            Severity::Warning,
            "the databases that are merged hold too many keys to compare their names: a name in two of them arrives once",
            fix,
        ),
        Ok(_) => {}
        Err(e) => add(
            findings,
            "databases_conflict",
            Severity::Warning,
            format!(
                "the names of the databases that are merged could not be compared: {}",
                e.chain()
            ),
            fix,
        ),
    }
}

pub fn renames(found: Result<Conflicts>, findings: &mut Vec<Finding>) {
    let fix = "give the prefix in `rename` another new name, or leave the keys that have it already out with filter.exclude";
    match found {
        Ok(found) if found.count > 0 => add(
            findings,
            "rename_conflict",
            Severity::Blocker,
            format!(
                "{} keys of the source have names already that `rename` gives to other keys: {}",
                found.count,
                found.names.join(", ")
            ),
            fix,
        ),
        Ok(_) => {}
        Err(e) => add(
            findings,
            "rename_conflict",
            Severity::Warning,
            format!(
                "whether the source has keys by the new names could not be looked up: {}",
                e.chain()
            ),
            fix,
        ),
    }
}

pub fn mode(mode: Mode, allowed: bool, names: &CommandNames, findings: &mut Vec<Finding>) {
    match (mode, allowed) {
        (Mode::Replica, false) => add(
            findings,
            "psync_refused",
            Severity::Blocker,
            format!(
                "the source does not let us be its replica ({} or {} is refused), and source.mode is \"replica\"",
                names.shown("PSYNC"),
                names.shown("REPLCONF")
            ),
            "set source.mode to \"scan\" or \"auto\", give the user +psync +replconf, say in source.commands what they are called there, or load an exported RDB file with mode \"rdb\"",
        ),
        (Mode::Auto, false) => add(
            findings,
            "psync_refused",
            Severity::Info,
            match names.hide_psync() {
                true => {
                    "the source answers a renamed PSYNC as SYNC, which tells no offsets: it will be scanned and swept"
                }
                false => "the source does not let us be its replica: it will be scanned and swept",
            },
            "where the provider can switch replication on, that is faster and exact by offset",
        ),
        _ => {}
    }
}

fn need(
    (job, facts): (&Job, &Facts),
    side: &'static str,
    id: &'static str,
    commands: &[&'static str],
    findings: &mut Vec<Finding>,
) {
    let names = match side {
        "target" => Some(&job.target),
        _ => job.source.endpoint(),
    };
    let names = names.map(|e| e.commands.clone()).unwrap_or_default();
    let refused: Vec<String> = (commands.iter())
        .filter(|c| facts.commands.get(*c) == Some(&false))
        .map(|c| names.shown(c))
        .collect();
    if !refused.is_empty() {
        add(
            findings,
            id,
            Severity::Blocker,
            format!("the {side} refuses {}", refused.join(", ")),
            format!(
                "give the plan's user at the {side} the right to run it, or use another user; where it was renamed, {side}.commands says what it is called"
            ),
        );
    }
}

fn room_for_clients(
    job: &Job,
    facts: &Facts,
    side: &str,
    id: &'static str,
    findings: &mut Vec<Finding>,
) {
    let wanted = job.limits.connections.map_or(CONNECTIONS, u64::from);
    if let (Some(clients), Some(max)) = (facts.clients, facts.maxclients)
        && max.saturating_sub(clients) < wanted
    {
        add(
            findings,
            id,
            Severity::Blocker,
            format!("the {side} has {clients} of at most {max} clients: {wanted} more do not fit"),
            "raise maxclients, or close connections that nobody uses",
        );
    }
}

pub fn source(job: &Job, facts: &Facts, replica: bool, findings: &mut Vec<Finding>) {
    let list: &[&str] = match replica {
        true => &["DUMP"],
        false => &["SCAN", "DUMP", "TYPE"],
    };
    need((job, facts), "source", "source_commands", list, findings);
    room_for_clients(job, facts, "source", "source_clients", findings);
    if let (true, Some(backlog)) = (replica, facts.backlog_bytes) {
        // What a minute's outage needs.
        let minute = facts.input_bytes_per_s.saturating_mul(60);
        if backlog < minute {
            add(
                findings,
                "backlog",
                Severity::Warning,
                format!(
                    "the source's backlog of {backlog} bytes holds less than a minute of the {} bytes/s written now",
                    facts.input_bytes_per_s
                ),
                format!(
                    "CONFIG SET repl-backlog-size {}: a longer outage then needs no full sync",
                    minute.max(64 << 20)
                ),
            );
        }
    }
    if replica
        && let Some(limit) = &facts.replica_buffer
        && !limit.starts_with("0 ")
    {
        add(
            findings,
            "replica_buffer",
            Severity::Info,
            format!(
                "the source cuts replicas that lag behind by more than {limit} (hard, soft, seconds)"
            ),
            "keyferry reads as fast as it can; a slow disk under the spool is what to avoid",
        );
    }
    if replica && facts.scripts_verbatim {
        scripts(facts, findings);
    }
    if !replica && matches!(&job.source, Source::Server { .. }) {
        const FIX: &str = "set notify-keyspace-events to AKE for the time of the migration";
        let on = facts.notifications.as_ref().map(|n| !n.is_empty());
        match on.or(facts.notified) {
            Some(true) => {}
            Some(false) => add(
                findings,
                "notifications",
                Severity::Warning,
                "the source sends no keyspace notifications: changes are found by sweeps alone, which takes longer after the freeze",
                FIX,
            ),
            None => add(
                findings,
                "notifications_unknown",
                Severity::Warning,
                "whether the source sends keyspace notifications is not known: CONFIG GET is refused, and no key was written to try it; without them changes are found by sweeps alone, which takes longer after the freeze",
                FIX,
            ),
        }
    }
}

/// Scripts that come as they were called may write keys that nobody names.
fn scripts(facts: &Facts, findings: &mut Vec<Finding>) {
    let old = facts.server.starts_with("redis 4.")
        || facts.server.starts_with("redis 3.")
        || facts.server.starts_with("redis 2.");
    match (old, facts.scripts) {
        (false, _) => add(
            findings,
            "scripts_verbatim",
            Severity::Blocker,
            "the source replicates scripts as they were called (lua-replicate-commands no), and the first of them ends the run: which keys a script writes is not known",
            "CONFIG SET lua-replicate-commands yes on every node of the source, until the migration is done",
        ),
        (true, 0) => {}
        (true, n) => add(
            findings,
            "scripts_verbatim",
            Severity::Warning,
            format!(
                "the source has run {n} scripts, and its version replicates them as they were called: they are run at a standalone target, and end the run where that is not exact (a cluster, filters, renames, after a crash)"
            ),
            "have the scripts call redis.replicate_commands() first, or set source.mode to \"scan\"",
        ),
    }
}

pub fn target(job: &Job, facts: &Facts, write: bool, findings: &mut Vec<Finding>) {
    let mut list = vec!["DEL", "EXISTS"];
    if facts.topology == "proxy" {
        list.retain(|c| *c != "EXISTS");
    }
    need((job, facts), "target", "target_commands", &list, findings);
    let restores = facts.commands.get("RESTORE") == Some(&true);
    if !restores {
        differences::restore_refused(job, findings);
    }
    if write && restores && facts.restore_version.is_none() {
        add(
            findings,
            "restore",
            Severity::Blocker,
            "the target takes no DUMP payload of any version that was tried",
            "look into the target's log; is it a replica, or out of memory",
        );
    }
    if let Some(policy) = facts.eviction.as_deref().filter(|p| *p != "noeviction") {
        add(
            findings,
            "eviction",
            Severity::Blocker,
            format!(
                "the target evicts keys when it is full (maxmemory-policy {policy}): what has arrived may go again"
            ),
            "set maxmemory-policy to noeviction until the cutover is done",
        );
    }
    room_for_clients(job, facts, "target", "target_clients", findings);
    if facts.keys > 0 && job.on_existing == crate::plan::OnExisting::Fail {
        add(
            findings,
            "target_not_empty",
            Severity::Warning,
            format!("the target holds {} keys", facts.keys),
            "a first run is refused: empty it, or say in on_existing what is to become of them (a run that goes on is not concerned)",
        );
    }
}

/// Commands that write, that the source's clients have called, and that keyferry does not know.
pub fn unknown_in_stream(job: &Job, commands: &[String], findings: &mut Vec<Finding>) {
    if commands.is_empty() {
        return;
    }
    let named = commands.join(", ");
    let (severity, what, remedy) = match job.unknown_commands {
        UnknownCommands::Fail => (
            Severity::Blocker,
            format!(
                "keyferry does not know {named}, which the source's clients have called: the run stops at the first one in the replication stream"
            ),
            "set unknown_commands to \"skip\": the keys of such commands are read from the source where it says which they are, else the command is left out and listed, and `verify --repair` mends what it wrote",
        ),
        UnknownCommands::Skip => (
            Severity::Warning,
            format!(
                "keyferry does not know {named}, which the source's clients have called: what of them is in the replication stream is read from the source by its keys, or left out and listed"
            ),
            "run `verify --repair` once such commands have been called",
        ),
    };
    add(findings, "unknown_stream_commands", severity, what, remedy);
}

/// Commands that the source's clients have called and the target does not know.
pub fn unknown(commands: &[String], target: &Facts, findings: &mut Vec<Finding>) {
    if commands.is_empty() {
        return;
    }
    add(
        findings,
        "unknown_commands",
        Severity::Warning,
        format!(
            "the source's clients have called {}, which {} does not know",
            commands.join(", "),
            target.server
        ),
        "the keys that such commands write are read from the source and written as they are; but clients that go on calling them after the cutover get errors: take a target that knows them, or change the clients before",
    );
}

pub fn both(job: &Job, source: &Facts, target: &Facts, findings: &mut Vec<Finding>) {
    if let Some(max) = target.maxmemory.filter(|m| *m > 0) {
        let after = target.used_memory.saturating_add(source.used_memory);
        if after > max {
            add(
                findings,
                "target_memory",
                Severity::Blocker,
                format!(
                    "the target is too small: {} bytes of data for {max} bytes of maxmemory",
                    after
                ),
                "take a larger target, or move less (filter, databases)",
            );
        } else if after > (max / 100).saturating_mul(FULL) {
            add(
                findings,
                "target_memory",
                Severity::Warning,
                format!("the target will be more than {FULL} % full: {after} of {max} bytes"),
                "take a larger target: buffers and fragmentation need room as well",
            );
        }
    }
    let beyond: Vec<String> = (source.databases.keys())
        .filter_map(|db| Some((db, job.databases.map(DbIndex(*db))?)))
        .filter(|(_, to)| *to != DbIndex::ZERO)
        .map(|(db, _)| db.to_string())
        .collect();
    if !beyond.is_empty()
        && (target.topology == "proxy" || !target.select)
        && job.on_loss == OnLoss::Fail
    {
        add(
            findings,
            "databases",
            Severity::Blocker,
            format!(
                "the target has database 0 only, and the source's databases {} hold keys",
                beyond.join(", ")
            ),
            "lead them to 0 with databases.map, leave them out with databases.include, or set on_loss to \"list\"",
        );
    }
    if source.takes_field_expiry && target.takes_field_expiry {
        need(
            (job, target),
            "target",
            "target_commands",
            &["HEXISTS"],
            findings,
        );
    }
    if let Some(n) = source.field_expiry_keys.filter(|n| *n > 0)
        && !target.takes_field_expiry
    {
        add(
            findings,
            "field_expiry",
            if job.on_loss == OnLoss::Fail {
                Severity::Blocker
            } else {
                Severity::Warning
            },
            format!(
                "{n} hashes have fields that expire, which {} does not know",
                target.server
            ),
            "take a target that does (Redis 7.4, Valkey 9.0), or set on_loss to \"list\": the fields then stay for good",
        );
    }
    let parted = target.topology != "standalone" && source.topology == "standalone";
    if parted && source.scripts.max(source.several_keys) > 0 {
        add(
            findings,
            "cross_slot",
            Severity::Info,
            format!(
                "the target parts its keys by slot; the source has seen {} calls of scripts and {} of commands over several keys",
                source.scripts, source.several_keys
            ),
            "keyferry copies what such commands lead to; the application itself needs hash tags {…} for them before it is switched",
        );
    }
    // The language of scripts is a module of Valkey 9.1, and has no keys.
    let lacking: Vec<&str> = (source.modules.iter().map(String::as_str))
        .filter(|m| *m != "lua" && !target.modules.iter().any(|t| t == m))
        .collect();
    if !lacking.is_empty() {
        add(
            findings,
            "modules",
            Severity::Warning,
            format!(
                "the target lacks modules of the source: {}",
                lacking.join(", ")
            ),
            "keys of these modules stop the run; load the modules, filter those keys, or set on_loss to \"list\"",
        );
    }
    if let (Some(a), Some(b)) = (source.clock_ahead_ms, target.clock_ahead_ms) {
        let apart = b.saturating_sub(a).saturating_abs();
        if apart > CLOCK_WARNING_MS {
            let severity = match apart > job.verify.ttl_tolerance_ms.max(CLOCK_WARNING_MS) {
                true => Severity::Blocker,
                false => Severity::Warning,
            };
            add(
                findings,
                "clocks",
                severity,
                format!(
                    "the clocks of source and target are {apart} ms apart: keys with an expiry live that much longer or shorter"
                ),
                "have both set by NTP; or raise verify.ttl_tolerance_ms if that does not matter",
            );
        }
    }
}

/// A guess at how long the copy takes.
pub fn estimate_s(job: &Job, source: &Facts) -> u64 {
    let keys = job.limits.keys_per_s.unwrap_or(u64::MAX).min(KEYS_PER_S);
    let bytes = job.limits.bytes_per_s.unwrap_or(u64::MAX).min(BYTES_PER_S);
    (source.keys.checked_div(keys).unwrap_or(source.keys))
        .max(
            source
                .used_memory
                .checked_div(bytes)
                .unwrap_or(source.used_memory),
        )
        .saturating_add(1)
}
