//! SIGHUP with another configuration: as a whole or not at all, and no live session notices.

mod support;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use rustls::HandshakeKind;
use support::{
    Authority, Client, FakeBackend, LogLine, PATIENCE, Proxy, Session, Switch, TlsOptions, demo,
    free_port, wait_until,
};

const TAKEN: &str = "imaps_proxy_reloads_total{result=\"ok\",what=\"configuration\"}";
const REFUSED: &str = "imaps_proxy_reloads_total{result=\"failed\",what=\"configuration\"}";
const WELL: &str = "imaps_proxy_last_reload_successful{what=\"configuration\"}";

/// What the last line of the log says of a reload that was taken.
#[track_caller]
fn changed(lines: &[String]) -> String {
    let line = lines.last().and_then(|line| LogLine::parse(line)).expect("a line of JSON");
    assert!(line.message().starts_with("configuration reloaded"), "{line:?}");
    assert_eq!(line.level(), "INFO");
    line.field("changed")
}

/// A client at another address than the first listener's.
fn client_at(proxy: &Proxy<'_>, port: u16) -> Client {
    let config = TlsOptions::default().config(&proxy.certificates.roots);
    Client::tls((Ipv4Addr::LOCALHOST, port).into(), &config, "localhost").expect("TLS")
}

fn refuses(port: u16) -> bool {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err()
}

/// Logs in again and again at `address` while `work` runs; how often. Nobody may be turned away.
fn under_load(proxy: &Proxy<'_>, address: SocketAddr, work: impl FnOnce()) -> usize {
    let (over, count) = (AtomicBool::new(false), AtomicUsize::new(0));
    let ends = Ends(&over);
    let config = TlsOptions::default().config(&proxy.certificates.roots);
    thread::scope(|scope| {
        let load = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let mut client =
                    Client::tls(address, &config, "localhost").expect("nobody is refused");
                client.log_in("alice", "secret");
                assert!(client.result("LOGOUT").starts_with("OK"));
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        let _ends = ends;
        wait_until("somebody comes", || count.load(Ordering::Relaxed) > 0 || load.is_finished());
        work();
        let before = count.load(Ordering::Relaxed);
        wait_until("somebody comes afterwards", || {
            count.load(Ordering::Relaxed) > before || load.is_finished()
        });
    });
    count.load(Ordering::Relaxed)
}

/// Ends a thread of the test's, also when the test fails: a scope waits for its threads.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A server whose XBIG stops in the middle of a literal until `go`.
fn slow_download(go: &Switch) -> FakeBackend {
    let go = go.clone();
    FakeBackend::imap("IDLE", move |session: &mut Session, command| {
        if command.name != "XBIG" {
            return false;
        }
        session.send("* 1 FETCH (BODY[] {8}\r\nhalf");
        wait_until("the test lets it go on", || go.is_set());
        session.send(format!("more)\r\n{} OK done\r\n", command.tag))
    })
}

