//! What the doors share below their codecs: checking, starting, answering and counting requests.

mod call;
mod observation;
mod options;
mod outputs;
mod unary;

pub(crate) use call::{Asked, Call, Refusal};
pub(crate) use observation::Observation;
pub(crate) use outputs::Outputs;
pub(crate) use unary::unary;

use std::sync::Arc;

use http::HeaderMap;
use tokio::runtime::{Handle, RuntimeFlavor};

use crate::support::preparing::LARGE_BYTES;

/// Does work on so many bytes; a lot of it while other threads take over this one's tasks.
pub(crate) fn heavy<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    let can_move = || Handle::current().runtime_flavor() == RuntimeFlavor::MultiThread;
    match bytes > LARGE_BYTES && can_move() {
        true => tokio::task::block_in_place(work),
        false => work(),
    }
}

/// Returns the caller's span, which the header `traceparent` names.
pub(crate) fn parent(headers: &HeaderMap) -> Option<Arc<str>> {
    headers.get("traceparent").and_then(|value| value.to_str().ok()).map(Arc::from)
}
