//! What a certificate says, in words for people and checks.
//!
//! In: DER, and the time. Out: [`Facts`]. Standard: RFC 5280.
//!
//! Invariant: no text from a certificate carries a control character on.
//! Not here: what a client would say to it (`complaints`).

use std::fmt;
use std::net::IpAddr;

use rustls_pki_types::CertificateDer;
use x509_parser::asn1_rs::Tag;
use x509_parser::error::X509Error;
use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry::OID_KEY_TYPE_EC_PUBLIC_KEY;
use x509_parser::prelude::*;
use x509_parser::public_key::PublicKey;

use super::aging::Life;

/// The shortest RSA key that clients, and our own signing code, still take.
pub const MIN_RSA_BITS: usize = 2048;

/// Seconds.
pub(super) const DAY: i64 = 86_400;

/// What people and checks want to know of one certificate.
#[derive(Clone, Debug)]
pub struct Facts {
    pub subject: String,
    pub issuer: String,
    /// The last CN of the subject, which clients have ignored for years.
    pub common_name: Option<String>,
    /// DNS names and IP addresses of the subjectAltName, in order.
    pub names: Vec<Name>,
    /// Unix seconds.
    pub not_before: i64,
    /// Unix seconds; the last second in which it is valid.
    pub not_after: i64,
    /// `ECDSA P-256`, `RSA 2048 bits`.
    pub key: String,
    /// `Some` for RSA.
    pub rsa_bits: Option<usize>,
    pub signature: String,
    pub weak_signature: bool,
    /// Of X.509: 3 but for certificates of old, which have no extensions and which nobody reads any more.
    pub version: u32,
    /// A critical extension that clients do not know, by its OID.
    pub unknown_critical: Option<String>,
    pub is_ca: bool,
    /// It has an extended key usage, and that leaves servers out.
    pub not_for_servers: bool,
    /// SHA-256 of the DER, `AA:BB:…`.
    pub fingerprint: String,
    pub serial: String,
    /// The certificate itself.
    pub der: CertificateDer<'static>,
    /// Its SubjectPublicKeyInfo, DER.
    pub spki: Vec<u8>,
    /// What keys are compared by, see [`key_of`].
    pub public: Option<Vec<u8>>,
    /// Which certificate of its file it is, from 1.
    pub position: usize,
    subject_der: Vec<u8>,
    issuer_der: Vec<u8>,
}

/// What a certificate is good for.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Name {
    Dns(String),
    Ip(IpAddr),
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Name::Dns(name) => f.write_str(name),
            Name::Ip(address) => address.fmt(f),
        }
    }
}

impl Facts {
    pub(super) fn of(der: &[u8]) -> Result<Self, String> {
        let (rest, parsed) =
            X509Certificate::from_der(der).map_err(|error| format!("not X.509 ({error})"))?;
        if !rest.is_empty() {
            return Err("bytes follow it".to_owned());
        }
        let mut names = Vec::new();
        if let Ok(Some(san)) = parsed.subject_alternative_name() {
            for name in &san.value.general_names {
                match name {
                    GeneralName::DNSName(name) => names.push(Name::Dns(printable(name))),
                    GeneralName::IPAddress(bytes) => names.extend(ip(bytes).map(Name::Ip)),
                    _ => {}
                }
            }
        }
        let (key, rsa_bits) = key_in_words(parsed.public_key());
        let (signature, weak_signature) =
            signature_in_words(&parsed.signature_algorithm.algorithm.to_id_string());
        let usage = parsed.extended_key_usage().ok().flatten();
        Ok(Self {
            subject: printable(&parsed.subject().to_string()),
            issuer: printable(&parsed.issuer().to_string()),
            common_name: parsed
                .subject()
                .iter_common_name()
                .last()
                .and_then(|cn| cn.as_str().ok())
                .map(printable),
            names,
            not_before: parsed.validity().not_before.timestamp(),
            not_after: parsed.validity().not_after.timestamp(),
            key,
            rsa_bits,
            signature,
            weak_signature,
            version: parsed.version().0.saturating_add(1),
            unknown_critical: unknown_critical(&parsed),
            is_ca: parsed.is_ca(),
            not_for_servers: usage
                .is_some_and(|usage| !usage.value.server_auth && !usage.value.any),
            fingerprint: fingerprint(der),
            serial: parsed.raw_serial_as_string(),
            der: CertificateDer::from(der.to_vec()),
            spki: parsed.public_key().raw.to_vec(),
            public: key_of(parsed.public_key().raw),
            position: 1,
            subject_der: parsed.subject().as_raw().to_vec(),
            issuer_der: parsed.issuer().as_raw().to_vec(),
        })
    }

