//! Reads certificates and keys from PEM files, and says in an operator's words what is wrong with them.
//!
//! In: paths from the configuration, or of `cert show`. Out: DER for rustls, and [`Facts`] about a
//! certificate for checks, logs and people. Standards: PEM is RFC 7468, certificates RFC 5280.
//!
//! Limits: a file over 1 MiB is refused unread. Invariant: what a key file holds is never part of a message,
//! and its text is wiped from memory after it was parsed.
//! Not here: which pair serves (`super`), and certificates that we make (`self_signed`).

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::SupportedCipherSuite;
use rustls::crypto::aws_lc_rs;
use rustls::sign::{CertifiedKey, SigningKey};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::*;
use x509_parser::public_key::PublicKey;
use zeroize::Zeroizing;

/// A chain with its key is some kilobytes; a bundle of every public root is 220 KB.
const MAX_FILE: u64 = 1 << 20;

/// The shortest RSA key that clients, and our own signing code, still take.
pub const MIN_RSA_BITS: usize = 2048;

const DAY: i64 = 86_400;

/// Why a pair cannot be used. All of it is for the operator: path, what is wrong, what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}: no such file; put the {what} there, or correct the path", path.display())]
    Missing { path: PathBuf, what: What },
    #[error(
        "{}: is a symbolic link to {}, which is not there; mount or restore what it points to",
        path.display(), target.display()
    )]
    Dangling { path: PathBuf, target: PathBuf },
    #[error("{}: permission denied to user {uid}; let that user read the file and enter its directories", path.display())]
    Denied { path: PathBuf, uid: u32 },
    #[error("{}: is a directory; name the PEM file in it that holds the {what}", path.display())]
    Directory { path: PathBuf, what: What },
    #[error("{}: is not a regular file; name a PEM file that holds the {what}", path.display())]
    NotAFile { path: PathBuf, what: What },
    #[error("{}: has {size} bytes, more than any PEM file of this kind ({MAX_FILE}); check the path", path.display())]
    TooLarge { path: PathBuf, size: u64 },
    #[error("{}: cannot be read", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: is empty; put the {what} there", path.display())]
    Empty { path: PathBuf, what: What },
    #[error(
        "{}: is binary (DER or PKCS #12), not PEM; convert it with `openssl x509 -inform DER`, `openssl pkey -inform DER` or `openssl pkcs12 -nodes`",
        path.display()
    )]
    Binary { path: PathBuf },
    #[error("{}: is not PEM: no line says -----BEGIN …-----; put the {what} there as PEM", path.display())]
    NotPem { path: PathBuf, what: What },
    #[error("{}: holds {found}, not a {what}{}", path.display(), hint(*what, found))]
    Other { path: PathBuf, what: What, found: String },
    #[error(
        "{}: the private key is encrypted with a passphrase, which nobody can type at start; decrypt it with `openssl pkey -in {} -out plain.pem` and `chmod 600 plain.pem`",
        path.display(), path.display()
    )]
    Encrypted { path: PathBuf },
    #[error("{}: damaged PEM: {why}; copy the file again", path.display())]
    Damaged { path: PathBuf, why: String },
    #[error("{}: certificate {position} cannot be parsed: {why}; copy or issue it again", path.display())]
    NotX509 { path: PathBuf, position: usize, why: String },
    #[error("{}: the private key cannot be used: {why}; RSA from 2048 bits, ECDSA on P-256, P-384 or P-521, and Ed25519 can", path.display())]
    UnusableKey { path: PathBuf, why: String },
    #[error(
        "{}: RSA key of {bits} bits, which clients refuse; make a new key of at least {MIN_RSA_BITS} bits, better ECDSA P-256, and have a certificate issued for it",
        path.display()
    )]
    WeakRsa { path: PathBuf, bits: usize },
    #[error(
        "{}: the key does not belong to the certificate in {}; name the key for which that certificate was issued, compare `openssl pkey -pubout -in {}` with `openssl x509 -pubkey -noout -in {}`",
        key.display(), cert.display(), key.display(), cert.display()
    )]
    Mismatch { cert: PathBuf, key: PathBuf },
    #[error(
        "{}: certificate {position} is the server's, but it has to be the first; put it on top and its issuers below it in order",
        path.display()
    )]
    LeafNotFirst { path: PathBuf, position: usize },
}

