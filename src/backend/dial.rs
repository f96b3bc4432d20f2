//! From a server's address to a connection that has greeted us.
//!
//! A name's addresses are all tried, IPv6 and IPv4 in turn, the next one after [`ATTEMPT_DELAY`] or as soon as one
//! has failed (Happy Eyeballs, RFC 8305). Only `* OK` is a greeting: a server that greets PREAUTH would log
//! everybody in as somebody else, one that says BYE is down, and anything else is no IMAP server.
//! None of them gets a password.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::LookupIpStrategy;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::config::settings::HostPort;
use crate::conn::socket;
use crate::proto::imap::response::{self, Kind, Response};

/// RFC 8305 §5: "Connection Attempt Delay".
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// Longest greeting line; Dovecot's lines end at 8 KiB.
const MAX_GREETING: usize = 8 * 1024;
/// A changed address is seen this soon, whatever the record's TTL: container networks announce minutes and
/// change within seconds.
const MAX_TTL: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// Name look-up and connection, all addresses together.
    pub connect: Duration,
    /// From the connection to the whole greeting.
    pub greeting: Duration,
}

/// A connection behind its greeting.
pub struct Link {
    pub stream: TcpStream,
    /// What the server sent behind the greeting.
    pub input: Vec<u8>,
    /// The greeting's text, its code included.
    pub greeting: Vec<u8>,
}

/// Why a server could not be used: the label `reason`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, strum::IntoStaticStr, strum::VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Failure {
    Resolve,
    Refused,
    Unreachable,
    Timeout,
    GreetingTimeout,
    Closed,
    NotImap,
    Preauth,
    Bye,
    OutOfDescriptors,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no resolver: {0}")]
    Resolver(String),
    #[error("{host} does not resolve: {why}")]
    Resolve { host: String, why: String },
    #[error("can't connect to {address}: {}", socket::why(source))]
    Connect { address: SocketAddr, source: io::Error },
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    #[error("no greeting within {0:?}")]
    GreetingTimeout(Duration),
    #[error("it closed the connection before it said anything useful")]
    Closed,
    #[error("it does not greet as an IMAP server does: {0:?}")]
    NotImap(String),
    #[error("it greets PREAUTH: everybody would be logged in as somebody else")]
    Preauth,
    #[error("it says BYE: {0:?}")]
    Bye(String),
}

impl Error {
    pub fn failure(&self) -> Failure {
        match self {
            Self::Resolver(_) | Self::Resolve { .. } => Failure::Resolve,
            Self::Connect { source, .. } => match source.raw_os_error() {
                _ if source.kind() == io::ErrorKind::ConnectionRefused => Failure::Refused,
                _ if source.kind() == io::ErrorKind::TimedOut => Failure::Timeout,
                _ if socket::out_of_descriptors(source) => Failure::OutOfDescriptors,
                _ => Failure::Unreachable,
            },
            Self::Timeout(_) => Failure::Timeout,
            Self::GreetingTimeout(_) => Failure::GreetingTimeout,
            Self::Closed => Failure::Closed,
            Self::NotImap(_) => Failure::NotImap,
            Self::Preauth => Failure::Preauth,
            Self::Bye(_) => Failure::Bye,
        }
    }
}

/// Looks names up without a thread that waits: `/etc/hosts`, then the servers of `/etc/resolv.conf`.
pub struct Resolver(TokioResolver);

impl Resolver {
    pub fn new() -> Result<Self, Error> {
        let failed = |error: hickory_resolver::net::NetError| Error::Resolver(error.to_string());
        let mut builder = TokioResolver::builder_tokio().map_err(failed)?;
        let options = builder.options_mut();
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        options.positive_max_ttl = Some(MAX_TTL);
        options.negative_max_ttl = Some(Duration::from_secs(1));
        Ok(Self(builder.build().map_err(failed)?))
    }

