//! One source shard from its state to its end: begin or go on, start the link and the loop, begin anew if need be.

use crate::error::{Context, Error, ErrorKind, Result};
use crate::migrate::apply::apply_loop::{ApplyLoop, Beginning, Ended};
use crate::migrate::context::{ShardContext, Shared};
use crate::migrate::expiry::filter::MaybeTimed;
use crate::migrate::expiry::guard::ExpiryGuard;
use crate::migrate::expiry::held::Held;
use crate::migrate::load::loaded_keys::LoadedKeys;
use crate::migrate::load::loss_guard;
use crate::migrate::progress::ShardProgress;
use crate::migrate::scan::sweep;
use crate::migrate::stream::position::window_after;
use crate::net::Backoff;
use crate::net::server::Server;
use crate::plan::{OnExisting, RdbPath, Source};
use crate::source::handshake::Start;
use crate::source::place::Place;
use crate::source::psync::{self, Link};
use crate::source::spool::{End, Spool, SpoolWriter};
use crate::source::{aof, files, unpack};
use crate::store::{ShardState, Store};
use crate::target::topology::Topology;
use crate::target::{KnownDatabases, Pipe, PipeOptions};
use crate::task::event_loop::EventLoop;
use crate::task::{Shutdown, private_dir};
use crate::types::{ReplId, ReplOffset};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// What one source shard's link and loop need.
pub(crate) struct Runner {
    pub shared: Arc<Shared>,
    pub topology: Topology,
    pub target: Server,
    pub dir: PathBuf,
    pub view: Arc<ShardProgress>,
    /// Where the master is; none for a file.
    pub place: Option<Arc<Place>>,
    /// Asked for when the run stops, or when this shard has nothing more to bring.
    pub stop: Shutdown,
}

impl Runner {
    pub async fn run(&self, mut shard: ShardState) -> Result<()> {
        let mut first = true;
        let (mut cuts, mut backoff) = (0, Backoff::dear());
        loop {
            let limit = self.shared.job.limits.spool_bytes;
            let spool_limit = match limit {
                Some(limit) => limit,
                None => room(&self.dir)?,
            } / self.shared.pace.shards as u64;
            let spool = Spool::open(&self.dir, spool_limit)?;
            let events = EventLoop::start()?;
            let arriving = spool.clone();
            let ended = match &self.shared.job.source {
                Source::Rdb { path } => self.file(&events, &mut shard, spool, path).await?,
                Source::Server { .. } if self.shared.run.scan => {
                    let place = self.place.clone();
                    self.apply(&events, shard.clone(), spool, place, ReplOffset(0))
                        .await?
                }
                Source::Server { .. } => self.replica(&events, &mut shard, spool, first).await?,
            };
            first = false;
            if ended != Ended::Superseded || self.stop.requested() {
                return Ok(());
            }
            shard = (self.shared.store(|s| s.shards())?.into_iter())
                .find(|s| s.shard == shard.shard)
                .unwrap_or(shard);
            // The next round asks for a full sync, over what the target already holds.
            let cut = !shard.snapshot_loaded && !arriving.snapshot().2;
            cuts += u32::from(cut);
            shard.note = cut_while_arriving(cuts);
            let why = match cut {
                true if shard.note.is_empty() => {
                    "cut the link while its snapshot was arriving".to_owned()
                }
                true => format!("still does not send its snapshot: {}", shard.note),
                false => "no longer holds our offset".to_owned(),
            };
            let begins = format!("{} {why}: a new full sync begins", shard.address);
            self.shared.event("warning", "full_resync", &begins);
            shard.replid = None;
            shard.applied = None;
            if cut {
                // Each attempt costs the source a snapshot.
                self.stop.sleep(backoff.next()).await;
            }
        }
    }

