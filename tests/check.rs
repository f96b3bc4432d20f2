//! `check`, from outside: broken files and the exact words about them, exit codes, streams.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

const GOOD: &str = "\
listen:
  - address: \"[::]:993\"
tls:
  self_signed:
    names: [mail.example.org]
    dir: \"${DIR}\"
backend:
  servers:
    - address: legacy-imap:143
";

/// The program in a folder of its own, with an environment of its own.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.0.path().join(name), content).unwrap();
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_imaps-proxy"));
        command.args(args).current_dir(&self.0).env_clear().env("DIR", self.0.path());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// What `check` says about a file with this content, without the pictures.
    fn check(&self, content: &str) -> Vec<String> {
        self.write("f.yaml", content);
        let output = self.run(&["check", "--config", "f.yaml"]);
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert_eq!(stdout(&output), "");
        let text = stderr(&output);
        let mut lines: Vec<_> = text.lines().filter(|line| !line.starts_with("  ")).collect();
        let count = lines.len() - 1;
        let noun = if count == 1 { "error" } else { "errors" };
        assert_eq!(lines.pop(), Some(&*format!("imaps-proxy: f.yaml has {count} {noun}")));
        lines.into_iter().map(str::to_owned).collect()
    }
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// [`GOOD`] with one part replaced.
fn with(old: &str, new: &str) -> String {
    assert!(GOOD.contains(old), "{old}");
    GOOD.replacen(old, new, 1)
}

/// [`GOOD`] with something behind it, which begins in line 10.
fn and(more: &str) -> String {
    format!("{GOOD}{more}\n")
}

#[track_caller]
fn table(cases: &[(String, &[&str])]) {
    let place = Place::new();
    for (content, expected) in cases {
        let expected: Vec<String> = expected.iter().map(|line| format!("f.yaml:{line}")).collect();
        assert_eq!(place.check(content), expected, "\n{content}");
    }
}

