//! The `refrain` command: the store at work on lines of text.
//!
//! From the bottom up: `exit` (what ends a run, with its exit code), `key` (the key of a line),
//! `input` (files into batches of lines), `output` (where lines go), `summary` (what was counted),
//! `dedupe` (the job), `args` (the command line).

mod args;
mod dedupe;
#[cfg(test)]
#[path = "../../../tests/support/disk.rs"]
#[allow(dead_code, clippy::unwrap_used, reason = "shared with the tests of the library")]
mod disk;
mod exit;
mod input;
mod key;
mod output;
mod summary;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};

fn main() -> ExitCode {
    let Cli { command: Command::Dedupe(arguments) } = Cli::parse();
    let code = match arguments.to_job().and_then(|job| dedupe::run(&job)) {
        Ok(()) => 0,
        Err(failure) => {
            output::tell(&format!("refrain: {failure}\n"));
            failure.code()
        }
    };
    // At once: the reader may be waiting for input that never comes.
    std::process::exit(code)
}
