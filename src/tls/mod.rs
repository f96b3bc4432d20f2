//! TLS: placeholder of this branch for what `check` needs.

use crate::config::settings::Tls;

/// What `check` found in the files of the section `tls`.
#[derive(Clone, Debug)]
pub struct Finding {
    pub severity: Severity,
    /// Which file, what is wrong with it, and the cure.
    pub message: String,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Severity {
    Error,
    Warning,
}

/// Looks at the files that `tls` names.
pub fn check(tls: &Tls) -> Vec<Finding> {
    let files = tls.certificate.iter().flat_map(|pair| [&pair.cert, &pair.key]);
    let missing = files.filter(|path| tls.self_signed.is_none() && !path.exists());
    let finding = |path: &std::path::PathBuf| Finding {
        severity: Severity::Error,
        message: format!("{}: does not exist", path.display()),
    };
    missing.map(finding).collect()
}
