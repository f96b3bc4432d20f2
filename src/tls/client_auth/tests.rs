use super::*;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber,
};
use rustls::crypto::aws_lc_rs;
use rustls_pki_types::UnixTime;
use std::fs;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};
use tempfile::TempDir;

/// 2026-11-24.
const NOW: i64 = 1_795_500_000;
const DAY: i64 = 86_400;

/// A root of X.509 v1: `openssl x509 -req -signkey` without extensions.
const V1: &str = "\
-----BEGIN CERTIFICATE-----
MIIBIzCByQIUd8VCw/QgGuYleMjBPVPcxQ5GHOAwCgYIKoZIzj0EAwIwEzERMA8G
A1UEAwwIT2xkIFJvb3QwIBcNMjYxMTI0MTE0NDM0WhgPMjEyNjEwMzExMTQ0MzRa
MBMxETAPBgNVBAMMCE9sZCBSb290MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE
bX9DSO5SnoScbokgkvA2jiB2B2Jw1f8a69Il8whWUlatzYOEBW65P/l29hbqJq0Z
YHDlk6cJQ42Q8gPn4Jbm6TAKBggqhkjOPQQDAgNJADBGAiEA6MGD2YE9t+7xSvmO
I5DgHBfQWBh3vhw4hzGuG7kl7UkCIQC72V+aaUAFQ/4o9ZhHa0yCbbDJvMkOPHrF
y5JWqUVSaA==
-----END CERTIFICATE-----
";

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn time(unix: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(unix).unwrap())
}

/// A macro, for the type belongs to a crate that only rcgen knows.
macro_rules! date {
    ($unix:expr) => {
        rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(u64::try_from($unix).unwrap())
    };
}

struct Ca {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// A client's certificate, valid from 10 days before [`NOW`] for 20 days.
    fn client(
        &self,
        serial: u64,
        change: impl FnOnce(&mut CertificateParams),
    ) -> rcgen::Certificate {
        let mut params = CertificateParams::default();
        params.serial_number = Some(SerialNumber::from(serial));
        params.distinguished_name.push(DnType::CommonName, "alice\r\n\"x\"");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        (params.not_before, params.not_after) = (date!(NOW - 10 * DAY), date!(NOW + 10 * DAY));
        change(&mut params);
        params.signed_by(&KeyPair::generate().unwrap(), &self.issuer).unwrap()
    }

    fn list(&self, revoked: &[u64], next_update: i64) -> rcgen::CertificateRevocationList {
        let revoked = revoked.iter().map(|&serial| RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: date!(NOW - DAY),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: date!(next_update - 7 * DAY),
            next_update: date!(next_update),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap()
    }
}

fn put(dir: &TempDir, file: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.path().join(file);
    fs::write(&path, bytes).unwrap();
    path
}

fn wanted(required: bool, ca: &Path, crl: Option<&Path>) -> settings::ClientAuth {
    settings::ClientAuth { required, ca: ca.into(), crl: crl.map(Into::into) }
}

fn judge(rules: &Rules, certificate: &rcgen::Certificate) -> Result<(), Option<Refusal>> {
    let now = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(NOW).unwrap()));
    let verified = rules.verifier.verify_client_cert(certificate.der(), &[], now);
    verified.map(|_| ()).map_err(|error| Refusal::of(&error))
}

