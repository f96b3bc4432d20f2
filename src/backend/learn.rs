//! Keeps each server known: looks its name up, and asks each address, as a client would, how it greets and what it can do.
//!
//! Addresses are looked up when what DNS said is over, and as soon as one was lost. Each is asked at start and then when
//! [`health`](super::health) says so: connect, greeting, CAPABILITY, LOGOUT, every `health.interval`, give or take a tenth, so that
//! the looks at many servers do not come in step. What it says is repaired once and then greets every client, so that
//! scanners and silent clients cost the backend nothing.

use std::future::poll_fn;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt as _;
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until, timeout};

use super::connect::source_towards;
use super::dial::{self, Failure, Link};
use super::resolve::resolve;
use super::server::{Endpoint, Place, Server};
use super::{Known, News, Said};
use crate::dns;
use crate::proto::imap::capability;
use crate::proto::imap::response::{self, Kind, Response};

/// The first pause before a name that gives no address is looked up again; the shortest between two look-ups.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// The longest pause.
const MAX_WAIT: Duration = Duration::from_secs(8);
/// Bytes that a server may answer.
const MAX_ANSWER: usize = 64 * 1024;

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Dial(#[from] dial::Error),
    #[error("no answer to CAPABILITY within {0:?} (timeouts.backend_greeting)")]
    Timeout(Duration),
    #[error("it did not answer CAPABILITY: {0}")]
    NoCapabilities(&'static str),
    #[error("it broke off while it was asked for its capabilities")]
    Io(#[from] io::Error),
}

impl Error {
    fn failure(&self) -> Failure {
        match self {
            Self::Dial(error) => error.failure(),
            Self::Timeout(_) => Failure::GreetingTimeout,
            Self::NoCapabilities(_) => Failure::NotImap,
            Self::Io(_) => Failure::Closed,
        }
    }
}

/// Keeps what is known of one server fresh, for ever. All of it is one task, so that nothing of it outlives it.
pub async fn keep(server: Arc<Server>) {
    let mut addresses = pin!(look_up(&server));
    let mut watches = Watches::default();
    poll_fn(|cx| {
        let _: Poll<()> = addresses.as_mut().poll(cx);
        watches.fit(&server);
        watches.poll(cx)
    })
    .await
}

/// Looks the name up whenever it is time to.
async fn look_up(server: &Server) {
    let mut wait = FIRST_WAIT;
    loop {
        let limit = server.goes_by.timeouts.connect;
        let answer =
            timeout(limit, resolve(&server.resolver, &server.goes_by.server.address)).await;
        let late =
            || dns::Error::Failed(format!("no answer within {limit:?} (backend.connect_timeout)"));
        let until = match answer.unwrap_or_else(|_| Err(late())) {
            Ok(resolved) => {
                server.adopt(&resolved.targets, resolved.whole);
                wait = FIRST_WAIT;
                resolved.until
            }
            Err(why) => {
                server.on_unresolved(why, wait == FIRST_WAIT);
                let until = tokio::time::Instant::now() + wait;
                wait = MAX_WAIT.min(wait * 2);
                Some(until)
            }
        };
        let over = async {
            match until {
                Some(until) => sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = over => {}
            () = server.lost.notified() => sleep(FIRST_WAIT).await,
        }
    }
}

/// What watches each address of one server.
#[derive(Default)]
struct Watches(Vec<(Arc<Endpoint>, Watch)>);

/// Never ready.
type Watch = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Watches {
    /// One for each address that it has now.
    fn fit(&mut self, server: &Arc<Server>) {
        let places = server.places();
        self.0.retain(|(watched, _)| {
            places.iter().any(|place| Arc::ptr_eq(&place.endpoint, watched))
        });
        for Place { endpoint, .. } in places.iter() {
            if !self.0.iter().any(|(watched, _)| Arc::ptr_eq(watched, endpoint)) {
                let watch = watch(Arc::clone(server), Arc::clone(endpoint));
                self.0.push((Arc::clone(endpoint), Box::pin(watch)));
            }
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        for (_, watch) in &mut self.0 {
            let _: Poll<()> = watch.as_mut().poll(cx);
        }
        Poll::Pending
    }
}

/// Returns when one of `servers` is up or all are known to be down. Who [keeps](keep) them then goes on.
pub async fn first(servers: &[Arc<Server>], news: &News) {
    let mut keepers = JoinSet::new();
    for server in servers.iter().filter(|server| !server.is_out_of_use()) {
        keepers.spawn(keep(Arc::clone(server)));
    }
    loop {
        let next = news.next();
        let mut wanted = servers.iter().filter(|server| !server.is_out_of_use());
        if servers.iter().any(|server| server.is_up()) || wanted.all(|server| server.is_judged()) {
            return;
        }
        next.await;
    }
}

/// Looks at one address whenever it is time to.
async fn watch(server: Arc<Server>, endpoint: Arc<Endpoint>) {
    loop {
        let next = endpoint.health().next_look();
        if next <= Instant::now() {
            look(&server, &endpoint).await;
        } else {
            tokio::select! {
                () = sleep_until(next.into()) => {}
                () = endpoint.stirred.notified() => {}
            }
        }
    }
}

/// Asks once, and takes what comes.
async fn look(server: &Server, endpoint: &Endpoint) {
    let mut asked = pin!(ask(server, endpoint));
    let patience = endpoint.health().patience();
    let asked = match timeout(patience, asked.as_mut()).await {
        Ok(asked) => asked,
        Err(_) => {
            endpoint.health().on_hanging();
            asked.await
        }
    };
    match asked {
        Ok((said, took)) => {
            let identity = server.goes_by.server.identity;
            let known = Known::new(Arc::new(said), &server.repair, identity);
            server.on_good(endpoint, known, took, jittered(server.goes_by.health.interval));
        }
        Err(error) => server.on_bad_look(endpoint, error.failure(), &error),
    }
}

/// Nine to eleven tenths.
fn jittered(interval: Duration) -> Duration {
    let random = RandomState::new().hash_one(Instant::now());
    interval.mul_f64(0.9 + 0.2 * (random >> 32) as f64 / f64::from(u32::MAX))
}

/// And how long it took to greet.
async fn ask(server: &Server, endpoint: &Endpoint) -> Result<(Said, Duration), Error> {
    let start = Instant::now();
    let link = server.dial(endpoint, None).await?;
    let (limit, took) = (server.goes_by.timeouts.greeting, start.elapsed());
    let (greeting, capabilities) =
        timeout(limit, capabilities(link)).await.map_err(|_| Error::Timeout(limit))??;
    let text = text_of(&greeting).iter().copied().filter(|byte| !byte.is_ascii_control()).collect();
    let us = source_towards(&endpoint.address);
    Ok((Said { text, capabilities, us }, took))
}

/// The greeting's words for people.
fn text_of(greeting: &[u8]) -> &[u8] {
    let text = response::code(greeting).map_or(greeting, |(_, text)| text);
    if text.is_empty() { b"IMAP server ready" } else { text }
}

/// The last greeting's text and the capability list.
async fn capabilities(link: Link) -> Result<(Vec<u8>, Vec<u8>), Error> {
    const TAG: &[u8] = b"L1";
    let Link { mut stream, mut input, mut greeting, .. } = link;
    stream.send(b"L1 CAPABILITY\r\n").await?;
    let mut list = None;
    loop {
        while let Some(response::Whole { response, line, length }) =
            response::next(&input, MAX_ANSWER)
                .map_err(|_| Error::NoCapabilities("it says too much"))?
        {
            match response {
                Response::Tagged { tag: TAG, kind: Kind::Ok, .. } => {
                    // Politely, but nobody waits for the answer.
                    let _ = stream.send(b"L2 LOGOUT\r\n").await;
                    stream.close();
                    let list = list.ok_or(Error::NoCapabilities("OK without a list"))?;
                    return Ok((greeting, list));
                }
                Response::Tagged { tag: TAG, .. } => return Err(Error::NoCapabilities("refused")),
                // Dovecot that waits for its authentication process greets twice.
                Response::Status { kind: Kind::Ok, text } => greeting = text.to_vec(),
                Response::Status { kind: Kind::Bye, .. } => {
                    return Err(Error::NoCapabilities("BYE"));
                }
                Response::Untagged => {
                    list = capability::list_of(line).map(<[u8]>::to_vec).or(list);
                }
                _ => return Err(Error::NoCapabilities("something that is not IMAP")),
            }
            input.drain(..length);
        }
        if stream.read_buf(&mut input).await? == 0 {
            return Err(Error::NoCapabilities("it closed the connection"));
        }
    }
}
