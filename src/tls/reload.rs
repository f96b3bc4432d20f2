//! Keeps the served certificates, ticket keys and client CAs up to date while the process runs.
//!
//! In: a [`Store`] and a [`Configured`] that are loaded; changes in the file system, a minute's passing, the operator's word. Out:
//! certificates and a `ServerConfig` for new handshakes ([`Serving`]); log lines, metrics and readiness. Live sessions go on with what they have.
//! Not here: what may take whose place (`store`); another configuration (`server::reload`).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use strum::VariantArray as _;
use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::config::{Configs, Configured, Fresh, Part, Reread, Serving};
use super::store::{News, Store};
use super::watch::Watch;
use super::{chain, facts, unix};
use crate::admin::Readiness;
use crate::metrics::Metrics;

/// How often files and ages are looked at, whatever the file system says.
const EVERY: Duration = Duration::from_secs(60);

/// All that is kept up to date, and where to look for it.
pub struct Keeper {
    pub store: Store,
    pub configured: Configured,
    serving: Arc<Serving>,
    watch: Watch,
    /// Why to look at once.
    due: Option<Occasion>,
    /// The last mistake of each part.
    told: HashMap<&'static str, String>,
}

/// Whom a [`Keeper`] tells, and who tells it.
#[derive(Clone)]
pub struct Around {
    pub metrics: Arc<Metrics>,
    pub readiness: Arc<Readiness>,
    /// Tells of a new certificate before its file does.
    pub issued: Arc<Notify>,
}

impl Keeper {
    /// `serving` is what `configured` has made.
    pub fn new(store: Store, configured: Configured, serving: Arc<Serving>) -> Self {
        let mut keeper = Self {
            store,
            configured,
            serving,
            watch: Watch::start(),
            due: None,
            told: HashMap::new(),
        };
        keeper.watch_files();
        keeper
    }

    /// The operator has asked: all files are read again as soon as it [keeps](Self::keep) on.
    #[must_use]
    pub fn asked(mut self) -> Self {
        self.due = Some(Occasion::Told);
        self.told.clear(); // what is still wrong is the answer
        self
    }

    /// Keeps on until `stop`, and comes back: no look is under way then.
    pub async fn keep(mut self, around: Around, stop: CancellationToken) -> Self {
        loop {
            let (due, nap) = (self.due, self.nap());
            let occasion = tokio::select! {
                biased;
                () = stop.cancelled() => {
                    // A change that was waiting for things to be quiet is not to be missed.
                    self.due.get_or_insert(Occasion::Watch);
                    return self;
                }
                occasion = async { due.unwrap_or(Occasion::Watch) }, if due.is_some() => occasion,
                () = self.watch.changed() => Occasion::Watch,
                () = around.issued.notified() => Occasion::Watch,
                () = sleep(nap) => Occasion::Watch,
            };
            self.due = None;
            tokio::task::block_in_place(|| self.look(occasion, &around));
        }
    }

    /// Until a look is due though no file changes: a clock may be set, so it is no longer than [`EVERY`].
    fn nap(&self) -> Duration {
        let now = SystemTime::now();
        let rest = self.store.next_moment(now).map(|next| next.saturating_sub(unix(now)));
        let rest = rest.and_then(|rest| u64::try_from(rest).ok()).map(Duration::from_secs);
        rest.map_or(EVERY, |rest| rest.min(EVERY))
    }

    fn look(&mut self, occasion: Occasion, around: &Around) {
        let now = SystemTime::now();
        let news = self.store.look(now, occasion == Occasion::Told);
        let reread = self.configured.reread(now);
        let (notice, problems) = self.configured.aged(now);
        self.watch_files();
        announce(&news, occasion, &self.store, &around.metrics, &around.readiness);
        problems.iter().for_each(|problem| tracing::error!("{problem}"));
        notice.iter().for_each(|notice| tracing::warn!("{notice}"));
        for one in reread {
            take(one, &mut self.told, &self.serving.config, &around.metrics);
        }
    }

    fn watch_files(&mut self) {
        let files = [self.store.watched(), self.configured.watched()].concat();
        if self.watch.set(&files) {
            self.due = Some(Occasion::Watch); // something was missed
        }
    }
}

/// Takes ticket keys and client CAs that have changed into use; live sessions go on. What does not load is said once, and
/// the old stays; `told` keeps the last mistake of each, until the operator asks (SIGHUP).
fn take(
    Reread { part, result }: Reread,
    told: &mut HashMap<&'static str, String>,
    serving: &ArcSwap<Configs>,
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
            let error = chain(&error);
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
    fresh.counted.iter().for_each(|counted| tracing::info!("{counted}"));
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
    for relief in &news.relief {
        tracing::info!("{relief}");
    }
    for taken in &news.taken {
        let names = taken.names.join(" ");
        let until = facts::date(taken.not_after);
        let sent = taken.sent;
        tracing::info!(certificate = taken.certificate, names, until, sent, "serving certificate");
    }
    for error in &news.refused {
        tracing::error!(error, "a certificate can't be used; what was served before stays");
    }
    let state = store.state();
    let lives = state.default_lives.iter();
    readiness.set_certificates(lives.map(|life| life.not_before..=life.not_after).collect());
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
