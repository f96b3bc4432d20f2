//! Makes a small certificate authority and a server certificate, for those who have none yet.
//!
//! In: names, a directory, the time. Out: a [`Made`] to serve, and four files in the directory: `ca.pem`,
//! `ca.key`, `privkey.pem` and `fullchain.pem` (the server's certificate, then the CA's). Standard: RFC 5280;
//! the life of the server's certificate is the 398 days that clients accept at most.
//!
//! Keys are made once, only certificates are renewed, and each file is replaced in one step, keys before
//! the certificates that need them. So any mix of old and new files fits together: a crash, a full disk or a
//! second process in between never leaves a pair that does not match. For new keys, delete the files.
//! Invariant: what we did not make, or cannot read, is an error that names it and is never overwritten.
//! Not here: whether this certificate serves at all (`super`), and PEM (`certificate`).

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use rustix::fs::OFlags;
use rustls::crypto::aws_lc_rs;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

use super::facts::{self, Facts, Name};
use super::{certificate, complaints};

/// What is kept in the directory, in the order in which it is written.
pub const FILES: [&str; 4] = ["ca.key", "ca.pem", "privkey.pem", "fullchain.pem"];

const DAY: i64 = 86_400;
/// From an hour ago on, so that a client whose clock is late accepts it at once: 398 days less a day of margin.
const LEAF_LIFE: i64 = 397 * DAY;
const CA_LIFE: i64 = 3650 * DAY;
const BACKDATE: i64 = 3600;
/// Another process has the lock for as long as it takes to make and write four files.
const LOCK_WAIT: Duration = Duration::from_secs(5);
const LOCK_RETRY: Duration = Duration::from_millis(20);
/// How our CA's common name begins; what another CA issued is somebody else's and stays untouched.
const CA_NAME: &str = "imaps-proxy CA ";

