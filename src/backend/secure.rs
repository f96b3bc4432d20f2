//! TLS on a connection to a server: agreed on by STARTTLS or from the first byte.
//!
//! In: a connection, behind its greeting or not. Out: the same inside TLS, or an [`Error`] in words. Nothing that came
//! before TLS goes into it, and there is no way back to plaintext.
//! Not here: whom to trust (`tls::backend`), what is said for STARTTLS (`proto::imap::upgrade`). Deadlines are the caller's.

use std::io;

use rustls::{HandshakeKind, InvalidMessage, PeerIncompatible, ProtocolVersion};
use tokio::io::AsyncReadExt as _;
use tokio_rustls::TlsConnector;

use super::stream::Stream;
use crate::conn::socket;
use crate::log::printable;
use crate::proto::imap::upgrade::{self, Step, Upgrade};
use crate::tls::backend::{Connector, Distrust};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    StartTls(#[from] upgrade::Error),
    #[error("{0}")]
    Certificate(String),
    #[error("TLS does not come about: {0}")]
    Handshake(String),
}

/// Has the server agree to TLS behind its greeting, which left over `input`.
pub async fn agree(
    stream: &mut Stream,
    greeting: &[u8],
    mut input: Vec<u8>,
) -> Result<(), upgrade::Error> {
    let mut out = Vec::new();
    let mut upgrade = Upgrade::start(greeting, &mut out)?;
    loop {
        let sent = stream.send(&out).await;
        out.clear();
        if upgrade.on_backend(&mut input, &mut out)? == Step::Begin {
            return Ok(());
        }
        if out.is_empty() && (sent.is_err() || stream.read_buf(&mut input).await.unwrap_or(0) == 0)
        {
            return Err(upgrade::Error::Unexpected(printable(&input)));
        }
    }
}

pub async fn begin(stream: Stream, connector: &Connector) -> Result<Stream, Error> {
    let tls = TlsConnector::from(connector.config());
    let result = tls.connect(connector.name.clone(), stream).await;
    let stream = result.map_err(|error| why(&error, connector.is_implicit()))?;
    let (_, tls) = stream.get_ref();
    tracing::debug!(
        server_name = %connector.name.to_str(),
        tls_version = match tls.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
            _ => "TLSv1.2",
        },
        tls_cipher = tls.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str()),
        resumed = tls.handshake_kind() == Some(HandshakeKind::Resumed),
        "TLS to a server"
    );
    Ok(Stream::Tls(Box::new(stream)))
}

/// What a handshake failed of, or what TLS ended of before the greeting.
pub fn why(error: &io::Error, implicit: bool) -> Error {
    let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
        return Error::Handshake(match error.kind() {
            io::ErrorKind::UnexpectedEof => "it closed the connection".to_owned(),
            _ => socket::why(error),
        });
    };
    if let Some(words) = Distrust::of(tls) {
        return Error::Certificate(words);
    }
    match tls {
        // Behind STARTTLS the first thing that is no TLS was said before TLS.
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) if !implicit => {
            upgrade::Error::Injected.into()
        }
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => Error::Handshake(
            "it answers with something else, as a plaintext port does; set backend.tls to starttls, or the port to its TLS port (often 993)".to_owned(),
        ),
        rustls::Error::AlertReceived(alert) => {
            Error::Handshake(format!("it ended it with the alert {alert:?}"))
        }
        rustls::Error::PeerIncompatible(
            PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::ServerDoesNotSupportTls12Or13,
        ) => Error::Handshake("it speaks TLS 1.1 or older only, which is not safe".to_owned()),
        other => Error::Handshake(other.to_string()),
    }
}
