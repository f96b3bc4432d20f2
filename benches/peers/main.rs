//! imaps-proxy beside other TLS terminators: CPU time and memory of each, for the same work.
//!
//! ```console
//! $ cargo bench --bench peers                    # all of it
//! $ cargo bench --bench peers -- --quick         # a look, under two minutes
//! $ cargo bench --bench peers -- --figures idle,noop --candidates imaps-proxy,haproxy --rounds 5
//! ```
//!
//! Candidates run in front of one fake backend; a load generator in a process of its own plays the clients and compares
//! every byte. Candidates take turns, round by round, so that a slow moment of the machine meets all of them. CPU time is
//! user and system of the candidate's whole process tree, memory is proportional set size. Medians with their range
//! go to standard output and `target/peers/table.md`, all samples to `target/peers/samples.json`.
//! With `--limits benches/limits.json` nothing is compared but the proxy with its own limits ([`limits`]).
//! Peers that are not installed are left out, and the line that installs them is printed.

mod backend;
mod candidates;
#[path = "../cases/mod.rs"]
mod cases;
mod client;
mod limits;
mod load;
mod measure;
mod pattern;
mod relays;
mod report;
mod workloads;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use strum::VariantArray as _;

use candidates::{Candidate, Place, Running, Talker};
use report::Report;
use workloads::{Bench, Figure, Samples, Size};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peers: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The roles of our own processes, and else the measurement.
fn run(words: &[&str]) -> Result<(), Box<dyn Error>> {
    match words {
        ["backend"] => backend::run()?,
        ["load", target, ca @ ..] => load::run(target.parse()?, ca.first().map(Path::new))?,
        ["plain-relay", listen, backend] => relays::run_plain(listen.parse()?, backend.parse()?)?,
        ["naive-relay", listen, backend, cert, key] => {
            relays::run_naive(listen.parse()?, backend.parse()?, Path::new(cert), Path::new(key))?;
        }
        ["case", name, turns] => limits::play(name, turns.parse()?)?,
        // `cargo test --all-targets` starts benches too, but hardly to wait for this.
        _ if !words.contains(&"--bench") => println!("run by: cargo bench --bench peers"),
        _ => measure_all(&Options::parse(words)?)?,
    }
    Ok(())
}

struct Options {
    size: Size,
    rounds: usize,
    candidates: Vec<Candidate>,
    figures: Vec<Figure>,
    out: PathBuf,
    proxy: PathBuf,
    limits: Option<PathBuf>,
    command: String,
}

impl Options {
    fn parse(words: &[&str]) -> Result<Self, Box<dyn Error>> {
        let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target");
        let mut options = Self {
            size: Size::FULL,
            rounds: 5,
            candidates: Candidate::VARIANTS.to_vec(),
            figures: Figure::VARIANTS.to_vec(),
            out: target.join("peers"),
            proxy: PathBuf::from(env!("CARGO_BIN_EXE_imaps-proxy")),
            limits: None,
            command: String::from("cargo bench --bench peers --"),
        };
        let mut words = words.iter().copied().filter(|word| *word != "--bench");
        while let Some(word) = words.next() {
            options.command.push(' ');
            options.command.push_str(word);
            if word == "--quick" {
                (options.size, options.rounds) = (Size::QUICK, 1);
                continue;
            }
            let value = words.next().ok_or_else(|| format!("{word} needs a value"))?;
            options.command.push(' ');
            options.command.push_str(value);
            let wrong = |_| format!("{word}: no such name in {value:?}");
            match word {
                "--rounds" => options.rounds = value.parse()?,
                "--out" => options.out = value.into(),
                "--limits" => options.limits = Some(value.into()),
                "--proxy" => options.proxy = value.into(),
                "--candidates" => {
                    options.candidates = value
                        .split(',')
                        .map(str::parse)
                        .collect::<Result<_, _>>()
                        .map_err(wrong)?;
                }
                "--figures" => {
                    options.figures = value
                        .split(',')
                        .map(str::parse)
                        .collect::<Result<_, _>>()
                        .map_err(wrong)?;
                }
                _ => return Err(format!("unknown option {word}").into()),
            }
        }
        options.command = options.command.trim_end_matches(" --").to_owned();
        Ok(options)
    }

    fn wants(&self, figures: &[Figure]) -> bool {
        figures.iter().any(|figure| self.figures.contains(figure))
    }
}

