//! PROXY headers, to servers (`backend.identity`) and from balancers (`listen[].proxy_protocol_from`).

mod support;

use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use support::{
    Backend, Client, Dovecot, End, FakeBackend, LogLine, PATIENCE, Process, Proxy, TlsOptions,
    Unreachable, free_port, program, within,
};

const CAPABILITIES: &str = "IMAP4rev1 SASL-IR ID AUTH=PLAIN";
const CLIENT: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 9);
const TRUSTING: &str = "listen: [{ address: '127.0.0.1:0', proxy_protocol_from: [127.0.0.1] }]";
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
const LINE: &str = "PROXY TCP4 192.0.2.7 198.51.100.1 50000 993\r\n";

/// The same as [`LINE`], in version 2.
fn binary() -> Vec<u8> {
    let block = [192, 0, 2, 7, 198, 51, 100, 1, 0xc3, 0x50, 0x03, 0xe1];
    [V2, &[0x21, 0x11, 0, 12], &block].concat()
}

/// A server that takes what lies there when it looks for the first time as a header, as Dovecot does.
struct Headers {
    backend: FakeBackend,
    seen: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Headers {
    fn start() -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let headers = Arc::clone(&seen);
        let backend = FakeBackend::raw(move |session| {
            let mut bytes = [0; 600];
            let count = session.tcp().peek(&mut bytes).unwrap_or(0);
            headers.lock().unwrap().push(bytes[..count].to_vec());
            session.exactly(count);
            session.greet(CAPABILITIES);
            session.serve(CAPABILITIES, &|_, _| false);
        });
        Self { backend, seen }
    }

    /// Those of looks first, then those of sessions.
    fn of(&self, is_look: impl Fn(&[u8]) -> bool) -> [Vec<Vec<u8>>; 2] {
        let seen = self.seen.lock().unwrap().clone();
        let (looks, sessions) = seen.into_iter().partition(|header| is_look(header));
        [looks, sessions]
    }
}

/// CRC-32C, a bit at a time.
fn crc(bytes: &[u8]) -> [u8; 4] {
    let step = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    let byte = |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc));
    (!bytes.iter().fold(u32::MAX, byte)).to_be_bytes()
}

fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len()).unwrap().to_be_bytes();
    [&[kind], &length[..], value].concat()
}

#[test]
fn every_preset_is_written_as_its_server_reads_it() {
    for preset in ["generic", "cyrus", "stalwart", "dovecot-2.3", "dovecot-2.4"] {
        let headers = Headers::start();
        let yaml = format!("backend: {{ identity: proxy-v2, proxy_tlvs: {preset} }}");
        let proxy = Proxy::start(&headers.backend, &yaml);
        let with_alpn = TlsOptions { alpn: vec!["imap"], ..TlsOptions::default() };
        let mut clients = Vec::new();
        for options in [&with_alpn, &TlsOptions::default()] {
            let mut client = proxy.connect_with(options).expect("the handshake succeeds");
            client.log_in("alice", "secret");
            clients.push((client, options.alpn.contains(&"imap")));
        }
        // A look: LOCAL, or from us to the server and by TLS.
        let told_of_tls = !matches!(preset, "generic" | "cyrus");
        let server = headers.backend.address.port().to_be_bytes();
        let [looks, sessions] = headers.of(|header| header[12] == 0x20 || header[26..28] == server);
        assert!(!looks.is_empty());
        for mut look in looks {
            if told_of_tls {
                look[24..26].fill(0);
                let block = [&[127, 0, 0, 1, 127, 0, 0, 1, 0, 0][..], &server].concat();
                let ssl = tlv(0x20, &[1, 0, 0, 0, 1]);
                assert_eq!(look, [V2, &[0x21, 0x11, 0, 20], &block, &ssl].concat(), "{preset}");
            } else {
                assert_eq!(look, LOCAL, "{preset}");
            }
        }
        let logins = proxy.wait_for_logins(2);
        for (((client, alpn), login), header) in clients.iter().zip(&logins).zip(&sessions) {
            let port = |end: SocketAddr| end.port().to_be_bytes();
            let tcp = client.tcp();
            let mut block = [127, 0, 0, 1, 127, 0, 0, 1].to_vec();
            block.extend(port(tcp.local_addr().unwrap()));
            block.extend(port(tcp.peer_addr().unwrap()));
            let version = tlv(0x21, b"TLSv1.3");
            let cipher = tlv(0x23, b"TLS_AES_128_GCM_SHA256");
            let ssl = tlv(0x20, &[&[1, 0, 0, 0, 1][..], &version, &cipher].concat());
            if told_of_tls {
                block.extend(ssl);
            }
            if preset.starts_with("dovecot") {
                block.extend(tlv(2, b"localhost"));
                if preset == "dovecot-2.4" && *alpn {
                    block.extend(tlv(1, b"imap"));
                }
                block.extend(tlv(5, login.field("session").as_bytes()));
                block.extend(tlv(3, &[0; 4]));
            }
            let length = u16::try_from(block.len()).unwrap().to_be_bytes();
            let mut want = [V2, &[0x21, 0x11], &length, &block].concat();
            if preset.starts_with("dovecot") {
                let sum = crc(&want);
                let at = want.len() - 4;
                want[at..].copy_from_slice(&sum);
            }
            assert_eq!(header, &want, "{preset}: {}", header.escape_ascii());
        }
        assert_eq!(sessions.len(), 2);
        drop(clients);
        proxy.stop();
    }
}

