//! Several servers, several addresses of one: who gets a session, who does not, and what happens when they go and come.

mod support;

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::{
    Backend as _, Client, Dns, Dovecot, End, FakeBackend, LogLine, PATIENCE, Proxy, Record, Switch,
    TlsOptions, free_port, wait_until, within,
};

const DOWN: &str = "NO [UNAVAILABLE] The mail server can't be reached, try again later.";
const FULL: &str = "NO [UNAVAILABLE] The mail server is busy with others, try again later.";
/// Unreachable servers are given up this soon.
const QUICK: &str = "connect_timeout: 500ms";

/// `backend` with these servers and more keys of it.
fn backend(servers: &[String], more: &str) -> String {
    format!("backend: {{ servers: [{}], {more} }}", servers.join(", "))
}

fn server(address: &str, more: &str) -> String {
    format!("{{ address: '{address}', {more} }}")
}

fn all(fakes: &[&FakeBackend], more: &str) -> String {
    let servers: Vec<String> = fakes.iter().map(|fake| server(&fake.address(), "")).collect();
    backend(&servers, more)
}

fn gauge(name: &str, address: &str) -> String {
    format!("imaps_proxy_{name}{{backend=\"{address}\"}}")
}

fn waits_until_up(proxy: &Proxy<'_>, addresses: &[&str]) {
    for address in addresses {
        proxy.wait_for_metric(&gauge("backend_up", address), 1.0);
    }
}

/// A proxy all of whose servers are up.
fn start<'a>(fakes: &[&'a FakeBackend], yaml: &str) -> Proxy<'a> {
    let proxy = Proxy::start(fakes[0], yaml);
    let addresses: Vec<String> = fakes.iter().map(|fake| fake.address()).collect();
    waits_until_up(&proxy, &addresses.iter().map(String::as_str).collect::<Vec<_>>());
    proxy
}

fn logins(fakes: &[&FakeBackend]) -> Vec<usize> {
    fakes.iter().map(|fake| fake.logins().len()).collect()
}

/// Logs in and stays.
#[track_caller]
fn log_in(proxy: &Proxy<'_>) -> Client {
    let mut client = proxy.connect();
    client.log_in("alice", "secret");
    client
}

/// Logs in and out, which leaves the server nothing to count.
#[track_caller]
fn visit(proxy: &Proxy<'_>) {
    let mut client = log_in(proxy);
    assert!(client.result("LOGOUT").starts_with("OK"));
}

fn lines(proxy: &Proxy<'_>, message: &str) -> Vec<LogLine> {
    proxy.log().into_iter().filter(|line| line.message() == message).collect()
}

#[test]
fn round_robin_goes_by_weight() {
    let (a, b) = (FakeBackend::plain(), FakeBackend::plain());
    let servers = [server(&a.address(), "weight: 2"), server(&b.address(), "")];
    let proxy = start(&[&a, &b], &backend(&servers, "balance: round-robin"));
    for _ in 0..6 {
        visit(&proxy);
    }
    assert_eq!(logins(&[&a, &b]), [4, 2]);
    proxy.stop();
}

#[test]
fn least_sessions_counts_those_that_stay() {
    let (a, b) = (FakeBackend::plain(), FakeBackend::plain());
    let proxy = start(&[&a, &b], &all(&[&a, &b], "balance: least-sessions"));
    let stay: Vec<Client> = (0..4).map(|_| log_in(&proxy)).collect();
    assert_eq!(logins(&[&a, &b]), [2, 2]);
    for fake in [&a, &b] {
        assert_eq!(proxy.metric(&gauge("backend_sessions", &fake.address())), 2.0);
    }
    drop(stay);
    for fake in [&a, &b] {
        proxy.wait_for_metric(&gauge("backend_sessions", &fake.address()), 0.0);
    }
    proxy.stop();
}

