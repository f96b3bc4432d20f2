//! A real Dovecot from a temporary folder, as the legacy server: plaintext IMAP, Maildir, STARTTLS on
//! offer. Users: `alice` and `bob`, password `secret`. Up in about 50 ms.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{fs, thread};

use rustix::process::Signal;

use super::certificates::Certificates;
use super::process::Process;
use super::programs::program;
use super::proxy::{Backend, free_port};
use super::wait::{PATIENCE, within};

pub struct Dovecot {
    process: Mutex<Process>,
    pub address: SocketAddr,
    folder: tempfile::TempDir,
    owner: u32,
}

/// Owner of the mail when the test runs as root: Dovecot serves no mail as root.
const NOBODY: u32 = 65534;

impl Dovecot {
    /// Accepts plaintext logins.
    #[track_caller]
    pub fn start() -> Self {
        Self::launch(Ipv4Addr::LOCALHOST, "disable_plaintext_auth = no\n")
    }

    /// As [`Dovecot::start`], with more lines of configuration.
    #[track_caller]
    pub fn with(config: &str) -> Self {
        Self::launch(Ipv4Addr::LOCALHOST, &format!("disable_plaintext_auth = no\n{config}\n"))
    }

    /// Refuses plaintext logins and says `LOGINDISABLED`. Dovecot takes a connection whose two ends
    /// have one address for secure, so it listens on another loopback address than the one from
    /// which the system reaches it.
    #[track_caller]
    pub fn that_wants_tls() -> Self {
        Self::that_wants_tls_with("")
    }

    #[track_caller]
    pub fn that_wants_tls_with(config: &str) -> Self {
        let config = format!("disable_plaintext_auth = yes\n{config}\n");
        Self::launch(Ipv4Addr::new(127, 0, 0, 2), &config)
    }

    /// Listens on `ip`: a proxy that calls another loopback address than 127.0.0.1 is a stranger.
    #[track_caller]
    pub fn at(ip: Ipv4Addr, config: &str) -> Self {
        Self::launch(ip, &format!("disable_plaintext_auth = no\n{config}\n"))
    }

    #[track_caller]
    fn launch(ip: Ipv4Addr, config: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("it is ours");
        Certificates::make(path);
        let users = "alice:{PLAIN}secret\nbob:{PLAIN}secret\n";
        fs::write(path.join("users"), users).expect("the folder is ours");
        fs::create_dir(path.join("mail")).expect("the folder is ours");
        let root = rustix::process::geteuid().is_root();
        let owner = if root { NOBODY } else { rustix::process::geteuid().as_raw() };
        let group = if root { NOBODY } else { rustix::process::getegid().as_raw() };
        if root {
            chown(path.join("mail"), Some(owner), Some(group)).expect("we are root");
        }
        let unprivileged = if root {
            String::new()
        } else {
            let name = |flag| {
                let id = Command::new("id").arg(flag).output().expect("id is everywhere").stdout;
                String::from_utf8(id).expect("a name").trim().to_owned()
            };
            let (user, group) = (name("-un"), name("-gn"));
            format!(
                "default_login_user = {user}\ndefault_internal_user = {user}\n\
                 default_internal_group = {group}\n\
                 service anvil {{\n chroot =\n}}\nservice imap-login {{\n chroot =\n}}\n"
            )
        };
        for _ in 0..5 {
            let address = SocketAddr::from((ip, free_port()));
            let file = path.join("dovecot.conf");
            // The folder last: its name is random, and may hold one of the other words.
            let template = TEMPLATE
                .replace("IP", &ip.to_string())
                .replace("PORT", &address.port().to_string())
                .replace("UID", &owner.to_string())
                .replace("GID", &group.to_string())
                .replace("FOLDER", &path.display().to_string());
            fs::write(&file, template + &unprivileged + config).expect("the folder is ours");
            let mut process = run(&file);
            if wait_for_greeting(&mut process, address) {
                let process = Mutex::new(process);
                let dovecot = Self { process, address, folder, owner };
                dovecot.wait_for_connections(0);
                return dovecot;
            }
            let said =
                process.text() + &fs::read_to_string(path.join("dovecot.log")).unwrap_or_default();
            // Somebody else was quicker to take the port: another one, then.
            assert!(said.contains("Address already in use"), "Dovecot does not start:\n{said}");
        }
        panic!("five ports in a row were taken");
    }

    /// It and all that it has started.
    pub fn kill(&self) {
        self.process().kill_group();
    }

    /// At its old address, after [`Self::kill`].
    #[track_caller]
    pub fn start_again(&self) {
        let file = self.folder.path().join("dovecot.conf");
        within(PATIENCE, "Dovecot starts again", || {
            let mut process = run(&file);
            let greets = wait_for_greeting(&mut process, self.address);
            *self.process() = process;
            greets
        });
    }

    /// SIGSTOP or SIGCONT, for it and all that it has started.
    pub fn signal(&self, signal: Signal) {
        self.process().signal_group(signal);
    }

