//! A port for STARTTLS: nothing but the way to TLS in plaintext, and nothing of it inside TLS (tables A and B).

mod support;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, ProtocolVersion};
use support::{
    Backend, Client, Dovecot, End, FakeBackend, PATIENCE, Proxy, TlsOptions, Unreachable, program,
    run, within,
};

const LIMIT: Duration = Duration::from_secs(60);
const NO: &str = "NO [PRIVACYREQUIRED] Use STARTTLS before you log in.";

/// A proxy with a port of each kind.
struct Both<'a> {
    proxy: Proxy<'a>,
    address: SocketAddr,
}

impl<'a> Both<'a> {
    #[track_caller]
    fn start(backend: &'a dyn Backend, yaml: &str) -> Self {
        Self::of(Proxy::starting(backend).config(LISTEN).config(yaml).start())
    }

    #[track_caller]
    fn of(proxy: Proxy<'a>) -> Self {
        let address = within_log(&proxy);
        Self { proxy, address }
    }

    fn plain(&self) -> Client {
        Client::plain(self.address).expect("the proxy listens")
    }
}

const LISTEN: &str =
    "listen: [{ address: '127.0.0.1:0' }, { address: '127.0.0.1:0', tls: starttls }]";

#[track_caller]
fn within_log(proxy: &Proxy<'_>) -> SocketAddr {
    let find = || {
        let line = proxy.log().into_iter().find(|line| {
            line.message() == "listening" && line.field("service") == "imap with STARTTLS"
        });
        line.map(|line| line.field("address").parse().expect("an address"))
    };
    within(PATIENCE, "it listens for STARTTLS", || find().is_some());
    find().expect("it was there")
}

#[test]
fn plaintext_is_greeted_with_the_way_to_tls_only() {
    let backend = FakeBackend::imap("SASL-IR ID IDLE AUTH=PLAIN AUTH=LOGIN", |_, _| false);
    let both = Both::start(&backend, "backend: { capabilities: { hide: [LOGINDISABLED] } }");
    let dials = backend.dials();
    let mut client = both.plain();
    let greeting = client.expect("* OK [CAPABILITY IMAP4rev1 ");
    let words = "IMAP4rev1 ID IDLE STARTTLS LOGINDISABLED";
    assert!(greeting.contains(&format!("[CAPABILITY {words}] ")), "{greeting}");
    let answer = client.command("CAPABILITY");
    assert_eq!(answer[0], format!("* CAPABILITY {words}"));
    assert!(client.result("NOOP").starts_with("OK"));
    assert_eq!(client.command("ID (\"name\" \"x\")")[0], "* ID (\"name\" \"imaps-proxy\")");
    assert!(client.result("SELECT INBOX").starts_with("BAD"));
    assert!(client.result("NOOP").starts_with("OK"));
    // A7
    client.send("a LOGIN u p\r\n");
    assert_eq!(client.line(), format!("a {NO}"));
    client.send("b AUTHENTICATE PLAIN\r\n");
    assert_eq!(client.line(), format!("b {NO}"), "no `+`: nobody shall send the rest");
    assert_eq!(client.result("LOGOUT"), "OK LOGOUT completed.");
    assert_eq!(client.end(), End::Orderly);
    assert_eq!(backend.dials(), dials, "the backend was dialled");
    both.proxy.wait_for_ends("logout", 1);
    both.proxy.stop();
}

