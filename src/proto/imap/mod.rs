//! IMAP4rev1 (RFC 3501) and IMAP4rev2 (RFC 9051), as far as a proxy has to understand them.
//!
//! Before login the proxy leads the dialogue: [`mod@line`] frames what the client says, [`command`] reads it,
//! [`dialogue`] answers it, and a whole LOGIN or AUTHENTICATE goes to the backend by [`login`], which judges by [`refusal`], behind [`upgrade`] where the
//! server wants STARTTLS. After login
//! bytes pass as they are and [`follow`] looks on. [`capability`] is used wherever a list of them stands.

mod marker;

pub mod line;

pub mod command;

pub mod response;

pub mod capability;

pub mod id;

pub mod introduction;

pub mod sasl;

pub mod dialogue;

pub mod refusal;

pub mod login;

pub mod upgrade;

pub mod follow;

pub mod secret;
