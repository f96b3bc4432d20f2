//! Whole files: what they mean, and that the documented one says the truth.

use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::Value;

use super::settings::{LogFormat, MinVersion};
use super::*;

const DOCUMENTED: &str = include_str!("../../config/imaps-proxy.yaml");

const SMALLEST: &str = r#"
listen:
  - address: "[::]:993"
tls:
  certificates:
    - cert: /certs/fullchain.pem
      key: /certs/privkey.pem
backend:
  servers:
    - address: legacy-imap:143
"#;

fn read(text: &str) -> Result<Settings, Error> {
    parse(text, Path::new("f.yaml"), &|name| match name {
        "BACKEND" => Some("10.0.0.7:143".into()),
        "SESSIONS" => Some("12".into()),
        "INJECTION" => Some("a:1\n  - address: b:2 # ".into()),
        _ => None,
    })
}

fn good(text: &str) -> Settings {
    read(text).unwrap_or_else(|error| panic!("{error}"))
}

/// The mistakes of a file, without its name.
fn mistakes(text: &str) -> Vec<String> {
    match read(text) {
        Err(Error::Invalid(invalid)) => invalid.mistakes.iter().map(ToString::to_string).collect(),
        other => panic!("expected mistakes, found {other:?}"),
    }
}

/// The documented file with the keys that are switched off in it switched on.
fn documented_in_full() -> String {
    let switched_on = |line: &str| {
        let (indent, rest) = line.split_at(line.len() - line.trim_start().len());
        match rest.strip_prefix('#') {
            // "#key:" and what is nested below it, "#  key:", but not "# prose"
            Some(key) if !key.starts_with(' ') || key.starts_with("  ") && !indent.is_empty() => {
                format!("{indent}{key}\n")
            }
            _ => format!("{line}\n"),
        }
    };
    DOCUMENTED.lines().map(switched_on).collect()
}

#[test]
fn the_smallest_file_gets_the_contracts_defaults() {
    let settings = good(SMALLEST);
    assert_eq!(settings.listen[0].address, "[::]:993".parse().unwrap());
    assert_eq!(settings.listen[0].tls, settings::ListenTls::Implicit);
    let settings::CertificateSource::Pair(pair) = &settings.tls.certificates[0] else { panic!() };
    assert_eq!(pair.key, Path::new("/certs/privkey.pem"));
    assert_eq!(settings.tls.unknown_name, settings::UnknownName::Default);
    assert_eq!(settings.tls.cipher_suites.len(), 9);
    assert_eq!(settings.tls.groups.len(), 4);
    assert_eq!(settings.tls.self_signed, None);
    assert_eq!(settings.tls.min_version, MinVersion::Tls12);
    assert_eq!(settings.backend.servers[0].address.to_string(), "legacy-imap:143");
    assert_eq!(settings.backend.capabilities, settings::Capabilities::default());
    assert_eq!(settings.backend.connect_timeout, Duration::from_secs(5));
    let limits = settings::Limits { connections: 9000, line: 8192, literal: 4096, sasl: 65536 };
    assert_eq!(settings.limits, limits);
    let timeouts = settings::Timeouts {
        handshake: Duration::from_secs(10),
        login: Duration::from_secs(60),
        backend_greeting: Duration::from_secs(10),
        backend_login: Duration::from_secs(60),
        idle: Duration::from_mins(35),
        write: Duration::from_secs(120),
        half_closed: Duration::from_secs(30),
        drain: Duration::from_secs(30),
    };
    assert_eq!(settings.timeouts, timeouts);
    assert_eq!(settings.metrics, None);
    assert_eq!(settings.log.level, tracing::Level::INFO);
    assert_eq!(settings.log.format, LogFormat::Text);
}

