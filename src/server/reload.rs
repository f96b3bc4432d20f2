//! SIGHUP: another configuration, as a whole or not at all, and no live session notices.
//!
//! In: the file. Out: the next [`Context`](conn::Context) for connections to come, sockets opened and closed, the log's level and format; one
//! line that says what has changed; or an error for each mistake, and nothing has. Everything that can fail is done
//! before anything is changed: first the file, then certificates, ticket keys and the CAs of clients and servers, then the sockets.
//! What is wanted as it is stays: a socket, a server and what is known of it, the certificates that serve, ticket keys in memory, the
//! orders of ACME. Of a server that is new nothing is known; where none that takes sessions is up, the new ones are asked before
//! clients are greeted, for [`ASKED`] at most. A signal to stop abandons it.
//! Not here: files that the configuration names and that have changed (`tls::reload`), which are looked at afterwards.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::timeout;

use super::listeners::Sockets;
use super::{Certificates, Running, Task, fit_descriptors};
use crate::backend::{Backends, learn, transparent};
use crate::config::settings::{Limits, Log, Settings};
use crate::config::{self, Effective};
use crate::conn;
use crate::log;
use crate::tls::backend::Connector;
use crate::tls::config::Fresh;
use crate::tls::reload::{self as certificates, Keeper, Occasion};
use crate::tls::{self, Configured, Serving, Store};

/// How long new servers are waited for.
const ASKED: Duration = Duration::from_secs(2);

/// Where the configuration comes from, and the log that it rules.
pub struct Source {
    pub file: PathBuf,
    pub log: log::Control,
}

/// What another configuration needs, ready to serve.
struct Prepared {
    settings: Settings,
    limits: Limits,
    warning: Option<String>,
    changes: Vec<String>,
    store: Option<(Store, tls::News)>,
    configured: Option<(Configured, Arc<Serving>, Fresh)>,
    connectors: Vec<Option<Connector>>,
    sockets: Sockets,
}

impl Running {
    /// Reads the certificates again, and what stands around them.
    pub async fn reread(&mut self) {
        let keeper = self.keeper().await;
        self.keep(keeper.map(Keeper::asked));
    }

    pub async fn reload(&mut self, source: &Source) {
        let file = source.file.clone();
        let loaded = tokio::task::spawn_blocking(move || config::load(&file)).await;
        let loaded = loaded.map_err(|error| vec![error.to_string()]);
        let loaded = loaded.and_then(|loaded| loaded.map_err(|error| lines(&error)));
        // Nothing looks at certificates meanwhile, so nothing of the old ones can come after the new.
        let keeper = self.keeper().await;
        let prepared = loaded.and_then(|settings| {
            tokio::task::block_in_place(|| self.prepare(settings, keeper.as_ref()))
        });
        let taken = prepared.is_ok();
        match prepared {
            Ok(prepared) => self.take(prepared, keeper, source).await,
            Err(mistakes) => {
                for error in mistakes {
                    tracing::error!(error, "configuration refused, the old one stays");
                }
                self.keep(keeper);
            }
        }
        self.ctx.metrics.forget_backends();
        self.ctx.metrics.configuration_reloaded(taken, tls::unix(SystemTime::now()));
    }

    /// What keeps the certificates fresh, at rest; `None` if it has panicked.
    async fn keeper(&mut self) -> Option<Keeper> {
        let Certificates { stop, task } = self.certificates.take()?;
        stop.cancel();
        task.await.ok()
    }

    fn keep(&mut self, keeper: Option<Keeper>) {
        let (around, background) = (&self.around, &self.background);
        let keep = |keeper| Certificates::keep(keeper, around, background, &self.stop_background);
        self.certificates = keeper.map(keep);
    }

    /// # Errors
    /// A line for each mistake.
    fn prepare(
        &self,
        settings: Settings,
        keeper: Option<&Keeper>,
    ) -> Result<Prepared, Vec<String>> {
        transparent::check(&settings.backend.servers).map_err(|error| vec![error.to_string()])?;
        let (limits, warning) = fit_descriptors(&settings);
        let now = SystemTime::now();
        let kept =
            keeper.filter(|_| same_certificates(&self.settings.effective, &settings.effective));
        let store = match kept {
            Some(_) => None,
            None => {
                let mut store = Store::new(&settings.tls);
                let news = store.load(now).map_err(|error| each(&error))?;
                Some((store, news))
            }
        };
        let names = match (&store, kept) {
            (Some((store, _)), _) => Some(store.names()),
            (None, Some(_)) if same_handshakes(&self.settings.effective, &settings.effective) => {
                None
            }
            (None, kept) => kept.map(|keeper| keeper.store.names()),
        };
        let before = keeper.map(|keeper| &keeper.configured);
        let configured = names.map(|names| Configured::new(&settings.tls, names, before, now));
        let configured = configured.transpose().map_err(|error| each(&error))?;
        let connectors =
            tls::backend::connectors(&settings.backend, &self.ctx.backends.kept(&settings));
        let connectors = connectors.map_err(|error| each(&error.into()))?;
        let sockets = self.listeners.bind(&settings).map_err(|error| vec![error.to_string()])?;
        let changes = self.settings.effective.changes(&settings.effective);
        Ok(Prepared { settings, limits, warning, changes, store, configured, connectors, sockets })
    }

