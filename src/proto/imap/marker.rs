//! Does a line announce a literal? Told from its last bytes, however the line was cut.
//!
//! In: the pieces of one line, as they come, and its end. Out: an [`Ending`]. Standards: RFC 9051 §4.3
//! (`{n}`), RFC 7888 (`{n+}`), RFC 3516 (`~{n}` and `~{n+}`, which end in the same bytes).
//!
//! Costs a look at the last byte or two of a piece; only a run of digits at its end is walked. `LITERAL-`
//! (RFC 7888 §5) has no form of its own: `{n-}` is not a literal, and is called unclear, as is everything
//! else that one end might take for a literal and the other might not.

/// The end of a line, as far as it has come: what a cut must not lose. 16 bytes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Tail {
    size: u64,
    stage: Stage,
    sign: Sign,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum Stage {
    /// No marker may end here.
    #[default]
    Text,
    /// After `{`.
    Open,
    Digits,
    /// After the `+` or `-`.
    Sign,
    /// After `}`.
    Closed,
    /// After `}` and CR.
    Return,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum Sign {
    #[default]
    None,
    Plus,
    Minus,
}

/// What follows a line.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Ending {
    /// Another line.
    Plain,
    /// `{n}`: `n` bytes, once the other end has agreed.
    Literal(u64),
    /// `{n+}`: `n` bytes at once.
    NonSync(u64),
    /// Nobody knows: no digits, `{n-}`, or a number over 63 bits (RFC 9051 §9, `number64`).
    Unclear,
}

impl Tail {
    /// Takes the next piece of the line, without its LF.
    pub(super) fn take(&mut self, piece: &[u8]) {
        // Backwards over what can be part of a marker, to the `{` where it starts.
        let run = piece.iter().rev().take_while(|&&b| is_part(b)).count();
        let start = piece.len() - run;
        if start > 0 {
            *self = Self::default();
            if piece[start - 1] != b'{' {
                return;
            }
            self.stage = Stage::Open;
        }
        for &byte in &piece[start..] {
            self.push(byte);
        }
    }

    /// The LF has come, behind `piece`, the last of the line.
    pub(super) fn end(mut self, piece: &[u8]) -> Ending {
        self.take(piece);
        let size = self.size;
        match (self.stage, self.sign) {
            (Stage::Closed | Stage::Return, sign) => match sign {
                _ if size > MAX => Ending::Unclear,
                Sign::None => Ending::Literal(size),
                Sign::Plus => Ending::NonSync(size),
                Sign::Minus => Ending::Unclear,
            },
            _ => Ending::Plain,
        }
    }

    fn push(&mut self, byte: u8) {
        self.stage = match (self.stage, byte) {
            (Stage::Open | Stage::Digits, b'0'..=b'9') => {
                self.size = self.size.saturating_mul(10).saturating_add(u64::from(byte - b'0'));
                Stage::Digits
            }
            (stage @ (Stage::Open | Stage::Digits), b'+' | b'-') => {
                self.sign = if byte == b'+' { Sign::Plus } else { Sign::Minus };
                if stage == Stage::Open {
                    self.size = u64::MAX;
                }
                Stage::Sign
            }
            (Stage::Open, b'}') => {
                self.size = u64::MAX; // Dovecot reads `{}` as 0, others as text
                Stage::Closed
            }
            (Stage::Digits | Stage::Sign, b'}') => Stage::Closed,
            (Stage::Closed, b'\r') => Stage::Return,
            (_, b'{') => {
                *self = Self::default();
                Stage::Open
            }
            _ => {
                *self = Self::default();
                Stage::Text
            }
        };
    }
}

/// `number64` has 63 bits.
const MAX: u64 = i64::MAX as u64;

fn is_part(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'}' | b'\r')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_are_the_same_whole_byte_by_byte_and_cut_at_every_offset() {
        for (line, expected) in [
            ("a NOOP\r", Ending::Plain),
            ("", Ending::Plain),
            ("\r", Ending::Plain),
            ("a APPEND x {5}\r", Ending::Literal(5)),
            ("a APPEND x {5}", Ending::Literal(5)),
            ("a APPEND x {0}\r", Ending::Literal(0)),
            ("a APPEND x {5+}\r", Ending::NonSync(5)),
            ("a APPEND x ~{5+}\r", Ending::NonSync(5)),
            ("* 1 FETCH (BODY[] ~{77}\r", Ending::Literal(77)),
            ("a x {00000000000000000000000000000000000005}\r", Ending::Literal(5)),
            ("a x {9223372036854775807}\r", Ending::Literal(9_223_372_036_854_775_807)),
            ("a x {9223372036854775808}\r", Ending::Unclear),
            ("a x {18446744073709551617}\r", Ending::Unclear),
            ("a x {99999999999999999999999999+}\r", Ending::Unclear),
            ("a x {5-}\r", Ending::Unclear),
            ("a x {}\r", Ending::Unclear),
            ("a x {+}\r", Ending::Unclear),
            ("a x {5}\r\r", Ending::Plain),
            ("a x {5}}\r", Ending::Plain),
            ("a x {5++}\r", Ending::Plain),
            ("a x {5+1}\r", Ending::Plain),
            ("a x {+5}\r", Ending::Plain),
            ("a x {5} \r", Ending::Plain),
            ("a x 5}\r", Ending::Plain),
            ("a x {{5}\r", Ending::Literal(5)),
            ("a x {4}{5}\r", Ending::Literal(5)),
            ("a x {4}\r5}\r", Ending::Plain),
            ("{5}", Ending::Literal(5)),
        ] {
            let bytes = line.as_bytes();
            assert_eq!(Tail::default().end(bytes), expected, "{line:?}");
            for cut in 0..=bytes.len() {
                let mut tail = Tail::default();
                tail.take(&bytes[..cut]);
                assert_eq!(tail.end(&bytes[cut..]), expected, "{line:?} cut at {cut}");
            }
            let mut tail = Tail::default();
            for byte in bytes.chunks(1) {
                tail.take(byte);
            }
            assert_eq!(tail.end(b""), expected, "{line:?} byte by byte");
        }
    }
}
