//! What a server's NO, BAD or BYE to a login means, and what of it the client is told.
//!
//! In: the status and its text. Out: a [`Refusal`]; of an untagged response the [`alert`] in it, which the
//! person must see (RFC 9051 §7.1).
//!
//! A code decides what is meant, if it is one that does (RFC 5530 §3). Else the words do, by one table
//! ([`words`]). Bans are made of what is meant: an outage must not look like a wrong password, and a guess
//! must not be free of charge. So what no word explains counts as refused.
//!
//! Codes pass with their arguments, and texts as they are. Two things stay behind. A referral would send the
//! client elsewhere in clear (RFC 2221). Whether the user or the password was wrong helps a guesser (RFC 9051
//! §11.7): a text or a code that tells becomes [`NEUTRAL`].
//! Limits: [`MAX_TEXT`] bytes of a text; control characters are left out.
//! Not here: in which state the server says it ([`super::login`]), what follows for its health (`backend`).

mod words;

use super::response::{self, Kind};

/// Bytes of a text that pass. Clients expect lines of 1,000 (RFC 2683 §3.2.1.5).
pub const MAX_TEXT: usize = 1000;
/// What a client is told of credentials that were refused.
pub const NEUTRAL: &str = "[AUTHENTICATIONFAILED] Authentication failed.";
/// What it is told when the server ended the connection instead.
pub const BROKE_OFF: &str = "[UNAVAILABLE] The mail server broke off the login, try again later.";
/// What it is told of a command that was refused without words.
const REFUSED: &str = "The server refused the command.";

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Meaning {
    /// The credentials are wrong.
    Wrong,
    /// The server can't decide on any login.
    Outage,
    /// It can't decide on this login now: it has too many sessions of the user, or is busy.
    NotNow,
    /// It takes no password on a connection that it takes for unencrypted.
    Unencrypted,
    /// It does not have the mechanism.
    NoMechanism,
    /// Neither the code nor the words say.
    Unclear,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refusal {
    pub meaning: Meaning,
    /// What the client is told behind the status, the code included.
    pub text: Vec<u8>,
}

impl Refusal {
    /// `kind` is NO, BAD or BYE. `names`: how the client called the user. A server may repeat a name, and
    /// what it repeats are not its own words.
    pub fn of(kind: Kind, text: &[u8], names: &[&[u8]]) -> Self {
        let text = shown(without_referral(text));
        let (code, words) = match response::code(&text) {
            Some((code, words)) => (Some(code), words),
            None => (None, &text[..]),
        };
        let known = code.and_then(|code| CODES.iter().find(|(name, _)| is_named(code, name)));
        let telling = code.is_some_and(|code| TELLING.iter().any(|name| is_named(code, name)));
        let meaning = match known {
            Some((_, meaning)) if *meaning != Meaning::Unclear => *meaning,
            _ if telling => Meaning::Wrong,
            _ => match (kind, words::meaning(words, names)) {
                // It did not only say so, it went.
                (Kind::Bye, Meaning::Unclear | Meaning::NotNow) => Meaning::Outage,
                (_, meaning) => meaning,
            },
        };
        let tells = telling || words::tells(words);
        let told = match (kind, code) {
            (Kind::Bad, _) if tells || text.is_empty() => REFUSED.into(),
            (Kind::Bad, _) => text,
            (_, None) if words::is_hint(words) => [b"[AUTHENTICATIONFAILED] ", words].concat(),
            (_, None) if meaning == Meaning::Wrong => NEUTRAL.into(),
            (Kind::No, None) if text.is_empty() => NEUTRAL.into(),
            // The client's session goes on, so BYE becomes a NO that says what it did.
            (Kind::Bye, None) if text.is_empty() => BROKE_OFF.into(),
            (Kind::Bye, None) => [b"[UNAVAILABLE] ", words].concat(),
            (Kind::Bye, Some(code)) if is_alert(code) => BROKE_OFF.into(),
            (_, Some(code)) if tells && known.is_some() => {
                [b"[", code, b"] Authentication failed."].concat()
            }
            (_, Some(_)) if tells => NEUTRAL.into(),
            _ => text,
        };
        Self { meaning, text: told }
    }
}

/// The untagged response that shows a person the alert in this one, if there is one. Others than IMAP's
/// have names of their own, such as Gmail's `[WEBALERT https://…]`.
pub fn alert(kind: Kind, text: &[u8]) -> Option<Vec<u8>> {
    let text = shown(text);
    let (code, words) = response::code(&text)?;
    if !is_alert(code) || words.is_empty() || words::tells(words) {
        return None;
    }
    let status: &[u8] = match kind {
        Kind::Ok | Kind::PreAuth => b"* OK ",
        // The client's session goes on.
        Kind::No | Kind::Bye => b"* NO ",
        Kind::Bad => b"* BAD ",
    };
    Some([status, &text, b"\r\n"].concat())
}

/// A referral would send the client, its password and all, somewhere else in clear (RFC 2221).
pub fn without_referral(mut text: &[u8]) -> &[u8] {
    while let Some((code, rest)) = response::code(text)
        && is_named(code, "REFERRAL")
    {
        text = rest.trim_ascii_start();
    }
    text
}

/// Codes that say what is meant (RFC 5530 §3), and those of other protocols and servers that IMAP servers
/// use: RFC 2449 §8.1.1 and RFC 3206 (POP3), Yahoo's TEMPFAIL, Dovecot's and Gmail's THROTTLED. With one of
/// the last four the words may still say more, such as Stalwart's CONTACTADMIN for a store that is down.
const CODES: [(&str, Meaning); 16] = [
    ("AUTHENTICATIONFAILED", Meaning::Wrong),
    ("AUTH", Meaning::Wrong),
    ("UNAVAILABLE", Meaning::Outage),
    ("SERVERBUG", Meaning::Outage),
    ("TEMPFAIL", Meaning::Outage),
    ("SYS/TEMP", Meaning::Outage),
    ("SYS/PERM", Meaning::Outage),
    ("LIMIT", Meaning::NotNow),
    ("INUSE", Meaning::NotNow),
    ("IN-USE", Meaning::NotNow),
    ("LOGIN-DELAY", Meaning::NotNow),
    ("THROTTLED", Meaning::NotNow),
    ("PRIVACYREQUIRED", Meaning::Unencrypted),
    ("EXPIRED", Meaning::Unclear),
    ("CONTACTADMIN", Meaning::Unclear),
    ("AUTHORIZATIONFAILED", Meaning::Unclear),
];

/// Codes that tell which of the two is wrong.
const TELLING: [&str; 7] =
    ["NONEXISTENT", "NOSUCHUSER", "NOUSER", "UNKNOWNUSER", "USERUNKNOWN", "BADUSER", "BADPASSWORD"];

fn is_alert(code: &[u8]) -> bool {
    name_of(code).to_ascii_uppercase().windows(5).any(|word| word == b"ALERT")
}

fn is_named(code: &[u8], name: &str) -> bool {
    name_of(code).eq_ignore_ascii_case(name.as_bytes())
}

/// A code without its arguments.
fn name_of(code: &[u8]) -> &[u8] {
    code.trim_ascii_start().split(u8::is_ascii_whitespace).next().unwrap_or_default()
}

/// `text` as it may stand in a line for a client.
fn shown(text: &[u8]) -> Vec<u8> {
    let printable = text.iter().copied().filter(|byte| !byte.is_ascii_control());
    let mut shown: Vec<u8> = printable.take(MAX_TEXT + 1).collect();
    if shown.len() > MAX_TEXT {
        // Not within a character of UTF-8, as far as it is UTF-8.
        let begins = |byte: &u8| !(0x80..0xc0).contains(byte);
        let end = shown.iter().rposition(begins).filter(|end| end + 4 > MAX_TEXT);
        shown.truncate(end.unwrap_or(MAX_TEXT));
    }
    shown
}

#[cfg(test)]
mod tests;
