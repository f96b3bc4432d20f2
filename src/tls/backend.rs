//! TLS to a server: whom to trust, and in an operator's words why not.
//!
//! In: [`settings::ServerTls`] and the CA file that it names. Out: a [`Connector`] with the configuration for rustls, and
//! [`Distrust`] where a certificate is not good enough. TLS 1.3 and 1.2, with the suites that rustls has, all of them AEAD.
//! Standards: RFC 5280 by way of webpki; RFC 7817 §3 for names: only those of the subjectAltName count, `*` as a
//! whole first label. A pinned certificate is good whatever its names and dates, for the operator has named exactly
//! it. Whoever is trusted, the handshake's signature is verified: a copied certificate is no use without its key.
//! Sessions resume per server, only under the configuration that verified them: a changed CA file forgets them.
//! Not here: the handshake (`backend::secure`), STARTTLS (`proto::imap::upgrade`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use aws_lc_rs::digest;
use rustls::SignatureScheme;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    CryptoProvider, aws_lc_rs as provider, verify_tls12_signature, verify_tls13_signature,
};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::facts::{self, Facts};
use super::pairs::Stamp;
use super::{Severity, certificate, chain, check::Finding, roots, unix};
use crate::config::settings::{self, TlsMode, Trust};

/// How often a CA file is looked at, at most.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Why nobody can be trusted. All of it is for the operator.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    File(#[from] certificate::Error),
    #[error(
        "the system trusts no CA, so no server's certificate would be good; install the package ca-certificates, or name a CA's file in backend.tls.ca"
    )]
    NoCa,
    #[error(
        "backend.tls.server_name: `{0}` is no name of one server; write a DNS name or an IP address"
    )]
    Name(String),
    #[error("certificates of servers cannot be verified: {0}")]
    Verifier(#[from] rustls::client::VerifierBuilderError),
    #[error("TLS to servers cannot be set up: {0}")]
    Rustls(#[from] rustls::Error),
}

/// TLS to one server.
pub struct Connector {
    settings: settings::ServerTls,
    pub name: ServerName<'static>,
    config: ArcSwap<ClientConfig>,
    looked: Mutex<Looked>,
}

/// When the CA file was last looked at, and what it was then.
struct Looked {
    at: Instant,
    stamp: Option<Stamp>,
}

/// One for each server that is spoken to in TLS, in the configuration's order, but for those that are `kept` as they are.
/// Reads files: blocking.
///
/// # Errors
/// A CA file that is not what it should be, or nobody to trust.
pub fn connectors(
    backend: &settings::Backend,
    kept: &[bool],
) -> Result<Vec<Option<Connector>>, Error> {
    let mut system = None;
    let is_new = |at: &usize| !kept.get(*at).is_some_and(|kept| *kept);
    let new = (0..backend.servers.len()).filter(is_new).map(|at| &backend.servers[at]);
    for (path, cas) in ca_files(new) {
        let (file, count) = (path.display().to_string(), cas.facts.len());
        tracing::info!(file, count, "CAs of servers were read");
        cas.problems.iter().for_each(|why| tracing::error!("{why}; it does not count"));
        cas.notice.iter().for_each(|why| tracing::warn!("{why}"));
    }
    let each = backend.servers.iter().enumerate().map(|(at, server)| match &server.tls {
        Some(tls) if !kept.get(at).is_some_and(|kept| *kept) => {
            if tls.trust == Trust::Insecure {
                tracing::warn!("{}", insecure(&server.address));
            }
            Connector::new(tls, &mut system).map(Some)
        }
        Some(_) => Ok(None),
        None => {
            if let Some(words) = exposed(&server.address) {
                tracing::warn!("{words}");
            }
            Ok(None)
        }
    });
    each.collect()
}

impl Connector {
    /// `system`: the system's CAs, once somebody has needed them.
    fn new(
        settings: &settings::ServerTls,
        system: &mut Option<Arc<RootCertStore>>,
    ) -> Result<Self, Error> {
        let name = settings.server_name.trim_end_matches('.');
        let name = ServerName::try_from(name.to_owned())
            .map_err(|_| Error::Name(settings.server_name.clone()))?;
        let stamp = settings.stamp();
        let config = config(&settings.trust, system, false)?;
        Ok(Self {
            settings: settings.clone(),
            name,
            config: ArcSwap::from_pointee(config),
            looked: Mutex::new(Looked { at: Instant::now(), stamp }),
        })
    }

    /// With the first byte, or when STARTTLS was agreed on.
    pub fn is_implicit(&self) -> bool {
        self.settings.mode == TlsMode::Implicit
    }

    /// What the next handshake goes by. A CA file that has changed is read again; it is looked at once a second at most, and
    /// nobody waits for whoever does. One that can't be used is logged, once, and what was read before stays.
    pub fn config(&self) -> Arc<ClientConfig> {
        let Trust::Ca(path) = &self.settings.trust else { return self.config.load_full() };
        let Ok(mut looked) = self.looked.try_lock() else { return self.config.load_full() };
        if looked.at.elapsed() < LOOK_AGAIN {
            return self.config.load_full();
        }
        looked.at = Instant::now();
        let stamp = self.settings.stamp();
        if looked.stamp != stamp {
            looked.stamp = stamp;
            let file = path.display().to_string();
            match config(&self.settings.trust, &mut None, true) {
                Ok(config) => {
                    self.config.store(Arc::new(config));
                    tracing::info!(file, "the servers' CA has changed and is in use");
                }
                Err(error) => {
                    let error = chain(&error);
                    tracing::error!(error, "the servers' CA can't be used, the old one stays");
                }
            }
        }
        self.config.load_full()
    }
}

impl settings::ServerTls {
    fn stamp(&self) -> Option<Stamp> {
        match &self.trust {
            Trust::Ca(path) => Stamp::of(path),
            _ => None,
        }
    }
}

/// `whole`: a CA file of which a part can't be used is not to be used at all, for the old CAs are more.
fn config(
    trust: &Trust,
    system: &mut Option<Arc<RootCertStore>>,
    whole: bool,
) -> Result<ClientConfig, Error> {
    let provider = Arc::new(provider::default_provider());
    let webpki = |roots| -> Result<_, Error> {
        let builder = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider));
        Ok(Judge::Chain(builder.build()?))
    };
    let judge = match trust {
        Trust::System => {
            let roots = system.get_or_insert_with(|| Arc::new(roots::system()));
            if roots.is_empty() {
                return Err(Error::NoCa);
            }
            webpki(Arc::clone(roots))?
        }
        Trust::Ca(path) => {
            let cas = certificate::read_cas(path)?;
            let cas = if whole { cas.whole()? } else { cas };
            webpki(Arc::new(cas.roots))?
        }
        Trust::Fingerprint(sha256) => Judge::Pin(*sha256),
        Trust::Insecure => Judge::Nobody,
    };
    let verifier = Verifier { judge, provider: Arc::clone(&provider) };
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth())
}

