//! The client's side: the handshake, then plaintext in and out.
//!
//! rustls' unbuffered API does TLS; this module moves the bytes. The buffers that records are read into, decrypted
//! to and encrypted into belong to the thread and are borrowed only while bytes are in flight, so a silent
//! session holds none: of its own it has a record that arrived in part and what the socket did not take.
//!
//! Before the handshake the first bytes are looked at: plaintext IMAP gets one readable BYE, HTTP a 400 page.
//! Limits: `timeouts.handshake` for all of it, [`MAX_HELLO`] bytes before the ClientHello is whole.
//! Not here: which certificate and versions are offered (`crate::tls`).

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context as Cx, Poll, ready};
use std::time::Duration;

use rustls::server::{Acceptor, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus,
};
use rustls::{AlertDescription, HandshakeKind, PeerIncompatible, ProtocolVersion, ServerConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::io::poll_read_buf;
use zeroize::Zeroize as _;

use super::close::Reason;
use super::socket::Unsent;

/// Bytes that one read takes: large enough that system calls don't count.
pub const CHUNK: usize = 64 * 1024;
/// What TLS adds to a record at most, with room to spare (RFC 8446 §5.2: 256 bytes).
const RECORD_OVERHEAD: usize = 256;
const MAX_RECORD: usize = 16 * 1024;
/// A ClientHello may be this long.
const MAX_HELLO: usize = 64 * 1024;
/// How long a closing connection is read on, so that a reset does not overtake our last words.
const LINGER: Duration = Duration::from_secs(2);
const MAX_LINGER: usize = 1024 * 1024;

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
    Other,
}

/// What was negotiated.
pub struct Handshake {
    pub version: &'static str,
    pub cipher: &'static str,
    pub group: &'static str,
    pub resumed: bool,
    pub sni: Option<Box<str>>,
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

/// Why the client's side can't go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the client's connection broke")]
    Io(#[from] io::Error),
    #[error("the client breaks TLS")]
    Tls(#[from] rustls::Error),
    #[error("the session's keys are used up")]
    Exhausted,
    #[error("the client takes no bytes")]
    WriteTimeout,
}

impl From<Error> for Reason {
    fn from(error: Error) -> Self {
        match error {
            Error::Io(_) => Self::ClientVanished,
            Error::Tls(_) | Error::Exhausted => Self::ProtocolViolation,
            Error::WriteTimeout => Self::WriteTimeout,
        }
    }
}

/// What came from the client.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Received {
    Bytes,
    /// It closed its side, by close_notify or, as many do, by FIN alone.
    End,
}

/// A client behind its handshake.
pub struct Client {
    socket: TcpStream,
    tls: UnbufferedServerConnection,
    /// A TLS record that has not arrived whole.
    partial: Vec<u8>,
    unsent: Unsent,
    ended: bool,
    /// What comes may be a password: the thread's buffer, in which it is decrypted, is overwritten after use.
    private: bool,
}

thread_local! {
    static FROM_SOCKET: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    static TO_SOCKET: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
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
                client: Client { socket, tls, partial, unsent, ended, private: true },
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
    let handshake = Handshake::of(&tls, sni);
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
    fn of(tls: &UnbufferedServerConnection, sni: Option<Box<str>>) -> Self {
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
        Self { version, cipher, group, resumed, sni }
    }
}

impl Client {
    /// Appends to `plain` what the client sent. [`Received::Bytes`] may come with none: what arrived was TLS' own.
    pub fn poll_receive(
        &mut self,
        plain: &mut Vec<u8>,
        cx: &mut Cx<'_>,
    ) -> Poll<Result<Received, Error>> {
        if self.ended {
            return Poll::Ready(Ok(Received::End));
        }
        let mut input = FROM_SOCKET.take();
        input.clear();
        input.extend_from_slice(&self.partial);
        input.reserve(CHUNK);
        let result = self.receive_into(&mut input, plain, cx);
        if self.private {
            input.zeroize();
        }
        FROM_SOCKET.set(input);
        result
    }

    fn receive_into(
        &mut self,
        input: &mut Vec<u8>,
        plain: &mut Vec<u8>,
        cx: &mut Cx<'_>,
    ) -> Poll<Result<Received, Error>> {
        if ready!(poll_read_buf(std::pin::Pin::new(&mut self.socket), cx, input))? == 0 {
            self.ended = true;
            return Poll::Ready(Ok(Received::End));
        }
        let mut out = Out::borrow();
        let done = process(&mut self.tls, input, plain, &mut out);
        if input.is_empty() {
            self.partial = Vec::new(); // silent, the session owns nothing
        } else {
            self.partial.clear();
            self.partial.extend_from_slice(input);
        }
        self.unsent.send(&self.socket, out.bytes())?;
        Poll::Ready(match done? {
            Processed::Closed if plain.is_empty() => {
                self.ended = true;
                Ok(Received::End)
            }
            Processed::Closed => {
                self.ended = true;
                Ok(Received::Bytes)
            }
            Processed::Open => Ok(Received::Bytes),
        })
    }

    /// Somebody is logged in: what comes from now on is mail.
    pub fn logged_in(&mut self) {
        self.private = false;
    }

    pub async fn receive(&mut self, plain: &mut Vec<u8>) -> Result<Received, Error> {
        poll_fn(|cx| self.poll_receive(plain, cx)).await
    }

    /// Encrypts `plain` and sends it as far as the socket takes it; the rest goes with [`Client::poll_flush`].
    pub fn queue(&mut self, plain: &[u8]) -> Result<(), Error> {
        self.encrypt(plain.len(), |tls, out| tls.encrypt(plain, out))
    }

