//! Greets and answers until a whole login is in hand; drives [`crate::proto::imap::dialogue`].
//!
//! One deadline, `timeouts.login`, from the greeting to the login's result; nothing that the client says
//! extends it, STARTTLS neither. Until then the backend hears nothing of the client.
//! Not here: what a client says before STARTTLS ([`super::starttls`]).

use std::io;
use std::pin::pin;

use tokio::time::{Instant, timeout_at};

use super::Context;
use super::backend::LoggedIn;
use super::client::{self, Client, LAST_WORDS, Received};
use super::close::{Reason, Session};
use super::hold::Hold;
use super::refused;
use super::relay::Pair;
use crate::metrics::HoldResult;
use crate::proto::imap::dialogue::{self as proto, End, Login, Next};
use crate::proto::imap::id;
use crate::proto::imap::secret::Input;

/// Last words before login.
pub const UNAVAILABLE: &[u8] =
    b"* BYE [UNAVAILABLE] The mail server can't be reached, try again later.\r\n";
pub const RESTARTING: &[u8] = b"* BYE [UNAVAILABLE] The server is restarting.\r\n";
pub const TOO_SLOW: &[u8] = b"* BYE Login took too long.\r\n";

/// A client that is not logged in.
pub struct Dialogue {
    client: Client,
    proto: proto::Dialogue,
    /// What the client sent and nobody has read.
    pub input: Input,
    pub deadline: Instant,
}

/// Greets as the backend does.
pub async fn greet(client: Client, ctx: &Context) -> Result<Dialogue, Reason> {
    let mut dialogue = resume(client, Instant::now() + ctx.timeouts.login, ctx).await?;
    let mut hold = Hold::new(dialogue.deadline, ctx);
    let known = loop {
        let news = ctx.backends.news.next();
        match hold.backends().known() {
            Some(known) => break known,
            None if dialogue.hold(&mut hold, news, ctx).await? => {}
            None => return Err(dialogue.close(UNAVAILABLE, Reason::BackendUnavailable, ctx).await),
        }
    };
    hold.over(HoldResult::Served);
    dialogue.send(&known.told.greeting, ctx).await?;
    Ok(dialogue)
}

/// Goes on with a client that was greeted before TLS (RFC 9051 §6.2.1: there is no second greeting) and whose login
/// must be done by `deadline`.
pub async fn resume(client: Client, deadline: Instant, ctx: &Context) -> Result<Dialogue, Reason> {
    let proto = proto::Dialogue::new(ctx.line_limits());
    let mut dialogue = Dialogue { client, proto, input: Input::default(), deadline };
    match dialogue.client.receive_first(dialogue.input.buffer()) {
        Ok(_) => Ok(dialogue),
        Err(error) => Err(dialogue.broken(error, ctx).await),
    }
}

impl Dialogue {
    /// Answers commands until one is a login.
    pub async fn next_login(&mut self, session: &Session, ctx: &Context) -> Result<Login, Reason> {
        loop {
            let mut out = Vec::new();
            let next = {
                let known = ctx.backends.known();
                let capabilities =
                    known.as_ref().map_or(&b"IMAP4rev1"[..], |known| &known.told.capabilities);
                self.proto.advance(&mut self.input, capabilities, &mut out)
            };
            refused::report(&self.proto.take_refused(), session, ctx);
            match next {
                Next::LogIn(login) => {
                    self.send(&out, ctx).await?;
                    return Ok(login);
                }
                Next::Close(end) => return Err(self.close(&out, end.into(), ctx).await),
                // Never inside TLS, where STARTTLS is refused: nothing was said, so there is more to read.
                Next::More | Next::StartTls => {
                    self.send(&out, ctx).await?;
                    self.receive(ctx).await?;
                }
            }
        }
    }

    /// What the client told of itself.
    pub fn id(&self) -> &id::Fields {
        self.proto.id()
    }

    /// Counts a login that did not succeed; one aborted too many ends the session.
    pub async fn refused(&mut self, aborted: bool, ctx: &Context) -> Result<(), Reason> {
        let mut out = Vec::new();
        match self.proto.on_outcome(aborted, &mut out) {
            Some(end) => Err(self.close(&out, end.into(), ctx).await),
            None => Ok(()),
        }
    }

    /// More of the client's bytes into [`Self::input`].
    pub async fn receive(&mut self, ctx: &Context) -> Result<(), Reason> {
        self.receive_until(self.deadline, ctx).await
    }

