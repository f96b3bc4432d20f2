//! The MIME tree of a message (RFC 5322, 2045, 2046, 2047), as offsets into its octets.
//!
//! In: the octets of a message, with CRLF or bare LF. Out: [`Part`]s, each with the ranges of its header
//! and body, and the decoded text that a search looks at. Any octets are a message: what cannot be
//! understood becomes a leaf of plain text or of octets.
//! Limits: [`MAX_DEPTH`] levels and [`MAX_PARTS`] parts; what lies deeper is a leaf.
//! Own code, because IMAP needs offsets and undecoded headers where mail libraries hand out decoded values.
//! Not here: ENVELOPE and BODYSTRUCTURE (`structure`), BODY[…] (`fetch`).

use std::ops::Range;

use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

const MAX_DEPTH: usize = 20;
const MAX_PARTS: usize = 1000;
/// Parameters of one header field.
const MAX_PARAMETERS: usize = 100;

/// One header field.
#[derive(Clone, Copy, Debug)]
pub struct Field<'a> {
    pub name: &'a [u8],
    /// As written: folded, with blanks around it.
    value: &'a [u8],
    /// The whole field with its line ends.
    pub raw: &'a [u8],
}

impl Field<'_> {
    /// The value on one line, without blanks around it.
    pub fn unfolded(&self) -> Vec<u8> {
        let value = self.value.iter().copied().filter(|byte| !matches!(byte, b'\r' | b'\n'));
        value.collect::<Vec<u8>>().trim_ascii().to_vec()
    }
}

/// The fields of a header, in order. Lines that are not fields are passed over.
pub fn fields(header: &[u8]) -> impl Iterator<Item = Field<'_>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < header.len() {
            let start = at;
            at = line_end(header, at);
            while matches!(header.get(at), Some(b' ' | b'\t')) {
                at = line_end(header, at);
            }
            let raw = &header[start..at];
            if let Some(colon) = memchr::memchr(b':', raw) {
                return Some(Field {
                    name: raw[..colon].trim_ascii(),
                    value: &raw[colon + 1..],
                    raw,
                });
            }
        }
        None
    })
}

/// The first field called `name`, unfolded.
pub fn field(header: &[u8], name: &str) -> Option<Vec<u8>> {
    fields(header)
        .find(|field| field.name.eq_ignore_ascii_case(name.as_bytes()))
        .map(|f| f.unfolded())
}

/// After the line that begins at `at`.
fn line_end(data: &[u8], at: usize) -> usize {
    memchr::memchr(b'\n', &data[at..]).map_or(data.len(), |length| at + length + 1)
}

/// A value with parameters: `Content-Type`, `Content-Disposition`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Parameterised {
    pub value: String,
    pub parameters: Vec<(String, String)>,
}

