//! Names where the system has less than usual: without `/etc/resolv.conf`, or with one that names no DNS server.

mod support;

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use support::{
    Authority, Backend, Dns, FakeBackend, Finished, LogLine, PATIENCE, Proxy, Record, Unreachable,
    binary, free_port, run, wait_until, with_etc,
};

/// What such systems have as resolv.conf; `None`: they have none.
const WITHOUT_SERVER: [Option<&str>; 4] =
    [None, Some(""), Some("# set by nobody\nsearch lan\n"), Some("nameserver\nrubbish\n")];

/// What libraries say below that is for those who wrote them.
const INFO: &str = "log: { level: info }";

/// A folder for `/etc`.
fn etc(resolv_conf: Option<&str>, hosts: Option<&str>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (file, text) in [("resolv.conf", resolv_conf), ("hosts", hosts)] {
        if let Some(text) = text {
            fs::write(folder.path().join(file), text).unwrap();
        }
    }
    folder
}

/// The binary's commands where that folder is `/etc`.
fn command(etc: &Path, proxy: &Proxy<'_>, arguments: &[&str]) -> Finished {
    let mut command = with_etc(etc, &binary());
    command.args(arguments).arg("--config").arg(proxy.config_file());
    let mut finished = run(&mut command, b"", 3 * PATIENCE);
    // Without the places at which lines are broken.
    finished.stdout = finished.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    no_bare_errors(&format!("{}{}", finished.stdout, finished.stderr));
    finished
}

#[track_caller]
fn no_bare_errors(text: &str) {
    for bad in ["os error", "Os {", "io error", "nameservers found", "panicked"] {
        assert!(!text.contains(bad), "{bad:?} in {text}");
    }
}

fn at(name: &str, backend: &FakeBackend) -> String {
    let port = backend.address.port();
    format!("{{ backend: {{ servers: [{{ address: '{name}:{port}' }}] }}, {INFO} }}")
}

#[test]
fn what_hosts_says_counts_without_a_dns_server() {
    let backend = FakeBackend::plain();
    for resolv_conf in WITHOUT_SERVER {
        let etc = etc(resolv_conf, Some("127.0.0.1 mail_server-legacy imap.example\n"));
        for name in ["mail_server-legacy", "IMAP.example.", "localhost"] {
            let proxy =
                Proxy::starting(&backend).config(&at(name, &backend)).etc(etc.path()).start();
            drop(proxy.logged_in());
            command(etc.path(), &proxy, &["check"]).succeeded();
            let found = command(etc.path(), &proxy, &["doctor", "--name", name]).stdout;
            assert!(!found.contains("does not resolve"), "{resolv_conf:?} {found}");
            assert!(
                found.contains(&format!("{} is 127.0.0.1", name.trim_end_matches('.'))),
                "{found}"
            );
            no_bare_errors(&proxy.text());
            drop(proxy);
        }
    }
}

#[test]
fn a_name_that_nobody_can_be_asked_for_says_what_is_missing() {
    let nobody = Unreachable(format!("legacy.test:{}", free_port()));
    for (resolv_conf, hosts, expected) in [
        (
            None,
            Some("127.0.0.1 localhost\n"),
            "it is not in /etc/hosts, and there is no /etc/resolv.conf",
        ),
        (Some(""), None, "there is no /etc/hosts, and /etc/resolv.conf names no DNS server"),
    ] {
        let etc = etc(resolv_conf, hosts);
        let proxy = Proxy::starting(&nobody).config(INFO).etc(etc.path()).not_ready().start();
        wait_until("it is said", || proxy.text().contains("backend is down"));
        let line =
            proxy.log().into_iter().find(|line| line.message() == "backend is down").unwrap();
        let expected = format!(
            "{} does not resolve: {expected}; no DNS server runs on this machine either",
            nobody.address()
        );
        assert_eq!(line.field("error"), expected);
        command(etc.path(), &proxy, &["check"]).succeeded();
        let found = command(etc.path(), &proxy, &["doctor", "--name", "mail.example.org"]).stdout;
        assert!(found.contains(&expected), "{found}");
        assert!(found.contains("or name a DNS server in /etc/resolv.conf"), "{found}");
        // Nobody knows whether it has an address, so nobody is told to make a record.
        assert!(found.contains("mail.example.org can't be looked up"), "{found}");
        assert!(!found.contains("add a record"), "{found}");
        no_bare_errors(&proxy.text());
        // Who writes the name down is heard without a restart.
        fs::write(etc.path().join("hosts"), "127.0.0.1 legacy.test\n").unwrap();
        let known = format!(
            "imaps_proxy_backend_addresses{{backend=\"{}\",state=\"down\"}}",
            nobody.address()
        );
        proxy.wait_for_metric(&known, 1.0);
        drop(proxy);
    }
}

