//! Looks at a ClientHello before anybody answers it.
//!
//! In: the first bytes of a connection, cut anywhere. Out, by [`Reader::look`]: what the hello offers (highest
//! version, SNI, ALPN, suites, groups, signature schemes), or what speaks here instead of TLS. Records after RFC 8446
//! §5.1, in as many of which the hello may be cut as the client likes; the message after §4.1.2 and RFC 6066 §3,
//! RFC 7301 §3.1. An SSL 2 hello is known by its form (RFC 5246 §E.2), which nothing here can answer.
//!
//! Why not a library: rustls' `Acceptor` tells no versions and takes 4 µs for what takes 0.3 µs here, and the connection
//! proper reads it all again; tls-parser neither joins records nor bounds them, and that is half of the work. A hello
//! in one record, as nearly all are, is read where it lies.
//!
//! **Invariant:** this never decides that a hello is good. What it can't read is [`Look::Unreadable`] and goes to
//! rustls, which says what is wrong and sends the alert; and whatever rustls takes is read here the same (a property
//! test holds the two together), but for a hello that is [`Look::Endless`]. So a mistake here costs a reason in the log,
//! and never a handshake. A server name that is no DNS name rustls does not take: [`mask()`] hides it.
//! Limits: [`MAX_HELLO`] bytes, records and all. No record is looked at twice.

mod mask;

use std::ops::Range;

use rustls_pki_types::{DnsName, ServerName};

pub use mask::{SERVER_NAME, find, mask};

use super::proxy_header;

/// Bytes that are waited for. A hello with a post-quantum key share has 1,800; rustls takes 64 KiB of message.
pub const MAX_HELLO: usize = 64 * 1024;
/// Bytes in one plaintext record (RFC 8446 §5.1).
const MAX_RECORD: usize = 1 << 14;
const HEADER: usize = 5;
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;

/// The highest version that a hello offers: the label `version`.
#[derive(
    Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, strum::IntoStaticStr, strum::VariantArray,
)]
pub enum Version {
    #[strum(serialize = "SSLv2")]
    Ssl2,
    #[strum(serialize = "SSLv3")]
    Ssl3,
    #[strum(serialize = "TLSv1.0")]
    Tls10,
    #[strum(serialize = "TLSv1.1")]
    Tls11,
    #[strum(serialize = "TLSv1.2")]
    Tls12,
    #[strum(serialize = "TLSv1.3")]
    Tls13,
    /// None of these: invented numbers only.
    #[strum(serialize = "other")]
    Other,
}

/// What the bytes so far are.
#[derive(Debug)]
pub enum Look<'a> {
    /// Too few to tell.
    More,
    Hello(ClientHello<'a>),
    Foreign(Foreign),
    /// TLS, and something about it is wrong: rustls knows what.
    Unreadable,
    /// [`MAX_HELLO`] bytes and still no whole hello: nobody's.
    Endless,
}

/// What came instead of TLS, by its first bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Foreign {
    /// Text, which on a mail port is IMAP.
    Imap,
    Http,
    /// Of either version.
    ProxyHeader,
    /// A hello in the form of SSL 2, and the highest version that it offers.
    Ssl2(Version),
    Other,
}

/// What a client offers. Everything is borrowed from where the hello lies.
#[derive(Debug)]
pub struct ClientHello<'a> {
    pub version: Version,
    pub name: Name<'a>,
    /// Where in the message the type of the extension with a name is that is [`Name::Other`].
    to_mask: Option<usize>,
    alpn: Option<&'a [u8]>,
    suites: &'a [u8],
    groups: &'a [u8],
    schemes: &'a [u8],
}

