//! The ID command (RFC 2971): read what the client says of itself, drop what a trusting backend would
//! believe, write the rest.
//!
//! Dovecot and others take `x-originating-ip`, `x-session-id`, `x-forward-*` and more from an
//! address that they trust, and behind us every client comes from such an address. So no key that
//! begins with `x-` ever goes on, with or without blanks around it, which a server may trim. One is
//! read: `x-proxy-ttl`, how many proxies there may still be, since whoever lies about it can only
//! cut himself off; where it was said, one less goes on, so that a loop through several kinds of
//! proxies ends. Limits (RFC 2971 §3.3): 30 pairs, keys of 30 octets, values of 1024; written,
//! [`MAX_STRING`] and [`MAX_LINE`], since what is too long for a server would end its connection
//! with us, and a client must not be able to do that.
//! Not here: what we say of a client ([`super::introduction`]).

use super::command::{Error, Reader};
use super::introduction::hops_after;

const MAX_PAIRS: usize = 30;
const MAX_KEY: usize = 30;
const MAX_VALUE: usize = 1024;
/// Longest quoted string that every server reads, as it is written, its quotes apart: Dovecot's login process says BYE to one
/// of more than 1 KiB.
pub(super) const MAX_STRING: usize = 1000;
/// Longest line that is written: Dovecot's login process reads 8192 bytes, and what it read has to fit, with the login, into one
/// line of 8192 to its authentication process. Pairs that do not fit are left out.
const MAX_LINE: usize = 4096;

/// What we answer: who sits in between, without a version that a scanner could use.
pub const OURS: &[u8] = b"* ID (\"name\" \"imaps-proxy\")\r\n";

/// The fields of one ID command that may go on to the backend; possibly none.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Fields {
    pairs: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    proxy_ttl: Option<u32>,
}

impl Fields {
    /// `arguments`: what stands behind `ID `: `NIL` or a parenthesised list of pairs.
    pub fn parse(arguments: &[u8]) -> Result<Self, Error> {
        let mut reader = Reader(arguments);
        reader.pad();
        if reader.peek() != Some(b'(') {
            return match reader.nstring()? {
                None => reader.end().map(|()| Self::default()),
                Some(_) => Err(Error::Arguments),
            };
        }
        reader.byte(b'(')?;
        reader.pad();
        let mut fields = Self::default();
        // What no line would have room for is not kept either: the client may be silent for long.
        let (mut pairs, mut room) = (0, MAX_LINE);
        while reader.peek() != Some(b')') {
            let key = reader.string()?;
            reader.blanks()?;
            let value = reader.nstring()?;
            if reader.peek() != Some(b')') {
                reader.blanks()?;
            }
            pairs += 1;
            let value_length = value.as_ref().map_or(0, Vec::len);
            if pairs > MAX_PAIRS || key.len() > MAX_KEY || value_length > MAX_VALUE {
                return Err(Error::Arguments);
            }
            let size = written(&key, value.as_deref());
            if key.trim_ascii().eq_ignore_ascii_case(b"x-proxy-ttl") {
                fields.proxy_ttl = value.as_deref().and_then(number).or(fields.proxy_ttl);
            } else if may_pass(&key)
                && fits_quoted(&key)
                && value.as_deref().is_none_or(fits_quoted)
                && size <= room
            {
                room -= size;
                fields.pairs.push((key, value));
            }
        }
        reader.byte(b')')?;
        reader.end()?;
        Ok(fields)
    }

    /// No field goes on.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty() && self.proxy_ttl.is_none()
    }

    /// Bytes that go on.
    pub fn size(&self) -> usize {
        self.pairs.iter().map(|(key, value)| written(key, value.as_deref())).sum()
    }

    /// How many proxies there may still be, ourselves included, if the client is one that says so.
    pub fn proxy_ttl(&self) -> Option<u32> {
        self.proxy_ttl
    }

    /// Appends `tag ID (…)` as the backend gets it.
    pub fn write(&self, tag: &[u8], out: &mut Vec<u8>) {
        let mut list = List::begin(tag, out);
        if self.proxy_ttl.is_some()
            && let Some(hops) = hops_after(self.proxy_ttl)
        {
            list.pair(b"x-proxy-ttl", Some(hops.to_string().as_bytes()));
        }
        list.fields(self);
        list.end();
    }
}

