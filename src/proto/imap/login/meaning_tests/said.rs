//! What a client can say, and what has to come of it by the rules and not by the code.

use proptest::prelude::*;
use proptest::sample::select;

use super::*;

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
    /// Between words and, if there are several, at the end.
    blanks: usize,
}

fn base64(bytes: &[u8]) -> Vec<u8> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes).into_bytes()
}

/// `text` as the client writes it, in the form wished for if it can have it; and whether it waits for `+`.
fn written(text: &[u8], form: Form) -> (Vec<u8>, bool) {
    let atom = |o: &u8| (b'!'..=b'~').contains(o) && !b"(){\"".contains(o);
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

/// What a client is asked before any server is: the octets of each challenge.
fn said_before_dialling(mechanism: &str, initial: bool) -> &'static [&'static [u8]] {
    let all: &[&[u8]] = match mechanism {
        "PLAIN" | "plain" | "XOAUTH2" | "SCRAM-SHA-256" => &[b""],
        "LOGIN" => &[b"Username:", b"Password:"],
        _ => &[],
    };
    all.get(usize::from(initial)..).unwrap_or_default()
}

/// Whether the backend gets a literal: where the client wrote one, and where quotes would not do.
fn as_literal(text: &[u8], form: Form) -> bool {
    let (written, _) = written(text, form);
    let quoted = 2 * text.len() - text.iter().filter(|&o| !b"\"\\".contains(o)).count();
    let unquoted = !written.starts_with(b"\"");
    written.starts_with(b"{")
        || (unquoted && text.contains(&b'\\'))
        || quoted > 1000
        || text.iter().any(|octet| !(b' '..=b'~').contains(octet))
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
        let blank = &b"    "[..said.blanks];
        let padded = [&blank[1..], end].concat();
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
                } else if !line.starts_with(b"ID") {
                    self.bad();
                }
                // A blank behind `{n}` makes another word of it.
                let end = if line.ends_with(b"}") { end } else { &padded };
                return [tag, blank, line, end].concat();
            }
            Turn::Id(line, passes) => {
                if line.windows(2).any(|two| two == b"1}") {
                    self.line(&[b"+ "]);
                }
                self.line(&[b"* ID (\"name\" \"imaps-proxy\")"]);
                self.line(&[tag, b" OK "]);
                self.bad_in_a_row = 0;
                self.id = passes.to_vec();
                return [tag, blank, b"ID", blank, line, &padded].concat();
            }
            Turn::Login([user, password]) => {
                let literal = [user, password].map(|(text, form)| as_literal(text, *form));
                seen.push(Seen::Login(user.0.clone(), password.0.clone(), literal));
                let mut bytes = [tag, blank, b"LOGIN"].concat();
                for (text, form) in [user, password] {
                    let (text, waits) = written(text, *form);
                    bytes.extend([blank, &text[..]].concat());
                    if waits {
                        self.line(&[b"+ "]);
                    }
                }
                [bytes, padded].concat()
            }
            Turn::Authenticate(mechanism, initial, answers) => {
                let upper = mechanism.to_ascii_uppercase().into_bytes();
                let mut bytes = [tag, blank, b"AUTHENTICATE", blank, mechanism.as_bytes()].concat();
                attempt.initial = initial.is_some();
                let text = initial.as_ref().map(|message| base64(message));
                if let Some(text) = &text {
                    let shown = if text.is_empty() { b"=" } else { &text[..] };
                    bytes.extend([blank, shown].concat());
                    if offers.sasl_ir {
                        seen.push(Seen::Authenticate(upper, Some(shown.to_vec())));
                    } else {
                        seen.push(Seen::Authenticate(upper, None));
                        seen.push(Seen::Line(text.clone()));
                    }
                } else {
                    seen.push(Seen::Authenticate(upper, None));
                }
                bytes.extend_from_slice(&padded);
                let ours = said_before_dialling(mechanism, initial.is_some());
                for (n, (challenge, answer)) in answers.iter().enumerate() {
                    let challenge = base64(challenge);
                    let shown = ours.get(n).map_or(challenge.clone(), |text| base64(text));
                    self.line(&[b"+ ", &shown, b"\r"]);
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
                        if !over && n >= ours.len() {
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
        } else if said.chatty {
            self.line(&[ALERT.as_bytes()]);
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
        command("NOOP\rb LOGIN u p", bad),
        command("NOOP\0", bad),
        command("LOGIN u", bad),
        command("LOGIN u\tp", bad),
        command("LOGIN u \"p\"q", bad),
        command("LOGIN \"u p", bad),
        command("LOGIN \"u\\x\" p", bad),
        command("LOGIN {3+}\r\nu\0v p", bad),
        command("LOGIN {2}\r\nuvw p", &["+ ", "BAD "]),
        command("LOGIN u p {8+}\r\n\r\nb NOOP", bad),
        command("AUTHENTICATE", bad),
        command("AUTHENTICATE PLAIN !!", bad),
        command("AUTHENTICATE PLAIN AAA=BBB", bad),
        command("AUTHENTICATE PLAIN AAAA AAAA", bad),
        command("ID", bad),
        command("ID ((\"a\" \"b\"))", bad),
        command("ID (\"a\" \"b\"\"c\" \"d\")", bad),
        command("LOGIN {9999}", &["NO [TOOBIG] "]),
    ];
    let ids = vec![
        Turn::Id(b"NIL", b""),
        Turn::Id(b"()", b""),
        Turn::Id(b"(\"name\" \"x\\\"y\")", b"(\"name\" \"x\\\"y\")"),
        Turn::Id(b"(\"x-originating-ip\" \"6.6.6.6\" {2+}\r\nos NIL)", b"(\"os\" NIL)"),
        Turn::Id(b"({1}\r\nk \"v\")", b"(\"k\" \"v\")"),
        Turn::Id(b"(  \"k\"  \"v\"  \"l\" NIL )", b"(\"k\" \"v\" \"l\" NIL)"),
        Turn::Id(b"( )", b""),
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
            .prop_map(|(name, initial, mut answers)| {
                let asked = said_before_dialling(name, initial.is_some()).len();
                let over = |(_, last): &(_, Answer)| !matches!(last, Answer::Message(_));
                while answers.len() < asked && !answers.last().is_some_and(over) {
                    answers.push((Vec::new(), Answer::Message(b"more".to_vec())));
                }
                Turn::Authenticate(name, initial, answers)
            }),
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
    let tags = vec!["a", "a", "A1", "x-._9", "P1", "?", "#1", "A/1", "1~#~]}", "[,;:!&'=$@^`|<>"];
    let odd =
        (any::<bool>(), prop::bool::weighted(0.2), prop_oneof![4 => Just(1), 1 => 1..4_usize]);
    (select(tags), turn(), select(verdicts), odd).prop_map(
        |(tag, turn, mut verdict, (chatty, bare_lf, blanks))| {
            // Within AUTHENTICATE another `+` is another challenge.
            if let (Turn::Authenticate(..), Verdict::Unavailable("+")) = (&turn, verdict) {
                verdict = Verdict::Bad;
            }
            Said { tag, turn, verdict, chatty, bare_lf, blanks }
        },
    )
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
