//! What a stranger can't do to the log: fill it, or keep the lines out of it by which he is found.

mod support;

use std::io::Read as _;
use std::process::Stdio;
use std::thread;

use support::{FakeBackend, LogLine, PATIENCE, Proxy, wait_until, within};

const GUESSES: usize = 60;

fn dropped(proxy: &Proxy<'_>, kind: &str) -> f64 {
    proxy.metric(&format!("imaps_proxy_log_lines_dropped_total{{kind=\"{kind}\"}}"))
}

#[test]
fn sessions_without_a_login_are_logged_by_sample_and_those_with_one_each() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "log: { level: info }");
    let closed = |reason| format!("imaps_proxy_sessions_closed_total{{reason=\"{reason}\"}}");
    let before = proxy.metric(&closed("handshake_failed"));
    for _ in 0..300 {
        drop(proxy.plain());
    }
    proxy.wait_for_metric(&closed("handshake_failed"), before + 300.0);
    for _ in 0..3 {
        assert!(proxy.connect().result("LOGOUT").starts_with("OK"));
    }
    proxy.wait_for_metric(&closed("logout"), 3.0);
    for _ in 0..3 {
        assert!(proxy.logged_in().result("LOGOUT").starts_with("OK"));
    }
    proxy.wait_for_metric(&closed("logout"), 6.0);
    // Another source: it tells of those that were not logged.
    assert!(proxy.connect_from([127, 0, 0, 2].into()).result("LOGOUT").starts_with("OK"));
    proxy.wait_for_metric(&closed("logout"), 7.0);
    let lines = |reason: &str, logged_in: bool| -> Vec<String> {
        let lines = proxy.sessions().into_iter();
        let lines = lines.filter(|line| line.field("reason") == reason);
        let lines = lines.filter(|line| line.has("user") == logged_in);
        lines.map(|line| line.field("not_logged")).collect()
    };
    within(PATIENCE, "the last one is logged", || lines("logout", false).len() == 2);
    assert_eq!(lines("logout", false), ["0", "2"]);
    assert_eq!(lines("logout", true), [""; 3]);
    assert_eq!(lines("handshake_failed", false).len(), 1);
    proxy.stop();
}

#[test]
fn guesses_are_in_the_log_whatever_a_stranger_does_to_fill_it() {
    let backend = FakeBackend::plain();
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    // At this level every connection has its lines. Nothing reads them yet.
    let mut proxy = Proxy::starting(&backend)
        .config("log: { level: debug }")
        .stdout(Stdio::from(writer))
        .start();
    wait_until("connections fill the log", || {
        (0..200).for_each(|_| drop(proxy.plain()));
        dropped(&proxy, "session") > 0.0
    });
    let mut guessed = 0;
    while guessed < GUESSES {
        let mut client = proxy.connect();
        client.expect("* OK ");
        for n in 0..10 {
            client.send(format!("g{n} LOGIN alice guess{n}\r\n"));
            client.expect(&format!("g{n} NO"));
            guessed += 1;
        }
    }
    assert_eq!([dropped(&proxy, "login"), dropped(&proxy, "warning")], [0.0; 2]);
    let read = thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("lines are UTF-8");
        text
    });
    proxy.terminate();
    assert_eq!(proxy.wait(PATIENCE).code(), Some(0));
    let text = read.join().expect("the reader ends with the proxy");
    let lines: Vec<_> = text.lines().filter_map(LogLine::parse).collect();
    let said = |message: &str| lines.iter().filter(|line| line.message() == message).count();
    assert_eq!(said("login"), GUESSES);
    let told = lines.iter().find(|line| line.message().starts_with("log lines were dropped"));
    let told = told.unwrap_or_else(|| panic!("nothing says that lines were dropped:\n{text}"));
    assert!(told.number("session") > 0.0, "{told:?}");
    assert_eq!([told.field("login"), told.field("warning")], ["0", "0"]);
}
