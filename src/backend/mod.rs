//! The backend servers: which there are, what is wanted of each, which one to try first. Nothing per connection.
//!
//! `resolve` finds the addresses of a server, `learn` looks at each of them and keeps doing so, `health` says by what rules one
//! is up, `balance` in which order they are tried; `dial` connects. Names are looked up by our own resolver (`dns`), so that
//! no thread waits for DNS, and never on the way of a session.

pub mod resolve;

pub mod stream;

pub mod connect;

pub mod transparent;

pub mod identity;

pub mod product;

pub mod cures;

pub mod secure;

pub mod introduction;

pub mod dial;

pub mod health;

pub mod server;

pub mod balance;

pub mod learn;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::admin::BackendState;
use crate::config::settings::{self, Balance, Identity, ServerState};
use crate::dns::Resolver;
use crate::metrics::Metrics;
use crate::proto::imap::capability::{self, Repair};
use crate::proto::imap::login::Dialect;
use crate::tls::backend::Connector;
use balance::{Candidate, Tier, Turns};
use health::Standing;
use server::{Endpoint, GoesBy, Server};

/// How often it is said that clients are turned away.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// All servers of one configuration, in its order.
pub struct Backends {
    members: Vec<Member>,
    servers: Vec<Arc<Server>>,
    balance: Balance,
    slow_start: Duration,
    turns: Mutex<Turns>,
    said_full: Mutex<Option<Instant>>,
    pub repair: Arc<Repair>,
    resolver: Arc<Resolver>,
    pub news: Arc<News>,
    /// How long a client may wait for a server to come up.
    pub hold: Duration,
}

/// A server and what the configuration wants of it.
struct Member {
    server: Arc<Server>,
    weight: f64,
    state: ServerState,
    max_sessions: Option<usize>,
}

/// One address that a session may use.
#[derive(Clone)]
pub struct Choice {
    pub server: Arc<Server>,
    pub endpoint: Arc<Endpoint>,
    pub tier: Tier,
    pub max_sessions: Option<usize>,
}

/// Wakes those who wait for a server.
#[derive(Default)]
pub struct News {
    came: Notify,
    /// One of those who found no room may look again.
    room: Notify,
    /// Those of the configuration that is in force.
    current: ArcSwapOption<Backends>,
}

/// What a server said of itself.
pub struct Said {
    /// The greeting's words for people.
    text: Vec<u8>,
    capabilities: Vec<u8>,
    /// From where it saw us.
    us: Option<IpAddr>,
}

/// The same, ready for clients.
pub struct Known {
    said: Arc<Said>,
    pub told: Told,
    /// The same for clients who have to say STARTTLS first.
    pub told_before_tls: Told,
    /// It tells every client the same; one that we speak to from the client's own address may not.
    pub of_all_clients: bool,
    /// What the server itself can read.
    pub dialect: Dialect,
    /// It refuses passwords on what it takes for an unencrypted connection (RFC 9051 §6.2.3).
    pub login_disabled: bool,
}

/// What clients are told of a server.
pub struct Told {
    /// `* OK [CAPABILITY …] text`, with its CRLF.
    pub greeting: Vec<u8>,
    /// The words of the repaired capability list, as far as they are true before login.
    pub capabilities: Vec<u8>,
}

