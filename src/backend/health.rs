//! Whether one address works, and when to look at it next.
//!
//! In: what became of looks and of dials for sessions. Out: the [`Standing`] that sessions are sent by, the [`Change`] that is worth
//! a line in the log, and the time of the next look. One that works is looked at every `health.interval`; one that failed a session
//! is out at once and looked at after [`FIRST_WAIT`], then after twice as long, up to [`MAX_WAIT`]. If it fails again within
//! [`STEADY`] of having come back, the first wait is twice as long as the last time.
//! A look or a dial that takes much longer than usual puts an address in doubt, so that a server that hangs costs the others
//! nothing while somebody waits for it. So does one that is turned away while sessions live there: the server is full, and is
//! looked at less and less often, since every look is one more connection.
//! **Invariant:** [`Standing::Down`] ends only with a look that succeeded.

use std::time::{Duration, Instant};

use super::dial::Failure;

/// The first pause before one that does not work is asked again.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// The longest.
const MAX_WAIT: Duration = Duration::from_secs(8);
/// One that worked for so long is forgiven.
const STEADY: Duration = Duration::from_secs(60);
/// How long anybody is waited for without doubt.
const PATIENCE: Duration = Duration::from_secs(1);
/// So many logins in a row without a result are no accident.
const UNDECIDED: u32 = 3;
/// How long it is then doubted, whatever looks say; each further one doubles that, up to eight times.
const DISTRUST: Duration = Duration::from_secs(8);
/// The smallest part of its share that one that came back gets.
const LEAST_RAMP: f64 = 0.05;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Standing {
    /// Never looked at.
    Unseen,
    Up,
    /// It worked, and somebody waits for it longer than usual, or it is full.
    Doubted,
    Down,
}

/// What is worth telling.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Change {
    Up,
    Down,
    /// It is down as before, but for another reason.
    Otherwise,
}

#[derive(Debug)]
pub struct Health {
    standing: Standing,
    /// Up: since when.
    since: Instant,
    /// It had been up before, or was taken out of use.
    came_back: bool,
    failure: Option<Failure>,
    /// How often it failed again soon after it had come back.
    relapses: u32,
    /// Down or full: the pause before the next look.
    wait: Duration,
    full: bool,
    looked: Instant,
    /// When it answered a look the last time.
    answered: Option<Instant>,
    next: Instant,
    /// How long it took to greet the last time.
    usual: Duration,
    /// Logins since the last that it decided on.
    undecided: u32,
    /// Not trusted before.
    distrusted: Option<Instant>,
}

impl Health {
    /// To be looked at now. `came_back`: it was out of use until now.
    pub fn new(came_back: bool, now: Instant) -> Self {
        Self {
            standing: Standing::Unseen,
            since: now,
            came_back,
            failure: None,
            relapses: 0,
            wait: FIRST_WAIT,
            full: false,
            looked: now,
            answered: None,
            next: now,
            usual: Duration::ZERO,
            undecided: 0,
            distrusted: None,
        }
    }

    /// It greeted and told what it can do; it is looked at again after `interval`.
    pub fn on_good(&mut self, took: Duration, interval: Duration, now: Instant) -> Option<Change> {
        self.usual = took;
        self.looked = now;
        self.answered = Some(now);
        self.next = now + interval;
        let change = (!self.is_up()).then_some(Change::Up);
        if change.is_some() {
            self.since = now;
        }
        self.standing = Standing::Up;
        if let Some(until) = self.distrusted.filter(|until| *until > now) {
            self.standing = Standing::Doubted;
            self.next = self.next.min(until);
        }
        self.failure = None;
        self.full = false;
        change
    }

    /// It works and turned a look or a session away.
    pub fn on_full(&mut self, a_look: bool, now: Instant) {
        if a_look {
            self.looked = now;
        }
        if !self.full {
            self.wait = FIRST_WAIT;
            self.next = now + self.wait;
        } else if a_look {
            self.wait = MAX_WAIT.min(self.wait * 2);
            self.next = now + self.wait;
        }
        self.full = true;
        self.standing = Standing::Doubted;
    }

