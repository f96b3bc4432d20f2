//! CPU time and memory of a process and its children, as the kernel counts them.

use std::collections::HashMap;
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// `utime` and `stime` come in hundredths of a second on every Linux (proc(5)).
const TICK: Duration = Duration::from_millis(10);

/// The processes below `root`, itself included.
pub fn tree(root: u32) -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
        if let Some(stat) = stat(pid) {
            children.entry(stat[1] as u32).or_default().push(pid);
        }
    }
    let mut all = vec![root];
    let mut next = 0;
    while let Some(pid) = all.get(next) {
        all.extend(children.remove(pid).unwrap_or_default());
        next += 1;
    }
    all
}

/// The numbers of `/proc/PID/stat` behind the name: `[0]` state (as 0), `[1]` parent, `[11]` utime, `[12]` stime.
fn stat(pid: u32) -> Option<Vec<u64>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let behind = text.rsplit_once(')')?.1;
    Some(behind.split_ascii_whitespace().map(|word| word.parse().unwrap_or(0)).collect())
}

/// User and system time of the tree so far, with that of children that have ended.
pub fn cpu(root: u32) -> Duration {
    let ticks: u64 =
        tree(root).into_iter().filter_map(stat).map(|stat| stat[11..15].iter().sum::<u64>()).sum();
    TICK * u32::try_from(ticks).unwrap_or(u32::MAX)
}

/// As [`cpu`], once it has stopped growing: what a workload leaves to be cleaned up is part of it.
pub fn settled_cpu(root: u32) -> Duration {
    let (mut last, mut since) = (cpu(root), Instant::now());
    let end = Instant::now() + Duration::from_secs(5);
    while since.elapsed() < Duration::from_millis(100) && Instant::now() < end {
        sleep(Duration::from_millis(20));
        let now = cpu(root);
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    last
}

/// Proportional set size of the tree, bytes.
pub fn pss(root: u32) -> u64 {
    tree(root).into_iter().filter_map(pss_of).sum()
}

fn pss_of(pid: u32) -> Option<u64> {
    let rollup = match fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            panic!("only root can measure a process that is not dumpable")
        }
        rollup => rollup.ok()?,
    };
    let line = rollup.lines().find(|line| line.starts_with("Pss:"))?;
    Some(line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

/// As [`pss`], once it stays the same for a moment.
pub fn settled_pss(root: u32) -> u64 {
    let (mut last, mut since) = (pss(root), Instant::now());
    let end = Instant::now() + Duration::from_secs(5);
    while since.elapsed() < Duration::from_millis(300) && Instant::now() < end {
        sleep(Duration::from_millis(50));
        let now = pss(root);
        if now.abs_diff(last) > 16 * 1024 {
            (last, since) = (now, Instant::now());
        }
    }
    pss(root)
}
