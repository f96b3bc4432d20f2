use super::*;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::thread;
use tempfile::TempDir;

const NOW: i64 = 1_795_500_000;

fn names() -> Vec<String> {
    vec!["Mail.Example.org".into(), "192.0.2.7".into(), "::1".into(), "*.example.org".into()]
}

fn snapshot(dir: &Path) -> Vec<Option<String>> {
    FILES.iter().map(|file| fs::read_to_string(dir.join(file)).ok()).collect()
}

fn error(result: Result<Made, Error>) -> String {
    result.err().expect("a failure").to_string()
}

#[test]
fn four_files_with_tight_modes_are_made_once_and_found_again() {
    let parent = TempDir::new().unwrap();
    let dir = parent.path().join("new/tls");
    let made = in_dir(&names(), &dir, NOW, &mut None).unwrap();
    assert_eq!(made.news.len(), 2);
    assert!(made.news[0].contains(&made.ca.fingerprint));
    for (file, mode) in [("", 0o700), ("ca.key", 0o600), ("privkey.pem", 0o600)] {
        assert_eq!(fs::metadata(dir.join(file)).unwrap().mode() & 0o777, mode, "{file}");
    }
    let leaf = &made.pair.chain[0];
    assert_eq!(leaf.names.len(), 4);
    assert!(leaf.not_before < NOW && leaf.not_after - leaf.not_before <= 398 * DAY);
    let before = snapshot(&dir);
    let again = in_dir(&names(), &dir, NOW + 100 * DAY, &mut None).unwrap();
    assert!(again.news.is_empty(), "{:?}", again.news);
    assert_eq!(snapshot(&dir), before);
    assert!(inspect(&names(), &dir, NOW).unwrap());
}

#[test]
fn the_leaf_is_renewed_in_its_last_third_and_the_ca_stays() {
    let dir = TempDir::new().unwrap();
    let first = in_dir(&names(), dir.path(), NOW, &mut None).unwrap();
    let before = snapshot(dir.path());
    let third = first.renew_at + 1;
    assert!(third < first.pair.chain[0].not_after - 100 * DAY);
    let second = in_dir(&names(), dir.path(), third, &mut None).unwrap();
    assert!(second.news[0].contains("due for renewal"), "{:?}", second.news);
    let after = snapshot(dir.path());
    assert_eq!(before[..3], after[..3], "CA and keys stay");
    assert_ne!(before[3], after[3]);
    assert_ne!(first.pair.chain[0].serial, second.pair.chain[0].serial);
    assert!(second.renew_at > third);
    let other = vec!["imap.example.net".to_owned()];
    let renamed = in_dir(&other, dir.path(), third, &mut None).unwrap();
    assert!(renamed.news[0].contains("the names have changed"));
    assert_eq!(renamed.ca.fingerprint, first.ca.fingerprint);
}

#[test]
fn the_ca_is_renewed_before_a_leaf_could_outlive_it() {
    let dir = TempDir::new().unwrap();
    let first = in_dir(&names(), dir.path(), NOW, &mut None).unwrap();
    let late = first.ca.not_after - 300 * DAY;
    let made = in_dir(&names(), dir.path(), late, &mut None).unwrap();
    assert!(made.news[0].contains("renewed a certificate authority"), "{:?}", made.news);
    assert!(made.ca.not_after > made.pair.chain[0].not_after);
    assert_eq!(made.pair.chain.len(), 2);
    assert_eq!(made.pair.chain[1].fingerprint, made.ca.fingerprint);
    assert!(in_dir(&names(), dir.path(), late, &mut None).unwrap().news.is_empty());
}

#[test]
fn whatever_an_interruption_leaves_is_completed() {
    for kept in 0..FILES.len() {
        let dir = TempDir::new().unwrap();
        in_dir(&names(), dir.path(), NOW, &mut None).unwrap();
        for file in &FILES[kept..] {
            fs::remove_file(dir.path().join(file)).unwrap();
        }
        fs::write(dir.path().join(".fullchain.pem.new"), "half").unwrap();
        in_dir(&names(), dir.path(), NOW, &mut None).unwrap();
        assert!(in_dir(&names(), dir.path(), NOW, &mut None).unwrap().news.is_empty());
    }
}

#[test]
fn what_is_damaged_or_foreign_is_named_and_left_alone() {
    let dir = TempDir::new().unwrap();
    let foreign = TempDir::new().unwrap();
    in_dir(&names(), dir.path(), NOW, &mut None).unwrap();
    in_dir(&names(), foreign.path(), NOW, &mut None).unwrap();
    let good = snapshot(dir.path());
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["mail.example.org".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, "somebody else");
    let stranger = params.self_signed(&key).unwrap().pem();
    let table = [
        ("ca.key", "garbage".to_owned(), "is not PEM"),
        ("ca.pem", "garbage".to_owned(), "is not PEM"),
        ("privkey.pem", "garbage".to_owned(), "is not PEM"),
        ("fullchain.pem", String::new(), "is empty"),
        ("fullchain.pem", stranger.clone(), "was not made by imaps-proxy"),
        ("ca.pem", stranger, "is not the certificate of a CA"),
        ("ca.key", snapshot(foreign.path())[0].clone().unwrap(), "does not belong to ca.pem"),
    ];
    for (file, content, expected) in table {
        fs::write(dir.path().join(file), &content).unwrap();
        let text = error(in_dir(&names(), dir.path(), NOW, &mut None));
        assert!(text.contains(file) && text.contains(expected), "{text}");
        assert!(inspect(&names(), dir.path(), NOW).is_err());
        assert_eq!(fs::read_to_string(dir.path().join(file)).unwrap(), content);
        for (file, text) in FILES.iter().zip(&good) {
            fs::write(dir.path().join(file), text.as_ref().unwrap()).unwrap();
        }
    }
    fs::remove_file(dir.path().join("ca.key")).unwrap();
    assert!(in_dir(&names(), dir.path(), NOW, &mut None).unwrap().news.is_empty());
    let text = error(in_dir(&["other.example".to_owned()], dir.path(), NOW, &mut None));
    assert!(text.contains("ca.key: is missing"), "{text}");
}

