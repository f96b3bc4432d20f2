//! Logs one client in at a backend; drives [`crate::proto::imap::login`].
//!
//! In: a whole LOGIN or AUTHENTICATE. Out: the connection to the backend, behind its OK, or nothing: the client was told
//! why and may try again. What the client has to say before a server can answer it says first. Servers are dialled in order until one greets; from the first byte of the login on it is that
//! one or none (a password never goes to two servers), and each attempt is a connection of its own. One that lets itself be
//! waited for longer than usual is left for another that works. While none greets the client waits, `backend.hold` at most.
//! A reset by the client ends all of it at once, so that who is gone holds no server; the end of its side alone (FIN) does not.
//! Deadlines: `timeouts.backend_login` for the exchange, [`ANSWER`] for each of the client's answers in it, within
//! `timeouts.login` for everything.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::time::{Instant, timeout_at};
use zeroize::{Zeroize as _, Zeroizing};

use super::Context;
use super::close::{Reason, Session, session_id};
use super::dialogue::{Dialogue, RESTARTING};
use super::hold::Hold;
use crate::backend::Choice;
use crate::backend::balance::Tier;
use crate::backend::dial::Link;
use crate::backend::health::Standing;
use crate::backend::identity::Caller;
use crate::backend::server::Seat;
use crate::log::printable;
use crate::metrics::{HoldResult, LoginResult, Phase};
use crate::proto::imap::dialogue::{Login, Method, answer};
use crate::proto::imap::id::Fields;
use crate::proto::imap::introduction;
use crate::proto::imap::login::{self, Exchange, Lost, Outcome, Step};

/// How long a server that has said BYE may take for its result.
const PARTING: Duration = Duration::from_secs(2);

/// How long a client may take for an answer while a server waits for it. Servers have places for few logins (Dovecot for
/// 100), so silence must not hold one; a mail client computes its answer and asks nobody.
const ANSWER: Duration = Duration::from_secs(10);

/// Somebody is logged in: the connection behind the backend's OK, and the place that it takes there.
pub struct LoggedIn {
    pub link: Link,
    pub seat: Seat,
}

/// `listener`: where the client connected to. `None`: refused, and the client knows.
pub async fn log_in(
    dialogue: &mut Dialogue,
    login: &Login,
    listener: SocketAddr,
    session: &mut Session,
    ctx: &Context,
) -> Result<Option<LoggedIn>, Reason> {
    let start = Instant::now();
    let (tag, introduction_tag) = (ctx.tag(), ctx.tag());
    let hops = introduction::hops_after(dialogue.id().proxy_ttl());
    // Of its own, since the dialogue goes on meanwhile.
    let id = dialogue.id().clone();
    let mut exchange = Exchange::new(login, &ctx.backends.repair, ctx.line_limits(), &tag);
    let caller = Caller {
        client: session.client,
        listener,
        session: session.id,
        handshake: session.handshake.as_ref(),
        id: &id,
        hops: hops.unwrap_or_default(),
        tag: &introduction_tag,
    };
    let attempt = match (hops, ruled_out(login, ctx)) {
        (None, _) => refuse_loop(dialogue, login, &caller, ctx).await,
        (Some(_), Some(text)) => refuse(dialogue, login, text, ctx).await,
        (Some(_), None) => attempt(dialogue, &mut exchange, login, &caller, ctx).await,
    };
    let seconds = start.elapsed().as_secs_f64();
    let result = match attempt.as_ref().map(|attempt| attempt.outcome) {
        Ok(Outcome::LoggedIn) => LoginResult::Ok,
        Ok(Outcome::Rejected) => LoginResult::Rejected,
        Ok(Outcome::Unavailable(_) | Outcome::Late | Outcome::Undecided(_)) => {
            LoginResult::Unavailable
        }
        Ok(Outcome::Aborted | Outcome::RuledOut) | Err(_) => LoginResult::Aborted,
    };
    let dialled = attempt.as_ref().ok().and_then(|attempt| attempt.dialled.as_ref());
    let server = dialled.map(|dialled| &dialled.choice.server);
    if let Some(Dialled { choice, start, .. }) = dialled {
        // Neither other servers nor the wait for one are this one's.
        choice.server.metrics.login_duration.observe(start.elapsed().as_secs_f64());
    }
    let user = exchange.user().map(printable);
    ctx.metrics.login(result, exchange.mechanism());
    session.log_login(
        user.as_deref(),
        exchange.authorization().map(printable).as_deref(),
        exchange.mechanism(),
        result,
        server.map(|s| &*s.name),
        seconds,
    );
    match attempt? {
        Attempt {
            outcome: Outcome::LoggedIn,
            dialled: Some(Dialled { choice, seat, link, .. }),
        } => {
            session.backend = Some(Arc::clone(&choice.server.name));
            session.user = user.map(Into::into);
            session.phase(Phase::Active);
            Ok(Some(LoggedIn { link, seat }))
        }
        Attempt { outcome, dialled } => {
            if let Some(Dialled { link, .. }) = dialled {
                link.stream.close();
            }
            dialogue.refused(outcome == Outcome::Aborted, ctx).await?;
            Ok(None)
        }
    }
}

