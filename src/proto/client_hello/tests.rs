use std::sync::Arc;

use proptest::prelude::*;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::Acceptor;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme};

use super::*;

/// What a hello says, in a form that both readers can be brought to.
#[derive(Debug, Eq, PartialEq)]
struct Seen {
    name: Option<String>,
    alpn: Vec<Vec<u8>>,
    suites: Vec<u16>,
    groups: Vec<u16>,
    schemes: Vec<u16>,
}

impl From<&ClientHello<'_>> for Seen {
    fn from(hello: &ClientHello<'_>) -> Self {
        Self {
            name: match &hello.name {
                Name::Host(name) => Some(name.as_ref().to_ascii_lowercase()),
                _ => None,
            },
            alpn: hello.alpn().map(<[u8]>::to_vec).collect(),
            suites: hello.suites().collect(),
            groups: hello.groups().collect(),
            schemes: hello.schemes().collect(),
        }
    }
}

/// rustls' own reading; `None` if it refuses, or waits for more.
fn by_rustls(input: &[u8]) -> Option<Seen> {
    let mut acceptor = Acceptor::default();
    let mut rest = input;
    while !rest.is_empty() && acceptor.read_tls(&mut rest).ok()? > 0 {}
    let accepted = acceptor.accept().ok()??;
    let hello = accepted.client_hello();
    let numbers = |list: &[SignatureScheme]| list.iter().copied().map(u16::from).collect();
    Some(Seen {
        name: hello.server_name().map(str::to_owned),
        alpn: hello.alpn().map_or(Vec::new(), |list| list.map(<[u8]>::to_vec).collect()),
        suites: hello.cipher_suites().iter().copied().map(u16::from).collect(),
        groups: hello.named_groups().unwrap_or(&[]).iter().copied().map(u16::from).collect(),
        schemes: numbers(hello.signature_schemes()),
    })
}

/// Whatever a client is shown, it offers exactly these signature schemes.
#[derive(Debug)]
struct Offers(Vec<SignatureScheme>);

impl ServerCertVerifier for Offers {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}

/// The hello of a real client.
#[derive(Clone, Debug)]
struct Offer {
    versions: Vec<&'static rustls::SupportedProtocolVersion>,
    suites: Vec<usize>,
    groups: Vec<usize>,
    schemes: Vec<SignatureScheme>,
    alpn: Vec<Vec<u8>>,
    name: String,
}

impl Default for Offer {
    fn default() -> Self {
        Self {
            versions: rustls::ALL_VERSIONS.to_vec(),
            suites: (0..9).collect(),
            groups: (0..8).collect(),
            schemes: vec![SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::RSA_PSS_SHA256],
            alpn: Vec::new(),
            name: "mail.example.org".to_owned(),
        }
    }
}

impl Offer {
    /// The handshake message, without records.
    fn message(&self) -> Option<Vec<u8>> {
        let all = aws_lc_rs::default_provider();
        let chosen = |index: &usize| all.cipher_suites.get(*index).copied();
        let group = |index: &usize| all.kx_groups.get(*index).copied();
        let provider = CryptoProvider {
            cipher_suites: self.suites.iter().filter_map(chosen).collect(),
            kx_groups: self.groups.iter().filter_map(group).collect(),
            ..all.clone()
        };
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&self.versions)
            .ok()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Offers(self.schemes.clone())))
            .with_no_client_auth();
        config.alpn_protocols.clone_from(&self.alpn);
        let name = rustls::pki_types::ServerName::try_from(self.name.clone()).ok()?;
        let mut client = ClientConnection::new(Arc::new(config), name).ok()?;
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).ok()?;
        Some(bytes[HEADER..].to_vec())
    }
}

/// `message` in records of such lengths; the last record takes the rest.
fn records(message: &[u8], lengths: &[usize]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = message;
    for &length in lengths.iter().chain([&usize::MAX]) {
        let (fragment, after) = rest.split_at(length.min(rest.len()));
        rest = after;
        if !fragment.is_empty() {
            out.extend([HANDSHAKE, 3, 1]);
            out.extend(
                u16::try_from(fragment.len()).expect("a test's hello is short").to_be_bytes(),
            );
            out.extend(fragment);
        }
    }
    out
}

/// Reads `input` as it grows by the cuts given; how it ended, and at how many bytes.
fn read(
    input: &[u8],
    cuts: impl IntoIterator<Item = usize>,
) -> (Result<(Version, Seen), String>, usize) {
    let mut reader = Reader::default();
    for end in cuts.into_iter().chain([input.len()]) {
        match reader.look(&input[..end]) {
            Look::More => {}
            Look::Hello(hello) => return (Ok((hello.version, Seen::from(&hello))), end),
            other => return (Err(format!("{other:?}")), end),
        }
    }
    (Err("More".to_owned()), input.len())
}

