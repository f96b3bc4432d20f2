use super::*;
use crate::proto::imap::dialogue::{Dialogue, Next};

const LIMITS: line::Limits = line::Limits { line: 8192, literal: 4096, sasl: 65536 };
const MODERN: &[u8] = b"IMAP4rev1 LITERAL+ SASL-IR ID";

fn login(command: &[u8]) -> Login {
    let mut input = Input::default();
    input.buffer().extend_from_slice(command);
    match Dialogue::new(LIMITS).advance(&mut input, b"", &mut Vec::new()) {
        Next::LogIn(login) => login,
        other => panic!("{other:?}"),
    }
}

/// Plays an exchange: each `("B", …)` is what the backend says, each `("C", …)` what the client says,
/// both in pieces of `step` bytes, and `("E", …)` its end; returns what each was sent and the last step. The backend is
/// there as soon as it is needed.
fn play(
    command: &[u8],
    offers: &[u8],
    script: &[(&str, &[u8])],
    step: usize,
) -> (String, String, Step) {
    let login = login(command);
    let mut fields = id::Fields::default();
    if offers.ends_with(b"ID") {
        fields = id::Fields::parse(b"(\"name\" \"x\" \"x-originating-ip\" \"6.6.6.6\")")
            .expect("fields");
    }
    let repair = Repair::new(&[], &[]);
    let mut exchange = Exchange::new(&login, &repair, LIMITS, b"P1");
    let (mut to_backend, mut to_client) = (Vec::new(), Vec::new());
    let (mut from_backend, mut from_client) = (Vec::new(), Input::default());
    let (mut last, mut started) = (exchange.open(&mut to_client), false);
    let mut start = |exchange: &mut Exchange<'_>, last: &mut Step, to_backend: &mut Vec<u8>| {
        if *last == Step::Backend && !std::mem::replace(&mut started, true) {
            *last = exchange.start(Dialect::of(offers), &fields, Vec::new(), to_backend);
        }
    };
    start(&mut exchange, &mut last, &mut to_backend);
    for (who, bytes) in script {
        for piece in bytes.chunks(step) {
            last = if *who == "E" {
                exchange.on_lost(Lost::Closed, &mut to_client)
            } else if *who == "B" {
                from_backend.extend_from_slice(piece);
                exchange.on_backend(&mut from_backend, &mut to_backend, &mut to_client)
            } else {
                from_client.buffer().extend_from_slice(piece);
                exchange.on_client(&mut from_client, &mut to_backend, &mut to_client)
            };
            start(&mut exchange, &mut last, &mut to_backend);
            if matches!(last, Step::Done(_) | Step::Close(_)) {
                break;
            }
        }
    }
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (text(to_backend), text(to_client), last)
}

fn always(
    command: &[u8],
    offers: &[u8],
    script: &[(&str, &[u8])],
    backend: &str,
    client: &str,
    last: Step,
) {
    for step in [1, 2, 3, 7, 1000] {
        let got = play(command, offers, script, step);
        assert_eq!(
            (got.0.as_str(), got.1.as_str(), got.2),
            (backend, client, last),
            "in steps of {step}"
        );
    }
}

const OK: Step = Step::Done(Outcome::LoggedIn);

#[test]
fn login_is_written_in_the_form_that_the_backend_reads() {
    always(
        b"a LOGIN u \"p\\\"\"\r\n",
        b"",
        &[("B", b"P1 OK hi\r\n")],
        "P1 LOGIN \"u\" \"p\\\"\"\r\n",
        "a OK hi\r\n",
        OK,
    );
    let odd = b"a LOGIN {3+}\r\nu\r\n {2+}\r\n\xc3\xa4\r\n";
    always(
        odd,
        MODERN.strip_suffix(b" ID").expect("suffix"),
        &[("B", b"P1 OK hi\r\n")],
        "P1 LOGIN {3+}\r\nu\r\n {2+}\r\nä\r\n",
        "a OK hi\r\n",
        OK,
    );
    let script: &[(&str, &[u8])] = &[("B", b"+ go\r\n"), ("B", b"+\r\n"), ("B", b"P1 OK hi\r\n")];
    always(odd, b"", script, "P1 LOGIN {3}\r\nu\r\n {2}\r\nä\r\n", "a OK hi\r\n", OK);
}