    /// When it was last asked it had no room.
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// A look failed.
    pub fn on_bad_look(&mut self, failure: Failure, now: Instant) -> Option<Change> {
        self.looked = now;
        if failure.is_ours() {
            self.next = now + MAX_WAIT;
            return None;
        }
        if self.standing == Standing::Down {
            self.wait = MAX_WAIT.min(self.wait * 2);
            self.next = now + self.wait;
        }
        self.fail(failure, now)
    }

    /// A session could not use it. What began at `start`, before it answered a look, only puts it in doubt.
    pub fn on_bad_dial(
        &mut self,
        failure: Failure,
        start: Instant,
        now: Instant,
    ) -> Option<Change> {
        if failure.is_ours() {
            return None;
        }
        if self.is_up() && self.answered.is_some_and(|answered| answered > start) {
            self.on_doubt(now);
            return None;
        }
        self.fail(failure, now)
    }

    fn fail(&mut self, failure: Failure, now: Instant) -> Option<Change> {
        let before = self.failure.replace(failure);
        self.full = false;
        match self.standing {
            Standing::Down => (before != Some(failure)).then_some(Change::Otherwise),
            standing => {
                let lasted = now.saturating_duration_since(self.since);
                let relapsed = standing != Standing::Unseen && self.came_back && lasted < STEADY;
                self.relapses = if relapsed { self.relapses.saturating_add(1) } else { 0 };
                self.wait = MAX_WAIT.min(FIRST_WAIT * (1 << self.relapses.min(5)));
                self.next = now + self.wait;
                // From here on a return is one.
                self.came_back |= standing != Standing::Unseen;
                self.standing = Standing::Down;
                Some(Change::Down)
            }
        }
    }

    /// It broke off in the middle of a login. Those that were on the way together count once it is distrusted as one.
    pub fn on_undecided(&mut self, now: Instant) {
        if self.distrusted.is_none_or(|until| until <= now) {
            self.undecided = self.undecided.saturating_add(1);
            if let Some(more) = self.undecided.checked_sub(UNDECIDED) {
                self.distrusted = Some(now + DISTRUST * (1 << more.min(3)));
            }
        }
        self.on_doubt(now);
    }

    /// It accepted or refused a login.
    pub fn on_decided(&mut self) {
        self.undecided = 0;
        self.distrusted = None;
    }

    /// A session waits for it longer than [`Self::patience`].
    pub fn on_doubt(&mut self, now: Instant) {
        if self.standing == Standing::Up {
            self.standing = Standing::Doubted;
            self.next = now;
        }
    }

    /// A look takes longer than [`Self::patience`].
    pub fn on_hanging(&mut self) {
        if self.standing == Standing::Up {
            self.standing = Standing::Doubted;
        }
    }

    /// The same under another configuration, to be looked at now.
    pub fn again(&self, now: Instant) -> Self {
        Self { next: now, wait: FIRST_WAIT, ..*self }
    }

    /// Somebody would use it if it worked.
    pub fn on_wanted(&mut self, now: Instant) {
        if self.standing == Standing::Down {
            self.next = self.next.min((self.looked + FIRST_WAIT).max(now));
        }
    }

    pub fn standing(&self) -> Standing {
        self.standing
    }

    /// It works or did when it was last asked.
    pub fn is_up(&self) -> bool {
        matches!(self.standing, Standing::Up | Standing::Doubted)
    }

    pub fn failure(&self) -> Option<Failure> {
        self.failure
    }

    /// To wait for one that is down in this way takes time.
    pub fn fails_slowly(&self) -> bool {
        matches!(self.failure, Some(Failure::Timeout | Failure::GreetingTimeout))
    }

    pub fn next_look(&self) -> Instant {
        self.next
    }

    /// How long it may take without being doubted.
    pub fn patience(&self) -> Duration {
        PATIENCE.max(self.usual * 4)
    }

