use super::*;

fn dialogue() -> Dialogue {
    Dialogue::new(Limits { line: 8192, literal: 4096, sasl: 65536 })
}

/// Feeds `input` in pieces of `step` bytes until a login or the end.
fn talk(dialogue: &mut Dialogue, input: &[u8], step: usize) -> (String, Next, Vec<u8>) {
    let (mut seen, mut out) = (Input::default(), Vec::new());
    let mut next = Next::More;
    let mut chunks = input.chunks(step);
    for chunk in chunks.by_ref() {
        seen.buffer().extend_from_slice(chunk);
        next = dialogue.advance(&mut seen, b"IMAP4rev1 AUTH=PLAIN", &mut out);
        if !matches!(next, Next::More) {
            break;
        }
    }
    let mut rest = seen.bytes().to_vec();
    rest.extend(chunks.flatten());
    (String::from_utf8(out).expect("answers are ASCII"), next, rest)
}

#[test]
fn commands_before_login_are_answered_however_they_are_cut() {
    let input = b"a CAPABILITY\r\nb NOOP\r\nc ID (\"name\" \"x\")\r\nd STARTTLS\r\ne LOGOUT\r\n";
    let want = "* CAPABILITY IMAP4rev1 AUTH=PLAIN\r\na OK CAPABILITY completed.\r\nb OK NOOP completed.\r\n\
                * ID (\"name\" \"imaps-proxy\")\r\nc OK ID completed.\r\nd BAD TLS is already on.\r\n\
                * BYE Logging out.\r\ne OK LOGOUT completed.\r\n";
    for step in 1..=input.len() {
        let (out, next, _) = talk(&mut dialogue(), input, step);
        assert_eq!(out, want, "in steps of {step}");
        assert!(matches!(next, Next::Close(End::Logout)));
    }
}

#[test]
fn a_login_is_handed_on_with_what_follows_left_in_the_input() {
    let input = b"a LOGIN {4}\r\ntest {6+}\r\ns\r\n\"\\x\r\nb SELECT INBOX\r\n";
    for step in 1..=input.len() {
        let (out, next, rest) = talk(&mut dialogue(), input, step);
        assert_eq!(out, "+ OK\r\n");
        let Next::LogIn(Login { tag, method: Method::Login { user, password, .. } }) = next else {
            panic!("no login in steps of {step}")
        };
        assert_eq!(
            (&tag[..], &user[..], password.expose()),
            (&b"a"[..], &b"test"[..], &b"s\r\n\"\\x"[..])
        );
        assert_eq!(rest, b"b SELECT INBOX\r\n");
    }
}

#[test]
fn three_bad_commands_in_a_row_end_the_session_and_a_good_one_starts_the_count_anew() {
    let bad = "BAD Unknown command before login.\r\n";
    let (out, next, _) =
        talk(&mut dialogue(), b"a X\r\nb X\r\nc NOOP\r\nd X\r\ne X\r\nf X\r\ng NOOP\r\n", 99);
    let want = format!(
        "a {bad}b {bad}c OK NOOP completed.\r\nd {bad}e {bad}f {bad}* BYE Too many bad commands.\r\n"
    );
    assert_eq!(out, want);
    assert!(matches!(next, Next::Close(End::TooManyBadCommands)));
    let mut aborts = dialogue();
    let mut out = Vec::new();
    assert_eq!(aborts.on_outcome(true, &mut out), None);
    assert_eq!(aborts.on_outcome(true, &mut out), None);
    assert_eq!(aborts.on_outcome(true, &mut out), Some(End::TooManyBadCommands));
}

#[test]
fn http_is_told_nothing_of_itself() {
    // `Host:` is a tag like others, and a browser would take for a page what it is answered.
    let page = b"<script>alert`1`</script> x\r\nHost: x\r\n\r\n";
    for request in ["GET / HTTP/1.1\r\n", "POST /<b>x</b> HTTP/1.0\n", "OPTIONS * HTTP/1.1\r\n"] {
        let told = always(&[request.as_bytes(), page].concat());
        assert_eq!(told.answers, "* BYE This is IMAP, not HTTP.\r\n");
        assert_eq!(told.end, VIOLATION);
    }
    let password = b"a LOGIN u HTTP/1.1\r\n";
    check("a password", password, &[], &["a u HTTP/1.1"], None);
}

#[test]
fn a_client_that_only_asks_is_told_bye_in_the_end() {
    let (out, next, _) = talk(&mut dialogue(), "a NOOP\r\n".repeat(30).as_bytes(), 999);
    assert!(out.ends_with("* BYE Too many commands before login.\r\n"));
    assert_eq!(out.matches("a OK").count(), 20);
    assert!(matches!(next, Next::Close(End::TooManyCommands)));
}

