//! Real mail clients and tools in front of the proxy, Dovecot behind it.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use support::{Dovecot, Finished, PATIENCE, Proxy, program, run};

const LIMIT: Duration = Duration::from_secs(120);

fn message(number: usize, size: usize) -> Vec<u8> {
    let head = format!(
        "From: sender{number}@example.org\r\nTo: alice@example.org\r\nSubject: message {number}\r\n\
         Date: Thu, 1 Jan 2026 00:00:{:02} +0000\r\nMessage-ID: <{number}@example.org>\r\n\r\n",
        number % 60
    );
    let mut body = String::new();
    let mut line = number;
    while body.len() < size {
        // Of every length, and with what has a meaning in IMAP and in mail.
        body += &format!("{line:x} {{{number}}} a{number} OK \u{e9} {}\r\n", "x".repeat(line % 71));
        line = line * 31 % 9973 + 1;
    }
    (head + &body).into_bytes()
}

#[test]
fn curl_fetches_appends_and_searches() {
    let dovecot = Dovecot::start();
    dovecot.deliver("alice", 1, &message(1, 100));
    dovecot.deliver("alice", 2, &message(2, 300_000));
    let proxy = Proxy::start(&dovecot, "");
    let curl = |arguments: &[&str], path: &str| {
        let mut command = Command::new(program("curl", "curl"));
        command.args(["--silent", "--show-error", "--fail", "--max-time", "60", "--cacert"]);
        command.arg(&proxy.certificates.ca).args(["--user", "alice:secret"]).args(arguments);
        command.arg(format!("imaps://localhost:{}/{path}", proxy.imaps.port()));
        run(&mut command, b"", LIMIT).succeeded().stdout
    };
    assert_eq!(curl(&[], "INBOX;MAILINDEX=2"), String::from_utf8(message(2, 300_000)).unwrap());
    let file = proxy.folder.path().join("upload");
    fs::write(&file, message(3, 1_000_000)).unwrap();
    curl(&["--upload-file", &file.display().to_string()], "INBOX");
    assert_eq!(curl(&[], "INBOX;MAILINDEX=3"), String::from_utf8(message(3, 1_000_000)).unwrap());
    let found = curl(&[], "INBOX?SUBJECT%20%22message%203%22");
    assert_eq!(found.trim(), "* SEARCH 3");
    assert!(curl(&["--request", "LIST \"\" *"], "").contains("INBOX"));
    // curl knows these mechanisms; with and without an initial response.
    for mechanism in ["PLAIN", "LOGIN", "CRAM-MD5"] {
        let options = format!("AUTH={mechanism}");
        for initial in [&["--sasl-ir"][..], &[]] {
            let arguments = [&["--login-options", &options][..], initial].concat();
            assert!(curl(&arguments, "INBOX;MAILINDEX=1").contains("message 1"), "{mechanism}");
        }
    }
    proxy.stop();
}

#[test]
fn curl_is_told_that_the_password_is_wrong() {
    let dovecot = Dovecot::start();
    let proxy = Proxy::start(&dovecot, "");
    let mut command = Command::new(program("curl", "curl"));
    command.args(["--silent", "--show-error", "--max-time", "60", "--user", "alice:wrong"]);
    command.arg("--cacert").arg(&proxy.certificates.ca);
    command.arg(format!("imaps://localhost:{}/", proxy.imaps.port()));
    assert_eq!(run(&mut command, b"", LIMIT).code, Some(67)); // CURLE_LOGIN_DENIED
    proxy.stop();
}

