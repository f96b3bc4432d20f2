//! Reads the head of a line: what a client commands, and what kind of response a backend gives.
//!
//! In: a line from its first byte, without its LF, whole or as far as it has come. Out: [`ClientHead`] or
//! [`BackendHead`]; `Undecided` when more bytes are needed, which is never after [`CLIENT_HEAD`] or
//! [`BACKEND_HEAD`] of them. The answer depends on the bytes alone, not on how they were cut.
//!
//! Lenient as servers and clients are lenient: several spaces count as one, keywords stand in any case.
//! Not here: the strict parsers of the dialogue before login (`command`, `response`).

use crate::proto::imap::capability::is_status;
use crate::proto::imap::command::is_tag_byte;

/// The longest tag. Dovecot takes 126 bytes, nginx 32.
pub(super) const TAG: usize = 128;
/// A client's line is understood by its first so many bytes.
pub(super) const CLIENT_HEAD: usize = TAG + 64;
/// A backend's line is understood by its first so many bytes.
pub(super) const BACKEND_HEAD: usize = TAG + 64;

/// What a client runs after login: the label `command` of the metrics, and a closed list, so that
/// nothing that a client sends becomes a label. `UID FETCH` counts as `fetch`.
#[derive(
    Clone, Copy, Debug, Default, Eq, Hash, PartialEq, strum::IntoStaticStr, strum::VariantArray,
)]
#[strum(serialize_all = "snake_case")]
pub enum Verb {
    Append,
    Capability,
    Check,
    Close,
    Copy,
    Create,
    Delete,
    Enable,
    Examine,
    Expunge,
    Fetch,
    Getquota,
    Getquotaroot,
    Id,
    Idle,
    List,
    Logout,
    Lsub,
    Move,
    Namespace,
    Noop,
    Rename,
    Search,
    Select,
    Sort,
    Status,
    Store,
    Subscribe,
    Thread,
    Unselect,
    Unsubscribe,
    /// Everything else, ACLs, metadata and vendors' commands among it.
    #[default]
    Other,
}

/// What the backend must never see after login.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Refused {
    /// Would make the stream unreadable to us (RFC 4978).
    Compress,
    /// TLS is already on, and ends here (RFC 9051 §6.2.1).
    StartTls,
    /// Would bring back the time before login, past the proxy's dialogue (RFC 8437).
    Unauthenticate,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Order {
    /// Passes.
    Run(Verb),
    /// Passes; SASL lines follow.
    Authenticate,
    /// Does not pass.
    Refuse(Refused),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum ClientHead<'a> {
    Undecided,
    /// Nothing but a line end.
    Blank,
    /// `DONE`, whole.
    Done,
    /// `tag` is empty when it is none that a response could carry (RFC 9051 §9, `tag`).
    Command {
        tag: &'a [u8],
        order: Order,
    },
    /// Client and server may not agree on what this is.
    Unclear,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum BackendHead {
    Undecided,
    /// `+ …`
    Continuation,
    /// A tagged `OK`, `NO` or `BAD`, for the tag of the line's first so many bytes.
    Tagged {
        tag: usize,
        list: bool,
    },
    /// `* BYE`
    Bye {
        list: bool,
    },
    /// Any other untagged status. `list`: a `[CAPABILITY …]` may stand or come behind it.
    Status {
        list: bool,
    },
    /// `* CAPABILITY`
    Capability,
    /// Data, or what is no response at all.
    Data,
}

/// A client's line at a command boundary. `whole`: the LF has come.
pub(super) fn client(line: &[u8], whole: bool) -> ClientHead<'_> {
    let (line, open) = window(line, whole, CLIENT_HEAD);
    let (tag, rest, more) = word(line);
    // A space before the tag: no response will carry it.
    let tag_of_answer = if line.starts_with(b" ") { b"" } else { tag };
    if tag.len() > TAG {
        return ClientHead::Unclear;
    }
    if !more {
        return match tag {
            _ if open => ClientHead::Undecided,
            b"" => ClientHead::Blank,
            _ if line.eq_ignore_ascii_case(b"DONE") => ClientHead::Done,
            _ => command(tag_of_answer, Order::Run(Verb::Other)),
        };
    }
    let (mut verb, rest, mut more) = word(rest);
    let uid = verb.eq_ignore_ascii_case(b"UID");
    if more && uid {
        (verb, _, more) = word(rest);
    }
    if !more && open && verb.len() <= LONGEST {
        return ClientHead::Undecided;
    }
    // No more than decides: the rest of a long word may not have come yet.
    let verb = verb.get(..=LONGEST).unwrap_or(verb);
    if memchr::memchr(b'{', verb).is_some() {
        return ClientHead::Unclear; // `a {4+}`: a literal to RFC 7888 §3, a wrong line to Dovecot
    }
    command(tag_of_answer, if uid { uid_order(verb) } else { order(verb) })
}

fn command(tag: &[u8], order: Order) -> ClientHead<'_> {
    if memchr::memchr(b'{', tag).is_some() {
        return ClientHead::Unclear;
    }
    let fits = tag.iter().all(|&byte| is_tag_byte(byte));
    ClientHead::Command { tag: if fits { tag } else { b"" }, order }
}

