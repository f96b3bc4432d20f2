//! The mailboxes, shared by all sessions, and each session's view of the one that it has selected.
//!
//! In: changes under real UIDs. Out: a wake-up of every session, and for each the difference between its
//! [`View`] and the mailbox ([`Store::refresh`]). A session's message numbers are positions in its view,
//! which only a refresh changes: so they stay right however many others expunge, and a message that is
//! gone can be read until the client has been told (RFC 2180 §4.1).
//! Invariants: UIDs ascend and are never given twice; a UIDVALIDITY belongs to one mailbox for ever, and
//! moves with it when it is renamed; views and mailboxes are sorted by UID.
//! Limits: the constants below; what is over them is [`Error::OverQuota`] or [`Error::Limit`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

use super::date::DateTime;

/// Octets of all messages together, those that are being received included.
const MAX_BYTES: usize = 256 << 20;
const MAX_MESSAGES: usize = 20_000;
const MAX_MAILBOXES: usize = 500;
const MAX_NAME: usize = 255;
/// Bits of [`Flags`] that are left beside the system's.
const MAX_KEYWORDS: usize = 59;
const MAX_KEYWORD: usize = 64;

/// What a mailbox's parts are separated by.
pub const DELIMITER: char = '/';

/// Why a command is answered `NO`: the client asks for what cannot be.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("[NONEXISTENT] No such mailbox")]
    Missing,
    #[error("[TRYCREATE] No such mailbox")]
    MissingTarget,
    #[error("[ALREADYEXISTS] There is such a mailbox already")]
    Exists,
    #[error("[CANNOT] Impossible mailbox name")]
    Name,
    #[error("[CANNOT] INBOX stays")]
    Inbox,
    #[error("[HASCHILDREN] There are mailboxes below it")]
    Children,
    #[error("[OVERQUOTA] The server's memory for mail is full")]
    OverQuota,
    #[error("[LIMIT] Too many")]
    Limit,
    #[error("[TOOBIG] Longer than this server takes")]
    TooBig,
    #[error("[READ-ONLY] The mailbox is open for reading only")]
    ReadOnly,
}

type Result<T> = std::result::Result<T, Error>;

/// A share of [`MAX_BYTES`], given back when dropped.
#[derive(Debug)]
pub struct Charge {
    total: Arc<AtomicUsize>,
    bytes: usize,
}

impl Charge {
    /// Takes `bytes` more.
    pub fn grow(&mut self, bytes: usize) -> Result<()> {
        let fits = |total: usize| total.checked_add(bytes).filter(|total| *total <= MAX_BYTES);
        self.total
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits)
            .map_err(|_| Error::OverQuota)?;
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// What never changes about a message; copies share it.
#[derive(Debug)]
pub struct Message {
    pub data: Vec<u8>,
    pub date: DateTime,
    /// Held for as long as the octets are.
    _charge: Charge,
}

impl Message {
    /// `charge` has paid for `data`.
    pub fn new(data: Vec<u8>, date: DateTime, charge: Charge) -> Self {
        Self { data, date, _charge: charge }
    }
}

/// A set of flags. Keywords are bits too, named by a table that all mailboxes share.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Flags(u64);

const SYSTEM: [&str; 5] = ["\\Answered", "\\Flagged", "\\Deleted", "\\Seen", "\\Draft"];

impl Flags {
    pub const ANSWERED: Self = Self(1);
    pub const FLAGGED: Self = Self(1 << 1);
    pub const DELETED: Self = Self(1 << 2);
    pub const SEEN: Self = Self(1 << 3);
    pub const DRAFT: Self = Self(1 << 4);

    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

/// What STORE does with its flags.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Change {
    Replace,
    Add,
    Remove,
}

#[derive(Clone, Debug)]
struct Entry {
    uid: u32,
    flags: Flags,
    /// Grows with every change of the flags.
    changed: u64,
    /// No session has been told of it yet.
    recent: bool,
    message: Arc<Message>,
}

#[derive(Debug)]
struct Mailbox {
    uid_validity: u32,
    uid_next: u32,
    version: u64,
    special_use: Option<&'static str>,
    entries: Vec<Entry>,
}

impl Mailbox {
    fn entry(&mut self, uid: u32) -> Option<&mut Entry> {
        let at = self.entries.binary_search_by_key(&uid, |entry| entry.uid).ok()?;
        Some(&mut self.entries[at])
    }
}

struct Inner {
    mailboxes: BTreeMap<String, Mailbox>,
    subscribed: BTreeSet<String>,
    keywords: Vec<String>,
    next_validity: u32,
    version: u64,
    messages: usize,
}

/// Every mailbox of the server's one user.
pub struct Store {
    inner: Mutex<Inner>,
    changes: watch::Sender<u64>,
    bytes: Arc<AtomicUsize>,
}

/// A message as a session knows it.
#[derive(Clone, Debug)]
pub struct Row {
    pub uid: u32,
    pub flags: Flags,
    pub recent: bool,
    pub message: Arc<Message>,
    changed: u64,
}

/// The selected mailbox as its session knows it: message `n` is row `n - 1`.
#[derive(Debug)]
pub struct View {
    pub read_only: bool,
    pub rows: Vec<Row>,
    uid_validity: u32,
    uid_next: u32,
    version: u64,
    keywords: usize,
}

/// What a client has to be told, in the order in which it has to be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum News {
    Expunged(usize),
    Exists { exists: usize, recent: usize },
    Keywords,
    Flags { number: usize, uid: u32, flags: Flags, recent: bool },
}

