//! Before login: the greeting, what a client may ask, and every road to a login and back.
//!
//! The letters are rows of the tables of attacks that the project works by: A greeting, D outcome.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use support::{
    Backend, Client, Dovecot, End, FakeBackend, PATIENCE, Proxy, Session, Switch, Unreachable,
    free_port, wait_until, within,
};

/// The words of a capability list in a greeting, a response code or an untagged line.
fn capabilities(line: &str) -> Vec<String> {
    let start = line.find("CAPABILITY ").expect("there is a list") + "CAPABILITY ".len();
    let list = line[start..].split(']').next().expect("split gives at least one");
    list.split(' ').map(str::to_owned).collect()
}

const UNREPAIRED: &str = "SASL-IR LOGIN-REFERRALS ID ENABLE IDLE LITERAL+ STARTTLS COMPRESS=DEFLATE \
    UNAUTHENTICATE AUTH=PLAIN AUTH=SCRAM-SHA-256 AUTH=SCRAM-SHA-256-PLUS AUTH=EXTERNAL \
    MAILBOX-REFERRALS LANGUAGE CLIENTID XVENDOR";
const REPAIRED: &str =
    "IMAP4rev1 SASL-IR ID ENABLE IDLE LITERAL+ AUTH=PLAIN AUTH=SCRAM-SHA-256 XVENDOR";

#[test]
fn greeting_is_the_backends_own_with_its_capabilities_repaired() {
    let backend = FakeBackend::imap(UNREPAIRED, |_, _| false);
    let proxy = Proxy::start(&backend, "");
    let mut client = proxy.connect();
    assert_eq!(client.line(), format!("* OK [CAPABILITY {REPAIRED}] legacy server ready"));
    let answer = client.command("CAPABILITY");
    assert_eq!(answer[0], format!("* CAPABILITY {REPAIRED}"));
    assert!(answer[1].starts_with("t1 OK"), "{answer:?}");
    proxy.stop();
}

#[test]
fn operator_hides_and_adds_capabilities() {
    let backend = FakeBackend::imap(UNREPAIRED, |_, _| false);
    let proxy = Proxy::start(
        &backend,
        "backend: { capabilities: { hide: [idle, 'AUTH=SCRAM-SHA-256'], add: [XEXTRA] } }",
    );
    let mut client = proxy.connect();
    let words = capabilities(&client.line());
    let expected = "IMAP4rev1 SASL-IR ID ENABLE LITERAL+ AUTH=PLAIN XVENDOR XEXTRA";
    assert_eq!(words.join(" "), expected);
    proxy.stop();
}

/// By EXTERNAL the server would take every client for the proxy.
#[test]
fn external_is_neither_shown_nor_carried_unless_the_operator_adds_it() {
    let backend =
        FakeBackend::imap("SASL-IR AUTH=EXTERNAL MAILBOX-REFERRALS", |session, command| {
            command.name == "AUTHENTICATE" && session.send(format!("{} OK in\r\n", command.tag))
        });
    let words = ["AUTH=EXTERNAL", "MAILBOX-REFERRALS"];
    for (yaml, shown) in [
        ("", false),
        ("backend: { capabilities: { add: ['AUTH=EXTERNAL', MAILBOX-REFERRALS] } }", true),
    ] {
        let proxy = Proxy::start(&backend, yaml);
        let dials = backend.dials();
        let mut client = proxy.connect();
        let told = capabilities(&client.line());
        assert!(words.iter().all(|word| told.contains(&(*word).to_owned()) == shown), "{told:?}");
        let answer = client.result("AUTHENTICATE EXTERNAL =");
        assert!(answer.starts_with(if shown { "OK" } else { "NO" }), "{answer}");
        assert_eq!(backend.dials(), dials + usize::from(shown));
        drop(client);
        proxy.stop();
    }
    assert_eq!(backend.received().matches("AUTHENTICATE EXTERNAL =").count(), 1);
}

/// LANGUAGE and CLIENTID are commands before login as well, and here the proxy knows none of them.
#[test]
fn what_is_announced_before_login_works_and_the_rest_is_announced_behind_it() {
    let backend = FakeBackend::imap("AUTH=PLAIN LANGUAGE CLIENTID", |session, command| {
        command.name == "LOGIN"
            && session.send(format!("{} OK [CAPABILITY IMAP4rev1 LANGUAGE X] in\r\n", command.tag))
    });
    let proxy = Proxy::start(&backend, "");
    let mut client = proxy.connect();
    let told = capabilities(&client.line());
    assert!(!told.iter().any(|word| word == "LANGUAGE" || word == "CLIENTID"), "{told:?}");
    assert!(client.result("LANGUAGE EN").starts_with("BAD"));
    let answer = client.result("LOGIN alice secret");
    assert_eq!(answer, "OK [CAPABILITY IMAP4rev1 LANGUAGE X] in");
    proxy.stop();
}

#[test]
fn real_dovecot_is_greeted_for_without_starttls_and_serves_its_mail() {
    let dovecot = Dovecot::start();
    dovecot.deliver("alice", 1, b"Subject: one\r\n\r\nfirst message\r\n");
    let proxy = Proxy::start(&dovecot, "");
    let mut client = proxy.connect();
    let greeting = client.line();
    assert!(greeting.ends_with("] Dovecot (Debian) ready."), "{greeting}");
    let words = capabilities(&greeting);
    for gone in ["STARTTLS", "LOGIN-REFERRALS", "LOGINDISABLED"] {
        assert!(!words.contains(&gone.to_owned()), "{greeting}");
    }
    for kept in ["IMAP4rev1", "SASL-IR", "ID", "IDLE", "LITERAL+", "AUTH=PLAIN", "AUTH=CRAM-MD5"] {
        assert!(words.contains(&kept.to_owned()), "{greeting}");
    }
    assert!(client.result("LOGIN alice secret").starts_with("OK"));
    assert!(client.command("SELECT INBOX").contains(&"* 1 EXISTS".to_owned()));
    let fetched = client.command("FETCH 1 BODY[]").join("\n");
    assert!(fetched.contains("first message"), "{fetched}");
    assert!(client.command("LOGOUT")[0].starts_with("* BYE"));
    assert_eq!(client.end(), End::Orderly);
    proxy.wait_for_ends("logout", 1);
    proxy.stop();
}

