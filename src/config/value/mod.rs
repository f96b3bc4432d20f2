//! The kinds of values that stand behind a key, by what they are.
//!
//! In: the text of one scalar, quoted or not, variables expanded. Out: a value that is possible by
//! itself, or a phrase that says what would be right. Every type carries the bounds that it
//! guarantees and describes itself to the JSON Schema, where a text with a `${…}` passes too.
//! Not here: what values must be together (`rules`), and what the named files hold (`tls::check`).

pub mod word;

pub mod amount;

pub mod address;

pub mod path;

pub mod name;
