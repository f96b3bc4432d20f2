//! `cert self-signed` and `cert show` as a person uses them; what they make is judged by openssl.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Output};

use imaps_proxy::config::settings::{CertificateFiles, CertificateSource, Tls};
use imaps_proxy::tls::{Finding, News, Severity, Store};
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
    let files = CertificateFiles { cert: cert.to_owned(), key: key.to_owned() };
    Tls::with(vec![CertificateSource::Pair(files)])
}

fn load(settings: &Tls) -> Result<News, String> {
    Store::new(settings).load(std::time::SystemTime::now()).map_err(|error| error.to_string())
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
    for expected in [
        "Name Constraints: critical",
        "DNS:mail.example.org",
        "IP:192.0.2.7/255.255.255.255",
        "TLS Web Server Authentication",
    ] {
        assert!(ca.contains(expected), "{expected}: {ca}");
    }
    assert!(told.contains(&fingerprint(&certs, "ca.pem")), "{told}");
    assert!(told.contains("tls:\n  certificates:\n    - cert: "), "{told}");

    let of_key = openssl(&certs, &["pkey", "-pubout", "-in", "privkey.pem"]);
    let of_cert = openssl(&certs, &["x509", "-pubkey", "-noout", "-in", "fullchain.pem"]);
    assert_eq!(of_key, of_cert);
    assert_eq!(fs::metadata(certs.join("privkey.pem")).unwrap().mode() & 0o777, 0o600);
    assert!(!certs.join("ca.key").exists(), "nobody can issue anything by this CA");
    // 825 days in seconds: a certificate that lives longer is refused by Apple's clients.
    let late = ["x509", "-noout", "-checkend", "71280000", "-in", "fullchain.pem"];
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
        "819 days left",
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
    // Of the public key, as DANE has it.
    openssl(
        &certs,
        &["pkey", "-in", "privkey.pem", "-pubout", "-outform", "DER", "-out", "pub.der"],
    );
    let digest = openssl(&certs, &["dgst", "-sha256", "-c", "pub.der"]).to_uppercase();
    let digest = digest.trim().rsplit(' ').next().unwrap();
    assert!(text.contains(&format!("of its key   {digest}")), "{digest}: {text}");
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
    for expected in [
        "the certificates in the file are out of order; put the server's first",
        "certificate 1 of the file (CN=other.example.org) issued none of the others: take it out",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
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
        match load(&settings(&cert, &key)) {
            Ok(news) => assert_eq!(news.taken[0].certificate, "a.example", "{name}"),
            Err(error) => panic!("{name}: {error}"),
        }
    }
    let lock = ["pkey", "-in", "rsa.key", "-aes256", "-passout", "pass:x", "-out", "locked.key"];
    openssl(at, &lock);
    let locked = settings(&at.join("rsa.pem"), &at.join("locked.key"));
    let error = load(&locked).unwrap_err();
    assert!(error.contains("encrypted with a passphrase"), "{error}");
    let mixed = settings(&at.join("rsa.pem"), &at.join("p384.key"));
    let error = load(&mixed).unwrap_err();
    assert!(error.contains("does not belong to the certificate"), "{error}");
}

#[test]
fn a_short_rsa_key_is_refused_with_its_length() {
    let dir = TempDir::new().unwrap();
    let at = dir.path();
    let made = ["req", "-x509", "-nodes", "-newkey", "rsa:1024", "-subj", "/CN=a.example"];
    openssl(at, &[&made[..], &["-keyout", "weak.key", "-out", "weak.pem"]].concat());
    let weak = settings(&at.join("weak.pem"), &at.join("weak.key"));
    let error = load(&weak).unwrap_err();
    assert!(error.contains("weak.key: RSA key of 1024 bits"), "{error}");
    assert!(imaps_proxy::tls::check(&weak).iter().any(|finding| finding.message.contains("1024")));
}