    async fn addresses(&self, address: &HostPort) -> Result<VecDeque<SocketAddr>, Error> {
        if let Ok(ip) = address.host.parse::<IpAddr>() {
            return Ok([SocketAddr::new(ip, address.port)].into());
        }
        let found = self.0.lookup_ip(address.host.as_str()).await;
        let found = found.map_err(|error| Error::Resolve {
            host: address.host.clone(),
            why: error.to_string(),
        })?;
        Ok(interleave(found.iter()).map(|ip| SocketAddr::new(ip, address.port)).collect())
    }
}

/// IPv6 and IPv4 in turn (RFC 8305 §4).
fn interleave(addresses: impl Iterator<Item = IpAddr>) -> impl Iterator<Item = IpAddr> {
    let (mut six, mut four): (VecDeque<_>, VecDeque<_>) = addresses.partition(IpAddr::is_ipv6);
    let mut take_six = false;
    std::iter::from_fn(move || {
        take_six = !take_six;
        let (first, second) = if take_six { (&mut six, &mut four) } else { (&mut four, &mut six) };
        first.pop_front().or_else(|| second.pop_front())
    })
}

/// Resolves, connects, reads the greeting.
pub async fn dial(
    resolver: &Resolver,
    address: &HostPort,
    timeouts: &Timeouts,
) -> Result<Link, Error> {
    let connected = timeout(timeouts.connect, async {
        let addresses = resolver.addresses(address).await?;
        connect_any(addresses, &address.host).await
    });
    let stream = connected.await.map_err(|_| Error::Timeout(timeouts.connect))??;
    socket::prepare(&stream);
    let greeted = timeout(timeouts.greeting, greeting(stream));
    greeted.await.map_err(|_| Error::GreetingTimeout(timeouts.greeting))?
}

async fn connect_any(mut addresses: VecDeque<SocketAddr>, host: &str) -> Result<TcpStream, Error> {
    let mut attempts = JoinSet::new();
    let mut last = Error::Resolve { host: host.to_owned(), why: "it has no address".to_owned() };
    loop {
        if let Some(address) = addresses.pop_front() {
            attempts.spawn(async move {
                TcpStream::connect(address)
                    .await
                    .map_err(|source| Error::Connect { address, source })
            });
        }
        tokio::select! {
            done = attempts.join_next() => match done {
                Some(Ok(Ok(stream))) => return Ok(stream),
                Some(Ok(Err(error))) => last = error,
                Some(Err(_)) => {}
                None => return Err(last),
            },
            () = sleep(ATTEMPT_DELAY), if !addresses.is_empty() => {}
        }
    }
}

async fn greeting(mut stream: TcpStream) -> Result<Link, Error> {
    let mut input = Vec::with_capacity(1024);
    loop {
        let whole = response::next(&input, MAX_GREETING);
        if let Some(response::Whole { response, line, length }) =
            whole.map_err(|_| Error::NotImap(shown(&input)))?
        {
            let greeting = match response {
                Response::Status { kind: Kind::Ok, text } => text.to_vec(),
                Response::Status { kind: Kind::PreAuth, .. } => return Err(Error::Preauth),
                Response::Status { kind: Kind::Bye, text } => return Err(Error::Bye(shown(text))),
                _ => return Err(Error::NotImap(shown(line))),
            };
            input.drain(..length);
            return Ok(Link { stream, input, greeting });
        }
        if stream.read_buf(&mut input).await.unwrap_or(0) == 0 {
            return Err(if input.is_empty() {
                Error::Closed
            } else {
                Error::NotImap(shown(&input))
            });
        }
    }
}

fn shown(text: &[u8]) -> String {
    crate::log::printable(&text[..text.len().min(80)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_tried_in_turn_by_family() {
        let ips = ["10.0.0.1", "10.0.0.2", "::1", "10.0.0.3", "::2"]
            .map(|ip| ip.parse::<IpAddr>().expect("an address"));
        let order: Vec<String> = interleave(ips.into_iter()).map(|ip| ip.to_string()).collect();
        assert_eq!(order, ["::1", "10.0.0.1", "::2", "10.0.0.2", "10.0.0.3"]);
    }
}
