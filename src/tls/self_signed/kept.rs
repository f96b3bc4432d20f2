//! What is kept of a self-made certificate, and what is to be done about it.
//!
//! In: the files as values, the names that are wanted, the time. Out: the files that change, and why in words.
//!
//! A CA that people have trusted is given up only when it ends, or for names that it can't vouch for. What
//! serves and has more names than wanted goes on. Before the end the next CA is made, so that people can
//! trust it in time. What is given up is put aside, and serves again if its names are wanted again, or if the clock was
//! wrong.
//! A CA with a key beside it is of an earlier version, or the operator's: it issues until it ends.
//! No clock and no file here.

use std::collections::BTreeSet;
use std::path::Path;

use rcgen::KeyPair;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::super::facts::{self, DAY, Facts, Name, date};
use super::super::{certificate, complaints};
use super::issue::{self, Chain, is_bound, is_ours, matches};
use super::{CA, CA_KEY, CHAIN, Error, KEY, NEXT_CA, NEXT_CHAIN, files};

/// How long before the end of a CA the next one is made.
pub const AHEAD: i64 = 60 * DAY;
/// Within this time the CA of before comes back if the names that were added go again: it is the one that
/// people trust. Later they trust the one that serves.
const UNDO: i64 = 7 * DAY;

/// The files as values. A part is `None` as long as it has not been made.
#[derive(Default)]
pub struct Kept {
    /// Only beside a CA that was not made by this version.
    pub(super) ca_key: Option<KeyPair>,
    pub(super) ca: Option<CertificateDer<'static>>,
    pub(super) key: Option<KeyPair>,
    pub(super) chain: Option<Chain>,
    /// What takes the place of `chain` when that ends.
    pub(super) next: Option<Chain>,
    /// What served before.
    pub(super) earlier: Vec<Chain>,
}

/// What [`Kept::complete`] did.
#[derive(Default)]
pub struct Change {
    /// To be written, or removed if they hold nothing any more.
    pub files: Vec<&'static str>,
    /// To be kept in a file of its own.
    pub aside: Option<Chain>,
    /// What was made or renewed, and why.
    pub done: Vec<String>,
    /// What people or the operator have to know, at every start.
    pub notice: Vec<String>,
    /// A CA was there, and people have to trust another one, for this reason.
    pub another: Option<String>,
}

/// What is the matter with the certificate that is there.
enum Standing {
    Good,
    /// A new one by the same CA, whose key is there.
    Due(&'static str),
    /// It is of the future.
    Early,
    /// It is for names that were added lately and are not wanted any more; this one was before.
    Undone(Chain),
    /// It won't do, and its CA can't issue another one.
    Over(String),
}

impl Kept {
    pub fn is_empty(&self) -> bool {
        self.ca_key.is_none() && self.ca.is_none() && self.key.is_none() && self.chain.is_none()
    }

    /// Makes what is missing and renews what is due. The next CA is made only where it can be `written`.
    pub fn complete(
        &mut self,
        names: &[Name],
        dir: &Path,
        now: i64,
        written: bool,
    ) -> Result<Change, Error> {
        let mut change = Change::default();
        if self.key.is_none() {
            self.key = Some(issue::new_key()?);
            change.files.push(KEY);
        }
        match self.standing(names, dir, now)? {
            Standing::Good => {}
            Standing::Due(why) => self.renew(names, dir, now, why, &mut change)?,
            Standing::Early => {
                if let Some(chain) = self.waiting(names, now) {
                    self.take(chain, dir, &mut change);
                } else {
                    let path = dir.join(CA);
                    change.notice.push(format!(
                        "{}: is of the future; if the clock of this machine is right, remove the file, and a new CA is made",
                        path.display()
                    ));
                }
            }
            Standing::Undone(chain) => self.take(chain, dir, &mut change),
            Standing::Over(why) => self.replace(names, dir, now, why, &mut change)?,
        }
        self.look_ahead(names, dir, now, written, &mut change)?;
        self.say(names, dir, now, &mut change)?;
        Ok(change)
    }

