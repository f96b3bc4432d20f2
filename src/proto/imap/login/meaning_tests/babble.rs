//! Bytes without a meaning: whatever they are, cuts change nothing and nothing unframed reaches the backend.

use proptest::prelude::*;
use proptest::sample::select;

use super::*;

/// Bytes that mean something to one reader or another, in any order.
fn babble(words: &'static [&'static [u8]]) -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        9 => select(words.to_vec()).prop_map(<[u8]>::to_vec),
        1 => prop::collection::vec(any::<u8>(), 1..6),
    ];
    prop::collection::vec(word, 0..40).prop_map(|words| words.concat())
}

const CLIENT: &[&[u8]] = &[
    b"\r\n",
    b"\r\n",
    b"\n",
    b"\r",
    b" ",
    b" ",
    b"a",
    b"b ",
    b"a LOGIN ",
    b" LOGIN ",
    b"c ID (",
    b" ID ",
    b"NOOP",
    b"AUTHENTICATE PLAIN ",
    b"{3+}\r\n",
    b"{2}\r\n",
    b"{0}",
    b"{004+}\n",
    b"{+3}\r\n",
    b"{5-}\r\n",
    b"{5001}\r\n",
    b"{99999999999999999999+}\r\n",
    b"{3+",
    b"}",
    b"{",
    b"(",
    b")",
    b"\"",
    b"\\",
    b"\"x\"",
    b"NIL",
    b"*",
    b"=",
    b"AAAA",
    b"AA==",
    b"\0",
    b"\xc3\xa4",
];

const BACKEND: &[&[u8]] = &[
    b"\r\n",
    b"\r\n",
    b"\r\n",
    b"\n",
    b"\r",
    b" ",
    b"P1 ",
    b"P1 OK ",
    b"P1 NO ",
    b"P1 BAD x\r\n",
    b"* ",
    b"* OK ",
    b"* X ",
    b"* CAPABILITY A STARTTLS",
    b"* BYE ",
    b"+",
    b"+ ",
    b"+ \r\n",
    b"+ AAAA\r\n",
    b"+ AAAA\r\n",
    b"[EXPIRED] ",
    b"[REFERRAL x] ",
    b"* OK [ALERT] ",
    b"{3}",
    b"{3}\r\n",
    b"{0}\r\n",
    b"{3+}",
    b"{99999999999999999999}\r\n",
    b"\"",
    b"x",
    b"\0",
    b"\xc3\xa4",
];

/// What [`Dialogue`] makes of `stream`, every login refused: its answers, and what it would log in with.
fn dialogue_only(stream: &[u8], cuts: &[usize]) -> (Vec<u8>, Option<End>) {
    let mut cuts = cuts.iter().copied().cycle();
    let (mut dialogue, mut input) = (Dialogue::new(LIMITS), Input::default());
    let (mut out, mut unsent) = (Vec::new(), stream);
    loop {
        match dialogue.advance(&mut input, CAPABILITIES, &mut out) {
            Next::More => {
                assert!(input.bytes().len() <= line::MAX_ID + LIMITS.line);
                if unsent.is_empty() {
                    return (out, None);
                }
                let cut = cuts.next().expect("endless").min(unsent.len());
                input.buffer().extend_from_slice(&unsent[..cut]);
                unsent = &unsent[cut..];
            }
            Next::StartTls => unreachable!("TLS is on"),
            Next::LogIn(Login { tag, method }) => {
                let (first, second) = match method {
                    Method::Login { user, password, .. } => (user, Some(password)),
                    Method::Authenticate { mechanism, initial } => {
                        (mechanism.into_bytes(), initial)
                    }
                };
                let second = second.as_ref().map(Secret::expose);
                out.extend(format!("login {tag:?} {first:?} {second:?}\n").into_bytes());
                if let Some(end) = dialogue.on_outcome(false, &mut out) {
                    return (out, Some(end));
                }
            }
            Next::Close(end) => return (out, Some(end)),
        }
    }
}

