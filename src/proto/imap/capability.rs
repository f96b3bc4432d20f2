//! What is hidden, added and passed, wherever a capability list stands.
//!
//! In: a list (`IMAP4rev1 IDLE …`), or a whole response line without its CRLF. Out: the same with the
//! words gone that are wrong behind a TLS terminator, the operator's `hide` and `add` applied, and every
//! other word in its order, octet for octet.
//!
//! Always removed, for they cannot work or would escape the proxy: `STARTTLS` (TLS is already on, RFC 9051
//! §6.2.1), every `AUTH=…-PLUS` (channel binding is to our TLS, not to the backend's, RFC 5802 §6),
//! `LOGIN-REFERRALS` (sends the client elsewhere, RFC 2221), `COMPRESS=…` (RFC 4978) and `UNAUTHENTICATE`
//! (RFC 8437), `X-UNAUTHENTICATE` as Oracle calls it.
//!
//! Removed unless the operator adds them: `AUTH=EXTERNAL` (by which the server would take every
//! client for the proxy) and `MAILBOX-REFERRALS` (by which it sends clients to other servers, in
//! clear, RFC 2193).
//!
//! Nothing else is: other extensions only add commands, and after login commands stay inside the
//! relay. [Before login](before_login) the proxy answers by itself, so the words of commands that
//! it does not know are left out there. Names that do not exist on the wire as capabilities
//! (Dovecot's `x-multiplex` is a field of `ID`) are no matter of this list.
//!
//! `LITERAL+` and `LITERAL-` must never stand in one list (RFC 7888 §5). Where both would, `LITERAL-` stays:
//! it is the narrower promise, and a client that keeps to 4096 octets is understood by a server of either kind.
//!
//! [Before TLS](before_tls) the list is another one: it invites to STARTTLS and to nothing else.
//!
//! Invariant: a line that needs no change is never rebuilt, so its odd spacing survives.
//! Not here: how a list gets learned (`login`), and where lines begin and end (`line`, `follow`).

use std::ops::Range;

use super::command::is_mechanism;

/// What to do with a capability list. Made once from the settings and shared by all sessions.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Repair {
    hide: Vec<Box<[u8]>>,
    add: Vec<Box<[u8]>>,
}

impl Repair {
    /// `hide` and `add` are capability names in any case. A name in both is added: what the operator
    /// promises stands, whatever the backend says. Names that are always removed cannot be added.
    #[must_use]
    pub fn new(hide: &[String], add: &[String]) -> Self {
        let bytes = |name: &String| Box::from(name.as_bytes());
        Self {
            hide: hide.iter().map(bytes).collect(),
            add: add.iter().filter(|name| !always_removed(name.as_bytes())).map(bytes).collect(),
        }
    }

    /// Appends the repaired `list` to `out`, its words separated by single spaces.
    pub fn words(&self, list: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        for word in self.kept(list).chain(self.added(list)) {
            if out.len() > start {
                out.push(b' ');
            }
            out.extend_from_slice(word);
        }
    }

    /// The line to send in place of `line`, a whole response without CRLF. `None`: it stays as it is,
    /// because it carries no list (see [`list_of`]) or one that is fine.
    #[must_use]
    pub fn line(&self, line: &[u8]) -> Option<Vec<u8>> {
        let place = place_of(line)?;
        let list = &line[place.clone()];
        if self.kept(list).count() == split(list).count() && self.added(list).next().is_none() {
            return None;
        }
        let mut out = Vec::with_capacity(line.len() + 64);
        out.extend_from_slice(&line[..place.start]);
        if !out.ends_with(b" ") {
            out.push(b' '); // a bare `* CAPABILITY`
        }
        self.words(list, &mut out);
        out.extend_from_slice(&line[place.end..]);
        Some(out)
    }

    fn kept<'a>(&'a self, list: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        let minus = self.promises_minus(list);
        split(list).filter(move |word| {
            let unwanted = contains(&self.hide, word) || removed_unless_added(word);
            let hidden = unwanted && !contains(&self.add, word);
            let one_too_many = minus && word.eq_ignore_ascii_case(b"LITERAL+");
            !(always_removed(word) || hidden || one_too_many)
        })
    }

    fn added<'a>(&'a self, list: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        let minus = self.promises_minus(list);
        self.add.iter().map(AsRef::as_ref).filter(move |word| {
            let one_too_many = minus && word.eq_ignore_ascii_case(b"LITERAL+");
            !(has(list, word) || one_too_many)
        })
    }

    /// Will `LITERAL-` stand in the repaired list, from either side? Then `LITERAL+` may not.
    fn promises_minus(&self, list: &[u8]) -> bool {
        let passes = has(list, b"LITERAL-") && !contains(&self.hide, b"LITERAL-");
        passes || contains(&self.add, b"LITERAL-")
    }
}

