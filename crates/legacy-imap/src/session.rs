//! One client's session: greeting, login, and which command may be given when.
//!
//! In: commands from `wire`. Out: responses; changes to the shared `mailbox::Store`. After every command
//! the client is told what others have changed meanwhile, message numbers only where they may move.
//! Limits: [`LOGIN_LIMIT`] to log in and [`LOGIN_ATTEMPTS`] refusals; [`IDLE_LIMIT`] of silence after it.
//! Not here: commands on mailboxes (`folders`), on the selected one's messages (`selected`).

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use tokio::time::Instant;

use super::mailbox::{self, News, Store, View};
use super::parse::{self, Args, Piece};
use super::structure::push_string;
use super::wire::{self, Received, Wire};

/// From the greeting to the accepted login.
const LOGIN_LIMIT: Duration = Duration::from_secs(60);
const LOGIN_ATTEMPTS: u32 = 10;
/// Silence after login, IDLE included (RFC 3501 §5.4).
const IDLE_LIMIT: Duration = Duration::from_mins(30);

/// The same before and after login, STARTTLS included: as servers of its time have it.
const CAPABILITIES: &str = "IMAP4rev1 LITERAL+ SASL-IR ID IDLE NAMESPACE UIDPLUS UNSELECT MOVE \
                            CHILDREN SPECIAL-USE STARTTLS AUTH=PLAIN";

/// What all sessions share.
pub struct Account {
    pub user: String,
    pub password: String,
    pub store: Store,
}

