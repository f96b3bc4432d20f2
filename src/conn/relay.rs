//! After login: bytes both ways until one side ends; [`crate::proto::imap::follow`] looks on.
//!
//! One task, one loop that the two sockets wake. A chunk is read into the thread's buffer, edited in place where
//! `follow` has to (hardly ever), and written at once; only what the other socket did not take is kept, and
//! until that is gone nothing more is read from this side. So a session holds at most two chunks, and a silent
//! one holds none.
//!
//! Ends: a client that closes its side leaves the backend `timeouts.half_closed` to finish; a backend that closes
//! where a response ends is an orderly end, with close_notify; in mid-response it is passed on as the truncation
//! that it is, without. `timeouts.idle` is silence both ways, `timeouts.write` a peer that takes no bytes.
//! While draining, a session is told BYE as soon as no response would be torn, at a moment of its own within the first half of
//! `timeouts.drain`; towards its end it is closed as it is, and its last words end with it.

use std::cell::Cell;
use std::future::{Future as _, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context as Cx, Poll, ready};
use std::time::Duration;

use tokio::io::AsyncWrite as _;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::io::poll_read_buf;

use super::Context;
use super::client::{self, CHUNK, Client, LAST_WORDS, Received};
use super::close::{Reason, Session};
use super::socket::Unsent;
use crate::backend::server::Seat;
use crate::backend::stream::Stream;
use crate::metrics::Phase;
use crate::proto::imap::follow::{self, Direction, Follow};
use crate::proto::imap::secret::Input;

/// Bytes that may wait for a client that goes on sending commands.
const MAX_ANSWERS: usize = 2 * CHUNK;

/// Both ends of one logged-in session, and what each has sent already.
pub struct Pair {
    pub client: Client,
    pub backend: Stream,
    pub from_client: Input,
    pub from_backend: Vec<u8>,
    pub seat: Seat,
}

thread_local! {
    static PLAIN: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// How the relay ended, and how the client's side is closed.
struct End {
    reason: Reason,
    farewell: Farewell,
}

enum Farewell {
    /// What was queued, [`last_words`], close_notify.
    Say,
    /// What is under way goes out, without close_notify: the client sees that something is missing.
    Truncate,
    /// The client is not there to hear anything.
    Drop,
}

impl From<Reason> for End {
    fn from(reason: Reason) -> Self {
        Self { reason, farewell: Farewell::Say }
    }
}

impl From<client::Error> for End {
    fn from(error: client::Error) -> Self {
        let farewell = match error {
            client::Error::Tls(_) => Farewell::Truncate, // an alert is on its way, or the keys are used up
            client::Error::Io(_) | client::Error::WriteTimeout => Farewell::Drop,
        };
        Self { reason: error.into(), farewell }
    }
}

impl End {
    fn truncated(reason: Reason) -> Self {
        Self { reason, farewell: Farewell::Truncate }
    }
}

/// Relays until the session ends; one that came to no login has ended.
pub fn run(
    (mut session, login): (Session, Result<Pair, Reason>),
) -> impl Future<Output = ()> + Send {
    let ctx = session.context();
    let (mut relay, mut begun) = (None, Ok(()));
    match login {
        Ok(Pair { client, backend, from_client, from_backend, seat }) => {
            let relay = relay.insert(Relay::new(client, backend, seat));
            begun = relay.take_over(&from_client, from_backend, &mut session, &ctx);
        }
        Err(reason) => session.ends(reason),
    }
    async move {
        let end = match (&mut relay, begun) {
            (None, _) => return,
            (Some(_), Err(end)) => end,
            (Some(relay), Ok(())) => relay.until_end(&mut session, &ctx).await,
        };
        session.ends(end.reason);
        if let Some(Relay { client, backend, to_backend, seat, .. }) = relay {
            match end.farewell {
                Farewell::Say if to_backend.is_empty() => backend.close(),
                _ => drop(backend),
            }
            drop(seat);
            // On the heap: it is longer than all that a session is while it lives.
            let farewell = say_farewell(client, &end, ctx.timeouts.write);
            Box::pin(async {
                tokio::select! { () = farewell => {} () = ctx.drain.over() => {} }
            })
            .await;
        }
    }
}

async fn say_farewell(mut client: Client, end: &End, write: Duration) {
    let (limit, last) = (LAST_WORDS.min(write), last_words(end.reason));
    match end.farewell {
        Farewell::Say if last.is_empty() || client.queue(last).is_ok() => client.close(limit).await,
        Farewell::Truncate => client.truncate(limit).await,
        Farewell::Say | Farewell::Drop => {}
    }
}

/// What a client is told that was not the one to end it.
fn last_words(reason: Reason) -> &'static [u8] {
    match reason {
        Reason::IdleTimeout => b"* BYE Idle for too long.\r\n",
        Reason::KeysUsedUp => b"* BYE This connection has lasted as long as TLS 1.2 allows.\r\n",
        Reason::BackendStalled => b"* BYE [UNAVAILABLE] The mail server does not respond.\r\n",
        Reason::Drain => b"* BYE [UNAVAILABLE] The server is restarting.\r\n",
        _ => b"",
    }
}

