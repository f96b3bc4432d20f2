//! Legacy servers other than Dovecot behind the proxy, through whole sessions: Cyrus 3.6 and Courier-IMAP 5.0.

mod support;

use std::fs;
use std::process::Command;
use std::time::Duration;

use support::{Client, End, Legacy, Proxy, program, run};

const LIMIT: Duration = Duration::from_secs(60);

/// Debian's Courier offers no mechanism without TLS, only LOGIN; this is the line that its operators add.
const WITH_PLAIN: &str = "IMAP_CAPABILITY=\"$IMAP_CAPABILITY AUTH=PLAIN\"";

const MESSAGE: &str =
    "From: a@example.org\r\nSubject: =?utf-8?q?caf=C3=A9?= {3}\r\n\r\na OK {12}\r\n* BYE\r\n.\r\n";

/// The words of a capability list in a greeting or an untagged line.
fn capabilities(line: &str) -> Vec<String> {
    let start = line.find("CAPABILITY ").expect("there is a list") + "CAPABILITY ".len();
    let list = line[start..].split(']').next().expect("split gives at least one");
    list.split(' ').map(str::to_owned).collect()
}

/// What a server says of itself when asked past the proxy.
fn offered(server: &Legacy) -> Vec<String> {
    let mut client = Client::plain(server.address).expect("it listens");
    client.expect("* OK");
    let words = capabilities(&client.command("CAPABILITY")[0]);
    client.result("LOGOUT");
    words
}

/// The proxy's greeting has every word of the server but `gone`, and the server's own text.
#[track_caller]
fn assert_repaired(server: &Legacy, gone: &[&str], text: &str) {
    let offered = offered(server);
    for word in gone {
        assert!(offered.iter().any(|offer| offer == word), "{word} is not in {offered:?}");
    }
    let expected: Vec<_> = offered.into_iter().filter(|word| !gone.contains(&&**word)).collect();
    let proxy = Proxy::start(server, "");
    let mut client = proxy.connect();
    let greeting = client.line();
    assert_eq!(capabilities(&greeting), expected);
    assert!(greeting.contains(text), "{greeting}");
    assert_eq!(capabilities(&client.command("CAPABILITY")[0]), expected);
    proxy.stop();
}

#[test]
fn cyrus_offers_through_the_proxy_what_works_there() {
    let cyrus = Legacy::cyrus("");
    let gone = ["STARTTLS", "COMPRESS=DEFLATE", "MAILBOX-REFERRALS"];
    assert_repaired(&cyrus, &gone, "] cyrus.test Cyrus IMAP 3.6.");
}

#[test]
fn courier_offers_through_the_proxy_what_works_there() {
    let courier = Legacy::courier(WITH_PLAIN);
    assert_repaired(&courier, &["STARTTLS"], "] Courier-IMAP ready.");
}

/// Every way in, and the way it is logged.
fn logs_in_by_every_road(server: &Legacy, mechanisms: &[&str]) {
    let proxy = Proxy::start(server, "");
    let roads = [
        "LOGIN alice secret\r\n",
        "LOGIN \"alice\" \"secret\"\r\n",
        "LOGIN {5+}\r\nalice {6+}\r\nsecret\r\n",
        "AUTHENTICATE PLAIN AGFsaWNlAHNlY3JldA==\r\n",
    ];
    for road in roads {
        let mut client = proxy.connect();
        client.expect("* OK");
        client.send(format!("in {road}"));
        client.until("in OK");
        assert!(client.result("LOGOUT").starts_with("OK"));
        assert_eq!(client.end(), End::Orderly);
    }
    // Synchronising literals, and PLAIN without initial response.
    let mut client = proxy.connect();
    client.expect("* OK");
    client.send("in LOGIN {5}\r\n");
    client.expect("+");
    client.send("alice {6}\r\n");
    client.expect("+");
    client.send("secret\r\n");
    client.until("in OK");
    client.result("LOGOUT");
    for mechanism in mechanisms {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/sasl.py");
        let mut command = Command::new(program("python3", "python3"));
        command.args([script, "localhost", &proxy.imaps.port().to_string()]);
        command.arg(&proxy.certificates.ca).args([mechanism, "waits", "alice", "secret"]);
        let finished = run(&mut command, b"", LIMIT).succeeded();
        assert_eq!(finished.stdout, "done\n", "{mechanism}: {finished:?}");
    }
    let logins = proxy.wait_for_logins(roads.len() + 1 + mechanisms.len());
    assert!(logins.iter().all(|line| line.field("user") == "alice"), "{logins:?}");
    proxy.stop();
}

#[test]
fn cyrus_takes_every_login() {
    logs_in_by_every_road(&Legacy::cyrus(""), &["PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-256"]);
}

