//! What a client may say before login, and our answers.
//!
//! In: the client's bytes as they come. Out: answers, and [`Next`]: more bytes are needed, a whole LOGIN or
//! AUTHENTICATE is in hand, TLS begins, or the session has to end. The commands are CAPABILITY, NOOP, ID, LOGOUT, LOGIN
//! and AUTHENTICATE (RFC 9051 §6.1, §6.2); everything else is `BAD`, STARTTLS too once TLS is on
//! (RFC 9051 §6.2.1). What the client pipelined behind a login stays in the input: only the login's result
//! tells whether it is the next command or the first bytes of the relay.
//!
//! [Before TLS](Dialogue::before_tls) there is STARTTLS and no login: LOGIN and AUTHENTICATE are `NO
//! [PRIVACYREQUIRED]` (RFC 9051 §11.7), counted as bad, and nobody looks at what they hold. A synchronising literal is
//! refused before it is sent. **Invariant:** nothing that came before TLS is there after it: the dialogue ends with
//! STARTTLS, a new one begins, and what was sent together with STARTTLS ends the session (CVE-2011-0411).
//!
//! An ID never costs the session: a wrong one is `BAD` and no bad command, and of one that is too
//! long nothing is kept. A client that sends more than [`MAX_PASSED`] bytes of such IDs has to leave.
//!
//! Limits: [`MAX_BAD`] bad commands in a row, [`MAX_COMMANDS`] in all, [`MAX_BYTES`] in all, and the sizes
//! of [`super::line`]. The deadline is the driver's.
//! Not here: the exchange with the backend ([`super::login`]).

use super::command::{self, Command, Form, Verb};
use super::id;
use super::line::{self, Limits, Scan, Scanner};
use super::sasl;
use super::secret::{Input, Secret};

/// Bad commands in a row that end the session, as with Dovecot.
pub const MAX_BAD: u8 = 3;
/// Commands that a client may use before it is logged in. Real ones need fewer than ten.
pub const MAX_COMMANDS: u8 = 20;
/// Bytes that a client may spend on other commands than AUTHENTICATE and ID, which have limits of
/// their own.
pub const MAX_BYTES: usize = 64 * 1024;
/// Bytes of IDs that are too long.
pub const MAX_PASSED: usize = 1024 * 1024;

/// A whole login, ready for the backend.
#[derive(Debug)]
pub struct Login {
    /// The client's tag, under which it gets its answer.
    pub tag: Vec<u8>,
    pub method: Method,
}

#[derive(Debug)]
pub enum Method {
    /// The octets that LOGIN's two strings mean (RFC 9051 §6.2.3), and how the client wrote them.
    Login { user: Vec<u8>, password: Secret, forms: [Form; 2] },
    /// The mechanism's name in upper case and the initial response in base64 (RFC 4959), `=` if empty.
    Authenticate { mechanism: String, initial: Option<Secret> },
}

/// What the driver does when the input is used up as far as it goes.
#[derive(Debug)]
pub enum Next {
    /// Send the answers, read more.
    More,
    /// Send the answers, log in at the backend, then say how it went by [`Dialogue::on_outcome`].
    LogIn(Login),
    /// Send the answers, then nothing but TLS. Nothing is left in the input.
    StartTls,
    /// Send the answers, which end in the reason for people, and close.
    Close(End),
}

/// Why the dialogue ends a session.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum End {
    Logout,
    TooManyBadCommands,
    TooManyCommands,
    TooLong,
    ProtocolViolation,
    /// Something was sent together with STARTTLS.
    PlaintextAfterStarttls,
}

/// The dialogue with one client. Silent, it holds a few words and, if the client sent one, its ID.
#[derive(Debug)]
pub struct Dialogue {
    before_tls: bool,
    limits: Limits,
    scanner: Scanner,
    bad_in_a_row: u8,
    commands: u8,
    bytes: usize,
    passed: usize,
    id: id::Fields,
    refused: Vec<Refused>,
}