/// A backend's line at a response boundary. `whole`: the LF has come.
pub(super) fn backend(line: &[u8], whole: bool) -> BackendHead {
    let (line, open) = window(line, whole, BACKEND_HEAD);
    match *line {
        [] if open => return BackendHead::Undecided,
        [b'+', ..] => return BackendHead::Continuation,
        _ => {}
    }
    let (tag, rest, more) = word(line);
    if !more {
        let may_come = open && tag.len() <= TAG;
        return if may_come { BackendHead::Undecided } else { BackendHead::Data };
    }
    let (name, rest, more) = word(rest);
    if !more && open && name.len() <= LONGEST {
        return BackendHead::Undecided;
    }
    // Where a list may stand, and may still be on its way.
    let (code, _, more) = word(rest);
    let list = match b"[CAPABILITY".get(..code.len()) {
        Some(head) if more || !open => code.len() == 11 && code.eq_ignore_ascii_case(head),
        Some(head) => code.eq_ignore_ascii_case(head),
        None => false,
    };
    let is = |word: &[u8]| name.eq_ignore_ascii_case(word);
    match tag {
        b"*" if is(b"CAPABILITY") => BackendHead::Capability,
        b"*" if is(b"BYE") => BackendHead::Bye { list },
        b"*" if is_status(name) => BackendHead::Status { list },
        b"*" => BackendHead::Data,
        _ if line.starts_with(b" ") => BackendHead::Data,
        _ if is(b"OK") || is(b"NO") || is(b"BAD") => BackendHead::Tagged { tag: tag.len(), list },
        _ => BackendHead::Data,
    }
}

/// `UNAUTHENTICATE` and a CR: a longer word is none that we know.
const LONGEST: usize = 15;

fn order(word: &[u8]) -> Order {
    let mut upper = [0; LONGEST];
    let Some(upper) = upper.get_mut(..word.len()) else { return Order::Run(Verb::Other) };
    upper.copy_from_slice(word);
    upper.make_ascii_uppercase();
    Order::Run(match &*upper {
        b"COMPRESS" => return Order::Refuse(Refused::Compress),
        b"STARTTLS" => return Order::Refuse(Refused::StartTls),
        b"UNAUTHENTICATE" => return Order::Refuse(Refused::Unauthenticate),
        b"AUTHENTICATE" => return Order::Authenticate,
        b"APPEND" => Verb::Append,
        b"CAPABILITY" => Verb::Capability,
        b"CHECK" => Verb::Check,
        b"CLOSE" => Verb::Close,
        b"COPY" => Verb::Copy,
        b"CREATE" => Verb::Create,
        b"DELETE" => Verb::Delete,
        b"ENABLE" => Verb::Enable,
        b"EXAMINE" => Verb::Examine,
        b"EXPUNGE" => Verb::Expunge,
        b"FETCH" => Verb::Fetch,
        b"GETQUOTA" => Verb::Getquota,
        b"GETQUOTAROOT" => Verb::Getquotaroot,
        b"ID" => Verb::Id,
        b"IDLE" => Verb::Idle,
        b"LIST" => Verb::List,
        b"LOGOUT" => Verb::Logout,
        b"LSUB" => Verb::Lsub,
        b"MOVE" => Verb::Move,
        b"NAMESPACE" => Verb::Namespace,
        b"NOOP" => Verb::Noop,
        b"RENAME" => Verb::Rename,
        b"SEARCH" => Verb::Search,
        b"SELECT" => Verb::Select,
        b"SORT" => Verb::Sort,
        b"STATUS" => Verb::Status,
        b"STORE" => Verb::Store,
        b"SUBSCRIBE" => Verb::Subscribe,
        b"THREAD" => Verb::Thread,
        b"UNSELECT" => Verb::Unselect,
        b"UNSUBSCRIBE" => Verb::Unsubscribe,
        _ => Verb::Other,
    })
}

/// The word after `UID`. `UID COMPRESS` is no command, so it is not refused either.
fn uid_order(word: &[u8]) -> Order {
    use Verb::{Copy, Expunge, Fetch, Move, Search, Sort, Store, Thread};
    match order(word) {
        Order::Run(verb @ (Copy | Expunge | Fetch | Move | Search | Sort | Store | Thread)) => {
            Order::Run(verb)
        }
        _ => Order::Run(Verb::Other),
    }
}

/// The part of `line` that decides, without its CR, and whether more of that part is still to come. A CR at
/// the end of what has come is left out as well, until it turns out to be no part of the line's end.
fn window(line: &[u8], whole: bool, limit: usize) -> (&[u8], bool) {
    match line.get(..limit) {
        Some(head) => (head, false),
        None => (line.strip_suffix(b"\r").unwrap_or(line), !whole),
    }
}

/// The first word, what is behind it, and whether its end was seen. Spaces before it are skipped.
fn word(line: &[u8]) -> (&[u8], &[u8], bool) {
    let start = line.iter().position(|&byte| byte != b' ').unwrap_or(line.len());
    let line = &line[start..];
    match memchr::memchr(b' ', line) {
        Some(end) => (&line[..end], &line[end..], true),
        None => (line, b"", false),
    }
}
