//! The flags of `stator doctor`.

use clap::Args;

use super::{DiscoveryArgs, PlaneArgs};

/// The flags of `stator doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Ports of this machine that a server will open
    #[arg(long, value_name = "PORT", default_value = "8000,8001,8002", value_delimiter = ',')]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub ports: Vec<u16>,
    #[command(flatten)]
    pub discovery: DiscoveryArgs,
    #[command(flatten)]
    pub planes: PlaneArgs,
}
