//! The rules of addresses: two listeners do not collide, and no server is a listener of our own.

use std::net::{IpAddr, SocketAddr};

use super::tls::acme_section;
use crate::config::file;
use crate::config::read::{Lenient, Spanned};
use crate::config::settings::{ListenTls, ServerAddress};
use crate::config::text::mistake::{Mark, Mistakes};
use crate::config::value::address::{ListenAddress, collide};
use crate::config::value::word::ChallengeKind;

/// Two listeners must not ask the system for the same address and port.
pub(super) fn addresses(
    listen: &[file::Listen],
    metrics: Option<&file::Metrics>,
    acme: Option<&file::Acme>,
    mistakes: &mut Mistakes,
) {
    let acme = acme.filter(|acme| acme.challenge == ChallengeKind::Http01);
    let others = metrics.map(|at| &at.address).into_iter().chain(acme.map(|at| &at.http_address));
    let all = listen.iter().map(|at| &at.address).chain(others);
    let mut taken: Vec<(SocketAddr, Mark)> = Vec::new();
    for &Spanned { mark, value: ListenAddress(address) } in all {
        if let Some((other, at)) = taken.iter().find(|(other, _)| collide(*other, address)) {
            let line = at.line;
            let what = if *other == address {
                format!("`{address}` is used already, in line {line}")
            } else {
                format!("`{address}` and `{other}` in line {line} cannot be opened both")
            };
            mistakes.add(mark, what);
        } else {
            taken.push((address, mark));
        }
    }
}

/// What a CA asks in TLS is answered where TLS begins at once.
pub(super) fn answered(
    listen: &[file::Listen],
    tls: &Lenient<Spanned<file::Tls>>,
    mistakes: &mut Mistakes,
) {
    let asked = acme_section(tls).is_some_and(|acme| acme.challenge == ChallengeKind::TlsAlpn01);
    let in_vain = !listen.is_empty() && listen.iter().all(|at| at.tls == ListenTls::StartTls);
    if asked
        && in_vain
        && let Some(Spanned { mark, .. }) = &tls.0
    {
        let what = "`challenge: tls-alpn-01` needs a listener with `tls: implicit`, to which port 443 is forwarded";
        mistakes.add(*mark, what);
    }
}

/// A server that is one of our own listeners would send every session round and round.
pub fn loops(listen: &[file::Listen], servers: &[file::Server], mistakes: &mut Mistakes) {
    for Spanned { mark, value } in servers.iter().map(|server| &server.address) {
        let ServerAddress::Host(server) = value else { continue };
        let host = server.host.trim_end_matches('.').to_ascii_lowercase();
        let ips: Vec<IpAddr> = match host.parse() {
            Ok(ip) => vec![ip],
            Err(_) if host == "localhost" => {
                vec![std::net::Ipv4Addr::LOCALHOST.into(), std::net::Ipv6Addr::LOCALHOST.into()]
            }
            Err(_) => continue, // what a name means is known only when it is dialled
        };
        let reaches = |listener: std::net::SocketAddr, ip: IpAddr| {
            let here = ip.is_loopback() || ip.is_unspecified();
            let same = listener.ip() == ip || (ip.is_unspecified() && listener.ip().is_loopback());
            let open = collide((listener.ip(), 1).into(), (ip, 1).into());
            listener.port() == server.port && (same || (here && open))
        };
        let listener =
            listen.iter().find(|at| ips.iter().any(|ip| reaches(at.address.value.0, *ip)));
        if let Some(file::Listen {
            address: Spanned { mark: at, value: ListenAddress(own) }, ..
        }) = listener
        {
            let line = at.line;
            let what =
                format!("`{server}` is the proxy's own listener `{own}`, line {line}: a loop");
            mistakes.add(*mark, what);
        }
    }
}