    /// Tells the client that nothing more will come (RFC 8446 §6.1).
    pub fn queue_close_notify(&mut self) -> Result<(), Error> {
        self.encrypt(0, |tls, out| tls.queue_close_notify(out))
    }

    fn encrypt(
        &mut self,
        length: usize,
        write: impl FnOnce(
            &mut rustls::unbuffered::WriteTraffic<'_, rustls::server::ServerConnectionData>,
            &mut [u8],
        ) -> Result<usize, EncryptError>,
    ) -> Result<(), Error> {
        let mut out = Out::borrow();
        loop {
            // The part of a record that waits belongs to the connection's own input.
            let UnbufferedStatus { discard, state, .. } =
                self.tls.process_tls_records(&mut self.partial);
            match state? {
                ConnectionState::WriteTraffic(mut tls) => {
                    let room = out.room(length + (length / MAX_RECORD + 1) * RECORD_OVERHEAD);
                    let written = write(&mut tls, room).map_err(|error| match error {
                        EncryptError::EncryptExhausted => Error::Exhausted,
                        EncryptError::InsufficientSize(_) => {
                            debug_assert!(false, "a record needs no more than RECORD_OVERHEAD");
                            Error::Exhausted
                        }
                    })?;
                    out.used += written;
                    break;
                }
                ConnectionState::EncodeTlsData(mut data) => encode(&mut data, &mut out)?,
                ConnectionState::TransmitTlsData(data) => data.done(),
                ConnectionState::PeerClosed => {}
                ConnectionState::Closed => break, // both said it all
                state => {
                    debug_assert!(false, "{state:?} with nothing new from the client");
                    return Err(Error::Exhausted);
                }
            }
            self.partial.drain(..discard);
        }
        self.unsent.send(&self.socket, out.bytes())?;
        Ok(())
    }

    /// Bytes that the socket did not take yet.
    pub fn waiting(&self) -> usize {
        self.unsent.len()
    }

    /// Ready when everything went out to the socket.
    pub fn poll_flush(&mut self, cx: &mut Cx<'_>, progress: &mut bool) -> Poll<io::Result<()>> {
        self.unsent.poll_flush(&mut self.socket, cx, progress)
    }

    /// Sends `plain`, or gives up after `limit`.
    pub async fn send(&mut self, plain: &[u8], limit: Duration) -> Result<(), Error> {
        self.queue(plain)?;
        let flushed = timeout(limit, poll_fn(|cx| self.poll_flush(cx, &mut false))).await;
        flushed.map_err(|_| Error::WriteTimeout)?.map_err(Error::Io)
    }

    /// The orderly end: what was queued, close_notify, FIN; then what the client still sends is read away
    /// for a moment.
    pub async fn close(&mut self, limit: Duration) {
        if self.queue_close_notify().is_ok() {
            self.truncate(limit).await;
        }
    }

    /// What was queued, and FIN: without close_notify the client knows that more should have come.
    pub async fn truncate(&mut self, limit: Duration) {
        let flushed = timeout(limit, poll_fn(|cx| self.poll_flush(cx, &mut false))).await;
        if matches!(flushed, Ok(Ok(()))) && !self.ended {
            linger(&mut self.socket).await;
        }
    }
}

/// Reads on after our last word, since closing with unread bytes would send a reset that overtakes it.
async fn linger(socket: &mut TcpStream) {
    let _ = socket.shutdown().await;
    let _ = timeout(LINGER, async {
        let (mut sink, mut read) = ([0; 4096], 0);
        while let Ok(n @ 1..) = socket.read(&mut sink).await {
            read += n;
            if read > MAX_LINGER {
                break;
            }
        }
    })
    .await;
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Processed {
    Open,
    /// The client sent close_notify.
    Closed,
}

/// Takes whole records off the front of `input`: plaintext is appended to `plain`, what TLS itself has to say to
/// `out`, an alert before an error included.
fn process(
    tls: &mut UnbufferedServerConnection,
    input: &mut Vec<u8>,
    plain: &mut Vec<u8>,
    out: &mut Out,
) -> Result<Processed, rustls::Error> {
    let mut consumed = 0;
    let mut processed = Processed::Open;
    let mut failed = None;
    let result = loop {
        let UnbufferedStatus { mut discard, state, .. } =
            tls.process_tls_records(&mut input[consumed..]);
        match state {
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    match record {
                        Ok(record) => {
                            discard += record.discard;
                            plain.extend_from_slice(record.payload);
                        }
                        Err(error) => failed = Some(error),
                    }
                }
            }
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
            Ok(ConnectionState::PeerClosed) => processed = Processed::Closed,
            Ok(ConnectionState::ReadEarlyData(mut early)) => while early.next_record().is_some() {}, // never offered
            // What led here is done with too: a resumed TLS 1.2 handshake ends in this state.
            Ok(_) => {
                consumed += discard;
                break failed.map_or(Ok(processed), Err);
            }
            // The first error queues an alert, which the next turn brings.
            Err(error) if failed.is_none() => failed = Some(error),
            Err(error) => break Err(failed.unwrap_or(error)),
        }
        consumed += discard;
    };
    input.drain(..consumed.min(input.len()));
    result
}

fn encode(
    data: &mut rustls::unbuffered::EncodeTlsData<'_, rustls::server::ServerConnectionData>,
    out: &mut Out,
) -> Result<(), Error> {
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
            Err(_) => return Err(Error::Exhausted),
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
