//! Every certificate in and below a directory that has its key beside it.
//!
//! In: the path of a directory. Out: pairs, as of any [`Source`]. A key belongs to the certificate with its public half,
//! whatever the two files are called. Looked at are directories, and files that end in .pem, .crt, .cer, .cert or .key;
//! links are followed, and nothing hidden is seen: so of a Kubernetes volume the names are seen and not the
//! `..data` behind them. Beside a `fullchain` file no other one is taken for a chain (certbot's cert.pem and chain.pem).
//! Limits: [`MAX_DEPTH`] levels and [`MAX_ENTRIES`] entries.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::certificate::{self, Held};
use super::chain;
use super::facts::Facts;
use super::pairs::{Found, Seen, Source, failed, is_there, stamps};

const MAX_DEPTH: usize = 8;
const MAX_ENTRIES: usize = 10_000;

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
        let room = MAX_ENTRIES.saturating_sub(self.entries);
        let entries = fs::metadata(dir).and_then(|found| {
            if !self.entered.insert((found.dev(), found.ino())) {
                return Ok(Vec::new());
            }
            // One too many tells that it is too large.
            fs::read_dir(dir)?.take(room + 1).collect::<Result<Vec<_>, _>>()
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
    certs: Vec<CertificateDer<'static>>,
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
        found.push(Found { key, pair, not_after: Some(end), ..failed(&path, String::new()) });
    }
    let of_chains = wrong.into_iter().filter(|(_, is_key, _)| !(lonely && *is_key));
    found.extend(of_chains.map(|(path, _, why)| failed(path, why)));
    found
}

type Parts = (Vec<CertificateDer<'static>>, Vec<Facts>, Option<(Vec<u8>, PrivateKeyDer<'static>)>);

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

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn no_more_of_a_large_directory_is_read_than_tells_that_it_is_too_large() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..MAX_ENTRIES + 100 {
            fs::write(dir.path().join(number.to_string()), "").unwrap();
        }
        let walk = Walk::through(dir.path());
        assert!(walk.trouble[0].pair.as_ref().is_err_and(|why| why.contains("too large")));
        assert_eq!(walk.entries, MAX_ENTRIES + 1);
    }
}
