//! Search indexes as bytes: a definition out of FT.INFO, and the FT.* commands of a stream. Nothing is asked here.

mod definition;
mod streamed;

pub use definition::{Definition, TOLD_BY_NOBODY};
pub use streamed::{is_moot, lacks_search, public_form, translated};
