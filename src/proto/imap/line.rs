//! Finds where a command ends, before login.
//!
//! In: bytes as they come off the wire, cut anywhere. Out: [`Scan::Whole`], the length of one command with
//! its literals and its last line end; or [`Scan::Continue`], a synchronising literal was announced and
//! wants its `+`. A line that ends in `{n}` or `{n+}` announces a literal of `n` bytes (RFC 9051 §4.3,
//! RFC 7888), whose bytes may hold CR, LF and anything else.
//!
//! A byte inside a literal must never be taken for a command, or we and somebody else disagree on where a
//! command ends. So nothing else reads line ends before login, and a line that ends in something like a
//! literal where none may stand is [`Error::Literal`]: the connection ends, since nobody can know what
//! the next byte is.
//!
//! A line ends in CRLF; a bare LF is taken as well, for people who type into `openssl s_client`. What
//! goes on to the backend is written anew, so the leniency stays here.
//! Limits: a line over `limits.line` bytes (AUTHENTICATE: `limits.sasl` more) is an error, never a longer
//! buffer; so is a literal over `limits.literal`, or more than [`MAX_LITERALS`] bytes of them in one command,
//! told by the announcement.
//! Not here: what a command means ([`super::command`]), and what may happen when ([`super::dialogue`]).

use memchr::memchr;

/// Bytes of all literals of one command, unless two of the longest are more: room for the largest ID
/// (RFC 2971 §3.3: 30 keys of 30 octets, 30 values of 1024), since a line can announce hundreds.
pub const MAX_LITERALS: usize = 32 * 1024;

/// Sizes before login, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// One command, without its literals.
    pub line: usize,
    /// One literal.
    pub literal: usize,
    /// One SASL message, in base64.
    pub sasl: usize,
}

/// What stands at the front of the input.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Scan {
    /// Not a whole command yet.
    More,
    /// A synchronising literal was announced, the last word of so many bytes: the client waits for `+`. Said once for
    /// each. Whoever answers otherwise takes these bytes off and begins with a new scanner.
    Continue(usize),
    /// A whole command of so many bytes, its last line end included.
    Whole(usize),
}

/// Why the input can't be framed any further. After all but [`Error::LiteralTooBig`] with `waits` the
/// position of the next command is unknown, and the connection has to end.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("line longer than {limit} bytes")]
    TooLong { limit: usize },
    /// `waits`: it was a synchronising literal, the client sends nothing before our answer, and the
    /// command may simply be refused; it is `skip` bytes long.
    #[error("literals longer than {limit} bytes")]
    LiteralTooBig { limit: usize, waits: bool, skip: usize },
    #[error("a literal where none may stand")]
    Literal,
}

/// Remembers how far the input was looked at, so that no byte is scanned twice.
#[derive(Clone, Debug, Default)]
pub struct Scanner {
    /// Everything before this was scanned: it is the start of the current line or within it.
    scanned: usize,
    /// Where the current line began: after the command's start or after its last literal.
    line_start: usize,
    /// Bytes of the command that belong to literals.
    literals: usize,
}

impl Scanner {
    /// Looks at `input`, which starts with the command under way; only its end may have grown since the
    /// last call, until [`Scan::Whole`] or an error, when the scanner starts afresh.
    pub fn scan(&mut self, input: &[u8], limits: &Limits) -> Result<Scan, Error> {
        let result = self.advance(input, limits);
        if matches!(result, Ok(Scan::Whole(_)) | Err(_)) {
            *self = Self::default();
        }
        result
    }

    fn advance(&mut self, input: &[u8], limits: &Limits) -> Result<Scan, Error> {
        loop {
            let unseen = input.get(self.scanned..).unwrap_or_default();
            let end = memchr(b'\n', unseen).map(|at| self.scanned + at);
            let length = end.map_or(input.len(), |end| end + 1).saturating_sub(self.literals);
            let limit = limit_of(input, limits);
            if length > limit {
                return Err(Error::TooLong { limit });
            }
            let Some(end) = end else {
                self.scanned = self.scanned.max(input.len());
                return Ok(Scan::More);
            };
            let next = end + 1;
            let line = &input[self.line_start..end];
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let Some(literal) = announced(line) else {
                return Ok(Scan::Whole(next));
            };
            let literal = literal.ok_or(Error::Literal)?;
            if !takes_literals(input) || !stands_alone(line) {
                return Err(Error::Literal);
            }
            let waits = !literal.non_synchronising;
            if literal.size > limits.literal as u64 {
                return Err(Error::LiteralTooBig { limit: limits.literal, waits, skip: next });
            }
            let size = literal.size as usize;
            let limit = MAX_LITERALS.max(2 * limits.literal);
            if self.literals + size > limit {
                return Err(Error::LiteralTooBig { limit, waits, skip: next });
            }
            self.literals += size;
            self.line_start = next + size;
            self.scanned = self.line_start;
            if waits {
                return Ok(Scan::Continue(next));
            }
        }
    }
}

