//! Request smuggling: bytes that two readers might cut into commands differently (table C).
//!
//! Whatever a client sends before login, the backend receives a LOGIN or AUTHENTICATE that the proxy
//! has written itself, or nothing. So each row asserts what the client is told, that no hidden command
//! was executed by anybody, and what arrived at the backend.

mod support;

use support::{Client, End, FakeBackend, PATIENCE, Proxy};

/// A client that was greeted, sent `bytes` in one write and then hung up one way; all it is told.
fn told(proxy: &Proxy<'_>, bytes: &[u8]) -> String {
    let mut client = proxy.connect();
    client.expect("* OK ");
    client.send(bytes);
    client.half_close();
    client.rest(PATIENCE)
}

fn lines(text: &str) -> Vec<&str> {
    text.split_terminator("\r\n").collect()
}

/// The session ends with BYE, with nothing before it but `before`, and reaches no backend.
#[track_caller]
fn ends_with_bye(bytes: &str, before: &[&str]) {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let dials = backend.dials();
    let mut client = proxy.connect();
    client.expect("* OK ");
    client.send(bytes);
    let answer = client.rest(PATIENCE);
    let answer = lines(&answer);
    assert_eq!(answer.len(), before.len() + 1, "{answer:?}");
    for (line, prefix) in answer.iter().zip(before) {
        assert!(line.starts_with(prefix), "{answer:?}");
    }
    assert!(answer.last().unwrap().starts_with("* BYE "), "{answer:?}");
    assert_eq!(client.end(), End::Orderly);
    assert_eq!(backend.dials(), dials, "the backend was dialled");
    proxy.stop();
}

/// Each of `bytes` is answered by lines that begin with `answers`, and no login is attempted.
#[track_caller]
fn is_answered(bytes: &[u8], answers: &[&str]) {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let dials = backend.dials();
    let answer = told(&proxy, bytes);
    let answer = lines(&answer);
    assert_eq!(answer.len(), answers.len(), "{answer:?}");
    for (line, prefix) in answer.iter().zip(answers) {
        assert!(line.starts_with(prefix), "{answer:?}");
    }
    assert_eq!(backend.dials(), dials, "the backend was dialled");
    proxy.stop();
}

/// Either refused, with nothing at the backend, or understood as this user and password.
#[track_caller]
fn is_refused_or_means(bytes: &[u8], user: &str, password: &str) {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let dials = backend.dials();
    let answer = told(&proxy, bytes);
    if answer.contains("a OK") {
        assert_eq!(backend.logins(), [(user.as_bytes().to_vec(), password.as_bytes().to_vec())]);
    } else {
        let first = lines(&answer)[0].to_owned();
        assert!(["a BAD", "* BAD", "* BYE"].iter().any(|p| first.starts_with(p)), "{answer:?}");
        assert_eq!(backend.dials(), dials, "the backend was dialled");
    }
    proxy.stop();
}

#[test]
fn c1_literal_in_the_place_of_a_tag_ends_the_session() {
    ends_with_bye("{3+}\r\nabc NOOP\r\n", &[]);
}

#[test]
fn c2_literal_in_the_place_of_a_command_ends_the_session() {
    ends_with_bye("a {4+}\r\nNOOP\r\n", &[]);
}

#[test]
fn c3_literal_inside_an_open_quote_ends_the_session() {
    ends_with_bye("a LOGIN \"x {5+}\r\nb NOOP\r\n", &[]);
}

#[test]
fn c4_literal_glued_to_an_atom_ends_the_session() {
    ends_with_bye("a LOGIN test{6+}\r\nsecret\r\n", &[]);
}

#[test]
fn c5_line_behind_a_refused_mechanism_is_a_command_and_is_seen_and_logged() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let mut client = proxy.connect();
    client.expect("* OK ");
    client.send("a AUTHENTICATE NOPE\r\nb LOGIN test secret\r\n");
    client.expect("a NO");
    client.expect("b OK");
    assert_eq!(backend.logins(), [(b"test".to_vec(), b"secret".to_vec())]);
    let logins = proxy.wait_for_logins(2);
    let logins: Vec<_> =
        logins.iter().map(|line| (line.field("user"), line.field("result"))).collect();
    assert_eq!(logins[0].1, "aborted");
    assert_eq!(logins[1], ("test".to_owned(), "ok".to_owned()));
    proxy.stop();
}

