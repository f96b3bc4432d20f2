use super::*;

fn of(kind: Kind, text: &str) -> (Meaning, String) {
    let Refusal { meaning, text } = Refusal::of(kind, text.as_bytes(), &[b"bob@example.org"]);
    (meaning, String::from_utf8(text).expect("UTF-8"))
}

fn no(text: &str) -> (Meaning, String) {
    of(Kind::No, text)
}

/// A known server's text as it stands in its source or in a report, and what it means.
const KNOWN: &[(&str, &str, Meaning)] = &[
    ("Dovecot", "Authentication failed.", Meaning::Wrong),
    ("Dovecot", "Temporary authentication failure. [mx1:2024-03-01 10:00:00]", Meaning::NotNow),
    ("Dovecot", "Account is temporarily unavailable.", Meaning::NotNow),
    (
        "Dovecot",
        "Internal error occurred. Refer to server log for more information. [2024-03-01 10:00:00]",
        Meaning::NotNow,
    ),
    (
        "Dovecot",
        "Maximum number of connections from user+IP exceeded (mail_max_userip_connections=10)",
        Meaning::NotNow,
    ),
    (
        "Dovecot",
        "Cleartext authentication disallowed on non-secure (SSL/TLS) connections.",
        Meaning::Unencrypted,
    ),
    ("Dovecot", "Unsupported authentication mechanism.", Meaning::NoMechanism),
    ("Cyrus", "Login failed: authentication failure", Meaning::Wrong),
    ("Cyrus", "Login incorrect", Meaning::Wrong),
    ("Cyrus", "Login failed: generic failure", Meaning::NotNow),
    ("Cyrus", "Login failed: remote authentication server unavailable", Meaning::NotNow),
    ("Cyrus", "Server(s) unavailable to complete operation", Meaning::NotNow),
    ("Cyrus", "System I/O error", Meaning::NotNow),
    ("Cyrus", "Too many open connections (11 of 10 for bob)", Meaning::NotNow),
    ("Cyrus", "Login only available under a layer", Meaning::Unencrypted),
    ("Cyrus", "no mechanism available", Meaning::NoMechanism),
    ("Courier", "Login failed.", Meaning::Wrong),
    ("Courier", "Temporary problem, please try again later", Meaning::NotNow),
    ("Courier", "STARTTLS required", Meaning::Unencrypted),
    ("UW-IMAP", "Invalid login credentials", Meaning::Wrong),
    ("UW-IMAP", "Invalid authentication credentials", Meaning::Wrong),
    ("Exchange", "LOGIN failed.", Meaning::Wrong),
    ("Exchange", "AUTHENTICATE failed.", Meaning::Wrong),
    ("Exchange 2003", "Logon failure: unknown user name or bad password.", Meaning::Wrong),
    (
        "Exchange 2003",
        "Clear text passwords have been disabled for this protocol.",
        Meaning::Unencrypted,
    ),
    (
        "Exchange 2003",
        "The specified authentication package is not supported.",
        Meaning::NoMechanism,
    ),
    ("Exchange", "Server Unavailable. 15", Meaning::NotNow),
    ("Exchange", "User is authenticated but not connected.", Meaning::NotNow),
    ("hMailServer", "Invalid user name or password.", Meaning::Wrong),
    ("hMailServer", "A SSL/TLS-connection is required for authentication.", Meaning::Unencrypted),
    ("Zimbra", "LOGIN failed", Meaning::Wrong),
    ("Zimbra", "LOGIN failed (wrong host)", Meaning::NotNow),
    ("Zimbra", "cleartext logins disabled", Meaning::Unencrypted),
    ("Zimbra", "mechanism not supported: GSSAPI", Meaning::NoMechanism),
    ("James", "LOGIN failed. Invalid login/password.", Meaning::Wrong),
    ("James", "LOGIN processing failed.", Meaning::NotNow),
    ("CommuniGate", "incorrect password or account name", Meaning::Wrong),
    ("reports", "System error, try again later", Meaning::NotNow),
    ("reports", "Login failed: authentication server down/unavailable", Meaning::NotNow),
    ("reports", "Server busy", Meaning::NotNow),
    ("reports", "Please try again later.", Meaning::NotNow),
    ("reports", "Invalid credentials, try again later", Meaning::Wrong),
    ("Zimbra", "account does not have IMAP access enabled", Meaning::Unclear),
    ("Cyrus", "Login failed: account disabled", Meaning::Unclear),
];