impl Parameterised {
    /// `attachment; filename="a.png"`. Comments are not understood; they are rare and harmless here.
    pub fn parse(field: &[u8]) -> Self {
        let text = String::from_utf8_lossy(field);
        let mut pieces = split_outside_quotes(&text).into_iter();
        let value = pieces.next().unwrap_or_default().trim().to_owned();
        let parameters = pieces.filter_map(|piece| {
            let (name, value) = piece.split_once('=')?;
            let value = value.trim();
            let quoted =
                value.strip_prefix('"').map(|inner| inner.strip_suffix('"').unwrap_or(inner));
            let value = quoted.map_or_else(|| value.to_owned(), unescape);
            Some((name.trim().to_ascii_lowercase(), value)).filter(|(name, _)| !name.is_empty())
        });
        let parameters = parameters.take(MAX_PARAMETERS).collect();
        Self { value, parameters }
    }

    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

fn split_outside_quotes(text: &str) -> Vec<&str> {
    let (mut pieces, mut start, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (at, character) in text.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ';' if !quoted => {
                pieces.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    pieces.push(&text[start..]);
    pieces
}

fn unescape(text: &str) -> String {
    let mut escaped = false;
    let keep = |character: &char| {
        escaped = *character == '\\' && !escaped;
        !escaped
    };
    text.chars().filter(keep).collect()
}

/// A node of the tree. Ranges are offsets into the message.
#[derive(Debug)]
pub struct Part {
    /// With the empty line that ends it, if there is one.
    pub header: Range<usize>,
    pub body: Range<usize>,
    /// `text`, in lower case.
    pub kind: String,
    /// `plain`, in lower case.
    pub subtype: String,
    pub parameters: Vec<(String, String)>,
    pub content: Content,
}

#[derive(Debug)]
pub enum Content {
    Leaf,
    /// Never empty.
    Multipart(Vec<Part>),
    /// `message/rfc822`: a message of its own, whose ranges still count from the outer one's start.
    Message(Box<Part>),
}

impl Part {
    /// Reads a whole message.
    pub fn parse(data: &[u8]) -> Self {
        parse_part(data, 0..data.len(), ("text", "plain"), 0, &mut 0)
    }

    /// The part that a section such as `2.1` names (RFC 3501 §6.4.5); `self` is the message.
    pub fn find(&self, path: &[u32]) -> Option<&Part> {
        // A message is not numbered itself: its only body is part 1, or its parts are.
        let (mut part, mut is_message) = (self, true);
        for (level, number) in path.iter().enumerate() {
            if level > 0 {
                (part, is_message) = match &part.content {
                    Content::Message(inner) => (inner.as_ref(), true),
                    Content::Multipart(_) => (part, false),
                    Content::Leaf => return None,
                };
            }
            match &part.content {
                Content::Multipart(children) => {
                    part = children.get(usize::try_from(*number).ok()?.checked_sub(1)?)?;
                }
                _ if is_message && *number == 1 => {}
                _ => return None,
            }
        }
        Some(part)
    }

    fn show_as(&mut self, kind: &str, subtype: &str) {
        (self.kind, self.subtype) = (kind.to_owned(), subtype.to_owned());
        self.parameters.clear();
    }

    /// The leaf's octets without their transfer encoding.
    pub fn decoded(&self, data: &[u8]) -> Vec<u8> {
        let body = &data[self.body.clone()];
        let encoding = field(&data[self.header.clone()], "Content-Transfer-Encoding");
        match encoding.unwrap_or_default().to_ascii_lowercase().as_slice() {
            b"base64" => base64_lenient(body),
            b"quoted-printable" => quoted_printable(body, false),
            _ => body.to_vec(),
        }
    }

    /// Every text of the message, decoded, and every header inside it, for a search.
    pub fn text(&self, data: &[u8]) -> String {
        let mut text = String::new();
        self.push_text(data, &mut text);
        text
    }

    fn push_text(&self, data: &[u8], text: &mut String) {
        match &self.content {
            Content::Multipart(children) => {
                for child in children {
                    text.push_str(&decoded_words(&data[child.header.clone()]));
                    child.push_text(data, text);
                }
            }
            Content::Message(inner) => {
                text.push_str(&decoded_words(&data[inner.header.clone()]));
                inner.push_text(data, text);
            }
            Content::Leaf if self.kind == "text" => {
                let charset = self.parameters.iter().find(|(name, _)| name == "charset");
                let charset = charset.map_or("utf-8", |(_, value)| value);
                text.push_str(&to_utf8(&self.decoded(data), charset));
                text.push('\n');
            }
            Content::Leaf => {}
        }
    }
}

/// Where the body of a message or part begins: after the first empty line.
pub fn header_end(data: &[u8], range: &Range<usize>) -> usize {
    let mut at = range.start;
    while at < range.end {
        let end = line_end(&data[..range.end], at);
        if matches!(&data[at..end], b"\r\n" | b"\n") {
            return end;
        }
        at = end;
    }
    range.end
}

fn parse_part(
    data: &[u8],
    range: Range<usize>,
    default: (&str, &str),
    depth: usize,
    parts: &mut usize,
) -> Part {
    *parts += 1;
    let split = header_end(data, &range);
    let (header, body) = (range.start..split, split..range.end);
    let content_type = field(&data[header.clone()], "Content-Type");
    let parsed = Parameterised::parse(&content_type.unwrap_or_default());
    let boundary = parsed.parameter("boundary").map(str::to_owned);
    let (kind, subtype) = match parsed.value.split_once('/') {
        Some((kind, subtype)) if is_token(kind.trim()) && is_token(subtype.trim()) => {
            (kind.trim().to_ascii_lowercase(), subtype.trim().to_ascii_lowercase())
        }
        _ => (default.0.to_owned(), default.1.to_owned()),
    };
    let parameters = parsed.parameters;
    let mut part = Part { header, body, kind, subtype, parameters, content: Content::Leaf };
    match (part.kind.as_str(), part.subtype.as_str()) {
        ("multipart", subtype) => {
            let default =
                if subtype == "digest" { ("message", "rfc822") } else { ("text", "plain") };
            let mut children = Vec::new();
            if depth < MAX_DEPTH {
                for range in split_multipart(data, &part.body, &boundary.unwrap_or_default()) {
                    if *parts < MAX_PARTS {
                        children.push(parse_part(data, range, default, depth + 1, parts));
                    }
                }
            }
            if children.is_empty() {
                // A multipart without parts has no BODYSTRUCTURE; shown as text, people can read it.
                part.show_as("text", "plain");
            } else {
                part.content = Content::Multipart(children);
            }
        }
        ("message", "rfc822") if depth < MAX_DEPTH && *parts < MAX_PARTS => {
            let inner = parse_part(data, part.body.clone(), ("text", "plain"), depth + 1, parts);
            part.content = Content::Message(Box::new(inner));
        }
        ("message", "rfc822") => part.show_as("application", "octet-stream"),
        _ => {}
    }
    part
}

fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|b| b.is_ascii_graphic() && !b"()<>@,;:\\\"/[]?=".contains(&b))
}

/// The parts between the delimiters (RFC 2046 §5.1.1), without the line end that belongs to each.
fn split_multipart(data: &[u8], body: &Range<usize>, boundary: &str) -> Vec<Range<usize>> {
    let (mut parts, mut open) = (Vec::new(), None);
    let mut at = body.start;
    if boundary.is_empty() {
        return parts;
    }
    while at < body.end && parts.len() < MAX_PARTS {
        let end = line_end(&data[..body.end], at);
        let line = data[at..end].trim_ascii_end();
        let rest = line.strip_prefix(b"--").and_then(|line| line.strip_prefix(boundary.as_bytes()));
        if matches!(rest, Some(b"" | b"--")) {
            if let Some(start) = open {
                let line_break = match &data[start..at] {
                    [.., b'\r', b'\n'] => 2,
                    [.., b'\n'] => 1,
                    _ => 0,
                };
                parts.push(start..at - line_break);
            }
            open = Some(end);
            if rest == Some(b"--") {
                return parts;
            }
        }
        at = end;
    }
    if let Some(start) = open.filter(|start| *start < body.end) {
        parts.push(start..body.end); // cut short: what is there is shown
    }
    parts
}

/// Base64 as mail has it: broken into lines, perhaps cut short, perhaps with rubbish in between.
fn base64_lenient(text: &[u8]) -> Vec<u8> {
    let config = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true);
    let engine = GeneralPurpose::new(&base64::alphabet::STANDARD, config);
    let in_alphabet = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    let mut symbols: Vec<u8> =
        text.iter().copied().take_while(|byte| *byte != b'=').filter(in_alphabet).collect();
    if symbols.len() % 4 == 1 {
        symbols.pop();
    }
    engine.decode(symbols).unwrap_or_default()
}

