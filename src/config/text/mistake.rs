//! What is wrong with a file, all of it, in the order in which it stands there.

use std::fmt;
use std::path::{Path, PathBuf};

/// More than these are counted, not kept: somebody passed the wrong file.
const MAX_KEPT: usize = 100;

/// A longer line is not drawn below its message.
const MAX_DRAWN: usize = 160;

/// A place in a file. Both numbers count from 1; a column is a character, not a byte.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub struct Mark {
    pub line: usize,
    pub column: usize,
}

impl Mark {
    /// Where a file begins.
    pub const START: Self = Self { line: 1, column: 1 };
}

/// One thing that is wrong, and where.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Mistake {
    pub mark: Mark,
    /// What is wrong and what would be right: a lower-case phrase without full stop.
    pub message: String,
    /// The line in the file, where a picture of it helps.
    line: Option<String>,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.mark.line, self.mark.column, self.message)
    }
}

/// Collects mistakes while a file is read.
#[derive(Debug, Default)]
pub struct Mistakes {
    list: Vec<Mistake>,
    dropped: usize,
}

impl Mistakes {
    pub fn add(&mut self, mark: Mark, message: impl Into<String>) {
        if self.list.len() < MAX_KEPT {
            self.list.push(Mistake { mark, message: message.into(), line: None });
        } else {
            self.dropped += 1;
        }
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub fn count(&self) -> usize {
        self.list.len() + self.dropped
    }

    /// All of them, sorted, with the lines of `text` that they are about.
    pub fn finish(mut self, file: &Path, text: &str) -> Invalid {
        self.list.sort();
        self.list.dedup();
        // One walk for all: the marks are in order.
        let mut lines = text.lines().enumerate();
        let mut current = None;
        for mistake in &mut self.list {
            while current.is_none_or(|(index, _)| index + 1 < mistake.mark.line) {
                let Some(next) = lines.next() else { break };
                current = Some(next);
            }
            mistake.line = current
                .filter(|(index, line)| index + 1 == mistake.mark.line && drawable(line))
                .map(|(_, line)| line.replace('\t', " "));
        }
        Invalid { file: file.to_owned(), mistakes: self.list, dropped: self.dropped, tls: None }
    }
}

fn drawable(line: &str) -> bool {
    !line.trim().is_empty()
        && line.chars().count() <= MAX_DRAWN
        && !line.chars().any(|c| c.is_control() && c != '\t')
}

/// A file that is no configuration, and everything that is wrong with it.
#[derive(Clone, Debug)]
pub struct Invalid {
    pub file: PathBuf,
    /// In the order of the file; never empty.
    pub mistakes: Vec<Mistake>,
    /// How many more there are that were only counted.
    pub dropped: usize,
    /// The section `tls`, as far as it could be read: its files can still be looked at.
    pub tls: Option<crate::config::settings::Tls>,
}

impl Invalid {
    /// How many mistakes there are in all.
    pub fn count(&self) -> usize {
        self.mistakes.len() + self.dropped
    }

    /// Every mistake as `FILE:LINE:COLUMN: message`, with a picture of its line.
    pub fn report(&self) -> String {
        use fmt::Write;
        let mut out = String::new();
        for mistake in &self.mistakes {
            let _ = writeln!(out, "{}:{mistake}", self.file.display());
            if let Some(line) = &mistake.line {
                let number = mistake.mark.line;
                let margin = number.to_string().len();
                let column = mistake.mark.column;
                let _ = writeln!(out, "  {number} | {}", line.trim_end());
                let _ = writeln!(out, "  {:margin$} | {:>column$}", "", "^");
            }
        }
        if self.dropped > 0 {
            let _ = writeln!(out, "and {} more", self.dropped);
        }
        out
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.count();
        let noun = if count == 1 { "mistake" } else { "mistakes" };
        write!(f, "{count} {noun} in {}\n{}", self.file.display(), self.report().trim_end())
    }
}

/// A piece of the file fit for a message: escaped, and not endless.
pub fn shown(text: &str) -> String {
    const MAX: usize = 60;
    let mut out: String = text.chars().take(MAX).flat_map(escaped).collect();
    if text.chars().nth(MAX).is_some() {
        out.push('…');
    }
    out
}

fn escaped(c: char) -> impl Iterator<Item = char> {
    let (plain, escape) =
        if c.is_control() { (None, Some(c.escape_default())) } else { (Some(c), None) };
    plain.into_iter().chain(escape.into_iter().flatten())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_sorted_drawn_and_counted() {
        let mut mistakes = Mistakes::default();
        mistakes.add(Mark { line: 3, column: 5 }, "second");
        mistakes.add(Mark { line: 1, column: 1 }, "first");
        mistakes.add(Mark { line: 3, column: 5 }, "second");
        let invalid = mistakes.finish(Path::new("a.yaml"), "a\nb\nccc d\n");
        let expected = "2 mistakes in a.yaml\n\
            a.yaml:1:1: first\n  1 | a\n    | ^\n\
            a.yaml:3:5: second\n  3 | ccc d\n    |     ^";
        assert_eq!(invalid.to_string(), expected);
    }

    #[test]
    fn a_flood_of_mistakes_is_counted_not_printed() {
        let mut mistakes = Mistakes::default();
        for line in 1..=150 {
            mistakes.add(Mark { line, column: 1 }, "no");
        }
        let invalid = mistakes.finish(Path::new("a.yaml"), "");
        assert_eq!(invalid.count(), 150);
        assert!(invalid.report().ends_with("and 50 more\n"));
    }

    #[test]
    fn what_is_shown_is_escaped_and_short() {
        assert_eq!(shown("a\u{1b}[31m\nb"), "a\\u{1b}[31m\\nb");
        assert_eq!(shown(&"x".repeat(61)).chars().count(), 61);
    }
}
