//! HTTPS to the CA, with deadlines and limits (the library has none).
//!
//! In: requests of the library. Out: whole answers. It trusts the system's CAs and those of `tls.acme.ca`, and looks
//! names up by `dns` as the servers are, for a static binary has no getaddrinfo.
//! Limits: [`STEP`] for one request and all of its answer, [`MAX_ANSWER`] bytes of it.
//! Invariant: nothing passes on which the library would panic.

use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::{BodyExt as _, Limited};
use hyper::body::Bytes;
use hyper::header::{HeaderMap, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::TokioExecutor;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls::ClientConfig;
use rustls::crypto::aws_lc_rs;
use tokio::time::timeout;
use tower_service::Service;

use super::super::{certificate, chain, roots};
use super::failure::Failure;
use crate::dns::{self, Resolver};

const STEP: Duration = Duration::from_secs(30);
const MAX_ANSWER: usize = 1 << 20;
/// Seconds: a day. Nothing here waits longer, whatever the CA asks for.
const MAX_WAIT: u64 = 86_400;

/// One set of connections to the CA, for the time of an order.
pub struct Https {
    client: Client<HttpsConnector<HttpConnector<Dns>>, BodyWrapper<Bytes>>,
    wait: Arc<AtomicU64>,
}

/// Finds the CA's addresses.
#[derive(Clone)]
struct Dns(Arc<Resolver>);

impl Service<Name> for Dns {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = dns::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, dns::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), dns::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let resolver = Arc::clone(&self.0);
        Box::pin(async move {
            let found = resolver.host(name.as_str()).await?;
            // The connector puts the port of the URL in.
            let addresses: Vec<_> = found.ips.iter().map(|ip| SocketAddr::new(*ip, 0)).collect();
            Ok(addresses.into_iter())
        })
    }
}

/// What the CA has last asked to wait.
#[derive(Clone, Default)]
pub struct Wait(Arc<AtomicU64>);

impl Wait {
    pub fn last(&self) -> Option<Duration> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            seconds => Some(Duration::from_secs(seconds)),
        }
    }
}

impl Https {
    /// Reads the CAs from files: blocking.
    ///
    /// # Errors
    /// `ca` can't be read, or there is no CA at all.
    pub fn new(ca: Option<&Path>, wait: &Wait) -> Result<Self, Failure> {
        let mut roots = roots::system();
        if let Some(path) = ca {
            let wrong = |text| Failure::refused(text, "correct tls.acme.ca");
            let cas = certificate::read_cas(path).map_err(|error| wrong(chain(&error)))?;
            cas.problems.iter().for_each(|why| tracing::warn!("{why}; it does not count"));
            roots.extend(cas.roots.roots);
        }
        if roots.is_empty() {
            return Err(Failure::refused(
                "no CA is trusted here, so the directory can't be either".to_owned(),
                "install the package ca-certificates, or name a CA in tls.acme.ca",
            ));
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| Failure::refused(chain(&error), "this is a mistake of the proxy"))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut tcp = HttpConnector::new_with_resolver(Dns(Arc::default()));
        tcp.enforce_http(false);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(config)
            .https_only()
            .enable_http1()
            .wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Ok(Self { client, wait: Arc::clone(&wait.0) })
    }
}

impl HttpClient for Https {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let (uri, is_get) = (request.uri().clone(), request.method() == Method::GET);
        let (sent, wait) = (self.client.request(request), Arc::clone(&self.wait));
        let exchange = async move {
            let (mut parts, body) =
                sent.await.map_err(|error| Error::Other(error.into()))?.into_parts();
            let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(Error::Other)?;
            let body = body.to_bytes();
            let seconds = bound_wait(&mut parts.headers);
            if is_get {
                check_directory(&body)?;
            }
            if !parts.status.is_success() {
                wait.store(seconds.unwrap_or(0), Ordering::Relaxed);
                // A problem document says more than its status; anything else says less.
                if body.first() != Some(&b'{') {
                    let text = format!("{uri} answered {}", parts.status);
                    return Err(Error::Other(text.into()));
                }
            }
            Ok(BytesResponse { parts, body: Box::new(body) })
        };
        Box::pin(async move {
            let late = |_| Err(Error::Other(format!("no answer within {STEP:?}").into()));
            timeout(STEP, exchange).await.unwrap_or_else(late)
        })
    }
}

/// The seconds of a Retry-After, of which no more than [`MAX_WAIT`] are left: the library adds them to the time.
fn bound_wait(headers: &mut HeaderMap) -> Option<u64> {
    let seconds: u64 = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    if seconds > MAX_WAIT {
        headers.insert(RETRY_AFTER, HeaderValue::from(MAX_WAIT));
    }
    Some(seconds.min(MAX_WAIT))
}

/// A directory (RFC 8555 §7.1.1) has URLs, which the library takes for granted. Other answers to GET have none of these.
fn check_directory(body: &[u8]) -> Result<(), Error> {
    let Ok(answer) = serde_json::from_slice::<serde_json::Value>(body) else { return Ok(()) };
    for name in ["newNonce", "newAccount", "newOrder"] {
        if answer
            .get(name)
            .and_then(|url| url.as_str())
            .is_some_and(|url| url.parse::<Uri>().is_err())
        {
            return Err(Error::Other(format!("the directory's {name} is no URL").into()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_wait_is_too_long_for_the_clock() {
        for (asked, left, seconds) in [
            ("5", "5", Some(5)),
            (" 120 ", "120", Some(120)),
            ("86401", "86400", Some(86400)),
            ("18446744073709551615", "86400", Some(86400)),
            ("18446744073709551616", "18446744073709551616", None),
            ("Fri, 31 Dec 1999 23:59:59 GMT", "Fri, 31 Dec 1999 23:59:59 GMT", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, HeaderValue::from_static(asked));
            assert_eq!(bound_wait(&mut headers), seconds, "{asked}");
            assert_eq!(headers[RETRY_AFTER].to_str().unwrap().trim(), left);
        }
        assert_eq!(bound_wait(&mut HeaderMap::new()), None);
    }

    #[test]
    fn a_directory_without_urls_is_refused() {
        let directory = |nonce: &str| {
            let whole =
                serde_json::json!({ "newNonce": nonce, "newOrder": "https://ca.example/o" });
            check_directory(whole.to_string().as_bytes())
        };
        directory("https://ca.example/nonce").unwrap();
        for nonce in ["", " ", "https://ca.example/a b", "https://[::1"] {
            let error = directory(nonce).unwrap_err().to_string();
            assert_eq!(error, "the directory's newNonce is no URL", "{nonce}");
        }
        // What is no directory is for the library to judge.
        for other in ["", "<html>", "[]", r#"{"suggestedWindow": {}}"#] {
            check_directory(other.as_bytes()).unwrap();
        }
    }
}
