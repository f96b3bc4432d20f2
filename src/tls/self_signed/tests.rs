use super::files::lock;
use super::issue::{LIFE, ca_params, leaf_params, new_key};
use super::*;
use crate::tls::facts::DAY;
use rcgen::{CertificateParams, DnType, Issuer};
use rustls_pki_types::CertificateDer;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;
use std::thread;
use std::time::Instant;
use tempfile::TempDir;

const NOW: i64 = 1_795_500_000;
/// When the next CA is made.
const AHEAD: i64 = NOW - 3600 + LIFE - kept::AHEAD;

fn names() -> Vec<String> {
    vec!["Mail.Example.org".into(), "192.0.2.7".into(), "::1".into(), "*.example.org".into()]
}

fn look(names: &[String], dir: &TempDir, now: i64) -> Made {
    in_dir(names, dir.path(), now, &mut None).unwrap()
}

fn snapshot(dir: &Path) -> Vec<Option<String>> {
    FILES.iter().map(|file| fs::read_to_string(dir.join(file)).ok()).collect()
}

fn error(result: Result<Made, Error>) -> String {
    result.err().expect("a failure").to_string()
}

/// What earlier versions made: a CA for every name, for ten years, and its key.
fn of_an_earlier_version(names: &[String], dir: &Path) {
    let names = parse_names(names).unwrap();
    let (ca_key, key) = (new_key().unwrap(), new_key().unwrap());
    let mut ca = ca_params(&names, &ca_key, NOW).unwrap();
    ca.name_constraints = None;
    ca.extended_key_usages.clear();
    ca.not_after += Duration::from_secs(u64::try_from(3650 * DAY - LIFE).unwrap());
    let pem = ca.self_signed(&ca_key).unwrap().pem();
    fs::write(dir.join(CA), &pem).unwrap();
    fs::write(dir.join(CA_KEY), ca_key.serialize_pem()).unwrap();
    let leaf = leaf_params(&names, NOW, NOW - 3600 + 397 * DAY).unwrap();
    let leaf = leaf.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
    fs::write(dir.join(CHAIN), leaf.pem() + &pem).unwrap();
    fs::write(dir.join(KEY), key.serialize_pem()).unwrap();
}

fn openssl(dir: &Path, args: &[&str]) -> Result<String, String> {
    let out = Command::new("openssl").args(args).current_dir(dir).output().unwrap();
    let text = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
    if out.status.success() { Ok(text) } else { Err(text) }
}

#[test]
fn files_with_tight_modes_are_made_once_and_found_again() {
    let parent = TempDir::new().unwrap();
    let dir = parent.path().join("new/tls");
    let made = in_dir(&names(), &dir, NOW, &mut None).unwrap();
    assert_eq!(made.news.len(), 1);
    assert!(made.news[0].contains(&made.ca.fingerprint));
    for (file, mode) in [("", 0o700), (KEY, 0o600)] {
        assert_eq!(fs::metadata(dir.join(file)).unwrap().mode() & 0o777, mode, "{file}");
    }
    let leaf = &made.pair.chain[0];
    assert_eq!(leaf.names.len(), 4);
    assert!(leaf.not_before < NOW && leaf.not_after - leaf.not_before <= 825 * DAY);
    assert_eq!(leaf.not_after, made.ca.not_after);
    let before = snapshot(&dir);
    assert_eq!(before.iter().flatten().count(), 3, "no key of the CA");
    let again = in_dir(&names(), &dir, NOW + 700 * DAY, &mut None).unwrap();
    assert!(again.news.is_empty(), "{:?}", again.news);
    assert_eq!(snapshot(&dir), before);
    assert!(inspect(&names(), &dir, NOW).unwrap().is_empty());
}

