//! `identity: dovecot-id`: an ID command tells the server who the client is, before anything of the client.

mod support;

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use support::{Backend, Dovecot, FakeBackend, PATIENCE, Proxy, TlsOptions, within};

const DOVECOT_ID: &str = "backend: { identity: dovecot-id }";
/// Where Dovecot listens: to 127.0.0.1, from which the proxy calls, another machine.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const CLIENT: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 9);
const TRUSTING: &str = "login_trusted_networks = 127.0.0.1";

/// The line that Dovecot logs for the one login.
fn login_line(dovecot: &Dovecot) -> String {
    let mut found = None;
    within(PATIENCE, "Dovecot logs the login", || {
        let log = dovecot.log();
        found = log.lines().find(|line| line.contains("Login: user=<alice>")).map(str::to_owned);
        found.is_some()
    });
    found.expect("it was there")
}

/// The ID commands that arrived, with `TAG` for the tag.
fn ids(backend: &FakeBackend) -> Vec<String> {
    let received = backend.received();
    let commands = received.split("\r\n").filter_map(|line| line.split_once(" ID "));
    commands.map(|(_, list)| format!("TAG ID {list}")).collect()
}

#[test]
fn dovecot_that_trusts_the_proxy_logs_the_clients_address_and_our_session() {
    let dovecot = Dovecot::at(ELSEWHERE, TRUSTING);
    let proxy = Proxy::start(&dovecot, DOVECOT_ID);
    let mut client = proxy.connect_from(CLIENT);
    client.log_in("alice", "secret");
    let line = login_line(&dovecot);
    let session = proxy.wait_for_logins(1)[0].field("session");
    assert!(line.contains("rip=127.0.0.9, lip=127.0.0.1,"), "{line}");
    assert!(line.contains(&format!("session=<{session}>")), "{line}");
    assert!(client.result("NOOP").starts_with("OK"));
    drop(client);
    proxy.stop();
}

#[test]
fn behind_starttls_to_the_server_the_id_is_inside_tls() {
    let dovecot = Dovecot::at(ELSEWHERE, TRUSTING);
    let tls = "backend: { tls: { mode: starttls, verify: insecure } }";
    let proxy = Proxy::starting(&dovecot).config(DOVECOT_ID).config(tls).start();
    proxy.connect_from(CLIENT).log_in("alice", "secret");
    let line = login_line(&dovecot);
    assert!(line.contains("rip=127.0.0.9, lip=127.0.0.1,") && line.contains("TLS"), "{line}");
}

#[test]
fn dovecot_that_does_not_trust_the_proxy_takes_everybody_for_it() {
    let dovecot = Dovecot::at(ELSEWHERE, "");
    let proxy = Proxy::start(&dovecot, DOVECOT_ID);
    let mut client = proxy.connect_from(CLIENT);
    client.log_in("alice", "secret");
    let line = login_line(&dovecot);
    assert!(line.contains("rip=127.0.0.1, lip=127.0.0.2,"), "{line}");
}

#[test]
fn a_client_that_claims_another_address_is_known_by_its_own() {
    let dovecot = Dovecot::at(ELSEWHERE, TRUSTING);
    let proxy = Proxy::start(&dovecot, DOVECOT_ID);
    let mut client = proxy.connect_from(CLIENT);
    client.expect("* OK ");
    let claim = "ID (\"X-Originating-IP\" \"6.6.6.6\" \"x-session-id\" \"evil\" \"name\" \"x\" \"x-connected-ip\" \"6.6.6.6\")";
    assert!(client.result(claim).starts_with("OK"));
    // And once more, pipelined with the login.
    client.send(format!("a {claim}\r\nb LOGIN alice secret\r\n"));
    client.until("b OK");
    let line = login_line(&dovecot);
    assert!(line.contains("rip=127.0.0.9, lip=127.0.0.1,"), "{line}");
    assert!(!dovecot.log().contains("6.6.6.6") && !dovecot.log().contains("evil"));
}

