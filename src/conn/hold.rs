//! A client's wait for a server to come up, `backend.hold` at most and never beyond its login's deadline.
//!
//! It begins when a server is first found missing and is one wait, whatever comes up and goes down again meanwhile.
//! **Invariant:** whoever waits is counted, and counted out once, whatever ends it.
//! Not here: what is waited for, and what ends the wait early ([`super::dialogue`], [`super::starttls`]).

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Context;
use crate::backend::Backends;
use crate::metrics::HoldResult;

pub struct Hold<'a> {
    ctx: &'a Context,
    limit: Duration,
    deadline: Instant,
    until: Option<Instant>,
    result: HoldResult,
}

impl<'a> Hold<'a> {
    /// For a client whose login must be done by `deadline`.
    pub fn new(deadline: Instant, ctx: &'a Context) -> Self {
        let limit = ctx.backends.hold;
        Self { ctx, limit, deadline, until: None, result: HoldResult::Ended }
    }

    /// There is no server: until when to wait for one, if at all.
    pub fn begin(&mut self) -> Option<Instant> {
        if self.limit.is_zero() {
            return None;
        }
        Some(*self.until.get_or_insert_with(|| {
            self.ctx.metrics.hold_waiting.inc();
            self.deadline.min(Instant::now() + self.limit)
        }))
    }

    /// Whose servers count: those that the session began with, and for who waits those that are wanted now.
    pub fn backends(&self) -> Arc<Backends> {
        match self.until {
            None => Arc::clone(&self.ctx.backends),
            Some(_) => self.ctx.backends.in_force(),
        }
    }

    pub fn has_begun(&self) -> bool {
        self.until.is_some()
    }

    /// The wait, if there was one, has come to this.
    pub fn over(&mut self, result: HoldResult) {
        self.result = result;
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        if self.until.is_some() {
            self.ctx.metrics.hold_waiting.dec();
            self.ctx.metrics.held(self.result);
        }
    }
}
