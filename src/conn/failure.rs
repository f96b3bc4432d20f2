//! Why a handshake failed: one closed list that metric and log share, and who decides on a reason.
//!
//! In: what spoke instead of TLS, what the ClientHello offers ([`Offer`]), or the error of rustls together with it.
//! Out: a [`Failure`], counted always and logged as [`crate::log::sample`] lets it, in full at level debug. What a
//! client could have done with another certificate is told from its hello alone: the handshake failed, so the
//! certificate that it would take is not there.
//! Not here: why a session ended ([`super::close::Reason`], which is coarser), and the handshake ([`super::tls`]).

use rustls::crypto::CryptoProvider;
use rustls::{AlertDescription, PeerIncompatible};

use super::Context;
use super::close::{Reason, Session, session_id};
use crate::log::printable;
use crate::proto::client_hello::{ClientHello, Foreign, Key, Name, Version};
use crate::tls::acme;
use crate::tls::client_auth::Refusal;
use crate::tls::names::Asked;

/// The label and log field `reason` of a handshake that failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, strum::IntoStaticStr, strum::VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Failure {
    NotTlsImap,
    NotTlsHttp,
    NotTlsSsl2,
    NotTls,
    /// Who must send a PROXY header sent none.
    ProxyHeaderMissing,
    ProxyHeaderMalformed,
    /// A PROXY header from somebody who is not to send one.
    ProxyHeaderUnexpected,
    /// Behind STARTTLS, or together with it, came something that is not TLS (CVE-2011-0411 and its kin).
    PlaintextAfterStarttls,
    /// TLS 1.1 or older.
    OnlyOldVersions,
    /// TLS 1.2 where `tls.min_version` says 1.3.
    BelowMinVersion,
    /// With a certificate of that kind it would have worked.
    NeedsEcdsaCertificate,
    NeedsRsaCertificate,
    NoCommonSuite,
    NoCommonGroup,
    /// A name for which nobody has a certificate, where that is to be refused (RFC 9325 §3.7).
    UnknownName,
    /// A list of foreign protocols (RFC 7301 §3.2).
    ForeignAlpn,
    CertificateNotTrusted,
    /// The client's certificate: [`Refusal`].
    ClientCertificateMissing,
    ClientCertificateExpired,
    ClientCertificateNotYetValid,
    ClientCertificateRevoked,
    ClientCertificateRevocationUnknown,
    ClientCertificateForeign,
    ClientCertificateWrongPurpose,
    ClientCertificateBad,
    /// The revocation list for it is not usable.
    RevocationListUnusable,
    /// The client sent another alert.
    AlertReceived,
    /// What it sent is against the protocol.
    Malformed,
    Timeout,
    /// The client closed the connection, or it broke.
    Closed,
    /// A defect of ours, or of the machine.
    Internal,
}

/// How rustls says that the resolver has no certificate for what the client can verify (a test compares).
const NO_CERTIFICATE: &str = "no server certificate chain resolved";

pub const PLAINTEXT_BYE: &[u8] =
    b"* BYE This port speaks IMAP over TLS only: choose SSL/TLS as the connection security.\r\n";
const HTTP_PAGE: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n\
    Content-Length: 66\r\nConnection: close\r\n\r\n\
    This port speaks IMAP over TLS. It is meant for mail programs only";

/// Who can cure it, which sets the level of the log.
enum Cure {
    Client,
    Operator,
    Us,
}

