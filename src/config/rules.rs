//! From the file to the settings: the rules that concern more than one value.
//!
//! In: sections whose values are possible each by itself. Out: [`Settings`], unless a mistake was
//! recorded, here or before. A section that could not be read is passed over.

use std::net::{IpAddr, SocketAddr};

use super::acme::{ChallengeKind, Flag};
use super::addresses::{CertificateName, ListenAddress};
use super::backend;
use super::file::{self, File};
use super::mistakes::{Mark, Mistakes};
use super::read::{At, Tried};
use super::settings::{self, ListenTls, Settings};
use super::values::{ClientAuthMode, OnOff};

/// The settings, or `None` and at least one recorded mistake.
pub fn apply(file: &File, mistakes: &mut Mistakes) -> Option<Settings> {
    let listen: &[file::Listen] = file.listen.0.as_ref().map_or(&[], |several| &several.0);
    let servers: &[file::Server] =
        file.backend.0.as_ref().map_or(&[], |backend| &backend.servers.0);
    addresses(listen, file.metrics.as_ref(), acme_section(&file.tls), mistakes);
    backend::loops(listen, servers, mistakes);
    answered(listen, &file.tls, mistakes);
    let tls = file.tls.0.as_ref().map(|at| tls(at, mistakes));
    let backend = file.backend.0.as_ref().map(|section| backend::apply(section, mistakes));
    if !mistakes.is_empty() {
        return None;
    }
    Some(Settings {
        listen: listen
            .iter()
            .map(|at| settings::Listen {
                address: at.address.value.0,
                tls: at.tls,
                proxy_protocol_from: at.proxy_protocol_from.iter().map(|at| at.0).collect(),
            })
            .collect(),
        tls: tls?,
        backend: backend?,
        limits: limits(&file.limits),
        timeouts: timeouts(&file.timeouts),
        metrics: file.metrics.as_ref().map(|at| settings::Metrics { address: at.address.value.0 }),
        log: settings::Log { level: file.log.level.0, format: file.log.format },
    })
}

/// What can be said of the files that a section names, although it or others have mistakes: `None` if
/// nothing can.
pub fn files(section: &At<file::Tls>) -> Option<settings::Tls> {
    let read = |made: &file::SelfSigned| !made.names.0.is_empty();
    if section.value.self_signed.as_ref().is_some_and(|made| !made.0.as_ref().is_some_and(read)) {
        return None; // with it a certificate may be missing, and what it would make nobody knows
    }
    let tls = tls(section, &mut Mistakes::default());
    if section.value.acme.is_some() && tls.acme.is_none() {
        return None; // likewise
    }
    (!tls.certificates.is_empty() || tls.self_signed.is_some() || tls.acme.is_some()).then_some(tls)
}

fn tls(At { mark, value }: &At<file::Tls>, mistakes: &mut Mistakes) -> settings::Tls {
    if value.certificates.is_none() && value.self_signed.is_none() && value.acme.is_none() {
        let what = "`tls` needs `certificates` (your own), `acme` (from a CA) or `self_signed` (made here)";
        mistakes.add(*mark, what);
    }
    let certificates = value.certificates.as_ref().and_then(|tried| tried.0.as_ref());
    let certificates = certificates.map_or_else(Vec::new, |several| several.0.clone());
    let self_signed = value.self_signed.as_ref().and_then(|tried| tried.0.as_ref());
    let self_signed = self_signed.map(|section| settings::SelfSigned {
        names: section.names.0.iter().map(|name| name.0.clone()).collect(),
        dir: section.dir.0.clone(),
    });
    let acme = value.acme.as_ref().and_then(|tried| tried.0.as_ref());
    let acme = acme.and_then(|section| acme_settings(section, *mark, mistakes));
    let defaults = settings::Tls::with(certificates);
    let versions = value.min_version.versions();
    let cipher_suites = value.cipher_suites.as_ref().map_or(defaults.cipher_suites, |list| {
        let all: Vec<_> = list.value.0.iter().filter_map(|tried| Some(tried.0?.0)).collect();
        if all.len() == list.value.0.len() {
            let works = |version| all.iter().any(|suite| suite.version().version == version);
            lacking("cipher_suites", list.mark, versions, works, mistakes);
        }
        all
    });
    let groups = value.groups.as_ref().map_or(defaults.groups, |list| {
        let all: Vec<_> = list.value.0.iter().filter_map(|tried| Some(tried.0?.0)).collect();
        if all.len() == list.value.0.len() {
            let works = |version| all.iter().any(|group| group.usable_for_version(version));
            lacking("groups", list.mark, versions, works, mistakes);
        }
        all
    });
    settings::Tls {
        certificates: defaults.certificates,
        self_signed,
        acme,
        unknown_name: value.unknown_name,
        min_version: value.min_version,
        cipher_suites,
        groups,
        tickets: match &value.tickets {
            OnOff::On => settings::Tickets::Memory,
            OnOff::Off => settings::Tickets::Off,
            OnOff::Section(keys) => {
                let files = keys.key_files.0.iter();
                settings::Tickets::Files(files.map(|file| file.0.clone()).collect())
            }
        },
        client_auth: value.client_auth.as_ref().and_then(|tried| tried.0.as_ref()).map(|section| {
            settings::ClientAuth {
                required: section.mode == ClientAuthMode::Required,
                ca: section.ca.0.clone(),
                crl: section.crl.as_ref().map(|file| file.0.clone()),
            }
        }),
    }
}

