//! Runs one command and prints one error.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use imaps_proxy::cli::{self, Cli};

fn main() -> ExitCode {
    let error = match cli::run(&Cli::parse()) {
        Ok(()) => return ExitCode::SUCCESS,
        Err(error) => error,
    };
    cli::complain(&format!("imaps-proxy: {error}\n"));
    ExitCode::from(error.exit_code())
}