#[test]
fn one_guesser_does_not_slow_the_others_down() {
    let dovecot = Dovecot::at(ELSEWHERE, TRUSTING);
    let proxy = Proxy::start(&dovecot, DOVECOT_ID);
    let mut guesser = proxy.connect_from(Ipv4Addr::new(127, 0, 0, 66));
    guesser.expect("* OK ");
    assert!(guesser.result("LOGIN alice wrong").starts_with("NO"));
    let start = std::time::Instant::now();
    proxy.connect_from(CLIENT).log_in("alice", "secret");
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[test]
fn one_id_holds_our_fields_and_behind_them_the_clients() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, DOVECOT_ID);
    let mut client = proxy.connect();
    client.expect("* OK ");
    client.command("ID (\"name\" \"Thunder\\\"bird\" \"x-forward-a\" \"b\" \"os\" NIL)");
    let port = client.tcp().local_addr().expect("it is connected").port();
    assert!(client.result("LOGIN alice secret").starts_with("OK"));
    let session = proxy.wait_for_logins(1)[0].field("session");
    let listener = proxy.imaps.port();
    assert_eq!(
        ids(&backend),
        [format!(
            "TAG ID (\"x-session-id\" \"{session}\" \
             \"x-originating-ip\" \"127.0.0.1\" \"x-originating-port\" \"{port}\" \
             \"x-connected-ip\" \"127.0.0.1\" \"x-connected-port\" \"{listener}\" \
             \"x-proxy-ttl\" \"6\" \"x-client-transport\" \"TLS\" \
             \"x-connected-name\" \"localhost\" \"name\" \"Thunder\\\"bird\" \"os\" NIL)"
        )]
    );
    let received = backend.received();
    let (id, login) = (received.find(" ID (").unwrap(), received.find(" LOGIN \"").unwrap());
    let tag = |at: usize| received[..at].rsplit('\n').next().unwrap().to_owned();
    assert!(id < login, "{received}");
    assert!(tag(id).len() == 17 && tag(id) != tag(login), "two tags, neither to be guessed");
    drop(client);
    proxy.stop();
}

#[test]
fn what_is_pipelined_and_what_authenticates_comes_behind_the_id() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, DOVECOT_ID);
    let mut client = proxy.connect();
    client.send("a ID NIL\r\nb LOGIN alice secret\r\nc NOOP\r\n");
    let lines = client.until("c OK");
    assert!(!lines.iter().any(|line| line.contains("legacy\"")), "its ID is not for us: {lines:?}");
    let mut client = proxy.connect();
    client.expect("* OK ");
    assert!(client.result("AUTHENTICATE PLAIN AGFsaWNlAHNlY3JldA==").starts_with("OK"));
    let received = backend.received();
    let order: Vec<&str> = received
        .split("\r\n")
        .filter_map(|line| line.split(' ').nth(1))
        .filter(|name| ["ID", "LOGIN", "NOOP", "AUTHENTICATE"].contains(name))
        .collect();
    assert_eq!(order, ["ID", "LOGIN", "NOOP", "ID", "AUTHENTICATE"]);
}

/// A backend that answers every ID with `answer`, `TAG` in it replaced, and logs everybody in.
fn answering(capabilities: &'static str, answer: &'static str) -> FakeBackend {
    FakeBackend::imap(capabilities, move |session, command| {
        if command.name == "ID" {
            session.send(answer.replace("TAG", &command.tag));
        }
        command.name == "ID"
    })
}

#[test]
fn a_server_that_refuses_the_id_still_serves_and_the_log_says_so_once() {
    for answer in ["TAG BAD Invalid ID parameters\r\n", "* OK by the way\r\nTAG NO not now\r\n"] {
        let backend = answering("ID", answer);
        let proxy = Proxy::start(&backend, DOVECOT_ID);
        drop((proxy.logged_in(), proxy.logged_in()));
        proxy.wait_for_logins(2);
        let message = "backend takes a client for the proxy";
        let log: Vec<_> =
            proxy.log().into_iter().filter(|line| line.message() == message).collect();
        assert_eq!(log.len(), 1, "{log:?}");
        assert!(log[0].field("why").contains("refuses our ID"), "{log:?}");
        assert_eq!(ids(&backend).len(), 2, "asked anew by every session, and by no look of ours");
    }
}

#[test]
fn a_server_without_id_still_serves_and_gets_none() {
    let backend = FakeBackend::imap("", |_, _| false);
    let proxy = Proxy::start(&backend, DOVECOT_ID);
    let mut client = proxy.connect();
    client.expect("* OK ");
    client.command("ID (\"name\" \"x\")");
    assert!(client.result("LOGIN alice secret").starts_with("OK"));
    within(PATIENCE, "the log says so", || proxy.text().contains("it does not offer ID"));
    assert_eq!(ids(&backend), [""; 0]);
}

