//! `doctor`, from outside: broken deployments, one for each thing that it can find, and the words that name it.

mod support;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use support::{
    Authority, Certificates, Dovecot, FakeBackend, Finished, PATIENCE, Proxy, Session, binary,
    days, free_port, run,
};

/// A server that has nothing to be complained of, and is recognised.
const CYRUS: &str = "[CAPABILITY IMAP4rev1 LITERAL+ ID ENABLE AUTH=PLAIN SASL-IR] mail Cyrus IMAP 3.6.1-4+deb12u5 server ready";

fn doctor(config: &Path, more: &[&str], input: &[u8]) -> Finished {
    let mut command = Command::new(binary());
    command.arg("doctor").arg("--config").arg(config).args(more);
    command.env_remove("NO_COLOR");
    let finished = run(&mut command, input, 3 * PATIENCE);
    for bad in ["panicked", "Os {", "RUST_BACKTRACE", "os error"] {
        let all = format!("{}{}", finished.stdout, finished.stderr);
        assert!(!all.contains(bad), "{bad:?} in {all}");
    }
    finished
}

/// What it says, parsed.
struct Diagnosis {
    code: Option<i32>,
    findings: Vec<Value>,
}

impl Diagnosis {
    #[track_caller]
    fn of(config: &Path, more: &[&str], input: &[u8]) -> Self {
        let finished = doctor(config, &[&["--json"], more].concat(), input);
        let parsed: Value = serde_json::from_str(&finished.stdout)
            .unwrap_or_else(|error| panic!("{error}: {finished:?}"));
        let problems = parsed["problems"].as_u64().unwrap();
        assert_eq!(parsed["healthy"], problems == 0);
        assert_eq!(finished.code, Some(i32::from(problems > 0)), "{finished:?}");
        let findings = parsed["findings"].as_array().unwrap().clone();
        Self { code: finished.code, findings }
    }

    /// The finding of this check, whose part is `part`.
    #[track_caller]
    fn finding(&self, part: &str, check: &str) -> &Value {
        let mut found = self.findings.iter().filter(|f| f["part"] == part && f["check"] == check);
        found.next().unwrap_or_else(|| panic!("no {part} {check} in {:#?}", self.findings))
    }

    /// Exactly this is a problem, and the words stand in what is said of it.
    #[track_caller]
    fn names(&self, part: &str, check: &str, words: &[&str]) {
        let problems: Vec<_> =
            self.findings.iter().filter(|finding| finding["verdict"] == "problem").collect();
        let finding = self.finding(part, check);
        assert_eq!(finding["verdict"], "problem", "{finding:#}");
        assert_eq!(problems.len(), 1, "{problems:#?}");
        assert_eq!(self.code, Some(1));
        self.says(finding, words);
    }

    #[track_caller]
    fn says(&self, finding: &Value, words: &[&str]) {
        let text = finding.to_string();
        for word in words {
            assert!(text.contains(word), "no {word:?} in {finding:#}");
        }
    }

    #[track_caller]
    fn is(&self, part: &str, check: &str, verdict: &str, words: &[&str]) {
        let finding = self.finding(part, check);
        assert_eq!(finding["verdict"], verdict, "{finding:#}");
        self.says(finding, words);
    }
}

/// A configuration in a folder of its own; nobody runs it.
struct Place {
    folder: tempfile::TempDir,
    listen: SocketAddr,
    certificates: Certificates,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let certificates = Certificates::make(folder.path());
        Self { folder, listen: (Ipv4Addr::LOCALHOST, free_port()).into(), certificates }
    }

    /// `backend` is what stands below that key, in one line.
    fn config(&self, backend: &str) -> PathBuf {
        let file = self.folder.path().join("config.yaml");
        let text = format!(
            "listen: [{{ address: '{}' }}]\n\
             tls: {{ certificates: [{{ cert: '{}', key: '{}' }}] }}\n\
             backend: {{ {backend}, connect_timeout: 1s }}\n\
             timeouts: {{ backend_greeting: 5s }}\n",
            self.listen,
            self.certificates.cert.display(),
            self.certificates.key.display()
        );
        fs::write(&file, text).unwrap();
        file
    }

    #[track_caller]
    fn examine(&self, backend: &str) -> Diagnosis {
        let diagnosis = Diagnosis::of(&self.config(backend), &[], b"");
        diagnosis.is("listener", "port", "skipped", &["nobody listens", "does not run yet"]);
        diagnosis
    }
}