#[test]
fn a_good_file_is_fine() {
    let place = Place::new();
    place.write("f.yaml", GOOD);
    let output = place.run(&["check", "--config", "f.yaml"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).starts_with("f.yaml is fine"), "{}", stdout(&output));
    let output = place.command(&["check"]).env("IMAPS_PROXY_CONFIG", "f.yaml").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

#[test]
fn the_line_is_drawn_below_its_message() {
    let place = Place::new();
    place.write("f.yaml", and("timeouts: { idel: 35m, write: 0s }"));
    let output = place.run(&["check", "-c", "f.yaml"]);
    let expected = "\
f.yaml:10:13: unknown key `idel`, the nearest is `idle`
  10 | timeouts: { idel: 35m, write: 0s }
     |             ^
f.yaml:10:31: `write` must be between 100ms and 1h, found 0s
  10 | timeouts: { idel: 35m, write: 0s }
     |                               ^
imaps-proxy: f.yaml has 2 errors
";
    assert_eq!(stderr(&output), expected);
}

#[test]
fn files_that_are_no_configuration() {
    let empty = "1:1: the file is empty; `listen`, `tls` and `backend` are needed";
    table(&[
        (String::new(), &[empty]),
        ("# nothing\n---\n".into(), &[empty]),
        ("- a\n".into(), &["1:1: expected the sections of a configuration, found a list"]),
        ("text\n".into(), &["1:1: expected the sections of a configuration, found `text`"]),
        (
            "{}\n".into(),
            &[
                "1:1: missing key `backend`: a section with `servers`",
                "1:1: missing key `listen`: a list with at least one item",
                "1:1: missing key `tls`: a section with `certificates`, `acme` or `self_signed`",
            ],
        ),
        (and("---\nlisten: []"), &["10:1: a second document begins here, a configuration is one"]),
        (
            and("log:\n\tlevel: info"),
            &["11:2: not valid YAML: tabs disallowed within this context (block indentation)"],
        ),
        (
            with("\"[::]:993\"", "[::]:993"),
            &[
                "2:18: not valid YAML: while parsing a block mapping, did not find expected key; an \
               address that begins with `[` must stand in quotes",
            ],
        ),
        (
            with("\"[::]:993\"", "\"[::]:993"),
            &["2:14: not valid YAML: invalid indentation in quoted scalar"],
        ),
    ]);
}

#[test]
fn the_shape_of_a_file() {
    table(&[
        (with("listen:", "lisen:"), &["1:1: unknown key `lisen`, the nearest is `listen`"]),
        (
            and("colour: red"),
            &["10:1: unknown key `colour`, expected `listen`, `tls`, `backend`, `limits`, \
               `timeouts`, `metrics` or `log`"],
        ),
        (
            and("log:\n  level: info\n  level: warn"),
            &["12:3: key `level` again, it stands in line 11 already"],
        ),
        (
            and("tls:\n  min_version: \"1.3\""),
            &["10:1: key `tls` again, it stands in line 3 already"],
        ),
        (
            and("log: &log\n  level: info\nlimits: *log"),
            &[
                "10:6: anchors (`&name`) are not taken, write the value out",
                "12:9: aliases (`*name`) are not taken, write the value out",
            ],
        ),
        (and("log:\n  level: !!str info"), &["11:10: tags (`!name`) are not taken, leave it out"]),
        (and("? [a]\n: b"), &["10:3: a key must be a word, found a list"]),
        (and("log: info"), &["10:6: expected a section, found `info`"]),
        (
            with("\"[::]:993\"", "\"[::]:143\"\n    tls: start_tls"),
            &["3:10: expected `implicit` or `starttls`, found `start_tls`"],
        ),
        (
            with("  servers:\n    - address: legacy-imap:143", "  servers:"),
            &["8:3: missing key `servers` in `backend`: a list with at least one item"],
        ),
        (
            with("  servers:\n    - address: legacy-imap:143", "  servers: []"),
            &["8:12: `servers` needs at least one item: a server with `address`"],
        ),
        (
            with("- address: legacy-imap:143", "legacy-imap:143"),
            &["9:5: expected a list, each item a server with `address`, found `legacy-imap:143`"],
        ),
        (
            with("- address: legacy-imap:143", "address: legacy-imap:143"),
            &["9:5: expected a list, each item a server with `address`, found a section"],
        ),
    ]);
}

#[test]
fn addresses() {
    let expected =
        "expected an IP address and a port such as \"0.0.0.0:993\" or \"[::]:993\", found";
    let listen = |address: &str| with("\"[::]:993\"", address);
    let place = Place::new();
    for (address, found) in [
        ("localhost:993", "`localhost:993`; a name has no place here"),
        ("\"*:993\"", "`*:993`; every address is \"[::]\""),
        ("\":993\"", "`:993`; every address is \"[::]\""),
        ("993", "`993`"),
        ("0.0.0.0", "`0.0.0.0`; the port is missing"),
        ("\"::\"", "`::`; the port is missing"),
        ("\"[::]:70000\"", "`[::]:70000`"),
        ("[::]", "a list; an address that begins with `[` must stand in quotes"),
        ("\"\"", "an empty text"),
        ("", "nothing"),
    ] {
        let column = if address.is_empty() { 5 } else { 14 };
        let line = format!("f.yaml:2:{column}: {expected} {found}");
        assert_eq!(place.check(&listen(address)), [line], "{address}");
    }
    let expected = "expected a host and a port such as \"mail.example.org:143\" or \
                    \"[2001:db8::1]:143\", found";
    for (address, found) in [
        ("legacy", "`legacy`; the port is missing"),
        ("legacy:imap", "`legacy:imap`; a port is a number from 1 to 65535"),
        ("legacy:0", "`legacy:0`; a port is a number from 1 to 65535"),
        ("\":143\"", "`:143`; the host is missing"),
        ("\"::1\"", "`::1`; an IPv6 address with a port stands in brackets"),
        ("\"[legacy]:143\"", "`[legacy]:143`; between brackets there is no IPv6 address"),
        ("300.1.1.1:143", "`300.1.1.1:143`; that is neither a DNS name nor an IP address"),
        ("\"\"", "an empty text"),
    ] {
        let line = format!("f.yaml:9:16: {expected} {found}");
        assert_eq!(place.check(&with("legacy-imap:143", address)), [line], "{address}");
    }
}

#[test]
fn addresses_that_get_in_each_others_way() {
    let listen =
        |address: &str| with("\"[::]:993\"", &format!("\"[::]:993\"\n  - address: \"{address}\""));
    table(&[
        (listen("[::]:993"), &["3:14: `[::]:993` is used already, in line 2"]),
        (
            listen("0.0.0.0:993"),
            &["3:14: `0.0.0.0:993` and `[::]:993` in line 2 cannot be opened both"],
        ),
        (
            and("metrics:\n  address: \"127.0.0.1:993\""),
            &["11:12: `127.0.0.1:993` and `[::]:993` in line 2 cannot be opened both"],
        ),
        (
            with("legacy-imap:143", "localhost:993"),
            &["9:16: `localhost:993` is the proxy's own listener `[::]:993`, line 2: a loop"],
        ),
        (
            with("[::]:993", "192.0.2.1:993").replace("legacy-imap:143", "192.0.2.1:993"),
            &["9:16: `192.0.2.1:993` is the proxy's own listener `192.0.2.1:993`, line 2: a loop"],
        ),
    ]);
}

fn acme(keys: &str) -> String {
    format!("acme: {{ storage: /nowhere/acme, {keys} }}")
}

#[test]
fn certificates() {
    let own = "self_signed:\n    names: [mail.example.org]\n    dir: \"${DIR}\"";
    table(&[
        (
            with(own, "min_version: \"1.3\""),
            &[
                "4:3: `tls` needs `certificates` (your own), `acme` (from a CA) or `self_signed` (made here)",
            ],
        ),
        (
            with(own, "acme: { names: [a.example], storage: /nowhere/acme }"),
            &["4:9: missing key `terms_agreed` in `acme`: true or false"],
        ),
        (
            with(
                own,
                &acme(
                    "terms_agreed: false, contact: [a@b.example], names: ['*.b.example', 192.0.2.1]",
                ),
            ),
            &[
                "4:49: `terms_agreed` must be true: read the CA's terms of service, and agree to them or use no ACME",
                "4:66: expected a contact such as mailto:postmaster@example.org, found `a@b.example`; write mailto: before it",
                "4:88: `*.b.example` needs `challenge: dns-01`: no other shows that all names below are yours",
                "4:103: `192.0.2.1` is an address; ACME is for DNS names here",
            ],
        ),
        (
            with(own, &acme("terms_agreed: true, names: [b.example], challenge: dns-01")),
            &["4:3: `challenge: dns-01` needs `dns_hook`, a program that sets TXT records"],
        ),
        (
            with(
                own,
                &acme("terms_agreed: true, names: [b.example], directory: 'http://ca.example/'"),
            ),
            &[
                "4:86: expected an https URL such as https://acme-v02.api.letsencrypt.org/directory, found `http://ca.example/`",
            ],
        ),
        (
            with(own, &acme("terms_agreed: true, names: [b.example], challenge: tls-alpn-01"))
                .replacen("address: \"[::]:993\"", "address: \"[::]:993\"\n    tls: starttls", 1),
            &[
                "5:3: `challenge: tls-alpn-01` needs a listener with `tls: implicit`, to which port 443 is forwarded",
            ],
        ),
        (
            with(own, "certificates: { cert: a, key: b }"),
            &["4:17: expected a list, each item a pair of `cert` and `key`, or a `dir`, \
               found a section"],
        ),
        (
            with(own, "certificates:\n    - cert: a"),
            &["5:7: missing key `key`: the private key that belongs to `cert`"],
        ),
        (
            with("[mail.example.org]", "[münchen.example, \"*\"]"),
            &[
                "5:13: expected a DNS name or an IP address, found `münchen.example`; write the name \
                 in its xn-- form",
                "5:30: expected a DNS name or an IP address, found `*`",
            ],
        ),
        (
            with(own, &format!("{own}\n  min_version: 1.1")),
            &["7:16: expected `1.2` or `1.3`, found `1.1`"],
        ),
    ]);
    let place = Place::new();
    let lines = place.check(&with(own, "certificates:\n    - { cert: a.pem, key: b.pem }"));
    assert!(lines.iter().any(|line| line.contains("a.pem")), "{lines:?}");
    // The files are looked at although something else is wrong.
    let own_files = with(own, "certificates:\n    - { cert: a.pem, key: b.pem }");
    let lines = place.check(&format!("{own_files}colour: red\n"));
    assert!(lines.iter().any(|line| line.contains("a.pem")), "{lines:?}");
    assert!(lines.iter().any(|line| line.contains("colour")), "{lines:?}");
    // All of them, also if something else in `tls` is wrong.
    let many = "certificates:\n    - { cert: a.pem, key: b.pem }\n    - dir: none\n    - dir: held\n  \
                min_version: 1.1";
    fs::create_dir(place.0.path().join("held")).unwrap();
    place.write("held/cut.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n");
    let lines = place.check(&with(own, many));
    for expected in [
        "f.yaml:8:16: expected `1.2` or `1.3`, found `1.1`",
        "error: a.pem: no such file; put the certificate there, or correct the path",
        "error: b.pem: no such file; put the private key there, or correct the path",
        "error: none: no such directory; make it, or correct the path",
        "error: held/cut.pem: damaged PEM: a section has no -----END …----- line (line 1); copy the file again",
    ] {
        assert!(lines.iter().any(|line| line == expected), "{expected}: {lines:#?}");
    }
    assert_eq!(lines.len(), 5, "{lines:#?}");
}

#[test]
fn tickets_and_client_certificates() {
    let tls = |more: &str| with("tls:\n", &format!("tls:\n  {more}\n"));
    let expected = "expected `on`, `off` or a section with `key_files`";
    table(&[
        (tls("tickets: no"), &[&format!("4:12: {expected}, found `no`")]),
        (tls("tickets: [a]"), &[&format!("4:12: {expected}, found a list")]),
        (
            tls("tickets: {}"),
            &["4:12: missing key `key_files` in `tickets`: a list with at least one item"],
        ),
        (tls("tickets: { key_files: [] }"), &["4:25: `key_files` needs at least one item: a path"]),
        (
            tls("tickets: { key_file: [a] }"),
            &["4:14: unknown key `key_file`, the nearest is `key_files`"],
        ),
        (
            tls("client_auth: { mode: on }"),
            &[
                "4:16: missing key `ca` in `client_auth`: a path",
                "4:24: expected `optional` or `required`, found `on`",
            ],
        ),
        (
            tls("client_auth: { ca: ca.pem, clr: crl.pem }"),
            &[
                "4:16: missing key `mode` in `client_auth`: optional or required",
                "4:30: unknown key `clr`, expected `mode`, `ca` or `crl`",
            ],
        ),
    ]);
}

#[test]
fn capabilities() {
    let capabilities =
        |text: &str| with("backend:\n", &format!("backend:\n  capabilities: {{ {text} }}\n"));
    table(&[
        (
            capabilities("hide: IDLE"),
            &[
                "8:25: expected a list, each item a capability such as IDLE or AUTH=PLAIN, found `IDLE`",
            ],
        ),
        (
            capabilities("hide: [\"AUTH=*\"]"),
            &["8:26: expected a capability such as IDLE or AUTH=PLAIN, found `AUTH=*`"],
        ),
        (
            capabilities("add: [starttls, COMPRESS=DEFLATE, AUTH=SCRAM-SHA-1-PLUS]"),
            &[
                "8:25: `STARTTLS` cannot work behind this proxy, which always removes it",
                "8:35: `COMPRESS=DEFLATE` cannot work behind this proxy, which always removes it",
                "8:53: `AUTH=SCRAM-SHA-1-PLUS` cannot work behind this proxy, which always removes it",
            ],
        ),
        (
            capabilities("hide: [idle], add: [IDLE]"),
            &["8:39: `IDLE` is hidden as well; decide for one"],
        ),
    ]);
}

#[test]
fn numbers_durations_and_words() {
    table(&[
        (
            and("limits:\n  connections: 0\n  line: 8KB\n  literal: 1\n  sasl: 2MiB"),
            &[
                "11:16: `connections` must be between 1 and 1000000, found 0",
                "12:9: expected a size such as 64KiB or 4096, found `8KB`; write 8KiB for 1024s",
                "13:12: `literal` must be between 64B and 1MiB, found 1",
                "14:9: `sasl` must be between 1KiB and 1MiB, found 2MiB",
            ],
        ),
        (
            and("limits: { connections: many }"),
            &["10:24: expected a number between 1 and 1000000, found `many`"],
        ),
        (
            and("timeouts:\n  idle: 29m\n  login: 60\n  drain: [5s]\n  write: 1w\n  handshake:"),
            &[
                "11:9: `idle` must be at least 30m, found 29m: RFC 9051 §5.4 grants a client 30 \
                 minutes of silence",
                "12:10: expected a duration such as 30s, 5m or 24h, found `60`; it needs a unit, \
                 such as 60s",
                "13:10: expected a duration such as 30s, 5m or 24h, found a list",
                "14:10: expected a duration such as 30s, 5m or 24h, found `1w`",
                "15:3: expected a duration such as 30s, 5m or 24h, found nothing",
            ],
        ),
        (
            and("log: { level: INFO, format: xml }"),
            &[
                "10:15: expected `error`, `warn`, `info`, `debug` or `trace`, found `INFO`, the \
                 nearest is `info`",
                "10:29: expected `text` or `json`, found `xml`",
            ],
        ),
    ]);
}

#[test]
fn variables() {
    table(&[
        (
            with("legacy-imap:143", "${BACKEND}"),
            &["9:16: environment variable `BACKEND` is not set; set it, or write \
               `${BACKEND:-default}`"],
        ),
        (with("legacy-imap:143", "\"${BACKEND\""), &["9:16: `${BACKEND` has no closing brace"]),
        (
            with("legacy-imap:143", "${BACKEND-legacy:143}"),
            &["9:16: `${BACKEND-legacy:143}` is neither `${NAME}` nor `${NAME:-default}`"],
        ),
    ]);
    let place = Place::new();
    place.write("f.yaml", with("legacy-imap:143", "${BACKEND:-legacy:143}"));
    assert_eq!(place.run(&["check", "-c", "f.yaml"]).status.code(), Some(0));
    // What a variable holds is a value, whatever it looks like.
    let mut command = place.command(&["check", "-c", "f.yaml"]);
    let output = command.env("BACKEND", "a:1\ncolour: red").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains(r"found `a:1\ncolour: red`"), "{}", stderr(&output));
}

