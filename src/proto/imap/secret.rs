//! Bytes that never print, in any build, and are overwritten when they are dropped.

use std::fmt;

use zeroize::{Zeroize as _, Zeroizing};

/// A password or a SASL message. There is no way to log one by accident: `Debug` shows its length only.
#[derive(Clone, Eq, PartialEq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes, for the one place that passes them on.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({} bytes)", self.0.len())
    }
}

/// What a client has sent and nobody has read yet. It holds passwords, so what is consumed is overwritten.
#[derive(Default)]
pub struct Input(Zeroizing<Vec<u8>>);

impl From<Vec<u8>> for Input {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }
}

impl Input {
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Where newly received bytes are appended.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }

    /// As [`Input::buffer`], with room for `n` more bytes.
    pub fn room(&mut self, n: usize) -> &mut Vec<u8> {
        make_room(&mut self.0, n);
        &mut self.0
    }

    /// Takes `n` bytes off the front. When nothing is left, no buffer is kept either: the client may be
    /// silent from now on.
    pub fn consume(&mut self, n: usize) {
        let rest = self.0.len() - n;
        if rest == 0 {
            *self = Self::default();
            return;
        }
        self.0.copy_within(n.., 0);
        self.0[rest..].zeroize();
        self.0.truncate(rest);
    }
}

/// Room for `n` more bytes. Where that needs another allocation, the old one is overwritten before it is freed, which
/// `Vec::reserve` would not do.
pub fn make_room(bytes: &mut Vec<u8>, n: usize) {
    let needed = bytes.len() + n;
    if bytes.capacity() < needed {
        let mut larger = Vec::with_capacity(needed.max(2 * bytes.capacity()));
        larger.extend_from_slice(bytes);
        bytes.zeroize();
        *bytes = larger;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_shows_its_length_and_nothing_else() {
        assert_eq!(format!("{:?}", Secret::new(b"S3cr3t".to_vec())), "Secret(6 bytes)");
    }

    #[test]
    fn room_is_made_without_losing_a_byte() {
        let mut input = Input::from(b"a LOGIN u p".to_vec());
        for n in [0, 1, 100, 10_000] {
            assert!(input.room(n).capacity() >= 11 + n);
            assert_eq!(input.bytes(), b"a LOGIN u p");
        }
    }
}