#[test]
fn live_sessions_go_on_while_everything_changes() {
    let go = Switch::default();
    let (old, new) = (slow_download(&go), FakeBackend::imap("XNEW", |_, _| false));
    let (first, second, metrics) = (free_port(), free_port(), free_port());
    let config = format!("listen: [{{ address: '127.0.0.1:{first}' }}]");
    let mut proxy = Proxy::start(&old, &config);
    let (mut idle, mut download, mut between) =
        (proxy.logged_in(), proxy.logged_in(), proxy.logged_in());
    idle.send("i IDLE\r\n");
    idle.expect("+");
    download.send("d XBIG\r\n");
    download.expect("* 1 FETCH");
    let lines = proxy.reload(&format!(
        "{{ listen: [{{ address: '127.0.0.1:{second}' }}], tls: {{ min_version: '1.3', tickets: off }}, \
         backend: {{ servers: [{{ address: '{}' }}], capabilities: {{ add: [XMORE] }} }}, \
         limits: {{ connections: 100 }}, timeouts: {{ idle: 40m }}, \
         metrics: {{ address: '127.0.0.1:{metrics}' }}, log: {{ level: info }} }}",
        new.address
    ));
    assert_eq!(lines.len(), 1, "{lines:?}");
    let line = changed(&lines);
    let before = proxy.metrics;
    for part in [
        format!("listen -127.0.0.1:{first} +127.0.0.1:{second}; "),
        "tls.min_version 1.2 -> 1.3; ".to_owned(),
        "tls.tickets on -> off; ".to_owned(),
        format!("backend.servers -{} +{}; ", old.address, new.address),
        "backend.capabilities.add +XMORE; ".to_owned(),
        "limits.connections 9000 -> 100; ".to_owned(),
        " -> 40m; ".to_owned(),
        format!("metrics.address 127.0.0.1:0 -> 127.0.0.1:{metrics}; "),
        "log.level debug -> info".to_owned(),
    ] {
        assert!(line.contains(&part), "{part:?} is missing: {line}");
    }
    proxy.metrics.set_port(metrics);
    proxy.wait_for_metric(TAKEN, 1.0);
    assert!(refuses(first) && refuses(before.port()));
    assert_eq!(proxy.get("/readyz").0, 200);

    let mut client = client_at(&proxy, second);
    let greeting = client.line();
    assert!(greeting.contains("XNEW") && greeting.contains("XMORE"), "{greeting}");
    assert!(client.result("LOGIN alice secret").starts_with("OK"));
    assert_eq!((old.logins().len(), new.logins().len()), (3, 1));

    idle.send("DONE\r\n");
    idle.expect("i OK");
    go.set();
    assert_eq!(download.exactly(4), b"half");
    download.expect("more)");
    download.expect("d OK");
    for session in [&mut idle, &mut download, &mut between] {
        assert!(session.result("NOOP").starts_with("OK"));
    }
    let series = proxy.series();
    let of = |what: &str| series.keys().filter(|name| name.contains(what)).count();
    assert_eq!(series[&format!("imaps_proxy_backend_up{{backend=\"{}\"}}", new.address)], 1.0);
    assert!(
        !series.contains_key(&format!("imaps_proxy_backend_up{{backend=\"{}\"}}", old.address))
    );
    assert!(of(&format!("\"{}\"", old.address)) > 0, "its sessions still count");
    assert_eq!(of(&format!("listener=\"127.0.0.1:{first}\"")), 0);
    assert_eq!(of(&format!("listener=\"127.0.0.1:{second}\"")), 1);

    drop((idle, download, between, client));
    proxy.wait_for_ends("client_closed", 4);
    assert_eq!(proxy.hang_up().len(), 1);
    wait_until("what was counted of a server without sessions is gone", || {
        !proxy.series().keys().any(|name| name.contains(&format!("\"{}\"", old.address)))
    });
    proxy.stop();
}

#[test]
fn a_file_that_does_not_load_changes_nothing() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let good = fs::read_to_string(proxy.config_file()).unwrap();
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, free_port())).unwrap();
    let taken = taken.local_addr().unwrap();
    let file = proxy.config_file().display().to_string();
    let unused = free_port();
    let cases = [
        (format!("{good}\nlimits: {{"), format!("{file}:")),
        (format!("{good}\nlimit: {{ connections: 5 }}\n"), ":1: unknown key `limit`".to_owned()),
        (
            format!(
                "listen: [{{ address: '127.0.0.1:{unused}' }}]\n\
                 tls: {{ certificates: [{{ cert: /nowhere.pem, key: /nowhere.key }}] }}\n\
                 backend: {{ servers: [{{ address: '127.0.0.1:1' }}] }}"
            ),
            "/nowhere.pem".to_owned(),
        ),
        (
            format!(
                "listen: [{{ address: '127.0.0.1:{unused}' }}, {{ address: '{taken}' }}]\n\
                 tls: {{ certificates: [{{ cert: '{}', key: '{}' }}] }}\n\
                 backend: {{ servers: [{{ address: '127.0.0.1:1' }}] }}",
                proxy.certificates.cert.display(),
                proxy.certificates.key.display()
            ),
            format!("can't listen on {taken} (listen[].address): "),
        ),
    ];
    let before = proxy.fd_count();
    let mut count = 0.0;
    under_load(&proxy, proxy.imaps, || {
        for (text, expected) in cases {
            fs::write(proxy.config_file(), &text).unwrap();
            let lines = proxy.hang_up();
            let errors: Vec<_> =
                lines.iter().map(|line| LogLine::parse(line).expect("JSON")).collect();
            assert!(errors.iter().all(|line| line.level() == "ERROR"), "{lines:?}");
            assert_eq!(errors.len(), 1, "{lines:?}");
            assert_eq!(errors[0].message(), "configuration refused, the old one stays");
            let error = errors[0].field("error");
            assert!(error.contains(&expected) && !error.contains('\n'), "{error:?}");
            count += 1.0;
            proxy.wait_for_metric(REFUSED, count);
            assert_eq!((proxy.metric(TAKEN), proxy.metric(WELL)), (0.0, 0.0));
            assert!(refuses(unused));
        }
    });
    fs::remove_file(proxy.config_file()).unwrap();
    let lines = proxy.hang_up();
    assert!(lines[0].contains("it does not exist"), "{lines:?}");
    fs::write(proxy.config_file(), good).unwrap();
    assert_eq!(changed(&proxy.hang_up()), "");
    proxy.wait_for_metric(WELL, 1.0);
    wait_until("no descriptor is left", || proxy.fd_count() <= before + 1);
}

