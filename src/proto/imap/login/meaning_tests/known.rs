//! Conversations that went wrong once, or would.

use super::*;

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
