//! What a reload changes, in words for one log line.
//!
//! In: two [`Settings`]. Out: one text for each key that differs, `limits.connections 9000 -> 500`, or for lists what
//! has gone and what has come, `backend.servers -old:143 +new:143`. No value in a configuration is a secret.
//! **Invariant:** every section is taken apart field by field, so that a new key can't be forgotten here.

use std::fmt::Display;
use std::path::PathBuf;

use super::duration_text;
use super::read::Word as _;
use super::settings::{
    Acme, Backend, Capabilities, CertificateSource, Challenge, ClientAuth, ExternalAccount, Health,
    Identity, Limits, Listen, ListenTls, Log, Metrics, SelfSigned, Server, ServerState, ServerTls,
    Settings, Tickets, Timeouts, Tls, Trust,
};

/// Every key that differs.
pub fn changes(old: &Settings, new: &Settings) -> Vec<String> {
    let Settings { listen, tls: _, backend: _, limits: _, timeouts: _, metrics, log } = old;
    let mut out = Vec::new();
    list(&mut out, "listen", listen, &new.listen, listener);
    tls(&mut out, &old.tls, &new.tls);
    backend(&mut out, &old.backend, &new.backend);
    limits(&mut out, &old.limits, &new.limits);
    timeouts(&mut out, &old.timeouts, &new.timeouts);
    let address = |Metrics { address }: &Metrics| address.to_string();
    option(&mut out, "metrics.address", metrics.as_ref(), new.metrics.as_ref(), address);
    let Log { level, format } = log;
    let lower = |level: tracing::Level| level.to_string().to_lowercase();
    value(&mut out, "log.level", lower(*level), lower(new.log.level));
    value(&mut out, "log.format", format.word(), new.log.format.word());
    out
}

/// Its address, and behind it what is not as it is by itself.
fn listener(Listen { address, tls, proxy_protocol_from }: &Listen) -> String {
    let mut more = Vec::new();
    if *tls != ListenTls::Implicit {
        more.push(tls.word().to_owned());
    }
    if !proxy_protocol_from.is_empty() {
        let from: Vec<_> = proxy_protocol_from.iter().map(ToString::to_string).collect();
        more.push(format!("PROXY from {}", from.join(" ")));
    }
    with(address, &more)
}

fn with(address: &dyn Display, more: &[String]) -> String {
    if more.is_empty() { address.to_string() } else { format!("{address} ({})", more.join(", ")) }
}

fn tls(out: &mut Vec<String>, old: &Tls, new: &Tls) {
    let Tls {
        certificates,
        self_signed,
        acme,
        unknown_name,
        min_version,
        cipher_suites,
        groups,
        tickets,
        client_auth,
    } = old;
    list(out, "tls.certificates", certificates, &new.certificates, certificate);
    let own = |SelfSigned { names, dir }: &SelfSigned| {
        format!("{} in {}", names.join(" "), dir.display())
    };
    option(out, "tls.self_signed", self_signed.as_ref(), new.self_signed.as_ref(), own);
    match (acme, &new.acme) {
        (Some(old), Some(new)) => acme_keys(out, old, new),
        (old, new) => {
            let directory =
                |acme: &Acme| format!("{} from {}", acme.names.join(" "), acme.directory);
            option(out, "tls.acme", old.as_ref(), new.as_ref(), directory);
        }
    }
    value(out, "tls.unknown_name", unknown_name.word(), new.unknown_name.word());
    value(out, "tls.min_version", min_version.word(), new.min_version.word());
    let suite = |suite: &rustls::SupportedCipherSuite| format!("{:?}", suite.suite());
    list(out, "tls.cipher_suites", cipher_suites, &new.cipher_suites, suite);
    list(out, "tls.groups", groups, &new.groups, |group| format!("{:?}", group.name()));
    let keys = |tickets: &Tickets| match tickets {
        Tickets::Off => "off".to_owned(),
        Tickets::Memory => "on".to_owned(),
        Tickets::Files(files) => {
            let files: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
            files.join(" ")
        }
    };
    value(out, "tls.tickets", keys(tickets), keys(&new.tickets));
    let asked = |ClientAuth { required, ca, crl }: &ClientAuth| {
        let mode = if *required { "required" } else { "optional" };
        let crl = crl.as_ref().map_or_else(String::new, |crl| format!(" and {}", crl.display()));
        format!("{mode} by {}{crl}", ca.display())
    };
    option(out, "tls.client_auth", client_auth.as_ref(), new.client_auth.as_ref(), asked);
}