#[test]
fn a_listener_keeps_its_socket_and_changes_its_mode() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let mut before = proxy.logged_in();
    let connects = AtomicUsize::new(0);
    let over = AtomicBool::new(false);
    let ends = Ends(&over);
    thread::scope(|scope| {
        let _ends = ends;
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                TcpStream::connect(proxy.imaps).expect("nobody is refused");
                connects.fetch_add(1, Ordering::Relaxed);
            }
        });
        for (mode, line) in [
            ("starttls", "listen[127.0.0.1:0].tls implicit -> starttls"),
            ("implicit", "listen[127.0.0.1:0].tls starttls -> implicit"),
        ] {
            let yaml = format!("listen: [{{ address: '127.0.0.1:0', tls: {mode} }}]");
            assert_eq!(changed(&proxy.reload(&yaml)), line);
            if mode == "starttls" {
                let mut client = proxy.plain();
                assert!(client.line().contains("STARTTLS"));
                assert!(client.result("STARTTLS").starts_with("OK"));
            } else {
                proxy.logged_in();
            }
        }
    });
    assert!(connects.load(Ordering::Relaxed) > 0);
    assert!(before.result("NOOP").starts_with("OK"));
    drop(before);
    proxy.stop();
}

#[test]
fn an_address_takes_the_place_of_one_that_it_overlaps_with() {
    let backend = FakeBackend::plain();
    let (port, taken) =
        (free_port(), TcpListener::bind((Ipv4Addr::LOCALHOST, free_port())).unwrap());
    let listen = |address: &str| format!("listen: [{{ address: '{address}:{port}' }}]");
    let proxy = Proxy::start(&backend, &listen("127.0.0.1"));
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    under_load(&proxy, at, || {
        for address in ["0.0.0.0", "[::]", "0.0.0.0", "127.0.0.1", "[::]"] {
            let lines = proxy.reload(&listen(address));
            assert!(changed(&lines).ends_with(&format!("+{address}:{port}")), "{lines:?}");
        }
        // One that fails on the way.
        let taken = taken.local_addr().unwrap();
        let both = format!("listen: [{{ address: '127.0.0.1:{port}' }}, {{ address: '{taken}' }}]");
        let lines = proxy.reload(&both);
        assert!(lines[0].contains("can't listen on"), "{lines:?}");
    });
    assert!(TcpListener::bind(at).is_err(), "the port is ours alone");
    // The listener of metrics becomes one for mail.
    let metrics = proxy.metrics;
    proxy.reload(&format!(
        "{{ listen: [{{ address: '{metrics}' }}], metrics: {{ address: '127.0.0.1:{port}' }} }}"
    ));
    client_at(&proxy, metrics.port()).log_in("alice", "secret");
    let mut proxy = proxy;
    proxy.metrics = at;
    assert_eq!(proxy.get("/readyz").0, 200);
}

#[test]
fn nobody_is_turned_away_while_the_servers_change() {
    let slow = FakeBackend::raw(|session| {
        thread::sleep(Duration::from_millis(300)); // of a machine that is slow to greet
        session.greet("IMAP4rev1");
        session.serve("IMAP4rev1", &|_, _| false);
    });
    let quick = FakeBackend::plain();
    let proxy = Proxy::start(&quick, "");
    let servers = |list: &[&FakeBackend]| {
        let list: Vec<_> = list.iter().map(|b| format!("{{ address: '{}' }}", b.address)).collect();
        format!("backend: {{ servers: [{}] }}", list.join(", "))
    };
    under_load(&proxy, proxy.imaps, || {
        for list in [&[&slow][..], &[&quick, &slow], &[&quick], &[&slow]] {
            proxy.reload(&servers(list));
        }
        proxy.reload("backend: { capabilities: { add: [XMORE] }, connect_timeout: 3s }");
    });
    assert!(proxy.sessions().iter().all(|line| line.field("reason") == "logout"));
    assert!(proxy.connect().line().contains("XMORE"));
}

