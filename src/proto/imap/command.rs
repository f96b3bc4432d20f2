//! Reads one whole command: tag, verb, arguments.
//!
//! In: the bytes that [`super::line`] found to be one command. Out: a [`Command`], and from its arguments
//! the strings that they mean. The grammar is RFC 9051 §9, read strictly, since what two readers take
//! differently is how a command is smuggled: one space between words, no CR, LF or NUL outside a literal
//! (NUL nowhere), no 8-bit byte in an atom, only `\"` and `\\` escaped in a quoted string.

use super::secret::Secret;

/// The commands that a client may use before login; the rest is `Other`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verb {
    Capability,
    Noop,
    Id,
    Logout,
    StartTls,
    Login,
    Authenticate,
    Other,
}

/// A command with a usable tag.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Command<'a> {
    pub tag: &'a [u8],
    pub verb: Verb,
    /// What follows the verb's space, without the last LF; `None` without that space. A CR at the end may be
    /// a literal's last byte, before a bare LF: only who reads the strings can tell.
    pub arguments: Option<&'a [u8]>,
}

/// Why the bytes are no command, or its arguments not those of the verb.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    /// The answer can't carry the tag: it may be anything.
    #[error("a tag is 1 to 64 letters, digits, dots, dashes or underscores")]
    Tag,
    #[error("a line may hold neither NUL nor a CR without LF")]
    Control,
    #[error("arguments that do not fit the command")]
    Arguments,
}

/// Longest tag that is answered; Dovecot takes 126, nginx 32.
pub const MAX_TAG: usize = 64;

impl<'a> Command<'a> {
    /// `bytes`: one command as framed, its last line end included.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        let with_cr = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        let line = with_cr.strip_suffix(b"\r").unwrap_or(with_cr);
        let (tag, rest) = split_space(line);
        if !is_tag(tag) {
            return Err(Error::Tag);
        }
        let (name, arguments) = split_space(rest.unwrap_or_default());
        let arguments = arguments.map(|_| &with_cr[tag.len() + 1 + name.len() + 1..]);
        Ok(Self { tag, verb: Verb::of(name), arguments })
    }

    /// For verbs that take none.
    pub fn no_arguments(&self) -> Result<(), Error> {
        if self.arguments.is_none() { Ok(()) } else { Err(Error::Arguments) }
    }

    /// LOGIN's user and password (RFC 9051 §6.2.3).
    pub fn login(&self) -> Result<(Vec<u8>, Secret), Error> {
        let mut reader = Reader(self.arguments.ok_or(Error::Arguments)?);
        let user = reader.astring()?;
        reader.byte(b' ')?;
        let password = Secret::new(reader.astring()?);
        reader.end()?;
        Ok((user, password))
    }

    /// AUTHENTICATE's mechanism, in upper case, and the initial response as written (RFC 4959).
    pub fn authenticate(&self) -> Result<(String, Option<&'a [u8]>), Error> {
        let arguments = self.arguments.ok_or(Error::Arguments)?;
        let (name, initial) = split_space(arguments.strip_suffix(b"\r").unwrap_or(arguments));
        let legal = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if name.is_empty() || name.len() > 20 || !name.iter().all(legal) {
            return Err(Error::Arguments); // RFC 4422 §3.1: 1 to 20 of these
        }
        Ok((String::from_utf8_lossy(name).to_ascii_uppercase(), initial))
    }
}

impl Verb {
    fn of(name: &[u8]) -> Self {
        match name.to_ascii_uppercase().as_slice() {
            b"CAPABILITY" => Self::Capability,
            b"NOOP" => Self::Noop,
            b"ID" => Self::Id,
            b"LOGOUT" => Self::Logout,
            b"STARTTLS" => Self::StartTls,
            b"LOGIN" => Self::Login,
            b"AUTHENTICATE" => Self::Authenticate,
            _ => Self::Other,
        }
    }
}

