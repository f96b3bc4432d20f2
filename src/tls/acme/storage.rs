//! What ACME keeps on disk, and the [`Source`] that hands it out.
//!
//! In `tls.acme.storage` every CA has a folder of its own, named after its directory URL (and a hash of it, for names
//! are made fit), so that what a staging CA has issued is never taken for the real thing: `account.json` (the account's URL and key) and
//! `certificate.pem` (a private key, then its chain). One file for both halves: there is no moment in which they do
//! not fit. All files have mode 0600 and are replaced in one step.
//! Blocking: not for threads that serve clients.
//! Invariant: an account that can't be read is never overwritten; a certificate that can't be is ordered anew.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, digest};
use instant_acme::AccountCredentials;
use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use super::super::facts::{Facts, Name};
use super::super::pairs::{Files, Found, Source, is_there};
use super::super::{certificate, chain, self_signed};
use super::failure::Failure;
use crate::config::settings::{Acme, CertificateFiles};

/// The files of one CA.
#[derive(Clone, Debug)]
pub struct Storage {
    dir: PathBuf,
    /// The CA's, as configured.
    directory: String,
}

/// An account has some hundred bytes, and so has the key of an external one.
pub const MAX_SECRET: u64 = 64 << 10;
/// More than an account or a certificate takes.
const ROOM: usize = 64 << 10;

impl Storage {
    pub fn new(settings: &Acme) -> Self {
        Self {
            dir: settings.storage.join(folder(&settings.directory)),
            directory: settings.directory.clone(),
        }
    }

    /// Holds the private key as well.
    pub fn certificate(&self) -> PathBuf {
        self.dir.join("certificate.pem")
    }

    /// Where the certificate is that stands in until the first order is done.
    pub fn stand_in(settings: &Acme) -> PathBuf {
        settings.storage.join("self-signed")
    }

    /// The account that was made here, if one was.
    ///
    /// # Errors
    /// The file can't be read, is damaged, or holds an account of another CA.
    pub fn account(&self) -> Result<Option<AccountCredentials>, Failure> {
        const RESTORE: &str = "restore the file; or remove it, and a new account is made";
        let path = self.account_path();
        let text = match certificate::read_bytes(&path, certificate::What::Key, MAX_SECRET) {
            Ok(text) => text,
            Err(certificate::Error::Missing { .. }) => return Ok(None),
            Err(error) => return Err(Failure::refused(chain(&error), Failure::FILE)),
        };
        let useless = |error: serde_json::Error| {
            Failure::refused(format!("{}: no ACME account: {error}", path.display()), RESTORE)
        };
        let account = serde_json::from_slice(&text).map_err(useless)?;
        let shown: serde_json::Value = serde_json::from_slice(&text).map_err(useless)?;
        let directory = shown.get("directory").and_then(|url| url.as_str()).unwrap_or("nowhere");
        if plain(directory) != plain(&self.directory) {
            let (path, ours) = (path.display(), &self.directory);
            let text = format!("{path}: an ACME account of {directory}, not of {ours}");
            return Err(Failure::refused(text, RESTORE));
        }
        Ok(Some(account))
    }

    /// Writes as much as ever will be needed, and takes it away again: what can't be kept must not be ordered.
    pub fn try_room(&self) -> Result<(), Failure> {
        const FILE: &str = ".room";
        self.write(FILE, &[b'\n'; ROOM])?;
        let path = self.dir.join(FILE);
        fs::remove_file(&path).map_err(|error| Failure::file(&path, &error))
    }

    pub fn keep_account(&self, account: &AccountCredentials) -> Result<(), Failure> {
        let path = self.account_path();
        let text = serde_json::to_vec_pretty(account)
            .map_err(|error| Failure::file(&path, &io::Error::other(error)))?;
        self.write("account.json", &Zeroizing::new(text))
    }

