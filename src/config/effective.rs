//! The configuration in force: every key with its value, and where the value comes from.
//!
//! In: a file as it was read, and its tree. Out: the same in one spelling for each meaning, with every
//! default: as YAML that reads back to the same settings, as a list of keys, and as the difference to
//! another one. A key is declared in `file` and nowhere else, so none can be missing here.
//! No key holds a secret: secrets stand in files of their own.
//! Not here: the settings that the rest of the program uses (`settings`).

use std::collections::HashMap;

use serde_yaml::Value;

use super::file::File;
use super::read::Read as _;
use super::text::yaml::{Kind, Node};

/// What stands where nothing does.
static NOTHING: Value = Value::Null;

/// Every key with its value. The default has none.
#[derive(Clone, Debug, Default)]
pub struct Effective {
    /// A mapping without nulls.
    root: Value,
    /// The line of each value that stands in the file, by its path.
    written: HashMap<String, usize>,
}

/// One key with a single value.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    /// `timeouts.idle`, `listen[0].address`
    pub path: String,
    pub text: String,
    pub origin: Origin,
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Origin {
    Default,
    /// This line of the configuration file, counted from 1.
    Line(usize),
}

impl Effective {
    pub(super) fn of(file: &File, tree: &Node) -> Self {
        let mut written = HashMap::new();
        lines(tree, String::new(), &mut written);
        Self { root: file.show(), written }
    }

    /// As a configuration file that means the same.
    pub fn yaml(&self) -> String {
        serde_yaml::to_string(&self.root).expect("a tree of texts and numbers is YAML")
    }

    /// The value below a path of keys; null if there is none.
    pub fn at(&self, keys: &[&str]) -> &Value {
        keys.iter().try_fold(&self.root, |value, key| value.get(key)).unwrap_or(&NOTHING)
    }

    /// Every single value, in the order of the documented file.
    pub fn entries(&self) -> Vec<Entry> {
        let mut entries = Vec::new();
        leaves(&self.root, String::new(), &mut |path, value| {
            let origin =
                self.written.get(&path).map_or(Origin::Default, |line| Origin::Line(*line));
            entries.push(Entry { path, text: text(value), origin });
        });
        entries
    }

    /// What `new` changes, a text for each key: `limits.connections 9000 -> 500`, or for lists what has
    /// gone and what has come, `backend.servers -old:143 +new:143`.
    pub fn changes(&self, new: &Self) -> Vec<String> {
        let mut out = Vec::new();
        compare("", &self.root, &new.root, &mut out);
        out
    }
}

/// Where each value below `node` stands.
fn lines(node: &Node, path: String, out: &mut HashMap<String, usize>) {
    match &node.kind {
        Kind::Map(entries) => {
            for entry in entries {
                lines(&entry.value, below(&path, &entry.key), out);
            }
        }
        Kind::List(items) => {
            for (index, item) in items.iter().enumerate() {
                lines(item, format!("{path}[{index}]"), out);
            }
        }
        Kind::Null | Kind::Broken => {}
        Kind::Scalar(_) => _ = out.insert(path, node.mark.line),
    }
}

fn leaves(value: &Value, path: String, each: &mut impl FnMut(String, &Value)) {
    match value {
        Value::Mapping(keys) => {
            for (key, value) in keys {
                leaves(value, below(&path, &text(key)), each);
            }
        }
        Value::Sequence(items) if !items.is_empty() => {
            for (index, item) in items.iter().enumerate() {
                leaves(item, format!("{path}[{index}]"), each);
            }
        }
        _ => each(path, value),
    }
}

