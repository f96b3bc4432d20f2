//! `health`: asks a running proxy whether it can serve; what a container calls as its health check.
//!
//! In: the configuration's `metrics.address`. Out: the body of `/readyz` on standard output; exit code 0 if
//! ready, 1 if not or if nothing answers within 3 seconds, 2 if there is no such listener to ask.

use std::time::Duration;

use super::{ConfigArg, Error};
use crate::admin::ask::ask_any;
use crate::config;

const DEADLINE: Duration = Duration::from_secs(3);

/// Ask a running proxy whether it can serve; the health check of a container
///
/// Reads metrics.address of the configuration and asks http://ADDRESS/readyz there. Prints the answer.
///
/// Exit code 0: ready. 1: not ready, or no answer within 3 seconds. 2: the configuration is wrong or has
/// no metrics section.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArg,
}

/// # Errors
/// Not ready, no answer, or nothing to ask.
pub fn run(args: &Args) -> Result<(), Error> {
    let file = &args.config.file;
    let Some(metrics) = config::load(file)?.metrics else {
        return Err(Error::Usage(format!(
            "{}: no metrics section, so there is no /readyz to ask; add metrics: {{ address: \"127.0.0.1:9143\" }}",
            file.display()
        )));
    };
    let (status, body) = ask_any(metrics.address, DEADLINE).map_err(Error::failed)?;
    super::print(&body)?;
    match status {
        200 => Ok(()),
        other => Err(Error::failed(format!("not ready: /readyz answered {other}"))),
    }
}