#[test]
fn the_ca_vouches_for_the_configured_names_only() {
    // Names that were configured; names that its key, had a thief been there in time, could sign and that are accepted.
    let table: [(&[&str], &[&str], &[&str]); 3] = [
        (
            &["mail.example.org", "192.0.2.7", "2001:db8::7"],
            &["mail.example.org", "192.0.2.7", "2001:db8::7"],
            &["bank.example", "example.org", "xmail.example.org", "192.0.2.8", "2001:db8::8"],
        ),
        (&["*.example.org"], &["*.example.org"], &["bank.example", "192.0.2.7", "::1"]),
        (&["192.0.2.7"], &["192.0.2.7"], &["bank.example", "localhost", "::1", "192.0.2.8"]),
    ];
    for (configured, accepted, refused) in table {
        let dir = TempDir::new().unwrap();
        let owned = |names: &[&str]| -> Vec<_> { names.iter().map(|&n| n.to_owned()).collect() };
        let (ca_key, key) = (new_key().unwrap(), new_key().unwrap());
        let configured = parse_names(&owned(configured)).unwrap();
        let ca = ca_params(&configured, &ca_key, NOW).unwrap();
        let ca_der = CertificateDer::from(ca.self_signed(&ca_key).unwrap());
        assert!(issue::is_bound(&ca_der));
        fs::write(dir.path().join(CA), pem(&ca_der)).unwrap();
        let issuer = Issuer::new(ca, ca_key);
        for (names, good) in [(accepted, true), (refused, false)] {
            for name in names {
                let one = parse_names(&owned(&[name])).unwrap();
                let leaf = leaf_params(&one, NOW, NOW + DAY).unwrap();
                let leaf = CertificateDer::from(leaf.signed_by(&key, &issuer).unwrap());
                fs::write(dir.path().join("leaf.pem"), pem(&leaf)).unwrap();
                let at = NOW.to_string();
                let args = ["verify", "-x509_strict", "-purpose", "sslserver", "-attime", &at];
                let args = [&args[..], &["-CAfile", CA, "leaf.pem"]].concat();
                let told = openssl(dir.path(), &args);
                assert_eq!(told.is_ok(), good, "{configured:?} {name}: {told:?}");
                let of = |der| kept::facts_of(der, Path::new("")).unwrap();
                let told = crate::tls::complaints::verify(&of(&leaf), &[], &of(&ca_der), NOW);
                assert_eq!(told.is_ok(), good, "{configured:?} {name}: {told:?}");
            }
        }
    }
}

#[test]
fn the_next_ca_is_made_ahead_and_takes_over_at_the_end() {
    let dir = TempDir::new().unwrap();
    let first = look(&names(), &dir, NOW);
    assert_eq!(first.again_at, AHEAD);
    let both = look(&names(), &dir, AHEAD);
    assert_eq!(both.ca.fingerprint, first.ca.fingerprint);
    let next = fs::read_to_string(dir.path().join(NEXT_CA)).unwrap();
    let told = both.news.join("\n");
    assert!(told.contains("next-ca.pem before (SHA-256 fingerprint"), "{told}");
    // At the next start too, and of the same.
    assert_eq!(look(&names(), &dir, AHEAD + DAY).news, both.news);
    assert_eq!(inspect(&names(), dir.path(), AHEAD + DAY).unwrap(), both.news);
    assert_eq!(fs::read_to_string(dir.path().join(NEXT_CA)).unwrap(), next);
    let end = first.ca.not_after;
    assert_eq!(both.again_at, end + 1);
    assert_eq!(look(&names(), &dir, end).ca.fingerprint, first.ca.fingerprint);
    let after = look(&names(), &dir, end + 1);
    assert!(told.contains(&after.ca.fingerprint), "{told}");
    assert_eq!(fs::read_to_string(dir.path().join(CA)).unwrap(), next);
    assert!(!dir.path().join(NEXT_CA).exists() && !dir.path().join(NEXT_CHAIN).exists());
    assert!(look(&names(), &dir, end + 1).news.is_empty());
    // After a pause too long for that there is a new one.
    let late = look(&names(), &dir, end + 2 * LIFE);
    assert!(late.news[0].contains("because the one before has expired"), "{:?}", late.news);
}

#[test]
fn an_exchange_that_was_interrupted_goes_on() {
    for written in 0..4 {
        let dir = TempDir::new().unwrap();
        look(&names(), &dir, NOW);
        let end = look(&names(), &dir, AHEAD).ca.not_after;
        let before = snapshot(dir.path());
        let after = look(&names(), &dir, end + 1).ca.fingerprint;
        let done = snapshot(dir.path());
        // The files as they are after so many of the writes.
        for (index, file) in [CA, CHAIN, NEXT_CA, NEXT_CHAIN].into_iter().enumerate() {
            let place = FILES.iter().position(|one| *one == file).unwrap();
            let state = if index < written { &done[place] } else { &before[place] };
            match state {
                Some(text) => fs::write(dir.path().join(file), text).unwrap(),
                None => fs::remove_file(dir.path().join(file)).unwrap_or(()),
            }
        }
        assert_eq!(look(&names(), &dir, end + 1).ca.fingerprint, after, "{written}");
        assert_eq!(snapshot(dir.path())[1..], done[1..], "{written}");
    }
}