/// `tag ID (…)` while it is written.
pub(super) struct List<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
    pairs: usize,
}

impl<'a> List<'a> {
    pub(super) fn begin(tag: &[u8], out: &'a mut Vec<u8>) -> Self {
        let start = out.len();
        out.extend_from_slice(tag);
        out.extend_from_slice(b" ID (");
        Self { out, start, pairs: 0 }
    }

    /// Leaves the pair out if the list is full.
    pub(super) fn pair(&mut self, key: &[u8], value: Option<&[u8]>) {
        debug_assert!(quotable(key) && value.is_none_or(quotable));
        if self.pairs == MAX_PAIRS {
            return;
        }
        let before = self.out.len();
        if self.pairs > 0 {
            self.out.push(b' ');
        }
        write_quoted(key, self.out);
        self.out.push(b' ');
        match value {
            Some(value) => write_quoted(value, self.out),
            None => self.out.extend_from_slice(b"NIL"),
        }
        if self.out.len() - self.start > MAX_LINE {
            self.out.truncate(before);
        } else {
            self.pairs += 1;
        }
    }

    pub(super) fn fields(&mut self, fields: &Fields) {
        for (key, value) in &fields.pairs {
            self.pair(key, value.as_deref());
        }
    }

    pub(super) fn end(self) {
        self.out.extend_from_slice(b")\r\n");
    }
}

/// Digits only; what is too large to count is as good as no limit.
fn number(text: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(text).ok()?;
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u32::MAX))
}

fn may_pass(key: &[u8]) -> bool {
    !key.trim_ascii().get(..2).is_some_and(|start| start.eq_ignore_ascii_case(b"x-"))
}

/// Whether every IMAP server reads `text` as a quoted string (RFC 3501 §9: 7-bit, no CR, LF, NUL).
/// Controls are left out too: what they do in a backend's log is nobody's wish.
pub(crate) fn quotable(text: &[u8]) -> bool {
    text.iter().all(|byte| (b' '..0x7f).contains(byte))
}

/// Whether every IMAP server takes `text` as a quoted string, however many of its bytes have to be escaped.
pub(super) fn fits_quoted(text: &[u8]) -> bool {
    quotable(text) && quoted_length(text) - 2 <= MAX_STRING
}

/// Bytes of a pair as it is written, with the blanks behind its two halves.
fn written(key: &[u8], value: Option<&[u8]>) -> usize {
    quoted_length(key) + value.map_or(3, quoted_length) + 2
}

fn quoted_length(text: &[u8]) -> usize {
    text.len() + text.iter().filter(|byte| is_escaped(**byte)).count() + 2
}

fn is_escaped(byte: u8) -> bool {
    matches!(byte, b'"' | b'\\')
}

