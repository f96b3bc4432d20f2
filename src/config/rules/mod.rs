//! From the file to the settings: the rules that concern more than one value.
//!
//! In: sections whose values are possible each by itself. Out: [`Settings`], unless a mistake was
//! recorded, here or before. A section that could not be read is passed over.

mod tls;

mod backend;

mod listen;

use super::effective::Effective;
use super::file::{self, File};
use super::read::Spanned;
use super::settings::{self, Settings};
use super::text::mistake::Mistakes;
use listen::{addresses, answered, loops};
use tls::{acme_section, tls};

/// The settings, or `None` and at least one recorded mistake.
pub fn apply(file: &File, effective: Effective, mistakes: &mut Mistakes) -> Option<Settings> {
    let listen: &[file::Listen] = file.listen.0.as_ref().map_or(&[], |several| &several.0);
    let servers: &[file::Server] =
        file.backend.0.as_ref().map_or(&[], |backend| &backend.servers.0);
    addresses(listen, file.metrics.as_ref(), acme_section(&file.tls), mistakes);
    loops(listen, servers, mistakes);
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
        limits: file.limits,
        timeouts: file.timeouts,
        metrics: file.metrics.as_ref().map(|at| settings::Metrics { address: at.address.value.0 }),
        log: file.log,
        effective,
    })
}

/// What can be said of the files that a section names, although it or others have mistakes: `None` if
/// nothing can.
pub fn files(section: &Spanned<file::Tls>) -> Option<settings::Tls> {
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
