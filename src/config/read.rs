//! Turns the tree into values, and goes on after a mistake.
//!
//! serde stops at the first mistake and forgets where it was, so this stands in for it: [`Read`] is
//! what a type must do, [`section!`] writes it for a struct whose fields are the keys of a
//! section, together with the type's JSON Schema. A key is declared once: its name, its type,
//! its default as an operator would write it, and its documentation.
//!
//! Invariant: `None` comes out only after a mistake was recorded. Where there is a way to go on
//! (a default, a list without the bad item) it is taken, so that later rules see as much as
//! possible; with a mistake recorded, none of it becomes [`super::Settings`].

use schemars::{JsonSchema, Schema, json_schema};
use serde_yaml::Value;

use super::text::mistake::{Mark, Mistakes, shown};
use super::text::yaml::{Entry, Kind, Node};

/// A value that can stand in the file.
pub trait Read: Sized {
    /// What is expected here, in words that fit behind "expected".
    const EXPECTED: &'static str;

    /// Whether a key with nothing behind it is as good as no key: an operator who comments out all
    /// that stands below a key means that.
    const EMPTY_IS_ABSENT: bool = false;

    fn read(node: &Node, mistakes: &mut Mistakes) -> Option<Self>;

    /// As it would stand in the file: one text for one meaning. Null where nothing would stand there.
    fn show(&self) -> Value;

    /// The value of a key that is not there, unless there must be one.
    fn absent() -> Option<Self> {
        None
    }

    /// What to go on with where [`read`](Self::read) gave nothing and there is no default.
    fn failed() -> Option<Self> {
        None
    }
}

/// Reads a scalar with `parse`, whose error says what would be right.
pub fn scalar<T: Read>(
    node: &Node,
    mistakes: &mut Mistakes,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Option<T> {
    match &node.kind {
        Kind::Scalar(text) => parse(text).map_err(|what| mistakes.add(node.mark, what)).ok(),
        Kind::Broken => None,
        Kind::Null | Kind::List(_) | Kind::Map(_) => {
            mistakes.add(node.mark, format!("expected {}, found {}", T::EXPECTED, node.found()));
            None
        }
    }
}

/// A value and where it stands, for rules that concern more than one value.
#[derive(Clone, Debug)]
pub struct Spanned<T> {
    pub mark: Mark,
    pub value: T,
}

impl<T: Read> Read for Spanned<T> {
    const EXPECTED: &'static str = T::EXPECTED;
    const EMPTY_IS_ABSENT: bool = T::EMPTY_IS_ABSENT;

    fn read(node: &Node, mistakes: &mut Mistakes) -> Option<Self> {
        Some(Self { mark: node.mark, value: T::read(node, mistakes)? })
    }

    fn show(&self) -> Value {
        self.value.show()
    }
}

impl<T: Read> Read for Option<T> {
    const EXPECTED: &'static str = T::EXPECTED;
    const EMPTY_IS_ABSENT: bool = T::EMPTY_IS_ABSENT;

    fn read(node: &Node, mistakes: &mut Mistakes) -> Option<Self> {
        T::read(node, mistakes).map(Some)
    }

    fn show(&self) -> Value {
        self.as_ref().map_or(Value::Null, T::show)
    }

    fn absent() -> Option<Self> {
        Some(None)
    }
}

/// A value whose mistakes do not keep what stands beside it from being looked at; after one it is
/// `None`.
#[derive(Debug)]
pub struct Lenient<T>(pub Option<T>);

impl<T: Read> Read for Lenient<T> {
    const EXPECTED: &'static str = T::EXPECTED;
    const EMPTY_IS_ABSENT: bool = T::EMPTY_IS_ABSENT;

    fn read(node: &Node, mistakes: &mut Mistakes) -> Option<Self> {
        Some(Self(T::read(node, mistakes)))
    }

    fn show(&self) -> Value {
        self.0.show()
    }

    fn failed() -> Option<Self> {
        Some(Self(None))
    }
}

/// A list that may be empty.
impl<T: Read> Read for Vec<T> {
    const EXPECTED: &'static str = "a list";
    const EMPTY_IS_ABSENT: bool = true;

    fn read(node: &Node, mistakes: &mut Mistakes) -> Option<Self> {
        match &node.kind {
            Kind::List(items) => {
                Some(items.iter().filter_map(|item| T::read(item, mistakes)).collect())
            }
            Kind::Broken => None,
            Kind::Null | Kind::Scalar(_) | Kind::Map(_) => {
                let (expected, found) = (T::EXPECTED, node.found());
                let what = format!("expected a list, each item {expected}, found {found}");
                mistakes.add(node.mark, what);
                None
            }
        }
    }

    fn show(&self) -> Value {
        Value::Sequence(self.iter().map(T::show).collect())
    }

    fn absent() -> Option<Self> {
        Some(Vec::new())
    }
}

/// A list with at least one item, after the mistakes are sorted out.
#[derive(Debug)]
pub struct NonEmpty<T>(pub Vec<T>);

impl<T: Read> Read for NonEmpty<T> {
    const EXPECTED: &'static str = "a list with at least one item";
    const EMPTY_IS_ABSENT: bool = true;

    fn read(node: &Node, mistakes: &mut Mistakes) -> Option<Self> {
        if matches!(&node.kind, Kind::List(items) if items.is_empty()) {
            let what = format!("`{}` needs at least one item: {}", node.name, T::EXPECTED);
            mistakes.add(node.mark, what);
        }
        Vec::read(node, mistakes).map(Self)
    }

    fn show(&self) -> Value {
        self.0.show()
    }
}

/// The keys of a mapping, while a struct is read from it.
pub struct Section<'n> {
    node: &'n Node,
    entries: &'n [Entry],
    /// Known keys that are the nearest to an unknown one.
    misspelt: Vec<&'static str>,
}