/// What `check` says of TLS to servers.
pub fn check(backend: &settings::Backend) -> Vec<Finding> {
    let mut findings: Vec<Finding> = Vec::new();
    let mut say = |severity, message| {
        let finding = Finding { severity, message };
        if !findings.contains(&finding) {
            findings.push(finding); // most servers share one section
        }
    };
    let (now, mut system) = (unix(SystemTime::now()), None);
    for server in &backend.servers {
        let Some(tls) = &server.tls else {
            exposed(&server.address).into_iter().for_each(|words| say(Severity::Warning, words));
            continue;
        };
        if let Err(error) = Connector::new(tls, &mut system) {
            say(Severity::Error, chain(&error));
        }
        if tls.trust == Trust::Insecure {
            say(Severity::Warning, insecure(&server.address));
        }
        let Trust::Ca(path) = &tls.trust else { continue };
        let Ok(cas) = certificate::read_cas(path) else { continue }; // said already
        cas.problems.into_iter().for_each(|why| say(Severity::Error, why));
        cas.notice.into_iter().for_each(|why| say(Severity::Warning, why));
        for (ca, why) in cas.facts.iter().filter_map(|ca| Some((ca, facts::dates(ca, now)?))) {
            say(Severity::Warning, format!("{}: the CA {} {why}", path.display(), ca.subject));
        }
    }
    findings
}

/// What the CA files of servers hold, counted, a line for each.
pub fn held(backend: &settings::Backend) -> Vec<String> {
    let files = ca_files(&backend.servers).into_iter();
    let counted = |cas: certificate::Cas| certificate::What::Ca.counted(cas.facts.len());
    files.map(|(path, cas)| format!("{}: {}", path.display(), counted(cas))).collect()
}

