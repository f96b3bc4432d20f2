//! The real Prometheus scrapes the real proxy, and promtool reads what it serves.
//!
//! Needs `prometheus` and `promtool` in the path; `tests/run` installs them.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long anything may take to come up; reached only when it does not.
const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn prometheus_scrapes_the_proxy() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let proxy = Proxy::start(dir.path());
    let prometheus = Prometheus::start(dir.path(), &proxy.metrics);

    let up = prometheus.value("up", |value| value == 1.0);
    assert_eq!(up["metric"]["instance"], proxy.metrics);

    // Known from the start, and of a closed list: there without a single session.
    let closed = prometheus.value("sum(imaps_proxy_sessions_closed_total)", |_| true);
    assert_eq!(closed["value"][1], "0");
    let info = prometheus.value("imaps_proxy_build_info", |value| value == 1.0);
    assert_eq!(info["metric"]["version"], env!("CARGO_PKG_VERSION"));
    // From the standard process_* set, so not of our own making.
    prometheus.value("process_open_fds", |value| value > 0.0);
}

#[test]
fn promtool_finds_nothing_to_say_about_the_metrics() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let proxy = Proxy::start(dir.path());
    let (status, metrics) = get(&proxy.metrics, "/metrics").expect("an answer from /metrics");
    assert_eq!(status, 200, "{metrics}");

    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool in the path: package prometheus");
    // Dropped after the write, which is promtool's end of input.
    promtool
        .stdin
        .take()
        .expect("piped above")
        .write_all(metrics.as_bytes())
        .expect("promtool reads");
    let output = promtool.wait_with_output().expect("promtool ends");
    let said = [output.stdout, output.stderr].concat();
    assert_eq!(String::from_utf8_lossy(&said), "", "promtool check metrics has to be silent");
    assert!(output.status.success());
}

#[test]
fn shipped_scrape_configuration_is_valid() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus.yml");
    let output = Command::new("promtool")
        .args(["check", "config"])
        .arg(file)
        .output()
        .expect("promtool in the path: package prometheus");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A proxy in front of a backend that does not exist: its metrics are served all the same.
struct Proxy {
    _process: Running, // ends with this value
    /// Address of /metrics.
    metrics: String,
}

impl Proxy {
    fn start(dir: &Path) -> Self {
        let metrics = free_address();
        let config = dir.join("proxy.yaml");
        let text = format!(
            "listen:\n  - address: \"127.0.0.1:0\"\n\
             tls:\n  self_signed: {{ names: [localhost], dir: \"{dir}/self-signed\" }}\n\
             backend:\n  servers:\n    - address: \"{backend}\"\n\
             metrics:\n  address: \"{metrics}\"\n",
            dir = dir.display(),
            backend = free_address(),
        );
        fs::write(&config, text).expect("a writable temporary folder");
        let mut command = Command::new(env!("CARGO_BIN_EXE_imaps-proxy"));
        command.arg("run").arg("--config").arg(&config);
        let mut process = Running::start(command, &dir.join("proxy.log"));
        process.wait_for("/healthz of the proxy", || {
            get(&metrics, "/healthz").filter(|(status, _)| *status == 200).map(drop)
        });
        Self { _process: process, metrics }
    }
}

struct Prometheus {
    process: std::cell::RefCell<Running>,
    address: String,
}

impl Prometheus {
    fn start(dir: &Path, target: &str) -> Self {
        let config = dir.join("prometheus.yml");
        let text = format!(
            "global: {{ scrape_interval: 1s, scrape_timeout: 1s }}\n\
             scrape_configs:\n  - job_name: imaps-proxy\n    static_configs:\n      - targets: [\"{target}\"]\n"
        );
        fs::write(&config, text).expect("a writable temporary folder");
        let address = free_address();
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", dir.join("prometheus").display()))
            .arg(format!("--web.listen-address={address}"));
        let mut process = Running::start(command, &dir.join("prometheus.log"));
        process.wait_for("Prometheus", || {
            get(&address, "/-/ready").filter(|(status, _)| *status == 200).map(drop)
        });
        Self { process: process.into(), address }
    }

    /// The one series that a query yields, as soon as its value is as wanted.
    fn value(&self, query: &str, wanted: impl Fn(f64) -> bool) -> Value {
        // Parentheses and underscores are all that the queries here hold beside letters.
        let path = format!("/api/v1/query?query={query}");
        self.process.borrow_mut().wait_for(query, || {
            let (_, body) = get(&self.address, &path)?;
            let answer: Value = serde_json::from_str(&body).ok()?;
            let series = answer["data"]["result"].as_array()?;
            let value: f64 = series.first()?["value"][1].as_str()?.parse().ok()?;
            (series.len() == 1 && wanted(value)).then(|| series[0].clone())
        })
    }
}

/// A child process whose output goes to a file; ended when dropped.
struct Running {
    child: Child,
    log: std::path::PathBuf,
}

impl Running {
    fn start(mut command: Command, log: &Path) -> Self {
        let file = fs::File::create(log).expect("a writable temporary folder");
        let second = file.try_clone().expect("a second handle of a file");
        let child = command.stdin(Stdio::null()).stdout(file).stderr(second).spawn();
        let child = child.unwrap_or_else(|error| panic!("{:?}: {error}", command.get_program()));
        Self { child, log: log.to_owned() }
    }

    /// Asks again until there is an answer. Panics with the log at the limit, and at once when the process ended.
    fn wait_for<T>(&mut self, what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            if let Some(answer) = ask() {
                return answer;
            }
            let ended = self.child.try_wait().expect("our own child");
            if ended.is_some() || began.elapsed() > LIMIT {
                let log = fs::read_to_string(&self.log).unwrap_or_default();
                panic!("no answer: {what}; process ended: {ended:?}; its output:\n{log}");
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails only when it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `GET` over HTTP/1.0: status and body, or `None` while nobody answers.
fn get(address: &str, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(LIMIT)).ok()?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

/// An address on which nobody listens. Somebody else may take it before its user does; rare enough for tests.
fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port on loopback");
    listener.local_addr().expect("bound").to_string()
}