/// `mark` is the section's.
fn acme_settings(
    section: &file::Acme,
    mark: Mark,
    mistakes: &mut Mistakes,
) -> Option<settings::Acme> {
    let before = mistakes.count();
    let At { mark: agreed_at, value: Flag(agreed) } = section.terms_agreed;
    if !agreed {
        let what = "`terms_agreed` must be true: read the CA's terms of service, and agree to them or use no ACME";
        mistakes.add(agreed_at, what);
    }
    let mut names = Vec::new();
    for At { mark, value: CertificateName(name) } in &section.names.0 {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        if name.parse::<IpAddr>().is_ok() {
            let what = format!("`{name}` is an address; ACME is for DNS names here");
            mistakes.add(*mark, what);
        } else if name.starts_with("*.") && section.challenge != ChallengeKind::Dns01 {
            let what = format!(
                "`{name}` needs `challenge: dns-01`: no other shows that all names below are yours"
            );
            mistakes.add(*mark, what);
        } else if !names.contains(&name) {
            names.push(name);
        }
    }
    let challenge = match (section.challenge, &section.dns_hook) {
        (ChallengeKind::Http01, _) => {
            Some(settings::Challenge::Http01 { address: section.http_address.value.0 })
        }
        (ChallengeKind::Dns01, Some(hook)) => {
            Some(settings::Challenge::Dns01 { hook: hook.0.clone() })
        }
        (ChallengeKind::Dns01, None) => {
            mistakes
                .add(mark, "`challenge: dns-01` needs `dns_hook`, a program that sets TXT records");
            None
        }
        (ChallengeKind::TlsAlpn01, _) => Some(settings::Challenge::TlsAlpn01),
    };
    let external = section.external_account.as_ref().map(|at| settings::ExternalAccount {
        id: at.id.0.clone(),
        key_file: at.key_file.0.clone(),
    });
    if mistakes.count() > before || names.is_empty() {
        return None;
    }
    Some(settings::Acme {
        directory: section.directory.0.clone(),
        contact: section.contact.iter().map(|contact| contact.0.clone()).collect(),
        names,
        challenge: challenge?,
        storage: section.storage.0.clone(),
        ca: section.ca.as_ref().map(|path| path.0.clone()),
        profile: section.profile.as_ref().map(|name| name.0.clone()),
        external_account: external,
    })
}

fn acme_section(tls: &Tried<At<file::Tls>>) -> Option<&file::Acme> {
    tls.0.as_ref()?.value.acme.as_ref()?.0.as_ref()
}

/// Each version that is spoken needs something out of `key` that works with it: the version is agreed on
/// first, so a client would be turned away and not get the other one.
fn lacking(
    key: &str,
    mark: Mark,
    versions: &[&'static rustls::SupportedProtocolVersion],
    works: impl Fn(rustls::ProtocolVersion) -> bool,
    mistakes: &mut Mistakes,
) {
    for version in versions.iter().map(|version| version.version) {
        if works(version) {
            continue;
        }
        let what = match version {
            rustls::ProtocolVersion::TLSv1_3 => {
                format!("nothing in `{key}` works with TLS 1.3, which is always spoken; add to it")
            }
            _ => format!(
                "nothing in `{key}` works with TLS 1.2; add to it, or set `min_version` to \"1.3\""
            ),
        };
        mistakes.add(mark, what);
    }
}

fn limits(section: &file::Limits) -> settings::Limits {
    settings::Limits {
        connections: section.connections.0,
        line: section.line.0,
        literal: section.literal.0,
        sasl: section.sasl.0,
    }
}

fn timeouts(section: &file::Timeouts) -> settings::Timeouts {
    settings::Timeouts {
        handshake: section.handshake.0,
        login: section.login.0,
        backend_greeting: section.backend_greeting.0,
        backend_login: section.backend_login.0,
        idle: section.idle.0,
        write: section.write.0,
        half_closed: section.half_closed.0,
        drain: section.drain.0,
    }
}

/// Two listeners must not ask the system for the same address and port.
fn addresses(
    listen: &[file::Listen],
    metrics: Option<&file::Metrics>,
    acme: Option<&file::Acme>,
    mistakes: &mut Mistakes,
) {
    let acme = acme.filter(|acme| acme.challenge == ChallengeKind::Http01);
    let others = metrics.map(|at| &at.address).into_iter().chain(acme.map(|at| &at.http_address));
    let all = listen.iter().map(|at| &at.address).chain(others);
    let mut taken: Vec<(SocketAddr, Mark)> = Vec::new();
    for &At { mark, value: ListenAddress(address) } in all {
        if let Some((other, at)) = taken.iter().find(|(other, _)| collide(*other, address)) {
            let line = at.line;
            let what = if *other == address {
                format!("`{address}` is used already, in line {line}")
            } else {
                format!("`{address}` and `{other}` in line {line} cannot be opened both")
            };
            mistakes.add(mark, what);
        } else {
            taken.push((address, mark));
        }
    }
}

/// What a CA asks in TLS is answered where TLS begins at once.
fn answered(listen: &[file::Listen], tls: &Tried<At<file::Tls>>, mistakes: &mut Mistakes) {
    let asked = acme_section(tls).is_some_and(|acme| acme.challenge == ChallengeKind::TlsAlpn01);
    let in_vain = !listen.is_empty() && listen.iter().all(|at| at.tls == ListenTls::StartTls);
    if asked
        && in_vain
        && let Some(At { mark, .. }) = &tls.0
    {
        let what = "`challenge: tls-alpn-01` needs a listener with `tls: implicit`, to which port 443 is forwarded";
        mistakes.add(*mark, what);
    }
}

/// `[::]` takes IPv4 as well.
pub(super) fn collide(a: SocketAddr, b: SocketAddr) -> bool {
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