/// Appends the repaired `list` as it stands before login. There the client talks to the proxy
/// alone, so what stands for a command that the proxy does not carry is left out. After login it
/// passes.
pub fn before_login(list: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    for word in split(list).filter(|word| !only_after_login(word)) {
        if out.len() > start {
            out.push(b' ');
        }
        out.extend_from_slice(word);
    }
}

/// Words that stand for a command before login which the proxy does not carry, and mechanisms whose
/// names are none, so that AUTHENTICATE would refuse them.
///
/// Of the names in IANA's registry only LANGUAGE is such a command (RFC 5255 §3.2), besides
/// STARTTLS, ID, AUTH= and SASL-IR. The others act after login or are no commands.
pub fn only_after_login(word: &[u8]) -> bool {
    const COMMANDS: [&str; 7] = [
        "LANGUAGE",
        "CLIENTID", // draft-yu-imap-client-id: a token of the device
        "XCLIENTID",
        "X-CLIENTID",
        // Exchange's front end says these to its back end.
        "BACKENDAUTHENTICATE",
        "CLIENTACCESSRULES",
        "CLIENTNETWORKPRESENCELOCATION",
    ];
    let mechanism =
        word.split_at_checked(5).filter(|(head, _)| head.eq_ignore_ascii_case(b"AUTH="));
    mechanism.is_some_and(|(_, name)| !is_mechanism(name))
        || COMMANDS.iter().any(|command| word.eq_ignore_ascii_case(command.as_bytes()))
}

/// Appends the repaired `list` as it stands before TLS, where only STARTTLS leads to a login (RFC 9051 §6.2.1,
/// §11.7): without mechanisms, with `STARTTLS LOGINDISABLED`.
pub fn before_tls(list: &[u8], out: &mut Vec<u8>) {
    let login = |word: &&[u8]| {
        let mechanism = word.get(..5).is_some_and(|head| head.eq_ignore_ascii_case(b"AUTH="));
        let others = [&b"SASL-IR"[..], b"LOGINDISABLED", b"STARTTLS"];
        mechanism || others.iter().any(|other| word.eq_ignore_ascii_case(other))
    };
    for word in split(list).filter(|word| !login(word)) {
        out.extend_from_slice(word);
        out.push(b' ');
    }
    out.extend_from_slice(b"STARTTLS LOGINDISABLED");
}

/// The capability words inside a response line without CRLF: those of `* CAPABILITY …`, or of a
/// `[CAPABILITY …]` that follows a status (`OK`, `NO`, `BAD`, `BYE`, `PREAUTH`), tagged or not.
#[must_use]
pub fn list_of(line: &[u8]) -> Option<&[u8]> {
    place_of(line).map(|place| &line[place])
}

/// Where in `line` the list stands.
fn place_of(line: &[u8]) -> Option<Range<usize>> {
    let (tag, rest) = word(line);
    let (name, rest) = word(rest);
    let rest = if tag == b"*" && name.eq_ignore_ascii_case(b"CAPABILITY") {
        rest
    } else if !tag.is_empty() && !tag.starts_with(b"+") && is_status(name) {
        let (code, rest) = word(rest);
        let end = memchr::memchr(b']', rest)?;
        code.eq_ignore_ascii_case(b"[CAPABILITY").then_some(rest)?;
        let start = line.len() - rest.len();
        return Some(trimmed(line, start..start + end));
    } else {
        return None;
    };
    Some(trimmed(line, line.len() - rest.len()..line.len()))
}

/// `place` without the spaces at its ends.
fn trimmed(line: &[u8], place: Range<usize>) -> Range<usize> {
    let list = line[place.clone()].trim_ascii_end();
    let end = place.start + list.len();
    end - list.trim_ascii_start().len()..end
}

/// Is `wanted` in the `list`? In any case.
#[must_use]
pub fn has(list: &[u8], wanted: &[u8]) -> bool {
    split(list).any(|word| word.eq_ignore_ascii_case(wanted))
}

