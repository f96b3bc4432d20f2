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
    let files = |name: &str| {
        let path = |ending: &str| dir.path().join(format!("{name}.{ending}"));
        pair(&path("crt"), &path("key"))
    };
    let mut store = Store::new(&settings::Tls::with(["1", "2", "3"].map(files).into()));
    store.load(at(NOW)).unwrap();
    let labels = [("a.example", 80), ("a.example/ed25519", 80), ("a.example/ecdsa", 70)];
    assert_eq!(served(&store), shown(&labels));
}

/// The leaf that clients get for a name, by the days that it lasts from `NOW` on.
fn days_of(store: &Store, name: &str) -> i64 {
    let leaf = store.look_up(name).cert[0].clone();
    (facts::Facts::of(&leaf).unwrap().not_after - NOW) / DAY
}

#[test]
fn of_two_certificates_of_one_name_the_one_that_lasts_longest_serves() {
    let name = &["mail.example.org"];
    let (expired, old, new) = (pems(name, -2), pems(name, 20), pems(name, 80));
    let rsa = |days| pems_of(name, days, &rcgen::PKCS_RSA_SHA256);
    let short = pems(&["imap.example.org"], 90);
    let wide = pems(&["mail.example.org", "imap.example.org"], 70);
    let (rsa_new, ecdsa_last) = (rsa(90), pems(name, 0));
    // What lies in the directory, how long what serves lasts, and how many are served.
    type Files<'a> = &'a [(&'a str, &'a (String, String))];
    let table: [(Files<'_>, i64, usize); 9] = [
        (&[("a", &expired), ("b", &new)], 80, 1),
        (&[("a", &new), ("b", &old)], 80, 1),
        (&[("2025", &old), ("2026", &new)], 80, 1),
        (&[("1", &expired), ("2", &old), ("3", &new)], 80, 1),
        (&[("1", &expired)], -2, 1),
        // Beside an older one with more names it serves those that it has.
        (&[("1", &wide), ("2", &new)], 80, 2),
        (&[("1", &old), ("2", &wide)], 70, 1),
        (&[("1", &short), ("2", &old)], 20, 2),
        // Of two kinds of key both, and the smaller one first while it has a day left.
        (&[("1", &old), ("2", &rsa_new)], 20, 2),
    ];
    for (files, days, count) in table {
        let dir = TempDir::new().unwrap();
        files.iter().for_each(|(file, pems)| lay(dir.path(), file, pems));
        let mut store = Store::new(&in_dir(dir.path()));
        store.load(at(NOW)).unwrap();
        assert_eq!(days_of(&store, "mail.example.org"), days, "{files:?}");
        assert_eq!(store.state().certificates.len(), count, "{files:?}");
        // The same of pairs that are named, all of which count.
        let named = |(file, _): &(&str, &(String, String))| {
            let path = |ending: &str| dir.path().join(format!("{file}.{ending}"));
            pair(&path("crt"), &path("key"))
        };
        let mut store = Store::new(&settings::Tls::with(files.iter().map(named).collect()));
        store.load(at(NOW)).unwrap();
        assert_eq!(days_of(&store, "mail.example.org"), days, "{files:?}, named");
    }
    let dir = TempDir::new().unwrap();
    lay(dir.path(), "1", &ecdsa_last);
    lay(dir.path(), "2", &rsa_new);
    let mut store = Store::new(&in_dir(dir.path()));
    store.load(at(NOW - 2 * DAY)).unwrap();
    assert_eq!(days_of(&store, "mail.example.org"), 0);
    store.look(at(NOW - DAY + 1), false);
    assert_eq!(days_of(&store, "mail.example.org"), 90, "the other kind on the last day");
}

#[test]
fn a_renewed_certificate_that_is_put_beside_the_old_one_takes_its_place() {
    let dir = TempDir::new().unwrap();
    let name = &["mail.example.org"];
    lay(dir.path(), "2025", &pems(name, 20));
    let settings = in_dir(dir.path());
    let mut store = Store::new(&settings);
    store.load(at(NOW)).unwrap();
    lay(dir.path(), "2026", &pems(name, 80));
    let news = store.look(at(NOW), false);
    assert_eq!(served(&store), shown(&[("mail.example.org", 80)]));
    let said = |news: &News, text: &str| news.notice.iter().any(|line| line.contains(text));
    assert!(
        said(&news, "2026.crt: takes the place of ") && said(&news, "2025.crt: has been replaced")
    );
    assert!(news.refused.is_empty() && store.state().all_taken, "{news:?}");
    assert!(messages(&settings).iter().any(|line| line.contains("2026.crt: takes the place of")));
    // One that lasts longer and would be worse waits for the end of the better one.
    let (cert, key) = pems(name, 90);
    let unread = cert.clone() + &cert[..200];
    lay(dir.path(), "2027", &(unread, key));
    let news = store.look(at(NOW), true);
    assert_eq!(served(&store), shown(&[("mail.example.org", 80)]));
    let why = &news.refused[0];
    assert!(why.contains("2027.crt: a section has no -----END"), "{why}");
    assert!(why.contains("2026.crt beside it is served until its end"), "{why}");
    store.look(at(NOW + 80 * DAY - 60), false);
    assert_eq!(served(&store), shown(&[("mail.example.org", 90)]));
}

/// What was left in a directory by a name that is given up is no reason to be found unwell.
#[test]
fn the_default_of_a_directory_is_the_first_that_is_valid() {
    let dir = TempDir::new().unwrap();
    lay(dir.path(), "a", &pems(&["a.example"], 10));
    lay(dir.path(), "b", &pems(&["b.example"], 80));
    let mut store = Store::new(&in_dir(dir.path()));
    store.load(at(NOW)).unwrap();
    let default = |store: &Store| {
        let leaf = facts::Facts::of(&store.look_up_default().cert[0]).unwrap();
        let lives = store.state().default_lives;
        assert_eq!((lives.len(), lives[0].not_after), (1, leaf.not_after));
        leaf.first_dns().unwrap().to_owned()
    };
    assert_eq!(default(&store), "a.example");
    store.look(at(NOW + 11 * DAY), false);
    assert_eq!(default(&store), "b.example");
    assert_eq!(served(&store), shown(&[("b.example", 80), ("a.example", 10)]));
    store.look(at(NOW + 81 * DAY), false);
    assert_eq!(default(&store), "a.example", "none is valid");
}

#[test]
fn certbots_archive_is_told_from_what_is_current() {
    let dir = TempDir::new().unwrap();
    let at_path = |path: &str| dir.path().join(path);
    fs::create_dir_all(at_path("live/a")).unwrap();
    fs::create_dir_all(at_path("archive/a")).unwrap();
    for (number, days) in [(1, -20), (2, 30), (3, 80)] {
        let (cert, key) = pems(&["mail.example.org"], days);
        for (kind, text) in [("cert", &cert), ("fullchain", &cert), ("privkey", &key)] {
            put(&dir, &format!("archive/a/{kind}{number}.pem"), text, 0o600);
        }
    }
    for kind in ["cert", "fullchain", "privkey"] {
        let target = format!("../../archive/a/{kind}3.pem");
        symlink(target, at_path(&format!("live/a/{kind}.pem"))).unwrap();
    }
    for (folder, said) in [
        (
            "",
            Some(
                "archive: is certbot's archive of old certificates and left out; the current ones are in ",
            ),
        ),
        ("live", None),
        ("live/a", None),
        ("archive", Some("fullchain3.pem: lies in certbot's archive")),
        ("archive/a", Some("fullchain3.pem: lies in certbot's archive")),
    ] {
        let settings = in_dir(&at_path(folder));
        let mut store = Store::new(&settings);
        let news = store.load(at(NOW)).unwrap();
        assert_eq!(served(&store), shown(&[("mail.example.org", 80)]), "{folder}");
        assert!(news.refused.is_empty() && news.problems.is_empty(), "{folder}: {news:?}");
        let found = messages(&settings);
        for lines in [&news.notice, &found] {
            let is_said = |line: &&String| said.is_some_and(|said| line.contains(said));
            assert_eq!(
                lines.iter().filter(is_said).count(),
                usize::from(said.is_some()),
                "{lines:?}"
            );
        }
        assert!(found.iter().all(|line| line.starts_with("Warning: ")), "{folder}: {found:?}");
    }
}

#[test]
fn an_end_is_told_before_it_comes_and_when_it_does() {
    let dir = TempDir::new().unwrap();
    lay(dir.path(), "a", &pems(&["a.example"], 400));
    let mut store = Store::new(&in_dir(dir.path()));
    store.load(at(NOW)).unwrap();
    let end = NOW + 400 * DAY;
    for (now, problem, notice, relief) in [
        (end - 31 * DAY, "", "", ""),
        (end - 29 * DAY, "", "a.crt: the certificate expires in 29 days", ""),
        (end - 28 * DAY, "", "", ""),
        (end - 2 * DAY, "", "the certificate expires in 2 days", ""),
        (end, "", "the certificate expires in 0 seconds", ""),
        (end + 1, "a.crt: the certificate expired on", "", ""),
        (end + 2, "", "", ""),
        (end - 9000, "", "", "a.crt: the certificate is valid now, until"),
        (NOW - 20 * DAY, "the certificate is not valid before", "", ""),
        (NOW, "", "", "the certificate is valid now"),
    ] {
        let news = store.look(at(now), false);
        for (lines, expected) in
            [(&news.problems, problem), (&news.notice, notice), (&news.relief, relief)]
        {
            assert_eq!(lines.len(), usize::from(!expected.is_empty()), "{now}: {news:?}");
            assert!(lines.iter().all(|line| line.contains(expected)), "{now}: {news:?}");
        }
        let next = store.next_moment(at(now));
        assert!(next.is_none_or(|next| next > now));
    }
    // So at once, and of what has a short life later.
    lay(dir.path(), "a", &pems(&["a.example"], 4));
    let mut store = Store::new(&in_dir(dir.path()));
    let news = store.load(at(NOW)).unwrap();
    assert_eq!(
        news.notice.iter().filter(|line| line.contains("expires in")).count(),
        1,
        "{news:?}"
    );
    assert!(store.look(at(NOW + DAY), false).notice.is_empty());
    lay(dir.path(), "a", &pems(&["a.example"], 5));
    let mut store = Store::new(&in_dir(dir.path()));
    let is_told = |news: News| news.notice.iter().any(|line| line.contains("expires in"));
    assert!(!is_told(store.load(at(NOW)).unwrap()) && is_told(store.look(at(NOW + DAY), false)));
    let mut store = Store::new(&in_dir(dir.path()));
    let news = store.load(at(NOW - 20 * DAY)).unwrap();
    assert!(
        news.problems.len() == 1 && news.problems[0].contains("is not valid before"),
        "{news:?}"
    );
}

#[test]
fn check_says_of_an_end_what_the_log_says() {
    let dir = TempDir::new().unwrap();
    lay(dir.path(), "a", &pems(&["a.example"], 400));
    let settings = in_dir(dir.path());
    let said = |now| {
        let found = check_at(&settings, now).into_iter().map(|finding| finding.message);
        found.filter(|text| text.contains("expire")).collect::<Vec<_>>()
    };
    let end = NOW + 400 * DAY;
    assert_eq!(said(end - 31 * DAY), [""; 0]);
    let soon = said(end - 29 * DAY);
    assert!(soon.len() == 1 && soon[0].contains("expires in 29 days, on "), "{soon:?}");
    let over = said(end + 10);
    assert!(over.len() == 1 && over[0].contains("(10 seconds ago)"), "{over:?}");
    // One of six days is not about to end for the whole of its life.
    lay(dir.path(), "a", &pems(&["a.example"], 6));
    assert_eq!(said(NOW), [""; 0]);
}

/// Whoever signs by a CA of his own may outlive it.
#[test]
fn an_issuer_that_ends_before_the_certificate_is_told_of() {
    let dir = TempDir::new().unwrap();
    let day = |unix: i64| {
        rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(u64::try_from(unix).unwrap())
    };
    let params = |names: &[&str], days: i64| {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        (params.not_before, params.not_after) = (day(NOW - 300 * DAY), day(NOW + days * DAY));
        params
    };
    let (ca_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let issuer = |days| {
        let mut ca = params(&[], days);
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        ca.distinguished_name.push(rcgen::DnType::CommonName, "Ours");
        ca
    };
    let pem = |days| issuer(days).self_signed(&ca_key).unwrap().pem();
    let short = pem(40);
    let long = pem(900);
    let leaf = params(&["a.example"], 400)
        .signed_by(&key, &rcgen::Issuer::new(issuer(40), &ca_key))
        .unwrap()
        .pem();
    let lay = |issuers: &str| {
        super::lay(dir.path(), "a", &(format!("{leaf}{issuers}"), key.serialize_pem()));
    };
    lay(&short);
    let settings = in_dir(dir.path());
    let mut store = Store::new(&settings);
    assert_eq!(store.load(at(NOW)).unwrap().notice, [""; 0]);
    let end = NOW + 40 * DAY;
    assert_eq!(store.next_moment(at(NOW)), Some(end - 30 * DAY + 1));
    for (now, said) in [
        (end - 29 * DAY, "a.crt: the issuer of the certificate (CN=Ours) expires in 29 days"),
        (end - 28 * DAY, ""),
        (end - DAY - 5, "(CN=Ours) expires in 24 hours"),
        (end + 1, "a.crt: the issuer of the certificate (CN=Ours) expired on"),
        (end + 2, ""),
    ] {
        let notice = store.look(at(now), false).notice;
        assert_eq!(notice.len(), usize::from(!said.is_empty()), "{now}: {notice:?}");
        assert!(notice.iter().all(|line| line.contains(said)), "{now}: {notice:?}");
    }
    let said = |now| {
        let found = check_at(&settings, now).into_iter().map(|finding| finding.message);
        found.filter(|text| text.contains("CN=Ours")).collect::<Vec<_>>()
    };
    assert!(said(end - 29 * DAY)[0].contains("the issuer of the certificate (CN=Ours) expires in"));
    // At a start behind its end it is said once, as what is wrong with the file.
    let notice = Store::new(&settings).load(at(end + 1)).unwrap().notice;
    assert_eq!(notice.iter().filter(|line| line.contains("CN=Ours")).count(), 1, "{notice:?}");
    // Another certificate of the same issuer lasts longer.
    lay(&format!("{short}{long}"));
    assert_eq!(said(end - 29 * DAY), [""; 0]);
}
