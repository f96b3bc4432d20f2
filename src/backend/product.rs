//! Which product an IMAP server is, told by what it says before anybody logs in.
//!
//! In: greeting, capabilities and the answer to ID (RFC 2971), each possibly empty. Out: a [`Product`]. Operators change
//! greetings, so the order in which a server lists its capabilities counts too: it is compiled in, and few change it.
//! Limits: none of its own; whoever read the bytes had them. Not here: what cures a product of what (`super::cures`).

use crate::proto::imap::capability;

/// The products whose settings we know. [`Product::Dovecot`] is one whose version does not show.
#[derive(Clone, Copy, Debug, Eq, PartialEq, strum::IntoStaticStr, strum::VariantArray)]
pub enum Product {
    #[strum(serialize = "Dovecot")]
    Dovecot,
    /// 2.2 as well.
    #[strum(serialize = "Dovecot 2.3")]
    Dovecot23,
    #[strum(serialize = "Dovecot 2.4")]
    Dovecot24,
    #[strum(serialize = "Cyrus")]
    Cyrus,
    #[strum(serialize = "Courier")]
    Courier,
    #[strum(serialize = "Exchange")]
    Exchange,
    #[strum(serialize = "Domino")]
    Domino,
    #[strum(serialize = "hMailServer")]
    HMailServer,
    #[strum(serialize = "UW-IMAP")]
    Uw,
    #[strum(serialize = "unknown")]
    Unknown,
}

/// What a server said.
#[derive(Clone, Copy, Debug, Default)]
pub struct Said<'a> {
    /// The greeting's text behind `* OK `, its code included.
    pub greeting: &'a [u8],
    pub capabilities: &'a [u8],
    /// The line `* ID …`.
    pub id: &'a [u8],
}

/// Words that only one product says, in lower case: in its greeting or its ID.
const WORDS: [(&str, Product); 12] = [
    ("dovecot", Product::Dovecot),
    ("cyrus imap", Product::Cyrus),
    ("courier-imap", Product::Courier),
    ("microsoft exchange", Product::Exchange),
    ("microsoft.exchange", Product::Exchange),
    ("domino imap4 server", Product::Domino),
    ("hmailserver", Product::HMailServer),
    ("imaprev1", Product::HMailServer),
    (" imap4rev1 200", Product::Uw),
    (" imap4rev1 v1", Product::Uw),
    (" imap4rev1 v2000", Product::Uw),
    ("panda imap", Product::Uw),
];

/// Orders of capabilities that only one product has.
const ORDERS: [(&str, Product); 6] = [
    ("SASL-IR LOGIN-REFERRALS ID ENABLE", Product::Dovecot23),
    ("LOGIN-REFERRALS ID ENABLE IDLE SASL-IR", Product::Dovecot24),
    ("QUOTA IDLE ACL ACL2=UNION", Product::Courier),
    ("UIDPLUS CHILDREN IDLE NAMESPACE LITERAL+", Product::Exchange),
    ("IMAP4REV1 I18NLEVEL=1 LITERAL+ SASL-IR LOGIN-REFERRALS", Product::Uw),
    ("RIGHTS=texk", Product::HMailServer),
];

impl Product {
    /// Which one says that.
    #[must_use]
    pub fn of(said: &Said<'_>) -> Self {
        let by_order = ORDERS.iter().find(|(order, _)| in_order(said.capabilities, order));
        let by_order = by_order.map(|(_, product)| *product);
        let texts = [said.greeting, said.id].map(|text| {
            // What stands in a capability list is no word of a greeting.
            let text = match (text.starts_with(b"["), memchr::memchr(b']', text)) {
                (true, Some(end)) => &text[end + 1..],
                _ => text,
            };
            text.to_ascii_lowercase()
        });
        let by_word = WORDS.iter().find(|(word, _)| {
            texts.iter().any(|text| memchr::memmem::find(text, word.as_bytes()).is_some())
        });
        match (by_word.map(|(_, product)| *product), by_order) {
            // The order has Dovecot's version, which its words lack.
            (Some(Self::Dovecot), Some(order)) if order.is_dovecot() => order,
            (Some(product), _) => product,
            (None, order) => order.unwrap_or(Self::Unknown),
        }
    }

    #[must_use]
    pub fn is_dovecot(self) -> bool {
        matches!(self, Self::Dovecot | Self::Dovecot23 | Self::Dovecot24)
    }

    /// As people call it: `this server` if we don't know it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "this server",
            Self::Dovecot23 => "Dovecot 2.3 or older",
            known => known.into(),
        }
    }
}

