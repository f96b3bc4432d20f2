//! One client's bytes: lines and literals in, responses out.
//!
//! In: a stream. Out: whole commands as [`Piece`]s, their literals asked for with `+` where the client
//! waits for it. A bare LF ends a line too, for people who type with netcat.
//! Limits: a line of [`MAX_LINE`]; the literals of one command together [`MAX_MESSAGE`] for APPEND after
//! login and [`MAX_LINE`] otherwise, charged to the memory for mail; a client that does not read is
//! given up after [`WRITE_LIMIT`].
//! Not here: what a command means (`session`).

use std::io;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::mailbox::{self, Charge};
use super::parse::{Piece, announces_literal};

/// Octets of a line, and of the literals of any command but APPEND.
pub const MAX_LINE: usize = 64 << 10;
/// Octets of a message.
pub const MAX_MESSAGE: usize = 25_000_000;
/// A refused literal that comes unasked is read past up to here; a longer one ends the session.
const MAX_SKIPPED: u64 = 4 * MAX_MESSAGE as u64;
const WRITE_LIMIT: Duration = Duration::from_secs(120);
/// Responses are sent when this much has gathered, and at the end of a command.
const BATCH: usize = 64 << 10;

/// Why a session ends. The first three are the client's doing, or the network's.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the client closed the connection")]
    Closed,
    #[error("connection failed")]
    Io(#[from] io::Error),
    #[error("line or literal too long")]
    TooLong,
    #[error("silent for too long")]
    Silent,
    #[error("the server stops")]
    Stopped,
}

type Result<T> = std::result::Result<T, Error>;

/// A complete command, or one that cannot be taken.
pub enum Received {
    Command {
        pieces: Vec<Piece>,
        charge: Charge,
    },
    /// All of it has been read, up to its last line; `tag` is what to answer under.
    Refused {
        first_line: Vec<u8>,
        error: mailbox::Error,
    },
}

pub struct Wire {
    reader: BufReader<Box<dyn AsyncRead + Send + Unpin>>,
    writer: Box<dyn AsyncWrite + Send + Unpin>,
    /// A line of which the end has not come yet.
    line: Vec<u8>,
    out: Vec<u8>,
    stop: CancellationToken,
}