fn measure_all(options: &Options) -> Result<(), Box<dyn Error>> {
    // All processes inherit it: 9,000 sessions are two descriptors each.
    let hard = getrlimit(Resource::Nofile).maximum;
    let soft = hard.map_or(20_000, |hard| hard.min(20_000));
    setrlimit(Resource::Nofile, Rlimit { current: Some(soft), maximum: hard })?;
    let dir = tempfile::tempdir()?;
    let mut backend = Talker::start("backend", &[])?;
    let ports: Vec<u16> = backend.line()?.split(' ').map(str::parse).collect::<Result<_, _>>()?;
    let [imap, auth] = ports[..] else { return Err("the backend named no two ports".into()) };
    // Apart from the certificates, whose directory imaps-proxy watches.
    fs::create_dir(dir.path().join("logs"))?;
    let place = Place { dir: dir.path().into(), proxy: options.proxy.clone(), backend: imap, auth };
    place.make_certificates()?;
    match &options.limits {
        Some(file) => limits::check(file, &place),
        None => compare(options, &place),
    }
}

fn compare(options: &Options, place: &Place) -> Result<(), Box<dyn Error>> {
    let missing: Vec<_> = options.candidates.iter().filter_map(|one| one.missing()).collect();
    if !missing.is_empty() {
        let packages = missing.join(" ");
        eprintln!("left out; installed by: apt-get install --no-install-recommends {packages}");
    }
    let candidates: Vec<Candidate> =
        options.candidates.iter().copied().filter(|one| one.missing().is_none()).collect();
    let mut report = Report::new(&candidates);
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}: CPU", options.rounds);
        busy(options, &candidates, place, &mut report);
        eprintln!("round {round} of {}: memory and start", options.rounds);
        for candidate in &candidates {
            memory(options, *candidate, place, &mut report, round);
        }
    }
    let how = format!(
        "`{}`, {} rounds, {}; median (min–max)",
        options.command,
        options.rounds,
        report::machine()
    );
    fs::create_dir_all(&options.out)?;
    let table = report.markdown(&how);
    fs::write(options.out.join("table.md"), &table)?;
    fs::write(options.out.join("samples.json"), format!("{:#}\n", report.json(&how)))?;
    print!("{table}");
    Ok(())
}

/// One round of what is measured by CPU time, figure by figure; all candidates run throughout.
fn busy(options: &Options, candidates: &[Candidate], place: &Place, report: &mut Report) {
    const BUSY: &[Figure] = &[
        Figure::Handshake,
        Figure::HandshakeHybrid,
        Figure::HandshakeResumed,
        Figure::Login,
        Figure::Noop,
        Figure::Download,
        Figure::Upload,
    ];
    if !options.wants(BUSY) {
        return;
    }
    let mut running = Vec::new();
    for candidate in candidates {
        let started = Running::start(*candidate, place)
            .and_then(|one| workloads::first_greeting(&one, place).map(|_| one));
        match started {
            Ok(one) => running.push(one),
            Err(error) => failed(report, *candidate, "start", &error, place),
        }
    }
    for figure in BUSY.iter().filter(|figure| options.figures.contains(figure)) {
        for one in &running {
            let bench = Bench { running: one, place, size: &options.size };
            match bench.sample(*figure) {
                Ok(sample) => report.add(one.candidate, sample.map(|sample| (*figure, sample))),
                Err(error) => failed(report, one.candidate, figure.into(), &error, place),
            }
        }
    }
}

/// One round of what needs a fresh process.
fn memory(
    options: &Options,
    candidate: Candidate,
    place: &Place,
    report: &mut Report,
    round: usize,
) {
    type Measure = fn(&Bench<'_>) -> std::io::Result<Samples>;
    let workloads: [(&[Figure], Measure, usize); 3] = [
        // Thousands of sessions: the slope hardly varies, so two rounds are enough.
        (&[Figure::Idle, Figure::IdleAfterTraffic], |bench| bench.idle(), 2),
        (&[Figure::Downloads], |bench| bench.downloads(), usize::MAX),
        (&[Figure::Stalled], |bench| bench.stalled(), usize::MAX),
    ];
    for (figures, measure, rounds) in workloads {
        if !options.wants(figures) || round > rounds {
            continue;
        }
        let samples = Running::start(candidate, place).and_then(|running| {
            workloads::first_greeting(&running, place)?;
            measure(&Bench { running: &running, place, size: &options.size })
        });
        match samples {
            Ok(samples) => report.add(candidate, samples),
            Err(error) => failed(report, candidate, figures[0].into(), &error, place),
        }
    }
    if options.wants(&[Figure::Start]) {
        for _ in 0..3 {
            match workloads::start(candidate, place) {
                Ok(samples) => report.add(candidate, samples),
                Err(error) => failed(report, candidate, "start", &error, place),
            }
        }
    }
}

fn failed(
    report: &mut Report,
    candidate: Candidate,
    what: &str,
    error: &std::io::Error,
    place: &Place,
) {
    let log = fs::read_to_string(place.log(candidate));
    let said = log.unwrap_or_default();
    let last = said.lines().last().unwrap_or_default();
    let failure = format!("{what} of {}: {error} ({last})", candidate.name());
    eprintln!("{failure}");
    report.failures.push(failure);
}
