//! The backend servers: their names, what is known of them, which one to try first. Nothing per connection.
//!
//! A server is *up* when it answered [`learn`] and no login has found it down since. Names are looked up
//! by our own resolver, so that no thread waits for DNS.

pub mod connect;

pub mod identity;

pub mod product;

pub mod cures;

pub mod dial;

pub mod learn;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwapOption;
use prometheus::IntGauge;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::admin::BackendState;
use crate::config::settings::{self, Capabilities};
use crate::metrics::{BackendMetrics, Metrics};
use crate::proto::imap::capability::{self, Repair};
use crate::proto::imap::login::Dialect;
use identity::Caller;

/// All servers of one configuration, in its order.
pub struct Backends {
    servers: Vec<Arc<Server>>,
    pub repair: Arc<Repair>,
    resolver: Arc<connect::Resolver>,
}

/// One server. A reload that changes nothing of what it goes by keeps it; else another takes its place, which begins with what this
/// one knew.
pub struct Server {
    goes_by: GoesBy,
    /// The address as configured: the label and log field `backend`.
    pub name: Arc<str>,
    repair: Arc<Repair>,
    resolver: Arc<connect::Resolver>,
    up: Arc<AtomicBool>,
    known: ArcSwapOption<Known>,
    /// Wakes [`learn::keep`] when a login found the server down.
    lost: Notify,
    up_metric: IntGauge,
    pub metrics: Arc<BackendMetrics>,
    /// No longer of the configuration that is in force: whatever runs for it ends, and it says no more how it is.
    pub retired: CancellationToken,
}

/// All that the configuration says of a server.
#[derive(Clone, Eq, PartialEq)]
struct GoesBy {
    server: settings::Server,
    capabilities: Capabilities,
    timeouts: dial::Timeouts,
}

/// What a server said of itself.
pub struct Said {
    /// The greeting's words for people.
    text: Vec<u8>,
    capabilities: Vec<u8>,
}

/// The same, ready for clients.
pub struct Known {
    said: Arc<Said>,
    pub told: Told,
    /// The same for clients who have to say STARTTLS first.
    pub told_before_tls: Told,
    /// What the server itself can read.
    pub dialect: Dialect,
    /// It refuses passwords on what it takes for an unencrypted connection (RFC 9051 §6.2.3).
    pub login_disabled: bool,
}

/// What clients are told of a server.
pub struct Told {
    /// `* OK [CAPABILITY …] text`, with its CRLF.
    pub greeting: Vec<u8>,
    /// The words of the repaired capability list.
    pub capabilities: Vec<u8>,
}

impl Backends {
    /// Servers of `before` that are wanted as they are stay the same.
    pub fn new(settings: &settings::Settings, metrics: &Metrics, before: Option<&Self>) -> Self {
        let edits = &settings.backend.capabilities;
        let repair = Arc::new(Repair::new(&edits.hide, &edits.add));
        let resolver = before.map_or_else(Arc::default, |before| Arc::clone(&before.resolver));
        let timeouts = dial::Timeouts {
            connect: settings.backend.connect_timeout,
            greeting: settings.timeouts.backend_greeting,
        };
        let mut free: Vec<&Arc<Server>> = before.iter().flat_map(|b| &b.servers).collect();
        let servers = settings.backend.servers.iter().map(|server| {
            let goes_by = GoesBy { server: server.clone(), capabilities: edits.clone(), timeouts };
            if let Some(at) = free.iter().position(|before| before.goes_by == goes_by) {
                return Arc::clone(free.swap_remove(at));
            }
            let like = |before: &&Arc<Server>| before.goes_by.server.address == server.address;
            let known = before.and_then(|before| before.servers.iter().find(like));
            Arc::new(Server::new(goes_by, &repair, &resolver, metrics, known))
        });
        let servers = servers.collect();
        Self { servers, repair, resolver }
    }

    pub fn servers(&self) -> &[Arc<Server>] {
        &self.servers
    }

