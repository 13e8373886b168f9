//! Values of modules beyond their bytes: which way each goes to a target, and the commands that make it anew.

pub mod commands;
mod fields;
mod filters;
mod gather;
mod gorilla;
mod json;
mod series;
pub mod ways;

pub use fields::unpacked;
pub use series::{holds_known_names, renamed, rules};
