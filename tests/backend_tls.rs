//! TLS to the backend, by STARTTLS and with the first byte, and Unix sockets: who is trusted, what a server or somebody in
//! between can try, and that sessions notice nothing of it.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection};
use support::{
    Authority, Dovecot, End, FakeBackend, Issued, PATIENCE, Proxy, Session, Unreachable, days,
    replace, run, wait_until,
};

const FAILURES: &str = "imaps_proxy_backend_connect_failures_total";

/// `backend: { tls: … }` with these keys.
fn tls(keys: &str) -> String {
    format!("{{ backend: {{ tls: {{ {keys} }} }} }}")
}

/// A session with everything in it that moves bytes; its mailbox is new.
fn everything_works(dovecot: &Dovecot, proxy: &Proxy<'_>) {
    let mut client = proxy.connect();
    let greeting = client.expect("* OK [CAPABILITY ");
    assert!(greeting.contains("AUTH=PLAIN"), "not what the server says inside TLS: {greeting}");
    for word in ["LOGINDISABLED", "STARTTLS"] {
        assert!(!greeting.contains(word), "{greeting}");
    }
    assert!(client.result("LOGIN alice secret").starts_with("OK"));

    let message = "Subject: large\r\n\r\n".to_owned() + &"0123456789abcde\r\n".repeat(8 << 16);
    client.send(format!("u APPEND INBOX {{{}+}}\r\n{message}\r\n", message.len()));
    client.until("u OK");
    client.command("SELECT INBOX");
    client.send("d FETCH 1 BODY.PEEK[]\r\n");
    client.until(&format!("* 1 FETCH (BODY[] {{{}}}", message.len()));
    assert!(client.exactly(message.len()) == message.as_bytes(), "it came back changed");
    client.until("d OK");

    client.send("i IDLE\r\n");
    client.expect("+ ");
    dovecot.deliver("alice", 2, b"Subject: new\r\n\r\nhello\r\n");
    client.until("* 2 EXISTS");
    client.send("DONE\r\n");
    client.until("i OK");
    client.send("x NOOP\r\ny LOGOUT\r\n");
    client.half_close();
    client.until("y OK");
    assert_eq!(client.end(), End::Orderly);
    proxy.wait_for_ends("logout", 1);
}

#[test]
fn starttls_reaches_a_server_that_wants_it() {
    let dovecot = Dovecot::that_wants_tls();
    let ca = dovecot.ca();
    let proxy = Proxy::start(&dovecot, &tls(&format!("mode: starttls, ca: '{}'", ca.display())));
    everything_works(&dovecot, &proxy);
    proxy.stop();
}

#[test]
fn implicit_tls_reaches_a_server_behind_a_proxy_header() {
    let port = support::free_port();
    let dovecot = Dovecot::that_wants_tls_with(&format!(
        "haproxy_trusted_networks = 127.0.0.0/8\n\
         service imap-login {{\n inet_listener imaps {{\n address = 127.0.0.2\n port = {port}\n ssl = yes\n haproxy = yes\n }}\n}}"
    ));
    let server = Unreachable(format!("127.0.0.2:{port}"));
    let ca = dovecot.ca();
    let config = tls(&format!("mode: implicit, ca: '{}'", ca.display()));
    let proxy = Proxy::starting(&server).config(&config).config("backend: { identity: proxy-v2 }");
    let proxy = proxy.start();
    everything_works(&dovecot, &proxy);
    proxy.stop();
}

#[test]
fn unix_sockets_reach_a_server_with_and_without_tls() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("imap.sock");
    let dovecot = Dovecot::with(&format!(
        "service imap-login {{\n unix_listener {} {{\n mode = 0666\n }}\n}}",
        socket.display()
    ));
    let server = Unreachable(format!("unix:{}", socket.display()));
    let proxy = Proxy::start(&server, "");
    everything_works(&dovecot, &proxy);
    let up = format!("imaps_proxy_backend_up{{backend=\"unix:{}\"}}", socket.display());
    assert_eq!(proxy.metric(&up), 1.0);
    proxy.stop();

    let ca = dovecot.ca().display().to_string();
    let keys = format!("mode: starttls, ca: '{ca}', server_name: localhost");
    let proxy = Proxy::start(&server, &tls(&keys));
    let mut client = proxy.connect();
    client.log_in("bob", "secret");
    assert!(client.result("LOGOUT").starts_with("OK"));
    proxy.stop();
}

