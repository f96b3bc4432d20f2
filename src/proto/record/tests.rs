//! Against rustls' own client, which seals and opens by code of its own.

use std::io::{Read as _, Write as _};
use std::sync::Arc;

use rustls::client::ClientConnection;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::ConnectionState;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedCipherSuite};

use super::*;

/// A client and our side behind their handshake, and what the client has not been given yet.
struct Pair {
    client: ClientConnection,
    records: Records,
    to_client: Vec<u8>,
}

impl Pair {
    fn new(suite: SupportedCipherSuite) -> Self {
        let mut provider = aws_lc_rs::default_provider();
        provider.cipher_suites = vec![suite];
        let provider = Arc::new(provider);
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[suite.version()])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.enable_secret_extraction = true;
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[suite.version()])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        server.enable_secret_extraction = true;
        server.ticketer = aws_lc_rs::Ticketer::new().unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
        client.set_buffer_limit(None);
        let mut server = UnbufferedServerConnection::new(Arc::new(server)).unwrap();
        let mut to_client = Vec::new();
        while client.is_handshaking() || server.is_handshaking() || server.wants_write() {
            let mut to_server = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut to_server).unwrap();
            }
            let mut taken = 0;
            loop {
                let status = server.process_tls_records(&mut to_server[taken..]);
                taken += status.discard;
                match status.state.unwrap() {
                    ConnectionState::EncodeTlsData(mut data) => {
                        let mut room = vec![0; 32 * 1024];
                        let n = data.encode(&mut room).unwrap();
                        to_client.extend_from_slice(&room[..n]);
                    }
                    ConnectionState::TransmitTlsData(data) => data.done(),
                    _ => break,
                }
            }
            give(&mut client, &mut to_client).unwrap();
        }
        Self { client, records: Records::new(server).unwrap(), to_client }
    }

    /// What the client has to send, as it goes over the wire.
    fn client_sends(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.client.wants_write() {
            self.client.write_tls(&mut bytes).unwrap();
        }
        bytes
    }

    fn client_says(&mut self, text: &[u8]) -> Vec<u8> {
        self.client.writer().write_all(text).unwrap();
        self.client_sends()
    }

    fn open(&mut self, mut input: Vec<u8>) -> (Result<Opened, Error>, Vec<u8>) {
        let (mut plain, mut out) = (Vec::new(), Vec::new());
        let opened = self.records.open(&mut input, &mut plain, &mut out);
        assert!(input.is_empty(), "{} bytes are left", input.len());
        self.to_client.extend(out.concat());
        (opened, plain)
    }

    /// What the client reads of what we seal.
    fn we_say(&mut self, text: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        self.records.seal(text, &mut out).unwrap();
        self.to_client.extend(out.concat());
        self.client_reads().unwrap()
    }

    fn client_reads(&mut self) -> Result<Vec<u8>, rustls::Error> {
        give(&mut self.client, &mut self.to_client)
    }

    /// The client's keys, to seal what no client of rustls' would.
    fn forger(self) -> Forger {
        let suite = self.records.suite;
        let secrets = self.client.dangerous_extract_secrets().unwrap();
        let sequence = secrets.tx.0;
        Forger {
            encrypter: encrypter(suite, secrets.tx).unwrap(),
            decrypter: decrypter(suite, secrets.rx.1).unwrap(),
            opened: secrets.rx.0,
            sequence,
            records: self.records,
        }
    }
}

struct Forger {
    encrypter: Box<dyn MessageEncrypter>,
    decrypter: Box<dyn MessageDecrypter>,
    sequence: u64,
    opened: u64,
    records: Records,
}

impl Forger {
    fn seal(&mut self, content: ContentType, payload: &[u8]) -> Vec<u8> {
        let record = self.encrypter.encrypt(message(content, payload), self.sequence).unwrap();
        self.sequence += 1;
        record.encode()
    }

    /// What we make of one record, and what we answer: content and payload of each record.
    fn send(&mut self, content: ContentType, payload: &[u8]) -> (Result<Opened, Error>, Answers) {
        let record = self.seal(content, payload);
        self.send_raw(record)
    }

    fn send_raw(&mut self, mut record: Vec<u8>) -> (Result<Opened, Error>, Answers) {
        let mut out = Vec::new();
        let opened = self.records.open(&mut record, &mut Vec::new(), &mut out);
        let answers = out.into_iter().map(|mut record| {
            let content = ContentType::from(record[0]);
            let version = ProtocolVersion::TLSv1_2;
            let sealed = InboundOpaqueMessage::new(content, version, &mut record[HEADER..]);
            let plain = self.decrypter.decrypt(sealed, self.opened).unwrap();
            self.opened += 1;
            (plain.typ, plain.payload.to_vec())
        });
        (opened, answers.collect())
    }
}

