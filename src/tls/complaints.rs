//! What clients would hold against a certificate, and whether one is worse for them than another.
//!
//! In: [`Facts`] of a file, the server's certificate first, and the time. Out: [`Complaint`]s.
//! Standard: RFC 5280. A client's rules are those of the common libraries and of Apple's and
//! Mozilla's clients.
//!
//! What decides is the server's certificate itself (dates, key, what it is for) and whether its issuer
//! is there ([`Path`]). Everything else in the file is named, with what to take out, and stops
//! nothing. **A rule that refuses is an outage with a date**, that of the certificate which is
//! served: so what is refused here is only what clients would notice at once, and no more than
//! until the old certificate ends.
//! Not here: trust. Whether a client knows the root is the client's to say.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::aws_lc_rs;
use rustls::{CertificateError, RootCertStore};
use rustls_pki_types::{ServerName, UnixTime};

use super::certificate::{Pair, Unread};
use super::facts::{Facts, MIN_RSA_BITS, Name, date, dates};
use super::path::{self, Path, Unfit, unfit_alone};

/// An old certificate that ends within this time is none to keep, for the clocks of clients differ; of
/// a short life it is a tenth.
const LAST_HOUR: i64 = 3600;

/// How bad a [`Complaint`] is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Grade {
    /// No client connects, or none that looks.
    Refused,
    /// Some clients complain, or it will hurt later.
    Doubtful,
}

/// What a [`Complaint`] is about, so that two chains can be compared.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    Dates,
    ExpiresSoon,
    WeakKey,
    WeakSignature,
    NoName,
    NotForServers,
    IsCa,
    /// An old version of X.509, a critical extension or a curve that clients do not know.
    Form,
    /// The issuer is not there.
    Incomplete,
    VouchesForItself,
    /// The constraints along the chain do not hold.
    Unverified,
    /// Something in the file is meant to be a certificate and can't be read.
    Damaged,
    /// Clients do without it, or most of them do.
    Untidy,
}

/// Something that a client would hold against a chain.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Complaint {
    pub kind: Kind,
    pub grade: Grade,
    pub text: String,
}

impl Complaint {
    fn new(kind: Kind, grade: Grade, text: String) -> Self {
        Self { kind, grade, text }
    }

    fn doubt(kind: Kind, text: String) -> Self {
        Self::new(kind, Grade::Doubtful, text)
    }
}

/// What clients would say of what a pair of files holds, at `now` (unix seconds).
pub fn of_pair(pair: &Pair, now: i64) -> Vec<Complaint> {
    let mut found = complaints(&pair.chain, now);
    found.extend(of_unread(&pair.unread));
    found
}

/// What there is to say of parts of a file that can't be read.
pub fn of_unread(unread: &Unread) -> impl Iterator<Item = Complaint> {
    let damaged = unread.damaged.iter().map(|why| {
        let text = format!("{why}: it is left out; copy the file again");
        Complaint::doubt(Kind::Damaged, text)
    });
    let foreign = unread.foreign.iter();
    damaged.chain(foreign.map(|why| Complaint::doubt(Kind::Untidy, why.clone())))
}

/// What clients would say of a chain, the server's certificate first, at `now` (unix seconds).
pub fn complaints(chain: &[Facts], now: i64) -> Vec<Complaint> {
    let Some(leaf) = chain.first() else { return Vec::new() };
    let path = Path::of(chain, now);
    let mut found = of_leaf(leaf, now);
    found.extend(of_issuer(leaf, &path));
    found.extend(path::ends_first(chain).and_then(|issuer| {
        let text = issuer.life().ends_soon(now)?;
        let text = format!("the issuer of the certificate ({}) {text}", issuer.subject);
        Some(Complaint::doubt(Kind::ExpiresSoon, text))
    }));
    let cause = |complaint: &Complaint| {
        complaint.grade == Grade::Refused
            || matches!(
                complaint.kind,
                Kind::IsCa | Kind::NoName | Kind::Form | Kind::WeakSignature
            )
    };
    if let ([leaf, between @ .., anchor], false) = (&*path.steps, found.iter().any(cause)) {
        found.extend(of_constraints(leaf, between, anchor, now));
    }
    found.extend(of_order(chain, &path));
    let mut seen = path.steps.clone();
    for facts in &path.spare {
        found.extend(of_spare(facts, &seen, chain, &path, now));
        seen.push(facts);
    }
    found
}

