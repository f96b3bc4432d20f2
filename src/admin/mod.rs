//! All HTTP of the proxy itself. So far the probes: `/metrics`, `/healthz` and `/readyz`.
//!
//! Invariant: no user and no client address ever appears in an answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
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
    /// Unix seconds; `i64::MIN` as long as none is known.
    certificate_not_after: AtomicI64,
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
            certificate_not_after: AtomicI64::new(i64::MIN),
            backends: ArcSwap::default(),
        }
    }
}

impl Readiness {
    /// At least one listener for mail clients is open.
    pub fn set_listening(&self, open: bool) {
        self.listening.store(open, Ordering::Relaxed);
    }

    /// The last second (unix) of the certificate that is served.
    pub fn set_certificate_not_after(&self, unix: i64) {
        self.certificate_not_after.store(unix, Ordering::Relaxed);
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
        let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        match self.certificate_not_after.load(Ordering::Relaxed) {
            i64::MIN => reasons.push("no certificate is loaded".to_owned()),
            end if i64::try_from(now).is_ok_and(|now| now > end) => {
                reasons.push("the certificate has expired".to_owned());
            }
            _ => {}
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
        ready.set_certificate_not_after(1000);
        assert_eq!(ready.check(now), Err(vec!["no backend is up: a:143, b:143".to_owned()]));
        up.store(true, Ordering::Relaxed);
        assert_eq!(ready.check(now), Ok(()));
        let later = now + Duration::from_secs(1);
        assert_eq!(ready.check(later), Err(vec!["the certificate has expired".to_owned()]));
        ready.set_draining();
        assert!(ready.check(now).unwrap_err()[0].starts_with("draining"));
    }
}