fn below(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn compare(path: &str, old: &Value, new: &Value, out: &mut Vec<String>) {
    match (old, new) {
        (old, new) if old == new => {}
        (Value::Mapping(old), Value::Mapping(new)) => {
            let added = new.keys().filter(|key| !old.contains_key(key));
            for key in old.keys().chain(added) {
                let of = |keys: &serde_yaml::Mapping| keys.get(key).cloned().unwrap_or_default();
                compare(&below(path, &text(key)), &of(old), &of(new), out);
            }
        }
        (Value::Sequence(old), Value::Sequence(new)) => compare_lists(path, old, new, out),
        (old, new) => out.push(format!("{path} {} -> {}", text(old), text(new))),
    }
}

/// An item that is a section is known by its first key, which is its address or its file.
fn compare_lists(path: &str, old: &[Value], new: &[Value], out: &mut Vec<String>) {
    let name = |item: &Value| match item {
        Value::Mapping(keys) => keys.values().next().map_or_else(String::new, text),
        other => text(other),
    };
    let names = |items: &[Value]| items.iter().map(name).collect::<Vec<_>>();
    let (before, after) = (names(old), names(new));
    let gone = before.iter().filter(|name| !after.contains(name)).map(|name| format!(" -{name}"));
    let come = after.iter().filter(|name| !before.contains(name)).map(|name| format!(" +{name}"));
    let mut words: String = gone.chain(come).collect();
    if words.is_empty() && before != after {
        words = format!(" now {}", after.join(" ")); // the same in another order
    }
    if !words.is_empty() {
        out.push(format!("{path}{words}"));
    }
    for (name, item) in before.iter().zip(old) {
        if let Some(index) = after.iter().position(|other| other == name) {
            compare(&format!("{path}[{name}]"), item, &new[index], out);
        }
    }
}

/// On one line.
fn text(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Sequence(items) => {
            format!("[{}]", items.iter().map(text).collect::<Vec<_>>().join(", "))
        }
        Value::Mapping(keys) => {
            let keys = keys.iter().map(|(key, value)| format!("{}: {}", text(key), text(value)));
            format!("{{{}}}", keys.collect::<Vec<_>>().join(", "))
        }
        Value::Tagged(tagged) => text(&tagged.value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Effective {
        super::super::parse(text, "test".as_ref(), &|_| None).unwrap().effective
    }

    fn changes(old: &str, new: &str) -> Vec<String> {
        parse(old).changes(&parse(new))
    }

    const OLD: &str = "listen: [{address: '127.0.0.1:993'}]\n\
        tls: {certificates: [{cert: a, key: b}]}\n\
        backend: {servers: [{address: 'old:143'}, {address: 'both:143'}]}\n";

    #[test]
    fn what_differs_is_named_and_nothing_else() {
        let new = "listen: [{address: '127.0.0.1:993'}, {address: '[::1]:1993'}]\n\
                   tls: {certificates: [{cert: a, key: c}], min_version: '1.3', self_signed: {names: [n], dir: d}}\n\
                   backend: {servers: [{address: 'both:143'}, {address: 'new:143'}]}\n\
                   limits: {connections: 500}\n\
                   timeouts: {idle: 45m}\n\
                   metrics: {address: '127.0.0.1:9143'}\n\
                   log: {level: warn}\n";
        assert_eq!(changes(OLD, OLD), Vec::<String>::new());
        assert_eq!(
            changes(OLD, new),
            [
                "listen +[::1]:1993",
                "tls.certificates[a].key b -> c",
                "tls.min_version 1.2 -> 1.3",
                "tls.self_signed none -> {names: [n], dir: d}",
                "backend.servers -old:143 +new:143",
                "limits.connections 9000 -> 500",
                "timeouts.idle 35m -> 45m",
                "log.level info -> warn",
                "metrics none -> {address: 127.0.0.1:9143}",
            ]
        );
        let server = "'old:143', weight: 3, state: drain, tls: {mode: implicit, verify: insecure}";
        let listen = "'127.0.0.1:993', tls: starttls";
        let more = OLD.replace("'old:143'", server).replace("'127.0.0.1:993'", listen);
        assert_eq!(
            changes(OLD, &more),
            [
                "listen[127.0.0.1:993].tls implicit -> starttls",
                "backend.servers[old:143].weight 1 -> 3",
                "backend.servers[old:143].state active -> drain",
                "backend.servers[old:143].tls none -> {mode: implicit, verify: insecure}",
            ]
        );
        let turned =
            OLD.replace("'old:143'}, {address: 'both:143'", "'both:143'}, {address: 'old:143'");
        assert_eq!(changes(OLD, &turned), ["backend.servers now both:143 old:143"]);
    }

    #[test]
    fn two_spellings_of_one_meaning_are_no_change() {
        let spelt = "limits: {line: 8192}\ntimeouts: {login: 1m, idle: 2100s}\nlog: {level: info}\n\
                     metrics:\n";
        assert_eq!(changes(OLD, &format!("{OLD}{spelt}")), Vec::<String>::new());
    }

    #[test]
    fn each_value_has_its_origin() {
        let effective = parse(&format!("{OLD}timeouts:\n  idle: 45m\n"));
        let entry = |path: &str| {
            let mut entries = effective.entries().into_iter();
            let entry = entries.find(|entry| entry.path == path).expect(path);
            (entry.text, entry.origin)
        };
        assert_eq!(entry("timeouts.idle"), ("45m".to_owned(), Origin::Line(5)));
        assert_eq!(entry("timeouts.write"), ("2m".to_owned(), Origin::Default));
        assert_eq!(entry("backend.servers[1].address"), ("both:143".to_owned(), Origin::Line(3)));
        assert_eq!(entry("listen[0].proxy_protocol_from"), ("[]".to_owned(), Origin::Default));
    }
}
