//! Programs of the system that tests use: found or asked for, run with a deadline.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;
use std::{env, thread};

/// The path of `name`; when it is missing the panic says which Debian `package` brings it.
pub fn program(name: &str, package: &str) -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|candidate| Path::is_file(candidate))
        .unwrap_or_else(|| {
            panic!("this test needs `{name}`: apt-get install -y --no-install-recommends {package}")
        })
}

/// A command that begins with `program` and finds no IPv6 on this system.
pub fn without_ipv6(program: &Path) -> Command {
    let mut command = Command::new(self::program("python3", "python3"));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/no_ipv6.py");
    command.arg(script).arg(program);
    command
}

/// A command that begins with `program` and sees `folder` as its `/etc`. That takes a mount, so it takes root.
pub fn with_etc(folder: &Path, program: &Path) -> Command {
    const MOUNT: &str = r#"mount --bind "$1" /etc && shift && exec "$@""#;
    assert!(rustix::process::geteuid().is_root(), "this test mounts a folder: run it as root");
    let mut command = Command::new(self::program("unshare", "util-linux"));
    command.args(["--mount", "sh", "-c", MOUNT, "sh"]).arg(folder).arg(program);
    command
}

/// What a program that has ended left behind.
#[derive(Debug)]
pub struct Finished {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    /// Itself, if the exit code is 0.
    #[track_caller]
    pub fn succeeded(self) -> Self {
        assert_eq!(self.code, Some(0), "{}\n{}", self.stdout, self.stderr);
        self
    }
}

/// Runs to the end, with `input` on standard input; killed, with a panic, after `limit`.
#[track_caller]
pub fn run(command: &mut Command, input: &[u8], limit: Duration) -> Finished {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("cannot start {name}: {e}"));
    let pid = rustix::process::Pid::from_child(&child);
    let mut stdin = child.stdin.take().expect("it is piped");
    let input = input.to_vec();
    let writer = thread::spawn(move || {
        let _ = stdin.write_all(&input); // a program may end before it has read everything
    });
    let (done, ended) = mpsc::channel();
    let waiter = thread::spawn(move || {
        let output = child.wait_with_output().expect("the child is ours");
        let _ = done.send(());
        output
    });
    let late = ended.recv_timeout(limit).is_err();
    if late {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    let output = waiter.join().expect("the waiter does not panic");
    writer.join().expect("the writer does not panic");
    let finished = Finished {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    };
    assert!(!late, "{name} did not end within {limit:?}: {finished:?}");
    finished
}
