//! One file per command.

use std::error::Error as StdError;

pub mod cert;

pub mod health;

/// Why a command failed; what the process's exit code is made of.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Configuration(#[from] crate::config::Error),
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Failed(Box<dyn StdError + Send + Sync>),
}

impl Error {
    /// 1: the operation failed; 2: the command line or the configuration is wrong.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Configuration(_) | Error::Usage(_) => 2,
            Error::Failed(_) => 1,
        }
    }
}
