//! TLS-ALPN-01: the certificates that show a CA that a name leads here (RFC 8737).
//!
//! In: names with the digest of a key authorization, for as long as an order runs. Out: for a client that offers
//! [`PROTOCOL`] alone and asks for such a name, a TLS configuration that has nothing to do with the one for mail clients:
//! it speaks that protocol only, asks for no certificate, leaves no ticket, and shows a certificate that nobody trusts.
//! Versions and suites are the library's, for which CA asks with what is not for the operator's policy to decide.
//! Not here: who asks, and that nothing is said after the handshake (`conn::tls`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rcgen::{CertificateParams, CustomExtension, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::PrivateKeyDer;

/// By ALPN (RFC 8737 §6.2).
pub const PROTOCOL: &[u8] = b"acme-tls/1";

/// Why there is nothing to show. Only the machine can be at fault.
#[derive(Debug, thiserror::Error)]
#[error("no certificate for the challenge could be made")]
pub enum Error {
    Certificate(#[from] rcgen::Error),
    Tls(#[from] rustls::Error),
}

/// What is shown now, by name in lower case.
#[derive(Debug, Default)]
pub struct Proofs(Mutex<HashMap<String, Arc<ServerConfig>>>);

impl Proofs {
    /// `digest`: SHA-256 of the key authorization.
    pub fn publish(&self, name: &str, digest: &[u8]) -> Result<(), Error> {
        let config = Arc::new(config(name, digest)?);
        self.lock().insert(name.to_owned(), config);
        Ok(())
    }

    pub fn withdraw(&self, name: &str) {
        self.lock().remove(name);
    }

    pub fn withdraw_all(&self) {
        self.lock().clear();
    }

    /// `name` in lower case.
    pub fn of(&self, name: &str) -> Option<Arc<ServerConfig>> {
        self.lock().get(name).map(Arc::clone)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<ServerConfig>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Self-signed, for exactly this name, with the digest in a critical extension (RFC 8737 §3).
fn config(name: &str, digest: &[u8]) -> Result<ServerConfig, Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::new([name.to_owned()])?;
    params.custom_extensions.push(CustomExtension::new_acme_identifier(digest));
    let certificate = params.self_signed(&key)?.der().clone();
    let key = PrivateKeyDer::try_from(key.serialized_der().to_vec())
        .map_err(|why| rustls::Error::General(why.to_owned()))?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    // Made by hand: whoever compares the two for us refuses a critical extension that it does not know.
    let certified =
        CertifiedKey::new(vec![certificate], provider.key_provider.load_private_key(key)?);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    // As behind every handshake, `proto::record` says the last word.
    config.enable_secret_extraction = true;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_runs_is_shown() {
        let proofs = Proofs::default();
        assert!(proofs.of("a.example").is_none());
        proofs.publish("a.example", &[7; 32]).unwrap();
        proofs.publish("b.example", &[7; 32]).unwrap();
        assert!(proofs.of("a.example").is_some() && proofs.of("c.example").is_none());
        proofs.withdraw("a.example");
        assert!(proofs.of("a.example").is_none() && proofs.of("b.example").is_some());
        proofs.withdraw_all();
        assert!(proofs.of("b.example").is_none());
    }
}