    /// A snapshot file: no link, no stream.
    async fn file(
        &self,
        events: &EventLoop,
        shard: &mut ShardState,
        spool: Arc<Spool>,
        path: &RdbPath,
    ) -> Result<Ended> {
        let files = files::named(path)?;
        let mut parts = files::parts(&files)?;
        if *path != RdbPath::Stdin {
            let resumes = shard.snapshot_complete;
            self.shared
                .store(|s| same_files(s, &files, &parts, resumes))?;
        }
        if parts.len() > 1 {
            return self.several(events, shard, spool, parts).await;
        }
        let parts = parts.pop().unwrap_or_default();
        if !parts.commands.is_empty() && shard.snapshot_loaded && !shard.clean {
            // Which commands have run is not known, and a file cannot be asked: everything is loaded again.
            self.shared.event(
                "warning",
                "reload",
                "the run before ended inside the commands of the append-only file: it is loaded from its beginning",
            );
            *shard = ShardState {
                reconcile: true,
                ..ShardState::new(shard.shard, shard.address.clone(), shard.slots.clone())
            };
        }
        if !parts.commands.is_empty() {
            // An earlier run may have been stopped while it copied: the copy is made anew.
            spool.wipe()?;
        }
        let unpacked = shard.snapshot_complete && spool.snapshot().0 > 0;
        if !shard.snapshot_loaded && !unpacked {
            match (&parts.snapshot, path) {
                (Some(file), _) if !parts.packed => {
                    spool.use_files(std::slice::from_ref(file), !parts.commands.is_empty())?
                }
                (None, RdbPath::Files(_)) => shard.snapshot_loaded = true,
                (unpack, _) => {
                    let (mut writer, unpack) = (SpoolWriter::new(spool.clone()), unpack.clone());
                    tokio::task::spawn_blocking(move || {
                        unpack_into(&mut writer, unpack.as_deref())
                    })
                    .await
                    .map_err(|e| Error::new(ErrorKind::Bug, "read the snapshot").cause(e))??;
                }
            }
        } else {
            spool.adopt_snapshot();
        }
        shard.snapshot_complete = true;
        if !parts.commands.is_empty() {
            let mut writer = SpoolWriter::new(spool.clone());
            let left_out =
                tokio::task::spawn_blocking(move || aof::spool_commands(&parts, &mut writer))
                    .await
                    .map_err(|e| Error::new(ErrorKind::Bug, "read the commands").cause(e))??;
            if left_out > 0 {
                self.shared.event(
                    "warning",
                    "aof_tail",
                    &format!("the append-only file ends inside a command or transaction: its last {left_out} bytes are left out, as a server would"),
                );
            }
            spool.end(End::Finished);
        }
        self.apply(events, shard.clone(), spool, None, ReplOffset(0))
            .await
    }

    /// Several snapshot files, one behind the other; packed ones are unpacked into the spool first.
    async fn several(
        &self,
        events: &EventLoop,
        shard: &mut ShardState,
        spool: Arc<Spool>,
        parts: Vec<aof::Parts>,
    ) -> Result<Ended> {
        if !shard.snapshot_loaded {
            let (spool, stop) = (spool.clone(), self.stop.clone());
            tokio::task::spawn_blocking(move || {
                let mut paths = Vec::new();
                for (n, part) in parts.into_iter().enumerate() {
                    if stop.requested() {
                        return Ok(());
                    }
                    paths.extend(match (part.snapshot, part.packed) {
                        (Some(file), true) => Some(spool.unpack(n, &file)?),
                        (file, _) => file,
                    });
                }
                spool.use_files(&paths, false)
            })
            .await
            .map_err(|e| Error::new(ErrorKind::Bug, "unpack the snapshots").cause(e))??;
            if self.stop.requested() {
                return Ok(Ended::Stopped);
            }
        }
        shard.snapshot_complete = true;
        self.apply(events, shard.clone(), spool, None, ReplOffset(0))
            .await
    }