#[test]
fn unix_socket_that_is_not_there_is_named_and_may_come_later() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("imap.sock");
    let server = Unreachable(format!("unix:{}", socket.display()));
    let proxy = Proxy::starting(&server).not_ready().start();
    let why = |text: &str| {
        wait_until(text, || proxy.text().contains(&format!("{}: {text}", socket.display())));
    };
    why("No such file or directory");
    // Left behind by a server that is gone.
    drop(UnixListener::bind(&socket).unwrap());
    why("Connection refused");
    assert!(proxy.sum(FAILURES, &["reason=\"refused\""]) >= 1.0);
    assert!(proxy.sum(FAILURES, &["reason=\"unreachable\""]) >= 1.0);
    fs::remove_file(&socket).unwrap();
    let listener = UnixListener::bind(&socket).unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _ = stream.write_all(b"* OK hi\r\n* CAPABILITY IMAP4rev1\r\nL1 OK done\r\n");
            let _ = stream.read_to_end(&mut Vec::new());
        }
    });
    wait_until("it is up", || proxy.get("/readyz").0 == 200);
    proxy.connect().expect("* OK [CAPABILITY IMAP4rev1] hi");
    proxy.stop();
}

/// Waits until the proxy has not found the server trustworthy, for a reason that has these words; no client gets in.
#[track_caller]
fn is_refused(proxy: &Proxy<'_>, reason: &str, words: &[&str]) {
    let label = format!("reason=\"{reason}\"");
    wait_until(&label, || proxy.sum(FAILURES, &[&label]) >= 1.0);
    let downs = || proxy.log().into_iter().filter(|line| line.message() == "backend is down");
    wait_until("it is logged", || downs().count() > 0);
    let error = downs().next().unwrap().field("error");
    for word in words {
        assert!(error.contains(word), "no {word:?} in {error}");
    }
    proxy.connect().expect("* BYE [UNAVAILABLE]");
}

#[track_caller]
fn is_trusted(proxy: &Proxy<'_>) {
    let mut client = proxy.logged_in();
    assert!(client.result("LOGOUT").starts_with("OK"));
}

fn fingerprint(certificate: &Path) -> String {
    let mut command = Command::new(support::binary());
    command.arg("cert").arg("show").arg(certificate);
    let shown = run(&mut command, b"", PATIENCE).succeeded().stdout;
    let pairs = |word: &&str| word.len() == 95 && word.split(':').all(|pair| pair.len() == 2);
    shown.split_whitespace().find(pairs).expect("a fingerprint").to_owned()
}