/// Why no certificate could be made or reused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{name:?} is not a name for a certificate: {why}")]
    Name { name: String, why: &'static str },
    #[error("no name to make a certificate for; give at least one DNS name or IP address")]
    NoName,
    #[error("{file}; or remove it, and a new one is made")]
    Kept { file: certificate::Error },
    #[error("{}: the key does not belong to ca.pem beside it; restore the right one, or remove both, and a new CA is made", path.display())]
    CaMismatch { path: PathBuf },
    #[error("{}: is not the certificate of a CA; restore it, or remove it together with ca.key, and a new CA is made", path.display())]
    NotACa { path: PathBuf },
    #[error("{}: was not made by imaps-proxy (issuer: {issuer}) and is left alone; choose another directory, or name it under tls.certificates", path.display())]
    Foreign { path: PathBuf, issuer: String },
    #[error("{}: does not verify against ca.pem beside it ({why}); remove it, and a new one is issued", path.display())]
    Forged { path: PathBuf, why: String },
    #[error("{}: is missing, so no certificate can be issued ({why}); restore it, or remove ca.pem, and a new CA is made", path.display())]
    NoCaKey { path: PathBuf, why: &'static str },
    #[error("{}: exists and is not overwritten; choose another directory, or say --force to replace the CA, the certificate and their keys", path.display())]
    Exists { path: PathBuf },
    #[error("{}: another process has held this lock for {waited:?}; `fuser {}` names it, end it or choose another directory", path.display(), path.display())]
    Locked { path: PathBuf, waited: Duration },
    #[error("{}: cannot be written", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("a certificate could not be made")]
    Generate(#[from] rcgen::Error),
    #[error("a certificate could not be made: no random numbers from the operating system")]
    Random,
}

/// A certificate that was made or found again, ready to serve.
pub struct Made {
    pub pair: certificate::Pair,
    pub ca: Facts,
    /// Lines for the log: what was made or renewed, where, and why. Empty if all was found as it should be.
    pub news: Vec<String>,
    /// When to call again for a renewal, unix seconds.
    pub renew_at: i64,
    /// The directory could not be written, so that this lives and dies with the process.
    pub in_memory: bool,
}

/// The four files as values. A part is `None` as long as it has not been made.
#[derive(Default)]
pub struct Kept {
    ca_key: Option<KeyPair>,
    ca: Option<CertificateDer<'static>>,
    key: Option<KeyPair>,
    /// The server's certificate, then the CA's.
    chain: Option<Vec<CertificateDer<'static>>>,
}

/// The certificate for `names` out of `dir`, made or renewed at `now` (unix seconds) where that is due.
/// A directory that nobody may write gives a certificate in `memory` instead. Hand that in again at the next call, or
/// people have to trust a new CA; it is left alone by a call that fails, and given up for what is in the directory.
///
/// # Errors
/// A damaged or foreign file in the directory, an impossible name, a full disk, another process that keeps the lock.
pub fn in_dir(
    names: &[String],
    dir: &Path,
    now: i64,
    memory: &mut Option<Kept>,
) -> Result<Made, Error> {
    let names = parse_names(names)?;
    let lock = lock(dir, LOCK_WAIT)?;
    let mut found = read(dir)?;
    let (kept, mut in_memory) = match memory {
        Some(memory) if found.is_empty() => (memory, true),
        _ => (&mut found, false),
    };
    let (changed, mut news) = kept.complete(&names, dir, now)?;
    if lock.is_some() {
        in_memory = false;
        for file in FILES {
            if changed.contains(&file) || !dir.join(file).exists() {
                kept.write(dir, file)?;
            }
        }
    } else if !changed.is_empty() {
        in_memory = true;
        news.push(format!(
            "{}: cannot be written, so the certificate lives in memory only: every start makes another one, and people have to trust it again; mount a volume there that this user may write",
            dir.display()
        ));
    }
    let (pair, ca) = kept.pair(dir)?;
    let leaf = &pair.chain[0];
    let renew_at = leaf.not_after - margin(leaf);
    if !in_memory {
        *memory = None;
    } else if !found.is_empty() {
        *memory = Some(found);
    }
    Ok(Made { pair, ca, news, renew_at, in_memory })
}

/// Makes the four files anew for `cert self-signed`. Without `force` nothing is overwritten.
///
/// # Errors
/// A file that exists, an impossible name, a directory that cannot be written.
pub fn make(names: &[String], dir: &Path, now: i64, force: bool) -> Result<Facts, Error> {
    let parsed = parse_names(names)?;
    let Some(_lock) = lock(dir, LOCK_WAIT)? else {
        let source = io::Error::from(io::ErrorKind::PermissionDenied);
        return Err(Error::Write { path: dir.to_owned(), source });
    };
    if let Some(path) = existing(dir).next().filter(|_| !force) {
        return Err(Error::Exists { path });
    }
    let mut kept = Kept::default();
    kept.complete(&parsed, dir, now)?;
    // Last first: what is left after an interruption is then a beginning, and not a mix of two sets.
    for path in existing(dir) {
        fs::remove_file(&path).map_err(|source| Error::Write { path, source })?;
    }
    for file in FILES {
        kept.write(dir, file)?;
    }
    Ok(kept.pair(dir)?.1)
}

/// Looks at what is there without changing anything, for `check`: `Ok(false)` if nothing is.
///
/// # Errors
/// As [`in_dir`] would, as far as that can be told without writing.
pub fn inspect(names: &[String], dir: &Path, now: i64) -> Result<bool, Error> {
    let names = parse_names(names)?;
    let mut kept = read(dir)?;
    let found = !kept.is_empty();
    kept.complete(&names, dir, now)?;
    Ok(found)
}

fn existing(dir: &Path) -> impl Iterator<Item = PathBuf> {
    FILES.iter().rev().map(|file| dir.join(file)).filter(|path| path.symlink_metadata().is_ok())
}

/// A third of its life or 30 days, whichever is more.
fn margin(facts: &Facts) -> i64 {
    ((facts.not_after - facts.not_before) / 3).max(30 * DAY)
}

impl Kept {
    fn is_empty(&self) -> bool {
        self.ca_key.is_none() && self.ca.is_none() && self.key.is_none() && self.chain.is_none()
    }

    /// Makes what is missing and renews what is due. Returns the files that changed, and why in words.
    fn complete(
        &mut self,
        names: &[Name],
        dir: &Path,
        now: i64,
    ) -> Result<(Vec<&'static str>, Vec<String>), Error> {
        let (mut changed, mut news) = (Vec::new(), Vec::new());
        if self.ca_key.is_none() && self.ca.is_none() {
            self.ca_key = Some(new_key()?);
            changed.push("ca.key");
        }
        self.complete_ca(dir, now, &mut changed, &mut news)?;
        if self.key.is_none() {
            self.key = Some(new_key()?);
            changed.push("privkey.pem");
        }
        let Some(why) = self.leaf_is_due(names, dir, now)? else { return Ok((changed, news)) };
        let Some(ca_key) = &self.ca_key else {
            let path = dir.join("ca.key");
            if !why.urgent {
                news.push(format!("{}: is missing, and {}", path.display(), why.text));
                return Ok((changed, news));
            }
            return Err(Error::NoCaKey { path, why: why.text });
        };
        let ca = self.ca.as_ref().expect("complete_ca made it");
        let key = self.key.as_ref().expect("made above");
        let leaf =
            leaf_params(names, now)?.signed_by(key, &Issuer::from_ca_cert_der(ca, ca_key)?)?;
        self.chain = Some(vec![leaf.into(), ca.clone()]);
        changed.push("fullchain.pem");
        let list: Vec<String> = names.iter().map(Name::to_string).collect();
        news.push(format!("issued a certificate for {}, because {}", list.join(", "), why.text));
        Ok((changed, news))
    }

    fn complete_ca(
        &mut self,
        dir: &Path,
        now: i64,
        changed: &mut Vec<&'static str>,
        news: &mut Vec<String>,
    ) -> Result<(), Error> {
        let path = dir.join("ca.pem");
        let mut verb = "made";
        if let Some(der) = &self.ca {
            let facts = facts(der, &path)?;
            if !facts.is_ca {
                return Err(Error::NotACa { path });
            }
            let Some(key) = &self.ca_key else { return Ok(()) };
            if !matches(der, key) {
                return Err(Error::CaMismatch { path: dir.join("ca.key") });
            }
            // A certificate of the server must not outlive its issuer.
            if now + LEAF_LIFE <= facts.not_after {
                return Ok(());
            }
            if !is_ours(&facts.issuer) {
                return Err(Error::Foreign { path, issuer: facts.issuer });
            }
            verb = "renewed";
        }
        let key = self.ca_key.as_ref().expect("made before, or beside the certificate");
        let der = CertificateDer::from(ca_params(key, now)?.self_signed(key)?);
        news.push(format!(
            "{verb} a certificate authority, {}, SHA-256 fingerprint {}: people have to trust it once",
            path.display(),
            facts::fingerprint(&der)
        ));
        self.ca = Some(der);
        changed.push("ca.pem");
        Ok(())
    }

    /// Why a certificate has to be issued, or `None` if the one there is good.
    fn leaf_is_due(&self, names: &[Name], dir: &Path, now: i64) -> Result<Option<Why>, Error> {
        let urgent = |text| Ok(Some(Why { text, urgent: true }));
        let (Some(chain), Some(key)) = (&self.chain, &self.key) else {
            return urgent("there was none");
        };
        let path = dir.join("fullchain.pem");
        let ca = self.ca.as_ref().expect("complete_ca made it");
        let (leaf, ca_facts) = (facts(&chain[0], &path)?, facts(ca, &dir.join("ca.pem"))?);
        if !leaf.is_issued_by(&ca_facts) {
            if !is_ours(&leaf.issuer) {
                return Err(Error::Foreign { path, issuer: leaf.issuer });
            }
            return urgent("the old one was of another CA");
        }
        if now > leaf.not_after {
            return urgent("the old one has expired");
        }
        if now < leaf.not_before {
            return urgent("the old one is of the future: the clock was wrong then, or is now");
        }
        complaints::verify(&leaf, &[], &ca_facts, now)
            .map_err(|why| Error::Forged { path: path.clone(), why })?;
        if !matches(&chain[0], key) {
            return urgent("the old one was for another key");
        }
        let set = |names: &[Name]| names.iter().cloned().collect::<BTreeSet<_>>();
        if set(&leaf.names) != set(names) {
            return urgent("the names have changed");
        }
        if leaf.not_after - now < margin(&leaf) {
            return Ok(Some(Why { text: "the old one is due for renewal", urgent: false }));
        }
        if chain.get(1) != Some(ca) {
            return Ok(Some(Why { text: "the CA was renewed", urgent: false }));
        }
        Ok(None)
    }

    fn pair(&self, dir: &Path) -> Result<(certificate::Pair, Facts), Error> {
        let chain = self.chain.clone().expect("complete made it");
        let key = self.key.as_ref().expect("complete made it");
        let der = PrivateKeyDer::try_from(key.serialized_der().to_vec())
            .map_err(|why| rcgen::Error::RingKeyRejected(why.to_owned()))?;
        let (chain_path, key_path) = (dir.join("fullchain.pem"), dir.join("privkey.pem"));
        let pair = certificate::pair(chain, &der, &chain_path, &key_path).map_err(kept)?;
        let ca = self.ca.as_ref().expect("complete made it");
        Ok((pair, facts(ca, &dir.join("ca.pem"))?))
    }

    fn write(&self, dir: &Path, file: &str) -> Result<(), Error> {
        let text = match file {
            "ca.key" => self.ca_key.as_ref().map(KeyPair::serialize_pem),
            "privkey.pem" => self.key.as_ref().map(KeyPair::serialize_pem),
            "ca.pem" => self.ca.as_ref().map(pem),
            _ => self.chain.as_ref().map(|chain| chain.iter().map(pem).collect()),
        };
        // A CA whose key is kept elsewhere has none here.
        let Some(text) = text.map(Zeroizing::new) else { return Ok(()) };
        let mode = if file == "ca.key" || file == "privkey.pem" { 0o600 } else { 0o644 };
        replace(dir, file, text.as_bytes(), mode)
            .map_err(|source| Error::Write { path: dir.join(file), source })
    }
}

struct Why {
    text: &'static str,
    /// The old certificate will not do any more.
    urgent: bool,
}

/// What is served, and which CA to trust for it.
pub fn in_words(made: &Made, dir: &Path) -> String {
    let leaf = &made.pair.chain[0];
    let names: Vec<String> = leaf.names.iter().map(ToString::to_string).collect();
    let whose = match made.in_memory {
        false => format!("trust the CA in {}", dir.join("ca.pem").display()),
        true => "its CA lives in memory only".to_owned(),
    };
    format!(
        "serving a self-made certificate for {} until {}; {whose}, SHA-256 fingerprint {}",
        names.join(", "),
        facts::date(leaf.not_after),
        made.ca.fingerprint
    )
}

fn kept(file: certificate::Error) -> Error {
    Error::Kept { file }
}

fn is_ours(issuer: &str) -> bool {
    issuer.strip_prefix("CN=").is_some_and(|name| name.starts_with(CA_NAME))
}

fn facts(der: &CertificateDer<'static>, path: &Path) -> Result<Facts, Error> {
    let mut one = certificate::facts_of(std::slice::from_ref(der), path).map_err(kept)?;
    Ok(one.remove(0))
}

fn matches(certificate: &CertificateDer<'_>, key: &KeyPair) -> bool {
    use rcgen::PublicKeyData;
    use x509_parser::prelude::{FromDer, X509Certificate};
    X509Certificate::from_der(certificate)
        .is_ok_and(|(_, parsed)| parsed.public_key().raw == key.subject_public_key_info())
}

/// DNS names in lower case and IP addresses, each once, in the order given: the first one names the certificate.
///
/// # Errors
/// The first name that no certificate can carry.
pub fn parse_names(names: &[String]) -> Result<Vec<Name>, Error> {
    let mut parsed = Vec::new();
    for name in names {
        let name = parse_name(name)?;
        if !parsed.contains(&name) {
            parsed.push(name);
        }
    }
    if parsed.is_empty() { Err(Error::NoName) } else { Ok(parsed) }
}

fn parse_name(name: &str) -> Result<Name, Error> {
    let fail = |why| Err(Error::Name { name: name.to_owned(), why });
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(Name::Ip(address));
    }
    if !name.is_ascii() {
        return fail("write it in its ASCII form (xn--…)");
    }
    if name.contains(':') {
        return fail("leave out the port, and the brackets of an IPv6 address");
    }
    if name.is_empty() || name.len() > 253 {
        return fail("a DNS name has 1 to 253 characters");
    }
    let host = name.strip_prefix("*.").unwrap_or(name);
    for label in host.split('.') {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if label.is_empty() || label.len() > 63 {
            return fail("between two dots of a DNS name stand 1 to 63 characters");
        }
        if !label.bytes().all(legal) || label.starts_with('-') || label.ends_with('-') {
            return fail(
                "a DNS name has letters, digits and inner hyphens only; a * stands alone in front",
            );
        }
    }
    if host.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit())) {
        return fail("it looks like an IPv4 address but is none");
    }
    Ok(Name::Dns(name.to_ascii_lowercase()))
}