    async fn replica(
        &self,
        events: &EventLoop,
        shard: &mut ShardState,
        spool: Arc<Spool>,
        first: bool,
    ) -> Result<Ended> {
        let place = (self.place.clone())
            .ok_or_else(|| Error::new(ErrorKind::Bug, "a source without a place"))?;
        shard.address = place.address();
        let resume = self.resume_point(shard, &spool);
        let (driver, at, address) = (events.clone(), place.clone(), shard.address.clone());
        let stop = self.stop.clone();
        let begin = move || driver.drive(psync::start(at.endpoint(), &address, resume, &stop));
        let begun = tokio::task::spawn_blocking(begin)
            .await
            .map_err(panicked)?
            .map_err(|e| e.context(format!("replicate from {}", shard.address)))?;
        let Some((conn, start)) = begun else {
            return Ok(Ended::Stopped);
        };
        let replid = match &start {
            Start::Full { replid, offset } => {
                // The counters may not have been saved before a kill; that an attempt began, has been.
                let again = shard.snapshot_offset.is_some() || shard.reconcile;
                if again {
                    self.note_resync(shard)?;
                }
                let (address, slots) = (shard.address.clone(), shard.slots.clone());
                let note = std::mem::take(&mut shard.note);
                *shard = ShardState::new(shard.shard, address, slots);
                shard.note = note;
                // Keys of the attempt before may be gone at the source by now.
                shard.reconcile = again || self.shared.job.on_existing == OnExisting::Reconcile;
                shard.replid = Some(*replid);
                shard.snapshot_offset = Some(*offset);
                shard.applied = Some(*offset);
                spool.wipe()?;
                spool.start_stream(*offset);
                *replid
            }
            Start::Continue { replid } => {
                let known = shard.replid.ok_or_else(|| {
                    Error::new(ErrorKind::Bug, "+CONTINUE without having asked for it")
                })?;
                if replid.is_some_and(|new| new != known) {
                    self.shared.event(
                        "warning",
                        "source_failed_over",
                        "another server has become the source's master while no migration ran: states that were read of the old one right before may hold writes that went with it; `keyferry verify --repair` finds and mends such keys",
                    );
                }
                shard.replid = Some(replid.unwrap_or(known));
                if shard.snapshot_complete && !shard.snapshot_loaded {
                    spool.adopt_snapshot();
                }
                spool.set_behind(shard.updated_at);
                replid.unwrap_or(known)
            }
        };
        if first {
            loss_guard::accept(&self.shared, shard.shard)?;
        }
        let window_end = window_after(shard, spool.stream_end());
        self.shared
            .store(|s| s.save_shards(std::slice::from_ref(shard), &BTreeMap::new(), None))?;
        spool.set_replid(replid);

        let link = Link {
            place: place.clone(),
            spool: spool.clone(),
            patience: self.shared.run.patience,
        };
        let stop = self.stop.clone();
        let follow = events.spawn(async move { link.follow(conn, start, &stop).await });
        // The loop has to load, or waits for what the link brings.
        events.press();
        let applied = self
            .apply(
                events,
                shard.clone(),
                spool.clone(),
                Some(place),
                window_end,
            )
            .await;
        if applied.is_err() {
            self.stop.request();
        }
        let linked = follow.await.map_err(panicked)?;
        let ended = applied?;
        linked?;
        Ok(ended)
    }

    /// A full sync begins over what the target holds already: what it held, and of which source, is looked at later.
    fn note_resync(&self, shard: &ShardState) -> Result<()> {
        let saved = self.shared.store(|s| s.shards())?;
        let before = saved.iter().find(|s| s.shard == shard.shard);
        loss_guard::begin(&self.shared, before.unwrap_or(shard))
    }

    /// The history and offset to go on from, if the spool and the state allow it.
    fn resume_point(&self, shard: &ShardState, spool: &Spool) -> Option<(ReplId, ReplOffset)> {
        let (replid, applied) = (shard.replid?, shard.applied?);
        if !shard.snapshot_loaded {
            let whole = shard.snapshot_complete
                && std::fs::metadata(spool.snapshot_path())
                    .is_ok_and(|m| m.len() == shard.snapshot_len);
            if !whole {
                return None;
            }
        }
        let covered = spool.stream_start() <= applied && applied <= spool.stream_end();
        if !covered || spool.stream_end() == ReplOffset(0) {
            // No stream on disk yet, or it was removed: go on right at the mark.
            spool.start_stream(applied);
        }
        Some((replid, spool.stream_end()))
    }

    async fn apply(
        &self,
        events: &EventLoop,
        mut shard: ShardState,
        spool: Arc<Spool>,
        place: Option<Arc<Place>>,
        window_end: ReplOffset,
    ) -> Result<Ended> {
        // From here on the target may hold more than the state says: a kill before the first checkpoint has to leave a
        // window, and a state that says whose the target's keys are.
        shard.clean = false;
        (self.shared)
            .store(|s| s.save_shards(std::slice::from_ref(&shard), &BTreeMap::new(), None))?;
        let (shared, events) = (self.shared.clone(), events.clone());
        let (limits, shards) = (&shared.job.limits, shared.pace.shards);
        let only_zero = self.topology.one_database;
        let options = PipeOptions {
            budget: (limits.in_flight() / shards).max(1 << 20),
            fixed_db: only_zero,
            dry_run: shared.run.dry_run,
        };
        let (topology, view, format) = (
            self.topology.clone(),
            self.view.clone(),
            self.target.payload_target(),
        );
        let held = Held::open(&self.dir);
        // A file that is commands alone has nothing to load, and may be at its very beginning all the same.
        let begun = (shard.snapshot_loaded && shard.applied.is_some()) || shard.snapshot_at > 0;
        let timed = MaybeTimed::open(&self.dir, begun, limits.timed() / shards);
        let loaded = LoadedKeys::open(&self.dir, begun);
        view.keys_read.store(shard.keys_read, Relaxed);
        view.keys_written.store(shard.keys_written, Relaxed);
        let work = tokio::task::spawn_blocking(move || {
            let pipe = Pipe::new(shared.job.target.clone(), topology, events.clone(), options);
            let scan = shared.run.scan;
            let (id, address) = (shard.shard, shard.address.clone());
            let ctx = Rc::new(ShardContext::new(shared, spool, view, id, address));
            let (asks, behind) = (place.is_some(), shard.snapshot_loaded);
            let expiry = ExpiryGuard::new(ctx.clone(), held, timed, asks, behind);
            let begin = Beginning {
                shard,
                events,
                pipe,
                databases: KnownDatabases::new(only_zero),
                format,
                place,
                window_end,
                loaded,
            };
            let mut apply = ApplyLoop::new(ctx, begin, expiry);
            match scan {
                true => apply.run(sweep::run),
                false => apply.run(ApplyLoop::run_phases),
            }
        });
        work.await
            .map_err(|e| Error::new(ErrorKind::Bug, "the shard's loop panicked").cause(e))?
    }
}

