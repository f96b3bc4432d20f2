//! One server, spoken to as the proxy speaks to it.
//!
//! In: its settings. Out: findings in the order of a connection, and what it told. It is dialled by
//! [`crate::backend::dial`], so what fails here fails there. When the way that is configured leads nowhere, the ways that are
//! not are tried: with a PROXY header and without, with TLS and without; the one that works names what is wrong.
//! Limits: a handful of connections one after the other, each within the configured timeouts. No password is sent.

use std::net::IpAddr;
use std::time::Duration;

use tokio::time::timeout;

use super::finding::{Check, Section};
use super::talk::{self, Talk, Told};
use super::{Examined, protocol};
use crate::backend::connect::source_towards;
use crate::backend::cures::{self, Cure, OURS, Step};
use crate::backend::dial;
use crate::backend::product::Product;
use crate::backend::resolve::Address;
use crate::backend::secure;
use crate::backend::transparent;
use crate::config::settings::{self, Identity, ProxyTlvs, ServerTls, TlsMode, Trust};
use crate::proto::imap::response::Kind;
use crate::tls::{self, backend::connectors};

/// What came of speaking to a server.
pub struct Met {
    pub told: Told,
    /// From where it sees us.
    pub us: Option<IpAddr>,
    /// Where it is.
    pub address: Address,
}

/// How far it went.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// What the configuration says of TLS to it can't be used.
    #[error(transparent)]
    Trust(#[from] tls::backend::Error),
    #[error(transparent)]
    Dial(#[from] dial::Error),
    /// It greeted and then went astray.
    #[error(transparent)]
    Talk(#[from] talk::Error),
}

/// Addresses of one server that are looked at.
const MAX_ADDRESSES: usize = 8;

/// A way that is not configured.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Other {
    WithHeader,
    WithoutHeader,
    WithTls,
    WithoutTls,
}

/// Dials one address of a server the way `settings` say.
pub async fn dial(
    address: &Address,
    settings: &settings::Server,
    examined: &Examined<'_>,
) -> Result<(Talk<super::ServerStream>, Vec<u8>, Met), Failed> {
    let limits = &examined.settings.timeouts;
    let timeouts = dial::Timeouts {
        connect: examined.settings.backend.connect_timeout,
        greeting: limits.backend_greeting,
    };
    let alone =
        settings::Backend { servers: vec![settings.clone()], ..examined.settings.backend.clone() };
    let connector = connectors(&alone)?.pop().flatten();
    let link = dial::dial(address, settings, connector.as_ref(), &timeouts, None).await?;
    let us = source_towards(address);
    let talk = Talk::new(link.stream, link.input, limits.backend_greeting);
    Ok((talk, link.greeting, Met { told: Told::default(), us, address: address.clone() }))
}

async fn ask(
    address: &Address,
    settings: &settings::Server,
    examined: &Examined<'_>,
) -> Result<Met, Failed> {
    let (mut talk, greeting, met) = dial(address, settings, examined).await?;
    let told = talk.ask(greeting).await?;
    talk.log_out().await;
    match told.stray {
        Some(stray) => Err(Failed::Talk(talk::Error::NotImap(stray))),
        None => Ok(Met { told, ..met }),
    }
}

/// Everything about one server; the first of its addresses that is as it should be.
pub async fn examine(
    settings: &settings::Server,
    examined: &Examined<'_>,
    section: &mut Section,
) -> Option<Met> {
    if settings.state == settings::ServerState::Down {
        section.skipped(Check::Port, "state: down", "The configuration takes it out of service.");
        return None;
    }
    let addresses = addresses(settings, examined, section).await?;
    let (mut good, mut bad) = (None, Vec::new());
    for address in addresses {
        match ask(&address, settings, examined).await {
            Ok(met) => {
                section.ok(Check::Port, format!("{address} answers"));
                good = good.or(Some(met));
            }
            Err(failed) => bad.push((address, failed)),
        }
    }
    let Some(met) = good else {
        let (address, failed) = bad.into_iter().next()?;
        explain(&address, settings, failed, examined, section).await;
        return None;
    };
    for (address, failed) in bad {
        section.warning(
            Check::Port,
            format!("{address}: {}", failed),
            "One of its addresses does not work; sessions go to the others.",
            Vec::new(),
        );
    }
    if let Some(tls) = &settings.tls {
        encryption(tls, section);
    }
    greeted(&met, section);
    login_disabled(settings, &met, examined, section);
    identity(settings, &met, examined, section).await;
    Some(met)
}

async fn addresses(
    settings: &settings::Server,
    examined: &Examined<'_>,
    section: &mut Section,
) -> Option<Vec<Address>> {
    let limit = examined.settings.backend.connect_timeout;
    let resolved = timeout(limit, examined.resolver.resolve(&settings.address)).await;
    match resolved.unwrap_or_else(|_| Err(format!("no answer within {limit:?}"))) {
        Ok(resolved) => {
            let addresses = resolved.targets.into_iter().map(|target| target.address);
            Some(addresses.take(MAX_ADDRESSES).collect())
        }
        Err(why) => {
            let address = &settings.address;
            section.problem(
                Check::Address,
                format!("{address} does not resolve: {why}"),
                "The proxy finds no address to connect to. A name of a container is known only in the network of that container.",
                vec![Cure::new(
                    "correct the name, or its record in DNS or /etc/hosts",
                    vec![Step::new(
                        OURS,
                        &["backend:", "  servers:", &format!("    - address: {address}")],
                    )],
                )],
            );
            None
        }
    }
}

fn greeted(met: &Met, section: &mut Section) {
    let text = crate::log::printable(talk::text_of(&met.told.greeting));
    section.ok(Check::Greeting, text);
    match met.told.product() {
        Product::Unknown => section.skipped(
            Check::Product,
            "not recognised",
            "Advice is general; its documentation has the names of settings.",
        ),
        known => section.ok(Check::Product, known.name()),
    }
}

fn encryption(tls: &ServerTls, section: &mut Section) {
    let how = match tls.mode {
        TlsMode::StartTls => "STARTTLS",
        _ => "TLS from the first byte",
    };
    match tls.trust {
        Trust::Insecure => section.warning(
            Check::Encryption,
            format!("{how}, its certificate is not looked at"),
            "Whoever sits between the proxy and this server can read passwords.",
            vec![Cure::new(
                "trust its certificate and no other",
                vec![Step::new(
                    OURS,
                    &["backend:", "  tls:", "    fingerprint: <SHA-256 of its certificate>"],
                )],
            )],
        ),
        _ => section.ok(Check::Encryption, format!("{how}, its certificate is trusted")),
    }
}

fn link<'a>(settings: &'a settings::Server, met: &Met) -> cures::Link<'a> {
    cures::Link {
        product: met.told.product(),
        identity: &settings.identity,
        proxy: met.us,
        offers_starttls: settings.tls.is_none() && met.told.has("STARTTLS"),
    }
}