#[test]
fn logindisabled_is_passed_on_and_the_log_says_how_to_cure_it() {
    let dovecot = Dovecot::that_wants_tls();
    let proxy = Proxy::start(&dovecot, "");
    let mut client = proxy.connect();
    assert!(capabilities(&client.line()).contains(&"LOGINDISABLED".to_owned()));
    let mut warnings = Vec::new();
    within(PATIENCE, "the log warns of it", || {
        warnings = proxy.log();
        warnings.retain(|line| line.level() == "WARN" && line.message().contains("LOGINDISABLED"));
        !warnings.is_empty()
    });
    assert_eq!(warnings.len(), 1, "{}", proxy.text());
    let cure = warnings[0].field("cure");
    assert!(cure.contains("login_trusted_networks = 127.0.0.1"), "no cure for Dovecot in {cure:?}");
    proxy.stop();
}

#[test]
fn logindisabled_is_hidden_on_demand_and_the_refusal_keeps_its_code() {
    let dovecot = Dovecot::that_wants_tls();
    let proxy = Proxy::start(&dovecot, "backend: { capabilities: { hide: [LOGINDISABLED] } }");
    let mut client = proxy.connect();
    assert!(!client.line().contains("LOGINDISABLED"));
    let answer = client.result("LOGIN alice secret");
    assert!(answer.starts_with("NO [PRIVACYREQUIRED]"), "{answer}");
    proxy.stop();
}

#[test]
fn before_login_the_proxy_answers_by_itself() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let dials = backend.dials();
    let mut client = proxy.connect();
    client.expect("* OK ");
    assert!(client.result("NOOP").starts_with("OK"));
    let id = client.command("ID (\"name\" \"test\")");
    assert!(id[0].starts_with("* ID (\"name\" \"imaps-proxy\""), "{id:?}");
    assert!(client.command("ID NIL")[0].starts_with("* ID ("));
    assert!(client.result("STARTTLS").starts_with("BAD")); // A6
    assert!(client.result("noop").starts_with("OK"));
    assert!(client.result("SELECT INBOX").starts_with("BAD"));
    let bye = client.command("LOGOUT");
    assert!(bye[0].starts_with("* BYE"), "{bye:?}");
    assert!(bye[1].starts_with("t7 OK"), "{bye:?}");
    assert_eq!(client.rest(support::PATIENCE), "");
    assert_eq!(client.end(), End::Orderly);
    assert_eq!(backend.dials(), dials, "the backend was dialled without a login");
    proxy.wait_for_ends("logout", 1);
    proxy.stop();
}

#[test]
fn login_is_taken_in_every_form() {
    let dovecot = Dovecot::start();
    let proxy = Proxy::start(&dovecot, "");
    for command in [
        "a LOGIN alice secret\r\n",
        "a login \"alice\" secret\r\n",
        "a Login alice \"secret\"\r\n",
        "a LOGIN {5+}\r\nalice {6+}\r\nsecret\r\n",
        "a LOGIN {5+}\r\nalice secret\r\n",
        "a LOGIN alice {6+}\r\nsecret\r\n",
    ] {
        let mut client = proxy.connect();
        client.expect("* OK ");
        client.send(command);
        client.expect("a OK");
        assert!(client.result("LOGOUT").starts_with("OK"), "{command}");
    }
    proxy.stop();
}

#[test]
fn synchronising_literals_are_asked_for() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let mut client = proxy.connect();
    client.expect("* OK ");
    client.send("a LOGIN {5}\r\n");
    client.expect("+ ");
    client.send("alice {0}\r\n");
    client.expect("+ ");
    client.send("\r\n");
    client.expect("a NO [AUTHENTICATIONFAILED]");
    client.send("b LOGIN {5}\r\n");
    client.expect("+ ");
    client.send("alice {6}\r\n");
    client.expect("+ ");
    client.send("secret\r\n");
    client.expect("b OK");
    let expected = [(&b"alice"[..], &b""[..]), (b"alice", b"secret")]
        .map(|(user, password)| (user.to_vec(), password.to_vec()));
    assert_eq!(backend.logins(), expected);
    proxy.stop();
}

#[test]
fn user_and_password_arrive_octet_for_octet() {
    // With and without non-synchronising literals at the backend.
    for offered in ["LITERAL+", "LITERAL-", "IDLE"] {
        let backend = FakeBackend::imap(offered, |_, _| false);
        let proxy = Proxy::start(&backend, "");
        let mut expected = Vec::new();
        let long = [b'x'; 4096];
        for octets in [
            &b""[..],
            b" ",
            b"plain",
            b"with space",
            b"quote\"and\\backslash",
            b"user\\name",
            b"\\",
            b"\"",
            b"line\r\nb NOOP\r\n",
            b"\r",
            b"\n",
            b"{5+}",
            b"x {5}",
            b"(list) %*]",
            b"~{4}",
            "stra\u{df}e \u{1f511}".as_bytes(),
            b"\xff\xfe\x80",
            b"\x01\x1b[31m\x7f",
            b"NIL",
            b"nil",
            &long,
        ] {
            let mut client = proxy.connect();
            client.expect("* OK ");
            client.send(client_literals(octets, b"secret\r\n."));
            client.expect("a NO");
            expected.push((octets.to_vec(), b"secret\r\n.".to_vec()));
            client.send(client_literals(b"alice", octets));
            client.expect("a NO");
            expected.push((b"alice".to_vec(), octets.to_vec()));
        }
        // Quoted, with the two characters that are escaped.
        let mut client = proxy.connect();
        client.expect("* OK ");
        client.send("b LOGIN \"dom\\\\user\" \"say \\\"x\\\"\"\r\n");
        client.expect("b NO");
        expected.push((b"dom\\user".to_vec(), b"say \"x\"".to_vec()));
        assert_eq!(backend.logins(), expected, "with {offered}");
        proxy.stop();
    }
}

