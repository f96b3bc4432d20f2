//! One order, from the account to the certificate in its file (RFC 8555 §7).
//!
//! In: settings, and the certificate that is to be replaced. Out: a new key with its certificate in [`Storage`], or
//! why not. What was published for a challenge is withdrawn in either case.
//! Limits: [`ORDER`] for all of it, [`DECISION`] for each decision of the CA, [`WITHDRAWAL`], [`MAX_CHAIN`], and those of
//! `client` and `hook`.
//! Invariant: nothing is ordered that could not be kept, and what was issued is not ordered again because of a disk;
//! no text of the CA gets further than to the log, but for tokens of the right form.
//! Not here: when (`renewal`), and what is logged and counted (`super`).

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use instant_acme::{
    Account, AuthorizationStatus, AuthorizedIdentifier, CertificateIdentifier, ChallengeType,
    Error, ExternalAccountKey, Identifier, NewAccount, NewOrder, Order, OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::super::{certificate, chain, facts, unix};
use super::client::{Https, Wait};
use super::failure::Failure;
use super::hook::{self, Action};
use super::renewal::Window;
use super::storage::{MAX_SECRET, Storage, is_for};
use super::{Answers, blocking};
use crate::config::settings::{Acme, Challenge, ExternalAccount};

/// All of an order, slow hooks included.
const ORDER: Duration = Duration::from_mins(20);
/// The CA checks a name, or issues.
const DECISION: Duration = Duration::from_mins(3);
/// All that was published is withdrawn.
const WITHDRAWAL: Duration = Duration::from_mins(10);
/// Bytes of a chain, PEM: a quarter of what is read again.
const MAX_CHAIN: usize = 256 << 10;

const OURS: &str = "this is a mistake of the proxy; report it";
const ASK: &str = "ask the CA";

/// What orders are made of.
pub struct Orders {
    pub settings: Acme,
    pub storage: Storage,
    pub answers: Arc<Answers>,
    /// What could not be written when it came.
    pub unkept: Option<Fresh>,
}

/// A certificate that is good to serve, and its key.
pub struct Fresh {
    /// PEM.
    key: Zeroizing<String>,
    chain: Vec<CertificateDer<'static>>,
    not_after: i64,
}

/// What was published for a challenge.
enum Published {
    Token(String),
    Proof(String),
    Record { name: String, value: String },
}

impl Orders {
    pub fn new(settings: Acme, answers: Arc<Answers>) -> Self {
        let storage = Storage::new(&settings);
        Self { settings, storage, answers, unkept: None }
    }

    /// Orders a certificate in place of `old` and keeps it.
    pub async fn order(&mut self, old: Option<&CertificateDer<'static>>) -> Result<(), Failure> {
        let now = unix(SystemTime::now());
        let is_new = |fresh: &Fresh| fresh.not_after > now && old != Some(&fresh.chain[0]);
        let fresh = match self.unkept.take().filter(is_new) {
            Some(unkept) => unkept,
            None => self.issue(old).await?,
        };
        let storage = self.storage.clone();
        let keep = move || (storage.keep_certificate(&fresh.key, &fresh.chain), fresh);
        let (kept, fresh) = blocking(keep).await;
        if kept.is_err() {
            self.unkept = Some(fresh);
        }
        kept
    }

    async fn issue(&self, old: Option<&CertificateDer<'static>>) -> Result<Fresh, Failure> {
        let wait = Wait::default();
        let mut published = Vec::new();
        let result = match timeout(ORDER, self.attempt(old, &wait, &mut published)).await {
            Ok(result) => result,
            Err(_) => Err(Failure::passing(
                format!("the order was not done within {ORDER:?}"),
                "nothing to do yet; if it goes on, look at the CA's status page",
            )),
        };
        self.withdraw_all(published, WITHDRAWAL).await;
        result.map_err(|failure| Failure { wait: wait.last(), ..failure })
    }

    /// What the CA suggests for `certificate`, and when to ask again; `None` if it makes no suggestions.
    pub async fn suggestion(
        &self,
        certificate: &CertificateDer<'static>,
    ) -> Result<Option<(Window, Duration)>, Failure> {
        let Ok(id) = CertificateIdentifier::try_from(certificate) else { return Ok(None) };
        let Some(account) = self.known_account(&Wait::default()).await? else { return Ok(None) };
        match account.renewal_info(&id).await {
            Ok((info, again)) => {
                let window = info.suggested_window;
                let (start, end) = (window.start.unix_timestamp(), window.end.unix_timestamp());
                Ok(Some((Window { start, end }, again)))
            }
            Err(Error::Unsupported(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn attempt(
        &self,
        old: Option<&CertificateDer<'static>>,
        wait: &Wait,
        published: &mut Vec<Published>,
    ) -> Result<Fresh, Failure> {
        let storage = self.storage.clone();
        blocking(move || storage.try_room()).await?;
        let account = match self.known_account(wait).await? {
            Some(account) => account,
            None => self.new_account(wait).await?,
        };
        let mut order = match self.new_order(&account, old).await {
            Err(failure) if failure.no_account => {
                tracing::warn!("the CA does not know our ACME account any more: a new one is made");
                let storage = self.storage.clone();
                blocking(move || storage.forget_account()).await?;
                let account = self.new_account(wait).await?;
                self.new_order(&account, None).await?
            }
            other => other?,
        };
        self.answer_challenges(&mut order, published).await?;
        let patience = RetryPolicy::new().backoff(1.5).timeout(DECISION);
        match order.poll_ready(&patience).await {
            Ok(OrderStatus::Invalid) | Err(Error::Api(_)) => {
                let unknown = || Failure::refused("the CA refused the order".into(), ASK);
                return Err(refusal(&mut order).await.unwrap_or_else(unknown));
            }
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let (key, request) =
            self.request().map_err(|error| Failure::refused(chain(&error), OURS))?;
        order.finalize_csr(&request).await?;
        let pem = order.poll_certificate(&patience).await?;
        check(&key, &pem, &self.settings.names, unix(SystemTime::now()))
    }

    /// # Errors
    /// The directory can't be read, or the file of the account.
    async fn known_account(&self, wait: &Wait) -> Result<Option<Account>, Failure> {
        let storage = self.storage.clone();
        let Some(credentials) = blocking(move || storage.account()).await? else {
            return Ok(None);
        };
        let builder = Account::builder_with_http(self.https(wait).await?);
        Ok(Some(builder.from_credentials(credentials).await?))
    }

    async fn new_account(&self, wait: &Wait) -> Result<Account, Failure> {
        let external = match self.settings.external_account.clone() {
            None => None,
            Some(ExternalAccount { id, key_file }) => {
                let key = blocking(move || external_key(&key_file)).await;
                let key = key.map_err(|text| {
                    Failure::refused(text, "correct tls.acme.external_account.key_file")
                })?;
                Some(ExternalAccountKey::new(id, &key))
            }
        };
        let contact: Vec<&str> = self.settings.contact.iter().map(String::as_str).collect();
        // That they are agreed to was checked with the configuration.
        let wanted = NewAccount {
            contact: &contact,
            terms_of_service_agreed: true,
            only_return_existing: false,
        };
        let builder = Account::builder_with_http(self.https(wait).await?);
        let directory = self.settings.directory.clone();
        let (account, credentials) = builder.create(&wanted, directory, external.as_ref()).await?;
        let storage = self.storage.clone();
        blocking(move || storage.keep_account(&credentials)).await?;
        tracing::info!(account = account.id(), "ACME account made");
        Ok(account)
    }

    async fn https(&self, wait: &Wait) -> Result<Box<Https>, Failure> {
        let (ca, wait) = (self.settings.ca.clone(), wait.clone());
        blocking(move || Https::new(ca.as_deref(), &wait)).await.map(Box::new)
    }

    async fn new_order(
        &self,
        account: &Account,
        old: Option<&CertificateDer<'static>>,
    ) -> Result<Order, Failure> {
        let names: Vec<_> = self.settings.names.iter().cloned().map(Identifier::Dns).collect();
        let wanted = || {
            let order = NewOrder::new(&names);
            match &self.settings.profile {
                Some(profile) => order.profile(profile),
                None => order,
            }
        };
        // Which certificate it is for exempts from limits (RFC 9773 §5), but a CA may not take it.
        if let Some(id) = old.and_then(|old| CertificateIdentifier::try_from(old).ok())
            && let Ok(order) = account.new_order(&wanted().replaces(id)).await
        {
            return Ok(order);
        }
        Ok(account.new_order(&wanted()).await?)
    }

    async fn answer_challenges(
        &self,
        order: &mut Order,
        published: &mut Vec<Published>,
    ) -> Result<(), Failure> {
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            if authorization.status == AuthorizationStatus::Valid {
                continue; // from an earlier order
            }
            let name = ours(&self.settings.names, &authorization.identifier())?;
            let kind = match self.settings.challenge {
                Challenge::Http01 { .. } => ChallengeType::Http01,
                Challenge::TlsAlpn01 => ChallengeType::TlsAlpn01,
                Challenge::Dns01 { .. } => ChallengeType::Dns01,
            };
            let Some(mut challenge) = authorization.challenge(kind) else {
                let text = format!("{name}: the CA does not offer this challenge");
                return Err(Failure::refused(text, "choose another tls.acme.challenge"));
            };
            check_token(&challenge.token, name)?;
            let answer = challenge.key_authorization();
            match &self.settings.challenge {
                Challenge::Http01 { .. } => {
                    self.answers.http.publish(&challenge.token, answer.as_str());
                    published.push(Published::Token(challenge.token.clone()));
                }
                Challenge::TlsAlpn01 => {
                    let shown = self.answers.tls.publish(name, answer.digest().as_ref());
                    shown.map_err(|error| Failure::refused(chain(&error), OURS))?;
                    published.push(Published::Proof(name.to_owned()));
                }
                Challenge::Dns01 { hook } => {
                    let (name, value) = (hook::record(name), answer.dns_value());
                    // Also if it fails: it may have come half the way.
                    published.push(Published::Record { name: name.clone(), value: value.clone() });
                    hook::run(hook, Action::Present, &name, &value).await?;
                }
            }
            // A CA may have decided by the time that it answers: that is this name's, too.
            challenge.set_ready().await.map_err(|error| match error {
                Error::Api(problem) => Failure::problem(&problem, Some(name)),
                error => error.into(),
            })?;
        }
        Ok(())
    }

    async fn withdraw_all(&self, published: Vec<Published>, limit: Duration) {
        let all = async {
            for one in published {
                self.withdraw(one).await;
            }
        };
        if timeout(limit, all).await.is_err() {
            tracing::warn!(
                "the hook took over {limit:?} for cleanup: TXT records may be left over"
            );
        }
    }

    async fn withdraw(&self, published: Published) {
        match (published, &self.settings.challenge) {
            (Published::Record { name, value }, Challenge::Dns01 { hook }) => {
                if let Err(failure) = hook::run(hook, Action::Cleanup, &name, &value).await {
                    tracing::warn!(error = failure.text, "a TXT record may be left over");
                }
            }
            (Published::Token(token), _) => self.answers.http.withdraw(&token),
            (Published::Proof(name), _) => self.answers.tls.withdraw(&name),
            (Published::Record { .. }, _) => {}
        }
    }

    /// A new key, and the request to certify it, DER.
    fn request(&self) -> Result<(KeyPair, Vec<u8>), rcgen::Error> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::new(self.settings.names.clone())?;
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&key)?.der().to_vec();
        Ok((key, request))
    }
}

/// The one of our names that the CA speaks of: what it sends is no argument for a program of the operator's.
fn ours<'a>(
    names: &'a [String],
    identifier: &AuthorizedIdentifier<'_>,
) -> Result<&'a str, Failure> {
    let said = identifier.to_string();
    let same = |name: &&String| {
        matches!(identifier.identifier, Identifier::Dns(_)) && name.eq_ignore_ascii_case(&said)
    };
    let stranger = || {
        Failure::refused(format!("the CA wants proof of a name that was not ordered: {said}"), ASK)
    };
    names.iter().find(same).map(String::as_str).ok_or_else(stranger)
}

/// base64url (RFC 8555 §8.3, §8.4).
fn check_token(token: &str, name: &str) -> Result<(), Failure> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    match !token.is_empty() && token.bytes().all(fits) {
        true => Ok(()),
        false => Err(Failure::refused(format!("{name}: the CA's token is not base64url"), ASK)),
    }
}

