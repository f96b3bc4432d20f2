//! Certificates from files to handshakes: what is found, what is taken, who gets which.

use super::check::check_at;
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

#[test]
fn a_good_pair_loads_and_is_named_after_its_first_dns_name() {
    let dir = TempDir::new().unwrap();
    let (cert, key) = pems(&["192.0.2.1", "mail.example.org"], 80);
    let (cert, key) = (put(&dir, "c.pem", &cert, 0o644), put(&dir, "k.pem", &key, 0o600));
    let mut store = Store::new(&tls(Some((&cert, &key)), None));
    let news = store.load(at(NOW)).unwrap();
    assert_eq!(news.taken[0].certificate, "mail.example.org");
    assert_eq!(news.taken[0].names, ["192.0.2.1", "mail.example.org"]);
    assert_eq!(news.taken[0].not_after, NOW + 80 * DAY);
    assert!(news.problems.is_empty() && news.refused.is_empty());
    assert!(store.look(at(NOW), false).taken.is_empty());
    let (other_cert, other_key) = pems(&["192.0.2.1", "mail.example.org"], 290);
    put(&dir, "c.pem", &other_cert, 0o644);
    let news = store.look(at(NOW), false);
    assert!(news.refused[0].contains("does not belong"), "only one of the two was replaced yet");
    assert_eq!(store.state().certificates[0].on_disk, Some(NOW + 290 * DAY));
    assert!(!store.state().all_taken);
    assert!(store.look(at(NOW), false).refused.is_empty(), "said once");
    assert_eq!(served(&store), shown(&[("mail.example.org", 80)]));
    put(&dir, "k.pem", &other_key, 0o600);
    assert_eq!(store.look(at(NOW), false).taken[0].not_after, NOW + 290 * DAY);
    assert!(store.state().all_taken);
}

#[test]
fn every_mistake_names_its_file_and_its_cure() {
    let dir = TempDir::new().unwrap();
    let (cert, key) = pems(&["mail.example.org"], 90);
    let (other, _) = pems(&["mail.example.org"], 90);
    let good_cert = put(&dir, "cert.pem", &cert, 0o644);
    let good_key = put(&dir, "key.pem", &key, 0o600);
    let cut = &cert[..cert.len() / 2];
    let table: &[(&str, &str, &str)] = &[
        ("none.pem", "", "no such file; put the certificate there"),
        ("cert.pem", &key, "holds a private key, not a certificate; are cert and key swapped?"),
        ("cert.pem", "hello\n", "is not PEM"),
        ("cert.pem", "", "is empty"),
        ("cert.pem", "0\u{2}\u{1}", "is binary (DER or PKCS #12), not PEM"),
        ("cert.pem", cut, "damaged PEM: a section has no -----END"),
        (
            "cert.pem",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "certificate 1 cannot be parsed",
        ),
        ("key.pem", &cert, "holds a certificate, not a private key; are cert and key swapped?"),
        (
            "key.pem",
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n",
            "is encrypted with a passphrase",
        ),
        (
            "key.pem",
            "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n",
            "is encrypted with a passphrase",
        ),
        (
            "key.pem",
            "-----BEGIN PRIVATE KEY-----\n!\n-----END PRIVATE KEY-----\n",
            "damaged PEM: a section is not base64",
        ),
        (
            "key.pem",
            "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
            "the private key cannot be used",
        ),
        ("cert.pem", &other, "the key does not belong to the certificate"),
        (
            "cert.pem",
            &format!("{other}{cert}"),
            "certificate 2 is the server's, but it has to be the first",
        ),
    ];
    for (file, content, expected) in table {
        let (mut cert_path, mut key_path) = (good_cert.clone(), good_key.clone());
        put(&dir, "cert.pem", &cert, 0o644);
        put(&dir, "key.pem", &key, 0o600);
        match *file {
            "none.pem" => cert_path = dir.path().join(file),
            "key.pem" => key_path = put(&dir, file, content, 0o600),
            _ => cert_path = put(&dir, file, content, 0o644),
        }
        let settings = tls(Some((&cert_path, &key_path)), None);
        let found = messages(&settings);
        assert!(found[0].starts_with("Error: ") && found[0].contains(expected), "{found:?}");
        let error = refusal(&settings);
        assert!(error.contains(expected), "{error}");
    }
    let folder = messages(&tls(Some((dir.path(), &good_key)), None));
    assert!(folder[0].contains("is a directory; name the file in it"), "{folder:?}");
    let link = dir.path().join("link.pem");
    std::os::unix::fs::symlink("../archive/none.pem", &link).unwrap();
    let found = messages(&tls(Some((&link, &good_key)), None));
    assert!(found[0].contains("is a symbolic link to ../archive/none.pem"), "{found:?}");
}

