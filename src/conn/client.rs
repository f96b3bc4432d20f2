//! A client behind its handshake: plaintext in and out, TLS in between.
//!
//! rustls' unbuffered API does TLS; this module moves the bytes. The buffers that records are read into, decrypted
//! to and encrypted into belong to the thread and are borrowed only while bytes are in flight, so a silent
//! session holds none: of its own it has a record that arrived in part and what the socket did not take.
//! **Invariant:** whatever is queued goes out in order; close_notify is said once, at an orderly end, and never else.
//! Not here: the handshake ([`super::tls`]), and when to read or write ([`super::dialogue`], [`super::relay`]).

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::task::{Context as Cx, Poll, ready};
use std::time::Duration;

use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus,
};
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
/// How long a closing connection is read on, so that a reset does not overtake our last words.
const LINGER: Duration = Duration::from_secs(2);
const MAX_LINGER: usize = 1024 * 1024;

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

impl Client {
    /// Behind the handshake; `partial` and `unsent` are what it left over, `ended` whether the client has already closed
    /// its side.
    pub(super) fn new(
        socket: TcpStream,
        tls: UnbufferedServerConnection,
        partial: Vec<u8>,
        unsent: Unsent,
        ended: bool,
    ) -> Self {
        Self { socket, tls, partial, unsent, ended, private: true }
    }

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
pub(super) async fn linger(socket: &mut TcpStream) {
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
pub(super) enum Processed {
    Open,
    /// The client sent close_notify.
    Closed,
}

/// Takes whole records off the front of `input`: plaintext is appended to `plain`, what TLS itself has to say to
/// `out`, an alert before an error included.
pub(super) fn process(
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
pub(super) struct Out {
    buffer: Vec<u8>,
    used: usize,
}

impl Out {
    pub(super) fn borrow() -> Self {
        Self { buffer: TO_SOCKET.take(), used: 0 }
    }

    fn room(&mut self, needed: usize) -> &mut [u8] {
        if self.buffer.len() < self.used + needed {
            self.buffer.resize(self.used + needed, 0);
        }
        &mut self.buffer[self.used..]
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer[..self.used]
    }

    /// A copy of the bytes; the buffer goes back before anybody waits, since other sessions of the thread need it.
    pub(super) fn take(self) -> Vec<u8> {
        self.bytes().to_vec()
    }
}

impl Drop for Out {
    fn drop(&mut self) {
        TO_SOCKET.set(std::mem::take(&mut self.buffer));
    }
}
