//! The configuration as written: sections, keys, defaults and the bounds of single values.
//!
//! Every key of the file is a field here and nowhere else; its documentation is what the JSON Schema
//! says about it, its default is written as in the file. `config/imaps-proxy.yaml` shows them all
//! at work and is held against this by a test. The rest of the crate sees only [`super::Settings`].
//! Not here: rules across keys (`rules`), how a value is written (`value`).

use std::path::PathBuf;
use std::time::Duration;

use schemars::json_schema;
use serde_yaml::Value;

use super::read::{Lenient, NonEmpty, Read, Spanned, schema, section, word, worded};
use super::text::mistake::Mistakes;
use super::text::yaml::{Kind, Node};
use super::value::address::{ListenAddress, Network, ServerAddress};
use super::value::amount::{Count, Idle, Size, Span};
use super::value::name::{
    Capability, CertificateName, Contact, DirectoryUrl, Fingerprint, Group, Suite, Token,
};
use super::value::path::FilePath;
use super::value::word::{
    Balance, ChallengeKind, ClientAuthMode, Flag, IdentityKind, Level, ListenTls, LogFormat,
    MinVersion, OnOff, ProxyTlvs, ServerState, TlsMode, UnknownName, Verify,
};

const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;

/// Below this a limit of time only breaks working connections.
const SHORTEST: u64 = 100;

section! {
    /// Configuration of imaps-proxy. A key with a default may be left out; `${NAME}` and
    /// `${NAME:-default}` inside a value read the environment.
    pub struct File is "the sections of a configuration" {
        /// Where mail clients are served.
        pub listen: Lenient<NonEmpty<Listen>>,
        /// Certificates and versions for the side of the mail clients.
        pub tls: Lenient<Spanned<Tls>>,
        /// The plaintext IMAP servers behind the proxy.
        pub backend: Lenient<Backend>,
        /// How much at most.
        pub limits: Limits,
        /// How long at most. A duration is a number with a unit: ms, s, m, h or d.
        pub timeouts: Timeouts,
        /// The HTTP listener for Prometheus and for probes. Without this section none is opened.
        pub metrics: Option<Metrics>,
        /// What is written to the log, and how.
        pub log: Log,
    }
}

section! {
    /// One address on which mail clients are served.
    pub struct Listen is "a listener with `address`" {
        /// IP address and port, in quotes. `"[::]:993"` serves IPv6 and IPv4, `"0.0.0.0:993"` IPv4
        /// only. With port 0 the system chooses one.
        pub address: Spanned<ListenAddress>,
        /// When TLS begins: with the first byte (implicit, port 993) or at STARTTLS (starttls, port 143), before
        /// which nobody can log in.
        pub tls: ListenTls = "implicit",
        /// Networks (`192.0.2.0/24`) of the balancers in front of this listener. They must send a PROXY header, version
        /// 1 or 2, and the address in it is the client's; nobody else may send one.
        pub proxy_protocol_from: Vec<Network>,
    }
}

section! {
    /// `certificates`, `acme`, `self_signed` or several: the certificates of the files and of ACME are
    /// served, and the self-made one for as long as there is none of those.
    pub struct Tls is "a section with `certificates`, `acme` or `self_signed`"
    needs anyOf [["certificates"], ["acme"], ["self_signed"]] {
        /// Certificates and their keys, chosen by the name that a client asks for. The first is
        /// served to clients that name no server.
        pub certificates: Option<Lenient<NonEmpty<CertificateSource>>>,
        /// A certificate that the proxy makes, signed by a CA that it makes too.
        pub self_signed: Option<Lenient<SelfSigned>>,
        /// A certificate that the proxy orders from a CA by ACME, and renews.
        pub acme: Option<Lenient<Acme>>,
        /// For a client that asks for a name which no certificate has: `default`, the first
        /// certificate, or `refuse`, alert 112 (unrecognized_name).
        pub unknown_name: UnknownName = "default",
        /// The oldest TLS version that is spoken: "1.2" or "1.3".
        pub min_version: MinVersion = "1.2",
        /// Cipher suites, best first. Without this key all that there are, AES-128 first; none of
        /// them is weak.
        pub cipher_suites: Option<Spanned<NonEmpty<Lenient<Suite>>>>,
        /// Groups for the key exchange, best first. Without this key X25519MLKEM768, X25519,
        /// secp256r1 and secp384r1.
        pub groups: Option<Spanned<NonEmpty<Lenient<Group>>>>,
        /// Session tickets, with which a client that comes back skips most of the handshake: "on", with
        /// keys that live in memory; "off"; or `key_files`, for keys that other proxies and the next
        /// start know as well.
        pub tickets: OnOff<TicketKeys> = "on",
        /// Asks mail clients for a certificate. Without this section none is asked for.
        pub client_auth: Option<Lenient<ClientAuth>>,
    }
}

