//! What a server says while it decides on a login: read as clients read it, judged, and passed on.

mod support;

use support::{Backend, FakeBackend, PATIENCE, Proxy, Switch, within};

const OFFERED: &str = "IMAP4rev1 ID AUTH=PLAIN";
const FAILED: &str = "NO [AUTHENTICATIONFAILED] Authentication failed.";

/// A server that says what the password is, `~` for the tag and `|` for a line's end, and closes if that is no
/// result.
fn parrot() -> FakeBackend {
    FakeBackend::imap("ID LITERAL+ AUTH=PLAIN", |session, command| {
        if command.name != "LOGIN" || command.arguments[1] == b"secret" {
            return false;
        }
        let said = String::from_utf8_lossy(&command.arguments[1]).into_owned();
        session.send(said.replace('~', &command.tag).replace('|', "\r\n"));
        if !said.contains('~') {
            session.stop();
        }
        true
    })
}

/// What the client `user` is told by a server that says `said`, and the result in the log.
fn told_to(proxy: &Proxy<'_>, user: &str, said: &str) -> (Vec<String>, String) {
    let before = proxy.logins().len();
    let mut client = proxy.connect();
    client.expect("* OK ");
    client.send(format!("a LOGIN \"{user}\" {{{}+}}\r\n{said}\r\n", said.len()));
    let lines = client.until("a ");
    assert!(client.result("NOOP").starts_with("OK"), "the session goes on: {said}");
    let login = proxy.wait_for_logins(before + 1).pop().unwrap();
    (lines, login.field("result"))
}

fn told(proxy: &Proxy<'_>, said: &str) -> (Vec<String>, String) {
    told_to(proxy, "bob", said)
}

/// Old servers and what stands before them write these where a response should begin.
#[test]
fn empty_lines_and_blanks_before_a_response_change_nothing() {
    let backend = FakeBackend::raw(|session| {
        session.send(format!("\r\n \r\n* OK [CAPABILITY {OFFERED}] hi\r\n"));
        session.serve(OFFERED, &|session, command| {
            let tag = &command.tag;
            match command.name.as_str() {
                "CAPABILITY" => session
                    .send(format!("\r\n * CAPABILITY {OFFERED}\r\n\r\n\r\n {tag} OK done\r\n")),
                "ID" => session.send(format!("\r\n* ID NIL\r\n \r\n{tag} OK done\r\n")),
                "LOGIN" if command.arguments[1] == b"secret" => {
                    session.send(format!("\r\n{tag} OK in\r\n"))
                }
                "LOGIN" => session.send(format!(" {tag}  NO Login failed.\r\n")),
                _ => false,
            }
        });
    });
    for config in ["", "backend: { identity: dovecot-id }"] {
        let proxy = Proxy::start(&backend, config);
        let mut client = proxy.connect();
        assert_eq!(client.line(), format!("* OK [CAPABILITY {OFFERED}] hi"));
        assert!(client.result("ID (\"name\" \"x\")").starts_with("OK"));
        let refused = client.result("LOGIN alice wrong");
        assert!(refused.starts_with("NO [AUTHENTICATIONFAILED]"), "{refused}");
        assert_eq!(client.result("LOGIN alice secret"), "OK in");
        assert!(client.result("NOOP").starts_with("OK"));
        drop(client);
        proxy.stop();
    }
}

#[test]
fn empty_lines_without_end_are_no_greeting() {
    let backend = FakeBackend::raw(|session| while session.send("\r\n".repeat(1000)) {});
    let proxy = Proxy::starting(&backend).not_ready().start();
    proxy.connect().expect("* BYE [UNAVAILABLE]");
    within(PATIENCE, "the log says that it does not greet", || {
        proxy.text().contains("it does not greet as an IMAP server does")
    });
    proxy.stop();
}

