//! The flags of Triton's server.

use super::{Means, NEVER, Name, OFF, ON, Reading, Takes, same, truth, value};

/// Makes a row of a flag that takes a value.
const fn setting(flag: &'static str, means: Means, says: &'static str) -> Name {
    value(flag, "", means, says)
}

/// Makes a row of a flag that takes `true` or `false`.
const fn flag(flag: &'static str, means: Means, says: &'static str) -> Name {
    truth(flag, "", means, says)
}

/// Makes a row of a flag with the same name and values here.
const fn ours(flag: &'static str) -> Name {
    same(flag, "", flag)
}

const GPU_MEMORY: &str = "there is no pool of this memory";
const NO_DOOR: &str = "there is no such door; the APIs are on `--http-port` and `--grpc-port`";
const SHARED: &str =
    "a port belongs to one server; `stator frontend` spreads requests over workers";
const PINGS: &str =
    "clients may ping as they like; `--grpc-keepalive-interval-ms` is the server's own";
const TRACES: &str = "say `--trace-level`, `--trace-rate`, `--trace-count`, `--trace-log-frequency`, \
    `--trace-mode`, `--trace-file` and `--trace-otlp-endpoint`";
const CACHE: &str = "whole responses are not kept; the KV cache finds prefixes of prompts again";
const BACKENDS: &str = "models are computed by this server itself or by workers in Python";
const LIMITS: &str = "the engine's limits are `--max-running-sequences` and \
    `--max-waiting-requests`, and a model's are in its `config.pbtxt`";
const LEVELS: &str = "say `--log-level error`, `warn`, `info`, `debug` or `trace`";

/// The server, its models, HTTP and gRPC.
pub(super) const NAMES: &[Name] = &[
    setting(
        "id",
        Means::Ours("server-name", Reading::Same),
        "clients look for `triton`, the default",
    ),
    setting(
        "exit-timeout-secs",
        Means::Ours("shutdown-grace-ms", Reading::Times(1000)),
        "seconds there",
    ),
    setting("model-store", Means::Ours("model-repository", Reading::Same), ""),
    ours("model-repository"),
    ours("model-control-mode"),
    ours("repository-poll-secs"),
    ours("load-model"),
    flag(
        "exit-on-error",
        Means::Ours("exit-on-error", Reading::On),
        "Triton's default is `true`, Stator's is `false`: a model that cannot be loaded is UNAVAILABLE, and \
         the others are served",
    ),
    flag(
        "strict-readiness",
        Means::Any,
        "it changes nothing: the server is ready when none of its models is loading and those that are loaded take \
         requests, also where one could not be loaded; each model tells its own readiness",
    ),
    Name {
        flag: "disable-auto-complete-config",
        variable: "",
        takes: Takes::Nothing,
        means: Means::Any,
        says: "a `config.pbtxt` is taken as it is; what it leaves out is the protocol's default",
    },
    flag(
        "strict-model-config",
        Means::Any,
        "a `config.pbtxt` is taken as it is; what it leaves out is the protocol's default",
    ),
    setting("model-load-thread-count", Means::Any, "models are loaded one after the other"),
    setting(
        "model-load-retry-count",
        Means::Only(&["0"]),
        "a model is loaded once; a client or a change of its files loads it again",
    ),
    flag("model-namespacing", OFF, "the names of models are one for all repositories"),
    flag("allow-http", Means::Ours("no-http", Reading::Off), "`false` is `--no-http`"),
    setting("http-address", Means::Ours("http-host", Reading::Same), ""),
    ours("http-port"),
    ours("http-header-forward-pattern"),
    ours("http-restricted-api"),
    setting("http-max-input-size", Means::Ours("http-max-input-bytes", Reading::Same), ""),
    setting("http-thread-count", Means::Ours("runtime-threads", Reading::Same), "gRPC's too"),
    flag("reuse-http-port", OFF, SHARED),
    flag(
        "allow-grpc",
        ON,
        "gRPC is always served; `--grpc-host 127.0.0.1` keeps it to this machine",
    ),
    setting("grpc-address", Means::Ours("grpc-host", Reading::Same), ""),
    ours("grpc-port"),
    ours("grpc-header-forward-pattern"),
    ours("grpc-restricted-protocol"),
    flag("reuse-grpc-port", OFF, SHARED),
    setting(
        "grpc-infer-allocation-pool-size",
        Means::Any,
        "requests have no pool; `--max-buffered-mib` bounds their memory",
    ),
    setting(
        "grpc-max-response-pool-size",
        Means::Any,
        "responses have no pool; a stream waits for a client that does not read",
    ),
    flag(
        "grpc-use-ssl",
        OFF,
        "leave it out: TLS is served with `--tls-cert` and `--tls-key`, which are `--grpc-server-cert` and `--grpc-server-key`",
    ),
    flag(
        "grpc-use-ssl-mutual",
        OFF,
        "leave it out: clients have to show certificates with `--tls-client-ca`, which is `--grpc-root-cert`",
    ),
    setting(
        "grpc-server-cert",
        Means::Ours("tls-cert", Reading::Same),
        "HTTP and metrics serve TLS too, but for `--tls-listeners grpc`",
    ),
    setting("grpc-server-key", Means::Ours("tls-key", Reading::Same), ""),
    setting(
        "grpc-root-cert",
        Means::Ours("tls-client-ca", Reading::Same),
        "every client has to show a certificate then",
    ),
    setting(
        "grpc-infer-response-compression-level",
        Means::Ours(
            "grpc-response-compression",
            Reading::Choice(&[
                ("none", None),
                ("low", Some("gzip")),
                ("medium", Some("gzip")),
                ("high", Some("gzip")),
            ]),
        ),
        "all levels but `none` are `gzip`",
    ),
    setting("grpc-keepalive-time", Means::Ours("grpc-keepalive-interval-ms", Reading::Same), ""),
    setting("grpc-keepalive-timeout", Means::Ours("grpc-keepalive-timeout-ms", Reading::Same), ""),
    flag("grpc-keepalive-permit-without-calls", Means::Any, PINGS),
    setting("grpc-http2-max-pings-without-data", Means::Any, PINGS),
    setting("grpc-http2-min-recv-ping-interval-without-data", Means::Any, PINGS),
    setting("grpc-http2-max-ping-strikes", Means::Any, PINGS),
    setting(
        "grpc-max-connection-age",
        Means::Ours("grpc-max-connection-age-ms", Reading::Same),
        "",
    ),
    setting(
        "grpc-max-connection-age-grace",
        Means::Any,
        "calls of a connection that has to end are finished, however long they take",
    ),
];

