//! The sample mail of the demo: INBOX, Sent and Archive of one user.
//!
//! Every message shows something that a mail client has to get right: alternatives, an attachment,
//! encoded words and quoted-printable, a thread, a forwarded message. All names are in example domains
//! (RFC 2606).

use super::date::DateTime;
use super::mailbox::{Message, Store};

/// A message as the source shows it: lines end in LF here and in CRLF on the wire.
struct Sample {
    mailbox: &'static str,
    flags: &'static [&'static str],
    date: &'static str,
    text: &'static str,
}

/// Makes Sent and Archive, and puts the sample mail where it belongs.
pub fn fill(store: &Store) {
    for (name, special_use) in [("Sent", "\\Sent"), ("Archive", "\\Archive")] {
        store.create(name, Some(special_use)).expect("an empty store has room for two mailboxes");
        store.subscribe(name).expect("an empty store has room for two subscriptions");
    }
    for sample in SAMPLES {
        let data = sample.text.replace('\n', "\r\n").into_bytes();
        let mut charge = store.charge();
        charge.grow(data.len()).expect("an empty store has room for a few kilobytes");
        let date = DateTime::parse(sample.date).expect("the dates below are well formed");
        let flags = store.flags(sample.flags).expect("the flags below are few");
        let message = Message::new(data, date, charge);
        store.append(sample.mailbox, flags, message).expect("the mailboxes are made above");
    }
}

