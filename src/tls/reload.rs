//! Keeps the served certificates up to date while the process runs.
//!
//! In: a [`Store`] that is loaded; changes in the file system, a minute's passing, SIGHUP. Out: certificates for new
//! handshakes; log lines, metrics and readiness. Live sessions go on with what they have.
//! Not here: what may take whose place (`store`).

use std::time::{Duration, SystemTime};

use tokio::signal::unix::Signal;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::store::{News, Store};
use super::watch::Watch;
use super::{facts, unix};
use crate::admin::Readiness;
use crate::metrics::Metrics;

/// How often files and ages are looked at, whatever the file system says.
const EVERY: Duration = Duration::from_secs(60);

/// Runs until it is dropped. `issued` tells of a new certificate before its file does.
pub async fn keep(
    mut store: Store,
    metrics: &Metrics,
    readiness: &Readiness,
    mut hangup: Signal,
    issued: &Notify,
) {
    let mut watch = Watch::start();
    let mut missed = watch.set(&store.watched());
    loop {
        let occasion = tokio::select! {
            () = async {}, if missed => Occasion::Watch,
            () = watch.changed() => Occasion::Watch,
            () = issued.notified() => Occasion::Watch,
            () = sleep(EVERY) => Occasion::Watch,
            Some(()) = hangup.recv() => Occasion::Told,
        };
        let news = tokio::task::block_in_place(|| {
            let news = store.look(SystemTime::now(), occasion == Occasion::Told);
            missed = watch.set(&store.watched());
            news
        });
        announce(&news, occasion, &store, metrics, readiness);
    }
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
