//! The TLS port: versions, ALPN, resumption, floods, and those who speak no TLS to it (tables A and F).

mod support;

use std::fs;
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConnection, HandshakeKind, ProtocolVersion};
use support::{Client, End, FakeBackend, PATIENCE, Proxy, TlsOptions, wait_until};

const TLS12: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS12];
const TLS13: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];

fn with_versions(versions: &[&'static rustls::SupportedProtocolVersion]) -> TlsOptions {
    TlsOptions { versions: versions.to_vec(), ..TlsOptions::default() }
}

fn with_alpn(alpn: &[&'static str]) -> TlsOptions {
    TlsOptions { alpn: alpn.to_vec(), ..TlsOptions::default() }
}

#[test]
fn both_versions_are_spoken_and_counted() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let mut client = proxy.connect_with(&with_versions(TLS12)).unwrap();
    assert_eq!(client.session().protocol_version(), Some(ProtocolVersion::TLSv1_2));
    client.log_in("alice", "secret");
    drop(client);
    let mut client = proxy.connect_with(&with_versions(TLS13)).unwrap();
    assert_eq!(client.session().protocol_version(), Some(ProtocolVersion::TLSv1_3));
    client.log_in("alice", "secret");
    // Post-quantum first.
    let group = client.session().negotiated_key_exchange_group().unwrap();
    assert_eq!(format!("{:?}", group.name()), "X25519MLKEM768");
    drop(client);
    let counted = |label: &str| proxy.sum("imaps_proxy_tls_handshakes_total", &[label]);
    assert_eq!(counted("version=\"TLSv1.2\""), 1.0);
    assert_eq!(counted("version=\"TLSv1.3\""), 1.0);
    assert_eq!(counted("group=\"X25519MLKEM768\""), 1.0);
    proxy.stop();
}

#[test]
fn older_version_is_refused_where_the_operator_says_so() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "tls: { min_version: '1.3' }");
    let error = proxy.connect_with(&with_versions(TLS12)).unwrap_err();
    assert!(error.to_string().contains("ProtocolVersion"), "{error}");
    assert!(proxy.connect_with(&with_versions(TLS13)).is_ok());
    proxy.wait_for_ends("handshake_failed", 1);
    assert!(proxy.sum("imaps_proxy_tls_handshake_failures_total", &[]) >= 1.0);
    proxy.stop();
}

/// A8: none, or a list with `imap`.
#[test]
fn alpn_takes_imap_and_silence_and_refuses_strangers() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let client = proxy.connect_with(&with_alpn(&["imap"])).unwrap();
    assert_eq!(client.session().alpn_protocol(), Some(&b"imap"[..]));
    let client = proxy.connect_with(&with_alpn(&["http/1.1", "imap"])).unwrap();
    assert_eq!(client.session().alpn_protocol(), Some(&b"imap"[..]));
    assert_eq!(proxy.connect().session().alpn_protocol(), None);
    let foreign: [&[&str]; 4] = [&["h2"], &["http/1.1"], &["h2", "http/1.1"], &["acme-tls/1"]];
    for list in foreign {
        for versions in [TLS12, TLS13] {
            let options = TlsOptions { alpn: list.to_vec(), ..with_versions(versions) };
            let error = proxy.connect_with(&options).unwrap_err();
            assert!(error.to_string().contains("NoApplicationProtocol"), "{list:?}: {error}");
        }
    }
    proxy.wait_for_ends("handshake_failed", 8);
    proxy.stop();
}

#[test]
fn sessions_are_resumed() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    for versions in [TLS12, TLS13] {
        // One configuration, which keeps the tickets.
        let config = with_versions(versions).config(&proxy.certificates.roots);
        let mut first = Client::tls(proxy.imaps, &config, "localhost").unwrap();
        first.log_in("alice", "secret");
        assert_eq!(first.session().handshake_kind(), Some(HandshakeKind::Full));
        assert!(first.result("LOGOUT").starts_with("OK"));
        let mut second = Client::tls(proxy.imaps, &config, "localhost").unwrap();
        assert_eq!(second.session().handshake_kind(), Some(HandshakeKind::Resumed));
        second.log_in("alice", "secret");
    }
    let counted = |label| proxy.sum("imaps_proxy_tls_handshakes_total", &[label]);
    let (yes, no) = (counted("resumed=\"true\""), counted("resumed=\"false\""));
    assert!((yes - 2.0).abs() < 0.1 && (no - 2.0).abs() < 0.1, "{:#?}", proxy.series());
    proxy.stop();
}

