//! Keeps the served certificates up to date while the process runs.
//!
//! In: a [`Store`] that is loaded; changes in the file system, a minute's passing, SIGHUP. Out: certificates for new
//! handshakes; log lines, metrics and readiness. Live sessions go on with what they have.
//! Not here: what may take whose place (`store`).

use std::time::{Duration, SystemTime};

use tokio::signal::unix::Signal;
use tokio::time::sleep;

use super::store::{News, Store};
use super::unix;
use super::watch::Watch;
use crate::admin::Readiness;
use crate::metrics::Metrics;

/// How often files and ages are looked at, whatever the file system says.
const EVERY: Duration = Duration::from_secs(60);

/// Runs until it is dropped.
pub async fn keep(mut store: Store, metrics: &Metrics, readiness: &Readiness, mut hangup: Signal) {
    let mut watch = Watch::start();
    let mut missed = watch.set(&store.watched());
    loop {
        let told = tokio::select! {
            () = async {}, if missed => false,
            () = watch.changed() => false,
            () = sleep(EVERY) => false,
            Some(()) = hangup.recv() => true,
        };
        let news = tokio::task::block_in_place(|| {
            let news = store.look(SystemTime::now(), told);
            missed = watch.set(&store.watched());
            news
        });
        if told {
            tracing::info!(signal = "SIGHUP", "certificates are read again");
        }
        announce(&news, told, &store, metrics, readiness);
    }
}

/// Tells what a look has brought. `asked` is that somebody waits for an answer, and "nothing new" is one.
pub fn announce(news: &News, asked: bool, store: &Store, metrics: &Metrics, readiness: &Readiness) {
    for problem in &news.problems {
        tracing::error!("{problem}");
    }
    for notice in &news.notice {
        tracing::warn!("{notice}");
    }
    for taken in &news.taken {
        let names = taken.names.join(" ");
        let until = super::facts::date(taken.not_after);
        tracing::info!(certificate = taken.certificate, names, until, "serving certificate");
    }
    for error in &news.refused {
        tracing::error!(error, "a certificate can't be used, what was served before stays");
    }
    let state = store.state();
    readiness.set_certificate_not_after(state.default_not_after);
    metrics.certificates(&state);
    if !news.refused.is_empty() || !news.taken.is_empty() || asked {
        metrics.certificates_reloaded(news.refused.len(), unix(SystemTime::now()));
    }
}
