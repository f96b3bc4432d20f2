//! Stopping: who is told BYE and when, what is never interrupted, and how it ends.

mod support;

use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::{Backend, Client, Dovecot, End, FakeBackend, PATIENCE, Proxy, Switch, wait_until};

/// Everything up to the end is one BYE, and the end is an orderly one.
#[track_caller]
fn assert_told_bye(client: &mut Client) {
    let bye = client.rest(PATIENCE);
    assert!(bye.starts_with("* BYE [UNAVAILABLE] ") && bye.lines().count() == 1, "{bye:?}");
    assert_eq!(client.end(), End::Orderly);
}

/// Exit code 0, nothing bad in the log, nothing left in the backend.
#[track_caller]
fn assert_ended_well(mut proxy: Proxy<'_>, backend: &dyn Backend, limit: Duration) {
    let status = proxy.wait(limit);
    assert_eq!(status.code(), Some(0), "{}", proxy.text());
    assert!(!proxy.text().contains("panicked"), "{}", proxy.text());
    let error = proxy.log().into_iter().find(|line| line.level() == "ERROR");
    assert!(error.is_none(), "{error:?}");
    wait_until("no connection is left in the backend", || backend.connections() == 0);
}

fn reasons(proxy: &Proxy<'_>) -> Vec<String> {
    proxy.sessions().iter().map(|line| line.field("reason")).collect()
}

#[test]
fn sessions_in_idle_and_between_commands_are_told_bye() {
    let dovecot = Dovecot::start();
    let mut proxy = Proxy::start(&dovecot, "timeouts: { drain: 4s }");
    let mut idle = proxy.logged_in();
    assert!(idle.result("SELECT INBOX").starts_with("OK"));
    idle.send("i IDLE\r\n");
    idle.expect("+");
    let mut between = proxy.logged_in();
    assert!(between.result("NOOP").starts_with("OK"));
    let mut before = proxy.connect();
    before.expect("* OK ");
    proxy.wait_for_metric("imaps_proxy_sessions{phase=\"idle\"}", 1.0);
    let start = Instant::now();
    proxy.terminate();
    for client in [&mut idle, &mut between, &mut before] {
        assert_told_bye(client);
    }
    // The first half of the time is for telling them.
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    drop((idle, between, before));
    assert_eq!(proxy.wait(PATIENCE).code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(4), "waited without need");
    assert_eq!(reasons(&proxy), ["drain"; 3]);
    assert_ended_well(proxy, &dovecot, PATIENCE);
}

#[test]
fn farewells_are_spread_over_the_first_half() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "timeouts: { drain: 8s }");
    let mut clients: Vec<Client> = (0..20).map(|_| proxy.logged_in()).collect();
    let start = Instant::now();
    proxy.terminate();
    let mut times = Vec::new();
    std::thread::scope(|scope| {
        let told: Vec<_> = clients
            .iter_mut()
            .map(|client| {
                scope.spawn(move || {
                    assert_told_bye(client);
                    start.elapsed()
                })
            })
            .collect();
        times.extend(told.into_iter().map(|thread| thread.join().expect("it was told BYE")));
    });
    times.sort();
    assert!(times[19] < Duration::from_millis(5500), "{times:?}");
    // Twenty that reconnect all at once would be a storm.
    assert!(times[19] - times[0] > Duration::from_secs(1), "all at once: {times:?}");
    assert_ended_well(proxy, &backend, PATIENCE);
}

