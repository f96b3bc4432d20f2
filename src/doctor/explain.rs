//! Why a server can't be spoken to as the configuration says.
//!
//! In: how far it went. Out: one finding that names it. Where that does not show, the ways that are not configured are tried: with
//! a PROXY header and without, with TLS and without; the one that works names what is wrong.

use std::time::Duration;

use tokio::time::timeout;

use super::finding::{Check, Section};
use super::server::{Failed, ask, greeted, link, word};
use super::{Examined, protocol};
use crate::backend::connect::source_towards;
use crate::backend::cures::{self, Cure, OURS, Step};
use crate::backend::product::Product;
use crate::backend::resolve::Address;
use crate::backend::{dial, secure};
use crate::config::settings::{self, Identity, ProxyTlvs, ServerTls, TlsMode, Trust};

/// A way that is not configured.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Other {
    WithHeader,
    WithoutHeader,
    WithTls,
    WithoutTls,
}

/// Names what is wrong with a server that could not be spoken to.
pub async fn explain(
    at: &Address,
    settings: &settings::Server,
    failed: Failed,
    examined: &Examined<'_>,
    section: &mut Section,
) {
    let address = at.to_string();
    match failed {
        Failed::Trust(error) => {
            let meaning = "The proxy does not start with it.";
            section.problem(Check::Encryption, error.to_string(), meaning, Vec::new());
        }
        Failed::Dial(dial::Error::Secure(error @ secure::Error::Certificate(_))) => {
            let meaning = "Nobody can tell whether it is that server, so it gets no password.";
            let cures = vec![
                Cure::new("trust the CA that issued its certificate", ours("ca: <PEM file of that CA>")),
                Cure::new(
                    "trust exactly its certificate",
                    ours("fingerprint: <SHA-256 of its certificate>"),
                ),
                Cure::new("expect the name that it has", ours("server_name: <name in its certificate>")),
            ];
            section.ok(Check::Port, format!("{address} answers"));
            section.problem(Check::Encryption, error.to_string(), meaning, cures);
        }
        Failed::Dial(dial::Error::Secure(error @ secure::Error::StartTls(_))) => {
            let meaning = "It gets no password without TLS.";
            let cures = vec![
                Cure::new("let it offer STARTTLS, or use its port for TLS", ours("mode: implicit")),
                Cure::new(
                    "speak plaintext, if nobody else can listen there",
                    vec![Step::new(OURS, &["backend:", "  tls: none"])],
                ),
            ];
            section.ok(Check::Port, format!("{address} answers"));
            section.problem(Check::Encryption, error.to_string(), meaning, cures);
        }
        Failed::Dial(error @ dial::Error::Connect { .. }) if matches!(at, Address::Unix(_)) => {
            let meaning = "The server does not run, has its socket elsewhere, or lets only others in.";
            section.problem(Check::Port, error.to_string(), meaning, Vec::new());
        }
        Failed::Dial(error @ dial::Error::Connect { .. }) => {
            let closed = error.failure() == dial::Failure::Refused;
            let meaning = match closed {
                true => "The port is closed: the server does not run, listens on another address or port, or a firewall refuses.",
                false => "The network does not lead there.",
            };
            section.problem(Check::Port, error.to_string(), meaning, listens(&address));
        }
        Failed::Dial(error @ dial::Error::Timeout(_)) => section.problem(
            Check::Port,
            error.to_string(),
            "The port is filtered, or nobody has that address: a firewall drops what is sent there.",
            listens(&address),
        ),
        Failed::Dial(dial::Error::Preauth) => section.problem(
            Check::Greeting,
            "PREAUTH",
            "It logs every connection in as one and the same user, without a password. The proxy refuses to hand people's sessions to it.",
            Vec::new(),
        ),
        Failed::Dial(dial::Error::Bye(text)) => section.problem(
            Check::Greeting,
            format!("BYE: {}", crate::log::printable(&text)),
            "The server takes no connections now, or none from this address. Its log says why.",
            Vec::new(),
        ),
        other => {
            if !tried(at, settings, examined, section).await {
                unexplained(at, settings, &other, section);
            }
        }
    }
}

/// A key of `backend.tls`.
fn ours(line: &str) -> Vec<Step> {
    vec![Step::new(OURS, &["backend:", "  tls:", &format!("    {line}")])]
}

fn listens(address: &str) -> Vec<Cure> {
    let port = address.rsplit_once(':').map_or("143", |(_, port)| port);
    vec![Cure::new(
        "see whether and where it listens",
        vec![Step::new("a shell on that server", &[&format!("ss -ltn 'sport = :{port}'")])],
    )]
}

