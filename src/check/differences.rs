//! What a copy of the data does not bring and applications notice: findings about the surroundings of both sides.

use super::finding::{Finding, Severity, add};
use super::probe::Facts;
use super::surroundings::Surroundings;
use super::users;
use crate::plan::{Job, OnLoss};
use std::collections::BTreeSet;

/// A target whose user may not run RESTORE, as in active-active databases.
pub fn restore_refused(job: &Job, findings: &mut Vec<Finding>) {
    let rest = match job.on_loss {
        OnLoss::Fail => "stop the run (on_loss \"list\" leaves them out and lists them)",
        OnLoss::List => "are left out and listed",
    };
    add(
        findings,
        "restore_refused",
        Severity::Warning,
        format!(
            "the target refuses RESTORE: every value is written by commands, two to four for a collection and one for a string; a load took 1.1 to 1.7 times as long as with RESTORE where it was measured. Access times and frequencies (LRU, LFU) do not come along, consumers of a stream count as seen now, and values that no command writes {rest}: of modules, vector sets, arrays and rate limiters"
        ),
        "nothing to do where the target is an active-active database; else give the plan's user at the target the right to run RESTORE",
    );
}

/// Names that are told.
const TOLD: usize = 10;
/// Settings whose difference has a finding of its own.
const APART: [&str; 3] = ["databases", "notify-keyspace-events", "timeout"];
/// What `A` stands for in notify-keyspace-events of every version, and what it stands for in some (Redis 7.0).
const ALL_EVENTS: &str = "g$lshzxet";
const MORE_EVENTS: &str = "d";

/// What the plan and the source alone tell; `replica`: keyferry reads its replication stream.
pub fn source(job: &Job, facts: &Facts, replica: bool, findings: &mut Vec<Finding>) {
    let around = &facts.surroundings;
    if let Some(master) = &around.master {
        let message = format!(
            "the source is a replica of {}, where the clients write and a cutover freezes them",
            master.address
        );
        match &master.why {
            None => add(
                findings,
                "source_is_replica",
                Severity::Info,
                message,
                "nothing to do: the master answers with the same credentials",
            ),
            Some(why) => add(
                findings,
                "source_is_replica",
                Severity::Warning,
                format!("{message}; it cannot be asked from here: {why}"),
                format!(
                    "before a cutover, make {0} reachable with the source's credentials, or say in source.address_map where it is reached (\"{0}\": \"host:port\"); or name the master in source.url",
                    master.address
                ),
            ),
        }
    }
    if let Some(wanted) = around.replicas.wanted {
        min_replicas(wanted, around.replicas.online, replica, findings);
    }
    if replica && around.sentinels > 0 {
        add(
            findings,
            "sentinel",
            Severity::Warning,
            format!(
                "{} watch the source, and keep an entry for keyferry's replication link, a replica at port 0 that is down (s_down), also when it is gone; failovers work, but alarms may ring",
                count(around.sentinels, "Sentinel")
            ),
            "when the migration has ended, run SENTINEL RESET <name of the master> on each Sentinel, one after the other, half a minute apart",
        );
    }
    if !job.cutover.hooks.switch.is_empty() {
        switch(job, around, findings);
    }
}

/// Writes are refused without so many replicas, and keyferry's link counts as one.
fn min_replicas(wanted: u64, online: u64, replica: bool, findings: &mut Vec<Finding>) {
    let has = format!(
        "the source refuses writes with fewer than {wanted} of its replicas in step (min-replicas-to-write) and has {online}"
    );
    match replica && online < wanted {
        true => add(
            findings,
            "min_replicas",
            Severity::Warning,
            format!(
                "{has}: keyferry's link counts as one, so writes that depend on it end with NOREPLICAS when keyferry stops"
            ),
            "attach a replica, or set min-replicas-to-write to 0, before you stop keyferry",
        ),
        false => add(
            findings,
            "min_replicas",
            Severity::Info,
            match replica {
                true => format!("{has}; keyferry's link counts as one more"),
                false => has,
            },
            "set min-replicas-to-write at the target as well, where its writes are to be kept as safe",
        ),
    }
}

