//! Session tickets: what they are sealed with, who opens them, and for how long.
//!
//! In: [`settings::Tickets`], and the files of keys that it names. Out: a [`Sealer`] for rustls. The ticket holds the
//! state of the session (RFC 5077, RFC 8446 §4.6.1), so nothing of a session is remembered here, and whoever has the
//! key resumes it: another process, another machine.
//!
//! Keys are random and live in memory, a new one every [`LIFETIME`] and the last two accepted, or they are read from
//! files: 48 or 80 raw bytes (`openssl rand 80`, what nginx takes) or lines of base64 (what HAProxy takes). The bytes
//! are never used as they stand: HKDF-SHA256 (RFC 5869) makes a name and a root of each, so their order inside the
//! key, in which the two products differ, means nothing here. The first key of all seals, each of them opens.
//!
//! ```text
//! ticket = name (16) ‖ salt (32, random) ‖ AES-256-GCM(state ‖ time (8)) ‖ tag (16)
//! key    = HKDF-Expand(root, "seal" ‖ policy ‖ salt), nonce 0
//! ```
//!
//! Replicas seal with the same root and know nothing of each other, so nonces could only be random, and 96 random bits
//! under one key are good for 2^32 tickets (NIST SP 800-38D §8.3), fewer than a busy service makes of a key that
//! nobody rotates. So each ticket has a key of its own, by 256 random bits, which seals once: no two are ever
//! expected to meet. `policy` is a digest of what clients were asked for ([`super::client_auth`]): a session that was
//! let in by other rules is not resumed. `time` bounds a ticket's life also where files never change.
//!
//! Limits: [`MAX_KEYS`] keys, [`MAX_TICKET`] bytes. **Invariants:** what a key file holds is never part of a message; what
//! was read of it is wiped. A ticket that does not open costs a full handshake, never a refusal.
//! Not here: when the files are looked at (`reload`), and how many tickets are sent (`config`).

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use aws_lc_rs::{aead, hkdf, rand};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::server::ProducesTickets;
use zeroize::Zeroizing;

use super::certificate::{self, What};
use super::client_auth;
use super::pairs::Stamp;
use super::{Severity, open_to, unix};
use crate::config::settings;

/// How long a ticket is good for, and how long a key in memory seals. RFC 8446 §4.6.1 allows seven days; but whoever
/// gets hold of a key opens the tickets on record, and with them the traffic of TLS 1.2, so it is as long as people sleep.
pub const LIFETIME: Duration = Duration::from_hours(12);
/// Keys in all files together. Nobody has a use for more than three.
const MAX_KEYS: usize = 32;
/// State of a session is about 150 bytes, and the client's chain if it has one.
const MAX_TICKET: usize = 16 * 1024;
/// A file of [`MAX_KEYS`] lines has 4 KB.
const MAX_FILE: u64 = 64 * 1024;
const KEY_SIZES: [usize; 2] = [48, 80];
const NAME: usize = 16;
const SALT: usize = 32;
const TIME: usize = 8;

/// What was asked of the clients whose sessions tickets may resume; all zero: nothing.
pub type Policy = [u8; 32];

/// Why there are no (new) keys. All of it is for the operator.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    File(#[from] certificate::Error),
    #[error("{}: {mistake}", path.display())]
    NoKeys { path: PathBuf, mistake: Mistake },
    #[error(
        "tls.tickets.key_files hold more than {MAX_KEYS} keys; the current and the previous one are enough"
    )]
    TooMany,
    #[error("the system gives no random bytes for a ticket key")]
    NoRandom,
}

/// What is wrong with a file of keys.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Mistake {
    #[error("is empty; make a ticket key with `openssl rand 80`")]
    Empty,
    #[error(
        "has {0} bytes, but a ticket key has 48 or 80; make one with `openssl rand 80`, and put several into files of their own or, as base64, on lines of their own"
    )]
    Length(usize),
    #[error(
        "line {0} is not base64; a line holds one ticket key, `openssl rand 80 | openssl base64 -A` makes one"
    )]
    NotBase64(usize),
    #[error(
        "line {line} holds {length} bytes, but a ticket key has 48 or 80; `openssl rand 80 | openssl base64 -A` makes one on one line"
    )]
    LineLength { line: usize, length: usize },
    #[error(
        "is no random key (a text, or one byte again and again); make one with `openssl rand 80`"
    )]
    NotRandom,
}

/// The keys in use, and where the next ones come from. A clone has the same keys.
#[derive(Clone)]
pub struct Tickets {
    /// Empty: keys live in memory.
    files: Vec<PathBuf>,
    ring: Arc<Ring>,
    stamps: Vec<Option<Stamp>>,
    /// When the youngest key in memory was made.
    made: SystemTime,
}

/// What [`Tickets::load`] did.
#[derive(Debug, Eq, PartialEq)]
pub enum Change {
    /// A key in memory has served its time.
    Rotated,
    /// Files were read; to be logged loudly: those that others may read.
    Read { notice: Vec<String> },
}

