//! Which server a new session goes to, and which after it if that one can't be reached.
//!
//! In: the addresses that may be used, each with what counts, and the client's address. Out: all of them, in the order
//! in which they are to be tried. Those that work come first, whatever the rule: a server in doubt or one that was never
//! asked is tried before one that is known to be down, and that one is the last resort.
//!
//! A server's weight is shared by its addresses: by the weights of its SRV records, else in equal parts. Among the records of one
//! name those of the lowest priority come first, the others stand in for them (RFC 2782). A server that came back begins
//! with a small part of its share (`ramp`) and grows into it.
//! - first: the first server of the configuration; among its addresses each in its turn.
//! - round-robin: each in its turn, smoothly: two to one gives a b a, not a a b.
//! - least-sessions: the fewest sessions for its weight; among equals in turn.
//! - source-hash: the highest score of a hash over the client and the server (rendezvous hashing, weighted), so that one that
//!   leaves moves its own clients and nobody else's, and replicas decide alike. An IPv6 client is its /64.
//!
//! No clock, no socket, no lock. Not here: who may be used at all (`Backends`), who works (`health`).

use std::cmp::Ordering;
use std::collections::HashMap;
use std::net::IpAddr;

use crate::config::settings::Balance;

/// How good an address is to begin with.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Tier {
    /// It works.
    Good,
    /// It works, but DNS does not name it any more, somebody waits for it longer than usual, or it would see the proxy's
    /// address where it should see the client's.
    Doubtful,
    /// It was never asked.
    Unseen,
    /// It does not work, as far as is known.
    Down,
}

/// One address of one server.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// The same as long as the address is used.
    pub id: u64,
    /// Its server's place in the configuration.
    pub server: usize,
    /// Hashes of the server's name, of the address.
    pub server_key: u64,
    pub key: u64,
    pub tier: Tier,
    /// Of its SRV record; 0 without.
    pub priority: u16,
    /// Of the server, over 0.
    pub server_weight: f64,
    /// Of its SRV record; equal without.
    pub weight: u16,
    pub sessions: usize,
    /// How much of its share it gets, over 0 and up to 1.
    pub ramp: f64,
}

/// Whose turn it is.
#[derive(Debug, Default)]
pub struct Turns(HashMap<u64, Turn>);

#[derive(Clone, Copy, Debug, Default)]
struct Turn {
    /// Smooth weighting: grows by the share, and falls by everybody's when it is taken.
    due: f64,
    /// Of one that came back: at 1 it is taken once.
    credit: f64,
    seen: bool,
}

/// What decides before shares and turns do, the smaller the better.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Rank {
    tier: Tier,
    /// It came back, and this session is not of its part.
    spared: bool,
    /// The place in the configuration, where that counts.
    server: usize,
    stands_in: bool,
    priority: u16,
}

impl Turns {
    /// The places in `candidates`, best first; the first one is taken to be used.
    pub fn order(
        &mut self,
        balance: Balance,
        candidates: &[Candidate],
        client: IpAddr,
    ) -> Vec<usize> {
        let client = hash_of_client(client);
        self.forget_all_but(candidates);
        let shares: Vec<f64> = candidates.iter().map(|one| share(one, candidates)).collect();
        let ranks: Vec<Rank> =
            candidates.iter().map(|one| self.rank(balance, one, candidates, client)).collect();
        let mut order: Vec<usize> = (0..candidates.len()).collect();
        let Some(front) = ranks.iter().min().copied() else { return order };
        let due = self.advance(candidates, &shares, |at| ranks[at] == front);
        order.sort_by(|&a, &b| {
            let by = |key: &dyn Fn(usize) -> f64| key(a).total_cmp(&key(b));
            let in_turn = || by(&|at| -due[at]);
            ranks[a].cmp(&ranks[b]).then_with(|| match balance {
                Balance::First | Balance::RoundRobin => in_turn(),
                Balance::LeastSessions => {
                    let load = |at: usize| (candidates[at].sessions as f64 + 1.0) / shares[at];
                    close(load(a), load(b)).then_with(in_turn)
                }
                Balance::SourceHash => by(&|at| {
                    let Candidate { server_key, server_weight, .. } = candidates[at];
                    -score(client, server_key, server_weight)
                })
                .then_with(|| {
                    by(&|at| {
                        let Candidate { key, weight, .. } = candidates[at];
                        -score(client, key, srv_weight(weight))
                    })
                }),
            })
        });
        if let Some(&taken) = order.first() {
            let everybody: f64 =
                (0..candidates.len()).filter(|at| ranks[*at] == front).map(|at| shares[at]).sum();
            self.0.entry(candidates[taken].id).or_default().due -= everybody;
        }
        order
    }

