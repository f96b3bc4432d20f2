//! Who the client is, told to the backend by an ID command (RFC 2971) as Dovecot's own proxy sends it.
//!
//! In: a [`Person`], whom the proxy vouches for, and the fields that the client itself sent. Out: one ID command, then
//! what its answer means. Dovecot believes the first ID of a connection, from an address in its
//! `login_trusted_networks`, and looks at no later one; so ours comes before everything else, and the client's
//! fields follow in the same list. Since 2.4 one bad value fails the whole command: nothing is written that
//! is not an address, a port, a number or a DNS name. `x-multiplex` is never sent: it would change the protocol.
//!
//! Loops: [`TTL`] proxies may follow each other. Each passes on one less than it was told, and one that was told 1 refuses
//! ([`Person::hops`]).
//! Limits: [`MAX_ANSWER`] bytes of answer. The deadline is the driver's.

use std::net::SocketAddr;

use super::id::{Fields, List};
use super::refusal;
use super::response::{self, Kind, Response};
use crate::proto::proxy_header::host_name;

/// How many proxies may stand in a row, as with Dovecot 2.4.
pub const TTL: u32 = 7;
/// Bytes that the backend may say to the ID. Dovecot's own list takes a line.
pub const MAX_ANSWER: usize = 8 * 1024;

/// What is said of a client.
#[derive(Clone, Copy, Debug)]
pub struct Person<'a> {
    /// As in our own log; 1 to 64 characters.
    pub session: &'a str,
    pub client: SocketAddr,
    /// Where it connected to.
    pub listener: SocketAddr,
    /// Whether it speaks TLS.
    pub tls: bool,
    /// Which host it asked for.
    pub server_name: Option<&'a str>,
    /// How many proxies there may be after us.
    pub hops: u32,
}

/// How many proxies there may be behind one that was told `ttl`; `None`: it must refuse.
pub fn hops_after(ttl: Option<u32>) -> Option<u32> {
    ttl.unwrap_or(TTL).min(TTL).checked_sub(1).filter(|hops| *hops > 0)
}

/// Appends `tag ID (…)`, its fields in Dovecot's order, and `fields` behind them.
pub fn write(tag: &[u8], person: &Person<'_>, fields: &Fields, out: &mut Vec<u8>) {
    debug_assert!((1..=64).contains(&person.session.len()));
    let mut list = List::begin(tag, out);
    let mut say = |key: &str, value: &str| list.pair(key.as_bytes(), Some(value.as_bytes()));
    say("x-session-id", person.session);
    for (ip, port, address) in [
        ("x-originating-ip", "x-originating-port", person.client),
        ("x-connected-ip", "x-connected-port", person.listener),
    ] {
        // A balancer's header may leave out either; half an address is better than one that fails the command.
        if !address.ip().is_unspecified() {
            say(ip, &address.ip().to_canonical().to_string());
        }
        if address.port() != 0 {
            say(port, &address.port().to_string());
        }
    }
    say("x-proxy-ttl", &person.hops.to_string());
    if person.tls {
        say("x-client-transport", "TLS");
    }
    if let Some(name) = person.server_name.and_then(host_name) {
        say("x-connected-name", name);
    }
    list.fields(fields);
    list.end();
}

/// What the backend made of the ID.
#[derive(Debug, Eq, PartialEq)]
pub enum Verdict {
    Taken,
    /// NO or BAD, with its text. It can still log somebody in.
    Refused(Vec<u8>),
}

/// Why a backend that was sent an ID gets no password.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("it says BYE")]
    Bye,
    #[error("it does not speak IMAP")]
    Garbage,
    #[error("it says more than {MAX_ANSWER} bytes")]
    TooLong,
}

/// Reads the answer to one ID. Nothing of it is for the client, but for alerts.
pub struct Answer<'a> {
    /// Untagged responses that the person must see (RFC 9051 §7.1).
    pub alerts: Vec<u8>,
    tag: &'a [u8],
    scanner: response::Scanner,
    /// Bytes that may still come.
    room: usize,
}

impl<'a> Answer<'a> {
    /// `tag`: that of the command, which nobody can guess.
    pub fn to(tag: &'a [u8]) -> Self {
        Self { alerts: Vec::new(), tag, scanner: response::Scanner::default(), room: MAX_ANSWER }
    }

