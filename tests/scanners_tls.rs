//! What the scanners say that operators and auditors point at a TLS port: sslscan and testssl.sh.
//!
//! With an ECDSA certificate, an RSA one and both. A finding is what testssl.sh calls MEDIUM or worse, or a WARN (it
//! could not look), and whatever of sslscan's list is not in ours. Findings that belong to the test's own CA stand in
//! [`NOT_OURS`].
//! Left out of testssl.sh: its simulation of clients, ciphers one by one, GREASE and HTTP headers (`-c -E -g -h`), for
//! time; DNS (CAA) and whatever calls other machines.

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use serde_json::Value as Json;
use support::{Authority, FakeBackend, KeyKind, Proxy, days, program, run};

/// The scanners wait a lot, and three of each run side by side.
const LIMIT: Duration = Duration::from_mins(5);
const NAME: &str = "mail.example.org";

/// Findings of testssl.sh that say nothing about the proxy.
const NOT_OURS: [(&str, &str); 3] = [
    ("cert_revocation", "the test's CA has neither CRL nor OCSP to point at"),
    (
        "sessionresumption_ticket",
        "its openssl hangs up at once, at times before the tickets of TLS 1.3 are there; tests/tickets.rs resumes",
    ),
    ("engine_problem", "the scanner's own openssl has no GOST engine"),
];

/// What testssl.sh must have looked at, or its silence means nothing.
const LOOKED_AT: [&str; 19] = [
    "SSLv2",
    "SSLv3",
    "TLS1_2",
    "TLS1_3",
    "cipherlist_NULL",
    "cipherlist_STRONG",
    "PFS",
    "cipher_order",
    "cert_chain_of_trust",
    "cert_keySize",
    "heartbleed",
    "CCS",
    "ROBOT",
    "secure_renego",
    "secure_client_renego",
    "CRIME_TLS",
    "SWEET32",
    "LOGJAM",
    "RC4",
];

/// Every cipher suite of the default configuration that goes with a kind of certificate, as sslscan names them.
const TLS13: [&str; 3] =
    ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"];
const TLS12: [&str; 3] = ["AES128-GCM-SHA256", "AES256-GCM-SHA384", "CHACHA20-POLY1305"];

#[test]
fn scanners_find_nothing_of_medium_or_above() {
    thread::scope(|scope| {
        for kinds in [&[KeyKind::Ecdsa][..], &[KeyKind::Rsa], &[KeyKind::Ecdsa, KeyKind::Rsa]] {
            scope.spawn(move || scan(kinds));
        }
    });
}

/// A proxy with a certificate of each of `kinds`, and what is found there.
fn scan(kinds: &[KeyKind]) {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let mut entries = Vec::new();
    for (number, &kind) in kinds.iter().enumerate() {
        let issued = authority.issue_kind(&[NAME], days(100), kind);
        let path = |end: &str| folder.path().join(format!("{number}.{end}"));
        issued.write(&path("pem"), &path("key"));
        entries.push(format!(
            "{{ cert: '{}', key: '{}' }}",
            path("pem").display(),
            path("key").display()
        ));
    }
    let ca = folder.path().join("ca.pem");
    fs::write(&ca, &authority.pem).unwrap();
    let backend = FakeBackend::plain();
    let config = format!("tls: {{ certificates: [{}] }}", entries.join(", "));
    let proxy = Proxy::starting(&backend).config(&config).start();
    thread::scope(|scope| {
        scope.spawn(|| sslscan(&proxy, kinds));
        testssl(&proxy, kinds, &ca, folder.path());
    });
    proxy.stop(); // no panic, and no ERROR in the log
}

