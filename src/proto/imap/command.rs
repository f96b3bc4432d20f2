//! Reads one whole command: tag, verb, arguments.
//!
//! In: the bytes that [`super::line`] found to be one command. Out: a [`Command`], and from its
//! arguments the strings that they mean. The grammar is RFC 9051 §9, read strictly where two
//! readers would take it differently, since that is how a command is smuggled: no CR, LF or NUL
//! outside a literal (NUL nowhere), no tab and no 8-bit byte in an atom, only `\"` and `\\` escaped
//! in a quoted string. It is read leniently where servers are lenient and all mean the same:
//! several blanks are one, blanks may stand at the end, and an unquoted user or password may hold
//! `%`, `*` and `\`, as people type it by hand.

use super::line::{self, Head};
use super::secret::Secret;

/// The commands that a client may use before login; the rest is `Other`. A label of metrics.
#[derive(Clone, Copy, Debug, Eq, PartialEq, strum::IntoStaticStr, strum::VariantArray)]
#[strum(serialize_all = "lowercase")]
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
    name: &'a [u8],
    /// What follows the verb, without the last LF; it may begin and end with blanks. A CR at the
    /// end may be a literal's last byte, before a bare LF: only who reads the strings can tell.
    pub arguments: &'a [u8],
}

/// How a client wrote a string: as a literal, or on the line.
///
/// Old servers do not read `\"` and `\\` in quotes. So a literal goes on as one, and so does an
/// unquoted backslash, which would have to be escaped.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Form {
    Line,
    Literal,
}

/// Why the bytes are no command, or its arguments not those of the verb.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    /// The answer can't carry the tag: it may be anything.
    #[error("a tag is visible ASCII without any of (){{%*\"\\+")]
    Tag,
    #[error("a line may hold neither NUL nor a CR without LF")]
    Control,
    #[error("arguments that do not fit the command")]
    Arguments,
}

impl<'a> Command<'a> {
    /// `bytes`: one command as framed, its last line end included.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        let with_cr = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        let line = with_cr.strip_suffix(b"\r").unwrap_or(with_cr);
        let Head { tag, verb, arguments } = line::head(line);
        if tag.is_empty() || !tag.iter().all(|&byte| is_tag_byte(byte)) {
            return Err(Error::Tag);
        }
        let arguments = arguments.map_or(&b""[..], |behind| &with_cr[line.len() - behind.len()..]);
        Ok(Self { tag, verb: Verb::of(verb), name: verb, arguments })
    }

    /// The command's name, if clients are known to say it. Any other word may be a piece of a
    /// password that was sent in the wrong place, and is never logged.
    pub fn known(&self) -> Option<&'static str> {
        KNOWN.iter().copied().find(|known| known.as_bytes().eq_ignore_ascii_case(self.name))
    }

    /// For verbs that take none.
    pub fn no_arguments(&self) -> Result<(), Error> {
        Reader(self.arguments).end()
    }

    /// LOGIN's user and password (RFC 9051 §6.2.3), and how each was written.
    pub fn login(&self) -> Result<(Vec<u8>, Secret, [Form; 2]), Error> {
        let mut reader = Reader(self.arguments);
        reader.pad();
        let (user, user_form) = reader.astring()?;
        reader.blanks()?;
        let (password, password_form) = reader.astring()?;
        let password = Secret::new(password);
        reader.end()?;
        Ok((user, password, [user_form, password_form]))
    }

    /// AUTHENTICATE's mechanism, in upper case, and the initial response as written (RFC 4959).
    pub fn authenticate(&self) -> Result<(String, Option<&'a [u8]>), Error> {
        let arguments = self.arguments.strip_suffix(b"\r").unwrap_or(self.arguments);
        let (name, initial) = line::split_blank(&arguments[line::blanks(arguments)..]);
        if !is_mechanism(name) {
            return Err(Error::Arguments);
        }
        let initial = initial.map(trim_blanks).filter(|text| !text.is_empty());
        Ok((String::from_utf8_lossy(name).to_ascii_uppercase(), initial))
    }
}

/// Names of commands before login, and of those that clients say before login and should not.
const KNOWN: [&str; 42] = [
    "APPEND",
    "AUTHENTICATE",
    "BACKENDAUTHENTICATE",
    "CAPABILITY",
    "CHECK",
    "CLIENTID",
    "CLOSE",
    "COMPRESS",
    "COPY",
    "CREATE",
    "DELETE",
    "ENABLE",
    "EXAMINE",
    "EXPUNGE",
    "FETCH",
    "GETQUOTA",
    "GETQUOTAROOT",
    "ID",
    "IDLE",
    "LANGUAGE",
    "LIST",
    "LOGIN",
    "LOGOUT",
    "LSUB",
    "NAMESPACE",
    "NOOP",
    "PROXYAUTH",
    "RENAME",
    "SEARCH",
    "SELECT",
    "SORT",
    "STARTTLS",
    "STATUS",
    "STORE",
    "SUBSCRIBE",
    "UID",
    "UNAUTHENTICATE",
    "UNSELECT",
    "UNSUBSCRIBE",
    "XAPPLEPUSHSERVICE",
    "XCLIENTID",
    "XLIST",
];

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

