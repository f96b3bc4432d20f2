//! What is served, and what may take its place.
//!
//! In: the [`Source`]s of the configuration, and a look at them now and then. Out: certificates for handshakes, by way
//! of [`Names`]; [`News`] for the log, [`State`] for metrics and probes. Whoever has certificates from elsewhere
//! implements [`Source`].
//!
//! A pair keeps its place, a slot, while what it holds is renewed. Invariant: once something serves, it is never
//! given up for something worse ([`complaints::worse`]) and never for nothing, unless the operator says so (SIGHUP)
//! or it has expired. What can't be taken is said once and tried again at every look.
//! Not here: when to look (`reload`).

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::SignatureAlgorithm;

use super::acme::{Issued, Storage};
use super::aging::{Aging, Life, Said};
use super::certificate::Pair;
use super::complaints::{self, Complaint, Grade, Kind, Worse};
use super::directory::Dir;
use super::facts::Facts;
use super::names::{self, Index, Names, covers};
use super::pairs::{Files, Found, Made, Source, is_there};
use super::path::ends_first;
use super::{Error, key_mode, unix};
use crate::config::settings::{self, CertificateSource, SelfSigned};

/// Everything that serves.
pub struct Store {
    /// In the order of the configuration.
    sources: Vec<Box<dyn Source>>,
    /// Serves for as long as the sources are absent.
    stand_in: Option<Made>,
    /// What it stands in for, in words.
    missing: String,
    /// In order of the sources, within one by path, in a directory what is valid first.
    slots: Vec<Slot>,
    names: Arc<Names>,
}

/// The place of a stand-in behind all sources.
const STAND_IN: usize = usize::MAX;

/// One pair, whatever it holds at the moment.
struct Slot {
    source: usize,
    id: PathBuf,
    /// What metrics and log call it: the first name of the certificate.
    label: String,
    served: Option<Arc<Pair>>,
    /// When the certificate that lies at its place expires, if one lies there.
    on_disk: Option<i64>,
    /// Why that one is not served.
    failure: Option<String>,
    notice: Vec<String>,
    aging: Aging,
    /// Of its issuer, where that ends first.
    issuer_aging: Aging,
}

/// What a look has brought, to be told to the operator.
#[derive(Debug, Default)]
pub struct News {
    /// Served from now on.
    pub taken: Vec<Taken>,
    /// Why something is not served that lies there; errors.
    pub refused: Vec<String>,
    /// What clients will refuse, although it is served; errors.
    pub problems: Vec<String>,
    /// Warnings.
    pub notice: Vec<String>,
    /// What is well again.
    pub relief: Vec<String>,
}

#[derive(Debug)]
pub struct Taken {
    pub certificate: String,
    /// DNS names and IP addresses that it is good for.
    pub names: Vec<String>,
    /// Unix seconds.
    pub not_after: i64,
    /// How many certificates clients are sent, its issuers included.
    pub sent: usize,
}

/// What is served, for metrics and probes.
#[derive(Debug, Default)]
pub struct State {
    pub certificates: Vec<Expiry>,
    /// When clients that name no server get something valid: in any of these times.
    pub default_lives: Vec<Life>,
    /// Nothing was refused that still lies there.
    pub all_taken: bool,
}

/// Unix seconds; `None` where there is no certificate.
#[derive(Debug)]
pub struct Expiry {
    pub certificate: String,
    pub served: Option<i64>,
    pub on_disk: Option<i64>,
}

impl Store {
    pub fn new(settings: &settings::Tls) -> Self {
        let mut stand_in = stand_in(settings).map(Made::new);
        let mut sources = sources(settings);
        if sources.is_empty()
            && let Some(made) = stand_in.take()
        {
            sources.push(Box::new(made));
        }
        Self {
            sources,
            stand_in,
            missing: stands_in_for(settings),
            slots: Vec::new(),
            names: Arc::new(Names::new(settings.unknown_name)),
        }
    }

    /// What handshakes ask; it follows every later [`look`](Self::look).
    pub fn names(&self) -> Arc<Names> {
        Arc::clone(&self.names)
    }

    /// The first look. Reads files, as the others do, and may make one.
    ///
    /// # Errors
    /// There is nothing to serve, or a pair that the configuration names can't be used.
    pub fn load(&mut self, now: SystemTime) -> Result<News, Error> {
        let news = self.look(now, false);
        let named = |slot: &&Slot| {
            slot.failure.is_some() && self.sources.get(slot.source).is_some_and(|s| s.is_needed())
        };
        let nothing = !self.slots.iter().any(|slot| slot.served.is_some());
        let failed = self.slots.iter().filter(|slot| nothing || named(slot));
        let why: Vec<String> = failed.filter_map(|slot| slot.failure.clone()).collect();
        match why.is_empty() {
            true if nothing => Err(Error::Nothing),
            true => Ok(news),
            false => Err(Error::Unusable(why)),
        }
    }

