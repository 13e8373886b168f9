//! The command line: what can be asked for, and how an answer or an error leaves the program.
//!
//! Each command is one file here; `progress.rs` is the only one that draws.
//! Standard output carries results only; everything else goes to standard error.

mod check;
mod common;
mod control;
mod cutover;
mod fleet;
mod latency;
mod limit;
mod metrics;
mod migrate;
mod output;
mod plan;
mod progress;
pub mod rdb;
mod report;
mod status;
mod verify;

use self::common::Common;
use crate::error::{Error, ErrorKind, Result};
use clap::{CommandFactory, Parser, Subcommand};
use std::io::IsTerminal;

const OVERVIEW: &str = "\
keyferry copies a live Redis or Valkey into another one, keeps following it, and proves per slot that both are equal.

A migration is described by a plan, a JSON file. Its state lies in .keyferry/<plan name>/, so every command can be \
stopped with Ctrl-C and started again: it goes on where it was.";

const EXAMPLES: &str = "\
Examples:
  keyferry plan new --source redis://old:6379 --target redis://new:6379 move.json
                                   write a plan to start from
  keyferry plan validate move.json what would be done; nothing is touched
  keyferry check move.json         what will work and what blocks
  keyferry migrate move.json --dry-run
                                   read and count everything, write nothing
  keyferry migrate move.json       load, then follow until Ctrl-C
  keyferry status move.json --watch
                                   look at it from another terminal
  keyferry verify move.json        compare both sides
  keyferry cutover move.json --dry-run
                                   rehearse the switch; without --dry-run: do it
  keyferry rollback move.json      take the clients back
  keyferry report move.json        write down what is known

Exit codes:
  0    done; equal; nothing blocks
  1    the answer is no: differences were found, something blocks
  2    wrong usage or wrong plan; nothing was touched
  3    it failed while running; state is saved, the same command goes on
  130  interrupted; state is saved, the same command goes on";

#[derive(Parser)]
#[command(name = "keyferry", version, about = "Moves live Redis and Valkey data and proves that it arrived", long_about = OVERVIEW, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Check(check::Arguments),
    Migrate(migrate::Arguments),
    Limit(limit::Arguments),
    Status(status::Arguments),
    Verify(verify::Arguments),
    Cutover(cutover::Arguments),
    Rollback(cutover::RollbackArguments),
    Latency(latency::Arguments),
    Fleet(fleet::Arguments),
    /// Freezes writers and moves clients for a cutover, in a process of its own
    #[command(hide = true)]
    CutoverGuard,
    Report(report::Arguments),
    /// Look into a snapshot file ("-" is standard input)
    #[command(subcommand)]
    Rdb(rdb::RdbCommand),
    /// Write a starting plan, check one, or print the JSON Schema of plans
    #[command(subcommand)]
    Plan(plan::PlanCommand),
    /// Print the completion script of a shell
    #[command(
        after_help = "Example:\n  keyferry completions bash > /etc/bash_completion.d/keyferry"
    )]
    Completions {
        shell: clap_complete::Shell,
    },
}

/// Runs the program; the number is its exit code.
pub fn run() -> u8 {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // Help goes to standard output and is no error; a closed pipe is not worth a word.
            let _ = e.print();
            return if e.use_stderr() { 2 } else { 0 };
        }
    };
    match init_log(&cli.common).and_then(|()| dispatch(cli)) {
        Ok(code) => code,
        Err(e) => {
            output::error(&e);
            e.exit_code()
        }
    }
}

fn dispatch(cli: Cli) -> Result<u8> {
    let common = &cli.common;
    match cli.command {
        Command::Check(arguments) => check::run(&arguments, common),
        Command::Migrate(arguments) => migrate::run(&arguments, common),
        Command::Limit(arguments) => limit::run(&arguments, common),
        Command::Status(arguments) => status::run(&arguments, common),
        Command::Verify(arguments) => verify::run(&arguments, common),
        Command::Cutover(arguments) => cutover::run(&arguments, common),
        Command::Rollback(arguments) => cutover::roll_back(&arguments, common),
        Command::Latency(arguments) => latency::run(&arguments, common),
        Command::Fleet(arguments) => fleet::run(&arguments, common),
        Command::CutoverGuard => cutover::guard(),
        Command::Report(arguments) => report::run(&arguments, common),
        Command::Rdb(command) => rdb::run(command),
        Command::Plan(command) => plan::run(&command, common),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "keyferry", &mut script);
            output::print(&String::from_utf8_lossy(&script)).map(|()| 0)
        }
    }
}

fn init_log(common: &Common) -> Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(format!("keyferry={}", common.log))
        .map_err(|_| {
            Error::new(
                ErrorKind::Usage,
                format!("--log cannot be {:?}", common.log),
            )
            .hint("use error, warn, info, debug or trace")
        })?;
    let color = std::io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(progress::Aside::default)
        .with_ansi(color)
        .with_target(false);
    let done = if common.log_json {
        log.json().try_init()
    } else {
        log.try_init()
    };
    done.map_err(|e| Error::new(ErrorKind::Bug, "set up the log").cause(e))
}

#[cfg(test)]
mod tests {
    use super::common::load;
    use super::*;
    use std::path::Path;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_flags_of_the_contract_are_taken() {
        for line in [
            "keyferry migrate p.json --dry-run --until caught-up --fresh --json --work-dir x --log info --log-json --no-progress --metrics 127.0.0.1:0",
            "keyferry --work-dir x status p.json --json --watch",
            "keyferry migrate p.json --shards 0-2,5",
            "keyferry migrate p.json --worker 0/3",
            "keyferry migrate p.json --workers 3",
            "keyferry status p.json --also a --also b",
            "keyferry verify - --json",
            "keyferry report p.json --out d",
            "keyferry cutover p.json --dry-run --json",
            "keyferry rollback p.json --json",
            "keyferry latency p.json --json",
            "keyferry fleet cutover a.json b.json --at-once 2 --json -- --dry-run",
            "keyferry plan new",
            "keyferry plan new f.json --name a --source redis://a --target redis://b --force",
            "keyferry plan validate p.json",
            "keyferry plan schema",
            "keyferry completions zsh",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
        for line in [
            "keyferry",
            "keyferry cutover",
            "keyferry migrate",
            "keyferry migrate p --until forever",
            "keyferry migrate p --worker 0/3 --shards 0",
            "keyferry verify p --repair --also d",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }

    #[test]
    fn a_plan_that_is_not_there_is_a_wrong_plan_and_names_its_path() {
        let e = load(Path::new("/nowhere/p.json")).unwrap_err();
        assert_eq!(e.exit_code(), 2);
        assert!(e.to_string().contains("/nowhere/p.json"));
    }
}
