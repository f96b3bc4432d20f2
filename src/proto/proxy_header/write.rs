//! Writes a header.
//!
//! In: both [`Ends`] of the client's connection, and for version 2 what else is to be said ([`Tlvs`]). Out: bytes that go
//! out in one write, before anything else. A line has at most 104 bytes; what version 2 needs is the sum of its
//! TLVs, 391 bytes with all that are here and the longest name, so that it always fits into one segment (536).
//! Both ends are written in the family of the source, which is the person's address and must arrive as it is: a
//! destination of the other family becomes `::ffff:a.b.c.d`, or `0.0.0.0` with its port.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::{
    Ends, LOCAL, PROXY, TCP4, TCP6, TYPE_ALPN, TYPE_AUTHORITY, TYPE_CRC32C, TYPE_SSL,
    TYPE_SSL_CIPHER, TYPE_SSL_VERSION, TYPE_UNIQUE_ID, V2, V2_FIXED, crc32c,
};

/// What version 2 says besides the addresses; nothing by default.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tlvs<'a> {
    /// What was negotiated.
    pub alpn: Option<&'a [u8]>,
    /// The server name that the client asked for, if it is a host name: others are left out.
    pub authority: Option<&'a str>,
    /// At most 128 bytes.
    pub unique_id: Option<&'a [u8]>,
    pub tls: Option<Tls<'a>>,
    pub checksum: bool,
}

/// The client's TLS.
#[derive(Clone, Copy, Debug)]
pub struct Tls<'a> {
    /// As OpenSSL writes it: `TLSv1.3`.
    pub version: Option<&'a str>,
    /// As OpenSSL writes it: `ECDHE-RSA-AES128-GCM-SHA256`.
    pub cipher: Option<&'a str>,
    pub certificate: Certificate,
}

/// The client's certificate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Certificate {
    None,
    /// Given and verified: in this connection, or when the session that is resumed began.
    Verified {
        resumed: bool,
    },
}

/// Version 1; `None`: the connection is our own.
pub fn v1(ends: Option<&Ends>) -> Vec<u8> {
    let Some(ends) = ends else { return b"PROXY UNKNOWN\r\n".to_vec() };
    let (source, destination) = in_one_family(ends);
    let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
    let (from, to) = (source.ip(), destination.ip());
    let (from_port, to_port) = (source.port(), destination.port());
    format!("PROXY {family} {from} {to} {from_port} {to_port}\r\n").into_bytes()
}

/// Version 2, for a connection of our own: 16 bytes and not one more, which old readers choke on.
pub fn local() -> Vec<u8> {
    let mut header = V2.to_vec();
    header.extend([0x20 | LOCAL, 0, 0, 0]);
    header
}

/// Version 2.
pub fn v2(ends: &Ends, tlvs: &Tlvs<'_>) -> Vec<u8> {
    let mut header = V2.to_vec();
    let (source, destination) = in_one_family(ends);
    header.extend([0x20 | PROXY, if source.is_ipv4() { TCP4 } else { TCP6 }, 0, 0]);
    for end in [source, destination] {
        match end.ip() {
            IpAddr::V4(ip) => header.extend(ip.octets()),
            IpAddr::V6(ip) => header.extend(ip.octets()),
        }
    }
    for end in [source, destination] {
        header.extend(end.port().to_be_bytes());
    }
    if let Some(tls) = &tlvs.tls {
        put(&mut header, TYPE_SSL, &ssl(tls));
    }
    if let Some(name) = tlvs.authority.and_then(host_name) {
        put(&mut header, TYPE_AUTHORITY, name.as_bytes());
    }
    if let Some(protocol) = tlvs.alpn {
        put(&mut header, TYPE_ALPN, protocol);
    }
    if let Some(id) = tlvs.unique_id {
        debug_assert!(id.len() <= 128);
        put(&mut header, TYPE_UNIQUE_ID, id);
    }
    if tlvs.checksum {
        put(&mut header, TYPE_CRC32C, &[0; 4]);
    }
    let length = u16::try_from(header.len() - V2_FIXED).expect("its parts are short");
    header[14..V2_FIXED].copy_from_slice(&length.to_be_bytes());
    if tlvs.checksum {
        let sum = crc32c(&[&header]);
        let at = header.len() - 4;
        header[at..].copy_from_slice(&sum.to_be_bytes());
    }
    header
}

fn ssl(tls: &Tls<'_>) -> Vec<u8> {
    const TLS: u8 = 1;
    const CERTIFICATE_NOW: u8 = 2;
    const CERTIFICATE_IN_SESSION: u8 = 4;
    let (client, verify) = match tls.certificate {
        // Nothing was verified, and whoever believes "0" would take anybody for whom he says he is.
        Certificate::None => (TLS, 1_u32),
        Certificate::Verified { resumed: true } => (TLS | CERTIFICATE_IN_SESSION, 0),
        Certificate::Verified { resumed: false } => {
            (TLS | CERTIFICATE_NOW | CERTIFICATE_IN_SESSION, 0)
        }
    };
    let mut value = vec![client];
    value.extend(verify.to_be_bytes());
    for (kind, name) in [(TYPE_SSL_VERSION, tls.version), (TYPE_SSL_CIPHER, tls.cipher)] {
        if let Some(name) = name {
            put(&mut value, kind, name.as_bytes());
        }
    }
    value
}

fn put(header: &mut Vec<u8>, kind: u8, value: &[u8]) {
    let length = u16::try_from(value.len()).expect("values are short");
    header.push(kind);
    header.extend(length.to_be_bytes());
    header.extend_from_slice(value);
}

fn in_one_family(ends: &Ends) -> (SocketAddr, SocketAddr) {
    let Ends { source, destination } = *ends;
    let ip = match (source.ip(), destination.ip()) {
        (IpAddr::V4(_), IpAddr::V6(_)) => Ipv4Addr::UNSPECIFIED.into(),
        (IpAddr::V6(_), IpAddr::V4(ip)) => ip.to_ipv6_mapped().into(),
        (_, ip) => ip,
    };
    (source, SocketAddr::new(ip, destination.port()))
}

/// Letters, digits and hyphens between dots (RFC 1123 §2.1), for Dovecot 2.4 closes the connection over anything else; without
/// the dot of the root. A number at the end would make it an address.
pub fn host_name(name: &str) -> Option<&str> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let address = |name: &str| {
        let last = name.rsplit('.').next().unwrap_or_default();
        last.bytes().all(|byte| byte.is_ascii_digit())
    };
    (name.len() <= 253 && name.split('.').all(label) && !address(name)).then_some(name)
}
