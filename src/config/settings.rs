//! The configuration as the rest of the crate sees it: checked, resolved, free of serde.
//!
//! Made only by [`super::load`] and [`super::parse`]. Whatever is in here is possible: durations are positive, addresses
//! parse, exactly the right certificate sources are named. What a *file on disk* holds (is the key
//! readable, does it belong to the certificate) is not checked here but when it is loaded.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use rustls::SupportedCipherSuite;
use rustls::crypto::SupportedKxGroup;

pub use super::effective::Effective;
pub use super::file::{CertificateFiles, CertificateSource, Health, Limits, Log, Timeouts};
pub use super::value::address::{HostPort, ServerAddress};
pub use super::value::word::{
    Balance, ListenTls, LogFormat, MinVersion, ProxyTlvs, ServerState, TlsMode, UnknownName,
};
use crate::crypto;

/// Everything that `run` needs. One value, immutable, shared by all.
#[derive(Clone, Debug)]
pub struct Settings {
    pub listen: Vec<Listen>,
    pub tls: Tls,
    pub backend: Backend,
    pub limits: Limits,
    pub timeouts: Timeouts,
    /// `None`: no HTTP listener is opened.
    pub metrics: Option<Metrics>,
    pub log: Log,
    /// The same as it would stand in a file.
    pub effective: Effective,
}

/// One address on which mail clients are served. `[::]:993` also takes IPv4 (dual stack).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Listen {
    pub address: SocketAddr,
    pub tls: ListenTls,
    /// Who must send a PROXY header, and is believed.
    pub proxy_protocol_from: Vec<IpNet>,
}

#[derive(Clone, Debug)]
pub struct Tls {
    /// Named by the operator. The first pair of the first one is served to clients that name no server.
    pub certificates: Vec<CertificateSource>,
    /// Made by ourselves. With `certificates` or `acme` as well it is what serves while there is none
    /// of theirs. At least one of the three is set.
    pub self_signed: Option<SelfSigned>,
    /// Ordered from a CA.
    pub acme: Option<Acme>,
    pub unknown_name: UnknownName,
    pub min_version: MinVersion,
    /// Best first; for every version that is spoken there is at least one, as there is in `groups`.
    pub cipher_suites: Vec<SupportedCipherSuite>,
    /// Best first.
    pub groups: Vec<&'static dyn SupportedKxGroup>,
    pub tickets: Tickets,
    /// `None`: no client is asked for a certificate.
    pub client_auth: Option<ClientAuth>,
}

impl Tls {
    /// These certificates, and everything else at its default.
    pub fn with(certificates: Vec<CertificateSource>) -> Self {
        Self {
            certificates,
            self_signed: None,
            acme: None,
            unknown_name: UnknownName::Default,
            min_version: MinVersion::Tls12,
            cipher_suites: crypto::default_suites(),
            groups: crypto::default_groups(),
            tickets: Tickets::default(),
            client_auth: None,
        }
    }
}

/// What session tickets are sealed with.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Tickets {
    /// There are none: every connection makes a full handshake.
    Off,
    /// Keys that this process makes and forgets.
    #[default]
    Memory,
    /// Keys from these files, never none; the first seals, all open.
    Files(Vec<PathBuf>),
}

/// Who is asked for a certificate.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ClientAuth {
    /// Otherwise a client without one is served too.
    pub required: bool,
    /// PEM: those whose certificates are good.
    pub ca: PathBuf,
    /// PEM or DER: which of them are revoked.
    pub crl: Option<PathBuf>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SelfSigned {
    /// DNS names and IP addresses that the leaf is good for; never empty.
    pub names: Vec<String>,
    /// Where the CA, the leaf and their keys are kept.
    pub dir: PathBuf,
}

/// A certificate from a CA by ACME (RFC 8555).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Acme {
    /// An https URL.
    pub directory: String,
    /// `mailto:` URLs.
    pub contact: Vec<String>,
    /// DNS names in lower case, each once; never empty. Wildcards only with [`Challenge::Dns01`].
    pub names: Vec<String>,
    pub challenge: Challenge,
    /// A directory for account, keys and certificates.
    pub storage: PathBuf,
    /// CAs, PEM, that are trusted for the directory besides the system's.
    pub ca: Option<PathBuf>,
    /// In the CA's words.
    pub profile: Option<String>,
    pub external_account: Option<ExternalAccount>,
}

/// How the CA is shown that names are ours.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Challenge {
    /// By a listener that answers HTTP.
    Http01 { address: SocketAddr },
    /// By a certificate that the listeners with implicit TLS show.
    TlsAlpn01,
    /// By a program that publishes TXT records.
    Dns01 { hook: PathBuf },
}

/// What ties an ACME account to another one (RFC 8555 §7.3.4).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ExternalAccount {
    pub id: String,
    /// Holds an HMAC key, base64url.
    pub key_file: PathBuf,
}

#[derive(Clone, Debug)]
pub struct Backend {
    /// Never empty.
    pub servers: Vec<Server>,
    pub balance: Balance,
    /// How long a client may wait for a server to come up.
    pub hold: Duration,
    pub health: Health,
    pub capabilities: Capabilities,
    /// For one address; for looking up a name.
    pub connect_timeout: Duration,
}

/// One server, with all that holds for it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Server {
    pub address: ServerAddress,
    /// 1 to 256.
    pub weight: usize,
    pub state: ServerState,
    pub max_sessions: Option<usize>,
    pub identity: Identity,
    /// `None`: plaintext.
    pub tls: Option<ServerTls>,
}

/// How a server is told who the client is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Identity {
    None,
    ProxyV1,
    ProxyV2(ProxyTlvs),
    /// An ID command before that of the client (RFC 2971), as Dovecot's own proxy sends it.
    DovecotId,
    /// The connection comes from the client's address.
    Transparent,
}

/// TLS to a server.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServerTls {
    /// Never [`TlsMode::None`].
    pub mode: TlsMode,
    /// A DNS name or an IP address: what the certificate must be good for.
    pub server_name: String,
    pub trust: Trust,
}

/// Which certificates of a server are good.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Trust {
    /// Those of the system's CAs.
    System,
    /// Those of the CAs in this PEM file.
    Ca(PathBuf),
    /// The one with this SHA-256.
    Fingerprint([u8; 32]),
    /// All.
    Insecure,
}

/// What the operator changes in the backend's capability list, in upper case.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Capabilities {
    pub hide: Vec<String>,
    pub add: Vec<String>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Metrics {
    pub address: SocketAddr,
}
