//! What is counted and what is said about it: labels from closed lists, secrets nowhere.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};

use std::net::TcpStream;
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use support::{
    Dovecot, FakeBackend, PATIENCE, Proxy, TlsOptions, program, run, wait_until, within,
};

const REASONS: [&str; 30] = [
    "logout",
    "client_closed",
    "client_vanished",
    "handshake_failed",
    "handshake_timeout",
    "not_tls_imap",
    "not_tls_http",
    "not_tls",
    "proxy_header_missing",
    "proxy_header_malformed",
    "proxy_header_unexpected",
    "acme_challenge",
    "plaintext_after_starttls",
    "login_timeout",
    "too_many_bad_commands",
    "too_many_commands",
    "too_long",
    "protocol_violation",
    "backend_unavailable",
    "idle_timeout",
    "write_timeout",
    "half_closed_timeout",
    "keys_used_up",
    "backend_closed",
    "backend_truncated",
    "backend_lost",
    "backend_stalled",
    "drain",
    "too_many_connections",
    "internal",
];

#[test]
fn handshakes_that_cannot_be_have_no_series() {
    let backend = FakeBackend::plain();
    let of = |yaml: &str| {
        let proxy = Proxy::start(&backend, yaml);
        let mut all: Vec<_> = proxy.series().into_keys().collect();
        all.retain(|name| name.starts_with("imaps_proxy_tls_handshakes_total"));
        let count = |labels: &[&str]| {
            all.iter().filter(|name| labels.iter().all(|label| name.contains(label))).count()
        };
        let resumed = "resumed=\"true\"";
        [count(&["TLSv1.3"]), count(&["TLSv1.2"]), count(&["TLSv1.2", resumed, "\"none\""])]
    };
    // Suites times groups, resumed or not. TLS 1.2 has one group less, and none when it resumes.
    assert_eq!(of(""), [3 * 4 * 2, 6 * 3 + 6, 6]);
    assert_eq!(of("tls: { min_version: '1.3' }"), [24, 0, 0]);
}

#[test]
fn series_that_can_exist_are_zero_from_the_start() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let all = proxy.series();
    let closed: BTreeSet<_> = all
        .keys()
        .filter(|name| name.starts_with("imaps_proxy_sessions_closed_total"))
        .cloned()
        .collect();
    let expected: BTreeSet<_> = REASONS
        .iter()
        .map(|reason| format!("imaps_proxy_sessions_closed_total{{reason=\"{reason}\"}}"))
        .collect();
    assert_eq!(closed, expected);
    for version in ["SSLv2", "SSLv3", "TLSv1.0", "TLSv1.1", "TLSv1.2", "TLSv1.3", "other"] {
        let series = format!("imaps_proxy_tls_client_hellos_total{{version=\"{version}\"}}");
        assert_eq!(all.get(&series), Some(&0.0), "{series}");
    }
    for series in [
        "imaps_proxy_sessions{phase=\"handshake\"}",
        "imaps_proxy_sessions{phase=\"login\"}",
        "imaps_proxy_sessions{phase=\"active\"}",
        "imaps_proxy_sessions{phase=\"idle\"}",
        "imaps_proxy_bytes_total{direction=\"client_to_backend\"}",
        "imaps_proxy_bytes_total{direction=\"backend_to_client\"}",
        "imaps_proxy_session_duration_seconds_count",
        "imaps_proxy_tls_handshake_duration_seconds_count",
    ] {
        assert_eq!(all.get(series), Some(&0.0), "{series}");
    }
    let backend_up = format!("imaps_proxy_backend_up{{backend=\"{}\"}}", backend.address);
    assert_eq!(all.get(&backend_up), Some(&1.0));
    for family in [
        "imaps_proxy_connections_total",
        "imaps_proxy_logins_total",
        "imaps_proxy_login_duration_seconds_count",
        "imaps_proxy_build_info",
        "imaps_proxy_backend_connect_duration_seconds_count",
        "imaps_proxy_tls_certificate_not_after_timestamp_seconds",
        "imaps_proxy_tls_handshake_failures_total",
        "process_open_fds",
        "process_resident_memory_bytes",
        "process_cpu_seconds_total",
        "process_start_time_seconds",
    ] {
        assert!(all.keys().any(|name| name.split('{').next() == Some(family)), "{family}");
    }
    for result in ["ok", "rejected", "unavailable", "aborted"] {
        let label = format!("result=\"{result}\"");
        let some =
            all.keys().any(|n| n.starts_with("imaps_proxy_logins_total{") && n.contains(&label));
        assert!(some, "no series for {result}");
    }
    proxy.stop();
}

