//! The ID command (RFC 2971): read what the client says of itself, drop what a trusting backend would
//! believe, write the rest.
//!
//! Dovecot and others take `x-originating-ip`, `x-session-id`, `x-forward-*` and more from an address that
//! they trust, and behind us every client comes from such an address. So no key that begins with `x-` ever
//! goes on. Limits (RFC 2971 §3.3): 30 pairs, keys of 30 octets, values of 1024.

use super::command::{Error, Reader};

const MAX_PAIRS: usize = 30;
const MAX_KEY: usize = 30;
const MAX_VALUE: usize = 1024;

/// What we answer: who sits in between, without a version that a scanner could use.
pub const OURS: &[u8] = b"* ID (\"name\" \"imaps-proxy\")\r\n";

/// The fields of one ID command that may go on to the backend; possibly none.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Fields(Vec<(Vec<u8>, Option<Vec<u8>>)>);

impl Fields {
    /// `arguments`: what stands behind `ID `: `NIL` or a parenthesised list of pairs.
    pub fn parse(arguments: &[u8]) -> Result<Self, Error> {
        let mut reader = Reader(arguments);
        if reader.peek() != Some(b'(') {
            return match reader.nstring()? {
                None => reader.end().map(|()| Self::default()),
                Some(_) => Err(Error::Arguments),
            };
        }
        reader.byte(b'(')?;
        let mut fields = Vec::new();
        let mut pairs = 0;
        while reader.peek() != Some(b')') {
            if pairs > 0 {
                reader.byte(b' ')?;
            }
            let key = reader.string()?;
            reader.byte(b' ')?;
            let value = reader.nstring()?;
            pairs += 1;
            let value_length = value.as_ref().map_or(0, Vec::len);
            if pairs > MAX_PAIRS || key.len() > MAX_KEY || value_length > MAX_VALUE {
                return Err(Error::Arguments);
            }
            if may_pass(&key) && quotable(&key) && value.as_deref().is_none_or(quotable) {
                fields.push((key, value));
            }
        }
        reader.byte(b')')?;
        reader.end()?;
        Ok(Self(fields))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Appends `tag ID (…)` as the backend gets it.
    pub fn write(&self, tag: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(tag);
        out.extend_from_slice(b" ID (");
        for (n, (key, value)) in self.0.iter().enumerate() {
            if n > 0 {
                out.push(b' ');
            }
            write_quoted(key, out);
            out.push(b' ');
            match value {
                Some(value) => write_quoted(value, out),
                None => out.extend_from_slice(b"NIL"),
            }
        }
        out.extend_from_slice(b")\r\n");
    }
}

fn may_pass(key: &[u8]) -> bool {
    !key.get(..2).is_some_and(|start| start.eq_ignore_ascii_case(b"x-"))
}

/// Whether every IMAP server reads `text` as a quoted string (RFC 3501 §9: 7-bit, no CR, LF, NUL).
/// Controls are left out too: what they do in a backend's log is nobody's wish.
pub(crate) fn quotable(text: &[u8]) -> bool {
    text.iter().all(|byte| (b' '..0x7f).contains(byte))
}

pub(crate) fn write_quoted(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    for &byte in text {
        if matches!(byte, b'"' | b'\\') {
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
