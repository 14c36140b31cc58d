//! The variables of Dynamo that have no flag there, and families of them.

use super::{Means, NEVER, Name, OFF, ON, Reading, truth, value};

/// Makes a row of a variable that takes a value.
const fn setting(variable: &'static str, means: Means, says: &'static str) -> Name {
    value("", variable, means, says)
}

/// Makes a row of a variable that is true or false.
const fn flag(variable: &'static str, means: Means, says: &'static str) -> Name {
    truth("", variable, means, says)
}

/// Makes a row of a variable that moves a route.
const fn path(variable: &'static str, route: &'static str) -> Name {
    setting(variable, Means::Ours("openai-path", Reading::Route(route)), "")
}

const fn seconds(variable: &'static str, ours: &'static str) -> Name {
    setting(variable, Means::Ours(ours, Reading::Times(1000)), "seconds there")
}

/// What is said of formats of logs that are not here.
const LOG_FORMAT: &str = "say `--log-format text` or `json`";

/// What is said of routes that are not here.
const NO_ROUTE: &str = "there is no such route here, so there is none to move";

pub(super) const NAMES: &[Name] = &[
    // HTTP.
    setting(
        "DYN_HTTP_BODY_LIMIT_MB",
        Means::Ours("http-max-input-bytes", Reading::Times(1 << 20)),
        "MiB there",
    ),
    seconds("DYN_HTTP_GRACEFUL_SHUTDOWN_TIMEOUT_SECS", "shutdown-grace-ms"),
    setting(
        "DYN_HTTP_OVERLOAD_STATUS_CODE",
        Means::Ours("openai-overload-status", Reading::Same),
        "503 or 529",
    ),
    setting(
        "DYN_HTTP_SSE_KEEP_ALIVE_INTERVAL_MS",
        Means::Ours("openai-keep-alive-ms", Reading::Same),
        "",
    ),
    setting(
        "DYN_HTTP_BACKEND_STREAM_TIMEOUT_SECS",
        Means::Only(&["0"]),
        "a worker that is stuck is found by `--canary-interval-ms` and `--canary-timeout-ms`",
    ),
    setting(
        "DYN_HTTP_PRE_COMMIT_ERROR_PEEK_MS",
        Means::Any,
        "a request that cannot be served is refused by its status before a stream begins",
    ),
    path("DYN_HTTP_SVC_CHAT_PATH", "chat"),
    path("DYN_HTTP_SVC_CMP_PATH", "completions"),
    path("DYN_HTTP_SVC_EMB_PATH", "embeddings"),
    path("DYN_HTTP_SVC_RERANK_PATH", "rerank"),
    path("DYN_HTTP_SVC_RESPONSES_PATH", "responses"),
    path("DYN_HTTP_SVC_ANTHROPIC_PATH", "messages"),
    path("DYN_HTTP_SVC_MODELS_PATH", "models"),
    path("DYN_HTTP_SVC_HEALTH_PATH", "health"),
    path("DYN_HTTP_SVC_LIVE_PATH", "live"),
    path("DYN_HTTP_SVC_METRICS_PATH", "metrics"),
    setting("DYN_HTTP_SVC_CLASSIFY_PATH", NEVER, NO_ROUTE),
    setting("DYN_HTTP_SVC_POOLING_PATH", NEVER, NO_ROUTE),
    setting("DYN_HTTP_SVC_FILES_PATH", NEVER, NO_ROUTE),
    setting("DYN_HTTP_SVC_BATCHES_PATH", NEVER, NO_ROUTE),
    flag(
        "DYN_DISABLE_FRONTEND_NVEXT",
        ON,
        "requests have no field `nvext`, and no header names a worker",
    ),
    flag(
        "DYN_DISABLE_FRONTEND_ADMIN_API",
        OFF,
        "routes that change the server cannot be taken away; with `--api-keys` they need a key of \
         the scope `admin`",
    ),
    flag(
        "DYN_IGNORE_OPENAI_FE_UNSUPPORTED_FIELDS",
        Means::Any,
        "fields that the API does not have are passed over",
    ),
    flag(
        "DYN_ENABLE_FORCE_INCLUDE_USAGE",
        OFF,
        "a stream tells its usage when the client asks by `stream_options.include_usage`",
    ),
    setting(
        "DYN_REASONING_FIELD_NAME",
        Means::Only(&["reasoning_content"]),
        "reasoning is in `reasoning_content`",
    ),
    flag("DYN_ENABLE_EXPERIMENTAL_PARSERS_V2", OFF, "there is one parser of each format"),
    setting(
        "DYN_MAX_OUTPUT_TOKENS",
        NEVER,
        "a text ends at its own `max_tokens` or at `--context-length`",
    ),
    setting(
        "DYN_CONTEXT_WINDOW",
        Means::Ours("context-length", Reading::Same),
        "of the worker that has the model",
    ),
    setting("DYN_METADATA_HEADER", NEVER, "say `--http-header-forward-pattern REGEX`"),
    setting(
        "DYN_FRONTEND_FD_LIMIT_TARGET",
        Means::Any,
        "`--grpc-max-connections` and `--http-max-connections` bound the connections; the number of \
         open files is the system's to set (`ulimit -n`)",
    ),
    // gRPC.
    setting(
        "DYN_GRPC_INITIAL_CONNECTION_WINDOW_SIZE",
        Means::Ours("grpc-connection-window-bytes", Reading::Same),
        "",
    ),
    setting(
        "DYN_GRPC_INITIAL_STREAM_WINDOW_SIZE",
        Means::Ours("grpc-stream-window-bytes", Reading::Same),
        "",
    ),
    // Logs.
    setting("DYN_LOG", Means::Ours("log-level", Reading::Same), ""),
    flag(
        "DYN_LOGGING_JSONL",
        Means::Ours("log-format", Reading::Choice(&[("true", Some("json")), ("false", None)])),
        "`true` is `json`",
    ),
    setting(
        "DYN_LOGGING_CONSOLE_FORMAT",
        Means::Ours(
            "log-format",
            Reading::Choice(&[("readable", Some("text")), ("jsonl", Some("json"))]),
        ),
        "`readable` is `text`, `jsonl` is `json`",
    ),
    setting("DYN_LOGGING_CONFIG_PATH", NEVER, LOG_FORMAT),
    flag("DYN_LOGGING_SPAN_EVENTS", OFF, "say `--trace-level TIMESTAMPS` for spans"),
    flag("DYN_LOG_USE_LOCAL_TZ", OFF, "times in the log are UTC"),
    flag(
        "DYN_SDK_DISABLE_ANSI_LOGGING",
        Means::Any,
        "the log has colours on a terminal and nowhere else",
    ),
    // The runtime.
    setting("DYN_RUNTIME_NUM_WORKER_THREADS", Means::Ours("runtime-threads", Reading::Same), ""),
    setting(
        "DYN_RUNTIME_MAX_BLOCKING_THREADS",
        NEVER,
        "the runtime has no such setting; `--threads` is what computes",
    ),
    seconds("DYN_RUNTIME_GRACEFUL_SHUTDOWN_TIMEOUT_SECS", "shutdown-grace-ms"),
    seconds("DYN_WORKER_GRACEFUL_SHUTDOWN_TIMEOUT", "shutdown-grace-ms"),
    setting(
        "DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS",
        Means::Only(&["0"]),
        "a server that ends is not ready from the first moment on, and serves what it has begun for \
         `--shutdown-grace-ms`",
    ),
    setting(
        "DYN_RUNTIME_INHIBITED_DURATION_SECS",
        NEVER,
        "a worker that failed gets no requests until it answers one of `--canary-interval-ms`",
    ),
    flag("DYN_ENABLE_POLL_HISTOGRAM", OFF, "there is no such metric"),
    // Health, and the server of status.
    setting(
        "DYN_SYSTEM_PORT",
        Means::Ours("metrics-port", Reading::Same),
        "`/health` and `/live` are beside `/metrics`",
    ),
    setting("DYN_SYSTEM_HOST", Means::Ours("metrics-host", Reading::Same), ""),
    flag(
        "DYN_SYSTEM_ENABLED",
        Means::Ours("no-metrics", Reading::Off),
        "the port of metrics, with `/health` and `/live`, is open unless `--no-metrics`",
    ),
    setting(
        "DYN_SYSTEM_HEALTH_PATH",
        Means::Only(&["/health"]),
        "on the port of metrics the route is `/health`",
    ),
    setting(
        "DYN_SYSTEM_LIVE_PATH",
        Means::Only(&["/live"]),
        "on the port of metrics the route is `/live`",
    ),
    setting(
        "DYN_SYSTEM_STARTING_HEALTH_STATUS",
        Means::Only(&["notready"]),
        "a server is not ready before its models are there",
    ),
    setting(
        "DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS",
        Means::Any,
        "a server is ready when its models are",
    ),
    flag(
        "DYN_HEALTH_CHECK_ENABLED",
        Means::Ours("canary-interval-ms", Reading::Choice(&[("true", None), ("false", Some("0"))])),
        "silent workers are asked unless it is 0",
    ),
    seconds("DYN_CANARY_WAIT_TIME", "canary-interval-ms"),
    seconds("DYN_HEALTH_CHECK_REQUEST_TIMEOUT", "canary-timeout-ms"),
    setting(
        "DYN_HEALTH_CHECK_PAYLOAD",
        NEVER,
        "a worker is asked for one token, or for what tensors it serves",
    ),
    // LoRA.
    flag("DYN_LORA_ENABLED", ON, "adapters can always be loaded; `--max-loras` bounds them"),
    setting("DYN_LORA_PATH", NEVER, "say each adapter, `--lora-modules NAME=DIR`"),
    // Discovery.
    setting(
        "DYN_FILE_KV",
        Means::Any,
        "it is read where DYN_DISCOVERY_BACKEND is `file`; otherwise say `--discovery file:///DIR`",
    ),
    setting(
        "DYN_KUBE_DISCOVERY_MODE",
        Means::Only(&["pod", "container"]),
        "each process registers for itself, and `--kubernetes-pod` names the pod that owns it",
    ),
    setting(
        "DYN_NAMESPACE_WORKER_SUFFIX",
        NEVER,
        "say the whole name, `--namespace NAME`; `--namespace-prefix` of a frontend takes in several",
    ),
    // The planes.
    setting(
        "DYN_REQUEST_PLANE_CODEC",
        Means::Any,
        "requests between the roles are protocol buffers",
    ),
    setting("DYN_EVENT_PLANE_CODEC", Means::Any, "events are protocol buffers"),
    setting(
        "DYN_TCP_RPC_HOST",
        NEVER,
        "say the host and the port of a worker, `--worker-address HOST:PORT`",
    ),
    setting(
        "DYN_TCP_RPC_PORT",
        NEVER,
        "say the host and the port of a worker, `--worker-address HOST:PORT`",
    ),
    setting(
        "DYN_TCP_RESPONSE_STREAM_HOST",
        Means::Any,
        "answers come back by the connection of the request",
    ),
    setting(
        "DYN_TCP_RESPONSE_STREAM_PORT",
        Means::Any,
        "answers come back by the connection of the request",
    ),
    // Media.
    flag("DYN_MM_ALLOW_INTERNAL", OFF, "pictures and videos of other servers are not fetched"),
    setting("DYN_MM_LOCAL_PATH", NEVER, "pictures and videos of this machine are not read"),
];

