//! Hides a server name that is no DNS name, which rustls would refuse, without a change to what is hashed.
//!
//! A hello is part of what both sides hash and sign (RFC 8446 §4.4.1), so nothing of it can be taken out. But an extension
//! of an unknown type is skipped, and its type is two bytes: [`mask`] writes another one over that of `server_name`, on
//! the way to rustls; [`find`] says where the two bytes stand, on the way to the hash, so that those of the client go there.
//! **Invariant:** a hello is masked only if the client did not use that type itself, so whoever hashes it can't mistake one
//! for the other.
//! Not here: which hellos are masked ([`super::ClientHello::to_mask`]), and the hash (`tls::masked`).

use super::{CLIENT_HELLO, Cursor, HANDSHAKE, HEADER};

/// Of the types for private use (RFC 8446 §11) one that nobody is known to use.
pub(super) const MASKED: u16 = 0xff5e;
/// The type of `server_name`.
pub const SERVER_NAME: [u8; 2] = [0, 0];

/// Type and length of a handshake message.
pub(super) const MESSAGE: usize = 4;

/// Masks the hello at the front of `input`, where it lies in records; the extension's type is byte `at` of the message, as
/// [`super::ClientHello::to_mask`] says.
pub fn mask(input: &mut [u8], at: usize) {
    for (index, byte) in (at..).zip(MASKED.to_be_bytes()) {
        if let Some(place) = place(input, index) {
            input[place] = byte;
        }
    }
}

/// Where byte `at` of the handshake messages in `input` is; between records it may be anywhere.
fn place(input: &[u8], mut at: usize) -> Option<usize> {
    let mut start = 0;
    loop {
        let &[kind, _, _, high, low] = input.get(start..)?.first_chunk::<HEADER>()?;
        let length = usize::from(u16::from_be_bytes([high, low]));
        start += HEADER;
        if kind == HANDSHAKE {
            if at < length {
                return Some(start + at).filter(|place| *place < input.len());
            }
            at -= length;
        }
        start += length;
    }
}

/// Where in `message`, a handshake message, the masked type is: two bytes. The message may be cut off behind it, as it
/// is where a pre-shared key is proved (RFC 8446 §4.2.11.2), and others may follow it.
pub fn find(message: &[u8]) -> Option<usize> {
    if message.first() != Some(&CLIENT_HELLO) {
        return None;
    }
    let mut hello = Cursor(message.get(MESSAGE..)?);
    let _version_and_random = hello.take(2 + 32)?;
    let _session_id = hello.list_8()?;
    let _suites = hello.list_16()?;
    let _compression = hello.list_8()?;
    let length = usize::from(hello.number()?);
    let end = message.len().min(message.len() - hello.0.len() + length);
    let mut extensions = Cursor(&message[message.len() - hello.0.len()..end]);
    loop {
        let at = end - extensions.0.len();
        if extensions.number()? == MASKED {
            return Some(at);
        }
        extensions.list_16()?;
    }
}