impl Failure {
    /// For people who read the log.
    fn text(self) -> &'static str {
        match self {
            Self::NotTlsImap => "it speaks plaintext: set SSL/TLS as its connection security",
            Self::NotTlsHttp => "it speaks HTTP",
            Self::NotTlsSsl2 => "its hello has the form of SSL 2",
            Self::NotTls => "it does not speak TLS",
            Self::ProxyHeaderMissing => {
                "it is in listen[].proxy_protocol_from and sent no PROXY header: have it send one (HAProxy: send-proxy-v2, nginx: proxy_protocol on), or take it out"
            }
            Self::ProxyHeaderMalformed => {
                "it is in listen[].proxy_protocol_from and its PROXY header can't be read"
            }
            Self::ProxyHeaderUnexpected => {
                "it sent a PROXY header: if it is a balancer, put it into listen[].proxy_protocol_from"
            }
            Self::PlaintextAfterStarttls => {
                "it sent plaintext behind STARTTLS, which was discarded"
            }
            Self::OnlyOldVersions => "it offers TLS 1.1 or older only",
            Self::BelowMinVersion => "it offers TLS 1.2, tls.min_version is 1.3",
            Self::NeedsEcdsaCertificate => "it would have taken an ECDSA certificate, not this one",
            Self::NeedsRsaCertificate => "it would have taken an RSA certificate, not this one",
            Self::NoCommonSuite => "no cipher suite and signature scheme in common",
            Self::NoCommonGroup => "no group for the key exchange in common",
            Self::UnknownName => "it asked for a name that no certificate has",
            Self::ForeignAlpn => "it offers other protocols than imap",
            Self::CertificateNotTrusted => {
                "it does not trust the certificate: look at its chain, its names and its dates"
            }
            Self::ClientCertificateMissing => "it has no client certificate",
            Self::ClientCertificateExpired => "its client certificate has expired",
            Self::ClientCertificateNotYetValid => "its client certificate is not valid yet",
            Self::ClientCertificateRevoked => "its client certificate is revoked",
            Self::ClientCertificateRevocationUnknown => {
                "no revocation list in tls.client_auth.crl speaks of its client certificate"
            }
            Self::ClientCertificateForeign => {
                "its client certificate is from no CA in tls.client_auth.ca"
            }
            Self::ClientCertificateWrongPurpose => "its certificate is not one for clients",
            Self::ClientCertificateBad => "its client certificate is broken",
            Self::RevocationListUnusable => {
                "a revocation list in tls.client_auth.crl can't be used: look at what `check` says"
            }
            Self::AlertReceived => "it ended the handshake with an alert",
            Self::Malformed => "what it sent is against the protocol",
            Self::Timeout => {
                "it took longer than timeouts.handshake, or than what STARTTLS left of timeouts.login"
            }
            Self::Closed => "it closed the connection",
            Self::Internal => "a defect of the proxy",
        }
    }

    fn cure(self) -> Cure {
        match self {
            Self::CertificateNotTrusted
            | Self::ClientCertificateRevocationUnknown
            | Self::RevocationListUnusable
            | Self::ProxyHeaderMissing
            | Self::ProxyHeaderMalformed
            | Self::ProxyHeaderUnexpected => Cure::Operator,
            Self::Internal => Cure::Us,
            _ => Cure::Client,
        }
    }

    /// What a client is told when rustls is not asked: a line, a page, or a plaintext record with a fatal alert
    /// (RFC 8446 §6.2).
    pub fn answer(self) -> &'static [u8] {
        match self {
            Self::NotTlsImap => PLAINTEXT_BYE,
            Self::NotTlsHttp => HTTP_PAGE,
            // protocol_version, in a version that such a client knows.
            Self::OnlyOldVersions | Self::NotTlsSsl2 => &[21, 3, 1, 0, 2, 2, 70],
            Self::UnknownName => &[21, 3, 3, 0, 2, 2, 112],
            Self::Malformed => &[21, 3, 3, 0, 2, 2, 50], // decode_error
            _ => b"",
        }
    }

    /// By what rustls says; `offer`: what the client had offered, if its hello could be read.
    pub fn of(error: &rustls::Error, offer: Option<&Offer>) -> Self {
        use rustls::Error as E;
        if let Some(refusal) = Refusal::of(error) {
            return refusal.into();
        }
        match error {
            E::NoApplicationProtocol => Self::ForeignAlpn,
            E::PeerIncompatible(
                PeerIncompatible::SupportedVersionsExtensionRequired
                | PeerIncompatible::Tls12NotOffered
                | PeerIncompatible::Tls12NotOfferedOrEnabled,
            ) => match offer {
                Some(Offer { version: Version::Other, .. }) => Self::Malformed,
                Some(offer) if offer.version < Version::Tls12 => Self::OnlyOldVersions,
                _ => Self::BelowMinVersion,
            },
            E::PeerIncompatible(
                PeerIncompatible::NoCipherSuitesInCommon
                | PeerIncompatible::NoKxGroupsInCommon
                | PeerIncompatible::NoSignatureSchemesInCommon
                | PeerIncompatible::SignatureAlgorithmsExtensionRequired,
            ) => offer.map_or(Self::NoCommonSuite, Offer::missing),
            E::General(text) if text == NO_CERTIFICATE => {
                offer.map_or(Self::NoCommonSuite, Offer::missing)
            }
            E::AlertReceived(
                AlertDescription::UnknownCA
                | AlertDescription::BadCertificate
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateUnknown
                | AlertDescription::CertificateRevoked
                | AlertDescription::UnsupportedCertificate,
            ) => Self::CertificateNotTrusted,
            // Before the handshake is done that is an end like any other.
            E::AlertReceived(AlertDescription::CloseNotify | AlertDescription::UserCanceled) => {
                Self::Closed
            }
            E::AlertReceived(_) => Self::AlertReceived,
            E::InvalidMessage(_)
            | E::InappropriateMessage { .. }
            | E::InappropriateHandshakeMessage { .. }
            | E::InvalidEncryptedClientHello(_)
            | E::UnsupportedNameType
            | E::PeerIncompatible(_)
            | E::PeerMisbehaved(_)
            | E::DecryptError
            | E::PeerSentOversizedRecord => Self::Malformed,
            _ => Self::Internal,
        }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Missing => Self::ClientCertificateMissing,
            Refusal::Expired => Self::ClientCertificateExpired,
            Refusal::NotYetValid => Self::ClientCertificateNotYetValid,
            Refusal::Revoked => Self::ClientCertificateRevoked,
            Refusal::RevocationUnknown => Self::ClientCertificateRevocationUnknown,
            Refusal::Foreign => Self::ClientCertificateForeign,
            Refusal::WrongPurpose => Self::ClientCertificateWrongPurpose,
            Refusal::Bad => Self::ClientCertificateBad,
            Refusal::OurList => Self::RevocationListUnusable,
        }
    }
}