#[test]
fn version_1_is_a_line_and_looks_of_our_own_are_unknown() {
    let headers = Headers::start();
    let proxy = Proxy::start(&headers.backend, "backend: { identity: proxy-v1 }");
    let mut client = proxy.connect_from(CLIENT);
    client.log_in("alice", "secret");
    let [looks, sessions] = headers.of(|header| header == b"PROXY UNKNOWN\r\n");
    assert!(!looks.is_empty());
    let (from, to) = (client.tcp().local_addr().unwrap().port(), proxy.imaps.port());
    let want = format!("PROXY TCP4 127.0.0.9 127.0.0.1 {from} {to}\r\n");
    assert_eq!(sessions, [want.into_bytes()]);
    drop(client);
    proxy.stop();
}

#[test]
fn a_client_whom_the_server_bans_takes_it_from_nobody_else() {
    let backend = FakeBackend::raw(|session| {
        let Some(header) = session.line() else { return };
        if String::from_utf8_lossy(&header).contains("127.0.0.66") {
            return; // closed before the greeting, as a firewall of the server's own does
        }
        session.greet(CAPABILITIES);
        session.serve(CAPABILITIES, &|_, _| false);
    });
    let proxy = Proxy::start(&backend, "backend: { identity: proxy-v1 }");
    let mut banned = proxy.connect_from(Ipv4Addr::new(127, 0, 0, 66));
    banned.expect("* OK ");
    assert!(banned.result("LOGIN alice secret").starts_with("NO [UNAVAILABLE]"));
    proxy.connect_from(CLIENT).log_in("alice", "secret");
    assert_eq!(proxy.sum("imaps_proxy_backend_ejections_total", &[]), 0.0);
    let line = |line: &LogLine| line.message() == "backend does not serve a client";
    within(PATIENCE, "the log says so", || proxy.log().iter().any(line));
    proxy.stop();
}

#[test]
fn without_an_identity_there_is_no_header() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "backend: { identity: none }");
    drop(proxy.logged_in());
    assert!(!backend.received().contains("PROXY") && !backend.received().contains("QUIT"));
    proxy.stop();
}

/// A Dovecot that wants a header from everybody on a second listener. `plaintext`: it takes passwords from whoever has no TLS.
struct Haproxied {
    dovecot: Dovecot,
    address: SocketAddr,
}

