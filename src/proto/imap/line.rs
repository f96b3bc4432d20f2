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
//! A line ends in CRLF; a bare LF is taken as well, for people who type into `openssl s_client`.
//! Several blanks between tag, verb and arguments are one ([`head`], which `command` uses as well,
//! so that the two agree on the verb). What goes on to the backend is written anew, so the leniency
//! stays here.
//!
//! Limits: a line over `limits.line` bytes (AUTHENTICATE: `limits.sasl` more) is an error, never a
//! longer buffer; so is a literal over `limits.literal`, told by the announcement, or more of them
//! than two. An ID has a limit of its own, [`MAX_ID`], for its lines and literals together. A
//! longer one is [`Scan::Excess`]: it is answered, and what is left of it passes by without being
//! kept ([`Scan::Passed`]), framed by the same rules.
//! Not here: what a command means ([`super::command`]), and what may happen when ([`super::dialogue`]).

use memchr::memchr;

use super::marker::{Ending, Tail};

/// Bytes of one ID: room for the largest of RFC 2971 §3.3 (30 keys of 30 octets, 30 values of
/// 1024), with every octet escaped in quotes, and a tag.
pub const MAX_ID: usize = 64 * 1024;

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
    /// An ID over [`MAX_ID`], to be answered now. Its bytes are [`Scan::Passed`] from here on.
    Excess,
    /// So many bytes of such an ID, to be taken off.
    Passed(usize),
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
    /// Known once it is needed, when the bytes that tell have come.
    takes: Option<Takes>,
    /// An ID that is too long goes by.
    passing: Option<Passing>,
}

impl Scanner {
    /// Looks at `input`, which starts with the command under way; only its end may have grown since
    /// the last call, until [`Scan::Whole`] or an error, when the scanner starts afresh, or
    /// [`Scan::Passed`], when what is left starts anew.
    pub fn scan(&mut self, input: &[u8], limits: &Limits) -> Result<Scan, Error> {
        let result = match self.passing {
            Some(_) => self.pass(input),
            None => self.advance(input, limits),
        };
        if matches!(result, Ok(Scan::Whole(_)) | Err(_)) {
            *self = Self::default();
        }
        result
    }

    fn advance(&mut self, input: &[u8], limits: &Limits) -> Result<Scan, Error> {
        loop {
            let unseen = input.get(self.scanned..).unwrap_or_default();
            let end = memchr(b'\n', unseen).map(|at| self.scanned + at);
            let upto = end.map_or(input.len(), |end| end + 1);
            let length = upto.saturating_sub(self.literals);
            if length > limits.line {
                match self.takes(input, limits) {
                    Takes::Id if upto > MAX_ID => return Ok(self.excess(self.line_start, 0)),
                    Takes::Id => {}
                    // An initial response stands on the command's own line (RFC 4959).
                    Takes::Sasl if length <= limits.line + limits.sasl => {}
                    Takes::Sasl => {
                        return Err(Error::TooLong { limit: limits.line + limits.sasl });
                    }
                    Takes::Login | Takes::Nothing => {
                        return Err(Error::TooLong { limit: limits.line });
                    }
                }
            }
            let Some(end) = end else {
                self.scanned = self.scanned.max(input.len());
                return Ok(Scan::More);
            };
            let next = end + 1;
            let line = &input[self.line_start..end];
            let Some(literal) = announced(line.strip_suffix(b"\r").unwrap_or(line)) else {
                return Ok(Scan::Whole(next));
            };
            let literal = literal.ok_or(Error::Literal)?;
            let takes = self.takes(input, limits);
            let (limit, room) = match takes {
                Takes::Login => {
                    (limits.literal, (2 * limits.literal).saturating_sub(self.literals))
                }
                Takes::Id => (MAX_ID, MAX_ID.saturating_sub(next)),
                Takes::Sasl | Takes::Nothing => return Err(Error::Literal),
            };
            if !Line::of(line).literal_stands_alone {
                return Err(Error::Literal);
            }
            let waits = !literal.non_synchronising;
            if literal.size > limit.min(room) as u64 {
                if takes == Takes::Id && !waits {
                    return Ok(self.excess(next, literal.size));
                }
                return Err(Error::LiteralTooBig { limit, waits, skip: next });
            }
            let size = literal.size as usize;
            self.literals += size;
            self.line_start = next + size;
            self.scanned = self.line_start;
            if waits {
                return Ok(Scan::Continue(next));
            }
        }
    }

