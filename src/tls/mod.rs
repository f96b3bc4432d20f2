//! The certificates that serve and the TLS settings around them.
//!
//! In: [`settings::Tls`]. Out: [`Store`], which knows what to serve and follows its files, and by [`server_config`] one
//! `rustls::ServerConfig` that asks it; and [`check()`], the same look without making or changing anything.
//! TLS 1.3 and 1.2 (RFC 8446, RFC 5246 with AEAD suites only, RFC 9325), hybrid X25519MLKEM768 first, ALPN
//! `imap` (RFC 7301: a client with a list of foreign protocols is refused with alert 120, one without a list
//! is served), stateless tickets, no 0-RTT, no key log.
//!
//! ```text
//! pairs, self_signed, acme ── Found ──▶ store ── Index ──▶ names ◀── ClientHello
//!                                         ▲
//!                             watch ──▶ reload ──▶ log, metrics, readiness
//! ```
//!
//! A private key that others may read is an error in [`check()`] if that is everybody, and a warning if it is a
//! group. At start both are loud warnings only: orchestrators mount secrets with mode 0644, and a mail service
//! that stays down is the greater harm. At start an expired certificate serves as well, for most clients then ask
//! their user; it is reported in [`News::problems`].
//! Not here: the handshake (`conn::tls`).

use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::server::{NoServerSessionStorage, ResolvesServerCert};

use crate::config::settings;

pub mod certificate;

pub mod facts;

pub mod complaints;

pub mod pairs;

mod directory;

pub mod self_signed;

pub mod acme;

pub mod store;

pub mod names;

pub mod policy;

pub mod watch;

pub mod reload;

mod check;

pub use check::{Finding, Severity, check};
pub use store::{News, Store};

use facts::DAY;

/// Why no TLS can be spoken. The operator's to cure; every message names the file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// One line for each certificate that can't be used.
    #[error("{}", .0.join("\n"))]
    Unusable(Vec<String>),
    #[error("no certificate is configured; set tls.certificates, tls.acme or tls.self_signed")]
    Nothing,
    #[error("TLS cannot be set up")]
    Rustls(#[from] rustls::Error),
}

/// Everything but the certificates, which handshakes get from `names`. Call it once: sessions resume only
/// among those of one configuration.
///
/// # Errors
/// No ticket key could be made.
pub fn server_config(
    settings: &settings::Tls,
    names: Arc<dyn ResolvesServerCert>,
) -> Result<Arc<ServerConfig>, Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(policy::provider(settings)))
        .with_protocol_versions(policy::versions(settings.min_version))?
        .with_no_client_auth()
        .with_cert_resolver(names);
    config.alpn_protocols = vec![b"imap".to_vec()];
    // Ours is the better order, and the difference between two AEAD suites is not the client's to decide.
    config.ignore_client_order = true;
    // Tickets hold the state, so that no session of ours has to be remembered.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    // Its keys roll by themselves every few hours.
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    // Behind the handshake `proto::record` takes over.
    config.enable_secret_extraction = true;
    debug_assert_eq!(config.max_early_data_size, 0, "0-RTT can be replayed (RFC 9325 §3.10)");
    Ok(Arc::new(config))
}

/// What is wrong with the permissions of a private key.
fn key_mode(path: &Path) -> Option<(Severity, String)> {
    let mode = certificate::mode_of(path)?;
    let (severity, who) = match mode {
        mode if mode & 0o006 != 0 => (Severity::Error, "everybody on this machine"),
        mode if mode & 0o060 != 0 => (Severity::Warning, "its group"),
        _ => return None,
    };
    let shown = path.display();
    Some((
        severity,
        format!("{shown}: private key open to {who} (mode {mode:04o}); run `chmod 600 {shown}`"),
    ))
}

/// An error with its causes on one line, as `main` prints them.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

fn unix(now: SystemTime) -> i64 {
    match now.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        Err(_) => 0, // a clock before 1970
    }
}

#[cfg(test)]
mod tests;