#[test]
fn certificates_are_judged_by_ca_list_date_and_purpose() {
    let dir = TempDir::new().unwrap();
    let (ours, theirs) = (Ca::new("Ours"), Ca::new("Theirs"));
    let ca = put(&dir, "ca.pem", &ours.pem);
    let crl = put(&dir, "crl.pem", ours.list(&[66], NOW + DAY).pem().unwrap());
    let rules = read(&wanted(true, &ca, Some(&crl)), &provider()).unwrap();
    assert!(rules.problems.is_empty() && rules.notice.is_empty(), "{rules:?}");
    assert_eq!(rules.next_update, Some(NOW + DAY));
    let expired = |params: &mut CertificateParams| params.not_after = date!(NOW - DAY);
    let early = |params: &mut CertificateParams| params.not_before = date!(NOW + DAY);
    let server = |params: &mut CertificateParams| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    };
    for (certificate, expected) in [
        (ours.client(1, |_| {}), Ok(())),
        (ours.client(1, |params| params.extended_key_usages.clear()), Ok(())),
        (ours.client(66, |_| {}), Err(Some(Refusal::Revoked))),
        (ours.client(1, expired), Err(Some(Refusal::Expired))),
        (ours.client(1, early), Err(Some(Refusal::NotYetValid))),
        (ours.client(1, server), Err(Some(Refusal::WrongPurpose))),
        (theirs.client(1, |_| {}), Err(Some(Refusal::Foreign))),
    ] {
        assert_eq!(judge(&rules, &certificate), expected);
    }
    assert!(rules.verifier.client_auth_mandatory());
    let rules = read(&wanted(false, &ca, None), &provider()).unwrap();
    assert!(rules.verifier.offer_client_auth() && !rules.verifier.client_auth_mandatory());
    assert_eq!(judge(&rules, &ours.client(66, |_| {})), Ok(()), "no list, nobody is revoked");
}

#[test]
fn a_list_past_its_date_still_counts_and_is_reported() {
    let dir = TempDir::new().unwrap();
    let ours = Ca::new("Ours");
    let ca = put(&dir, "ca.pem", &ours.pem);
    let crl = put(&dir, "crl.der", ours.list(&[66], NOW - DAY).der());
    let settings = wanted(true, &ca, Some(&crl));
    let mut auth = ClientAuth::new(settings.clone(), &provider()).unwrap();
    let (_, problems) = auth.aged(time(NOW));
    assert!(problems[0].contains("CN=Ours was to be replaced by 2026-11-2"), "{problems:?}");
    assert_eq!(auth.aged(time(NOW + DAY)), Default::default(), "said once");
    let rules = read(&settings, &provider()).unwrap();
    assert_eq!(judge(&rules, &ours.client(66, |_| {})), Err(Some(Refusal::Revoked)));
    assert_eq!(judge(&rules, &ours.client(1, |_| {})), Ok(()));
    let mut found = Vec::new();
    check(&settings, &provider(), NOW, &mut |severity, text| found.push((severity, text)));
    assert!(matches!(&found[..], [(Severity::Error, _)]), "{found:?}");
}

#[test]
fn a_ca_without_a_list_is_reported_and_its_clients_are_refused() {
    let dir = TempDir::new().unwrap();
    let (one, other) = (Ca::new("One"), Ca::new("Other"));
    let ca = put(&dir, "ca.pem", one.pem.clone() + &other.pem);
    let crl = put(&dir, "crl.pem", one.list(&[], NOW + DAY).pem().unwrap());
    let rules = read(&wanted(true, &ca, Some(&crl)), &provider()).unwrap();
    assert_eq!(rules.notice.len(), 1);
    assert!(rules.notice[0].contains("no revocation list of CN=Other"), "{:?}", rules.notice);
    assert_eq!(judge(&rules, &one.client(1, |_| {})), Ok(()));
    assert_eq!(judge(&rules, &other.client(1, |_| {})), Err(Some(Refusal::RevocationUnknown)));
}