fn certificate(source: &CertificateSource) -> String {
    match source {
        CertificateSource::Pair(files) if files.cert == files.key => {
            files.cert.display().to_string()
        }
        CertificateSource::Pair(files) => {
            format!("{} ({})", files.cert.display(), files.key.display())
        }
        CertificateSource::Dir(dir) => format!("{}/", dir.display()),
    }
}

fn acme_keys(out: &mut Vec<String>, old: &Acme, new: &Acme) {
    let Acme { directory, contact, names, challenge, storage, ca, profile, external_account } = old;
    value(out, "tls.acme.directory", directory, &new.directory);
    list(out, "tls.acme.contact", contact, &new.contact, String::clone);
    list(out, "tls.acme.names", names, &new.names, String::clone);
    let how = |challenge: &Challenge| match challenge {
        Challenge::Http01 { address } => format!("http-01 at {address}"),
        Challenge::TlsAlpn01 => "tls-alpn-01".to_owned(),
        Challenge::Dns01 { hook } => format!("dns-01 by {}", hook.display()),
    };
    value(out, "tls.acme.challenge", how(challenge), how(&new.challenge));
    value(out, "tls.acme.storage", storage.display(), new.storage.display());
    let path = |path: &PathBuf| path.display().to_string();
    option(out, "tls.acme.ca", ca.as_ref(), new.ca.as_ref(), path);
    option(out, "tls.acme.profile", profile.as_ref(), new.profile.as_ref(), String::clone);
    let (old, new) = (external_account.as_ref(), new.external_account.as_ref());
    option(out, "tls.acme.external_account", old, new, |account| {
        let ExternalAccount { id, key_file } = account;
        format!("{id} by {}", key_file.display())
    });
}

fn backend(out: &mut Vec<String>, old: &Backend, new: &Backend) {
    let Backend {
        servers,
        balance,
        hold,
        health: Health { interval, slow_start },
        capabilities: Capabilities { hide, add },
        connect_timeout,
    } = old;
    list(out, "backend.servers", servers, &new.servers, server);
    value(out, "backend.balance", balance.word(), new.balance.word());
    list(out, "backend.capabilities.hide", hide, &new.capabilities.hide, String::clone);
    list(out, "backend.capabilities.add", add, &new.capabilities.add, String::clone);
    for (key, old, new) in [
        ("backend.hold", *hold, new.hold),
        ("backend.health.interval", *interval, new.health.interval),
        ("backend.health.slow_start", *slow_start, new.health.slow_start),
        ("backend.connect_timeout", *connect_timeout, new.connect_timeout),
    ] {
        value(out, key, duration_text(old), duration_text(new));
    }
}

/// Its address, and behind it what is not as it is by itself.
fn server(server: &Server) -> String {
    let Server { address, weight, state, max_sessions, identity, tls } = server;
    let mut more = Vec::new();
    if *weight != 1 {
        more.push(format!("weight {weight}"));
    }
    if *state != ServerState::Active {
        more.push(state.word().to_owned());
    }
    more.extend(max_sessions.map(|max| format!("max_sessions {max}")));
    match identity {
        Identity::None => {}
        Identity::ProxyV1 => more.push("proxy-v1".to_owned()),
        Identity::ProxyV2(kind) => more.push(format!("proxy-v2 for {}", kind.word())),
        Identity::DovecotId => more.push("dovecot-id".to_owned()),
        Identity::Transparent => more.push("transparent".to_owned()),
    }
    if let Some(ServerTls { mode, server_name, trust }) = tls {
        let trust = match trust {
            Trust::System => "the system's CAs".to_owned(),
            Trust::Ca(file) => file.display().to_string(),
            Trust::Fingerprint(hash) => hash.iter().map(|byte| format!("{byte:02x}")).collect(),
            Trust::Insecure => "anybody".to_owned(),
        };
        more.push(format!("tls {} to {server_name}, trusting {trust}", mode.word()));
    }
    with(address, &more)
}