/// What a file was expected to hold.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum What {
    Certificate,
    Key,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            What::Certificate => "certificate",
            What::Key => "private key",
        })
    }
}

/// A mix-up of the two files is the commonest mistake, so it is named.
fn hint(what: What, found: &str) -> &'static str {
    match what {
        What::Certificate if found.contains("private key") => "; are cert and key swapped?",
        What::Key if found.contains("certificate") && !found.contains("request") => {
            "; are cert and key swapped?"
        }
        _ => "",
    }
}

/// The chain and its key, matched, as rustls takes them.
pub struct Pair {
    pub certified: CertifiedKey,
    /// Of every certificate in the file, leaf first; never empty.
    pub chain: Vec<Facts>,
}

/// Reads both files and matches them. Dates, names and the key file's mode are for [`complaints`] and
/// [`mode_of`]: a service has to start with an expired certificate too.
///
/// # Errors
/// The first thing that stops the pair from serving at all.
pub fn read_pair(cert: &Path, key: &Path) -> Result<Pair, Error> {
    let chain = read_chain(cert)?;
    let key_der = read_key(key)?;
    pair(chain, &key_der, cert, key)
}

/// Matches a chain with its key; the paths are only for messages.
///
/// # Errors
/// A certificate that does not parse, a key that is weak, unusable or another's, a chain in wrong order.
pub fn pair(
    chain: Vec<CertificateDer<'static>>,
    key: &PrivateKeyDer<'static>,
    cert_path: &Path,
    key_path: &Path,
) -> Result<Pair, Error> {
    let facts = facts_of(&chain, cert_path)?;
    let signer = aws_lc_rs::sign::any_supported_type(key).map_err(|error| {
        // The signing code only says that it will not take a short RSA key; the certificate says how short.
        match facts.iter().find_map(Facts::weak_rsa) {
            Some(bits) => Error::WeakRsa { path: key_path.to_owned(), bits },
            None => Error::UnusableKey { path: key_path.to_owned(), why: plain(&error) },
        }
    })?;
    if !belongs(&chain[0], &signer) {
        if let Some(at) = chain.iter().position(|other| belongs(other, &signer)) {
            return Err(Error::LeafNotFirst { path: cert_path.to_owned(), position: at + 1 });
        }
        return Err(Error::Mismatch { cert: cert_path.to_owned(), key: key_path.to_owned() });
    }
    if let Some(bits) = facts[0].weak_rsa() {
        return Err(Error::WeakRsa { path: key_path.to_owned(), bits });
    }
    Ok(Pair { certified: CertifiedKey::new(chain, signer), chain: facts })
}

fn belongs(certificate: &CertificateDer<'static>, signer: &Arc<dyn SigningKey>) -> bool {
    let candidate = CertifiedKey::new(vec![certificate.clone()], Arc::clone(signer));
    // Every key type of our provider knows its public half, so "unknown" does not occur.
    candidate.keys_match().is_ok()
}

fn plain(error: &rustls::Error) -> String {
    match error {
        rustls::Error::General(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The certificates of a PEM file in the order of the file; never empty.
///
/// # Errors
/// What the file is instead.
pub fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let text = read(path, What::Certificate)?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|error| damaged(&error, path))?;
    if chain.is_empty() {
        return Err(not_found(&text, path, What::Certificate));
    }
    Ok(chain)
}

/// The first private key of a PEM file, which may also hold certificates.
///
/// # Errors
/// What the file is instead; an encrypted key is told apart.
pub fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    let text = read(path, What::Key)?;
    // The old way to encrypt keeps the label of a plain key and says so in a header (RFC 1421 §4.6.1.1).
    if contains(&text, b"ENCRYPTED PRIVATE KEY") || contains(&text, b"Proc-Type: 4,ENCRYPTED") {
        return Err(Error::Encrypted { path: path.to_owned() });
    }
    match PrivateKeyDer::pem_slice_iter(&text).next() {
        Some(section) => section.map_err(|error| damaged(&error, path)),
        None => Err(not_found(&text, path, What::Key)),
    }
}

