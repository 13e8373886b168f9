//! The servers, lines and migration of a run; performs steps, brings all to rest, and compares.

use super::asked::Asked;
use super::form;
use super::judge::{difference, going_wrong};
use super::maker::{Able, Event, LIBRARY, Step, names};
use super::sender::{Row, Sender, Waiters};
use super::{Difference, moves};
use crate::support::cluster::Cluster;
use crate::support::compare::Rules;
use crate::support::far::{Far, Line};
use crate::support::keyferry::{Plan, Running};
use crate::support::rng::Rng;
use crate::support::server::{Server, Setup};
use crate::support::side::{Side, slot};
use crate::support::story::Endpoint;
use crate::support::wait_until;
use crate::support::wire::{Command, Value};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A catching up that is worth a line.
const SLOW: Duration = Duration::from_secs(8);
const LIMIT: Duration = Duration::from_secs(90);

pub struct World {
    pub(super) asked: Asked,
    pub(super) able: Able,
    pub(super) source: Endpoint,
    /// A replica of the source, where that is one server; a cluster has its own.
    pub(super) native: Option<Server>,
    pub(super) target: Endpoint,
    pub(super) lines: [Line; 2],
    pub(super) _proxies: Vec<Far>,
    pub(super) plan: Plan,
    pub(super) rules: Rules,
    pub(super) running: Option<Running>,
    /// It has been told to end, and then goes on.
    pub(super) stopping: bool,
    later: Vec<(Instant, Later)>,
    pub(super) moving: Option<JoinHandle<()>>,
    pub(super) sender: Sender,
    pub(super) waiters: Waiters,
    pub(super) excused: u64,
    pub(super) events: u64,
    /// How long it waited for the migration, and how long comparisons took.
    pub(super) waited: Duration,
    pub(super) compared: Duration,
}

/// What an event leaves to be done some time later.
#[derive(PartialEq)]
enum Later {
    Start,
    Continue,
    Speak(usize),
}

fn endpoint(name: &str, replicas: usize) -> Endpoint {
    match name.strip_suffix("-cluster") {
        Some(name) => Endpoint::Cluster(Cluster::with(&Setup::new(name), 3, replicas)),
        None => Endpoint::alone(Setup::new(name)),
    }
}

/// Proxies before every node, and the url and map of addresses for the plan.
fn behind(end: &Endpoint, line: &Line) -> (Vec<Far>, String, serde_json::Value) {
    let (proxies, map) = match end {
        Endpoint::Alone(server) => (
            vec![Far::with(&server.address(), line.clone())],
            serde_json::json!({}),
        ),
        Endpoint::Cluster(cluster) => Far::before(cluster.addresses(), line),
    };
    let url = proxies[0].url();
    (proxies, url, map)
}

impl World {
    pub fn start(asked: &Asked) -> World {
        let source = endpoint(&asked.source, 1);
        let target = endpoint(&asked.target, 0);
        let native = match &source {
            Endpoint::Alone(server) => Some(Setup::new(server.name()).replica_of(server).start()),
            Endpoint::Cluster(_) => None,
        };
        let (from, to) = (source.side(), target.side());
        let databases: Vec<u32> = match (source.is_cluster(), target.is_cluster()) {
            (false, false) => vec![0, 1, 2],
            // Database 1 is left out by the plan.
            (false, true) => vec![0, 1],
            _ => vec![0],
        };
        let mut without: Vec<String> = asked.without.split(',').map(str::to_owned).collect();
        if asked.source.starts_with("redis-6.2") {
            // Scripts make the build of this wheel crash.
            without.push("EVAL".to_owned());
        }
        let able = Able {
            commands: names_of(&from)
                .filter(|c| c != "vadd" || to.knows(c))
                .collect(),
            cluster: source.is_cluster(),
            without,
            fields: from.knows("hpexpire") && to.knows("hpexpire"),
            functions: from.knows("function") && to.knows("function"),
            databases: databases.clone(),
        };
        let lines = [Line::default(), Line::default()];
        let (mut proxies, from_url, from_map) = behind(&source, &lines[0]);
        let (more, to_url, to_map) = behind(&target, &lines[1]);
        proxies.extend(more);
        let mut plan = Plan::new(&from_url, &to_url);
        plan.set("/source/address_map", from_map);
        plan.set("/target/address_map", to_map);
        let mut compared: Vec<(u32, u32)> = databases.iter().map(|db| (*db, *db)).collect();
        if target.is_cluster() && !source.is_cluster() {
            plan.set("/databases", serde_json::json!({ "include": [0] }));
            compared = vec![(0, 0)];
        }
        let rules = form::set(&mut plan, &asked.plan, &compared);
        let sender = Sender::open(&source.url(), source.is_cluster()).expect("the source answers");
        let waiters = Waiters::start(&source.url(), source.is_cluster());
        let mut world = World {
            asked: asked.clone(),
            able,
            source,
            native,
            target,
            lines,
            _proxies: proxies,
            plan,
            rules,
            running: None,
            stopping: false,
            later: Vec::new(),
            moving: None,
            sender,
            waiters,
            excused: 0,
            events: 0,
            waited: Duration::ZERO,
            compared: Duration::ZERO,
        };
        world.prepare();
        world
    }

