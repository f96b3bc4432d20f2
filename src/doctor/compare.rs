//! What a server offers directly and through the proxy: every word that differs, and why.
//!
//! In: two capability lists and the operator's changes. Out: a [`Difference`] for each word. Case doesn't count.
//! Not here: how the lists were got.

use crate::config::settings::Capabilities;
use crate::proto::imap::capability::{
    always_removed, has, only_after_login, removed_unless_added, split,
};

/// Why a word stands in one list only.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Why {
    /// It can't work behind a proxy.
    Removed,
    /// Nor can this, unless the operator knows better.
    NotAdded,
    /// A command before login, where the proxy answers by itself.
    OnlyAfterLogin,
    Hidden,
    /// `LITERAL+` beside `LITERAL-` (RFC 7888 §5).
    Narrower,
    Added,
    /// Nothing in the configuration says so.
    Missing,
    Unexpected,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Difference {
    pub word: String,
    pub why: Why,
}

impl Why {
    pub fn is_explained(self) -> bool {
        !matches!(self, Self::Missing | Self::Unexpected)
    }

    pub fn words(self) -> &'static str {
        match self {
            Self::Removed => "removed, it can't work behind a proxy",
            Self::NotAdded => "removed, unless backend.capabilities.add has it",
            Self::OnlyAfterLogin => "left out before login, where the proxy answers by itself",
            Self::Hidden => "hidden by backend.capabilities.hide",
            Self::Narrower => "left out, since LITERAL- is offered too",
            Self::Added => "added by backend.capabilities.add",
            Self::Missing => "missing through the proxy",
            Self::Unexpected => "only through the proxy",
        }
    }
}

/// What differs between `direct` and what clients get `through` the proxy.
pub fn differences(direct: &[u8], through: &[u8], changes: &Capabilities) -> Vec<Difference> {
    let named = |names: &[String], word: &[u8]| {
        names.iter().any(|name| name.as_bytes().eq_ignore_ascii_case(word))
    };
    let difference = |word: &[u8], why| Difference { word: crate::log::printable(word), why };
    let lost = split(direct).filter(|word| !has(through, word)).map(|word| {
        let why = if always_removed(word) {
            Why::Removed
        } else if named(&changes.hide, word) {
            Why::Hidden
        } else if removed_unless_added(word) {
            Why::NotAdded
        } else if only_after_login(word) {
            Why::OnlyAfterLogin
        } else if word.eq_ignore_ascii_case(b"LITERAL+") && has(through, b"LITERAL-") {
            Why::Narrower
        } else {
            Why::Missing
        };
        difference(word, why)
    });
    let gained = split(through).filter(|word| !has(direct, word)).map(|word| {
        let why = if named(&changes.add, word) { Why::Added } else { Why::Unexpected };
        difference(word, why)
    });
    lost.chain(gained).collect()
}

/// `STARTTLS, LOGIN-REFERRALS (removed, …), X (hidden …)`: those that are explained, or those that are not.
pub fn words(found: &[Difference], explained: bool) -> String {
    let wanted: Vec<_> = found.iter().filter(|d| d.why.is_explained() == explained).collect();
    let groups = wanted.chunk_by(|one, next| one.why == next.why).map(|group| {
        let words: Vec<&str> = group.iter().map(|d| d.word.as_str()).collect();
        format!("{} ({})", words.join(", "), group[0].why.words())
    });
    groups.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_that_differs_has_its_reason() {
        let changes = Capabilities { hide: vec!["X-OLD".into()], add: vec!["X-NEW".into()] };
        let found = differences(
            b"IMAP4rev1 STARTTLS COMPRESS=DEFLATE X-old LITERAL+ LITERAL- IDLE NAMESPACE \
              MAILBOX-REFERRALS LANGUAGE",
            b"imap4rev1 LITERAL- idle x-new LOGINDISABLED",
            &changes,
        );
        assert_eq!(
            words(&found, false),
            "NAMESPACE (missing through the proxy), LOGINDISABLED (only through the proxy)"
        );
        assert!(words(&found, true).starts_with("STARTTLS, COMPRESS=DEFLATE (removed, "));
        let found: Vec<_> = found.iter().map(|d| (d.word.as_str(), d.why)).collect();
        assert_eq!(
            found,
            [
                ("STARTTLS", Why::Removed),
                ("COMPRESS=DEFLATE", Why::Removed),
                ("X-old", Why::Hidden),
                ("LITERAL+", Why::Narrower),
                ("NAMESPACE", Why::Missing),
                ("MAILBOX-REFERRALS", Why::NotAdded),
                ("LANGUAGE", Why::OnlyAfterLogin),
                ("x-new", Why::Added),
                ("LOGINDISABLED", Why::Unexpected),
            ]
        );
        assert!(differences(b"A B", b"b a", &changes).is_empty());
    }
}
