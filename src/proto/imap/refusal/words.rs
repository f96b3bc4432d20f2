//! Words by which servers refuse a login, by server, with the place in the source that has them.
//!
//! Words are compared in lower case, without punctuation: `Server(s) unavailable` is `server s unavailable`.
//! A line that says several things means the first of [`Means`]: `Login failed: authentication server down`
//! is an outage.

use super::Meaning;

/// In the order in which they are looked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Means {
    /// These words anywhere: nobody looked at the password.
    Outage,
    /// These words anywhere: no password is taken on this connection.
    Unencrypted,
    /// These words anywhere: the mechanism is missing.
    NoMechanism,
    /// These words anywhere: the credentials are wrong.
    Wrong,
    /// Nothing but these words: the credentials are wrong. With a reason behind them the reason counts.
    OnlyWrong,
}

use Means::{NoMechanism, OnlyWrong, Outage, Unencrypted, Wrong};

const WORDS: &[(Means, &[&str])] = &[
    // Dovecot: src/login-common/login-common.h, login-proxy.h, client-common.c, client-common-auth.c,
    // sasl-proxy.c; src/auth/auth-request-handler.c; src/lib-storage/mail-error.h. "Plaintext" until 2.3.
    (
        Outage,
        &[
            "temporary authentication failure",
            "account is temporarily unavailable",
            "authentication request timed out",
            "internal login failure",
            "internal error occurred",
            "timeout while finishing login",
            "timeout while waiting for lock",
            "maximum number of connections from user",
        ],
    ),
    (Unencrypted, &["cleartext authentication disallowed", "plaintext authentication disallowed"]),
    (NoMechanism, &["unsupported authentication mechanism"]),
    (OnlyWrong, &["authentication failed"]),
    // Cyrus: imap/imapd.c (cmd_login, cmd_authenticate, checklimits), imap/imap_err.et, and what it shows of
    // Cyrus SASL: lib/common.c, sasl_errstring. "generic failure" is a saslauthd that can't be reached.
    (
        Outage,
        &[
            "generic failure",
            "no memory available",
            "transient failure",
            "remote authentication server unavailable",
            "sasl library is not initialized",
            "error when parsing configuration file",
            "weird sasl error",
            "sasl canonification error",
            "server s unavailable to complete operation",
            "system i o error",
            "operating system error",
            "mailbox is locked",
            "mailbox is currently reserved",
            "too many open connections",
            "too many connections from this user",
            "too many connections from this host",
        ],
    ),
    (
        Unencrypted,
        &[
            "login only available under a layer",
            "authenticate only available under a layer",
            "encryption needed to use mechanism",
        ],
    ),
    (NoMechanism, &["no mechanism available"]),
    (
        OnlyWrong,
        &[
            "authentication failure",
            "login failed authentication failure",
            "login failed authentication failed",
            "login incorrect",
            "login failed login incorrect",
        ],
    ),
    // Courier: imap/imaplogin.C, imap/imapd.C; tcpd's limit by address.
    (Outage, &["temporary problem", "fatal error", "maximum connection limit reached"]),
    (Unencrypted, &["starttls required"]),
    (OnlyWrong, &["login failed"]),
    // UW-IMAP and Panda: src/imapd/imapd.c.
    (Outage, &["service not available", "server crashing", "server shutting down"]),
    (Wrong, &["invalid login credentials", "invalid authentication credentials"]),
    // Exchange since 2007: Imap4RequestLogin, Imap4ResponseFactory. Exchange 2003, as medusa's module for
    // IMAP (src/modsrc/imap.c) lists it.
    (Outage, &["server unavailable", "user is authenticated but not connected"]),
    (
        Unencrypted,
        &[
            "clear text passwords have been disabled",
            "cleartext login on this server requires",
            "requires the use of transport level security",
        ],
    ),
    (NoMechanism, &["authentication package is not supported"]),
    (OnlyWrong, &["login failed", "authenticate failed"]),
    (Wrong, &["unknown user name or bad password"]),
    // hMailServer: source/Server/IMAP/IMAPCommandLogin.cpp, IMAPCommandAuthenticate.cpp.
    (Unencrypted, &["ssl tls connection is required", "starttls is required"]),
    (Wrong, &["invalid user name or password", "too many invalid logon attempts"]),
    // Zimbra: com/zimbra/cs/imap/ImapHandler.java.
    (Outage, &["undergoing maintenance", "failed wrong host"]),
    (Unencrypted, &["cleartext logins disabled"]),
    (NoMechanism, &["mechanism not supported"]),
    (OnlyWrong, &["login failed", "authenticate failed"]),
    // Stalwart: crates/imap/src/op/authenticate.rs; its refusals have codes.
    (NoMechanism, &["authentication mechanism not supported"]),
    // Apache James: HumanReadableText.java, behind the command's name.
    (Outage, &["processing failed", "io failure"]),
    (Unencrypted, &["plain login authentication are disabled"]),
    (NoMechanism, &["authentication mechanism is unsupported"]),
    (Wrong, &["invalid login password", "login failed too many times"]),
    (
        OnlyWrong,
        &["login failed authentication failed", "authenticate failed authentication failed"],
    ),
    // Gmail, Yahoo and iCloud, as clients list them: FairEmail's Helper.java, mscdex/node-imap#340,
    // MailCore/mailcore2#1642, mailpile/Mailpile#2242.
    (
        Outage,
        &[
            "too many simultaneous connections",
            "too many concurrent connections",
            "temporary failure",
            "temporarily unavailable",
            "system error",
        ],
    ),
    // CommuniGate Pro: its SMTP error 515, the same text in IMAP.
    (Wrong, &["incorrect password or account name"]),
    // Domino and others whose source is not open: the words that they share with the ones above, and
    // those of anything else that fails.
    (
        Outage,
        &[
            "authentication server down",
            "authentication server unavailable",
            "authentication service unavailable",
            "backend down",
            "backend error",
            "backend unavailable",
            "can t connect",
            "cannot connect",
            "connection refused",
            "connection timed out",
            "could not connect",
            "currently unavailable",
            "database error",
            "database unavailable",
            "internal error",
            "internal server error",
            "maintenance mode",
            "not responding",
            "out of memory",
            "overloaded",
            "server busy",
            "server down",
            "server error",
            "server is busy",
            "server is down",
            "server is not available",
            "server is unavailable",
            "server not available",
            "service is unavailable",
            "service unavailable",
            "shutting down",
            "system busy",
            "system is busy",
            "temporary error",
            "temporary unavailable",
            "timed out",
            "too busy",
            "too many connections",
            "unable to connect",
            "under maintenance",
        ],
    ),
    (
        Unencrypted,
        &[
            "encryption is required",
            "encryption required",
            "requires starttls",
            "ssl is required",
            "tls is required",
            "tls required",
            "use starttls",
        ],
    ),
    (
        NoMechanism,
        &[
            "authenticate does not support",
            "mechanism is not supported",
            "mechanism unknown",
            "unknown mechanism",
            "unknown authentication mechanism",
            "unsupported mechanism",
        ],
    ),
    (
        Wrong,
        &[
            "bad credentials",
            "incorrect credentials",
            "invalid credentials",
            "login or password",
            "user name or password",
            "username and password",
            "username or password",
            "wrong credentials",
        ],
    ),
];

