//! From a server's address, as configured, to the addresses that can be connected to.
//!
//! In: [`ServerAddress`]. Out: [`Target`]s and how long they hold. A name is looked up in `/etc/hosts`, then at the servers of
//! `/etc/resolv.conf`, IPv6 and IPv4 at once, without a thread that waits; both files are read anew when they have changed. An
//! SRV name gives targets with priority and weight (RFC 2782), each of which is looked up in turn.
//! Limits: [`MAX_RECORDS`] of a service, [`MAX_TARGETS`] of a server. What DNS says holds for [`MAX_TTL`] at most.
//! Not here: which of them work (`health`), which comes first (`balance`).

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::LookupIpStrategy;
use hickory_resolver::net::NetError;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::config::settings::{HostPort, ServerAddress};

/// The answer of the other family is waited for so long: one that never comes must not keep everybody out. It counts when
/// the name is looked up again.
const OTHER_FAMILY: Duration = Duration::from_millis(500);
const FILES: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];
/// A changed address is seen this soon, whatever the record's TTL: container networks announce minutes and
/// change within seconds.
const MAX_TTL: Duration = Duration::from_secs(10);
const MIN_TTL: Duration = Duration::from_secs(1);
/// SRV records of one name that are used, those of the lowest priorities.
const MAX_RECORDS: usize = 16;
/// Addresses of one server that are used.
pub const MAX_TARGETS: usize = 32;

/// Where a connection is made to.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Address {
    Ip(SocketAddr),
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// One address of a server.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Target {
    pub address: Address,
    /// Of the SRV record; 0 without.
    pub priority: u16,
    /// Of the SRV record, shared by the addresses of its host; equal without.
    pub weight: u16,
}

/// What an address means now.
#[derive(Debug)]
pub struct Resolved {
    /// Each address once; never empty.
    pub targets: Vec<Target>,
    /// `None`: for ever.
    pub until: Option<Instant>,
    /// Every question was answered; otherwise what is missing may be there all the same.
    pub whole: bool,
}

/// Reads both files when a name is first looked up, and again when one has changed.
#[derive(Default)]
pub struct Resolver(Mutex<Option<(Changed, Arc<Families>)>>);

type Changed = [Option<SystemTime>; FILES.len()];

/// One resolver for each kind of address, since neither answer waits for the other.
struct Families {
    six: TokioResolver,
    four: TokioResolver,
}

impl Resolver {
    /// # Errors
    /// Why there is no address, in words.
    pub async fn resolve(&self, address: &ServerAddress) -> Result<Resolved, String> {
        let one = |address| {
            let target = Target { address, priority: 0, weight: 1 };
            Ok(Resolved { targets: vec![target], until: None, whole: true })
        };
        match address {
            ServerAddress::Unix(path) => one(Address::Unix(path.clone())),
            ServerAddress::Host(HostPort { host, port }) => match host.parse() {
                Ok(ip) => one(Address::Ip(SocketAddr::new(ip, *port))),
                Err(_) => {
                    let (ips, until, whole) = self.families()?.host(name_of(host)?).await?;
                    let targets = ips.into_iter().map(|ip| Target {
                        address: Address::Ip(SocketAddr::new(ip, *port)),
                        priority: 0,
                        weight: 1,
                    });
                    Ok(Resolved {
                        targets: targets.take(MAX_TARGETS).collect(),
                        until: Some(until),
                        whole,
                    })
                }
            },
            ServerAddress::Service(name) => self.families()?.service(name_of(name)?).await,
        }
    }

    fn families(&self) -> Result<Arc<Families>, String> {
        let changed =
            FILES.map(|file| std::fs::metadata(file).and_then(|file| file.modified()).ok());
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
            options.cache_size = 0; // whoever asks has waited for the TTL, or does not believe in it
            builder.build()
        };
        let families = || {
            Ok(Families {
                six: build(LookupIpStrategy::Ipv6Only)?,
                four: build(LookupIpStrategy::Ipv4Only)?,
            })
        };
        let families: Result<_, NetError> = families();
        let families = Arc::new(families.map_err(|error| format!("{}: {error}", FILES[0]))?);
        *kept = Some((changed, Arc::clone(&families)));
        Ok(families)
    }
}

