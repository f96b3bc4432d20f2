//! When a CA would like its certificates to be renewed (ARI, RFC 9773).
//!
//! Pebble of Debian 12 makes no suggestions, so [`Ari`] stands before it and does: everything else is Pebble's.

mod support;

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConnection, ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value as Json, json};
use support::{Certificates, FakeBackend, PATIENCE, Pebble, Proxy, TlsOptions, connects, within};
use x509_parser::prelude::{FromDer, ParsedExtension, X509Certificate};

const ORDER: Duration = Duration::from_secs(60);
const OK: &str = "imaps_proxy_tls_acme_orders_total{result=\"ok\"}";
const FAILED: &str = "imaps_proxy_tls_acme_orders_total{result=\"failed\"}";
const NEXT: &str = "imaps_proxy_tls_acme_next_order_timestamp_seconds";
const DAY: i64 = 86_400;

/// What the CA says when it is asked for a window.
#[derive(Clone, Copy)]
enum Suggests {
    /// Unix seconds.
    Window(i64, i64),
    /// It has an error of its own.
    Error,
}

/// What it was asked, and what it is to say.
struct State {
    suggests: Suggests,
    /// Orders that say what they replace are turned down.
    replaces_nothing: bool,
    /// Certificates of which a window was asked for.
    asked: Vec<String>,
    /// Of each order, what it replaces.
    orders: Vec<Option<String>>,
}

/// Makes suggestions in front of a CA that makes none.
struct Ari {
    state: Arc<Mutex<State>>,
}

impl Ari {
    /// In front of `pebble`, whose place it takes.
    fn start(pebble: &mut Pebble) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let behind = pebble.port;
        pebble.port = listener.local_addr().unwrap().port();
        let state = State {
            suggests: Suggests::Error,
            replaces_nothing: false,
            asked: Vec::new(),
            orders: Vec::new(),
        };
        let state = Arc::new(Mutex::new(state));
        let (certificates, shared) = (pebble.certificates.clone(), Arc::clone(&state));
        thread::spawn(move || {
            for socket in listener.incoming() {
                let (certificates, shared) = (certificates.clone(), Arc::clone(&shared));
                // A client that hangs up is no reason to say anything.
                thread::spawn(move || serve(socket?, &certificates, behind, &shared));
            }
        });
        Self { state }
    }

    fn says(&self, suggests: Suggests) {
        self.state.lock().unwrap().suggests = suggests;
    }

    fn asked(&self) -> Vec<String> {
        self.state.lock().unwrap().asked.clone()
    }

    fn orders(&self) -> Vec<Option<String>> {
        self.state.lock().unwrap().orders.clone()
    }
}

/// Head and body of one message; `None` at the end of the connection.
fn message(stream: &mut impl Read) -> io::Result<Option<(String, Vec<u8>)>> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte)? == 0 {
            return Ok(None);
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).expect("headers are text");
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("content-length").then(|| value.parse().expect("a number"))
    });
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body)?;
    Ok(Some((head, body)))
}

fn serve(
    socket: TcpStream,
    certificates: &Certificates,
    behind: u16,
    state: &Mutex<State>,
) -> io::Result<()> {
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(
            CertificateDer::pem_file_iter(&certificates.cert)
                .unwrap()
                .map(Result::unwrap)
                .collect(),
            PrivateKeyDer::from_pem_file(&certificates.key).unwrap(),
        )
        .unwrap();
    let mut client = StreamOwned::new(ServerConnection::new(Arc::new(config)).unwrap(), socket);
    while let Some((head, body)) = message(&mut client)? {
        let path = head.split(' ').nth(1).expect("a path").to_owned();
        let answer = match path.strip_prefix("/ari/") {
            Some(id) => suggestion(id, state),
            None => passed_on(&path, &head, body, certificates, behind, state)?,
        };
        client.write_all(&answer)?;
    }
    Ok(())
}

