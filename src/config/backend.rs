//! The kinds of values that stand below `backend`, and the rules among them.
//!
//! In: sections whose values are possible each by itself. Out: [`settings::Backend`], in which every server has what
//! holds for it: what it says itself, else what `backend` says for all.
//! Not here: how an address is written (`addresses`), what the named files hold.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::addresses::ListenAddress;
use super::file;
use super::mistakes::Mistakes;
use super::read::{At, Read, scalar};
use super::rules::collide;
use super::settings::{self, Balance, HostPort, ProxyTlvs, ServerAddress, ServerState, TlsMode};
use super::values::{patterned, schema, word, worded, words};
use super::yaml::{Kind, Node};
use crate::proto::imap::capability::always_removed;

/// How a server is told who the client is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum IdentityKind {
    None,
    ProxyV1,
    ProxyV2,
    DovecotId,
    Transparent,
}

words!(IdentityKind is "a way to tell a server who the client is" {
    "none" => None, "proxy-v1" => ProxyV1, "proxy-v2" => ProxyV2, "dovecot-id" => DovecotId,
    "transparent" => Transparent
});

words!(ProxyTlvs is "the kind of server that reads the PROXY header" {
    "generic" => Generic, "dovecot-2.4" => Dovecot24, "dovecot-2.3" => Dovecot23, "cyrus" => Cyrus,
    "stalwart" => Stalwart
});

words!(Balance is "a way to choose among servers" {
    "first" => First, "round-robin" => RoundRobin, "least-sessions" => LeastSessions,
    "source-hash" => SourceHash
});

words!(ServerState is "active, drain or down" {
    "active" => Active, "drain" => Drain, "down" => Down
});

words!(TlsMode is "none, starttls or implicit" {
    "none" => None, "starttls" => StartTls, "implicit" => Implicit
});

/// Whether a server's certificate is looked at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verify {
    Full,
    Insecure,
}

words!(Verify is "full or insecure" { "full" => Full, "insecure" => Insecure });

/// TLS to a server: a word, or a section whose `mode` is that word.
#[derive(Debug)]
pub enum BackendTls {
    Word(TlsMode),
    Section(file::ServerTls),
}

const MODES: [&str; 3] = ["none", "starttls", "implicit"];

impl Read for BackendTls {
    const EXPECTED: &'static str = "none, starttls, implicit or a section with `mode`";

    fn read(node: &Node, mistakes: &mut Mistakes) -> Option<Self> {
        match node.kind {
            Kind::Map(_) => file::ServerTls::read(node, mistakes).map(Self::Section),
            _ => {
                let modes = [TlsMode::None, TlsMode::StartTls, TlsMode::Implicit];
                word(node, mistakes, &MODES, &modes).map(Self::Word)
            }
        }
    }
}

schema!([] BackendTls, generator => {
    json_schema!({ "anyOf": [worded(&MODES), file::ServerTls::json_schema(generator)] })
});

/// SHA-256 of a certificate, as hexadecimal digits with or without colons.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Fingerprint(pub [u8; 32]);

impl Read for Fingerprint {
    const EXPECTED: &'static str =
        "the SHA-256 of a certificate, 64 hexadecimal digits with or without colons";

    fn read(node: &Node, mistakes: &mut Mistakes) -> Option<Self> {
        scalar(node, mistakes, |text| {
            let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b':').collect();
            let mut bytes = [0; 32];
            let wrong = || format!("expected {}, found {}", Self::EXPECTED, node.found());
            if digits.len() != 2 * bytes.len() {
                return Err(wrong());
            }
            for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
                let digit =
                    |byte: u8| char::from(byte).to_digit(16).and_then(|d| u8::try_from(d).ok());
                let (high, low) = (digit(pair[0]), digit(pair[1]));
                *byte = high.zip(low).map(|(high, low)| high << 4 | low).ok_or_else(wrong)?;
            }
            Ok(Self(bytes))
        })
    }
}

schema!([] Fingerprint, _generator => patterned("([0-9A-Fa-f]{2}:?){31}[0-9A-Fa-f]{2}"));

/// The settings of the section.
pub fn apply(section: &file::Backend, mistakes: &mut Mistakes) -> settings::Backend {
    let hide = &section.capabilities.hide;
    for At { mark, value } in &section.capabilities.add {
        let name = &value.0;
        if always_removed(name.as_bytes()) {
            let what = format!("`{name}` cannot work behind this proxy, which always removes it");
            mistakes.add(*mark, what);
        } else if hide.contains(value) {
            mistakes.add(*mark, format!("`{name}` is hidden as well; decide for one"));
        }
    }
    twins(&section.servers.0, mistakes);
    let servers = section.servers.0.iter().map(|at| server(section, at, mistakes)).collect();
    settings::Backend {
        servers,
        balance: section.balance,
        hold: section.hold.0,
        health: settings::Health {
            interval: section.health.interval.0,
            slow_start: section.health.slow_start.0,
        },
        capabilities: settings::Capabilities {
            hide: hide.iter().map(|capability| capability.0.clone()).collect(),
            add: section.capabilities.add.iter().map(|at| at.value.0.clone()).collect(),
        },
        connect_timeout: section.connect_timeout.0,
    }
}