    fn standing(&self, names: &[Name], dir: &Path, now: i64) -> Result<Standing, Error> {
        let over = |why: &str| Ok(Standing::Over(why.to_owned()));
        let Some(ca) = self.ca_facts(dir)? else {
            if let Some(chain) = &self.chain {
                let path = dir.join(CHAIN);
                let leaf = facts_of(&chain[0], &path)?;
                if !is_ours(&leaf.issuer) {
                    return Err(Error::Foreign { path, issuer: leaf.issuer });
                }
            }
            return over("there was none");
        };
        if !ca.is_ca {
            return Err(Error::NotACa { path: dir.join(CA) });
        }
        let issuer = self.issuer(dir)?;
        if now > ca.not_after {
            return over("the one before has expired");
        }
        let leaf = match self.leaf(&ca, dir)? {
            Ok(leaf) => leaf,
            Err(why) if issuer.is_some() => return Ok(Standing::Due(why)),
            Err(why) => return over(why),
        };
        let missing: Vec<String> =
            names.iter().filter(|name| !leaf.names.contains(name)).map(Name::to_string).collect();
        if issuer.is_none() {
            return Ok(match () {
                () if now > leaf.not_after => {
                    Standing::Over("the one before has expired".to_owned())
                }
                () if !missing.is_empty() => {
                    let list = missing.join(", ");
                    Standing::Over(format!("the one before can't vouch for {list}"))
                }
                () if now < leaf.not_before => Standing::Early,
                () => self.undone(&leaf, names, now).map_or(Standing::Good, Standing::Undone),
            });
        }
        let set = |names: &[Name]| names.iter().cloned().collect::<BTreeSet<_>>();
        Ok(match () {
            () if now > leaf.not_after => Standing::Due("the old one has expired"),
            () if now < leaf.not_before => {
                Standing::Due("the old one is of the future: the clock was wrong then, or is now")
            }
            () if set(&leaf.names) != set(names) => Standing::Due("the names have changed"),
            () if renewal(&leaf, &ca).is_some_and(|at| now > at) => {
                Standing::Due("the old one is due for renewal")
            }
            () if self.chain.as_ref().and_then(|chain| chain.get(1)) != self.ca.as_ref() => {
                Standing::Due("the CA was renewed")
            }
            () => Standing::Good,
        })
    }

    /// The certificate that is there, or why there is none that can be used.
    fn leaf(&self, ca: &Facts, dir: &Path) -> Result<Result<Facts, &'static str>, Error> {
        let (Some(chain), Some(key)) = (&self.chain, &self.key) else {
            return Ok(Err("there was none"));
        };
        let path = dir.join(CHAIN);
        let leaf = facts_of(&chain[0], &path)?;
        if !leaf.is_issued_by(ca) {
            if !is_ours(&leaf.issuer) {
                return Err(Error::Foreign { path, issuer: leaf.issuer });
            }
            return Ok(Err("the old one was of another CA"));
        }
        complaints::verify(&leaf, &[], ca, leaf.not_after.min(ca.not_after))
            .map_err(|why| Error::Forged { path, why })?;
        if !matches(&chain[0], key) {
            return Ok(Err("the old one was for another key"));
        }
        Ok(Ok(leaf))
    }

    fn ca_facts(&self, dir: &Path) -> Result<Option<Facts>, Error> {
        self.ca.as_ref().map(|ca| facts_of(ca, &dir.join(CA))).transpose()
    }

    /// The CA with its key, if that is there.
    fn issuer(&self, dir: &Path) -> Result<Option<(&CertificateDer<'static>, &KeyPair)>, Error> {
        let (Some(ca), Some(key)) = (&self.ca, &self.ca_key) else { return Ok(None) };
        match matches(ca, key) {
            true => Ok(Some((ca, key))),
            false if is_bound(ca) => Ok(None), // the key of another CA, see `say`
            false => Err(Error::CaMismatch { path: dir.join(CA_KEY) }),
        }
    }

    fn renew(
        &mut self,
        names: &[Name],
        dir: &Path,
        now: i64,
        why: &str,
        change: &mut Change,
    ) -> Result<(), Error> {
        let ends = self.ca_facts(dir)?.map_or(now, |ca| ca.not_after);
        let (ca, ca_key) = self.issuer(dir)?.expect("what is due has an issuer");
        let key = self.key.as_ref().expect("complete made it");
        self.chain = Some(issue::by_kept_ca(names, key, (ca, ca_key, ends), now)?);
        change.files.push(CHAIN);
        change.done.push(format!("issued a certificate for {}, because {why}", listed(names)));
        Ok(())
    }

    /// Another CA: one that is there already, or a new one.
    fn replace(
        &mut self,
        names: &[Name],
        dir: &Path,
        now: i64,
        why: String,
        change: &mut Change,
    ) -> Result<(), Error> {
        let before = self.ca_facts(dir)?;
        if let Some(ca) = before.as_ref().filter(|ca| !is_ours(&ca.issuer)) {
            return Err(match self.ca_key {
                Some(_) => Error::Foreign { path: dir.join(CA), issuer: ca.issuer.clone() },
                None => Error::NoCaKey { path: dir.join(CA_KEY), why },
            });
        }
        // Who removes the CA wants another one, and none of before.
        if before.is_some()
            && let Some(chain) = self.waiting(names, now)
        {
            self.take(chain, dir, change);
            return Ok(());
        }
        let key = self.key.as_ref().expect("complete made it");
        let chain = issue::chain(names, key, now)?;
        let mut told = format!(
            "made a certificate authority, {}, good for {} only, SHA-256 fingerprint {}: people have to trust it once",
            dir.join(CA).display(),
            listed(names),
            facts::fingerprint(&chain[1])
        );
        if before.is_some() {
            told += &format!(", also those who trusted the one before, because {why}");
        }
        self.serve(chain, change);
        let key = self.key.as_ref().expect("complete made it");
        if let Some(aside) =
            change.aside.as_ref().filter(|old| usable(old, key, &[], now).is_some())
        {
            let path = dir.join(files::earlier_name(&aside[0]));
            told += &format!(
                "; the one before is kept in {} and comes back if its names do",
                path.display()
            );
        }
        change.done.push(told);
        change.another = before.map(|_| why);
        Ok(())
    }

