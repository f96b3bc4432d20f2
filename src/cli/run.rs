//! `run`: the proxy, in the foreground.

use super::{ConfigArg, Error};
use crate::config::settings::Settings;
use crate::server::{self, Bound};
use crate::{config, log};

/// Run the proxy in the foreground
///
/// Serves until SIGTERM or SIGINT and then gives the sessions `timeouts.drain` to end; a second signal ends it
/// at once. The log goes to standard output.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:\n  imaps-proxy run --config /etc/imaps-proxy/config.yaml")]
pub struct Args {
    #[command(flatten)]
    config: ConfigArg,
}

/// # Errors
/// If the configuration is wrong, a certificate can't be loaded or an address is in use.
pub fn run(args: &Args) -> Result<(), Error> {
    let settings = config::load(&args.config.file)?;
    let _log = log::start(&settings.log);
    serve(settings, |_| {}).map_err(Error::failed)
}

/// Serves on a runtime of its own; `started` hears where once everything listens.
pub(super) fn serve(
    settings: Settings,
    started: impl FnOnce(&Bound),
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(server::run(settings, started));
    // Sessions that did not end in time are cut; nothing waits for them.
    runtime.shutdown_background();
    Ok(result?)
}