#[test]
fn limits_and_capabilities_are_those_of_the_next_client() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let mut before = proxy.connect();
    assert!(before.line().contains(" IDLE"));
    proxy.reload(
        "{ limits: { connections: 1 }, backend: { capabilities: { hide: [IDLE], add: [XADDED] } } }",
    );
    assert!(proxy.connect_with(&TlsOptions::default()).is_err(), "sessions of both count");
    proxy
        .wait_for_metric("imaps_proxy_sessions_closed_total{reason=\"too_many_connections\"}", 1.0);
    assert!(before.command("CAPABILITY")[0].contains(" IDLE"), "it keeps what it began with");
    drop(before);
    proxy.wait_for_ends("client_closed", 1);
    let mut after = proxy.connect();
    let greeting = after.line();
    assert!(greeting.contains(" XADDED") && !greeting.contains(" IDLE"), "{greeting}");
    assert!(after.result("LOGIN alice secret").starts_with("OK"));
    drop(after);
    proxy.stop();
}

#[test]
fn another_certificate_is_served_and_tickets_stay_good() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let config = TlsOptions::default().config(&proxy.certificates.roots);
    let connect = || Client::tls(proxy.imaps, &config, "localhost").expect("TLS");
    connect().log_in("alice", "secret");
    assert_eq!(
        changed(&proxy.reload("tls: { unknown_name: refuse, min_version: '1.3' }")),
        "tls.unknown_name default -> refuse; tls.min_version 1.2 -> 1.3"
    );
    let mut resumed = connect();
    resumed.log_in("alice", "secret");
    assert_eq!(resumed.session().handshake_kind(), Some(HandshakeKind::Resumed));
    drop(resumed);

    let authority = Authority::new();
    let (cert, key) =
        (proxy.folder.path().join("other.pem"), proxy.folder.path().join("other.key"));
    authority.issue(&["localhost"]).write(&cert, &key);
    let pair = format!("{{ cert: '{}', key: '{}' }}", cert.display(), key.display());
    proxy.reload(&format!("tls: {{ certificates: [{pair}] }}"));
    let fresh = TlsOptions::default();
    assert!(
        Client::tls(proxy.imaps, &fresh.config(&proxy.certificates.roots), "localhost").is_err()
    );
    Client::tls(proxy.imaps, &fresh.config(&authority.roots), "localhost").expect("the new one");
    // It is followed from now on.
    let renewed = authority.issue(&["localhost"]);
    renewed.write(&cert, &key);
    wait_until("a renewed one is served", || {
        let client = Client::tls(proxy.imaps, &fresh.config(&authority.roots), "localhost");
        client.is_ok_and(|c| c.session().peer_certificates().is_some_and(|p| p[0] == renewed.der))
    });
    proxy.stop();
}

#[test]
fn level_and_format_of_the_log_change() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::starting(&backend).config("log: { level: info }").fixed_ports().start();
    assert_eq!(changed(&proxy.reload("log: { level: error }")), "log.level info -> error");
    proxy.wait_for_metric(TAKEN, 1.0);
    let lines = proxy.log().len();
    drop(proxy.logged_in());
    proxy.wait_for_metric("imaps_proxy_sessions_closed_total{reason=\"client_closed\"}", 1.0);
    let line = proxy.reload("log: { level: info, format: text }").remove(0);
    assert!(
        line.contains(" INFO configuration reloaded changed=\"log.level error -> info; log.format json -> text\""),
        "{line}"
    );
    assert_eq!(proxy.log().len(), lines, "nothing was logged in between, and no more JSON");
    drop(proxy.logged_in());
    wait_until("the session's line is text", || proxy.text().contains(" INFO session session="));
    proxy.stop();
}

#[test]
fn a_drain_takes_as_long_as_the_last_configuration_says() {
    let go = Switch::default();
    let backend = slow_download(&go);
    let mut proxy = Proxy::start(&backend, "timeouts: { drain: 10m }");
    let mut stuck = proxy.logged_in();
    stuck.send("d XBIG\r\n");
    stuck.expect("* 1 FETCH");
    assert_eq!(changed(&proxy.reload("timeouts: { drain: 1s }")), "timeouts.drain 10m -> 1s");
    let start = Instant::now();
    proxy.terminate();
    assert_eq!(proxy.wait(PATIENCE).code(), Some(0));
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert_eq!(proxy.sessions()[0].field("reason"), "drain");
    go.set();
}