#[test]
fn a_listener_may_wait_for_starttls() {
    let both = "  - address: \"[::]:993\"\n    tls: implicit\n  - address: \"[::]:143\"\n    tls: starttls\n";
    let settings = good(&SMALLEST.replace("  - address: \"[::]:993\"\n", both));
    let tls: Vec<_> = settings.listen.iter().map(|listen| listen.tls).collect();
    assert_eq!(tls, [settings::ListenTls::Implicit, settings::ListenTls::StartTls]);
}

#[test]
fn the_documented_file_shows_every_key_at_its_default() {
    let (documented, smallest) = (good(DOCUMENTED), good(SMALLEST));
    let metrics = Some(settings::Metrics { address: "0.0.0.0:9143".parse().unwrap() });
    assert_eq!(documented.metrics, metrics);
    let same = |settings: Settings| {
        format!("{:?}", Settings { metrics: None, effective: Effective::default(), ..settings })
    };
    assert_eq!(same(documented), same(smallest));
    let full = good(&documented_in_full()).tls;
    assert!(full.self_signed.is_some() && full.acme.is_some());

    let tree: Value = serde_yaml::from_str(&documented_in_full()).unwrap();
    every_key(&schema(), &tree, "");
}

#[test]
fn the_configuration_in_force_reads_back_to_the_same() {
    let more = "\
tls: { self_signed: { names: [\"*.a.example\", \"::1\"], dir: d }, tickets: { key_files: [k] },
  cipher_suites: [TLS_AES_128_GCM_SHA256, TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256], groups: [x25519] }