type Answers = Vec<(ContentType, Vec<u8>)>;

/// Gives the client everything, and returns what it read.
fn give(client: &mut ClientConnection, bytes: &mut Vec<u8>) -> Result<Vec<u8>, rustls::Error> {
    let mut read = Vec::new();
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        client.read_tls(&mut rest).unwrap();
        client.process_new_packets()?;
        let _ = client.reader().read_to_end(&mut read); // "would block" is the end of it
    }
    bytes.clear();
    Ok(read)
}

fn suites() -> Vec<SupportedCipherSuite> {
    aws_lc_rs::default_provider().cipher_suites.into_iter().filter(|suite| !is_rsa(suite)).collect()
}

/// The certificate here is ECDSA.
fn is_rsa(suite: &SupportedCipherSuite) -> bool {
    suite.suite().as_str().is_some_and(|name| name.contains("_RSA_"))
}

fn tls13() -> Pair {
    Pair::new(aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384)
}

fn tls12() -> Pair {
    Pair::new(aws_lc_rs::cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256)
}

#[test]
fn both_directions_work_with_every_suite() {
    for suite in suites() {
        let mut pair = Pair::new(suite);
        for size in [1, 2, 16_383, 16_384, 16_385, 200_000] {
            let text: Vec<u8> = (0..size).map(|n| n as u8).collect();
            let bytes = pair.client_says(&text);
            assert_eq!(pair.open(bytes), (Ok(Opened::Open), text.clone()), "{suite:?}, {size}");
            assert_eq!(pair.we_say(&text), text, "{suite:?}, {size}");
        }
        pair.client.send_close_notify();
        let bytes = pair.client_sends();
        assert_eq!(pair.open(bytes), (Ok(Opened::Closed), Vec::new()));
        let mut out = Vec::new();
        pair.records.close_notify(&mut out).unwrap();
        pair.client.read_tls(&mut out.concat().as_slice()).unwrap();
        assert!(pair.client.process_new_packets().unwrap().peer_has_closed());
    }
}

#[test]
fn records_may_be_cut_anywhere() {
    let mut pair = tls13();
    let mut bytes = pair.client_says(b"first");
    bytes.extend(pair.client_says(b"second"));
    let (mut input, mut plain, mut out) = (Vec::new(), Vec::new(), Vec::new());
    for (n, byte) in bytes.iter().enumerate() {
        input.push(*byte);
        assert_eq!(pair.records.open(&mut input, &mut plain, &mut out), Ok(Opened::Open));
        assert!(plain == b"" || plain == b"first" || n + 1 == bytes.len(), "{n}");
    }
    assert_eq!(plain, b"firstsecond");
    assert!(input.is_empty() && out.is_empty());
}

#[test]
fn keys_are_updated_by_either_side() {
    let mut pair = tls13();
    for round in 0..5 {
        // rustls asks for ours as well.
        pair.client.refresh_traffic_keys().unwrap();
        let bytes = pair.client_says(b"new key");
        assert_eq!(pair.open(bytes), (Ok(Opened::Open), b"new key".to_vec()), "{round}");
        assert_eq!(pair.we_say(b"ours too"), b"ours too", "{round}");
    }
    // Close to the cipher's limit a key is replaced unasked; each update starts again from 0.
    pair.records.limit = pair.records.sealed + RESERVE;
    for round in 0..50 {
        assert_eq!(pair.we_say(b"under the limit"), b"under the limit", "{round}");
        assert!(pair.records.sealed < pair.records.limit, "{round}");
    }
}

#[test]
fn tls12_tells_in_time_that_its_keys_are_near_their_end() {
    let [mut old, mut new] = [tls12(), tls13()];
    for pair in [&mut old, &mut new] {
        pair.records.limit = pair.records.sealed + MARGIN + 1;
        assert!(!pair.records.are_worn());
        assert_eq!(pair.we_say(b"one more"), b"one more");
    }
    assert!(old.records.are_worn());
    assert_eq!(old.we_say(b"* BYE\r\n"), b"* BYE\r\n");
    assert!(!new.records.are_worn(), "it takes new ones");
    old.records.limit = u64::MAX; // as with ChaCha20-Poly1305
    assert!(!old.records.are_worn());
}

