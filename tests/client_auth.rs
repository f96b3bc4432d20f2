//! Client certificates: who is let in, what is said of whom, and what becomes of tickets.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber,
    date_time_ymd,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, HandshakeKind, SupportedProtocolVersion};
use support::{Client, End, FakeBackend, PATIENCE, Proxy, binary, program, run, wait_until};

type Versions = &'static [&'static SupportedProtocolVersion];

const BOTH: [Versions; 2] = [&[&rustls::version::TLS12], &[&rustls::version::TLS13]];

/// The CA that issues certificates to people.
struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate, with its intermediates if there are any, as PEM, and its key.
struct Identity {
    cert: String,
    key: String,
}

impl Ca {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A CA below this one.
    fn below(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    fn client(
        &self,
        name: &str,
        serial: u64,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Identity {
        let mut params = CertificateParams::default();
        params.serial_number = Some(SerialNumber::from(serial));
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap().pem();
        Identity { cert, key: key.serialize_pem() }
    }

    fn list(&self, revoked: &[u64], year_of_next: i32) -> String {
        let revoked = revoked.iter().map(|&serial| RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(year_of_next, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

/// The files that the proxy is given.
struct Place(tempfile::TempDir);

impl Place {
    fn new(files: &[(&str, &str)]) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        files.iter().for_each(|(name, text)| place.put(name, text));
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn put(&self, name: &str, text: &str) {
        fs::write(self.path("fresh"), text).unwrap();
        fs::set_permissions(self.path("fresh"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::rename(self.path("fresh"), self.path(name)).unwrap();
    }

    fn yaml(&self, mode: &str, ca: &str, crl: Option<&str>) -> String {
        let ca = self.path(ca);
        let crl = crl.map(|crl| format!(", crl: '{}'", self.path(crl).display()));
        format!(
            "tls: {{ client_auth: {{ mode: {mode}, ca: '{}'{} }} }}",
            ca.display(),
            crl.unwrap_or_default()
        )
    }
}

fn config(proxy: &Proxy<'_>, versions: Versions, who: Option<&Identity>) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_protocol_versions(versions)
        .with_root_certificates(Arc::clone(&proxy.certificates.roots));
    Arc::new(match who {
        None => builder.with_no_client_auth(),
        Some(who) => {
            let chain = CertificateDer::pem_slice_iter(who.cert.as_bytes());
            let chain = chain.collect::<Result<_, _>>().unwrap();
            let key = PrivateKeyDer::from_pem_slice(who.key.as_bytes()).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    })
}

/// The whole visit; how the handshake was. With TLS 1.3 a client learns only after its own handshake that it was
/// refused.
fn visit(proxy: &Proxy<'_>, config: &Arc<ClientConfig>) -> Result<HandshakeKind, String> {
    let mut client =
        Client::tls(proxy.imaps, config, "localhost").map_err(|error| error.to_string())?;
    let told = client.try_send("a LOGIN alice secret\r\nb LOGOUT\r\n");
    let rest = client.rest(PATIENCE);
    if rest.contains("b OK") {
        told.unwrap();
        return Ok(client.session().handshake_kind().unwrap());
    }
    assert_eq!(rest, "");
    match client.end() {
        End::Failed(alert) => Err(alert),
        other => Err(format!("{other:?}")),
    }
}

fn failures(proxy: &Proxy<'_>, reason: &str) -> f64 {
    proxy.metric(&format!("imaps_proxy_tls_handshake_failures_total{{reason=\"{reason}\"}}"))
}

fn reloads(result: &str) -> String {
    format!("imaps_proxy_reloads_total{{result=\"{result}\",what=\"client_auth\"}}")
}

fn fingerprint(who: &Identity) -> String {
    let mut command = Command::new(program("openssl", "openssl"));
    command.args(["x509", "-noout", "-fingerprint", "-sha256"]);
    let told = run(&mut command, who.cert.as_bytes(), PATIENCE).succeeded().stdout;
    told.trim().split_once('=').unwrap().1.to_owned()
}

#[test]
fn who_is_let_in_and_why_not() {
    let backend = FakeBackend::plain();
    let (ours, theirs) = (Ca::new("Ours"), Ca::new("Theirs"));
    let place = Place::new(&[("ca.pem", &ours.pem), ("crl.pem", &ours.list(&[66], 2099))]);
    let good = ours.client("alice", 1, |_| {});
    let bad = [
        (
            "client_certificate_expired",
            "CertificateExpired",
            ours.client("alice", 2, |params| params.not_after = date_time_ymd(2020, 1, 1)),
        ),
        (
            "client_certificate_not_yet_valid",
            "CertificateExpired",
            ours.client("alice", 3, |params| params.not_before = date_time_ymd(2090, 1, 1)),
        ),
        ("client_certificate_revoked", "CertificateRevoked", ours.client("alice", 66, |_| {})),
        ("client_certificate_foreign", "UnknownCA", theirs.client("alice", 4, |_| {})),
        (
            "client_certificate_wrong_purpose",
            "UnsupportedCertificate",
            ours.client("alice", 5, |params| {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            }),
        ),
    ];
    for mode in ["required", "optional"] {
        let proxy = Proxy::start(&backend, &place.yaml(mode, "ca.pem", Some("crl.pem")));
        for (reason, ..) in &bad {
            assert!(failures(&proxy, reason).abs() < 0.1, "{reason} is not there from the start");
        }
        for result in ["ok", "failed"] {
            assert!(proxy.metric(&reloads(result)).abs() < 0.1);
        }
        for (turn, versions) in BOTH.into_iter().enumerate() {
            let visit = |who| visit(&proxy, &config(&proxy, versions, who));
            assert_eq!(visit(Some(&good)), Ok(HandshakeKind::Full));
            for (reason, alert, who) in &bad {
                let told = visit(Some(who)).unwrap_err();
                assert!(told.contains(alert), "{mode} {reason}: {told}");
                proxy.wait_for_metric(
                    &format!("imaps_proxy_tls_handshake_failures_total{{reason=\"{reason}\"}}"),
                    if turn == 0 { 1.0 } else { 2.0 },
                );
                wait_until("the log says why", || {
                    proxy.text().matches(&format!("\"{reason}\"")).count() == turn + 1
                });
            }
            let told = visit(None);
            if mode == "optional" {
                assert_eq!(told, Ok(HandshakeKind::Full));
            } else {
                // RFC 5246 has no alert for it, RFC 8446 has.
                let told = told.unwrap_err();
                assert!(told.contains("CertificateRequired") || turn == 0, "{told}");
            }
        }
        let (missing, refused) = if mode == "required" { (2.0, 12) } else { (0.0, 10) };
        proxy.wait_for_ends("handshake_failed", refused);
        assert!((failures(&proxy, "client_certificate_missing") - missing).abs() < 0.1);
        assert!(failures(&proxy, "internal").abs() < 0.1);
        let next = proxy.metric("imaps_proxy_tls_client_crl_next_update_timestamp_seconds");
        assert!((next - 4_070_908_800.0).abs() < 1.0, "{next}"); // 2099-01-01
        proxy.stop();
    }
}

/// OpenSSL and Python as the clients: both alerts and their names are theirs.
#[test]
fn openssl_and_python_are_let_in_or_told_why_not() {
    let backend = FakeBackend::plain();
    let (ours, theirs) = (Ca::new("Ours"), Ca::new("Theirs"));
    let place = Place::new(&[("ca.pem", &ours.pem), ("crl.pem", &ours.list(&[66], 2099))]);
    let expired = ours.client("alice", 2, |params| params.not_after = date_time_ymd(2020, 1, 1));
    let proxy = Proxy::start(&backend, &place.yaml("required", "ca.pem", Some("crl.pem")));
    let address = proxy.imaps.to_string();
    let ca = proxy.certificates.ca.display().to_string();
    for (who, openssl, python) in [
        (ours.client("alice", 1, |_| {}), "b OK", "OK"),
        (expired, "alert certificate expired", "SSLV3_ALERT_CERTIFICATE_EXPIRED"),
        (
            ours.client("alice", 66, |_| {}),
            "alert certificate revoked",
            "SSLV3_ALERT_CERTIFICATE_REVOKED",
        ),
        (theirs.client("alice", 4, |_| {}), "alert unknown ca", "TLSV1_ALERT_UNKNOWN_CA"),
    ] {
        place.put("who.pem", &who.cert);
        place.put("who.key", &who.key);
        let [cert, key] = ["who.pem", "who.key"].map(|name| place.path(name).display().to_string());
        for (option, version) in [("-tls1_2", "TLSv1_2"), ("-tls1_3", "TLSv1_3")] {
            // What a client signs has the name in it, and one that is no DNS name is kept from rustls.
            for name in ["localhost", "localhost:993"] {
                let mut command = Command::new(program("openssl", "openssl"));
                command.args(["s_client", "-connect", &address, "-CAfile", &ca, "-cert", &cert]);
                command.args(["-key", &key, option, "-ign_eof", "-crlf", "-servername", name]);
                let told = run(&mut command, b"a LOGIN alice secret\nb LOGOUT\n", PATIENCE);
                let told = told.stdout + &told.stderr;
                assert!(told.contains(openssl), "{version} {name}: {told}");
            }

            let mut command = Command::new(program("python3", "python3"));
            command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/certificate.py"));
            command.args([version, &ca, &cert, &key, &address]);
            let told = run(&mut command, b"", PATIENCE).succeeded().stdout;
            assert_eq!(told.trim(), python, "{version}");
        }
    }
    proxy.stop();
}

#[test]
fn the_login_and_the_session_say_whose_certificate_it_was() {
    let backend = FakeBackend::plain();
    let ca = Ca::new("Ours");
    let place = Place::new(&[("ca.pem", &ca.pem)]);
    let proxy = Proxy::start(&backend, &place.yaml("optional", "ca.pem", None));
    let names = ["alice", "x\r\n{\"level\":\"ERROR\"}\u{1b}]0;p\u{7}\u{202e}", &"n".repeat(2_000)];
    let shown = ["CN=alice", "level", "CN=nnnn"];
    for (turn, (name, shown)) in names.into_iter().zip(shown).enumerate() {
        let who = ca.client(name, 1, |_| {});
        let config = config(&proxy, BOTH[turn % 2], Some(&who));
        for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
            assert_eq!(visit(&proxy, &config), Ok(kind));
        }
        let done = 2 * turn + 2;
        wait_until("both sessions are logged", || proxy.sessions().len() == done);
        let lines = [proxy.wait_for_logins(done), proxy.sessions()].concat();
        let fingerprint = fingerprint(&who);
        let lines: Vec<_> = lines
            .into_iter()
            .filter(|line| line.field("client_cert_sha256") == fingerprint)
            .collect();
        assert_eq!(lines.len(), 4, "a login and a session, full and resumed");
        for line in lines {
            let subject = line.field("client_cert_subject");
            assert!(subject.contains(shown) && subject.len() < 300, "{subject:?}");
            assert!(!subject.contains(['\r', '\n', '\u{1b}', '\u{202e}', '"']), "{subject:?}");
        }
    }
    assert_eq!(visit(&proxy, &config(&proxy, BOTH[1], None)), Ok(HandshakeKind::Full));
    wait_until("it is logged", || proxy.sessions().len() == 7);
    let last = proxy.sessions().pop().unwrap();
    assert!(!last.has("client_cert_subject") && !last.has("client_cert_sha256"), "{last:?}");
    proxy.stop();
}

/// A ticket must not be a way around the dates of a certificate.
#[test]
fn certificate_that_has_expired_resumes_nothing() {
    let backend = FakeBackend::plain();
    let ca = Ca::new("Ours");
    let place = Place::new(&[("ca.pem", &ca.pem)]);
    let proxy = Proxy::start(&backend, &place.yaml("required", "ca.pem", None));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let end = now + 4;
    let ends = |params: &mut CertificateParams| {
        params.not_after = date_time_ymd(1970, 1, 1) + Duration::from_secs(end);
    };
    // Its own date, or that of the CA between.
    let below = ca.below("Below", ends);
    let mut bob = below.client("bob", 2, |_| {});
    bob.cert += &below.pem;
    let who = [ca.client("alice", 1, ends), bob];
    let configs =
        who.each_ref().map(|who| BOTH.map(|versions| config(&proxy, versions, Some(who))));
    for config in configs.as_flattened() {
        assert_eq!(visit(&proxy, config), Ok(HandshakeKind::Full));
    }
    wait_until("the certificate has expired", || {
        SystemTime::now() > SystemTime::UNIX_EPOCH + Duration::from_secs(end + 1)
    });
    for config in configs.as_flattened() {
        // Not only cut off: a full handshake, in which the client is told, or may show a new certificate.
        let told = visit(&proxy, config).unwrap_err();
        assert!(told.contains("CertificateExpired"), "{told}");
    }
    proxy.wait_for_ends("handshake_failed", 4);
    assert!((failures(&proxy, "client_certificate_expired") - 4.0).abs() < 0.1);
    proxy.stop();
}

/// The file system reports them: nobody waits for the look of every minute.
#[test]
fn changed_files_decide_from_then_on_and_wrong_ones_change_nothing() {
    let backend = FakeBackend::plain();
    let (ours, theirs) = (Ca::new("Ours"), Ca::new("Theirs"));
    let empty = ours.list(&[], 2099);
    let place = Place::new(&[
        ("ca1", &ours.pem),
        ("ca2", &ours.pem),
        ("ca3", &ours.pem),
        ("crl1", &empty),
        ("crl3", &empty),
    ]);
    let start = |ca, crl| Proxy::start(&backend, &place.yaml("required", ca, crl));
    let revoking = start("ca1", Some("crl1"));
    let moving = start("ca2", None);
    let mut broken = start("ca3", Some("crl3"));
    let alice = ours.client("alice", 66, |_| {});
    let bob = theirs.client("bob", 1, |_| {});
    let clients = BOTH.map(|versions| {
        [&revoking, &moving, &broken].map(|proxy| {
            let client = config(proxy, versions, Some(&alice));
            assert_eq!(visit(proxy, &client), Ok(HandshakeKind::Full));
            assert_eq!(visit(proxy, &client), Ok(HandshakeKind::Resumed));
            client
        })
    });
    let mut live = Client::tls(revoking.imaps, &clients[1][0], "localhost").unwrap();
    live.log_in("alice", "secret");

    place.put("crl1", &ours.list(&[66], 2099));
    place.put("ca2", &theirs.pem);
    place.put("crl3", &theirs.pem);
    for (proxy, result) in [(&revoking, "ok"), (&moving, "ok"), (&broken, "failed")] {
        wait_until("the files are looked at", || proxy.metric(&reloads(result)) > 0.5);
    }
    for (index, versions) in BOTH.into_iter().enumerate() {
        // The ticket that the client holds is of no use either.
        let told = visit(&revoking, &clients[index][0]).unwrap_err();
        assert!(told.contains("CertificateRevoked"), "{told}");
        let told = visit(&moving, &clients[index][1]).unwrap_err();
        assert!(told.contains("UnknownCA"), "{told}");
        let bob = config(&moving, versions, Some(&bob));
        assert_eq!(visit(&moving, &bob), Ok(HandshakeKind::Full));
        assert_eq!(visit(&broken, &clients[index][2]), Ok(HandshakeKind::Resumed));
    }
    assert!(live.result("NOOP").starts_with("OK"), "who is in stays in");
    drop(live);
    let errors: Vec<_> = broken.log().into_iter().filter(|line| line.level() == "ERROR").collect();
    assert_eq!(errors.len(), 1, "{errors:#?}");
    assert_eq!(errors[0].field("what"), "client_auth");
    let error = errors[0].field("error");
    assert!(error.contains("/crl3: holds a certificate, not a revocation list"), "{error}");
    revoking.stop();
    moving.stop();
    broken.terminate();
    assert_eq!(broken.wait(PATIENCE).code(), Some(0));
}

#[test]
fn list_past_its_date_is_reported_and_still_counts() {
    let backend = FakeBackend::plain();
    let ca = Ca::new("Ours");
    let place = Place::new(&[("ca.pem", &ca.pem), ("crl.pem", &ca.list(&[66], 2025))]);
    let mut proxy = Proxy::start(&backend, &place.yaml("required", "ca.pem", Some("crl.pem")));
    for versions in BOTH {
        let good = ca.client("alice", 1, |_| {});
        let revoked = ca.client("mallory", 66, |_| {});
        assert_eq!(visit(&proxy, &config(&proxy, versions, Some(&good))), Ok(HandshakeKind::Full));
        let told = visit(&proxy, &config(&proxy, versions, Some(&revoked))).unwrap_err();
        assert!(told.contains("CertificateRevoked"), "{told}");
    }
    let said = "the revocation list of CN=Ours was to be replaced by 2025-01-01";
    let errors = proxy.log().into_iter().filter(|line| line.level() == "ERROR");
    assert!(errors.clone().any(|line| line.message().contains(said)), "{}", proxy.text());
    proxy.terminate();
    assert_eq!(proxy.wait(PATIENCE).code(), Some(0));
}

#[test]
fn wrong_files_keep_the_proxy_from_starting() {
    let (ca, namesake) = (Ca::new("Ours"), Ca::new("Ours"));
    let leaf = ca.client("alice", 1, |_| {});
    let place = Place::new(&[
        ("ca.pem", &ca.pem),
        ("leaf.pem", &leaf.cert),
        ("key.pem", &leaf.key),
        ("foreign.pem", &namesake.list(&[], 2099)),
        ("text", "hello"),
    ]);
    for (ca, crl, expected) in [
        ("none.pem", None, "/none.pem: no such file; put the CA certificate there"),
        ("leaf.pem", None, "is no CA's; name the file of the CA that issued"),
        ("key.pem", None, "/key.pem: holds a private key, not a CA certificate"),
        ("ca.pem", Some("none.pem"), "/none.pem: no such file; put the revocation list there"),
        ("ca.pem", Some("text"), "/text: is not PEM"),
        ("ca.pem", Some("foreign.pem"), "claims to be from CN=Ours, but the key in"),
    ] {
        let auth = place.yaml("required", ca, crl);
        let auth = auth.strip_prefix("tls: { ").unwrap();
        let dir = place.path("made");
        place.put(
            "f.yaml",
            &format!(
                "tls: {{ self_signed: {{ names: [localhost], dir: '{}' }}, {auth}\n\
                 listen: [{{ address: '127.0.0.1:0' }}]\n\
                 backend: {{ servers: [{{ address: 'x:143' }}] }}\n",
                dir.display()
            ),
        );
        for (command, code) in [("check", 2), ("run", 1)] {
            let mut program = Command::new(binary());
            program.arg(command).arg("--config").arg(place.path("f.yaml"));
            let finished = run(&mut program, b"", PATIENCE);
            assert_eq!(finished.code, Some(code), "{finished:?}");
            assert!(finished.stderr.contains(expected), "{expected}: {finished:?}");
        }
    }
}
