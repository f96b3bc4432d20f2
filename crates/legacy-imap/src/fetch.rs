//! What FETCH asks for, and the response to it (RFC 3501 §6.4.5, §7.4.2).
//!
//! In: the items of a FETCH command; a message. Out: one untagged FETCH response. Large bodies go to the
//! socket from where they lie; nothing is copied but headers picked by name.
//! Limits: an item asked for twice is sent once.
//! Not here: which messages, `\Seen` and UID FETCH's own UID (`selected`).

use std::borrow::Cow;

use super::mailbox::Row;
use super::message::{Content, Part, fields, header_end};
use super::parse::{Args, Error};
use super::structure::{push_envelope, push_string, push_structure};
use super::wire::{self, Wire};

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Item {
    Flags,
    Uid,
    InternalDate,
    Size,
    Envelope,
    Structure { extended: bool },
    Section(Section),
}

/// `BODY[2.HEADER]<0.100>` and the older names of the same.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Section {
    /// What the response calls it.
    label: Vec<u8>,
    path: Vec<u32>,
    text: Text,
    /// First octet and how many.
    partial: Option<(u32, u32)>,
    /// Reading it marks the message as seen.
    pub sets_seen: bool,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Text {
    Whole,
    Header,
    HeaderFields { names: Vec<Vec<u8>>, except: bool },
    Body,
    Mime,
}

/// One item, a macro, or a list of items.
pub fn parse(args: &mut Args) -> Result<Vec<Item>, Error> {
    let mut items = Vec::new();
    if args.peek() == Some(b'(') {
        for item in args.list(|args| parse_item(args, false))? {
            push_new(&mut items, item);
        }
    } else {
        push_new(&mut items, parse_item(args, true)?);
    }
    Ok(items)
}

fn push_new(items: &mut Vec<Item>, new: Vec<Item>) {
    for item in new {
        if !items.contains(&item) {
            items.push(item);
        }
    }
}

fn parse_item(args: &mut Args, macros: bool) -> Result<Vec<Item>, Error> {
    let word = args.take_while(|byte| byte.is_ascii_alphanumeric() || byte == b'.');
    let word = String::from_utf8_lossy(word).to_ascii_uppercase();
    let fast = [Item::Flags, Item::InternalDate, Item::Size];
    let old = |text, sets_seen| {
        let label = word.clone().into_bytes();
        Item::Section(Section { label, path: Vec::new(), text, partial: None, sets_seen })
    };
    let item = match word.as_str() {
        "FAST" if macros => return Ok(fast.into()),
        "ALL" if macros => return Ok(fast.into_iter().chain([Item::Envelope]).collect()),
        "FULL" if macros => {
            let body = Item::Structure { extended: false };
            return Ok(fast.into_iter().chain([Item::Envelope, body]).collect());
        }
        "FLAGS" => Item::Flags,
        "UID" => Item::Uid,
        "INTERNALDATE" => Item::InternalDate,
        "RFC822.SIZE" => Item::Size,
        "ENVELOPE" => Item::Envelope,
        "BODYSTRUCTURE" => Item::Structure { extended: true },
        "RFC822" => old(Text::Whole, true),
        "RFC822.HEADER" => old(Text::Header, false),
        "RFC822.TEXT" => old(Text::Body, true),
        "BODY" if args.peek() == Some(b'[') => Item::Section(parse_section(args, true)?),
        "BODY.PEEK" => Item::Section(parse_section(args, false)?),
        "BODY" => Item::Structure { extended: false },
        _ => return Err(Error::Unknown),
    };
    Ok(vec![item])
}