/// G4 before TLS: the password is neither passed on nor logged, at the most talkative level.
#[test]
fn password_in_plaintext_goes_nowhere() {
    let backend = FakeBackend::plain();
    let both = Both::start(&backend, "log: { level: trace }");
    let (secret, base64) = ("S3cr3tC4nary", "AGFsaWNlAFMzY3IzdEM0bmFyeQ==");
    for (said, answers) in [
        (format!("a LOGIN alice {secret}\r\n"), 1),
        (format!("a LOGIN {{5+}}\r\nalice {{12+}}\r\n{secret}\r\n"), 1),
        (format!("a AUTHENTICATE PLAIN {base64}\r\n"), 1),
        (format!("a LOGIN {{5+}}\r\nalice {secret}\r\nb AUTHENTICATE PLAIN {base64}\r\n"), 2),
    ] {
        let mut client = both.plain();
        client.expect("* OK ");
        client.send(&said);
        for _ in 0..answers {
            let line = client.line();
            assert!(line.ends_with(NO), "{said}: {line}");
        }
        assert!(client.result("NOOP").starts_with("OK"), "{said}");
    }
    // A literal that waits for its `+` is refused before it is there.
    let mut client = both.plain();
    client.expect("* OK ");
    client.send("a LOGIN {5}\r\n");
    assert_eq!(client.line(), format!("a {NO}"));
    client.send("b LOGIN alice {12}\r\n");
    assert_eq!(client.line(), format!("b {NO}"));
    assert!(client.result("NOOP").starts_with("OK"));
    // B1: one that does not wait is read away, and bounded.
    client.send("c LOGIN alice {999999999+}\r\n");
    assert_eq!(client.line(), "* BYE [TOOBIG] Literal too long.");
    assert_eq!(client.end(), End::Orderly);
    both.proxy.wait_for_ends("too_long", 1);
    let text = both.proxy.text();
    let metrics = both.proxy.get("/metrics").1;
    for word in [secret, base64, "alice"] {
        assert!(!text.contains(word) && !metrics.contains(word), "{word}");
        assert!(!backend.received().contains(word), "{word}");
    }
    assert!(both.proxy.logins().is_empty(), "no login was tried");
    both.proxy.stop();
}

#[test]
fn three_logins_in_plaintext_are_enough() {
    let backend = FakeBackend::plain();
    let both = Both::start(&backend, "");
    let mut client = both.plain();
    client.expect("* OK ");
    client.send("a LOGIN u p\r\nb LOGIN {3}\r\nc AUTHENTICATE PLAIN\r\nd STARTTLS\r\n");
    let want = format!("a {NO}\r\nb {NO}\r\nc {NO}\r\n* BYE Too many bad commands.\r\n");
    assert_eq!(client.rest(PATIENCE), want);
    assert_eq!(client.end(), End::Orderly);
    both.proxy.wait_for_ends("too_many_bad_commands", 1);
    both.proxy.stop();
}

/// Whether the client was refused where TLS was to begin, and what it was told.
fn inject(both: &Both<'_>, writes: &[&[u8]]) -> String {
    let mut client = both.plain();
    client.expect("* OK ");
    for (number, bytes) in writes.iter().enumerate() {
        if number > 0 {
            // What comes later meets a proxy that waits for TLS.
            client.expect("a OK ");
        }
        client.send(bytes);
    }
    let told = client.rest(PATIENCE);
    assert_eq!(client.end(), End::Orderly, "a reset loses what was said");
    told
}

/// A1, A2: in the same segment, and in the next one.
#[test]
fn command_sent_together_with_starttls_is_discarded_counted_and_ends_the_session() {
    let backend = FakeBackend::plain();
    let both = Both::start(&backend, "");
    let bye = "* BYE Nothing may follow STARTTLS but TLS.\r\n";
    let rows: [(&[&[u8]], &str); 6] = [
        (&[b"a STARTTLS\r\nb NOOP\r\n"], bye),
        (&[b"a STARTTLS\r\nb LOG"], bye),
        (&[b"a STARTTLS\r\nb LOGIN alice secret\r\n"], bye),
        (&[b"a STARTTLS\r\n", b"b NOOP\r\n"], ""),
        (&[b"a STARTTLS\r\n", b"GET / HTTP/1.1\r\n\r\n"], ""),
        (&[b"a STARTTLS\r\n", b"\0\0\0\0\0"], ""),
    ];
    for (number, (writes, want)) in rows.iter().enumerate() {
        assert_eq!(inject(&both, writes), *want, "row {number}");
        both.proxy.wait_for_ends("plaintext_after_starttls", number + 1);
    }
    let failed = "imaps_proxy_tls_handshake_failures_total{reason=\"plaintext_after_starttls\"}";
    assert_eq!(both.proxy.metric(failed), 6.0);
    assert!(!backend.received().contains("alice"));
    both.proxy.stop();
}

#[test]
fn ssl2_and_silence_after_starttls_have_their_reasons() {
    let backend = FakeBackend::plain();
    let both = Both::start(&backend, "timeouts: { handshake: 1s }");
    let ssl2 = b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10";
    let mut client = both.plain();
    client.expect("* OK ");
    client.send("a STARTTLS\r\n");
    client.expect("a OK ");
    client.send(ssl2);
    assert_eq!(client.rest_bytes(PATIENCE), [21, 3, 1, 0, 2, 2, 70]);
    both.proxy.wait_for_ends("not_tls", 1);
    let mut client = both.plain();
    client.expect("* OK ");
    client.send("a STARTTLS\r\n");
    client.expect("a OK ");
    assert_eq!(client.rest(PATIENCE), "", "nothing in plaintext behind STARTTLS");
    both.proxy.wait_for_ends("handshake_timeout", 1);
    both.proxy.stop();
}

