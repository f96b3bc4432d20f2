//! A YAML document as a tree in which every key and every value knows where it stands.
//!
//! In: the text of a file. Out: [`Node`], or the one mistake that makes it no YAML. Only the part of
//! YAML that a configuration needs is taken: one document of mappings, lists and scalars. Anchors,
//! aliases and tags are refused, so the tree is never larger than the text and means what it
//! shows. A scalar stays text: what it stands for is decided by whoever reads it (`read`, `value`).
//! Limits: [`MAX_DEPTH`] levels; the length of the text is bounded by the caller.
//! Invariant: the keys of one mapping differ. A repeated key is a mistake, not the last one wins.
//! Not here: environment variables (`env`), keys and their types (`file`).

use std::collections::HashMap;
use std::rc::Rc;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError, Span, StrInput};

use super::mistake::{Mark, Mistakes, shown};

/// How deep lists and sections may be nested. The configuration itself needs five levels.
const MAX_DEPTH: usize = 32;

/// One value, with the place where it begins.
#[derive(Clone, Debug)]
pub struct Node {
    pub mark: Mark,
    /// The nearest key above, for messages; empty at the top.
    pub name: Rc<str>,
    pub kind: Kind,
}

#[derive(Clone, Debug)]
pub enum Kind {
    /// Nothing, `~` or `null`.
    Null,
    Scalar(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
    /// A value whose mistake has already been reported.
    Broken,
}

#[derive(Clone, Debug)]
pub struct Entry {
    pub key: Rc<str>,
    pub mark: Mark,
    pub value: Node,
}

impl Node {
    /// A scalar that stands in no file: a default.
    pub fn text(text: String) -> Self {
        Self { mark: Mark::START, name: "".into(), kind: Kind::Scalar(text) }
    }

    /// What this is, in words, for "expected X, found Y".
    pub fn found(&self) -> String {
        match &self.kind {
            Kind::Null | Kind::Broken => "nothing".to_owned(),
            Kind::Scalar(text) if text.is_empty() => "an empty text".to_owned(),
            Kind::Scalar(text) => format!("`{}`", shown(text)),
            Kind::List(_) => "a list".to_owned(),
            Kind::Map(_) => "a section".to_owned(),
        }
    }
}

/// What is no YAML, and where. Behind it nothing can be read.
pub type Fatal = (Mark, String);

/// Reads `text`. An empty document is a `Null` node. Repeated keys and the like are added to
/// `mistakes` and left out of the tree.
///
/// # Errors
/// [`Fatal`], which is not in `mistakes`.
pub fn parse(text: &str, mistakes: &mut Mistakes) -> Result<Node, Fatal> {
    let mut reader = Reader { events: Parser::new_from_str(text), mistakes };
    let mut root = None;
    loop {
        match reader.next()? {
            (Event::DocumentStart(_), at) if root.is_some() => {
                let what = "a second document begins here, a configuration is one";
                return Err((mark(at.start), what.into()));
            }
            (Event::DocumentStart(_), _) => {
                let (event, at) = reader.next()?;
                root = Some(reader.node(event, at, &"".into(), 0)?);
            }
            (Event::StreamEnd, _) => break,
            _ => {}
        }
    }
    Ok(root.unwrap_or(Node { mark: Mark::START, name: "".into(), kind: Kind::Null }))
}

struct Reader<'t, 'm> {
    events: Parser<'t, StrInput<'t>>,
    mistakes: &'m mut Mistakes,
}

impl<'t> Reader<'t, '_> {
    fn next(&mut self) -> Result<(Event<'t>, Span), Fatal> {
        match self.events.next_event() {
            Some(Ok(event)) => Ok(event),
            Some(Err(error)) => Err(not_yaml(&error)),
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    fn node(
        &mut self,
        event: Event<'t>,
        at: Span,
        name: &Rc<str>,
        depth: usize,
    ) -> Result<Node, Fatal> {
        let mark = mark(at.start);
        if depth > MAX_DEPTH {
            return Err((mark, format!("nested more than {MAX_DEPTH} levels deep")));
        }
        let kind = match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.refuse(mark, anchor, tag.is_some());
                match &*text {
                    "" | "~" | "null" | "Null" | "NULL" if style == ScalarStyle::Plain => {
                        Kind::Null
                    }
                    _ => Kind::Scalar(text.into_owned()),
                }
            }
            Event::SequenceStart(anchor, tag) => {
                self.refuse(mark, anchor, tag.is_some());
                let mut items = Vec::new();
                loop {
                    match self.next()? {
                        (Event::SequenceEnd, _) => break Kind::List(items),
                        (event, at) => items.push(self.node(event, at, name, depth + 1)?),
                    }
                }
            }
            Event::MappingStart(anchor, tag) => {
                self.refuse(mark, anchor, tag.is_some());
                Kind::Map(self.entries(name, depth)?)
            }
            Event::Alias(_) => {
                self.mistakes.add(mark, "aliases (`*name`) are not taken, write the value out");
                Kind::Broken
            }
            other => return Err((mark, format!("not valid YAML: unexpected {other:?}"))),
        };
        Ok(Node { mark, name: Rc::clone(name), kind })
    }

    fn entries(&mut self, name: &Rc<str>, depth: usize) -> Result<Vec<Entry>, Fatal> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut lines: HashMap<Rc<str>, usize> = HashMap::new();
        loop {
            let (event, at) = self.next()?;
            if event == Event::MappingEnd {
                return Ok(entries);
            }
            let node = self.node(event, at, name, depth + 1)?;
            let key: Option<Rc<str>> = match &node.kind {
                Kind::Scalar(text) => Some(text.as_str().into()),
                Kind::Null => Some("null".into()),
                Kind::List(_) | Kind::Map(_) | Kind::Broken => None,
            };
            let (event, at) = self.next()?;
            let owner = key.as_ref().unwrap_or(name);
            let mut value = self.node(event, at, owner, depth + 1)?;
            if matches!(value.kind, Kind::Null) {
                value.mark = node.mark; // what is not there has no place of its own
            }
            let Some(key) = key else {
                if !matches!(node.kind, Kind::Broken) {
                    let what = format!("a key must be a word, found {}", node.found());
                    self.mistakes.add(node.mark, what);
                }
                continue;
            };
            if let Some(first) = lines.get(&key) {
                let what =
                    format!("key `{}` again, it stands in line {first} already", shown(&key));
                self.mistakes.add(node.mark, what);
                continue;
            }
            lines.insert(Rc::clone(&key), node.mark.line);
            entries.push(Entry { key, mark: node.mark, value });
        }
    }

    fn refuse(&mut self, mark: Mark, anchor: usize, tagged: bool) {
        if anchor != 0 {
            self.mistakes.add(mark, "anchors (`&name`) are not taken, write the value out");
        }
        if tagged {
            self.mistakes.add(mark, "tags (`!name`) are not taken, leave it out");
        }
    }
}

/// The parser counts columns from 0.
fn mark(at: Marker) -> Mark {
    Mark { line: at.line(), column: at.col() + 1 }
}

fn not_yaml(error: &ScanError) -> Fatal {
    (mark(*error.marker()), format!("not valid YAML: {}", error.info()))
}