    /// Takes the answer off the front of `input`, as far as it goes; `None`: more is needed.
    pub fn read(&mut self, input: &mut Vec<u8>) -> Result<Option<Verdict>, Error> {
        let mut taken = 0;
        let verdict = loop {
            let next = self.scanner.next(&input[taken..], self.room);
            let Some(response::Whole { response, length, .. }) =
                next.map_err(|_| Error::TooLong)?
            else {
                break None;
            };
            self.room -= length.min(self.room);
            taken += length;
            if let Response::Status { kind, text } = response {
                self.alerts.extend(refusal::alert(kind, text).unwrap_or_default());
            }
            match response {
                Response::Tagged { tag, kind, text } if tag == self.tag => {
                    let taken = kind == Kind::Ok;
                    break Some(match taken {
                        true => Verdict::Taken,
                        false => Verdict::Refused(text.to_vec()),
                    });
                }
                Response::Status { kind: Kind::Bye, .. } => return Err(Error::Bye),
                // `* ID`, and whatever else a server has to say: Dovecot may greet only now.
                Response::Untagged
                | Response::Status { kind: Kind::Ok | Kind::No | Kind::Bad, .. } => {}
                Response::Status { kind: Kind::PreAuth, .. }
                | Response::Continuation(_)
                | Response::Tagged { .. }
                | Response::Garbage => return Err(Error::Garbage),
            }
        };
        input.drain(..taken);
        Ok(verdict)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERSON: Person<'_> = Person {
        session: "00c0ffee",
        client: SocketAddr::new(
            std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 9)),
            50_000,
        ),
        listener: SocketAddr::new(
            std::net::IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 1)),
            993,
        ),
        tls: true,
        server_name: Some("mail.example.org"),
        hops: 6,
    };

    fn written(person: &Person<'_>, id: &[u8]) -> String {
        let mut out = Vec::new();
        write(b"P1", person, &Fields::parse(id).expect("a list"), &mut out);
        String::from_utf8(out).expect("it is ASCII")
    }

    #[test]
    fn our_fields_come_first_in_dovecots_order_and_the_clients_behind_them() {
        let id = br#"("name" "x" "x-originating-ip" "6.6.6.6" "X-Session-Id" "evil" "os" NIL)"#;
        assert_eq!(
            written(&PERSON, id),
            "P1 ID (\"x-session-id\" \"00c0ffee\" \
             \"x-originating-ip\" \"192.0.2.9\" \"x-originating-port\" \"50000\" \
             \"x-connected-ip\" \"198.51.100.1\" \"x-connected-port\" \"993\" \
             \"x-proxy-ttl\" \"6\" \"x-client-transport\" \"TLS\" \
             \"x-connected-name\" \"mail.example.org\" \"name\" \"x\" \"os\" NIL)\r\n"
        );
    }

    #[test]
    fn what_a_server_would_not_take_is_left_out() {
        let person = Person {
            client: "[::ffff:192.0.2.9]:1".parse().expect("an address"),
            listener: "0.0.0.0:0".parse().expect("an address"),
            tls: false,
            server_name: None,
            ..PERSON
        };
        assert_eq!(
            written(&person, b"NIL"),
            "P1 ID (\"x-session-id\" \"00c0ffee\" \"x-originating-ip\" \"192.0.2.9\" \
             \"x-originating-port\" \"1\" \"x-proxy-ttl\" \"6\")\r\n"
        );
        let six = Person { client: "[2001:db8::1]:1".parse().expect("an address"), ..PERSON };
        assert!(written(&six, b"NIL").contains("\"x-originating-ip\" \"2001:db8::1\""));
        let long = format!("{}.example", "a".repeat(64));
        for bad in ["", "a b", "a\"", "a_b", "-a", "a-", "a..b", "1.2.3.4", "b\u{fc}cher", &long] {
            let person = Person { server_name: Some(bad), ..PERSON };
            assert!(!written(&person, b"NIL").contains("x-connected-name"), "{bad}");
        }
    }

    #[test]
    fn no_list_has_more_than_thirty_pairs() {
        let many = format!("({})", vec!["\"k\" \"v\""; 30].join(" "));
        let list = written(&PERSON, many.as_bytes());
        assert_eq!(list.matches("\"k\" \"v\"").count(), 22, "eight are ours");
    }

    #[test]
    fn every_proxy_allows_one_less_until_one_refuses() {
        let mut ttl = None;
        let mut proxies = 0;
        while let Some(hops) = hops_after(ttl) {
            (ttl, proxies) = (Some(hops), proxies + 1);
        }
        assert_eq!(proxies, 6);
        assert_eq!(hops_after(Some(u32::MAX)), Some(TTL - 1), "nobody gets more than the start");
        assert_eq!(hops_after(Some(2)), Some(1));
        assert_eq!((hops_after(Some(1)), hops_after(Some(0))), (None, None));
    }

    #[test]
    fn the_answer_is_taken_whole_and_nothing_behind_it() {
        let refused = |text: &[u8]| Ok(Some(Verdict::Refused(text.to_vec())));
        for (said, expected, rest) in [
            (&b"* ID NIL\r\nP1 OK done\r\nX"[..], Ok(Some(Verdict::Taken)), &b"X"[..]),
            (b"* ID (\"n\" {10}\r\nP1 NO oh\r\n)\r\nP1 OK\r\n", Ok(Some(Verdict::Taken)), b""),
            (b"* OK [CAPABILITY ID] ready\r\nP1 OK done\r\n", Ok(Some(Verdict::Taken)), b""),
            (b"P1 BAD what\r\n", refused(b"what"), b""),
            (b"P1 NO\r\n", refused(b""), b""),
            (b"* BYE no\r\n", Err(Error::Bye), b""),
            (b"P2 OK done\r\n", Err(Error::Garbage), b""),
            (b"+ go on\r\n", Err(Error::Garbage), b""),
            (b"HTTP/1.1 400\r\n", Err(Error::Garbage), b""),
            (b"* ID NIL\r\n", Ok(None), b""),
        ] {
            for step in [1, 3, said.len()] {
                let (mut answer, mut input) = (Answer::to(b"P1"), Vec::new());
                let mut got = Ok(None);
                let mut pieces = said.chunks(step);
                while got == Ok(None)
                    && let Some(piece) = pieces.next()
                {
                    input.extend_from_slice(piece);
                    got = answer.read(&mut input);
                }
                assert_eq!(got, expected, "{}", String::from_utf8_lossy(said));
                if got.is_ok() && step == said.len() {
                    assert_eq!(input, rest);
                }
            }
        }
    }

    #[test]
    fn an_answer_without_end_is_an_error_however_it_is_cut() {
        for line in [&b"* ID NIL\r\n"[..], b"* x"] {
            let (mut answer, mut input, mut got) = (Answer::to(b"P1"), Vec::new(), Ok(None));
            let mut said = 0;
            while got == Ok(None) {
                input.extend_from_slice(line);
                said += line.len();
                got = answer.read(&mut input);
                assert!(said < 2 * MAX_ANSWER);
            }
            assert_eq!(got, Err(Error::TooLong));
        }
    }
}
