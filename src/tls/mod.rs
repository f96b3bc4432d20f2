//! The certificates that serve and the TLS settings around them.
//!
//! In: [`Tls`](crate::config::settings::Tls). Out: [`Store`], which knows what to serve and follows its files, and [`Configured`], whose
//! `rustls::ServerConfig` asks it; and [`check()`], the same look without making or changing anything.
//! TLS 1.3 and 1.2 (RFC 8446, RFC 5246 with AEAD suites only, RFC 9325), hybrid X25519MLKEM768 first, ALPN
//! `imap` (RFC 7301: a client with a list of foreign protocols is refused with alert 120, one without a list
//! is served), stateless tickets ([`tickets`]), client certificates where wanted ([`client_auth`]), no 0-RTT, no key log.
//!
//! ```text
//! pairs, self_signed, acme ── Found ──▶ store ── Index ──▶ names ◀── ClientHello
//!                                         ▲
//!                             watch ──▶ reload ──▶ log, metrics, readiness
//!                                         ▼
//!                 tickets, client_auth ─▶ config ── ServerConfig ──▶ handshakes
//! ```
//!
//! A private key that others may read is an error in [`check()`] if that is everybody, and a warning if it is a
//! group. At start both are loud warnings only: orchestrators mount secrets with mode 0644, and a mail service
//! that stays down is the greater harm. At start an expired certificate serves as well, for most clients then ask
//! their user; it is reported in [`News::problems`].
//! Beside it stands TLS towards servers ([`backend`]): whom to trust there.
//! Not here: the handshakes (`conn::tls`, `backend::secure`).

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

mod pem;

pub mod certificate;

pub mod facts;

mod path;

mod aging;

pub mod complaints;

pub mod pairs;

mod directory;

pub mod self_signed;

pub mod acme;

pub mod store;

pub mod names;

pub mod tickets;

pub mod client_auth;

pub mod roots;

pub mod backend;

mod masked;

pub mod config;

pub mod watch;

pub mod reload;

mod check;

pub use crate::text::chain;
pub use check::{Finding, Severity, check, held};
pub use config::{Configs, Configured, Part, Serving};
pub use store::{News, Store};

/// Why no TLS can be spoken. The operator's to cure; every message names the file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// One line for each certificate that can't be used.
    #[error("{}", .0.join("\n"))]
    Unusable(Vec<String>),
    #[error("no certificate is configured; set tls.certificates, tls.acme or tls.self_signed")]
    Nothing,
    #[error(transparent)]
    Tickets(#[from] tickets::Error),
    #[error(transparent)]
    ClientAuth(#[from] client_auth::Error),
    #[error(transparent)]
    Backend(#[from] backend::Error),
    #[error("TLS cannot be set up")]
    Rustls(#[from] rustls::Error),
}

/// What is wrong with the permissions of a private key.
fn key_mode(path: &Path) -> Option<(Severity, String)> {
    open_to(path, "private key")
}

/// What is wrong with the permissions of a file that holds a secret, called `what`.
fn open_to(path: &Path, what: &str) -> Option<(Severity, String)> {
    let mode = certificate::mode_of(path)?;
    let (severity, who) = match mode {
        mode if mode & 0o006 != 0 => (Severity::Error, "everybody on this machine"),
        mode if mode & 0o060 != 0 => (Severity::Warning, "its group"),
        _ => return None,
    };
    let shown = path.display();
    Some((
        severity,
        format!("{shown}: {what} open to {who} (mode {mode:04o}); run `chmod 600 {shown}`"),
    ))
}

/// Seconds since 1970.
pub fn unix(now: SystemTime) -> i64 {
    match now.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        Err(_) => 0, // a clock before 1970
    }
}

#[cfg(test)]
mod tests;