#[test]
fn a_forged_signature_does_not_serve() {
    let (dir, foreign) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    in_dir(&names(), dir.path(), NOW, &mut None).unwrap();
    in_dir(&names(), foreign.path(), NOW, &mut None).unwrap();
    // The same CA name, another CA's key.
    let kept = read(dir.path()).unwrap();
    let ca = kept.ca.as_ref().unwrap();
    let wrong = read(foreign.path()).unwrap().ca_key.unwrap();
    let issuer = Issuer::from_ca_cert_der(ca, wrong).unwrap();
    let params = leaf_params(&parse_names(&names()).unwrap(), NOW).unwrap();
    let leaf = params.signed_by(kept.key.as_ref().unwrap(), &issuer).unwrap();
    fs::write(dir.path().join("fullchain.pem"), leaf.pem()).unwrap();
    let text = error(in_dir(&names(), dir.path(), NOW, &mut None));
    assert!(text.contains("does not verify against ca.pem"), "{text}");
}

#[test]
fn many_first_starts_at_once_end_with_one_matching_set() {
    let parent = TempDir::new().unwrap();
    let dir = parent.path().join("tls");
    let starts: Vec<_> = (0..8)
        .map(|_| {
            let dir = dir.clone();
            thread::spawn(move || {
                let made = in_dir(&names(), &dir, NOW, &mut None).unwrap();
                made.pair.chain[0].fingerprint.clone()
            })
        })
        .collect();
    let mut seen: Vec<String> = starts.into_iter().map(|start| start.join().unwrap()).collect();
    seen.dedup();
    assert_eq!(seen.len(), 1);
    assert!(in_dir(&names(), &dir, NOW, &mut None).unwrap().news.is_empty());
}

#[test]
fn a_lock_that_is_kept_is_an_error_in_time_and_names_the_file() {
    let dir = TempDir::new().unwrap();
    let held = lock(dir.path(), LOCK_WAIT).unwrap();
    let began = Instant::now();
    let wait = Duration::from_millis(100);
    let error = lock(dir.path(), wait).unwrap_err().to_string();
    assert!((wait..LOCK_WAIT).contains(&began.elapsed()));
    assert!(error.contains("/.lock: another process has held this lock for 100ms"), "{error}");
    drop(held);
    assert!(lock(dir.path(), wait).unwrap().is_some());
}

#[test]
fn a_directory_that_cannot_be_written_gives_one_ca_for_the_life_of_the_process() {
    if rustix::process::geteuid().is_root() {
        return memory_of_root();
    }
    let parent = TempDir::new().unwrap();
    fs::set_permissions(parent.path(), fs::Permissions::from_mode(0o500)).unwrap();
    survives(&parent.path().join("tls"));
}

/// Nothing is forbidden to root but a file system that takes no directories.
fn memory_of_root() {
    survives(Path::new("/sys/imaps-proxy"));
}

fn survives(dir: &Path) {
    let mut memory = None;
    let first = in_dir(&names(), dir, NOW, &mut memory).unwrap();
    assert!(first.news.iter().any(|line| line.contains("lives in memory only")));
    let ca = first.ca.fingerprint;
    let again = in_dir(&names(), dir, NOW, &mut memory).unwrap();
    assert!(again.news.is_empty() && again.ca.fingerprint == ca);
    let renewed = in_dir(&names(), dir, again.renew_at + 1, &mut memory).unwrap();
    assert!(renewed.ca.fingerprint == ca && renewed.in_memory && memory.is_some());
    // A look that fails loses nothing.
    let broken = TempDir::new().unwrap();
    fs::write(broken.path().join("ca.key"), "damaged").unwrap();
    assert!(in_dir(&names(), broken.path(), NOW, &mut memory).is_err());
    assert!(in_dir(&["a b".into()], dir, NOW, &mut memory).is_err());
    assert_eq!(in_dir(&names(), dir, NOW, &mut memory).unwrap().ca.fingerprint, ca);
    // Once a volume is there, the CA that people have trusted moves in.
    let volume = TempDir::new().unwrap();
    let moved = in_dir(&names(), volume.path(), NOW, &mut memory).unwrap();
    assert!(!moved.in_memory && memory.is_none() && moved.ca.fingerprint == ca);
    let found = in_dir(&names(), volume.path(), NOW, &mut None).unwrap();
    assert_eq!(found.ca.fingerprint, ca);
}

#[test]
fn impossible_names_are_refused_with_the_reason() {
    let long = "a".repeat(64);
    let table = [
        ("", "1 to 253"),
        ("mail.example.org:993", "port"),
        ("[::1]", "brackets"),
        ("bücher.example", "xn--"),
        ("a..b", "between two dots"),
        (long.as_str(), "between two dots"),
        ("mail example", "letters"),
        ("a.*.org", "letters"),
        ("-a.org", "hyphens"),
        ("1.2.3", "IPv4"),
    ];
    for (name, why) in table {
        let text = parse_names(&[name.to_owned()]).unwrap_err().to_string();
        assert!(text.contains(why), "{name}: {text}");
    }
    assert!(parse_names(&[]).is_err());
    assert_eq!(parse_names(&["A.b".into(), "a.B".into()]).unwrap().len(), 1);
}
