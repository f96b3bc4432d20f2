//! The binary under test, with a configuration, ports, log and metrics of its own.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{env, fs, io, thread};

use rustix::process::Signal;
use serde_json::Value as Json;
use serde_yaml::Value as Yaml;

use super::certificates::Certificates;
use super::client::{Client, TlsOptions};
use super::process::Process;
use super::programs::{program, run};
use super::wait::{PATIENCE, within};

/// What a proxy can stand in front of.
pub trait Backend: Sync {
    /// `host:port` for the configuration.
    fn address(&self) -> String;

    /// Connections that are open at this moment, as the backend sees them.
    fn connections(&self) -> usize;
}

/// An address, possibly a name, behind which nothing that the test controls listens.
pub struct Unreachable(pub String);

impl Backend for Unreachable {
    fn address(&self) -> String {
        self.0.clone()
    }

    fn connections(&self) -> usize {
        0
    }
}

/// `imaps-proxy demo` on free ports with its certificates in `folder`; its server is up.
pub fn demo(folder: &Path) -> Process {
    let mut command = Command::new(binary());
    command.args(["demo", "--listen", &format!("127.0.0.1:{}", free_port())]);
    command.args(["--metrics", &format!("127.0.0.1:{}", free_port()), "--dir"]).arg(folder);
    let mut demo = Process::start(command);
    demo.wait_for_line("backend is up");
    demo
}

/// The container's user, as its group.
pub const USER: u32 = 65532;

/// A port on which nobody listens now. Below the range that the system hands out by itself, so that
/// no outgoing connection takes it in between.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    for _ in 0..12_000 {
        // Test programs that run side by side begin at different places.
        let offset = std::process::id() % 12_000 * 97 + NEXT.fetch_add(1, Ordering::Relaxed);
        let port = u16::try_from(20_000 + offset % 12_000).expect("below 32000");
        if TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between 20000 and 32000");
}

/// How a proxy is started; made by [`Proxy::starting`].
pub struct Starting<'a> {
    backend: &'a dyn Backend,
    config: Yaml,
    certificates: bool,
    ready: bool,
    fixed: Option<[SocketAddr; 2]>,
    descriptors: Option<usize>,
    ipv6: bool,
    root: bool,
    etc: Option<PathBuf>,
    stdout: Option<Stdio>,
    environment: BTreeMap<String, String>,
}

impl<'a> Starting<'a> {
    /// Lays `yaml` over the configuration: mappings are merged, everything else is replaced.
    #[must_use]
    pub fn config(mut self, yaml: &str) -> Self {
        merge(&mut self.config, serde_yaml::from_str(yaml).expect("the test's YAML is YAML"));
        self
    }

    /// Leaves out the harness's certificate; the test's configuration says where one comes from.
    #[must_use]
    pub fn without_certificates(mut self) -> Self {
        self.certificates = false;
        self
    }

    /// Does not wait until the proxy is ready to serve, only until it listens.
    #[must_use]
    pub fn not_ready(mut self) -> Self {
        self.ready = false;
        self
    }

    /// At most so many descriptors.
    #[must_use]
    pub fn descriptors(mut self, limit: usize) -> Self {
        self.descriptors = Some(limit);
        self
    }