/// A command that was not carried out, for log and metric. Nothing of it is the client's own words.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Refused {
    /// `None`: it has no tag that can be answered.
    pub verb: Option<Verb>,
    /// The command's name, where that is a known one.
    pub name: Option<&'static str>,
    /// What it was answered.
    pub answer: &'static str,
}

impl Dialogue {
    /// Inside TLS.
    pub fn new(limits: Limits) -> Self {
        Self {
            before_tls: false,
            limits,
            scanner: Scanner::default(),
            bad_in_a_row: 0,
            commands: 0,
            bytes: 0,
            passed: 0,
            id: id::Fields::default(),
            refused: Vec::new(),
        }
    }

    /// In plaintext, on a port for STARTTLS.
    pub fn before_tls(limits: Limits) -> Self {
        Self { before_tls: true, ..Self::new(limits) }
    }

    /// What the client told of itself that may go on to the backend.
    pub fn id(&self) -> &id::Fields {
        &self.id
    }

    /// The commands that were refused since this was last asked.
    pub fn take_refused(&mut self) -> Vec<Refused> {
        std::mem::take(&mut self.refused)
    }

    /// Answers every whole command in `input`, up to a login. `capabilities`: the words that CAPABILITY shows.
    pub fn advance(&mut self, input: &mut Input, capabilities: &[u8], out: &mut Vec<u8>) -> Next {
        loop {
            let length = match self.scanner.scan(input.bytes(), &self.limits) {
                Ok(Scan::More) => return Next::More,
                Ok(Scan::Continue(length)) if self.is_login(&input.bytes()[..length]) => {
                    match self.refuse_literal(length, PRIVACY, input, out) {
                        Some(end) => return Next::Close(end),
                        None => continue,
                    }
                }
                Ok(Scan::Continue(_)) => {
                    out.extend_from_slice(b"+ OK\r\n");
                    continue;
                }
                Ok(Scan::Whole(length)) => length,
                Ok(Scan::Excess) => {
                    let command = Command::parse(input.bytes());
                    match self.count(0, out).or_else(|| self.refuse(command, ID, out)) {
                        Some(end) => return Next::Close(end),
                        None => continue,
                    }
                }
                Ok(Scan::Passed(length)) => {
                    input.consume(length);
                    self.passed += length;
                    if self.passed <= MAX_PASSED {
                        continue;
                    }
                    out.extend_from_slice(b"* BYE [TOOBIG] ID too long.\r\n");
                    return Next::Close(End::TooLong);
                }
                Err(line::Error::LiteralTooBig { waits: true, skip, .. }) => {
                    let login = self.is_login(&input.bytes()[..skip]);
                    let text = if login { PRIVACY } else { "NO [TOOBIG] Literal too long." };
                    match self.refuse_literal(skip, text, input, out) {
                        Some(end) => return Next::Close(end),
                        None => continue,
                    }
                }
                Err(line::Error::LiteralTooBig { .. }) => {
                    out.extend_from_slice(b"* BYE [TOOBIG] Literal too long.\r\n");
                    return Next::Close(End::TooLong);
                }
                Err(line::Error::TooLong { .. }) => {
                    out.extend_from_slice(b"* BYE [TOOBIG] Line too long.\r\n");
                    return Next::Close(End::TooLong);
                }
                Err(line::Error::Literal) => {
                    out.extend_from_slice(b"* BYE A literal may not stand there.\r\n");
                    return Next::Close(End::ProtocolViolation);
                }
            };
            let said = out.len();
            let answered = self.answer(&input.bytes()[..length], capabilities, out);
            input.consume(length);
            match answered {
                Answered::Fine => self.bad_in_a_row = 0,
                Answered::Refused => {}
                Answered::LogIn(login) => return Next::LogIn(login),
                Answered::StartTls if input.bytes().is_empty() => return Next::StartTls,
                Answered::StartTls => {
                    out.truncate(said);
                    out.extend_from_slice(b"* BYE Nothing may follow STARTTLS but TLS.\r\n");
                    return Next::Close(End::PlaintextAfterStarttls);
                }
                Answered::Close(end) => return Next::Close(end),
            }
        }
    }