/// A mailbox's numbers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Status {
    pub messages: usize,
    pub recent: usize,
    pub unseen: usize,
    pub uid_next: u32,
    pub uid_validity: u32,
}

/// What LIST shows of a mailbox.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Listed {
    pub name: String,
    pub has_children: bool,
    pub special_use: Option<&'static str>,
}

/// Where copies went: UIDVALIDITY, the UIDs copied and theirs.
#[derive(Debug, Default, Eq, PartialEq)]
pub struct Copied {
    pub uid_validity: u32,
    pub from: Vec<u32>,
    pub to: Vec<u32>,
}

impl Inner {
    fn bump(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    fn mailbox(&mut self, name: &str) -> Result<&mut Mailbox> {
        self.mailboxes.get_mut(name).ok_or(Error::Missing)
    }

    /// The mailbox that a view shows, unless it has been deleted.
    fn viewed(&mut self, view: &View) -> Option<&mut Mailbox> {
        self.mailboxes.values_mut().find(|mailbox| mailbox.uid_validity == view.uid_validity)
    }

    fn insert(&mut self, name: &str, special_use: Option<&'static str>) -> Result<()> {
        if self.mailboxes.len() >= MAX_MAILBOXES {
            return Err(Error::Limit);
        }
        self.next_validity = self.next_validity.wrapping_add(1).max(1);
        let version = self.bump();
        let uid_validity = self.next_validity;
        let mailbox =
            Mailbox { uid_validity, uid_next: 1, version, special_use, entries: Vec::new() };
        self.mailboxes.insert(name.to_owned(), mailbox);
        Ok(())
    }

    /// Makes what is missing above `name`.
    fn insert_parents(&mut self, name: &str) -> Result<()> {
        for (at, _) in name.match_indices(DELIMITER) {
            if !self.mailboxes.contains_key(&name[..at]) {
                self.insert(&name[..at], None)?;
            }
        }
        Ok(())
    }

    fn children(&self, name: &str) -> Vec<String> {
        let above = format!("{name}{DELIMITER}");
        let below = self.mailboxes.range(above.clone()..).map(|(name, _)| name);
        below.take_while(|name| name.starts_with(&above)).cloned().collect()
    }

    fn add(&mut self, target: &str, flags: Flags, message: Arc<Message>) -> Result<(u32, u32)> {
        let changed = self.bump();
        if self.messages >= MAX_MESSAGES {
            return Err(Error::OverQuota);
        }
        let mailbox = self.mailboxes.get_mut(target).ok_or(Error::MissingTarget)?;
        let uid = mailbox.uid_next;
        mailbox.uid_next = uid.checked_add(1).ok_or(Error::Limit)?;
        mailbox.version = changed;
        mailbox.entries.push(Entry { uid, flags, changed, recent: true, message });
        self.messages += 1;
        Ok((mailbox.uid_validity, uid))
    }

    fn remove(&mut self, view: &View, goes: impl Fn(&Entry) -> bool) {
        let version = self.bump();
        let Some(mailbox) = self.viewed(view) else { return };
        let before = mailbox.entries.len();
        mailbox.entries.retain(|entry| !goes(entry));
        let gone = before - mailbox.entries.len();
        mailbox.version = version;
        self.messages -= gone;
    }
}

impl Store {
    /// INBOX alone, empty.
    pub fn new() -> Self {
        // Mail does not outlive the process, so UIDs of an earlier one must not be believed.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut inner = Inner {
            mailboxes: BTreeMap::new(),
            subscribed: BTreeSet::new(),
            keywords: Vec::new(),
            next_validity: u32::try_from(now).unwrap_or(1),
            version: 0,
            messages: 0,
        };
        inner.insert("INBOX", None).expect("the first mailbox is within the limit");
        inner.subscribed.insert("INBOX".to_owned());
        Self { inner: Mutex::new(inner), changes: watch::Sender::new(0), bytes: Arc::default() }
    }

