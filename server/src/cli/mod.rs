//! The commands that serve nothing: chat, measurements, and a check of the machine.

pub mod bench;
pub mod chat;
pub mod doctor;
