//! SEARCH: all keys of RFC 3501 §6.4.4.
//!
//! In: the keys of a SEARCH command; messages. Out: which match. Strings are compared without regard to
//! case, against text whose transfer encodings and encoded words are decoded; attachments are not looked into.
//! Limits: keys nest [`MAX_DEPTH`] deep.

use std::cell::OnceCell;

use super::date::Date;
use super::mailbox::{Flags, Row, Store, in_ranges};
use super::message::{Part, decoded_words, fields, header_end};
use super::parse::{Args, Error, Set};

const MAX_DEPTH: usize = 50;

#[derive(Debug)]
pub enum Key {
    /// All of them; of none, everything.
    And(Vec<Key>),
    Or(Box<(Key, Key)>),
    Not(Box<Key>),
    Has(Flags),
    Recent,
    Numbers(Set),
    Uids(Set),
    Larger(u32),
    Smaller(u32),
    /// Lower case, as all texts here. An empty text matches any field of that name.
    Header(Vec<u8>, String),
    Body(String),
    Text(String),
    Internal(When, Date),
    Sent(When, Date),
}

#[derive(Clone, Copy, Debug)]
pub enum When {
    Before,
    On,
    Since,
}

impl When {
    fn holds(self, date: Date, limit: Date) -> bool {
        match self {
            Self::Before => date < limit,
            Self::On => date == limit,
            Self::Since => date >= limit,
        }
    }
}

/// Reads `CHARSET name` if it is there; `false` if it is one that this server does not know.
pub fn charset(args: &mut Args) -> Result<bool, Error> {
    if !args.eat_word("CHARSET") {
        return Ok(true);
    }
    let name = args.astring()?.to_ascii_uppercase();
    args.space()?;
    Ok(matches!(name.as_slice(), b"UTF-8" | b"US-ASCII"))
}

/// The keys up to the command's end; every one has to match.
pub fn parse(args: &mut Args, store: &Store) -> Result<Key, Error> {
    let mut keys = vec![parse_key(args, store, 0)?];
    while args.eat(b' ') {
        keys.push(parse_key(args, store, 0)?);
    }
    args.end()?;
    Ok(Key::And(keys))
}

fn parse_key(args: &mut Args, store: &Store, depth: usize) -> Result<Key, Error> {
    if depth > MAX_DEPTH {
        return Err(Error::Depth);
    }
    if args.peek() == Some(b'(') {
        let keys = args.list(|args| parse_key(args, store, depth + 1))?;
        return if keys.is_empty() {
            Err(Error::Expected("a search key"))
        } else {
            Ok(Key::And(keys))
        };
    }
    if args.at_set() {
        return args.set().map(Key::Numbers);
    }
    let not = |key| Key::Not(Box::new(key));
    let word = args.keyword()?;
    let key = match word.as_str() {
        "ALL" => Key::And(Vec::new()),
        "ANSWERED" => Key::Has(Flags::ANSWERED),
        "DELETED" => Key::Has(Flags::DELETED),
        "DRAFT" => Key::Has(Flags::DRAFT),
        "FLAGGED" => Key::Has(Flags::FLAGGED),
        "SEEN" => Key::Has(Flags::SEEN),
        "UNANSWERED" => not(Key::Has(Flags::ANSWERED)),
        "UNDELETED" => not(Key::Has(Flags::DELETED)),
        "UNDRAFT" => not(Key::Has(Flags::DRAFT)),
        "UNFLAGGED" => not(Key::Has(Flags::FLAGGED)),
        "UNSEEN" => not(Key::Has(Flags::SEEN)),
        "RECENT" => Key::Recent,
        "OLD" => not(Key::Recent),
        "NEW" => Key::And(vec![Key::Recent, not(Key::Has(Flags::SEEN))]),
        "KEYWORD" | "UNKEYWORD" => {
            args.space()?;
            let has = store.keyword(&args.flag()?).map(Key::Has);
            // A keyword that nobody has ever set is on no message.
            let has = has.unwrap_or_else(|| not(Key::And(Vec::new())));
            if word == "KEYWORD" { has } else { not(has) }
        }
        "NOT" => {
            args.space()?;
            not(parse_key(args, store, depth + 1)?)
        }
        "OR" => {
            args.space()?;
            let left = parse_key(args, store, depth + 1)?;
            args.space()?;
            Key::Or(Box::new((left, parse_key(args, store, depth + 1)?)))
        }
        "UID" => {
            args.space()?;
            Key::Uids(args.set()?)
        }
        "LARGER" => {
            args.space()?;
            Key::Larger(args.number()?)
        }
        "SMALLER" => {
            args.space()?;
            Key::Smaller(args.number()?)
        }
        "HEADER" => {
            args.space()?;
            let name = args.astring()?;
            Key::Header(name, text(args)?)
        }
        "BCC" | "CC" | "FROM" | "SUBJECT" | "TO" => Key::Header(word.into_bytes(), text(args)?),
        "BODY" => Key::Body(text(args)?),
        "TEXT" => Key::Text(text(args)?),
        "BEFORE" => Key::Internal(When::Before, date(args)?),
        "ON" => Key::Internal(When::On, date(args)?),
        "SINCE" => Key::Internal(When::Since, date(args)?),
        "SENTBEFORE" => Key::Sent(When::Before, date(args)?),
        "SENTON" => Key::Sent(When::On, date(args)?),
        "SENTSINCE" => Key::Sent(When::Since, date(args)?),
        _ => return Err(Error::Unknown),
    };
    Ok(key)
}

