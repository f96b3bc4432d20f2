//! A mail client that can do what the workloads need, and checks every byte that it gets.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, HandshakeKind, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::pattern::Pattern;

/// Nothing here takes long on loopback: a candidate that needs longer hangs.
const LIMIT: Duration = Duration::from_secs(60);
const BUFFER: usize = 256 * 1024;

/// How to connect: with which key exchange, with tickets or without.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    Classic,
    Hybrid,
    Resuming,
}

/// Where a candidate listens and how to greet it.
#[derive(Clone)]
pub struct Target {
    pub address: SocketAddr,
    /// `None` for the plain relay.
    pub tls: Option<Arc<ClientConfig>>,
}

impl Target {
    /// `ca`: the PEM file of the CA that signed every candidate's certificate; `None` for plain TCP.
    pub fn new(port: u16, ca: Option<&Path>, mode: Mode) -> io::Result<Self> {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let tls = ca.map(|ca| config(ca, mode)).transpose()?.map(Arc::new);
        Ok(Self { address, tls })
    }
}

fn config(ca: &Path, mode: Mode) -> io::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(ca).map_err(io::Error::other)?)
        .map_err(io::Error::other)?;
    let mut provider = default_provider();
    // The same cipher for everybody, whatever order a candidate has.
    provider.cipher_suites = vec![cipher_suite::TLS13_AES_128_GCM_SHA256];
    provider.kx_groups = match mode {
        Mode::Hybrid => vec![kx_group::X25519MLKEM768],
        Mode::Classic | Mode::Resuming => vec![kx_group::X25519],
    };
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = match mode {
        Mode::Resuming => Resumption::in_memory_sessions(16),
        Mode::Classic | Mode::Hybrid => Resumption::disabled(),
    };
    Ok(config)
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// One connection. Keeps no more than a response's few lines.
pub struct Client {
    stream: Box<dyn Stream>,
    input: Vec<u8>,
    tag: u32,
    pub resumed: bool,
}

impl Client {
    /// Connects and reads the greeting.
    pub async fn connect(target: &Target) -> io::Result<Self> {
        limited(async {
            let socket = TcpStream::connect(target.address).await?;
            socket.set_nodelay(true)?;
            let mut resumed = false;
            let stream: Box<dyn Stream> = match &target.tls {
                None => Box::new(socket),
                Some(config) => {
                    let name = ServerName::try_from("localhost").expect("a DNS name");
                    let connector = TlsConnector::from(Arc::clone(config));
                    let stream = connector.connect(name, socket).await?;
                    resumed = stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed);
                    Box::new(stream)
                }
            };
            let mut client = Self { stream, input: Vec::new(), tag: 0, resumed };
            let greeting = client.line().await?;
            if !greeting.starts_with("* OK") {
                return Err(io::Error::other(format!("greeted with {greeting:?}")));
            }
            Ok(client)
        })
        .await
    }

    async fn fill(&mut self) -> io::Result<()> {
        match self.stream.read_buf(&mut self.input).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    async fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.input.iter().position(|byte| *byte == b'\n') {
                let line = String::from_utf8_lossy(&self.input[..end]).trim_end().to_owned();
                self.input.drain(..=end);
                if self.input.is_empty() {
                    self.input = Vec::new();
                }
                return Ok(line);
            }
            self.fill().await?;
        }
    }

    fn next_tag(&mut self) -> String {
        self.tag += 1;
        format!("a{}", self.tag)
    }

    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    /// Reads to the tagged result, which must be OK.
    async fn result(&mut self, tag: &str) -> io::Result<()> {
        loop {
            let line = self.line().await?;
            if let Some(result) = line.strip_prefix(tag) {
                return match result.starts_with(" OK") {
                    true => Ok(()),
                    false => Err(io::Error::other(line)),
                };
            }
        }
    }

    async fn continuation(&mut self) -> io::Result<()> {
        match self.line().await? {
            line if line.starts_with('+') => Ok(()),
            line => Err(io::Error::other(line)),
        }
    }

    pub async fn command(&mut self, text: &str) -> io::Result<()> {
        limited(async {
            let tag = self.next_tag();
            self.send(format!("{tag} {text}\r\n").as_bytes()).await?;
            self.result(&tag).await
        })
        .await
    }

    pub async fn log_in(&mut self) -> io::Result<()> {
        self.command("LOGIN bench secret").await
    }

    pub async fn idle(&mut self) -> io::Result<()> {
        limited(async {
            let tag = self.next_tag();
            self.send(format!("{tag} IDLE\r\n").as_bytes()).await?;
            self.continuation().await
        })
        .await
    }

    pub async fn done(&mut self) -> io::Result<()> {
        limited(async {
            self.send(b"DONE\r\n").await?;
            let tag = format!("a{}", self.tag);
            self.result(&tag).await
        })
        .await
    }

    /// Downloads a literal of `size` bytes and compares them.
    pub async fn fetch(&mut self, size: u64) -> io::Result<()> {
        let tag = self.next_tag();
        self.send(format!("{tag} FETCH {size} BODY[]\r\n").as_bytes()).await?;
        let head = self.line().await?;
        if !head.ends_with(&format!("{{{size}}}")) {
            return Err(io::Error::other(head));
        }
        let mut input = std::mem::take(&mut self.input);
        let mut at = 0;
        loop {
            let length = input.len().min(usize::try_from(size - at).unwrap_or(usize::MAX));
            if !Pattern::matches(at, &input[..length]) {
                return Err(io::Error::other(format!("other bytes than were sent, after {at}")));
            }
            at += length as u64;
            if at == size {
                input.drain(..length);
                break;
            }
            input.clear();
            input.reserve(BUFFER);
            if self.stream.read_buf(&mut input).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        // A small one, for thousands of sessions wait with it.
        self.input = input.as_slice().to_vec();
        self.result(&tag).await
    }

    /// Asks for a literal and never reads it.
    pub async fn ask(&mut self, size: u64) -> io::Result<()> {
        let tag = self.next_tag();
        self.send(format!("{tag} FETCH {size} BODY[]\r\n").as_bytes()).await
    }

    /// Uploads a literal of `size` bytes; the backend compares them.
    pub async fn append(&mut self, size: u64) -> io::Result<()> {
        let tag = self.next_tag();
        self.send(format!("{tag} APPEND INBOX {{{size}}}\r\n").as_bytes()).await?;
        self.continuation().await?;
        let mut at = 0;
        while at < size {
            let chunk = Pattern::slice(at, usize::try_from(size - at).unwrap_or(usize::MAX));
            self.stream.write_all(chunk).await?;
            at += chunk.len() as u64;
        }
        self.send(b"\r\n").await?;
        self.result(&tag).await
    }

    /// Says goodbye by TLS and TCP and waits for the other side to do the same.
    pub async fn close(mut self) -> io::Result<()> {
        limited(async {
            // It may be gone already, as after a LOGOUT.
            let _ = self.stream.shutdown().await;
            loop {
                self.input.clear();
                // How it ends is a matter of taste among candidates.
                if !matches!(self.stream.read_buf(&mut self.input).await, Ok(1..)) {
                    return Ok(());
                }
            }
        })
        .await
    }
}

async fn limited<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(LIMIT, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
