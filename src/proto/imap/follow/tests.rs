//! Sessions as tables, and as random scripts ([`properties`]). A script's own generator says what is true after each step,
//! so [`Follow`] is checked against something that never parses.

mod properties;

use std::time::Duration;

use super::head::{ClientHead, Order};
use super::*;
use crate::proto::imap::capability::Repair;
use Direction::{BackendToClient, ClientToBackend};

/// A driver: feeds chunks, keeps what comes out.
struct Rig {
    follow: Follow,
    repair: Repair,
    now: Instant,
    to_backend: Vec<u8>,
    to_client: Vec<u8>,
    answers: Vec<u8>,
    completed: Vec<(Verb, Duration)>,
    error: Option<Error>,
}

impl Rig {
    fn new() -> Self {
        Self {
            follow: Follow::new(),
            repair: Repair::new(&["HIDDEN".into()], &["ADDED".into()]),
            now: start(),
            to_backend: Vec::new(),
            to_client: Vec::new(),
            answers: Vec::new(),
            completed: Vec::new(),
            error: None,
        }
    }

    fn chunk(&mut self, direction: Direction, bytes: &[u8]) {
        if self.error.is_some() {
            return;
        }
        let mut buffer = Vec::new();
        self.follow.unhold(direction, &mut buffer);
        buffer.extend_from_slice(bytes);
        let result = match direction {
            ClientToBackend => self.follow.client(&mut buffer, self.now),
            BackendToClient => {
                let completed = &mut self.completed;
                let mut note = |verb, took| completed.push((verb, took));
                self.follow.backend(&mut buffer, &self.repair, self.now, &mut note)
            }
        };
        if let Err(error) = result {
            self.error = Some(error);
            return;
        }
        match direction {
            ClientToBackend => self.to_backend.append(&mut buffer),
            BackendToClient => self.to_client.append(&mut buffer),
        }
        let before = self.answers.len();
        self.follow.take_answers(&mut self.answers);
        if self.answers.len() > before {
            assert!(matches!(self.to_client.last(), None | Some(b'\n')), "an answer inside a line");
        }
        if let Some(aside) = &self.follow.aside {
            assert!(aside.client_held.len() < head::CLIENT_HEAD);
            assert!(aside.backend_held.len() <= HELD);
            assert!(aside.refused <= REFUSED);
            assert!(!aside.is_empty(), "kept for nothing");
        }
        assert!(self.follow.commands.len() <= COMMANDS);
        if self.follow.commands.is_empty() {
            assert_eq!(self.follow.commands.capacity(), 0, "kept for nothing");
        }
        let held = |direction| match (&self.follow.aside, direction) {
            (None, _) => 0,
            (Some(aside), ClientToBackend) => aside.client_held.len(),
            (Some(aside), BackendToClient) => aside.backend_held.len(),
        };
        if !self.follow.is_following() {
            assert_eq!(held(direction), 0);
        }
    }

    /// `bytes` in pieces of the given lengths, over and over.
    fn cut(
        &mut self,
        direction: Direction,
        mut bytes: &[u8],
        sizes: &mut impl Iterator<Item = usize>,
    ) {
        while !bytes.is_empty() {
            let size = sizes.next().unwrap_or(usize::MAX).clamp(1, bytes.len());
            let (piece, rest) = bytes.split_at(size);
            self.chunk(direction, piece);
            bytes = rest;
        }
    }

    /// Both directions end.
    fn finish(&mut self) {
        for (direction, out) in
            [(ClientToBackend, &mut self.to_backend), (BackendToClient, &mut self.to_client)]
        {
            let mut held = Vec::new();
            self.follow.unhold(direction, &mut held);
            out.append(&mut held);
        }
    }

    fn verbs(&self) -> String {
        let names: Vec<&str> = self.completed.iter().map(|&(verb, _)| verb.into()).collect();
        names.join(" ")
    }