#[test]
fn both_files_are_reported_at_once() {
    let none = Path::new("/nonexistent/c.pem");
    let found = messages(&tls(Some((none, Path::new("/nonexistent/k.pem"))), None));
    assert_eq!(found.len(), 2);
}

#[test]
fn dates_names_and_permissions_are_findings_but_the_service_starts() {
    let dir = TempDir::new().unwrap();
    let (cert, key) = pems(&[], -5);
    let (cert, key) = (put(&dir, "c.pem", &cert, 0o644), put(&dir, "k.pem", &key, 0o644));
    let settings = tls(Some((&cert, &key)), None);
    let found = messages(&settings).join("\n");
    assert!(found.contains("Error: ") && found.contains("expired on 2026-11-"), "{found}");
    assert!(found.contains("Warning: ") && found.contains("subjectAltName"), "{found}");
    assert!(
        found.contains("open to everybody on this machine (mode 0644); run `chmod 600"),
        "{found}"
    );
    let mut store = Store::new(&settings);
    let news = store.load(at(NOW)).unwrap();
    assert_eq!(news.taken[0].certificate, "c");
    assert_eq!(store.state().default_not_after, NOW - 5 * DAY);
    assert!(news.problems[0].contains("expired"));
    assert!(news.notice.iter().any(|line| line.contains("chmod 600")));
    put(&dir, "k.pem", &fs::read_to_string(&key).unwrap(), 0o640);
    assert!(
        messages(&settings).iter().any(|m| m.starts_with("Warning: ") && m.contains("its group"))
    );
    let future = check_at(&settings, NOW - 20 * DAY);
    assert!(future[0].message.contains("is not valid before"), "{future:?}");
}

