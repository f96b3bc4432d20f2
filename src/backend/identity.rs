//! What a server is told of who calls.
//!
//! In: a [`Caller`], or none for a look of our own. Nothing in it was said by the client without having been checked:
//! addresses are those of sockets or of a balancer that is believed.
//! Out: the PROXY header that goes to the server before anything else ([`header`]), if it expects one. A look has a header
//! as well, since a server that expects one speaks to nobody without.
//! Limits: what a header may take is the server's limit (Cyrus looks at 232 bytes, Dovecot at 1500), and whatever is sent
//! here stays below 536, so that it arrives in one piece.
//! Not here: how a header is written (`proto::proxy_header`), the other ways to say who calls (`introduction`, `transparent`).

use std::net::SocketAddr;

use crate::config::settings::{Identity, ProxyTlvs};
use crate::conn::address::ClientAddr;
use crate::conn::close::session_id;
use crate::conn::tls::Handshake;
use crate::proto::imap::id::Fields;
use crate::proto::proxy_header::{self, Certificate, Ends, Tls, Tlvs};

/// The client for whom a connection to a server is made.
#[derive(Clone, Copy)]
pub struct Caller<'a> {
    /// The person's address.
    pub client: ClientAddr,
    /// Where the person connected to: us, or the balancer in front.
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

impl Caller<'_> {
    fn ends(&self) -> Ends {
        Ends::new(self.client.socket(), self.listener)
    }
}

/// The PROXY header; empty where the server expects none. `link`: our connection to the server, from us to it.
///
/// A look of our own is LOCAL (UNKNOWN in version 1), where that shows what sessions are shown. A server that is told of
/// TLS shows others a list of its own (Dovecot: LOGINDISABLED, and no AUTH=PLAIN), and what a look is shown all clients are told. So
/// there the look says that it comes from us, and by TLS, as everybody does for whom it looks.
pub fn header(identity: Identity, caller: Option<&Caller<'_>>, link: Option<Ends>) -> Vec<u8> {
    match (identity, caller) {
        (Identity::ProxyV1, caller) => proxy_header::v1(caller.map(Caller::ends).as_ref()),
        (Identity::ProxyV2(preset), Some(caller)) => session(preset, caller),
        (Identity::ProxyV2(preset), None) => look(preset, link),
        (Identity::None | Identity::DovecotId | Identity::Transparent, _) => Vec::new(),
    }
}

fn look(preset: ProxyTlvs, link: Option<Ends>) -> Vec<u8> {
    let told_of_tls = match preset {
        ProxyTlvs::Generic | ProxyTlvs::Cyrus => false,
        ProxyTlvs::Stalwart | ProxyTlvs::Dovecot23 | ProxyTlvs::Dovecot24 => true,
    };
    let tls = Tls { version: None, cipher: None, certificate: Certificate::None };
    match link {
        Some(link) if told_of_tls => {
            proxy_header::v2(&link, &Tlvs { tls: Some(tls), ..Tlvs::default() })
        }
        _ => proxy_header::local(),
    }
}

/// Dovecot skips what it does not know, and closes the connection over an ALPN that is not `imap` and an AUTHORITY that is
/// no name; 2.3 has no use for ALPN. Cyrus ignores TLVs and has room for few; Stalwart wants to know of TLS only.
fn session(preset: ProxyTlvs, caller: &Caller<'_>) -> Vec<u8> {
    let id = session_id(caller.session);
    let shaken = caller.handshake;
    let tls = shaken.map(|shaken| Tls {
        version: Some(shaken.version()),
        cipher: shaken.openssl_cipher(),
        certificate: match shaken.identity {
            Some(_) => Certificate::Verified { resumed: shaken.resumed },
            None => Certificate::None,
        },
    });
    let dovecot = Tlvs {
        alpn: None,
        authority: shaken.and_then(|shaken| shaken.sni.as_deref()),
        unique_id: Some(id.as_bytes()),
        tls,
        checksum: true,
    };
    let tlvs = match preset {
        ProxyTlvs::Generic | ProxyTlvs::Cyrus => Tlvs::default(),
        ProxyTlvs::Stalwart => Tlvs { tls, ..Tlvs::default() },
        ProxyTlvs::Dovecot23 => dovecot,
        ProxyTlvs::Dovecot24 => {
            let imap = shaken.is_some_and(|shaken| shaken.alpn);
            Tlvs { alpn: imap.then_some(b"imap"), ..dovecot }
        }
    };
    proxy_header::v2(&caller.ends(), &tlvs)
}