impl Haproxied {
    #[track_caller]
    fn start(plaintext: bool) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 2], free_port()));
        let disable = if plaintext { "no" } else { "yes" };
        let dovecot = Dovecot::with(&format!(
            "disable_plaintext_auth = {disable}\nhaproxy_trusted_networks = 127.0.0.0/8\n\
             service imap-login {{\n inet_listener haproxied {{\n  address = {}\n  port = {}\n\
             haproxy = yes\n }}\n}}\n",
            address.ip(),
            address.port()
        ));
        Self { dovecot, address }
    }

    /// The line that Dovecot logs for the one login.
    #[track_caller]
    fn login_line(&self) -> String {
        let find = || {
            let log = self.dovecot.log();
            log.lines().find(|line| line.contains("Login: user=<alice>")).map(str::to_owned)
        };
        within(PATIENCE, "Dovecot logs the login", || find().is_some());
        find().expect("it was there")
    }

    #[track_caller]
    fn has_no_complaint(&self) {
        let log = self.dovecot.log();
        for word in ["Error", "Warning", "haproxy"] {
            assert!(!log.contains(word), "{word}:\n{log}");
        }
    }
}

impl Backend for Haproxied {
    fn address(&self) -> String {
        self.address.to_string()
    }

    fn connections(&self) -> usize {
        self.dovecot.connections()
    }
}

#[test]
fn dovecot_2_3_knows_the_client_and_its_tls_by_version_2() {
    let dovecot = Haproxied::start(false);
    let yaml = "backend: { identity: proxy-v2, proxy_tlvs: dovecot-2.3, health: { interval: 1s } }";
    let proxy = Proxy::start(&dovecot, yaml);
    let mut client = proxy.connect_from(CLIENT);
    let greeting = client.expect("* OK ");
    assert!(greeting.contains(" AUTH=PLAIN") && !greeting.contains("LOGINDISABLED"), "{greeting}");
    assert!(!greeting.contains("STARTTLS"), "{greeting}");
    let answer = client.result("LOGIN alice secret");
    assert!(answer.starts_with("OK"), "{answer}");
    let line = dovecot.login_line();
    assert!(line.contains("rip=127.0.0.9, lip=127.0.0.1,"), "{line}");
    drop(client);
    dovecot.has_no_complaint();
    proxy.stop();
}

#[test]
fn dovecot_2_3_takes_the_full_header_of_2_4() {
    let dovecot = Haproxied::start(false);
    let proxy = Proxy::start(&dovecot, "backend: { identity: proxy-v2, proxy_tlvs: dovecot-2.4 }");
    let options = TlsOptions { alpn: vec!["imap"], ..TlsOptions::default() };
    let mut client = proxy.connect_with(&options).expect("the handshake succeeds");
    client.log_in("alice", "secret");
    dovecot.has_no_complaint();
    drop(client);
    proxy.stop();
}

#[test]
fn dovecot_2_3_knows_the_client_by_version_1() {
    let dovecot = Haproxied::start(true);
    let proxy = Proxy::start(&dovecot, "backend: { identity: proxy-v1 }");
    let mut client = proxy.connect_from(CLIENT);
    client.log_in("alice", "secret");
    let line = dovecot.login_line();
    assert!(line.contains("rip=127.0.0.9, lip=127.0.0.1,"), "{line}");
    dovecot.has_no_complaint();
    drop(client);
    proxy.stop();
}

#[test]
fn dovecot_2_3_knows_nothing_of_tls_by_version_1() {
    let dovecot = Haproxied::start(false);
    let proxy = Proxy::start(&dovecot, "backend: { identity: proxy-v1 }");
    let mut client = proxy.connect_from(CLIENT);
    assert!(client.expect("* OK ").contains("LOGINDISABLED"));
    let answer = client.result("LOGIN alice secret");
    assert!(answer.starts_with("NO [PRIVACYREQUIRED]"), "{answer}");
    dovecot.has_no_complaint();
}

/// The session line of the one session that ended.
#[track_caller]
fn the_session(proxy: &Proxy<'_>) -> LogLine {
    within(PATIENCE, "a session ends", || !proxy.sessions().is_empty());
    let sessions = proxy.sessions();
    assert_eq!(sessions.len(), 1, "{sessions:#?}");
    sessions[0].clone()
}

fn config(proxy: &Proxy<'_>) -> Arc<rustls::ClientConfig> {
    TlsOptions::default().config(&proxy.certificates.roots)
}