#[test]
fn self_made_serves_only_while_no_file_exists() {
    let dir = TempDir::new().unwrap();
    let (cert, key) = (dir.path().join("c.pem"), dir.path().join("k.pem"));
    let made = dir.path().join("made");
    let settings = tls(Some((&cert, &key)), Some(&made));
    assert!(messages(&settings)[0].contains("SELF-MADE CERTIFICATE"));
    assert!(!made.exists(), "check makes nothing");
    let mut store = Store::new(&settings);
    let news = store.load(at(NOW)).unwrap();
    assert!(news.notice.iter().any(|line| line.contains("SELF-MADE CERTIFICATE")), "{news:?}");
    assert!(news.notice.iter().any(|line| line.contains("SHA-256 fingerprint")));
    assert!(store.look(at(NOW), false).taken.is_empty());
    let (cert_pem, key_pem) = pems(&["imap.example.org"], 80);
    put(&dir, "c.pem", &cert_pem, 0o644);
    let news = store.look(at(NOW), false);
    assert!(news.taken.is_empty() && news.refused[0].contains("no such file"), "{news:?}");
    assert_eq!(served(&store)[0].0, "mail.example.org");
    assert!(refusal(&settings).contains("no such file"), "with half a pair it does not start");
    put(&dir, "k.pem", &key_pem, 0o600);
    assert_eq!(store.look(at(NOW), false).taken[0].certificate, "imap.example.org");
    assert_eq!(served(&store), shown(&[("imap.example.org", 80)]));
    // Both vanish, for a moment or for good: nobody wants the self-made one back unasked.
    fs::remove_file(&cert).unwrap();
    fs::remove_file(&key).unwrap();
    let news = store.look(at(NOW), false);
    assert!(news.taken.is_empty() && !news.refused.is_empty(), "{news:?}");
    assert_eq!(served(&store), shown(&[("imap.example.org", 80)]));
    // What is to stand in can't: the old one is better than nothing.
    fs::rename(&made, dir.path().join("away")).unwrap();
    put(&dir, "made", "", 0o600);
    let news = store.look(at(NOW), true);
    assert!(!news.refused.is_empty(), "{news:?}");
    assert_eq!(served(&store), shown(&[("imap.example.org", 80)]));
    fs::remove_file(&made).unwrap();
    assert_eq!(store.look(at(NOW), true).taken[0].certificate, "mail.example.org");
    // A directory counts as a file: empty it is none.
    let both =
        settings::Tls { certificates: in_dir(&dir.path().join("d")).certificates, ..settings };
    Store::new(&both).load(at(NOW)).unwrap();
    fs::create_dir(dir.path().join("d")).unwrap();
    assert!(messages(&both)[0].contains("d is empty, so a SELF-MADE CERTIFICATE"));
    lay(&dir.path().join("d"), "imap", &(cert_pem, key_pem));
    let mut store = Store::new(&both);
    assert_eq!(store.load(at(NOW)).unwrap().taken[0].certificate, "imap.example.org");
}

#[test]
fn nothing_worse_is_taken_unless_it_is_meant() {
    let dir = TempDir::new().unwrap();
    let names = ["mail.example.org", "imap.example.org"];
    let table: [(&str, &[&str], i64, &str); 4] = [
        ("same names, later", &names, 90, ""),
        ("a step back", &names, 70, "so this would be a step back; if it is meant, send SIGHUP"),
        ("a name less", &names[..1], 90, "it is not for imap.example.org"),
        ("expired", &names, -1, "expired on 2026-11-"),
    ];
    for (what, names, days, refused) in table {
        let good = pems(&["mail.example.org", "imap.example.org"], 80);
        lay(dir.path(), "a", &good);
        let files = (&*dir.path().join("a.crt"), &*dir.path().join("a.key"));
        let mut store = Store::new(&tls(Some(files), None));
        store.load(at(NOW)).unwrap();
        lay(dir.path(), "a", &pems(names, days));
        let news = store.look(at(NOW), false);
        if refused.is_empty() {
            assert!(news.refused.is_empty() && news.taken.len() == 1, "{what}: {news:?}");
            continue;
        }
        assert!(news.refused[0].contains(refused) && news.taken.is_empty(), "{what}: {news:?}");
        assert_eq!(store.state().certificates[0].on_disk, Some(NOW + days * DAY));
        assert!(store.look(at(NOW), false).refused.is_empty(), "{what}: said once");
        let told = store.look(at(NOW), true);
        if days < 0 {
            assert!(told.refused[0].contains("expired"), "no client accepts it: {told:?}");
            // Once the old one has expired as well, there is nothing to lose.
            lay(dir.path(), "a", &pems(names, 81));
            assert_eq!(store.look(at(NOW + 81 * DAY - 1), false).taken.len(), 1);
        } else {
            assert!(told.refused.is_empty() && told.taken.len() == 1, "{what}: {told:?}");
        }
    }
}