    /// What is there for `names` and can serve: the next one, or one of before.
    fn waiting(&self, names: &[Name], now: i64) -> Option<Chain> {
        let key = self.key.as_ref()?;
        let mut all = self.next.iter().chain(&self.earlier);
        all.find(|chain| usable(chain, key, names, now).is_some()).cloned()
    }

    fn undone(&self, leaf: &Facts, names: &[Name], now: i64) -> Option<Chain> {
        if leaf.names.len() <= names.len() || now > leaf.not_before + UNDO {
            return None;
        }
        let key = self.key.as_ref()?;
        let is_exact = |chain: &&Chain| {
            usable(chain, key, names, now).is_some_and(|leaf| leaf.names.len() == names.len())
        };
        self.earlier.iter().find(is_exact).cloned()
    }

    fn take(&mut self, chain: Chain, dir: &Path, change: &mut Change) {
        change.done.push(format!(
            "{}: the CA that was ready or served before takes the place of the one that can't serve now, SHA-256 fingerprint {}",
            dir.join(CA).display(),
            facts::fingerprint(&chain[1])
        ));
        self.serve(chain, change);
    }

    fn serve(&mut self, chain: Chain, change: &mut Change) {
        let is_whole = |old: &Chain| {
            let has_key = self.key.as_ref().is_some_and(|key| matches(&old[0], key));
            has_key && old.get(1).is_some_and(is_bound) && old.get(1) == self.ca.as_ref()
        };
        change.aside = self.chain.take().filter(is_whole);
        // The key of a CA that serves no more is of no use but to a thief.
        if let (Some(ca), Some(key)) = (&self.ca, &self.ca_key)
            && matches(ca, key)
        {
            self.ca_key = None;
            change.files.push(CA_KEY);
        }
        self.ca = Some(chain[1].clone());
        self.chain = Some(chain);
        change.files.extend([CA, CHAIN]);
        self.forget_next(change);
    }

    fn forget_next(&mut self, change: &mut Change) {
        if self.next.take().is_some() {
            change.files.extend([NEXT_CA, NEXT_CHAIN]);
        }
    }

    /// Makes the next CA when the end of this one is near.
    fn look_ahead(
        &mut self,
        names: &[Name],
        dir: &Path,
        now: i64,
        written: bool,
        change: &mut Change,
    ) -> Result<(), Error> {
        let Some(end) = self.end(dir)? else { return Ok(()) };
        if self.next == self.chain {
            self.forget_next(change); // the end of an exchange that was interrupted
        }
        if !(end - AHEAD..=end).contains(&now) {
            return Ok(());
        }
        let key = self.key.as_ref().expect("complete made it");
        let is_next = |chain: &Chain| {
            usable(chain, key, names, end).is_some_and(|leaf| leaf.not_after > end + AHEAD)
        };
        if !self.next.as_ref().is_some_and(is_next) {
            if !written {
                return Ok(());
            }
            self.next = Some(issue::chain(names, key, now)?);
            change.files.extend([NEXT_CA, NEXT_CHAIN]);
        }
        let next = self.next.as_ref().expect("made above");
        change.notice.push(format!(
            "{}: people trust it until {}; give them {} before (SHA-256 fingerprint {}), which takes its place then",
            dir.join(CA).display(),
            date(end),
            dir.join(NEXT_CA).display(),
            facts::fingerprint(&next[1])
        ));
        Ok(())
    }

    /// When the trust of people in a CA of ours ends, unix seconds.
    fn end(&self, dir: &Path) -> Result<Option<i64>, Error> {
        let Some(ca) = self.ca_facts(dir)?.filter(|ca| is_ours(&ca.issuer)) else {
            return Ok(None);
        };
        let chain = self.chain.as_ref().expect("complete made it");
        let leaf = facts_of(&chain[0], &dir.join(CHAIN))?;
        Ok(Some(match self.issuer(dir)? {
            Some(_) => ca.not_after,
            None => ca.not_after.min(leaf.not_after),
        }))
    }

