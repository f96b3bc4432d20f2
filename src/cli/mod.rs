//! The command line: one file per command.
//!
//! In: the arguments of the process. Out: [`Error`] with an exit code, or nothing. A command is a
//! module with `Args`, which clap fills and whose documentation is its `--help`, and
//! `run(&Args) -> Result<(), Error>`. What a command is asked for goes to standard output, the log too;
//! findings and errors go to standard error. Only `main` exits.

mod run;

mod demo;

mod check;

mod doctor;

mod cert;

mod schema;

mod health;

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

use crate::text::chain;
use crate::{config, version};

/// Where `run` and `check` look without `--config`.
pub const DEFAULT_CONFIG: &str = "/etc/imaps-proxy/config.yaml";

const ABOUT: &str = "Encrypted IMAP (IMAPS) in front of a server that only speaks plaintext IMAP";

const LONG_ABOUT: &str = "\
Encrypted IMAP (IMAPS) in front of a server that only speaks plaintext IMAP.

  mail client --TLS, :993--> imaps-proxy --plaintext IMAP, :143--> legacy server
                                 |
                                 +-- :9143 /metrics <-- Prometheus

The proxy ends TLS, leads the dialogue until a complete login is in hand, takes out of the server's
capabilities what cannot work behind a proxy (STARTTLS, COMPRESS and the like), logs in at the
server and then passes every byte on. Without `backend.tls` the link to the server is not encrypted:
keep it on a network that nobody else can listen to.";

const AFTER_HELP: &str = "\
Examples:
  imaps-proxy demo                                 try it, with nothing else installed
  imaps-proxy cert self-signed --name mail.example.org --out certs/
  imaps-proxy check --config imaps-proxy.yaml      every mistake of a configuration
  imaps-proxy run --config imaps-proxy.yaml        the proxy, in the foreground
  imaps-proxy doctor --config imaps-proxy.yaml     what is wrong with it, its certificate or its servers

The smallest configuration:
  listen:
    - address: \"[::]:993\"
  tls:
    certificates:
      - cert: /certs/fullchain.pem
        key: /certs/privkey.pem
  backend:
    servers:
      - address: legacy-imap:143

Exit codes:
  0  fine
  1  the operation failed
  2  the command line or the configuration is wrong

Environment:
  IMAPS_PROXY_CONFIG  the configuration file, where --config is not given
  any other           as ${NAME} or ${NAME:-default} inside a value of the configuration

Signals:
  SIGTERM, SIGINT,    stop: no new sessions, those that run are told BYE within timeouts.drain;
  SIGQUIT             the second one ends it at once
  SIGHUP              read the configuration again, as a whole or not at all, then certificates,
                      ticket keys, client CAs and revocation lists; take a certificate that is
                      worse than the one before. Sessions that run keep what they began with
  SIGUSR1, SIGUSR2    logged and ignored: a recipe for another program does no harm";

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "imaps-proxy",
    about = ABOUT,
    long_about = LONG_ABOUT,
    after_long_help = AFTER_HELP,
    after_help = "More, with examples and exit codes: imaps-proxy --help",
    version = version::VERSION,
    long_version = version::LONG,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Args),
    Demo(demo::Args),
    Check(check::Args),
    Doctor(doctor::Args),
    Cert(cert::Args),
    Schema(schema::Args),
    Health(health::Args),
}

/// The option that several commands share.
#[derive(Debug, Args)]
pub struct ConfigArg {
    /// The configuration file (YAML); `imaps-proxy schema` describes it
    #[arg(
        long = "config",
        short = 'c',
        value_name = "FILE",
        env = "IMAPS_PROXY_CONFIG",
        default_value = DEFAULT_CONFIG
    )]
    pub file: PathBuf,
}

/// Why a command ended badly. Its text is one message for a person, without the program's name.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Configuration(#[from] config::Error),
    /// The command line asks for what cannot be.
    #[error("{0}")]
    Usage(String),
    /// `check` has printed what is wrong; this is the sum.
    #[error("{} has {}", file.display(), count(*errors, "error"))]
    Checked { file: PathBuf, errors: usize },
    /// `doctor` has printed what is wrong; this is the sum.
    #[error("found {0}")]
    Found(String),
    #[error("{}", chain(&**.0))]
    Failed(Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// 1: the operation failed; 2: the command line or the configuration is wrong.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Configuration(_) | Self::Usage(_) | Self::Checked { .. } => 2,
            Self::Found(_) | Self::Failed(_) => 1,
        }
    }

    /// Anything that went wrong while a well-formed command was carried out.
    pub fn failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Failed(error.into())
    }
}

/// `1 error`, `2 errors`
fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

/// Runs the command that `cli` names.
///
/// # Errors
/// What the command returns.
pub fn run(cli: &Cli) -> Result<(), Error> {
    hide_memory();
    match &cli.command {
        Command::Run(args) => run::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Check(args) => check::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Cert(args) => cert::run(args),
        Command::Schema(args) => schema::run(args),
        Command::Health(args) => health::run(args),
    }
}

/// Keys and passwords are in memory: no core file holds them, and no other process of this user
/// reads them. The limit alone would not do, since a program to which the system pipes core dumps
/// gets them in spite of it (core(5)). Where the system refuses, nothing more can be done.
fn hide_memory() {
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

/// Writes what a command was asked for to standard output.
///
/// # Errors
/// [`Error::Failed`] if it cannot be written; but a reader that has seen enough (`| head`) is none.
pub fn print(text: &str) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Error::failed(format!("cannot write to standard output: {error}"))),
        Ok(()) => Ok(()),
    }
}

/// Writes findings to standard error. Where nobody can read them there is nothing to be done.
pub fn complain(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot listen on 127.0.0.1:993")]
    struct Outer(#[source] io::Error);

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn a_failure_prints_its_causes_once() {
        let error = Error::failed(Outer(io::Error::other("in use")));
        assert_eq!(error.to_string(), "cannot listen on 127.0.0.1:993: in use");
        assert_eq!(error.exit_code(), 1);
    }

    #[test]
    fn nobody_gets_a_core_file_and_nobody_else_reads_the_memory() {
        let before = rustix::process::dumpable_behavior().unwrap();
        hide_memory();
        let after = rustix::process::dumpable_behavior().unwrap();
        set_dumpable_behavior(before).unwrap(); // other tests may share the process
        assert_eq!(after, DumpableBehavior::NotDumpable);
        assert_eq!(rustix::process::getrlimit(Resource::Core).current, Some(0));
    }

    #[test]
    fn the_configuration_in_the_help_is_valid() {
        let (_, text) = AFTER_HELP.split_once("The smallest configuration:\n").unwrap();
        let (text, _) = text.split_once("\n\n").unwrap();
        config::parse(text, "help".as_ref(), &|_| None).unwrap();
    }
}
