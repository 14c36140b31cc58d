//! The flags of the router: which worker gets a request.

use clap::Args;

/// How a worker is chosen.
#[derive(Debug, Args)]
#[command(next_help_heading = "Router")]
pub struct RouterArgs {
    /// How a worker is chosen for a request
    #[arg(long, alias = "routing", value_name = "MODE", value_enum)]
    #[arg(default_value_t = Routing::LeastLoaded, env = "STATOR_ROUTER_MODE")]
    pub router_mode: Routing,
    /// kv: credit of a prompt block that the worker has cached, in blocks of prefill; 0 ignores the
    /// cache
    #[arg(long, value_name = "NUMBER", default_value_t = 1.0, value_parser = weight)]
    #[arg(env = "STATOR_ROUTER_KV_OVERLAP_SCORE_CREDIT")]
    pub router_kv_overlap_score_credit: f64,
    /// kv: weight of the prompt tokens that a worker still has to compute, beside the KV blocks that
    /// its requests hold
    #[arg(long, value_name = "NUMBER", default_value_t = 1.0, value_parser = weight)]
    #[arg(env = "STATOR_ROUTER_PREFILL_LOAD_SCALE")]
    pub router_prefill_load_scale: f64,
    /// kv: cost of each request that a worker has, in blocks
    #[arg(long, value_name = "NUMBER", default_value_t = 0.0, value_parser = weight)]
    #[arg(env = "STATOR_ROUTER_DECODE_ACTIVE_REQUEST_WEIGHT")]
    pub router_decode_active_request_weight: f64,
    /// kv: 0 chooses the worker with the lowest cost; a higher temperature draws among all workers,
    /// cheap ones more often
    #[arg(long, value_name = "NUMBER", default_value_t = 0.0, value_parser = weight)]
    #[arg(env = "STATOR_ROUTER_TEMPERATURE")]
    pub router_temperature: f64,
    /// kv: a worker with more than this many times the mean number of requests (and at least 8) gets
    /// no other one, whatever it has cached
    #[arg(long, value_name = "RATIO", default_value_t = 1.5, value_parser = weight)]
    #[arg(env = "STATOR_ROUTER_MAX_LOAD_RATIO")]
    pub router_max_load_ratio: f64,
    /// kv: assume that workers cached the prompts that were routed to them, instead of reading their
    /// KV events
    #[arg(long, env = "STATOR_NO_ROUTER_KV_EVENTS")]
    pub no_router_kv_events: bool,
    /// kv: seconds for which a routed prompt is assumed to be cached, without KV events
    #[arg(long, value_name = "SECONDS", default_value_t = 120, env = "STATOR_ROUTER_TTL_SECS")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub router_ttl_secs: u32,
    /// kv by load alone: a preset of --router-kv-overlap-score-credit 0 and --no-router-kv-events
    #[arg(long, env = "STATOR_LOAD_AWARE")]
    pub load_aware: bool,
}

/// Reads a number that weighs something.
fn weight(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if (0.0..=1e6).contains(&number) => Ok(number),
        _ => Err("expected a number from 0 to 1000000".to_owned()),
    }
}

/// Which of a model's workers gets a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Routing {
    /// One after the other
    RoundRobin,
    /// Any one
    Random,
    /// The one of two drawn at random that has fewer requests
    PowerOfTwo,
    /// The one with the fewest requests
    LeastLoaded,
    /// The one where the prompt costs least: by the KV blocks that it has cached, and by its load
    Kv,
}