/// One server is listed once: its series, its health and its `max_sessions` go by its address.
fn twins(servers: &[file::Server], mistakes: &mut Mistakes) {
    let mut lines = HashMap::new();
    for At { mark, value } in servers.iter().map(|server| &server.address) {
        match lines.entry(value.to_string().to_ascii_lowercase()) {
            Entry::Vacant(first) => _ = first.insert(mark.line),
            Entry::Occupied(first) => {
                let line = first.get();
                let what = format!(
                    "`{value}` is listed already, in line {line}; for a larger share set its `weight`"
                );
                mistakes.add(*mark, what);
            }
        }
    }
}

fn server(
    section: &file::Backend,
    server: &file::Server,
    mistakes: &mut Mistakes,
) -> settings::Server {
    let identity = server.identity.as_ref().unwrap_or(&section.identity);
    let tlvs = server.proxy_tlvs.as_ref().or(section.proxy_tlvs.as_ref());
    if let Some(tlvs) = &server.proxy_tlvs
        && identity.value != IdentityKind::ProxyV2
    {
        mistakes.add(tlvs.mark, "`proxy_tlvs` is for `identity: proxy-v2` only");
    }
    if identity.value == IdentityKind::Transparent
        && matches!(server.address.value, ServerAddress::Unix(_))
    {
        let what =
            "`identity: transparent` needs an IP connection, a Unix socket has no source address";
        mistakes.add(identity.mark, what);
    }
    settings::Server {
        address: server.address.value.clone(),
        weight: server.weight.0,
        state: server.state,
        max_sessions: server.max_sessions.as_ref().map(|count| count.0),
        identity: match identity.value {
            IdentityKind::None => settings::Identity::None,
            IdentityKind::ProxyV1 => settings::Identity::ProxyV1,
            IdentityKind::ProxyV2 => {
                settings::Identity::ProxyV2(tlvs.map_or(ProxyTlvs::Generic, |tlvs| tlvs.value))
            }
            IdentityKind::DovecotId => settings::Identity::DovecotId,
            IdentityKind::Transparent => settings::Identity::Transparent,
        },
        tls: tls(server.tls.as_ref().unwrap_or(&section.tls), &server.address.value, mistakes),
    }
}

fn tls(
    At { mark, value }: &At<BackendTls>,
    address: &ServerAddress,
    mistakes: &mut Mistakes,
) -> Option<settings::ServerTls> {
    let (mode, section) = match value {
        BackendTls::Word(mode) => (*mode, None),
        BackendTls::Section(section) => (section.mode, Some(section)),
    };
    if mode == TlsMode::None {
        return None;
    }
    let named = section.and_then(|section| section.server_name.as_ref());
    let trust = match section.map(|at| (&at.ca, at.fingerprint, at.verify)) {
        None | Some((None, None, Verify::Full)) => settings::Trust::System,
        Some((Some(ca), None, Verify::Full)) => settings::Trust::Ca(ca.0.clone()),
        Some((None, Some(Fingerprint(sha256)), Verify::Full)) => {
            settings::Trust::Fingerprint(sha256)
        }
        Some((None, None, Verify::Insecure)) => settings::Trust::Insecure,
        Some(_) => {
            let what =
                "only one of `ca`, `fingerprint` and `verify: insecure` can decide whom to trust";
            mistakes.add(*mark, what);
            settings::Trust::System
        }
    };
    let server_name = match (named, address) {
        (Some(name), _) => name.0.clone(),
        (None, ServerAddress::Host(HostPort { host, .. })) => host.trim_end_matches('.').to_owned(),
        // RFC 6125 §6.2.1: what the user gave, not what an unsigned record says.
        (None, ServerAddress::Service(name)) => {
            let domain = name.split('.').skip_while(|label| label.starts_with('_'));
            domain.collect::<Vec<_>>().join(".").trim_end_matches('.').to_owned()
        }
        (None, ServerAddress::Unix(_)) => {
            if matches!(trust, settings::Trust::System | settings::Trust::Ca(_)) {
                let what = "`tls` to a Unix socket needs `server_name`: the name in the server's certificate";
                mistakes.add(*mark, what);
            }
            "localhost".to_owned()
        }
    };
    Some(settings::ServerTls { mode, server_name, trust })
}

/// A server that is one of our own listeners would send every session round and round.
pub fn loops(listen: &[file::Listen], servers: &[file::Server], mistakes: &mut Mistakes) {
    for At { mark, value } in servers.iter().map(|server| &server.address) {
        let ServerAddress::Host(server) = value else { continue };
        let host = server.host.trim_end_matches('.').to_ascii_lowercase();
        let ips: Vec<IpAddr> = match host.parse() {
            Ok(ip) => vec![ip],
            Err(_) if host == "localhost" => {
                vec![std::net::Ipv4Addr::LOCALHOST.into(), std::net::Ipv6Addr::LOCALHOST.into()]
            }
            Err(_) => continue, // what a name means is known only when it is dialled
        };
        let reaches = |listener: std::net::SocketAddr, ip: IpAddr| {
            let here = ip.is_loopback() || ip.is_unspecified();
            let same = listener.ip() == ip || (ip.is_unspecified() && listener.ip().is_loopback());
            let open = collide((listener.ip(), 1).into(), (ip, 1).into());
            listener.port() == server.port && (same || (here && open))
        };
        let listener =
            listen.iter().find(|at| ips.iter().any(|ip| reaches(at.address.value.0, *ip)));
        if let Some(file::Listen { address: At { mark: at, value: ListenAddress(own) }, .. }) =
            listener
        {
            let line = at.line;
            let what =
                format!("`{server}` is the proxy's own listener `{own}`, line {line}: a loop");
            mistakes.add(*mark, what);
        }
    }
}