/// What `doctor` says of a proxy that is not started and a server at `address`.
#[track_caller]
fn unstarted(address: impl ToString, more: &str) -> Diagnosis {
    Place::new().examine(&format!("servers: [{{ address: '{}' }}]{more}", address.to_string()))
}

/// A server that greets like this and is a good one.
fn greeting(text: &'static str) -> FakeBackend {
    FakeBackend::raw(move |session| {
        session.send(format!("* OK {text}\r\n"));
        let list = text.strip_prefix("[CAPABILITY ").and_then(|rest| rest.split_once(']'));
        session.serve(list.map_or("IMAP4rev1", |(list, _)| list), &|_, _| false);
    })
}

fn config_of(proxy: &Proxy<'_>) -> PathBuf {
    proxy.folder.path().join("config.yaml")
}

#[test]
fn a_healthy_deployment_has_ticks_only() {
    let backend = greeting(CYRUS);
    let proxy = Proxy::starting(&backend).fixed_ports().start();
    let ca = proxy.certificates.ca.display().to_string();
    let arguments = ["--ca", &ca, "--name", "localhost", "--user", "alice"];
    let finished = doctor(&config_of(&proxy), &arguments, b"secret\n").succeeded();
    let text = finished.stdout;
    assert!(text.ends_with("\nNothing is wrong.\n"), "{text}");
    for sign in ["✗", "!", "–", "\x1b", "secret"] {
        assert!(!text.contains(sign), "{sign:?} in {text}");
    }
    for line in [
        "Configuration ",
        "✓ name                localhost is ",
        "✓ running             the proxy runs and is ready",
        "Listener 127.0.0.1:",
        "✓ protocol            TLS 1.3, TLS13_AES_128_GCM_SHA256, X25519MLKEM768",
        "✓ versions            TLS 1.3 and 1.2",
        "✓ certificate-dates   valid until ",
        "✓ certificate-chain   issued by CN=Test CA, trusted",
        "✓ certificate-name    good for localhost",
        "✓ greeting            mail Cyrus IMAP 3.6.1-4+deb12u5 server ready",
        "✓ comparison          all that 127.0.0.1:",
        "✓ product             Cyrus",
        "✓ login-disabled      passwords are taken by LOGIN, mechanisms PLAIN",
        "✓ identity            none: it sees 127.0.0.1 for every client",
        "Login alice\n  ✓ login               works past the proxy and through it",
    ] {
        assert!(text.contains(line), "no {line:?} in\n{text}");
    }
    assert_eq!(finished.stderr, "");
    proxy.stop();
}

#[test]
fn dovecot_that_refuses_passwords_is_told_whom_to_trust() {
    let dovecot = Dovecot::that_wants_tls();
    let found = unstarted(dovecot.address, "");
    found.names(
        "server",
        "login-disabled",
        &[
            "LOGINDISABLED, seen from 127.0.0.1",
            "Dovecot 2.3 or older refuses passwords",
            "login_trusted_networks = 127.0.0.1",
            "haproxy = yes",
            "doveadm reload",
            "mode: starttls",
        ],
    );
    found.is("server", "product", "ok", &["Dovecot 2.3"]);
    found.is("server", "identity", "warning", &["it sees 127.0.0.1 for every client"]);
    // The same with a proxy in front of it, which has said so in its log.
    let proxy = Proxy::starting(&dovecot).fixed_ports().start();
    let diagnosis = Diagnosis::of(&config_of(&proxy), &["--user", "alice"], b"secret\n");
    diagnosis.names("server", "login-disabled", &["login_trusted_networks = 127.0.0.1"]);
    diagnosis.is("login", "login", "skipped", &["LOGINDISABLED"]);
    diagnosis.is("listener", "comparison", "ok", &["STARTTLS (removed"]);
    assert!(proxy.text().contains("login_trusted_networks = 127.0.0.1"), "{}", proxy.text());
    proxy.stop();
}