#[test]
fn a_hello_is_the_same_however_it_is_cut() {
    let offer = Offer { alpn: vec![b"h2".to_vec(), b"imap".to_vec()], ..Offer::default() };
    let message = offer.message().expect("a possible offer");
    for lengths in [&[][..], &[1], &[3], &[4, 5], &[1; 64], &[700, 1]] {
        let input = records(&message, lengths);
        let whole = read(&input, []);
        let (version, seen) = whole.0.as_ref().expect("a hello");
        assert_eq!(*version, Version::Tls13);
        assert_eq!(Some(seen), by_rustls(&input).as_ref());
        assert_eq!(seen.name.as_deref(), Some("mail.example.org"));
        assert_eq!(read(&input, 0..input.len()), whole, "byte by byte, records {lengths:?}");
        for cut in 0..input.len() {
            assert_eq!(read(&input, [cut]), whole, "cut at {cut}, records {lengths:?}");
        }
        // What follows belongs to somebody else.
        let more = [&input[..], b"\x16\x03\x03\x00\x01\x00"].concat();
        assert_eq!(read(&more, []).0, whole.0);
    }
}

/// `message` with one more extension.
fn with_extension(message: &[u8], kind: u16, data: &[u8]) -> Vec<u8> {
    let mut hello = Cursor(&message[mask::MESSAGE + 2 + 32..]);
    let _ = (hello.list_8(), hello.list_16(), hello.list_8());
    let (front, old) = message.split_at(message.len() - hello.0.len());
    let old = Cursor(old).list_16().expect("extensions");
    let length = |bytes: &[u8]| u16::try_from(bytes.len()).expect("short").to_be_bytes();
    let new = [old, &kind.to_be_bytes(), &length(data), data].concat();
    let mut message = [front, &length(&new), &new].concat();
    let body = u32::try_from(message.len() - mask::MESSAGE).expect("short").to_be_bytes();
    message[1..mask::MESSAGE].copy_from_slice(&body[1..]);
    message
}

/// A real hello that names the server so.
fn naming(name: &[u8]) -> Vec<u8> {
    let nameless = Offer { name: "192.0.2.7".to_owned(), ..Offer::default() };
    let length = u16::try_from(name.len()).expect("short");
    let list = [&(length + 3).to_be_bytes()[..], &[0], &length.to_be_bytes(), name].concat();
    with_extension(&nameless.message().expect("a possible offer"), 0, &list)
}

/// What rustls is given in place of `message` in such records, and what `message` says.
fn masked(message: &[u8], lengths: &[usize]) -> (Vec<u8>, Option<Seen>) {
    let mut input = records(message, lengths);
    let mut reader = Reader::default();
    let Look::Hello(hello) = reader.look(&input) else { panic!("no hello") };
    let (at, seen) = (hello.to_mask().expect("a name to be masked"), Seen::from(&hello));
    mask(&mut input, at);
    (input, Some(seen))
}

#[test]
fn a_name_that_is_no_dns_name_is_masked_for_rustls_and_for_nobody_else() {
    let long = b"mail".repeat(2_000);
    for name in [
        &b"mail.example.org:993"[..],
        "m\u{fc}ller.example.org".as_bytes(),
        b"[2001:db8::1]",
        b"fe80::1%eth0",
        b"mail.example.org ",
        b"user@example.org",
        b"-mail.example.org",
        b"*.example.org",
        b"mail..example.org",
        b"\0\xff\r\n",
        b"",
        &long,
    ] {
        let message = naming(name);
        assert_eq!(by_rustls(&records(&message, &[])), None, "so it is needed");
        for lengths in [&[][..], &[1; 64], &[700, 1, 2]] {
            let (input, seen) = masked(&message, lengths);
            assert_eq!(by_rustls(&input), seen, "{}", name.escape_ascii());
            let mut joined = Vec::new();
            let mut rest = Cursor(&input);
            while rest.take(3).is_some() {
                joined.extend(rest.list_16().expect("a record"));
            }
            // The hash is that of the client's bytes, cut off as for a binder, or with more behind it.
            let at = find(&joined).expect("it is masked");
            assert_eq!(find(&joined[..at + 2]), Some(at));
            assert_eq!(find(&joined[..at + 1]), None);
            assert_eq!(find(&[&joined[..], b"\x0b\0\0\x01\0"].concat()), Some(at));
            joined[at..at + 2].copy_from_slice(&SERVER_NAME);
            assert_eq!(joined, message);
            assert_eq!(find(&message), None);
        }
    }
}

