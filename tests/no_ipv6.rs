//! A system without IPv6: `[::]` serves IPv4, and an address that can't be had says what to write.

mod support;

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;

use support::{
    FakeBackend, Finished, LogLine, PATIENCE, Proxy, Starting, binary, free_port, run, without_ipv6,
};

/// The binary's commands under the same system, with the proxy's configuration.
fn command(proxy: &Proxy<'_>, arguments: &[&str]) -> Finished {
    let mut command: Command = without_ipv6(&binary());
    run(command.args(arguments).arg("--config").arg(proxy.config_file()), b"", PATIENCE)
}

fn starting<'a>(backend: &'a FakeBackend, config: &str) -> Starting<'a> {
    Proxy::starting(backend).without_ipv6().config(config)
}

/// The lines that say so, one for each listener.
fn said(proxy: &Proxy<'_>) -> Vec<LogLine> {
    let is = |line: &LogLine| line.message().contains("this system has no IPv6");
    proxy.log().into_iter().filter(is).collect()
}

#[test]
fn every_kind_of_listener_on_all_addresses_serves_ipv4_and_says_so() {
    let backend = FakeBackend::plain();
    let [imaps, starttls, metrics, acme] = [(); 4].map(|()| free_port());
    let folder = tempfile::tempdir().unwrap();
    let config = format!(
        "{{ listen: [{{ address: '[::]:{imaps}' }}, {{ address: '[::]:{starttls}', tls: starttls }}], \
         metrics: {{ address: '[::]:{metrics}' }}, \
         tls: {{ acme: {{ directory: 'https://127.0.0.1:1/', terms_agreed: true, names: [localhost], \
         storage: '{}', http_address: '[::]:{acme}' }} }} }}",
        folder.path().display()
    );
    let mut proxy = starting(&backend, &config).start();
    let services: Vec<_> = said(&proxy).iter().map(|line| line.field("service")).collect();
    assert_eq!(services, ["imaps", "imap with STARTTLS", "metrics", "acme"]);
    let first = &said(&proxy)[0];
    assert_eq!(first.message(), "listening on IPv4 alone: this system has no IPv6");
    assert_eq!(first.field("address"), format!("0.0.0.0:{imaps}"));
    assert_eq!(first.field("configured"), format!("[::]:{imaps}"));
    let mut client = proxy.logged_in();
    for port in [starttls, metrics, acme] {
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("it serves IPv4");
    }
    let counted = format!("imaps_proxy_connections_total{{listener=\"[::]:{imaps}\"}}");
    assert!(proxy.metric(&counted) >= 1.0);
    // Who asks from outside finds it as well.
    command(&proxy, &["check"]).succeeded();
    command(&proxy, &["health"]).succeeded();
    let found = command(&proxy, &["doctor"]).stdout;
    assert!(found.contains(&format!("127.0.0.1:{imaps} answers")), "{found}");
    assert!(found.contains(&format!("127.0.0.1:{starttls} answers")), "{found}");
    // What stays in the configuration stays open, and is said once.
    let lines = proxy.reload("limits: { connections: 100 }");
    assert!(lines[0].contains("configuration reloaded"), "{lines:?}");
    assert_eq!(said(&proxy).len(), 4, "{}", proxy.text());
    assert!(client.result("LOGOUT").starts_with("OK"));
    // The CA can't be reached, which is an error of its own.
    proxy.terminate();
    assert_eq!(proxy.wait(PATIENCE).code(), Some(0), "{}", proxy.text());
    assert!(!proxy.text().contains("os error"), "{}", proxy.text());
}

#[test]
fn a_reload_changes_between_all_addresses_and_all_of_ipv4() {
    let backend = FakeBackend::plain();
    let port = free_port();
    let listen = |address: &str| format!("listen: [{{ address: '{address}:{port}' }}]");
    let proxy = starting(&backend, &listen("0.0.0.0")).start();
    for address in ["[::]", "0.0.0.0", "[::]", "127.0.0.1", "[::]"] {
        let lines = proxy.reload(&listen(address));
        assert!(lines[0].contains(&format!("+{address}:{port}")), "{lines:?}");
        drop(proxy.logged_in());
    }
    assert_eq!(said(&proxy).len(), 3);
    let lines = proxy.reload(&listen("[::1]"));
    let cure = format!("no IPv6; write \\\"0.0.0.0:{port}\\\"");
    assert!(lines[0].contains("refused") && lines[0].contains(&cure), "{lines:?}");
    drop(proxy.logged_in());
    assert!(TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_err(), "it still serves");
    drop(proxy);
}

#[test]
fn an_address_of_ipv6_alone_says_what_to_write() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.yaml");
    let free = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    for (listen, metrics, key) in [
        ("[::1]:993", free.to_string(), "listen[].address"),
        ("[2001:db8::1]:993", free.to_string(), "listen[].address"),
        (&*free.to_string(), "[::1]:993".to_owned(), "metrics.address"),
    ] {
        let text = format!(
            "listen: [{{ address: '{listen}' }}]\n\
             tls: {{ self_signed: {{ names: [localhost], dir: '{}' }} }}\n\
             backend: {{ servers: [{{ address: '127.0.0.1:1' }}] }}\n\
             metrics: {{ address: '{metrics}' }}\n",
            folder.path().join("made").display()
        );
        std::fs::write(&file, text).unwrap();
        let ask = |what: &str| {
            let mut command = without_ipv6(&binary());
            run(command.arg(what).arg("--config").arg(&file), b"", PATIENCE)
        };
        ask("check").succeeded(); // it opens no port
        let finished = ask("run");
        let expected = format!("({key}): this system has no IPv6; write \"0.0.0.0:993\"\n");
        assert!(finished.stderr.ends_with(&expected), "{finished:?}");
        assert_eq!(finished.code, Some(1));
        if key.starts_with("listen") {
            let found = ask("doctor").stdout;
            let expected = ["nobody can listen there: this system has no IPv6", "\"0.0.0.0:993\""];
            assert!(expected.iter().all(|words| found.contains(words)), "{found}");
        }
    }
}
