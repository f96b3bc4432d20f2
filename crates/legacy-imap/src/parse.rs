//! The arguments of one command, read from left to right (RFC 3501 §9).
//!
//! In: a command's lines, without CRLF, and the literals between them, as `wire` collected them. Out:
//! atoms, strings, numbers, sets, flags and dates. A literal is only taken where the line that
//! announces it ends, so text that looks like one is never confused with it.
//! Limits: those of `wire`; nesting is limited by `search`.
//! Not here: what a command means; FETCH items (`fetch`), search keys (`search`).

use super::date::DateTime;

/// A stretch of a command.
#[derive(Debug, Eq, PartialEq)]
pub enum Piece {
    Line(Vec<u8>),
    Literal(Vec<u8>),
}

/// Why a command is answered `BAD`: always the client's doing.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("expected {0}")]
    Expected(&'static str),
    #[error("unknown argument")]
    Unknown,
    #[error("arguments are nested too deeply")]
    Depth,
    #[error("message number out of range")]
    Range,
}

type Result<T> = std::result::Result<T, Error>;

/// What is left of a command.
pub struct Args {
    line: Vec<u8>,
    at: usize,
    rest: std::vec::IntoIter<Piece>,
}

impl Args {
    pub fn new(pieces: Vec<Piece>) -> Self {
        let mut args = Self { line: Vec::new(), at: 0, rest: pieces.into_iter() };
        args.next_line();
        args
    }

    fn next_line(&mut self) {
        self.at = 0;
        self.line = match self.rest.next() {
            Some(Piece::Line(line)) => line,
            _ => Vec::new(),
        };
    }

    pub fn peek(&self) -> Option<u8> {
        self.line.get(self.at).copied()
    }