#[test]
fn the_announced_client_is_the_client_everywhere() {
    let headers = Headers::start();
    let yaml = "backend: { identity: proxy-v1 }";
    let proxy = Proxy::starting(&headers.backend).config(TRUSTING).config(yaml).start();
    let with_tlvs = {
        let tlvs = [tlv(4, &[0; 2000]), tlv(0xe0, b"custom")].concat();
        let mut header = binary();
        header.extend(&tlvs);
        let length = u16::try_from(header.len() - 16).unwrap().to_be_bytes();
        header[14..16].copy_from_slice(&length);
        header
    };
    for (n, header) in [LINE.as_bytes(), &binary(), &with_tlvs].into_iter().enumerate() {
        let mut client = Client::tls_behind(header, proxy.imaps, &config(&proxy)).unwrap();
        client.log_in("alice", "secret");
        assert!(client.result("LOGOUT").starts_with("OK"));
        let login = &proxy.wait_for_logins(n + 1)[n];
        assert_eq!(login.field("client"), "192.0.2.7:50000");
        proxy.wait_for_ends("logout", n + 1);
        assert_eq!(proxy.sessions()[n].field("client"), "192.0.2.7:50000");
    }
    let [_, sessions] = headers.of(|header| header == b"PROXY UNKNOWN\r\n");
    assert_eq!(sessions, vec![LINE.as_bytes(); 3], "the server is told what the balancer says");
    proxy.stop();
}

#[test]
fn a_connection_of_the_balancers_own_keeps_its_addresses() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::starting(&backend).config(TRUSTING).start();
    let unix = [V2, &[0x21, 0x31, 0, 216], &[0; 216]].concat();
    let headers = [b"PROXY UNKNOWN ::1 ::1 1 2\r\n", LOCAL, &unix];
    for (n, header) in headers.into_iter().enumerate() {
        let mut client = Client::tls_behind(header, proxy.imaps, &config(&proxy)).unwrap();
        client.log_in("alice", "secret");
        let login = &proxy.wait_for_logins(n + 1)[n];
        assert_eq!(login.field("client"), client.tcp().local_addr().unwrap().to_string());
    }
    proxy.stop();
}

#[test]
fn a_header_may_come_in_pieces_and_with_what_is_behind_it() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::starting(&backend).config(TRUSTING).start();
    for (n, header) in [LINE.as_bytes(), &binary()].into_iter().enumerate() {
        // With the ClientHello in one segment, which rustls would not write so.
        let mut hello = Vec::new();
        let name = "localhost".try_into().unwrap();
        let mut tls = rustls::ClientConnection::new(config(&proxy), name).unwrap();
        tls.write_tls(&mut hello).unwrap();
        let mut tcp = TcpStream::connect(proxy.imaps).unwrap();
        tcp.set_nodelay(true).unwrap();
        tcp.set_read_timeout(Some(PATIENCE)).unwrap();
        let (first, rest) = header.split_at(header.len() - 3);
        for byte in first.chunks(1) {
            tcp.write_all(byte).unwrap();
        }
        tcp.write_all(&[rest, &hello].concat()).unwrap();
        while tls.is_handshaking() {
            tls.complete_io(&mut tcp).unwrap();
        }
        drop((tls, tcp));
        within(PATIENCE, "the session ends", || proxy.sessions().len() == n + 1);
        assert_eq!(proxy.sessions()[n].field("client"), "192.0.2.7:50000");
        assert_eq!(proxy.sessions()[n].field("tls_version"), "TLSv1.3");
    }
    proxy.stop();
}

