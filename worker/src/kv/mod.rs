//! The KV cache's bookkeeping: whose blocks are whose, and which can be found again.
//!
//! [`BlockPool`] counts references to blocks and keeps full blocks that nobody holds until their
//! memory is needed; [`Table`] is one sequence's list of blocks. Neither touches the memory.

mod lru;
mod pool;
mod table;
pub mod tier;

pub use pool::{BlockPool, Counts, Evicted, Registered};
pub use table::{BlockCopy, Table};

#[cfg(test)]
mod tests;
