//! The exchange with the backend that logs one client in.
//!
//! In: a whole [`Login`], then the backend's bytes and, within AUTHENTICATE, the client's. Out: bytes for
//! either side and [`Step`]: whom to listen to next, or how it ended. The client is answered under its
//! own tag; the backend sees only ours, which nobody can guess, so no text can be taken for the result.
//!
//! What every server would say alike is said [here](Exchange::open) before there is one ([`sasl::prompts`]): a client
//! that says AUTHENTICATE and falls silent, or cancels, costs no server anything. Nor does a login that the
//! capabilities [rule out](ruled_out).
//!
//! ```text
//!   open: Opening ⇄ line ──▶ start
//!           └─`*`─▶ Done
//!
//!   start ──ID──▶ Id ──tagged──▶ ┐
//!     └──────────────────────────┴▶ LOGIN: Verdict ◀─`+`, next literal ─┐
//!                                │        ├───────────────────────────────┘
//!                                │        └─tagged─▶ Done
//!                                └▶ AUTHENTICATE: Challenge ─`+`─▶ Answer ─line─▶ Challenge
//!                                         │                          └─`*`─▶ Cancelled ─tagged─▶ Done
//!                                         └─tagged─▶ Done
//! ```
//!
//! LOGIN is written anew in the form that the backend can read. What the client wrote as a literal
//! stays one, since old servers do not unescape a quoted string; the rest is quoted where every
//! server reads that. A literal waits for `+` unless the backend offers LITERAL+ or LITERAL- (RFC
//! 7888). AUTHENTICATE passes line by line. What the client said before the backend was there
//! answers its first `+`; so does an initial response that it can't take on the command's line (no
//! SASL-IR, RFC 4959).
//! What a NO, a BAD or a BYE means is for `refusal` to say. Behind a BYE the result is waited for,
//! since it says more. Alerts pass, whatever comes of the login.
//! Limits: [`MAX_ROUNDS`] messages of the client, [`line::Limits::sasl`] bytes each, [`MAX_RESPONSES`] bytes
//! more from the backend. Deadlines are the driver's.

use super::capability::{self, Repair};
use super::command::Form;
use super::dialogue::{End, Login, Method, answer};
use super::id;
use super::line;
use super::refusal::{self, Meaning, Refusal};
use super::response::{self, Kind, Response};
use super::sasl::{self, Mechanism};
use super::secret::{Input, Secret};

/// Messages of the client within one AUTHENTICATE. SCRAM needs two, GSSAPI three.
pub const MAX_ROUNDS: usize = 8;
/// Bytes that a backend may say before its tagged result, SASL messages apart.
pub const MAX_RESPONSES: usize = 64 * 1024;

/// Alerts that a client is shown of a login that fails.
const MAX_ALERTS: usize = 8;

/// Bytes of credentials and ID that every backend reads; Dovecot closes the connection at some more
/// than this.
const LONG: usize = 1000;

/// What happens next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Step {
    /// Flush both sides, then give [`Exchange::on_backend`] more of the backend's bytes.
    Backend,
    /// Flush both sides, then give [`Exchange::on_client`] more of the client's bytes.
    Client,
    /// The client's answer is in its buffer.
    Done(Outcome),
    /// The client's buffer ends in the reason for people; close.
    Close(End),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// The backend said OK; what it sent behind that is the relay's.
    LoggedIn,
    /// It said NO or BAD, and nothing that would make it one of the following.
    Rejected,
    /// The client cancelled, or sent what can't be passed on.
    Aborted,
    /// It offers no such login: it was not asked, or said so.
    RuledOut,
    /// The backend could not decide: it said so, or something that is no answer.
    Unavailable(&'static str),
    /// It gave no result in time.
    Late,
    /// It did not decide on this login, which says nothing of others.
    Undecided(&'static str),
}

/// Why no more comes from the backend.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Lost {
    Closed,
    /// The driver's deadline is over.
    Late,
}