    /// Looks at all sources and takes what is new. `told` is that the operator asked for it: a step back is meant
    /// then, and what has gone is given up.
    pub fn look(&mut self, now: SystemTime, told: bool) -> News {
        let now = unix(now);
        let mut news = News::default();
        let mut taken = Vec::new();
        let mut sources = std::mem::take(&mut self.sources);
        let absent = self.stand_in.is_some() && sources.iter().all(|source| source.is_absent());
        let mut given_up = Vec::new();
        if absent && (told || !self.sources_serve()) {
            given_up = self.slots.extract_if(.., |slot| slot.source != STAND_IN).collect();
        } else {
            for (index, source) in sources.iter_mut().enumerate() {
                let found = source.look(now);
                self.merge(index, &found, now, told, &mut news, &mut taken);
            }
        }
        self.sources = sources;
        if self.sources_serve() {
            self.slots.retain(|slot| slot.source != STAND_IN);
        } else if absent || self.slots.iter().any(|slot| slot.source == STAND_IN) {
            let found = self.stand_in.as_mut().map_or_else(Vec::new, |made| made.look(now));
            let before = taken.len();
            self.merge(STAND_IN, &found, now, told, &mut news, &mut taken);
            if taken.len() > before {
                news.notice.push(self.missing.clone());
            }
        }
        if self.served().is_empty() {
            self.slots.append(&mut given_up); // what was to stand in can't
        }
        self.slots.sort_by(|a, b| (a.source, &a.id).cmp(&(b.source, &b.id)));
        self.label();
        // The first is the default: in a directory, where none is named as the first, the first valid one.
        let sources = &self.sources;
        self.slots.sort_by_key(|slot| {
            let is_named = sources.get(slot.source).is_none_or(|source| source.is_needed());
            (slot.source, !is_named && !slot.is_valid(now))
        }); // stable
        for slot in self.slots.iter().filter(|slot| taken.contains(&(slot.source, slot.id.clone())))
        {
            let Some(pair) = &slot.served else { continue };
            let leaf = &pair.chain[0];
            news.taken.push(Taken {
                certificate: slot.label.clone(),
                names: leaf.names.iter().map(ToString::to_string).collect(),
                not_after: leaf.not_after,
                sent: pair.sent(now).cert.len(),
            });
        }
        self.slots.iter_mut().for_each(|slot| slot.age(now, &mut news));
        self.names.set(Index::new(&self.served(), now));
        news
    }

    pub fn state(&self) -> State {
        let certificates = self.slots.iter().map(|slot| Expiry {
            certificate: slot.label.clone(),
            served: slot.served.as_ref().map(|pair| pair.chain[0].not_after),
            on_disk: slot.on_disk,
        });
        State {
            certificates: certificates
                .filter(|one| one.served.is_some() || one.on_disk.is_some())
                .collect(),
            default_lives: names::default_lives(&self.served()),
            all_taken: self.slots.iter().all(|slot| slot.failure.is_none()),
        }
    }

    /// When there may be more to say of what is served, or another certificate to serve for it, though no
    /// file changes: unix seconds.
    pub fn next_moment(&self, now: SystemTime) -> Option<i64> {
        let served = self.slots.iter().filter_map(|slot| slot.served.as_ref());
        let dated =
            served.flat_map(|pair| pair.chain.first().into_iter().chain(ends_first(&pair.chain)));
        dated.filter_map(|facts| facts.life().next(unix(now))).min()
    }

    /// Files and directories in which a change is worth a look.
    pub fn watched(&self) -> Vec<PathBuf> {
        let of_sources = self.sources.iter().flat_map(|source| source.watched());
        of_sources.chain(self.stand_in.iter().flat_map(|made| made.watched())).collect()
    }

    fn served(&self) -> Vec<Arc<Pair>> {
        self.slots.iter().filter_map(|slot| slot.served.clone()).collect()
    }

    fn sources_serve(&self) -> bool {
        self.slots.iter().any(|slot| slot.source != STAND_IN && slot.served.is_some())
    }

