//! Which certificate a client gets, and how a new one takes the place of an old one while people are connected.

mod support;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustix::process::Signal;
use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use support::{
    Authority, Client, FakeBackend, Issued, KeyKind, PATIENCE, Proxy, Starting, TlsOptions, days,
    program, replace, run, wait_until,
};
use tempfile::TempDir;

const NOT_AFTER: &str = "imaps_proxy_tls_certificate_not_after_timestamp_seconds";
const FAILED: &str = "imaps_proxy_reloads_total{result=\"failed\",what=\"certificate\"}";
const TAKEN: &str = "imaps_proxy_reloads_total{result=\"ok\",what=\"certificate\"}";

/// A proxy with these entries of `tls.certificates`, YAML in one line.
fn starting<'a>(backend: &'a FakeBackend, entries: &[String]) -> Starting<'a> {
    let yaml = format!("tls: {{ certificates: [{}] }}", entries.join(", "));
    Proxy::starting(backend).config(&yaml)
}

/// Writes `NAME.pem` and `NAME.key` and returns the entry for them.
fn entry(folder: &Path, name: &str, issued: &Issued) -> String {
    let (cert, key) = files(folder, name);
    issued.write(&cert, &key);
    format!("{{ cert: '{}', key: '{}' }}", cert.display(), key.display())
}

fn files(folder: &Path, name: &str) -> (std::path::PathBuf, std::path::PathBuf) {
    (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")))
}

/// The certificate that openssl gets, with these arguments, or what it says.
fn openssl(address: SocketAddr, args: &[&str]) -> Result<CertificateDer<'static>, String> {
    let mut command = Command::new(program("openssl", "openssl"));
    command.args(["s_client", "-connect", &address.to_string(), "-showcerts"]).args(args);
    let ended = run(&mut command, b"", PATIENCE);
    match CertificateDer::from_pem_slice(ended.stdout.as_bytes()) {
        Ok(certificate) => Ok(certificate),
        Err(_) => Err(ended.stderr),
    }
}

/// The certificate that Python's ssl gets, or its reason.
fn python(address: SocketAddr, name: &str) -> Result<CertificateDer<'static>, String> {
    python_with(address, name, "")
}

/// The same, with TLS 1.2 and these suites only, if there are any.
fn python_with(
    address: SocketAddr,
    name: &str,
    suites: &str,
) -> Result<CertificateDer<'static>, String> {
    const SCRIPT: &str = "
import socket, ssl, sys
context = ssl._create_unverified_context()
if sys.argv[4]:
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(sys.argv[4])
try:
    tcp = socket.create_connection((sys.argv[1], int(sys.argv[2])))
    tls = context.wrap_socket(tcp, server_hostname=sys.argv[3] or None)
    print(ssl.DER_cert_to_PEM_cert(tls.getpeercert(True)))
except ssl.SSLError as error:
    print(error.reason)
";
    let mut command = Command::new(program("python3", "python3"));
    let (ip, port) = (address.ip().to_string(), address.port().to_string());
    command.args(["-c", SCRIPT, &ip, &port, name, suites]);
    let ended = run(&mut command, b"", PATIENCE).succeeded();
    CertificateDer::from_pem_slice(ended.stdout.as_bytes()).map_err(|_| ended.stdout)
}

/// The certificate that a client gets who asks for `name` and trusts `authority`.
fn served(
    proxy: &Proxy<'_>,
    authority: &Authority,
    name: &str,
) -> Result<CertificateDer<'static>, String> {
    let config = TlsOptions::default().config(&authority.roots);
    let client = Client::tls(proxy.imaps, &config, name).map_err(|error| error.to_string())?;
    let chain = client.session().peer_certificates().expect("the handshake is done");
    Ok(chain[0].clone().into_owned())
}

#[track_caller]
fn wait_until_served(proxy: &Proxy<'_>, authority: &Authority, name: &str, issued: &Issued) {
    wait_until(&format!("the new certificate for {name} is served"), || {
        served(proxy, authority, name).is_ok_and(|der| der == issued.der)
    });
}

