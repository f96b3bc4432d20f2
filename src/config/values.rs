//! The kinds of values that stand behind a key: paths, words, what TLS calls things.
//!
//! In: the text of one scalar, quoted or not, variables expanded. Out: a value that is possible by
//! itself, or a phrase that says what would be right. Every type carries the bounds that it
//! guarantees and describes itself to the JSON Schema, where a text with a `${…}` passes too.
//! Not here: durations, sizes and numbers (`amounts`), addresses and names (`addresses`), what ACME needs (`acme`), rules that concern several values (`rules`).

use std::borrow::Cow;
use std::path::PathBuf;

use rustls::SupportedCipherSuite;
use rustls::crypto::SupportedKxGroup;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::file;
use super::mistakes::{Mistakes, shown};
use super::read::{At, Read, Several, Tried, nearest, one_of, scalar};
use super::settings::{
    CertificateFiles, CertificateSource, ListenTls, LogFormat, MinVersion, UnknownName,
};
use super::yaml::{Kind, Node};
use crate::crypto;

/// Describes a type to the JSON Schema in place, without a name of its own.
macro_rules! schema {
    ([$($generics:tt)*] $type:ty, $generator:ident => $schema:expr) => {
        impl<$($generics)*> JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema($generator: &mut SchemaGenerator) -> Schema {
                $schema
            }
        }
    };
}

pub(super) use schema;

/// A type that is one of a few words.
pub trait Word {
    /// As it is written.
    fn word(&self) -> &'static str;
}

/// Describes a type that is one of a few words.
macro_rules! words {
    ($type:ident is $expected:literal { $($word:literal => $value:ident),+ }) => {
        impl Read for $type {
            const EXPECTED: &'static str = $expected;

            fn read(node: &Node, mistakes: &mut Mistakes) -> Option<Self> {
                $crate::config::values::word(node, mistakes, &[$($word),+], &[$(Self::$value),+])
            }
        }

        impl $crate::config::values::Word for $type {
            fn word(&self) -> &'static str {
                match self { $(Self::$value => $word),+ }
            }
        }

        schema!([] $type, _generator => $crate::config::values::worded(&[$($word),+]));
    };
}

pub(super) use words;

schema!([T: JsonSchema] At<T>, generator => T::json_schema(generator));

schema!([T: JsonSchema] Tried<T>, generator => T::json_schema(generator));

schema!([T: JsonSchema] Several<T>, generator => {
    json_schema!({ "type": "array", "items": T::json_schema(generator), "minItems": 1 })
});

/// A text that matches `pattern`, or holds a variable.
pub fn patterned(pattern: &str) -> Schema {
    json_schema!({ "type": "string", "pattern": format!(r"^({pattern})$|\$\{{") })
}

/// One of `words`, or a text that holds a variable.
pub fn worded(words: &[&str]) -> Schema {
    json_schema!({ "anyOf": [{ "enum": words }, { "type": "string", "pattern": r"\$\{" }] })
}

/// A path; a relative one starts at the working directory.
#[derive(Clone, Debug)]
pub struct FilePath(pub PathBuf);

impl Read for FilePath {
    const EXPECTED: &'static str = "a path";

    fn read(node: &Node, mistakes: &mut Mistakes) -> Option<Self> {
        scalar(node, mistakes, |text| {
            if text.is_empty() || text.contains('\0') {
                return Err(format!("expected a path, found {}", node.found()));
            }
            Ok(Self(text.into()))
        })
    }
}

schema!([] FilePath, _generator => json_schema!({ "type": "string", "minLength": 1 }));

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
}

schema!([] Capability, _generator => patterned(r#"[!#$&'+-\[^-z|}~]+"#));

/// Reads one of a few words.
pub fn word<T: Read + Clone>(
    node: &Node,
    mistakes: &mut Mistakes,
    words: &[&'static str],
    values: &[T],
) -> Option<T> {
    scalar(node, mistakes, |text| {
        if let Some(index) = words.iter().position(|word| *word == text) {
            return Ok(values[index].clone());
        }
        let near = nearest(text, words).filter(|_| words.len() > 2); // two are seen at a glance
        let near = near.map(|near| format!(", the nearest is `{near}`"));
        let (all, near) = (one_of(words), near.unwrap_or_default());
        Err(format!("expected {all}, found {}{near}", node.found()))
    })
}

words!(MinVersion is r#""1.2" or "1.3""# { "1.2" => Tls12, "1.3" => Tls13 });

words!(ListenTls is "implicit or starttls" { "implicit" => Implicit, "starttls" => StartTls });

words!(UnknownName is "default or refuse" { "default" => Default, "refuse" => Refuse });

/// One item of `tls.certificates`: a pair or a directory, not both and not half of it.
impl Read for CertificateSource {
    const EXPECTED: &'static str = file::Certificates::EXPECTED;

    fn read(node: &Node, mistakes: &mut Mistakes) -> Option<Self> {
        let before = mistakes.count();
        let keys = file::Certificates::read(node, mistakes)?;
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
}

schema!([] CertificateSource, generator => file::Certificates::json_schema(generator));

/// A cipher suite by its name, as log and metrics have it or as IANA has it.
#[derive(Clone, Copy, Debug)]
pub struct Suite(pub SupportedCipherSuite);

impl Read for Suite {
    const EXPECTED: &'static str = "a cipher suite such as TLS13_AES_128_GCM_SHA256";

    fn read(node: &Node, mistakes: &mut Mistakes) -> Option<Self> {
        scalar(node, mistakes, |text| named(text, "cipher suite", &crypto::suites()).map(Self))
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
}

schema!([T: JsonSchema] OnOff<T>, generator => {
    json_schema!({ "anyOf": [worded(&["on", "off"]), T::json_schema(generator)] })
});

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
}

schema!([] Level, _generator => worded(&LEVELS));

words!(LogFormat is "text or json" { "text" => Text, "json" => Json });
