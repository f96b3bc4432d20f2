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
    vec![Seen::Login(user.into(), password.into(), [false; 2])]
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
    // It was asked for: the line is the answer, and no command.
    for (mechanism, attempts) in [("PLAIN", vec![]), ("CRAM-MD5", vec![attempt(NO, &[b""])])] {
        let seen: Vec<_> = attempts.iter().map(|_| authenticate_seen(mechanism)).collect();
        always(
            format!("a AUTHENTICATE {mechanism}\r\nb LOGIN test secret\r\nc NOOP\r\n").as_bytes(),
            &attempts,
            &[b"+ \r", b"a BAD ", b"c OK "],
            &seen,
            &Ended::Open,
        );
    }
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
    let mut cancelled = authenticate_seen("CRAM-MD5");
    cancelled.push(Seen::Cancel);
    let no = attempt(NO, &[b""]);
    // The first costs the backend nothing.
    for (mechanism, seen) in [("PLAIN", None), ("CRAM-MD5", Some(cancelled))] {
        let stream = format!("a AUTHENTICATE {mechanism}\r\n*\r\n");
        let times = |n| vec![no.clone(); if seen.is_some() { n } else { 0 }];
        always(
            (stream.clone() + "b NOOP\r\n").as_bytes(),
            &times(1),
            &[b"+ \r", b"a BAD ", b"b OK "],
            &seen.iter().cloned().collect::<Vec<_>>(),
            &Ended::Open,
        );
        always(
            stream.repeat(50).as_bytes(),
            &times(3),
            &[b"+ \r", b"a BAD ", b"+ \r", b"a BAD ", b"+ \r", b"a BAD ", b"* BYE "],
            &seen.iter().flat_map(|seen| vec![seen.clone(); 3]).collect::<Vec<_>>(),
            &Ended::Closed(End::TooManyBadCommands),
        );
    }
}

#[test]
fn an_answer_without_end_is_not_held() {
    for (mechanism, attempts) in [("PLAIN", vec![]), ("CRAM-MD5", vec![attempt(NO, &[b""])])] {
        let seen: Vec<_> = attempts.iter().map(|_| authenticate_seen(mechanism)).collect();
        let command = format!("a AUTHENTICATE {mechanism}\r\n");
        let stream = [command.as_bytes(), &[b'A'; 5_000][..], b"\r\nb NOOP\r\n"].concat();
        always(
            &stream,
            &attempts,
            &[b"+ \r", b"* BYE [TOOBIG] "],
            &seen,
            &Ended::Closed(End::TooLong),
        );
    }
}

#[test]
fn what_was_said_before_the_backend_was_there_answers_its_first_challenges() {
    let line = |text: &str| Seen::Line(text.as_bytes().to_vec());
    let seen = |mechanism, lines: &[&str]| {
        let mut seen = authenticate_seen(mechanism);
        seen.extend(lines.iter().map(|text| line(text)));
        vec![seen]
    };
    let good = |challenges| attempt(Verdict::Ok, challenges);
    always(
        b"a AUTHENTICATE LOGIN\r\nYm9i\r\ncHc=\r\n",
        &[good(&[b"TmFtZQ==", b"V29yZA=="])],
        &[b"+ VXNlcm5hbWU6\r", b"+ UGFzc3dvcmQ6\r", b"a OK "],
        &seen("LOGIN", &["Ym9i", "cHc="]),
        &logged_in(b""),
    );
    always(
        b"a AUTHENTICATE LOGIN Ym9i\r\ncHc=\r\n",
        &[good(&[b"TmFtZQ==", b"V29yZA=="])],
        &[b"+ UGFzc3dvcmQ6\r", b"a OK "],
        &seen("LOGIN", &["Ym9i", "cHc="]),
        &logged_in(b""),
    );
    // Whatever the backend says first, and whatever it still wants to know.
    always(
        b"a AUTHENTICATE SCRAM-SHA-1\r\nAAAA\r\nBBBB\r\nc NOOP\r\n",
        &[good(&[b"", b"QUJD"])],
        &[b"+ \r", b"+ QUJD\r", b"a OK "],
        &seen("SCRAM-SHA-1", &["AAAA", "BBBB"]),
        &logged_in(b"c NOOP\r\n"),
    );
    // A backend that refuses the mechanism is told nothing.
    always(
        b"a AUTHENTICATE PLAIN\r\nAGIAcA==\r\nb NOOP\r\n",
        &[attempt(NO, &[])],
        &[b"+ \r", b"a NO ", b"b OK "],
        &seen("PLAIN", &[]),
        &Ended::Open,
    );
}
