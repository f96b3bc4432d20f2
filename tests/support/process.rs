//! A child process whose output is kept, line by line, and that ends when its value is dropped.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{fs, thread};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::wait::PATIENCE;

pub struct Process {
    child: Child,
    name: String,
    lines: Arc<Mutex<Vec<String>>>,
    readers: Vec<thread::JoinHandle<()>>,
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts `command` with standard output and error captured together, in the order they arrive.
    pub fn start(mut command: Command) -> Self {
        Self::start_with(&mut command, Stdio::piped())
    }

    /// As [`Process::start`], with standard output sent elsewhere.
    pub fn start_with(command: &mut Command, stdout: Stdio) -> Self {
        let name = command.get_program().to_string_lossy().into_owned();
        // A group of its own: a Ctrl-C at the terminal must not look like the signal under test.
        command.stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start {name}: {e}"));
        let lines = Arc::new(Mutex::new(Vec::new()));
        let mut readers = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            readers.push(collect(stdout, Arc::clone(&lines)));
        }
        if let Some(stderr) = child.stderr.take() {
            readers.push(collect(stderr, Arc::clone(&lines)));
        }
        Self { child, name, lines, readers, status: None }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything printed so far.
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// Waits until a line with `text` in it was printed.
    #[track_caller]
    pub fn wait_for_line(&mut self, text: &str) {
        let has = |lines: &[String]| lines.iter().any(|line| line.contains(text)).then_some(());
        self.wait_for(text, has);
    }

    /// Waits until `pick` finds what it looks for in the lines printed so far.
    #[track_caller]
    pub fn wait_for<T>(&mut self, what: &str, pick: impl Fn(&[String]) -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            // Asked before the look: what an exited process printed is then all there.
            let exited = self.exited();
            if let Some(found) = pick(&self.lines.lock().unwrap()) {
                return found;
            }
            if let Some(status) = exited {
                panic!("{} ended ({status}) without {what}:\n{}", self.name, self.text());
            }
            assert!(start.elapsed() < PATIENCE, "{}: no {what}:\n{}", self.name, self.text());
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn text(&self) -> String {
        self.lines().join("\n")
    }

    pub fn signal(&self, signal: Signal) {
        if self.status.is_none() {
            kill_process(Pid::from_child(&self.child), signal)
                .unwrap_or_else(|e| panic!("cannot signal {}: {e}", self.name));
        }
    }

    /// To it and whatever it has started.
    pub fn signal_group(&self, signal: Signal) {
        if self.status.is_none() {
            let _ = kill_process_group(Pid::from_child(&self.child), signal);
        }
    }

    /// Kills it and whatever it has started, and waits for its end.
    pub fn kill_group(&mut self) {
        if self.status.is_none() {
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
            self.wait(PATIENCE);
        }
    }

    /// The exit status, if it has ended; all of its output is collected by then.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("the child is ours");
            if self.status.is_some() {
                for reader in self.readers.drain(..) {
                    reader.join().expect("the reader does not panic");
                }
            }
        }
        self.status
    }

    #[track_caller]
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.exited() {
                return status;
            }
            assert!(
                start.elapsed() < limit,
                "{} still runs after {limit:?}:\n{}",
                self.name,
                self.text()
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Open descriptors; `None` where only root may look.
    pub fn fd_count(&self) -> Option<usize> {
        Some(fs::read_dir(format!("/proc/{}/fd", self.pid())).ok()?.count())
    }

    /// As the kernel tells everybody, such as `Max core file size`; soft and hard.
    pub fn limit(&self, name: &str) -> Option<(String, String)> {
        let limits = fs::read_to_string(format!("/proc/{}/limits", self.pid())).expect("it runs");
        let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
        let mut words = line.split_whitespace().map(str::to_owned);
        Some((words.next()?, words.next()?))
    }

    /// Resident memory in bytes.
    pub fn rss(&self) -> u64 {
        self.status_number("VmRSS:") * 1024
    }

    /// Processor time used so far, user and system.
    pub fn cpu_time(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("it runs");
        // After the name in brackets, which may hold spaces: state is field 3, utime 14, stime 15.
        let fields: Vec<&str> = stat[stat.rfind(')').expect("the name is bracketed") + 1..]
            .split_whitespace()
            .collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 10) // a tick is 10 ms on every Linux (USER_HZ)
    }

    fn status_number(&self, key: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = status.lines().find(|line| line.starts_with(key)).expect("Linux has this key");
        line.split_whitespace().nth(1).expect("it has a value").parse().expect("a number")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.exited().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn collect(
    source: impl Read + Send + 'static,
    lines: Arc<Mutex<Vec<String>>>,
) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut source = BufReader::new(source);
        let mut line = Vec::new();
        while matches!(source.read_until(b'\n', &mut line), Ok(n) if n > 0) {
            if line.last() == Some(&b'\n') {
                line.pop();
            }
            lines.lock().unwrap().push(String::from_utf8_lossy(&line).into_owned());
            line.clear();
        }
    })
}
