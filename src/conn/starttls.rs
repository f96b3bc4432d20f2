//! A client in plaintext until it says STARTTLS; drives [`crate::proto::imap::dialogue`].
//!
//! In: a socket. Out: the same socket, on which nothing was read beyond STARTTLS and nothing but TLS follows, and
//! the deadline of the login: it began with the greeting, and TLS does not extend it.
//! **Invariants:** the backend is not dialled here and hears nothing of what was said here; no word
//! of it is logged; what was said is dropped with the dialogue before TLS begins.
//! Not here: what comes after the answer to STARTTLS ([`super::tls`], where plaintext is refused as well).

use std::io;
use std::sync::Arc;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::Context;
use super::client::{LAST_WORDS, linger};
use super::close::{Reason, Session};
use super::dialogue::{RESTARTING, TOO_SLOW, UNAVAILABLE};
use super::failure::{Failed, Failure};
use super::hold::Hold;
use super::refused;
use super::socket::broken;
use crate::backend::Known;
use crate::metrics::{HoldResult, Phase};
use crate::proto::imap::dialogue::{Dialogue, End, Next};
use crate::proto::imap::secret::Input;
use crate::proto::proxy_header;

/// Bytes that one read takes; a command has fewer.
const CHUNK: usize = 2048;

/// Greets, and answers commands until one is STARTTLS.
pub async fn wait(
    mut socket: TcpStream,
    session: &mut Session,
    ctx: &Context,
) -> Result<(TcpStream, Instant), Reason> {
    session.phase(Phase::Login);
    let deadline = Instant::now() + ctx.timeouts.login;
    let known = known(&mut socket, deadline, ctx).await?;
    send(&mut socket, &known.told_before_tls.greeting, deadline, ctx).await?;
    let (mut dialogue, mut input) = (Dialogue::before_tls(ctx.line_limits()), Input::default());
    let mut first = true;
    loop {
        receive(&mut socket, &mut input, deadline, ctx).await?;
        if std::mem::take(&mut first) && proxy_header::announces(input.bytes()) == Some(true) {
            let reason = Failed::from(Failure::ProxyHeaderUnexpected).report(session, ctx);
            return Err(close(&mut socket, b"", reason).await);
        }
        let mut out = Vec::new();
        let next = {
            let now = ctx.backends.known();
            let words = &now.as_ref().unwrap_or(&known).told_before_tls.capabilities;
            dialogue.advance(&mut input, words, &mut out)
        };
        refused::report(&dialogue.take_refused(), session, ctx);
        match next {
            Next::More => send(&mut socket, &out, deadline, ctx).await?,
            Next::StartTls => {
                send(&mut socket, &out, deadline, ctx).await?;
                session.phase(Phase::Handshake);
                return Ok((socket, deadline));
            }
            Next::Close(end) => {
                if end == End::PlaintextAfterStarttls {
                    Failed::from(Failure::PlaintextAfterStarttls).report(session, ctx);
                }
                return Err(close(&mut socket, &out, end.into()).await);
            }
            Next::LogIn(_) => {
                debug_assert!(false, "nobody logs in before TLS");
                return Err(Reason::Internal);
            }
        }
    }
}

/// What to greet with, as soon as there is something. A client that speaks first is only listened to afterwards.
async fn known(
    socket: &mut TcpStream,
    deadline: Instant,
    ctx: &Context,
) -> Result<Arc<Known>, Reason> {
    let mut hold = Hold::new(deadline, ctx);
    loop {
        let news = ctx.backends.news.next();
        if let Some(known) = hold.backends().known() {
            hold.over(HoldResult::Served);
            return Ok(known);
        }
        let over = match hold.begin() {
            None => true,
            Some(until) => tokio::select! {
                biased;
                () = ctx.drain.token.cancelled() => {
                    return Err(close(socket, RESTARTING, Reason::Drain).await);
                }
                reason = left(socket) => return Err(reason),
                () = news => false,
                () = sleep_until(until) => true,
            },
        };
        if over {
            hold.over(HoldResult::Unavailable);
            return Err(close(socket, UNAVAILABLE, Reason::BackendUnavailable).await);
        }
    }
}

/// Returns when the client closes without having said anything, or its connection breaks.
async fn left(socket: &TcpStream) -> Reason {
    match socket.peek(&mut [0]).await {
        Ok(0) => return Reason::ClientClosed,
        Ok(_) => broken(socket).await,
        Err(_) => {}
    }
    Reason::ClientVanished
}

async fn receive(
    socket: &mut TcpStream,
    input: &mut Input,
    deadline: Instant,
    ctx: &Context,
) -> Result<(), Reason> {
    let read = tokio::select! {
        biased;
        read = timeout_at(deadline, read(socket, input)) => read,
        () = ctx.drain.token.cancelled() => {
            return Err(close(socket, RESTARTING, Reason::Drain).await);
        }
    };
    match read {
        Ok(Ok(1..)) => Ok(()),
        Ok(Ok(0)) => Err(Reason::ClientClosed),
        Ok(Err(_)) => Err(Reason::ClientVanished),
        Err(_) => Err(close(socket, TOO_SLOW, Reason::LoginTimeout).await),
    }
}

/// Holds no buffer while the client is silent.
async fn read(socket: &TcpStream, input: &mut Input) -> io::Result<usize> {
    loop {
        socket.readable().await?;
        match socket.try_read_buf(input.room(CHUNK)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            read => return read,
        }
    }
}

async fn send(
    socket: &mut TcpStream,
    bytes: &[u8],
    deadline: Instant,
    ctx: &Context,
) -> Result<(), Reason> {
    let write = Instant::now() + ctx.timeouts.write;
    match timeout_at(write.min(deadline), socket.write_all(bytes)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Reason::ClientVanished),
        Err(_) if write < deadline => Err(Reason::WriteTimeout),
        Err(_) => Err(Reason::LoginTimeout),
    }
}

/// Last words, to whoever takes them.
async fn close(socket: &mut TcpStream, last: &[u8], reason: Reason) -> Reason {
    let _ = timeout(LAST_WORDS, socket.write_all(last)).await;
    linger(socket).await;
    reason
}