/// What a PEM file of any kind holds, for `cert show`: its labels in words, in order.
///
/// # Errors
/// The file cannot be read or is not PEM.
pub fn contents(path: &Path) -> Result<Vec<String>, Error> {
    let text = read(path, What::Certificate)?;
    let found = labels(&text);
    if found.is_empty() {
        return Err(not_found(&text, path, What::Certificate));
    }
    Ok(found)
}

fn read(path: &Path, what: What) -> Result<Zeroizing<Vec<u8>>, Error> {
    let fail = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => match fs::read_link(path) {
            Ok(target) => Error::Dangling { path: path.to_owned(), target },
            Err(_) => Error::Missing { path: path.to_owned(), what },
        },
        io::ErrorKind::PermissionDenied => {
            Error::Denied { path: path.to_owned(), uid: rustix::process::geteuid().as_raw() }
        }
        _ => Error::Read { path: path.to_owned(), source },
    };
    // Before it is opened: opening a pipe would wait for a writer.
    let found = fs::metadata(path).map_err(fail)?;
    if found.is_dir() {
        return Err(Error::Directory { path: path.to_owned(), what });
    }
    if !found.is_file() {
        return Err(Error::NotAFile { path: path.to_owned(), what });
    }
    let mut file = File::open(path).map_err(fail)?;
    let size = file.metadata().map_err(fail)?.len();
    if size > MAX_FILE {
        return Err(Error::TooLarge { path: path.to_owned(), size });
    }
    // At full size from the start: a buffer that grows leaves copies of a key behind.
    let room = usize::try_from(size).expect("at most MAX_FILE") + 1;
    let mut text = Zeroizing::new(Vec::with_capacity(room));
    file.by_ref().take(MAX_FILE).read_to_end(&mut text).map_err(fail)?;
    if text.starts_with(b"\xef\xbb\xbf") {
        text.drain(..3); // the byte order mark that Windows editors leave
    }
    match text.first() {
        None => Err(Error::Empty { path: path.to_owned(), what }),
        Some(0x30) if labels(&text).is_empty() => Err(Error::Binary { path: path.to_owned() }),
        Some(_) => Ok(text),
    }
}

fn damaged(error: &rustls_pki_types::pem::Error, path: &Path) -> Error {
    use rustls_pki_types::pem::Error as Pem;
    // Not the error's own text: it may quote a line, and the line may be of a key.
    let why = match error {
        Pem::MissingSectionEnd { .. } => "a section has no -----END …----- line",
        Pem::IllegalSectionStart { .. } => "a -----BEGIN …----- line is malformed",
        Pem::Base64Decode(_) => "a section is not base64",
        _ => "a section cannot be decoded",
    };
    Error::Damaged { path: path.to_owned(), why: why.to_owned() }
}

fn not_found(text: &[u8], path: &Path, what: What) -> Error {
    let found = labels(text);
    if found.is_empty() {
        return Error::NotPem { path: path.to_owned(), what };
    }
    Error::Other { path: path.to_owned(), what, found: in_words(&found) }
}

/// `a certificate`, `2 certificates and a private key`.
fn in_words(found: &[String]) -> String {
    let mut counted: Vec<(&str, usize)> = Vec::new();
    for label in found {
        match counted.iter_mut().find(|(known, _)| known == label) {
            Some((_, count)) => *count += 1,
            None => counted.push((label, 1)),
        }
    }
    let words: Vec<String> = counted
        .iter()
        .map(|(label, count)| match count {
            1 if label.starts_with(['a', 'e', 'i', 'o', 'u']) => format!("an {label}"),
            1 => format!("a {label}"),
            n => format!("{n} × {label}"),
        })
        .collect();
    words.join(" and ")
}

/// The sections of a PEM file, damaged or not, as people call them.
fn labels(text: &[u8]) -> Vec<String> {
    let lines = text.split(|&byte| byte == b'\n');
    lines
        .filter_map(|line| line.trim_ascii().strip_prefix(b"-----BEGIN ")?.strip_suffix(b"-----"))
        .map(|label| match label {
            b"CERTIFICATE" => "certificate".to_owned(),
            b"CERTIFICATE REQUEST" | b"NEW CERTIFICATE REQUEST" => "certificate request".to_owned(),
            b"PRIVATE KEY" | b"RSA PRIVATE KEY" | b"EC PRIVATE KEY" => "private key".to_owned(),
            b"ENCRYPTED PRIVATE KEY" => "encrypted private key".to_owned(),
            b"PUBLIC KEY" => "public key".to_owned(),
            b"X509 CRL" => "revocation list".to_owned(),
            other => String::from_utf8_lossy(other).chars().take(40).collect::<String>(),
        })
        .collect()
}