const HISTOGRAMS: &str = "the buckets of histograms are not a setting";
const TCP: &str = "the pools and times of calls between the roles are not settings";
const TRACES: &str = "requests are traced by `--trace-level`, `--trace-rate`, `--trace-mode` and \
    `--trace-file`, and no sink has their payload";
const KVBM: &str = "the tiers of the KV cache are `--kv-host-mib`, `--kv-disk-dir` and \
    `--kv-disk-mib`";
const ADAPTERS: &str =
    "adapters are where `--lora-modules` and clients load them; nothing moves them";
const ENGINES: &str = "the engines of Dynamo's workers are not here; `stator worker --upstream URL` \
    offers the models of a server of theirs";
const ROUTER: &str = "the router has no such setting; those it has are in `docs/router.md`";

/// Families of variables, by what their names begin with, that are refused. The first that fits
/// holds.
pub(super) const FAMILIES: &[(&str, &str)] = &[
    ("DYN_ROUTER_", ROUTER),
    ("DYN_OVERLAP_SCORE_WEIGHT", ROUTER),
    ("DYN_MOONCAKE_", ROUTER),
    (
        "DYN_AIC_",
        "there is no model of prefill times; `--router-prefill-load-scale` weighs prefill",
    ),
    ("DYN_KVBM_", KVBM),
    ("DYN_RUNTIME_ENABLED_KVBM", KVBM),
    ("DYN_LORA_", ADAPTERS),
    ("DYN_REQUEST_TRACE", TRACES),
    ("DYN_AUDIT_", TRACES),
    ("DYN_FPM_", TRACES),
    ("DYN_METRICS_", HISTOGRAMS),
    ("DYN_HISTOGRAM_", HISTOGRAMS),
    ("DYN_TCP_", TCP),
    ("DYN_NATS_", "say the servers of NATS by `--nats`; its times and streams are not settings"),
    ("DYN_ZMQ_", "events need no ZeroMQ; `--event-plane` is `grpc` or `nats`"),
    ("DYN_VLLM_", ENGINES),
    ("DYN_TRTLLM_", ENGINES),
    ("DYN_SGL", ENGINES),
    ("DYN_COMPUTE_", "compute threads are `--threads`"),
    ("DYN_TOKENIZER_CACHE", "texts are not kept with their tokens; the KV cache finds prefixes"),
    ("DYN_KV_TRANSFER_", "KV blocks are handed over as `--kv-transfer-timeout-ms` says"),
    ("DYN_TOPOLOGY_", "workers tell no place in a topology"),
    ("DYN_ENABLE_RL", "weights are not changed while a model is served"),
    ("DYN_RL_", "weights are not changed while a model is served"),
];