const COMMANDS: [&str; 9] = [
    "untagged",
    "capability",
    "noop",
    "id",
    "logout",
    "starttls",
    "login",
    "authenticate",
    "other",
];

/// A person whose client is refused sees nothing of why; the operator does.
#[test]
fn a_command_that_is_refused_before_login_is_in_log_and_metric_without_a_word_of_the_client() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let refused = |command: &str| {
        proxy.metric(&format!("imaps_proxy_commands_refused_total{{command=\"{command}\"}}"))
    };
    assert_eq!(COMMANDS.map(refused), [0.0; 9]);
    let mut client = proxy.connect();
    for command in [
        "LANGUAGE s3cret",
        "AUTHENTICATE PLAIN s3cret!",
        "NOOP",
        "LOGIN alice \"s3cret",
        "s3cret x",
        "NOOP",
        "ID (s3cret)",
        "NOOP s3cret",
        "AUTHENTICATE PLAIN s3cret!",
    ] {
        client.result(command);
    }
    client.send("s3cret*\r\n");
    client.rest(PATIENCE);
    proxy.wait_for_ends("too_many_bad_commands", 1);
    let seen = COMMANDS.map(refused);
    assert_eq!(seen, [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 2.0, 2.0]);
    let lines = proxy.log();
    let refusals = lines.iter().filter(|line| line.message() == "command refused before login");
    let told: Vec<_> = refusals
        .map(|line| [line.level(), line.field("command"), line.field("answer")[..9].to_owned()])
        .collect();
    let want = [
        ["INFO", "LANGUAGE", "BAD Unkno"],
        ["INFO", "AUTHENTICATE", "BAD AUTHE"],
        ["INFO", "LOGIN", "BAD LOGIN"],
        ["DEBUG", "other", "BAD Unkno"],
        ["INFO", "ID", "BAD ID ta"],
        ["INFO", "NOOP", "BAD The c"],
        ["DEBUG", "AUTHENTICATE", "BAD AUTHE"],
        ["INFO", "untagged", "BAD A com"],
    ];
    assert_eq!(told, want, "one of each kind, unless all are wanted");
    assert!(!proxy.text().contains("s3cret"), "{}", proxy.text());
    proxy.stop();
}

#[test]
fn every_connection_is_counted_once_and_has_one_line() {
    let dovecot = Dovecot::start();
    let proxy = Proxy::start(&dovecot, "timeouts: { handshake: 1s }");
    let mut client = proxy.logged_in();
    assert!(client.result("LOGOUT").starts_with("OK"));
    drop(proxy.connect());
    drop(proxy.logged_in());
    proxy.logged_in().vanish();
    drop(proxy.plain());
    let mut http = proxy.plain();
    http.send("GET / HTTP/1.1\r\n\r\n");
    http.rest(PATIENCE);
    let mut imap = proxy.plain();
    imap.send("a CAPABILITY\r\n");
    imap.rest(PATIENCE);
    let alpn = TlsOptions { alpn: vec!["h2"], ..TlsOptions::default() };
    assert!(proxy.connect_with(&alpn).is_err());
    wait_until("all of them have ended", || proxy.sessions().len() == 8);
    wait_until("no session is left", || proxy.sum("imaps_proxy_sessions", &[]) == 0.0);
    assert_eq!(proxy.sum("imaps_proxy_connections_total", &[]), 8.0);
    assert_eq!(proxy.sum("imaps_proxy_sessions_closed_total", &[]), 8.0);
    assert_eq!(proxy.metric("imaps_proxy_session_duration_seconds_count"), 8.0);
    for line in proxy.sessions() {
        let reason = line.field("reason");
        assert!(REASONS.contains(&reason.as_str()), "{line:?}");
        let series = format!("imaps_proxy_sessions_closed_total{{reason=\"{reason}\"}}");
        assert!(proxy.metric(&series) >= 1.0, "{series}");
    }
    proxy.stop();
}