/// Old servers do not unescape a quoted string.
#[test]
fn a_literal_stays_a_literal_towards_the_server() {
    for (offers, written) in
        [("LITERAL+", "{5+}\r\nalice {6+}\r\nse\"\\et"), ("ID", "{5}\r\nalice {6}\r\nse\"\\et")]
    {
        let backend = FakeBackend::imap(offers, |_, _| false);
        let proxy = Proxy::start(&backend, "");
        let mut client = proxy.connect();
        client.expect("* OK ");
        client.send("a LOGIN {5}\r\n");
        client.expect("+ ");
        client.send("alice {6+}\r\nse\"\\et\r\n");
        client.expect("a NO");
        let received = backend.received();
        assert!(received.contains(&format!(" LOGIN {written}\r\n")), "{received}");
        proxy.stop();
    }
}

fn client_literals(user: &[u8], password: &[u8]) -> Vec<u8> {
    let mut command = format!("a LOGIN {{{}+}}\r\n", user.len()).into_bytes();
    command.extend_from_slice(user);
    command.extend_from_slice(format!(" {{{}+}}\r\n", password.len()).as_bytes());
    command.extend_from_slice(password);
    command.extend_from_slice(b"\r\n");
    command
}

#[test]
fn refused_login_may_be_tried_again_on_the_same_connection() {
    let dovecot = Dovecot::start();
    let proxy = Proxy::start(&dovecot, "");
    let mut client = proxy.connect();
    client.expect("* OK ");
    let answer = client.result("LOGIN alice wrong");
    assert!(answer.starts_with("NO [AUTHENTICATIONFAILED]"), "{answer}");
    assert!(client.result("NOOP").starts_with("OK"));
    assert!(client.result("LOGIN alice secret").starts_with("OK"));
    let logins = proxy.wait_for_logins(2);
    let results: Vec<_> = logins.iter().map(|line| line.field("result")).collect();
    assert_eq!(results, ["rejected", "ok"]);
    assert!(client.result("LOGOUT").starts_with("OK"));
    proxy.stop();
}

/// D1: tags may be used twice, and a completion belongs to the command it follows.
#[test]
fn outcome_is_told_apart_when_a_tag_is_used_twice() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let mut client = proxy.connect();
    client.expect("* OK ");
    client.send("a NOOP\r\na LOGIN alice wrong\r\n");
    client.expect("a OK");
    client.expect("a NO");
    assert_eq!(proxy.sum("imaps_proxy_logins_total", &["result=\"rejected\""]), 1.0);
    assert_eq!(proxy.sum("imaps_proxy_logins_total", &["result=\"ok\""]), 0.0);
    proxy.stop();
}

/// D2: a tag that is not one is never sent back.
#[test]
fn strange_tags_are_answered_untagged_and_never_echoed() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    for tag in ["%s%n", "a\"b", "a(b", "a{b", "a\\b", "\u{e4}", "a\x1b[31mb", "*", "+"] {
        let mut client = proxy.connect();
        client.expect("* OK ");
        client.send(format!("{tag} NOOP\r\n"));
        client.expect("* BAD");
        assert!(client.result("NOOP").starts_with("OK"), "{tag}");
    }
    assert!(!proxy.text().contains('\x1b'));
    proxy.stop();
}

/// RFC 9051 §9: nearly any text, as long as the line allows.
#[test]
fn every_tag_is_answered_under_itself() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let long = "A1._-".repeat(1600);
    for tag in ["?", "1~#~OPAQUE-MAIL~#~", "$1", "#0001", "A/1", "A:1", "=1", "@1", "]", &long] {
        let mut client = proxy.connect();
        client.expect("* OK ");
        client
            .send(format!("{tag} NOOP\r\n{tag} LOGIN alice wrong\r\n{tag} LOGIN alice secret\r\n"));
        for result in ["OK", "NO", "OK"] {
            client.expect(&format!("{tag} {result} "));
        }
    }
    proxy.stop();
}

/// As people type it by hand, and as Debian 12's mutt says AUTHENTICATE.
#[test]
fn blanks_and_specials_are_taken_as_servers_take_them() {
    let dovecot = Dovecot::start();
    let proxy = Proxy::start(&dovecot, "");
    for command in ["a LOGIN alice secret \r\n", "a  LOGIN  alice   secret\r\n"] {
        let mut client = proxy.connect();
        client.expect("* OK ");
        client.send(command);
        client.expect("a OK");
    }
    let mut client = proxy.connect();
    client.expect("* OK ");
    client.send("a AUTHENTICATE PLAIN \r\n");
    client.expect("+ ");
    client.send("AGFsaWNlAHNlY3JldA==\r\n");
    client.expect("a OK");
    proxy.stop();

    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let mut client = proxy.connect();
    client.expect("* OK ");
    assert!(client.result("LOGIN DOMAIN\\alice 50%*off").starts_with("NO"));
    assert_eq!(backend.logins(), [(b"DOMAIN\\alice".to_vec(), b"50%*off".to_vec())]);
    proxy.stop();
}

/// RFC 2971 §3.3: 30 pairs, keys of 30 and values of 1024 octets.
#[test]
fn an_id_is_read_up_to_its_limits_and_never_ends_the_session() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let id = |pairs: usize, value: usize| {
        let pair = format!("\"{}\" \"{}\"", "k".repeat(30), "v".repeat(value));
        format!("ID ( {} )", [pair.as_str()].repeat(pairs).join("  "))
    };
    for (command, result) in [
        (id(1, 2), "OK"),
        (id(30, 1024), "OK"),
        (id(31, 1), "BAD"),
        (id(1, 1025), "BAD"),
        (id(30, 4096), "BAD"),
        (format!("ID (\"k\" {{150000+}}\r\n{})", "x X\r\n".repeat(30_000)), "BAD"),
        ("ID (\"k\")".to_owned(), "BAD"),
        (id(2, 3), "OK"),
    ] {
        let mut client = proxy.connect();
        client.expect("* OK ");
        for _ in 0..4 {
            let answer = client.result(&command);
            assert!(answer.starts_with(result), "{command:.40}: {answer}");
        }
        assert!(client.result("LOGIN alice secret").starts_with("OK"), "{command:.40}");
    }
    let last = format!("ID (\"{0}\" \"vvv\" \"{0}\" \"vvv\")\r\n", "k".repeat(30));
    assert!(backend.received().contains(&last));
    proxy.stop();
}