    /// The part of its share that it gets `slow_start` after it came back: over 0, up to 1.
    pub fn ramp(&self, slow_start: Duration, now: Instant) -> f64 {
        let up = now.saturating_duration_since(self.since);
        if !self.came_back || up >= slow_start {
            return 1.0;
        }
        (up.as_secs_f64() / slow_start.as_secs_f64()).max(LEAST_RAMP)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const INTERVAL: Duration = Duration::from_secs(30);

    fn up(came_back: bool, now: Instant) -> Health {
        let mut health = Health::new(came_back, now);
        assert_eq!((health.standing(), health.next_look()), (Standing::Unseen, now));
        assert_eq!(health.on_good(MS, INTERVAL, now), Some(Change::Up));
        assert_eq!(health.next_look(), now + INTERVAL);
        health
    }

    #[test]
    fn one_that_fails_is_out_at_once_and_looked_at_less_and_less() {
        let mut now = Instant::now();
        let mut health = up(false, now);
        assert_eq!(health.on_bad_dial(Failure::Refused, now, now), Some(Change::Down));
        let mut waits = Vec::new();
        for _ in 0..7 {
            waits.push((health.next_look() - now).as_millis());
            now = health.next_look();
            // Sessions that try it as their last resort change nothing.
            assert_eq!(health.on_bad_dial(Failure::Refused, now, now), None);
            assert_eq!(health.on_bad_look(Failure::Refused, now), None);
        }
        assert_eq!(waits, [250, 500, 1000, 2000, 4000, 8000, 8000]);
        assert_eq!(health.on_bad_look(Failure::Closed, now), Some(Change::Otherwise));
        assert_eq!(health.on_good(MS, INTERVAL, now), Some(Change::Up));
        assert!(health.is_up() && health.failure().is_none());
    }

    #[test]
    fn one_that_fails_again_and_again_waits_longer_each_time() {
        let mut now = Instant::now();
        let mut health = up(false, now);
        let mut firsts = Vec::new();
        for _ in 0..7 {
            now += Duration::from_secs(1);
            health.on_bad_dial(Failure::Closed, now, now);
            firsts.push((health.next_look() - now).as_millis());
            now = health.next_look();
            health.on_good(MS, INTERVAL, now);
        }
        assert_eq!(firsts, [250, 500, 1000, 2000, 4000, 8000, 8000]);
        now += STEADY;
        health.on_bad_dial(Failure::Closed, now, now);
        assert_eq!(health.next_look() - now, FIRST_WAIT);
    }

    #[test]
    fn our_own_want_of_descriptors_says_nothing() {
        let now = Instant::now();
        let mut health = up(false, now);
        assert_eq!(health.on_bad_dial(Failure::OutOfDescriptors, now, now), None);
        assert_eq!(health.on_bad_look(Failure::OutOfDescriptors, now), None);
        assert!(health.is_up() && health.next_look() > now);
    }

    #[test]
    fn dial_that_began_before_it_came_back_does_not_take_it_out() {
        let start = Instant::now();
        let now = start + Duration::from_secs(10);
        let mut health = up(false, start);
        health.on_bad_look(Failure::Refused, start + MS);
        health.on_good(MS, INTERVAL, start + 2 * MS);
        assert_eq!(health.on_bad_dial(Failure::Timeout, start + MS, now), None);
        assert_eq!((health.standing(), health.next_look()), (Standing::Doubted, now));
        assert_eq!(health.on_bad_dial(Failure::Timeout, start + 2 * MS, now), Some(Change::Down));
    }

    #[test]
    fn one_that_decides_on_no_login_is_doubted_whatever_looks_say() {
        let mut now = Instant::now();
        let mut health = up(false, now);
        for expected in [Standing::Up, Standing::Up, Standing::Doubted] {
            health.on_undecided(now);
            health.on_good(MS, INTERVAL, now);
            assert_eq!(health.standing(), expected);
        }
        for times in [1, 2, 4, 8, 8] {
            let until = now + DISTRUST * times;
            health.on_undecided(now); // it was on the way
            assert_eq!((health.on_good(MS, 10 * INTERVAL, now), health.next_look()), (None, until));
            assert_eq!(health.standing(), Standing::Doubted);
            now = until;
            health.on_good(MS, INTERVAL, now);
            assert_eq!(health.standing(), Standing::Up);
            health.on_undecided(now);
        }
        health.on_decided();
        health.on_good(MS, INTERVAL, now);
        assert_eq!(health.standing(), Standing::Up);
    }

    #[test]
    fn doubt_brings_a_look_and_ends_with_it() {
        let now = Instant::now();
        let mut health = up(false, now);
        health.on_doubt(now);
        assert_eq!((health.standing(), health.next_look()), (Standing::Doubted, now));
        assert_eq!(health.on_good(MS, INTERVAL, now), None);
        assert_eq!(health.standing(), Standing::Up);
        health.on_doubt(now);
        assert_eq!(health.on_bad_look(Failure::GreetingTimeout, now), Some(Change::Down));
        assert!(health.fails_slowly());
        health.on_doubt(now);
        assert_eq!(health.standing(), Standing::Down);
        // One that takes its time is not doubted for it.
        assert_eq!(health.patience(), PATIENCE);
        health.on_good(2 * PATIENCE, INTERVAL, now);
        assert_eq!(health.patience(), 8 * PATIENCE);
    }

    #[test]
    fn one_that_is_full_is_doubted_and_looked_at_less_and_less() {
        let mut now = Instant::now();
        let mut health = up(false, now);
        let mut waits = Vec::new();
        for _ in 0..7 {
            health.on_full(false, now);
            health.on_full(false, now + MS); // others that are turned away bring no look
            assert_eq!(health.standing(), Standing::Doubted);
            assert!(health.is_full());
            waits.push((health.next_look() - now).as_millis());
            now = health.next_look();
            health.on_full(true, now);
        }
        assert_eq!(waits, [250, 500, 1000, 2000, 4000, 8000, 8000]);
        assert_eq!(health.on_good(MS, INTERVAL, now), None);
        assert_eq!((health.standing(), health.is_full()), (Standing::Up, false));
        health.on_full(true, now);
        assert_eq!(health.next_look() - now, FIRST_WAIT);
        assert_eq!(health.on_bad_look(Failure::Bye, now), Some(Change::Down));
        assert!(!health.is_full());
    }

    #[test]
    fn one_that_is_wanted_is_looked_at_sooner() {
        let now = Instant::now();
        let mut health = up(false, now);
        health.on_wanted(now);
        assert_eq!(health.next_look(), now + INTERVAL);
        for _ in 0..5 {
            health.on_bad_look(Failure::Refused, now);
        }
        health.on_wanted(now);
        assert_eq!(health.next_look(), now + FIRST_WAIT);
        health.on_wanted(now + MAX_WAIT);
        assert_eq!(health.next_look(), now + FIRST_WAIT);
    }

    #[test]
    fn only_one_that_came_back_starts_slowly() {
        let (start, slow) = (Instant::now(), Duration::from_secs(100));
        assert_eq!(up(false, start).ramp(slow, start), 1.0);
        let mut late = Health::new(false, start);
        late.on_bad_look(Failure::Refused, start);
        late.on_good(MS, INTERVAL, start);
        assert_eq!(late.ramp(slow, start), 1.0, "it was never up before");
        late.on_bad_look(Failure::Refused, start);
        late.on_good(MS, INTERVAL, start);
        for health in [late, up(true, start)] {
            assert_eq!(health.ramp(slow, start), LEAST_RAMP);
            assert_eq!(health.ramp(slow, start + slow / 2), 0.5);
            assert_eq!(health.ramp(slow, start + slow), 1.0);
            assert_eq!(health.ramp(Duration::ZERO, start), 1.0);
        }
    }
}