#[test]
fn while_draining_it_is_not_ready_and_takes_nobody_in() {
    let backend = FakeBackend::imap("", |session, command| {
        // Half a response: this session holds the drain up.
        command.name == "XSTUCK" && session.send("* X {100}\r\nhalf")
    });
    let mut proxy = Proxy::start(&backend, "timeouts: { drain: 3s }");
    let mut stuck = proxy.logged_in();
    stuck.send("a XSTUCK\r\n");
    stuck.expect("* X");
    proxy.terminate();
    wait_until("it is not ready", || proxy.get("/readyz").0 == 503);
    let (_, body) = proxy.get("/readyz");
    assert!(body.to_lowercase().contains("drain"), "{body:?}");
    assert_eq!(proxy.get("/healthz").0, 200);
    assert_eq!(proxy.get("/metrics").0, 200);
    wait_until("the listener is closed", || std::net::TcpStream::connect(proxy.imaps).is_err());
    assert_eq!(proxy.wait(PATIENCE).code(), Some(0));
    assert_eq!(reasons(&proxy), ["drain"]);
}

#[test]
fn response_is_finished_before_bye_is_said() {
    let go_on = Switch::default();
    let switch = go_on.clone();
    let backend = FakeBackend::imap("", move |session, command| {
        if command.name != "FETCH" {
            return false;
        }
        session.send("* 1 FETCH (BODY[] {10}\r\n01234");
        wait_until("the test lets it go on", || switch.is_set());
        session.send(format!("56789)\r\n{} OK done\r\n", command.tag))
    });
    let proxy = Proxy::start(&backend, "timeouts: { drain: 20s }");
    let mut client = proxy.logged_in();
    client.send("f FETCH 1 BODY[]\r\n");
    client.expect("* 1 FETCH");
    assert_eq!(client.exactly(5), b"01234");
    proxy.terminate();
    wait_until("it is draining", || proxy.get("/readyz").0 == 503);
    assert!(client.silent_for(Duration::from_secs(2)), "{client:?}");
    go_on.set();
    client.expect("56789)");
    client.expect("f OK");
    assert_told_bye(&mut client);
    drop(client);
    assert_ended_well(proxy, &backend, Duration::from_secs(15));
}

#[test]
fn upload_is_finished_before_bye_is_said() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "timeouts: { drain: 20s }");
    let mut client = proxy.logged_in();
    client.send("a APPEND INBOX {10}\r\n");
    client.expect("+");
    client.send("01234");
    backend.wait_for("01234");
    proxy.terminate();
    wait_until("it is draining", || proxy.get("/readyz").0 == 503);
    assert!(client.silent_for(Duration::from_secs(2)), "{client:?}");
    client.send("56789\r\n");
    client.expect("a OK");
    assert_told_bye(&mut client);
    drop(client);
    assert_ended_well(proxy, &backend, Duration::from_secs(15));
}