    async fn take(&mut self, prepared: Prepared, keeper: Option<Keeper>, source: &Source) {
        let Prepared { settings, limits, warning, changes, store, configured, connectors, sockets } =
            prepared;
        let old = Arc::clone(&self.ctx);
        let backends =
            Arc::new(Backends::new(&settings, connectors, &old.metrics, Some(&old.backends)));
        if let Some(new) = backends.without_any_up(&old.backends) {
            let _ = timeout(ASKED, learn::first(&new, &backends.news)).await;
        }
        let serving = configured.as_ref().map_or(&old.tls, |(_, serving, _)| serving);
        old.metrics.can_negotiate(&conn::tls::combinations(&serving.config.load().usual));
        let ctx = Arc::new(old.next(Arc::clone(serving), backends, limits, settings.timeouts));
        self.listeners.serve(&settings, sockets, &ctx).await;
        ctx.backends.replace(Some(&old.backends), &old.metrics);
        self.around.readiness.set_backends(ctx.backends.states());
        self.ctx = ctx;
        self.learn(Some(&old.backends));

        let acme_stays = self.settings.tls.acme == settings.tls.acme;
        let before = std::mem::replace(&mut self.settings, settings);
        self.tell(&changes, before.log, source);
        if warning != self.warning {
            warning.iter().for_each(|warning| tracing::warn!("{warning}"));
            self.warning = warning;
        }
        if !acme_stays {
            self.order_anew().await;
        }
        let keeper = self.renew(keeper, store, configured);
        self.keep(keeper);
    }

    /// Says what has changed; the line is there if either level would show it.
    fn tell(&self, changes: &[String], before: Log, source: &Source) {
        let log = self.settings.log;
        source.log.set(&Log { level: log.level.max(before.level), ..log });
        if changes.is_empty() {
            tracing::info!("configuration reloaded, nothing changed");
        } else {
            tracing::info!(changed = changes.join("; "), "configuration reloaded");
        }
        source.log.set(&log);
    }

    /// What keeps the certificates fresh from now on.
    fn renew(
        &self,
        keeper: Option<Keeper>,
        store: Option<(Store, tls::News)>,
        configured: Option<(Configured, Arc<Serving>, Fresh)>,
    ) -> Option<Keeper> {
        let Some((configured, serving, fresh)) = configured else {
            return keeper.map(Keeper::asked);
        };
        let certificates::Around { metrics, readiness, .. } = &self.around;
        certificates::announce_parts(&fresh, metrics);
        if let Some((store, news)) = store {
            certificates::announce(&news, Occasion::Told, &store, metrics, readiness);
            return Some(Keeper::new(store, configured, serving));
        }
        keeper.map(|keeper| Keeper::new(keeper.store, configured, serving).asked())
    }

    async fn order_anew(&mut self) {
        if let Some(Task { stop, task }) = self.acme.take() {
            stop.cancel();
            let _ = task.await;
            self.answers.withdraw_all();
            self.around.metrics.acme_next_order(0);
        }
        self.order();
    }
}

/// The keys of `tls` that say which certificates serve; the others are about the handshake itself.
const CERTIFICATES: [&str; 4] = ["certificates", "self_signed", "acme", "unknown_name"];

/// Whether the same certificates are wanted.
fn same_certificates(old: &Effective, new: &Effective) -> bool {
    CERTIFICATES.iter().all(|key| old.at(&["tls", key]) == new.at(&["tls", key]))
}

/// Whether the same is wanted of handshakes, whatever certificate they show.
fn same_handshakes(old: &Effective, new: &Effective) -> bool {
    let keys = |effective: &Effective| match effective.at(&["tls"]) {
        serde_yaml::Value::Mapping(keys) => {
            let others = keys
                .iter()
                .filter(|(key, _)| !CERTIFICATES.iter().any(|name| key.as_str() == Some(name)));
            others.map(|(key, value)| (key.clone(), value.clone())).collect()
        }
        _ => serde_yaml::Mapping::new(),
    };
    keys(old) == keys(new)
}

/// Every mistake with its place, without a picture of its line.
fn lines(error: &config::Error) -> Vec<String> {
    let config::Error::Invalid(invalid) = error else { return vec![error.to_string()] };
    let file = invalid.file.display();
    let mistakes = invalid.mistakes.iter().map(|mistake| format!("{file}:{mistake}"));
    let more = (invalid.dropped > 0).then(|| format!("{file}: and {} more", invalid.dropped));
    mistakes.chain(more).collect()
}

/// One line for each certificate.
fn each(error: &tls::Error) -> Vec<String> {
    match error {
        tls::Error::Unusable(each) => each.clone(),
        error => vec![tls::chain(error)],
    }
}
