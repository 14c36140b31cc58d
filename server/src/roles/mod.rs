//! The roles of a process: a server, a frontend, a worker, or a whole fleet on one machine.

mod banner;
mod config;
pub mod serve;
pub mod shutdown;
pub mod up;
pub mod worker;

pub(crate) use config::metrics_address;
pub use config::{Config, Origin, computed};
