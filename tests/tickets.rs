//! Session tickets: which proxy takes whose, for how long, and what the operator's key files do.

mod support;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::process::Signal;
use rustls::{ClientConfig, HandshakeKind, SupportedProtocolVersion};
use support::{
    Certificates, Client, FakeBackend, PATIENCE, Proxy, TlsOptions, binary, program, run,
    wait_until,
};

type Versions = &'static [&'static SupportedProtocolVersion];

const TLS12: Versions = &[&rustls::version::TLS12];
const TLS13: Versions = &[&rustls::version::TLS13];

/// Key files, and one certificate for every proxy of a test.
struct Place {
    folder: tempfile::TempDir,
    certificates: Certificates,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Elsewhere, or who looks at certificates only would see keys change.
        let elsewhere = folder.path().join("certificates");
        fs::create_dir(&elsewhere).unwrap();
        let certificates = Certificates::make(&elsewhere);
        Self { folder, certificates }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// As a careful script does: whole or not at all.
    fn put(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let (path, fresh) = (self.path(name), self.path("fresh"));
        fs::write(&fresh, bytes).unwrap();
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600)).unwrap();
        fs::rename(fresh, path).unwrap();
    }

    /// A new key as nginx wants it.
    fn key(&self, name: &str) -> Vec<u8> {
        let command = &mut Command::new(program("openssl", "openssl"));
        let file = self.path("random");
        run(command.args(["rand", "-out"]).arg(&file).arg("80"), b"", PATIENCE).succeeded();
        let key = fs::read(file).unwrap();
        self.put(name, &key);
        key
    }

    /// The `tls` section with this certificate and these keys.
    fn yaml(&self, files: &[&str]) -> String {
        let files: Vec<_> =
            files.iter().map(|file| format!("'{}'", self.path(file).display())).collect();
        let (cert, key) = (self.certificates.cert.display(), self.certificates.key.display());
        format!(
            "tls: {{ certificates: [{{ cert: '{cert}', key: '{key}' }}], \
             tickets: {{ key_files: [{}] }} }}",
            files.join(", ")
        )
    }

    fn proxy<'a>(&self, backend: &'a FakeBackend, files: &[&str]) -> Proxy<'a> {
        Proxy::start(backend, &self.yaml(files))
    }

    /// A client that keeps its tickets.
    fn client(&self, versions: Versions) -> Arc<ClientConfig> {
        let options = TlsOptions { versions: versions.to_vec(), ..TlsOptions::default() };
        options.config(&self.certificates.roots)
    }
}

/// Logs in and out; how the handshake was.
fn visit(proxy: &Proxy<'_>, config: &Arc<ClientConfig>) -> HandshakeKind {
    let mut client = Client::tls(proxy.imaps, config, "localhost").unwrap();
    client.log_in("alice", "secret");
    assert!(client.result("LOGOUT").starts_with("OK"));
    client.session().handshake_kind().unwrap()
}

fn reloads(result: &str) -> String {
    format!("imaps_proxy_reloads_total{{result=\"{result}\",what=\"tickets\"}}")
}

/// For a proxy in whose log an error was wanted.
fn end(mut proxy: Proxy<'_>) {
    proxy.terminate();
    assert_eq!(proxy.wait(PATIENCE).code(), Some(0));
}

#[test]
fn client_resumes_at_another_proxy_and_after_a_restart() {
    let backend = FakeBackend::plain();
    let place = Place::new();
    // The same key in the two forms that scripts make.
    let key = place.key("raw");
    place.put("lines", STANDARD.encode(key) + "\n");
    place.key("foreign");
    let (one, other) = (place.proxy(&backend, &["raw"]), place.proxy(&backend, &["lines"]));
    let stranger = place.proxy(&backend, &["foreign"]);
    assert!(one.metric(&reloads("ok")).abs() < 0.1 && one.metric(&reloads("failed")).abs() < 0.1);
    let clients = [TLS12, TLS13].map(|versions| place.client(versions));
    for client in &clients {
        assert_eq!(visit(&one, client), HandshakeKind::Full);
        assert_eq!(visit(&other, client), HandshakeKind::Resumed);
        assert_eq!(visit(&one, client), HandshakeKind::Resumed);
    }
    one.stop();
    let restarted = place.proxy(&backend, &["raw"]);
    for client in &clients {
        assert_eq!(visit(&restarted, client), HandshakeKind::Resumed);
        assert_eq!(visit(&stranger, client), HandshakeKind::Full);
    }
    let counted = |proxy: &Proxy<'_>, resumed| {
        proxy.sum("imaps_proxy_tls_handshakes_total", &[&format!("resumed=\"{resumed}\"")])
    };
    assert!((counted(&restarted, true) - 2.0).abs() < 0.1, "{:#?}", restarted.series());
    assert!((counted(&stranger, false) - 2.0).abs() < 0.1, "{:#?}", stranger.series());
    [other, restarted, stranger].into_iter().for_each(Proxy::stop);
}

