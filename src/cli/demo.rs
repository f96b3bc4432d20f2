//! `imaps-proxy demo`: the proxy in front of an embedded legacy server, with nothing else installed.
//!
//! In: the options. Out: a running proxy, and on standard output what was started and what to try. The
//! commands that it prints work as pasted; the certificate's CA is kept between runs, so that a mail
//! client that trusts it goes on doing so.
//! Not here: the embedded server (`legacy_imap`), the proxy (`crate::server`).

use std::fs::DirBuilder;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use legacy_imap::Server;
use tokio_util::sync::CancellationToken;

use super::Error;
use crate::config::settings::Settings;
use crate::tls::{certificate, facts};
use crate::{config, log, server};

/// Of the mailbox with the sample mail.
const USER: &str = "demo";
const PASSWORD: &str = "demo";
/// What the certificate directory calls the CA to trust.
const CA_FILE: &str = "ca.pem";

/// Try the proxy with nothing else installed
///
/// Starts an embedded legacy IMAP server with a sample mailbox and the proxy in front of it, with a
/// self-signed certificate, and prints commands to try.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Where mail clients connect, with TLS
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:9993")]
    pub listen: SocketAddr,

    /// Where Prometheus or a browser finds the metrics
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:9143")]
    pub metrics: SocketAddr,

    /// Where the self-signed certificate is kept
    ///
    /// Default: imaps-proxy/demo in $XDG_DATA_HOME or ~/.local/share, so that the next demo has the same
    /// certificate; where that cannot be written, a new temporary directory.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// Runs until SIGINT, SIGTERM or SIGQUIT.