/// What a client wants to reach (RFC 6066 §3); as sent, so in any case.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Name<'a> {
    /// It does not say.
    None,
    Host(DnsName<'a>),
    /// A literal address, which has no place here and counts as none.
    Address(&'a [u8]),
    /// What somebody typed into a field for a name: `host:port`, a blank behind it, UTF-8.
    Other(&'a [u8]),
}

/// The kind of key in a certificate of ours.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Key {
    Ecdsa,
    Rsa,
}

/// Which suites and signature schemes go with which key, by IANA number: suites of TLS 1.3 with each, of TLS 1.2 by key.
/// All that rustls with aws-lc-rs speaks is among them (a test compares).
const SUITES_13: &[u16] = &[0x1301, 0x1302, 0x1303];
const SUITES_ECDSA: &[u16] = &[0xc02b, 0xc02c, 0xcca9];
const SUITES_RSA: &[u16] = &[0xc02f, 0xc030, 0xcca8];
const SCHEMES_ECDSA: &[u16] = &[0x0403, 0x0503, 0x0603];
const SCHEMES_PSS: &[u16] = &[0x0804, 0x0805, 0x0806];
const SCHEMES_PKCS1: &[u16] = &[0x0401, 0x0501, 0x0601];

impl<'a> ClientHello<'a> {
    /// Where the hello has to be masked for rustls to take it.
    pub fn to_mask(&self) -> Option<usize> {
        self.to_mask
    }

    /// The protocols that it offers by ALPN, in its order.
    pub fn alpn(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let mut rest = Cursor(self.alpn.unwrap_or_default());
        std::iter::from_fn(move || rest.list_8())
    }

    pub fn suites(&self) -> impl Iterator<Item = u16> + use<'a> {
        numbers(self.suites)
    }

    pub fn groups(&self) -> impl Iterator<Item = u16> + use<'a> {
        numbers(self.groups)
    }

    pub fn schemes(&self) -> impl Iterator<Item = u16> + use<'a> {
        numbers(self.schemes)
    }

    /// Whether its suites and signature schemes let it accept a certificate with such a key. A client with
    /// TLS 1.3 speaks that with us, also if it offers 1.2 beside it: then the suites of 1.2 are no use.
    /// `spoken`: whether a suite is one that we would take.
    pub fn takes(&self, key: Key, spoken: impl Fn(u16) -> bool) -> bool {
        let suite = |of: &[u16]| self.suites().any(|suite| of.contains(&suite) && spoken(suite));
        let scheme = |of: &[u16]| self.schemes().any(|scheme| of.contains(&scheme));
        let is_13 = self.version == Version::Tls13;
        match key {
            Key::Ecdsa => {
                suite(if is_13 { SUITES_13 } else { SUITES_ECDSA }) && scheme(SCHEMES_ECDSA)
            }
            Key::Rsa if is_13 => suite(SUITES_13) && scheme(SCHEMES_PSS),
            Key::Rsa => suite(SUITES_RSA) && (scheme(SCHEMES_PSS) || scheme(SCHEMES_PKCS1)),
        }
    }

    /// `body`: a ClientHello behind its four bytes of type and length.
    fn parse(body: &'a [u8]) -> Option<Self> {
        let mut hello = Cursor(body);
        let legacy = hello.number()?;
        let _random = hello.take(32)?;
        let _session_id = hello.list_8()?;
        let suites = hello.list_16()?;
        let _compression = hello.list_8()?;
        let mut parsed = Self {
            version: Version::of_legacy(legacy),
            name: Name::None,
            to_mask: None,
            alpn: None,
            suites,
            groups: &[],
            schemes: &[],
        };
        if hello.0.is_empty() {
            return Some(parsed); // before RFC 3546 there were no extensions
        }
        let mut extensions = Cursor(hello.list_16()?);
        if !hello.0.is_empty() {
            return None;
        }
        let mut is_taken = false;
        while !extensions.0.is_empty() {
            let at = mask::MESSAGE + body.len() - extensions.0.len();
            let kind = extensions.number()?;
            let mut data = Cursor(extensions.list_16()?);
            match kind {
                0 => {
                    parsed.name = name(Cursor(data.list_16()?))?;
                    parsed.to_mask = matches!(parsed.name, Name::Other(_)).then_some(at);
                }
                10 => parsed.groups = data.list_16()?,
                13 => parsed.schemes = data.list_16()?,
                16 => parsed.alpn = Some(data.list_16()?),
                43 => parsed.version = Version::highest(data.list_8()?),
                mask::MASKED => is_taken = true,
                _ => {}
            }
        }
        parsed.to_mask = parsed.to_mask.filter(|_| !is_taken);
        Some(parsed)
    }
}