#[test]
fn source_hash_keeps_a_client_at_its_server_and_moves_only_whom_it_must() {
    let gone = Switch::default();
    let broken = breakable(&gone);
    let fakes = [&broken, &FakeBackend::plain(), &FakeBackend::plain()];
    let proxy = start(&fakes, &all(&fakes, "balance: source-hash, health: { interval: 1s }"));
    let config = TlsOptions::default().config(&proxy.certificates.roots);
    // Which server each of twenty clients gets.
    let all_visit = || -> Vec<usize> {
        let visit = |last: u8| {
            let before = logins(&fakes);
            let source = [127, 0, 0, last].into();
            let mut client = Client::tls_from(source, proxy.imaps, &config).expect("TLS");
            client.log_in("alice", "secret");
            let after = logins(&fakes);
            (0..fakes.len()).find(|at| after[*at] > before[*at]).expect("one of them")
        };
        (1..=20).map(visit).collect()
    };
    let before = all_visit();
    assert!((0..3).all(|at| before.contains(&at)), "{before:?}");
    assert_eq!(all_visit(), before);
    gone.set();
    proxy.wait_for_metric(&gauge("backend_up", &broken.address()), 0.0);
    let after = all_visit();
    let moved = |(before, after): (&usize, &usize)| (*before == 0) == (before != after);
    assert!(before.iter().zip(&after).all(moved), "{before:?} {after:?}");
    gone.clear();
    waits_until_up(&proxy, &[&broken.address()]);
    assert_eq!(all_visit(), before);
    proxy.stop();
}

#[test]
fn drained_server_keeps_its_sessions_and_one_that_is_down_is_left_alone() {
    let (a, b) = (FakeBackend::plain(), FakeBackend::plain());
    let states = |state: &str| {
        let servers =
            [server(&a.address(), &format!("state: {state}, weight: 7")), server(&b.address(), "")];
        backend(&servers, "health: { interval: 1s }")
    };
    let proxy = start(&[&a, &b], &states("active"));
    let mut stays = log_in(&proxy);
    assert_eq!(logins(&[&a, &b]), [1, 0]);

    proxy.reload(&states("drain"));
    visit(&proxy);
    assert_eq!(logins(&[&a, &b]), [1, 1]);
    let state = |state: &str| {
        let address = a.address();
        proxy.metric(&format!(
            "imaps_proxy_backend_state{{backend=\"{address}\",state=\"{state}\"}}"
        ))
    };
    assert_eq!([state("active"), state("drain"), state("down")], [0.0, 1.0, 0.0]);
    assert_eq!(proxy.metric(&gauge("backend_sessions", &a.address())), 1.0);
    assert_eq!(proxy.metric(&gauge("backend_up", &a.address())), 1.0);
    let asked = a.dials();
    wait_until("a drained server is still asked", || a.dials() > asked);

    proxy.reload(&states("down"));
    assert_eq!(proxy.metric(&gauge("backend_up", &a.address())), 0.0);
    a.wait_for_connections(1);
    let asked = (a.dials(), b.dials());
    wait_until("the other is asked twice", || b.dials() >= asked.1 + 2);
    assert_eq!(a.dials(), asked.0, "a server that is down is not asked");
    visit(&proxy);
    assert_eq!(logins(&[&a, &b]), [1, 2]);
    assert!(stays.result("NOOP").starts_with("OK"));

    proxy.reload(&states("active"));
    waits_until_up(&proxy, &[&a.address()]);
    assert_eq!(proxy.metric(&gauge("backend_sessions", &a.address())), 1.0, "it was never lost");
    visit(&proxy);
    assert_eq!(logins(&[&a, &b]), [2, 2]);
    assert!(stays.result("LOGOUT").starts_with("OK"));
    proxy.stop();
}