/// What the chosen backend can read, from its capabilities.
#[derive(Clone, Copy, Debug, Default)]
pub struct Dialect {
    pub id: bool,
    pub sasl_ir: bool,
    /// The longest literal that may be sent without waiting for `+`; 0: every literal has to wait.
    pub non_synchronising: usize,
}

impl Dialect {
    /// From the words of a capability list as the backend shows it.
    pub fn of(list: &[u8]) -> Self {
        let has = |word: &[u8]| capability::has(list, word);
        let non_synchronising = match (has(b"LITERAL+"), has(b"LITERAL-")) {
            (true, _) => usize::MAX,
            (false, true) => 4096, // RFC 7888 §5
            (false, false) => 0,
        };
        Self { id: has(b"ID"), sasl_ir: has(b"SASL-IR"), non_synchronising }
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Opening,
    Id,
    Verdict,
    Challenge,
    Answer,
    Cancelled,
}

/// One login under way.
pub struct Exchange<'a> {
    login: &'a Login,
    repair: &'a Repair,
    dialect: Dialect,
    limits: line::Limits,
    /// Letters and digits, not to be guessed.
    tag: &'a [u8],
    mechanism: Mechanism,
    state: State,
    /// What is still to be said in the place of a backend.
    prompts: &'static [&'static str],
    /// What still has to be said when the backend says `+`: LOGIN's literals, messages of the client.
    unsaid: std::collections::VecDeque<Secret>,
    /// Untagged responses, which only a client that gets logged in sees.
    untagged: Vec<u8>,
    /// Those of them that every client has to see (RFC 9051 §7.1), and how many.
    alerts: Vec<u8>,
    alerted: usize,
    /// The backend said BYE, with this text. Its result may still come.
    bye: Option<Vec<u8>>,
    scanner: response::Scanner,
    responses: usize,
    rounds: usize,
    /// Bytes of the client's, credentials and ID, that the backend gets.
    said: usize,
    user: Option<Vec<u8>>,
    /// Whose mail the client wants, if that was said.
    authorization: Option<Vec<u8>>,
}

impl<'a> Exchange<'a> {
    pub fn new(login: &'a Login, repair: &'a Repair, limits: line::Limits, tag: &'a [u8]) -> Self {
        let (mechanism, initial) = match &login.method {
            Method::Login { .. } => (Mechanism::Login, None),
            Method::Authenticate { mechanism, initial } => {
                let initial = initial.as_ref().and_then(|text| sasl::decode_initial(text.expose()));
                (Mechanism::of(mechanism), initial)
            }
        };
        let (user, prompts, rounds) = match &login.method {
            Method::Login { user, .. } => (Some(user.clone()), &[][..], 0),
            Method::Authenticate { mechanism, initial } => {
                let (prompts, rounds) = (sasl::prompts(mechanism), usize::from(initial.is_some()));
                (None, prompts.get(rounds..).unwrap_or_default(), rounds)
            }
        };
        let mut exchange = Self {
            login,
            repair,
            dialect: Dialect::default(),
            limits,
            tag,
            mechanism,
            state: State::Opening,
            prompts,
            unsaid: std::collections::VecDeque::new(),
            untagged: Vec::new(),
            alerts: Vec::new(),
            alerted: 0,
            bye: None,
            scanner: response::Scanner::default(),
            responses: 0,
            rounds,
            said: match &login.method {
                Method::Login { user, password, .. } => user.len() + password.expose().len(),
                Method::Authenticate { initial, .. } => {
                    initial.as_ref().map_or(0, |text| text.expose().len())
                }
            },
            user,
            authorization: None,
        };
        if let Some(message) = initial {
            exchange.read_names(0, message.expose());
        }
        exchange
    }