    /// The same from a client for which something waits that is not to wait as long as the login may take.
    pub async fn receive_until(&mut self, limit: Instant, ctx: &Context) -> Result<(), Reason> {
        let received = {
            let Self { client, input, deadline, .. } = self;
            let limit = limit.min(*deadline);
            tokio::select! {
                biased;
                received = timeout_at(limit, client.receive(input.buffer())) => received,
                () = ctx.drain.token.cancelled() => {
                    return Err(self.close(RESTARTING, Reason::Drain, ctx).await);
                }
            }
        };
        match received {
            Ok(Ok(Received::Bytes)) => Ok(()),
            Ok(Ok(Received::End)) => Err(self.close(b"", Reason::ClientClosed, ctx).await),
            Ok(Err(error)) => Err(self.broken(error, ctx).await),
            Err(_) => Err(self.too_slow(ctx).await),
        }
    }

    /// Waits for `news` of the servers; false when there is no more time to.
    pub async fn hold(
        &mut self,
        hold: &mut Hold<'_>,
        news: impl Future<Output = ()>,
        ctx: &Context,
    ) -> Result<bool, Reason> {
        let Some(until) = hold.begin() else { return Ok(false) };
        let told = self.meanwhile(timeout_at(until, news), ctx).await?.is_ok();
        if !told {
            hold.over(HoldResult::Unavailable);
        }
        Ok(told)
    }

    /// Lets `work` go on while the client stays and nobody drains. What the client sends meanwhile is kept, and nothing is
    /// read behind it: of a client that has sent something only the reset counts.
    async fn meanwhile<T>(
        &mut self,
        work: impl Future<Output = T>,
        ctx: &Context,
    ) -> Result<T, Reason> {
        let mut work = pin!(work);
        loop {
            let Self { client, input, .. } = self;
            let listening = async {
                if input.bytes().is_empty() {
                    return client.receive(input.buffer()).await;
                }
                client.broken().await;
                Err(io::Error::from(io::ErrorKind::ConnectionReset).into())
            };
            let received = tokio::select! {
                biased;
                () = ctx.drain.token.cancelled() => {
                    return Err(self.close(RESTARTING, Reason::Drain, ctx).await);
                }
                done = &mut work => return Ok(done),
                received = listening => received,
            };
            match received {
                Ok(Received::Bytes) => {}
                Ok(Received::End) => return Err(self.close(b"", Reason::ClientClosed, ctx).await),
                Err(error) => return Err(self.broken(error, ctx).await),
            }
        }
    }

    /// Lets `work` for this client go on unless the connection breaks. A client that has ended its side behind its login may
    /// still want the answer.
    pub async fn unless_broken<T>(&self, work: impl Future<Output = T>) -> Result<T, Reason> {
        tokio::select! {
            biased;
            done = work => Ok(done),
            () = self.client.broken() => Err(Reason::ClientVanished),
        }
    }

    pub async fn send(&mut self, bytes: &[u8], ctx: &Context) -> Result<(), Reason> {
        if bytes.is_empty() && self.client.waiting() == 0 {
            return Ok(());
        }
        let limit = ctx.timeouts.write.min(self.left());
        self.client.send(bytes, limit).await.map_err(|error| match error {
            client::Error::WriteTimeout if self.left().is_zero() => Reason::LoginTimeout,
            error => error.into(),
        })
    }

    /// Time until the login must be done.
    pub fn left(&self) -> std::time::Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// The client's side can't go on; one that breaks TLS is sent its alert.
    async fn broken(&mut self, error: client::Error, ctx: &Context) -> Reason {
        if let client::Error::Tls(_) = error {
            self.client.truncate(ctx.timeouts.write.min(LAST_WORDS)).await;
        }
        error.into()
    }

    pub async fn too_slow(&mut self, ctx: &Context) -> Reason {
        self.close(TOO_SLOW, Reason::LoginTimeout, ctx).await
    }

    /// Last words, close_notify; `reason` comes back for the log.
    pub async fn close(&mut self, last: &[u8], reason: Reason, ctx: &Context) -> Reason {
        let limit = ctx.timeouts.write.min(LAST_WORDS);
        if last.is_empty() || self.client.queue(last).is_ok() {
            self.client.close(limit).await;
        }
        reason
    }

    /// Hands over to the relay what both sides have already sent.
    pub fn into_pair(mut self, logged_in: LoggedIn) -> Pair {
        let LoggedIn { link, seat } = logged_in;
        self.client.logged_in();
        Pair {
            client: self.client,
            backend: link.stream,
            from_client: self.input,
            from_backend: link.input,
            seat,
        }
    }
}

impl From<End> for Reason {
    fn from(end: End) -> Self {
        match end {
            End::Logout => Self::Logout,
            End::TooManyBadCommands => Self::TooManyBadCommands,
            End::TooManyCommands => Self::TooManyCommands,
            End::TooLong => Self::TooLong,
            End::ProtocolViolation => Self::ProtocolViolation,
            End::PlaintextAfterStarttls => Self::PlaintextAfterStarttls,
        }
    }
}
