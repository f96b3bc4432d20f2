//! Reads certificates and keys from PEM files, and says in an operator's words what is wrong with them.
//!
//! In: paths from the configuration, in a directory, or of `cert show`. Out: DER for rustls, matched into a [`Pair`].
//! A pair needs one certificate that can be read and its key, wherever in the file the certificate
//! stands. All else in the file is the issuers' and is judged in `complaints`: it stops nothing.
//!
//! Limits: a file over 1 MiB (a revocation list: 32 MiB) is refused unread. Invariant: what a key file holds is never part of a message,
//! and its text is wiped from memory after it was parsed.
//! Not here: the form of the files (`pem`), what a certificate says (`facts`), which of the issuers
//! are sent (`path`), which pair serves (`store`), and certificates that we make (`self_signed`).

use std::fmt;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls::sign::{CertifiedKey, SigningKey};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use zeroize::Zeroizing;

use super::facts::{self, Facts, MIN_RSA_BITS};
use super::path;
use super::pem::{self, Fault, Kind, Section};

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
    #[error(
        "{}: the private key gives its curve by explicit parameters, which hardly any client takes; write it anew with `openssl ec -in {} -param_enc named_curve -out new.key`, and have a certificate issued for that",
        path.display(), path.display()
    )]
    ExplicitCurve { path: PathBuf },
    /// Of several CAs: what is wrong with the first that can't be used.
    #[error("{0}")]
    Partly(String),
    #[error("{}: certificate {position} cannot be used as a CA: {source}", path.display())]
    UnusableCa { path: PathBuf, position: usize, source: rustls::Error },
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
}

impl Error {
    /// What is wrong with one certificate of several.
    fn of_one(&self) -> Option<String> {
        let Self::NotX509 { position, why, .. } = self else { return None };
        Some(format!("certificate {position} cannot be parsed: {why}"))
    }
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

impl What {
    /// `2 CA certificates`.
    pub fn counted(self, count: usize) -> String {
        format!("{count} {self}{}", if count == 1 { "" } else { "s" })
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
    /// With all that can be read of the file, the server's certificate first.
    pub certified: Arc<CertifiedKey>,
    /// Of each of these; never empty.
    pub chain: Vec<Facts>,
    /// What in the file can't be read.
    pub unread: Unread,
}

impl Pair {
    /// Whether clients would see no difference.
    pub fn is_as(&self, other: &Pair) -> bool {
        self.certified.cert == other.certified.cert
    }