    /// Looks for names in the client's message number `round`.
    fn read_names(&mut self, round: usize, message: &[u8]) {
        let mechanism = self.mechanism;
        self.user = self.user.take().or_else(|| mechanism.user(round, message));
        self.authorization =
            self.authorization.take().or_else(|| mechanism.authorization(round, message));
    }

    pub fn mechanism(&self) -> Mechanism {
        self.mechanism
    }

    /// Who wants to log in, as far as it was said in clear.
    pub fn user(&self) -> Option<&[u8]> {
        self.user.as_deref()
    }

    /// Whose mail that user wants, if it is another one's and was said in clear.
    pub fn authorization(&self) -> Option<&[u8]> {
        self.authorization.as_deref().filter(|name| Some(*name) != self.user())
    }

    /// Whether the client has said more than [`LONG`], so that a backend that broke off may have done so for that.
    pub fn is_long(&self) -> bool {
        self.said > LONG
    }

    /// Before a backend is dialled. [`Step::Backend`]: that is due now, and then [`Exchange::start`].
    pub fn open(&mut self, to_client: &mut Vec<u8>) -> Step {
        let Some((prompt, rest)) = self.prompts.split_first() else { return Step::Backend };
        self.prompts = rest;
        for part in ["+ ", prompt, "\r\n"] {
            to_client.extend_from_slice(part.as_bytes());
        }
        Step::Client
    }

    /// The backend was told of the client before, and with it `id`, what the client tells of
    /// itself.
    pub fn on_introduced(&mut self, id: &id::Fields) {
        self.said += id.size();
    }

    /// Whether the backend said BYE: if its result does not come with that, it does not come.
    pub fn is_ending(&self) -> bool {
        self.bye.is_some()
    }

    /// After the greeting of a backend that reads `dialect`; `id` is what the client told of itself.
    /// `alerts`: the responses to be shown of what the backend has said so far.
    pub fn start(
        &mut self,
        dialect: Dialect,
        id: &id::Fields,
        alerts: Vec<u8>,
        to_backend: &mut Vec<u8>,
    ) -> Step {
        self.dialect = dialect;
        self.untagged.clone_from(&alerts);
        self.alerts = alerts;
        if dialect.id && !id.is_empty() {
            self.state = State::Id;
            id.write(self.tag, to_backend);
            self.said += id.size();
        } else {
            self.log_in(to_backend);
        }
        Step::Backend
    }

    /// Takes the backend's responses off the front of `input` as far as they go.
    pub fn on_backend(
        &mut self,
        input: &mut Vec<u8>,
        to_backend: &mut Vec<u8>,
        to_client: &mut Vec<u8>,
    ) -> Step {
        let mut taken = 0;
        let step = loop {
            let room = (MAX_RESPONSES + self.limits.sasl).saturating_sub(self.responses);
            let step = match self.scanner.next(&input[taken..], room) {
                Ok(None) => Some(Step::Backend),
                Err(response::TooLong { .. }) => {
                    Some(self.unavailable("it says too much before its result", to_client))
                }
                Ok(Some(response::Whole { response, line, length })) => {
                    self.responses += length;
                    taken += length;
                    self.on_response(response, line, to_backend, to_client)
                }
            };
            if let Some(step) = step {
                break step;
            }
        };
        input.drain(..taken);
        step
    }

    /// No more comes from the backend, which has given no result.
    pub fn on_lost(&mut self, lost: Lost, to_client: &mut Vec<u8>) -> Step {
        if self.state == State::Cancelled {
            return self.cancelled(to_client);
        }
        if let Some(text) = self.bye.take() {
            let refusal = self.judge(Kind::Bye, &text);
            return self.refuse("NO", &refusal, "it said BYE instead of a result", to_client);
        }
        match lost {
            Lost::Closed => {
                let outcome = Outcome::Unavailable("it broke off before its result");
                self.done("NO", refusal::BROKE_OFF, outcome, to_client)
            }
            Lost::Late => self.done("NO", LATE, Outcome::Late, to_client),
        }
    }