#[test]
fn words_of_known_servers_mean_what_they_mean_there() {
    for (server, text, meaning) in KNOWN {
        let (found, told) = no(text);
        assert_eq!(found, *meaning, "{server}: {text}");
        // Wrong credentials look the same everywhere; everything else passes as it is.
        let expected = if *meaning == Meaning::Wrong { NEUTRAL } else { text };
        assert_eq!(told, expected, "{server}");
        assert_eq!(no(&text.to_uppercase()).0, *meaning, "{server}: {text}");
    }
}

#[test]
fn codes_pass_with_their_arguments_and_decide_if_they_can() {
    for (text, meaning) in [
        ("[UNAVAILABLE] later", Meaning::Outage),
        ("[unavailable] Authentication failed.", Meaning::Outage),
        ("[SERVERBUG] oops", Meaning::Outage),
        ("[TEMPFAIL] LOGIN Server error", Meaning::Outage),
        ("[SYS/TEMP] no database", Meaning::Outage),
        ("[LIMIT] Too many connections", Meaning::NotNow),
        ("[INUSE] locked", Meaning::NotNow),
        ("[PRIVACYREQUIRED] Use TLS", Meaning::Unencrypted),
        ("[AUTHENTICATIONFAILED] no", Meaning::Wrong),
        ("[AUTHENTICATIONFAILED] Invalid credentials (Failure)", Meaning::Wrong),
        ("[EXPIRED] Renew it", Meaning::Unclear),
        ("[CONTACTADMIN] Call 555", Meaning::Unclear),
        ("[CONTACTADMIN] Database unavailable", Meaning::NotNow),
        ("[AUTHORIZATIONFAILED] Not yours", Meaning::Unclear),
        ("[ALERT] country blocked", Meaning::Unclear),
        ("[ALERT] account undergoing maintenance; please try again later", Meaning::NotNow),
        ("[ALERT] Unsupported authentication mechanism.", Meaning::NoMechanism),
        ("[CANNOT] Authentication mechanism not supported.", Meaning::NoMechanism),
        ("[ALERT] Invalid credentials (Failure)", Meaning::Wrong),
        ("[WEBALERT https://example.org/unlock] Web login required.", Meaning::Unclear),
        ("[X-VENDOR 7 seven] what it says", Meaning::Unclear),
    ] {
        assert_eq!(no(text), (meaning, text.to_owned()));
    }
}

#[test]
fn whether_user_or_password_was_wrong_stays_hidden() {
    for text in [
        "no such user bob",
        "Login failed: user not found",
        "Unknown user",
        "User exists, but no verifier for user",
        "password incorrect",
        "[NONEXISTENT] no",
        "[NOSUCHUSER bob] no",
        "[ALERT] no such user bob",
        "[X Y] Wrong password.",
        "[AUTHENTICATIONFAILED] no such user bob",
        "[REFERRAL imap://x/] no such user bob",
        "",
    ] {
        let (meaning, told) = no(text);
        assert!(matches!(meaning, Meaning::Wrong | Meaning::Unclear), "{text}: {meaning:?}");
        assert_eq!(told, NEUTRAL, "{text}");
        assert_eq!(alert(Kind::No, text.as_bytes()), None, "{text}");
    }
    // A code that is known says what it says.
    assert_eq!(no("[EXPIRED 7] no such user").1, "[EXPIRED 7] Authentication failed.");
    assert_eq!(no("[LIMIT] no such user").0, Meaning::NotNow);
    // Both at once tell nothing.
    let both = "[ALERT] Unknown user name or bad password";
    assert_eq!(no(both), (Meaning::Wrong, both.to_owned()));
    // Nor does what is told by the form of the name.
    let hint = "Invalid user name or password. Please use full email address as user name.";
    let told = format!("[AUTHENTICATIONFAILED] {hint}");
    assert_eq!(no(hint), (Meaning::Wrong, told));
}

#[test]
fn a_name_with_the_words_of_an_outage_in_it_buys_no_free_guess() {
    for (name, text) in [
        ("server unavailable", "Authentication failed for server unavailable"),
        ("Server-Unavailable@example.org", "NO for <server-unavailable>: refused"),
        ("bob@internal.error", "refused: BOB@INTERNAL.ERROR"),
        ("unavailable", "refused by server: unavailable"),
    ] {
        let refusal = Refusal::of(Kind::No, text.as_bytes(), &[name.as_bytes()]);
        assert_eq!(refusal.meaning, Meaning::Unclear, "{text}");
        assert_eq!(no(text).0, Meaning::NotNow, "else {text} is an outage");
    }
}