fn new_key() -> Result<KeyPair, Error> {
    Ok(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?)
}

/// Not rcgen's own, which is a hash of the key: a renewal would get the old number again.
fn serial() -> Result<SerialNumber, Error> {
    let mut bytes = [0u8; 16];
    let random = aws_lc_rs::default_provider().secure_random;
    random.fill(&mut bytes).map_err(|_| Error::Random)?;
    bytes[0] = bytes[0] & 0x7f | 0x40; // positive, and of full length (RFC 5280 §4.1.2.2)
    Ok(SerialNumber::from_slice(&bytes))
}

fn ca_params(key: &KeyPair, now: i64) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::default();
    // Named after its key: two CAs of one name and different keys confuse the clients that trust both.
    let id = params.key_identifier(key);
    let name: String = id.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("{CA_NAME}{name}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(serial()?);
    set_life(&mut params, now, CA_LIFE);
    Ok(params)
}

fn leaf_params(names: &[Name], now: i64) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::default();
    for name in names {
        params.subject_alt_names.push(match name {
            Name::Dns(name) => SanType::DnsName(name.as_str().try_into()?),
            Name::Ip(address) => SanType::IpAddress(*address),
        });
    }
    params.distinguished_name = rcgen::DistinguishedName::new();
    // For people's eyes. X.520 allows 64 characters; without any, SAN becomes critical as it must.
    let first = names.iter().map(Name::to_string).find(|name| name.len() <= 64);
    if let Some(name) = first {
        params.distinguished_name.push(DnType::CommonName, name);
    }
    params.is_ca = IsCa::ExplicitNoCa; // also brings the subject key identifier
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(serial()?);
    set_life(&mut params, now, LEAF_LIFE);
    Ok(params)
}