#[test]
fn every_wrong_file_is_named() {
    let dir = TempDir::new().unwrap();
    let (ours, namesake) = (Ca::new("Ours"), Ca::new("Ours"));
    let ca = put(&dir, "ca.pem", &ours.pem);
    let list = ours.list(&[], NOW + DAY).pem().unwrap();
    let leaf = ours.client(1, |_| {}).pem();
    let own = |is_ca| {
        let mut params = CertificateParams::default();
        params.is_ca = is_ca;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "alice");
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
    };
    let key = KeyPair::generate().unwrap().serialize_pem();
    let cut = put(&dir, "cut.der", &ours.list(&[], NOW + DAY).der()[..100]);
    let table: &[(&Path, Option<&Path>, &str)] = &[
        (&dir.path().join("none"), None, "none: no such file; put the CA certificate there"),
        (&put(&dir, "leaf.pem", &leaf), None, "is no CA's; name the file of the CA"),
        (
            &put(&dir, "own.pem", own(IsCa::NoCa)),
            None,
            "own.pem: certificate 1 (CN=alice) is self-signed and no CA's",
        ),
        (
            &put(&dir, "own2.pem", own(IsCa::ExplicitNoCa)),
            None,
            "could make certificates of any name",
        ),
        (&put(&dir, "key.pem", key), None, "holds a private key, not a CA certificate"),
        (&put(&dir, "text", "hello"), None, "is not PEM"),
        (&ca, Some(&ca), "holds a certificate, not a revocation list"),
        (
            &ca,
            Some(dir.path()),
            "is a directory; name the file in it that holds the revocation list",
        ),
        (&ca, Some(&put(&dir, "empty", "")), "is not PEM: no line says"),
        (&ca, Some(&cut), "revocation list 1 cannot be parsed"),
        (
            &ca,
            Some(&put(&dir, "cut.pem", &list[..list.len() - 40])),
            "damaged PEM: a section has no -----END",
        ),
        (
            &ca,
            Some(&put(&dir, "foreign.pem", namesake.list(&[], NOW + DAY).pem().unwrap())),
            "claims to be from CN=Ours, but the key in",
        ),
    ];
    for (ca, crl, expected) in table {
        let error = read(&wanted(true, ca, *crl), &provider()).unwrap_err();
        let text = chain(&error);
        assert!(text.contains(expected), "{text}");
    }
    let mut found = Vec::new();
    let both = wanted(true, Path::new("/none"), Some(Path::new("/nothing")));
    check(&both, &provider(), NOW, &mut |_, text| found.push(text));
    assert!(found.len() == 2 && found[1].starts_with("/nothing: no such file"), "{found:?}");
}

#[test]
fn a_root_from_before_version_3_is_a_ca() {
    let dir = TempDir::new().unwrap();
    let ca = put(&dir, "ca.pem", V1);
    read(&wanted(true, &ca, None), &provider()).unwrap();
}

#[test]
fn tickets_are_bound_to_everything_that_decides() {
    let dir = TempDir::new().unwrap();
    let (one, other) = (Ca::new("One"), Ca::new("Other"));
    let (ca, ca2) = (put(&dir, "1.pem", &one.pem), put(&dir, "2.pem", &other.pem));
    let crl = put(&dir, "1.crl", one.list(&[], NOW + DAY).der());
    let crl2 = put(&dir, "2.crl", one.list(&[66], NOW + DAY).der());
    let policy = |required, ca: &Path, crl: Option<&Path>| {
        read(&wanted(required, ca, crl), &provider()).unwrap().policy
    };
    let mut all = vec![
        Policy::default(), // without client certificates
        policy(true, &ca, None),
        policy(false, &ca, None),
        policy(true, &ca2, None),
        policy(true, &ca, Some(&crl)),
        policy(true, &ca, Some(&crl2)),
    ];
    assert_eq!(all[1], policy(true, &ca, None), "replicas with the same files agree");
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 6);
}

