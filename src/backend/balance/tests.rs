use super::*;

use proptest::prelude::*;

fn candidate(server: usize) -> Candidate {
    let name = format!("server-{server}:143");
    Candidate {
        id: server as u64,
        server,
        server_key: hash(name.as_bytes()),
        key: hash(format!("10.0.0.{server}:143").as_bytes()),
        tier: Tier::Good,
        priority: 0,
        server_weight: 1.0,
        weight: 1,
        sessions: 0,
        ramp: 1.0,
    }
}

fn weighted(weights: &[f64]) -> Vec<Candidate> {
    let with =
        |(server, weight): (usize, &f64)| Candidate { server_weight: *weight, ..candidate(server) };
    weights.iter().enumerate().map(with).collect()
}

/// Addresses of one server, by (priority, weight).
fn records(records: &[(u16, u16)]) -> Vec<Candidate> {
    let with = |(at, (priority, weight)): (usize, &(u16, u16))| Candidate {
        server: 0,
        server_key: 0,
        priority: *priority,
        weight: *weight,
        ..candidate(at)
    };
    records.iter().enumerate().map(with).collect()
}

fn client(n: u32) -> IpAddr {
    IpAddr::from((0x0a00_0000 + n).to_be_bytes())
}

/// How often each was the first choice of `count` clients.
fn firsts(balance: Balance, candidates: &[Candidate], count: u32) -> Vec<usize> {
    let (mut turns, mut chosen) = (Turns::default(), vec![0; candidates.len()]);
    for n in 0..count {
        chosen[turns.order(balance, candidates, client(n))[0]] += 1;
    }
    chosen
}

#[test]
fn first_takes_the_first_that_works_and_the_rest_in_order() {
    let mut turns = Turns::default();
    let mut all = weighted(&[1.0, 5.0, 1.0]);
    for _ in 0..3 {
        assert_eq!(turns.order(Balance::First, &all, client(1)), [0, 1, 2]);
    }
    all[0].tier = Tier::Down;
    assert_eq!(turns.order(Balance::First, &all, client(1)), [1, 2, 0]);
    all[1].tier = Tier::Doubtful;
    assert_eq!(turns.order(Balance::First, &all, client(1)), [2, 1, 0]);
    all[2].tier = Tier::Unseen;
    assert_eq!(turns.order(Balance::First, &all, client(1)), [1, 2, 0]);
    assert_eq!(turns.order(Balance::First, &[], client(1)), [0; 0]);
}

#[test]
fn round_robin_is_smooth_and_exact() {
    let all = weighted(&[2.0, 1.0]);
    let mut turns = Turns::default();
    let order: Vec<usize> =
        (0..6).map(|n| turns.order(Balance::RoundRobin, &all, client(n))[0]).collect();
    assert_eq!(order, [0, 1, 0, 0, 1, 0]);
    assert_eq!(firsts(Balance::RoundRobin, &weighted(&[5.0, 3.0, 1.0]), 90), [50, 30, 10]);
}

#[test]
fn addresses_share_their_server_s_weight() {
    let mut all = weighted(&[1.0, 1.0, 1.0]);
    all[2].server = 1;
    assert_eq!(firsts(Balance::RoundRobin, &all, 400), [200, 100, 100]);
    all[2].tier = Tier::Down;
    assert_eq!(firsts(Balance::RoundRobin, &all, 400), [200, 200, 0]);
    // In order of the configuration, and in turn among the addresses of one server.
    assert_eq!(firsts(Balance::First, &all[1..], 10), [10, 0]);
    all[2].tier = Tier::Good;
    assert_eq!(firsts(Balance::First, &all[1..], 10), [5, 5]);
}