impl Tickets {
    /// `None`: the operator wants no tickets.
    ///
    /// # Errors
    /// A file that holds no key.
    pub fn new(settings: &settings::Tickets, now: SystemTime) -> Result<Option<Self>, Error> {
        let files = match settings {
            settings::Tickets::Off => return Ok(None),
            settings::Tickets::Memory => Vec::new(),
            settings::Tickets::Files(files) => files.clone(),
        };
        let stamps = stamps(&files);
        let keys = if files.is_empty() { vec![Key::random()?] } else { read_all(&files)? };
        let ring = Arc::new(Ring(ArcSwap::from_pointee(keys)));
        Ok(Some(Self { files, ring, stamps, made: now }))
    }

    /// For the sessions of clients from whom `policy` asks.
    pub fn sealer(&self, policy: Policy) -> Arc<dyn ProducesTickets> {
        Arc::new(Sealer { ring: Arc::clone(&self.ring), policy })
    }

    /// Whether [`load`](Self::load) would change something. Costs one `stat` a file.
    pub fn due(&self, now: SystemTime) -> bool {
        match self.files.is_empty() {
            // A clock that was set back must not keep a key for longer.
            true => now.duration_since(self.made).map_or(true, |age| age >= LIFETIME),
            false => self.stamps != stamps(&self.files),
        }
    }

    /// Takes new keys into use, for every [`Sealer`] at once. After an error the old ones stay.
    ///
    /// # Errors
    /// A file that holds no key.
    pub fn load(&mut self, now: SystemTime) -> Result<Change, Error> {
        if self.files.is_empty() {
            let mut keys = vec![Key::random()?];
            keys.extend(self.ring.0.load().first().cloned());
            self.ring.0.store(Arc::new(keys));
            self.made = now;
            return Ok(Change::Rotated);
        }
        let stamps = stamps(&self.files); // before reading: a change in between is seen at the next look
        let keys = read_all(&self.files)?;
        self.ring.0.store(Arc::new(keys));
        self.stamps = stamps;
        Ok(Change::Read { notice: self.notice() })
    }

    /// Files that others may read.
    pub fn notice(&self) -> Vec<String> {
        self.files.iter().filter_map(|file| open_to(file, WHAT)).map(|(_, text)| text).collect()
    }
}

const WHAT: &str = "ticket key";

fn stamps(files: &[PathBuf]) -> Vec<Option<Stamp>> {
    files.iter().map(|file| Stamp::of(file)).collect()
}

/// Everything that is wrong with the files that `settings` name.
pub fn check(settings: &settings::Tickets, say: &mut impl FnMut(Severity, String)) {
    let settings::Tickets::Files(files) = settings else { return };
    let mut good = 0;
    for file in files {
        match read(file) {
            Ok(_) => good += 1,
            Err(error) => say(Severity::Error, super::chain(&error)),
        }
        if let Some((severity, text)) = open_to(file, WHAT) {
            say(severity, text);
        }
    }
    if good == files.len()
        && let Err(error) = read_all(files)
    {
        say(Severity::Error, super::chain(&error));
    }
}

/// The keys of all files in their order, none twice: a script that has copied the current file over the previous one and
/// has not yet made the next is no mistake.
fn read_all(files: &[PathBuf]) -> Result<Vec<Key>, Error> {
    let mut keys: Vec<Key> = Vec::new();
    for file in files {
        for key in read(file)? {
            if keys.iter().all(|other| other.name != key.name) {
                keys.push(key);
            }
        }
    }
    if keys.len() > MAX_KEYS {
        return Err(Error::TooMany);
    }
    Ok(keys)
}

fn read(file: &Path) -> Result<Vec<Key>, Error> {
    let bytes = certificate::read_bytes(file, What::TicketKey, MAX_FILE)?;
    keys(&bytes).map_err(|mistake| Error::NoKeys { path: file.to_owned(), mistake })
}

/// The keys in the bytes of a file: one as it is, or base64 line by line with empty lines and `#` between.
fn keys(bytes: &[u8]) -> Result<Vec<Key>, Mistake> {
    let is_text = bytes.iter().all(|&byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace());
    if bytes.trim_ascii().is_empty() {
        return Err(Mistake::Empty);
    }
    if KEY_SIZES.contains(&bytes.len()) {
        return Ok(vec![key(bytes)?]);
    }
    if !is_text {
        return Err(Mistake::Length(bytes.len()));
    }
    let mut keys = Vec::new();
    for (index, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        let (number, line) = (index + 1, line.trim_ascii());
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        let mut decoded = Zeroizing::new(Vec::with_capacity(line.len()));
        STANDARD.decode_vec(line, &mut decoded).map_err(|_| Mistake::NotBase64(number))?;
        if !KEY_SIZES.contains(&decoded.len()) {
            return Err(Mistake::LineLength { line: number, length: decoded.len() });
        }
        keys.push(key(&decoded)?);
    }
    if keys.is_empty() {
        return Err(Mistake::Empty);
    }
    Ok(keys)
}

