//! What there is to say of a certificate as time passes, each thing once.
//!
//! In: when it is valid, and the time, again and again. Out: [`Said`], at the moments that ask for an
//! operator: 30 days, 7 days and 1 day before its end, its end, and when it is not valid yet.
//! A certificate of a short life would be warned of on its first day, or a day before it is renewed
//! as it should be, so each of the three comes no earlier than a part of its life before the end.
//! A clock that is set may pass several moments at once, of which the last is told, or come back
//! over one of them, which makes it count anew: but not by the seconds by which clocks are steered.
//! No clock here.

use super::facts::{DAY, date, dates_of, left};

/// Before the end: how long at most, and as a part of the life in hundredths.
const MONTH: (i64, i64) = (30 * DAY, 30);
const WEEK: (i64, i64) = (7 * DAY, 15);
const LAST_DAY: (i64, i64) = (DAY, 5);
/// A clock that goes back by less was steered, not set.
const SET: i64 = 3600;

/// When a certificate is valid, unix seconds, both inclusive.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Life {
    pub not_before: i64,
    pub not_after: i64,
}

/// What was said last of one certificate, if anything was asked.
#[derive(Clone, Copy, Debug, Default)]
pub struct Aging(Option<Stage>);

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Stage {
    /// Not valid yet.
    Early,
    Fresh,
    Month,
    Week,
    LastDay,
    Over,
}

/// What to log, without saying of what certificate.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Said {
    /// No client accepts it any more, or yet.
    Problem(String),
    /// It will end.
    Notice(String),
    /// It is valid, and was not when it was last said.
    Relief(String),
}

impl Life {
    /// Whether it is valid at `now`.
    pub fn holds(self, now: i64) -> bool {
        (self.not_before..=self.not_after).contains(&now)
    }

    /// That it ends soon, for those who look once.
    pub fn ends_soon(self, now: i64) -> Option<String> {
        matches!(self.stage(now), Stage::Month | Stage::Week | Stage::LastDay).then(|| {
            let left = left(self.not_after - now);
            format!("expires in {left}, on {}; renew it", date(self.not_after))
        })
    }

    fn stage(self, now: i64) -> Stage {
        let rest = self.not_after.saturating_sub(now);
        match () {
            () if rest < 0 => Stage::Over,
            () if now < self.not_before => Stage::Early,
            () if rest < self.margin(LAST_DAY) => Stage::LastDay,
            () if rest < self.margin(WEEK) => Stage::Week,
            () if rest < self.margin(MONTH) => Stage::Month,
            () => Stage::Fresh,
        }
    }

    fn margin(self, (longest, hundredths): (i64, i64)) -> i64 {
        let life = self.not_after.saturating_sub(self.not_before).max(0);
        longest.min(life / 100 * hundredths)
    }

    /// The first moment after `now` at which there may be something to say.
    pub fn next(self, now: i64) -> Option<i64> {
        let before = |margin| self.not_after - self.margin(margin) + 1;
        let all = [
            self.not_before,
            before(MONTH),
            before(WEEK),
            before(LAST_DAY),
            self.not_after.saturating_add(1),
        ];
        all.into_iter().find(|&at| at > now)
    }
}