#[test]
fn courier_takes_every_login() {
    logs_in_by_every_road(&Legacy::courier(WITH_PLAIN), &["PLAIN"]);
}

/// A wrong password is a refusal, not an outage, and the right one is good afterwards on the same connection.
fn refuses_a_wrong_password(server: &Legacy) {
    let proxy = Proxy::start(server, "");
    let mut client = proxy.connect();
    client.expect("* OK");
    for attempt in ["LOGIN alice wrong", "AUTHENTICATE PLAIN AGFsaWNlAHdyb25n"] {
        let answer = client.result(attempt);
        assert!(answer.starts_with("NO"), "{answer}");
    }
    assert!(client.result("LOGIN alice secret").starts_with("OK"));
    client.result("LOGOUT");
    let results: Vec<_> =
        proxy.wait_for_logins(3).iter().map(|line| line.field("result")).collect();
    assert_eq!(results, ["rejected", "rejected", "ok"]);
    proxy.stop();
}

#[test]
fn cyrus_refuses_a_wrong_password() {
    refuses_a_wrong_password(&Legacy::cyrus(""));
}

#[test]
fn courier_refuses_a_wrong_password() {
    refuses_a_wrong_password(&Legacy::courier(WITH_PLAIN));
}

/// Mail goes in and out unchanged, is found, and arrives in IDLE.
fn serves_a_whole_session(server: &Legacy) {
    let proxy = Proxy::start(server, "");
    let mut client = proxy.logged_in();
    assert!(client.command("CAPABILITY")[0].contains(" IDLE"));
    assert!(client.command("SELECT INBOX").contains(&"* 0 EXISTS".to_owned()));
    client.send(format!("a APPEND INBOX (\\Seen) {{{}}}\r\n", MESSAGE.len()));
    client.until("+");
    client.send(format!("{MESSAGE}\r\n"));
    client.until("a OK");
    client.command("NOOP"); // Courier says only now that it is there
    client.send("f FETCH 1 BODY.PEEK[]\r\n");
    client.until(&format!("* 1 FETCH (BODY[] {{{}}}", MESSAGE.len()));
    assert_eq!(String::from_utf8(client.exactly(MESSAGE.len())).unwrap(), MESSAGE);
    client.until("f OK");
    client.send("s SEARCH CHARSET UTF-8 SUBJECT {5}\r\n");
    client.until("+");
    client.send("caf\u{e9}\r\n");
    let found = client.until("s ");
    assert!(found.contains(&"* SEARCH 1".to_owned()), "{found:?}");

    client.send("i IDLE\r\n");
    client.until("+");
    let mut other = proxy.logged_in();
    other.send(format!("a APPEND INBOX {{{}}}\r\n", MESSAGE.len()));
    other.until("+");
    other.send(format!("{MESSAGE}\r\n"));
    other.until("a OK");
    client.until("* 2 EXISTS");
    client.send("DONE\r\n");
    client.until("i OK");
    for client in [&mut client, &mut other] {
        assert!(client.command("LOGOUT")[0].starts_with("* BYE"));
        assert_eq!(client.end(), End::Orderly);
    }
    proxy.wait_for_ends("logout", 2);
    proxy.stop();
}

#[test]
fn cyrus_serves_a_whole_session() {
    serves_a_whole_session(&Legacy::cyrus(""));
}

#[test]
fn courier_serves_a_whole_session() {
    serves_a_whole_session(&Legacy::courier(""));
}

