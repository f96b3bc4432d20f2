//! The handshake: from a socket to a [`Client`].
//!
//! The first bytes are looked at before anybody answers (`proto::client_hello`): what is no TLS is told so, what can't
//! come to anything is refused here, the rest goes to rustls as it came.
//! Limits: `timeouts.handshake` for all of it, `MAX_HELLO` bytes before the ClientHello is whole.
//! Not here: which certificate and versions are offered (`crate::tls`), why a handshake fails
//! ([`super::failure`]), and bytes after the handshake ([`super::client`]).

use std::sync::Arc;

use rustls::server::UnbufferedServerConnection;
use rustls::{HandshakeKind, ProtocolVersion, ServerConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use zeroize::Zeroize as _;

use super::Context;
use super::client::{Client, Out, Processed, linger, process};
use super::close::{Reason, Session};
use super::failure::{Failed, Failure, Offer, PLAINTEXT_BYE};
use super::socket::Unsent;
use crate::metrics::Phase;
use crate::proto::client_hello::{Foreign, Look, Reader, Version};

/// What was negotiated.
pub struct Handshake {
    pub version: &'static str,
    pub cipher: &'static str,
    pub group: &'static str,
    pub resumed: bool,
    pub sni: Option<Box<str>>,
}

/// Every (version, cipher, group) that `config` can negotiate, as [`Handshake`] names them.
pub fn combinations(config: &ServerConfig) -> Vec<(&'static str, &'static str, &'static str)> {
    let provider = config.crypto_provider();
    let mut all = Vec::new();
    for suite in &provider.cipher_suites {
        let Some(cipher) = suite.suite().as_str() else { continue };
        let groups = provider.kx_groups.iter().filter_map(|group| {
            let usable = suite.tls13().is_some()
                || group.usable_for_version(rustls::ProtocolVersion::TLSv1_2);
            usable.then(|| group.name().as_str()).flatten()
        });
        match suite.tls13() {
            Some(_) => all.extend(groups.map(|group| ("TLSv1.3", cipher, group))),
            // A resumed TLS 1.2 session makes no new key exchange (RFC 5246 §7.3).
            None => all.extend(groups.chain(["none"]).map(|group| ("TLSv1.2", cipher, group))),
        }
    }
    all
}

/// Does the handshake within `timeouts.handshake`; what was negotiated goes to `session`. `greeted`: the client came by
/// STARTTLS, and its login must be done by then. Out: the client, and what it said in the same breath. What the server
/// says last is sent together with the first [`Client::send`].
pub async fn accept(
    socket: TcpStream,
    greeted: Option<Instant>,
    session: &mut Session,
    ctx: &Context,
) -> Result<(Client, Vec<u8>), Reason> {
    let start = Instant::now();
    let limit = start + ctx.timeouts.handshake;
    let deadline = greeted.map_or(limit, |login| limit.min(login));
    let mut shaking =
        Shaking { socket, starttls: greeted.is_some(), silent: true, hello: None, offer: None };
    let shaken = timeout_at(deadline, shaking.handshake(ctx.tls.load_full())).await;
    if let Some(version) = shaking.hello {
        ctx.metrics.client_hello(version);
    }
    let failed = match shaken {
        Ok(Ok(shaken)) => {
            let Shaken { tls, partial, unsent, ended, said } = shaken;
            let handshake = Handshake::of(&tls, shaking.offer.and_then(|offer| offer.sni));
            ctx.metrics.handshake(&handshake, start.elapsed());
            session.handshake = Some(handshake);
            session.phase(Phase::Login);
            return Ok((Client::new(shaking.socket, tls, partial, unsent, ended), said));
        }
        Ok(Err(failed)) => {
            linger(&mut shaking.socket).await;
            failed
        }
        Err(_) => {
            if shaking.silent && !shaking.starttls {
                // A mail client set to "no encryption" waits for us to speak first: tell the person.
                let _ = shaking.socket.try_write(PLAINTEXT_BYE);
            }
            Failure::Timeout.into()
        }
    };
    Err(Failed { offer: shaking.offer, ..failed }.report(session, ctx))
}

/// A handshake under way, and what is known of the client so far.
struct Shaking {
    socket: TcpStream,
    starttls: bool,
    /// Not a byte came.
    silent: bool,
    hello: Option<Version>,
    offer: Option<Offer>,
}

/// What rustls leaves behind.
struct Shaken {
    tls: UnbufferedServerConnection,
    partial: Vec<u8>,
    unsent: Unsent,
    ended: bool,
    said: Vec<u8>,
}

impl Shaking {
    async fn handshake(&mut self, config: Arc<ServerConfig>) -> Result<Shaken, Failed> {
        let mut input = Vec::with_capacity(2048);
        self.look(&mut input).await?;
        // There is a certificate for everybody: the first, if no other fits.
        let serves = |_name: Option<&str>| true;
        if let Some(failure) = self.offer.as_ref().and_then(|offer| offer.refused(serves)) {
            return Err(self.refuse(failure).await);
        }
        let mut tls = UnbufferedServerConnection::new(config).map_err(|_| Failure::Internal)?;
        let (mut said, mut out) = (Vec::new(), Out::borrow());
        let ended = loop {
            match process(&mut tls, &mut input, &mut said, &mut out) {
                Ok(processed) if !tls.is_handshaking() => break processed == Processed::Closed,
                Ok(_) => {}
                Err(error) => {
                    let alert = out.take();
                    let _ = self.socket.write_all(&alert).await;
                    let failure = Failure::of(&error, self.offer.as_ref());
                    return Err(Failed { detail: Some(error.to_string()), ..failure.into() });
                }
            }
            let flight = out.take();
            self.socket.write_all(&flight).await.map_err(|_| Failure::Closed)?;
            self.read(&mut input).await?;
            out = Out::borrow();
        };
        let mut unsent = Unsent::default();
        unsent.keep(out.bytes());
        // What was decrypted in here may be a login that came together with the handshake's end.
        let partial = input.clone();
        input.zeroize();
        Ok(Shaken { tls, partial, unsent, ended, said })
    }

    /// Reads until the ClientHello is whole, or as much of it as can be read, and answers what is no TLS.
    async fn look(&mut self, input: &mut Vec<u8>) -> Result<(), Failed> {
        let mut reader = Reader::default();
        loop {
            self.read(input).await?;
            self.silent = false;
            match reader.look(input) {
                Look::More => {}
                Look::Hello(hello) => {
                    self.hello = Some(hello.version);
                    self.offer = Some(Offer::from(&hello));
                    return Ok(());
                }
                Look::Foreign(foreign) => {
                    if let Foreign::Ssl2(version) = foreign {
                        self.hello = Some(version);
                    }
                    let failure = Failure::from(foreign);
                    let plaintext = self.starttls && failure != Failure::NotTlsSsl2;
                    let failure = if plaintext { Failure::PlaintextAfterStarttls } else { failure };
                    return Err(self.refuse(failure).await);
                }
                Look::Unreadable => return Ok(()), // rustls says what is wrong, with its alert
            }
        }
    }

    async fn read(&mut self, input: &mut Vec<u8>) -> Result<(), Failure> {
        match self.socket.read_buf(input).await {
            Ok(1..) => Ok(()),
            Ok(0) | Err(_) => Err(Failure::Closed),
        }
    }

    async fn refuse(&mut self, failure: Failure) -> Failed {
        let _ = self.socket.write_all(failure.answer()).await;
        failure.into()
    }
}

impl Handshake {
    fn of(tls: &UnbufferedServerConnection, sni: Option<Box<str>>) -> Self {
        let version = match tls.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
            _ => "TLSv1.2",
        };
        let cipher = tls
            .negotiated_cipher_suite()
            .and_then(|suite| suite.suite().as_str())
            .unwrap_or("none");
        let group = tls
            .negotiated_key_exchange_group()
            .and_then(|group| group.name().as_str())
            .unwrap_or("none");
        let resumed = tls.handshake_kind() == Some(HandshakeKind::Resumed);
        Self { version, cipher, group, resumed, sni }
    }
}
