//! What a server says while it decides on a login: read as clients read it, judged, and passed on.

mod support;

use support::{FakeBackend, PATIENCE, Proxy, Switch, within};

const OFFERED: &str = "IMAP4rev1 ID AUTH=PLAIN";

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
