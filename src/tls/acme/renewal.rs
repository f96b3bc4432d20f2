//! When to order: the next certificate in time, and the next attempt after a failure.
//!
//! In: when a certificate is valid, what the CA suggests (ARI, RFC 9773), failures in a row, and a random number
//! between 0 and 1, so that many proxies do not come at once. Out: unix seconds, a pause. No clock here.

use std::time::Duration;

use super::failure::Trouble;

/// When the CA would like a certificate to be replaced. Unix seconds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Window {
    pub start: i64,
    pub end: i64,
}

/// Without a window: from here on, as a part of the certificate's life, whatever its length...
const DUE: f64 = 2.0 / 3.0;
/// ...and at random within this part.
const SPREAD: f64 = 1.0 / 30.0;
/// No window of the CA makes us wait longer than this.
const LATEST: f64 = 0.9;

/// After an order that succeeded the next waits at least as long, whatever is said.
const GAP: i64 = 3600;

/// When to replace a certificate that is valid from `not_before` to `not_after`. `chance` has to stay the same
/// for one certificate, or the day moves with every question.
pub fn due(not_before: i64, not_after: i64, window: Option<Window>, chance: f64) -> i64 {
    let life = not_after.saturating_sub(not_before).max(0) as f64;
    let part = |fraction: f64| not_before.saturating_add((life * fraction) as i64);
    // One that ends before it begins is no window (RFC 9773 §4.2).
    match window.filter(|window| window.start < window.end) {
        Some(Window { start, end }) => {
            let length = end.saturating_sub(start) as f64;
            start.saturating_add((length * chance) as i64).min(part(LATEST))
        }
        None => part(DUE + SPREAD * chance),
    }
}

/// The earliest time for an order, if the last one succeeded at `last` and gave a certificate of `life` seconds:
/// a CA that hands out what is due already must not be asked in a loop.
pub fn not_before(last: i64, life: i64) -> i64 {
    last.saturating_add(GAP.min(life / 4).max(60))
}

/// How long to wait after `failures` in a row, of which the last was `trouble`. `asked` is what the CA has said.
pub fn pause(trouble: Trouble, failures: u32, asked: Option<Duration>, chance: f64) -> Duration {
    let (first, longest) = match trouble {
        // Costs nobody anything.
        Trouble::Passing => (Duration::from_secs(5), Duration::from_hours(1)),
        // Let's Encrypt takes 5 failed validations an hour for one name.
        Trouble::Refused => (Duration::from_mins(2), Duration::from_hours(6)),
        Trouble::Limited => (Duration::from_hours(1), Duration::from_hours(12)),
    };
    let doubled = first.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(longest);
    let spread = doubled.mul_f64(0.8 + 0.4 * chance);
    spread.max(asked.unwrap_or_default().min(Duration::from_hours(24)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3600;
    const DAY: i64 = 24 * HOUR;

    #[test]
    fn a_certificate_is_replaced_at_two_thirds_of_its_life() {
        for (life, chance, at) in [
            (90 * DAY, 0.0, 60 * DAY),
            (90 * DAY, 1.0, 63 * DAY),
            (6 * DAY, 0.0, 4 * DAY),
            (6 * DAY, 1.0, 4 * DAY + 48 * HOUR / 10),
            (24 * HOUR, 0.5, 16 * HOUR + 24 * 60),
            (0, 0.5, 0),
            (-5, 0.5, 0),
        ] {
            let due = due(1000, 1000 + life, None, chance);
            assert!((due - 1000 - at).abs() <= 1, "{life} {chance}: {due}");
        }
    }

    #[test]
    fn the_cas_window_comes_first() {
        let window = |start, end| Some(Window { start, end });
        for (suggested, chance, at) in [
            (window(10 * DAY, 12 * DAY), 0.0, 10 * DAY),
            (window(10 * DAY, 12 * DAY), 0.5, 11 * DAY),
            (window(-3 * DAY, -2 * DAY), 0.5, -5 * DAY / 2), // past: at once
            (window(80 * DAY, 89 * DAY), 1.0, 81 * DAY),     // too late for comfort
            (window(100 * DAY, 200 * DAY), 0.0, 81 * DAY),
            (window(12 * DAY, 10 * DAY), 0.0, 60 * DAY), // none
            (window(12 * DAY, 12 * DAY), 0.0, 60 * DAY),
        ] {
            let due = due(0, 90 * DAY, suggested, chance);
            assert!((due - at).abs() <= 1, "{suggested:?} {chance}: {due}");
        }
    }

    #[test]
    fn orders_never_follow_each_other_in_a_loop() {
        assert_eq!(not_before(0, 90 * DAY), HOUR);
        assert_eq!(not_before(0, HOUR), HOUR / 4);
        assert_eq!(not_before(0, 0), 60);
        assert_eq!(not_before(0, -5), 60);
    }

    #[test]
    fn pauses_grow_up_to_a_limit() {
        let seconds = |trouble, failures, asked, chance| {
            pause(trouble, failures, asked, chance).as_secs_f64().round() as u64
        };
        for (trouble, failures, pause) in [
            (Trouble::Passing, 1, 5),
            (Trouble::Passing, 2, 10),
            (Trouble::Passing, 40, 3600),
            (Trouble::Refused, 1, 120),
            (Trouble::Refused, 3, 480),
            (Trouble::Refused, u32::MAX, 21600),
            (Trouble::Limited, 1, 3600),
            (Trouble::Limited, 5, 43200),
        ] {
            assert_eq!(seconds(trouble, failures, None, 0.5), pause, "{trouble:?} {failures}");
        }
        assert_eq!(seconds(Trouble::Passing, 1, None, 0.0), 4);
        assert_eq!(seconds(Trouble::Passing, 1, None, 1.0), 6);
        assert_eq!(seconds(Trouble::Passing, 1, Some(Duration::from_secs(90)), 1.0), 90);
        assert_eq!(seconds(Trouble::Passing, 1, Some(Duration::from_hours(99)), 1.0), 86400);
    }

    #[test]
    fn five_refusals_take_more_than_half_an_hour() {
        let total: Duration = (1..=5).map(|n| pause(Trouble::Refused, n, None, 0.5)).sum();
        assert!(total > Duration::from_mins(60), "{total:?}");
    }
}