/// What one [`Exchange`] makes of babble on both sides: what each was sent, and how it ended.
fn exchange_only(
    login: &Login,
    dialect: Dialect,
    backend: &[u8],
    client: &[u8],
    cuts: &[usize],
) -> (Vec<u8>, Vec<u8>, Option<Step>) {
    let mut cuts = cuts.iter().copied().cycle();
    let mut cut = |left: usize| cuts.next().expect("endless").min(left);
    let repair = Repair::new(&[], &[]);
    let mut exchange = Exchange::new(login, &repair, LIMITS, b"P1");
    let (mut to_backend, mut to_client) = (Vec::new(), Vec::new());
    let (mut from_backend, mut from_client) = (Vec::new(), Input::default());
    let (mut backend, mut client) = (backend, client);
    let (mut step, mut started) = (exchange.open(&mut to_client), false);
    loop {
        if step == Step::Backend && !std::mem::replace(&mut started, true) {
            step = exchange.start(dialect, &id::Fields::default(), Vec::new(), &mut to_backend);
        }
        let sent = (to_backend.len(), to_client.len());
        let next = match step {
            Step::Done(_) | Step::Close(_) => return (to_backend, to_client, Some(step)),
            Step::Backend => {
                exchange.on_backend(&mut from_backend, &mut to_backend, &mut to_client)
            }
            Step::Client => exchange.on_client(&mut from_client, &mut to_backend, &mut to_client),
        };
        if next == step && (to_backend.len(), to_client.len()) == sent {
            let (source, sink) = match step {
                Step::Backend => (&mut backend, &mut from_backend),
                _ => (&mut client, from_client.buffer()),
            };
            if source.is_empty() && step == Step::Backend {
                let last = exchange.on_lost(Lost::Closed, &mut to_client);
                return (to_backend, to_client, Some(last));
            }
            if source.is_empty() {
                return (to_backend, to_client, None);
            }
            let (piece, rest) = source.split_at(cut(source.len()));
            sink.extend_from_slice(piece);
            *source = rest;
        }
        step = next;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn cuts_change_nothing_whatever_a_client_says(stream in babble(CLIENT), cuts in cuts()) {
        let whole = dialogue_only(&stream, &[usize::MAX]);
        prop_assert_eq!(dialogue_only(&stream, &cuts), whole);
    }

    #[test]
    fn cuts_change_nothing_whatever_both_sides_say(
        (backend, client) in (babble(BACKEND), babble(CLIENT)),
        line in select(vec![
            &b"a LOGIN u {2+}\r\n\xc3\xa4\r\n"[..],
            b"a AUTHENTICATE PLAIN\r\n",
            b"a AUTHENTICATE PLAIN AAAA\r\n",
            b"a AUTHENTICATE LOGIN\r\n",
            b"a AUTHENTICATE CRAM-MD5\r\n",
        ]),
        offers in offers(),
        cuts in cuts(),
    ) {
        let mut input = Input::default();
        input.buffer().extend_from_slice(line);
        let Next::LogIn(login) = Dialogue::new(LIMITS).advance(&mut input, b"", &mut Vec::new()) else {
            panic!("a login")
        };
        let dialect = Dialect::of(offers.list().as_bytes());
        let whole = exchange_only(&login, dialect, &backend, &client, &[usize::MAX]);
        prop_assert_eq!(exchange_only(&login, dialect, &backend, &client, &cuts), whole.clone());
        // Whatever either side says: one command, then base64 or `*`.
        let (to_backend, _, _) = whole;
        if line.starts_with(b"a LOGIN") {
            let (sync, plus) = (&b"P1 LOGIN \"u\" {2}\r\n\xc3\xa4\r\n"[..], &b"P1 LOGIN \"u\" {2+}\r\n\xc3\xa4\r\n"[..]);
            prop_assert!(sync.starts_with(&to_backend) || plus == to_backend);
        } else {
            let mut lines = to_backend.split_inclusive(|&octet| octet == b'\n');
            // Or none, as long as the client has not said what needs no backend.
            let command = lines.next().is_none_or(|line| line.starts_with(b"P1 AUTHENTICATE "));
            prop_assert!(command);
            for line in lines {
                let line = line.strip_suffix(b"\r\n").expect("whole lines only");
                prop_assert!(line == b"*" || sasl::decode(line).is_some());
            }
        }
    }
}