/// Greeting, `pause`, what is said before STARTTLS, STARTTLS, and TLS on the same socket.
#[track_caller]
fn upgrade(both: &Both<'_>, options: &TlsOptions, pause: Duration, before: &str) -> Tls {
    let mut tcp = TcpStream::connect(both.address).unwrap();
    tcp.set_read_timeout(Some(PATIENCE)).unwrap();
    read_until(&mut tcp, "\r\n");
    std::thread::sleep(pause);
    tcp.write_all(format!("{before}s STARTTLS\r\n").as_bytes()).unwrap();
    read_until(&mut tcp, "s OK Begin TLS now.\r\n");
    let name = ServerName::try_from("localhost").unwrap();
    let config = options.config(&both.proxy.certificates.roots);
    let mut session = ClientConnection::new(config, name).unwrap();
    while session.is_handshaking() {
        session.complete_io(&mut tcp).unwrap();
    }
    Tls { session, tcp }
}

/// Byte by byte, since what follows belongs to TLS.
#[track_caller]
fn read_until(tcp: &mut TcpStream, end: &str) {
    let mut read = Vec::new();
    while !read.ends_with(end.as_bytes()) {
        let mut byte = [0];
        assert_eq!(tcp.read(&mut byte).unwrap(), 1, "{}", read.escape_ascii());
        read.push(byte[0]);
    }
}

struct Tls {
    session: ClientConnection,
    tcp: TcpStream,
}

impl Tls {
    /// Sends, and reads until the answer ends so.
    fn ask(&mut self, command: &str, end: &str) -> String {
        let mut stream = rustls::Stream::new(&mut self.session, &mut self.tcp);
        stream.write_all(command.as_bytes()).unwrap();
        let mut answer = String::new();
        while !answer.contains(end) {
            let mut chunk = [0; 4096];
            let read = stream.read(&mut chunk).unwrap();
            assert_ne!(read, 0, "{answer}");
            answer.push_str(std::str::from_utf8(&chunk[..read]).unwrap());
        }
        answer
    }
}

/// RFC 9051 §6.2.1: no second greeting, other capabilities, and nothing of before is there.
#[test]
fn session_after_starttls_is_as_any_other_and_begins_anew() {
    let backend = FakeBackend::plain();
    let both = Both::start(&backend, "");
    for (number, versions) in
        [&[&rustls::version::TLS12][..], &[&rustls::version::TLS13]].into_iter().enumerate()
    {
        let options = TlsOptions { versions: versions.to_vec(), ..TlsOptions::default() };
        // Two bad commands and an ID: neither the count nor the name goes on.
        let before = "x X\r\nx X\r\nx ID (\"name\" \"forged\")\r\nx X\r\nx X\r\n";
        let mut client = upgrade(&both, &options, Duration::ZERO, before);
        let answer = client.ask("b CAPABILITY\r\n", "b OK");
        assert!(answer.starts_with("* CAPABILITY IMAP4rev1 "), "a second greeting: {answer}");
        let list = answer.lines().next().unwrap();
        assert!(list.contains(" AUTH=PLAIN") && list.contains(" SASL-IR"), "{list}");
        assert!(!list.contains("STARTTLS") && !list.contains("LOGINDISABLED"), "{list}");
        // A6
        assert_eq!(client.ask("c STARTTLS\r\n", "\r\n"), "c BAD TLS is already on.\r\n");
        assert_eq!(client.ask("d X\r\n", "\r\n"), "d BAD Unknown command before login.\r\n");
        assert!(client.ask("e LOGIN alice secret\r\nf SELECT INBOX\r\n", "f OK").contains("e OK"));
        assert!(client.ask("g LOGOUT\r\n", "g OK").starts_with("* BYE"));
        assert!(!backend.received().contains("forged"), "{}", backend.received());
        both.proxy.wait_for_ends("logout", number + 1);
        let line = both.proxy.sessions().pop().unwrap();
        let version = client.session.protocol_version().unwrap();
        let name = if version == ProtocolVersion::TLSv1_3 { "TLSv1.3" } else { "TLSv1.2" };
        assert_eq!(
            (line.field("tls_version"), line.field("sni")),
            (name.into(), "localhost".into())
        );
        assert_eq!(line.field("user"), "alice");
    }
    both.proxy.stop();
}

