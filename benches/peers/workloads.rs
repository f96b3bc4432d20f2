//! What is measured: each figure's name, unit, and how a sample of it is taken.

use std::io;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::candidates::{Candidate, Place, Running, Talker};
use crate::client::{Client, Mode, Target};
use crate::measure;

const MIB: f64 = 1024.0 * 1024.0;

/// One row of the table.
#[derive(
    Clone,
    Copy,
    Debug,
    Eq,
    Hash,
    Ord,
    PartialEq,
    PartialOrd,
    strum::EnumString,
    strum::IntoStaticStr,
    strum::VariantArray,
)]
#[strum(serialize_all = "kebab-case")]
pub enum Figure {
    Handshake,
    HandshakeHybrid,
    HandshakeResumed,
    Login,
    Noop,
    Download,
    Upload,
    Idle,
    IdleAfterTraffic,
    Downloads,
    Stalled,
    Start,
}

impl Figure {
    pub fn title(self) -> &'static str {
        match self {
            Self::Handshake => "full handshake (X25519) and greeting, CPU µs",
            Self::HandshakeHybrid => "full handshake (X25519MLKEM768) and greeting, CPU µs",
            Self::HandshakeResumed => "resumed handshake and greeting, CPU µs",
            Self::Login => "login cycle, CPU µs",
            Self::Noop => "NOOP round trip on 64 sessions, CPU µs",
            Self::Download => "download, CPU s per GiB",
            Self::Upload => "upload, CPU s per GiB",
            Self::Idle => "idle session, PSS bytes",
            Self::IdleAfterTraffic => "idle session after 64 KiB each way, PSS bytes",
            Self::Downloads => "64 downloads at once, peak PSS MiB",
            Self::Stalled => "a client that does not read 1 GB, PSS KiB more",
            Self::Start => "start to first greeting, ms",
        }
    }

    pub fn digits(self) -> usize {
        match self {
            Self::Download | Self::Upload => 2,
            Self::Noop | Self::Downloads | Self::Start => 1,
            _ => 0,
        }
    }
}

/// How much of each.
pub struct Size {
    pub handshakes: usize,
    pub noops: usize,
    /// Bytes that each of four sessions moves.
    pub bulk: u64,
    /// Idle sessions: the slope is taken between the first number and each other.
    pub idle: &'static [usize],
    pub downloads: u64,
}

impl Size {
    pub const FULL: Self = Self {
        handshakes: 2000,
        noops: 1000,
        bulk: 256 << 20,
        idle: &[500, 4000, 9000],
        downloads: 16 << 20,
    };
    pub const QUICK: Self = Self {
        handshakes: 400,
        noops: 250,
        bulk: 64 << 20,
        idle: &[250, 1250],
        downloads: 4 << 20,
    };
}

/// Samples of several figures, as one workload takes them.
pub type Samples = Vec<(Figure, f64)>;

/// A running candidate, and what it is measured with.
pub struct Bench<'a> {
    pub running: &'a Running,
    pub place: &'a Place,
    pub size: &'a Size,
}