/// Brings what is most likely the server's certificate to the front, where no key tells which it is.
pub fn leaf_first(mut chain: Vec<Facts>) -> Vec<Facts> {
    if let Some(at) = chain.iter().position(|facts| !facts.is_ca) {
        let leaf = chain.remove(at);
        chain.insert(0, leaf);
    }
    chain
}

/// What is wrong with the server's certificate, whatever else is in the file.
fn of_leaf(leaf: &Facts, now: i64) -> Vec<Complaint> {
    let mut found = Vec::new();
    let mut say = |kind, grade, text: String| found.push(Complaint { kind, grade, text });
    if let Some(text) = dates(leaf, now) {
        say(Kind::Dates, Grade::Refused, format!("the certificate {text}"));
    } else if let Some(text) = leaf.life().ends_soon(now) {
        say(Kind::ExpiresSoon, Grade::Doubtful, format!("the certificate {text}"));
    }
    if let Some(bits) = leaf.weak_rsa() {
        let text = format!(
            "the certificate has a weak key: RSA with {bits} bits; at least {MIN_RSA_BITS} are needed"
        );
        say(Kind::WeakKey, Grade::Refused, text);
    }
    if leaf.weak_signature && !leaf.is_self_issued() {
        // Current clients refuse SHA-1, and old ones take it.
        let grade = if leaf.signature.contains("MD") { Grade::Refused } else { Grade::Doubtful };
        let text = format!(
            "the certificate has a weak signature ({}), which current clients refuse; have it issued anew",
            leaf.signature
        );
        say(Kind::WeakSignature, grade, text);
    }
    if leaf.version < 3 {
        let text = format!(
            "the certificate is X.509 version {}, which has no place for names; OpenSSL's clients take it, stricter ones refuse it: make one of version 3 with a subjectAltName (`openssl req -x509 -addext`, or -extfile with `openssl x509 -req`)",
            leaf.version
        );
        say(Kind::Form, Grade::Doubtful, text);
    }
    if let Some(oid) = &leaf.unknown_critical {
        let text = format!(
            "the certificate has a critical extension ({oid}) that clients do not know, and so they have to refuse it; have it issued without"
        );
        say(Kind::Form, Grade::Doubtful, text);
    }
    if leaf.is_on_explicit_curve() {
        let text = "the certificate gives its curve by explicit parameters, which OpenSSL's clients take and most others refuse; write the key with `openssl ec -param_enc named_curve` and have a certificate issued for that";
        say(Kind::Form, Grade::Doubtful, text.to_owned());
    }
    if leaf.names.is_empty() {
        let text = match &leaf.common_name {
            Some(name) => format!(
                "the certificate names its server ({name}) only as CN, which clients ignore; have it issued with a subjectAltName"
            ),
            None => "the certificate names no server (no subjectAltName); no client will accept it for any name".to_owned(),
        };
        say(Kind::NoName, Grade::Doubtful, text);
    }
    if leaf.not_for_servers {
        let text = "the certificate is not meant for servers (extendedKeyUsage without serverAuth); have it issued for a TLS server";
        say(Kind::NotForServers, Grade::Refused, text.to_owned());
    }
    if leaf.is_ca {
        let text = "the certificate is a CA's, which strict clients refuse for a server; have one issued for the server";
        say(Kind::IsCa, Grade::Doubtful, text.to_owned());
    }
    found
}

