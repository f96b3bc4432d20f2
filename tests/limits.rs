//! Sizes, counts and deadlines before login, each with its reason in metric and log (tables B and E).

mod support;

use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use support::{Client, Dovecot, End, FakeBackend, PATIENCE, Proxy, Switch, wait_until};

#[test]
fn silent_client_is_closed_at_the_handshake_deadline() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "timeouts: { handshake: 1s }");
    let start = Instant::now();
    let mut client = proxy.plain();
    let said = client.rest(PATIENCE);
    assert!(said.is_empty() || (said.starts_with("* BYE ") && said.lines().count() == 1), "{said}");
    assert!(start.elapsed() >= Duration::from_millis(900), "{:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    proxy.wait_for_ends("handshake_timeout", 1);
    proxy.stop();
}

#[test]
fn byte_now_and_then_does_not_extend_the_handshake_deadline() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "timeouts: { handshake: 1s }");
    let start = Instant::now();
    let mut client = proxy.plain();
    // The head of a ClientHello record that announces 512 bytes.
    let hello = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    let mut bytes = hello.into_iter().chain(std::iter::repeat(0xaa));
    while start.elapsed() < PATIENCE && client.try_send([bytes.next().unwrap()]).is_ok() {
        if !client.silent_for(Duration::from_millis(100)) {
            break;
        }
    }
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    proxy.wait_for_ends("handshake_timeout", 1);
    proxy.stop();
}

#[test]
fn client_that_never_logs_in_is_told_bye_at_the_login_deadline() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "timeouts: { login: 1s }");
    let dials = backend.dials();
    let mut client = proxy.connect();
    client.expect("* OK ");
    let bye = client.rest(Duration::from_secs(5));
    assert!(bye.starts_with("* BYE ") && bye.lines().count() == 1, "{bye}");
    assert_eq!(client.end(), End::Orderly);
    assert_eq!(backend.dials(), dials);
    proxy.wait_for_ends("login_timeout", 1);
    proxy.stop();
}

#[test]
fn commands_do_not_extend_the_login_deadline() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "timeouts: { login: 1s }");
    let start = Instant::now();
    let mut client = proxy.connect();
    client.expect("* OK ");
    client.send("a LOGIN alice wrong\r\n");
    client.expect("a NO");
    // A command now and then: fewer than are allowed, and none of them buys time.
    while client.silent_for(Duration::from_millis(100)) {
        assert!(start.elapsed() < PATIENCE, "the deadline moved");
        client.send("a NOOP\r\n");
        if client.line().starts_with("* BYE") {
            break;
        }
    }
    assert!(start.elapsed() >= Duration::from_millis(900), "{:?}", start.elapsed());
    proxy.wait_for_ends("login_timeout", 1);
    proxy.stop();
}

#[test]
fn login_deadline_also_holds_inside_literals_and_sasl() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "timeouts: { login: 1s }");
    for (number, (bytes, answer)) in
        [("a LOGIN {5}\r\nal", "+"), ("a AUTHENTICATE PLAIN\r\n", "+"), ("a NO", ""), ("", "")]
            .into_iter()
            .enumerate()
    {
        let mut client = proxy.connect();
        client.expect("* OK ");
        client.send(bytes);
        if !answer.is_empty() {
            client.expect(answer);
        }
        let bye = client.rest(Duration::from_secs(5));
        assert!(bye.contains("* BYE "), "{bytes:?}: {bye:?}");
        proxy.wait_for_ends("login_timeout", number + 1);
    }
    backend.wait_for_connections(0);
    proxy.stop();
}

/// A server has places for few logins: a client that owes it an answer holds one for ten seconds.
#[test]
fn client_that_a_backend_waits_for_has_less_time() {
    let challenges = FakeBackend::imap("AUTH=CRAM-MD5", |session, command| {
        command.name == "AUTHENTICATE" && session.send("+ PDEyM0B4Pg==\r\n")
    });
    let proxy = Proxy::start(&challenges, "");
    challenges.wait_for_connections(0);
    let mut client = proxy.connect();
    client.expect("* OK ");
    client.send("a AUTHENTICATE CRAM-MD5\r\n");
    client.expect("+ PDEyM0B4Pg==");
    let since = Instant::now();
    // Bytes buy no time, and `timeouts.login` is a minute.
    client.send("YWxp");
    assert_eq!(client.rest(Duration::from_secs(50)), "* BYE Login took too long.\r\n");
    assert!(since.elapsed() > Duration::from_secs(9), "{:?}", since.elapsed());
    proxy.wait_for_ends("login_timeout", 1);
    challenges.wait_for_connections(0);
    proxy.stop();
}