#[test]
fn what_rustls_takes_and_what_could_be_mistaken_is_not_masked() {
    let is_masked = |message: &[u8]| {
        let (input, mut reader) = (records(message, &[]), Reader::default());
        match reader.look(&input) {
            Look::Hello(hello) => hello.to_mask().is_some(),
            _ => false,
        }
    };
    for name in [&b"mail.example.org"[..], b"Mail_1.example.org.", b"localhost", b"192.0.2.1"] {
        assert!(!is_masked(&naming(name)), "{}", name.escape_ascii());
    }
    let odd = naming(b"mail.example.org:993");
    assert!(is_masked(&odd));
    assert!(!is_masked(&with_extension(&odd, mask::MASKED, b"its own")));
    assert!(!is_masked(&with_extension(&naming(b"a"), mask::MASKED, b"its own")));
}

#[test]
fn what_we_speak_is_what_rustls_speaks() {
    let provider = aws_lc_rs::default_provider();
    let suites: Vec<u16> = provider.cipher_suites.iter().map(|s| s.suite().into()).collect();
    let mut ours = [SUITES_13, SUITES_ECDSA, SUITES_RSA].concat();
    for suite in &suites {
        assert!(ours.contains(suite), "{suite:04x}");
    }
    ours.retain(|suite| !suites.contains(suite));
    assert!(ours.is_empty(), "{ours:04x?}");
    // What a key of each kind signs with.
    for (algorithm, ours) in [
        (&rcgen::PKCS_ECDSA_P256_SHA256, SCHEMES_ECDSA),
        (&rcgen::PKCS_ECDSA_P384_SHA384, SCHEMES_ECDSA),
        (&rcgen::PKCS_ECDSA_P521_SHA512, SCHEMES_ECDSA),
    ] {
        let key = rcgen::KeyPair::generate_for(algorithm).expect("aws-lc-rs makes it");
        let der = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).expect("PKCS 8");
        let signer = provider.key_provider.load_private_key(der).expect("a key");
        let certified = CertifiedKey::new(Vec::new(), signer);
        let possible: Vec<_> = ours.iter().map(|&scheme| SignatureScheme::from(scheme)).collect();
        assert!(certified.key.choose_scheme(&possible).is_some(), "{algorithm:?}");
    }
}

/// `versions` and `schemes` as two bytes each, `suites` too; without extensions if both are `None`.
fn handmade(
    legacy: u16,
    versions: Option<&[u16]>,
    suites: &[u16],
    schemes: Option<&[u16]>,
) -> Vec<u8> {
    let list = |numbers: &[u16]| numbers.iter().flat_map(|n| n.to_be_bytes()).collect::<Vec<u8>>();
    let with_16 = |bytes: Vec<u8>| {
        [&u16::try_from(bytes.len()).expect("short").to_be_bytes()[..], &bytes].concat()
    };
    let with_8 =
        |bytes: Vec<u8>| [&[u8::try_from(bytes.len()).expect("short")][..], &bytes].concat();
    let mut extensions = Vec::new();
    if let Some(versions) = versions {
        extensions.extend(43u16.to_be_bytes());
        extensions.extend(with_16(with_8(list(versions))));
    }
    if let Some(schemes) = schemes {
        extensions.extend(13u16.to_be_bytes());
        extensions.extend(with_16(with_16(list(schemes))));
    }
    let mut body = legacy.to_be_bytes().to_vec();
    body.extend([7; 32]);
    body.extend([0]);
    body.extend(with_16(list(suites)));
    body.extend([1, 0]);
    if versions.is_some() || schemes.is_some() {
        body.extend(with_16(extensions));
    }
    let length = u32::try_from(body.len()).expect("short").to_be_bytes();
    records(&[&[CLIENT_HELLO][..], &length[1..], &body].concat(), &[])
}

