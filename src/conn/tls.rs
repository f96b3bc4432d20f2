//! The handshake: from a socket to a [`Client`].
//!
//! The first bytes are looked at before: plaintext IMAP gets one readable BYE, HTTP a 400 page.
//! Limits: `timeouts.handshake` for all of it, [`MAX_HELLO`] bytes before the ClientHello is whole.
//! Not here: which certificate and versions are offered (`crate::tls`), and bytes after the handshake
//! ([`super::client`]).

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::server::{Acceptor, ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, InsufficientSizeError, UnbufferedStatus,
};
use rustls::{
    AlertDescription, CipherSuite, HandshakeKind, NamedGroup, PeerIncompatible, ProtocolVersion,
    ServerConfig,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::client::{Client, linger};
use super::close::Reason;
use super::socket::Unsent;
use crate::proto::record::Records;
use crate::tls::client_auth::{Identity, Refusal};

/// A ClientHello may be this long.
const MAX_HELLO: usize = 64 * 1024;
/// What TLS adds to a record at most, with room to spare (RFC 8446 §5.2: 256 bytes).
const RECORD_OVERHEAD: usize = 256;
const MAX_RECORD: usize = 16 * 1024;

thread_local! {
    static TO_SOCKET: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Why a handshake failed: the label `reason`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, strum::IntoStaticStr, strum::VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Failure {
    NotTls,
    Timeout,
    /// The client closed the connection, or it broke.
    Closed,
    /// Only versions older than `tls.min_version`.
    NoCommonVersion,
    NoCommonSuite,
    /// A list of foreign protocols (RFC 7301 §3.2).
    ForeignAlpn,
    /// The client refused our certificate by an alert.
    CertificateRefused,
    /// It sent another alert.
    AlertReceived,
    /// What it sent is against the protocol.
    Malformed,
    /// The client's certificate: [`Refusal`].
    ClientCertificateMissing,
    ClientCertificateExpired,
    ClientCertificateNotYetValid,
    ClientCertificateRevoked,
    ClientCertificateRevocationUnknown,
    ClientCertificateForeign,
    ClientCertificateWrongPurpose,
    ClientCertificateBad,
    /// The revocation list for it is not usable; the operator's to cure.
    RevocationListUnusable,
    Other,
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Missing => Self::ClientCertificateMissing,
            Refusal::Expired => Self::ClientCertificateExpired,
            Refusal::NotYetValid => Self::ClientCertificateNotYetValid,
            Refusal::Revoked => Self::ClientCertificateRevoked,
            Refusal::RevocationUnknown => Self::ClientCertificateRevocationUnknown,
            Refusal::Foreign => Self::ClientCertificateForeign,
            Refusal::WrongPurpose => Self::ClientCertificateWrongPurpose,
            Refusal::Bad => Self::ClientCertificateBad,
            Refusal::OurList => Self::RevocationListUnusable,
        }
    }
}

/// What was negotiated. Every session keeps one, so it is small: numbers, no names but the client's own.
pub struct Handshake {
    version: ProtocolVersion,
    cipher: Option<CipherSuite>,
    group: Option<NamedGroup>,
    pub resumed: bool,
    pub sni: Option<Box<str>>,
    /// Whom the client's certificate names, if it has one.
    pub identity: Option<Box<Identity>>,
}

/// Every (version, cipher, group) that `config` can negotiate, as [`Handshake`] names them.
pub fn combinations(config: &ServerConfig) -> Vec<(&'static str, &'static str, &'static str)> {
    let provider = config.crypto_provider();
    let mut all = Vec::new();
    for suite in &provider.cipher_suites {
        let Some(cipher) = suite.suite().as_str() else { continue };
        let groups = provider.kx_groups.iter().filter_map(|group| {
            let usable = suite.tls13().is_some()
                || group.usable_for_version(rustls::ProtocolVersion::TLSv1_2);
            usable.then(|| group.name().as_str()).flatten()
        });
        match suite.tls13() {
            Some(_) => all.extend(groups.map(|group| ("TLSv1.3", cipher, group))),
            // A resumed TLS 1.2 session makes no new key exchange (RFC 5246 §7.3).
            None => all.extend(groups.chain(["none"]).map(|group| ("TLSv1.2", cipher, group))),
        }
    }
    all
}