#[test]
fn what_a_client_wrote_as_a_literal_stays_one_since_old_servers_do_not_unescape() {
    let modern = MODERN.strip_suffix(b" ID").expect("suffix");
    let ok: (&str, &[u8]) = ("B", b"P1 OK hi\r\n");
    let go: (&str, &[u8]) = ("B", b"+ go\r\n");
    for (said, plus, waits) in [
        ("{1+}\r\nu {3+}\r\np\"q", "{1+}\r\nu {3+}\r\np\"q", "{1}\r\nu {3}\r\np\"q"),
        ("{1}\r\nu \"p\\\\q\"", "{1+}\r\nu \"p\\\\q\"", "{1}\r\nu \"p\\\\q\""),
        ("u {0}\r\n", "\"u\" {0+}\r\n", "\"u\" {0}\r\n"),
        // Nor is an unquoted backslash escaped.
        ("d\\u p%q", "{3+}\r\nd\\u \"p%q\"", "{3}\r\nd\\u \"p%q\""),
    ] {
        let command = format!("a LOGIN {said}\r\n");
        let command = command.as_bytes();
        always(command, modern, &[ok], &format!("P1 LOGIN {plus}\r\n"), "a OK hi\r\n", OK);
        let mut script = vec![go; waits.matches('{').count()];
        script.push(ok);
        always(command, b"", &script, &format!("P1 LOGIN {waits}\r\n"), "a OK hi\r\n", OK);
    }
}

#[test]
fn what_takes_too_much_room_in_quotes_goes_as_a_literal() {
    for (password, quoted) in
        [("p".repeat(1000), true), ("p".repeat(1001), false), ("\"".repeat(501), false)]
    {
        let escaped = password.replace('"', "\\\"");
        let command = format!("a LOGIN u \"{escaped}\"\r\n");
        let written = if quoted {
            format!("P1 LOGIN \"u\" \"{password}\"\r\n")
        } else {
            format!("P1 LOGIN \"u\" {{{}+}}\r\n{password}\r\n", password.len())
        };
        let modern = MODERN.strip_suffix(b" ID").expect("suffix");
        let script: &[(&str, &[u8])] = &[("B", b"P1 OK hi\r\n")];
        always(command.as_bytes(), modern, script, &written, "a OK hi\r\n", OK);
    }
}

#[test]
fn the_clients_id_goes_first_without_what_would_be_believed() {
    let script: &[(&str, &[u8])] = &[("B", b"* ID NIL\r\nP1 OK ID\r\n"), ("B", b"P1 OK hi\r\n")];
    always(
        b"a LOGIN u p\r\n",
        MODERN,
        script,
        "P1 ID (\"name\" \"x\")\r\nP1 LOGIN \"u\" \"p\"\r\n",
        "a OK hi\r\n",
        OK,
    );
}

#[test]
fn what_a_client_tells_of_itself_may_be_why_a_backend_breaks_off() {
    let (login, repair) = (login(b"a LOGIN u p\r\n"), Repair::new(&[], &[]));
    let long = format!("(\"name\" \"{0}\" \"os\" \"{0}\")", "x".repeat(600));
    let long = id::Fields::parse(long.as_bytes()).expect("fields");
    for (offers, id, introduced, is_long) in [
        (&b"ID"[..], &long, false, true),
        (b"", &long, true, true),
        (b"", &long, false, false), // it was not sent
        (b"ID", &id::Fields::default(), true, false),
    ] {
        let mut exchange = Exchange::new(&login, &repair, LIMITS, b"P1");
        let nothing = id::Fields::default();
        if introduced {
            exchange.on_introduced(id);
        }
        let id = if introduced { &nothing } else { id };
        exchange.start(Dialect::of(offers), id, Vec::new(), &mut Vec::new());
        assert_eq!(exchange.is_long(), is_long, "{offers:?} {introduced}");
    }
}

