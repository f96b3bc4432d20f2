//! Protocols as values: bytes and `now` in, actions out.
//!
//! **Invariant:** nothing below this module reads a clock, opens a socket or knows tokio, so that a
//! test is a table, a fuzz target is three lines and a failure replays.
#![deny(clippy::disallowed_methods)]

pub mod proxy_header;

pub mod client_hello;

pub mod record;

pub mod imap;