/// B2.
#[test]
fn line_without_an_end_is_too_big() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let before = proxy.rss();
    for size in [9_000, 64 << 10, 200_000] {
        let mut client = proxy.connect();
        client.expect("* OK ");
        // The proxy closes in the middle of it.
        let _ = client.try_send("x".repeat(size));
        client.expect("* BYE [TOOBIG]");
        assert_eq!(client.rest(PATIENCE), "");
    }
    proxy.wait_for_ends("too_long", 3);
    assert!(proxy.rss() < before + (4 << 20), "{} then {}", before, proxy.rss());
    proxy.stop();
}

#[test]
fn line_of_exactly_the_limit_is_a_line() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "limits: { line: 1KiB }");
    let command = |length: usize| {
        let head = "a LOGIN ";
        format!("{head}{} p\r\n", "u".repeat(length - head.len() - " p".len()))
    };
    // Whether CRLF counts is not the point: a page below passes, a page above does not.
    let mut client = proxy.connect();
    client.expect("* OK ");
    client.send(command(1022));
    client.expect("a NO");
    client.send(command(1025));
    client.expect("* BYE [TOOBIG]");
    proxy.stop();
}

/// B1.
#[test]
fn literal_over_the_limit_is_refused_by_its_announcement() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let before = proxy.rss();
    for size in
        ["4097", "999999999", "99999999999", "18446744073709551617", "9".repeat(300).as_str()]
    {
        let mut client = proxy.connect();
        client.expect("* OK ");
        client.send(format!("a LOGIN {{{size}+}}\r\n"));
        client.expect("* BYE [TOOBIG]");
        assert_eq!(client.end(), End::Orderly);
        // Synchronising: nothing has been sent yet, so the session may live on; never with `+`.
        let mut client = proxy.connect();
        client.expect("* OK ");
        client.send(format!("a LOGIN alice {{{size}}}\r\n"));
        let answer = client.line();
        let refused = ["a BAD", "a NO", "* BYE"].iter().any(|p| answer.starts_with(p));
        assert!(refused, "{size}: {answer}");
    }
    assert!(proxy.rss() < before + (4 << 20), "{} then {}", before, proxy.rss());
    assert!(backend.logins().is_empty());
    proxy.stop();
}

#[test]
fn sasl_message_over_its_limit_ends_the_session_and_a_large_token_passes() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let mut client = proxy.connect();
    client.expect("* OK ");
    let token = "QUJD".repeat(5_000); // 20 kB: more than a command line, less than a SASL message
    client.send(format!("a AUTHENTICATE PLAIN {token}\r\n"));
    client.expect("a OK");
    let mut client = proxy.connect();
    client.expect("* OK ");
    client.send("a AUTHENTICATE PLAIN\r\n");
    client.expect("+");
    client.send(format!("{token}\r\n"));
    client.expect("a OK");
    assert!(backend.received().contains(&token));
    for begin in ["a AUTHENTICATE PLAIN ", "a AUTHENTICATE PLAIN\r\n"] {
        let mut client = proxy.connect();
        client.expect("* OK ");
        client.send(begin);
        if begin.ends_with('\n') {
            client.expect("+");
        }
        let _ = client.try_send("QUJD".repeat(50_000));
        client.expect("* BYE [TOOBIG]");
    }
    proxy.wait_for_ends("too_long", 2);
    backend.wait_for("LOGOUT"); // of the first look; nothing of the long ones follows
    proxy.stop();
}

/// B4 and A8.
#[test]
fn three_bad_commands_in_a_row_end_the_session() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let mut client = proxy.connect();
    client.expect("* OK ");
    client.send("x X\r\n".repeat(10));
    let answer = client.rest(PATIENCE);
    let answer: Vec<_> = answer.lines().collect();
    assert!(answer.len() <= 4 && answer.last().unwrap().starts_with("* BYE"), "{answer:?}");
    proxy.wait_for_ends("too_many_bad_commands", 1);

    let mut client = proxy.connect();
    client.expect("* OK ");
    for _ in 0..3 {
        // A good one in between: not in a row.
        assert!(client.result("X").starts_with("BAD"));
        assert!(client.result("X").starts_with("BAD"));
        assert!(client.result("NOOP").starts_with("OK"));
    }
    drop(client);

    let mut client = proxy.connect();
    client.expect("* OK ");
    client.send("GET /index.html HTTP/1.1\r\nHost: mail.example.org\r\nCookie: s3cret\r\n\r\n");
    let answer = client.rest(PATIENCE);
    assert!(answer.lines().count() <= 4, "{answer}");
    for echoed in ["index", "example", "s3cret"] {
        assert!(!answer.contains(echoed), "{answer}");
    }
    proxy.stop();
}