#[test]
fn authenticate_passes_line_by_line() {
    let ok: &[u8] = b"P1 OK [CAPABILITY A STARTTLS] hi\r\n";
    let script: &[(&str, &[u8])] = &[("C", b"AGIAcA==\r\n"), ("B", b"+ \r\n"), ("B", ok)];
    always(
        b"a AUTHENTICATE plain\r\n",
        b"",
        script,
        "P1 AUTHENTICATE PLAIN\r\nAGIAcA==\r\n",
        "+ \r\na OK [CAPABILITY A] hi\r\n",
        OK,
    );
    let with_ir: &[(&str, &[u8])] = &[("B", b"P1 OK hi\r\n")];
    always(
        b"a AUTHENTICATE PLAIN AGIAcA==\r\n",
        b"SASL-IR",
        with_ir,
        "P1 AUTHENTICATE PLAIN AGIAcA==\r\n",
        "a OK hi\r\n",
        OK,
    );
    let without_ir: &[(&str, &[u8])] = &[("B", b"+ \r\n"), ("B", b"P1 OK hi\r\n")];
    always(
        b"a AUTHENTICATE PLAIN =\r\n",
        b"",
        without_ir,
        "P1 AUTHENTICATE PLAIN\r\n\r\n",
        "a OK hi\r\n",
        OK,
    );
}

#[test]
fn an_exchange_can_be_cancelled_and_nonsense_cancels_it() {
    let aborted = Step::Done(Outcome::Aborted);
    let script: &[(&str, &[u8])] =
        &[("B", b"+ QQ==\r\n"), ("C", b"*\r\n"), ("B", b"P1 BAD no\r\n")];
    always(
        b"a AUTHENTICATE CRAM-MD5\r\n",
        b"",
        script,
        "P1 AUTHENTICATE CRAM-MD5\r\n*\r\n",
        "+ QQ==\r\na BAD Authentication cancelled.\r\n",
        aborted,
    );
    let script: &[(&str, &[u8])] = &[("B", b"+ QQ==\r\n"), ("C", b"!!!!\r\n")];
    always(
        b"a AUTHENTICATE CRAM-MD5\r\n",
        b"",
        script,
        "P1 AUTHENTICATE CRAM-MD5\r\n",
        "+ QQ==\r\na BAD That is not base64.\r\n",
        aborted,
    );
    // Before there is a backend, no backend hears of it.
    for (command, prompt) in [
        (&b"a AUTHENTICATE PLAIN\r\n"[..], "+ \r\n"),
        (b"a AUTHENTICATE LOGIN\r\n", "+ VXNlcm5hbWU6\r\n"),
        (b"a AUTHENTICATE LOGIN Ym9i\r\n", "+ UGFzc3dvcmQ6\r\n"),
    ] {
        for (said, answer) in
            [(&b"*\r\n"[..], "Authentication cancelled."), (b"!!!!\r\n", "That is not base64.")]
        {
            let client = format!("{prompt}a BAD {answer}\r\n");
            always(command, b"SASL-IR", &[("C", said)], "", &client, aborted);
        }
    }
    let mut endless: Vec<(&str, &[u8])> = vec![("C", b"AAAA\r\n"), ("B", b"+ \r\n")];
    endless.extend([("B", &b"+ \r\n"[..]), ("C", b"AAAA\r\n")].repeat(8));
    assert_eq!(play(b"a AUTHENTICATE GSSAPI\r\n", b"", &endless, 1000).2, aborted);
}