/// Stops a proxy that has had to log errors.
#[track_caller]
fn stop(mut proxy: Proxy<'_>) {
    proxy.terminate();
    assert_eq!(proxy.wait(PATIENCE).code(), Some(0), "{}", proxy.text());
    assert!(!proxy.text().contains("panicked"), "{}", proxy.text());
}

/// The log's errors about certificates that can't be used.
fn refusals(proxy: &Proxy<'_>) -> Vec<String> {
    let errors = proxy.log().into_iter().filter(|line| line.level() == "ERROR");
    errors.map(|line| line.field("error")).collect()
}

fn not_after(certificate: &str, state: &str) -> String {
    format!("{NOT_AFTER}{{certificate=\"{certificate}\",state=\"{state}\"}}")
}

#[test]
fn certificate_is_chosen_by_the_name_that_a_client_asks_for() {
    let folder = TempDir::new().unwrap();
    let authority = Authority::new();
    let default = authority.issue(&["default.example.org"]);
    let mail = authority.issue(&["mail.example.org", "imap.example.org"]);
    let wild = authority.issue(&["*.example.net"]);
    let entries = [("default", &default), ("mail", &mail), ("wild", &wild)]
        .map(|(name, issued)| entry(folder.path(), name, issued));
    let backend = FakeBackend::plain();
    let proxy = starting(&backend, &entries).start();
    let table = [
        ("", &default),
        ("default.example.org", &default),
        ("mail.example.org", &mail),
        ("imap.example.org", &mail),
        ("IMAP.Example.ORG", &mail),
        ("any.example.net", &wild),
        ("a.b.example.net", &default),
        ("example.net", &default),
        ("nobody.example.com", &default),
    ];
    for (name, issued) in table {
        let args = if name.is_empty() { vec!["-noservername"] } else { vec!["-servername", name] };
        for version in ["-tls1_2", "-tls1_3"] {
            let got = openssl(proxy.imaps, &[&args[..], &[version]].concat());
            assert_eq!(got.as_ref(), Ok(&issued.der), "openssl {version} {name:?}");
        }
        assert_eq!(python(proxy.imaps, name).as_ref(), Ok(&issued.der), "python {name:?}");
    }
    let counted = |how: &str| {
        proxy.metric(&format!("imaps_proxy_tls_server_names_total{{match=\"{how}\"}}")) as u32
    };
    assert_eq!(["none", "exact", "wildcard", "unknown"].map(counted), [3, 12, 3, 9]);
    for (name, issued) in
        [("default.example.org", default), ("mail.example.org", mail), ("*.example.net", wild)]
    {
        for state in ["served", "on_disk"] {
            assert_eq!(proxy.metric(&not_after(name, state)) as i64, issued.not_after, "{name}");
        }
    }
    proxy.stop();
}

#[test]
fn name_that_nobody_has_is_refused_where_the_operator_says_so() {
    let folder = TempDir::new().unwrap();
    let authority = Authority::new();
    let issued = authority.issue(&["mail.example.org"]);
    let backend = FakeBackend::plain();
    let proxy = starting(&backend, &[entry(folder.path(), "mail", &issued)])
        .config("tls: { unknown_name: refuse }")
        .start();
    assert_eq!(openssl(proxy.imaps, &["-noservername"]), Ok(issued.der.clone()));
    assert_eq!(openssl(proxy.imaps, &["-servername", "mail.example.org"]), Ok(issued.der.clone()));
    assert_eq!(python(proxy.imaps, ""), Ok(issued.der));
    for version in ["-tls1_2", "-tls1_3"] {
        let told = openssl(proxy.imaps, &["-servername", "nobody.example.org", version]);
        assert!(told.as_ref().is_err_and(|e| e.contains("alert number 112")), "{told:?}");
    }
    let told = python(proxy.imaps, "nobody.example.org");
    assert!(told.as_ref().is_err_and(|e| e.contains("UNRECOGNIZED_NAME")), "{told:?}");
    let told = served(&proxy, &authority, "nobody.example.org");
    assert!(told.as_ref().is_err_and(|e| e.contains("UnrecognisedName")), "{told:?}");
    proxy.wait_for_ends("handshake_failed", 4);
    let failures = "imaps_proxy_tls_handshake_failures_total{reason=\"unknown_name\"}";
    proxy.wait_for_metric(failures, 4.0);
    proxy.stop();
}

