//! Builds everything from Settings; owns start, reload and drain.
//!
//! Start: certificates, listeners, then the accept loops and the tasks that keep the backends
//! known. SIGHUP: another configuration ([`reload`]). Stop, on SIGTERM, SIGINT or SIGQUIT
//! ([`signals`]): readiness goes 503, listeners close, sessions are told BYE, and within
//! `timeouts.drain` all are closed; a second signal ends it at once.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::{Readiness, probes};
use crate::backend::{Backends, learn, transparent};
use crate::config::settings::{Challenge, Limits, Settings};
use crate::conn::{self, Context, accept};
use crate::metrics::Metrics;
use crate::tls::reload::{self as certificates, Keeper, Occasion};
use crate::tls::{self, acme};
use listeners::Listeners;
use signals::Signals;

mod signals;

mod listeners;

mod reload;

pub use reload::Source;

/// How long what should have ended is waited for: sessions are over at the end of `timeouts.drain`.
const GRACE: Duration = Duration::from_secs(3);
/// Descriptors for all that is neither a session nor a connection to a listener for HTTP: log, listeners, resolver.
const RESERVED_DESCRIPTORS: u64 = 32;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Tls(#[from] tls::Error),
    #[error("can't listen on {address} ({key}): {}", accept::unavailable(*address, why))]
    Listen { address: SocketAddr, key: &'static str, why: io::Error },
    #[error(transparent)]
    Transparent(#[from] transparent::NotPermitted),
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

/// Serves until a signal says stop. `started` is called once everything listens. At SIGHUP the configuration is read again from
/// `source`; without one only the certificates are.
///
/// # Errors
/// It can't start.
pub async fn run(
    settings: Settings,
    source: Option<Source>,
    started: impl FnOnce(&Bound),
) -> Result<(), Error> {
    let mut signals = Signals::new().map_err(Error::Signals)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(Error::Signals)?;
    let mut running = Running::start(settings).await?;
    started(&running.listeners.bound());
    let name = loop {
        tokio::select! {
            biased;
            name = signals.next() => break name,
            Some(()) = hangup.recv() => {
                let reload = async {
                    match &source {
                        Some(source) => running.reload(source).await,
                        None => running.reread().await,
                    }
                };
                // A file may be slow to read, or never end.
                tokio::select! {
                    biased;
                    name = signals.next() => break name,
                    () = reload => {}
                }
            }
        }
    };
    signals.ignore("SIGHUP", hangup);
    running.stop(name, &mut signals).await;
    Ok(())
}

/// All that runs, and the configuration that it runs by.
struct Running {
    /// As written.
    settings: Settings,
    /// What was said of the limits last.
    warning: Option<String>,
    /// For connections to come; each keeps the one that it began with.
    ctx: Arc<Context>,
    listeners: Listeners,
    /// `None` if what keeps them has panicked.
    certificates: Option<Certificates>,
    acme: Option<Task>,
    answers: Arc<acme::Answers>,
    around: certificates::Around,
    sessions: TaskTracker,
    background: TaskTracker,
    stop_background: CancellationToken,
}

/// The task that keeps them fresh.
struct Certificates {
    stop: CancellationToken,
    task: JoinHandle<Keeper>,
}

struct Task {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    async fn start(settings: Settings) -> Result<Self, Error> {
        transparent::check(&settings.backend.servers)?;
        let (limits, warning) = fit_descriptors(&settings);
        let now = SystemTime::now();
        let mut store = tls::Store::new(&settings.tls);
        let news = store.load(now)?;
        let (configured, serving, fresh) =
            tls::Configured::new(&settings.tls, store.names(), None, now)?;
        let connectors =
            tls::backend::connectors(&settings.backend, &[]).map_err(tls::Error::from)?;
        let (sessions, background) = (TaskTracker::new(), TaskTracker::new());
        let (readiness, answers) = (Arc::<Readiness>::default(), Arc::<acme::Answers>::default());
        let mut listeners = Listeners::new(listeners::Around {
            sessions: sessions.clone(),
            readiness: Arc::clone(&readiness),
            answers: Arc::clone(&answers),
            background: background.clone(),
        });
        let sockets = listeners.bind(&settings)?;
        let metrics = Arc::new(Metrics::new()?);
        metrics.can_negotiate(&conn::tls::combinations(&serving.config.load().usual));
        metrics.configuration_loaded(true, tls::unix(now));
        certificates::announce(&news, Occasion::Start, &store, &metrics, &readiness);
        certificates::announce_parts(&fresh, &metrics);
        warning.iter().for_each(|warning| tracing::warn!("{warning}"));
        let backends = Arc::new(Backends::new(&settings, connectors, &metrics, None));
        backends.replace(None, &metrics);
        readiness.set_backends(backends.states());
        let keeper = Keeper::new(store, configured, Arc::clone(&serving));
        let ctx = Context::new(
            serving,
            backends,
            limits,
            settings.timeouts,
            Arc::clone(&metrics),
            Arc::clone(&answers),
        );
        let ctx = Arc::new(ctx);
        listeners.serve(&settings, sockets, &ctx).await;
        let around = certificates::Around { metrics, readiness, issued: Arc::new(Notify::new()) };
        let stop_background = CancellationToken::new();
        let mut running = Self {
            certificates: Some(Certificates::keep(keeper, &around, &background, &stop_background)),
            settings,
            warning,
            ctx,
            listeners,
            acme: None,
            answers,
            around,
            sessions,
            background,
            stop_background,
        };
        running.learn(None);
        running.order();
        Ok(running)
    }

    /// Keeps the servers known that `before` does not have and that are in use.
    fn learn(&self, before: Option<&Backends>) {
        for server in self.ctx.backends.without(before).filter(|one| !one.is_out_of_use()) {
            let (server, retired) = (Arc::clone(server), server.retired.clone());
            let keep = retired.run_until_cancelled_owned(learn::keep(server));
            self.background.spawn(self.stop_background.clone().run_until_cancelled_owned(keep));
        }
    }

    /// Has certificates ordered, if they are to be.
    fn order(&mut self) {
        let Some(acme) = self.settings.tls.acme.clone() else { return };
        let (answers, around) = (Arc::clone(&self.answers), self.around.clone());
        let keep = async move { acme::keep(acme, answers, around.issued, &around.metrics).await };
        let stop = self.stop_background.child_token();
        let keep = stop.clone().run_until_cancelled_owned(keep);
        let task = self.background.spawn(async move { _ = keep.await });
        self.acme = Some(Task { stop, task });
    }

    async fn stop(mut self, name: &str, signals: &mut Signals) {
        let (limit, sessions) = (self.settings.timeouts.drain, self.sessions.clone());
        tracing::info!(
            signal = name,
            sessions = sessions.len(),
            "stopping: no new sessions, {limit:?} to end"
        );
        self.around.readiness.set_draining();
        self.listeners.close().await;
        self.ctx.drain.start(limit);
        sessions.close();
        tokio::select! {
            ended = timeout(limit + GRACE, sessions.wait()) => {
                if ended.is_err() {
                    tracing::warn!(sessions = sessions.len(), "sessions that did not end are cut");
                }
            }
            name = signals.next() => {
                tracing::warn!(signal = name, sessions = sessions.len(), "second signal: ending at once");
            }
        }
        drop(self.listeners);
        self.stop_background.cancel();
        self.background.close();
        // What still sets a timer while the runtime goes down would panic. Nobody here takes longer than a moment.
        let _ = timeout(GRACE, self.background.wait()).await;
        tracing::info!("stopped");
    }
}

impl Certificates {
    fn keep(
        keeper: Keeper,
        around: &certificates::Around,
        background: &TaskTracker,
        stop: &CancellationToken,
    ) -> Self {
        let stop = stop.child_token();
        let task = background.spawn(keeper.keep(around.clone(), stop.clone()));
        Self { stop, task }
    }
}

/// Raises the descriptor limit as far as it goes and keeps the number of sessions within it: two descriptors each, and
/// some for everything else. A session refused costs its client a moment, descriptors that run out cost everybody. What
/// is not as written is the second value.
fn fit_descriptors(settings: &Settings) -> (Limits, Option<String>) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        // Refused, it stays as it is.
        let _ = setrlimit(Resource::Nofile, raised);
    }
    let limits = settings.limits;
    let Some(descriptors) = getrlimit(Resource::Nofile).current else { return (limits, None) };
    let mut listeners = probes::LIMITS.connections(Some(descriptors));
    if let Some(Challenge::Http01 { .. }) = settings.tls.acme.as_ref().map(|acme| &acme.challenge) {
        listeners += probes::PUBLIC.connections(Some(descriptors));
    }
    let reserved = RESERVED_DESCRIPTORS + listeners as u64;
    let fit =
        usize::try_from(descriptors.saturating_sub(reserved) / 2).unwrap_or(usize::MAX).max(1);
    if limits.connections <= fit {
        return (limits, None);
    }
    let warning = format!(
        "limits.connections is {}, but {descriptors} file descriptors are enough for {fit} sessions: that is the limit now \
         (raise it with LimitNOFILE=, ulimit -n or docker run --ulimit nofile=)",
        limits.connections
    );
    (Limits { connections: fit, ..limits }, Some(warning))
}