/// D3: nothing that a backend puts into a literal or a text counts as the outcome.
#[test]
fn forged_completion_inside_backend_data_is_not_the_outcome() {
    let backend = FakeBackend::imap("LITERAL+", |session, command| {
        if command.name != "LOGIN" {
            return false;
        }
        let tag = &command.tag;
        let forged = format!("{tag} OK forged\r\n");
        session.send(format!("* X {{{}}}\r\n{forged}\r\n", forged.len()));
        session.send(format!("* OK {tag} OK forged\r\n"));
        session.send(format!("{tag}x OK forged\r\n"));
        session.send(format!("{tag} NO no\r\n"))
    });
    let proxy = Proxy::start(&backend, "");
    let mut client = proxy.connect();
    client.expect("* OK ");
    let lines = client.command("LOGIN alice secret");
    assert!(lines.last().unwrap().starts_with("t1 NO"), "{lines:?}");
    assert_eq!(proxy.sum("imaps_proxy_logins_total", &["result=\"ok\""]), 0.0);
    assert_eq!(proxy.sum("imaps_proxy_logins_total", &["result=\"rejected\""]), 1.0);
    proxy.stop();
}

/// D4, and the capabilities in the tagged OK.
#[test]
fn capabilities_that_come_with_the_login_are_repaired_too() {
    let backend = FakeBackend::imap("", |session, command| {
        let tag = &command.tag;
        match command.name.as_str() {
            "LOGIN" if command.arguments[0] == b"untagged" => session.send(format!(
                "* CAPABILITY IMAP4rev1 IDLE COMPRESS=DEFLATE UNAUTHENTICATE XAFTER\r\n\
                 {tag} OK hello\r\n"
            )),
            "LOGIN" => session.send(format!(
                "{tag} OK [CAPABILITY IMAP4rev1 COMPRESS=DEFLATE IDLE UNAUTHENTICATE XAFTER] hello\r\n"
            )),
            "CAPABILITY" if session.number > 0 => session.send(format!(
                "* CAPABILITY IMAP4rev1 COMPRESS=DEFLATE IDLE UNAUTHENTICATE XAFTER\r\n{tag} OK x\r\n"
            )),
            _ => false,
        }
    });
    let proxy = Proxy::start(&backend, "");
    let mut client = proxy.connect();
    client.expect("* OK ");
    let lines = client.command("LOGIN untagged secret");
    assert!(lines.last().unwrap().starts_with("t1 OK"), "{lines:?}");
    assert!(!lines.concat().contains("COMPRESS"), "{lines:?}");
    let mut client = proxy.connect();
    client.expect("* OK ");
    let answer = client.result("LOGIN tagged secret");
    assert_eq!(answer, "OK [CAPABILITY IMAP4rev1 IDLE XAFTER] hello");
    let lines = client.command("CAPABILITY");
    assert_eq!(lines[0], "* CAPABILITY IMAP4rev1 IDLE XAFTER");
    proxy.stop();
}

/// D5, the good half.
#[test]
fn what_is_pipelined_behind_a_login_becomes_the_first_bytes_of_the_relay() {
    let dovecot = Dovecot::start();
    let proxy = Proxy::start(&dovecot, "");
    let mut client = proxy.connect();
    client.expect("* OK ");
    client.send("a LOGIN alice secret\r\nb SELECT INBOX\r\nc LOGOUT\r\n");
    client.expect("a OK");
    assert!(client.until("b ").last().unwrap().starts_with("b OK"));
    client.expect("* BYE");
    client.expect("c OK");
    assert_eq!(client.end(), End::Orderly);
    proxy.stop();
}

/// D5, the other half.
#[test]
fn what_is_pipelined_behind_a_refused_login_is_the_next_command() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let mut client = proxy.connect();
    client.expect("* OK ");
    client.send("a LOGIN alice bad\r\nb LOGIN alice {6+}\r\nsecret\r\nc NOOP\r\nd LOGOUT\r\n");
    client.expect("a NO");
    client.expect("b OK");
    client.expect("c OK");
    client.expect("* BYE");
    client.expect("d OK");
    proxy.stop();
}

/// D6.
#[test]
fn authentication_is_cancelled_with_a_star() {
    let dovecot = Dovecot::start();
    let proxy = Proxy::start(&dovecot, "");
    let mut client = proxy.connect();
    client.expect("* OK ");
    client.send("a AUTHENTICATE PLAIN\r\n");
    client.expect("+");
    client.send("*\r\n");
    client.expect("a BAD");
    assert!(client.result("NOOP").starts_with("OK"));
    assert!(client.result("LOGIN alice secret").starts_with("OK"));
    let logins = proxy.wait_for_logins(2);
    let results: Vec<_> = logins.iter().map(|line| line.field("result")).collect();
    assert_eq!(results, ["aborted", "ok"]);
    proxy.stop();
}

/// What every server would say alike is said without one, and a login that is given up costs it nothing.
#[test]
fn backend_is_dialled_when_the_client_has_said_what_needs_no_backend() {
    let offers = "SASL-IR AUTH=PLAIN AUTH=LOGIN AUTH=XOAUTH2 AUTH=SCRAM-SHA-256";
    let backend = FakeBackend::imap(offers, |session, command| {
        if command.name != "AUTHENTICATE" || command.arguments[0] != b"LOGIN" {
            return false;
        }
        session.send("+ VXNlcg==\r\n");
        session.line();
        session.send("+ UGFzcw==\r\n");
        session.line();
        session.send(format!("{} OK Logged in\r\n", command.tag))
    });
    let proxy = Proxy::start(&backend, "");
    let dials = backend.dials();
    for (mechanism, prompt) in [
        ("PLAIN", "+ "),
        ("LOGIN", "+ VXNlcm5hbWU6"),
        ("LOGIN YWxpY2U=", "+ UGFzc3dvcmQ6"),
        ("XOAUTH2", "+ "),
        ("scram-sha-256", "+ "),
    ] {
        let mut client = proxy.connect();
        client.expect("* OK ");
        for (said, answer) in [("*", "BAD"), ("!", "BAD")] {
            client.send(format!("a AUTHENTICATE {mechanism}\r\n"));
            assert_eq!(client.line(), prompt, "{mechanism}");
            client.send(format!("{said}\r\n"));
            client.expect(&format!("a {answer} "));
        }
    }
    assert_eq!(backend.dials(), dials, "the backend was dialled for nothing");
    let mut client = proxy.connect();
    client.expect("* OK ");
    // In one breath, which no client does, and piece by piece.
    client.send("a AUTHENTICATE LOGIN\r\nYWxpY2U=\r\nc2VjcmV0\r\n");
    client.expect("+ VXNlcm5hbWU6");
    client.expect("+ UGFzc3dvcmQ6");
    client.expect("a OK ");
    let mut client = proxy.connect();
    client.expect("* OK ");
    client.send("a AUTHENTICATE PLAIN\r\n");
    client.expect("+ ");
    client.send("AGFsaWNl");
    client.send("AHNlY3JldA==\r\n");
    client.expect("a OK ");
    let received = backend.received();
    assert!(received.contains(" AUTHENTICATE LOGIN\r\nYWxpY2U=\r\nc2VjcmV0\r\n"), "{received}");
    assert!(received.contains(" AUTHENTICATE PLAIN\r\nAGFsaWNlAHNlY3JldA==\r\n"), "{received}");
    let logins = proxy.wait_for_logins(12);
    assert!(logins[..10].iter().all(|line| line.field("result") == "aborted"), "{logins:?}");
    assert_eq!(logins[10].field("user"), "alice");
    proxy.stop();
}