#[test]
fn of_ecdsa_and_rsa_a_client_gets_what_it_can_verify() {
    let folder = TempDir::new().unwrap();
    let authority = Authority::new();
    let names = ["mail.example.org"];
    let rsa = authority.issue_kind(&names, days(30), KeyKind::Rsa);
    let ecdsa = authority.issue(&names);
    let backend = FakeBackend::plain();
    let entries = [("rsa", &rsa), ("ecdsa", &ecdsa)].map(|(n, i)| entry(folder.path(), n, i));
    let proxy = starting(&backend, &entries).start();
    let table: [(&[&str], &Issued); 8] = [
        (&["-tls1_3"], &ecdsa),
        (&["-tls1_2"], &ecdsa),
        (&["-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256"], &rsa),
        (&["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"], &ecdsa),
        (&["-tls1_2", "-sigalgs", "RSA-PSS+SHA256:RSA+SHA256"], &rsa),
        (&["-tls1_3", "-sigalgs", "RSA-PSS+SHA256"], &rsa),
        (&["-tls1_3", "-sigalgs", "ECDSA+SHA256"], &ecdsa),
        (&["-sigalgs", "RSA-PSS+SHA256:RSA+SHA256"], &rsa),
    ];
    for (args, issued) in table {
        for name in [&["-noservername"][..], &["-servername", "mail.example.org"]] {
            let got = openssl(proxy.imaps, &[args, name].concat());
            assert_eq!(got.as_ref(), Ok(&issued.der), "{args:?} {name:?}");
        }
    }
    for (suites, issued) in [("ECDHE+aRSA", &rsa), ("ECDHE+aECDSA", &ecdsa)] {
        for name in ["", "mail.example.org"] {
            let got = python_with(proxy.imaps, name, suites);
            assert_eq!(got.as_ref(), Ok(&issued.der), "{suites} {name:?}");
        }
    }
    // Nobody can verify an Ed448 signature here, and that is said by the right alert.
    let told = openssl(proxy.imaps, &["-tls1_3", "-sigalgs", "ed448"]);
    assert!(told.as_ref().is_err_and(|e| e.contains("handshake failure")), "{told:?}");
    let series = proxy.series();
    for label in ["mail.example.org", "mail.example.org/ecdsa"] {
        assert!(series.contains_key(&not_after(label, "served")), "{label}: {series:#?}");
    }
    proxy.stop();
}