listen: [{ address: \"[::]:143\", tls: starttls, proxy_protocol_from: [\"::ffff:10.0.0.0/104\"] }]
backend:
  tls: { mode: starttls, server_name: n }
  servers:
    - { address: \"unix:/s\", tls: { mode: implicit, fingerprint: \"FP\" } }
    - { address: _imap._tcp.example.org, identity: proxy-v2, proxy_tlvs: cyrus, tls: none }
limits: { line: 1000, connections: 7 }
timeouts: { login: 1h30m }
"
    .replace("FP", &"Ab:".repeat(32));
    let more = more.replace("1h30m", "90s");
    for text in [SMALLEST, DOCUMENTED, &documented_in_full(), &more] {
        let settings = good(text);
        let printed = settings.effective.yaml();
        let again = good(&printed);
        assert_eq!(settings.effective.changes(&again.effective), Vec::<String>::new());
        assert_eq!(again.effective.yaml(), printed);
        let rest = |settings: Settings| {
            format!("{:?}", Settings { effective: Effective::default(), ..settings })
        };
        assert_eq!(rest(again), rest(settings), "{printed}");
    }
}

/// Both ways: a key of the schema stands in the file, with the default that the schema names, and a
/// key of the file stands in the schema.
fn every_key(schema: &Value, value: &Value, path: &str) {
    if let Some(properties) = schema["properties"].as_object() {
        assert_eq!(schema["additionalProperties"], false, "{path}");
        for (key, schema) in properties {
            let path = format!("{path}.{key}");
            assert!(schema["description"].is_string(), "{path} has no documentation");
            assert!(!value[key].is_null(), "{path} is not in config/imaps-proxy.yaml");
            if let Some(default) = schema.get("default") {
                assert_eq!(&value[key], default, "{path}");
            }
            every_key(schema, &value[key], &path);
        }
        for key in value.as_object().unwrap().keys() {
            assert!(properties.contains_key(key), "{path}.{key} is not in the schema");
        }
    }
    if let Some(items) = schema.get("items") {
        let values = value.as_array().unwrap();
        if values.iter().all(Value::is_object) {
            // What excludes each other stands in items of its own.
            let all = values.iter().flat_map(|value| value.as_object().unwrap().clone());
            return every_key(items, &Value::Object(all.collect()), path);
        }
        for value in values {
            every_key(items, value, path);
        }
    }
}

#[test]
fn the_schema_requires_what_has_no_default() {
    let schema = schema();
    let required = |schema: &Value| schema["required"].clone();
    assert_eq!(required(&schema), serde_json::json!(["listen", "tls", "backend"]));
    let properties = &schema["properties"];
    assert_eq!(required(&properties["backend"]), serde_json::json!(["servers"]));
    assert_eq!(required(&properties["tls"]), Value::Null);
    let pair = &properties["tls"]["properties"]["certificates"]["items"];
    let either = serde_json::json!([{ "required": ["cert", "key"] }, { "required": ["dir"] }]);
    assert_eq!(pair["oneOf"], either);
    assert_eq!(properties["limits"]["properties"]["connections"]["default"], 9000);
}

#[test]
fn both_parsers_read_the_same_values_from_the_documented_file() {
    let mut mistakes = Mistakes::default();
    let ours = yaml::parse(&documented_in_full(), &mut mistakes).unwrap();
    let theirs: Value = serde_yaml::from_str(&documented_in_full()).unwrap();
    assert!(mistakes.is_empty());
    same(&ours, &theirs);
}

fn same(ours: &yaml::Node, theirs: &Value) {
    match (&ours.kind, theirs) {
        (yaml::Kind::Map(entries), Value::Object(object)) => {
            assert_eq!(entries.len(), object.len());
            entries.iter().for_each(|entry| same(&entry.value, &object[&*entry.key]));
        }
        (yaml::Kind::List(items), Value::Array(array)) => {
            assert_eq!(items.len(), array.len());
            items.iter().zip(array).for_each(|(ours, theirs)| same(ours, theirs));
        }
        (yaml::Kind::Scalar(ours), Value::String(theirs)) => assert_eq!(ours, theirs),
        (yaml::Kind::Scalar(ours), Value::Number(theirs)) => assert_eq!(*ours, theirs.to_string()),
        (yaml::Kind::Scalar(ours), Value::Bool(theirs)) => assert_eq!(*ours, theirs.to_string()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn marks_count_characters_from_one() {
    let text = "ä: 1\nbb:\n  - x\n  - \"y\"\n  - {c: d, 'e' : [f]}\n";
    let mut mistakes = Mistakes::default();
    let root = yaml::parse(text, &mut mistakes).unwrap();
    let mut marks = Vec::new();
    walk(&root, &mut marks);
    let expected = [
        (1, 1),  // the top
        (1, 1),  // ä
        (1, 4),  // 1
        (2, 1),  // bb
        (3, 3),  // the list
        (3, 5),  // x
        (4, 5),  // y
        (5, 5),  // {
        (5, 6),  // c
        (5, 9),  // d
        (5, 12), // 'e'
        (5, 18), // [
        (5, 19), // f
    ];
    assert_eq!(marks, expected);
}

fn walk(node: &yaml::Node, marks: &mut Vec<(usize, usize)>) {
    marks.push((node.mark.line, node.mark.column));
    match &node.kind {
        yaml::Kind::Map(entries) => {
            for entry in entries {
                marks.push((entry.mark.line, entry.mark.column));
                walk(&entry.value, marks);
            }
        }
        yaml::Kind::List(items) => items.iter().for_each(|item| walk(item, marks)),
        _ => {}
    }
}

#[test]
fn variables_become_values_and_never_structure() {
    let settings = good(&SMALLEST.replace("legacy-imap:143", "${BACKEND}"));
    assert_eq!(settings.backend.servers[0].address.to_string(), "10.0.0.7:143");
    let settings = good(&format!("{SMALLEST}limits:\n  connections: ${{SESSIONS}}0\n"));
    assert_eq!(settings.limits.connections, 120);
    let settings = good(&format!("{SMALLEST}timeouts: {{ drain: \"${{DRAIN:-5s}}\" }}\n"));
    assert_eq!(settings.timeouts.drain, Duration::from_secs(5));
    let found = mistakes(&SMALLEST.replace("legacy-imap:143", "${INJECTION}"));
    assert_eq!(found.len(), 1);
    assert!(found[0].contains(r"found `a:1\n  - address: b:2 # `"), "{found:?}");
}

#[test]
fn a_key_with_nothing_below_is_as_good_as_no_key() {
    let settings =
        good(&format!("{SMALLEST}timeouts:\nlimits: ~\nmetrics:\n  # address: x\nlog: {{}}\n"));
    assert_eq!(settings.timeouts.idle, Duration::from_mins(35));
    assert_eq!(settings.metrics, None);
}

#[test]
fn windows_files_and_byte_order_marks_are_read() {
    good(&format!("\u{feff}{}", SMALLEST.replace('\n', "\r\n")));
    let text = format!("\u{feff}{}", SMALLEST.replace("listen:", "lissen:").replace('\n', "\r\n"));
    assert_eq!(mistakes(&text), ["2:1: unknown key `lissen`, the nearest is `listen`"]);
}

#[test]
fn tls_is_handed_out_as_far_as_it_can_be_read() {
    let handed_out = |text: &str| {
        let Err(Error::Invalid(invalid)) = read(text) else { panic!("no mistake in {text}") };
        invalid.tls.map(|tls| tls.certificates.len())
    };
    assert_eq!(handed_out(&format!("{SMALLEST}nonsense: 1\n")), Some(1));
    let beside = |line: &str| SMALLEST.replace("backend:", &format!("  {line}\nbackend:"));
    assert_eq!(handed_out(&beside("min_version: \"1.1\"")), Some(1));
    assert_eq!(handed_out(&beside("groups: [x25519, x25520]")), Some(1));
    assert_eq!(handed_out(&SMALLEST.replace("cert:", "cart:")), None);
    let two = SMALLEST.replace("    - cert:", "    - dir: /d\n      key: k\n    - cert:");
    assert_eq!(handed_out(&two), Some(1));
    // Whether the files may be missing is not known.
    assert_eq!(handed_out(&beside("self_signed: { names: 1, dir: d }")), None);
}

#[test]
fn certificates_are_pairs_or_directories() {
    let with = |items: &str| {
        SMALLEST.replace("    - cert: /certs/fullchain.pem\n      key: /certs/privkey.pem\n", items)
    };
    let settings =
        good(&with("    - { cert: a, key: b }\n    - dir: c\n    - { key: d, cert: e }\n"));
    let dir = settings::CertificateSource::Dir("c".into());
    assert_eq!(settings.tls.certificates.len(), 3);
    assert_eq!(settings.tls.certificates[1], dir);
    for (items, expected) in [
        ("    - cert: a\n", "6:7: missing key `key`: the private key that belongs to `cert`"),
        ("    - key: a\n", "6:7: missing key `cert`: the certificate that belongs to `key`"),
        (
            "    - { dir: a, key: b }\n",
            "6:7: `dir` stands alone; give `cert` and `key` an item of their own",
        ),
        ("    - {}\n", "6:7: expected a pair of `cert` and `key`, or a `dir`"),
        ("    - { cart: a, key: b }\n", "6:9: unknown key `cart`, the nearest is `cert`"),
    ] {
        assert_eq!(mistakes(&with(items)), [expected], "{items}");
    }
}

#[test]
fn suites_and_groups_are_checked() {
    let with = |lines: &str| SMALLEST.replace("backend:", &format!("{lines}backend:"));
    let settings = good(&with(
        "  unknown_name: refuse\n  cipher_suites: [TLS_AES_128_GCM_SHA256, tls13_aes_256_gcm_sha384, \
         TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256]\n  groups: [secp256r1, x25519mlkem768]\n",
    ));
    let suites: Vec<_> =
        settings.tls.cipher_suites.iter().map(|s| s.suite().as_str().unwrap()).collect();
    let expected = [
        "TLS13_AES_128_GCM_SHA256",
        "TLS13_AES_256_GCM_SHA384",
        "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    ];
    assert_eq!(suites, expected);
    let groups: Vec<_> = settings.tls.groups.iter().map(|g| g.name().as_str().unwrap()).collect();
    assert_eq!(groups, ["secp256r1", "X25519MLKEM768"]);
    assert_eq!(settings.tls.unknown_name, settings::UnknownName::Refuse);
    for (lines, expected) in [
        (
            "  cipher_suites: [TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA]\n",
            "8:19: `TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA` is no cipher suite that is spoken here, the nearest is `TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256`",
        ),
        (
            "  groups: [x25520]\n",
            "8:12: `x25520` is no group that is spoken here, the nearest is `X25519`",
        ),
        ("  unknown_name: ignore\n", "8:17: expected `default` or `refuse`, found `ignore`"),
        (
            "  min_version: \"1.3\"\n  cipher_suites: [TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256]\n",
            "9:18: nothing in `cipher_suites` works with TLS 1.3, which is always spoken; add to it",
        ),
        (
            "  cipher_suites: [TLS_AES_128_GCM_SHA256]\n",
            "8:18: nothing in `cipher_suites` works with TLS 1.2; add to it, or set `min_version` to \"1.3\"",
        ),
        (
            "  groups: [X25519MLKEM768]\n",
            "8:11: nothing in `groups` works with TLS 1.2; add to it, or set `min_version` to \"1.3\"",
        ),
    ] {
        assert_eq!(mistakes(&with(lines)), [expected], "{lines}");
    }
    good(&with(
        "  min_version: \"1.3\"\n  cipher_suites: [TLS_AES_128_GCM_SHA256]\n  groups: [X25519MLKEM768]\n",
    ));
}

#[test]
fn server_that_is_listed_twice_is_a_mistake() {
    let with = |second: &str| {
        format!(
            "listen: [{{ address: '[::]:993' }}]\ntls: {{ self_signed: {{ names: [a], dir: b }} }}\nbackend:\n  servers:\n\
             \x20   - address: legacy:143\n    - address: {second}\n"
        )
    };
    let expected =
        "6:16: `LEGACY:143` is listed already, in line 5; for a larger share set its `weight`";
    assert_eq!(mistakes(&with("LEGACY:143")), [expected]);
    good(&with("legacy:144"));
}

#[test]
fn files_that_are_hostile_end_quickly() {
    let bomb: String = (0..30).map(|i| format!("a{i}: &a{i} [*a{}, *a{0}]\n", i + 1)).collect();
    assert!(read(&bomb).is_err());
    assert!(read(&"[".repeat(100_000)).is_err());
    assert!(read(&"{a: ".repeat(100_000)).is_err());
    assert!(read(&"- ".repeat(100_000)).is_err());
    assert!(read(&"? ".repeat(100_000)).is_err());
    let keys: String = (0..50_000).map(|i| format!("k{i}: 1\n")).collect();
    assert!(read(&keys).is_err());
    assert!(read(&format!("{}: 1", "k".repeat(500_000))).is_err());
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "\\PC*") {
        let _ = read(&text);
    }

    #[test]
    fn no_yaml_makes_it_panic(
        text in proptest::collection::vec(
            prop_oneof![
                Just("listen"), Just("tls"), Just("backend"), Just("address"), Just(": "), Just(":\n"),
                Just("\n"), Just("  "), Just("- "), Just("["), Just("]"), Just("{"), Just("}"),
                Just("\""), Just("'"), Just("|\n"), Just("&a "), Just("*a "), Just("!t "), Just("? "),
                Just("---\n"), Just("..."), Just("# "), Just("${A"), Just("${A:-b}"), Just("$"),
                Just("\t"), Just("\r"), Just("ä"), Just(","), Just("<<"), Just("5s"), Just("%YAML 1.2\n"),
            ],
            0..40,
        )
    ) {
        let _ = read(&text.concat());
    }

    #[test]
    fn a_damaged_file_is_read_or_explained(at in 0..SMALLEST.len(), with in "\\PC{0,3}") {
        let mut text = SMALLEST.to_owned();
        text.replace_range(at..=at, &with);
        if let Err(error) = read(&text) {
            assert!(error.to_string().contains("f.yaml:"), "{error}");
        }
    }
}