/// The words that may start a `resp-cond-state`, `-bye` or `-auth` (RFC 9051 §9).
pub(super) fn is_status(word: &[u8]) -> bool {
    [&b"OK"[..], b"NO", b"BAD", b"BYE", b"PREAUTH"].iter().any(|s| word.eq_ignore_ascii_case(s))
}

/// What can't work behind a terminator, or would escape it: no list keeps it, whatever an operator adds.
pub fn always_removed(word: &[u8]) -> bool {
    let starts = |head: &[u8]| word.get(..head.len()).is_some_and(|w| w.eq_ignore_ascii_case(head));
    let ends = |tail: &[u8]| word.last_chunk::<5>().is_some_and(|w| w.eq_ignore_ascii_case(tail));
    word.eq_ignore_ascii_case(b"STARTTLS")
        || word.eq_ignore_ascii_case(b"LOGIN-REFERRALS")
        || word.eq_ignore_ascii_case(b"UNAUTHENTICATE")
        || word.eq_ignore_ascii_case(b"X-UNAUTHENTICATE")
        || word.eq_ignore_ascii_case(b"COMPRESS")
        || starts(b"COMPRESS=")
        || (starts(b"AUTH=") && ends(b"-PLUS"))
}

/// What works behind a proxy only where the operator knows that it does.
pub fn removed_unless_added(word: &[u8]) -> bool {
    word.eq_ignore_ascii_case(b"AUTH=EXTERNAL") || word.eq_ignore_ascii_case(b"MAILBOX-REFERRALS")
}

fn contains(names: &[Box<[u8]>], word: &[u8]) -> bool {
    names.iter().any(|name| name.eq_ignore_ascii_case(word))
}

pub(crate) fn split(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|&byte| byte == b' ').filter(|word| !word.is_empty())
}

