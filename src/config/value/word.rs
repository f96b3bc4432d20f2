//! Values that are one of a few words.

use rustls::SupportedProtocolVersion;
use schemars::{JsonSchema, json_schema};
use serde_yaml::Value;

use crate::config::read::{Read, patterned, schema, word, worded, words};
use crate::config::text::mistake::Mistakes;
use crate::config::text::yaml::{Kind, Node};

/// Whether something is so.
#[derive(Clone, Copy, Debug)]
pub struct Flag(pub bool);

const FLAGS: [&str; 2] = ["true", "false"];

impl Read for Flag {
    const EXPECTED: &'static str = "true or false";

    fn read(node: &Node, mistakes: &mut Mistakes) -> Option<Self> {
        word(node, mistakes, &FLAGS, &[Self(true), Self(false)])
    }

    fn show(&self) -> Value {
        self.0.into()
    }
}

schema!([] Flag, _generator => json_schema!({ "anyOf": [
    { "type": "boolean" },
    patterned("true|false"),
]}));

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

words!(MinVersion is r#""1.2" or "1.3""# { "1.2" => Tls12, "1.3" => Tls13 });

/// When TLS begins on a listener.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ListenTls {
    /// With the first byte (RFC 8314 §3.2).
    Implicit,
    /// When the client says so, in plaintext (RFC 9051 §6.2.1).
    StartTls,
}

words!(ListenTls is "implicit or starttls" { "implicit" => Implicit, "starttls" => StartTls });

/// What a client gets whose server name stands in no certificate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum UnknownName {
    /// The certificate for those who name no server.
    Default,
    /// Alert 112, unrecognized_name (RFC 6066 §3).
    Refuse,
}

words!(UnknownName is "default or refuse" { "default" => Default, "refuse" => Refuse });

/// `tls.client_auth.mode`
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ClientAuthMode {
    Optional,
    Required,
}

words!(ClientAuthMode is "optional or required" { "optional" => Optional, "required" => Required });

/// `log.level`
#[derive(Clone, Copy, Debug)]
pub struct Level(pub tracing::Level);

const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

impl Read for Level {
    const EXPECTED: &'static str = "one of error, warn, info, debug and trace";

    fn read(node: &Node, mistakes: &mut Mistakes) -> Option<Self> {
        use tracing::Level as L;
        let values = [L::ERROR, L::WARN, L::INFO, L::DEBUG, L::TRACE].map(Self);
        word(node, mistakes, &LEVELS, &values)
    }

    fn show(&self) -> Value {
        self.0.as_str().to_ascii_lowercase().into()
    }
}

impl From<Level> for tracing::Level {
    fn from(level: Level) -> Self {
        level.0
    }
}

impl From<tracing::Level> for Level {
    fn from(level: tracing::Level) -> Self {
        Self(level)
    }
}

schema!([] Level, _generator => worded(&LEVELS));

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LogFormat {
    Text,
    Json,
}

words!(LogFormat is "text or json" { "text" => Text, "json" => Json });

/// How a server is told who the client is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum IdentityKind {
    None,
    ProxyV1,
    ProxyV2,
    DovecotId,
    Transparent,
}

words!(IdentityKind is "a way to tell a server who the client is" {
    "none" => None, "proxy-v1" => ProxyV1, "proxy-v2" => ProxyV2, "dovecot-id" => DovecotId,
    "transparent" => Transparent
});

/// The kind of server that a PROXY header, version 2, is made for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ProxyTlvs {
    Generic,
    Dovecot24,
    Dovecot23,
    Cyrus,
    Stalwart,
}

words!(ProxyTlvs is "the kind of server that reads the PROXY header" {
    "generic" => Generic, "dovecot-2.4" => Dovecot24, "dovecot-2.3" => Dovecot23, "cyrus" => Cyrus,
    "stalwart" => Stalwart
});

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

words!(Balance is "a way to choose among servers" {
    "first" => First, "round-robin" => RoundRobin, "least-sessions" => LeastSessions,
    "source-hash" => SourceHash
});

/// What the operator wants of a server.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ServerState {
    Active,
    /// No new sessions.
    Drain,
    /// Neither sessions nor health checks.
    Down,
}

words!(ServerState is "active, drain or down" {
    "active" => Active, "drain" => Drain, "down" => Down
});

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TlsMode {
    None,
    StartTls,
    Implicit,
}

words!(TlsMode is "none, starttls or implicit" {
    "none" => None, "starttls" => StartTls, "implicit" => Implicit
});

/// Whether a server's certificate is looked at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verify {
    Full,
    Insecure,
}

words!(Verify is "full or insecure" { "full" => Full, "insecure" => Insecure });

/// How a CA is shown that a name is ours (RFC 8555 §8, RFC 8737).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ChallengeKind {
    Http01,
    TlsAlpn01,
    Dns01,
}

words!(ChallengeKind is "http-01, tls-alpn-01 or dns-01" { "http-01" => Http01, "tls-alpn-01" => TlsAlpn01, "dns-01" => Dns01 });

/// Something that is on as it comes, off, or on in the way that a section describes.
#[derive(Debug)]
pub enum OnOff<T> {
    On,
    Off,
    Section(T),
}

impl<T: Read> Read for OnOff<T> {
    const EXPECTED: &'static str = "on, off or a section";
    const EMPTY_IS_ABSENT: bool = true;

    fn read(node: &Node, mistakes: &mut Mistakes) -> Option<Self> {
        if matches!(node.kind, Kind::Map(_)) {
            return T::read(node, mistakes).map(Self::Section);
        }
        match &node.kind {
            Kind::Scalar(text) if text == "on" => return Some(Self::On),
            Kind::Scalar(text) if text == "off" => return Some(Self::Off),
            Kind::Broken => {}
            _ => {
                let (section, found) = (T::EXPECTED, node.found());
                mistakes
                    .add(node.mark, format!("expected `on`, `off` or {section}, found {found}"));
            }
        }
        None
    }

    fn show(&self) -> Value {
        match self {
            Self::On => "on".into(),
            Self::Off => "off".into(),
            Self::Section(section) => section.show(),
        }
    }
}

schema!([T: JsonSchema] OnOff<T>, generator => {
    json_schema!({ "anyOf": [worded(&["on", "off"]), T::json_schema(generator)] })
});