#[test]
fn changed_files_are_seen_and_wrong_ones_change_nothing() {
    let dir = TempDir::new().unwrap();
    let (ours, theirs) = (Ca::new("Ours"), Ca::new("Theirs"));
    let ca = put(&dir, "ca.pem", &ours.pem);
    let crl = put(&dir, "crl.pem", ours.list(&[], NOW + DAY).pem().unwrap());
    let mut auth = ClientAuth::new(wanted(true, &ca, Some(&crl)), &provider()).unwrap();
    let alice = ours.client(66, |_| {});
    assert!(!auth.due());
    assert_eq!(judge(&auth.rules, &alice), Ok(()));

    put(&dir, "crl.pem", "");
    assert!(auth.due());
    assert!(auth.load(&provider()).is_err());
    assert!(auth.due(), "it is tried again");
    assert_eq!(judge(&auth.rules, &alice), Ok(()));

    put(&dir, "crl.pem", ours.list(&[66], NOW + DAY).pem().unwrap());
    auth.load(&provider()).unwrap();
    assert!(!auth.due());
    assert_eq!(judge(&auth.rules, &alice), Err(Some(Refusal::Revoked)));

    put(&dir, "ca.pem", &theirs.pem);
    put(&dir, "crl.pem", theirs.list(&[], NOW + DAY).pem().unwrap());
    assert!(auth.due());
    auth.load(&provider()).unwrap();
    assert_eq!(judge(&auth.rules, &alice), Err(Some(Refusal::Foreign)));
}

/// At a start the CAs that are left are better than none; while the proxy runs the old ones are more.
#[test]
fn a_file_of_which_a_part_cannot_be_read_counts_at_a_start_only() {
    let dir = TempDir::new().unwrap();
    let (one, other) = (Ca::new("One"), Ca::new("Other"));
    let both = one.pem.clone() + &other.pem;
    let ca = put(&dir, "ca.pem", &both);
    let settings = wanted(true, &ca, None);
    let mut auth = ClientAuth::new(settings.clone(), &provider()).unwrap();
    assert!(auth.rules.counted[0].ends_with("ca.pem: 2 CA certificates"), "{:?}", auth.rules);
    // Without a line end between them they are two all the same.
    put(&dir, "ca.pem", one.pem.trim_end().to_owned() + &other.pem);
    auth.load(&provider()).unwrap();
    assert_eq!(auth.rules.counted[0], format!("{}: 2 CA certificates", ca.display()));
    for (damaged, expected) in [
        (
            one.pem.clone() + &other.pem[..200],
            "ca.pem: a section has no -----END …----- line (line ",
        ),
        (
            both.replacen("-----BEGIN", "----BEGIN", 1),
            "line is malformed: five dashes on either side (line 1)",
        ),
        (
            one.pem.clone() + "-----BEGIN CERTIFICATE-----\nAQID\n-----END CERTIFICATE-----\n",
            "ca.pem: certificate 2 cannot be parsed",
        ),
    ] {
        put(&dir, "ca.pem", &damaged);
        let error = auth.load(&provider()).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
        assert_eq!(auth.rules.verifier.root_hint_subjects().len(), 2, "the old ones stay");
        let rules = read(&settings, &provider()).unwrap();
        assert_eq!(rules.verifier.root_hint_subjects().len(), 1, "{damaged}");
        assert!(rules.problems[0].contains(expected), "{expected}: {rules:?}");
        let mut found = Vec::new();
        check(&settings, &provider(), NOW, &mut |severity, text| found.push((severity, text)));
        let is_told = |(severity, text): &(Severity, String)| {
            *severity == Severity::Error && text.contains(expected)
        };
        assert!(found.iter().any(is_told), "{expected}: {found:?}");
    }
    put(&dir, "ca.pem", both + "-----BEGIN PKCS7-----\nAQID\n-----END PKCS7-----\n");
    auth.load(&provider()).unwrap();
    assert!(
        auth.rules.notice[0].contains("a section of the kind PKCS7 (line "),
        "{:?}",
        auth.rules
    );
}

#[test]
fn a_ca_that_ends_is_told_before_and_once() {
    let dir = TempDir::new().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    (params.not_before, params.not_after) = (date!(NOW - 365 * DAY), date!(NOW));
    let pem = params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem();
    let settings = wanted(true, &put(&dir, "ca.pem", pem), None);
    let mut auth = ClientAuth::new(settings, &provider()).unwrap();
    for (days, expected) in [
        (-40, None),
        (-29, Some("expires in 29 days")),
        (-28, None),
        (1, Some("expired on")),
        (2, None),
    ] {
        let (notice, problems) = auth.aged(time(NOW + days * DAY));
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(notice.len(), usize::from(expected.is_some()), "{days}: {notice:?}");
        assert!(expected.is_none_or(|text| notice[0].contains(text)), "{days}: {notice:?}");
    }
}