/// F11: nothing survives a restart but a full handshake.
#[test]
fn ticket_of_another_process_is_a_full_handshake() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let config = TlsOptions::default().config(&proxy.certificates.roots);
    let mut client = Client::tls(proxy.imaps, &config, "localhost").unwrap();
    client.log_in("alice", "secret");
    drop(client);
    let pair = format!(
        "tls: {{ certificates: [{{ cert: '{}', key: '{}' }}] }}",
        proxy.certificates.cert.display(),
        proxy.certificates.key.display()
    );
    let other = Proxy::start(&backend, &pair);
    let mut client = Client::tls(other.imaps, &config, "localhost").unwrap();
    assert_eq!(client.session().handshake_kind(), Some(HandshakeKind::Full));
    client.log_in("alice", "secret");
    drop(client);
    other.stop();
    proxy.stop();
}

/// F10.
#[test]
fn early_data_is_not_taken() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let mut config = (*TlsOptions::default().config(&proxy.certificates.roots)).clone();
    config.enable_early_data = true;
    let config = Arc::new(config);
    let mut first = Client::tls(proxy.imaps, &config, "localhost").unwrap();
    first.log_in("alice", "secret");
    drop(first);
    let name = ServerName::try_from("localhost").unwrap();
    let mut again = ClientConnection::new(config, name).unwrap();
    assert!(again.early_data().is_none(), "the ticket allows early data");
    proxy.stop();
}

#[test]
fn plaintext_imap_on_the_tls_port_is_told_what_is_wrong() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    for (number, command) in
        ["a LOGIN alice s3cret\r\n", "a001 CAPABILITY\r\n", "1 STARTTLS\r\n", "A1 ID NIL\r\n"]
            .into_iter()
            .enumerate()
    {
        let mut client = proxy.plain();
        client.send(command);
        let bye = client.rest(PATIENCE);
        assert!(bye.starts_with("* BYE ") && bye.ends_with("\r\n"), "{command:?}: {bye:?}");
        assert_eq!(bye.lines().count(), 1, "{bye}");
        assert!(bye.to_uppercase().contains("TLS"), "{bye}");
        assert!(!bye.contains("s3cret") && !bye.contains("alice"), "{bye}");
        assert_eq!(client.end(), End::Orderly, "{command:?}: a reset loses the line");
        proxy.wait_for_ends("not_tls_imap", number + 1);
    }
    proxy.stop();
}

#[test]
fn http_on_the_tls_port_gets_a_page() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    for (number, request) in [
        "GET /s3cret HTTP/1.1\r\nHost: mail.example.org\r\n\r\n",
        "POST /s3cret HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello",
        "HEAD / HTTP/1.1\r\nHost: x\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\n\r\n",
        "CONNECT s3cret:25 HTTP/1.1\r\n\r\n",
    ]
    .into_iter()
    .enumerate()
    {
        let mut client = proxy.plain();
        client.send(request);
        let page = client.rest(PATIENCE);
        assert!(page.starts_with("HTTP/1.1 400 ") || page.starts_with("HTTP/1.0 400 "), "{page:?}");
        assert!(!page.contains("s3cret") && !page.contains("example.org"), "{page}");
        assert_eq!(client.end(), End::Orderly, "a reset loses the page");
        proxy.wait_for_ends("not_tls_http", number + 1);
    }
    proxy.stop();
}