/// Which bytes moved in one turn.
#[derive(Default)]
struct Moved {
    from_client: bool,
    from_backend: bool,
    to_client: bool,
    to_backend: bool,
}

impl Moved {
    fn any(&self) -> bool {
        self.from_client || self.from_backend || self.to_client || self.to_backend
    }
}

struct Relay {
    client: Client,
    backend: Stream,
    to_backend: Unsent,
    follow: Follow,
    /// At the backend.
    seat: Seat,
    /// The client closed its side.
    client_ended: bool,
    /// And the backend was told.
    backend_shut: bool,
    /// When bytes last moved.
    active: Instant,
    /// Since when bytes wait for a client, a backend, that takes none.
    client_stalled: Option<Instant>,
    backend_stalled: Option<Instant>,
    half_closed: Option<Instant>,
    draining: Option<Box<Draining>>,
}

/// When this session is told, and when it is closed as it is.
struct Draining {
    bye_at: Option<Instant>,
    until: Instant,
}

impl Relay {
    fn new(client: Client, backend: Stream, seat: Seat) -> Self {
        Self {
            client,
            backend,
            to_backend: Unsent::default(),
            follow: Follow::new(),
            seat,
            client_ended: false,
            backend_shut: false,
            active: Instant::now(),
            client_stalled: None,
            backend_stalled: None,
            half_closed: None,
            draining: None,
        }
    }

    async fn until_end(&mut self, session: &mut Session, ctx: &Context) -> End {
        let mut timer = pin!(sleep_until(self.active + ctx.timeouts.idle));
        let mut drain = pin!(ctx.drain.token.cancelled());
        let mut waiting = false;
        poll_fn(|cx| {
            // Registered once: the token's lock is shared by all sessions, and the task's waker stays the same.
            if !waiting {
                waiting = true;
                let _: Poll<()> = drain.as_mut().poll(cx);
            }
            self.poll(timer.as_mut(), session, ctx, cx)
        })
        .await
    }

    fn poll(
        &mut self,
        mut timer: Pin<&mut Sleep>,
        session: &mut Session,
        ctx: &Context,
        cx: &mut Cx<'_>,
    ) -> Poll<End> {
        let now = Instant::now();
        let mut moved = Moved::default();
        let polled = self.poll_both(session, ctx, now, &mut moved, cx);
        if let Poll::Ready(end) = polled {
            return Poll::Ready(end);
        }
        self.note(&moved, session, ctx, now);
        loop {
            if let Some(end) = self.overdue(ctx, Instant::now()) {
                return Poll::Ready(end);
            }
            // Only an earlier deadline resets the timer; that one moved away is found out when it fires.
            let deadline = self.deadline(ctx);
            if deadline < timer.deadline() || timer.is_elapsed() {
                timer.as_mut().reset(deadline);
            }
            ready!(timer.as_mut().poll(cx));
        }
    }

