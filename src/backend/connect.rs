//! A connection to one address.
//!
//! Not here: which address (`resolve`, `balance`), what is said on the connection (`dial`).

use std::io;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use super::dial::Error;
use super::resolve::Address;

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