/// E1: one deadline from the greeting on, in plaintext, in TLS and across the two.
#[test]
fn every_wait_before_and_after_starttls_has_its_deadline() {
    let backend = FakeBackend::plain();
    let both = Both::start(&backend, "timeouts: { login: 2s }");
    let mut silent = both.plain();
    silent.expect("* OK ");
    // Talking does not extend it.
    let mut talking = both.plain();
    talking.expect("* OK ");
    let start = Instant::now();
    let last = loop {
        let _ = talking.try_send("a NOOP\r\n");
        let line = talking.line();
        if line.starts_with("* BYE") {
            break line;
        }
        std::thread::sleep(Duration::from_millis(150)); // fewer than twenty commands in two seconds
    };
    assert_eq!(last, "* BYE Login took too long.");
    let took = start.elapsed();
    assert!(took > Duration::from_millis(1500) && took < Duration::from_secs(6), "{took:?}");
    assert_eq!(silent.rest(PATIENCE), "* BYE Login took too long.\r\n");
    assert_eq!(silent.end(), End::Orderly);
    both.proxy.wait_for_ends("login_timeout", 2);
    // What was spent before TLS is missing behind it.
    let start = Instant::now();
    let mut client = upgrade(&both, &TlsOptions::default(), Duration::from_millis(1300), "");
    client.ask("", "* BYE Login took too long.\r\n");
    assert!(start.elapsed() < Duration::from_millis(3000), "{:?}", start.elapsed());
    both.proxy.wait_for_ends("login_timeout", 3);
    both.proxy.stop();
}

#[test]
fn client_that_leaves_or_is_drained_before_tls_has_its_reason() {
    let backend = FakeBackend::plain();
    let both = Both::start(&backend, "");
    let mut leaves = both.plain();
    leaves.expect("* OK ");
    both.proxy.wait_for_metric("imaps_proxy_sessions{phase=\"login\"}", 1.0);
    drop(leaves);
    both.proxy.wait_for_ends("client_closed", 1);
    let mut stays = both.plain();
    stays.expect("* OK ");
    both.proxy.terminate();
    assert_eq!(stays.rest(PATIENCE), "* BYE [UNAVAILABLE] The server is restarting.\r\n");
    both.proxy.stop();
}

#[test]
fn without_a_backend_plaintext_is_told_so() {
    let nobody = Unreachable("127.0.0.1:9".to_owned());
    let both = Both::of(Proxy::starting(&nobody).config(LISTEN).not_ready().start());
    let mut client = both.plain();
    assert!(client.rest(PATIENCE).starts_with("* BYE [UNAVAILABLE] "));
    assert_eq!(client.end(), End::Orderly);
    both.proxy.wait_for_ends("backend_unavailable", 1);
    both.proxy.stop();
}

/// Also behind what it said before it was greeted.
#[test]
fn client_that_resets_ends_its_wait_for_a_greeting() {
    let nobody = Unreachable("127.0.0.1:9".to_owned());
    let yaml = "{ backend: { hold: 50s }, timeouts: { login: 55s } }";
    let starting = Proxy::starting(&nobody).config(LISTEN).config(yaml);
    let both = Both::of(starting.not_ready().start());
    let mut early = both.plain();
    early.send("a STARTTLS\r\n");
    let mut behind_tls = both.proxy.connect();
    behind_tls.send("a CAPABILITY\r\n");
    both.proxy.wait_for_metric("imaps_proxy_hold_waiting", 2.0);
    early.vanish();
    behind_tls.vanish();
    both.proxy.wait_for_ends("client_vanished", 2);
    both.proxy.wait_for_metric("imaps_proxy_hold_waiting", 0.0);
    both.proxy.stop();
}

#[test]
fn hundred_silent_clients_cost_the_backend_nothing() {
    let backend = FakeBackend::plain();
    let both = Both::start(&backend, "");
    let dials = backend.dials();
    let crowd: Vec<Client> = (0..100)
        .map(|_| {
            let mut client = both.plain();
            client.expect("* OK ");
            client
        })
        .collect();
    both.proxy.wait_for_metric("imaps_proxy_sessions{phase=\"login\"}", 100.0);
    assert_eq!(backend.dials(), dials);
    drop(crowd);
    both.proxy.stop();
}

