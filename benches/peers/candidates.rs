//! Who is measured: how each is configured, started and stopped.
//!
//! Every one gets the same certificate, TLS 1.3 only where it has such a setting, tickets or its session cache on,
//! two workers or threads, no log on a disk, TCP_NODELAY, and enough room for 9,000 sessions; beyond that what its own
//! documentation advises. imaps-proxy runs with its defaults, metrics and session log on.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::measure;

/// All of them, ours first; the order of the columns.
#[derive(
    Clone, Copy, Debug, Eq, PartialEq, strum::EnumString, strum::IntoStaticStr, strum::VariantArray,
)]
#[strum(serialize_all = "kebab-case")]
pub enum Candidate {
    ImapsProxy,
    Haproxy,
    NginxStream,
    NginxMail,
    Hitch,
    Stunnel,
    Naive,
    Plain,
}

impl Candidate {
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// The Debian package and the program in it.
    fn needs(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Haproxy => Some(("haproxy", "/usr/sbin/haproxy")),
            Self::NginxStream => {
                Some(("nginx libnginx-mod-stream", "/usr/lib/nginx/modules/ngx_stream_module.so"))
            }
            Self::NginxMail => {
                Some(("nginx libnginx-mod-mail", "/usr/lib/nginx/modules/ngx_mail_module.so"))
            }
            Self::Hitch => Some(("hitch", "/usr/sbin/hitch")),
            Self::Stunnel => Some(("stunnel4", "/usr/bin/stunnel4")),
            Self::ImapsProxy | Self::Naive | Self::Plain => None,
        }
    }

    /// The package that has to be installed for it, if any.
    pub fn missing(self) -> Option<&'static str> {
        self.needs().filter(|(_, file)| !Path::new(file).exists()).map(|(package, _)| package)
    }

    /// OpenSSL before 3.5 does not know X25519MLKEM768, and nothing else is in Debian's packages.
    pub fn speaks_hybrid(self) -> bool {
        matches!(self, Self::ImapsProxy | Self::Naive)
    }

    pub fn speaks_tls(self) -> bool {
        self != Self::Plain
    }
}

/// Where everything is that a candidate needs.
pub struct Place {
    pub dir: PathBuf,
    /// The proxy's binary.
    pub proxy: PathBuf,
    pub backend: u16,
    pub auth: u16,
}

impl Place {
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// What a candidate says.
    pub fn log(&self, candidate: Candidate) -> PathBuf {
        self.dir.join("logs").join(format!("{}.log", candidate.name()))
    }

    /// A CA, and a certificate of its making for `localhost`, as each candidate wants to read them.
    pub fn make_certificates(&self) -> Result<(), Box<dyn std::error::Error>> {
        use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
        let mut ca = CertificateParams::new(Vec::<String>::new())?;
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let leaf = CertificateParams::new(vec!["localhost".to_owned()])?.signed_by(&key, &ca)?;
        fs::write(self.file("ca.pem"), ca.pem())?;
        fs::write(self.file("cert.pem"), leaf.pem())?;
        fs::write(self.file("key.pem"), key.serialize_pem())?;
        fs::write(self.file("both.pem"), leaf.pem() + &key.serialize_pem())?;
        for file in ["key.pem", "both.pem"] {
            use std::os::unix::fs::PermissionsExt as _;
            fs::set_permissions(self.file(file), fs::Permissions::from_mode(0o600))?;
        }
        Ok(())
    }
}

/// A candidate that runs; dropped, it is stopped.
pub struct Running {
    pub candidate: Candidate,
    pub port: u16,
    child: Child,
}

impl Running {
    /// Starts it and returns at once: whoever connects waits for it.
    pub fn start(candidate: Candidate, place: &Place) -> io::Result<Self> {
        Self::start_by(|program| program, candidate, place)
    }

    /// As [`Self::start`], by the command that `wrap` makes of the candidate's own.
    pub fn start_by(
        wrap: impl FnOnce(Command) -> Command,
        candidate: Candidate,
        place: &Place,
    ) -> io::Result<Self> {
        let port = free_port()?;
        let mut command = wrap(command(candidate, port, place)?);
        let log = fs::File::create(place.log(candidate))?;
        let child = command.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log).spawn()?;
        Ok(Self { candidate, port, child })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to end, and kills it after `limit`.
    pub fn stop(&mut self, limit: Duration) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        let all = measure::tree(self.pid());
        drop(self.child.stdin.take()); // ours end by this
        signal(self.pid(), rustix::process::Signal::TERM);
        let end = Instant::now() + limit;
        while Instant::now() < end && matches!(self.child.try_wait(), Ok(None)) {
            sleep(Duration::from_millis(10));
        }
        if matches!(self.child.try_wait(), Ok(None)) {
            all.iter().for_each(|pid| signal(*pid, rustix::process::Signal::KILL));
        }
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop(Duration::from_secs(2));
    }
}

fn signal(pid: u32, signal: rustix::process::Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// This binary, in another role.
fn own(role: &str) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(role);
    Ok(command)
}

