//! The rules of `tls`: what is served, and that something works with every version that is spoken.

use std::net::IpAddr;

use crate::config::file;
use crate::config::read::{Lenient, Spanned};
use crate::config::settings;
use crate::config::text::mistake::{Mark, Mistakes};
use crate::config::value::name::CertificateName;
use crate::config::value::word::{ChallengeKind, ClientAuthMode, Flag, OnOff};

pub(super) fn tls(
    Spanned { mark, value }: &Spanned<file::Tls>,
    mistakes: &mut Mistakes,
) -> settings::Tls {
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
    let Spanned { mark: agreed_at, value: Flag(agreed) } = section.terms_agreed;
    if !agreed {
        let what = "`terms_agreed` must be true: read the CA's terms of service, and agree to them or use no ACME";
        mistakes.add(agreed_at, what);
    }
    let mut names = Vec::new();
    for Spanned { mark, value: CertificateName(name) } in &section.names.0 {
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

pub(super) fn acme_section(tls: &Lenient<Spanned<file::Tls>>) -> Option<&file::Acme> {
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
