//! All HTTP of the proxy itself. So far the probes: `/metrics`, `/healthz` and `/readyz`.
//!
//! Invariant: no user and no client address ever appears in an answer.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;

pub mod probes;

mod places;

pub mod ask;

/// Whether the proxy can serve, as `/readyz` tells it. Set by whoever knows, read by the probe; no locks.
///
/// Each part is true on its own, so no order between them is kept (`Relaxed` throughout).
#[derive(Debug)]
pub struct Readiness {
    listening: AtomicBool,
    draining: AtomicBool,
    /// When there is a valid certificate, unix seconds: in any of these times.
    certificates: ArcSwap<Vec<RangeInclusive<i64>>>,
    backends: ArcSwap<Vec<BackendState>>,
}

/// A backend server's name for people, and whether it answered when it was last asked.
pub type BackendState = (Arc<str>, Arc<AtomicBool>);

impl Default for Readiness {
    /// Nothing is ready yet.
    fn default() -> Self {
        Self {
            listening: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            certificates: ArcSwap::default(),
            backends: ArcSwap::default(),
        }
    }
}

impl Readiness {
    /// At least one listener for mail clients is open.
    pub fn set_listening(&self, open: bool) {
        self.listening.store(open, Ordering::Relaxed);
    }

    /// When one of the certificates that clients get by default is valid, in unix seconds: in any of these times.
    pub fn set_certificates(&self, lives: Vec<RangeInclusive<i64>>) {
        self.certificates.store(Arc::new(lives));
    }

    /// These, which take sessions, are asked from now on; they change by themselves.
    pub fn set_backends(&self, backends: Vec<BackendState>) {
        self.backends.store(Arc::new(backends));
    }

    /// Shutting down, for good.
    pub fn set_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// # Errors
    /// Every reason why nobody should be sent here now, one line each.
    pub fn check(&self, now: SystemTime) -> Result<(), Vec<String>> {
        let mut reasons = Vec::new();
        if self.draining.load(Ordering::Relaxed) {
            reasons.push("draining: shutting down, no new sessions".to_owned());
        }
        if !self.listening.load(Ordering::Relaxed) {
            reasons.push("no listener is open".to_owned());
        }
        let now = unix(now);
        let lives = self.certificates.load();
        if lives.is_empty() {
            reasons.push("no certificate is loaded".to_owned());
        } else if lives.iter().all(|life| now > *life.end()) {
            reasons.push("the certificate has expired".to_owned());
        } else if !lives.iter().any(|life| life.contains(&now)) {
            reasons.push("the certificate is not valid yet, or the clock is wrong".to_owned());
        }
        let backends = self.backends.load();
        if !backends.iter().any(|(_, up)| up.load(Ordering::Relaxed)) {
            let names: Vec<&str> = backends.iter().map(|(name, _)| &**name).collect();
            reasons.push(match names[..] {
                [] => "no backend is active: all are drained or down by configuration".to_owned(),
                _ => format!("no backend is up: {}", names.join(", ")),
            });
        }
        if reasons.is_empty() { Ok(()) } else { Err(reasons) }
    }
}

/// Seconds since 1970.
fn unix(now: SystemTime) -> i64 {
    let since = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    i64::try_from(since).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn every_reason_is_told_and_goes_away_with_its_cause() {
        let now = UNIX_EPOCH + Duration::from_secs(1000);
        let ready = Readiness::default();
        let up = Arc::<AtomicBool>::default();
        ready.set_backends(vec![("a:143".into(), Arc::default()), ("b:143".into(), up.clone())]);
        assert_eq!(ready.check(now).unwrap_err().len(), 3);
        ready.set_listening(true);
        ready.set_certificates(vec![900..=950, 990..=1000]);
        assert_eq!(ready.check(now), Err(vec!["no backend is up: a:143, b:143".to_owned()]));
        up.store(true, Ordering::Relaxed);
        assert_eq!(ready.check(now), Ok(()));
        let later = now + Duration::from_secs(1);
        assert_eq!(ready.check(later), Err(vec!["the certificate has expired".to_owned()]));
        for early in [899, 970] {
            let told = ready.check(UNIX_EPOCH + Duration::from_secs(early)).unwrap_err();
            assert!(told[0].contains("not valid yet") && told.len() == 1, "{early}: {told:?}");
        }
        ready.set_draining();
        assert!(ready.check(now).unwrap_err()[0].starts_with("draining"));
    }
}
