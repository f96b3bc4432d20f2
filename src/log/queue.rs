//! Lines on their way to standard output: code that logs appends to a buffer, a thread of its own writes it out.
//!
//! No session waits for a slow disk or a full pipe: lines that find no room are dropped, and how many of each [`Kind`]
//! were is said once there is room again. A stranger can cause lines faster than anything reads them, so [`RESERVED`] bytes
//! are for the lines that an operator can't do without: logins, by which a guesser is found, warnings and errors.
//! The thread writes what there is as soon as there is something, then rests for [`REST`], so that under load it wakes a
//! few hundred times a second and not for every line.
//! **Invariant:** lines come out whole and in order; what was queued when the guard is dropped is written if anybody reads.

use std::io::{self, Write};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use strum::VariantArray as _;
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

use crate::metrics;

/// Bytes that wait for a slow reader before more are dropped.
const MAX: usize = 1024 * 1024;
/// Of these, room that only lines of a [reserved](Kind::is_reserved) kind use.
const RESERVED: usize = MAX / 2;
/// Room that is kept from one time to the next.
const KEPT: usize = 64 * 1024;
const REST: Duration = Duration::from_millis(2);
/// How long the end of the process waits for a slow reader.
const LAST_LINES: Duration = Duration::from_secs(2);

/// What a line tells, for what becomes of it when there is no room: the label `kind`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, strum::IntoStaticStr, strum::VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Kind {
    /// One login attempt, [`super::LOGIN`].
    Login,
    /// The end of a session, [`super::SESSION`].
    Session,
    /// A warning or an error.
    Warning,
    Other,
}

impl Kind {
    fn of(meta: &Metadata<'_>) -> Self {
        match meta.target() {
            _ if *meta.level() <= Level::WARN => Self::Warning,
            super::LOGIN => Self::Login,
            super::SESSION => Self::Session,
            _ => Self::Other,
        }
    }

    fn is_reserved(self) -> bool {
        matches!(self, Self::Login | Self::Warning)
    }
}

/// How many lines of each kind.
type Counts = [u64; Kind::VARIANTS.len()];

#[derive(Default)]
struct State {
    lines: Vec<u8>,
    dropped: Counts,
    ended: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // No code that could panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where lines are put.
#[derive(Clone)]
pub struct Queue(Arc<Shared>);

/// Where one line is put.
pub struct Line<'a> {
    queue: &'a Queue,
    kind: Kind,
}

/// Dropped, what is queued is written, within [`LAST_LINES`], and the thread ends.
pub struct Guard {
    shared: Arc<Shared>,
    /// Nothing ever comes; it breaks when the thread has ended.
    ended: Receiver<()>,
}

/// `out` gets the lines.
///
/// # Errors
/// The system gives no thread.
pub fn start(out: impl Write + Send + 'static) -> io::Result<(Queue, Guard)> {
    let shared = Arc::<Shared>::default();
    let writer = Arc::clone(&shared);
    let (end, ended) = mpsc::channel::<()>();
    thread::Builder::new().name("log".to_owned()).spawn(move || {
        write_out(&writer, out);
        drop(end);
    })?;
    Ok((Queue(Arc::clone(&shared)), Guard { shared, ended }))
}

fn write_out(shared: &Shared, mut out: impl Write) {
    let mut lines = Vec::new();
    loop {
        let (dropped, ended) = {
            let waiting = |state: &mut State| state.lines.is_empty() && !state.ended;
            let state = shared.changed.wait_while(shared.state(), waiting);
            let mut state = state.unwrap_or_else(PoisonError::into_inner);
            std::mem::swap(&mut state.lines, &mut lines);
            (std::mem::take(&mut state.dropped), state.ended)
        };
        // Before the lines are written: the queue has room now, and the dropped ones came behind these.
        say_dropped(&dropped);
        // Nobody could be told that the log can't be written.
        let _ = out.write_all(&lines).and_then(|()| out.flush());
        lines.clear();
        lines.shrink_to(KEPT);
        match ended {
            true if dropped == Counts::default() => return,
            true => {} // once more, for what was said of them
            false => thread::sleep(REST),
        }
    }
}

fn say_dropped(dropped: &Counts) {
    let of = |kind: Kind| dropped[kind as usize];
    let lines: u64 = dropped.iter().sum();
    if lines > 0 {
        tracing::warn!(
            lines,
            login = of(Kind::Login),
            session = of(Kind::Session),
            warning = of(Kind::Warning),
            other = of(Kind::Other),
            "log lines were dropped: whatever reads them is too slow"
        );
    }
}