    /// A login that has to wait for TLS; LOGIN is the only one with literals.
    fn is_login(&self, command: &[u8]) -> bool {
        self.before_tls && matches!(Command::parse(command), Ok(Command { verb: Verb::Login, .. }))
    }

    /// Answers a command at its literal, which the client has not sent and now will not.
    fn refuse_literal(
        &mut self,
        length: usize,
        text: &'static str,
        input: &mut Input,
        out: &mut Vec<u8>,
    ) -> Option<End> {
        let command = Command::parse(&input.bytes()[..length]);
        let id = matches!(command, Ok(Command { verb: Verb::Id, .. }));
        let counted = self.count(if id { 0 } else { length }, out);
        let end = counted.or_else(|| self.refuse(command, text, out));
        input.consume(length);
        self.scanner = Scanner::default();
        end
    }

    /// How the login went: a refused one is a command like others, an aborted one counts as bad. `Some`:
    /// that was one too many.
    pub fn on_outcome(&mut self, aborted: bool, out: &mut Vec<u8>) -> Option<End> {
        if aborted {
            return self.count_bad(out);
        }
        self.bad_in_a_row = 0;
        None
    }

    fn answer(&mut self, bytes: &[u8], capabilities: &[u8], out: &mut Vec<u8>) -> Answered {
        let command = Command::parse(bytes);
        let has_own_limit =
            matches!(command, Ok(Command { verb: Verb::Authenticate | Verb::Id, .. }));
        if let Some(end) = self.count(if has_own_limit { 0 } else { bytes.len() }, out) {
            return Answered::Close(end);
        }
        let refusal = match command {
            Ok(Command { verb: Verb::Other, .. }) if is_http(bytes) => {
                out.extend_from_slice(b"* BYE This is IMAP, not HTTP.\r\n");
                return Answered::Close(End::ProtocolViolation);
            }
            Ok(command) => match self.execute(&command, capabilities, out) {
                Ok(answered) => return answered,
                Err(refusal) => self.refusal(command.verb, refusal),
            },
            Err(_) => "BAD A command begins with a tag.",
        };
        match self.refuse(command, refusal, out) {
            Some(end) => Answered::Close(end),
            None => Answered::Refused,
        }
    }

    fn execute(
        &mut self,
        command: &Command<'_>,
        capabilities: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Answered, Refusal> {
        let tag = command.tag;
        match command.verb {
            Verb::Capability => {
                command.no_arguments()?;
                out.extend_from_slice(b"* CAPABILITY ");
                out.extend_from_slice(capabilities);
                out.extend_from_slice(b"\r\n");
                answer(out, tag, "OK CAPABILITY completed.");
            }
            Verb::Noop => {
                command.no_arguments()?;
                answer(out, tag, "OK NOOP completed.");
            }
            Verb::Id => {
                self.id = id::Fields::parse(command.arguments)?;
                out.extend_from_slice(id::OURS);
                answer(out, tag, "OK ID completed.");
            }
            Verb::Logout => {
                command.no_arguments()?;
                out.extend_from_slice(b"* BYE Logging out.\r\n");
                answer(out, tag, "OK LOGOUT completed.");
                return Ok(Answered::Close(End::Logout));
            }
            Verb::Login | Verb::Authenticate if self.before_tls => {
                return Err(Refusal::Privacy);
            }
            Verb::StartTls if self.before_tls => {
                command.no_arguments()?;
                answer(out, tag, "OK Begin TLS now.");
                return Ok(Answered::StartTls);
            }
            Verb::Login => {
                let (user, password, forms) = command.login()?;
                let method = Method::Login { user, password, forms };
                return Ok(Answered::LogIn(Login { tag: tag.to_vec(), method }));
            }
            Verb::Authenticate => {
                let (mechanism, initial) = command.authenticate()?;
                let initial = match initial {
                    None => None,
                    // Checked here, so that no backend ever sees what is not base64.
                    Some(text)
                        if text.len() <= self.limits.sasl
                            && sasl::decode_initial(text).is_some() =>
                    {
                        Some(Secret::new(text.to_vec()))
                    }
                    Some(_) => return Err(command::Error::Arguments.into()),
                };
                let method = Method::Authenticate { mechanism, initial };
                return Ok(Answered::LogIn(Login { tag: tag.to_vec(), method }));
            }
            Verb::StartTls | Verb::Other => return Err(command::Error::Arguments.into()),
        }
        Ok(Answered::Fine)
    }

    /// Fixed texts: nothing that a client sent comes back but its tag.
    fn refusal(&self, verb: Verb, refusal: Refusal) -> &'static str {
        match (verb, refusal) {
            (_, Refusal::Privacy) => PRIVACY,
            (_, Refusal::Command(command::Error::Control)) => {
                "BAD A line may hold neither NUL nor a bare CR."
            }
            (Verb::StartTls, _) if !self.before_tls => "BAD TLS is already on.",
            (Verb::Other, _) => "BAD Unknown command before login.",
            (Verb::Login, _) => "BAD LOGIN takes a user name and a password.",
            (Verb::Authenticate, _) => "BAD AUTHENTICATE takes a mechanism and base64.",
            (Verb::Id, _) => ID,
            _ => "BAD The command takes no arguments.",
        }
    }

