//! The open sockets, and how they become those of another configuration.
//!
//! In: settings. Out: accept loops and answers to HTTP. A change has two steps, so that it happens
//! as a whole or not at all: [`Listeners::bind`] opens what is wanted and not open,
//! [`Listeners::serve`] puts it into service and closes the others. A socket whose address stays in
//! the configuration is never closed, whatever else changes; where the system has no IPv6 it is one
//! for IPv4. A new address that overlaps with an old one (`[::]:993` and `0.0.0.0:993`) is opened
//! beside it for the moment (SO_REUSEPORT).
//! Not here: what becomes of a connection (`conn`).

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use socket2::SockRef;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Bound, Error};
use crate::admin::{Readiness, probes};
use crate::config::settings::{Challenge, Listen, ListenTls, Settings};
use crate::conn::Context;
use crate::conn::accept::{self, Acceptor, Listener};
use crate::tls::acme;

/// What is open.
pub struct Listeners {
    imap: Vec<Accepting>,
    metrics: Option<Answering>,
    /// For the challenges of ACME.
    acme: Option<Answering>,
    around: Around,
}

/// Whom connections are for.
pub struct Around {
    pub sessions: TaskTracker,
    pub readiness: Arc<Readiness>,
    pub answers: Arc<acme::Answers>,
    /// For tasks that answer HTTP.
    pub background: TaskTracker,
}

/// One for mail clients.
struct Accepting {
    /// As configured; with port 0 it is not the one that is bound.
    listen: Listen,
    acceptor: Acceptor,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// One for HTTP.
struct Answering {
    address: SocketAddr,
    socket: Arc<TcpListener>,
    stop: CancellationToken,
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// All sockets that are wanted, in the order of the configuration: those that are in service and those that are new.
pub struct Sockets {
    imap: Vec<Arc<TcpListener>>,
    metrics: Option<Arc<TcpListener>>,
    acme: Option<Arc<TcpListener>>,
}

impl Listeners {
    pub fn new(around: Around) -> Self {
        Self { imap: Vec::new(), metrics: None, acme: None, around }
    }

    /// Opens what is not open. Nothing is accepted yet, and after an error everything is as it was.
    ///
    /// # Errors
    /// An address can't be had.
    pub fn bind(&self, settings: &Settings) -> Result<Sockets, Error> {
        // Of two with port 0 each is one of its own.
        let mut free: Vec<&Accepting> = self.imap.iter().collect();
        let mut imap = Vec::new();
        for Listen { address, .. } in &settings.listen {
            imap.push(match free.iter().position(|open| open.listen.address == *address) {
                Some(at) => Arc::clone(&free.swap_remove(at).acceptor.socket),
                None => self.open(*address, "listen[].address")?,
            });
        }
        let http = |wanted: Option<SocketAddr>, open: &Option<Answering>, key| match (wanted, open)
        {
            (Some(address), Some(open)) if open.address == address => {
                Ok(Some(Arc::clone(&open.socket)))
            }
            (Some(address), _) => self.open(address, key).map(Some),
            (None, _) => Ok(None),
        };
        Ok(Sockets {
            imap,
            metrics: http(metrics_address(settings), &self.metrics, "metrics.address")?,
            acme: http(acme_address(settings), &self.acme, "tls.acme.http_address")?,
        })
    }

    /// A socket of this address, if need be beside one of ours that overlaps with it: by the rules of the configuration that one
    /// is not wanted any more.
    fn open(&self, address: SocketAddr, key: &'static str) -> Result<Arc<TcpListener>, Error> {
        let mut result = accept::bind(address, false);
        let same_port = |socket: &&Arc<TcpListener>| {
            socket.local_addr().is_ok_and(|bound| bound.port() == address.port())
        };
        let ours: Vec<_> = self.sockets().filter(same_port).collect();
        if !ours.is_empty() && result.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::AddrInUse)
        {
            let share = |share| {
                // Where it can't be set the address can't be had, which is said.
                ours.iter().for_each(|s| _ = SockRef::from(&***s).set_reuse_port(share));
            };
            share(true);
            result = accept::bind(address, true);
            share(false);
            // Nobody else is to join.
            if let Ok(socket) = &result {
                let _ = SockRef::from(socket).set_reuse_port(false);
            }
        }
        result.map(Arc::new).map_err(|why| Error::Listen { address, key, why })
    }

    fn sockets(&self) -> impl Iterator<Item = &Arc<TcpListener>> {
        let http = self.metrics.iter().chain(&self.acme).map(|open| &open.socket);
        self.imap.iter().map(|open| &open.acceptor.socket).chain(http)
    }

