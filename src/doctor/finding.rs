//! What the examination finds: one [`Finding`] for each check, in [`Section`]s, all of them a [`Report`].
//!
//! Names of checks, verdicts and kinds of sections are a contract: scripts read them in `--json`.
//! Not here: how it looks (`report`).

use crate::backend::cures::Cure;

/// What is looked at. The names are those of the JSON and of the text.
#[derive(Clone, Copy, Debug, Eq, PartialEq, strum::IntoStaticStr, strum::VariantArray)]
#[strum(serialize_all = "kebab-case")]
pub enum Check {
    /// The files that the configuration names.
    Files,
    /// Whether the proxy runs and says that it can serve.
    Running,
    /// A name of the service resolves.
    Name,
    /// Somebody listens.
    Port,
    /// What is spoken there.
    Protocol,
    /// TLS versions meet.
    Versions,
    CertificateDates,
    CertificateChain,
    CertificateName,
    Greeting,
    /// A server's address resolves.
    Address,
    /// TLS to a server.
    Encryption,
    Product,
    LoginDisabled,
    /// Whether a server hears who the client is.
    Identity,
    /// What is offered directly and through the proxy.
    Comparison,
    Login,
}

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, strum::IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub enum Verdict {
    Ok,
    /// Could not be looked at, and that is nobody's fault.
    Skipped,
    /// It works, but not for everybody or not for long.
    Warning,
    Problem,
}

/// One check and what came of it.
#[derive(Clone, Debug)]
pub struct Finding {
    pub check: Check,
    pub verdict: Verdict,
    /// A phrase.
    pub seen: String,
    /// What follows from it; empty where it needs no word.
    pub meaning: String,
    /// Each is enough by itself.
    pub cures: Vec<Cure>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, strum::IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub enum Part {
    Configuration,
    Listener,
    Server,
    Login,
}

/// What is said of one thing.
#[derive(Clone, Debug)]
pub struct Section {
    pub part: Part,
    /// A file, an address, a user.
    pub about: String,
    pub findings: Vec<Finding>,
}

#[derive(Clone, Debug, Default)]
pub struct Report {
    pub sections: Vec<Section>,
}

impl Section {
    pub fn new(part: Part, about: impl Into<String>) -> Self {
        Self { part, about: about.into(), findings: Vec::new() }
    }

    pub fn ok(&mut self, check: Check, seen: impl Into<String>) {
        self.add(check, Verdict::Ok, seen, "", Vec::new());
    }

    pub fn skipped(&mut self, check: Check, seen: impl Into<String>, meaning: impl Into<String>) {
        self.add(check, Verdict::Skipped, seen, meaning, Vec::new());
    }

    pub fn warning(
        &mut self,
        check: Check,
        seen: impl Into<String>,
        meaning: impl Into<String>,
        cures: Vec<Cure>,
    ) {
        self.add(check, Verdict::Warning, seen, meaning, cures);
    }

    pub fn problem(
        &mut self,
        check: Check,
        seen: impl Into<String>,
        meaning: impl Into<String>,
        cures: Vec<Cure>,
    ) {
        self.add(check, Verdict::Problem, seen, meaning, cures);
    }

    pub fn add(
        &mut self,
        check: Check,
        verdict: Verdict,
        seen: impl Into<String>,
        meaning: impl Into<String>,
        cures: Vec<Cure>,
    ) {
        let (seen, meaning) = (seen.into(), meaning.into());
        self.findings.push(Finding { check, verdict, seen, meaning, cures });
    }
}

impl Report {
    pub fn count(&self, verdict: Verdict) -> usize {
        let findings = self.sections.iter().flat_map(|section| &section.findings);
        findings.filter(|finding| finding.verdict == verdict).count()
    }
}
