//! A mail client of the barest kind: TLS (or plain TCP), line by line, every read with a deadline.
//!
//! How the other end closed is part of what is tested, so [`End`] tells an orderly end
//! (`close_notify`, then FIN) from a truncation (FIN alone) and from a reset.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion,
};
use socket2::{Domain, Socket, Type};

use super::wait::PATIENCE;

/// How the other end finished.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum End {
    /// TLS: `close_notify` came. Plain: FIN.
    Orderly,
    /// TLS: FIN without `close_notify`.
    Truncated,
    Reset,
    /// A fatal alert or another TLS error.
    Failed(String),
}

/// What the client offers in its ClientHello.
#[derive(Clone)]
pub struct TlsOptions {
    pub alpn: Vec<&'static str>,
    pub versions: Vec<&'static SupportedProtocolVersion>,
    pub name: &'static str,
}

impl Default for TlsOptions {
    fn default() -> Self {
        Self { alpn: Vec::new(), versions: rustls::ALL_VERSIONS.to_vec(), name: "localhost" }
    }
}

impl TlsOptions {
    pub fn config(&self, roots: &Arc<RootCertStore>) -> Arc<ClientConfig> {
        let mut config = ClientConfig::builder_with_protocol_versions(&self.versions)
            .with_root_certificates(Arc::clone(roots))
            .with_no_client_auth();
        config.alpn_protocols = self.alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

pub struct Client {
    transport: Transport,
    /// Received and not yet asked for.
    pending: Vec<u8>,
    end: Option<End>,
    tags: usize,
}

enum Transport {
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
    Plain(TcpStream),
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pending = String::from_utf8_lossy(&self.pending);
        f.debug_struct("Client").field("pending", &pending).field("end", &self.end).finish()
    }
}

impl Client {
    /// Connects and completes the handshake; the error is the alert or what else went wrong.
    pub fn tls(address: SocketAddr, config: &Arc<ClientConfig>, name: &str) -> io::Result<Self> {
        Self::tls_over(dial(address)?, config, name)
    }

    /// As [`Client::tls`], from an address of this machine.
    pub fn tls_from(
        source: IpAddr,
        address: SocketAddr,
        config: &Arc<ClientConfig>,
    ) -> io::Result<Self> {
        Self::tls_over(dial_from(source, address)?, config, "localhost")
    }

    /// As [`Client::tls_from`], on a port for STARTTLS; the greeting was in plaintext.
    pub fn starttls_from(
        source: IpAddr,
        address: SocketAddr,
        config: &Arc<ClientConfig>,
    ) -> io::Result<Self> {
        let tcp = dial_from(source, address)?;
        let mut client = Self::over(Transport::Plain(tcp.try_clone()?));
        client.expect("* OK ");
        assert!(client.result("STARTTLS").starts_with("OK"), "{client:?}");
        Self::tls_over(tcp, config, "localhost")
    }

    /// On a connection that is there.
    pub fn tls_over(tcp: TcpStream, config: &Arc<ClientConfig>, name: &str) -> io::Result<Self> {
        let name = ServerName::try_from(name.to_owned()).expect("the test gives a name");
        let connection =
            ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(connection, tcp);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(Self::over(Transport::Tls(Box::new(stream))))
    }

    /// As [`Client::tls`], behind a PROXY header.
    pub fn tls_behind(
        header: &[u8],
        address: SocketAddr,
        config: &Arc<ClientConfig>,
    ) -> io::Result<Self> {
        let mut tcp = dial(address)?;
        tcp.write_all(header)?;
        Self::tls_over(tcp, config, "localhost")
    }

    /// A client that speaks no TLS.
    pub fn plain(address: SocketAddr) -> io::Result<Self> {
        dial(address).map(|tcp| Self::over(Transport::Plain(tcp)))
    }

    fn over(transport: Transport) -> Self {
        Self { transport, pending: Vec::new(), end: None, tags: 0 }
    }

    /// The TLS state: version, suite, group, ALPN, kind of handshake.
    pub fn session(&self) -> &ClientConnection {
        match &self.transport {
            Transport::Tls(stream) => &stream.conn,
            Transport::Plain(_) => panic!("this client speaks no TLS"),
        }
    }

    pub fn session_mut(&mut self) -> &mut ClientConnection {
        match &mut self.transport {
            Transport::Tls(stream) => &mut stream.conn,
            Transport::Plain(_) => panic!("this client speaks no TLS"),
        }
    }

    /// Sends what the TLS state has to say by itself.
    pub fn flush(&mut self) -> io::Result<()> {
        match &mut self.transport {
            Transport::Tls(stream) => {
                while stream.conn.wants_write() {
                    stream.conn.write_tls(&mut stream.sock)?;
                }
                Ok(())
            }
            Transport::Plain(tcp) => tcp.flush(),
        }
    }

