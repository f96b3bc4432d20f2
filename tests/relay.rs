//! After login: bytes both ways, untouched, with every way in which either end can stop.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use support::{Client, Dovecot, End, FakeBackend, PATIENCE, Proxy, Switch, wait_until, within};

/// A backend that sends back the literal of `XECHO`, and so many bytes as they come for `XRAW`.
fn echo() -> FakeBackend {
    FakeBackend::imap("", |session, command| {
        let bytes = command.arguments.first().cloned().unwrap_or_default();
        let echoed = match command.name.as_str() {
            "XECHO" => {
                [format!("* X {{{}}}\r\n", bytes.len()).as_bytes(), &bytes, b"\r\n"].concat()
            }
            "XRAW" => {
                let size = String::from_utf8_lossy(&bytes).parse().expect("a size");
                let Some(bytes) = session.exactly(size) else { return true };
                bytes
            }
            _ => return false,
        };
        session.send(echoed) && session.send(format!("{} OK done\r\n", command.tag))
    })
}

/// Repeatable bytes of every value.
fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        bytes.extend_from_slice(&next());
    }
    bytes.truncate(size);
    bytes
}

#[test]
fn bytes_pass_unchanged_in_both_directions() {
    let backend = echo();
    let proxy = Proxy::start(&backend, "");
    let mut client = proxy.logged_in();
    for (seed, size) in [(1, 0), (2, 1), (3, 16_384), (4, 16_385), (5, 100_000), (6, 8 << 20)] {
        let sent = noise(seed, size);
        client.send(format!("e XECHO {{{size}+}}\r\n"));
        client.send(&sent);
        client.send("\r\n");
        client.expect(&format!("* X {{{size}}}"));
        assert!(client.exactly(size) == sent, "{size} bytes came back changed");
        client.expect("");
        client.expect("e OK");
    }
    assert!(client.result("LOGOUT").starts_with("OK"));
    proxy.wait_for_ends("logout", 1);
    let total = proxy.metric("imaps_proxy_bytes_total{direction=\"client_to_backend\"}");
    assert!(total > f64::from(8 << 20), "{total}");
    proxy.stop();
}

#[test]
fn literals_and_lines_of_every_kind_are_followed_without_being_touched() {
    let backend = echo();
    let proxy = Proxy::start(&backend, "");
    let mut client = proxy.logged_in();
    // Looks like commands, literals and capabilities to anybody who has lost the thread.
    for tricky in [
        &b"{99999999999}\r\n{5+}\r\n"[..],
        b"* CAPABILITY IMAP4rev1\r\n\r\n\n\r\0",
        b"x {3}\r\nabcz COMPRES\r\n",
        b"* 1 FETCH (BODY[] {4}\r\n",
        b"\xff\xfe{0}\r\n{-1}\r\n",
        b"DONE\r\nDONE\r\n",
        &[b'a'; 70_000],
    ] {
        client.send(format!("e XRAW {}\r\n", tricky.len()));
        client.send(tricky);
        assert_eq!(client.exactly(tricky.len()), tricky);
        client.expect("e OK");
    }
    assert!(client.result("LOGOUT").starts_with("OK"));
    proxy.stop();
}

#[test]
fn bytes_pass_before_their_line_is_whole() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let mut client = proxy.logged_in();
    client.send("a SELECT INB");
    backend.wait_for("a SELECT INB");
    for byte in "OX\r\n".bytes() {
        client.send([byte]);
    }
    client.expect("a OK");
    proxy.stop();
}

/// E6.
#[test]
fn answers_still_arrive_after_the_client_has_half_closed() {
    let dovecot = Dovecot::start();
    let proxy = Proxy::start(&dovecot, "");
    let mut client = proxy.logged_in();
    client.send("a SELECT INBOX\r\nb NOOP\r\nc LOGOUT\r\n");
    client.half_close();
    let rest = client.rest(PATIENCE);
    for answer in ["a OK", "b OK", "* BYE", "c OK"] {
        assert!(rest.contains(answer), "{rest}");
    }
    assert_eq!(client.end(), End::Orderly);
    dovecot.wait_for_connections(0);
    proxy.stop();
}

