//! The certificate that serves, who may come in, and the TLS settings around it, as one `rustls::ServerConfig`.
//!
//! In: [`settings::Tls`]. Out: [`Loaded`]; and [`check`], the same look without making or changing anything.
//! TLS 1.3 and 1.2 (RFC 8446, RFC 5246 with AEAD suites only, RFC 9325), hybrid X25519MLKEM768 first, ALPN
//! `imap` (RFC 7301: a client with a list of foreign protocols is refused with alert 120, one without a list
//! is served), stateless tickets ([`tickets`]), client certificates where wanted ([`client_auth`]), no 0-RTT, no key log.
//!
//! Certificate, ticket keys and client CAs are read again each on its own ([`Source::due`], [`Source::reread`]), so a
//! mistake in one keeps the old of that one only.
//!
//! A private key that others may read is an error in [`check`] if that is everybody, and a warning if it is a
//! group. At start both are loud warnings only: orchestrators mount secrets with mode 0644, and a mail service
//! that stays down is the greater harm. An expired certificate serves as well, for most clients then ask
//! their user; it is reported in [`Loaded::problems`].
//! Not here: the handshake (`conn::tls`), and when a changed certificate is looked for (`server`).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;

use crate::config::settings::{self, CertificateFiles, MinVersion, SelfSigned};

pub mod certificate;

pub mod facts;

pub mod self_signed;

pub mod tickets;

pub mod client_auth;

use client_auth::ClientAuth;
use facts::{Complaint, Grade};

const DAY: i64 = 86_400;

/// Tickets of a TLS 1.3 handshake, each good for one connection (RFC 8446 §C.4: a ticket that is used twice ties the two
/// together for whoever listens). Every connection brings new ones, so one would keep a mail client's five connections
/// in tickets; the second is for the connection that a phone loses before its new ticket arrives, and for one more folder. It
/// costs some 200 bytes and a few microseconds a session, and OpenSSL sends as many.
const TICKETS: usize = 2;
/// What a client gets that says how many it wants (RFC 9149).
const MAX_TICKETS: usize = 4;