    /// `lost`, or what holds: `idle` or `active`, `may` interrupt, ends `orderly`, `bye`, `logout`.
    fn state(&self) -> String {
        let follow = &self.follow;
        if !follow.is_following() {
            assert!(!follow.may_interrupt() && !follow.ended_orderly());
            assert_eq!(follow.phase(), Phase::Active);
            return "lost".into();
        }
        let mut words = vec![if follow.phase() == Phase::Idle { "idle" } else { "active" }];
        for (holds, word) in [
            (follow.may_interrupt(), "may"),
            (follow.ended_orderly(), "orderly"),
            (follow.bye_seen(), "bye"),
            (follow.logout_seen(), "logout"),
        ] {
            words.extend(holds.then_some(word));
        }
        words.join(" ")
    }
}

/// An `Instant` cannot be made in another way; the tests only ever add to it.
#[allow(clippy::disallowed_methods)]
fn start() -> Instant {
    Instant::now()
}

/// `C` and `B` steps, then the verbs completed and the state.
type Row = (&'static [(char, &'static str)], &'static str, &'static str);

fn direction(who: char) -> Direction {
    if who == 'C' { ClientToBackend } else { BackendToClient }
}

/// Runs the steps; the one numbered `cut.0` is cut at `cut.1`, or all of them byte by byte.
fn run(steps: &[(char, &str)], cut: Option<(usize, usize)>, every_byte: bool) -> Rig {
    let mut rig = Rig::new();
    for (number, &(who, text)) in steps.iter().enumerate() {
        let at = match cut {
            Some((step, at)) if step == number => at,
            _ => text.len(),
        };
        if every_byte {
            rig.cut(direction(who), text.as_bytes(), &mut std::iter::repeat(1));
        } else {
            rig.chunk(direction(who), &text.as_bytes()[..at]);
            rig.chunk(direction(who), &text.as_bytes()[at..]);
        }
    }
    rig
}

/// Every cut of every step, and the check of each.
fn each_cut(steps: &[(char, &str)], check: impl Fn(Rig, &str)) {
    check(run(steps, None, false), "whole");
    check(run(steps, None, true), "byte by byte");
    for (number, (_, text)) in steps.iter().enumerate() {
        for at in 1..text.len() {
            check(run(steps, Some((number, at)), false), &format!("step {number} cut at {at}"));
        }
    }
}

fn said(steps: &[(char, &str)], who: char) -> String {
    steps.iter().filter(|step| step.0 == who).map(|step| step.1).collect()
}

