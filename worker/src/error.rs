//! What can go wrong in a worker: a model file that cannot be served, or a device that failed.

use std::path::PathBuf;

/// A failure of this room.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be read.
    #[error("cannot read `{path}`: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The file is not a model that this worker serves; the text names the field.
    #[error("model file: {0}")]
    Model(String),
    /// There are as many of something as there may be.
    #[error("{0}")]
    Limit(String),
    /// A forward pass failed.
    #[error("device: {0}")]
    Device(String),
}

impl From<Error> for engine::Error {
    fn from(error: Error) -> Self {
        let kind = match error {
            Error::Read { .. } | Error::Model(_) => engine::ErrorKind::Unavailable,
            Error::Limit(_) => engine::ErrorKind::Overloaded,
            Error::Device(_) => engine::ErrorKind::Internal,
        };
        Self::new(kind, error.to_string()).with_source(error)
    }
}
