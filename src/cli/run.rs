//! `run`: the proxy, in the foreground.

use std::time::Duration;

use super::{ConfigArg, Error};
use crate::config::settings::Settings;
use crate::server::{self, Source};
use crate::{config, log};

/// How long sessions that are cut get for their last log line.
const CUT: Duration = Duration::from_secs(1);

/// Run the proxy in the foreground
///
/// Stays until SIGTERM, SIGINT or SIGQUIT; then no new sessions are taken and those that run are
/// told BYE within timeouts.drain. A second signal ends it at once. SIGHUP has the configuration
/// read again: as a whole or, if it does not load, not at all; sessions that run keep what they
/// began with. The log goes to standard output.
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
/// If the configuration is wrong, a certificate can't be loaded or an address is in use.
pub fn run(args: &Args) -> Result<(), Error> {
    let settings = config::load(&args.config.file)?;
    let log = log::start(&settings.log).map_err(Error::failed)?;
    let source = Source { file: args.config.file.clone(), log: log.control.clone() };
    serve(settings, source).map_err(Error::failed)
}

/// Serves on a runtime of its own.
fn serve(
    settings: Settings,
    source: Source,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(server::run(settings, Some(source), |_| {}));
    // Sessions that did not end in time are cut; each writes its line when it is dropped.
    runtime.shutdown_timeout(CUT);
    Ok(result?)
}
