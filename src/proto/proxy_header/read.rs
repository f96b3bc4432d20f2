//! Reads a header.
//!
//! In: everything that came on a connection so far, cut anywhere. Out, by [`read()`]: more is needed, or what the header says
//! and how long it is, or why it is none. Nothing behind the header is looked at.
//! LOCAL and UNKNOWN, and families that can't be a mail client's, leave the connection its own addresses.
//! In version 1 the addresses say themselves of which family they are, so the word before them decides nothing: nginx
//! writes the client's family there, whatever the destination is, and `unix:/path` for a destination that is no address.
//! Limits: 107 bytes of version 1, [`MAX_HEADER`] of version 2.
//! What is announced is checked for its form only: TLVs have to fill the header, and a checksum has to be right. They
//! are not used: what a balancer says of TLS is not about ours.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Ends, LOCAL, MAX_V1, PROXY, TCP4, TCP6, TYPE_CRC32C, V1, V2, V2_FIXED, crc32c};

/// Bytes of a whole header of version 2. Balancers send less than 600, and 2 KB more with a client's certificate in it;
/// nginx has the same limit.
pub const MAX_HEADER: usize = 4096;

/// What a header says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Header {
    /// The connection is the sender's own (a health check), or it can't say whose.
    Own,
    Client(Ends),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("it is no PROXY header")]
    Missing,
    #[error("a line of version 1 without an end in 107 bytes")]
    Endless,
    #[error("a line of version 1 in which {0}")]
    Line(Flaw),
    #[error("version {0}, which does not exist")]
    Version(u8),
    #[error("command {0}, which does not exist")]
    Command(u8),
    #[error("address family or transport {0:#04x}, which does not exist")]
    Family(u8),
    #[error("{0} bytes, and 4096 are allowed")]
    TooLong(usize),
    #[error("the addresses are cut off")]
    Addresses,
    #[error("a TLV is cut off")]
    Tlv,
    #[error("the checksum is wrong")]
    Checksum,
}

/// What is wrong with a line of version 1.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Flaw {
    #[error("the protocol is none of TCP4, TCP6 and UNKNOWN")]
    Protocol,
    #[error("the client's address can't be read")]
    Source,
    #[error("the destination's address can't be read")]
    Destination,
    #[error("the client's port can't be read")]
    SourcePort,
    #[error("the destination's port can't be read")]
    DestinationPort,
    #[error("more follows the ports")]
    More,
    #[error("bytes are no text")]
    Bytes,
}

/// Whether `input`, the first bytes of a connection, begins a header: [`None`] if there are too few to tell.
pub fn announces(input: &[u8]) -> Option<bool> {
    let begins = |start: &[u8]| input.starts_with(start);
    let may_begin = |start: &[u8]| start.starts_with(input);
    if begins(V1) || begins(&V2) {
        Some(true)
    } else if may_begin(V1) || may_begin(&V2) {
        None
    } else {
        Some(false)
    }
}

/// `input`: the first bytes of a connection. The header with its length, `None` if more of it has to come.
pub fn read(input: &[u8]) -> Result<Option<(Header, usize)>, Error> {
    match announces(input) {
        None => Ok(None),
        Some(false) => Err(Error::Missing),
        Some(true) if input.starts_with(V1) => line(input),
        Some(true) => binary(input),
    }
}

fn line(input: &[u8]) -> Result<Option<(Header, usize)>, Error> {
    let front = &input[..input.len().min(MAX_V1)];
    let Some(end) = front.windows(2).position(|pair| pair == b"\r\n") else {
        return if front.len() == MAX_V1 { Err(Error::Endless) } else { Ok(None) };
    };
    let said = str::from_utf8(&front[V1.len()..end]).map_err(|_| Error::Line(Flaw::Bytes))?;
    let mut words = said.split(' ');
    let header = match words.next() {
        Some("UNKNOWN") => Header::Own,
        Some("TCP4" | "TCP6") => Header::Client(ends(words).map_err(Error::Line)?),
        _ => return Err(Error::Line(Flaw::Protocol)),
    };
    Ok(Some((header, end + 2)))
}

