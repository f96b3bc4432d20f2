//! From a name to its addresses, as this system's two files say.
//!
//! In: the name of a host or of a service. Out: its addresses, or its SRV records (RFC 2782), and until when they hold. A
//! host is looked for in `/etc/hosts` first, and what stands there is the whole answer, as it is for the C library. Then
//! the servers of `/etc/resolv.conf` are asked, IPv6 and IPv4 at once, without a thread that waits. Where that file is
//! missing or names no server, one on this machine is asked, as resolv.conf(5) has it: by TCP, which says at once
//! that nothing listens there. Both files are read anew when they have changed.
//! Limits: what DNS says holds for [`MAX_TTL`] at most. The caller has the deadline.
//! Not here: what an address of the configuration means (`backend::resolve`).

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use hickory_resolver::system_conf::parse_resolv_conf;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::text::without_numbers;

/// The answer of the other family is waited for so long: one that never comes must not keep everybody out. It counts when
/// the name is looked up again.
const OTHER_FAMILY: Duration = Duration::from_millis(500);
const SERVERS: &str = "/etc/resolv.conf";
const HOSTS: &str = "/etc/hosts";
/// A changed address is seen this soon, whatever the record's TTL: container networks announce minutes and
/// change within seconds.
const MAX_TTL: Duration = Duration::from_secs(10);
pub const MIN_TTL: Duration = Duration::from_secs(1);

/// Why a name has no address, in an operator's words.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("it is no name that DNS could have: {0}")]
    NoName(String),
    /// DNS says so.
    #[error("neither /etc/hosts nor DNS knows the name")]
    Unknown,
    #[error("DNS has no address for the name")]
    NoAddress,
    #[error("DNS says that there is no such service")]
    NoService,
    /// DNS could not be asked. Both halves are whole sentences.
    #[error("{hosts}, and {servers}; no DNS server runs on this machine either")]
    NoServer { hosts: String, servers: String },
    #[error("{0}")]
    Failed(String),
}

impl Error {
    /// The name is known not to be there; otherwise that could not be found out.
    pub fn is_definite(&self) -> bool {
        !matches!(self, Self::NoServer { .. } | Self::Failed(_))
    }
}

/// What a host's name means now.
#[derive(Debug)]
pub struct Found {
    /// Sorted, each once; never empty.
    pub ips: Vec<IpAddr>,
    pub until: Instant,
    /// Both kinds of address are known; otherwise what is missing may be there all the same.
    pub whole: bool,
}

/// One record of a service.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Service {
    pub priority: u16,
    pub weight: u16,
    pub port: u16,
    pub host: String,
}

/// Reads both files when a name is first looked up, and again when one has changed.
#[derive(Default)]
pub struct Resolver(Mutex<Option<(Changed, Arc<System>)>>);

type Changed = [Option<SystemTime>; 2];

/// What the files say. One resolver for each kind of address, since neither answer waits for the other.
struct System {
    /// What stands in `/etc/hosts`, or why nothing is known of it.
    hosts: Result<String, String>,
    six: TokioResolver,
    four: TokioResolver,
    /// Whom to ask.
    servers: Servers,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Servers {
    Named(Vec<IpAddr>),
    /// Why there are none, in words.
    Nobody(String),
}

impl Resolver {
    /// The addresses of a host.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn host(&self, host: &str) -> Result<Found, Error> {
        let name = name_of(host)?;
        let system = self.system()?;
        let mut ips = match &system.hosts {
            Ok(text) => in_hosts(text, host, &name.to_ascii()),
            Err(_) => Vec::new(),
        };
        if ips.is_empty() {
            return system.ask(name).await;
        }
        ips.sort_unstable();
        ips.dedup();
        Ok(Found { ips, until: latest(), whole: true })
    }

    /// The records of a service, at least one, and until when they hold.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn service(&self, service: &str) -> Result<(Vec<Service>, Instant), Error> {
        let name = name_of(service)?;
        let system = self.system()?;
        system.four.clear_cache();
        let found = system.four.lookup(name, RecordType::SRV).await;
        let found = found.map_err(|error| match system.why(&error) {
            Error::NoAddress => Error::NoService,
            why => why,
        })?;
        let records = found.answers().iter().filter_map(|record| match &record.data {
            RData::SRV(srv) if !srv.target.is_root() => Some(Service {
                priority: srv.priority,
                weight: srv.weight,
                port: srv.port,
                host: srv.target.to_ascii(),
            }),
            _ => None,
        });
        let records: Vec<_> = records.collect();
        match records.is_empty() {
            true => Err(Error::NoService),
            false => Ok((records, latest().min(found.valid_until().into()))),
        }
    }

    fn system(&self) -> Result<Arc<System>, Error> {
        let changed = [SERVERS, HOSTS]
            .map(|file| std::fs::metadata(file).and_then(|file| file.modified()).ok());
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((seen, system)) = &*kept
            && *seen == changed
        {
            return Ok(Arc::clone(system));
        }
        let system = Arc::new(System::new(std::fs::read(SERVERS), std::fs::read(HOSTS))?);
        *kept = Some((changed, Arc::clone(&system)));
        Ok(system)
    }
}