/// RFC 9051 lets a tag be nearly any text; we answer what every client uses, so that a tag echoed back
/// can never be taken for something else.
fn is_tag(tag: &[u8]) -> bool {
    let legal = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    (1..=MAX_TAG).contains(&tag.len()) && tag.iter().all(legal)
}

fn split_space(line: &[u8]) -> (&[u8], Option<&[u8]>) {
    match memchr::memchr(b' ', line) {
        Some(at) => (&line[..at], Some(&line[at + 1..])),
        None => (line, None),
    }
}

/// Reads arguments from the front, literals included.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl Reader<'_> {
    pub(super) fn byte(&mut self, want: u8) -> Result<(), Error> {
        self.0 = self.0.strip_prefix(&[want]).ok_or(Error::Arguments)?;
        Ok(())
    }

    /// Nothing follows but the CR of the line's end.
    pub(super) fn end(&self) -> Result<(), Error> {
        if matches!(self.0, b"" | b"\r") { Ok(()) } else { Err(Error::Arguments) }
    }

    pub(super) fn peek(&self) -> Option<u8> {
        self.0.first().copied()
    }

    /// An atom, a quoted string or a literal: the octets that it means.
    pub(super) fn astring(&mut self) -> Result<Vec<u8>, Error> {
        match self.peek() {
            Some(b'"' | b'{') => self.string(),
            _ => self.atom().map(<[u8]>::to_vec),
        }
    }

    /// A quoted string or a literal.
    pub(super) fn string(&mut self) -> Result<Vec<u8>, Error> {
        match self.peek() {
            Some(b'"') => self.quoted(),
            Some(b'{') => self.literal(),
            _ => Err(Error::Arguments),
        }
    }

    /// `NIL`, a quoted string or a literal.
    pub(super) fn nstring(&mut self) -> Result<Option<Vec<u8>>, Error> {
        if self.0.get(..3).is_some_and(|word| word.eq_ignore_ascii_case(b"NIL")) {
            self.0 = &self.0[3..];
            return Ok(None);
        }
        self.string().map(Some)
    }

    fn atom(&mut self) -> Result<&[u8], Error> {
        let special = |&byte: &u8| byte <= b' ' || byte >= 0x7f || b"(){%*\"\\".contains(&byte);
        let length = self.0.iter().position(special).unwrap_or(self.0.len());
        if length == 0 {
            return Err(Error::Arguments);
        }
        let (atom, rest) = self.0.split_at(length);
        self.0 = rest;
        Ok(atom)
    }

    fn quoted(&mut self) -> Result<Vec<u8>, Error> {
        self.byte(b'"')?;
        // Large enough from the start: a buffer that grows leaves copies of a password behind.
        let mut text = Vec::with_capacity(self.0.len());
        let mut bytes = self.0.iter().enumerate();
        while let Some((at, &byte)) = bytes.next() {
            match byte {
                b'"' => {
                    self.0 = &self.0[at + 1..];
                    return Ok(text);
                }
                b'\\' => match bytes.next() {
                    Some((_, &escaped @ (b'"' | b'\\'))) => text.push(escaped),
                    _ => return Err(Error::Arguments),
                },
                b'\r' | b'\n' | 0 => return Err(Error::Control),
                _ => text.push(byte),
            }
        }
        Err(Error::Arguments)
    }

    fn literal(&mut self) -> Result<Vec<u8>, Error> {
        self.byte(b'{')?;
        let close = memchr::memchr(b'}', self.0).ok_or(Error::Arguments)?;
        let (digits, rest) = self.0.split_at(close);
        let digits = digits.strip_suffix(b"+").unwrap_or(digits);
        let size: usize = std::str::from_utf8(digits)
            .ok()
            .filter(|n| n.bytes().all(|digit| digit.is_ascii_digit())) // `parse` would take a plus
            .and_then(|n| n.parse().ok())
            .ok_or(Error::Arguments)?;
        let rest = &rest[1..];
        let rest = rest.strip_prefix(b"\r\n").or_else(|| rest.strip_prefix(b"\n"));
        let (literal, rest) =
            rest.and_then(|rest| rest.split_at_checked(size)).ok_or(Error::Arguments)?;
        if literal.contains(&0) {
            return Err(Error::Control); // CHAR8 excludes NUL (RFC 9051 §9)
        }
        self.0 = rest;
        Ok(literal.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(line: &[u8]) -> Result<(Vec<u8>, Vec<u8>), Error> {
        let (user, password) = Command::parse(line)?.login()?;
        Ok((user, password.expose().to_vec()))
    }

    #[test]
    fn login_arguments_mean_the_same_in_every_form() {
        let want = Ok((b"te\\st".to_vec(), b"s \"x".to_vec()));
        assert_eq!(login(b"a LOGIN \"te\\\\st\" \"s \\\"x\"\r\n"), want);
        assert_eq!(login(b"a login {5}\r\nte\\st {4+}\r\ns \"x\r\n"), want);
        assert_eq!(login(b"a LOGIN u p]\n"), Ok((b"u".to_vec(), b"p]".to_vec())));
        assert_eq!(login(b"a LOGIN {2+}\r\n\r\n \"\"\r\n"), Ok((b"\r\n".to_vec(), Vec::new())));
        assert_eq!(login(b"a LOGIN u {2+}\np\r\n"), Ok((b"u".to_vec(), b"p\r".to_vec())));
        assert_eq!(login(b"a LOGIN u {2+}\np\r\r\n"), Ok((b"u".to_vec(), b"p\r".to_vec())));
    }

    #[test]
    fn what_two_readers_take_differently_is_refused() {
        for line in [
            &b"a  LOGIN u p\r\n"[..],
            b"a LOGIN  u p\r\n",
            b"a LOGIN u  p\r\n",
            b"a LOGIN u p \r\n",
            b"a LOGIN u p\r\r\n",
            b"a LOGIN u \"p\r\n",
            b"a LOGIN u {+1}\r\nx\r\n",
            b"a LOGIN u\r\n",
            b"a LOGIN\r\n",
            b"a LOGIN \"u\" \"p\r\n",
            b"a LOGIN \"u\"\"p\"\r\n",
            b"a LOGIN \"\\u\" p\r\n",
            b"a LOGIN u\tx p\r\n",
            b"a LOGIN \xfc p\r\n",
            b"a LOGIN u p\rb NOOP\r\n",
            b"a LOGIN u p\0\r\n",
            b"a LOGIN {1+}\r\n\0 p\r\n",
            b"a LOGIN u* p\r\n",
        ] {
            assert!(login(line).is_err(), "{:?}", String::from_utf8_lossy(line));
        }
    }

    #[test]
    fn a_tag_is_something_that_can_be_echoed() {
        let long = [b'x'; 65];
        for tag in [&b""[..], b"+", b"*", b"%s", b"a\"", b"\xff", b"a\x1b", &long] {
            assert_eq!(Command::parse(&[tag, b" NOOP\r\n"].concat()), Err(Error::Tag));
        }
        assert_eq!(Command::parse(b"A-1._x nOOp\r\n").map(|c| c.verb), Ok(Verb::Noop));
    }

    #[test]
    fn authenticate_takes_a_mechanism_and_an_initial_response() {
        let parse = |line: &'static [u8]| Command::parse(line).and_then(|c| c.authenticate());
        assert_eq!(parse(b"a AUTHENTICATE plain\r\n"), Ok(("PLAIN".into(), None)));
        assert_eq!(parse(b"a AUTHENTICATE PLAIN =\r\n"), Ok(("PLAIN".into(), Some(&b"="[..]))));
        assert_eq!(parse(b"a AUTHENTICATE \"PLAIN\"\r\n"), Err(Error::Arguments));
        assert_eq!(parse(b"a AUTHENTICATE\r\n"), Err(Error::Arguments));
    }
}