#[test]
fn readiness_says_that_nobody_takes_sessions() {
    let fake = FakeBackend::plain();
    let only = backend(&[server(&fake.address(), "state: drain")], "");
    let proxy = Proxy::starting(&fake).config(&only).not_ready().start();
    waits_until_up(&proxy, &[&fake.address()]);
    let (status, body) = proxy.get("/readyz");
    let why = "no backend is active: all are drained or down by configuration\n";
    assert_eq!((status, body.as_str()), (503, why));
    let mut client = proxy.connect();
    client.expect("* OK ");
    assert_eq!(client.result("LOGIN alice secret"), DOWN);
    assert!(fake.logins().is_empty());
    drop(client);
    proxy.stop();
}

#[test]
fn server_takes_no_more_than_its_max_sessions() {
    let (a, b) = (FakeBackend::plain(), FakeBackend::plain());
    let servers = [&a, &b].map(|fake| server(&fake.address(), "max_sessions: 1"));
    let proxy = start(&[&a, &b], &backend(&servers, ""));
    let (mut first, second) = (log_in(&proxy), log_in(&proxy));
    assert_eq!(logins(&[&a, &b]), [1, 1]);
    let mut third = proxy.connect();
    third.expect("* OK ");
    assert_eq!(third.result("LOGIN alice secret"), FULL);
    assert_eq!(proxy.wait_for_logins(3)[2].field("result"), "unavailable");
    assert!(first.result("LOGOUT").starts_with("OK"));
    proxy.wait_for_metric(&gauge("backend_sessions", &a.address()), 0.0);
    assert!(third.result("LOGIN alice secret").starts_with("OK"));
    let turned_away =
        "every backend that works is full, by max_sessions or by itself: clients are turned away";
    assert_eq!(lines(&proxy, turned_away).len(), 1);

    // A reload changes the limit and forgets nobody; whoever waits gets the first seat that is free.
    proxy.reload("backend: { hold: 30s }");
    let mut fourth = proxy.connect();
    fourth.expect("* OK ");
    fourth.send("a LOGIN alice secret\r\n");
    proxy.wait_for_metric("imaps_proxy_hold_waiting", 1.0);
    assert!(fourth.silent_for(Duration::from_millis(100)));
    drop(second);
    fourth.expect("a OK");
    assert_eq!(proxy.metric("imaps_proxy_holds_total{result=\"served\"}"), 1.0);
    drop((first, third, fourth));
    proxy.stop();
}

/// A server that takes as many connections as it can is no outage, and strangers can't make it one.
#[test]
fn server_that_is_full_is_up_and_serves_whoever_comes_when_it_has_room() {
    for last_words in ["* BYE [ALERT] Too many connections\r\n", ""] {
        let full = Switch::default();
        let turns_away = full.clone();
        let fake = FakeBackend::raw(move |session| {
            if turns_away.is_set() {
                session.send(last_words);
                session.linger();
            } else {
                session.greet("IMAP4rev1");
                session.serve("IMAP4rev1", &|_, _| false);
            }
        });
        let proxy = Proxy::start(&fake, "");
        let stays = log_in(&proxy);
        let failures = |reason: &str| {
            let address = fake.address();
            let labels = [format!("backend=\"{address}\""), format!("reason=\"{reason}\"")];
            proxy
                .sum("imaps_proxy_backend_connect_failures_total", &labels.each_ref().map(|l| &**l))
        };
        full.set();
        let mut second = proxy.connect();
        second.expect("* OK ");
        second.send("a LOGIN alice secret\r\n");
        if !last_words.is_empty() {
            second.expect("* NO [ALERT] Too many connections");
        }
        second.expect(&format!("a {FULL}"));
        // Sessions and looks find the same, and it stays up.
        wait_until("it was looked at", || failures("full") >= 3.0);
        assert_eq!([failures("bye"), failures("closed")], [0.0; 2]);
        assert_eq!(proxy.metric(&gauge("backend_up", &fake.address())), 1.0);
        assert_eq!(proxy.get("/readyz").0, 200);
        let said = "backend is full: it turns connections away while sessions of it live";
        assert_eq!(lines(&proxy, said).len(), 1);
        assert!(!proxy.text().contains("is down"), "{}", proxy.text());

        proxy.reload("backend: { hold: 30s }");
        let mut third = proxy.connect();
        third.expect("* OK ");
        third.send("a LOGIN alice secret\r\n");
        proxy.wait_for_metric("imaps_proxy_hold_waiting", 1.0);
        full.clear();
        third.expect("a OK");

        // One that turns everybody away is another thing.
        drop((stays, third));
        proxy.wait_for_metric(&gauge("backend_sessions", &fake.address()), 0.0);
        full.set();
        second.send("b LOGIN alice secret\r\n");
        proxy.wait_for_metric(&gauge("backend_up", &fake.address()), 0.0);
        drop(second);
        proxy.stop();
    }
}

