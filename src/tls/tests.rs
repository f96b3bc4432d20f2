//! Certificates from files to handshakes: what is found, what is taken, who gets which.

mod files;

mod store;

mod handshakes;

use super::check::check_at;
use super::facts::DAY;
use super::*;
use crate::config::settings::{
    self, CertificateFiles, CertificateSource, MinVersion, SelfSigned, UnknownName,
};
use rcgen::{CertificateParams, KeyPair, SignatureAlgorithm};
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::aws_lc_rs;
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, ProtocolVersion, ServerConfig, ServerConnection,
};
use rustls_pki_types::ServerName;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

/// 2026-11-24.
const NOW: i64 = 1_795_500_000;

fn at(unix: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(unix).unwrap())
}

fn put(dir: &TempDir, file: &str, text: &str, mode: u32) -> PathBuf {
    let path = dir.path().join(file);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    path
}

fn pair(cert: &Path, key: &Path) -> CertificateSource {
    CertificateSource::Pair(CertificateFiles { cert: cert.into(), key: key.into() })
}

fn tls(cert: Option<(&Path, &Path)>, made: Option<&Path>) -> settings::Tls {
    settings::Tls {
        self_signed: made.map(|dir| SelfSigned {
            names: vec!["mail.example.org".into(), "127.0.0.1".into()],
            dir: dir.into(),
        }),
        ..settings::Tls::with(cert.map(|(cert, key)| pair(cert, key)).into_iter().collect())
    }
}

fn in_dir(dir: &Path) -> settings::Tls {
    settings::Tls::with(vec![CertificateSource::Dir(dir.into())])
}

/// What is refused at start, in words.
fn refusal(settings: &settings::Tls) -> String {
    Store::new(settings).load(at(NOW)).expect_err("a refusal").to_string()
}

/// The certificates that serve, by their labels and the day on which they expire, counted from `NOW`.
fn served(store: &Store) -> Vec<(String, i64)> {
    let state = store.state().certificates.into_iter();
    state.filter_map(|one| Some((one.certificate, (one.served? - NOW) / DAY))).collect()
}

fn shown(pairs: &[(&str, i64)]) -> Vec<(String, i64)> {
    pairs.iter().map(|(label, days)| ((*label).to_owned(), *days)).collect()
}

/// A certificate and its key as PEM, valid from 10 days before `NOW` to `days` after it.
fn pems(names: &[&str], days: i64) -> (String, String) {
    pems_of(names, days, &rcgen::PKCS_ECDSA_P256_SHA256)
}

fn pems_of(names: &[&str], days: i64, kind: &'static SignatureAlgorithm) -> (String, String) {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(names).unwrap();
    let from = |unix: i64| {
        rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(u64::try_from(unix).unwrap())
    };
    params.not_before = from(NOW - 10 * DAY);
    params.not_after = from(NOW + days * DAY);
    let key = KeyPair::generate_for(kind).unwrap();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

/// Writes a pair as `NAME.crt` and `NAME.key`.
fn lay(dir: &Path, name: &str, (cert, key): &(String, String)) {
    for (file, text) in [(format!("{name}.crt"), cert), (format!("{name}.key"), key)] {
        fs::write(dir.join(&file), text).unwrap();
        fs::set_permissions(dir.join(&file), fs::Permissions::from_mode(0o600)).unwrap();
    }
}

fn messages(settings: &settings::Tls) -> Vec<String> {
    let found = check_at(settings, NOW).into_iter();
    found.map(|finding| format!("{:?}: {}", finding.severity, finding.message)).collect()
}

impl Store {
    fn look_up(&self, name: &str) -> Arc<CertifiedKey> {
        self.names().first(Some(name))
    }

    fn look_up_default(&self) -> Arc<CertifiedKey> {
        self.names().first(None)
    }
}