/// A client behind its handshake, and what was negotiated.
pub struct Accepted {
    pub client: Client,
    pub handshake: Handshake,
}

/// Does the handshake within `limit`. What the server says last is sent together with the first
/// [`Client::send`].
pub async fn accept(
    mut socket: TcpStream,
    config: Arc<ServerConfig>,
    limit: Duration,
) -> Result<Accepted, (Failure, Reason)> {
    let mut silent = true;
    match timeout(limit, handshake(&mut socket, config, &mut silent)).await {
        Ok(Ok(Shaken { tls, input, unsent, handshake })) => {
            Ok(Accepted { client: Client::new(socket, tls, input, unsent), handshake })
        }
        Ok(Err(failed)) => {
            linger(&mut socket).await;
            Err(failed)
        }
        Err(_) => {
            if silent {
                // A mail client set to "no encryption" waits for us to speak first: tell the person.
                let _ = socket.try_write(PLAINTEXT_BYE);
            }
            Err((Failure::Timeout, Reason::HandshakeTimeout))
        }
    }
}

/// All of [`Accepted`] but the socket.
struct Shaken {
    tls: Box<Records>,
    /// What came behind the handshake.
    input: Vec<u8>,
    unsent: Unsent,
    handshake: Handshake,
}

async fn handshake(
    socket: &mut TcpStream,
    config: Arc<ServerConfig>,
    silent: &mut bool,
) -> Result<Shaken, (Failure, Reason)> {
    let closed = |_| (Failure::Closed, Reason::HandshakeFailed);
    let mut input = Vec::with_capacity(2048);
    let sni = hello(socket, &mut input, silent).await?;
    let ours = |_| (Failure::Other, Reason::Internal);
    let mut tls = Box::new(UnbufferedServerConnection::new(config).map_err(ours)?);
    let mut out = Out::borrow();
    loop {
        match process(&mut tls, &mut input, &mut out) {
            Ok(()) if !tls.is_handshaking() => break,
            Ok(()) => {}
            Err(error) => {
                let alert = out.take();
                let _ = socket.write_all(&alert).await;
                return Err((Failure::of(&error), Reason::HandshakeFailed));
            }
        }
        let flight = out.take();
        socket.write_all(&flight).await.map_err(closed)?;
        if socket.read_buf(&mut input).await.map_err(closed)? == 0 {
            return Err((Failure::Closed, Reason::HandshakeFailed));
        }
        out = Out::borrow();
    }
    // A client that is refused here has its handshake already, so no alert can tell it.
    let handshake = Handshake::of(&tls, sni)
        .map_err(|refusal| (Failure::from(refusal), Reason::HandshakeFailed))?;
    let tls = Box::new(Records::new(*tls).map_err(ours)?);
    let mut unsent = Unsent::default();
    unsent.keep(out.bytes());
    Ok(Shaken { tls, input, unsent, handshake })
}

/// Reads until the ClientHello is whole, answers what is no TLS, and returns the SNI.
async fn hello(
    socket: &mut TcpStream,
    input: &mut Vec<u8>,
    silent: &mut bool,
) -> Result<Option<Box<str>>, (Failure, Reason)> {
    let closed = |_| (Failure::Closed, Reason::HandshakeFailed);
    let mut acceptor = Acceptor::default();
    loop {
        let seen = input.len();
        if socket.read_buf(input).await.map_err(closed)? == 0 {
            // Nothing at all: a port check, or a person who gave up.
            return Err((Failure::Closed, Reason::HandshakeFailed));
        }
        *silent = false;
        if let Some(other) = NotTls::of(input) {
            let _ = socket.write_all(other.answer()).await;
            return Err((Failure::NotTls, other.reason()));
        }
        let mut fresh = &input[seen..];
        while !fresh.is_empty() {
            if !matches!(acceptor.read_tls(&mut fresh), Ok(1..)) {
                return Ok(None); // the connection proper says what is wrong, with its alert
            }
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => return Ok(accepted.client_hello().server_name().map(Box::from)),
            Ok(None) if input.len() < MAX_HELLO => {}
            Ok(None) | Err(_) => return Ok(None),
        }
    }
}

/// What was sent to the TLS port in clear.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum NotTls {
    Imap,
    Http,
    Other,
}