/// What the server does not offer is refused without it, and never as a wrong password is.
#[test]
fn login_that_the_backend_does_not_offer_is_refused_without_it() {
    let offers = "LOGINDISABLED AUTH=PLAIN AUTH=SCRAM-SHA-1-PLUS";
    let backend = FakeBackend::imap(offers, |_, _| false);
    let proxy = Proxy::start(&backend, "");
    let dials = backend.dials();
    let mut client = proxy.connect();
    client.expect("* OK ");
    // More of them than there may be bad commands: a client goes through what it knows.
    for mechanism in ["CRAM-MD5", "XODD AAAA", "SCRAM-SHA-1-PLUS", "GSSAPI", "DIGEST-MD5"] {
        let answer = client.result(&format!("AUTHENTICATE {mechanism}"));
        assert_eq!(answer, "NO Unsupported authentication mechanism.");
    }
    let answer = client.result("LOGIN alice secret");
    assert!(answer.starts_with("NO [PRIVACYREQUIRED] "), "{answer}");
    assert_eq!(backend.dials(), dials, "the backend was dialled for nothing");
    assert!(client.result("AUTHENTICATE PLAIN AGFsaWNlAHNlY3JldA==").starts_with("OK"));
    let logins = proxy.wait_for_logins(7);
    assert!(logins[..6].iter().all(|line| line.field("result") == "aborted"), "{logins:?}");
    assert_eq!(logins[5].field("user"), "alice");
    assert_eq!(logins[6].field("result"), "ok");
    proxy.stop();
    // What the operator says counts, of both.
    let hidden = "backend: { capabilities: { hide: [LOGINDISABLED], add: [AUTH=XODD] } }";
    let proxy = Proxy::start(&backend, hidden);
    let mut client = proxy.connect();
    client.expect("* OK ");
    assert_eq!(client.result("AUTHENTICATE XODD"), "NO unknown mechanism", "the server's words");
    assert!(client.result("LOGIN alice secret").starts_with("OK"));
    proxy.stop();
}

/// D7 and B6: what is not base64 goes no further.
#[test]
fn broken_base64_never_reaches_the_backend() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    for broken in
        ["!!!!", "AAA", "=AAA", "AAA=BBB", "AA=A", "A===", "AAAA=", "AAAA\tAAAA", "\"AAAA\""]
    {
        let mut client = proxy.connect();
        client.expect("* OK ");
        client.send(format!("a AUTHENTICATE PLAIN {broken}\r\n"));
        client.expect("a BAD");
        client.send("b AUTHENTICATE PLAIN\r\n");
        client.expect("+");
        client.send(format!("{broken}\r\n"));
        client.expect("b BAD");
        assert!(client.result("LOGIN alice secret").starts_with("OK"), "{broken}");
        assert!(!backend.received().contains(broken), "{broken} arrived");
    }
    proxy.stop();
}

/// D7: `=` is the empty initial response.
#[test]
fn empty_initial_response_is_passed_on() {
    let backend = FakeBackend::imap("SASL-IR AUTH=PLAIN", |session, command| {
        let empty = command.arguments.get(1).is_some_and(|response| response == b"=");
        command.name == "AUTHENTICATE"
            && empty
            && session.send(format!("{} NO no\r\n", command.tag))
    });
    let proxy = Proxy::start(&backend, "");
    let mut client = proxy.connect();
    client.expect("* OK ");
    let answer = client.result("AUTHENTICATE PLAIN =");
    assert!(answer.starts_with("NO"), "{answer}");
    backend.wait_for("AUTHENTICATE PLAIN =\r\n");
    proxy.stop();
}

/// RFC 4959: an initial response must not be sent to a server that does not offer SASL-IR.
#[test]
fn initial_response_is_kept_back_for_a_backend_without_sasl_ir() {
    let backend = FakeBackend::imap("AUTH=PLAIN", |session, command| {
        // A server of 2003 takes a second argument for a mistake.
        command.name == "AUTHENTICATE"
            && command.arguments.len() > 1
            && session.send(format!("{} BAD too many arguments\r\n", command.tag))
    });
    let proxy = Proxy::start(&backend, "");
    let mut client = proxy.connect();
    client.expect("* OK ");
    let answer = client.result("AUTHENTICATE PLAIN AGFsaWNlAHNlY3JldA==");
    assert!(answer.starts_with("OK"), "{answer}");
    backend.wait_for("AGFsaWNlAHNlY3JldA==\r\n");
    proxy.stop();
}

/// D8: whose password it is, not whose mail.
#[test]
fn log_names_the_one_who_authenticates() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let mut client = proxy.connect();
    client.expect("* OK ");
    assert!(client.result("AUTHENTICATE PLAIN dXNlcjEAdGVzdABzZWNyZXQ=").starts_with("OK"));
    let login = &proxy.wait_for_logins(1)[0];
    assert_eq!(login.field("user"), "test", "{login:?}");
    assert_eq!(login.field("mechanism").to_ascii_uppercase(), "PLAIN");
    proxy.stop();
}

