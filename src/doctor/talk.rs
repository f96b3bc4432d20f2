//! IMAP as a client that asks questions: one command at a time, over any stream.
//!
//! Limits: [`MAX_ANSWER`] bytes for an answer, the deadline given for each. What the other end says is data: it is made
//! printable where it is shown. A password is sent as a quoted string or a literal that waits for `+`, which every server
//! reads, and is overwritten.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Instant, timeout_at};
use zeroize::Zeroizing;

use crate::backend::product::{Product, Said};
use crate::log::printable;
use crate::proto::imap::id::{quotable, write_quoted};
use crate::proto::imap::response::{self, Kind, Response};
use crate::proto::imap::{capability, secret::Secret};

/// Bytes of one answer.
const MAX_ANSWER: usize = 64 * 1024;
/// Lines of one answer that are kept.
const MAX_LINES: usize = 100;

#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("it closed the connection")]
    Closed,
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("it says something that is not IMAP: {0}")]
    NotImap(String),
    #[error("it says BYE: {0}")]
    Bye(String),
    #[error("the connection broke: {0}")]
    Broken(String),
}

/// A whole answer to one command.
#[derive(Clone, Debug)]
pub struct Answer {
    pub kind: Kind,
    /// The tagged line's text, its code included.
    pub text: Vec<u8>,
    /// Untagged lines.
    pub lines: Vec<Vec<u8>>,
    /// The first line that answers nothing that we said: a PROXY header was taken for a command.
    pub stray: Option<String>,
}

/// One conversation.
pub struct Talk<S> {
    stream: S,
    input: Vec<u8>,
    limit: Duration,
    commands: usize,
}

/// What a server said before login.
#[derive(Clone, Debug, Default)]
pub struct Told {
    pub greeting: Vec<u8>,
    pub capabilities: Vec<u8>,
    /// The line `* ID …`; empty without one.
    pub id: Vec<u8>,
    /// See [`Answer::stray`].
    pub stray: Option<String>,
}

impl Told {
    pub fn has(&self, word: &str) -> bool {
        capability::has(&self.capabilities, word.as_bytes())
    }