impl Backends {
    /// Servers of `before` that are spoken to as before stay the same. `connectors`: for each server its TLS, if it has any.
    pub fn new(
        settings: &settings::Settings,
        connectors: Vec<Option<Connector>>,
        metrics: &Metrics,
        before: Option<&Self>,
    ) -> Self {
        let settings::Backend { servers, balance, hold, health, capabilities, .. } =
            &settings.backend;
        let repair = Arc::new(Repair::new(&capabilities.hide, &capabilities.add));
        let resolver = before.map_or_else(Arc::default, |before| Arc::clone(&before.resolver));
        let news = before.map_or_else(Arc::default, |before| Arc::clone(&before.news));
        let mut free: Vec<&Arc<Server>> = before.iter().flat_map(|b| &b.servers).collect();
        let server = |(server, tls): (&settings::Server, Option<Connector>)| {
            let goes_by = GoesBy::new(settings, server);
            if let Some(at) = free.iter().position(|before| before.goes_by == goes_by) {
                return Arc::clone(free.swap_remove(at));
            }
            let like = |before: &&Arc<Server>| before.goes_by.server.address == server.address;
            let known = before.and_then(|before| before.servers.iter().find(like));
            let name = server.address.to_string();
            let series = (metrics.backend(&name), metrics.backend_gauges(&name));
            Arc::new(Server::new(goes_by, tls, &repair, &resolver, &news, series, known))
        };
        let servers_now: Vec<Arc<Server>> = servers.iter().zip(connectors).map(server).collect();
        let members = servers.iter().zip(&servers_now).map(|(settings, server)| Member {
            server: Arc::clone(server),
            weight: settings.weight as f64,
            state: settings.state,
            max_sessions: settings.max_sessions,
        });
        Self {
            members: members.collect(),
            servers: servers_now,
            balance: *balance,
            slow_start: health.slow_start,
            turns: Mutex::default(),
            said_full: Mutex::default(),
            repair,
            resolver,
            news,
            hold: *hold,
        }
    }

    /// For each server of another configuration, whether one of these would stay for it.
    pub fn kept(&self, settings: &settings::Settings) -> Vec<bool> {
        let mut free: Vec<&Arc<Server>> = self.servers.iter().collect();
        let stays = |server| {
            let goes_by = GoesBy::new(settings, server);
            let at = free.iter().position(|one| one.goes_by == goes_by);
            at.map(|at| free.swap_remove(at)).is_some()
        };
        settings.backend.servers.iter().map(stays).collect()
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

    /// If none that takes sessions is up: those of them that `before` does not have.
    pub fn without_any_up(&self, before: &Self) -> Option<Vec<Arc<Server>>> {
        let takes = || self.members.iter().filter(|one| one.state == ServerState::Active);
        if takes().any(|one| one.server.is_up()) {
            return None;
        }
        let new = |one: &Arc<Server>| before.servers.iter().all(|old| !Arc::ptr_eq(old, one));
        let servers = takes().map(|one| &one.server).filter(|one| new(one));
        Some(servers.cloned().collect())
    }

    /// Takes the place of `before`: servers that are not wanted any more, or otherwise, are retired.
    pub fn replace(self: &Arc<Self>, before: Option<&Self>, metrics: &Metrics) {
        for retired in before.iter().flat_map(|before| before.without(Some(self))) {
            retired.retired.cancel();
            if self.servers.iter().all(|server| server.name != retired.name) {
                metrics.backend_gone(&retired.name);
            }
        }
        for Member { server, state, .. } in &self.members {
            server.show();
            metrics.backend_state(&server.name, *state);
        }
        self.news.current.store(Some(Arc::clone(self)));
        self.news.tell();
    }

    /// Those that took its place: who waits for a server waits for what the operator wants now.
    pub fn in_force(self: &Arc<Self>) -> Arc<Self> {
        self.news.current.load_full().unwrap_or_else(|| Arc::clone(self))
    }

    /// For the readiness probe: those that take sessions.
    pub fn states(&self) -> Vec<BackendState> {
        let takes = self.members.iter().filter(|one| one.state == ServerState::Active);
        takes.map(|one| (Arc::clone(&one.server.name), one.server.up())).collect()
    }

    /// What clients are greeted with: by the first server in use that is up, else by one that was ever seen.
    pub fn known(&self) -> Option<Arc<Known>> {
        let mut members: Vec<&Member> = self.members.iter().collect();
        members.sort_by_key(|one| (one.state != ServerState::Active, !one.server.is_up()));
        members.into_iter().find_map(|one| one.server.known.load_full())
    }

    /// The addresses that a session of this client may use, best first; and whether there were others that have all the
    /// sessions that they may have.
    pub fn choose(&self, client: IpAddr) -> (Vec<Choice>, bool) {
        let (now, mut full) = (Instant::now(), false);
        let (mut choices, mut candidates) = (Vec::new(), Vec::new());
        for (at, member) in self.members.iter().enumerate() {
            let Member { server, weight, state, max_sessions } = member;
            if *state != ServerState::Active {
                continue;
            }
            if server.metrics.is_full(*max_sessions) {
                full = true;
                continue;
            }
            for place in server.places().iter() {
                let endpoint = &place.endpoint;
                let health = endpoint.health();
                let tier = match health.standing() {
                    Standing::Up if !place.leaving && !server.hides(client, endpoint) => Tier::Good,
                    Standing::Up | Standing::Doubted => Tier::Doubtful,
                    Standing::Unseen => Tier::Unseen,
                    Standing::Down => Tier::Down,
                };
                candidates.push(Candidate {
                    id: endpoint.load.id,
                    server: at,
                    server_key: server.key,
                    key: endpoint.key,
                    tier,
                    priority: place.priority,
                    server_weight: *weight,
                    weight: place.weight,
                    sessions: endpoint.sessions(),
                    ramp: health.ramp(self.slow_start, now),
                });
                drop(health);
                let (server, endpoint) = (Arc::clone(server), Arc::clone(endpoint));
                choices.push(Some(Choice { server, endpoint, tier, max_sessions: *max_sessions }));
            }
        }
        if candidates.iter().all(|one| one.tier > Tier::Doubtful) {
            self.want(&choices, now);
        }
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        let order = turns.order(self.balance, &candidates, client);
        drop(turns);
        (order.into_iter().filter_map(|at| choices[at].take()).collect(), full)
    }

    /// Somebody was turned away because of `max_sessions`, or by servers without room; a line a minute tells.
    pub fn say_full(&self) {
        let (now, mut said) =
            (Instant::now(), self.said_full.lock().unwrap_or_else(PoisonError::into_inner));
        if said.is_none_or(|said| now.saturating_duration_since(said) >= SAY_AGAIN) {
            *said = Some(now);
            tracing::warn!(
                "every backend that works is full, by max_sessions or by itself: clients are turned away"
            );
        }
    }

    /// None of them works: they are asked again, and so is DNS.
    fn want(&self, choices: &[Option<Choice>], now: Instant) {
        for Choice { endpoint, .. } in choices.iter().flatten() {
            endpoint.health().on_wanted(now);
            endpoint.stirred.notify_one();
        }
        self.servers.iter().for_each(|server| server.lost.notify_one());
    }
}

impl News {
    /// Something may work now that did not.
    pub fn tell(&self) {
        self.came.notify_waiters();
    }