/// G5.
#[test]
fn nothing_that_a_client_sends_becomes_a_series() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let talk = |number: usize| {
        let name: &'static str = Box::leak(format!("host{number}.example.org").into_boxed_str());
        let config = TlsOptions { name, ..TlsOptions::default() };
        // A name that the certificate does not have: the client breaks off, its SNI was seen.
        let _ = proxy.connect_with(&config);
        let mut client = proxy.connect();
        client.expect("* OK ");
        assert!(client.result(&format!("XCOMMAND{number} argument")).starts_with("BAD"));
        assert!(client.result(&format!("AUTHENTICATE XMECH{number}")).starts_with("NO"));
        assert!(client.result(&format!("LOGIN user{number} secret")).starts_with("OK"));
        assert!(client.result(&format!("XAFTER{number}")).starts_with("BAD"));
        client.send(format!("tag{number} LOGOUT\r\n"));
        client.until(&format!("tag{number} OK"));
    };
    let names = || -> BTreeSet<String> { proxy.series().into_keys().collect() };
    let ended = |count: usize| {
        wait_until("the sessions are over", || proxy.sessions().len() == 2 * count);
    };
    talk(0);
    ended(1);
    let before = names();
    for number in 1..100 {
        talk(number);
    }
    ended(100);
    let after = names();
    assert_eq!(before, after, "{:#?}", after.difference(&before).collect::<Vec<_>>());
    for series in after {
        for leak in ["user0", "XMECH", "XCOMMAND", "XAFTER", "example", "tag0"] {
            assert!(!series.to_uppercase().contains(&leak.to_uppercase()), "{series}");
        }
    }
    proxy.stop();
}

/// G4: at the most talkative level, on every road that a password can take.
#[test]
fn password_is_nowhere() {
    const CANARY: &str = "S3cr3tC4nary";
    for format in ["json", "text"] {
        let backend =
            FakeBackend::imap("SASL-IR AUTH=PLAIN AUTH=LOGIN LITERAL+", |session, command| {
                // A backend that repeats what it was told.
                let told =
                    command.arguments.last().map(|last| String::from_utf8_lossy(last).into_owned());
                match command.name.as_str() {
                    "LOGIN" if command.arguments[0] == b"echo" => session.send(format!(
                        "{} NO bad password {}\r\n",
                        command.tag,
                        told.unwrap_or_default()
                    )),
                    "LOGIN" if command.arguments[0] == b"die" => {
                        session.shut();
                        true
                    }
                    _ => false,
                }
            });
        let proxy = Proxy::starting(&backend)
            .config(&format!("log: {{ level: trace, format: {format} }}"))
            .fixed_ports()
            .environment("RUST_LOG", "trace")
            .environment("SSLKEYLOGFILE", "keys.log")
            .start();
        // \0alice\0S3cr3tC4nary, and the password alone
        let plain = "AGFsaWNlAFMzY3IzdEM0bmFyeQ==";
        let alone = "UzNjcjN0QzRuYXJ5";
        for command in [
            format!("LOGIN alice {CANARY}"),
            format!("LOGIN alice \"{CANARY}\""),
            format!("LOGIN alice {{{}+}}\r\n{CANARY}", CANARY.len()),
            format!("LOGIN echo {CANARY}"),
            format!("LOGIN die {CANARY}"),
            format!("LOGIN alice {CANARY} surplus"),
            format!("LOGIN alice \"{CANARY}"),
            format!("LGOIN alice {CANARY}"),
            format!("AUTHENTICATE PLAIN {plain}"),
            format!("AUTHENTICATE PLAIN {plain}!"),
            format!("AUTHENTICATE XNONE {plain}"),
        ] {
            let mut client = proxy.connect();
            client.expect("* OK ");
            client.send(format!("a {command}\r\n"));
            let answer = client.line();
            assert!(!answer.contains(CANARY), "{answer}");
        }
        // Cut off in the middle, too long, and by a client that goes away.
        for bytes in [
            format!("a LOGIN alice {CANARY}"),
            format!("a LOGIN alice {CANARY}{}", "x".repeat(10_000)),
            format!("a LOGIN alice {{100+}}\r\n{CANARY}"),
        ] {
            let mut client = proxy.connect();
            client.expect("* OK ");
            let _ = client.try_send(bytes);
            drop(client);
        }
        wait_until("no session is left", || proxy.sum("imaps_proxy_sessions", &[]) == 0.0);
        let metrics = proxy.get("/metrics").1;
        let log = proxy.text();
        for secret in [CANARY, plain, alone, &plain[..plain.len() - 4]] {
            assert!(!metrics.contains(secret), "{secret} in the metrics");
            assert!(!log.contains(secret), "{secret} in the {format} log:\n{log}");
        }
        let bytes = CANARY.bytes().map(|byte| byte.to_string()).collect::<Vec<_>>().join(", ");
        assert!(!log.contains(&bytes), "the password as a list of numbers in the log");
        assert!(!proxy.folder.path().join("keys.log").exists(), "TLS keys were written");
        proxy.stop();
    }
}

