//! Where certificates come from: [`Source`], and what stands behind it in files.
//!
//! In: paths. Out: every pair that is there now, or why one can't be used. A pair is known by the path of its
//! certificate, which stays the same while what it holds is renewed. What has not changed since the last look is
//! not read again.
//!
//! In a directory a key belongs to the certificate with its public half, whatever the two files are called. Looked
//! at are files that end in .pem, .crt, .cer, .cert or .key and directories, links followed, but nothing hidden:
//! so of a Kubernetes volume the names are seen and not the `..data` behind them, and half-made files not at all.
//! Beside a `fullchain` file no other one is taken for a chain (certbot's cert.pem and chain.pem).
//! Limits: [`MAX_DEPTH`] levels and [`MAX_ENTRIES`] entries below a directory.
//! Not here: whether a pair that is found gets to serve (`store`); a pair that we make (`self_signed`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls_pki_types::PrivateKeyDer;

use super::certificate::{self, Held, Pair};
use super::facts::Facts;
use super::{DAY, chain, key_mode, self_signed};
use crate::config::settings::{CertificateFiles, SelfSigned};

const MAX_DEPTH: usize = 8;
const MAX_ENTRIES: usize = 10_000;
/// A file may change twice within one tick of its file system's clock: what is younger than this is read again.
const SETTLED: i64 = 3;

/// What lies at one place.
#[derive(Clone)]
pub struct Found {
    /// The path of the certificate; of a directory in which nothing can be found, its own.
    pub id: PathBuf,
    /// The file of the private key, if it is one.
    pub key: Option<PathBuf>,
    pub pair: Result<Arc<Pair>, String>,
    /// Of the certificate that lies there, also if it can't be used.
    pub not_after: Option<i64>,
    /// To be logged as warnings.
    pub notice: Vec<String>,
}

/// Where pairs come from: one entry of the configuration.
pub trait Source: Send {
    /// Everything that is there at `now` (unix seconds); never empty. It reads files and may wait for another
    /// process's lock, so not on a thread that serves clients.
    fn look(&mut self, now: i64) -> Vec<Found>;

    /// Whether the service must not start while something is wrong here: the configuration names the pair.
    fn is_needed(&self) -> bool {
        true
    }

    /// Whether there is nothing at all yet, not even something wrong.
    fn is_absent(&self) -> bool;

    /// Files and directories that were looked at: if one changes it is worth looking again.
    fn watched(&self) -> Vec<PathBuf>;
}

/// Changes whenever a file is replaced or rewritten, also behind a link.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    pub fn of(path: &Path) -> Option<Self> {
        let found = fs::metadata(path).ok()?;
        Some(Self {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }
}

/// What was found, and with which files.
struct Seen {
    stamps: Vec<Option<Stamp>>,
    found: Vec<Found>,
    settled: bool,
}

impl Seen {
    fn new(stamps: Vec<Option<Stamp>>, found: Vec<Found>, now: i64) -> Self {
        let settled = stamps.iter().flatten().all(|stamp| stamp.changed.0 < now - SETTLED);
        Self { stamps, found, settled }
    }

    fn still_holds(&self, stamps: &[Option<Stamp>]) -> bool {
        self.settled && self.stamps == stamps
    }
}

fn stamps<'a>(paths: impl IntoIterator<Item = &'a PathBuf>) -> Vec<Option<Stamp>> {
    paths.into_iter().map(|path| Stamp::of(path)).collect()
}

/// A pair of files that the configuration names.
pub struct Files {
    files: CertificateFiles,
    seen: Option<Seen>,
}

impl Files {
    pub fn new(files: CertificateFiles) -> Self {
        Self { files, seen: None }
    }
}

impl Source for Files {
    fn look(&mut self, now: i64) -> Vec<Found> {
        let CertificateFiles { cert, key } = &self.files;
        let stamps = stamps([cert, key]); // before reading: a change in between is seen at the next look
        if let Some(seen) = self.seen.as_ref().filter(|seen| seen.still_holds(&stamps)) {
            return seen.found.clone();
        }
        let (pair, not_after) = match certificate::read_pair(cert, key) {
            Ok(pair) => {
                let end = pair.chain[0].not_after;
                (Ok(Arc::new(pair)), Some(end))
            }
            Err(error) => {
                let read = certificate::read_chain(cert);
                let facts = read.and_then(|certs| certificate::facts_of(&certs, cert)).ok();
                (Err(chain(&error)), facts.map(|facts| facts[0].not_after))
            }
        };
        let key = Some(key.clone());
        let found = vec![Found { id: cert.clone(), key, pair, not_after, notice: Vec::new() }];
        self.seen = Some(Seen::new(stamps, found.clone(), now));
        found
    }