/// D12 and D13: what tells a guesser which half was wrong is replaced, what helps a person passes.
#[test]
fn refusals_keep_known_codes_and_lose_their_text_otherwise() {
    let backend = FakeBackend::imap("", |session, command| {
        if command.name != "LOGIN" {
            return false;
        }
        let code = String::from_utf8_lossy(&command.arguments[0]).into_owned();
        session.send(format!("{} NO {code}no such user bob\r\n", command.tag))
    });
    let proxy = Proxy::start(&backend, "");
    let answer = |code: &str| {
        let mut client = proxy.connect();
        client.expect("* OK ");
        client.result(&format!("LOGIN \"{code}\" x"))
    };
    for code in
        ["", "[AUTHENTICATIONFAILED] ", "[REFERRAL IMAP://evil/] ", "[NONEXISTENT] ", "[X Y] "]
    {
        assert_eq!(answer(code), answer(""));
        assert!(answer(code).starts_with("NO [AUTHENTICATIONFAILED] "), "{}", answer(code));
        assert!(!answer(code).contains("bob"), "{}", answer(code));
    }
    for code in [
        "UNAVAILABLE",
        "LIMIT",
        "EXPIRED",
        "CONTACTADMIN",
        "PRIVACYREQUIRED",
        "AUTHORIZATIONFAILED",
    ] {
        let answer = answer(&format!("[{code}] "));
        assert!(answer.starts_with(&format!("NO [{code}] ")), "{answer}");
    }
    proxy.stop();
}

/// D13 on the good road: a referral in the tagged OK is removed.
#[test]
fn referral_of_an_accepted_login_is_removed() {
    let backend = FakeBackend::imap("", |session, command| {
        command.name == "LOGIN"
            && session
                .send(format!("{} OK [REFERRAL IMAP://evil.example/] welcome\r\n", command.tag))
    });
    let proxy = Proxy::start(&backend, "");
    let mut client = proxy.connect();
    client.expect("* OK ");
    let answer = client.result("LOGIN alice secret");
    assert!(answer.starts_with("OK"), "{answer}");
    assert!(!answer.contains("REFERRAL"), "{answer}");
    proxy.stop();
}

#[test]
fn fields_of_an_id_that_a_backend_would_believe_are_removed() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let mut client = proxy.connect();
    client.expect("* OK ");
    let id = "ID (\"name\" \"Thunder bird\" \"x-originating-ip\" \"6.6.6.6\" \"version\" {3+}\r\n1.2 \
              \"X-Session-Id\" \"forged\" \"x-forward-master\" \"root\" \
              \" x-session-id \" \"forged\" \"x-proxy-ttl\" NIL)";
    assert!(client.result(id).starts_with("OK"));
    assert!(client.result("LOGIN alice secret").starts_with("OK"));
    let received = backend.received();
    assert!(received.contains("Thunder bird"), "{received}");
    assert!(received.contains("1.2"), "{received}");
    for forged in ["6.6.6.6", "forged", "x-", "X-", "root"] {
        assert!(!received.contains(forged), "{forged} arrived: {received}");
    }
    proxy.stop();
}

#[test]
fn backend_without_id_is_not_sent_one() {
    let backend = FakeBackend::imap("AUTH=PLAIN", |_, _| false);
    let proxy = Proxy::start(&backend, "");
    let mut client = proxy.connect();
    client.expect("* OK ");
    assert!(client.result("ID (\"name\" \"x\")").starts_with("OK"));
    assert!(client.result("LOGIN alice secret").starts_with("OK"));
    assert!(!backend.received().contains(" ID "), "{}", backend.received());
    proxy.stop();
}

#[test]
fn first_greeting_line_may_be_a_notice_before_the_real_one() {
    let backend = FakeBackend::raw(|session| {
        session.send("* OK Waiting for authentication process to respond..\r\n");
        let offered = "IMAP4rev1 AUTH=PLAIN";
        session.greet(offered);
        session.serve(offered, &|_, _| false);
    });
    let proxy = Proxy::start(&backend, "");
    let mut client = proxy.connect();
    assert!(client.line().contains("AUTH=PLAIN"));
    assert!(client.result("LOGIN alice secret").starts_with("OK"));
    assert!(client.result("NOOP").starts_with("OK"));
    proxy.stop();
}

#[test]
fn backend_that_announces_nothing_in_its_greeting_is_asked() {
    let backend = FakeBackend::raw(|session| {
        session.send("* OK old server\r\n");
        session.serve("IMAP4 IMAP4rev1 AUTH=LOGIN", &|_, _| false);
    });
    let proxy = Proxy::start(&backend, "");
    let mut client = proxy.connect();
    assert_eq!(client.line(), "* OK [CAPABILITY IMAP4 IMAP4rev1 AUTH=LOGIN] old server");
    assert!(client.result("LOGIN alice secret").starts_with("OK"));
    proxy.stop();
}

/// What a backend may do instead of greeting, by number; 0 is to behave.
fn misbehave(session: &mut Session, fault: usize) -> bool {
    match fault {
        1 => true, // accepts and closes
        2 => session.send("\0\x01\x02garbage\u{e4}\r\n"),
        3 => session.send("* PREAUTH you are root\r\n"),
        4 => session.send("* BYE not today\r\n"),
        5 => session.send("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"),
        6 => session.send("x".repeat(200_000)),
        7 => session.send("* OK [CAPABILITY IMAP4rev1"), // and closes in the middle
        8 => {
            session.reset();
            true
        }
        9 => session.send("220 smtp.example.org ESMTP\r\n"),
        10 => {
            // Says nothing until the other end gives up.
            session.drain();
            true
        }
        11 => {
            // A byte now and then: the deadline is one for the whole greeting.
            while session.send("*") {
                thread::sleep(Duration::from_millis(50));
            }
            true
        }
        12 => {
            // Greets, talks on, and answers no command.
            while session.send("* OK [ALERT] soon\r\n") {
                thread::sleep(Duration::from_millis(20));
            }
            true
        }
        _ => false,
    }
}

/// Those before a greeting.
const FAULTS: usize = 11;