/// The CA files of servers that can be read, each once: most servers share one.
fn ca_files<'a>(
    servers: impl IntoIterator<Item = &'a settings::Server>,
) -> BTreeMap<&'a Path, certificate::Cas> {
    let trust = servers.into_iter().filter_map(|server| Some(&server.tls.as_ref()?.trust));
    let paths: BTreeSet<&Path> = trust
        .filter_map(|trust| match trust {
            Trust::Ca(path) => Some(path.as_path()),
            _ => None,
        })
        .collect();
    let read = |path| Some((path, certificate::read_cas(path).ok()?));
    paths.into_iter().filter_map(read).collect()
}

/// The warning for a server whose certificate nobody looks at.
fn insecure(server: &settings::ServerAddress) -> String {
    format!(
        "backend.tls verify: insecure: any certificate of {server} is accepted, and whoever stands in between reads the passwords; `fingerprint` pins the one that it has"
    )
}

/// What a server on the Internet means that is spoken to in plaintext, and what to do.
pub const IN_THE_CLEAR: &str = "whoever stands in between reads the passwords; set `tls: starttls` or `tls: implicit`, or use a network of their own";

/// The warning for a server whose address lies on the Internet and that is spoken to in plaintext. What a name stands for is not
/// known before it is looked up ([`is_exposed`]).
fn exposed(server: &settings::ServerAddress) -> Option<String> {
    literal(server).is_some_and(is_public).then(|| {
        format!("backend.servers: {server} is a public address and has no TLS: {IN_THE_CLEAR}")
    })
}

/// Whether passwords to `ip`, at which `server` is, cross the Internet in plaintext; if it is configured by a name, for of an
/// address `check` and the start say so.
pub fn is_exposed(server: &settings::Server, ip: IpAddr) -> bool {
    server.tls.is_none() && literal(&server.address).is_none() && is_public(ip)
}

/// The address that a server is configured by, if it is no name.
fn literal(server: &settings::ServerAddress) -> Option<IpAddr> {
    let settings::ServerAddress::Host(at) = server else { return None };
    at.host.parse().ok()
}

fn is_public(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let shared = ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64; // RFC 6598
            !(ip.is_private()
                || ip.is_loopback()
                || ip.is_link_local()
                || ip.is_unspecified()
                || ip.is_documentation()
                || shared)
        }
        IpAddr::V6(ip) => {
            ip.segments()[0] & 0xe000 == 0x2000 && ip.segments()[..2] != [0x2001, 0xdb8]
        }
    }
}

#[derive(Debug)]
enum Judge {
    Chain(Arc<WebPkiServerVerifier>),
    /// SHA-256 of the certificate.
    Pin([u8; 32]),
    Nobody,
}

#[derive(Debug)]
struct Verifier {
    judge: Judge,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match &self.judge {
            Judge::Nobody => Ok(ServerCertVerified::assertion()),
            Judge::Pin(sha256) if digest::digest(&digest::SHA256, leaf).as_ref() == sha256 => {
                Ok(ServerCertVerified::assertion())
            }
            Judge::Pin(_) => Err(distrust(other_certificate(leaf))),
            Judge::Chain(webpki) => webpki
                .verify_server_cert(leaf, intermediates, name, ocsp, now)
                .map_err(|error| match error {
                    rustls::Error::InvalidCertificate(why) => {
                        distrust(why_not(&why, leaf, name, now))
                    }
                    error => error,
                }),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, signed, algorithms)
            .map_err(|error| unverified(error, cert))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, signed, algorithms)
            .map_err(|error| unverified(error, cert))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// A certificate that is not good enough: what is wrong with it, and what to do.
#[derive(Debug)]
pub struct Distrust(String);

impl fmt::Display for Distrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Distrust {}

impl Distrust {
    /// The words for why a handshake failed, if that was the certificate.
    pub fn of(error: &rustls::Error) -> Option<String> {
        match error {
            rustls::Error::InvalidCertificate(CertificateError::Other(other)) => {
                Some(other.to_string())
            }
            rustls::Error::InvalidCertificate(error) => {
                Some(format!("its certificate is not good: {error}"))
            }
            rustls::Error::NoCertificatesPresented => Some("it shows no certificate".to_owned()),
            _ => None,
        }
    }
}

fn distrust(words: String) -> rustls::Error {
    let distrust = OtherError(Arc::new(Distrust(words)));
    rustls::Error::InvalidCertificate(CertificateError::Other(distrust))
}

/// The words for a handshake whose signature can't be verified, where that is for the kind of certificate.
fn unverified(error: rustls::Error, leaf: &CertificateDer<'_>) -> rustls::Error {
    match Facts::of(leaf).ok().as_ref().and_then(outdated) {
        Some(words) if matches!(error, rustls::Error::InvalidCertificate(_)) => distrust(words),
        _ => error,
    }
}