#[test]
fn tls12_ends_when_its_keys_are_used_up() {
    let mut pair = tls12();
    pair.records.limit = pair.records.sealed + RESERVE + 1;
    assert_eq!(pair.we_say(b"last"), b"last");
    assert_eq!(pair.records.seal(b"more", &mut Vec::new()), Err(Error::Exhausted));
    pair.records.close_notify(&mut Vec::new()).expect("room was kept for the end");
}

#[test]
fn whatever_was_tampered_with_ends_the_connection() {
    for mut pair in [tls13(), tls12()] {
        let mut bytes = pair.client_says(b"a LOGIN user password");
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        let (opened, plain) = pair.open(bytes);
        assert_eq!(opened, Err(Error::Broken(AlertDescription::BadRecordMac)));
        assert!(plain.is_empty());
        let told = pair.client_reads().unwrap_err();
        assert_eq!(told, rustls::Error::AlertReceived(AlertDescription::BadRecordMac));
    }
    // One record twice, and one left out.
    for mut pair in [tls13(), tls12()] {
        let bytes = pair.client_says(b"once");
        assert_eq!(pair.open(bytes.clone()).0, Ok(Opened::Open));
        assert_eq!(pair.open(bytes).0, Err(Error::Broken(AlertDescription::BadRecordMac)));
    }
}

#[test]
fn only_what_may_come_behind_a_handshake_is_taken() {
    use AlertDescription as Alert;
    const HANDSHAKE: ContentType = ContentType::Handshake;
    const ALERT: ContentType = ContentType::Alert;
    const FINISHED: u8 = 20;
    let broken = |alert| Err(Error::Broken(alert));
    let hello: &[u8] = &[CLIENT_HELLO, 0, 0, 2, 3, 3];
    let both = [
        (ALERT, &[ALERT_WARNING, 0][..], Ok(Opened::Closed)),
        (ALERT, &[ALERT_FATAL, 0], Ok(Opened::Closed)),
        (ALERT, &[ALERT_WARNING, 90], Ok(Opened::Open)),
        (ALERT, &[ALERT_FATAL, 48], Err(Error::Alert(Alert::UnknownCA))),
        (ALERT, &[ALERT_FATAL], broken(Alert::DecodeError)),
        (ALERT, &[ALERT_FATAL, 0, 0], broken(Alert::DecodeError)),
        (ALERT, &[], broken(Alert::UnexpectedMessage)),
        (HANDSHAKE, &[], broken(Alert::UnexpectedMessage)),
        (HANDSHAKE, &[FINISHED, 0, 0, 12], broken(Alert::UnexpectedMessage)),
        (ContentType::Heartbeat, &[1], broken(Alert::UnexpectedMessage)),
    ];
    let new = [
        (ALERT, &[ALERT_WARNING, 48][..], Err(Error::Alert(Alert::UnknownCA))),
        (HANDSHAKE, hello, broken(Alert::UnexpectedMessage)),
        (HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 2], broken(Alert::IllegalParameter)),
        (HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 255, 0], broken(Alert::IllegalParameter)),
        (HANDSHAKE, &[KEY_UPDATE, 0, 0, 0], broken(Alert::DecodeError)),
        (HANDSHAKE, &[KEY_UPDATE, 0, 0, 2, 0, 0], broken(Alert::DecodeError)),
        (HANDSHAKE, &[KEY_UPDATE, 1, 0, 1, 0], broken(Alert::DecodeError)),
        (HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 0, 0], broken(Alert::UnexpectedMessage)),
        (ContentType::ChangeCipherSpec, &[1], broken(Alert::UnexpectedMessage)),
    ];
    let old = [
        (ALERT, &[ALERT_WARNING, 48][..], Ok(Opened::Open)),
        (HANDSHAKE, hello, Ok(Opened::Open)),
        (HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 0], broken(Alert::UnexpectedMessage)),
        (ContentType::ChangeCipherSpec, &[1], broken(Alert::UnexpectedMessage)),
    ];
    let cases = both.iter().flat_map(|case| [(true, case), (false, case)]);
    let cases = cases.chain(new.iter().map(|case| (true, case)));
    for (is_tls13, (content, payload, expected)) in
        cases.chain(old.iter().map(|case| (false, case)))
    {
        let mut forger = if is_tls13 { tls13() } else { tls12() }.forger();
        let (opened, answers) = forger.send(*content, payload);
        assert_eq!(opened, *expected, "{content:?} {payload:?}");
        let fatal = |alert: Alert| vec![(ALERT, vec![ALERT_FATAL, alert.into()])];
        match opened {
            Err(Error::Broken(alert)) => assert_eq!(answers, fatal(alert)),
            Ok(_) if *payload == hello => {
                assert_eq!(answers, [(ALERT, vec![ALERT_WARNING, 100])]); // no_renegotiation
            }
            _ => assert_eq!(answers, []),
        }
    }
}