    pub fn tcp(&self) -> &TcpStream {
        match &self.transport {
            Transport::Tls(stream) => &stream.sock,
            Transport::Plain(tcp) => tcp,
        }
    }

    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        if let Err(error) = self.try_send(bytes) {
            panic!("the other end takes nothing: {error}; {self:?}");
        }
    }

    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        match &mut self.transport {
            Transport::Tls(stream) => {
                stream.write_all(bytes.as_ref())?;
                stream.flush()
            }
            Transport::Plain(tcp) => tcp.write_all(bytes.as_ref()),
        }
    }

    /// The next line without its CRLF.
    #[track_caller]
    pub fn line(&mut self) -> String {
        self.line_within(PATIENCE)
    }

    #[track_caller]
    pub fn line_within(&mut self, limit: Duration) -> String {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(at) = self.pending.iter().position(|&b| b == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=at).collect();
                let line = line.strip_suffix(b"\r\n").expect("lines end in CRLF");
                return String::from_utf8_lossy(line).into_owned();
            }
            assert!(self.read_more(deadline), "no whole line: {self:?}");
        }
    }

    /// The next line, which must begin with `prefix`.
    #[track_caller]
    pub fn expect(&mut self, prefix: &str) -> String {
        let line = self.line();
        assert!(line.starts_with(prefix), "expected {prefix:?}, got {line:?}; then {self:?}");
        line
    }

    /// All lines up to and with the first that begins with `prefix`.
    #[track_caller]
    pub fn until(&mut self, prefix: &str) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            lines.push(self.line());
            if lines.last().is_some_and(|line| line.starts_with(prefix)) {
                return lines;
            }
        }
    }

    #[track_caller]
    pub fn exactly(&mut self, count: usize) -> Vec<u8> {
        let deadline = Instant::now() + PATIENCE;
        while self.pending.len() < count {
            assert!(
                self.read_more(deadline),
                "ended after {} of {count} bytes",
                self.pending.len()
            );
        }
        self.pending.drain(..count).collect()
    }

    /// Sends `command` under a tag of its own; all lines up to and with the tagged one.
    #[track_caller]
    pub fn command(&mut self, command: &str) -> Vec<String> {
        self.tags += 1;
        let tag = format!("t{}", self.tags);
        self.send(format!("{tag} {command}\r\n"));
        self.until(&format!("{tag} "))
    }

    /// The tagged answer to `command` without its tag.
    #[track_caller]
    pub fn result(&mut self, command: &str) -> String {
        let last = self.command(command).pop().expect("there is a tagged line");
        last.split_once(' ').expect("a tag and a space").1.to_owned()
    }

    /// Takes the greeting and logs in.
    #[track_caller]
    pub fn log_in(&mut self, user: &str, password: &str) -> String {
        self.expect("* OK ");
        let answer = self.result(&format!("LOGIN {user} {password}"));
        assert!(answer.starts_with("OK"), "{answer}");
        answer
    }

    /// Everything up to the end, which must come within `limit`.
    #[track_caller]
    pub fn rest(&mut self, limit: Duration) -> String {
        String::from_utf8_lossy(&self.rest_bytes(limit)).into_owned()
    }

    #[track_caller]
    pub fn rest_bytes(&mut self, limit: Duration) -> Vec<u8> {
        let deadline = Instant::now() + limit;
        while self.read_more(deadline) {}
        std::mem::take(&mut self.pending)
    }

    /// How the other end finished; waits for it.
    #[track_caller]
    pub fn end(&mut self) -> End {
        let deadline = Instant::now() + PATIENCE;
        while self.read_more(deadline) {}
        self.end.clone().expect("reading on stopped")
    }

    /// Whether nothing arrives for `period`: for showing that something does not happen.
    pub fn silent_for(&mut self, period: Duration) -> bool {
        self.pending.is_empty() && self.end.is_none() && self.read_once(period) == Some(0)
    }

    /// `close_notify` and FIN one way; the other end may still talk.
    #[track_caller]
    pub fn half_close(&mut self) {
        if let Transport::Tls(stream) = &mut self.transport {
            stream.conn.send_close_notify();
        }
        self.flush().expect("the other end is there");
        self.tcp().shutdown(Shutdown::Write).expect("the socket is open");
    }

    /// FIN without `close_notify`.
    #[track_caller]
    pub fn cut(&mut self) {
        self.tcp().shutdown(Shutdown::Write).expect("the socket is open");
    }

    /// Resets the connection, as a client does whose process dies with data unread.
    pub fn vanish(self) {
        let socket = socket2::SockRef::from(self.tcp());
        socket.set_linger(Some(Duration::ZERO)).expect("the socket is open");
    }

    /// False at the end; panics at `deadline`.
    #[track_caller]
    fn read_more(&mut self, deadline: Instant) -> bool {
        if self.end.is_some() {
            return false;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        match self.read_once(left.max(Duration::from_millis(1))) {
            Some(0) => panic!("nothing more within the deadline: {self:?}"),
            Some(_) => true,
            None => false,
        }
    }

    /// Bytes read, 0 when none came within `limit`, `None` at the end.
    fn read_once(&mut self, limit: Duration) -> Option<usize> {
        self.tcp().set_read_timeout(Some(limit)).expect("a limit above zero");
        let mut chunk = [0; 16 * 1024];
        let read = match &mut self.transport {
            Transport::Tls(stream) => stream.read(&mut chunk),
            Transport::Plain(tcp) => tcp.read(&mut chunk),
        };
        self.end = Some(match read {
            Ok(0) => End::Orderly,
            Ok(count) => {
                self.pending.extend_from_slice(&chunk[..count]);
                return Some(count);
            }
            Err(e) => match e.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => return Some(0),
                io::ErrorKind::Interrupted => return Some(1),
                io::ErrorKind::UnexpectedEof => End::Truncated,
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => End::Reset,
                _ => End::Failed(e.to_string()),
            },
        });
        None
    }
}

fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    prepared(TcpStream::connect_timeout(&address, PATIENCE)?)
}

/// From another address than the system would choose.
fn dial_from(source: IpAddr, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(source, 0).into())?;
    socket.connect_timeout(&address.into(), PATIENCE)?;
    prepared(socket.into())
}

fn prepared(tcp: TcpStream) -> io::Result<TcpStream> {
    tcp.set_nodelay(true)?;
    tcp.set_read_timeout(Some(PATIENCE))?;
    tcp.set_write_timeout(Some(PATIENCE))?;
    Ok(tcp)
}