    fn takes(&mut self, input: &[u8], limits: &Limits) -> Takes {
        *self.takes.get_or_insert_with(|| Takes::of(input, limits))
    }

    /// From `scanned` on nothing is kept; a literal of so many bytes comes first.
    fn excess(&mut self, scanned: usize, literal: u64) -> Scan {
        self.scanned = scanned;
        self.passing = Some(Passing { line: Line::default(), literal });
        Scan::Excess
    }

    fn pass(&mut self, input: &[u8]) -> Result<Scan, Error> {
        let Some(passing) = &mut self.passing else { return Ok(Scan::More) };
        loop {
            let rest = input.get(self.scanned..).unwrap_or_default();
            if rest.is_empty() {
                let passed = std::mem::take(&mut self.scanned).min(input.len());
                return Ok(if passed == 0 { Scan::More } else { Scan::Passed(passed) });
            }
            if passing.literal > 0 {
                let some = usize::try_from(passing.literal).unwrap_or(usize::MAX).min(rest.len());
                passing.literal -= some as u64;
                self.scanned += some;
                continue;
            }
            let end = memchr(b'\n', rest);
            passing.line.take(&rest[..end.unwrap_or(rest.len())]);
            self.scanned += end.map_or(rest.len(), |end| end + 1);
            if end.is_none() {
                continue;
            }
            let line = std::mem::take(&mut passing.line);
            match line.tail.end(b"") {
                // A client that waits for `+` has its answer already, and sends no literal.
                Ending::Plain => {}
                Ending::Literal(_) if line.literal_stands_alone => {}
                Ending::NonSync(size) if line.literal_stands_alone => {
                    passing.literal = size;
                    continue;
                }
                _ => return Err(Error::Literal),
            }
            let passed = self.scanned;
            *self = Self::default();
            return Ok(Scan::Passed(passed));
        }
    }
}

/// A command that goes by without being kept.
#[derive(Clone, Debug, Default)]
struct Passing {
    line: Line,
    /// Bytes of a literal that are still to come.
    literal: u64,
}

/// What is known of a line from its bytes so far, however they were cut.
#[derive(Clone, Debug, Default)]
struct Line {
    tail: Tail,
    quoted: bool,
    escaped: bool,
    last: u8,
    /// Of the last `{`: a literal there is a whole argument. A blank or a parenthesis stands before
    /// it, never half a string, and the line up to it has no quoted string left open.
    literal_stands_alone: bool,
}

impl Line {
    fn of(line: &[u8]) -> Self {
        let mut whole = Self::default();
        whole.take(line);
        whole
    }

    /// The next bytes of the line, without its LF.
    fn take(&mut self, piece: &[u8]) {
        self.tail.take(piece);
        for &byte in piece {
            if byte == b'{' {
                self.literal_stands_alone = !self.quoted && matches!(self.last, b' ' | b'(');
            }
            match byte {
                _ if self.escaped => self.escaped = false,
                b'"' => self.quoted = !self.quoted,
                b'\\' => self.escaped = self.quoted,
                _ => {}
            }
            self.last = byte;
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

/// What a command may have beyond a line of `limits.line` bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Takes {
    Nothing,
    /// Two literals.
    Login,
    /// Literals and long lines.
    Id,
    /// A long line.
    Sasl,
}

impl Takes {
    /// By the verb, which the first `limits.line` bytes of the first line hold whole, with a blank
    /// behind it.
    fn of(command: &[u8], limits: &Limits) -> Self {
        let start = &command[..command.len().min(limits.line)];
        let Head { verb, arguments: Some(behind), .. } = head(start) else { return Self::Nothing };
        if memchr(b'\n', &start[..start.len() - behind.len()]).is_some() {
            return Self::Nothing;
        }
        let is = |name: &[u8]| verb.eq_ignore_ascii_case(name);
        match verb.len() {
            2 if is(b"ID") => Self::Id,
            5 if is(b"LOGIN") => Self::Login,
            12 if is(b"AUTHENTICATE") => Self::Sasl,
            _ => Self::Nothing,
        }
    }
}

/// The first words of a command.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head<'a> {
    /// Up to the first blank.
    pub tag: &'a [u8],
    pub verb: &'a [u8],
    /// What stands behind the blank after the verb, if there is one; it may begin with more blanks.
    pub arguments: Option<&'a [u8]>,
}

pub(super) fn head(line: &[u8]) -> Head<'_> {
    let (tag, rest) = split_blank(line);
    let rest = rest.unwrap_or_default();
    let (verb, arguments) = split_blank(&rest[blanks(rest)..]);
    Head { tag, verb, arguments }
}