#[test]
fn servers_that_refuse_passwords_are_told_in_their_own_words() {
    for (greeting_text, product, line) in [
        (
            "[CAPABILITY IMAP4rev1 LOGIN-REFERRALS ID ENABLE IDLE SASL-IR LITERAL+ STARTTLS LOGINDISABLED] Dovecot ready.",
            "Dovecot 2.4",
            "ssl = yes  # with ssl = required, trust alone is not enough",
        ),
        (
            "[CAPABILITY IMAP4rev1 LITERAL+ ID ENABLE STARTTLS LOGINDISABLED] mail Cyrus IMAP 3.6.1 server ready",
            "Cyrus",
            "allowplaintext: yes",
        ),
        (
            "[CAPABILITY IMAP4rev1 UIDPLUS CHILDREN NAMESPACE SORT QUOTA IDLE ACL ACL2=UNION STARTTLS LOGINDISABLED] Courier-IMAP ready. Copyright 1998-2018 Double Precision, Inc.",
            "Courier",
            "IMAP_TLS_REQUIRED=0",
        ),
        (
            "[CAPABILITY IMAP4 IMAP4rev1 LOGINDISABLED STARTTLS UIDPLUS CHILDREN IDLE NAMESPACE LITERAL+] The Microsoft Exchange IMAP4 service is ready.",
            "Exchange",
            "Set-ImapSettings -LoginType PlainTextLogin",
        ),
        (
            "[CAPABILITY IMAP4rev1 LOGINDISABLED] Domino IMAP4 Server Release 10.0.1FP3 ready Wed, 30 Oct 2019 09:28:06 +0100",
            "Domino",
            "Name & password: Yes",
        ),
        (
            "[CAPABILITY IMAP4 IMAP4rev1 LOGINDISABLED CHILDREN IDLE RIGHTS=texk] IMAPrev1",
            "hMailServer",
            "Connection security: None",
        ),
        (
            "[CAPABILITY IMAP4REV1 I18NLEVEL=1 LITERAL+ SASL-IR LOGIN-REFERRALS STARTTLS LOGINDISABLED] nethost IMAP4rev1 2007f.404 at Wed, 6 Mar 2019 10:24:05 +0000 (UTC)",
            "UW-IMAP",
            "set disable-plaintext nil",
        ),
        (
            "[CAPABILITY IMAP4rev1 STARTTLS LOGINDISABLED] archive appliance",
            "this server",
            "mode: starttls",
        ),
    ] {
        let backend = greeting(greeting_text);
        let found = unstarted(backend.address, "");
        found.names("server", "login-disabled", &[line]);
        if product != "this server" {
            found.is("server", "product", "ok", &[product]);
        }
    }
}

/// A second port of Dovecot, for PROXY headers.
fn proxied() -> (Dovecot, SocketAddr) {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let dovecot = Dovecot::with(&format!(
        "haproxy_trusted_networks = 127.0.0.0/8\n\
         service imap-login {{\n inet_listener proxied {{\n address = {}\n port = {}\n haproxy = yes\n }}\n}}",
        address.ip(),
        address.port()
    ));
    (dovecot, address)
}

#[test]
fn a_server_that_expects_a_proxy_header_is_found_out() {
    let (_dovecot, address) = proxied();
    let found = unstarted(address, "");
    let words =
        ["greets only behind a PROXY header", "identity: proxy-v2", "proxy_tlvs: dovecot-2.3"];
    found.names("server", "identity", &words);
    // And as it should be: nothing to be said.
    let found = unstarted(address, ", identity: proxy-v2, proxy_tlvs: dovecot-2.3");
    found.is("server", "identity", "ok", &["it reads the PROXY header"]);
    assert_eq!(found.code, Some(0), "{:#?}", found.findings);
}

#[test]
fn dovecot_that_reads_the_header_and_a_balancer_in_front_have_ticks_only() {
    let (_dovecot, address) = proxied();
    let backend = support::Unreachable(address.to_string());
    let yaml = "backend: { identity: proxy-v2, proxy_tlvs: dovecot-2.3 }";
    let proxy = Proxy::starting(&backend).fixed_ports().config(yaml);
    let port = free_port();
    let yaml =
        format!("listen: [{{ address: '127.0.0.1:{port}', proxy_protocol_from: [127.0.0.0/8] }}]");
    let proxy = proxy.config(&yaml).start();
    let ca = proxy.certificates.ca.display().to_string();
    let found = Diagnosis::of(&config_of(&proxy), &["--ca", &ca, "--user", "alice"], b"secret\n");
    let others: Vec<_> = found.findings.iter().filter(|f| f["verdict"] != "ok").collect();
    assert!(others.is_empty(), "{others:#?}");
    found.is("server", "product", "ok", &["Dovecot 2.3"]);
    found.is("login", "login", "ok", &["past the proxy and through it"]);
}