#[test]
fn refusals_tell_what_helps_and_nothing_else() {
    let failed = "a NO [AUTHENTICATIONFAILED] Authentication failed.\r\n";
    let unreadable =
        "a NO [UNAVAILABLE] The mail server's answer can't be understood, try again later.\r\n";
    let rejected = Outcome::Rejected;
    let garbage = Outcome::Unavailable("it does not speak IMAP");
    let busy = Outcome::Undecided("it said that it can't serve this user now");
    let table: &[(&[u8], &str, Outcome)] = &[
        (b"P1 NO no such user bob\r\n", failed, rejected),
        (b"P1 NO Login failed.\r\n", failed, rejected),
        (b"P1 NO Something else\r\n", "a NO Something else\r\n", rejected),
        (b"P1 NO [REFERRAL IMAP://evil/] x\r\n", "a NO x\r\n", rejected),
        (b"P1 NO [EXPIRED 7] Renew it\r\n", "a NO [EXPIRED 7] Renew it\r\n", rejected),
        (b"P1 NO [ALERT] look\r\n", "a NO [ALERT] look\r\n", rejected),
        (b"P1 BAD bob what?\r\n", "a BAD bob what?\r\n", rejected),
        (b"P1 BAD\r\n", "a BAD The server refused the command.\r\n", rejected),
        (b"P1 NO [LIMIT] Later\r\n", "a NO [LIMIT] Later\r\n", busy),
        (b"P1 NO Server Unavailable. 15\r\n", "a NO Server Unavailable. 15\r\n", busy),
        (
            b"P1 NO [UNAVAILABLE] x\r\n",
            "a NO [UNAVAILABLE] x\r\n",
            Outcome::Unavailable("it said that it can't now"),
        ),
        (
            b"P1 NO [PRIVACYREQUIRED] x\r\n",
            "a NO [PRIVACYREQUIRED] x\r\n",
            Outcome::Undecided("it takes no password without TLS"),
        ),
        (
            b"P1 NO Unsupported authentication mechanism.\r\n",
            "a NO Unsupported authentication mechanism.\r\n",
            Outcome::RuledOut,
        ),
        (b"HTTP/1.1 200 OK\r\n", unreadable, garbage),
        (
            b"+ more\r\n",
            unreadable,
            Outcome::Unavailable("it asks for more where there is no more"),
        ),
        (b"* X {14}\r\nP1 OK forged\r\n\r\nP1 NO\r\n", failed, rejected),
        (b"P2 OK forged\r\na OK forged\r\nP1 NO\r\n", failed, rejected),
    ];
    for (said, answer, outcome) in table {
        for step in [1, 5, 1000] {
            let (_, client, last) = play(b"a LOGIN u p\r\n", b"", &[("B", said)], step);
            assert_eq!(client, *answer, "{}", String::from_utf8_lossy(said));
            assert_eq!(last, Step::Done(*outcome), "{}", String::from_utf8_lossy(said));
        }
    }
    let endless = vec![b'x'; 200_000];
    let (_, client, _) = play(b"a LOGIN u p\r\n", b"", &[("B", &endless)], 4096);
    assert_eq!(client, unreadable);
}

