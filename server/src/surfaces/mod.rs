//! The protocols that clients speak, and the listeners they come to.

pub(crate) mod admin;
pub mod grpc;
pub(crate) mod http;
pub(crate) mod listener;
pub(crate) mod openai;
pub(crate) mod orca;
pub mod pages;
pub(crate) mod paths;
pub mod rest;
