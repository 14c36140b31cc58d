//! The validated configuration of a server or a frontend.

use std::net::SocketAddr;
use std::time::Duration;

use crate::args::{FrontendArgs, ProcessArgs, ServeArgs};
use crate::fleet::FleetConfig;
use crate::models::repository::ModelsConfig;
use crate::pipeline::Limits;
use crate::security::SecurityConfig;
use crate::support::buffers::default_bytes;
use crate::support::invalid::{Invalid, resolve};
use crate::support::preparing::default_places;
use crate::support::shared_memory::SharedMemoryConfig;
use crate::support::trace::TraceConfig;
use crate::surfaces::grpc::GrpcConfig;
use crate::surfaces::openai::OpenAiConfig;
use crate::surfaces::rest::HttpConfig;

/// Everything a server is started with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where its models are computed.
    pub origin: Origin,
    /// What clients may share of their memory.
    pub shared_memory: SharedMemoryConfig,
    /// What is traced at the start.
    pub trace: TraceConfig,
    /// The gRPC door.
    pub grpc: GrpcConfig,
    /// The HTTP door; none is not opened.
    pub http: Option<HttpConfig>,
    /// The OpenAI door, which is part of the HTTP door.
    pub openai: OpenAiConfig,
    /// Certificates, keys and origins.
    pub security: SecurityConfig,
    /// Where metrics are served.
    pub metrics: Option<SocketAddr>,
    /// What the names of metrics begin with.
    pub metrics_prefix: String,
    /// What requests under way get to finish at shutdown.
    pub shutdown_grace: Duration,
    /// How long threads look for the next request before they sleep.
    pub busy_poll: Duration,
}

/// Where the models of a server are computed.
#[derive(Clone, Debug)]
pub enum Origin {
    /// In this process.
    Own(Box<ModelsConfig>),
    /// By the workers of a fleet.
    Fleet(Box<FleetConfig>),
}

/// Returns the values of settings that depend on the machine when nobody gives them, by the names
/// of their flags.
pub fn computed() -> [(&'static str, String); 2] {
    [
        ("max-buffered-mib", (default_bytes() >> 20).to_string()),
        ("max-preparing-requests", default_places().to_string()),
    ]
}

impl Config {
    /// Checks the arguments and makes the configuration.
    ///
    /// Errors: [`Invalid`], naming the flag.
    pub fn from_args(args: &ServeArgs) -> Result<Self, Invalid> {
        let mut models = ModelsConfig::from_args(&args.models, &args.engine, &args.formats)?;
        models.limits = Limits::from_args(&args.busy);
        models.engine.text_rules = args.openai.text_rules();
        Ok(Self {
            origin: Origin::Own(Box::new(models)),
            trace: TraceConfig::from_args(&args.trace)?,
            shared_memory: SharedMemoryConfig::from_args(&args.shared_memory),
            grpc: GrpcConfig::from_args(&args.grpc)?,
            http: (!args.http.no_http).then(|| HttpConfig::from_args(&args.http)).transpose()?,
            openai: OpenAiConfig::from_args(&args.openai)?,
            security: SecurityConfig::from_args(&args.security)?,
            metrics: metrics_address(&args.process)?,
            metrics_prefix: args.process.metrics_prefix.clone(),
            shutdown_grace: Duration::from_millis(args.process.shutdown_grace_ms),
            busy_poll: Duration::from_micros(args.process.busy_poll_us),
        })
    }

    /// Checks the arguments of a frontend and makes its configuration.
    ///
    /// Errors: [`Invalid`], naming the flag.
    pub fn of_frontend(args: &FrontendArgs) -> Result<Self, Invalid> {
        Ok(Self {
            origin: Origin::Fleet(Box::new(FleetConfig::from_args(args)?)),
            trace: TraceConfig::from_args(&args.trace)?,
            shared_memory: SharedMemoryConfig::from_args(&args.shared_memory),
            grpc: GrpcConfig::from_args(&args.grpc)?,
            http: (!args.http.no_http).then(|| HttpConfig::from_args(&args.http)).transpose()?,
            openai: OpenAiConfig::from_args(&args.openai)?,
            security: SecurityConfig::from_args(&args.security)?,
            metrics: metrics_address(&args.process)?,
            metrics_prefix: args.process.metrics_prefix.clone(),
            shutdown_grace: Duration::from_millis(args.process.shutdown_grace_ms),
            busy_poll: Duration::from_micros(args.process.busy_poll_us),
        })
    }
}

/// Returns where metrics are served, if they are.
///
/// Errors: [`Invalid`]: it is not an address of this machine.
pub(crate) fn metrics_address(args: &ProcessArgs) -> Result<Option<SocketAddr>, Invalid> {
    let address = || resolve("--metrics-host", &args.metrics_host, args.metrics_port);
    (!args.no_metrics).then(address).transpose()
}
