//! Why handshakes fail: every reason provoked by a real client, counted, and told in the log.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use support::{Client, FakeBackend, LogLine, PATIENCE, Proxy, TlsOptions, program, run, within};

/// Counts and log lines of one proxy's failures.
struct Failures<'a>(&'a Proxy<'a>);

impl Failures<'_> {
    /// Waits for the `count`th failure of this reason; its lines in the log, one for each.
    #[track_caller]
    fn wait(&self, reason: &str, count: usize) -> Vec<LogLine> {
        let series = format!("imaps_proxy_tls_handshake_failures_total{{reason=\"{reason}\"}}");
        #[expect(clippy::cast_precision_loss, reason = "a handful of failures")]
        self.0.wait_for_metric(&series, count as f64);
        let lines = || {
            let all = self.0.log().into_iter();
            all.filter(|line| {
                line.message() == "handshake failed" && line.field("reason") == reason
            })
            .collect::<Vec<_>>()
        };
        within(PATIENCE, &format!("{count} lines for {reason}"), || lines().len() == count);
        lines()
    }

    /// The first failure of this reason: its line, at such a level.
    #[track_caller]
    fn first(&self, reason: &str, level: &str) -> LogLine {
        let line = self.wait(reason, 1).remove(0);
        assert_eq!(line.level(), level, "{line:?}");
        assert!(!line.field("why").is_empty() && line.has("client"), "{line:?}");
        assert_eq!(line.field("not_logged"), "0", "{line:?}");
        line
    }

    fn hellos(&self, version: &str) -> f64 {
        let series = format!("imaps_proxy_tls_client_hellos_total{{version=\"{version}\"}}");
        self.0.metric(&series)
    }
}

/// `openssl s_client` against the proxy; what it printed.
fn openssl(proxy: &Proxy<'_>, arguments: &[&str]) -> String {
    let mut command = Command::new(program("openssl", "openssl"));
    command.args(["s_client", "-servername", "mail.example.org", "-connect"]);
    command.arg(proxy.imaps.to_string()).args(arguments);
    let finished = run(&mut command, b"", PATIENCE);
    finished.stdout + &finished.stderr
}

const OLD: &[&str] = &["-cipher", "DEFAULT@SECLEVEL=0"];

#[test]
fn offer_that_can_not_be_met_is_told_by_what_was_missing() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let failures = Failures(&proxy);
    // The certificate has an ECDSA key.
    for (arguments, reason, said, version) in [
        (&["-tls1_1"][..], "only_old_versions", "protocol version", "TLSv1.1"),
        (
            &["-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256", "-sigalgs", "RSA+SHA256"],
            "needs_rsa_certificate",
            "handshake failure",
            "TLSv1.2",
        ),
        (&["-tls1_2", "-cipher", "AES128-SHA"], "no_common_suite", "handshake failure", "TLSv1.2"),
        (&["-tls1_3", "-groups", "P-521"], "no_common_group", "handshake failure", "TLSv1.3"),
        (&["-alpn", "h2,http/1.1"], "foreign_alpn", "no application protocol", "TLSv1.3"),
    ] {
        let arguments =
            if arguments == ["-tls1_1"] { [arguments, OLD].concat() } else { arguments.to_vec() };
        let printed = openssl(&proxy, &arguments);
        assert!(printed.contains(said), "{reason}: {printed}");
        let line = failures.first(reason, "INFO");
        assert_eq!(line.field("offered_version"), version, "{line:?}");
        assert_eq!(line.field("sni"), "mail.example.org", "{line:?}");
        let alpn = if reason == "foreign_alpn" { "h2 http/1.1" } else { "" };
        assert_eq!(line.field("alpn"), alpn, "{line:?}");
    }
    // TLS 1.3 says the same by its signature schemes; TLS 1.0 is as old as 1.1.
    openssl(&proxy, &["-tls1_3", "-sigalgs", "rsa_pss_rsae_sha256"]);
    failures.wait("needs_rsa_certificate", 2);
    openssl(&proxy, &[&["-tls1"], OLD].concat());
    failures.wait("only_old_versions", 2);
    let hellos = ["SSLv2", "TLSv1.0", "TLSv1.1", "TLSv1.2", "TLSv1.3"].map(|v| failures.hellos(v));
    assert_eq!(hellos, [0.0, 1.0, 1.0, 2.0, 3.0]);
    proxy.wait_for_ends("handshake_failed", 7);
    proxy.stop();
}

