//! A connection to one address.
//!
//! Not here: which address (`resolve`, `balance`), what is said on the connection (`dial`).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use super::dial::Error;
use super::resolve::Address;

/// The address from which connections to `address` come, as the routes stand; nothing is sent. `None`: there are no routes, or
/// no addresses.
pub fn source_towards(address: &Address) -> Option<IpAddr> {
    let Address::Ip(address) = address else { return None };
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(address).ok()?;
    socket.local_addr().ok().map(|source| source.ip().to_canonical())
}

pub async fn connect(address: &Address, limit: Duration) -> Result<TcpStream, Error> {
    let connecting = async {
        match address {
            Address::Ip(address) => TcpStream::connect(address).await,
            Address::Unix(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    };
    match timeout(limit, connecting).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(source)) => Err(Error::Connect { address: address.clone(), source }),
        Err(_) => Err(Error::Timeout(limit)),
    }
}
