//! Client certificates: who is asked for one, which are good, and why one is not.
//!
//! In: [`settings::ClientAuth`], and the files of CAs and revocation lists that it names. Out: a verifier for rustls and
//! the [`Policy`] that binds tickets to it; after a handshake the client's [`Identity`], or a [`Refusal`].
//! Standard: RFC 5280, by way of webpki. The extended key usage, if there is one, has to allow clients.
//!
//! `required`: nobody gets to the dialogue without a good certificate. `optional`: a client without one is served, one
//! with a bad one is refused all the same, for it asks to be taken for somebody.
//! Every certificate of a chain but the root is looked up in the lists, so each CA in it needs one; with a list missing
//! the certificate is refused (`revocation_unknown`). **A list past its nextUpdate still counts** as it stands, with an
//! error in the log, in `check` and a metric to alert on: those whom it names stay out, and a download that fails
//! at night must not lock out everybody else, as OpenSSL's servers do.
//!
//! A resumed session is let in without a look at its certificate, again and again, for each visit brings new tickets. So
//! a ticket opens only under the policy under which it was made (a changed CA, list or mode ends all), and no longer than
//! all certificates that the client sent are valid ([`still_valid`]): then there is a full handshake, to which the client
//! may bring its new one.
//! Not here: the handshake (`conn::tls`), when files are looked at (`reload`), what a backend is told (nothing).

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use aws_lc_rs::digest;
use rustls::CertificateError;
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use x509_parser::error::X509Error;
use x509_parser::prelude::{CertificateRevocationList, FromDer as _, X509Certificate};

use super::aging::{Aging, Life, Said};
use super::facts::{self, Facts};
use super::pairs::Stamp;
use super::tickets::Policy;
use super::{Severity, certificate, chain, unix};
use crate::config::settings;
use crate::log::printable;

/// Why clients can't be judged (anew). All of it is for the operator.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    File(#[from] certificate::Error),
    #[error(
        "{}: certificate {position} ({subject}) is no CA's; name the file of the CA that issued the clients' certificates",
        path.display()
    )]
    NotCa { path: PathBuf, position: usize, subject: String },
    #[error(
        "{}: certificate {position} ({subject}) is self-signed and no CA's (basicConstraints): whoever holds its key could make certificates of any name; make a CA, issue the clients' certificates by it, and name the CA's file",
        path.display()
    )]
    SelfSigned { path: PathBuf, position: usize, subject: String },
    #[error("{}: revocation list {position} cannot be parsed; fetch it again", path.display())]
    NotList { path: PathBuf, position: usize },
    #[error(
        "{}: revocation list {position} claims to be from {issuer}, but the key in {} did not sign it; fetch it again, or renew the CA's certificate",
        path.display(), ca.display()
    )]
    ForeignList { path: PathBuf, position: usize, issuer: String, ca: PathBuf },
    #[error("{}: the revocation lists cannot be used: {source}", path.display())]
    UnusableList { path: PathBuf, source: rustls::server::VerifierBuilderError },
    #[error("client certificates cannot be verified: {0}")]
    Verifier(rustls::server::VerifierBuilderError),
}

/// Who is asked for a certificate, from files that are read again.
pub struct ClientAuth {
    settings: settings::ClientAuth,
    stamps: [Option<Stamp>; 2],
    pub rules: Rules,
    /// What was said last of each of [`Rules::dated`].
    aging: Vec<Aging>,
}

/// What one reading of the files came to.
#[derive(Clone, Debug)]
pub struct Rules {
    pub verifier: Arc<dyn ClientCertVerifier>,
    /// Changes with everything that decides who is let in.
    pub policy: Policy,
    /// When the first of the revocation lists is due to be replaced, in unix seconds.
    pub next_update: Option<i64>,
    /// What the files hold: `FILE: 2 CA certificates`.
    pub counted: Vec<String>,
    /// To be logged as warnings: who will be refused for want of a list.
    pub notice: Vec<String>,
    /// To be logged as errors: CAs that can't be read, and do not count.
    pub problems: Vec<String>,
    /// What has an end: CAs and revocation lists.
    dated: Vec<Dated>,
}