#[test]
fn an_end_without_a_result_says_what_was_said_last() {
    let bye = Outcome::Unavailable("it said BYE instead of a result");
    let broke = Outcome::Unavailable("it broke off before its result");
    let broke_off = "a NO [UNAVAILABLE] The mail server broke off the login, try again later.\r\n";
    let alert = "* NO [ALERT] Maintenance.\r\n";
    for (said, answer, outcome) in [
        (&b""[..], broke_off.to_owned(), broke),
        (b"* OK patience\r\n", broke_off.to_owned(), broke),
        (b"* BYE down\r\n", "a NO [UNAVAILABLE] down\r\n".to_owned(), bye),
        (b"* BYE [ALERT] Maintenance.\r\n", format!("{alert}{broke_off}"), bye),
        // A result that follows says more.
        (
            b"* BYE [ALERT] Maintenance.\r\nP1 NO Login failed.\r\n",
            format!("{alert}a NO [AUTHENTICATIONFAILED] Authentication failed.\r\n"),
            Outcome::Rejected,
        ),
        (b"* BYE bye\r\nP1 OK in\r\n", "* BYE bye\r\na OK in\r\n".to_owned(), Outcome::LoggedIn),
    ] {
        for step in [1, 5, 1000] {
            let script: &[(&str, &[u8])] = &[("B", said), ("E", b"!")];
            let ended = matches!(outcome, Outcome::Rejected | Outcome::LoggedIn);
            let script = if ended { &script[..1] } else { script };
            let (_, client, last) = play(b"a LOGIN u p\r\n", b"", script, step);
            assert_eq!((client, last), (answer.clone(), Step::Done(outcome)));
        }
    }
    // It is told no password any more.
    let script: &[(&str, &[u8])] = &[("B", b"* ID NIL\r\n* BYE no\r\nP1 OK ID\r\n")];
    let said = "P1 ID (\"name\" \"x\")\r\n";
    always(b"a LOGIN u p\r\n", MODERN, script, said, "a NO [UNAVAILABLE] no\r\n", Step::Done(bye));
    let script: &[(&str, &[u8])] = &[("B", b"* BYE no\r\n+ go\r\n")];
    let odd = b"a LOGIN {3+}\r\nu\r\n p\r\n";
    always(odd, b"", script, "P1 LOGIN {3}\r\n", "a NO [UNAVAILABLE] no\r\n", Step::Done(bye));
    // A client that has cancelled is the one that broke off.
    let script: &[(&str, &[u8])] =
        &[("B", b"+ \r\n"), ("C", b"*\r\n"), ("B", b"* BYE no\r\n"), ("E", b"!")];
    let said = "P1 AUTHENTICATE CRAM-MD5\r\n*\r\n";
    let told = "+ \r\na BAD Authentication cancelled.\r\n";
    always(b"a AUTHENTICATE CRAM-MD5\r\n", b"", script, said, told, Step::Done(Outcome::Aborted));
}

/// RFC 9051 §7.1: the text MUST be presented to the person.
#[test]
fn alerts_are_shown_whatever_comes_of_the_login() {
    let said =
        b"* OK [ALERT] one\r\n* CAPABILITY X\r\n* NO [WEBALERT https://x/] two\r\n* NO three\r\n\
                 * OK [ALERT] no such user\r\nP1 NO Login failed.\r\n";
    let want = "* OK [ALERT] one\r\n* NO [WEBALERT https://x/] two\r\n\
                a NO [AUTHENTICATIONFAILED] Authentication failed.\r\n";
    let rejected = Step::Done(Outcome::Rejected);
    let login = "P1 LOGIN \"u\" \"p\"\r\n";
    always(b"a LOGIN u p\r\n", b"", &[("B", said)], login, want, rejected);
    // One that comes with the answer to ID, before the login.
    let script: &[(&str, &[u8])] =
        &[("B", b"* OK [ALERT] one\r\n* ID NIL\r\nP1 OK ID\r\n"), ("B", b"P1 OK in\r\n")];
    let said = "P1 ID (\"name\" \"x\")\r\nP1 LOGIN \"u\" \"p\"\r\n";
    always(b"a LOGIN u p\r\n", MODERN, script, said, "* OK [ALERT] one\r\na OK in\r\n", OK);
    // Not without end.
    let flood = b"* OK [ALERT] x\r\n".repeat(1000);
    let script: &[(&str, &[u8])] = &[("B", &flood), ("B", b"P1 NO Login failed.\r\n")];
    let (_, client, _) = play(b"a LOGIN u p\r\n", b"", script, 1000);
    assert_eq!(client.lines().count(), MAX_ALERTS + 1);
}

