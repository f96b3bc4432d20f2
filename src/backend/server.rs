//! One configured server: its addresses, how each of them is, who uses them.
//!
//! A server is *up* when one of its addresses is. What the configuration wants of it beside the others (weight, state,
//! `max_sessions`) is no part of it but of [`super::Backends`], so that a reload that changes these changes nothing here.
//! State changes are said once, with the reason; of several addresses each says its own, and the server says when the last
//! one is down and the first one up.
//! Not here: when addresses are looked up and looked at (`learn`), by which rules they are up (`health`).

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;

use super::balance;
use super::cures::{Cure, Link};
use super::dial::{self, Failure};
use super::health::{Change, Health, Standing};
use super::identity::{Caller, Untold};
use super::introduction;
use super::product::{self, Product};
use super::resolve::{Address, MAX_TARGETS, Target};
use super::{Known, News, Said, transparent};
use crate::config::settings::{self, Capabilities, Identity, ServerState};
use crate::dns::{self, Resolver};
use crate::log::sample::Sampled;
use crate::metrics::{BackendGauges, BackendMetrics};
use crate::proto::imap::capability::{self, Repair};
use crate::proto::imap::login::Dialect;
use crate::tls::backend::{Connector, IN_THE_CLEAR, is_exposed};

/// Sessions that dial one address at once.
const MAX_DIALS: usize = 32;

/// A reload that changes nothing of what it goes by keeps it; else another takes its place, which begins with what this one
/// knew.
pub struct Server {
    pub(super) goes_by: GoesBy,
    tls: Option<Connector>,
    /// The address as configured: the label and log field `backend`.
    pub name: Arc<str>,
    /// The name's hash.
    pub(super) key: u64,
    pub(super) repair: Arc<Repair>,
    pub(super) resolver: Arc<Resolver>,
    pub(super) news: Arc<News>,
    places: ArcSwap<Vec<Place>>,
    /// What the last one of its addresses said that answered.
    pub(super) known: ArcSwapOption<Known>,
    up: Arc<AtomicBool>,
    verdict: Mutex<Option<bool>>,
    /// Addresses of its name to which passwords would cross the Internet in plaintext.
    exposed: Mutex<Vec<IpAddr>>,
    /// Wakes [`super::learn::keep`]: an address was lost, the name may have others.
    pub(super) lost: Notify,
    /// For what goes wrong with one client after another. One line tells of all of them.
    troubles: Sampled,
    gauges: BackendGauges,
    pub metrics: Arc<BackendMetrics>,
    /// No longer of the configuration that is in force: whatever runs for it ends, and it says no more how it is.
    pub retired: CancellationToken,
}

/// All that the configuration says of how a server is spoken to.
#[derive(Clone, Eq, PartialEq)]
pub struct GoesBy {
    /// Its weight and `max_sessions` are nobody's business here, and of its state only whether it is down.
    pub server: settings::Server,
    pub capabilities: Capabilities,
    pub timeouts: dial::Timeouts,
    pub health: settings::Health,
}

/// An address in its server's list.
#[derive(Clone)]
pub struct Place {
    pub endpoint: Arc<Endpoint>,
    pub priority: u16,
    pub weight: u16,
    /// DNS does not name it any more.
    pub leaving: bool,
}

/// One address.
pub struct Endpoint {
    pub address: Address,
    /// The address's hash.
    pub(super) key: u64,
    pub(super) load: Arc<Load>,
    health: Mutex<Health>,
    known: ArcSwapOption<Known>,
    /// A session tries it although it is down.
    trial: AtomicBool,
    /// Wakes its watch: the next look may be due.
    pub(super) stirred: Notify,
    /// Who of the sessions may dial now: all that waited for it come at once when it is back.
    dials: Semaphore,
}

/// Who uses an address, whatever configuration they began with.
pub struct Load {
    pub(super) id: u64,
    sessions: AtomicUsize,
    /// Those of them whom it has not greeted yet.
    dialling: AtomicUsize,
    news: Arc<News>,
    metrics: Arc<BackendMetrics>,
}