    /// A session has left: one of those who found no room may have its place.
    fn tell_one(&self) {
        self.room.notify_one();
    }

    /// Resolves when it is this one's turn to look for room again, if it is enabled before it looks for the first time.
    /// Dropped before it was asked, it passes its turn on.
    pub fn room(&self) -> Notified<'_> {
        self.room.notified()
    }

    /// Resolves with the first news after this call, whenever it is first polled.
    pub fn next(&self) -> Notified<'_> {
        self.came.notified()
    }
}

impl Known {
    fn new(said: Arc<Said>, repair: &Repair, identity: Identity) -> Self {
        let Said { text, capabilities: list, .. } = &*said;
        let (mut all, mut capabilities, mut before_tls) = (Vec::new(), Vec::new(), Vec::new());
        repair.words(list, &mut all);
        capability::before_login(&all, &mut capabilities);
        capability::before_tls(&capabilities, &mut before_tls);
        let told = |capabilities: Vec<u8>| {
            let greeting =
                [b"* OK [CAPABILITY ", &capabilities[..], b"] ", &text[..], b"\r\n"].concat();
            Told { greeting, capabilities }
        };
        Self {
            told: told(capabilities),
            told_before_tls: told(before_tls),
            of_all_clients: identity != Identity::Transparent,
            dialect: Dialect::of(list),
            login_disabled: capability::has(list, b"LOGINDISABLED"),
            said,
        }
    }
}