/// One connection says `bytes`, and is closed for `reason`. How long that took, and the log's `detail`.
#[track_caller]
fn refused(config: &str, bytes: &[u8], reason: &str) -> (Duration, String) {
    let backend = Unreachable("127.0.0.1:1".to_owned());
    let proxy = Proxy::starting(&backend).config(config).not_ready().start();
    let start = Instant::now();
    let mut client = proxy.plain();
    let _ = client.try_send(bytes);
    let end = client.end();
    let took = start.elapsed();
    assert!(matches!(end, End::Orderly | End::Reset), "{end:?}");
    let session = the_session(&proxy);
    assert_eq!(session.field("reason"), reason, "{session:?}");
    let client = session.field("client");
    assert!(client.starts_with("127.0.0.1:"), "nobody is who he says: {client}");
    assert!(!proxy.text().contains("192.0.2.7"), "{}", proxy.text());
    let failures = format!("imaps_proxy_tls_handshake_failures_total{{reason=\"{reason}\"}}");
    assert!((proxy.metric(&failures) - 1.0).abs() < 0.5);
    let failed = proxy.log().into_iter().find(|line| line.message() == "handshake failed");
    let failed = failed.expect("it is logged");
    assert_eq!((failed.level(), failed.field("reason")), ("WARN".to_owned(), reason.to_owned()));
    assert!(failed.field("why").contains("proxy_protocol_from"), "{failed:?}");
    (took, failed.field("detail"))
}

#[test]
fn a_header_from_anybody_else_is_refused_and_not_believed() {
    let others = "listen: [{ address: '127.0.0.1:0', proxy_protocol_from: [192.0.2.0/24, '::1'] }]";
    for config in [others, "log: { level: debug }"] {
        refused(config, LINE.as_bytes(), "proxy_header_unexpected");
        refused(config, &binary(), "proxy_header_unexpected");
        refused(config, LOCAL, "proxy_header_unexpected");
    }
}

#[test]
fn who_must_send_a_header_is_closed_without_one() {
    refused(TRUSTING, b"\x16\x03\x01\x02\0\x01", "proxy_header_missing");
    refused(TRUSTING, b"a LOGIN alice secret\r\n", "proxy_header_missing");
    refused(TRUSTING, b"PROXIES\r\n", "proxy_header_missing");
}

#[test]
fn a_broken_header_is_refused_at_once() {
    let patience = Duration::from_secs(4);
    let endless = format!("PROXY UNKNOWN {}", "f".repeat(200));
    let length_65535 = [V2, &[0x21, 0x11, 255, 255], &[0; 12]].concat();
    let checksum = [&binary()[..], &tlv(3, b"0000")].concat();
    let mut checksum = checksum;
    checksum[15] += 7;
    for (header, detail) in [
        (
            &b"PROXY TCP4 203.0.113.9 198.51.100.1 50000\r\n\x16\x03\x01"[..],
            "a line of version 1 in which the destination's port can't be read: \
             PROXY TCP4 203.0.113.9 198.51.100.1 50000",
        ),
        (
            b"PROXY TCP6 2001:db8::g\x07 ::1 1 2\r\n",
            "a line of version 1 in which the client's address can't be read: \
             PROXY TCP6 2001:db8::g\\u{7} ::1 1 2",
        ),
        (endless.as_bytes(), "a line of version 1 without an end in 107 bytes: PROXY UNKNOWN fff"),
        (&length_65535, "65551 bytes, and 4096 are allowed"),
        (&checksum, "the checksum is wrong"),
    ] {
        let (took, said) = refused(TRUSTING, header, "proxy_header_malformed");
        assert!(took < patience);
        assert!(said.starts_with(detail), "{said}");
    }
}

#[test]
fn the_client_is_known_whatever_the_family_of_the_destination_is() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::starting(&backend).config(TRUSTING).start();
    let lines = [
        (&b"PROXY TCP6 2001:db8::9 192.0.2.1 50000 993\r\n"[..], "[2001:db8::9]:50000"),
        (b"PROXY TCP6 203.0.113.9 2001:db8::1 50001 993\r\n", "203.0.113.9:50001"),
        (b"PROXY TCP4 203.0.113.9 unix:/run/imaps 50002 0\r\n", "203.0.113.9:50002"),
    ];
    for (n, (line, address)) in lines.into_iter().enumerate() {
        let mut client = Client::tls_behind(line, proxy.imaps, &config(&proxy)).unwrap();
        client.log_in("alice", "secret");
        assert_eq!(proxy.wait_for_logins(n + 1)[n].field("client"), address);
    }
    proxy.stop();
}