/// Whether the plan's switch can be taken back, and the old side be closed.
fn switch(job: &Job, around: &Surroundings, findings: &mut Vec<Finding>) {
    if job.cutover.hooks.switch_back.is_empty() {
        add(
            findings,
            "no_switch_back",
            Severity::Warning,
            "the plan names a switch hook but none that leads the clients back (cutover.hooks.switch_back): when the switch fails halfway, nobody knows where they are, and the cutover waits for a person to say it",
            "name a program in cutover.hooks.switch_back that points the clients to the source again, whatever the switch has done",
        );
    }
    let how = match (around.closes.users, around.closes.pause) {
        (true, _) => "by taking the right to write from its users (ACL SETUSER)",
        (false, true) => "by a pause of its writers (CLIENT PAUSE … WRITE)",
        (false, false) => {
            add(
                findings,
                "old_side",
                Severity::Warning,
                "the source lets us neither change its users (ACL SETUSER) nor pause its writers (CLIENT PAUSE … WRITE): after the switch it goes on taking writes of clients that have not moved, and they can only be listed",
                "give keyferry's user +acl|setuser or +client|pause there; or let the switch hook itself close the source (firewall, password, the provider's console)",
            );
            return;
        }
    };
    add(
        findings,
        "old_side",
        Severity::Info,
        format!("after the switch the source can be closed to writers {how}"),
        "nothing to do",
    );
}

/// What both sides together tell; `replica` as in [`source`].
pub fn both(job: &Job, source: &Facts, target: &Facts, replica: bool, findings: &mut Vec<Finding>) {
    let (ours, theirs) = (&source.surroundings, &target.surroundings);
    scripts(ours, theirs, findings);
    acl(job, ours, theirs, findings);
    events(source, target, replica, findings);
    functions(source, target, findings);
    eviction(source, target, findings);
    settings(source, target, findings);
    if ours.calls.wait > 0 {
        wait(ours, theirs, replica, findings);
    }
    if ours.tracking_clients > 0 && target.topology == "proxy" {
        add(
            findings,
            "client_tracking",
            Severity::Info,
            format!(
                "{} of the source keep caches of their own (CLIENT TRACKING); an endpoint in front of shards may not tell them what has changed",
                count(ours.tracking_clients, "client")
            ),
            "try such a client at the target before the cutover",
        );
    }
}

fn scripts(ours: &Surroundings, theirs: &Surroundings, findings: &mut Vec<Finding>) {
    if ours.calls.evalsha == 0 {
        return;
    }
    let held = |n: Option<u64>| n.map_or("unknown".to_owned(), |n| n.to_string());
    let lacks = theirs.cached_scripts < ours.cached_scripts.or(Some(1));
    add(
        findings,
        "script_cache",
        match lacks {
            true => Severity::Warning,
            false => Severity::Info,
        },
        format!(
            "the source's clients have called scripts by their digest (EVALSHA, SCRIPT LOAD: {}); scripts in the cache of the source: {}, of the target: {}; a copy does not bring them, and clients get NOSCRIPT",
            count(ours.calls.evalsha, "call"),
            held(ours.cached_scripts),
            held(theirs.cached_scripts)
        ),
        "see to it that the clients answer NOSCRIPT with EVAL, as most libraries do; or run SCRIPT LOAD for each script on every node of the target before the cutover",
    );
}

fn acl(job: &Job, ours: &Surroundings, theirs: &Surroundings, findings: &mut Vec<Finding>) {
    let Some(users) = &ours.users else { return };
    let logins = [job.source.endpoint(), Some(&job.target)];
    let own: Vec<String> = (logins.into_iter().flatten())
        .filter_map(|e| e.user().filter(|name| name != "default"))
        .collect();
    let own: Vec<&str> = own.iter().map(String::as_str).collect();
    let Some(known) = &theirs.users else {
        let nobody = users::Users::new();
        let mut names = users::compare(users, &nobody, &own).absent;
        names.retain(|name| name != "default");
        if !names.is_empty() {
            add(
                findings,
                "acl_users",
                Severity::Info,
                format!(
                    "the source has users that a copy does not bring: {}; the target does not tell its own",
                    listed(&names)
                ),
                "see to it that the target has them, with the same rights",
            );
        }
        return;
    };
    let lacking = users::compare(users, known, &own);
    let kinds = [
        (
            "acl_users",
            Severity::Warning,
            &lacking.absent,
            "the target lacks users of the source",
            "make them at the target (ACL SETUSER) before the cutover, or give the applications users that are there",
        ),
        (
            "acl_rules",
            Severity::Warning,
            &lacking.other_rules,
            "users have other rules at the target than at the source",
            "compare both with ACL GETUSER, and give them what the applications need",
        ),
        (
            "acl_passwords",
            Severity::Info,
            &lacking.other_passwords,
            "users have other passwords at the target than at the source",
            "have the switch hook give the applications those of the target as well",
        ),
    ];
    for (id, severity, names, what, fix) in kinds {
        if !names.is_empty() {
            let message = format!("{what}: {}", listed(names));
            add(findings, id, severity, message, fix);
        }
    }
}

