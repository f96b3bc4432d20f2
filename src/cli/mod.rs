//! One file per command.

pub mod demo;

/// Why a command failed; decides the exit code.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Failed(Box<dyn std::error::Error + Send + Sync>),
}