#[test]
fn the_highest_version_counts() {
    for (legacy, versions, want) in [
        (0x0300, None, Version::Ssl3),
        (0x0301, None, Version::Tls10),
        (0x0302, None, Version::Tls11),
        (0x0303, None, Version::Tls12),
        (0x0304, None, Version::Tls12),
        (0x0399, None, Version::Tls12),
        (0x0002, None, Version::Ssl2),
        (0x0000, None, Version::Other),
        (0x0303, Some(&[0x0304, 0x0303][..]), Version::Tls13),
        (0x0303, Some(&[0x0303, 0x0304]), Version::Tls13),
        (0x0301, Some(&[0x0a0a, 0x0304]), Version::Tls13),
        (0x0303, Some(&[0x0302, 0x0301]), Version::Tls11),
        (0x0303, Some(&[0x7f1c]), Version::Other),
        (0x0303, Some(&[]), Version::Other),
    ] {
        let input = handmade(legacy, versions, &[0xc02b], None);
        let (read, _) = read(&input, []);
        assert_eq!(read.map(|(version, _)| version), Ok(want), "{legacy:04x} {versions:04x?}");
    }
}

#[test]
fn the_key_that_would_have_worked_is_told() {
    let (v12, v13) = (&[0x0303][..], &[0x0304, 0x0303][..]);
    for (versions, suites, schemes, ecdsa, rsa) in [
        // Windows 8's Schannel with an RSA certificate: its RSA suites are CBC.
        (v12, &[0xc02b, 0xc013, 0x009c][..], &[0x0403, 0x0401][..], true, false),
        (v12, &[0xc02f, 0xc030], &[0x0401], false, true),
        (v12, &[0xc02f], &[0x0804], false, true),
        (v12, &[0xc02f], &[0x0403], false, false),
        (v12, &[0xc02b], &[0x0401], false, false),
        (v12, &[0x009c, 0x002f, 0xc013], &[0x0403, 0x0401], false, false),
        (v12, &[0x1301], &[0x0403, 0x0804], false, false),
        (v13, &[0x1301], &[0x0403], true, false),
        (v13, &[0x1302], &[0x0804], false, true),
        (v13, &[0x1302], &[0x0401], false, false),
        // It would get TLS 1.3, to which its suites and schemes of 1.2 are no use.
        (v13, &[0x1303, 0xcca8], &[0x0401, 0x0503], true, false),
        (v13, &[0xc02f, 0xc02b], &[0x0403, 0x0401, 0x0804], false, false),
        (&[0x0304], &[0xc02f, 0xc030], &[0x0804, 0x0401], false, false),
        (&[0x0304], &[0xc02b], &[0x0403], false, false),
    ] {
        let input = handmade(0x0303, Some(versions), suites, Some(schemes));
        let mut reader = Reader::default();
        let Look::Hello(hello) = reader.look(&input) else { panic!("no hello: {suites:04x?}") };
        let took = (hello.takes(Key::Ecdsa, |_| true), hello.takes(Key::Rsa, |_| true));
        assert_eq!(took, (ecdsa, rsa), "{versions:04x?} {suites:04x?} {schemes:04x?}");
        assert!(!hello.takes(Key::Ecdsa, |_| false) && !hello.takes(Key::Rsa, |_| false));
    }
}

#[test]
fn what_is_no_tls_is_told_by_its_first_bytes() {
    let ssl2 = |version| Some(Foreign::Ssl2(version));
    for (input, want) in [
        (&b"GET / HTTP/1.1\r\n"[..], Some(Foreign::Http)),
        (b"PRI * HTTP/2.0\r\n", Some(Foreign::Http)),
        (b"GETQUOTA x\r\n", Some(Foreign::Imap)),
        (b"a1 CAPABILITY\r\n", Some(Foreign::Imap)),
        (b"PUT", None),
        (b"\r\na1 CAPABILITY\r\n", Some(Foreign::Imap)),
        (b"\r\n\r\n\r\n", Some(Foreign::Imap)),
        (b"\r\n\r\n", None),
        (b"\r\n\r\n\0\r\nQUIT\n\x21", Some(Foreign::ProxyHeader)),
        (b"PROXY TCP4", Some(Foreign::ProxyHeader)),
        (b"PROXY", None),
        (b"PROXIES", Some(Foreign::Imap)),
        (b"\x80\x2e\x01\x00\x02\x00\x15", ssl2(Version::Ssl2)),
        (b"\x80\x2e\x01\x03\x01\x00\x15", ssl2(Version::Tls10)),
        (b"\x80\x2e\x01\x03\x03\x00\x15", ssl2(Version::Tls12)),
        (b"\x80\x2e\x01", None),
        (b"\x80\x2e\x02\x03\x01", Some(Foreign::Other)),
        (b"\x80\x2e\x01\x04", Some(Foreign::Other)),
        (b"\xff\xff\xff\xff", Some(Foreign::Other)),
        (b"\x16\x05", Some(Foreign::Other)),
        (b"\0\0\0", Some(Foreign::Other)),
        (b"\x16", None),
        (b"", None),
    ] {
        let name = input.escape_ascii();
        for cuts in [Vec::new(), (0..input.len()).collect()] {
            let (read, _) = read(input, cuts);
            let want = want.map_or("More".to_owned(), |f| format!("{:?}", Look::Foreign(f)));
            assert_eq!(read, Err(want), "{name}");
        }
    }
}