/// Tries the other ways; whether one of them works.
async fn tried(
    at: &Address,
    settings: &settings::Server,
    examined: &Examined<'_>,
    section: &mut Section,
) -> bool {
    for other in others(settings) {
        // Nobody says how long a server waits for what does not come; Dovecot 3 s.
        let way = altered(settings, other);
        let asked = timeout(Duration::from_secs(8), ask(at, &way, examined)).await;
        let Ok(Ok(met)) = asked else { continue };
        section.ok(Check::Port, format!("{at} answers"));
        greeted(&met, section);
        let link = link(settings, &met);
        match other {
            Other::WithHeader => section.problem(
                Check::Identity,
                "it greets only behind a PROXY header",
                format!(
                    "It expects one, and `identity: {}` sends none: it waits and closes.",
                    word(&settings.identity)
                ),
                link.expects_header(),
            ),
            Other::WithoutHeader => section.problem(
                Check::Identity,
                "it speaks IMAP only without a PROXY header",
                format!(
                    "It does not expect one; that of `identity: {}` is a bad command to it.",
                    word(&settings.identity)
                ),
                link.expects_no_header(),
            ),
            Other::WithTls => section.problem(
                Check::Encryption,
                "it speaks TLS from the first byte",
                "The proxy speaks plaintext to it, so each waits for the other.",
                vec![Cure::new(
                    "encrypt the link",
                    vec![Step::new(
                        OURS,
                        &[
                            "backend:",
                            "  tls:",
                            "    mode: implicit",
                            "    ca: <PEM file of the CA of its certificate>",
                        ],
                    )],
                )],
            ),
            Other::WithoutTls => section.problem(
                Check::Encryption,
                "it speaks plaintext",
                "The proxy wants TLS, and the server has none on this port.",
                vec![
                    Cure::new(
                        "use its port for TLS, often 993",
                        vec![Step::new(
                            OURS,
                            &["backend:", "  servers:", "    - address: <the server>:993"],
                        )],
                    ),
                    Cure::new(
                        "speak plaintext, if nobody else can listen there",
                        vec![Step::new(OURS, &["backend:", "  tls: none"])],
                    ),
                ],
            ),
        }
        return true;
    }
    false
}

fn others(settings: &settings::Server) -> Vec<Other> {
    let header = match settings.identity {
        Identity::ProxyV1 | Identity::ProxyV2(_) => Other::WithoutHeader,
        _ => Other::WithHeader,
    };
    let tls = if settings.tls.is_none() { Other::WithTls } else { Other::WithoutTls };
    vec![header, tls]
}

fn altered(settings: &settings::Server, other: Other) -> settings::Server {
    let mut altered = settings.clone();
    match other {
        Other::WithHeader => altered.identity = Identity::ProxyV2(ProxyTlvs::Generic),
        Other::WithoutHeader => altered.identity = Identity::None,
        Other::WithTls => {
            altered.tls = Some(ServerTls {
                mode: TlsMode::Implicit,
                server_name: "localhost".to_owned(),
                trust: Trust::Insecure,
            });
        }
        Other::WithoutTls => altered.tls = None,
    }
    altered
}

/// No way leads to IMAP: what was seen, as far as it is known.
fn unexplained(at: &Address, settings: &settings::Server, failed: &Failed, section: &mut Section) {
    let with_header = matches!(settings.identity, Identity::ProxyV1 | Identity::ProxyV2(_));
    match failed {
        Failed::Dial(dial::Error::NotImap(text)) => {
            let (what, cure) = protocol::of(text);
            let seen = format!("it greets with {text}");
            section.problem(Check::Protocol, seen, what, cure);
        }
        Failed::Dial(dial::Error::Closed) => {
            let link = cures::Link {
                product: Product::Unknown,
                identity: &settings.identity,
                proxy: source_towards(at),
                offers_starttls: false,
            };
            let cures = if with_header { link.header_not_trusted() } else { Vec::new() };
            section.problem(
                Check::Greeting,
                "it closes the connection without a word",
                "With a PROXY header and without, with TLS and without: it refuses this address, or has no process left. Its log says why.",
                cures,
            );
        }
        Failed::Dial(dial::Error::GreetingTimeout(limit)) => section.problem(
            Check::Greeting,
            format!("it accepts, but says nothing within {limit:?} (timeouts.backend_greeting)"),
            "The server hangs, has no process left for another connection, or needs longer, such as for looking up addresses: then raise timeouts.backend_greeting.",
            Vec::new(),
        ),
        Failed::Dial(error @ (dial::Error::Secure(_) | dial::Error::HandshakeTimeout(_))) => {
            let meaning =
                "It speaks neither TLS as the proxy does nor plaintext IMAP on this port.";
            section.problem(Check::Encryption, error.to_string(), meaning, Vec::new());
        }
        Failed::Trust(error) => {
            section.problem(Check::Encryption, error.to_string(), "", Vec::new());
        }
        Failed::Dial(error) => section.problem(Check::Greeting, error.to_string(), "", Vec::new()),
        Failed::Talk(error) => section.problem(
            Check::Greeting,
            format!("it greets, and then {error}"),
            "It does not speak IMAP as RFC 3501 has it.",
            Vec::new(),
        ),
    }
}
