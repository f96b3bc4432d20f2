//! Who gets which certificate, and what is spoken.

use super::*;

#[test]
fn names_are_found_exactly_or_by_one_whole_label() {
    let dir = TempDir::new().unwrap();
    let pairs: [(&str, &[&str], i64); 5] = [
        ("1", &["default.example.org", "192.0.2.1"], 80),
        ("2", &["*.example.org", "example.org"], 80),
        ("3", &["Mail.Example.ORG"], 80),
        ("4", &["*.sub.example.org"], 80),
        ("5", &["mail.example.org"], -1),
    ];
    let mut certificates = Vec::new();
    for (file, names, days) in pairs {
        lay(dir.path(), file, &pems(names, days));
        let path = |ending: &str| dir.path().join(format!("{file}.{ending}"));
        certificates.push(pair(&path("crt"), &path("key")));
    }
    let settings =
        settings::Tls { unknown_name: UnknownName::Refuse, ..settings::Tls::with(certificates) };
    let mut store = Store::new(&settings);
    store.load(at(NOW)).unwrap();
    let leaf = |file: &str| certificate::read_chain(&dir.path().join(file)).unwrap().remove(0);
    use names::Match;
    let table = [
        (None, Match::None, true, "1.crt"),
        (Some("default.example.org"), Match::Exact, true, "1.crt"),
        (Some("DEFAULT.example.org."), Match::Exact, true, "1.crt"),
        (Some("mail.example.org"), Match::Exact, true, "3.crt"), // the fifth has expired
        (Some("other.example.org"), Match::Wildcard, true, "2.crt"),
        (Some("example.org"), Match::Exact, true, "2.crt"),
        (Some("a.b.example.org"), Match::Unknown, false, "1.crt"),
        (Some("a.sub.example.org"), Match::Wildcard, true, "4.crt"),
        (Some("sub.example.org"), Match::Wildcard, true, "2.crt"),
        (Some("*.example.org"), Match::Wildcard, true, "2.crt"),
        (Some("org"), Match::Unknown, false, "1.crt"),
        (Some(".example.org"), Match::Wildcard, true, "2.crt"),
        (Some("192.0.2.1"), Match::Unknown, false, "1.crt"),
        (Some(""), Match::Unknown, false, "1.crt"),
    ];
    for (name, found, admitted, file) in table {
        let asked = name.map_or(names::Asked::Nobody, names::Asked::Host);
        assert_eq!(store.names().admit(asked), (found, admitted), "{name:?}");
        if found != Match::Unknown {
            let served = name.map_or_else(|| store.look_up_default(), |name| store.look_up(name));
            assert_eq!(served.cert[0], leaf(file), "{name:?}");
        }
    }
    assert_eq!(store.names().admit(names::Asked::NoHost), (Match::Unknown, false));
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
    let config = config(&tls(None, Some(dir.path())));
    let all = rustls::ALL_VERSIONS;
    let (server, _) = handshake(&config, &client(&[], all)).unwrap();
    assert_eq!(server.alpn_protocol(), None);
    let (server, _) = handshake(&config, &client(&["http/1.1", "imap"], all)).unwrap();
    assert_eq!(server.alpn_protocol(), Some(&b"imap"[..]));
    let refused = handshake(&config, &client(&["http/1.1"], all)).unwrap_err();
    assert_eq!(refused, rustls::Error::NoApplicationProtocol);
}

fn config(settings: &settings::Tls) -> Arc<ServerConfig> {
    let mut store = Store::new(settings);
    store.load(at(NOW)).unwrap();
    Configured::new(settings, store.names(), None, at(NOW)).unwrap().1.config.load().usual.clone()
}

#[test]
fn versions_group_and_tickets_are_as_promised() {
    let dir = TempDir::new().unwrap();
    let mut settings = tls(None, Some(dir.path()));
    let mut store = Store::new(&settings);
    store.load(at(NOW)).unwrap();
    let (_, serving, _) = Configured::new(&settings, store.names(), None, at(NOW)).unwrap();
    let config = serving.config.load().usual.clone();
    for (version, named) in [
        (&rustls::version::TLS13, ProtocolVersion::TLSv1_3),
        (&rustls::version::TLS12, ProtocolVersion::TLSv1_2),
    ] {
        let client = client(&["imap"], &[version]);
        let (server, _) = handshake(&config, &client).unwrap();
        assert_eq!(server.protocol_version(), Some(named));
        if named == ProtocolVersion::TLSv1_3 {
            let group = server.negotiated_key_exchange_group().unwrap().name();
            assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
        }
        store.look(at(NOW), true);
        let (server, _) = handshake(&config, &client).unwrap();
        assert_eq!(server.handshake_kind(), Some(HandshakeKind::Resumed), "across a reload");
    }
    settings.min_version = MinVersion::Tls13;
    let strict = self::config(&settings);
    assert!(handshake(&strict, &client(&[], &[&rustls::version::TLS12])).is_err());
    assert_eq!(strict.max_early_data_size, 0);
}

fn named(wanted: &str) -> rustls::SupportedCipherSuite {
    crate::crypto::suites().into_iter().find(|(name, _)| *name == wanted).expect(wanted).1
}

#[test]
fn suites_that_go_with_no_certificate_are_a_warning() {
    let dir = TempDir::new().unwrap();
    lay(dir.path(), "a", &pems(&["a.example"], 80));
    let tls13 = named("TLS_AES_128_GCM_SHA256");
    let with = |suite: &str, min_version| settings::Tls {
        cipher_suites: vec![tls13, named(suite)],
        min_version,
        ..in_dir(dir.path())
    };
    let warned = |settings: &settings::Tls| {
        messages(settings).iter().any(|m| m.starts_with("Warning: no cipher suite for TLS 1.2"))
    };
    let (ecdsa, rsa) =
        ("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256");
    assert!(warned(&with(rsa, MinVersion::Tls12)));
    assert!(!warned(&with(ecdsa, MinVersion::Tls12)));
    assert!(!warned(&with(rsa, MinVersion::Tls13)));
}

#[test]
fn suites_and_groups_are_spoken_as_configured() {
    let dir = TempDir::new().unwrap();
    let suites =
        [named("TLS_CHACHA20_POLY1305_SHA256"), named("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256")];
    let group =
        crate::crypto::groups().into_iter().find(|(name, _)| *name == "secp384r1").unwrap().1;
    let settings = settings::Tls {
        cipher_suites: suites.to_vec(),
        groups: vec![group],
        ..tls(None, Some(dir.path()))
    };
    let config = config(&settings);
    for (version, suite) in
        [(&rustls::version::TLS13, suites[0]), (&rustls::version::TLS12, suites[1])]
    {
        let (server, _) = handshake(&config, &client(&[], &[version])).unwrap();
        assert_eq!(server.negotiated_cipher_suite(), Some(suite));
        let group = server.negotiated_key_exchange_group().unwrap().name();
        assert_eq!(group, rustls::NamedGroup::secp384r1);
    }
}
