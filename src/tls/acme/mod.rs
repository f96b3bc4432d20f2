//! A certificate from a CA by ACME (RFC 8555), and the next one in time.
//!
//! In: [`settings::Acme`]. Out: files in `tls.acme.storage`, which `store` serves like any other pair (until there
//! are any, it serves a self-made one); a log line for each order; metrics.
//!
//! ```text
//! keep ── renewal: when? ──▶ order ── client ──▶ the CA
//!   │                          ├── http, alpn, hook ◀── its challenges
//!   ▼                          ▼
//! reload ◀── Issued ◀────── storage
//! ```
//!
//! A certificate is replaced when the CA suggests it (ARI, RFC 9773), and otherwise at two thirds of its life. One
//! order runs at a time; after a failure there is a pause that doubles. Nothing of this is on the way of a session:
//! what serves goes on serving whatever happens here. Without `tls.acme` nothing of it is made.
//! Several processes must not share a storage: each would order.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use rustls::crypto::aws_lc_rs;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::facts::{self, Facts};
use super::{Severity, key_mode, unix};
use crate::config::settings::{self, Challenge};
use crate::metrics::Metrics;

mod renewal;

mod order;

mod client;

mod http;

mod alpn;

mod hook;

mod storage;

mod failure;

pub use alpn::PROTOCOL;
pub use storage::{Issued, Storage};

use failure::{Failure, Trouble};
use order::Orders;
use renewal::Window;

/// What a CA that asks is shown now, for as long as an order runs.
#[derive(Debug, Default)]
pub struct Answers {
    pub http: http::Tokens,
    pub tls: alpn::Proofs,
}

impl Answers {
    pub fn withdraw_all(&self) {
        self.http.withdraw_all();
        self.tls.withdraw_all();
    }
}

/// The clock may be set meanwhile: no sleep is longer than this.
const NAP: Duration = Duration::from_mins(10);
/// How often the CA is asked for its suggestion: as it says, within these bounds (RFC 9773 §4.3.2).
const SUGGESTIONS: (Duration, Duration) = (Duration::from_mins(1), Duration::from_hours(24));
/// When it could not be asked.
const SUGGESTION_FAILED: Duration = Duration::from_hours(1);

/// Orders and renews, until it is dropped. `issued` is told of every new certificate. A mistake in all that reads what a
/// CA sends must not be the end of it: after a panic it begins anew.
pub async fn keep(
    settings: settings::Acme,
    answers: Arc<Answers>,
    issued: Arc<Notify>,
    metrics: &Metrics,
) {
    let begin = || {
        let orders = Orders::new(settings.clone(), Arc::clone(&answers));
        keep_on(orders, &issued, metrics)
    };
    let ended = |panics| {
        answers.withdraw_all();
        metrics.acme_ordered(false);
        let pause = renewal::pause(Trouble::Refused, panics, None, chance());
        let next = unix(SystemTime::now()).saturating_add(pause.as_secs().cast_signed());
        metrics.acme_next_order(next);
        tracing::error!(
            next = facts::date(next),
            "ACME has panicked, which is a mistake of the proxy: report what stands on standard error"
        );
        pause
    };
    anew(begin, ended).await;
}

/// Begins work anew whenever it has ended, after the pause that `ended` says when it is told how many ends there were
/// in a row.
async fn anew<W: Future>(begin: impl Fn() -> W, ended: impl Fn(u32) -> Duration) {
    let mut ends = 0;
    loop {
        let started = Instant::now();
        until_panic(begin()).await;
        ends = if started.elapsed() > Duration::from_hours(24) { 1 } else { ends + 1 };
        sleep(ended(ends)).await;
    }
}

/// Ends when `work` does, well or not.
async fn until_panic(work: impl Future) {
    let mut work = pin!(work);
    std::future::poll_fn(|cx| {
        // It is not polled again.
        match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(_)) | Err(_) => Poll::Ready(()),
        }
    })
    .await;
}

async fn keep_on(mut orders: Orders, issued: &Notify, metrics: &Metrics) {
    let names = orders.settings.names.join(" ");
    let mut known = Known::default();
    let mut failures = 0;
    let mut not_before = i64::MIN; // for the next order
    loop {
        known.look(&orders).await;
        let due = known.due().max(not_before);
        let now = unix(SystemTime::now());
        metrics.acme_next_order(due.max(now));
        if due > now {
            let nap = Duration::from_secs((due - now).unsigned_abs()).min(NAP);
            sleep(nap).await;
            continue;
        }
        let started = Instant::now();
        let mut result = orders.order(known.leaf.as_ref().map(|leaf| &leaf.der)).await;
        let duration_seconds = (started.elapsed().as_secs_f64() * 1000.0).round() / 1000.0;
        if result.is_ok() {
            known.look(&orders).await;
            if known.leaf.is_none() {
                let path = orders.storage.certificate();
                let text = format!("{}: the new certificate can't be read again", path.display());
                result = Err(Failure::refused(text, Failure::FILE));
            }
        }
        let now = unix(SystemTime::now());
        metrics.acme_ordered(result.is_ok());
        match result {
            Ok(()) => {
                failures = 0;
                let life = known.leaf.as_ref().map_or(0, |leaf| leaf.not_after - leaf.not_before);
                not_before = renewal::not_before(now, life);
                let next = facts::date(known.due().max(not_before));
                tracing::info!(names, duration_seconds, result = "ok", next, "ACME order");
                issued.notify_one();
            }
            Err(Failure { trouble, text, advice, wait, .. }) => {
                failures += 1;
                let pause = renewal::pause(trouble, failures, wait, chance());
                not_before = now.saturating_add(pause.as_secs().max(1).cast_signed());
                let next = facts::date(not_before);
                tracing::error!(
                    names,
                    duration_seconds,
                    result = "failed",
                    error = text,
                    advice,
                    next,
                    "ACME order"
                );
            }
        }
    }
}