    /// What the operator should know of what is there.
    fn say(&self, names: &[Name], dir: &Path, now: i64, change: &mut Change) -> Result<(), Error> {
        let Some(ca) = self.ca_facts(dir)? else { return Ok(()) };
        let path = dir.join(CA);
        let key_path = dir.join(CA_KEY);
        let (shown, key_shown) = (path.display(), key_path.display());
        let issuer = self.issuer(dir)?.is_some();
        if is_ours(&ca.issuer) && !is_bound(&ca.der) {
            change.notice.push(format!(
                "{shown}: was made by an earlier version: whoever has its key can make certificates of any name for those who trust it, until {}; it serves until then. To be rid of it before, remove {shown} and {key_shown}: a CA for the configured names only is made, which people have to trust anew",
                date(ca.not_after)
            ));
        } else if self.ca_key.is_some() && !issuer {
            change.notice.push(format!(
                "{key_shown}: is not the key of {}, and not used; if nobody needs it, remove it",
                path.display()
            ));
        }
        let chain = self.chain.as_ref().expect("complete made it");
        let leaf = facts_of(&chain[0], &dir.join(CHAIN))?;
        let more: Vec<Name> =
            leaf.names.iter().filter(|name| !names.contains(name)).cloned().collect();
        if !more.is_empty() {
            change.notice.push(format!(
                "{}: is also good for {}, which the configuration has no more; it serves on, since people would have to trust another CA. If they shall, remove {shown}",
                dir.join(CHAIN).display(),
                listed(&more)
            ));
        }
        // Somebody else's CA, whose key is somewhere else.
        let is_due = renewal(&leaf, &ca).is_some_and(|at| now > at);
        if !is_ours(&ca.issuer) && !issuer && is_due {
            change.notice.push(format!(
                "{key_shown}: is missing, and the old certificate is due for renewal"
            ));
        }
        Ok(())
    }

    /// The first moment after `now` at which there may be something to do, unix seconds.
    pub fn next_moment(&self, dir: &Path, now: i64) -> Result<i64, Error> {
        let chain = self.chain.as_ref().expect("complete made it");
        let leaf = facts_of(&chain[0], &dir.join(CHAIN))?;
        let ca = self.ca_facts(dir)?.expect("complete made it");
        let mut moments = vec![leaf.not_before, leaf.not_after + 1, ca.not_after + 1];
        moments.extend(self.end(dir)?.map(|end| end - AHEAD));
        if self.issuer(dir)?.is_some() {
            moments.extend(renewal(&leaf, &ca).map(|at| at + 1));
        }
        Ok(moments.into_iter().filter(|&at| at > now).min().unwrap_or(now + DAY))
    }

    pub fn pair(&self, dir: &Path) -> Result<(certificate::Pair, Facts), Error> {
        let chain = self.chain.clone().expect("complete made it");
        let key = self.key.as_ref().expect("complete made it");
        let der = PrivateKeyDer::try_from(key.serialized_der().to_vec())
            .map_err(|why| rcgen::Error::RingKeyRejected(why.to_owned()))?;
        let pair =
            certificate::pair(chain, &der, &dir.join(CHAIN), &dir.join(KEY)).map_err(kept)?;
        Ok((pair, self.ca_facts(dir)?.expect("complete made it")))
    }
}

/// The server's certificate of a chain of ours, if it can serve for `names` at `now`.
fn usable(chain: &Chain, key: &KeyPair, names: &[Name], now: i64) -> Option<Facts> {
    let (leaf, ca) = (chain.first()?, chain.get(1)?);
    let facts = |der: &CertificateDer<'static>| facts_of(der, Path::new("")).ok();
    let (leaf_facts, ca_facts) = (facts(leaf)?, facts(ca)?);
    let good = is_ours(&ca_facts.issuer)
        && is_bound(ca)
        && matches(leaf, key)
        && names.iter().all(|name| leaf_facts.names.contains(name))
        && complaints::verify(&leaf_facts, &[], &ca_facts, now).is_ok();
    (good && leaf_facts.life().holds(now) && ca_facts.life().holds(now)).then_some(leaf_facts)
}

/// When a CA with its key issues anew: a third of the life before the end or 30 days, whichever is more. `None` if
/// a new one would not last longer.
fn renewal(leaf: &Facts, ca: &Facts) -> Option<i64> {
    let margin = ((leaf.not_after - leaf.not_before) / 3).max(30 * DAY);
    (leaf.not_after < ca.not_after).then_some(leaf.not_after - margin)
}

fn listed(names: &[Name]) -> String {
    names.iter().map(Name::to_string).collect::<Vec<_>>().join(", ")
}

pub(super) fn facts_of(der: &CertificateDer<'static>, path: &Path) -> Result<Facts, Error> {
    let mut one = certificate::facts_of(std::slice::from_ref(der), path).map_err(kept)?;
    Ok(one.remove(0))
}

pub(super) fn kept(file: certificate::Error) -> Error {
    Error::Kept { file }
}