    fn is_absent(&self) -> bool {
        !is_there(&self.files.cert) && !is_there(&self.files.key)
    }

    fn watched(&self) -> Vec<PathBuf> {
        vec![self.files.cert.clone(), self.files.key.clone()]
    }
}

/// A link to nowhere, or a directory that must not be entered, counts as there: it is a mistake to report and
/// no reason to serve another certificate.
pub fn is_there(path: &Path) -> bool {
    !matches!(path.symlink_metadata(), Err(error) if error.kind() == io::ErrorKind::NotFound)
}

/// Every pair in and below a directory.
pub struct Dir {
    dir: PathBuf,
    /// By directory.
    seen: BTreeMap<PathBuf, Seen>,
    watched: Vec<PathBuf>,
}

impl Dir {
    pub fn new(dir: PathBuf) -> Self {
        Self { watched: vec![dir.clone()], dir, seen: BTreeMap::new() }
    }
}

impl Source for Dir {
    fn look(&mut self, now: i64) -> Vec<Found> {
        let walk = Walk::through(&self.dir);
        let mut seen = BTreeMap::new();
        let mut all = walk.trouble;
        self.watched.clear();
        for (dir, files) in walk.files {
            let stamps = stamps(&files);
            let known = self.seen.remove(&dir).filter(|seen| seen.still_holds(&stamps));
            let known = known.unwrap_or_else(|| Seen::new(stamps, pair_up(&files), now));
            all.extend(known.found.iter().cloned());
            seen.insert(dir.clone(), known);
            self.watched.push(dir);
            self.watched.extend(files);
        }
        self.seen = seen;
        if all.is_empty() {
            let text = format!(
                "{}: holds no certificate with its key; put both there as files that end in .pem, .crt or .key",
                self.dir.display()
            );
            all.push(failed(&self.dir, text));
        }
        all
    }

    /// With one bad file out of many the others are better than nothing.
    fn is_needed(&self) -> bool {
        false
    }

    fn is_absent(&self) -> bool {
        let walk = Walk::through(&self.dir);
        !is_there(&self.dir) || walk.trouble.is_empty() && walk.files.values().all(Vec::is_empty)
    }

    fn watched(&self) -> Vec<PathBuf> {
        if self.watched.is_empty() { vec![self.dir.clone()] } else { self.watched.clone() }
    }
}

fn failed(id: &Path, text: String) -> Found {
    Found { id: id.to_owned(), key: None, pair: Err(text), not_after: None, notice: Vec::new() }
}

/// What lies in and below a directory.
#[derive(Default)]
struct Walk {
    /// Directories, and the files in them that may hold a certificate or a key; both in order.
    files: BTreeMap<PathBuf, Vec<PathBuf>>,
    trouble: Vec<Found>,
    /// By device and inode: a link may lead back.
    entered: BTreeSet<(u64, u64)>,
    entries: usize,
}

impl Walk {
    fn through(dir: &Path) -> Self {
        let mut walk = Self::default();
        walk.enter(dir, 0);
        walk
    }

    fn enter(&mut self, dir: &Path, depth: usize) {
        let entries = fs::metadata(dir).and_then(|found| {
            let fresh = self.entered.insert((found.dev(), found.ino()));
            if fresh { fs::read_dir(dir)?.collect::<Result<Vec<_>, _>>() } else { Ok(Vec::new()) }
        });
        let entries = match entries {
            Ok(entries) => entries,
            Err(error) => return self.trouble.push(failed(dir, cannot_enter(dir, &error))),
        };
        self.entries += entries.len();
        if depth > MAX_DEPTH || self.entries > MAX_ENTRIES {
            let text = format!(
                "{}: is too deep or too large: at most {MAX_DEPTH} levels and {MAX_ENTRIES} entries are looked at; name the directory that holds the certificates",
                dir.display()
            );
            return self.trouble.push(failed(dir, text));
        }
        let mut paths: Vec<PathBuf> = entries.iter().map(fs::DirEntry::path).collect();
        paths.sort();
        let mut files = Vec::new();
        for path in paths {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with('.') {
                continue;
            }
            match fs::metadata(&path) {
                Ok(found) if found.is_dir() => self.enter(&path, depth + 1),
                _ if has_extension(&path, &["pem", "crt", "cer", "cert", "key"]) => {
                    files.push(path);
                }
                _ => {}
            }
        }
        self.files.insert(dir.to_owned(), files);
    }
}

