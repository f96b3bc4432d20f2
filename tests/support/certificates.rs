//! A small CA and a leaf for `localhost` and the loopback addresses, made for one test.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;

#[derive(Clone)]
pub struct Certificates {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
    /// Trusts exactly this CA.
    pub roots: Arc<RootCertStore>,
}

impl Certificates {
    /// Writes `ca.pem`, `cert.pem` (leaf, then CA) and `key.pem` (mode 0600) to `folder`.
    pub fn make(folder: &Path) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names, none wrong");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "Test CA");
        let ca_key = KeyPair::generate().expect("P-256 is there");
        let ca = params.self_signed(&ca_key).expect("the parameters are whole");
        let issuer = Issuer::new(params, ca_key);

        let names = ["localhost", "127.0.0.1", "127.0.0.2", "::1"].map(String::from);
        let mut leaf = CertificateParams::new(names).expect("the names are names");
        leaf.distinguished_name.push(DnType::CommonName, "localhost");
        leaf.use_authority_key_identifier_extension = true;
        let leaf_key = KeyPair::generate().expect("P-256 is there");
        let cert = leaf.signed_by(&leaf_key, &issuer).expect("the parameters are whole");

        let made = Self {
            ca: folder.join("ca.pem"),
            cert: folder.join("cert.pem"),
            key: folder.join("key.pem"),
            roots: Arc::new(roots([ca.der().clone()])),
        };
        fs::write(&made.ca, ca.pem()).expect("the folder is ours");
        fs::write(&made.cert, cert.pem() + &ca.pem()).expect("the folder is ours");
        fs::write(&made.key, leaf_key.serialize_pem()).expect("the folder is ours");
        fs::set_permissions(&made.key, fs::Permissions::from_mode(0o600)).expect("it is ours");
        made
    }
}

fn roots(certificates: impl IntoIterator<Item = CertificateDer<'static>>) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate).expect("a CA");
    }
    roots
}