/// OpenSSL and Python as the clients, at two proxies, of which one starts again.
#[test]
fn sessions_of_openssl_and_python_are_resumed_elsewhere_and_after_a_restart() {
    let backend = FakeBackend::plain();
    let place = Place::new();
    place.key("key");
    let start = || place.proxy(&backend, &["key"]);
    let (mut one, other) = (start(), start());
    let ca = place.certificates.ca.display().to_string();
    for (version, python, visits) in [("-tls1_2", "TLSv1_2", 2.0), ("-tls1_3", "TLSv1_3", 4.0)] {
        let session = place.path("session").display().to_string();
        let s_client = |proxy: &Proxy<'_>, option: &str| {
            let mut command = Command::new(program("openssl", "openssl"));
            command.args(["s_client", "-connect", &proxy.imaps.to_string(), "-CAfile", &ca]);
            command.args([version, "-ign_eof", "-crlf", option, &session]);
            run(&mut command, b"a LOGIN alice secret\nb LOGOUT\n", PATIENCE).stdout
        };
        let first = s_client(&one, "-sess_out");
        assert!(first.contains("New, TLSv1"), "{first}");
        assert!(first.contains("ticket lifetime hint: 43200 (seconds)"), "{first}");
        let tickets = first.matches("Post-Handshake New Session Ticket arrived").count();
        assert_eq!(tickets, if version == "-tls1_3" { 2 } else { 0 }, "{first}");
        let is_resumed =
            |told: &str| assert!(told.contains("Reused, TLSv1") && told.contains("b OK"), "{told}");
        is_resumed(&s_client(&other, "-sess_in"));

        let mut command = Command::new(program("python3", "python3"));
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/resume.py"));
        command.args([python, &ca, &one.imaps.to_string(), &other.imaps.to_string(), "-"]);
        let mut waiting = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        wait_until("Python was at both", || {
            let logins = other.sum("imaps_proxy_logins_total", &["result=\"ok\""]);
            (logins - visits).abs() < 0.1
        });
        one.stop();
        one = start();
        is_resumed(&s_client(&one, "-sess_in"));
        writeln!(waiting.stdin.take().unwrap(), "{}", one.imaps).unwrap();
        let told = waiting.wait_with_output().unwrap(); // it has deadlines of its own
        let (ticket, resumed) = ("has_ticket True hint 43200", "reused True");
        let lines = [ticket, "reused False", ticket, resumed, ticket, resumed];
        assert_eq!(String::from_utf8(told.stdout).unwrap().lines().collect::<Vec<_>>(), lines);
    }
    [one, other].into_iter().for_each(Proxy::stop);
}

#[test]
fn without_tickets_every_handshake_is_full() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "tls: { tickets: 'off' }");
    for versions in [TLS12, TLS13] {
        let options = TlsOptions { versions: versions.to_vec(), ..TlsOptions::default() };
        let config = options.config(&proxy.certificates.roots);
        assert_eq!(visit(&proxy, &config), HandshakeKind::Full);
        assert_eq!(visit(&proxy, &config), HandshakeKind::Full);
        let client = proxy.connect_with(&options).unwrap();
        assert_eq!(client.session().tls13_tickets_received(), 0);
    }
    for version in ["-tls1_2", "-tls1_3"] {
        let mut command = Command::new(program("openssl", "openssl"));
        command.args(["s_client", "-connect", &proxy.imaps.to_string(), version, "-ign_eof"]);
        let told = run(command.arg("-crlf"), b"b LOGOUT\n", PATIENCE).stdout;
        assert!(told.contains("b OK"), "{told}");
        for sign in ["TLS session ticket", "New Session Ticket arrived", "ticket lifetime hint"] {
            assert!(!told.contains(sign), "{told}");
        }
        assert!(
            !told.lines().any(|line| {
                line.trim().strip_prefix("Session-ID: ").is_some_and(|id| !id.is_empty())
            }),
            "a session that could be asked for: {told}"
        );
    }
    proxy.stop();
}

