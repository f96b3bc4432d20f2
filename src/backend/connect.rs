//! A connection to one address.
//!
//! Not here: which address (`resolve`, `balance`), what is said on the connection (`dial`).

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use super::dial::Error;
use super::resolve::Address;
use super::transparent;

/// `source`: the client's address, where the connection is to come from it.
pub async fn connect(
    address: &Address,
    source: Option<IpAddr>,
    limit: Duration,
) -> Result<TcpStream, Error> {
    let connecting = async {
        match (address, source) {
            (Address::Ip(address), None) => TcpStream::connect(address).await,
            (Address::Ip(address), Some(client)) => transparent::connect(client, *address).await,
            (Address::Unix(_), _) => Err(io::ErrorKind::Unsupported.into()),
        }
    };
    match timeout(limit, connecting).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(source)) => Err(Error::Connect { address: address.clone(), source }),
        Err(_) => Err(Error::Timeout(limit)),
    }
}