section! {
    /// Keys for session tickets from files.
    pub struct TicketKeys is "a section with `key_files`" {
        /// 48 or 80 random bytes each (`openssl rand 80`), or lines of base64. The first key of all
        /// seals tickets, each of them opens them. Nobody else should be able to read them.
        pub key_files: NonEmpty<FilePath>,
    }
}

section! {
    /// A client shows a certificate of its own before it may log in. The login at the server stays as
    /// it is.
    pub struct ClientAuth is "a section with `mode` and `ca`" {
        /// "required": without a good certificate nobody gets in. "optional": a client without one is
        /// served, one with a bad one is refused.
        pub mode: ClientAuthMode,
        /// PEM: the CAs whose certificates are good.
        pub ca: FilePath,
        /// PEM or DER: the revocation lists of these CAs, one of each. Default: nothing is revoked.
        pub crl: Option<FilePath>,
    }
}

section! {
    /// Two PEM files, or a directory with pairs of such files.
    pub struct Certificates is "a pair of `cert` and `key`, or a `dir`"
    needs oneOf [["cert", "key"], ["dir"]] {
        /// The certificate, then its intermediates.
        pub cert: Option<FilePath>,
        /// The private key of the certificate; nobody else should be able to read it.
        pub key: Option<FilePath>,
        /// A directory: every certificate in it and below it that has its key beside it. This can be
        /// certbot's `live`, a mounted Kubernetes secret, or files side by side.
        pub dir: Option<FilePath>,
    }
}

section! {
    /// What to make, and where it is kept for the next start.
    pub struct SelfSigned is "a section with `names` and `dir`" {
        /// DNS names and IP addresses under which people reach the proxy. The CA can vouch for these
        /// only, so a name that is added needs another CA, which people have to trust anew.
        pub names: NonEmpty<CertificateName>,
        /// A directory that the proxy may write: the CA (`ca.pem`), the certificate and its key.
        pub dir: FilePath,
    }
}

section! {
    /// What to order, where, and how to show that the names are ours. Until the first order is done a
    /// self-made certificate is served.
    pub struct Acme is "a section with `names`, `storage` and `terms_agreed`" {
        /// The CA's directory (RFC 8555 §7.1.1).
        pub directory: DirectoryUrl = "https://acme-v02.api.letsencrypt.org/directory",
        /// Whether you agree to the terms of service of that CA; it must be true.
        pub terms_agreed: Spanned<Flag>,
        /// Where the CA reaches you, told when the account is made: `mailto:` addresses.
        pub contact: Vec<Contact>,
        /// DNS names, all in one certificate. One with `*` as its first label needs dns-01.
        pub names: NonEmpty<Spanned<CertificateName>>,
        /// How the CA is shown that the names are ours: http-01, dns-01, or tls-alpn-01, for which the CA
        /// asks on port 443 of every name: forward that port to any listener with implicit TLS.
        pub challenge: ChallengeKind = "http-01",
        /// For http-01: where its requests arrive. The CA asks on port 80 of every name; forward that
        /// port, or just the path /.well-known/acme-challenge/, to another address if you like.
        pub http_address: Spanned<ListenAddress> = "[::]:80",
        /// For dns-01: a program that is run with `present` or `cleanup`, the name of a TXT record
        /// and its value, and that ends when the record is (or need no longer be) visible.
        pub dns_hook: Option<FilePath>,
        /// A directory that the proxy may write: account, keys and certificates.
        pub storage: FilePath,
        /// PEM file with CAs that may vouch for the directory's own HTTPS, besides the system's.
        pub ca: Option<FilePath>,
        /// The CA's profile for the certificate, such as `shortlived`. Without this key the CA chooses.
        pub profile: Option<Token>,
        /// What ties the account to one that you have at the CA, if the CA wants that.
        pub external_account: Option<ExternalAccount>,
    }
}

