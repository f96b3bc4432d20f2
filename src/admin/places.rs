//! Who is connected to a listener for HTTP, and who goes when there are too many.
//!
//! In: the source of each connection, and when it asks. Out: a [`Place`] for it or none, and who loses theirs to make
//! room: the oldest connection of the source that has most of them, so that a stranger's connections end its own.
//! A connection that has not asked yet and is young is not ended for one of a source with as many: a probe is silent
//! for as long as its network takes. Then the newcomer is turned away. The machine itself is one source, which always has
//! a place; an IPv6 source is a /64.
//! There are two limits, since a silent connection costs a descriptor, and one that has asked costs buffers.
//! Not here: sockets, and what is answered (`probes`).

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

/// How many connections there may be at once.
#[derive(Clone, Copy)]
pub struct Room {
    pub all: usize,
    /// Those that have asked something; at least 2.
    pub asking: usize,
    /// How long a connection may be silent and keep its place.
    pub young: Duration,
}

pub struct Places {
    room: Room,
    holders: Mutex<Holders>,
}

/// By number, and so in order of arrival.
#[derive(Default)]
struct Holders {
    next: u64,
    all: BTreeMap<u64, Holder>,
}

struct Holder {
    source: IpAddr,
    since: Instant,
    asked: bool,
    /// Never used: the other end wakes when this is dropped.
    _keeps: oneshot::Sender<()>,
}

/// A connection's place; given back when it is dropped.
pub struct Place {
    places: Arc<Places>,
    number: u64,
    source: IpAddr,
}

/// Resolves when another connection has got the place.
pub type Lost = oneshot::Receiver<()>;

impl Places {
    pub fn new(room: Room) -> Arc<Self> {
        Arc::new(Self { room, holders: Mutex::default() })
    }

    /// A place for a connection from `peer`, if need be that of another; `None`: it is turned away.
    pub fn enter(self: &Arc<Self>, peer: IpAddr, now: Instant) -> Option<(Place, Lost)> {
        let source = source(peer);
        let mut holders = self.lock();
        if holders.all.len() >= self.room.all {
            let goes = holders.who_goes(source, |_| true, self.room.young, now)?;
            holders.all.remove(&goes);
        }
        let number = holders.next;
        holders.next += 1;
        let (keeps, lost) = oneshot::channel();
        holders.all.insert(number, Holder { source, since: now, asked: false, _keeps: keeps });
        Some((Place { places: Arc::clone(self), number, source }, lost))
    }

    fn lock(&self) -> MutexGuard<'_, Holders> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Holders {
    /// The number of the one that makes room for one more of `source`, of those that `counts` lets count.
    fn who_goes(
        &self,
        source: IpAddr,
        counts: impl Fn(&Holder) -> bool,
        young: Duration,
        now: Instant,
    ) -> Option<u64> {
        let candidates = || self.all.iter().filter(|(_, holder)| counts(holder));
        let mut has = HashMap::from([(source, 1_usize)]);
        for (_, holder) in candidates() {
            *has.entry(holder.source).or_default() += 1;
        }
        // The machine keeps its last one.
        let to_spare = |source: IpAddr| has[&source] - usize::from(source.is_loopback());
        let most = candidates().map(|(_, holder)| to_spare(holder.source)).max()?;
        let (number, oldest) =
            candidates().find(|(_, holder)| most > 0 && to_spare(holder.source) == most)?;
        let is_owed = has[&source] < most || (has[&source] == 1 && source.is_loopback());
        let is_young = !oldest.asked && now.saturating_duration_since(oldest.since) < young;
        (is_owed || !is_young).then_some(*number)
    }
}

impl Place {
    /// The connection has asked something; another one may have to go for it.
    pub fn asks(&self) {
        let mut holders = self.places.lock();
        let asked = |holder: &Holder| holder.asked;
        if holders.all.values().filter(|holder| asked(holder)).count() >= self.places.room.asking {
            // Youth is of no account among those.
            let goes = holders.who_goes(self.source, asked, Duration::ZERO, Instant::now());
            goes.map(|number| holders.all.remove(&number));
        }
        if let Some(holder) = holders.all.get_mut(&self.number) {
            holder.asked = true;
        }
    }

    /// Whether the connection comes from the machine itself.
    pub fn is_local(&self) -> bool {
        self.source.is_loopback()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().all.remove(&self.number);
    }
}

