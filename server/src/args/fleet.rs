//! The flags of the roles of a fleet: workers, frontends, and how they find one another.

use std::path::PathBuf;

use clap::Args;

use super::{
    AFTER_HELP, BusyArgs, EngineArgs, FormatArgs, GrpcArgs, HttpArgs, MockArgs, ModelArgs,
    OpenAiArgs, PlaneArgs, ProcessArgs, RouterArgs, SecurityArgs, SharedMemoryArgs, TraceArgs,
    UpstreamArgs,
};

/// How workers and frontends find one another.
#[derive(Debug, Args)]
#[command(next_help_heading = "Fleet")]
pub struct DiscoveryArgs {
    /// Where workers and frontends find one another: file:///DIR on one machine;
    /// etcd://HOST:PORT,... between machines, etcds:// over TLS; kubernetes://NAMESPACE in a
    /// cluster, kubernetes://HOST:PORT/NAMESPACE from elsewhere, kubernetes+http:// through
    /// `kubectl proxy`; for frontends only, static://HOST:PORT,..., the workers' addresses
    /// [default: a folder of the user's state, stator/discovery]
    #[arg(long, value_name = "URL", env = "STATOR_DISCOVERY")]
    pub discovery: Option<String>,
    /// User of etcd
    #[arg(long, value_name = "NAME", env = "STATOR_DISCOVERY_USER")]
    pub discovery_user: Option<String>,
    /// File with the password of the user of etcd
    #[arg(long, value_name = "FILE", env = "STATOR_DISCOVERY_PASSWORD_FILE")]
    pub discovery_password_file: Option<PathBuf>,
    /// Authority of the certificate of etcd or of Kubernetes, PEM [default: in a pod, that of its
    /// service account]
    #[arg(long, value_name = "FILE", env = "STATOR_DISCOVERY_TLS_CA")]
    pub discovery_tls_ca: Option<PathBuf>,
    /// Our certificate for etcd, PEM
    #[arg(long, value_name = "FILE", env = "STATOR_DISCOVERY_TLS_CERT")]
    pub discovery_tls_cert: Option<PathBuf>,
    /// Private key of our certificate for etcd, PEM
    #[arg(long, value_name = "FILE", env = "STATOR_DISCOVERY_TLS_KEY")]
    pub discovery_tls_key: Option<PathBuf>,
    /// File with the token for Kubernetes, read again when it changes [default: in a pod, that of
    /// its service account]
    #[arg(long, value_name = "FILE", env = "STATOR_DISCOVERY_TOKEN_FILE")]
    pub discovery_token_file: Option<PathBuf>,
    /// Pod that this process runs in, which then owns what it registers in Kubernetes
    #[arg(long, value_name = "NAME/UID", env = "STATOR_KUBERNETES_POD")]
    pub kubernetes_pod: Option<String>,
}

/// By what names workers offer their models.
#[derive(Debug, Args)]
#[command(next_help_heading = "Fleet")]
pub struct AliasArgs {
    /// Another name by which frontends serve a model, ALIAS=MODEL; may be repeated
    #[arg(long, value_name = "ALIAS=MODEL", env = "STATOR_ALIAS", value_delimiter = ',')]
    pub alias: Vec<String>,
}