    /// Takes `byte` if it is next.
    pub fn eat(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    /// Takes `word` and the space after it if they are next; `word` is in upper case.
    pub fn eat_word(&mut self, word: &str) -> bool {
        let end = self.at + word.len();
        let found =
            self.line.get(self.at..end).is_some_and(|w| w.eq_ignore_ascii_case(word.as_bytes()))
                && self.line.get(end) == Some(&b' ');
        if found {
            self.at = end + 1;
        }
        found
    }

    pub fn expect(&mut self, byte: u8, what: &'static str) -> Result<()> {
        if self.eat(byte) { Ok(()) } else { Err(Error::Expected(what)) }
    }

    pub fn space(&mut self) -> Result<()> {
        self.expect(b' ', "a space and another argument")
    }

    /// Nothing may follow.
    pub fn end(&mut self) -> Result<()> {
        // Trailing blanks are harmless and common from people who type.
        while self.eat(b' ') {}
        if self.at == self.line.len() { Ok(()) } else { Err(Error::Expected("nothing more")) }
    }

    pub fn take_while(&mut self, accepts: impl Fn(u8) -> bool) -> &[u8] {
        let start = self.at;
        while self.peek().is_some_and(&accepts) {
            self.at += 1;
        }
        &self.line[start..self.at]
    }

    fn word(&mut self, what: &'static str, accepts: impl Fn(u8) -> bool) -> Result<String> {
        let taken = self.take_while(accepts);
        let text = std::str::from_utf8(taken).map_err(|_| Error::Expected(what))?;
        if text.is_empty() { Err(Error::Expected(what)) } else { Ok(text.to_owned()) }
    }

    /// Everything but `+` that an astring may hold.
    pub fn tag(&mut self) -> Result<String> {
        self.word("a tag", |byte| is_astring_char(byte) && byte != b'+')
    }

    /// An atom in upper case: a command, an item, a search key.
    pub fn keyword(&mut self) -> Result<String> {
        let mut word = self.word("a word", is_atom_char)?;
        word.make_ascii_uppercase();
        Ok(word)
    }

    pub fn number(&mut self) -> Result<u32> {
        let text = self.word("a number", |byte| byte.is_ascii_digit())?;
        text.parse().map_err(|_| Error::Expected("a number of 32 bits"))
    }

    pub fn nonzero(&mut self) -> Result<u32> {
        self.number()
            .and_then(|n| if n == 0 { Err(Error::Expected("a number from 1")) } else { Ok(n) })
    }

    fn quoted(&mut self) -> Result<Vec<u8>> {
        self.expect(b'"', "a quoted string")?;
        let mut value = Vec::new();
        loop {
            let byte = self.peek().ok_or(Error::Expected("a closing quote"))?;
            self.at += 1;
            match byte {
                b'"' => return Ok(value),
                b'\\' => {
                    let escaped = self.peek().filter(|byte| matches!(byte, b'"' | b'\\'));
                    value.push(
                        escaped.ok_or(Error::Expected("a quote or backslash after a backslash"))?,
                    );
                    self.at += 1;
                }
                byte => value.push(byte),
            }
        }
    }

    /// Raw octets, announced by the end of the current line.
    pub fn literal(&mut self) -> Result<Vec<u8>> {
        let announced =
            self.line.get(self.at..).is_some_and(|rest| announces_literal(rest).is_some());
        if !announced {
            return Err(Error::Expected("a literal"));
        }
        match self.rest.next() {
            Some(Piece::Literal(value)) => {
                self.next_line();
                Ok(value)
            }
            _ => Err(Error::Expected("a literal")),
        }
    }

    /// Quoted or literal.
    pub fn string(&mut self) -> Result<Vec<u8>> {
        if self.peek() == Some(b'{') { self.literal() } else { self.quoted() }
    }

    pub fn astring(&mut self) -> Result<Vec<u8>> {
        self.string_or("an astring", is_astring_char)
    }

    /// A mailbox pattern, in which `%` and `*` need no quotes.
    pub fn list_mailbox(&mut self) -> Result<Vec<u8>> {
        self.string_or("a mailbox pattern", |byte| {
            is_astring_char(byte) || matches!(byte, b'%' | b'*')
        })
    }

    fn string_or(&mut self, what: &'static str, accepts: impl Fn(u8) -> bool) -> Result<Vec<u8>> {
        match self.peek() {
            Some(b'"' | b'{') => self.string(),
            _ => Some(self.take_while(accepts).to_vec())
                .filter(|word| !word.is_empty())
                .ok_or(Error::Expected(what)),
        }
    }

    /// A string or `NIL`.
    pub fn nstring(&mut self) -> Result<Option<Vec<u8>>> {
        if matches!(self.peek(), Some(b'"' | b'{')) {
            return self.string().map(Some);
        }
        if self.keyword()? == "NIL" { Ok(None) } else { Err(Error::Expected("a string or NIL")) }
    }

    /// `(a b c)`, possibly empty; `item` reads one.
    pub fn list<T>(&mut self, mut item: impl FnMut(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        self.expect(b'(', "an opening parenthesis")?;
        let mut items = Vec::new();
        while !self.eat(b')') {
            if !items.is_empty() {
                self.expect(b' ', "a space or a closing parenthesis")?;
            }
            items.push(item(self)?);
        }
        Ok(items)
    }

    /// `\Seen` or a keyword, as written.
    pub fn flag(&mut self) -> Result<String> {
        let system = self.eat(b'\\');
        let word = self.word("a flag", is_atom_char)?;
        Ok(if system { format!("\\{word}") } else { word })
    }

    /// Flags with or without parentheses, as STORE takes them.
    pub fn flags(&mut self) -> Result<Vec<String>> {
        if self.peek() == Some(b'(') {
            return self.list(Self::flag);
        }
        let mut flags = vec![self.flag()?];
        while self.eat(b' ') {
            flags.push(self.flag()?);
        }
        Ok(flags)
    }

    pub fn date_time(&mut self) -> Result<DateTime> {
        let text = self.quoted()?;
        let parsed = std::str::from_utf8(&text).ok().and_then(DateTime::parse);
        parsed.ok_or(Error::Expected("a date and time such as \"17-Jul-1996 02:44:25 -0700\""))
    }

    /// Whether a set of numbers is next, and not a word.
    pub fn at_set(&self) -> bool {
        self.peek().is_some_and(|byte| byte.is_ascii_digit() || byte == b'*')
    }

    pub fn set(&mut self) -> Result<Set> {
        let mut ranges = Vec::new();
        loop {
            let first = self.set_number()?;
            let last = if self.eat(b':') { self.set_number()? } else { first };
            ranges.push((first, last));
            if !self.eat(b',') {
                return Ok(Set(ranges));
            }
        }
    }

    /// `*` is the largest number that exists, and so larger than all others.
    fn set_number(&mut self) -> Result<Bound> {
        if self.eat(b'*') { Ok(Bound::Largest) } else { self.nonzero().map(Bound::Number) }
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Bound {
    Number(u32),
    Largest,
}

/// Message numbers or UIDs as a client names them: `1,3:5,7:*`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Set(Vec<(Bound, Bound)>);

impl Set {
    /// Inclusive ranges in ascending order, none overlapping, once the largest number is known.
    pub fn ranges(&self, largest: u32) -> Vec<(u32, u32)> {
        let number = |bound| match bound {
            Bound::Number(number) => number,
            Bound::Largest => largest,
        };
        let ordered = |(a, b)| (number(a).min(number(b)), number(a).max(number(b)));
        let mut ranges: Vec<(u32, u32)> = self.0.iter().copied().map(ordered).collect();
        ranges.sort_unstable();
        let mut merged: Vec<(u32, u32)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match merged.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => {
                    before.1 = before.1.max(last)
                }
                _ => merged.push((first, last)),
            }
        }
        merged
    }

    /// Whether every message number named exists. In an empty mailbox only `*` does, as nobody.
    pub fn exists(&self, count: u32) -> bool {
        let open = |(a, b): &(Bound, Bound)| *a == Bound::Largest || *b == Bound::Largest;
        if count == 0 {
            return self.0.iter().any(open);
        }
        self.ranges(count).last().is_none_or(|(_first, last)| *last <= count)
    }
}

/// The length and whether the sender goes on unasked, if a line ends in `{n}` or `{n+}`.
pub fn announces_literal(line: &[u8]) -> Option<(u64, bool)> {
    let inside = line.strip_suffix(b"}")?;
    let digits = &inside[inside.iter().rposition(|byte| *byte == b'{')? + 1..];
    let (digits, unasked) = match digits.strip_suffix(b"+") {
        Some(digits) => (digits, true),
        None => (digits, false),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    // A number past 64 bits is as much too big as the largest of them.
    let length = std::str::from_utf8(digits).ok()?.parse().unwrap_or(u64::MAX);
    Some((length, unasked))
}

fn is_atom_char(byte: u8) -> bool {
    byte.is_ascii_graphic() && !b"(){%*\"\\]".contains(&byte)
}

fn is_astring_char(byte: u8) -> bool {
    is_atom_char(byte) || byte == b']'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(line: &str) -> Args {
        Args::new(vec![Piece::Line(line.into())])
    }

    #[test]
    fn strings_are_read_in_every_form() {
        let pieces = vec![
            Piece::Line(b"a \"b \\\" \\\\\" {3}".to_vec()),
            Piece::Literal(b"\r\n\0".to_vec()),
            Piece::Line(b" NIL d]".to_vec()),
        ];
        let mut args = Args::new(pieces);
        assert_eq!(args.astring().unwrap(), b"a");
        args.space().unwrap();
        assert_eq!(args.astring().unwrap(), b"b \" \\");
        args.space().unwrap();
        assert_eq!(args.astring().unwrap(), b"\r\n\0");
        args.space().unwrap();
        assert_eq!(args.nstring().unwrap(), None);
        args.space().unwrap();
        assert_eq!(args.astring().unwrap(), b"d]");
        args.end().unwrap();
    }

    #[test]
    fn malformed_strings_are_errors() {
        for line in ["", " ", "\"", "\"a\\", "\"a\\b\"", "{3}", "{3", "(", "é"] {
            assert!(args(line).astring().is_err(), "{line:?}");
        }
    }

    #[test]
    fn sets_are_ordered_merged_and_closed() {
        let ranges = |text: &str, largest| args(text).set().unwrap().ranges(largest);
        assert_eq!(ranges("5,1:3,2:4", 9), [(1, 5)]);
        assert_eq!(ranges("7:*,2", 9), [(2, 2), (7, 9)]);
        assert_eq!(ranges("12:*", 9), [(9, 12)]);
        assert_eq!(ranges("4294967295,4294967294:*", 1), [(1, u32::MAX)]);
        for text in ["", "0", "1:", "a", "4294967296", "1,,2"] {
            assert!(args(text).set().is_err(), "{text:?}");
        }
        assert!(args("1:*").set().unwrap().exists(0));
        assert!(!args("1").set().unwrap().exists(0));
        assert!(!args("1:4").set().unwrap().exists(3));
    }

    #[test]
    fn literals_are_announced_at_the_end_of_a_line_only() {
        let table: [(&[u8], _); 7] = [
            (b"a {3}", Some((3, false))),
            (b"a {3+}", Some((3, true))),
            (b"{99999999999999999999999}", Some((u64::MAX, false))),
            (b"a {3} ", None),
            (b"a {}", None),
            (b"a {-1}", None),
            (b"}", None),
        ];
        for (line, expected) in table {
            assert_eq!(announces_literal(line), expected, "{}", line.escape_ascii());
        }
    }
}