const PLAINTEXT_BYE: &[u8] =
    b"* BYE This port speaks IMAP over TLS only: choose SSL/TLS as the connection security.\r\n";
const HTTP_PAGE: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n\
    Content-Length: 66\r\nConnection: close\r\n\r\n\
    This port speaks IMAP over TLS. It is meant for mail programs only";

impl NotTls {
    /// By the first bytes: a TLS record of the handshake begins with 22 and 3 (RFC 8446 §5.1).
    fn of(bytes: &[u8]) -> Option<Self> {
        const METHODS: [&[u8]; 8] =
            [b"GET ", b"HEAD ", b"POST ", b"PUT ", b"OPTIONS ", b"CONNECT ", b"DELETE ", b"PRI * "];
        match bytes {
            [] | [22] | [22, 3, ..] => None,
            _ if METHODS.iter().any(|method| bytes.starts_with(method)) => Some(Self::Http),
            _ if METHODS.iter().any(|method| method.starts_with(bytes)) => None, // too short to tell
            [first, ..] if first.is_ascii_graphic() || first.is_ascii_whitespace() => {
                Some(Self::Imap)
            }
            _ => Some(Self::Other),
        }
    }

    fn answer(self) -> &'static [u8] {
        match self {
            Self::Imap => PLAINTEXT_BYE,
            Self::Http => HTTP_PAGE,
            Self::Other => b"",
        }
    }

    fn reason(self) -> Reason {
        match self {
            Self::Imap => Reason::NotTlsImap,
            Self::Http => Reason::NotTlsHttp,
            Self::Other => Reason::NotTls,
        }
    }
}

impl Failure {
    fn of(error: &rustls::Error) -> Self {
        if let Some(refusal) = Refusal::of(error) {
            return refusal.into();
        }
        match error {
            rustls::Error::NoApplicationProtocol => Self::ForeignAlpn,
            rustls::Error::PeerIncompatible(
                PeerIncompatible::SupportedVersionsExtensionRequired
                | PeerIncompatible::Tls12NotOffered
                | PeerIncompatible::Tls12NotOfferedOrEnabled
                | PeerIncompatible::Tls13RequiredForQuic
                | PeerIncompatible::ServerDoesNotSupportTls12Or13
                | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
            ) => Self::NoCommonVersion,
            rustls::Error::PeerIncompatible(_) => Self::NoCommonSuite,
            rustls::Error::AlertReceived(
                AlertDescription::UnknownCA
                | AlertDescription::BadCertificate
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateUnknown
                | AlertDescription::UnsupportedCertificate,
            ) => Self::CertificateRefused,
            rustls::Error::AlertReceived(_) => Self::AlertReceived,
            rustls::Error::InvalidMessage(_)
            | rustls::Error::InappropriateMessage { .. }
            | rustls::Error::InappropriateHandshakeMessage { .. }
            | rustls::Error::PeerMisbehaved(_)
            | rustls::Error::DecryptError
            | rustls::Error::PeerSentOversizedRecord => Self::Malformed,
            _ => Self::Other,
        }
    }
}

impl Handshake {
    fn of(tls: &UnbufferedServerConnection, sni: Option<Box<str>>) -> Result<Self, Refusal> {
        let resumed = tls.handshake_kind() == Some(HandshakeKind::Resumed);
        let chain = tls.peer_certificates().unwrap_or_default();
        Ok(Self {
            version: tls.protocol_version().unwrap_or(ProtocolVersion::TLSv1_2),
            cipher: tls.negotiated_cipher_suite().map(|suite| suite.suite()),
            group: tls.negotiated_key_exchange_group().map(|group| group.name()),
            resumed,
            sni,
            identity: Identity::of(chain, resumed, SystemTime::now())?.map(Box::new),
        })
    }

    /// As in [`combinations`].
    pub fn version(&self) -> &'static str {
        match self.version {
            ProtocolVersion::TLSv1_3 => "TLSv1.3",
            _ => "TLSv1.2",
        }
    }

    pub fn cipher(&self) -> &'static str {
        self.cipher.and_then(|cipher| cipher.as_str()).unwrap_or("none")
    }

    /// `none` for a resumed TLS 1.2 session.
    pub fn group(&self) -> &'static str {
        self.group.and_then(|group| group.as_str()).unwrap_or("none")
    }
}