#[test]
fn openssl_speaks_both_versions_and_alpn() {
    let dovecot = Dovecot::start();
    let proxy = Proxy::start(&dovecot, "");
    let s_client = |arguments: &[&str]| -> Finished {
        let mut command = Command::new(program("openssl", "openssl"));
        command.args([
            "s_client",
            "-connect",
            &proxy.imaps.to_string(),
            "-servername",
            "localhost",
        ]);
        command.arg("-CAfile").arg(&proxy.certificates.ca);
        command.args(["-verify_return_error", "-crlf", "-ign_eof"]).args(arguments);
        run(&mut command, b"a LOGIN alice secret\nb LOGOUT\n", LIMIT)
    };
    for (arguments, expected) in [
        (&["-tls1_2"][..], "TLSv1.2"),
        (&["-tls1_3"], "TLSv1.3"),
        (&["-tls1_3", "-alpn", "imap"], "ALPN protocol: imap"),
        (&["-tls1_2", "-alpn", "h2,imap"], "ALPN protocol: imap"),
        (&["-tls1_3"], "No ALPN negotiated"),
        (&["-tls1_2", "-cipher", "ECDHE-ECDSA-CHACHA20-POLY1305"], "CHACHA20"),
    ] {
        let finished = s_client(arguments).succeeded();
        let output = finished.stdout;
        assert!(output.contains(expected), "{arguments:?}: {output}");
        assert!(output.contains("a OK") && output.contains("b OK"), "{arguments:?}: {output}");
        assert!(output.contains("Verify return code: 0 (ok)"), "{output}");
        assert!(
            !finished.stderr.contains("unexpected eof"),
            "no close_notify: {}",
            finished.stderr
        );
    }
    for version in ["-tls1_2", "-tls1_3"] {
        let finished = s_client(&[version, "-alpn", "h2"]);
        assert_ne!(finished.code, Some(0));
        assert!(finished.stderr.contains("alert number 120"), "{}", finished.stderr);
    }
    for old in ["-tls1", "-tls1_1"] {
        assert_ne!(s_client(&[old, "-cipher", "ALL:@SECLEVEL=0"]).code, Some(0), "{old}");
    }
    proxy.stop();
}

/// F4: renegotiation and early data, as openssl asks for them.
#[test]
fn openssl_gets_no_renegotiation() {
    let dovecot = Dovecot::start();
    let proxy = Proxy::start(&dovecot, "timeouts: { login: 5s }");
    let mut command = Command::new(program("openssl", "openssl"));
    command.args(["s_client", "-connect", &proxy.imaps.to_string(), "-tls1_2", "-crlf"]);
    command.arg("-CAfile").arg(&proxy.certificates.ca);
    // A line that begins with R asks for a renegotiation.
    let finished = run(&mut command, b"R\n", LIMIT);
    assert!(finished.stdout.contains("Secure Renegotiation IS supported"), "{finished:?}");
    assert!(finished.stderr.contains("RENEGOTIATING"), "{finished:?}");
    assert!(finished.stderr.contains("no renegotiation"), "{finished:?}");
    assert_ne!(finished.code, Some(0), "{finished:?}");
    proxy.stop();
}

fn python(script: &str, proxy: &Proxy<'_>, arguments: &[&str]) -> Finished {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(script);
    let mut command = Command::new(program("python3", "python3"));
    command.arg(script).arg("localhost").arg(proxy.imaps.port().to_string());
    command.arg(&proxy.certificates.ca).args(arguments);
    run(&mut command, b"", LIMIT).succeeded()
}

#[test]
fn imaplib_works_through_a_whole_session() {
    let dovecot = Dovecot::start();
    let proxy = Proxy::start(&dovecot, "");
    let finished = python("session.py", &proxy, &["alice", "secret"]);
    assert_eq!(finished.stdout, "done\n", "{finished:?}");
    proxy.wait_for_ends("logout", 2);
    proxy.stop();
}

#[test]
fn every_mechanism_logs_in_with_and_without_an_initial_response() {
    let dovecot = Dovecot::start();
    let proxy = Proxy::start(&dovecot, "");
    let mut expected = Vec::new();
    for mechanism in ["PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-256"] {
        for initial in ["waits", "initial"] {
            let finished = python("sasl.py", &proxy, &[mechanism, initial, "alice", "secret"]);
            assert_eq!(finished.stdout, "done\n", "{mechanism}, {initial}: {finished:?}");
            expected.push((mechanism.to_owned(), "ok".to_owned()));
        }
    }
    let logins = proxy.wait_for_logins(expected.len());
    let logged: Vec<_> = logins
        .iter()
        .map(|line| (line.field("mechanism").to_ascii_uppercase(), line.field("result")))
        .collect();
    assert_eq!(logged, expected);
    for line in logins {
        assert_eq!(line.field("user"), "alice", "{line:?}");
    }
    let ok = |mechanism: &str| {
        let mechanism = format!("mechanism=\"{mechanism}\"");
        proxy.sum("imaps_proxy_logins_total", &["result=\"ok\"", &mechanism])
    };
    for mechanism in ["PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-256"] {
        assert_eq!(ok(mechanism), 2.0, "{:#?}", proxy.series());
    }
    proxy.stop();
}