fn testssl(proxy: &Proxy<'_>, kinds: &[KeyKind], ca: &Path, folder: &Path) {
    let report = folder.join("testssl.json");
    let mut command = Command::new(program("testssl", "testssl.sh"));
    command.args(["--quiet", "--color", "0", "--warnings", "off", "--nodns", "none"]);
    command.args(["-p", "-s", "-f", "-P", "-S", "-U", "--ip", &proxy.imaps.ip().to_string()]);
    command.arg("--add-ca").arg(ca).arg("--jsonfile").arg(&report);
    command.arg(format!("{NAME}:{}", proxy.imaps.port())).current_dir(folder);
    // How long it waits for more; nobody here is far away.
    for (name, seconds) in [
        ("HEADER_MAXSLEEP", "1"),
        ("MAX_WAITSOCK", "5"),
        ("HEARTBLEED_MAX_WAITSOCK", "2"),
        ("CCS_MAX_WAITSOCK", "2"),
        ("USLEEP_SND", "0.02"),
    ] {
        command.env(name, seconds);
    }
    let ended = run(&mut command, b"", LIMIT);
    let report = fs::read_to_string(&report).unwrap_or_else(|error| panic!("{error}: {ended:?}"));
    let report: Vec<Json> = serde_json::from_str(&report).unwrap();
    let field = |one: &Json, name: &str| one[name].as_str().unwrap_or_default().to_owned();
    let found: Vec<_> = report
        .iter()
        .filter(|one| {
            let severity = field(one, "severity");
            ["MEDIUM", "HIGH", "CRITICAL", "FATAL", "WARN"].contains(&severity.as_str())
        })
        .filter(|one| {
            !NOT_OURS.iter().any(|(id, _)| field(one, "id").split(' ').next() == Some(id))
        })
        .collect();
    assert!(found.is_empty(), "{found:#?}\n{}", ended.stdout);
    for id in LOOKED_AT {
        let looked = report.iter().any(|one| field(one, "id").split(' ').next() == Some(id));
        assert!(looked, "{id} is missing:\n{}", ended.stdout);
    }
    let keys = report.iter().filter(|one| field(one, "id").starts_with("cert_keySize"));
    assert_eq!(keys.count(), kinds.len(), "{}", ended.stdout);
}

fn sslscan(proxy: &Proxy<'_>, kinds: &[KeyKind]) {
    let mut command = Command::new(program("sslscan", "sslscan"));
    command.args(["--xml=-", &format!("--sni-name={NAME}"), &proxy.imaps.to_string()]);
    let report = run(&mut command, b"", LIMIT).succeeded().stdout;
    let all = |element: &str| -> Vec<&str> {
        report.split('<').filter(|one| one.split(' ').next() == Some(element)).collect()
    };
    let value = |one: &str, name: &str| {
        let (_, rest) = one.split_once(&format!(" {name}=\"")).unwrap_or_default();
        rest.split('"').next().unwrap_or_default().to_owned()
    };

    let spoken: Vec<_> = all("protocol")
        .into_iter()
        .filter(|one| value(one, "enabled") != "0")
        .map(|one| value(one, "type") + &value(one, "version"))
        .collect();
    assert_eq!(spoken, ["tls1.2", "tls1.3"], "{report}");

    let mut wanted: Vec<String> = TLS13.map(String::from).to_vec();
    for kind in kinds {
        let key = match kind {
            KeyKind::Ecdsa => "ECDSA",
            KeyKind::Rsa => "RSA",
        };
        wanted.extend(TLS12.map(|rest| format!("ECDHE-{key}-{rest}")));
    }
    let suites: Vec<_> = all("cipher").into_iter().map(|one| value(one, "cipher")).collect();
    assert_eq!(suites, wanted, "{report}");
    for suite in all("cipher") {
        let strength = value(suite, "strength");
        assert!(["acceptable", "strong"].contains(&strength.as_str()), "{suite}");
    }
    for group in all("group") {
        assert!(value(group, "bits").parse::<u32>().unwrap() >= 128, "{group}");
    }
    for (element, name) in
        [("renegotiation", "supported"), ("compression", "supported"), ("heartbleed", "vulnerable")]
    {
        for one in all(element) {
            assert_eq!(value(one, name), "0", "{one}");
        }
    }
    for key in all("pk") {
        assert_eq!(value(key, "error"), "false", "{key}");
    }
    for good in [
        "<signature-algorithm>ecdsa-with-SHA256<",
        "<self-signed>false<",
        "<expired>false<",
        "<renegotiation ",
        "<heartbleed ",
    ] {
        assert!(report.contains(good), "no {good} in {report}");
    }
}
