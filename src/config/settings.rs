//! The configuration as the rest of the crate sees it: checked, resolved, free of serde.
//!
//! Made only by [`super::load`] and [`super::parse`]. Whatever is in here is possible: durations are positive, addresses
//! parse, exactly the right certificate sources are named. What a *file on disk* holds (is the key
//! readable, does it belong to the certificate) is not checked here but when it is loaded.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use rustls::crypto::SupportedKxGroup;
use rustls::{SupportedCipherSuite, SupportedProtocolVersion};

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
}

/// One address on which mail clients are served. `[::]:993` also takes IPv4 (dual stack).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Listen {
    pub address: SocketAddr,
    pub tls: ListenTls,
    /// Who must send a PROXY header, and is believed.
    pub proxy_protocol_from: Vec<IpNet>,
}

/// When TLS begins on a listener.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ListenTls {
    /// With the first byte (RFC 8314 §3.2).
    Implicit,
    /// When the client says so, in plaintext (RFC 9051 §6.2.1).
    StartTls,
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

/// Where certificates of the operator are found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum CertificateSource {
    Pair(CertificateFiles),
    /// Every pair in it and below it.
    Dir(PathBuf),
}

/// What a client gets whose server name stands in no certificate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum UnknownName {
    /// The certificate for those who name no server.
    Default,
    /// Alert 112, unrecognized_name (RFC 6066 §3).
    Refuse,
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

/// PEM files: the chain, leaf first, and its private key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CertificateFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
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

/// The oldest TLS version that is spoken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum MinVersion {
    Tls12,
    Tls13,
}

impl MinVersion {
    /// Every version that is spoken, best first.
    pub fn versions(self) -> &'static [&'static SupportedProtocolVersion] {
        static BOTH: [&SupportedProtocolVersion; 2] =
            [&rustls::version::TLS13, &rustls::version::TLS12];
        match self {
            Self::Tls12 => &BOTH,
            Self::Tls13 => &BOTH[..1],
        }
    }
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

/// Where a server is. Prints as written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ServerAddress {
    Host(HostPort),
    /// The name of an SRV record (RFC 2782, RFC 6186): `_imap._tcp.example.org`.
    Service(String),
    Unix(PathBuf),
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(address) => address.fmt(f),
            Self::Service(name) => f.write_str(name),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Which server gets a new session.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Balance {
    /// The first in the configuration that works.
    First,
    RoundRobin,
    LeastSessions,
    /// The same one for the same client address, as long as it works.
    SourceHash,
}

/// What the operator wants of a server.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ServerState {
    Active,
    /// No new sessions.
    Drain,
    /// Neither sessions nor health checks.
    Down,
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

/// The kind of server that a PROXY header, version 2, is made for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ProxyTlvs {
    Generic,
    Dovecot24,
    Dovecot23,
    Cyrus,
    Stalwart,
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

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TlsMode {
    None,
    StartTls,
    Implicit,
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

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Health {
    /// Between two looks at a server that works.
    pub interval: Duration,
    /// How long a server that came back takes to its whole share.
    pub slow_start: Duration,
}

/// A DNS name or an IP address, and a port. Prints as written: `legacy:143`, `[::1]:143`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HostPort {
    /// Without the brackets of an IPv6 address.
    pub host: String,
    pub port: u16,
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// What the operator changes in the backend's capability list, in upper case.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Capabilities {
    pub hide: Vec<String>,
    pub add: Vec<String>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Sessions at one time, in all.
    pub connections: usize,
    /// Bytes of one command line before login, without its literals.
    pub line: usize,
    /// Bytes of one literal before login.
    pub literal: usize,
    /// Bytes of one SASL message, base64, before login.
    pub sasl: usize,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Timeouts {
    pub handshake: Duration,
    pub login: Duration,
    pub backend_greeting: Duration,
    pub backend_login: Duration,
    pub idle: Duration,
    pub write: Duration,
    pub half_closed: Duration,
    pub drain: Duration,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Metrics {
    pub address: SocketAddr,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Log {
    pub level: tracing::Level,
    pub format: LogFormat,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LogFormat {
    Text,
    Json,
}