fn contains(text: &[u8], word: &[u8]) -> bool {
    memchr::memmem::find(text, word).is_some()
}

/// Permission bits of a file, symlinks followed; `None` if there is none.
pub fn mode_of(path: &Path) -> Option<u32> {
    fs::metadata(path).ok().map(|found| found.mode() & 0o777)
}

/// What people and checks want to know of one certificate.
#[derive(Clone, Debug)]
pub struct Facts {
    pub subject: String,
    pub issuer: String,
    /// The last CN of the subject, which clients have ignored for years.
    pub common_name: Option<String>,
    /// DNS names and IP addresses of the subjectAltName, in order.
    pub names: Vec<Name>,
    /// Unix seconds.
    pub not_before: i64,
    /// Unix seconds; the last second in which it is valid.
    pub not_after: i64,
    /// `ECDSA P-256`, `RSA 2048 bits`.
    pub key: String,
    /// `Some` for RSA.
    pub rsa_bits: Option<usize>,
    pub signature: String,
    pub weak_signature: bool,
    pub is_ca: bool,
    /// It has an extended key usage, and that leaves servers out.
    pub not_for_servers: bool,
    /// SHA-256 of the DER, `AA:BB:…`.
    pub fingerprint: String,
    pub serial: String,
    subject_der: Vec<u8>,
    issuer_der: Vec<u8>,
}

/// What a certificate is good for.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Name {
    Dns(String),
    Ip(IpAddr),
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Name::Dns(name) => f.write_str(name),
            Name::Ip(address) => address.fmt(f),
        }
    }
}

/// [`Facts`] of every certificate of a chain.
///
/// # Errors
/// The one that does not parse.
pub fn facts_of(chain: &[CertificateDer<'_>], path: &Path) -> Result<Vec<Facts>, Error> {
    let each = chain.iter().enumerate();
    each.map(|(index, der)| {
        Facts::of(der).map_err(|why| Error::NotX509 {
            path: path.to_owned(),
            position: index + 1,
            why,
        })
    })
    .collect()
}

impl Facts {
    fn of(der: &[u8]) -> Result<Self, String> {
        let (rest, parsed) =
            X509Certificate::from_der(der).map_err(|error| format!("not X.509 ({error})"))?;
        if !rest.is_empty() {
            return Err("bytes follow it".to_owned());
        }
        let mut names = Vec::new();
        if let Ok(Some(san)) = parsed.subject_alternative_name() {
            for name in &san.value.general_names {
                match name {
                    GeneralName::DNSName(name) => names.push(Name::Dns(printable(name))),
                    GeneralName::IPAddress(bytes) => names.extend(ip(bytes).map(Name::Ip)),
                    _ => {}
                }
            }
        }
        let (key, rsa_bits) = key_in_words(parsed.public_key());
        let (signature, weak_signature) =
            signature_in_words(&parsed.signature_algorithm.algorithm.to_id_string());
        let usage = parsed.extended_key_usage().ok().flatten();
        Ok(Self {
            subject: printable(&parsed.subject().to_string()),
            issuer: printable(&parsed.issuer().to_string()),
            common_name: parsed
                .subject()
                .iter_common_name()
                .last()
                .and_then(|cn| cn.as_str().ok())
                .map(printable),
            names,
            not_before: parsed.validity().not_before.timestamp(),
            not_after: parsed.validity().not_after.timestamp(),
            key,
            rsa_bits,
            signature,
            weak_signature,
            is_ca: parsed.is_ca(),
            not_for_servers: usage
                .is_some_and(|usage| !usage.value.server_auth && !usage.value.any),
            fingerprint: fingerprint(der),
            serial: parsed.raw_serial_as_string(),
            subject_der: parsed.subject().as_raw().to_vec(),
            issuer_der: parsed.issuer().as_raw().to_vec(),
        })
    }

    /// Issuer and subject are one: a root, or a certificate that vouches for itself.
    pub fn is_self_issued(&self) -> bool {
        self.subject_der == self.issuer_der
    }

    /// By name, which is how clients put a chain together.
    pub fn is_issued_by(&self, other: &Facts) -> bool {
        self.issuer_der == other.subject_der
    }

    /// The first DNS name, what a log line or a metric calls the certificate.
    pub fn first_dns(&self) -> Option<&str> {
        self.names.iter().find_map(|name| match name {
            Name::Dns(name) => Some(name.as_str()),
            Name::Ip(_) => None,
        })
    }

    fn weak_rsa(&self) -> Option<usize> {
        self.rsa_bits.filter(|&bits| bits < MIN_RSA_BITS)
    }
}

/// How bad a [`Complaint`] is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Grade {
    /// No client connects, or none that looks.
    Refused,
    /// Some clients complain, or it will hurt later.
    Doubtful,
}

