//! From an address to a connection that has greeted us.
//!
//! Connected (`connect`), the server is told who calls as far as it wants to know (`identity`), TLS begins where it
//! is spoken, and the greeting is read. Only `* OK` is a greeting: a server that greets PREAUTH would log
//! everybody in as somebody else, one that says BYE is down, and anything else is no IMAP server.
//! None of them gets a password.

use std::io;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::time::{Instant, timeout_at};

use super::connect::connect;
use super::identity::{self, Caller, Untold};
use super::resolve::Address;
use super::stream::Stream;
use super::{secure, transparent};
use crate::config::settings::{self, Identity};
use crate::conn::socket;
use crate::dns;
use crate::proto::imap::refusal;
use crate::proto::imap::response::{self, Kind, Response};
use crate::proto::imap::upgrade;
use crate::proto::proxy_header::Ends;
use crate::tls::backend::Connector;

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
    pub stream: Stream,
    /// What the server sent behind the greeting.
    pub input: Vec<u8>,
    /// The greeting's text, its code included.
    pub greeting: Vec<u8>,
    /// What it has said so far that the person must see: untagged responses, ready for a client.
    pub alerts: Vec<u8>,
    /// It got our ID, and in it what the client told of itself.
    pub introduced: bool,
    /// Why it does not know who the client is, if it should and does not.
    pub untold: Option<Untold>,
}

impl Link {
    fn new(stream: Stream, input: Vec<u8>, greeting: Vec<u8>) -> Self {
        let alerts = refusal::alert(Kind::Ok, &greeting).unwrap_or_default();
        Self { stream, input, greeting, alerts, introduced: false, untold: None }
    }
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
    /// BYE or closed before its greeting, while it serves others.
    Full,
    Id,
    /// It agrees to no STARTTLS.
    Starttls,
    /// Something came together with its OK to STARTTLS.
    PlaintextAfterStarttls,
    /// The handshake fails.
    Tls,
    /// Its certificate is not good enough.
    Certificate,
    OutOfDescriptors,
}

impl Failure {
    /// It says nothing about the server.
    pub fn is_ours(self) -> bool {
        matches!(self, Self::OutOfDescriptors)
    }

    /// A server with no room for another connection fails so; others do, too.
    pub fn turns_away(self) -> bool {
        matches!(self, Self::Bye | Self::Closed)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{host} does not resolve: {why}")]
    Resolve { host: String, why: dns::Error },
    #[error("can't connect to {address}: {}", socket::why(source))]
    Connect { address: Address, source: io::Error },
    #[error("no connection within {0:?} (backend.connect_timeout)")]
    Timeout(Duration),
    #[error("no greeting within {0:?} (timeouts.backend_greeting)")]
    GreetingTimeout(Duration),
    #[error("TLS does not come about within {0:?} (timeouts.backend_greeting)")]
    HandshakeTimeout(Duration),
    #[error("it closed the connection before it said anything useful")]
    Closed,
    #[error("it does not greet as an IMAP server does: {0:?}")]
    NotImap(String),
    #[error("it greets PREAUTH: everybody would be logged in as somebody else")]
    Preauth,
    #[error("it says BYE: {:?}", shown(.0))]
    Bye(Vec<u8>),
    #[error("it was told by ID who calls, and then: {0}")]
    Id(String),
    #[error(transparent)]
    Secure(#[from] secure::Error),
}

impl Error {
    /// What the server said that the person must see, as an untagged response.
    pub fn alert(&self) -> Option<Vec<u8>> {
        match self {
            Self::Bye(text) => refusal::alert(Kind::Bye, text),
            _ => None,
        }
    }

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
            Self::GreetingTimeout(_) | Self::HandshakeTimeout(_) => Failure::GreetingTimeout,
            Self::Closed => Failure::Closed,
            Self::NotImap(_) => Failure::NotImap,
            Self::Preauth => Failure::Preauth,
            Self::Bye(_) => Failure::Bye,
            Self::Id(_) => Failure::Id,
            Self::Secure(secure::Error::Handshake(_)) => Failure::Tls,
            Self::Secure(secure::Error::Certificate(_)) => Failure::Certificate,
            Self::Secure(secure::Error::StartTls(upgrade::Error::Injected)) => {
                Failure::PlaintextAfterStarttls
            }
            Self::Secure(secure::Error::StartTls(_)) => Failure::Starttls,
        }
    }
}

