//! From an address to a connection that has greeted us.
//!
//! Connected (`connect`), the server is told who calls as far as it wants to know (`identity`), TLS begins where it
//! is spoken, and the greeting is read. Only `* OK` is a greeting: a server that greets PREAUTH would log
//! everybody in as somebody else, one that says BYE is down, and anything else is no IMAP server.
//! None of them gets a password.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::connect::connect;
use super::identity::{self, Caller};
use super::resolve::Address;
use crate::config::settings;
use crate::conn::socket;
use crate::proto::imap::response::{self, Kind, Response};
use crate::proto::proxy_header::Ends;

/// Longest greeting line; Dovecot's lines end at 8 KiB.
const MAX_GREETING: usize = 8 * 1024;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Timeouts {
    /// For the connection.
    pub connect: Duration,
    /// From the connection to the whole greeting.
    pub greeting: Duration,
}

/// A connection behind its greeting.
pub struct Link {
    pub stream: TcpStream,
    /// What the server sent behind the greeting.
    pub input: Vec<u8>,
    /// The greeting's text, its code included.
    pub greeting: Vec<u8>,
}

/// Why a server could not be used: the label `reason`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, strum::IntoStaticStr, strum::VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Failure {
    Resolve,
    Refused,
    Unreachable,
    Timeout,
    GreetingTimeout,
    Closed,
    NotImap,
    Preauth,
    Bye,
    OutOfDescriptors,
}

impl Failure {
    /// It says nothing about the server.
    pub fn is_ours(self) -> bool {
        matches!(self, Self::OutOfDescriptors)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{host} does not resolve: {why}")]
    Resolve { host: String, why: String },
    #[error("can't connect to {address}: {}", socket::why(source))]
    Connect { address: Address, source: io::Error },
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    #[error("no greeting within {0:?}")]
    GreetingTimeout(Duration),
    #[error("it closed the connection before it said anything useful")]
    Closed,
    #[error("it does not greet as an IMAP server does: {0:?}")]
    NotImap(String),
    #[error("it greets PREAUTH: everybody would be logged in as somebody else")]
    Preauth,
    #[error("it says BYE: {0:?}")]
    Bye(String),
}

impl Error {
    pub fn failure(&self) -> Failure {
        match self {
            Self::Resolve { .. } => Failure::Resolve,
            Self::Connect { source, .. } => match source.raw_os_error() {
                _ if source.kind() == io::ErrorKind::ConnectionRefused => Failure::Refused,
                _ if source.kind() == io::ErrorKind::TimedOut => Failure::Timeout,
                _ if socket::out_of_descriptors(source) => Failure::OutOfDescriptors,
                _ => Failure::Unreachable,
            },
            Self::Timeout(_) => Failure::Timeout,
            Self::GreetingTimeout(_) => Failure::GreetingTimeout,
            Self::Closed => Failure::Closed,
            Self::NotImap(_) => Failure::NotImap,
            Self::Preauth => Failure::Preauth,
            Self::Bye(_) => Failure::Bye,
        }
    }
}

/// Connects and reads the greeting. `caller`: whose session it is for, if it is for one.
pub async fn dial(
    address: &Address,
    server: &settings::Server,
    timeouts: &Timeouts,
    caller: Option<&Caller<'_>>,
) -> Result<Link, Error> {
    let stream = connect(address, timeouts.connect).await?;
    socket::prepare(&stream);
    let link = stream.local_addr().ok().zip(stream.peer_addr().ok());
    let link = link.map(|(ours, theirs)| Ends::new(ours, theirs));
    let header = identity::header(server.identity, caller, link);
    let greeted = timeout(timeouts.greeting, greeting(stream, &header)).await;
    greeted.unwrap_or(Err(Error::GreetingTimeout(timeouts.greeting)))
}

/// `header` goes first and in one write: Dovecot looks at what has arrived once, and at nothing that comes later.
async fn greeting(mut stream: TcpStream, header: &[u8]) -> Result<Link, Error> {
    if stream.write_all(header).await.is_err() {
        return Err(Error::Closed);
    }
    let mut input = Vec::with_capacity(1024);
    loop {
        let whole = response::next(&input, MAX_GREETING);
        if let Some(response::Whole { response, line, length }) =
            whole.map_err(|_| Error::NotImap(shown(&input)))?
        {
            let greeting = match response {
                Response::Status { kind: Kind::Ok, text } => text.to_vec(),
                Response::Status { kind: Kind::PreAuth, .. } => return Err(Error::Preauth),
                Response::Status { kind: Kind::Bye, text } => return Err(Error::Bye(shown(text))),
                _ => return Err(Error::NotImap(shown(line))),
            };
            input.drain(..length);
            return Ok(Link { stream, input, greeting });
        }
        if stream.read_buf(&mut input).await.unwrap_or(0) == 0 {
            return Err(if input.is_empty() {
                Error::Closed
            } else {
                Error::NotImap(shown(&input))
            });
        }
    }
}

fn shown(text: &[u8]) -> String {
    crate::log::printable(&text[..text.len().min(80)])
}