fn parse_section(args: &mut Args, sets_seen: bool) -> Result<Section, Error> {
    args.expect(b'[', "a section in brackets")?;
    let spec = args.take_while(|byte| byte.is_ascii_alphanumeric() || byte == b'.');
    let spec = String::from_utf8_lossy(spec).to_ascii_uppercase();
    let mut path = Vec::new();
    let mut rest = spec.as_str();
    while rest.starts_with(|first: char| first.is_ascii_digit()) {
        let (number, after) = rest.split_once('.').unwrap_or((rest, ""));
        let number = number.parse().ok().filter(|number| *number > 0);
        path.push(number.ok_or(Error::Expected("part numbers from 1"))?);
        if after.is_empty() && rest.ends_with('.') {
            return Err(Error::Expected("a part's number or name after the dot"));
        }
        rest = after;
    }
    let mut label = format!("BODY[{spec}").into_bytes();
    let text = match rest {
        "" => Text::Whole,
        "HEADER" => Text::Header,
        "TEXT" => Text::Body,
        "MIME" if !path.is_empty() => Text::Mime,
        "HEADER.FIELDS" | "HEADER.FIELDS.NOT" => {
            args.space()?;
            let names = args.list(Args::astring)?;
            let mut separator: &[u8] = b" (";
            for name in &names {
                label.extend_from_slice(separator);
                if name.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
                    && !name.is_empty()
                {
                    label.extend_from_slice(name);
                } else {
                    push_string(&mut label, name);
                }
                separator = b" ";
            }
            if names.is_empty() {
                return Err(Error::Expected("names of header fields"));
            }
            label.push(b')');
            Text::HeaderFields { names, except: rest.ends_with("NOT") }
        }
        _ => return Err(Error::Unknown),
    };
    args.expect(b']', "a closing bracket")?;
    label.push(b']');
    let mut partial = None;
    if args.eat(b'<') {
        let first = args.number()?;
        args.expect(b'.', "a dot and a length")?;
        partial = Some((first, args.nonzero()?));
        args.expect(b'>', "a closing angle bracket")?;
        label.extend_from_slice(format!("<{first}>").as_bytes());
    }
    Ok(Section { label, path, text, partial, sets_seen })
}

impl Section {
    /// The octets, or none where the message has no such part.
    fn of<'a>(&self, data: &'a [u8], tree: &mut Option<Part>) -> Option<Cow<'a, [u8]>> {
        let (header, body) = if self.path.is_empty() {
            let split = header_end(data, &(0..data.len()));
            (0..split, split..data.len())
        } else {
            let part = tree.get_or_insert_with(|| Part::parse(data)).find(&self.path)?;
            match (&self.text, &part.content) {
                (Text::Whole | Text::Mime, _) => (part.header.clone(), part.body.clone()),
                (_, Content::Message(inner)) => (inner.header.clone(), inner.body.clone()),
                _ => return None,
            }
        };
        let text = match &self.text {
            Text::Whole if self.path.is_empty() => Cow::Borrowed(data),
            Text::Whole | Text::Body => Cow::Borrowed(&data[body]),
            Text::Header | Text::Mime => Cow::Borrowed(&data[header]),
            Text::HeaderFields { names, except } => {
                let named =
                    |name: &[u8]| names.iter().any(|wanted| wanted.eq_ignore_ascii_case(name));
                let kept = fields(&data[header]).filter(|field| named(field.name) != *except);
                let mut picked = kept.map(|field| field.raw).collect::<Vec<_>>().concat();
                picked.extend_from_slice(b"\r\n");
                Cow::Owned(picked)
            }
        };
        let Some((first, length)) = self.partial else { return Some(text) };
        let first = (first as usize).min(text.len());
        let last = first.saturating_add(length as usize).min(text.len());
        Some(match text {
            Cow::Borrowed(text) => Cow::Borrowed(&text[first..last]),
            Cow::Owned(text) => Cow::Owned(text[first..last].to_vec()),
        })
    }
}