fn set_life(params: &mut CertificateParams, now: i64, life: i64) {
    let start = now - BACKDATE;
    let since_1970 = |unix: i64| {
        let seconds = Duration::from_secs(u64::try_from(unix).unwrap_or(0));
        rcgen::date_time_ymd(1970, 1, 1) + seconds
    };
    params.not_before = since_1970(start);
    params.not_after = since_1970(start + life);
}

pub(super) fn pem(der: &CertificateDer<'static>) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut out = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        out.extend(line.iter().map(|&byte| char::from(byte)));
        out.push('\n');
    }
    out + "-----END CERTIFICATE-----\n"
}

fn read(dir: &Path) -> Result<Kept, Error> {
    Ok(Kept {
        ca_key: read_key(&dir.join("ca.key"))?,
        ca: read_chain(&dir.join("ca.pem"))?.map(|mut chain| chain.remove(0)),
        key: read_key(&dir.join("privkey.pem"))?,
        chain: read_chain(&dir.join("fullchain.pem"))?,
    })
}

fn read_chain(path: &Path) -> Result<Option<Vec<CertificateDer<'static>>>, Error> {
    match certificate::read_chain(path) {
        Ok(chain) => Ok(Some(chain)),
        Err(certificate::Error::Missing { .. }) => Ok(None),
        Err(error) => Err(kept(error)),
    }
}

