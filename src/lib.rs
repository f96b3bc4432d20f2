//! A TLS-terminating IMAP proxy: IMAPS in, plaintext IMAP out.
//!
//! Read the modules in this order; a connection's own path starts at the top of [`conn`].
#![forbid(unsafe_code)]

pub mod cli;

pub mod config;

pub mod server;

pub mod conn;

pub mod proto;

pub mod crypto;

pub mod backend;

pub mod tls;

pub mod dns;

pub mod metrics;

pub mod admin;

pub mod log;

pub mod doctor;

pub mod text;

pub mod version;
