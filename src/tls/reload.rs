//! Keeps the served certificates, ticket keys and client CAs up to date while the process runs.
//!
//! In: a [`Store`] and a [`Configured`] that are loaded; changes in the file system, a minute's passing, SIGHUP. Out:
//! certificates and a `ServerConfig` for new handshakes; log lines, metrics and readiness. Live sessions go on with what they have.
//! Not here: what may take whose place (`store`).

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use strum::VariantArray as _;
use tokio::signal::unix::Signal;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::config::{Configured, Fresh, Part, Reread};
use super::store::{News, Store};
use super::watch::Watch;
use super::{facts, unix};
use crate::admin::Readiness;
use crate::metrics::Metrics;

/// How often files and ages are looked at, whatever the file system says.
const EVERY: Duration = Duration::from_secs(60);

/// Runs until it is dropped. `serving`: what new handshakes go by; `issued` tells of a new certificate before its file
/// does.
pub async fn keep(
    mut store: Store,
    mut configured: Configured,
    serving: &ArcSwap<ServerConfig>,
    metrics: &Metrics,
    readiness: &Readiness,
    mut hangup: Signal,
    issued: &Notify,
) {
    let watched =
        |store: &Store, configured: &Configured| [store.watched(), configured.watched()].concat();
    let mut watch = Watch::start();
    let mut missed = watch.set(&watched(&store, &configured));
    let mut told = HashMap::new();
    loop {
        let occasion = tokio::select! {
            () = async {}, if missed => Occasion::Watch,
            () = watch.changed() => Occasion::Watch,
            () = issued.notified() => Occasion::Watch,
            () = sleep(EVERY) => Occasion::Watch,
            Some(()) = hangup.recv() => Occasion::Told,
        };
        let (news, reread) = tokio::task::block_in_place(|| {
            let now = SystemTime::now();
            let news = store.look(now, occasion == Occasion::Told);
            let reread = configured.reread(now);
            missed = watch.set(&watched(&store, &configured));
            (news, reread)
        });
        announce(&news, occasion, &store, metrics, readiness);
        for one in reread {
            take(one, &mut told, serving, metrics);
        }
    }
}

/// Takes ticket keys and client CAs that have changed into use; live sessions go on. What does not load is said once, and
/// the old stays; `told` keeps the last mistake of each.
fn take(
    Reread { part, result }: Reread,
    told: &mut HashMap<&'static str, String>,
    serving: &ArcSwap<ServerConfig>,
    metrics: &Metrics,
) {
    let (what, now) = (<&str>::from(part), unix(SystemTime::now()));
    match result {
        Ok(fresh) => {
            told.remove(what);
            metrics.part_reloaded(part, true, now);
            say(&fresh);
            tracing::info!(what, "changed files are in use");
            if let Some(config) = fresh.config {
                metrics.list_next_update(fresh.list_next_update);
                serving.store(config);
            }
        }
        Err(error) => {
            let error = error.to_string();
            if told.get(what) != Some(&error) {
                metrics.part_reloaded(part, false, now);
                tracing::error!(what, error, "changed files can't be used, the old ones stay");
                told.insert(what, error);
            }
        }
    }
}

/// Tells what the first reading of ticket keys and client CAs has brought.
pub fn announce_parts(fresh: &Fresh, metrics: &Metrics) {
    say(fresh);
    metrics.list_next_update(fresh.list_next_update);
    let now = unix(SystemTime::now());
    Part::VARIANTS.iter().for_each(|&part| metrics.part_loaded(part, now));
}

fn say(fresh: &Fresh) {
    fresh.problems.iter().for_each(|problem| tracing::error!("{problem}"));
    fresh.notice.iter().for_each(|notice| tracing::warn!("{notice}"));
}

/// Why somebody looked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Occasion {
    Start,
    /// Something may have changed.
    Watch,
    /// SIGHUP: somebody waits for an answer, and "nothing new" is one.
    Told,
}

/// Tells what a look has brought.
pub fn announce(
    news: &News,
    occasion: Occasion,
    store: &Store,
    metrics: &Metrics,
    readiness: &Readiness,
) {
    if occasion == Occasion::Told {
        tracing::info!(changed = news.taken.len(), "SIGHUP: certificates were read again");
    }
    for problem in &news.problems {
        tracing::error!("{problem}");
    }
    for notice in &news.notice {
        tracing::warn!("{notice}");
    }
    for taken in &news.taken {
        let names = taken.names.join(" ");
        let until = facts::date(taken.not_after);
        tracing::info!(certificate = taken.certificate, names, until, "serving certificate");
    }
    for error in &news.refused {
        tracing::error!(error, "a certificate can't be used; what was served before stays");
    }
    let state = store.state();
    readiness.set_certificate_not_after(state.default_not_after);
    metrics.certificates(&state);
    let now = unix(SystemTime::now());
    match (occasion, news.refused.is_empty(), news.taken.is_empty()) {
        (_, false, _) => metrics.certificates_reloaded("failed", now),
        (Occasion::Start, true, _) => metrics.certificates_loaded(now),
        (Occasion::Watch, true, true) => {}
        (Occasion::Watch, true, false) | (Occasion::Told, true, _) => {
            metrics.certificates_reloaded("ok", now);
        }
    }
}
