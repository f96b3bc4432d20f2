//! `cert`

use super::Error;

/// Placeholder of this branch
#[derive(Debug, clap::Args)]
pub struct Args {}

/// # Errors
/// None.
pub fn run(_: &Args) -> Result<(), Error> {
    Ok(())
}