    /// Ports chosen beforehand, not learned from the log: for logs that are text or that are lost.
    #[must_use]
    pub fn fixed_ports(mut self) -> Self {
        let (imaps, metrics) = (free_port(), free_port());
        self.fixed =
            Some([imaps, metrics].map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port))));
        self.config(&format!(
            "{{ listen: [{{ address: '127.0.0.1:{imaps}' }}], \
             metrics: {{ address: '127.0.0.1:{metrics}' }} }}"
        ))
    }

    /// The system has no IPv6.
    #[must_use]
    pub fn without_ipv6(mut self) -> Self {
        self.ipv6 = false;
        self
    }

    /// The proxy runs as the container's user does, [`USER`] without any right. That takes root.
    #[must_use]
    pub fn without_root(mut self) -> Self {
        self.root = false;
        self
    }

    /// The proxy sees this folder as its `/etc`, with what there is of `hosts` and `resolv.conf`. That takes a mount, so it takes root.
    #[must_use]
    pub fn etc(mut self, folder: &Path) -> Self {
        self.etc = Some(folder.to_owned());
        self
    }

    /// Standard output goes elsewhere.
    #[must_use]
    pub fn stdout(mut self, stdout: Stdio) -> Self {
        self.stdout = Some(stdout);
        self.fixed_ports()
    }

    #[must_use]
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    #[track_caller]
    pub fn start(self) -> Proxy<'a> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let certificates = Certificates::make(folder.path());
        let mut config: Yaml = serde_yaml::from_str(&format!(
            "listen: [{{ address: '127.0.0.1:0' }}]\n\
             tls: {{ certificates: [{{ cert: '{}', key: '{}' }}] }}\n\
             backend: {{ servers: [{{ address: '{}' }}] }}\n\
             metrics: {{ address: '127.0.0.1:0' }}\n\
             timeouts: {{ drain: 2s }}\n\
             log: {{ level: debug, format: json }}\n",
            certificates.cert.display(),
            certificates.key.display(),
            self.backend.address()
        ))
        .expect("the template is YAML");
        if !self.certificates {
            config["tls"] = Yaml::Mapping(serde_yaml::Mapping::new());
        }
        merge(&mut config, self.config);
        let file = folder.path().join("config.yaml");
        fs::write(&file, serde_yaml::to_string(&config).expect("it was YAML")).expect("ours");

        let mut command = match self.descriptors {
            None if !self.ipv6 => super::without_ipv6(&binary()),
            None => Command::new(binary()),
            Some(limit) => {
                let mut command = Command::new(super::program("prlimit", "util-linux"));
                command.arg(format!("--nofile={limit}:{limit}")).arg(binary());
                command
            }
        };
        if let Some(etc) = &self.etc {
            let inner = command;
            command = super::with_etc(etc, Path::new(inner.get_program()));
            command.args(inner.get_args());
        }
        if !self.root {
            for file in [folder.path(), &file, &certificates.cert, &certificates.key] {
                chown(file, Some(USER), Some(USER))
                    .expect("this test changes user: run it as root");
            }
            let inner = command;
            command = Command::new(super::program("setpriv", "util-linux"));
            command.args([&format!("--reuid={USER}"), &format!("--regid={USER}")]);
            command.args(["--clear-groups", "--no-new-privs", "--bounding-set=-all"]);
            command.arg(inner.get_program()).args(inner.get_args());
        }
        command.arg("run").arg("--config").arg(&file).current_dir(folder.path());
        command.envs(&self.environment);
        let stdout = self.stdout.unwrap_or_else(Stdio::piped);
        let mut process = Process::start_with(&mut command, stdout);
        let [imaps, metrics] = self.fixed.unwrap_or_else(|| {
            ["imaps", "metrics"].map(|service| {
                process.wait_for(&format!("\"listening\" for {service}"), |lines| {
                    lines.iter().filter_map(|line| LogLine::parse(line)).find_map(|line| {
                        (line.message().starts_with("listening")
                            && line.field("service") == service)
                            .then(|| line.field("address").parse().expect("an address"))
                    })
                })
            })
        });
        if self.fixed.is_some() {
            within(PATIENCE, "the proxy listens", || {
                assert!(process.exited().is_none(), "the proxy ended:\n{}", process.text());
                TcpStream::connect(metrics).is_ok()
            });
        }
        let proxy = Proxy {
            process: Mutex::new(process),
            backend: self.backend,
            imaps,
            metrics,
            certificates,
            folder,
            stopped: false,
        };
        if self.ready {
            within(PATIENCE, "the proxy is ready", || {
                assert!(proxy.process().exited().is_none(), "the proxy ended:\n{}", proxy.text());
                proxy.get("/readyz").0 == 200
            });
        }
        proxy
    }
}

