//! The guard as the cutover sees it: started, given orders, asked to end.

use crate::cutover::guard::{Order, Said, Setup};
use crate::cutover::side::Foretold;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::FreezeWay;
use serde_json::{Value, json};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};

/// How long a guard may take to answer, beyond the pause.
const ANSWER: Duration = Duration::from_secs(40);

/// A guard as the cutover sees it.
pub struct Handle {
    child: Child,
    /// Closed, it lets the writers go.
    orders: Option<ChildStdin>,
    answers: Lines<BufReader<ChildStdout>>,
    /// The number of the last order: somebody may not have waited for the answer to an earlier one.
    number: u64,
    /// The longest that an order may take.
    patience: Duration,
}

impl Handle {
    pub async fn start(setup: &Setup, max_pause_ms: u64) -> Result<Handle> {
        let failed = |e: std::io::Error| Error::new(ErrorKind::Bug, "start the guard").cause(e);
        let program = std::env::current_exe().map_err(failed)?;
        let mut child = tokio::process::Command::new(program)
            .arg("cutover-guard")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C is for the cutover, which tells the guard.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let (Some(orders), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Error::new(ErrorKind::Bug, "a guard without pipes"));
        };
        let mut handle = Handle {
            child,
            orders: Some(orders),
            answers: BufReader::new(answers).lines(),
            number: 0,
            patience: ANSWER + Duration::from_millis(max_pause_ms),
        };
        let setup = serde_json::to_value(setup)
            .map_err(|e| Error::new(ErrorKind::Bug, "write the guard's setup").cause(e))?;
        handle.send(&setup).await?;
        handle.answer().await?;
        Ok(handle)
    }

    async fn send(&mut self, value: &Value) -> Result<()> {
        let line = format!("{value}\n");
        let orders = self.orders.as_mut().ok_or_else(gone)?;
        orders
            .write_all(line.as_bytes())
            .await
            .map_err(|e| gone().cause(e))
    }

    /// The answer to the last order; those to earlier ones are passed over.
    async fn answer(&mut self) -> Result<Value> {
        let said = loop {
            let line = (self.answers.next_line().await).map_err(|e| gone().cause(e))?;
            let (number, said): (u64, Said) = serde_json::from_str(&line.ok_or_else(gone)?)
                .map_err(|e| Error::new(ErrorKind::Bug, "the guard is not understood").cause(e))?;
            if number == self.number {
                break said;
            }
        };
        match said {
            Said::Done(detail) => Ok(detail),
            Said::Refused { why, hint, unknown } => {
                let kind = match unknown {
                    true => ErrorKind::State,
                    false => ErrorKind::Refused,
                };
                Err(Error::new(kind, why).hint(hint))
            }
        }
    }

    async fn order(&mut self, order: Order) -> Result<Value> {
        self.number += 1;
        let answered = tokio::time::timeout(self.patience, async {
            self.send(&json!((self.number, order))).await?;
            self.answer().await
        });
        answered.await.unwrap_or_else(|_| Err(gone()))
    }

    /// What would be done.
    pub async fn rehearse(&mut self) -> Result<Foretold> {
        let found = self.order(Order::Rehearse).await?;
        serde_json::from_value(found)
            .map_err(|e| Error::new(ErrorKind::Bug, "the guard is not understood").cause(e))
    }

    /// Looks at what will be frozen, right before it is.
    pub async fn prepare(&mut self) -> Result<()> {
        self.order(Order::Prepare).await.map(drop)
    }

    pub async fn freeze(&mut self, way: FreezeWay) -> Result<()> {
        self.order(Order::Freeze(way)).await.map(drop)
    }

    /// Moves the clients and lets the writers go; what the hook has said.
    pub async fn switch(&mut self) -> Result<Value> {
        self.order(Order::Switch).await
    }

    pub async fn thaw(&mut self) -> Result<()> {
        self.order(Order::Thaw).await.map(drop)
    }

    /// Ends it; whatever is frozen is let go.
    pub async fn dismiss(mut self) {
        self.orders = None;
        let _ = tokio::time::timeout(Duration::from_secs(15), self.child.wait()).await;
    }
}

fn gone() -> Error {
    Error::new(
        ErrorKind::Refused,
        "the guard has ended, or does not answer",
    )
    .hint("run the same command again")
}