#[test]
fn every_pair_below_a_directory_is_found() {
    let dir = TempDir::new().unwrap();
    let at_path = |path: &str| dir.path().join(path);
    // certbot: links from live into archive, the leaf alone beside the chain.
    for (lineage, name) in [("mail.example.org", "mail.example.org"), ("b", "*.example.net")] {
        let (cert, key) = pems(&[name], 80);
        let (live, archive) = (format!("live/{lineage}"), format!("archive/{lineage}"));
        fs::create_dir_all(at_path(&live)).unwrap();
        fs::create_dir_all(at_path(&archive)).unwrap();
        let (other, _) = pems(&["issuer.example.org"], 80);
        let files = [("cert", &cert), ("chain", &other), ("fullchain", &cert), ("privkey", &key)];
        for (file, text) in files {
            put(&dir, &format!("{archive}/{file}1.pem"), text, 0o600);
            let target = format!("../../{archive}/{file}1.pem");
            symlink(target, at_path(&format!("{live}/{file}.pem"))).unwrap();
        }
    }
    put(&dir, "live/README", "-----BEGIN nothing", 0o600);
    let mut store = Store::new(&in_dir(&at_path("live")));
    store.load(at(NOW)).unwrap();
    assert_eq!(served(&store), shown(&[("*.example.net", 80), ("mail.example.org", 80)]));
    let chain = |store: &Store| store.look_up("mail.example.org").cert.len();
    assert_eq!(chain(&store), 1);

    // Kubernetes: links to what a hidden link points to.
    fs::create_dir_all(at_path("secret/..2026")).unwrap();
    let (cert, key) = pems(&["k8s.example.org"], 80);
    for (file, text) in [("tls.crt", &cert), ("tls.key", &key), ("ca.crt", &cert)] {
        put(&dir, &format!("secret/..2026/{file}"), text, 0o600);
        symlink(format!("..data/{file}"), at_path(&format!("secret/{file}"))).unwrap();
    }
    symlink("..2026", at_path("secret/..data")).unwrap();
    let mut store = Store::new(&in_dir(&at_path("secret")));
    assert!(store.load(at(NOW)).unwrap().refused.is_empty());
    assert_eq!(served(&store), shown(&[("k8s.example.org", 80)]));

    // Side by side, one file with both, a link that leads back, and things that are none.
    let flat = at_path("flat");
    fs::create_dir(&flat).unwrap();
    lay(&flat, "a", &pems(&["a.example.org"], 80));
    let (cert, key) = pems(&["both.example.org"], 80);
    put(&dir, "flat/both.pem", &format!("{key}{cert}"), 0o600);
    put(&dir, "flat/dh.pem", "-----BEGIN DH PARAMETERS-----\n", 0o600);
    put(&dir, "flat/notes.pem", "hello\n", 0o600);
    put(&dir, "flat/half.crt.tmp", "-----BEGIN CERTIFICATE-----\n", 0o600);
    symlink(".", flat.join("loop")).unwrap();
    let mut store = Store::new(&in_dir(&flat));
    let news = store.load(at(NOW)).unwrap();
    assert!(news.refused.is_empty(), "{news:?}");
    assert_eq!(served(&store), shown(&[("a.example.org", 80), ("both.example.org", 80)]));
    assert!(messages(&in_dir(&flat)).iter().all(|line| line.contains("vouches for itself")));
}