/// G3.
#[test]
fn log_lines_cannot_be_forged() {
    for format in ["json", "text"] {
        let backend = FakeBackend::plain();
        let proxy = Proxy::starting(&backend)
            .config(&format!("log: {{ level: trace, format: {format} }}"))
            .fixed_ports()
            .start();
        let before = proxy.text().lines().count();
        for user in [
            "x\r\n{\"level\":\"INFO\",\"message\":\"login\",\"user\":\"forged\"}",
            "x\n2026-01-01T00:00:00Z  INFO login user=forged result=ok",
            "\x1b]0;p\x07\x1b[31mred",
            "\u{202e}txet\u{2028}next\u{85}line\u{9b}31m",
            "\" result=ok user=\"forged",
            "a b=c",
            "\x7f\x08\x08\x08",
        ] {
            let mut client = proxy.connect();
            client.expect("* OK ");
            client.send(format!("a LOGIN {{{}+}}\r\n{user} wrong\r\n", user.len()));
            client.expect("a NO");
        }
        let mut client = proxy.connect();
        client.expect("* OK ");
        client.send(format!("a LOGIN {} wrong\r\n", "u".repeat(4000)));
        client.expect("a NO");
        drop(client);
        wait_until("no session is left", || proxy.sum("imaps_proxy_sessions", &[]) == 0.0);
        let text = proxy.text();
        let new: Vec<_> = text.lines().skip(before).collect();
        for line in &new {
            let raw = line.chars().find(|c| {
                c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}')
            });
            assert_eq!(raw, None, "{line:?}");
            assert!(line.len() < 2_000, "{} bytes: {line}", line.len());
            assert!(
                !line.starts_with("2026-01-01") && !line.starts_with("{\"level\":\"INFO\",\"mess")
            );
        }
        if format == "json" {
            for login in proxy.wait_for_logins(8) {
                assert_eq!(login.field("result"), "rejected");
                assert_ne!(login.field("user"), "forged");
            }
        }
        proxy.stop();
    }
}

#[test]
fn listener_answers_what_it_should_and_nothing_else() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    assert_eq!(proxy.get("/healthz").0, 200);
    assert_eq!(proxy.get("/readyz").0, 200);
    assert_eq!(proxy.get("/metrics").0, 200);
    assert_eq!(proxy.get("/config").0, 404);
    let ask = |request: String| {
        let mut tcp = TcpStream::connect(proxy.metrics).unwrap();
        tcp.set_read_timeout(Some(PATIENCE)).unwrap();
        let _ = tcp.write_all(request.as_bytes());
        let mut answer = Vec::new();
        let _ = tcp.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    };
    let head = "Host: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    assert!(ask(format!("POST /metrics HTTP/1.1\r\n{head}")).contains(" 405 "));
    assert!(ask(format!("DELETE /healthz HTTP/1.1\r\n{head}")).contains(" 405 "));
    let large = format!("GET /metrics HTTP/1.1\r\nX: {}\r\n{head}", "x".repeat(64 << 10));
    let answer = ask(large);
    assert!(answer.is_empty() || answer.contains(" 431 "), "{answer}");
    let answer = ask("a LOGIN alice secret\r\n\r\n".to_owned());
    assert!(answer.is_empty() || answer.contains(" 400 "), "{answer}");
    proxy.stop();
}

/// E9: the deadline for a request's head is 30 s at most.
#[test]
fn slow_scraper_is_closed() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let mut tcp = TcpStream::connect(proxy.metrics).unwrap();
    tcp.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Slow: ").unwrap();
    tcp.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let start = Instant::now();
    let mut chunk = [0; 1024];
    loop {
        assert!(start.elapsed() < Duration::from_secs(40), "still open");
        match tcp.read(&mut chunk) {
            Ok(0) => break,
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                if tcp.write_all(b"x").is_err() {
                    break;
                }
            }
            Ok(_) => {}
            Err(_) => break,
        }
    }
    assert_eq!(proxy.get("/metrics").0, 200);
    proxy.stop();
}