fn read_key(path: &Path) -> Result<Option<KeyPair>, Error> {
    let der = match certificate::read_key(path) {
        Ok(der) => der,
        Err(certificate::Error::Missing { .. }) => return Ok(None),
        Err(error) => return Err(kept(error)),
    };
    match KeyPair::try_from(&der) {
        Ok(key) => Ok(Some(key)),
        Err(error) => {
            let (path, why) = (path.to_owned(), error.to_string());
            Err(kept(certificate::Error::UnusableKey { path, why }))
        }
    }
}

/// One process at a time. `None`: the directory cannot be written, and nobody can change it either.
fn lock(dir: &Path, wait: Duration) -> Result<Option<File>, Error> {
    let fail = |path: &Path, source: io::Error| match source.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Ok(None),
        _ => Err(Error::Write { path: path.to_owned(), source }),
    };
    if let Err(error) = DirBuilder::new().recursive(true).mode(0o700).create(dir) {
        return fail(dir, error);
    }
    let path = dir.join(".lock");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    options.custom_flags(OFlags::NONBLOCK.bits().cast_signed()); // in place of a pipe, which has no reader
    let file = match options.open(&path) {
        Ok(file) => file,
        Err(error) => return fail(&path, error),
    };
    let end = Instant::now() + wait;
    loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if Instant::now() < end => thread::sleep(LOCK_RETRY),
            Err(TryLockError::WouldBlock) => return Err(Error::Locked { path, waited: wait }),
            // Some network file systems have no locks: then two first starts at once are the operator's to avoid.
            Err(TryLockError::Error(error)) if error.kind() != io::ErrorKind::Unsupported => {
                return fail(&path, error);
            }
            _ => return Ok(Some(file)),
        }
    }
}

/// Whether it is no more than our way to look and to write: the lock, and what [`replace`] renames in the end.
pub(super) fn is_passing(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    name == b".lock" || name.starts_with(b".") && name.ends_with(b".new")
}

/// The new content or the old one, never a part of it, and never readable with another mode.
pub(super) fn replace(dir: &Path, file: &str, content: &[u8], mode: u32) -> io::Result<()> {
    let temporary = dir.join(format!(".{file}.new"));
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {} // left by a crash; nobody else is here, the lock is ours
    }
    let written = (|| {
        let mut out =
            OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        out.write_all(content)?;
        out.sync_all()?;
        fs::rename(&temporary, dir.join(file))
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary); // the first error is the one to tell
        return written;
    }
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests;