pub(super) fn split_blank(line: &[u8]) -> (&[u8], Option<&[u8]>) {
    match memchr(b' ', line) {
        Some(at) => (&line[..at], Some(&line[at + 1..])),
        None => (line, None),
    }
}

/// How many blanks `text` begins with.
pub(super) fn blanks(text: &[u8]) -> usize {
    text.iter().position(|&byte| byte != b' ').unwrap_or(text.len())
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
                    Ok(Scan::Continue(_) | Scan::Excess) => out.push(result),
                    // All pieces of one command are told as one.
                    Ok(Scan::Passed(n)) => {
                        seen.drain(..n);
                        match out.last_mut() {
                            Some(Ok(Scan::Passed(before))) => *before += n,
                            _ => out.push(result),
                        }
                    }
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
            (b"a  LOGIN  {4+}\r\ntest  {1+}\r\nx \r\n", &[Ok(Scan::Whole(32))]),
            (b"{3+}\r\nabc NOOP\r\n", &[Err(Error::Literal)]),
            (b"a {4+}\r\nNOOP\r\n", &[Err(Error::Literal)]),
            (b"a LOGIN \"x {5+}\r\nb NOOP\r\n", &[Err(Error::Literal)]),
            (b"a LOGIN test{6+}\r\nsecret\r\n", &[Err(Error::Literal)]),
            (b"a FOO {6}\r\nb NOOP\r\n", &[Err(Error::Literal)]),
            (b"a LOGIN {3-}\r\nabc x\r\n", &[Err(Error::Literal)]),
            (b"a AUTHENTICATE PLAIN {16+}\r\n", &[Err(Error::Literal)]),
            (b"a ID ({17+}\r\n0123456789abcdefg NIL)\r\n", &[Ok(Scan::Whole(37))]),
            (
                b"a ID ({70000}\r\nb NOOP\r\n",
                &[Err(Error::LiteralTooBig { limit: MAX_ID, waits: true, skip: 15 })],
            ),
            (
                b"a LOGIN {16+}\r\n0123456789abcdef {16+}\r\n0123456789abcdef {1}\r\n",
                &[Err(Error::LiteralTooBig { limit: 16, waits: true, skip: 61 })],
            ),
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
    fn an_id_that_is_too_long_passes_by_to_its_end() {
        let long = "x".repeat(MAX_ID);
        for (id, behind) in [
            (format!("a ID ({long})\r\n"), 0),
            (format!("a ID ({long})\nb NOOP\r\n"), 8),
            (format!("a ID ({long} {{3+}}\r\na\nb {{10}}\r\n)\r\n"), 3), // refused, so none follows
            (format!("a ID ({{70000+}}\r\n{}{long})\r\nb NOOP\r\n", &long[..4464]), 8),
        ] {
            let whole = run(id.as_bytes(), &[]);
            let passed = Ok(Scan::Passed(id.len() - behind));
            let mut want = vec![Ok(Scan::Excess), passed];
            want.extend((behind > 0).then_some(Ok(Scan::Whole(behind))));
            assert_eq!(whole, want, "{:.20}", id);
            for cut in (0..id.len()).step_by(997).chain(id.len() - 40..id.len()) {
                assert_eq!(run(id.as_bytes(), &[cut]), whole, "{:.20} cut at {cut}", id);
            }
        }
    }

    #[test]
    fn a_line_announces_the_same_whether_it_is_kept_or_not() {
        for line in [
            "",
            "x",
            "a {5}",
            "a {5+}",
            "a{5}",
            "({0+}",
            "\"a\" {5}",
            "\"a {5}",
            "\"a\\\" {5}",
            "\"\\\\\" {5}",
            "a {005+}",
            "a {5} ",
            "a 5}",
            "a {{5}",
            "a {4}{5}",
            "{5}",
            "a\\\" {5}",
        ] {
            let kept = announced(line.as_bytes()).map(|literal| literal.expect("a number"));
            let passed = match Line::of(line.as_bytes()).tail.end(b"") {
                Ending::Plain => None,
                Ending::Literal(size) => Some(Announced { size, non_synchronising: false }),
                Ending::NonSync(size) => Some(Announced { size, non_synchronising: true }),
                Ending::Unclear => panic!("{line}"),
            };
            assert_eq!(kept, passed, "{line}");
        }
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
