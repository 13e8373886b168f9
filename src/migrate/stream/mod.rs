//! The stream: where it stands, what becomes of each command, and what it does not tell.

pub(crate) mod forms;
pub(crate) mod functions;
pub(crate) mod long_command;
pub(crate) mod position;
pub(crate) mod rename;
pub(crate) mod router;
pub(crate) mod scripts;
pub(crate) mod unreplicated;
pub(crate) mod written_slots;
