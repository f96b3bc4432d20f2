//! Serves hellos in which the server's name is masked, since it is no DNS name and rustls would refuse it.
//!
//! rustls hashes the masked hello; what client and server agree on has to be the hash of the hello as it was sent. So in a
//! configuration for such hellos the suites hash by [`Unmasking`], and what a client of TLS 1.2 has signed is looked at
//! by [`Verifier`]; both put the two bytes of the client back. All else is the same as in the usual configuration.
//! rustls 0.24 is to have a setting for it (`invalid_sni_policy`), and then this can go.
//! **Invariant:** no other hello ever meets this configuration, so that nothing here can harm it.
//! Not here: which hellos, and how they are masked (`proto::client_hello`).

use std::sync::{Arc, LazyLock};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::hash::{Context, Hash, HashAlgorithm, Output};
use rustls::crypto::{CipherSuiteCommon, CryptoProvider, aws_lc_rs};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, SignatureScheme, SupportedCipherSuite,
    Tls12CipherSuite, Tls13CipherSuite,
};
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::proto::client_hello::{self, SERVER_NAME};

/// Each suite that there is; they live as long as the process, as rustls wants it.
static SUITES: LazyLock<Vec<SupportedCipherSuite>> =
    LazyLock::new(|| aws_lc_rs::ALL_CIPHER_SUITES.iter().map(unmasking).collect());

/// The same cryptography, for hellos that are masked.
pub fn provider(usual: &CryptoProvider) -> CryptoProvider {
    let is_spoken = |masked: &&SupportedCipherSuite| usual.cipher_suites.contains(masked);
    let by_preference =
        |suite: &SupportedCipherSuite| usual.cipher_suites.iter().position(|usual| usual == suite);
    let mut cipher_suites: Vec<_> = SUITES.iter().filter(is_spoken).copied().collect();
    cipher_suites.sort_by_key(by_preference);
    CryptoProvider { cipher_suites, ..usual.clone() }
}

fn unmasking(suite: &SupportedCipherSuite) -> SupportedCipherSuite {
    let common = |common: &CipherSuiteCommon| CipherSuiteCommon {
        suite: common.suite,
        hash_provider: Box::leak(Box::new(Unmasking(common.hash_provider))),
        confidentiality_limit: common.confidentiality_limit,
    };
    match suite {
        SupportedCipherSuite::Tls12(suite) => {
            let suite = Tls12CipherSuite { common: common(&suite.common), ..**suite };
            SupportedCipherSuite::Tls12(Box::leak(Box::new(suite)))
        }
        SupportedCipherSuite::Tls13(suite) => {
            let suite = Tls13CipherSuite { common: common(&suite.common), ..**suite };
            SupportedCipherSuite::Tls13(Box::leak(Box::new(suite)))
        }
    }
}

/// `message` in pieces, with the type that the client sent.
fn unmasked(message: &[u8]) -> [&[u8]; 3] {
    match client_hello::find(message) {
        Some(at) => [&message[..at], &SERVER_NAME, &message[at + SERVER_NAME.len()..]],
        None => [message, &[], &[]],
    }
}

/// A hash of handshake messages. rustls hands over each message whole, or up to where a pre-shared key is proved.
struct Unmasking(&'static dyn Hash);

impl Hash for Unmasking {
    fn start(&self) -> Box<dyn Context> {
        Box::new(Running(self.0.start()))
    }

    fn hash(&self, data: &[u8]) -> Output {
        let mut running = self.start();
        running.update(data);
        running.finish()
    }

    fn output_len(&self) -> usize {
        self.0.output_len()
    }

    fn algorithm(&self) -> HashAlgorithm {
        self.0.algorithm()
    }

    fn fips(&self) -> bool {
        self.0.fips()
    }
}

struct Running(Box<dyn Context>);

impl Context for Running {
    fn fork_finish(&self) -> Output {
        self.0.fork_finish()
    }

    fn fork(&self) -> Box<dyn Context> {
        Box::new(Self(self.0.fork()))
    }

    fn finish(self: Box<Self>) -> Output {
        self.0.finish()
    }

    fn update(&mut self, data: &[u8]) {
        unmasked(data).into_iter().for_each(|piece| self.0.update(piece));
    }
}

/// In TLS 1.2 a client signs the handshake's messages themselves (RFC 5246 §7.4.8).
#[derive(Debug)]
pub struct Verifier(pub Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Verifier {
    fn verify_tls12_signature(
        &self,
        messages: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(&unmasked(messages).concat(), certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        hash: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(hash, certificate, signature)
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.0.verify_client_cert(certificate, intermediates, now)
    }

    fn offer_client_auth(&self) -> bool {
        self.0.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }

    fn requires_raw_public_keys(&self) -> bool {
        self.0.requires_raw_public_keys()
    }
}
