//! `check`: whether a configuration and the files that it names would do.

use std::path::Path;

use super::{ConfigArg, Error, count};
use crate::config;
use crate::tls::{self, Finding, Severity};

/// Validate a configuration and the files that it names
///
/// Reports every mistake, not only the first, as FILE:LINE:COLUMN: MESSAGE on standard error; then
/// whether certificate and key can be read, belong together and are valid, whether what ACME needs is
/// there, and whether ticket keys, revocation lists and the CAs of clients and servers can be used. If all
/// is fine, it says how much it has read in each file. Opens no port, sends nothing, changes nothing.
///
/// Exit code 0: fine, perhaps with warnings. 2: the proxy cannot start with it, or clients would be
/// refused.
///
/// Example, before a restart:
///
///   imaps-proxy check --config imaps-proxy.yaml && systemctl restart imaps-proxy
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArg,

    /// Print the configuration in force as YAML: every key with its value, defaults included.
    #[arg(long)]
    print: bool,
}

/// # Errors
/// [`Error::Checked`] once the mistakes are printed; [`Error::Configuration`] if there is no text.
pub fn run(args: &Args) -> Result<(), Error> {
    let file = &args.config.file;
    let mut errors = 0;
    let mut warnings = 0;
    let mut report = String::new();
    let mut held = Vec::new();
    let mut say = |findings: Vec<Finding>, report: &mut String| {
        for finding in findings {
            let word = match finding.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
            };
            report.push_str(&format!("{word}: {}\n", finding.message));
            match finding.severity {
                Severity::Error => errors += 1,
                Severity::Warning => warnings += 1,
            }
        }
    };
    let mut effective = None;
    match config::load(file) {
        Ok(settings) => {
            say(tls::check(&settings.tls), &mut report);
            say(tls::backend::check(&settings.backend), &mut report);
            effective = Some(settings.effective);
            held = tls::held(&settings.tls);
            held.extend(tls::backend::held(&settings.backend));
        }
        Err(config::Error::Invalid(invalid)) => {
            report = invalid.report();
            if let Some(tls) = &invalid.tls {
                say(tls::check(tls), &mut report);
            }
            errors += invalid.count();
        }
        Err(error @ config::Error::Unreadable { .. }) => return Err(error.into()),
    }
    super::complain(&report);
    if errors > 0 {
        return Err(Error::Checked { file: file.clone(), errors });
    }
    let held: String = held.iter().map(|line| format!("  {line}\n")).collect();
    match effective.filter(|_| args.print) {
        Some(effective) => super::print(&effective.yaml()),
        None => super::print(&(summary(file, warnings) + &held)),
    }
}

fn summary(file: &Path, warnings: usize) -> String {
    let file = file.display();
    match warnings {
        0 => format!("{file} is fine\n"),
        _ => format!("{file} is fine, with {}\n", count(warnings, "warning")),
    }
}
