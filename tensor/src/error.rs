//! Why a tensor or a request over tensors is refused; every case is the client's fault.

/// A refusal, with the text that the client sees.
///
/// The texts keep Triton's fragments, because clients and tests look for them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    message: String,
}

impl Error {
    /// Makes a refusal.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into() }
    }
}