/// B3.
#[test]
fn absurd_id_is_one_bad_command() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let pairs = |count: usize, key: usize, value: usize| {
        let pair = format!("\"{}\" \"{}\" ", "k".repeat(key), "v".repeat(value));
        format!("ID ({})", pair.repeat(count).trim_end())
    };
    for id in [
        format!("ID {}", "(".repeat(1000)),
        "ID ((\"a\" \"b\"))".to_owned(),
        "ID (\"a\" (\"b\"))".to_owned(),
        "ID (\"odd\")".to_owned(),
        "ID (\"a\" \"b\"".to_owned(),
        "ID".to_owned(),
        "ID ".to_owned(),
        pairs(31, 5, 5),
        pairs(1, 31, 5),
        pairs(1, 5, 1025),
    ] {
        let mut client = proxy.connect();
        client.expect("* OK ");
        let answer = client.result(&id);
        assert!(answer.starts_with("BAD"), "{id}: {answer}");
        assert!(client.result("NOOP").starts_with("OK"));
    }
    let mut client = proxy.connect();
    client.expect("* OK ");
    assert!(client.result(&pairs(30, 5, 30)).starts_with("OK"));
    assert!(client.result("ID (\"k\" {3+}\r\na\"b)").starts_with("OK"));
    proxy.stop();
}

/// B5.
#[test]
fn exchanges_that_are_begun_and_cancelled_end_the_session() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let mut client = proxy.connect();
    client.expect("* OK ");
    client.send("a AUTHENTICATE PLAIN\r\n*\r\n".repeat(50));
    let answer = client.rest(PATIENCE);
    assert!(answer.matches("a BAD").count() <= 3, "{answer}");
    assert!(answer.lines().last().unwrap().starts_with("* BYE"), "{answer}");
    proxy.wait_for_ends("too_many_bad_commands", 1);
    backend.wait_for_connections(0);
    proxy.stop();
}

#[test]
fn exchange_that_never_ends_is_ended() {
    let backend = FakeBackend::imap("AUTH=PLAIN", |session, command| {
        if command.name != "AUTHENTICATE" {
            return false;
        }
        while session.send("+ bW9yZQ==\r\n") && session.line().is_some() {}
        true
    });
    let proxy = Proxy::start(&backend, "");
    let mut client = proxy.connect();
    client.expect("* OK ");
    client.send("a AUTHENTICATE PLAIN\r\n");
    let mut rounds = 0;
    while client.line().starts_with("+ ") {
        rounds += 1;
        assert!(rounds < 100, "a hundred rounds");
        if client.try_send("bW9yZQ==\r\n").is_err() {
            break;
        }
    }
    backend.wait_for_connections(0);
    proxy.stop();
}

#[test]
fn endless_small_commands_end_the_session() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let mut client = proxy.connect();
    client.expect("* OK ");
    client.send("a NOOP\r\n".repeat(50));
    let answer = client.rest(PATIENCE);
    assert!(answer.matches("a OK").count() <= 20, "{answer}");
    assert!(answer.lines().last().unwrap().starts_with("* BYE"), "{answer}");
    proxy.wait_for_ends("too_many_commands", 1);
    proxy.stop();
}

/// E2: the cap in all, and service for those inside.
#[test]
fn connections_over_the_limit_are_turned_away_and_counted() {
    let dovecot = Dovecot::start();
    let proxy = Proxy::start(&dovecot, "limits: { connections: 3 }");
    let mut inside: Vec<Client> = (0..3).map(|_| proxy.connect()).collect();
    for client in &mut inside {
        client.expect("* OK ");
    }
    for _ in 0..5 {
        // Before TLS, so in clear if in words at all.
        let mut client = proxy.plain();
        let said = client.rest(PATIENCE);
        assert!(said.is_empty() || said.starts_with("* BYE [UNAVAILABLE]"), "{said:?}");
    }
    // Counted, not logged one by one: a flood would fill the disk.
    let turned_away = "imaps_proxy_sessions_closed_total{reason=\"too_many_connections\"}";
    proxy.wait_for_metric(turned_away, 5.0);
    assert!(inside[0].result("LOGIN alice secret").starts_with("OK"));
    drop(inside.pop());
    wait_until("a place is free", || {
        proxy.connect_with(&support::TlsOptions::default()).is_ok_and(|mut client| {
            client.log_in("alice", "secret");
            true
        })
    });
    proxy.stop();
}

