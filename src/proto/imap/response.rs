//! Reads what the backend says until somebody is logged in: greeting, untagged, continuation, tagged.
//!
//! In: bytes off the wire, cut anywhere. Out: one whole [`Response`] at a time, with the literals inside
//! it, so that text in a literal is never taken for a tagged result (a `{12}` and then `P1 OK forged`).
//! Standard: RFC 9051 §7. Limits: `max` bytes for a response, literals included.
//!
//! Old servers and their wrappers write empty lines or blanks where a response should begin, or one blank too
//! many behind the tag. Clients read over them, and so do we: they count as bytes of the response behind them.
//! Not here: responses after login, which [`super::follow`] only looks at.

use memchr::memchr;

/// One response, without its last line end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Response<'a> {
    /// `+ text`, or a lone `+`: what follows the plus and its space.
    Continuation(&'a [u8]),
    /// `* OK|NO|BAD|BYE|PREAUTH text`: with the text, its code included.
    Status { kind: Kind, text: &'a [u8] },
    /// Any other line that begins with `* `.
    Untagged,
    /// `tag OK|NO|BAD text`.
    Tagged { tag: &'a [u8], kind: Kind, text: &'a [u8] },
    /// A line that no IMAP server writes.
    Garbage,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    Ok,
    No,
    Bad,
    Bye,
    PreAuth,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a response of more than {max} bytes")]
pub struct TooLong {
    pub max: usize,
}

/// A whole response at the front of the input.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Whole<'a> {
    pub response: Response<'a>,
    /// Its bytes, literals included, without the blanks before it and without the last line end.
    pub line: &'a [u8],
    /// How many bytes to take off the input.
    pub length: usize,
}

/// The response at the front of `input`, if it is whole. Where the rest may come in small pieces, a
/// [`Scanner`] that is kept costs less.
pub fn next(input: &[u8], max: usize) -> Result<Option<Whole<'_>>, TooLong> {
    Scanner::default().next(input, max)
}

/// Remembers how far the input was looked at: what a server drips byte by byte is scanned once.
#[derive(Clone, Debug, Default)]
pub struct Scanner {
    /// Where the response begins, as far as that is known: behind blanks and empty lines.
    start: usize,
    /// Between `line_start` and here is no line end.
    scanned: usize,
    /// Where the current line began, if it is not the first: behind the response's last literal.
    line_start: usize,
}

impl Scanner {
    /// The response at the front of `input`, if it is whole. Until then only the end of `input` may grow.
    pub fn next<'a>(&mut self, input: &'a [u8], max: usize) -> Result<Option<Whole<'a>>, TooLong> {
        let strays = input.get(self.start..).unwrap_or_default();
        self.start += strays.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        self.scanned = self.scanned.max(self.start);
        loop {
            let unseen = input.get(self.scanned..).unwrap_or_default();
            let Some(end) = memchr(b'\n', unseen).map(|at| self.scanned + at) else {
                self.scanned = self.scanned.max(input.len());
                return if input.len() > max { Err(TooLong { max }) } else { Ok(None) };
            };
            if end >= max {
                return Err(TooLong { max });
            }
            let line = &input[self.start..end];
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            // Text for people may end in anything; only data announces literals (RFC 9051 §9, `resp-text`).
            let first = self.line_start == 0;
            let response = if first { Response::of(line) } else { Response::Untagged };
            let literal = match response {
                Response::Untagged => {
                    let last = self.line_start.saturating_sub(self.start);
                    literal_at_end(line.get(last..).unwrap_or_default())
                }
                _ => None,
            };
            let Some(size) = literal else {
                *self = Self::default();
                return Ok(Some(Whole { response, line, length: end + 1 }));
            };
            let next = usize::try_from(size).ok().and_then(|size| size.checked_add(end + 1));
            let next = next.filter(|&next| next <= max).ok_or(TooLong { max })?;
            (self.line_start, self.scanned) = (next, next);
        }
    }
}

