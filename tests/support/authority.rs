//! Certificates of every kind, issued for one test by a CA of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, PKCS_RSA_SHA256, RsaKeySize,
};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;

pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    params: CertificateParams,
    /// The CA alone.
    pub pem: String,
    /// Trusts exactly this CA.
    pub roots: Arc<RootCertStore>,
}

/// A certificate with its key, as PEM.
#[derive(Clone)]
pub struct Issued {
    /// The certificate, then the CA's.
    pub chain: String,
    pub key: String,
    pub der: CertificateDer<'static>,
    /// Unix seconds.
    pub not_after: i64,
}

#[derive(Clone, Copy)]
pub enum KeyKind {
    Ecdsa,
    Rsa,
}

impl Authority {
    pub fn new() -> Self {
        Self::named("Test CA")
    }

    pub fn named(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names, none wrong");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("P-256 is there");
        let ca = params.self_signed(&key).expect("the parameters are whole");
        Self::of(params, key, &ca)
    }

    fn of(params: CertificateParams, key: KeyPair, ca: &rcgen::Certificate) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(ca.der().clone()).expect("a CA");
        let roots = Arc::new(roots);
        Self { issuer: Issuer::new(params.clone(), key), params, pem: ca.pem(), roots }
    }

    /// The other with its name and its key, in a certificate of ours.
    pub fn certify(&self, other: &Self, until: SystemTime) -> Self {
        let key = KeyPair::from_pem(&other.issuer.key().serialize_pem()).expect("it was one");
        let until = until.duration_since(UNIX_EPOCH).expect("after 1970");
        let mut params = other.params.clone();
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(1970, 1, 1) + until;
        let ca = params.signed_by(&key, &self.issuer).expect("the parameters are whole");
        Self::of(params, key, &ca)
    }

    /// Its own certificate.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// ECDSA, good for 30 more days.
    pub fn issue(&self, names: &[&str]) -> Issued {
        self.issue_until(names, days(30))
    }

    /// ECDSA, issued 60 days ago.
    pub fn issue_until(&self, names: &[&str], until: SystemTime) -> Issued {
        self.issue_kind(names, until, KeyKind::Ecdsa)
    }

    pub fn issue_kind(&self, names: &[&str], until: SystemTime, kind: KeyKind) -> Issued {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).expect("the names are names");
        params.use_authority_key_identifier_extension = true;
        let since = |at: SystemTime| at.duration_since(UNIX_EPOCH).expect("after 1970");
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        params.not_before = epoch + since(SystemTime::now() - Duration::from_hours(60 * 24));
        params.not_after = epoch + Duration::from_secs(since(until).as_secs());
        let key = match kind {
            KeyKind::Ecdsa => KeyPair::generate(),
            KeyKind::Rsa => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048),
        };
        let key = key.expect("the algorithm is there");
        let not_after = since(until).as_secs().try_into().expect("not that late");
        Issued { not_after, ..self.sign(&params, &key) }
    }

    /// ECDSA, as it is said; whatever that is, `not_after` is 0.
    pub fn issue_with(&self, params: CertificateParams) -> Issued {
        self.sign(&params, &KeyPair::generate().expect("P-256 is there"))
    }

    fn sign(&self, params: &CertificateParams, key: &KeyPair) -> Issued {
        let cert = params.signed_by(key, &self.issuer).expect("the parameters are whole");
        Issued {
            chain: cert.pem() + &self.pem,
            key: key.serialize_pem(),
            der: cert.der().clone(),
            not_after: 0,
        }
    }
}

/// So many days from now.
pub fn days(count: u64) -> SystemTime {
    SystemTime::now() + Duration::from_hours(24 * count)
}

impl Issued {
    /// Writes both files, one after the other, each in one step.
    pub fn write(&self, cert: &Path, key: &Path) {
        replace(key, &self.key);
        replace(cert, &self.chain);
    }
}

/// A file with another content, in one step.
pub fn replace(path: &Path, text: &str) {
    let beside = path.with_extension("new");
    fs::write(&beside, text).expect("the folder is ours");
    fs::set_permissions(&beside, fs::Permissions::from_mode(0o600)).expect("it is ours");
    fs::rename(&beside, path).expect("the folder is ours");
}