/// Clients that people use: curl up and down, mbsync through the proxy and past it.
fn serves_ordinary_clients(server: &Legacy) {
    let proxy = Proxy::start(server, "");
    let upload = proxy.folder.path().join("upload");
    let body = "line with \u{e9}\r\n".repeat(20_000);
    let message = format!("From: a@example.org\r\nSubject: long\r\n\r\n{body}");
    fs::write(&upload, &message).unwrap();
    let curl = |arguments: &[&str], path: &str| {
        let mut command = Command::new(program("curl", "curl"));
        command.args(["--silent", "--show-error", "--fail", "--max-time", "60", "--cacert"]);
        command.arg(&proxy.certificates.ca).args(["--user", "alice:secret"]).args(arguments);
        command.arg(format!("imaps://localhost:{}/{path}", proxy.imaps.port()));
        run(&mut command, b"", LIMIT).succeeded().stdout
    };
    curl(&["--upload-file", &upload.display().to_string()], "INBOX");
    assert!(curl(&[], "INBOX;MAILINDEX=1") == message, "curl got something else");
    assert_eq!(curl(&[], "INBOX?SUBJECT%20long").trim(), "* SEARCH 1");

    let port = proxy.imaps.port();
    let through = format!(
        "Host localhost\nPort {port}\nSSLType IMAPS\nSystemCertificates no\nCertificateFile {}\n",
        proxy.certificates.ca.display()
    );
    let past = format!("Host 127.0.0.1\nPort {}\nSSLType None\n", server.address.port());
    let [through, past] = [through, past].map(|account| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display();
        let config = folder.path().join("mbsyncrc");
        let text = format!(
            "IMAPAccount test\n{account}User alice\nPass secret\nAuthMechs LOGIN\nTimeout 60\n\n\
             IMAPStore far\nAccount test\n\nMaildirStore near\nPath {path}/\nInbox {path}/INBOX\n\n\
             Channel all\nFar :far:\nNear :near:\nPattern INBOX\nCreate Both\nSync All\n\
             SyncState {path}/state-\n"
        );
        fs::write(&config, text).unwrap();
        let mut command = Command::new(program("mbsync", "isync"));
        run(command.arg("--config").arg(config).arg("--all"), b"", LIMIT).succeeded();
        let files = ["cur", "new"]
            .into_iter()
            .flat_map(|part| fs::read_dir(folder.path().join("INBOX").join(part)).unwrap());
        let read = |file: fs::DirEntry| fs::read_to_string(file.path()).unwrap();
        files.map(|file| read(file.unwrap())).collect::<Vec<_>>()
    });
    let without_cr = message.replace('\r', "");
    let body = |text: &String| text.split_once("\n\n").unwrap().1.to_owned();
    assert_eq!(through.iter().map(body).collect::<Vec<_>>(), [body(&without_cr)]);
    assert_eq!(past.iter().map(body).collect::<Vec<_>>(), [body(&without_cr)]);
    proxy.stop();
}

#[test]
fn cyrus_serves_ordinary_clients() {
    serves_ordinary_clients(&Legacy::cyrus(""));
}

#[test]
fn courier_serves_ordinary_clients() {
    serves_ordinary_clients(&Legacy::courier(""));
}

/// What an operator sees of a server that wants TLS, and what cures it.
fn wants_tls(server: &Legacy, cured: &Legacy) {
    let proxy = Proxy::start(server, "");
    let mut client = proxy.connect();
    assert!(capabilities(&client.line()).contains(&"LOGINDISABLED".to_owned()));
    assert!(client.result("LOGIN alice secret").starts_with("NO"));
    let warned = proxy
        .log()
        .into_iter()
        .any(|line| line.level() == "WARN" && line.message().contains("LOGINDISABLED"));
    assert!(warned, "{}", proxy.text());
    proxy.stop();
    let proxy = Proxy::start(cured, "");
    drop(proxy.logged_in());
    proxy.stop();
}

#[test]
fn cyrus_that_wants_tls_is_cured_by_allowplaintext() {
    wants_tls(&Legacy::cyrus("allowplaintext: no"), &Legacy::cyrus("allowplaintext: yes"));
}

#[test]
fn cyrus_that_wants_tls_is_cured_by_a_port_that_is_told_of_it() {
    let strict = "allowplaintext: no";
    wants_tls(&Legacy::cyrus(strict), &Legacy::cyrus_with(strict, "-p 2"));
}

#[test]
fn courier_that_wants_tls_is_cured_by_not_requiring_it() {
    wants_tls(&Legacy::courier("IMAP_TLS_REQUIRED=1"), &Legacy::courier("IMAP_TLS_REQUIRED=0"));
}

/// All sessions come from one address, and Courier counts by address.
#[test]
fn courier_that_takes_no_more_from_one_address_is_an_outage_and_no_wrong_password() {
    let courier = Legacy::courier("MAXPERIP=1");
    let proxy = Proxy::start(&courier, "");
    let mut first = proxy.logged_in();
    let mut second = proxy.connect();
    second.expect("* OK");
    let answer = second.result("LOGIN bob secret");
    assert!(answer.starts_with("NO [UNAVAILABLE]"), "{answer}");
    assert!(first.result("NOOP").starts_with("OK"));
    assert_eq!(proxy.wait_for_logins(2)[1].field("result"), "unavailable");
}

/// A server that is killed under live sessions, and what they are told.
#[test]
fn the_end_of_a_server_is_passed_on() {
    for server in [Legacy::cyrus(""), Legacy::courier("")] {
        let proxy = Proxy::start(&server, "");
        let mut client = proxy.logged_in();
        client.command("SELECT INBOX");
        client.send("i IDLE\r\n");
        client.until("+");
        server.kill();
        assert_ne!(client.end(), End::Orderly);
        let mut client = proxy.connect();
        client.expect("* OK");
        let answer = client.result("LOGIN alice secret");
        assert!(answer.starts_with("NO [UNAVAILABLE]"), "{answer}");
    }
}