    /// What clients are sent at `now` (unix seconds): in order, each certificate once, and nothing
    /// that has expired where it leads from the server's certificate to no issuer.
    pub fn sent(&self, now: i64) -> Arc<CertifiedKey> {
        if path::is_tidy(&self.chain, now) {
            return Arc::clone(&self.certified);
        }
        let chain = path::to_send(&self.chain, now).map(|facts| facts.der.clone()).collect();
        Arc::new(CertifiedKey::new(chain, Arc::clone(&self.certified.key)))
    }
}

/// What a file of certificates holds besides those that were read, in words.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Unread {
    /// Meant to be certificates.
    pub damaged: Vec<String>,
    /// Sections of another kind, which may have been meant to be.
    pub foreign: Vec<String>,
}

/// The certificates of a file, in its order; never empty.
#[derive(Debug)]
pub struct Certs {
    pub ders: Vec<CertificateDer<'static>>,
    pub unread: Unread,
}

/// Reads both files and matches them. Dates, names and the key file's mode are for [`super::complaints`] and
/// [`mode_of`]: a service has to start with an expired certificate too.
///
/// # Errors
/// The first thing that stops the pair from serving at all.
pub fn read_pair(cert: &Path, key: &Path) -> Result<Pair, Error> {
    let certs = read_certs(cert, What::Certificate)?;
    let keys = read_keys(key)?;
    matched(certs, &keys, cert, key)
}

/// Matches a chain with its key; the paths are only for messages.
///
/// # Errors
/// As [`matched`].
pub fn pair(
    chain: Vec<CertificateDer<'static>>,
    key: &PrivateKeyDer<'static>,
    cert_path: &Path,
    key_path: &Path,
) -> Result<Pair, Error> {
    let certs = Certs { ders: chain, unread: Unread::default() };
    matched(certs, std::slice::from_ref(key), cert_path, key_path)
}

/// Finds the certificate to which one of the keys belongs; the paths are only for messages.
///
/// # Errors
/// No certificate that can be read belongs to any of the keys; the key that does is weak or unusable.
pub fn matched(
    certs: Certs,
    keys: &[PrivateKeyDer<'static>],
    cert_path: &Path,
    key_path: &Path,
) -> Result<Pair, Error> {
    let Certs { ders, mut unread } = certs;
    let (mut chain, mut unparsed) = (Vec::new(), None);
    for read in each_facts(&ders, cert_path) {
        match read {
            Ok(facts) => chain.push(facts),
            Err(error) => {
                unread.damaged.extend(error.of_one());
                unparsed.get_or_insert(error);
            }
        }
    }
    let mut wrong = None;
    for key in keys {
        let signer = match signer(key, &chain, key_path) {
            Ok(signer) => signer,
            Err(error) => {
                wrong.get_or_insert(error);
                continue;
            }
        };
        let Some(at) = position(&chain, &signer) else { continue };
        let leaf = chain.remove(at);
        if let Some(bits) = leaf.weak_rsa() {
            return Err(Error::WeakRsa { path: key_path.to_owned(), bits });
        }
        chain.insert(0, leaf);
        let ders = chain.iter().map(|facts| facts.der.clone()).collect();
        let certified = Arc::new(CertifiedKey::new(ders, signer));
        return Ok(Pair { certified, chain, unread });
    }
    // What can't be read may be what was looked for.
    let damaged = unread.damaged.first().map(|why| damaged(why, cert_path));
    Err(wrong.or(unparsed).or(damaged).unwrap_or_else(|| Error::Mismatch {
        cert: cert_path.to_owned(),
        key: key_path.to_owned(),
    }))
}

/// Which certificate is the one of the key. Several are where an old one was left in the file.
fn position(chain: &[Facts], signer: &Arc<dyn SigningKey>) -> Option<usize> {
    let spki = signer.public_key()?;
    let key = facts::key_of(spki.as_ref())?;
    let its = (0..chain.len()).filter(|&at| chain[at].public.as_ref() == Some(&key));
    // `max_by_key` takes the last of equals, and the first is wanted.
    its.rev().max_by_key(|&at| (!chain[at].is_ca, chain[at].not_after))
}

/// What signs with the key. `chain` is only for the words.
fn signer(
    key: &PrivateKeyDer<'static>,
    chain: &[Facts],
    path: &Path,
) -> Result<Arc<dyn SigningKey>, Error> {
    aws_lc_rs::sign::any_supported_type(key).map_err(|error| {
        // The signing code only says that it will not take a short RSA key; the certificate says how short.
        if let Some(bits) = chain.iter().find_map(Facts::weak_rsa) {
            return Error::WeakRsa { path: path.to_owned(), bits };
        }
        if chain.first().is_some_and(|leaf| leaf.is_on_explicit_curve()) {
            return Error::ExplicitCurve { path: path.to_owned() };
        }
        Error::UnusableKey { path: path.to_owned(), why: plain(&error) }
    })
}

fn plain(error: &rustls::Error) -> String {
    match error {
        rustls::Error::General(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The certificates of a PEM file in the order of the file, as far as they can be read; never empty.
///
/// # Errors
/// What the file is instead.
pub fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    Ok(read_certs(path, What::Certificate)?.ders)
}

/// The certificates of a PEM file in the order of the file, and what in it can't be read.
///
/// # Errors
/// What the file is instead.
pub fn read_certs(path: &Path, what: What) -> Result<Certs, Error> {
    certs_in(&read(path, what)?, path, what)
}

/// The same of a text; the path is only for messages.
///
/// # Errors
/// What the text is instead.
pub fn certs_in(text: &[u8], path: &Path, what: What) -> Result<Certs, Error> {
    let (mut ders, mut unread) = (Vec::new(), Unread::default());
    let sections = pem::sections(text);
    for section in &sections {
        let line = section.line;
        match section.kind {
            Kind::Certificate | Kind::TrustedCertificate => match section.decode() {
                Ok(der) => match plain_certificate(der, section.kind, what) {
                    Some(der) => ders.push(der),
                    None => unread.foreign.push(format!(
                        "a TRUSTED CERTIFICATE (line {line}) says what it is trusted for, which is not looked at here, so it does not count; `openssl x509 -in FILE -out PLAIN` writes it without"
                    )),
                },
                Err(fault) => unread.damaged.push(in_line(fault, line)),
            },
            Kind::Other if !is_usual(section.label) => unread.foreign.push(format!(
                "a section of the kind {} (line {line}) is not read; put certificates there as -----BEGIN CERTIFICATE-----",
                label_in_words(section)
            )),
            _ => {}
        }
    }
    match (ders.is_empty(), unread.damaged.first()) {
        (false, _) => Ok(Certs { ders, unread }),
        (true, Some(why)) => Err(damaged(why, path)),
        (true, None) => Err(not_found(&sections, path, what)),
    }
}

/// The certificate of a section. What OpenSSL says behind one of its trust counts for CAs only, and
/// then for more than we read: `None`.
fn plain_certificate(
    der: CertificateDer<'static>,
    kind: Kind,
    what: What,
) -> Option<CertificateDer<'static>> {
    /// SEQUENCE OF purposes; the same, of those for which it is rejected.
    const LISTS: [u8; 2] = [0x30, 0xa0];
    let length = if kind == Kind::TrustedCertificate { facts::length(&der) } else { None };
    let Some((certificate, rest)) = length.map(|length| der.split_at(length)) else {
        return Some(der);
    };
    let says_more = rest.get(2).is_some_and(|first| LISTS.contains(first));
    (what != What::Ca || !says_more).then(|| CertificateDer::from(certificate.to_vec()))
}

/// What often stands beside certificates and is none.
fn is_usual(label: &[u8]) -> bool {
    label.ends_with(b"PARAMETERS")
        || label.ends_with(b"PUBLIC KEY")
        || label.ends_with(b"PRIVATE KEY")
        || label.ends_with(b"CERTIFICATE REQUEST")
}

/// The CAs of a file that can be used.
#[derive(Debug)]
pub struct Cas {
    /// Never empty.
    pub facts: Vec<Facts>,
    pub roots: RootCertStore,
    /// What is meant to be a CA in it and can't be used.
    pub problems: Vec<String>,
    /// What may be meant to be one.
    pub notice: Vec<String>,
}

impl Cas {
    /// All of them or none.
    ///
    /// # Errors
    /// One of them can't be used.
    pub fn whole(self) -> Result<Self, Error> {
        match self.problems.first() {
            Some(why) => Err(Error::Partly(why.clone())),
            None => Ok(self),
        }
    }
}

/// The CAs of a PEM file. One that can't be used does not count, and keeps no other from counting.
///
/// # Errors
/// What the file is instead; that none of them can be used.
pub fn read_cas(path: &Path) -> Result<Cas, Error> {
    let Certs { ders, unread } = read_certs(path, What::Ca)?;
    let of_file = |why: &String| format!("{}: {why}", path.display());
    let mut cas = Cas {
        facts: Vec::new(),
        roots: RootCertStore::empty(),
        problems: unread.damaged.iter().map(of_file).collect(),
        notice: unread.foreign.iter().map(of_file).collect(),
    };
    let mut first = None;
    for read in each_facts(&ders, path) {
        let used = read.and_then(|facts| match cas.roots.add(facts.der.clone()) {
            Ok(()) => Ok(facts),
            Err(source) => {
                let (path, position) = (path.to_owned(), facts.position);
                Err(Error::UnusableCa { path, position, source })
            }
        });
        match used {
            Ok(facts) => cas.facts.push(facts),
            Err(error) => {
                cas.problems.push(error.to_string());
                first.get_or_insert(error);
            }
        }
    }
    match first {
        Some(error) if cas.facts.is_empty() => Err(error),
        _ => Ok(cas),
    }
}

/// The revocation lists of a file, which is PEM, or DER as CAs publish it (RFC 5280 §4.2.1.13); never empty.
///
/// # Errors
/// What the file is instead; a list that can't be read.
pub fn read_lists(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, Error> {
    let bytes = read_bytes(path, What::RevocationList, MAX_LIST)?;
    if is_der(&bytes) {
        return Ok(vec![CertificateRevocationListDer::from(bytes.to_vec())]);
    }
    let sections = pem::sections(&bytes);
    let lists = sections.iter().filter(|section| section.kind == Kind::RevocationList);
    let found: Vec<_> = lists.map(|list| decode(list, path)).collect::<Result<_, _>>()?;
    if found.is_empty() {
        return Err(not_found(&sections, path, What::RevocationList));
    }
    Ok(found)
}

fn decode<T: PemObject>(section: &Section<'_>, path: &Path) -> Result<T, Error> {
    section.decode().map_err(|fault| damaged(&in_line(fault, section.line), path))
}

fn in_line(fault: Fault, line: usize) -> String {
    format!("{fault} (line {line})")
}

/// [`Facts`] of every certificate of a chain.
///
/// # Errors
/// The one that does not parse.
pub fn facts_of(chain: &[CertificateDer<'_>], path: &Path) -> Result<Vec<Facts>, Error> {
    each_facts(chain, path).collect()
}

/// The same, each on its own.
pub fn each_facts(
    chain: &[CertificateDer<'_>],
    path: &Path,
) -> impl Iterator<Item = Result<Facts, Error>> {
    chain.iter().enumerate().map(|(index, der)| {
        let position = index + 1;
        match Facts::of(der) {
            Ok(mut facts) => {
                facts.position = position;
                Ok(facts)
            }
            Err(why) => Err(Error::NotX509 { path: path.to_owned(), position, why }),
        }
    })
}

/// The first private key of a PEM file, which may also hold certificates.
///
/// # Errors
/// What the file is instead; an encrypted key is told apart.
pub fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    Ok(read_keys(path)?.remove(0))
}

/// The private keys of a PEM file, which may also hold certificates; never empty. Several are there
/// where an old one was left.
///
/// # Errors
/// What the file is instead; an encrypted key is told apart.
pub fn read_keys(path: &Path) -> Result<Vec<PrivateKeyDer<'static>>, Error> {
    keys_in(&pem::sections(&read(path, What::Key)?), path)
}

fn keys_in(sections: &[Section<'_>], path: &Path) -> Result<Vec<PrivateKeyDer<'static>>, Error> {
    let (mut keys, mut wrong) = (Vec::new(), None);
    for section in sections {
        match section.kind {
            Kind::PrivateKey => match decode(section, path) {
                Ok(key) => keys.push(key),
                Err(error) => wrong = wrong.or(Some(error)),
            },
            Kind::EncryptedKey => {
                wrong.get_or_insert(Error::Encrypted { path: path.to_owned() });
            }
            _ => {}
        }
    }
    if keys.is_empty() {
        return Err(wrong.unwrap_or_else(|| not_found(sections, path, What::Key)));
    }
    Ok(keys)
}

/// What a file in a directory of certificates holds; not both parts are empty.
pub struct Held {
    pub certs: Option<Certs>,
    pub keys: Vec<PrivateKeyDer<'static>>,
}

/// Reads a file of which only the content can tell what it is.
///
/// # Errors
/// As [`read_certs`] and [`read_keys`], and if it holds neither.
pub fn read_held(path: &Path) -> Result<Held, Error> {
    let text = read(path, What::Certificate)?;
    let sections = pem::sections(&text);
    let has = |kinds: [Kind; 2]| sections.iter().any(|section| kinds.contains(&section.kind));
    let certs = match has([Kind::Certificate, Kind::TrustedCertificate]) {
        true => Some(certs_in(&text, path, What::Certificate)?),
        false => None,
    };
    let keys = match has([Kind::PrivateKey, Kind::EncryptedKey]) {
        true => keys_in(&sections, path)?,
        false => Vec::new(),
    };
    if certs.is_none() && keys.is_empty() {
        return Err(not_found(&sections, path, What::Certificate));
    }
    Ok(Held { certs, keys })
}

/// What the public half of a private key is compared by, as [`Facts::public`].
///
/// # Errors
/// The key cannot be used.
pub fn public_half(key: &PrivateKeyDer<'static>, path: &Path) -> Result<Vec<u8>, Error> {
    let public = signer(key, &[], path)?.public_key().and_then(|spki| facts::key_of(&spki));
    let why = || "no public half".to_owned();
    public.ok_or_else(|| Error::UnusableKey { path: path.to_owned(), why: why() })
}

/// What a PEM file of any kind holds, for `cert show`: its labels in words, in order.
///
/// # Errors
/// The file cannot be read or is not PEM.
pub fn contents(path: &Path) -> Result<Vec<String>, Error> {
    let text = read(path, What::Certificate)?;
    let sections = pem::sections(&text);
    match sections.is_empty() {
        true => Err(not_found(&sections, path, What::Certificate)),
        false => Ok(sections.iter().map(label_in_words).collect()),
    }
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
    bytes.first() == Some(&0x30) && pem::sections(bytes).is_empty()
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

fn damaged(why: &str, path: &Path) -> Error {
    Error::Damaged { path: path.to_owned(), why: why.to_owned() }
}

fn not_found(sections: &[Section<'_>], path: &Path, what: What) -> Error {
    if sections.is_empty() {
        return Error::NotPem { path: path.to_owned(), what };
    }
    let found: Vec<String> = sections.iter().map(label_in_words).collect();
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

/// A section of a PEM file, damaged or not, as people call it.
fn label_in_words(section: &Section<'_>) -> String {
    match (section.kind, section.label) {
        (Kind::Certificate, _) => "certificate".to_owned(),
        (Kind::PrivateKey, _) => "private key".to_owned(),
        (Kind::EncryptedKey, _) => "encrypted private key".to_owned(),
        (Kind::RevocationList, _) => "revocation list".to_owned(),
        (_, b"CERTIFICATE REQUEST" | b"NEW CERTIFICATE REQUEST") => {
            "certificate request".to_owned()
        }
        (_, b"PUBLIC KEY") => "public key".to_owned(),
        (_, label) => facts::printable(&String::from_utf8_lossy(label)).chars().take(40).collect(),
    }
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