#[test]
fn records_of_a_service_go_by_priority_and_weight() {
    let mut all = records(&[(10, 60), (10, 20), (20, 1), (30, 1)]);
    for balance in [Balance::First, Balance::RoundRobin] {
        assert_eq!(firsts(balance, &all, 80), [60, 20, 0, 0], "{balance:?}");
    }
    let hashed = firsts(Balance::SourceHash, &all, 8000);
    assert!((5700..6300).contains(&hashed[0]) && hashed[2] + hashed[3] == 0, "{hashed:?}");
    assert_eq!(Turns::default().order(Balance::RoundRobin, &all, client(1)), [0, 1, 2, 3]);
    all[0].tier = Tier::Down;
    assert_eq!(firsts(Balance::RoundRobin, &all, 10), [0, 10, 0, 0]);
    all[1].tier = Tier::Down;
    assert_eq!(Turns::default().order(Balance::RoundRobin, &all, client(1)), [2, 3, 0, 1]);
    // A very small chance, but one, and equal parts where all are 0 (RFC 2782).
    let rare = firsts(Balance::RoundRobin, &records(&[(0, 10), (0, 0)]), 2000);
    assert!((1..10).contains(&rare[1]), "{rare:?}");
    assert_eq!(firsts(Balance::RoundRobin, &records(&[(0, 0), (0, 0)]), 10), [5, 5]);
}

#[test]
fn least_sessions_weighs_and_takes_turns_among_equals() {
    let mut all = weighted(&[1.0, 2.0, 1.0]);
    for (one, sessions) in all.iter_mut().zip([3, 5, 2]) {
        one.sessions = sessions;
    }
    let mut turns = Turns::default();
    assert_eq!(turns.order(Balance::LeastSessions, &all, client(1))[2], 0);
    // Sessions that stay: in the end each has as many as its weight says.
    for n in 0..390 {
        let first = turns.order(Balance::LeastSessions, &all, client(n))[0];
        all[first].sessions += 1;
    }
    let sessions: Vec<usize> = all.iter().map(|one| one.sessions).collect();
    assert_eq!(sessions, [100, 200, 100]);
    assert_eq!(firsts(Balance::LeastSessions, &weighted(&[1.0, 1.0]), 10), [5, 5]);
}

#[test]
fn source_hash_spreads_by_weight_and_keeps_a_network_together() {
    let chosen = firsts(Balance::SourceHash, &weighted(&[3.0, 1.0]), 10_000);
    assert!((7200..7800).contains(&chosen[0]), "{chosen:?}");
    let all = weighted(&[1.0; 8]);
    let mut turns = Turns::default();
    let mut order =
        |ip: &str| turns.order(Balance::SourceHash, &all, ip.parse().expect("an address"));
    assert_eq!(order("2001:db8:1:2::3"), order("2001:db8:1:2:ffff::1"));
    assert_eq!(order("::ffff:192.0.2.1"), order("192.0.2.1"));
    let first: Vec<usize> = (0..50).map(|n| order(&format!("2001:db8:0:{n:x}::1"))[0]).collect();
    assert!(all.iter().all(|one| first.contains(&one.server)), "{first:?}");
}

#[test]
fn source_hash_is_the_same_in_every_version() {
    let all = weighted(&[1.0; 5]);
    let order = Turns::default().order(Balance::SourceHash, &all, client(1));
    assert_eq!(order, [3, 0, 2, 4, 1]);
}

#[test]
fn server_that_came_back_grows_into_its_share() {
    for (ramp, expected) in [(0.125, 125), (0.5, 500)] {
        let mut all = weighted(&[1.0, 1.0]);
        all[0].ramp = ramp;
        assert_eq!(firsts(Balance::First, &all, 1000), [expected, 1000 - expected]);
        let hashed = firsts(Balance::SourceHash, &all, 1000);
        let whole = firsts(Balance::SourceHash, &weighted(&[1.0, 1.0]), 1000)[0] as f64;
        assert!((hashed[0] as f64 - whole * ramp).abs() < 60.0, "{ramp}: {hashed:?}");
        let turns = firsts(Balance::RoundRobin, &all, 1000);
        let part = 1000.0 * ramp / (1.0 + ramp);
        assert!((turns[0] as f64 - part).abs() < 2.0, "{ramp}: {turns:?}");
        // It is not flooded because it has none.
        all[1].sessions = 50;
        let mut order = Turns::default();
        for n in 0..25 {
            let first = order.order(Balance::LeastSessions, &all, client(n))[0];
            all[first].sessions += 1;
        }
        assert!(all[0].sessions as f64 <= 75.0 * ramp + 1.0, "{ramp}: {}", all[0].sessions);
    }
    // Alone it gets everything.
    let alone =
        [Candidate { ramp: 0.1, ..candidate(0) }, Candidate { tier: Tier::Down, ..candidate(1) }];
    for balance in [Balance::First, Balance::RoundRobin, Balance::SourceHash] {
        assert_eq!(firsts(balance, &alone, 20), [20, 0], "{balance:?}");
    }
}

