//! How findings look: for people, with ticks and on a terminal with colours, and as JSON for scripts.
//!
//! The JSON is a contract (README has it): fields are added, none is renamed or goes. Whatever a server or a certificate
//! said was made printable before it got here.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::finding::{Finding, Part, Report, Section, Verdict};
use crate::backend::cures::Cure;

/// Width of the names of checks.
const NAMES: usize = 18;
/// Meaning and cures stand below what was seen.
const INDENT: &str = "                        ";
/// Lines of text end here.
const WIDTH: usize = 110;

/// The report for people, with colours if wanted.
pub fn text(report: &Report, colours: bool) -> String {
    let mut out = String::new();
    for section in &report.sections {
        if section.findings.is_empty() {
            continue;
        }
        let title = match section.part {
            Part::Configuration => "Configuration",
            Part::Listener => "Listener",
            Part::Server => "Server",
            Part::Login => "Login",
        };
        let line = paint(&format!("{title} {}", section.about), "1", colours);
        let _ = writeln!(out, "{line}");
        section.findings.iter().for_each(|finding| show(finding, colours, &mut out));
        out.push('\n');
    }
    let (problems, warnings) = (report.count(Verdict::Problem), report.count(Verdict::Warning));
    let count = |number: usize, noun: &str| match number {
        1 => format!("1 {noun}"),
        _ => format!("{number} {noun}s"),
    };
    let sum = match (problems, warnings) {
        (0, 0) => paint("Nothing is wrong.", "32", colours),
        (0, _) => {
            paint(&format!("Nothing is wrong, {}.", count(warnings, "warning")), "33", colours)
        }
        (_, 0) => paint(&format!("{}.", count(problems, "problem")), "31", colours),
        _ => {
            let both = format!("{}, {}.", count(problems, "problem"), count(warnings, "warning"));
            paint(&both, "31", colours)
        }
    };
    let _ = writeln!(out, "{sum}");
    out
}

fn show(finding: &Finding, colours: bool, out: &mut String) {
    let (sign, colour) = match finding.verdict {
        Verdict::Ok => ("✓", "32"),
        Verdict::Skipped => ("–", "2"),
        Verdict::Warning => ("!", "33"),
        Verdict::Problem => ("✗", "31"),
    };
    let sign = paint(sign, colour, colours);
    let name: &str = finding.check.into();
    let mut lines = wrapped(&finding.seen);
    let _ = writeln!(out, "  {sign} {name:NAMES$}  {}", lines.next().unwrap_or_default());
    for line in lines.chain(wrapped(&finding.meaning)) {
        let _ = writeln!(out, "{INDENT}{line}");
    }
    for (index, cure) in finding.cures.iter().enumerate() {
        let title = if index == 0 { cure.title.clone() } else { format!("or {}", cure.title) };
        let _ = writeln!(out, "{INDENT}{}", paint(&format!("→ {title}"), "1", colours));
        for step in &cure.steps {
            for line in wrapped(&format!("in {}:", step.place)) {
                let _ = writeln!(out, "{INDENT}  {line}");
            }
            // As they are, so that they can be copied.
            for line in &step.lines {
                let _ = writeln!(out, "{INDENT}    {}", paint(line, "36", colours));
            }
        }
    }
}

fn paint(text: &str, colour: &str, colours: bool) -> String {
    if colours { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
}

/// `text` in lines that fit beside the indent; a word that is longer has a line of its own.
fn wrapped(text: &str) -> impl Iterator<Item = String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + word.chars().count() < WIDTH - INDENT.len() => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines.into_iter()
}

/// The report for scripts.
pub fn json(report: &Report) -> String {
    let findings: Vec<Value> = report
        .sections
        .iter()
        .flat_map(|section| section.findings.iter().map(move |finding| one(section, finding)))
        .collect();
    let count = |verdict| report.count(verdict);
    let all = json!({
        "healthy": count(Verdict::Problem) == 0,
        "problems": count(Verdict::Problem),
        "warnings": count(Verdict::Warning),
        "findings": findings,
    });
    format!("{all:#}\n")
}

fn one(section: &Section, finding: &Finding) -> Value {
    let part: &str = section.part.into();
    let check: &str = finding.check.into();
    let verdict: &str = finding.verdict.into();
    let cures: Vec<Value> = finding.cures.iter().map(cure).collect();
    json!({
        "part": part,
        "about": section.about,
        "check": check,
        "verdict": verdict,
        "seen": finding.seen,
        "meaning": finding.meaning,
        "cures": cures,
    })
}

fn cure(cure: &Cure) -> Value {
    let steps = cure.steps.iter().map(|step| json!({ "place": step.place, "lines": step.lines }));
    json!({ "title": cure.title, "steps": steps.collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::super::finding::Check;
    use super::*;
    use crate::backend::cures::Step;

    fn report() -> Report {
        let mut section = Section::new(Part::Server, "legacy:143");
        section.ok(Check::Port, "10.0.0.2:143 answers");
        let cures = vec![
            Cure::new("do this", vec![Step::new("/etc/x.conf", &["a {", "  b = c", "}"])]),
            Cure::new("do that", vec![Step::new("a shell", &["restart"])]),
        ];
        let meaning = "It refuses passwords on a connection that it takes for unencrypted, so nobody can log in through the proxy either";
        section.problem(Check::LoginDisabled, "LOGINDISABLED", meaning, cures);
        Report { sections: vec![Section::new(Part::Listener, "empty"), section] }
    }

    #[test]
    fn people_see_ticks_meaning_and_lines() {
        let expected = "\
Server legacy:143
  ✓ port                10.0.0.2:143 answers
  ✗ login-disabled      LOGINDISABLED
                        It refuses passwords on a connection that it takes for unencrypted, so nobody can log
                        in through the proxy either
                        → do this
                          in /etc/x.conf:
                            a {
                              b = c
                            }
                        → or do that
                          in a shell:
                            restart

1 problem.
";
        assert_eq!(text(&report(), false), expected);
        let coloured = text(&report(), true);
        assert!(coloured.contains("\x1b[32m✓\x1b[0m port"), "{coloured:?}");
        assert!(coloured.contains("\x1b[31m1 problem.\x1b[0m"), "{coloured:?}");
    }

    #[test]
    fn scripts_see_the_same() {
        let parsed: Value = serde_json::from_str(&json(&report())).unwrap();
        assert_eq!(parsed["healthy"], false);
        assert_eq!(parsed["problems"], 1);
        assert_eq!(parsed["findings"][1]["check"], "login-disabled");
        assert_eq!(parsed["findings"][1]["about"], "legacy:143");
        assert_eq!(parsed["findings"][1]["cures"][0]["steps"][0]["lines"][1], "  b = c");
    }
}
