//! Every metric: name, help, labels, buckets.
//!
//! Prefix `imaps_proxy_`, base units, counted when a thing ends. Every label value comes from a closed list
//! of ours, the configuration or the operator's certificates, so nothing that a client sends can ever make a series; each
//! series that can exist is there as 0 from the start, but for those of certificates and lists that are not there. What the data path touches is resolved once and is then one atomic addition.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::time::Duration;

use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, opts,
};
use strum::VariantArray as _;

use crate::backend::dial;
use crate::config::settings::ServerState;
use crate::conn::close::Reason;
use crate::conn::failure::Failure;
use crate::conn::refused::UNTAGGED;
use crate::conn::tls::Handshake;
use crate::log::queue::Kind;
use crate::proto::client_hello::Version;
use crate::proto::imap::command;
use crate::proto::imap::follow::Verb;
use crate::proto::imap::sasl::Mechanism;
use crate::tls::Part;
use crate::tls::names::Match;
use crate::tls::store::State;

/// Where a session stands: the label `phase`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, strum::IntoStaticStr, strum::VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Phase {
    Handshake,
    Login,
    Active,
    /// In IMAP IDLE (RFC 2177).
    Idle,
}

/// How a login attempt ended: the label and log field `result`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, strum::IntoStaticStr, strum::VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum LoginResult {
    Ok,
    Rejected,
    Unavailable,
    Aborted,
}

/// What the configuration can want of a server: the label `state`.
const STATES: [(ServerState, &str); 3] =
    [(ServerState::Active, "active"), (ServerState::Drain, "drain"), (ServerState::Down, "down")];

const SECONDS_OF_TLS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];
const SECONDS_OF_CONNECT: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];
const SECONDS_OF_LOGIN: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 60.0];
const SECONDS_OF_COMMAND: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];
const SECONDS_OF_SESSION: &[f64] =
    &[1.0, 10.0, 60.0, 300.0, 1800.0, 3600.0, 14400.0, 43200.0, 86400.0, 604_800.0];

/// Of the whole process, since the log begins before everything else and is there once.
static LOG_LINES_DROPPED: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let what = "Log lines that found no room as they are read too slowly, by what they tell";
    let dropped = IntCounterVec::new(named("log_lines_dropped_total", what), &["kind"])
        .expect("name and label are valid");
    for kind in Kind::VARIANTS {
        dropped.with_label_values(&[<&str>::from(*kind)]);
    }
    dropped
});

pub fn log_line_dropped(kind: Kind) {
    LOG_LINES_DROPPED.with_label_values(&[<&str>::from(kind)]).inc();
}

/// All of them, registered. Cheap to share, no lock on the data path.
pub struct Metrics {
    pub registry: Registry,
    connections: IntCounterVec,
    pub accept_errors: IntCounter,
    sessions: Vec<IntGauge>,
    closed: Vec<IntCounter>,
    pub session_duration: Histogram,
    client_hellos: Vec<IntCounter>,
    handshakes: IntCounterVec,
    handshake_failures: Vec<IntCounter>,
    handshake_duration: Histogram,
    server_names: Vec<IntCounter>,
    certificate_not_after: GaugeVec,
    certificates_shown: Mutex<BTreeSet<String>>,
    list_next_update: GaugeVec,
    reloads: IntCounterVec,
    last_reload: GaugeVec,
    last_reload_successful: IntGaugeVec,
    acme_orders: IntCounterVec,
    acme_next_order: Gauge,
    pub client_to_backend: IntCounter,
    pub backend_to_client: IntCounter,
    logins: IntCounterVec,
    /// The first is of lines without a tag.
    commands_refused: Vec<IntCounter>,
    pub hold_waiting: IntGauge,
    holds: Vec<IntCounter>,
    backends: Families,
    /// Servers whose series are there.
    shown: Mutex<BTreeMap<String, Weak<BackendMetrics>>>,
}

/// Of all backend servers.
struct Families {
    up: IntGaugeVec,
    state: IntGaugeVec,
    addresses: IntGaugeVec,
    sessions: IntGaugeVec,
    ejections: IntCounterVec,
    connect: HistogramVec,
    connect_failures: IntCounterVec,
    login: HistogramVec,
    command: HistogramVec,
}