#[test]
fn a_bad_file_in_a_directory_keeps_no_other_from_serving() {
    let dir = TempDir::new().unwrap();
    lay(dir.path(), "good", &pems(&["good.example.org"], 80));
    let (lonely, other) = (pems(&["lonely.example.org"], 80), pems(&["lonely.example.org"], 80));
    lay(dir.path(), "lonely", &(lonely.0.clone(), other.1));
    put(&dir, "cut.crt", &lonely.0[..100], 0o600);
    put(&dir, "empty.pem", "", 0o600);
    let settings = in_dir(dir.path());
    let mut store = Store::new(&settings);
    let news = store.load(at(NOW)).unwrap();
    assert_eq!(served(&store), shown(&[("good.example.org", 80)]));
    let refused = news.refused.join("\n");
    for expected in [
        "lonely.crt: no private key beside it belongs to this certificate",
        "cut.crt: damaged PEM",
        "empty.pem: is empty",
    ] {
        assert!(refused.contains(expected), "{expected}: {refused}");
        assert!(messages(&settings).iter().any(|m| m.contains(expected)), "{expected} in check");
    }
    assert!(!store.state().all_taken);
    lay(dir.path(), "lonely", &lonely);
    fs::remove_file(dir.path().join("cut.crt")).unwrap();
    fs::remove_file(dir.path().join("empty.pem")).unwrap();
    assert_eq!(store.look(at(NOW), false).taken[0].certificate, "lonely.example.org");
    assert!(store.state().all_taken);

    let none = TempDir::new().unwrap();
    let missing = none.path().join("none");
    assert!(refusal(&in_dir(none.path())).contains("holds no certificate with its key"));
    assert!(refusal(&in_dir(&missing)).contains("no such directory"));
    assert!(messages(&in_dir(&missing))[0].contains("no such directory"));
    let file = put(&none, "a.pem", "", 0o600);
    assert!(refusal(&in_dir(&file)).contains("is a file; name the directory"));
}

#[test]
fn what_has_gone_from_a_directory_is_served_until_it_is_not_missed() {
    let dir = TempDir::new().unwrap();
    for (file, name, days) in
        [("a", "a.example", 80), ("b", "b.example", 40), ("c", "c.example", 80)]
    {
        lay(dir.path(), file, &pems(&[name], days));
    }
    let mut store = Store::new(&in_dir(dir.path()));
    store.load(at(NOW)).unwrap();
    let gone = |file: &str| {
        fs::remove_file(dir.path().join(format!("{file}.crt"))).unwrap();
        fs::remove_file(dir.path().join(format!("{file}.key"))).unwrap();
    };
    let all = shown(&[("a.example", 80), ("b.example", 40), ("c.example", 80)]);
    ["a", "b", "c"].iter().for_each(|file| gone(file));
    let news = store.look(at(NOW), false);
    assert!(news.refused.iter().any(|line| line.contains("a.crt: is gone")), "{news:?}");
    assert_eq!(served(&store), all);
    store.look(at(NOW), true);
    assert_eq!(served(&store), all, "an empty directory is no wish");
    // The name is renewed under another file name: nobody misses the old one.
    lay(dir.path(), "a2", &pems(&["a.example"], 90));
    store.look(at(NOW), false);
    let after = shown(&[("a.example", 90), ("b.example", 40), ("c.example", 80)]);
    assert_eq!(served(&store), after);
    store.look(at(NOW + 41 * DAY), false);
    assert_eq!(served(&store), shown(&[("a.example", 90), ("c.example", 80)]), "b has expired");
    store.look(at(NOW), true);
    assert_eq!(served(&store), shown(&[("a.example", 90)]), "told so");
    assert!(store.state().all_taken);
}

#[test]
fn certificates_of_one_name_have_labels_of_their_own() {
    let dir = TempDir::new().unwrap();
    lay(dir.path(), "1", &pems(&["a.example"], 80));
    lay(dir.path(), "2", &pems_of(&["a.example"], 80, &rcgen::PKCS_ED25519));
    lay(dir.path(), "3", &pems(&["a.example"], 70));
    let mut store = Store::new(&in_dir(dir.path()));
    store.load(at(NOW)).unwrap();
    let labels = [("a.example", 80), ("a.example/ed25519", 80), ("a.example/ecdsa", 70)];
    assert_eq!(served(&store), shown(&labels));
}

