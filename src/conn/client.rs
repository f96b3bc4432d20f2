//! A client behind its handshake: plaintext in and out, TLS in between.
//!
//! [`crate::proto::record`] does TLS; this module moves the bytes. The buffers that records are read into belong to
//! the thread and are borrowed only while bytes are in flight, so a silent session holds none: of its own it has a
//! record that arrived in part and what the socket did not take.
//! **Invariant:** whatever is queued goes out in order; close_notify is said once, at an orderly end, and never else.
//! Not here: the handshake ([`super::tls`]), and when to read or write ([`super::dialogue`], [`super::relay`]).

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context as Cx, Poll};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::io::poll_read_buf;
use zeroize::Zeroize as _;

use super::close::Reason;
use super::socket::{self, Unsent};
use crate::proto::imap::secret::make_room;
use crate::proto::record::{self, Opened, Records};

/// Bytes that one read takes: large enough that system calls don't count.
pub const CHUNK: usize = 64 * 1024;
/// How long last words may take.
pub const LAST_WORDS: Duration = Duration::from_secs(5);
/// How long a closing connection is read on, so that a reset does not overtake our last words.
const LINGER: Duration = Duration::from_secs(2);
const MAX_LINGER: usize = 1024 * 1024;

/// Why the client's side can't go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the client's connection broke")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Tls(#[from] record::Error),
    #[error("the client takes no bytes")]
    WriteTimeout,
}

impl From<Error> for Reason {
    fn from(error: Error) -> Self {
        match error {
            Error::Io(_) => Self::ClientVanished,
            Error::Tls(record::Error::Exhausted) => Self::KeysUsedUp,
            Error::Tls(_) => Self::ProtocolViolation,
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
    tls: Box<Records>,
    /// A TLS record that has not arrived whole.
    partial: Box<[u8]>,
    unsent: Unsent,
    ended: bool,
    /// What comes may be a password: the thread's buffer, in which it is decrypted, is overwritten after use.
    private: bool,
}

thread_local! {
    static FROM_SOCKET: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    static RECORDS: Cell<Vec<Vec<u8>>> = const { Cell::new(Vec::new()) };
}

impl Client {
    /// Behind the handshake, which left over `input` and `unsent`.
    pub(super) fn new(
        socket: TcpStream,
        tls: Box<Records>,
        input: Vec<u8>,
        unsent: Unsent,
    ) -> Self {
        Self { socket, tls, partial: input.into(), unsent, ended: false, private: true }
    }

    /// Appends to `plain` what the client sent in one breath with its handshake. It may be a login.
    pub fn receive_first(&mut self, plain: &mut Vec<u8>) -> Result<Received, Error> {
        let mut input = std::mem::take(&mut self.partial).into_vec();
        let received = self.open(&mut input, plain);
        input.zeroize();
        received
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
        let received = match poll_read_buf(Pin::new(&mut self.socket), cx, &mut input) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(error)) => Poll::Ready(Err(error.into())),
            Poll::Ready(Ok(0)) => {
                self.ended = true;
                Poll::Ready(Ok(Received::End))
            }
            Poll::Ready(Ok(_)) => Poll::Ready(self.open(&mut input, plain)),
        };
        if self.private {
            input.zeroize();
        }
        FROM_SOCKET.set(input);
        received
    }

    fn open(&mut self, input: &mut Vec<u8>, plain: &mut Vec<u8>) -> Result<Received, Error> {
        if self.private {
            make_room(plain, input.len()); // it may hold the beginning of a password
        }
        let before = plain.len();
        let opened = self.answering(|tls, out| tls.open(input, plain, out));
        self.partial = input.as_slice().into(); // nothing, when nothing is left
        self.ended = opened? == Opened::Closed;
        let nothing = plain.len() == before;
        Ok(if self.ended && nothing { Received::End } else { Received::Bytes })
    }

    /// Somebody is logged in: what comes from now on is mail.
    pub fn logged_in(&mut self) {
        self.private = false;
    }

    pub async fn receive(&mut self, plain: &mut Vec<u8>) -> Result<Received, Error> {
        poll_fn(|cx| self.poll_receive(plain, cx)).await
    }

    /// Returns when the connection breaks, whether or not what it has brought was read.
    pub async fn broken(&self) {
        socket::broken(&self.socket).await;
    }

    /// Encrypts `plain` and sends it as far as the socket takes it; the rest goes with [`Client::poll_flush`].
    pub fn queue(&mut self, plain: &[u8]) -> Result<(), Error> {
        self.answering(|tls, out| tls.seal(plain, out))
    }

    /// Tells the client that nothing more will come (RFC 8446 §6.1).
    pub fn queue_close_notify(&mut self) -> Result<(), Error> {
        self.answering(Records::close_notify)
    }

    /// Sends the records that `write` makes, those before an error included.
    fn answering<T>(
        &mut self,
        write: impl FnOnce(&mut Records, &mut Vec<Vec<u8>>) -> Result<T, record::Error>,
    ) -> Result<T, Error> {
        let mut records = RECORDS.take();
        let written = write(&mut self.tls, &mut records);
        let sent = self.unsent.send_all(&self.socket, &mut records);
        // Also where the socket broke: they must not go to the next client of the thread.
        records.clear();
        RECORDS.set(records);
        let written = written?;
        sent?;
        Ok(written)
    }

    /// Whether the connection's keys are near their end: see [`Records::are_worn`].
    pub fn is_worn(&self) -> bool {
        self.tls.are_worn()
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
    let mut read = 0;
    let drained = poll_fn(|cx| {
        // The thread's buffer: one of its own would be the largest part of every session's future.
        let mut sink = FROM_SOCKET.take();
        let end = loop {
            sink.clear();
            sink.reserve(CHUNK);
            match poll_read_buf(Pin::new(&mut *socket), cx, &mut sink) {
                Poll::Ready(Ok(n @ 1..)) if read + n <= MAX_LINGER => read += n,
                Poll::Ready(_) => break Poll::Ready(()),
                Poll::Pending => break Poll::Pending,
            }
        };
        sink.as_mut_slice().zeroize(); // before TLS or login it may be a password
        FROM_SOCKET.set(sink);
        end
    });
    let _ = timeout(LINGER, drained).await;
}
