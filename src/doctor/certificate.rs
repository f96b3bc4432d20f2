//! What mail clients would say of the chain that a listener shows: its dates, its chain, its name.
//!
//! In: the chain of a handshake, the CAs that clients know (the system's, `--ca`, our own), the name they use. Out: one
//! finding for each of the three. Standard: RFC 5280, RFC 6125. What can be said without knowing the CAs is
//! [`crate::tls::complaints`]'.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls::RootCertStore;
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::aws_lc_rs;
use rustls::server::ParsedCertificate;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::finding::{Check, Section};
use crate::backend::cures::{Cure, OURS, Step};
use crate::config::settings;
use crate::tls::complaints::{Complaint, Grade, Kind, complaints};
use crate::tls::facts::{self, Facts};
use crate::tls::{certificate, roots};

/// The CAs that clients know.
pub struct Roots {
    store: RootCertStore,
    /// A CA of ours that clients don't know by themselves.
    own: Option<PathBuf>,
}

impl Roots {
    /// The system's, those in `ca`, and the one that we make ourselves.
    pub fn load(tls: &settings::Tls, ca: Option<&Path>) -> Result<Self, certificate::Error> {
        let mut store = roots::system();
        if let Some(ca) = ca {
            store.extend(certificate::read_cas(ca)?.whole()?.roots.roots);
        }
        let own = tls.self_signed.as_ref().map(|made| made.dir.join("ca.pem"));
        Ok(Self { store, own })
    }