impl Aging {
    /// What to say at `now` that was not said before.
    pub fn on(&mut self, life: Life, now: i64) -> Option<Said> {
        let (before, stage) = (self.0.unwrap_or(Stage::Fresh), life.stage(now));
        let back = self.0.is_some() && before != Stage::Early && stage < before;
        if stage == before || back && life.stage(now + SET) >= before {
            self.0 = Some(before);
            return None;
        }
        self.0 = Some(stage);
        match stage {
            Stage::Over | Stage::Early => {
                dates_of(life.not_before, life.not_after, now).map(Said::Problem)
            }
            _ if matches!(before, Stage::Over | Stage::Early) => {
                Some(Said::Relief(format!("is valid now, until {}", date(life.not_after))))
            }
            _ if back => None,
            _ => life.ends_soon(now).map(Said::Notice),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-24.
    const NOW: i64 = 1_795_500_000;

    /// What is said at each of these days, counted from the end of a certificate of `life` days.
    fn told(life: i64, days: &[f64]) -> Vec<String> {
        let life = Life { not_before: NOW - life * DAY, not_after: NOW };
        let mut aging = Aging::default();
        let mut on = |day: &f64| aging.on(life, NOW + (day * 86_400.0) as i64);
        let short = |said| match said {
            None => "-".to_owned(),
            Some(Said::Notice(text)) => text.split(',').next().unwrap_or_default().to_owned(),
            Some(Said::Problem(text)) => text.split(" on ").next().unwrap_or_default().to_owned(),
            Some(Said::Relief(text)) => text.split(',').next().unwrap_or_default().to_owned(),
        };
        days.iter().map(|day| short(on(day))).collect()
    }

    #[test]
    fn each_moment_is_told_once() {
        let days = [-100.0, -30.0, -29.9, -20.0, -6.99, -2.0, -0.9, -0.1, 0.0, 0.001, 9.0];
        let year = ["-", "-", "expires in 29 days", "-", "expires in 6 days", "-"];
        let end = ["expires in 21 hours", "-", "-", "expired", "-"];
        assert_eq!(told(365, &days), [&year[..], &end].concat());
        // One of 90 days is renewed by most when 30 are left: a warning then would be none.
        let quarter = [-60.0, -29.9, -26.9, -7.0, -6.9, -0.9, 0.1];
        let expected = [
            "-",
            "-",
            "expires in 26 days",
            "-",
            "expires in 6 days",
            "expires in 21 hours",
            "expired",
        ];
        assert_eq!(told(90, &quarter), expected);
        // One of six days, which is renewed when two are left.
        let short = [-6.0, -2.0, -1.75, -0.85, -0.25, 0.1];
        let expected = [
            "-",
            "-",
            "expires in 42 hours",
            "expires in 20 hours",
            "expires in 6 hours",
            "expired",
        ];
        assert_eq!(told(6, &short), expected);
    }

    #[test]
    fn a_clock_that_is_set_passes_over_moments_and_comes_back_to_them() {
        let jumps = [-100.0, 500.0, -100.0, -29.0, -29.0, -100.0, -29.0];
        let expected =
            ["-", "expired", "is valid now", "expires in 29 days", "-", "-", "expires in 29 days"];
        assert_eq!(told(365, &jumps), expected);
        // To before it was made, as a machine without a battery begins.
        let early = [-10_000.0, -10_000.1, -100.0, -0.5];
        let said = told(365, &early);
        assert!(said[0].starts_with("is not valid before"), "{said:?}");
        assert_eq!(said[1..], ["-", "is valid now", "expires in 12 hours"]);
        assert!(told(1, &[-1.001])[0].starts_with("is not valid before"), "by a minute only");
        // Steered by seconds at the very moment.
        let steered = [-0.001, 0.001, -0.001, 0.001, -0.5];
        assert_eq!(told(365, &steered)[1..], ["expired", "-", "-", "is valid now"]);
    }

    #[test]
    fn the_next_moment_is_always_ahead() {
        let life = Life { not_before: NOW - 365 * DAY, not_after: NOW };
        let mut at = NOW - 400 * DAY;
        let mut seen = Vec::new();
        let mut aging = Aging::default();
        assert!(aging.on(life, at).is_some());
        while let Some(next) = life.next(at) {
            assert!(next > at);
            assert!(aging.on(life, next - 1).is_none(), "{next}");
            assert!(aging.on(life, next).is_some(), "{next}");
            seen.push((next - NOW).div_euclid(DAY));
            at = next;
        }
        assert_eq!(seen, [-365, -30, -7, -1, 0]);
    }
}
