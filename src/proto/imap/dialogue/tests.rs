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
        let Next::LogIn(Login { tag, method: Method::Login { user, password } }) = next else {
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
    let (out, next, _) = talk(&mut dialogue(), b"GET / HTTP/1.1\r\nHost: x\r\nX: y\r\n\r\n", 99);
    assert!(!out.contains("HTTP") && !out.contains("Host"), "{out}");
    assert!(matches!(next, Next::Close(End::TooManyBadCommands)));
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