fn login_disabled(
    settings: &settings::Server,
    met: &Met,
    examined: &Examined<'_>,
    section: &mut Section,
) {
    let mechanisms = talk::mechanisms(&met.told.capabilities);
    if !met.told.has("LOGINDISABLED") {
        return section.ok(
            Check::LoginDisabled,
            match mechanisms.is_empty() {
                true => "passwords are taken by LOGIN".to_owned(),
                false => format!("passwords are taken by LOGIN, mechanisms {mechanisms}"),
            },
        );
    }
    let hidden =
        examined.settings.backend.capabilities.hide.iter().any(|word| word == "LOGINDISABLED");
    let mut meaning = format!(
        "{} refuses passwords on a connection that it takes for unencrypted. ",
        capitalised(met.told.product().name())
    );
    meaning += match hidden {
        true => "The configuration hides that word from clients, which does not make logins work.",
        false => "Nobody logs in with a password until it is told that this link is safe.",
    };
    if !mechanisms.is_empty() {
        meaning += &format!(" Only {mechanisms} may work.");
    }
    let seen = format!("LOGINDISABLED, seen from {}", shown(met.us));
    section.problem(Check::LoginDisabled, seen, meaning, link(settings, met).login_disabled());
}

async fn identity(
    settings: &settings::Server,
    met: &Met,
    examined: &Examined<'_>,
    section: &mut Section,
) {
    let link = link(settings, met);
    let product = link.product;
    match settings.identity {
        Identity::None if product.is_dovecot() && met.told.has("LOGINDISABLED") => section.warning(
            Check::Identity,
            format!("it sees {} for every client", shown(met.us)),
            "Who guesses passwords would make everybody wait. A PROXY header, as above, cures that too.",
            Vec::new(),
        ),
        Identity::None if product.is_dovecot() => section.warning(
            Check::Identity,
            format!("it sees {} for every client", shown(met.us)),
            "Who guesses passwords makes everybody wait: Dovecot slows an address down. fail2ban on that server would ban the proxy.",
            link.sees_only_the_proxy(),
        ),
        Identity::None => {
            section.ok(Check::Identity, format!("none: it sees {} for every client", shown(met.us)));
        }
        Identity::ProxyV1 | Identity::ProxyV2(_) => {
            section.ok(Check::Identity, "it reads the PROXY header");
        }
        Identity::Transparent
            if let Err(error) = transparent::check(std::slice::from_ref(settings)) =>
        {
            let meaning = "The proxy does not start without it. It may run as another user than doctor did now.";
            section.warning(Check::Identity, error.to_string(), meaning, Vec::new());
        }
        Identity::Transparent => section.skipped(
            Check::Identity,
            "transparent",
            "Whether answers to clients' addresses find back through the proxy shows only in a session.",
        ),
        Identity::DovecotId => by_id(settings, met, &link, examined, section).await,
    }
}