/// The line at the front of `input`, without its end, and how many bytes to take off. For what is a line
/// and nothing else: a client's answer within AUTHENTICATE (RFC 9051 §6.2.2).
pub fn plain(input: &[u8], limit: usize) -> Result<Option<(&[u8], usize)>, Error> {
    let end = memchr(b'\n', &input[..input.len().min(limit + 2)]);
    match end {
        Some(end) => {
            let line = &input[..end];
            Ok(Some((line.strip_suffix(b"\r").unwrap_or(line), end + 1)))
        }
        None if input.len() >= limit + 2 => Err(Error::TooLong { limit }),
        None => Ok(None),
    }
}

/// What the end of a line announces: `{n}`, `{n+}`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Announced {
    size: u64,
    non_synchronising: bool,
}

/// `None`: the line announces nothing. `Some(None)`: it looks like a literal and can't be one, such as
/// `{99999999999999999999}`.
fn announced(line: &[u8]) -> Option<Option<Announced>> {
    let inner = line.strip_suffix(b"}")?;
    let open = inner.iter().rposition(|&byte| byte == b'{')?;
    let inner = &inner[open + 1..];
    let (digits, non_synchronising) = match inner.strip_suffix(b"+") {
        Some(digits) => (digits, true),
        None => (inner.strip_suffix(b"-").unwrap_or(inner), false),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    if inner.ends_with(b"-") {
        return Some(None); // some read `{n-}` as a literal (RFC 7888 has no such thing), some do not
    }
    // A number that no integer holds is too big, whatever it is.
    let size =
        digits.iter().try_fold(0_u64, |n, &d| n.checked_mul(10)?.checked_add(u64::from(d - b'0')));
    Some(Some(Announced { size: size.unwrap_or(u64::MAX), non_synchronising }))
}

/// Only LOGIN and ID may carry literals: they are the only commands before login that take strings.
fn takes_literals(command: &[u8]) -> bool {
    is_verb(command, b"LOGIN") || is_verb(command, b"ID")
}

/// A literal is a whole argument: a space or a parenthesis stands before it, never half a string, and the
/// line up to it has no quoted string left open.
fn stands_alone(line: &[u8]) -> bool {
    let Some(open) = line.iter().rposition(|&byte| byte == b'{') else { return false };
    matches!(line[..open].last(), Some(b' ' | b'(')) && !inside_quotes(&line[..open])
}

fn inside_quotes(text: &[u8]) -> bool {
    let mut quoted = false;
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => quoted = !quoted,
            b'\\' if quoted => {
                bytes.next();
            }
            _ => {}
        }
    }
    quoted
}

fn limit_of(command: &[u8], limits: &Limits) -> usize {
    if command.len() > limits.line && is_verb(command, b"AUTHENTICATE") {
        limits.line + limits.sasl // an initial response stands on the command's own line (RFC 4959)
    } else {
        limits.line
    }
}

