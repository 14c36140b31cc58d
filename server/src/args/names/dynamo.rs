//! The flags of Dynamo's frontend and of its runtime, with their variables.

use super::{Means, NEVER, Name, OFF, ON, Reading, same, switch, truth, value};

/// What is said of settings that the router has not.
const NONE_SUCH: &str = "the router has no such setting; those it has are in `docs/router.md`";

/// What is said of the model of prefill times.
const NO_AIC: &str =
    "there is no model of prefill times; `--router-prefill-load-scale` weighs prefill";

/// What is said of the admission gates of Dynamo's frontend.
const GATES: &str = "say `--busy-waiting-requests`, `--busy-prefill-tokens` or `--busy-kv-share`, \
    and for connections `--http-max-connections` and `--grpc-max-connections`";

/// All but those of the router.
pub(super) const NAMES: &[Name] = &[
    // HTTP and networking.
    same("http-host", "DYN_HTTP_HOST", "http-host"),
    same("http-port", "DYN_HTTP_PORT", "http-port"),
    value(
        "tls-cert-path",
        "DYN_TLS_CERT_PATH",
        Means::Ours("tls-cert", Reading::Same),
        "gRPC and metrics serve TLS too, but for `--tls-listeners http`",
    ),
    same("tls-key-path", "DYN_TLS_KEY_PATH", "tls-key"),
    value(
        "tls-client-ca-cert-path",
        "DYN_TLS_CLIENT_CA_CERT_PATH",
        Means::Ours("tls-client-ca", Reading::Same),
        "gRPC too requires a certificate then",
    ),
    // Fault tolerance.
    same("migration-limit", "DYN_MIGRATION_LIMIT", "migration-limit"),
    value(
        "migration-max-seq-len",
        "DYN_MIGRATION_MAX_SEQ_LEN",
        NEVER,
        "a text of any length is continued; `--migration-limit 0` continues none",
    ),
    value(
        "active-decode-blocks-threshold",
        "DYN_ACTIVE_DECODE_BLOCKS_THRESHOLD",
        Means::Ours("busy-kv-share", Reading::Unless("None")),
        "`None` sets nothing",
    ),
    value(
        "active-prefill-tokens-threshold",
        "DYN_ACTIVE_PREFILL_TOKENS_THRESHOLD",
        Means::Ours("busy-prefill-tokens", Reading::Unless("None")),
        "`None` sets nothing",
    ),
    value(
        "active-prefill-tokens-threshold-frac",
        "DYN_ACTIVE_PREFILL_TOKENS_THRESHOLD_FRAC",
        Means::Only(&["None"]),
        "say how many tokens, by `--busy-prefill-tokens`",
    ),
    value(
        "admission-control",
        "DYN_ADMISSION_CONTROL",
        Means::Any,
        "each threshold that is set holds, and no other",
    ),
    value(
        "rejection-frontend-request-concurrency-limit",
        "DYN_REJECTION_FRONTEND_REQUEST_CONCURRENCY_LIMIT",
        NEVER,
        GATES,
    ),
    value(
        "rejection-frontend-runtime-task-limit",
        "DYN_REJECTION_FRONTEND_RUNTIME_TASK_LIMIT",
        NEVER,
        GATES,
    ),
    value(
        "rejection-frontend-request-plane-connection-limit",
        "DYN_REJECTION_FRONTEND_REQUEST_PLANE_CONNECTION_LIMIT",
        NEVER,
        GATES,
    ),
    value(
        "engine-request-limit",
        "DYN_ENGINE_REQUEST_LIMIT",
        Means::Ours("max-running-sequences", Reading::Same),
        "`--max-waiting-requests` is the queue behind it",
    ),
    // Models and discovery.
    same("namespace", "DYN_NAMESPACE", "namespace"),
    same("namespace-prefix", "DYN_NAMESPACE_PREFIX", "namespace-prefix"),
    value(
        "model-name",
        "DYN_MODEL_NAME",
        NEVER,
        "say it with the model, `stator serve NAME=PATH`; a frontend has its workers' names, and \
         `--alias` gives a model another one",
    ),
    value(
        "model-path",
        "DYN_MODEL_PATH",
        NEVER,
        "say the folder without a flag, `stator serve PATH`; a frontend needs no files of models",
    ),
    value(
        "kv-cache-block-size",
        "DYN_KV_CACHE_BLOCK_SIZE",
        NEVER,
        "each worker tells the size of its own blocks",
    ),
    value(
        "discovery-backend",
        "DYN_DISCOVERY_BACKEND",
        Means::Ours("discovery", Reading::Discovery),
        "`etcd` takes ETCD_ENDPOINTS, `file` DYN_FILE_KV and `kubernetes` POD_NAMESPACE; `mem` is \
         for one process: run `stator serve`",
    ),
    value(
        "store-kv",
        "DYN_STORE_KV",
        Means::Ours("discovery", Reading::Discovery),
        "the old name of `--discovery-backend`",
    ),
    value(
        "request-plane",
        "DYN_REQUEST_PLANE",
        Means::Ours("request-plane", Reading::Plane),
        "`tcp` is our `grpc`; `nats` is `nats`, with NATS_SERVER for `--nats`",
    ),
    value(
        "response-plane",
        "DYN_RESPONSE_PLANE",
        Means::Only(&["tcp"]),
        "answers come by the way that `--request-plane` says",
    ),
    value(
        "event-plane",
        "DYN_EVENT_PLANE",
        Means::Ours("event-plane", Reading::Plane),
        "`zmq` is our `grpc`; `nats` is `nats`, with NATS_SERVER for `--nats`",
    ),
    value(
        "endpoint",
        "DYN_ENDPOINT",
        NEVER,
        "workers have one endpoint, which needs no name; `--namespace` keeps fleets apart",
    ),
    // KServe over gRPC.
    switch(
        "kserve-grpc-server",
        "DYN_KSERVE_GRPC_SERVER",
        ON,
        "gRPC is always served, on `--grpc-port`; `--grpc-host 127.0.0.1` keeps it to this machine",
    ),
    value(
        "grpc-metrics-port",
        "DYN_GRPC_METRICS_PORT",
        Means::Ours("metrics-port", Reading::Same),
        "there are `/health` and `/live` beside `/metrics`",
    ),
    // Monitoring.
    value(
        "metrics-prefix",
        "DYN_METRICS_PREFIX",
        Means::Ours("metrics-prefix", Reading::Same),
        "by default `stator`",
    ),
    same("dump-config-to", "DYN_DUMP_CONFIG_TO", "dump-config-to"),
    // Tokenizer, formats and templates.
    value(
        "tokenizer",
        "DYN_TOKENIZER",
        Means::Only(&["default", "fastokens"]),
        "the tokenizer is the one of the model's files",
    ),
    switch(
        "trust-remote-code",
        "DYN_TRUST_REMOTE_CODE",
        OFF,
        "code of a model's files is never run",
    ),
    same("dyn-tool-call-parser", "DYN_TOOL_CALL_PARSER", "tool-call-parser"),
    same("dyn-reasoning-parser", "DYN_REASONING_PARSER", "reasoning-parser"),
    value(
        "custom-jinja-template",
        "DYN_CUSTOM_JINJA_TEMPLATE",
        NEVER,
        "put it as `chat_template.jinja` into the model's folder",
    ),
    value(
        "endpoint-types",
        "DYN_ENDPOINT_TYPES",
        Means::Only(&["chat,completions"]),
        "a model serves each kind of request that it can",
    ),
    switch(
        "exclude-tools-when-tool-choice-none",
        "DYN_EXCLUDE_TOOLS_WHEN_TOOL_CHOICE_NONE",
        ON,
        "tools stay out of the prompt when `tool_choice` is `none`",
    ),
    // Experimental.
    switch(
        "enable-anthropic-api",
        "DYN_ENABLE_ANTHROPIC_API",
        ON,
        "`/v1/messages` is always served; `--openai-path messages=PATH` moves it",
    ),
    switch(
        "strip-anthropic-preamble",
        "DYN_STRIP_ANTHROPIC_PREAMBLE",
        OFF,
        "the system prompt reaches the model as the client sent it",
    ),
    switch(
        "enable-streaming-tool-dispatch",
        "DYN_ENABLE_STREAMING_TOOL_DISPATCH",
        OFF,
        "tool calls are streamed as OpenAI's clients know them, without events of their own",
    ),
    switch(
        "enable-streaming-reasoning-dispatch",
        "DYN_ENABLE_STREAMING_REASONING_DISPATCH",
        OFF,
        "reasoning is streamed in `reasoning_content`, without events of its own",
    ),
    value(
        "dyn-chat-processor",
        "DYN_CHAT_PROCESSOR",
        Means::Only(&["dynamo"]),
        "templates and tokenizers are this server's own; `stator worker --upstream URL` calls a \
         server of vLLM or SGLang with theirs",
    ),
    switch(
        "dyn-debug-perf",
        "DYN_DEBUG_PERF",
        OFF,
        "say `--trace-level TIMESTAMPS` for where the time of a request goes",
    ),
    value(
        "dyn-preprocess-workers",
        "DYN_PREPROCESS_WORKERS",
        Means::Only(&["0"]),
        "prompts are prepared by threads of this process; `--threads` and `--runtime-threads`",
    ),
    switch(
        "interactive",
        "DYN_INTERACTIVE",
        OFF,
        "start the server, and run `stator chat` in another terminal",
    ),
    // Calls between the roles by TLS.
    same("tcp-tls-cert-path", "DYN_TCP_TLS_CERT_PATH", "worker-tls-cert"),
    same("tcp-tls-key-path", "DYN_TCP_TLS_KEY_PATH", "worker-tls-key"),
    same("tcp-tls-ca-cert-path", "DYN_TCP_TLS_CA_CERT_PATH", "worker-tls-ca"),
    same("tcp-tls-client-ca-cert-path", "DYN_TCP_TLS_CLIENT_CA_CERT_PATH", "worker-tls-client-ca"),
    value(
        "tcp-tls-client-cert-path",
        "DYN_TCP_TLS_CLIENT_CERT_PATH",
        NEVER,
        "on a frontend say `--worker-tls-cert`; a worker shows the one of its own `--worker-tls-cert`",
    ),
    value(
        "tcp-tls-client-key-path",
        "DYN_TCP_TLS_CLIENT_KEY_PATH",
        NEVER,
        "on a frontend say `--worker-tls-key`; a worker shows the one of its own `--worker-tls-key`",
    ),
    switch("tcp-tls-insecure", "DYN_TCP_TLS_INSECURE", OFF, "certificates are always verified"),
    value(
        "tcp-tls-server-name",
        "DYN_TCP_TLS_SERVER_NAME",
        NEVER,
        "a certificate is held against the worker's address; `--advertise NAME:PORT` has a name in it",
    ),
    value(
        "tcp-tls-handshake-timeout",
        "DYN_TCP_TLS_HANDSHAKE_TIMEOUT_SECS",
        NEVER,
        "the time of a handshake is not a setting",
    ),
];

