pub mod settings;

/// Placeholder until the configuration is merged.
#[derive(Debug, thiserror::Error)]
#[error("{}: configuration files are not read yet", .0.display())]
pub struct Error(std::path::PathBuf);

/// Placeholder until the configuration is merged.
///
/// # Errors
/// Always.
pub fn load(path: &std::path::Path) -> Result<settings::Settings, Error> {
    Err(Error(path.to_owned()))
}