#[test]
fn half_close_reaches_the_backend() {
    let seen = Switch::default();
    let switch = seen.clone();
    let backend = FakeBackend::imap("", move |session, command| {
        if command.name != "XWAIT" {
            return false;
        }
        session.drain(); // until the half-close arrives
        switch.set();
        session.send(format!("{} OK late answer\r\n", command.tag));
        session.shut();
        true
    });
    let proxy = Proxy::start(&backend, "");
    let mut client = proxy.logged_in();
    client.send("a XWAIT\r\n");
    client.half_close();
    assert_eq!(client.rest(PATIENCE), "a OK late answer\r\n");
    assert!(seen.is_set());
    assert_eq!(client.end(), End::Orderly);
    proxy.stop();
}

#[test]
fn backend_that_does_not_end_after_a_half_close_is_left_at_its_deadline() {
    let released = Switch::default();
    let switch = released.clone();
    let backend = FakeBackend::imap("", move |session, command| {
        if command.name != "XWAIT" {
            return false;
        }
        session.drain();
        wait_until("the test ends", || switch.is_set()); // says nothing more, and stays
        session.shut();
        true
    });
    let proxy = Proxy::start(&backend, "timeouts: { half_closed: 1s }");
    let mut client = proxy.logged_in();
    client.send("a XWAIT\r\n");
    backend.wait_for("XWAIT");
    let start = Instant::now();
    client.half_close();
    client.rest(PATIENCE);
    assert!(start.elapsed() >= Duration::from_millis(900), "{:?}", start.elapsed());
    proxy.wait_for_ends("half_closed_timeout", 1);
    released.set();
    proxy.stop();
}

#[test]
fn client_that_leaves_without_logout_is_let_go() {
    let dovecot = Dovecot::start();
    let proxy = Proxy::start(&dovecot, "timeouts: { half_closed: 5s }");
    let mut client = proxy.logged_in();
    client.half_close();
    assert_eq!(client.end(), End::Orderly);
    drop(client);
    dovecot.wait_for_connections(0);
    proxy.wait_for_ends("client_closed", 1);
    proxy.stop();
}

#[test]
fn client_that_vanishes_takes_its_backend_connection_along() {
    let dovecot = Dovecot::start();
    let proxy = Proxy::start(&dovecot, "");
    let mut client = proxy.logged_in();
    client.send("a IDLE\r\n");
    client.expect("+");
    dovecot.wait_for_connections(1);
    client.vanish();
    dovecot.wait_for_connections(0);
    proxy.wait_for_ends("client_vanished", 1);
    proxy.stop();
}

/// E7: FIN without `close_notify` from a client is common, and is no error of ours.
#[test]
fn client_that_forgets_close_notify_is_no_error() {
    let dovecot = Dovecot::start();
    let proxy = Proxy::start(&dovecot, "");
    let mut client = proxy.logged_in();
    client.send("a NOOP\r\nb LOGOUT\r\n");
    client.cut();
    assert!(client.rest(PATIENCE).contains("b OK"));
    drop(client);
    dovecot.wait_for_connections(0);
    let noisy = proxy.log().into_iter().find(|line| ["WARN", "ERROR"].contains(&&*line.level()));
    assert!(noisy.is_none(), "{noisy:?}");
    proxy.stop();
}

#[test]
fn backend_that_closes_between_responses_ends_the_session_in_order() {
    let backend = FakeBackend::imap("", |session, command| {
        if command.name == "XBYE" {
            session.send("* BYE going down\r\n");
            session.shut();
            return true;
        }
        false
    });
    let proxy = Proxy::start(&backend, "");
    let mut client = proxy.logged_in();
    client.send("a XBYE\r\n");
    assert_eq!(client.rest(PATIENCE), "* BYE going down\r\n");
    assert_eq!(client.end(), End::Orderly);
    drop(client);
    proxy.wait_for_ends("backend_closed", 1);
    proxy.stop();
}

