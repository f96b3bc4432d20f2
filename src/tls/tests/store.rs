//! Directories, and what may take whose place.

use super::*;

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
