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
use tokio::sync::Notify;

use crate::admin::Readiness;
use crate::config::settings;
use crate::metrics::{BackendMetrics, Metrics};
use crate::proto::imap::capability::Repair;
use crate::proto::imap::login::Dialect;
use identity::Caller;

/// All servers, in the order of the configuration.
pub struct Backends {
    servers: Vec<Server>,
    pub repair: Repair,
    pub timeouts: dial::Timeouts,
    resolver: connect::Resolver,
    readiness: Arc<Readiness>,
}

/// One server.
pub struct Server {
    index: usize,
    settings: settings::Server,
    /// The address as configured: the label and log field `backend`.
    pub name: Arc<str>,
    up: AtomicBool,
    known: ArcSwapOption<Known>,
    /// Wakes [`learn::keep`] when a login found the server down.
    lost: Notify,
    pub metrics: Arc<BackendMetrics>,
}

/// What a server said of itself, ready for clients.
pub struct Known {
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
    pub fn new(
        settings: &settings::Settings,
        metrics: &Metrics,
        readiness: Arc<Readiness>,
    ) -> Self {
        let servers = settings.backend.servers.iter().enumerate();
        let servers = servers.map(|(index, server)| Server {
            index,
            settings: server.clone(),
            name: server.address.to_string().into(),
            up: AtomicBool::new(false),
            known: ArcSwapOption::empty(),
            lost: Notify::new(),
            metrics: Arc::clone(metrics.backend(index)),
        });
        let edits = &settings.backend.capabilities;
        Self {
            servers: servers.collect(),
            repair: Repair::new(&edits.hide, &edits.add),
            timeouts: dial::Timeouts {
                connect: settings.backend.connect_timeout,
                greeting: settings.timeouts.backend_greeting,
            },
            resolver: connect::Resolver::default(),
            readiness,
        }
    }

    pub fn servers(&self) -> &[Server] {
        &self.servers
    }

    /// What clients are greeted with: by the first server that is up, else by the first that was ever seen.
    pub fn known(&self) -> Option<Arc<Known>> {
        self.in_order().find_map(|server| server.known.load_full())
    }

    /// Those that are up first, each group in the configuration's order.
    pub fn in_order(&self) -> impl Iterator<Item = &Server> {
        let mut servers: Vec<(bool, &Server)> =
            self.servers.iter().map(|s| (!s.is_up(), s)).collect();
        servers.sort_by_key(|(down, _)| *down);
        servers.into_iter().map(|(_, server)| server)
    }

    /// Connects to one server, for `caller` or for a look of our own, and reads its greeting. One that can't be used is down until [`learn`] has seen it again.
    pub async fn dial(
        &self,
        server: &Server,
        caller: Option<&Caller<'_>>,
    ) -> Result<dial::Link, dial::Error> {
        let start = std::time::Instant::now();
        let result = dial::dial(&self.resolver, &server.settings, &self.timeouts, caller).await;
        match &result {
            Ok(_) => server.metrics.connect_duration.observe(start.elapsed().as_secs_f64()),
            Err(error) => {
                let failure = error.failure();
                server.metrics.connect_failed(failure);
                // Our own lack of descriptors says nothing about the server.
                if failure != dial::Failure::OutOfDescriptors {
                    self.set_up(server, false);
                }
            }
        }
        result
    }

    fn set_up(&self, server: &Server, up: bool) {
        if server.up.swap(up, Ordering::Relaxed) && !up {
            server.lost.notify_one();
        }
        server.metrics.up.set(i64::from(up));
        self.readiness.set_backend_up(server.index, up);
    }
}

impl Server {
    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    pub fn dialect(&self) -> Dialect {
        self.known.load().as_ref().map(|known| known.dialect).unwrap_or_default()
    }
}
