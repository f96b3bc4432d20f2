use super::*;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::UNIX_EPOCH;
use tempfile::TempDir;

const ANYBODY: Policy = [0; 32];

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_795_500_000 + seconds)
}

/// Bytes that look random, other ones for each `seed`.
fn secret(length: usize, seed: u8) -> Vec<u8> {
    (0u8..).take(length).map(|n| n.wrapping_mul(37).wrapping_add(seed)).collect()
}

fn base64(secret: &[u8]) -> String {
    STANDARD.encode(secret)
}

fn sealer(secrets: &[&[u8]], policy: Policy) -> Sealer {
    let keys = secrets.iter().map(|secret| Key::of(secret)).collect();
    Sealer { ring: Arc::new(Ring(ArcSwap::from_pointee(keys))), policy }
}

fn put(dir: &TempDir, file: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.path().join(file);
    fs::write(&path, bytes).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

#[test]
fn who_has_the_key_opens_the_ticket() {
    let (old, new) = (secret(48, 1), secret(80, 2));
    let one = sealer(&[&new, &old], ANYBODY);
    let ticket = one.seal(b"state", at(0)).unwrap();
    assert_ne!(one.seal(b"state", at(0)).unwrap(), ticket, "each is sealed with a key of its own");
    for (who, expected) in [
        (sealer(&[&new, &old], ANYBODY), true),
        (sealer(&[&new], ANYBODY), true),
        (sealer(&[&old, &new], ANYBODY), true),
        (sealer(&[&old], ANYBODY), false),
        (sealer(&[&secret(80, 3)], ANYBODY), false),
        (sealer(&[&new], [1; 32]), false), // other rules for who gets in
        (sealer(&[], ANYBODY), false),
    ] {
        let opened = who.open(&ticket, at(0));
        assert_eq!(opened.as_deref(), expected.then_some(&b"state"[..]));
    }
    assert!(sealer(&[], ANYBODY).seal(b"state", at(0)).is_none());
}

#[test]
fn the_bytes_of_a_key_mean_the_same_for_every_build() {
    // Replicas of different versions share tickets: this may only change together with "version 1". The values are from
    // RFC 5869 written down in Python.
    let key = Key::of(&secret(80, 7));
    let mut derived = [0; 32];
    key.root
        .expand(&[b"seal", &ANYBODY, &[9; SALT]], Length::<32>)
        .unwrap()
        .fill(&mut derived)
        .unwrap();
    assert_eq!(base64(&key.name), "rbZbMRM5GJN0+nfz1IIJhA==");
    assert_eq!(base64(&derived), "PPjXIsgBwvQB17gkHIQMW4fC9zqIHdZXWfGC45GHc24=");
}

#[test]
fn a_damaged_ticket_is_no_ticket() {
    let sealer = sealer(&[&secret(48, 1)], ANYBODY);
    let ticket = sealer.seal(b"the state of a session", at(0)).unwrap();
    for index in 0..ticket.len() {
        let mut damaged = ticket.clone();
        damaged[index] ^= 0x10;
        assert_eq!(sealer.open(&damaged, at(0)), None, "byte {index}");
        assert_eq!(sealer.open(&ticket[..index], at(0)), None, "cut at {index}");
        assert_eq!(sealer.open(&ticket[index + 1..], at(0)), None, "without {index}");
    }
    assert_eq!(sealer.open(&[&ticket[..], b"x"].concat(), at(0)), None);
    assert_eq!(sealer.open(&vec![0; MAX_TICKET + 1], at(0)), None);
    assert_eq!(sealer.seal(&vec![0; MAX_TICKET], at(0)), None);
    assert!(sealer.seal(&[], at(0)).is_some_and(|empty| sealer.open(&empty, at(0)).is_some()));
}

#[test]
fn a_ticket_is_good_for_half_a_day() {
    let sealer = sealer(&[&secret(48, 1)], ANYBODY);
    let ticket = sealer.seal(b"state", at(100_000)).unwrap();
    for (now, good) in [
        (100_000, true),
        (100_000 + 43_200, true),
        (100_000 + 43_201, false),
        (99_000, true), // the clock of another replica
    ] {
        assert_eq!(sealer.open(&ticket, at(now)).is_some(), good, "{now}");
    }
    assert_eq!(ProducesTickets::lifetime(&sealer), 43_200);
}

#[test]
fn keys_are_read_as_nginx_and_haproxy_write_them() {
    let (a, b, c) = (secret(80, 1), secret(80, 2), secret(48, 3));
    let lines = |secrets: &[&[u8]], end: &str| {
        secrets.iter().map(|secret| base64(secret) + end).collect::<String>().into_bytes()
    };
    let commented = [b"# made today\r\n\r\n", &lines(&[&a], "\r\n")[..], b"\n#end"].concat();
    let table: &[(Vec<u8>, &[&[u8]])] = &[
        (a.clone(), &[&a]),
        (c.clone(), &[&c]),
        (lines(&[&a], ""), &[&a]),
        (lines(&[&a, &b, &c], "\n"), &[&a, &b, &c]),
        (lines(&[&c], " \n"), &[&c]),
        (commented, &[&a]),
    ];
    for (bytes, expected) in table {
        let names: Vec<_> = keys(bytes).unwrap().iter().map(|key| key.name).collect();
        let expected: Vec<_> = expected.iter().map(|secret| Key::of(secret).name).collect();
        assert_eq!(names, expected, "{}", bytes.escape_ascii());
    }
}

#[test]
fn what_is_no_key_is_named() {
    let wrapped = base64(&secret(80, 1));
    let wrapped = format!("{}\n{}\n", &wrapped[..64], &wrapped[64..]);
    let (good, zeroes) = (base64(&secret(48, 1)), base64(&[0; 48]));
    let table: &[(&[u8], Mistake)] = &[
        (b"", Mistake::Empty),
        (b" \r\n\n", Mistake::Empty),
        (b"# nothing here", Mistake::Empty),
        (&secret(47, 1), Mistake::Length(47)),
        (&secret(32, 1), Mistake::Length(32)),
        (&secret(160, 1), Mistake::Length(160)),
        (&[0; 48], Mistake::NotRandom),
        (&[0xff; 80], Mistake::NotRandom),
        // base64 of 36 bytes, and hexadecimal
        (b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUV", Mistake::NotRandom),
        (b"0123456789abcdef0123456789abcdef0123456789abcdef", Mistake::NotRandom),
        (b"hello", Mistake::NotBase64(1)),
        (b"-----BEGIN PRIVATE KEY-----\n", Mistake::NotBase64(1)),
        (&[good.as_bytes(), b"\nAAAA\n"].concat(), Mistake::LineLength { line: 2, length: 3 }),
        (&[good.as_bytes(), b"\n", good.as_bytes(), b"="].concat(), Mistake::NotBase64(2)),
        (wrapped.as_bytes(), Mistake::LineLength { line: 2, length: 32 }),
        (zeroes.as_bytes(), Mistake::NotRandom),
    ];
    for (bytes, expected) in table {
        let found = keys(bytes).map(|_| ()).unwrap_err();
        assert_eq!(&found, expected, "{}", bytes.escape_ascii());
    }
}

#[test]
fn keys_in_memory_are_replaced_and_two_are_accepted() {
    let mut tickets = Tickets::new(&settings::Tickets::Memory, at(0)).unwrap().unwrap();
    let sealer = Sealer { ring: Arc::clone(&tickets.ring), policy: ANYBODY };
    let ticket = sealer.seal(b"state", at(0)).unwrap();
    assert!(!tickets.due(at(43_199)));
    assert!(tickets.due(at(43_200)));
    assert_eq!(tickets.load(at(43_200)).unwrap(), Change::Rotated);
    assert!(!tickets.due(at(43_200)));
    assert!(tickets.due(at(0)), "the clock was set back");
    assert!(sealer.open(&ticket, at(43_200)).is_some());
    assert_ne!(sealer.seal(b"", at(43_200)).unwrap()[..NAME], ticket[..NAME]);
    tickets.load(at(86_400)).unwrap();
    assert!(sealer.open(&ticket, at(43_200)).is_none(), "its key is gone");
    assert_eq!(tickets.ring.0.load().len(), 2);
}

#[test]
fn keys_in_files_are_read_again_and_a_bad_file_changes_nothing() {
    let dir = TempDir::new().unwrap();
    let (first, second) = (secret(80, 1), secret(80, 2));
    let current = put(&dir, "current", &first);
    let previous = put(&dir, "previous", &first); // twice the same: before the first rotation
    let settings = settings::Tickets::Files(vec![current.clone(), previous.clone()]);
    let mut tickets = Tickets::new(&settings, at(0)).unwrap().unwrap();
    assert_eq!(tickets.ring.0.load().len(), 1);
    assert!(!tickets.due(at(1_000_000)));
    let sealer = Sealer { ring: Arc::clone(&tickets.ring), policy: ANYBODY };
    let ticket = sealer.seal(b"state", at(0)).unwrap();

    put(&dir, "current", &second[1..]);
    assert!(tickets.due(at(0)));
    let error = super::super::chain(&tickets.load(at(0)).unwrap_err());
    assert!(error.starts_with(&format!("{}: has 79 bytes", current.display())), "{error}");
    assert!(tickets.due(at(0)), "it is tried again");
    assert!(sealer.open(&ticket, at(0)).is_some());

    put(&dir, "current", &second);
    assert_eq!(tickets.load(at(0)).unwrap(), Change::Read { notice: Vec::new() });
    assert!(!tickets.due(at(0)));
    assert!(sealer.open(&ticket, at(0)).is_some(), "the second file has its key");
    assert_eq!(sealer.seal(b"", at(0)).unwrap()[..NAME], Key::of(&second).name);

    put(&dir, "previous", &second);
    fs::set_permissions(&previous, fs::Permissions::from_mode(0o644)).unwrap();
    let Change::Read { notice } = tickets.load(at(0)).unwrap() else { panic!() };
    assert_eq!(notice.len(), 1);
    assert!(notice[0].contains("previous: ticket key open to everybody"), "{notice:?}");
    assert!(sealer.open(&ticket, at(0)).is_none());

    fs::remove_file(&previous).unwrap();
    assert!(tickets.due(at(0)));
    let error = super::super::chain(&tickets.load(at(0)).unwrap_err());
    assert!(error.contains("no such file; put the ticket key there"), "{error}");
}

#[test]
fn more_keys_than_anybody_needs_are_refused() {
    let dir = TempDir::new().unwrap();
    let lines: String = (0..33).map(|seed| base64(&secret(48, seed)) + "\n").collect();
    let file = put(&dir, "keys", lines.as_bytes());
    let settings = settings::Tickets::Files(vec![file]);
    assert!(matches!(Tickets::new(&settings, at(0)), Err(Error::TooMany)));
    let mut found = Vec::new();
    check(&settings, &mut |severity, text| found.push((severity, text)));
    assert!(matches!(&found[..], [(Severity::Error, text)] if text.contains("more than 32 keys")));
}

#[test]
fn no_key_is_printed() {
    let sealer = sealer(&[&secret(48, 1)], ANYBODY);
    assert_eq!(format!("{sealer:?}"), "Sealer");
}