/// A running proxy. When a test fails its log is printed.
pub struct Proxy<'a> {
    process: Mutex<Process>,
    backend: &'a dyn Backend,
    pub imaps: SocketAddr,
    pub metrics: SocketAddr,
    pub certificates: Certificates,
    pub folder: tempfile::TempDir,
    stopped: bool,
}

impl<'a> Proxy<'a> {
    /// Started with `yaml` laid over the harness's configuration, and ready to serve.
    #[track_caller]
    pub fn start(backend: &'a dyn Backend, yaml: &str) -> Self {
        Self::starting(backend).config(yaml).start()
    }

    pub fn starting(backend: &'a dyn Backend) -> Starting<'a> {
        Starting {
            backend,
            config: Yaml::Null,
            certificates: true,
            ready: true,
            fixed: None,
            descriptors: None,
            ipv6: true,
            root: true,
            etc: None,
            stdout: None,
            environment: BTreeMap::new(),
        }
    }

    pub fn pid(&self) -> u32 {
        self.process().pid()
    }

    /// A TLS client that offers no ALPN, as most mail clients do.
    #[track_caller]
    pub fn connect(&self) -> Client {
        self.connect_with(&TlsOptions::default()).expect("the handshake succeeds")
    }

    pub fn connect_with(&self, options: &TlsOptions) -> io::Result<Client> {
        let config = options.config(&self.certificates.roots);
        Client::tls(self.imaps, &config, options.name)
    }

    /// A TLS client whose address is `source`, one of the loopback's.
    #[track_caller]
    pub fn connect_from(&self, source: Ipv4Addr) -> Client {
        let config = TlsOptions::default().config(&self.certificates.roots);
        Client::tls_from(source.into(), self.imaps, &config).expect("the handshake succeeds")
    }

    /// A TLS client that is logged in as alice.
    #[track_caller]
    pub fn logged_in(&self) -> Client {
        let mut client = self.connect();
        client.log_in("alice", "secret");
        client
    }

    /// A TCP connection to the TLS port on which nothing was said yet.
    #[track_caller]
    pub fn plain(&self) -> Client {
        Client::plain(self.imaps).expect("the proxy listens")
    }

    /// Status and body of an HTTP GET at the metrics listener.
    #[track_caller]
    pub fn get(&self, path: &str) -> (u16, String) {
        self.try_get(path).unwrap_or_else(|e| panic!("GET {path}: {e}\n{}", self.text()))
    }

    pub fn try_get(&self, path: &str) -> io::Result<(u16, String)> {
        let mut tcp = TcpStream::connect(self.metrics)?;
        tcp.set_read_timeout(Some(PATIENCE))?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: proxy\r\nConnection: close\r\n\r\n");
        tcp.write_all(request.as_bytes())?;
        let mut answer = String::new();
        tcp.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        Ok((status.ok_or(io::ErrorKind::InvalidData)?, body.to_owned()))
    }

    /// All series as they stand, name and labels as printed.
    #[track_caller]
    pub fn series(&self) -> BTreeMap<String, f64> {
        let (status, body) = self.get("/metrics");
        assert_eq!(status, 200, "{body}");
        body.lines()
            .filter(|line| !line.starts_with('#') && !line.is_empty())
            .map(|line| {
                let (name, value) = line.rsplit_once(' ').expect("name, space, value");
                (name.to_owned(), value.parse().expect("a number"))
            })
            .collect()
    }

    /// The value of exactly this series, which must be exported.
    #[track_caller]
    pub fn metric(&self, series: &str) -> f64 {
        let all = self.series();
        let family = series.split('{').next().expect("split gives at least one");
        *all.get(series).unwrap_or_else(|| {
            let like: Vec<_> = all.keys().filter(|name| name.starts_with(family)).collect();
            panic!("no series {series}; there are {like:#?}")
        })
    }

    /// The sum of all series of `family` whose labels hold every one of `labels`.
    #[track_caller]
    pub fn sum(&self, family: &str, labels: &[&str]) -> f64 {
        let whole = |name: &str| name.split('{').next() == Some(family);
        let all = self.series();
        let chosen = all
            .iter()
            .filter(|(name, _)| whole(name) && labels.iter().all(|label| name.contains(label)));
        chosen.map(|(_, value)| value).sum()
    }

    #[track_caller]
    pub fn wait_for_metric(&self, series: &str, value: f64) {
        let mut last = f64::NAN;
        for _ in 0..2_000 {
            last = self.metric(series);
            if (last - value).abs() < 0.5 {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
        panic!("{series} is {last}, not {value}\n{}", self.text());
    }

    /// Waits until exactly `count` sessions have ended for `reason`, in the metric and in the log.
    #[track_caller]
    pub fn wait_for_ends(&self, reason: &str, count: usize) {
        #[expect(clippy::cast_precision_loss, reason = "a handful of sessions")]
        let value = count as f64;
        self.wait_for_metric(
            &format!("imaps_proxy_sessions_closed_total{{reason=\"{reason}\"}}"),
            value,
        );
        within(PATIENCE, &format!("{count} session lines with {reason}"), || {
            self.sessions().iter().filter(|line| line.field("reason") == reason).count() == count
        });
    }

    /// Also after a panic with the lock in hand: the log is wanted then.
    fn process(&self) -> MutexGuard<'_, Process> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every line of the log that is JSON.
    pub fn log(&self) -> Vec<LogLine> {
        self.process().lines().iter().filter_map(|line| LogLine::parse(line)).collect()
    }

    /// The log lines of sessions that have ended.
    pub fn sessions(&self) -> Vec<LogLine> {
        self.log().into_iter().filter(|line| line.message() == "session").collect()
    }

    /// The log lines of login attempts.
    pub fn logins(&self) -> Vec<LogLine> {
        self.log().into_iter().filter(|line| line.message() == "login").collect()
    }

    /// The same, once there are `count`: the log is written at leisure.
    #[track_caller]
    pub fn wait_for_logins(&self, count: usize) -> Vec<LogLine> {
        within(PATIENCE, &format!("{count} login lines"), || self.logins().len() >= count);
        let logins = self.logins();
        assert_eq!(logins.len(), count, "{logins:#?}");
        logins
    }

    /// The log as it is.
    pub fn text(&self) -> String {
        self.process().text()
    }

    pub fn fd_count(&self) -> usize {
        let seen = self.process().fd_count();
        // Others can't look at a process that is not dumpable, which tells it all the same.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a handful")]
        seen.unwrap_or_else(|| self.metric("process_open_fds") as usize)
    }

    /// A limit of the process, soft and hard.
    pub fn limit(&self, name: &str) -> Option<(String, String)> {
        self.process().limit(name)
    }

    pub fn rss(&self) -> u64 {
        self.process().rss()
    }

    pub fn cpu_time(&self) -> Duration {
        self.process().cpu_time()
    }

    /// From now on at most so many descriptors may be open.
    #[track_caller]
    pub fn limit_descriptors(&self, limit: usize) {
        let mut command = Command::new(super::program("prlimit", "util-linux"));
        let pid = self.process().pid();
        command.arg(format!("--pid={pid}")).arg(format!("--nofile={limit}:{limit}"));
        super::run(&mut command, b"", PATIENCE).succeeded();
    }

    /// Lays `yaml` over the configuration that it was started with or that was written last.
    pub fn rewrite(&self, yaml: &str) {
        let file = self.config_file();
        let text = fs::read_to_string(&file).expect("the harness has written it");
        let mut config: Yaml = serde_yaml::from_str(&text).expect("it is YAML");
        merge(&mut config, serde_yaml::from_str(yaml).expect("the test's YAML is YAML"));
        fs::write(&file, serde_yaml::to_string(&config).expect("it was YAML")).expect("ours");
    }

    pub fn config_file(&self) -> PathBuf {
        self.folder.path().join("config.yaml")
    }

    /// SIGHUP for a configuration that never ends: a pipe, whose other end is returned. The proxy
    /// has begun to read it.
    pub fn reload_without_end(&self) -> fs::File {
        let file = self.config_file();
        fs::remove_file(&file).unwrap();
        let mut mkfifo = Command::new(program("mkfifo", "coreutils"));
        run(mkfifo.arg(&file), b"", PATIENCE).succeeded();
        self.signal(Signal::HUP);
        // Opens as soon as the proxy reads it.
        fs::File::options().write(true).open(&file).unwrap()
    }

    /// SIGHUP with `yaml` laid over the configuration; the lines of the log that say what has become of it.
    #[track_caller]
    pub fn reload(&self, yaml: &str) -> Vec<String> {
        self.rewrite(yaml);
        self.hang_up()
    }

    /// SIGHUP; as [`Self::reload`].
    #[track_caller]
    pub fn hang_up(&self) -> Vec<String> {
        let verdicts = || -> Vec<String> {
            let lines = self.process().lines();
            lines.into_iter().filter(|line| line.contains("configuration re")).collect()
        };
        let before = verdicts().len();
        self.signal(Signal::HUP);
        within(PATIENCE, "the log says what has become of SIGHUP", || verdicts().len() > before);
        verdicts().split_off(before)
    }

    pub fn running(&self) -> bool {
        self.process().exited().is_none()
    }

    /// SIGTERM; does not wait.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    pub fn signal(&self, signal: Signal) {
        self.process().signal(signal);
    }

    #[track_caller]
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        self.process().wait(limit)
    }

    /// Stops it in the orderly way: exit code 0 in time, no panic and no ERROR in the log, and no
    /// connection left in the backend.
    #[track_caller]
    pub fn stop(mut self) {
        self.terminate();
        let status = self.wait(PATIENCE);
        self.stopped = true;
        assert_eq!(status.code(), Some(0), "{}", self.text());
        let text = self.text();
        assert!(!text.contains("panicked"), "{text}");
        let error = self.log().into_iter().find(|line| line.level() == "ERROR");
        assert!(error.is_none(), "{error:?}");
        within(PATIENCE, "no connection is left in the backend", || {
            self.backend.connections() == 0
        });
    }
}

impl Drop for Proxy<'_> {
    fn drop(&mut self) {
        if thread::panicking() && !self.stopped {
            // The log is written at leisure: its end says the rest.
            self.terminate();
            let start = Instant::now();
            while self.running() && start.elapsed() < Duration::from_secs(4) {
                thread::sleep(Duration::from_millis(5));
            }
            eprintln!("--- the proxy's log:\n{}\n---", self.text());
        }
    }
}

