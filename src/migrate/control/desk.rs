//! The answering end: a migration answers cutovers, one connection each, and goes on as before when they have gone.
//!
//! Invariant: once the clients are being moved, nothing of the source is applied until somebody who knows says where
//! they are: the plan's own state, or the cutover on another machine that has begun to move them.

use crate::error::{Context, Error, ErrorKind, Result};
use crate::migrate::control::asker::NAME;
use crate::migrate::control::orders::{ASK_BYTES, Ask, Control, Mark, Order, Part, Said};
use crate::migrate::control::wire::Wire;
use crate::migrate::progress::Progress;
use crate::store::{Existing, SWEEPS, Stage, Store, stage_of};
use crate::task::{Shutdown, failpoint, socket};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// So much of a file is sent at a time.
const PART_BYTES: usize = 256 << 10;
/// The document that says which cutover on another machine has told the stage.
const TOLD_BY: &str = "cutover_told_by";

/// What is answered from: a migration that runs, or one that is held until it is known where the clients are.
#[derive(Clone)]
pub struct Desk {
    /// Its own state, and the plan's: another one where workers have shared the source out.
    pub dir: PathBuf,
    pub plan_dir: PathBuf,
    pub control: Arc<Control>,
    pub progress: Arc<Progress>,
    /// The source is read by SCAN.
    pub scan: bool,
    /// It moves nothing, and waits to be told on which side the clients are.
    pub held: bool,
    /// A number of this process's own.
    pub instance: u64,
    pub stop: Shutdown,
}

/// Answers until the run ends.
pub async fn serve(desk: Desk) -> Result<()> {
    // We hold the lock.
    let listener = socket::listen(&desk.dir, NAME).context(ErrorKind::Disk, || {
        format!("open a socket for cutovers in {}", desk.dir.display())
    })?;
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let (read, write) = stream.into_split();
        let (wire, desk) = (Wire::new(read, write, ASK_BYTES), desk.clone());
        tokio::spawn(async move { desk.attend(wire).await });
    }
}

impl Desk {
    /// The same of a migration that must not begin.
    pub fn held(&self) -> Desk {
        Desk {
            control: Arc::default(),
            progress: Arc::default(),
            held: true,
            ..self.clone()
        }
    }

    /// Answers one cutover until it goes away.
    pub async fn attend(&self, mut wire: Wire) {
        self.control.enter();
        let heard = self.converse(&mut wire).await;
        // Whoever asked has gone: nothing it wanted holds any more.
        if self.control.leave() {
            self.release().await;
        }
        if let Err(e) = heard {
            tracing::debug!("a cutover went away: {e}");
        }
    }

    /// On which side the clients are; as long as nobody knows, nothing is let through.
    pub fn stage(&self) -> Stage {
        stage_of(&self.dir, &self.plan_dir).unwrap_or(Stage::Switching)
    }