#[test]
fn a_header_that_does_not_come_or_does_not_end_has_a_deadline() {
    std::thread::scope(|scope| {
        for bytes in [Vec::new(), binary()[..20].to_vec()] {
            scope.spawn(move || {
                let (took, _) = refused(TRUSTING, &bytes, "proxy_header_missing");
                assert!(took >= Duration::from_secs(3), "{took:?}");
            });
        }
        // A byte now and then extends nothing.
        scope.spawn(|| {
            let backend = Unreachable("127.0.0.1:1".to_owned());
            let proxy = Proxy::starting(&backend).config(TRUSTING).not_ready().start();
            let mut client = proxy.plain();
            for byte in binary().chunks(1) {
                if client.try_send(byte).is_err() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(400)); // the speed is what is tested
            }
            assert_eq!(the_session(&proxy).field("reason"), "proxy_header_missing");
        });
    });
}

#[test]
fn behind_the_header_the_handshake_has_its_own_deadline() {
    let backend = FakeBackend::plain();
    let yaml = "timeouts: { handshake: 500ms }";
    let proxy = Proxy::starting(&backend).config(TRUSTING).config(yaml).start();
    let mut client = proxy.plain();
    client.send(LINE);
    client.rest(PATIENCE);
    let session = the_session(&proxy);
    assert_eq!(session.field("reason"), "handshake_timeout");
    assert_eq!(session.field("client"), "192.0.2.7:50000");
    proxy.stop();
}

#[test]
fn a_port_check_of_a_balancer_is_no_missing_header() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::starting(&backend).config(TRUSTING).start();
    drop(proxy.plain());
    assert_eq!(the_session(&proxy).field("reason"), "handshake_failed");
    let closed = "imaps_proxy_tls_handshake_failures_total{reason=\"closed\"}";
    proxy.wait_for_metric(closed, 1.0);
    proxy.stop();
}

/// A proxy with one port, for STARTTLS.
#[track_caller]
fn starttls<'a>(backend: &'a dyn Backend, from: &str) -> (Proxy<'a>, SocketAddr) {
    let listen = format!(
        "listen: [{{ address: '127.0.0.1:0' }}, \
         {{ address: '127.0.0.1:0', tls: starttls, proxy_protocol_from: [{from}] }}]"
    );
    let proxy = Proxy::starting(backend).config(&listen).start();
    let find = || {
        let line = proxy.log().into_iter().find(|line| line.field("service").contains("STARTTLS"));
        line.map(|line| line.field("address").parse().expect("an address"))
    };
    within(PATIENCE, "it listens for STARTTLS", || find().is_some());
    let address = find().expect("it was there");
    (proxy, address)
}

#[test]
fn a_port_for_starttls_greets_behind_the_header() {
    let backend = FakeBackend::plain();
    let (proxy, address) = starttls(&backend, "127.0.0.0/8");
    let mut client = Client::plain(address).unwrap();
    client.send(&binary()[..5]);
    assert!(client.silent_for(Duration::from_millis(200)), "not before the header is whole");
    client.send([&binary()[5..], b"a NOOP\r\nb LOGOUT\r\n"].concat());
    client.expect("* OK [CAPABILITY ");
    client.until("a OK");
    client.until("b OK");
    let session = the_session(&proxy);
    assert_eq!(session.field("client"), "192.0.2.7:50000");
    assert_eq!(session.field("reason"), "logout");
    proxy.stop();
}

#[test]
fn a_port_for_starttls_refuses_a_header_from_anybody_else() {
    let backend = FakeBackend::plain();
    let (proxy, address) = starttls(&backend, "192.0.2.1");
    for (n, header) in [LINE.as_bytes(), &binary()].into_iter().enumerate() {
        let mut client = Client::plain(address).unwrap();
        client.expect("* OK [CAPABILITY ");
        client.send(header);
        assert_eq!(client.end(), End::Orderly);
        proxy.wait_for_ends("proxy_header_unexpected", n + 1);
    }
    assert!(proxy.sessions().iter().all(|line| line.field("client").starts_with("127.0.0.1:")));
    proxy.stop();
}