/// Sends `* number FETCH (…)`; `flags` are the names of the row's.
pub async fn respond(
    wire: &mut Wire,
    number: usize,
    row: &Row,
    flags: &str,
    items: &[Item],
) -> Result<(), wire::Error> {
    let data = &row.message.data;
    let mut tree = None;
    wire.push(format!("* {number} FETCH ("));
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            wire.push(" ");
        }
        match item {
            Item::Flags => wire.push(format!("FLAGS ({flags})")),
            Item::Uid => wire.push(format!("UID {}", row.uid)),
            Item::InternalDate => wire.push(format!("INTERNALDATE \"{}\"", row.message.date)),
            Item::Size => wire.push(format!("RFC822.SIZE {}", data.len())),
            Item::Envelope => {
                wire.push("ENVELOPE ");
                let end = header_end(data, &(0..data.len()));
                push_envelope(wire.buffer(), &data[..end]);
            }
            Item::Structure { extended } => {
                wire.push(if *extended { "BODYSTRUCTURE " } else { "BODY " });
                let tree = tree.get_or_insert_with(|| Part::parse(data));
                push_structure(wire.buffer(), data, tree, *extended);
            }
            Item::Section(section) => {
                wire.push(&section.label);
                wire.push(" ");
                match section.of(data, &mut tree) {
                    Some(text) => wire.push_literal(&text).await?,
                    None => wire.push("NIL"),
                }
            }
        }
        wire.flush_batch().await?;
    }
    wire.push(")\r\n");
    wire.flush_batch().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::Piece;

    fn items(text: &str) -> Result<Vec<Item>, Error> {
        let mut args = Args::new(vec![Piece::Line(text.into())]);
        let items = parse(&mut args)?;
        args.end().map(|()| items)
    }

    fn section(text: &str, mail: &str) -> Option<String> {
        let items = items(text).unwrap();
        let [Item::Section(section)] = &items[..] else { panic!("{text} is not one section") };
        let text = section.of(mail.as_bytes(), &mut None)?;
        Some(String::from_utf8(text.into_owned()).unwrap())
    }

    #[test]
    fn sections_pick_what_they_name() {
        let inner = "Subject: in\r\n\r\nINNER\r\n";
        let mail = format!(
            "A: 1\r\nB: 2\r\n 3\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n\
             --b\r\nC: 4\r\n\r\nfirst\r\n--b\r\nContent-Type: message/rfc822\r\n\r\n{inner}\r\n--b--\r\n"
        );
        let table = [
            ("BODY[]", Some(mail.as_str())),
            ("RFC822", Some(&mail)),
            ("BODY[]<3.5>", Some(&mail[3..8])),
            ("BODY[]<4000000000.4000000000>", Some("")),
            ("BODY[HEADER.FIELDS (b x)]", Some("B: 2\r\n 3\r\n\r\n")),
            ("BODY[HEADER.FIELDS.NOT (CONTENT-TYPE b)]", Some("A: 1\r\n\r\n")),
            ("BODY[1]", Some("first")),
            ("BODY.PEEK[1.MIME]", Some("C: 4\r\n\r\n")),
            ("BODY[2]", Some(inner)),
            ("BODY[2.HEADER]", Some("Subject: in\r\n\r\n")),
            ("BODY[2.TEXT]", Some("INNER\r\n")),
            ("BODY[2.1]", Some("INNER\r\n")),
            ("BODY[1.TEXT]", None),
            ("BODY[3]", None),
        ];
        for (text, expected) in table {
            assert_eq!(section(text, &mail).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn macros_stand_alone_and_doubles_are_sent_once() {
        assert_eq!(items("FULL").unwrap().len(), 5);
        assert_eq!(items("(UID FLAGS uid)").unwrap(), [Item::Uid, Item::Flags]);
        for text in [
            "",
            "(ALL)",
            "BODY[",
            "BODY[1.]",
            "BODY[0]",
            "BODY[MIME]",
            "BODY[X]",
            "BODY[]<0.0>",
            "BODY[HEADER.FIELDS ()]",
            "BODY.PEEK",
            "FLAGS UID",
            "BODY[1..2]",
            "BODY[99999999999]",
        ] {
            assert!(items(text).is_err(), "{text}");
        }
    }
}
