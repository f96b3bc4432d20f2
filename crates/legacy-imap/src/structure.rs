//! ENVELOPE, BODY and BODYSTRUCTURE (RFC 3501 §7.4.2).
//!
//! In: a message's octets and its parsed tree. Out: the parenthesised lists, as octets to send. Header
//! values go out as they stand, encoded words and all; what a quoted string cannot hold goes as a
//! literal, so any octets make a well-formed response.
//! Limits: [`MAX_ADDRESSES`] addresses of a field.

use super::message::{Content, Parameterised, Part, field};

const MAX_ADDRESSES: usize = 1000;
/// Longer strings go as literals: some clients read lines of limited length.
const MAX_QUOTED: usize = 1000;

/// A string in the shortest form that can hold it.
pub fn push_string(out: &mut Vec<u8>, text: &[u8]) {
    let plain = |byte: &u8| (b' '..=b'~').contains(byte) || *byte == b'\t';
    if text.len() > MAX_QUOTED || !text.iter().all(plain) {
        out.extend_from_slice(format!("{{{}}}\r\n", text.len()).as_bytes());
        out.extend_from_slice(text);
        return;
    }
    out.push(b'"');
    for byte in text {
        if matches!(byte, b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(*byte);
    }
    out.push(b'"');
}

fn push_nstring(out: &mut Vec<u8>, text: Option<&[u8]>) {
    match text {
        Some(text) => push_string(out, text),
        None => out.extend_from_slice(b"NIL"),
    }
}

/// `("Mon, 2 Mar 2026 …" "subject" ((…)) …)` of the header given.
pub fn push_envelope(out: &mut Vec<u8>, header: &[u8]) {
    let value = |name| field(header, name);
    out.push(b'(');
    push_nstring(out, value("Date").as_deref());
    out.push(b' ');
    push_nstring(out, value("Subject").as_deref());
    let from = addresses(&value("From").unwrap_or_default());
    out.push(b' ');
    push_addresses(out, &from);
    for name in ["Sender", "Reply-To"] {
        out.push(b' ');
        let own = addresses(&value(name).unwrap_or_default());
        // An absent or empty one is the From (RFC 3501 §7.4.2).
        push_addresses(out, if own.is_empty() { &from } else { &own });
    }
    for name in ["To", "Cc", "Bcc"] {
        out.push(b' ');
        push_addresses(out, &addresses(&value(name).unwrap_or_default()));
    }
    out.push(b' ');
    push_nstring(out, value("In-Reply-To").as_deref());
    out.push(b' ');
    push_nstring(out, value("Message-ID").as_deref());
    out.push(b')');
}

/// The four fields of IMAP's address; a group is opened by one with a mailbox and no host, and closed by
/// one with neither.
#[derive(Debug, Default, Eq, PartialEq)]
struct Address {
    name: Option<Vec<u8>>,
    route: Option<Vec<u8>>,
    mailbox: Option<Vec<u8>>,
    host: Option<Vec<u8>>,
}

fn push_addresses(out: &mut Vec<u8>, addresses: &[Address]) {
    if addresses.is_empty() {
        out.extend_from_slice(b"NIL");
        return;
    }
    out.push(b'(');
    for Address { name, route, mailbox, host } in addresses {
        for (separator, text) in [(b'(', name), (b' ', route), (b' ', mailbox), (b' ', host)] {
            out.push(separator);
            push_nstring(out, text.as_deref());
        }
        out.push(b')');
    }
    out.push(b')');
}

enum Token {
    Word(Vec<u8>),
    Special(u8),
    Comment(Vec<u8>),
}

/// The lexical tokens of an address field (RFC 5322 §3.2); a dot counts as part of a word.
fn tokens(value: &[u8]) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut bytes = value.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b' ' | b'\t' => {}
            b'"' | b'(' => {
                let (mut text, mut depth) = (Vec::new(), 1);
                while let Some(inner) = bytes.next() {
                    match inner {
                        b'\\' => text.extend(bytes.next()),
                        b'"' if byte == b'"' => break,
                        b')' if byte == b'(' && depth == 1 => break,
                        inner => {
                            if byte == b'(' {
                                depth += i32::from(inner == b'(') - i32::from(inner == b')');
                            }
                            text.push(inner);
                        }
                    }
                }
                tokens.push(if byte == b'"' { Token::Word(text) } else { Token::Comment(text) });
            }
            b',' | b':' | b';' | b'<' | b'>' | b'@' => tokens.push(Token::Special(byte)),
            first => {
                let mut word = vec![first];
                let in_literal = first == b'[';
                while let Some(next) = bytes.next_if(|next| {
                    if in_literal { *next != b']' } else { !b" \t\"(,:;<>@".contains(next) }
                }) {
                    word.push(next);
                }
                word.extend(bytes.next_if(|next| in_literal && *next == b']'));
                tokens.push(Token::Word(word));
            }
        }
    }
    tokens
}