    /// Serves by `ctx` at `sockets`, and nowhere else any more. No connection is accepted between the old and the new.
    pub async fn serve(&mut self, settings: &Settings, sockets: Sockets, ctx: &Arc<Context>) {
        self.stop_accepting().await;
        let before = std::mem::take(&mut self.imap);
        let was = |socket: &Arc<TcpListener>| {
            before.iter().any(|open| Arc::ptr_eq(&open.acceptor.socket, socket))
        };
        for (listen, socket) in settings.listen.iter().zip(sockets.imap) {
            let name = listen.address.to_string();
            if !was(&socket) {
                tell_open(service(listen.tls), &socket, listen.address);
            }
            let acceptor = Acceptor {
                socket,
                listener: Arc::new(Listener {
                    name,
                    tls: listen.tls,
                    proxy_protocol_from: listen.proxy_protocol_from.clone(),
                }),
                ctx: Arc::clone(ctx),
                sessions: self.around.sessions.clone(),
            };
            let stop = CancellationToken::new();
            let task = tokio::spawn(acceptor.clone().run(stop.clone()));
            self.imap.push(Accepting { listen: listen.clone(), acceptor, stop, task });
        }
        for gone in before {
            let is_gone =
                |open: &Accepting| !Arc::ptr_eq(&open.acceptor.socket, &gone.acceptor.socket);
            if self.imap.iter().all(is_gone) {
                close(gone, &self.imap, ctx);
            }
        }
        let (readiness, registry) = (&self.around.readiness, &ctx.metrics.registry);
        let background = &self.around.background;
        change(
            &mut self.metrics,
            metrics_address(settings),
            sockets.metrics,
            "metrics",
            |socket, stop| {
                background.spawn(probes::serve(
                    socket,
                    registry.clone(),
                    Arc::clone(readiness),
                    stop,
                ));
            },
        );
        let answers = &self.around.answers;
        change(&mut self.acme, acme_address(settings), sockets.acme, "acme", |socket, stop| {
            let answers = Arc::clone(answers);
            let answer = move |request: &_, _| answers.http.answer(request);
            background.spawn(probes::serve_with(probes::PUBLIC, socket, answer, stop));
        });
        readiness.set_listening(true);
    }

    async fn stop_accepting(&mut self) {
        self.imap.iter().for_each(|open| open.stop.cancel());
        // Of a reload that was abandoned some may have been waited for.
        for open in self.imap.iter_mut().filter(|open| !open.task.is_finished()) {
            let _ = (&mut open.task).await; // a panic is said on standard error, and the next one begins anew
        }
    }

    /// No new sessions; metrics and probes go on until it is dropped.
    pub async fn close(&mut self) {
        self.stop_accepting().await;
        self.imap.clear();
        self.around.readiness.set_listening(false);
    }

    pub fn bound(&self) -> Bound {
        let bound = |socket: &TcpListener, address| socket.local_addr().unwrap_or(address);
        Bound {
            listeners: self
                .imap
                .iter()
                .map(|open| bound(&open.acceptor.socket, open.listen.address))
                .collect(),
            metrics: self.metrics.as_ref().map(|open| bound(&open.socket, open.address)),
        }
    }
}

/// Takes a listener out of service. Who has come already is served as the others are who come now.
fn close(gone: Accepting, open: &[Accepting], ctx: &Arc<Context>) {
    let Accepting { acceptor, listen, .. } = gone;
    tell("not listening any more", service(listen.tls), &acceptor.socket, listen.address);
    let listener = Arc::clone(&acceptor.listener);
    Acceptor { ctx: Arc::clone(ctx), ..acceptor }.rest();
    if open.iter().all(|open| open.acceptor.listener.name != listener.name) {
        ctx.metrics.listener_closed(&listener.name);
    }
}

/// Has `open` serve at `socket`, unless it does already.
fn change(
    open: &mut Option<Answering>,
    address: Option<SocketAddr>,
    socket: Option<Arc<TcpListener>>,
    service: &'static str,
    serve: impl FnOnce(Arc<TcpListener>, CancellationToken),
) {
    let stays =
        |before: &Answering| socket.as_ref().is_some_and(|s| Arc::ptr_eq(s, &before.socket));
    if open.as_ref().is_some_and(stays) {
        return;
    }
    if let Some(gone) = open.take() {
        tell("not listening any more", service, &gone.socket, gone.address);
    }
    if let Some((address, socket)) = address.zip(socket) {
        tell_open(service, &socket, address);
        let stop = CancellationToken::new();
        serve(Arc::clone(&socket), stop.clone());
        *open = Some(Answering { address, socket, stop });
    }
}

fn tell(what: &str, service: &str, socket: &TcpListener, configured: SocketAddr) {
    // Asking a socket that is bound for its name does not fail.
    let address = socket.local_addr().unwrap_or(configured);
    tracing::info!(service, %address, "{what}");
}

fn tell_open(service: &str, socket: &TcpListener, configured: SocketAddr) {
    match socket.local_addr() {
        Ok(address) if address.is_ipv4() && configured.is_ipv6() => tracing::warn!(
            service, %address, %configured, "listening on IPv4 alone: this system has no IPv6"
        ),
        _ => tell("listening", service, socket, configured),
    }
}

fn service(tls: ListenTls) -> &'static str {
    match tls {
        ListenTls::Implicit => "imaps",
        ListenTls::StartTls => "imap with STARTTLS",
    }
}

fn metrics_address(settings: &Settings) -> Option<SocketAddr> {
    settings.metrics.map(|metrics| metrics.address)
}

fn acme_address(settings: &Settings) -> Option<SocketAddr> {
    match settings.tls.acme.as_ref()?.challenge {
        Challenge::Http01 { address } => Some(address),
        Challenge::TlsAlpn01 | Challenge::Dns01 { .. } => None,
    }
}