/// Words for times to come. Behind words for wrong credentials they are politeness.
const LATER: [&str; 3] = ["try again later", "try later", "retry later"];

/// Words that tell which of the two was wrong, or that the user exists.
const TELLS: &[&str] = &[
    "account does not exist",
    "account doesn t exist",
    "account not found",
    "bad password",
    "bad user",
    "bad username",
    "does not match password",
    "incorrect password",
    "invalid account",
    "invalid login name",
    "invalid password",
    "invalid user",
    "invalid username",
    "mailbox does not exist",
    "mailbox not found",
    "no account",
    "no such account",
    "no such mailbox",
    "no such user",
    "no user",
    "password does not match",
    "password doesn t match",
    "password failed",
    "password incorrect",
    "password invalid",
    "password is incorrect",
    "password is invalid",
    "password is not correct",
    "password is wrong",
    "password mismatch",
    "password verification failed",
    "password wrong",
    "passwords do not match",
    "unknown account",
    "unknown user",
    "unknown username",
    "user does not exist",
    "user doesn t exist",
    "user exists",
    "user is invalid",
    "user is unknown",
    "user not found",
    "user not known",
    "user unknown",
    "username not found",
    "wrong password",
    "wrong user",
    "wrong username",
];

/// Words for both at once, by which [`TELLS`] tell nothing.
const BOTH: &[&str] = &[
    "account name or password",
    "and or password",
    "login or password",
    "login password",
    "or bad password",
    "or invalid password",
    "or password",
    "or wrong password",
    "password or account",
    "password or login",
    "password or user",
    "password or username",
    "username and password",
    "username password",
];