/// Quoted-printable (RFC 2045 §6.7), or the `Q` of encoded words, where `_` is a space.
fn quoted_printable(text: &[u8], is_word: bool) -> Vec<u8> {
    let hex = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let mut decoded = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        at += 1;
        match byte {
            b'_' if is_word => decoded.push(b' '),
            b'=' => match (hex(text.get(at)), hex(text.get(at + 1))) {
                (Some(high), Some(low)) => {
                    decoded
                        .push(u8::try_from(high * 16 + low).expect("two hex digits fit an octet"));
                    at += 2;
                }
                _ if text[at..].starts_with(b"\r\n") => at += 2,
                _ if text[at..].starts_with(b"\n") => at += 1,
                _ => decoded.push(b'='),
            },
            byte => decoded.push(*byte),
        }
    }
    decoded
}

/// Text in UTF-8. Only the charsets that legacy mail is full of; others pass as if they were UTF-8.
fn to_utf8(text: &[u8], charset: &str) -> String {
    let latin1 = ["iso-8859-1", "iso-8859-15", "windows-1252", "latin1"];
    if latin1.iter().any(|known| charset.eq_ignore_ascii_case(known)) {
        return text.iter().copied().map(char::from).collect();
    }
    String::from_utf8_lossy(text).into_owned()
}

/// Header text with its encoded words (RFC 2047) decoded and its folds removed.
pub fn decoded_words(header: &[u8]) -> String {
    let text = String::from_utf8_lossy(header).replace("\r\n ", " ").replace("\r\n\t", " ");
    let mut decoded = String::with_capacity(text.len());
    let mut rest = text.as_str();
    let mut after_word = false;
    while let Some(start) = rest.find("=?") {
        let before = &rest[..start];
        // Blanks between two encoded words are not part of the text (§6.2).
        if !(after_word && before.trim().is_empty()) {
            decoded.push_str(before);
        }
        if let Some((word, length)) = encoded_word(&rest[start..]) {
            decoded.push_str(&word);
            rest = &rest[start + length..];
            after_word = true;
        } else {
            decoded.push_str("=?");
            rest = &rest[start + 2..];
            after_word = false;
        }
    }
    decoded.push_str(rest);
    decoded
}

