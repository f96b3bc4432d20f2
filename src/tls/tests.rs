use super::*;
use rcgen::{CertificateParams, KeyPair};
use rustls::client::danger::ServerCertVerifier;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, ProtocolVersion, ServerConnection};
use rustls_pki_types::ServerName;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;
use tempfile::TempDir;

/// 2026-11-24.
const NOW: i64 = 1_795_500_000;

fn at(unix: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(unix).unwrap())
}

fn put(dir: &TempDir, file: &str, text: &str, mode: u32) -> PathBuf {
    let path = dir.path().join(file);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    path
}

fn tls(cert: Option<(&Path, &Path)>, made: Option<&Path>) -> settings::Tls {
    settings::Tls {
        certificate: cert
            .map(|(cert, key)| CertificateFiles { cert: cert.into(), key: key.into() }),
        self_signed: made.map(|dir| SelfSigned {
            names: vec!["mail.example.org".into(), "127.0.0.1".into()],
            dir: dir.into(),
        }),
        min_version: MinVersion::Tls12,
        tickets: settings::Tickets::default(),
        client_auth: None,
    }
}

/// A certificate and its key as PEM, valid from 10 days before `NOW` for `days`.
fn pems(names: &[&str], days: i64) -> (String, String) {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(names).unwrap();
    let from = |unix: i64| {
        rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(u64::try_from(unix).unwrap())
    };
    params.not_before = from(NOW - 10 * DAY);
    params.not_after = from(NOW - 10 * DAY + days * DAY);
    let key = KeyPair::generate().unwrap();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

fn messages(settings: &settings::Tls) -> Vec<String> {
    let found = check_at(settings, NOW).into_iter();
    found.map(|finding| format!("{:?}: {}", finding.severity, finding.message)).collect()
}

#[test]
fn a_good_pair_loads_and_is_named_after_its_first_dns_name() {
    let dir = TempDir::new().unwrap();
    let (cert, key) = pems(&["192.0.2.1", "mail.example.org"], 90);
    let (cert, key) = (put(&dir, "c.pem", &cert, 0o644), put(&dir, "k.pem", &key, 0o600));
    let mut source = Source::new(tls(Some((&cert, &key)), None));
    let loaded = source.load(at(NOW)).unwrap();
    assert_eq!(loaded.certificate, "mail.example.org");
    assert_eq!(loaded.names, ["192.0.2.1", "mail.example.org"]);
    assert_eq!(loaded.not_after, NOW + 80 * DAY);
    assert!(!loaded.self_signed && loaded.problems.is_empty());
    assert!(!source.due(at(NOW + 79 * DAY)));
    let (other_cert, other_key) = pems(&["mail.example.org"], 300);
    put(&dir, "c.pem", &other_cert, 0o644);
    assert!(source.due(at(NOW)));
    assert!(source.load(at(NOW)).is_err(), "only one of the two was replaced yet");
    put(&dir, "k.pem", &other_key, 0o600);
    assert!(source.due(at(NOW)));
    assert_eq!(source.load(at(NOW)).unwrap().not_after, NOW + 290 * DAY);
    assert!(!source.due(at(NOW)));
}

#[test]
fn every_mistake_names_its_file_and_its_cure() {
    let dir = TempDir::new().unwrap();
    let (cert, key) = pems(&["mail.example.org"], 90);
    let (other, _) = pems(&["mail.example.org"], 90);
    let good_cert = put(&dir, "cert.pem", &cert, 0o644);
    let good_key = put(&dir, "key.pem", &key, 0o600);
    let cut = &cert[..cert.len() / 2];
    let table: &[(&str, &str, &str)] = &[
        ("none.pem", "", "no such file; put the certificate there"),
        ("cert.pem", &key, "holds a private key, not a certificate; are cert and key swapped?"),
        ("cert.pem", "hello\n", "is not PEM"),
        ("cert.pem", "", "is empty"),
        ("cert.pem", "0\u{2}\u{1}", "is binary (DER or PKCS #12), not PEM"),
        ("cert.pem", cut, "damaged PEM: a section has no -----END"),
        (
            "cert.pem",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "certificate 1 cannot be parsed",
        ),
        ("key.pem", &cert, "holds a certificate, not a private key; are cert and key swapped?"),
        (
            "key.pem",
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n",
            "is encrypted with a passphrase",
        ),
        (
            "key.pem",
            "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n",
            "is encrypted with a passphrase",
        ),
        (
            "key.pem",
            "-----BEGIN PRIVATE KEY-----\n!\n-----END PRIVATE KEY-----\n",
            "damaged PEM: a section is not base64",
        ),
        (
            "key.pem",
            "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
            "the private key cannot be used",
        ),
        ("cert.pem", &other, "the key does not belong to the certificate"),
        (
            "cert.pem",
            &format!("{other}{cert}"),
            "certificate 2 is the server's, but it has to be the first",
        ),
    ];
    for (file, content, expected) in table {
        let (mut cert_path, mut key_path) = (good_cert.clone(), good_key.clone());
        put(&dir, "cert.pem", &cert, 0o644);
        put(&dir, "key.pem", &key, 0o600);
        match *file {
            "none.pem" => cert_path = dir.path().join(file),
            "key.pem" => key_path = put(&dir, file, content, 0o600),
            _ => cert_path = put(&dir, file, content, 0o644),
        }
        let settings = tls(Some((&cert_path, &key_path)), None);
        let found = messages(&settings);
        assert!(found[0].starts_with("Error: ") && found[0].contains(expected), "{found:?}");
        let error = Source::new(settings).load(at(NOW)).err().expect(expected);
        assert!(chain(&error).contains(expected), "{error}");
    }
    let folder = messages(&tls(Some((dir.path(), &good_key)), None));
    assert!(folder[0].contains("is a directory; name the file in it"), "{folder:?}");
    let link = dir.path().join("link.pem");
    std::os::unix::fs::symlink("../archive/none.pem", &link).unwrap();
    let found = messages(&tls(Some((&link, &good_key)), None));
    assert!(found[0].contains("is a symbolic link to ../archive/none.pem"), "{found:?}");
}

#[test]
fn both_files_are_reported_at_once() {
    let none = Path::new("/nonexistent/c.pem");
    let found = messages(&tls(Some((none, Path::new("/nonexistent/k.pem"))), None));
    assert_eq!(found.len(), 2);
}

#[test]
fn dates_names_and_permissions_are_findings_but_the_service_starts() {
    let dir = TempDir::new().unwrap();
    let (cert, key) = pems(&[], 5);
    let (cert, key) = (put(&dir, "c.pem", &cert, 0o644), put(&dir, "k.pem", &key, 0o644));
    let settings = tls(Some((&cert, &key)), None);
    let found = messages(&settings).join("\n");
    assert!(found.contains("Error: ") && found.contains("expired on 2026-11-"), "{found}");
    assert!(found.contains("Warning: ") && found.contains("subjectAltName"), "{found}");
    assert!(
        found.contains("open to everybody on this machine (mode 0644); run `chmod 600"),
        "{found}"
    );
    let loaded = Source::new(settings.clone()).load(at(NOW)).unwrap();
    assert_eq!(loaded.certificate, "c");
    assert!(loaded.problems[0].contains("expired"));
    assert!(loaded.notice.iter().any(|line| line.contains("chmod 600")));
    put(&dir, "k.pem", &fs::read_to_string(&key).unwrap(), 0o640);
    assert!(
        messages(&settings).iter().any(|m| m.starts_with("Warning: ") && m.contains("its group"))
    );
    let future = check_at(&settings, NOW - 20 * DAY);
    assert!(future[0].message.contains("is not valid before"), "{future:?}");
}

#[test]
fn self_made_serves_only_while_neither_file_exists() {
    let dir = TempDir::new().unwrap();
    let (cert, key) = (dir.path().join("c.pem"), dir.path().join("k.pem"));
    let made = dir.path().join("made");
    let settings = tls(Some((&cert, &key)), Some(&made));
    assert!(messages(&settings)[0].contains("SELF-MADE CERTIFICATE"));
    assert!(!made.exists(), "check makes nothing");
    let mut source = Source::new(settings.clone());
    let loaded = source.load(at(NOW)).unwrap();
    assert!(loaded.self_signed && loaded.notice[0].contains("SELF-MADE CERTIFICATE"));
    assert!(loaded.notice.iter().any(|line| line.contains("SHA-256 fingerprint")));
    assert!(!source.due(at(NOW)));
    let (cert_pem, key_pem) = pems(&["mail.example.org"], 90);
    put(&dir, "c.pem", &cert_pem, 0o644);
    assert!(source.due(at(NOW)));
    assert!(matches!(source.load(at(NOW)), Err(Error::Half { .. })));
    put(&dir, "k.pem", &key_pem, 0o600);
    assert!(!source.load(at(NOW)).unwrap().self_signed);
}

#[derive(Debug)]
struct TrustsAll;

impl ServerCertVerifier for TrustsAll {
    fn verify_server_cert(
        &self,
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &[rustls_pki_types::CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

fn client(
    alpn: &[&str],
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> Arc<ClientConfig> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TrustsAll))
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    Arc::new(config)
}

/// Bytes to and fro until both are content, or what the server says against it.
fn handshake(
    server: &Arc<ServerConfig>,
    client: &Arc<ClientConfig>,
) -> Result<(ServerConnection, ClientConnection), rustls::Error> {
    let name = ServerName::try_from("mail.example.org").unwrap();
    let mut client = ClientConnection::new(Arc::clone(client), name).unwrap();
    let mut server = ServerConnection::new(Arc::clone(server)).unwrap();
    while client.wants_write() || server.wants_write() {
        let mut wire = Vec::new();
        client.write_tls(&mut wire).unwrap();
        server.read_tls(&mut io::Cursor::new(&wire)).unwrap();
        server.process_new_packets()?;
        wire.clear();
        server.write_tls(&mut wire).unwrap();
        client.read_tls(&mut io::Cursor::new(&wire)).unwrap();
        client.process_new_packets()?;
    }
    Ok((server, client))
}

#[test]
fn alpn_takes_imap_or_no_list_and_refuses_a_foreign_one() {
    let dir = TempDir::new().unwrap();
    let loaded = Source::new(tls(None, Some(dir.path()))).load(at(NOW)).unwrap();
    let all = rustls::ALL_VERSIONS;
    let (server, _) = handshake(&loaded.config, &client(&[], all)).unwrap();
    assert_eq!(server.alpn_protocol(), None);
    let (server, _) = handshake(&loaded.config, &client(&["http/1.1", "imap"], all)).unwrap();
    assert_eq!(server.alpn_protocol(), Some(&b"imap"[..]));
    let refused = handshake(&loaded.config, &client(&["http/1.1"], all)).unwrap_err();
    assert_eq!(refused, rustls::Error::NoApplicationProtocol);
}

#[test]
fn versions_group_and_tickets_are_as_promised() {
    let dir = TempDir::new().unwrap();
    let mut settings = tls(None, Some(dir.path()));
    let mut source = Source::new(settings.clone());
    let first = source.load(at(NOW)).unwrap().config;
    for (version, named) in [
        (&rustls::version::TLS13, ProtocolVersion::TLSv1_3),
        (&rustls::version::TLS12, ProtocolVersion::TLSv1_2),
    ] {
        let client = client(&["imap"], &[version]);
        let (server, _) = handshake(&first, &client).unwrap();
        assert_eq!(server.protocol_version(), Some(named));
        if named == ProtocolVersion::TLSv1_3 {
            let group = server.negotiated_key_exchange_group().unwrap().name();
            assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
        }
        let second = source.load(at(NOW)).unwrap().config;
        let (server, _) = handshake(&second, &client).unwrap();
        assert_eq!(server.handshake_kind(), Some(HandshakeKind::Resumed), "across a reload");
    }
    settings.min_version = MinVersion::Tls13;
    let strict = Source::new(settings).load(at(NOW)).unwrap().config;
    assert!(handshake(&strict, &client(&[], &[&rustls::version::TLS12])).is_err());
    assert_eq!(strict.max_early_data_size, 0);
}
