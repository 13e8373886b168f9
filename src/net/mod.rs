//! Connections: TCP, TLS and AUTH in one place; on top [`Control`] for questions, [`Conn`] for data and measurement.
//!
//! Invariant: every connection of the program is opened by [`connect`], [`exactly`] or [`enter`]; TLS verifies unless the plan says that it does not.

mod answer;
mod certificates;
mod conn;
mod control;
mod credentials;
mod dial;
#[cfg(feature = "entra")]
mod entra;
mod find;
pub mod fork;
pub mod guard;
mod items;
mod meter;
mod refusals;
mod retry;
pub mod scan;
pub mod search;
pub mod server;
mod server_words;
mod slots;
mod stream;
mod subscription;
#[cfg(test)]
mod testing;
mod tls;

pub use answer::Answer;
pub use conn::{Conn, LoggedIn, PROGRESS_BYTES, REPLY_BYTES, REPLY_LIMIT, encode, put};
pub use control::{Control, control, question, told};
pub use dial::{connect, enter, exactly};
pub use refusals::{is_elsewhere, is_on_its_way, leads_to, passes, refusal, said};
pub use retry::{Backoff, Telling, Tries};
pub use stream::Stream;
pub use subscription::{Heard, Subscription};

/// The name of connections of ours that must not be ended together with the clients'.
pub const OWN_NAME: &[u8] = b"keyferry";