#[test]
fn a_synchronising_literal_that_is_too_long_costs_the_command_only() {
    let (out, next, _) = talk(&mut dialogue(), b"a LOGIN {99999999999}\r\nb NOOP\r\n", 99);
    assert_eq!(out, "a NO [TOOBIG] Literal too long.\r\nb OK NOOP completed.\r\n");
    assert!(matches!(next, Next::More));
}

#[test]
fn what_is_not_base64_stays_here() {
    let input = b"a AUTHENTICATE PLAIN !!\r\nb AUTHENTICATE PLAIN AA=BBB\r\nc NOOP\r\n";
    let (out, next, _) = talk(&mut dialogue(), input, 99);
    assert_eq!(out.matches("BAD AUTHENTICATE takes").count(), 2);
    assert!(out.ends_with("c OK NOOP completed.\r\n"));
    assert!(matches!(next, Next::More));
}

/// What became of one input: logins are refused by the backend until the input is used up.
#[derive(Clone, Debug, PartialEq)]
struct Told {
    answers: String,
    /// Each login as the backend would get it.
    logins: Vec<String>,
    end: Option<End>,
}

fn tell(input: &[u8], pieces: &mut dyn Iterator<Item = &[u8]>) -> Told {
    let (mut dialogue, mut seen, mut out) = (dialogue(), Input::default(), Vec::new());
    let (mut logins, mut end) = (Vec::new(), None);
    'said: for piece in pieces {
        seen.buffer().extend_from_slice(piece);
        loop {
            let most = 8192 + 65536 + piece.len();
            assert!(seen.bytes().len() <= most, "{}", input.escape_ascii());
            match dialogue.advance(&mut seen, b"IMAP4rev1", &mut out) {
                Next::More => break,
                Next::LogIn(Login { tag, method: Method::Login { user, password, .. } }) => {
                    let words = [&tag, &user, password.expose()]
                        .map(|word| word.escape_ascii().to_string());
                    logins.push(words.join(" "));
                }
                Next::LogIn(Login { tag, method: Method::Authenticate { mechanism, initial } }) => {
                    let initial = initial
                        .map_or(String::new(), |text| text.expose().escape_ascii().to_string());
                    logins.push(format!("{} {mechanism} {initial}", tag.escape_ascii()));
                }
                Next::Close(why) => {
                    end = Some(why);
                    break 'said;
                }
                Next::StartTls => unreachable!("TLS is on"),
            }
            end = dialogue.on_outcome(false, &mut out);
        }
    }
    Told { answers: String::from_utf8(out).expect("answers are ASCII"), logins, end }
}

/// The same whole, byte by byte and cut at every offset (of a long input: in short pieces, and at
/// some).
fn always(input: &[u8]) -> Told {
    let whole = tell(input, &mut [input].into_iter());
    let name = &input[..input.len().min(100)].escape_ascii().to_string();
    let (piece, cuts) = if input.len() < 10_000 { (1, 100) } else { (509, 5) };
    assert_eq!(tell(input, &mut input.chunks(piece)), whole, "{name} in pieces");
    for at in (0..input.len()).step_by(1 + input.len() / cuts) {
        let (first, second) = input.split_at(at);
        assert_eq!(tell(input, &mut [first, second].into_iter()), whole, "{name} cut at {at}");
    }
    whole
}

/// `answers` by their first words, without CRLF; `logins` and `end` as they are.
fn check(name: &str, input: &[u8], answers: &[&str], logins: &[&str], end: Option<End>) {
    let told = always(input);
    let lines: Vec<&str> = told.answers.split_terminator("\r\n").collect();
    assert_eq!(lines.len(), answers.len(), "{name}: {lines:?}");
    for (line, want) in lines.iter().zip(answers) {
        assert!(line.starts_with(want), "{name}: {line:?} should begin with {want:?}");
    }
    assert_eq!(
        (told.logins, told.end),
        (logins.iter().map(ToString::to_string).collect(), end),
        "{name}"
    );
}

const VIOLATION: Option<End> = Some(End::ProtocolViolation);
const TOO_LONG: Option<End> = Some(End::TooLong);
const TOO_MANY_BAD: Option<End> = Some(End::TooManyBadCommands);
const LITERAL: &str = "* BYE A literal may not stand there.";
const TOO_BIG: &str = "* BYE [TOOBIG] Literal too long.";
const TOO_MANY: &str = "* BYE Too many bad commands.";