#[test]
fn server_that_came_back_starts_slowly() {
    let gone = Switch::default();
    let a = breakable(&gone);
    let b = FakeBackend::plain();
    let yaml = all(&[&a, &b], "balance: round-robin, health: { interval: 1s, slow_start: 1h }");
    let proxy = start(&[&a, &b], &yaml);
    for _ in 0..4 {
        visit(&proxy);
    }
    assert_eq!(logins(&[&a, &b]), [2, 2], "at start nobody is slow");
    gone.set();
    proxy.wait_for_metric(&gauge("backend_up", &a.address()), 0.0);
    gone.clear();
    waits_until_up(&proxy, &[&a.address()]);
    for _ in 0..21 {
        visit(&proxy);
    }
    assert_eq!(logins(&[&a, &b]), [3, 22], "a twentieth of its share");
    proxy.stop();
}

/// Closes every connection while `gone`.
fn breakable(gone: &Switch) -> FakeBackend {
    let gone = gone.clone();
    FakeBackend::raw(move |session| {
        if !gone.is_set() {
            session.greet("IMAP4rev1");
            session.serve("IMAP4rev1", &|_, _| false);
        }
    })
}

#[test]
fn client_waits_while_the_only_server_restarts() {
    let dovecot = Dovecot::start();
    let proxy = Proxy::start(&dovecot, "backend: { hold: 30s }");
    let mut client = proxy.connect();
    client.expect("* OK ");
    dovecot.kill();
    client.send("a LOGIN alice secret\r\nb NOOP\r\n");
    proxy.wait_for_metric("imaps_proxy_hold_waiting", 1.0);
    // Whoever comes now is greeted at once.
    let mut other = proxy.connect();
    other.expect("* OK ");
    dovecot.start_again();
    client.expect("a OK");
    client.expect("b OK");
    assert!(other.result("LOGIN bob secret").starts_with("OK"));
    assert_eq!(proxy.metric("imaps_proxy_hold_waiting"), 0.0);
    assert_eq!(proxy.sum("imaps_proxy_holds_total", &["result=\"served\""]), 1.0);
    assert_eq!(proxy.sum("imaps_proxy_logins_total", &["result=\"unavailable\""]), 0.0);
    drop((client, other));
    proxy.stop();
}

#[test]
fn client_waits_for_the_first_greeting_too() {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let nobody = support::Unreachable(address.to_string());
    let proxy = Proxy::starting(&nobody).config("backend: { hold: 30s }").not_ready().start();
    let mut client = proxy.connect(); // the handshake is not delayed
    proxy.wait_for_metric("imaps_proxy_hold_waiting", 1.0);
    let left = proxy.connect();
    proxy.wait_for_metric("imaps_proxy_hold_waiting", 2.0);
    drop(left);
    proxy.wait_for_metric("imaps_proxy_hold_waiting", 1.0);
    proxy.wait_for_ends("client_closed", 1);
    let server = FakeBackend::at(address);
    client.log_in("alice", "secret");
    assert_eq!(proxy.metric("imaps_proxy_holds_total{result=\"served\"}"), 1.0);
    assert_eq!(proxy.metric("imaps_proxy_holds_total{result=\"ended\"}"), 1.0);
    drop(client);
    proxy.stop();
    drop(server);
}

