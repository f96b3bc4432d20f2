//! Connects to a server from the client's own address (`identity: transparent`).
//!
//! Linux lets a socket with IP_TRANSPARENT send from an address that is not its machine's, to who has CAP_NET_ADMIN or
//! CAP_NET_RAW. The answers must come back through this machine: that is the work of routes, which
//! deploy/backends/transparent.md gives. The port is one of the system's, not the client's: that one is still taken when
//! a second login follows the first.
//!
//! Never a lie: where the client's address can't be the source, the proxy's own is, and somebody is told
//! ([`super::identity::Untold`]).
//! Not here: looks of our own, which come from our own address.

use std::io;
use std::net::{IpAddr, SocketAddr};

use tokio::net::{TcpSocket, TcpStream};

use super::resolve::Address;
use crate::config::settings::{Identity, Server};
use crate::conn::socket;

/// The address from which `client` can call the server at `address`; `None`: only the proxy's own will do.
pub fn source(client: IpAddr, address: &Address) -> Option<IpAddr> {
    let Address::Ip(server) = address else { return None };
    let client = client.to_canonical();
    can_call(client, server.ip().to_canonical()).then_some(client)
}

/// Whether a packet from one to the other can make sense.
fn can_call(client: IpAddr, server: IpAddr) -> bool {
    let local = match client {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unicast_link_local(),
    };
    client.is_ipv4() == server.is_ipv4()
        && !client.is_unspecified()
        // Out of this machine and off this link such an address means somebody else.
        && (!local || server.is_loopback())
        // A machine drops what comes from outside in its own name.
        && (client != server || server.is_loopback())
}

pub async fn connect(client: IpAddr, server: SocketAddr) -> io::Result<TcpStream> {
    let socket = if client.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    permit(&socket, client.is_ipv4())?;
    socket.bind(SocketAddr::new(client, 0))?;
    socket.connect(server).await
}

#[cfg(target_os = "linux")]
fn permit(socket: &TcpSocket, ipv4: bool) -> io::Result<()> {
    let socket = socket2::SockRef::from(socket);
    if ipv4 { socket.set_ip_transparent_v4(true) } else { socket.set_ip_transparent_v6(true) }
}

#[cfg(not(target_os = "linux"))]
fn permit(_socket: &TcpSocket, _ipv4: bool) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Why no connection can have a client's address as its source.
#[derive(Debug, thiserror::Error)]
#[error(
    "can't use `identity: transparent`: {}; the process needs CAP_NET_ADMIN or CAP_NET_RAW \
     (systemd: AmbientCapabilities=CAP_NET_ADMIN; docker run --cap-add NET_ADMIN, as root; \
     or setcap cap_net_admin+ep on the program)",
    socket::why(.0)
)]
pub struct NotPermitted(io::Error);

/// Whether this process may do what `servers` ask for.
pub fn check(servers: &[Server]) -> Result<(), NotPermitted> {
    if servers.iter().all(|server| server.identity != Identity::Transparent) {
        return Ok(());
    }
    TcpSocket::new_v4().and_then(|socket| permit(&socket, true)).map_err(NotPermitted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_one_that_the_server_can_answer() {
        for (client, server, expected) in [
            ("192.0.2.9", "10.0.0.1", true),
            ("192.0.2.9", "127.0.0.1", true),
            ("127.0.0.9", "127.0.0.1", true),
            ("127.0.0.1", "127.0.0.1", true),
            ("127.0.0.1", "10.0.0.1", false),
            ("10.0.0.1", "10.0.0.1", false),
            ("169.254.0.1", "10.0.0.1", false),
            ("0.0.0.0", "10.0.0.1", false),
            ("192.0.2.9", "2001:db8::1", false),
            ("2001:db8::9", "10.0.0.1", false),
            ("2001:db8::9", "2001:db8::1", true),
            ("fe80::1", "2001:db8::1", false),
            ("::1", "::1", true),
            ("::ffff:192.0.2.9", "10.0.0.1", true),
        ] {
            let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
            let address = Address::Ip(SocketAddr::new(ip(server), 143));
            let found = source(ip(client), &address);
            assert_eq!(found.is_some(), expected, "{client} {server}");
            assert!(found.is_none_or(|found| found == ip(client).to_canonical()));
        }
    }
}