/// certbot renews by links that point elsewhere, one after the other.
#[test]
fn certbots_renewal_is_served_at_once_and_nobody_is_cut_off() {
    let folder = TempDir::new().unwrap();
    let authority = Authority::new();
    let at = |path: String| folder.path().join(path);
    let lineage = |name: &str, number: u32, issued: &Issued| {
        let (live, archive) = (at(format!("live/{name}")), at(format!("archive/{name}")));
        fs::create_dir_all(&live).unwrap();
        fs::create_dir_all(&archive).unwrap();
        let leaf = issued.chain.split_inclusive("-----END CERTIFICATE-----\n").next().unwrap();
        let chain = &issued.chain[leaf.len()..];
        let kinds = [
            ("cert", leaf),
            ("privkey", &*issued.key),
            ("chain", chain),
            ("fullchain", &*issued.chain),
        ];
        for (kind, text) in kinds {
            replace(&archive.join(format!("{kind}{number}.pem")), text);
        }
        for (kind, _) in kinds {
            let link = live.join(format!("{kind}.pem"));
            let _ = fs::remove_file(&link);
            symlink(format!("../../archive/{name}/{kind}{number}.pem"), link).unwrap();
        }
    };
    let names = ["mail.example.org", "imap.example.org"];
    let first = names.map(|name| authority.issue(&[name]));
    lineage(names[0], 1, &first[0]);
    lineage(names[1], 1, &first[1]);
    fs::write(at("live/README".into()), "keys and certificates\n").unwrap();
    let backend = FakeBackend::plain();
    let live = format!("{{ dir: '{}' }}", at("live".into()).display());
    let proxy = starting(&backend, &[live]).start();
    for (name, issued) in names.iter().zip(&first) {
        assert_eq!(served(&proxy, &authority, name).as_ref(), Ok(&issued.der));
    }
    let config = TlsOptions::default().config(&authority.roots);
    let mut session = Client::tls(proxy.imaps, &config, names[0]).unwrap();
    session.log_in("alice", "secret");

    let renewed = authority.issue_until(&[names[0]], days(90));
    lineage(names[0], 2, &renewed);
    wait_until_served(&proxy, &authority, names[0], &renewed);
    assert_eq!(served(&proxy, &authority, names[1]).as_ref(), Ok(&first[1].der));
    proxy.wait_for_metric(TAKEN, 1.0);
    assert_eq!(proxy.metric(&not_after(names[0], "served")) as i64, renewed.not_after);

    // A new name, in a directory that was not there before.
    let new = authority.issue(&["new.example.org"]);
    lineage("new.example.org", 1, &new);
    wait_until_served(&proxy, &authority, "new.example.org", &new);
    assert!(session.result("NOOP").starts_with("OK"));
    drop(session);
    proxy.stop();
}

/// The kubelet writes a new directory and lets one link point to it (its "atomic writer").
#[test]
fn kubernetes_swap_of_a_secret_is_served_at_once() {
    let folder = TempDir::new().unwrap();
    let authority = Authority::new();
    let at = |path: &str| folder.path().join(path);
    let publish = |version: &str, issued: &Issued| {
        fs::create_dir(at(version)).unwrap();
        for (file, text) in [("tls.crt", &issued.chain), ("tls.key", &issued.key)] {
            replace(&at(version).join(file), text);
        }
        let old = fs::read_link(at("..data"));
        symlink(version, at("..data_tmp")).unwrap();
        fs::rename(at("..data_tmp"), at("..data")).unwrap();
        if let Ok(old) = old {
            fs::remove_dir_all(at(old.to_str().unwrap())).unwrap();
        }
    };
    let first = authority.issue(&["mail.example.org"]);
    publish("..2026_11_24", &first);
    for file in ["tls.crt", "tls.key"] {
        symlink(format!("..data/{file}"), at(file)).unwrap();
    }
    let pair = format!("{{ cert: '{0}/tls.crt', key: '{0}/tls.key' }}", folder.path().display());
    let dir = format!("{{ dir: '{}' }}", folder.path().display());
    let backend = FakeBackend::plain();
    let proxies = [pair, dir].map(|entry| starting(&backend, &[entry]).start());
    for (number, version) in ["..2026_12_01", "..2027_01_01"].iter().enumerate() {
        let renewed = authority.issue_until(&["mail.example.org"], days(60 + number as u64));
        publish(version, &renewed);
        for proxy in &proxies {
            wait_until_served(proxy, &authority, "mail.example.org", &renewed);
        }
    }
    for proxy in proxies {
        proxy.stop();
    }
}

