//! One login past the proxy and one through it, and what their difference means.
//!
//! In: a user and a password. Out: one finding. The password goes to the first server that could be spoken to and to the
//! proxy's own listener, nowhere else; not where `LOGINDISABLED` says that it is refused anyway.

use super::finding::{Check, Section};
use super::server::Met;
use super::talk::{self, Answer, mechanisms};
use super::{Examined, listener, server};
use crate::config::settings::{self, Listen};
use crate::log::printable;
use crate::proto::imap::refusal::{Meaning, Refusal};
use crate::proto::imap::response::Kind;
use crate::proto::imap::secret::Secret;

/// How an attempt ended.
#[derive(Debug)]
enum Outcome {
    In,
    /// The server's words, printable.
    Refused(String),
    /// It could not decide.
    Unavailable(String),
    /// It takes no password on a connection that it takes for unencrypted.
    Unencrypted(String),
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
    let outcome = outcome(talk.log_in(user, password).await, user);
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
    let outcome = outcome(talk.log_in(user, password).await, user);
    talk.log_out().await;
    outcome
}

/// Judged as the proxy judges it.
fn outcome(answer: Result<Answer, talk::Error>, user: &str) -> Outcome {
    let (kind, text) = match answer {
        Ok(Answer { kind: Kind::Ok, .. }) => return Outcome::In,
        Ok(answer) => (answer.kind, answer.text),
        Err(talk::Error::Bye(text)) => (Kind::Bye, text.into_bytes()),
        Err(error) => return Outcome::Failed(error.to_string()),
    };
    let Refusal { meaning, .. } = Refusal::of(kind, &text, &[user.as_bytes()]);
    let mut words = printable(&text);
    match kind {
        Kind::Bad => words.insert_str(0, "BAD "),
        Kind::Bye => words.insert_str(0, "BYE "),
        _ => {}
    }
    match meaning {
        Meaning::Outage | Meaning::NotNow => Outcome::Unavailable(words),
        Meaning::Unencrypted => Outcome::Unencrypted(words),
        Meaning::Wrong | Meaning::NoMechanism | Meaning::Unclear => Outcome::Refused(words),
    }
}

fn judge(past: Option<Outcome>, through: Option<Outcome>, section: &mut Section) {
    use Outcome::{Failed, In, Refused, Unavailable, Unencrypted};
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
        // hMailServer and others say it only when a password is sent.
        (Some(Unencrypted(text)), Some(Unencrypted(_) | Refused(_) | Unavailable(_)) | None)
        | (None, Some(Unencrypted(text))) => section.problem(
            Check::Login,
            format!("refused: {text}"),
            "The server takes no password on a connection that it takes for unencrypted, though it does not say LOGINDISABLED.",
            Vec::new(),
        ),
        (Some(Refused(text)), Some(Refused(_) | Unencrypted(_)) | None) => {
            section.problem(Check::Login, format!("refused both ways: {text}"), wrong, Vec::new());
        }
        (None, Some(Refused(text))) => {
            section.problem(Check::Login, format!("refused: {text}"), wrong, Vec::new());
        }
        (Some(In), Some(Refused(text) | Unencrypted(text) | Unavailable(text) | Failed(text))) => section.problem(
            Check::Login,
            format!("works past the proxy, and not through it: {text}"),
            "The password is right. The server treats the proxy's sessions otherwise (another address, the identity that is sent, a delay after wrong passwords), or the running proxy has another configuration than this file. Its log line `login` and the server's log say which.",
            Vec::new(),
        ),
        (Some(Refused(text) | Unencrypted(text) | Unavailable(text) | Failed(text)), Some(In)) => section.warning(
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