/// E2: more clients than there are descriptors for; the limit fits itself to them.
#[test]
fn sessions_are_limited_to_the_descriptors_that_there_are() {
    let dovecot = Dovecot::start();
    let proxy = Proxy::starting(&dovecot).descriptors(64).start();
    let before = proxy.fd_count();
    let crowd: Vec<TcpStream> =
        (0..100).map(|_| TcpStream::connect(proxy.imaps).expect("the backlog takes it")).collect();
    let turned_away = "imaps_proxy_sessions_closed_total{reason=\"too_many_connections\"}";
    wait_until("all are accepted or turned away", || {
        let inside = proxy.sum("imaps_proxy_sessions", &[]);
        inside >= 1.0 && (inside + proxy.metric(turned_away) - 100.0).abs() < 0.5
    });
    assert!(proxy.fd_count() < 64);
    drop(crowd);
    wait_until("there is room again", || proxy.sum("imaps_proxy_sessions", &[]) == 0.0);
    let mut client = proxy.logged_in();
    assert!(client.result("LOGOUT").starts_with("OK"));
    wait_until("the descriptors are given back", || proxy.fd_count() <= before + 1);
    proxy.stop();
}

/// E3: descriptors run out all the same.
#[test]
fn accepting_backs_off_when_descriptors_run_out_and_recovers() {
    let dovecot = Dovecot::start();
    let mut proxy = Proxy::start(&dovecot, "");
    drop(proxy.logged_in()); // whatever is opened once is open now
    wait_until("no session is left", || proxy.sum("imaps_proxy_sessions", &[]) == 0.0);
    let before = proxy.fd_count();
    proxy.limit_descriptors(before + 5);
    let crowd: Vec<TcpStream> =
        (0..50).map(|_| TcpStream::connect(proxy.imaps).expect("the backlog takes it")).collect();
    wait_until("the operator is told", || {
        proxy.log().iter().any(|line| line.level() == "ERROR" && line.has("listener"))
    });
    // Alive, and not spinning: a second of it costs less than a fifth of a second.
    let cpu = proxy.cpu_time();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(1) {
        assert!(proxy.running());
        thread::sleep(Duration::from_millis(50));
    }
    let used = proxy.cpu_time() - cpu;
    assert!(used < Duration::from_millis(200), "{used:?} in a second");
    let errors = proxy.log().iter().filter(|line| line.level() == "ERROR").count();
    assert!(errors < 5, "{errors} errors in a second fill a disk");
    drop(crowd);
    // No help from outside but the clients' leaving.
    let mut client = proxy.logged_in();
    assert!(client.result("LOGOUT").starts_with("OK"));
    wait_until("the descriptors are given back", || proxy.fd_count() <= before + 1);
    proxy.terminate();
    assert_eq!(proxy.wait(PATIENCE).code(), Some(0));
}

#[test]
fn descriptors_are_given_back_whatever_happens() {
    let refuse = Switch::default();
    let switch = refuse.clone();
    let backend = FakeBackend::imap("AUTH=PLAIN", move |session, _| {
        if switch.is_set() {
            session.shut();
        }
        switch.is_set()
    });
    let proxy = Proxy::start(&backend, "timeouts: { handshake: 1s }");
    drop(proxy.logged_in()); // whatever is opened once is open now
    backend.wait_for_connections(0);
    let settled = |proxy: &Proxy<'_>| {
        wait_until("no session is left", || proxy.sum("imaps_proxy_sessions", &[]) == 0.0);
        proxy.fd_count()
    };
    let before = settled(&proxy);
    for round in 0..20 {
        if round == 10 {
            refuse.set();
        }
        let mut client = proxy.connect();
        client.expect("* OK ");
        client.send("a LOGIN alice secret\r\n");
        client.expect("a ");
        drop(client);
        let mut client = proxy.connect();
        client.expect("* OK ");
        client.send("a LOGIN alice {6}\r\n");
        client.vanish();
        proxy.plain().vanish();
        let mut client = proxy.plain();
        client.send("GET / HTTP/1.0\r\n\r\n");
        drop(client);
        drop(proxy.plain());
    }
    wait_until("all descriptors are back", || settled(&proxy) <= before + 1);
    backend.wait_for_connections(0);
    proxy.stop();
}

#[test]
fn no_core_file_is_ever_written() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let none = Some(("0".to_owned(), "0".to_owned()));
    assert_eq!(proxy.limit("Max core file size"), none);
    proxy.stop();
}
