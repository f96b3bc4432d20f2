//! Pairs of files: what loads, what is said of it, and when a self-made certificate stands in.

use super::*;

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
        ("cert.pem", cut, "damaged PEM: a section has no -----END …----- line (line 1)"),
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
            "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n-----END RSA PRIVATE KEY-----\n",
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

/// What is served is the certificate of the key, wherever in its file it stands and in whatever form; what else is in the file is
/// named.
#[test]
fn files_that_were_put_together_by_hand_are_read() {
    let dir = TempDir::new().unwrap();
    let (cert, key) = pems(&["mail.example.org"], 90);
    let (other, other_key) = pems(&["other.example.org"], 90);
    let glued = |texts: &[&String]| texts.iter().map(|text| text.trim_end()).collect::<String>();
    let pkcs7 = "-----BEGIN PKCS7-----\nAAAA\n-----END PKCS7-----\n";
    let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let dashes = other.replacen("-----BEGIN", "---BEGIN", 1);
    let table: [(&str, String, String, usize, &[&str]); 16] = [
        ("as it should be", cert.clone(), key.clone(), 1, &[]),
        ("glued", glued(&[&cert, &other]), key.clone(), 2, &["issued none of the others"]),
        ("all in one", glued(&[&cert, &key]), glued(&[&cert, &key]), 1, &[]),
        ("all in one, key first", glued(&[&key, &cert]), glued(&[&key, &cert]), 1, &[]),
        (
            "the server's behind",
            format!("{other}{cert}"),
            key.clone(),
            2,
            &[
                "in order: 2",
                "certificate 1 of the file (CN=rcgen self signed cert) issued none of the others",
            ],
        ),
        ("two keys", cert.clone(), format!("{other_key}{key}"), 1, &[]),
        ("indented", cert.replace('\n', "\n    "), key.replace('\n', "\n  "), 1, &[]),
        ("on one line", cert.replace('\n', " "), key.replace('\n', " "), 1, &[]),
        ("an old label", cert.replace("CERT", "X509 CERT"), key.clone(), 1, &[]),
        (
            "a kind that is not read",
            cert.clone() + pkcs7,
            key.clone(),
            1,
            &["a section of the kind PKCS7 (line 11) is not read"],
        ),
        (
            "parameters",
            cert.clone() + &pkcs7.replace("PKCS7", "DH PARAMETERS"),
            key.clone(),
            1,
            &[],
        ),
        (
            "no certificate behind it",
            cert.clone() + garbage,
            key.clone(),
            1,
            &["certificate 2 cannot be parsed"],
        ),
        (
            "no certificate in front of it",
            garbage.to_owned() + &cert,
            key.clone(),
            1,
            &["certificate 1 cannot be parsed"],
        ),
        (
            "cut off behind it",
            cert.clone() + &other[..200],
            key.clone(),
            1,
            &["a section has no -----END …----- line (line 11): it is left out"],
        ),
        (
            "too few dashes",
            cert.clone() + &dashes,
            key.clone(),
            1,
            &["five dashes on either side (line 11): it is left out"],
        ),
        (
            "a line lost",
            cert.clone() + other.split_once('\n').unwrap().1,
            key.clone(),
            1,
            &["a section ends that has no -----BEGIN …----- line (line 19)"],
        ),
    ];
    assert_eq!(
        cert.replace("\r\n", "\n").matches('\n').count(),
        10,
        "the lines above are counted so"
    );
    for (what, cert, key, sent, said) in table {
        let cert = put(&dir, "cert.pem", &cert, 0o644);
        let key = put(&dir, "key.pem", &key, 0o600);
        let settings = tls(Some((&cert, &key)), None);
        let mut store = Store::new(&settings);
        let news = store.load(at(NOW)).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(
            (&*news.taken[0].certificate, news.taken[0].sent),
            ("mail.example.org", sent),
            "{what}"
        );
        let found = messages(&settings);
        assert!(found.iter().all(|line| line.starts_with("Warning: ")), "{what}: {found:?}");
        let ours = |line: &&String| !line.contains("vouches for itself");
        assert_eq!(found.iter().filter(ours).count(), said.len(), "{what}: {found:?}");
        for text in said {
            assert!(found.iter().any(|line| line.contains(text)), "{what}: {found:?}");
            assert!(news.notice.iter().any(|line| line.contains(text)), "{what}: {news:?}");
        }
        let held = held(&settings);
        assert!(held[0].contains("cert.pem: ") && held[1].contains("key.pem: "), "{held:?}");
    }
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
    let lives = store.state().default_lives;
    assert_eq!((lives.len(), lives[0].not_after), (1, NOW - 5 * DAY));
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