/// Those of the router.
pub(super) const ROUTER: &[Name] = &[
    value(
        "router-mode",
        "DYN_ROUTER_MODE",
        Means::Ours(
            "router-mode",
            Reading::Choice(&[
                ("round-robin", Some("round-robin")),
                ("least-loaded", Some("least-loaded")),
                ("random", Some("random")),
                ("power-of-two", Some("power-of-two")),
                ("kv", Some("kv")),
            ]),
        ),
        "the modes here are `least-loaded`, the default, `round-robin`, `random`, `power-of-two` and `kv`",
    ),
    switch(
        "load-aware",
        "DYN_ROUTER_LOAD_AWARE",
        Means::Ours("load-aware", Reading::On),
        "the router weighs load alone then, whatever `--router-mode` says",
    ),
    same(
        "router-kv-overlap-score-credit",
        "DYN_ROUTER_KV_OVERLAP_SCORE_CREDIT",
        "router-kv-overlap-score-credit",
    ),
    value(
        "router-kv-overlap-score-weight",
        "DYN_ROUTER_KV_OVERLAP_SCORE_WEIGHT",
        NEVER,
        "say `--router-prefill-load-scale`, by which Dynamo replaced it too",
    ),
    same("router-prefill-load-scale", "DYN_ROUTER_PREFILL_LOAD_SCALE", "router-prefill-load-scale"),
    same(
        "router-decode-active-request-weight",
        "DYN_ROUTER_DECODE_ACTIVE_REQUEST_WEIGHT",
        "router-decode-active-request-weight",
    ),
    same("router-temperature", "DYN_ROUTER_TEMPERATURE", "router-temperature"),
    switch(
        "router-kv-events",
        "DYN_ROUTER_USE_KV_EVENTS",
        Means::Ours("no-router-kv-events", Reading::Off),
        "off is `--no-router-kv-events`",
    ),
    truth(
        "",
        "DYN_USE_KV_EVENTS",
        Means::Ours("no-router-kv-events", Reading::Off),
        "off is `--no-router-kv-events`",
    ),
    value(
        "router-ttl-secs",
        "DYN_ROUTER_TTL_SECS",
        Means::Ours("router-ttl-secs", Reading::Times(1)),
        "whole seconds",
    ),
    switch("router-replica-sync", "DYN_ROUTER_REPLICA_SYNC", OFF, NONE_SUCH),
    value(
        "router-snapshot-threshold",
        "DYN_ROUTER_SNAPSHOT_THRESHOLD",
        Means::Any,
        "there are no snapshots: a worker tells what its cache holds when events were missed",
    ),
    switch(
        "router-reset-states",
        "DYN_ROUTER_RESET_STATES",
        Means::Any,
        "a router keeps nothing over its end; workers tell what their caches hold",
    ),
    switch("router-track-active-blocks", "DYN_ROUTER_TRACK_ACTIVE_BLOCKS", ON, NONE_SUCH),
    switch("router-assume-kv-reuse", "DYN_ROUTER_ASSUME_KV_REUSE", ON, NONE_SUCH),
    switch("router-track-output-blocks", "DYN_ROUTER_TRACK_OUTPUT_BLOCKS", OFF, NONE_SUCH),
    switch("router-track-prefill-tokens", "DYN_ROUTER_TRACK_PREFILL_TOKENS", ON, NONE_SUCH),
    value(
        "router-prefill-load-model",
        "DYN_ROUTER_PREFILL_LOAD_MODEL",
        Means::Only(&["none"]),
        NO_AIC,
    ),
    value(
        "router-event-threads",
        "DYN_ROUTER_EVENT_THREADS",
        Means::Any,
        "events are read by `--runtime-threads`",
    ),
    value(
        "router-queue-threshold",
        "DYN_ROUTER_QUEUE_THRESHOLD",
        NEVER,
        "requests queue at their worker; `--busy-waiting-requests` bounds that",
    ),
    value("router-queue-policy", "DYN_ROUTER_QUEUE_POLICY", Means::Only(&["fcfs"]), NONE_SUCH),
    value("router-policy-config", "DYN_ROUTER_POLICY_CONFIG", NEVER, NONE_SUCH),
    switch("router-durable-kv-events", "DYN_ROUTER_DURABLE_KV_EVENTS", OFF, NONE_SUCH),
    value(
        "router-min-initial-workers",
        "DYN_ROUTER_MIN_INITIAL_WORKERS",
        Means::Only(&["0"]),
        "a frontend serves what is there; `--worker-wait-ms` lets requests wait for a first worker",
    ),
    switch("serve-indexer", "DYN_SERVE_INDEXER", OFF, NONE_SUCH),
    switch(
        "decode-fallback",
        "DYN_DECODE_FALLBACK",
        ON,
        "a decode worker computes a prompt itself when there is no prefill worker",
    ),
    switch(
        "enforce-disagg",
        "DYN_ENFORCE_DISAGG",
        OFF,
        "a decode worker computes a prompt itself when there is no prefill worker",
    ),
    value("aic-backend", "DYN_AIC_BACKEND", NEVER, NO_AIC),
    value("aic-system", "DYN_AIC_SYSTEM", NEVER, NO_AIC),
    value("aic-model-path", "DYN_AIC_MODEL_PATH", NEVER, NO_AIC),
    value("aic-backend-version", "DYN_AIC_BACKEND_VERSION", NEVER, NO_AIC),
    value("aic-tp-size", "DYN_AIC_TP_SIZE", NEVER, NO_AIC),
    value("aic-moe-tp-size", "DYN_AIC_MOE_TP_SIZE", NEVER, NO_AIC),
    value("aic-moe-ep-size", "DYN_AIC_MOE_EP_SIZE", NEVER, NO_AIC),
    value("aic-attention-dp-size", "DYN_AIC_ATTENTION_DP_SIZE", NEVER, NO_AIC),
];
