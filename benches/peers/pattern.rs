//! The bytes of every literal: pseudo-random with a prime period, so that a byte that is lost, doubled or moved
//! shows, and comparing costs no more than reading memory.

use std::sync::OnceLock;

/// Prime, so that no buffer size and no record size is a multiple of it.
const PERIOD: usize = 65_521;
const CHUNK: usize = 256 * 1024;

pub struct Pattern;

impl Pattern {
    fn bytes() -> &'static [u8] {
        static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
        BYTES.get_or_init(|| {
            let mut x = 0x9e37_79b9_7f4a_7c15_u64;
            let mut period = || {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                (x >> 32) as u8
            };
            let one: Vec<u8> = (0..PERIOD).map(|_| period()).collect();
            one.iter().copied().cycle().take(PERIOD + CHUNK).collect()
        })
    }

    /// Up to `length` bytes, and no more than fit into one write, as they stand at `offset`.
    pub fn slice(offset: u64, length: usize) -> &'static [u8] {
        let start = (offset % PERIOD as u64) as usize;
        &Self::bytes()[start..start + length.min(CHUNK)]
    }

    /// Whether `bytes` stand at `offset`.
    pub fn matches(mut offset: u64, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let expected = Self::slice(offset, bytes.len());
            let (now, rest) = bytes.split_at(expected.len());
            if now != expected {
                return false;
            }
            offset += expected.len() as u64;
            bytes = rest;
        }
        true
    }
}