/// The first word and what follows it. Spaces before the word are skipped, as lenient clients do.
fn word(line: &[u8]) -> (&[u8], &[u8]) {
    let start = line.iter().position(|&byte| byte != b' ').unwrap_or(line.len());
    let line = &line[start..];
    line.split_at(memchr::memchr(b' ', line).unwrap_or(line.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn repair(hide: &[&str], add: &[&str]) -> Repair {
        let owned = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        Repair::new(&owned(hide), &owned(add))
    }

    fn words(repair: &Repair, list: &str) -> String {
        let mut out = Vec::new();
        repair.words(list.as_bytes(), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn words_that_escape_the_proxy_go_and_all_others_stay_in_order() {
        let none = repair(&[], &[]);
        for (list, expected) in [
            ("IMAP4rev1 STARTTLS LOGINDISABLED", "IMAP4rev1 LOGINDISABLED"),
            ("imap4rev1 StartTLS idle", "imap4rev1 idle"),
            (
                "AUTH=SCRAM-SHA-1 AUTH=SCRAM-SHA-1-PLUS AUTH=X-plus auth=scram-sha-256-Plus",
                "AUTH=SCRAM-SHA-1",
            ),
            ("COMPRESS=DEFLATE COMPRESS=ZSTD compress COMPRESSION", "COMPRESSION"),
            ("LOGIN-REFERRALS mailbox-referrals REFERRALS", "REFERRALS"),
            ("UNAUTHENTICATE X-UNAUTHENTICATE XUM1", "XUM1"),
            ("AUTH=PLAIN auth=External AUTH=EXTERNALS", "AUTH=PLAIN AUTH=EXTERNALS"),
            // Commands before login are left out there and nowhere else.
            ("LANGUAGE CLIENTID", "LANGUAGE CLIENTID"),
            ("  A   B ", "A B"),
            ("", ""),
            ("STARTTLS", ""),
            ("LITERAL+ X", "LITERAL+ X"),
            ("LITERAL- X", "LITERAL- X"),
            ("LITERAL+ X LITERAL-", "X LITERAL-"),
            ("literal- literal+", "literal-"),
            ("AUTH=-PLUS PLUS -PLUS AUTH=PLUS", "PLUS -PLUS AUTH=PLUS"),
        ] {
            assert_eq!(words(&none, list), expected, "{list}");
        }
    }

    #[test]
    fn the_operator_hides_then_adds() {
        for (hide, add, list, expected) in [
            (&["IDLE"][..], &[][..], "A idle B", "A B"),
            (&["LOGINDISABLED"], &["AUTH=PLAIN"], "A LOGINDISABLED", "A AUTH=PLAIN"),
            (&[], &["IDLE", "X"], "idle A", "idle A X"),
            (&["IDLE"], &["IDLE"], "A", "A IDLE"),
            (&["IDLE"], &["IDLE"], "IDLE A", "IDLE A"),
            (&[], &["STARTTLS", "AUTH=A-PLUS", "COMPRESS=DEFLATE"], "A", "A"),
            (&[], &["LITERAL+"], "A LITERAL-", "A LITERAL-"),
            (&[], &["LITERAL-"], "LITERAL+ A", "A LITERAL-"),
            (&["LITERAL-"], &[], "LITERAL+ LITERAL-", "LITERAL+"),
            (&["LITERAL-"], &["LITERAL+"], "A LITERAL-", "A LITERAL+"),
            (&[], &["LITERAL+", "LITERAL-"], "A", "A LITERAL-"),
            (&[], &["X"], "", "X"),
            (&[], &["AUTH=EXTERNAL"], "auth=external A", "auth=external A"),
            (&[], &["MAILBOX-REFERRALS"], "A", "A MAILBOX-REFERRALS"),
        ] {
            assert_eq!(words(&repair(hide, add), list), expected, "{hide:?} {add:?} {list}");
        }
    }

    /// IANA's registry of IMAP capabilities, with what vendors have added.
    #[test]
    fn before_login_a_word_that_stands_for_a_command_is_carried_or_not_shown() {
        let carried = "IMAP4rev1 IMAP4rev2 ID SASL-IR LOGINDISABLED LITERAL+ AUTH=PLAIN AUTH=CRAM-MD5 \
            AUTH=XOAUTH2 AUTH=PLAIN-CLIENTTOKEN AUTH=ECDSA-NIST256P-CHALLENGE \
            AUTH=XGWTRUSTEDAPP";
        let after_login = "ACL ANNOTATE-EXPERIMENT-1 APPENDLIMIT=9 BINARY CATENATE CHILDREN CONDSTORE \
            CONTEXT=SEARCH CONTEXT=SORT CONVERT CREATE-SPECIAL-USE ENABLE ESEARCH ESORT \
            FILTERS I18NLEVEL=1 I18NLEVEL=2 IDLE IMAPSIEVE=x INPROGRESS JMAPACCESS \
            LIST-EXTENDED LIST-METADATA LIST-MYRIGHTS LIST-STATUS MESSAGELIMIT=9 METADATA \
            METADATA-SERVER MOVE MULTIAPPEND MULTISEARCH NAMESPACE NOTIFY OBJECTID PARTIAL \
            PREVIEW QRESYNC QUOTA QUOTA=RES-STORAGE QUOTASET REPLACE RIGHTS=kxte SAVEDATE \
            SAVELIMIT=9 SEARCH=FUZZY SEARCHRES SORT SORT=DISPLAY SPECIAL-USE STATUS=SIZE \
            THREAD=REFS UIDBATCHES UIDONLY UIDPLUS UNSELECT URL-PARTIAL URLAUTH \
            URLFETCH=BINARY UTF8=ACCEPT UTF8=ONLY WITHIN ACL2=UNION SCAN XLIST XSENDER \
            X-NETSCAPE XSERVERINFO X-GM-EXT-1 XAPPLEPUSHSERVICE XYZZY XMAGICTRASH XVENDOR";
        let list = format!("{carried} {after_login}");
        let shown = |list: &str| {
            let mut out = Vec::new();
            before_login(list.as_bytes(), &mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(shown(&list), list.split_whitespace().collect::<Vec<_>>().join(" "));
        for gone in [
            "LANGUAGE",
            "clientid",
            "XCLIENTID",
            "X-CLIENTID",
            "BACKENDAUTHENTICATE",
            "AUTH=",
            "AUTH=PL.AIN",
            "AUTH=\"X\"",
        ] {
            assert_eq!(shown(&format!("A {gone} B")), "A B");
            assert_eq!(shown(gone), "");
        }
    }

    #[test]
    fn before_tls_nobody_is_invited_to_log_in() {
        for (list, expected) in [
            (
                "IMAP4rev1 SASL-IR AUTH=PLAIN auth=Login IDLE LITERAL+",
                "IMAP4rev1 IDLE LITERAL+ STARTTLS LOGINDISABLED",
            ),
            ("imap4rev1 logindisabled sasl-ir", "imap4rev1 STARTTLS LOGINDISABLED"),
            ("IMAP4rev1 AUTHOR=X AUTH", "IMAP4rev1 AUTHOR=X AUTH STARTTLS LOGINDISABLED"),
            ("", "STARTTLS LOGINDISABLED"),
        ] {
            let mut out = Vec::new();
            before_tls(list.as_bytes(), &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expected, "{list}");
        }
    }

    #[test]
    fn lists_are_found_wherever_they_stand() {
        for (line, expected) in [
            ("* CAPABILITY A B", Some("A B")),
            ("* capability A", Some("A")),
            ("* CAPABILITY", Some("")),
            ("* CAPABILITY A ", Some("A")),
            ("* OK [CAPABILITY A B] ready", Some("A B")),
            ("* PREAUTH [CAPABILITY A] hi", Some("A")),
            ("a1 OK [CAPABILITY A] done", Some("A")),
            ("a1 ok [capability A]", Some("A")),
            ("a1 OK [CAPABILITY ]", Some("")),
            ("a1 OK [CAPABILITY A", None),
            ("a1 OK CAPABILITY A", None),
            ("a1 OK [CAPABILITYX A]", None),
            ("a1 OK [ALERT] [CAPABILITY A]", None),
            ("a1 CAPABILITY A", None),
            ("+ OK [CAPABILITY A]", None),
            ("* 1 FETCH [CAPABILITY A]", None),
            ("* CAPABILITYX A", None),
            ("*", None),
            ("", None),
        ] {
            let found = list_of(line.as_bytes());
            assert_eq!(found, expected.map(str::as_bytes), "{line}");
        }
    }

    #[test]
    fn a_line_changes_only_where_its_list_does() {
        let add = repair(&["HIDDEN"], &["ADDED"]);
        for (line, expected) in [
            ("* CAPABILITY IMAP4rev1 STARTTLS", Some("* CAPABILITY IMAP4rev1 ADDED")),
            ("* CAPABILITY", Some("* CAPABILITY ADDED")),
            ("* CAPABILITY  A   ADDED ", None),
            ("* CAPABILITY  A   HIDDEN  ADDED ", Some("* CAPABILITY  A ADDED ")),
            (
                "* OK [CAPABILITY A STARTTLS] it says STARTTLS",
                Some("* OK [CAPABILITY A ADDED] it says STARTTLS"),
            ),
            ("a1 OK [CAPABILITY ADDED] \u{fc} ok", None),
            ("a1 OK [CAPABILITY hidden] \u{fc}", Some("a1 OK [CAPABILITY ADDED] \u{fc}")),
            ("a1 OK STARTTLS", None),
        ] {
            let new = add.line(line.as_bytes());
            assert_eq!(new.as_deref(), expected.map(str::as_bytes), "{line}");
        }
    }

    #[test]
    fn words_are_found_in_any_case() {
        assert!(has(b"A idle B", b"IDLE"));
        assert!(!has(b"A IDLEX B", b"IDLE"));
        assert!(!has(b"", b"IDLE"));
    }

    proptest! {
        #[test]
        fn repairing_twice_changes_nothing_more(list in "([A-C]|IDLE|LITERAL[+-]|STARTTLS|AUTH=X-PLUS| ){0,12}") {
            let repair = repair(&["A"], &["B", "LITERAL+"]);
            let once = words(&repair, &list);
            prop_assert_eq!(words(&repair, &once), once.clone());
            prop_assert!(!(has(once.as_bytes(), b"LITERAL+") && has(once.as_bytes(), b"LITERAL-")));
            let line = format!("* OK [CAPABILITY {once}] x");
            prop_assert_eq!(repair.line(line.as_bytes()), None);
        }

        #[test]
        fn any_bytes_are_survived(line in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = repair(&["A"], &["B"]).line(&line);
            let mut prefixed = b"* OK [CAPABILITY ".to_vec();
            prefixed.extend_from_slice(&line);
            let _ = repair(&["A"], &["B"]).line(&prefixed);
        }
    }

    #[test]
    fn only_what_the_proxy_always_removes_never_works() {
        for name in [
            "STARTTLS",
            "COMPRESS=DEFLATE",
            "AUTH=SCRAM-SHA-256-PLUS",
            "AUTH=X-PLUS",
            "UNAUTHENTICATE",
            "X-UNAUTHENTICATE",
        ] {
            assert!(always_removed(name.as_bytes()), "{name}");
        }
        for name in ["IDLE", "AUTH=EXTERNAL", "AUTH=SCRAM-SHA-256", "MAILBOX-REFERRALS", "X-PLUS"] {
            assert!(!always_removed(name.as_bytes()), "{name}");
        }
    }
}