#[test]
fn files_that_cannot_be_read() {
    let place = Place::new();
    place.write("long.yaml", " ".repeat((1 << 20) + 1));
    fs::create_dir(place.0.path().join("folder")).unwrap();
    for (file, why) in [
        ("none.yaml", "it does not exist; name the right one with --config FILE"),
        ("folder", "it is a directory; name the file in it"),
        ("long.yaml", "it is longer than 1024 KiB"),
    ] {
        for command in ["check", "run"] {
            let output = place.run(&[command, "--config", file]);
            let expected = format!("imaps-proxy: cannot read the configuration {file}: {why}\n");
            assert_eq!(stderr(&output), expected);
            assert_eq!(output.status.code(), Some(2));
        }
    }
    place.write("f.yaml", b"# ok\nlisten: \xff\n");
    let output = place.run(&["check", "--config", "f.yaml"]);
    let expected = "f.yaml:2:9: not UTF-8; save the file in that encoding\n";
    assert!(stderr(&output).starts_with(expected), "{}", stderr(&output));
}

/// A parser takes a NUL for the end of the text: what stands behind would count as not written.
#[test]
fn characters_that_no_text_has_are_mistakes_with_their_place() {
    let place = Place::new();
    let refused = |content: &[u8]| {
        place.write("f.yaml", content);
        let outputs = ["check", "run"].map(|command| place.run(&[command, "--config", "f.yaml"]));
        outputs.map(|output| {
            assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
            let text = stderr(&output);
            let line = text.lines().find(|line| line.starts_with("f.yaml:")).map(str::to_owned);
            line.unwrap_or_else(|| panic!("{text}"))
        })
    };
    let hidden = format!("{GOOD}\0\ntimeouts: {{ idle: 1s }}\n");
    let utf_16: Vec<u8> = GOOD.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let with_mark = [b"\xff\xfe", &utf_16[..]].concat();
    let no_text = "f.yaml:1:1: UTF-16 or UTF-32, or no text at all; save the file as UTF-8";
    for (content, expected) in [
        (hidden.as_bytes(), "f.yaml:10:1: a NUL character, which YAML does not allow; take it out"),
        (
            with("143", "143 # \u{1b}").as_bytes(),
            "f.yaml:9:34: the control character U+001B, which YAML does not allow; take it out",
        ),
        (
            with("backend:", "\u{feff}backend:").as_bytes(),
            "f.yaml:7:1: a byte order mark, which YAML does not allow; take it out",
        ),
        (
            with("legacy-imap:143", "\"legacy\\0\"").as_bytes(),
            "f.yaml:9:16: this value holds a NUL character, as no value may; take it out",
        ),
        (&utf_16, no_text),
        (&with_mark, no_text),
    ] {
        assert_eq!(refused(content), [expected; 2]);
    }
    place.write("f.yaml", format!("\u{feff}{GOOD}"));
    let output = place.run(&["check", "--config", "f.yaml"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

#[test]
fn a_variable_brings_no_character_that_no_value_may_hold() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    let place = Place::new();
    place.write("f.yaml", with("legacy-imap:143", "\"${BACKEND:-legacy:143}\""));
    for (value, expected) in [
        (&b"legacy:143\r"[..], "holds a carriage return, as no value may"),
        (b"\x1b[1m", "holds the control character U+001B, as no value may"),
        (b"caf\xe9:143", "is not UTF-8"),
    ] {
        let mut command = place.command(&["check", "--config", "f.yaml"]);
        let output = command.env("BACKEND", OsStr::from_bytes(value)).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        let expected = format!("f.yaml:9:16: environment variable `BACKEND` {expected}\n");
        assert!(stderr(&output).starts_with(&expected), "{}", stderr(&output));
    }
}

#[test]
fn run_reports_the_same_mistakes() {
    let place = Place::new();
    place.write("f.yaml", with("listen:", "lisen:"));
    let output = place.run(&["run", "--config", "f.yaml"]);
    let expected = "\
imaps-proxy: 1 mistake in f.yaml
f.yaml:1:1: unknown key `lisen`, the nearest is `listen`
  1 | lisen:
    | ^
";
    assert_eq!(stderr(&output), expected);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_wrong_command_line_is_told_so() {
    let place = Place::new();
    for args in [&["chek"][..], &["check", "--konfig", "x"], &["check", "x"], &[]] {
        let output = place.run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(stderr(&output).contains("Usage: imaps-proxy"), "{}", stderr(&output));
    }
}

#[test]
fn the_version_names_the_tls_stack_of_the_lock_file() {
    let place = Place::new();
    let lock =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.lock")).unwrap();
    let text = stdout(&place.run(&["--version"]));
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some(&*format!("imaps-proxy {}", env!("CARGO_PKG_VERSION"))));
    for name in ["rustls", "aws-lc-rs"] {
        let version = lines.next().and_then(|line| line.strip_prefix(name)).unwrap().trim();
        assert!(lock.contains(&format!("name = \"{name}\"\nversion = \"{version}\"\n")), "{text}");
    }
    assert_eq!(stdout(&place.run(&["-V"])).lines().count(), 1);
}

#[test]
fn the_schema_is_printed_even_to_a_reader_who_leaves() {
    let place = Place::new();
    let schema: serde_json::Value = serde_json::from_str(&stdout(&place.run(&["schema"]))).unwrap();
    assert_eq!(schema["title"], "imaps-proxy");
    let mut command = place.command(&["schema"]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    command.stdout(writer).stderr(Stdio::piped());
    let output = command.spawn().unwrap().wait_with_output().unwrap();
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), String::new()));
}

#[test]
fn the_configuration_in_force_is_printed_and_passes_again() {
    let place = Place::new();
    place.write("f.yaml", GOOD);
    let printed = place.run(&["check", "--print", "--config", "f.yaml"]);
    assert_eq!(printed.status.code(), Some(0), "{}", stderr(&printed));
    let text = stdout(&printed);
    let written = format!("dir: {}\n", place.0.path().display());
    assert!(text.contains(&written) && text.contains("  idle: 35m\n"), "{text}");
    place.write("printed.yaml", &text);
    let again = place.run(&["check", "--print", "--config", "printed.yaml"]);
    assert_eq!((again.status.code(), stdout(&again)), (Some(0), text));
}
