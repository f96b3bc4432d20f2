//! One server, spoken to as the proxy speaks to it.
//!
//! In: its settings. Out: findings in the order of a connection, and what it told. It is dialled by
//! [`crate::backend::dial`], so what fails here fails there. When the way that is configured leads nowhere, `explain` says why.
//! Limits: a handful of connections one after the other, each within the configured timeouts. No password is sent.

use std::net::IpAddr;

use tokio::time::timeout;

use super::finding::{Check, Section};
use super::talk::{self, Talk, Told};
use super::{Examined, explain};
use crate::backend::connect::source_towards;
use crate::backend::cures::{self, Cure, OURS, Step};
use crate::backend::product::Product;
use crate::backend::resolve::{self, Address};
use crate::backend::{dial, transparent};
use crate::config::settings::{self, Identity, ServerTls, TlsMode, Trust};
use crate::dns;
use crate::proto::imap::response::Kind;
use crate::tls::{self, backend::connectors, backend::is_exposed};

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
    let connector = connectors(&alone, &[])?.pop().flatten();
    let link = dial::dial(address, settings, connector.as_ref(), &timeouts, None).await?;
    let us = source_towards(address);
    let talk = Talk::new(link.stream, link.input, limits.backend_greeting);
    Ok((talk, link.greeting, Met { told: Told::default(), us, address: address.clone() }))
}

pub async fn ask(
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
        explain::explain(&address, settings, failed, examined, section).await;
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
    let resolved = timeout(limit, resolve::resolve(&examined.resolver, &settings.address)).await;
    let late =
        || dns::Error::Failed(format!("no answer within {limit:?} (backend.connect_timeout)"));
    match resolved.unwrap_or_else(|_| Err(late())) {
        Ok(resolved) => {
            let addresses = resolved.targets.into_iter().map(|target| target.address);
            let addresses: Vec<Address> = addresses.take(MAX_ADDRESSES).collect();
            in_the_clear(settings, &addresses, section);
            Some(addresses)
        }
        Err(why) => {
            let address = &settings.address;
            let cure = match why {
                dns::Error::NoServer { .. } => {
                    "write the name and its address into /etc/hosts, or name a DNS server in /etc/resolv.conf"
                }
                _ => "correct the name, or its record in DNS or /etc/hosts",
            };
            section.problem(
                Check::Address,
                format!("{address} does not resolve: {why}"),
                "The proxy finds no address to connect to. A name of a container is known only in the network of that container.",
                vec![Cure::new(
                    cure,
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

/// Warns where passwords cross the Internet because a name leads there.
fn in_the_clear(settings: &settings::Server, addresses: &[Address], section: &mut Section) {
    let ip = addresses.iter().find_map(|address| match address {
        Address::Ip(address) => Some(address.ip()).filter(|ip| is_exposed(settings, *ip)),
        Address::Unix(_) => None,
    });
    let Some(ip) = ip else { return };
    section.warning(
        Check::Encryption,
        format!("{} leads to {ip}, a public address, and the link has no TLS", settings.address),
        "Whoever sits between the proxy and this server can read passwords.",
        vec![Cure::new(
            "encrypt the link, or use a network of their own",
            vec![Step::new(OURS, &["backend:", "  tls: starttls   # or: implicit"])],
        )],
    );
}

pub fn greeted(met: &Met, section: &mut Section) {
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

pub fn link<'a>(settings: &'a settings::Server, met: &Met) -> cures::Link<'a> {
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
            let seen = format!("it sees {} for every client", shown(met.us));
            let suffers = match product {
                Product::Courier => "Courier counts sessions by address, and closes those beyond MAXPERIP (20 in Debian) without a word.",
                Product::HMailServer => "After a few wrong passwords, of anybody, hMailServer bans the address that they came from.",
                _ => return section.ok(Check::Identity, format!("none: {seen}")),
            };
            section.warning(Check::Identity, seen, suffers, link.sees_only_the_proxy());
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