/// The certificate that is there, and what the CA says of it.
#[derive(Default)]
struct Known {
    /// `None` if it can't serve, or is for other names.
    leaf: Option<Facts>,
    /// Drawn once for each certificate.
    chance: f64,
    window: Option<Window>,
    /// When to ask for another.
    ask: Option<Instant>,
}

impl Known {
    async fn look(&mut self, orders: &Orders) {
        let (storage, names) = (orders.storage.clone(), orders.settings.names.clone());
        let leaf = blocking(move || storage.leaf().filter(|leaf| storage::is_for(leaf, &names)));
        let leaf = leaf.await;
        let same = |a: &Facts, b: &Facts| a.fingerprint == b.fingerprint;
        match (&self.leaf, &leaf) {
            (Some(old), Some(new)) if same(old, new) => {}
            _ => *self = Self { leaf, chance: chance(), window: None, ask: Some(Instant::now()) },
        }
        let Some(leaf) = &self.leaf else { return };
        if self.ask.is_none_or(|at| at > Instant::now()) {
            return;
        }
        let again = match orders.suggestion(&leaf.der).await {
            Ok(Some((window, again))) => {
                if self.window != Some(window) {
                    let (start, end) = (facts::date(window.start), facts::date(window.end));
                    tracing::info!(start, end, "the CA suggests when to renew (ARI)");
                }
                self.window = Some(window);
                again.clamp(SUGGESTIONS.0, SUGGESTIONS.1)
            }
            Ok(None) => SUGGESTIONS.1, // one day it may
            Err(failure) => {
                tracing::warn!(
                    error = failure.text,
                    "the CA could not be asked when to renew; what it said before holds, or else two thirds of the certificate's life"
                );
                SUGGESTION_FAILED
            }
        };
        self.ask = Some(Instant::now() + again);
    }

    /// Unix seconds; long past if there is nothing to be replaced.
    fn due(&self) -> i64 {
        self.leaf.as_ref().map_or(i64::MIN, |leaf| {
            renewal::due(leaf.not_before, leaf.not_after, self.window, self.chance)
        })
    }
}

/// What can be said before anything is ordered, for `check`.
pub fn check(settings: &settings::Acme, say: &mut impl FnMut(Severity, String)) {
    if let Err(why) = storage::inspect(&settings.storage) {
        say(Severity::Error, why);
    }
    if let Err(failure) = Storage::new(settings).account() {
        say(Severity::Error, failure.text);
    }
    match settings.ca.as_deref().map(super::certificate::read_cas) {
        Some(Err(error)) => say(Severity::Error, super::chain(&error)),
        Some(Ok(cas)) => {
            cas.problems.into_iter().for_each(|why| say(Severity::Error, why));
            cas.notice.into_iter().for_each(|why| say(Severity::Warning, why));
        }
        None => {}
    }
    if let Challenge::Dns01 { hook } = &settings.challenge
        && let Err(error) = rustix::fs::access(hook, rustix::fs::Access::EXEC_OK)
    {
        let why = std::io::Error::from(error);
        say(Severity::Error, format!("{}: cannot be run: {why}", hook.display()));
    }
    if let Some(external) = &settings.external_account {
        if let Err(why) = order::external_key(&external.key_file) {
            say(Severity::Error, why);
        }
        if let Some((severity, text)) = key_mode(&external.key_file) {
            say(severity, text);
        }
    }
}

/// Runs what waits for files where no client waits for it.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime has ended, and so will this.
            Err(_) => std::future::pending().await,
        },
    }
}

/// A random number from 0 to 1.
fn chance() -> f64 {
    let mut bytes = [0; 4];
    match aws_lc_rs::default_provider().secure_random.fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX),
        Err(_) => 0.5, // it only spreads load
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    #[tokio::test]
    async fn a_panic_ends_the_work_and_nothing_else() {
        until_panic(async {
            sleep(Duration::from_millis(1)).await;
            panic!("as a library may");
        })
        .await;
        until_panic(blocking(|| panic!("in a thread"))).await;
        until_panic(async {}).await;
    }

    #[tokio::test]
    async fn after_a_panic_it_begins_anew() {
        let (begun, ends) = (Cell::new(0), RefCell::new(Vec::new()));
        let begin = || async {
            begun.set(begun.get() + 1);
            assert_eq!(begun.get(), 3, "as a library may");
        };
        let ended = |count| {
            ends.borrow_mut().push(count);
            let pause = if begun.get() < 3 { 1 } else { 1_000_000 };
            Duration::from_millis(pause)
        };
        let third = async {
            while begun.get() < 3 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = anew(begin, ended) => {}
            () = third => {}
        }
        assert_eq!(*ends.borrow(), [1, 2, 3]);
    }
}