    fn merge(
        &mut self,
        source: usize,
        found: &[Found],
        now: i64,
        told: bool,
        news: &mut News,
        taken: &mut Vec<(usize, PathBuf)>,
    ) {
        let here = self.slots.iter().enumerate().filter(|(_, slot)| slot.source == source);
        let places: HashMap<PathBuf, usize> =
            here.map(|(index, slot)| (slot.id.clone(), index)).collect();
        for one in found {
            let index = places.get(&one.id).copied().unwrap_or_else(|| {
                self.slots.push(Slot::new(source, one.id.clone()));
                self.slots.len() - 1
            });
            if self.slots[index].take(one, now, told, news) {
                taken.push((source, one.id.clone()));
            }
        }
        let readable = found.iter().any(|one| one.pair.is_ok());
        let ids: HashSet<&PathBuf> = found.iter().map(|one| &one.id).collect();
        let gone = |slot: &Slot| slot.source == source && !ids.contains(&slot.id);
        let mut index = 0;
        while index < self.slots.len() {
            if gone(&self.slots[index]) && self.may_go(index, now, told && readable) {
                let slot = self.slots.remove(index);
                if slot.served.is_some() {
                    let id = slot.id.display();
                    let why = if is_there(&slot.id) { "has been replaced" } else { "is gone" };
                    news.notice.push(format!("{id}: {why} and is no longer served"));
                }
                continue;
            }
            if gone(&self.slots[index]) {
                let slot = &mut self.slots[index];
                slot.on_disk = None;
                let why = format!(
                    "{}: is gone; what it held is served until it expires, put it back or send SIGHUP",
                    slot.id.display()
                );
                slot.fail(Some(why), told, news);
            }
            index += 1;
        }
    }

    /// Whether nobody misses what this slot serves.
    fn may_go(&self, index: usize, now: i64, told: bool) -> bool {
        let Some(pair) = &self.slots[index].served else { return true };
        let others = || {
            let others = self.slots.iter().enumerate().filter(|(other, _)| *other != index);
            others.filter_map(|(_, slot)| slot.served.as_ref())
        };
        let expired = pair.chain[0].not_after < now;
        let covered = || others().any(|other| covers(other, pair));
        others().next().is_some() && (told || expired || covered())
    }

    /// Names every slot after its certificate; of those with one name the later ones say their key as well.
    fn label(&mut self) {
        let mut used = HashSet::new();
        for slot in &mut self.slots {
            let base = slot.served.as_ref().and_then(|pair| pair.chain[0].first_dns());
            let stem = slot.id.file_stem().map(|stem| stem.to_string_lossy().into_owned());
            let base = base.map(str::to_owned).or(stem).unwrap_or_default();
            let mut label = base.clone();
            if used.contains(&label)
                && let Some(pair) = &slot.served
            {
                label = format!("{base}/{}", algorithm(pair));
            }
            let mut number = 2;
            while !used.insert(label.clone()) {
                label = format!("{base}/{number}");
                number += 1;
            }
            slot.label = label;
        }
    }
}

impl Slot {
    fn new(source: usize, id: PathBuf) -> Self {
        Self {
            source,
            id,
            label: String::new(),
            served: None,
            on_disk: None,
            failure: None,
            notice: Vec::new(),
            aging: Aging::default(),
            issuer_aging: Aging::default(),
        }
    }

    /// Whether what was found is served from now on, and was not before.
    fn take(&mut self, found: &Found, now: i64, told: bool, news: &mut News) -> bool {
        self.on_disk = found.not_after;
        let mut notice = found.notice.clone();
        notice.extend(found.key.as_deref().and_then(key_mode).map(|(_, text)| text));
        let mut taken = None;
        let failure = match (&found.pair, &self.served) {
            (Err(why), _) => Some(why.clone()),
            (Ok(new), Some(old)) if old.is_as(new) => None,
            (Ok(new), old) => {
                let worse = old.as_ref().and_then(|old| complaints::worse(old, new, now));
                let worse = worse.filter(|worse| !(worse.may_be_meant && (told || found.meant)));
                if worse.is_none() {
                    taken = Some(Arc::clone(new));
                }
                let cure =
                    |may_be_meant| if may_be_meant { "; if it is meant, send SIGHUP" } else { "" };
                worse.map(|Worse { why, may_be_meant }| {
                    format!("{}: {why}{}", self.id.display(), cure(may_be_meant))
                })
            }
        };
        if let Some(pair) = &taken {
            self.aging = Aging::default();
            self.issuer_aging = Aging::default();
            // That an issuer has ended already is among the complaints.
            if let Some(life) = ends_first(&pair.chain).map(Facts::life).filter(|l| !l.holds(now)) {
                self.issuer_aging.on(life, now);
            }
            // What there is to say of its dates is said below, as time passes.
            let of_dates =
                |complaint: &Complaint| matches!(complaint.kind, Kind::Dates | Kind::ExpiresSoon);
            for complaint in complaints::of_pair(pair, now) {
                let text = format!("{}: {}", self.id.display(), complaint.text);
                match complaint.grade {
                    _ if of_dates(&complaint) => {}
                    Grade::Refused => news.problems.push(text),
                    Grade::Doubtful => notice.push(text),
                }
            }
            self.served = taken.clone();
        }
        news.notice.extend(notice.iter().filter(|line| !self.notice.contains(line)).cloned());
        self.notice = notice;
        self.fail(failure, told, news);
        taken.is_some()
    }