/// E7: what was cut off must look cut off.
#[test]
fn backend_that_dies_in_mid_response_is_passed_on_as_a_truncation() {
    for half in ["* 1 FETCH (BODY[] {1000}\r\nonly the beginning", "* 1 FET"] {
        let backend = FakeBackend::imap("", move |session, command| {
            if command.name == "FETCH" {
                session.send(half);
                session.shut();
                return true;
            }
            false
        });
        let proxy = Proxy::start(&backend, "");
        let mut client = proxy.logged_in();
        client.send("a FETCH 1 BODY[]\r\n");
        assert_eq!(client.rest(PATIENCE), half);
        let end = client.end();
        assert!(matches!(end, End::Truncated | End::Reset), "{end:?}");
        proxy.wait_for_ends("backend_truncated", 1);
        proxy.stop();
    }
}

#[test]
fn backend_that_resets_is_passed_on_as_a_truncation() {
    let backend = FakeBackend::imap("", |session, command| {
        if command.name == "XDIE" {
            session.reset();
            return true;
        }
        false
    });
    let proxy = Proxy::start(&backend, "");
    let mut client = proxy.logged_in();
    client.send("a XDIE\r\n");
    let end = client.end();
    assert!(matches!(end, End::Truncated | End::Reset), "{end:?}");
    proxy.wait_for_ends("backend_lost", 1);
    proxy.stop();
}

/// A backend that answers `XGIVE` with text for ever; what it could get rid of.
fn generous() -> (FakeBackend, Arc<AtomicU64>) {
    let given = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&given);
    let backend = FakeBackend::imap("", move |session, command| {
        if command.name != "XGIVE" {
            return false;
        }
        let line = format!("* X {}\r\n", "x".repeat(1018)); // 1024 bytes
        let lines = line.repeat(64);
        while session.send(&lines) {
            count.fetch_add(lines.len() as u64, Ordering::SeqCst);
        }
        true
    });
    (backend, given)
}

/// Waits until `counter` stands still: the kernel's buffers are full and nobody reads.
fn wait_for_standstill(counter: &AtomicU64) -> u64 {
    let mut last = (u64::MAX, Instant::now());
    within(PATIENCE, "the sender is held up", || {
        let now = counter.load(Ordering::SeqCst);
        if now != last.0 {
            last = (now, Instant::now());
        }
        now > 0 && last.1.elapsed() > Duration::from_millis(500)
    });
    last.0
}

/// E4.
#[test]
fn backend_is_held_up_while_the_client_does_not_read_and_memory_stays() {
    let (backend, given) = generous();
    let proxy = Proxy::start(&backend, "");
    let mut client = proxy.logged_in();
    let before = proxy.rss();
    client.send("a XGIVE\r\n");
    let stalled = wait_for_standstill(&given);
    assert!(stalled < 64 << 20, "{stalled} bytes went nowhere");
    let grown = proxy.rss().saturating_sub(before);
    assert!(grown < 1 << 20, "{grown} bytes more");
    // Reading on, everything is there and nothing twice.
    let line = format!("* X {}\r\n", "x".repeat(1018)).into_bytes();
    let wanted = usize::try_from(stalled).unwrap() / line.len() + 1000;
    for number in 0..wanted {
        assert!(client.exactly(line.len()) == line, "line {number} is not what was sent");
    }
    drop(client);
    backend.wait_for_connections(0);
    proxy.stop();
}

/// Their sessions share a thread, and so its buffers.
#[test]
fn what_a_client_that_broke_off_was_owed_reaches_no_other() {
    let (backend, _) = generous();
    let proxy = Proxy::starting(&backend).environment("TOKIO_WORKER_THREADS", "1").start();
    let mut other = proxy.logged_in();
    for round in 1..=20 {
        let mut client = proxy.logged_in();
        client.send("a XGIVE\r\n");
        client.exactly(1 << 20);
        client.vanish(); // in the middle of a write, more often than not
        proxy.wait_for_ends("client_vanished", round);
        assert!(other.result("NOOP").starts_with("OK"), "round {round}");
    }
    drop(other);
    proxy.stop();
}