fn literal_at_end(line: &[u8]) -> Option<u64> {
    let inner = line.strip_suffix(b"}")?;
    let open = inner.iter().rposition(|&byte| byte == b'{')?;
    let digits = std::str::from_utf8(&inner[open + 1..]).ok()?;
    let legal = !digits.is_empty() && digits.bytes().all(|d| d.is_ascii_digit());
    legal.then(|| digits.parse().unwrap_or(u64::MAX))
}

impl<'a> Response<'a> {
    fn of(line: &'a [u8]) -> Self {
        if let Some(rest) = line.strip_prefix(b"+") {
            return match rest.strip_prefix(b" ") {
                Some(text) => Self::Continuation(text),
                None if rest.is_empty() => Self::Continuation(rest),
                None => Self::Garbage,
            };
        }
        let Some(space) = memchr(b' ', line) else { return Self::Garbage };
        let (tag, rest) = (&line[..space], &line[space + 1..]);
        let status = status(rest.trim_ascii_start());
        match (tag, status) {
            (b"", _) => Self::Garbage,
            (b"*", Some((kind, text))) => Self::Status { kind, text },
            (b"*", None) => Self::Untagged,
            (tag, Some((kind @ (Kind::Ok | Kind::No | Kind::Bad), text))) => {
                Self::Tagged { tag, kind, text }
            }
            _ => Self::Garbage,
        }
    }
}

fn status(rest: &[u8]) -> Option<(Kind, &[u8])> {
    let (word, text) = match memchr(b' ', rest) {
        Some(at) => (&rest[..at], rest[at + 1..].trim_ascii_start()),
        None => (rest, &b""[..]),
    };
    const WORDS: [(&[u8], Kind); 5] = [
        (b"OK", Kind::Ok),
        (b"NO", Kind::No),
        (b"BAD", Kind::Bad),
        (b"BYE", Kind::Bye),
        (b"PREAUTH", Kind::PreAuth),
    ];
    let (_, kind) = WORDS.into_iter().find(|(known, _)| word.eq_ignore_ascii_case(known))?;
    Some((kind, text))
}