impl<'n> Section<'n> {
    /// Reports every key that is not in `known`.
    pub fn open(
        node: &'n Node,
        known: &[&'static str],
        expected: &str,
        mistakes: &mut Mistakes,
    ) -> Option<Self> {
        match &node.kind {
            Kind::Map(entries) => {
                let mut misspelt = Vec::new();
                for entry in entries.iter().filter(|entry| !known.contains(&&*entry.key)) {
                    let near = nearest(&entry.key, known);
                    misspelt.extend(near);
                    mistakes.add(entry.mark, unknown_key(&entry.key, near, known));
                }
                Some(Self { node, entries, misspelt })
            }
            Kind::Broken => None,
            Kind::Null | Kind::Scalar(_) | Kind::List(_) => {
                mistakes.add(node.mark, format!("expected {expected}, found {}", node.found()));
                None
            }
        }
    }

    /// The value of `key`; without it `default`, or what its type is when absent.
    pub fn take<T: Read>(
        &self,
        key: &str,
        default: Option<String>,
        mistakes: &mut Mistakes,
    ) -> Option<T> {
        let entry = self.entries.iter().find(|entry| &*entry.key == key);
        let empty = |entry: &&Entry| T::EMPTY_IS_ABSENT && matches!(entry.value.kind, Kind::Null);
        match entry.filter(|entry| !empty(entry)) {
            Some(entry) => T::read(&entry.value, mistakes).or_else(|| or_absent(default)),
            None => or_absent(default).or_else(|| {
                if self.misspelt.contains(&key) {
                    return None; // one mistake, one message
                }
                let place = match &*self.node.name {
                    "" => String::new(),
                    name => format!(" in `{name}`"),
                };
                let mark = entry.map_or(self.node.mark, |entry| entry.mark);
                mistakes.add(mark, format!("missing key `{key}`{place}: {}", T::EXPECTED));
                None
            }),
        }
        .or_else(T::failed)
    }
}

/// The value of a key that is not there.
pub fn or_absent<T: Read>(default: Option<String>) -> Option<T> {
    match default {
        None => T::absent(),
        Some(text) => {
            let mut mistakes = Mistakes::default();
            let value = T::read(&Node::text(text), &mut mistakes);
            debug_assert!(value.is_some(), "a default is no valid value: {mistakes:?}");
            value
        }
    }
}

fn unknown_key(key: &str, near: Option<&str>, known: &[&str]) -> String {
    let start = format!("unknown key `{}`", shown(key));
    match near {
        Some(near) => format!("{start}, the nearest is `{near}`"),
        None => format!("{start}, expected {}", one_of(known)),
    }
}

/// The word that somebody probably meant.
pub fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let word: String = word.chars().take(100).collect::<String>().to_lowercase().replace('-', "_");
    let likeness = |known: &str| strsim::jaro_winkler(&word, known);
    let best = known.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (likeness(best) >= 0.8).then_some(best)
}