impl System {
    fn new(resolv_conf: io::Result<Vec<u8>>, hosts: io::Result<Vec<u8>>) -> Result<Self, Error> {
        let (config, options, servers) = settings(resolv_conf);
        let build = |strategy| {
            let provider = TokioRuntimeProvider::default();
            let mut builder = TokioResolver::builder_with_config(config.clone(), provider);
            let wanted = builder.options_mut();
            *wanted = options.clone();
            wanted.ip_strategy = strategy;
            wanted.positive_max_ttl = Some(MAX_TTL);
            wanted.cache_size = 0; // whoever asks has waited for the TTL, or does not believe in it
            wanted.use_hosts_file = ResolveHosts::Never;
            builder.build().map_err(|error| Error::Failed(without_numbers(error.to_string())))
        };
        Ok(Self {
            // A byte that is no UTF-8, in a comment perhaps, is no reason to know none of the others.
            hosts: match hosts {
                Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
                Err(error) => Err(unreadable(HOSTS, &error)),
            },
            six: build(LookupIpStrategy::Ipv6Only)?,
            four: build(LookupIpStrategy::Ipv4Only)?,
            servers,
        })
    }

    /// What DNS has for a host.
    async fn ask(self: &Arc<Self>, name: Name) -> Result<Found, Error> {
        let mut asked = JoinSet::new();
        for six in [true, false] {
            let (system, name) = (Arc::clone(self), name.clone());
            asked.spawn(async move {
                let resolver = if six { &system.six } else { &system.four };
                resolver.clear_cache();
                resolver.lookup_ip(name).await
            });
        }
        let (mut ips, mut until, mut why) = (Vec::new(), latest(), Error::NoAddress);
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
                    let this = self.why(&error);
                    if why.is_definite() {
                        why = this; // a failure is what the operator has to know
                    }
                }
                Some(Err(_)) => whole = false,
                None => break,
            }
        }
        ips.sort_unstable();
        ips.dedup();
        let until = until.max(Instant::now() + MIN_TTL);
        if ips.is_empty() { Err(why) } else { Ok(Found { ips, until, whole }) }
    }

    fn why(&self, error: &NetError) -> Error {
        if error.is_nx_domain() {
            return Error::Unknown;
        }
        if error.is_no_records_found() {
            return Error::NoAddress;
        }
        let servers = match &self.servers {
            Servers::Named(ips) => ips,
            Servers::Nobody(why) => {
                let missing = || format!("it is not in {HOSTS}");
                let hosts = self.hosts.as_ref().map_or_else(Clone::clone, |_| missing());
                return Error::NoServer { hosts, servers: why.clone() };
            }
        };
        let servers: Vec<String> = servers.iter().map(ToString::to_string).collect();
        let servers = format!("the DNS server of {SERVERS} ({})", servers.join(", "));
        Error::Failed(match error {
            NetError::Timeout => format!("{servers} does not answer"),
            NetError::Dns(DnsError::ResponseCode(code)) => format!("{servers} answers: {code}"),
            NetError::NoConnections | NetError::Io(_) => format!("{servers} can't be reached"),
            other => {
                let other = without_numbers(other.to_string());
                format!("the answer of {servers} can't be used: {other}")
            }
        })
    }
}

/// What to ask whom, from a resolv.conf. A line that can't be used costs that line.
fn settings(file: io::Result<Vec<u8>>) -> (ResolverConfig, ResolverOpts, Servers) {
    let (text, why) = match file {
        Ok(text) => (text, format!("{SERVERS} names no DNS server")),
        Err(error) => (Vec::new(), unreadable(SERVERS, &error)),
    };
    let essential = || -> Vec<u8> {
        let lines = text.split_inclusive(|byte| *byte == b'\n');
        let kept = lines.filter(|line| {
            let word = line.split(u8::is_ascii_whitespace).find(|word| !word.is_empty());
            matches!(word, Some(b"nameserver" | b"options"))
        });
        kept.flatten().copied().collect()
    };
    // A bad `search` makes the library refuse the whole file.
    let parsed = parse_resolv_conf(&text).or_else(|_| parse_resolv_conf(essential()));
    if let Ok((config, options)) = parsed {
        let servers = config.name_servers().iter().map(|server| server.ip).collect();
        return (config, options, Servers::Named(servers));
    }
    // The domains to search and the options count all the same.
    let with_server = |mut text: Vec<u8>| {
        text.extend_from_slice(b"\nnameserver 127.0.0.1\n");
        parse_resolv_conf(text)
    };
    let parsed = with_server(text.clone()).or_else(|_| with_server(essential()));
    let (config, options) = parsed.unwrap_or_default();
    let here = NameServerConfig::tcp(Ipv4Addr::LOCALHOST.into());
    let domain = config.domain().cloned();
    let config = ResolverConfig::from_parts(domain, config.search().to_vec(), vec![here]);
    (config, options, Servers::Nobody(why))
}