#[test]
fn dovecot_that_believes_no_header_of_ours_is_found_out() {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let _dovecot = Dovecot::with(&format!(
        "haproxy_trusted_networks = 10.9.9.9\n\
         service imap-login {{\n inet_listener proxied {{\n address = {}\n port = {}\n haproxy = yes\n }}\n}}",
        address.ip(),
        address.port()
    ));
    let found = unstarted(address, ", identity: proxy-v2");
    let words = ["closes the connection without a word", "haproxy_trusted_networks = 127.0.0.1"];
    found.names("server", "greeting", &words);
}

#[test]
fn tls_to_a_server_is_told_apart_from_what_it_should_be() {
    let tls = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let dovecot = Dovecot::with(&format!(
        "service imap-login {{\n inet_listener secure {{\n address = {}\n port = {}\n ssl = yes\n }}\n}}",
        tls.ip(),
        tls.port()
    ));
    let ca = dovecot.ca().display().to_string();
    for (address, mode) in [(dovecot.address, "starttls"), (tls, "implicit")] {
        let trusting = format!(", tls: {{ mode: {mode}, ca: '{ca}' }}");
        let found = unstarted(address, &trusting);
        found.is("server", "encryption", "ok", &["its certificate is trusted"]);
        assert_eq!(found.code, Some(0), "{:#?}", found.findings);
        let named = format!(", tls: {{ mode: {mode}, ca: '{ca}', server_name: mail.example.org }}");
        let words = ["mail.example.org", "server_name: <name in its certificate>"];
        unstarted(address, &named).names("server", "encryption", &words);
        // Another CA of the same name.
        let place = Place::new();
        let other = place.certificates.ca.display();
        let backend = format!(
            "servers: [{{ address: '{address}' }}], tls: {{ mode: {mode}, ca: '{other}' }}"
        );
        place.examine(&backend).names("server", "encryption", &["ca: <PEM file", "no password"]);
    }
    let words = ["it speaks TLS from the first byte", "mode: implicit"];
    unstarted(tls, "").names("server", "encryption", &words);
    let words = ["it speaks plaintext", "tls: none"];
    let wanted = format!(", tls: {{ mode: implicit, ca: '{ca}' }}");
    unstarted(dovecot.address, &wanted).names("server", "encryption", &words);
    let cyrus = greeting(CYRUS);
    let wanted = format!(", tls: {{ mode: starttls, ca: '{ca}' }}");
    unstarted(cyrus.address, &wanted).names("server", "encryption", &["does not offer STARTTLS"]);
    let found = unstarted("unix:/nonexistent/imap.sock", "");
    found.names("server", "port", &["/nonexistent/imap.sock", "has its socket elsewhere"]);
}

#[test]
fn a_server_that_hangs_is_told_from_one_that_closes() {
    let backend = FakeBackend::raw(|session| {
        session.drain();
    });
    let place = Place::new();
    let file = place.config(&format!("servers: [{{ address: '{}' }}]", backend.address));
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("backend_greeting: 5s", "backend_greeting: 1s")).unwrap();
    let found = Diagnosis::of(&file, &[], b"");
    found.names("server", "greeting", &["says nothing within 1s", "hangs"]);
}

#[test]
fn a_server_that_expects_no_proxy_header_is_found_out() {
    let dovecot = Dovecot::start();
    for identity in ["proxy-v1", "proxy-v2"] {
        let found = unstarted(dovecot.address, &format!(", identity: {identity}"));
        let words = ["only without a PROXY header", identity, "haproxy = yes", "dovecot-id"];
        found.names("server", "identity", &words);
    }
}