pub(crate) fn write_quoted(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    for &byte in text {
        if is_escaped(byte) {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed_on(arguments: &[u8]) -> Result<String, Error> {
        let fields = Fields::parse(arguments)?;
        let mut out = Vec::new();
        fields.write(b"P0", &mut out);
        Ok(String::from_utf8(out).expect("fields that pass are ASCII"))
    }

    #[test]
    fn what_a_backend_would_believe_is_dropped() {
        let id =
            br#"("name" "Thun\"derbird" "x-originating-ip" "6.6.6.6" "X-Forward-y" NIL "os" NIL)"#;
        assert_eq!(
            passed_on(id).as_deref(),
            Ok("P0 ID (\"name\" \"Thun\\\"derbird\" \"os\" NIL)\r\n")
        );
        assert_eq!(
            passed_on(b"({16+}\r\nx-originating-ip \"6.6.6.6\")").as_deref(),
            Ok("P0 ID ()\r\n")
        );
        assert_eq!(passed_on(b"(\"name\" {3}\r\na\r\n)").as_deref(), Ok("P0 ID ()\r\n"));
        // Whoever trims a key would believe it.
        for key in [" x-originating-ip", "x-session-id ", "  X-Forward-y  ", "\tx-a", " x-"] {
            let id = format!("(\"{key}\" \"6.6.6.6\" \" os\" \"x\")");
            assert_eq!(passed_on(id.as_bytes()).as_deref(), Ok("P0 ID (\" os\" \"x\")\r\n"));
        }
    }

    #[test]
    fn of_what_a_backend_would_believe_only_the_time_to_live_is_read() {
        for (value, expected, passed) in [
            ("\"3\"", Some(3), Some(2)),
            ("{1+}\r\n0", Some(0), None),
            ("\"99999999999\"", Some(u32::MAX), Some(6)),
            ("\"\"", None, None),
            ("\"+3\"", None, None),
            ("\"-1\"", None, None),
            ("NIL", None, None),
        ] {
            let id = format!("(\"name\" \"x\" \"X-Proxy-TTL\" {value})");
            let ttl = Fields::parse(id.as_bytes()).map(|fields| fields.proxy_ttl());
            assert_eq!(ttl, Ok(expected), "{value}");
            let passed = passed.map(|ttl| format!("\"x-proxy-ttl\" \"{ttl}\" "));
            let id_then = format!("P0 ID ({}\"name\" \"x\")\r\n", passed.unwrap_or_default());
            assert_eq!(passed_on(id.as_bytes()), Ok(id_then));
        }
    }

    #[test]
    fn a_list_that_no_login_process_reads_gets_shorter() {
        let value = "v".repeat(MAX_STRING);
        let pairs: Vec<String> = (0..MAX_PAIRS).map(|n| format!("\"k{n}\" \"{value}\"")).collect();
        let out = passed_on(format!("({})", pairs.join(" ")).as_bytes()).expect("a list");
        assert!(out.starts_with("P0 ID (\"k0\" \"v") && out.ends_with("v\")\r\n"));
        assert!((3000..=MAX_LINE + 3).contains(&out.len()), "{}", out.len());
        let fields = Fields::parse(format!("({})", pairs.join(" ")).as_bytes()).expect("a list");
        assert!((3000..=MAX_LINE).contains(&fields.size()), "no more than that is kept");
    }

    #[test]
    fn a_string_that_is_too_long_as_it_is_written_is_left_out() {
        for (value, passes) in [
            ("v".repeat(MAX_STRING), true),
            ("v".repeat(MAX_STRING + 1), false),
            ("\\\"".repeat(MAX_STRING / 2), true),
            ("\\\"".repeat(MAX_STRING / 2 + 1), false),
            ("\\\\".repeat(MAX_VALUE), false),
        ] {
            let id = format!("(\"name\" \"{value}\" \"os\" \"x\")");
            let out = passed_on(id.as_bytes()).expect("a list");
            assert_eq!(out.contains("name"), passes, "{} bytes", value.len());
            assert!(out.ends_with("\"os\" \"x\")\r\n"), "the others stay");
        }
    }

    #[test]
    fn what_is_not_an_id_list_is_refused() {
        assert!(Fields::parse(b"nil").is_ok_and(|fields| fields.is_empty()));
        assert!(Fields::parse(b"()").is_ok_and(|fields| fields.is_empty()));
        let many = format!("({})", vec!["\"k\" \"v\""; 31].join(" "));
        let long_key = format!("(\"{}\" \"v\")", "k".repeat(31));
        let long_value = format!("(\"k\" \"{}\")", "v".repeat(1025));
        for bad in ["", "x", "\"x\"", "(\"k\")", "(\"k\" \"v\"", "((\"k\" \"v\"))", "(NIL \"v\")"] {
            assert!(Fields::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        for bad in [many, long_key, long_value, "(".repeat(1000)] {
            assert!(Fields::parse(bad.as_bytes()).is_err(), "{bad:.40}");
        }
    }
}
