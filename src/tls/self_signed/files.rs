//! The directory of a self-made certificate: one process at a time, and no file that is half written.
//!
//! In and out: files. Limits: as many certificates of before as [`EARLIER`].
//! Invariant: what can't be read is an error that names it and is never overwritten.
//! Not here: what is in the files (`kept`).

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rcgen::KeyPair;
use rustix::fs::OFlags;
use rustls_pki_types::CertificateDer;

use super::super::{certificate, facts};
use super::Error;
use super::issue::Chain;
use super::kept::kept;

/// Another process has the lock for as long as it takes to make and write its files.
pub const LOCK_WAIT: Duration = Duration::from_secs(5);
const LOCK_RETRY: Duration = Duration::from_millis(20);
/// How many certificates that served before are kept.
const EARLIER: usize = 16;

/// One process at a time. `None`: the directory cannot be written, and nobody can change it either.
pub fn lock(dir: &Path, wait: Duration) -> Result<Option<File>, Error> {
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
pub fn is_passing(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    name == b".lock" || name.starts_with(b".") && name.ends_with(b".new")
}

/// The new content or the old one, never a part of it, and never readable with another mode.
pub fn replace(dir: &Path, file: &str, content: &[u8], mode: u32) -> io::Result<()> {
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

pub fn pem(der: &CertificateDer<'static>) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut out = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        out.extend(line.iter().map(|&byte| char::from(byte)));
        out.push('\n');
    }
    out + "-----END CERTIFICATE-----\n"
}

pub fn read_chain(path: &Path) -> Result<Option<Chain>, Error> {
    match certificate::read_chain(path) {
        Ok(chain) => Ok(Some(chain)),
        Err(certificate::Error::Missing { .. }) => Ok(None),
        Err(error) => Err(kept(error)),
    }
}

pub fn read_key(path: &Path) -> Result<Option<KeyPair>, Error> {
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

/// Keeps a certificate that will not serve any more, in a file of its own.
pub fn put_aside(dir: &Path, chain: &Chain) -> Result<(), Error> {
    let name = earlier_name(&chain[0]);
    let text: String = chain.iter().map(pem).collect();
    replace(dir, &name, text.as_bytes(), 0o644)
        .map_err(|source| Error::Write { path: dir.join(name), source })?;
    for path in earlier(dir).into_iter().skip(EARLIER) {
        fs::remove_file(&path).map_err(|source| Error::Write { path, source })?;
    }
    Ok(())
}

/// How the file is called in which this certificate is kept once it does not serve any more.
pub fn earlier_name(leaf: &CertificateDer<'_>) -> String {
    let fingerprint = facts::fingerprint(leaf).replace(':', "").to_ascii_lowercase();
    format!("earlier-{}.pem", &fingerprint[..16])
}

/// The files of certificates that served before, the youngest first.
pub fn earlier(dir: &Path) -> Vec<PathBuf> {
    let is_one = |name: &str| name.starts_with("earlier-") && name.ends_with(".pem");
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut found: Vec<(SystemTime, PathBuf)> = entries
        .filter(|entry| entry.file_name().to_str().is_some_and(is_one))
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    found.sort();
    found.into_iter().rev().map(|(_, path)| path).collect()
}