fn addresses(value: &[u8]) -> Vec<Address> {
    let mut found: Vec<Address> = Vec::new();
    let mut reader = AddressReader::default();
    for token in tokens(value) {
        if found.len() >= MAX_ADDRESSES {
            break;
        }
        match token {
            Token::Word(word) => reader.words.push(word),
            Token::Comment(text) => reader.comment = Some(text),
            Token::Special(b'<') => {
                reader.name = Some(reader.words.join(&b' ')).filter(|name| !name.is_empty());
                reader.words.clear();
                reader.in_angle = true;
            }
            Token::Special(b'>') => reader.in_angle = false,
            Token::Special(b'@') => {
                let local = std::mem::take(&mut reader.words).concat();
                reader.local =
                    Some(local).filter(|local| !local.is_empty()).or(reader.local.take());
            }
            Token::Special(b':') if reader.in_angle => {
                // A source route, `<@a,@b:user@host>`: obsolete, and of no use to anybody.
                reader.words.clear();
                reader.local = None;
            }
            Token::Special(b',') if reader.in_angle => reader.words.clear(),
            Token::Special(b':') => {
                let mailbox = Some(std::mem::take(&mut reader.words).join(&b' '));
                found.push(Address { mailbox, ..Address::default() });
                reader = AddressReader { in_group: true, ..AddressReader::default() };
            }
            Token::Special(separator) => {
                let in_group = reader.in_group;
                found.extend(std::mem::take(&mut reader).finish());
                reader.in_group = in_group && separator != b';';
                if in_group && separator == b';' {
                    found.push(Address::default());
                }
            }
        }
    }
    let in_group = reader.in_group;
    found.extend(reader.finish());
    if in_group {
        found.push(Address::default());
    }
    found
}

#[derive(Default)]
struct AddressReader {
    words: Vec<Vec<u8>>,
    name: Option<Vec<u8>>,
    comment: Option<Vec<u8>>,
    /// What stood before the `@`; what follows it is then in `words`.
    local: Option<Vec<u8>>,
    in_angle: bool,
    in_group: bool,
}

impl AddressReader {
    fn finish(self) -> Option<Address> {
        let rest = self.words.concat();
        let (mailbox, host) = match self.local {
            Some(local) => (local, rest),
            // No host would open a group; this is what UW-IMAP says of such addresses.
            None if !rest.is_empty() => (rest, b".MISSING-HOST-NAME.".to_vec()),
            None => return None,
        };
        let name = self.name.or(self.comment);
        Some(Address { name, route: None, mailbox: Some(mailbox), host: Some(host) })
    }
}

/// BODY, or with `extended` BODYSTRUCTURE.
pub fn push_structure(out: &mut Vec<u8>, data: &[u8], part: &Part, extended: bool) {
    let header = &data[part.header.clone()];
    out.push(b'(');
    if let Content::Multipart(children) = &part.content {
        for child in children {
            push_structure(out, data, child, extended);
        }
        out.push(b' ');
        push_string(out, part.subtype.as_bytes());
        if extended {
            out.push(b' ');
            push_parameters(out, &part.parameters);
            push_extension(out, header);
        }
        out.push(b')');
        return;
    }
    push_string(out, part.kind.as_bytes());
    out.push(b' ');
    push_string(out, part.subtype.as_bytes());
    out.push(b' ');
    if part.kind == "text" && part.parameters.is_empty() {
        out.extend_from_slice(b"(\"charset\" \"us-ascii\")");
    } else {
        push_parameters(out, &part.parameters);
    }
    for name in ["Content-ID", "Content-Description"] {
        out.push(b' ');
        push_nstring(out, field(header, name).as_deref());
    }
    out.push(b' ');
    push_string(
        out,
        &field(header, "Content-Transfer-Encoding").unwrap_or_else(|| b"7bit".to_vec()),
    );
    out.extend_from_slice(format!(" {}", part.body.len()).as_bytes());
    if let Content::Message(inner) = &part.content {
        out.push(b' ');
        push_envelope(out, &data[inner.header.clone()]);
        out.push(b' ');
        push_structure(out, data, inner, extended);
    }
    if part.kind == "text" || matches!(part.content, Content::Message(_)) {
        let lines = memchr::memchr_iter(b'\n', &data[part.body.clone()]).count();
        out.extend_from_slice(format!(" {lines}").as_bytes());
    }
    if extended {
        out.push(b' ');
        push_nstring(out, field(header, "Content-MD5").as_deref());
        push_extension(out, header);
    }
    out.push(b')');
}

