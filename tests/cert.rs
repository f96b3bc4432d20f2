//! `cert self-signed` and `cert show` as a person uses them; what they make is judged by openssl.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Output};

use imaps_proxy::config::settings::{CertificateFiles, MinVersion, Tickets, Tls};
use tempfile::TempDir;

fn proxy(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_imaps-proxy")).args(args).output().unwrap()
}

fn try_openssl(dir: &Path, args: &[&str]) -> Result<String, String> {
    let out = Command::new("openssl").args(args).current_dir(dir).output().expect("openssl");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    if out.status.success() {
        return Ok(text);
    }
    Err(format!("{args:?}: {text}{}", String::from_utf8_lossy(&out.stderr)))
}

fn openssl(dir: &Path, args: &[&str]) -> String {
    try_openssl(dir, args).unwrap()
}

/// SHA-256 of the first certificate of a file, as openssl prints it.
fn fingerprint(dir: &Path, file: &str) -> String {
    let text = openssl(dir, &["x509", "-noout", "-fingerprint", "-sha256", "-in", file]);
    text.trim().split('=').nth(1).unwrap().to_owned()
}

fn ok(output: &Output) -> String {
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{err}");
    assert_eq!(err, "");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn failure(output: &Output, code: i32) -> String {
    assert_eq!(output.status.code(), Some(code));
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn make(dir: &TempDir) -> String {
    let out = dir.path().join("certs");
    let names = ["--name", "mail.example.org", "--name", "imap.example.org", "--name", "192.0.2.7"];
    ok(&proxy(&[&["cert", "self-signed", "--out", out.to_str().unwrap()], &names[..]].concat()))
}

fn show(file: &Path) -> String {
    ok(&proxy(&["cert", "show", file.to_str().unwrap()]))
}

fn settings(cert: &Path, key: &Path) -> Tls {
    Tls {
        certificate: Some(CertificateFiles { cert: cert.to_owned(), key: key.to_owned() }),
        self_signed: None,
        min_version: MinVersion::Tls12,
        tickets: Tickets::default(),
        client_auth: None,
    }
}

#[test]
fn openssl_accepts_what_was_made_for_its_names_and_nothing_else() {
    let dir = TempDir::new().unwrap();
    let told = make(&dir);
    let certs = dir.path().join("certs");
    let verify = |option, name| {
        let args = ["verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", "ca.pem"];
        try_openssl(&certs, &[&args[..], &[option, name, "fullchain.pem"]].concat())
    };
    verify("-verify_hostname", "mail.example.org").unwrap();
    verify("-verify_hostname", "imap.example.org").unwrap();
    verify("-verify_ip", "192.0.2.7").unwrap();
    assert!(verify("-verify_hostname", "other.example.org").is_err());

    let leaf = openssl(&certs, &["x509", "-noout", "-text", "-in", "fullchain.pem"]);
    for expected in [
        "DNS:mail.example.org, DNS:imap.example.org, IP Address:192.0.2.7",
        "TLS Web Server Authentication",
        "Digital Signature",
        "X509v3 Subject Key Identifier",
        "X509v3 Authority Key Identifier",
        "prime256v1",
        "CA:FALSE",
    ] {
        assert!(leaf.contains(expected), "{expected}: {leaf}");
    }
    let ca = openssl(&certs, &["x509", "-noout", "-text", "-in", "ca.pem"]);
    assert!(ca.contains("CA:TRUE, pathlen:0") && ca.contains("Certificate Sign"), "{ca}");
    assert!(told.contains(&fingerprint(&certs, "ca.pem")), "{told}");
    assert!(told.contains("tls:\n  certificates:\n    - cert: "), "{told}");

    let of_key = openssl(&certs, &["pkey", "-pubout", "-in", "privkey.pem"]);
    let of_cert = openssl(&certs, &["x509", "-pubkey", "-noout", "-in", "fullchain.pem"]);
    assert_eq!(of_key, of_cert);
    for key in ["privkey.pem", "ca.key"] {
        assert_eq!(fs::metadata(certs.join(key)).unwrap().mode() & 0o777, 0o600);
    }
    // 398 days in seconds: a certificate that lives longer is refused by Apple's clients.
    let late = ["x509", "-noout", "-checkend", "34387200", "-in", "fullchain.pem"];
    assert!(try_openssl(&certs, &late).is_err());
}

#[test]
fn nothing_is_overwritten_without_force() {
    let dir = TempDir::new().unwrap();
    make(&dir);
    let certs = dir.path().join("certs");
    let before = fs::read(certs.join("ca.pem")).unwrap();
    let args = ["cert", "self-signed", "--name", "a.example", "--out", certs.to_str().unwrap()];
    let told = failure(&proxy(&args), 1);
    assert!(told.contains("exists and is not overwritten") && told.contains("--force"), "{told}");
    assert_eq!(fs::read(certs.join("ca.pem")).unwrap(), before);
    ok(&proxy(&[&args[..], &["--force"]].concat()));
    assert_ne!(fs::read(certs.join("ca.pem")).unwrap(), before);
    let args = ["verify", "-CAfile", "ca.pem", "-verify_hostname", "a.example", "fullchain.pem"];
    openssl(&certs, &args);
}

#[test]
fn impossible_names_are_a_mistake_of_the_command_line() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("certs");
    let out = out.to_str().unwrap();
    let told = failure(&proxy(&["cert", "self-signed", "--name", "a b", "--out", out]), 2);
    assert!(told.contains("\"a b\" is not a name for a certificate"), "{told}");
    assert!(!Path::new(out).exists());
    failure(&proxy(&["cert", "self-signed", "--out", out]), 2);
}

#[test]
fn a_file_where_the_folder_should_be_is_named() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let args = ["cert", "self-signed", "--name", "a.example", "--out", file.to_str().unwrap()];
    let told = failure(&proxy(&args), 1);
    assert!(told.contains(file.to_str().unwrap()) && !told.contains("Os {"), "{told}");
}