#[test]
fn a_server_that_believes_no_id_is_found_out() {
    // It shows in LOGINDISABLED, which a trusted address would not be told.
    let dovecot = Dovecot::that_wants_tls();
    let found = unstarted(dovecot.address, ", identity: dovecot-id");
    found.is("server", "identity", "problem", &["it ignores the ID of 127.0.0.1"]);
    found.is("server", "login-disabled", "problem", &["login_trusted_networks = 127.0.0.1"]);

    let cyrus = greeting(CYRUS);
    let found = unstarted(cyrus.address, ", identity: dovecot-id");
    found.names("server", "identity", &["it is Cyrus", "identity: none"]);

    let old = greeting("[CAPABILITY IMAP4rev1 IDLE] legacy server ready");
    let found = unstarted(old.address, ", identity: dovecot-id");
    found.names("server", "identity", &["it offers no ID"]);
}

/// A Dovecot 2.4 that trusts us or does not.
fn dovecot_24(trusting: bool) -> FakeBackend {
    const LIST: &str = "IMAP4rev1 LOGIN-REFERRALS ID ENABLE IDLE SASL-IR LITERAL+ AUTH=PLAIN";
    FakeBackend::raw(move |session| {
        session.send(format!("* OK [CAPABILITY {LIST}] Dovecot ready.\r\n"));
        session.serve(LIST, &move |session: &mut Session, command| {
            let lie = trusting && command.line.contains("\"nowhere\"");
            if lie {
                session.send(format!("{} BAD Invalid ID parameters.\r\n", command.tag));
            }
            lie
        });
    })
}

#[test]
fn whether_dovecot_24_believes_an_id_is_found_out_by_a_lie() {
    let found = unstarted(dovecot_24(true).address, ", identity: dovecot-id");
    found.is("server", "identity", "ok", &["it believes the ID"]);
    let found = unstarted(dovecot_24(false).address, ", identity: dovecot-id");
    found.names("server", "identity", &["it ignores the ID", "login_trusted_networks = 127.0.0.1"]);
}

#[test]
fn a_server_that_is_down_is_told_from_one_that_is_out_of_reach() {
    let found = unstarted(SocketAddr::from((Ipv4Addr::LOCALHOST, free_port())), "");
    found.names("server", "port", &["refused", "The port is closed", "ss -ltn"]);

    let found = unstarted("nowhere.invalid:143", "");
    found.names("server", "address", &["nowhere.invalid:143 does not resolve"]);

    // A full queue drops what comes, as a filter does.
    let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    full.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    full.listen(0).unwrap();
    let address = full.local_addr().unwrap().as_socket().unwrap();
    let _fillers: Vec<_> =
        (0..4).map(|_| TcpStream::connect_timeout(&address, Duration::from_millis(100))).collect();
    let found = unstarted(address, "");
    found.names("server", "port", &["no connection within 1s", "filtered"]);
}

#[test]
fn what_is_no_imap_server_gets_its_name() {
    for (words, check, expected) in [
        ("220 mail ESMTP Postfix", "protocol", "SMTP"),
        ("+OK POP3 ready", "protocol", "POP3"),
        ("* PREAUTH welcome", "greeting", "one and the same user"),
        ("* BYE too many connections", "greeting", "too many connections"),
        ("* OK hello\r\nHTTP/1.1 400 what", "greeting", "it greets, and then"),
    ] {
        let backend = FakeBackend::raw(move |session| {
            session.send(format!("{words}\r\n"));
            session.linger();
        });
        unstarted(backend.address, "").names("server", check, &[expected]);
    }
    let silent = FakeBackend::raw(|session| session.linger());
    let found = unstarted(silent.address, "");
    found.names("server", "greeting", &["closes the connection without a word"]);
}

#[test]
fn a_port_that_somebody_else_has_is_told_by_what_is_spoken() {
    let backend = greeting(CYRUS);
    let servers = format!("servers: [{{ address: '{}' }}]", backend.address);
    let imap = FakeBackend::plain();
    let http = FakeBackend::raw(|session| {
        if session.line().is_some() {
            session.send("HTTP/1.1 200 OK\r\n\r\n");
        }
        session.linger();
    });
    for (address, words) in [
        (imap.address, ["plaintext IMAP", "Another service has this port"]),
        (http.address, ["HTTP", "Another service has this port"]),
    ] {
        let place = Place { listen: address, ..Place::new() };
        let file = place.config(&servers);
        let text =
            fs::read_to_string(&file).unwrap().replace("timeouts: {", "timeouts: { handshake: 2s,");
        fs::write(&file, text).unwrap();
        let found = Diagnosis::of(&file, &[], b"");
        found.names("listener", "protocol", &words);
    }
    // An address that this machine does not have (TEST-NET-3).
    let place = Place { listen: "203.0.113.7:993".parse().unwrap(), ..Place::new() };
    let found = Diagnosis::of(&place.config(&servers), &[], b"");
    found.names("listener", "port", &["nobody can listen there", "[::]:993"]);
}

