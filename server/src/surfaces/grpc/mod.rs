//! The KServe v2 gRPC door: listen, translate, call, translate back.

mod config;
mod ending;
mod frames;
mod health;
mod listen;
mod messages;
mod service;
mod stream;
mod timeout;

pub use config::GrpcConfig;
pub(crate) use health::Health;
pub(crate) use listen::{Door, Grpc};
pub(crate) use service::KserveService;
