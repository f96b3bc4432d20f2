//! Pebble, the CA that Let's Encrypt tests ACME clients with. Its faults stay switched on: one request in twenty has
//! its nonce refused, half of the authorizations are reused.

use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use imaps_proxy::config::settings::{Acme, Challenge};
use imaps_proxy::tls::acme::Storage;
use tempfile::TempDir;

use super::certificates::Certificates;
use super::process::Process;
use super::programs::program;
use super::proxy::free_port;
use super::wait::{PATIENCE, within};

/// Of the account `kid-1`, base64url.
pub const HMAC_KEY: &str = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";

/// A CA of its own for one test, and the DNS that it asks: every name leads to 127.0.0.1.
pub struct Pebble {
    pub folder: TempDir,
    pub certificates: Certificates,
    /// Where it serves ACME.
    pub port: u16,
    /// Where it asks for HTTP-01, and for TLS-ALPN-01.
    pub http: u16,
    pub tls: u16,
    pub dns: Process,
    /// Where that DNS takes records.
    pub control: u16,
    pub running: Option<Process>,
    /// Whether [`Pebble::section`] has one.
    pub external_account: bool,
}

impl Pebble {
    pub fn start() -> Self {
        let mut pebble = Self::stopped(false);
        pebble.run();
        pebble
    }

    /// `external_account`: whether it makes no account without one.
    pub fn stopped(external_account: bool) -> Self {
        let (dns, control) = (free_port(), free_port());
        let mut command = Command::new(program("pebble-challtestsrv", "pebble"));
        command.args(["-http01", "", "-https01", "", "-tlsalpn01", "", "-defaultIPv6", ""]);
        command.args(["-dns01", &format!("127.0.0.1:{dns}")]);
        command.args(["-management", &format!("127.0.0.1:{control}")]);
        let process = Process::start(command);
        within(PATIENCE, "the DNS of the CA listens", || connects(control));
        let folder = tempfile::tempdir().unwrap();
        let (port, http, tls) = (free_port(), free_port(), free_port());
        let certificates = Certificates::make(folder.path());
        let config = serde_json::json!({ "pebble": {
            "listenAddress": format!("127.0.0.1:{port}"),
            "managementListenAddress": "",
            "certificate": folder.path().join("cert.pem"),
            "privateKey": folder.path().join("key.pem"),
            "httpPort": http,
            "tlsPort": tls,
            "externalAccountBindingRequired": external_account,
            "externalAccountMACKeys": { "kid-1": HMAC_KEY },
        }});
        fs::write(folder.path().join("pebble.json"), config.to_string()).unwrap();
        fs::write(folder.path().join("dns"), dns.to_string()).unwrap();
        Self {
            folder,
            certificates,
            port,
            http,
            tls,
            dns: process,
            control,
            running: None,
            external_account,
        }
    }

    pub fn run(&mut self) {
        let path = self.folder.path();
        let mut command = Command::new(program("pebble", "pebble"));
        command.arg("-config").arg(path.join("pebble.json"));
        let dns = fs::read_to_string(path.join("dns")).unwrap();
        command.args(["-strict=false", "-dnsserver", &format!("127.0.0.1:{dns}")]);
        command.env("PEBBLE_VA_SLEEPTIME", "2");
        self.running = Some(Process::start(command));
        within(PATIENCE, "the CA listens", || connects(self.port));
    }

    /// The section `tls`, with `more` lines in `acme`.
    pub fn section(&self, names: &str, storage: &Path, more: &str) -> String {
        let external = match self.external_account {
            false => String::new(),
            true => format!(
                "external_account: {{ id: kid-1, key_file: '{}' }}, ",
                self.folder.path().join("hmac").display()
            ),
        };
        format!(
            "tls: {{ acme: {{ directory: 'https://localhost:{}/dir', ca: '{}', terms_agreed: true, \
             contact: ['mailto:postmaster@example.org'], names: [{names}], storage: '{}', \
             http_address: '127.0.0.1:{}', {external}{more} }} }}",
            self.port,
            self.folder.path().join("ca.pem").display(),
            storage.display(),
            self.http,
        )
    }

    /// Where the proxy keeps what comes from this CA.
    pub fn storage_of(&self, storage: &Path) -> PathBuf {
        let acme = Acme {
            directory: format!("https://localhost:{}/dir", self.port),
            contact: Vec::new(),
            names: Vec::new(),
            challenge: Challenge::Http01 { address: (Ipv4Addr::LOCALHOST, self.http).into() },
            storage: storage.to_owned(),
            ca: None,
            profile: None,
            external_account: None,
        };
        Storage::new(&acme).certificate().parent().unwrap().to_owned()
    }
}

/// Whether somebody listens there.
pub fn connects(port: u16) -> bool {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
}
