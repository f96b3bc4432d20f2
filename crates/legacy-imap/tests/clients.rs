//! The embedded legacy server, without a proxy in front of it, under real mail clients.
//!
//! Needs curl, Python 3 and mbsync: `apt-get install curl python3 isync`.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use legacy_imap::Server;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A server of its own for every test; stopped, and its end waited for, when dropped.
struct Demo {
    runtime: Runtime,
    address: SocketAddr,
    stop: CancellationToken,
    task: Option<JoinHandle<()>>,
}

impl Demo {
    fn start() -> Self {
        let runtime = Runtime::new().unwrap();
        let _inside = runtime.enter();
        let server = Server::bind((Ipv4Addr::LOCALHOST, 0).into(), "demo", "demo").unwrap();
        let (address, stop) = (server.local_addr(), CancellationToken::new());
        let task = Some(runtime.spawn(server.serve(stop.clone())));
        drop(_inside);
        Self { runtime, address, stop, task }
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(task) = self.task.take() {
            self.runtime.block_on(task).expect("the server ends without a panic");
        }
    }
}

/// What a program that succeeds writes to standard output.
fn output(package: &str, command: &mut Command) -> Vec<u8> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output();
    let output =
        output.unwrap_or_else(|e| panic!("{name}: {e}; install it: apt-get install {package}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {}\n{errors}", output.status);
    output.stdout
}

fn curl(demo: &Demo, path: &str, more: &[&str]) -> String {
    let url = format!("imap://{}/{path}", demo.address);
    let mut command = Command::new("curl");
    command.args(["-sS", "--max-time", "20", "-u", "demo:demo", &url]).args(more);
    String::from_utf8(output("curl", &mut command)).unwrap()
}

#[test]
fn curl_lists_fetches_searches_and_appends() {
    let demo = Demo::start();
    assert_eq!(curl(&demo, "", &[]).lines().count(), 3);
    assert_eq!(curl(&demo, "INBOX?ALL", &[]).trim(), "* SEARCH 1 2 3 4 5 6 7 8");
    let message = curl(&demo, "INBOX;UID=1", &[]);
    assert!(message.contains("Subject: Welcome to the demo mailbox\r\n"), "{message}");
    assert!(curl(&demo, "INBOX;UID=3;SECTION=2", &[]).starts_with("iVBOR"));
    curl(&demo, "INBOX", &["--login-options", "AUTH=PLAIN", "-T", "Cargo.toml"]);
    let envelopes = curl(&demo, "INBOX", &["-X", "FETCH 1:* (FLAGS ENVELOPE)"]);
    assert_eq!(envelopes.lines().count(), 9);
    assert!(envelopes.contains(r#"(("Lena Lindgren" NIL "lena" "design.example"))"#));
}

#[test]
fn imaplib_finds_everything_as_it_should_be() {
    let demo = Demo::start();
    let mut python = Command::new("python3");
    python.arg("tests/session.py").arg(demo.address.port().to_string());
    output("python3", &mut python);
}

#[test]
fn mbsync_carries_mail_both_ways() {
    let demo = Demo::start();
    let home = tempfile::tempdir().unwrap();
    let (here, there) = (home.path().join("here"), home.path().join("there"));
    sync(&demo, &here);
    assert_eq!(messages(&here).len(), 12);
    for number in 0..50 {
        let text = format!("Subject: local {number}\nFrom: a@mail.example\n\n{number}\n.\n");
        std::fs::write(here.join(format!("INBOX/new/{number}.local.example")), text).unwrap();
    }
    sync(&demo, &here);
    sync(&demo, &there);
    assert_eq!(messages(&here), messages(&there));
    assert_eq!(messages(&here).len(), 62);
}

fn sync(demo: &Demo, maildir: &Path) {
    std::fs::create_dir_all(maildir).unwrap();
    let (folder, port) = (maildir.display(), demo.address.port());
    let settings = format!(
        "IMAPAccount demo\nHost 127.0.0.1\nPort {port}\nUser demo\nPassCmd \"echo demo\"\nAuthMechs LOGIN\n\
         SSLType None\n\nIMAPStore far\nAccount demo\n\nMaildirStore near\nPath {folder}/\nInbox {folder}/INBOX\n\
         SubFolders Verbatim\n\nChannel all\nFar :far:\nNear :near:\nPatterns *\nCreate Both\nExpunge Both\n\
         SyncState *\n"
    );
    let file = maildir.with_extension("mbsyncrc");
    std::fs::write(&file, settings).unwrap();
    output("isync", Command::new("mbsync").arg("-c").arg(file).arg("all"));
}

/// Folder and text of every message, without the line that mbsync adds to find its own uploads.
fn messages(maildir: &Path) -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    for folder in ["INBOX", "Sent", "Archive"] {
        for state in ["cur", "new"] {
            for entry in std::fs::read_dir(maildir.join(folder).join(state)).unwrap() {
                let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
                let kept = text.split_inclusive('\n').filter(|line| !line.starts_with("X-TUID: "));
                found.insert((folder.to_owned(), kept.collect()));
            }
        }
    }
    found
}
