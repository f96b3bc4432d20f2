//! Lines on their way to standard output: whoever logs appends to a buffer, a thread of its own writes it out.
//!
//! Nobody who serves waits for a slow disk or a full pipe: over [`MAX`] bytes lines are dropped, and their number is
//! said once there is room again. The thread writes what there is as soon as there is something, then rests for
//! [`REST`], so that under load it wakes a few hundred times a second and not for every line.
//! **Invariant:** lines come out whole and in order; what was queued when the guard is dropped is written if anybody reads.

use std::io::{self, Write};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// Bytes that wait for a slow reader before more are dropped.
const MAX: usize = 1024 * 1024;
/// Room that is kept from one time to the next.
const KEPT: usize = 64 * 1024;
const REST: Duration = Duration::from_millis(2);
/// How long the end of the process waits for a slow reader.
const LAST_LINES: Duration = Duration::from_secs(2);

#[derive(Default)]
struct State {
    lines: Vec<u8>,
    dropped: u64,
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
        // Nobody could be told that the log can't be written.
        let _ = out.write_all(&lines).and_then(|()| out.flush());
        lines.clear();
        lines.shrink_to(KEPT);
        if dropped > 0 {
            tracing::warn!(
                lines = dropped,
                "log lines were dropped: whatever reads them is too slow"
            );
        }
        match ended {
            true if dropped == 0 => return,
            true => {} // once more, for the line above
            false => thread::sleep(REST),
        }
    }
}

impl Write for &Queue {
    /// One whole line, or more.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut state = self.0.state();
        if state.lines.len() + line.len() > MAX {
            state.dropped += 1;
        } else {
            let first = state.lines.is_empty();
            state.lines.extend_from_slice(line);
            drop(state);
            if first {
                self.0.changed.notify_one();
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = &'a Queue;

    fn make_writer(&'a self) -> Self::Writer {
        self
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

    #[test]
    fn a_slow_reader_costs_lines_but_no_time_and_no_memory() {
        let (go, let_go) = mpsc::channel();
        let written = Arc::<Mutex<Vec<u8>>>::default();
        let (queue, guard) = start(Slow { let_go, written: Arc::clone(&written) }).unwrap();
        let line = [&[b'x'; 1023][..], b"\n"].concat();
        for _ in 0..10 * MAX / line.len() {
            (&queue).write_all(&line).unwrap();
        }
        assert!(queue.0.state().lines.len() <= MAX);
        assert!(queue.0.state().dropped > 0);
        drop(go);
        drop(guard);
        let written = written.lock().unwrap();
        assert!(written.len() >= MAX - line.len());
        assert!(written.chunks(line.len()).all(|chunk| chunk == line), "only whole lines");
    }

    #[test]
    fn a_reader_that_has_stopped_does_not_keep_the_process() {
        let (go, let_go) = mpsc::channel();
        let (queue, guard) = start(Slow { let_go, written: Arc::default() }).unwrap();
        writeln!(&queue, "never read").unwrap();
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
            writeln!(&queue, "{n}").unwrap();
        }
        drop(guard);
        let text: String = (0..100).map(|n| format!("{n}\n")).collect();
        assert_eq!(String::from_utf8(written.lock().unwrap().clone()).unwrap(), text);
    }
}