#[test]
fn client_that_waits_in_vain_is_told_so() {
    let gone = Switch::default();
    let fake = breakable(&gone);
    let proxy = Proxy::start(&fake, "backend: { hold: 300ms }");
    let mut client = proxy.connect();
    client.expect("* OK ");
    gone.set();
    let start = Instant::now();
    assert_eq!(client.result("LOGIN alice secret"), DOWN);
    assert!(start.elapsed() >= Duration::from_millis(300), "{:?}", start.elapsed());
    assert_eq!(proxy.metric("imaps_proxy_holds_total{result=\"unavailable\"}"), 1.0);
    gone.clear();
    assert!(client.result("LOGIN alice secret").starts_with("OK"), "and may try again");
    drop(client);
    proxy.stop();
}

#[test]
fn client_that_waits_may_leave_and_is_told_of_a_drain() {
    let gone = Switch::default();
    let fake = breakable(&gone);
    let proxy = Proxy::start(&fake, "{ backend: { hold: 50s }, timeouts: { login: 55s } }");
    let mut clients: Vec<Client> = (0..2).map(|_| proxy.connect()).collect();
    gone.set();
    for client in &mut clients {
        client.expect("* OK ");
        client.send("a LOGIN alice secret\r\n");
    }
    proxy.wait_for_metric("imaps_proxy_hold_waiting", 2.0);
    drop(clients.pop());
    proxy.wait_for_ends("client_closed", 1);
    proxy.wait_for_metric("imaps_proxy_hold_waiting", 1.0);
    proxy.terminate();
    let mut client = clients.pop().expect("one is left");
    assert_eq!(client.rest(PATIENCE), "* BYE [UNAVAILABLE] The server is restarting.\r\n");
    assert_eq!(client.end(), End::Orderly);
    assert!(fake.logins().is_empty());
    proxy.stop();
}

/// Those who wait do not wake each other, and are served once there is a server.
#[test]
fn clients_that_wait_leave_a_dead_server_alone() {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let nobody = FakeBackend::at(address);
    let full = FakeBackend::plain();
    let servers = [server(&full.address(), "max_sessions: 1"), server(&nobody.address(), "")];
    let yaml = backend(&servers, "hold: 30s, balance: first");
    let proxy = Proxy::start(&full, &yaml);
    waits_until_up(&proxy, &[&full.address(), &nobody.address()]);
    let stays = log_in(&proxy);
    drop(nobody);
    let mut clients: Vec<Client> = (0..2).map(|_| proxy.connect()).collect();
    for client in &mut clients {
        client.expect("* OK ");
        client.send("a LOGIN alice secret\r\n");
    }
    proxy.wait_for_metric("imaps_proxy_hold_waiting", 2.0);
    assert!(clients[0].silent_for(Duration::from_secs(2)));
    let failures = proxy.sum("imaps_proxy_backend_connect_failures_total", &[]);
    assert!(failures < 10.0, "{failures}");
    drop(stays);
    wait_until("one has the place that is free", || full.logins().len() == 2);
    assert_eq!(proxy.metric("imaps_proxy_hold_waiting"), 1.0);
    let back = FakeBackend::at(address);
    clients.iter_mut().for_each(|client| _ = client.expect("a OK"));
    drop(clients);
    proxy.stop();
    drop((full, back));
}

/// A client that waits never waits longer than for its login.
#[test]
fn login_timeout_ends_the_wait() {
    let gone = Switch::default();
    let fake = breakable(&gone);
    let proxy = Proxy::start(&fake, "{ backend: { hold: 50s }, timeouts: { login: 500ms } }");
    let mut client = proxy.connect();
    client.expect("* OK ");
    gone.set();
    client.send("a LOGIN alice secret\r\n");
    assert_eq!(client.line(), format!("a {DOWN}"));
    assert_eq!(client.rest(PATIENCE), "* BYE Login took too long.\r\n");
    proxy.stop();
}

