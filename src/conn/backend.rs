//! Logs one client in at a backend; drives [`crate::proto::imap::login`].
//!
//! In: a whole login. Out: the connection to the backend, behind its OK, or nothing: the client was told why and
//! may try again. Servers are dialled in order until one greets; from the first byte of the login on it is that
//! one or none (a password never goes to two servers), and each attempt is a connection of its own.
//! Deadlines: `timeouts.backend_login` for the exchange, within `timeouts.login` for everything.

use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, timeout_at};
use zeroize::{Zeroize as _, Zeroizing};

use super::Context;
use super::close::{Reason, Session};
use super::dialogue::Dialogue;
use crate::backend::Server;
use crate::backend::dial::Link;
use crate::backend::identity::Caller;
use crate::log::printable;
use crate::metrics::{BackendMetrics, LoginResult, Phase};
use crate::proto::imap::dialogue::Login;
use crate::proto::imap::login::{self, Exchange, Outcome, Step};

/// Somebody is logged in: the connection behind the backend's OK, and the server's series.
pub struct LoggedIn {
    pub link: Link,
    pub metrics: Arc<BackendMetrics>,
}

/// `None`: refused, and the client knows.
pub async fn log_in(
    dialogue: &mut Dialogue,
    login: &Login,
    session: &mut Session,
    ctx: &Context,
) -> Result<Option<LoggedIn>, Reason> {
    let start = Instant::now();
    let tag = ctx.tag();
    let mut exchange = Exchange::new(login, &ctx.backends.repair, ctx.line_limits(), &tag);
    let caller = Caller {
        client: session.client,
        listener: dialogue.listener(),
        session: session.id,
        handshake: session.handshake.as_ref(),
    };
    let attempt = attempt(dialogue, &mut exchange, login, &caller, ctx).await;
    let seconds = start.elapsed().as_secs_f64();
    let result = match attempt.as_ref().map(|attempt| attempt.outcome) {
        Ok(Outcome::LoggedIn) => LoginResult::Ok,
        Ok(Outcome::Rejected) => LoginResult::Rejected,
        Ok(Outcome::Unavailable(_)) => LoginResult::Unavailable,
        Ok(Outcome::Aborted) | Err(_) => LoginResult::Aborted,
    };
    let server = attempt
        .as_ref()
        .ok()
        .and_then(|attempt| attempt.dialled.as_ref())
        .map(|(server, _)| *server);
    if let Some(server) = server {
        server.metrics.login_duration.observe(seconds);
    }
    let user = exchange.user().map(printable);
    ctx.metrics.login(result, exchange.mechanism());
    session.log_login(
        user.as_deref(),
        exchange.mechanism(),
        result,
        server.map(|s| &*s.name),
        seconds,
    );
    match attempt? {
        Attempt { outcome: Outcome::LoggedIn, dialled: Some((server, link)) } => {
            session.backend = Some(Arc::clone(&server.name));
            session.user = user.map(Into::into);
            session.phase(Phase::Active);
            Ok(Some(LoggedIn { link, metrics: Arc::clone(&server.metrics) }))
        }
        Attempt { outcome, .. } => {
            dialogue.refused(outcome == Outcome::Aborted, ctx).await?;
            Ok(None)
        }
    }
}

struct Attempt<'a> {
    outcome: Outcome,
    dialled: Option<(&'a Server, Link)>,
}

/// Dials and plays the exchange to its end; the client has its answer when this returns.
async fn attempt<'a>(
    dialogue: &mut Dialogue,
    exchange: &mut Exchange<'_>,
    login: &Login,
    caller: &Caller<'_>,
    ctx: &'a Context,
) -> Result<Attempt<'a>, Reason> {
    let Some((server, mut link)) = dial(dialogue, caller, ctx).await? else {
        let mut out = Vec::new();
        login::unavailable(&login.tag, &mut out);
        dialogue.send(&out, ctx).await?;
        return Ok(Attempt { outcome: Outcome::Unavailable("no server greets"), dialled: None });
    };
    let deadline = dialogue.deadline.min(Instant::now() + ctx.timeouts.backend_login);
    // Zeroed when done: they hold the password.
    let (mut to_backend, mut to_client) = (Zeroizing::new(Vec::new()), Vec::new());
    let mut step = exchange.start(server.dialect(), dialogue.id(), &mut to_backend);
    // Whether what either side has sent so far was looked at and more is needed.
    let (mut client_read, mut backend_read) = (false, link.input.is_empty());
    let outcome = loop {
        let sent = timeout_at(deadline, link.stream.write_all(&to_backend)).await;
        let mut lost = !matches!(sent, Ok(Ok(())));
        to_backend.zeroize();
        dialogue.send(&to_client, ctx).await?;
        to_client.clear();
        step = match step {
            Step::Done(outcome) => break outcome,
            Step::Close(end) => return Err(dialogue.close(b"", end.into(), ctx).await),
            Step::Client => {
                if client_read {
                    dialogue.receive(ctx).await?;
                }
                let step = exchange.on_client(&mut dialogue.input, &mut to_backend, &mut to_client);
                client_read = step == Step::Client;
                step
            }
            Step::Backend => {
                if backend_read && !lost {
                    let read = timeout_at(deadline, link.stream.read_buf(&mut link.input)).await;
                    lost = !matches!(read, Ok(Ok(1..)));
                }
                if lost {
                    login::unavailable(&login.tag, &mut to_client);
                    Step::Done(Outcome::Unavailable("it broke off before its result"))
                } else {
                    let step =
                        exchange.on_backend(&mut link.input, &mut to_backend, &mut to_client);
                    backend_read =
                        link.input.is_empty() || (step == Step::Backend && to_backend.is_empty());
                    step
                }
            }
        };
    };
    if let Outcome::Unavailable(why) = outcome {
        tracing::warn!(backend = &*server.name, why, "backend did not decide on a login");
    }
    Ok(Attempt { outcome, dialled: Some((server, link)) })
}

/// The first server that greets; `None` if none does.
async fn dial<'a>(
    dialogue: &mut Dialogue,
    caller: &Caller<'_>,
    ctx: &'a Context,
) -> Result<Option<(&'a Server, Link)>, Reason> {
    for server in ctx.backends.in_order() {
        match timeout_at(dialogue.deadline, server.dial(Some(caller))).await {
            Ok(Ok(link)) => return Ok(Some((server, link))),
            Ok(Err(error)) => {
                let error = error.to_string();
                tracing::warn!(backend = &*server.name, error, "backend is down");
            }
            // The client is told that, and then that its time is over.
            Err(_) => {
                let error = "too slow for timeouts.login";
                tracing::warn!(backend = &*server.name, error, "backend is down");
                return Ok(None);
            }
        }
    }
    Ok(None)
}