/// What people type into the field for a server's name; OpenSSL sends it as it is.
#[test]
fn a_name_that_is_no_dns_name_gets_the_default_certificate_and_is_logged() {
    let folder = tempfile::tempdir().unwrap();
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let ask = |name: &str, arguments: &[&str]| {
        let arguments = [&["-servername", name, "-ign_eof"], arguments].concat();
        let mut command = Command::new(program("openssl", "openssl"));
        command.args(["s_client", "-connect", &proxy.imaps.to_string()]).args(&arguments);
        let finished = run(&mut command, b"a LOGOUT\n", PATIENCE);
        let printed = finished.stdout + &finished.stderr;
        assert!(printed.contains("* OK "), "{name} {arguments:?}: {printed}");
        printed
    };
    let mut wanted = Vec::new();
    let long = "n".repeat(64) + ".example.org";
    for (name, logged) in [
        ("mail.example.org:993", "mail.example.org:993"),
        ("[2001:db8::1]", "[2001:db8::1]"),
        ("müller.example.org", "müller.example.org"),
        ("mail.example.org ", "mail.example.org "),
        ("user@example.org", "user@example.org"),
        ("-mail.example.org", "-mail.example.org"),
        ("a\"\u{7}\u{202e}b", "a\\u{22}\\u{7}\\u{202e}b"),
        (&long, &long),
    ] {
        for version in ["-tls1_2", "-tls1_3"] {
            ask(name, &[version]);
            wanted.push(logged);
        }
    }
    // The hello is in what both sides hash: again behind a HelloRetryRequest, and to prove a ticket's key.
    let (name, ticket) = ("mail.example.org:993", folder.path().join("ticket"));
    let ticket = ticket.to_str().unwrap();
    let retry = ["-tls1_3", "-groups", "P-521:X25519"];
    ask(name, &retry);
    ask(name, &[&retry[..], &["-no_middlebox"]].concat());
    for version in ["-tls1_2", "-tls1_3"] {
        ask(name, &[version, "-sess_out", ticket]);
        assert!(ask(name, &[version, "-sess_in", ticket]).contains("Reused, "), "{version}");
    }
    let again = ask(name, &[&retry[..], &["-sess_in", ticket]].concat());
    assert!(again.contains("Reused, "), "{again}");
    wanted.extend([name; 7]);
    within(PATIENCE, "all are logged", || proxy.sessions().len() == wanted.len());
    let logged: Vec<_> = proxy.sessions().iter().map(|line| line.field("sni")).collect();
    assert_eq!(logged, wanted);
    proxy.stop();

    let proxy = Proxy::start(&backend, "tls: { unknown_name: refuse }");
    let printed = openssl(&proxy, &["-servername", "mail.example.org:993"]);
    assert!(printed.contains("unrecognized name"), "{printed}");
    let line = Failures(&proxy).first("unknown_name", "INFO");
    assert_eq!(line.field("sni"), "mail.example.org:993");
    proxy.stop();
}

/// A self-signed certificate with an RSA key, as `openssl` makes it.
fn rsa(folder: &Path) -> String {
    let (cert, key) = (folder.join("rsa.pem"), folder.join("rsa.key"));
    let mut command = Command::new(program("openssl", "openssl"));
    command.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=x"]);
    command.args(["-addext", "subjectAltName=DNS:localhost", "-keyout"]);
    command.arg(&key).arg("-out").arg(&cert);
    run(&mut command, b"", PATIENCE).succeeded();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    format!("tls: {{ certificates: [{{ cert: '{}', key: '{}' }}] }}", cert.display(), key.display())
}

/// Windows 7 and 8 with an RSA certificate: of the suites that are spoken here they have ECDSA's only.
#[test]
fn client_that_an_ecdsa_certificate_would_have_helped_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, &rsa(folder.path()));
    let failures = Failures(&proxy);
    let suites = "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-SHA:AES128-GCM-SHA256";
    let printed = openssl(&proxy, &["-tls1_2", "-cipher", suites]);
    assert!(printed.contains("handshake failure"), "{printed}");
    let line = failures.first("needs_ecdsa_certificate", "INFO");
    assert!(line.field("why").contains("ECDSA"), "{line:?}");
    proxy.stop();
}