#[test]
fn sessions_pass_untouched_and_are_understood() {
    let rows: &[Row] = &[
        (&[], "", "active may orderly"),
        (&[('C', "a NOOP\r\n")], "", "active"),
        (&[('C', "a NOOP\r\n"), ('B', "a OK done\r\n")], "noop", "active may orderly"),
        (&[('C', "a noop\n"), ('B', "a ok\n")], "noop", "active may orderly"),
        (&[('C', "a NOOP\r\n"), ('B', "* 1 EXISTS\r\na OK done")], "noop", "active"),
        (&[('C', "a NOOP\r\n"), ('B', "b OK done\r\n")], "", "active"),
        (&[('C', "a NO")], "", "active orderly"),
        (&[('C', "a NOOP")], "", "active orderly"),
        (&[('C', "a NOOP ")], "", "active"),
        (&[('C', "\r\n\n")], "", "active may orderly"),
        (&[('C', "tag\r\n"), ('B', "tag BAD what\r\n")], "other", "active may orderly"),
        (&[('C', "%s NOOP\r\n"), ('B', "* BAD tag\r\n")], "", "active may orderly"),
        (&[('C', "a UID FETCH 1 FLAGS\r\n"), ('B', "a OK x\r\n")], "fetch", "active may orderly"),
        (&[('C', "a uid  Copy 1 x\r\n"), ('B', "a OK x\r\n")], "copy", "active may orderly"),
        (&[('C', "a UID IDLE\r\n"), ('B', "a BAD x\r\n")], "other", "active may orderly"),
        (&[('C', "a UID COMPRESS x\r\n"), ('B', "a BAD x\r\n")], "other", "active may orderly"),
        (&[('C', "a COMPRESSOR x\r\n"), ('B', "a BAD x\r\n")], "other", "active may orderly"),
        (&[('C', "a SETACL x y z\r\n"), ('B', "a NO x\r\n")], "other", "active may orderly"),
        // Pipelined, out of order, tags reused.
        (
            &[('C', "a SELECT x\r\nb FETCH 1 UID\r\nc NOOP\r\n"), ('B', "b OK\r\na NO x\r\n")],
            "fetch select",
            "active",
        ),
        (&[('C', "a LIST x y\r\na LSUB x y\r\n"), ('B', "a OK\r\n")], "list", "active"),
        (
            &[('C', "a LIST x y\r\na LSUB x y\r\n"), ('B', "a OK\r\na OK\r\n")],
            "list lsub",
            "active may orderly",
        ),
        // Literals of the client.
        (&[('C', "a APPEND x {5}\r\n")], "", "active"),
        (&[('C', "a APPEND x {5}\r\n"), ('B', "+ OK\r\n"), ('C', "12\r\n5")], "", "active"),
        (
            &[
                ('C', "a APPEND x {12}\r\n"),
                ('B', "+ OK\r\n"),
                ('C', "b COMPRESS\r\n\r\n"),
                ('B', "a OK [APPENDUID 1 1] x\r\n"),
            ],
            "append",
            "active may orderly",
        ),
        (
            &[('C', "a APPEND x {12+}\r\nb COMPRESS\r\n {3+}\r\n{3}\r\n"), ('B', "a OK\r\n")],
            "append",
            "active may orderly",
        ),
        (
            &[('C', "a APPEND x ~{3+}\r\n\0\r\n\r\n"), ('B', "a OK\r\n")],
            "append",
            "active may orderly",
        ),
        (
            &[
                ('C', "a SEARCH SUBJECT {0}\r\n"),
                ('B', "+ \r\n"),
                ('C', " TO {2}\r\n"),
                ('B', "+\r\n"),
                ('C', "xy\r\n"),
                ('B', "* SEARCH 1\r\na OK\r\n"),
            ],
            "search",
            "active may orderly",
        ),
        // Not waited for.
        (
            &[('C', "a LIST {2}\r\nxy {1}\r\nz\r\n"), ('B', "+ 1\r\n+ 2\r\na OK\r\n")],
            "list",
            "active may orderly",
        ),
        // Refused: the literal does not come.
        (
            &[('C', "a APPEND x {5}\r\n"), ('B', "a NO [TRYCREATE] x\r\n"), ('C', "b NOOP\r\n")],
            "append",
            "active",
        ),
        (
            &[
                ('C', "a APPEND x {5}\r\n"),
                ('B', "a NO x\r\n"),
                ('C', "b NOOP\r\n"),
                ('B', "b OK\r\n"),
            ],
            "append noop",
            "active may orderly",
        ),
        // Refused, but some of it was sent: the backend took it for commands.
        (&[('C', "a APPEND x {5}\r\n12"), ('B', "a NO x\r\n")], "append", "lost"),
        (&[('C', "a LIST {2}\r\nxy z\r\n"), ('B', "a BAD x\r\n")], "list", "lost"),
        // Answered between its `+` and the literal.
        (&[('C', "a LIST {2}\r\n"), ('B', "+ \r\na BAD x\r\n")], "list", "lost"),
        // Answered early; a promised literal comes nonetheless.
        (
            &[('C', "a APPEND x {5+}\r\n12"), ('B', "a NO x\r\n"), ('C', "345")],
            "append",
            "active orderly",
        ),
        (
            &[('C', "a APPEND x {5+}\r\n12"), ('B', "a NO x\r\n"), ('C', "345\r\n")],
            "append",
            "active may orderly",
        ),
        (
            &[
                ('C', "a LIST {5}\r\n"),
                ('B', "+ \r\n"),
                ('C', "12"),
                ('B', "a NO x\r\n"),
                ('C', "345\r\n"),
            ],
            "list",
            "active may orderly",
        ),
        (
            &[('C', "a FETCH 1,"), ('B', "a BAD x\r\n"), ('C', "2,3\r\n")],
            "fetch",
            "active may orderly",
        ),
        (&[('C', "a FETCH "), ('B', "a BAD x\r\n"), ('C', "{5}\r\n")], "fetch", "lost"),
        // Literals of the backend, and what only looks like one.
        (
            &[
                ('C', "a FETCH 1 BODY[]\r\n"),
                (
                    'B',
                    "* 1 FETCH (BODY[] {22}\r\na OK x\r\n* CAPABILITY\r\n ~{4}\r\na {5 {0}\r\n)\r\n",
                ),
            ],
            "",
            "active",
        ),
        (
            &[
                ('C', "a FETCH 1 BODY[]\r\n"),
                ('B', "* 1 FETCH (BODY[] {6}\r\na OK\r\n UID 3)\r\na OK x {5}\r\n"),
            ],
            "fetch",
            "active may orderly",
        ),
        (&[('B', "* OK {5}\r\n* NO {5}\r\n* BAD x {5}\r\n+ {5}\r\n")], "", "active may orderly"),
        (&[('B', "* LIST () \"/\" {5}\r\n")], "", "active"),
        (&[('B', "* LIST () \"/\" {5}\r\nab\r\n1\r\n")], "", "active may orderly"),
        (&[('B', "* LIST () \"/\" \"{5}\"\r\n")], "", "active may orderly"),
        (&[('B', "* LIST () \"/\" {99999999999999999999}\r\n")], "", "lost"),
        (&[('B', "* LIST () \"/\" {5+}\r\n")], "", "lost"),
        (&[('B', "junk\r\n\r\n\0\r\n*\r\n")], "", "active may orderly"),
        // IDLE.
        (&[('C', "a IDLE\r\n")], "", "active"),
        (&[('C', "a IDLE\r\n"), ('B', "+ idling\r\n")], "idle", "idle may"),
        (&[('C', "a IDLE\r\n"), ('B', "+ idling")], "idle", "idle"),
        (&[('C', "a IDLE\r\n"), ('B', "+ idling\r\n* 2 EXI")], "idle", "idle"),
        (&[('C', "a IDLE\r\n"), ('B', "+ idling\r\n* 2 EXISTS\r\n")], "idle", "idle may"),
        (&[('C', "a IDLE\r\n"), ('B', "+ idling\r\n"), ('C', "DON")], "idle", "idle"),
        (&[('C', "a IDLE\r\n"), ('B', "+ idling\r\n"), ('C', "done\r\n")], "idle", "active"),
        (
            &[('C', "a IDLE\r\n"), ('B', "+ i\r\n"), ('C', "DONE\r\n"), ('B', "a OK\r\n")],
            "idle",
            "active may orderly",
        ),
        (&[('C', "a IDLE\r\nDONE\r\nb NOOP\r\n"), ('B', "+ i\r\na OK\r\n")], "idle", "active"),
        (&[('C', "a IDLE\r\nDONE\r\nb IDLE\r\n"), ('B', "+ i\r\n")], "idle", "active"),
        (
            &[('C', "a IDLE\r\nDONE\r\nb IDLE\r\n"), ('B', "+ i\r\na OK\r\n+ i\r\n")],
            "idle idle",
            "idle may",
        ),
        (&[('C', "a IDLE\r\n"), ('B', "a NO x\r\n"), ('C', "b NOOP\r\n")], "idle", "active"),
        (
            &[('C', "a IDLE\r\n"), ('B', "+ i\r\na OK timeout\r\n"), ('C', "DONE\r\n")],
            "idle",
            "active may orderly",
        ),
        (&[('C', "a IDLE\r\n"), ('B', "+ i\r\n"), ('C', "b NOOP\r\n")], "idle", "lost"),
        // A mistake, answered as one, though its literal is asked for first.
        (&[('C', "a IDLE {2}\r\n"), ('B', "+ go\r\n"), ('C', "xy\r\n")], "", "active"),
        (
            &[
                ('C', "a IDLE {2}\r\n"),
                ('B', "+ \r\n"),
                ('C', "xy\r\nb NOOP\r\n"),
                ('B', "a BAD x\r\n"),
            ],
            "idle",
            "active",
        ),
        // AUTHENTICATE has no place here; who answers it anyway is followed.
        (&[('C', "a AUTHENTICATE PLAIN\r\n"), ('B', "a BAD x\r\n")], "other", "active may orderly"),
        (
            &[
                ('C', "a AUTHENTICATE PLAIN\r\n"),
                ('B', "+ \r\n"),
                ('C', "{5}\r\n"),
                ('B', "a NO\r\n"),
            ],
            "other",
            "active may orderly",
        ),
        (
            &[('C', "a AUTHENTICATE PLAIN\r\n"), ('B', "+ \r\na NO x\r\n"), ('C', "b NOOP\r\n")],
            "other",
            "active",
        ),
        (&[('B', "+ nobody waits\r\n")], "", "active may orderly"),
        // The end.
        (&[('C', "a LOGOUT\r\n")], "", "active logout"),
        (&[('C', "a LOGOUT\r\n"), ('B', "* BYE\r\n")], "", "active orderly bye logout"),
        (
            &[('C', "a LOGOUT\r\n"), ('B', "* BYE x\r\na OK\r\n")],
            "logout",
            "active orderly bye logout",
        ),
        (&[('C', "a IDLE\r\n"), ('B', "+ i\r\n* BYE shutdown\r\n")], "idle", "idle orderly bye"),
        (&[('B', "* BYE half")], "", "active bye"),
        // Neither end can tell.
        (&[('C', "{3+}\r\nabc NOOP\r\n")], "", "lost"),
        (&[('C', "a {4+}\r\nNOOP\r\n")], "", "lost"),
        (&[('C', "a SEARCHSEARCHSEARCHSE{5}\r\n")], "", "active"), // told before its `{` came
        (&[('C', "a APPEND x {5-}\r\n")], "", "lost"),
        (&[('C', "a APPEND x {}\r\n")], "", "lost"),
        (&[('C', "a APPEND x {99999999999999999999+}\r\nb COMPRESS x\r\n")], "", "lost"),
        (&[('C', "% APPEND x {5}\r\n")], "", "lost"),
    ];
    for (steps, verbs, state) in rows {
        each_cut(steps, |mut rig, how| {
            let context = format!("{steps:?} {how}");
            assert_eq!(rig.error, None, "{context}");
            assert_eq!(rig.verbs(), *verbs, "{context}");
            assert_eq!(rig.state(), *state, "{context}");
            rig.finish();
            assert_eq!(String::from_utf8_lossy(&rig.to_backend), said(steps, 'C'), "{context}");
            assert_eq!(String::from_utf8_lossy(&rig.to_client), said(steps, 'B'), "{context}");
            assert_eq!(rig.answers, b"", "{context}");
        });
    }
}

