//! Where to listen, whom to dial, what a certificate is good for.
//!
//! Nothing is looked up: a name is only checked for its form. As everywhere in `value`, a type describes
//! itself to the JSON Schema.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use crate::config::read::{Read, patterned, scalar, schema};
use crate::config::text::mistake::Mistakes;
use crate::config::text::yaml::{Kind, Node};
use ipnet::{IpNet, Ipv4Net};
use serde_yaml::Value;

/// Where to listen: an IP address and a port.
#[derive(Clone, Copy, Debug)]
pub struct ListenAddress(pub SocketAddr);

const LISTEN: &str = r#"an IP address and a port such as "0.0.0.0:993" or "[::]:993""#;

impl Read for ListenAddress {
    const EXPECTED: &'static str = LISTEN;

    fn read(node: &Node, mistakes: &mut Mistakes) -> Option<Self> {
        bracket_without_quotes(node, LISTEN, mistakes)?;
        scalar(node, mistakes, |text| match text.parse() {
            Ok(address) => Ok(Self(address)),
            Err(_) => {
                let why = match text.rsplit_once(':') {
                    _ if text.parse::<IpAddr>().is_ok() => "; the port is missing",
                    Some(("" | "*", _)) => r#"; every address is "[::]""#,
                    Some((host, port)) if port.parse::<u16>().is_ok() && !host.contains(':') => {
                        "; a name has no place here"
                    }
                    _ => "",
                };
                Err(format!("expected {LISTEN}, found {}{why}", node.found()))
            }
        })
    }

    fn show(&self) -> Value {
        self.0.to_string().into()
    }
}

schema!([] ListenAddress, _generator => patterned(r".+:[0-9]{1,5}"));

/// `address: [::]:993` without quotes is a list to YAML (or no YAML at all).
fn bracket_without_quotes(node: &Node, expected: &str, mistakes: &mut Mistakes) -> Option<()> {
    if !matches!(node.kind, Kind::List(_)) {
        return Some(());
    }
    let why = "an address that begins with `[` must stand in quotes";
    mistakes.add(node.mark, format!("expected {expected}, found a list; {why}"));
    None
}

/// Where a server is. Prints as written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ServerAddress {
    Host(HostPort),
    /// The name of an SRV record (RFC 2782, RFC 6186): `_imap._tcp.example.org`.
    Service(String),
    Unix(PathBuf),
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(address) => address.fmt(f),
            Self::Service(name) => f.write_str(name),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A DNS name or an IP address, and a port. Prints as written: `legacy:143`, `[::1]:143`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HostPort {
    /// Without the brackets of an IPv6 address.
    pub host: String,
    pub port: u16,
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

const SERVER: &str = r#"a host and a port such as "mail.example.org:143" or "[2001:db8::1]:143""#;

impl Read for ServerAddress {
    const EXPECTED: &'static str = SERVER;

    fn read(node: &Node, mistakes: &mut Mistakes) -> Option<Self> {
        bracket_without_quotes(node, SERVER, mistakes)?;
        scalar(node, mistakes, |text| {
            server(text).map_err(|why| {
                let found = node.found();
                format!("expected {SERVER}, found {found}{why}")
            })
        })
    }

    fn show(&self) -> Value {
        self.to_string().into()
    }
}

schema!([] ServerAddress, _generator => patterned(r".+:[0-9]{1,5}|_.+|unix:/.+"));

fn server(text: &str) -> Result<ServerAddress, &'static str> {
    if let Some(path) = text.strip_prefix("unix:") {
        return match path.starts_with('/') && !path.contains('\0') {
            // sun_path holds 108 bytes, its NUL included (unix(7)).
            true if path.len() < 108 => Ok(ServerAddress::Unix(path.into())),
            true => Err("; the path of a socket has at most 107 bytes"),
            false => Err("; a socket is written unix:/path, from the root on"),
        };
    }
    if text.starts_with('_') && !text.contains(':') {
        let mut labels = text.split('.');
        let service = labels.next().is_some_and(|label| label.len() > 1);
        let tcp = labels.next().is_some_and(|label| label.eq_ignore_ascii_case("_tcp"));
        return match service && tcp && labels.next().is_some() && is_dns_name(text) {
            true => Ok(ServerAddress::Service(text.to_owned())),
            false => Err("; a service in DNS is written _imap._tcp.example.org"),
        };
    }
    host_port(text).map(ServerAddress::Host)
}

/// An IP network, or one address.
#[derive(Clone, Copy, Debug)]
pub struct Network(pub IpNet);

impl Read for Network {
    const EXPECTED: &'static str =
        "a network such as 192.0.2.0/24 or 2001:db8::/32, or an IP address";

    fn read(node: &Node, mistakes: &mut Mistakes) -> Option<Self> {
        bracket_without_quotes(node, Self::EXPECTED, mistakes)?;
        scalar(node, mistakes, |text| {
            let network =
                text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
            let wrong =
                |why: &str| format!("expected {}, found {}{why}", Self::EXPECTED, node.found());
            match network {
                Some(network) if network.addr() != network.network() => {
                    Err(wrong(&format!("; the network is {}", network.trunc())))
                }
                Some(network) => Ok(Self(canonical(network))),
                None => Err(wrong("")),
            }
        })
    }