#[test]
fn names_are_found_exactly_or_by_one_whole_label() {
    let dir = TempDir::new().unwrap();
    let pairs: [(&str, &[&str], i64); 5] = [
        ("1", &["default.example.org", "192.0.2.1"], 80),
        ("2", &["*.example.org", "example.org"], 80),
        ("3", &["Mail.Example.ORG"], 80),
        ("4", &["*.sub.example.org"], 80),
        ("5", &["mail.example.org"], -1),
    ];
    let mut certificates = Vec::new();
    for (file, names, days) in pairs {
        lay(dir.path(), file, &pems(names, days));
        let path = |ending: &str| dir.path().join(format!("{file}.{ending}"));
        certificates.push(pair(&path("crt"), &path("key")));
    }
    let settings =
        settings::Tls { unknown_name: UnknownName::Refuse, ..settings::Tls::with(certificates) };
    let mut store = Store::new(&settings);
    store.load(at(NOW)).unwrap();
    let leaf = |file: &str| certificate::read_chain(&dir.path().join(file)).unwrap().remove(0);
    use names::Match;
    let table = [
        (None, Match::None, true, "1.crt"),
        (Some("default.example.org"), Match::Exact, true, "1.crt"),
        (Some("DEFAULT.example.org."), Match::Exact, true, "1.crt"),
        (Some("mail.example.org"), Match::Exact, true, "3.crt"), // the fifth has expired
        (Some("other.example.org"), Match::Wildcard, true, "2.crt"),
        (Some("example.org"), Match::Exact, true, "2.crt"),
        (Some("a.b.example.org"), Match::Unknown, false, "1.crt"),
        (Some("a.sub.example.org"), Match::Wildcard, true, "4.crt"),
        (Some("sub.example.org"), Match::Wildcard, true, "2.crt"),
        (Some("*.example.org"), Match::Wildcard, true, "2.crt"),
        (Some("org"), Match::Unknown, false, "1.crt"),
        (Some(".example.org"), Match::Wildcard, true, "2.crt"),
        (Some("192.0.2.1"), Match::Unknown, false, "1.crt"),
        (Some(""), Match::Unknown, false, "1.crt"),
    ];
    for (name, found, admitted, file) in table {
        assert_eq!(store.names().admit(name), (found, admitted), "{name:?}");
        if found != Match::Unknown {
            let served = name.map_or_else(|| store.look_up_default(), |name| store.look_up(name));
            assert_eq!(served.cert[0], leaf(file), "{name:?}");
        }
    }
}

impl Store {
    fn look_up(&self, name: &str) -> Arc<CertifiedKey> {
        self.names().first(Some(name))
    }

    fn look_up_default(&self) -> Arc<CertifiedKey> {
        self.names().first(None)
    }
}

#[derive(Debug)]
struct TrustsAll;