#[test]
fn stopped_server_costs_nobody_a_greeting_timeout() {
    let (stopped, healthy) = (Dovecot::start(), FakeBackend::plain());
    let servers = [server(&stopped.address(), ""), server(&healthy.address(), "")];
    let yaml = backend(&servers, QUICK) + "\ntimeouts: { backend_greeting: 10s }";
    let proxy = Proxy::start(&healthy, &yaml);
    waits_until_up(&proxy, &[&stopped.address(), &healthy.address()]);
    visit(&proxy);
    assert!(healthy.logins().is_empty());
    stopped.signal(Signal::STOP);
    let start = Instant::now();
    visit(&proxy);
    let first = start.elapsed();
    for _ in 0..5 {
        visit(&proxy);
    }
    let all = start.elapsed();
    assert!(first < Duration::from_secs(5), "{first:?}");
    assert!(all - first < Duration::from_secs(1), "only the first one waited: {first:?}, {all:?}");
    assert_eq!(healthy.logins().len(), 6);
    stopped.signal(Signal::CONT);
    wait_until("the first of the list is used again", || {
        let before = healthy.logins().len();
        visit(&proxy);
        healthy.logins().len() == before
    });
    assert_eq!(lines(&proxy, "backend is down").len(), 0, "it was only doubted");
    proxy.stop();
}

/// The only server hangs: one client at a time finds that out, the others are told at once.
#[test]
fn only_server_that_hangs_is_tried_by_one_at_a_time() {
    let hangs = Switch::default();
    let switch = hangs.clone();
    let fake = FakeBackend::raw(move |session| {
        if switch.is_set() {
            session.drain();
            return;
        }
        session.greet("IMAP4rev1");
        session.serve("IMAP4rev1", &|_, _| false);
    });
    let proxy = Proxy::start(&fake, "timeouts: { backend_greeting: 3s }");
    let mut clients: Vec<Client> = (0..3).map(|_| proxy.connect()).collect();
    clients.iter_mut().for_each(|client| _ = client.expect("* OK "));
    hangs.set();
    assert_eq!(clients[0].result("LOGIN alice secret"), DOWN);
    let asked = fake.dials();
    clients[1].send("a LOGIN alice secret\r\n");
    wait_until("the second tries it", || fake.dials() > asked);
    let start = Instant::now();
    let answers: Vec<String> = (0..5).map(|_| clients[2].result("LOGIN alice secret")).collect();
    assert!(answers.iter().all(|answer| answer == DOWN), "{answers:?}");
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(lines(&proxy, "backend is down").len(), 1);
    drop(clients);
    proxy.stop();
}

#[test]
fn full_backlog_and_garbage_are_told_apart_and_cost_the_others_nothing() {
    // Nobody accepts, and two connections fill the queue.
    let deaf = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    deaf.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    deaf.listen(0).unwrap();
    let address = deaf.local_addr().unwrap().as_socket().unwrap();
    let limit = Duration::from_millis(200);
    let mut queue = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, limit) {
        queue.push(stream);
    }
    let garbage = FakeBackend::raw(|session| _ = session.send("SSH-2.0-OpenSSH_9.2\r\n"));
    let healthy = FakeBackend::plain();
    let refused = format!("127.0.0.1:{}", free_port());
    let names = [address.to_string(), garbage.address(), refused, healthy.address()];
    let servers: Vec<String> = names.iter().map(|name| server(name, "")).collect();
    let yaml = backend(&servers, QUICK);
    let proxy = Proxy::start(&healthy, &yaml);
    for (name, reason) in names.iter().zip(["timeout", "not_imap", "refused"]) {
        let failures = format!(
            "imaps_proxy_backend_connect_failures_total{{backend=\"{name}\",reason=\"{reason}\"}}"
        );
        wait_until(reason, || proxy.metric(&failures) >= 1.0);
        assert_eq!(proxy.metric(&gauge("backend_up", name)), 0.0);
        let down =
            || lines(&proxy, "backend is down").into_iter().filter(|l| l.field("backend") == *name);
        wait_until("it is said", || down().count() == 1);
    }
    let start = Instant::now();
    for _ in 0..5 {
        visit(&proxy);
    }
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert_eq!(healthy.logins().len(), 5);
    proxy.stop();
}