#[test]
fn servers_are_trusted_by_ca_name_and_fingerprint() {
    let dovecot = Dovecot::start();
    let (ca, pin) = (dovecot.ca().display().to_string(), fingerprint(&dovecot.certificate()));
    let other = tempfile::NamedTempFile::new().unwrap();
    fs::write(&other, Authority::new().pem()).unwrap();
    let other_ca = other.path().display();

    for keys in [
        format!("ca: '{ca}', server_name: localhost"),
        format!("fingerprint: '{pin}', server_name: no.such.name"),
        format!("fingerprint: '{}'", pin.replace(':', "").to_lowercase()),
    ] {
        let proxy = Proxy::start(&dovecot, &tls(&format!("mode: starttls, {keys}")));
        is_trusted(&proxy);
        proxy.stop();
    }
    let proxy = Proxy::start(&dovecot, &tls("mode: starttls, verify: insecure"));
    is_trusted(&proxy);
    let warned = proxy.log().into_iter().find(|line| line.message().contains("verify: insecure"));
    assert_eq!(warned.expect("a warning").level(), "WARN");
    proxy.stop();
    let proxy = Proxy::starting(&dovecot)
        .config("backend: { tls: starttls }")
        .environment("SSL_CERT_FILE", &ca)
        .start();
    is_trusted(&proxy);
    proxy.stop();

    let wrong_pin = "AB:".repeat(31) + "AB";
    let pinned = format!("fingerprint: \"{pin}\"");
    for (keys, words) in [
        (format!("ca: '{other_ca}'"), ["by another CA of that name", "backend.tls.ca", &*pinned]),
        (
            format!("ca: '{ca}', server_name: imap.internal"),
            ["not for `imap.internal` but for localhost, 127.0.0.1", "server_name", ""],
        ),
        (format!("fingerprint: '{wrong_pin}'"), ["not the pinned one", "CN=localhost", &pin]),
    ] {
        let config = tls(&format!("mode: starttls, {keys}"));
        let proxy = Proxy::starting(&dovecot).config(&config).not_ready().start();
        is_refused(&proxy, "certificate", &words);
        proxy.stop();
    }
    assert!(!dovecot.log().contains("no.such.name"));
}

/// A fake server's TLS.
fn server_config(issued: &Issued) -> Arc<ServerConfig> {
    let chain = CertificateDer::pem_slice_iter(issued.chain.as_bytes());
    let chain = chain.collect::<Result<_, _>>().expect("PEM");
    let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).expect("PEM");
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key);
    Arc::new(config.expect("they belong together"))
}

type Tls<'a> = rustls::Stream<'a, ServerConnection, &'a TcpStream>;

/// Greets, behind no STARTTLS, and answers commands in TLS; `hook` sees each line first and returns true if it has dealt with it. How the
/// proxy has ended the connection.
fn imap_in_tls(
    session: &Session,
    config: &Arc<ServerConfig>,
    greeting: &[u8],
    hook: impl Fn(&mut Tls<'_>, &str) -> bool,
) -> std::io::Result<usize> {
    let mut connection = ServerConnection::new(Arc::clone(config)).expect("a configuration");
    let mut tcp = session.tcp();
    let mut stream = rustls::Stream::new(&mut connection, &mut tcp);
    stream.write_all(greeting)?;
    let (mut lines, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        while let Some(end) = lines.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = lines.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if hook(&mut stream, &line) {
                continue;
            }
            let tag = line.split(' ').next().unwrap_or_default();
            let answer = match line.split(' ').nth(1) {
                Some("CAPABILITY") => format!("* CAPABILITY IMAP4rev1\r\n{tag} OK done\r\n"),
                Some("LOGIN") if !line.contains("secret") => format!("{tag} NO never\r\n"),
                _ => format!("{tag} OK done\r\n"),
            };
            stream.write_all(answer.as_bytes())?;
        }
        match stream.read(&mut chunk)? {
            0 => return Ok(0),
            count => lines.extend_from_slice(&chunk[..count]),
        }
    }
}