    fn process(&self) -> MutexGuard<'_, Process> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The CA of its certificate, which is for `localhost` and the loopback addresses.
    pub fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    pub fn certificate(&self) -> PathBuf {
        self.folder.path().join("cert.pem")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("dovecot.log")).unwrap_or_default()
    }

    /// Puts a message into `user`'s INBOX; its file name sorts by `number`.
    pub fn deliver(&self, user: &str, number: usize, message: &[u8]) {
        let maildir = self.maildir(user);
        let name = format!("{}.M{number}P1.localhost", 1_700_000_000 + number);
        let file = maildir.join("cur").join(format!("{name}:2,"));
        fs::write(&file, message).expect("the folder is ours");
        self.give(&file);
    }

    /// The messages in `user`'s INBOX, bytes as stored.
    pub fn messages(&self, user: &str) -> Vec<Vec<u8>> {
        let maildir = self.maildir(user);
        let mut files: Vec<PathBuf> = ["cur", "new"]
            .iter()
            .flat_map(|part| fs::read_dir(maildir.join(part)).expect("it is a Maildir"))
            .map(|entry| entry.expect("it is readable").path())
            .collect();
        files.sort();
        files.iter().map(|file| fs::read(file).expect("it is readable")).collect()
    }

    /// Waits until the backend has exactly `count` connections.
    #[track_caller]
    pub fn wait_for_connections(&self, count: usize) {
        within(PATIENCE, &format!("{count} connections in Dovecot"), || {
            self.connections() == count
        });
    }

    fn maildir(&self, user: &str) -> PathBuf {
        let maildir = self.folder.path().join("mail").join(user);
        for part in ["", "cur", "new", "tmp"] {
            let part = maildir.join(part);
            if !part.is_dir() {
                fs::create_dir(&part).expect("the folder is ours");
                self.give(&part);
            }
        }
        maildir
    }

    fn give(&self, path: &Path) {
        if rustix::process::geteuid().is_root() {
            chown(path, Some(self.owner), Some(self.owner)).expect("we are root");
        }
    }
}

impl Backend for Dovecot {
    fn address(&self) -> String {
        self.address.to_string()
    }

    fn connections(&self) -> usize {
        established(self.address)
    }
}

impl Drop for Dovecot {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- Dovecot's log:\n{}\n---", self.log());
        }
        // The master with its children, which share its process group: asked nicely it takes a second,
        // and nothing in the folder outlives the test anyway.
        self.kill();
    }
}

/// A server's own ends, out of the kernel's table: established, or closed by the other end only.
pub fn established(address: SocketAddr) -> usize {
    let table = fs::read_to_string("/proc/net/tcp").expect("Linux has this file");
    let port = format!(":{:04X}", address.port());
    let counts = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.len() > 3 && fields[1].ends_with(&port) && matches!(fields[3], "01" | "08")
    };
    table.lines().filter(counts).count()
}

fn run(file: &Path) -> Process {
    let mut command = Command::new(program("dovecot", "dovecot-imapd"));
    command.arg("-F").arg("-c").arg(file);
    Process::start(command)
}

/// False when Dovecot ended instead.
fn wait_for_greeting(process: &mut Process, address: SocketAddr) -> bool {
    let start = Instant::now();
    while process.exited().is_none() {
        assert!(start.elapsed() < PATIENCE, "Dovecot does not greet:\n{}", process.text());
        if greets(address).unwrap_or(false) {
            return true;
        }
        thread::sleep(Duration::from_millis(5));
    }
    false
}

fn greets(address: SocketAddr) -> std::io::Result<bool> {
    let mut tcp = TcpStream::connect(address)?;
    tcp.set_read_timeout(Some(PATIENCE))?;
    let mut lines = BufReader::new(tcp.try_clone()?).lines();
    // The very first client may be told "* OK Waiting for authentication process to respond.." first.
    while let Some(line) = lines.next().transpose()? {
        if line.starts_with("* OK [CAPABILITY") {
            tcp.write_all(b"a LOGOUT\r\n")?;
            return Ok(lines.count() > 0);
        }
    }
    Ok(false)
}

const TEMPLATE: &str = "\
base_dir = FOLDER/run
state_dir = FOLDER/state
log_path = FOLDER/dovecot.log
protocols = imap
listen = IP
ssl = yes
ssl_cert = <FOLDER/cert.pem
ssl_key = <FOLDER/key.pem
auth_mechanisms = plain login cram-md5 scram-sha-256
mail_location = maildir:FOLDER/mail/%u
mailbox_idle_check_interval = 1s
first_valid_uid = 1
default_process_limit = 2000
default_client_limit = 8000
passdb {
  driver = passwd-file
  args = scheme=PLAIN username_format=%u FOLDER/users
}
userdb {
  driver = static
  args = uid=UID gid=GID home=FOLDER/mail/%u
}
service imap-login {
  inet_listener imap {
    address = IP
    port = PORT
  }
  inet_listener imaps {
    port = 0
  }
}
protocol imap {
  mail_max_userip_connections = 0
}
";