async fn by_id(
    settings: &settings::Server,
    met: &Met,
    link: &cures::Link<'_>,
    examined: &Examined<'_>,
    section: &mut Section,
) {
    let not_believed = || {
        let seen = format!("it ignores the ID of {}", shown(met.us));
        let meaning = "That address is not in its login_trusted_networks, so it sees the proxy for every client.";
        (seen, meaning)
    };
    let product = link.product;
    if !met.told.has("ID") {
        let meaning = "Without ID it is never told who the client is.";
        section.problem(Check::Identity, "it offers no ID", meaning, link.id_not_understood());
    } else if !product.is_dovecot() && product != Product::Unknown {
        let seen = format!("it is {}", product.name());
        let meaning = "Only Dovecot takes a client's address from an ID; others log it at best.";
        section.problem(Check::Identity, seen, meaning, link.id_not_understood());
    } else if let Some(believed) = believes_id(met, settings, examined).await {
        if believed {
            return section.ok(Check::Identity, "it believes the ID that the proxy sends");
        }
        let (seen, meaning) = not_believed();
        section.problem(Check::Identity, seen, meaning, link.id_not_trusted());
    } else if met.told.has("LOGINDISABLED") {
        // An address that it trusts would not be told that.
        let (seen, meaning) = not_believed();
        section.problem(Check::Identity, seen, meaning, link.id_not_trusted());
    } else {
        section.skipped(
            Check::Identity,
            "whether it believes the ID does not show from here",
            format!("Its log does: after a login, rip= has to be the client's address. If it is {}, that address is missing in login_trusted_networks.", shown(met.us)),
        );
    }
}

/// Dovecot 2.4 says BAD to an ID that can't be true, if it would have believed it; others take no notice.
async fn believes_id(
    met: &Met,
    settings: &settings::Server,
    examined: &Examined<'_>,
) -> Option<bool> {
    // Its first ID counts: ours, not the one that says who calls.
    let plain = settings::Server { identity: Identity::None, ..settings.clone() };
    let (mut talk, greeting, _) = dial(&met.address, &plain, examined).await.ok()?;
    let lie = "ID (\"x-originating-ip\" \"nowhere\")";
    let answer = talk.command(lie).await.ok()?;
    let told = talk.ask(greeting).await.ok()?;
    talk.log_out().await;
    match answer.kind {
        Kind::Bad => Some(true),
        _ => (told.product() == Product::Dovecot24).then_some(false),
    }
}

/// Names what is wrong with a server that could not be spoken to.
async fn explain(
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
        Failed::Dial(dial::Error::Timeout(limit)) => section.problem(
            Check::Port,
            format!("no connection within {limit:?}"),
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
            format!("BYE: {text}"),
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
            format!("it accepts, but says nothing within {limit:?}"),
            "The server hangs, or has no process left for another connection.",
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

/// As it stands in the configuration.
pub fn word(identity: &Identity) -> &'static str {
    match identity {
        Identity::None => "none",
        Identity::ProxyV1 => "proxy-v1",
        Identity::ProxyV2(_) => "proxy-v2",
        Identity::DovecotId => "dovecot-id",
        Identity::Transparent => "transparent",
    }
}

fn shown(address: Option<IpAddr>) -> String {
    address.map_or_else(|| "the proxy".to_owned(), |ip| ip.to_string())
}

fn capitalised(name: &str) -> String {
    let mut letters = name.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}