/// The series of one backend server.
pub struct BackendMetrics {
    pub connect_duration: Histogram,
    connect_failures: Vec<IntCounter>,
    pub login_duration: Histogram,
    commands: Vec<Histogram>,
    sessions: IntGauge,
    /// The same number: that of the registry can't be added to and read at once.
    open: AtomicUsize,
    /// Somebody found no room since one last gave its place back unused.
    found_full: AtomicBool,
    /// Times that an address that worked was taken out.
    pub ejections: IntCounter,
}

/// What a backend server is now; there is none of one that is not configured.
pub struct BackendGauges {
    up: IntGauge,
    up_addresses: IntGauge,
    down_addresses: IntGauge,
}

impl BackendGauges {
    pub fn set(&self, up: bool, up_addresses: usize, down_addresses: usize) {
        self.up.set(up.into());
        self.up_addresses.set(i64::try_from(up_addresses).unwrap_or(i64::MAX));
        self.down_addresses.set(i64::try_from(down_addresses).unwrap_or(i64::MAX));
    }
}

/// How a client's wait for a server ended: the label `result`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, strum::IntoStaticStr, strum::VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum HoldResult {
    /// A server came up.
    Served,
    /// None did within `backend.hold`.
    Unavailable,
    /// The client left, or the proxy drained.
    Ended,
}

impl BackendMetrics {
    pub fn connect_failed(&self, reason: dial::Failure) {
        self.connect_failures[reason as usize].inc();
    }

    /// Counts one more session, if there are less than `max`.
    pub fn enter(&self, max: Option<usize>) -> bool {
        let max = max.unwrap_or(usize::MAX);
        let one_more = |open: usize| (open < max).then_some(open + 1);
        let enter = || self.open.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_more).is_ok();
        let admitted = enter() || {
            // Whoever leaves from here on sees that it was missed; whoever left before made room.
            self.found_full.store(true, Ordering::SeqCst);
            enter()
        };
        if admitted {
            self.sessions.inc();
        }
        admitted
    }

    /// Whether there is no room for one more.
    pub fn is_full(&self, max: Option<usize>) -> bool {
        let full = || max.is_some_and(|max| self.open_sessions() >= max);
        full() && {
            self.found_full.store(true, Ordering::SeqCst);
            full()
        }
    }

    /// Whether somebody found no room; to be asked once after [`Self::leave`].
    pub fn was_found_full(&self) -> bool {
        self.found_full.swap(false, Ordering::SeqCst)
    }

    /// One that had entered has gone.
    pub fn leave(&self) {
        self.open.fetch_sub(1, Ordering::SeqCst);
        self.sessions.dec();
    }

    pub fn open_sessions(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// The time from a command's last byte to its tagged result.
    pub fn command(&self, verb: Verb) -> &Histogram {
        &self.commands[verb as usize]
    }
}