#[test]
fn no_command_is_smuggled_where_two_readers_differ() {
    // A literal where none may stand: some take it, some execute what it holds. Nobody gets to choose.
    check("a literal as tag", b"{3+}\r\nabc NOOP\r\n", &[LITERAL], &[], VIOLATION);
    check("a literal as verb", b"a {4+}\r\nNOOP\r\n", &[LITERAL], &[], VIOLATION);
    check("in open quotes", b"a LOGIN \"x {5+}\r\nb NOOP\r\n", &[LITERAL], &[], VIOLATION);
    check("stuck to an atom", b"a LOGIN test{6+}\r\nsecret\r\n", &[LITERAL], &[], VIOLATION);
    check("stuck to quotes", b"a LOGIN \"u\"{6+}\r\nsecret\r\n", &[LITERAL], &[], VIOLATION);
    check("to an unknown verb", b"a FOO {6}\r\nb NOOP\r\n", &[LITERAL], &[], VIOLATION);
    check("of no known kind", b"a LOGIN {4-}\r\nuser p\r\n", &[LITERAL], &[], VIOLATION);
    check("without space", b"a LOGIN{4+}\r\nuser p\r\n", &[LITERAL], &[], VIOLATION);
    check("behind a blank", b"a LOGIN u {4+} \r\nb NOOP\r\n", &["a BAD", "b OK"], &[], None);
    check("to AUTHENTICATE", b"a AUTHENTICATE PLAIN {16+}\r\n", &[LITERAL], &[], VIOLATION);
    check("as mechanism", b"a AUTHENTICATE {5+}\r\nPLAIN\r\n", &[LITERAL], &[], VIOLATION);
    // The verb stands on the next line: it is not this one's.
    check("a parenthesis", b"({3+}\r\n LOGIN x\r\n", &[LITERAL], &[], VIOLATION);
    check("a digit with plus", b"a LOGIN {+4}\r\nb NOOP\r\n", &["a BAD", "b OK"], &[], None);
    // What follows a refused AUTHENTICATE is a command.
    let refused = b"a AUTHENTICATE NOPE\r\nb LOGIN test secret\r\n";
    check("an unknown mechanism", refused, &[], &["a NOPE ", "b test secret"], None);
    let not_base64 = b"a AUTHENTICATE PLAIN !!\r\nb LOGIN test secret\r\n";
    check("no base64", not_base64, &["a BAD"], &["b test secret"], None);
    // A literal that was announced is one, whether or not the client waited.
    check("not waited", b"a LOGIN {4}\r\nb NOOP\r\n", &["+ ", "a BAD"], &[], None);
    check("whole", b"a LOGIN {4}\r\nb NO p\r\nc NOOP\r\n", &["+ ", "c OK"], &["a b NO p"], None);
    // Bare LF ends a line here and never goes on; bare CR ends none.
    let bare_lf = b"a LOGIN {4+}\ntest {004+}\nabcd\nb NOOP\n";
    check("bare LF", bare_lf, &["b OK"], &["a test abcd"], None);
    check("bare CR", b"a NOOP\rb NOOP\r\nc NOOP\r\n", &["a BAD", "c OK"], &[], None);
    check("bare CR in a word", b"a LOGIN u p\rb NOOP\r\n", &["a BAD"], &[], None);
    check("bare CR in quotes", b"a LOGIN u \"p\rq\"\r\n", &["a BAD"], &[], None);
    check("CR before a tag", b"\ra NOOP\r\nb NOOP\r\n", &["* BAD", "b OK"], &[], None);
    check("two CR", b"a LOGIN u p\r\r\nb NOOP\r\r\n", &["a BAD", "b BAD"], &[], None);
    check("CR ends a literal", b"a LOGIN u {2+}\np\r\n", &[], &["a u p\\r"], None);
    let lines = b"a LOGIN \"u\r\nb NOOP\r\n\" p\r\n";
    check("CRLF in quotes", lines, &["a BAD", "b OK", "* BAD"], &[], None);
}

#[test]
fn nul_is_refused_wherever_it_stands() {
    for bad in [
        &b"a NOOP\0"[..],
        b"a \0",
        b"a LOGIN u\0 p",
        b"a LOGIN \"u\0\" p",
        b"a LOGIN u {1+}\r\n\0",
        b"a LOGIN u p\0",
        b"a AUTHENTICATE PLAIN AAAA\0",
        b"a AUTHENTICATE PLAIN\0",
        b"a ID (\"k\" \"\0\")",
        b"a ID ({1+}\r\n\0 NIL)",
        b"a NOOP \0",
    ] {
        check("NUL", &[bad, b"\r\nb NOOP\r\n"].concat(), &["a BAD", "b OK"], &[], None);
    }
    check("NUL in a tag", b"a\0 NOOP\r\nb NOOP\r\n", &["* BAD", "b OK"], &[], None);
    check("NUL alone", b"\0\r\nb NOOP\r\n", &["* BAD", "b OK"], &[], None);
}

