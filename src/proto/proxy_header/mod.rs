//! PROXY headers: who is behind a connection, said by whoever made it before anything else.
//!
//! Standard: HAProxy's `doc/proxy-protocol.txt`, version 1 (a line) and version 2 (binary, with TLVs). [`read()`] for what a
//! balancer sends us, [`v1`] and [`v2`] for what a server is sent.
//! Not here: who is believed, and how long is waited (`conn::proxy_header`); what which server is told
//! (`backend::identity`).

mod read;

mod write;

use std::net::SocketAddr;

pub use read::{Error, Flaw, Header, MAX_HEADER, announces, read};
pub use write::{Certificate, Tls, Tlvs, host_name, local, v1, v2};

/// How version 1 begins.
const V1: &[u8] = b"PROXY ";
/// How version 2 begins; chosen so that no server takes it for anything else.
pub const V2: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family and transport, length.
const V2_FIXED: usize = 16;
/// The longest line of version 1, CRLF included.
const MAX_V1: usize = 107;

/// Second half of the 13th byte.
const LOCAL: u8 = 0;
const PROXY: u8 = 1;
/// The 14th byte.
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;

const TYPE_ALPN: u8 = 0x01;
const TYPE_AUTHORITY: u8 = 0x02;
const TYPE_CRC32C: u8 = 0x03;
const TYPE_UNIQUE_ID: u8 = 0x05;
const TYPE_SSL: u8 = 0x20;
const TYPE_SSL_VERSION: u8 = 0x21;
const TYPE_SSL_CIPHER: u8 = 0x23;

/// The connection of a client: from where it comes and where it arrived, which is unspecified where a balancer can't say it as
/// an address. Neither is an IPv4 address in IPv6 clothes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ends {
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

impl Ends {
    pub fn new(source: SocketAddr, destination: SocketAddr) -> Self {
        let plain = |end: SocketAddr| SocketAddr::new(end.ip().to_canonical(), end.port());
        Self { source: plain(source), destination: plain(destination) }
    }
}

/// CRC-32C (RFC 9260 appendix A). A header has a few hundred bytes, so no table.
fn crc32c(pieces: &[&[u8]]) -> u32 {
    let mut crc = u32::MAX;
    for byte in pieces.iter().copied().flatten() {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

#[cfg(test)]
mod tests;