/// Why no TLS can be spoken. The operator's to cure; every message names the file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Certificate(#[from] certificate::Error),
    #[error(transparent)]
    SelfSigned(#[from] self_signed::Error),
    #[error(
        "{}: missing, while {} exists; put both there, or neither and a self-made certificate serves",
        missing.display(), present.display()
    )]
    Half { missing: PathBuf, present: PathBuf },
    #[error("no certificate is configured; set tls.certificates or tls.self_signed")]
    Nothing,
    #[error(transparent)]
    Tickets(#[from] tickets::Error),
    #[error(transparent)]
    ClientAuth(#[from] client_auth::Error),
    #[error("TLS cannot be set up")]
    Rustls(#[from] rustls::Error),
}

/// What serves from now on, and what to tell of it.
pub struct Loaded {
    pub config: Arc<ServerConfig>,
    /// Of the server's own certificate, unix seconds.
    pub not_after: i64,
    /// DNS names and IP addresses that it is good for.
    pub names: Vec<String>,
    /// What metrics and logs call it: its first DNS name, or the name of its file.
    pub certificate: String,
    pub self_signed: bool,
    /// To be logged loudly (warning): what was made, where, its fingerprint; keys that others may read.
    pub notice: Vec<String>,
    /// To be logged as errors: the service runs, but clients will refuse or complain (expired, no name).
    pub problems: Vec<String>,
    /// When the first of the clients' revocation lists is due to be replaced, unix seconds.
    pub list_next_update: Option<i64>,
}

/// What is read beside the certificate: the label and log field `what`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, strum::IntoStaticStr, strum::VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Part {
    Tickets,
    ClientAuth,
}

/// Files that have changed and were read again.
pub struct Reread {
    pub part: Part,
    pub result: Result<Fresh, Error>,
}

/// What is new.
#[derive(Default)]
pub struct Fresh {
    /// For new handshakes; `None`: the one in use has it already.
    pub config: Option<Arc<ServerConfig>>,
    /// As in [`Loaded`].
    pub notice: Vec<String>,
    pub problems: Vec<String>,
    pub list_next_update: Option<i64>,
}

/// Reads or makes the certificate and builds the TLS configuration, once. A process that runs for long
/// keeps a [`Source`].
///
/// # Errors
/// No usable pair.
pub fn load(settings: &settings::Tls) -> Result<Loaded, Error> {
    Source::new(settings.clone()).load(SystemTime::now())
}

/// Loads again and again: keeps what must survive a reload, and knows when one is worth it.
pub struct Source {
    settings: settings::Tls,
    provider: Arc<CryptoProvider>,
    /// Kept, so that sessions resume across a reload.
    tickets: Option<tickets::Tickets>,
    client_auth: Option<ClientAuth>,
    /// The certificate in use, for a configuration in which something else is new.
    resolver: Option<Arc<dyn ResolvesServerCert>>,
    /// A CA that could not be written anywhere; see [`self_signed::Made::memory`].
    memory: Option<self_signed::Kept>,
    served: Option<Served>,
}

/// What the last successful load found.
struct Served {
    stamps: Vec<Option<Stamp>>,
    /// Unix seconds; `None` for files that somebody else renews.
    renew_at: Option<i64>,
}

/// Changes whenever a file is replaced or rewritten, also behind a symlink.
#[derive(Clone, Copy, Eq, PartialEq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Source {
    pub fn new(settings: settings::Tls) -> Self {
        Self {
            settings,
            provider: Arc::new(aws_lc_rs::default_provider()),
            tickets: None,
            client_auth: None,
            resolver: None,
            memory: None,
            served: None,
        }
    }

    /// As [`load`]. After an error the state is the old one, and [`due`](Self::due) stays true.
    /// It reads files and may wait for another process's lock, so not on a thread that serves clients.
    ///
    /// # Errors
    /// No usable pair.
    pub fn load(&mut self, now: SystemTime) -> Result<Loaded, Error> {
        let mut notice = Vec::new();
        let mut rules_problems = Vec::new();
        if self.resolver.is_none() {
            (notice, rules_problems) = self.read_others(now)?;
        }
        let now = unix(now);
        let stamps = self.stamps(); // before reading: a change in between is seen at the next look
        let (certified, leaf, mut problems, renew_at, made) = match choose(&self.settings)? {
            Choice::Files(files) => {
                let pair = certificate::read_pair(&files.cert, &files.key)?;
                notice.extend(key_mode(&files.key).map(|(_, text)| text));
                let mut problems = Vec::new();
                for complaint in facts::complaints(&pair.chain, now) {
                    let text = about(&files.cert, &complaint);
                    match complaint.grade {
                        Grade::Refused => problems.push(text),
                        Grade::Doubtful => notice.push(text),
                    }
                }
                (pair.certified, pair.chain, problems, None, false)
            }
            Choice::SelfSigned { made, instead_of } => {
                let found = self_signed::in_dir(&made.names, &made.dir, now, self.memory.take())?;
                notice.extend(instead_of.map(instead));
                notice.extend(found.news.iter().cloned());
                notice.push(serving(&found, &made.dir));
                for key in ["ca.key", "privkey.pem"] {
                    notice.extend(key_mode(&made.dir.join(key)).map(|(_, text)| text));
                }
                self.memory = found.memory;
                // What could not be renewed is tried again tomorrow, not in a loop.
                let renew_at = found.renew_at.max(now + DAY);
                (found.pair.certified, found.pair.chain, Vec::new(), Some(renew_at), true)
            }
        };
        problems.append(&mut rules_problems);
        let leaf = &leaf[0];
        let resolver: Arc<dyn ResolvesServerCert> = Arc::new(SingleCertAndKey::from(certified));
        let config = self.config(&resolver)?;
        self.resolver = Some(resolver);
        // Our own writing just now is no change.
        let stamps = if made { self.stamps() } else { stamps };
        self.served = Some(Served { stamps, renew_at });
        let stem = |files: &CertificateFiles| {
            files.cert.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into())
        };
        let certificate = match (leaf.first_dns(), &self.settings.certificate) {
            (Some(name), _) => name.to_owned(),
            (None, Some(files)) if !made => stem(files),
            (None, _) => "self-signed".to_owned(),
        };
        let names = leaf.names.iter().map(ToString::to_string).collect();
        let not_after = leaf.not_after;
        let list_next_update = self.client_auth.as_ref().and_then(|auth| auth.rules.next_update);
        Ok(Loaded {
            config,
            not_after,
            names,
            certificate,
            self_signed: made,
            notice,
            problems,
            list_next_update,
        })
    }

    /// Reads for the first time what stands beside the certificate; notices and problems.
    fn read_others(&mut self, now: SystemTime) -> Result<(Vec<String>, Vec<String>), Error> {
        let (mut notice, mut problems) = (Vec::new(), Vec::new());
        self.tickets = tickets::Tickets::new(&self.settings.tickets, now)?;
        notice.extend(self.tickets.iter().flat_map(tickets::Tickets::notice));
        if let Some(wanted) = &self.settings.client_auth {
            let auth = ClientAuth::new(wanted.clone(), &self.provider, now)?;
            notice.extend_from_slice(&auth.rules.notice);
            problems.extend_from_slice(&auth.rules.problems);
            self.client_auth = Some(auth);
        }
        Ok((notice, problems))
    }

    /// Looks at what stands beside the certificate, and reads what has changed; rolls the ticket keys in memory. What
    /// can't be read leaves the old in place and is read again the next time. Costs one `stat` a file.
    pub fn reread(&mut self, now: SystemTime) -> Vec<Reread> {
        let mut all = Vec::new();
        if let Some(tickets) = self.tickets.as_mut().filter(|tickets| tickets.due(now)) {
            let result = match tickets.load(now) {
                Ok(tickets::Change::Rotated) => None, // as a clock ticks
                Ok(tickets::Change::Read { notice }) => {
                    Some(Ok(Fresh { notice, ..Fresh::default() }))
                }
                Err(error) => Some(Err(error.into())),
            };
            all.extend(result.map(|result| Reread { part: Part::Tickets, result }));
        }
        if self.client_auth.as_ref().is_some_and(ClientAuth::due) {
            all.push(Reread { part: Part::ClientAuth, result: self.reread_client_auth(now) });
        }
        all
    }

    fn reread_client_auth(&mut self, now: SystemTime) -> Result<Fresh, Error> {
        let (Some(auth), Some(resolver)) = (&mut self.client_auth, self.resolver.clone()) else {
            return Ok(Fresh::default());
        };
        auth.load(&self.provider, now)?;
        let client_auth::Rules { notice, problems, next_update, .. } = auth.rules.clone();
        let config = Some(self.config(&resolver)?);
        Ok(Fresh { config, notice, problems, list_next_update: next_update })
    }

    /// Whether [`load`](Self::load) would bring something new: a self-made certificate is to be renewed, or
    /// a file has changed. Costs one `stat` a file.
    pub fn due(&self, now: SystemTime) -> bool {
        let Some(served) = &self.served else { return true };
        served.renew_at.is_some_and(|at| at <= unix(now)) || served.stamps != self.stamps()
    }

    fn stamps(&self) -> Vec<Option<Stamp>> {
        let mut paths = Vec::new();
        if let Some(files) = &self.settings.certificate {
            paths.extend([files.cert.clone(), files.key.clone()]);
        }
        if let Some(made) = &self.settings.self_signed {
            paths.extend(self_signed::FILES.iter().map(|file| made.dir.join(file)));
        }
        paths.iter().map(|path| Stamp::of(path)).collect()
    }

    fn config(&self, resolver: &Arc<dyn ResolvesServerCert>) -> Result<Arc<ServerConfig>, Error> {
        let versions: &[_] = match self.settings.min_version {
            MinVersion::Tls12 => &[&rustls::version::TLS13, &rustls::version::TLS12],
            MinVersion::Tls13 => &[&rustls::version::TLS13],
        };
        let rules = self.client_auth.as_ref().map(|auth| &auth.rules);
        let verifier = match rules {
            Some(rules) => Arc::clone(&rules.verifier),
            None => WebPkiClientVerifier::no_client_auth(),
        };
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(versions)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::clone(resolver));
        config.alpn_protocols = vec![b"imap".to_vec()];
        // Ours is the better order, and the difference between two AEAD suites is not the client's to decide.
        config.ignore_client_order = true;
        // Tickets hold the state, so that no session of ours has to be remembered.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        match &self.tickets {
            Some(tickets) => {
                let policy = rules.map_or_else(Default::default, |rules| rules.policy);
                config.ticketer = tickets.sealer(policy);
                config.send_tls13_tickets = TICKETS;
                config.max_tls13_tickets = MAX_TICKETS;
            }
            None => config.send_tls13_tickets = 0, // and no ticketer makes any for TLS 1.2
        }
        // Behind the handshake `proto::record` takes over.
        config.enable_secret_extraction = true;
        debug_assert_eq!(config.max_early_data_size, 0, "0-RTT can be replayed (RFC 9325 §3.10)");
        Ok(Arc::new(config))
    }
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let found = fs::metadata(path).ok()?;
        let modified = (found.mtime(), found.mtime_nsec());
        Some(Self { device: found.dev(), inode: found.ino(), size: found.size(), modified })
    }
}