impl From<Foreign> for Failure {
    fn from(foreign: Foreign) -> Self {
        match foreign {
            Foreign::Imap => Self::NotTlsImap,
            Foreign::Http => Self::NotTlsHttp,
            Foreign::ProxyHeader => Self::ProxyHeaderUnexpected,
            Foreign::Ssl2(_) => Self::NotTlsSsl2,
            Foreign::Other => Self::NotTls,
        }
    }
}

impl From<Failure> for Reason {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NotTlsImap => Self::NotTlsImap,
            Failure::NotTlsHttp => Self::NotTlsHttp,
            Failure::NotTlsSsl2 | Failure::NotTls => Self::NotTls,
            Failure::ProxyHeaderMissing => Self::ProxyHeaderMissing,
            Failure::ProxyHeaderMalformed => Self::ProxyHeaderMalformed,
            Failure::ProxyHeaderUnexpected => Self::ProxyHeaderUnexpected,
            Failure::PlaintextAfterStarttls => Self::PlaintextAfterStarttls,
            Failure::Timeout => Self::HandshakeTimeout,
            Failure::Internal => Self::Internal,
            _ => Self::HandshakeFailed,
        }
    }
}

/// What a server name names.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Names {
    /// Nothing, or an address.
    Nobody,
    Host,
    NoHost,
}

/// What is kept of a ClientHello: enough to say later why it came to nothing.
#[derive(Debug)]
pub struct Offer {
    pub version: Version,
    /// The server name, escaped for the log; a host's in lower case.
    pub sni: Option<Box<str>>,
    names: Names,
    /// Escaped for the log.
    alpn: Option<Box<str>>,
    /// It speaks [`acme::PROTOCOL`] and nothing else.
    pub acme: bool,
    ecdsa: bool,
    rsa: bool,
    group: bool,
}

