//! The TLS settings around the certificates, as `rustls::ServerConfig`.
//!
//! In: [`settings::Tls`], the files of ticket keys, client CAs and revocation lists that it names, and the certificates
//! ([`super::names`]). Out: a configuration for new handshakes, and another one when clients are to be judged anew.
//! Ticket keys and client CAs are read again each on its own, so a mistake in one keeps the old of that one only.
//! **Invariant:** no 0-RTT, no key log.
//! Not here: when files are looked at (`reload`).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::{ServerConfig, SupportedCipherSuite};

use super::Error;
use super::client_auth::{self, ClientAuth};
use super::masked;
use super::names::Names;
use super::tickets::{self, Tickets};
use crate::config::settings;

/// Tickets of a TLS 1.3 handshake, each good for one connection (RFC 8446 §C.4: a ticket that is used twice ties the two
/// together for whoever listens). Every connection brings new ones, so one would keep a mail client's five connections
/// in tickets; the second is for the connection that a phone loses before its new ticket arrives, and for one more folder. It
/// costs some 200 bytes and a few microseconds a session, and OpenSSL sends as many.
const TICKETS: usize = 2;
/// What a client gets that says how many it wants (RFC 9149).
const MAX_TICKETS: usize = 4;

/// What is read beside the certificates: the label and log field `what`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, strum::IntoStaticStr, strum::VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Part {
    Tickets,
    ClientAuth,
}

/// Files that have changed and were read again.
pub struct Reread {
    pub part: Part,
    pub result: Result<Fresh, Error>,
}

/// What is new.
#[derive(Default)]
pub struct Fresh {
    /// For new handshakes; `None`: the one in use has it already.
    pub config: Option<Arc<Configs>>,
    /// What the files hold.
    pub counted: Vec<String>,
    /// To be logged as warnings: keys that others may read, who will be refused, what expires.
    pub notice: Vec<String>,
    /// To be logged as errors.
    pub problems: Vec<String>,
    /// When the first of the clients' revocation lists is due to be replaced, unix seconds.
    pub list_next_update: Option<i64>,
}

/// What a handshake goes by.
pub struct Configs {
    pub usual: Arc<ServerConfig>,
    /// For a hello whose server name is masked.
    pub masked: Arc<ServerConfig>,
}

/// What new handshakes go by.
pub struct Serving {
    pub config: ArcSwap<Configs>,
    /// Of the certificates that are served.
    pub names: Arc<Names>,
}

/// What there is to say of the files by which clients are judged.
fn of_clients(auth: &mut ClientAuth, now: SystemTime) -> Fresh {
    let (mut notice, mut problems) = auth.aged(now);
    let client_auth::Rules { notice: more, problems: worse, next_update, counted, .. } =
        auth.rules.clone();
    notice.splice(0..0, more);
    problems.splice(0..0, worse.into_iter().map(|why| format!("{why}; it does not count")));
    Fresh { config: None, counted, notice, problems, list_next_update: next_update }
}

/// What stands around the certificates, from files that are read again.
pub struct Configured {
    settings: settings::Tls,
    provider: Arc<CryptoProvider>,
    /// The same for hellos that are masked.
    masked: Arc<CryptoProvider>,
    /// Kept, so that sessions resume in the next configuration.
    tickets: Option<Tickets>,
    client_auth: Option<ClientAuth>,
    names: Arc<Names>,
}

impl Configured {
    /// Reads the files for the first time. Where `before` has the same source of ticket keys they are taken over, so that
    /// sessions resume.
    ///
    /// # Errors
    /// A file that is not what it should be, or no ticket key could be made.
    pub fn new(
        settings: &settings::Tls,
        names: Arc<Names>,
        before: Option<&Self>,
        now: SystemTime,
    ) -> Result<(Self, Arc<Serving>, Fresh), Error> {
        let provider = Arc::new(provider(settings));
        let tickets = match before {
            Some(before) if before.settings.tickets == settings.tickets => before.tickets.clone(),
            _ => Tickets::new(&settings.tickets, now)?,
        };
        let mut client_auth = match &settings.client_auth {
            Some(wanted) => Some(ClientAuth::new(wanted.clone(), &provider)?),
            None => None,
        };
        let mut fresh = client_auth.as_mut().map(|auth| of_clients(auth, now)).unwrap_or_default();
        fresh.notice.extend(tickets.iter().flat_map(Tickets::notice));
        let configured = Self {
            settings: settings.clone(),
            masked: Arc::new(masked::provider(&provider)),
            provider,
            tickets,
            client_auth,
            names: Arc::clone(&names),
        };
        let config = ArcSwap::new(configured.config()?);
        Ok((configured, Arc::new(Serving { config, names }), fresh))
    }