#[test]
fn a_name_that_is_added_needs_another_ca_which_is_said_and_can_be_undone() {
    let dir = TempDir::new().unwrap();
    let first = look(&names(), &dir, NOW);
    let more = [&names()[..], &["imap.example.net".to_owned()]].concat();
    let warned = inspect(&more, dir.path(), NOW).unwrap().join("\n");
    assert!(warned.contains("can't vouch for imap.example.net: the next start"), "{warned}");
    let second = look(&more, &dir, NOW + DAY);
    assert_ne!(second.ca.fingerprint, first.ca.fingerprint);
    let told = second.news.join("\n");
    assert!(
        told.contains(
            "because the one before can't vouch for imap.example.net; the one before is kept in"
        ),
        "{told}"
    );
    // A second thought: the CA that people trust is back, and would be again.
    assert_eq!(look(&names(), &dir, NOW + 2 * DAY).ca.fingerprint, first.ca.fingerprint);
    assert_eq!(look(&more, &dir, NOW + 2 * DAY).ca.fingerprint, second.ca.fingerprint);
    // After a while they trust the new one, which has all names of before.
    let fewer = look(&names(), &dir, NOW + 9 * DAY);
    assert_eq!(fewer.ca.fingerprint, second.ca.fingerprint);
    assert!(fewer.news[0].contains("also good for imap.example.net"), "{:?}", fewer.news);
    // A slip of the pen and back: the CA that people trust is back.
    let slip = look(&["mial.example.org".to_owned()], &dir, NOW + 10 * DAY);
    assert_ne!(slip.ca.fingerprint, second.ca.fingerprint);
    let back = look(&more, &dir, NOW + 10 * DAY);
    assert_eq!(back.ca.fingerprint, second.ca.fingerprint);
    // Who removes the CA gets a new one.
    fs::remove_file(dir.path().join(CA)).unwrap();
    let new = look(&more, &dir, NOW + 10 * DAY);
    assert!(![&first, &second, &slip].iter().any(|old| old.ca.fingerprint == new.ca.fingerprint));
}

#[test]
fn a_clock_that_was_wrong_costs_no_trust() {
    let dir = TempDir::new().unwrap();
    let first = look(&names(), &dir, NOW);
    // A machine without a battery begins in the past: what people trust serves on.
    let early = look(&names(), &dir, 1000);
    assert_eq!(early.ca.fingerprint, first.ca.fingerprint);
    assert!(early.news[0].contains("is of the future"), "{:?}", early.news);
    // One that is set ahead and back.
    let ahead = look(&names(), &dir, NOW + 70 * 365 * DAY);
    assert_ne!(ahead.ca.fingerprint, first.ca.fingerprint);
    let back = look(&names(), &dir, NOW);
    assert_eq!(back.ca.fingerprint, first.ca.fingerprint);
    assert!(look(&names(), &dir, NOW).news.is_empty());
}

#[test]
fn what_served_before_is_bounded() {
    let dir = TempDir::new().unwrap();
    for number in 0..20 {
        look(&[format!("n{number}.example")], &dir, NOW);
    }
    assert_eq!(files::earlier(dir.path()).len(), 16);
    make(&names(), dir.path(), NOW, true).unwrap();
    assert_eq!(files::earlier(dir.path()).len(), 0);
}

#[test]
fn a_ca_of_an_earlier_version_serves_until_it_ends_and_is_told_of() {
    let dir = TempDir::new().unwrap();
    of_an_earlier_version(&names(), dir.path());
    let before = snapshot(dir.path());
    let first = look(&names(), &dir, NOW);
    assert_eq!(snapshot(dir.path()), before);
    assert!(first.news[0].contains("certificates of any name"), "{:?}", first.news);
    assert_eq!(inspect(&names(), dir.path(), NOW).unwrap(), first.news);
    // Its certificate is renewed in its last third, and for other names.
    let third = first.again_at + 1;
    assert!(third < first.pair.chain[0].not_after - 100 * DAY);
    let second = look(&names(), &dir, third);
    assert!(second.news[0].contains("due for renewal"), "{:?}", second.news);
    assert_ne!(first.pair.chain[0].serial, second.pair.chain[0].serial);
    let other = vec!["imap.example.net".to_owned()];
    let renamed = look(&other, &dir, third);
    assert!(renamed.news[0].contains("the names have changed"), "{:?}", renamed.news);
    assert_eq!(renamed.ca.fingerprint, first.ca.fingerprint);
    // No certificate outlives it, and it is used to its end.
    let end = first.ca.not_after;
    let last = look(&names(), &dir, end - 400 * DAY);
    assert_eq!((last.ca.fingerprint, last.pair.chain[0].not_after), (first.ca.fingerprint, end));
    let ahead = look(&names(), &dir, end - DAY);
    assert!(ahead.news.iter().any(|line| line.contains("next-ca.pem before")), "{:?}", ahead.news);
    let after = look(&names(), &dir, end + 1);
    assert!(after.ca.not_after > end && !after.news[0].contains("any name"), "{:?}", after.news);
    assert!(!dir.path().join(CA_KEY).exists(), "a key that only a thief has a use for");
    assert!(issue::is_bound(&after.ca.der));
}