/// A balancer on IPv4 and IPv6 in front of a proxy, whose server is told by version 1 what the balancer said.
#[track_caller]
fn balanced(start: impl FnOnce(&Proxy<'_>, u16) -> Process) {
    let headers = Headers::start();
    let yaml = "backend: { identity: proxy-v1 }";
    let proxy = Proxy::starting(&headers.backend).config(TRUSTING).config(yaml).start();
    let port = free_port();
    let mut balancer = start(&proxy, port);
    let mut want = Vec::new();
    let ends: [(IpAddr, IpAddr); 2] = [
        (CLIENT.into(), Ipv4Addr::LOCALHOST.into()),
        (Ipv6Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()),
    ];
    for (n, (source, ip)) in ends.into_iter().enumerate() {
        let address = SocketAddr::new(ip, port);
        within(PATIENCE, "the balancer listens", || {
            assert!(balancer.exited().is_none(), "it ended:\n{}", balancer.text());
            TcpStream::connect(address).is_ok()
        });
        let mut client = Client::tls_from(source, address, &config(&proxy))
            .unwrap_or_else(|error| panic!("{error}: {}", balancer.text()));
        client.log_in("alice", "secret");
        let local = client.tcp().local_addr().unwrap();
        assert_eq!(proxy.wait_for_logins(n + 1)[n].field("client"), local.to_string());
        let family = if local.is_ipv4() { "TCP4" } else { "TCP6" };
        want.push(format!("PROXY {family} {source} {ip} {} {port}\r\n", local.port()));
    }
    let [_, sessions] = headers.of(|header| header == b"PROXY UNKNOWN\r\n");
    let sessions: Vec<_> = sessions.iter().map(|line| String::from_utf8_lossy(line)).collect();
    assert_eq!(sessions, want);
    let bad = proxy.sum("imaps_proxy_tls_handshake_failures_total", &["proxy_header_"]);
    assert!(bad.abs() < 0.5, "{}", proxy.text());
}

fn haproxy(send: &str) {
    balanced(|proxy, port| {
        let file = proxy.folder.path().join("haproxy.cfg");
        let text = format!(
            "defaults\n mode tcp\n timeout connect 9s\n timeout client 9s\n timeout server 9s\n\
             frontend f\n bind 127.0.0.1:{port}\n bind [::1]:{port}\n default_backend b\n\
             backend b\n server s {} {send} check inter 100ms\n",
            proxy.imaps
        );
        fs::write(&file, text).expect("the folder is ours");
        let mut command = Command::new(program("haproxy", "haproxy"));
        command.arg("-db").arg("-f").arg(&file);
        Process::start(command)
    });
}

#[test]
fn haproxy_tells_by_version_1() {
    haproxy("send-proxy");
}

#[test]
fn haproxy_tells_by_version_2_with_tlvs_and_a_checksum() {
    haproxy("send-proxy-v2 proxy-v2-options crc32c,unique-id");
}

#[test]
fn nginx_tells_by_version_1() {
    const MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";
    let nginx = program("nginx", "nginx libnginx-mod-stream");
    let install = "apt-get install -y --no-install-recommends nginx libnginx-mod-stream";
    assert!(fs::exists(MODULE).unwrap(), "this test needs {MODULE}: {install}");
    balanced(|proxy, port| {
        let folder = proxy.folder.path();
        let text = format!(
            "load_module {MODULE};\ndaemon off;\nmaster_process off;\npid nginx.pid;\n\
             events {{}}\nstream {{\n server {{\n  listen 127.0.0.1:{port};\n\
             listen [::1]:{port};\n  proxy_pass {};\n  proxy_protocol on;\n }}\n}}\n",
            proxy.imaps
        );
        fs::write(folder.join("nginx.conf"), text).expect("the folder is ours");
        let mut command = Command::new(nginx);
        command.args(["-e", "stderr", "-c", "nginx.conf", "-p"]).arg(folder);
        Process::start(command)
    });
}