/// The flags of `stator worker`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct WorkerArgs {
    #[command(flatten)]
    pub models: ModelArgs,
    #[command(flatten)]
    pub aliases: AliasArgs,
    #[command(flatten)]
    pub discovery: DiscoveryArgs,
    #[command(flatten)]
    pub planes: PlaneArgs,
    /// Address to listen on for frontends, HOST:PORT; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    #[arg(env = "STATOR_WORKER_ADDRESS", help_heading = "Worker")]
    pub worker_address: String,
    /// Address at which frontends reach this worker, HOST:PORT [default: --worker-address]
    #[arg(long, value_name = "ADDRESS", env = "STATOR_ADVERTISE", help_heading = "Worker")]
    pub advertise: Option<String>,
    /// Open connections of frontends; when all are taken, one without calls for a minute gives way
    #[arg(long, value_name = "N", default_value_t = 4096, env = "STATOR_WORKER_MAX_CONNECTIONS")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1_000_000), help_heading = "Worker")]
    pub worker_max_connections: u32,
    /// Memory in MiB for requests of all frontends, from their first byte to the end of their work;
    /// over it they are refused
    #[arg(long, value_name = "MIB", default_value_t = 4096, env = "STATOR_MAX_BUFFERED_MIB")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..), help_heading = "Worker")]
    pub max_buffered_mib: u32,
    /// Name of the fleet that the worker belongs to
    #[arg(long, value_name = "NAME", default_value = "default", env = "STATOR_NAMESPACE")]
    #[arg(help_heading = "Worker")]
    pub namespace: String,
    /// The worker's part of the texts: with workers of both other parts, prompts are computed by the
    /// one and continued by the other
    #[arg(long, value_name = "ROLE", value_enum, default_value_t = Part::Aggregated)]
    #[arg(env = "STATOR_ROLE", help_heading = "Worker")]
    pub role: Part,
    /// Milliseconds in which the KV blocks of a prompt have to come from a prefill worker; later
    /// the prompt is computed here
    #[arg(long, value_name = "MS", default_value_t = 5000, env = "STATOR_KV_TRANSFER_TIMEOUT_MS")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=3_600_000), help_heading = "Worker")]
    pub kv_transfer_timeout_ms: u32,
    /// Authorities of other workers' certificates, PEM: KV blocks are asked for by TLS
    #[arg(long, value_name = "FILE", env = "STATOR_WORKER_TLS_CA", help_heading = "Worker")]
    pub worker_tls_ca: Option<PathBuf>,
    /// Certificate of the worker and its chain, PEM: frontends call it by TLS
    #[arg(long, value_name = "FILE", env = "STATOR_WORKER_TLS_CERT", help_heading = "Worker")]
    #[arg(requires = "worker_tls_key")]
    pub worker_tls_cert: Option<PathBuf>,
    /// Private key of the worker's certificate, PEM
    #[arg(long, value_name = "FILE", env = "STATOR_WORKER_TLS_KEY", help_heading = "Worker")]
    #[arg(requires = "worker_tls_cert")]
    pub worker_tls_key: Option<PathBuf>,
    /// Authorities of frontends' certificates, PEM: every frontend has to show one
    #[arg(long, value_name = "FILE", env = "STATOR_WORKER_TLS_CLIENT_CA", help_heading = "Worker")]
    #[arg(requires = "worker_tls_cert")]
    pub worker_tls_client_ca: Option<PathBuf>,
    #[command(flatten)]
    pub mock: MockArgs,
    #[command(flatten)]
    pub upstream: UpstreamArgs,
    #[command(flatten)]
    pub formats: FormatArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    pub process: ProcessArgs,
}

/// How a frontend treats workers.
#[derive(Debug, Args)]
#[command(next_help_heading = "Frontend")]
pub struct RouteArgs {
    /// Workers that a request is tried on, one after the other, before its first output
    #[arg(long, value_name = "N", default_value_t = 3, env = "STATOR_MAX_ATTEMPTS")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=100))]
    pub max_attempts: u32,
    /// Tensor requests that are tried elsewhere when a worker is lost that may have begun them:
    /// a model with effects of its own would have them twice
    #[arg(long, value_name = "WHICH", value_enum, default_value_t = Repeated::Stateless)]
    #[arg(env = "STATOR_RETRY_ACCEPTED")]
    pub retry_accepted: Repeated,
    /// How often a text that was begun is continued on another worker
    #[arg(long, value_name = "N", default_value_t = 3)]
    #[arg(env = "STATOR_MIGRATION_LIMIT")]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=100))]
    pub migration_limit: u32,
    /// Fewest tokens of a prompt that is computed by a prefill worker, where there is one
    #[arg(long, value_name = "TOKENS", default_value_t = 256, env = "STATOR_PREFILL_MIN_TOKENS")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub prefill_min_tokens: u32,
    /// Milliseconds that a starting frontend, whose ports are open, waits for the models of workers
    /// before it says that it is ready; 0: not at all
    #[arg(long, value_name = "MS", default_value_t = 2000, env = "STATOR_STARTUP_WAIT_MS")]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=3_600_000))]
    pub startup_wait_ms: u32,
    /// Milliseconds that a request waits for a worker when its model has none; 0: not at all
    #[arg(long, value_name = "MS", default_value_t = 10_000, env = "STATOR_WORKER_WAIT_MS")]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=3_600_000))]
    pub worker_wait_ms: u32,
    /// Requests of one model that wait so; more are refused with UNAVAILABLE
    #[arg(long, value_name = "N", default_value_t = 1000, env = "STATOR_MAX_WORKER_WAITS")]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub max_worker_waits: u32,
    /// Milliseconds after its last worker left during which a model is answered for with 503 and
    /// `retry-after` by the OpenAI API, instead of 404; 0: not at all
    #[arg(long, value_name = "MS", default_value_t = 60_000, env = "STATOR_MODEL_GRACE_MS")]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=3_600_000))]
    pub model_grace_ms: u32,
    /// Milliseconds of silence after which a worker is asked for one token, or a worker of tensors
    /// what it serves: one that fails gets no requests until it answers; 0: never
    #[arg(long, value_name = "MS", default_value_t = 30_000, env = "STATOR_CANARY_INTERVAL_MS")]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=3_600_000))]
    pub canary_interval_ms: u32,
    /// Milliseconds that the answer to that may take: longer than a worker's longest forward pass
    #[arg(long, value_name = "MS", default_value_t = 30_000, env = "STATOR_CANARY_TIMEOUT_MS")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=3_600_000))]
    pub canary_timeout_ms: u32,
}