    /// What is there before anything is written.
    fn prepare(&mut self) {
        if self.able.functions {
            let load = Command::new("FUNCTION LOAD REPLACE").arg(LIBRARY);
            for node in self.sender.side().nodes() {
                node.expect(&load).expect("a library");
            }
        }
        if form::has_own(&self.asked.plan) {
            let mut side = self.target.side();
            for (_, db) in &self.rules.databases {
                if !side.is_cluster() {
                    side.everywhere(&format!("SELECT {db}"))
                        .expect("a database");
                }
                for name in form::own() {
                    let set = Command::new("SET").key(&name).arg(own_value(&name));
                    side.run(&set).expect("a key of its own");
                }
            }
        }
    }

    pub fn able(&self) -> &Able {
        &self.able
    }

    /// Slots that can move, where the source is a cluster.
    pub fn slots(&self) -> Vec<u16> {
        match self.able.cluster {
            true => names().iter().map(|n| slot(n.as_bytes())).collect(),
            false => Vec::new(),
        }
    }

    /// Payloads of some of the source's keys.
    pub fn dumps(&mut self, rng: &mut Rng) -> Vec<Vec<u8>> {
        let names = names();
        let mut found = Vec::new();
        for _ in 0..30 {
            let db = self.able.databases[rng.below(self.able.databases.len() as u64) as usize];
            let key = &names[rng.below(names.len() as u64) as usize];
            if key.contains('p') {
                continue;
            }
            let dump = Command::new("DUMP").key(key);
            let there = self
                .sender
                .select(db)
                .and_then(|()| self.sender.side().run(&dump));
            if let Ok(Value::Bulk(payload)) = there {
                found.push(payload);
            }
        }
        found
    }

    /// The migration starts, or goes on.
    pub fn begin(&mut self) {
        self.later.retain(|(_, later)| *later != Later::Start);
        self.running = Some(self.plan.start("migrate --json"));
        self.stopping = false;
    }

    /// Performs steps in their order; what stands between two events is pipelined.
    pub fn perform(&mut self, steps: &[Step]) -> Result<(), Difference> {
        let mut rows = Vec::new();
        for step in steps {
            match step {
                Step::Run { db, key, commands } => {
                    rows.push(Row {
                        db: *db,
                        key,
                        commands,
                    });
                    if self.asked.slow {
                        let sent = self.send(&mut rows);
                        sent.map_err(|d| going_wrong(format!("{step}: {d}")))?;
                    }
                    continue;
                }
                Step::Wait { db, key, command } => {
                    // Beyond some they would only stand in line.
                    if self.waiters.under_way() < 4 {
                        self.send(&mut rows)?;
                        self.waiters.wait(*db, key, command);
                    }
                }
                Step::Pause(ms) => {
                    self.send(&mut rows)?;
                    std::thread::sleep(Duration::from_millis(*ms));
                }
                Step::Event(event) => {
                    self.send(&mut rows)?;
                    match event {
                        Event::Rest => self.settle()?,
                        event => self.happen(*event),
                    }
                }
            }
            self.tick()?;
        }
        self.send(&mut rows)?;
        self.tick()
    }

    fn send(&mut self, rows: &mut Vec<Row<'_>>) -> Result<(), Difference> {
        let sent = self.sender.send(rows);
        rows.clear();
        sent.map_err(|error| {
            let logs: Vec<String> = self.source.nodes().iter().map(Server::log).collect();
            let crash = logs.iter().find_map(|l| l.split_once("BUG REPORT START"));
            let crash: String = crash.map_or(String::new(), |(_, text)| {
                text.chars().take(3_000).collect()
            });
            going_wrong(format!("the source does not answer: {error} {crash}"))
        })
    }