/// Why a command is not answered `OK`.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The session is over.
    #[error(transparent)]
    Ended(#[from] wire::Error),
    /// `BAD`.
    #[error(transparent)]
    Bad(#[from] parse::Error),
    /// `NO`; the text begins with the response code.
    #[error(transparent)]
    No(#[from] mailbox::Error),
}

/// The tagged answer, without tag: `OK FETCH completed`.
pub type Answer = Result<String, Failure>;

pub struct Session {
    pub(super) wire: Wire,
    pub(super) account: Arc<Account>,
    pub(super) view: Option<View>,
    authenticated: bool,
    refusals: u32,
    login_by: Instant,
    leaving: bool,
}

impl Session {
    pub fn new(wire: Wire, account: Arc<Account>) -> Self {
        let login_by = Instant::now() + LOGIN_LIMIT;
        let (view, authenticated, refusals, leaving) = (None, false, 0, false);
        Self { wire, account, view, authenticated, refusals, login_by, leaving }
    }

    /// Serves to the end; returns why it ended, for the log.
    pub async fn run(mut self) -> String {
        let ended = self.serve().await;
        let last_words = match &ended {
            Err(wire::Error::TooLong) => "* BYE Line or literal too long\r\n",
            Err(wire::Error::Silent) => "* BYE Silent for too long\r\n",
            Err(wire::Error::Stopped) => "* BYE Server shutting down\r\n",
            _ => "",
        };
        self.wire.close(last_words).await;
        ended.map_or_else(|error| error.to_string(), |()| "logout".to_owned())
    }

    async fn serve(&mut self) -> Result<(), wire::Error> {
        self.wire.push(format!("* OK [CAPABILITY {CAPABILITIES}] Legacy IMAP server ready\r\n"));
        while !self.leaving {
            self.wire.flush().await?;
            let limit = self.limit();
            let charge = self.account.store.charge();
            match self.wire.command(limit, self.authenticated, charge).await? {
                Received::Command { pieces, charge } => self.answer(pieces, charge).await?,
                Received::Refused { first_line, error } => {
                    let tag = Args::new(vec![Piece::Line(first_line)]).tag();
                    self.wire.push(match tag {
                        Ok(tag) => format!("{tag} NO {error}\r\n"),
                        Err(_) => "* BAD No tag\r\n".to_owned(),
                    });
                }
            }
        }
        Ok(())
    }

    fn limit(&self) -> Duration {
        if self.authenticated {
            return IDLE_LIMIT;
        }
        self.login_by.saturating_duration_since(Instant::now())
    }

    async fn answer(
        &mut self,
        pieces: Vec<Piece>,
        charge: mailbox::Charge,
    ) -> Result<(), wire::Error> {
        let mut args = Args::new(pieces);
        let Ok(tag) = args.tag() else {
            self.wire.push("* BAD No tag\r\n");
            return Ok(());
        };
        let command = args.space().and_then(|()| args.keyword());
        let command = command.unwrap_or_default();
        let answer = match self.dispatch(&command, args, charge).await {
            Ok(answer) => answer,
            Err(Failure::Ended(error)) => return Err(error),
            Err(Failure::Bad(error)) => format!("BAD {command}: {error}"),
            Err(Failure::No(error)) => format!("NO {error}"),
        };
        self.tell(!matches!(command.as_str(), "FETCH" | "STORE" | "SEARCH"));
        self.wire.push(format!("{tag} {answer}\r\n"));
        Ok(())
    }

    async fn dispatch(&mut self, command: &str, args: Args, charge: mailbox::Charge) -> Answer {
        match command {
            "CAPABILITY" => self.capability(args),
            "NOOP" => done(args, "NOOP"),
            "LOGOUT" => self.logout(args),
            "ID" => self.id(args),
            // It is in the list because the software could; nobody has ever set it up.
            "STARTTLS" => Ok("NO TLS is not available".to_owned()),
            "LOGIN" | "AUTHENTICATE" if self.authenticated => {
                Ok("BAD Already logged in".to_owned())
            }
            "LOGIN" => self.login(args),
            "AUTHENTICATE" => self.authenticate(args).await,
            "" => Ok("BAD No command".to_owned()),
            _ if !self.authenticated => Ok("BAD Unknown, or only after login".to_owned()),
            "IDLE" => self.idle(args).await,
            "NAMESPACE" => {
                self.wire.push("* NAMESPACE ((\"\" \"/\")) NIL NIL\r\n");
                done(args, "NAMESPACE")
            }
            "SELECT" | "EXAMINE" => self.select(args, command),
            "LIST" | "LSUB" => self.list(args, command),
            "STATUS" => self.status(args),
            "CREATE" | "DELETE" | "RENAME" | "SUBSCRIBE" | "UNSUBSCRIBE" => {
                self.manage(args, command)
            }
            "APPEND" => self.append(args, charge),
            _ => self.selected(command, args).await,
        }
    }

    /// Tells the client what has changed in the selected mailbox.
    pub(super) fn tell(&mut self, expunge: bool) {
        let Some(view) = &mut self.view else { return };
        for news in self.account.store.refresh(view, expunge) {
            let text = match news {
                News::Expunged(number) => format!("* {number} EXPUNGE\r\n"),
                News::Exists { exists, recent } => {
                    format!("* {exists} EXISTS\r\n* {recent} RECENT\r\n")
                }
                News::Keywords => format!("* FLAGS ({})\r\n", self.account.store.all_names()),
                News::Flags { number, uid, flags, recent } => {
                    let names = self.account.store.names(flags, recent);
                    format!("* {number} FETCH (UID {uid} FLAGS ({names}))\r\n")
                }
            };
            self.wire.push(text);
        }
    }

    fn capability(&mut self, args: Args) -> Answer {
        self.wire.push(format!("* CAPABILITY {CAPABILITIES}\r\n"));
        done(args, "CAPABILITY")
    }

    fn logout(&mut self, mut args: Args) -> Answer {
        args.end()?;
        self.wire.push("* BYE Logging out\r\n");
        self.leaving = true;
        // Nothing may follow the BYE but the tagged answer.
        self.view = None;
        Ok("OK LOGOUT completed".to_owned())
    }

    fn id(&mut self, mut args: Args) -> Answer {
        args.space()?;
        if args.peek() == Some(b'(') {
            args.list(Args::nstring)?;
        } else {
            args.nstring()?;
        }
        args.end()?;
        let version = env!("CARGO_PKG_VERSION");
        self.wire.push(format!(
            "* ID (\"name\" \"imaps-proxy demo server\" \"version\" \"{version}\")\r\n"
        ));
        Ok("OK ID completed".to_owned())
    }

    fn login(&mut self, mut args: Args) -> Answer {
        args.space()?;
        let user = args.astring()?;
        args.space()?;
        let password = args.astring()?;
        args.end()?;
        Ok(self.admit(&user, &password))
    }

    fn admit(&mut self, user: &[u8], password: &[u8]) -> String {
        if user == self.account.user.as_bytes() && password == self.account.password.as_bytes() {
            self.authenticated = true;
            return format!("OK [CAPABILITY {CAPABILITIES}] Logged in");
        }
        self.refusals += 1;
        if self.refusals == LOGIN_ATTEMPTS {
            self.wire.push("* BYE Too many refused logins\r\n");
            self.leaving = true;
        }
        "NO [AUTHENTICATIONFAILED] Wrong user name or password".to_owned()
    }

    /// AUTHENTICATE PLAIN (RFC 4616), with the response in the command (RFC 4959) or after a `+`.
    async fn authenticate(&mut self, mut args: Args) -> Answer {
        args.space()?;
        let mechanism = args.keyword()?;
        let initial = if args.eat(b' ') {
            Some(args.take_while(|byte| byte.is_ascii_graphic()).to_vec())
        } else {
            None
        };
        args.end()?;
        if mechanism != "PLAIN" {
            return Ok("NO [CANNOT] Mechanism unknown here".to_owned());
        }
        let encoded = if let Some(initial) = initial {
            initial
        } else {
            self.wire.push("+ \r\n");
            self.wire.flush().await?;
            self.wire.line(self.limit()).await?
        };
        if encoded == b"*" {
            return Ok("BAD Authentication cancelled".to_owned());
        }
        let Ok(response) = BASE64_STANDARD.decode(&encoded) else {
            return Ok("BAD Invalid base64".to_owned());
        };
        let fields: Vec<&[u8]> = response.split(|byte| *byte == 0).collect();
        match fields[..] {
            // To act for somebody else is not on offer; to say one's own name is harmless.
            [authorize, user, password] if authorize.is_empty() || authorize == user => {
                Ok(self.admit(user, password))
            }
            [_, _, _] => Ok(self.admit(&[], &[])),
            _ => Ok("BAD Not a PLAIN response".to_owned()),
        }
    }

    async fn idle(&mut self, mut args: Args) -> Answer {
        args.end()?;
        let mut changes = self.account.store.watch();
        self.wire.push("+ idling\r\n");
        let until = Instant::now() + IDLE_LIMIT;
        loop {
            self.tell(true);
            self.wire.flush().await?;
            let left = until.saturating_duration_since(Instant::now());
            tokio::select! {
                changed = changes.changed() => {
                    // The store lives as long as the account that is held here.
                    debug_assert!(changed.is_ok());
                }
                line = self.wire.line(left) => {
                    return Ok(if line?.eq_ignore_ascii_case(b"DONE") {
                        "OK IDLE completed".to_owned()
                    } else {
                        "BAD DONE expected".to_owned()
                    });
                }
            }
        }
    }

    /// A mailbox name as a quoted string.
    pub(super) fn quoted(name: &str) -> String {
        let mut out = Vec::new();
        push_string(&mut out, name.as_bytes());
        String::from_utf8_lossy(&out).into_owned()
    }
}

/// The answer of a command that takes no argument.
pub fn done(mut args: Args, command: &str) -> Answer {
    args.end()?;
    Ok(format!("OK {command} completed"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::sample;

    /// Everything that the server says to `input`, up to the end of the session.
    fn talk(input: &[u8]) -> String {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let store = Store::new();
            sample::fill(&store);
            let account =
                Account { user: "demo".to_owned(), password: "d\"e\\mo".to_owned(), store };
            let (client, server) = tokio::io::duplex(4096);
            let session =
                Session::new(Wire::new(server, CancellationToken::new()), Arc::new(account));
            let (mut from_server, mut to_server) = tokio::io::split(client);
            let mut said = Vec::new();
            let write = async {
                // The server may have closed already, and then need not read the rest.
                let _ = to_server.write_all(input).await;
                let _ = to_server.shutdown().await;
            };
            let (_, (), read) =
                tokio::join!(session.run(), write, from_server.read_to_end(&mut said));
            read.unwrap();
            String::from_utf8_lossy(&said).into_owned()
        })
    }

    const LOGIN: &str = "a LOGIN demo \"d\\\"e\\\\mo\"\r\n";

    #[test]
    fn every_form_of_login_is_taken() {
        for login in [
            LOGIN,
            "a login {4}\r\ndemo {6+}\r\nd\"e\\mo\r\n",
            "a AUTHENTICATE PLAIN AGRlbW8AZCJlXG1v\r\n",
            "a authenticate plain\r\nAGRlbW8AZCJlXG1v\r\n",
            "a AUTHENTICATE PLAIN ZGVtbwBkZW1vAGQiZVxtbw==\r\n",
        ] {
            assert!(talk(login.as_bytes()).contains("\r\na OK [CAPABILITY IMAP4rev1 "), "{login}");
        }
        for (login, answer) in [
            ("a LOGIN demo demo\r\n", "a NO [AUTHENTICATIONFAILED]"),
            ("a AUTHENTICATE PLAIN b3RoZXIAZGVtbwBkImVcbW8=\r\n", "a NO [AUTHENTICATIONFAILED]"),
            ("a AUTHENTICATE PLAIN\r\n*\r\n", "a BAD Authentication cancelled"),
            ("a AUTHENTICATE PLAIN =\r\n", "a BAD "),
            ("a AUTHENTICATE CRAM-MD5\r\n", "a NO "),
            ("a STARTTLS\r\n", "a NO TLS is not available"),
            ("a SELECT INBOX\r\n", "a BAD "),
            ("a LOGIN {70000}\r\n", "a NO [TOOBIG]"),
            ("\r\n", "* BAD No tag"),
        ] {
            assert!(talk(login.as_bytes()).contains(&format!("\r\n{answer}")), "{login}");
        }
    }

    #[test]
    fn limits_end_the_session_or_the_command() {
        let long = "a".repeat(70_000);
        assert!(talk(long.as_bytes()).ends_with("* BYE Line or literal too long\r\n"));
        let skipped = format!("{LOGIN}b NOOP {{70000+}}\r\n{long}\r\nc NOOP\r\n");
        let skipped = skipped.replacen(&long, &long[..70_000], 1);
        let said = talk(skipped.as_bytes());
        assert!(
            said.ends_with(
                "b NO [TOOBIG] Longer than this server takes\r\nc OK NOOP completed\r\n"
            ),
            "{said}"
        );
        assert!(talk(b"a NOOP {99999999999+}\r\n").ends_with("* BYE Line or literal too long\r\n"));
        let said = talk("x LOGIN a b\r\n".repeat(20).as_bytes());
        assert_eq!(said.matches("x NO ").count(), LOGIN_ATTEMPTS as usize);
    }

    /// Commands with their arguments drawn from what breaks parsers.
    fn command() -> impl Strategy<Value = String> {
        let verb = prop::sample::select(vec![
            "FETCH",
            "UID FETCH",
            "STORE",
            "UID STORE",
            "SEARCH",
            "UID SEARCH",
            "COPY",
            "MOVE",
            "SELECT",
            "EXAMINE",
            "LIST",
            "LSUB",
            "STATUS",
            "CREATE",
            "DELETE",
            "RENAME",
            "APPEND",
            "EXPUNGE",
            "CLOSE",
            "UID EXPUNGE",
            "IDLE\r\nDONE",
            "ID",
            "NOOP",
            "SUBSCRIBE",
            "AUTHENTICATE",
            "UID",
        ]);
        let argument = prop::sample::select(vec![
            "1",
            "1:*",
            "*",
            "4294967295",
            "2,5:3",
            "INBOX",
            "Sent",
            "new/one",
            "\"\"",
            "(",
            ")",
            "()",
            "(FLAGS",
            "BODY[]",
            "BODY[1.1.MIME]<0.9>",
            "(BODY.PEEK[HEADER.FIELDS.NOT (a)] UID)",
            "FULL",
            "BODYSTRUCTURE",
            "+FLAGS",
            "-FLAGS.SILENT",
            "(\\Deleted $x)",
            "\\Seen",
            "{3}\r\nabc",
            "{3+}\r\na\0c",
            "{0}\r\n",
            "NOT",
            "OR",
            "SINCE 1-Jan-2026",
            "TEXT é",
            "\"a\\",
            "%",
            "a/*",
            "(MESSAGES UNSEEN)",
            "NIL",
            "\" 1-Jan-2026 00:00:00 +0000\"",
        ]);
        (verb, prop::collection::vec(argument, 0..5))
            .prop_map(|(verb, arguments)| format!("t {verb} {}\r\n", arguments.join(" ")))
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

        #[test]
        fn any_octets_are_survived(input in prop::collection::vec(any::<u8>(), 0..600)) {
            talk(&input);
            talk(&[LOGIN.as_bytes(), &input].concat());
        }

        #[test]
        fn any_commands_are_survived(commands in prop::collection::vec(command(), 1..12)) {
            let said = talk(format!("{LOGIN}s SELECT INBOX\r\n{}", commands.concat()).as_bytes());
            prop_assert!(said.contains("s OK [READ-WRITE]"));
        }

        #[test]
        fn any_message_can_be_fetched(
            pieces in prop::collection::vec(prop::sample::select(vec![
                "Content-Type: multipart/mixed; boundary=b", "Content-Type: message/rfc822", "\r\n", "\n", "\r",
                "--b", "--b--", "From: \"a", "<@,>:;(", "To: g:;", "=?utf-8?q?=zz?=", " ", "\té",
                "Content-Type: text/plain; charset=\"", "Content-Disposition: a; b=\"\\",
            ]), 0..40),
        ) {
            let mail = pieces.concat();
            let said = talk(format!(
                "{LOGIN}b APPEND INBOX {{{}+}}\r\n{mail}\r\nc SELECT INBOX\r\n\
                 d FETCH * (ENVELOPE BODY BODYSTRUCTURE BODY[1] BODY[1.1.HEADER] BODY[2.TEXT])\r\n\
                 e SEARCH TEXT x FROM y\r\n", mail.len()).as_bytes());
            prop_assert!(said.contains("\r\nd OK FETCH completed\r\n"), "{}", said);
            prop_assert!(said.contains("\r\ne OK SEARCH completed\r\n"), "{}", said);
        }
    }
}