#[test]
fn pair_that_is_half_written_is_refused_and_taken_when_it_is_whole() {
    let folder = TempDir::new().unwrap();
    let authority = Authority::new();
    let name = "mail.example.org";
    let old = authority.issue(&[name]);
    let backend = FakeBackend::plain();
    let witness = authority.issue(&["witness.example.org"]);
    let entries = [("mail", &old), ("witness", &witness)].map(|(n, i)| entry(folder.path(), n, i));
    let proxy = starting(&backend, &entries).start();
    let (cert, key) = files(folder.path(), "mail");
    let successful = "imaps_proxy_last_reload_successful{what=\"certificate\"}";
    let time = "imaps_proxy_last_reload_timestamp_seconds{what=\"certificate\"}";
    let start = proxy.metric(time);
    assert!(start > 1.7e9, "{start}");
    assert_eq!(proxy.metric(successful), 1.0);

    let new = authority.issue_until(&[name], days(90));
    fs::write(&cert, &new.chain[..new.chain.len() / 3]).unwrap();
    proxy.wait_for_metric(FAILED, 1.0);
    assert_eq!(proxy.metric(successful), 0.0);
    assert!(proxy.metric(time) >= start);
    assert_eq!(proxy.metric(&not_after(name, "on_disk")), 0.0);
    assert_eq!(proxy.metric(&not_after(name, "served")) as i64, old.not_after);
    assert_eq!(served(&proxy, &authority, name), Ok(old.der.clone()));

    fs::write(&cert, &new.chain).unwrap(); // the key is still the old one
    proxy.wait_for_metric(FAILED, 2.0);
    assert_eq!(proxy.metric(&not_after(name, "on_disk")) as i64, new.not_after);
    assert_eq!(served(&proxy, &authority, name), Ok(old.der));
    // Looked at again and again, it is said once.
    for number in 0..3 {
        let witness = authority.issue_until(&["witness.example.org"], days(50 + number));
        entry(folder.path(), "witness", &witness);
        wait_until_served(&proxy, &authority, "witness.example.org", &witness);
    }
    assert_eq!(proxy.metric(FAILED), 2.0);

    fs::write(&key, &new.key).unwrap();
    wait_until_served(&proxy, &authority, name, &new);
    proxy.wait_for_metric(successful, 1.0);
    let told = refusals(&proxy);
    assert_eq!(told.len(), 2, "{told:#?}");
    assert!(told[0].contains("mail.pem: damaged PEM"), "{told:#?}");
    assert!(told[1].contains("does not belong to the certificate"), "{told:#?}");
    assert_eq!(proxy.get("/readyz").0, 200);
    stop(proxy);
}

#[test]
fn step_back_is_refused_until_the_operator_says_that_it_is_meant() {
    let folder = TempDir::new().unwrap();
    let authority = Authority::new();
    let name = "mail.example.org";
    let old = authority.issue(&[name]);
    let backend = FakeBackend::plain();
    let proxy = starting(&backend, &[entry(folder.path(), "mail", &old)]).start();
    let (cert, key) = files(folder.path(), "mail");
    let earlier = authority.issue_until(&[name], days(20));
    earlier.write(&cert, &key);
    proxy.wait_for_metric(FAILED, 1.0);
    assert_eq!(served(&proxy, &authority, name), Ok(old.der.clone()));
    assert_eq!(proxy.metric(&not_after(name, "on_disk")) as i64, earlier.not_after);
    let told = refusals(&proxy);
    assert!(told[0].contains("step back") && told[0].contains("SIGHUP"), "{told:#?}");

    let mut session =
        Client::tls(proxy.imaps, &TlsOptions::default().config(&authority.roots), name).unwrap();
    session.log_in("alice", "secret");
    proxy.signal(Signal::HUP);
    wait_until_served(&proxy, &authority, name, &earlier);
    assert!(session.result("NOOP").starts_with("OK"), "SIGHUP ends no session");

    // What no client would accept is not taken even then.
    let expired = authority.issue_until(&[name], SystemTime::now() - Duration::from_hours(1));
    expired.write(&cert, &key);
    proxy.wait_for_metric(FAILED, 2.0);
    proxy.signal(Signal::HUP);
    proxy.wait_for_metric(FAILED, 3.0);
    assert_eq!(served(&proxy, &authority, name), Ok(earlier.der));
    drop(session);
    stop(proxy);
}