    fn happen(&mut self, event: Event) {
        self.events += 1;
        let after = |ms| Instant::now() + Duration::from_millis(ms);
        match event {
            Event::Begin if self.running.is_none() => self.begin(),
            Event::Begin | Event::Rest => {}
            Event::Kill(ms) => {
                (self.running, self.stopping) = (None, false);
                self.later.push((after(ms), Later::Start));
            }
            Event::Stop => {
                if let Some(running) = &self.running {
                    running.interrupt();
                    self.stopping = true;
                }
            }
            Event::Freeze(ms) => {
                if let Some(running) = &self.running {
                    running.signal("STOP");
                    self.later.push((after(ms), Later::Continue));
                }
            }
            Event::SourceSilent(ms) => self.silence(0, after(ms)),
            Event::TargetSilent(ms) => self.silence(1, after(ms)),
            Event::SourceCut => self.lines[0].cut(),
            Event::TargetCut => self.lines[1].cut(),
            Event::Delay(ms) => {
                for line in &self.lines {
                    line.delay(Duration::from_millis(ms));
                }
            }
            Event::MoveSlot(slot) => {
                self.end_move();
                let urls: Vec<String> = self.source.nodes().iter().map(Server::url).collect();
                self.moving = Some(std::thread::spawn(move || moves::move_slot(&urls, slot)));
            }
        }
    }

    fn silence(&mut self, line: usize, until: Instant) {
        self.lines[line].silence(true);
        self.later.push((until, Later::Speak(line)));
    }

    fn end_move(&mut self) {
        if let Some(moving) = self.moving.take() {
            moving.join().expect("the slot moves");
        }
    }

    /// Does what is due, and looks whether the migration still runs.
    fn tick(&mut self) -> Result<(), Difference> {
        let now = Instant::now();
        self.do_later(|due| due <= now);
        let Some(running) = &mut self.running else {
            return Ok(());
        };
        match running.ended() {
            None => Ok(()),
            // One that had just begun is ended by the signal itself.
            Some(code) if self.stopping && matches!(code.code(), Some(130) | None) => {
                self.begin();
                Ok(())
            }
            // A line that is cut while it looks at both sides for the first time ends it: it is begun again, as the exit
            // code and the hint say.
            Some(code) if code.code() == Some(3) && self.cut_at_its_start() => {
                self.begin();
                Ok(())
            }
            Some(code) => Err(self.ended(&code.to_string())),
        }
    }

    /// Whether a run has ended before it had begun to move anything, for want of a connection.
    fn cut_at_its_start(&self) -> bool {
        let said = (self.running.as_ref()).map_or_else(String::new, Running::stderr_now);
        let mut lines = said.lines().filter(|line| !line.contains(" WARN "));
        lines
            .next()
            .is_some_and(|first| first.starts_with("error: ") && first.contains("connect"))
    }

    fn ended(&self, code: &str) -> Difference {
        let said = self.running.as_ref().map(Running::stderr_now);
        going_wrong(format!(
            "keyferry ended by itself ({code}): {}",
            said.unwrap_or_default()
        ))
    }

    fn do_later(&mut self, due: impl Fn(Instant) -> bool) {
        let (now, later) = std::mem::take(&mut self.later)
            .into_iter()
            .partition(|(at, _)| due(*at));
        self.later = later;
        for (_, what) in now {
            match what {
                Later::Start => self.begin(),
                Later::Continue => {
                    if let Some(running) = &self.running {
                        running.signal("CONT");
                    }
                }
                Later::Speak(line) => self.lines[line].silence(false),
            }
        }
    }

    /// Lets everything come to its end, and compares.
    pub fn rest(&mut self) -> Result<(), Difference> {
        let began = Instant::now();
        self.settle()?;
        self.waited += began.elapsed();
        if self.asked.spoil {
            let mut target = self.target.side();
            target
                .run(&Command::new("SET").key("{a}s0").arg("spoilt"))
                .expect("a key");
        }
        let began = Instant::now();
        let found = self.differences(4)?;
        self.compared += began.elapsed();
        match found.is_empty() {
            true => Ok(()),
            false => Err(difference(&found)),
        }
    }