    /// Takes one line of the client's off the front of `input`, if it is whole.
    pub fn on_client(
        &mut self,
        input: &mut Input,
        to_backend: &mut Vec<u8>,
        to_client: &mut Vec<u8>,
    ) -> Step {
        debug_assert!(matches!(self.state, State::Opening | State::Answer));
        let (line, taken) = match line::plain(input.bytes(), self.limits.sasl) {
            Ok(None) => return Step::Client,
            Ok(Some(whole)) => whole,
            Err(_) => {
                to_client.extend_from_slice(b"* BYE [TOOBIG] Line too long.\r\n");
                return Step::Close(End::TooLong);
            }
        };
        let step = if line == b"*" && self.state == State::Opening {
            self.cancelled(to_client)
        } else if line == b"*" {
            to_backend.extend_from_slice(b"*\r\n");
            self.state = State::Cancelled;
            Step::Backend
        } else if let Some(message) = sasl::decode(line)
            && self.rounds < MAX_ROUNDS
        {
            self.read_names(self.rounds, message.expose());
            self.rounds += 1;
            self.said += line.len();
            if self.state == State::Opening {
                self.unsaid.push_back(Secret::new([line, b"\r\n"].concat()));
                self.open(to_client)
            } else {
                to_backend.reserve(line.len() + 2); // a buffer that grows leaves copies behind
                to_backend.extend_from_slice(line);
                to_backend.extend_from_slice(b"\r\n");
                self.state = State::Challenge;
                Step::Backend
            }
        } else {
            let text =
                if self.rounds < MAX_ROUNDS { "That is not base64." } else { "Too many messages." };
            self.done("BAD", text, Outcome::Aborted, to_client)
        };
        input.consume(taken);
        step
    }

    /// `None`: read on.
    fn on_response(
        &mut self,
        response: Response<'_>,
        line: &[u8],
        to_backend: &mut Vec<u8>,
        to_client: &mut Vec<u8>,
    ) -> Option<Step> {
        match response {
            Response::Tagged { tag, kind, text } if tag == self.tag => match self.state {
                State::Id if self.is_ending() => Some(self.on_lost(Lost::Closed, to_client)),
                State::Id => {
                    self.untagged.clone_from(&self.alerts);
                    self.log_in(to_backend);
                    Some(Step::Backend)
                }
                State::Cancelled => Some(self.cancelled(to_client)),
                _ => Some(self.on_result(kind, text, to_client)),
            },
            // It is not told a password any more.
            Response::Continuation(_) if self.is_ending() => {
                Some(self.on_lost(Lost::Closed, to_client))
            }
            Response::Continuation(text) => self.on_continuation(text, to_backend, to_client),
            Response::Status { kind: Kind::PreAuth, .. } | Response::Garbage => {
                Some(self.unavailable("it does not speak IMAP", to_client))
            }
            Response::Status { .. } | Response::Untagged => {
                if let Response::Status { kind, text } = response {
                    self.on_status(kind, text);
                }
                match self.repair.line(line) {
                    Some(repaired) => self.untagged.extend_from_slice(&repaired),
                    None => self.untagged.extend_from_slice(line),
                }
                self.untagged.extend_from_slice(b"\r\n");
                None
            }
            Response::Tagged { .. } => None, // not ours: nobody asked
        }
    }

    fn on_status(&mut self, kind: Kind, text: &[u8]) {
        if let Some(alert) = refusal::alert(kind, text)
            && self.alerted < MAX_ALERTS
        {
            self.alerted += 1;
            self.alerts.extend(alert);
        }
        if kind == Kind::Bye {
            self.bye = Some(text.to_vec());
        }
    }

