//! The certificate that serves and the TLS settings around it, as one `rustls::ServerConfig`.
//!
//! In: [`settings::Tls`]. Out: [`Loaded`]; and [`check`], the same look without making or changing anything.
//! TLS 1.3 and 1.2 (RFC 8446, RFC 5246 with AEAD suites only, RFC 9325), hybrid X25519MLKEM768 first, ALPN
//! `imap` (RFC 7301: a client with a list of foreign protocols is refused with alert 120, one without a list
//! is served), stateless tickets, no 0-RTT, no key log.
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
use rustls::crypto::aws_lc_rs;
use rustls::server::{NoServerSessionStorage, ProducesTickets};
use rustls::sign::{CertifiedKey, SingleCertAndKey};

use crate::config::settings::{self, CertificateFiles, MinVersion, SelfSigned};

pub mod certificate;

pub mod facts;

pub mod self_signed;

use facts::{Complaint, Grade};

const DAY: i64 = 86_400;

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
    /// Kept, so that sessions resume across a reload. Its keys roll by themselves every few hours.
    ticketer: Option<Arc<dyn ProducesTickets>>,
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
        Self { settings, ticketer: None, memory: None, served: None }
    }

    /// As [`load`]. After an error the state is the old one, and [`due`](Self::due) stays true.
    /// It reads files and may wait for another process's lock, so not on a thread that serves clients.
    ///
    /// # Errors
    /// No usable pair.
    pub fn load(&mut self, now: SystemTime) -> Result<Loaded, Error> {
        let now = unix(now);
        let stamps = self.stamps(); // before reading: a change in between is seen at the next look
        let mut notice = Vec::new();
        let (certified, leaf, problems, renew_at, made) = match choose(&self.settings)? {
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
        let leaf = &leaf[0];
        let config = self.config(certified)?;
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
        Ok(Loaded { config, not_after, names, certificate, self_signed: made, notice, problems })
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

    fn config(&mut self, certified: CertifiedKey) -> Result<Arc<ServerConfig>, Error> {
        let versions: &[_] = match self.settings.min_version {
            MinVersion::Tls12 => &[&rustls::version::TLS13, &rustls::version::TLS12],
            MinVersion::Tls13 => &[&rustls::version::TLS13],
        };
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        config.alpn_protocols = vec![b"imap".to_vec()];
        // Ours is the better order, and the difference between two AEAD suites is not the client's to decide.
        config.ignore_client_order = true;
        // Tickets hold the state, so that no session of ours has to be remembered.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        let ticketer = match self.ticketer.take() {
            Some(kept) => kept,
            None => aws_lc_rs::Ticketer::new()?,
        };
        config.ticketer = Arc::clone(&ticketer);
        self.ticketer = Some(ticketer);
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
    let mode = certificate::mode_of(path)?;
    let (severity, who) = match mode {
        mode if mode & 0o006 != 0 => (Severity::Error, "everybody on this machine"),
        mode if mode & 0o060 != 0 => (Severity::Warning, "its group"),
        _ => return None,
    };
    let shown = path.display();
    Some((
        severity,
        format!("{shown}: private key open to {who} (mode {mode:04o}); run `chmod 600 {shown}`"),
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
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair};
    use rustls::client::danger::ServerCertVerifier;
    use rustls::{
        ClientConfig, ClientConnection, HandshakeKind, ProtocolVersion, ServerConnection,
    };
    use rustls_pki_types::ServerName;
    use std::io;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;
    use tempfile::TempDir;

    /// 2026-11-24.
    const NOW: i64 = 1_795_500_000;

    fn at(unix: i64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(u64::try_from(unix).unwrap())
    }

    fn put(dir: &TempDir, file: &str, text: &str, mode: u32) -> PathBuf {
        let path = dir.path().join(file);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn tls(cert: Option<(&Path, &Path)>, made: Option<&Path>) -> settings::Tls {
        settings::Tls {
            certificate: cert
                .map(|(cert, key)| CertificateFiles { cert: cert.into(), key: key.into() }),
            self_signed: made.map(|dir| SelfSigned {
                names: vec!["mail.example.org".into(), "127.0.0.1".into()],
                dir: dir.into(),
            }),
            min_version: MinVersion::Tls12,
        }
    }

    /// A certificate and its key as PEM, valid from 10 days before `NOW` for `days`.
    fn pems(names: &[&str], days: i64) -> (String, String) {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        let from = |unix: i64| {
            rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(u64::try_from(unix).unwrap())
        };
        params.not_before = from(NOW - 10 * DAY);
        params.not_after = from(NOW - 10 * DAY + days * DAY);
        let key = KeyPair::generate().unwrap();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    fn messages(settings: &settings::Tls) -> Vec<String> {
        let found = check_at(settings, NOW).into_iter();
        found.map(|finding| format!("{:?}: {}", finding.severity, finding.message)).collect()
    }

    #[test]
    fn a_good_pair_loads_and_is_named_after_its_first_dns_name() {
        let dir = TempDir::new().unwrap();
        let (cert, key) = pems(&["192.0.2.1", "mail.example.org"], 90);
        let (cert, key) = (put(&dir, "c.pem", &cert, 0o644), put(&dir, "k.pem", &key, 0o600));
        let mut source = Source::new(tls(Some((&cert, &key)), None));
        let loaded = source.load(at(NOW)).unwrap();
        assert_eq!(loaded.certificate, "mail.example.org");
        assert_eq!(loaded.names, ["192.0.2.1", "mail.example.org"]);
        assert_eq!(loaded.not_after, NOW + 80 * DAY);
        assert!(!loaded.self_signed && loaded.problems.is_empty());
        assert!(!source.due(at(NOW + 79 * DAY)));
        let (other_cert, other_key) = pems(&["mail.example.org"], 300);
        put(&dir, "c.pem", &other_cert, 0o644);
        assert!(source.due(at(NOW)));
        assert!(source.load(at(NOW)).is_err(), "only one of the two was replaced yet");
        put(&dir, "k.pem", &other_key, 0o600);
        assert!(source.due(at(NOW)));
        assert_eq!(source.load(at(NOW)).unwrap().not_after, NOW + 290 * DAY);
        assert!(!source.due(at(NOW)));
    }

    #[test]
    fn every_mistake_names_its_file_and_its_cure() {
        let dir = TempDir::new().unwrap();
        let (cert, key) = pems(&["mail.example.org"], 90);
        let (other, _) = pems(&["mail.example.org"], 90);
        let good_cert = put(&dir, "cert.pem", &cert, 0o644);
        let good_key = put(&dir, "key.pem", &key, 0o600);
        let cut = &cert[..cert.len() / 2];
        let table: &[(&str, &str, &str)] = &[
            ("none.pem", "", "no such file; put the certificate there"),
            ("cert.pem", &key, "holds a private key, not a certificate; are cert and key swapped?"),
            ("cert.pem", "hello\n", "is not PEM"),
            ("cert.pem", "", "is empty"),
            ("cert.pem", "0\u{2}\u{1}", "is binary (DER or PKCS #12), not PEM"),
            ("cert.pem", cut, "damaged PEM: a section has no -----END"),
            (
                "cert.pem",
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
                "certificate 1 cannot be parsed",
            ),
            ("key.pem", &cert, "holds a certificate, not a private key; are cert and key swapped?"),
            (
                "key.pem",
                "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n",
                "is encrypted with a passphrase",
            ),
            (
                "key.pem",
                "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n",
                "is encrypted with a passphrase",
            ),
            (
                "key.pem",
                "-----BEGIN PRIVATE KEY-----\n!\n-----END PRIVATE KEY-----\n",
                "damaged PEM: a section is not base64",
            ),
            (
                "key.pem",
                "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
                "the private key cannot be used",
            ),
            ("cert.pem", &other, "the key does not belong to the certificate"),
            (
                "cert.pem",
                &format!("{other}{cert}"),
                "certificate 2 is the server's, but it has to be the first",
            ),
        ];
        for (file, content, expected) in table {
            let (mut cert_path, mut key_path) = (good_cert.clone(), good_key.clone());
            put(&dir, "cert.pem", &cert, 0o644);
            put(&dir, "key.pem", &key, 0o600);
            match *file {
                "none.pem" => cert_path = dir.path().join(file),
                "key.pem" => key_path = put(&dir, file, content, 0o600),
                _ => cert_path = put(&dir, file, content, 0o644),
            }
            let settings = tls(Some((&cert_path, &key_path)), None);
            let found = messages(&settings);
            assert!(found[0].starts_with("Error: ") && found[0].contains(expected), "{found:?}");
            let error = Source::new(settings).load(at(NOW)).err().expect(expected);
            assert!(chain(&error).contains(expected), "{error}");
        }
        let folder = messages(&tls(Some((dir.path(), &good_key)), None));
        assert!(folder[0].contains("is a directory; name the PEM file in it"), "{folder:?}");
        let link = dir.path().join("link.pem");
        std::os::unix::fs::symlink("../archive/none.pem", &link).unwrap();
        let found = messages(&tls(Some((&link, &good_key)), None));
        assert!(found[0].contains("is a symbolic link to ../archive/none.pem"), "{found:?}");
    }

    #[test]
    fn both_files_are_reported_at_once() {
        let none = Path::new("/nonexistent/c.pem");
        let found = messages(&tls(Some((none, Path::new("/nonexistent/k.pem"))), None));
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn dates_names_and_permissions_are_findings_but_the_service_starts() {
        let dir = TempDir::new().unwrap();
        let (cert, key) = pems(&[], 5);
        let (cert, key) = (put(&dir, "c.pem", &cert, 0o644), put(&dir, "k.pem", &key, 0o644));
        let settings = tls(Some((&cert, &key)), None);
        let found = messages(&settings).join("\n");
        assert!(found.contains("Error: ") && found.contains("expired on 2026-11-"), "{found}");
        assert!(found.contains("Warning: ") && found.contains("subjectAltName"), "{found}");
        assert!(
            found.contains("open to everybody on this machine (mode 0644); run `chmod 600"),
            "{found}"
        );
        let loaded = Source::new(settings.clone()).load(at(NOW)).unwrap();
        assert_eq!(loaded.certificate, "c");
        assert!(loaded.problems[0].contains("expired"));
        assert!(loaded.notice.iter().any(|line| line.contains("chmod 600")));
        put(&dir, "k.pem", &fs::read_to_string(&key).unwrap(), 0o640);
        assert!(
            messages(&settings)
                .iter()
                .any(|m| m.starts_with("Warning: ") && m.contains("its group"))
        );
        let future = check_at(&settings, NOW - 20 * DAY);
        assert!(future[0].message.contains("is not valid before"), "{future:?}");
    }

    #[test]
    fn self_made_serves_only_while_neither_file_exists() {
        let dir = TempDir::new().unwrap();
        let (cert, key) = (dir.path().join("c.pem"), dir.path().join("k.pem"));
        let made = dir.path().join("made");
        let settings = tls(Some((&cert, &key)), Some(&made));
        assert!(messages(&settings)[0].contains("SELF-MADE CERTIFICATE"));
        assert!(!made.exists(), "check makes nothing");
        let mut source = Source::new(settings.clone());
        let loaded = source.load(at(NOW)).unwrap();
        assert!(loaded.self_signed && loaded.notice[0].contains("SELF-MADE CERTIFICATE"));
        assert!(loaded.notice.iter().any(|line| line.contains("SHA-256 fingerprint")));
        assert!(!source.due(at(NOW)));
        let (cert_pem, key_pem) = pems(&["mail.example.org"], 90);
        put(&dir, "c.pem", &cert_pem, 0o644);
        assert!(source.due(at(NOW)));
        assert!(matches!(source.load(at(NOW)), Err(Error::Half { .. })));
        put(&dir, "k.pem", &key_pem, 0o600);
        assert!(!source.load(at(NOW)).unwrap().self_signed);
    }

    #[derive(Debug)]
    struct TrustsAll;

    impl ServerCertVerifier for TrustsAll {
        fn verify_server_cert(
            &self,
            _: &rustls_pki_types::CertificateDer<'_>,
            _: &[rustls_pki_types::CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: rustls_pki_types::UnixTime,
        ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
            Ok(rustls::client::danger::ServerCertVerified::assertion())
        }
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &rustls_pki_types::CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
        }
        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &rustls_pki_types::CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
        }
        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
        }
    }

    fn client(
        alpn: &[&str],
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> Arc<ClientConfig> {
        let mut config =
            ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_protocol_versions(versions)
                .unwrap()
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(TrustsAll))
                .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }

    /// Bytes to and fro until both are content, or what the server says against it.
    fn handshake(
        server: &Arc<ServerConfig>,
        client: &Arc<ClientConfig>,
    ) -> Result<(ServerConnection, ClientConnection), rustls::Error> {
        let name = ServerName::try_from("mail.example.org").unwrap();
        let mut client = ClientConnection::new(Arc::clone(client), name).unwrap();
        let mut server = ServerConnection::new(Arc::clone(server)).unwrap();
        while client.wants_write() || server.wants_write() {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut io::Cursor::new(&wire)).unwrap();
            server.process_new_packets()?;
            wire.clear();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut io::Cursor::new(&wire)).unwrap();
            client.process_new_packets()?;
        }
        Ok((server, client))
    }

    #[test]
    fn alpn_takes_imap_or_no_list_and_refuses_a_foreign_one() {
        let dir = TempDir::new().unwrap();
        let loaded = Source::new(tls(None, Some(dir.path()))).load(at(NOW)).unwrap();
        let all = rustls::ALL_VERSIONS;
        let (server, _) = handshake(&loaded.config, &client(&[], all)).unwrap();
        assert_eq!(server.alpn_protocol(), None);
        let (server, _) = handshake(&loaded.config, &client(&["http/1.1", "imap"], all)).unwrap();
        assert_eq!(server.alpn_protocol(), Some(&b"imap"[..]));
        let refused = handshake(&loaded.config, &client(&["http/1.1"], all)).unwrap_err();
        assert_eq!(refused, rustls::Error::NoApplicationProtocol);
    }

    #[test]
    fn versions_group_and_tickets_are_as_promised() {
        let dir = TempDir::new().unwrap();
        let mut settings = tls(None, Some(dir.path()));
        let mut source = Source::new(settings.clone());
        let first = source.load(at(NOW)).unwrap().config;
        for (version, named) in [
            (&rustls::version::TLS13, ProtocolVersion::TLSv1_3),
            (&rustls::version::TLS12, ProtocolVersion::TLSv1_2),
        ] {
            let client = client(&["imap"], &[version]);
            let (server, _) = handshake(&first, &client).unwrap();
            assert_eq!(server.protocol_version(), Some(named));
            if named == ProtocolVersion::TLSv1_3 {
                let group = server.negotiated_key_exchange_group().unwrap().name();
                assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
            }
            let second = source.load(at(NOW)).unwrap().config;
            let (server, _) = handshake(&second, &client).unwrap();
            assert_eq!(server.handshake_kind(), Some(HandshakeKind::Resumed), "across a reload");
        }
        settings.min_version = MinVersion::Tls13;
        let strict = Source::new(settings).load(at(NOW)).unwrap().config;
        assert!(handshake(&strict, &client(&[], &[&rustls::version::TLS12])).is_err());
        assert_eq!(strict.max_early_data_size, 0);
    }
}