const COMPRESS: &str = "BAD COMPRESS is not available here\r\n";
const UNAUTHENTICATE: &str = "BAD UNAUTHENTICATE is not available here\r\n";

#[test]
fn refused_commands_never_reach_the_backend() {
    for (client, to_backend, answers, state) in [
        ("x COMPRESS DEFLATE\r\n", "", format!("x {COMPRESS}"), "active may orderly"),
        ("x compress\n", "", format!("x {COMPRESS}"), "active may orderly"),
        ("x  Compress  DEFLATE\r\n", "", format!("x {COMPRESS}"), "active may orderly"),
        (" x COMPRESS DEFLATE\r\n", "", format!("* {COMPRESS}"), "active may orderly"),
        ("%n COMPRESS DEFLATE\r\n", "", format!("* {COMPRESS}"), "active may orderly"),
        ("x UNAUTHENTICATE\r\n", "", format!("x {UNAUTHENTICATE}"), "active may orderly"),
        ("x STARTTLS\r\n", "", "x BAD TLS is already on\r\n".into(), "active may orderly"),
        ("x COMPRESS DEF", "", format!("x {COMPRESS}"), "active orderly"),
        (
            "a NOOP\r\nx COMPRESS DEFLATE\r\ny UNAUTHENTICATE\r\nb NOOP\r\n",
            "a NOOP\r\nb NOOP\r\n",
            format!("x {COMPRESS}y {UNAUTHENTICATE}"),
            "active",
        ),
        ("x COMPRESS {7}\r\n", "", format!("x {COMPRESS}"), "active may orderly"),
        ("x COMPRESS {7}\r\na NOOP\r\n", "a NOOP\r\n", format!("x {COMPRESS}"), "active"),
        ("x COMPRESS {7+}\r\na NOOP\n", "", format!("x {COMPRESS}"), "active orderly"),
        (
            "x COMPRESS {7+}\r\na NOOP\n {0+}\r\n\r\nb NOOP\r\n",
            "b NOOP\r\n",
            format!("x {COMPRESS}"),
            "active",
        ),
    ] {
        let steps = [('C', client)];
        each_cut(&steps, |mut rig, how| {
            let context = format!("{client:?} {how}");
            assert_eq!(rig.error, None, "{context}");
            assert_eq!(rig.state(), state, "{context}");
            rig.finish();
            assert_eq!(String::from_utf8_lossy(&rig.to_backend), to_backend, "{context}");
            assert_eq!(String::from_utf8_lossy(&rig.answers), answers, "{context}");
        });
    }
}

