//! Asks a running proxy of the same machine whether it can serve, over its own HTTP listener.
//!
//! In: the address to which that listener is bound. Out: status and body of `/readyz`. Limits: one request, 64 KiB of
//! answer, one deadline for all. Plain blocking I/O: a health check should start no runtime.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

const MAX_ANSWER: usize = 64 * 1024;

/// Nobody answers.
#[derive(Debug, thiserror::Error)]
#[error("http://{address}/readyz does not answer; is the proxy running?")]
pub struct Silent {
    address: SocketAddr,
    source: io::Error,
}

/// Where a listener bound to this address is reached from its own machine.
pub fn reachable(bound: SocketAddr) -> Vec<SocketAddr> {
    let port = bound.port();
    match bound.ip() {
        IpAddr::V4(any) if any.is_unspecified() => vec![(Ipv4Addr::LOCALHOST, port).into()],
        // The second for machines without IPv6, where a dual-stack listener took IPv4 alone.
        IpAddr::V6(any) if any.is_unspecified() => {
            vec![(Ipv6Addr::LOCALHOST, port).into(), (Ipv4Addr::LOCALHOST, port).into()]
        }
        _ => vec![bound],
    }
}

/// Status and body of the answer.
///
/// # Errors
/// There is none within `within`.
pub fn ask_any(bound: SocketAddr, within: Duration) -> Result<(u16, String), Silent> {
    let deadline = Instant::now() + within;
    let mut last = None;
    for address in reachable(bound) {
        match ask(address, deadline) {
            Ok(answer) => return Ok(answer),
            Err(source) => last = Some(Silent { address, source }),
        }
    }
    Err(last.expect("at least one address was asked"))
}

fn ask(address: SocketAddr, deadline: Instant) -> io::Result<(u16, String)> {
    let mut socket = TcpStream::connect_timeout(&address, left(deadline)?)?;
    socket.set_write_timeout(Some(left(deadline)?))?;
    let request = format!("GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        // Anew for every read, or an answer that drips would never end.
        socket.set_read_timeout(Some(left(deadline)?))?;
        match socket.read(&mut chunk)? {
            0 => break,
            n => answer.extend_from_slice(&chunk[..n]),
        }
        if answer.len() > MAX_ANSWER {
            break;
        }
    }
    parse(&answer)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the answer is not HTTP"))
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// Status and body of an HTTP/1 answer whose end was the connection's.
fn parse(answer: &[u8]) -> Option<(u16, String)> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut words = head.lines().next()?.split(' ');
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    let status = words.next()?.parse().ok()?;
    Some((status, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread;

    const DEADLINE: Duration = Duration::from_secs(3);

    fn server(answer: &'static [u8]) -> (SocketAddr, thread::JoinHandle<Vec<u8>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let serving = thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            let mut byte = [0];
            while !request.ends_with(b"\r\n\r\n") && socket.read(&mut byte).unwrap() == 1 {
                request.push(byte[0]);
            }
            socket.write_all(answer).unwrap();
            if answer.is_empty() {
                let _ = socket.read(&mut byte); // until the asker gives up
            }
            request
        });
        (address, serving)
    }

    #[test]
    fn status_and_body_come_back() {
        let (address, serving) =
            server(b"HTTP/1.1 503 Service Unavailable\r\na: b\r\n\r\ndraining\n");
        let answer = ask_any(address, DEADLINE).unwrap();
        assert_eq!(answer, (503, "draining\n".to_owned()));
        assert!(serving.join().unwrap().starts_with(b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1:"));
    }

    #[test]
    fn an_unspecified_address_is_asked_on_loopback() {
        let (address, serving) = server(b"HTTP/1.1 200 OK\r\n\r\nready\n");
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, address.port()));
        assert_eq!(reachable(any).len(), 2); // ::1 refuses here, 127.0.0.1 answers
        assert_eq!(ask_any(any, DEADLINE).unwrap(), (200, "ready\n".to_owned()));
        serving.join().unwrap();
        let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 9));
        assert_eq!(reachable(any), [SocketAddr::from((Ipv4Addr::LOCALHOST, 9))]);
    }

    #[test]
    fn silence_and_nonsense_are_failures() {
        let (address, serving) = server(b"");
        let error = ask_any(address, Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("does not answer"));
        serving.join().unwrap();
        let (address, serving) = server(b"* OK IMAP4rev1\r\n\r\n");
        assert!(ask_any(address, DEADLINE).is_err());
        serving.join().unwrap();
    }
}