    /// Issuer and subject are one: a root, or a certificate that vouches for itself.
    pub fn is_self_issued(&self) -> bool {
        self.subject_der == self.issuer_der
    }

    /// By name, which is how clients put a chain together.
    pub fn is_issued_by(&self, other: &Facts) -> bool {
        self.issuer_der == other.subject_der
    }

    /// Whether `other` signed it, or may have: by an algorithm that is not known here.
    pub fn may_be_signed_by(&self, other: &Facts) -> bool {
        let (Ok((_, own)), Ok((_, issuer))) =
            (X509Certificate::from_der(&self.der), X509Certificate::from_der(&other.der))
        else {
            return false;
        };
        // A short RSA key is not verified with, whatever it signed.
        let wrong = Err(X509Error::SignatureVerificationError);
        other.weak_rsa().is_some() || own.verify_signature(Some(issuer.public_key())) != wrong
    }

    /// It has an elliptic curve by its parameters, in place of its name (RFC 5480 §2.1.1).
    pub fn is_on_explicit_curve(&self) -> bool {
        self.key == EXPLICIT_CURVE
    }

    /// By name, as a revocation list names its CA: the DER of the issuer.
    pub(super) fn is_named(&self, issuer: &[u8]) -> bool {
        self.subject_der == issuer
    }

    /// The first DNS name, what a log line or a metric calls the certificate.
    pub fn first_dns(&self) -> Option<&str> {
        self.names.iter().find_map(|name| match name {
            Name::Dns(name) => Some(name.as_str()),
            Name::Ip(_) => None,
        })
    }

    pub(super) fn life(&self) -> Life {
        Life { not_before: self.not_before, not_after: self.not_after }
    }

    pub(super) fn weak_rsa(&self) -> Option<usize> {
        self.rsa_bits.filter(|&bits| bits < MIN_RSA_BITS)
    }
}

/// Why a certificate is not valid at `now`: `expired on 2026-01-31 (12 days ago)…`.
pub fn dates(facts: &Facts, now: i64) -> Option<String> {
    dates_of(facts.not_before, facts.not_after, now)
}

/// The same of its two dates.
pub(super) fn dates_of(not_before: i64, not_after: i64, now: i64) -> Option<String> {
    if now > not_after {
        let since = left(now - not_after);
        return Some(format!("expired on {} ({since} ago); renew it", date(not_after)));
    }
    if now < not_before {
        return Some(format!(
            "is not valid before {}; wait, or set the clock of this machine (it says {})",
            date(not_before),
            date(now)
        ));
    }
    None
}

