//! Protocols as values: bytes and `now` in, actions out.

pub mod imap;