/// RFC 8446 §5.1: a message may be cut, and then nothing comes between its pieces.
#[test]
fn a_key_update_may_come_in_pieces_with_nothing_between_them() {
    const UPDATE: &[u8] = &[KEY_UPDATE, 0, 0, 1, 0];
    for cut in 1..UPDATE.len() {
        let (first, second) = UPDATE.split_at(cut);
        let mut forger = tls13().forger();
        assert_eq!(forger.send(ContentType::Handshake, first), (Ok(Opened::Open), Vec::new()));
        assert_eq!(forger.send(ContentType::Handshake, second), (Ok(Opened::Open), Vec::new()));
        assert_eq!(forger.records.opened, 0, "a new key, cut at {cut}");

        for (content, payload) in [
            (ContentType::ApplicationData, &b"data"[..]),
            (ContentType::ApplicationData, b""),
            (ContentType::Alert, &[ALERT_WARNING, 0]),
            (ContentType::Handshake, b""),
        ] {
            let mut forger = tls13().forger();
            forger.send(ContentType::Handshake, first).0.expect("a piece");
            let (opened, _) = forger.send(content, payload);
            let unexpected = AlertDescription::UnexpectedMessage;
            assert_eq!(opened, Err(Error::Broken(unexpected)), "{content:?} at {cut}");
        }
    }
    let mut forger = tls13().forger();
    for byte in UPDATE {
        assert_eq!(forger.send(ContentType::Handshake, &[*byte]).0, Ok(Opened::Open));
    }
    assert_eq!(forger.records.opened, 0);
}

#[test]
fn a_hello_in_pieces_is_declined_once_and_data_may_come_between() {
    let hello = [&[CLIENT_HELLO, 0, 1, 44][..], &[7; 300]].concat();
    let decline = vec![(ContentType::Alert, vec![ALERT_WARNING, 100])]; // no_renegotiation
    for cut in [1, 2, 3, 4, 5, 303] {
        let (first, second) = hello.split_at(cut);
        let mut forger = tls12().forger();
        for _ in 0..2 {
            assert_eq!(forger.send(ContentType::Handshake, first), (Ok(Opened::Open), Vec::new()));
            assert_eq!(forger.send(ContentType::ApplicationData, b"data").0, Ok(Opened::Open));
            let declined = forger.send(ContentType::Handshake, second);
            assert_eq!(declined, (Ok(Opened::Open), decline.clone()), "cut at {cut}");
        }
    }
    // However many stand in one record.
    let many = [CLIENT_HELLO, 0, 0, 0].repeat(100);
    assert_eq!(tls12().forger().send(ContentType::Handshake, &many).1, decline);
}

#[test]
fn records_without_data_are_limited_and_data_forgives() {
    for mut forger in [tls13().forger(), tls12().forger()] {
        for _ in 0..3 {
            for _ in 0..MAX_WITHOUT_DATA {
                assert_eq!(forger.send(ContentType::ApplicationData, b"").0, Ok(Opened::Open));
            }
            assert_eq!(forger.send(ContentType::ApplicationData, b"data").0, Ok(Opened::Open));
        }
        for _ in 0..MAX_WITHOUT_DATA {
            assert_eq!(forger.send(ContentType::Alert, &[ALERT_WARNING, 90]).0, Ok(Opened::Open));
        }
        let (opened, _) = forger.send(ContentType::ApplicationData, b"");
        assert_eq!(opened, Err(Error::Broken(AlertDescription::UnexpectedMessage)));
    }
}

#[test]
fn headers_are_checked_before_the_record_is_whole() {
    let overlong = |length: u16| [&[23, 3, 3][..], &length.to_be_bytes()].concat();
    let overflow = Err(Error::Broken(AlertDescription::RecordOverflow));
    assert_eq!(tls13().forger().send_raw(overlong(16_384 + 257)).0, overflow);
    assert_eq!(tls12().forger().send_raw(overlong(16_384 + 2049)).0, overflow);
    assert_eq!(tls13().forger().send_raw(overlong(16_384 + 256)).0, Ok(Opened::Open));
    let in_clear = tls13().forger().send_raw(vec![21, 3, 3, 0, 2, 1, 0]);
    assert_eq!(in_clear.0, Err(Error::Broken(AlertDescription::UnexpectedMessage)));
}