/// `12 days`, `5 hours`: how long is left of a certificate, or since when it has expired.
pub fn left(seconds: i64) -> String {
    let (count, unit) = match seconds {
        ..120 => (seconds.max(0), "second"),
        120..7200 => (seconds / 60, "minute"),
        7200..172_800 => (seconds / 3600, "hour"),
        _ => (seconds / DAY, "day"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

/// `2026-11-24 03:58:12 UTC`.
pub fn date(unix: i64) -> String {
    let Ok(at) = ASN1Time::from_timestamp(unix) else { return format!("unix time {unix}") };
    let at = at.to_datetime();
    let (year, month, day) = (at.year(), u8::from(at.month()), at.day());
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC",
        at.hour(),
        at.minute(),
        at.second()
    )
}

/// SHA-256 in the form that browsers, openssl and mail clients show.
pub fn fingerprint(der: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, der);
    let pairs: Vec<String> = digest.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
    pairs.join(":")
}

/// What the keys of a certificate and of a file are compared by: of a SubjectPublicKeyInfo the kind
/// of key and its number. Of RSA there are two forms (one for PSS); of a curve its parameters may
/// be written out, and the point on it may be compressed.
pub(super) fn key_of(spki: &[u8]) -> Option<Vec<u8>> {
    const RSA: [&str; 2] = ["1.2.840.113549.1.1.1", "1.2.840.113549.1.1.10"];
    let (_, spki) = SubjectPublicKeyInfo::from_der(spki).ok()?;
    let kind = spki.algorithm.algorithm.to_id_string();
    let number: &[u8] = &spki.subject_public_key.data;
    let number = match *number {
        [0x04, ref point @ .., last] if spki.algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY => {
            let x = &point[..point.len().div_ceil(2)];
            [&[0x02 | last & 1], x].concat()
        }
        _ => number.to_vec(),
    };
    let kind = if RSA.contains(&&*kind) { RSA[0] } else { &kind };
    Some([kind.as_bytes(), b" ", &number].concat())
}

/// How many bytes of `der` its first element has.
pub(super) fn length(der: &[u8]) -> Option<usize> {
    let (rest, _) = X509Certificate::from_der(der).ok()?;
    Some(der.len() - rest.len())
}

/// The first critical extension that common clients do not know: they have to refuse (RFC 5280 §4.2).
fn unknown_critical(certificate: &X509Certificate<'_>) -> Option<String> {
    /// All below 2.5.29: key and usage, names, constraints, policies, lists.
    const KNOWN: [&str; 13] =
        ["14", "15", "17", "18", "19", "30", "31", "32", "33", "35", "36", "37", "54"];
    let is_known =
        |oid: &str| oid.strip_prefix("2.5.29.").is_some_and(|last| KNOWN.contains(&last));
    let critical = certificate.extensions().iter().filter(|extension| extension.critical);
    critical.map(|extension| extension.oid.to_id_string()).find(|oid| !is_known(oid))
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Some(IpAddr::from(four));
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

/// Names of a certificate are whatever its maker wrote: nothing of them may steer a terminal.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).take(1024).collect()
}

const EXPLICIT_CURVE: &str = "ECDSA on a curve with explicit parameters";

fn key_in_words(spki: &SubjectPublicKeyInfo<'_>) -> (String, Option<usize>) {
    let named = spki.algorithm.parameters.as_ref().filter(|any| any.tag() == Tag::Oid);
    let curve = || named.and_then(|any| any.as_oid().ok());
    match spki.parsed() {
        Ok(PublicKey::RSA(rsa)) => {
            // The length of the number itself: a DER integer may begin with a zero byte.
            let number: &[u8] = rsa.modulus;
            let start = number.iter().position(|&byte| byte != 0).unwrap_or(number.len());
            let number = &number[start..];
            let top = number.first().map_or(0, |byte| byte.leading_zeros() as usize);
            let bits = number.len() * 8 - top;
            (format!("RSA {bits} bits"), Some(bits))
        }
        Ok(PublicKey::EC(_)) if curve().is_none() => (EXPLICIT_CURVE.to_owned(), None),
        Ok(PublicKey::EC(_)) => {
            let curve = curve().map(|oid| oid.to_id_string()).unwrap_or_default();
            let name = match curve.as_str() {
                "1.2.840.10045.3.1.7" => "P-256",
                "1.3.132.0.34" => "P-384",
                "1.3.132.0.35" => "P-521",
                "1.3.132.0.10" => "secp256k1",
                other => return (format!("ECDSA on curve {other}"), None),
            };
            (format!("ECDSA {name}"), None)
        }
        _ => match spki.algorithm.algorithm.to_id_string().as_str() {
            "1.3.101.112" => ("Ed25519".to_owned(), None),
            "1.3.101.113" => ("Ed448".to_owned(), None),
            other => (format!("of algorithm {other}"), None),
        },
    }
}

/// The name of a signature algorithm, and whether it is broken.
fn signature_in_words(oid: &str) -> (String, bool) {
    let (name, weak) = match oid {
        "1.2.840.113549.1.1.2" => ("RSA with MD2", true),
        "1.2.840.113549.1.1.4" => ("RSA with MD5", true),
        "1.2.840.113549.1.1.5" | "1.3.14.3.2.29" => ("RSA with SHA-1", true),
        "1.2.840.10045.4.1" => ("ECDSA with SHA-1", true),
        "1.2.840.10040.4.3" => ("DSA with SHA-1", true),
        "1.2.840.113549.1.1.10" => ("RSA-PSS", false),
        "1.2.840.113549.1.1.11" => ("RSA with SHA-256", false),
        "1.2.840.113549.1.1.12" => ("RSA with SHA-384", false),
        "1.2.840.113549.1.1.13" => ("RSA with SHA-512", false),
        "1.2.840.10045.4.3.2" => ("ECDSA with SHA-256", false),
        "1.2.840.10045.4.3.3" => ("ECDSA with SHA-384", false),
        "1.2.840.10045.4.3.4" => ("ECDSA with SHA-512", false),
        "1.3.101.112" => ("Ed25519", false),
        other => (other, false),
    };
    (name.to_owned(), weak)
}
