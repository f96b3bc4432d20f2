//! Looks on at both directions after login: which command runs, where IDLE and the boundaries are.
//!
//! In: the bytes of both directions, cut anywhere, in the driver's own buffers. Out: the same bytes, edited
//! in place where that is needed (capability lists repaired, `COMPRESS`, `STARTTLS` and `UNAUTHENTICATE`
//! cut out and answered `BAD`), the time that each command took, and what may be said now ([`Follow::phase`],
//! [`Follow::may_interrupt`], [`Follow::ended_orderly`]).
//!
//! For each direction and each read, in one buffer:
//!
//! 1. [`Follow::unhold`] into the empty buffer, then read behind it;
//! 2. [`Follow::client`] or [`Follow::backend`]; then send what the buffer holds, if anything;
//! 3. [`Follow::take_answers`], and send it to the client behind every byte of the backend's so far.
//!
//! At the end of a direction: `unhold`, and send that as it is.
//!
//! Following is advisory. When both ends might not agree with us on what a byte is, the thread is lost:
//! [`Follow::is_following`] turns false and every further byte passes untouched. Nobody's safety hangs on
//! it: a client can lose us on purpose and then only fools the metrics and itself.
//!
//! Literals (RFC 9051 §4.3, RFC 7888, RFC 3516): whatever stands in them is skipped by count. A client's
//! `{n}` may be refused by a tagged reply instead of a `+`; then no literal follows. A backend's line that
//! ends in `{n}` announces one, but not a line of text (status, `+`), where it is what somebody wrote.
//! In a quoted string at the very end of a line it would deceive us; no server leaves its quotes open.
//!
//! Limits: 32 outstanding commands are timed, more are counted; 8 KiB of a backend's line that may be a
//! capability list, and 192 bytes of a client's that may be a refused command, are held back while
//! incomplete; 16 answers may wait. Nothing is allocated while nothing is outstanding, and nothing per chunk.
//! Invariants: what is held of a direction begins at a boundary of that direction; at any time
//! `current == Tracked` means the last of `commands`.
//! Not here: the dialogue before login (`dialogue`, `login`), buffers, clocks, sockets (`conn::relay`).

mod client;

mod backend;

mod head;

#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Instant;

use super::marker::Tail;
use head::Refused;
pub use head::Verb;

/// Commands outstanding at one time that are timed.
const COMMANDS: usize = 32;
/// The longest backend line whose capability list is repaired; what is held back at most.
const HELD: usize = 8 * 1024;
/// Refused commands whose answer has not been sent.
const REFUSED: usize = 16;

/// Why the driver has to drop the connection: a refused command stands in the way of everything else.
/// The client's doing, who sent what was not offered.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("more than {REFUSED} refused commands wait for their answer")]
    TooManyRefused,
    #[error("a refused command with a literal that cannot be framed")]
    RefusedLiteral,
    #[error("lost the thread before a refused command could be answered")]
    Unanswered,
}

/// Where bytes go.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Direction {
    ClientToBackend,
    BackendToClient,
}

/// What the session is doing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Phase {
    /// Anything but IDLE, and whenever the thread is lost.
    Active,
    /// IMAP IDLE (RFC 2177): after the backend's `+` and before the client's `DONE`.
    Idle,
}

/// One session after login. Under 160 bytes, plus one small allocation while a command is outstanding.
#[derive(Debug)]
pub struct Follow {
    client: Client,
    backend: Backend,
    /// Outstanding, in the order of the client.
    commands: Vec<Command>,
    /// What is rarely there.
    aside: Option<Box<Aside>>,
    /// Outstanding beyond [`COMMANDS`].
    untracked: u32,
    current: Current,
    kind: Kind,
    /// The last bytes of this direction were held back. Stays true when the driver takes them to read
    /// behind them, until it comes back with more.
    client_partial: bool,
    backend_partial: bool,
    following: bool,
    bye: bool,
    logout: bool,
}