#[test]
fn untagged_responses_are_for_those_who_get_in() {
    let said = b"* CAPABILITY IMAP4rev1 STARTTLS IDLE\r\n* OK [ALERT] full\r\nP1 OK [REFERRAL imap://x/] in\r\n";
    let want = "* CAPABILITY IMAP4rev1 IDLE\r\n* OK [ALERT] full\r\na OK in\r\n";
    always(b"a LOGIN u p\r\n", b"", &[("B", said)], "P1 LOGIN \"u\" \"p\"\r\n", want, OK);
    let refused = b"* CAPABILITY IMAP4rev1\r\n* OK hi\r\nP1 NO x\r\n";
    assert_eq!(play(b"a LOGIN u p\r\n", b"", &[("B", refused)], 1000).1, "a NO x\r\n");
}

#[test]
fn the_user_is_known_whatever_the_mechanism() {
    let repair = Repair::new(&[], &[]);
    let fields = id::Fields::default();
    let (mut b, mut c) = (Vec::new(), Vec::new());
    let mut input = Input::default();
    // Before there is a backend, and behind its challenge.
    let login = |mechanism| login(format!("a AUTHENTICATE {mechanism}\r\n").as_bytes());
    let first = login("LOGIN");
    let mut exchange = Exchange::new(&first, &repair, LIMITS, b"P1");
    assert_eq!(exchange.open(&mut c), Step::Client);
    input.buffer().extend_from_slice(b"Ym9i\r\n");
    assert_eq!(exchange.on_client(&mut input, &mut b, &mut c), Step::Client);
    assert_eq!(exchange.user(), Some(&b"bob"[..]));
    let second = login("CRAM-MD5");
    let mut exchange = Exchange::new(&second, &repair, LIMITS, b"P1");
    assert_eq!(exchange.open(&mut c), Step::Backend);
    exchange.start(Dialect::default(), &fields, Vec::new(), &mut b);
    assert_eq!(exchange.on_backend(&mut b"+ QQ==\r\n".to_vec(), &mut b, &mut c), Step::Client);
    input.buffer().extend_from_slice(b"Ym9iIDAx\r\n");
    assert_eq!(exchange.on_client(&mut input, &mut b, &mut c), Step::Backend);
    assert_eq!(exchange.user(), Some(&b"bob"[..]));
}

#[test]
fn what_the_capabilities_rule_out_needs_no_backend() {
    let answer = |command: &[u8], list: &[u8]| ruled_out(&login(command).method, list);
    let no = Some("NO Unsupported authentication mechanism.");
    for (command, list, ruled_out) in [
        (&b"a LOGIN u p\r\n"[..], &b"IMAP4rev1"[..], None),
        (b"a AUTHENTICATE PLAIN\r\n", b"IMAP4rev1 AUTH=LOGIN auth=plain", None),
        (b"a AUTHENTICATE scram-sha-1 biws\r\n", b"AUTH=SCRAM-SHA-1", None),
        (b"a AUTHENTICATE PLAIN AGIAcA==\r\n", b"LOGINDISABLED AUTH=PLAIN", None),
        (b"a AUTHENTICATE PLAIN\r\n", b"IMAP4rev1 AUTH=PLAINER AUTH=", no),
        (b"a AUTHENTICATE PLAIN\r\n", b"IMAP4rev1", no),
        (b"a AUTHENTICATE SCRAM-SHA-1-PLUS\r\n", b"AUTH=SCRAM-SHA-1", no),
    ] {
        assert_eq!(answer(command, list), ruled_out, "{}", String::from_utf8_lossy(command));
    }
    let disabled = answer(b"a LOGIN u p\r\n", b"IMAP4rev1 LoginDisabled AUTH=GSSAPI");
    assert!(disabled.is_some_and(|text| text.starts_with("NO [PRIVACYREQUIRED] ")));
}
