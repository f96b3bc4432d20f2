//! One connection, stage by stage. All I/O on its bytes happens below this module; every stage takes what the one
//! before returned, so none can be skipped, and has one deadline from Settings.
//!
//! ```text
//! accept ── Socket ──▶ [proxy_header ──▶ starttls ──▶] tls ── Client ──▶ dialogue ── Login ──▶ backend ── Pair ──▶ relay ──▶ close
//!                                                                           ▲                    │
//!                                                                           └──── refused ───────┘
//! ```

pub mod address;

pub mod accept;

pub mod proxy_header;

pub mod starttls;

pub mod tls;

pub mod failure;

pub mod client;

pub mod hold;

pub mod refused;

pub mod dialogue;

pub mod backend;

pub mod relay;

pub mod close;

pub mod socket;

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use strum::VariantArray as _;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::backend::Backends;
use crate::config::settings::{Limits, ListenTls, Timeouts};
use crate::log::sample::Sampled;
use crate::metrics::Metrics;
use crate::proto::imap::line;
use crate::tls::{Serving, acme};
use address::PeerAddr;
use close::{Reason, Session};
use failure::Failure;
use proxy_header::Arrival;
use relay::Pair;

/// The end of a drain's time that is for last words, at most.
const FAREWELLS: Duration = Duration::from_secs(2);

/// What a connection may use, as of the configuration that it began with; a reload makes the [next](Self::next) one.
pub struct Context {
    pub tls: Arc<Serving>,
    pub backends: Arc<Backends>,
    pub limits: Limits,
    pub timeouts: Timeouts,
    pub metrics: Arc<Metrics>,
    pub drain: Arc<Drain>,
    shared: Arc<Shared>,
}

/// What all connections have in common, whatever configuration they began with.
struct Shared {
    /// Handshakes that failed, by [`failure::Failure`].
    failures: Sampled,
    /// Commands that were refused before login, by [`refused::KINDS`].
    refused: Sampled,
    /// Sessions that ended without a login, by [`Reason`].
    ends: Sampled,
    /// Logins that were refused as they came in a loop, or say so.
    loops: Sampled,
    /// For a CA that asks.
    answers: Arc<acme::Answers>,
    /// Sessions open now.
    open: AtomicUsize,
    sessions: AtomicU64,
    /// Random, so that tags of ours can't be guessed.
    seed: u64,
}

/// The end of the process, announced to every session.
#[derive(Default)]
pub struct Drain {
    pub token: CancellationToken,
    schedule: OnceLock<Schedule>,
}

/// What becomes of sessions, and when.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    pub started: Instant,
    /// From the start on, each is told at a moment of its own within this.
    pub tell_within: Duration,
    /// What is left is closed as it is, in time for its last words.
    pub cut: Instant,
    /// No session is left.
    pub over: Instant,
}

impl Schedule {
    fn new(started: Instant, limit: Duration) -> Self {
        let over = started + limit;
        let cut = over - FAREWELLS.min(limit / 4);
        Self { started, tell_within: limit / 2, cut, over }
    }
}

impl Drain {
    /// All of it, last words included, takes `limit`.
    pub fn start(&self, limit: Duration) {
        self.schedule.get_or_init(|| Schedule::new(Instant::now(), limit));
        self.token.cancel();
    }

    /// Returns when it has begun and its time is over.
    async fn over(&self) {
        self.token.cancelled().await;
        // Only `start` cancels the token.
        let over = self.schedule().map_or_else(Instant::now, |schedule| schedule.over);
        tokio::time::sleep_until(over.into()).await;
    }

    /// If it has begun: one atomic load.
    pub fn schedule(&self) -> Option<Schedule> {
        self.schedule.get().copied()
    }
}

impl Context {
    pub fn new(
        tls: Arc<Serving>,
        backends: Arc<Backends>,
        limits: Limits,
        timeouts: Timeouts,
        metrics: Arc<Metrics>,
        answers: Arc<acme::Answers>,
    ) -> Self {
        let mut seed = [0; 8];
        // A generator that fails would have failed every handshake; the counter alone still tells sessions apart.
        let _ = tls.config.load().usual.crypto_provider().secure_random.fill(&mut seed);
        let shared = Shared {
            failures: Sampled::new(Failure::VARIANTS.len()),
            refused: Sampled::new(refused::KINDS),
            ends: Sampled::new(Reason::VARIANTS.len()),
            loops: Sampled::new(1),
            answers,
            open: AtomicUsize::new(0),
            sessions: AtomicU64::new(0),
            seed: u64::from_le_bytes(seed),
        };
        let (drain, shared) = (Arc::default(), Arc::new(shared));
        Self { tls, backends, limits, timeouts, metrics, drain, shared }
    }

