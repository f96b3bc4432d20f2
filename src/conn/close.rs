//! Why a session ended: one closed list that the log line, the metric and every reader share; and the record
//! of one session, which is counted and logged when it is dropped, whatever ended it. Without a login a session is logged
//! by sample, the others of its reason and source at level debug: to connect costs a stranger nothing.

use std::sync::Arc;
use std::time::Instant;

use super::Context;
use super::accept::Listener;
use super::address::ClientAddr;
use super::tls::Handshake;
use crate::log;
use crate::metrics::{LoginResult, Phase};
use crate::proto::imap::sasl::Mechanism;
use crate::tls::client_auth::Identity;

/// The label and log field `reason`. Nothing that a client sends ever becomes one.
#[derive(Clone, Copy, Debug, Eq, PartialEq, strum::IntoStaticStr, strum::VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Reason {
    /// The client said LOGOUT.
    Logout,
    /// The client closed its side, before or after login.
    ClientClosed,
    /// The client's connection broke: reset, or no answer to keep-alive probes.
    ClientVanished,
    HandshakeFailed,
    HandshakeTimeout,
    /// Plaintext IMAP, HTTP or something else on the TLS port.
    NotTlsImap,
    NotTlsHttp,
    NotTls,
    /// Who must send a PROXY header sent none.
    ProxyHeaderMissing,
    ProxyHeaderMalformed,
    /// A PROXY header from somebody who is not to send one.
    ProxyHeaderUnexpected,
    /// A CA asked whether a name leads here (RFC 8737), and was shown.
    AcmeChallenge,
    /// Something that is not TLS came together with STARTTLS or behind it.
    PlaintextAfterStarttls,
    LoginTimeout,
    TooManyBadCommands,
    TooManyCommands,
    /// A line, literal or SASL message over its limit before login.
    TooLong,
    /// Something that can't be framed before login, or records that TLS forbids.
    ProtocolViolation,
    /// No backend was ever seen, so there is nothing to greet with.
    BackendUnavailable,
    IdleTimeout,
    /// The client took no bytes for `timeouts.write`.
    WriteTimeout,
    /// The client closed its side and the backend had not finished within `timeouts.half_closed`.
    HalfClosedTimeout,
    /// TLS 1.2 has no way to new keys, and those of the connection have sealed as many records as they may.
    KeysUsedUp,
    /// The backend closed where a response ends.
    BackendClosed,
    /// The backend closed in the middle of a response or with a command unanswered.
    BackendTruncated,
    /// The backend's connection broke.
    BackendLost,
    /// The backend took no bytes for `timeouts.write`.
    BackendStalled,
    Drain,
    TooManyConnections,
    /// A defect of ours.
    Internal,
}

/// What the closing log line tells of one session.
pub struct Session {
    ctx: Arc<Context>,
    pub id: u64,
    /// Until a balancer has said whom it speaks for, the balancer.
    pub client: ClientAddr,
    pub listener: Arc<Listener>,
    pub handshake: Option<Handshake>,
    /// Name and user once somebody is logged in.
    pub backend: Option<Arc<str>>,
    pub user: Option<Box<str>>,
    pub client_to_backend: u64,
    pub backend_to_client: u64,
    started: Instant,
    phase: Phase,
    reason: Reason,
}

impl Session {
    pub fn open(ctx: &Arc<Context>, client: ClientAddr, listener: &Arc<Listener>) -> Self {
        ctx.metrics.sessions(Phase::Handshake).inc();
        Self {
            ctx: Arc::clone(ctx),
            id: ctx.next_session(),
            client,
            listener: Arc::clone(listener),
            handshake: None,
            backend: None,
            user: None,
            client_to_backend: 0,
            backend_to_client: 0,
            started: Instant::now(),
            phase: Phase::Handshake,
            reason: Reason::Internal, // holds if the session's task panics
        }
    }

    /// What it may use.
    pub fn context(&self) -> Arc<Context> {
        Arc::clone(&self.ctx)
    }

    /// Counts a connection that never became a session.
    pub fn refuse(ctx: &Context, reason: Reason) {
        ctx.metrics.closed(reason).inc();
    }

    pub fn phase(&mut self, phase: Phase) {
        if self.phase != phase {
            self.ctx.metrics.sessions(self.phase).dec();
            self.ctx.metrics.sessions(phase).inc();
            self.phase = phase;
        }
    }

    /// The login line, a contract with whoever reads the log: one per attempt, when its result passes.
    /// `authorization`: whose mail the user wants, if it is another one's.
    pub fn log_login(
        &self,
        user: Option<&str>,
        authorization: Option<&str>,
        mechanism: Mechanism,
        result: LoginResult,
        backend: Option<&str>,
        seconds: f64,
    ) {
        tracing::info!(
            target: log::LOGIN,
            session = session_id(self.id),
            client = %self.client,
            user,
            authorization,
            mechanism = <&str>::from(mechanism),
            result = <&str>::from(result),
            backend,
            tls_version = self.handshake.as_ref().map(Handshake::version),
            tls_cipher = self.handshake.as_ref().map(Handshake::cipher),
            client_cert_subject = self.identity().map(|who| &*who.subject),
            client_cert_sha256 = self.identity().map(|who| &*who.fingerprint),
            duration_seconds = milliseconds(seconds),
            "login"
        );
    }

    /// Somebody was, whatever came after.
    fn is_logged_in(&self) -> bool {
        self.backend.is_some()
    }

    /// Whom the client's certificate names.
    fn identity(&self) -> Option<&Identity> {
        self.handshake.as_ref().and_then(|handshake| handshake.identity.as_deref())
    }

    /// Why it ends; counted and logged when it is dropped.
    pub fn ends(&mut self, reason: Reason) {
        self.reason = reason;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let metrics = &self.ctx.metrics;
        let duration = self.started.elapsed().as_secs_f64();
        metrics.sessions(self.phase).dec();
        metrics.closed(self.reason).inc();
        metrics.session_duration.observe(duration);
        let handshake = self.handshake.as_ref();
        let (reason, mut not_logged) = (self.reason, None);
        let to_be_logged = self.is_logged_in() || {
            not_logged = self.ctx.on_end(reason, self.client.ip());
            not_logged.is_some()
        };
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    target: log::SESSION,
                    session = session_id(self.id),
                    client = %self.client,
                    listener = &*self.listener.name,
                    tls_version = handshake.map(Handshake::version),
                    tls_cipher = handshake.map(Handshake::cipher),
                    tls_group = handshake.map(Handshake::group),
                    sni = handshake.and_then(|handshake| handshake.sni.as_deref()),
                    client_cert_subject = self.identity().map(|who| &*who.subject),
                    client_cert_sha256 = self.identity().map(|who| &*who.fingerprint),
                    backend = self.backend.as_deref(),
                    user = self.user.as_deref(),
                    client_to_backend = self.client_to_backend,
                    backend_to_client = self.backend_to_client,
                    duration_seconds = milliseconds(duration),
                    reason = <&str>::from(reason),
                    not_logged,
                    "session"
                )
            };
        }
        if to_be_logged {
            line!(info);
        } else {
            line!(debug);
        }
        self.ctx.ended();
    }
}

fn milliseconds(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

/// As it stands in every log line of the session.
pub fn session_id(id: u64) -> String {
    format!("{id:016x}")
}