fn push_parameters(out: &mut Vec<u8>, parameters: &[(String, String)]) {
    if parameters.is_empty() {
        out.extend_from_slice(b"NIL");
        return;
    }
    let mut separator = b'(';
    for (name, value) in parameters {
        out.push(separator);
        push_string(out, name.as_bytes());
        out.push(b' ');
        push_string(out, value.as_bytes());
        separator = b' ';
    }
    out.push(b')');
}

/// Disposition, language, location.
fn push_extension(out: &mut Vec<u8>, header: &[u8]) {
    out.push(b' ');
    match field(header, "Content-Disposition").map(|value| Parameterised::parse(&value)) {
        Some(Parameterised { value, parameters }) if !value.is_empty() => {
            out.push(b'(');
            push_string(out, value.to_ascii_lowercase().as_bytes());
            out.push(b' ');
            push_parameters(out, &parameters);
            out.push(b')');
        }
        _ => out.extend_from_slice(b"NIL"),
    }
    for name in ["Content-Language", "Content-Location"] {
        out.push(b' ');
        push_nstring(out, field(header, name).as_deref());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(field: &str) -> String {
        let mut out = Vec::new();
        push_addresses(&mut out, &addresses(field.as_bytes()));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn addresses_take_imaps_form() {
        let table = [
            ("a@b.c", r#"((NIL NIL "a" "b.c"))"#),
            (
                r#""A \"x\"" <a.b@c>, d@e (Dee)"#,
                r#"(("A \"x\"" NIL "a.b" "c")("Dee" NIL "d" "e"))"#,
            ),
            ("A B <@r,@s:a@b>", r#"(("A B" NIL "a" "b"))"#),
            (
                "us: a@b, c@d;, e@f",
                r#"((NIL NIL "us" NIL)(NIL NIL "a" "b")(NIL NIL "c" "d")(NIL NIL NIL NIL)(NIL NIL "e" "f"))"#,
            ),
            ("undisclosed:;", r#"((NIL NIL "undisclosed" NIL)(NIL NIL NIL NIL))"#),
            ("a@[127.0.0.1]", r#"((NIL NIL "a" "[127.0.0.1]"))"#),
            ("root", r#"((NIL NIL "root" ".MISSING-HOST-NAME."))"#),
            ("", "NIL"),
            (",,;<>\"", "NIL"),
        ];
        for (field, expected) in table {
            assert_eq!(list(field), expected, "{field}");
        }
    }

    #[test]
    fn structures_are_nested_as_the_message_is() {
        let mail = concat!(
            "Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nhi\r\n--b\r\n",
            "Content-Type: image/png; name=\"a b\"\r\nContent-Disposition: attachment\r\n",
            "Content-Transfer-Encoding: base64\r\n\r\nAAAA\r\n--b--\r\n",
        );
        let mut out = Vec::new();
        push_structure(&mut out, mail.as_bytes(), &Part::parse(mail.as_bytes()), true);
        let expected = concat!(
            r#"(("text" "plain" ("charset" "us-ascii") NIL NIL "7bit" 2 0 NIL NIL NIL NIL)"#,
            r#"("image" "png" ("name" "a b") NIL NIL "base64" 4 NIL ("attachment" NIL) NIL NIL)"#,
            r#" "mixed" ("boundary" "b") NIL NIL NIL)"#,
        );
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn what_quotes_cannot_hold_is_a_literal() {
        let mut out = Vec::new();
        push_string(&mut out, "ü".as_bytes());
        assert_eq!(out, b"{2}\r\n\xc3\xbc");
    }
}