/// Logs, metrics, traces, backends, memory.
pub(super) const REST: &[Name] = &[
    setting(
        "log-verbose",
        Means::Ours(
            "log-level",
            Reading::Choice(&[
                ("0", None),
                ("false", None),
                ("1", Some("debug")),
                ("true", Some("debug")),
                ("2", Some("trace")),
            ]),
        ),
        "1 is `debug` and 2 is `trace`; clients may change it by LogSettings",
    ),
    flag("log-info", ON, LEVELS),
    flag("log-warning", ON, LEVELS),
    flag("log-error", ON, LEVELS),
    setting(
        "log-format",
        Means::Ours(
            "log-format",
            Reading::Choice(&[("default", Some("text")), ("ISO8601", Some("text"))]),
        ),
        "both of Triton's are `text`, whose times are ISO 8601; there is `json` too",
    ),
    setting("log-file", NEVER, "the log is standard error; `2> FILE` has it in a file"),
    flag("allow-metrics", Means::Ours("no-metrics", Reading::Off), "`false` is `--no-metrics`"),
    flag("allow-gpu-metrics", Means::Any, "metrics of a GPU are there where the server uses one"),
    flag("allow-cpu-metrics", Means::Any, "metrics of the machine are not there or cost nothing"),
    setting("metrics-address", Means::Ours("metrics-host", Reading::Same), ""),
    ours("metrics-port"),
    setting(
        "metrics-interval-ms",
        Means::Any,
        "metrics are of the moment at which they are asked for",
    ),
    setting("metrics-config", NEVER, "histograms and counters are always there"),
    setting("trace-config", NEVER, TRACES),
    ours("trace-file"),
    ours("trace-level"),
    ours("trace-rate"),
    ours("trace-count"),
    ours("trace-log-frequency"),
    setting("cache-config", NEVER, CACHE),
    setting("cache-directory", Means::Any, CACHE),
    setting("response-cache-byte-size", Means::Only(&["0"]), CACHE),
    setting("rate-limit", Means::Only(&["off"]), LIMITS),
    setting("rate-limit-resource", NEVER, LIMITS),
    setting("pinned-memory-pool-byte-size", Means::Any, GPU_MEMORY),
    setting("cuda-memory-pool-byte-size", Means::Any, GPU_MEMORY),
    setting("cuda-virtual-address-size", Means::Any, GPU_MEMORY),
    setting("min-supported-compute-capability", Means::Any, "models are computed on the CPU"),
    setting("buffer-manager-thread-count", Means::Any, "tensors are copied by `--runtime-threads`"),
    setting("host-policy", NEVER, "say `--threads N --pin-threads`, and run it under `numactl`"),
    setting("model-load-gpu-limit", Means::Any, "models are computed on the CPU"),
    setting("backend-directory", NEVER, BACKENDS),
    setting("backend-config", NEVER, BACKENDS),
    setting("repoagent-directory", NEVER, "folders of models are read as they are"),
    flag("allow-sagemaker", OFF, NO_DOOR),
    setting("sagemaker-port", NEVER, NO_DOOR),
    setting("sagemaker-safe-port-range", NEVER, NO_DOOR),
    setting("sagemaker-thread-count", NEVER, NO_DOOR),
    flag("allow-vertex-ai", OFF, NO_DOOR),
    setting("vertex-ai-port", NEVER, NO_DOOR),
    setting("vertex-ai-thread-count", NEVER, NO_DOOR),
    setting("vertex-ai-default-model", NEVER, NO_DOOR),
];