///
/// # Errors
/// [`Error::Failed`]: an address is taken, or the directory cannot be used.
pub fn run(args: &Args) -> Result<(), Error> {
    let dir = match &args.dir {
        Some(dir) => prepare(dir).map(|()| dir.clone()),
        None => default_dir(),
    };
    let dir = dir.map_err(|error| failed(format!("no directory for the certificate: {error}")))?;
    // Absolute, because the commands are pasted elsewhere.
    let dir = std::path::absolute(&dir).map_err(|error| failed(error.to_string()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| failed(format!("can't start: {error}")))?;
    let result = runtime.block_on(serve(args, &dir));
    // After a second signal sessions may be left; nothing waits for them.
    runtime.shutdown_background();
    result
}

fn failed(message: String) -> Error {
    Error::Failed(message.into())
}

async fn serve(args: &Args, dir: &Path) -> Result<(), Error> {
    let legacy = Server::bind((Ipv4Addr::LOCALHOST, 0).into(), USER, PASSWORD)
        .map_err(|error| failed(format!("can't start the embedded server: {error}")))?;
    let legacy_address = legacy.local_addr();
    let stop = CancellationToken::new();
    let legacy = tokio::spawn(legacy.serve(stop.clone()));
    let ca = dir.join(CA_FILE);
    let settings = settings(args, dir, legacy_address)?;
    let _log = log::start(&settings.log).map_err(Error::failed)?;
    let proxied = server::run(settings, None, |bound| {
        let fingerprint = ca_fingerprint(&ca);
        let imaps = bound.listeners.first().copied().unwrap_or(args.listen);
        let metrics = bound.metrics.unwrap_or(args.metrics);
        let started = Started { imaps, metrics, legacy: legacy_address, ca: &ca, fingerprint };
        // A closed standard output is no reason to stop serving.
        let _ = io::Write::write_all(&mut io::stdout(), introduction(&started).as_bytes());
    });
    let result = proxied.await;
    // The proxy has ended its sessions by now, and with them the embedded server's.
    stop.cancel();
    let _ = legacy.await;
    result.map_err(Error::failed)
}

/// SHA-256 of the CA's certificate, in the form that mail clients show.
fn ca_fingerprint(ca: &Path) -> Option<String> {
    Some(facts::fingerprint(certificate::read_chain(ca).ok()?.first()?))
}

/// The product's defaults, in front of the embedded server.
fn settings(args: &Args, dir: &Path, legacy: SocketAddr) -> Result<Settings, config::Error> {
    // Nobody's mail is at stake, and people who press Ctrl-C want their prompt back: hence the drain.
    let yaml = format!(
        "listen: [{{address: \"{}\"}}]\n\
         tls: {{self_signed: {{names: [localhost, 127.0.0.1, \"::1\"], dir: demo}}}}\n\
         backend: {{servers: [{{address: \"{legacy}\"}}]}}\n\
         limits: {{connections: 200}}\n\
         timeouts: {{drain: 2s}}\n\
         metrics: {{address: \"{}\"}}\n",
        args.listen, args.metrics
    );
    let mut settings = config::parse(&yaml, Path::new("the demo's configuration"), &|_| None)?;
    if let Some(self_signed) = &mut settings.tls.self_signed {
        dir.clone_into(&mut self_signed.dir); // a path may hold what YAML would take for something else
        let ip = args.listen.ip();
        if !ip.is_unspecified() && !self_signed.names.contains(&ip.to_string()) {
            self_signed.names.push(ip.to_string());
        }
    }
    Ok(settings)
}

/// The user's own data directory, or a new temporary one.
fn default_dir() -> io::Result<PathBuf> {
    let absolute =
        |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let data = absolute("XDG_DATA_HOME").or_else(|| Some(absolute("HOME")?.join(".local/share")));
    if let Some(dir) = data.map(|data| data.join("imaps-proxy/demo"))
        && prepare(&dir).is_ok()
    {
        return Ok(dir);
    }
    // One of our own: who may write to the temporary directory could have put anything under a known name.
    for attempt in 0..100 {
        let dir =
            std::env::temp_dir().join(format!("imaps-proxy-demo-{}-{attempt}", std::process::id()));
        match DirBuilder::new().mode(0o700).create(&dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            created => return created.map(|()| dir),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// Makes the directory if need be, and makes sure that files can be made in it.
fn prepare(dir: &Path) -> io::Result<()> {
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", dir.display()));
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(named)?;
    let probe = dir.join(format!(".probe-{}", std::process::id()));
    std::fs::File::create(&probe).and_then(|_| std::fs::remove_file(&probe)).map_err(named)
}

/// What runs, for the introduction.
struct Started<'a> {
    imaps: SocketAddr,
    metrics: SocketAddr,
    legacy: SocketAddr,
    ca: &'a Path,
    fingerprint: Option<String>,
}

/// What a person reads on the terminal.
fn introduction(started: &Started) -> String {
    let (imaps, metrics) = (reachable(started.imaps), reachable(started.metrics));
    let ca = shell_word(&started.ca.to_string_lossy());
    let legacy = started.legacy;
    let fingerprint = started.fingerprint.as_deref().map(wrapped).unwrap_or_default();
    let (host, port) = (imaps.ip(), imaps.port());
    let login =
        format!("a LOGIN {USER} {PASSWORD}\\nb STATUS INBOX (MESSAGES UNSEEN)\\nc LOGOUT\\n");
    // Without a folder of its own, mutt begins by asking whether to make ~/Mail.
    let mutt = format!(
        "set folder=imaps://{imaps}/ ssl_ca_certificates_file=\"{}\"",
        started.ca.display()
    );
    let mutt = shell_word(&mutt);
    format!(
        "\
imaps-proxy demo: a mailbox behind a plaintext IMAP server, served over TLS

  IMAPS     {imaps}
  legacy    {legacy}  plaintext, embedded, gone when the demo ends
  metrics   http://{metrics}/metrics
  user      {USER}
  password  {PASSWORD}
  CA        {}
{fingerprint}
Try it:

  # list the INBOX, then fetch a message
  curl -sS --cacert {ca} -u {USER}:{PASSWORD} 'imaps://{imaps}/INBOX?ALL' 'imaps://{imaps}/INBOX;UID=1'

  # the dialogue itself
  printf '{login}' | openssl s_client -crlf -quiet -verify_return_error -CAfile {ca} -servername localhost -connect {imaps}

  # what Prometheus sees
  curl -sS http://{metrics}/metrics

A mail client's settings:

  Thunderbird  Manual configuration: IMAP, hostname {host}, port {port}, SSL/TLS, normal password,
               user {USER}. Trust the CA first: Settings, Privacy & Security, Certificates,
               Authorities, Import; or confirm the exception that it offers. There is no SMTP.
  mutt         mutt -e {mutt} -f imaps://{USER}:{PASSWORD}@{imaps}/INBOX

Ctrl-C stops it.

",
        started.ca.display()
    )
}

/// The address as a client on this machine would write it.
fn reachable(bound: SocketAddr) -> SocketAddr {
    let ip = match bound.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, bound.port())
}

/// A fingerprint in two lines that fit a terminal.
fn wrapped(fingerprint: &str) -> String {
    let (first, second) = fingerprint.split_at_checked(48).unwrap_or((fingerprint, ""));
    format!("  SHA-256   {first}\n            {second}\n")
}

/// Quoted for the shell where it has to be.
fn shell_word(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+,@".contains(&byte);
    if !text.is_empty() && text.bytes().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_introduction_shows_three_commands_with_reachable_addresses() {
        let started = Started {
            imaps: "0.0.0.0:9993".parse().unwrap(),
            metrics: "[::]:9143".parse().unwrap(),
            legacy: "127.0.0.1:40143".parse().unwrap(),
            ca: Path::new("/home/it's me/ca.pem"),
            fingerprint: Some(["AB"; 32].join(":")),
        };
        let text = introduction(&started);
        let commands =
            text.lines().filter(|line| line.starts_with("  curl ") || line.contains("| openssl"));
        assert_eq!(commands.count(), 3);
        assert!(text.contains("imaps://127.0.0.1:9993/INBOX;UID=1"));
        assert!(text.contains("http://[::1]:9143/metrics\n"));
        assert!(text.contains(r"--cacert '/home/it'\''s me/ca.pem'"));
        assert!(text.contains("  SHA-256   AB:AB:"));
    }

    #[test]
    fn the_certificate_is_good_for_the_address_that_is_listened_on() {
        let args = Args {
            listen: "192.0.2.7:9993".parse().unwrap(),
            metrics: "127.0.0.1:9143".parse().unwrap(),
            dir: None,
        };
        let settings = settings(&args, Path::new("/d"), "127.0.0.1:4".parse().unwrap()).unwrap();
        let names = settings.tls.self_signed.unwrap().names;
        assert_eq!(names, ["localhost", "127.0.0.1", "::1", "192.0.2.7"]);
        assert_eq!(settings.backend.servers[0].address.to_string(), "127.0.0.1:4");
    }
}