#[test]
fn turns_of_those_that_are_gone_are_forgotten() {
    let mut turns = Turns::default();
    for n in 0..100 {
        turns.order(Balance::RoundRobin, &[candidate(n), candidate(n + 1)], client(1));
    }
    assert_eq!(turns.0.len(), 2);
}

fn any_candidates() -> impl Strategy<Value = Vec<Candidate>> {
    let tier = prop_oneof![
        4 => Just(Tier::Good),
        1 => Just(Tier::Doubtful),
        1 => Just(Tier::Unseen),
        1 => Just(Tier::Down)
    ];
    let one = (0usize..4, tier, 0u16..3, 1u32..257, any::<u16>(), 0usize..1000, 1u32..=10);
    proptest::collection::vec(one, 0..12).prop_map(|all| {
        let with = |(at, (server, tier, priority, server_weight, weight, sessions, ramp))| {
            let name = candidate(server);
            Candidate {
                server,
                server_key: name.server_key,
                tier,
                priority,
                server_weight: f64::from(server_weight),
                weight,
                sessions,
                ramp: f64::from(ramp) / 10.0,
                ..candidate(at)
            }
        };
        all.into_iter().enumerate().map(with).collect()
    })
}

fn any_balance() -> impl Strategy<Value = Balance> {
    prop_oneof![
        Just(Balance::First),
        Just(Balance::RoundRobin),
        Just(Balance::LeastSessions),
        Just(Balance::SourceHash)
    ]
}

proptest! {
    /// Nobody is lost or tried twice, and nobody who works comes behind one who does not.
    #[test]
    fn all_are_tried_and_those_that_work_first(
        all in any_candidates(), balance in any_balance(), clients in proptest::collection::vec(any::<u32>(), 1..20)
    ) {
        let mut turns = Turns::default();
        for n in clients {
            let order = turns.order(balance, &all, IpAddr::from(n.to_be_bytes()));
            prop_assert!(order.is_sorted_by_key(|at| all[*at].tier));
            let mut places = order;
            places.sort_unstable();
            prop_assert_eq!(places, (0..all.len()).collect::<Vec<_>>());
        }
    }

    /// The loss of one server moves its own clients and nobody else.
    #[test]
    fn source_hash_moves_only_whom_it_must(
        weights in proptest::collection::vec(1u32..257, 2..8), lost in any::<prop::sample::Index>(), from in any::<u32>()
    ) {
        let mut all = weighted(&weights.into_iter().map(f64::from).collect::<Vec<_>>());
        let mut turns = Turns::default();
        let before = turns.order(Balance::SourceHash, &all, IpAddr::from(from.to_be_bytes()));
        let lost = lost.index(all.len());
        all[lost].tier = Tier::Down;
        let after = turns.order(Balance::SourceHash, &all, IpAddr::from(from.to_be_bytes()));
        let others: Vec<usize> = before.into_iter().filter(|at| *at != lost).collect();
        prop_assert_eq!(&after[..others.len()], &others[..]);
    }

    /// After as many sessions as all weights together, everybody had exactly its share.
    #[test]
    fn round_robin_is_fair(weights in proptest::collection::vec(1u32..20, 1..6)) {
        let all = weighted(&weights.iter().copied().map(f64::from).collect::<Vec<_>>());
        let chosen = firsts(Balance::RoundRobin, &all, weights.iter().sum());
        let expected: Vec<usize> = weights.iter().map(|weight| *weight as usize).collect();
        prop_assert_eq!(chosen, expected);
    }
}
