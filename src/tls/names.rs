//! Which certificate a client gets: by the name it asks for (SNI), then by what it can verify.
//!
//! In: every served pair in order of preference, and a ClientHello. Out: one of the pairs. Standards: RFC 6066 §3;
//! RFC 6125 §6.4.3 for wildcards, of which only a whole left-most label counts, for exactly one label; RFC 8446
//! §4.2.3 and RFC 5246 §7.4.1.4.1 for what can be verified (rustls has taken out the signature schemes that no
//! common cipher suite goes with, so that a client with nothing but ECDHE_RSA suites gets RSA).
//!
//! Nothing is kept of what a client asks for, and looking it up allocates nothing for a name in lower case.
//! Invariant: there is always a certificate for those who name no server.
//! Not here: which pairs there are (`store`); sending alert 112 (`conn::tls`).

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::SignatureAlgorithm;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::aging::Life;
use super::certificate::Pair;
use super::facts::{DAY, Facts, Name};
use crate::config::settings::UnknownName;

/// Whom a client asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Asked<'a> {
    /// Nobody, or an address, which is as good (RFC 6066 §3).
    Nobody,
    Host(&'a str),
    /// Something that is no host's name, and so in no certificate.
    NoHost,
}

/// How a client's server name was found: the label `match`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, strum::IntoStaticStr, strum::VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Match {
    Exact,
    Wildcard,
    /// The client named no server.
    None,
    /// No certificate has the name.
    Unknown,
}

/// Every name of every pair.
#[derive(Debug, Default)]
pub struct Index {
    exact: HashMap<String, Vec<Arc<CertifiedKey>>>,
    /// By what stands behind `*.`.
    wildcard: HashMap<String, Vec<Arc<CertifiedKey>>>,
    default: Vec<Arc<CertifiedKey>>,
}

impl Index {
    /// `pairs` in the order of the configuration. The first is the default, together with those that have its
    /// first name, or one would shut out who can't verify it.
    ///
    /// Of several for one name the order is: valid before about to end before invalid, ECDSA before Ed25519 before RSA
    /// (which costs three times the work), then what lasts longest, then that of `pairs`.
    pub fn new(pairs: &[Arc<Pair>], now: i64) -> Self {
        let mut order: Vec<_> = pairs.iter().map(|pair| (pair, pair.sent(now))).collect();
        order.sort_by_key(|(pair, _)| rank(pair, now)); // stable
        let mut index = Self::default();
        for (pair, sent) in &order {
            for name in server_names(&pair.chain[0]) {
                let (map, name) = match name.strip_prefix("*.") {
                    Some(rest) => (&mut index.wildcard, rest),
                    None => (&mut index.exact, &*name),
                };
                map.entry(name.to_owned()).or_default().push(Arc::clone(sent));
            }
        }
        let defaults = order.into_iter().filter(|(pair, _)| stands_in(pair, pairs));
        index.default = defaults.map(|(_, sent)| sent).collect();
        index
    }

    /// How `name` is found, and by it what may be served: two lists, the better one first.
    fn find(&self, name: Option<&str>) -> (Match, [&[Arc<CertifiedKey>]; 2]) {
        let Some(name) = name else { return (Match::None, [&self.default, &[]]) };
        let name = lower(name);
        let exact = self.exact.get(&*name).map_or(&[][..], Vec::as_slice);
        let parent = name.split_once('.').and_then(|(_, parent)| self.wildcard.get(parent));
        let wildcard = parent.map_or(&[][..], Vec::as_slice);
        match (exact, wildcard) {
            ([], []) => (Match::Unknown, [&self.default, &[]]),
            ([], _) => (Match::Wildcard, [wildcard, &[]]),
            _ => (Match::Exact, [exact, wildcard]),
        }
    }
}

/// When there is a valid certificate for clients that name no server: in any of these times.
pub fn default_lives(pairs: &[Arc<Pair>]) -> Vec<Life> {
    pairs.iter().filter(|pair| stands_in(pair, pairs)).map(|pair| pair.chain[0].life()).collect()
}