#[test]
fn what_is_no_hello_is_left_to_rustls() {
    for bad in [
        &b"\x15\x03\x01\x00\x02\x02\x00"[..],
        b"\x16\x03\x01\x00\x00",
        b"\x16\x03\x01\x40\x01",
        b"\x16\x03\x01\x00\x01\x02",
        b"\x16\x03\x01\x00\x04\x01\x02\x00\x00",
        b"\x16\x03\x01\x00\x01\x01\x17\x03\x03\x00\x01",
        b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00",
    ] {
        let name = bad.escape_ascii().to_string();
        assert_eq!(read(bad, []).0, Err("Unreadable".to_owned()), "{name}");
        assert_eq!(read(bad, 0..bad.len()).0, Err("Unreadable".to_owned()), "{name}");
    }
    // A hello that never ends, in small records.
    let endless = b"\x16\x03\x01\x00\x04\x01\x00\xff\xff".repeat(MAX_HELLO / 9 + 1);
    assert_eq!(read(&endless, []).0, Err("Endless".to_owned()));
}

fn offers() -> impl Strategy<Value = Offer> {
    let schemes = prop::sample::subsequence(
        [0x0403, 0x0503, 0x0603, 0x0804, 0x0805, 0x0806, 0x0401, 0x0501, 0x0601, 0x0807].to_vec(),
        1..10,
    );
    let versions = prop::sample::subsequence(rustls::ALL_VERSIONS.to_vec(), 1..=2);
    let suites = prop::sample::subsequence((0..9).collect::<Vec<_>>(), 1..9);
    let groups = prop::sample::subsequence((0..4).collect::<Vec<_>>(), 1..4);
    let alpn = prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 0..4);
    let name = "[A-Za-z0-9]{1,60}(\\.[a-z]{1,20}){0,3}|192\\.0\\.2\\.7";
    (versions, suites, groups, schemes, alpn, name).prop_map(
        |(versions, suites, groups, schemes, alpn, name)| Offer {
            versions,
            suites,
            groups,
            schemes: schemes.into_iter().map(SignatureScheme::from).collect(),
            alpn,
            name,
        },
    )
}

proptest! {
    /// Real hellos, in any records and with bytes that a line or a liar changed: what rustls takes is read the same.
    #[test]
    fn whatever_rustls_takes_is_read_the_same(
        offer in offers(),
        lengths in prop::collection::vec(1usize..400, 0..8),
        changed in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        cut in any::<prop::sample::Index>(),
    ) {
        let Some(message) = offer.message() else { return Ok(()) };
        let mut input = records(&message, &lengths);
        // The first three suites are those of TLS 1.3; without one of them it is not offered.
        let tls13 = offer.versions.contains(&&rustls::version::TLS13) && offer.suites[0] < 3;
        let highest = if tls13 { Version::Tls13 } else { Version::Tls12 };
        let (read_whole, _) = read(&input, []);
        prop_assert_eq!(read_whole.map(|(version, _)| version), Ok(highest));
        for (index, byte) in changed {
            let at = index.index(input.len());
            input[at] = byte;
        }
        let rustls = by_rustls(&input);
        for cuts in [vec![], vec![cut.index(input.len())], (0..input.len()).collect()] {
            let (ours, end) = read(&input, cuts);
            if let Some(rustls) = &rustls {
                prop_assert_eq!(ours.as_ref().map(|(_, seen)| seen), Ok(rustls), "at {}", end);
            }
            // Nothing is held back that rustls could already judge.
            if ours == Err("More".to_owned()) {
                prop_assert!(rustls.is_none());
            }
        }
    }

    #[test]
    fn noise_is_read_the_same_in_every_cut(
        head in prop_oneof![Just(&b""[..]), Just(&b"\x16\x03\x01"[..]), Just(&b"\x16\x03\x01\x00\x20\x01\x00"[..])],
        noise in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let input = [head, &noise].concat();
        let whole = read(&input, []).0;
        let bytewise = read(&input, 0..input.len()).0;
        prop_assert_eq!(whole, bytewise);
        let _ = find(&input);
    }
}