/// The source sends notifications of keys that the target would not send.
fn events(source: &Facts, target: &Facts, replica: bool, findings: &mut Vec<Finding>) {
    let (Some(ours), Some(theirs)) = (&source.notifications, &target.notifications) else {
        return;
    };
    let mut has = kinds_of(theirs);
    if theirs.contains('A') {
        has.extend(MORE_EVENTS.chars());
    }
    let missing: String = kinds_of(ours).difference(&has).collect();
    if missing.is_empty() {
        return;
    }
    let heard = &source.surroundings.listeners;
    // In mode "scan" one of the patterns may be keyferry's own.
    let patterns = heard.patterns.saturating_sub(u64::from(!replica));
    let message = format!(
        "the target sends fewer keyspace notifications than the source (notify-keyspace-events {} instead of {}): {}",
        quoted(theirs),
        quoted(ours),
        match heard.channels.saturating_add(patterns) {
            0 => "nobody listens at the moment".to_owned(),
            _ => format!(
                "clients listen to {} of them and to {}",
                count(heard.channels, "channel"),
                count(patterns, "pattern")
            ),
        }
    );
    add(
        findings,
        "keyspace_events",
        match heard.channels.saturating_add(patterns) {
            0 => Severity::Info,
            _ => Severity::Warning,
        },
        message,
        format!(
            "set notify-keyspace-events to {} at the target before the cutover, if applications use them",
            quoted(ours)
        ),
    );
}

/// The letters of a notify-keyspace-events; without K or E nothing is sent.
fn kinds_of(flags: &str) -> BTreeSet<char> {
    if !flags.contains(['K', 'E']) {
        return BTreeSet::new();
    }
    let all = if flags.contains('A') { ALL_EVENTS } else { "" };
    flags
        .chars()
        .chain(all.chars())
        .filter(|c| *c != 'A')
        .collect()
}

fn functions(source: &Facts, target: &Facts, findings: &mut Vec<Finding>) {
    let Some(n) = source.functions.filter(|n| *n > 0) else {
        return;
    };
    let libraries = counted(n as u64, "library of functions", "libraries of functions");
    match target.functions {
        Some(_) => add(
            findings,
            "functions",
            Severity::Info,
            format!("{libraries} of the source will be moved as well"),
            "nothing to do",
        ),
        None => add(
            findings,
            "functions",
            Severity::Warning,
            format!(
                "the source has {libraries}, and {} has none, or does not let us see them: they are left out, and FCALL fails there",
                target.server
            ),
            "take a target that has functions (Redis 7.0, Valkey), and give keyferry's user +function there; or change the clients before the cutover",
        ),
    }
}

/// The source makes room for new keys, and the target would refuse them.
fn eviction(source: &Facts, target: &Facts, findings: &mut Vec<Finding>) {
    let (Some(ours), Some(theirs)) = (&source.eviction, &target.eviction) else {
        return;
    };
    if ours == "noeviction" || ours == theirs {
        return;
    }
    let limited = source.maxmemory.is_some_and(|max| max > 0);
    add(
        findings,
        "eviction_policy",
        match limited {
            true => Severity::Warning,
            false => Severity::Info,
        },
        match limited {
            true => format!(
                "the source removes keys when it is full (maxmemory-policy {ours}); the target has {theirs}"
            ),
            false => format!(
                "the source has maxmemory-policy {ours} but no maxmemory; the target has {theirs}"
            ),
        },
        format!(
            "set maxmemory-policy to {ours} at the target after the cutover, not before it: until then it must keep what arrives"
        ),
    );
}