    /// What this turn means for the deadlines.
    fn note(&mut self, moved: &Moved, session: &mut Session, ctx: &Context, now: Instant) {
        if moved.any() {
            self.active = now;
            session.phase(match self.follow.phase() {
                follow::Phase::Active => Phase::Active,
                follow::Phase::Idle => Phase::Idle,
            });
        }
        let since = |waiting: bool, moved: bool, since: Option<Instant>| match since {
            Some(since) if waiting && !moved => Some(since),
            _ => waiting.then_some(now),
        };
        self.client_stalled =
            since(self.client.waiting() > 0, moved.to_client, self.client_stalled);
        self.backend_stalled =
            since(!self.to_backend.is_empty(), moved.to_backend, self.backend_stalled);
        if self.draining.is_none()
            && let Some(schedule) = ctx.drain.schedule()
        {
            let bye_at = schedule.started + spread(session.id, schedule.tell_within);
            let (bye_at, until) = (Some(bye_at.into()), schedule.cut.into());
            self.draining = Some(Box::new(Draining { bye_at, until }));
        }
    }

    /// What arrived with and behind the login.
    fn take_over(
        &mut self,
        from_client: &Input,
        mut from_backend: Vec<u8>,
        session: &mut Session,
        ctx: &Context,
    ) -> Result<(), End> {
        let now = self.active;
        if !from_backend.is_empty() {
            session.backend_to_client += count(&ctx.metrics.backend_to_client, from_backend.len());
            self.pass_to_client(&mut from_backend, ctx, now)?;
        }
        if !from_client.bytes().is_empty() {
            session.client_to_backend +=
                count(&ctx.metrics.client_to_backend, from_client.bytes().len());
            let mut bytes = from_client.bytes().to_vec();
            self.pass_to_backend(&mut bytes, now)?;
        }
        Ok(())
    }

    fn poll_both(
        &mut self,
        session: &mut Session,
        ctx: &Context,
        now: Instant,
        moved: &mut Moved,
        cx: &mut Cx<'_>,
    ) -> Poll<End> {
        loop {
            let mut again = false;
            match self.poll_from_backend(session, ctx, now, moved, cx) {
                Poll::Ready(Ok(())) => again = true,
                Poll::Ready(Err(end)) => return Poll::Ready(end),
                Poll::Pending => {}
            }
            match self.poll_from_client(session, ctx, now, moved, cx) {
                Poll::Ready(Ok(())) => again = true,
                Poll::Ready(Err(end)) => return Poll::Ready(end),
                Poll::Pending => {}
            }
            // What was queued on the way needs a waker for the time when it can go.
            if self.client.waiting() > 0 {
                match self.client.poll_flush(cx, &mut moved.to_client) {
                    Poll::Ready(Ok(())) => again = true,
                    Poll::Ready(Err(error)) => return Poll::Ready(client::Error::Io(error).into()),
                    Poll::Pending => {}
                }
            }
            if !again {
                return Poll::Pending;
            }
        }
    }