#[test]
fn broken_backend_gets_no_password_and_the_client_may_try_again() {
    let fault = Arc::new(AtomicUsize::new(0));
    let current = Arc::clone(&fault);
    let backend = FakeBackend::raw(move |session| {
        if !misbehave(session, current.load(Ordering::SeqCst)) {
            session.greet("IMAP4rev1 AUTH=PLAIN");
            session.serve("IMAP4rev1 AUTH=PLAIN", &|_, _| false);
        }
        session.linger();
    });
    let proxy = Proxy::start(&backend, "timeouts: { backend_greeting: 500ms }");
    for number in 1..=FAULTS {
        fault.store(number, Ordering::SeqCst);
        let mut client = proxy.connect();
        client.expect("* OK ");
        let answer = client.result("LOGIN alice c4nary");
        assert!(answer.starts_with("NO [UNAVAILABLE]"), "fault {number}: {answer}");
        let answer = client.result("AUTHENTICATE PLAIN AGFsaWNlAGM0bmFyeQ==");
        assert!(answer.starts_with("NO [UNAVAILABLE]"), "fault {number}: {answer}");
        fault.store(0, Ordering::SeqCst);
        let answer = client.result("LOGIN alice secret");
        assert!(answer.starts_with("OK"), "after fault {number}: {answer}");
        assert!(client.result("LOGOUT").starts_with("OK"));
    }
    let received = backend.received();
    assert!(!received.contains("c4nary") && !received.contains("AGFsaWNl"), "{received}");
    #[expect(clippy::cast_precision_loss, reason = "a dozen")]
    let twice = (2 * FAULTS) as f64;
    assert_eq!(proxy.sum("imaps_proxy_logins_total", &["result=\"unavailable\""]), twice);
    proxy.stop();
}

#[test]
fn backend_that_was_never_seen_gives_bye_until_it_is_seen() {
    for number in 1..=FAULTS + 1 {
        let healed = Switch::default();
        let switch = healed.clone();
        let backend = FakeBackend::raw(move |session| {
            if switch.is_set() || !misbehave(session, number) {
                session.greet("IMAP4rev1 AUTH=PLAIN");
                session.serve("IMAP4rev1 AUTH=PLAIN", &|_, _| false);
            }
            session.linger();
        });
        let proxy = Proxy::starting(&backend)
            .config("timeouts: { backend_greeting: 300ms }")
            .not_ready()
            .start();
        let mut client = proxy.connect();
        let bye = client.rest(support::PATIENCE);
        assert!(bye.starts_with("* BYE [UNAVAILABLE] "), "fault {number}: {bye:?}");
        assert_eq!(bye.lines().count(), 1, "{bye}");
        assert_eq!(client.end(), End::Orderly);
        let (status, body) = proxy.get("/readyz");
        assert_eq!(status, 503, "fault {number}: {body}");
        healed.set();
        support::wait_until("the backend is seen", || proxy.get("/readyz").0 == 200);
        let mut client = proxy.connect();
        client.log_in("alice", "secret");
        drop(client);
        proxy.stop();
    }
}

#[test]
fn backend_that_is_down_or_has_no_address_is_unavailable() {
    for address in [format!("127.0.0.1:{}", free_port()), "no-such-host.invalid:143".to_owned()] {
        let backend = Unreachable(address);
        let proxy = Proxy::starting(&backend).not_ready().start();
        let mut client = proxy.connect();
        let bye = client.rest(support::PATIENCE);
        assert!(bye.starts_with("* BYE [UNAVAILABLE] "), "{}: {bye:?}", backend.address());
        assert_eq!(proxy.get("/readyz").0, 503);
        assert_eq!(proxy.get("/healthz").0, 200);
        let up = format!("imaps_proxy_backend_up{{backend=\"{}\"}}", backend.address());
        assert_eq!(proxy.metric(&up), 0.0);
        proxy.stop();
    }
}

#[test]
fn servers_are_tried_in_order() {
    let backend = FakeBackend::plain();
    let down = free_port();
    let proxy = Proxy::start(
        &backend,
        &format!(
            "backend: {{ servers: [{{ address: '127.0.0.1:{down}' }}, {{ address: '{}' }}] }}",
            backend.address()
        ),
    );
    let mut client = proxy.connect();
    client.log_in("alice", "secret");
    assert_eq!(proxy.wait_for_logins(1)[0].field("backend"), backend.address());
    proxy.stop();
}

/// G12: once a password was sent somewhere it is not sent elsewhere.
#[test]
fn password_goes_to_one_server_only() {
    let second = FakeBackend::plain();
    let first = FakeBackend::imap("", |session, command| {
        if command.name == "LOGIN" {
            session.shut(); // dies with the password in hand
            return true;
        }
        false
    });
    let proxy = Proxy::start(
        &first,
        &format!(
            "backend: {{ servers: [{{ address: '{}' }}, {{ address: '{}' }}] }}",
            first.address(),
            second.address()
        ),
    );
    let mut client = proxy.connect();
    client.expect("* OK ");
    assert!(client.result("LOGIN alice secret").starts_with("NO [UNAVAILABLE]"));
    assert_eq!(first.logins().len(), 1);
    assert_eq!(second.logins().len(), 0);
    proxy.stop();
}

#[test]
fn backend_that_goes_or_is_silent_in_the_middle_of_a_login_is_unavailable() {
    let silent = Switch::default();
    let switch = silent.clone();
    let backend = FakeBackend::imap("", move |session, command| {
        if command.name != "LOGIN" {
            return false;
        }
        if switch.is_set() {
            session.drain();
        }
        session.shut();
        true
    });
    let proxy = Proxy::start(&backend, "timeouts: { backend_login: 500ms }");
    let mut client = proxy.connect();
    client.expect("* OK ");
    assert!(client.result("LOGIN alice secret").starts_with("NO [UNAVAILABLE]"));
    silent.set();
    assert!(client.result("LOGIN alice secret").starts_with("NO [UNAVAILABLE]"));
    assert!(client.result("NOOP").starts_with("OK"));
    let logins = proxy.wait_for_logins(2);
    let results: Vec<_> = logins.iter().map(|line| line.field("result")).collect();
    assert_eq!(results, ["unavailable", "unavailable"]);
    proxy.stop();
}

