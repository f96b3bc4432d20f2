//! Certificates from a CA by ACME, in front of Pebble with its faults.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use support::{
    Authority, FakeBackend, HMAC_KEY, PATIENCE, Pebble, Process, Proxy, Starting, connects, days,
    free_port, program, run, within,
};

/// An order has up to three pauses of seconds in it.
const ORDER: Duration = Duration::from_secs(60);
const OK: &str = "imaps_proxy_tls_acme_orders_total{result=\"ok\"}";
const FAILED: &str = "imaps_proxy_tls_acme_orders_total{result=\"failed\"}";
const NEXT: &str = "imaps_proxy_tls_acme_next_order_timestamp_seconds";

fn starting<'a>(backend: &'a FakeBackend, section: &str) -> Starting<'a> {
    Proxy::starting(backend).without_certificates().config(section)
}

/// Subject names and issuer of what is served for `name`.
fn served(address: SocketAddr, name: &str) -> (BTreeSet<String>, String) {
    use x509_parser::prelude::*;
    let mut command = Command::new(program("openssl", "openssl"));
    command.args(["s_client", "-connect", &address.to_string(), "-servername", name]);
    let ended = run(&mut command, b"", PATIENCE);
    let (_, pem) = parse_x509_pem(ended.stdout.as_bytes()).unwrap_or_else(|_| {
        panic!("no certificate: {}", ended.stderr);
    });
    let certificate = pem.parse_x509().unwrap();
    let names = certificate.subject_alternative_name().unwrap().unwrap();
    let names = names.value.general_names.iter().map(|name| match name {
        GeneralName::DNSName(name) => (*name).to_owned(),
        other => other.to_string(),
    });
    (names.collect(), certificate.issuer().to_string())
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(ToString::to_string).collect()
}

#[track_caller]
fn wait_for_order(proxy: &Proxy<'_>) {
    within(ORDER, "an order is done", || {
        assert!(proxy.metric(FAILED) < 4.0, "{}", proxy.text());
        proxy.metric(OK) > 0.5
    });
}

#[track_caller]
fn wait_for_issuer(proxy: &Proxy<'_>, name: &str, issuer: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    within(PATIENCE, &format!("a certificate of {issuer}"), || {
        let (has, by) = served(proxy.imaps, name);
        names = has;
        by.contains(issuer)
    });
    names
}