#[test]
fn an_order_at_a_ca_of_hosts_needs_no_dns_server() {
    let backend = FakeBackend::plain();
    let etc = etc(None, Some("127.0.0.1 ca.example\n"));
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("ca.pem"), Authority::new().pem()).unwrap();
    let config = format!(
        "{{ {INFO}, tls: {{ acme: {{ directory: 'https://ca.example:{}/', ca: '{}', terms_agreed: true, \
         names: [localhost], storage: '{}', http_address: '127.0.0.1:0' }} }} }}",
        free_port(),
        folder.path().join("ca.pem").display(),
        folder.path().join("acme").display()
    );
    let proxy = Proxy::starting(&backend).config(&config).etc(etc.path()).start();
    wait_until("the order fails", || proxy.text().contains("tls.acme.directory is right"));
    assert!(proxy.text().contains("Connection refused"), "{}", proxy.text());
    no_bare_errors(&proxy.text());
    drop(proxy);
}

#[test]
fn what_hosts_says_is_all_of_the_answer() {
    let dns = Dns::start();
    let backend = FakeBackend::plain();
    // For the other family DNS would have to be asked, which knows a place that nobody answers at.
    dns.set("legacy.test", &[Record::Ip(Ipv6Addr::LOCALHOST.into())]);
    dns.set_hosts(&format!("{} legacy.test\n", Ipv4Addr::LOCALHOST));
    let config = at("legacy.test", &backend);
    let proxy = Proxy::starting(&backend).config(&config).etc(dns.etc()).start();
    let name = format!("legacy.test:{}", backend.address.port());
    let addresses = |state: &str| {
        proxy.metric(&format!(
            "imaps_proxy_backend_addresses{{backend=\"{name}\",state=\"{state}\"}}"
        ))
    };
    assert_eq!((addresses("up"), addresses("down")), (1.0, 0.0));
    drop(proxy);
}

#[test]
fn a_name_that_leads_to_the_internet_is_warned_of_as_an_address_is() {
    let backend = FakeBackend::plain();
    let warned = |proxy: &Proxy<'_>| -> Vec<String> {
        let is = |line: &LogLine| line.message().contains("public address and it has no TLS");
        proxy.log().iter().filter(|line| is(line)).map(|line| line.field("address")).collect()
    };
    let etc = etc(None, Some("127.0.0.1 legacy.test\n"));
    let config = at("legacy.test", &backend);
    let proxy = Proxy::starting(&backend).config(&config).etc(etc.path()).start();
    assert_eq!(warned(&proxy), [""; 0]);
    fs::write(etc.path().join("hosts"), "127.0.0.1 legacy.test\n1.1.1.1 legacy.test\n").unwrap();
    wait_until("the name is looked up again", || !warned(&proxy).is_empty());
    assert_eq!(warned(&proxy), ["1.1.1.1"]);
    let said = proxy.log().into_iter().find(|line| line.message().contains("public address"));
    let said = said.unwrap();
    assert_eq!(said.level(), "WARN");
    assert!(said.message().contains("set `tls: starttls` or `tls: implicit`"));
    let found = command(etc.path(), &proxy, &["doctor"]).stdout;
    assert!(
        found.contains("leads to 1.1.1.1, a public address, and the link has no TLS"),
        "{found}"
    );
    // With TLS it is nobody's business, without it again it is.
    let port = backend.address.port();
    let with = |tls: &str| {
        format!("backend: {{ servers: [{{ address: 'legacy.test:{port}', tls: {tls} }}] }}")
    };
    proxy.reload(&with("{ mode: starttls, verify: insecure }"));
    proxy.reload(&with("none"));
    wait_until("it is said again", || warned(&proxy).len() == 2);
    drop(proxy);
}

#[test]
fn what_the_resolver_warns_of_is_said_by_sample_and_in_our_words() {
    let dns = Dns::start();
    let backend = FakeBackend::plain();
    dns.set("legacy.test", &[Record::Ip(Ipv4Addr::LOCALHOST.into())]);
    dns.add_to_resolv_conf("nameserver mail.example.org\nnameserver 1.2.3\n");
    dns.set_strangers(true);
    let config = at("legacy.test", &backend);
    let proxy = Proxy::starting(&backend).config(&config).etc(dns.etc()).start();
    // The files are read anew each time, and the name is looked up every second.
    for n in 0..3 {
        let before = dns.asked();
        dns.set_hosts(&format!("127.0.0.{} localhost\n", n + 1));
        wait_until("the name is looked up again", || dns.asked() >= before + 2);
    }
    drop(proxy.logged_in());
    let warnings: Vec<_> = proxy.log().into_iter().filter(|line| line.level() != "INFO").collect();
    let messages: Vec<String> = warnings.iter().map(LogLine::message).collect();
    assert_eq!(
        messages,
        [
            "a line of /etc/resolv.conf can't be read and does not count",
            "what came from a DNS server was no answer to the question, and was ignored: it was late, or forged",
        ],
        "{}",
        proxy.text()
    );
    for line in &warnings {
        assert_eq!(line.level(), "WARN");
        assert_eq!(line.field("not_logged"), "0");
        assert_ne!(line.field("said"), "");
    }
    drop(proxy);
}
