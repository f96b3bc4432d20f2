//! The certificates that are made here: for which names, how long, and what their CA can vouch for.
//!
//! In: names, keys, the time. Out: certificates as DER. Standard: RFC 5280; what a CA may not vouch for is
//! written as the Baseline Requirements of the CA/Browser Forum have it (7.1.2.5.2), which clients know.
//!
//! Invariant: the CA's key is dropped where it was made, so nothing else can ever be issued by it. Whoever
//! gets hold of all that is kept can be the server, and nobody else.
//! Not here: when one is made, and what is kept (`kept`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
};
use rustls::crypto::aws_lc_rs;
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::super::facts::{DAY, Name};
use super::Error;

/// Of CA and certificate, from an hour ago on for clients whose clock is late: Apple's clients accept 825
/// days below a CA that its owner has installed, and others have no limit there.
pub const LIFE: i64 = 820 * DAY;
const BACKDATE: i64 = 3600;
/// How our CA's common name begins; what another CA issued is somebody else's and stays untouched.
const CA_NAME: &str = "imaps-proxy CA ";

/// The server's certificate, then its CA's.
pub type Chain = Vec<CertificateDer<'static>>;

/// A new CA for `names` only, and the one certificate that it issues, for `key`.
pub fn chain(names: &[Name], key: &KeyPair, now: i64) -> Result<Chain, Error> {
    let ca_key = new_key()?;
    let ca = ca_params(names, &ca_key, now)?;
    let ca_der = CertificateDer::from(ca.self_signed(&ca_key)?);
    let leaf = leaf_params(names, now, now - BACKDATE + LIFE)?;
    let leaf = leaf.signed_by(key, &Issuer::new(ca, ca_key))?;
    Ok(vec![leaf.into(), ca_der])
}

/// A certificate by a CA whose key is there, which it does not outlive: `ca_ends`, unix seconds.
pub fn by_kept_ca(
    names: &[Name],
    key: &KeyPair,
    (ca, ca_key, ca_ends): (&CertificateDer<'static>, &KeyPair, i64),
    now: i64,
) -> Result<Chain, Error> {
    let leaf = leaf_params(names, now, ca_ends.min(now - BACKDATE + LIFE))?;
    let leaf = leaf.signed_by(key, &Issuer::from_ca_cert_der(ca, ca_key)?)?;
    Ok(vec![leaf.into(), ca.clone()])
}

/// Whether the issuer is a CA that was made here, now or by an earlier version.
pub fn is_ours(issuer: &str) -> bool {
    issuer.strip_prefix("CN=").is_some_and(|name| name.starts_with(CA_NAME))
}

/// Whether a CA can vouch for some names only. Those that earlier versions made could for all.
pub fn is_bound(ca: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(ca).is_ok_and(|(_, parsed)| {
        parsed.name_constraints().ok().flatten().is_some_and(|found| found.critical)
    })
}

pub fn matches(certificate: &CertificateDer<'_>, key: &KeyPair) -> bool {
    X509Certificate::from_der(certificate)
        .is_ok_and(|(_, parsed)| parsed.public_key().raw == key.subject_public_key_info())
}

pub fn new_key() -> Result<KeyPair, Error> {
    Ok(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?)
}

/// Not rcgen's own, which is a hash of the key: a renewal would get the old number again.
fn serial() -> Result<SerialNumber, Error> {
    let mut bytes = [0u8; 16];
    let random = aws_lc_rs::default_provider().secure_random;
    random.fill(&mut bytes).map_err(|_| Error::Random)?;
    bytes[0] = bytes[0] & 0x7f | 0x40; // positive, and of full length (RFC 5280 §4.1.2.2)
    Ok(SerialNumber::from_slice(&bytes))
}

pub(super) fn ca_params(
    names: &[Name],
    key: &KeyPair,
    now: i64,
) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::default();
    // Named after its key: two CAs of one name and different keys confuse the clients that trust both.
    let id = params.key_identifier(key);
    let name: String = id.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("{CA_NAME}{name}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.name_constraints = Some(constraints(names)); // rcgen makes them critical
    params.serial_number = Some(serial()?);
    set_life(&mut params, now - BACKDATE, now - BACKDATE + LIFE);
    Ok(params)
}

/// These names only. A kind of name that none of them is has to be excluded as a whole, since a constraint
/// says nothing of other kinds (RFC 5280 §4.2.1.10).
fn constraints(names: &[Name]) -> NameConstraints {
    let permitted_subtrees = names.iter().map(|name| match name {
        // Below a name stand its subdomains too, so a wildcard needs no more than what is behind it.
        Name::Dns(name) => {
            GeneralSubtree::DnsName(name.strip_prefix("*.").unwrap_or(name).to_owned())
        }
        Name::Ip(address) => subnet(*address, if address.is_ipv4() { 32 } else { 128 }),
    });
    let mut excluded_subtrees = Vec::new();
    if !names.iter().any(|name| matches!(name, Name::Dns(_))) {
        excluded_subtrees.push(GeneralSubtree::DnsName(String::new()));
    }
    if !names.iter().any(|name| matches!(name, Name::Ip(_))) {
        excluded_subtrees.push(subnet(Ipv4Addr::UNSPECIFIED.into(), 0));
        excluded_subtrees.push(subnet(Ipv6Addr::UNSPECIFIED.into(), 0));
    }
    NameConstraints { permitted_subtrees: permitted_subtrees.collect(), excluded_subtrees }
}

fn subnet(address: IpAddr, prefix: u8) -> GeneralSubtree {
    GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(address, prefix))
}

pub(super) fn leaf_params(names: &[Name], now: i64, end: i64) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::default();
    for name in names {
        params.subject_alt_names.push(match name {
            Name::Dns(name) => SanType::DnsName(name.as_str().try_into()?),
            Name::Ip(address) => SanType::IpAddress(*address),
        });
    }
    params.distinguished_name = rcgen::DistinguishedName::new();
    // For people's eyes. X.520 allows 64 characters; without any, SAN becomes critical as it must. An
    // address there would be taken for a DNS name, which the CA may not vouch for.
    let first = names.iter().find_map(|name| match name {
        Name::Dns(name) if name.len() <= 64 => Some(name),
        _ => None,
    });
    if let Some(name) = first {
        params.distinguished_name.push(DnType::CommonName, name.as_str());
    }
    params.is_ca = IsCa::ExplicitNoCa; // also brings the subject key identifier
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(serial()?);
    set_life(&mut params, now - BACKDATE, end);
    Ok(params)
}

fn set_life(params: &mut CertificateParams, start: i64, end: i64) {
    let since_1970 = |unix: i64| {
        let seconds = Duration::from_secs(u64::try_from(unix).unwrap_or(0));
        rcgen::date_time_ymd(1970, 1, 1) + seconds
    };
    params.not_before = since_1970(start);
    params.not_after = since_1970(end);
}
