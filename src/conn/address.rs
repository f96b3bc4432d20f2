//! Two addresses, two types, never mixed: the socket's other end, and the person.
//!
//! Behind a balancer they differ. What is decided about a person (limits, the log, what the backend is told, which failures
//! are logged) goes by [`ClientAddr`]; who may announce one, by [`PeerAddr`].
//! Invariant: neither is an IPv4 address in IPv6 clothes.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// The other end of a socket: the client itself, or a balancer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PeerAddr(SocketAddr);

impl PeerAddr {
    pub fn new(peer: SocketAddr) -> Self {
        Self(unmapped(peer))
    }

    pub fn ip(self) -> IpAddr {
        self.0.ip()
    }
}

impl fmt::Display for PeerAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The person's address: the peer's, unless a balancer that is believed has announced another.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ClientAddr(SocketAddr);

impl ClientAddr {
    /// Of a client that comes by itself.
    pub fn of(peer: PeerAddr) -> Self {
        Self(peer.0)
    }

    /// Of a client that a balancer speaks for.
    pub fn announced(client: SocketAddr) -> Self {
        Self(unmapped(client))
    }

    pub fn ip(self) -> IpAddr {
        self.0.ip()
    }

    pub fn port(self) -> u16 {
        self.0.port()
    }

    pub fn socket(self) -> SocketAddr {
        self.0
    }
}

impl fmt::Display for ClientAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An IPv4 address of a dual-stack socket as what it is.
pub fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