    fn on_continuation(
        &mut self,
        text: &[u8],
        to_backend: &mut Vec<u8>,
        to_client: &mut Vec<u8>,
    ) -> Option<Step> {
        match self.state {
            State::Verdict | State::Challenge if !self.unsaid.is_empty() => {
                let next = self.unsaid.pop_front();
                to_backend.extend_from_slice(next.as_ref().map_or(&b""[..], Secret::expose));
                Some(Step::Backend)
            }
            State::Challenge => {
                to_client.extend_from_slice(b"+ ");
                to_client.extend(text.iter().filter(|byte| !byte.is_ascii_control()));
                to_client.extend_from_slice(b"\r\n");
                self.state = State::Answer;
                Some(Step::Client)
            }
            _ => Some(self.unavailable("it asks for more where there is no more", to_client)),
        }
    }

    fn on_result(&mut self, kind: Kind, text: &[u8], to_client: &mut Vec<u8>) -> Step {
        let tag = &self.login.tag;
        match kind {
            Kind::Ok => {
                to_client.append(&mut self.untagged);
                let line = [tag, &b" OK "[..], refusal::without_referral(text)].concat();
                to_client.extend_from_slice(self.repair.line(&line).as_deref().unwrap_or(&line));
                to_client.extend_from_slice(b"\r\n");
                Step::Done(Outcome::LoggedIn)
            }
            Kind::Bad => {
                let refusal = self.judge(kind, text);
                self.refuse("BAD", &refusal, OUTAGE, to_client)
            }
            _ => {
                let refusal = self.judge(Kind::No, text);
                self.refuse("NO", &refusal, OUTAGE, to_client)
            }
        }
    }

    fn cancelled(&mut self, to_client: &mut Vec<u8>) -> Step {
        self.done("BAD", "Authentication cancelled.", Outcome::Aborted, to_client)
    }

    fn judge(&self, kind: Kind, text: &[u8]) -> Refusal {
        let names: Vec<&[u8]> =
            [&self.user, &self.authorization].into_iter().flatten().map(Vec::as_slice).collect();
        Refusal::of(kind, text, &names)
    }

    /// `outage`: why the backend did not decide, if it is that.
    fn refuse(
        &mut self,
        status: &str,
        refusal: &Refusal,
        outage: &'static str,
        to_client: &mut Vec<u8>,
    ) -> Step {
        let outcome = match refusal.meaning {
            Meaning::Wrong | Meaning::Unclear => Outcome::Rejected,
            Meaning::Outage => Outcome::Unavailable(outage),
            Meaning::NotNow => Outcome::Undecided("it said that it can't serve this user now"),
            Meaning::Unencrypted => Outcome::Undecided("it takes no password without TLS"),
            Meaning::NoMechanism => Outcome::RuledOut,
        };
        self.done(status, &refusal.text, outcome, to_client)
    }

    /// It says what is no answer.
    fn unavailable(&mut self, why: &'static str, to_client: &mut Vec<u8>) -> Step {
        self.done("NO", UNREADABLE, Outcome::Unavailable(why), to_client)
    }

    /// The login has failed: what the client must see, and its answer.
    fn done(
        &mut self,
        status: &str,
        text: impl AsRef<[u8]>,
        outcome: Outcome,
        to_client: &mut Vec<u8>,
    ) -> Step {
        to_client.append(&mut self.alerts);
        let tag = self.login.tag.as_slice();
        for part in [tag, b" ", status.as_bytes(), b" ", text.as_ref(), b"\r\n"] {
            to_client.extend_from_slice(part);
        }
        Step::Done(outcome)
    }

