//! Commands on mailboxes: SELECT, EXAMINE, LIST, LSUB, STATUS, CREATE, DELETE, RENAME, SUBSCRIBE,
//! UNSUBSCRIBE and APPEND (RFC 3501 §6.3).
//!
//! Limits: a pattern of [`MAX_PATTERN`], since matching costs pattern times name.

use std::collections::BTreeMap;

use super::date::DateTime;
use super::mailbox::{self, Charge, DELIMITER, Flags, Message};
use super::parse::{self, Args};
use super::session::{Answer, Session};

const MAX_PATTERN: usize = 1000;

impl Session {
    pub(super) fn select(&mut self, mut args: Args, command: &str) -> Answer {
        args.space()?;
        let name = args.astring()?;
        args.end()?;
        self.view = None; // Also when the new one cannot be opened (RFC 3501 §6.3.1).
        let read_only = command == "EXAMINE";
        let store = &self.account.store;
        let (view, status) = store.open(&mailbox::name(&name)?, read_only)?;
        let flags = store.all_names();
        let permanent = if read_only { String::new() } else { format!("{flags} \\*") };
        let unseen = view.rows.iter().position(|row| !row.flags.contains(Flags::SEEN));
        self.wire.push(format!("* {} EXISTS\r\n* {} RECENT\r\n", status.messages, status.recent));
        self.wire.push(format!("* FLAGS ({flags})\r\n"));
        self.wire.push(format!("* OK [PERMANENTFLAGS ({permanent})] Flags that last\r\n"));
        if let Some(index) = unseen {
            self.wire.push(format!("* OK [UNSEEN {}] First unseen\r\n", index + 1));
        }
        self.wire.push(format!("* OK [UIDVALIDITY {}] UIDs valid\r\n", status.uid_validity));
        self.wire.push(format!("* OK [UIDNEXT {}] Next UID\r\n", status.uid_next));
        self.view = Some(view);
        let access = if read_only { "READ-ONLY" } else { "READ-WRITE" };
        Ok(format!("OK [{access}] {command} completed"))
    }

    pub(super) fn list(&mut self, mut args: Args, command: &str) -> Answer {
        args.space()?;
        let mut pattern = args.astring()?;
        args.space()?;
        let mailbox = args.list_mailbox()?;
        args.end()?;
        if mailbox.is_empty() && command == "LIST" {
            // Asks for the delimiter alone.
            self.wire.push("* LIST (\\Noselect) \"/\" \"\"\r\n");
            return Ok("OK LIST completed".to_owned());
        }
        pattern.extend_from_slice(&mailbox);
        for (name, attributes) in self.listed(&pattern, command == "LSUB") {
            let name = Self::quoted(&name);
            self.wire.push(format!("* {command} ({attributes}) \"{DELIMITER}\" {name}\r\n"));
        }
        Ok(format!("OK {command} completed"))
    }

    /// Names that match, with their attributes.
    fn listed(&self, pattern: &[u8], subscribed: bool) -> BTreeMap<String, String> {
        let store = &self.account.store;
        let mut found = BTreeMap::new();
        if !subscribed {
            for listed in store.list().into_iter().filter(|listed| matches(pattern, &listed.name)) {
                let children =
                    if listed.has_children { "\\HasChildren" } else { "\\HasNoChildren" };
                let special = listed.special_use.map(|special| format!(" {special}"));
                found.insert(listed.name, format!("{children}{}", special.unwrap_or_default()));
            }
            return found;
        }
        for name in store.subscribed() {
            if matches(pattern, &name) {
                found.insert(name, String::new());
                continue;
            }
            // `%` stops above a subscribed name: what it stopped at is shown (RFC 3501 §6.3.9).
            let above = name.match_indices(DELIMITER).map(|(at, _)| &name[..at]);
            for parent in above.filter(|parent| pattern.ends_with(b"%") && matches(pattern, parent))
            {
                found.entry(parent.to_owned()).or_insert_with(|| "\\Noselect".to_owned());
            }
        }
        found
    }