fn unreadable(file: &str, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => format!("there is no {file}"),
        io::ErrorKind::PermissionDenied => format!("{file} is not readable for the proxy's user"),
        _ => format!("{file} can't be read: {}", without_numbers(error.to_string())),
    }
}

/// The addresses that `/etc/hosts` has for a name, which is written in one of two ways (hosts(5): an address, then names).
fn in_hosts(text: &str, host: &str, ascii: &str) -> Vec<IpAddr> {
    let same = |name: &str| {
        let name = name.trim_end_matches('.');
        [host, ascii].iter().any(|wanted| wanted.trim_end_matches('.').eq_ignore_ascii_case(name))
    };
    let lines = text.trim_start_matches('\u{feff}').lines();
    let found = lines.filter_map(|line| {
        let mut words = line.split('#').next()?.split_ascii_whitespace();
        let ip: IpAddr = words.next()?.parse().ok()?;
        words.any(same).then(|| ip.to_canonical())
    });
    found.collect()
}

fn latest() -> Instant {
    Instant::now() + MAX_TTL
}

/// Container engines give out names with underscores, which are no host names (RFC 1123 §2.1) and yet work: so an
/// ASCII name is taken as it is, and only another one goes through IDNA.
fn name_of(host: &str) -> Result<Name, Error> {
    let name = if host.is_ascii() { Name::from_ascii(host) } else { Name::from_utf8(host) };
    name.map_err(|error| Error::NoName(error.to_string()))
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
    fn a_line_of_hosts_names_an_address_and_what_it_is_called() {
        let text = "\u{feff}# 192.0.2.9 legacy\n127.0.0.1\tlocalhost localhost.localdomain\n\
                    ::1 localhost ip6-localhost\r\n192.0.2.1 mail_old LEGACY.example. # legacy\n\
                    ::ffff:192.0.2.2 legacy\nfe80::1%eth0 legacy\nlegacy legacy\n\n192.0.2.3\n\
                    192.0.2.4 bücher.example\n192.0.2.5 xn--bcher-kva.example";
        for (name, expected) in [
            ("localhost", &["127.0.0.1", "::1"][..]),
            ("legacy", &["192.0.2.2"]),
            ("legacy.example", &["192.0.2.1"]),
            ("Legacy.Example.", &["192.0.2.1"]),
            ("mail_old", &["192.0.2.1"]),
            ("bücher.example", &["192.0.2.4", "192.0.2.5"]),
            ("other", &[]),
            ("192.0.2.3", &[]),
        ] {
            let ascii = name_of(name).unwrap().to_ascii();
            let found: Vec<_> =
                in_hosts(text, name, &ascii).iter().map(IpAddr::to_string).collect();
            assert_eq!(found, expected, "{name}");
        }
    }

    #[test]
    fn a_resolv_conf_counts_as_far_as_it_can_be_used() {
        let named = |ips: &[&str]| {
            Servers::Named(ips.iter().map(|ip| ip.parse().expect("an address")).collect())
        };
        let nobody = || Servers::Nobody("/etc/resolv.conf names no DNS server".to_owned());
        let bad_search = format!("search {}.example\n", "a".repeat(64));
        for (text, expected, search) in [
            ("nameserver 10.0.0.2\nsearch lan\n", named(&["10.0.0.2"]), 1),
            ("", nobody(), 0),
            ("# nothing\nsearch lan\noptions ndots:5\n", nobody(), 1),
            ("nameserver mail.example.org\nnameserver\n", nobody(), 0),
            (&bad_search, nobody(), 0),
            (&format!("{bad_search}nameserver 10.0.0.2\nrubbish\n"), named(&["10.0.0.2"]), 0),
            ("nameserver 10.0.0.2\nnameserver ::1", named(&["10.0.0.2", "::1"]), 0),
        ] {
            let (config, _, servers) = settings(Ok(text.as_bytes().to_vec()));
            assert_eq!(servers, expected, "{text}");
            assert_eq!(config.search().len(), search, "{text}");
            assert!(!config.name_servers().is_empty());
        }
        let (_, options, _) = settings(Ok(b"options ndots:5\n".to_vec()));
        assert_eq!(options.ndots, 5);
        for (kind, words) in [
            (io::ErrorKind::NotFound, "there is no /etc/resolv.conf"),
            (
                io::ErrorKind::PermissionDenied,
                "/etc/resolv.conf is not readable for the proxy's user",
            ),
        ] {
            let (.., servers) = settings(Err(kind.into()));
            assert_eq!(servers, Servers::Nobody(words.to_owned()));
        }
    }

    #[tokio::test]
    async fn a_bad_byte_in_hosts_costs_nobody_the_rest() {
        let hosts = b"# B\xfccher\n192.0.2.1 legacy\n".to_vec();
        let system = System::new(Ok(Vec::new()), Ok(hosts)).unwrap();
        let text = system.hosts.unwrap();
        assert_eq!(in_hosts(&text, "legacy", "legacy").len(), 1);
    }
}
