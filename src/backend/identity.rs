//! What a server is told of who calls.
//!
//! In: a [`Caller`], or none for a look of our own. Nothing in it was said by the client without having been checked:
//! addresses are those of sockets or of a balancer that is believed.

use std::net::SocketAddr;

use crate::conn::tls::Handshake;
use crate::proto::imap::id::Fields;

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
    /// What it told of itself, without what must not be believed.
    pub id: &'a Fields,
    /// How many proxies there may be after us.
    pub hops: u32,
    /// For a command of ours, not to be guessed.
    pub tag: &'a [u8],
}

/// Why a server takes the client for the proxy, though it should not.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Untold {
    #[error("it does not offer ID")]
    NoId,
    #[error("it refuses our ID: {0:?}")]
    Refused(String),
    #[error(
        "it can't be reached from the client's address, which is of another family or means another machine there"
    )]
    OwnAddress,
}
