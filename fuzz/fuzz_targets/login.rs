//! Whatever a backend and a client say within a login: no panic, and never a word to the backend while the client is asked.
#![no_main]

use imaps_proxy::proto::imap::capability::Repair;
use imaps_proxy::proto::imap::dialogue::{Dialogue, Next};
use imaps_proxy::proto::imap::line::Limits;
use imaps_proxy::proto::imap::login::{Dialect, Exchange, Step};
use imaps_proxy::proto::imap::secret::Input;

const LIMITS: Limits = Limits { line: 128, literal: 64, sasl: 64 };

libfuzzer_sys::fuzz_target!(|said: (&[u8], &[u8], &[u8], bool)| {
    let (client, offers, mut backend, drip) = said;
    let (mut dialogue, mut input) = (Dialogue::new(LIMITS), Input::from(client.to_vec()));
    let Next::LogIn(login) = dialogue.advance(&mut input, b"IMAP4rev1", &mut Vec::new()) else {
        return;
    };
    let repair = Repair::new(&[], &[]);
    let mut exchange = Exchange::new(&login, &repair, LIMITS, b"P1");
    let (mut to_backend, mut to_client, mut from_backend) = (Vec::new(), Vec::new(), Vec::new());
    let mut step = exchange.open(&mut to_client);
    while step == Step::Client {
        let told = to_client.len();
        step = exchange.on_client(&mut input, &mut to_backend, &mut to_client);
        assert!(to_backend.is_empty(), "there is no backend yet");
        if step == Step::Client && to_client.len() == told {
            return; // the client has said all
        }
    }
    if step != Step::Backend {
        return;
    }
    step = exchange.start(Dialect::of(offers), dialogue.id(), &mut to_backend);
    assert!(to_backend.starts_with(b"P1 "));
    loop {
        to_backend.clear();
        step = match step {
            Step::Backend => {
                exchange.on_backend(&mut from_backend, &mut to_backend, &mut to_client)
            }
            Step::Client => exchange.on_client(&mut input, &mut to_backend, &mut to_client),
            Step::Done(_) | Step::Close(_) => return,
        };
        match step {
            Step::Client if !to_backend.is_empty() => {
                unreachable!("it asked the client and told the backend")
            }
            Step::Client if input.bytes().contains(&b'\n') => {}
            Step::Backend if !to_backend.is_empty() => {}
            Step::Client | Step::Backend if backend.is_empty() => return,
            Step::Client => return, // the client has said all
            _ => {
                let (piece, rest) = backend.split_at(if drip { 1 } else { backend.len() });
                from_backend.extend_from_slice(piece);
                backend = rest;
            }
        }
    }
});