/// Whether clients of `pair` may as well be served `other`, which lasts as long.
pub fn covers(other: &Pair, pair: &Pair) -> bool {
    other.certified.key.algorithm() == pair.certified.key.algorithm()
        && other.chain[0].not_after >= pair.chain[0].not_after
        && covers_names(other, pair)
}

/// Whether `other` is for every name of `pair`.
pub fn covers_names(other: &Pair, pair: &Pair) -> bool {
    let has = |name: &str| server_names(&other.chain[0]).any(|other| other == name);
    server_names(&pair.chain[0]).all(|name| has(&name))
}

/// Whether `pair` is the first of `pairs`, or has its first name.
fn stands_in(pair: &Arc<Pair>, pairs: &[Arc<Pair>]) -> bool {
    let Some(first) = pairs.first() else { return false };
    Arc::ptr_eq(pair, first)
        || server_names(&first.chain[0])
            .next()
            .is_some_and(|name| server_names(&pair.chain[0]).any(|other| other == name))
}

/// A certificate that ends within this time gives way to another kind of key too: clocks differ.
const ABOUT_TO_END: i64 = DAY;

/// Lower comes first.
fn rank(pair: &Pair, now: i64) -> (u8, u8, Reverse<i64>) {
    let leaf = &pair.chain[0];
    let age = match leaf.life().holds(now) {
        false => 2,
        true => u8::from(leaf.not_after - now < ABOUT_TO_END),
    };
    let key = match pair.certified.key.algorithm() {
        SignatureAlgorithm::ECDSA => 0,
        SignatureAlgorithm::RSA => 2,
        _ => 1,
    };
    (age, key, Reverse(leaf.not_after))
}

/// The DNS names of a certificate, or what an old one has instead: its common name.
pub fn server_names(leaf: &Facts) -> impl Iterator<Item = Cow<'_, str>> {
    let common = leaf.common_name.as_deref().filter(|_| leaf.names.is_empty());
    let listed = leaf.names.iter().filter_map(|name| match name {
        Name::Dns(name) => Some(name.as_str()),
        Name::Ip(_) => None,
    });
    listed.chain(common).map(lower)
}

fn lower(name: &str) -> Cow<'_, str> {
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(name.to_ascii_lowercase())
    } else {
        Cow::Borrowed(name)
    }
}

/// What serves now; rustls asks it in every full handshake.
#[derive(Debug)]
pub struct Names {
    current: ArcSwap<Index>,
    unknown: UnknownName,
}

impl Names {
    pub fn new(unknown: UnknownName) -> Self {
        Self { current: ArcSwap::default(), unknown }
    }

    /// For handshakes from now on.
    pub(super) fn set(&self, index: Index) {
        self.current.store(Arc::new(index));
    }

    /// How the name that a client asks for is found, and whether it is served at all.
    pub fn admit(&self, asked: Asked<'_>) -> (Match, bool) {
        let found = match asked {
            Asked::Nobody => self.current.load().find(None).0,
            Asked::Host(name) => self.current.load().find(Some(name)).0,
            Asked::NoHost => Match::Unknown,
        };
        (found, found != Match::Unknown || self.unknown == UnknownName::Default)
    }
}

#[cfg(test)]
impl Names {
    /// What a client gets that can verify everything.
    pub fn first(&self, name: Option<&str>) -> Arc<CertifiedKey> {
        let index = self.current.load();
        Arc::clone(&index.find(name).1[0][0])
    }
}

impl ResolvesServerCert for Names {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let index = self.current.load();
        let (_, lists) = index.find(hello.server_name());
        let all = || lists.iter().copied().flatten();
        let verifiable =
            |pair: &&Arc<CertifiedKey>| pair.key.choose_scheme(hello.signature_schemes()).is_some();
        // If nothing fits, rustls says why with the first.
        all().find(verifiable).or_else(|| all().next()).map(Arc::clone)
    }
}