/// Which of the two sources serves.
enum Choice<'a> {
    Files(&'a CertificateFiles),
    SelfSigned { made: &'a SelfSigned, instead_of: Option<&'a CertificateFiles> },
}

fn choose(settings: &settings::Tls) -> Result<Choice<'_>, Error> {
    match (&settings.certificate, &settings.self_signed) {
        (Some(files), None) => Ok(Choice::Files(files)),
        (None, Some(made)) => Ok(Choice::SelfSigned { made, instead_of: None }),
        (None, None) => Err(Error::Nothing),
        (Some(files), Some(made)) => match (is_there(&files.cert), is_there(&files.key)) {
            (true, true) => Ok(Choice::Files(files)),
            (false, false) => Ok(Choice::SelfSigned { made, instead_of: Some(files) }),
            (true, false) => {
                Err(Error::Half { missing: files.key.clone(), present: files.cert.clone() })
            }
            (false, true) => {
                Err(Error::Half { missing: files.cert.clone(), present: files.key.clone() })
            }
        },
    }
}

/// A link to nowhere, or a directory that must not be entered, counts as there: it is a mistake to report and
/// no reason to serve another certificate.
fn is_there(path: &Path) -> bool {
    !matches!(path.symlink_metadata(), Err(error) if error.kind() == std::io::ErrorKind::NotFound)
}