#[test]
fn mechanisms_refuse_a_wrong_password() {
    for mechanism in ["PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-256"] {
        // One Dovecot each: it makes an address wait after a refusal.
        let dovecot = Dovecot::start();
        let proxy = Proxy::start(&dovecot, "");
        let finished = python("sasl.py", &proxy, &[mechanism, "waits", "alice", "wrong"]);
        let refused = finished.stdout.starts_with("refused: a NO [AUTHENTICATIONFAILED]");
        assert!(refused, "{mechanism}: {finished:?}");
        assert_eq!(proxy.wait_for_logins(1)[0].field("result"), "rejected");
        proxy.stop();
    }
}

/// A bearer token that Dovecot checks by itself: a JWT, signed with a key that both know.
fn xoauth2_dovecot(folder: &Path) -> Dovecot {
    let keys = folder.join("keys/default/HS256");
    fs::create_dir_all(&keys).unwrap();
    fs::write(keys.join("default"), "c2VjcmV0IHNpZ25pbmcga2V5").unwrap(); // "secret signing key"
    let settings = folder.join("oauth2.conf");
    let text = format!(
        "introspection_mode = local\nlocal_validation_key_dict = fs:posix:prefix={}/\n\
         username_attribute = sub\n",
        folder.join("keys").display()
    );
    fs::write(&settings, text).unwrap();
    for entry in ["", "keys", "keys/default", "keys/default/HS256"] {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(folder.join(entry), fs::Permissions::from_mode(0o755)).unwrap();
    }
    Dovecot::with(&format!(
        "auth_mechanisms = plain xoauth2\n\
         passdb {{\n driver = oauth2\n mechanisms = xoauth2\n args = {}\n}}\n",
        settings.display()
    ))
}

fn token(user: &str) -> String {
    let script = "import base64,hashlib,hmac,json,sys,time\n\
                  b=lambda x:base64.urlsafe_b64encode(x).rstrip(b'=')\n\
                  h=b(json.dumps({'alg':'HS256','typ':'JWT'}).encode())\n\
                  p=b(json.dumps({'sub':sys.argv[1],'iat':int(time.time())-10,\
                  'exp':int(time.time())+600}).encode())\n\
                  s=b(hmac.digest(b'secret signing key',h+b'.'+p,'sha256'))\n\
                  print((h+b'.'+p+b'.'+s).decode(),end='')";
    let mut command = Command::new(program("python3", "python3"));
    run(command.args(["-c", script, user]), b"", LIMIT).succeeded().stdout
}

#[test]
fn xoauth2_logs_in_and_shows_the_reason_of_a_refusal() {
    let folder = tempfile::tempdir().unwrap();
    let dovecot = xoauth2_dovecot(folder.path());
    let proxy = Proxy::start(&dovecot, "");
    for initial in ["waits", "initial"] {
        let arguments = ["XOAUTH2", initial, "alice", &token("alice")];
        let finished = python("sasl.py", &proxy, &arguments);
        assert_eq!(finished.stdout, "done\n", "{initial}: {finished:?}");
    }
    let finished = python("sasl.py", &proxy, &["XOAUTH2", "initial", "alice", "not.a.token"]);
    assert!(finished.stdout.starts_with("refused: a NO"), "{finished:?}");
    let logged: Vec<_> = proxy
        .wait_for_logins(3)
        .iter()
        .map(|line| (line.field("user"), line.field("mechanism").to_ascii_uppercase()))
        .collect();
    assert_eq!(logged, vec![("alice".to_owned(), "XOAUTH2".to_owned()); 3]);
    proxy.stop();
}