section! {
    /// An external account binding (RFC 8555 §7.3.4), as the CA gave it to you.
    pub struct ExternalAccount is "a section with `id` and `key_file`" {
        /// The key's id.
        pub id: Token,
        /// A file with the HMAC key, base64url; nobody else should be able to read it.
        pub key_file: FilePath,
    }
}

section! {
    /// Which servers, and what is said to them and about them.
    pub struct Backend is "a section with `servers`" {
        /// The servers; of a name, every address is used.
        pub servers: NonEmpty<Server>,
        /// Which server a new session goes to: the first that works (first), each in its turn
        /// (round-robin), the one with the fewest sessions (least-sessions), or always the same one for
        /// a client address (source-hash).
        pub balance: Balance = "first",
        /// How a server is told who the client is: not at all (none), by a PROXY header (proxy-v1,
        /// proxy-v2), by an ID command that Dovecot believes from `login_trusted_networks`
        /// (dovecot-id), or by the client's own address as source (transparent). It must expect it.
        pub identity: Spanned<IdentityKind> = "none",
        /// What a `proxy-v2` header holds besides the addresses: what that kind of server understands.
        /// Default generic: nothing.
        pub proxy_tlvs: Option<Spanned<ProxyTlvs>>,
        /// TLS to the servers: none, starttls, implicit, or a section with `mode` and whom to trust.
        pub tls: Spanned<BackendTls> = "none",
        /// How servers are watched.
        pub health: Health,
        /// How long a client waits while no server works or has room, before it is told so. From 0s to 1m.
        pub hold: Span<0, MINUTE> = "0s",
        /// Changes to the capabilities that the servers announce.
        pub capabilities: Capabilities,
        /// For one address of a server, and for looking up its name. From 100ms to 1m.
        pub connect_timeout: Span<SHORTEST, MINUTE> = "5s",
    }
}

section! {
    /// One IMAP server. `identity`, `proxy_tlvs` and `tls` hold for it instead of those of `backend`.
    pub struct Server is "a server with `address`" {
        /// Host name or IP address, and port: `legacy-imap:143`, `192.0.2.7:143` or
        /// `"[2001:db8::7]:143"`; a service in DNS: `_imap._tcp.example.org`; or a Unix socket:
        /// `unix:/run/imap.sock`.
        pub address: Spanned<ServerAddress>,
        /// Its share of the sessions beside the others. From 1 to 256.
        pub weight: Count<1, 256> = 1,
        /// In use (active), no new sessions (drain), or neither these nor health checks (down).
        pub state: ServerState = "active",
        /// Sessions at one time. From 1 to 1000000. Default: no limit but `limits.connections`.
        pub max_sessions: Option<Count<1, 1_000_000>>,
        /// See `backend.identity`.
        pub identity: Option<Spanned<IdentityKind>>,
        /// See `backend.proxy_tlvs`.
        pub proxy_tlvs: Option<Spanned<ProxyTlvs>>,
        /// See `backend.tls`.
        pub tls: Option<Spanned<BackendTls>>,
    }
}