fn cannot_enter(dir: &Path, error: &io::Error) -> String {
    let what = match error.kind() {
        io::ErrorKind::NotFound => "no such directory; make it, or correct the path".to_owned(),
        io::ErrorKind::NotADirectory => {
            "is a file; name the directory that it is in, or the file as `cert`".to_owned()
        }
        io::ErrorKind::PermissionDenied => format!(
            "permission denied to user {}; let that user enter and read the directory",
            rustix::process::geteuid().as_raw()
        ),
        _ => format!("cannot be read: {error}"),
    };
    format!("{}: {what}", dir.display())
}

fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    path.extension()
        .is_some_and(|found| extensions.iter().any(|one| found.eq_ignore_ascii_case(one)))
}

/// One certificate of a directory: the longest of the chains that begin with it.
struct Chain {
    path: PathBuf,
    certs: Vec<rustls_pki_types::CertificateDer<'static>>,
    facts: Vec<Facts>,
}

/// Certificates and keys of one directory, matched.
fn pair_up(files: &[PathBuf]) -> Vec<Found> {
    let is_full =
        |path: &Path| path.file_stem().is_some_and(|stem| stem.eq_ignore_ascii_case("fullchain"));
    let only_full = files.iter().any(|path| is_full(path));
    let (mut chains, mut keys, mut wrong) = (Vec::<Chain>::new(), BTreeMap::new(), Vec::new());
    for path in files {
        let looks_like_key = has_extension(path, &["key"])
            || path.file_stem().is_some_and(|stem| stem.to_string_lossy().contains("key"));
        if only_full && !is_full(path) && !looks_like_key {
            continue;
        }
        match read(path) {
            Ok((certs, facts, key)) => {
                if let Some((spki, key)) = key {
                    keys.entry(spki).or_insert_with(|| (path.clone(), key));
                }
                if !facts.is_empty() {
                    chains.push(Chain { path: path.clone(), certs, facts });
                }
            }
            // Neither certificate nor key: parameters, a request, a note.
            Err(certificate::Error::Other { .. } | certificate::Error::NotPem { .. })
            | Err(certificate::Error::Binary { .. } | certificate::Error::NotAFile { .. }) => {}
            Err(error) => wrong.push((path, looks_like_key, chain(&error))),
        }
    }
    chains.sort_by_key(|chain| std::cmp::Reverse(chain.certs.len())); // stable: then by path
    let mut taken = BTreeSet::new();
    chains.retain(|chain| taken.insert(chain.facts[0].fingerprint.clone()));
    chains.sort_by(|a, b| a.path.cmp(&b.path));

    let mut found = Vec::new();
    let mut lonely = false;
    for Chain { path, certs, facts } in chains {
        let end = facts[0].not_after;
        let Some((key_path, key)) = keys.get(&facts[0].spki) else {
            if facts[0].is_ca {
                continue; // a root or an intermediate that lies about
            }
            lonely = true;
            let mut text = format!(
                "{}: no private key beside it belongs to this certificate; put it there, or wait until both are written",
                path.display()
            );
            let of_keys = wrong.iter().filter(|(_, is_key, _)| *is_key);
            text.extend(of_keys.map(|(_, _, why)| format!("; {why}")));
            found.push(Found { not_after: Some(end), ..failed(&path, text) });
            continue;
        };
        let pair = certificate::pair(certs, key, &path, key_path);
        let pair = pair.map(Arc::new).map_err(|error| chain(&error));
        let key = Some(key_path.clone());
        found.push(Found { id: path, key, pair, not_after: Some(end), notice: Vec::new() });
    }
    let of_chains = wrong.into_iter().filter(|(_, is_key, _)| !(lonely && *is_key));
    found.extend(of_chains.map(|(path, _, why)| failed(path, why)));
    found
}

