//! Notices that certificates have changed, by the file system's own word.
//!
//! In: the files that are looked at. Out: [`Watch::changed`], once things are quiet again. Watched are directories,
//! for files come and go by renaming: those in which the files lie, and those in which a link on the way to them
//! lies. Not every file system reports changes (NFS does not), and a system can run out of watches: so this
//! only makes it faster, and somebody has to look now and then as well. What a look itself leaves in such a directory is no
//! change, or each would bring the next; whatever else is hidden may be one (`..data` of a Kubernetes volume).
//! Not here: what has changed (`store`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::self_signed::is_passing;

/// A pair is written file by file; this long nothing has to happen.
const QUIET: Duration = Duration::from_millis(250);
/// In a directory that is never quiet.
const AT_MOST: Duration = Duration::from_secs(2);
/// Links on the way to one file.
const MAX_LINKS: usize = 8;

/// What is watched. A file system that can't do it is logged once.
pub struct Watch {
    watcher: Option<RecommendedWatcher>,
    /// By path: device and inode, for another directory may take its place.
    watched: BTreeMap<PathBuf, (u64, u64)>,
    changed: Arc<Notify>,
    complained: bool,
}

impl Watch {
    pub fn start() -> Self {
        let changed = Arc::new(Notify::new());
        let notify = Arc::clone(&changed);
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            if event.is_ok_and(|event| is_change(&event)) {
                notify.notify_one();
            }
        });
        let mut watch =
            Self { watcher: None, watched: BTreeMap::new(), changed, complained: false };
        match watcher {
            Ok(watcher) => watch.watcher = Some(watcher),
            Err(error) => watch.complain(&error),
        }
        watch
    }

    /// Watches what has to do with `paths`, and nothing else any more. Whether that is something new: then what
    /// happened in between was missed.
    pub fn set(&mut self, paths: &[PathBuf]) -> bool {
        let Some(mut watcher) = self.watcher.take() else { return false };
        let mut wanted = BTreeMap::new();
        for dir in directories(paths) {
            if let Ok(found) = fs::metadata(&dir) {
                wanted.insert(dir, (found.dev(), found.ino()));
            }
        }
        self.watched.retain(|dir, identity| {
            let stays = wanted.get(dir) == Some(identity);
            if !stays {
                let _ = watcher.unwatch(dir); // it may be gone, and its watch with it
            }
            stays
        });
        let mut more = false;
        for (dir, identity) in wanted {
            if self.watched.contains_key(&dir) {
                continue;
            }
            match watcher.watch(&dir, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.watched.insert(dir, identity);
                    more = true;
                }
                Err(error) => self.complain(&error),
            }
        }
        self.watcher = Some(watcher);
        more
    }

    /// Returns when something has happened and things are quiet again.
    pub async fn changed(&self) {
        self.changed.notified().await;
        let end = Instant::now() + AT_MOST;
        while Instant::now() < end && timeout(QUIET, self.changed.notified()).await.is_ok() {}
    }

    fn complain(&mut self, error: &notify::Error) {
        if !self.complained {
            tracing::warn!(%error, "can't watch certificates for changes, they are looked at every minute");
        }
        self.complained = true;
    }
}

