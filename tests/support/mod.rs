//! The black-box harness: starts real programs and fake ones, talks to them, waits for states.
//!
//! In a test: [`Dovecot`] (the real one, from a temporary folder), [`Legacy`] (Cyrus, Courier) or [`FakeBackend`] (misbehaves on
//! demand and records what arrives), a [`Proxy`] in front of it (the binary under test, with its own
//! configuration, ports, log and metrics) and [`Client`]s (TLS, line by line). Everything blocks,
//! everything has a deadline, nothing sleeps to synchronise: [`wait_until`] looks for a state.
//! Whatever was started is stopped by its own process id when its value is dropped.
//!
//! Every test has its own backend and its own proxy: after one refused login Dovecot makes that
//! address wait for seconds, and counters start at nought.
//!
//! `IMAPS_PROXY_BINARY` names another build of the proxy to test, a release build for one.
//!
//! Not here: what is right. That stands in the tests.
#![allow(dead_code, reason = "each test binary uses its own part of the harness")]
#![allow(unused_imports, reason = "as above")]

mod authority;
mod certificates;
mod client;
mod dns;
mod dovecot;
mod fake_backend;
mod legacy;
mod pebble;
mod process;
mod programs;
mod proxy;
mod wait;

pub use authority::{Authority, Issued, KeyKind, days, replace};
pub use certificates::Certificates;
pub use client::{Client, End, TlsOptions};
pub use dns::{Dns, Record};
pub use dovecot::Dovecot;
pub use fake_backend::{Command, FakeBackend, Session, Switch};
pub use legacy::Legacy;
pub use pebble::{HMAC_KEY, Pebble, connects};
pub use process::Process;
pub use programs::{Finished, program, run, with_etc, without_ipv6};
pub use proxy::{Backend, LogLine, Proxy, Starting, USER, Unreachable, binary, demo, free_port};
pub use wait::{PATIENCE, wait_until, within};