/// Whether clients find the issuer.
fn of_issuer(leaf: &Facts, path: &Path<'_>) -> Option<Complaint> {
    if path.steps.len() > 1 {
        return None;
    }
    if leaf.is_self_issued() {
        let text = "the certificate vouches for itself: people have to trust exactly it";
        return Some(Complaint::doubt(Kind::VouchesForItself, text.to_owned()));
    }
    let issuer = &leaf.issuer;
    let text = match path.broken {
        Some((one, why)) => format!(
            "certificate {} of the file has the name of the issuer ({issuer}) but {}; put the right one in its place",
            one.position,
            in_words(one, why)
        ),
        None => format!(
            "the issuer ({issuer}) is not in the file: unless it is a root that clients know, the intermediate certificate is missing; use the full chain (often fullchain.pem)"
        ),
    };
    Some(Complaint::doubt(Kind::Incomplete, text))
}

fn in_words(facts: &Facts, why: Unfit) -> String {
    match why {
        Unfit::Expired => format!("expired on {}", date(facts.not_after)),
        Unfit::NotYetValid => format!("is not valid before {}", date(facts.not_before)),
        Unfit::WeakKey => format!("has a weak key ({})", facts.key),
        Unfit::WeakSignature => format!("has a weak signature ({})", facts.signature),
        Unfit::NotCa => "is no CA's".to_owned(),
        Unfit::Namesake => "another key than the one that signed".to_owned(),
    }
}

/// Whether what is written along the way holds.
fn of_constraints(leaf: &Facts, between: &[&Facts], anchor: &Facts, now: i64) -> Option<Complaint> {
    let error = verified(leaf, between, anchor, now).err()?;
    Some(match is_opinion(&error) {
        false => {
            let text =
                format!("the chain does not hold: {error}; have the certificate issued again");
            Complaint::doubt(Kind::Unverified, text)
        }
        true => Complaint::doubt(Kind::Untidy, format!("strict clients refuse the chain: {error}")),
    })
}

/// Whether one library says so and another would not.
fn is_opinion(error: &rustls::Error) -> bool {
    use CertificateError as C;
    /// webpki's names for what all of them look at.
    const COMMON: [&str; 2] = ["NameConstraintViolation", "PathLenConstraintViolated"];
    match error {
        rustls::Error::InvalidCertificate(C::Other(why)) => {
            !COMMON.iter().any(|common| why.to_string().contains(common))
        }
        rustls::Error::InvalidCertificate(error) => matches!(
            error,
            C::BadEncoding
                | C::UnhandledCriticalExtension
                | C::UnsupportedSignatureAlgorithmContext { .. }
                | C::UnsupportedSignatureAlgorithmForPublicKeyContext { .. }
        ),
        _ => true, // such as a name that is none for our library
    }
}

/// Clients of TLS 1.2 may rely on the order; what we send is in order all the same.
fn of_order(chain: &[Facts], path: &Path<'_>) -> Option<Complaint> {
    let in_order = |pair: &[&Facts]| pair[0].position < pair[1].position;
    let is_first = chain.iter().all(|facts| path.steps[0].position <= facts.position);
    if is_first && path.steps.windows(2).all(in_order) {
        return None;
    }
    let order: Vec<_> = path.steps.iter().map(|facts| facts.position.to_string()).collect();
    let text = format!(
        "the certificates in the file are out of order; put the server's first and its issuers below it in order: {}",
        order.join(", ")
    );
    Some(Complaint::doubt(Kind::Untidy, text))
}

/// What to say of a certificate that is not on the way; `seen` are those before it.
fn of_spare(
    facts: &Facts,
    seen: &[&Facts],
    chain: &[Facts],
    path: &Path<'_>,
    now: i64,
) -> Option<Complaint> {
    let Facts { position, subject, .. } = facts;
    let is_issuer = path.broken.is_some_and(|(one, _)| std::ptr::eq(one, facts));
    if is_issuer && !path.leads_on() {
        return None; // that is said already
    }
    let leads_to = |other: &Facts| other.is_issued_by(facts) && !other.is_self_issued();
    let what = if seen.iter().any(|one| one.der == facts.der) {
        "is there twice".to_owned()
    } else if let Some(why) = unfit_alone(facts, now) {
        let why = in_words(facts, why);
        format!(
            "{why}; clients that know {} do without it",
            if is_issuer { "its subject as a root" } else { "the others' issuer" }
        )
    } else if !chain.iter().any(leads_to) {
        "issued none of the others".to_owned()
    } else {
        return None; // another way, such as a cross-signed root
    };
    let text = format!("certificate {position} of the file ({subject}) {what}: take it out");
    Some(Complaint::doubt(Kind::Untidy, text))
}

