//! Models: where they come from, what a definition says, how one is loaded, and which are there.

pub(crate) mod declaration;
pub(crate) mod definition;
pub(crate) mod hub;
pub mod loader;
pub(crate) mod registry;
pub mod repository;
pub mod source;
pub(crate) mod tables;
pub(crate) mod text;
