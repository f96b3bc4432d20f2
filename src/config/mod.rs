//! From a YAML file to [`Settings`], or to all of its mistakes.
//!
//! In: the path of a file, and the environment. Out: settings in which everything is possible, or
//! every mistake with its line, its column and what would be right. [`load`] is the way in, [`parse`] that for a text.
//!
//! The way of a file: `text` (text to tree, variables into scalars), `read` with `value` and `file`
//! (tree to sections), `rules` (what concerns several values; sections to settings).
//! Nothing gives up at a mistake; `text::mistake` collects them and prints them.
//! Limits: a file of [`MAX_LEN`] bytes; aliases are refused, so the tree is no larger than the file.
//! Not here: what the named files hold (`tls::check`); reloading (`server`).

pub mod settings;

mod text;

mod read;

mod value;

mod file;

mod effective;

mod rules;

mod schema;

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

pub use effective::{Effective, Entry, Origin};
pub use schema::schema;
pub use settings::Settings;
pub use text::env::Lookup;
pub use text::mistake::{Invalid, Mark, Mistake};
pub use value::amount::duration_text;

use crate::text::without_numbers;
use read::Read as _;
use text::mistake::Mistakes;
use text::{characters, env, yaml};

/// Bytes in a configuration file. A real one has a few thousand.
pub const MAX_LEN: usize = 1 << 20;

/// Why there are no settings. All of it is the operator's to mend.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read the configuration {}: {why}", file.display())]
    Unreadable { file: PathBuf, why: Unreadable },
    /// Its text has several lines, one for each mistake.
    #[error("{0}")]
    Invalid(Box<Invalid>),
}

/// What is wrong with a file as a whole.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Unreadable {
    Missing,
    Forbidden,
    Directory,
    /// Any other failure of the system, in its words.
    System(String),
    TooLong,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => {
                f.write_str("it does not exist; name the right one with --config FILE")
            }
            Self::Forbidden => {
                f.write_str("permission denied; the proxy's user must be able to read it")
            }
            Self::Directory => f.write_str("it is a directory; name the file in it"),
            Self::System(why) => f.write_str(why),
            Self::TooLong => write!(f, "it is longer than {} KiB", MAX_LEN >> 10),
        }
    }
}

/// Reads the configuration in `path`, with variables from the environment of the process.
///
/// # Errors
/// [`Error::Unreadable`] without a text, [`Error::Invalid`] with every mistake in it.
pub fn load(path: &Path) -> Result<Settings, Error> {
    let bytes = contents(path).map_err(|why| Error::Unreadable { file: path.to_owned(), why })?;
    match String::from_utf8(bytes) {
        Ok(text) => parse(&text, path, &|name| std::env::var_os(name)),
        Err(error) => {
            let mut mistakes = Mistakes::default();
            characters::check(characters::without_mark(error.as_bytes()), &mut mistakes);
            Err(Error::Invalid(Box::new(mistakes.finish(path, ""))))
        }
    }
}

fn contents(path: &Path) -> Result<Vec<u8>, Unreadable> {
    let why = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Unreadable::Missing,
        io::ErrorKind::PermissionDenied => Unreadable::Forbidden,
        io::ErrorKind::IsADirectory => Unreadable::Directory,
        _ => Unreadable::System(without_numbers(error.to_string())),
    };
    let file = File::open(path).map_err(why)?;
    let mut bytes = Vec::new();
    // One byte more than allowed tells a file that is too long from one that just fits; the size
    // that the system reports would not do, for a pipe has none.
    file.take(MAX_LEN as u64 + 1).read_to_end(&mut bytes).map_err(why)?;
    if bytes.len() > MAX_LEN {
        return Err(Unreadable::TooLong);
    }
    Ok(bytes)
}

/// Reads a configuration from its text; `file` is what messages call it.
///
/// # Errors
/// [`Error::Invalid`] with every mistake in it.
pub fn parse(text: &str, file: &Path, env: Lookup) -> Result<Settings, Error> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut mistakes = Mistakes::default();
    characters::check(text.as_bytes(), &mut mistakes);
    let mut tls = None;
    // What follows such a character may mean something else than it shows.
    let settings = match mistakes.is_empty() {
        true => settings(text, env, &mut mistakes, &mut tls),
        false => None,
    };
    match settings {
        Some(settings) if mistakes.is_empty() => Ok(settings),
        _ => {
            let invalid = mistakes.finish(file, text);
            debug_assert!(invalid.count() > 0, "no settings, and no mistake to say why");
            Err(Error::Invalid(Box::new(Invalid { tls, ..invalid })))
        }
    }
}

fn settings(
    text: &str,
    env: Lookup,
    mistakes: &mut Mistakes,
    tls: &mut Option<settings::Tls>,
) -> Option<Settings> {
    let mut root = match yaml::parse(text, mistakes) {
        Ok(root) => root,
        Err((mark, message)) => {
            let line = text.lines().nth(mark.line - 1).unwrap_or_default();
            mistakes.add(mark, message + hint(line));
            return None;
        }
    };
    if matches!(root.kind, yaml::Kind::Null) {
        mistakes.add(Mark::START, "the file is empty; `listen`, `tls` and `backend` are needed");
        return None;
    }
    env::expand(&mut root, env, mistakes);
    *tls = tls_files(&root);
    let file = file::File::read(&root, mistakes)?;
    rules::apply(&file, Effective::of(&file, &root), mistakes)
}

/// The section `tls`, as far as the files that it names can be looked at.
fn tls_files(root: &yaml::Node) -> Option<settings::Tls> {
    let yaml::Kind::Map(entries) = &root.kind else { return None };
    let section = entries.iter().find(|entry| &*entry.key == "tls")?;
    let mut mistakes = Mistakes::default();
    rules::files(&read::Spanned::read(&section.value, &mut mistakes)?)
}

/// The most likely reason for a line that is no YAML.
fn hint(line: &str) -> &'static str {
    let value = line.split_once(": ").map_or(line, |(_, value)| value).trim_start();
    match value.chars().next() {
        Some('[') if value.contains("]:") => {
            "; an address that begins with `[` must stand in quotes"
        }
        Some('*' | '&' | '%' | '@' | '`') => {
            "; a value that begins with this sign must stand in quotes"
        }
        Some('{' | '$') if value.contains("${") => {
            "; a value with `${` in braces must stand in quotes"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests;
