//! STARTTLS towards the backend (RFC 9051 §6.2.1).
//!
//! In: the greeting and what follows. Out: our two commands, then [`Step::Begin`] when TLS may begin. CAPABILITY is asked
//! only if the greeting does not say. There is no way on without TLS, and nothing that was said before survives it: a
//! list is used for this decision alone.
//! **Invariant:** at [`Step::Begin`] nothing is left unread. Whatever came with the OK was put there by somebody else, to
//! be taken for what the server says inside TLS (CVE-2021-38371 and its kin): an error, not something to skip.
//! Limits: [`MAX_SAID`] bytes. Deadlines are the driver's.

use super::capability;
use super::response::{self, Kind, Response};
use crate::log::printable;

/// Bytes of one response.
pub const MAX_SAID: usize = 16 * 1024;
const ASK: &[u8] = b"T1";
const UPGRADE: &[u8] = b"T2";

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Step {
    /// Flush, then give [`Upgrade::on_backend`] more.
    More,
    /// The server waits for a ClientHello.
    Begin,
}

/// Why TLS does not begin. No password has been sent.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    #[error(
        "it does not offer STARTTLS; have it configured there, or set backend.tls to implicit (its TLS port, often 993) or none"
    )]
    NotOffered,
    #[error("it refuses STARTTLS: {0:?}")]
    Refused(String),
    #[error("it answers STARTTLS with something else: {0:?}")]
    Unexpected(String),
    #[error(
        "plaintext came together with its OK to STARTTLS, as if it had been said inside TLS; somebody may be tampering with the connection"
    )]
    Injected,
}

/// An upgrade under way.
#[derive(Debug)]
pub struct Upgrade {
    /// STARTTLS was said.
    asked: bool,
    offered: bool,
}

impl Upgrade {
    /// Behind a greeting with this text, its code included.
    ///
    /// # Errors
    /// [`Error::NotOffered`].
    pub fn start(greeting: &[u8], out: &mut Vec<u8>) -> Result<Self, Error> {
        let line = [b"* OK ", greeting].concat();
        let mut upgrade = Self { asked: false, offered: false };
        match capability::list_of(&line) {
            Some(list) => {
                upgrade.offered = capability::has(list, b"STARTTLS");
                upgrade.ask(out)?;
            }
            None => out.extend_from_slice(b"T1 CAPABILITY\r\n"),
        }
        Ok(upgrade)
    }

