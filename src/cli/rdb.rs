//! (being written on a branch)
use crate::error::Result;
#[derive(clap::Subcommand)]
pub enum RdbCommand {}
pub fn run(command: RdbCommand) -> Result<u8> {
    match command {}
}
