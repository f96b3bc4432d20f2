//! The PROXY header, from those who must send one: behind it the client's address is known.
//!
//! In: a socket and its peer. Out: the same socket, from which nothing was read behind the header, and where the client
//! arrived; its address goes to the session, and from there everywhere.
//! Who must send a header stands in `listen[].proxy_protocol_from`, and nothing else decides: whether bytes look like one is
//! never asked, or anybody could be whoever he says (the specification's chapter 2). A peer in it without a
//! header is closed; one that is not in it is a client, and its header is no TLS ([`super::tls`], [`super::starttls`]).
//! Limits: [`WAIT`] for the whole header, its length by [`crate::proto::proxy_header`].

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Context;
use super::address::{ClientAddr, PeerAddr, unmapped};
use super::close::{Reason, Session, session_id};
use super::failure::{Failed, Failure};
use crate::log::printable;
use crate::proto::proxy_header::{self, Error, Header};

/// A balancer sends it at once; three seconds are the least that the specification grants, for a segment that is lost.
const WAIT: Duration = Duration::from_secs(5);
/// Bytes of one look: more than balancers send.
const CHUNK: usize = 512;

/// A connection whose client is known.
pub struct Arrival {
    pub socket: TcpStream,
    /// Where the client connected to: here, or at the balancer.
    pub listener: SocketAddr,
}

/// Reads the header if there must be one.
pub async fn receive(
    mut socket: TcpStream,
    peer: PeerAddr,
    session: &mut Session,
    ctx: &Context,
) -> Result<Arrival, Reason> {
    // Unspecified if the socket is gone.
    let local = socket.local_addr().unwrap_or_else(|_| (Ipv4Addr::UNSPECIFIED, 0).into());
    let mut listener = unmapped(local);
    let must_send = |networks: &[ipnet::IpNet]| networks.iter().any(|net| net.contains(&peer.ip()));
    if must_send(&session.listener.proxy_protocol_from) {
        let header = timeout(WAIT, header(&mut socket)).await.unwrap_or_else(|_| {
            let late = format!("no whole header within {WAIT:?}");
            Err(Failed { detail: Some(late), ..Failure::ProxyHeaderMissing.into() })
        });
        if let Header::Client(ends) = header.map_err(|failed| failed.report(session, ctx))? {
            session.client = ClientAddr::announced(ends.source);
            if !ends.destination.ip().is_unspecified() {
                listener = ends.destination;
            }
            let (session, client) = (session_id(session.id), session.client);
            tracing::debug!(session, %peer, %client, %listener, "PROXY header");
        }
    }
    Ok(Arrival { socket, listener })
}

/// Looks before it takes, so that what comes behind the header stays where it is.
async fn header(socket: &mut TcpStream) -> Result<Header, Failed> {
    let mut input = Vec::new();
    loop {
        let taken = input.len();
        input.resize(taken + CHUNK, 0);
        let seen = socket.peek(&mut input[taken..]).await.map_err(|_| Failure::Closed)?;
        if seen == 0 {
            return Err(Failure::Closed.into());
        }
        let so_far = &input[..taken + seen];
        let whole = proxy_header::read(so_far).map_err(|error| refused(error, so_far))?;
        let end = whole.map_or(taken + seen, |(_, length)| length);
        socket.read_exact(&mut input[taken..end]).await.map_err(|_| Failure::Closed)?;
        if let Some((header, _)) = whole {
            return Ok(header);
        }
        input.truncate(end);
    }
}

/// A line is shown as it came: who sent it is trusted, and what is wrong with it is seen at once.
fn refused(error: Error, input: &[u8]) -> Failed {
    let failure = match error {
        Error::Missing => Failure::ProxyHeaderMissing,
        _ => Failure::ProxyHeaderMalformed,
    };
    let mut detail = error.to_string();
    if let Error::Line(_) | Error::Endless = error {
        let line = input.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
        detail = format!("{detail}: {}", printable(line));
    }
    Failed { detail: Some(detail), ..failure.into() }
}