/// Connects, begins TLS where it is spoken (`tls`), reads the greeting. `caller`: whose session it is for, if it is for one.
pub async fn dial(
    address: &Address,
    server: &settings::Server,
    tls: Option<&Connector>,
    timeouts: &Timeouts,
    caller: Option<&Caller<'_>>,
) -> Result<Link, Error> {
    if server.tls.is_some() && tls.is_none() {
        debug_assert!(false, "a server with `tls` has a connector");
        return Err(Error::Closed); // and never a password in plaintext
    }
    let client = caller.filter(|_| server.identity == Identity::Transparent);
    let source = client.and_then(|caller| transparent::source(caller.client.ip(), address));
    let stream = connect(address, source, timeouts.connect).await?;
    let link = stream.addresses().map(|(ours, theirs)| Ends::new(ours, theirs));
    let header = identity::header(server.identity, caller, link);
    let mut link = open(stream, &header, tls, timeouts.greeting).await?;
    link.untold = (client.is_some() && source.is_none()).then_some(Untold::OwnAddress);
    Ok(link)
}

/// From a connection to a greeting inside TLS, if there is TLS, all of it within `limit`. `header` goes first and in one
/// write: Dovecot looks at what has arrived once, and at nothing that comes later.
async fn open(
    mut stream: Stream,
    header: &[u8],
    tls: Option<&Connector>,
    limit: Duration,
) -> Result<Link, Error> {
    let deadline = Instant::now() + limit;
    match timeout_at(deadline, stream.send(header)).await {
        Ok(Ok(())) => {}
        Ok(Err(_)) => return Err(Error::Closed),
        Err(_) => return Err(Error::GreetingTimeout(limit)),
    }
    let greeting = async |stream| match timeout_at(deadline, greeting(stream)).await {
        Ok(result) => result,
        Err(_) => Err(Error::GreetingTimeout(limit)),
    };
    let Some(tls) = tls else { return greeting(stream).await };
    let handshake = async |stream| match timeout_at(deadline, secure::begin(stream, tls)).await {
        Ok(result) => result.map_err(Error::from),
        Err(_) => Err(Error::HandshakeTimeout(limit)),
    };
    if tls.is_implicit() {
        return greeting(handshake(stream).await?).await;
    }
    let Link { mut stream, input, greeting: text, .. } = greeting(stream).await?;
    match timeout_at(deadline, secure::agree(&mut stream, &text, input)).await {
        Ok(agreed) => agreed.map_err(secure::Error::from)?,
        Err(_) => return Err(Error::HandshakeTimeout(limit)),
    }
    let stream = handshake(stream).await?;
    Ok(Link::new(stream, Vec::new(), without_codes(&text).to_vec()))
}

/// What stays of a greeting from before TLS: its words for people. A code counts for nothing there, however many there are.
fn without_codes(mut text: &[u8]) -> &[u8] {
    while let Some((_, words)) = response::code(text) {
        text = words;
    }
    text
}

async fn greeting(mut stream: Stream) -> Result<Link, Error> {
    let mut input = Vec::with_capacity(1024);
    loop {
        let whole = response::next(&input, MAX_GREETING);
        if let Some(response::Whole { response, line, length }) =
            whole.map_err(|_| Error::NotImap(shown(&input)))?
        {
            let greeting = match response {
                Response::Status { kind: Kind::Ok, text } => text.to_vec(),
                Response::Status { kind: Kind::PreAuth, .. } => return Err(Error::Preauth),
                Response::Status { kind: Kind::Bye, text } => {
                    return Err(Error::Bye(text.to_vec()));
                }
                _ => return Err(Error::NotImap(shown(line))),
            };
            input.drain(..length);
            return Ok(Link::new(stream, input, greeting));
        }
        match stream.read_buf(&mut input).await {
            Ok(1..) => {}
            // Such as an alert, which in TLS 1.3 comes when the handshake is done for us.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(secure::why(&error, true).into());
            }
            Ok(0) | Err(_) if input.trim_ascii().is_empty() => return Err(Error::Closed),
            Ok(0) | Err(_) => return Err(Error::NotImap(shown(&input))),
        }
    }
}

fn shown(text: &[u8]) -> String {
    crate::log::printable(&text[..text.len().min(80)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_code_of_a_greeting_outlives_it() {
        for (text, words) in [
            (&b"hi [x]"[..], &b"hi [x]"[..]),
            (b"[CAPABILITY IMAP4rev1 STARTTLS] hi", b"hi"),
            (b"[X] [CAPABILITY IMAP4rev1 STARTTLS] hi", b"hi"),
            (b"[X][CAPABILITY IMAP4rev1] [] hi", b"hi"),
            (b"[X", b"[X"),
        ] {
            assert_eq!(without_codes(text), words, "{}", String::from_utf8_lossy(text));
        }
    }
}