/// A session's place at an address: counted as long as it lives. Empty only while it is given back.
pub struct Seat(Option<Arc<Load>>);

/// The place of a session that was not greeted yet: it counts as a [`Seat`] does, and is told apart from those in use.
pub struct Claim(Seat);

/// The only session that tries an address that is down and lets people wait.
pub struct Trial<'a>(&'a AtomicBool);

impl Server {
    pub(super) fn new(
        goes_by: GoesBy,
        tls: Option<Connector>,
        repair: &Arc<Repair>,
        resolver: &Arc<Resolver>,
        news: &Arc<News>,
        (metrics, gauges): (Arc<BackendMetrics>, BackendGauges),
        before: Option<&Arc<Self>>,
    ) -> Self {
        let name: Arc<str> = goes_by.server.address.to_string().into();
        let identity = goes_by.server.identity;
        let again =
            |known: Arc<Known>| Arc::new(Known::new(Arc::clone(&known.said), repair, identity));
        let mut places = Vec::new();
        // What it said in plaintext, or where others were trusted, is told to no client: it is as good as never seen.
        let knew = before.filter(|before| before.goes_by.server.tls == goes_by.server.tls);
        if let Some(before) = before {
            let was_down = before.is_out_of_use() || knew.is_none();
            places.extend(before.places.load().iter().map(|place| {
                let endpoint = place.endpoint.successor(was_down, goes_by.is_out_of_use());
                if knew.is_some() {
                    endpoint.known.store(place.endpoint.known.load_full().map(again));
                }
                Place { endpoint: Arc::new(endpoint), ..place.clone() }
            }));
        }
        let up = places.iter().any(|place| place.endpoint.is_up());
        Self {
            key: balance::hash(name.as_bytes()),
            repair: Arc::clone(repair),
            resolver: Arc::clone(resolver),
            news: Arc::clone(news),
            known: ArcSwapOption::new(knew.and_then(|before| before.known.load_full()).map(again)),
            up: Arc::new(up.into()),
            verdict: Mutex::new(up.then_some(true)),
            exposed: Mutex::default(),
            places: ArcSwap::from_pointee(places),
            lost: Notify::new(),
            troubles: Sampled::new(5),
            retired: CancellationToken::new(),
            goes_by,
            tls,
            name,
            gauges,
            metrics,
        }
    }

    /// Connects, for `caller` or for a look of our own, reads the greeting, and introduces the caller where that takes an ID.
    pub async fn dial(
        &self,
        endpoint: &Endpoint,
        caller: Option<&Caller<'_>>,
    ) -> Result<dial::Link, dial::Error> {
        let start = Instant::now();
        let GoesBy { server, timeouts, .. } = &self.goes_by;
        let mut link =
            dial::dial(&endpoint.address, server, self.tls.as_ref(), timeouts, caller).await?;
        self.metrics.connect_duration.observe(start.elapsed().as_secs_f64());
        if server.identity == Identity::DovecotId
            && let Some(caller) = caller
        {
            let reads_id = self.dialect(endpoint).id;
            introduction::introduce(&mut link, caller, reads_id, timeouts.greeting).await?;
        }
        self.on_untold(link.untold.as_ref());
        Ok(link)
    }

    /// Whether the server at `endpoint` would take this client for the proxy, though it should not.
    pub(super) fn hides(&self, client: IpAddr, endpoint: &Endpoint) -> bool {
        self.goes_by.server.identity == Identity::Transparent
            && transparent::source(client, &endpoint.address).is_none()
    }

    /// It did not decide on a login. `doubt`: nothing of the client's may be why.
    pub fn on_undecided(&self, endpoint: &Endpoint, why: &str, doubt: bool) {
        if let Some(not_logged) = self.sample(2) {
            let backend = &*self.name;
            tracing::warn!(backend, why, not_logged, "backend did not decide on a login");
        }
        if doubt {
            endpoint.health().on_undecided(Instant::now());
            endpoint.stirred.notify_one();
        }
    }

