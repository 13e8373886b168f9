//! The asking end: a cutover's connection to one migration.

use crate::error::{Context, Error, ErrorKind, Result};
use crate::migrate::control::orders::{ANSWER_BYTES, Answer, Ask};
use crate::migrate::control::wire::Wire;
use crate::task::socket;
use std::path::Path;

/// The name of the socket in a plan's folder.
pub(super) const NAME: &str = "control";

/// The asking end.
pub struct Asker {
    wire: Wire,
    /// Answers that nobody has waited for.
    owed: u32,
}

impl Asker {
    /// `NotReady` when no migration runs there.
    pub async fn connect(dir: &Path) -> Result<Asker> {
        let stream = (socket::connect(dir, NAME).await).context(ErrorKind::NotReady, || {
            format!("no migration answers in {}", dir.display())
        })?;
        let (read, write) = stream.into_split();
        Ok(Asker::over(Wire::new(read, write, ANSWER_BYTES)))
    }

    pub fn over(wire: Wire) -> Asker {
        Asker { wire, owed: 0 }
    }

    pub async fn ask(&mut self, ask: Ask) -> Result<Answer> {
        let gone = || Error::new(ErrorKind::NotReady, "the migration has ended");
        let text = serde_json::to_vec(&ask)
            .map_err(|e| Error::new(ErrorKind::Bug, "write a question as JSON").cause(e))?;
        self.owed += 1;
        (self.wire.send(&text).await).map_err(|e| gone().cause(e))?;
        loop {
            let line = self.wire.line().await.map_err(|e| gone().cause(e))?;
            let line = line.ok_or_else(gone)?;
            self.owed -= 1;
            if self.owed > 0 {
                // Of a question that was given up.
                continue;
            }
            let answer: Answer = serde_json::from_slice(&line).map_err(|e| {
                Error::new(ErrorKind::Protocol, "an answer is not understood").cause(e)
            })?;
            return match answer.refused {
                Some((why, hint)) => Err(Error::new(ErrorKind::Refused, why).hint(hint)),
                None => Ok(answer),
            };
        }
    }

    /// Waits until the other end has gone.
    pub async fn gone(&mut self) {
        while let Ok(Some(_)) = self.wire.line().await {}
    }
}