    /// Goes on as before. But a fence outlives whoever has put it up, once the clients are being moved.
    async fn release(&self) {
        let control = &self.control;
        control.forget();
        let mut said = false;
        while matches!(control.order(), Order::Fence(_)) && !control.attended() {
            match self.stage() {
                Stage::Source => break,
                Stage::Switching => {
                    if !std::mem::replace(&mut said, true) {
                        tracing::warn!(
                            "the cutover went away while it moved the clients: nothing of the source is applied until it is run again"
                        );
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Stage::Switched | Stage::Committed | Stage::RolledBack => {
                    self.stop.request();
                    return;
                }
            }
        }
        if !control.attended() {
            control.give(Ask::Follow, &self.stop);
        }
    }

    async fn converse(&self, wire: &mut Wire) -> std::io::Result<()> {
        let mut copies = Copies::default();
        while let Some(line) = wire.line().await? {
            let Ok(ask) = serde_json::from_slice::<Ask>(&line) else {
                return Ok(());
            };
            let said = match ask {
                Ask::Whose => Ok(Some(self.whose())),
                Ask::Stage { stage, by } => self.note_stage(stage, by).map(|()| None),
                Ask::Part { part, from } => copies.part(&self.dir, part, from).map(Some),
                Ask::Marks => self.marks().map(Some),
                _ => Ok(None),
            };
            // A fence outlives the wish to go on, once the clients are being moved.
            let keeps = matches!(ask, Ask::Follow | Ask::Drain | Ask::Record)
                && matches!(self.control.order(), Order::Fence(_))
                && self.stage() != Stage::Source;
            if !keeps {
                self.control.give(ask, &self.stop);
            }
            failpoint(point(ask));
            let mut answer = self.control.answer(ask, &self.progress, self.scan);
            match said {
                Ok(said) => answer.said = said,
                Err(e) => answer.refused = Some((e.chain(), e.remedy().to_owned())),
            }
            wire.send(&serde_json::to_vec(&answer)?).await?;
        }
        Ok(())
    }

    fn whose(&self) -> Said {
        let named = |dir: &Path| {
            let name = dir.file_name().unwrap_or_default();
            name.to_string_lossy().into_owned()
        };
        Said::Whose {
            plan: named(&self.plan_dir),
            name: named(&self.dir),
            instance: self.instance,
            held: self.held,
        }
    }

    /// Keeps what a cutover on another machine says. What one has begun, another one does not know the end of.
    fn note_stage(&self, stage: Stage, by: u64) -> Result<()> {
        let mut store = Store::open(&self.dir)?;
        let own = store.stage()?;
        let before = store.json(TOLD_BY)?.and_then(|v| v.as_u64());
        if own.is_fenced() && before != Some(by) {
            return Err(Error::new(
                ErrorKind::Refused,
                "another cutover, with a work folder of its own, was moving the clients of this migration or has moved them",
            )
            .hint("run the cutover with the --work-dir that it had then: only that knows where the clients are"));
        }
        if own != stage {
            store.put_json(TOLD_BY, &by.into())?;
            store.set_stage(stage)?;
        }
        Ok(())
    }

    fn marks(&self) -> Result<Said> {
        let Some(store) = Store::open_readonly(&self.dir)? else {
            return Ok(Said::Marks {
                shards: Vec::new(),
                sweeps: Value::Null,
            });
        };
        let shards = store.shards()?;
        Ok(Said::Marks {
            shards: shards.iter().map(Mark::of).collect(),
            sweeps: store.json(SWEEPS)?.unwrap_or_default(),
        })
    }
}

/// Where the tests have a migration die while it is asked.
fn point(ask: Ask) -> &'static str {
    match ask {
        Ask::Record => "control-record",
        Ask::Take => "control-take",
        Ask::Drain => "control-drain",
        Ask::Fence => "control-fence",
        Ask::Stage {
            stage: Stage::Switching,
            ..
        } => "control-switching",
        _ => "",
    }
}

/// What is being sent of a worker's files.
#[derive(Default)]
struct Copies {
    open: Option<(Part, File)>,
}

impl Copies {
    /// The bytes of a file from here on; from its beginning a new copy is made.
    fn part(&mut self, dir: &Path, part: Part, from: u64) -> Result<Said> {
        let failed = || format!("copy a file of {}", dir.display());
        if from == 0 {
            self.open = None;
            let file = match part {
                Part::State => {
                    let copy = tempfile::tempdir_in(dir).context(ErrorKind::Disk, failed)?;
                    if let Some(store) = Store::open_readonly(dir)? {
                        store.copy_to(copy.path())?;
                    }
                    // It lives on without a name.
                    File::open(copy.path().join("state.sqlite"))
                }
                Part::Existing => File::open(Existing::path(dir)),
                Part::Taken => File::open(Existing::taken_path(dir)),
            };
            self.open = match file {
                Ok(file) => Some((part, file)),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
                Err(e) => return Err(e).context(ErrorKind::Disk, failed),
            };
        }
        let mut bytes = vec![0; PART_BYTES];
        let len = match &self.open {
            Some((open, file)) if *open == part => {
                (file.read_at(&mut bytes, from)).context(ErrorKind::Disk, failed)?
            }
            _ => 0,
        };
        bytes.truncate(len);
        Ok(Said::Part {
            bytes: BASE64.encode(bytes),
            is_there: self.open.is_some(),
        })
    }
}