    /// One chunk from the backend to the client. Pending: the client takes no more, or there is no more.
    fn poll_from_backend(
        &mut self,
        session: &mut Session,
        ctx: &Context,
        now: Instant,
        moved: &mut Moved,
        cx: &mut Cx<'_>,
    ) -> Poll<Result<(), End>> {
        ready!(self.client.poll_flush(cx, &mut moved.to_client)).map_err(client::Error::Io)?;
        let mut plain = PLAIN.take();
        plain.clear();
        plain.reserve(CHUNK);
        self.follow.unhold(Direction::BackendToClient, &mut plain);
        let read = poll_read_buf(Pin::new(&mut self.backend), cx, &mut plain);
        let result = match read {
            Poll::Ready(Ok(0)) => Poll::Ready(Err(self.backend_ended(&plain, false))),
            Poll::Ready(Ok(n)) => {
                moved.from_backend = true;
                session.backend_to_client += count(&ctx.metrics.backend_to_client, n);
                Poll::Ready(self.pass_to_client(&mut plain, ctx, now))
            }
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Poll::Ready(Err(self.backend_ended(&plain, true)))
            }
            Poll::Ready(Err(_)) => {
                let _ = self.client.queue(&plain); // what was held, as it is
                Poll::Ready(Err(End::truncated(Reason::BackendLost)))
            }
            // What was held is held again.
            Poll::Pending if !plain.is_empty() => match self.pass_to_client(&mut plain, ctx, now) {
                Ok(()) => Poll::Pending,
                Err(end) => Poll::Ready(Err(end)),
            },
            Poll::Pending => Poll::Pending,
        };
        PLAIN.set(plain);
        result
    }

    /// One chunk from the client to the backend. Pending: the backend takes no more, or there is no more.
    fn poll_from_client(
        &mut self,
        session: &mut Session,
        ctx: &Context,
        now: Instant,
        moved: &mut Moved,
        cx: &mut Cx<'_>,
    ) -> Poll<Result<(), End>> {
        let lost = |_| End::truncated(Reason::BackendLost);
        ready!(self.to_backend.poll_flush(&mut self.backend, cx, &mut moved.to_backend))
            .map_err(lost)?;
        if self.client_ended {
            if !self.backend_shut {
                self.half_closed.get_or_insert(now + ctx.timeouts.half_closed);
                // TLS 1.2 has no half-close (RFC 5246 §7.2.1), and servers drop their answers in 1.3 as well.
                if self.backend.is_tls() && self.follow.owes_answers() {
                    return Poll::Pending; // the answers wake us
                }
                ready!(Pin::new(&mut self.backend).poll_shutdown(cx)).map_err(lost)?;
                self.backend_shut = true;
            }
            return Poll::Pending;
        }
        if self.client.waiting() > MAX_ANSWERS {
            return Poll::Pending; // its answers first; their flush, polled above, wakes us
        }
        let mut plain = PLAIN.take();
        plain.clear();
        self.follow.unhold(Direction::ClientToBackend, &mut plain);
        let held = plain.len();
        let read = self.client.poll_receive(&mut plain, cx);
        session.client_to_backend += count(&ctx.metrics.client_to_backend, plain.len() - held);
        let passed = match &read {
            _ if plain.is_empty() => Ok(()),
            // The beginning of a command that never came: as it is.
            Poll::Ready(Ok(Received::End)) if plain.len() == held => {
                self.to_backend.send(&mut self.backend, &plain).map_err(lost)
            }
            _ => self.pass_to_backend(&mut plain, now),
        };
        PLAIN.set(plain);
        passed?;
        match read {
            Poll::Ready(Ok(Received::Bytes)) => moved.from_client = true,
            Poll::Ready(Ok(Received::End)) => self.client_ended = true,
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
            Poll::Pending => return Poll::Pending,
        }
        Poll::Ready(Ok(()))
    }

    fn pass_to_client(
        &mut self,
        plain: &mut Vec<u8>,
        ctx: &Context,
        now: Instant,
    ) -> Result<(), End> {
        let metrics = self.seat.metrics();
        let mut completed = |verb, took: Duration| {
            if let Some(metrics) = metrics {
                metrics.command(verb).observe(took.as_secs_f64());
            }
        };
        if self.follow.backend(plain, &ctx.backends.repair, now.into_std(), &mut completed).is_err()
        {
            return Err(Reason::ProtocolViolation.into());
        }
        self.follow.take_answers(plain);
        if !plain.is_empty() {
            self.client.queue(plain)?;
        }
        Ok(())
    }

    fn pass_to_backend(&mut self, plain: &mut Vec<u8>, now: Instant) -> Result<(), End> {
        if self.follow.client(plain, now.into_std()).is_err() {
            return Err(Reason::ProtocolViolation.into());
        }
        let sent = self.to_backend.send(&mut self.backend, plain);
        plain.clear();
        self.follow.take_answers(plain);
        if !plain.is_empty() {
            self.client.queue(plain)?;
        }
        match sent {
            // It may have said why before it closed: its own end comes with the next read.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Err(_) => Err(End::truncated(Reason::BackendLost)),
            Ok(()) => Ok(()),
        }
    }

    /// `cut`: without close_notify, where there is TLS. Many servers omit it, so it counts where the framing can't tell.
    fn backend_ended(&mut self, held: &[u8], cut: bool) -> End {
        if !held.is_empty() {
            let _ = self.client.queue(held); // the beginning of a response that never came
            return End::truncated(Reason::BackendTruncated);
        }
        let torn = match self.follow.is_following() {
            true => !self.follow.ended_orderly(),
            false => cut,
        };
        let reason = if self.follow.logout_seen() && self.follow.bye_seen() {
            Reason::Logout
        } else if self.client_ended {
            Reason::ClientClosed
        } else if torn {
            Reason::BackendTruncated
        } else {
            Reason::BackendClosed
        };
        if torn { End::truncated(reason) } else { reason.into() }
    }

    /// The earliest moment at which something is due.
    fn deadline(&self, ctx: &Context) -> Instant {
        let idle = self.active + ctx.timeouts.idle;
        let [client, backend] =
            [self.client_stalled, self.backend_stalled].map(|s| s.map(|s| s + ctx.timeouts.write));
        let draining = self.draining.as_ref();
        let (bye_at, until) = (draining.and_then(|d| d.bye_at), draining.map(|d| d.until));
        [client, backend, self.half_closed, bye_at, until]
            .into_iter()
            .flatten()
            .fold(idle, Instant::min)
    }

    fn overdue(&mut self, ctx: &Context, now: Instant) -> Option<End> {
        let may_speak = self.follow.may_interrupt();
        let told = |reason| if may_speak { End::from(reason) } else { End::truncated(reason) };
        let stalled =
            |since: Option<Instant>| since.is_some_and(|at| now >= at + ctx.timeouts.write);
        if stalled(self.client_stalled) {
            return Some(client::Error::WriteTimeout.into());
        }
        if stalled(self.backend_stalled) {
            return Some(told(Reason::BackendStalled));
        }
        if self.half_closed.is_some_and(|end| now >= end) {
            return Some(told(Reason::HalfClosedTimeout));
        }
        if may_speak && self.client.is_worn() {
            return Some(Reason::KeysUsedUp.into());
        }
        if let Some(draining) = &mut self.draining {
            let due = draining.bye_at.is_none_or(|at| now >= at);
            if now >= draining.until || (due && may_speak) {
                return Some(told(Reason::Drain));
            }
            if due {
                draining.bye_at = None; // looked at again whenever bytes have moved
            }
        }
        (now >= self.active + ctx.timeouts.idle).then(|| told(Reason::IdleTimeout))
    }
}

fn count(counter: &prometheus::IntCounter, n: usize) -> u64 {
    if n > 0 {
        counter.inc_by(n as u64);
    }
    n as u64
}

/// A moment of its own for each session, evenly over `window`.
fn spread(session: u64, window: Duration) -> Duration {
    // Fibonacci hashing: neighbours end up far apart.
    let hash = session.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    window.mul_f64(hash as f64 / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::record;

    #[test]
    fn used_up_keys_are_the_fault_of_neither_side_and_end_with_bye() {
        let end = End::from(client::Error::from(record::Error::Exhausted));
        assert_eq!(end.reason, Reason::KeysUsedUp);
        assert!(last_words(end.reason).starts_with(b"* BYE "));
    }
}