    fn log_in(&mut self, to_backend: &mut Vec<u8>) {
        to_backend.extend_from_slice(self.tag);
        match &self.login.method {
            Method::Login { user, password, forms } => {
                // Large enough for both, every byte escaped: a buffer that grows leaves copies behind.
                let mut part = Vec::with_capacity(64 + 2 * (user.len() + password.expose().len()));
                part.extend_from_slice(b" LOGIN ");
                self.argument(user, forms[0], &mut part);
                part.push(b' ');
                self.argument(password.expose(), forms[1], &mut part);
                part.extend_from_slice(b"\r\n");
                self.unsaid.push_back(Secret::new(part));
                let first = self.unsaid.pop_front();
                to_backend.extend_from_slice(first.as_ref().map_or(&b""[..], Secret::expose));
                self.state = State::Verdict;
            }
            Method::Authenticate { mechanism, initial } => {
                to_backend.extend_from_slice(b" AUTHENTICATE ");
                to_backend.extend_from_slice(mechanism.as_bytes());
                match initial {
                    Some(text) if self.dialect.sasl_ir => {
                        to_backend.reserve(text.expose().len() + 3);
                        to_backend.push(b' ');
                        to_backend.extend_from_slice(text.expose());
                    }
                    Some(text) => {
                        let message = text.expose();
                        let message = if message == b"=" { b"" } else { message };
                        self.unsaid.push_front(Secret::new([message, b"\r\n"].concat()));
                    }
                    None => {}
                }
                to_backend.extend_from_slice(b"\r\n");
                self.state = State::Challenge;
            }
        }
    }

    /// Writes one string of LOGIN; where a literal has to wait for `+`, `part` is put by and begun anew.
    fn argument(&mut self, text: &[u8], form: Form, part: &mut Vec<u8>) {
        if form == Form::Line && id::fits_quoted(text) {
            return id::write_quoted(text, part);
        }
        let at_once = self.dialect.non_synchronising;
        if at_once > 0 && text.len() <= at_once {
            part.extend_from_slice(format!("{{{}+}}\r\n", text.len()).as_bytes());
        } else {
            part.extend_from_slice(format!("{{{}}}\r\n", text.len()).as_bytes());
            let room = part.capacity();
            let said = std::mem::replace(part, Vec::with_capacity(room));
            self.unsaid.push_back(Secret::new(said));
        }
        part.extend_from_slice(text);
    }
}

/// The answer to a login that `capabilities`, as clients are told them, rule out. RFC 9051 §6.2.2 and §6.2.3 have NO for
/// both; without AUTHENTICATIONFAILED, a client goes on to what else it knows.
pub fn ruled_out(method: &Method, capabilities: &[u8]) -> Option<&'static str> {
    match method {
        Method::Login { .. } => capability::has(capabilities, b"LOGINDISABLED").then_some(
            "NO [PRIVACYREQUIRED] The mail server takes no password from here, ask its operator.",
        ),
        Method::Authenticate { mechanism, .. } => {
            let offer = format!("AUTH={mechanism}");
            let offered = capability::has(capabilities, offer.as_bytes());
            (!offered).then_some("NO Unsupported authentication mechanism.")
        }
    }
}

const OUTAGE: &str = "it said that it can't now";
const LATE: &str = "[UNAVAILABLE] The mail server did not answer in time, try again later.";
const UNREADABLE: &str =
    "[UNAVAILABLE] The mail server's answer can't be understood, try again later.";

/// Answers a login for which there is no backend.
pub fn unavailable(tag: &[u8], to_client: &mut Vec<u8>) {
    answer(to_client, tag, "NO [UNAVAILABLE] The mail server can't be reached, try again later.");
}

/// Answers a login that has come through too many proxies.
pub fn circle(tag: &[u8], to_client: &mut Vec<u8>) {
    answer(to_client, tag, "NO [UNAVAILABLE] The mail system sends logins in a circle.");
}

/// Answers a login for which every backend has too many sessions. RFC 5530 has LIMIT for what the client itself should ask
/// less of; here it should come again.
pub fn full(tag: &[u8], to_client: &mut Vec<u8>) {
    answer(
        to_client,
        tag,
        "NO [UNAVAILABLE] The mail server is busy with others, try again later.",
    );
}

#[cfg(test)]
mod meaning_tests;

#[cfg(test)]
mod tests;
