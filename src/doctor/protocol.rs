//! What speaks on a port where IMAP was expected, told by its first words.
//!
//! In: those words, printable. Out: what it means, and what to change. Not here: reading them.

use crate::backend::cures::{Cure, OURS, Step};

/// Who speaks like that.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Speaks {
    Imap,
    Tls,
    Http,
    Smtp,
    Pop3,
    Ssh,
    Unknown,
}

impl Speaks {
    pub fn of(words: &str) -> Self {
        let starts = |beginnings: &[&str]| beginnings.iter().any(|start| words.starts_with(start));
        if starts(&["* OK", "* BYE", "* PREAUTH"]) {
            Self::Imap
        } else if starts(&["\\u{15}\\u{3}", "\\u{16}\\u{3}"]) {
            Self::Tls
        } else if starts(&["HTTP/"]) {
            Self::Http
        } else if starts(&["220"]) {
            Self::Smtp
        } else if starts(&["+OK"]) {
            Self::Pop3
        } else if starts(&["SSH-"]) {
            Self::Ssh
        } else {
            Self::Unknown
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Imap => "plaintext IMAP",
            Self::Tls => "TLS",
            Self::Http => "HTTP",
            Self::Smtp => "SMTP or FTP",
            Self::Pop3 => "POP3",
            Self::Ssh => "SSH",
            Self::Unknown => "something else",
        }
    }
}

/// What a server is that should speak IMAP and says `words`.
pub fn of(words: &str) -> (String, Vec<Cure>) {
    let speaks = Speaks::of(words);
    let meaning = match speaks {
        Speaks::Unknown => "That is not IMAP: another service has this port.".to_owned(),
        known => format!("That is {}, not IMAP: another service has this port.", known.name()),
    };
    let cure = Cure::new(
        "name the port on which it speaks IMAP, mostly 143",
        vec![Step::new(OURS, &["backend:", "  servers:", "    - address: <the server>:143"])],
    );
    (meaning, vec![cure])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_told_by_their_first_words() {
        for (words, speaks) in [
            ("* OK ready", Speaks::Imap),
            ("\\u{15}\\u{3}\\u{1}", Speaks::Tls),
            ("HTTP/1.1 400 Bad Request", Speaks::Http),
            ("220 mail ESMTP", Speaks::Smtp),
            ("+OK POP3", Speaks::Pop3),
            ("SSH-2.0-OpenSSH_9.2", Speaks::Ssh),
            ("RFB 003.008", Speaks::Unknown),
        ] {
            assert_eq!(Speaks::of(words), speaks, "{words}");
        }
    }
}