fn instead(files: &CertificateFiles) -> String {
    format!(
        "neither {} nor {} exists, so a SELF-MADE CERTIFICATE is served and mail clients will warn; put a certificate and its key there, they are served within a minute",
        files.cert.display(),
        files.key.display()
    )
}

fn serving(made: &self_signed::Made, dir: &Path) -> String {
    let leaf = &made.pair.chain[0];
    let names: Vec<String> = leaf.names.iter().map(ToString::to_string).collect();
    let whose = match made.memory {
        None => format!("trust the CA in {}", dir.join("ca.pem").display()),
        Some(_) => "its CA lives in memory only".to_owned(),
    };
    format!(
        "serving a self-made certificate for {} until {}; {whose}, SHA-256 fingerprint {}",
        names.join(", "),
        facts::date(leaf.not_after),
        made.ca.fingerprint
    )
}

/// How bad a [`Finding`] is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Severity {
    /// The service does not start, or no client accepts it.
    Error,
    /// It works, but not for everybody or not for long.
    Warning,
}

/// One line of the `check` command.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Finding {
    pub severity: Severity,
    pub message: String,
}

/// Everything that is wrong with the files that the settings name. Makes no files, opens no port.
pub fn check(settings: &settings::Tls) -> Vec<Finding> {
    check_at(settings, unix(SystemTime::now()))
}

