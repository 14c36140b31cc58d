//! What every surface does with a request below its own protocol: state, metadata, control,
//! inference.

pub(crate) mod catalog;
pub(crate) mod control;
pub(crate) mod inference;
pub(crate) mod shared;
