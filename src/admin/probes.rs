//! The HTTP listener that Prometheus and orchestrators ask: `/metrics`, `/healthz`, `/readyz`; by [`serve_with`] also
//! one with other answers and limits.
//!
//! In: a bound listener. Out: answers to GET and HEAD (HTTP/1.1, RFC 9112), nothing else.
//! Limits: 16 connections at once (one more ends the oldest, so that idle ones keep nobody out), 10 s for a request's
//! head (which is also how long a connection may stay idle), 16 KiB of it, 30 s for a connection in all, and then 10 s to
//! finish an answer. Where everybody may ask, [`PUBLIC`].
//! Invariant: nothing that a request holds is echoed, and nothing about users or clients is shown.
//! Not here: what is counted (`metrics`), and who sets [`Readiness`].

use std::collections::VecDeque;
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
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Readiness;

const TEXT: &str = "text/plain; charset=utf-8";

/// What a connection may cost.
#[derive(Clone, Copy)]
pub struct Limits {
    pub connections: usize,
    head: Duration,
    head_bytes: usize,
    connection: Duration,
    last_answer: Duration,
    /// After an answer the next request may follow.
    keep_alive: bool,
}

const LIMITS: Limits = Limits {
    connections: 16,
    head: Duration::from_secs(10),
    head_bytes: 16 * 1024,
    connection: Duration::from_secs(30),
    last_answer: Duration::from_secs(10),
    keep_alive: true,
};

/// For a listener that the Internet reaches: so many places, and each for so short, that whoever takes them all does not
/// end the connection of a CA before it has its answer.
pub const PUBLIC: Limits = Limits {
    connections: 256,
    head: Duration::from_secs(2),
    connection: Duration::from_secs(5),
    last_answer: Duration::from_secs(2),
    keep_alive: false,
    ..LIMITS
};

/// Answers until `stop`; then it lets go of the listener, running answers get a moment, and it returns. Cancel it
/// last: `/readyz` has to say "draining" while sessions drain.
pub async fn serve(
    listener: Arc<TcpListener>,
    registry: Registry,
    readiness: Arc<Readiness>,
    stop: CancellationToken,
) {
    let answer = move |request: &_| answer(request, &registry, &readiness, SystemTime::now());
    serve_with(LIMITS, listener, answer, stop).await;
}

/// Answers a request without waiting for anything.
pub trait Answer: Fn(&Request<Incoming>) -> Response<Full<Bytes>> + Send + Sync + 'static {}

impl<F: Fn(&Request<Incoming>) -> Response<Full<Bytes>> + Send + Sync + 'static> Answer for F {}

