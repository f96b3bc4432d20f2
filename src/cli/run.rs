//! `run`: the proxy.

use super::{ConfigArg, Error};

/// Run the proxy in the foreground
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArg,
}

/// # Errors
/// If the configuration is wrong.
pub fn run(args: &Args) -> Result<(), Error> {
    crate::config::load(&args.config.file)?;
    Ok(())
}