#[test]
fn a_ca_of_an_earlier_version_goes_when_the_operator_removes_it() {
    let dir = TempDir::new().unwrap();
    of_an_earlier_version(&names(), dir.path());
    let old = look(&names(), &dir, NOW).ca.fingerprint;
    fs::remove_file(dir.path().join(CA)).unwrap();
    fs::remove_file(dir.path().join(CA_KEY)).unwrap();
    let made = look(&names(), &dir, NOW);
    assert!(made.ca.fingerprint != old && issue::is_bound(&made.ca.der));
    assert!(look(&names(), &dir, NOW).news.is_empty());
    // Its key alone is nobody's to remove, and to nobody's use.
    let other = TempDir::new().unwrap();
    of_an_earlier_version(&names(), other.path());
    fs::remove_file(other.path().join(CA)).unwrap();
    let made = look(&names(), &other, NOW);
    assert!(issue::is_bound(&made.ca.der) && other.path().join(CA_KEY).exists());
    assert!(made.news[1].contains("ca.key: is not the key of"), "{:?}", made.news);
}

#[test]
fn whatever_an_interruption_leaves_is_completed() {
    let made = [CA, KEY, CHAIN];
    for kept in 0..made.len() {
        let dir = TempDir::new().unwrap();
        in_dir(&names(), dir.path(), NOW, &mut None).unwrap();
        for file in &made[kept..] {
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
    of_an_earlier_version(&names(), dir.path());
    of_an_earlier_version(&names(), foreign.path());
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
            text.iter().for_each(|text| fs::write(dir.path().join(file), text).unwrap());
        }
    }
    // The same of files that are made now.
    let dir = TempDir::new().unwrap();
    let made = look(&names(), &dir, NOW);
    for file in [CA, KEY, CHAIN] {
        let good = fs::read_to_string(dir.path().join(file)).unwrap();
        fs::write(dir.path().join(file), "garbage").unwrap();
        let text = error(in_dir(&names(), dir.path(), NOW, &mut None));
        assert!(text.contains(file) && text.contains("is not PEM"), "{text}");
        fs::write(dir.path().join(file), good).unwrap();
    }
    assert_eq!(look(&names(), &dir, NOW).ca.fingerprint, made.ca.fingerprint);
}

#[test]
fn a_ca_of_the_operator_issues_until_it_ends_and_is_never_replaced() {
    let dir = TempDir::new().unwrap();
    let key = new_key().unwrap();
    let mut ca = ca_params(&parse_names(&names()).unwrap(), &key, NOW).unwrap();
    ca.name_constraints = None;
    ca.distinguished_name = rcgen::DistinguishedName::new();
    ca.distinguished_name.push(DnType::CommonName, "Ours");
    fs::write(dir.path().join(CA), ca.self_signed(&key).unwrap().pem()).unwrap();
    fs::write(dir.path().join(CA_KEY), key.serialize_pem()).unwrap();
    let made = look(&names(), &dir, NOW);
    assert_eq!(made.ca.subject, "CN=Ours");
    let end = made.ca.not_after;
    assert_eq!(look(&names(), &dir, end - DAY).pair.chain[0].not_after, end);
    let text = error(in_dir(&names(), dir.path(), end + 1, &mut None));
    assert!(text.contains("was not made by imaps-proxy"), "{text}");
    fs::remove_file(dir.path().join(CA_KEY)).unwrap();
    assert_eq!(look(&names(), &dir, end - DAY).ca.subject, "CN=Ours");
    let text = error(in_dir(&["other.example".to_owned()], dir.path(), NOW, &mut None));
    assert!(text.contains("ca.key: is missing"), "{text}");
}

#[test]
fn a_forged_signature_does_not_serve() {
    let (dir, foreign) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    of_an_earlier_version(&names(), dir.path());
    of_an_earlier_version(&names(), foreign.path());
    // The same CA name, another CA's key.
    let kept = Kept::read(dir.path()).unwrap();
    let ca = kept.ca.as_ref().unwrap();
    let wrong = Kept::read(foreign.path()).unwrap().ca_key.unwrap();
    let issuer = Issuer::from_ca_cert_der(ca, wrong).unwrap();
    let params = leaf_params(&parse_names(&names()).unwrap(), NOW, NOW + LIFE).unwrap();
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
    let renewed = in_dir(&names(), dir, again.again_at + 1, &mut memory).unwrap();
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