/// Such a server for 127.0.0.1, and the file of its CA; `ends` sees how each connection has ended.
fn fake(
    until: std::time::SystemTime,
    hook: impl Fn(&mut Tls<'_>, &str) -> bool + Send + Sync + 'static,
    ends: impl Fn(&std::io::Result<usize>) + Send + Sync + 'static,
) -> (FakeBackend, tempfile::NamedTempFile) {
    let authority = Authority::new();
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(&file, authority.pem()).unwrap();
    let config = server_config(&authority.issue_until(&["127.0.0.1"], until));
    let backend = FakeBackend::raw(move |session| {
        ends(&imap_in_tls(session, &config, b"* OK fake server ready\r\n", &hook))
    });
    (backend, file)
}

fn implicit(ca: &tempfile::NamedTempFile) -> String {
    tls(&format!("mode: implicit, ca: '{}'", ca.path().display()))
}

#[test]
fn expired_certificate_is_refused_with_its_date() {
    let yesterday = std::time::SystemTime::now() - Duration::from_hours(36);
    let (backend, ca) = fake(yesterday, |_, _| false, |_| {});
    let proxy = Proxy::starting(&backend).config(&implicit(&ca)).not_ready().start();
    is_refused(&proxy, "certificate", &["its certificate expired on 2", "(36 hours ago)", "renew"]);
    proxy.stop();
}

#[test]
fn sessions_resume_and_every_orderly_end_is_told_to_the_server() {
    let (sender, ends) = std::sync::mpsc::channel();
    let (backend, ca) = fake(
        days(1),
        |_, _| false,
        move |end| sender.send(end.as_ref().map(|_| ()).map_err(std::io::Error::kind)).unwrap(),
    );
    let proxy = Proxy::start(&backend, &implicit(&ca));
    let end = || ends.recv_timeout(PATIENCE).unwrap();
    assert_eq!(end(), Ok(()), "behind a look of its own");
    let mut client = proxy.connect();
    client.expect("* OK ");
    assert!(client.result("LOGIN alice wrong").starts_with("NO"));
    assert_eq!(end(), Ok(()), "behind a refused login");
    assert!(client.result("LOGIN alice secret").starts_with("OK"));
    client.half_close();
    assert_eq!(end(), Ok(()), "behind the client's end");
    proxy.logged_in().vanish();
    assert_eq!(end(), Err(std::io::ErrorKind::UnexpectedEof), "that was no orderly end");
    let handshakes = || proxy.log().into_iter().filter(|line| line.message() == "TLS to a server");
    wait_until("the handshakes are logged", || handshakes().count() >= 3);
    let last = handshakes().next_back().unwrap();
    assert_eq!([last.field("tls_version"), last.field("resumed")], ["TLSv1.3", "true"]);
    let _idle = proxy.logged_in();
    proxy.stop();
    assert_eq!(end(), Ok(()), "behind a drain");
}

#[test]
fn end_without_close_notify_is_a_truncation_in_mid_response_only() {
    let hook = |stream: &mut Tls<'_>, line: &str| {
        let said = match line {
            "a FETCH 1 BODY[]" => &b"* 1 FETCH (BODY[] {100}\r\nhalf"[..],
            "a NOOP" => b"a OK done\r\n",
            _ => return false,
        };
        stream.write_all(said).unwrap();
        stream.sock.shutdown(Shutdown::Write).unwrap();
        true
    };
    let (backend, ca) = fake(days(1), hook, |_| {});
    let proxy = Proxy::start(&backend, &implicit(&ca));
    let mut client = proxy.logged_in();
    client.send("a FETCH 1 BODY[]\r\n");
    assert_eq!(client.rest(PATIENCE), "* 1 FETCH (BODY[] {100}\r\nhalf");
    assert_eq!(client.end(), End::Truncated);
    proxy.wait_for_ends("backend_truncated", 1);
    let mut client = proxy.logged_in();
    client.send("a NOOP\r\n");
    assert_eq!(client.rest(PATIENCE), "a OK done\r\n");
    assert_eq!(client.end(), End::Orderly);
    proxy.wait_for_ends("backend_closed", 1);
    proxy.stop();
}

/// What a server that takes nothing for a while is sent goes out once it does.
#[test]
fn upload_waits_for_a_server_that_is_slow_to_read() {
    let hook = |stream: &mut Tls<'_>, line: &str| {
        let Some(size) = line.strip_prefix("a XREAD ") else { return false };
        stream.write_all(b"* ready\r\n").unwrap();
        // Until the proxy can send no more.
        let queue = || rustix::io::ioctl_fionread(*stream.sock).unwrap();
        let mut last = 0;
        wait_until("the socket is full", || {
            let now = queue();
            thread::sleep(Duration::from_millis(50));
            std::mem::replace(&mut last, now) == now && now > 100_000
        });
        let mut bytes = vec![0; size.parse().unwrap()];
        stream.read_exact(&mut bytes).unwrap();
        assert!(bytes.iter().all(|&byte| byte == b'x'));
        stream.write_all(b"a OK all of it\r\n").unwrap();
        true
    };
    let (backend, ca) = fake(days(1), hook, |_| {});
    let proxy = Proxy::start(&backend, &implicit(&ca));
    let mut client = proxy.logged_in();
    client.send(format!("a XREAD {}\r\n", 12 << 20));
    client.expect("* ready");
    client.send(vec![b'x'; 12 << 20]);
    client.expect("a OK all of it");
    drop(client);
    proxy.stop();
}

