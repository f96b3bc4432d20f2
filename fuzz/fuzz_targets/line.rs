//! Whatever a client says before login: no panic, and byte by byte the same answers as whole.
#![no_main]

use imaps_proxy::proto::imap::dialogue::{Dialogue, Next};
use imaps_proxy::proto::imap::line::Limits;
use imaps_proxy::proto::imap::secret::Input;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    assert_eq!(answers(data.chunks(data.len().max(1))), answers(data.chunks(1)));
    let mut out = Vec::new();
    let mut input = Input::from(data.to_vec());
    match Dialogue::before_tls(LIMITS).advance(&mut input, b"IMAP4rev1", &mut out) {
        Next::LogIn(login) => panic!("a login before TLS: {login:?}"),
        Next::StartTls => assert!(input.bytes().is_empty()),
        Next::More | Next::Close(_) => {}
    }
});

const LIMITS: Limits = Limits { line: 128, literal: 64, sasl: 64 };

fn answers<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut dialogue = Dialogue::new(LIMITS);
    let (mut input, mut out) = (Input::default(), Vec::new());
    for piece in pieces {
        input.buffer().extend_from_slice(piece);
        loop {
            match dialogue.advance(&mut input, b"IMAP4rev1", &mut out) {
                Next::More => break,
                Next::LogIn(login) => out.extend_from_slice(format!("{login:?}").as_bytes()),
                Next::Close(_) => return out,
                Next::StartTls => unreachable!("TLS is on"),
            }
        }
    }
    out
}