/// The first name. `None`: what rustls refuses, and nobody means.
fn name(mut list: Cursor<'_>) -> Option<Name<'_>> {
    const HOST_NAME: u8 = 0;
    if list.byte()? != HOST_NAME {
        return None;
    }
    let name = list.list_16()?;
    Some(match ServerName::try_from(name) {
        Ok(ServerName::DnsName(host)) => Name::Host(host),
        Ok(_) => Name::Address(name),
        Err(_) => Name::Other(name),
    })
}

impl Version {
    fn of(number: u16) -> Self {
        match number {
            0x0002 => Self::Ssl2,
            0x0300 => Self::Ssl3,
            0x0301 => Self::Tls10,
            0x0302 => Self::Tls11,
            0x0303 => Self::Tls12,
            0x0304 => Self::Tls13,
            _ => Self::Other,
        }
    }

    /// By the field of old: TLS 1.3 is never offered there (RFC 8446 §4.1.2), and more than 1.2 means 1.2.
    fn of_legacy(number: u16) -> Self {
        Self::of(number.min(0x0303))
    }

    /// Of `supported_versions`, which may hold invented ones (RFC 8701).
    fn highest(list: &[u8]) -> Self {
        let known = numbers(list).map(Self::of).filter(|version| *version != Self::Other);
        known.max().unwrap_or(Self::Other)
    }
}

/// Reads towards one ClientHello; remembers how far it got.
#[derive(Debug, Default)]
pub struct Reader {
    /// Where the first record begins that has not been taken.
    next: usize,
    /// The hello as far as it came, if it takes more than one record.
    joined: Vec<u8>,
}

/// Where a whole hello lies.
enum Place {
    Input(Range<usize>),
    Joined(Range<usize>),
}

/// What rustls has to judge.
struct Wrong;

impl Reader {
    /// `input`: everything received so far; only its end may have grown since the last call.
    pub fn look<'a>(&'a mut self, input: &'a [u8]) -> Look<'a> {
        if self.next == 0 {
            match First::of(input) {
                First::Foreign(foreign) => return Look::Foreign(foreign),
                First::TooShort => return Look::More,
                First::Tls => {}
            }
        }
        let body = match self.find(input) {
            Ok(Some(Place::Input(range))) => &input[range],
            Ok(Some(Place::Joined(range))) => &self.joined[range],
            Ok(None) if input.len() < MAX_HELLO => return Look::More,
            Ok(None) => return Look::Endless,
            Err(Wrong) => return Look::Unreadable,
        };
        ClientHello::parse(body).map_or(Look::Unreadable, Look::Hello)
    }

    fn find(&mut self, input: &[u8]) -> Result<Option<Place>, Wrong> {
        loop {
            let rest = input.get(self.next..).unwrap_or_default();
            let Some(&[kind, major, _, high, low]) = rest.first_chunk::<HEADER>() else {
                return Ok(None);
            };
            let length = usize::from(u16::from_be_bytes([high, low]));
            if kind != HANDSHAKE || major != 3 || !(1..=MAX_RECORD).contains(&length) {
                return Err(Wrong);
            }
            let Some(fragment) = rest.get(HEADER..HEADER + length) else { return Ok(None) };
            let start = self.next + HEADER;
            self.next = start + length;
            if self.joined.is_empty()
                && let Some(body) = body_of(fragment)?
            {
                return Ok(Some(Place::Input(start + body.start..start + body.end)));
            }
            self.joined.extend_from_slice(fragment);
            if let Some(body) = body_of(&self.joined)? {
                return Ok(Some(Place::Joined(body)));
            }
        }
    }
}

/// Where the body of the hello at the front of `message` lies, if it is whole.
fn body_of(message: &[u8]) -> Result<Option<Range<usize>>, Wrong> {
    match *message {
        [CLIENT_HELLO, a, b, c, ..] => {
            let length = u32::from_be_bytes([0, a, b, c]) as usize;
            if length > MAX_HELLO {
                return Err(Wrong);
            }
            Ok((message.len() >= 4 + length).then_some(4..4 + length))
        }
        [CLIENT_HELLO, ..] | [] => Ok(None),
        _ => Err(Wrong),
    }
}

/// What the first bytes of a connection are.
#[derive(Debug, Eq, PartialEq)]
enum First {
    TooShort,
    Tls,
    Foreign(Foreign),
}

impl First {
    fn of(bytes: &[u8]) -> Self {
        const METHODS: [&[u8]; 8] =
            [b"GET ", b"HEAD ", b"POST ", b"PUT ", b"OPTIONS ", b"CONNECT ", b"DELETE ", b"PRI * "];
        match bytes {
            // The types of record, alert to application data, and the major version.
            [20..=23, 3, ..] => Self::Tls,
            [] | [20..=23] => Self::TooShort,
            // A length with its first bit set, then CLIENT-HELLO and the version.
            [0x80..=0xff, _, CLIENT_HELLO, 0, 2, ..] => Self::Foreign(Foreign::Ssl2(Version::Ssl2)),
            [0x80..=0xff, _, CLIENT_HELLO, 3, minor, ..] => {
                let version = Version::of_legacy(u16::from_be_bytes([3, *minor]));
                Self::Foreign(Foreign::Ssl2(version))
            }
            [0x80..=0xff] | [0x80..=0xff, _] | [0x80..=0xff, _, CLIENT_HELLO] => Self::TooShort,
            [0x80..=0xff, _, CLIENT_HELLO, 0 | 3] => Self::TooShort,
            _ if METHODS.iter().any(|method| bytes.starts_with(method)) => {
                Self::Foreign(Foreign::Http)
            }
            _ if METHODS.iter().any(|method| method.starts_with(bytes)) => Self::TooShort,
            [first, ..] => match proxy_header::announces(bytes) {
                Some(true) => Self::Foreign(Foreign::ProxyHeader),
                // It may begin with empty lines, and so these alone are waited behind.
                None => Self::TooShort,
                Some(false) if first.is_ascii_graphic() || first.is_ascii_whitespace() => {
                    Self::Foreign(Foreign::Imap)
                }
                Some(false) => Self::Foreign(Foreign::Other),
            },
        }
    }
}

/// Takes from the front; `None` when there is less.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn number(&mut self) -> Option<u16> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u16::from_be_bytes(*first))
    }

    /// What stands behind one byte of length.
    fn list_8(&mut self) -> Option<&'a [u8]> {
        let length = self.byte()?;
        self.take(length.into())
    }

    /// What stands behind two bytes of length.
    fn list_16(&mut self) -> Option<&'a [u8]> {
        let length = self.number()?;
        self.take(length.into())
    }
}

fn numbers(list: &[u8]) -> impl Iterator<Item = u16> {
    list.as_chunks().0.iter().map(|pair| u16::from_be_bytes(*pair))
}

#[cfg(test)]
mod tests;