/// Where the client's bytes stand.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Client {
    /// At a command boundary.
    Start,
    /// Behind a whole IDLE: `DONE` must come.
    Idle,
    /// Inside a line of a command.
    Line(Tail),
    /// Behind `{n}`: the literal, unless it is refused.
    LiteralWait(u64),
    Literal {
        left: u64,
        sync: bool,
    },
    /// The backend asked for a SASL line.
    SaslWait,
    Sasl,
    /// Inside a line that is cut out, and inside its literal.
    Refused(Tail),
    RefusedLiteral(u64),
}

/// Where the backend's bytes stand.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Backend {
    /// At a response boundary.
    Start,
    /// Inside a line that may announce a literal.
    Line(Tail),
    /// Inside a line of text.
    Text,
    Literal(u64),
}

/// The command whose bytes come now, or whose IDLE or SASL exchange is on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Current {
    None,
    /// The last of `commands`.
    Tracked,
    /// One beyond [`COMMANDS`].
    Untracked,
    /// One without a tag that could be answered.
    Tagless,
    /// Answered before it was complete; its rest is still coming.
    Answered,
}

/// What is special about the current command.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Plain,
    Idle,
    Sasl,
    Logout,
}

/// An outstanding command. 48 bytes.
#[derive(Debug)]
struct Command {
    tag: Tag,
    /// When the last byte of it came, so far.
    sent: Instant,
    /// How many `+` are to come: one for each `{n}`, one for IDLE.
    expects: u32,
    verb: Verb,
    kind: Kind,
    /// The `+` of IDLE has come, and the command was reported.
    idling: bool,
}

#[derive(Debug)]
enum Tag {
    Short { len: u8, bytes: [u8; 22] },
    Long(Box<[u8]>),
}

#[derive(Default)]
struct Aside {
    client_held: Vec<u8>,
    backend_held: Vec<u8>,
    answers: Vec<u8>,
    /// How many `answers` are.
    refused: usize,
}

impl Default for Follow {
    fn default() -> Self {
        Self::new()
    }
}

impl Follow {
    /// Both directions at a boundary, nothing outstanding: right behind the tagged OK of a login.
    #[must_use]
    pub fn new() -> Self {
        Self {
            client: Client::Start,
            backend: Backend::Start,
            commands: Vec::new(),
            aside: None,
            untracked: 0,
            current: Current::None,
            kind: Kind::Plain,
            client_partial: false,
            backend_partial: false,
            following: true,
            bye: false,
            logout: false,
        }
    }

    /// Appends what was held back of `direction` to the driver's empty `buffer`. Due before every read,
    /// and at the end of the direction.
    pub fn unhold(&mut self, direction: Direction, buffer: &mut Vec<u8>) {
        let Some(aside) = &mut self.aside else { return };
        let held = match direction {
            Direction::ClientToBackend => &mut aside.client_held,
            Direction::BackendToClient => &mut aside.backend_held,
        };
        debug_assert!(held.is_empty() || buffer.is_empty());
        buffer.append(held);
        self.free_aside();
    }

    /// Appends the answers to refused commands, if the backend's bytes stand where they may come between.
    /// `out` goes to the client behind all that [`Follow::backend`] has given so far.
    pub fn take_answers(&mut self, out: &mut Vec<u8>) {
        if !self.following || !self.backend_at_boundary() {
            return;
        }
        if let Some(aside) = &mut self.aside {
            out.append(&mut aside.answers);
            aside.refused = 0;
            self.free_aside();
        }
    }

    /// What the session is doing, for idle limits and for stopping.
    #[must_use]
    pub fn phase(&self) -> Phase {
        let idling = self.commands.last().is_some_and(|command| command.idling);
        if self.client == Client::Idle && self.current == Current::Tracked && idling {
            Phase::Idle
        } else {
            Phase::Active
        }
    }

    /// May an untagged response of our own (`* BYE`) come next? Between commands, or in IDLE.
    #[must_use]
    pub fn may_interrupt(&self) -> bool {
        let quiet = match self.client {
            Client::Start => self.commands.is_empty(),
            Client::Idle => self.commands.len() == 1 && self.phase() == Phase::Idle,
            _ => false,
        };
        let answered = self.aside.as_ref().is_none_or(|aside| aside.refused == 0);
        self.following
            && quiet
            && self.untracked == 0
            && !self.client_partial
            && answered
            && !self.bye
            && self.backend_at_boundary()
    }

