//! How processes find, call and hear each other.

pub mod request;
