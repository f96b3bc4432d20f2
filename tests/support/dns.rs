//! A name server that says what the test wants, and the files that lead a proxy to it.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// What a name means.
#[derive(Clone, Debug)]
pub enum Record {
    Ip(IpAddr),
    /// Priority, weight, port, target.
    Srv(u16, u16, u16, &'static str),
}

pub struct Dns {
    address: SocketAddr,
    shared: Arc<Shared>,
    folder: tempfile::TempDir,
}

#[derive(Default)]
struct Shared {
    names: Mutex<BTreeMap<String, Vec<Record>>>,
    broken: Mutex<bool>,
    strangers: Mutex<bool>,
    asked: AtomicUsize,
    stop: Mutex<bool>,
}

impl Dns {
    /// At port 53 of a loopback address of its own: resolv.conf can say no port.
    #[track_caller]
    pub fn start() -> Self {
        static NEXT: AtomicU8 = AtomicU8::new(1);
        let mut socket = None;
        for _ in 0..200 {
            let [_, _, low, high] = std::process::id().to_be_bytes();
            let ip =
                Ipv4Addr::new(127, 100 + high % 100, low, NEXT.fetch_add(1, Ordering::Relaxed));
            if let Ok(bound) = UdpSocket::bind((ip, 53)) {
                socket = Some(bound);
                break;
            }
        }
        let socket = socket.expect("this test binds port 53: run it as root");
        socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a socket has timeouts");
        let address = socket.local_addr().expect("it is bound");
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::write(folder.path().join("hosts"), "127.0.0.1 localhost\n").expect("ours");
        let conf = format!("nameserver {}\noptions timeout:1 attempts:1\n", address.ip());
        fs::write(folder.path().join("resolv.conf"), conf).expect("ours");
        let shared = Arc::new(Shared::default());
        let server = Arc::clone(&shared);
        thread::spawn(move || {
            let mut question = [0; 512];
            while !*server.stop.lock().unwrap() {
                let Ok((length, from)) = socket.recv_from(&mut question) else { continue };
                server.asked.fetch_add(1, Ordering::Relaxed);
                if let Some(answer) = server.answer(&question[..length]) {
                    if *server.strangers.lock().unwrap() {
                        let forged = [&[!answer[0], answer[1]], &answer[2..]].concat();
                        for packet in [b"?".as_slice(), &forged, &answer[..1]] {
                            let _ = socket.send_to(packet, from);
                        }
                    }
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        Self { address, shared, folder }
    }

    /// For [`super::Starting::etc`].
    pub fn etc(&self) -> &Path {
        self.folder.path()
    }

    pub fn set(&self, name: &str, records: &[Record]) {
        self.shared.names.lock().unwrap().insert(name.to_owned(), records.to_vec());
    }

    /// Answers nothing but SERVFAIL.
    pub fn set_broken(&self, broken: bool) {
        *self.shared.broken.lock().unwrap() = broken;
    }

    /// Questions so far.
    pub fn asked(&self) -> usize {
        self.shared.asked.load(Ordering::Relaxed)
    }

    /// Before each answer comes what is none.
    pub fn set_strangers(&self, strangers: bool) {
        *self.shared.strangers.lock().unwrap() = strangers;
    }

    /// Lines behind those of its `/etc/resolv.conf`.
    pub fn add_to_resolv_conf(&self, lines: &str) {
        let file = self.folder.path().join("resolv.conf");
        let text = fs::read_to_string(&file).expect("ours");
        fs::write(file, text + lines).expect("ours");
    }

    /// Lines for the proxy's `/etc/hosts`.
    pub fn set_hosts(&self, lines: &str) {
        fs::write(self.folder.path().join("hosts"), lines).expect("ours");
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        *self.shared.stop.lock().unwrap() = true;
        if thread::panicking() {
            eprintln!("--- {} said: {:?}", self.address, self.shared.names.lock().unwrap());
        }
    }
}

const A: u16 = 1;
const AAAA: u16 = 28;
const SRV: u16 = 33;
/// Seconds that an answer holds.
const TTL: u32 = 1;

impl Shared {
    fn answer(&self, query: &[u8]) -> Option<Vec<u8>> {
        let (mut at, mut labels) = (12, Vec::new());
        loop {
            let length = usize::from(*query.get(at)?);
            let label = query.get(at + 1..at + 1 + length)?;
            at += 1 + length;
            if length == 0 {
                break;
            }
            labels.push(String::from_utf8_lossy(label).to_lowercase());
        }
        let kind = u16::from_be_bytes([*query.get(at)?, *query.get(at + 1)?]);
        let question = query.get(12..at + 4)?;
        let names = self.names.lock().unwrap();
        let records = names.get(&labels.join("."));
        let answers: Vec<Vec<u8>> =
            records.into_iter().flatten().filter_map(|r| data(r, kind)).collect();
        let code = match (*self.broken.lock().unwrap(), records) {
            (true, _) => 2,
            (false, None) => 3,
            (false, Some(_)) => 0,
        };
        let answers = if code == 0 { answers } else { Vec::new() };
        let mut out = query.get(..2)?.to_vec();
        out.extend([0x85, 0x80 | code, 0, 1]);
        out.extend(u16::try_from(answers.len()).expect("a few").to_be_bytes());
        out.extend([0, 0, 0, 0]);
        out.extend(question);
        for data in answers {
            out.extend([0xc0, 12]);
            out.extend(kind.to_be_bytes());
            out.extend([0, 1]);
            out.extend(TTL.to_be_bytes());
            out.extend(u16::try_from(data.len()).expect("short").to_be_bytes());
            out.extend(data);
        }
        Some(out)
    }
}

fn data(record: &Record, kind: u16) -> Option<Vec<u8>> {
    match (record, kind) {
        (Record::Ip(IpAddr::V4(ip)), A) => Some(ip.octets().to_vec()),
        (Record::Ip(IpAddr::V6(ip)), AAAA) => Some(ip.octets().to_vec()),
        (Record::Srv(priority, weight, port, target), SRV) => {
            let mut out: Vec<u8> =
                [priority, weight, port].iter().flat_map(|n| n.to_be_bytes()).collect();
            for label in target.split('.').filter(|label| !label.is_empty()) {
                out.push(u8::try_from(label.len()).expect("a label"));
                out.extend(label.as_bytes());
            }
            out.push(0);
            Some(out)
        }
        _ => None,
    }
}