    pub(super) fn status(&mut self, mut args: Args) -> Answer {
        args.space()?;
        let name = args.astring()?;
        args.space()?;
        let items = args.list(Args::keyword)?;
        args.end()?;
        let name = mailbox::name(&name)?;
        let status = self.account.store.status(&name)?;
        let mut shown = Vec::new();
        for item in items {
            let value = match item.as_str() {
                "MESSAGES" => status.messages as u64,
                "RECENT" => status.recent as u64,
                "UNSEEN" => status.unseen as u64,
                "UIDNEXT" => u64::from(status.uid_next),
                "UIDVALIDITY" => u64::from(status.uid_validity),
                _ => return Err(parse::Error::Unknown.into()),
            };
            shown.push(format!("{item} {value}"));
        }
        let name = Self::quoted(&name);
        self.wire.push(format!("* STATUS {name} ({})\r\n", shown.join(" ")));
        Ok("OK STATUS completed".to_owned())
    }

    pub(super) fn manage(&mut self, mut args: Args, command: &str) -> Answer {
        args.space()?;
        let mut raw = args.astring()?;
        if command == "CREATE" && raw.ends_with(b"/") {
            raw.pop(); // The client means to make others below it (RFC 3501 §6.3.3).
        }
        let mut target = Vec::new();
        if command == "RENAME" {
            args.space()?;
            target = args.astring()?;
        }
        args.end()?;
        let name = mailbox::name(&raw)?;
        let store = &self.account.store;
        match command {
            "CREATE" => store.create(&name, None)?,
            "DELETE" => store.delete(&name)?,
            "RENAME" => store.rename(&name, &mailbox::name(&target)?)?,
            "SUBSCRIBE" => store.subscribe(&name)?,
            _ => store.unsubscribe(&name),
        }
        Ok(format!("OK {command} completed"))
    }

    pub(super) fn append(&mut self, mut args: Args, charge: Charge) -> Answer {
        args.space()?;
        let name = args.astring()?;
        args.space()?;
        let mut flags = Vec::new();
        if args.peek() == Some(b'(') {
            flags = args.list(Args::flag)?;
            args.space()?;
        }
        let mut date = None;
        if args.peek() == Some(b'"') {
            date = Some(args.date_time()?);
            args.space()?;
        }
        let data = args.literal()?;
        args.end()?;
        if data.contains(&0) {
            // Nobody could fetch it: a literal holds no NUL (RFC 3501 §9, CHAR8).
            return Ok("NO [CANNOT] A message holds no NUL".to_owned());
        }
        let name = mailbox::name(&name)?;
        let store = &self.account.store;
        let flags = store.flags(&flags)?;
        let date = date.unwrap_or_else(DateTime::now);
        let (validity, uid) = store.append(&name, flags, Message::new(data, date, charge))?;
        Ok(format!("OK [APPENDUID {validity} {uid}] APPEND completed"))
    }
}

/// LIST's wildcards: `*` is anything, `%` anything without the delimiter. INBOX matches in any case.
fn matches(pattern: &[u8], name: &str) -> bool {
    if name == "INBOX" && wildcards(&pattern.to_ascii_uppercase(), name) {
        return true;
    }
    wildcards(pattern, name)
}

fn wildcards(pattern: &[u8], name: &str) -> bool {
    if pattern.len() > MAX_PATTERN {
        return false;
    }
    // reached[n]: the pattern so far can have taken the first n octets of the name.
    let name = name.as_bytes();
    let mut reached = vec![false; name.len() + 1];
    reached[0] = true;
    for byte in pattern {
        match byte {
            b'*' | b'%' => {
                for at in 0..name.len() {
                    let passes = *byte == b'*' || name[at] != DELIMITER as u8;
                    reached[at + 1] |= reached[at] && passes;
                }
            }
            byte => {
                for at in (0..name.len()).rev() {
                    reached[at + 1] = reached[at] && name[at] == *byte;
                }
                reached[0] = false;
            }
        }
    }
    reached[name.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_list_says() {
        let table = [
            ("*", "a/b", true),
            ("%", "a/b", false),
            ("%", "a", true),
            ("%/%", "a/b", true),
            ("a*b", "a/x/b", true),
            ("a%b", "a/b", false),
            ("inbox", "INBOX", true),
            ("Inbo%", "INBOX", true),
            ("sent", "Sent", false),
            ("", "a", false),
            ("**%*", "abc", true),
        ];
        for (pattern, name, expected) in table {
            assert_eq!(matches(pattern.as_bytes(), name), expected, "{pattern} {name}");
        }
    }
}
