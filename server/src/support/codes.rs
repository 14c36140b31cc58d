//! The codes of errors that the server adds to those of the engine: clients and statuses go by them.

/// The code of an error for a caller over its rate.
pub(crate) const RATE_LIMITED: &str = "rate_limit_exceeded";

/// The code of an error for a request that finds no memory for buffers.
pub(crate) const NO_BUFFERS: &str = "no_buffers";

/// The code of an error for a body that stopped coming.
pub(crate) const STALLED: &str = "request_timeout";

/// The code of an error for a body over its limit.
pub(crate) const TOO_LARGE: &str = "request_too_large";

/// The code of an error for a body in an encoding that is not known.
pub(crate) const UNKNOWN_ENCODING: &str = "unsupported_content_encoding";

/// The code of a refusal because of a threshold.
pub(crate) const BUSY: &str = "busy";