/// What the CA has sent is looked at before it takes the place of something that works.
fn check(key: &KeyPair, pem: &str, names: &[String], now: i64) -> Result<Fresh, Failure> {
    let path = Path::new("the CA's answer");
    let useless = |why: String| Failure::refused(why, ASK);
    if pem.len() > MAX_CHAIN {
        return Err(useless(format!("the CA's answer is longer than {MAX_CHAIN} bytes")));
    }
    let certs = certificate::certs_in(pem.as_bytes(), path, certificate::What::Certificate);
    let certs = certs.map_err(|error| match error {
        certificate::Error::NotPem { .. } => useless("the CA's answer holds no certificate".into()),
        error => useless(chain(&error)),
    })?;
    let der = PrivateKeyDer::try_from(key.serialized_der().to_vec())
        .map_err(|why| Failure::refused(why.to_owned(), OURS))?;
    let pair = certificate::matched(certs, std::slice::from_ref(&der), path, path)
        .map_err(|error| useless(chain(&error)))?;
    let leaf = &pair.chain[0];
    if !is_for(leaf, names) {
        let has: Vec<_> = leaf.names.iter().map(ToString::to_string).collect();
        return Err(useless(format!("the certificate is for {}", has.join(" "))));
    }
    if leaf.not_after <= now {
        let (end, now) = (facts::date(leaf.not_after), facts::date(now));
        let text = format!("the certificate ended on {end}, and it is {now}");
        return Err(Failure::refused(text, "see that the clock is right; if it is, ask the CA"));
    }
    for why in pair.unread.damaged.iter().chain(&pair.unread.foreign) {
        tracing::warn!("the CA's answer: {why}");
    }
    let not_after = leaf.not_after;
    let chain = pair.certified.cert.clone();
    Ok(Fresh { key: Zeroizing::new(key.serialize_pem()), chain, not_after })
}