#[test]
fn no_password_goes_out_without_tls() {
    const OFFER: &str = "* OK [CAPABILITY IMAP4rev1 STARTTLS AUTH=PLAIN] hi\r\n";
    let play = |script: fn(&mut Session)| FakeBackend::raw(script);
    for (backend, mode, reason, words) in [
        (
            play(|session| {
                session.greet("IMAP4rev1 AUTH=PLAIN");
                session.drain();
            }),
            "starttls",
            "starttls",
            "does not offer STARTTLS",
        ),
        (
            play(|session| {
                session.send(OFFER);
                session.line();
                session.send("T2 NO not today\r\n");
                session.drain();
            }),
            "starttls",
            "starttls",
            "refuses STARTTLS: \"not today\"",
        ),
        (
            play(|session| {
                session.send(OFFER);
                session.line();
                session.send("T2 OK go\r\n* CAPABILITY IMAP4rev1 AUTH=PLAIN\r\nL1 OK done\r\n");
                session.drain();
            }),
            "starttls",
            "plaintext_after_starttls",
            "tampering",
        ),
        (
            play(|session| {
                session.send(OFFER);
                session.line();
                session.send("T2 OK go\r\n");
                session.exactly(5); // the hello is under way
                session.send("* CAPABILITY IMAP4rev1 AUTH=PLAIN\r\nL1 OK done\r\n");
                session.drain();
            }),
            "starttls",
            "plaintext_after_starttls",
            "tampering",
        ),
        (
            play(|session| {
                session.send(OFFER);
                session.line();
            }),
            "starttls",
            "starttls",
            "something else",
        ),
        (
            play(|session| {
                session.greet("IMAP4rev1 STARTTLS");
                session.drain();
            }),
            "implicit",
            "tls",
            "set backend.tls to starttls",
        ),
        (
            play(|session| {
                session.drain();
            }),
            "implicit",
            "greeting_timeout",
            "TLS does not come about within 500ms",
        ),
        (
            play(|session| {
                session.exactly(5);
            }),
            "implicit",
            "tls",
            "TLS does not come about",
        ),
    ] {
        let config = format!(
            "{{ backend: {{ tls: {{ mode: {mode}, verify: insecure }} }}, timeouts: {{ backend_greeting: 500ms }} }}"
        );
        let proxy = Proxy::starting(&backend).config(&config).not_ready().start();
        is_refused(&proxy, reason, &[words]);
        let received = backend.received();
        // Two letters alone come in a ClientHello of random bytes, now and then.
        assert!(!received.contains("LOGIN") && !received.contains("L1 CAP"), "{received}");
        proxy.stop();
    }
}

/// Also where TLS has been there before: the login is not sent on in clear.
#[test]
fn server_that_offers_no_starttls_any_more_gets_no_login() {
    let authority = Authority::new();
    let config = server_config(&authority.issue(&["127.0.0.1"]));
    let backend = FakeBackend::raw(move |session| {
        if session.number > 0 {
            session.greet("IMAP4rev1 AUTH=PLAIN");
            session.drain();
            return;
        }
        session.greet("IMAP4rev1 STARTTLS LOGINDISABLED");
        session.line();
        session.send("T2 OK go\r\n");
        let _ = imap_in_tls(session, &config, b"", |_, _| false);
    });
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(&file, authority.pem()).unwrap();
    let keys = format!("mode: starttls, ca: '{}'", file.path().display());
    let proxy = Proxy::start(&backend, &tls(&keys));
    let mut client = proxy.connect();
    client.expect("* OK [CAPABILITY IMAP4rev1] legacy server ready");
    assert!(client.result("LOGIN alice secret").starts_with("NO [UNAVAILABLE]"));
    assert!(!backend.received().contains("alice"));
    assert!(proxy.sum(FAILURES, &["reason=\"starttls\""]) >= 1.0);
    drop(client);
    proxy.stop();
}