#[test]
fn http_01_brings_a_certificate_that_serves_at_once_and_after_a_restart() {
    let pebble = Pebble::start();
    let backend = FakeBackend::plain();
    let storage = tempfile::tempdir().unwrap();
    let section = pebble.section("mail.example.org, imap.example.org", storage.path(), "");
    let proxy = starting(&backend, &section).start();
    wait_for_order(&proxy);
    let names = wait_for_issuer(&proxy, "mail.example.org", "Pebble");
    assert_eq!(names, set(&["imap.example.org", "mail.example.org"]));
    let line = proxy
        .log()
        .into_iter()
        .find(|line| line.message() == "ACME order" && line.level() == "INFO");
    let line = line.expect("an order is logged");
    assert_eq!(
        (line.field("result"), line.field("names")),
        ("ok".into(), "mail.example.org imap.example.org".into())
    );
    assert!(proxy.metric(NEXT) > 1.8e9);
    let kept = pebble.storage_of(storage.path());
    for file in ["account.json", "certificate.pem"] {
        let mode = fs::metadata(kept.join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    let before = fs::read_to_string(kept.join("certificate.pem")).unwrap();
    assert_eq!(before.matches("PRIVATE KEY").count(), 2, "{before}");
    drop(proxy);

    // What was ordered serves from the first moment, and nothing is ordered again.
    let proxy = starting(&backend, &section).start();
    assert!(served(proxy.imaps, "mail.example.org").1.contains("Pebble"));
    within(PATIENCE, "the next order is planned", || proxy.metric(NEXT) > 1.8e9);
    assert!(proxy.metric(OK) < 0.5 && proxy.metric(FAILED) < 0.5);
    assert_eq!(fs::read_to_string(kept.join("certificate.pem")).unwrap(), before);
}

#[test]
fn a_reload_begins_orders_and_ends_them() {
    let pebble = Pebble::start();
    let backend = FakeBackend::plain();
    let storage = tempfile::tempdir().unwrap();
    let own = tempfile::tempdir().unwrap();
    let made = own.path().display();
    let section = format!("tls: {{ self_signed: {{ names: [mail.example.org], dir: '{made}' }} }}");
    let proxy = starting(&backend, &section).start();
    let before = fs::read_to_string(proxy.config_file()).unwrap();
    assert!(!connects(pebble.http));
    let lines = proxy.reload(&pebble.section("mail.example.org", storage.path(), ""));
    assert!(lines[0].contains("tls.acme none -> {directory: https://"), "{lines:?}");
    wait_for_order(&proxy);
    wait_for_issuer(&proxy, "mail.example.org", "Pebble");
    // What has nothing to do with it lets it be.
    proxy.reload("limits: { connections: 100 }");
    within(PATIENCE, "the next order is planned", || proxy.metric(NEXT) > 1.8e9);
    assert!(connects(pebble.http) && proxy.metric(OK) < 1.5);
    fs::write(proxy.config_file(), before).unwrap();
    proxy.hang_up();
    wait_for_issuer(&proxy, "mail.example.org", "imaps-proxy CA");
    within(PATIENCE, "nothing is ordered any more", || proxy.metric(NEXT) < 0.5);
    assert!(!connects(pebble.http));
    proxy.stop();
}

#[test]
fn a_self_made_certificate_serves_while_the_ca_is_down_and_the_order_comes_later() {
    let mut pebble = Pebble::stopped(false);
    let backend = FakeBackend::plain();
    let storage = tempfile::tempdir().unwrap();
    let proxy = starting(&backend, &pebble.section("mail.example.org", storage.path(), "")).start();
    within(PATIENCE, "an order fails", || proxy.metric(FAILED) > 0.5);
    assert!(served(proxy.imaps, "mail.example.org").1.contains("imaps-proxy CA"));
    let line = proxy.log().into_iter().find(|line| line.message() == "ACME order").unwrap();
    assert!(line.field("error").contains("refused"), "{line:?}");
    assert!(line.field("advice").contains("tls.acme.directory"), "{line:?}");
    pebble.run();
    within(ORDER, "an order is done", || proxy.metric(OK) > 0.5);
    wait_for_issuer(&proxy, "mail.example.org", "Pebble");
}

#[test]
fn a_certificate_past_two_thirds_of_its_life_is_renewed_and_the_lost_account_made_anew() {
    let mut pebble = Pebble::start();
    let backend = FakeBackend::plain();
    let storage = tempfile::tempdir().unwrap();
    let section = pebble.section("mail.example.org", storage.path(), "");
    let proxy = starting(&backend, &section).start();
    wait_for_order(&proxy);
    drop(proxy);
    // 60 days old, and 20 to go.
    let kept = pebble.storage_of(storage.path());
    let old = Authority::new().issue_until(&["mail.example.org"], days(20));
    fs::write(kept.join("certificate.pem"), old.key + &old.chain).unwrap();
    // Pebble forgets everything when it ends.
    pebble.running = None;
    pebble.run();
    let proxy = starting(&backend, &section).start();
    wait_for_order(&proxy);
    wait_for_issuer(&proxy, "mail.example.org", "Pebble");
    assert!(kept.join("account.json.unknown").exists());
    assert!(proxy.text().contains("a new one is made"));
}

#[test]
fn another_set_of_names_is_ordered_anew_and_taken_though_it_is_smaller() {
    let pebble = Pebble::start();
    let backend = FakeBackend::plain();
    let storage = tempfile::tempdir().unwrap();
    let kept = pebble.storage_of(storage.path());
    fs::create_dir_all(&kept).unwrap();
    let old = Authority::new().issue_until(&["a.example.org", "b.example.org"], days(9000));
    fs::write(kept.join("certificate.pem"), old.key + &old.chain).unwrap();
    let proxy = starting(&backend, &pebble.section("b.example.org", storage.path(), "")).start();
    wait_for_order(&proxy);
    assert_eq!(wait_for_issuer(&proxy, "b.example.org", "Pebble"), set(&["b.example.org"]));
}

#[test]
fn why_the_ca_refuses_is_told_with_what_to_do() {
    let pebble = Pebble::start();
    let backend = FakeBackend::plain();
    let storage = tempfile::tempdir().unwrap();
    // The CA asks where nobody listens.
    let elsewhere = format!("http_address: '127.0.0.1:{}'", free_port());
    let section = pebble.section("mail.example.org", storage.path(), "");
    let section =
        section.replace(&format!("http_address: '127.0.0.1:{}'", pebble.http), &elsewhere);
    let proxy = starting(&backend, &section).start();
    let refused = |proxy: &Proxy<'_>| {
        proxy.log().into_iter().find(|line| line.field("advice").contains("port 80"))
    };
    within(ORDER, "the CA refuses", || refused(&proxy).is_some());
    let line = refused(&proxy).unwrap();
    assert_eq!((line.field("result"), line.level()), ("failed".into(), "ERROR".into()));
    assert!(line.field("error").starts_with("mail.example.org: "), "{line:?}");
    assert!(line.field("error").contains("(connection)"), "{line:?}");
    // It does not come in the way of the service.
    assert!(served(proxy.imaps, "mail.example.org").1.contains("imaps-proxy CA"));
}

#[test]
fn dns_01_runs_the_hook_and_brings_a_wildcard() {
    let pebble = Pebble::start();
    let backend = FakeBackend::plain();
    let storage = tempfile::tempdir().unwrap();
    let (hook, log) = (storage.path().join("hook"), storage.path().join("hook.log"));
    let curl = program("curl", "curl");
    let script = format!(
        "#!/bin/sh\nset -e\necho \"$1 $2\" >>'{}'\ncase $1 in\n\
         present) {curl} -sf -d \"{{\\\"host\\\":\\\"$2\\\",\\\"value\\\":\\\"$3\\\"}}\" http://127.0.0.1:{control}/set-txt;;\n\
         cleanup) {curl} -sf -d \"{{\\\"host\\\":\\\"$2\\\"}}\" http://127.0.0.1:{control}/clear-txt;;\nesac\n",
        log.display(),
        curl = curl.display(),
        control = pebble.control,
    );
    fs::write(&hook, script).unwrap();
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
    let more = format!("challenge: dns-01, dns_hook: '{}'", hook.display());
    let section = pebble.section("'*.example.org', example.org", storage.path(), &more);
    let proxy = starting(&backend, &section).start();
    wait_for_order(&proxy);
    let names = wait_for_issuer(&proxy, "mail.example.org", "Pebble");
    assert_eq!(names, set(&["*.example.org", "example.org"]));
    let said = fs::read_to_string(log).unwrap();
    let lines =
        |action: &str| said.matches(&format!("{action} _acme-challenge.example.org.")).count();
    assert!(lines("present") >= 2 && lines("cleanup") == lines("present"), "{said}");
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, pebble.http)).is_err(), "nobody asks by HTTP");
}

