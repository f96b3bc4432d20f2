//! Two relays to compare with: `plain`, bytes from socket to socket without TLS, as the floor that no terminator
//! can be below; and `naive`, tokio-rustls with `copy_bidirectional`, as one would write a terminator in Rust on
//! the first afternoon.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use socket2::{Domain, Socket, Type};

use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

const CHUNK: usize = 64 * 1024;

/// A listener on a loopback port, with a backlog for thousands of connections at once.
pub fn listen(port: u16) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], port)).into())?;
    socket.listen(4096)?;
    TcpListener::from_std(socket.into())
}

/// The process that started us holds the other end of our standard input.
pub async fn until_parent_ends() {
    let (ended, wait) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        let _ = ended.send(());
    });
    let _ = wait.await;
}

pub fn run_plain(port: u16, backend: u16) -> io::Result<()> {
    run(port, move |client| async move {
        let backend = dial(backend).await?;
        let mut lanes = [Lane::default(), Lane::default()];
        poll_fn(|cx| {
            let (a, b) = (&client, &backend);
            let there = lanes[0].poll(a, b, cx)?;
            let back = lanes[1].poll(b, a, cx)?;
            if there.is_ready() && back.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
        })
        .await
    })
}

pub fn run_naive(port: u16, backend: u16, cert: &Path, key: &Path) -> io::Result<()> {
    let chain: Vec<_> = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect)
        .map_err(io::Error::other)?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(io::Error::other)?;
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(io::Error::other)?;
    config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().map_err(io::Error::other)?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    run(port, move |client| {
        let acceptor = acceptor.clone();
        async move {
            let mut client = acceptor.accept(client).await?;
            let mut backend = dial(backend).await?;
            tokio::io::copy_bidirectional(&mut client, &mut backend).await?;
            Ok(())
        }
    })
}

fn run<F>(port: u16, serve: impl Fn(TcpStream) -> F + Send + 'static) -> io::Result<()>
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = listen(port)?;
        tokio::spawn(async move {
            loop {
                if let Ok((client, _)) = listener.accept().await {
                    let _ = client.set_nodelay(true);
                    tokio::spawn(serve(client));
                }
            }
        });
        until_parent_ends().await;
        Ok(())
    })
}

async fn dial(port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

thread_local! {
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// One direction of the plain relay: a buffer of the thread's, and of its own only what the other side did not take.
#[derive(Default)]
struct Lane {
    rest: Vec<u8>,
    sent: usize,
    ended: bool,
    shut: bool,
}

impl Lane {
    fn poll(
        &mut self,
        from: &TcpStream,
        to: &TcpStream,
        cx: &mut Context<'_>,
    ) -> io::Result<Poll<()>> {
        let mut buffer = BUFFER.take();
        buffer.resize(CHUNK, 0);
        let result = self.pump(from, to, &mut buffer, cx);
        BUFFER.set(buffer);
        match result {
            Poll::Ready(Ok(())) => Ok(Poll::Ready(())),
            Poll::Ready(Err(error)) => Err(error),
            Poll::Pending => Ok(Poll::Pending),
        }
    }

    fn pump(
        &mut self,
        from: &TcpStream,
        to: &TcpStream,
        buffer: &mut [u8],
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            while self.sent < self.rest.len() {
                ready!(to.poll_write_ready(cx))?;
                match to.try_write(&self.rest[self.sent..]) {
                    Ok(n) => self.sent += n,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Poll::Ready(Err(error)),
                }
            }
            (self.rest, self.sent) = (Vec::new(), 0);
            if self.ended {
                if !self.shut {
                    self.shut = true;
                    let _ = socket2::SockRef::from(to).shutdown(std::net::Shutdown::Write);
                }
                return Poll::Ready(Ok(()));
            }
            ready!(from.poll_read_ready(cx))?;
            match from.try_read(buffer) {
                Ok(0) => self.ended = true,
                Ok(n) => {
                    let taken = match to.try_write(&buffer[..n]) {
                        Ok(taken) => taken,
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                        Err(error) => return Poll::Ready(Err(error)),
                    };
                    self.rest.extend_from_slice(&buffer[taken..n]);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}
