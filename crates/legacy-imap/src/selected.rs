//! Commands on the messages of the selected mailbox: CHECK, CLOSE, UNSELECT, EXPUNGE, SEARCH, FETCH,
//! STORE, COPY, MOVE and their UID forms (RFC 3501 §6.4, RFC 4315, RFC 6851).
//!
//! In: message numbers or UIDs as the session's view has them. A number beyond the view is `BAD`, a UID
//! that does not exist is passed over (RFC 3501 §6.4.8).

use super::fetch::{self, Item};
use super::mailbox::{self, Change, Copied, Flags, View};
use super::parse::{Args, Error, Set};
use super::search::{self, Candidate};
use super::session::{Answer, Failure, Session, done};

/// Messages searched before other sessions get their turn.
const SEARCH_BATCH: usize = 16;

impl Session {
    pub(super) async fn selected(&mut self, command: &str, mut args: Args) -> Answer {
        if self.view.is_none() {
            return Ok("BAD Unknown, or only with a mailbox selected".to_owned());
        }
        match command {
            "CHECK" => done(args, command),
            "CLOSE" | "UNSELECT" => self.close(args, command),
            "EXPUNGE" => self.expunge(args, false),
            "UID" => {
                args.space()?;
                match args.keyword()?.as_str() {
                    "EXPUNGE" => self.expunge(args, true),
                    command => self.on_messages(command, args, true).await,
                }
            }
            command => self.on_messages(command, args, false).await,
        }
    }

    async fn on_messages(&mut self, command: &str, args: Args, by_uid: bool) -> Answer {
        match command {
            "FETCH" => self.fetch(args, by_uid).await,
            "STORE" => self.store(args, by_uid).await,
            "SEARCH" => self.search(args, by_uid).await,
            "COPY" | "MOVE" => self.copy(args, by_uid, command),
            _ => Ok("BAD Unknown command".to_owned()),
        }
    }

    /// The view, which `selected` has made sure of.
    fn viewed(&mut self) -> Result<&mut View, Failure> {
        self.view.as_mut().ok_or(Failure::No(mailbox::Error::Missing))
    }

    fn writable(&mut self) -> Result<&mut View, Failure> {
        let view = self.viewed()?;
        if view.read_only { Err(mailbox::Error::ReadOnly.into()) } else { Ok(view) }
    }

    fn close(&mut self, mut args: Args, command: &str) -> Answer {
        args.end()?;
        if let Some(view) = self.view.take()
            && command == "CLOSE"
            && !view.read_only
        {
            self.account.store.expunge(&view, None);
        }
        Ok(format!("OK {command} completed"))
    }

    fn expunge(&mut self, mut args: Args, by_uid: bool) -> Answer {
        let mut set = None;
        if by_uid {
            args.space()?;
            set = Some(args.set()?);
        }
        args.end()?;
        let view = self.writable()?;
        let largest = view.rows.last().map_or(0, |row| row.uid);
        let uids = set.map(|set| set.ranges(largest));
        let account = std::sync::Arc::clone(&self.account);
        account.store.expunge(self.viewed()?, uids.as_deref());
        // What was expunged is told before the tagged answer, as after every command.
        Ok("OK EXPUNGE completed".to_owned())
    }

    /// Rows of the view that a set names, ascending.
    fn indexes(&mut self, set: &Set, by_uid: bool) -> Result<Vec<usize>, Failure> {
        let view = self.viewed()?;
        let mut indexes = Vec::new();
        if by_uid {
            let largest = view.rows.last().map_or(0, |row| row.uid);
            for (first, last) in set.ranges(largest) {
                let start = view.rows.partition_point(|row| row.uid < first);
                let end = view.rows.partition_point(|row| row.uid <= last);
                indexes.extend(start..end);
            }
            return Ok(indexes);
        }
        let count = u32::try_from(view.rows.len()).unwrap_or(u32::MAX);
        if !set.exists(count) {
            return Err(Error::Range.into());
        }
        for (first, last) in set.ranges(count) {
            // In an empty mailbox `1:*` names nobody.
            indexes.extend((first.max(1)..=last.min(count)).map(|number| number as usize - 1));
        }
        Ok(indexes)
    }