#[test]
fn proxy_is_not_ready_while_the_default_certificate_has_expired() {
    let folder = TempDir::new().unwrap();
    let authority = Authority::new();
    let name = "mail.example.org";
    let short = authority.issue_until(&[name], SystemTime::now() + Duration::from_secs(5));
    let other = authority.issue(&["other.example.org"]);
    let entries = [("mail", &short), ("other", &other)].map(|(n, i)| entry(folder.path(), n, i));
    let backend = FakeBackend::plain();
    let proxy = starting(&backend, &entries).start();
    wait_until("it has expired", || proxy.get("/readyz").0 == 503);
    assert!(proxy.get("/readyz").1.contains("certificate has expired"));
    wait_until("that is logged", || proxy.text().contains("mail.pem: the certificate expired on"));
    // Who doesn't look is served.
    assert_eq!(openssl(proxy.imaps, &["-noservername"]), Ok(short.der));
    let (cert, key) = files(folder.path(), "mail");
    authority.issue(&[name]).write(&cert, &key);
    wait_until("it is ready again", || proxy.get("/readyz").0 == 200);
    assert_eq!(proxy.text().matches("expired on").count(), 1, "{}", proxy.text());
    stop(proxy);

    // And from the start.
    let expired = authority.issue_until(&[name], SystemTime::now() - Duration::from_hours(1));
    let entry = entry(folder.path(), "mail", &expired);
    let proxy = starting(&backend, &[entry]).not_ready().start();
    assert_eq!(proxy.get("/readyz").0, 503);
    assert!(proxy.text().contains("expired on"), "{}", proxy.text());
    assert_eq!(openssl(proxy.imaps, &["-noservername"]), Ok(expired.der));
    stop(proxy);
}

#[test]
fn proxy_is_not_ready_before_its_certificate_is_valid() {
    let folder = TempDir::new().unwrap();
    let authority = Authority::new();
    let now = SystemTime::now();
    let mut params = rcgen::CertificateParams::new(vec!["mail.example.org".to_owned()]).unwrap();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let since = |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    params.not_before = epoch + Duration::from_secs(since(now).as_secs() + 5);
    params.not_after = epoch + since(days(30));
    let early = authority.issue_with(params);
    let backend = FakeBackend::plain();
    let entry = entry(folder.path(), "mail", &early);
    let proxy = starting(&backend, &[entry]).not_ready().start();
    let (status, why) = proxy.get("/readyz");
    assert!(status == 503 && why.contains("the certificate is not valid yet"), "{why}");
    assert_eq!(openssl(proxy.imaps, &["-noservername"]), Ok(early.der));
    wait_until("it is valid", || proxy.get("/readyz").0 == 200);
    wait_until("that is logged", || proxy.text().contains("the certificate is valid now, until"));
    let log = proxy.log();
    let is_early = |line: &support::LogLine| line.message().contains("is not valid before");
    let told: Vec<_> = log.iter().filter(|line| is_early(line)).map(|line| line.level()).collect();
    assert_eq!(told, ["ERROR"], "{}", proxy.text());
    stop(proxy);
}

/// As many CAs' chains were when a root of theirs ended: behind the intermediate comes the new root,
/// signed by the old one, in a certificate that has expired. Clients know the new root.
#[test]
fn renewed_chain_with_what_no_client_needs_is_served_at_once() {
    let folder = TempDir::new().unwrap();
    let (old_root, new_root) = (Authority::named("Old Root"), Authority::named("New Root"));
    let between = new_root.certify(&Authority::named("Between"), days(90));
    let expired = SystemTime::now() - Duration::from_hours(24);
    let cross = old_root.certify(&new_root, expired);
    let name = "mail.example.org";
    let old = between.issue_until(&[name], days(30));
    let backend = FakeBackend::plain();
    let proxy = starting(&backend, &[entry(folder.path(), "mail", &old)]).start();
    assert_eq!(served(&proxy, &new_root, name).as_ref(), Ok(&old.der));
    let new = between.issue_until(&[name], days(60));
    let renewed = Issued { chain: new.chain.clone() + &cross.pem, ..new.clone() };
    let (cert, key) = files(folder.path(), "mail");
    renewed.write(&cert, &key);
    wait_until_served(&proxy, &new_root, name, &new);
    proxy.wait_for_metric(TAKEN, 1.0);
    assert_eq!(proxy.metric(FAILED), 0.0);
    let taken = proxy.log().into_iter().rfind(|line| line.message() == "serving certificate");
    assert_eq!(taken.unwrap().field("sent"), "2", "without the one that has expired");
    let named = "certificate 3 of the file (CN=New Root) expired on";
    wait_until("that one is named", || proxy.text().contains(named));
    proxy.stop();
}

