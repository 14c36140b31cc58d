//! Compiles `proto/*.proto` with a pure-Rust protobuf compiler.
fn main() {}