fn key(bytes: &[u8]) -> Result<Key, Mistake> {
    // Of 48 random bytes 44 differ, and one in three is printable.
    let mut seen = [false; 256];
    bytes.iter().for_each(|&byte| seen[usize::from(byte)] = true);
    let differ = seen.iter().filter(|&&seen| seen).count();
    if differ < 16 || bytes.iter().all(|&byte| (b' '..0x7f).contains(&byte) || byte == b'\n') {
        return Err(Mistake::NotRandom);
    }
    Ok(Key::of(bytes))
}

/// One key: how its tickets are known, and what their keys are made of.
#[derive(Clone)]
struct Key {
    name: [u8; NAME],
    root: hkdf::Prk,
}

struct Length<const N: usize>;

impl<const N: usize> hkdf::KeyType for Length<N> {
    fn len(&self) -> usize {
        N
    }
}

impl Key {
    fn of(secret: &[u8]) -> Self {
        const SHORT: &str = "HKDF gives 32 bytes of anything";
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"imaps-proxy session tickets, version 1");
        let extracted = salt.extract(secret);
        let mut name = [0; NAME];
        let named = extracted.expand(&[b"name"], Length::<NAME>);
        named.and_then(|okm| okm.fill(&mut name)).expect(SHORT);
        let root = extracted.expand(&[b"root"], hkdf::HKDF_SHA256).expect(SHORT).into();
        Self { name, root }
    }

    fn random() -> Result<Self, Error> {
        let mut secret = Zeroizing::new([0; 80]);
        rand::fill(&mut *secret).map_err(|_| Error::NoRandom)?;
        Ok(Self::of(&*secret))
    }

    /// The key of one ticket.
    fn sealing(&self, policy: &Policy, salt: &[u8]) -> Option<aead::LessSafeKey> {
        let mut bytes = Zeroizing::new([0; 32]);
        let info: [&[u8]; 3] = [b"seal", policy, salt];
        self.root.expand(&info, Length::<32>).ok()?.fill(&mut *bytes).ok()?;
        aead::UnboundKey::new(&aead::AES_256_GCM, &*bytes).ok().map(aead::LessSafeKey::new)
    }
}

/// What all sealers share; the first seals.
struct Ring(ArcSwap<Vec<Key>>);

/// Seals and opens tickets with the keys of the moment, for one [`Policy`].
struct Sealer {
    ring: Arc<Ring>,
    policy: Policy,
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer") // whoever prints it must not print a key
    }
}

impl Sealer {
    fn seal(&self, state: &[u8], now: SystemTime) -> Option<Vec<u8>> {
        let keys = self.ring.0.load();
        let key = keys.first()?;
        let length = NAME + SALT + state.len() + TIME + aead::AES_256_GCM.tag_len();
        if length > MAX_TICKET {
            return None;
        }
        let mut salt = [0; SALT];
        rand::fill(&mut salt).ok()?;
        // At its full size from the start, so that no copy of the state is left behind.
        let mut ticket = Vec::with_capacity(length);
        ticket.extend_from_slice(&key.name);
        ticket.extend_from_slice(&salt);
        ticket.extend_from_slice(state);
        ticket.extend_from_slice(&unix(now).to_be_bytes());
        let sealing = key.sealing(&self.policy, &salt)?;
        let sealed = &mut ticket[NAME + SALT..];
        let tag = sealing.seal_in_place_separate_tag(once(), aead::Aad::empty(), sealed).ok()?;
        ticket.extend_from_slice(tag.as_ref());
        Some(ticket)
    }

    fn open(&self, ticket: &[u8], now: SystemTime) -> Option<Vec<u8>> {
        if ticket.len() > MAX_TICKET {
            return None;
        }
        let (name, rest) = ticket.split_at_checked(NAME)?;
        let (salt, sealed) = rest.split_at_checked(SALT)?;
        let keys = self.ring.0.load();
        let key = keys.iter().find(|key| key.name == name)?;
        let sealing = key.sealing(&self.policy, salt)?;
        let mut state = sealed.to_vec();
        let length = sealing.open_in_place(once(), aead::Aad::empty(), &mut state).ok()?.len();
        let (_, time) = state[..length].split_last_chunk::<TIME>()?;
        // The clocks of replicas may differ: one from the future is as good as new.
        let age = unix(now).saturating_sub(i64::from_be_bytes(*time));
        if age > i64::from(lifetime()) {
            return None;
        }
        state.truncate(length - TIME);
        let anybody = self.policy == Policy::default();
        (anybody || client_auth::still_valid(&state, now)).then_some(state)
    }
}

/// The key seals one ticket, so any nonce is used once.
fn once() -> aead::Nonce {
    aead::Nonce::assume_unique_for_key([0; 12])
}

fn lifetime() -> u32 {
    u32::try_from(LIFETIME.as_secs()).expect("half a day")
}

impl ProducesTickets for Sealer {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        lifetime()
    }

    fn encrypt(&self, state: &[u8]) -> Option<Vec<u8>> {
        self.seal(state, SystemTime::now())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.open(ticket, SystemTime::now())
    }
}

#[cfg(test)]
mod tests;