/// With `dir` the renewed certificate often has another file name than the old one.
#[test]
fn renewed_certificate_beside_the_old_one_is_served_at_once() {
    let folder = TempDir::new().unwrap();
    let authority = Authority::new();
    let name = "mail.example.org";
    let write = |file: &str, issued: &Issued| {
        let (cert, key) = files(folder.path(), file);
        issued.write(&cert, &key);
    };
    let old = authority.issue_until(&[name], days(20));
    write("2025", &old);
    let backend = FakeBackend::plain();
    let entry = format!("{{ dir: '{}' }}", folder.path().display());
    let proxy = starting(&backend, std::slice::from_ref(&entry)).start();
    assert_eq!(served(&proxy, &authority, name), Ok(old.der));
    let new = authority.issue_until(&[name], days(80));
    write("2026", &new);
    wait_until_served(&proxy, &authority, name, &new);
    let expiry = not_after(name, "served");
    proxy.wait_for_metric(&expiry, new.not_after as f64);
    let series = proxy.series();
    let shown = series.keys().filter(|series| series.starts_with(NOT_AFTER)).count();
    assert_eq!(shown, 2, "no series of what has been replaced: {series:#?}");
    proxy.stop();
    let proxy = starting(&backend, &[entry]).start();
    assert_eq!(served(&proxy, &authority, name), Ok(new.der));
    proxy.stop();
}

#[test]
fn self_made_certificate_gives_way_to_files_that_appear() {
    let folder = TempDir::new().unwrap();
    let authority = Authority::new();
    let issued = authority.issue(&["mail.example.org"]);
    let (cert, key) = files(&folder.path().join("certs"), "mail");
    let yaml = format!(
        "tls: {{ certificates: [{{ cert: '{}', key: '{}' }}], \
         self_signed: {{ names: [made.example.org], dir: '{}' }} }}",
        cert.display(),
        key.display(),
        folder.path().join("made").display()
    );
    let backend = FakeBackend::plain();
    let proxy = Proxy::starting(&backend).config(&yaml).start();
    assert!(proxy.text().contains("SELF-MADE CERTIFICATE"), "{}", proxy.text());
    assert!(proxy.series().contains_key(&not_after("made.example.org", "served")));
    fs::create_dir(cert.parent().unwrap()).unwrap();
    issued.write(&cert, &key);
    wait_until_served(&proxy, &authority, "mail.example.org", &issued);
    wait_until("the metrics follow", || {
        let series = proxy.series();
        series.contains_key(&not_after("mail.example.org", "served"))
            && !series.contains_key(&not_after("made.example.org", "served"))
    });
    stop(proxy);
}

#[test]
fn suites_and_groups_are_those_of_the_configuration() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(
        &backend,
        "tls: { cipher_suites: [TLS_CHACHA20_POLY1305_SHA256, \
         TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384], groups: [secp384r1] }",
    );
    let args: [&[&str]; 6] = [
        &["-tls1_3"],
        &["-tls1_3", "-ciphersuites", "TLS_AES_128_GCM_SHA256"],
        &["-tls1_2"],
        &["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"],
        &["-tls1_3", "-groups", "X25519"],
        &["-tls1_3", "-groups", "X25519:P-384"],
    ];
    let worked = args.map(|args| openssl(proxy.imaps, args).is_ok());
    assert_eq!(worked, [true, false, true, false, false, true]);
    let handshakes = "imaps_proxy_tls_handshakes_total";
    let of = |labels: [&str; 2]| proxy.sum(handshakes, &labels) as u32;
    let group = "group=\"secp384r1\"";
    assert_eq!(of([group, "cipher=\"TLS13_CHACHA20_POLY1305_SHA256\""]), 2);
    assert_eq!(of([group, "cipher=\"TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384\""]), 1);
    let all = proxy.series().into_keys().filter(|name| name.starts_with(handshakes)).count();
    // 1.3, full and resumed; 1.2, full with a group and resumed without.
    assert_eq!(all, 4, "series that cannot exist");
    proxy.stop();
}

