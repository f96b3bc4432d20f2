//! The backend's direction: which response is whose, and capability lists repaired.
//!
//! In: the backend's bytes, and `now`. Out: the same with repaired lists, in place; each completed command
//! with its time. Invariant: at [`Backend::Start`] the next byte is the first of a response. Not here: what
//! the head of a line says (`head`), and what a list may say (`capability`).

use std::time::{Duration, Instant};

use memchr::memchr;

use super::head::{self, BackendHead, Verb};
use super::{Backend, Client, Command, Current, Error, Follow, HELD, Kind, skip};
use crate::proto::imap::capability::Repair;
use crate::proto::imap::marker::{Ending, Tail};

impl Follow {
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
        self.backend_partial &= buffer.is_empty();
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
            self.backend_partial = true;
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

impl Backend {
    fn literal(left: u64) -> Self {
        if left == 0 { Self::Line(Tail::default()) } else { Self::Literal(left) }
    }
}
