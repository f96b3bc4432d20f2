//! Makes a small certificate authority and a server certificate, for those who have none yet.
//!
//! In: names, a directory, the time. Out: a [`Made`] to serve, and files in the directory: `ca.pem`, `privkey.pem` and
//! `fullchain.pem` (the server's certificate, then the CA's); before their end `next-ca.pem` and `next-fullchain.pem`
//! too. Standard: RFC 5280.
//!
//! The CA can vouch for the configured names only, and its key is forgotten as soon as it has signed the
//! one certificate, which lives as long as the CA does. So nobody who takes the machine gets more than its own
//! key, and a name that is added needs another CA.
//! The server's key is made once, and each file is replaced in one step. So any mix of old and new files
//! is put right at the next look: a crash, a full disk or a second process in between never leaves a pair that does
//! not match. For a new key, delete the files.
//! Invariant: what we did not make, or cannot read, is an error that names it and is never overwritten.
//! Not here: whether this certificate serves at all (`super`), and PEM (`certificate`).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::KeyPair;
use zeroize::Zeroizing;

use super::certificate;
use super::facts::{self, Facts};
use files::LOCK_WAIT;
pub(super) use files::{is_passing, pem, replace};
use issue::Chain;
pub use kept::Kept;
pub use names::parse_names;

mod kept;

mod issue;

mod names;

mod files;

const CA_KEY: &str = "ca.key";
const CA: &str = "ca.pem";
const KEY: &str = "privkey.pem";
const CHAIN: &str = "fullchain.pem";
const NEXT_CHAIN: &str = "next-fullchain.pem";
const NEXT_CA: &str = "next-ca.pem";

/// What is kept in the directory, in the order in which it is written. `ca.key` is never made: earlier versions did.
pub const FILES: [&str; 6] = [CA_KEY, CA, KEY, CHAIN, NEXT_CA, NEXT_CHAIN];

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
    NoCaKey { path: PathBuf, why: String },
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
    /// Lines for the log: what was made or renewed, where, and why; what people and operators have to know. Empty
    /// if all was found as it should be.
    pub news: Vec<String>,
    /// When to call again, unix seconds.
    pub again_at: i64,
    /// The directory could not be written, so that this lives and dies with the process.
    pub in_memory: bool,
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
    let lock = files::lock(dir, LOCK_WAIT)?;
    let mut found = Kept::read(dir)?;
    let (kept, mut in_memory) = match memory {
        Some(memory) if found.is_empty() => (memory, true),
        _ => (&mut found, false),
    };
    let change = kept.complete(&names, dir, now, lock.is_some())?;
    let mut news = change.done;
    news.extend(change.notice);
    if lock.is_some() {
        in_memory = false;
        if let Some(chain) = &change.aside {
            files::put_aside(dir, chain)?;
        }
        for file in FILES {
            if change.files.contains(&file) || !dir.join(file).exists() {
                kept.write(dir, file)?;
            }
        }
    } else if !change.files.is_empty() {
        in_memory = true;
        news.push(format!(
            "{}: cannot be written, so the certificate lives in memory only: every start makes another one, and people have to trust it again; mount a volume there that this user may write",
            dir.display()
        ));
    }
    let (pair, ca) = kept.pair(dir)?;
    let again_at = kept.next_moment(dir, now)?;
    if !in_memory {
        *memory = None;
    } else if !found.is_empty() {
        *memory = Some(found);
    }
    Ok(Made { pair, ca, news, again_at, in_memory })
}

/// Makes the files anew for `cert self-signed`. Without `force` nothing is overwritten.
///
/// # Errors
/// A file that exists, an impossible name, a directory that cannot be written.
pub fn make(names: &[String], dir: &Path, now: i64, force: bool) -> Result<Facts, Error> {
    let parsed = parse_names(names)?;
    let Some(_lock) = files::lock(dir, LOCK_WAIT)? else {
        let source = io::Error::from(io::ErrorKind::PermissionDenied);
        return Err(Error::Write { path: dir.to_owned(), source });
    };
    if let Some(path) = existing(dir).next().filter(|_| !force) {
        return Err(Error::Exists { path });
    }
    let mut kept = Kept::default();
    kept.complete(&parsed, dir, now, true)?;
    // Last first: what is left after an interruption is then a beginning, and not a mix of two sets.
    for path in files::earlier(dir).into_iter().chain(existing(dir)) {
        fs::remove_file(&path).map_err(|source| Error::Write { path, source })?;
    }
    for file in FILES {
        kept.write(dir, file)?;
    }
    Ok(kept.pair(dir)?.1)
}

/// Looks at what is there without changing anything, for `check`: what people and operators have to know of it.
///
/// # Errors
/// As [`in_dir`] would, as far as that can be told without writing.
pub fn inspect(names: &[String], dir: &Path, now: i64) -> Result<Vec<String>, Error> {
    let names = parse_names(names)?;
    let change = Kept::read(dir)?.complete(&names, dir, now, false)?;
    let another = change.another.map(|why| {
        format!(
            "{}: {why}: the next start or reload makes another CA, which everybody has to trust anew",
            dir.join(CA).display()
        )
    });
    Ok(change.notice.into_iter().chain(another).collect())
}

fn existing(dir: &Path) -> impl Iterator<Item = PathBuf> {
    FILES.iter().rev().map(|file| dir.join(file)).filter(|path| path.symlink_metadata().is_ok())
}

impl Kept {
    fn read(dir: &Path) -> Result<Self, Error> {
        let earlier = files::earlier(dir);
        let earlier = earlier.iter().filter_map(|path| files::read_chain(path).ok().flatten());
        Ok(Self {
            ca_key: files::read_key(&dir.join(CA_KEY))?,
            ca: files::read_chain(&dir.join(CA))?.map(|mut chain| chain.remove(0)),
            key: files::read_key(&dir.join(KEY))?,
            chain: files::read_chain(&dir.join(CHAIN))?,
            next: files::read_chain(&dir.join(NEXT_CHAIN))?,
            earlier: earlier.collect(),
        })
    }

    /// Writes one of [`FILES`], or removes it if there is nothing in it any more.
    fn write(&self, dir: &Path, file: &str) -> Result<(), Error> {
        let all = |chain: &Chain| chain.iter().map(pem).collect();
        let text = match file {
            CA_KEY => self.ca_key.as_ref().map(KeyPair::serialize_pem),
            CA => self.ca.as_ref().map(pem),
            KEY => self.key.as_ref().map(KeyPair::serialize_pem),
            CHAIN => self.chain.as_ref().map(all),
            NEXT_CHAIN => self.next.as_ref().map(all),
            _ => self.next.as_ref().and_then(|chain| chain.get(1)).map(pem),
        };
        let fail = |source| Error::Write { path: dir.join(file), source };
        let Some(text) = text.map(Zeroizing::new) else {
            return match fs::remove_file(dir.join(file)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(fail(error)),
                _ => Ok(()),
            };
        };
        let mode = if file == CA_KEY || file == KEY { 0o600 } else { 0o644 };
        replace(dir, file, text.as_bytes(), mode).map_err(fail)
    }
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

#[cfg(test)]
mod tests;
