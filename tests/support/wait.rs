//! Waiting for states, never for time.

use std::thread;
use std::time::{Duration, Instant};

/// How long anything that should happen at once may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Returns when `condition` holds; panics, naming `what`, when it does not within [`PATIENCE`].
#[track_caller]
pub fn wait_until(what: &str, condition: impl FnMut() -> bool) {
    within(PATIENCE, what, condition);
}

/// [`wait_until`] with a limit of its own, for states that a long deadline leads to.
#[track_caller]
pub fn within(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}