#[test]
fn tls_alpn_01_is_answered_on_the_port_for_mail_while_the_ca_asks_and_never_else() {
    let mut pebble = Pebble::stopped(false);
    let backend = FakeBackend::plain();
    let storage = tempfile::tempdir().unwrap();
    // What mail clients have to bring, and what they get, has nothing to do with it.
    let (ca, name) = (pebble.folder.path().join("ca.pem"), "mail.example.org");
    let section = pebble.section(
        "mail.example.org, imap.example.org",
        storage.path(),
        &format!(
            "challenge: tls-alpn-01 }}, unknown_name: refuse, min_version: '1.3', client_auth: {{ mode: required, ca: '{}'",
            ca.display()
        ),
    );
    let listen = format!(
        "listen: [{{ address: '127.0.0.1:0', tls: starttls }}, {{ address: '127.0.0.1:{}' }}]",
        pebble.tls
    );
    let proxy = starting(&backend, &section).config(&listen).start();
    let ask = || {
        let mut command = Command::new(program("openssl", "openssl"));
        command.args(["s_client", "-connect", &proxy.imaps.to_string(), "-alpn", "acme-tls/1"]);
        run(command.args(["-servername", name]), b"", PATIENCE)
    };
    let refused = |ended: &support::Finished| ended.stderr.contains("no application protocol");
    let before = ask();
    assert!(refused(&before), "{before:?}");
    pebble.run();
    wait_for_order(&proxy);
    assert!(refused(&ask()));
    let kept = fs::read_to_string(pebble.storage_of(storage.path()).join("certificate.pem"));
    assert_eq!(kept.unwrap().matches("PRIVATE KEY").count(), 2);
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, pebble.http)).is_err(), "nobody asks by HTTP");

    // One end for each name, which is neither a handshake that failed nor one of a mail client.
    let asked = proxy.sessions();
    let asked: Vec<_> =
        asked.iter().filter(|line| line.field("reason") == "acme_challenge").collect();
    let names: BTreeSet<_> = asked.iter().map(|line| line.field("sni")).collect();
    assert_eq!(names, set(&["imap.example.org", "mail.example.org"]).into_iter().collect());
    assert_eq!(proxy.sum("imaps_proxy_tls_handshakes_total", &[]), 0.0);
    let failed = |reason: &str| proxy.sum("imaps_proxy_tls_handshake_failures_total", &[reason]);
    assert_eq!((failed(""), failed("foreign_alpn")), (2.0, 2.0));
}

