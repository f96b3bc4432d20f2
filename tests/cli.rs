//! The command line: exit codes, messages, and starts that cannot succeed.

mod support;

use std::fs::{self, File};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::Duration;

use support::{
    Certificates, Dovecot, FakeBackend, Finished, PATIENCE, Proxy, binary, run, wait_until,
};

fn proxy(arguments: &[&str]) -> Finished {
    run(Command::new(binary()).args(arguments).env_remove("RUST_BACKTRACE"), b"", PATIENCE)
}

/// One readable message on standard error.
#[track_caller]
fn assert_readable(finished: &Finished, code: i32, words: &[&str]) {
    assert_eq!(finished.code, Some(code), "{finished:?}");
    let all = format!("{}{}", finished.stdout, finished.stderr);
    for word in words {
        assert!(all.contains(word), "no {word:?} in {all}");
    }
    for bad in ["panicked", "Os {", "RUST_BACKTRACE", "Error(", "kind:"] {
        assert!(!all.contains(bad), "{bad:?} in {all}");
    }
    assert!(!finished.stderr.trim().is_empty(), "nothing on standard error: {all}");
}

#[test]
fn help_reads_like_documentation() {
    let help = proxy(&["--help"]).succeeded().stdout;
    for command in ["run", "demo", "check", "doctor", "cert", "schema"] {
        assert!(help.contains(command), "{help}");
        let its = proxy(&[command, "--help"]).succeeded().stdout;
        assert!(its.lines().count() > 4, "{its}");
    }
    assert!(
        help.contains("/etc/imaps-proxy/config.yaml") || {
            proxy(&["run", "--help"]).stdout.contains("/etc/imaps-proxy/config.yaml")
        }
    );
}

#[test]
fn version_names_the_tls_library_and_its_provider() {
    let version = proxy(&["--version"]).succeeded().stdout;
    for word in ["imaps-proxy", env!("CARGO_PKG_VERSION"), "rustls", "aws-lc"] {
        assert!(version.contains(word), "{version}");
    }
}

#[test]
fn wrong_command_line_is_exit_code_2() {
    for arguments in [&["serve"][..], &["run", "--cofnig", "x"], &["--nonsense"], &["run", "extra"]]
    {
        assert_readable(&proxy(arguments), 2, &[arguments[arguments.len() - 1]]);
    }
    assert_eq!(proxy(&[]).code, Some(2));
}

#[test]
fn missing_configuration_is_named() {
    let finished = proxy(&["run", "--config", "/nonexistent/config.yaml"]);
    assert_readable(&finished, 2, &["/nonexistent/config.yaml"]);
}

#[test]
fn wrong_configuration_is_shown_where_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.yaml");
    let path = file.display().to_string();
    for (text, words) in [
        ("listen: [{ address: ':::' }]\n", &["config.yaml:1:21", ":::"][..]),
        ("limts: {}\n", &["config.yaml:1:1", "limits"]),
        ("timeouts:\n  idle: 5m\n", &["config.yaml:2:", "idle"]),
        ("listen: [\n", &["config.yaml:"]),
        ("", &["config.yaml"]),
    ] {
        fs::write(&file, text).unwrap();
        assert_readable(&proxy(&["run", "--config", &path]), 2, words);
    }
}

/// A configuration in which everything works, but for what `yaml` changes.
fn config(folder: &tempfile::TempDir, listen: &str, metrics: &str) -> String {
    let certificates = Certificates::make(folder.path());
    let file = folder.path().join("config.yaml");
    let text = format!(
        "listen: [{{ address: '{listen}' }}]\n\
         tls: {{ certificates: [{{ cert: '{}', key: '{}' }}] }}\n\
         backend: {{ servers: [{{ address: '127.0.0.1:1' }}] }}\n\
         metrics: {{ address: '{metrics}' }}\n",
        certificates.cert.display(),
        certificates.key.display()
    );
    fs::write(&file, text).unwrap();
    file.display().to_string()
}

