//! Live diagnosis: which of the things that go wrong in practice it is, and the lines that cure it.
//!
//! In: checked settings and what the operator wants to know ([`Wanted`]). Out: a [`Report`]. Speaks to every listener as a mail
//! client does and to every server as the proxy does, and compares the two; changes nothing, and sends a password only if
//! it was given one.
//!
//! ```text
//! files ─▶ name ─▶ listener ─▶ TLS ─▶ certificate ─▶ greeting ─┐
//!                                                              ├▶ comparison ─▶ login
//!          address ─▶ port ─▶ greeting ─▶ identity ────────────┘
//! ```
//!
//! **Invariants:** every wait has a deadline; what the other end says is bounded and printable; what can't be looked at is
//! `skipped`, never a problem.
//! Not here: what cures a product of what (`backend::cures`), the command line (`cli::doctor`).

pub mod finding;

pub mod report;

mod talk;

mod protocol;

mod tls;

mod certificate;

mod listener;

mod server;

mod explain;

mod compare;

mod login;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls_pki_types::ServerName;
use tokio::time::timeout;

use crate::admin::ask::ask_any;
use crate::backend::cures::{Cure, Step};
use crate::config::settings::{Capabilities, Settings};
use crate::dns::{self, Resolver};
use crate::proto::imap::secret::Secret;
use crate::tls::{Severity, backend, certificate as files, check, unix};
use finding::{Check, Part, Report, Section};
use server::Met;
use talk::Told;

/// The stream to a server.
type ServerStream = crate::backend::stream::Stream;

/// More names than that are not looked at.
const MAX_NAMES: usize = 16;
/// For a name, and for `/readyz`.
const SHORT: Duration = Duration::from_secs(3);

/// What the operator wants to know.
#[derive(Debug, Default)]
pub struct Wanted {
    /// Names that mail clients use.
    pub names: Vec<ServerName<'static>>,
    /// CAs, PEM, that they trust besides the system's.
    pub ca: Option<PathBuf>,
    pub user: Option<(String, Secret)>,
}

/// What an examination has at hand.
struct Examined<'a> {
    settings: &'a Settings,
    resolver: Arc<Resolver>,
    roots: certificate::Roots,
    names: Vec<ServerName<'static>>,
    /// Unix seconds.
    now: i64,
}

/// Looks at everything that `settings`, from `file`, have to do with.
///
/// # Errors
/// `wanted.ca` can't be read.
pub async fn examine(
    settings: &Settings,
    file: &Path,
    wanted: &Wanted,
) -> Result<Report, files::Error> {
    let examined = Examined {
        settings,
        resolver: Arc::default(),
        roots: certificate::Roots::load(&settings.tls, wanted.ca.as_deref())?,
        names: names(settings, wanted),
        now: unix(SystemTime::now()),
    };
    let mut report = Report::default();
    let mut section = Section::new(Part::Configuration, file.display().to_string());
    configuration(settings, &mut section);
    for name in &wanted.names {
        resolves(name, &examined.resolver, &mut section).await;
    }
    let runs = running(settings, &mut section).await;
    report.sections.push(section);

    let mut told = None;
    for listen in &settings.listen {
        let mut section = Section::new(Part::Listener, listen.address.to_string());
        let there =
            listener::examine(listen, runs || told.is_some(), &examined, &mut section).await;
        told = told.or(there.map(|told| (listen, told, report.sections.len())));
        report.sections.push(section);
    }

    let mut servers = Vec::new();
    for server in &settings.backend.servers {
        let mut section = Section::new(Part::Server, server.address.to_string());
        if let Some(met) = server::examine(server, &examined, &mut section).await {
            servers.push((server, met));
        }
        report.sections.push(section);
    }
    if let (Some((_, through, at)), false) = (&told, servers.is_empty()) {
        compare(&servers, through, &settings.backend.capabilities, &mut report.sections[*at]);
    }
    if let Some((user, password)) = &wanted.user {
        let mut section = Section::new(Part::Login, crate::log::printable(user.as_bytes()));
        let server = servers.first().map(|(server, met)| (*server, met));
        let listen = told.as_ref().map(|(listen, ..)| *listen);
        login::examine(user, password, server, listen, &examined, &mut section).await;
        report.sections.push(section);
    }
    Ok(report)
}

/// Those that the operator names, else those that the proxy orders or makes certificates for.
fn names(settings: &Settings, wanted: &Wanted) -> Vec<ServerName<'static>> {
    if !wanted.names.is_empty() {
        return wanted.names.iter().take(MAX_NAMES).cloned().collect();
    }
    let acme = settings.tls.acme.iter().flat_map(|acme| &acme.names);
    let made = settings.tls.self_signed.iter().flat_map(|made| &made.names);
    let names = acme.chain(made).filter_map(|name| ServerName::try_from(name.clone()).ok());
    let mut all: Vec<ServerName<'static>> = Vec::new();
    for name in names.take(MAX_NAMES) {
        if !all.contains(&name) {
            all.push(name);
        }
    }
    all
}

