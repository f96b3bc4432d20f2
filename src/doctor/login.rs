//! One login past the proxy and one through it, and what their difference means.
//!
//! In: a user and a password. Out: one finding. The password goes to the first server that could be spoken to and to the
//! proxy's own listener, nowhere else; not where `LOGINDISABLED` says that it is refused anyway.

use super::finding::{Check, Section};
use super::server::Met;
use super::talk::{Answer, mechanisms};
use super::{Examined, listener, server};
use crate::config::settings::{self, Listen};
use crate::log::printable;
use crate::proto::imap::response::{self, Kind};
use crate::proto::imap::secret::Secret;

/// How an attempt ended.
#[derive(Debug)]
enum Outcome {
    In,
    /// The server's words, printable.
    Refused(String),
    /// It could not decide (RFC 5530 §3).
    Unavailable(String),
    Failed(String),
}

pub async fn examine(
    user: &str,
    password: &Secret,
    server: Option<(&settings::Server, &Met)>,
    listen: Option<&Listen>,
    examined: &Examined<'_>,
    section: &mut Section,
) {
    let past = match server {
        Some((_, Met { told, .. })) if told.has("LOGINDISABLED") => {
            let mut why = "the server says LOGINDISABLED".to_owned();
            let others = mechanisms(&told.capabilities);
            if !others.is_empty() {
                why += &format!(", it takes only {others}");
            }
            section.skipped(Check::Login, why, "It is not tried: the password would be refused.");
            return;
        }
        Some((server, met)) => Some(past(user, password, server, met, examined).await),
        None => None,
    };
    let through = match listen {
        Some(listen) => Some(through(user, password, listen, examined).await),
        None => None,
    };
    judge(past, through, section);
}

async fn past(
    user: &str,
    password: &Secret,
    server: &settings::Server,
    met: &Met,
    examined: &Examined<'_>,
) -> Outcome {
    let (mut talk, _, _) = match server::dial(&met.address, server, examined).await {
        Ok(dialled) => dialled,
        Err(error) => return Outcome::Failed(error.to_string()),
    };
    talk.set_limit(examined.settings.timeouts.backend_login);
    let outcome = outcome(talk.log_in(user, password).await);
    talk.log_out().await;
    outcome
}

async fn through(
    user: &str,
    password: &Secret,
    listen: &Listen,
    examined: &Examined<'_>,
) -> Outcome {
    let mut talk = match listener::enter(listen, examined).await {
        Ok(talk) => talk,
        Err(why) => return Outcome::Failed(why),
    };
    talk.set_limit(examined.settings.timeouts.login);
    let outcome = outcome(talk.log_in(user, password).await);
    talk.log_out().await;
    outcome
}

fn outcome(answer: Result<Answer, super::talk::Error>) -> Outcome {
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => return Outcome::Failed(error.to_string()),
    };
    let text = printable(&answer.text);
    let outage = response::code(&answer.text).is_some_and(|(code, _)| {
        [&b"UNAVAILABLE"[..], b"INUSE", b"LIMIT", b"SERVERBUG"]
            .iter()
            .any(|outage| code.eq_ignore_ascii_case(outage))
    });
    match answer.kind {
        Kind::Ok => Outcome::In,
        Kind::Bad => Outcome::Refused(format!("BAD {text}")),
        _ if outage => Outcome::Unavailable(text),
        _ => Outcome::Refused(text),
    }
}

fn judge(past: Option<Outcome>, through: Option<Outcome>, section: &mut Section) {
    use Outcome::{Failed, In, Refused, Unavailable};
    let wrong = "The user name or the password is wrong, or the server wants the name in another form (with or without the domain). Its log says which.";
    match (past, through) {
        (Some(In), Some(In)) => section.ok(Check::Login, "works past the proxy and through it"),
        (Some(In), None) => section.ok(Check::Login, "works past the proxy"),
        (None, Some(In)) => section.ok(Check::Login, "works through the proxy"),
        (None, None) => section.skipped(
            Check::Login,
            "not tried",
            "Neither the proxy nor a server could be spoken to.",
        ),
        (Some(Refused(text)), Some(Refused(_)) | None) => match wants_tls(&text) {
            true => section.problem(
                Check::Login,
                format!("refused: {text}"),
                "The server takes no password on a connection that it takes for unencrypted, though it does not say LOGINDISABLED.",
                Vec::new(),
            ),
            false => section.problem(Check::Login, format!("refused both ways: {text}"), wrong, Vec::new()),
        },
        (None, Some(Refused(text))) => {
            section.problem(Check::Login, format!("refused: {text}"), wrong, Vec::new());
        }
        (Some(In), Some(Refused(text) | Unavailable(text) | Failed(text))) => section.problem(
            Check::Login,
            format!("works past the proxy, and not through it: {text}"),
            "The password is right. The server treats the proxy's sessions otherwise (another address, the identity that is sent, a delay after wrong passwords), or the running proxy has another configuration than this file. Its log line `login` and the server's log say which.",
            Vec::new(),
        ),
        (Some(Refused(text) | Unavailable(text) | Failed(text)), Some(In)) => section.warning(
            Check::Login,
            format!("works through the proxy, and not past it: {text}"),
            "The server lets in the proxy, but not this machine as it spoke now. People can log in.",
            Vec::new(),
        ),
        (Some(Unavailable(text) | Failed(text)), _) | (_, Some(Unavailable(text) | Failed(text))) => {
            section.problem(
                Check::Login,
                format!("the server does not decide: {text}"),
                "Nobody looked at the password: its user database may be down. Its log says more.",
                Vec::new(),
            );
        }
    }
}

/// hMailServer and others say it only when somebody tries.
fn wants_tls(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    ["privacyrequired", "starttls", "ssl/tls", "tls is required", "cleartext", "plaintext"]
        .iter()
        .any(|word| text.contains(word))
}