    /// Nothing under the lock leaves half a change behind, so a poisoned one is as good.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self, inner: MutexGuard<'_, Inner>) {
        let version = inner.version;
        drop(inner);
        self.changes.send_replace(version);
    }

    /// Changes whenever any mailbox does.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// A share of the memory for mail, empty at first.
    pub fn charge(&self) -> Charge {
        Charge { total: Arc::clone(&self.bytes), bytes: 0 }
    }

    pub fn create(&self, name: &str, special_use: Option<&'static str>) -> Result<()> {
        let mut inner = self.lock();
        if inner.mailboxes.contains_key(name) {
            return Err(Error::Exists);
        }
        inner.insert_parents(name)?;
        inner.insert(name, special_use)?;
        self.changed(inner);
        Ok(())
    }

    pub fn delete(&self, name: &str) -> Result<()> {
        let mut inner = self.lock();
        if name == "INBOX" {
            return Err(Error::Inbox);
        }
        inner.mailbox(name)?;
        if !inner.children(name).is_empty() {
            return Err(Error::Children);
        }
        let gone = inner.mailboxes.remove(name).map_or(0, |mailbox| mailbox.entries.len());
        inner.messages -= gone;
        inner.bump();
        self.changed(inner);
        Ok(())
    }

    /// Moves a mailbox and those below it. INBOX itself stays and is emptied (RFC 3501 §6.3.5).
    pub fn rename(&self, from: &str, to: &str) -> Result<()> {
        let mut inner = self.lock();
        inner.mailbox(from)?;
        let below = inner.children(from);
        let into_itself = to.strip_prefix(from).is_some_and(|rest| rest.starts_with(DELIMITER));
        if inner.mailboxes.contains_key(to) || !inner.children(to).is_empty() {
            return Err(Error::Exists);
        }
        let longest = below.iter().map(String::len).max().unwrap_or(0).saturating_sub(from.len());
        if (into_itself && from != "INBOX") || to.len() + longest > MAX_NAME {
            return Err(Error::Name);
        }
        inner.insert_parents(to)?;
        if from == "INBOX" {
            inner.insert(to, None)?;
            let version = inner.bump();
            let inbox = inner.mailbox(from)?;
            inbox.version = version;
            let mut entries = std::mem::take(&mut inbox.entries);
            let target = inner.mailbox(to)?;
            for entry in &mut entries {
                entry.uid = target.uid_next;
                target.uid_next += 1;
            }
            target.entries = entries;
        } else {
            for old in std::iter::once(from.to_owned()).chain(below) {
                if let Some(mailbox) = inner.mailboxes.remove(&old) {
                    inner.mailboxes.insert(format!("{to}{}", &old[from.len()..]), mailbox);
                }
            }
            inner.bump();
        }
        self.changed(inner);
        Ok(())
    }

    /// A name need not exist to be subscribed (RFC 3501 §6.3.6).
    pub fn subscribe(&self, name: &str) -> Result<()> {
        let subscribed = &mut self.lock().subscribed;
        if subscribed.len() >= MAX_MAILBOXES {
            return Err(Error::Limit);
        }
        subscribed.insert(name.to_owned());
        Ok(())
    }

    pub fn unsubscribe(&self, name: &str) {
        self.lock().subscribed.remove(name);
    }

    pub fn subscribed(&self) -> Vec<String> {
        self.lock().subscribed.iter().cloned().collect()
    }

    pub fn list(&self) -> Vec<Listed> {
        let inner = self.lock();
        let listed = inner.mailboxes.iter().map(|(name, mailbox)| Listed {
            name: name.clone(),
            has_children: !inner.children(name).is_empty(),
            special_use: mailbox.special_use,
        });
        listed.collect()
    }

    pub fn status(&self, name: &str) -> Result<Status> {
        let mut inner = self.lock();
        let mailbox = inner.mailbox(name)?;
        let count =
            |wanted: fn(&Entry) -> bool| mailbox.entries.iter().filter(|e| wanted(e)).count();
        Ok(Status {
            messages: mailbox.entries.len(),
            recent: count(|entry| entry.recent),
            unseen: count(|entry| !entry.flags.contains(Flags::SEEN)),
            uid_next: mailbox.uid_next,
            uid_validity: mailbox.uid_validity,
        })
    }

    /// Bits for names; unknown keywords get one, up to the limit. `\Recent` is not for clients to set.
    pub fn flags<S: AsRef<str>>(&self, names: &[S]) -> Result<Flags> {
        let mut inner = self.lock();
        let mut flags = Flags::default();
        for name in names.iter().map(AsRef::as_ref) {
            if let Some(bit) = SYSTEM.iter().position(|known| known.eq_ignore_ascii_case(name)) {
                flags = flags.with(Flags(1 << bit));
            } else if !name.starts_with('\\') {
                let known =
                    inner.keywords.iter().position(|known| known.eq_ignore_ascii_case(name));
                let bit = match known {
                    Some(bit) => bit,
                    None if inner.keywords.len() < MAX_KEYWORDS && name.len() <= MAX_KEYWORD => {
                        inner.keywords.push(name.to_owned());
                        inner.keywords.len() - 1
                    }
                    None => return Err(Error::Limit),
                };
                flags = flags.with(Flags(1 << (SYSTEM.len() + bit)));
            }
        }
        Ok(flags)
    }

    /// The bit of a keyword that exists; a search must not make new ones.
    pub fn keyword(&self, name: &str) -> Option<Flags> {
        let inner = self.lock();
        let bit = inner.keywords.iter().position(|known| known.eq_ignore_ascii_case(name))?;
        Some(Flags(1 << (SYSTEM.len() + bit)))
    }

    /// `\Seen \Recent work`, without parentheses.
    pub fn names(&self, flags: Flags, recent: bool) -> String {
        let inner = self.lock();
        let known = SYSTEM.iter().copied().chain(inner.keywords.iter().map(String::as_str));
        let set =
            known.enumerate().filter(|(bit, _)| flags.0 >> bit & 1 == 1).map(|(_, name)| name);
        set.chain(recent.then_some("\\Recent")).collect::<Vec<_>>().join(" ")
    }

    /// Every flag that a message may have.
    pub fn all_names(&self) -> String {
        self.names(Flags(u64::MAX), false)
    }

    /// Adds a message; returns UIDVALIDITY and UID.
    pub fn append(&self, name: &str, flags: Flags, message: Message) -> Result<(u32, u32)> {
        let mut inner = self.lock();
        let added = inner.add(name, flags, Arc::new(message))?;
        self.changed(inner);
        Ok(added)
    }

    /// Selects a mailbox. Unless `read_only`, its recent messages become this session's.
    pub fn open(&self, name: &str, read_only: bool) -> Result<(View, Status)> {
        let status = self.status(name)?;
        let uid_validity = status.uid_validity;
        let mut view = View {
            read_only,
            rows: Vec::new(),
            uid_validity,
            uid_next: 1,
            version: 0,
            keywords: 0,
        };
        self.refresh(&mut view, true);
        // Between the two calls mail may have come; what is reported is what the view holds.
        let recent = view.rows.iter().filter(|row| row.recent).count();
        let unseen = view.rows.iter().filter(|row| !row.flags.contains(Flags::SEEN)).count();
        let (messages, uid_next) = (view.rows.len(), view.uid_next);
        Ok((view, Status { messages, recent, unseen, uid_next, uid_validity }))
    }

    /// Brings a view up to date. Without `expunge` the messages that are gone stay in it for now, because
    /// message numbers must not move during FETCH, STORE and SEARCH (RFC 3501 §7.4.1).
    pub fn refresh(&self, view: &mut View, expunge: bool) -> Vec<News> {
        let mut inner = self.lock();
        let mut news = Vec::new();
        let keywords = inner.keywords.len();
        let Some(mailbox) = inner.viewed(view) else {
            if expunge {
                // Deleted by another session: to this one, all of its messages are gone.
                news.extend(view.rows.drain(..).map(|_| News::Expunged(1)));
            }
            return news;
        };
        if mailbox.version == view.version {
            return news;
        }
        let mut flag_news = Vec::new();
        let (mut index, mut gone, mut behind) = (0, 0, false);
        let mut at = 0;
        view.rows.retain_mut(|row| {
            index += 1;
            while mailbox.entries.get(at).is_some_and(|entry| entry.uid < row.uid) {
                at += 1;
            }
            let Some(entry) = mailbox.entries.get(at).filter(|entry| entry.uid == row.uid) else {
                if expunge {
                    news.push(News::Expunged(index - gone));
                    gone += 1;
                }
                behind = true;
                return !expunge;
            };
            if entry.changed != row.changed {
                (row.changed, row.flags) = (entry.changed, entry.flags);
                let (uid, flags, recent) = (row.uid, row.flags, row.recent);
                flag_news.push(News::Flags { number: index - gone, uid, flags, recent });
            }
            true
        });
        let first_new = mailbox.entries.partition_point(|entry| entry.uid < view.uid_next);
        for entry in &mut mailbox.entries[first_new..] {
            let recent = entry.recent;
            entry.recent &= view.read_only;
            let Entry { uid, flags, changed, .. } = *entry;
            view.rows.push(Row {
                uid,
                flags,
                recent,
                changed,
                message: Arc::clone(&entry.message),
            });
        }
        if first_new < mailbox.entries.len() {
            let recent = view.rows.iter().filter(|row| row.recent).count();
            news.push(News::Exists { exists: view.rows.len(), recent });
        }
        view.uid_next = mailbox.uid_next;
        if expunge || !behind {
            view.version = mailbox.version;
        }
        if keywords != view.keywords && !flag_news.is_empty() {
            news.push(News::Keywords);
        }
        view.keywords = keywords;
        news.extend(flag_news);
        news
    }

    /// Changes the flags of the rows at `indexes`, and of the view with them, so that no refresh reports
    /// the change to the session that made it. Returns whether anything changed.
    pub fn change(&self, view: &mut View, indexes: &[usize], change: Change, flags: Flags) -> bool {
        let mut inner = self.lock();
        let version = inner.bump();
        let mut any = false;
        let Some(mailbox) = inner.viewed(view) else { return false };
        let seen_all = mailbox.version == view.version;
        for index in indexes {
            let row = &mut view.rows[*index];
            let Some(entry) = mailbox.entry(row.uid) else { continue };
            let after = match change {
                Change::Replace => flags,
                Change::Add => entry.flags.with(flags),
                Change::Remove => entry.flags.without(flags),
            };
            if after != entry.flags {
                (entry.flags, entry.changed) = (after, version);
                any = true;
            }
            (row.flags, row.changed) = (entry.flags, entry.changed);
        }
        if any {
            mailbox.version = version;
            if seen_all {
                view.version = version;
            }
            self.changed(inner);
        }
        any
    }

    /// Copies the rows at `indexes` to the end of `target`; with `remove` they go from here as well. All
    /// or nothing (RFC 3501 §6.4.7).
    pub fn copy(
        &self,
        view: &View,
        indexes: &[usize],
        target: &str,
        remove: bool,
    ) -> Result<Copied> {
        let mut inner = self.lock();
        let uid_validity = inner.mailboxes.get(target).ok_or(Error::MissingTarget)?.uid_validity;
        if inner.messages + indexes.len() > MAX_MESSAGES {
            return Err(Error::OverQuota);
        }
        let mut copied = Copied { uid_validity, ..Copied::default() };
        for row in indexes.iter().map(|index| &view.rows[*index]) {
            let entry = inner.viewed(view).and_then(|mailbox| mailbox.entry(row.uid)).cloned();
            if let Some(Entry { flags, message, .. }) = entry {
                copied.to.push(inner.add(target, flags, message)?.1);
                copied.from.push(row.uid);
            }
        }
        if remove {
            inner.remove(view, |entry| copied.from.binary_search(&entry.uid).is_ok());
        }
        self.changed(inner);
        Ok(copied)
    }

    /// Removes what is marked `\Deleted`, of the UIDs given if any are.
    pub fn expunge(&self, view: &View, uids: Option<&[(u32, u32)]>) {
        let named = |uid| uids.is_none_or(|ranges| in_ranges(ranges, uid));
        let mut inner = self.lock();
        inner.remove(view, |entry| entry.flags.contains(Flags::DELETED) && named(entry.uid));
        self.changed(inner);
    }
}

/// Whether a number is in one of the ranges, which ascend and do not overlap.
pub fn in_ranges(ranges: &[(u32, u32)], number: u32) -> bool {
    let after = ranges.partition_point(|(first, _)| *first <= number);
    after > 0 && ranges[after - 1].1 >= number
}

/// A mailbox name that can be: printable ASCII (others come in modified UTF-7, RFC 3501 §5.1.3), no
/// wildcard, no empty part. INBOX in any case is one mailbox.
pub fn name(raw: &[u8]) -> Result<String> {
    let name = std::str::from_utf8(raw).map_err(|_| Error::Name)?;
    let printable = name.bytes().all(|b| (b' '..=b'~').contains(&b) && !b"*%\"\\".contains(&b));
    if !printable || name.len() > MAX_NAME || name.split(DELIMITER).any(str::is_empty) {
        return Err(Error::Name);
    }
    let (first, rest) = name.split_at(name.find(DELIMITER).unwrap_or(name.len()));
    Ok(if first.eq_ignore_ascii_case("INBOX") { format!("INBOX{rest}") } else { name.to_owned() })
}

#[cfg(test)]
mod tests;