fn check_at(settings: &settings::Tls, now: i64) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut say = |severity, message| findings.push(Finding { severity, message });
    match choose(settings) {
        Err(error) => say(Severity::Error, chain(&error)),
        Ok(Choice::Files(files)) => check_files(files, now, &mut say),
        Ok(Choice::SelfSigned { made, instead_of }) => {
            if let Some(files) = instead_of {
                say(Severity::Warning, instead(files));
            }
            if let Err(error) = self_signed::inspect(&made.names, &made.dir, now) {
                say(Severity::Error, chain(&error));
            }
            for key in ["ca.key", "privkey.pem"] {
                if let Some((severity, text)) = key_mode(&made.dir.join(key)) {
                    say(severity, text);
                }
            }
        }
    }
    tickets::check(&settings.tickets, &mut say);
    if let Some(wanted) = &settings.client_auth {
        client_auth::check(wanted, &Arc::new(aws_lc_rs::default_provider()), now, &mut say);
    }
    findings
}

fn check_files(files: &CertificateFiles, now: i64, say: &mut impl FnMut(Severity, String)) {
    let certs = certificate::read_chain(&files.cert);
    let key = certificate::read_key(&files.key);
    // Both files are looked at on their own first, so that one mistake does not hide the other.
    let facts = match &certs {
        Ok(certs) => match certificate::facts_of(certs, &files.cert) {
            Ok(facts) => facts,
            Err(error) => {
                say(Severity::Error, chain(&error));
                Vec::new()
            }
        },
        Err(error) => {
            say(Severity::Error, chain(error));
            Vec::new()
        }
    };
    if let Err(error) = &key {
        say(Severity::Error, chain(error));
    }
    if let (Ok(certs), Ok(key), false) = (certs, &key, facts.is_empty())
        && let Err(error) = certificate::pair(certs, key, &files.cert, &files.key)
    {
        say(Severity::Error, chain(&error));
        if matches!(error, certificate::Error::LeafNotFirst { .. }) {
            return; // what a client would say of the wrong certificate misleads
        }
    }
    for complaint in facts::complaints(&facts, now) {
        let severity = match complaint.grade {
            Grade::Refused => Severity::Error,
            Grade::Doubtful => Severity::Warning,
        };
        say(severity, about(&files.cert, &complaint));
    }
    if let Some((severity, text)) = key_mode(&files.key) {
        say(severity, text);
    }
}

/// What is wrong with the permissions of a private key.
fn key_mode(path: &Path) -> Option<(Severity, String)> {
    open_to(path, "private key")
}

/// What is wrong with the permissions of a file that holds a secret, called `what`.
fn open_to(path: &Path, what: &str) -> Option<(Severity, String)> {
    let mode = certificate::mode_of(path)?;
    let (severity, who) = match mode {
        mode if mode & 0o006 != 0 => (Severity::Error, "everybody on this machine"),
        mode if mode & 0o060 != 0 => (Severity::Warning, "its group"),
        _ => return None,
    };
    let shown = path.display();
    Some((
        severity,
        format!("{shown}: {what} open to {who} (mode {mode:04o}); run `chmod 600 {shown}`"),
    ))
}

fn about(path: &Path, complaint: &Complaint) -> String {
    format!("{}: {}", path.display(), complaint.text)
}

/// An error with its causes on one line, as `main` prints them.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

fn unix(now: SystemTime) -> i64 {
    match now.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        Err(_) => 0, // a clock before 1970
    }
}

#[cfg(test)]
mod tests;