/// Something that a client would hold against a chain.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Complaint {
    pub grade: Grade,
    pub text: String,
}

/// What clients would say of a chain, leaf first, at `now` (unix seconds).
pub fn complaints(chain: &[Facts], now: i64) -> Vec<Complaint> {
    let mut found = Vec::new();
    let mut say = |grade, text: String| found.push(Complaint { grade, text });
    let Some(leaf) = chain.first() else { return found };
    for (index, facts) in chain.iter().enumerate() {
        let who = match index {
            0 => "the certificate".to_owned(),
            n => format!("certificate {} of the chain ({})", n + 1, facts.subject),
        };
        if let Some(text) = dates(facts, now) {
            say(Grade::Refused, format!("{who} {text}"));
        } else if index == 0 && facts.not_after - now < 14 * DAY {
            let days = (facts.not_after - now) / DAY;
            say(Grade::Doubtful, format!("{who} expires in {days} days; renew it"));
        }
        if let Some(bits) = facts.weak_rsa() {
            let text = format!(
                "{who} has a weak key: RSA with {bits} bits; at least {MIN_RSA_BITS} are needed"
            );
            say(Grade::Refused, text);
        }
        // The signature of a root is not looked at: it is trusted because it is known.
        if facts.weak_signature && !facts.is_self_issued() {
            let text =
                format!("{who} has a weak signature ({}); have it issued anew", facts.signature);
            say(Grade::Refused, text);
        }
    }
    if leaf.names.is_empty() {
        let text = match &leaf.common_name {
            Some(name) => format!(
                "the certificate names its server ({name}) only as CN, which clients ignore; have it issued with a subjectAltName"
            ),
            None => "the certificate names no server (no subjectAltName); no client will accept it for any name".to_owned(),
        };
        say(Grade::Doubtful, text);
    }
    if leaf.not_for_servers {
        let text = "the certificate is not meant for servers (extendedKeyUsage without serverAuth); have it issued for a TLS server";
        say(Grade::Refused, text.to_owned());
    }
    if leaf.is_ca {
        let text = "the certificate is a CA's, which strict clients refuse for a server; put the server's own certificate first";
        say(Grade::Doubtful, text.to_owned());
    }
    for (index, step) in chain.windows(2).enumerate() {
        if !step[0].is_issued_by(&step[1]) {
            let text = format!(
                "the chain is out of order or holds a stranger: certificate {} was issued by {}, but certificate {} is {}",
                index + 1,
                step[0].issuer,
                index + 2,
                step[1].subject
            );
            say(Grade::Doubtful, text);
        }
    }
    if chain.len() == 1 && !leaf.is_self_issued() {
        let text = format!(
            "the issuer ({}) is not in the file: unless it is a root that clients know, the intermediate certificate is missing; use the full chain (often fullchain.pem)",
            leaf.issuer
        );
        say(Grade::Doubtful, text);
    }
    if chain.len() == 1 && leaf.is_self_issued() {
        let text = "the certificate vouches for itself: people have to trust exactly it";
        say(Grade::Doubtful, text.to_owned());
    }
    found
}

/// Why a certificate is not valid at `now`: `expired on 2026-01-31 (12 days ago)…`.
pub fn dates(facts: &Facts, now: i64) -> Option<String> {
    if now > facts.not_after {
        let days = (now - facts.not_after) / DAY;
        return Some(format!("expired on {} ({days} days ago); renew it", date(facts.not_after)));
    }
    if now < facts.not_before {
        return Some(format!(
            "is not valid before {}; wait, or set the clock of this machine (it says {})",
            date(facts.not_before),
            date(now)
        ));
    }
    None
}