#[test]
fn bad_keeps_its_text() {
    for (text, meaning) in [
        ("User is authenticated but not connected.", Meaning::NotNow),
        ("[UNAVAILABLE] Service temporarily unavailable", Meaning::Outage),
        ("STARTTLS is required.", Meaning::Unencrypted),
        ("Missing or invalid argument to LOGIN", Meaning::Unclear),
        ("Command Error. 12", Meaning::Unclear),
    ] {
        assert_eq!(of(Kind::Bad, text), (meaning, text.to_owned()));
    }
    for text in ["", "no such user bob"] {
        assert_eq!(of(Kind::Bad, text).1, "The server refused the command.");
    }
}

#[test]
fn bye_instead_of_a_result_says_why() {
    for (text, meaning, told) in [
        (
            "Temporary problem, please try again later",
            Meaning::Outage,
            "[UNAVAILABLE] Temporary problem, please try again later",
        ),
        ("soon", Meaning::Outage, "[UNAVAILABLE] soon"),
        ("", Meaning::Outage, BROKE_OFF),
        ("[INUSE] locked", Meaning::NotNow, "[INUSE] locked"),
        ("[ALERT] Fatal error: No such file", Meaning::Outage, BROKE_OFF),
        ("Invalid login credentials", Meaning::Wrong, NEUTRAL),
        ("no such user", Meaning::Wrong, NEUTRAL),
    ] {
        assert_eq!(of(Kind::Bye, text), (meaning, told.to_owned()), "{text}");
    }
}

#[test]
fn an_alert_is_shown_as_an_untagged_response() {
    for (kind, text, shown) in [
        (Kind::Ok, "[ALERT] over quota", Some("* OK [ALERT] over quota\r\n")),
        (Kind::No, "[alert] x", Some("* NO [alert] x\r\n")),
        (Kind::Bye, "[ALERT] \x1b[1mbye\x07", Some("* NO [ALERT] [1mbye\r\n")),
        (Kind::Bad, "[WEBALERT https://x/] y", Some("* BAD [WEBALERT https://x/] y\r\n")),
        (Kind::Ok, "[CAPABILITY ALERT] hi", None),
        (Kind::Ok, "ALERT", None),
        (Kind::Ok, "[ALERT]", None),
        (Kind::Ok, "[REFERRAL imap://alert/] x", None),
    ] {
        let found = alert(kind, text.as_bytes());
        assert_eq!(found.as_deref(), shown.map(str::as_bytes), "{text}");
    }
}

#[test]
fn no_referral_passes_however_it_is_written() {
    for text in [
        "[REFERRAL imap://x/] y",
        "[referral imap://x/]y",
        "[REFERRAL imap://x/]  [REFERRAL imap://z/] y",
        "[ REFERRAL imap://x/] y",
    ] {
        assert_eq!(no(text), (Meaning::Unclear, "y".to_owned()), "{text}");
        assert_eq!(of(Kind::Bad, text).1, "y", "{text}");
        assert_eq!(of(Kind::Bye, text).1, "[UNAVAILABLE] y", "{text}");
    }
}

#[test]
fn texts_are_cut_between_characters_and_have_no_controls() {
    assert_eq!(no("a\0b\rc\x1b[0m\td").1, "abc[0md");
    for character in ["x", "\u{e4}", "\u{20ac}", "\u{1f511}"] {
        for start in 0..4 {
            let text = "y".repeat(start) + &character.repeat(MAX_TEXT);
            let (_, told) = no(&text);
            assert!(text.starts_with(&told), "{character}");
            assert!((MAX_TEXT - 3..=MAX_TEXT).contains(&told.len()), "{}", told.len());
        }
    }
    let latin = vec![0xe4; 2 * MAX_TEXT];
    assert_eq!(Refusal::of(Kind::No, &latin, &[]).text.len(), MAX_TEXT);
    let strange = vec![0x80; 2 * MAX_TEXT];
    assert_eq!(Refusal::of(Kind::No, &strange, &[]).text.len(), MAX_TEXT);
}