#[test]
fn another_tls_server_on_the_port_is_not_taken_for_the_proxy() {
    let backend = greeting(CYRUS);
    let place = Place::new();
    let address = place.listen;
    let _dovecot = Dovecot::with(&format!(
        "service imap-login {{\n inet_listener secure {{\n address = {}\n port = {}\n ssl = yes\n }}\n}}",
        address.ip(),
        address.port()
    ));
    let file = place.config(&format!("servers: [{{ address: '{}' }}]", backend.address));
    let found = Diagnosis::of(&file, &[], b"");
    found.names("listener", "greeting", &["not this proxy", "Dovecot", "Another service"]);
}

#[test]
fn a_port_that_the_running_proxy_does_not_serve_is_a_problem() {
    let backend = greeting(CYRUS);
    let proxy = Proxy::starting(&backend).fixed_ports().start();
    let file = config_of(&proxy);
    let new = free_port();
    let old = format!("127.0.0.1:{}", proxy.imaps.port());
    let text = fs::read_to_string(&file).unwrap().replace(&old, &format!("127.0.0.1:{new}"));
    let other = proxy.folder.path().join("new.yaml");
    fs::write(&other, text).unwrap();
    let found = Diagnosis::of(&other, &[], b"");
    found.names("listener", "port", &["refused", "not on this port", "restart"]);
    proxy.stop();
}

/// It stands behind what it issues.
fn ca_of(authority: &Authority) -> String {
    let chain = authority.issue(&["x.example"]).chain;
    chain.split_inclusive("-----END CERTIFICATE-----\n").nth(1).unwrap().to_owned()
}

#[test]
fn certificates_are_judged_by_dates_chain_and_name() {
    let backend = greeting(CYRUS);
    let authority = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("ca.pem"), ca_of(&authority)).unwrap();
    authority.issue(&["mail.example.org", "localhost"]).write(&path("good.pem"), &path("good.key"));
    authority
        .issue_until(&["localhost"], days(0) - Duration::from_hours(72))
        .write(&path("old.pem"), &path("old.key"));
    let alone = authority.issue(&["localhost"]);
    let leaf = alone.chain.split_inclusive("-----END CERTIFICATE-----\n").next().unwrap();
    fs::write(path("alone.pem"), leaf).unwrap();
    support::replace(&path("alone.key"), &alone.key);
    let ca = path("ca.pem").display().to_string();
    let start = |name: &str| {
        let yaml = format!(
            "tls: {{ certificates: [{{ cert: '{}', key: '{}' }}] }}",
            path(&format!("{name}.pem")).display(),
            path(&format!("{name}.key")).display()
        );
        Proxy::starting(&backend)
            .without_certificates()
            .fixed_ports()
            .config(&yaml)
            .not_ready()
            .start()
    };

    let proxy = start("good");
    let file = config_of(&proxy);
    let found = Diagnosis::of(&file, &["--ca", &ca, "--name", "localhost"], b"");
    assert_eq!(found.code, Some(0), "{:#?}", found.findings);
    let found = Diagnosis::of(&file, &["--ca", &ca, "--name", "127.0.0.1"], b"");
    let words = ["not good for 127.0.0.1, but for mail.example.org, localhost"];
    found.names("listener", "certificate-name", &words);
    let found = Diagnosis::of(&file, &["--name", "nowhere.invalid"], b"");
    found.is("configuration", "name", "problem", &["nowhere.invalid does not resolve"]);
    found.is("listener", "certificate-chain", "warning", &["Test CA", "--ca"]);
    drop(proxy);

    let proxy = start("old");
    let found = Diagnosis::of(&config_of(&proxy), &["--ca", &ca], b"");
    found.is("listener", "certificate-dates", "problem", &["expired on", "3 days ago", "renew"]);
    found.is("listener", "certificate-chain", "ok", &["trusted"]);
    found.is("configuration", "files", "problem", &["expired on"]);
    drop(proxy);

    let proxy = start("alone");
    let found = Diagnosis::of(&config_of(&proxy), &[], b"");
    found.names(
        "listener",
        "certificate-chain",
        &["intermediate certificate is missing", "fullchain.pem"],
    );
    drop(proxy);
}