#[test]
fn openssl_upgrades_and_logs_in() {
    let dovecot = Dovecot::start();
    let both = Both::start(&dovecot, "");
    for version in ["-tls1_2", "-tls1_3"] {
        let mut command = Command::new(program("openssl", "openssl"));
        command.args(["s_client", "-quiet", "-starttls", "imap", "-verify_return_error", version]);
        command.arg("-connect").arg(both.address.to_string());
        command.arg("-CAfile").arg(&both.proxy.certificates.ca);
        let finished =
            run(&mut command, b"a LOGIN alice secret\r\nb SELECT INBOX\r\nc LOGOUT\r\n", LIMIT);
        for answer in ["a OK", "b OK", "* BYE", "c OK"] {
            assert!(finished.stdout.contains(answer), "{answer}: {finished:?}");
        }
    }
    both.proxy.wait_for_ends("logout", 2);
    both.proxy.stop();
}

#[test]
fn curl_insists_on_tls_and_gets_it() {
    let dovecot = Dovecot::start();
    dovecot.deliver("alice", 1, b"Subject: one\r\n\r\nneedle\r\n");
    let both = Both::start(&dovecot, "");
    let curl = |arguments: &[&str]| {
        let mut command = Command::new(program("curl", "curl"));
        command.args(["--silent", "--show-error", "--max-time", "60", "--cacert"]);
        command.arg(&both.proxy.certificates.ca).args(["--user", "alice:secret"]).args(arguments);
        command.arg(format!("imap://localhost:{}/INBOX;MAILINDEX=1", both.address.port()));
        run(&mut command, b"", LIMIT)
    };
    let fetched = curl(&["--ssl-reqd"]).succeeded();
    assert!(fetched.stdout.contains("needle"), "{fetched:?}");
    // A client that does not insist sends no password either: it is told that logins are disabled.
    let plain = curl(&[]);
    assert_ne!(plain.code, Some(0), "{plain:?}");
    let logins = both.proxy.wait_for_logins(1);
    assert_eq!(logins[0].field("result"), "ok");
    both.proxy.stop();
}

#[test]
fn imaplib_upgrades_and_sees_other_capabilities() {
    let dovecot = Dovecot::start();
    let both = Both::start(&dovecot, "");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/starttls.py");
    let mut command = Command::new(program("python3", "python3"));
    command.arg(script).arg("localhost").arg(both.address.port().to_string());
    command.arg(&both.proxy.certificates.ca).args(["alice", "secret"]);
    let finished = run(&mut command, b"", LIMIT).succeeded();
    assert_eq!(finished.stdout, "done\n", "{finished:?}");
    both.proxy.wait_for_ends("logout", 1);
    both.proxy.stop();
}

#[test]
fn mbsync_brings_mail_by_starttls() {
    let dovecot = Dovecot::start();
    for number in 0..20 {
        dovecot.deliver("alice", number, format!("Subject: {number}\r\n\r\nbody\r\n").as_bytes());
    }
    let both = Both::start(&dovecot, "");
    let folder = tempfile::tempdir().unwrap();
    let (path, config) = (folder.path().display(), folder.path().join("mbsyncrc"));
    let text = format!(
        "IMAPAccount test\nHost localhost\nPort {}\nSSLType STARTTLS\nCertificateFile {}\n\
         SystemCertificates no\nUser alice\nPass secret\nAuthMechs LOGIN\nTimeout 60\n\n\
         IMAPStore far\nAccount test\n\nMaildirStore near\nPath {path}/\nInbox {path}/INBOX\n\n\
         Channel all\nFar :far:\nNear :near:\nPattern INBOX\nCreate Both\nSync All\n\
         SyncState {path}/state-\n",
        both.address.port(),
        both.proxy.certificates.ca.display()
    );
    fs::write(&config, text).unwrap();
    let mut command = Command::new(program("mbsync", "isync"));
    command.arg("--config").arg(&config).arg("--all");
    run(&mut command, b"", LIMIT).succeeded();
    let count = |part| fs::read_dir(folder.path().join("INBOX").join(part)).unwrap().count();
    assert_eq!(count("new") + count("cur"), 20);
    both.proxy.stop();
}