/// Who would be cut off by `tls.min_version: "1.3"` is told before and after it is set.
#[test]
fn client_below_the_configured_version_is_told_from_one_that_is_old() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "tls: { min_version: '1.3' }");
    let failures = Failures(&proxy);
    assert!(openssl(&proxy, &["-tls1_2"]).contains("protocol version"));
    failures.first("below_min_version", "INFO");
    openssl(&proxy, &[&["-tls1_1"], OLD].concat());
    failures.first("only_old_versions", "INFO");
    assert!(proxy.connect().line().starts_with("* OK "));
    let hellos = ["TLSv1.1", "TLSv1.2", "TLSv1.3"].map(|version| failures.hellos(version));
    assert_eq!(hellos, [1.0, 1.0, 1.0]);
    proxy.stop();
}

/// An operator's problem, so a warning.
#[test]
fn client_that_does_not_trust_the_certificate_is_a_warning() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let failures = Failures(&proxy);
    let printed = openssl(&proxy, &["-verify_return_error", "-tls1_3"]);
    assert!(printed.contains("verify error"), "{printed}");
    let line = failures.first("certificate_not_trusted", "WARN");
    assert!(line.field("detail").contains("UnknownCA"), "{line:?}");
    openssl(&proxy, &["-verify_return_error", "-tls1_2"]);
    failures.wait("certificate_not_trusted", 2);
    let mut curl = Command::new(program("curl", "curl"));
    curl.args(["--silent", "--max-time", "60"]);
    curl.arg(format!("imaps://localhost:{}/", proxy.imaps.port()));
    assert_eq!(run(&mut curl, b"", PATIENCE).code, Some(60), "curl's code for such a certificate");
    failures.wait("certificate_not_trusted", 3);
    // rustls itself, which knows no CA at all, and one that knows it under another name.
    let nobody = TlsOptions::default().config(&Arc::new(RootCertStore::empty()));
    Client::tls(proxy.imaps, &nobody, "localhost").unwrap_err();
    failures.wait("certificate_not_trusted", 4);
    proxy
        .connect_with(&TlsOptions { name: "other.example.org", ..TlsOptions::default() })
        .unwrap_err();
    let lines = failures.wait("certificate_not_trusted", 5);
    // The first is the line for this source, the others are there for who wants them all.
    let levels: Vec<_> = lines.iter().map(LogLine::level).collect();
    assert_eq!(levels, ["WARN", "DEBUG", "DEBUG", "DEBUG", "DEBUG"]);
    proxy.stop();
}

#[test]
fn what_is_no_tls_has_its_reason() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let failures = Failures(&proxy);
    // SSL 2 asks for 2.0 and for TLS 1.0, and is answered by an alert that says why.
    let ssl2 = |version: u8| [0x80, 0x2e, 1, if version == 2 { 0 } else { 3 }, version, 0, 0x15];
    for (number, (said, reason, ends, answer)) in [
        (&b"a1 CAPABILITY\r\n"[..], "not_tls_imap", "not_tls_imap", &b"* BYE "[..]),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "not_tls_http", "not_tls_http", b"HTTP/1.1 400 "),
        (&ssl2(2), "not_tls_ssl2", "not_tls", &[21, 3, 1, 0, 2, 2, 70]),
        (b"\0\0\0\0\0\0", "not_tls", "not_tls", b""),
        (b"\x16\x03\x01\x00\x05\x02\x00\x00\x01\x00", "malformed", "handshake_failed", &[21, 3]),
        // An alert is TLS.
        (b"\x15\x03\x01\x00\x02\x02\x28", "alert_received", "handshake_failed", b""),
    ]
    .into_iter()
    .enumerate()
    {
        let mut client = proxy.plain();
        client.send(said);
        let answered = client.rest_bytes(PATIENCE);
        assert!(answered.starts_with(answer), "{reason}: {}", answered.escape_ascii());
        failures.first(reason, "INFO");
        within(PATIENCE, "the session has ended", || proxy.sessions().len() == number + 1);
        assert_eq!(proxy.sessions()[number].field("reason"), ends);
    }
    let mut client = proxy.plain();
    client.send(ssl2(1));
    client.rest_bytes(PATIENCE);
    failures.wait("not_tls_ssl2", 2);
    assert_eq!([failures.hellos("SSLv2"), failures.hellos("TLSv1.0")], [1.0, 1.0]);
    proxy.stop();
}

