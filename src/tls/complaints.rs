//! What clients would hold against a chain, and whether one chain is worse for them than another.
//!
//! In: [`Facts`] of a chain, leaf first, and the time. Out: [`Complaint`]s. Standard: RFC 5280. A client's rules are
//! those of the common libraries and of Apple's and Mozilla's clients.
//! Not here: trust. Whether a client knows the root is the client's to say.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::aws_lc_rs;
use rustls_pki_types::{ServerName, UnixTime};

use super::facts::{DAY, Facts, MIN_RSA_BITS, Name, date, dates};

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
    Disorder,
    /// The issuer is not there.
    Incomplete,
    VouchesForItself,
    /// The signatures or constraints along the chain do not hold.
    Unverified,
}

/// Something that a client would hold against a chain.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Complaint {
    pub kind: Kind,
    pub grade: Grade,
    pub text: String,
}

/// What clients would say of a chain, leaf first, at `now` (unix seconds).
pub fn complaints(chain: &[Facts], now: i64) -> Vec<Complaint> {
    let mut found = Vec::new();
    let mut say = |kind, grade, text: String| found.push(Complaint { kind, grade, text });
    let Some(leaf) = chain.first() else { return found };
    for (index, facts) in chain.iter().enumerate() {
        let who = match index {
            0 => "the certificate".to_owned(),
            n => format!("certificate {} of the chain ({})", n + 1, facts.subject),
        };
        if let Some(text) = dates(facts, now) {
            say(Kind::Dates, Grade::Refused, format!("{who} {text}"));
        } else if index == 0 && facts.not_after - now < 14 * DAY {
            let days = (facts.not_after - now) / DAY;
            let text = format!("{who} expires in {days} days; renew it");
            say(Kind::ExpiresSoon, Grade::Doubtful, text);
        }
        if let Some(bits) = facts.weak_rsa() {
            let text = format!(
                "{who} has a weak key: RSA with {bits} bits; at least {MIN_RSA_BITS} are needed"
            );
            say(Kind::WeakKey, Grade::Refused, text);
        }
        // The signature of a root is not looked at: it is trusted because it is known.
        if facts.weak_signature && !facts.is_self_issued() {
            let text =
                format!("{who} has a weak signature ({}); have it issued anew", facts.signature);
            say(Kind::WeakSignature, Grade::Refused, text);
        }
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
        let text = "the certificate is a CA's, which strict clients refuse for a server; put the server's own certificate first";
        say(Kind::IsCa, Grade::Doubtful, text.to_owned());
    }
    for (index, step) in chain.windows(2).enumerate() {
        if !step[0].is_issued_by(&step[1]) {
            let text = format!(
                "the chain is out of order or holds a stranger: certificate {} was issued by {}, but certificate {} is {}",
                index + 1,
                step[0].issuer,
                index + 2,
                step[1].subject
            );
            say(Kind::Disorder, Grade::Doubtful, text);
        }
    }
    if chain.len() == 1 && !leaf.is_self_issued() {
        let text = format!(
            "the issuer ({}) is not in the file: unless it is a root that clients know, the intermediate certificate is missing; use the full chain (often fullchain.pem)",
            leaf.issuer
        );
        say(Kind::Incomplete, Grade::Doubtful, text);
    }
    if chain.len() == 1 && leaf.is_self_issued() {
        let text = "the certificate vouches for itself: people have to trust exactly it";
        say(Kind::VouchesForItself, Grade::Doubtful, text.to_owned());
    }
    let cause = |complaint: &Complaint| {
        complaint.grade == Grade::Refused
            || matches!(complaint.kind, Kind::Disorder | Kind::IsCa | Kind::NoName)
    };
    if let ([leaf, between @ .., anchor], false) = (chain, found.iter().any(cause))
        && let Err(why) = verify(leaf, between, anchor, now)
    {
        let text = format!("the chain does not hold: {why}; have the certificate issued again");
        found.push(Complaint { kind: Kind::Unverified, grade: Grade::Doubtful, text });
    }
    found
}

/// Whether a client that trusts `anchor` would accept `leaf` at `now` (unix seconds) under its first name.
///
/// # Errors
/// Why not.
pub fn verify(leaf: &Facts, between: &[Facts], anchor: &Facts, now: i64) -> Result<(), String> {
    let mut roots = RootCertStore::empty();
    roots.add(anchor.der.clone()).map_err(|error| error.to_string())?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| error.to_string())?;
    let name = match leaf.names.first() {
        Some(Name::Ip(address)) => ServerName::from(*address),
        Some(Name::Dns(name)) => ServerName::try_from(name.replacen('*', "any", 1))
            .map_err(|_| format!("{name} is not a DNS name"))?,
        None => return Err("it names no server".to_owned()),
    };
    let at = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now).unwrap_or(0)));
    let between: Vec<_> = between.iter().map(|facts| facts.der.clone()).collect();
    verifier
        .verify_server_cert(&leaf.der, &between, &name, &[], at)
        .map_err(|error| error.to_string())?;
    Ok(())
}