    pub fn product(&self) -> Product {
        let Self { greeting, capabilities, id, .. } = self;
        Product::of(&Said { greeting, capabilities, id })
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Talk<S> {
    /// `input`: what has been read already. Each answer has to come within `limit`.
    pub fn new(stream: S, input: Vec<u8>, limit: Duration) -> Self {
        Self { stream, input, limit, commands: 0 }
    }

    /// From now on each answer may take that long.
    pub fn set_limit(&mut self, limit: Duration) {
        self.limit = limit;
    }

    /// The stream, if nothing was left unread: for STARTTLS.
    pub fn into_stream(self) -> Result<S, Error> {
        if self.input.is_empty() {
            return Ok(self.stream);
        }
        Err(Error::NotImap(printable(&self.input)))
    }

    /// The greeting's text.
    pub async fn greeting(&mut self) -> Result<Vec<u8>, Error> {
        let deadline = Instant::now() + self.limit;
        let whole = self.response(deadline).await?;
        match whole.0 {
            Owned::Status(Kind::Ok, text) => Ok(text),
            Owned::Status(Kind::Bye, text) => Err(Error::Bye(printable(&text))),
            _ => Err(Error::NotImap(printable(&whole.1))),
        }
    }

    /// Asks for capabilities and, where it is offered, for the ID.
    pub async fn ask(&mut self, greeting: Vec<u8>) -> Result<Told, Error> {
        let mut told = Told { greeting, ..Told::default() };
        let answer = self.command("CAPABILITY").await?;
        told.stray = answer.stray;
        let mut lists = answer.lines.iter().filter_map(|line| capability::list_of(line));
        told.capabilities = lists.next_back().map(<[u8]>::to_vec).unwrap_or_default();
        if answer.kind != Kind::Ok || told.capabilities.is_empty() {
            return Err(Error::NotImap(printable(&answer.text)));
        }
        // Dovecot that waits for its authentication process greets twice.
        if let Some(second) = answer.lines.iter().find_map(|line| line.strip_prefix(b"* OK ")) {
            told.greeting = second.to_vec();
        }
        if told.has("ID") {
            self.id(&mut told).await?;
        }
        Ok(told)
    }

    /// Asks for the ID, offered or not.
    pub async fn id(&mut self, told: &mut Told) -> Result<(), Error> {
        let answer = self.command("ID NIL").await?;
        let is_id =
            |line: &&Vec<u8>| line.get(..5).is_some_and(|head| head.eq_ignore_ascii_case(b"* ID "));
        told.id = answer.lines.iter().find(is_id).cloned().unwrap_or_default();
        told.stray = told.stray.take().or(answer.stray);
        Ok(())
    }

    /// Sends one command without arguments that wait.
    pub async fn command(&mut self, command: &str) -> Result<Answer, Error> {
        let tag = self.tag();
        self.send(format!("{tag} {command}\r\n").as_bytes()).await?;
        self.answer(tag.as_bytes(), &mut Vec::new()).await
    }

    /// LOGIN.
    pub async fn log_in(&mut self, user: &str, password: &Secret) -> Result<Answer, Error> {
        let tag = self.tag();
        // Large enough for both, every byte escaped: a buffer that grows leaves copies behind.
        let room = 64 + 2 * (user.len() + password.expose().len());
        let mut parts = vec![Zeroizing::new(Vec::with_capacity(room))];
        parts[0].extend_from_slice(format!("{tag} LOGIN").as_bytes());
        for argument in [user.as_bytes(), password.expose()] {
            let part = parts.last_mut().expect("there is always one");
            part.push(b' ');
            if quotable(argument) {
                write_quoted(argument, part);
            } else {
                part.extend_from_slice(format!("{{{}}}\r\n", argument.len()).as_bytes());
                let mut next = Zeroizing::new(Vec::with_capacity(room));
                next.extend_from_slice(argument);
                parts.push(next);
            }
        }
        parts.last_mut().expect("there is always one").extend_from_slice(b"\r\n");
        parts.reverse();
        let first = parts.pop().expect("there is always one");
        self.send(&first).await?;
        self.answer(tag.as_bytes(), &mut parts).await
    }

    /// Takes leave; nobody waits for the answer.
    pub async fn log_out(mut self) {
        let tag = self.tag();
        let _ = self.send(format!("{tag} LOGOUT\r\n").as_bytes()).await;
        let _ = timeout_at(Instant::now() + Duration::from_secs(1), self.stream.shutdown()).await;
    }

    fn tag(&mut self) -> String {
        self.commands += 1;
        format!("D{}", self.commands)
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let all = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        match timeout_at(Instant::now() + self.limit, all).await {
            Ok(sent) => sent.map_err(|error| broken(&error)),
            Err(_) => Err(Error::Timeout(self.limit)),
        }
    }

    /// Reads until the tagged line; each `+` is answered with the last of `parts`.
    async fn answer(
        &mut self,
        tag: &[u8],
        parts: &mut Vec<Zeroizing<Vec<u8>>>,
    ) -> Result<Answer, Error> {
        let deadline = Instant::now() + self.limit;
        let (mut lines, mut stray) = (Vec::new(), None::<String>);
        loop {
            let (response, line) = match (self.response(deadline).await, &stray) {
                (Ok(whole), _) => whole,
                // What came before says more than its end.
                (Err(Error::Closed), Some(stray)) => return Err(Error::NotImap(stray.clone())),
                (Err(error), _) => return Err(error),
            };
            match response {
                Owned::Tagged(its, kind, text) if its == tag => {
                    return Ok(Answer { kind, text, lines, stray });
                }
                Owned::Continuation if !parts.is_empty() => {
                    let part = parts.pop().expect("it is not empty");
                    self.send(&part).await?;
                }
                Owned::Status(Kind::Bye, text) if stray.is_none() => {
                    return Err(Error::Bye(printable(&text)));
                }
                Owned::Status(Kind::Ok, _) | Owned::Untagged if lines.len() < MAX_LINES => {
                    lines.push(line);
                }
                Owned::Status(Kind::Ok | Kind::No, _) | Owned::Untagged => {}
                Owned::Status(Kind::Bye, _) => {
                    return Err(Error::NotImap(stray.unwrap_or_default()));
                }
                // `* BAD`, a foreign tag, nonsense.
                _ => stray = stray.or_else(|| Some(printable(&line))),
            }
        }
    }

    async fn response(&mut self, deadline: Instant) -> Result<(Owned, Vec<u8>), Error> {
        loop {
            let whole = response::next(&self.input, MAX_ANSWER)
                .map_err(|_| Error::NotImap("a line without an end".to_owned()))?;
            if let Some(response::Whole { response, line, length }) = whole {
                let owned = (Owned::from(response), line.to_vec());
                self.input.drain(..length);
                return Ok(owned);
            }
            match timeout_at(deadline, self.stream.read_buf(&mut self.input)).await {
                Err(_) => return Err(Error::Timeout(self.limit)),
                Ok(Err(error)) => return Err(broken(&error)),
                Ok(Ok(0)) if self.input.is_empty() => return Err(Error::Closed),
                Ok(Ok(0)) => return Err(Error::NotImap(printable(&self.input))),
                Ok(Ok(_)) => {}
            }
        }
    }
}

/// The text of a greeting without its code.
pub fn text_of(greeting: &[u8]) -> &[u8] {
    response::code(greeting).map_or(greeting, |(_, text)| text)
}

/// `PLAIN, CRAM-MD5`
pub fn mechanisms(capabilities: &[u8]) -> String {
    let names = capability::split(capabilities).filter_map(|word| {
        let (head, name) = word.split_at_checked(5)?;
        head.eq_ignore_ascii_case(b"AUTH=").then(|| printable(name))
    });
    names.collect::<Vec<_>>().join(", ")
}

/// A response that owns what it says.
enum Owned {
    Continuation,
    Status(Kind, Vec<u8>),
    Untagged,
    Tagged(Vec<u8>, Kind, Vec<u8>),
    Garbage,
}

impl From<Response<'_>> for Owned {
    fn from(response: Response<'_>) -> Self {
        match response {
            Response::Continuation(_) => Self::Continuation,
            Response::Status { kind, text } => Self::Status(kind, text.to_vec()),
            Response::Untagged => Self::Untagged,
            Response::Tagged { tag, kind, text } => Self::Tagged(tag.to_vec(), kind, text.to_vec()),
            Response::Garbage => Self::Garbage,
        }
    }
}

fn broken(error: &std::io::Error) -> Error {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof => {
            Error::Closed
        }
        _ => Error::Broken(crate::conn::socket::why(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a client says to a server that answers with `script`, and what comes of `ask`.
    async fn asked(script: &'static [u8]) -> Result<Told, Error> {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let (mut read, mut write) = tokio::io::split(theirs);
        write.write_all(script).await.unwrap();
        tokio::spawn(async move {
            let mut sink = Vec::new();
            let _ = read.read_to_end(&mut sink).await;
            drop(write);
        });
        let mut talk = Talk::new(ours, Vec::new(), Duration::from_millis(200));
        let greeting = talk.greeting().await?;
        talk.ask(greeting).await
    }

    #[tokio::test]
    async fn what_a_server_tells_is_collected() {
        let told = asked(
            b"* OK hi\r\n* CAPABILITY IMAP4rev1 ID\r\nD1 OK done\r\n* ID (\"name\" \"Dovecot\")\r\nD2 OK done\r\n",
        )
        .await
        .unwrap();
        assert_eq!(told.greeting, b"hi");
        assert!(told.has("id") && !told.has("IDLE"));
        assert_eq!(told.product(), Product::Dovecot);
        assert_eq!(told.stray, None);
    }

    #[tokio::test]
    async fn a_header_taken_for_a_command_is_noticed() {
        let told = asked(
            b"* OK hi\r\nPROXY BAD Unknown command.\r\n* CAPABILITY IMAP4rev1\r\nD1 OK done\r\n",
        )
        .await
        .unwrap();
        assert_eq!(told.stray.as_deref(), Some("PROXY BAD Unknown command."));
        let told = asked(b"* OK hi\r\n* BAD What?\r\n* BYE Too many.\r\n").await;
        assert_eq!(told.unwrap_err(), Error::NotImap("* BAD What?".to_owned()));
    }

    #[tokio::test]
    async fn what_is_no_answer_is_said_so() {
        assert_eq!(asked(b"* BYE down\r\n").await.unwrap_err(), Error::Bye("down".to_owned()));
        assert!(matches!(asked(b"220 ESMTP\r\n").await, Err(Error::NotImap(_))));
        let limit = Duration::from_millis(200);
        assert_eq!(asked(b"* OK hi\r\n").await.unwrap_err(), Error::Timeout(limit));
    }
}
