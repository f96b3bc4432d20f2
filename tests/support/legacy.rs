//! Real legacy servers beside Dovecot: Cyrus and Courier, as Debian ships them, from where `tests/servers.sh` has
//! unpacked them. Users: `alice` and `bob`, password `secret`. Up in less than a second.
//!
//! They have paths of the system built in, they log to syslog, and some of their processes leave the process group. So each
//! runs in namespaces of its own (which takes root): `/etc`, `/run` and `/dev/log` are the test's, and when its first process
//! ends all others do. The network is the system's.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{fs, thread};

use super::certificates::Certificates;
use super::process::Process;
use super::programs::{program, run};
use super::proxy::{Backend, free_port};
use super::wait::{PATIENCE, within};

pub struct Legacy {
    process: Mutex<Process>,
    pub address: SocketAddr,
    folder: tempfile::TempDir,
    syslog: Syslog,
}

/// Owner of all mail.
const NOBODY: u32 = 65534;

/// `sh -c JAIL jail PROGRAM ARGUMENT…` in the folder of one server: what it sees of the system.
const JAIL: &str = "\
set -e
mkdir dev
mount -t tmpfs none dev
for node in null zero full random urandom; do
    : >dev/$node
    mount --bind /dev/$node dev/$node
done
ln -s \"$PWD/syslog\" dev/log
mount --rbind dev /dev
mount -t tmpfs none /run
mount -t overlay -o lowerdir=\"$PWD/etc:/etc\" none /etc
exec \"$@\"
";

impl Legacy {
    /// Cyrus 3.6 with plaintext logins; `config` is added to its `imapd.conf`, where the last of a key counts.
    #[track_caller]
    pub fn cyrus(config: &str) -> Self {
        Self::cyrus_with(config, "")
    }

    /// As [`Legacy::cyrus`], with options for its imapd.
    #[track_caller]
    pub fn cyrus_with(config: &str, options: &str) -> Self {
        let (folder, address) = prepare();
        let path = folder.path();
        let fill = |template: &str| {
            template
                .replace("ADDRESS", &address.to_string())
                .replace("OPTIONS", options)
                .replace("BIN", &unpacked("cyrus").join("usr/lib/cyrus/bin").display().to_string())
                .replace("FOLDER", &path.display().to_string())
        };
        write(&path.join("imapd.conf"), &fill(&(with(CYRUS_IMAPD, config))));
        write(&path.join("cyrus.conf"), &fill(CYRUS));
        for part in ["conf", "conf/db", "conf/socket", "conf/proc", "conf/lock", "spool"] {
            fs::create_dir(path.join(part)).expect("the folder is ours");
        }
        for user in ["alice", "bob", "cyrus"] {
            let mut command = in_tree("cyrus", "usr/sbin/saslpasswd2");
            command
                .args(["-p", "-c", "-u", "cyrus.test", "-f"])
                .arg(path.join("sasldb2"))
                .arg(user);
            run(&mut command, b"secret\n", PATIENCE).succeeded();
        }
        give_all(path);
        let mut command = in_tree("cyrus", "usr/lib/cyrus/bin/master");
        command.arg("-C").arg(path.join("imapd.conf")).arg("-M").arg(path.join("cyrus.conf"));
        command.arg("-p").arg(path.join("conf/master.pid")).arg("-D");
        Self::start(folder, address, &command)
    }

    /// Courier-IMAP 5.0 with plaintext logins; `config` is added to its `imapd-ssl` file, which is read after `imapd`.
    #[track_caller]
    pub fn courier(config: &str) -> Self {
        let (folder, address) = prepare();
        let path = folder.path();
        let etc = path.join("etc/courier");
        fs::create_dir_all(&etc).expect("the folder is ours");
        let tree = unpacked("courier");
        for file in ["imapd", "imapd-ssl"] {
            let packaged = fs::read_to_string(tree.join("etc/courier").join(file)).expect("text");
            write(&etc.join(file), &packaged);
        }
        let here = |line: &str| line.replace("FOLDER", &path.display().to_string());
        let tls = format!(
            "\nCOURIERTLS={}\nTLS_CERTFILE=FOLDER/both.pem\nIMAP_IDLE_TIMEOUT=1\n{config}\n",
            tree.join("usr/bin/couriertls").display()
        );
        append(&etc.join("imapd-ssl"), &here(&tls));
        let pem = |name: &str| fs::read_to_string(path.join(name)).expect("it was made");
        write(&path.join("both.pem"), &(pem("key.pem") + &pem("cert.pem")));
        write(&etc.join("authdaemonrc"), COURIER_AUTH);
        for user in ["alice", "bob"] {
            let mut command = in_tree("courier", "usr/bin/maildirmake.courier");
            fs::create_dir_all(path.join("mail").join(user)).expect("the folder is ours");
            command.arg(path.join("mail").join(user).join("Maildir"));
            run(&mut command, b"", PATIENCE).succeeded();
        }
        let table = |name: &str, value: &dyn Fn(&str) -> String| {
            let line = |user: &str| format!("{user}\t{}\n", value(user));
            write(&path.join("table"), &(line("alice") + &line("bob") + ".\n"));
            let mut command = in_tree("courier", "usr/lib/courier/courier-authlib/makedatprog");
            command.args([path.join("table"), path.join("table.new"), etc.join(name)]);
            run(&mut command, b"", PATIENCE).succeeded();
        };
        table("userdb.dat", &|user| here(&format!("uid=65534|gid=65534|home=FOLDER/mail/{user}")));
        table("userdbshadow.dat", &|_| format!("imappw={SECRET}"));
        give_all(&path.join("mail"));
        write(&path.join("courier.sh"), COURIER);
        let mut command = in_tree("courier", "/bin/sh");
        command.arg(path.join("courier.sh")).arg(&tree).arg(address.port().to_string());
        Self::start(folder, address, &command)
    }

