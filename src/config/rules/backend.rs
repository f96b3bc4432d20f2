//! The rules of `backend`: every server has what holds for it, what it says itself or else what
//! `backend` says for all.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::config::file::{self, BackendTls};
use crate::config::read::Spanned;
use crate::config::settings::{self, HostPort, ProxyTlvs, ServerAddress, TlsMode};
use crate::config::text::mistake::Mistakes;
use crate::config::value::name::Fingerprint;
use crate::config::value::word::{IdentityKind, Verify};
use crate::proto::imap::capability::always_removed;

/// The settings of the section.
pub fn apply(section: &file::Backend, mistakes: &mut Mistakes) -> settings::Backend {
    let hide = &section.capabilities.hide;
    for Spanned { mark, value } in &section.capabilities.add {
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
        health: section.health,
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
    for Spanned { mark, value } in servers.iter().map(|server| &server.address) {
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
    Spanned { mark, value }: &Spanned<BackendTls>,
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