    /// Whether a client that looks away from dates and names accepts it.
    fn trust(&self, chain: &[CertificateDer<'_>], at: UnixTime) -> Result<(), rustls::Error> {
        let Some((leaf, between)) = chain.split_first() else {
            return Err(rustls::Error::NoCertificatesPresented);
        };
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        let leaf = ParsedCertificate::try_from(leaf)?;
        verify_server_cert_signed_by_trust_anchor(&leaf, &self.store, between, at, algorithms.all)
    }
}

/// Judges `chain` at `now` (unix seconds). `name`: what the client asked for, if it asked for one.
pub fn judge(
    chain: &[CertificateDer<'static>],
    name: Option<&ServerName<'static>>,
    roots: &Roots,
    now: i64,
    section: &mut Section,
) {
    let facts = match certificate::facts_of(chain, Path::new("the certificate")) {
        Ok(facts) => facts,
        Err(error) => {
            let seen = format!("a certificate that can't be read: {error}");
            return section.problem(Check::CertificateChain, seen, NOBODY, Vec::new());
        }
    };
    let Some(leaf) = facts.first() else {
        let seen = "no certificate";
        return section.problem(Check::CertificateChain, seen, NOBODY, Vec::new());
    };
    let found = complaints(&facts, now);
    dates(leaf, &found, section);
    self::chain(chain, &facts, &found, roots, now, section);
    self::name(chain, leaf, name, section);
}

/// Judges a chain that was judged before, for another name.
pub fn judge_name(
    chain: &[CertificateDer<'static>],
    name: &ServerName<'static>,
    section: &mut Section,
) {
    if let Ok(facts) = certificate::facts_of(chain, Path::new("the certificate"))
        && let Some(leaf) = facts.first()
    {
        self::name(chain, leaf, Some(name), section);
    }
}

const NOBODY: &str = "No mail client connects.";

fn dates(leaf: &Facts, found: &[Complaint], section: &mut Section) {
    let renew = || {
        vec![Cure::new(
            "renew it; the proxy takes new files by itself",
            vec![Step::new("a shell, if certbot made it", &["certbot renew"])],
        )]
    };
    if let Some(complaint) = found.iter().find(|complaint| complaint.kind == Kind::Dates) {
        return section.problem(Check::CertificateDates, &complaint.text, NOBODY, renew());
    }
    if let Some(complaint) = found.iter().find(|complaint| complaint.kind == Kind::ExpiresSoon) {
        return section.warning(Check::CertificateDates, &complaint.text, "", renew());
    }
    section.ok(Check::CertificateDates, format!("valid until {}", facts::date(leaf.not_after)));
}

fn chain(
    chain: &[CertificateDer<'static>],
    facts: &[Facts],
    found: &[Complaint],
    roots: &Roots,
    now: i64,
    section: &mut Section,
) {
    let leaf = &facts[0];
    let about = |complaint: &&Complaint| match complaint.kind {
        Kind::Dates | Kind::ExpiresSoon | Kind::NoName | Kind::VouchesForItself => false,
        Kind::Incomplete => facts.len() > 1, // alone it is looked up below
        _ => true,
    };
    if let Some(refused) =
        found.iter().filter(about).find(|complaint| complaint.grade == Grade::Refused)
    {
        return section.problem(Check::CertificateChain, &refused.text, NOBODY, Vec::new());
    }
    // Dates are said already: at a moment when it was valid.
    let at = now.clamp(leaf.not_before, leaf.not_after.max(leaf.not_before));
    let at = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(at).unwrap_or(0)));
    let trusted = roots.trust(chain, at);
    let doubt = found.iter().find(about);
    let full_chain = || {
        vec![Cure::new(
            "serve the whole chain",
            vec![Step::new(
                OURS,
                &[
                    "tls:",
                    "  certificates:",
                    "    - cert: <the file with the full chain, often fullchain.pem>",
                ],
            )],
        )]
    };
    match (trusted, doubt) {
        (Ok(()), None) => {
            section.ok(Check::CertificateChain, format!("issued by {}, trusted", leaf.issuer));
        }
        (_, Some(doubt)) => {
            let meaning = "Some mail clients refuse it.";
            section.warning(Check::CertificateChain, &doubt.text, meaning, full_chain());
        }
        (Err(_), None) if chain.len() == 1 && leaf.is_self_issued() => {
            let seen = "it vouches for itself";
            let meaning = "Mail clients warn until they trust exactly this certificate.";
            section.warning(Check::CertificateChain, seen, meaning, Vec::new());
        }
        (Err(_), None) if chain.len() == 1 => {
            let seen =
                format!("it comes alone, and its issuer ({}) is not known here", leaf.issuer);
            let meaning = "Most likely the intermediate certificate is missing. Clients that don't have it from elsewhere refuse the connection. If the issuer is a CA of your own, name it with --ca.";
            section.problem(Check::CertificateChain, seen, meaning, full_chain());
        }
        (Err(_), None) => {
            let root = &facts[facts.len() - 1].issuer;
            let seen = format!("it leads to {root}, which is not trusted on this machine");
            match &roots.own {
                Some(own) => section.warning(
                    Check::CertificateChain,
                    seen,
                    "The proxy made it itself. Mail clients warn until they trust its CA.",
                    vec![Cure::new(
                        "give people the CA",
                        vec![Step::new("a shell, to see its fingerprint", &[&format!(
                            "imaps-proxy cert show {}",
                            own.display()
                        )])],
                    )],
                ),
                None => section.warning(
                    Check::CertificateChain,
                    seen,
                    "Mail clients that don't know that CA refuse the connection. If yours do, name it with --ca.",
                    Vec::new(),
                ),
            }
        }
    }
}

fn name(
    chain: &[CertificateDer<'static>],
    leaf: &Facts,
    name: Option<&ServerName<'static>>,
    section: &mut Section,
) {
    let names: Vec<_> = leaf.names.iter().map(ToString::to_string).collect();
    let good_for = match names.is_empty() {
        true => "no name at all".to_owned(),
        false => names.join(", "),
    };
    let Some(name) = name else {
        if names.is_empty() {
            return section.problem(
                Check::CertificateName,
                "good for no name at all",
                NOBODY,
                Vec::new(),
            );
        }
        return section.ok(Check::CertificateName, format!("good for {good_for}"));
    };
    let shown = name.to_str();
    let parsed = chain.first().and_then(|leaf| ParsedCertificate::try_from(leaf).ok());
    if parsed.is_some_and(|parsed| verify_server_name(&parsed, name).is_ok()) {
        return section.ok(Check::CertificateName, format!("good for {shown}"));
    }
    section.problem(
        Check::CertificateName,
        format!("not good for {shown}, but for {good_for}"),
        format!("Mail clients that are set to {shown} refuse the connection or warn."),
        vec![Cure::new(
            format!("serve a certificate with the name {shown}, or tell people to use a name that it has"),
            Vec::new(),
        )],
    );
}