#[test]
fn a_file_that_is_as_before_changes_nothing_and_says_so() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::starting(&backend).descriptors(300).start();
    let warned =
        || proxy.log().iter().filter(|l| l.message().contains("limits.connections is")).count();
    assert_eq!(warned(), 1);
    let dials = backend.dials();
    let line = LogLine::parse(&proxy.hang_up()[0]).unwrap();
    assert_eq!(line.message(), "configuration reloaded, nothing changed");
    // At once, as by an impatient operator: every one is answered, by one line for all or each by its own.
    proxy.signal(Signal::HUP);
    proxy.hang_up();
    proxy.logged_in();
    proxy.wait_for_ends("client_closed", 1);
    assert_eq!((warned(), backend.dials() - dials), (1, 1), "neither warned nor asked again");
    assert_eq!(proxy.metric(WELL), 1.0);
    proxy.stop();
}

#[test]
fn fifty_reloads_leave_nothing_behind() {
    let (one, other) = (FakeBackend::plain(), FakeBackend::plain());
    let proxy = Proxy::start(&one, "");
    let ports = [free_port(), free_port()];
    let none_left = || {
        wait_until("all sessions have ended", || proxy.sum("imaps_proxy_sessions", &[]) == 0.0);
    };
    let mut turn = |n: usize| {
        // The series of a server stay until a reload after its last session.
        none_left();
        let (backend, version) = if n.is_multiple_of(2) { (&other, "1.3") } else { (&one, "1.2") };
        let lines = proxy.reload(&format!(
            "{{ listen: [{{ address: '127.0.0.1:0' }}, {{ address: '127.0.0.1:{}' }}], \
               tls: {{ min_version: '{version}', unknown_name: {} }}, \
               backend: {{ servers: [{{ address: '{}' }}] }} }}",
            ports[n % 2],
            if n % 4 < 2 { "refuse" } else { "default" },
            backend.address
        ));
        assert_ne!(changed(&lines), "");
        drop(client_at(&proxy, ports[n % 2]));
    };
    (0..8).for_each(&mut turn);
    let quiet = || {
        none_left();
        (proxy.fd_count(), proxy.rss(), proxy.series().len())
    };
    let before = quiet();
    (8..58).for_each(&mut turn);
    let after = quiet();
    assert!(after.0 <= before.0 + 1, "descriptors: {before:?} {after:?}");
    assert!(after.1 < before.1 + (3 << 20), "bytes: {before:?} {after:?}");
    assert_eq!(after.2, before.2, "series");
    // Were the servers that are gone still asked, each would be so many times.
    assert!(one.dials() + other.dials() <= 58 + 2, "{} {}", one.dials(), other.dials());
    proxy.stop();
}

/// A NUL would hide what stands behind it, and the rest would be taken.
#[test]
fn a_file_with_a_nul_character_is_refused_and_the_old_one_stays() {
    let backend = FakeBackend::plain();
    let mut proxy = Proxy::start(&backend, "");
    let mut client = proxy.logged_in();
    let mut text = fs::read_to_string(proxy.config_file()).unwrap();
    let line = text.lines().count() + 1;
    text.push_str("\0\nlimits: { connections: 1 }\n");
    fs::write(proxy.config_file(), text).unwrap();
    let lines = proxy.hang_up();
    assert_eq!(lines.len(), 1, "{lines:?}");
    let place = format!("config.yaml:{line}:1: a NUL character");
    assert!(lines[0].contains("refused") && lines[0].contains(&place), "{lines:?}");
    assert_eq!(proxy.metric(REFUSED), 1.0);
    assert!(client.result("NOOP").starts_with("OK"));
    drop(client);
    proxy.terminate();
    assert_eq!(proxy.wait(PATIENCE).code(), Some(0));
}

#[test]
fn the_demo_reads_its_certificates_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut demo = demo(folder.path());
    demo.signal(Signal::HUP);
    demo.wait_for_line("SIGHUP: certificates were read again");
    demo.signal(Signal::TERM);
    assert_eq!(demo.wait(PATIENCE).code(), Some(0));
}

#[test]
fn signal_does_not_wait_for_a_configuration_that_never_ends() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let never_ends = proxy.reload_without_end();
    proxy.stop();
    drop(never_ends);
}
