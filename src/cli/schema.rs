//! `schema`: the configuration's JSON Schema, for editors.

use super::Error;

/// Print the configuration's JSON Schema, for editors
///
/// With it an editor completes keys, shows what they mean and underlines what is wrong. For one that
/// runs the YAML language server:
///
///   imaps-proxy schema > imaps-proxy.schema.json
///
/// and as the first line of the configuration:
///
///   # yaml-language-server: $schema=imaps-proxy.schema.json
///
/// Rules that concern several keys are not part of it: `imaps-proxy check` knows them all.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {}

/// # Errors
/// Only if standard output cannot be written.
pub fn run(_: &Args) -> Result<(), Error> {
    super::print(&format!("{:#}\n", crate::config::schema()))
}