#[test]
fn client_that_does_not_read_is_closed_at_the_write_deadline() {
    let (backend, given) = generous();
    let proxy = Proxy::start(&backend, "timeouts: { write: 1s }");
    let mut client = proxy.logged_in();
    client.send("a XGIVE\r\n");
    wait_for_standstill(&given);
    backend.wait_for_connections(0);
    proxy.wait_for_ends("write_timeout", 1);
    drop(client);
    proxy.stop();
}

#[test]
fn client_that_reads_slowly_but_reads_is_kept() {
    let (backend, given) = generous();
    let proxy = Proxy::start(&backend, "timeouts: { write: 2s }");
    let mut client = proxy.logged_in();
    client.send("a XGIVE\r\n");
    wait_for_standstill(&given);
    // Four times the deadline, a little now and then.
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(8) {
        client.exactly(1 << 20);
        thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(proxy.metric("imaps_proxy_sessions_closed_total{reason=\"write_timeout\"}"), 0.0);
    drop(client);
    proxy.stop();
}

#[test]
fn backend_that_does_not_read_holds_up_the_client_and_is_left_at_the_deadline() {
    let released = Switch::default();
    let switch = released.clone();
    let backend = FakeBackend::imap("", move |_, command| {
        if command.name == "XDEAF" {
            wait_until("the test ends", || switch.is_set());
        }
        false
    });
    let proxy = Proxy::start(&backend, "timeouts: { write: 1s }");
    let mut client = proxy.logged_in();
    let before = proxy.rss();
    client.send("a XDEAF\r\n");
    backend.wait_for("XDEAF");
    client.tcp().set_write_timeout(Some(PATIENCE)).unwrap();
    let chunk = vec![b'x'; 64 << 10];
    let start = Instant::now();
    let mut sent = 0;
    while client.try_send(&chunk).is_ok() {
        sent += chunk.len();
        assert!(sent < 256 << 20 && start.elapsed() < PATIENCE, "{sent} bytes went nowhere");
    }
    let grown = proxy.rss().saturating_sub(before);
    assert!(grown < 1 << 20, "{grown} bytes more");
    proxy.wait_for_ends("backend_stalled", 1);
    released.set();
    drop(client);
    proxy.stop();
}

/// D9 and D10.
#[test]
fn compress_and_unauthenticate_are_refused_and_never_arrive() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let mut client = proxy.logged_in();
    for command in [
        "COMPRESS DEFLATE",
        "compress deflate",
        "CompresS DEFLATE",
        "UNAUTHENTICATE",
        "unauthenticate",
        "COMPRESS",
    ] {
        assert!(client.result(command).starts_with("BAD"), "{command}");
        assert!(client.result("NOOP").starts_with("OK"), "after {command}");
    }
    // Among others in one write, and cut in the middle.
    client.send("x NOOP\r\ny COMPRESS DEFLATE\r\nz NOOP\r\n");
    let mut answers = [client.line(), client.line(), client.line()];
    answers.sort();
    for (answer, prefix) in answers.iter().zip(["x OK", "y BAD", "z OK"]) {
        assert!(answer.starts_with(prefix), "{answers:?}");
    }
    client.send("y UNAUTH");
    client.send("ENTICATE\r");
    client.send("\nz NOOP\r\n");
    let mut answers = [client.line(), client.line()];
    answers.sort();
    assert!(answers[0].starts_with("y BAD") && answers[1].starts_with("z OK"), "{answers:?}");
    let received = backend.received().to_ascii_uppercase();
    assert!(!received.contains("COMPRESS") && !received.contains("UNAUTH"), "{received}");
    proxy.stop();
}

#[test]
fn words_like_compress_inside_a_literal_are_text() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let mut client = proxy.logged_in();
    let text = "z COMPRESS DEFLATE\r\nz UNAUTHENTICATE\r\n";
    client.send(format!("a APPEND INBOX {{{}+}}\r\n{text}\r\n", text.len()));
    client.expect("a OK");
    client.send(format!("b APPEND INBOX {{{}}}\r\n", text.len()));
    client.expect("+");
    client.send(format!("{text}\r\n"));
    client.expect("b OK");
    assert_eq!(backend.received().matches(text).count(), 2);
    proxy.stop();
}