section! {
    /// TLS to a server. Its certificate must come from a CA that the system trusts, unless `ca`, `fingerprint` or
    /// `verify` say otherwise.
    pub struct ServerTls is "a section with `mode`" {
        /// none, starttls or implicit.
        pub mode: TlsMode,
        /// The name in the server's certificate, and the one it is asked for. Default: the host of its address.
        pub server_name: Option<CertificateName>,
        /// PEM file with the CAs that may vouch for the server, instead of the system's.
        pub ca: Option<FilePath>,
        /// Exactly this certificate and no other: its SHA-256, as `cert show` prints it.
        pub fingerprint: Option<Fingerprint>,
        /// full, or insecure: any certificate is accepted, and whoever stands in between reads the passwords.
        pub verify: Verify = "full",
    }
}

section! {
    /// Every server is asked, as a client would, how it greets and what it can do.
    #[derive(Clone, Copy, Eq, PartialEq)]
    pub struct Health is "a section" {
        /// Between two looks at a server that works. From 1s to 1h. One that does not is asked more often.
        pub interval: Duration as Span<SECOND, HOUR> = "30s",
        /// After a server comes back: its share of the sessions grows from little to all of it in this
        /// time. From 0s to 1h.
        pub slow_start: Duration as Span<0, HOUR> = "0s",
    }
}

section! {
    /// STARTTLS, AUTH=*-PLUS, LOGIN-REFERRALS, COMPRESS=* and UNAUTHENTICATE are always removed,
    /// for they cannot work here; AUTH=EXTERNAL and MAILBOX-REFERRALS unless they are added.
    /// Everything else passes as the server says it, commands before login such as LANGUAGE after
    /// login.
    pub struct Capabilities is "a section with `hide` or `add`" {
        /// Removed from what mail clients see. To hide LOGINDISABLED does not make a server accept
        /// the login.
        pub hide: Vec<Capability>,
        /// Added to what mail clients see, even if no server announces it.
        pub add: Vec<Spanned<Capability>>,
    }
}

section! {
    /// Limits protect the proxy's memory, and the servers from what is no mail client. A size is
    /// a number of bytes, or a number with KiB, MiB or GiB.
    #[derive(Clone, Copy, Eq, PartialEq)]
    pub struct Limits is "a section" {
        /// Sessions at one time, in all. From 1 to 1000000. One takes two file descriptors.
        pub connections: usize as Count<1, 1_000_000> = 9000,
        /// One command line before login, without its literals. From 512B to 1MiB.
        pub line: usize as Size<512, { 1 << 20 }> = "8KiB",
        /// One literal before login: a user name or a password. From 64B to 1MiB.
        pub literal: usize as Size<64, { 1 << 20 }> = "4KiB",
        /// One message of an AUTHENTICATE exchange, as base64. From 1KiB to 1MiB.
        pub sasl: usize as Size<1024, { 1 << 20 }> = "64KiB",
    }
}

section! {
    /// After its time a session ends, with the reason in log and metrics.
    #[derive(Clone, Copy, Eq, PartialEq)]
    pub struct Timeouts is "a section" {
        /// TLS, from the first byte to the last of the handshake. From 100ms to 5m.
        pub handshake: Duration as Span<SHORTEST, { 5 * MINUTE }> = "10s",
        /// From the handshake (with starttls: from the connection) to a login that succeeds; nothing extends it. From
        /// 100ms to 10m.
        pub login: Duration as Span<SHORTEST, { 10 * MINUTE }> = "60s",
        /// From a connection to the server to its greeting. From 100ms to 5m.
        pub backend_greeting: Duration as Span<SHORTEST, { 5 * MINUTE }> = "10s",
        /// All of a login at the server. Dovecot may sit on a refused login for 17s. From
        /// 100ms to 10m.
        pub backend_login: Duration as Span<SHORTEST, { 10 * MINUTE }> = "60s",
        /// Silence in both directions after login. From 30m, which RFC 9051 §5.4 grants a client, to
        /// 24h.
        pub idle: Duration as Idle = "35m",
        /// One side takes no byte of what waits for it. From 100ms to 1h.
        pub write: Duration as Span<SHORTEST, HOUR> = "120s",
        /// The client has ended its side and the server has not finished. From 100ms to 1h.
        pub half_closed: Duration as Span<SHORTEST, HOUR> = "30s",
        /// From SIGTERM to the end; keep it below the grace of what stops the proxy. From 100ms
        /// to 1h.
        pub drain: Duration as Span<SHORTEST, HOUR> = "30s",
    }
}

