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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_shows_its_length_and_nothing_else() {
        assert_eq!(format!("{:?}", Secret::new(b"S3cr3t".to_vec())), "Secret(6 bytes)");
    }
}