fn limits(out: &mut Vec<String>, old: &Limits, new: &Limits) {
    let Limits { connections, line, literal, sasl } = *old;
    value(out, "limits.connections", connections, new.connections);
    value(out, "limits.line", line, new.line);
    value(out, "limits.literal", literal, new.literal);
    value(out, "limits.sasl", sasl, new.sasl);
}

fn timeouts(out: &mut Vec<String>, old: &Timeouts, new: &Timeouts) {
    let Timeouts {
        handshake,
        login,
        backend_greeting,
        backend_login,
        idle,
        write,
        half_closed,
        drain,
    } = *old;
    for (key, old, new) in [
        ("timeouts.handshake", handshake, new.handshake),
        ("timeouts.login", login, new.login),
        ("timeouts.backend_greeting", backend_greeting, new.backend_greeting),
        ("timeouts.backend_login", backend_login, new.backend_login),
        ("timeouts.idle", idle, new.idle),
        ("timeouts.write", write, new.write),
        ("timeouts.half_closed", half_closed, new.half_closed),
        ("timeouts.drain", drain, new.drain),
    ] {
        value(out, key, duration_text(old), duration_text(new));
    }
}

fn value<T: Display>(out: &mut Vec<String>, key: &str, old: T, new: T) {
    let (old, new) = (old.to_string(), new.to_string());
    if old != new {
        out.push(format!("{key} {old} -> {new}"));
    }
}

fn option<T>(
    out: &mut Vec<String>,
    key: &str,
    old: Option<&T>,
    new: Option<&T>,
    text: impl Fn(&T) -> String,
) {
    let text = |one: Option<&T>| one.map_or_else(|| "none".to_owned(), &text);
    value(out, key, text(old), text(new));
}

fn list<T>(out: &mut Vec<String>, key: &str, old: &[T], new: &[T], text: impl Fn(&T) -> String) {
    let old: Vec<String> = old.iter().map(&text).collect();
    let new: Vec<String> = new.iter().map(&text).collect();
    if old == new {
        return;
    }
    let gone = old.iter().filter(|one| !new.contains(one)).map(|one| format!(" -{one}"));
    let come = new.iter().filter(|one| !old.contains(one)).map(|one| format!(" +{one}"));
    let mut words: String = gone.chain(come).collect();
    if words.is_empty() {
        words = format!(" now {}", new.join(" ")); // the same in another order
    }
    out.push(format!("{key}{words}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Settings {
        super::super::parse(text, "test".as_ref(), &|_| None).unwrap()
    }

    #[test]
    fn what_differs_is_named_and_nothing_else() {
        let old = "listen: [{address: '127.0.0.1:993'}]\n\
                   tls: {certificates: [{cert: a, key: b}]}\n\
                   backend: {servers: [{address: 'old:143'}, {address: 'both:143'}]}\n";
        let new = "listen: [{address: '127.0.0.1:993'}, {address: '[::1]:1993'}]\n\
                   tls: {certificates: [{cert: a, key: b}], min_version: '1.3'}\n\
                   backend: {servers: [{address: 'both:143'}, {address: 'new:143'}]}\n\
                   limits: {connections: 500}\n\
                   timeouts: {idle: 45m}\n\
                   log: {level: warn}\n";
        assert_eq!(changes(&parse(old), &parse(old)), Vec::<String>::new());
        assert_eq!(
            changes(&parse(old), &parse(new)),
            [
                "listen +[::1]:1993",
                "tls.min_version 1.2 -> 1.3",
                "backend.servers -old:143 +new:143",
                "limits.connections 9000 -> 500",
                "timeouts.idle 35m -> 45m",
                "log.level info -> warn",
            ]
        );
        let server = "'old:143', weight: 3, state: drain, tls: {mode: implicit, verify: insecure}";
        let listen = "'127.0.0.1:993', tls: starttls";
        let more = old.replace("'old:143'", server).replace("'127.0.0.1:993'", listen);
        assert_eq!(
            changes(&parse(old), &parse(&more)),
            [
                "listen -127.0.0.1:993 +127.0.0.1:993 (starttls)",
                "backend.servers -old:143 +old:143 (weight 3, drain, tls implicit to old, trusting anybody)",
            ]
        );
        let turned =
            old.replace("'old:143'}, {address: 'both:143'", "'both:143'}, {address: 'old:143'");
        assert_eq!(changes(&parse(old), &parse(&turned)), ["backend.servers now both:143 old:143"]);
    }
}