    /// Answers a command that is not carried out. It counts as bad, unless it is an ID.
    fn refuse(
        &mut self,
        command: Result<Command<'_>, command::Error>,
        text: &'static str,
        out: &mut Vec<u8>,
    ) -> Option<End> {
        let command = command.ok();
        answer(out, command.map_or(b"*", |command| command.tag), text);
        let verb = command.map(|command| command.verb);
        let name = command.and_then(|command| command.known());
        self.refused.push(Refused { verb, name, answer: text });
        if verb == Some(Verb::Id) { None } else { self.count_bad(out) }
    }

    /// Counts one command of `bytes`, good or bad.
    fn count(&mut self, bytes: usize, out: &mut Vec<u8>) -> Option<End> {
        self.commands += 1;
        self.bytes += bytes;
        if self.commands <= MAX_COMMANDS && self.bytes <= MAX_BYTES {
            return None;
        }
        out.extend_from_slice(b"* BYE Too many commands before login.\r\n");
        Some(End::TooManyCommands)
    }

    fn count_bad(&mut self, out: &mut Vec<u8>) -> Option<End> {
        self.bad_in_a_row += 1;
        if self.bad_in_a_row < MAX_BAD {
            return None;
        }
        out.extend_from_slice(b"* BYE Too many bad commands.\r\n");
        Some(End::TooManyBadCommands)
    }
}

enum Answered {
    Fine,
    /// It was not carried out, and the client may go on.
    Refused,
    LogIn(Login),
    StartTls,
    Close(End),
}

/// Why a command is not carried out.
enum Refusal {
    Command(command::Error),
    /// It would log in before TLS.
    Privacy,
}

impl From<command::Error> for Refusal {
    fn from(error: command::Error) -> Self {
        Self::Command(error)
    }
}

const PRIVACY: &str = "NO [PRIVACYREQUIRED] Use STARTTLS before you log in.";
const ID: &str = "BAD ID takes NIL or up to 30 pairs, keys of 30 and values of 1024 bytes.";

/// A browser that was led here speaks HTTP. Its headers would be answered under their own names,
/// which are tags, and an attacker could write a page with them. So the request line is the last
/// line that is read.
fn is_http(line: &[u8]) -> bool {
    let line = line.trim_ascii_end();
    line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0")
}

pub fn answer(out: &mut Vec<u8>, tag: &[u8], text: &str) {
    out.extend_from_slice(tag);
    out.push(b' ');
    out.extend_from_slice(text.as_bytes());
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests;