#[test]
fn changed_ca_file_is_in_use_a_second_later() {
    let dovecot = Dovecot::start();
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    replace(&ca, Authority::new().pem());
    let config = tls(&format!("mode: starttls, ca: '{}'", ca.display()));
    let proxy = Proxy::starting(&dovecot).config(&config).not_ready().start();
    is_refused(&proxy, "certificate", &["CN=Test CA", "backend.tls.ca"]);
    replace(&ca, &fs::read_to_string(dovecot.ca()).unwrap());
    wait_until("it is up", || proxy.get("/readyz").0 == 200);
    is_trusted(&proxy);
    replace(&ca, "garbage");
    wait_until("the file is looked at", || {
        is_trusted(&proxy);
        proxy.text().contains("the servers' CA can't be used")
    });
    is_trusted(&proxy);
    let text = proxy.text();
    let told = text.lines().filter(|line| line.contains("the servers' CA can't be used"));
    assert_eq!(told.count(), 1, "{text}");
}

#[test]
fn files_of_cas_are_checked_and_needed_at_start() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config.yaml");
    let said = |tls: &str, command: &str, code: i32| {
        let made = folder.path().display();
        fs::write(
            &config,
            format!(
                "listen: [{{ address: '127.0.0.1:0' }}]\n\
                 tls: {{ self_signed: {{ names: [localhost], dir: '{made}/made' }} }}\n\
                 backend: {{ servers: [{{ address: 'mail.example.org:143' }}], tls: {tls} }}\n"
            ),
        )
        .unwrap();
        let mut command_line = Command::new(support::binary());
        command_line.arg(command).arg("--config").arg(&config);
        command_line.env("SSL_CERT_FILE", "/dev/null").env_remove("SSL_CERT_DIR");
        let finished = run(&mut command_line, b"", PATIENCE);
        assert_eq!(finished.code, Some(code), "{}", finished.stderr);
        finished.stderr
    };
    let missing = format!("{{ mode: starttls, ca: '{}/none.pem' }}", folder.path().display());
    for (tls, words) in [
        (missing.as_str(), "none.pem: no such file; put the CA certificate there"),
        ("starttls", "the system trusts no CA"),
        ("{ mode: implicit, server_name: '*.example.org', verify: insecure }", "no name of one"),
    ] {
        assert!(said(tls, "check", 2).contains(words), "{words}");
        let text = said(tls, "run", 1);
        assert!(text.contains(words), "{text}");
    }
    let text = said("{ mode: implicit, verify: insecure }", "check", 0);
    assert!(text.contains("warning: backend.tls verify: insecure"), "{text}");
}

#[test]
fn reload_takes_servers_into_tls_and_refuses_a_ca_that_is_none() {
    let dovecot = Dovecot::that_wants_tls();
    let proxy = Proxy::start(&dovecot, "");
    assert!(proxy.connect().expect("* OK ").contains("LOGINDISABLED"));
    let refused = proxy.reload(&tls("mode: starttls, ca: /no/such.pem"));
    assert!(refused[0].contains("/no/such.pem: no such file"), "{refused:?}");
    assert!(proxy.connect().expect("* OK ").contains("LOGINDISABLED"));
    proxy.reload(&tls(&format!("mode: starttls, ca: '{}'", dovecot.ca().display())));
    wait_until("what it says inside TLS is known", || {
        !proxy.connect().expect("* OK ").contains("LOGINDISABLED")
    });
    is_trusted(&proxy);
}