#[test]
fn noise_on_the_tls_port_is_closed() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "timeouts: { handshake: 2s }");
    for (ended, noise) in [
        &b"\0\0\0\0\0\0\0\0"[..],
        b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10", // SSL 2
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x03\x00\x00\x13\x0e\xe0\x00\x00\x00\x00\x00\x01\x00\x08\x00\x03\x00\x00\x00", // RDP
        b"EHLO example.org\r\n",
        b"\r\n\r\n",
        &[0xff; 70_000],
    ]
    .into_iter()
    .enumerate()
    {
        let mut client = proxy.plain();
        let _ = client.try_send(noise);
        let _ = client.rest_bytes(PATIENCE);
        wait_until("the session has ended", || proxy.sessions().len() == ended + 1);
        let reason = proxy.sessions().pop().unwrap().field("reason");
        let fitting = ["not_tls", "not_tls_imap", "handshake_failed", "handshake_timeout"];
        assert!(fitting.contains(&reason.as_str()), "{reason} for {noise:?}");
    }
    // A record type of TLS, and then rubbish.
    let mut client = proxy.plain();
    client.send([&[0x16, 3, 1, 0, 50][..], &[0xaa; 50]].concat());
    let _ = client.rest_bytes(PATIENCE);
    wait_until("it failed", || {
        proxy.sessions().last().unwrap().field("reason") == "handshake_failed"
    });
    assert!(proxy.connect().line().starts_with("* OK "));
    proxy.stop();
}

/// F7: a ClientHello is a ClientHello however it is cut.
#[test]
fn client_hello_is_read_wherever_it_is_cut() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let config = TlsOptions::default().config(&proxy.certificates.roots);
    let hello = {
        let name = ServerName::try_from("localhost").unwrap();
        let mut connection = ClientConnection::new(Arc::clone(&config), name).unwrap();
        let mut bytes = Vec::new();
        connection.write_tls(&mut bytes).unwrap();
        bytes
    };
    let cuts: Vec<usize> = (1..64).chain((64..hello.len()).step_by(97)).collect();
    for cut in cuts {
        // Split into two TLS records, each in a write of its own.
        let body = &hello[5..];
        let at = cut.min(body.len() - 1);
        let record = |part: &[u8]| {
            let length = u16::try_from(part.len()).unwrap().to_be_bytes();
            [&[0x16, 3, 1][..], &length, part].concat()
        };
        let mut client = proxy.plain();
        client.send(record(&body[..at]));
        client.send(record(&body[at..]));
        let answer = client.exactly(6);
        assert_eq!((answer[0], answer[5]), (0x16, 2), "no ServerHello at cut {cut}");
    }
    let mut client = proxy.plain();
    for byte in &hello {
        client.send([*byte]);
    }
    assert_eq!(client.exactly(1), [0x16]);
    drop(client);
    proxy.stop();
}

/// F1: key updates without data between them.
#[test]
fn flood_of_key_updates_is_ended() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let mut client = proxy.connect_with(&with_versions(TLS13)).unwrap();
    client.log_in("alice", "secret");
    for _ in 0..20 {
        client.session_mut().refresh_traffic_keys().unwrap();
    }
    assert!(client.result("NOOP").starts_with("OK"), "twenty are no flood");
    let mut sent = 0;
    while sent < 5_000 && client.session_mut().refresh_traffic_keys().is_ok() {
        if client.flush().is_err() {
            break;
        }
        sent += 1;
    }
    assert!(!matches!(client.end(), End::Orderly));
    backend.wait_for_connections(0);
    proxy.stop();
}

/// F9.
#[test]
fn many_names_cost_no_memory() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let attempt = |number: usize| {
        let name: &'static str = Box::leak(format!("n{number}.example.org").into_boxed_str());
        let _ = proxy.connect_with(&TlsOptions { name, ..TlsOptions::default() });
    };
    (0..200).for_each(attempt);
    let before = proxy.rss();
    (200..800).for_each(attempt);
    wait_until("no session is left", || proxy.sum("imaps_proxy_sessions", &[]) == 0.0);
    assert!(proxy.rss() < before + (2 << 20), "{before} then {}", proxy.rss());
    proxy.stop();
}