#[test]
fn nothing_that_a_client_announces_or_sends_is_held_beyond_the_limits() {
    for size in [
        "4097",
        "999999999",
        "99999999999",
        "4294967297",
        "18446744073709551615",
        "18446744073709551617",
    ] {
        let waits = format!("a LOGIN {{{size}}}\r\nb NOOP\r\n");
        check(size, waits.as_bytes(), &["a NO [TOOBIG]", "b OK"], &[], None);
        let second = format!("a LOGIN {{1+}}\r\nu {{{size}}}\r\nb NOOP\r\n");
        check(size, second.as_bytes(), &["a NO [TOOBIG]", "b OK"], &[], None);
        let sent = format!("a LOGIN {{{size}+}}\r\nb NOOP\r\n");
        check(size, sent.as_bytes(), &[TOO_BIG], &[], TOO_LONG);
    }
    check(
        "the longest",
        &[b"a LOGIN u {4096+}\r\n", &[b'x'; 4096][..], b"\r\nb NOOP\r\n"].concat(),
        &["b OK"],
        &[&format!("a u {}", "x".repeat(4096))],
        None,
    );
    // Every literal is within its limit, and there are hundreds.
    let one = [b" {4096+}\r\n", &[b'x'; 4096][..]].concat();
    for (verb, told) in [("LOGIN", &[TOO_BIG][..]), ("ID (", &["a BAD ID takes"])] {
        let many = [b"a ", verb.as_bytes(), &one.repeat(100), b"\r\n"].concat();
        let end = if verb == "LOGIN" { TOO_LONG } else { None };
        check(verb, &many, told, &[], end);
    }
    let pair = [b"{30+}\r\n", &[b'k'; 30][..], b" {1024+}\r\n", &[b'v'; 1024][..]].concat();
    let largest = [&b"a ID ("[..], &[&pair[..]; 30].join(&b' '), b")\r\n"].concat();
    check("the largest ID", &largest, &["* ID", "a OK"], &[], None);
    let long = "* BYE [TOOBIG] Line too long.";
    check("64 KiB", &[&[b'x'; 65536][..], b"\r\nb NOOP\r\n"].concat(), &[long], &[], TOO_LONG);
    check("200 kB", &[b'x'; 200_000], &[long], &[], TOO_LONG);
    check("200 kB of words", &b"a LOGIN ".repeat(25_000), &[long], &[], TOO_LONG);
    check(
        "an initial response",
        &[b"a AUTHENTICATE PLAIN ", &[b'A'; 80_000][..]].concat(),
        &[long],
        &[],
        TOO_LONG,
    );
    check(
        "a tag and no command",
        &[&[b'x'; 8192][..], b" AUTHENTICATE PLAIN\r\n"].concat(),
        &[long],
        &[],
        TOO_LONG,
    );
    let room = [b"a AUTHENTICATE PLAIN ", &[b'A'; 65540][..], b"\r\nb NOOP\r\n"].concat();
    check("base64 over its limit", &room, &["a BAD", "b OK"], &[], None);
    check(
        "parentheses",
        &[b"a ID ", &[b'('; 1000][..], b"\r\nb NOOP\r\n"].concat(),
        &["a BAD", "b OK"],
        &[],
        None,
    );
    let pairs =
        [&b"a ID ("[..], &[&b"\"k\" \"v\""[..]; 31].join(&b' '), b")\r\nb NOOP\r\n"].concat();
    check("31 pairs", &pairs, &["a BAD", "b OK"], &[], None);
}

#[test]
fn many_commands_end_the_session_whatever_they_are() {
    check(
        "bad ones",
        &b"x X\r\n".repeat(10),
        &["x BAD", "x BAD", "x BAD", TOO_MANY],
        &[],
        TOO_MANY_BAD,
    );
    check(
        "empty lines",
        &b"\r\n".repeat(10),
        &["* BAD", "* BAD", "* BAD", TOO_MANY],
        &[],
        TOO_MANY_BAD,
    );
    let too_big: &[&str] = &["a NO [TOOBIG]", "a NO [TOOBIG]", "a NO [TOOBIG]", TOO_MANY];
    check("announcements", &b"a LOGIN {9999}\r\n".repeat(10), too_big, &[], TOO_MANY_BAD);
    // Two bad ones and a good one, over and over: all of them count.
    for bad in ["%\r\n", "x X\r\n", "a LOGIN {9999}\r\n"] {
        let told = always(format!("{bad}{bad}a NOOP\r\n").repeat(30).as_bytes());
        assert_eq!(told.end, Some(End::TooManyCommands), "{bad}");
        assert_eq!(told.answers.lines().count(), 21, "{bad}");
    }
    let told = always(
        &[&[b'%'; 8000][..], b"\r\nx ", &[b'x'; 8000], b"\r\na NOOP\r\n"].concat().repeat(9),
    );
    assert_eq!(told.end, Some(End::TooManyCommands));
    assert_eq!(told.answers.lines().count(), 13, "64 KiB are over");
    let guesses = always(&b"a LOGIN u p\r\n".repeat(30));
    assert_eq!((guesses.logins.len(), guesses.end), (20, Some(End::TooManyCommands)));
    let mut aborts = dialogue();
    for n in 1..=3 {
        let (_, next, _) = talk(&mut aborts, b"a AUTHENTICATE PLAIN\r\n", 99);
        assert!(matches!(next, Next::LogIn(_)));
        assert_eq!(aborts.on_outcome(true, &mut Vec::new()).is_some(), n == 3);
    }
}

