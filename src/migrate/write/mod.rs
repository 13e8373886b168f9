//! Writing to the target: the door, the writer behind it, values in every form.

pub(crate) mod door;
pub(crate) mod large_value;
pub(crate) mod losses;
mod module_value;
pub(crate) mod module_way;
pub(crate) mod target_writer;
pub(crate) mod value;
pub(crate) mod wire;
