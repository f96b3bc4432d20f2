//! From a server's address to a connection.
//!
//! A name's addresses are all tried, IPv6 and IPv4 in turn, the next one after [`ATTEMPT_DELAY`] or as soon as one
//! has failed (Happy Eyeballs, RFC 8305). Names are looked up without a thread that waits.
//! Not here: what is said on the connection (`dial`).

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::LookupIpStrategy;
use hickory_resolver::proto::rr::Name;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use super::dial::Error;
use crate::config::settings::HostPort;

/// RFC 8305 §5: "Connection Attempt Delay".
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// RFC 8305 §3: "Resolution Delay".
const RESOLUTION_DELAY: Duration = Duration::from_millis(50);
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// A changed address is seen this soon, whatever the record's TTL: container networks announce minutes and
/// change within seconds.
const MAX_TTL: Duration = Duration::from_secs(10);

/// Looks names up without a thread that waits: `/etc/hosts`, then the servers of `/etc/resolv.conf`. Read when a name is first
/// looked up, and again when that file has changed.
#[derive(Default)]
pub struct Resolver(Mutex<Option<(Option<SystemTime>, Arc<Families>)>>);

/// One resolver for each kind of address, since neither answer waits for the other (RFC 8305 §3).
struct Families {
    six: TokioResolver,
    four: TokioResolver,
}

impl Resolver {
    fn families(&self) -> Result<Arc<Families>, String> {
        let changed = std::fs::metadata(RESOLV_CONF).and_then(|file| file.modified()).ok();
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((seen, families)) = &*kept
            && *seen == changed
        {
            return Ok(Arc::clone(families));
        }
        let build = |strategy| {
            let mut builder = TokioResolver::builder_tokio()?;
            let options = builder.options_mut();
            options.ip_strategy = strategy;
            options.positive_max_ttl = Some(MAX_TTL);
            options.negative_max_ttl = Some(Duration::from_secs(1));
            builder.build()
        };
        let families = || {
            Ok(Families {
                six: build(LookupIpStrategy::Ipv6Only)?,
                four: build(LookupIpStrategy::Ipv4Only)?,
            })
        };
        let families: Result<_, hickory_resolver::net::NetError> = families();
        let families = Arc::new(families.map_err(|error| format!("{RESOLV_CONF}: {error}"))?);
        *kept = Some((changed, Arc::clone(&families)));
        Ok(families)
    }
}

/// The addresses of one server and the connections under way to them.
pub struct Attempts {
    port: u16,
    lookups: JoinSet<Result<Vec<IpAddr>, String>>,
    addresses: VecDeque<IpAddr>,
    connections: JoinSet<Result<TcpStream, Error>>,
    deadline: Instant,
    limit: Duration,
    /// Why the last one came to nothing.
    pub last: Error,
}

impl Attempts {
    /// Waits for the first addresses, and for those of the other family a moment longer.
    pub async fn start(
        resolver: &Resolver,
        address: &HostPort,
        limit: Duration,
    ) -> Result<Self, Error> {
        let unresolved = |why: String| Error::Resolve { host: address.host.clone(), why };
        let mut attempts = Self {
            port: address.port,
            lookups: JoinSet::new(),
            addresses: VecDeque::new(),
            connections: JoinSet::new(),
            deadline: Instant::now() + limit,
            limit,
            last: unresolved("it has no address".to_owned()),
        };
        if let Ok(ip) = address.host.parse() {
            attempts.addresses.push_back(ip);
            return Ok(attempts);
        }
        let families = resolver.families().map_err(unresolved)?;
        for six in [true, false] {
            let (families, name) =
                (Arc::clone(&families), name_of(&address.host).map_err(unresolved)?);
            attempts.lookups.spawn(async move {
                let resolver = if six { &families.six } else { &families.four };
                match resolver.lookup_ip(name).await {
                    Ok(found) => Ok(found.iter().collect()),
                    Err(error) => Err(error.to_string()),
                }
            });
        }
        while attempts.addresses.is_empty() {
            match timeout_at(attempts.deadline, attempts.lookups.join_next()).await {
                Ok(Some(Ok(Ok(found)))) => attempts.addresses.extend(found),
                Ok(Some(Ok(Err(why)))) => attempts.last = unresolved(why),
                Ok(Some(Err(_))) => {}
                Ok(None) => return Err(attempts.last),
                Err(_) => {
                    return Err(unresolved(format!("no answer within {limit:?}")));
                }
            }
        }
        if let Ok(Some(Ok(Ok(more)))) =
            timeout(RESOLUTION_DELAY, attempts.lookups.join_next()).await
        {
            attempts.addresses.extend(more);
        }
        attempts.addresses = interleave(attempts.addresses.into_iter()).collect();
        Ok(attempts)
    }

    /// The next connection that is made.
    pub async fn next(&mut self) -> Result<TcpStream, Error> {
        loop {
            if let Some(ip) = self.addresses.pop_front() {
                let address = SocketAddr::new(ip, self.port);
                self.connections.spawn(async move {
                    TcpStream::connect(address)
                        .await
                        .map_err(|source| Error::Connect { address, source })
                });
            } else if self.connections.is_empty() && self.lookups.is_empty() {
                return Err(std::mem::replace(&mut self.last, Error::Closed));
            }
            tokio::select! {
                Some(done) = self.connections.join_next() => match done {
                    Ok(Ok(stream)) => return Ok(stream),
                    Ok(Err(error)) => self.last = error,
                    Err(_) => {}
                },
                Some(found) = self.lookups.join_next() => {
                    self.addresses.extend(found.ok().and_then(Result::ok).unwrap_or_default());
                }
                () = sleep(ATTEMPT_DELAY), if !self.addresses.is_empty() => {}
                () = sleep_until(self.deadline) => return Err(Error::Timeout(self.limit)),
            }
        }
    }
}

/// Container engines give out names with underscores, which are no host names (RFC 1123 §2.1) and yet work: so an
/// ASCII name is taken as it is, and only another one goes through IDNA.
fn name_of(host: &str) -> Result<Name, String> {
    let name = if host.is_ascii() { Name::from_ascii(host) } else { Name::from_utf8(host) };
    name.map_err(|error| error.to_string())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_containers_are_names() {
        assert!(name_of("mail_server-legacy").is_ok());
        assert!(
            name_of("bücher.example").is_ok_and(|name| name.to_ascii() == "xn--bcher-kva.example")
        );
        assert!(name_of("a b").is_err());
    }

    #[test]
    fn addresses_are_tried_in_turn_by_family() {
        let ips = ["10.0.0.1", "10.0.0.2", "::1", "10.0.0.3", "::2"]
            .map(|ip| ip.parse::<IpAddr>().expect("an address"));
        let order: Vec<String> = interleave(ips.into_iter()).map(|ip| ip.to_string()).collect();
        assert_eq!(order, ["::1", "10.0.0.1", "::2", "10.0.0.2", "10.0.0.3"]);
    }
}
