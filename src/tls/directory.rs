//! Every certificate in and below a directory that has its key beside it.
//!
//! In: the path of a directory. Out: pairs, as of any [`Source`]. A key belongs to the certificate with its public half,
//! whatever the two files are called. Looked at are directories, and files that end in .pem, .crt, .cer, .cert or .key;
//! links are followed, and nothing hidden is seen: so of a Kubernetes volume the names are seen and not the
//! `..data` behind them. Beside a `fullchain` file no other one is taken for a chain (certbot's cert.pem and chain.pem),
//! and beside certbot's `live` its `archive` is not looked at.
//! A renewed certificate may lie beside the old one: of those for the same names with the same kind of
//! key the longest-lasting is found, by the rule by which one file takes the place of another
//! ([`worse`]).
//! Limits: [`MAX_DEPTH`] levels and [`MAX_ENTRIES`] entries.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls_pki_types::PrivateKeyDer;

use super::certificate::{self, Certs, Held};
use super::chain;
use super::complaints::{is_refused, worse};
use super::facts::Facts;
use super::names::{covers, covers_names, server_names};
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
        let mut all = without_superseded(all, now);
        if let Some(first) = all.first_mut() {
            first.notice.extend(walk.notice);
        }
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
    /// What was left out.
    notice: Vec<String>,
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
        let is_certbots = ["archive", "live"].iter().all(|name| dir.join(name).is_dir());
        let mut files = Vec::new();
        for path in paths {
            if is_certbots && path.file_name().is_some_and(|name| name == "archive") {
                self.notice.push(format!(
                    "{}: is certbot's archive of old certificates and left out; the current ones are in {}, the directory to name",
                    path.display(),
                    dir.join("live").display()
                ));
                continue;
            }
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

/// A file with certificates.
struct Chain {
    path: PathBuf,
    certs: Certs,
    facts: Vec<Facts>,
}

/// Keys by what they are compared by, with their files.
type Keys = BTreeMap<Vec<u8>, (PathBuf, PrivateKeyDer<'static>)>;

impl Chain {
    /// The server's certificate and where its key is: the first of which one is there.
    fn leaf<'a>(&self, keys: &'a Keys) -> Option<(&Facts, &'a (PathBuf, PrivateKeyDer<'static>))> {
        let mut its = self.facts.iter().filter_map(|facts| {
            let key = keys.get(facts.public.as_ref()?)?;
            Some((facts, key))
        });
        its.next()
    }
}

/// Certificates and keys of one directory, matched.
fn pair_up(files: &[PathBuf]) -> Vec<Found> {
    let only_full = files.iter().any(|path| full_chain(path).is_some());
    let (mut chains, mut keys, mut wrong) = (Vec::<Chain>::new(), Keys::new(), Vec::new());
    for path in files {
        let looks_like_key = has_extension(path, &["key"])
            || path.file_stem().is_some_and(|stem| stem.to_string_lossy().contains("key"));
        if only_full && full_chain(path).is_none() && !looks_like_key {
            continue;
        }
        match read(path) {
            Ok((certs, own)) => {
                for (public, key) in own {
                    keys.entry(public).or_insert_with(|| (path.clone(), key));
                }
                chains.extend(certs.map(|(certs, facts)| Chain {
                    path: path.clone(),
                    certs,
                    facts,
                }));
            }
            // Neither certificate nor key: parameters, a request, a note.
            Err(certificate::Error::Other { .. } | certificate::Error::NotPem { .. })
            | Err(certificate::Error::Binary { .. } | certificate::Error::NotAFile { .. }) => {}
            Err(error) => wrong.push((path, looks_like_key, chain(&error))),
        }
    }
    // Of the files with one certificate the longest.
    chains.sort_by_key(|chain| std::cmp::Reverse(chain.facts.len())); // stable: then by path
    let mut taken = BTreeSet::new();
    chains.retain(|chain| {
        let leaf = chain.leaf(&keys).map_or(chain.facts.first(), |(leaf, _)| Some(leaf));
        leaf.is_none_or(|leaf| taken.insert(leaf.fingerprint.clone()))
    });
    chains.sort_by(|a, b| a.path.cmp(&b.path));

    let mut found = Vec::new();
    let mut lonely = false;
    for one in chains {
        let Some((leaf, (key_path, key))) = one.leaf(&keys) else {
            if one.facts.iter().all(|facts| facts.is_ca) {
                continue; // a root or an intermediate that lies about
            }
            lonely = true;
            let path = &one.path;
            let mut text = format!(
                "{}: no private key beside it belongs to this certificate; put it there, or wait until both are written",
                path.display()
            );
            let of_keys = wrong.iter().filter(|(_, is_key, _)| *is_key);
            text.extend(of_keys.map(|(_, _, why)| format!("; {why}")));
            let end = one.facts.first().map(|leaf| leaf.not_after);
            found.push(Found { not_after: end, ..failed(path, text) });
            continue;
        };
        let end = leaf.not_after;
        let Chain { path, certs, .. } = one;
        let pair = certificate::matched(certs, std::slice::from_ref(key), &path, key_path);
        let pair = pair.map(Arc::new).map_err(|error| chain(&error));
        let end = pair.as_ref().map_or(end, |pair| pair.chain[0].not_after);
        let key = Some(key_path.clone());
        let notice = if full_chain(&path) == Some(Full::Archived) {
            vec![in_archive(&path)]
        } else {
            vec![]
        };
        let not_after = Some(end);
        found.push(Found { key, pair, not_after, notice, ..failed(&path, String::new()) });
    }
    let of_chains = wrong.into_iter().filter(|(_, is_key, _)| !(lonely && *is_key));
    found.extend(of_chains.map(|(path, _, why)| failed(path, why)));
    found
}

