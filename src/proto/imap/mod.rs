//! IMAP4rev1 and IMAP4rev2, as far as a proxy has to understand them.

pub mod capability;

pub mod follow;
