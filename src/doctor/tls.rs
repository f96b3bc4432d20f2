//! Handshakes as a mail client makes them, with a witness instead of a judge: every certificate is taken and kept, so
//! that what is wrong with it can be said.
//!
//! Signatures of the handshake are checked all the same. Nothing secret is sent over such a connection unless
//! [`super::certificate`] was content or the operator asked for it with `--user`: then it is his own proxy.
//! Not here: what the certificates are worth.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::{
    AlertDescription, ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    SupportedProtocolVersion,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

pub const TLS13: &SupportedProtocolVersion = &rustls::version::TLS13;
pub const TLS12: &SupportedProtocolVersion = &rustls::version::TLS12;

/// A handshake that came to an end.
pub struct Met {
    pub stream: TlsStream<TcpStream>,
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
}

/// Why there is none.
#[derive(Debug)]
pub enum Unmet {
    Closed,
    Timeout(Duration),
    /// The other end says why.
    Alert(AlertDescription),
    /// What came is no TLS.
    NotTls,
    Other(String),
}

impl Met {
    /// `TLS 1.3, TLS13_AES_128_GCM_SHA256, X25519MLKEM768`
    pub fn words(&self) -> String {
        let (_, tls) = self.stream.get_ref();
        let version = match tls.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_3) => "TLS 1.3",
            _ => "TLS 1.2",
        };
        let suite = tls.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str());
        let group = tls.negotiated_key_exchange_group().and_then(|group| group.name().as_str());
        let parts = [Some(version), suite, group];
        parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

/// Shakes hands as a client that looks for `name`; an IP address is not sent (RFC 6066 §3).
pub async fn handshake(
    stream: TcpStream,
    name: ServerName<'static>,
    versions: &[&'static SupportedProtocolVersion],
    limit: Duration,
) -> Result<Met, Unmet> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let witness = Arc::new(Witness { provider: Arc::clone(&provider), seen: Mutex::default() });
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .map_err(|error| Unmet::Other(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::<Witness>::clone(&witness))
        .with_no_client_auth();
    let shaken = TlsConnector::from(Arc::new(config)).connect(name, stream);
    match timeout(limit, shaken).await {
        Err(_) => Err(Unmet::Timeout(limit)),
        Ok(Err(error)) => Err(unmet(&error)),
        Ok(Ok(stream)) => {
            let mut seen = witness.seen.lock().unwrap_or_else(PoisonError::into_inner);
            Ok(Met { stream, chain: std::mem::take(&mut *seen) })
        }
    }
}

fn unmet(error: &io::Error) -> Unmet {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(Error::AlertReceived(alert)) => Unmet::Alert(*alert),
        Some(Error::InvalidMessage(_)) => Unmet::NotTls,
        Some(other) => Unmet::Other(other.to_string()),
        None => match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe => Unmet::Closed,
            _ => Unmet::Other(crate::conn::socket::why(error)),
        },
    }
}

#[derive(Debug)]
struct Witness {
    provider: Arc<CryptoProvider>,
    seen: Mutex<Vec<CertificateDer<'static>>>,
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let all = std::iter::once(end_entity).chain(intermediates);
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) =
            all.map(|der| der.clone().into_owned()).collect();
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
