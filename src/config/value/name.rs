//! Names that others have given: capabilities, certificates, cipher suites, what a CA calls things.

use std::net::IpAddr;

use rustls::SupportedCipherSuite;
use rustls::crypto::SupportedKxGroup;
use schemars::json_schema;
use serde_yaml::Value;

use super::address::is_dns_name;
use crate::config::read::{Read, nearest, one_of, patterned, scalar, schema, worded};
use crate::config::text::mistake::{Mistakes, shown};
use crate::config::text::yaml::Node;
use crate::crypto;

/// A capability's name, in upper case: an atom of RFC 9051 §9.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Capability(pub String);

impl Read for Capability {
    const EXPECTED: &'static str = "a capability such as IDLE or AUTH=PLAIN";

    fn read(node: &Node, mistakes: &mut Mistakes) -> Option<Self> {
        scalar(node, mistakes, |text| {
            let special = |b: u8| b.is_ascii_control() || b" (){%*\"\\]".contains(&b);
            if text.is_empty() || !text.is_ascii() || text.bytes().any(special) {
                return Err(format!("expected {}, found {}", Self::EXPECTED, node.found()));
            }
            Ok(Self(text.to_ascii_uppercase()))
        })
    }

    fn show(&self) -> Value {
        self.0.as_str().into()
    }
}

schema!([] Capability, _generator => patterned(r#"[!#$&'+-\[^-z|}~]+"#));

/// A name in a certificate: a DNS name, perhaps with `*` as its first label, or an IP address.
#[derive(Clone, Debug)]
pub struct CertificateName(pub String);

impl Read for CertificateName {
    const EXPECTED: &'static str = "a DNS name or an IP address";

    fn read(node: &Node, mistakes: &mut Mistakes) -> Option<Self> {
        scalar(node, mistakes, |text| {
            let base = text.strip_prefix("*.").filter(|base| base.contains('.')).unwrap_or(text);
            if text.parse::<IpAddr>().is_ok() || is_dns_name(base) {
                return Ok(Self(text.to_owned()));
            }
            let why = if text.is_ascii() { "" } else { "; write the name in its xn-- form" };
            Err(format!("expected {}, found {}{why}", Self::EXPECTED, node.found()))
        })
    }

    fn show(&self) -> Value {
        self.0.as_str().into()
    }
}

schema!([] CertificateName, _generator => json_schema!({ "type": "string", "minLength": 1 }));

/// SHA-256 of a certificate, as hexadecimal digits with or without colons.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Fingerprint(pub [u8; 32]);

impl Read for Fingerprint {
    const EXPECTED: &'static str =
        "the SHA-256 of a certificate, 64 hexadecimal digits with or without colons";

    fn read(node: &Node, mistakes: &mut Mistakes) -> Option<Self> {
        scalar(node, mistakes, |text| {
            let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b':').collect();
            let mut bytes = [0; 32];
            let wrong = || format!("expected {}, found {}", Self::EXPECTED, node.found());
            if digits.len() != 2 * bytes.len() {
                return Err(wrong());
            }
            for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
                let digit =
                    |byte: u8| char::from(byte).to_digit(16).and_then(|d| u8::try_from(d).ok());
                let (high, low) = (digit(pair[0]), digit(pair[1]));
                *byte = high.zip(low).map(|(high, low)| high << 4 | low).ok_or_else(wrong)?;
            }
            Ok(Self(bytes))
        })
    }

    fn show(&self) -> Value {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into()
    }
}

schema!([] Fingerprint, _generator => patterned("([0-9A-Fa-f]{2}:?){31}[0-9A-Fa-f]{2}"));

/// A cipher suite by its name, as log and metrics have it or as IANA has it.
#[derive(Clone, Copy, Debug)]
pub struct Suite(pub SupportedCipherSuite);

impl Read for Suite {
    const EXPECTED: &'static str = "a cipher suite such as TLS13_AES_128_GCM_SHA256";

    fn read(node: &Node, mistakes: &mut Mistakes) -> Option<Self> {
        scalar(node, mistakes, |text| named(text, "cipher suite", &crypto::suites()).map(Self))
    }

    fn show(&self) -> Value {
        self.0.suite().as_str().unwrap_or_default().into()
    }
}

schema!([] Suite, _generator => {
    worded(&crypto::suites().iter().map(|(name, _)| *name).collect::<Vec<_>>())
});

