//! The HTTP listener that Prometheus and orchestrators ask: `/metrics`, `/healthz`, `/readyz`; by [`serve_with`] also
//! one with other answers and limits.
//!
//! In: a bound listener. Out: answers to GET and HEAD (HTTP/1.1, RFC 9112), nothing else.
//! Limits: as many connections as descriptors allow ([`Limits::connections`]), 64 of which have asked something; who goes
//! when there are too many says `places`. 10 s until a connection asks, 10 s for a request's head (which is also
//! how long a connection may stay idle), 16 KiB of it, 30 s for a connection in all, and then 10 s to finish an answer.
//! Where everybody may ask, [`PUBLIC`]. The metrics are rendered once a second at most, however many ask, but for the
//! machine itself: who is on it needs no listener to keep it busy.
//! Invariant: nothing that a request holds is echoed, and nothing about users or clients is shown.
//! Not here: what is counted (`metrics`), and who sets [`Readiness`].

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{Encoder, Registry, TextEncoder};
use rustix::process::{Resource, getrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Sleep, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Readiness;
use super::places::{Place, Places, Room};

const TEXT: &str = "text/plain; charset=utf-8";

/// How long a rendering of the metrics is good for.
const FRESH: Duration = Duration::from_secs(1);

/// What a listener and its connections may cost.
#[derive(Clone, Copy)]
pub struct Limits {
    least_connections: usize,
    asking: usize,
    /// How long a connection is left alone while it has not asked yet.
    young: Duration,
    head: Duration,
    head_bytes: usize,
    connection: Duration,
    last_answer: Duration,
    /// After an answer the next request may follow.
    keep_alive: bool,
}

pub const LIMITS: Limits = Limits {
    least_connections: 16,
    asking: 64,
    young: Duration::from_millis(200),
    head: Duration::from_secs(10),
    head_bytes: 16 * 1024,
    connection: Duration::from_secs(30),
    last_answer: Duration::from_secs(10),
    keep_alive: true,
};

/// For a listener that the Internet reaches.
pub const PUBLIC: Limits = Limits {
    least_connections: 256,
    asking: 256,
    head: Duration::from_secs(2),
    connection: Duration::from_secs(5),
    last_answer: Duration::from_secs(2),
    keep_alive: false,
    ..LIMITS
};

impl Limits {
    /// Connections at once, most of which are silent if there are so many: a small part of the descriptors that the process
    /// may have. `None`: as many as it likes.
    pub fn connections(self, descriptors: Option<u64>) -> usize {
        const MOST: usize = 2048;
        let part = descriptors.and_then(|all| usize::try_from(all / 32).ok());
        part.unwrap_or(MOST).clamp(self.least_connections, MOST)
    }
}

/// Answers until `stop`; then it lets go of the listener, running answers get a moment, and it returns. Cancel it
/// last: `/readyz` has to say "draining" while sessions drain.
pub async fn serve(
    listener: Arc<TcpListener>,
    registry: Registry,
    readiness: Arc<Readiness>,
    stop: CancellationToken,
) {
    let metrics = Rendered { registry, last: Mutex::default() };
    let answer = move |request: &_, is_local| answer(request, &metrics, &readiness, is_local);
    serve_with(LIMITS, listener, answer, stop).await;
}

/// Answers a request without waiting for anything; whether it comes from the machine itself is the second argument.
pub trait Answer:
    Fn(&Request<Incoming>, bool) -> Response<Full<Bytes>> + Send + Sync + 'static
{
}

impl<F> Answer for F where
    F: Fn(&Request<Incoming>, bool) -> Response<Full<Bytes>> + Send + Sync + 'static
{
}

/// As [`serve`], with answers of somebody else's.
pub async fn serve_with(
    limits: Limits,
    listener: Arc<TcpListener>,
    answer: impl Answer,
    stop: CancellationToken,
) {
    let answer = Arc::new(answer);
    let descriptors = getrlimit(Resource::Nofile).current;
    let Limits { asking, young, .. } = limits;
    let places = Places::new(Room { all: limits.connections(descriptors), asking, young });
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, peer)) => {
                let Some((place, lost)) = places.enter(peer.ip(), Instant::now()) else {
                    tracing::debug!(%peer, "HTTP listener: too many connections");
                    continue;
                };
                let (answer, stop) = (Arc::clone(&answer), stop.clone());
                tasks.spawn(async move {
                    tokio::select! {
                        _ = lost => {}
                        () = answer_all(socket, &place, limits, &*answer, &stop) => {}
                    }
                });
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
    place: &Place,
    limits: Limits,
    answer: &impl Answer,
    stop: &CancellationToken,
) {
    let end = sleep(limits.connection);
    let mut first = [0]; // silent, it has no buffer yet
    tokio::select! {
        () = stop.cancelled() => return,
        asked = timeout(limits.head, socket.peek(&mut first)) => {
            if !matches!(asked, Ok(Ok(1))) {
                return;
            }
        }
    }
    place.asks();
    Box::pin(converse(socket, place.is_local(), end, limits, answer, stop)).await;
}