/// One JSON line of the log.
#[derive(Clone, Debug)]
pub struct LogLine(Json);

impl LogLine {
    pub fn parse(line: &str) -> Option<Self> {
        serde_json::from_str(line).ok().filter(Json::is_object).map(Self)
    }

    pub fn level(&self) -> String {
        self.field("level")
    }

    pub fn message(&self) -> String {
        self.field("message")
    }

    /// The field as text, numbers as they are written; empty when there is none.
    pub fn field(&self, name: &str) -> String {
        match &self.0[name] {
            Json::Null => String::new(),
            Json::String(text) => text.clone(),
            other => other.to_string(),
        }
    }

    pub fn has(&self, name: &str) -> bool {
        !self.0[name].is_null()
    }

    #[track_caller]
    pub fn number(&self, name: &str) -> f64 {
        self.field(name).parse().unwrap_or_else(|_| panic!("no number in {name}: {self:?}"))
    }
}

/// The binary under test.
pub fn binary() -> PathBuf {
    env::var_os("IMAPS_PROXY_BINARY")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_imaps-proxy")), PathBuf::from)
}

fn merge(base: &mut Yaml, over: Yaml) {
    match (base, over) {
        (Yaml::Mapping(base), Yaml::Mapping(over)) => {
            for (key, value) in over {
                match base.get_mut(&key) {
                    Some(slot) => merge(slot, value),
                    None => {
                        base.insert(key, value);
                    }
                }
            }
        }
        (_, Yaml::Null) => {}
        (base, over) => *base = over,
    }
}