/// `a`, `b` or `c`
pub fn one_of(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => quoted.concat(),
    }
}

/// Reads one of a few words.
pub fn word<T: Read + Clone>(
    node: &Node,
    mistakes: &mut Mistakes,
    words: &[&'static str],
    values: &[T],
) -> Option<T> {
    scalar(node, mistakes, |text| {
        if let Some(index) = words.iter().position(|word| *word == text) {
            return Ok(values[index].clone());
        }
        let near = nearest(text, words).filter(|_| words.len() > 2); // two are seen at a glance
        let near = near.map(|near| format!(", the nearest is `{near}`"));
        let (all, near) = (one_of(words), near.unwrap_or_default());
        Err(format!("expected {all}, found {}{near}", node.found()))
    })
}

/// A key of a section, for its JSON Schema.
pub struct Property {
    pub key: &'static str,
    /// The lines of its documentation.
    pub about: &'static [&'static str],
    pub schema: Schema,
    pub default: Option<serde_json::Value>,
    pub is_needed: bool,
}

/// The JSON Schema of a section. `needs`: which keys go together, as `anyOf` or `oneOf` lists of them.
pub fn object<const N: usize>(
    about: &[&str],
    needs: &[(&str, serde_json::Value)],
    properties: [Property; N],
) -> Schema {
    let text = |lines: &[&str]| lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ");
    let mut keys = serde_json::Map::new();
    let mut needed = Vec::new();
    for Property { key, about, schema, default, is_needed } in properties {
        let mut schema = schema.to_value();
        schema["description"] = text(about).into();
        if is_needed {
            needed.push(key);
        } else if let Some(kind) = schema.get_mut("type")
            && (kind == "object" || kind == "array")
        {
            *kind = serde_json::json!([kind, "null"]); // a key with nothing below it
        }
        if let Some(default) = default {
            schema["default"] = default;
        }
        keys.insert(key.to_owned(), schema);
    }
    let mut schema = json_schema!({
        "type": "object",
        "description": text(about),
        "properties": keys,
        "additionalProperties": false,
    });
    if !needed.is_empty() {
        schema.insert("required".to_owned(), needed.into());
    }
    for (how, sets) in needs {
        let sets = sets.as_array().into_iter().flatten();
        let each = sets.map(|keys| serde_json::json!({ "required": keys })).collect();
        schema.insert((*how).to_owned(), each);
    }
    schema
}

/// A text that matches `pattern`, or holds a variable.
pub fn patterned(pattern: &str) -> Schema {
    json_schema!({ "type": "string", "pattern": format!(r"^({pattern})$|\$\{{") })
}

/// One of `words`, or a text that holds a variable.
pub fn worded(words: &[&str]) -> Schema {
    json_schema!({ "anyOf": [{ "enum": words }, { "type": "string", "pattern": r"\$\{" }] })
}

/// A type that is one of a few words.
pub trait Word {
    /// As it is written.
    fn word(&self) -> &'static str;
}

/// Describes a type to the JSON Schema in place, without a name of its own.
macro_rules! schema {
    ([$($generics:tt)*] $type:ty, $generator:ident => $schema:expr) => {
        impl<$($generics)*> schemars::JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema($generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
                $schema
            }
        }
    };
}
pub(super) use schema;

