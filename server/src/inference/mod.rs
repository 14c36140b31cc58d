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