#[test]
fn whatever_else_a_server_says_to_the_id_it_gets_no_password() {
    let endless = Box::leak("* ID (\"a\" NIL)\r\n".repeat(1000).into_boxed_str());
    let long = Box::leak(format!("* ID (\"{}\")\r\nTAG OK\r\n", "x".repeat(9000)).into_boxed_str());
    for (answer, why) in [
        ("* ID NIL\r\n* BYE go away\r\n", "BYE"),
        ("HTTP/1.1 400 Bad Request\r\n", "does not speak IMAP"),
        ("OTHER OK done\r\n", "does not speak IMAP"),
        (endless, "more than 8192 bytes"),
        (long, "more than 8192 bytes"),
        ("", "no answer within 300ms"),
    ] {
        let backend = answering("ID", answer);
        let proxy = Proxy::starting(&backend)
            .config(DOVECOT_ID)
            .config("timeouts: { backend_greeting: 300ms }")
            .start();
        let mut client = proxy.connect();
        client.expect("* OK ");
        let result = client.result("LOGIN alice secret");
        assert!(result.starts_with("NO [UNAVAILABLE]"), "{answer:.40}: {result}");
        assert_eq!(backend.logins(), []);
        within(PATIENCE, &format!("the log says {why:?}"), || {
            let errors = proxy.log().into_iter().map(|line| line.field("error"));
            errors.into_iter().any(|error| error.contains("by ID") && error.contains(why))
        });
        let failures = "imaps_proxy_backend_connect_failures_total";
        assert_eq!(proxy.sum(failures, &["reason=\"id\""]), 1.0);
    }
}

#[test]
fn a_server_that_breaks_off_at_the_id_costs_a_login_nothing_but_time() {
    let broken = FakeBackend::imap("ID", |session, command| {
        if command.name == "ID" {
            session.stop();
        }
        command.name == "ID"
    });
    let good = FakeBackend::plain();
    let servers = format!(
        "backend: {{ identity: dovecot-id, servers: [{{ address: '{}' }}, {{ address: '{}' }}] }}",
        broken.address(),
        good.address()
    );
    let proxy = Proxy::start(&broken, &servers);
    within(PATIENCE, "both are up", || proxy.sum("imaps_proxy_backend_up", &[]) > 1.5);
    let _client = proxy.logged_in();
    assert_eq!((broken.logins().len(), good.logins().len()), (0, 1));
}

#[test]
fn a_client_whom_the_server_refuses_takes_no_server_from_the_others() {
    // One that says BYE to what some client tells of itself.
    let refuse = || {
        FakeBackend::imap("ID", |session, command| {
            let refused = command.name == "ID" && command.line.contains("\"odd\"");
            if refused {
                session.send("* BYE Input buffer full, aborting\r\n");
                session.stop();
            }
            refused
        })
    };
    let (first, second) = (refuse(), refuse());
    let servers = format!(
        "backend: {{ identity: dovecot-id, servers: [{{ address: '{}' }}, {{ address: '{}' }}] }}",
        first.address(),
        second.address()
    );
    let proxy = Proxy::start(&first, &servers);
    let up = || proxy.sum("imaps_proxy_backend_up", &[]) > 1.5;
    within(PATIENCE, "both are up", up);
    let mut client = proxy.connect();
    client.expect("* OK ");
    client.command("ID (\"name\" \"odd\")");
    assert!(client.result("LOGIN alice secret").starts_with("NO [UNAVAILABLE]"));
    assert!(up(), "both still are");
    assert_eq!(proxy.sum("imaps_proxy_backend_ejections_total", &[]), 0.0);
    assert_eq!(proxy.sum("imaps_proxy_backend_connect_failures_total", &["reason=\"id\""]), 2.0);
    drop(proxy.logged_in());
}

#[test]
fn dovecot_reads_whatever_a_client_may_tell_of_itself() {
    let dovecot = Dovecot::at(ELSEWHERE, TRUSTING);
    for config in [DOVECOT_ID, "backend: { identity: none }"] {
        let proxy = Proxy::start(&dovecot, config);
        for (text, count, pairs) in [("v", 1000, 6), ("\\\"", 500, 6), ("\\\"", 1024, 1)] {
            let value = text.repeat(count);
            let pairs: Vec<_> = (0..pairs).map(|n| format!("\"k{n}\" \"{value}\"")).collect();
            let mut client = proxy.connect();
            client.expect("* OK ");
            let answer = client.result(&format!("ID ({})", pairs.join(" ")));
            assert!(answer.starts_with("OK"), "{answer}");
            let answer = client.result("LOGIN alice secret");
            assert!(answer.starts_with("OK"), "{config}, {} bytes: {answer}", value.len());
        }
        proxy.stop();
    }
}

