//! Where certificates come from: [`Source`]; among them a pair of files, and what we make ourselves.
//!
//! In: paths. Out: every pair that is there now, or why one can't be used. A pair is known by the path of its
//! certificate, which stays the same while what it holds is renewed. What has not changed since the last look is
//! not read again.
//! Not here: pairs in a directory (`directory`); whether a pair that is found gets to serve (`store`).

use std::fs;
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::certificate::{self, Pair};
use super::{chain, key_mode, self_signed};
use crate::config::settings::{CertificateFiles, SelfSigned};

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
    /// It takes the place of what is served also if it expires earlier or has fewer names.
    pub meant: bool,
}

/// Where pairs come from: one entry of the configuration.
pub trait Source: Send {
    /// Everything that is there at `now` (unix seconds); empty only while it [is absent](Self::is_absent). It reads files and may wait for another
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
pub struct Seen {
    pub stamps: Vec<Option<Stamp>>,
    pub found: Vec<Found>,
    settled: bool,
}

impl Seen {
    pub fn new(stamps: Vec<Option<Stamp>>, found: Vec<Found>, now: i64) -> Self {
        let settled = stamps.iter().flatten().all(|stamp| stamp.changed.0 < now - SETTLED);
        Self { stamps, found, settled }
    }

    pub fn still_holds(&self, stamps: &[Option<Stamp>]) -> bool {
        self.settled && self.stamps == stamps
    }
}

pub fn stamps<'a>(paths: impl IntoIterator<Item = &'a PathBuf>) -> Vec<Option<Stamp>> {
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
        let found = vec![Found { key, pair, not_after, ..failed(cert, String::new()) }];
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

pub fn failed(id: &Path, text: String) -> Found {
    let pair = Err(text);
    Found { id: id.to_owned(), key: None, pair, not_after: None, notice: Vec::new(), meant: false }
}

/// What the proxy makes and renews itself.
pub struct Made {
    settings: SelfSigned,
    /// A CA that could not be written anywhere; see [`self_signed::in_dir`].
    memory: Option<self_signed::Kept>,
    seen: Option<Seen>,
    /// From then until then what was seen holds, unix seconds.
    holds: Range<i64>,
}

impl Made {
    pub fn new(settings: SelfSigned) -> Self {
        Self { settings, memory: None, seen: None, holds: 0..0 }
    }

    fn files(&self) -> Vec<PathBuf> {
        self_signed::FILES.iter().map(|file| self.settings.dir.join(file)).collect()
    }
}

impl Source for Made {
    fn look(&mut self, now: i64) -> Vec<Found> {
        let SelfSigned { names, dir } = &self.settings;
        if let Some(seen) = &self.seen
            && self.holds.contains(&now)
            && seen.stamps == stamps(&self.files())
        {
            return seen.found.clone();
        }
        let id = dir.join("fullchain.pem");
        let made = match self_signed::in_dir(names, dir, now, &mut self.memory) {
            Ok(made) => made,
            Err(error) => return vec![failed(&id, chain(&error))], // tried again at every look
        };
        let mut notice = made.news.clone();
        notice.push(self_signed::in_words(&made, dir));
        notice.extend(key_mode(&dir.join("ca.key")).map(|(_, text)| text));
        // A clock that goes back may bring a CA to serve that was put aside.
        self.holds = now..made.again_at;
        let not_after = Some(made.pair.chain[0].not_after);
        let (key, pair) = (Some(dir.join("privkey.pem")), Ok(Arc::new(made.pair)));
        let found = vec![Found { id, key, pair, not_after, notice, meant: false }];
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
    use super::super::directory::Dir;
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
}