/// Why the CA did not find a name to be ours, or the order good.
async fn refusal(order: &mut Order) -> Option<Failure> {
    let whole = order.state().error.as_ref().map(|problem| Failure::problem(problem, None));
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        if authorization.refresh().await.is_err() {
            continue;
        }
        let name = authorization.identifier().to_string();
        let problem = authorization.challenges.iter().find_map(|one| one.error.as_ref());
        if let Some(problem) = problem {
            return Some(Failure::problem(problem, Some(&name)));
        }
    }
    whole
}

/// The HMAC key of an external account: CAs hand it out as base64url, some of them padded.
///
/// # Errors
/// The file can't be read, or holds something else.
pub fn external_key(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let shown = path.display();
    let text = certificate::read_bytes(path, certificate::What::Key, MAX_SECRET);
    let text = text.map_err(|error| chain(&error))?;
    let text = std::str::from_utf8(&text).unwrap_or_default(); // what is no text is no base64
    let text = text.trim().trim_end_matches('=');
    let key = URL_SAFE_NO_PAD.decode(text).or_else(|_| STANDARD_NO_PAD.decode(text));
    match key {
        Ok(key) if !key.is_empty() => Ok(Zeroizing::new(key)),
        _ => {
            Err(format!("{shown}: no HMAC key; it must hold the key as base64url and nothing else"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// What nobody answers is ordered from.
    fn orders(storage: &Path) -> Orders {
        let settings = Acme {
            directory: "https://127.0.0.1:1/dir".into(),
            contact: Vec::new(),
            names: vec!["a.example".into()],
            challenge: Challenge::Http01 { address: ([127, 0, 0, 1], 0).into() },
            storage: storage.into(),
            ca: None,
            profile: None,
            external_account: None,
        };
        Orders::new(settings, Arc::default())
    }

    #[tokio::test]
    async fn where_nothing_can_be_kept_nothing_is_ordered_and_what_was_issued_is_not_lost() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("storage");
        std::fs::write(&path, "in the way").unwrap();
        let mut orders = orders(&path);
        let told = |failure: Failure| failure.text.contains("storage/127.0.0.1-1-dir");
        assert!(told(orders.order(None).await.unwrap_err()));

        let now = unix(SystemTime::now());
        let (key, cert) = made(now + 1000);
        orders.unkept = Some(check(&key, &cert, &orders.settings.names, now).unwrap());
        assert!(told(orders.order(None).await.unwrap_err()));
        std::fs::remove_file(&path).unwrap();
        orders.order(None).await.unwrap();
        assert_eq!(orders.storage.leaf().unwrap().not_after, now + 1000);
        assert!(orders.unkept.is_none());

        // What has ended meanwhile is ordered anew.
        let (key, cert) = made(now - 5);
        let old = check(&key, &cert, &orders.settings.names, now - 10).unwrap();
        orders.unkept = Some(old);
        assert!(!told(orders.order(None).await.unwrap_err()));
    }

    #[tokio::test]
    async fn a_hook_that_hangs_does_not_keep_the_next_order_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let (hook, pid) = (dir.path().join("hook"), dir.path().join("pid"));
        std::fs::write(&hook, format!("#!/bin/sh\necho $$ >{}\nexec sleep 1000\n", pid.display()))
            .unwrap();
        std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut orders = orders(dir.path());
        orders.settings.challenge = Challenge::Dns01 { hook };
        let record = || Published::Record { name: "a.".into(), value: "v".into() };
        let limit = Duration::from_secs(1);
        let started = std::time::Instant::now();
        orders.withdraw_all(vec![record(), record()], limit).await;
        let took = started.elapsed();
        assert!((limit..limit * 10).contains(&took), "{took:?}");
        // The one that ran is killed. It is a zombie until the runtime has buried it.
        let stat = format!("/proc/{}/stat", std::fs::read_to_string(&pid).unwrap().trim());
        while std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn made(not_after: i64) -> (KeyPair, String) {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::new(vec!["A.example".to_owned()]).unwrap();
        let since_1970 = Duration::from_secs(u64::try_from(not_after).unwrap());
        params.not_after = rcgen::date_time_ymd(1970, 1, 1) + since_1970;
        let pem = params.self_signed(&key).unwrap().pem();
        (key, pem)
    }

    #[test]
    fn what_the_ca_issues_must_be_good_to_serve() {
        let (key, pem) = made(1000);
        let names = ["a.example".to_owned()];
        let why =
            |pem: &str, names: &[String], now| check(&key, pem, names, now).err().unwrap().text;
        assert_eq!(check(&key, &pem, &names, 999).unwrap().chain.len(), 1);
        assert!(why(&pem, &names, 1000).contains("ended on 1970-01-01 00:16:40"));
        assert!(why(&pem, &["b.example".into()], 0).contains("is for A.example"));
        assert!(why("", &names, 0).contains("no certificate"));
        assert!(why(&made(1000).1, &names, 0).contains("does not belong"));
        assert!(why(&(pem.clone() + &"\n".repeat(MAX_CHAIN)), &names, 0).contains("longer than"));
    }

    #[test]
    fn a_name_that_was_not_ordered_gets_no_proof() {
        let names = ["mail.example".to_owned(), "*.a.example".to_owned()];
        let dns = |name: &str| Identifier::Dns(name.to_owned());
        for (identifier, wildcard, found) in [
            (dns("Mail.Example"), false, Some("mail.example")),
            (dns("a.example"), true, Some("*.a.example")),
            (dns("a.example"), false, None),
            (dns("mail.example"), true, None),
            (dns("x; rm -rf"), false, None),
            (Identifier::HardwareModule("mail.example".into()), false, None),
        ] {
            let ours = ours(&names, &identifier.authorized(wildcard));
            assert_eq!(ours.ok(), found, "{identifier:?}");
        }
    }

    #[test]
    fn a_token_is_base64url() {
        check_token("evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr_oA", "a").unwrap();
        for token in ["", "a/b", "a=", "a b", "ä"] {
            assert!(check_token(token, "a.example").is_err(), "{token}");
        }
    }

    #[test]
    fn the_key_of_an_external_account_is_base64() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        for (text, key) in [
            ("-_8\n", Some(vec![0xfb, 0xff])),
            ("+/8=", Some(vec![0xfb, 0xff])),
            ("", None),
            ("two words", None),
            ("\u{e9}", None),
        ] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(external_key(&path).ok().map(|key| key.to_vec()), key, "{text}");
        }
        assert!(external_key(&dir.path().join("none")).unwrap_err().contains("none: "));
    }
}