    /// If the backend ends now, did it end in order: behind a whole response, with `* BYE` or with nothing
    /// left to answer? False as well when the thread is lost and nobody knows.
    #[must_use]
    pub fn ended_orderly(&self) -> bool {
        let nothing_left = self.commands.is_empty() && self.untracked == 0;
        self.following && self.backend_at_boundary() && (self.bye || nothing_left)
    }

    /// Whether whole commands wait for their answers, and nothing else is under way: then the client may have ended its side
    /// and still want them.
    #[must_use]
    pub fn owes_answers(&self) -> bool {
        let whole = self.client == Client::Start && !self.client_partial;
        self.following && whole && !self.ended_orderly()
    }

    /// The backend said `* BYE`.
    #[must_use]
    pub fn bye_seen(&self) -> bool {
        self.bye
    }

    /// The client has sent a whole `LOGOUT`.
    #[must_use]
    pub fn logout_seen(&self) -> bool {
        self.logout
    }

    /// False, once and for all, when the thread is lost.
    #[must_use]
    pub fn is_following(&self) -> bool {
        self.following
    }
}

impl Follow {
    fn backend_at_boundary(&self) -> bool {
        self.backend == Backend::Start && !self.backend_partial
    }

    /// From here on bytes only pass. An error if a refused command would go unanswered, or half of it pass.
    fn lose(&mut self) -> Result<(), Error> {
        self.following = false;
        self.commands = Vec::new();
        self.untracked = 0;
        let unanswered = self.aside.as_ref().is_some_and(|aside| aside.refused > 0);
        let halfway = matches!(self.client, Client::Refused(_) | Client::RefusedLiteral(_));
        if unanswered || halfway { Err(Error::Unanswered) } else { Ok(()) }
    }

    fn free_aside(&mut self) {
        if self.aside.as_ref().is_some_and(|aside| aside.is_empty()) {
            self.aside = None;
        }
    }
}

impl Aside {
    fn refuse(&mut self, tag: &[u8], refused: Refused) -> Result<(), Error> {
        if self.refused == REFUSED {
            return Err(Error::TooManyRefused);
        }
        self.refused += 1;
        let text: &[u8] = match refused {
            Refused::Compress => b" BAD COMPRESS is not available here\r\n",
            Refused::StartTls => b" BAD TLS is already on\r\n",
            Refused::Unauthenticate => b" BAD UNAUTHENTICATE is not available here\r\n",
        };
        self.answers.extend_from_slice(if tag.is_empty() { b"*" } else { tag });
        self.answers.extend_from_slice(text);
        Ok(())
    }

    fn is_empty(&self) -> bool {
        self.client_held.is_empty() && self.backend_held.is_empty() && self.refused == 0
    }
}

/// Lengths only: what a client sends does not get into a log by this way.
impl fmt::Debug for Aside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Aside")
            .field("client_held", &self.client_held.len())
            .field("backend_held", &self.backend_held.len())
            .field("refused", &self.refused)
            .finish_non_exhaustive()
    }
}

impl Tag {
    fn new(tag: &[u8]) -> Self {
        let mut bytes = [0; 22];
        match bytes.get_mut(..tag.len()) {
            Some(short) => {
                short.copy_from_slice(tag);
                Self::Short { len: u8::try_from(tag.len()).expect("at most 22"), bytes }
            }
            None => Self::Long(tag.into()),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Short { len, bytes } => &bytes[..usize::from(*len)],
            Self::Long(bytes) => bytes,
        }
    }
}

/// How many bytes of `rest` belong to a literal of which `left` are still to come, and how many are left
/// behind them.
fn skip(left: u64, rest: &[u8]) -> (usize, u64) {
    match usize::try_from(left) {
        Ok(few) if few <= rest.len() => (few, 0),
        _ => (rest.len(), left - rest.len() as u64),
    }
}