impl Offer {
    /// `spoken`: the suites and groups that are configured.
    pub fn new(hello: &ClientHello<'_>, spoken: &CryptoProvider) -> Self {
        let suite = |n| spoken.cipher_suites.iter().any(|suite| u16::from(suite.suite()) == n);
        let group = |n| spoken.kx_groups.iter().any(|group| u16::from(group.name()) == n);
        let alpn: Vec<_> = hello.alpn().collect();
        let (names, sni) = match &hello.name {
            Name::None => (Names::Nobody, None),
            Name::Host(name) => (Names::Host, Some(name.as_ref().to_ascii_lowercase())),
            Name::Address(name) => (Names::Nobody, Some(printable(name))),
            Name::Other(name) => (Names::NoHost, Some(printable(name))),
        };
        Self {
            version: hello.version,
            sni: sni.map(Into::into),
            names,
            alpn: (!alpn.is_empty()).then(|| printable(&alpn.join(&b' ')).into()),
            acme: alpn == [acme::PROTOCOL],
            ecdsa: hello.takes(Key::Ecdsa, suite),
            rsa: hello.takes(Key::Rsa, suite),
            group: hello.groups().any(group),
        }
    }

    /// Whom the client asks for.
    pub fn asked(&self) -> Asked<'_> {
        match (self.names, &self.sni) {
            (Names::Host, Some(name)) => Asked::Host(name),
            (Names::NoHost, _) => Asked::NoHost,
            _ => Asked::Nobody,
        }
    }

    /// Why TLS need not begin with this hello; `admit` says who is served.
    pub fn refused(&self, admit: impl FnOnce(Asked<'_>) -> bool) -> Option<Failure> {
        if self.version < Version::Tls12 {
            // rustls would refuse it as well, but not always for that reason.
            Some(Failure::OnlyOldVersions)
        } else if !admit(self.asked()) {
            Some(Failure::UnknownName)
        } else {
            None
        }
    }

    /// What was missing when no certificate of ours would do.
    fn missing(&self) -> Failure {
        match (self.ecdsa, self.rsa) {
            // First: a client without any such suite has no use for groups either.
            (false, false) => Failure::NoCommonSuite,
            _ if !self.group => Failure::NoCommonGroup,
            (true, false) => Failure::NeedsEcdsaCertificate,
            (false, true) => Failure::NeedsRsaCertificate,
            (true, true) => Failure::NoCommonSuite,
        }
    }
}

/// A failed handshake with what is known of it.
#[derive(Debug)]
pub struct Failed {
    pub failure: Failure,
    /// rustls' own words.
    pub detail: Option<String>,
    pub offer: Option<Offer>,
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Self {
        Self { failure, detail: None, offer: None }
    }
}