    fn on_untold(&self, untold: Option<&Untold>) {
        let Some(why) = untold else { return };
        if let Some(not_logged) = self.sample(0) {
            let (backend, why) = (&*self.name, why.to_string());
            tracing::warn!(backend, why, not_logged, "backend takes a client for the proxy");
        }
    }

    fn sample(&self, kind: usize) -> Option<u64> {
        self.troubles.on(kind, Ipv4Addr::UNSPECIFIED.into())
    }

    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    pub(super) fn up(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.up)
    }

    /// Whether it is up or down, as soon as that is known.
    pub(super) fn is_judged(&self) -> bool {
        self.verdict().is_some()
    }

    /// Down because the configuration says so.
    pub fn is_out_of_use(&self) -> bool {
        self.goes_by.is_out_of_use()
    }

    /// What the server at `endpoint` can read.
    pub fn dialect(&self, endpoint: &Endpoint) -> Dialect {
        let known = endpoint.known.load_full().or_else(|| self.known.load_full());
        known.map(|known| known.dialect).unwrap_or_default()
    }

    pub fn places(&self) -> Arc<Vec<Place>> {
        self.places.load_full()
    }

    /// Takes the addresses that the name has now. One that is gone and works stays for this time, as the last to be used; as
    /// long as not the `whole` question was answered it stays as it was.
    pub(super) fn adopt(&self, targets: &[Target], whole: bool) {
        self.warn_of_exposed(targets);
        let old = self.places();
        let mut places: Vec<Place> = targets
            .iter()
            .map(|Target { address, priority, weight }| {
                let known = old.iter().find(|place| place.endpoint.address == *address);
                let endpoint = match known {
                    Some(place) => Arc::clone(&place.endpoint),
                    None => Arc::new(self.endpoint(address.clone())),
                };
                Place { endpoint, priority: *priority, weight: *weight, leaving: false }
            })
            .collect();
        let gone = |place: &&Place| targets.iter().all(|t| t.address != place.endpoint.address);
        let gone = old.iter().filter(gone).filter(|one| one.endpoint.is_up());
        let staying = gone.filter(|one| !whole || !one.leaving);
        places.extend(staying.map(|one| Place { leaving: whole || one.leaving, ..one.clone() }));
        places.truncate(2 * MAX_TARGETS);
        self.places.store(Arc::new(places));
        self.judge(None);
    }

    /// Says so once of each public address that the name leads to, where the link has no TLS.
    fn warn_of_exposed(&self, targets: &[Target]) {
        let ips = targets.iter().filter_map(|target| match &target.address {
            Address::Ip(address) => Some(address.ip()),
            Address::Unix(_) => None,
        });
        let now: Vec<IpAddr> = ips.filter(|ip| is_exposed(&self.goes_by.server, *ip)).collect();
        let mut before = self.exposed.lock().unwrap_or_else(PoisonError::into_inner);
        let new = now.iter().find(|ip| !before.contains(ip)).copied();
        *before = now;
        drop(before);
        if let Some(address) = new
            && let Some(not_logged) = self.sample(4)
        {
            let (backend, address) = (&*self.name, address.to_string());
            tracing::warn!(
                backend,
                address,
                not_logged,
                "backend's name leads to a public address and it has no TLS: {IN_THE_CLEAR}"
            );
        }
    }

    fn endpoint(&self, address: Address) -> Endpoint {
        let load = Load::new(Arc::clone(&self.news), Arc::clone(&self.metrics));
        Endpoint::new(address, Arc::new(load), Health::new(false, Instant::now()))
    }

    /// The name gives no address.
    pub(super) fn on_unresolved(&self, why: dns::Error, first: bool) {
        let error = dial::Error::Resolve { host: self.name.to_string(), why };
        self.metrics.connect_failed(Failure::Resolve);
        if self.places().is_empty() {
            self.judge(Some(&error));
        } else if first {
            let (backend, error) = (&*self.name, error.to_string());
            tracing::warn!(backend, error, "backend keeps the addresses that it had");
        }
    }

    /// It told what it can do.
    pub(super) fn on_good(
        &self,
        endpoint: &Endpoint,
        known: Known,
        took: Duration,
        rest: Duration,
    ) {
        let before = endpoint.known.load_full().or_else(|| self.known.load_full());
        let known = Arc::new(known);
        endpoint.known.store(Some(Arc::clone(&known)));
        self.known.store(Some(Arc::clone(&known)));
        let was_up = self.is_up();
        let was_full = endpoint.health().is_full();
        let change = endpoint.health().on_good(took, rest, Instant::now());
        self.judge(None);
        let (backend, address) = (&*self.name, self.shown(endpoint));
        let new = before.is_none_or(|before| before.told.capabilities != known.told.capabilities);
        if new {
            let capabilities = &*String::from_utf8_lossy(&known.told.capabilities);
            tracing::info!(backend, address, capabilities, "backend is up");
            if known.login_disabled {
                tracing::warn!(
                    backend,
                    cure = self.login_disabled(&known.said),
                    "backend advertises LOGINDISABLED: it refuses passwords on a connection that it takes for unencrypted; \
                     hiding the word from clients does not make logins work, `imaps-proxy doctor` says more"
                );
            }
        } else if change.is_some() && !was_up {
            tracing::info!(backend, address, "backend is up again");
        } else if change.is_some() {
            tracing::info!(backend, address, "backend's address is up");
        }
        if change.is_some() && was_up || was_full {
            self.news.tell(); // else it was told of the server
        }
    }

    /// What makes it accept passwords.
    fn login_disabled(&self, said: &Said) -> String {
        let Said { text: greeting, capabilities, us } = said;
        let said = product::Said { greeting, capabilities, id: b"" };
        let server = &self.goes_by.server;
        let starttls = server.tls.is_none() && capability::has(capabilities, b"STARTTLS");
        let link = Link {
            product: Product::of(&said),
            identity: &server.identity,
            proxy: *us,
            offers_starttls: starttls,
        };
        link.login_disabled().first().map(Cure::line).unwrap_or_default()
    }

    pub(super) fn on_bad_look(&self, endpoint: &Endpoint, failure: Failure, error: &dyn ToString) {
        if self.on_full(endpoint, failure, true) {
            return;
        }
        let was_up = endpoint.is_up();
        let change = endpoint.health().on_bad_look(failure, Instant::now());
        // An address that never answers beside one that does is counted once, not at every look.
        if was_up || !self.is_up() || change.is_some() {
            self.metrics.connect_failed(failure);
        }
        self.on_bad(endpoint, change, was_up, error);
    }

    /// A session that dialled at `start` could not use it: out at once, until it was looked at. If it may be the client whom the
    /// server does not want, a look of our own tells, and the others are sent to it until then. True: it only is full.
    pub fn on_bad_dial(&self, endpoint: &Endpoint, error: &dial::Error, start: Instant) -> bool {
        let (failure, was_up) = (error.failure(), endpoint.is_up());
        if self.goes_by.server.identity.may_explain(failure) {
            self.metrics.connect_failed(failure);
            if was_up && let Some(not_logged) = self.sample(1) {
                let (backend, error) = (&*self.name, error.to_string());
                tracing::warn!(backend, error, not_logged, "backend does not serve a client");
            }
            self.on_doubt(endpoint);
            return false;
        }
        if self.on_full(endpoint, failure, false) {
            return true;
        }
        self.metrics.connect_failed(failure);
        let change = endpoint.health().on_bad_dial(failure, start, Instant::now());
        endpoint.stirred.notify_one();
        self.on_bad(endpoint, change, was_up, error);
        false
    }

    /// Whether it turned a look or a session away because it serves as many as it can: it works, and sessions live there.
    fn on_full(&self, endpoint: &Endpoint, failure: Failure, a_look: bool) -> bool {
        let sessions = endpoint.load.greeted();
        if !failure.turns_away() || !endpoint.is_up() || sessions == 0 {
            return false;
        }
        endpoint.health().on_full(a_look, Instant::now());
        endpoint.stirred.notify_one();
        self.metrics.connect_failed(Failure::Full);
        if let Some(not_logged) = self.sample(3) {
            let (backend, address) = (&*self.name, self.shown(endpoint));
            tracing::warn!(
                backend,
                address,
                sessions,
                not_logged,
                "backend is full: it turns connections away while sessions of it live"
            );
        }
        true
    }

    fn on_bad(
        &self,
        endpoint: &Endpoint,
        change: Option<Change>,
        was_up: bool,
        error: &dyn ToString,
    ) {
        let Some(change) = change else { return };
        if was_up {
            self.metrics.ejections.inc();
        }
        self.lost.notify_one();
        let told = self.judge(Some(error));
        let (backend, address, error) = (&*self.name, self.shown(endpoint), error.to_string());
        if told {
        } else if !self.is_up() && change == Change::Otherwise {
            tracing::warn!(backend, address, error, "backend is down");
        } else if was_up {
            tracing::warn!(backend, address, error, "backend's address is down");
        } else if *self.verdict() != Some(false) {
            // Such as the other family of a name.
            tracing::info!(backend, address, error, "backend's address does not work");
        }
    }

    /// Somebody waits for it longer than usual.
    pub fn on_doubt(&self, endpoint: &Endpoint) {
        endpoint.health().on_doubt(Instant::now());
        endpoint.stirred.notify_one();
    }

    /// Whether the server as a whole is up. Says so when it was up and is not, and counts; true if it said so.
    fn judge(&self, error: Option<&dyn ToString>) -> bool {
        let mut verdict = self.verdict();
        let places = self.places();
        let standings = places.iter().map(|place| place.endpoint.health().standing());
        let standings: Vec<Standing> = standings.collect();
        let works = |standing: &&Standing| matches!(standing, Standing::Up | Standing::Doubted);
        let working = standings.iter().filter(works).count();
        let (was, up) = (*verdict, working > 0);
        let unsure =
            standings.contains(&Standing::Unseen) || (places.is_empty() && error.is_none());
        if up || !unsure {
            *verdict = Some(up);
        }
        self.up.store(up, Ordering::Relaxed);
        if !self.retired.is_cancelled() {
            self.gauges.set(up, working, standings.len() - working);
        }
        let now = *verdict;
        drop(verdict);
        if up && was != Some(true) || was.is_none() && now.is_some() {
            self.news.tell();
        }
        let down = now == Some(false) && was != Some(false);
        if down {
            let error = error.map(ToString::to_string);
            tracing::warn!(backend = &*self.name, error, "backend is down");
        }
        down
    }

    fn verdict(&self) -> MutexGuard<'_, Option<bool>> {
        self.verdict.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The address, where the name does not say it.
    fn shown(&self, endpoint: &Endpoint) -> Option<String> {
        Some(endpoint.address.to_string()).filter(|address| **address != *self.name)
    }

    pub(super) fn show(&self) {
        self.judge(None);
    }
}