async fn converse(
    socket: TcpStream,
    is_local: bool,
    end: Sleep,
    limits: Limits,
    answer: &impl Answer,
    stop: &CancellationToken,
) {
    let service = service_fn(|request: Request<Incoming>| {
        let response = answer(&request, is_local);
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
        () = end => {}
        () = stop.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = timeout(limits.last_answer, connection).await;
}

fn answer(
    request: &Request<Incoming>,
    metrics: &Rendered,
    readiness: &Readiness,
    is_local: bool,
) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/metrics" => metrics.answer(Instant::now(), is_local),
        "/healthz" => text(StatusCode::OK, "ok\n"),
        "/readyz" => match readiness.check(SystemTime::now()) {
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

/// The metrics as text, which all who ask within [`FRESH`] share.
struct Rendered {
    registry: Registry,
    last: Mutex<Option<(Instant, Bytes)>>,
}

impl Rendered {
    fn answer(&self, now: Instant, is_local: bool) -> Response<Full<Bytes>> {
        let Some(text_of_now) = self.text(now, is_local) else {
            return text(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be encoded\n");
        };
        let mut response = text(StatusCode::OK, text_of_now);
        let format = HeaderValue::from_static(prometheus::TEXT_FORMAT);
        response.headers_mut().insert(CONTENT_TYPE, format);
        response
    }

    /// Those who ask while it is rendered wait for it, which is a matter of a millisecond.
    fn text(&self, now: Instant, anew: bool) -> Option<Bytes> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, text)) = &*last
            && !anew
            && now.saturating_duration_since(*at) < FRESH
        {
            return Some(text.clone());
        }
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            debug_assert!(false, "our own metrics do not encode: {error}");
            return None;
        }
        Some(last.insert((now, text.into())).1.clone())
    }
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
            let metrics = Rendered { registry, last: Mutex::default() };
            let answer = move |request: &_, is_local| answer(request, &metrics, &known, is_local);
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
        let now = i64::try_from(now).unwrap();
        running.readiness.set_certificates(vec![now - 1000..=now + 1000]);
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
        for _ in 1..PUBLIC.least_connections {
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
    async fn silent_connections_keep_nobody_out_and_a_young_one_may_be_silent() {
        let (young, few) = (Duration::ZERO, Limits { asking: 2, ..LIMITS });
        let running = Running::start(Limits { young, ..few }).await;
        let mut silent = Vec::new();
        for _ in 0..LIMITS.connections(getrlimit(Resource::Nofile).current) {
            silent.push(running.connect().await);
        }
        assert!(running.ask(&get("/healthz")).await.ends_with("ok\n"));
        assert_eq!(rest(&mut silent[0]).await, "", "the oldest made room");
        silent[1].write_all(get("/").as_bytes()).await.unwrap();
        assert!(rest(&mut silent[1]).await.ends_with("it can serve\n"), "and no other");
        running.end().await;

        // Nor do those who begin to ask and go on to nothing.
        let running = Running::start(few).await;
        let mut slow = Vec::new();
        for _ in 0..3 {
            let mut one = running.connect().await;
            one.write_all(b"GET /hea").await.unwrap();
            slow.push(one);
        }
        assert!(running.ask(&get("/healthz")).await.ends_with("ok\n"));
        running.end().await;
    }

    #[test]
    fn connections_are_a_small_part_of_the_descriptors() {
        for (descriptors, want) in
            [(Some(0), 16), (Some(1024), 32), (Some(20_000), 625), (Some(1 << 20), 2048)]
        {
            assert_eq!(LIMITS.connections(descriptors), want);
        }
        assert_eq!((LIMITS.connections(None), PUBLIC.connections(Some(64))), (2048, 256));
    }

    #[test]
    fn the_metrics_are_rendered_once_a_second_but_for_the_machine_itself() {
        let counter = IntCounter::new("things_total", "Things").unwrap();
        let registry = Registry::new();
        registry.register(Box::new(counter.clone())).unwrap();
        let metrics = Rendered { registry, last: Mutex::default() };
        let start = Instant::now();
        let count_at = |milliseconds, is_local| {
            let text = metrics.text(start + Duration::from_millis(milliseconds), is_local);
            let text = String::from_utf8(text.unwrap().to_vec()).unwrap();
            counter.inc();
            text.lines().last().unwrap().to_owned()
        };
        let seen = [(0, false), (999, false), (999, true), (1998, false), (1999, false)]
            .map(|(at, is_local)| count_at(at, is_local));
        let want = [0, 0, 2, 2, 4].map(|count| format!("things_total {count}"));
        assert_eq!(seen, want);
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
