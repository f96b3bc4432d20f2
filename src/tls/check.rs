//! What `check` says of certificates, ticket keys, client CAs and revocation lists: everything that is wrong with the files that the settings name.
//!
//! In: [`settings::Tls`]. Out: [`Finding`]s. Makes no files, opens no port.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::SupportedCipherSuite;

use super::certificate::{Pair, What};
use super::complaints::{Complaint, Grade, complaints, leaf_first, of_pair};
use super::config::provider;
use super::directory::Dir;
use super::pairs::{Found, Source as _};
use super::{acme, certificate, chain, client_auth, key_mode, self_signed, store, tickets, unix};
use crate::config::settings::{self, CertificateFiles, CertificateSource, MinVersion};

/// How bad a [`Finding`] is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Severity {
    /// The service does not start, or no client accepts it.
    Error,
    /// It works, but not for everybody or not for long.
    Warning,
}

/// One line of the `check` command.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Finding {
    pub severity: Severity,
    pub message: String,
}

/// Everything that is wrong, in the order of the configuration.
pub fn check(settings: &settings::Tls) -> Vec<Finding> {
    check_at(settings, unix(SystemTime::now()))
}

pub(super) fn check_at(settings: &settings::Tls, now: i64) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut say = |severity, message| findings.push(Finding { severity, message });
    let stand_in = store::needs_stand_in(settings);
    if stand_in && !settings.certificates.is_empty() {
        say(Severity::Warning, store::stands_in_for(settings));
    }
    for source in settings.certificates.iter().filter(|_| !stand_in) {
        match source {
            CertificateSource::Pair(files) => check_files(files, now, &mut say),
            CertificateSource::Dir(dir) => check_dir(dir, now, &mut say),
        }
    }
    if !stand_in && let Some(text) = unusable_with_tls12(settings, now) {
        say(Severity::Warning, text);
    }
    if let Some(acme) = &settings.acme {
        acme::check(acme, &mut say);
        if !stand_in {
            check_issued(acme, now, &mut say);
        }
    }
    if let Some(made) = &settings.self_signed {
        // While others serve it is not needed, but one day it may be.
        let wrong = if stand_in { Severity::Error } else { Severity::Warning };
        match self_signed::inspect(&made.names, &made.dir, now) {
            Ok(notice) => notice.into_iter().for_each(|text| say(Severity::Warning, text)),
            Err(error) => say(wrong, chain(&error)),
        }
        for key in ["ca.key", "privkey.pem"] {
            if let Some((severity, text)) = key_mode(&made.dir.join(key)) {
                say(severity, text);
            }
        }
    }
    tickets::check(&settings.tickets, &mut say);
    if let Some(wanted) = &settings.client_auth {
        client_auth::check(wanted, &Arc::new(provider(settings)), now, &mut say);
    }
    findings
}

fn check_files(files: &CertificateFiles, now: i64, say: &mut impl FnMut(Severity, String)) {
    let certs = certificate::read_certs(&files.cert, What::Certificate);
    let keys = certificate::read_keys(&files.key);
    // Both files are looked at on their own first, so that one mistake does not hide the other.
    let errors = [certs.as_ref().err(), keys.as_ref().err()];
    errors.into_iter().flatten().for_each(|error| say(Severity::Error, chain(error)));
    if let Ok(certs) = certs {
        let alone = certificate::each_facts(&certs.ders, &files.cert).flatten().collect();
        let mut found = complaints(&leaf_first(alone), now);
        match keys.map(|keys| certificate::matched(certs, &keys, &files.cert, &files.key)) {
            Ok(Ok(pair)) => found = of_pair(&pair, now),
            Ok(Err(error)) => say(Severity::Error, chain(&error)),
            Err(_) => {}
        }
        for complaint in found {
            say(severity(&complaint), format!("{}: {}", files.cert.display(), complaint.text));
        }
    }
    if let Some((severity, text)) = key_mode(&files.key) {
        say(severity, text);
    }
}

