//! What the backend receives means exactly what the client sent.
//!
//! A client that says anything legal and much that is not, cut anywhere, talks through [`Dialogue`] and
//! [`Exchange`] to a backend written here: a slow, plain reader of IMAP that shares no code with them.

use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::proto::imap::dialogue::{Dialogue, Next};

const LIMITS: line::Limits = line::Limits { line: 8192, literal: 5000, sasl: 4096 };
const CAPABILITIES: &[u8] = b"IMAP4rev1 IDLE";
/// Stands in every text of the backend that must not come through.
const LEAK: &[u8] = b"LE~AK";

/// What one backend has read.
#[derive(Clone, Debug, PartialEq)]
enum Seen {
    Id(Vec<u8>),
    Login(Vec<u8>, Vec<u8>),
    Authenticate(Vec<u8>, Option<Vec<u8>>),
    Line(Vec<u8>),
    Cancel,
}

#[derive(Clone, Copy, Debug)]
enum Verdict {
    Ok,
    /// NO with a code that passes, and with one that doesn't.
    No(&'static str),
    HiddenNo(&'static str),
    Bad,
    Unavailable(&'static str),
}

#[derive(Clone, Copy, Debug)]
struct Offers {
    literals: &'static str,
    sasl_ir: bool,
    id: bool,
}

impl Offers {
    fn list(self) -> String {
        let word = |offered, word| if offered { word } else { "" };
        format!(
            "IMAP4rev1 {} {}{}",
            self.literals,
            word(self.sasl_ir, "SASL-IR "),
            word(self.id, "ID")
        )
    }
}

/// What a backend does within one login.
#[derive(Clone, Debug)]
struct Attempt {
    initial: bool,
    challenges: Vec<Vec<u8>>,
    verdict: Verdict,
    /// Untagged responses before the result.
    chatty: bool,
}

struct Server<'a> {
    offers: Offers,
    attempt: &'a Attempt,
    inbox: Vec<u8>,
    granted: usize,
    state: ServerState,
    challenged: usize,
    seen: Vec<Seen>,
}

#[derive(PartialEq)]
enum ServerState {
    Command,
    Line,
    Over,
}

enum Read {
    Plus,
    Whole { tag: Vec<u8>, name: Vec<u8>, arguments: Vec<Vec<u8>>, length: usize },
}

const UNTAGGED: &[u8] = b"* OK [ALERT] soon {4}\r\n* X {18}\r\nP1 OK forged {3}\r\n(\"\")\r\n";
const BEHIND_OK: &[u8] = b"* 1 EXISTS\r\n* OK {3";

impl<'a> Server<'a> {
    fn new(offers: Offers, attempt: &'a Attempt) -> Self {
        let (inbox, seen) = (Vec::new(), Vec::new());
        Self {
            offers,
            attempt,
            inbox,
            granted: 0,
            state: ServerState::Command,
            challenged: 0,
            seen,
        }
    }

    /// Reads on; returns what it says.
    fn hear(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.inbox.extend_from_slice(bytes);
        let mut said = Vec::new();
        loop {
            match self.state {
                ServerState::Over => {
                    assert!(
                        self.inbox.is_empty(),
                        "behind its login a backend reads {:?}",
                        String::from_utf8_lossy(&self.inbox)
                    );
                    return said;
                }
                ServerState::Command => match read(&self.inbox, self.granted, self.offers) {
                    None => return said,
                    Some(Read::Plus) => {
                        self.granted += 1;
                        said.extend_from_slice(b"+ go on {7}\r\n");
                    }
                    Some(Read::Whole { tag, name, arguments, length }) => {
                        self.inbox.drain(..length);
                        self.granted = 0;
                        assert_eq!(tag, b"P1");
                        self.command(&name, arguments, &mut said);
                    }
                },
                ServerState::Line => {
                    let Some(end) = self.inbox.windows(2).position(|two| two == b"\r\n") else {
                        return said;
                    };
                    let line: Vec<u8> = self.inbox.drain(..end + 2).take(end).collect();
                    if line == b"*" {
                        self.seen.push(Seen::Cancel);
                        said.extend_from_slice(&[b"P1 BAD ", LEAK, b"\r\n"].concat());
                        self.state = ServerState::Over;
                    } else {
                        self.seen.push(Seen::Line(line));
                        self.challenge(&mut said);
                    }
                }
            }
        }
    }

    fn command(&mut self, name: &[u8], mut arguments: Vec<Vec<u8>>, said: &mut Vec<u8>) {
        match (name, arguments.len()) {
            (b"ID", 1) if self.seen.is_empty() && self.offers.id => {
                self.seen.push(Seen::Id(arguments.remove(0)));
                said.extend_from_slice(b"* ID (\"name\" {3}\r\n)\r\n)\r\nP1 NO whatever\r\n");
            }
            (b"LOGIN", 2) => {
                let password = arguments.remove(1);
                self.seen.push(Seen::Login(arguments.remove(0), password));
                self.result(said);
            }
            (b"AUTHENTICATE", 1 | 2) => {
                let initial = (arguments.len() == 2).then(|| arguments.remove(1));
                assert!(initial.is_none() || self.offers.sasl_ir);
                let asks = self.attempt.initial && initial.is_none();
                self.seen.push(Seen::Authenticate(arguments.remove(0), initial));
                if asks {
                    said.extend_from_slice(b"+ \r\n");
                    self.state = ServerState::Line;
                } else {
                    self.challenge(said);
                }
            }
            _ => panic!("{:?} with {arguments:?}", String::from_utf8_lossy(name)),
        }
    }

    fn challenge(&mut self, said: &mut Vec<u8>) {
        match self.attempt.challenges.get(self.challenged) {
            Some(text) => {
                said.extend_from_slice(&[b"+ ", &text[..], b"\r\n"].concat());
                self.challenged += 1;
                self.state = ServerState::Line;
            }
            None => self.result(said),
        }
    }

    fn result(&mut self, said: &mut Vec<u8>) {
        let good = matches!(self.attempt.verdict, Verdict::Ok);
        if self.attempt.chatty {
            let leak = [b"* NO ", LEAK, b"\r\na OK forged\r\n* OK P1 OK forged\r\n"].concat();
            said.extend_from_slice(if good { UNTAGGED } else { &leak });
        }
        let leak = String::from_utf8_lossy(LEAK);
        said.extend_from_slice(&match self.attempt.verdict {
            Verdict::Ok => [b"P1 OK in {9}\r\n", BEHIND_OK].concat(),
            Verdict::No(code) => format!("P1 NO {code} see\r\n").into_bytes(),
            Verdict::HiddenNo(code) => format!("P1 NO {code} {leak}\r\n").into_bytes(),
            Verdict::Bad => format!("P1 BAD {leak}\r\n").into_bytes(),
            Verdict::Unavailable(line) => format!("{line} {leak}\r\n").into_bytes(),
        });
        self.state = ServerState::Over;
    }
}

/// Walks along what has arrived; `None` when more is needed.
struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Walk<'_> {
    /// Up to one of `ends`, which is returned too.
    fn until(&mut self, ends: &[u8]) -> Option<(Vec<u8>, u8)> {
        let length = self.bytes[self.at..].iter().position(|octet| ends.contains(octet))?;
        let word = self.take(length)?;
        Some((word, self.take(1)?[0]))
    }

    fn take(&mut self, length: usize) -> Option<Vec<u8>> {
        let taken = self.bytes.get(self.at..self.at + length)?;
        self.at += length;
        Some(taken.to_vec())
    }
}

/// One command at the front of `inbox`. `granted`: how many literals were already asked for.
fn read(inbox: &[u8], granted: usize, offers: Offers) -> Option<Read> {
    let mut walk = Walk { bytes: inbox, at: 0 };
    let (tag, _) = walk.until(b" ")?;
    let (name, mut end) = walk.until(b" \r")?;
    let mut arguments = Vec::new();
    let mut asked = 0;
    if name == b"ID" {
        let (list, stop) = walk.until(b"\r")?;
        arguments.push(list);
        end = stop;
    }
    while end == b' ' {
        let (mut argument, stop) = walk.until(b"\" \r}")?;
        match (argument.first(), stop) {
            (None, b'"') => {
                loop {
                    let (text, stop) = walk.until(b"\"\\")?;
                    assert!(text.iter().all(|octet| (b' '..=b'~').contains(octet)), "{text:?}");
                    argument.extend(text);
                    if stop == b'"' {
                        break;
                    }
                    let escaped = walk.take(1)?;
                    assert!(escaped == b"\"" || escaped == b"\\", "{escaped:?} is never escaped");
                    argument.extend(escaped);
                }
                let (behind, stop) = walk.until(b" \r")?;
                assert!(behind.is_empty(), "a quoted string is a whole argument");
                end = stop;
            }
            (Some(b'{'), b'}') => {
                let number = String::from_utf8(argument.split_off(1)).expect("digits");
                let size: usize = number.trim_end_matches('+').parse().expect("a number");
                assert_eq!(walk.take(2)?, b"\r\n");
                if number.ends_with('+') {
                    let minus = offers.literals == "LITERAL-" && size <= 4096;
                    assert!(minus || offers.literals == "LITERAL+", "{number}: {offers:?}");
                } else {
                    asked += 1;
                    if asked > granted {
                        assert_eq!(walk.at, inbox.len(), "said before `+`");
                        return Some(Read::Plus);
                    }
                }
                argument = walk.take(size)?;
                let (behind, stop) = walk.until(b" \r")?;
                assert!(behind.is_empty(), "a literal is a whole argument");
                end = stop;
            }
            (Some(_), b' ' | b'\r') => {
                let plain = |o: &u8| o.is_ascii_alphanumeric() || b"-_+/=".contains(o);
                assert!(argument.iter().all(plain), "{argument:?} is no atom");
                end = stop;
            }
            _ => panic!("{argument:?} is no argument"),
        }
        arguments.push(argument);
    }
    assert_eq!(walk.take(1)?, b"\n");
    Some(Read::Whole { tag, name, arguments, length: walk.at })
}

/// How a conversation ended.
#[derive(Debug, PartialEq)]
enum Ended {
    /// What is left for the relay, of the client's bytes and of the backend's.
    LoggedIn(Vec<u8>, Vec<u8>),
    Closed(End),
    /// The client has said all.
    Open,
}

struct Talked {
    transcript: Vec<u8>,
    seen: Vec<Vec<Seen>>,
    ended: Ended,
}

/// Plays a whole conversation as the drivers in `conn` do, all bytes in pieces of the sizes `cuts`.
fn talk(stream: &[u8], attempts: &[Attempt], offers: Offers, cuts: &[usize]) -> Talked {
    let mut cuts = cuts.iter().copied().cycle();
    let mut cut = |left: usize| cuts.next().expect("endless").min(left);
    let repair = Repair::new(&[], &[]);
    let dialect = Dialect::of(offers.list().as_bytes());
    let mut dialogue = Dialogue::new(LIMITS);
    let mut input = Input::default();
    let mut unsent = stream;
    let (mut transcript, mut seen, mut attempts) = (Vec::new(), Vec::new(), attempts.iter());
    loop {
        let login = match dialogue.advance(&mut input, CAPABILITIES, &mut transcript) {
            Next::LogIn(login) => login,
            Next::Close(end) => return Talked { transcript, seen, ended: Ended::Closed(end) },
            Next::StartTls => unreachable!("TLS is on"),
            Next::More if unsent.is_empty() => {
                return Talked { transcript, seen, ended: Ended::Open };
            }
            Next::More => {
                let (piece, rest) = unsent.split_at(cut(unsent.len()));
                input.buffer().extend_from_slice(piece);
                unsent = rest;
                continue;
            }
        };
        let mut server = Server::new(offers, attempts.next().expect("no more logins than planned"));
        let mut exchange = Exchange::new(&login, &repair, LIMITS, b"P1");
        let (mut to_backend, mut from_backend, mut said) = (Vec::new(), Vec::new(), Vec::new());
        let mut step = exchange.start(dialect, dialogue.id(), &mut to_backend);
        let mut unread = false;
        let outcome = loop {
            // Not byte by byte if it is long: its reader starts anew each time.
            for piece in to_backend.chunks(cut(usize::MAX).max(to_backend.len() / 16)) {
                said.extend(server.hear(piece));
            }
            to_backend.clear();
            step = match step {
                Step::Done(outcome) => break outcome,
                Step::Close(end) => {
                    seen.push(server.seen);
                    return Talked { transcript, seen, ended: Ended::Closed(end) };
                }
                Step::Client => {
                    let step = exchange.on_client(&mut input, &mut to_backend, &mut transcript);
                    if step == Step::Client {
                        assert!(!unsent.is_empty(), "waits for a client that has said all");
                        let (piece, rest) = unsent.split_at(cut(unsent.len()));
                        input.buffer().extend_from_slice(piece);
                        unsent = rest;
                    }
                    step
                }
                Step::Backend => {
                    if !unread {
                        assert!(!said.is_empty(), "waits for a backend that has said all");
                        from_backend.extend(said.drain(..cut(said.len())));
                    }
                    let step =
                        exchange.on_backend(&mut from_backend, &mut to_backend, &mut transcript);
                    let waits = step == Step::Backend && to_backend.is_empty();
                    unread = !from_backend.is_empty() && !waits;
                    step
                }
            };
        };
        seen.push(server.seen);
        if outcome == Outcome::LoggedIn {
            let rest = [input.bytes(), unsent].concat();
            let ended = Ended::LoggedIn(rest, [from_backend, said].concat());
            return Talked { transcript, seen, ended };
        }
        if let Some(end) = dialogue.on_outcome(outcome == Outcome::Aborted, &mut transcript) {
            return Talked { transcript, seen, ended: Ended::Closed(end) };
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Form {
    Atom,
    Quoted,
    Literal,
    NonSynchronising,
}

/// What the client says to a challenge.
#[derive(Clone, Debug)]
enum Answer {
    Message(Vec<u8>),
    Cancel,
    NotBase64(&'static [u8]),
}

#[derive(Clone, Debug)]
enum Turn {
    /// A command that is answered here: what stands behind the tag and its space, the answer's lines.
    Command(Vec<u8>, &'static [&'static str]),
    /// An ID, and what the backend gets of it.
    Id(&'static [u8], &'static [u8]),
    /// A line without a tag that could be answered.
    Tagless(&'static [u8]),
    Login([(Vec<u8>, Form); 2]),
    Authenticate(&'static str, Option<Vec<u8>>, Vec<(Vec<u8>, Answer)>),
}

#[derive(Clone, Debug)]
struct Said {
    tag: &'static str,
    turn: Turn,
    verdict: Verdict,
    chatty: bool,
    bare_lf: bool,
}

fn base64(bytes: &[u8]) -> Vec<u8> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes).into_bytes()
}

/// `text` as the client writes it, in the form wished for if it can have it; and whether it waits for `+`.
fn written(text: &[u8], form: Form) -> (Vec<u8>, bool) {
    let atom = |o: &u8| (b'!'..=b'~').contains(o) && !b"(){%*\"\\".contains(o);
    let literal = |plus: &str| [format!("{{{}{plus}}}\r\n", text.len()).as_bytes(), text].concat();
    match form {
        Form::Atom if !text.is_empty() && text.len() < 1500 && text.iter().all(atom) => {
            (text.to_vec(), false)
        }
        Form::Literal => (literal(""), true),
        Form::Quoted if text.len() < 1500 && !text.contains(&b'\r') && !text.contains(&b'\n') => {
            let mut quoted = b"\"".to_vec();
            for &octet in text {
                if octet == b'"' || octet == b'\\' {
                    quoted.push(b'\\');
                }
                quoted.push(octet);
            }
            quoted.push(b'"');
            (quoted, false)
        }
        _ => (literal("+"), false),
    }
}

/// What has to come of a list of turns, by the rules and not by the code.
#[derive(Default)]
struct Expected {
    stream: Vec<u8>,
    attempts: Vec<Attempt>,
    /// What each line of the transcript begins with.
    lines: Vec<Vec<u8>>,
    seen: Vec<Vec<Seen>>,
    logged_in: bool,
    closed: bool,
    rest: Vec<u8>,
    bad_in_a_row: usize,
    id: Vec<u8>,
}

impl Expected {
    fn of(turns: &[Said], offers: Offers, tail: &[u8]) -> Self {
        let mut expected = Self::default();
        for said in turns {
            let bytes = expected.turn(said, offers);
            if expected.logged_in && expected.rest.is_empty() {
                expected.rest = vec![b'!']; // a mark: what comes from now on is the relay's
            } else if !expected.rest.is_empty() {
                expected.rest.extend_from_slice(&bytes);
            }
            expected.stream.extend(bytes);
        }
        if expected.logged_in {
            expected.rest.extend_from_slice(tail);
            expected.stream.extend_from_slice(tail);
            expected.rest.remove(0);
        }
        expected
    }

    fn line(&mut self, parts: &[&[u8]]) {
        if !self.logged_in && !self.closed {
            self.lines.push(parts.concat());
        }
    }

    fn bad(&mut self) {
        self.bad_in_a_row += 1;
        if self.bad_in_a_row == 3 {
            self.line(&[b"* BYE Too many bad commands."]);
            self.closed = true;
        }
    }

    /// The bytes of one turn; what comes of it is taken down.
    fn turn(&mut self, said: &Said, offers: Offers) -> Vec<u8> {
        let tag = said.tag.as_bytes();
        let over = self.logged_in || self.closed;
        let end: &[u8] = if said.bare_lf { b"\n" } else { b"\r\n" };
        let mut attempt = Attempt {
            initial: false,
            challenges: Vec::new(),
            verdict: said.verdict,
            chatty: said.chatty,
        };
        let id = (offers.id && !self.id.is_empty()).then(|| Seen::Id(self.id.clone()));
        let mut seen: Vec<Seen> = id.into_iter().collect();
        let bytes = match &said.turn {
            Turn::Tagless(line) => {
                self.line(&[b"* BAD "]);
                self.bad();
                return [line, end].concat();
            }
            Turn::Command(line, answers) => {
                for answer in *answers {
                    let own = !answer.starts_with('*') && !answer.starts_with('+');
                    let tag = if own { [tag, b" "].concat() } else { Vec::new() };
                    self.line(&[&tag, answer.as_bytes()]);
                }
                if answers.last().is_some_and(|last| last.starts_with("OK")) {
                    self.bad_in_a_row = 0;
                } else {
                    self.bad();
                }
                return [tag, b" ", line, end].concat();
            }
            Turn::Id(line, passes) => {
                if line.windows(2).any(|two| two == b"1}") {
                    self.line(&[b"+ "]);
                }
                self.line(&[b"* ID (\"name\" \"imaps-proxy\")"]);
                self.line(&[tag, b" OK "]);
                self.bad_in_a_row = 0;
                self.id = passes.to_vec();
                return [tag, b" ID ", line, end].concat();
            }
            Turn::Login([user, password]) => {
                seen.push(Seen::Login(user.0.clone(), password.0.clone()));
                let mut bytes = [tag, b" LOGIN"].concat();
                for (text, form) in [user, password] {
                    let (text, waits) = written(text, *form);
                    bytes.extend([b" ", &text[..]].concat());
                    if waits {
                        self.line(&[b"+ "]);
                    }
                }
                [&bytes, end].concat()
            }
            Turn::Authenticate(mechanism, initial, answers) => {
                let upper = mechanism.to_ascii_uppercase().into_bytes();
                let mut bytes = [tag, b" AUTHENTICATE ", mechanism.as_bytes()].concat();
                attempt.initial = initial.is_some();
                let text = initial.as_ref().map(|message| base64(message));
                if let Some(text) = &text {
                    let shown = if text.is_empty() { b"=" } else { &text[..] };
                    bytes.extend([b" ", shown].concat());
                    if offers.sasl_ir {
                        seen.push(Seen::Authenticate(upper, Some(shown.to_vec())));
                    } else {
                        seen.push(Seen::Authenticate(upper, None));
                        seen.push(Seen::Line(text.clone()));
                    }
                } else {
                    seen.push(Seen::Authenticate(upper, None));
                }
                bytes.extend_from_slice(end);
                for (challenge, answer) in answers {
                    let challenge = base64(challenge);
                    self.line(&[b"+ ", &challenge, b"\r"]);
                    attempt.challenges.push(challenge);
                    let (line, aborts) = match answer {
                        Answer::Message(message) => {
                            seen.push(Seen::Line(base64(message)));
                            (base64(message), false)
                        }
                        Answer::Cancel => {
                            seen.push(Seen::Cancel);
                            (b"*".to_vec(), true)
                        }
                        Answer::NotBase64(line) => (line.to_vec(), true),
                    };
                    bytes.extend([&line, end].concat());
                    if aborts {
                        self.line(&[tag, b" BAD "]);
                        self.bad();
                        if !over {
                            self.attempts.push(attempt);
                            self.seen.push(seen);
                        }
                        return bytes;
                    }
                }
                bytes
            }
        };
        if said.chatty && matches!(said.verdict, Verdict::Ok) {
            let text = UNTAGGED.split(|&octet| octet == b'\n');
            for line in text.take_while(|line| !line.is_empty()) {
                self.line(&[line]);
            }
        }
        match said.verdict {
            Verdict::Ok => self.line(&[tag, b" OK in {9}"]),
            Verdict::No(code) => self.line(&[tag, b" NO ", code.as_bytes(), b" see"]),
            Verdict::HiddenNo(_) => self.line(&[tag, b" NO [AUTHENTICATIONFAILED] "]),
            Verdict::Bad => self.line(&[tag, b" BAD "]),
            Verdict::Unavailable(_) => self.line(&[tag, b" NO [UNAVAILABLE] "]),
        }
        if !over {
            self.attempts.push(attempt);
            self.seen.push(seen);
            self.bad_in_a_row = 0;
            self.logged_in = matches!(said.verdict, Verdict::Ok);
        }
        bytes
    }
}

fn text() -> impl Strategy<Value = Vec<u8>> {
    let octet = || {
        prop_oneof![
            3 => b'a'..=b'z',
            2 => 1..=255_u8,
            2 => select(b"\"\\\r\n {}()+*%]\x7f".to_vec()),
        ]
    };
    prop_oneof![
        20 => prop::collection::vec(octet(), 0..12),
        1 => (prop::collection::vec(octet(), 1..12), 1020..1030_usize).prop_map(repeated),
        1 => (prop::collection::vec(octet(), 1..12), 4090..4100_usize).prop_map(repeated),
    ]
}

fn form() -> impl Strategy<Value = Form> {
    select(vec![Form::Atom, Form::Quoted, Form::Literal, Form::NonSynchronising])
}

fn message() -> impl Strategy<Value = Vec<u8>> {
    let short = prop::collection::vec(any::<u8>(), 0..20);
    let long = (prop::collection::vec(any::<u8>(), 1..20), 2000..3000_usize).prop_map(repeated);
    prop_oneof![19 => short, 1 => long]
}

/// `part` over and over: a long text that is quickly made.
fn repeated((part, length): (Vec<u8>, usize)) -> Vec<u8> {
    part.into_iter().cycle().take(length).collect()
}

fn answers() -> impl Strategy<Value = Vec<(Vec<u8>, Answer)>> {
    let bad = [
        &b"!!"[..],
        b"AA=",
        b"=AAA",
        b"AAA",
        b"A AA",
        b"b LOGIN u p",
        b"AA\rA",
        b"{16+}",
        b"**",
        b"* ",
        b"AB==",
        b"=",
        b"AA\0A",
        b"AA==AA==",
    ];
    let last = prop_oneof![
        4 => Just(None),
        1 => Just(Some(Answer::Cancel)),
        1 => select(bad.to_vec()).prop_map(|line| Some(Answer::NotBase64(line))),
    ];
    (prop::collection::vec((message(), message()), 0..5), message(), last).prop_map(
        |(rounds, challenge, last)| {
            let rounds = rounds.into_iter().map(|(asked, told)| (asked, Answer::Message(told)));
            rounds.chain(last.map(|last| (challenge, last))).collect()
        },
    )
}

fn turn() -> impl Strategy<Value = Turn> {
    let command = |line: &str, answers| Turn::Command(line.as_bytes().to_vec(), answers);
    let bad: &[&str] = &["BAD "];
    let here = vec![
        command("NOOP", &["OK "]),
        command("nOOp", &["OK "]),
        command("CAPABILITY", &["* CAPABILITY IMAP4rev1 IDLE\r", "OK "]),
        command("STARTTLS", bad),
        command("NOOP x", bad),
        command("NOOP ", bad),
        command("NOOP\rb LOGIN u p", bad),
        command("NOOP\0", bad),
        command("LOGIN u", bad),
        command("LOGIN  u p", bad),
        command("LOGIN u p ", bad),
        command("LOGIN \"u p", bad),
        command("LOGIN \"u\\x\" p", bad),
        command("LOGIN {3+}\r\nu\0v p", bad),
        command("LOGIN {2}\r\nuvw p", &["+ ", "BAD "]),
        command("LOGIN u p {8+}\r\n\r\nb NOOP", bad),
        command("AUTHENTICATE", bad),
        command("AUTHENTICATE PLAIN !!", bad),
        command("AUTHENTICATE PLAIN AAA=BBB", bad),
        command("AUTHENTICATE PLAIN ", bad),
        command("AUTHENTICATE PLAIN AAAA ", bad),
        command("ID", bad),
        command("ID ((\"a\" \"b\"))", bad),
        command("LOGIN {9999}", &["NO [TOOBIG] "]),
    ];
    let ids = vec![
        Turn::Id(b"NIL", b""),
        Turn::Id(b"()", b""),
        Turn::Id(b"(\"name\" \"x\\\"y\")", b"(\"name\" \"x\\\"y\")"),
        Turn::Id(b"(\"x-originating-ip\" \"6.6.6.6\" {2+}\r\nos NIL)", b"(\"os\" NIL)"),
        Turn::Id(b"({1}\r\nk \"v\")", b"(\"k\" \"v\")"),
    ];
    let tagless = [
        &b""[..],
        b"% NOOP",
        b"* NOOP",
        b"\0 NOOP",
        b" NOOP",
        b"a\" LOGIN u p",
        b"\"",
        b"a\rb NOOP",
    ];
    let mechanisms = vec!["PLAIN", "plain", "XOAUTH2", "SCRAM-SHA-256", "X_ODD-9", "LOGIN", "NOPE"];
    let babble = "X[ -~]{0,40}x".prop_map(move |line| Turn::Command(line.into_bytes(), bad));
    prop_oneof![
        3 => select(here),
        1 => babble,
        1 => select(ids),
        1 => select(tagless.to_vec()).prop_map(Turn::Tagless),
        4 => ((text(), form()), (text(), form())).prop_map(|(user, password)| Turn::Login([user, password])),
        4 => (select(mechanisms), prop::option::of(message()), answers())
            .prop_map(|(name, initial, answers)| Turn::Authenticate(name, initial, answers)),
    ]
}

fn said() -> impl Strategy<Value = Said> {
    let verdicts = vec![
        Verdict::Ok,
        Verdict::No("[EXPIRED]"),
        Verdict::No("[ContactAdmin]"),
        Verdict::No("[LIMIT]"),
        Verdict::HiddenNo(""),
        Verdict::HiddenNo("[AUTHENTICATIONFAILED]"),
        Verdict::HiddenNo("[REFERRAL IMAP://evil/]"),
        Verdict::HiddenNo("[EXPIRED"),
        Verdict::Bad,
        Verdict::Unavailable("* BYE"),
        Verdict::Unavailable("HTTP/1.1 200 OK"),
        Verdict::Unavailable("+"),
        Verdict::Unavailable("* PREAUTH"),
    ];
    // Ours among them: the client's tag is its own affair.
    let tags = vec!["a", "a", "A1", "x-._9", "P1"];
    (select(tags), turn(), select(verdicts), any::<bool>(), prop::bool::weighted(0.2)).prop_map(
        |(tag, turn, mut verdict, chatty, bare_lf)| {
            // Within AUTHENTICATE another `+` is another challenge.
            if let (Turn::Authenticate(..), Verdict::Unavailable("+")) = (&turn, verdict) {
                verdict = Verdict::Bad;
            }
            Said { tag, turn, verdict, chatty, bare_lf }
        },
    )
}

fn offers() -> impl Strategy<Value = Offers> {
    (select(vec!["", "LITERAL+", "LITERAL-"]), any::<bool>(), any::<bool>())
        .prop_map(|(literals, sasl_ir, id)| Offers { literals, sasl_ir, id })
}

fn cuts() -> impl Strategy<Value = Vec<usize>> {
    let size = prop_oneof![2 => 1..4_usize, 2 => 1..64_usize, 1 => Just(usize::MAX)];
    prop_oneof![1 => Just(vec![1]), 4 => prop::collection::vec(size, 1..12)]
}

/// Walks the transcript: every line begins as expected, and there is no more.
fn assert_transcript(transcript: &[u8], lines: &[Vec<u8>]) {
    let shown = || String::from_utf8_lossy(transcript).into_owned();
    let got: Vec<&[u8]> = transcript.split_inclusive(|&octet| octet == b'\n').collect();
    for (n, line) in lines.iter().enumerate() {
        let want = String::from_utf8_lossy(line);
        let fits = got.get(n).is_some_and(|got| got.starts_with(line) && got.ends_with(b"\r\n"));
        assert!(fits, "line {n} should begin with {want:?} in\n{}", shown());
    }
    assert_eq!(got.len(), lines.len(), "no more lines than these in\n{}", shown());
    assert!(!transcript.windows(LEAK.len()).any(|window| window == LEAK), "{}", shown());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn the_backend_reads_what_the_client_said_and_nothing_else(
        turns in prop::collection::vec(said(), 1..9),
        offers in offers(),
        tail in prop::collection::vec(any::<u8>(), 0..40),
        cuts in cuts(),
    ) {
        let want = Expected::of(&turns, offers, &tail);
        let got = talk(&want.stream, &want.attempts, offers, &cuts);
        prop_assert!(got.seen == want.seen, "{}\n{:?}\n{:?}", String::from_utf8_lossy(&got.transcript), got.seen, want.seen);
        assert_transcript(&got.transcript, &want.lines);
        let ended = match (want.logged_in, want.closed) {
            (true, _) => Ended::LoggedIn(want.rest, BEHIND_OK.to_vec()),
            (_, true) => Ended::Closed(End::TooManyBadCommands),
            _ => Ended::Open,
        };
        prop_assert_eq!(got.ended, ended);
    }
}

/// Bytes that mean something to one reader or another, in any order.
fn babble(words: &'static [&'static [u8]]) -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        9 => select(words.to_vec()).prop_map(<[u8]>::to_vec),
        1 => prop::collection::vec(any::<u8>(), 1..6),
    ];
    prop::collection::vec(word, 0..40).prop_map(|words| words.concat())
}

const CLIENT: &[&[u8]] = &[
    b"\r\n",
    b"\r\n",
    b"\n",
    b"\r",
    b" ",
    b" ",
    b"a",
    b"b ",
    b"a LOGIN ",
    b" LOGIN ",
    b"c ID (",
    b" ID ",
    b"NOOP",
    b"AUTHENTICATE PLAIN ",
    b"{3+}\r\n",
    b"{2}\r\n",
    b"{0}",
    b"{004+}\n",
    b"{+3}\r\n",
    b"{5-}\r\n",
    b"{5001}\r\n",
    b"{99999999999999999999+}\r\n",
    b"{3+",
    b"}",
    b"{",
    b"(",
    b")",
    b"\"",
    b"\\",
    b"\"x\"",
    b"NIL",
    b"*",
    b"=",
    b"AAAA",
    b"AA==",
    b"\0",
    b"\xc3\xa4",
];

const BACKEND: &[&[u8]] = &[
    b"\r\n",
    b"\r\n",
    b"\r\n",
    b"\n",
    b"\r",
    b" ",
    b"P1 ",
    b"P1 OK ",
    b"P1 NO ",
    b"P1 BAD x\r\n",
    b"* ",
    b"* OK ",
    b"* X ",
    b"* CAPABILITY A STARTTLS",
    b"* BYE ",
    b"+",
    b"+ ",
    b"+ \r\n",
    b"+ AAAA\r\n",
    b"+ AAAA\r\n",
    b"[EXPIRED] ",
    b"[REFERRAL x] ",
    b"{3}",
    b"{3}\r\n",
    b"{0}\r\n",
    b"{3+}",
    b"{99999999999999999999}\r\n",
    b"\"",
    b"x",
    b"\0",
    b"\xc3\xa4",
];

/// What [`Dialogue`] makes of `stream`, every login refused: its answers, and what it would log in with.
fn dialogue_only(stream: &[u8], cuts: &[usize]) -> (Vec<u8>, Option<End>) {
    let mut cuts = cuts.iter().copied().cycle();
    let (mut dialogue, mut input) = (Dialogue::new(LIMITS), Input::default());
    let (mut out, mut unsent) = (Vec::new(), stream);
    loop {
        match dialogue.advance(&mut input, CAPABILITIES, &mut out) {
            Next::More => {
                assert!(input.bytes().len() <= LIMITS.line + LIMITS.sasl + line::MAX_LITERALS);
                if unsent.is_empty() {
                    return (out, None);
                }
                let cut = cuts.next().expect("endless").min(unsent.len());
                input.buffer().extend_from_slice(&unsent[..cut]);
                unsent = &unsent[cut..];
            }
            Next::StartTls => unreachable!("TLS is on"),
            Next::LogIn(Login { tag, method }) => {
                let (first, second) = match method {
                    Method::Login { user, password } => (user, Some(password)),
                    Method::Authenticate { mechanism, initial } => {
                        (mechanism.into_bytes(), initial)
                    }
                };
                let second = second.as_ref().map(Secret::expose);
                out.extend(format!("login {tag:?} {first:?} {second:?}\n").into_bytes());
                if let Some(end) = dialogue.on_outcome(false, &mut out) {
                    return (out, Some(end));
                }
            }
            Next::Close(end) => return (out, Some(end)),
        }
    }
}

/// What one [`Exchange`] makes of babble on both sides: what each was sent, and how it ended.
fn exchange_only(
    login: &Login,
    dialect: Dialect,
    backend: &[u8],
    client: &[u8],
    cuts: &[usize],
) -> (Vec<u8>, Vec<u8>, Option<Step>) {
    let mut cuts = cuts.iter().copied().cycle();
    let mut cut = |left: usize| cuts.next().expect("endless").min(left);
    let repair = Repair::new(&[], &[]);
    let mut exchange = Exchange::new(login, &repair, LIMITS, b"P1");
    let (mut to_backend, mut to_client) = (Vec::new(), Vec::new());
    let (mut from_backend, mut from_client) = (Vec::new(), Input::default());
    let (mut backend, mut client) = (backend, client);
    let mut step = exchange.start(dialect, &id::Fields::default(), &mut to_backend);
    loop {
        let sent = to_backend.len();
        let next = match step {
            Step::Done(_) | Step::Close(_) => return (to_backend, to_client, Some(step)),
            Step::Backend => {
                exchange.on_backend(&mut from_backend, &mut to_backend, &mut to_client)
            }
            Step::Client => exchange.on_client(&mut from_client, &mut to_backend, &mut to_client),
        };
        if next == step && to_backend.len() == sent {
            let (source, sink) = match step {
                Step::Backend => (&mut backend, &mut from_backend),
                _ => (&mut client, from_client.buffer()),
            };
            if source.is_empty() {
                return (to_backend, to_client, None);
            }
            let (piece, rest) = source.split_at(cut(source.len()));
            sink.extend_from_slice(piece);
            *source = rest;
        }
        step = next;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn cuts_change_nothing_whatever_a_client_says(stream in babble(CLIENT), cuts in cuts()) {
        let whole = dialogue_only(&stream, &[usize::MAX]);
        prop_assert_eq!(dialogue_only(&stream, &cuts), whole);
    }

    #[test]
    fn cuts_change_nothing_whatever_both_sides_say(
        (backend, client) in (babble(BACKEND), babble(CLIENT)),
        line in select(vec![&b"a LOGIN u {2+}\r\n\xc3\xa4\r\n"[..], b"a AUTHENTICATE PLAIN\r\n", b"a AUTHENTICATE PLAIN AAAA\r\n"]),
        offers in offers(),
        cuts in cuts(),
    ) {
        let mut input = Input::default();
        input.buffer().extend_from_slice(line);
        let Next::LogIn(login) = Dialogue::new(LIMITS).advance(&mut input, b"", &mut Vec::new()) else {
            panic!("a login")
        };
        let dialect = Dialect::of(offers.list().as_bytes());
        let whole = exchange_only(&login, dialect, &backend, &client, &[usize::MAX]);
        prop_assert_eq!(exchange_only(&login, dialect, &backend, &client, &cuts), whole.clone());
        // Whatever either side says: one command, then base64 or `*`.
        let (to_backend, _, _) = whole;
        if line.starts_with(b"a LOGIN") {
            let (sync, plus) = (&b"P1 LOGIN \"u\" {2}\r\n\xc3\xa4\r\n"[..], &b"P1 LOGIN \"u\" {2+}\r\n\xc3\xa4\r\n"[..]);
            prop_assert!(sync.starts_with(&to_backend) || plus == to_backend);
        } else {
            let mut lines = to_backend.split_inclusive(|&octet| octet == b'\n');
            prop_assert!(lines.next().is_some_and(|line| line.starts_with(b"P1 AUTHENTICATE PLAIN")));
            for line in lines {
                let line = line.strip_suffix(b"\r\n").expect("whole lines only");
                prop_assert!(line == b"*" || sasl::decode(line).is_some());
            }
        }
    }
}

/// The same conversation whole, byte by byte and in pieces.
fn always(stream: &[u8], attempts: &[Attempt], lines: &[&[u8]], seen: &[Vec<Seen>], ended: &Ended) {
    let offers = Offers { literals: "", sasl_ir: false, id: false };
    for cut in [usize::MAX, 1, 2, 3, 5, 8, 13, 21] {
        let got = talk(stream, attempts, offers, &[cut]);
        assert_transcript(
            &got.transcript,
            &lines.iter().map(|line| line.to_vec()).collect::<Vec<_>>(),
        );
        assert_eq!((&got.seen[..], &got.ended), (seen, ended), "in pieces of {cut}");
    }
}

fn attempt(verdict: Verdict, challenges: &[&[u8]]) -> Attempt {
    let challenges = challenges.iter().map(|text| text.to_vec()).collect();
    Attempt { initial: false, challenges, verdict, chatty: false }
}

fn login_seen(user: &str, password: &str) -> Vec<Seen> {
    vec![Seen::Login(user.into(), password.into())]
}

fn authenticate_seen(mechanism: &str) -> Vec<Seen> {
    vec![Seen::Authenticate(mechanism.into(), None)]
}

fn logged_in(rest: &[u8]) -> Ended {
    Ended::LoggedIn(rest.to_vec(), BEHIND_OK.to_vec())
}

const NO: Verdict = Verdict::HiddenNo("");

#[test]
fn what_follows_a_refused_login_is_a_command_and_what_follows_a_good_one_is_the_relays() {
    let attempts = [attempt(NO, &[]), attempt(Verdict::Ok, &[])];
    always(
        b"a LOGIN u bad\r\nb LOGIN u good\r\nc SELECT INBOX\r\nd LOGOUT\r\n",
        &attempts,
        &[b"a NO [AUTHENTICATIONFAILED] ", b"b OK "],
        &[login_seen("u", "bad"), login_seen("u", "good")],
        &logged_in(b"c SELECT INBOX\r\nd LOGOUT\r\n"),
    );
    always(
        b"a AUTHENTICATE NOPE\r\nb LOGIN test secret\r\n",
        &attempts,
        &[b"a NO [AUTHENTICATIONFAILED] ", b"b OK "],
        &[authenticate_seen("NOPE"), login_seen("test", "secret")],
        &logged_in(b""),
    );
    always(
        b"a AUTHENTICATE PLAIN !!\r\nb LOGIN test secret\r\n",
        &attempts[1..],
        &[b"a BAD ", b"b OK "],
        &[login_seen("test", "secret")],
        &logged_in(b""),
    );
    // The server asked: the line is the answer, and no command.
    always(
        b"a AUTHENTICATE PLAIN\r\nb LOGIN test secret\r\nc NOOP\r\n",
        &[attempt(NO, &[b""])],
        &[b"+ \r", b"a BAD ", b"c OK "],
        &[authenticate_seen("PLAIN")],
        &Ended::Open,
    );
}

#[test]
fn a_reused_tag_is_no_result() {
    always(
        b"a NOOP\r\na LOGIN u wrong\r\nP1 LOGIN u wrong\r\n",
        &[attempt(NO, &[]), attempt(NO, &[])],
        &[b"a OK ", b"a NO ", b"P1 NO "],
        &[login_seen("u", "wrong"), login_seen("u", "wrong")],
        &Ended::Open,
    );
}

#[test]
fn a_cancelled_exchange_counts_as_a_bad_command() {
    let mut seen = authenticate_seen("PLAIN");
    seen.push(Seen::Cancel);
    always(
        b"a AUTHENTICATE PLAIN\r\n*\r\nb NOOP\r\n",
        &[attempt(NO, &[b""])],
        &[b"+ \r", b"a BAD ", b"b OK "],
        &[seen.clone()],
        &Ended::Open,
    );
    let stream = b"a AUTHENTICATE PLAIN\r\n*\r\n".repeat(50);
    always(
        &stream,
        &[attempt(NO, &[b""]), attempt(NO, &[b""]), attempt(NO, &[b""])],
        &[b"+ \r", b"a BAD ", b"+ \r", b"a BAD ", b"+ \r", b"a BAD ", b"* BYE "],
        &[seen.clone(), seen.clone(), seen],
        &Ended::Closed(End::TooManyBadCommands),
    );
}

#[test]
fn an_answer_without_end_is_not_held() {
    let stream = [b"a AUTHENTICATE PLAIN\r\n", &[b'A'; 5_000][..], b"\r\nb NOOP\r\n"].concat();
    always(
        &stream,
        &[attempt(NO, &[b""])],
        &[b"+ \r", b"* BYE [TOOBIG] "],
        &[authenticate_seen("PLAIN")],
        &Ended::Closed(End::TooLong),
    );
}