/// What is wrong with a certificate whose key no handshake can be verified with, whoever trusts it.
fn outdated(facts: &Facts) -> Option<String> {
    let what = match (facts.version, facts.weak_rsa()) {
        (version @ ..3, _) => format!("is X.509 v{version}"),
        (_, Some(bits)) => format!("has an RSA key of {bits} bits"),
        _ => return None,
    };
    Some(format!(
        "its certificate ({}) {what}, by which TLS of today can't verify a server, not even with `fingerprint` or `verify: insecure`; the server needs a new certificate: X.509 v3, with an ECDSA key or RSA of {} bits or more",
        facts.subject,
        facts::MIN_RSA_BITS
    ))
}

fn why_not(
    error: &CertificateError,
    leaf: &CertificateDer<'_>,
    name: &ServerName<'_>,
    now: UnixTime,
) -> String {
    use CertificateError as C;
    let Ok(facts) = Facts::of(leaf) else { return "its certificate cannot be parsed".to_owned() };
    if let Some(words) = outdated(&facts) {
        return words;
    }
    let pin = format!(
        "pin it if it is the right one (backend.tls.fingerprint: \"{}\")",
        facts.fingerprint
    );
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    match error {
        C::NotValidForName | C::NotValidForNameContext { .. } => {
            let names: Vec<String> = facts.names.iter().map(ToString::to_string).collect();
            let name = name.to_str();
            match names.as_slice() {
                [] => format!(
                    "its certificate has no subjectAltName, where `{name}` has to stand; {pin}"
                ),
                names => format!(
                    "its certificate is not for `{name}` but for {}; set backend.tls.server_name to a name of these",
                    names.join(", ")
                ),
            }
        }
        C::UnknownIssuer if facts.is_self_issued() => format!(
            "its certificate is self-signed ({}) and nobody has said to trust it; {pin}",
            facts.subject
        ),
        C::BadSignature => format!(
            "its certificate was not issued by the {} that is trusted, but by another CA of that name; name that CA's file in backend.tls.ca, or {pin}",
            facts.issuer
        ),
        C::UnknownIssuer => format!(
            "its certificate was issued by {}, which is not trusted, or the server leaves out the intermediates; name that CA's file in backend.tls.ca, or {pin}",
            facts.issuer
        ),
        _ => match facts::dates(&facts, now) {
            Some(dates) => format!("its certificate {dates}; or {pin}"),
            None => format!("its certificate ({}) is not good: {error}; {pin}", facts.subject),
        },
    }
}

fn other_certificate(leaf: &CertificateDer<'_>) -> String {
    let fingerprint = facts::fingerprint(leaf);
    let subject = Facts::of(leaf).map_or_else(|why| why, |facts| facts.subject);
    format!(
        "its certificate ({subject}) is not the pinned one; if it was renewed, set backend.tls.fingerprint to \"{fingerprint}\""
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_ca_file_that_is_damaged_the_rest_counts_at_a_start_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        let pem = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap().cert.pem();
        let trust = Trust::Ca(path.clone());
        for (text, at_start, while_running) in [
            (pem.clone(), true, true),
            (pem.trim_end().to_owned() + &pem, true, true),
            (pem.clone() + &pem[..100], true, false),
            (pem[..100].to_owned(), false, false),
        ] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(config(&trust, &mut None, false).is_ok(), at_start);
            assert_eq!(config(&trust, &mut None, true).is_ok(), while_running);
        }
        let error = config(&trust, &mut None, true).unwrap_err().to_string();
        assert!(error.contains("ca.pem: damaged PEM: a section has no -----END"), "{error}");
    }

    #[test]
    fn a_public_address_is_one_that_the_internet_reaches() {
        for (address, expected) in [
            ("1.1.1.1", true),
            ("100.128.0.1", true),
            ("2a00::1", true),
            ("::ffff:1.1.1.1", true),
            ("10.1.2.3", false),
            ("172.31.0.1", false),
            ("100.64.0.1", false),
            ("127.0.0.2", false),
            ("192.0.2.1", false),
            ("fd00::1", false),
            ("fe80::1", false),
            ("::1", false),
            ("2001:db8::1", false),
        ] {
            assert_eq!(is_public(address.parse().expect("an address")), expected, "{address}");
        }
    }
}