#[test]
fn c6_line_behind_broken_base64_is_a_command_and_is_seen_and_logged() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let mut client = proxy.connect();
    client.expect("* OK ");
    client.send("a AUTHENTICATE PLAIN !!\r\nb LOGIN test secret\r\n");
    client.expect("a BAD");
    client.expect("b OK");
    assert_eq!(backend.logins(), [(b"test".to_vec(), b"secret".to_vec())]);
    assert!(!backend.received().contains("!!"));
    proxy.stop();
}

#[test]
fn c7_synchronising_literal_that_was_not_waited_for_is_still_the_literal() {
    // The user is `b NO`; `OP` behind it is not an argument.
    is_answered(b"a LOGIN {4}\r\nb NOOP\r\nc NOOP\r\n", &["+ ", "a BAD", "c OK"]);
}

#[test]
fn c8_literal_of_an_unknown_command_ends_the_session() {
    ends_with_bye("a FOO {6}\r\nb NOOP\r\n", &[]);
    ends_with_bye("a NOOP {6+}\r\nb NOOP\r\n", &[]);
    ends_with_bye("a AUTHENTICATE PLAIN {16+}\r\nAGFsaWNlAHNlY3Jl\r\n", &[]);
    ends_with_bye("a NOOP\r\nb AUTHENTICATE {5+}\r\nPLAIN\r\n", &["a OK"]);
}

#[test]
fn c9_odd_literals_and_line_ends_mean_one_thing_or_nothing() {
    is_refused_or_means(b"a LOGIN alice {6+}\nsecret\r\n", "alice", "secret");
    is_refused_or_means(b"a LOGIN alice {006+}\r\nsecret\r\n", "alice", "secret");
    is_refused_or_means(b"a LOGIN alice secret\n", "alice", "secret");
    is_refused_or_means(b"a LOGIN alice {6+} \r\nsecret\r\n", "alice", "{6+}");
    is_refused_or_means(b"a LOGIN alice {+}\r\nsecret\r\n", "alice", "");
    is_refused_or_means(b"a LOGIN alice {-6}\r\nsecret\r\n", "alice", "");
    is_refused_or_means(b"a LOGIN alice {6-}\r\nsecret\r\n", "alice", "secret");
    is_refused_or_means(b"a LOGIN alice ~{6+}\r\nsecret\r\n", "alice", "secret");
    is_refused_or_means(b"a LOGIN alice {6++}\r\nsecret\r\n", "alice", "");
    is_refused_or_means(b"a LOGIN alice {0x6+}\r\nsecret\r\n", "alice", "");
}

#[test]
fn c10_bare_cr_ends_no_line() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    for bytes in [&b"a NOOP\rb NOOP\r\n"[..], b"a LOGIN alice secret\rb NOOP\r\n"] {
        let answer = told(&proxy, bytes);
        assert!(answer.starts_with("a BAD") || answer.starts_with("* B"), "{answer}");
        assert!(!answer.contains("b OK"), "{answer}");
    }
    assert!(backend.logins().is_empty());
    proxy.stop();
}

/// Servers take them or refuse them, and none reads another command.
#[test]
fn c11_several_spaces_are_one_and_one_at_the_end_is_none() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    for command in [
        &b"a  LOGIN  alice  secret\r\n"[..],
        b"a LOGIN alice secret  \r\n",
        b"a   LOGIN  {5+}\r\nalice  {6+}\r\nsecret \r\n",
    ] {
        assert!(told(&proxy, command).starts_with("a OK"), "{}", command.escape_ascii());
    }
    let login = (b"alice".to_vec(), b"secret".to_vec());
    assert_eq!(backend.logins(), [login.clone(), login.clone(), login]);
    proxy.stop();
}