/// Looks at the command's first line only: behind it may stand the next command.
fn is_verb(command: &[u8], verb: &[u8]) -> bool {
    let head = &command[..command.len().min(128)];
    let head = &head[..memchr(b'\n', head).unwrap_or(head.len())];
    let mut words = head.splitn(3, |&byte| byte == b' ');
    let _tag = words.next();
    words.next().is_some_and(|word| word.eq_ignore_ascii_case(verb)) && words.next().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { line: 64, literal: 16, sasl: 128 };

    /// Feeds `input` in pieces, the cuts given, and collects what came out.
    fn run(input: &[u8], cuts: &[usize]) -> Vec<Result<Scan, Error>> {
        let mut scanner = Scanner::default();
        let mut seen = Vec::new();
        let mut out = Vec::new();
        let mut from = 0;
        for &cut in cuts.iter().chain([&input.len()]) {
            seen.extend_from_slice(&input[from..cut]);
            from = cut;
            loop {
                let result = scanner.scan(&seen, &LIMITS);
                match result {
                    Ok(Scan::More) => break,
                    Ok(Scan::Continue(_)) => out.push(result),
                    Ok(Scan::Whole(n)) => {
                        out.push(result);
                        seen.drain(..n);
                    }
                    Err(_) => {
                        out.push(result);
                        return out;
                    }
                }
            }
        }
        out
    }

    #[test]
    fn every_cut_gives_the_same() {
        type Row = (&'static [u8], &'static [Result<Scan, Error>]);
        let table: &[Row] = &[
            (b"a NOOP\r\nb NOOP\n", &[Ok(Scan::Whole(8)), Ok(Scan::Whole(7))]),
            (
                b"a LOGIN {4}\r\ntest {6+}\r\nsecret\r\n",
                &[Ok(Scan::Continue(13)), Ok(Scan::Whole(32))],
            ),
            (
                b"a LOGIN {4+}\r\ntest {6}\r\nsecret\r\n",
                &[Ok(Scan::Continue(24)), Ok(Scan::Whole(32))],
            ),
            (b"a LOGIN {0}\r\n {2+}\r\n\r\n\r\n", &[Ok(Scan::Continue(13)), Ok(Scan::Whole(24))]),
            (b"a ID (\"k\" {3+}\r\na\nb)\r\n", &[Ok(Scan::Whole(22))]),
            (b"a login {004+}\ntest {1+}\nx\n", &[Ok(Scan::Whole(27))]),
            (b"{3+}\r\nabc NOOP\r\n", &[Err(Error::Literal)]),
            (b"a {4+}\r\nNOOP\r\n", &[Err(Error::Literal)]),
            (b"a LOGIN \"x {5+}\r\nb NOOP\r\n", &[Err(Error::Literal)]),
            (b"a LOGIN test{6+}\r\nsecret\r\n", &[Err(Error::Literal)]),
            (b"a FOO {6}\r\nb NOOP\r\n", &[Err(Error::Literal)]),
            (b"a LOGIN {3-}\r\nabc x\r\n", &[Err(Error::Literal)]),
            (b"a AUTHENTICATE PLAIN {16+}\r\n", &[Err(Error::Literal)]),
            (
                b"a LOGIN {17}\r\n",
                &[Err(Error::LiteralTooBig { limit: 16, waits: true, skip: 14 })],
            ),
            (
                b"a LOGIN {18446744073709551617+}\r\n",
                &[Err(Error::LiteralTooBig { limit: 16, waits: false, skip: 33 })],
            ),
        ];
        for (input, want) in table {
            let name = String::from_utf8_lossy(input);
            let bytewise: Vec<usize> = (0..input.len()).collect();
            assert_eq!(run(input, &[]), *want, "{name:?} whole");
            assert_eq!(run(input, &bytewise), *want, "{name:?} byte by byte");
            for cut in 0..input.len() {
                assert_eq!(run(input, &[cut]), *want, "{name:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn a_line_over_the_limit_is_an_error_before_its_end_is_seen() {
        assert_eq!(run(&[b'x'; 65], &[]), [Err(Error::TooLong { limit: 64 })]);
        let mut login = b"a LOGIN {16+}\r\n0123456789abcdef {16+}\r\n0123456789abcdef".to_vec();
        login.extend([b' '; 20]);
        login.extend(b"\r\n");
        assert_eq!(run(&login, &[]), [Ok(Scan::Whole(login.len()))], "literals do not count");
        login.splice(login.len() - 2.., [b' '; 30]);
        assert_eq!(run(&login, &[]), [Err(Error::TooLong { limit: 64 })]);
    }

    #[test]
    fn authenticate_has_room_for_an_initial_response() {
        let mut input = b"a AUTHENTICATE XOAUTH2 ".to_vec();
        input.extend([b'A'; 120]);
        input.extend(b"\r\n");
        assert_eq!(run(&input, &[]), [Ok(Scan::Whole(input.len()))]);
        input.splice(input.len() - 2.., [b'A'; 80]);
        assert_eq!(run(&input, &[]), [Err(Error::TooLong { limit: 192 })]);
    }
}
