//! The CAs that the system trusts, for whom we call: ACME's directory and servers with TLS.

use rustls::RootCertStore;

/// Reads them from where the system keeps them, or where `SSL_CERT_FILE` and `SSL_CERT_DIR` say: blocking. What can't be
/// used is left out, and there may be none.
pub fn system() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}