#[test]
fn a_blank_behind_an_announced_literal_makes_it_a_word_that_no_server_takes() {
    is_answered(b"a LOGIN alice {6+} \r\nb NOOP\r\n", &["a BAD", "b OK"]);
}

#[test]
fn a_tab_is_no_blank_since_one_server_takes_it_for_one_and_another_for_a_letter() {
    is_answered(b"a LOGIN alice\tsecret\r\nb NOOP\r\n", &["a BAD", "b OK"]);
}

#[test]
fn c12_line_ends_inside_quotes_too() {
    is_answered(b"a LOGIN \"ali\r\nb NOOP\r\n", &["a BAD", "b OK"]);
    is_answered(b"a LOGIN u \"x\r\nb LOGIN\" u\r\nc NOOP\r\n", &["a BAD", "b BAD", "c OK"]);
}

#[test]
fn c13_nul_is_refused_everywhere() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    for bytes in [
        &b"a NO\0OP\r\n"[..],
        b"a LOGIN \"al\0ice\" secret\r\n",
        b"a LOGIN al\0ice secret\r\n",
        b"a LOGIN alice {6+}\r\nsec\0et\r\n",
        b"\0 NOOP\r\n",
        b"a AUTHENTICATE PLAIN AA\0A\r\n",
    ] {
        let answer = told(&proxy, bytes);
        let refused = ["a BAD", "* BAD", "* BYE"].iter().any(|p| answer.starts_with(p));
        assert!(refused, "{answer:?} to {:?}", String::from_utf8_lossy(bytes));
    }
    assert!(backend.logins().is_empty(), "{}", backend.received());
    proxy.stop();
}

#[test]
fn eight_bit_characters_are_no_atom_since_servers_read_them_differently_or_not_at_all() {
    is_answered("a LOGIN \u{e4}lice secret\r\nb NOOP\r\n".as_bytes(), &["a BAD", "b OK"]);
    is_answered(b"a LOGIN \xff \xfe\r\nb NOOP\r\n", &["a BAD", "b OK"]);
}

#[test]
fn wrong_arguments_reach_no_backend() {
    for command in [
        "LOGIN",
        "LOGIN alice",
        "LOGIN alice secret more",
        "LOGIN (alice) secret",
        "LOGIN \"alice\"secret",
        "LOGIN \"al\\ice\" secret",
        "LOGIN al\"ice secret",
        "LOGIN alice )secret",
        "AUTHENTICATE",
        "AUTHENTICATE ",
        "AUTHENTICATE PLAIN AAAA AAAA",
        "AUTHENTICATE \"PLAIN\"",
        "NOOP now",
    ] {
        is_answered(format!("a {command}\r\nb NOOP\r\n").as_bytes(), &["a BAD", "b OK"]);
    }
}

/// The same session, cut into writes everywhere: the meaning does not depend on the cuts.
#[test]
fn commands_mean_the_same_wherever_the_stream_is_cut() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let session = "a NOOP\r\nb LOGIN {5+}\r\nalice {9+}\r\nwrong\r\n  \r\nc LOGIN alice {6+}\r\n\
                   secret\r\nd NOOP\r\ne LOGOUT\r\n";
    let answers = ["a OK", "b NO", "c OK", "d OK", "* BYE", "e OK"];
    let check = |mut client: Client| {
        for answer in answers {
            client.expect(answer);
        }
        assert_eq!(client.end(), End::Orderly);
    };
    let bytes = session.as_bytes();
    for cut in (1..bytes.len()).step_by(3) {
        let mut client = proxy.connect();
        client.expect("* OK ");
        client.send(&bytes[..cut]);
        client.send(&bytes[cut..]);
        check(client);
    }
    let mut client = proxy.connect();
    client.expect("* OK ");
    for byte in bytes {
        client.send([*byte]);
    }
    check(client);
    let logins = backend.logins();
    assert!(logins.iter().step_by(2).all(|(_, password)| password == b"wrong\r\n  "), "{logins:?}");
    proxy.stop();
}
