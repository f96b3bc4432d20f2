//! What must not grow unnoticed: figures of the proxy that are the same on every machine, compared with their limits.
//!
//! In: a JSON object, figure to limit. Out: a table, and an error that names each figure that is over. A limit stands
//! about a tenth above what was measured when it was set; a figure without a limit and a limit without a figure are
//! errors too.
//!
//! Instructions are counted by callgrind, as the difference of two runs, so that what a process does once does not count.
//! Valgrind shows its programs one and the same CPU (a Haswell) wherever the real one has AVX2, so memchr, AWS-LC and glibc
//! choose the same code everywhere; the limits were set with that. Memory is the slope over idle sessions.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::candidates::{Candidate, Place, Running};
use crate::cases::{CASES, Case, MIB, Unit};
use crate::workloads::{self, Bench, Size};

const CALLGRIND: &[&str] = &["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"];
/// By how much two runs differ: turns of a case, relayed MiB.
const TURNS: usize = 32;
const MIBS: usize = 64;
const IDLE: Size = Size { idle: &[250, 2250], ..Size::QUICK };
/// Under callgrind everything takes fifty times longer.
const STOP: Duration = Duration::from_secs(30);

/// Measures everything and compares it with the limits in `file`.
pub fn check(file: &Path, place: &Place) -> Result<(), Box<dyn Error>> {
    let named = |error: &dyn Error| format!("{}: {error}", file.display());
    let text = fs::read(file).map_err(|error| named(&error))?;
    let limits = serde_json::from_slice(&text).map_err(|error| named(&error))?;
    if !has_avx2() {
        return Err(
            "needs x86-64 with AVX2: other CPUs run other code than the limits are for".into()
        );
    }
    // A distribution's default would decide how much a heap's last pages weigh. The proxy inherits it.
    rustix::thread::disable_transparent_huge_pages(true)?;
    let mut table = Table { limits, wrong: Vec::new() };
    println!("| figure | measured | limit |\n|---|---:|---:|");
    for case in CASES {
        let turn = instructions_of_turn(case)?;
        match case.unit {
            Unit::Command => table.row(&format!("{case}-instructions-per-command"), turn),
            Unit::Bytes(n) => table.row(&format!("{case}-instructions-per-mib"), turn * MIB / n),
        }
    }
    for (name, order) in [("download", "fetch"), ("upload", "append")] {
        let name = format!("relay-{name}-instructions-per-mib");
        table.row(&name, instructions_of_mib(order, place)?);
    }
    table.row("session-future-bytes", output_size(imaps_proxy::conn::serve));
    let running = Running::start(Candidate::ImapsProxy, place)?;
    workloads::first_greeting(&running, place)?;
    for (figure, bytes) in (Bench { running: &running, place, size: &IDLE }).idle()? {
        table.row(&format!("{}-session-pss-bytes", <&str>::from(figure)), bytes as usize);
    }
    table.end()
}

struct Table {
    /// Without those that were compared.
    limits: BTreeMap<String, usize>,
    wrong: Vec<String>,
}

impl Table {
    fn row(&mut self, figure: &str, measured: usize) {
        match self.limits.remove(figure) {
            Some(limit) => {
                println!("| {figure} | {measured} | {limit} |");
                if measured > limit {
                    self.wrong.push(format!("{figure} is {measured}, over its limit of {limit}"));
                }
            }
            None => {
                println!("| {figure} | {measured} | |");
                self.wrong.push(format!("{figure} is {measured} and has no limit"));
            }
        }
    }

    fn end(mut self) -> Result<(), Box<dyn Error>> {
        let left =
            self.limits.keys().map(|name| format!("{name} has a limit, but is not measured"));
        self.wrong.extend(left);
        if self.wrong.is_empty() { Ok(()) } else { Err(self.wrong.join("\npeers: ").into()) }
    }
}

fn has_avx2() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx2");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

fn output_size<A, B, C, F: Future>(_: impl FnOnce(A, B, C) -> F) -> usize {
    size_of::<F>()
}

/// Plays a component case, for callgrind to watch.
pub fn play(name: &str, turns: usize) -> Result<(), Box<dyn Error>> {
    let case = CASES.iter().find(|case| case.to_string() == name);
    let mut turn = (case.ok_or_else(|| format!("no case {name:?}"))?.start)();
    (0..turns).for_each(|_| turn());
    Ok(())
}

fn instructions_of_turn(case: &Case) -> Result<usize, Box<dyn Error>> {
    let count = |turns: usize| {
        let mut own = Command::new(std::env::current_exe()?);
        own.args(["case", &case.to_string(), &turns.to_string()]);
        let output = under_callgrind(own).output().map_err(without_valgrind)?;
        counted(&String::from_utf8_lossy(&output.stderr))
    };
    // The first turns allocate what the others use.
    Ok(count(2 + TURNS)?.saturating_sub(count(2)?) / TURNS)
}

/// Instructions of the whole proxy for one more MiB.
fn instructions_of_mib(order: &str, place: &Place) -> Result<usize, Box<dyn Error>> {
    let count = |mibs: usize| {
        let mut running = Running::start_by(under_callgrind, Candidate::ImapsProxy, place)
            .map_err(without_valgrind)?;
        workloads::first_greeting(&running, place)?;
        let mut load = Bench { running: &running, place, size: &IDLE }.load()?;
        load.order("open 1")?;
        load.order(&format!("{order} {}", mibs * MIB))?;
        load.order("close")?;
        running.stop(STOP);
        counted(&fs::read_to_string(place.log(Candidate::ImapsProxy))?)
    };
    Ok(count(1 + MIBS)?.saturating_sub(count(1)?) / MIBS)
}

fn under_callgrind(program: Command) -> Command {
    let mut command = Command::new(CALLGRIND[0]);
    command.args(&CALLGRIND[1..]).arg(program.get_program()).args(program.get_args());
    command.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command
}

fn without_valgrind(error: io::Error) -> Box<dyn Error> {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "valgrind is missing; on Debian: sudo apt-get install -y --no-install-recommends valgrind".into()
        }
        _ => error.into(),
    }
}

/// What callgrind says at the end.
fn counted(said: &str) -> Result<usize, Box<dyn Error>> {
    let count =
        said.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok());
    count.ok_or_else(|| format!("callgrind counted nothing, but said: {said}").into())
}
