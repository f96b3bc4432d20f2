//! One connection, stage by stage. All I/O on its bytes happens below this module; every stage takes what the one
//! before returned, so none can be skipped, and has one deadline from Settings.
//!
//! ```text
//! accept ── Socket ──▶ [starttls ──▶] tls ── Client ──▶ dialogue ── Login ──▶ backend ── Pair ──▶ relay ──▶ close
//!                                                          ▲                    │
//!                                                          └──── refused ───────┘
//! ```

pub mod accept;

pub mod starttls;

pub mod tls;

pub mod failure;

pub mod client;

pub mod dialogue;

pub mod backend;

pub mod relay;

pub mod close;

pub mod socket;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::backend::Backends;
use crate::config::settings::{Limits, ListenTls, Timeouts};
use crate::metrics::Metrics;
use crate::proto::imap::line;
use accept::Listener;
use close::{Reason, Session};

/// What a connection may use.
pub struct Context {
    pub tls: ArcSwap<ServerConfig>,
    pub backends: Backends,
    pub limits: Limits,
    pub timeouts: Timeouts,
    pub metrics: Metrics,
    pub drain: Drain,
    failures: failure::Sampled,
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
    started: std::sync::OnceLock<Instant>,
}

impl Drain {
    pub fn start(&self) {
        self.started.get_or_init(Instant::now);
        self.token.cancel();
    }

    /// Returns when it has begun and its time, `limit`, is over.
    async fn over(&self, limit: Duration) {
        self.token.cancelled().await;
        let started = self.started().unwrap_or_else(Instant::now);
        tokio::time::sleep_until((started + limit).into()).await;
    }

    /// When it began, if it has: one atomic load.
    pub fn started(&self) -> Option<Instant> {
        self.started.get().copied()
    }
}

impl Context {
    pub fn new(
        tls: Arc<ServerConfig>,
        backends: Backends,
        limits: Limits,
        timeouts: Timeouts,
        metrics: Metrics,
    ) -> Self {
        let mut seed = [0; 8];
        // A generator that fails would have failed every handshake; the counter alone still tells sessions apart.
        let _ = tls.crypto_provider().secure_random.fill(&mut seed);
        Self {
            tls: ArcSwap::new(tls),
            backends,
            limits,
            timeouts,
            metrics,
            drain: Drain::default(),
            failures: failure::Sampled::default(),
            open: AtomicUsize::new(0),
            sessions: AtomicU64::new(0),
            seed: u64::from_le_bytes(seed),
        }
    }

    /// Room for one more session, if there is.
    fn admit(&self) -> bool {
        let admitted = self.open.fetch_add(1, Ordering::Relaxed) < self.limits.connections;
        if !admitted {
            self.ended();
        }
        admitted
    }

    fn ended(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }

    fn next_session(&self) -> u64 {
        let n = self.sessions.fetch_add(1, Ordering::Relaxed);
        (self.seed << 32) | (n & 0xffff_ffff)
    }

    /// A tag for the backend that no client can know.
    fn tag(&self) -> Vec<u8> {
        let mut random = [0; 8];
        if self.tls.load().crypto_provider().secure_random.fill(&mut random).is_err() {
            random = (self.seed ^ self.sessions.load(Ordering::Relaxed)).to_le_bytes();
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
pub async fn serve(
    socket: TcpStream,
    client: SocketAddr,
    listener: Arc<Listener>,
    ctx: Arc<Context>,
) {
    let mut session = Session::open(&ctx, client, &listener);
    let reason = match path(socket, listener.tls, &mut session, &ctx).await {
        Ok(reason) | Err(reason) => reason,
    };
    session.close(reason);
}

async fn path(
    socket: TcpStream,
    tls: ListenTls,
    session: &mut Session,
    ctx: &Context,
) -> Result<Reason, Reason> {
    // On the heap, so that years in the relay don't carry the size of the handshake.
    let pair = Box::pin(async {
        tokio::select! {
            biased;
            pair = until_login(socket, tls, session, ctx) => pair,
            () = ctx.drain.over(ctx.timeouts.drain) => Err(Reason::Drain),
        }
    });
    let pair = pair.await?; //                      Socket -> Pair: somebody is logged in
    Ok(relay::run(pair, session, ctx).await) //     Pair   -> Reason: why it ended
}

async fn until_login(
    socket: TcpStream,
    tls: ListenTls,
    session: &mut Session,
    ctx: &Context,
) -> Result<relay::Pair, Reason> {
    let mut dialogue = match tls {
        ListenTls::Implicit => {
            let (client, said) = tls::accept(socket, None, session, ctx).await?; // Socket -> Client: encrypted
            dialogue::greet(client, said, ctx).await? //                            Client -> Dialogue: greeted
        }
        ListenTls::StartTls => {
            let (socket, deadline) = starttls::wait(socket, session, ctx).await?; // greeted, and said STARTTLS
            let (client, said) = tls::accept(socket, Some(deadline), session, ctx).await?;
            dialogue::resume(client, said, deadline, ctx)
        }
    };
    loop {
        let login = dialogue.next_login(ctx).await?; //               a whole LOGIN or AUTHENTICATE
        if let Some(logged_in) = backend::log_in(&mut dialogue, &login, session, ctx).await? {
            break Ok(dialogue.into_pair(logged_in));
        } // refused: the client was told, and may try again
    }
}
