//! A connection to one address.
//!
//! Not here: which address (`resolve`, `balance`), what is said on the connection (`dial`).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream};
use tokio::time::{sleep, timeout};

use super::dial::Error;
use super::resolve::Address;
use super::stream::Stream;
use super::transparent;
use crate::conn::socket;

/// How soon a Unix socket whose queue is full is tried again: the system does not say when it has room.
const RETRY: Duration = Duration::from_millis(20);

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

/// `source`: the client's address, where the connection is to come from it.
pub async fn connect(
    address: &Address,
    source: Option<IpAddr>,
    limit: Duration,
) -> Result<Stream, Error> {
    let connecting = async {
        match address {
            Address::Ip(address) => {
                let stream = match source {
                    None => TcpStream::connect(address).await?,
                    Some(client) => transparent::connect(client, *address).await?,
                };
                socket::prepare(&stream);
                Ok(Stream::Tcp(stream))
            }
            Address::Unix(path) => Ok(Stream::Unix(Box::new(unix(path).await?))),
        }
    };
    match timeout(limit, connecting).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(source)) => Err(Error::Connect { address: address.clone(), source }),
        Err(_) => Err(Error::Timeout(limit)),
    }
}

async fn unix(path: &Path) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(RETRY).await,
            done => return done,
        }
    }
}