section! {
    /// Answers /metrics, /healthz and /readyz.
    pub struct Metrics is "a section with `address`" {
        /// IP address and port, in quotes. Harmless to expose: no user and no client address appears.
        pub address: Spanned<ListenAddress>,
    }
}

section! {
    /// The log goes to standard output.
    #[derive(Clone, Copy, Eq, PartialEq)]
    pub struct Log is "a section" {
        /// How much: error, warn, info, debug or trace.
        pub level: tracing::Level as Level = "info",
        /// For people (text) or machines (json).
        pub format: LogFormat = "text",
    }
}

/// Where certificates of the operator are found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum CertificateSource {
    Pair(CertificateFiles),
    /// Every pair in it and below it.
    Dir(PathBuf),
}

/// PEM files: the chain, leaf first, and its private key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CertificateFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// One item of `tls.certificates`: a pair or a directory, not both and not half of it.
impl Read for CertificateSource {
    const EXPECTED: &'static str = Certificates::EXPECTED;

    fn read(node: &Node, mistakes: &mut Mistakes) -> Option<Self> {
        let before = mistakes.count();
        let keys = Certificates::read(node, mistakes)?;
        if mistakes.count() > before {
            return None; // one mistake, one message
        }
        let what = match (keys.cert, keys.key, keys.dir) {
            (Some(FilePath(cert)), Some(FilePath(key)), None) => {
                return Some(Self::Pair(CertificateFiles { cert, key }));
            }
            (None, None, Some(FilePath(dir))) => return Some(Self::Dir(dir)),
            (None, None, None) => format!("expected {}", Self::EXPECTED),
            (Some(_), None, None) => {
                "missing key `key`: the private key that belongs to `cert`".to_owned()
            }
            (None, Some(_), None) => {
                "missing key `cert`: the certificate that belongs to `key`".to_owned()
            }
            (_, _, Some(_)) => {
                "`dir` stands alone; give `cert` and `key` an item of their own".to_owned()
            }
        };
        mistakes.add(node.mark, what);
        None
    }

    fn show(&self) -> Value {
        let keys = match self {
            Self::Pair(CertificateFiles { cert, key }) => vec![("cert", cert), ("key", key)],
            Self::Dir(dir) => vec![("dir", dir)],
        };
        let keys =
            keys.into_iter().map(|(key, path)| (key.into(), path.display().to_string().into()));
        Value::Mapping(keys.collect())
    }
}

schema!([] CertificateSource, generator => Certificates::json_schema(generator));

/// TLS to a server: a word, or a section whose `mode` is that word.
#[derive(Debug)]
pub enum BackendTls {
    Word(TlsMode),
    Section(ServerTls),
}

const MODES: [&str; 3] = ["none", "starttls", "implicit"];

impl Read for BackendTls {
    const EXPECTED: &'static str = "none, starttls, implicit or a section with `mode`";

    fn read(node: &Node, mistakes: &mut Mistakes) -> Option<Self> {
        match node.kind {
            Kind::Map(_) => ServerTls::read(node, mistakes).map(Self::Section),
            _ => {
                let modes = [TlsMode::None, TlsMode::StartTls, TlsMode::Implicit];
                word(node, mistakes, &MODES, &modes).map(Self::Word)
            }
        }
    }

    fn show(&self) -> Value {
        match self {
            Self::Word(mode) => mode.show(),
            Self::Section(section) => section.show(),
        }
    }
}

schema!([] BackendTls, generator => {
    json_schema!({ "anyOf": [worded(&MODES), ServerTls::json_schema(generator)] })
});