impl Identity {
    /// Whether the server may have failed because of the one client that it was told of.
    fn may_explain(self, failure: Failure) -> bool {
        use Failure as F;
        match self {
            Self::None => false,
            Self::DovecotId => failure == F::Id,
            // Perhaps only the way back to this client is missing.
            Self::Transparent => true,
            // The header goes first, before TLS too.
            Self::ProxyV1 | Self::ProxyV2(_) => matches!(
                failure,
                F::Closed | F::Bye | F::GreetingTimeout | F::NotImap | F::Starttls | F::Tls
            ),
        }
    }
}

impl GoesBy {
    pub(super) fn new(settings: &settings::Settings, server: &settings::Server) -> Self {
        let state = match server.state {
            ServerState::Down => ServerState::Down,
            ServerState::Active | ServerState::Drain => ServerState::Active,
        };
        let backend = &settings.backend;
        Self {
            server: settings::Server { weight: 1, max_sessions: None, state, ..server.clone() },
            capabilities: backend.capabilities.clone(),
            timeouts: dial::Timeouts {
                connect: backend.connect_timeout,
                greeting: settings.timeouts.backend_greeting,
            },
            health: backend.health,
        }
    }

    pub fn is_out_of_use(&self) -> bool {
        self.server.state == ServerState::Down
    }
}