/// Why a service whose certificate is `old` should not go on with `new` unasked: it would be worse for clients.
/// `told` is that the operator asked for it, by SIGHUP: then only what no client would accept is refused.
pub fn worse(old: &[Facts], new: &[Facts], now: i64, told: bool) -> Option<String> {
    let (old_faults, new_faults) = (complaints(old, now), complaints(new, now));
    let refused = |faults: &[Complaint]| {
        faults.iter().find(|fault| fault.grade == Grade::Refused).map(|fault| fault.text.clone())
    };
    match (refused(&old_faults), refused(&new_faults)) {
        (None, Some(why)) => return Some(why),
        (Some(_), None) => return None,
        _ if told => return None,
        _ => {}
    }
    let (before, after) = (old.first()?, new.first()?);
    if after.not_after < before.not_after {
        return Some(format!(
            "it is valid until {}, the one that is served until {}, so this would be a step back; if it is meant, send SIGHUP",
            date(after.not_after),
            date(before.not_after)
        ));
    }
    let kept: BTreeSet<&Name> = after.names.iter().collect();
    let lost: Vec<_> =
        before.names.iter().filter(|name| !kept.contains(name)).map(Name::to_string).collect();
    if !lost.is_empty() {
        let lost = lost.join(", ");
        return Some(format!(
            "it is not for {lost}, as the one that is served is; if it is meant, send SIGHUP"
        ));
    }
    let known = |kind: Kind| old_faults.iter().any(|fault| fault.kind == kind);
    let fresh = new_faults.into_iter().find(|fault| match fault.kind {
        Kind::ExpiresSoon | Kind::VouchesForItself => false,
        // One that vouched for itself had no issuer to show.
        Kind::Incomplete => old.len() > 1,
        kind => !known(kind),
    });
    fresh.map(|fault| format!("{}; if it is meant, send SIGHUP", fault.text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

    /// 2026-11-24.
    const NOW: i64 = 1_795_500_000;

    struct Ca {
        issuer: Issuer<'static, KeyPair>,
        facts: Facts,
    }

    fn params(names: &[&str], days: i64) -> CertificateParams {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        let day = |unix: i64| {
            rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(u64::try_from(unix).unwrap())
        };
        params.not_before = day(NOW - DAY);
        params.not_after = day(NOW + days * DAY);
        params
    }

    fn ca(name: &str, by: Option<&Ca>) -> Ca {
        let mut params = params(&[], 1000);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let cert = match by {
            Some(ca) => params.signed_by(&key, &ca.issuer),
            None => params.self_signed(&key),
        };
        let facts = Facts::of(cert.unwrap().der()).unwrap();
        Ca { issuer: Issuer::new(params, key), facts }
    }

    fn leaf(names: &[&str], days: i64, by: &Ca) -> Facts {
        let key = KeyPair::generate().unwrap();
        Facts::of(params(names, days).signed_by(&key, &by.issuer).unwrap().der()).unwrap()
    }

    fn kinds(chain: &[Facts]) -> Vec<Kind> {
        complaints(chain, NOW).iter().map(|complaint| complaint.kind).collect()
    }

    #[test]
    fn a_chain_is_judged_by_its_names_and_its_signatures() {
        let root = ca("Root", None);
        let between = ca("Between", Some(&root));
        let leaf = leaf(&["a.example"], 90, &between);
        let (r, b) = (&root.facts, &between.facts);
        let chain = |all: &[&Facts]| all.iter().copied().cloned().collect::<Vec<_>>();
        assert_eq!(kinds(&chain(&[&leaf, b])), []);
        assert_eq!(kinds(&chain(&[&leaf, b, r])), []);
        assert_eq!(kinds(&chain(&[&leaf])), [Kind::Incomplete]);
        assert_eq!(kinds(&chain(&[&leaf, r])), [Kind::Disorder]);
        assert_eq!(kinds(&chain(&[&leaf, r, b])), [Kind::Disorder, Kind::Disorder]);
        // Another CA of the same name: only its signature tells.
        let impostor = ca("Between", Some(&root));
        assert_eq!(kinds(&chain(&[&leaf, &impostor.facts, r])), [Kind::Unverified]);
    }

    #[test]
    fn worse_is_what_clients_would_notice() {
        let root = ca("Root", None);
        let b = ca("Between", Some(&root));
        let chain = |names: &[&str], days: i64| vec![leaf(names, days, &b), b.facts.clone()];
        let two = ["a.example", "b.example"];
        let old = chain(&two, 40);
        let alone = |names: &[&str]| vec![leaf(names, 90, &b)];
        // What is new, why it is refused unasked, and whether it is refused to SIGHUP too.
        let table: [(&str, Vec<Facts>, Option<&str>, bool); 8] = [
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
            (
                "with a stranger",
                vec![leaf(&two, 90, &b), root.facts.clone()],
                Some("out of order"),
                false,
            ),
        ];
        for (what, new, expected, always) in table {
            let why = worse(&old, &new, NOW, false);
            match expected {
                None => assert_eq!(why, None, "{what}"),
                Some(text) => {
                    assert!(why.as_ref().is_some_and(|why| why.contains(text)), "{what}: {why:?}")
                }
            }
            assert_eq!(worse(&old, &new, NOW, true).is_some(), always, "{what}, told");
        }
        // One that no client accepts any more gives way to anything that some accept.
        let dead = chain(&two, 0);
        assert_eq!(worse(&dead, &chain(&["c.example"], 90), NOW + DAY, false), None);
        // From one that vouches for itself there is nothing to lose by an issuer that is not there.
        let mut own = params(&two, 40);
        own.distinguished_name.push(DnType::CommonName, "own");
        let own = own.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let own = vec![Facts::of(own.der()).unwrap()];
        assert_eq!(worse(&own, &alone(&two), NOW, false), None);
    }
}