    async fn fetch(&mut self, mut args: Args, by_uid: bool) -> Answer {
        args.space()?;
        let set = args.set()?;
        args.space()?;
        let mut items = fetch::parse(&mut args)?;
        args.end()?;
        if by_uid && !items.contains(&Item::Uid) {
            items.insert(0, Item::Uid);
        }
        let reads = items.iter().any(|i| matches!(i, Item::Section(section) if section.sets_seen));
        let mut with_flags = items.clone();
        if !items.contains(&Item::Flags) {
            with_flags.push(Item::Flags);
        }
        for index in self.indexes(&set, by_uid)? {
            let account = std::sync::Arc::clone(&self.account);
            let view = self.viewed()?;
            let marks = reads && !view.read_only && !view.rows[index].flags.contains(Flags::SEEN);
            let marked = marks && account.store.change(view, &[index], Change::Add, Flags::SEEN);
            let row = view.rows[index].clone();
            let flags = account.store.names(row.flags, row.recent);
            let items = if marked { &with_flags } else { &items };
            fetch::respond(&mut self.wire, index + 1, &row, &flags, items).await?;
        }
        Ok("OK FETCH completed".to_owned())
    }

    async fn store(&mut self, mut args: Args, by_uid: bool) -> Answer {
        args.space()?;
        let set = args.set()?;
        args.space()?;
        let change = match args.peek() {
            Some(b'+') => Change::Add,
            Some(b'-') => Change::Remove,
            _ => Change::Replace,
        };
        let _sign = args.eat(b'+') || args.eat(b'-');
        let item = args.keyword()?;
        let silent = item == "FLAGS.SILENT";
        if !silent && item != "FLAGS" {
            return Err(Error::Unknown.into());
        }
        args.space()?;
        let names = args.flags()?;
        args.end()?;
        self.writable()?;
        let indexes = self.indexes(&set, by_uid)?;
        let account = std::sync::Arc::clone(&self.account);
        let flags = account.store.flags(&names)?;
        let view = self.viewed()?;
        account.store.change(view, &indexes, change, flags);
        if !silent {
            let items: &[Item] = if by_uid { &[Item::Uid, Item::Flags] } else { &[Item::Flags] };
            for index in indexes {
                let row = self.viewed()?.rows[index].clone();
                let flags = account.store.names(row.flags, row.recent);
                fetch::respond(&mut self.wire, index + 1, &row, &flags, items).await?;
            }
        }
        Ok("OK STORE completed".to_owned())
    }

    async fn search(&mut self, mut args: Args, by_uid: bool) -> Answer {
        args.space()?;
        if !search::charset(&mut args)? {
            return Ok("NO [BADCHARSET (US-ASCII UTF-8)] Unknown charset".to_owned());
        }
        let key = search::parse(&mut args, &self.account.store)?;
        let view = self.viewed()?;
        let count = u32::try_from(view.rows.len()).unwrap_or(u32::MAX);
        let largest = (count, view.rows.last().map_or(0, |row| row.uid));
        let mut found = String::from("* SEARCH");
        for (index, number) in (1..=count).enumerate() {
            let row = &view.rows[index];
            if Candidate::new(row, number, largest).matches(&key) {
                let shown = if by_uid { row.uid } else { number };
                found.push_str(&format!(" {shown}"));
            }
            if index.is_multiple_of(SEARCH_BATCH) {
                tokio::task::yield_now().await;
            }
        }
        self.wire.push(found + "\r\n");
        Ok("OK SEARCH completed".to_owned())
    }

    fn copy(&mut self, mut args: Args, by_uid: bool, command: &str) -> Answer {
        args.space()?;
        let set = args.set()?;
        args.space()?;
        let target = args.astring()?;
        args.end()?;
        let moves = command == "MOVE";
        if moves {
            self.writable()?;
        }
        let indexes = self.indexes(&set, by_uid)?;
        let target = mailbox::name(&target)?;
        let account = std::sync::Arc::clone(&self.account);
        let copied = account.store.copy(self.viewed()?, &indexes, &target, moves)?;
        let code = copy_uid(&copied);
        if moves && !code.is_empty() {
            // Before the EXPUNGEs that follow (RFC 6851 §4.3).
            self.wire.push(format!("* OK {code}Moved\r\n"));
            return Ok("OK MOVE completed".to_owned());
        }
        Ok(format!("OK {code}{command} completed"))
    }
}

/// `[COPYUID …] `, or nothing where nothing was copied.
fn copy_uid(copied: &Copied) -> String {
    if copied.from.is_empty() {
        return String::new();
    }
    let (from, to) = (compact(&copied.from), compact(&copied.to));
    format!("[COPYUID {} {from} {to}] ", copied.uid_validity)
}

/// Ascending numbers as a set: `1:3,7`.
fn compact(numbers: &[u32]) -> String {
    let runs = numbers.chunk_by(|before, after| before + 1 == *after);
    let shown = runs.map(|run| match run {
        [first, .., last] => format!("{first}:{last}"),
        run => run.first().map_or_else(String::new, u32::to_string),
    });
    shown.collect::<Vec<_>>().join(",")
}