    /// For connections to come. What is counted stays the same, as does the end of the process.
    pub fn next(
        &self,
        tls: Arc<Serving>,
        backends: Arc<Backends>,
        limits: Limits,
        timeouts: Timeouts,
    ) -> Self {
        let (metrics, drain) = (Arc::clone(&self.metrics), Arc::clone(&self.drain));
        let shared = Arc::clone(&self.shared);
        Self { tls, backends, limits, timeouts, metrics, drain, shared }
    }

    /// Room for one more session, if there is.
    fn admit(&self) -> bool {
        let admitted = self.shared.open.fetch_add(1, Ordering::Relaxed) < self.limits.connections;
        if !admitted {
            self.ended();
        }
        admitted
    }

    fn ended(&self) {
        self.shared.open.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether to log that `client` says of a login that it came in a loop, and how many such lines were not logged.
    fn on_loop(&self, client: IpAddr) -> Option<u64> {
        self.shared.loops.on(0, client)
    }

    /// Whether to log that a session of `client` ended so without a login, as for [`Self::on_loop`].
    fn on_end(&self, reason: Reason, client: IpAddr) -> Option<u64> {
        self.shared.ends.on(reason as usize, client)
    }

    fn next_session(&self) -> u64 {
        let n = self.shared.sessions.fetch_add(1, Ordering::Relaxed);
        (self.shared.seed << 32) | (n & 0xffff_ffff)
    }

    /// A tag for the backend that no client can know.
    fn tag(&self) -> Vec<u8> {
        let mut random = [0; 8];
        let config = self.tls.config.load();
        if config.usual.crypto_provider().secure_random.fill(&mut random).is_err() {
            let Shared { seed, sessions, .. } = &*self.shared;
            random = (seed ^ sessions.load(Ordering::Relaxed)).to_le_bytes();
        }
        format!("P{:016x}", u64::from_le_bytes(random)).into_bytes()
    }

    fn line_limits(&self) -> line::Limits {
        line::Limits {
            line: self.limits.line,
            literal: self.limits.literal,
            sasl: self.limits.sasl,
        }
    }
}

/// Serves one connection from its first byte to its last log line.
///
/// Years in the relay must not carry the size of the handshake, so what comes before is on the heap; and nothing here
/// on the way is an `async fn`, whose future would keep every argument beside what it makes of it.
pub fn serve(
    socket: TcpStream,
    peer: PeerAddr,
    session: Session,
) -> impl Future<Output = ()> + Send {
    let login = Box::pin(log_in(socket, peer, session)); // Socket -> Pair: somebody is logged in
    async move { relay::run(login.await).await } //   Pair   -> Reason: why it ended
}

/// The session comes back with what it has come to: [`relay::run`] takes both.
async fn log_in(
    socket: TcpStream,
    peer: PeerAddr,
    mut session: Session,
) -> (Session, Result<Pair, Reason>) {
    let ctx = session.context();
    let pair = tokio::select! {
        biased;
        pair = until_login(socket, peer, &mut session, &ctx) => pair,
        () = ctx.drain.over() => Err(Reason::Drain),
    };
    (session, pair)
}

async fn until_login(
    socket: TcpStream,
    peer: PeerAddr,
    session: &mut Session,
    ctx: &Context,
) -> Result<Pair, Reason> {
    let arrival = proxy_header::receive(socket, peer, session, ctx).await?; // the client's address is known
    let Arrival { socket, listener } = arrival;
    let mut dialogue = match session.listener.tls {
        ListenTls::Implicit => {
            let client = tls::accept(socket, None, session, ctx).await?; // Socket -> Client: encrypted
            dialogue::greet(client, ctx).await? //                          Client -> Dialogue: greeted
        }
        ListenTls::StartTls => {
            let (socket, deadline) = starttls::wait(socket, session, ctx).await?; // greeted, and said STARTTLS
            let client = tls::accept(socket, Some(deadline), session, ctx).await?;
            dialogue::resume(client, deadline, ctx).await?
        }
    };
    loop {
        let login = dialogue.next_login(session, ctx).await?; //      a whole LOGIN or AUTHENTICATE
        if let Some(logged_in) =
            backend::log_in(&mut dialogue, &login, listener, session, ctx).await?
        {
            break Ok(dialogue.into_pair(logged_in));
        } // refused: the client was told, and may try again
    }
}