#[test]
fn answers_wait_for_a_response_boundary() {
    let mut rig = Rig::new();
    rig.chunk(ClientToBackend, b"a FETCH 1 BODY[]\r\n");
    for part in ["* 1 FETCH (BODY[] {4}\r\n", "x\r\n", "y", " FL", "AGS ()"] {
        rig.chunk(BackendToClient, part.as_bytes());
        rig.chunk(ClientToBackend, b"x COMPRESS DEFLATE\r\n");
        assert_eq!(rig.answers, b"", "{part:?}");
        assert!(!rig.follow.may_interrupt());
    }
    rig.chunk(BackendToClient, b")\r\na O"); // held back
    assert_eq!(rig.to_client.last(), Some(&b'\n'));
    assert_eq!(rig.answers, b"");
    rig.chunk(BackendToClient, b"K\r\n");
    assert_eq!(rig.answers, format!("x {COMPRESS}").repeat(5).as_bytes());
    assert!(rig.follow.may_interrupt());
}

#[test]
fn refusals_that_cannot_be_answered_end_the_session() {
    let many = "x COMPRESS DEFLATE\r\n".repeat(REFUSED + 1);
    let rig = run(&[('C', &many)], None, false);
    assert_eq!(rig.error, Some(Error::TooManyRefused));
    let one_less = "x COMPRESS DEFLATE\r\n".repeat(REFUSED);
    assert_eq!(run(&[('C', &one_less)], None, false).error, None);
    let rig = run(&[('C', "x COMPRESS {99999999999999999999+}\r\n")], None, true);
    assert_eq!(rig.error, Some(Error::RefusedLiteral));
    let rig = run(&[('B', "* LIST"), ('C', "x COMPRESS D\r\n"), ('C', "a X {}\r\n")], None, false);
    assert_eq!(rig.error, Some(Error::Unanswered));
    let rig = run(&[('C', "x COMPRESS D"), ('B', "* LIST {5+}\r\n")], None, false);
    assert_eq!(rig.error, Some(Error::Unanswered));
}

