//! The handshake: from a socket to a [`Client`].
//!
//! The first bytes are looked at before: plaintext IMAP gets one readable BYE, HTTP a 400 page.
//! Limits: `timeouts.handshake` for all of it, [`MAX_HELLO`] bytes before the ClientHello is whole.
//! Not here: which certificate and versions are offered (`crate::tls`), and bytes after the handshake
//! ([`super::client`]).

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::server::{Acceptor, UnbufferedServerConnection};
use rustls::{AlertDescription, HandshakeKind, PeerIncompatible, ProtocolVersion, ServerConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use zeroize::Zeroize as _;

use super::client::{Client, Out, Processed, linger, process};
use super::close::Reason;
use super::socket::Unsent;
use crate::tls::client_auth::{Identity, Refusal};

/// A ClientHello may be this long.
const MAX_HELLO: usize = 64 * 1024;
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

/// What was negotiated.
pub struct Handshake {
    pub version: &'static str,
    pub cipher: &'static str,
    pub group: &'static str,
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

/// A client behind its handshake, what was negotiated, and what the client said in the same breath.
pub struct Accepted {
    pub client: Client,
    pub handshake: Handshake,
    pub said: Vec<u8>,
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
        Ok(Ok(shaken)) => {
            let Shaken { tls, partial, unsent, ended, handshake, said } = shaken;
            Ok(Accepted {
                client: Client::new(socket, tls, partial, unsent, ended),
                handshake,
                said,
            })
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
    tls: UnbufferedServerConnection,
    partial: Vec<u8>,
    unsent: Unsent,
    ended: bool,
    handshake: Handshake,
    said: Vec<u8>,
}

async fn handshake(
    socket: &mut TcpStream,
    config: Arc<ServerConfig>,
    silent: &mut bool,
) -> Result<Shaken, (Failure, Reason)> {
    let closed = |_| (Failure::Closed, Reason::HandshakeFailed);
    let mut input = Vec::with_capacity(2048);
    let sni = hello(socket, &mut input, silent).await?;
    let mut tls =
        UnbufferedServerConnection::new(config).map_err(|_| (Failure::Other, Reason::Internal))?;
    let (mut said, mut out) = (Vec::new(), Out::borrow());
    let ended = loop {
        match process(&mut tls, &mut input, &mut said, &mut out) {
            Ok(processed) if !tls.is_handshaking() => break processed == Processed::Closed,
            Ok(_) => {}
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
    };
    let mut unsent = Unsent::default();
    unsent.keep(out.bytes());
    // What was decrypted in here may be a login that came together with the handshake's end.
    let partial = input.clone();
    input.zeroize();
    // The client has its handshake already, so no alert can tell it.
    let handshake = Handshake::of(&tls, sni)
        .map_err(|refusal| (Failure::from(refusal), Reason::HandshakeFailed))?;
    Ok(Shaken { tls, partial, unsent, ended, handshake, said })
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
        let version = match tls.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
            _ => "TLSv1.2",
        };
        let cipher = tls
            .negotiated_cipher_suite()
            .and_then(|suite| suite.suite().as_str())
            .unwrap_or("none");
        let group = tls
            .negotiated_key_exchange_group()
            .and_then(|group| group.name().as_str())
            .unwrap_or("none");
        let resumed = tls.handshake_kind() == Some(HandshakeKind::Resumed);
        let chain = tls.peer_certificates().unwrap_or_default();
        let identity = Identity::of(chain, resumed, SystemTime::now())?.map(Box::new);
        Ok(Self { version, cipher, group, resumed, sni, identity })
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
