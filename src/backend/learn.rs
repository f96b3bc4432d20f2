//! Asks each server, as a client would, how it greets and what it can do.
//!
//! At start, every [`AGAIN`] and as soon as a login found a server down: connect, greeting, CAPABILITY, LOGOUT. What
//! it says is repaired once and then greets every client, so that scanners and silent clients cost the
//! backend nothing. A server that can't be asked is asked again after [`FIRST_WAIT`], then
//! after twice as long, up to [`MAX_WAIT`].

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::dial::{self, Link};
use super::{Known, Said, Server};
use crate::proto::imap::capability;
use crate::proto::imap::response::{self, Kind, Response};

/// How often a server that is up is asked.
const AGAIN: Duration = Duration::from_secs(30);
/// The first pause before a server that can't be asked is asked again.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// Longest pause between two attempts at one that is not.
const MAX_WAIT: Duration = Duration::from_secs(8);
/// Bytes that a server may answer.
const MAX_ANSWER: usize = 64 * 1024;

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Dial(#[from] dial::Error),
    #[error("no answer to CAPABILITY within {0:?}")]
    Timeout(Duration),
    #[error("it did not answer CAPABILITY: {0}")]
    NoCapabilities(&'static str),
    #[error("it broke off while it was asked for its capabilities")]
    Io(#[from] io::Error),
}

/// Keeps what is known of one server fresh, for ever. One that is up was just asked.
pub async fn keep(server: &Server) {
    let mut wait = FIRST_WAIT;
    let mut last_error = String::new();
    if server.is_up() {
        rest(server).await;
    }
    loop {
        match look(server, &last_error).await {
            Ok(()) => {
                (wait, last_error) = (FIRST_WAIT, String::new());
                rest(server).await;
            }
            Err(error) => {
                server.set_up(false);
                let error = error.to_string();
                if error != last_error {
                    tracing::warn!(backend = &*server.name, error, "backend is down");
                    last_error = error;
                }
                sleep(wait).await;
                wait = MAX_WAIT.min(wait * 2);
            }
        }
    }
}

/// Returns when one of `servers` has answered or none will; the others are asked no further. Who [keeps](keep) them asks
/// again.
pub async fn first(servers: &[Arc<Server>]) {
    let mut asked = JoinSet::new();
    for server in servers {
        let server = Arc::clone(server);
        asked.spawn(async move { look(&server, "").await.is_ok() });
    }
    while let Some(answered) = asked.join_next().await {
        if answered.unwrap_or(false) {
            return;
        }
    }
}

async fn rest(server: &Server) {
    tokio::select! {
        () = sleep(AGAIN) => {}
        () = server.lost.notified() => {}
    }
}

/// Asks once, and takes what comes.
async fn look(server: &Server, last_error: &str) -> Result<(), Error> {
    let known = Known::new(Arc::new(ask(server).await?), &server.repair);
    announce(server, &known, last_error);
    server.known.store(Some(Arc::new(known)));
    server.set_up(true);
    Ok(())
}

/// Says what changed, and how to cure what keeps people out.
fn announce(server: &Server, known: &Known, last_error: &str) {
    let before = server.known.load();
    let capabilities = String::from_utf8_lossy(&known.told.capabilities);
    if before.as_ref().is_none_or(|before| before.told.capabilities != known.told.capabilities) {
        tracing::info!(backend = &*server.name, capabilities = &*capabilities, "backend is up");
        if known.login_disabled {
            tracing::warn!(
                backend = &*server.name,
                "backend advertises LOGINDISABLED: it refuses passwords on a connection that it takes for unencrypted. \
                 Tell it that this one is safe, e.g. Dovecot: login_trusted_networks = <address of the proxy>; \
                 Cyrus: allowplaintext: yes; hiding the word from clients does not make logins work"
            );
        }
    } else if !last_error.is_empty() {
        tracing::info!(backend = &*server.name, "backend is up again");
    }
}

async fn ask(server: &Server) -> Result<Said, Error> {
    let link = server.dial(None).await?;
    let limit = server.goes_by.timeouts.greeting;
    let (greeting, capabilities) =
        timeout(limit, capabilities(link)).await.map_err(|_| Error::Timeout(limit))??;
    let text = text_of(&greeting).iter().copied().filter(|byte| !byte.is_ascii_control()).collect();
    Ok(Said { text, capabilities })
}

/// The greeting's words for people.
fn text_of(greeting: &[u8]) -> &[u8] {
    let text = response::code(greeting).map_or(greeting, |(_, text)| text);
    if text.is_empty() { b"IMAP server ready" } else { text }
}

/// The last greeting's text and the capability list.
async fn capabilities(link: Link) -> Result<(Vec<u8>, Vec<u8>), Error> {
    const TAG: &[u8] = b"L1";
    let Link { mut stream, mut input, mut greeting } = link;
    stream.write_all(b"L1 CAPABILITY\r\n").await?;
    let mut list = None;
    loop {
        while let Some(response::Whole { response, line, length }) =
            response::next(&input, MAX_ANSWER)
                .map_err(|_| Error::NoCapabilities("it says too much"))?
        {
            match response {
                Response::Tagged { tag: TAG, kind: Kind::Ok, .. } => {
                    // Politely, but nobody waits for the answer.
                    let _ = stream.write_all(b"L2 LOGOUT\r\n").await;
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
