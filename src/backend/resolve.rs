//! From a server's address, as configured, to the addresses that can be connected to.
//!
//! In: [`ServerAddress`]. Out: [`Target`]s and how long they hold. An SRV name gives targets with priority and weight
//! (RFC 2782), each of which is looked up in turn.
//! Limits: [`MAX_RECORDS`] of a service, [`MAX_TARGETS`] of a server.
//! Not here: how a name is looked up (`dns`), which of them work (`health`), which comes first (`balance`).

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::config::settings::{HostPort, ServerAddress};
use crate::dns::{Error, MIN_TTL, Resolver, Service};

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

/// # Errors
/// Why there is no address.
pub async fn resolve(resolver: &Arc<Resolver>, address: &ServerAddress) -> Result<Resolved, Error> {
    let one = |address| {
        let target = Target { address, priority: 0, weight: 1 };
        Ok(Resolved { targets: vec![target], until: None, whole: true })
    };
    match address {
        ServerAddress::Unix(path) => one(Address::Unix(path.clone())),
        ServerAddress::Host(HostPort { host, port }) => match host.parse() {
            Ok(ip) => one(Address::Ip(SocketAddr::new(ip, *port))),
            Err(_) => {
                let found = resolver.host(host).await?;
                let targets = found.ips.into_iter().map(|ip| Target {
                    address: Address::Ip(SocketAddr::new(ip, *port)),
                    priority: 0,
                    weight: 1,
                });
                Ok(Resolved {
                    targets: targets.take(MAX_TARGETS).collect(),
                    until: Some(found.until),
                    whole: found.whole,
                })
            }
        },
        ServerAddress::Service(name) => service(resolver, name).await,
    }
}

async fn service(resolver: &Arc<Resolver>, name: &str) -> Result<Resolved, Error> {
    let (mut records, mut until) = resolver.service(name).await?;
    records.sort_by(|a, b| a.priority.cmp(&b.priority).then_with(|| b.weight.cmp(&a.weight)));
    records.truncate(MAX_RECORDS);
    let mut asked = JoinSet::new();
    for Service { priority, weight, port, host } in records {
        let resolver = Arc::clone(resolver);
        asked.spawn(async move {
            let found = resolver.host(&host).await;
            let why = |why| Error::Failed(format!("{}: {why}", host.trim_end_matches('.')));
            (priority, weight, port, found.map_err(why))
        });
    }
    let (mut targets, mut why) = (BTreeMap::new(), Error::NoAddress);
    let mut whole = true;
    while let Some(done) = asked.join_next().await {
        match done {
            Ok((priority, weight, port, Ok(found))) => {
                until = until.min(found.until);
                whole &= found.whole;
                // The weight is the host's: its addresses share it.
                let share = u16::try_from(found.ips.len()).unwrap_or(u16::MAX);
                let weight = weight.div_ceil(share);
                for ip in found.ips {
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
    if targets.is_empty() { Err(why) } else { Ok(Resolved { targets, until: Some(until), whole }) }
}
