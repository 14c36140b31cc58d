//! How a request fails: a kind for programs, a message for the client, a source for operators.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// The result of anything on the request path.
pub type Result<T> = std::result::Result<T, Error>;

/// Whose fault a failure is and what a client may do about it.
///
/// Surfaces translate kinds to their own statuses in one place (`server/src/support/status.rs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request can never succeed as it is.
    InvalidRequest,
    /// The caller did not say who they are.
    Unauthenticated,
    /// The caller may not do this.
    PermissionDenied,
    /// The named model, version or thing does not exist.
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// A queue or limit is full: try again later or elsewhere.
    Overloaded,
    /// The service is starting, draining or gone: try again elsewhere.
    Unavailable,
    /// The request's own deadline passed.
    DeadlineExceeded,
    /// The caller went away or said stop.
    Cancelled,
    /// The thing asked for is known and not offered.
    Unimplemented,
    /// A fault of ours.
    Internal,
}

/// A failed request.
///
/// `message` is for the client: it says what failed, what was expected and what came, and
/// holds no secret. `source` is for the operator's log.
///
/// ```
/// use engine::{Error, ErrorKind};
/// let error = Error::invalid("input `top_p`: expected 0..=1, got 7");
/// assert_eq!(error.kind(), ErrorKind::InvalidRequest);
/// ```
#[derive(Clone)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    param: Option<String>,
    code: Option<Cow<'static, str>>,
    retry_after: Option<Duration>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

impl Error {
    /// Makes an error of a kind with the client's message.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            param: None,
            code: None,
            retry_after: None,
            source: None,
        }
    }

    /// Makes an [`ErrorKind::InvalidRequest`].
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidRequest, message)
    }

    /// Makes an [`ErrorKind::NotFound`].
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    /// Makes an [`ErrorKind::Internal`].
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// Adds the cause, for the operator.
    #[must_use]
    pub fn with_source(mut self, source: impl StdError + Send + Sync + 'static) -> Self {
        self.source = Some(Arc::new(source));
        self
    }

    /// Puts text before the client's message, such as the id of the request.
    #[must_use]
    pub fn with_prefix(mut self, prefix: &str) -> Self {
        self.message.insert_str(0, prefix);
        self
    }

    /// Names the field of the request that is wrong, for clients that read it.
    #[must_use]
    pub fn with_param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// Adds a word for programs, finer than the kind, such as `context_length_exceeded`.
    #[must_use]
    pub fn with_code(mut self, code: impl Into<Cow<'static, str>>) -> Self {
        self.code = Some(code.into());
        self
    }

    /// Says after what time the same request may be tried again.
    #[must_use]
    pub fn with_retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// Returns after what time the same request may be tried again, if it is known.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// Returns the field of the request that is wrong, if it is known.
    pub fn param(&self) -> Option<&str> {
        self.param.as_deref()
    }

    /// Returns the word for programs.
    pub fn code(&self) -> Option<&str> {
        self.code.as_deref()
    }

    /// Returns the kind.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Returns the client's message.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.kind)
            .field("message", &self.message)
            .field("source", &self.source)
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

impl From<tensor::Error> for Error {
    fn from(error: tensor::Error) -> Self {
        Self::invalid(error.to_string())
    }
}
