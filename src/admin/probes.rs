//! The HTTP listener that Prometheus and orchestrators ask: `/metrics`, `/healthz`, `/readyz`.
//!
//! In: a bound listener. Out: answers to GET and HEAD (HTTP/1.1, RFC 9112), nothing else.
//! Limits: 64 connections at once (more wait in the backlog), 10 s for a request's head (which is also how
//! long a connection may stay idle), 16 KiB of it, 30 s for a connection in all, and then 10 s to finish an
//! answer. So whoever is slow, on purpose or not, holds a place for 40 s at most.
//! Invariant: nothing that a request holds is echoed, and nothing about users or clients is shown.
//! Not here: what is counted (`metrics`), and who sets [`Readiness`].

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{Encoder, Registry, TextEncoder};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Readiness;

const TEXT: &str = "text/plain; charset=utf-8";

/// What a connection may cost; the values of the module header, smaller only in tests.
#[derive(Clone, Copy)]
struct Limits {
    connections: usize,
    head: Duration,
    head_bytes: usize,
    connection: Duration,
    last_answer: Duration,
}

const LIMITS: Limits = Limits {
    connections: 64,
    head: Duration::from_secs(10),
    head_bytes: 16 * 1024,
    connection: Duration::from_secs(30),
    last_answer: Duration::from_secs(10),
};

/// Answers until `stop`; then the listener closes, running answers get a moment, and it returns. Cancel it
/// last: `/readyz` has to say "draining" while sessions drain.
pub async fn serve(
    listener: TcpListener,
    registry: Registry,
    readiness: Arc<Readiness>,
    stop: CancellationToken,
) {
    serve_within(LIMITS, listener, registry, readiness, stop).await;
}

async fn serve_within(
    limits: Limits,
    listener: TcpListener,
    registry: Registry,
    readiness: Arc<Readiness>,
    stop: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(limits.connections));
    let tasks = TaskTracker::new();
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await.expect("never closed");
            (listener.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            () = stop.cancelled() => break,
            next = next => next,
        };
        match accepted {
            Ok((socket, _)) => {
                let (registry, readiness) = (registry.clone(), Arc::clone(&readiness));
                let stop = stop.clone();
                tasks.spawn(async move {
                    answer_all(socket, limits, &registry, &readiness, &stop).await;
                    drop(place);
                });
            }
            // Out of descriptors, or a client that is gone already. Trying at once would only burn a core.
            Err(error) => {
                tracing::debug!(%error, "metrics listener: accept failed");
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = sleep(Duration::from_millis(100)) => {}
                }
            }
        }
    }
    drop(listener);
    tasks.close();
    let _ = timeout(Duration::from_secs(2), tasks.wait()).await; // who has not read its answer by now is slow
}

async fn answer_all(
    socket: TcpStream,
    limits: Limits,
    registry: &Registry,
    readiness: &Readiness,
    stop: &CancellationToken,
) {
    let service = service_fn(|request: Request<Incoming>| {
        let response = answer(&request, registry, readiness, SystemTime::now());
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new()) // without it the next line is silently off
        .header_read_timeout(limits.head)
        .max_header_size(limits.head_bytes)
        .serve_connection(TokioIo::new(socket), service);
    tokio::pin!(connection);
    // The client's faults are nobody's business: an error here ends the connection and no more.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = sleep(limits.connection) => {}
        () = stop.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = timeout(limits.last_answer, connection).await;
}

fn answer(
    request: &Request<Incoming>,
    registry: &Registry,
    readiness: &Readiness,
    now: SystemTime,
) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/metrics" => metrics(registry),
        "/healthz" => text(StatusCode::OK, "ok\n"),
        "/readyz" => match readiness.check(now) {
            Ok(()) => text(StatusCode::OK, "ready\n"),
            Err(reasons) => text(StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n"),
        },
        "/" => text(
            StatusCode::OK,
            "imaps-proxy\n\n/metrics  for Prometheus\n/healthz  the process runs\n/readyz   it can serve\n",
        ),
        _ => text(StatusCode::NOT_FOUND, "not found; there are /metrics, /healthz and /readyz\n"),
    }
}

fn metrics(registry: &Registry) -> Response<Full<Bytes>> {
    let mut body = Vec::new();
    let encoder = TextEncoder::new();
    if let Err(error) = encoder.encode(&registry.gather(), &mut body) {
        debug_assert!(false, "our own metrics do not encode: {error}");
        return text(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be encoded\n");
    }
    let mut response = text(StatusCode::OK, body);
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_str(encoder.format_type()).expect("a constant of the library"),
    );
    response
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(TEXT));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