impl Metrics {
    /// Series of listeners, backends and handshakes come as [`listener`](Self::listener), [`backend`](Self::backend) and
    /// [`can_negotiate`](Self::can_negotiate) hear of them: a reload can bring new ones.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let r = &registry;
        let connections =
            counters(r, "connections_total", "Connections accepted, by listener", &["listener"])?;
        let accept_errors = counters(
            r,
            "accept_errors_total",
            "Times that accept() failed, as when descriptors run out",
            &[],
        )?
        .with_label_values(&[] as &[&str]);
        let sessions = IntGaugeVec::new(
            named("sessions", "Sessions open now, by phase; idle is IMAP IDLE"),
            &["phase"],
        )?;
        r.register(Box::new(sessions.clone()))?;
        let closed =
            counters(r, "sessions_closed_total", "Sessions ended, by reason", &["reason"])?;
        let shaken = counters(
            r,
            "tls_handshakes_total",
            "TLS handshakes completed",
            &["version", "cipher", "group", "resumed"],
        )?;
        let failures = counters(
            r,
            "tls_handshake_failures_total",
            "TLS handshakes that failed, by reason",
            &["reason"],
        )?;
        let hellos = counters(
            r,
            "tls_client_hellos_total",
            "ClientHellos, by the highest version that they offer",
            &["version"],
        )?;
        let bytes = counters(
            r,
            "bytes_total",
            "IMAP bytes relayed after login, by direction",
            &["direction"],
        )?;
        let logins = counters(
            r,
            "logins_total",
            "Login attempts, by result and mechanism",
            &["result", "mechanism"],
        )?;
        for result in LoginResult::VARIANTS {
            for mechanism in Mechanism::VARIANTS {
                logins.with_label_values(&[<&str>::from(*result), <&str>::from(*mechanism)]);
            }
        }
        let commands_refused = counters(
            r,
            "commands_refused_total",
            "Commands before login that were not carried out, by command",
            &["command"],
        )?;
        let up = IntGaugeVec::new(
            named("backend_up", "Whether the backend server answered last time"),
            &["backend"],
        )?;
        r.register(Box::new(up.clone()))?;
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            let gauges = IntGaugeVec::new(named(name, help), labels)?;
            r.register(Box::new(gauges.clone()))?;
            Ok::<_, prometheus::Error>(gauges)
        };
        let state = gauges(
            "backend_state",
            "What the configuration wants of the backend server: 1 for one of active, drain and down",
            &["backend", "state"],
        )?;
        let addresses = gauges(
            "backend_addresses",
            "Addresses of the backend server, by whether they answered last time",
            &["backend", "state"],
        )?;
        let on_backend = gauges(
            "backend_sessions",
            "Sessions at the backend server, those included that log in now",
            &["backend"],
        )?;
        let ejections = counters(
            r,
            "backend_ejections_total",
            "Times that an address that worked was taken out of use",
            &["backend"],
        )?;
        let hold_waiting = IntGauge::with_opts(named(
            "hold_waiting",
            "Clients that wait for a backend server to come up",
        ))?;
        r.register(Box::new(hold_waiting.clone()))?;
        let holds = counters(
            r,
            "holds_total",
            "Clients that waited for a backend server, by what came of it",
            &["result"],
        )?;
        let connect = histograms(
            r,
            "backend_connect_duration_seconds",
            "From the start of dialling to the greeting",
            SECONDS_OF_CONNECT,
            &["backend"],
        )?;
        let connect_failures = counters(
            r,
            "backend_connect_failures_total",
            "Times that a backend server could not be used, by reason",
            &["backend", "reason"],
        )?;
        let login = histograms(
            r,
            "login_duration_seconds",
            "From a whole login command to its result, dialling included",
            SECONDS_OF_LOGIN,
            &["backend"],
        )?;
        let command = histograms(
            r,
            "command_duration_seconds",
            "From a command's last byte to its tagged result; for IDLE to its continuation",
            SECONDS_OF_COMMAND,
            &["command", "backend"],
        )?;
        let server_names = counters(
            r,
            "tls_server_names_total",
            "ClientHellos, by how a certificate was found for the name that they ask for",
            &["match"],
        )?;
        let certificate_not_after = GaugeVec::new(
            named(
                "tls_certificate_not_after_timestamp_seconds",
                "When a certificate expires, as Unix time: the one that is served, and the one in its file; 0 if there is none",
            ),
            &["certificate", "state"],
        )?;
        r.register(Box::new(certificate_not_after.clone()))?;
        let list_next_update = GaugeVec::new(
            named(
                "tls_client_crl_next_update_timestamp_seconds",
                "When the first of the clients' revocation lists is due to be replaced, as Unix time",
            ),
            &[],
        )?;
        r.register(Box::new(list_next_update.clone()))?;
        let reloads = counters(
            r,
            "reloads_total",
            "Changes taken or refused while running",
            &["what", "result"],
        )?;
        let parts = Part::VARIANTS.iter().map(<&str>::from);
        for what in parts.chain(["certificate", "configuration"]) {
            for result in ["ok", "failed"] {
                reloads.with_label_values(&[what, result]);
            }
        }
        let last_reload = GaugeVec::new(
            named(
                "last_reload_timestamp_seconds",
                "When a change was last taken or refused, the start included, as Unix time",
            ),
            &["what"],
        )?;
        r.register(Box::new(last_reload.clone()))?;
        let last_reload_successful = IntGaugeVec::new(
            named("last_reload_successful", "Whether everything is served as it lies in its files"),
            &["what"],
        )?;
        r.register(Box::new(last_reload_successful.clone()))?;
        let acme_orders =
            counters(r, "tls_acme_orders_total", "Certificates ordered by ACME", &["result"])?;
        for result in ["ok", "failed"] {
            acme_orders.with_label_values(&[result]);
        }
        let acme_next_order = Gauge::with_opts(named(
            "tls_acme_next_order_timestamp_seconds",
            "When a certificate is next ordered by ACME, as Unix time; 0 if none is",
        ))?;
        r.register(Box::new(acme_next_order.clone()))?;
        r.register(Box::new(LOG_LINES_DROPPED.clone()))?;
        let build =
            GaugeVec::new(named("build_info", "Always 1"), &["version", "rustls", "provider"])?;
        build
            .with_label_values(&[
                crate::version::VERSION,
                crate::version::RUSTLS,
                crate::version::PROVIDER,
            ])
            .set(1.0);
        r.register(Box::new(build))?;
        r.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        Ok(Self {
            connections,
            accept_errors,
            sessions: Phase::VARIANTS
                .iter()
                .map(|p| sessions.with_label_values(&[<&str>::from(*p)]))
                .collect(),
            closed: Reason::VARIANTS
                .iter()
                .map(|c| closed.with_label_values(&[<&str>::from(*c)]))
                .collect(),
            session_duration: histogram(
                r,
                "session_duration_seconds",
                "How long sessions lasted",
                SECONDS_OF_SESSION,
            )?,
            client_hellos: Version::VARIANTS
                .iter()
                .map(|v| hellos.with_label_values(&[<&str>::from(*v)]))
                .collect(),
            handshakes: shaken,
            handshake_failures: Failure::VARIANTS
                .iter()
                .map(|f| failures.with_label_values(&[<&str>::from(*f)]))
                .collect(),
            handshake_duration: histogram(
                r,
                "tls_handshake_duration_seconds",
                "How long completed TLS handshakes took, the network included",
                SECONDS_OF_TLS,
            )?,
            server_names: Match::VARIANTS
                .iter()
                .map(|m| server_names.with_label_values(&[<&str>::from(*m)]))
                .collect(),
            certificate_not_after,
            certificates_shown: Mutex::default(),
            list_next_update,
            reloads,
            last_reload,
            last_reload_successful,
            acme_orders,
            acme_next_order,
            client_to_backend: bytes.with_label_values(&["client_to_backend"]),
            backend_to_client: bytes.with_label_values(&["backend_to_client"]),
            logins,
            commands_refused: std::iter::once(UNTAGGED)
                .chain(command::Verb::VARIANTS.iter().map(<&str>::from))
                .map(|command| commands_refused.with_label_values(&[command]))
                .collect(),
            backends: Families {
                up,
                state,
                addresses,
                sessions: on_backend,
                ejections,
                connect,
                connect_failures,
                login,
                command,
            },
            hold_waiting,
            holds: HoldResult::VARIANTS
                .iter()
                .map(|h| holds.with_label_values(&[<&str>::from(*h)]))
                .collect(),
            shown: Mutex::default(),
            registry,
        })
    }

    pub fn sessions(&self, phase: Phase) -> &IntGauge {
        &self.sessions[phase as usize]
    }

    pub fn closed(&self, reason: Reason) -> &IntCounter {
        &self.closed[reason as usize]
    }

    /// Somebody wants to speak TLS, whatever becomes of it.
    pub fn client_hello(&self, highest: Version) {
        self.client_hellos[highest as usize].inc();
    }

    pub fn handshake(&self, done: &Handshake, took: Duration) {
        let resumed = if done.resumed { "true" } else { "false" };
        let labels = [done.version(), done.cipher(), done.group(), resumed];
        self.handshakes.with_label_values(&labels).inc();
        self.handshake_duration.observe(took.as_secs_f64());
    }

    pub fn handshake_failed(&self, failure: Failure) {
        self.handshake_failures[failure as usize].inc();
    }

    pub fn login(&self, result: LoginResult, mechanism: Mechanism) {
        self.logins.with_label_values(&[<&str>::from(result), <&str>::from(mechanism)]).inc();
    }

    /// `None`: it had no tag.
    pub fn command_refused(&self, verb: Option<command::Verb>) {
        self.commands_refused[verb.map_or(0, |verb| 1 + verb as usize)].inc();
    }

    pub fn held(&self, result: HoldResult) {
        self.holds[result as usize].inc();
    }

    /// Every (version, cipher, group) that the TLS configuration can negotiate.
    pub fn can_negotiate(&self, handshakes: &[[&str; 4]]) {
        for labels in handshakes {
            self.handshakes.with_label_values(labels);
        }
    }

    /// What the listener of this name has accepted.
    pub fn listener(&self, name: &str) -> IntCounter {
        self.connections.with_label_values(&[name])
    }

    pub fn listener_closed(&self, name: &str) {
        let _ = self.connections.remove_label_values(&[name]);
    }

    /// How the server of this name is.
    pub fn backend_gauges(&self, name: &str) -> BackendGauges {
        let Families { up, addresses, .. } = &self.backends;
        BackendGauges {
            up: up.with_label_values(&[name]),
            up_addresses: addresses.with_label_values(&[name, "up"]),
            down_addresses: addresses.with_label_values(&[name, "down"]),
        }
    }

    /// What the configuration wants of it.
    pub fn backend_state(&self, name: &str, state: ServerState) {
        for (one, word) in STATES {
            let gauge = self.backends.state.with_label_values(&[name, word]);
            gauge.set((one == state).into());
        }
    }

    /// A server that is no longer configured is not down.
    pub fn backend_gone(&self, name: &str) {
        let Families { up, state, addresses, .. } = &self.backends;
        let _ = up.remove_label_values(&[name]);
        for (_, word) in STATES {
            let _ = state.remove_label_values(&[name, word]);
        }
        for one in ["up", "down"] {
            let _ = addresses.remove_label_values(&[name, one]);
        }
    }

    /// What is counted of the server of this name, by all who ask together.
    pub fn backend(&self, name: &str) -> Arc<BackendMetrics> {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = shown.get(name).and_then(Weak::upgrade) {
            return there;
        }
        let series = Arc::new(self.backends.series(name));
        shown.insert(name.to_owned(), Arc::downgrade(&series));
        series
    }

    /// Takes away what was counted of servers that are gone and have no session any more.
    pub fn forget_backends(&self) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, _) in shown.extract_if(.., |_, series| series.strong_count() == 0) {
            self.backends.remove(&name);
        }
    }

    pub fn server_name(&self, found: Match) {
        self.server_names[found as usize].inc();
    }

    /// What is served and what lies in the files.
    pub fn certificates(&self, state: &State) {
        let gauge = &self.certificate_not_after;
        for one in &state.certificates {
            let name = one.certificate.as_str();
            gauge.with_label_values(&[name, "served"]).set(one.served.unwrap_or(0) as f64);
            gauge.with_label_values(&[name, "on_disk"]).set(one.on_disk.unwrap_or(0) as f64);
        }
        // One that is no longer there must not seem to expire.
        let now = state.certificates.iter().map(|one| one.certificate.clone()).collect();
        let mut shown = self.certificates_shown.lock().unwrap_or_else(PoisonError::into_inner);
        for gone in std::mem::replace(&mut *shown, now).difference(&shown) {
            for state in ["served", "on_disk"] {
                let _ = gauge.remove_label_values(&[gone.as_str(), state]);
            }
        }
        drop(shown);
        let well = self.last_reload_successful.with_label_values(&["certificate"]);
        well.set(state.all_taken.into());
    }

    /// A change was taken (`ok`) or refused (`failed`) at `now`, Unix time.
    pub fn certificates_reloaded(&self, result: &str, now: i64) {
        self.reloads.with_label_values(&["certificate", result]).inc();
        self.certificates_loaded(now);
    }

    /// The configuration was taken or refused at `now`, Unix time.
    pub fn configuration_reloaded(&self, taken: bool, now: i64) {
        let result = if taken { "ok" } else { "failed" };
        self.reloads.with_label_values(&["configuration", result]).inc();
        self.configuration_loaded(taken, now);
    }

    /// The start, and every reload after it.
    pub fn configuration_loaded(&self, taken: bool, now: i64) {
        self.last_reload.with_label_values(&["configuration"]).set(now as f64);
        self.last_reload_successful.with_label_values(&["configuration"]).set(taken.into());
    }

    pub fn acme_ordered(&self, ok: bool) {
        self.acme_orders.with_label_values(&[if ok { "ok" } else { "failed" }]).inc();
    }

    /// Unix time.
    pub fn acme_next_order(&self, at: i64) {
        self.acme_next_order.set(at as f64);
    }

    /// The start, and every change after it.
    pub fn certificates_loaded(&self, now: i64) {
        self.last_reload.with_label_values(&["certificate"]).set(now as f64);
    }

    /// Of the revocation lists that new handshakes go by; there is no series where there is no list.
    pub fn list_next_update(&self, at: Option<i64>) {
        match at {
            Some(at) => self.list_next_update.with_label_values(&[] as &[&str]).set(at as f64),
            None => self.list_next_update.reset(),
        }
    }

    /// Files beside the certificates changed while the proxy ran, and were taken or refused at `now`, Unix time.
    pub fn part_reloaded(&self, part: Part, taken: bool, now: i64) {
        let what = <&str>::from(part);
        self.reloads.with_label_values(&[what, if taken { "ok" } else { "failed" }]).inc();
        self.last_reload.with_label_values(&[what]).set(now as f64);
        self.part_served(part, taken);
    }

    /// The start.
    pub fn part_loaded(&self, part: Part, now: i64) {
        self.last_reload.with_label_values(&[<&str>::from(part)]).set(now as f64);
        self.part_served(part, true);
    }

    /// Whether `part` is in use as it lies in its files.
    pub fn part_served(&self, part: Part, well: bool) {
        self.last_reload_successful.with_label_values(&[<&str>::from(part)]).set(well.into());
    }
}