/// Keys are compared as keys, whatever is written around them; what is odd about the certificate is said.
#[test]
fn certificates_of_an_odd_form_serve_and_are_said_to_be_odd() {
    let dir = TempDir::new().unwrap();
    let at = dir.path();
    let subject = ["-subj", "/CN=a.example", "-days", "90"];
    let san = ["-addext", "subjectAltName=DNS:a.example"];
    openssl(at, &["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "plain.key"]);
    let named = ["ec", "-in", "plain.key", "-param_enc", "explicit", "-out", "explicit.key"];
    openssl(at, &named);
    openssl(at, &["ec", "-in", "plain.key", "-conv_form", "compressed", "-out", "point.key"]);
    let own = |key: &str, cert: &str, more: &[&str]| {
        let made = ["req", "-x509", "-key", key, "-out", cert];
        openssl(at, &[&made[..], &subject, more].concat());
    };
    own("explicit.key", "explicit.pem", &san);
    own("point.key", "point.pem", &san);
    own(
        "plain.key",
        "critical.pem",
        &[&san[..], &["-addext", "1.2.3.4=critical,ASN1:NULL"]].concat(),
    );
    // The oldest of all instructions: a request, signed by its own key.
    openssl(at, &["req", "-new", "-key", "plain.key", "-subj", "/CN=a.example", "-out", "1.csr"]);
    let sign = ["x509", "-req", "-in", "1.csr", "-signkey", "plain.key", "-out", "version1.pem"];
    openssl(at, &[&sign[..], &["-days", "90"]].concat());
    let trust = ["x509", "-in", "critical.pem", "-addtrust", "serverAuth", "-trustout"];
    openssl(at, &[&trust[..], &["-out", "trusted.pem"]].concat());
    // As a CA such a one may be meant not to count.
    let cas = |file: &str| imaps_proxy::tls::certificate::read_cas(&at.join(file));
    let error = cas("trusted.pem").expect_err("a list of what it is trusted for").to_string();
    assert!(error.contains("holds a TRUSTED CERTIFICATE, not a CA certificate"), "{error}");
    openssl(
        at,
        &["x509", "-in", "critical.pem", "-trustout", "-setalias", "x", "-out", "alias.pem"],
    );
    assert_eq!(cas("alias.pem").map(|cas| cas.facts.len()).map_err(|e| e.to_string()), Ok(1));
    let mut checked = 0;
    for (cert, said) in [
        ("version1", "is X.509 version 1"),
        ("explicit", "gives its curve by explicit parameters"),
        ("point", ""),
        ("critical", "has a critical extension (1.2.3.4) that clients do not know"),
        ("trusted", "has a critical extension (1.2.3.4)"),
    ] {
        let path = at.join(format!("{cert}.pem"));
        // In every form of one key, the file of which is plain.
        for key in ["plain", "explicit", "point"] {
            let settings = settings(&path, &at.join(format!("{key}.key")));
            let news = load(&settings).unwrap_or_else(|error| panic!("{cert} {key}: {error}"));
            assert_eq!(news.taken.len(), 1, "{cert} {key}");
            assert!(news.notice.iter().any(|line| line.contains(said)), "{cert} {key}: {news:?}");
            let found = imaps_proxy::tls::check(&settings);
            let is_error = |finding: &Finding| finding.severity == Severity::Error;
            assert!(!found.iter().any(is_error), "{cert} {key}: {found:?}");
            checked += 1;
        }
    }
    let shown = show(&at.join("version1.pem"));
    assert!(
        shown.contains("version      1 of X.509") && shown.contains("is X.509 version 1,"),
        "{shown}"
    );
    assert_eq!(checked, 15);
    openssl(at, &["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "other.key"]);
    let error = load(&settings(&at.join("version1.pem"), &at.join("other.key"))).unwrap_err();
    assert!(error.contains("does not belong to the certificate"), "{error}");
}

/// What an old CA has left in the file stops nothing, as long as the issuer is there.
#[test]
fn weak_certificates_that_no_client_needs_are_named_only() {
    let dir = TempDir::new().unwrap();
    let at = dir.path();
    fs::write(at.join("ca.ext"), "basicConstraints=critical,CA:TRUE\n").unwrap();
    fs::write(at.join("leaf.ext"), "subjectAltName=DNS:a.example\n").unwrap();
    let key = |name: &str, bits: &str| {
        openssl(at, &["genrsa", "-out", &format!("{name}.key"), bits]);
        let (key, request) = (format!("{name}.key"), format!("{name}.csr"));
        let subject = format!("/CN={name}");
        openssl(at, &["req", "-new", "-key", &key, "-subj", &subject, "-out", &request]);
    };
    let sign = |name: &str, by: &str, extensions: &str, digest: &str, to: &str| {
        let request = format!("{name}.csr");
        let (ca, ca_key) = (format!("{by}.pem"), format!("{by}.key"));
        let made = ["x509", "-req", "-in", &request, "-days", "90", "-extfile", extensions, digest];
        let by = ["-CA", &ca, "-CAkey", &ca_key, "-CAcreateserial", "-out", to];
        openssl(at, &[&made[..], &by].concat());
    };
    key("root", "2048");
    let own = ["x509", "-req", "-in", "root.csr", "-signkey", "root.key", "-extfile", "ca.ext"];
    openssl(at, &[&own[..], &["-out", "root.pem"]].concat());
    for (name, bits) in [("mid", "2048"), ("old", "1024"), ("leaf", "2048")] {
        key(name, bits);
    }
    sign("mid", "root", "ca.ext", "-sha256", "mid.pem");
    sign("mid", "root", "ca.ext", "-sha1", "mid-sha1.pem");
    sign("old", "root", "ca.ext", "-sha256", "old.pem");
    sign("leaf", "mid", "leaf.ext", "-sha256", "leaf.pem");
    sign("leaf", "mid", "leaf.ext", "-sha1", "leaf-sha1.pem");
    sign("leaf", "old", "leaf.ext", "-sha256", "leaf-of-old.pem");
    for (files, said) in [
        (&["leaf", "mid"][..], ""),
        (
            &["leaf", "mid", "old"],
            "certificate 3 of the file (CN=old) has a weak key (RSA 1024 bits)",
        ),
        (&["leaf", "mid-sha1", "mid"], "certificate 2 of the file (CN=mid) has a weak signature"),
        (
            &["leaf", "mid-sha1"],
            "certificate 2 of the file has the name of the issuer (CN=mid) but has a weak",
        ),
        (
            &["leaf-of-old", "old"],
            "but has a weak key (RSA 1024 bits); put the right one in its place",
        ),
        (&["leaf-sha1", "mid"], "the certificate has a weak signature (RSA with SHA-1)"),
    ] {
        let read = |file: &&str| fs::read_to_string(at.join(format!("{file}.pem"))).unwrap();
        let chain = at.join("chain.pem");
        fs::write(&chain, files.iter().map(read).collect::<String>()).unwrap();
        let settings = settings(&chain, &at.join("leaf.key"));
        let news = load(&settings).unwrap_or_else(|error| panic!("{files:?}: {error}"));
        assert!(news.problems.is_empty(), "{files:?}: {news:?}");
        let found = imaps_proxy::tls::check(&settings);
        assert_eq!(found.len(), usize::from(!said.is_empty()), "{files:?}: {found:?}");
        let is_said =
            |one: &Finding| one.severity == Severity::Warning && one.message.contains(said);
        assert!(found.iter().all(is_said), "{files:?}: {found:?}");
    }
}