    /// Those that `others` does not have.
    pub fn without<'a>(
        &'a self,
        others: Option<&'a Self>,
    ) -> impl Iterator<Item = &'a Arc<Server>> {
        let has = |others: &Self, one| others.servers.iter().any(|other| Arc::ptr_eq(other, one));
        self.servers.iter().filter(move |one| !others.is_some_and(|others| has(others, one)))
    }

    /// Takes the place of `before`: servers that are not wanted any more, or otherwise, are retired.
    pub fn replace(&self, before: &Self, metrics: &Metrics) {
        for retired in before.without(Some(self)) {
            retired.retired.cancel();
            if self.servers.iter().all(|server| server.name != retired.name) {
                metrics.backend_gone(&retired.name);
            }
        }
        self.servers.iter().for_each(|server| server.up_metric.set(server.is_up().into()));
    }

    /// For the readiness probe.
    pub fn states(&self) -> Vec<BackendState> {
        self.servers.iter().map(|one| (Arc::clone(&one.name), Arc::clone(&one.up))).collect()
    }

    /// What clients are greeted with: by the first server that is up, else by the first that was ever seen.
    pub fn known(&self) -> Option<Arc<Known>> {
        self.in_order().find_map(|server| server.known.load_full())
    }

    /// Those that are up first, each group in the configuration's order.
    pub fn in_order(&self) -> impl Iterator<Item = &Server> {
        let mut servers: Vec<(bool, &Server)> =
            self.servers.iter().map(|s| (!s.is_up(), &**s)).collect();
        servers.sort_by_key(|(down, _)| *down);
        servers.into_iter().map(|(_, server)| server)
    }
}

impl Server {
    fn new(
        goes_by: GoesBy,
        repair: &Arc<Repair>,
        resolver: &Arc<connect::Resolver>,
        metrics: &Metrics,
        before: Option<&Arc<Self>>,
    ) -> Self {
        let name: Arc<str> = goes_by.server.address.to_string().into();
        let known = before.and_then(|before| before.known.load_full());
        let known = known.map(|known| Arc::new(Known::new(Arc::clone(&known.said), repair)));
        Self {
            up: Arc::new(before.is_some_and(|before| before.is_up()).into()),
            known: ArcSwapOption::new(known),
            lost: Notify::new(),
            up_metric: metrics.backend_up(&name),
            metrics: metrics.backend(&name),
            retired: CancellationToken::new(),
            repair: Arc::clone(repair),
            resolver: Arc::clone(resolver),
            goes_by,
            name,
        }
    }

    /// Connects, for `caller` or for a look of our own, and reads the greeting. A server that can't be used is down until
    /// [`learn`] has seen it again.
    pub async fn dial(&self, caller: Option<&Caller<'_>>) -> Result<dial::Link, dial::Error> {
        let start = std::time::Instant::now();
        let GoesBy { server, timeouts, .. } = &self.goes_by;
        let result = dial::dial(&self.resolver, server, timeouts, caller).await;
        match &result {
            Ok(_) => self.metrics.connect_duration.observe(start.elapsed().as_secs_f64()),
            Err(error) => {
                let failure = error.failure();
                self.metrics.connect_failed(failure);
                // Our own lack of descriptors says nothing about the server.
                if failure != dial::Failure::OutOfDescriptors {
                    self.set_up(false);
                }
            }
        }
        result
    }

    fn set_up(&self, up: bool) {
        if self.up.swap(up, Ordering::Relaxed) && !up {
            self.lost.notify_one();
        }
        if !self.retired.is_cancelled() {
            self.up_metric.set(up.into());
        }
    }

    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    pub fn dialect(&self) -> Dialect {
        self.known.load().as_ref().map(|known| known.dialect).unwrap_or_default()
    }
}

impl Known {
    fn new(said: Arc<Said>, repair: &Repair) -> Self {
        let Said { text, capabilities: list } = &*said;
        let (mut capabilities, mut before_tls) = (Vec::new(), Vec::new());
        repair.words(list, &mut capabilities);
        capability::before_tls(&capabilities, &mut before_tls);
        let told = |capabilities: Vec<u8>| {
            let greeting =
                [b"* OK [CAPABILITY ", &capabilities[..], b"] ", &text[..], b"\r\n"].concat();
            Told { greeting, capabilities }
        };
        Self {
            told: told(capabilities),
            told_before_tls: told(before_tls),
            dialect: Dialect::of(list),
            login_disabled: capability::has(list, b"LOGINDISABLED"),
            said,
        }
    }
}