impl Endpoint {
    fn new(address: Address, load: Arc<Load>, health: Health) -> Self {
        Self {
            key: balance::hash(address.to_string().as_bytes()),
            address,
            load,
            health: Mutex::new(health),
            known: ArcSwapOption::empty(),
            trial: AtomicBool::new(false),
            stirred: Notify::new(),
            dials: Semaphore::new(MAX_DIALS),
        }
    }

    /// The same address under another configuration, to be looked at at once.
    fn successor(&self, was_out: bool, is_out: bool) -> Self {
        let now = Instant::now();
        let health =
            if was_out || is_out { Health::new(was_out, now) } else { self.health().again(now) };
        Self::new(self.address.clone(), Arc::clone(&self.load), health)
    }

    pub fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_up(&self) -> bool {
        self.health().is_up()
    }

    pub fn sessions(&self) -> usize {
        self.load.sessions.load(Ordering::Relaxed)
    }

    /// Leave to dial it for a session, kept until that is over. Nobody closes the queue.
    pub async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        self.dials.acquire().await.ok()
    }

    /// A place for one session, if its server has less than `max`.
    pub fn claim(&self, max: Option<usize>) -> Option<Claim> {
        let admitted = self.load.metrics.enter(max);
        admitted.then(|| {
            self.load.dialling.fetch_add(1, Ordering::Relaxed);
            self.load.sessions.fetch_add(1, Ordering::Relaxed);
            Claim(Seat(Some(Arc::clone(&self.load))))
        })
    }

    /// Leave to try it although it is down; where that takes time, for one at a time.
    pub fn trial(&self) -> Option<Option<Trial<'_>>> {
        if !self.health().fails_slowly() {
            return Some(None);
        }
        let taken = self.trial.swap(true, Ordering::Relaxed);
        (!taken).then(|| Some(Trial(&self.trial)))
    }
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl Load {
    fn new(news: Arc<News>, metrics: Arc<BackendMetrics>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let none = || AtomicUsize::new(0);
        Self { id, sessions: none(), dialling: none(), news, metrics }
    }

    /// Sessions that it serves.
    fn greeted(&self) -> usize {
        let dialling = self.dialling.load(Ordering::Relaxed);
        self.sessions.load(Ordering::Relaxed).saturating_sub(dialling)
    }

    fn leave(&self) {
        self.sessions.fetch_sub(1, Ordering::Relaxed);
        self.metrics.leave();
    }
}

impl Claim {
    /// The server has greeted.
    pub fn greeted(mut self) -> Seat {
        self.take()
    }

    /// It was taken for nothing.
    pub fn give_back(mut self) {
        self.take().give_back();
    }

    /// In use from here on, if only until it is dropped: a reader never finds fewer of those than there are.
    fn take(&mut self) -> Seat {
        if let Some(load) = &self.0.0 {
            load.dialling.fetch_sub(1, Ordering::Relaxed);
        }
        Seat(self.0.0.take())
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.take();
    }
}

impl Seat {
    pub fn metrics(&self) -> Option<&BackendMetrics> {
        self.0.as_ref().map(|load| &*load.metrics)
    }

    /// It was taken for nothing: that is news only if somebody missed it meanwhile. Else those who wait for room would
    /// wake each other with their own attempts.
    fn give_back(mut self) {
        let Some(load) = self.0.take() else { return };
        load.leave();
        if load.metrics.was_found_full() {
            load.news.tell_one();
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let Some(load) = self.0.take() else { return };
        load.leave();
        load.news.tell_one();
    }
}