/// As [`serve`], with answers of somebody else's.
pub async fn serve_with(
    limits: Limits,
    listener: Arc<TcpListener>,
    answer: impl Answer,
    stop: CancellationToken,
) {
    let answer = Arc::new(answer);
    let mut places: VecDeque<AbortHandle> = VecDeque::new();
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, _)) => {
                let (answer, stop) = (Arc::clone(&answer), stop.clone());
                places.retain(|place| !place.is_finished());
                if places.len() >= limits.connections
                    && let Some(oldest) = places.pop_front()
                {
                    oldest.abort();
                }
                let answers = tasks.spawn(async move {
                    answer_all(socket, limits, &*answer, &stop).await;
                });
                places.push_back(answers.abort_handle());
            }
            // Out of descriptors, or a client that is gone already. Trying at once would only burn a core.
            Err(error) => {
                tracing::debug!(%error, "HTTP listener: accept failed");
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
    answer: &impl Answer,
    stop: &CancellationToken,
) {
    let service = service_fn(|request: Request<Incoming>| {
        let response = answer(&request);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new()) // without it the next line is silently off
        .header_read_timeout(limits.head)
        .keep_alive(limits.keep_alive)
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

pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(TEXT));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus::IntCounter;
    use std::net::SocketAddr;
    use std::time::{Instant, UNIX_EPOCH};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::JoinHandle;

    struct Running {
        address: SocketAddr,
        readiness: Arc<Readiness>,
        stop: CancellationToken,
        task: JoinHandle<()>,
    }

    impl Running {
        async fn start(limits: Limits) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let registry = Registry::new();
            registry
                .register(Box::new(IntCounter::new("things_total", "Things").unwrap()))
                .unwrap();
            let readiness = Arc::new(Readiness::default());
            readiness.set_backends(vec![("legacy:143".into(), Arc::default())]);
            let stop = CancellationToken::new();
            let known = Arc::clone(&readiness);
            let answer = move |request: &_| answer(request, &registry, &known, SystemTime::now());
            let served = serve_with(limits, Arc::new(listener), answer, stop.clone());
            Self { address, readiness, stop, task: tokio::spawn(served) }
        }

        async fn connect(&self) -> TcpStream {
            TcpStream::connect(self.address).await.unwrap()
        }

        /// What comes back until the server closes.
        async fn ask(&self, request: &str) -> String {
            let mut socket = self.connect().await;
            socket.write_all(request.as_bytes()).await.unwrap();
            rest(&mut socket).await
        }

        async fn end(self) {
            self.stop.cancel();
            self.task.await.unwrap();
        }
    }

    async fn rest(socket: &mut TcpStream) -> String {
        let mut answer = Vec::new();
        let reading = async {
            let mut chunk = [0; 4096];
            // A reset after the answer (the rest of an oversized request unread) is an end as well.
            while let Ok(n) = socket.read(&mut chunk).await {
                if n == 0 {
                    break;
                }
                answer.extend_from_slice(&chunk[..n]);
            }
        };
        timeout(Duration::from_secs(20), reading).await.expect("the server closes");
        String::from_utf8(answer).unwrap()
    }

    fn get(path: &str) -> String {
        format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    }

    #[tokio::test]
    async fn each_path_answers_what_it_should() {
        let running = Running::start(LIMITS).await;
        let metrics = running.ask(&get("/metrics?x=1")).await;
        assert!(metrics.starts_with("HTTP/1.1 200 OK\r\n"), "{metrics}");
        assert!(metrics.contains("content-type: text/plain; version=0.0.4"), "{metrics}");
        assert!(metrics.contains("\nthings_total 0\n"), "{metrics}");
        assert!(running.ask(&get("/healthz")).await.ends_with("\r\n\r\nok\n"));
        assert!(running.ask(&get("/")).await.contains("/metrics"));
        assert!(running.ask(&get("/etc/passwd")).await.starts_with("HTTP/1.1 404 "));
        let not_yet = running.ask(&get("/readyz")).await;
        assert!(not_yet.starts_with("HTTP/1.1 503 "), "{not_yet}");
        assert!(not_yet.ends_with(
            "no listener is open\nno certificate is loaded\nno backend is up: legacy:143\n"
        ));
        running.readiness.set_listening(true);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        running.readiness.set_certificate_not_after(i64::try_from(now).unwrap() + 1000);
        running.readiness.set_backends(vec![("legacy:143".into(), Arc::new(true.into()))]);
        assert!(running.ask(&get("/readyz")).await.ends_with("\r\n\r\nready\n"));
        running.readiness.set_draining();
        assert!(running.ask(&get("/readyz")).await.starts_with("HTTP/1.1 503 "));
        running.end().await;
    }

    #[tokio::test]
    async fn other_methods_are_refused_and_head_has_no_body() {
        let running = Running::start(LIMITS).await;
        let request = "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc";
        let answer = running.ask(request).await;
        assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
        assert!(answer.contains("allow: GET, HEAD\r\n"), "{answer}");
        let answer =
            running.ask("HEAD /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
        assert!(
            answer.contains("content-length: 3\r\n") && answer.ends_with("\r\n\r\n"),
            "{answer}"
        );
        let answer = running.ask("* OK not http\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        running.end().await;
    }

    #[tokio::test]
    async fn pipelined_requests_are_answered_in_order_on_one_connection() {
        let running = Running::start(LIMITS).await;
        let keep = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
        let answer = running.ask(&format!("{keep}{keep}{}", get("/"))).await;
        assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 3, "{answer}");
        assert!(answer.ends_with("it can serve\n"));
        running.end().await;
    }

    #[tokio::test]
    async fn where_everybody_may_ask_a_connection_has_one_answer() {
        let running = Running::start(PUBLIC).await;
        let mut idle = Vec::new();
        for _ in 1..PUBLIC.connections {
            idle.push(running.connect().await);
        }
        let keep = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
        let begun = Instant::now();
        let answer = running.ask(&keep.repeat(3)).await;
        assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 1, "{answer}");
        for mut one in idle {
            rest(&mut one).await;
        }
        assert!(begun.elapsed() < PUBLIC.connection, "a silent one is cut off early");
        running.end().await;
    }

    #[tokio::test]
    async fn an_oversized_head_is_refused_with_431() {
        let running = Running::start(LIMITS).await;
        let within = format!(
            "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\nA: {}\r\n\r\n",
            "a".repeat(15_000)
        );
        assert!(running.ask(&within).await.starts_with("HTTP/1.1 200 "));
        let over = format!("GET /healthz HTTP/1.1\r\nHost: x\r\nA: {}\r\n\r\n", "a".repeat(17_000));
        let answer = running.ask(&over).await;
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
        let endless = format!("GET /healthz HTTP/1.1\r\nHost: x\r\nA: {}", "a".repeat(17_000));
        let answer = running.ask(&endless).await;
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
        running.end().await;
    }

    #[tokio::test]
    async fn a_slow_head_is_cut_off_and_a_slow_connection_too() {
        let head = Duration::from_millis(200);
        let running = Running::start(Limits { head, ..LIMITS }).await;
        let mut silent = running.connect().await;
        let mut slow = running.connect().await;
        slow.write_all(b"GET /healthz HTTP/1.1\r\nHo").await.unwrap();
        let begun = Instant::now();
        rest(&mut silent).await;
        rest(&mut slow).await;
        assert!(begun.elapsed() < Duration::from_secs(5));
        running.end().await;

        let (connection, last_answer) = (Duration::from_millis(200), Duration::from_millis(200));
        let running = Running::start(Limits { connection, last_answer, ..LIMITS }).await;
        let mut idle = running.connect().await;
        idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        assert!(rest(&mut idle).await.starts_with("HTTP/1.1 200 "));
        // Sends without reading, so that the answers fill every buffer and the server is stuck in writing.
        let mut deaf = running.connect().await;
        let requests = "GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1000);
        let writing = async { while deaf.write_all(requests.as_bytes()).await.is_ok() {} };
        timeout(Duration::from_secs(20), writing).await.expect("cut off by the deadline");
        running.end().await;
    }

    #[tokio::test]
    async fn one_connection_too_many_ends_the_oldest() {
        let running = Running::start(Limits { connections: 2, ..LIMITS }).await;
        let (mut oldest, _second) = (running.connect().await, running.connect().await);
        assert!(running.ask(&get("/healthz")).await.ends_with("ok\n"), "idle ones keep nobody out");
        assert_eq!(rest(&mut oldest).await, "");
        running.end().await;
    }

    #[tokio::test]
    async fn stopping_closes_the_listener_and_idle_connections() {
        let running = Running::start(LIMITS).await;
        let mut idle = running.connect().await;
        idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        idle.readable().await.unwrap();
        let address = running.address;
        running.end().await;
        assert!(rest(&mut idle).await.ends_with("ok\n"));
        assert!(TcpStream::connect(address).await.is_err());
    }
}
