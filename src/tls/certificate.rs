//! Reads certificates and keys from PEM files, and says in an operator's words what is wrong with them.
//!
//! In: paths from the configuration, in a directory, or of `cert show`. Out: DER for rustls, matched into a [`Pair`].
//! Standard: RFC 7468.
//!
//! Limits: a file over 1 MiB (a revocation list: 32 MiB) is refused unread. Invariant: what a key file holds is never part of a message,
//! and its text is wiped from memory after it was parsed.
//! Not here: what a certificate says (`facts`), which pair serves (`store`), and certificates that we make
//! (`self_signed`).

use std::fmt;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;
use rustls::crypto::aws_lc_rs;
use rustls::sign::{CertifiedKey, SigningKey};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use zeroize::Zeroizing;

use super::facts::{Facts, MIN_RSA_BITS};

/// A chain with its key is some kilobytes; a bundle of every public root is 220 KB.
const MAX_FILE: u64 = 1 << 20;
/// The list of a large public CA has some megabytes.
const MAX_LIST: u64 = 32 << 20;

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
    #[error("{}: is a directory; name the file in it that holds the {what}", path.display())]
    Directory { path: PathBuf, what: What },
    #[error("{}: is not a regular file; name one that holds the {what}", path.display())]
    NotAFile { path: PathBuf, what: What },
    #[error("{}: has {size} bytes, more than any file of this kind ({limit}); check the path", path.display())]
    TooLarge { path: PathBuf, size: u64, limit: u64 },
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
    /// One whose clients are let in.
    Ca,
    RevocationList,
    TicketKey,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            What::Certificate => "certificate",
            What::Key => "private key",
            What::Ca => "CA certificate",
            What::RevocationList => "revocation list",
            What::TicketKey => "ticket key",
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
#[derive(Debug)]
pub struct Pair {
    pub certified: Arc<CertifiedKey>,
    /// Of every certificate in the file, leaf first; never empty.
    pub chain: Vec<Facts>,
}

impl Pair {
    /// Whether clients would see no difference.
    pub fn is_as(&self, other: &Pair) -> bool {
        self.certified.cert == other.certified.cert
    }
}

/// Reads both files and matches them. Dates, names and the key file's mode are for [`super::complaints`] and
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
    Ok(Pair { certified: Arc::new(CertifiedKey::new(chain, signer)), chain: facts })
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
    sections(&read(path, What::Certificate)?, path, What::Certificate)
}

/// The CA certificates of a PEM file; never empty.
///
/// # Errors
/// What the file is instead.
pub fn read_cas(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    sections(&read(path, What::Ca)?, path, What::Ca)
}

/// The revocation lists of a file, which is PEM, or DER as CAs publish it (RFC 5280 §4.2.1.13); never empty.
///
/// # Errors
/// What the file is instead.
pub fn read_lists(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, Error> {
    let bytes = read_bytes(path, What::RevocationList, MAX_LIST)?;
    if is_der(&bytes) {
        return Ok(vec![CertificateRevocationListDer::from(bytes.to_vec())]);
    }
    sections(&bytes, path, What::RevocationList)
}

/// All sections of one kind in a PEM file; never empty.
fn sections<T: PemObject>(text: &[u8], path: &Path, what: What) -> Result<Vec<T>, Error> {
    let found: Vec<T> =
        T::pem_slice_iter(text).collect::<Result<_, _>>().map_err(|error| damaged(&error, path))?;
    if found.is_empty() {
        return Err(not_found(text, path, what));
    }
    Ok(found)
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

/// What a file in a directory of certificates holds; not both parts are empty.
pub struct Held {
    pub certs: Vec<CertificateDer<'static>>,
    pub key: Option<PrivateKeyDer<'static>>,
}

/// Reads a file of which only the content can tell what it is.
///
/// # Errors
/// As [`read_chain`] and [`read_key`], and if it holds neither.
pub fn read_held(path: &Path) -> Result<Held, Error> {
    let text = read(path, What::Certificate)?;
    let labels = labels(&text);
    let has = |label: &str| labels.iter().any(|found| found == label);
    let certs = if has("certificate") { read_chain(path)? } else { Vec::new() };
    let key = match has("private key") || has("encrypted private key") {
        true => Some(read_key(path)?),
        false => None,
    };
    if certs.is_empty() && key.is_none() {
        return Err(not_found(&text, path, What::Certificate));
    }
    Ok(Held { certs, key })
}

/// The SubjectPublicKeyInfo that belongs to a private key, DER.
///
/// # Errors
/// The key cannot be used.
pub fn public_half(key: &PrivateKeyDer<'static>, path: &Path) -> Result<Vec<u8>, Error> {
    let unusable = |why: String| Error::UnusableKey { path: path.to_owned(), why };
    let signer =
        aws_lc_rs::sign::any_supported_type(key).map_err(|error| unusable(plain(&error)))?;
    let public = signer.public_key().ok_or_else(|| unusable("no public half".to_owned()))?;
    Ok(public.to_vec())
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

/// A file that has to be PEM.
fn read(path: &Path, what: What) -> Result<Zeroizing<Vec<u8>>, Error> {
    let mut text = read_bytes(path, what, MAX_FILE)?;
    if text.starts_with(b"\xef\xbb\xbf") {
        text.drain(..3); // the byte order mark that Windows editors leave
    }
    match text.first() {
        None => Err(Error::Empty { path: path.to_owned(), what }),
        Some(_) if is_der(&text) => Err(Error::Binary { path: path.to_owned() }),
        Some(_) => Ok(text),
    }
}

/// A SEQUENCE, and no PEM in it.
fn is_der(bytes: &[u8]) -> bool {
    bytes.first() == Some(&0x30) && labels(bytes).is_empty()
}

/// What stands in a file that `limit` bytes are enough for; it may be nothing.
pub(super) fn read_bytes(path: &Path, what: What, limit: u64) -> Result<Zeroizing<Vec<u8>>, Error> {
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
    let judge = |found: &Metadata| {
        let (path, size) = (path.to_owned(), found.len());
        if found.is_dir() {
            return Err(Error::Directory { path, what });
        }
        if !found.is_file() {
            return Err(Error::NotAFile { path, what });
        }
        if size > limit { Err(Error::TooLarge { path, size, limit }) } else { Ok(size) }
    };
    // Before it is opened, for to open a device may do something; and again what was opened, which may be another file.
    judge(&fs::metadata(path).map_err(fail)?)?;
    let mut file = open(path).map_err(fail)?;
    let size = judge(&file.metadata().map_err(fail)?)?;
    // At full size from the start: a buffer that grows leaves copies of a key behind.
    let room = usize::try_from(size).expect("at most the limit") + 1;
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    file.by_ref().take(limit).read_to_end(&mut bytes).map_err(fail)?;
    Ok(bytes)
}

/// Never waits: a pipe would for a writer.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path)
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

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, Mode, mkfifoat};

    #[test]
    fn a_pipe_in_place_of_a_file_is_refused_and_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe.pem");
        mkfifoat(CWD, &path, Mode::RUSR).unwrap();
        let error = read_chain(&path).unwrap_err().to_string();
        assert!(error.contains("pipe.pem: is not a regular file"), "{error}");
        // It came between the look and the opening.
        assert!(!open(&path).unwrap().metadata().unwrap().is_file());
    }
}