/// Reading is none, and we read ourselves; nor are the files that we make to do so.
fn is_change(event: &Event) -> bool {
    let ours = !event.paths.is_empty() && event.paths.iter().all(|path| is_passing(path));
    match event.kind {
        _ if ours => false,
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}

/// The directories in which a change can change what stands at `paths`.
fn directories(paths: &[PathBuf]) -> BTreeSet<PathBuf> {
    let mut all = BTreeSet::new();
    for path in paths {
        let mut path = path.clone();
        for _ in 0..MAX_LINKS {
            if path.is_dir() {
                all.insert(path.clone());
            }
            // In which it lies, or is to lie one day.
            all.extend(path.ancestors().skip(1).map(or_here).find(|dir| dir.is_dir()));
            let is_link = |dir: &&Path| fs::read_link(dir).is_ok();
            let links = path.ancestors().skip(1).filter(is_link);
            all.extend(links.filter_map(Path::parent).map(or_here));
            match fs::read_link(&path) {
                Ok(target) => path = path.parent().unwrap_or(Path::new("/")).join(target),
                Err(_) => break,
            }
        }
    }
    all
}

fn or_here(dir: &Path) -> PathBuf {
    if dir.as_os_str().is_empty() { PathBuf::from(".") } else { dir.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::super::pairs::{Made, Source as _};
    use super::*;
    use crate::config::settings::SelfSigned;
    use std::os::unix::fs::symlink;

    #[test]
    fn every_directory_on_the_way_is_watched() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        fs::create_dir_all(at("live/mail")).unwrap();
        fs::create_dir_all(at("archive/mail")).unwrap();
        fs::write(at("archive/mail/cert1.pem"), "").unwrap();
        symlink("../../archive/mail/cert1.pem", at("live/mail/cert.pem")).unwrap();
        let found = directories(&[at("live/mail/cert.pem")]);
        assert!(found.contains(&at("live/mail")), "{found:?}");
        assert!(found.contains(&at("live/mail/../../archive/mail")), "{found:?}");

        fs::create_dir_all(at("secret/..1")).unwrap();
        fs::write(at("secret/..1/tls.crt"), "").unwrap();
        symlink("..1", at("secret/..data")).unwrap();
        symlink("..data/tls.crt", at("secret/tls.crt")).unwrap();
        let found = directories(&[at("secret/tls.crt")]);
        assert!(found.contains(&at("secret")) && found.contains(&at("secret/..data")), "{found:?}");

        symlink("secret", at("current")).unwrap();
        assert!(directories(&[at("current/tls.crt")]).contains(dir.path()));
        assert_eq!(directories(&[at("to/be/made")]), BTreeSet::from([dir.path().to_owned()]));
        assert_eq!(directories(&["none.pem".into()]), BTreeSet::from([".".into()]));
    }

    #[tokio::test]
    async fn a_change_is_noticed_and_reading_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.pem");
        fs::write(&file, "1").unwrap();
        let mut watch = Watch::start();
        assert!(watch.set(std::slice::from_ref(&file)));
        assert!(!watch.set(std::slice::from_ref(&file)), "nothing new");
        fs::read(&file).unwrap();
        assert!(timeout(QUIET * 2, watch.changed()).await.is_err());
        fs::write(dir.path().join("b"), "2").unwrap();
        fs::rename(dir.path().join("b"), &file).unwrap();
        timeout(Duration::from_secs(10), watch.changed()).await.unwrap();
        // The directory is replaced by another one of its name.
        let moved = dir.path().with_extension("moved");
        fs::rename(dir.path(), &moved).unwrap();
        fs::create_dir(dir.path()).unwrap();
        assert!(watch.set(std::slice::from_ref(&file)));
        let _ = timeout(QUIET * 2, watch.changed()).await;
        fs::write(&file, "3").unwrap();
        timeout(Duration::from_secs(10), watch.changed()).await.unwrap();
        fs::remove_dir_all(&moved).unwrap();
    }

    #[tokio::test]
    async fn a_look_that_fails_does_not_bring_the_next_one() {
        let dir = tempfile::tempdir().unwrap();
        let at = |file: &str| dir.path().join(file);
        fs::write(at("ca.pem"), "garbage").unwrap();
        let names = vec!["mail.example.org".to_owned()];
        let mut made = Made::new(SelfSigned { names, dir: dir.path().to_owned() });
        let mut watch = Watch::start();
        watch.set(&made.watched());
        assert!(made.look(0)[0].pair.is_err() && at(".lock").exists());
        // As if the disk were full.
        fs::write(at(".ca.pem.new"), "").unwrap();
        fs::remove_file(at(".ca.pem.new")).unwrap();
        assert!(timeout(QUIET * 2, watch.changed()).await.is_err());
        // Hidden as well, and a change: how Kubernetes renews a volume.
        symlink("..1", at("..data_tmp")).unwrap();
        fs::rename(at("..data_tmp"), at("..data")).unwrap();
        timeout(Duration::from_secs(10), watch.changed()).await.unwrap();
        fs::remove_file(at("ca.pem")).unwrap();
        timeout(Duration::from_secs(10), watch.changed()).await.unwrap();
        assert!(made.look(0)[0].pair.is_ok());
        timeout(Duration::from_secs(10), watch.changed()).await.unwrap();
    }
}