#[test]
fn all_down_and_back_leaves_sessions_elsewhere_alone() {
    const SESSIONS: usize = 200;
    let gone = Switch::default();
    let healthy = FakeBackend::plain();
    let others = [breakable(&gone), breakable(&gone)];
    let fakes = [&healthy, &others[0], &others[1]];
    let proxy = start(&fakes, &all(&fakes, "balance: first"));
    let mut sessions: Vec<Client> = (0..SESSIONS).map(|_| log_in(&proxy)).collect();
    let drained: Vec<String> = fakes
        .iter()
        .enumerate()
        .map(|(n, fake)| server(&fake.address(), if n == 0 { "state: drain" } else { "" }))
        .collect();
    proxy.reload(&backend(&drained, "balance: first"));
    visit(&proxy);
    gone.set();
    let mut client = proxy.connect();
    client.expect("* OK ");
    assert_eq!(client.result("LOGIN alice secret"), DOWN);
    for other in &others {
        proxy.wait_for_metric(&gauge("backend_up", &other.address()), 0.0);
        assert_eq!(proxy.metric(&gauge("backend_ejections_total", &other.address())), 1.0);
    }
    assert_eq!(proxy.get("/readyz").0, 503);
    for session in &mut sessions {
        assert!(session.result("NOOP").starts_with("OK"));
    }
    gone.clear();
    assert!(client.result("LOGIN alice secret").starts_with("OK"), "at once");
    waits_until_up(&proxy, &[&others[0].address(), &others[1].address()]);
    assert_eq!(proxy.get("/readyz").0, 200);
    assert_eq!(lines(&proxy, "backend is down").len(), 2);
    assert_eq!(lines(&proxy, "backend is up again").len(), 2);
    #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
    let count = SESSIONS as f64;
    assert_eq!(proxy.metric(&gauge("backend_sessions", &healthy.address())), count);
    assert_eq!(proxy.sessions().len(), 1, "nobody else has ended");
    drop((sessions, client));
    proxy.stop();
}

#[test]
fn every_address_of_a_name_is_used_and_one_that_is_refused_costs_nothing() {
    let dns = Dns::start();
    let (first, second) = pair();
    let port = first.address.port();
    let ips = ["127.0.0.1", "127.0.0.2", "::1"].map(|ip| Record::Ip(ip.parse().unwrap()));
    dns.set("legacy_mail.test", &ips);
    let name = format!("legacy_mail.test:{port}");
    let yaml = backend(&[server(&name, "")], "");
    let proxy = Proxy::starting(&first).config(&yaml).etc(dns.etc()).start();
    let addresses = |state: &str| {
        format!("imaps_proxy_backend_addresses{{backend=\"{name}\",state=\"{state}\"}}")
    };
    proxy.wait_for_metric(&addresses("up"), 2.0);
    proxy.wait_for_metric(&addresses("down"), 1.0);
    let start = Instant::now();
    for _ in 0..6 {
        visit(&proxy);
    }
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert_eq!(logins(&[&first, &second]), [3, 3]);
    let said = lines(&proxy, "backend's address does not work");
    assert_eq!(said.len(), 1, "{said:?}");
    assert_eq!(said[0].field("address"), format!("[::1]:{port}"));
    assert!(proxy.log().iter().all(|line| line.level() != "WARN"), "{}", proxy.text());
    // Half of a server is not the server.
    drop(second);
    proxy.wait_for_metric(&addresses("down"), 1.0);
    for _ in 0..4 {
        visit(&proxy);
    }
    assert_eq!(first.logins().len(), 7);
    assert_eq!(proxy.metric(&gauge("backend_up", &name)), 1.0);
    assert_eq!(lines(&proxy, "backend's address is down").len(), 1);
    proxy.stop();
}