    #[track_caller]
    fn start(folder: tempfile::TempDir, address: SocketAddr, server: &Command) -> Self {
        let syslog = Syslog::at(&folder.path().join("syslog"));
        let mut command = Command::new(program("unshare", "util-linux"));
        command.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", JAIL, "jail"]);
        command.arg(server.get_program()).args(server.get_args()).current_dir(folder.path());
        command
            .envs(server.get_envs().filter_map(|(name, value)| value.map(|value| (name, value))));
        let process = Mutex::new(Process::start(command));
        let server = Self { process, address, folder, syslog };
        within(PATIENCE, "the server greets", || {
            assert!(server.process().exited().is_none(), "it ended");
            greets(address)
        });
        server.wait_for_connections(0);
        server
    }

    /// Ends all of its processes at once.
    pub fn kill(&self) {
        self.process().kill_group();
    }

    /// All that it has printed and sent to syslog.
    pub fn log(&self) -> String {
        self.process().text() + "\n" + &self.syslog.text()
    }

    /// A line of the log with all of `words`.
    #[track_caller]
    pub fn wait_for_log(&self, words: &[&str]) -> String {
        let find = || {
            let log = self.log();
            let line = log.lines().find(|line| words.iter().all(|word| line.contains(word)));
            line.map(str::to_owned)
        };
        within(PATIENCE, &format!("a line with {words:?}"), || find().is_some());
        find().expect("it was there")
    }

    fn process(&self) -> MutexGuard<'_, Process> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[track_caller]
    fn wait_for_connections(&self, count: usize) {
        within(PATIENCE, &format!("{count} connections"), || self.connections() == count);
    }
}

impl Backend for Legacy {
    fn address(&self) -> String {
        self.address.to_string()
    }

    fn connections(&self) -> usize {
        super::dovecot::established(self.address)
    }
}

impl Drop for Legacy {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- the server's log:\n{}\n---", self.log());
        }
        self.process().kill_group();
        self.syslog.end();
    }
}

/// Takes what is logged to one socket.
struct Syslog {
    path: PathBuf,
    lines: Arc<Mutex<String>>,
}

impl Syslog {
    fn at(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).expect("the folder is ours");
        fs::set_permissions(path, fs::Permissions::from_mode(0o666)).expect("it is ours");
        let lines = Arc::new(Mutex::new(String::new()));
        let kept = Arc::clone(&lines);
        thread::spawn(move || {
            let mut line = [0; 8192];
            // An empty one is the end.
            while let Ok(length @ 1..) = socket.recv(&mut line) {
                let text = String::from_utf8_lossy(&line[..length]);
                *kept.lock().unwrap_or_else(PoisonError::into_inner) += &format!("{text}\n");
            }
        });
        Self { path: path.to_owned(), lines }
    }

    fn text(&self) -> String {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn end(&self) {
        let _ = UnixDatagram::unbound().and_then(|socket| socket.send_to(b"", &self.path));
    }
}

/// A folder that everybody may read, with certificates and an empty `etc`, and an address to listen on.
#[track_caller]
fn prepare() -> (tempfile::TempDir, SocketAddr) {
    assert!(rustix::process::geteuid().is_root(), "this test needs root: sudo tests/run");
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("it is ours");
    Certificates::make(folder.path());
    fs::create_dir(folder.path().join("etc")).expect("the folder is ours");
    (folder, SocketAddr::from((Ipv4Addr::LOCALHOST, free_port())))
}

#[track_caller]
fn unpacked(name: &str) -> PathBuf {
    let tree = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/servers").join(name);
    assert!(tree.join("complete").exists(), "this test needs what tests/servers.sh unpacks");
    tree
}

