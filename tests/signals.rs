//! Signals: which stop it, which are ignored, and that none of them kills it.

mod support;

use rustix::process::Signal;
use support::{FakeBackend, PATIENCE, Proxy, demo, wait_until};

/// Recipes for other programs send them, to have a log opened anew for example; each would kill a
/// process by default.
const MEANINGLESS: [(&str, Signal); 8] = [
    ("SIGUSR1", Signal::USR1),
    ("SIGUSR2", Signal::USR2),
    ("SIGALRM", Signal::ALARM),
    ("SIGVTALRM", Signal::VTALARM),
    ("SIGPROF", Signal::PROF),
    ("SIGIO", Signal::IO),
    ("SIGPWR", Signal::POWER),
    ("SIGXFSZ", Signal::XFSZ),
];

/// How often the log says that it ignored `name`.
fn ignored(proxy: &Proxy<'_>, name: &str) -> usize {
    let is = |message: &str| message.starts_with("signal ignored");
    proxy.log().iter().filter(|l| is(&l.message()) && l.field("signal") == name).count()
}

#[track_caller]
fn assert_ignores(proxy: &Proxy<'_>, name: &str, signal: Signal) {
    let before = ignored(proxy, name);
    proxy.signal(signal);
    wait_until(&format!("{name} is logged"), || ignored(proxy, name) == before + 1);
}

#[test]
fn signals_that_mean_nothing_are_logged_and_end_no_session() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let mut client = proxy.logged_in();
    for (name, signal) in MEANINGLESS {
        assert_ignores(&proxy, name, signal);
        assert!(client.result("NOOP").starts_with("OK"), "{name}");
    }
    // And once more, for a handler that is good for one time would be no handler.
    assert_ignores(&proxy, "SIGUSR1", Signal::USR1);
    assert!(client.result("LOGOUT").starts_with("OK"));
    proxy.stop();
}

#[test]
fn quit_drains_like_terminate() {
    let backend = FakeBackend::plain();
    let mut proxy = Proxy::start(&backend, "timeouts: { drain: 1s }");
    let mut client = proxy.logged_in();
    proxy.signal(Signal::QUIT);
    assert!(client.rest(PATIENCE).starts_with("* BYE [UNAVAILABLE] "));
    assert_eq!(proxy.wait(PATIENCE).code(), Some(0), "{}", proxy.text());
    let told = proxy.log().into_iter().any(|line| line.field("signal") == "SIGQUIT");
    assert!(told, "{}", proxy.text());
    let ends: Vec<_> = proxy.sessions().iter().map(|line| line.field("reason")).collect();
    assert_eq!(ends, ["drain"]);
}

#[test]
fn a_drain_outlasts_signals_that_mean_nothing_and_a_second_quit_ends_it() {
    let backend = FakeBackend::imap("", |session, command| {
        command.name == "FETCH" && session.send("* 1 FETCH (BODY[] {10}\r\n01234")
    });
    let mut proxy = Proxy::start(&backend, "timeouts: { drain: 60s }");
    let mut client = proxy.logged_in();
    client.send("f FETCH 1 BODY[]\r\n");
    client.expect("* 1 FETCH");
    proxy.signal(Signal::QUIT);
    wait_until("it is draining", || proxy.get("/readyz").0 == 503);
    for (name, signal) in MEANINGLESS {
        assert_ignores(&proxy, name, signal);
    }
    assert_ignores(&proxy, "SIGHUP", Signal::HUP);
    assert!(proxy.running());
    proxy.signal(Signal::QUIT);
    assert_eq!(proxy.wait(PATIENCE).code(), Some(0), "{}", proxy.text());
    assert!(proxy.text().contains("second signal"), "{}", proxy.text());
}

#[test]
fn a_reload_under_way_delays_neither_quit_nor_what_is_ignored() {
    let backend = FakeBackend::plain();
    let mut proxy = Proxy::start(&backend, "");
    let never_ends = proxy.reload_without_end();
    assert_ignores(&proxy, "SIGUSR1", Signal::USR1);
    proxy.signal(Signal::QUIT);
    assert_eq!(proxy.wait(PATIENCE).code(), Some(0), "{}", proxy.text());
    drop(never_ends);
}

#[test]
fn the_demo_ignores_and_stops_alike() {
    let folder = tempfile::tempdir().unwrap();
    let mut demo = demo(folder.path());
    demo.signal(Signal::USR1);
    demo.wait_for_line("signal=\"SIGUSR1\"");
    demo.signal(Signal::QUIT);
    assert_eq!(demo.wait(PATIENCE).code(), Some(0), "{}", demo.text());
}