fn suggestion(id: &str, state: &Mutex<State>) -> Vec<u8> {
    let mut state = state.lock().unwrap();
    state.asked.push(id.to_owned());
    let (status, body) = match state.suggests {
        Suggests::Error => ("500 Internal Server Error", json!({ "detail": "out of order" })),
        Suggests::Window(start, end) => {
            let window = json!({ "start": date(start), "end": date(end) });
            ("200 OK", json!({ "suggestedWindow": window }))
        }
    };
    response(&format!("HTTP/1.1 {status}\r\nRetry-After: 21600\r\n"), &body)
}

/// RFC 3339.
fn date(unix: i64) -> String {
    let text = imaps_proxy::tls::facts::date(unix);
    text.replacen(' ', "T", 1).replace(" UTC", "Z")
}

fn response(head: &str, body: &Json) -> Vec<u8> {
    let body = body.to_string();
    format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// What Pebble says, with what it does not know put in.
fn passed_on(
    path: &str,
    head: &str,
    body: Vec<u8>,
    certificates: &Certificates,
    behind: u16,
    state: &Mutex<State>,
) -> io::Result<Vec<u8>> {
    let (host, is_order) = (header(head, "host").expect("HTTP/1.1"), path == "/order-plz");
    let mut replaces = None;
    if is_order {
        let jws: Json = serde_json::from_slice(&body).unwrap();
        let payload = URL_SAFE_NO_PAD.decode(jws["payload"].as_str().unwrap()).unwrap();
        let order: Json = serde_json::from_slice(&payload).unwrap();
        replaces = order["replaces"].as_str().map(str::to_owned);
    }
    let config = TlsOptions::default().config(&certificates.roots);
    let tls = ClientConnection::new(config, "localhost".try_into().unwrap()).unwrap();
    let mut pebble = StreamOwned::new(tls, TcpStream::connect((Ipv4Addr::LOCALHOST, behind))?);
    // With 1.0 the answer comes in one piece; with our host its links lead here.
    let (method, kind) = (head.split(' ').next().unwrap(), header(head, "content-type"));
    let kind = kind.map_or(String::new(), |kind| format!("Content-Type: {kind}\r\n"));
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.0\r\nHost: {host}\r\n{kind}Content-Length: {length}\r\n\r\n"
    );
    pebble.write_all(&[request.as_bytes(), &body].concat())?;
    let mut answer = Vec::new();
    pebble.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("a head") + 2;
    let head = String::from_utf8(answer[..end].to_vec()).unwrap();
    let body = &answer[end + 2..];
    let kept = head.lines().skip(1).filter(|line| {
        let name = line.split(':').next().unwrap().to_ascii_lowercase();
        name != "content-length" && name != "connection"
    });
    let status = head.split(' ').nth(1).unwrap().to_owned();
    let mut head = format!("HTTP/1.1 {status} Pebble\r\n");
    kept.for_each(|line| head.extend([line, "\r\n"]));

    let mut state = state.lock().unwrap();
    if path == "/dir" {
        let mut directory: Json = serde_json::from_slice(body).unwrap();
        directory["renewalInfo"] = format!("https://{host}/ari").into();
        return Ok(response(&head, &directory));
    }
    if is_order && status == "201" {
        state.orders.push(replaces.clone());
        if let Some(replaces) = replaces {
            if state.replaces_nothing {
                let kind = "urn:ietf:params:acme:error:alreadyReplaced";
                let head = head.replacen("201", "409", 1);
                return Ok(response(&head, &json!({ "type": kind, "detail": "replaced" })));
            }
            let mut order: Json = serde_json::from_slice(body).unwrap();
            order["replaces"] = replaces.into();
            return Ok(response(&head, &order));
        }
    }
    head += &format!("Content-Length: {}\r\n\r\n", body.len());
    Ok([head.as_bytes(), body].concat())
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (found, value) = line.split_once(": ")?;
        found.eq_ignore_ascii_case(name).then_some(value)
    })
}

