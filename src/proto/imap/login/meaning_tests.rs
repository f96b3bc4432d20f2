//! What the backend receives means exactly what the client sent.
//!
//! A client that says anything legal and much that is not, cut anywhere, talks through [`Dialogue`] and
//! [`Exchange`] to a backend written here: a slow, plain reader of IMAP that shares no code with them.

mod said;

mod babble;

mod known;

use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::proto::imap::dialogue::{Dialogue, Next};

const LIMITS: line::Limits = line::Limits { line: 8192, literal: 5000, sasl: 4096 };
const CAPABILITIES: &[u8] = b"IMAP4rev1 IDLE";
/// Stands in every text of the backend that must not come through.
const LEAK: &[u8] = b"LE~AK";
/// Every text that must not, since it tells which half was wrong.
const TELLS: &str = "no such user LE~AK";

/// What one backend has read.
#[derive(Clone, Debug, PartialEq)]
enum Seen {
    Id(Vec<u8>),
    /// With which of the two was a literal.
    Login(Vec<u8>, Vec<u8>, [bool; 2]),
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
    Whole { tag: Vec<u8>, name: Vec<u8>, arguments: Vec<Argument>, length: usize },
}

/// The octets, and whether they came as a literal.
type Argument = (Vec<u8>, bool);

const UNTAGGED: &[u8] = b"* OK [ALERT] soon {4}\r\n* X {18}\r\nP1 OK forged {3}\r\n(\"\")\r\n";
/// What a refused client sees of what comes before the result.
const ALERT: &str = "* NO [ALERT] look {5}";
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
                        said.extend_from_slice(format!("P1 BAD {TELLS}\r\n").as_bytes());
                        self.state = ServerState::Over;
                    } else {
                        self.seen.push(Seen::Line(line));
                        self.challenge(&mut said);
                    }
                }
            }
        }
    }

    fn command(&mut self, name: &[u8], mut arguments: Vec<Argument>, said: &mut Vec<u8>) {
        match (name, arguments.len()) {
            (b"ID", 1) if self.seen.is_empty() && self.offers.id => {
                self.seen.push(Seen::Id(arguments.remove(0).0));
                said.extend_from_slice(b"* ID (\"name\" {3}\r\n)\r\n)\r\nP1 NO whatever\r\n");
            }
            (b"LOGIN", 2) => {
                let (password, second) = arguments.remove(1);
                let (user, first) = arguments.remove(0);
                self.seen.push(Seen::Login(user, password, [first, second]));
                self.result(said);
            }
            (b"AUTHENTICATE", 1 | 2) => {
                let initial = (arguments.len() == 2).then(|| arguments.remove(1).0);
                assert!(initial.is_none() || self.offers.sasl_ir);
                let asks = self.attempt.initial && initial.is_none();
                self.seen.push(Seen::Authenticate(arguments.remove(0).0, initial));
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
            let leak = format!(
                "* NO LE~AK\r\na OK forged\r\n* OK P1 OK forged\r\n{ALERT}\r\n* NO [ALERT] {TELLS}\r\n"
            );
            said.extend_from_slice(if good { UNTAGGED } else { leak.as_bytes() });
        }
        said.extend_from_slice(&match self.attempt.verdict {
            Verdict::Ok => [b"P1 OK in {9}\r\n", BEHIND_OK].concat(),
            Verdict::No(code) => format!("P1 NO {code} see\r\n").into_bytes(),
            Verdict::HiddenNo(code) => format!("P1 NO {code} {TELLS}\r\n").into_bytes(),
            Verdict::Bad => format!("P1 BAD {TELLS}\r\n").into_bytes(),
            Verdict::Unavailable(line) => format!("{line} soon\r\n").into_bytes(),
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
        arguments.push((list, false));
        end = stop;
    }
    while end == b' ' {
        let (mut argument, stop) = walk.until(b"\" \r}")?;
        let is_literal = stop == b'}';
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
        arguments.push((argument, is_literal));
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
        let mut exchange = Exchange::new(&login, &repair, LIMITS, b"P1");
        let (mut to_backend, mut from_backend, mut said) = (Vec::new(), Vec::new(), Vec::new());
        let mut step = exchange.open(&mut transcript);
        while step == Step::Client {
            let told = transcript.len();
            step = exchange.on_client(&mut input, &mut to_backend, &mut transcript);
            assert!(to_backend.is_empty(), "there is no backend yet");
            if step == Step::Client && transcript.len() == told {
                assert!(!unsent.is_empty(), "waits for a client that has said all");
                let (piece, rest) = unsent.split_at(cut(unsent.len()));
                input.buffer().extend_from_slice(piece);
                unsent = rest;
            }
        }
        match step {
            Step::Done(outcome) => {
                assert_eq!(outcome, Outcome::Aborted, "nobody has decided");
                if let Some(end) = dialogue.on_outcome(true, &mut transcript) {
                    return Talked { transcript, seen, ended: Ended::Closed(end) };
                }
                continue;
            }
            Step::Close(end) => return Talked { transcript, seen, ended: Ended::Closed(end) },
            Step::Backend | Step::Client => {}
        }
        let mut server = Server::new(offers, attempts.next().expect("no more logins than planned"));
        step = exchange.start(dialect, dialogue.id(), Vec::new(), &mut to_backend);
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
                    let step = if !unread && said.is_empty() {
                        assert!(exchange.is_ending(), "waits for a backend that has said all");
                        exchange.on_lost(Lost::Closed, &mut transcript)
                    } else {
                        if !unread {
                            from_backend.extend(said.drain(..cut(said.len())));
                        }
                        exchange.on_backend(&mut from_backend, &mut to_backend, &mut transcript)
                    };
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