#[test]
fn backend_answer_before_the_result_is_bounded() {
    let backend = FakeBackend::imap("", |session, command| {
        if command.name != "LOGIN" {
            return false;
        }
        // For ever, in lines that are too long or too many.
        let line = if command.arguments[0] == b"long" { 100_000 } else { 70 };
        while session.send(format!("* OK {}\r\n", "x".repeat(line))) {}
        true
    });
    let proxy = Proxy::start(&backend, "");
    for user in ["long", "many"] {
        let mut client = proxy.connect();
        client.expect("* OK ");
        client.send(format!("a LOGIN {user} secret\r\n"));
        let last = client.until("a ").pop().unwrap();
        assert!(last.starts_with("a NO [UNAVAILABLE]"), "{last}");
    }
    proxy.stop();
}

#[test]
fn login_and_session_lines_hold_what_is_promised() {
    let dovecot = Dovecot::start();
    let proxy = Proxy::start(&dovecot, "");
    let mut client = proxy.connect();
    let address = client.tcp().local_addr().unwrap().to_string();
    client.log_in("alice", "secret");
    let login = proxy.wait_for_logins(1).remove(0);
    assert_eq!(login.field("user"), "alice");
    assert_eq!(login.field("mechanism"), "LOGIN");
    assert_eq!(login.field("result"), "ok");
    assert_eq!(login.field("backend"), dovecot.address());
    assert!(address.starts_with(&login.field("client")), "{login:?}");
    assert!(login.number("duration_seconds") < 20.0);
    assert!(client.result("LOGOUT").starts_with("OK"));
    proxy.wait_for_ends("logout", 1);
    let session = proxy.sessions().pop().unwrap();
    assert_eq!(session.field("session"), login.field("session"));
    assert!(!session.field("session").is_empty());
    assert!(address.starts_with(&session.field("client")), "{session:?}");
    // As configured, like the metric's label.
    assert_eq!(session.field("listener"), "127.0.0.1:0");
    assert_eq!(session.field("tls_version"), "TLSv1.3");
    assert!(session.field("tls_cipher").starts_with("TLS"), "{session:?}");
    assert_eq!(session.field("tls_group"), "X25519MLKEM768");
    assert_eq!(session.field("sni"), "localhost");
    assert_eq!(session.field("backend"), dovecot.address());
    assert_eq!(session.field("user"), "alice");
    assert!(session.number("client_to_backend") > 0.0, "{session:?}");
    assert!(session.number("backend_to_client") > 0.0, "{session:?}");
    assert!(session.number("duration_seconds") < 60.0, "{session:?}");
    proxy.stop();
}

#[test]
fn many_users_log_in_at_the_same_time() {
    let dovecot = Dovecot::start();
    let proxy = Proxy::start(&dovecot, "");
    thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                let mut client: Client = proxy.logged_in();
                assert!(client.result("SELECT INBOX").starts_with("OK"));
                assert!(client.result("LOGOUT").starts_with("OK"));
            });
        }
    });
    dovecot.wait_for_connections(0);
    proxy.wait_for_ends("logout", 20);
    proxy.stop();
}

const PATIENT: &str = "{ timeouts: { login: 55s, backend_login: 50s, backend_greeting: 50s, write: 50s }, \
    backend: { hold: 50s } }";

/// Logins by two clients; one of them has more to say behind it.
fn two_log_in(proxy: &Proxy<'_>) -> Vec<Client> {
    let log_in = |commands: &str| {
        let mut client = proxy.connect();
        client.expect("* OK ");
        client.send(commands);
        client
    };
    ["a LOGIN alice x\r\n", "a LOGIN alice x\r\nb NOOP\r\n"].map(log_in).into()
}

/// A reset tells that nobody waits for the answer, also behind commands that nobody has read.
#[test]
fn client_that_resets_ends_dial_wait_and_exchange_at_once() {
    #[derive(Clone, Copy, PartialEq)]
    enum Stage {
        Exchange,
        Dial,
        Wait,
    }
    for stage in [Stage::Exchange, Stage::Dial, Stage::Wait] {
        let known = Switch::default();
        let goes_on = known.clone();
        let backend = FakeBackend::raw(move |session| {
            match stage {
                Stage::Wait if goes_on.is_set() => return,
                Stage::Dial if goes_on.is_set() => {}
                _ => {
                    session.greet("IMAP4rev1");
                    session.serve("IMAP4rev1", &|session, command| {
                        let is_login = command.name == "LOGIN";
                        if is_login {
                            session.drain();
                        }
                        is_login
                    });
                }
            }
            session.drain();
        });
        let proxy = Proxy::start(&backend, PATIENT);
        let sessions = format!("imaps_proxy_backend_sessions{{backend=\"{}\"}}", backend.address());
        known.set();
        let clients = two_log_in(&proxy);
        let waiting = match stage {
            Stage::Wait => "imaps_proxy_hold_waiting",
            Stage::Dial | Stage::Exchange => &sessions,
        };
        proxy.wait_for_metric(waiting, 2.0);
        if stage == Stage::Exchange {
            wait_until("both logins have come", || {
                backend.received().matches("LOGIN").count() == 2
            });
        }
        clients.into_iter().for_each(Client::vanish);
        proxy.wait_for_ends("client_vanished", 2);
        proxy.wait_for_metric(waiting, 0.0);
        proxy.stop();
    }
}

/// One that has said all it wants to say still gets its answer.
#[test]
fn client_that_ends_its_side_behind_its_login_gets_the_answer() {
    let answer = Switch::default();
    let go_on = answer.clone();
    let backend = FakeBackend::imap("", move |_, command| {
        if command.name == "LOGIN" {
            wait_until("the client has ended its side", || go_on.is_set());
        }
        false
    });
    let proxy = Proxy::start(&backend, PATIENT);
    for orderly in [true, false] {
        answer.clear();
        let mut client = proxy.connect();
        client.expect("* OK ");
        client.send("a LOGIN alice secret\r\n");
        if orderly {
            client.half_close()
        } else {
            client.cut()
        }
        wait_until("the login is at the server", || {
            backend.received().matches("LOGIN").count() == if orderly { 1 } else { 2 }
        });
        answer.set();
        client.expect("a OK");
    }
    proxy.stop();
}