/// Two servers at one port.
fn pair() -> (FakeBackend, FakeBackend) {
    let [one, two] = [1, 2].map(|last| Ipv4Addr::new(127, 0, 0, last));
    let port = (0..20)
        .map(|_| free_port())
        .find(|port| TcpListener::bind((two, *port)).is_ok())
        .expect("a port that is free at both");
    (FakeBackend::at((one, port).into()), FakeBackend::at((two, port).into()))
}

#[test]
fn name_that_moves_is_followed() {
    let dns = Dns::start();
    let (first, second) = pair();
    let port = first.address.port();
    let ip = |fake: &FakeBackend| [Record::Ip(fake.address.ip())];
    dns.set("legacy.test", &ip(&first));
    let yaml = backend(&[server(&format!("legacy.test:{port}"), "")], "");
    let proxy = Proxy::starting(&first).config(&yaml).etc(dns.etc()).start();
    let mut stays = log_in(&proxy);
    // The old one works, and yet the new one is used as soon as DNS says so.
    dns.set("legacy.test", &ip(&second));
    wait_until("the new address is used", || {
        visit(&proxy);
        !second.logins().is_empty()
    });
    assert!(stays.result("NOOP").starts_with("OK"));
    // What DNS said last holds while it says nothing.
    dns.set_broken(true);
    wait_until("it is said", || {
        lines(&proxy, "backend keeps the addresses that it had").len() == 1
    });
    let before = second.logins().len();
    visit(&proxy);
    assert_eq!(second.logins().len(), before + 1);
    // A dead address has the name looked up at once, and /etc/hosts is read when it changes.
    dns.set_hosts(&format!("{} legacy.test\n", first.address.ip()));
    drop(second);
    let before = first.logins().len();
    wait_until("the name has moved back", || {
        let mut client = proxy.connect();
        client.expect("* OK ");
        client.result("LOGIN alice secret").starts_with("OK") && first.logins().len() > before
    });
    drop(stays);
    proxy.stop();
}

#[test]
fn service_in_dns_goes_by_priority_and_weight() {
    let dns = Dns::start();
    let (a, b, c) = (FakeBackend::plain(), FakeBackend::plain(), FakeBackend::plain());
    dns.set("localtest", &[Record::Ip(Ipv4Addr::LOCALHOST.into())]);
    let srv = |priority, weight, fake: &FakeBackend| {
        Record::Srv(priority, weight, fake.address.port(), "localtest")
    };
    dns.set("_imap._tcp.example.test", &[srv(10, 30, &a), srv(10, 10, &b), srv(20, 99, &c)]);
    let name = "_imap._tcp.example.test";
    let yaml = backend(&[server(name, "")], "health: { interval: 1s }");
    let proxy = Proxy::starting(&c).config(&yaml).etc(dns.etc()).start();
    proxy.wait_for_metric(
        &format!("imaps_proxy_backend_addresses{{backend=\"{name}\",state=\"up\"}}"),
        3.0,
    );
    for _ in 0..8 {
        visit(&proxy);
    }
    assert_eq!(logins(&[&a, &b, &c]), [6, 2, 0]);
    drop((a, b));
    for _ in 0..3 {
        visit(&proxy); // the first ones find out
    }
    assert_eq!(c.logins().len(), 3);
    assert_eq!(proxy.wait_for_logins(11)[10].field("backend"), name);
    // Such a service is not offered (RFC 2782).
    dns.set(name, &[Record::Srv(0, 0, 0, "")]);
    wait_until("it is said", || {
        let said = lines(&proxy, "backend keeps the addresses that it had");
        said.iter().any(|line| line.field("error").contains("there is no such service"))
    });
    within(PATIENCE, "no connection is left", || c.connections() == 0);
}
