//! What signals mean to a running proxy.
//!
//! In: the signals that people and their tools send. Out: the name of a signal that says stop. QUIT
//! does what TERM does, since recipes for nginx drain with it. The others mean nothing here and
//! would kill the process by default. Recipes for other programs send them: logrotate sends USR1,
//! so that a log is opened anew. Each is logged and ignored, also while the proxy stops.
//! Not here: HUP, which has the configuration read again. A Rust program ignores PIPE anyway.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};

use rustix::process::Signal as Number;
use tokio::signal::unix::{Signal, SignalKind, signal};

const STOP: [(&str, Number); 3] =
    [("SIGTERM", Number::TERM), ("SIGINT", Number::INT), ("SIGQUIT", Number::QUIT)];

/// XFSZ says that the log has reached a limit for the size of files: then its lines are lost, and
/// no session.
const IGNORED: [(&str, Number); 8] = [
    ("SIGUSR1", Number::USR1),
    ("SIGUSR2", Number::USR2),
    ("SIGALRM", Number::ALARM),
    ("SIGVTALRM", Number::VTALARM),
    ("SIGPROF", Number::PROF),
    ("SIGIO", Number::IO),
    ("SIGPWR", Number::POWER),
    ("SIGXFSZ", Number::XFSZ),
];

type Named = (&'static str, Signal);

/// None of these signals has its default meaning from now on.
pub struct Signals {
    stop: Vec<Named>,
    ignored: Vec<Named>,
}

impl Signals {
    /// # Errors
    /// The system does not hand signals over.
    pub fn new() -> io::Result<Self> {
        Ok(Self { stop: heeded(&STOP)?, ignored: heeded(&IGNORED)? })
    }

    /// `signal` means nothing any more.
    pub fn ignore(&mut self, name: &'static str, signal: Signal) {
        self.ignored.push((name, signal));
    }

    /// The next signal that says stop.
    pub async fn next(&mut self) -> &'static str {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<&'static str> {
        for (name, ignored) in &mut self.ignored {
            while ignored.poll_recv(cx) == Poll::Ready(Some(())) {
                tracing::warn!(signal = *name, "signal ignored: it means nothing here");
            }
        }
        for (name, stop) in &mut self.stop {
            if stop.poll_recv(cx) == Poll::Ready(Some(())) {
                return Poll::Ready(name);
            }
        }
        Poll::Pending
    }
}

fn heeded(signals: &[(&'static str, Number)]) -> io::Result<Vec<Named>> {
    let heed = |&(name, number): &(&'static str, Number)| {
        Ok((name, signal(SignalKind::from_raw(number.as_raw()))?))
    };
    signals.iter().map(heed).collect()
}
