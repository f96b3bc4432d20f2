//! Format and fields of every log line that others read: the session line and the login line.
//!
//! Lines go to standard output, as text or as JSON with the same fields. A slow or full disk under the log never
//! stops a session: a thread of its own writes, and when its queue is full lines are dropped ([`queue`]).
//! **Invariant:** what a client sent is escaped by [`printable`] and cut at [`MAX_TEXT`] bytes before it is a
//! field, and no secret ever is one.

pub mod queue;

pub mod sample;

use std::fmt::Write as _;
use std::io;

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::settings::{Log, LogFormat};

/// Bytes of a client's text that a log line shows.
pub const MAX_TEXT: usize = 256;

/// Starts the log. What is queued is written when the guard is dropped.
///
/// # Errors
/// The system gives no thread.
pub fn start(settings: &Log) -> io::Result<queue::Guard> {
    let (writer, guard) = queue::start(io::stdout())?;
    let level = LevelFilter::from_level(settings.level);
    let layer = fmt::layer()
        .with_writer(writer)
        .with_target(false)
        .with_ansi(false)
        .log_internal_errors(false);
    let registry = tracing_subscriber::registry().with(level);
    // A second start in one process keeps the first one's log.
    let _ = match settings.format {
        LogFormat::Text => registry.with(layer).try_init(),
        LogFormat::Json => registry.with(layer.json().flatten_event(true)).try_init(),
    };
    Ok(guard)
}

/// `text` as it may stand in a log: no control, no escape sequence, nothing that turns the reading direction.
pub fn printable(text: &[u8]) -> String {
    let cut = text.len() > MAX_TEXT;
    let mut out = String::new();
    for chunk in text[..text.len().min(MAX_TEXT)].utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() || is_invisible(c) || c == '"' || c == '\\' {
                let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
            } else {
                out.push(c);
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    if cut {
        out.push('…');
    }
    out
}

/// Line and paragraph separators, marks that reorder text, and other format characters.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_sent_stays_on_its_line() {
        assert_eq!(printable("bob@exämple.org".as_bytes()), "bob@exämple.org");
        assert_eq!(
            printable(b"x\r\n{\"a\":1}\x1b]0;p\x07"),
            "x\\u{d}\\u{a}{\\u{22}a\\u{22}:1}\\u{1b}]0;p\\u{7}"
        );
        assert_eq!(
            printable("a\u{202e}b\u{2028}c\u{85}".as_bytes()),
            "a\\u{202e}b\\u{2028}c\\u{85}"
        );
        assert_eq!(printable(b"\xff\xfe"), "\\xff\\xfe");
        assert_eq!(printable(&[b'x'; 300]).len(), 256 + '…'.len_utf8());
    }
}