    /// Takes the server's responses off the front of `input` as far as they go.
    ///
    /// # Errors
    /// It goes no further.
    pub fn on_backend(&mut self, input: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<Step, Error> {
        let mut taken = 0;
        loop {
            let rest = &input[taken..];
            let whole = response::next(rest, MAX_SAID);
            let Some(response::Whole { response, line, length }) =
                whole.map_err(|_| Error::Unexpected(shown(rest)))?
            else {
                input.drain(..taken);
                return Ok(Step::More);
            };
            taken += length;
            let last = taken == input.len();
            match response {
                Response::Tagged { tag: UPGRADE, kind: Kind::Ok, .. } if self.asked => {
                    return if last { Ok(Step::Begin) } else { Err(Error::Injected) };
                }
                Response::Tagged { tag: UPGRADE, text, .. } if self.asked => {
                    return Err(Error::Refused(shown(text)));
                }
                Response::Tagged { tag: ASK, kind: Kind::Ok, .. } if !self.asked => {
                    self.learn(line);
                    self.ask(out)?;
                }
                Response::Status { kind: Kind::Bye, text } => {
                    return Err(Error::Refused(shown(text)));
                }
                // Dovecot that waits for its authentication process greets twice.
                Response::Untagged | Response::Status { kind: Kind::Ok, .. } if !self.asked => {
                    self.learn(line);
                }
                _ => return Err(Error::Unexpected(shown(line))),
            }
        }
    }

    fn learn(&mut self, line: &[u8]) {
        if let Some(list) = capability::list_of(line) {
            self.offered = capability::has(list, b"STARTTLS");
        }
    }

    fn ask(&mut self, out: &mut Vec<u8>) -> Result<(), Error> {
        if !self.offered {
            return Err(Error::NotOffered);
        }
        self.asked = true;
        out.extend_from_slice(b"T2 STARTTLS\r\n");
        Ok(())
    }
}

fn shown(text: &[u8]) -> String {
    printable(&text[..text.len().min(80)])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays `said` to an upgrade behind `greeting`, in pieces of `step` bytes; what we said with it.
    fn play(greeting: &str, said: &[u8], step: usize) -> (Result<Step, Error>, String) {
        let (mut input, mut out) = (Vec::new(), Vec::new());
        let result = (|| {
            let mut upgrade = Upgrade::start(greeting.as_bytes(), &mut out)?;
            let mut last = Step::More;
            for piece in said.chunks(step) {
                assert_eq!(last, Step::More, "bytes behind the beginning of TLS");
                input.extend_from_slice(piece);
                last = upgrade.on_backend(&mut input, &mut out)?;
            }
            Ok(last)
        })();
        (result, String::from_utf8(out).unwrap())
    }

    #[test]
    fn tls_begins_where_it_is_offered_and_agreed_on() {
        let offer = "[CAPABILITY IMAP4rev1 starttls] hi";
        for step in [1, 2, 7, 1000] {
            let agreed = (Ok(Step::Begin), "T2 STARTTLS\r\n".to_owned());
            assert_eq!(play(offer, b"T2 OK go\r\n", step), agreed);
            let said = b"* OK [CAPABILITY IMAP4rev1] second greeting\r\n* CAPABILITY IMAP4rev1 STARTTLS\r\nT1 OK\r\n";
            let both = "T1 CAPABILITY\r\nT2 STARTTLS\r\n".to_owned();
            assert_eq!(play("hi", said, step), (Ok(Step::More), both.clone()));
            let said = [&said[..], b"T2 ok \r\n"].concat();
            assert_eq!(play("hi", &said, step), (Ok(Step::Begin), both));
        }
        let said = b"\r\n* CAPABILITY STARTTLS\r\n \r\n T1 OK\r\n\r\n T2 OK go\r\n";
        let both = "T1 CAPABILITY\r\nT2 STARTTLS\r\n".to_owned();
        assert_eq!(play("hi", said, 1000), (Ok(Step::Begin), both), "blanks are read over");
        let (result, _) = play("hi", b"T1 OK [CAPABILITY IMAP4rev1 STARTTLS] done\r\n", 1000);
        assert_eq!(result, Ok(Step::More));
    }

    #[test]
    fn without_an_offer_nothing_is_said() {
        let (result, said) = play("[CAPABILITY IMAP4rev1 STARTTLSX] hi", b"", 1);
        assert_eq!((result, said.as_str()), (Err(Error::NotOffered), ""));
        let (result, said) = play("hi", b"* CAPABILITY IMAP4rev1\r\nT1 OK done\r\n", 1000);
        assert_eq!((result, said.as_str()), (Err(Error::NotOffered), "T1 CAPABILITY\r\n"));
    }

    /// What TLS begins with would be read from them on.
    #[test]
    fn an_empty_line_behind_the_ok_is_plaintext_inside_tls_and_not_read_over() {
        let offer = "[CAPABILITY STARTTLS] hi";
        for said in [&b"T2 OK go\r\n\r\n"[..], b"T2 OK go\r\n "] {
            assert_eq!(play(offer, said, 1000).0, Err(Error::Injected));
        }
    }

    #[test]
    fn whatever_else_comes_ends_it() {
        let offer = "[CAPABILITY STARTTLS] hi";
        let refused = |text: &str| Error::Refused(text.to_owned());
        let unexpected = |text: &str| Error::Unexpected(text.to_owned());
        for (said, error) in [
            (&b"T2 OK go\r\n* CAPABILITY IMAP4rev1 AUTH=PLAIN\r\n"[..], Error::Injected),
            (b"T2 OK go\r\n\0", Error::Injected),
            (b"T2 NO not now\r\n", refused("not now")),
            (b"T2 BAD what?\r\n", refused("what?")),
            (b"* BYE too many\r\n", refused("too many")),
            (b"* PREAUTH hi\r\nT2 OK go\r\n", unexpected("* PREAUTH hi")),
            (b"* CAPABILITY IMAP4rev1\r\nT2 OK go\r\n", unexpected("* CAPABILITY IMAP4rev1")),
            (b"T1 OK\r\n", unexpected("T1 OK")),
            (b"T3 OK go\r\n", unexpected("T3 OK go")),
            (b"+ go\r\n", unexpected("+ go")),
            (b"HTTP/1.1 400\r\n", unexpected("HTTP/1.1 400")),
        ] {
            assert_eq!(play(offer, said, 1000).0, Err(error), "{}", printable(said));
        }
        assert_eq!(play("hi", b"T2 OK go\r\n", 1000).0, Err(unexpected("T2 OK go")));
        assert_eq!(play("hi", b"T1 NO\r\n", 1000).0, Err(unexpected("T1 NO")));
        let long = [b'x'; MAX_SAID + 1];
        assert!(matches!(play(offer, &long, 100_000).0, Err(Error::Unexpected(_))));
    }
}
