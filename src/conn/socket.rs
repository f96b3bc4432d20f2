//! What both ends' sockets have in common: options, errors, bytes that wait to be sent.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncWrite, Interest};
use tokio::net::TcpStream;

use crate::backend::stream::Stream;
use crate::text::without_numbers;

/// A peer that vanished without a word is noticed after this and a few probes.
const KEEPALIVE: Duration = Duration::from_secs(300);
/// Pieces that one system call takes: more than the records of one chunk.
const PIECES: usize = 8;

/// Sends small segments at once and notices dead peers. An option that a system does not have costs nothing else. What
/// a listener accepts inherits its options.
pub fn prepare<S: AsFd>(socket: &S) {
    let socket = SockRef::from(socket);
    let _ = socket.set_tcp_nodelay(true);
    let probes = TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(Duration::from_secs(60))
        .with_retries(3);
    let _ = socket.set_tcp_keepalive(&probes);
}

/// Returns when the connection breaks (reset, no answer to keep-alive probes), also behind bytes that nobody has read. An
/// end in order (FIN) is none.
pub async fn broken(socket: &TcpStream) {
    if socket.ready(Interest::ERROR).await.is_err() {
        std::future::pending().await // the runtime ends, and this task with it
    }
}

/// Whether the process or the system has no file descriptors left.
pub fn out_of_descriptors(error: &io::Error) -> bool {
    use rustix::io::Errno;
    error
        .raw_os_error()
        .is_some_and(|code| [Errno::MFILE, Errno::NFILE].map(Errno::raw_os_error).contains(&code))
}

/// Whether the system has no such addresses at all: of the families that are used here, IPv6 is
/// the one that a kernel may lack (`ipv6.disable=1`).
pub fn lacks_family(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error())
}

/// An error in the system's words, without the number that says the same.
pub fn why(error: &io::Error) -> String {
    match lacks_family(error) {
        true => "this system has no IPv6".to_owned(),
        false => without_numbers(error.to_string()),
    }
}

/// Bytes that the socket did not take yet. Empty, as it is nearly always, it is one word and owns no memory.
#[derive(Default)]
pub struct Unsent(Option<Box<Waiting>>);

/// In pieces, as they came: none is copied to join another, and each is freed as soon as it is sent.
#[derive(Default)]
struct Waiting {
    pieces: VecDeque<Vec<u8>>,
    /// Bytes of the first piece that are gone.
    sent: usize,
    /// Of all pieces, those of the first that are gone included.
    total: usize,
}

impl Unsent {
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |waiting| waiting.total - waiting.sent)
    }

    /// Sends `bytes` now, as far as nothing waits before them and the socket takes them; keeps the rest.
    pub fn send(&mut self, stream: &mut Stream, mut bytes: &[u8]) -> io::Result<()> {
        while self.is_empty() && !bytes.is_empty() {
            match stream.try_write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => bytes = &bytes[n..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if stream.holds() {
            self.0.get_or_insert_default(); // there is something to flush
        }
        self.keep(bytes);
        Ok(())
    }

    /// As [`Unsent::send`], to a client and of several pieces at once; they are taken out of `pieces`.
    pub fn send_all(&mut self, stream: &TcpStream, pieces: &mut Vec<Vec<u8>>) -> io::Result<()> {
        let (mut gone, mut sent) = (0, 0);
        while self.is_empty() && gone < pieces.len() {
            match stream.try_write_vectored(&slices(pieces[gone..].iter(), sent)) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    sent += n;
                    while gone < pieces.len() && sent >= pieces[gone].len() {
                        sent -= pieces[gone].len();
                        gone += 1;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if gone < pieces.len() {
            let waiting = self.0.get_or_insert_default();
            if waiting.pieces.is_empty() {
                waiting.sent = sent;
            }
            waiting.total += pieces[gone..].iter().map(Vec::len).sum::<usize>();
            waiting.pieces.extend(pieces.drain(gone..));
        }
        pieces.clear();
        Ok(())
    }

    /// Keeps `bytes` for the next flush.
    pub fn keep(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            let waiting = self.0.get_or_insert_default();
            waiting.total += bytes.len();
            waiting.pieces.push_back(bytes.to_vec());
        }
    }

    /// Ready when all is sent; `progress` tells whether something was.
    pub fn poll_flush<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
        progress: &mut bool,
    ) -> Poll<io::Result<()>> {
        let Some(waiting) = &mut self.0 else { return Poll::Ready(Ok(())) };
        while !waiting.pieces.is_empty() {
            let slices = slices(waiting.pieces.iter(), waiting.sent);
            let n = ready!(Pin::new(&mut *stream).poll_write_vectored(cx, &slices))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            waiting.sent += n;
            *progress = true;
            while waiting.pieces.front().is_some_and(|piece| waiting.sent >= piece.len()) {
                let length = waiting.pieces.pop_front().map_or(0, |piece| piece.len());
                waiting.sent -= length;
                waiting.total -= length;
            }
        }
        ready!(Pin::new(stream).poll_flush(cx))?; // TLS keeps what the socket did not take
        *progress = true;
        self.0 = None;
        Poll::Ready(Ok(()))
    }
}

/// The first [`PIECES`] of `pieces`, without the first `sent` bytes.
fn slices<'a>(pieces: impl Iterator<Item = &'a Vec<u8>>, sent: usize) -> [IoSlice<'a>; PIECES] {
    let mut slices = [IoSlice::new(&[]); PIECES];
    for (n, (slice, piece)) in slices.iter_mut().zip(pieces).enumerate() {
        *slice = IoSlice::new(if n == 0 { &piece[sent..] } else { piece });
    }
    slices
}