#[test]
fn a_proxy_without_a_server_is_told_from_one_that_is_broken() {
    let backend = FakeBackend::raw(|session| {
        session.send("* BYE maintenance\r\n");
        session.linger();
    });
    let proxy = Proxy::starting(&backend).fixed_ports().not_ready().start();
    let found = Diagnosis::of(&config_of(&proxy), &[], b"");
    found.is("configuration", "running", "problem", &["not ready"]);
    found.is(
        "listener",
        "greeting",
        "problem",
        &["BYE", "no server that it could pass clients on to"],
    );
    found.is("server", "greeting", "problem", &["maintenance"]);
}

#[test]
fn what_differs_through_the_proxy_is_explained_or_said_to_be_unexplained() {
    let backend = greeting(CYRUS);
    let yaml = "backend: { capabilities: { hide: [ENABLE], add: [XAPPLE] } }";
    let proxy = Proxy::starting(&backend).fixed_ports().config(yaml).start();
    let file = config_of(&proxy);
    let found = Diagnosis::of(&file, &[], b"");
    let words = ["ENABLE (hidden by", "XAPPLE (added by"];
    found.is("listener", "comparison", "ok", &words);
    // The same proxy, seen with another configuration.
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains("ENABLE"), "{text}");
    let other = proxy.folder.path().join("other.yaml");
    fs::write(&other, text.replace("ENABLE", "XOTHER")).unwrap();
    let found = Diagnosis::of(&other, &[], b"");
    found.is(
        "listener",
        "comparison",
        "warning",
        &["ENABLE (missing through the proxy)", "another configuration"],
    );
    proxy.stop();
}

#[test]
fn logins_past_the_proxy_and_through_it_are_compared() {
    let backend = greeting(CYRUS);
    let proxy = Proxy::starting(&backend).fixed_ports().start();
    let file = config_of(&proxy);
    let found = Diagnosis::of(&file, &["--user", "alice"], b"wrong\n");
    found.names("login", "login", &["refused both ways", "user name or the password is wrong"]);
    // From a file, with what needs a literal in it.
    let secret = proxy.folder.path().join("password");
    fs::write(&secret, "s\u{e9}cret\"\\\n").unwrap();
    let path = secret.display().to_string();
    let found = Diagnosis::of(&file, &["--user", "bob", "--password-file", &path], b"");
    found.names("login", "login", &["refused both ways"]);
    let (user, password) = backend.logins().pop().unwrap();
    assert_eq!((user.as_slice(), password.as_slice()), (&b"bob"[..], "s\u{e9}cret\"\\".as_bytes()));
    proxy.stop();

    // One that says only when somebody tries that it wants TLS.
    let hmail = FakeBackend::raw(|session| {
        session.send("* OK IMAPrev1\r\n");
        session.serve("IMAP4 IMAP4rev1 CHILDREN IDLE", &|session: &mut Session, command| {
            let login = command.name == "LOGIN";
            if login {
                session.send(format!("{} BAD STARTTLS is required.\r\n", command.tag));
            }
            login
        });
    });
    let place = Place::new();
    let file = place.config(&format!("servers: [{{ address: '{}' }}]", hmail.address));
    let found = Diagnosis::of(&file, &["--user", "alice"], b"secret\n");
    found.names("login", "login", &["STARTTLS is required", "takes for unencrypted"]);
}

#[test]
fn a_login_that_works_past_the_proxy_only_is_told_from_a_wrong_password() {
    // The proxy passes on the client's ID; this server does not like it.
    let count = std::sync::atomic::AtomicUsize::new(0);
    let backend = FakeBackend::raw(move |session| {
        session.send(format!("* OK {CYRUS}\r\n"));
        session.serve("IMAP4rev1 AUTH=PLAIN", &|session: &mut Session, command| {
            let second = command.name == "LOGIN"
                && count.fetch_add(1, std::sync::atomic::Ordering::SeqCst) > 0;
            if second {
                session.send(format!("{} NO [AUTHENTICATIONFAILED] not you\r\n", command.tag));
            }
            second
        });
    });
    let proxy = Proxy::starting(&backend).fixed_ports().start();
    let found = Diagnosis::of(&config_of(&proxy), &["--user", "alice"], b"secret\n");
    found.names(
        "login",
        "login",
        &["works past the proxy, and not through it", "password is right"],
    );
    proxy.stop();
}

