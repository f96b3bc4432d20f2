//! Lets through so many of many like lines that a log stays readable, and counts the others.
//!
//! In: kind, source and time of something that happened. Out: whether to log it, and how many of its kind were not
//! since the last line. Of each kind every source gets one line within [`WINDOW`], and all sources together
//! [`MAX_SOURCES`], so neither one scanner nor ten thousand of them fill a disk. An IPv6 source is a /64, which is
//! what one customer has.
//! Limits: memory for `kinds` times [`MAX_SOURCES`] addresses, whatever happens.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a source that was logged is not logged again for the same kind.
pub const WINDOW: Duration = Duration::from_secs(300);
/// Sources logged for one kind within one window.
pub const MAX_SOURCES: usize = 20;

/// The memory of one kind of line.
#[derive(Clone, Debug, Default)]
struct Kind {
    began: Option<Instant>,
    sources: Vec<IpAddr>,
    not_logged: u64,
}

#[derive(Debug)]
pub struct Sampler(Vec<Kind>);

impl Sampler {
    pub fn new(kinds: usize) -> Self {
        Self(vec![Kind::default(); kinds])
    }

    /// `Some`: log it, and say that so many of this kind were not logged before it.
    pub fn on(&mut self, kind: usize, source: IpAddr, now: Instant) -> Option<u64> {
        let kind = &mut self.0[kind];
        if kind.began.is_none_or(|began| now.saturating_duration_since(began) >= WINDOW) {
            kind.began = Some(now);
            kind.sources.clear();
        }
        let source = prefix(source);
        if kind.sources.len() >= MAX_SOURCES || kind.sources.contains(&source) {
            kind.not_logged += 1;
            return None;
        }
        kind.sources.push(source);
        Some(std::mem::take(&mut kind.not_logged))
    }
}

/// A [`Sampler`] that many use at once, by the clock.
#[derive(Debug)]
pub struct Sampled(Mutex<Sampler>);

impl Sampled {
    pub fn new(kinds: usize) -> Self {
        Self(Mutex::new(Sampler::new(kinds)))
    }

    /// As [`Sampler::on`], now.
    pub fn on(&self, kind: usize, source: IpAddr) -> Option<u64> {
        let mut sampler = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sampler.on(kind, source, Instant::now())
    }
}

fn prefix(source: IpAddr) -> IpAddr {
    match source {
        IpAddr::V4(_) => source,
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << 64)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn each_source_has_one_line_of_each_kind_in_a_window() {
        let start = Instant::now();
        let mut sampler = Sampler::new(2);
        let (one, two) = (ip("192.0.2.1"), ip("192.0.2.2"));
        assert_eq!(sampler.on(0, one, start), Some(0));
        assert_eq!(sampler.on(0, one, start), None);
        assert_eq!(sampler.on(1, one, start), Some(0), "another kind");
        assert_eq!(sampler.on(0, two, start), Some(1), "another source, which tells of the first");
        let later = start + WINDOW - Duration::from_millis(1);
        assert_eq!(sampler.on(0, one, later), None);
        assert_eq!(sampler.on(0, two, later), None);
        assert_eq!(sampler.on(0, one, start + WINDOW), Some(2));
        assert_eq!(sampler.on(1, one, start + WINDOW), Some(0));
    }

    #[test]
    fn the_addresses_of_one_customer_are_one_source() {
        let start = Instant::now();
        let mut sampler = Sampler::new(1);
        assert_eq!(sampler.on(0, ip("2001:db8:0:1::1"), start), Some(0));
        assert_eq!(sampler.on(0, ip("2001:db8:0:1:ffff::2"), start), None);
        assert_eq!(sampler.on(0, ip("2001:db8:0:2::1"), start), Some(1));
    }

    #[test]
    fn ten_thousand_sources_are_no_more_lines_and_no_more_memory_than_twenty() {
        let start = Instant::now();
        let mut sampler = Sampler::new(1);
        let mut lines = 0;
        for n in 0..10_000u32 {
            let source = IpAddr::from(n.to_be_bytes());
            lines += usize::from(sampler.on(0, source, start).is_some());
        }
        assert_eq!((lines, sampler.0[0].sources.len()), (MAX_SOURCES, MAX_SOURCES));
        let told = sampler.on(0, ip("192.0.2.1"), start + WINDOW);
        assert_eq!(told, Some(10_000 - MAX_SOURCES as u64));
    }
}