/// `2026-11-24 03:58:12 UTC`.
pub fn date(unix: i64) -> String {
    let Ok(at) = ASN1Time::from_timestamp(unix) else { return format!("unix time {unix}") };
    let at = at.to_datetime();
    let (year, month, day) = (at.year(), u8::from(at.month()), at.day());
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC",
        at.hour(),
        at.minute(),
        at.second()
    )
}

/// SHA-256 in the form that browsers, openssl and mail clients show.
pub fn fingerprint(der: &[u8]) -> String {
    let digest = sha256(der);
    let pairs: Vec<String> = digest.iter().map(|byte| format!("{byte:02X}")).collect();
    pairs.join(":")
}

/// By way of a cipher suite: the one door that rustls leaves to its provider's hashes.
fn sha256(bytes: &[u8]) -> Vec<u8> {
    let SupportedCipherSuite::Tls13(suite) = aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256
    else {
        unreachable!("a TLS 1.3 suite by its name")
    };
    suite.common.hash_provider.hash(bytes).as_ref().to_vec()
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Some(IpAddr::from(four));
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

/// Names of a certificate are whatever its maker wrote: nothing of them may steer a terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).take(1024).collect()
}

fn key_in_words(spki: &SubjectPublicKeyInfo<'_>) -> (String, Option<usize>) {
    let curve = || spki.algorithm.parameters.as_ref().and_then(|any| any.as_oid().ok());
    match spki.parsed() {
        Ok(PublicKey::RSA(rsa)) => {
            // The length of the number itself: a DER integer may begin with a zero byte.
            let number: &[u8] = rsa.modulus;
            let start = number.iter().position(|&byte| byte != 0).unwrap_or(number.len());
            let number = &number[start..];
            let top = number.first().map_or(0, |byte| byte.leading_zeros() as usize);
            let bits = number.len() * 8 - top;
            (format!("RSA {bits} bits"), Some(bits))
        }
        Ok(PublicKey::EC(_)) => {
            let curve = curve().map(|oid| oid.to_id_string()).unwrap_or_default();
            let name = match curve.as_str() {
                "1.2.840.10045.3.1.7" => "P-256",
                "1.3.132.0.34" => "P-384",
                "1.3.132.0.35" => "P-521",
                "1.3.132.0.10" => "secp256k1",
                other => return (format!("ECDSA on curve {other}"), None),
            };
            (format!("ECDSA {name}"), None)
        }
        _ => match spki.algorithm.algorithm.to_id_string().as_str() {
            "1.3.101.112" => ("Ed25519".to_owned(), None),
            "1.3.101.113" => ("Ed448".to_owned(), None),
            other => (format!("of algorithm {other}"), None),
        },
    }
}

/// The name of a signature algorithm, and whether it is broken.
fn signature_in_words(oid: &str) -> (String, bool) {
    let (name, weak) = match oid {
        "1.2.840.113549.1.1.2" => ("RSA with MD2", true),
        "1.2.840.113549.1.1.4" => ("RSA with MD5", true),
        "1.2.840.113549.1.1.5" | "1.3.14.3.2.29" => ("RSA with SHA-1", true),
        "1.2.840.10045.4.1" => ("ECDSA with SHA-1", true),
        "1.2.840.10040.4.3" => ("DSA with SHA-1", true),
        "1.2.840.113549.1.1.10" => ("RSA-PSS", false),
        "1.2.840.113549.1.1.11" => ("RSA with SHA-256", false),
        "1.2.840.113549.1.1.12" => ("RSA with SHA-384", false),
        "1.2.840.113549.1.1.13" => ("RSA with SHA-512", false),
        "1.2.840.10045.4.3.2" => ("ECDSA with SHA-256", false),
        "1.2.840.10045.4.3.3" => ("ECDSA with SHA-384", false),
        "1.2.840.10045.4.3.4" => ("ECDSA with SHA-512", false),
        "1.3.101.112" => ("Ed25519", false),
        other => (other, false),
    };
    (name.to_owned(), weak)
}