/// A group for the key exchange by its name.
#[derive(Clone, Copy, Debug)]
pub struct Group(pub &'static dyn SupportedKxGroup);

impl Read for Group {
    const EXPECTED: &'static str = "a group such as X25519MLKEM768";

    fn read(node: &Node, mistakes: &mut Mistakes) -> Option<Self> {
        scalar(node, mistakes, |text| named(text, "group", &crypto::groups()).map(Self))
    }

    fn show(&self) -> Value {
        self.0.name().as_str().unwrap_or_default().into()
    }
}

schema!([] Group, _generator => {
    worded(&crypto::groups().iter().map(|(name, _)| *name).collect::<Vec<_>>())
});

/// Looks a name up; upper and lower case are one.
fn named<T: Copy>(text: &str, kind: &str, known: &[(&'static str, T)]) -> Result<T, String> {
    if let Some((_, value)) = known.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)) {
        return Ok(*value);
    }
    let lower: Vec<String> = known.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
    let near = nearest(text, &lower.iter().map(String::as_str).collect::<Vec<_>>());
    let near = near.and_then(|near| lower.iter().position(|name| name == near));
    let start = format!("`{}` is no {kind} that is spoken here", shown(text));
    Err(match near {
        Some(index) => format!("{start}, the nearest is `{}`", known[index].0),
        None => {
            let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
            format!("{start}, expected {}", one_of(&names))
        }
    })
}

/// The URL of an ACME directory (RFC 8555 §7.1.1), with the scheme `https`.
#[derive(Clone, Debug)]
pub struct DirectoryUrl(pub String);

impl Read for DirectoryUrl {
    const EXPECTED: &'static str =
        "an https URL such as https://acme-v02.api.letsencrypt.org/directory";

    fn read(node: &Node, mistakes: &mut Mistakes) -> Option<Self> {
        scalar(node, mistakes, |text| {
            let usable = text.parse::<hyper::Uri>().is_ok_and(|uri| {
                uri.scheme_str() == Some("https") && uri.host().is_some_and(|host| !host.is_empty())
            });
            match usable {
                true => Ok(Self(text.to_owned())),
                false => Err(format!("expected {}, found {}", Self::EXPECTED, node.found())),
            }
        })
    }

    fn show(&self) -> Value {
        self.0.as_str().into()
    }
}

schema!([] DirectoryUrl, _generator => patterned("https://.+"));

/// Where a CA reaches people: `mailto:` and an address (RFC 8555 §7.3).
#[derive(Clone, Debug)]
pub struct Contact(pub String);

impl Read for Contact {
    const EXPECTED: &'static str = "a contact such as mailto:postmaster@example.org";

    fn read(node: &Node, mistakes: &mut Mistakes) -> Option<Self> {
        scalar(node, mistakes, |text| {
            let parts = text.strip_prefix("mailto:").and_then(|address| address.split_once('@'));
            let plain = |text: &str| {
                !text.is_empty()
                    && !text.contains([',', '?', '@'])
                    && !text.contains(char::is_whitespace)
            };
            match parts {
                Some((who, place)) if plain(who) && plain(place) => Ok(Self(text.to_owned())),
                None if text.contains('@') && !text.contains(':') => Err(format!(
                    "expected {}, found {}; write mailto: before it",
                    Self::EXPECTED,
                    node.found()
                )),
                _ => Err(format!("expected {}, found {}", Self::EXPECTED, node.found())),
            }
        })
    }

    fn show(&self) -> Value {
        self.0.as_str().into()
    }
}

schema!([] Contact, _generator => patterned("mailto:[^@]+@[^@]+"));

/// A word of the CA's own: the name of a profile, the id of a key.
#[derive(Clone, Debug)]
pub struct Token(pub String);

impl Read for Token {
    const EXPECTED: &'static str = "a word without spaces";

    fn read(node: &Node, mistakes: &mut Mistakes) -> Option<Self> {
        scalar(node, mistakes, |text| match text.bytes().all(|b| b.is_ascii_graphic()) {
            true if !text.is_empty() => Ok(Self(text.to_owned())),
            _ => Err(format!("expected {}, found {}", Self::EXPECTED, node.found())),
        })
    }

    fn show(&self) -> Value {
        self.0.as_str().into()
    }
}

schema!([] Token, _generator => json_schema!({ "type": "string", "minLength": 1 }));