/// Do these words stand in `list` one behind the other? As they are written: case is part of what a product compiles in.
fn in_order(list: &[u8], words: &str) -> bool {
    let wanted: Vec<&[u8]> = words.split(' ').map(str::as_bytes).collect();
    let list: Vec<&[u8]> = capability::split(list).collect();
    list.windows(wanted.len()).any(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Greetings of real servers.
    #[test]
    fn real_greetings_are_recognised() {
        for (greeting, product) in [
            (
                "[CAPABILITY IMAP4rev1 SASL-IR LOGIN-REFERRALS ID ENABLE IDLE LITERAL+ STARTTLS LOGINDISABLED] Dovecot (Debian) ready.",
                Product::Dovecot23,
            ),
            (
                "[CAPABILITY IMAP4rev1 LITERAL+ SASL-IR LOGIN-REFERRALS ID ENABLE IDLE AUTH=PLAIN] Dovecot ready.",
                Product::Dovecot23,
            ),
            (
                "[CAPABILITY IMAP4rev1 LOGIN-REFERRALS ID ENABLE IDLE SASL-IR LITERAL+ STARTTLS LOGINDISABLED] Dovecot DA ready.",
                Product::Dovecot24,
            ),
            (
                "[CAPABILITY IMAP4rev1 LOGIN-REFERRALS ID ENABLE IDLE SASL-IR LITERAL+ AUTH=PLAIN AUTH=LOGIN] IMAP server ready.",
                Product::Dovecot24,
            ),
            ("Dovecot ready.", Product::Dovecot),
            ("mail00 Cyrus IMAP4 v2.2.13-Debian-2.2.13-13ubuntu3 server ready", Product::Cyrus),
            (
                "[CAPABILITY IMAP4rev1 LITERAL+ ID ENABLE STARTTLS LOGINDISABLED] mail Cyrus IMAP 3.6.1-4+deb12u5 Cyrus server ready",
                Product::Cyrus,
            ),
            (
                "[CAPABILITY IMAP4 IMAP4rev1 LITERAL+ ID AUTH=PLAIN] foo.bar Cyrus IMAP4 v2.3.8-OS X Server 10.5:\t9G7013y server ready",
                Product::Cyrus,
            ),
            (
                "[CAPABILITY IMAP4rev1 UIDPLUS CHILDREN NAMESPACE THREAD=ORDEREDSUBJECT THREAD=REFERENCES SORT QUOTA IDLE ACL ACL2=UNION STARTTLS] Courier-IMAP ready. Copyright 1998-2005 Double Precision, Inc. See COPYING for distribution information.",
                Product::Courier,
            ),
            (
                "Microsoft Exchange Server 2003 IMAP4rev1 server version 6.5.6944.0 (a.test.org) ready.",
                Product::Exchange,
            ),
            ("Microsoft Exchange Server 2007 IMAP4 service ready", Product::Exchange),
            ("The Microsoft Exchange IMAP4 service is ready.", Product::Exchange),
            (
                "Domino IMAP4 Server Release 10.0.1FP3 ready Wed, 30 Oct 2019 09:28:06 +0100",
                Product::Domino,
            ),
            ("IMAPrev1", Product::HMailServer),
            (
                "[CAPABILITY IMAP4REV1 I18NLEVEL=1 LITERAL+ SASL-IR LOGIN-REFERRALS STARTTLS] nethost IMAP4rev1 2007f.404 at Wed, 6 Mar 2019 10:24:05 +0000 (UTC)",
                Product::Uw,
            ),
            (
                "[CAPABILITY IMAP4REV1 LOGIN-REFERRALS STARTTLS AUTH=LOGIN] mail IMAP4rev1 2001.315 at Tue, 9 Nov 2004 15:13:41 +0000 (WET)",
                Product::Uw,
            ),
            ("[CAPABILITY IMAP4rev1 IDLE] legacy server ready", Product::Unknown),
            ("", Product::Unknown),
        ] {
            let greeting = greeting.as_bytes();
            let line = [b"* OK ", greeting].concat();
            let capabilities = capability::list_of(&line).unwrap_or_default();
            let said = Said { greeting, capabilities, id: b"" };
            assert_eq!(Product::of(&said), product, "{}", String::from_utf8_lossy(greeting));
        }
    }

    #[test]
    fn a_server_whose_greeting_was_changed_is_told_by_its_id_and_its_capabilities() {
        let of = |capabilities: &str, id: &str| {
            Product::of(&Said {
                greeting: b"welcome",
                capabilities: capabilities.as_bytes(),
                id: id.as_bytes(),
            })
        };
        assert_eq!(of("IMAP4rev1 X", "* ID (\"name\" \"Dovecot\")"), Product::Dovecot);
        assert_eq!(
            of("IMAP4rev1", "* ID (\"name\" \"Cyrus IMAPD\" \"version\" \"3.6.1\")"),
            Product::Cyrus
        );
        assert_eq!(
            of("IMAP4rev1", "* ID (\"name\" \"Microsoft.Exchange.Imap4.Imap4Server\")"),
            Product::Exchange
        );
        assert_eq!(
            of("IMAP4 IMAP4rev1 CHILDREN IDLE QUOTA SORT ACL NAMESPACE RIGHTS=texk", ""),
            Product::HMailServer
        );
        assert_eq!(
            of(
                "IMAP4 IMAP4rev1 LOGINDISABLED STARTTLS UIDPLUS CHILDREN IDLE NAMESPACE LITERAL+",
                ""
            ),
            Product::Exchange
        );
        assert_eq!(of("IMAP4rev1 IDLE", "* ID NIL"), Product::Unknown);
    }
}
