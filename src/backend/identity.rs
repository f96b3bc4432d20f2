//! What a server is told of who calls.
//!
//! In: a [`Caller`], or none for a look of our own. Nothing in it was said by the client without having been checked:
//! addresses are those of sockets or of a balancer that is believed.

use std::net::SocketAddr;

use crate::conn::tls::Handshake;

/// The client for whom a connection to a server is made.
#[derive(Clone, Copy)]
pub struct Caller<'a> {
    /// The person's address.
    pub client: SocketAddr,
    /// Where the person connected to.
    pub listener: SocketAddr,
    /// The session's id, as in the log.
    pub session: u64,
    pub handshake: Option<&'a Handshake>,
}