#[test]
fn capability_lists_are_repaired_wherever_they_stand() {
    for (backend, to_client) in [
        ("* CAPABILITY A STARTTLS\r\n", "* CAPABILITY A ADDED\r\n"),
        ("* capability A ADDED\n", "* capability A ADDED\n"),
        ("* OK [CAPABILITY STARTTLS A] x\r\n", "* OK [CAPABILITY A ADDED] x\r\n"),
        ("a OK [CAPABILITY A COMPRESS=DEFLATE]\n", "a OK [CAPABILITY A ADDED]\n"),
        ("a OK [ALERT] [CAPABILITY STARTTLS]\r\n", "a OK [ALERT] [CAPABILITY STARTTLS]\r\n"),
        ("* BYE [CAPABILITY HIDDEN] x\r\n", "* BYE [CAPABILITY ADDED] x\r\n"),
        (
            "* 1 FETCH {24}\r\n* CAPABILITY STARTTLS\r\n \r\n",
            "* 1 FETCH {24}\r\n* CAPABILITY STARTTLS\r\n \r\n",
        ),
        (
            "* CAPABILITY HIDDEN\r\n* CAPABILITY B\r\n* 1 EXISTS\r\n",
            "* CAPABILITY ADDED\r\n* CAPABILITY B ADDED\r\n* 1 EXISTS\r\n",
        ),
        ("* OK [CAPABILITY STARTTLS", "* OK [CAPABILITY STARTTLS"),
    ] {
        each_cut(&[('C', "a LIST\r\n"), ('B', backend)], |mut rig, how| {
            rig.finish();
            assert_eq!(String::from_utf8_lossy(&rig.to_client), to_client, "{backend:?} {how}");
        });
    }
}

