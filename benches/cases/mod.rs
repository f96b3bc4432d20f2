//! What framing, following and repair are measured on: `components` times it, `peers/limits` counts its instructions.
//!
//! A case makes what it needs once; each of its turns does the same work and checks that it went as meant.

use std::fmt;
use std::hint::black_box;
use std::time::{Duration, Instant};

use imaps_proxy::proto::imap::capability::Repair;
use imaps_proxy::proto::imap::dialogue::{Dialogue, Next};
use imaps_proxy::proto::imap::follow::{Direction, Follow, Verb};
use imaps_proxy::proto::imap::line::{Limits, Scan, Scanner};
use imaps_proxy::proto::imap::secret::Input;

/// As the relay reads.
const CHUNK: usize = 64 * 1024;
pub const MIB: usize = 1024 * 1024;
/// The defaults of the configuration.
const LIMITS: Limits = Limits { line: 8192, literal: 4096, sasl: 65_536 };
const CAPABILITIES: &[u8] =
    b"* CAPABILITY IMAP4rev1 SASL-IR LOGIN-REFERRALS ID ENABLE IDLE LITERAL+ STARTTLS AUTH=PLAIN";

pub type Turn = Box<dyn FnMut()>;

pub struct Case {
    name: &'static str,
    pub unit: Unit,
    pub start: fn() -> Turn,
}

/// What one turn works on.
#[derive(Clone, Copy, Debug)]
pub enum Unit {
    Command,
    Bytes(usize),
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

pub const CASES: &[Case] = &[
    Case { name: "frame-command", unit: Unit::Command, start: frame_command },
    Case { name: "frame-sasl", unit: Unit::Bytes(SASL), start: frame_sasl },
    Case { name: "login-dialogue", unit: Unit::Command, start: login_dialogue },
    Case { name: "follow-command", unit: Unit::Command, start: follow_command },
    Case { name: "follow-idle", unit: Unit::Command, start: follow_idle },
    Case { name: "follow-download", unit: Unit::Bytes(MIB), start: follow_download },
    Case { name: "follow-upload", unit: Unit::Bytes(MIB), start: follow_upload },
    Case { name: "follow-list", unit: Unit::Bytes(MIB), start: follow_list },
    Case { name: "repair", unit: Unit::Command, start: repair },
];

/// Where a command ends.
fn frame(command: &[u8]) {
    let mut scanner = Scanner::default();
    let scan = scanner.scan(black_box(command), &LIMITS);
    assert_eq!(scan, Ok(Scan::Whole(command.len())));
}

fn frame_command() -> Turn {
    Box::new(|| frame(b"a1 LOGIN somebody \"a password\"\r\n"))
}

const SASL: usize = 32 * 1024;

/// A large initial response, as Kerberos has them.
fn frame_sasl() -> Turn {
    let mut command = b"a1 AUTHENTICATE GSSAPI ".to_vec();
    command.resize(SASL - 2, b'A');
    command.extend_from_slice(b"\r\n");
    Box::new(move || frame(&command))
}

/// A client's words before login: framed, parsed, answered.
fn login_dialogue() -> Turn {
    Box::new(|| {
        let words =
            b"a1 CAPABILITY\r\na2 ID (\"name\" \"x\")\r\na3 LOGIN somebody \"a password\"\r\n";
        let mut dialogue = Dialogue::new(LIMITS);
        let mut input = Input::from(black_box(words).to_vec());
        let mut out = Vec::new();
        let next = dialogue.advance(&mut input, CAPABILITIES, &mut out);
        assert!(matches!(next, Next::LogIn(_)));
    })
}

/// A followed session, driven as `conn::relay` does it.
struct Session {
    follow: Follow,
    repair: Repair,
    buffer: Vec<u8>,
    now: Instant,
    completed: usize,
}

impl Session {
    fn new() -> Self {
        Self {
            follow: Follow::new(),
            repair: Repair::new(&[], &[]),
            buffer: Vec::with_capacity(2 * CHUNK),
            now: Instant::now(),
            completed: 0,
        }
    }

    fn client(&mut self, bytes: &[u8]) {
        let mut buffer = self.read(Direction::ClientToBackend, bytes);
        self.client_buffer(&mut buffer);
        self.buffer = buffer;
    }