#[test]
fn self_signed_certificate_is_made_printed_and_kept() {
    let backend = FakeBackend::plain();
    let folder = tempfile::tempdir().unwrap();
    let certs = folder.path().join("certs");
    let yaml = format!(
        "tls: {{ self_signed: {{ names: [localhost, 127.0.0.1], dir: '{}' }} }}",
        certs.display()
    );
    let mut seen = Vec::new();
    for _ in 0..2 {
        let proxy = Proxy::starting(&backend).without_certificates().config(&yaml).start();
        // The CA is the one file of those made that a person is told to trust.
        let ca = fs::read_dir(&certs)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| {
                path.file_name().unwrap().to_string_lossy().starts_with("ca.")
                    && fs::read_to_string(path).unwrap().contains("BEGIN CERTIFICATE")
            })
            .expect("a CA is among the files");
        assert!(proxy.text().contains(&ca.display().to_string()), "{}", proxy.text());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(rustls::pki_types::CertificateDer::from_pem_file(&ca).unwrap()).unwrap();
        let config = TlsOptions::default().config(&Arc::new(roots));
        let mut client = Client::tls(proxy.imaps, &config, "localhost").unwrap();
        client.log_in("alice", "secret");
        seen.push(client.session().peer_certificates().unwrap()[0].to_vec());
        drop(client);
        proxy.stop();
    }
    assert_eq!(seen[0], seen[1], "a new certificate at each start");
}

/// Its CA can't vouch for what it was not made for, so people have to trust another one: they are told.
#[test]
fn a_name_that_a_reload_adds_makes_another_ca_and_can_be_taken_back() {
    let backend = FakeBackend::plain();
    let folder = tempfile::tempdir().unwrap();
    let certs = folder.path().join("certs");
    let yaml = |names: &str| {
        format!("tls: {{ self_signed: {{ names: [{names}], dir: '{}' }} }}", certs.display())
    };
    let proxy = Proxy::starting(&backend).without_certificates().config(&yaml("localhost")).start();
    let trusted = || {
        let mut roots = rustls::RootCertStore::empty();
        let file = certs.join("ca.pem");
        roots.add(rustls::pki_types::CertificateDer::from_pem_file(file).unwrap()).unwrap();
        TlsOptions::default().config(&Arc::new(roots))
    };
    let first = trusted();
    assert!(Client::tls(proxy.imaps, &first, "localhost").is_ok());
    proxy.reload(&yaml("localhost, imap.example.net"));
    wait_until("it is said", || proxy.text().contains("can't vouch for imap.example.net"));
    for name in ["localhost", "imap.example.net"] {
        assert!(Client::tls(proxy.imaps, &first, name).is_err(), "{name}");
        assert!(Client::tls(proxy.imaps, &trusted(), name).is_ok(), "{name}");
    }
    proxy.reload(&yaml("localhost"));
    assert!(Client::tls(proxy.imaps, &first, "localhost").is_ok(), "{}", proxy.text());
    proxy.stop();
}

/// What arrives in one TLS record with the end of the handshake is not lost.
#[test]
fn command_sent_with_the_end_of_the_handshake_is_answered() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    for versions in [TLS12, TLS13] {
        let config = with_versions(versions).config(&proxy.certificates.roots);
        let name = ServerName::try_from("localhost").unwrap();
        let mut connection = ClientConnection::new(config, name).unwrap();
        let mut tcp = std::net::TcpStream::connect(proxy.imaps).unwrap();
        tcp.set_read_timeout(Some(PATIENCE)).unwrap();
        connection.writer().write_all(b"a LOGIN alice secret\r\nb LOGOUT\r\n").unwrap();
        let mut told = Vec::new();
        loop {
            // All that is to be said goes out in one write.
            let mut bytes = Vec::new();
            while connection.wants_write() {
                connection.write_tls(&mut bytes).unwrap();
            }
            tcp.write_all(&bytes).unwrap();
            if connection.read_tls(&mut tcp).unwrap() == 0 {
                break;
            }
            connection.process_new_packets().unwrap();
            let _ = connection.reader().read_to_end(&mut told);
        }
        let told = String::from_utf8(told).unwrap();
        assert!(
            told.starts_with("* OK ") && told.contains("a OK") && told.contains("b OK"),
            "{told}"
        );
    }
    proxy.stop();
}

#[test]
fn handshakes_are_quick_while_others_stand_still() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let stuck: Vec<_> = (0..100).map(|_| proxy.plain()).collect();
    let start = std::time::Instant::now();
    let mut client = proxy.connect();
    client.log_in("alice", "secret");
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    drop((client, stuck));
    proxy.stop();
}