#[test]
fn a_listener_for_starttls_is_looked_at_behind_it() {
    let backend = greeting(CYRUS);
    let proxy = Proxy::starting(&backend).fixed_ports();
    let port = free_port();
    let yaml = format!("listen: [{{ address: '127.0.0.1:{port}', tls: starttls }}]");
    let proxy = proxy.config(&yaml).start();
    let ca = proxy.certificates.ca.display().to_string();
    let found = Diagnosis::of(&config_of(&proxy), &["--ca", &ca, "--user", "alice"], b"secret\n");
    assert_eq!(found.code, Some(0), "{:#?}", found.findings);
    found.is("listener", "protocol", "ok", &["TLS 1.3"]);
    found.is("listener", "comparison", "ok", &["all that"]);
    found.is("login", "login", "ok", &["through it"]);
    proxy.stop();
}

#[test]
fn where_clients_need_certificates_the_rest_is_looked_at() {
    let backend = greeting(CYRUS);
    let authority = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("clients.pem");
    fs::write(&ca, ca_of(&authority)).unwrap();
    let yaml = format!("tls: {{ client_auth: {{ mode: required, ca: '{}' }} }}", ca.display());
    let proxy = Proxy::starting(&backend).fixed_ports().config(&yaml).start();
    let found = Diagnosis::of(&config_of(&proxy), &[], b"");
    found.is("listener", "greeting", "skipped", &["clients need a certificate"]);
    assert_eq!(found.code, Some(0), "{:#?}", found.findings);
    proxy.stop();
}

#[test]
fn versions_that_do_not_meet_are_named() {
    let backend = greeting(CYRUS);
    let yaml = "tls: { min_version: '1.3' }";
    let proxy = Proxy::starting(&backend).fixed_ports().config(yaml).start();
    let file = config_of(&proxy);
    let found = Diagnosis::of(&file, &[], b"");
    found.is("listener", "versions", "ok", &["TLS 1.3 only, as tls.min_version has it"]);
    let other = proxy.folder.path().join("other.yaml");
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains("min_version: '1.3'"), "{text}");
    fs::write(&other, text.replace("min_version: '1.3'", "min_version: '1.2'")).unwrap();
    let found = Diagnosis::of(&other, &[], b"");
    found.is("listener", "versions", "warning", &["shut out"]);
    proxy.stop();
}

#[test]
fn a_wrong_command_line_or_configuration_is_exit_code_2() {
    let place = Place::new();
    let file = place.config("servers: [{ address: '127.0.0.1:1' }]");
    for (more, input, words) in [
        (&["--name", "no name"][..], &b""[..], "neither a DNS name"),
        (&["--ca", "/nonexistent/ca.pem"], b"", "/nonexistent/ca.pem"),
        (&["--user", "alice"], b"", "the password is empty"),
        (&["--password-file", "x"], b"", "--user"),
        (&["--user", "a", "--password-file", "/nonexistent/pw"], b"", "/nonexistent/pw"),
        (&["--password", "secret"], b"", "--password"),
    ] {
        let finished = doctor(&file, more, input);
        assert_eq!(finished.code, Some(2), "{more:?}: {finished:?}");
        assert!(finished.stderr.contains(words), "{more:?}: {finished:?}");
    }
    fs::write(&file, "listen: []\n").unwrap();
    let finished = doctor(&file, &[], b"");
    assert_eq!(finished.code, Some(2), "{finished:?}");
    assert!(finished.stderr.contains("config.yaml:1:"), "{finished:?}");
}

#[test]
fn an_address_that_others_hold_is_said_to_be_taken() {
    // Bound, and nobody listens: the proxy could not either.
    let backend = greeting(CYRUS);
    let held = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    held.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    let address = held.local_addr().unwrap().as_socket().unwrap();
    let place = Place { listen: address, ..Place::new() };
    let file = place.config(&format!("servers: [{{ address: '{}' }}]", backend.address));
    let found = Diagnosis::of(&file, &[], b"");
    found.names("listener", "port", &["nobody can listen there", "in use"]);
    drop(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
}