fn source(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        ip if ip.is_loopback() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << 64)).into(),
        ip => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const YOUNG: Duration = Duration::from_millis(100);

    struct Crowd {
        places: Arc<Places>,
        start: Instant,
        entered: Vec<(&'static str, Option<(Place, Lost)>)>,
    }

    impl Crowd {
        fn new(all: usize, asking: usize) -> Self {
            let places = Places::new(Room { all, asking, young: YOUNG });
            Self { places, start: Instant::now(), entered: Vec::new() }
        }

        /// Whether it is let in.
        fn comes(&mut self, from: &'static str, milliseconds: u64) -> bool {
            let now = self.start + Duration::from_millis(milliseconds);
            let place = self.places.enter(from.parse().expect("an address"), now);
            let let_in = place.is_some();
            self.entered.push((from, place));
            let_in
        }

        /// Where those come from who are in.
        fn inside(&mut self) -> Vec<&'static str> {
            let is_in = |place: &mut Option<(Place, Lost)>| {
                let not_yet = Err(oneshot::error::TryRecvError::Empty);
                place.as_mut().is_some_and(|(_, lost)| lost.try_recv() == not_yet)
            };
            self.entered
                .iter_mut()
                .filter_map(|(from, place)| is_in(place).then_some(*from))
                .collect()
        }

        fn asks(&self, index: usize) {
            self.entered[index].1.as_ref().expect("it was let in").0.asks();
        }
    }

    const A: &str = "192.0.2.1";
    const B: &str = "192.0.2.2";
    const C: &str = "192.0.2.3";
    const HERE: &str = "127.0.0.1";

    #[test]
    fn the_oldest_of_the_source_that_has_most_makes_room() {
        let mut crowd = Crowd::new(4, 4);
        for (from, at) in [(B, 0), (A, 1), (A, 2), (A, 3)] {
            assert!(crowd.comes(from, at));
        }
        // A stranger's connections end its own, young or not where others have fewer.
        assert!(crowd.comes(C, 4));
        assert_eq!(crowd.inside(), [B, A, A, C]);
        assert!(crowd.comes(A, 500));
        assert_eq!(crowd.inside(), [B, A, C, A]);
        // Where all have as many, the oldest goes.
        crowd.entered.clear();
        for (from, at) in [(A, 0), (B, 1), (A, 2), (B, 3)] {
            assert!(crowd.comes(from, at));
        }
        assert!(crowd.comes(C, 500));
        assert_eq!(crowd.inside(), [B, A, B, C]);
    }

    #[test]
    fn silence_is_granted_to_the_young_and_not_to_who_has_asked() {
        let mut crowd = Crowd::new(2, 2);
        assert!(crowd.comes(A, 0) && crowd.comes(A, 10));
        assert!(!crowd.comes(A, 99), "both are young");
        assert!(crowd.comes(B, 99), "A has two");
        assert_eq!(crowd.inside(), [A, B]);
        let mut crowd = Crowd::new(2, 2);
        assert!(crowd.comes(A, 0) && crowd.comes(B, 10));
        assert!(!crowd.comes(C, 50), "nobody has more than others");
        assert!(crowd.comes(C, 100));
        assert_eq!(crowd.inside(), [B, C]);
        crowd.asks(1);
        assert!(crowd.comes(A, 101), "B has its answer");
        assert_eq!(crowd.inside(), [C, A]);
    }

    #[test]
    fn the_machine_itself_always_has_a_place() {
        let mut crowd = Crowd::new(2, 2);
        assert!(crowd.comes(A, 0) && crowd.comes(B, 0));
        assert!(crowd.comes(HERE, 1), "whoever is young");
        assert_eq!(crowd.inside(), [B, HERE]);
        assert!(crowd.comes(C, 1000));
        assert_eq!(crowd.inside(), [HERE, C]);
        // It may take its own, and others may take all but one.
        assert!(crowd.comes(HERE, 1001));
        assert_eq!(crowd.inside(), [C, HERE]);
        assert!(crowd.comes(A, 2000));
        assert_eq!(crowd.inside(), [HERE, A]);
    }

    #[test]
    fn few_ask_at_once() {
        let mut crowd = Crowd::new(100, 2);
        for from in [B, A, A, C] {
            assert!(crowd.comes(from, 0));
        }
        for index in 0..4 {
            crowd.asks(index);
        }
        // A's first went for its second, and B, the oldest, for C: all three had one.
        assert_eq!(crowd.inside(), [A, C]);
    }

    #[test]
    fn a_place_is_given_back() {
        let mut crowd = Crowd::new(1, 2);
        for at in 0..3 {
            assert!(crowd.comes(A, at));
            crowd.entered.clear();
        }
        assert!(crowd.places.lock().all.is_empty());
    }

    #[test]
    fn addresses_of_one_customer_are_one_source() {
        let same = |one: &str, two: &str| {
            source(one.parse().expect("an address")) == source(two.parse().expect("an address"))
        };
        assert!(same("2001:db8:0:1::1", "2001:db8:0:1:ffff::2"));
        assert!(!same("2001:db8:0:1::1", "2001:db8:0:2::1"));
        assert!(same("::ffff:192.0.2.1", "192.0.2.1") && !same("192.0.2.1", "192.0.2.2"));
        assert!(same("::1", "127.0.0.1") && same("::ffff:127.0.0.3", "127.0.0.1"));
    }
}