const SAMPLES: &[Sample] = &[
    Sample {
        mailbox: "INBOX",
        flags: &["\\Seen"],
        date: " 2-Mar-2026 09:12:44 +0100",
        text: "\
From: Petra Postmaster <postmaster@mail.example>
To: Demo User <demo@mail.example>
Subject: Welcome to the demo mailbox
Date: Mon, 2 Mar 2026 09:12:40 +0100
Message-ID: <welcome.1@mail.example>
MIME-Version: 1.0
Content-Type: text/plain; charset=us-ascii

Hello,

this mailbox lives in the memory of `imaps-proxy demo`. The server that holds it
speaks plaintext IMAP and knows nothing of TLS; what you are reading reached you
through the proxy, over IMAPS.

Change whatever you like: flags, folders, new messages. It all starts afresh
with the next demo.

-- 
Petra
",
    },
    Sample {
        mailbox: "INBOX",
        flags: &[],
        date: " 3-Mar-2026 14:00:09 +0000",
        text: "\
From: \"Carrier Pigeon Weekly\" <news@pigeon.example>
To: demo@mail.example
Subject: Issue 17: faster than post
Date: Tue, 3 Mar 2026 14:00:00 +0000
Message-ID: <issue-17@pigeon.example>
List-Id: Carrier Pigeon Weekly <weekly.pigeon.example>
MIME-Version: 1.0
Content-Type: multipart/alternative; boundary=\"=_alternative_17\"

This is a message in MIME format.

--=_alternative_17
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: 7bit

FASTER THAN POST

A pigeon carries a memory card across the valley in eleven minutes.
The line to the village needs two hours for the same data.

--=_alternative_17
Content-Type: text/html; charset=utf-8
Content-Transfer-Encoding: quoted-printable

<!DOCTYPE html>
<html><body style=3D\"font-family: sans-serif\">
<h1>Faster than post</h1>
<p>A pigeon carries a memory card across the valley in <b>eleven minutes</b>=
=2E The line to the village needs <i>two hours</i> for the same data.</p>
</body></html>

--=_alternative_17--
",
    },
    Sample {
        mailbox: "INBOX",
        flags: &[],
        date: " 4-Mar-2026 10:30:31 +0100",
        text: "\
From: Lena Lindgren <lena@design.example>
To: Demo User <demo@mail.example>
Cc: Petra Postmaster <postmaster@mail.example>
Subject: The new icon
Date: Wed, 4 Mar 2026 10:30:27 +0100
Message-ID: <icon.20260304@design.example>
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary=\"mixed-20260304\"

--mixed-20260304
Content-Type: text/plain; charset=utf-8; format=flowed
Content-Transfer-Encoding: 7bit

Hi,

here is the envelope, small and in two colours, as you asked.

Lena

--mixed-20260304
Content-Type: image/png; name=\"envelope.png\"
Content-Disposition: attachment; filename=\"envelope.png\"
Content-Transfer-Encoding: base64

iVBORw0KGgoAAAANSUhEUgAAADAAAAAgAQMAAABuGmlfAAAABlBMVEX///8mRniR//ihAAAAYUlE
QVR42q3PsQmAMBCF4T+kSOcEAdc4cKmACwRc7CS9E1hkDDu9HDb2/sX76sft8XJhzZyDhWOw0iqE
xq4QN7RDiqhANjKIMUExYg1q2FSDnhhIdrI4U3GiOqE61l98Hj3UAjjR5sHKMgAAAABJRU5ErkJg
gg==

--mixed-20260304--
",
    },
    Sample {
        mailbox: "INBOX",
        flags: &["\\Seen", "\\Answered"],
        date: " 5-Mar-2026 18:05:12 +0100",
        text: "\
From: =?utf-8?Q?J=C3=BCrgen_Gr=C3=B6=C3=9F?= <juergen@reise.example>
To: Demo User <demo@mail.example>
Subject: =?utf-8?B?UmVpc2UgbmFjaCBNw7xuY2hlbiA=?= =?utf-8?Q?=E2=80=93_?=
 =?iso-8859-1?Q?n=E4chste_Woche?=
Date: Thu, 5 Mar 2026 18:05:10 +0100
Message-ID: <reise.5@reise.example>
MIME-Version: 1.0
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: quoted-printable

Gr=C3=BC=C3=9F dich,

ich fahre =C3=BCbermorgen nach M=C3=BCnchen. Soll ich dir etwas mitbringen? E=
ine Brezel kostet dort inzwischen 1,20 =E2=82=AC.

Sch=C3=B6ne Gr=C3=BC=C3=9Fe
J=C3=BCrgen
",
    },
    Sample {
        mailbox: "INBOX",
        flags: &["\\Seen", "\\Flagged"],
        date: " 9-Mar-2026 08:00:03 +0000",
        text: "\
From: Amir Haddad <amir@ops.example>
To: team@ops.example
Subject: Moving the old mail server
Date: Mon, 9 Mar 2026 08:00:00 +0000
Message-ID: <move.1@ops.example>
MIME-Version: 1.0
Content-Type: text/plain; charset=us-ascii

The old server stays where it is until summer, and nobody may touch it.
How do we give people encrypted mail before that?

Amir
",
    },
    Sample {
        mailbox: "INBOX",
        flags: &["\\Seen"],
        date: " 9-Mar-2026 08:41:20 +0000",
        text: "\
From: Wanda Nowak <wanda@ops.example>
To: Amir Haddad <amir@ops.example>
Cc: team@ops.example
Subject: Re: Moving the old mail server
Date: Mon, 9 Mar 2026 08:41:17 +0000
Message-ID: <move.2@ops.example>
In-Reply-To: <move.1@ops.example>
References: <move.1@ops.example>
MIME-Version: 1.0
Content-Type: text/plain; charset=us-ascii

On Mon, 9 Mar 2026, Amir Haddad wrote:
> How do we give people encrypted mail before that?

Put a proxy in front of it. One container, port 993, done by lunch.

Wanda
",
    },
    Sample {
        mailbox: "INBOX",
        flags: &[],
        date: " 9-Mar-2026 12:02:58 +0000",
        text: "\
From: Amir Haddad <amir@ops.example>
To: Wanda Nowak <wanda@ops.example>
Cc: team@ops.example
Subject: Re: Moving the old mail server
Date: Mon, 9 Mar 2026 12:02:55 +0000
Message-ID: <move.3@ops.example>
In-Reply-To: <move.2@ops.example>
References: <move.1@ops.example> <move.2@ops.example>
MIME-Version: 1.0
Content-Type: text/plain; charset=us-ascii

On Mon, 9 Mar 2026, Wanda Nowak wrote:
> done by lunch.

It was. My telephone says that the connection is encrypted, and the old
server has not noticed anything.

Amir
",
    },
    Sample {
        mailbox: "INBOX",
        flags: &[],
        date: "10-Mar-2026 16:20:00 -0500",
        text: "\
From: Wanda Nowak <wanda@ops.example>
To: demo@mail.example
Subject: Fwd: Certificate renewed
Date: Tue, 10 Mar 2026 16:19:58 -0500
Message-ID: <fwd.77@ops.example>
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary=\"fwd\"

--fwd
Content-Type: text/plain; charset=us-ascii

For your information, the whole message is attached.

--fwd
Content-Type: message/rfc822
Content-Disposition: inline

From: Certificate robot <robot@ops.example>
To: Wanda Nowak <wanda@ops.example>
Subject: Certificate renewed
Date: Tue, 10 Mar 2026 03:00:00 -0500
Message-ID: <renewed.77@ops.example>
MIME-Version: 1.0
Content-Type: text/plain; charset=us-ascii

mail.example: the new certificate is valid for 90 days.
No session was cut.

--fwd--
",
    },
    Sample {
        mailbox: "Sent",
        flags: &["\\Seen"],
        date: " 5-Mar-2026 19:30:00 +0100",
        text: "\
From: Demo User <demo@mail.example>
To: =?utf-8?Q?J=C3=BCrgen_Gr=C3=B6=C3=9F?= <juergen@reise.example>
Subject: =?utf-8?Q?Re:_Reise_nach_M=C3=BCnchen_=E2=80=93_n=C3=A4chste_Woche?=
Date: Thu, 5 Mar 2026 19:29:58 +0100
Message-ID: <sent.1@mail.example>
In-Reply-To: <reise.5@reise.example>
References: <reise.5@reise.example>
MIME-Version: 1.0
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: 8bit

Hallo Jürgen,

zwei Brezeln, bitte.

Demo
",
    },
    Sample {
        mailbox: "Sent",
        flags: &["\\Seen"],
        date: " 4-Mar-2026 11:00:00 +0100",
        text: "\
From: Demo User <demo@mail.example>
To: Lena Lindgren <lena@design.example>
Subject: Re: The new icon
Date: Wed, 4 Mar 2026 10:59:57 +0100
Message-ID: <sent.2@mail.example>
In-Reply-To: <icon.20260304@design.example>
References: <icon.20260304@design.example>
MIME-Version: 1.0
Content-Type: text/plain; charset=us-ascii

That is the one. Thank you!

Demo
",
    },
    Sample {
        mailbox: "Archive",
        flags: &["\\Seen"],
        date: "17-Jul-1996 02:44:25 -0700",
        text: "\
From: Terry Gray <terry@campus.example>
Date: Wed, 17 Jul 1996 02:23:25 -0700 (PDT)
Subject: IMAP4rev1 meeting: summary and minutes
To: imap@campus.example
Cc: minutes@archive.example, John <john@archive.example>
Message-ID: <B27397-0100000@campus.example>

Mail of 1996 had no MIME header, and every client still has to show it.
",
    },
    Sample {
        mailbox: "Archive",
        flags: &["\\Seen", "receipt"],
        date: "24-Dec-2025 17:00:00 +0000",
        text: "\
From: Book shop <orders@books.example>
To: Readers: demo@mail.example;
Subject: Your order 4711
Date: Wed, 24 Dec 2025 16:59:58 +0000
Message-ID: <4711@books.example>
MIME-Version: 1.0
Content-Type: text/plain; charset=iso-8859-1
Content-Transfer-Encoding: quoted-printable

One copy of \"Caf=E9 Europa\" is on its way.
",
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Content, Part};

    #[test]
    fn samples_are_what_the_header_of_this_file_says() {
        let store = Store::new();
        fill(&store);
        let (inbox, status) = store.open("INBOX", true).unwrap();
        assert_eq!((status.messages, status.unseen), (8, 4));
        let attachment = &inbox.rows[2].message.data;
        let tree = Part::parse(attachment);
        let png = tree.find(&[2]).expect("the attachment is part 2").decoded(attachment);
        assert!(png.starts_with(b"\x89PNG") && png.ends_with(b"IEND\xaeB`\x82"));
        let forwarded = Part::parse(&inbox.rows[7].message.data);
        assert!(matches!(forwarded.find(&[2]).unwrap().content, Content::Message(_)));
        for name in ["Sent", "Archive"] {
            assert_eq!(store.status(name).unwrap().messages, 2);
        }
    }
}
