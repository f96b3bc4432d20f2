//! `${NAME}` and `${NAME:-default}` inside values.
//!
//! In: a tree that is already parsed, and a look-up for variables. Out: the same tree with its
//! scalars expanded. So what a variable holds is always one value: it cannot add a key, a list
//! item or a comment. As in a shell, `:-` also replaces a variable that is set but empty, and a
//! default ends at the first `}`. What was put in is not expanded again. `$$` is a `$`; a `$` before
//! anything else stands for itself. Keys are never expanded.

use std::ffi::OsString;

use super::characters;
use super::mistake::{Mistakes, shown};
use super::yaml::{Kind, Node};

/// Where variables are looked up: `std::env::var_os` in production, a table in tests.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// Expands every scalar below `node`; one with a mistake becomes [`Kind::Broken`].
pub fn expand(node: &mut Node, lookup: Lookup, mistakes: &mut Mistakes) {
    match &mut node.kind {
        Kind::Scalar(text) => match written(text).and_then(|()| expanded(text, lookup)) {
            Ok(new) => *text = new,
            Err(message) => {
                mistakes.add(node.mark, message);
                node.kind = Kind::Broken;
            }
        },
        Kind::List(items) => items.iter_mut().for_each(|item| expand(item, lookup, mistakes)),
        Kind::Map(entries) => {
            entries.iter_mut().for_each(|entry| expand(&mut entry.value, lookup, mistakes));
        }
        Kind::Null | Kind::Broken => {}
    }
}

/// Whether the file itself says nothing that no value may hold: an escape may.
fn written(text: &str) -> Result<(), String> {
    match characters::foreign(text) {
        Some(what) => Err(format!("this value holds {what}, as no value may; take it out")),
        None => Ok(()),
    }
}

fn expanded(text: &str, lookup: Lookup) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(inside) = after.strip_prefix('{') {
            let Some((variable, after)) = inside.split_once('}') else {
                return Err(format!("`{}` has no closing brace", shown(&rest[at..])));
            };
            out.push_str(&value_of(variable, lookup)?);
            rest = after;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    Ok(out)
}

fn value_of(variable: &str, lookup: Lookup) -> Result<String, String> {
    let (name, default) = match variable.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (variable, None),
    };
    let starts_well = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !starts_well || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        let what = shown(variable);
        return Err(format!("`${{{what}}}` is neither `${{NAME}}` nor `${{NAME:-default}}`"));
    }
    let value = lookup(name).map(OsString::into_string).transpose();
    let value = value.map_err(|_| format!("environment variable `{name}` is not UTF-8"))?;
    if let Some(what) = value.as_deref().and_then(characters::foreign) {
        return Err(format!("environment variable `{name}` holds {what}, as no value may"));
    }
    match (value, default) {
        (Some(value), None) => Ok(value),
        (Some(value), Some(_)) if !value.is_empty() => Ok(value),
        (_, Some(default)) => Ok(default.to_owned()),
        (None, None) => Err(format!(
            "environment variable `{name}` is not set; set it, or write `${{{name}:-default}}`"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(name: &str) -> Option<OsString> {
        use std::os::unix::ffi::OsStringExt as _;
        match name {
            "HOST" => Some("legacy".into()),
            "EMPTY" => Some(OsString::new()),
            "WINDOWS" => Some("legacy\r".into()),
            "COLOUR" => Some("\u{1b}[1m".into()),
            "LATIN" => Some(OsString::from_vec(b"caf\xe9".to_vec())),
            "NESTED" => Some("${HOST}: [a, #b]".into()),
            _ => None,
        }
    }

    #[test]
    fn variables_are_replaced_anywhere_and_once() {
        for (text, expected) in [
            ("", ""),
            ("plain", "plain"),
            ("${HOST}:143", "legacy:143"),
            ("a${HOST}b${HOST}", "alegacyblegacy"),
            ("${NESTED}", "${HOST}: [a, #b]"),
            ("${NONE:-x:143}", "x:143"),
            ("${NONE:-}", ""),
            ("${EMPTY:-x}", "x"),
            ("${EMPTY}", ""),
            ("${HOST:-x}", "legacy"),
            ("$${HOST}", "${HOST}"),
            ("$$$${HOST}", "$${HOST}"),
            ("$HOST 5$ $", "$HOST 5$ $"),
            ("ä${HOST}ö", "älegacyö"),
        ] {
            assert_eq!(expanded(text, &lookup).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_replaced_is_named() {
        for (text, expected) in [
            (
                "${NONE}",
                "environment variable `NONE` is not set; set it, or write `${NONE:-default}`",
            ),
            ("a${HOST", "`${HOST` has no closing brace"),
            (
                "${WINDOWS}:143",
                "environment variable `WINDOWS` holds a carriage return, as no value may",
            ),
            (
                "${COLOUR:-x}",
                "environment variable `COLOUR` holds the control character U+001B, as no value may",
            ),
            ("${LATIN:-x}", "environment variable `LATIN` is not UTF-8"),
            ("${}", "`${}` is neither `${NAME}` nor `${NAME:-default}`"),
            ("${1A}", "`${1A}` is neither `${NAME}` nor `${NAME:-default}`"),
            ("${HOST-x}", "`${HOST-x}` is neither `${NAME}` nor `${NAME:-default}`"),
        ] {
            assert_eq!(expanded(text, &lookup), Err(expected.to_owned()), "{text}");
        }
    }
}
