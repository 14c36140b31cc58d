//! The flags of shared memory.

use clap::Args;

/// Memory that clients share.
#[derive(Debug, Args)]
#[command(next_help_heading = "Shared memory")]
pub struct SharedMemoryArgs {
    /// Let clients register shared memory regions: they can then read and write every POSIX shared
    /// memory object that this process may
    #[arg(long, env = "STATOR_ALLOW_CLIENT_SHM")]
    pub allow_client_shm: bool,
    /// What the keys of the objects have to begin with [default: anything]; may be repeated
    #[arg(
        long,
        value_name = "PREFIX",
        env = "STATOR_CLIENT_SHM_KEY_PREFIX",
        value_delimiter = ','
    )]
    pub client_shm_key_prefix: Vec<String>,
}