impl Wire {
    pub fn new(
        stream: impl AsyncRead + AsyncWrite + Send + 'static,
        stop: CancellationToken,
    ) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        let (line, out) = (Vec::new(), Vec::new());
        Self { reader: BufReader::new(Box::new(reader)), writer: Box::new(writer), line, out, stop }
    }

    /// The next line, without its end. Nothing is lost when the future is dropped before it is ready.
    pub async fn line(&mut self, limit: Duration) -> Result<Vec<u8>> {
        let Self { reader, line, stop, .. } = self;
        tokio::select! {
            () = stop.cancelled() => Err(Error::Stopped),
            read = timeout(limit, read_line(reader, line)) => read.map_err(|_| Error::Silent)?,
        }
    }

    /// The next command. `may_append` tells whether APPEND is allowed its large literal, and `charge`
    /// pays for literals.
    pub async fn command(
        &mut self,
        limit: Duration,
        may_append: bool,
        mut charge: Charge,
    ) -> Result<Received> {
        let first = self.line(limit).await?;
        let is_append = may_append && names_append(&first);
        let allowed = if is_append { MAX_MESSAGE } else { MAX_LINE };
        let mut taken = 0;
        let mut refused = None;
        let mut announced = announces_literal(&first);
        let mut pieces = vec![Piece::Line(first)];
        while let Some((length, unasked)) = announced {
            let fits = usize::try_from(length).ok().filter(|length| *length <= allowed - taken);
            let paid = fits.ok_or(mailbox::Error::TooBig).and_then(|length| {
                charge.grow(length)?;
                Ok(length)
            });
            match paid {
                Ok(length) if refused.is_none() => {
                    taken += length;
                    if !unasked {
                        self.push("+ Ready\r\n");
                        self.flush().await?;
                    }
                    pieces.push(Piece::Literal(self.literal(length, limit).await?));
                }
                paid => {
                    refused = refused.or(paid.err());
                    if !unasked {
                        break; // The client waits; the tagged answer tells it to give up.
                    }
                    self.skip(length, limit).await?;
                }
            }
            let line = self.line(limit).await?;
            announced = announces_literal(&line);
            if refused.is_none() {
                taken += line.len();
                if taken > allowed {
                    return Err(Error::TooLong);
                }
                pieces.push(Piece::Line(line));
            }
        }
        match (refused, pieces.into_iter()) {
            (None, pieces) => Ok(Received::Command { pieces: pieces.collect(), charge }),
            (Some(error), mut pieces) => {
                let first_line = match pieces.next() {
                    Some(Piece::Line(line)) => line,
                    _ => Vec::new(),
                };
                Ok(Received::Refused { first_line, error })
            }
        }
    }

    async fn literal(&mut self, length: usize, limit: Duration) -> Result<Vec<u8>> {
        // Memory as octets come: an announcement alone costs nothing.
        let mut value = Vec::with_capacity(length.min(MAX_LINE));
        while value.len() < length {
            let chunk = self.chunk(length - value.len(), limit).await?;
            value.extend_from_slice(chunk);
            let taken = chunk.len();
            self.reader.consume(taken);
        }
        Ok(value)
    }

    async fn skip(&mut self, mut length: u64, limit: Duration) -> Result<()> {
        if length > MAX_SKIPPED {
            return Err(Error::TooLong);
        }
        while length > 0 {
            let taken = self.chunk(usize::try_from(length).unwrap_or(MAX_LINE), limit).await?.len();
            self.reader.consume(taken);
            length -= taken as u64;
        }
        Ok(())
    }

    /// Some octets, at least one and at most `most`, still to be consumed.
    async fn chunk(&mut self, most: usize, limit: Duration) -> Result<&[u8]> {
        let filled = tokio::select! {
            () = self.stop.cancelled() => return Err(Error::Stopped),
            filled = timeout(limit, self.reader.fill_buf()) => filled.map_err(|_| Error::Silent)??,
        };
        if filled.is_empty() {
            return Err(Error::Closed);
        }
        Ok(&filled[..filled.len().min(most)])
    }

    /// Adds to what is sent by the next flush.
    pub fn push(&mut self, text: impl AsRef<[u8]>) {
        self.out.extend_from_slice(text.as_ref());
    }

    /// The buffer itself, for those that format into it.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// `{n}` and the octets; large ones are sent from where they are.
    pub async fn push_literal(&mut self, data: &[u8]) -> Result<()> {
        self.push(format!("{{{}}}\r\n", data.len()));
        if data.len() < BATCH {
            self.push(data);
            return self.flush_batch().await;
        }
        self.flush().await?;
        for chunk in data.chunks(BATCH) {
            Self::write(&mut self.writer, chunk, &self.stop).await?;
        }
        Ok(())
    }

    /// Sends if a batch is full.
    pub async fn flush_batch(&mut self) -> Result<()> {
        if self.out.len() < BATCH { Ok(()) } else { self.flush().await }
    }

    pub async fn flush(&mut self) -> Result<()> {
        let written = Self::write(&mut self.writer, &self.out, &self.stop).await;
        self.out.clear();
        self.out.shrink_to(BATCH);
        written
    }

    async fn write(
        writer: &mut (dyn AsyncWrite + Send + Unpin),
        data: &[u8],
        stop: &CancellationToken,
    ) -> Result<()> {
        let write = async {
            writer.write_all(data).await?;
            writer.flush().await
        };
        tokio::select! {
            biased; // What can be sent at once is sent even when stopping.
            written = timeout(WRITE_LIMIT, write) => Ok(written.map_err(|_| Error::Silent)??),
            () = stop.cancelled() => Err(Error::Stopped),
        }
    }

    /// The last words. The peer may not take them, and then nothing is lost.
    pub async fn close(mut self, text: &str) {
        self.push(text);
        let _ = self.flush().await;
        let _ = timeout(Duration::from_secs(1), self.writer.shutdown()).await;
    }
}

async fn read_line(
    reader: &mut BufReader<Box<dyn AsyncRead + Send + Unpin>>,
    line: &mut Vec<u8>,
) -> Result<Vec<u8>> {
    loop {
        let filled = reader.fill_buf().await?;
        if filled.is_empty() {
            return Err(Error::Closed);
        }
        let end = memchr::memchr(b'\n', filled);
        let taken = end.map_or(filled.len(), |end| end + 1);
        if line.len() + taken > MAX_LINE {
            return Err(Error::TooLong);
        }
        line.extend_from_slice(&filled[..taken]);
        reader.consume(taken);
        if end.is_some() {
            let mut line = std::mem::take(line);
            line.pop();
            line.pop_if(|byte| *byte == b'\r');
            return Ok(line);
        }
    }
}

fn names_append(line: &[u8]) -> bool {
    line.split(|byte| *byte == b' ').nth(1).is_some_and(|name| name.eq_ignore_ascii_case(b"APPEND"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mailbox::Store;

    #[tokio::test]
    async fn literals_are_collected_wherever_the_stream_is_cut() {
        let input = b"a LOGIN {3+}\r\n\r\n\0 {1}\r\nx\r\nrest";
        for cut in 0..input.len() {
            let (mut client, server) = tokio::io::duplex(4096);
            let mut wire = Wire::new(server, CancellationToken::new());
            let feed = async {
                client.write_all(&input[..cut]).await.unwrap();
                tokio::task::yield_now().await;
                client.write_all(&input[cut..]).await.unwrap();
            };
            let charge = Store::new().charge();
            let read = wire.command(Duration::from_secs(5), false, charge);
            let (received, ()) = tokio::join!(read, feed);
            let Ok(Received::Command { pieces, .. }) = received else { panic!("cut at {cut}") };
            let expected = [
                Piece::Line(b"a LOGIN {3+}".to_vec()),
                Piece::Literal(b"\r\n\0".to_vec()),
                Piece::Line(b" {1}".to_vec()),
                Piece::Literal(b"x".to_vec()),
                Piece::Line(Vec::new()),
            ];
            assert_eq!(pieces, expected, "cut at {cut}");
        }
    }
}