/// Something of which there is more to say as time passes.
#[derive(Clone, Debug)]
struct Dated {
    life: Life,
    what: What,
    /// File and name.
    of: String,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum What {
    Ca,
    List,
}

impl ClientAuth {
    /// # Errors
    /// A file that is not what it should be.
    pub fn new(
        settings: settings::ClientAuth,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, Error> {
        let stamps = stamps(&settings);
        let rules = read(&settings, provider)?;
        let aging = vec![Aging::default(); rules.dated.len()];
        Ok(Self { settings, stamps, rules, aging })
    }

    /// What is to be said at `now` of CAs and lists that end, warnings and errors: each thing once.
    pub fn aged(&mut self, now: SystemTime) -> (Vec<String>, Vec<String>) {
        aged(&self.rules.dated, &mut self.aging, unix(now))
    }

    /// Whether a file has changed since it was read with success. Costs one `stat` a file.
    pub fn due(&self) -> bool {
        self.stamps != stamps(&self.settings)
    }

    /// Reads the files again. After an error the old [`rules`](Self::rules) stay.
    ///
    /// # Errors
    /// A file that is not what it should be, or of which only a part can be read: the clients of the
    /// other part would be locked out.
    pub fn load(&mut self, provider: &Arc<CryptoProvider>) -> Result<(), Error> {
        let new = Self::new(self.settings.clone(), provider)?;
        if let Some(why) = new.rules.problems.first() {
            return Err(certificate::Error::Partly(why.clone()).into());
        }
        *self = new;
        Ok(())
    }
}

fn aged(dated: &[Dated], aging: &mut [Aging], now: i64) -> (Vec<String>, Vec<String>) {
    let (mut notice, mut problems) = (Vec::new(), Vec::new());
    for (Dated { life, what, of }, aging) in dated.iter().zip(aging) {
        match (what, aging.on(*life, now)) {
            (What::Ca, Some(Said::Problem(text))) => {
                notice.push(format!("{of} {text}; clients are still judged by it"));
            }
            (What::Ca, Some(Said::Notice(text) | Said::Relief(text))) => {
                notice.push(format!("{of} {text}"));
            }
            (What::List, Some(Said::Problem(_))) if now > life.not_after => problems.push(format!(
                "{of} was to be replaced by {}; whoever was revoked since then gets in, fetch the new one",
                facts::date(life.not_after)
            )),
            // A list is replaced on its last day.
            (What::List, _) | (What::Ca, None) => {}
        }
    }
    (notice, problems)
}

/// Everything that is wrong with the files that `settings` name.
pub fn check(
    settings: &settings::ClientAuth,
    provider: &Arc<CryptoProvider>,
    now: i64,
    say: &mut impl FnMut(Severity, String),
) {
    match read(settings, provider) {
        Ok(rules) => {
            let mut aging = vec![Aging::default(); rules.dated.len()];
            let (notice, problems) = aged(&rules.dated, &mut aging, now);
            let problems = rules.problems.into_iter().chain(problems);
            problems.for_each(|text| say(Severity::Error, text));
            let notice = rules.notice.into_iter().chain(notice);
            notice.for_each(|text| say(Severity::Warning, text));
        }
        Err(error) => {
            say(Severity::Error, chain(&error));
            // One mistake must not hide the other file's.
            if let Some(crl) = &settings.crl
                && certificate::read_cas(&settings.ca).is_err()
                && let Err(error) = certificate::read_lists(crl)
            {
                say(Severity::Error, chain(&error));
            }
        }
    }
}

fn stamps(settings: &settings::ClientAuth) -> [Option<Stamp>; 2] {
    [Stamp::of(&settings.ca), settings.crl.as_deref().and_then(Stamp::of)]
}

fn read(settings: &settings::ClientAuth, provider: &Arc<CryptoProvider>) -> Result<Rules, Error> {
    let certificate::Cas { facts, roots, problems, mut notice } =
        certificate::read_cas(&settings.ca)?;
    let path = settings.ca.display();
    let mut counted = vec![format!("{path}: {}", certificate::What::Ca.counted(facts.len()))];
    let mut dated = Vec::new();
    for facts in &facts {
        let (path, position) = (settings.ca.clone(), facts.position);
        // To webpki everything in the store is a CA, a client's own certificate too. Before version 3
        // no certificate could say whether it is a CA's.
        let own = facts.is_self_issued();
        if !(facts.is_ca || own && facts.version < 3) {
            let subject = facts.subject.clone();
            return Err(match own {
                true => Error::SelfSigned { path, position, subject },
                false => Error::NotCa { path, position, subject },
            });
        }
        let of = format!("{}: the CA {}", path.display(), facts.subject);
        dated.push(Dated { life: facts.life(), what: What::Ca, of });
    }
    let lists = match &settings.crl {
        Some(crl) => Some(Lists::read(crl.clone(), settings, &facts)?),
        None => None,
    };
    let mut builder =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
    if !settings.required {
        builder = builder.allow_unauthenticated();
    }
    let policy = policy(settings.required, &facts, lists.as_ref().map(|lists| &*lists.ders));
    let mut next_update = None;
    let verifier = match lists {
        None => builder.build().map_err(Error::Verifier)?,
        Some(lists) => {
            let count = certificate::What::RevocationList.counted(lists.ders.len());
            counted.push(format!("{}: {count}", lists.path.display()));
            next_update = lists.dated.iter().map(|list| list.life.not_after).min();
            dated.extend(lists.dated);
            notice.extend(lists.notice);
            let unusable = |source| Error::UnusableList { path: lists.path, source };
            builder.with_crls(lists.ders).build().map_err(unusable)?
        }
    };
    Ok(Rules { verifier, policy, next_update, counted, notice, problems, dated })
}

/// Revocation lists, each looked at on its own, since webpki would only find out with a client at the door.
struct Lists {
    path: PathBuf,
    ders: Vec<CertificateRevocationListDer<'static>>,
    /// Those that say when they are to be replaced.
    dated: Vec<Dated>,
    notice: Vec<String>,
}

impl Lists {
    fn read(
        path: PathBuf,
        settings: &settings::ClientAuth,
        facts: &[Facts],
    ) -> Result<Self, Error> {
        let ders = certificate::read_lists(&path)?;
        let mut found = Self { path, ders, dated: Vec::new(), notice: Vec::new() };
        let mut covered = HashSet::new();
        for (index, der) in found.ders.iter().enumerate() {
            let (path, position) = (found.path.clone(), index + 1);
            let Ok((_, list)) = CertificateRevocationList::from_der(der) else {
                return Err(Error::NotList { path, position });
            };
            let issuer = facts::printable(&list.issuer().to_string());
            let named = |ca: &Facts| ca.is_named(list.issuer().as_raw());
            let by_name: Vec<_> = (0..facts.len()).filter(|&ca| named(&facts[ca])).collect();
            if !by_name.is_empty() && by_name.iter().all(|&ca| disowns(&facts[ca], &list)) {
                let ca = settings.ca.clone();
                return Err(Error::ForeignList { path, position, issuer, ca });
            }
            covered.extend(by_name);
            let Some(next) = list.next_update().map(|time| time.timestamp()) else { continue };
            let life = Life { not_before: list.last_update().timestamp(), not_after: next };
            let of = format!("{}: the revocation list of {issuer}", found.path.display());
            found.dated.push(Dated { life, what: What::List, of });
        }
        for (_, ca) in facts.iter().enumerate().filter(|(index, _)| !covered.contains(index)) {
            found.notice.push(format!(
                "{}: no revocation list of {}: every client whose certificate it issued is refused; add its list to the file",
                found.path.display(),
                ca.subject
            ));
        }
        Ok(found)
    }
}

/// Whether the CA's key did not sign the list. An algorithm or a length of key with which nothing is
/// verified here is left to webpki.
fn disowns(ca: &Facts, list: &CertificateRevocationList<'_>) -> bool {
    let Ok((_, parsed)) = X509Certificate::from_der(&ca.der) else { return false };
    let ca = match ca.weak_rsa() {
        Some(_) => return false,
        None => parsed,
    };
    matches!(list.verify_signature(ca.public_key()), Err(X509Error::SignatureVerificationError))
}

fn policy(
    required: bool,
    cas: &[Facts],
    lists: Option<&[CertificateRevocationListDer<'_>]>,
) -> Policy {
    let mut context = digest::Context::new(&digest::SHA256);
    let mut add = |bytes: &[u8]| {
        context.update(&(bytes.len() as u64).to_be_bytes());
        context.update(bytes);
    };
    add(if required { b"required" } else { b"optional" });
    add(&cas.len().to_be_bytes());
    cas.iter().for_each(|ca| add(&ca.der));
    lists.iter().copied().flatten().for_each(|der| add(der));
    let mut policy = [0; 32];
    policy.copy_from_slice(context.finish().as_ref());
    policy
}

/// Whom a verified certificate names.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Identity {
    /// Escaped and cut for the log.
    pub subject: Box<str>,
    /// SHA-256, as `cert show` and openssl print it.
    pub fingerprint: Box<str>,
}

impl Identity {
    /// Of a chain, leaf first; `resumed`: it was verified in an earlier handshake.
    ///
    /// # Errors
    /// [`Refusal::Expired`] if one of the chain has expired since then. [`still_valid`] comes before; this does not
    /// depend on what rustls' tickets look like inside.
    pub fn of(
        chain: &[CertificateDer<'_>],
        resumed: bool,
        now: SystemTime,
    ) -> Result<Option<Self>, Refusal> {
        let Some(leaf) = chain.first() else { return Ok(None) };
        let Ok(facts) = Facts::of(leaf) else { return Err(Refusal::Bad) };
        if resumed && !chain.iter().all(|der| is_unexpired(der, now)) {
            return Err(Refusal::Expired);
        }
        let subject = printable(facts.subject.as_bytes()).into();
        Ok(Some(Self { subject, fingerprint: facts.fingerprint.into() }))
    }
}

/// Whether nothing in the client's chain in the state of a session, if there is one, has expired. State that is not
/// understood is not resumed. What the client sent needlessly counts as well: only a full handshake can tell.
pub fn still_valid(state: &[u8], now: SystemTime) -> bool {
    client_chain(state).is_some_and(|chain| chain.iter().all(|der| is_unexpired(der, now)))
}

fn is_unexpired(der: &[u8], now: SystemTime) -> bool {
    let parsed = X509Certificate::from_der(der);
    parsed.is_ok_and(|(_, parsed)| unix(now) <= parsed.validity().not_after.timestamp())
}

/// The client's chain, empty if it showed none. The format is rustls' own (`ServerSessionValue`) and promised to nobody,
/// so the tests resume sessions of both versions and let their certificates expire.
fn client_chain(state: &[u8]) -> Option<Vec<&[u8]>> {
    let rest = &mut &state[..];
    if take(rest, 1)? == [1] {
        let length = take(rest, 1)?[0];
        take(rest, length.into())?; // SNI
    }
    take(rest, 4)?; // version and suite
    let length = take(rest, 1)?[0];
    take(rest, length.into())?; // secret
    take(rest, 1)?; // extended master secret
    if take(rest, 1)? != [1] {
        return Some(Vec::new());
    }
    let list = &mut take_long(rest)?;
    let mut chain = Vec::new();
    while !list.is_empty() {
        chain.push(take_long(list)?);
    }
    Some(chain)
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    rest.split_off(..length)
}

/// What follows its length in three bytes.
fn take_long<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = take(rest, 3)?;
    take(rest, u32::from_be_bytes([0, length[0], length[1], length[2]]) as usize)
}

/// Why a client's certificate was not good enough: a closed list.
#[derive(Clone, Copy, Debug, Eq, PartialEq, strum::VariantArray)]
pub enum Refusal {
    /// None was sent, and one is required.
    Missing,
    Expired,
    NotYetValid,
    Revoked,
    /// There are lists, but none of a CA in its chain.
    RevocationUnknown,
    /// None of our CAs issued it, or intermediates are missing.
    Foreign,
    /// Its extended key usage leaves clients out.
    WrongPurpose,
    /// It does not parse, its signature or the client's is wrong, its algorithm is not taken.
    Bad,
    /// A revocation list of ours can't be used.
    OurList,
}

impl Refusal {
    /// `None`: the handshake failed of something else.
    pub fn of(error: &rustls::Error) -> Option<Self> {
        use CertificateError as C;
        Some(match error {
            rustls::Error::NoCertificatesPresented => Self::Missing,
            rustls::Error::InvalidCertRevocationList(_) => Self::OurList,
            rustls::Error::InvalidCertificate(error) => match error {
                C::Expired | C::ExpiredContext { .. } => Self::Expired,
                C::NotValidYet | C::NotValidYetContext { .. } => Self::NotYetValid,
                C::Revoked => Self::Revoked,
                C::UnknownRevocationStatus
                | C::ExpiredRevocationList
                | C::ExpiredRevocationListContext { .. } => Self::RevocationUnknown,
                C::UnknownIssuer => Self::Foreign,
                C::InvalidPurpose | C::InvalidPurposeContext { .. } => Self::WrongPurpose,
                _ => Self::Bad,
            },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests;
