//! Format and fields of every log line that others read: the session line and the login line.
//!
//! Lines go to standard output, as text or as JSON with the same fields. A slow or full disk under the log never
//! stops a session: a thread of its own writes, and when its queue is full lines are dropped ([`queue`]). What a stranger
//! can cause is logged by sample ([`sample`]), the login line excepted, and so is what libraries warn of ([`library`]).
//! **Invariant:** what a client sent is escaped by [`printable`] and cut at [`MAX_TEXT`] bytes before it is a
//! field, and no secret ever is one.

pub mod queue;

pub mod sample;

mod library;

use std::fmt::Write as _;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::{Event, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::{Format, Full, Json, Writer};
use tracing_subscriber::fmt::{self, FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Registry, reload};

use crate::config::settings::{Log, LogFormat};
use library::Libraries;

/// Target of the login line, by which [`queue`] knows it. No line shows its target.
pub const LOGIN: &str = "login";
/// Target of the session line.
pub const SESSION: &str = "session";
/// Bytes of a client's text that a log line shows.
pub const MAX_TEXT: usize = 256;

/// A running log. What is queued is written when it is dropped.
pub struct Running {
    _guard: queue::Guard,
    pub control: Control,
}

/// Changes a log while it runs.
#[derive(Clone)]
pub struct Control {
    level: reload::Handle<LevelFilter, Registry>,
    json: Arc<AtomicBool>,
}

impl Control {
    pub fn set(&self, settings: &Log) {
        // Fails only if it is the log of nobody.
        let _ = self.level.reload(LevelFilter::from_level(settings.level));
        self.json.store(settings.format == LogFormat::Json, Ordering::Relaxed);
    }
}

/// Starts the log.
///
/// # Errors
/// The system gives no thread.
pub fn start(settings: &Log) -> io::Result<Running> {
    let (writer, guard) = queue::start(io::stdout())?;
    let (filter, level) = reload::Layer::new(LevelFilter::from_level(settings.level));
    let lines = Lines {
        json: Arc::new(AtomicBool::new(settings.format == LogFormat::Json)),
        as_text: fmt::format().with_target(false).with_ansi(false),
        as_json: fmt::format().json().with_target(false).flatten_event(true),
    };
    let control = Control { level, json: Arc::clone(&lines.json) };
    let layer = fmt::layer()
        .with_ansi(false)
        .event_format(lines)
        .with_writer(writer)
        .log_internal_errors(false);
    // A second start in one process keeps the first one's log.
    let _ = tracing_subscriber::registry()
        .with(filter)
        .with(Libraries::default())
        .with(layer)
        .try_init();
    Ok(Running { _guard: guard, control })
}

/// Both formats; one at a time.
struct Lines {
    json: Arc<AtomicBool>,
    as_text: Format<Full>,
    as_json: Format<Json>,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, N>,
        writer: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        if self.json.load(Ordering::Relaxed) {
            self.as_json.format_event(ctx, writer, event)
        } else {
            self.as_text.format_event(ctx, writer, event)
        }
    }
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