fn command(candidate: Candidate, port: u16, place: &Place) -> io::Result<Command> {
    let dir = place.dir.display();
    let backend = place.backend;
    let config = place.file(&format!("{}.conf", candidate.name()));
    let write = |text: String| fs::write(&config, text);
    let nginx = |module: &str, section: String| -> io::Result<Command> {
        let prefix = place.file(candidate.name());
        fs::create_dir_all(&prefix)?;
        write(format!(
            "load_module /usr/lib/nginx/modules/{module}.so;\n\
             user root;\ndaemon off;\nworker_processes 2;\nworker_rlimit_nofile 20000;\n\
             pid {0}/pid;\nerror_log stderr crit;\nevents {{ worker_connections 19500; }}\n{section}",
            prefix.display()
        ))?;
        let mut command = Command::new("/usr/sbin/nginx");
        command.arg("-p").arg(prefix).arg("-e").arg("stderr").arg("-c").arg(&config);
        Ok(command)
    };
    let nginx_tls = format!(
        "ssl_certificate {dir}/cert.pem;\nssl_certificate_key {dir}/key.pem;\nssl_protocols TLSv1.3;\n\
         ssl_session_cache shared:tls:10m;\nssl_session_timeout 1h;\nssl_session_tickets on;\n"
    );
    Ok(match candidate {
        Candidate::ImapsProxy => {
            let metrics = free_port()?;
            write(format!(
                "listen:\n  - address: \"127.0.0.1:{port}\"\n\
                 tls:\n  certificates:\n    - cert: {dir}/cert.pem\n      key: {dir}/key.pem\n\
                 backend:\n  servers:\n    - address: 127.0.0.1:{backend}\n\
                 metrics:\n  address: \"127.0.0.1:{metrics}\"\n"
            ))?;
            let mut command = Command::new(&place.proxy);
            command.arg("run").arg("--config").arg(&config).env("TOKIO_WORKER_THREADS", "2");
            command
        }
        Candidate::Haproxy => {
            write(format!(
                "global\n  nbthread 2\n  maxconn 9500\n  ssl-default-bind-options ssl-min-ver TLSv1.3\n\
                 defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 35m\n  timeout server 35m\n\
                 frontend imaps\n  bind 127.0.0.1:{port} ssl crt {dir}/both.pem curves X25519:P-256\n  \
                 maxconn 9500\n  default_backend imap\n\
                 backend imap\n  server one 127.0.0.1:{backend}\n"
            ))?;
            let mut command = Command::new("/usr/sbin/haproxy");
            command.arg("-db").arg("-q").arg("-f").arg(&config);
            command
        }
        Candidate::NginxStream => nginx(
            "ngx_stream_module",
            format!(
                "stream {{\n{nginx_tls}server {{\nlisten 127.0.0.1:{port} ssl backlog=4096;\n\
                 proxy_pass 127.0.0.1:{backend};\nproxy_timeout 35m;\n}}\n}}\n"
            ),
        )?,
        Candidate::NginxMail => nginx(
            "ngx_mail_module",
            format!(
                "mail {{\n{nginx_tls}server_name localhost;\nauth_http 127.0.0.1:{}/;\n\
                 imap_capabilities IMAP4rev1 IDLE LITERAL+;\nimap_auth plain;\nserver {{\n\
                 listen 127.0.0.1:{port} ssl backlog=4096;\nprotocol imap;\ntimeout 35m;\n}}\n}}\n",
                place.auth
            ),
        )?,
        Candidate::Hitch => {
            write(format!(
                "frontend = \"[127.0.0.1]:{port}\"\nbackend = \"[127.0.0.1]:{backend}\"\n\
                 pem-file = \"{dir}/both.pem\"\nworkers = 2\ntls-protos = TLSv1.3\ndaemon = off\n\
                 backlog = 4096\nuser = \"nobody\"\ngroup = \"nogroup\"\nquiet = on\nsyslog = off\nocsp-dir = \"\"\n"
            ))?;
            let mut command = Command::new("/usr/sbin/hitch");
            command.arg(format!("--config={}", config.display()));
            command
        }
        Candidate::Stunnel => {
            write(format!(
                "foreground = yes\npid =\nsyslog = no\ndebug = err\n[imaps]\naccept = 127.0.0.1:{port}\n\
                 connect = 127.0.0.1:{backend}\ncert = {dir}/both.pem\nsslVersionMin = TLSv1.3\n\
                 options = -NO_TICKET\nsessionCacheSize = 20000\nTIMEOUTidle = 2100\n\
                 socket = l:TCP_NODELAY=1\nsocket = r:TCP_NODELAY=1\n"
            ))?;
            let mut command = Command::new("/usr/bin/stunnel4");
            command.arg(&config);
            command
        }
        Candidate::Naive => {
            let mut command = own("naive-relay")?;
            command.args([port.to_string(), backend.to_string()]);
            command.arg(place.file("cert.pem")).arg(place.file("key.pem"));
            command
        }
        Candidate::Plain => {
            let mut command = own("plain-relay")?;
            command.args([port.to_string(), backend.to_string()]);
            command
        }
    })
}

/// One of our own processes that is spoken to by lines.
pub struct Talker {
    child: Child,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
}

impl Talker {
    pub fn start(role: &str, arguments: &[String]) -> io::Result<Self> {
        let mut child =
            own(role)?.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let to = child.stdin.take();
        let from = child.stdout.take().map(BufReader::new).expect("it is piped");
        Ok(Self { child, to, from })
    }

    pub fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        match self.from.read_line(&mut line)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    }

    /// Gives an order and waits until it is done.
    pub fn order(&mut self, order: &str) -> io::Result<usize> {
        if let Some(to) = &mut self.to {
            to.write_all(format!("{order}\n").as_bytes())?;
        }
        let answer = self.line()?;
        answer
            .strip_prefix("ok ")
            .and_then(|n| n.parse().ok())
            .ok_or_else(|| io::Error::other(format!("{order}: {answer}")))
    }
}

impl Drop for Talker {
    fn drop(&mut self) {
        self.to = None;
        let _ = self.child.wait();
    }
}