/// A program of an unpacked server, or of the system for it, with the libraries from there.
fn in_tree(name: &str, path: &str) -> Command {
    let tree = unpacked(name);
    let mut command = Command::new(tree.join(path));
    let machine = format!("{}-linux-gnu", std::env::consts::ARCH);
    let folders = |parts: &[String]| {
        let folders: Vec<_> =
            parts.iter().map(|part| tree.join(part).display().to_string()).collect();
        folders.join(":")
    };
    let libraries = ["lib/M", "usr/lib/M", "usr/lib", "usr/lib/courier-authlib"];
    let libraries = libraries.map(|part| part.replace('M', &machine));
    command.env("LD_LIBRARY_PATH", folders(&libraries));
    let plugins = format!("usr/lib/{machine}/sasl2");
    command.env("SASL_PATH", format!("{}:/{plugins}", folders(std::slice::from_ref(&plugins))));
    command
}

fn greets(address: SocketAddr) -> bool {
    let Ok(tcp) = TcpStream::connect(address) else { return false };
    tcp.set_read_timeout(Some(PATIENCE)).expect("a limit above zero");
    let mut line = String::new();
    BufReader::new(tcp).read_line(&mut line).is_ok() && line.starts_with("* OK")
}

/// `base` without the keys that `config` sets, and `config`.
fn with(base: &str, config: &str) -> String {
    let key = |line: &str| line.split(':').next().unwrap_or_default().trim().to_owned();
    let own: Vec<String> = config.lines().map(key).collect();
    let kept = base.lines().filter(|line| !own.contains(&key(line)));
    kept.chain(config.lines()).fold(String::new(), |text, line| text + line + "\n")
}

fn write(file: &Path, text: &str) {
    fs::write(file, text).expect("the folder is ours");
}

fn append(file: &Path, text: &str) {
    let before = fs::read_to_string(file).expect("it is there");
    write(file, &(before + text));
}

/// Gives a folder with all that is in it to the owner of mail.
fn give_all(path: &Path) {
    chown(path, Some(NOBODY), Some(NOBODY)).expect("we are root");
    if path.is_dir() {
        for entry in fs::read_dir(path).expect("it is readable") {
            give_all(&entry.expect("it is readable").path());
        }
    }
}

/// `secret`, by `openssl passwd -5`.
const SECRET: &str = "$5$imapsproxy$rSxOQ91lvz061pm8260rPcdrXG0HsO9bq49jCBq7s97";

const CYRUS_IMAPD: &str = "\
configdirectory: FOLDER/conf
proc_path: FOLDER/conf/proc
mboxname_lockpath: FOLDER/conf/lock
defaultpartition: default
partition-default: FOLDER/spool
idlesocket: FOLDER/conf/socket/idle
cyrus_user: nobody
servername: cyrus.test
admins: cyrus
autocreate_quota: 0
allowplaintext: yes
sasl_pwcheck_method: auxprop
sasl_auxprop_plugin: sasldb
sasl_sasldb_path: FOLDER/sasldb2
sasl_mech_list: PLAIN LOGIN CRAM-MD5 SCRAM-SHA-256
tls_server_cert: FOLDER/cert.pem
tls_server_key: FOLDER/key.pem
";

const CYRUS: &str = "\
START {
  recover cmd=\"BIN/ctl_cyrusdb -C FOLDER/imapd.conf -r\"
  idled cmd=\"BIN/idled -C FOLDER/imapd.conf\"
}
SERVICES {
  imap cmd=\"BIN/imapd -C FOLDER/imapd.conf OPTIONS\" listen=\"ADDRESS\" prefork=0
}
EVENTS {
}
";

const COURIER_AUTH: &str = "\
authmodulelist=\"authuserdb\"
authmodulelistorig=\"authuserdb\"
daemons=2
authdaemonvar=/run/courier/authdaemon
DEBUG_LOGIN=0
DEFAULTOPTIONS=\"\"
";

/// As the package's own scripts start it, but for courierlogger: what it says is the log.
const COURIER: &str = "\
set -e
tree=$1 port=$2
mkdir -p /run/courier/authdaemon
(
    set -a
    . /etc/courier/authdaemonrc
    exec $tree/usr/lib/courier/courier-authlib/authdaemond
) &
until [ -S /run/courier/authdaemon/socket ]; do sleep 0.01; done
set -a
. /etc/courier/imapd
. /etc/courier/imapd-ssl
IMAP_STARTTLS=$IMAPDSTARTTLS
exec $tree/usr/sbin/couriertcpd -address=127.0.0.1 -maxprocs=$MAXDAEMONS -maxperip=$MAXPERIP $TCPDOPTS \\
    $port $tree/usr/lib/courier/courier/imaplogin $tree/usr/bin/imapd Maildir
";