#[test]
fn idle_is_told_apart_and_new_mail_arrives_in_it() {
    let dovecot = Dovecot::start();
    dovecot.deliver("alice", 1, b"Subject: one\r\n\r\nfirst\r\n");
    let proxy = Proxy::start(&dovecot, "");
    let mut client = proxy.logged_in();
    assert!(client.result("SELECT INBOX").starts_with("OK"));
    proxy.wait_for_metric("imaps_proxy_sessions{phase=\"active\"}", 1.0);
    client.send("i IDLE\r\n");
    client.expect("+");
    proxy.wait_for_metric("imaps_proxy_sessions{phase=\"idle\"}", 1.0);
    assert_eq!(proxy.metric("imaps_proxy_sessions{phase=\"active\"}"), 0.0);
    dovecot.deliver("alice", 2, b"Subject: two\r\n\r\nsecond\r\n");
    client.until("* 2 EXISTS");
    client.send("DONE\r\n");
    client.until("i OK");
    proxy.wait_for_metric("imaps_proxy_sessions{phase=\"active\"}", 1.0);
    assert!(client.result("LOGOUT").starts_with("OK"));
    proxy.wait_for_ends("logout", 1);
    for phase in ["handshake", "login", "active", "idle"] {
        proxy.wait_for_metric(&format!("imaps_proxy_sessions{{phase=\"{phase}\"}}"), 0.0);
    }
    proxy.stop();
}

#[test]
fn commands_are_timed_by_name_and_unknown_ones_share_a_label() {
    let dovecot = Dovecot::start();
    let proxy = Proxy::start(&dovecot, "");
    let mut client = proxy.logged_in();
    for _ in 0..3 {
        assert!(client.result("NOOP").starts_with("OK"));
    }
    assert!(client.result("UID SEARCH ALL").starts_with("BAD")); // nothing is selected
    assert!(client.result("XYZZY").starts_with("BAD"));
    assert!(client.result("PLUGH").starts_with("BAD"));
    assert!(client.result("LOGOUT").starts_with("OK"));
    proxy.wait_for_ends("logout", 1);
    let count = |label: &str| {
        let label = format!("command=\"{label}\"");
        proxy.sum("imaps_proxy_command_duration_seconds_count", &[&label])
    };
    let family = proxy.series();
    let noop = family.keys().find(|name| name.contains("command=\"NOOP\"")).is_some();
    assert_eq!(count(if noop { "NOOP" } else { "noop" }), 3.0, "{family:#?}");
    assert_eq!(count("other"), 2.0, "{family:#?}");
    proxy.stop();
}

#[test]
fn large_message_is_fetched_octet_for_octet_by_many_at_once() {
    let dovecot = Dovecot::start();
    let body: Vec<u8> = noise(7, 3 << 20).chunks(57).flat_map(hex_line).collect();
    let message = [b"Subject: large\r\n\r\n", &body[..]].concat();
    dovecot.deliver("alice", 1, &message);
    let proxy = Proxy::start(&dovecot, "");
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client: Client = proxy.logged_in();
                assert!(client.result("EXAMINE INBOX").starts_with("OK"));
                client.send("f FETCH 1 BODY.PEEK[]\r\n");
                client.expect(&format!("* 1 FETCH (BODY[] {{{}}}", message.len()));
                assert!(client.exactly(message.len()) == message);
                client.until("f OK");
                assert!(client.result("LOGOUT").starts_with("OK"));
            });
        }
    });
    proxy.stop();
}

fn hex_line(bytes: &[u8]) -> Vec<u8> {
    use std::fmt::Write;
    let mut line = String::new();
    for byte in bytes {
        write!(line, "{byte:02x}").expect("a string takes everything");
    }
    (line + "\r\n").into_bytes()
}

#[test]
fn clients_close_notify_ends_the_backend_side_and_is_answered() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let mut client = proxy.logged_in();
    client.session_mut().send_close_notify();
    client.flush().unwrap();
    // The socket stays open: the alert alone must do.
    assert_eq!(client.rest(PATIENCE), "");
    assert_eq!(client.end(), End::Orderly);
    backend.wait_for_connections(0);
    proxy.stop();
}