    /// The files to watch.
    pub fn watched(&self) -> Vec<PathBuf> {
        let mut paths = match &self.settings.tickets {
            settings::Tickets::Files(files) => files.clone(),
            settings::Tickets::Off | settings::Tickets::Memory => Vec::new(),
        };
        if let Some(wanted) = &self.settings.client_auth {
            paths.push(wanted.ca.clone());
            paths.extend(wanted.crl.clone());
        }
        paths
    }

    /// Reads what has changed; rolls the ticket keys in memory. What can't be read leaves the old in place and is read
    /// again the next time. Costs one `stat` a file.
    pub fn reread(&mut self, now: SystemTime) -> Vec<Reread> {
        let mut all = Vec::new();
        if let Some(tickets) = self.tickets.as_mut().filter(|tickets| tickets.due(now)) {
            let result = match tickets.load(now) {
                Ok(tickets::Change::Rotated) => None, // as a clock ticks
                Ok(tickets::Change::Read { notice }) => {
                    Some(Ok(Fresh { notice, ..Fresh::default() }))
                }
                Err(error) => Some(Err(error.into())),
            };
            all.extend(result.map(|result| Reread { part: Part::Tickets, result }));
        }
        if self.client_auth.as_ref().is_some_and(ClientAuth::due) {
            all.push(Reread { part: Part::ClientAuth, result: self.reread_client_auth(now) });
        }
        all
    }

    fn reread_client_auth(&mut self, now: SystemTime) -> Result<Fresh, Error> {
        let Some(auth) = &mut self.client_auth else { return Ok(Fresh::default()) };
        auth.load(&self.provider)?;
        let fresh = of_clients(auth, now);
        Ok(Fresh { config: Some(self.config()?), ..fresh })
    }

    /// What time has brought of the files that are in use, warnings and errors.
    pub fn aged(&mut self, now: SystemTime) -> (Vec<String>, Vec<String>) {
        self.client_auth.as_mut().map(|auth| auth.aged(now)).unwrap_or_default()
    }

    fn config(&self) -> Result<Arc<Configs>, Error> {
        let verifier = self.client_auth.as_ref().map(|auth| Arc::clone(&auth.rules.verifier));
        let masked = verifier.clone().map(|usual| Arc::new(masked::Verifier(usual)) as _);
        Ok(Arc::new(Configs {
            usual: self.server_config(&self.provider, verifier)?,
            masked: self.server_config(&self.masked, masked)?,
        }))
    }

    fn server_config(
        &self,
        provider: &Arc<CryptoProvider>,
        verifier: Option<Arc<dyn ClientCertVerifier>>,
    ) -> Result<Arc<ServerConfig>, Error> {
        let verifier = verifier.unwrap_or_else(WebPkiClientVerifier::no_client_auth);
        let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
            .with_protocol_versions(self.settings.min_version.versions())?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::clone(&self.names) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"imap".to_vec()];
        // Ours is the better order, and the difference between two AEAD suites is not the client's to decide.
        config.ignore_client_order = true;
        // Tickets hold the state, so that no session of ours has to be remembered.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        match &self.tickets {
            Some(tickets) => {
                let rules = self.client_auth.as_ref().map(|auth| &auth.rules);
                let policy = rules.map_or_else(Default::default, |rules| rules.policy);
                config.ticketer = tickets.sealer(policy);
                config.send_tls13_tickets = TICKETS;
                config.max_tls13_tickets = MAX_TICKETS;
            }
            None => config.send_tls13_tickets = 0, // and no ticketer makes any for TLS 1.2
        }
        // Behind the handshake `proto::record` takes over.
        config.enable_secret_extraction = true;
        debug_assert_eq!(config.max_early_data_size, 0, "0-RTT can be replayed (RFC 9325 §3.10)");
        Ok(Arc::new(config))
    }
}

/// The cryptography as configured: suites of the versions that are spoken.
pub fn provider(settings: &settings::Tls) -> CryptoProvider {
    let versions = settings.min_version.versions();
    let is_spoken = |suite: &SupportedCipherSuite| {
        versions.iter().any(|one| one.version == suite.version().version)
    };
    let spoken = settings.cipher_suites.iter().copied().filter(is_spoken).collect();
    CryptoProvider {
        cipher_suites: spoken,
        kx_groups: settings.groups.clone(),
        ..aws_lc_rs::default_provider()
    }
}