/// Every other one is asked for by SIGHUP, since what the file system reports waits for a quarter of a second of quiet.
#[test]
fn certificate_is_swapped_under_load_and_nobody_notices() {
    const SESSIONS: usize = 200;
    const SWAPS: usize = 200;
    let folder = TempDir::new().unwrap();
    let authority = Authority::new();
    let name = "mail.example.org";
    let issue = |number: usize| authority.issue_until(&[name], days(30 + number as u64));
    let backend = FakeBackend::plain();
    // Chain and key in one file, which is swapped in one step.
    let both = folder.path().join("both.pem");
    let swap = |issued: &Issued| replace(&both, &(issued.key.clone() + &issued.chain));
    swap(&issue(0));
    let pair = format!("{{ cert: '{0}', key: '{0}' }}", both.display());
    let proxy = starting(&backend, &[pair]).start();
    let config = TlsOptions::default().config(&authority.roots);
    let connect = |config: &Arc<ClientConfig>| Client::tls(proxy.imaps, config, name);
    let mut sessions: Vec<Client> = (0..SESSIONS)
        .map(|_| {
            let mut client = connect(&config).unwrap();
            client.log_in("alice", "secret");
            client
        })
        .collect();

    let (stop, done) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        // 20 handshakes a second, full ones: each client is new.
        let greetings = scope.spawn(|| {
            let mut failed = Vec::new();
            let start = Instant::now();
            while !stop.load(Ordering::SeqCst) {
                let fresh = TlsOptions::default().config(&authority.roots);
                match connect(&fresh) {
                    Ok(mut client) => assert!(client.line().starts_with("* OK ")),
                    Err(error) => failed.push(error.to_string()),
                }
                let count = done.fetch_add(1, Ordering::SeqCst) + 1;
                let due = start + Duration::from_millis(50 * count as u64);
                thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            failed
        });
        let (mut rss, mut descriptors) = (0, 0);
        for number in 1..=SWAPS {
            let new = issue(number);
            swap(&new);
            if number % 2 == 0 {
                proxy.signal(Signal::HUP);
            }
            wait_until_served(&proxy, &authority, name, &new);
            let at = number * 37 % SESSIONS;
            for session in &mut sessions[at.min(SESSIONS - 20)..][..20] {
                assert!(session.result("NOOP").starts_with("OK"));
            }
            if number == SWAPS / 4 {
                (rss, descriptors) = (proxy.rss(), proxy.fd_count());
            }
        }
        stop.store(true, Ordering::SeqCst);
        let failed = greetings.join().unwrap();
        assert!(failed.is_empty(), "{failed:?}");
        for session in &mut sessions {
            assert!(session.result("NOOP").starts_with("OK"), "a session was lost");
        }
        wait_until("the handshakes of passers-by are over", || {
            proxy.sum("imaps_proxy_sessions", &[]) as usize == SESSIONS
        });
        let grown = proxy.rss().saturating_sub(rss);
        let handshakes = done.load(Ordering::SeqCst);
        eprintln!(
            "{SWAPS} swaps, {SESSIONS} sessions, {handshakes} handshakes; memory {rss} + {grown}, \
             descriptors {descriptors} then {}",
            proxy.fd_count()
        );
        assert!(grown < 2 << 20, "{rss} grew by {grown}");
        // A passer-by may have been connected when they were counted.
        assert!(proxy.fd_count() <= descriptors + 2, "{descriptors} then {}", proxy.fd_count());
        assert!(handshakes >= SWAPS, "{handshakes}");
    });
    // SIGHUP counts as well where the file system was quicker.
    assert!(proxy.metric(TAKEN) as usize >= SWAPS);
    let taken =
        || proxy.log().iter().filter(|line| line.message() == "serving certificate").count();
    wait_until("every swap is in the log", || taken() == SWAPS + 1);
    assert_eq!(proxy.metric(FAILED), 0.0);
    drop(sessions);
    proxy.stop();
}
