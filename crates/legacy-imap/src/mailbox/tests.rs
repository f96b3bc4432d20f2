use super::*;

fn append(store: &Store, name: &str) -> u32 {
    let message = Message::new(b"a".to_vec(), DateTime::now(), store.charge());
    store.append(name, Flags::default(), message).unwrap().1
}

#[test]
fn numbers_stay_until_an_expunge_is_told() {
    let store = Store::new();
    let uids: Vec<u32> = (0..4).map(|_| append(&store, "INBOX")).collect();
    assert_eq!(uids, [1, 2, 3, 4]);
    let (mut one, status) = store.open("INBOX", false).unwrap();
    assert_eq!((status.messages, status.recent, status.uid_next), (4, 4, 5));
    let (mut two, status) = store.open("INBOX", false).unwrap();
    assert_eq!(status.recent, 0);
    assert!(store.change(&mut one, &[0, 2], Change::Add, Flags::DELETED));
    store.expunge(&one, None);
    append(&store, "INBOX");
    let exists = News::Exists { exists: 5, recent: 1 };
    assert_eq!(store.refresh(&mut two, false), std::slice::from_ref(&exists));
    assert_eq!(store.refresh(&mut two, false), []);
    assert_eq!(store.refresh(&mut two, true), [News::Expunged(1), News::Expunged(2)]);
    assert_eq!(two.rows.iter().map(|row| row.uid).collect::<Vec<_>>(), [2, 4, 5]);
    let exists = News::Exists { exists: 3, recent: 2 };
    assert_eq!(store.refresh(&mut one, true), [News::Expunged(1), News::Expunged(2), exists]);
}

#[test]
fn a_session_is_told_of_others_changes_and_not_of_its_own() {
    let store = Store::new();
    append(&store, "INBOX");
    let (mut one, _) = store.open("INBOX", false).unwrap();
    let (mut two, _) = store.open("INBOX", true).unwrap();
    let flags = store.flags(&["\\Seen", "work"]).unwrap();
    assert!(store.change(&mut one, &[0], Change::Replace, flags));
    assert_eq!(store.refresh(&mut one, true), []);
    let told = News::Flags { number: 1, uid: 1, flags, recent: false };
    assert_eq!(store.refresh(&mut two, true), [News::Keywords, told]);
    assert_eq!(store.names(flags, true), "\\Seen work \\Recent");
}

#[test]
fn renaming_keeps_uidvalidity_and_empties_inbox() {
    let store = Store::new();
    store.create("a/b", None).unwrap();
    let before = store.status("a/b").unwrap();
    store.rename("a", "x/y").unwrap();
    assert_eq!(store.status("x/y/b").unwrap(), before);
    assert_eq!(store.status("a").unwrap_err(), Error::Missing);
    append(&store, "INBOX");
    store.rename("INBOX", "old").unwrap();
    assert_eq!(store.status("INBOX").unwrap().messages, 0);
    assert_eq!(store.status("old").unwrap().messages, 1);
    assert_eq!(store.delete("x"), Err(Error::Children));
    assert_eq!(store.rename("x", "x/z"), Err(Error::Name));
    assert_eq!(store.delete("inbox"), Err(Error::Missing));
}

#[test]
fn memory_is_counted_while_octets_are_held() {
    let store = Store::new();
    let mut charge = store.charge();
    charge.grow(MAX_BYTES).unwrap();
    assert_eq!(store.charge().grow(1), Err(Error::OverQuota));
    drop(charge);
    assert_eq!(store.charge().grow(MAX_BYTES), Ok(()));
}

#[test]
fn names_are_checked() {
    assert_eq!(name(b"inbox/Sub").unwrap(), "INBOX/Sub");
    assert_eq!(name(b"Entw&APw-rfe").unwrap(), "Entw&APw-rfe");
    for raw in [&b""[..], b"/a", b"a//b", b"a/", b"a*", b"\xff", b"a\r\nb"] {
        assert!(name(raw).is_err(), "{}", raw.escape_ascii());
    }
}