#[test]
fn half_a_command_of_the_client_holds_nothing_up_for_ever() {
    let backend = FakeBackend::plain();
    let mut proxy = Proxy::start(&backend, "timeouts: { drain: 2s }");
    let mut client = proxy.logged_in();
    client.send("a SELECT INB");
    backend.wait_for("a SELECT INB");
    let start = Instant::now();
    proxy.terminate();
    client.rest(PATIENCE);
    assert_eq!(proxy.wait(PATIENCE).code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
    wait_until("no connection is left", || backend.connections() == 0);
}

#[test]
fn what_is_left_at_the_end_is_closed_but_not_with_a_bye_inside_a_literal() {
    let backend = FakeBackend::imap("", |session, command| {
        command.name == "FETCH" && session.send("* 1 FETCH (BODY[] {10}\r\n01234")
    });
    let mut proxy = Proxy::start(&backend, "timeouts: { drain: 1s }");
    let mut client = proxy.logged_in();
    client.send("f FETCH 1 BODY[]\r\n");
    client.expect("* 1 FETCH");
    let start = Instant::now();
    proxy.terminate();
    assert_eq!(client.rest(PATIENCE), "01234");
    let end = client.end();
    assert!(matches!(end, End::Truncated | End::Reset), "dressed up as {end:?}");
    assert_eq!(proxy.wait(PATIENCE).code(), Some(0));
    assert!(start.elapsed() >= Duration::from_millis(900), "{:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(reasons(&proxy), ["drain"]);
    wait_until("no connection is left", || backend.connections() == 0);
}

#[test]
fn second_signal_ends_it_at_once() {
    let backend = FakeBackend::imap("", |session, command| {
        command.name == "FETCH" && session.send("* 1 FETCH (BODY[] {10}\r\n01234")
    });
    let mut proxy = Proxy::start(&backend, "timeouts: { drain: 60s }");
    let mut client = proxy.logged_in();
    client.send("f FETCH 1 BODY[]\r\n");
    client.expect("* 1 FETCH");
    proxy.terminate();
    wait_until("it is draining", || proxy.get("/readyz").0 == 503);
    assert!(proxy.running());
    proxy.signal(Signal::INT);
    let status = proxy.wait(Duration::from_secs(5));
    assert!(status.code().is_some(), "killed by the signal instead of ending: {status}");
}

#[test]
fn interrupt_drains_like_terminate_and_without_sessions_at_once() {
    let dovecot = Dovecot::start();
    let proxy = Proxy::start(&dovecot, "timeouts: { drain: 60s }");
    proxy.signal(Signal::INT);
    assert_ended_well(proxy, &dovecot, Duration::from_secs(3));
}

/// As a container needs it: what stops the proxy kills it some seconds after the time that it was given.
#[test]
fn last_words_are_within_the_time() {
    const DRAIN: Duration = Duration::from_secs(4);
    let backend = FakeBackend::imap("", |session, command| {
        // Far more than sockets hold.
        command.name == "FETCH" && session.send(vec![b'x'; 64 << 20])
    });
    let mut proxy = Proxy::start(&backend, "timeouts: { drain: 4s }");
    let mut deaf = proxy.logged_in();
    deaf.send("f FETCH 1 BODY[]\r\n");
    let mut appending = proxy.logged_in();
    appending.send("a APPEND INBOX {10}\r\n");
    appending.expect("+");
    appending.send("01234");
    backend.wait_for("01234");
    let start = Instant::now();
    proxy.terminate();
    assert_eq!(proxy.wait(PATIENCE).code(), Some(0));
    let took = start.elapsed();
    assert!(took < DRAIN + Duration::from_millis(1500), "{took:?}");
    // They ended by themselves; none had to be cut.
    assert_eq!(reasons(&proxy), ["drain"; 2]);
    assert!(!proxy.text().contains("did not end"), "{}", proxy.text());
    wait_until("no connection is left", || backend.connections() == 0);
}

#[test]
fn client_that_ignores_its_farewell_is_closed_at_the_end() {
    let backend = FakeBackend::plain();
    let mut proxy = Proxy::start(&backend, "timeouts: { drain: 2s }");
    let mut client = proxy.logged_in(); // never reads, never closes
    let start = Instant::now();
    proxy.terminate();
    assert_eq!(proxy.wait(PATIENCE).code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_told_bye(&mut client);
}

#[test]
fn drain_in_the_middle_of_handshake_and_login_ends_too() {
    let backend = FakeBackend::imap("", |session, command| {
        if command.name == "LOGIN" {
            session.drain(); // never answers
            return true;
        }
        false
    });
    let mut proxy = Proxy::start(&backend, "timeouts: { drain: 2s }");
    let silent = proxy.plain();
    let mut waiting = proxy.connect();
    waiting.expect("* OK ");
    waiting.send("a LOGIN alice secret\r\n");
    backend.wait_for("LOGIN");
    let mut typing = proxy.connect();
    typing.expect("* OK ");
    typing.send("a LOGIN alice {6}\r\n");
    typing.expect("+");
    let start = Instant::now();
    proxy.terminate();
    assert_eq!(proxy.wait(PATIENCE).code(), Some(0));
    // At the end of the time, not after it; and each has its line in the log.
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    assert_eq!(reasons(&proxy), ["drain"; 3]);
    wait_until("no connection is left", || backend.connections() == 0);
    drop(silent);
}