/// RFC 9051 §9, `tag`: any `ASTRING-CHAR` but `+`. None of them ends a line, announces a literal or
/// begins an untagged response, so that a tag echoed back can never be taken for something else.
pub(super) fn is_tag_byte(byte: u8) -> bool {
    byte.is_ascii_graphic() && !br#"(){%*"\+"#.contains(&byte)
}

/// A name of RFC 4422 §3.1, or a longer one: ECDSA-NIST256P-CHALLENGE is in use.
pub(super) fn is_mechanism(name: &[u8]) -> bool {
    let legal = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (1..=MAX_MECHANISM).contains(&name.len()) && name.iter().all(legal)
}

const MAX_MECHANISM: usize = 64;

fn trim_blanks(text: &[u8]) -> &[u8] {
    let text = &text[line::blanks(text)..];
    let end = text.iter().rposition(|&byte| byte != b' ').map_or(0, |at| at + 1);
    &text[..end]
}

/// Reads arguments from the front, literals included.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl Reader<'_> {
    pub(super) fn byte(&mut self, want: u8) -> Result<(), Error> {
        self.0 = self.0.strip_prefix(&[want]).ok_or(Error::Arguments)?;
        Ok(())
    }

    /// At least one blank.
    pub(super) fn blanks(&mut self) -> Result<(), Error> {
        self.byte(b' ')?;
        self.pad();
        Ok(())
    }

    /// Blanks, if there are any.
    pub(super) fn pad(&mut self) {
        self.0 = &self.0[line::blanks(self.0)..];
    }

    /// Nothing follows but blanks and the CR of the line's end.
    pub(super) fn end(&mut self) -> Result<(), Error> {
        self.pad();
        if matches!(self.0, b"" | b"\r") { Ok(()) } else { Err(Error::Arguments) }
    }

    pub(super) fn peek(&self) -> Option<u8> {
        self.0.first().copied()
    }

    /// An atom, a quoted string or a literal: the octets that it means.
    fn astring(&mut self) -> Result<(Vec<u8>, Form), Error> {
        Ok(match self.peek() {
            Some(b'{') => (self.literal()?, Form::Literal),
            Some(b'"') => (self.quoted()?, Form::Line),
            _ => {
                let atom = self.atom()?;
                let form = if atom.contains(&b'\\') { Form::Literal } else { Form::Line };
                (atom.to_vec(), form)
            }
        })
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

    /// What stands unquoted. `%`, `*` and `\` belong to no atom of RFC 9051, but Dovecot, Cyrus and
    /// others take them in a user or password, each for itself.
    fn atom(&mut self) -> Result<&[u8], Error> {
        let special = |&byte: &u8| !byte.is_ascii_graphic() || b"(){\"".contains(&byte);
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
        let (raw, escapes) = self.until_quote()?;
        // As large as the text from the start: a buffer that grows leaves copies of a password behind, and what is too
        // large is kept as long as the text.
        let mut text = Vec::with_capacity(raw.len() - escapes);
        let mut bytes = raw.iter();
        while let Some(&byte) = bytes.next() {
            text.push(if byte == b'\\' { *bytes.next().ok_or(Error::Arguments)? } else { byte });
        }
        Ok(text)
    }

    /// What stands before the closing quote, as it is written, and how many of its bytes only escape the next.
    fn until_quote(&mut self) -> Result<(&[u8], usize), Error> {
        let (mut at, mut escapes) = (0, 0);
        loop {
            match self.0.get(at).ok_or(Error::Arguments)? {
                b'"' => break,
                b'\\' if matches!(self.0.get(at + 1), Some(b'"' | b'\\')) => {
                    escapes += 1;
                    at += 2;
                }
                b'\\' => return Err(Error::Arguments),
                // That of the line's end: the quote is missing.
                b'\r' if at + 1 == self.0.len() => return Err(Error::Arguments),
                b'\r' | b'\n' | 0 => return Err(Error::Control),
                _ => at += 1,
            }
        }
        let raw = &self.0[..at];
        self.0 = &self.0[at + 1..];
        Ok((raw, escapes))
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
        let (user, password, _) = Command::parse(line)?.login()?;
        Ok((user, password.expose().to_vec()))
    }

    #[test]
    fn login_arguments_mean_the_same_in_every_form() {
        let want = Ok((b"te\\st".to_vec(), b"s \"x".to_vec()));
        assert_eq!(login(b"a LOGIN \"te\\\\st\" \"s \\\"x\"\r\n"), want);
        assert_eq!(login(b"a login {5}\r\nte\\st {4+}\r\ns \"x\r\n"), want);
        assert_eq!(login(b"a LOGIN u p]\n"), Ok((b"u".to_vec(), b"p]".to_vec())));
        assert_eq!(login(b"a LOGIN {2+}\r\n\r\n \"\"\r\n"), Ok((b"\r\n".to_vec(), Vec::new())));
        assert_eq!(login(b"a  LOGIN  u {2+}\r\np  \r\n"), Ok((b"u".to_vec(), b"p ".to_vec())));
        assert_eq!(login(b"a LOGIN d\\u p%*\r\n"), Ok((b"d\\u".to_vec(), b"p%*".to_vec())));
        assert_eq!(login(b"a LOGIN u {2+}\np\r\n"), Ok((b"u".to_vec(), b"p\r".to_vec())));
        assert_eq!(login(b"a LOGIN u {2+}\np\r\r\n"), Ok((b"u".to_vec(), b"p\r".to_vec())));
    }

    #[test]
    fn the_form_of_a_string_is_known() {
        use Form::{Line, Literal};
        for (line, forms) in [
            (&b"a LOGIN u p\r\n"[..], [Line, Line]),
            (b"a LOGIN \"u\\\\\" p%\r\n", [Line, Line]),
            (b"a LOGIN {1+}\r\nu \"p\"\r\n", [Literal, Line]),
            (b"a LOGIN d\\u {1}\r\np\r\n", [Literal, Literal]),
        ] {
            let login = Command::parse(line).and_then(|command| command.login());
            assert_eq!(login.map(|(_, _, forms)| forms), Ok(forms), "{}", line.escape_ascii());
        }
    }

    #[test]
    fn a_string_takes_no_more_memory_than_its_own_length() {
        for text in [
            &b"\"Thunderbird\""[..],
            b"\"\"",
            b"\"a \\\" b \\\\\"",
            b"{11}\r\nThunderbird",
            b"atom",
        ] {
            let line = [text, b" \"", &[b'v'; 8000], b"\""].concat();
            let (read, _) = Reader(&line).astring().expect("a string");
            assert_eq!(read.capacity(), read.len(), "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn what_two_readers_take_differently_is_refused() {
        for line in [
            &b"a LOGIN u p\r\r\n"[..],
            b"a LOGIN u p \r\r\n",
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
            b"a LOGIN u\" p\r\n",
            b"a LOGIN u( p\r\n",
            b"a LOGIN u) p\r\n",
            b"a LOGIN u{ p\r\n",
            b"a LOGIN u {1+} \r\nx\r\n",
        ] {
            assert!(login(line).is_err(), "{:?}", String::from_utf8_lossy(line));
        }
    }

    #[test]
    fn a_tag_is_something_that_can_be_echoed() {
        for tag in 0..=u8::MAX {
            let line = [b"a", &[tag][..], b" NOOP\r\n"].concat();
            let legal = tag.is_ascii_graphic() && !b"(){%*\"\\+".contains(&tag);
            assert_eq!(
                Command::parse(&line).is_ok(),
                legal || tag == b' ',
                "{}",
                tag.escape_ascii()
            );
        }
        assert_eq!(Command::parse(b" NOOP\r\n"), Err(Error::Tag));
        assert_eq!(Command::parse(b"A-1._x nOOp\r\n").map(|c| c.verb), Ok(Verb::Noop));
    }

    #[test]
    fn authenticate_takes_a_mechanism_and_an_initial_response() {
        let parse = |line: &'static [u8]| Command::parse(line).and_then(|c| c.authenticate());
        assert_eq!(parse(b"a AUTHENTICATE plain\r\n"), Ok(("PLAIN".into(), None)));
        assert_eq!(parse(b"a AUTHENTICATE PLAIN =\r\n"), Ok(("PLAIN".into(), Some(&b"="[..]))));
        assert_eq!(parse(b"a AUTHENTICATE  PLAIN  = \r\n"), Ok(("PLAIN".into(), Some(&b"="[..]))));
        assert_eq!(parse(b"a AUTHENTICATE CRAM-MD5 \r\n"), Ok(("CRAM-MD5".into(), None)));
        assert_eq!(parse(b"a AUTHENTICATE \"PLAIN\"\r\n"), Err(Error::Arguments));
        assert_eq!(parse(b"a AUTHENTICATE\r\n"), Err(Error::Arguments));
    }
}