impl ServerCertVerifier for TrustsAll {
    fn verify_server_cert(
        &self,
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &[rustls_pki_types::CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

fn client(
    alpn: &[&str],
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> Arc<ClientConfig> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TrustsAll))
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    Arc::new(config)
}

/// Bytes to and fro until both are content, or what the server says against it.
fn handshake(
    server: &Arc<ServerConfig>,
    client: &Arc<ClientConfig>,
) -> Result<(ServerConnection, ClientConnection), rustls::Error> {
    let name = ServerName::try_from("mail.example.org").unwrap();
    let mut client = ClientConnection::new(Arc::clone(client), name).unwrap();
    let mut server = ServerConnection::new(Arc::clone(server)).unwrap();
    while client.wants_write() || server.wants_write() {
        let mut wire = Vec::new();
        client.write_tls(&mut wire).unwrap();
        server.read_tls(&mut io::Cursor::new(&wire)).unwrap();
        server.process_new_packets()?;
        wire.clear();
        server.write_tls(&mut wire).unwrap();
        client.read_tls(&mut io::Cursor::new(&wire)).unwrap();
        client.process_new_packets()?;
    }
    Ok((server, client))
}

#[test]
fn alpn_takes_imap_or_no_list_and_refuses_a_foreign_one() {
    let dir = TempDir::new().unwrap();
    let config = config(&tls(None, Some(dir.path())));
    let all = rustls::ALL_VERSIONS;
    let (server, _) = handshake(&config, &client(&[], all)).unwrap();
    assert_eq!(server.alpn_protocol(), None);
    let (server, _) = handshake(&config, &client(&["http/1.1", "imap"], all)).unwrap();
    assert_eq!(server.alpn_protocol(), Some(&b"imap"[..]));
    let refused = handshake(&config, &client(&["http/1.1"], all)).unwrap_err();
    assert_eq!(refused, rustls::Error::NoApplicationProtocol);
}

fn config(settings: &settings::Tls) -> Arc<ServerConfig> {
    let mut store = Store::new(settings);
    store.load(at(NOW)).unwrap();
    Configured::new(settings, store.names(), at(NOW)).unwrap().1
}

#[test]
fn versions_group_and_tickets_are_as_promised() {
    let dir = TempDir::new().unwrap();
    let mut settings = tls(None, Some(dir.path()));
    let mut store = Store::new(&settings);
    store.load(at(NOW)).unwrap();
    let (_, config, _) = Configured::new(&settings, store.names(), at(NOW)).unwrap();
    for (version, named) in [
        (&rustls::version::TLS13, ProtocolVersion::TLSv1_3),
        (&rustls::version::TLS12, ProtocolVersion::TLSv1_2),
    ] {
        let client = client(&["imap"], &[version]);
        let (server, _) = handshake(&config, &client).unwrap();
        assert_eq!(server.protocol_version(), Some(named));
        if named == ProtocolVersion::TLSv1_3 {
            let group = server.negotiated_key_exchange_group().unwrap().name();
            assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
        }
        store.look(at(NOW), true);
        let (server, _) = handshake(&config, &client).unwrap();
        assert_eq!(server.handshake_kind(), Some(HandshakeKind::Resumed), "across a reload");
    }
    settings.min_version = MinVersion::Tls13;
    let strict = self::config(&settings);
    assert!(handshake(&strict, &client(&[], &[&rustls::version::TLS12])).is_err());
    assert_eq!(strict.max_early_data_size, 0);
}

fn named(wanted: &str) -> rustls::SupportedCipherSuite {
    policy::suites().into_iter().find(|(name, _)| *name == wanted).expect(wanted).1
}

#[test]
fn suites_that_go_with_no_certificate_are_a_warning() {
    let dir = TempDir::new().unwrap();
    lay(dir.path(), "a", &pems(&["a.example"], 80));
    let tls13 = named("TLS_AES_128_GCM_SHA256");
    let with = |suite: &str, min_version| settings::Tls {
        cipher_suites: vec![tls13, named(suite)],
        min_version,
        ..in_dir(dir.path())
    };
    let warned = |settings: &settings::Tls| {
        messages(settings).iter().any(|m| m.starts_with("Warning: no cipher suite for TLS 1.2"))
    };
    let (ecdsa, rsa) =
        ("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256");
    assert!(warned(&with(rsa, MinVersion::Tls12)));
    assert!(!warned(&with(ecdsa, MinVersion::Tls12)));
    assert!(!warned(&with(rsa, MinVersion::Tls13)));
}

#[test]
fn suites_and_groups_are_spoken_as_configured() {
    let dir = TempDir::new().unwrap();
    let suites =
        [named("TLS_CHACHA20_POLY1305_SHA256"), named("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256")];
    let group = policy::groups().into_iter().find(|(name, _)| *name == "secp384r1").unwrap().1;
    let settings = settings::Tls {
        cipher_suites: suites.to_vec(),
        groups: vec![group],
        ..tls(None, Some(dir.path()))
    };
    let config = config(&settings);
    for (version, suite) in
        [(&rustls::version::TLS13, suites[0]), (&rustls::version::TLS12, suites[1])]
    {
        let (server, _) = handshake(&config, &client(&[], &[version])).unwrap();
        assert_eq!(server.negotiated_cipher_suite(), Some(suite));
        let group = server.negotiated_key_exchange_group().unwrap().name();
        assert_eq!(group, rustls::NamedGroup::secp384r1);
    }
}