#[test]
fn idle_scrapers_delay_no_mail_and_give_way_in_the_end() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let connect = |_| TcpStream::connect(proxy.metrics).unwrap();
    let few: Vec<_> = (0..10).map(connect).collect();
    assert_eq!(proxy.get("/readyz").0, 200);
    let many: Vec<_> = (0..20).map(connect).collect(); // more than are answered at one time
    let start = Instant::now();
    let mut client = proxy.logged_in();
    assert!(client.result("NOOP").starts_with("OK"));
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    let patient = Duration::from_secs(60);
    within(patient, "a probe is answered again", || {
        proxy.try_get("/readyz").is_ok_and(|(status, _)| status == 200)
    });
    drop((client, few, many));
    proxy.stop();
}

#[test]
fn a_probe_that_takes_its_time_is_not_ended_by_silent_connections() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let connect = |_: u32| TcpStream::connect(proxy.metrics).unwrap();
    let mut probe = connect(0);
    let strangers: Vec<_> = (0..20).map(connect).collect();
    assert_eq!(proxy.get("/healthz").0, 200, "behind them in the queue, so all are accepted");
    probe.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    probe.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answer = String::new();
    probe.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    drop(strangers);
    proxy.stop();
}

#[test]
fn backend_that_goes_away_is_seen_and_seen_again() {
    let gone = support::Switch::default();
    let switch = gone.clone();
    let backend = FakeBackend::raw(move |session| {
        if !switch.is_set() {
            session.greet("IMAP4rev1 AUTH=PLAIN");
            session.serve("IMAP4rev1 AUTH=PLAIN", &|_, _| false);
        }
    });
    let up = format!("imaps_proxy_backend_up{{backend=\"{}\"}}", backend.address);
    let proxy = Proxy::start(&backend, "");
    assert_eq!(proxy.metric(&up), 1.0);
    gone.set();
    let mut client = proxy.connect();
    client.expect("* OK ");
    assert!(client.result("LOGIN alice secret").starts_with("NO [UNAVAILABLE]"));
    assert_eq!(proxy.metric(&up), 0.0);
    let failures = "imaps_proxy_backend_connect_failures_total";
    assert!(proxy.sum(failures, &[&format!("backend=\"{}\"", backend.address)]) >= 1.0);
    gone.clear();
    assert!(client.result("LOGIN alice secret").starts_with("OK"));
    support::wait_until("the backend is up again", || proxy.metric(&up) == 1.0);
    drop(client);
    proxy.stop();
}

#[test]
fn a_process_that_nobody_else_looks_into_counts_itself_all_the_same() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::starting(&backend).without_root().start();
    let pid = proxy.pid();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let of = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
    assert_eq!(of("Uid:").split_whitespace().next(), Some("65532"));
    assert_eq!(of("CapEff:").trim(), "0000000000000000");
    // Files of /proc belong to root where a process is not dumpable.
    let owner = fs::metadata(format!("/proc/{pid}/mem")).unwrap().uid();
    assert_eq!(owner, 0, "the process is dumpable");
    // Another process of its user sees none of its memory; it itself must.
    let looks = |file: &str| {
        let mut command = Command::new(program("setpriv", "util-linux"));
        let user = format!("--reuid={}", support::USER);
        command.args([&user, "--clear-groups", "--bounding-set=-all", "cat"]);
        run(command.arg(format!("/proc/{pid}/{file}")), b"", PATIENCE).code
    };
    assert_eq!(["mem", "environ", "maps"].map(looks), [Some(1); 3]);
    assert_eq!(looks("status"), Some(0));
    let sessions: Vec<_> = (0..5).map(|_| proxy.logged_in()).collect();
    let open = proxy.metric("process_open_fds");
    assert!(open >= 10.0, "{open}");
    for name in [
        "process_max_fds",
        "process_resident_memory_bytes",
        "process_virtual_memory_bytes",
        "process_start_time_seconds",
        "process_threads",
    ] {
        assert!(proxy.metric(name) > 0.0, "{name}");
    }
    drop(sessions);
    within(PATIENCE, "descriptors are given back", || proxy.metric("process_open_fds") < open);
    assert_eq!(proxy.get("/readyz").0, 200);
    let lines = proxy.reload("limits: { connections: 100 }");
    assert!(lines[0].contains("configuration reloaded"), "{lines:?}");
    proxy.stop();
}
