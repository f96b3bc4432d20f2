//! `doctor`: what is wrong with a deployment, and the lines that cure it.
//!
//! In: the configuration, and a user's password if a login shall be tried. Out: the report on standard output, for people or
//! as JSON. The password comes from the terminal without echo, from standard input or from a file, never from the command
//! line, where everybody on the machine could read it.

use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};

use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr,
};
use rustls_pki_types::ServerName;
use zeroize::Zeroizing;

use super::{ConfigArg, Error, count};
use crate::config;
use crate::conn::socket::why;
use crate::doctor::finding::Verdict;
use crate::doctor::{self, Wanted, report};
use crate::proto::imap::secret::Secret;
use crate::text::chain;

/// Longer is no password.
const MAX_PASSWORD: usize = 1024;
/// Ctrl-C; no password has it.
const INTERRUPT: u8 = 3;

/// Find out what is wrong with a deployment, and the lines that cure it
///
/// Speaks to the proxy's listeners as a mail client does and to the servers behind it as the proxy does, and
/// says of each check what was seen, what it means and what to change for that kind of server. Works before
/// the proxy is started too: what needs it is skipped then. Run it where the proxy runs, in the same container
/// or on the same host, so that servers see it under the same address.
///
/// Exit code 0: nothing is wrong, perhaps with warnings. 1: something is. 2: the command line or the
/// configuration is wrong.
///
/// Examples:
///
///   imaps-proxy doctor --name mail.example.org
///   imaps-proxy doctor --user alice
///   imaps-proxy doctor --json | jq '.findings[] | select(.verdict == "problem")'
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArg,
    /// Log in as this user, past the proxy and through it
    ///
    /// The password is asked for on the terminal. Without a terminal it is the first line of standard input.
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// A file whose first line is the password
    #[arg(long, value_name = "FILE", requires = "user")]
    password_file: Option<PathBuf>,
    /// A name that mail clients use; may be repeated. Default: those of tls.acme and tls.self_signed
    #[arg(long = "name", value_name = "HOST")]
    names: Vec<String>,
    /// A PEM file of CAs that your mail clients trust besides the system's
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// # Errors
/// A wrong command line or configuration; [`Error::Failed`] once problems are printed.
pub fn run(args: &Args) -> Result<(), Error> {
    let settings = config::load(&args.config.file)?;
    let names = args.names.iter().map(|name| {
        ServerName::try_from(name.clone()).map_err(|_| {
            Error::Usage(format!("--name: `{name}` is neither a DNS name nor an IP address"))
        })
    });
    let names = names.collect::<Result<_, _>>()?;
    let user = match &args.user {
        Some(user) => Some((user.clone(), password(user, args.password_file.as_deref())?)),
        None => None,
    };
    let wanted = Wanted { names, ca: args.ca.clone(), user };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::failed)?;
    let report = runtime
        .block_on(doctor::examine(&settings, &args.config.file, &wanted))
        .map_err(|error| Error::Usage(format!("--ca: {}", chain(&error))))?;
    // A look-up that hangs holds up nobody.
    runtime.shutdown_background();
    super::print(&match args.json {
        true => report::json(&report),
        false => report::text(&report, colours()),
    })?;
    match report.count(Verdict::Problem) {
        0 => Ok(()),
        problems => Err(Error::Found(count(problems, "problem"))),
    }
}

/// Colours where a person looks and did not say no (no-color.org).
fn colours() -> bool {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    io::stdout().is_terminal() && !unwanted && !dumb
}

fn password(user: &str, file: Option<&Path>) -> Result<Secret, Error> {
    let line = match file {
        Some(file) => std::fs::File::open(file)
            .and_then(|file| first_line(&mut io::BufReader::new(file)))
            .map_err(|error| {
                Error::Usage(format!("--password-file {}: {}", file.display(), why(&error)))
            })?,
        None if io::stdin().is_terminal() => {
            asked(user).map_err(|error| Error::Usage(format!("no password: {}", why(&error))))?
        }
        None => first_line(&mut io::stdin().lock()).map_err(|error| {
            Error::Usage(format!("no password on standard input: {}", why(&error)))
        })?,
    };
    match line.expose() {
        b"" => Err(Error::Usage("the password is empty".to_owned())),
        _ => Ok(line),
    }
}

/// The first line without its end.
fn first_line(from: &mut impl io::BufRead) -> io::Result<Secret> {
    let mut line = Zeroizing::new(Vec::with_capacity(MAX_PASSWORD + 2));
    for byte in from.take(MAX_PASSWORD as u64 + 2).bytes() {
        line.push(byte?);
        if matches!(line.last(), Some(&(b'\n' | INTERRUPT))) {
            break;
        }
    }
    while line.last().is_some_and(|byte| matches!(byte, b'\r' | b'\n')) {
        line.pop();
    }
    if line.len() > MAX_PASSWORD {
        return Err(io::Error::other(format!("longer than {MAX_PASSWORD} bytes")));
    }
    Ok(Secret::new(std::mem::take(&mut *line)))
}

/// Asks on the terminal, without echo.
fn asked(user: &str) -> io::Result<Secret> {
    let mut err = io::stderr();
    write!(err, "Password of {}: ", crate::log::printable(user.as_bytes()))?;
    err.flush()?;
    let silent = Silent::new()?;
    let line = first_line(&mut io::stdin().lock());
    drop(silent);
    writeln!(err)?;
    let line = line?;
    match line.expose().contains(&INTERRUPT) {
        true => Err(io::Error::other("cancelled")),
        false => Ok(line),
    }
}

/// While it lives, the terminal does not show what is typed, and Ctrl-C ends the line instead of the process, so that no terminal
/// is left like that.
struct Silent(Termios);

impl Silent {
    fn new() -> io::Result<Self> {
        let stdin = io::stdin();
        let before = tcgetattr(&stdin)?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO | LocalModes::ISIG);
        silent.special_codes[SpecialCodeIndex::VEOL] = INTERRUPT;
        tcsetattr(&stdin, OptionalActions::Flush, &silent)?;
        Ok(Self(before))
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}