fn ends<'a>(mut words: impl Iterator<Item = &'a str>) -> Result<Ends, Flaw> {
    let source = words.next().and_then(address).ok_or(Flaw::Source)?;
    let destination = words.next().and_then(|word| match word {
        unix if unix.starts_with("unix:") => Some(Ipv4Addr::UNSPECIFIED.into()),
        word => address(word),
    });
    let destination = destination.ok_or(Flaw::Destination)?;
    let from = words.next().and_then(port).ok_or(Flaw::SourcePort)?;
    let to = words.next().and_then(port).ok_or(Flaw::DestinationPort)?;
    if words.next().is_some() {
        return Err(Flaw::More);
    }
    Ok(Ends::new(SocketAddr::new(source, from), SocketAddr::new(destination, to)))
}

/// The zone of a link-local address (RFC 4007 §11), as stunnel writes it, means nothing on this machine.
fn address(word: &str) -> Option<IpAddr> {
    match word.split_once('%') {
        Some((address, zone)) if !zone.is_empty() => {
            address.parse::<Ipv6Addr>().ok().map(IpAddr::from)
        }
        _ => word.parse().ok(),
    }
}

/// In decimal, without a zero or a sign in front.
fn port(word: &str) -> Option<u16> {
    let plain = word == "0" || !word.starts_with(['0', '+']);
    if plain { word.parse().ok() } else { None }
}

/// Each byte is judged as soon as it is there, in order: so a header cut anywhere comes to the same.
fn binary(input: &[u8]) -> Result<Option<(Header, usize)>, Error> {
    let Some(&version_and_command) = input.get(12) else { return Ok(None) };
    let (version, command) = (version_and_command >> 4, version_and_command & 15);
    if version != 2 {
        return Err(Error::Version(version));
    }
    if !matches!(command, LOCAL | PROXY) {
        return Err(Error::Command(command));
    }
    let Some(&family) = input.get(13) else { return Ok(None) };
    // The family of LOCAL is ignored, and everything behind it.
    if command == PROXY && (family >> 4 > 3 || family & 15 > 2) {
        return Err(Error::Family(family));
    }
    let Some(&[high, low]) = input.get(14..V2_FIXED).and_then(<[u8]>::first_chunk) else {
        return Ok(None);
    };
    let length = V2_FIXED + usize::from(u16::from_be_bytes([high, low]));
    if length > MAX_HEADER {
        return Err(Error::TooLong(length));
    }
    let Some(header) = input.get(..length) else { return Ok(None) };
    if command == LOCAL {
        return Ok(Some((Header::Own, length)));
    }
    let block = [0, 12, 36, 216][usize::from(family >> 4)];
    let (addresses, tlvs) = header[V2_FIXED..].split_at_checked(block).ok_or(Error::Addresses)?;
    check(header, tlvs)?;
    let client = match family {
        TCP4 => pair::<4>(addresses),
        TCP6 => pair::<16>(addresses),
        _ => None,
    };
    Ok(Some((client.map_or(Header::Own, Header::Client), length)))
}

/// Two addresses, two ports.
fn pair<const N: usize>(block: &[u8]) -> Option<Ends>
where
    IpAddr: From<[u8; N]>,
{
    let (source, rest) = block.split_first_chunk::<N>()?;
    let (destination, ports) = rest.split_first_chunk::<N>()?;
    let &[a, b, c, d] = ports else { return None };
    Some(Ends::new(
        SocketAddr::new((*source).into(), u16::from_be_bytes([a, b])),
        SocketAddr::new((*destination).into(), u16::from_be_bytes([c, d])),
    ))
}

/// `tlvs`: the end of `header`.
fn check(header: &[u8], mut tlvs: &[u8]) -> Result<(), Error> {
    while let [kind, rest @ ..] = tlvs {
        let (length, rest) = rest.split_first_chunk().ok_or(Error::Tlv)?;
        let length = usize::from(u16::from_be_bytes(*length));
        let (value, rest) = rest.split_at_checked(length).ok_or(Error::Tlv)?;
        if *kind == TYPE_CRC32C {
            let sum = value.try_into().map(u32::from_be_bytes).map_err(|_| Error::Tlv)?;
            let (before, after) = header.split_at(header.len() - rest.len());
            let before = &before[..before.len() - 4];
            if crc32c(&[before, &[0; 4], after]) != sum {
                return Err(Error::Checksum);
            }
        }
        tlvs = rest;
    }
    Ok(())
}
