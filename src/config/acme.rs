//! The kinds of values that stand below `tls.acme`.
//!
//! Every type describes itself to the JSON Schema, as in `values`.
//! Not here: what they must be together (`rules`), and what the named files hold (`tls::check`).

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::mistakes::Mistakes;
use super::read::{Read, scalar};
use super::values::{patterned, schema, word, words};
use super::yaml::Node;

/// Whether something is so.
#[derive(Clone, Copy, Debug)]
pub struct Flag(pub bool);

const FLAGS: [&str; 2] = ["true", "false"];

impl Read for Flag {
    const EXPECTED: &'static str = "true or false";

    fn read(node: &Node, mistakes: &mut Mistakes) -> Option<Self> {
        word(node, mistakes, &FLAGS, &[Self(true), Self(false)])
    }
}

schema!([] Flag, _generator => json_schema!({ "anyOf": [
    { "type": "boolean" },
    patterned("true|false"),
]}));

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
}

schema!([] Token, _generator => json_schema!({ "type": "string", "minLength": 1 }));

/// How a CA is shown that a name is ours (RFC 8555 §8, RFC 8737).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ChallengeKind {
    Http01,
    TlsAlpn01,
    Dns01,
}

words!(ChallengeKind is "http-01, tls-alpn-01 or dns-01" { "http-01" => Http01, "tls-alpn-01" => TlsAlpn01, "dns-01" => Dns01 });