/// A server that looks up the client's address first may need longer than the default.
#[test]
fn a_late_greeting_names_the_setting_in_a_look_and_in_a_session() {
    let silent = Switch::default();
    silent.set();
    let switch = silent.clone();
    let backend = FakeBackend::raw(move |session| {
        if switch.is_set() {
            session.drain();
        }
        session.greet(OFFERED);
        session.serve(OFFERED, &|_, _| false);
    });
    let config = "timeouts: { backend_greeting: 300ms }\nbackend: { health: { interval: 1h } }";
    let proxy = Proxy::starting(&backend).config(config).not_ready().start();
    let late = "no greeting within 300ms (timeouts.backend_greeting)";
    let said = || proxy.log().iter().filter(|line| line.field("error").contains(late)).count();
    within(PATIENCE, "the look is logged", || said() == 1);
    silent.clear();
    support::wait_until("the backend is seen", || proxy.get("/readyz").0 == 200);
    let mut client = proxy.connect();
    client.expect("* OK ");
    silent.set();
    assert!(client.result("LOGIN alice secret").starts_with("NO [UNAVAILABLE]"));
    within(PATIENCE, "the session's dial is logged", || said() == 2);
    proxy.stop();
}

/// A master user's password opens another user's mailbox: both belong in the log.
#[test]
fn log_names_whose_mail_is_wanted_beside_whose_password_it_is() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    for message in ["dXNlcjEAdGVzdABzZWNyZXQ=", "AHRlc3QAc2VjcmV0", "dGVzdAB0ZXN0AHNlY3JldA=="] {
        let mut client = proxy.connect();
        client.expect("* OK ");
        assert!(client.result(&format!("AUTHENTICATE PLAIN {message}")).starts_with("OK"));
    }
    let logins = proxy.wait_for_logins(3);
    assert!(logins.iter().all(|line| line.field("user") == "test"), "{logins:?}");
    assert_eq!(logins[0].field("authorization"), "user1");
    assert!(!logins[1].has("authorization") && !logins[2].has("authorization"), "{logins:?}");
    proxy.stop();
}

/// RFC 9051 §7.1: the text behind ALERT MUST be presented to the person.
#[test]
fn alerts_reach_the_person_whatever_comes_of_the_login() {
    let backend = parrot();
    let proxy = Proxy::start(&backend, "");
    let broke_off = "a NO [UNAVAILABLE] The mail server broke off the login, try again later.";
    for (said, lines, result) in [
        ("~ NO [ALERT] country blocked|", vec!["a NO [ALERT] country blocked"], "rejected"),
        (
            "~ NO [WEBALERT https://example.org/unlock] Web login required.|",
            vec!["a NO [WEBALERT https://example.org/unlock] Web login required."],
            "rejected",
        ),
        (
            "* OK [ALERT] over quota|* OK hi|~ NO Login failed.|",
            vec!["* OK [ALERT] over quota", &format!("a {FAILED}")],
            "rejected",
        ),
        (
            "* BYE [ALERT] Fatal error: No such file or directory|",
            vec!["* NO [ALERT] Fatal error: No such file or directory", broke_off],
            "unavailable",
        ),
        (
            "* BYE [ALERT] closed for today|~ NO [UNAVAILABLE] closed|",
            vec!["* NO [ALERT] closed for today", "a NO [UNAVAILABLE] closed"],
            "unavailable",
        ),
        ("* BYE gone fishing|", vec!["a NO [UNAVAILABLE] gone fishing"], "unavailable"),
        ("* OK wait|", vec![broke_off], "unavailable"),
        ("* OK [ALERT] over quota|~ OK in|", vec!["* OK [ALERT] over quota", "a OK in"], "ok"),
    ] {
        assert_eq!(
            told(&proxy, said),
            (lines.iter().map(ToString::to_string).collect(), result.to_owned())
        );
    }
    proxy.stop();
}

#[test]
fn alerts_of_greetings_reach_the_person_who_logs_in() {
    let down = Switch::default();
    let switch = down.clone();
    let backend = FakeBackend::raw(move |session| {
        if switch.is_set() {
            session.send("* BYE [ALERT] too many from here\r\n");
            return session.linger();
        }
        session.send("* OK [ALERT] maintenance tonight\r\n");
        session.serve(OFFERED, &|session, command| {
            command.name == "ID"
                && session.send(format!("* OK [ALERT] hello\r\n{} OK done\r\n", command.tag))
        });
    });
    for (config, alerts) in [("", 1), ("backend: { identity: dovecot-id }", 2)] {
        let proxy = Proxy::start(&backend, config);
        let mut client = proxy.connect();
        client.expect("* OK ");
        let expected = ["* OK [ALERT] maintenance tonight", "* OK [ALERT] hello"];
        let lines = client.command("LOGIN alice wrong");
        assert_eq!(lines[..alerts], expected[..alerts]);
        assert!(lines[alerts].starts_with("t1 NO [AUTHENTICATIONFAILED]"), "{lines:?}");
        let lines = client.command("LOGIN alice secret");
        assert_eq!(lines[..alerts], expected[..alerts]);
        assert_eq!(lines[alerts], "t2 OK Logged in");
        drop(client);
        let mut client = proxy.connect();
        client.expect("* OK ");
        down.set();
        let lines = client.command("LOGIN alice secret");
        down.clear();
        assert_eq!(lines[0], "* NO [ALERT] too many from here");
        assert!(lines[1].starts_with("t1 NO [UNAVAILABLE]"), "{lines:?}");
        drop(client);
        proxy.stop();
    }
}