fn settings(source: &Facts, target: &Facts, findings: &mut Vec<Finding>) {
    let (ours, theirs) = (&source.surroundings, &target.surroundings);
    let limit = |around: &Surroundings| around.number("timeout");
    if let (Some(before), Some(after)) = (limit(ours), limit(theirs))
        && after > 0
        && (before == 0 || after < before)
    {
        let before = match before {
            0 => "never".to_owned(),
            s => format!("after {s} s"),
        };
        add(
            findings,
            "idle_timeout",
            Severity::Warning,
            format!(
                "the target closes connections that are idle for {after} s (timeout); the source does so {before}"
            ),
            "set timeout at the target as at the source, or have the clients' pools check connections before they use them",
        );
    }
    if let (Some(now), Some(max)) = (source.clients, target.maxclients)
        && now > max
    {
        add(
            findings,
            "maxclients",
            Severity::Warning,
            format!(
                "the source has {now} clients now, and the target takes at most {max} (maxclients)"
            ),
            "raise maxclients at the target before the cutover",
        );
    }
    let number = |around: &Surroundings| around.number("databases");
    if let (Some(before), Some(after)) = (number(ours), number(theirs))
        && after < before
        && target.topology == "standalone"
    {
        add(
            findings,
            "databases_number",
            Severity::Info,
            format!(
                "the target has {after} databases and the source {before}, of which those up to {} hold keys",
                source.databases.keys().max().unwrap_or(&0)
            ),
            "set databases in the target's configuration file, if applications will use more",
        );
    }
    let others: Vec<String> = (ours.settings.iter())
        .filter(|(name, _)| !APART.contains(name))
        .filter_map(|(name, before)| {
            let after = theirs.settings.get(name).filter(|after| *after != before)?;
            Some(format!(
                "{name} is {before} at the source and {after} at the target"
            ))
        })
        .collect();
    if !others.is_empty() {
        add(
            findings,
            "settings",
            Severity::Info,
            format!(
                "settings differ that applications may notice: {}",
                others.join("; ")
            ),
            "set them at the target as at the source, where applications depend on them",
        );
    }
}

/// Clients ask how many replicas have their writes, and keyferry's link counts as one.
fn wait(ours: &Surroundings, theirs: &Surroundings, replica: bool, findings: &mut Vec<Finding>) {
    let calls = count(ours.calls.wait, "time");
    let (has, will) = (
        count(ours.replicas.online, "replica"),
        theirs.replicas.online,
    );
    let then = "after the cutover the target's own replicas count";
    match replica {
        true => add(
            findings,
            "wait",
            Severity::Warning,
            format!(
                "clients have called WAIT or WAITAOF {calls} at the source, which has {has} (the target has {will}): WAIT counts keyferry's link as a replica, though what it acknowledges is received and not yet safe"
            ),
            format!(
                "until the migration has ended, have clients wait for one replica more; {then}"
            ),
        ),
        false => add(
            findings,
            "wait",
            match theirs.replicas.online < ours.replicas.online {
                true => Severity::Warning,
                false => Severity::Info,
            },
            format!(
                "clients have called WAIT or WAITAOF {calls} at the source, which has {has}; the target has {will}"
            ),
            format!("{then}: attach as many as the clients wait for"),
        ),
    }
}

/// The highest database that holds keys is beyond those of the target.
pub fn beyond(highest: u32, target: &Facts, findings: &mut Vec<Finding>) {
    let has = match target.surroundings.number("databases") {
        Some(n) => format!("has {n}"),
        None => "refuses to select it".to_owned(),
    };
    add(
        findings,
        "databases_number",
        Severity::Warning,
        format!("keys go to database {highest}, and the target {has}"),
        "raise databases in the target's configuration file and restart it, or lead them elsewhere with databases.map",
    );
}

fn count(n: u64, what: &str) -> String {
    counted(n, what, &format!("{what}s"))
}

fn counted(n: u64, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

/// Some names, and how many more there are.
fn listed(names: &[String]) -> String {
    let mut text = (names.iter().take(TOLD))
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(", ");
    if names.len() > TOLD {
        text.push_str(&format!(" and {} more", names.len() - TOLD));
    }
    text
}

fn quoted(flags: &str) -> String {
    format!("\"{flags}\"")
}
