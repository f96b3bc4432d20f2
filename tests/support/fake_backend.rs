//! A plaintext IMAP server that misbehaves on demand and records every byte that reaches it.
//!
//! [`FakeBackend::imap`] is a small well-behaved server with one hook: the test's closure sees every
//! command first and may answer it itself. [`FakeBackend::raw`] hands each connection over as it is.
//! It parses on its own, with nothing of the crate under test, so the two can disagree.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::proxy::Backend;
use super::wait::{PATIENCE, within};

/// A flag that the test sets and its closures read.
#[derive(Clone, Default)]
pub struct Switch(Arc<AtomicBool>);

impl Switch {
    pub fn set(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    pub fn clear(&self) {
        self.0.store(false, Ordering::SeqCst);
    }

    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

const PLAIN: &str = "IMAP4rev1 SASL-IR ID IDLE LITERAL+ AUTH=PLAIN";

pub struct FakeBackend {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    dials: AtomicUsize,
    open: AtomicUsize,
    peak: AtomicUsize,
    stop: AtomicBool,
    logins: Mutex<Vec<(Vec<u8>, Vec<u8>)>>,
    /// What each connection has received, by its number.
    received: Mutex<BTreeMap<usize, Vec<u8>>>,
    streams: Mutex<BTreeMap<usize, TcpStream>>,
}

impl FakeBackend {
    /// `script` runs once a connection, in a thread of its own; the connection closes when it returns.
    pub fn raw(script: impl Fn(&mut Session) + Send + Sync + 'static) -> Self {
        Self::raw_at((Ipv4Addr::LOCALHOST, 0).into(), script)
    }

    /// A whole server at this address.
    pub fn at(address: SocketAddr) -> Self {
        Self::raw_at(address, |session| {
            session.greet(PLAIN);
            session.serve(PLAIN, &|_, _| false);
        })
    }

    /// As [`FakeBackend::raw`], on an address of this machine.
    pub fn raw_at(
        address: SocketAddr,
        script: impl Fn(&mut Session) + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).expect("the address is free");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared::default());
        let script = Arc::new(script);
        let server = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if server.stop.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let number = server.dials.fetch_add(1, Ordering::SeqCst);
                let open = server.open.fetch_add(1, Ordering::SeqCst) + 1;
                server.peak.fetch_max(open, Ordering::SeqCst);
                let _ = stream.set_nodelay(true);
                let _ = stream.set_read_timeout(Some(Duration::from_secs(60)));
                if let Ok(clone) = stream.try_clone() {
                    server.streams.lock().unwrap().insert(number, clone);
                }
                let shared = Arc::clone(&server);
                let pending = Vec::new();
                let mut session =
                    Session { stream, pending, number, reset: false, stopped: false, shared };
                let script = Arc::clone(&script);
                thread::spawn(move || {
                    script(&mut session);
                    session.shared.streams.lock().unwrap().remove(&number);
                    let shared = Arc::clone(&session.shared);
                    drop(session); // closed before it is counted as closed
                    shared.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { address, shared }
    }

    /// A whole server that offers `IMAP4rev1` and `capabilities`. Password `secret` is right.
    pub fn imap(
        capabilities: &str,
        hook: impl Fn(&mut Session, &Command) -> bool + Send + Sync + 'static,
    ) -> Self {
        let capabilities = format!("IMAP4rev1 {capabilities}").trim().to_owned();
        Self::raw(move |session| {
            session.greet(&capabilities);
            session.serve(&capabilities, &hook);
        })
    }

    /// A whole server without a hook.
    pub fn plain() -> Self {
        Self::at((Ipv4Addr::LOCALHOST, 0).into())
    }

    /// Connections ever accepted.
    pub fn dials(&self) -> usize {
        self.shared.dials.load(Ordering::SeqCst)
    }

    /// The most connections that were ever open at one time.
    pub fn peak(&self) -> usize {
        self.shared.peak.load(Ordering::SeqCst)
    }

    /// User and password of each LOGIN, as this server understood them.
    pub fn logins(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.shared.logins.lock().unwrap().clone()
    }

    /// All bytes received, connection after connection.
    pub fn received(&self) -> String {
        let all = self.shared.received.lock().unwrap();
        all.values().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect()
    }

    /// Waits until `text` has arrived somewhere.
    #[track_caller]
    pub fn wait_for(&self, text: &str) {
        within(PATIENCE, &format!("{text:?} arrives at the backend"), || {
            self.received().contains(text)
        });
    }

    #[track_caller]
    pub fn wait_for_connections(&self, count: usize) {
        within(PATIENCE, &format!("{count} connections in the backend"), || {
            self.connections() == count
        });
    }
}

impl Backend for FakeBackend {
    fn address(&self) -> String {
        self.address.to_string()
    }

    fn connections(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }
}

impl Drop for FakeBackend {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- received by the backend:\n{}\n---", self.received());
        }
        self.shared.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address); // wakes the accepting thread
        for stream in self.shared.streams.lock().unwrap().values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// A command with its literals, as the fake backend understands it.
#[derive(Clone, Debug)]
pub struct Command {
    pub tag: String,
    /// In upper case.
    pub name: String,
    /// Words, strings and literals, decoded.
    pub arguments: Vec<Vec<u8>>,
    /// The first line as it came, without CRLF.
    pub line: String,
}

/// One connection, from the backend's side.
pub struct Session {
    stream: TcpStream,
    pending: Vec<u8>,
    /// Counts the connections from 0.
    pub number: usize,
    reset: bool,
    stopped: bool,
    shared: Arc<Shared>,
}

impl Session {
    /// False when the other end is gone.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).is_ok()
    }