#[test]
fn a_list_longer_than_what_may_be_held_passes_as_it_is() {
    for (length, repaired) in [(HELD, true), (HELD + 1, false), (3 * HELD, false)] {
        let mut line = b"a OK [CAPABILITY STARTTLS ".to_vec();
        line.resize(length - 1, b'x');
        line.extend_from_slice(b"]\n");
        for size in [1, 7, 4096, usize::MAX] {
            let mut rig = Rig::new();
            rig.chunk(ClientToBackend, b"a NOOP\r\n");
            rig.cut(BackendToClient, &line, &mut std::iter::repeat(size));
            assert_eq!(rig.to_client != line, repaired, "{length} by {size}");
            assert_eq!(
                (rig.verbs().as_str(), rig.state().as_str()),
                ("noop", "active may orderly")
            );
        }
    }
}

#[test]
fn long_lines_stream_through() {
    let mut set = b"a UID FETCH 1".to_vec();
    let mut found = b"* SEARCH".to_vec();
    let mut tag = vec![b'a'; head::TAG];
    for number in 0..20_000 {
        set.extend_from_slice(format!(",{number}").as_bytes());
        found.extend_from_slice(format!(" {number}").as_bytes());
    }
    set.extend_from_slice(b" FLAGS\r\n");
    found.extend_from_slice(b"\r\na OK\r\n");
    for size in [1, 1000, usize::MAX] {
        let mut rig = Rig::new();
        rig.cut(ClientToBackend, &set, &mut std::iter::repeat(size));
        rig.cut(BackendToClient, &found, &mut std::iter::repeat(size));
        assert_eq!((&rig.to_backend, &rig.to_client), (&set, &found));
        assert_eq!((rig.verbs().as_str(), rig.state().as_str()), ("fetch", "active may orderly"));
    }
    // A tag of the longest kind, and one longer.
    for (extra, state) in [(0, "active may orderly"), (1, "lost")] {
        tag.resize(head::TAG + extra, b'a');
        let [command, answer] = [&b" NOOP\r\n"[..], b" OK\r\n"].map(|tail| [&tag, tail].concat());
        for size in [1, 50, usize::MAX] {
            let mut rig = Rig::new();
            rig.cut(ClientToBackend, &command, &mut std::iter::repeat(size));
            rig.cut(BackendToClient, &answer, &mut std::iter::repeat(size));
            assert_eq!(rig.state(), state);
            assert_eq!((&rig.to_backend, &rig.to_client), (&command, &answer));
        }
    }
}

/// A CR counts neither for the longest tag nor for the longest head.
#[test]
fn words_as_long_as_may_be_are_the_same_wherever_they_are_cut() {
    for length in [head::TAG, head::CLIENT_HEAD].into_iter().flat_map(|at| at - 2..=at + 2) {
        let word = "b".repeat(length);
        let blanks = " ".repeat(length);
        for line in [
            format!("{word}\r\n"),
            format!("{word} NOOP\r\n"),
            format!("a {word}\r\n"),
            format!("a{blanks}NOOP\r\n"),
            format!("a{}NOOP\r\n", &blanks[4..]),
            format!("{blanks}\r\n"),
        ] {
            for who in ['C', 'B'] {
                let steps = [('C', "a FETCH 1 X\r\n"), (who, &*line)];
                let whole = run(&steps, None, false).state();
                each_cut(&steps, |rig, how| {
                    assert_eq!(rig.state(), whole, "{who}: {} bytes {how}", line.len());
                });
            }
        }
    }
}