#[test]
fn an_initial_response_is_one_word_of_base64() {
    check("empty", b"a AUTHENTICATE PLAIN =\r\n", &[], &["a PLAIN ="], None);
    check("good", b"a AUTHENTICATE x_Y-1 AGIAcA==\n", &[], &["a X_Y-1 AGIAcA=="], None);
    for bad in [
        "=AAA",
        "AAA=BBB",
        "AA",
        "AAA",
        "!!!!",
        "AAAA AAAA",
        "\"AAAA\"",
        "AA\tAA",
        "AA==AA==",
        "AB==",
        "*",
    ] {
        let input = format!("a AUTHENTICATE PLAIN {bad}\r\nb NOOP\r\n");
        check(bad, input.as_bytes(), &["a BAD", "b OK"], &[], None);
    }
    let long = format!(" {}", "X".repeat(65));
    for bad in ["", " ", " PL*IN", " \"PLAIN\"", " PLAIN.X", &long] {
        let input = format!("a AUTHENTICATE{bad}\r\nb NOOP\r\n");
        check(bad, input.as_bytes(), &["a BAD", "b OK"], &[], None);
    }
}

#[test]
fn a_tag_that_can_not_be_echoed_is_not() {
    for tag in [
        "%s%n", "+", "*", "a+", "a*b", "a\"", "a(b", "a)b", "a{3}", "a\\b", "\x1b[31m", "\x7f",
        "a\tb", "\u{fc}", "",
    ] {
        check(tag, format!("{tag} NOOP\r\nb NOOP\r\n").as_bytes(), &["* BAD", "b OK"], &[], None);
    }
    let told = always(b"%s%n NOOP\r\n");
    assert_eq!(told.answers, "* BAD A command begins with a tag.\r\n");
}