fn text(args: &mut Args) -> Result<String, Error> {
    args.space()?;
    Ok(String::from_utf8_lossy(&args.astring()?).to_lowercase())
}

fn date(args: &mut Args) -> Result<Date, Error> {
    args.space()?;
    let text = args.astring()?;
    let parsed = std::str::from_utf8(&text).ok().and_then(Date::parse);
    parsed.ok_or(Error::Expected("a date such as 1-Feb-1994"))
}

/// A message that is searched; what is costly to know is found out once, if a key asks.
pub struct Candidate<'a> {
    row: &'a Row,
    number: u32,
    /// Of the mailbox: message numbers and UIDs.
    largest: (u32, u32),
    text: OnceCell<String>,
}

impl<'a> Candidate<'a> {
    pub fn new(row: &'a Row, number: u32, largest: (u32, u32)) -> Self {
        Self { row, number, largest, text: OnceCell::new() }
    }

    pub fn matches(&self, key: &Key) -> bool {
        let size = self.row.message.data.len() as u64;
        match key {
            Key::And(keys) => keys.iter().all(|key| self.matches(key)),
            Key::Or(keys) => self.matches(&keys.0) || self.matches(&keys.1),
            Key::Not(key) => !self.matches(key),
            Key::Has(flags) => self.row.flags.contains(*flags),
            Key::Recent => self.row.recent,
            Key::Numbers(set) => in_ranges(&set.ranges(self.largest.0), self.number),
            Key::Uids(set) => in_ranges(&set.ranges(self.largest.1), self.row.uid),
            Key::Larger(than) => size > u64::from(*than),
            Key::Smaller(than) => size < u64::from(*than),
            Key::Header(name, text) => fields(self.header()).any(|field| {
                field.name.eq_ignore_ascii_case(name)
                    && decoded_words(&field.unfolded()).to_lowercase().contains(text)
            }),
            Key::Body(text) => self.body().contains(text),
            Key::Text(text) => {
                decoded_words(self.header()).to_lowercase().contains(text)
                    || self.body().contains(text)
            }
            Key::Internal(when, limit) => when.holds(self.row.message.date.date, *limit),
            Key::Sent(when, limit) => self.sent().is_some_and(|date| when.holds(date, *limit)),
        }
    }

    fn header(&self) -> &'a [u8] {
        let data = &self.row.message.data;
        &data[..header_end(data, &(0..data.len()))]
    }

    fn body(&self) -> &str {
        let data = &self.row.message.data;
        self.text.get_or_init(|| Part::parse(data).text(data).to_lowercase())
    }

    fn sent(&self) -> Option<Date> {
        let field = super::message::field(self.header(), "Date")?;
        Date::parse_header(std::str::from_utf8(&field).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::Piece;
    use crate::sample;

    fn search(text: &str) -> Result<Vec<u32>, Error> {
        let store = Store::new();
        sample::fill(&store);
        let (view, status) = store.open("INBOX", true).unwrap();
        let mut args = Args::new(vec![Piece::Line(text.into())]);
        let key = parse(&mut args, &store)?;
        let count = u32::try_from(status.messages).unwrap();
        let numbered = (1..).zip(&view.rows);
        let hits = numbered.filter(|(number, row)| {
            Candidate::new(row, *number, (count, status.uid_next - 1)).matches(&key)
        });
        Ok(hits.map(|(number, _)| number).collect())
    }

    #[test]
    fn keys_find_the_sample_mail() {
        let all: Vec<u32> = search("ALL").unwrap();
        assert_eq!(search("*").unwrap(), [u32::try_from(all.len()).unwrap()]);
        let table: [(&str, &[u32]); 15] = [
            ("SUBJECT welcome", &[1]),
            ("2,4:3 NOT 3", &[2, 4]),
            ("OR (SUBJECT welcome) UID 2", &[1, 2]),
            ("TEXT \"\u{fc}BERMORGEN\"", &[4]),
            ("SUBJECT \"M\u{fc}nchen\"", &[4]),
            ("BODY welcome NOT ALL", &[]),
            ("HEADER In-Reply-To \"\"", &[6, 7]),
            ("SENTON 2-Mar-2026", &[1]),
            ("ON 2-Mar-2026", &[1]),
            ("BEFORE 3-Mar-2026", &[1]),
            ("SENTBEFORE 3-Mar-2026 SINCE 2-Mar-2026", &[1]),
            ("LARGER 0 SMALLER 1", &[]),
            ("KEYWORD nothing", &[]),
            ("FLAGGED", &[5]),
            ("NEW UID 1:* UNSEEN 3", &[3]),
        ];
        for (text, expected) in table {
            assert_eq!(search(text).unwrap(), expected, "{text}");
        }
        for text in
            ["OLD UNRECENT", "UNKEYWORD", "", "()", "OR ALL", "ON 31-Feb-2026", "ALL)", "NOT "]
        {
            assert!(search(text).is_err(), "{text}");
        }
    }

    #[test]
    fn nesting_is_limited() {
        assert!(search(&format!("{}ALL", "NOT ".repeat(MAX_DEPTH))).is_ok());
        assert!(matches!(search(&format!("{}ALL", "NOT ".repeat(60_000))), Err(Error::Depth)));
        assert!(matches!(search(&"(".repeat(60_000)), Err(Error::Depth)));
    }
}