fn configuration(settings: &Settings, section: &mut Section) {
    let mut found = check(&settings.tls);
    found.extend(backend::check(&settings.backend));
    for finding in &found {
        let message = &finding.message;
        match finding.severity {
            Severity::Error => section.problem(Check::Files, message, "", Vec::new()),
            Severity::Warning => section.warning(Check::Files, message, "", Vec::new()),
        }
    }
    if found.is_empty() {
        section.ok(Check::Files, "the configuration and the files that it names are fine");
    }
}

async fn resolves(name: &ServerName<'static>, resolver: &Resolver, section: &mut Section) {
    let ServerName::DnsName(name) = name else { return };
    let name = name.as_ref();
    let late = |_| Err(dns::Error::Failed(format!("no answer within {SHORT:?}")));
    let found = match timeout(SHORT, resolver.host(name)).await.unwrap_or_else(late) {
        Ok(found) => found,
        Err(why) if !why.is_definite() => {
            let meaning =
                "This machine can't ask DNS. Whether mail clients find an address is not known.";
            return section.skipped(
                Check::Name,
                format!("{name} can't be looked up: {why}"),
                meaning,
            );
        }
        Err(why) => return unknown(name, &why, section),
    };
    let addresses: Vec<String> = found.ips.iter().map(ToString::to_string).collect();
    section.ok(Check::Name, format!("{name} is {}", addresses.join(", ")));
}

fn unknown(name: &str, why: &dns::Error, section: &mut Section) {
    section.problem(
        Check::Name,
        format!("{name} does not resolve: {why}"),
        "Mail clients that are set to it find no address.",
        vec![Cure::new(
            "add a record",
            vec![Step::new(
                "the zone in DNS",
                &[&format!("{name}. 3600 IN A <public address of this machine>")],
            )],
        )],
    );
}

/// Whether the proxy says that it runs.
async fn running(settings: &Settings, section: &mut Section) -> bool {
    let Some(metrics) = settings.metrics else { return false };
    let asked = tokio::task::spawn_blocking(move || ask_any(metrics.address, SHORT)).await;
    match asked {
        Ok(Ok((200, _))) => {
            section.ok(Check::Running, "the proxy runs and is ready");
            true
        }
        Ok(Ok((503, body))) => {
            let why = body.lines().collect::<Vec<_>>().join("; ");
            let seen = format!("not ready: {}", crate::log::printable(why.as_bytes()));
            let meaning = "Balancers and container engines send nobody there.";
            section.problem(Check::Running, seen, meaning, Vec::new());
            true
        }
        Ok(Ok((status, _))) => {
            let seen = format!("{} answers {status} for /readyz", metrics.address);
            let meaning = "Another service has the address of `metrics`.";
            section.problem(Check::Running, seen, meaning, Vec::new());
            false
        }
        _ => {
            let seen = format!("nothing answers on {}", metrics.address);
            section.skipped(Check::Running, seen, "The proxy does not seem to run.");
            false
        }
    }
}

/// What clients are told, beside what the servers say.
fn compare(
    servers: &[(&crate::config::settings::Server, Met)],
    through: &Told,
    changes: &Capabilities,
    section: &mut Section,
) {
    let mut best: Option<(String, Vec<compare::Difference>)> = None;
    for (server, met) in servers {
        let found = compare::differences(&met.told.capabilities, &through.capabilities, changes);
        let open = |found: &[compare::Difference]| {
            found.iter().filter(|difference| !difference.why.is_explained()).count()
        };
        // The proxy says what one of its servers says, and does not tell which.
        if best.as_ref().is_none_or(|(_, others)| open(&found) < open(others)) {
            best = Some((server.address.to_string(), found));
        }
    }
    let Some((server, found)) = best else { return };
    let words = |explained: bool| compare::words(&found, explained);
    let (known, unknown) = (words(true), words(false));
    if !unknown.is_empty() {
        let meaning = match through.has("LOGINDISABLED") {
            true => {
                "The server takes passwords from here, and not from the proxy: it trusts this machine, and sees the proxy under another address."
            }
            false => {
                "The server says something else to the proxy than to this machine, or the proxy runs with another configuration than this file."
            }
        };
        let seen = format!("not as {server} says it: {unknown}");
        return match through.has("LOGINDISABLED") {
            true => section.problem(Check::Comparison, seen, meaning, Vec::new()),
            false => section.warning(Check::Comparison, seen, meaning, Vec::new()),
        };
    }
    section.ok(
        Check::Comparison,
        match known.is_empty() {
            true => format!("all that {server} offers, and nothing else"),
            false => format!("all that {server} offers, but for {known}"),
        },
    );
}