    fn is_valid(&self, now: i64) -> bool {
        self.served.as_ref().is_some_and(|pair| pair.chain[0].life().holds(now))
    }

    /// Says of the dates of what is served what there is to say now.
    fn age(&mut self, now: i64, news: &mut News) {
        let Some(pair) = &self.served else { return };
        let said = self.aging.on(pair.chain[0].life(), now);
        let of = |text: String| format!("{}: the certificate {text}", self.id.display());
        match said {
            Some(Said::Problem(text)) => news.problems.push(of(text)),
            Some(Said::Notice(text)) => news.notice.push(of(text)),
            Some(Said::Relief(text)) => news.relief.push(of(text)),
            None => {}
        }
        let Some(issuer) = ends_first(&pair.chain) else { return };
        let of = |text: String| {
            let subject = &issuer.subject;
            format!("{}: the issuer of the certificate ({subject}) {text}", self.id.display())
        };
        // Some clients may know it by themselves, in a form that lasts longer.
        match self.issuer_aging.on(issuer.life(), now) {
            Some(Said::Problem(text) | Said::Notice(text)) => news.notice.push(of(text)),
            Some(Said::Relief(text)) => news.relief.push(of(text)),
            None => {}
        }
    }

    /// Says once why not, and again when asked.
    fn fail(&mut self, failure: Option<String>, told: bool, news: &mut News) {
        if told || failure != self.failure {
            news.refused.extend(failure.clone());
        }
        self.failure = failure;
    }
}

/// The sources of the operator, without what we make.
pub fn sources(settings: &settings::Tls) -> Vec<Box<dyn Source>> {
    let source = |source: &CertificateSource| -> Box<dyn Source> {
        match source.clone() {
            CertificateSource::Pair(files) => Box::new(Files::new(files)),
            CertificateSource::Dir(dir) => Box::new(Dir::new(dir)),
        }
    };
    let issued =
        settings.acme.iter().map(|acme| -> Box<dyn Source> { Box::new(Issued::new(acme)) });
    settings.certificates.iter().map(source).chain(issued).collect()
}

/// What is made here to serve while there is nothing else: as configured, or for what ACME is to bring.
pub fn stand_in(settings: &settings::Tls) -> Option<SelfSigned> {
    let made = |acme: &settings::Acme| SelfSigned {
        names: acme.names.clone(),
        dir: Storage::stand_in(acme),
    };
    settings.self_signed.clone().or_else(|| settings.acme.as_ref().map(made))
}

/// Whether a self-made certificate has to stand in for those of the operator.
pub fn needs_stand_in(settings: &settings::Tls) -> bool {
    stand_in(settings).is_some() && sources(settings).iter().all(|source| source.is_absent())
}

/// That a self-made certificate stands in, and for what.
pub fn stands_in_for(settings: &settings::Tls) -> String {
    let missing = settings.certificates.iter().map(|source| match source {
        CertificateSource::Pair(files) => {
            format!("neither {} nor {} exists", files.cert.display(), files.key.display())
        }
        CertificateSource::Dir(dir) if is_there(dir) => format!("{} is empty", dir.display()),
        CertificateSource::Dir(dir) => format!("{} does not exist", dir.display()),
    });
    let mut missing: Vec<_> = missing.collect();
    let cure = match settings.acme {
        Some(_) => {
            missing.push("no ACME order is done yet".to_owned());
            "what the first order brings is served at once"
        }
        None => "put a certificate and its key there, they are served at once",
    };
    format!(
        "{}, so a SELF-MADE CERTIFICATE is served and mail clients will warn; {cure}",
        missing.join(", ")
    )
}

fn algorithm(pair: &Pair) -> &'static str {
    match pair.certified.key.algorithm() {
        SignatureAlgorithm::ECDSA => "ecdsa",
        SignatureAlgorithm::RSA => "rsa",
        SignatureAlgorithm::ED25519 => "ed25519",
        _ => "other",
    }
}