/// The word at the start of `text`, and how long it was.
fn encoded_word(text: &str) -> Option<(String, usize)> {
    let mut fields = text.strip_prefix("=?")?.splitn(4, '?');
    let (charset, encoding, encoded) = (fields.next()?, fields.next()?, fields.next()?);
    // RFC 2047 §2 allows 75; without a limit a header full of openings costs its square.
    let ends = fields.next()?.starts_with('=') && charset.len() + encoded.len() < 1000;
    let octets = match encoding {
        "B" | "b" if ends => base64_lenient(encoded.as_bytes()),
        "Q" | "q" if ends => quoted_printable(encoded.as_bytes(), true),
        _ => return None,
    };
    let length = "=?".len() + charset.len() + 1 + encoding.len() + 1 + encoded.len() + "?=".len();
    Some((to_utf8(&octets, charset), length))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NESTED: &str = concat!(
        "Subject: outer\r\nContent-Type: multipart/mixed; boundary=\"a;b\"\r\n\r\npreamble\r\n",
        "--a;b\r\n\r\nfirst\r\n--a;b\r\nContent-Type: message/rfc822\r\n\r\n",
        "Subject: inner\r\nContent-Type: multipart/alternative; boundary=x\r\n\r\n",
        "--x\r\n\r\none\r\n--x\r\nContent-Type: text/html\r\n\r\n<b>two</b>\r\n--x--\r\n\r\n",
        "--a;b--\r\nepilogue",
    );

    fn body(path: &[u32]) -> Option<&'static str> {
        let tree = Part::parse(NESTED.as_bytes());
        tree.find(path).map(|part| &NESTED[part.body.clone()])
    }

    #[test]
    fn parts_are_found_by_their_numbers() {
        assert_eq!(body(&[1]), Some("first"));
        assert_eq!(body(&[2, 1]), Some("one"));
        assert_eq!(body(&[2, 2]), Some("<b>two</b>"));
        for path in [&[3][..], &[1, 1], &[2, 3], &[2, 1, 1], &[0]] {
            assert_eq!(body(path), None, "{path:?}");
        }
        let plain = Part::parse(b"A: b\n\nbody");
        assert_eq!(plain.find(&[1]).unwrap().body, 6..10);
        assert!(plain.find(&[1, 1]).is_none() && plain.find(&[2]).is_none());
    }

    #[test]
    fn text_is_decoded_for_searching() {
        let mail = concat!(
            "Subject: =?utf-8?B?R3LDvMOf?= =?iso-8859-1?q?_aus_K=F6ln?=\r\n",
            "Content-Transfer-Encoding: quoted-printable\r\n\r\nGr=C3=BC=\r\n=C3=9Fe =zz",
        );
        let tree = Part::parse(mail.as_bytes());
        assert!(
            decoded_words(&mail.as_bytes()[tree.header.clone()]).contains("Subject: Grüß aus Köln")
        );
        assert_eq!(tree.text(mail.as_bytes()), "Grüße =zz\n");
        assert_eq!(base64_lenient(b"SGFs\r\nbG8=junk"), b"Hallo");
    }

    #[test]
    fn broken_multiparts_are_leaves() {
        for mail in [
            "Content-Type: multipart/mixed\r\n\r\nx",
            "Content-Type: multipart/mixed; boundary=b\r\n\r\nnothing",
            "Content-Type: multipart/mixed; boundary=b\r\n\r\n--b--\r\n",
        ] {
            let tree = Part::parse(mail.as_bytes());
            assert!(matches!(tree.content, Content::Leaf));
            assert_eq!(tree.kind, "text");
        }
    }

    #[test]
    fn nesting_is_limited() {
        let mail = "Content-Type: message/rfc822\r\n\r\n".repeat(1000);
        let mut part = &Part::parse(mail.as_bytes());
        let mut depth = 0;
        while let Content::Message(inner) = &part.content {
            (part, depth) = (inner, depth + 1);
        }
        assert_eq!((depth, part.kind.as_str()), (MAX_DEPTH, "application"));
    }
}
