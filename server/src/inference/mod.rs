//! What the doors share below their codecs: checking, starting, answering and counting requests.

mod call;
mod observation;

pub(crate) use call::{Asked, Call, Refusal};
pub(crate) use observation::Observation;