#[test]
fn an_identity_is_subject_and_fingerprint() {
    let certificate = Ca::new("Ours").client(1, |_| {});
    let chain = [certificate.der().clone()];
    let who = Identity::of(&chain, true, time(NOW)).unwrap().unwrap();
    assert_eq!(&*who.subject, "CN=alice\u{fffd}\u{fffd}\\u{22}x\\u{22}");
    assert_eq!(who.fingerprint.len(), 95);
    assert_eq!(Identity::of(&[], false, time(NOW)), Ok(None));
    // Dates are webpki's to look at, but for a session that is resumed.
    let late = time(NOW + 11 * DAY);
    assert_eq!(Identity::of(&chain, false, late), Ok(Some(who)));
    assert_eq!(Identity::of(&chain, true, late), Err(Refusal::Expired));
}

#[test]
fn state_is_good_for_as_long_as_every_certificate_of_its_chain() {
    let ca = Ca::new("Ours");
    let until = |end| ca.client(1, |params| params.not_after = date!(end)).der().to_vec();
    let (short, long) = (until(NOW + 5 * DAY), until(NOW + 10 * DAY));
    let sized =
        |bytes: &[u8]| [&u32::try_from(bytes.len()).unwrap().to_be_bytes()[1..], bytes].concat();
    for sni in [&[0][..], b"\x01\x09localhost"] {
        let head = [sni, b"\x03\x04\x13\x02", b"\x03key", b"\x01"].concat();
        let anonymous = [&head[..], b"\0", b"\0\0\0"].concat();
        assert!(still_valid(&anonymous, time(NOW)));
        for (chain, days) in [
            (vec![&long], 10),
            (vec![&short, &long], 5),
            (vec![&long, &short], 5),
            (vec![&long, &long, &short], 5),
        ] {
            let list: Vec<u8> = chain.iter().flat_map(|der| sized(der)).collect();
            let state = [&head[..], b"\x01", &sized(&list), b"\0\0\0"].concat();
            assert!(still_valid(&state, time(NOW + days * DAY)));
            assert!(!still_valid(&state, time(NOW + days * DAY + 1)));
            for cut in 0..state.len() - 3 {
                assert!(!still_valid(&state[..cut], time(NOW)), "cut at {cut}");
            }
            let ders: Vec<_> = chain.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
            let late = time(NOW + days * DAY + 1);
            assert_eq!(Identity::of(&ders, true, late), Err(Refusal::Expired));
        }
    }
}

#[test]
fn every_error_about_a_certificate_has_its_reason() {
    use rustls::Error as E;
    for (error, expected) in [
        (E::NoCertificatesPresented, Some(Refusal::Missing)),
        (E::InvalidCertificate(CertificateError::Expired), Some(Refusal::Expired)),
        (E::InvalidCertificate(CertificateError::NotValidYet), Some(Refusal::NotYetValid)),
        (E::InvalidCertificate(CertificateError::BadEncoding), Some(Refusal::Bad)),
        (E::InvalidCertificate(CertificateError::BadSignature), Some(Refusal::Bad)),
        (
            E::InvalidCertificate(CertificateError::ExpiredRevocationList),
            Some(Refusal::RevocationUnknown),
        ),
        (
            E::InvalidCertRevocationList(rustls::CertRevocationListError::BadSignature),
            Some(Refusal::OurList),
        ),
        (E::DecryptError, None),
        (E::NoApplicationProtocol, None),
    ] {
        assert_eq!(Refusal::of(&error), expected, "{error}");
    }
}
