//! Builds everything from Settings; owns start and drain.
//!
//! Start: certificates, listeners, then the accept loops and the tasks that keep the backends known. Stop, on SIGTERM or
//! SIGINT: readiness goes 503, listeners close, sessions are told BYE, what is left after `timeouts.drain` is
//! closed; a second signal ends it at once. SIGHUP has the certificates read again (`tls::reload`).

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::{Readiness, probes};
use crate::backend::{Backends, learn};
use crate::config::settings::{Challenge, ListenTls, Settings};
use crate::conn::{self, Context, accept, socket};
use crate::metrics::Metrics;
use crate::tls::reload::{self, Occasion};
use crate::tls::{self, acme};

/// What sessions get beyond `timeouts.drain` to write their last words.
const GRACE: Duration = Duration::from_secs(3);
/// Descriptors for everything that is not a session: log, listeners, metrics, resolver. The listener of ACME has some more.
const RESERVED_DESCRIPTORS: u64 = 48;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Tls(#[from] tls::Error),
    #[error("can't listen on {address} ({key}): {}", socket::why(source))]
    Listen { address: SocketAddr, key: &'static str, source: io::Error },
    #[error("can't set up metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    #[error("can't wait for signals: {0}")]
    Signals(io::Error),
}

/// Where a running server can be reached.
#[derive(Debug)]
pub struct Bound {
    pub listeners: Vec<SocketAddr>,
    pub metrics: Option<SocketAddr>,
}

/// Serves until a signal says stop. `started` is called once everything listens.
pub async fn run(mut settings: Settings, started: impl FnOnce(&Bound)) -> Result<(), Error> {
    let mut signals = Signals::new().map_err(Error::Signals)?;
    let hangup = signal(SignalKind::hangup()).map_err(Error::Signals)?;
    fit_descriptors(&mut settings);
    let mut store = tls::Store::new(&settings.tls);
    let news = store.load(SystemTime::now())?;
    let (configured, tls, fresh) =
        tls::Configured::new(&settings.tls, store.names(), SystemTime::now())?;
    let connectors = tls::backend::connectors(&settings.backend).map_err(tls::Error::from)?;
    let listeners = bind_all(&settings)?;
    let names: Vec<String> =
        settings.listen.iter().map(|listen| listen.address.to_string()).collect();
    let servers: Vec<String> =
        settings.backend.servers.iter().map(|server| server.address.to_string()).collect();
    let metrics = Metrics::new(&names, &servers, &conn::tls::combinations(&tls))?;
    let readiness = Arc::new(Readiness::new(servers));
    reload::announce(&news, Occasion::Start, &store, &metrics, &readiness);
    reload::announce_parts(&fresh, &metrics);
    let backends = Backends::new(&settings, &metrics, Arc::clone(&readiness), connectors);
    let ctx = Arc::new(Context::new(
        tls,
        store.names(),
        backends,
        settings.limits,
        settings.timeouts,
        metrics,
    ));

    let (accepting, sessions, background) =
        (CancellationToken::new(), TaskTracker::new(), TaskTracker::new());
    let stop_background = CancellationToken::new();
    let mut bound = Bound { listeners: Vec::new(), metrics: None };
    for ((socket, listen), name) in listeners.imap.into_iter().zip(&settings.listen).zip(names) {
        let address = socket.local_addr().map_err(Error::Signals)?;
        let service = match listen.tls {
            ListenTls::Implicit => "imaps",
            ListenTls::StartTls => "imap with STARTTLS",
        };
        tracing::info!(service, %address, "listening");
        bound.listeners.push(address);
        background.spawn(accept::run(
            socket,
            Arc::new(accept::Listener { name, tls: listen.tls }),
            Arc::clone(&ctx),
            sessions.clone(),
            accepting.clone(),
        ));
    }
    readiness.set_listening(true);
    if let Some(listener) = listeners.metrics {
        let address = listener.local_addr().map_err(Error::Signals)?;
        tracing::info!(service = "metrics", %address, "listening");
        bound.metrics = Some(address);
        let registry = ctx.metrics.registry.clone();
        background.spawn(probes::serve(
            listener,
            registry,
            Arc::clone(&readiness),
            stop_background.clone(),
        ));
    }
    for index in 0..ctx.backends.servers().len() {
        let ctx = Arc::clone(&ctx);
        let keep = async move { learn::keep(&ctx.backends, &ctx.backends.servers()[index]).await };
        background.spawn(stop_background.clone().run_until_cancelled_owned(keep));
    }
    let issued = Arc::new(Notify::new());
    if let Some(settings) = settings.tls.acme.take() {
        let answers = Arc::new(acme::Answers::default());
        if let Some(listener) = listeners.acme {
            let address = listener.local_addr().map_err(Error::Signals)?;
            tracing::info!(service = "acme", %address, "listening");
            let answers = Arc::clone(&answers);
            let answer = move |request: &_| answers.answer(request);
            let stop = stop_background.clone();
            background.spawn(probes::serve_with(probes::PUBLIC, listener, answer, stop));
        }
        let (ctx, issued) = (Arc::clone(&ctx), Arc::clone(&issued));
        let keep = async move { acme::keep(settings, answers, issued, &ctx.metrics).await };
        background.spawn(stop_background.clone().run_until_cancelled_owned(keep));
    }
    let renewal = {
        let (ctx, readiness) = (Arc::clone(&ctx), Arc::clone(&readiness));
        let issued = Arc::clone(&issued);
        async move {
            let (ctx, readiness) = (&ctx, &readiness);
            reload::keep(store, configured, &ctx.tls, &ctx.metrics, readiness, hangup, &issued)
                .await;
        }
    };
    background.spawn(stop_background.clone().run_until_cancelled_owned(renewal));
    started(&bound);

    let name = signals.next().await;
    let open = sessions.len();
    tracing::info!(
        signal = name,
        sessions = open,
        "stopping: no new sessions, {:?} to end",
        settings.timeouts.drain
    );
    readiness.set_draining();
    accepting.cancel();
    readiness.set_listening(false);
    ctx.drain.start();
    sessions.close();
    tokio::select! {
        ended = timeout(settings.timeouts.drain + GRACE, sessions.wait()) => {
            if ended.is_err() {
                tracing::warn!(sessions = sessions.len(), "sessions that did not end are cut");
            }
        }
        name = signals.next() => {
            tracing::warn!(signal = name, sessions = sessions.len(), "second signal: ending at once");
        }
    }
    stop_background.cancel();
    background.close();
    // What still sets a timer while the runtime goes down would panic. Nobody here takes longer than a moment.
    let _ = timeout(GRACE, background.wait()).await;
    tracing::info!("stopped");
    Ok(())
}

struct Listeners {
    imap: Vec<TcpListener>,
    metrics: Option<TcpListener>,
    /// For the challenges of ACME.
    acme: Option<TcpListener>,
}

fn bind_all(settings: &Settings) -> Result<Listeners, Error> {
    let bind = |address, key| {
        accept::bind(address).map_err(|source| Error::Listen { address, key, source })
    };
    let imap = settings.listen.iter().map(|listen| bind(listen.address, "listen[].address"));
    let imap = imap.collect::<Result<_, _>>()?;
    let metrics = settings
        .metrics
        .as_ref()
        .map(|metrics| bind(metrics.address, "metrics.address"))
        .transpose()?;
    let acme = match settings.tls.acme.as_ref().map(|acme| &acme.challenge) {
        Some(Challenge::Http01 { address }) => Some(bind(*address, "tls.acme.http_address")?),
        _ => None,
    };
    Ok(Listeners { imap, metrics, acme })
}

/// Raises the descriptor limit as far as it goes and keeps the number of sessions within it: two descriptors each, and
/// some for everything else. A session refused costs its client a moment, descriptors that run out cost everybody.
fn fit_descriptors(settings: &mut Settings) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        // Refused, it stays as it is.
        let _ = setrlimit(Resource::Nofile, raised);
    }
    // No core file: it would hold keys and passwords.
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    let Some(descriptors) = getrlimit(Resource::Nofile).current else { return };
    let reserved = match settings.tls.acme.as_ref().map(|acme| &acme.challenge) {
        Some(Challenge::Http01 { .. }) => RESERVED_DESCRIPTORS + probes::PUBLIC.connections as u64,
        _ => RESERVED_DESCRIPTORS,
    };
    let fit =
        usize::try_from(descriptors.saturating_sub(reserved) / 2).unwrap_or(usize::MAX).max(1);
    if settings.limits.connections > fit {
        tracing::warn!(
            "limits.connections is {}, but {descriptors} file descriptors are enough for {fit} sessions: that is the limit now \
             (raise it with LimitNOFILE=, ulimit -n or docker run --ulimit nofile=)",
            settings.limits.connections
        );
        settings.limits.connections = fit;
    }
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