/// hMailServer tells so by the form of the name, whoever exists: it is what the person has to know.
const HINT: &str = "use full email address as user name";

/// What the words of a text without a code that decides mean.
pub(super) fn meaning(words: &[u8], names: &[&[u8]]) -> Meaning {
    let said = Said::of(words);
    // A guesser may choose the name, and with it words that a server repeats.
    let own = Said::without(words, names);
    let means = |means: Means, said: &Said| {
        let mut lists = WORDS.iter().filter(|(kind, _)| *kind == means).map(|(_, words)| words);
        match means {
            OnlyWrong => lists.any(|words| words.iter().any(|words| said.are(words))),
            _ => lists.any(|words| said.have(words)),
        }
    };
    if means(Outage, &own) {
        Meaning::NotNow
    } else if means(Unencrypted, &own) {
        Meaning::Unencrypted
    } else if means(NoMechanism, &own) {
        Meaning::NoMechanism
    } else if means(Wrong, &said) || means(OnlyWrong, &said) || said.have(TELLS) {
        Meaning::Wrong
    } else if own.have(&LATER) {
        Meaning::NotNow
    } else {
        Meaning::Unclear
    }
}

/// Whether the words tell which of user and password was wrong.
pub(super) fn tells(words: &[u8]) -> bool {
    let said = Said::of(words);
    said.have(TELLS) && !said.have(BOTH)
}

/// Whether the words say how to write the user's name.
pub(super) fn is_hint(words: &[u8]) -> bool {
    Said::of(words).have(&[HINT])
}

/// A text in lower case, a single blank before, between and behind its words.
struct Said(Vec<u8>);

impl Said {
    fn of(text: &[u8]) -> Self {
        let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || !byte.is_ascii();
        let mut said = vec![b' '];
        for word in text.split(|byte| !is_part(byte)).filter(|word| !word.is_empty()) {
            said.extend(word.iter().map(u8::to_ascii_lowercase));
            said.push(b' ');
        }
        Self(said)
    }

    /// The text without `names`, and without what stands before the `@` of one.
    fn without(text: &[u8], names: &[&[u8]]) -> Self {
        let mut said = Self::of(text).0;
        for name in names {
            let local = name.split(|&byte| byte == b'@').next().unwrap_or_default();
            for name in [name, local].map(|name| Self::of(name).0).iter().filter(|n| n.len() > 1) {
                while let Some(at) = memchr::memmem::find(&said, name) {
                    // A blank that is no blank: what stood before and behind does not become one phrase.
                    said.splice(at..at + name.len(), *b" \0 ");
                }
            }
        }
        Self(said)
    }

    fn have(&self, words: &[&str]) -> bool {
        let holds = |words: &&str| {
            let words = [b" ", words.as_bytes(), b" "].concat();
            memchr::memmem::find(&self.0, &words).is_some()
        };
        words.iter().any(holds)
    }

    fn are(&self, words: &str) -> bool {
        self.0.trim_ascii() == words.as_bytes()
    }
}
