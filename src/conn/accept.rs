//! The accept loop of one listener. No client can delay it: it accepts, and spawns.
//!
//! When descriptors run out `accept` fails until some are free again: the loop backs off from 10 ms to a second,
//! counts, says so once in a while, and goes on. It never ends but by `stop`. A reload ends it and begins another at the same
//! socket, so that every connection is served by one whole configuration and none is refused meanwhile.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::address::{ClientAddr, PeerAddr};
use super::close::{Reason, Session};
use super::socket::{lacks_family, prepare, why};
use super::{Context, serve};
use crate::config::settings::ListenTls;

const BACKLOG: i32 = 4096;
const FIRST_WAIT: Duration = Duration::from_millis(10);
const MAX_WAIT: Duration = Duration::from_secs(1);
/// How often a full house is logged, and that accepting fails.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// What a connection has to know of where it came in.
pub struct Listener {
    /// The address as configured: the label and log field `listener`.
    pub name: String,
    pub tls: ListenTls,
    /// Who must send a PROXY header, and is believed.
    pub proxy_protocol_from: Vec<IpNet>,
}

/// Opens a listener; `[::]` takes IPv4 as well, and IPv4 alone where the system has no IPv6.
/// `shared`: beside others at the same port that allow it as well.
///
/// # Errors
/// Of the system; [`unavailable`] says them.
pub fn bind(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    match open(address, shared) {
        Err(error) if address.ip() == Ipv6Addr::UNSPECIFIED && lacks_family(&error) => {
            open((Ipv4Addr::UNSPECIFIED, address.port()).into(), shared)
        }
        opened => opened,
    }
}

/// Why an address can't be listened on, and what would be right.
pub fn unavailable(address: SocketAddr, error: &io::Error) -> String {
    let (why, port) = (why(error), address.port());
    match error.kind() {
        _ if lacks_family(error) => format!("{why}; write \"0.0.0.0:{port}\""),
        io::ErrorKind::AddrNotAvailable => {
            format!("{why}; this machine does not have it, \"[::]:{port}\" is all that it has")
        }
        io::ErrorKind::PermissionDenied if port < 1024 => {
            format!("{why}; a port below 1024 needs root or the capability NET_BIND_SERVICE")
        }
        _ => why,
    }
}

fn open(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if let SocketAddr::V6(address) = address {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    prepare(&socket);
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Whether it was not said lately; from now on it was.
fn is_to_be_said(said: &mut Option<Instant>) -> bool {
    let again = said.is_none_or(|said| said.elapsed() >= SAY_AGAIN);
    if again {
        *said = Some(Instant::now());
    }
    again
}

/// Spawns sessions of one listener.
#[derive(Clone)]
pub struct Acceptor {
    pub socket: Arc<TcpListener>,
    pub listener: Arc<Listener>,
    pub ctx: Arc<Context>,
    pub sessions: TaskTracker,
}

impl Acceptor {
    /// Accepts until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let accepted = self.ctx.metrics.listener(&self.listener.name);
        let mut wait = FIRST_WAIT;
        let (mut full, mut failing) = (None, None);
        loop {
            let connection = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                connection = self.socket.accept() => connection,
            };
            match connection {
                Ok((stream, peer)) => {
                    wait = FIRST_WAIT;
                    accepted.inc();
                    if !self.admit(stream, peer) && is_to_be_said(&mut full) {
                        let (listener, limit) = (&*self.listener.name, self.ctx.limits.connections);
                        tracing::warn!(listener, limit, "limits.connections is reached");
                    }
                }
                Err(error) => {
                    self.ctx.metrics.accept_errors.inc();
                    // A crowd that comes and goes has it fail and recover many times a second.
                    if wait == FIRST_WAIT && is_to_be_said(&mut failing) {
                        let (listener, error) = (&*self.listener.name, why(&error));
                        tracing::error!(listener, error, "can't accept connections, trying on");
                    }
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = sleep(wait) => wait = MAX_WAIT.min(wait * 2),
                    }
                }
            }
        }
    }

    /// Whether there was room for one more.
    fn admit(&self, stream: TcpStream, peer: SocketAddr) -> bool {
        let admitted = self.ctx.admit();
        if admitted {
            let peer = PeerAddr::new(peer);
            let session = Session::open(&self.ctx, ClientAddr::of(peer), &self.listener);
            self.sessions.spawn(serve(stream, peer, session));
        } else {
            // Before TLS nothing could be said that a client would understand.
            Session::refuse(&self.ctx, Reason::TooManyConnections);
        }
        admitted
    }

    /// Takes what has come already, of a listener that closes: whoever waits there then is reset. The system is asked, for what
    /// the runtime has heard of may be less.
    pub fn rest(self) {
        let accepted = self.ctx.metrics.listener(&self.listener.name);
        for _ in 0..BACKLOG {
            let Ok((stream, peer)) = SockRef::from(&*self.socket).accept() else { return };
            let stream = std::net::TcpStream::from(stream);
            let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
            if let (Ok(stream), Some(peer)) = (stream, peer.as_socket()) {
                accepted.inc();
                self.admit(stream, peer);
            }
        }
    }
}
