use std::process::ExitCode;

use clap::Parser;
use imaps_proxy::cli::{cert, health};

/// Placeholder until the commands are merged.
#[derive(Parser)]
enum Command {
    Cert(cert::Args),
    Health(health::Args),
}

fn main() -> ExitCode {
    let result = match Command::parse() {
        Command::Cert(args) => cert::run(&args),
        Command::Health(args) => health::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = error.exit_code();
            eprintln!("error: {:#}", anyhow::Error::from(error));
            ExitCode::from(code)
        }
    }
}
