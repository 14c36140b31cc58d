//! Kernels for CPUs: packed weights, quantised activations, attention, and the threads they run on.
//!
//! The instruction set is chosen at start-up from what the processor has. Whatever the set, the
//! result for a token depends on that token alone, to the last bit: never on the batch it is in,
//! nor on the number of threads.

pub mod activations;
#[cfg(target_arch = "x86_64")]
mod amx;
pub mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod bidirectional;
pub(crate) mod cores;
mod isa;
pub mod linear;
pub mod low_rank;
pub(crate) mod memory;
#[cfg(target_arch = "aarch64")]
mod neon;
mod packed;
pub mod pool;
mod portable;
pub mod postnorm;
pub(crate) mod softmax;
pub mod vector;

pub use isa::Isa;