/// Whether a client that trusts `anchor` would accept `leaf` at `now` (unix seconds) under its first name.
///
/// # Errors
/// Why not.
pub fn verify(leaf: &Facts, between: &[Facts], anchor: &Facts, now: i64) -> Result<(), String> {
    let between: Vec<&Facts> = between.iter().collect();
    verified(leaf, &between, anchor, now).map_err(|error| error.to_string())
}

fn verified(
    leaf: &Facts,
    between: &[&Facts],
    anchor: &Facts,
    now: i64,
) -> Result<(), rustls::Error> {
    let general = |text: String| rustls::Error::General(text);
    let mut roots = RootCertStore::empty();
    roots.add(anchor.der.clone())?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| general(error.to_string()))?;
    let name = match leaf.names.first() {
        Some(Name::Ip(address)) => ServerName::from(*address),
        Some(Name::Dns(name)) => ServerName::try_from(name.replacen('*', "any", 1))
            .map_err(|_| general(format!("{name} is not a DNS name")))?,
        None => return Err(general("it names no server".to_owned())),
    };
    let at = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now).unwrap_or(0)));
    let between: Vec<_> = between.iter().map(|facts| facts.der.clone()).collect();
    verifier.verify_server_cert(&leaf.der, &between, &name, &[], at).map(|_| ())
}

/// Whether no client that looks accepts it at `now`.
pub fn is_refused(pair: &Pair, now: i64) -> bool {
    of_pair(pair, now).iter().any(|complaint| complaint.grade == Grade::Refused)
}

/// Why something is not taken in place of what is served.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Worse {
    pub why: String,
    /// The operator's word is enough to take it all the same.
    pub may_be_meant: bool,
}

/// Why a service whose certificate is `old` should not go on with `new` unasked: it would be worse for clients.
/// An old one that no client accepts any more, or only for an hour, gives way to all that some accept.
pub fn worse(old: &Pair, new: &Pair, now: i64) -> Option<Worse> {
    let refused = |faults: &[Complaint]| {
        faults.iter().find(|fault| fault.grade == Grade::Refused).map(|fault| fault.text.clone())
    };
    let (old_faults, new_faults) = (of_pair(old, now), of_pair(new, now));
    let (before, after) = (old.chain.first()?, new.chain.first()?);
    let was_refused = refused(&old_faults).is_some();
    let last = LAST_HOUR.min((before.not_after - before.not_before) / 10);
    match refused(&new_faults) {
        Some(why) if !was_refused => return Some(Worse { why, may_be_meant: false }),
        None if was_refused || before.not_after - now < last => return None,
        _ => {}
    }
    let step_back = step_back(before, after);
    let fresh = || fresh(&old_faults, new_faults, old.chain.len() > 1);
    step_back.or_else(fresh).map(|why| Worse { why, may_be_meant: true })
}

fn step_back(before: &Facts, after: &Facts) -> Option<String> {
    if after.not_after < before.not_after {
        return Some(format!(
            "it is valid until {}, the one that is served until {}, so this would be a step back",
            date(after.not_after),
            date(before.not_after)
        ));
    }
    let kept: BTreeSet<&Name> = after.names.iter().collect();
    let lost = before.names.iter().filter(|name| !kept.contains(name)).map(Name::to_string);
    let lost: Vec<_> = lost.collect();
    (!lost.is_empty())
        .then(|| format!("it is not for {}, as the one that is served is", lost.join(", ")))
}