/// A proxy before us says that it is the last one that may be. Nobody is dialled: it would go round and round.
async fn refuse_loop(
    dialogue: &mut Dialogue,
    login: &Login,
    caller: &Caller<'_>,
    ctx: &Context,
) -> Result<Attempt, Reason> {
    let (session, client) = (session_id(caller.session), caller.client);
    if let Some(not_logged) = ctx.on_loop(client.ip()) {
        tracing::warn!(
            session,
            %client,
            not_logged,
            "loop: this login says that it came through {} proxies; if the client is one, it has us or one behind us as its server, see `backend.servers`",
            introduction::TTL - 1
        );
    }
    let mut out = Vec::new();
    login::circle(&login.tag, &mut out);
    dialogue.send(&out, ctx).await?;
    Ok(Attempt { outcome: Outcome::Aborted, dialled: None })
}

/// The answer to a login that the server does not offer, where all clients are offered the same. By
/// EXTERNAL a server would take the client for us, so it is always ruled out unless it is offered.
fn ruled_out(login: &Login, ctx: &Context) -> Option<&'static str> {
    let known = ctx.backends.known();
    let capabilities = known.as_ref().map_or(&b""[..], |known| &known.told.capabilities);
    let tells = known.as_ref().is_some_and(|known| known.of_all_clients)
        || matches!(&login.method, Method::Authenticate { mechanism: m, .. } if m == "EXTERNAL");
    tells.then(|| login::ruled_out(&login.method, capabilities)).flatten()
}

async fn refuse(
    dialogue: &mut Dialogue,
    login: &Login,
    text: &str,
    ctx: &Context,
) -> Result<Attempt, Reason> {
    let mut out = Vec::new();
    answer(&mut out, &login.tag, text);
    dialogue.send(&out, ctx).await?;
    Ok(Attempt { outcome: Outcome::RuledOut, dialled: None })
}

struct Attempt {
    outcome: Outcome,
    dialled: Option<Dialled>,
}

/// A server that has greeted.
struct Dialled {
    choice: Choice,
    seat: Seat,
    link: Link,
    /// When its dial began.
    start: Instant,
}

/// Why there is none.
struct NoServer {
    /// Those that would greet have their `max_sessions`, or no room.
    full: bool,
    /// What the last one said instead of a greeting that the person must see.
    alerts: Vec<u8>,
}

/// Has the client say what needs no server. `Some`: that was the end of it, and the client has its answer.
async fn open(
    dialogue: &mut Dialogue,
    exchange: &mut Exchange<'_>,
    ctx: &Context,
) -> Result<Option<Outcome>, Reason> {
    let mut to_client = Vec::new();
    let mut step = exchange.open(&mut to_client);
    loop {
        // Without a prompt to send, what the client has sent so far was looked at.
        let looked_at = to_client.is_empty();
        dialogue.send(&to_client, ctx).await?;
        to_client.clear();
        match step {
            Step::Backend => return Ok(None),
            Step::Done(outcome) => return Ok(Some(outcome)),
            Step::Close(end) => return Err(dialogue.close(b"", end.into(), ctx).await),
            Step::Client => {
                if looked_at {
                    dialogue.receive(ctx).await?;
                }
                step = exchange.on_client(&mut dialogue.input, &mut Vec::new(), &mut to_client);
            }
        }
    }
}