    /// Everybody `in_front` is due by its share more.
    fn advance(
        &mut self,
        candidates: &[Candidate],
        shares: &[f64],
        in_front: impl Fn(usize) -> bool,
    ) -> Vec<f64> {
        let due = candidates.iter().enumerate().map(|(at, one)| {
            let turn = self.0.entry(one.id).or_default();
            if in_front(at) {
                turn.due += shares[at];
            }
            turn.due
        });
        due.collect()
    }

    fn rank(&mut self, balance: Balance, one: &Candidate, all: &[Candidate], client: u64) -> Rank {
        let lower = |other: &Candidate| {
            other.server == one.server && other.tier <= one.tier && other.priority < one.priority
        };
        let stands_in = all.iter().any(lower);
        Rank {
            tier: one.tier,
            spared: one.ramp < 1.0
                && one.tier == Tier::Good
                && match balance {
                    Balance::First => !self.has_credit(one),
                    Balance::SourceHash => fraction(mix(client ^ mix(one.key))) >= one.ramp,
                    Balance::RoundRobin | Balance::LeastSessions => false, // the share sees to it
                },
            server: if balance == Balance::First { one.server } else { 0 },
            stands_in,
            priority: if stands_in { one.priority } else { 0 },
        }
    }

    /// Of so many sessions, as many as its ramp says.
    fn has_credit(&mut self, one: &Candidate) -> bool {
        let turn = self.0.entry(one.id).or_default();
        turn.credit += one.ramp;
        let has = turn.credit >= 1.0;
        if has {
            turn.credit -= 1.0;
        }
        has
    }

    fn forget_all_but(&mut self, candidates: &[Candidate]) {
        self.0.values_mut().for_each(|turn| turn.seen = false);
        candidates.iter().for_each(|one| self.0.entry(one.id).or_default().seen = true);
        self.0.retain(|_, turn| turn.seen);
    }
}

/// Part of its server's weight that falls to it.
fn share(one: &Candidate, all: &[Candidate]) -> f64 {
    let beside = |other: &&Candidate| {
        (other.server, other.tier, other.priority) == (one.server, one.tier, one.priority)
    };
    let together: f64 = all.iter().filter(beside).map(|other| srv_weight(other.weight)).sum();
    one.server_weight * srv_weight(one.weight) / together * one.ramp
}

/// RFC 2782: weight 0 has a very small chance beside others.
fn srv_weight(weight: u16) -> f64 {
    f64::from(weight).max(0.01)
}

/// Numbers that differ by rounding are equal.
fn close(a: f64, b: f64) -> Ordering {
    if (a - b).abs() <= 1e-9 * a.abs().max(b.abs()) { Ordering::Equal } else { a.total_cmp(&b) }
}

/// Weighted rendezvous hashing: -w / ln h, the highest wins.
fn score(client: u64, key: u64, weight: f64) -> f64 {
    -weight / fraction(mix(client ^ key)).ln()
}

/// Over 0 and under 1.
fn fraction(hash: u64) -> f64 {
    ((hash >> 11) as f64 + 0.5) / (1u64 << 53) as f64
}

fn hash_of_client(client: IpAddr) -> u64 {
    match client.to_canonical() {
        IpAddr::V4(ip) => hash(&ip.octets()),
        IpAddr::V6(ip) => hash(&ip.octets()[..8]),
    }
}

/// FNV-1a, mixed: the same in every replica and every version.
pub fn hash(bytes: &[u8]) -> u64 {
    let fnv = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    mix(fnv)
}

/// The finaliser of SplitMix64.
fn mix(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests;