/// Describes a type that is one of a few words.
macro_rules! words {
    ($type:ident is $expected:literal { $($word:literal => $value:ident),+ }) => {
        impl Read for $type {
            const EXPECTED: &'static str = $expected;

            fn read(node: &Node, mistakes: &mut Mistakes) -> Option<Self> {
                $crate::config::read::word(node, mistakes, &[$($word),+], &[$(Self::$value),+])
            }

            fn show(&self) -> serde_yaml::Value {
                $crate::config::read::Word::word(self).into()
            }
        }

        impl $crate::config::read::Word for $type {
            fn word(&self) -> &'static str {
                match self { $(Self::$value => $word),+ }
            }
        }

        schema!([] $type, _generator => $crate::config::read::worded(&[$($word),+]));
    };
}
pub(super) use words;

/// Declares a section: a struct with [`Read`] and its JSON Schema. A field is a key. What follows `as`
/// is the kind of value that stands in the file where it differs from the field, and what follows `=`
/// is its default, as it would stand there.
macro_rules! section {
    (
        $(#[doc = $about:literal])*
        $(#[derive($($derive:ident),+)])?
        pub struct $name:ident is $expected:literal $(needs $how:ident $sets:tt)? {
            $(
                $(#[doc = $doc:literal])*
                pub $key:ident: $type:ty $(as $kind:ty)? $(= $default:literal)?,
            )+
        }
    ) => {
        $(#[doc = $about])*
        #[derive(Debug $(, $($derive),+)?)]
        pub struct $name {
            $($(#[doc = $doc])* pub $key: $type,)+
        }

        impl $crate::config::read::Read for $name {
            const EXPECTED: &'static str = $expected;
            const EMPTY_IS_ABSENT: bool = true;

            fn read(
                node: &$crate::config::text::yaml::Node,
                mistakes: &mut $crate::config::text::mistake::Mistakes,
            ) -> Option<Self> {
                use $crate::config::read::{Section, section};
                let known = [$(stringify!($key)),+];
                let section = Section::open(node, &known, Self::EXPECTED, mistakes)?;
                $(let $key = section.take::<section!(@kind $type $(, $kind)?)>(
                    stringify!($key),
                    section!(@default $($default)?),
                    mistakes,
                );)+
                Some(Self { $($key: $key?.into(),)+ })
            }

            fn show(&self) -> serde_yaml::Value {
                use $crate::config::read::section;
                let keys = [$((stringify!($key), section!(@show self.$key $(, $kind)?))),+];
                let present = keys.into_iter().filter(|(_, value)| !value.is_null());
                serde_yaml::Value::Mapping(present.map(|(key, value)| (key.into(), value)).collect())
            }

            fn absent() -> Option<Self> {
                use $crate::config::read::{or_absent, section};
                Some(Self { $($key: or_absent::<section!(@kind $type $(, $kind)?)>(
                    section!(@default $($default)?)
                )?.into(),)+ })
            }
        }

        impl schemars::JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
                use $crate::config::read::{Property, object, or_absent, section};
                object(&[$($about),*], &[$((stringify!($how), serde_json::json!($sets)))?], [$({
                    type Kind = section!(@kind $type $(, $kind)?);
                    Property {
                        key: stringify!($key),
                        about: &[$($doc),*],
                        schema: generator.subschema_for::<Kind>(),
                        default: section!(@json $($default)?),
                        is_needed: or_absent::<Kind>(section!(@default $($default)?)).is_none(),
                    }
                }),+])
            }
        }
    };
    (@kind $type:ty) => { $type };
    (@kind $type:ty, $kind:ty) => { $kind };
    (@show $value:expr) => { $crate::config::read::Read::show(&$value) };
    (@show $value:expr, $kind:ty) => {
        $crate::config::read::Read::show(&<$kind>::from($value))
    };
    (@default) => { None };
    (@default $default:literal) => { Some($default.to_string()) };
    (@json) => { None };
    (@json $default:literal) => { Some(serde_json::json!($default)) };
}
pub(super) use section;

schema!([T: JsonSchema] Spanned<T>, generator => T::json_schema(generator));

schema!([T: JsonSchema] Lenient<T>, generator => T::json_schema(generator));

schema!([T: JsonSchema] NonEmpty<T>, generator => {
    json_schema!({ "type": "array", "items": T::json_schema(generator), "minItems": 1 })
});