/// Takes whole records off the front of `input` until the handshake is done or needs more; what it has to say is appended to
/// `out`, an alert before an error included.
///
/// One record at a time, so that none behind the handshake is taken: those are [`Records`]' own.
fn process(
    tls: &mut UnbufferedServerConnection,
    input: &mut Vec<u8>,
    out: &mut Out,
) -> Result<(), rustls::Error> {
    let mut consumed = 0;
    let mut end = record_end(input, 0);
    let mut failed = None;
    let result = loop {
        if !tls.is_handshaking() && !tls.wants_write() && failed.is_none() {
            break Ok(());
        }
        let UnbufferedStatus { discard, state, .. } =
            tls.process_tls_records(&mut input[consumed..end]);
        consumed += discard;
        match state {
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                if encode(&mut data, out).is_err() {
                    break Err(rustls::Error::General("a record could not be encoded".into()));
                }
            }
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                if let Some(error) = failed.take() {
                    break Err(error);
                }
            }
            // It needs more. A message may be longer than its record, so what was not taken is offered again.
            Ok(_) => match failed.take() {
                Some(error) => break Err(error),
                None if end == input.len() => break Ok(()),
                None => end = record_end(input, end),
            },
            // The first error queues an alert, which the next turn brings.
            Err(error) if failed.is_none() => failed = Some(error),
            Err(error) => break Err(failed.unwrap_or(error)),
        }
    };
    input.drain(..consumed);
    result
}

/// Where the record ends that begins at `at`; one that is not whole ends with the input.
fn record_end(input: &[u8], at: usize) -> usize {
    match &input[at..] {
        [_, _, _, high, low, ..] => {
            input.len().min(at + 5 + usize::from(u16::from_be_bytes([*high, *low])))
        }
        _ => input.len(),
    }
}

fn encode(
    data: &mut EncodeTlsData<'_, ServerConnectionData>,
    out: &mut Out,
) -> Result<(), EncodeError> {
    let mut needed = MAX_RECORD + RECORD_OVERHEAD;
    loop {
        match data.encode(out.room(needed)) {
            Ok(written) => {
                out.used += written;
                return Ok(());
            }
            Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size }))
                if required_size > needed =>
            {
                needed = required_size;
            }
            Err(error) => return Err(error),
        }
    }
}

/// The thread's buffer for outgoing records, borrowed; it is always initialised, so growing it is all it costs.
struct Out {
    buffer: Vec<u8>,
    used: usize,
}

impl Out {
    fn borrow() -> Self {
        Self { buffer: TO_SOCKET.take(), used: 0 }
    }

    fn room(&mut self, needed: usize) -> &mut [u8] {
        if self.buffer.len() < self.used + needed {
            self.buffer.resize(self.used + needed, 0);
        }
        &mut self.buffer[self.used..]
    }

    fn bytes(&self) -> &[u8] {
        &self.buffer[..self.used]
    }

    /// A copy of the bytes; the buffer goes back before anybody waits, since other sessions of the thread need it.
    fn take(self) -> Vec<u8> {
        self.bytes().to_vec()
    }
}

impl Drop for Out {
    fn drop(&mut self) {
        TO_SOCKET.set(std::mem::take(&mut self.buffer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_http_page_is_as_long_as_it_says() {
        let page = std::str::from_utf8(HTTP_PAGE).expect("ASCII");
        let (head, body) = page.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{}", body.len());
    }

    #[test]
    fn what_is_not_tls_is_told_by_its_first_bytes() {
        assert_eq!(NotTls::of(b"\x16\x03\x01"), None);
        assert_eq!(NotTls::of(b"\x16"), None);
        assert_eq!(NotTls::of(b"GE"), None);
        assert_eq!(NotTls::of(b"GET / HTTP/1.1"), Some(NotTls::Http));
        assert_eq!(NotTls::of(b"a1 CAPABILITY\r\n"), Some(NotTls::Imap));
        assert_eq!(NotTls::of(b"\x80\x2e\x01\x03\x01"), Some(NotTls::Other));
        assert_eq!(NotTls::of(b"\x16\x05"), Some(NotTls::Other));
    }
}
