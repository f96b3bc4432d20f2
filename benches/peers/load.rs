//! The load generator, a process of its own: orders come as lines on standard input, each is answered by one line
//! (`ok` and a number, or `error` and why) when it is done.
//!
//! | order | does |
//! |---|---|
//! | `warm` | one full handshake for each worker's `resumed` handshakes to resume |
//! | `handshakes MODE N` | connect, greeting, close; MODE `classic`, `hybrid` or `resumed` |
//! | `logins N` | connect, greeting, LOGIN, SELECT, NOOP, LOGOUT, close |
//! | `open N` | sessions, logged in and kept |
//! | `idle`, `done` | IDLE begins, ends, in every session |
//! | `noop N`, `fetch BYTES`, `append BYTES` | in every session at once |
//! | `ask BYTES` | every session asks for a literal and does not read it |
//! | `close` | every session ends |

use std::io::{self, BufRead as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::client::{Client, Mode, Target};

/// Connections that are made at one time.
const WORKERS: usize = 8;
/// A session that needs longer for one order hangs.
const LIMIT: Duration = Duration::from_secs(300);

struct Load {
    port: u16,
    ca: Option<PathBuf>,
    /// One for each worker: a ticket is used once.
    resuming: Vec<Target>,
    sessions: Vec<Client>,
}

/// `ca`: none for plain TCP.
pub fn run(port: u16, ca: Option<&Path>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut load =
        Load { port, ca: ca.map(Into::into), resuming: Vec::new(), sessions: Vec::new() };
    for order in io::stdin().lock().lines() {
        let answer = match runtime.block_on(load.obey(&order?)) {
            Ok(number) => format!("ok {number}\n"),
            Err(error) => format!("error {error}\n"),
        };
        let mut out = io::stdout().lock();
        out.write_all(answer.as_bytes())?;
        out.flush()?;
    }
    Ok(())
}

/// What happens in a session.
#[derive(Clone, Copy)]
enum Act {
    Idle,
    Done,
    Noop(u64),
    Fetch(u64),
    Append(u64),
    Ask(u64),
}

impl Act {
    async fn play(self, client: &mut Client) -> io::Result<()> {
        match self {
            Self::Idle => client.idle().await,
            Self::Done => client.done().await,
            Self::Noop(times) => {
                for _ in 0..times {
                    client.command("NOOP").await?;
                }
                Ok(())
            }
            Self::Fetch(size) => client.fetch(size).await,
            Self::Append(size) => client.append(size).await,
            Self::Ask(size) => client.ask(size).await,
        }
    }
}

impl Load {
    async fn obey(&mut self, order: &str) -> io::Result<usize> {
        let words: Vec<&str> = order.split(' ').collect();
        let number = |word: &str| word.parse().map_err(|_| io::Error::other(order.to_owned()));
        match words[..] {
            ["warm"] => {
                self.resuming = self.targets(Mode::Resuming)?;
                connections(&self.resuming, WORKERS, false).await
            }
            ["handshakes", "resumed", n] => connections(&self.resuming, number(n)?, false).await,
            ["handshakes", "hybrid", n] => {
                connections(&self.targets(Mode::Hybrid)?, number(n)?, false).await
            }
            ["handshakes", "classic", n] => {
                connections(&self.targets(Mode::Classic)?, number(n)?, false).await
            }
            ["logins", n] => connections(&self.targets(Mode::Classic)?, number(n)?, true).await,
            ["open", n] => self.open(number(n)?).await,
            ["idle"] => self.each(Act::Idle).await,
            ["done"] => self.each(Act::Done).await,
            ["noop", n] => self.each(Act::Noop(number(n)? as u64)).await,
            ["fetch", n] => self.each(Act::Fetch(number(n)? as u64)).await,
            ["append", n] => self.each(Act::Append(number(n)? as u64)).await,
            ["ask", n] => self.each(Act::Ask(number(n)? as u64)).await,
            ["close"] => {
                let mut closing = JoinSet::new();
                for client in self.sessions.drain(..) {
                    closing.spawn(client.close());
                }
                while closing.join_next().await.is_some() {}
                Ok(0)
            }
            _ => Err(io::Error::other(format!("unknown order {order:?}"))),
        }
    }

    fn targets(&self, mode: Mode) -> io::Result<Vec<Target>> {
        (0..WORKERS).map(|_| Target::new(self.port, self.ca.as_deref(), mode)).collect()
    }

    async fn open(&mut self, n: usize) -> io::Result<usize> {
        let target = Target::new(self.port, self.ca.as_deref(), Mode::Classic)?;
        let left = Arc::new(AtomicUsize::new(n));
        let mut opening = JoinSet::new();
        for _ in 0..WORKERS.min(n) {
            let (target, left) = (target.clone(), Arc::clone(&left));
            opening.spawn(async move {
                let mut opened = Vec::new();
                while claim(&left) {
                    let mut client = Client::connect(&target).await?;
                    client.log_in().await?;
                    opened.push(client);
                }
                io::Result::Ok(opened)
            });
        }
        while let Some(opened) = opening.join_next().await {
            self.sessions.extend(opened??);
        }
        Ok(self.sessions.len())
    }

    /// In every session at once.
    async fn each(&mut self, act: Act) -> io::Result<usize> {
        let mut working = JoinSet::new();
        for mut client in self.sessions.drain(..) {
            working.spawn(async move {
                let played = timeout(LIMIT, act.play(&mut client)).await;
                played.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
                io::Result::Ok(client)
            });
        }
        while let Some(client) = working.join_next().await {
            self.sessions.push(client??);
        }
        Ok(self.sessions.len())
    }
}

fn claim(left: &AtomicUsize) -> bool {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok()
}

/// `n` connections, one worker for each of `targets`, with a whole login cycle or only the greeting; how many were
/// resumed.
async fn connections(targets: &[Target], n: usize, cycle: bool) -> io::Result<usize> {
    let left = Arc::new(AtomicUsize::new(n));
    let mut workers = JoinSet::new();
    for target in targets {
        let (target, left) = (target.clone(), Arc::clone(&left));
        workers.spawn(async move {
            let mut resumed = 0;
            while claim(&left) {
                let mut client = Client::connect(&target).await?;
                resumed += usize::from(client.resumed);
                if cycle {
                    client.log_in().await?;
                    for command in ["SELECT INBOX", "NOOP", "LOGOUT"] {
                        client.command(command).await?;
                    }
                }
                client.close().await?;
            }
            io::Result::Ok(resumed)
        });
    }
    let mut resumed = 0;
    while let Some(worker) = workers.join_next().await {
        resumed += worker??;
    }
    Ok(resumed)
}
