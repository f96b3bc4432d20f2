//! The client's direction: where commands begin and end, and which of them do not pass.
//!
//! In: the client's bytes, and `now`. Out: the same without refused commands, in place; the outstanding
//! commands, for `backend` to complete. Invariant: at [`Client::Start`] and [`Client::Idle`] the next byte
//! is the first of a line. Not here: what the head of a line says (`head`).

use std::time::Instant;

use memchr::memchr;

use super::head::{self, ClientHead, Order, Verb};
use super::{COMMANDS, Client, Command, Current, Error, Follow, Kind, Tag, skip};
use crate::proto::imap::marker::{Ending, Tail};

impl Follow {
    /// `buffer`: what was held, and the client's bytes behind it. On return, what the backend gets.
    ///
    /// # Errors
    ///
    /// The session has to be dropped; what is in `buffer` is of no use.
    pub fn client(&mut self, buffer: &mut Vec<u8>, now: Instant) -> Result<(), Error> {
        self.client_partial &= buffer.is_empty();
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
                        self.client_partial = true;
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

impl Client {
    fn literal(left: u64, sync: bool) -> Self {
        if left == 0 { Self::Line(Tail::default()) } else { Self::Literal { left, sync } }
    }

    fn refused_literal(left: u64) -> Self {
        if left == 0 { Self::Refused(Tail::default()) } else { Self::RefusedLiteral(left) }
    }
}
