//! The KServe v2 gRPC door: listen, translate, call, translate back.

mod ending;
mod health;
mod infer;
mod listen;
mod metadata;
mod observation;
mod service;
mod stream;

pub(crate) use health::Health;
pub(crate) use listen::{Door, listen};
pub(crate) use service::{KserveService, Shared};