    /// Waits until nobody writes, and all that was written is applied.
    fn settle(&mut self) -> Result<(), Difference> {
        wait_until("the waiting clients end", LIMIT, || {
            self.waiters.under_way() == 0
        });
        self.end_move();
        self.do_later(|_| true);
        for line in &self.lines {
            line.delay(Duration::ZERO);
        }
        let began = Instant::now();
        while self.stopping && began.elapsed() < LIMIT {
            self.tick()?;
            std::thread::sleep(Duration::from_millis(20));
        }
        if self.stopping {
            return Err(going_wrong(format!(
                "Ctrl-C does not end it within {LIMIT:?}"
            )));
        }
        if self.running.is_none() {
            self.begin();
        }
        // A status may be older than the last write: only the servers know how far it has to come.
        let masters = self.sender.side().nodes().iter_mut();
        let written: u64 = masters
            .filter_map(|n| {
                n.info("replication", "master_repl_offset")
                    .ok()?
                    .parse::<u64>()
                    .ok()
            })
            .sum();
        let running = self.running.as_mut().expect("it runs");
        let plan = &self.plan;
        let began = Instant::now();
        let caught_up = catch_unwind(AssertUnwindSafe(|| {
            plan.wait_status(running, "caught up", LIMIT, |status| {
                let applied = status["stream"]["applied_offset"].as_u64();
                status["snapshot"]["done"] == true && applied >= Some(written)
            });
        }));
        if began.elapsed() > SLOW {
            println!("it took {:?} to catch up with {written}", began.elapsed());
        }
        caught_up.map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
            going_wrong(format!("it does not catch up: {text}"))
        })
    }

    /// Everything anew on the same servers: no keys, no saved state.
    pub fn anew(&mut self) {
        self.end_move();
        self.do_later(|_| true);
        (self.running, self.stopping) = (None, false);
        for line in &self.lines {
            line.delay(Duration::ZERO);
        }
        for end in [&mut self.source, &mut self.target] {
            end.revive();
            for node in end.side().nodes() {
                node.words("FLUSHALL").expect("it is emptied");
            }
        }
        let (url, cluster) = (self.source.url(), self.source.is_cluster());
        self.sender = Sender::open(&url, cluster).expect("the source answers");
        let _ = std::fs::remove_dir_all(self.plan.work_dir());
        self.prepare();
    }

    /// Performs a list on empty servers; what differs then. A migration that still runs is taken as it is, if `warm`:
    /// that saves its start, but nothing is in its snapshot then.
    pub fn perform_all(&mut self, steps: &[Step], warm: bool) -> Option<Difference> {
        let runs = self.running.as_mut().is_some_and(|r| r.ended().is_none());
        let begins = steps.iter().any(|s| matches!(s, Step::Event(Event::Begin)));
        let mut clean = false;
        if warm && runs {
            for node in self.source.side().nodes() {
                node.words("FLUSHALL").expect("it is emptied");
            }
            // What the last list has left over there must not be taken for this one's.
            clean = self.settle().is_ok() && self.differences(1).is_ok_and(|d| d.is_empty());
        }
        let mut emptied = Ok(());
        if !clean {
            self.anew();
            if warm || !begins {
                emptied = self.settle();
            }
        }
        if let Err(difference) = emptied {
            println!("it could not be begun again: {difference}");
            return None;
        }
        let done = steps
            .chunks(200)
            .try_for_each(|chunk| self.perform(chunk))
            .and_then(|()| self.settle());
        if let Err(difference) = done {
            return Some(difference);
        }
        match self.differences(2) {
            Ok(found) if found.is_empty() => None,
            Ok(found) => Some(difference(&found)),
            Err(difference) => Some(difference),
        }
    }

    /// What was sent and what happened, in one line.
    pub fn account(&self) -> String {
        let counted = &self.sender.counted;
        let (errors, all) =
            (counted.values()).fold((0, 0), |(e, a), (errors, of)| (e + errors, a + of));
        if std::env::var_os("KEYFERRY_FUZZ_COUNTS").is_some() {
            println!("{counted:#?}");
        }
        format!(
            "{all} commands ({errors} refused), {} events, {} excused; {:.1} s waited, {:.1} s compared",
            self.events,
            self.excused,
            self.waited.as_secs_f64(),
            self.compared.as_secs_f64()
        )
    }
}

fn names_of(side: &Side) -> impl Iterator<Item = String> {
    side.commands().cloned().collect::<Vec<_>>().into_iter()
}

pub(super) fn own_value(name: &str) -> String {
    format!("own:{name}")
}