#[test]
fn port_in_use_is_said_so() {
    let folder = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let finished = proxy(&["run", "--config", &config(&folder, &address, "127.0.0.1:0")]);
    assert_readable(&finished, 1, &[&address, "in use"]);
    let finished = proxy(&["run", "--config", &config(&folder, "127.0.0.1:0", &address)]);
    assert_readable(&finished, 1, &[&address, "in use"]);
}

#[test]
fn address_that_is_not_ours_is_said_so() {
    let folder = tempfile::tempdir().unwrap();
    // TEST-NET-3: nobody has it.
    let finished = proxy(&["run", "--config", &config(&folder, "203.0.113.7:993", "127.0.0.1:0")]);
    assert_readable(&finished, 1, &["203.0.113.7:993"]);
}

#[test]
fn certificate_that_is_not_there_stops_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let file = config(&folder, "127.0.0.1:0", "127.0.0.1:0");
    fs::remove_file(folder.path().join("key.pem")).unwrap();
    let finished = proxy(&["run", "--config", &file]);
    assert!(matches!(finished.code, Some(1 | 2)), "{finished:?}");
    assert_readable(&finished, finished.code.unwrap(), &["key.pem"]);
}

#[test]
fn several_listeners_of_both_families_serve() {
    let dovecot = Dovecot::start();
    let ports = [support::free_port(), support::free_port(), support::free_port()];
    let proxy = Proxy::start(
        &dovecot,
        &format!(
            "listen: [{{ address: '127.0.0.1:{}' }}, {{ address: '[::1]:{}' }}, \
             {{ address: '[::]:{}' }}]",
            ports[0], ports[1], ports[2]
        ),
    );
    let config = support::TlsOptions::default().config(&proxy.certificates.roots);
    for address in [
        format!("127.0.0.1:{}", ports[0]),
        format!("[::1]:{}", ports[1]),
        format!("[::1]:{}", ports[2]),
        format!("127.0.0.1:{}", ports[2]), // dual stack
    ] {
        let address = address.parse().unwrap();
        let mut client = support::Client::tls(address, &config, "localhost").unwrap();
        client.log_in("alice", "secret");
        assert!(client.result("LOGOUT").starts_with("OK"));
    }
    proxy.wait_for_ends("logout", 4);
    for line in proxy.sessions() {
        // An IPv4 client of a dual-stack listener is an IPv4 client.
        assert!(!line.field("client").contains("::ffff:"), "{line:?}");
    }
    proxy.stop();
}

#[test]
fn log_on_a_full_disk_does_not_stop_the_mail() {
    let dovecot = Dovecot::start();
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut proxy = Proxy::starting(&dovecot).stdout(Stdio::from(full)).start();
    let mut clients: Vec<_> = (0..20).map(|_| proxy.logged_in()).collect();
    for client in &mut clients {
        assert!(client.result("SELECT INBOX").starts_with("OK"));
    }
    drop(clients);
    wait_until("no session is left", || proxy.sum("imaps_proxy_sessions", &[]) == 0.0);
    proxy.terminate();
    assert_eq!(proxy.wait(PATIENCE).code(), Some(0), "{}", proxy.text());
    assert!(!proxy.text().contains("panicked"), "{}", proxy.text());
}

#[test]
fn log_that_nobody_reads_any_more_does_not_stop_the_mail() {
    let backend = FakeBackend::plain();
    let (reader, writer) = std::io::pipe().unwrap();
    let mut proxy = Proxy::starting(&backend)
        .config("log: { level: trace }")
        .stdout(Stdio::from(writer))
        .start();
    // Far more than a pipe holds, and the reading end is not read.
    for _ in 0..300 {
        let mut client = proxy.logged_in();
        assert!(client.result("LOGOUT").starts_with("OK"));
    }
    drop(reader); // and now it is gone: a broken pipe
    for _ in 0..10 {
        let mut client = proxy.logged_in();
        assert!(client.result("LOGOUT").starts_with("OK"));
    }
    proxy.terminate();
    let status = proxy.wait(Duration::from_secs(30));
    assert_eq!(status.code(), Some(0), "{}", proxy.text());
}
