//! One listener of the proxy, spoken to as a mail client does.
//!
//! In: its settings. Out: findings in the order of a connection, and what clients are told there. Where nobody listens, what
//! needs a running proxy is skipped with a word, and whether it could listen is tried instead.
//! Limits: a few connections for each name, each within `timeouts.handshake` and `timeouts.backend_greeting`.
//! Not here: what the certificates are worth (`certificate`).

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use rustls::AlertDescription;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use super::finding::{Check, Section};
use super::protocol::Speaks;
use super::talk::{self, Talk, Told};
use super::tls::{self, Met, TLS12, TLS13, Unmet};
use super::{Examined, certificate};
use crate::admin::ask::reachable;
use crate::backend::cures::{Cure, OURS, Step};
use crate::config::settings::{Listen, ListenTls, MinVersion};
use crate::conn::{accept, socket};
use crate::log::printable;
use crate::proto::imap::response::Kind;
use crate::proto::proxy_header::{self, Ends};

/// How long somebody who should speak first may be silent.
const SILENCE: Duration = Duration::from_secs(2);

/// Why TLS could not begin.
#[derive(Debug)]
enum Barred {
    Io(io::Error),
    Talk(talk::Error),
    /// The answer to STARTTLS.
    Refused(String),
}

/// Connects; the address that answered.
pub async fn connect(listen: &Listen, limit: Duration) -> io::Result<(TcpStream, SocketAddr)> {
    let mut last = io::Error::from(io::ErrorKind::TimedOut);
    for address in reachable(listen.address) {
        match timeout(limit, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok((stream, address)),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

/// A connection on which TLS begins next.
async fn before_tls(listen: &Listen, examined: &Examined<'_>) -> Result<TcpStream, Barred> {
    let limit = examined.settings.backend.connect_timeout;
    let (mut stream, _) = connect(listen, limit).await.map_err(Barred::Io)?;
    announce(listen, &mut stream).await.map_err(Barred::Io)?;
    if listen.tls == ListenTls::Implicit {
        return Ok(stream);
    }
    let limit = examined.settings.timeouts.backend_greeting;
    let mut talk = Talk::new(stream, Vec::new(), limit);
    talk.greeting().await.map_err(Barred::Talk)?;
    let answer = talk.command("STARTTLS").await.map_err(Barred::Talk)?;
    match answer.kind {
        Kind::Ok => talk.into_stream().map_err(Barred::Talk),
        _ => Err(Barred::Refused(printable(&answer.text))),
    }
}

/// Where a balancer is expected, we are one.
async fn announce(listen: &Listen, stream: &mut TcpStream) -> io::Result<()> {
    let (ours, theirs) = (stream.local_addr()?, stream.peer_addr()?);
    let from = ours.ip().to_canonical();
    if !listen.proxy_protocol_from.iter().any(|net| net.contains(&from)) {
        return Ok(());
    }
    let header = proxy_header::v1(Some(&Ends::new(ours, theirs)));
    stream.write_all(&header).await
}

/// A conversation inside TLS, past the greeting.
pub async fn enter(
    listen: &Listen,
    examined: &Examined<'_>,
) -> Result<Talk<TlsStream<TcpStream>>, String> {
    let stream = before_tls(listen, examined).await.map_err(|barred| barred.words())?;
    let name = server_name(listen, examined.names.first());
    let limit = examined.settings.timeouts.handshake;
    let met = tls::handshake(stream, name, &[TLS13, TLS12], limit).await;
    let met = met.map_err(|unmet| format!("the handshake failed: {}", words(&unmet)))?;
    let mut talk = Talk::new(met.stream, Vec::new(), examined.settings.timeouts.backend_greeting);
    if listen.tls == ListenTls::Implicit {
        talk.greeting().await.map_err(|error| error.to_string())?;
    }
    Ok(talk)
}

fn server_name(listen: &Listen, name: Option<&ServerName<'static>>) -> ServerName<'static> {
    name.cloned().unwrap_or_else(|| ServerName::from(listen.address.ip()))
}

/// Everything about one listener; what clients are told, if it came to that.
pub async fn examine(
    listen: &Listen,
    runs: bool,
    examined: &Examined<'_>,
    section: &mut Section,
) -> Option<Told> {
    if let Err(error) = std::net::UdpSocket::bind((listen.address.ip(), 0))
        && !listen.address.ip().is_unspecified()
        && (error.kind() == io::ErrorKind::AddrNotAvailable || socket::lacks_family(&error))
    {
        not_ours(listen, &error, section);
        return None;
    }
    let limit = examined.settings.backend.connect_timeout;
    match connect(listen, limit).await {
        Ok((_, address)) => section.ok(Check::Port, format!("{address} answers")),
        Err(error) => {
            closed(listen, &error, runs, section);
            return None;
        }
    }
    let required = examined.settings.tls.client_auth.as_ref().is_some_and(|auth| auth.required);
    let met = match first(listen, examined, section).await {
        Some(met) => met,
        None => return None,
    };
    section.ok(Check::Protocol, met.words());
    versions(listen, examined, required, section).await;
    certificates(listen, &met, examined, section).await;
    if required {
        let meaning = "tls.client_auth is required, and doctor has no certificate.";
        section.skipped(Check::Greeting, "clients need a certificate", meaning);
        return None;
    }
    greeting(listen, met, examined, section).await
}

/// Nobody listens, or nobody gets there.
fn closed(listen: &Listen, error: &io::Error, runs: bool, section: &mut Section) {
    let why = socket::why(error);
    if error.kind() == io::ErrorKind::TimedOut {
        let meaning = "The port is filtered: a firewall on this machine drops what is sent there.";
        return section.problem(Check::Port, "no connection", meaning, Vec::new());
    }
    if runs {
        let meaning = "The proxy runs, but not on this port: it was started with another configuration, or this address is new and it was not told.";
        return section.problem(Check::Port, why, meaning, restart());
    }
    match accept::bind(listen.address, false) {
        Ok(_) => section.skipped(
            Check::Port,
            "nobody listens",
            "The proxy does not run yet, and could listen there. Start it and ask again for what clients see.",
        ),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => section.warning(
            Check::Port,
            "nobody listens, and this user may not",
            "The proxy does not run yet. Ports below 1024 need a capability; whoever runs it has to have that.",
            vec![Cure::new(
                "give it the capability",
                vec![Step::new(
                    "the systemd unit (in a container: cap_add: [NET_BIND_SERVICE])",
                    &["AmbientCapabilities=CAP_NET_BIND_SERVICE"],
                )],
            )],
        ),
        Err(error) => not_ours(listen, &error, section),
    }
}

fn not_ours(listen: &Listen, error: &io::Error, section: &mut Section) {
    let (port, any) =
        (listen.address.port(), if socket::lacks_family(error) { "0.0.0.0" } else { "[::]" });
    section.problem(
        Check::Port,
        format!("nobody can listen there: {}", socket::why(error)),
        "The proxy can't start with this address on this machine.",
        vec![Cure::new(
            "listen on an address that this machine has, or on all",
            vec![Step::new(OURS, &["listen:", &format!("  - address: \"{any}:{port}\"")])],
        )],
    );
}

fn restart() -> Vec<Cure> {
    vec![Cure::new(
        "apply the configuration",
        vec![Step::new("a shell", &["systemctl restart imaps-proxy"])],
    )]
}

/// The first handshake; without one, what is wrong.
async fn first(listen: &Listen, examined: &Examined<'_>, section: &mut Section) -> Option<Met> {
    let stream = match before_tls(listen, examined).await {
        Ok(stream) => stream,
        Err(barred) => {
            let meaning = "This listener is for STARTTLS, and what answers there does not do it: another service has this port.";
            section.problem(Check::Protocol, barred.words(), meaning, taken(listen));
            return None;
        }
    };
    let name = server_name(listen, examined.names.first());
    let limit = examined.settings.timeouts.handshake;
    match tls::handshake(stream, name, &[TLS13, TLS12], limit).await {
        Ok(met) => Some(met),
        Err(unmet) => {
            unmet_at(listen, &unmet, examined, section).await;
            None
        }
    }
}

async fn unmet_at(listen: &Listen, unmet: &Unmet, examined: &Examined<'_>, section: &mut Section) {
    match unmet {
        Unmet::Alert(AlertDescription::UnrecognisedName) => {
            let name = examined.names.first().map_or_else(String::new, |n| n.to_str().into_owned());
            section.problem(
                Check::CertificateName,
                format!("no certificate for {name}"),
                "tls.unknown_name is refuse, so clients that use this name are turned away.",
                vec![Cure::new("add a certificate with that name, or serve the default one", vec![Step::new(OURS, &["tls:", "  unknown_name: default"])])],
            );
        }
        Unmet::Alert(
            AlertDescription::ProtocolVersion
            | AlertDescription::HandshakeFailure
            | AlertDescription::InsufficientSecurity,
        ) => section.problem(
            Check::Versions,
            words(unmet),
            "Neither TLS 1.3 nor 1.2 as today's mail clients speak them is spoken there.",
            vec![Cure::new("allow TLS 1.2 and all suites", vec![Step::new(OURS, &["tls:", "  min_version: \"1.2\""])])],
        ),
        Unmet::Alert(_) | Unmet::Other(_) => section.problem(
            Check::Protocol,
            format!("the handshake fails: {}", words(unmet)),
            "Mail clients can't connect. The proxy's log has a line `handshake failed` with the reason.",
            Vec::new(),
        ),
        Unmet::NotTls | Unmet::Closed | Unmet::Timeout(_) => {
            let heard = listened(listen, examined).await;
            let (seen, meaning) = match &heard {
                Some(heard) => (
                    format!("it speaks {}: {heard}", Speaks::of(heard).name()),
                    "Another service has this port, so mail clients that expect TLS there fail.",
                ),
                None => (
                    format!("no TLS: {}", words(unmet)),
                    "Another service has this port, or the proxy is at its limits.",
                ),
            };
            section.problem(Check::Protocol, seen, meaning, taken(listen));
        }
    }
}

fn taken(listen: &Listen) -> Vec<Cure> {
    let port = listen.address.port();
    vec![Cure::new(
        "see who has the port, and stop it or choose another",
        vec![Step::new("a shell", &[&format!("ss -ltnp 'sport = :{port}'")])],
    )]
}

/// What is said there to somebody who listens, and if that is nothing, to somebody who speaks HTTP.
async fn listened(listen: &Listen, examined: &Examined<'_>) -> Option<String> {
    let limit = examined.settings.backend.connect_timeout;
    let (mut stream, _) = connect(listen, limit).await.ok()?;
    let mut heard = [0; 512];
    let mut length = match timeout(SILENCE, stream.read(&mut heard)).await {
        Ok(read) => read.ok()?,
        Err(_) => 0,
    };
    if length == 0 {
        let request = b"GET / HTTP/1.0\r\n\r\n";
        timeout(SILENCE, stream.write_all(request)).await.ok()?.ok()?;
        length = timeout(SILENCE, stream.read(&mut heard)).await.ok()?.ok()?;
    }
    let line = heard[..length].split(|&byte| matches!(byte, b'\r' | b'\n')).next()?;
    (!line.is_empty()).then(|| printable(&line[..line.len().min(100)]))
}

/// Which versions are spoken, each tried by itself.
async fn versions(listen: &Listen, examined: &Examined<'_>, required: bool, section: &mut Section) {
    let mut spoken = [false; 2];
    for (version, spoken) in [TLS13, TLS12].into_iter().zip(&mut spoken) {
        let Ok(stream) = before_tls(listen, examined).await else { continue };
        let name = server_name(listen, examined.names.first());
        let limit = examined.settings.timeouts.handshake;
        let met = tls::handshake(stream, name, &[version], limit).await;
        // With TLS 1.2 the certificate that we lack is missed before the handshake ends.
        *spoken = met.is_ok() || (required && version.version == TLS12.version);
    }
    let wanted = examined.settings.tls.min_version;
    match (spoken, wanted) {
        ([true, true], MinVersion::Tls12) => section.ok(Check::Versions, "TLS 1.3 and 1.2"),
        ([true, false], MinVersion::Tls13) => {
            section.ok(Check::Versions, "TLS 1.3 only, as tls.min_version has it");
        }
        ([true, true], MinVersion::Tls13) => section.warning(
            Check::Versions,
            "TLS 1.3 and 1.2",
            "tls.min_version is 1.3, so the proxy runs with another configuration.",
            restart(),
        ),
        ([false, _], _) => section.warning(
            Check::Versions,
            "TLS 1.3 is not spoken",
            "Another program than this proxy may have the port.",
            taken(listen),
        ),
        ([true, false], MinVersion::Tls12) => section.warning(
            Check::Versions,
            "TLS 1.3 only",
            "Clients that have TLS 1.2 and no more are shut out: no suite of tls.cipher_suites goes with the certificate, or the proxy runs with another configuration.",
            vec![Cure::new("allow all suites, and apply the configuration", vec![Step::new(OURS, &["tls:", "  min_version: \"1.2\""])])],
        ),
    }
}

/// One judgement for each name that clients use.
async fn certificates(listen: &Listen, met: &Met, examined: &Examined<'_>, section: &mut Section) {
    let Some((first, others)) = examined.names.split_first() else {
        return certificate::judge(&met.chain, None, &examined.roots, examined.now, section);
    };
    certificate::judge(&met.chain, Some(first), &examined.roots, examined.now, section);
    for name in others {
        let Ok(stream) = before_tls(listen, examined).await else { continue };
        let limit = examined.settings.timeouts.handshake;
        match tls::handshake(stream, name.clone(), &[TLS13, TLS12], limit).await {
            // The same chain has been judged but for its name.
            Ok(other) if other.chain == met.chain => {
                certificate::judge_name(&other.chain, name, section);
            }
            Ok(other) => {
                let chain = &other.chain;
                certificate::judge(chain, Some(name), &examined.roots, examined.now, section);
            }
            Err(unmet) => section.problem(
                Check::CertificateName,
                format!("no handshake for {}: {}", name.to_str(), words(&unmet)),
                "Clients that use this name can't connect.",
                Vec::new(),
            ),
        }
    }
}

async fn greeting(
    listen: &Listen,
    met: Met,
    examined: &Examined<'_>,
    section: &mut Section,
) -> Option<Told> {
    let limit = examined.settings.timeouts.backend_greeting;
    let mut talk = Talk::new(met.stream, Vec::new(), limit);
    let greeted = match listen.tls {
        ListenTls::Implicit => talk.greeting().await,
        ListenTls::StartTls => Ok(Vec::new()),
    };
    let told = match greeted {
        Ok(text) => talk.ask(text).await,
        Err(error) => Err(error),
    };
    match told {
        Ok(mut told) => {
            // The proxy has one, whatever its server offers; a server that knows none says BAD.
            if told.id.is_empty() {
                let _ = talk.id(&mut told).await;
            }
            let ours = memchr::memmem::find(&told.id, b"imaps-proxy").is_some();
            talk.log_out().await;
            if !ours {
                let seen = match told.id.is_empty() {
                    true => "an IMAP server that is not this proxy".to_owned(),
                    false => format!("not this proxy: {}", printable(&told.id)),
                };
                let meaning = "Another service has this port.";
                section.problem(Check::Greeting, seen, meaning, taken(listen));
                return None;
            }
            let text = match told.greeting.is_empty() {
                true => "it answers".to_owned(),
                false => printable(talk::text_of(&told.greeting)),
            };
            section.ok(Check::Greeting, text);
            Some(told)
        }
        Err(talk::Error::Bye(text)) => {
            let meaning =
                "The proxy runs and has no server that it could pass clients on to; see below.";
            section.problem(Check::Greeting, format!("BYE: {text}"), meaning, Vec::new());
            None
        }
        Err(error) => {
            let meaning =
                "Mail clients connect and get no further. The proxy's log has the reason.";
            section.problem(Check::Greeting, error.to_string(), meaning, Vec::new());
            None
        }
    }
}

impl Barred {
    fn words(&self) -> String {
        match self {
            Self::Io(error) => socket::why(error),
            Self::Talk(error) => error.to_string(),
            Self::Refused(text) => format!("STARTTLS is refused: {text}"),
        }
    }
}

fn words(unmet: &Unmet) -> String {
    match unmet {
        Unmet::Closed => "it closes the connection".to_owned(),
        Unmet::Timeout(limit) => format!("no answer within {limit:?}"),
        Unmet::Alert(alert) => format!("it answers with the alert {alert:?}"),
        Unmet::NotTls => "what it answers is not TLS".to_owned(),
        Unmet::Other(text) => text.clone(),
    }
}