/// Whether a file has the name of a chain beside which others do not count.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Full {
    Current,
    /// `fullchain3`, as certbot numbers them.
    Archived,
}

fn full_chain(path: &Path) -> Option<Full> {
    let stem = path.file_stem()?.to_string_lossy().to_ascii_lowercase();
    match stem.strip_prefix("fullchain")? {
        "" => Some(Full::Current),
        number if number.bytes().all(|byte| byte.is_ascii_digit()) => Some(Full::Archived),
        _ => None,
    }
}

fn in_archive(path: &Path) -> String {
    format!(
        "{}: lies in certbot's archive, which keeps every certificate that ever was; name certbot's directory `live` instead",
        path.display()
    )
}

/// What a file holds: certificates with what they say, and keys by their public halves.
type Parts = (Option<(Certs, Vec<Facts>)>, Vec<(Vec<u8>, PrivateKeyDer<'static>)>);

fn read(path: &Path) -> Result<Parts, certificate::Error> {
    let Held { certs, keys } = certificate::read_held(path)?;
    let certs = match certs {
        None => None,
        Some(certs) => {
            let mut each: Vec<_> = certificate::each_facts(&certs.ders, path).collect();
            if each.iter().all(Result::is_err)
                && let Some(Err(error)) = each.pop()
            {
                return Err(error);
            }
            Some((certs, each.into_iter().flatten().collect()))
        }
    };
    let with_public = |key| Ok((certificate::public_half(&key, path)?, key));
    Ok((certs, keys.into_iter().map(with_public).collect::<Result<_, certificate::Error>>()?))
}

/// Leaves out what a certificate that lasts longer takes the place of, and does not let one take a place in
/// which it would be worse. For every name something is left: what goes is covered by what stays.
fn without_superseded(mut found: Vec<Found>, now: i64) -> Vec<Found> {
    let end = |one: &Found| one.pair.as_ref().map(|pair| pair.chain[0].not_after).ok();
    let mut by_end: Vec<usize> = (0..found.len()).filter(|&at| found[at].pair.is_ok()).collect();
    by_end.sort_by_key(|&at| end(&found[at])); // stable: then by path
    // Those that serve so far, by name; for each what it has taken the place of; and what may not serve.
    let mut kept = HashMap::<String, BTreeSet<usize>>::new();
    let mut replaced = BTreeMap::<usize, Vec<usize>>::new();
    let mut barred = BTreeMap::<usize, String>::new();
    for at in by_end {
        let Ok(pair) = &found[at].pair else { continue };
        let names: Vec<String> = server_names(&pair.chain[0]).map(Cow::into_owned).collect();
        let (mut old, mut better) = (BTreeSet::new(), None);
        for &other in names.iter().filter_map(|name| kept.get(name)).flatten() {
            let Ok(shorter) = &found[other].pair else { continue };
            if end(&found[other]) == end(&found[at]) || !covers(pair, shorter) {
                continue;
            }
            match worse(shorter, pair, now) {
                None => {
                    old.insert(other);
                }
                Some(worse) if covers_names(shorter, pair) && !is_refused(shorter, now) => {
                    better = Some((other, worse.why));
                }
                Some(_) => {}
            }
        }
        if let Some((other, why)) = better {
            let text = format!(
                "{}: {why}; {} beside it is served until its end, remove that one if this one is meant",
                found[at].id.display(),
                found[other].id.display()
            );
            barred.insert(at, text);
            continue;
        }
        for other in old {
            for name in &names {
                kept.entry(name.clone()).or_default().remove(&other);
            }
            let before = replaced.remove(&other).unwrap_or_default();
            replaced.entry(at).or_default().extend([before, vec![other]].concat());
        }
        for name in names {
            kept.entry(name).or_default().insert(at);
        }
    }
    let gone: BTreeSet<usize> = replaced.values().flatten().copied().collect();
    for (at, old) in replaced {
        let shown: Vec<_> =
            old.iter().take(3).map(|&at| found[at].id.display().to_string()).collect();
        let more = old.len() - shown.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let text = format!(
            "{}: takes the place of {}{more}, which may be removed",
            found[at].id.display(),
            shown.join(", ")
        );
        found[at].notice.push(text);
    }
    for (at, why) in barred {
        found[at].pair = Err(why);
    }
    let left = found.into_iter().enumerate().filter(|(at, _)| !gone.contains(at));
    left.map(|(_, one)| one).collect()
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