type Parts = (
    Vec<rustls_pki_types::CertificateDer<'static>>,
    Vec<Facts>,
    Option<(Vec<u8>, PrivateKeyDer<'static>)>,
);

/// What a file holds: certificates, a key with its public half, or both.
fn read(path: &Path) -> Result<Parts, certificate::Error> {
    let Held { certs, key } = certificate::read_held(path)?;
    let facts = certificate::facts_of(&certs, path)?;
    let key = match key {
        Some(key) => Some((certificate::public_half(&key, path)?, key)),
        None => None,
    };
    Ok((certs, facts, key))
}

/// What the proxy makes and renews itself.
pub struct Made {
    settings: SelfSigned,
    /// A CA that could not be written anywhere; see [`self_signed::Made::memory`].
    memory: Option<self_signed::Kept>,
    seen: Option<Seen>,
    renew_at: i64,
}

impl Made {
    pub fn new(settings: SelfSigned) -> Self {
        Self { settings, memory: None, seen: None, renew_at: i64::MIN }
    }

    fn files(&self) -> Vec<PathBuf> {
        self_signed::FILES.iter().map(|file| self.settings.dir.join(file)).collect()
    }
}

impl Source for Made {
    fn look(&mut self, now: i64) -> Vec<Found> {
        let SelfSigned { names, dir } = &self.settings;
        if let Some(seen) = &self.seen
            && now < self.renew_at
            && seen.stamps == stamps(&self.files())
        {
            return seen.found.clone();
        }
        let id = dir.join("fullchain.pem");
        let made = match self_signed::in_dir(names, dir, now, self.memory.take()) {
            Ok(made) => made,
            Err(error) => return vec![failed(&id, chain(&error))], // tried again at every look
        };
        let mut notice = made.news.clone();
        notice.push(self_signed::in_words(&made, dir));
        notice.extend(key_mode(&dir.join("ca.key")).map(|(_, text)| text));
        self.memory = made.memory;
        // What could not be renewed is tried again tomorrow, not in a loop.
        self.renew_at = made.renew_at.max(now + DAY);
        let not_after = Some(made.pair.chain[0].not_after);
        let (key, pair) = (Some(dir.join("privkey.pem")), Ok(Arc::new(made.pair)));
        let found = vec![Found { id, key, pair, not_after, notice }];
        // Our own writing just now is no change.
        self.seen = Some(Seen::new(stamps(&self.files()), found.clone(), now));
        found
    }

    fn is_absent(&self) -> bool {
        false
    }

    fn watched(&self) -> Vec<PathBuf> {
        self.files()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_not_changed_is_not_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = (dir.path().join("a.crt"), dir.path().join("a.key"));
        let write = |name: &str| {
            let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
            fs::write(&cert, made.cert.pem()).unwrap();
            fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        };
        write("a.example");
        let written = Stamp::of(&key).unwrap().changed.0;
        let files = CertificateFiles { cert: cert.clone(), key: key.clone() };
        let sources: [Box<dyn Source>; 2] =
            [Box::new(Files::new(files)), Box::new(Dir::new(dir.path().to_owned()))];
        for mut source in sources {
            let mut look = |now| source.look(now).remove(0).pair.unwrap();
            let (young, young_again) = (look(written), look(written));
            assert!(!Arc::ptr_eq(&young, &young_again), "it may still change within the tick");
            let (old, old_again) = (look(written + 60), look(written + 120));
            assert!(Arc::ptr_eq(&old, &old_again));
            write("b.example");
            assert_eq!(look(written + 180).chain[0].first_dns(), Some("b.example"));
            write("a.example");
        }
    }

    #[test]
    fn a_directory_that_is_no_directory_of_certificates_is_left_in_time() {
        let dir = tempfile::tempdir().unwrap();
        let mut deep = dir.path().to_owned();
        for _ in 0..=MAX_DEPTH {
            deep.push("d");
        }
        fs::create_dir_all(&deep).unwrap();
        let walk = Walk::through(dir.path());
        assert!(walk.trouble[0].pair.as_ref().is_err_and(|why| why.contains("too deep")));
        assert_eq!(walk.files.len(), MAX_DEPTH + 1);
    }
}