impl Families {
    /// The addresses of a host, until when they hold, and whether both kinds were answered.
    async fn host(self: &Arc<Self>, name: Name) -> Result<(Vec<IpAddr>, Instant, bool), String> {
        let mut asked = JoinSet::new();
        for six in [true, false] {
            let (families, name) = (Arc::clone(self), name.clone());
            asked.spawn(async move {
                let resolver = if six { &families.six } else { &families.four };
                resolver.clear_cache();
                resolver.lookup_ip(name).await
            });
        }
        let (mut ips, mut until, mut why) = (Vec::new(), latest(), String::new());
        let mut whole = true;
        loop {
            let next = if ips.is_empty() {
                asked.join_next().await
            } else {
                match timeout(OTHER_FAMILY, asked.join_next()).await {
                    Ok(next) => next,
                    Err(_) => {
                        whole = false;
                        break;
                    }
                }
            };
            match next {
                Some(Ok(Ok(found))) => {
                    until = until.min(found.valid_until().into());
                    ips.extend(found.iter().map(|ip| ip.to_canonical()));
                }
                Some(Ok(Err(error))) => {
                    whole &= error.is_no_records_found(); // a failure says nothing
                    why = error.to_string();
                }
                Some(Err(_)) => whole = false,
                None => break,
            }
        }
        ips.sort_unstable();
        ips.dedup();
        let until = until.max(Instant::now() + MIN_TTL);
        if ips.is_empty() { Err(why) } else { Ok((ips, until, whole)) }
    }

    async fn service(self: &Arc<Self>, name: Name) -> Result<Resolved, String> {
        self.four.clear_cache();
        let found = self.four.lookup(name, RecordType::SRV).await;
        let found = found.map_err(|error| error.to_string())?;
        let mut until = latest().min(found.valid_until().into());
        let records = found.answers().iter().filter_map(|record| match &record.data {
            RData::SRV(srv) => Some((srv.priority, srv.weight, srv.port, srv.target.clone())),
            _ => None,
        });
        let mut records: Vec<_> = records.collect();
        if records.iter().all(|(.., target)| target.is_root()) {
            return Err("DNS says that there is no such service".to_owned());
        }
        records.sort_by(|a, b| a.0.cmp(&b.0).then_with(|| b.1.cmp(&a.1)));
        records.truncate(MAX_RECORDS);
        let mut asked = JoinSet::new();
        for (priority, weight, port, target) in records {
            let families = Arc::clone(self);
            asked.spawn(async move {
                let found = families.host(target.clone()).await;
                (priority, weight, port, found.map_err(|why| format!("{target}: {why}")))
            });
        }
        let (mut targets, mut why) = (BTreeMap::new(), "it names no host".to_owned());
        let mut whole = true;
        while let Some(done) = asked.join_next().await {
            match done {
                Ok((priority, weight, port, Ok((ips, valid, both)))) => {
                    until = until.min(valid);
                    whole &= both;
                    // The weight is the host's: its addresses share it.
                    let weight = weight.div_ceil(u16::try_from(ips.len()).unwrap_or(u16::MAX));
                    for ip in ips {
                        let address = Address::Ip(SocketAddr::new(ip, port));
                        let target = Target { address: address.clone(), priority, weight };
                        let best: &mut Target =
                            targets.entry(address).or_insert_with(|| target.clone());
                        if priority < best.priority {
                            *best = target;
                        }
                    }
                }
                Ok((.., Err(error))) => {
                    why = error;
                    whole = false;
                    until = until.min(Instant::now() + MIN_TTL);
                }
                Err(_) => whole = false,
            }
        }
        let mut targets: Vec<Target> = targets.into_values().collect();
        targets.sort_by_key(|target| target.priority);
        targets.truncate(MAX_TARGETS);
        let until = until.max(Instant::now() + MIN_TTL);
        if targets.is_empty() {
            Err(why)
        } else {
            Ok(Resolved { targets, until: Some(until), whole })
        }
    }
}

fn latest() -> Instant {
    Instant::now() + MAX_TTL
}

/// Container engines give out names with underscores, which are no host names (RFC 1123 §2.1) and yet work: so an
/// ASCII name is taken as it is, and only another one goes through IDNA.
fn name_of(host: &str) -> Result<Name, String> {
    let name = if host.is_ascii() { Name::from_ascii(host) } else { Name::from_utf8(host) };
    name.map_err(|error| error.to_string())
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
}