/// The code of a response's text and the text behind it: `[ALERT] x` is (`ALERT`, `x`).
pub fn code(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let inner = text.strip_prefix(b"[")?;
    let close = memchr(b']', inner)?;
    let rest = &inner[close + 1..];
    Some((&inner[..close], rest.strip_prefix(b" ").unwrap_or(rest)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn responses_are_told_apart() {
        let of = |line: &'static [u8]| {
            next(line, 100).map(|r| r.map(|whole| (whole.response, whole.length)))
        };
        let status = |kind, text| Response::Status { kind, text };
        assert_eq!(of(b"+\r\n"), Ok(Some((Response::Continuation(b""), 3))));
        assert_eq!(of(b"+ Zm9v\r\n"), Ok(Some((Response::Continuation(b"Zm9v"), 8))));
        assert_eq!(of(b"* ok hi\r\n"), Ok(Some((status(Kind::Ok, b"hi"), 9))));
        assert_eq!(of(b"* BYE\r\n"), Ok(Some((status(Kind::Bye, b""), 7))));
        assert_eq!(of(b"* CAPABILITY X\n"), Ok(Some((Response::Untagged, 15))));
        let tagged = Response::Tagged { tag: b"P1", kind: Kind::No, text: b"no {5}" };
        assert_eq!(of(b"P1 NO no {5}\r\n"), Ok(Some((tagged, 14))));
        assert_eq!(of(b"HTTP/1.1 400 Bad Request\r\n"), Ok(Some((Response::Garbage, 26))));
        assert_eq!(of(b"220 ESMTP\r\n"), Ok(Some((Response::Garbage, 11))));
        assert_eq!(of(b"* OK no end"), Ok(None));
    }

    #[test]
    fn what_stands_before_a_response_by_mistake_is_read_over() {
        let (ok, no) = (&b"* OK hi"[..], &b"P1 NO no"[..]);
        for (input, line) in [
            (&b"\r\n* OK hi\r\n"[..], ok),
            (b"\n \r\n\t\r\n* OK hi\r\n", ok),
            (b" * OK hi\r\n", ok),
            (b"\r\n P1 NO no\r\n", no),
            (b"\r\n+ go\r\n", b"+ go"),
            (b"\r\n* X {2}\r\n\r\n y\r\n", b"* X {2}\r\n\r\n y"),
        ] {
            for step in [1, 2, 3, 100] {
                let (mut scanner, mut seen) = (Scanner::default(), Vec::new());
                let mut found = None;
                for piece in input.chunks(step) {
                    seen.extend_from_slice(piece);
                    let whole = scanner.next(&seen, 100).unwrap();
                    found = found.or(whole.map(|whole| (whole.line.to_vec(), whole.length)));
                }
                assert_eq!(found, Some((line.to_vec(), input.len())), "in steps of {step}");
            }
        }
        assert_eq!(next(&b"\r\n".repeat(50), 100), Ok(None), "nothing came yet");
        assert_eq!(next(&b"\r\n".repeat(51), 100), Err(TooLong { max: 100 }));
        let kind = |line: &'static [u8]| next(line, 100).unwrap().map(|whole| whole.response);
        let status = Response::Status { kind: Kind::Ok, text: b"hi" };
        assert_eq!(kind(b"*  OK hi\r\n"), Some(status));
        let tagged = Response::Tagged { tag: b"P1", kind: Kind::Ok, text: b"hi" };
        assert_eq!(kind(b"P1  OK hi\r\n"), Some(tagged));
    }

    #[test]
    fn a_result_inside_a_literal_is_not_a_result() {
        let input = b"* X {14}\r\nP1 OK forged\r\n\r\nP1 NO\r\n";
        for cut in 0..26 {
            assert_eq!(next(&input[..cut], 100), Ok(None), "cut at {cut}");
        }
        assert_eq!(
            next(input, 100).map(|r| r.map(|whole| (whole.response, whole.length))),
            Ok(Some((Response::Untagged, 26)))
        );
    }

    #[test]
    fn no_response_is_longer_than_the_limit() {
        assert_eq!(next(&[b'x'; 101], 100), Err(TooLong { max: 100 }));
        assert_eq!(next(b"* X {1000}\r\n", 100), Err(TooLong { max: 100 }));
        assert_eq!(next(b"* X {99999999999999999999}\r\n", 100), Err(TooLong { max: 100 }));
    }

    #[test]
    fn what_is_dripped_is_read_as_if_it_came_whole() {
        let input = b"* OK Waiting for authentication process to respond..\r\n* OK [CAPABILITY A] {4}\r\n\
                      * LIST () \"/\" {3}\r\na\nb {0}\r\n {2}\n\r\n x\r\n* X {1}\r\na\n+\n* BYE\r\n220 x\r\n\r\nP1 OK {5}\r\n";
        let mut whole = Vec::new();
        let mut rest = &input[..];
        while let Ok(Some(Whole { line, length, .. })) = next(rest, 100) {
            whole.push(line.to_vec());
            rest = &rest[length..];
        }
        assert_eq!((whole.len(), rest), (8, &b""[..]));
        let (mut scanner, mut seen, mut dripped) = (Scanner::default(), Vec::new(), Vec::new());
        for &byte in input {
            seen.push(byte);
            if let Ok(Some(Whole { response, line, length })) = scanner.next(&seen, 100) {
                assert_eq!(response, Response::of(line), "a first line tells what the whole is");
                dripped.push(line.to_vec());
                seen.drain(..length);
            }
        }
        assert_eq!(dripped, whole);
    }

    #[test]
    fn thousands_of_literals_cost_no_more_than_their_bytes() {
        // Looked at from the start for every byte this would take minutes.
        let input = [b"* X", &b"{0}\r\n".repeat(13_000)[..]].concat();
        let mut scanner = Scanner::default();
        for end in 0..input.len() {
            assert_eq!(scanner.next(&input[..end], 65_536), Ok(None));
        }
        assert_eq!(
            scanner.next(&[&input[..], b"x\r\n"].concat(), 1_000),
            Err(TooLong { max: 1_000 })
        );
    }

    #[test]
    fn a_code_is_what_stands_in_brackets() {
        assert_eq!(code(b"[ALERT] x"), Some((&b"ALERT"[..], &b"x"[..])));
        assert_eq!(code(b"[ALERT x"), None);
        assert_eq!(code(b"x [ALERT]"), None);
    }
}