impl Bench<'_> {
    pub fn load(&self) -> io::Result<Talker> {
        let mut arguments = vec![self.running.port.to_string()];
        if self.running.candidate.speaks_tls() {
            arguments.push(self.place.file("ca.pem").display().to_string());
        }
        Talker::start("load", &arguments)
    }

    /// CPU seconds of the candidate while `order` is carried out.
    fn cpu(&self, load: &mut Talker, order: &str) -> io::Result<(f64, usize)> {
        let before = measure::settled_cpu(self.running.pid());
        let number = load.order(order)?;
        let after = measure::settled_cpu(self.running.pid());
        Ok(((after - before).as_secs_f64(), number))
    }

    /// The figures that need no fresh process. `None`: not for this candidate.
    pub fn sample(&self, figure: Figure) -> io::Result<Option<f64>> {
        let candidate = self.running.candidate;
        let n = self.size.handshakes;
        let mut load = self.load()?;
        let each = |(seconds, _): (f64, usize)| seconds * 1e6 / n as f64;
        Ok(match figure {
            Figure::Handshake => {
                Some(each(self.cpu(&mut load, &format!("handshakes classic {n}"))?))
            }
            Figure::HandshakeHybrid if candidate.speaks_hybrid() => {
                Some(each(self.cpu(&mut load, &format!("handshakes hybrid {n}"))?))
            }
            Figure::HandshakeResumed if candidate.speaks_tls() => {
                load.order("warm")?;
                let (seconds, resumed) = self.cpu(&mut load, &format!("handshakes resumed {n}"))?;
                // A candidate that does not resume is not measured as if it did.
                (resumed * 100 >= n * 99).then_some(each((seconds, resumed)))
            }
            Figure::Login => Some(each(self.cpu(&mut load, &format!("logins {n}"))?)),
            Figure::Noop => {
                load.order("open 64")?;
                load.order("noop 20")?;
                let noops = self.size.noops;
                let (seconds, _) = self.cpu(&mut load, &format!("noop {noops}"))?;
                Some(seconds * 1e6 / (64 * noops) as f64)
            }
            Figure::Download | Figure::Upload => {
                let verb = if figure == Figure::Download { "fetch" } else { "append" };
                load.order("open 4")?;
                load.order(&format!("{verb} 1000000"))?;
                let (seconds, _) = self.cpu(&mut load, &format!("{verb} {}", self.size.bulk))?;
                Some(seconds * 1024.0 * MIB / (4 * self.size.bulk) as f64)
            }
            _ => None,
        })
    }

    /// Memory of idle sessions, fresh and after traffic: the slope over the number of sessions, so that what a
    /// process needs anyway does not count.
    pub fn idle(&self) -> io::Result<Samples> {
        let pid = self.running.pid();
        let mut load = self.load()?;
        let (mut fresh, mut used) = (Vec::new(), Vec::new());
        let mut open = 0;
        for n in self.size.idle {
            load.order(&format!("open {}", n - open))?;
            open = *n;
            load.order("idle")?;
            fresh.push(measure::settled_pss(pid) as f64);
            load.order("done")?;
        }
        // After traffic: from the largest number backwards would need others closed, so a second process.
        drop(load);
        sleep(Duration::from_millis(200));
        let again = Running::start(self.running.candidate, self.place)?;
        let bench = Bench { running: &again, ..*self };
        first_greeting(&again, self.place)?;
        let mut load = bench.load()?;
        open = 0;
        for n in [self.size.idle[0], *self.size.idle.last().expect("two at least")] {
            load.order(&format!("open {}", n - open))?;
            open = n;
            load.order("fetch 65536")?;
            load.order("append 65536")?;
            load.order("idle")?;
            used.push(measure::settled_pss(again.pid()) as f64);
            load.order("done")?;
        }
        let first = self.size.idle[0];
        let slope = |pss: &[f64], at: usize, n: usize| (pss[at] - pss[0]) / (n - first) as f64;
        let mut samples: Samples = (1..self.size.idle.len())
            .map(|at| (Figure::Idle, slope(&fresh, at, self.size.idle[at])))
            .collect();
        samples.push((Figure::IdleAfterTraffic, slope(&used, 1, open)));
        Ok(samples)
    }

    /// The highest PSS while 64 sessions download at once.
    pub fn downloads(&self) -> io::Result<Samples> {
        let pid = self.running.pid();
        let mut load = self.load()?;
        load.order("open 64")?;
        let order = format!("fetch {}", self.size.downloads);
        let work = std::thread::spawn(move || load.order(&order));
        let mut peak = measure::pss(pid);
        while !work.is_finished() {
            sleep(Duration::from_millis(10));
            peak = peak.max(measure::pss(pid));
        }
        work.join().map_err(|_| io::Error::other("the load generator's thread panicked"))??;
        Ok(vec![(Figure::Downloads, peak as f64 / MIB)])
    }

    /// What a client costs that asks for a gigabyte and does not read it.
    pub fn stalled(&self) -> io::Result<Samples> {
        let pid = self.running.pid();
        let mut load = self.load()?;
        load.order("open 1")?;
        load.order("fetch 1000000")?; // what is allocated once is not this client's doing
        let before = measure::settled_pss(pid);
        load.order("ask 1000000000")?;
        sleep(Duration::from_millis(500));
        let after = measure::settled_pss(pid);
        Ok(vec![(Figure::Stalled, (after as f64 - before as f64) / 1024.0)])
    }
}

/// Waits until the candidate greets, which is how long a start takes.
pub fn first_greeting(running: &Running, place: &Place) -> io::Result<Duration> {
    let start = Instant::now();
    let ca = place.file("ca.pem");
    let ca: Option<&Path> = running.candidate.speaks_tls().then_some(&*ca);
    let target = Target::new(running.port, ca, Mode::Classic)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    loop {
        match runtime.block_on(Client::connect(&target)) {
            Ok(client) => {
                let took = start.elapsed();
                runtime.block_on(client.close())?;
                return Ok(took);
            }
            Err(error) if start.elapsed() > Duration::from_secs(10) => return Err(error),
            Err(_) => sleep(Duration::from_micros(200)),
        }
    }
}

/// From before the process exists to the first greeting that a client reads.
pub fn start(candidate: Candidate, place: &Place) -> io::Result<Samples> {
    let start = Instant::now();
    let running = Running::start(candidate, place)?;
    let spawned = start.elapsed();
    let took = spawned + first_greeting(&running, place)?;
    Ok(vec![(Figure::Start, took.as_secs_f64() * 1e3)])
}