    fn backend(&mut self, bytes: &[u8]) {
        let mut buffer = self.read(Direction::BackendToClient, bytes);
        self.backend_buffer(&mut buffer);
        self.buffer = buffer;
    }

    fn read(&mut self, direction: Direction, bytes: &[u8]) -> Vec<u8> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        self.follow.unhold(direction, &mut buffer);
        buffer.extend_from_slice(bytes);
        buffer
    }

    /// Literals come here at once: copying them would cost a thousand times more than following.
    fn client_buffer(&mut self, buffer: &mut Vec<u8>) {
        let followed = self.follow.client(black_box(buffer), self.now);
        followed.expect("nothing here is refused");
    }

    fn backend_buffer(&mut self, buffer: &mut Vec<u8>) {
        let mut completed = |_: Verb, _: Duration| self.completed += 1;
        let followed =
            self.follow.backend(black_box(buffer), &self.repair, self.now, &mut completed);
        followed.expect("nothing here is refused");
        self.follow.take_answers(buffer);
    }

    /// At the end of a turn its one command was completed, and the thread was not lost.
    fn ended(&mut self) {
        assert_eq!(std::mem::take(&mut self.completed), 1);
        assert!(self.follow.is_following() && self.follow.ended_orderly());
    }
}

fn follow_command() -> Turn {
    let mut session = Session::new();
    Box::new(move || {
        session.client(b"a1 NOOP\r\n");
        session.backend(b"a1 OK done\r\n");
        session.ended();
    })
}

fn follow_idle() -> Turn {
    let mut session = Session::new();
    Box::new(move || {
        session.client(b"a1 IDLE\r\n");
        session.backend(b"+ idling\r\n");
        session.backend(b"* 4 EXISTS\r\n");
        session.client(b"DONE\r\n");
        session.backend(b"a1 OK done\r\n");
        session.ended();
    })
}

/// A message as one literal: its bytes are counted, not read.
fn follow_download() -> Turn {
    let mut session = Session::new();
    let head = format!("* 1 FETCH (BODY[] {{{MIB}}}\r\n");
    let mut chunk = vec![b'\n'; CHUNK];
    Box::new(move || {
        session.client(b"a1 FETCH 1 BODY[]\r\n");
        session.backend(head.as_bytes());
        for _ in 0..MIB / CHUNK {
            session.backend_buffer(&mut chunk);
        }
        session.backend(b")\r\na1 OK done\r\n");
        session.ended();
    })
}

fn follow_upload() -> Turn {
    let mut session = Session::new();
    let head = format!("a1 APPEND INBOX {{{MIB}}}\r\n");
    let mut chunk = vec![b'\n'; CHUNK];
    Box::new(move || {
        session.client(head.as_bytes());
        session.backend(b"+ go\r\n");
        for _ in 0..MIB / CHUNK {
            session.client_buffer(&mut chunk);
        }
        session.client(b"\r\n");
        session.backend(b"a1 OK done\r\n");
        session.ended();
    })
}

/// What a client gets that opens a large mailbox: many lines, small literals, chunks that are cut anywhere.
fn follow_list() -> Turn {
    let mut session = Session::new();
    let mut list = Vec::with_capacity(MIB + 256);
    let mut n = 0;
    while list.len() < MIB {
        n += 1;
        let line = format!("* {n} FETCH (UID {n} FLAGS (\\Seen) BODY[HEADER] {{30}}\r\n");
        list.extend_from_slice(line.as_bytes());
        list.extend_from_slice(b"Subject: a message or so\r\n\r\n\r\n)\r\n");
    }
    Box::new(move || {
        session.client(b"a1 FETCH 1:* (UID FLAGS BODY[HEADER])\r\n");
        for chunk in list.chunks(CHUNK) {
            session.backend(chunk);
        }
        session.backend(b"a1 OK done\r\n");
        session.ended();
    })
}

fn repair() -> Turn {
    let repair = Repair::new(&["AUTH=GSSAPI".to_owned()], &["X-ADDED".to_owned()]);
    Box::new(move || {
        let repaired = repair.line(black_box(CAPABILITIES));
        assert!(repaired.is_some());
    })
}