/// The file system reports them: nobody waits for the look of every minute.
#[test]
fn changed_key_files_are_taken_and_wrong_ones_refused() {
    let backend = FakeBackend::plain();
    let place = Place::new();
    let names = ["a1", "a2", "b1", "c1"];
    let old = place.key("old");
    names.into_iter().for_each(|name| place.put(name, &old));
    let rotated = place.proxy(&backend, &["a1", "a2"]);
    let replaced = place.proxy(&backend, &["b1"]);
    let broken = place.proxy(&backend, &["c1"]);
    let clients = [TLS12, TLS13].map(|versions| {
        let clients = [(); 3].map(|()| place.client(versions));
        for (proxy, client) in [&rotated, &replaced, &broken].into_iter().zip(&clients) {
            assert_eq!(visit(proxy, client), HandshakeKind::Full);
        }
        clients
    });
    let new = place.key("a1"); // the old one stays as the second
    place.key("b1");
    place.put("c1", &old[..79]);
    for (proxy, result) in [(&rotated, "ok"), (&replaced, "ok"), (&broken, "failed")] {
        wait_until("the files are looked at", || proxy.metric(&reloads(result)) > 0.5);
    }
    // Sealed with the old key, which only opens now; then with the new one, which another proxy knows too.
    place.put("new", new);
    let other = place.proxy(&backend, &["new"]);
    for clients in &clients {
        assert_eq!(visit(&rotated, &clients[0]), HandshakeKind::Resumed);
        // rustls keeps several tickets and offers the youngest first.
        assert_eq!(visit(&other, &clients[0]), HandshakeKind::Resumed);
        // No refusal: a full handshake, and a ticket of the new key.
        assert_eq!(visit(&replaced, &clients[1]), HandshakeKind::Full);
        assert_eq!(visit(&replaced, &clients[1]), HandshakeKind::Resumed);
        assert_eq!(visit(&broken, &clients[2]), HandshakeKind::Resumed);
    }
    let errors: Vec<_> = broken.log().into_iter().filter(|line| line.level() == "ERROR").collect();
    assert_eq!(errors.len(), 1, "{errors:#?}");
    assert_eq!(errors[0].field("what"), "tickets");
    let error = errors[0].field("error");
    let expected =
        format!("{}: has 79 bytes, but a ticket key has 48 or 80", place.path("c1").display());
    assert!(error.starts_with(&expected), "{error}");
    // Who asks is told again.
    broken.signal(Signal::HUP);
    wait_until("it is said again", || {
        broken.log().iter().filter(|line| line.level() == "ERROR").count() == 2
    });
    broken.wait_for_metric(&reloads("failed"), 2.0);
    assert_eq!(visit(&broken, &clients[1][2]), HandshakeKind::Resumed);
    place.put("c1", &old);
    broken.wait_for_metric(&reloads("ok"), 1.0);
    [rotated, replaced, other].into_iter().for_each(Proxy::stop);
    end(broken);
}

#[test]
fn wrong_key_files_keep_the_proxy_from_starting() {
    let place = Place::new();
    place.key("good");
    place.put("short", b"12345");
    place.put("empty", b"");
    place.put("text", "MIIB wrong\n");
    for (files, expected) in [
        (&["good", "short"][..], "/short: line 1 is"),
        (&["empty"], "/empty: is empty; make a ticket key with `openssl rand 80`"),
        (&["text"], "/text: line 1 is not base64"),
        (&["missing"], "/missing: no such file; put the ticket key there"),
        (&["."], "is a directory; name the file in it that holds the ticket key"),
    ] {
        let yaml = place.yaml(files)
            + "\nlisten: [{ address: '127.0.0.1:0' }]\nbackend: { servers: [{ address: 'x:143' }] }\n";
        place.put("f.yaml", yaml);
        for (command, code) in [("check", 2), ("run", 1)] {
            let finished = proxy(command, &place.path("f.yaml"));
            assert_eq!(finished.code, Some(code), "{finished:?}");
            let told = &finished.stderr;
            assert!(told.contains(expected), "{expected}: {finished:?}");
        }
    }
}

fn proxy(command: &str, config: &Path) -> support::Finished {
    run(Command::new(binary()).arg(command).arg("--config").arg(config), b"", PATIENCE)
}

#[test]
fn keys_that_others_may_read_are_reported() {
    let backend = FakeBackend::plain();
    let place = Place::new();
    place.key("key");
    let path = place.path("key");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let expected = format!("{}: ticket key open to everybody on this machine", path.display());
    let running = place.proxy(&backend, &["key"]);
    wait_until("it is said", || {
        running
            .log()
            .iter()
            .any(|line| line.level() == "WARN" && line.message().contains(&expected))
    });
    running.stop();
    let yaml = place.yaml(&["key"])
        + "\nlisten: [{ address: '127.0.0.1:0' }]\nbackend: { servers: [{ address: 'x:143' }] }\n";
    place.put("f.yaml", yaml);
    let checked = proxy("check", &place.path("f.yaml"));
    assert!(checked.code == Some(2) && checked.stderr.contains(&expected), "{checked:?}");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let checked = proxy("check", &place.path("f.yaml"));
    assert!(checked.code == Some(0) && checked.stderr.contains("open to its group"), "{checked:?}");
}