/// What clients would hold against the new one and not against the old one.
fn fresh(old: &[Complaint], new: Vec<Complaint>, had_issuer: bool) -> Option<String> {
    let known = |kind: Kind| old.iter().any(|fault| fault.kind == kind);
    let fresh = new.into_iter().find(|fault| match fault.kind {
        Kind::ExpiresSoon | Kind::VouchesForItself | Kind::Untidy => false,
        // One that vouched for itself had no issuer to show.
        Kind::Incomplete => had_issuer && !known(Kind::Incomplete),
        kind => !known(kind),
    });
    fresh.map(|fault| fault.text)
}

#[cfg(test)]
mod tests {
    use super::super::facts::DAY;
    use super::*;
    use crate::tls::certificate;
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
    use rustls_pki_types::{CertificateDer, PrivateKeyDer};

    /// 2026-11-24.
    const NOW: i64 = 1_795_500_000;

    struct Ca {
        issuer: Issuer<'static, KeyPair>,
        params: CertificateParams,
        der: CertificateDer<'static>,
    }

    struct Leaf {
        der: CertificateDer<'static>,
        key: PrivateKeyDer<'static>,
    }

    fn params(names: &[&str], days: i64) -> CertificateParams {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        let day = |unix: i64| {
            rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(u64::try_from(unix).unwrap())
        };
        params.not_before = day(NOW - 100 * DAY);
        params.not_after = day(NOW + days * DAY);
        params
    }

    fn ca_with(name: &str, by: Option<&Ca>, constraint: BasicConstraints) -> Ca {
        let mut params = params(&[], 1000);
        params.is_ca = IsCa::Ca(constraint);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let cert = match by {
            Some(ca) => params.signed_by(&key, &ca.issuer),
            None => params.self_signed(&key),
        };
        let der = cert.unwrap().der().clone();
        Ca { issuer: Issuer::new(params.clone(), key), params, der }
    }

    fn ca(name: &str, by: Option<&Ca>) -> Ca {
        ca_with(name, by, BasicConstraints::Unconstrained)
    }

