//! The flags of traces.

use std::path::PathBuf;

use clap::Args;

/// Traces of single requests; clients may change all but the file and the endpoint.
#[derive(Debug, Args)]
#[command(next_help_heading = "Traces")]
pub struct TraceArgs {
    /// What is traced: OFF, or TIMESTAMPS and TENSORS (tensors tell what clients sent)
    #[arg(long, value_name = "LEVEL", default_value = "OFF", env = "STATOR_TRACE_LEVEL")]
    #[arg(value_delimiter = ',', value_parser = ["OFF", "TIMESTAMPS", "TENSORS"])]
    pub trace_level: Vec<String>,
    /// One request of so many is traced
    #[arg(long, value_name = "N", default_value_t = 1000, env = "STATOR_TRACE_RATE")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub trace_rate: u32,
    /// So many requests are traced; -1: no limit
    #[arg(long, value_name = "N", default_value_t = -1, env = "STATOR_TRACE_COUNT")]
    #[arg(allow_negative_numbers = true)]
    pub trace_count: i64,
    /// A trace file is closed after so many traces and another begun; 0: never
    #[arg(long, value_name = "N", default_value_t = 0, env = "STATOR_TRACE_LOG_FREQUENCY")]
    pub trace_log_frequency: u32,
    /// Where traces go: to a file as Triton writes it, or as spans over OTLP
    #[arg(long, value_name = "MODE", value_enum, default_value_t = TraceMode::Triton)]
    #[arg(env = "STATOR_TRACE_MODE")]
    pub trace_mode: TraceMode,
    /// File of mode triton
    #[arg(long, value_name = "FILE", env = "STATOR_TRACE_FILE")]
    pub trace_file: Option<PathBuf>,
    /// Collector of mode opentelemetry, OTLP over gRPC
    #[arg(long, value_name = "URL", default_value = "http://localhost:4317")]
    #[arg(env = "STATOR_TRACE_OTLP_ENDPOINT")]
    pub trace_otlp_endpoint: String,
}

/// Where traces go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum TraceMode {
    /// To a JSON file, as Triton writes it.
    Triton,
    /// As spans over OTLP.
    Opentelemetry,
}
