//! The idle limit. A configuration can't set it under the 30 minutes that RFC 9051 §5.4 grants, so this one test runs
//! the server from the library, with settings that no file could make.

mod support;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use imaps_proxy::{config, server};
use support::{Certificates, Client, End, FakeBackend, PATIENCE, TlsOptions, wait_until};

/// Serves from this process, for as long as it lives.
fn serve(backend: &FakeBackend, certificates: &Certificates, idle: Duration) -> SocketAddr {
    let yaml = format!(
        "listen: [{{address: \"127.0.0.1:0\"}}]\ntls: {{certificates: [{{cert: {}, key: {}}}]}}\n\
         backend: {{servers: [{{address: \"{}\"}}]}}\n",
        certificates.cert.display(),
        certificates.key.display(),
        backend.address
    );
    let mut settings = config::parse(&yaml, Path::new("test.yaml"), &|_| None)
        .expect("the configuration is right");
    settings.timeouts.idle = idle;
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let started =
            move |bound: &server::Bound| tell.send(bound.listeners[0]).expect("the test waits");
        runtime.block_on(server::run(settings, None, started)).expect("the server runs");
    });
    told.recv_timeout(PATIENCE).expect("the server listens")
}

#[test]
fn silent_session_is_told_bye_at_the_idle_limit_and_activity_moves_it() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let certificates = Certificates::make(folder.path());
    let backend = FakeBackend::imap("", |session, command| {
        if command.name == "XSLOW" {
            session.send("* 1 FETCH (BODY[] {1000}\r\nonly the beginning");
            return true;
        }
        false
    });
    let idle = Duration::from_secs(1);
    let proxy = serve(&backend, &certificates, idle);
    let tls = TlsOptions::default();
    let connect = || Client::tls(proxy, &tls.config(&certificates.roots), tls.name).expect("TLS");
    wait_until("the backend is known", || connect().line().starts_with("* OK "));

    let (mut silent, mut torn) = (connect(), connect());
    for client in [&mut silent, &mut torn] {
        client.log_in("alice", "secret");
    }
    torn.send("x XSLOW\r\n");
    torn.expect("* 1 FETCH");
    for _ in 0..4 {
        assert!(silent.silent_for(idle / 2), "closed although it was not silent for so long");
        assert!(silent.result("NOOP").starts_with("OK"));
    }
    assert_eq!(silent.rest(PATIENCE), "* BYE Idle for too long.\r\n");
    assert_eq!(silent.end(), End::Orderly);
    // In the middle of a response nothing may be said, and it is no orderly end.
    assert_eq!(torn.rest(PATIENCE), "only the beginning");
    assert_ne!(torn.end(), End::Orderly);
}