#[test]
fn time_runs_from_the_last_byte_of_a_command() {
    let second = Duration::from_secs(1);
    let mut rig = Rig::new();
    for (who, text) in [
        ('C', "a APPEND x {2}\r\n"),
        ('B', "+ \r\n"),
        ('C', "xy\r"),
        ('C', "\nb IDLE\r\n"),
        ('B', "a OK\r\n"),
        ('B', "+ idling\r\n"),
        ('B', "* 1 EXISTS\r\n"),
        ('C', "DONE\r\nc APPEND x {2}\r\n"),
        ('B', "b OK\r\n"),
        ('B', "c NO\r\n"),
    ] {
        rig.chunk(direction(who), text.as_bytes());
        rig.now += second;
    }
    let expected = [(Verb::Append, second), (Verb::Idle, 2 * second), (Verb::Append, 2 * second)];
    assert_eq!(rig.completed, expected);
}

#[test]
fn commands_beyond_the_limit_are_counted_but_not_timed() {
    let mut rig = Rig::new();
    let all = COMMANDS + 10;
    for number in 0..all {
        rig.chunk(ClientToBackend, format!("t{number} NOOP\r\n").as_bytes());
    }
    for number in 0..all {
        assert!(!rig.follow.may_interrupt() && rig.follow.is_following());
        rig.chunk(BackendToClient, format!("t{number} OK\r\n").as_bytes());
    }
    assert!(rig.follow.may_interrupt());
    assert_eq!(rig.completed.len(), COMMANDS);
}

#[test]
fn the_thread_is_lost_where_an_uncounted_reply_decides_what_comes_next() {
    for (last, state) in [
        ("z NOOP\r\n", "active"),
        ("z APPEND x {5+}\r\n12", "active"),
        ("z APPEND x {5}\r\n", "lost"),
        ("z APPEND x {5}\r\n12", "lost"),
        ("z IDLE\r\n", "lost"),
    ] {
        let mut rig = Rig::new();
        for number in 0..COMMANDS {
            rig.chunk(ClientToBackend, format!("t{number} NOOP\r\n").as_bytes());
        }
        rig.chunk(ClientToBackend, last.as_bytes());
        rig.chunk(BackendToClient, b"z NO x\r\n");
        assert_eq!(rig.state(), state, "{last:?}");
    }
}

#[test]
fn nothing_is_interrupted_while_an_answer_waits() {
    let mut follow = Follow::new();
    let mut buffer = b"x COMPRESS DEFLATE\r\n".to_vec();
    follow.client(&mut buffer, start()).unwrap();
    assert!(buffer.is_empty() && !follow.may_interrupt());
    follow.take_answers(&mut buffer);
    assert!(!buffer.is_empty() && follow.may_interrupt());
}

#[test]
fn what_the_driver_took_to_read_behind_it_is_still_half_a_line() {
    for (who, half) in [(ClientToBackend, &b"a NO"[..]), (BackendToClient, b"* OK [CAPA")] {
        let mut rig = Rig::new();
        rig.chunk(who, half);
        let mut buffer = Vec::new();
        rig.follow.unhold(who, &mut buffer);
        assert_eq!(buffer, half);
        assert!(!rig.follow.may_interrupt());
        assert_eq!(rig.follow.ended_orderly(), who == ClientToBackend);
        // The other direction may come in between, with something to answer.
        rig.chunk(ClientToBackend, if who == ClientToBackend { b"" } else { b"x COMPRESS D\r\n" });
        assert_eq!(rig.answers, b"");
    }
}

#[test]
fn a_silent_session_holds_almost_nothing() {
    assert!(size_of::<Follow>() <= 160, "{}", size_of::<Follow>());
    assert!(size_of::<Command>() <= 48, "{}", size_of::<Command>());
    let mut rig = Rig::new();
    rig.chunk(ClientToBackend, b"A0001 IDLE\r\n");
    rig.chunk(BackendToClient, b"+ idling\r\n");
    assert_eq!((rig.follow.commands.capacity(), rig.follow.aside.is_none()), (1, true));
}

#[test]
fn verbs_are_labels() {
    for verb in <Verb as strum::VariantArray>::VARIANTS {
        let name = <&str>::from(verb);
        let line = format!("a {} x", name.to_uppercase());
        let head = head::client(line.as_bytes(), true);
        assert_eq!(head, ClientHead::Command { tag: b"a", order: Order::Run(*verb) }, "{name}");
    }
}
