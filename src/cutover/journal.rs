//! The record of a cutover: each step with its time, who ran it, and what was measured.

use crate::error::{Error, Result};
use crate::store::{CutoverStep, Store};
use crate::types::unix_ms;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Instant;

/// Told of every step when it begins and when it has ended.
pub type Tell = Arc<dyn Fn(&CutoverStep) + Send + Sync>;

/// The steps of one attempt.
///
/// They are written by a thread of their own: while writers wait, nobody waits for the disk. What must be durable
/// before something happens (on which side the clients are) is not written here.
pub struct Journal {
    attempt: u32,
    direction: &'static str,
    who: String,
    pub steps: Vec<CutoverStep>,
    tell: Tell,
    rows: Option<mpsc::Sender<Row>>,
    writer: Option<JoinHandle<()>>,
}

enum Row {
    Begun(CutoverStep),
    Ended(CutoverStep),
}

impl Journal {
    pub fn open(home: &Path, direction: &'static str, tell: Tell) -> Result<Journal> {
        let mut store = Store::open(home)?;
        let before = store.cutover_steps()?;
        let attempt = before.iter().map(|s| s.attempt).max().unwrap_or(0) + 1;
        let (rows, written) = mpsc::channel();
        let writer = std::thread::spawn(move || {
            let mut id = 0;
            for row in written {
                let saved = match row {
                    Row::Begun(step) => store.begin_step(&step).map(|n| id = n),
                    Row::Ended(step) => store.end_step(id, &step),
                };
                if let Err(e) = saved {
                    tracing::warn!("{e}");
                }
            }
        });
        Ok(Journal {
            attempt,
            direction,
            who: who(),
            steps: Vec::new(),
            tell,
            rows: Some(rows),
            writer: Some(writer),
        })
    }

    /// Runs a step and keeps how it went; `detail` says what of its result is worth keeping.
    pub async fn step<T>(
        &mut self,
        name: &str,
        work: impl Future<Output = Result<T>>,
        detail: impl FnOnce(&T) -> Value,
    ) -> Result<T> {
        let began = Instant::now();
        let mut step = CutoverStep {
            attempt: self.attempt,
            direction: self.direction.into(),
            step: name.into(),
            state: "running".into(),
            who: self.who.clone(),
            started_ms: unix_ms(),
            ended_ms: None,
            took_us: None,
            detail: Value::Null,
        };
        self.write(Row::Begun(step.clone()));
        (self.tell)(&step);
        let result = work.await;
        step.took_us = i64::try_from(began.elapsed().as_micros()).ok();
        step.ended_ms = Some(unix_ms());
        (step.state, step.detail) = match &result {
            Ok(value) => ("done".into(), detail(value)),
            Err(e) => ("refused".into(), json!({ "why": e.chain() })),
        };
        self.write(Row::Ended(step.clone()));
        (self.tell)(&step);
        self.steps.push(step);
        crate::task::failpoint(&format!("cutover-{name}"));
        result
    }

    fn write(&self, row: Row) {
        if let Some(rows) = &self.rows {
            let _ = rows.send(row);
        }
    }

    /// Microseconds that a step has taken.
    pub fn took_us(&self, name: &str) -> Option<i64> {
        self.steps.iter().rev().find(|s| s.step == name)?.took_us
    }

    /// Whether the step that was refused is one of these.
    pub fn refused_at(&self, steps: &[&str]) -> bool {
        let gate = self.steps.iter().rev().find(|s| s.state == "refused");
        gate.is_some_and(|gate| steps.contains(&gate.step.as_str()))
    }

    /// The last step that was refused, and why.
    pub fn refusal(&self, e: &Error) -> Value {
        let gate = self.steps.iter().rev().find(|s| s.state == "refused");
        json!({ "gate": gate.map(|s| s.step.clone()), "why": e.chain(), "hint": e.remedy() })
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.rows = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

fn who() -> String {
    let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME"));
    let host = rustix::system::uname();
    format!(
        "{}@{}",
        user.unwrap_or_else(|_| "unknown".into()),
        host.nodename().to_string_lossy()
    )
}