    /// Puts the account aside that the CA does not know.
    pub fn forget_account(&self) -> Result<(), Failure> {
        let path = self.account_path();
        match fs::rename(&path, self.dir.join("account.json.unknown")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Failure::file(&path, &error))
            }
            _ => Ok(()),
        }
    }

    /// `key` is PEM.
    pub fn keep_certificate(
        &self,
        key: &str,
        chain: &[CertificateDer<'static>],
    ) -> Result<(), Failure> {
        let chain: String = chain.iter().map(self_signed::pem).collect();
        let text = Zeroizing::new(format!("{}\n{chain}", key.trim_end()));
        self.write("certificate.pem", text.as_bytes())
    }

    /// The certificate that is there, or `None` if a new one is needed in any case.
    pub fn leaf(&self) -> Option<Facts> {
        let path = self.certificate();
        certificate::read_pair(&path, &path).ok().map(|mut pair| pair.chain.remove(0))
    }

    fn account_path(&self) -> PathBuf {
        self.dir.join("account.json")
    }

    fn write(&self, file: &str, content: &[u8]) -> Result<(), Failure> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
            .and_then(|()| self_signed::replace(&self.dir, file, content, 0o600))
            .map_err(|error| Failure::file(&self.dir.join(file), &error))
    }
}

/// `https://ca.example:14000/dir` is `ca.example-14000-dir-` and eight digits of a hash.
fn folder(directory: &str) -> String {
    let directory = plain(directory);
    let rest = directory.strip_prefix("https://").unwrap_or(directory);
    let kept = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
    let name: String = rest.chars().map(kept).take(200).collect();
    let hash = digest(&SHA256, directory.as_bytes());
    let hash: String = hash.as_ref()[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{hash}", name.trim_start_matches('.'))
}

/// With and without a slash at its end a directory is the same.
fn plain(directory: &str) -> &str {
    directory.trim_end_matches('/')
}

/// Whether a certificate is for exactly `names`, which are in lower case.
pub fn is_for(leaf: &Facts, names: &[String]) -> bool {
    let has = |wanted: &str| {
        leaf.names
            .iter()
            .any(|name| matches!(name, Name::Dns(name) if name.eq_ignore_ascii_case(wanted)))
    };
    leaf.names.len() == names.len() && names.iter().all(|name| has(name))
}

/// The last certificate that was ordered.
pub struct Issued {
    path: PathBuf,
    files: Files,
}

impl Issued {
    pub fn new(settings: &Acme) -> Self {
        let path = Storage::new(settings).certificate();
        Self { files: Files::new(CertificateFiles { cert: path.clone(), key: path.clone() }), path }
    }
}

impl Source for Issued {
    fn look(&mut self, now: i64) -> Vec<Found> {
        if !is_there(&self.path) {
            return Vec::new(); // on order
        }
        let found = self.files.look(now).into_iter();
        // What we have ordered is what the configuration asks for, also with a shorter life than the last.
        found.map(|found| Found { meant: true, ..found }).collect()
    }

    /// Another can be ordered.
    fn is_needed(&self) -> bool {
        false
    }

    fn is_absent(&self) -> bool {
        !is_there(&self.path)
    }

    fn watched(&self) -> Vec<PathBuf> {
        vec![self.path.clone()]
    }
}

/// What `check` can say of the place without changing anything.
pub fn inspect(dir: &Path) -> Result<(), String> {
    use rustix::fs::{Access, access};
    let mut place = dir;
    while !is_there(place) {
        match place.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => place = parent,
            _ => {
                place = Path::new(".");
                break;
            }
        }
    }
    if !place.is_dir() {
        return Err(format!("{}: is not a directory", place.display()));
    }
    access(place, Access::WRITE_OK | Access::EXEC_OK).map_err(|error| {
        let why = io::Error::from(error);
        format!("{}: the ACME account and certificates cannot be kept there ({why}); give the proxy's user a directory to write", place.display())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn settings(storage: &Path) -> Acme {
        Acme {
            directory: "https://ca.example:14000/dir".into(),
            contact: Vec::new(),
            names: vec!["a.example".into()],
            challenge: crate::config::settings::Challenge::Dns01 { hook: "/hook".into() },
            storage: storage.into(),
            ca: None,
            profile: None,
            external_account: None,
        }
    }

    #[test]
    fn every_ca_has_a_folder() {
        for (url, name) in [
            (
                "https://acme-v02.api.letsencrypt.org/directory",
                "acme-v02.api.letsencrypt.org-directory-5e76d315",
            ),
            ("https://localhost:14000/dir/", "localhost-14000-dir-929abca7"),
            ("https://localhost:14000/dir", "localhost-14000-dir-929abca7"),
            ("https://../../etc", "-..-etc-c897d5ec"),
            ("https://[::1]:1/a?b=c", "---1--1-a-b-c-234478d3"),
        ] {
            assert_eq!(folder(url), name);
        }
        assert_ne!(folder("https://ca.example/a-b"), folder("https://ca.example/a/b"));
        let long = format!("https://ca.example/{}", "a".repeat(300));
        assert_ne!(folder(&long), folder(&(long.clone() + "b")));
    }

    #[test]
    fn what_is_kept_is_found_again_and_nobody_else_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let acme = settings(&dir.path().join("deep/storage"));
        let storage = Storage::new(&acme);
        let mut source = Issued::new(&acme);
        assert!(source.is_absent() && source.look(0).is_empty() && storage.leaf().is_none());
        let made = rcgen::generate_simple_self_signed(["A.example".to_owned()]).unwrap();
        storage
            .keep_certificate(&made.signing_key.serialize_pem(), &[made.cert.der().clone()])
            .unwrap();
        let kept = fs::read_to_string(storage.certificate()).unwrap().replace("\r\n", "\n");
        assert!(kept.ends_with(&made.cert.pem().replace("\r\n", "\n")), "{kept}");
        assert!(is_for(&storage.leaf().unwrap(), &acme.names));
        assert!(!is_for(&storage.leaf().unwrap(), &["a.example".into(), "b.example".into()]));
        let found = source.look(0).remove(0);
        assert!(found.pair.is_ok() && found.meant);
        for (path, mode) in [(storage.certificate(), 0o600), (storage.dir.clone(), 0o700)] {
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, mode);
        }
        assert!(storage.account().unwrap().is_none());
        fs::write(storage.account_path(), "{").unwrap();
        assert!(storage.account().err().unwrap().text.contains("account.json: no ACME account"));
        storage.forget_account().unwrap();
        assert!(storage.account().unwrap().is_none());
        storage.forget_account().unwrap();
    }

    #[test]
    fn an_account_of_another_ca_is_neither_used_nor_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let storage = Storage::new(&settings(dir.path()));
        fs::create_dir(&storage.dir).unwrap();
        let put = |directory: Option<&str>| {
            let account =
                serde_json::json!({ "id": "1", "key_pkcs8": "MA", "directory": directory });
            fs::write(storage.account_path(), account.to_string()).unwrap();
            storage.account()
        };
        assert!(put(Some("https://ca.example:14000/dir")).unwrap().is_some());
        assert!(put(Some("https://ca.example:14000/dir/")).unwrap().is_some());
        for other in [Some("https://ca.example:14000/"), Some(" "), None] {
            let failure = put(other).err().unwrap();
            let said =
                format!("of {}, not of https://ca.example:14000/dir", other.unwrap_or("nowhere"));
            assert!(failure.text.ends_with(&said), "{failure:?}");
        }
        fs::write(storage.account_path(), " ".repeat(100_000)).unwrap();
        assert!(storage.account().err().unwrap().text.contains("100000 bytes"));
        fs::remove_file(storage.account_path()).unwrap();
        fs::create_dir(storage.account_path()).unwrap();
        assert!(storage.account().err().unwrap().text.contains("is a directory"));
    }

    #[test]
    fn where_nothing_can_be_kept_is_known_before() {
        let dir = tempfile::tempdir().unwrap();
        let storage = Storage::new(&settings(dir.path()));
        storage.try_room().unwrap();
        assert_eq!(fs::read_dir(&storage.dir).unwrap().count(), 0);
        fs::remove_dir(&storage.dir).unwrap();
        fs::write(&storage.dir, "").unwrap();
        assert!(storage.try_room().is_err());
        assert_eq!(inspect(&dir.path().join("a/b/c")), Ok(()));
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(inspect(&dir.path().join("file/a")).unwrap_err().contains("file"));
    }
}