impl Families {
    fn series(&self, name: &str) -> BackendMetrics {
        let reasons = dial::Failure::VARIANTS.iter().map(<&str>::from);
        let failures = reasons.map(|reason| [name, reason]);
        let commands = Verb::VARIANTS.iter().map(|verb| [<&str>::from(verb), name]);
        BackendMetrics {
            connect_duration: self.connect.with_label_values(&[name]),
            connect_failures: failures
                .map(|labels| self.connect_failures.with_label_values(&labels))
                .collect(),
            login_duration: self.login.with_label_values(&[name]),
            sessions: self.sessions.with_label_values(&[name]),
            open: AtomicUsize::new(0),
            found_full: AtomicBool::new(false),
            ejections: self.ejections.with_label_values(&[name]),
            commands: commands.map(|labels| self.command.with_label_values(&labels)).collect(),
        }
    }

    fn remove(&self, name: &str) {
        let _ = self.connect.remove_label_values(&[name]);
        let _ = self.login.remove_label_values(&[name]);
        let _ = self.sessions.remove_label_values(&[name]);
        let _ = self.ejections.remove_label_values(&[name]);
        for reason in dial::Failure::VARIANTS {
            let _ = self.connect_failures.remove_label_values(&[name, <&str>::from(reason)]);
        }
        for verb in Verb::VARIANTS {
            let _ = self.command.remove_label_values(&[<&str>::from(verb), name]);
        }
    }
}

fn named(name: &str, help: &str) -> Opts {
    opts!(format!("imaps_proxy_{name}"), help)
}

fn counters(
    r: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<IntCounterVec, prometheus::Error> {
    let counters = IntCounterVec::new(named(name, help), labels)?;
    r.register(Box::new(counters.clone()))?;
    Ok(counters)
}

fn histograms(
    r: &Registry,
    name: &str,
    help: &str,
    buckets: &[f64],
    labels: &[&str],
) -> Result<HistogramVec, prometheus::Error> {
    let opts = HistogramOpts { common_opts: named(name, help), buckets: buckets.to_vec() };
    let histograms = HistogramVec::new(opts, labels)?;
    r.register(Box::new(histograms.clone()))?;
    Ok(histograms)
}

fn histogram(
    r: &Registry,
    name: &str,
    help: &str,
    buckets: &[f64],
) -> Result<Histogram, prometheus::Error> {
    Ok(histograms(r, name, help, buckets, &[])?.with_label_values(&[] as &[&str]))
}