/// Dials and plays the exchange to its end; the client has its answer when this returns.
async fn attempt(
    dialogue: &mut Dialogue,
    exchange: &mut Exchange<'_>,
    login: &Login,
    caller: &Caller<'_>,
    ctx: &Context,
) -> Result<Attempt, Reason> {
    if let Some(outcome) = open(dialogue, exchange, ctx).await? {
        return Ok(Attempt { outcome, dialled: None });
    }
    let Dialled { choice, seat, mut link, start } = match dial(dialogue, caller, ctx).await? {
        Ok(dialled) => dialled,
        Err(NoServer { full, alerts: mut out }) => {
            let why = if full {
                login::full(&login.tag, &mut out);
                "every server is full"
            } else {
                login::unavailable(&login.tag, &mut out);
                "no server greets"
            };
            dialogue.send(&out, ctx).await?;
            return Ok(Attempt { outcome: Outcome::Unavailable(why), dialled: None });
        }
    };
    let Choice { server, endpoint, .. } = &choice;
    let mut deadline = dialogue.deadline.min(Instant::now() + ctx.timeouts.backend_login);
    // Zeroed when done: they hold the password.
    let (mut to_backend, mut to_client) = (Zeroizing::new(Vec::new()), Vec::new());
    let nothing = Fields::default();
    let id = if link.introduced {
        exchange.on_introduced(caller.id);
        &nothing
    } else {
        caller.id
    };
    let alerts = std::mem::take(&mut link.alerts);
    let mut step = exchange.start(server.dialect(endpoint), id, alerts, &mut to_backend);
    // Whether what either side has sent so far was looked at and more is needed.
    let (mut client_read, mut backend_read) = (false, link.input.is_empty());
    let mut answer_until = deadline;
    let outcome = loop {
        if exchange.is_ending() {
            deadline = deadline.min(Instant::now() + PARTING);
        }
        // One that takes no more may have said why: what is read tells.
        let sending = timeout_at(deadline, link.stream.send(&to_backend));
        let late = dialogue.unless_broken(sending).await?.is_err();
        to_backend.zeroize();
        dialogue.send(&to_client, ctx).await?;
        to_client.clear();
        step = match step {
            Step::Done(outcome) => break outcome,
            Step::Close(end) => return Err(dialogue.close(b"", end.into(), ctx).await),
            Step::Client => {
                if client_read {
                    dialogue.receive_until(answer_until, ctx).await?;
                } else {
                    answer_until = Instant::now() + ANSWER;
                }
                let step = exchange.on_client(&mut dialogue.input, &mut to_backend, &mut to_client);
                client_read = step == Step::Client;
                step
            }
            Step::Backend => {
                let mut lost = late.then_some(Lost::Late);
                if backend_read && !late {
                    let reading = timeout_at(deadline, link.stream.read_buf(&mut link.input));
                    lost = match dialogue.unless_broken(reading).await? {
                        Ok(Ok(1..)) => None,
                        Ok(_) => Some(Lost::Closed),
                        Err(_) => Some(Lost::Late),
                    };
                }
                if let Some(lost) = lost {
                    exchange.on_lost(lost, &mut to_client)
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
    let late =
        format!("no result within {:?} (timeouts.backend_login)", ctx.timeouts.backend_login);
    let undecided = match outcome {
        Outcome::Unavailable(why) => Some((why, !exchange.is_long())),
        Outcome::Late => Some((late.as_str(), !exchange.is_long())),
        Outcome::Undecided(why) => Some((why, false)),
        Outcome::LoggedIn | Outcome::Rejected | Outcome::Aborted | Outcome::RuledOut => None,
    };
    if let Some((why, doubt)) = undecided
        && !dialogue.left().is_zero()
    {
        server.on_undecided(endpoint, why, doubt);
    }
    if matches!(outcome, Outcome::LoggedIn | Outcome::Rejected) {
        endpoint.health().on_decided();
    }
    Ok(Attempt { outcome, dialled: Some(Dialled { choice, seat, link, start }) })
}

/// The first server that greets, waited for if there is none.
async fn dial(
    dialogue: &mut Dialogue,
    caller: &Caller<'_>,
    ctx: &Context,
) -> Result<Result<Dialled, NoServer>, Reason> {
    let mut hold = Hold::new(dialogue.deadline, ctx);
    loop {
        let (news, mut room) = (ctx.backends.news.next(), None);
        if hold.has_begun() {
            room.insert(Box::pin(ctx.backends.news.room())).as_mut().enable();
        }
        let (mut choices, mut full) = hold.backends().choose(caller.client.ip());
        if hold.has_begun() {
            // Whoever waits is told when it works again, and does not find out for itself.
            choices.retain(|choice| choice.tier != Tier::Down);
        }
        let (queue, mut alerts) = (choices.into(), Vec::new());
        let dialling = dial_in_order(queue, &mut full, &mut alerts, dialogue.deadline, caller);
        let dialled = tokio::select! {
            biased;
            () = ctx.drain.token.cancelled() => {
                return Err(dialogue.close(RESTARTING, Reason::Drain, ctx).await);
            }
            dialled = dialogue.unless_broken(dialling) => dialled?,
        };
        if let Some(dialled) = dialled {
            hold.over(HoldResult::Served);
            return Ok(Ok(dialled));
        }
        if full && !hold.has_begun() && hold.begin().is_some() {
            continue; // this time in the queue for room
        }
        let woken = async {
            match room.filter(|_| full) {
                Some(room) => tokio::select! { () = news => {} () = room => {} },
                None => news.await,
            }
        };
        if !dialogue.hold(&mut hold, woken, ctx).await? {
            if full {
                ctx.backends.say_full();
            }
            return Ok(Err(NoServer { full, alerts }));
        }
    }
}

/// `full` is set if one had no room for this session; `alerts` are what the last one said that the person must see.
async fn dial_in_order(
    mut choices: VecDeque<Choice>,
    full: &mut bool,
    alerts: &mut Vec<u8>,
    deadline: Instant,
    caller: &Caller<'_>,
) -> Option<Dialled> {
    while let Some(choice) = choices.pop_front() {
        let Choice { server, endpoint, .. } = &choice;
        let trial = match choice.tier {
            Tier::Down => match endpoint.trial() {
                Some(trial) => trial,
                None => continue, // somebody else is finding out
            },
            _ => None,
        };
        let Some(claim) = endpoint.claim(choice.max_sessions) else {
            *full = true;
            continue;
        };
        let patience = Instant::now() + endpoint.health().patience();
        let others = choices.iter().any(|other| other.tier == Tier::Good);
        let turn = match timeout_at(deadline.min(patience), endpoint.turn()).await {
            Ok(turn) => turn,
            Err(_) if Instant::now() >= deadline => return None,
            Err(_) if others => {
                choices.push_back(Choice { tier: Tier::Doubtful, ..choice.clone() });
                claim.give_back();
                continue;
            }
            Err(_) => timeout_at(deadline, endpoint.turn()).await.ok()?,
        };
        if choice.tier != Tier::Down && endpoint.health().standing() == Standing::Down {
            claim.give_back();
            continue; // somebody else has found out
        }
        let start = Instant::now();
        let patience = start + endpoint.health().patience();
        let mut dialling = pin!(server.dial(endpoint, Some(caller)));
        let mut result = timeout_at(deadline.min(patience), dialling.as_mut()).await;
        if result.is_err() && patience < deadline {
            server.on_doubt(endpoint);
            if others {
                choices.push_back(Choice { tier: Tier::Doubtful, ..choice.clone() });
                claim.give_back();
                continue;
            }
            result = timeout_at(deadline, dialling.as_mut()).await;
        }
        match result {
            Ok(Ok(link)) => {
                drop((turn, trial));
                return Some(Dialled {
                    choice: choice.clone(),
                    seat: claim.greeted(),
                    link,
                    start,
                });
            }
            Ok(Err(error)) => {
                *alerts = error.alert().unwrap_or_default();
                *full |= server.on_bad_dial(endpoint, &error, start.into_std());
                claim.give_back();
            }
            // The client is told that, and then that its time is over.
            Err(_) => return None,
        }
    }
    None
}