/// What ARI calls the certificate in `file` (RFC 9773 §4.1), and from when to when it is valid.
fn certificate(file: &Path) -> (String, i64, i64) {
    let der = CertificateDer::from_pem_file(file).unwrap();
    let (_, leaf) = X509Certificate::from_der(&der).unwrap();
    let issuer = leaf.extensions().iter().find_map(|one| match one.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(issuer) => issuer.key_identifier.as_ref(),
        _ => None,
    });
    let id = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(issuer.expect("Pebble's leaves have one").0),
        URL_SAFE_NO_PAD.encode(leaf.raw_serial())
    );
    let valid = leaf.validity();
    (id, valid.not_before.timestamp(), valid.not_after.timestamp())
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    since.try_into().unwrap()
}

#[track_caller]
fn wait_for_next(proxy: &Proxy<'_>, from: i64, to: i64) {
    within(PATIENCE, &format!("the next order is between {from} and {to}"), || {
        (from..=to).contains(&(proxy.metric(NEXT) as i64))
    });
}

#[test]
fn window_of_the_ca_is_obeyed_and_the_next_order_says_what_it_replaces() {
    let mut pebble = Pebble::start();
    let ari = Ari::start(&mut pebble);
    let backend = FakeBackend::plain();
    let storage = tempfile::tempdir().unwrap();
    let section = pebble.section("mail.example.org", storage.path(), "");
    let start = || Proxy::starting(&backend).without_certificates().config(&section).start();
    let file = pebble.storage_of(storage.path()).join("certificate.pem");

    // It can't say: two thirds of the life.
    let proxy = start();
    within(ORDER, "an order is done", || proxy.metric(OK) > 0.5);
    let (first, from, to) = certificate(&file);
    assert_eq!((ari.asked(), ari.orders()), (vec![first.clone()], vec![None]));
    let life = to - from;
    wait_for_next(&proxy, from + life * 2 / 3, from + life * 7 / 10 + 1);
    assert!(proxy.text().contains("the CA could not be asked when to renew"), "{}", proxy.text());
    drop(proxy);

    // It says: in ten days.
    let window = (now() + 10 * DAY, now() + 11 * DAY);
    ari.says(Suggests::Window(window.0, window.1));
    let proxy = start();
    wait_for_next(&proxy, window.0, window.1);
    let line = proxy.log().into_iter().find(|line| line.message().contains("(ARI)")).unwrap();
    assert_eq!(line.field("start"), imaps_proxy::tls::facts::date(window.0));
    assert!(proxy.metric(OK) + proxy.metric(FAILED) < 0.5);
    drop(proxy);

    // It takes the certificate back: at once, though that has years to go.
    ari.says(Suggests::Window(now() - 2 * DAY, now() - DAY));
    let proxy = start();
    within(ORDER, "an order is done", || proxy.metric(OK) > 0.5);
    let (second, ..) = certificate(&file);
    assert_ne!(first, second);
    assert_eq!(ari.orders(), [None, Some(first.clone())]);
    // The CA says the same of the new one, and is not asked for certificates in a loop.
    wait_for_next(&proxy, now() + 3000, now() + 3700);
    assert_eq!(ari.asked(), [&first, &first, &first, &second].map(Clone::clone));
    assert!(proxy.metric(FAILED) < 0.5);
}

#[test]
fn order_that_may_replace_nothing_is_made_without_that() {
    let mut pebble = Pebble::start();
    let ari = Ari::start(&mut pebble);
    ari.state.lock().unwrap().replaces_nothing = true;
    let backend = FakeBackend::plain();
    let storage = tempfile::tempdir().unwrap();
    let section = pebble.section("mail.example.org", storage.path(), "");
    let start = || Proxy::starting(&backend).without_certificates().config(&section).start();
    let proxy = start();
    within(ORDER, "an order is done", || proxy.metric(OK) > 0.5);
    drop(proxy);
    let (first, ..) = certificate(&pebble.storage_of(storage.path()).join("certificate.pem"));
    ari.says(Suggests::Window(now() - 2 * DAY, now() - DAY));
    let proxy = start();
    within(ORDER, "an order is done", || proxy.metric(OK) > 0.5);
    assert_eq!(ari.orders(), [None, Some(first), None]);
    assert!(proxy.metric(FAILED) < 0.5 && connects(proxy.imaps.port()));
}
