//! Which characters a configuration may hold: those that YAML prints (YAML 1.2.2 §5.1).
//!
//! In: the bytes of a file, or a value. Out: a mistake for each place that no text may have. A NUL
//! ends the text for a parser, so that everything behind it would count as not written; a byte
//! order mark or a control character inside makes a key another one that looks the same. A value
//! may not hold such a character either, wherever it comes from: from an escape such as `"\0"` or
//! from an environment variable. Nor a carriage return, which a file of variables brings along that
//! was written on Windows.

use std::borrow::Cow;

use super::mistake::{Mark, Mistakes};

/// Without the byte order mark at its beginning, which may be there.
pub fn without_mark(text: &[u8]) -> &[u8] {
    text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(text)
}

/// Adds what must not be in the file, with its place. `text` begins behind the byte order mark.
pub fn check(text: &[u8], mistakes: &mut Mistakes) {
    if let [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [0, _, ..] | [_, 0, ..] = text {
        let what = "UTF-16 or UTF-32, or no text at all; save the file as UTF-8";
        return mistakes.add(Mark::START, what);
    }
    let mut mark = Mark::START;
    let mut before = ' ';
    for chunk in text.utf8_chunks() {
        for c in chunk.valid().chars() {
            if is_foreign(c) {
                mistakes.add(mark, format!("{}, which YAML does not allow; take it out", name(c)));
            }
            // A line ends with CR, LF or both (§5.4).
            match (before, c) {
                ('\r', '\n') => {}
                (_, '\r' | '\n') => mark = Mark { line: mark.line + 1, column: 1 },
                _ => mark.column += 1,
            }
            before = c;
        }
        if !chunk.invalid().is_empty() {
            mistakes.add(mark, "not UTF-8; save the file in that encoding");
            mark.column += 1;
            before = ' ';
        }
    }
}

/// What must not be in this value, in words.
pub fn foreign(value: &str) -> Option<Cow<'static, str>> {
    value.chars().find(|&c| is_foreign(c) || c == '\r').map(name)
}

fn is_foreign(c: char) -> bool {
    match c {
        '\t' | '\n' | '\r' | '\u{85}' => false,
        '\u{feff}' | '\u{fffe}' | '\u{ffff}' => true,
        c => c.is_control(),
    }
}

fn name(c: char) -> Cow<'static, str> {
    match c {
        '\0' => "a NUL character".into(),
        '\r' => "a carriage return".into(),
        '\u{feff}' => "a byte order mark".into(),
        '\u{fffe}' | '\u{ffff}' => format!("the non-character U+{:04X}", u32::from(c)).into(),
        c => format!("the control character U+{:04X}", u32::from(c)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &[u8]) -> Vec<String> {
        let mut mistakes = Mistakes::default();
        check(without_mark(text), &mut mistakes);
        let invalid = mistakes.finish("f".as_ref(), "");
        invalid.mistakes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_place_is_named() {
        const NUL: &str = "a NUL character, which YAML does not allow; take it out";
        const MARK: &str = "a byte order mark, which YAML does not allow; take it out";
        const UTF_8: &str = "not UTF-8; save the file in that encoding";
        const UTF_16: &str = "UTF-16 or UTF-32, or no text at all; save the file as UTF-8";
        let control =
            |n| format!("the control character U+{n}, which YAML does not allow; take it out");
        let cases: &[(&[u8], &[String])] = &[
            (b"", &[]),
            ("a: \"\t\u{85}\u{a0}\u{2028}\u{e000}\u{fffd}\u{1f600}\"\r\n".as_bytes(), &[]),
            (b"a: 1\nb: \0\nc: 2\n", &[format!("2:4: {NUL}")]),
            (b"ab\0\0", &[format!("1:3: {NUL}"), format!("1:4: {NUL}")]),
            (
                "é\u{7f}\rb\u{9f}\r\n\u{b}\u{1b}[0m".as_bytes(),
                &[
                    format!("1:2: {}", control("007F")),
                    format!("2:2: {}", control("009F")),
                    format!("3:1: {}", control("000B")),
                    format!("3:2: {}", control("001B")),
                ],
            ),
            ("\u{feff}a: 1\n\u{feff}b: 2\n".as_bytes(), &[format!("2:1: {MARK}")]),
            ("\u{feff}a\u{feff}".as_bytes(), &[format!("1:2: {MARK}")]),
            (
                "ab\u{ffff}".as_bytes(),
                &["1:3: the non-character U+FFFF, which YAML does not allow; take it out".into()],
            ),
            (
                b"a: \xe9\nb\xff\xffc\0",
                &[
                    format!("1:4: {UTF_8}"),
                    format!("2:2: {UTF_8}"),
                    format!("2:3: {UTF_8}"),
                    format!("2:5: {NUL}"),
                ],
            ),
            (b"\xff\xfea\0:\0", &[format!("1:1: {UTF_16}")]),
            (b"\xfe\xff\0a\0:", &[format!("1:1: {UTF_16}")]),
            (b"\0a\0:", &[format!("1:1: {UTF_16}")]),
            (b"a\0:\0", &[format!("1:1: {UTF_16}")]),
        ];
        for (text, expected) in cases {
            assert_eq!(found(text), *expected, "{}", text.escape_ascii());
        }
    }

    #[test]
    fn a_value_holds_neither_controls_nor_a_carriage_return() {
        for good in ["", "legacy:143", "two\nlines\tand \u{85}", "\u{fffd}"] {
            assert_eq!(foreign(good), None, "{good:?}");
        }
        for (value, expected) in [
            ("legacy:143\r", "a carriage return"),
            ("a\0b", "a NUL character"),
            ("\u{1b}[31m", "the control character U+001B"),
            ("\u{feff}a", "a byte order mark"),
        ] {
            assert_eq!(foreign(value).as_deref(), Some(expected), "{value:?}");
        }
    }
}
