//! The KV cache's bookkeeping: which blocks are free and whose the others are.

mod pool;

pub use pool::BlockPool;