#[test]
fn show_describes_every_certificate_of_a_chain() {
    let dir = TempDir::new().unwrap();
    make(&dir);
    let certs = dir.path().join("certs");
    let text = show(&certs.join("fullchain.pem"));
    for expected in [
        "certificate 1 of 2",
        "certificate 2 of 2",
        "names        mail.example.org, imap.example.org, 192.0.2.7",
        "396 days left",
        "ECDSA P-256",
        "ECDSA with SHA-256",
        "is a CA      no",
        "is a CA      yes",
        "nothing to complain of",
        &fingerprint(&certs, "fullchain.pem"),
        &fingerprint(&certs, "ca.pem"),
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    assert!(show(&certs.join("ca.pem")).contains("A root certificate authority"));
}

#[test]
fn show_never_prints_a_key() {
    let dir = TempDir::new().unwrap();
    make(&dir);
    let key = dir.path().join("certs/privkey.pem");
    let secret = fs::read_to_string(&key).unwrap();
    let alone = show(&key);
    assert!(alone.contains("a private key, no certificate"), "{alone}");
    let both = dir.path().join("both.pem");
    let chain = fs::read_to_string(dir.path().join("certs/fullchain.pem")).unwrap();
    fs::write(&both, chain + &secret).unwrap();
    let beside = show(&both);
    assert!(beside.contains("also holds a private key"), "{beside}");
    let secret = secret.lines().nth(1).unwrap();
    assert!(!alone.contains(secret) && !beside.contains(secret));
}

#[test]
fn show_says_what_clients_would_complain_of() {
    let dir = TempDir::new().unwrap();
    let at = dir.path();
    let root = |name: &str, more: &[&str]| {
        let (key, cert) = (format!("{name}.key"), format!("{name}.pem"));
        let subject = format!("/CN={name}.example.org");
        let fixed = ["req", "-x509", "-nodes", "-newkey", "rsa:2048", "-days", "90"];
        let named = ["-subj", &subject, "-keyout", &key, "-out", &cert];
        openssl(at, &[&fixed[..], &named, more].concat());
    };
    // A certificate with everything wrong: a short key, SHA-1, no SAN, dates of the past, no issuer beside it.
    root("issuer", &[]);
    fs::write(at.join("index"), "").unwrap();
    let rules = "[ca]\ndefault_ca=d\n[d]\ndatabase=index\nrand_serial=yes\nnew_certs_dir=.\npolicy=p\n[p]\ncommonName=supplied\n";
    fs::write(at.join("rules"), rules).unwrap();
    openssl(at, &["genrsa", "-out", "bad.key", "1024"]);
    let request = ["req", "-new", "-key", "bad.key", "-subj", "/CN=bad.example.org"];
    openssl(at, &[&request[..], &["-out", "bad.csr"]].concat());
    let sign = ["ca", "-batch", "-notext", "-config", "rules", "-in", "bad.csr", "-out", "bad.pem"];
    let by = ["-cert", "issuer.pem", "-keyfile", "issuer.key", "-md", "sha1"];
    let dates = ["-startdate", "20200101000000Z", "-enddate", "20210101000000Z"];
    openssl(at, &[&sign[..], &by, &dates].concat());
    let text = show(&at.join("bad.pem"));
    for expected in [
        "(EXPIRED)",
        "expired on 2021-01-01 00:00:00 UTC",
        "RSA with 1024 bits",
        "weak signature (RSA with SHA-1)",
        "only as CN, which clients ignore",
        "the intermediate certificate is missing",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }

    root("other", &["-addext", "subjectAltName=DNS:other.example.org"]);
    let read = |file: &str| fs::read_to_string(at.join(file)).unwrap();
    fs::write(at.join("order.pem"), read("other.pem") + &read("bad.pem")).unwrap();
    let text = show(&at.join("order.pem"));
    assert!(text.contains("out of order or holds a stranger"), "{text}");
}

#[test]
fn show_of_something_else_fails_in_plain_words() {
    let dir = TempDir::new().unwrap();
    let missing = dir.path().join("none.pem");
    let told = failure(&proxy(&["cert", "show", missing.to_str().unwrap()]), 1);
    assert!(told.contains("no such file") && !told.contains("Os {"), "{told}");
    let request = ["req", "-new", "-nodes", "-newkey", "rsa:2048", "-subj", "/CN=x"];
    openssl(dir.path(), &[&request[..], &["-keyout", "x.key", "-out", "x.csr"]].concat());
    let told = failure(&proxy(&["cert", "show", dir.path().join("x.csr").to_str().unwrap()]), 1);
    assert!(told.contains("holds a certificate request, not a certificate"), "{told}");
}

#[test]
fn keys_of_every_usual_kind_and_form_load() {
    let dir = TempDir::new().unwrap();
    let at = dir.path();
    let kinds: [(&str, &[&str]); 6] = [
        ("rsa", &["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]),
        ("rsa-pkcs1", &["genrsa", "-traditional", "2048"]),
        ("p256-sec1", &["ecparam", "-name", "prime256v1", "-genkey"]), // EC PARAMETERS in front
        ("p384", &["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"]),
        ("p521", &["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-521"]),
        ("ed25519", &["genpkey", "-algorithm", "ED25519"]),
    ];
    for (name, args) in kinds {
        let (key, cert) = (at.join(format!("{name}.key")), at.join(format!("{name}.pem")));
        fs::write(&key, openssl(at, args)).unwrap();
        let made = ["req", "-x509", "-days", "90", "-key", key.to_str().unwrap()];
        let named = ["-subj", "/CN=a.example", "-addext", "subjectAltName=DNS:a.example"];
        let written = ["-out", cert.to_str().unwrap()];
        openssl(at, &[&made[..], &named, &written].concat());
        match imaps_proxy::tls::load(&settings(&cert, &key)) {
            Ok(loaded) => assert_eq!(loaded.certificate, "a.example", "{name}"),
            Err(error) => panic!("{name}: {error}"),
        }
    }
    let lock = ["pkey", "-in", "rsa.key", "-aes256", "-passout", "pass:x", "-out", "locked.key"];
    openssl(at, &lock);
    let locked = settings(&at.join("rsa.pem"), &at.join("locked.key"));
    let error = imaps_proxy::tls::load(&locked).err().unwrap().to_string();
    assert!(error.contains("encrypted with a passphrase"), "{error}");
    let mixed = settings(&at.join("rsa.pem"), &at.join("p384.key"));
    let error = imaps_proxy::tls::load(&mixed).err().unwrap().to_string();
    assert!(error.contains("does not belong to the certificate"), "{error}");
}

#[test]
fn a_short_rsa_key_is_refused_with_its_length() {
    let dir = TempDir::new().unwrap();
    let at = dir.path();
    let made = ["req", "-x509", "-nodes", "-newkey", "rsa:1024", "-subj", "/CN=a.example"];
    openssl(at, &[&made[..], &["-keyout", "weak.key", "-out", "weak.pem"]].concat());
    let weak = settings(&at.join("weak.pem"), &at.join("weak.key"));
    let error = imaps_proxy::tls::load(&weak).err().unwrap().to_string();
    assert!(error.contains("weak.key: RSA key of 1024 bits"), "{error}");
    assert!(imaps_proxy::tls::check(&weak).iter().any(|finding| finding.message.contains("1024")));
}