#[test]
fn an_external_account_is_bound() {
    let mut pebble = Pebble::stopped(true);
    fs::write(pebble.folder.path().join("hmac"), format!("{HMAC_KEY}\n")).unwrap();
    pebble.run();
    let backend = FakeBackend::plain();
    let storage = tempfile::tempdir().unwrap();
    let proxy = starting(&backend, &pebble.section("mail.example.org", storage.path(), "")).start();
    wait_for_order(&proxy);
    drop(proxy);

    // Without one this CA makes no account, and that is said.
    pebble.external_account = false;
    let storage = tempfile::tempdir().unwrap();
    let proxy = starting(&backend, &pebble.section("mail.example.org", storage.path(), "")).start();
    within(ORDER, "the CA refuses", || {
        proxy.log().iter().any(|line| line.field("advice").contains("tls.acme.external_account"))
    });
}

#[test]
fn a_directory_that_is_none_is_told_and_ends_nothing() {
    let pebble = Pebble::stopped(false);
    // Without the check of it the library panics on such a URL.
    let directory =
        serde_json::json!({ "newNonce": " ", "newAccount": "https://localhost/", "newOrder": "" });
    let answer = format!("HTTP/1.0 200 OK\r\nRetry-After: {}\r\n\r\n{directory}", u64::MAX);
    fs::write(pebble.folder.path().join("dir"), answer).unwrap();
    let mut command = Command::new(program("openssl", "openssl"));
    command.current_dir(pebble.folder.path()).args(["s_server", "-HTTP", "-quiet"]);
    command.args(["-accept", &pebble.port.to_string(), "-cert", "cert.pem", "-key", "key.pem"]);
    let _ca = Process::start(command);
    within(PATIENCE, "the CA listens", || connects(pebble.port));
    let backend = FakeBackend::plain();
    let storage = tempfile::tempdir().unwrap();
    let proxy = starting(&backend, &pebble.section("mail.example.org", storage.path(), "")).start();
    // It is tried again, so the task still runs.
    within(ORDER, "two orders fail", || proxy.metric(FAILED) > 1.5);
    let line = proxy.log().into_iter().find(|line| line.message() == "ACME order").unwrap();
    assert!(line.field("error").contains("newNonce is no URL"), "{line:?}");
    assert!(served(proxy.imaps, "mail.example.org").1.contains("imaps-proxy CA"));
}

#[test]
fn where_nothing_can_be_kept_nothing_is_ordered() {
    let pebble = Pebble::start();
    let backend = FakeBackend::plain();
    let storage = tempfile::tempdir().unwrap();
    let kept = pebble.storage_of(storage.path());
    fs::create_dir_all(kept.join("..room.new")).unwrap(); // in the way of the first file
    let section = pebble.section("mail.example.org", storage.path(), "");
    let proxy = starting(&backend, &section).start();
    within(ORDER, "an order fails", || proxy.metric(FAILED) > 0.5);
    let line = proxy.log().into_iter().find(|line| line.message() == "ACME order").unwrap();
    assert!(line.field("error").contains(kept.to_str().unwrap()), "{line:?}");
    assert!(!proxy.text().contains("ACME account made"), "{}", proxy.text());
}

#[test]
fn an_order_that_hangs_delays_neither_service_nor_stop() {
    // Accepts connections and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut pebble = Pebble::stopped(false);
    pebble.port = silent.local_addr().unwrap().port();
    let backend = FakeBackend::plain();
    let storage = tempfile::tempdir().unwrap();
    let mut proxy =
        starting(&backend, &pebble.section("mail.example.org", storage.path(), "")).start();
    assert!(served(proxy.imaps, "mail.example.org").1.contains("imaps-proxy CA"));
    let (_asked, _) = silent.accept().unwrap();
    let start = std::time::Instant::now();
    proxy.signal(rustix::process::Signal::TERM);
    assert!(proxy.wait(PATIENCE).success());
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert!(pebble.dns.exited().is_none());
}