    fn show(&self) -> Value {
        self.0.to_string().into()
    }
}

/// Peers are known by their IPv4 addresses, so networks of mapped ones (RFC 4291 §2.5.5.2) are what these are.
fn canonical(network: IpNet) -> IpNet {
    match network {
        IpNet::V6(six) if six.prefix_len() >= 96 => six
            .addr()
            .to_ipv4_mapped()
            .and_then(|four| Ipv4Net::new(four, six.prefix_len() - 96).ok())
            .map_or(network, IpNet::V4),
        _ => network,
    }
}

schema!([] Network, _generator => patterned("[0-9A-Fa-f.:]+(/[0-9]{1,3})?"));

fn host_port(text: &str) -> Result<HostPort, &'static str> {
    if text.is_empty() {
        return Err("");
    }
    if text.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6()) {
        return Err("; an IPv6 address with a port stands in brackets");
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return Err("; the port is missing");
    };
    if host.is_empty() {
        return Err("; the host is missing");
    }
    let port = match port.parse::<u16>() {
        Ok(number) if number != 0 && port.bytes().all(|b| b.is_ascii_digit()) => number,
        _ => return Err("; a port is a number from 1 to 65535"),
    };
    let host = match host.strip_prefix('[') {
        Some(rest) => match rest.strip_suffix(']').map(str::parse::<IpAddr>) {
            Some(Ok(ip @ IpAddr::V6(_))) => return Ok(HostPort { host: ip.to_string(), port }),
            _ => return Err("; between brackets there is no IPv6 address"),
        },
        None => host,
    };
    if host.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv4()) || is_dns_name(host) {
        Ok(HostPort { host: host.to_owned(), port })
    } else {
        Err("; that is neither a DNS name nor an IP address")
    }
}

/// Letters, digits, hyphens and underscores between dots; the last label is no number, for then it
/// would be an address with a mistake in it.
pub(super) fn is_dns_name(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = text.rsplit('.').next().unwrap_or_default();
    text.len() <= 253 && text.split('.').all(label) && !last.bytes().all(|b| b.is_ascii_digit())
}

/// `[::]` takes IPv4 as well.
pub fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    let covers = |wide: IpAddr, ip: IpAddr| match wide {
        IpAddr::V6(wide) => wide.is_unspecified(),
        IpAddr::V4(wide) => wide.is_unspecified() && ip.is_ipv4(),
    };
    let (one, two) = (a.ip(), b.ip());
    a.port() == b.port() && a.port() != 0 && (one == two || covers(one, two) || covers(two, one))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_of_mapped_addresses_are_ipv4() {
        for (text, expected) in [
            ("::ffff:192.0.2.0/120", "192.0.2.0/24"),
            ("::ffff:192.0.2.1/128", "192.0.2.1/32"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
            ("::/0", "::/0"),
            ("::192.0.2.0/120", "::192.0.2.0/120"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("192.0.2.0/24", "192.0.2.0/24"),
        ] {
            let network = |text: &str| text.parse::<IpNet>().expect("a network");
            assert_eq!(canonical(network(text)), network(expected), "{text}");
        }
    }

    #[test]
    fn servers_are_names_or_addresses_with_a_port() {
        for (text, host, port) in [
            ("legacy-imap:143", "legacy-imap", 143),
            ("mail.example.org.:143", "mail.example.org.", 143),
            ("a_b:1", "a_b", 1),
            ("192.0.2.1:65535", "192.0.2.1", 65535),
            ("[2001:DB8::1]:143", "2001:db8::1", 143),
        ] {
            let expected = HostPort { host: host.into(), port };
            assert_eq!(host_port(text), Ok(expected), "{text}");
        }
        for text in [
            "",
            "legacy",
            "legacy:",
            ":143",
            "legacy:0",
            "legacy:65536",
            "::1",
            "::1:143x",
            "2001:db8::1:143",
            "[::1]",
            "[legacy]:143",
            "[192.0.2.1]:143",
            "300.1.1.1:143",
            "a b:143",
            "imap://legacy:143",
            "-a:143",
            "a..b:143",
            "ü:143",
            "user@host:143",
        ] {
            assert!(host_port(text).is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_that_cannot_both_be_opened_collide() {
        for (a, b, expected) in [
            ("127.0.0.1:993", "127.0.0.1:993", true),
            ("127.0.0.1:993", "127.0.0.2:993", false),
            ("127.0.0.1:993", "127.0.0.1:994", false),
            ("127.0.0.1:0", "127.0.0.1:0", false),
            ("0.0.0.0:993", "127.0.0.1:993", true),
            ("0.0.0.0:993", "[::1]:993", false),
            ("[::]:993", "127.0.0.1:993", true),
            ("[::]:993", "0.0.0.0:993", true),
            ("[::]:993", "[::1]:993", true),
        ] {
            let (a, b) = (a.parse().unwrap(), b.parse().unwrap());
            assert_eq!(collide(a, b), expected, "{a} {b}");
            assert_eq!(collide(b, a), expected, "{b} {a}");
        }
    }
}