/// Where the names and sizes of the files are kept.
const FILES: &str = "files";

/// Remembers the files; a run that resumes, whose position counts through all of them, must find the same ones.
///
/// An append-only file may have grown.
fn same_files(
    store: &mut Store,
    files: &[PathBuf],
    parts: &[aof::Parts],
    resumes: bool,
) -> Result<()> {
    let mut now = Vec::new();
    for (file, part) in files.iter().zip(parts) {
        let meta = std::fs::metadata(file).context(ErrorKind::Disk, || {
            format!("open the snapshot {}", file.display())
        })?;
        let len = (part.commands.is_empty() && meta.is_file()).then_some(meta.len());
        now.push(serde_json::json!([file.to_string_lossy(), len]));
    }
    let now = serde_json::Value::from(now);
    let same = match store.json(FILES)? {
        Some(before) => before == now,
        // An older keyferry did not remember a single file.
        None => files.len() == 1,
    };
    if resumes && !same {
        return Err(Error::new(
            ErrorKind::State,
            "the snapshot files are not those that this migration began with (other names, or other sizes)",
        )
        .hint("put the same files back, or begin anew with `keyferry migrate --fresh`"));
    }
    store.put_json(FILES, &now)
}

/// What to do about a source that has cut the link so often before its snapshot was complete; nothing the first time.
fn cut_while_arriving(cuts: u32) -> String {
    if cuts < 2 {
        return String::new();
    }
    format!(
        "the source has cut the link {cuts} times while its snapshot was arriving; its log says why: a replica buffer that is too small (client-output-buffer-limit), no memory for the fork (BGSAVE), or a key that it cannot save, as a hash without fields of Valkey 9.1 (HLEN 0): delete that key there; or a path hash of Valkey 9.2, which only source.mode \"scan\" reads"
    )
}

fn panicked(e: tokio::task::JoinError) -> Error {
    Error::new(ErrorKind::Bug, "the replication link panicked").cause(e)
}

/// What a spool may take by default: most of what is free on its disk.
fn room(dir: &Path) -> Result<u64> {
    private_dir(dir)?;
    let stat = rustix::fs::statvfs(dir)
        .map_err(std::io::Error::from)
        .context(ErrorKind::Disk, || {
            format!("ask for the free space of {}", dir.display())
        })?;
    Ok((stat.f_bavail.saturating_mul(stat.f_frsize) / 10 * 8).max(64 << 20))
}

/// Copies a compressed file, or standard input, into the spool.
fn unpack_into(writer: &mut SpoolWriter, file: Option<&Path>) -> Result<()> {
    let failed = || match file {
        Some(file) => format!("unpack {}", file.display()),
        None => "read standard input".into(),
    };
    let input: Box<dyn Read> = match file {
        Some(file) => Box::new(std::fs::File::open(file).context(ErrorKind::Disk, failed)?),
        None => Box::new(std::io::stdin().lock()),
    };
    let mut input = unpack::unpacked(input).map_err(|e| e.context(failed()))?;
    let mut buf = vec![0u8; 1 << 20];
    loop {
        let n = input.read(&mut buf).context(ErrorKind::Disk, failed)?;
        if n == 0 {
            return writer.finish_snapshot()();
        }
        writer.append_snapshot(buf.get(..n).unwrap_or_default())?;
    }
}
