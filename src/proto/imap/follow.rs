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

mod head;

mod marker;

#[cfg(test)]
mod tests;

use std::fmt;
use std::time::{Duration, Instant};

use memchr::memchr;

use super::capability::Repair;
pub use head::Verb;
use head::{BackendHead, ClientHead, Order, Refused};
use marker::{Ending, Tail};

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

/// An outstanding command. 56 bytes.
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

    /// `buffer`: what was held, and the client's bytes behind it. On return, what the backend gets.
    ///
    /// # Errors
    ///
    /// The session has to be dropped; what is in `buffer` is of no use.
    pub fn client(&mut self, buffer: &mut Vec<u8>, now: Instant) -> Result<(), Error> {
        let mut at = 0;
        while self.following && at < buffer.len() {
            let rest = &buffer[at..];
            match self.client {
                Client::Literal { left, sync } => {
                    let (skipped, left) = skip(left, rest);
                    at += skipped;
                    self.client = Client::literal(left, sync);
                }
                Client::LiteralWait(size) => self.client = Client::literal(size, true),
                Client::SaslWait => self.client = Client::Sasl,
                Client::Sasl => {
                    let Some(end) = memchr(b'\n', rest) else { return Ok(()) };
                    at += end + 1;
                    self.client = Client::Start;
                }
                Client::Line(mut tail) => {
                    let Some(end) = memchr(b'\n', rest) else {
                        tail.take(rest);
                        self.client = Client::Line(tail);
                        return Ok(());
                    };
                    at += end + 1;
                    self.on_line_end(tail.end(&rest[..end]), now)?;
                }
                Client::Start | Client::Idle => match self.on_client_head(rest, now)? {
                    Some(passed) => at += passed,
                    None => {
                        self.aside.get_or_insert_default().client_held = rest.to_vec();
                        buffer.truncate(at);
                    }
                },
                Client::Refused(mut tail) => {
                    let Some(end) = memchr(b'\n', rest) else {
                        tail.take(rest);
                        self.client = Client::Refused(tail);
                        buffer.truncate(at);
                        return Ok(());
                    };
                    self.client = match tail.end(&rest[..end]) {
                        // Having got its BAD in place of a `+`, the client sends no literal.
                        Ending::Plain | Ending::Literal(_) => Client::Start,
                        Ending::NonSync(size) => Client::refused_literal(size),
                        Ending::Unclear => return Err(Error::RefusedLiteral),
                    };
                    buffer.drain(at..=at + end);
                }
                Client::RefusedLiteral(left) => {
                    let (skipped, left) = skip(left, rest);
                    self.client = Client::refused_literal(left);
                    buffer.drain(at..at + skipped);
                }
            }
        }
        Ok(())
    }

    /// `buffer`: what was held, and the backend's bytes behind it. On return, what the client gets.
    /// `completed` is called for each command that was answered, with the time from its last byte to its
    /// tagged response (IDLE: to its `+`).
    ///
    /// # Errors
    ///
    /// The session has to be dropped; what is in `buffer` may be sent before.
    pub fn backend(
        &mut self,
        buffer: &mut Vec<u8>,
        repair: &Repair,
        now: Instant,
        completed: &mut impl FnMut(Verb, Duration),
    ) -> Result<(), Error> {
        let mut at = 0;
        while self.following && at < buffer.len() {
            let rest = &buffer[at..];
            match self.backend {
                Backend::Literal(left) => {
                    let (skipped, left) = skip(left, rest);
                    at += skipped;
                    self.backend = Backend::literal(left);
                }
                Backend::Line(mut tail) => {
                    let Some(end) = memchr(b'\n', rest) else {
                        tail.take(rest);
                        self.backend = Backend::Line(tail);
                        return Ok(());
                    };
                    at += end + 1;
                    match tail.end(&rest[..end]) {
                        Ending::Plain => self.backend = Backend::Start,
                        Ending::Literal(size) => self.backend = Backend::literal(size),
                        Ending::NonSync(_) | Ending::Unclear => self.lose()?,
                    }
                }
                Backend::Text => {
                    let Some(end) = memchr(b'\n', rest) else { return Ok(()) };
                    at += end + 1;
                    self.backend = Backend::Start;
                }
                // Most of what a busy session gets: `* 12 FETCH …`, `* 12 EXISTS`.
                Backend::Start if matches!(rest, [b'*', b' ', b'0'..=b'9', ..]) => {
                    self.backend = Backend::Line(Tail::default());
                }
                Backend::Start => self.on_backend_head(buffer, at, repair, now, completed)?,
            }
        }
        Ok(())
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
        let nothing_waits = self
            .aside
            .as_ref()
            .is_none_or(|aside| aside.client_held.is_empty() && aside.answers.is_empty());
        self.following
            && quiet
            && self.untracked == 0
            && nothing_waits
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

/// The client's direction.
impl Follow {
    /// At a boundary. How many bytes are done with (a command's line is then left to [`Client::Line`]),
    /// or `None`: more is needed to tell, hold `rest`.
    fn on_client_head(&mut self, rest: &[u8], now: Instant) -> Result<Option<usize>, Error> {
        let end = memchr(b'\n', &rest[..rest.len().min(head::CLIENT_HEAD)]);
        let line = &rest[..end.unwrap_or(rest.len())];
        let passed = line.len() + 1; // where the line is whole
        match (self.client, head::client(line, end.is_some())) {
            (_, ClientHead::Undecided) => Ok(None),
            (Client::Idle, ClientHead::Done) => {
                self.client = Client::Start;
                self.current = Current::None;
                Ok(Some(passed))
            }
            // Some servers end IDLE and drop the line, others would run it.
            (Client::Idle, _) | (_, ClientHead::Unclear) => self.lose().map(|()| Some(0)),
            // A late `DONE` crosses with the end of its IDLE; nobody need answer it.
            (_, ClientHead::Blank | ClientHead::Done) => Ok(Some(passed)),
            (_, ClientHead::Command { tag, order }) => {
                self.begin(tag, order, now)?;
                Ok(Some(0))
            }
        }
    }

    fn begin(&mut self, tag: &[u8], order: Order, now: Instant) -> Result<(), Error> {
        let (verb, kind) = match order {
            Order::Run(Verb::Idle) if !tag.is_empty() => (Verb::Idle, Kind::Idle),
            Order::Run(Verb::Logout) => (Verb::Logout, Kind::Logout),
            Order::Run(verb) => (verb, Kind::Plain),
            Order::Authenticate => (Verb::Other, Kind::Sasl),
            Order::Refuse(refused) => {
                self.client = Client::Refused(Tail::default());
                self.current = Current::None;
                return self.aside.get_or_insert_default().refuse(tag, refused);
            }
        };
        self.client = Client::Line(Tail::default());
        self.kind = kind;
        self.current = if tag.is_empty() {
            Current::Tagless
        } else if self.commands.len() < COMMANDS {
            if self.commands.is_empty() {
                self.commands.reserve_exact(1); // most sessions have one at a time, IDLE for hours
            }
            let tag = Tag::new(tag);
            self.commands.push(Command { tag, sent: now, expects: 0, verb, kind, idling: false });
            Current::Tracked
        } else {
            self.untracked = self.untracked.saturating_add(1);
            Current::Untracked
        };
        Ok(())
    }

    /// The last of `commands`, if that is the current one.
    fn current(&mut self) -> Option<&mut Command> {
        if self.current == Current::Tracked { self.commands.last_mut() } else { None }
    }

    fn on_line_end(&mut self, ending: Ending, now: Instant) -> Result<(), Error> {
        match ending {
            Ending::Plain => self.on_command_end(now),
            // Neither end can know what the other makes of it.
            Ending::Unclear => return self.lose(),
            _ if self.current == Current::Tagless => return self.lose(),
            // It was answered, so nobody will ask for the literal.
            Ending::Literal(_) if self.current == Current::Answered => return self.lose(),
            Ending::Literal(size) => {
                self.client = Client::LiteralWait(size);
                self.on_literal(1, now);
            }
            Ending::NonSync(size) => {
                self.client = Client::literal(size, false);
                self.on_literal(0, now);
            }
        }
        Ok(())
    }

    /// The current command goes on with a literal, and gets `expects` more `+`.
    fn on_literal(&mut self, expects: u32, now: Instant) {
        // `IDLE {5}` is a mistake, and will be answered as one.
        self.kind = if self.kind == Kind::Idle { Kind::Plain } else { self.kind };
        let kind = self.kind;
        if let Some(command) = self.current() {
            command.kind = kind;
            command.expects = command.expects.saturating_add(expects);
            command.sent = now;
        }
    }

    fn on_command_end(&mut self, now: Instant) {
        let kind = if self.current == Current::Answered { Kind::Plain } else { self.kind };
        if let Some(command) = self.current() {
            command.sent = now;
            command.expects += u32::from(kind == Kind::Idle);
        }
        self.client = if kind == Kind::Idle { Client::Idle } else { Client::Start };
        self.logout |= kind == Kind::Logout;
        if !matches!(kind, Kind::Idle | Kind::Sasl) {
            self.current = Current::None;
        }
    }
}

/// The backend's direction.
impl Follow {
    /// At a boundary. Holds the line while it may be a capability list; else leaves it to
    /// [`Backend::Line`] or [`Backend::Text`], repaired.
    fn on_backend_head(
        &mut self,
        buffer: &mut Vec<u8>,
        at: usize,
        repair: &Repair,
        now: Instant,
        completed: &mut impl FnMut(Verb, Duration),
    ) -> Result<(), Error> {
        let rest = &buffer[at..];
        let end = memchr(b'\n', &rest[..rest.len().min(HELD + 1)]);
        let line = &rest[..end.unwrap_or(rest.len())];
        let head = head::backend(line, end.is_some());
        let list = match head {
            BackendHead::Capability => true,
            BackendHead::Tagged { list, .. }
            | BackendHead::Bye { list }
            | BackendHead::Status { list } => list,
            BackendHead::Undecided => true,
            BackendHead::Continuation | BackendHead::Data => false,
        };
        if list && end.is_none() && line.len() <= HELD {
            self.aside.get_or_insert_default().backend_held = rest.to_vec();
            buffer.truncate(at);
            return Ok(());
        }
        self.backend = match head {
            BackendHead::Data => Backend::Line(Tail::default()),
            _ => Backend::Text,
        };
        match head {
            BackendHead::Continuation => self.on_continuation(now, completed),
            BackendHead::Tagged { tag, .. } => self.on_tagged(&line[..tag], now, completed)?,
            BackendHead::Bye { .. } => self.bye = true,
            _ => {}
        }
        if list && end.is_some() {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if let Some(new) = repair.line(line) {
                let old = at..at + line.len();
                buffer.splice(old, new);
            }
        }
        Ok(())
    }

    /// A `+` is for the oldest command that waits for one.
    fn on_continuation(&mut self, now: Instant, completed: &mut impl FnMut(Verb, Duration)) {
        let waits = |command: &Command| command.expects > 0 || command.kind == Kind::Sasl;
        let Some(index) = self.commands.iter().position(waits) else { return };
        let current = self.current == Current::Tracked && index + 1 == self.commands.len();
        let command = &mut self.commands[index];
        if command.expects > 0 {
            command.expects -= 1;
            if command.kind == Kind::Idle {
                command.idling = true;
                completed(command.verb, now.saturating_duration_since(command.sent));
            }
        } else if current && self.client == Client::Start {
            self.client = Client::SaslWait;
        }
    }

    fn on_tagged(
        &mut self,
        tag: &[u8],
        now: Instant,
        completed: &mut impl FnMut(Verb, Duration),
    ) -> Result<(), Error> {
        // Tags may be reused (RFC 9051 §2.2.1): the oldest is meant.
        let Some(index) = self.commands.iter().position(|command| command.tag.bytes() == tag)
        else {
            return self.on_unknown_tag();
        };
        let current = self.current == Current::Tracked && index + 1 == self.commands.len();
        let command = self.commands.remove(index);
        if self.commands.is_empty() {
            self.commands = Vec::new();
        }
        if !command.idling {
            completed(command.verb, now.saturating_duration_since(command.sent));
        }
        // A literal was not asked for. That is fine where none of it was sent; where the client did not
        // wait, the backend took its bytes for something else.
        let refused = current && matches!(self.client, Client::LiteralWait(_));
        if command.kind != Kind::Idle && command.expects != u32::from(refused) {
            return self.lose();
        }
        if !current {
            return Ok(());
        }
        (self.client, self.current) = match self.client {
            Client::LiteralWait(_) | Client::Idle | Client::SaslWait | Client::Start => {
                (Client::Start, Current::None)
            }
            // RFC 7888 §4: the backend still reads what it was promised.
            unfinished @ (Client::Line(_) | Client::Literal { .. }) => {
                (unfinished, Current::Answered)
            }
            Client::Sasl | Client::Refused(_) | Client::RefusedLiteral(_) => return self.lose(),
        };
        Ok(())
    }

    /// One of those that were only counted, or nobody's.
    fn on_unknown_tag(&mut self) -> Result<(), Error> {
        if self.untracked == 0 {
            return Ok(());
        }
        self.untracked -= 1;
        // Was it the current one? Where that decides what the next byte is, nobody knows.
        let matters = match self.client {
            Client::LiteralWait(_) | Client::Idle | Client::SaslWait => true,
            Client::Literal { sync, .. } => sync,
            _ => false,
        };
        if self.current == Current::Untracked && matters { self.lose() } else { Ok(()) }
    }
}

impl Follow {
    fn backend_at_boundary(&self) -> bool {
        let held = self.aside.as_ref().is_some_and(|aside| !aside.backend_held.is_empty());
        self.backend == Backend::Start && !held
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

impl Client {
    fn literal(left: u64, sync: bool) -> Self {
        if left == 0 { Self::Line(Tail::default()) } else { Self::Literal { left, sync } }
    }

    fn refused_literal(left: u64) -> Self {
        if left == 0 { Self::Refused(Tail::default()) } else { Self::RefusedLiteral(left) }
    }
}

impl Backend {
    fn literal(left: u64) -> Self {
        if left == 0 { Self::Line(Tail::default()) } else { Self::Literal(left) }
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