/// Bans are made of what is `rejected`.
#[test]
fn an_outage_is_no_wrong_password_and_a_guess_is_no_outage() {
    let backend = parrot();
    let proxy = Proxy::start(&backend, "");
    for (said, result) in [
        ("NO Server Unavailable. 15", "unavailable"),
        ("NO System error, try again later", "unavailable"),
        ("NO Login failed: authentication server down/unavailable", "unavailable"),
        ("NO Temporary authentication failure.", "unavailable"),
        ("NO [UNAVAILABLE] later", "unavailable"),
        ("NO [LIMIT 10] enough", "unavailable"),
        ("BAD User is authenticated but not connected.", "unavailable"),
        ("BAD [UNAVAILABLE] Service temporarily unavailable", "unavailable"),
        ("NO [ALERT] Unsupported authentication mechanism.", "aborted"),
        ("NO [PRIVACYREQUIRED] Use TLS", "unavailable"),
        ("NO [X-ODD a b] what it means", "rejected"),
        ("NO Something that nobody knows", "rejected"),
        ("BAD Missing argument", "rejected"),
    ] {
        let lines = vec![format!("a {said}")];
        assert_eq!(told(&proxy, &format!("~ {said}|")), (lines, result.to_owned()));
    }
    for said in [
        "NO Login failed.",
        "NO Invalid login credentials",
        "NO no such user",
        "NO [NONEXISTENT] no",
        "NO [ALERT] wrong password",
    ] {
        let lines = vec![format!("a {FAILED}")];
        assert_eq!(told(&proxy, &format!("~ {said}|")), (lines, "rejected".to_owned()));
    }
    // The name is the guesser's, and no word of the server's.
    let said = "~ NO refused: Server.Unavailable|";
    assert_eq!(told(&proxy, said).1, "unavailable");
    assert_eq!(told_to(&proxy, "server.unavailable", said).1, "rejected");
    proxy.stop();
}

#[test]
fn what_one_user_may_not_do_puts_no_server_in_doubt() {
    let (first, second) = (parrot(), FakeBackend::plain());
    let servers = format!(
        "backend: {{ servers: [{{ address: '{}' }}, {{ address: '{}' }}] }}",
        first.address(),
        second.address()
    );
    let proxy = Proxy::start(&first, &servers);
    let refusals = ["NO [LIMIT] enough", "NO [INUSE] locked", "NO Server busy", "BAD TLS required"];
    for (round, said) in refusals.iter().enumerate() {
        for _ in 0..3 {
            assert_eq!(told(&proxy, &format!("~ {said}|")).1, "unavailable");
        }
        proxy.connect().log_in("alice", "secret");
        proxy.wait_for_logins(4 * (round + 1));
    }
    assert!(second.logins().is_empty(), "the first one still has everybody");
    proxy.stop();
}

#[test]
fn a_server_that_is_late_with_its_result_is_said_to_be_and_the_setting_too() {
    let backend = FakeBackend::imap("", |session, command| {
        if command.name == "LOGIN" {
            session.drain();
        }
        false
    });
    let proxy = Proxy::start(&backend, "timeouts: { backend_login: 300ms }");
    let mut client = proxy.connect();
    client.expect("* OK ");
    let answer = client.result("LOGIN alice secret");
    assert_eq!(answer, "NO [UNAVAILABLE] The mail server did not answer in time, try again later.");
    within(PATIENCE, "the log names the setting", || {
        let late = "no result within 300ms (timeouts.backend_login)";
        proxy.log().iter().any(|line| line.field("why") == late)
    });
    proxy.stop();
}