    impl Ca {
        /// Its name and its key, certified by another CA, until so many days from now.
        fn certified(&self, by: &Ca, days: i64) -> CertificateDer<'static> {
            let mut cross = self.params.clone();
            cross.not_after = params(&[], days).not_after;
            cross.signed_by(self.issuer.key(), &by.issuer).unwrap().der().clone()
        }
    }

    fn leaf(names: &[&str], days: i64, by: &Ca) -> Leaf {
        let key = KeyPair::generate().unwrap();
        let der = params(names, days).signed_by(&key, &by.issuer).unwrap().der().clone();
        Leaf { der, key: PrivateKeyDer::try_from(key.serialize_der()).unwrap() }
    }

    fn pair(leaf: &Leaf, file: &[&CertificateDer<'static>]) -> Pair {
        let file = file.iter().copied().cloned().collect();
        let at = std::path::Path::new("a.pem");
        certificate::pair(file, &leaf.key, at, at).unwrap()
    }

    fn told(pair: &Pair) -> Vec<String> {
        let found = of_pair(pair, NOW);
        found.iter().map(|one| format!("{:?} {:?}: {}", one.grade, one.kind, one.text)).collect()
    }

    /// What decides is the server's certificate and whether its issuer is there. The rest is named, and is sent in order or not at
    /// all.
    #[test]
    fn what_clients_do_not_need_is_named_and_stops_nothing() {
        let (old_root, new_root) = (ca("Old Root", None), ca("New Root", None));
        let between = ca("Between", Some(&new_root));
        let leaf = leaf(&["a.example"], 90, &between);
        let stranger = self::leaf(&["b.example"], 90, &old_root);
        let (l, b, r, old) = (&leaf.der, &between.der, &new_root.der, &old_root.der);
        let cross = &new_root.certified(&old_root, 90);
        let dead = &new_root.certified(&old_root, -90);
        let renewed = &between.certified(&new_root, 400);
        let dead_between = &between.certified(&new_root, -1);
        let impostor = &ca("Between", Some(&new_root)).der;
        let dead_root = &new_root.certified(&new_root, -1);
        type Ders<'a> = Vec<&'a CertificateDer<'static>>;
        let untidy: [(&str, Ders<'_>, Ders<'_>, &[&str]); 16] = [
            ("as it should be", vec![l, b], vec![l, b], &[]),
            ("with the root", vec![l, b, r], vec![l, b, r], &[]),
            ("with a cross-signed root", vec![l, b, cross], vec![l, b, cross], &[]),
            ("with both roots", vec![l, b, r, cross, old], vec![l, b, r, cross, old], &[]),
            (
                "with a cross-signed root that has expired",
                vec![l, b, dead],
                vec![l, b],
                &["certificate 3 of the file (CN=New Root) expired on 2026-08-26"],
            ),
            (
                "in front of the good one",
                vec![l, b, dead, r],
                vec![l, b, r],
                &["certificate 3 of the file (CN=New Root) expired on 2026-08-26"],
            ),
            (
                "with a root that has expired",
                vec![l, b, dead_root],
                vec![l, b],
                &["certificate 3 of the file (CN=New Root) expired on 2026-11-23"],
            ),
            (
                "an intermediate twice",
                vec![l, b, b],
                vec![l, b],
                &["certificate 3 of the file (CN=Between) is there twice: take it out"],
            ),
            ("an intermediate renewed", vec![l, b, renewed], vec![l, b, renewed], &[]),
            (
                "an intermediate that has expired, and renewed",
                vec![l, dead_between, renewed],
                vec![l, renewed],
                &["certificate 2 of the file (CN=Between) expired on 2026-11-23"],
            ),
            (
                "with a stranger",
                vec![l, b, &stranger.der],
                vec![l, b, &stranger.der],
                &[
                    "certificate 3 of the file (CN=rcgen self signed cert) issued none of the others",
                ],
            ),
            (
                "a namesake of the issuer in front of it",
                vec![l, impostor, b],
                vec![l, b, impostor],
                &[],
            ),
            ("upside down", vec![r, b, l], vec![l, b, r], &["out of order", "in order: 3, 2, 1"]),
            ("the root too early", vec![l, r, b], vec![l, b, r], &["in order: 1, 3, 2"]),
            (
                "the root too early and the issuer twice",
                vec![l, r, b, b],
                vec![l, b, r],
                &["in order: 1, 3, 2", "certificate 4 of the file (CN=Between) is there twice"],
            ),
            (
                "an old one of its own in front",
                vec![l, b, l],
                vec![l, b],
                &["certificate 3 of the file (CN=rcgen self signed cert) is there twice"],
            ),
        ];
        let old = pair(&leaf, &[l, b]);
        for (what, file, sent, said) in untidy {
            let new = pair(&leaf, &file);
            let found = told(&new);
            for text in said {
                assert!(found.iter().any(|line| line.contains(text)), "{what}, {text}: {found:#?}");
            }
            assert!(
                found.iter().all(|line| line.starts_with("Doubtful Untidy: ")),
                "{what}: {found:?}"
            );
            assert_eq!(found.is_empty(), said.is_empty(), "{what}: {found:?}");
            assert_eq!(worse(&old, &new, NOW), None, "{what}");
            assert_eq!(new.sent(NOW).cert, sent.into_iter().cloned().collect::<Vec<_>>(), "{what}");
        }

        // Its issuer is not there, whatever else is. It is not taken unasked, and all of it is sent.
        for (what, file, said) in [
            ("alone", vec![l], "the issuer (CN=Between) is not in the file"),
            ("with the root only", vec![l, r], "the issuer (CN=Between) is not in the file"),
            (
                "with an issuer that has expired",
                vec![l, dead_between],
                "certificate 2 of the file has the name of the issuer (CN=Between) but expired on 2026-11-23",
            ),
            (
                "with an issuer that has expired, and the root",
                vec![l, dead_between, r],
                "has the name of the issuer (CN=Between) but expired",
            ),
            (
                "with another CA of the name", // only the signature tells
                vec![l, impostor, r],
                "has the name of the issuer (CN=Between) but another key than the one that signed",
            ),
        ] {
            let new = pair(&leaf, &file);
            let found = told(&new);
            let is_said =
                |line: &String| line.starts_with("Doubtful Incomplete: ") && line.contains(said);
            assert!(found.iter().any(is_said), "{what}: {found:?}");
            assert_eq!(
                found.iter().filter(|line| line.contains("Incomplete")).count(),
                1,
                "{what}"
            );
            let worse = worse(&old, &new, NOW).expect(what);
            assert!(worse.may_be_meant && worse.why.contains(said), "{what}: {worse:?}");
            assert_eq!(new.sent(NOW).cert.len(), file.len(), "{what}");
        }
    }

    #[test]
    fn what_is_written_in_a_ca_holds_or_is_said_not_to() {
        let root = ca("Root", None);
        let narrow = ca_with("Narrow", Some(&root), BasicConstraints::Constrained(0));
        let below = ca("Below", Some(&narrow));
        let leaf = leaf(&["a.example"], 90, &below);
        let pair = pair(&leaf, &[&leaf.der, &below.der, &narrow.der, &root.der]);
        let found = told(&pair);
        assert!(found[0].starts_with("Doubtful Unverified: ") && found.len() == 1, "{found:?}");
    }

    #[test]
    fn worse_is_what_clients_would_notice() {
        let root = ca("Root", None);
        let b = ca("Between", Some(&root));
        let chain = |names: &[&str], days: i64| {
            let leaf = leaf(names, days, &b);
            pair(&leaf, &[&leaf.der, &b.der])
        };
        let two = ["a.example", "b.example"];
        let old = chain(&two, 40);
        let alone = |names: &[&str]| {
            let leaf = leaf(names, 90, &b);
            pair(&leaf, &[&leaf.der])
        };
        // What is new, why it is refused unasked, and whether it is refused to SIGHUP too.
        let table: [(&str, Pair, Option<&str>, bool); 7] = [
            ("the same again", chain(&two, 40), None, false),
            ("later", chain(&two, 90), None, false),
            (
                "names in another order, and one more",
                chain(&["c.x", "b.example", "a.example"], 90),
                None,
                false,
            ),
            ("about to expire", chain(&two, 5), Some("step back"), false),
            ("a name less", chain(&two[..1], 90), Some("it is not for b.example"), false),
            (
                "without intermediates",
                alone(&two),
                Some("intermediate certificate is missing"),
                false,
            ),
            ("expired", chain(&two, -1), Some("expired on"), true),
        ];
        for (what, new, expected, always) in table {
            let why = worse(&old, &new, NOW);
            assert_eq!(why.is_some(), expected.is_some(), "{what}: {why:?}");
            if let (Some(why), Some(text)) = (why, expected) {
                assert!(why.why.contains(text), "{what}: {why:?}");
                assert_eq!(!why.may_be_meant, always, "{what}, told");
            }
        }
        // One that no client accepts any more gives way to anything that some accept, and so does one
        // that ends within the hour.
        let dead = chain(&two, 0);
        for later in [DAY, -3599] {
            assert_eq!(worse(&dead, &chain(&["c.example"], 90), NOW + later), None);
            assert_eq!(worse(&dead, &alone(&two), NOW + later), None);
        }
        assert!(worse(&dead, &alone(&two), NOW - 3600).is_some());
        assert!(worse(&dead, &chain(&two, -1), NOW - 1).is_some(), "it was over before");
        // From one that vouches for itself there is nothing to lose by an issuer that is not there.
        let key = KeyPair::generate().unwrap();
        let mut own = params(&two, 40);
        own.distinguished_name.push(DnType::CommonName, "own");
        let der = own.self_signed(&key).unwrap().der().clone();
        let own = Leaf { der, key: PrivateKeyDer::try_from(key.serialize_der()).unwrap() };
        assert_eq!(worse(&pair(&own, &[&own.der]), &alone(&two), NOW), None);
    }
}