struct Mbsync {
    folder: tempfile::TempDir,
    config: PathBuf,
}

impl Mbsync {
    fn new(account: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display();
        let config = folder.path().join("mbsyncrc");
        let text = format!(
            "IMAPAccount test\n{account}User alice\nPass secret\nAuthMechs LOGIN\nTimeout 60\n\n\
             IMAPStore far\nAccount test\n\n\
             MaildirStore near\nPath {path}/\nInbox {path}/INBOX\n\n\
             Channel all\nFar :far:\nNear :near:\nPattern INBOX\nCreate Both\nSync All\n\
             Expunge Both\nSyncState {path}/state-\n"
        );
        fs::write(&config, text).unwrap();
        Self { folder, config }
    }

    fn sync(&self) {
        let mut command = Command::new(program("mbsync", "isync"));
        command.arg("--config").arg(&self.config).arg("--all");
        run(&mut command, b"", LIMIT).succeeded();
    }

    /// All messages, sorted, without the line by which mbsync knows its own on their way.
    fn messages(&self) -> Vec<Vec<u8>> {
        let inbox = self.folder.path().join("INBOX");
        let files = ["cur", "new"].iter().flat_map(|part| fs::read_dir(inbox.join(part)).unwrap());
        let mut all: Vec<_> =
            files.map(|entry| without_tuid(&fs::read(entry.unwrap().path()).unwrap())).collect();
        all.sort();
        all
    }

    fn add(&self, number: usize, message: &[u8]) {
        let name = format!("{}.M{number}P1.localhost", 1_800_000_000 + number);
        fs::write(self.folder.path().join("INBOX/new").join(name), unix(message)).unwrap();
    }
}

#[test]
fn mbsync_brings_the_same_through_the_proxy_as_past_it() {
    let dovecot = Dovecot::start();
    let original = |number: usize| message(number, [10, 700, 4_000, 20_000][number % 4] + number);
    for number in 0..500 {
        dovecot.deliver("alice", number, &original(number));
    }
    let proxy = Proxy::start(&dovecot, "");
    let past =
        Mbsync::new(&format!("Host 127.0.0.1\nPort {}\nSSLType None\n", dovecot.address.port()));
    let through = Mbsync::new(&format!(
        "Host localhost\nPort {}\nSSLType IMAPS\nCertificateFile {}\nSystemCertificates no\n",
        proxy.imaps.port(),
        proxy.certificates.ca.display()
    ));
    let written = |count: usize| {
        let mut all: Vec<_> = (0..count).map(original).map(|message| unix(&message)).collect();
        all.sort();
        all
    };
    through.sync();
    past.sync();
    assert_eq!(through.messages().len(), 500);
    assert!(through.messages() == past.messages(), "the two copies differ");
    assert!(through.messages() == written(500), "the copies are not what was sent");
    // The other way: new mail at home, through the proxy up to the server, past it down again.
    for number in 500..550 {
        through.add(number, &original(number));
    }
    through.sync();
    assert_eq!(dovecot.messages("alice").len(), 550);
    past.sync();
    assert!(through.messages() == past.messages(), "the two copies differ");
    assert!(past.messages() == written(550), "the copies are not what was sent");
    proxy.stop();
}

fn without_tuid(message: &[u8]) -> Vec<u8> {
    let lines = message.split_inclusive(|&byte| byte == b'\n');
    lines.filter(|line| !line.starts_with(b"X-TUID: ")).collect::<Vec<_>>().concat()
}

fn unix(message: &[u8]) -> Vec<u8> {
    message.iter().copied().filter(|&byte| byte != b'\r').collect()
}

#[test]
fn curl_without_tls_on_the_tls_port_fails_at_once_and_readably() {
    let dovecot = Dovecot::start();
    let proxy = Proxy::start(&dovecot, "");
    let mut command = Command::new(program("curl", "curl"));
    command.args(["--silent", "--show-error", "--max-time", "60"]);
    command.arg(format!("http://{}/", proxy.imaps));
    let finished = run(&mut command, b"", PATIENCE).succeeded();
    assert!(finished.stdout.to_uppercase().contains("IMAP"), "{finished:?}");
    proxy.stop();
}