#[test]
fn every_tag_of_the_grammar_is_answered_under_itself_as_long_as_the_line_allows() {
    let every: String = ('!'..='~').filter(|c| !r#"(){%*"\+"#.contains(*c)).collect();
    assert_eq!(every.len(), 86);
    let longest = every.repeat(95);
    for tag in
        ["?", "1~#~OPAQUE-MAIL~#~", "$1", "#0001", "A/1", "A:1", "=1", "@1", "a]", &every, &longest]
    {
        let answer = |rest: &str| format!("{tag} {rest}");
        let commands = format!("{tag} NOOP\r\n{tag} ID NIL\r\n{tag} X\r\n");
        let answers = [&answer("OK NOOP"), "* ID (", &answer("OK ID"), &answer("BAD Unk")];
        check(tag, commands.as_bytes(), &answers, &[], None);
        // With a literal and with a long initial response, the verb is found behind it.
        let shown = tag.as_bytes().escape_ascii();
        let login = format!("{tag} LOGIN {{1+}}\r\nu p\r\n");
        check(tag, login.as_bytes(), &[], &[&format!("{shown} u p")], None);
        let response = "QUJD".repeat(4_000);
        let login = format!("{tag} AUTHENTICATE X {response}\r\n");
        check(tag, login.as_bytes(), &[], &[&format!("{shown} X {response}")], None);
    }
}

#[test]
fn blanks_are_taken_where_servers_take_them() {
    let login = &["a u p"][..];
    for line in [
        "a LOGIN u p ",
        "a LOGIN u p   ",
        "a LOGIN  u p",
        "a LOGIN u  p",
        "a  LOGIN  u  p  ",
        "a LOGIN \"u\"  \"p\" ",
        "a  LOGIN  {1+}\r\nu  {1+}\r\np ",
    ] {
        check(line, format!("{line}\r\n").as_bytes(), &[], login, None);
        check(line, format!("{line}\n").as_bytes(), &[], login, None);
    }
    check("waits", b"a  LOGIN u  {1}\r\np \r\n", &["+ "], login, None);
    // Debian 12's mutt, where the server has SASL-IR.
    check("mutt", b"a AUTHENTICATE CRAM-MD5 \r\n", &[], &["a CRAM-MD5 "], None);
    for line in ["a AUTHENTICATE X AAAA ", "a  AUTHENTICATE  X  AAAA"] {
        check(line, format!("{line}\r\n").as_bytes(), &[], &["a X AAAA"], None);
    }
    check("empty", b"a AUTHENTICATE X = \r\n", &[], &["a X ="], None);
    for verb in ["NOOP", "CAPABILITY", "LOGOUT"] {
        let ends = (verb == "LOGOUT").then_some(End::Logout);
        for command in [format!("a {verb} \r\n"), format!("a   {verb}  \n")] {
            let told = always(command.as_bytes());
            assert!(told.answers.ends_with(&format!("a OK {verb} completed.\r\n")), "{told:?}");
            assert_eq!(told.end, ends);
        }
    }
    for id in [
        "( \"k\" \"v\" )",
        "(\"k\" \"v\" ) ",
        " (\"k\"  \"v\")",
        "( )",
        "NIL ",
        " ( \"k\"   NIL  ) ",
    ] {
        check(id, format!("a ID {id}\r\n").as_bytes(), &["* ID", "a OK"], &[], None);
    }
    // No server takes one before the tag.
    check("at the front", b" a NOOP\r\nb NOOP\r\n", &["* BAD", "b OK"], &[], None);
}

#[test]
fn what_people_type_unquoted_is_a_password_as_it_stands() {
    for word in ["a%b*c", "%", "*", "DOMAIN\\user", "a]b}c", "a\\"] {
        let input = format!("a LOGIN {word} {word}\r\n");
        let login = format!("a {word} {word}").replace('\\', "\\\\");
        check(word, input.as_bytes(), &[], &[&login], None);
    }
}

#[test]
fn a_tab_ends_a_word_for_one_server_and_belongs_to_it_for_another_so_it_is_refused() {
    for line in ["a LOGIN u\tx p", "a LOGIN u\tp", "a\tLOGIN u p", "a LOGIN u p\t"] {
        let refused = if line.starts_with("a ") { "a BAD" } else { "* BAD" };
        check(line, format!("{line}\r\nb NOOP\r\n").as_bytes(), &[refused, "b OK"], &[], None);
    }
}

#[test]
fn an_id_never_ends_the_session() {
    let wrong = &b"a ID (\"k\")\r\n"[..];
    check("wrong ones", &wrong.repeat(9), &["a BAD ID takes"; 9], &[], None);
    // They neither count as bad in a row nor begin the count anew.
    let between = [b"x X\r\n", wrong, b"x X\r\n", wrong, b"x X\r\n"].concat();
    let answers = ["x BAD", "a BAD", "x BAD", "a BAD", "x BAD", TOO_MANY];
    check("between bad ones", &between, &answers, &[], TOO_MANY_BAD);
    // The largest of RFC 2971, quoted, every octet escaped.
    let largest = |octet: &str| {
        let pair = format!("\"{}\" \"{}\"", octet.repeat(30), octet.repeat(1024));
        format!("a ID ({})\r\n", [pair.as_str(); 30].join(" "))
    };
    for octet in ["v", "\\\""] {
        let id = largest(octet);
        check("the largest", id.as_bytes(), &["* ID", "a OK"], &[], None);
        check("many", id.repeat(9).as_bytes(), &["* ID", "a OK"].repeat(9), &[], None);
    }
    // What is over every limit is answered, and what follows is the next command.
    let quoted = |size: usize| format!("a ID (\"k\" \"{}\")\r\n", "v".repeat(size));
    let literal =
        |size: usize| format!("a ID (\"k\" {{{size}+}}\r\n{})\r\n", "b NOOP\r\n".repeat(size / 8));
    let lines = format!("a ID ({})\r\n", "{7+}\r\nc X\r\n\r\n {7+}\r\nc X\r\n\r\n ".repeat(5000));
    let behind = |id: String| id + "b NOOP\r\n";
    for id in
        [quoted(65_500), quoted(70_000), quoted(600_000), literal(80_000), literal(600_000), lines]
    {
        let name = id[..30].to_owned();
        check(&name, behind(id).as_bytes(), &["a BAD ID takes", "b OK"], &[], None);
    }
    let waits = behind(format!("a ID ({} {{5}}\r\n", "x".repeat(70_000)));
    check("one waits behind it", waits.as_bytes(), &["a BAD", "b OK"], &[], None);
    check("one waits", b"a ID (\"k\" {70000}\r\nb NOOP\r\n", &["a NO [TOOBIG]", "b OK"], &[], None);
    // Unlike a login's.
    check("its literals", behind(literal(8000)).as_bytes(), &["a BAD ID takes", "b OK"], &[], None);
    for (name, size) in [("quoted", "1"), ("announced", "99999999999")] {
        let drip = format!("a ID (\"k\" {{{size}+}}\r\n{}", "x".repeat(1_200_000));
        let told = tell(drip.as_bytes(), &mut drip.as_bytes().chunks(5000));
        assert_eq!(told.end, TOO_LONG, "{name}");
    }
}

#[test]
fn an_id_that_passes_by_is_framed_as_strictly_as_one_that_is_kept() {
    let long = "x".repeat(70_000);
    for line in [
        "\"k\" \"v {5+}",    // in open quotes
        "\"k\" v{5+}",       // stuck to an atom
        "\"k\" \"\\\" {5+}", // behind an escaped quote
        "\"k\" {5-}",
        "\"k\" {}",
        "\"k\" {99999999999999999999+}",
    ] {
        for id in
            [format!("a ID ({long} {line}\r\nb NOOP\r\n"), format!("a ID ({line}\r\nb NOOP\r\n")]
        {
            let told = always(id.as_bytes());
            let ends = told.end == VIOLATION || (line.ends_with("{}") && told.end.is_none());
            assert!(ends || line.contains("999"), "{line}: {:?}", told.end);
            assert!(!told.answers.contains("b OK") || line.ends_with("{}"), "{line}");
        }
    }
}

#[test]
fn what_is_refused_is_told_without_a_word_of_the_client() {
    let refused = |input: &[u8]| {
        let mut dialogue = dialogue();
        talk(&mut dialogue, input, 99);
        let told = dialogue.take_refused();
        assert!(dialogue.take_refused().is_empty());
        told.into_iter().map(|one| (one.verb, one.name, one.answer)).collect::<Vec<_>>()
    };
    for (line, verb, name, answer) in [
        ("a language x", Some(Verb::Other), Some("LANGUAGE"), "BAD Unknown"),
        ("a s3cret x", Some(Verb::Other), None, "BAD Unknown"),
        ("s3cret", Some(Verb::Other), None, "BAD Unknown"),
        ("s3cret+", None, None, "BAD A command begins"),
        ("a LOGIN u", Some(Verb::Login), Some("LOGIN"), "BAD LOGIN takes"),
        ("a LOGIN {9999}", Some(Verb::Login), Some("LOGIN"), "NO [TOOBIG]"),
        ("a AUTHENTICATE X !!", Some(Verb::Authenticate), Some("AUTHENTICATE"), "BAD AUTH"),
        ("a ID (", Some(Verb::Id), Some("ID"), "BAD ID takes"),
        ("a starttls", Some(Verb::StartTls), Some("STARTTLS"), "BAD TLS is"),
        ("a NOOP x", Some(Verb::Noop), Some("NOOP"), "BAD The command"),
    ] {
        let told = refused(format!("{line}\r\n").as_bytes());
        assert!(
            matches!(told[..], [(v, n, text)] if v == verb && n == name && text.starts_with(answer)),
            "{told:?}"
        );
    }
    assert!(refused(b"a NOOP\r\nb ID NIL\r\nc CAPABILITY\r\n").is_empty());
}

/// What a client is told before TLS, and how it ended; `None` if it did not.
fn told_before_tls(pieces: &mut dyn Iterator<Item = &[u8]>) -> (String, Option<Result<(), End>>) {
    let limits = Limits { line: 8192, literal: 4096, sasl: 65536 };
    let mut dialogue = Dialogue::before_tls(limits);
    let (mut seen, mut out, mut ended) = (Input::default(), Vec::new(), None);
    for piece in pieces {
        seen.buffer().extend_from_slice(piece);
        match dialogue.advance(&mut seen, b"IMAP4rev1 STARTTLS LOGINDISABLED", &mut out) {
            Next::More => continue,
            Next::StartTls => {
                assert!(seen.bytes().is_empty(), "something is left for TLS");
                ended = Some(Ok(()));
            }
            Next::Close(end) => ended = Some(Err(end)),
            Next::LogIn(login) => panic!("a login before TLS: {login:?}"),
        }
        break;
    }
    (String::from_utf8(out).expect("answers are ASCII"), ended)
}

#[test]
fn before_tls_there_is_starttls_and_no_login() {
    const NO: &str = "NO [PRIVACYREQUIRED] Use STARTTLS before you log in.";
    const STARTED: Option<Result<(), End>> = Some(Ok(()));
    let bad = Some(Err(End::TooManyBadCommands));
    let long = [b"a LOGIN u {4096+}\r\n", &[b'x'; 4096][..], b"\r\nb NOOP\r\n"].concat();
    for (input, answers, end) in [
        (
            &b"a CAPABILITY\r\nb NOOP\r\nc ID NIL\r\nd STARTTLS\r\n"[..],
            &[
                "* CAPABILITY IMAP4rev1 STARTTLS LOGINDISABLED",
                "a OK CAPABILITY completed.",
                "b OK NOOP completed.",
                "* ID (\"name\" \"imaps-proxy\")",
                "c OK ID completed.",
                "d OK Begin TLS now.",
            ][..],
            STARTED,
        ),
        (
            b"a logout\r\n",
            &["* BYE Logging out.", "a OK LOGOUT completed."],
            Some(Err(End::Logout)),
        ),
        (b"a starttls\n", &["a OK Begin TLS now."], STARTED),
        (
            b"a STARTTLS x\r\nb STARTTLS x \r\n",
            &["a BAD The command takes no arguments.", "b BAD The command takes no arguments."],
            None,
        ),
        (b"a  STARTTLS \r\n", &["a OK Begin TLS now."], STARTED),
        (b"a LOGIN u p\r\nb STARTTLS\r\n", &[&format!("a {NO}"), "b OK Begin TLS now."], STARTED),
        // Whatever the arguments are: nobody reads them.
        (b"a LOGIN\r\nb LOGIN x\r\n", &[&format!("a {NO}"), &format!("b {NO}")], None),
        (b"a AUTHENTICATE PLAIN\r\n", &[&format!("a {NO}")], None),
        (b"a AUTHENTICATE PLAIN AHUAcA==\r\n", &[&format!("a {NO}")], None),
        // The literal is refused before it is sent: what follows is a command.
        (b"a LOGIN {4}\r\nb NOOP\r\n", &[&format!("a {NO}"), "b OK NOOP completed."], None),
        (b"a LOGIN u {4}\r\nb NOOP\r\n", &[&format!("a {NO}"), "b OK NOOP completed."], None),
        (
            b"a LOGIN {1+}\r\nu {6}\r\nb NOOP\r\n",
            &[&format!("a {NO}"), "b OK NOOP completed."],
            None,
        ),
        (b"a LOGIN {99999}\r\nb NOOP\r\n", &[&format!("a {NO}"), "b OK NOOP completed."], None),
        // One that is sent anyway is read away, and never a command.
        (
            b"a LOGIN {4+}\r\nuser {8+}\r\nb NOOP\r\n\r\nc NOOP\r\n",
            &[&format!("a {NO}"), "c OK NOOP completed."],
            None,
        ),
        (&long, &[&format!("a {NO}"), "b OK NOOP completed."], None),
        (b"a LOGIN {4097+}\r\n", &["* BYE [TOOBIG] Literal too long."], Some(Err(End::TooLong))),
        (
            b"a ID ({4}\r\nname NIL)\r\n",
            &["+ OK", "* ID (\"name\" \"imaps-proxy\")", "a OK ID completed."],
            None,
        ),
        (
            b"a LOGIN u p\r\nb LOGIN {3}\r\nc AUTHENTICATE X\r\nd STARTTLS\r\n",
            &[
                &format!("a {NO}"),
                &format!("b {NO}"),
                &format!("c {NO}"),
                "* BYE Too many bad commands.",
            ],
            bad,
        ),
        (b"a SELECT INBOX\r\n", &["a BAD Unknown command before login."], None),
    ] {
        let name = input[..input.len().min(60)].escape_ascii().to_string();
        let want = (answers.join("\r\n") + "\r\n", end);
        assert_eq!(told_before_tls(&mut [input].into_iter()), want, "{name} whole");
        assert_eq!(told_before_tls(&mut input.chunks(1)), want, "{name} byte by byte");
        for at in 0..input.len() {
            let (first, second) = input.split_at(at);
            let told = told_before_tls(&mut [first, second].into_iter());
            assert_eq!(told, want, "{name} cut at {at}");
        }
    }
}

/// A1, A2.
#[test]
fn what_is_sent_together_with_starttls_ends_the_session() {
    let bye = "* BYE Nothing may follow STARTTLS but TLS.\r\n";
    let closed = Some(Err(End::PlaintextAfterStarttls));
    for behind in [
        &b"b NOOP\r\n"[..],
        b"b LOG",
        b"b LOGIN test secret\r\n",
        b"b LOGIN {4+}\r\n",
        b"\r\n",
        b"\0",
        b"\x16\x03\x01",
    ] {
        let name = behind.escape_ascii().to_string();
        let command = b"x NOOP\r\na STARTTLS\r\n";
        let input = [command, behind].concat();
        let (out, end) = told_before_tls(&mut [&input[..]].into_iter());
        // Its OK is not said: nobody may take what follows for the first bytes of TLS.
        assert_eq!(
            (out.as_str(), end),
            (&*format!("x OK NOOP completed.\r\n{bye}"), closed),
            "{name}"
        );
        for at in 0..input.len() {
            let (first, second) = input.split_at(at);
            let (out, end) = told_before_tls(&mut [first, second].into_iter());
            // What comes later is for whoever expects TLS then.
            let later = at == command.len();
            let answer = if later { "a OK Begin TLS now.\r\n" } else { bye };
            assert!(out.ends_with(answer), "{name} cut at {at}: {out}");
            assert_eq!(end, if later { Some(Ok(())) } else { closed }, "{name} cut at {at}");
        }
    }
}
