//! The samples as a Markdown table (median, and the range in brackets) and as JSON (all of them).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;

use strum::VariantArray as _;

use crate::candidates::Candidate;
use crate::workloads::Figure;

#[derive(Default)]
pub struct Report {
    /// By figure and column.
    samples: BTreeMap<(Figure, &'static str), Vec<f64>>,
    candidates: Vec<Candidate>,
    pub failures: Vec<String>,
}

impl Report {
    pub fn new(candidates: &[Candidate]) -> Self {
        Self { candidates: candidates.to_vec(), ..Self::default() }
    }

    pub fn add(&mut self, candidate: Candidate, samples: impl IntoIterator<Item = (Figure, f64)>) {
        for (figure, sample) in samples {
            self.samples.entry((figure, candidate.name())).or_default().push(sample);
        }
    }

    pub fn median(&self, figure: Figure, candidate: Candidate) -> Option<f64> {
        let mut sorted = self.samples.get(&(figure, candidate.name()))?.clone();
        sorted.sort_by(f64::total_cmp);
        let (low, high) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        Some(f64::midpoint(low, high))
    }

    pub fn markdown(&self, how: &str) -> String {
        let mut text = format!("{how}\n\n| figure |");
        for candidate in &self.candidates {
            let _ = write!(text, " {} |", candidate.name());
        }
        text.push_str(" ours ÷ best peer |\n|---|");
        text.push_str(&"---:|".repeat(self.candidates.len() + 1));
        for figure in Figure::VARIANTS {
            if !self.samples.keys().any(|(with, _)| with == figure) {
                continue;
            }
            let _ = write!(text, "\n| {} |", figure.title());
            for candidate in &self.candidates {
                let _ = write!(text, " {} |", self.cell(*figure, *candidate));
            }
            match self.ratio(*figure) {
                Some(ratio) => {
                    let _ = write!(text, " {ratio:.2} |");
                }
                None => text.push_str(" |"),
            }
        }
        text.push('\n');
        for failure in &self.failures {
            let _ = write!(text, "\nNot measured: {failure}");
        }
        text.push('\n');
        text
    }

    fn cell(&self, figure: Figure, candidate: Candidate) -> String {
        let Some(median) = self.median(figure, candidate) else { return "–".into() };
        let samples = &self.samples[&(figure, candidate.name())];
        let digits = figure.digits();
        let min = samples.iter().copied().fold(f64::INFINITY, f64::min);
        let max = samples.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        match samples.len() {
            1 => format!("{median:.digits$}"),
            _ => format!("{median:.digits$} ({min:.digits$}–{max:.digits$})"),
        }
    }

    /// Ours by the best of those that people run: not the two relays.
    fn ratio(&self, figure: Figure) -> Option<f64> {
        let peers = self.candidates.iter().filter(|candidate| {
            !matches!(candidate, Candidate::ImapsProxy | Candidate::Naive | Candidate::Plain)
        });
        let best = peers.filter_map(|peer| self.median(figure, *peer)).reduce(f64::min)?;
        (best > 0.0).then_some(self.median(figure, Candidate::ImapsProxy)? / best)
    }

    pub fn json(&self, how: &str) -> serde_json::Value {
        let mut figures = serde_json::Map::new();
        for ((figure, candidate), samples) in &self.samples {
            let name: &str = figure.into();
            figures.entry(name).or_insert_with(|| serde_json::json!({}))[*candidate] =
                serde_json::json!(samples);
        }
        serde_json::json!({ "how": how, "samples": figures, "failures": self.failures })
    }
}

/// The machine in one line.
pub fn machine() -> String {
    let first = |file: &str, key: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        text.lines()
            .find_map(|line| line.strip_prefix(key))
            .map_or_else(String::new, |rest| rest.trim_start_matches([':', ' ', '\t']).to_owned())
    };
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let kernel = kernel.split(['-', '\n']).next().unwrap_or_default();
    format!(
        "{} × {}, Linux {kernel}",
        std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        first("/proc/cpuinfo", "model name")
    )
}
