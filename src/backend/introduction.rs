//! Tells a server by an ID command who the client is (`identity: dovecot-id`).
//!
//! After the greeting, inside TLS if there is any, before anything of the client. The answer is waited for: a server that
//! breaks off here has seen no password, and the next one can be tried. A server without ID, or one that
//! refuses it, still serves: it takes the client for the proxy, which is worth a warning ([`Untold`]) and no outage.
//! Limits: `timeouts.backend_greeting` for the answer; its size is that of [`proto`].
//! Not here: the words (`proto::imap::introduction`).

use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::time::timeout;

use super::dial::{Error, Link};
use super::identity::{Caller, Untold};
use crate::conn::close::session_id;
use crate::log::printable;
use crate::proto::imap::introduction::{self as proto, Answer, Person, Verdict};
use crate::proto::imap::{capability, response};

/// Introduces `caller` on a connection behind its greeting.
/// `reads_id`: whether the server can, as far as was learned.
pub async fn introduce(
    link: &mut Link,
    caller: &Caller<'_>,
    reads_id: bool,
    limit: Duration,
) -> Result<(), Error> {
    if !offered(&link.greeting).unwrap_or(reads_id) {
        link.untold = Some(Untold::NoId);
        return Ok(());
    }
    match timeout(limit, exchange(link, caller)).await {
        Ok(Ok(Verdict::Taken)) => {}
        Ok(Ok(Verdict::Refused(text))) => link.untold = Some(Untold::Refused(printable(&text))),
        Ok(Err(why)) => return Err(Error::Id(why)),
        Err(_) => {
            let why = format!("no answer within {limit:?} (timeouts.backend_greeting)");
            return Err(Error::Id(why));
        }
    }
    link.introduced = true;
    Ok(())
}

/// Whether ID stands in the greeting's list, if there is one: behind STARTTLS there is none.
fn offered(greeting: &[u8]) -> Option<bool> {
    let (code, _) = response::code(greeting)?;
    capability::has(code, b"CAPABILITY").then(|| capability::has(code, b"ID"))
}

async fn exchange(link: &mut Link, caller: &Caller<'_>) -> Result<Verdict, String> {
    let session = session_id(caller.session);
    let person = Person {
        session: &session,
        client: caller.client.socket(),
        listener: caller.listener,
        tls: caller.handshake.is_some(),
        server_name: caller.handshake.and_then(|handshake| handshake.sni.as_deref()),
        hops: caller.hops,
    };
    let mut command = Vec::new();
    proto::write(caller.tag, &person, caller.id, &mut command);
    link.stream.send(&command).await.map_err(|error| error.to_string())?;
    let mut answer = Answer::to(caller.tag);
    loop {
        if let Some(verdict) = answer.read(&mut link.input).map_err(|error| error.to_string())? {
            link.alerts.append(&mut answer.alerts);
            return Ok(verdict);
        }
        if !matches!(link.stream.read_buf(&mut link.input).await, Ok(1..)) {
            return Err("it closed the connection".to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_with_a_list_says_whether_id_is_offered() {
        for (greeting, expected) in [
            (&b"[CAPABILITY IMAP4rev1 id] hi"[..], Some(true)),
            (b"[CAPABILITY IMAP4rev1 IDLE] ID", Some(false)),
            (b"[ALERT] ID", None),
            (b"ID", None),
        ] {
            assert_eq!(offered(greeting), expected, "{}", String::from_utf8_lossy(greeting));
        }
    }
}
