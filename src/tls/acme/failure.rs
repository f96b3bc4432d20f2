//! Why an order failed: in words for the operator, with what to do, and how soon to try again.
//!
//! In: errors of the library, ACME problems (RFC 8555 §6.7), troubles of our own. Out: [`Failure`].

use std::fmt::Write as _;
use std::io;
use std::path::Path;
use std::time::Duration;

use instant_acme::{Error, Problem};

use super::super::chain;

/// What kind of trouble, for the length of the pause.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Trouble {
    /// The CA can't be reached or is not well.
    Passing,
    /// It does not want to, or we can't: somebody has to do something.
    Refused,
    /// It was asked too often.
    Limited,
}

/// One order that came to nothing.
#[derive(Debug)]
pub struct Failure {
    pub trouble: Trouble,
    /// What happened, on one line.
    pub text: String,
    /// What to do about it.
    pub advice: &'static str,
    /// What the CA has asked to wait.
    pub wait: Option<Duration>,
    /// The CA does not know the account that we have.
    pub no_account: bool,
}

/// Longer texts, which come from a CA, are cut. Characters.
const MAX_TEXT: usize = 600;

const REACH: &str = "see that tls.acme.directory is right and can be reached from here (for a private CA name its root in tls.acme.ca)";

impl Failure {
    /// What to do about a file.
    pub const FILE: &str =
        "the proxy's user must be able to read and write it, and there must be room for it";

    pub fn refused(text: String, advice: &'static str) -> Self {
        let text = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_TEXT);
        let text = text.collect();
        Self { trouble: Trouble::Refused, text, advice, wait: None, no_account: false }
    }

    pub fn passing(text: String, advice: &'static str) -> Self {
        Self { trouble: Trouble::Passing, ..Self::refused(text, advice) }
    }

    pub fn file(path: &Path, error: &io::Error) -> Self {
        let text = format!("{}: {}", path.display(), chain(error));
        Self::refused(text, Self::FILE)
    }

    /// `subject` is the name that the problem is about, if it is about one.
    pub fn problem(problem: &Problem, subject: Option<&str>) -> Self {
        let kind = problem.r#type.as_deref().unwrap_or_default();
        let kind = kind.strip_prefix("urn:ietf:params:acme:error:").unwrap_or(kind);
        let mut text = problem.detail.clone().unwrap_or_else(|| "no reason given".to_owned());
        for sub in &problem.subproblems {
            if text.len() > MAX_TEXT * char::MAX.len_utf8() {
                break;
            }
            let _ = write!(text, "; {sub}"); // a String takes everything
        }
        if let Some(subject) = subject {
            text = format!("{subject}: {text}");
        }
        if !kind.is_empty() {
            text = format!("{text} ({kind})");
        }
        let (trouble, advice) = judge(kind);
        let no_account = kind == "accountDoesNotExist";
        Self { trouble, no_account, ..Self::refused(text, advice) }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match &error {
            Error::Api(problem) => Self::problem(problem, None),
            Error::Timeout(_) => Self::refused(
                "the CA did not come to a decision in time".to_owned(),
                "nothing to do yet; if it goes on, look at the CA's status page",
            ),
            Error::Crypto | Error::KeyRejected => Self::refused(
                chain(&error),
                "the account's key can't be used; remove its file in tls.acme.storage, and a new account is made",
            ),
            Error::Unsupported(_) => {
                Self::refused(chain(&error), "choose another CA, or do without")
            }
            Error::Json(_) => {
                Self::passing(format!("the answer is no ACME: {}", chain(&error)), REACH)
            }
            _ => Self::passing(chain(&error), REACH),
        }
    }
}

fn judge(kind: &str) -> (Trouble, &'static str) {
    match kind {
        "badNonce" | "serverInternal" => (Trouble::Passing, "nothing to do; it is tried again"),
        "rateLimited" => (
            Trouble::Limited,
            "nothing to do but wait; try out changes with the CA's staging directory",
        ),
        "connection" | "dns" | "unauthorized" | "incorrectResponse" | "tls" => (
            Trouble::Refused,
            "the CA must find every name in DNS and reach it: for http-01 port 80 of the name must lead to tls.acme.http_address, for tls-alpn-01 port 443 to a listener with implicit TLS (as TCP, nothing may end TLS before), for dns-01 the hook must have published the record when it ends",
        ),
        "caa" => (Trouble::Refused, "a CAA record of the name must allow this CA (RFC 8659)"),
        "externalAccountRequired" => {
            (Trouble::Refused, "this CA wants tls.acme.external_account: get an id and a key there")
        }
        "rejectedIdentifier" | "unsupportedIdentifier" => {
            (Trouble::Refused, "this CA does not issue for that name; correct tls.acme.names")
        }
        "invalidContact" | "unsupportedContact" => (Trouble::Refused, "correct tls.acme.contact"),
        "invalidProfile" => (Trouble::Refused, "correct tls.acme.profile"),
        "accountDoesNotExist" => (Trouble::Passing, "nothing to do; a new account is made"),
        "userActionRequired" => {
            (Trouble::Refused, "agree to the CA's new terms of service, where it says")
        }
        _ => (Trouble::Refused, "do what the CA says"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(kind: &str, detail: &str) -> Problem {
        let json = serde_json::json!({
            "type": format!("urn:ietf:params:acme:error:{kind}"), "detail": detail,
        });
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_problem_is_told_with_its_name_kind_and_cure() {
        let failure = Failure::problem(&problem("connection", "refused\nhere"), Some("a.example"));
        assert_eq!(failure.text, "a.example: refused here (connection)");
        assert!(failure.advice.contains("port 80"));
        assert_eq!(failure.trouble, Trouble::Refused);
        let long = Failure::problem(&problem("caa", &"x".repeat(5000)), None);
        assert_eq!(long.text.len(), MAX_TEXT);
    }

    #[test]
    fn a_flood_of_subproblems_is_cut_at_once() {
        let each = serde_json::json!({ "detail": "é".repeat(10) });
        let flood = serde_json::json!({ "detail": "no", "subproblems": vec![each; 100_000] });
        let start = std::time::Instant::now();
        let failure = Failure::problem(&serde_json::from_value(flood).unwrap(), None);
        assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
        assert_eq!(failure.text.chars().count(), MAX_TEXT);
        assert!(failure.text.starts_with("no; : éé"), "{}", failure.text);
    }

    #[test]
    fn what_passes_by_itself_is_told_from_what_does_not() {
        for (kind, trouble) in [
            ("badNonce", Trouble::Passing),
            ("serverInternal", Trouble::Passing),
            ("rateLimited", Trouble::Limited),
            ("unauthorized", Trouble::Refused),
            ("somethingNew", Trouble::Refused),
        ] {
            assert_eq!(Failure::problem(&problem(kind, ""), None).trouble, trouble, "{kind}");
        }
        let lost = Failure::from(Error::Str("no nonce"));
        assert_eq!(lost.trouble, Trouble::Passing);
    }
}