/// What the files that the settings name hold, counted, a line for each: what is missing is seen by it.
pub fn held(settings: &settings::Tls) -> Vec<String> {
    let now = unix(SystemTime::now());
    let mut lines = Vec::new();
    let mut add = |path: &Path, text: String| lines.push(format!("{}: {text}", path.display()));
    for source in &settings.certificates {
        match source {
            CertificateSource::Pair(CertificateFiles { cert, key }) => {
                if let Ok(certs) = certificate::read_certs(cert, What::Certificate) {
                    add(cert, What::Certificate.counted(certs.ders.len()));
                }
                if let Ok(keys) = certificate::read_keys(key) {
                    add(key, What::Key.counted(keys.len()));
                }
            }
            CertificateSource::Dir(dir) => {
                for Found { id, key, pair, .. } in Dir::new(dir.clone()).look(now) {
                    let (Ok(pair), Some(key)) = (pair, key) else { continue };
                    let certs = What::Certificate.counted(pair.chain.len());
                    add(&id, format!("{certs}, with the key in {}", key.display()));
                }
            }
        }
    }
    if let Some(wanted) = &settings.client_auth {
        if let Ok(cas) = certificate::read_cas(&wanted.ca) {
            add(&wanted.ca, What::Ca.counted(cas.facts.len()));
        }
        if let Some((path, Ok(lists))) =
            wanted.crl.as_ref().map(|p| (p, certificate::read_lists(p)))
        {
            add(path, What::RevocationList.counted(lists.len()));
        }
    }
    if let Some(path) = settings.acme.as_ref().and_then(|acme| acme.ca.as_ref())
        && let Ok(cas) = certificate::read_cas(path)
    {
        add(path, What::Ca.counted(cas.facts.len()));
    }
    lines
}

/// What was ordered before. That it can't be used is no reason not to start: another is ordered.
fn check_issued(acme: &settings::Acme, now: i64, say: &mut impl FnMut(Severity, String)) {
    for found in acme::Issued::new(acme).look(now) {
        let shown = found.id.display();
        match &found.pair {
            Err(why) => say(Severity::Warning, format!("{why}; a new one will be ordered")),
            Ok(pair) => of_pair(pair, now).iter().for_each(|complaint| {
                say(Severity::Warning, format!("{shown}: {}", complaint.text))
            }),
        }
        if let Some((severity, text)) = found.key.as_deref().and_then(key_mode) {
            say(severity, text);
        }
    }
}

fn check_dir(dir: &Path, now: i64, say: &mut impl FnMut(Severity, String)) {
    for found in Dir::new(dir.to_owned()).look(now) {
        match &found.pair {
            Err(why) => say(Severity::Error, why.clone()),
            Ok(pair) => {
                for complaint in of_pair(pair, now) {
                    let text = format!("{}: {}", found.id.display(), complaint.text);
                    say(severity(&complaint), text);
                }
            }
        }
        found.notice.into_iter().for_each(|notice| say(Severity::Warning, notice));
        if let Some((severity, text)) = found.key.as_deref().and_then(key_mode) {
            say(severity, text);
        }
    }
}

/// A TLS 1.2 suite goes with one kind of key; those that are named may go with none of the certificates.
fn unusable_with_tls12(settings: &settings::Tls, now: i64) -> Option<String> {
    if settings.min_version != MinVersion::Tls12 {
        return None;
    }
    let found: Vec<_> =
        store::sources(settings).iter_mut().flat_map(|source| source.look(now)).collect();
    let mut pairs = found.iter().filter_map(|found| found.pair.as_ref().ok()).peekable();
    pairs.peek()?;
    let signs = |suite: &SupportedCipherSuite, pair: &Pair| match suite {
        SupportedCipherSuite::Tls12(suite) => {
            pair.certified.key.choose_scheme(suite.sign).is_some()
        }
        SupportedCipherSuite::Tls13(_) => false,
    };
    let usable = pairs.any(|pair| settings.cipher_suites.iter().any(|suite| signs(suite, pair)));
    (!usable).then(|| {
        "no cipher suite for TLS 1.2 in `tls.cipher_suites` goes with any of the certificates (ECDHE_ECDSA goes with ECDSA keys, ECDHE_RSA with RSA keys): clients without TLS 1.3 are shut out".to_owned()
    })
}

fn severity(complaint: &Complaint) -> Severity {
    match complaint.grade {
        Grade::Refused => Severity::Error,
        Grade::Doubtful => Severity::Warning,
    }
}