#[test]
fn identity_is_a_matter_of_each_server() {
    let backend = FakeBackend::plain();
    let yaml = format!(
        "backend: {{ identity: dovecot-id, servers: [{{ address: '{}', identity: none }}] }}",
        backend.address()
    );
    let proxy = Proxy::start(&backend, &yaml);
    let _client = proxy.logged_in();
    assert_eq!(ids(&backend), [""; 0]);
}

/// Speaks TLS for a proxy that calls another one in plaintext, as a stunnel in between would.
struct Bridge {
    address: SocketAddr,
    target: Arc<Mutex<(SocketAddr, Option<Arc<ClientConfig>>)>>,
}

impl Bridge {
    fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback is there");
        let address = listener.local_addr().expect("it is bound");
        let bridge = Self { address, target: Arc::new(Mutex::new((target, None))) };
        let target = Arc::clone(&bridge.target);
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let (address, config) = target.lock().unwrap().clone();
                thread::spawn(move || carry(near, address, config));
            }
        });
        bridge
    }

    fn turn_to(&self, proxy: &Proxy<'_>) {
        let config = TlsOptions::default().config(&proxy.certificates.roots);
        *self.target.lock().unwrap() = (proxy.imaps, Some(config));
    }
}

impl Backend for Bridge {
    fn address(&self) -> String {
        self.address.to_string()
    }

    fn connections(&self) -> usize {
        0
    }
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

fn carry(mut near: TcpStream, address: SocketAddr, config: Option<Arc<ClientConfig>>) {
    let Ok(tcp) = TcpStream::connect(address) else { return };
    for socket in [&near, &tcp] {
        socket.set_read_timeout(Some(Duration::from_millis(5))).expect("a limit above zero");
    }
    let mut far: Box<dyn Stream> = match config {
        None => Box::new(tcp),
        Some(config) => {
            let name = ServerName::try_from("localhost").expect("it is a name");
            let connection =
                ClientConnection::new(config, name).expect("the configuration is good");
            Box::new(StreamOwned::new(connection, tcp))
        }
    };
    let pass = |from: &mut dyn Stream, to: &mut dyn Stream| {
        let mut chunk = [0; 4096];
        match from.read(&mut chunk) {
            Ok(0) => false,
            Ok(count) => to.write_all(&chunk[..count]).and_then(|()| to.flush()).is_ok(),
            Err(error) => {
                matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
            }
        }
    };
    while pass(&mut far, &mut near) && pass(&mut near, &mut far) {}
}

#[test]
fn proxies_in_a_loop_end_a_login_after_a_few_rounds() {
    let backend = FakeBackend::plain();
    let (first_door, second_door) = (Bridge::to(backend.address), Bridge::to(backend.address));
    let first = Proxy::start(&first_door, DOVECOT_ID);
    let second = Proxy::start(&second_door, DOVECOT_ID);
    // Both have seen a server. Now each has the other as its server.
    first_door.turn_to(&second);
    second_door.turn_to(&first);
    let mut client = first.connect();
    client.expect("* OK ");
    let result = client.result("LOGIN alice secret");
    assert!(result.starts_with("NO [UNAVAILABLE]"), "{result}");
    let rounds = || first.logins().len() + second.logins().len();
    within(PATIENCE, "all logins have ended", || rounds() == 7);
    let loops = |proxy: &Proxy<'_>| {
        proxy.log().iter().filter(|line| line.message().starts_with("loop: ")).count()
    };
    within(PATIENCE, "one of them says loop", || loops(&first) + loops(&second) == 1);
    assert_eq!(backend.logins(), []);
}

#[test]
fn who_says_that_no_proxy_may_follow_is_not_passed_on() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, DOVECOT_ID);
    for (ttl, result) in
        [("1", "NO [UNAVAILABLE]"), ("0", "NO [UNAVAILABLE]"), ("2", "OK"), ("900", "OK")]
    {
        let mut client = proxy.connect();
        client.expect("* OK ");
        client.command(&format!("ID (\"x-proxy-ttl\" \"{ttl}\")"));
        let answer = client.result("LOGIN alice secret");
        assert!(answer.starts_with(result), "{ttl}: {answer}");
    }
    let ttls: Vec<_> = ids(&backend)
        .iter()
        .map(|id| id.split("\"x-proxy-ttl\" ").nth(1).expect("it is there")[..3].to_owned())
        .collect();
    assert_eq!(ttls, ["\"1\"", "\"6\""], "one less, and never more than we would allow");
}