/// The flags of `stator frontend`.
#[derive(Debug, Args)]
#[command(after_help = "Every flag can stand in the file of --config, without its dashes: \
    `grpc-port = 9001`.\nA flag beats its variable, which beats the file.")]
pub struct FrontendArgs {
    #[command(flatten)]
    pub discovery: DiscoveryArgs,
    #[command(flatten)]
    pub planes: PlaneArgs,
    /// Fleet whose workers are called [default: all]; may be repeated
    #[arg(long, value_name = "NAME", env = "STATOR_NAMESPACE", value_delimiter = ',')]
    #[arg(help_heading = "Frontend")]
    pub namespace: Vec<String>,
    /// Fleets whose workers are called, by what their names begin with
    #[arg(long, value_name = "PREFIX", env = "STATOR_NAMESPACE_PREFIX", help_heading = "Frontend")]
    #[arg(conflicts_with = "namespace")]
    pub namespace_prefix: Option<String>,
    #[command(flatten)]
    pub router: RouterArgs,
    #[command(flatten)]
    pub route: RouteArgs,
    #[command(flatten)]
    pub busy: BusyArgs,
    /// Authorities of workers' certificates, PEM: workers are called by TLS, and no others
    #[arg(long, value_name = "FILE", env = "STATOR_WORKER_TLS_CA", help_heading = "Frontend")]
    pub worker_tls_ca: Option<PathBuf>,
    /// Certificate that the frontend shows to workers and its chain, PEM
    #[arg(long, value_name = "FILE", env = "STATOR_WORKER_TLS_CERT", help_heading = "Frontend")]
    #[arg(requires_all = ["worker_tls_ca", "worker_tls_key"])]
    pub worker_tls_cert: Option<PathBuf>,
    /// Private key of that certificate, PEM
    #[arg(long, value_name = "FILE", env = "STATOR_WORKER_TLS_KEY", help_heading = "Frontend")]
    #[arg(requires = "worker_tls_cert")]
    pub worker_tls_key: Option<PathBuf>,
    #[command(flatten)]
    pub shared_memory: SharedMemoryArgs,
    #[command(flatten)]
    pub grpc: GrpcArgs,
    #[command(flatten)]
    pub http: HttpArgs,
    #[command(flatten)]
    pub openai: OpenAiArgs,
    #[command(flatten)]
    pub security: SecurityArgs,
    #[command(flatten)]
    pub trace: TraceArgs,
    #[command(flatten)]
    pub process: ProcessArgs,
}

/// Which part of the texts a worker has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// All of a text
    Aggregated,
    /// Computes prompts and hands their KV blocks on
    Prefill,
    /// Continues prompts that others computed
    Decode,
}

/// Which tensor requests may be given to a second worker when the first may have begun them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Repeated {
    /// None
    Never,
    /// Those that are not part of a sequence
    Stateless,
    /// All
    Always,
}