    pub fn greet(&mut self, capabilities: &str) -> bool {
        self.send(format!("* OK [CAPABILITY {capabilities}] legacy server ready\r\n"))
    }

    /// The next line with its end, `None` when the other end has closed.
    pub fn line(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.pending.iter().position(|&b| b == b'\n') {
                return Some(self.pending.drain(..=at).collect());
            }
            self.read_more()?;
        }
    }

    pub fn exactly(&mut self, count: usize) -> Option<Vec<u8>> {
        while self.pending.len() < count {
            self.read_more()?;
        }
        Some(self.pending.drain(..count).collect())
    }

    /// Reads on until the other end closes; the number of bytes that still came.
    pub fn drain(&mut self) -> usize {
        let mut count = self.pending.len();
        self.pending.clear();
        while self.read_more().is_some() {
            count += self.pending.len();
            self.pending.clear();
        }
        count
    }

    /// FIN this way; the other end may still send.
    pub fn half_close(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// FIN, then reads until the other end closes too: what was sent is not lost in a reset.
    pub fn linger(&mut self) {
        if !self.reset {
            self.half_close();
            self.drain();
        }
    }

    /// Ends the connection now, both ways.
    pub fn shut(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// No more commands are read; [`Session::serve`] returns.
    pub fn stop(&mut self) {
        self.stopped = true;
    }

    /// The connection ends with a reset when the script returns.
    pub fn reset(&mut self) {
        self.reset = true;
        self.stopped = true;
        let _ = socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
        self.shared.streams.lock().unwrap().remove(&self.number);
    }

    pub fn tcp(&self) -> &TcpStream {
        &self.stream
    }

    /// The next command with all of its literals; synchronising ones are asked for with `+`.
    pub fn command(&mut self) -> Option<Command> {
        let mut bytes = Vec::new();
        let mut first = None;
        loop {
            let line = self.line()?;
            let text = line.strip_suffix(b"\r\n").unwrap_or(&line);
            first.get_or_insert_with(|| String::from_utf8_lossy(text).into_owned());
            bytes.extend_from_slice(text);
            let Some((size, synchronising)) = literal(text) else { break };
            if synchronising && !self.send("+ go on\r\n") {
                return None;
            }
            bytes.extend_from_slice(b"\r\n");
            let literal = self.exactly(size)?;
            bytes.extend_from_slice(&literal);
        }
        let mut words = words(&bytes).into_iter();
        let mut word = || words.next().map(|word| String::from_utf8_lossy(&word).into_owned());
        let tag = word().unwrap_or_default();
        let name = word().unwrap_or_default().to_ascii_uppercase();
        let line = first.expect("one line was read");
        Some(Command { tag, name, arguments: words.collect(), line })
    }

    /// Answers commands until LOGOUT or the end; `hook` sees each first and returns true if it has
    /// dealt with it.
    pub fn serve(&mut self, capabilities: &str, hook: &dyn Fn(&mut Session, &Command) -> bool) {
        while !self.stopped
            && let Some(command) = self.command()
        {
            if command.name == "LOGIN" && command.arguments.len() == 2 {
                let pair = (command.arguments[0].clone(), command.arguments[1].clone());
                self.shared.logins.lock().unwrap().push(pair);
            }
            if hook(self, &command) {
                continue;
            }
            let tag = &command.tag;
            let right = || command.arguments.get(1).is_some_and(|password| password == b"secret");
            let answer = match command.name.as_str() {
                "CAPABILITY" => format!("* CAPABILITY {capabilities}\r\n{tag} OK done\r\n"),
                "ID" => format!("* ID (\"name\" \"legacy\")\r\n{tag} OK done\r\n"),
                "LOGIN" if right() => format!("{tag} OK Logged in\r\n"),
                "LOGIN" => format!("{tag} NO [AUTHENTICATIONFAILED] no such luck\r\n"),
                "AUTHENTICATE" if command.arguments.first().is_none_or(|name| name != b"PLAIN") => {
                    format!("{tag} NO unknown mechanism\r\n")
                }
                "AUTHENTICATE" => {
                    if command.arguments.len() < 2 {
                        self.send("+ \r\n");
                        let Some(line) = self.line() else { return };
                        if line == b"*\r\n" {
                            self.send(format!("{tag} BAD cancelled\r\n"));
                            continue;
                        }
                    }
                    format!("{tag} OK Logged in\r\n")
                }
                "IDLE" => {
                    self.send("+ idling\r\n");
                    let Some(line) = self.line() else { return };
                    let done = line.eq_ignore_ascii_case(b"DONE\r\n");
                    format!("{tag} {} IDLE\r\n", if done { "OK" } else { "BAD" })
                }
                "LOGOUT" => {
                    self.send(format!("* BYE see you\r\n{tag} OK done\r\n"));
                    return;
                }
                "NOOP" | "SELECT" | "APPEND" => format!("{tag} OK done\r\n"),
                _ => format!("{tag} BAD what?\r\n"),
            };
            if !self.send(answer) {
                return;
            }
        }
    }

    fn read_more(&mut self) -> Option<()> {
        let mut chunk = [0; 16 * 1024];
        match self.stream.read(&mut chunk) {
            Ok(count) if count > 0 => {
                self.pending.extend_from_slice(&chunk[..count]);
                let mut received = self.shared.received.lock().unwrap();
                let record = received.entry(self.number).or_default();
                if record.len() < 4 << 20 {
                    record.extend_from_slice(&chunk[..count]); // enough to look at
                }
                Some(())
            }
            _ => None,
        }
    }
}

/// Size and kind of the literal that `line` announces.
fn literal(line: &[u8]) -> Option<(usize, bool)> {
    let line = line.strip_suffix(b"}")?;
    let open = line.iter().rposition(|&b| b == b'{')?;
    let inside = std::str::from_utf8(&line[open + 1..]).ok()?;
    let (digits, synchronising) = match inside.strip_suffix('+') {
        Some(digits) => (digits, false),
        None => (inside, true),
    };
    digits.parse().ok().map(|size| (size, synchronising))
}

/// Splits at spaces; decodes quoted strings and literals.
fn words(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut words = Vec::new();
    let mut rest = bytes;
    while let Some((&first, after)) = rest.split_first() {
        match first {
            b' ' => rest = after,
            b'"' => {
                let mut word = Vec::new();
                rest = after;
                while let Some((&byte, after)) = rest.split_first() {
                    rest = after;
                    match byte {
                        b'"' => break,
                        b'\\' => {
                            if let Some((&escaped, after)) = rest.split_first() {
                                word.push(escaped);
                                rest = after;
                            }
                        }
                        _ => word.push(byte),
                    }
                }
                words.push(word);
            }
            b'{' => {
                let end = rest.windows(2).position(|pair| pair == b"\r\n").unwrap_or(rest.len());
                let (size, _) = literal(&rest[..end]).unwrap_or((0, true));
                let start = (end + 2).min(rest.len());
                let stop = (start + size).min(rest.len());
                words.push(rest[start..stop].to_vec());
                rest = &rest[stop..];
            }
            _ => {
                let end = rest.iter().position(|&b| b == b' ').unwrap_or(rest.len());
                words.push(rest[..end].to_vec());
                rest = &rest[end..];
            }
        }
    }
    words
}