impl Queue {
    /// Takes one whole line, or drops it.
    fn put(&self, line: &[u8], kind: Kind) {
        let mut state = self.0.state();
        let room = if kind.is_reserved() { MAX } else { MAX - RESERVED };
        if state.lines.len() + line.len() > room {
            state.dropped[kind as usize] += 1;
            drop(state);
            metrics::log_line_dropped(kind);
        } else {
            let first = state.lines.is_empty();
            state.lines.extend_from_slice(line);
            drop(state);
            if first {
                self.0.changed.notify_one();
            }
        }
    }
}

impl Write for Line<'_> {
    /// One whole line.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.queue.put(line, self.kind);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { queue: self, kind: Kind::Other }
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Line<'a> {
        Line { queue: self, kind: Kind::of(meta) }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.shared.state().ended = true;
        self.shared.changed.notify_one();
        // A reader that has stopped for good must not keep the process.
        let _ = self.ended.recv_timeout(LAST_LINES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes nothing before it is let.
    struct Slow {
        let_go: mpsc::Receiver<()>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.let_go.recv(); // for good, once the sender is gone
            self.written.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A queue whose writer has taken one line and waits for the reader until the sender is gone.
    fn held() -> (Queue, Guard, mpsc::Sender<()>, Arc<Mutex<Vec<u8>>>) {
        let (go, let_go) = mpsc::channel();
        let written = Arc::<Mutex<Vec<u8>>>::default();
        let (queue, guard) = start(Slow { let_go, written: Arc::clone(&written) }).unwrap();
        queue.put(&[&[b'-'; 1023][..], b"\n"].concat(), Kind::Other);
        while !queue.0.state().lines.is_empty() {
            thread::yield_now();
        }
        (queue, guard, go, written)
    }

    #[test]
    fn a_slow_reader_costs_lines_but_no_time_and_no_memory() {
        let (queue, guard, go, written) = held();
        let line = [&[b'x'; 1023][..], b"\n"].concat();
        for _ in 0..10 * MAX / line.len() {
            queue.put(&line, Kind::Login);
        }
        assert_eq!(queue.0.state().lines.len(), MAX);
        assert_eq!(queue.0.state().dropped[Kind::Login as usize], 9 * (MAX / 1024) as u64);
        drop(go);
        drop(guard);
        let written = written.lock().unwrap();
        assert_eq!(written.len(), 1024 + MAX);
        assert!(written[1024..].chunks(1024).all(|chunk| chunk == line), "only whole lines");
    }

    #[test]
    fn what_a_stranger_can_cause_leaves_room_for_logins_and_warnings() {
        let (queue, guard, go, written) = held();
        let put = |kind: Kind, n: usize| {
            let line = format!("{:1023}\n", <&str>::from(kind));
            (0..n).for_each(|_| queue.put(line.as_bytes(), kind));
        };
        put(Kind::Session, 1000);
        put(Kind::Other, 1000);
        put(Kind::Login, 300);
        put(Kind::Warning, 300);
        assert_eq!(queue.0.state().dropped, [0, 488, 88, 1000]);
        drop(go);
        drop(guard);
        let written = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        let count = |kind: Kind| {
            written.lines().filter(|line| line.trim_end() == <&str>::from(kind)).count()
        };
        assert_eq!(
            Kind::VARIANTS.iter().map(|kind| count(*kind)).collect::<Vec<_>>(),
            [300, 512, 212, 0]
        );
    }

    #[test]
    fn a_reader_that_has_stopped_does_not_keep_the_process() {
        let (go, let_go) = mpsc::channel();
        let (queue, guard) = start(Slow { let_go, written: Arc::default() }).unwrap();
        queue.put(b"never read\n", Kind::Other);
        drop(guard); // returns
        drop(go);
    }

    #[test]
    fn what_is_queued_at_the_end_is_written() {
        let (go, let_go) = mpsc::channel();
        drop(go);
        let written = Arc::<Mutex<Vec<u8>>>::default();
        let (queue, guard) = start(Slow { let_go, written: Arc::clone(&written) }).unwrap();
        for n in 0..100 {
            queue.put(format!("{n}\n").as_bytes(), Kind::Other);
        }
        drop(guard);
        let text: String = (0..100).map(|n| format!("{n}\n")).collect();
        assert_eq!(String::from_utf8(written.lock().unwrap().clone()).unwrap(), text);
    }
}