impl Failed {
    /// Counts it, logs it at the level of who can cure it (at debug, if there were others like it), and gives the
    /// session's reason.
    pub fn report(&self, session: &Session, ctx: &Context) -> Reason {
        let Self { failure, detail, offer } = self;
        let offer = offer.as_ref();
        ctx.metrics.handshake_failed(*failure);
        let not_logged = ctx.shared.failures.on(*failure as usize, session.client.ip());
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    session = session_id(session.id),
                    client = %session.client,
                    reason = <&str>::from(*failure),
                    why = failure.text(),
                    detail,
                    offered_version = offer.map(|offer| <&str>::from(offer.version)),
                    sni = offer.and_then(|offer| offer.sni.as_deref()),
                    alpn = offer.and_then(|offer| offer.alpn.as_deref()),
                    not_logged,
                    "handshake failed"
                )
            };
        }
        match (not_logged, failure.cure()) {
            (None, _) => line!(debug),
            (Some(_), Cure::Client) => line!(info),
            (Some(_), Cure::Operator) => line!(warn),
            (Some(_), Cure::Us) => line!(error),
        }
        (*failure).into()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::crypto::aws_lc_rs;
    use rustls::server::{ClientHello as Hello, ResolvesServerCert, UnbufferedServerConnection};
    use rustls::sign::CertifiedKey;
    use rustls::{CertificateError, ServerConfig};

    use super::*;

    fn offer(version: Version, ecdsa: bool, rsa: bool, group: bool) -> Offer {
        let sni = Some("mail.example.org".into());
        Offer { version, sni, names: Names::Host, alpn: None, acme: false, ecdsa, rsa, group }
    }

    #[test]
    fn the_http_page_is_as_long_as_it_says() {
        let page = std::str::from_utf8(HTTP_PAGE).expect("ASCII");
        let (head, body) = page.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{}", body.len());
    }

    #[test]
    fn what_was_missing_is_told_by_the_hello() {
        use PeerIncompatible as P;
        let suites = rustls::Error::PeerIncompatible(P::NoCipherSuitesInCommon);
        let versions = rustls::Error::PeerIncompatible(P::Tls12NotOfferedOrEnabled);
        let none = rustls::Error::General(NO_CERTIFICATE.to_owned());
        let v = Version::Tls12;
        for (error, offer, want) in [
            (&suites, offer(v, true, false, true), Failure::NeedsEcdsaCertificate),
            (&suites, offer(v, false, true, true), Failure::NeedsRsaCertificate),
            (&none, offer(v, true, false, true), Failure::NeedsEcdsaCertificate),
            (&none, offer(v, false, true, true), Failure::NeedsRsaCertificate),
            (&suites, offer(v, false, false, true), Failure::NoCommonSuite),
            (&suites, offer(v, false, false, false), Failure::NoCommonSuite),
            (&suites, offer(v, true, true, false), Failure::NoCommonGroup),
            (&versions, offer(v, true, true, true), Failure::BelowMinVersion),
            (&versions, offer(Version::Tls11, true, true, true), Failure::OnlyOldVersions),
        ] {
            assert_eq!(Failure::of(error, Some(&offer)), want, "{error:?} {offer:?}");
        }
        assert_eq!(Failure::of(&suites, None), Failure::NoCommonSuite);
    }

    #[test]
    fn whose_certificate_is_at_fault_is_told() {
        use rustls::Error as E;
        for (error, want) in [
            (E::AlertReceived(AlertDescription::UnknownCA), Failure::CertificateNotTrusted),
            (
                E::AlertReceived(AlertDescription::CertificateExpired),
                Failure::CertificateNotTrusted,
            ),
            (E::AlertReceived(AlertDescription::HandshakeFailure), Failure::AlertReceived),
            (E::AlertReceived(AlertDescription::UserCanceled), Failure::Closed),
            (E::NoCertificatesPresented, Failure::ClientCertificateMissing),
            (E::InvalidCertificate(CertificateError::Expired), Failure::ClientCertificateExpired),
            (E::General("we are broken".to_owned()), Failure::Internal),
            (E::FailedToGetCurrentTime, Failure::Internal),
            (E::DecryptError, Failure::Malformed),
        ] {
            assert_eq!(Failure::of(&error, None), want, "{error:?}");
        }
    }

    #[test]
    fn a_hello_is_refused_for_its_version_and_its_name_before_tls_begins() {
        let good = offer(Version::Tls13, true, true, true);
        assert_eq!(good.refused(|_| true), None);
        assert_eq!(good.refused(|asked| asked == Asked::Nobody), Some(Failure::UnknownName));
        let old = offer(Version::Tls10, true, true, true);
        assert_eq!(old.refused(|_| true), Some(Failure::OnlyOldVersions));
        let nameless =
            Offer { sni: None, names: Names::Nobody, ..offer(Version::Tls12, true, true, true) };
        assert_eq!(nameless.refused(|asked| asked == Asked::Nobody), None);
        // level 2, fatal; 112, unrecognized_name (RFC 6066 §9)
        assert_eq!(Failure::UnknownName.answer(), [21, 3, 3, 0, 2, 2, 112]);
    }

    /// [`NO_CERTIFICATE`] is what this rustls says.
    #[test]
    fn a_resolver_without_a_certificate_is_known_by_its_error() {
        #[derive(Debug)]
        struct Nothing;
        impl ResolvesServerCert for Nothing {
            fn resolve(&self, _: Hello<'_>) -> Option<Arc<CertifiedKey>> {
                None
            }
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("both")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Nothing));
        let client = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("both")
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let name = "mail.example.org".try_into().expect("a name");
        let mut client = rustls::ClientConnection::new(Arc::new(client), name).expect("a client");
        let mut hello = Vec::new();
        client.write_tls(&mut hello).expect("a Vec takes all");
        let mut server = UnbufferedServerConnection::new(Arc::new(server)).expect("a server");
        let error = server.process_tls_records(&mut hello).state.expect_err("no certificate");
        assert_eq!(error, rustls::Error::General(NO_CERTIFICATE.to_owned()));
    }
}