#[test]
fn silence_and_leaving_have_their_reasons() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "timeouts: { handshake: 500ms }");
    let failures = Failures(&proxy);
    drop(proxy.plain());
    failures.first("closed", "INFO");
    let mut silent = proxy.plain();
    assert!(silent.rest(PATIENCE).starts_with("* BYE "));
    failures.first("timeout", "INFO");
    // Half a hello, and nothing more.
    let mut slow = proxy.plain();
    slow.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03");
    assert_eq!(slow.rest_bytes(PATIENCE), b"");
    failures.wait("timeout", 2);
    proxy.wait_for_ends("handshake_timeout", 2);
    proxy.stop();
}

#[test]
fn hundred_of_one_kind_from_one_source_are_counted_and_are_one_line() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "log: { level: info }");
    for _ in 0..100 {
        let mut client = proxy.plain();
        client.send(b"\0\0\0\0\0\0");
        client.rest_bytes(PATIENCE);
    }
    // Another kind is not hidden behind them.
    drop(proxy.plain());
    let failed =
        |reason| format!("imaps_proxy_tls_handshake_failures_total{{reason=\"{reason}\"}}");
    proxy.wait_for_metric(&failed("not_tls"), 100.0);
    proxy.wait_for_metric(&failed("closed"), 1.0);
    within(PATIENCE, "each kind of session is logged", || proxy.sessions().len() == 2);
    let lines: Vec<_> =
        proxy.log().into_iter().filter(|line| line.message() == "handshake failed").collect();
    let reasons: Vec<_> = lines.iter().map(|line| line.field("reason")).collect();
    assert_eq!(reasons, ["not_tls", "closed"], "{lines:#?}");
    proxy.stop();
}

/// G3: what a client offers is escaped where it is logged.
#[test]
fn alpn_in_the_log_is_escaped() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let failures = Failures(&proxy);
    let mut config = (*TlsOptions::default().config(&proxy.certificates.roots)).clone();
    config.alpn_protocols = vec![b"x\r\n{\"level\":\"ERROR\"}\x1b]0;p\x07".to_vec()];
    Client::tls(proxy.imaps, &Arc::new(config), "localhost").unwrap_err();
    let line = failures.first("foreign_alpn", "INFO");
    let want = r"x\u{d}\u{a}{\u{22}level\u{22}:\u{22}ERROR\u{22}}\u{1b}]0;p\u{7}";
    assert_eq!(line.field("alpn"), want);
    proxy.stop();
}

/// A message of 64 KiB in records of a byte each would be 400 KB of buffer, and sealed and padded a gigabyte.
#[test]
fn message_spread_thinly_over_records_is_cut_short() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let failures = Failures(&proxy);
    let thin = |first: [u8; 4]| {
        let bytes = first.into_iter().chain(std::iter::repeat_n(0, 60_000));
        bytes.flat_map(|byte| [22, 3, 3, 0, 1, byte]).collect::<Vec<_>>()
    };
    // In place of the ClientHello.
    let mut client = proxy.plain();
    let _ = client.try_send(thin([1, 0, 0xff, 0xff]));
    client.rest_bytes(PATIENCE);
    failures.first("malformed", "INFO");
    // And behind it, as ClientKeyExchange.
    let config = TlsOptions { versions: vec![&rustls::version::TLS12], ..TlsOptions::default() };
    let config = config.config(&proxy.certificates.roots);
    let mut connection =
        rustls::ClientConnection::new(config, "localhost".try_into().unwrap()).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    let mut client = proxy.plain();
    client.send(&hello);
    let _ = client.try_send(thin([16, 0, 0xff, 0xff]));
    client.rest_bytes(PATIENCE);
    let series = "imaps_proxy_tls_handshake_failures_total{reason=\"malformed\"}";
    proxy.wait_for_metric(series, 2.0);
    proxy.stop();
}

/// A hello is judged when it is whole, whoever dawdles.
#[test]
fn hello_that_comes_byte_by_byte_is_judged_as_any_other() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let failures = Failures(&proxy);
    let config = TlsOptions { alpn: vec!["h2"], ..TlsOptions::default() };
    let config = config.config(&proxy.certificates.roots);
    let name = "localhost".try_into().unwrap();
    let mut connection = rustls::ClientConnection::new(config, name).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    let mut client = proxy.plain();
    for bytes in hello.chunks(7) {
        client.send(bytes);
        std::thread::sleep(Duration::from_micros(200)); // so that they are segments
    }
    client.rest_bytes(PATIENCE);
    let line = failures.first("foreign_alpn", "INFO");
    assert_eq!((line.field("sni"), line.field("alpn")), ("localhost".into(), "h2".into()));
    proxy.stop();
}
