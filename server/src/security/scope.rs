//! What a key may be used for, and what each call and route needs.
//!
//! The groups are those of restricted protocols. What belongs to none needs `metadata`, so that
//! nothing is open by omission; only liveness, readiness and the health service are.

use serde::Deserialize;

use crate::security::restriction;

/// A kind of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Scope {
    /// Running models.
    Inference,
    /// Reading what models there are, their configuration and statistics.
    Metadata,
    /// Loading and unloading, settings of traces and logs, shared memory.
    Admin,
    /// Reading the metrics.
    Metrics,
    /// All of these.
    #[serde(rename = "*")]
    All,
}

impl Scope {
    /// Returns the name in a file of keys.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Inference => "inference",
            Self::Metadata => "metadata",
            Self::Admin => "admin",
            Self::Metrics => "metrics",
            Self::All => "*",
        }
    }
}

/// What a call needs of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// No key.
    Nothing,
    /// A key with this scope.
    One(Scope),
    /// A key with one of these scopes.
    Either(Scope, Scope),
}

impl Need {
    /// Returns whether these scopes are enough.
    pub(super) fn is_met(self, scopes: &[Scope]) -> bool {
        let has = |scope| scopes.contains(&scope) || scopes.contains(&Scope::All);
        match self {
            Self::Nothing => true,
            Self::One(scope) => has(scope),
            Self::Either(one, other) => has(one) || has(other),
        }
    }

    /// Returns the scopes as a message names them.
    pub(super) fn spelled(self) -> String {
        match self {
            Self::Nothing => "none".to_owned(),
            Self::One(scope) => format!("`{}`", scope.name()),
            Self::Either(one, other) => format!("`{}` or `{}`", one.name(), other.name()),
        }
    }
}

/// What is needed to hear of models: every client of one lists them first.
pub(crate) const OF_MODELS: Need = Need::Either(Scope::Inference, Scope::Metadata);

/// Returns what a gRPC call needs, by its path.
pub(crate) fn of_rpc(path: &str) -> Need {
    match path {
        "/inference.GRPCInferenceService/ServerLive"
        | "/inference.GRPCInferenceService/ServerReady" => Need::Nothing,
        "/inference.GRPCInferenceService/RepositoryIndex" => Need::One(Scope::Metadata),
        "/grpc.health.v1.Health/Check" | "/grpc.health.v1.Health/Watch" => Need::Nothing,
        _ => Need::One(of_group(restriction::group_of_rpc(path))),
    }
}

/// Returns what an HTTP route needs, by its path.
pub(crate) fn of_route(path: &str) -> Need {
    match path {
        "/live" | "/health" | "/v2/health/live" | "/v2/health/ready" => Need::Nothing,
        "/v2/repository/index" => Need::One(Scope::Metadata),
        "/busy_threshold" | "/v1/load_lora_adapter" | "/v1/unload_lora_adapter" => {
            Need::One(Scope::Admin)
        }
        "/metrics" => Need::One(Scope::Metrics),
        "/v1/models" => OF_MODELS,
        _ if path.starts_with("/v1/models/") => OF_MODELS,
        _ if path.starts_with("/v1/") => Need::One(Scope::Inference),
        _ => Need::One(of_group(restriction::group_of_route(path))),
    }
}

fn of_group(group: Option<&str>) -> Scope {
    match group {
        Some("inference") => Scope::Inference,
        Some("model-repository" | "shared-memory" | "trace" | "logging") => Scope::Admin,
        _ => Scope::Metadata,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_needs_what_it_does() {
        let table = [
            ("/v2/health/live", Need::Nothing),
            ("/health", Need::Nothing),
            ("/v2/models/ready", Need::One(Scope::Metadata)),
            ("/v2/models/m/ready", Need::One(Scope::Metadata)),
            ("/v2/models/health/infer", Need::One(Scope::Inference)),
            ("/v2/models/m/versions/1/generate_stream", Need::One(Scope::Inference)),
            ("/v2/repository/models/m/load", Need::One(Scope::Admin)),
            ("/v2/repository/index", Need::One(Scope::Metadata)),
            ("/v1/load_lora_adapter", Need::One(Scope::Admin)),
            ("/v1/unload_lora_adapter", Need::One(Scope::Admin)),
            ("/v2/systemsharedmemory/region/r/register", Need::One(Scope::Admin)),
            ("/v2/models/m/trace/setting", Need::One(Scope::Admin)),
            ("/v2/logging", Need::One(Scope::Admin)),
            ("/v1/chat/completions", Need::One(Scope::Inference)),
            ("/v1/models/a/b", Need::Either(Scope::Inference, Scope::Metadata)),
            ("/metrics", Need::One(Scope::Metrics)),
            ("/busy_threshold", Need::One(Scope::Admin)),
            ("/anything", Need::One(Scope::Metadata)),
        ];
        for (path, need) in table {
            assert_eq!(of_route(path), need, "{path}");
        }
    }

    #[test]
    fn every_call_needs_what_it_does() {
        let kserve = |method: &str| format!("/inference.GRPCInferenceService/{method}");
        let table = [
            (kserve("ServerLive"), Need::Nothing),
            (kserve("ServerReady"), Need::Nothing),
            (kserve("ModelReady"), Need::One(Scope::Metadata)),
            (kserve("ModelInfer"), Need::One(Scope::Inference)),
            (kserve("ModelStreamInfer"), Need::One(Scope::Inference)),
            (kserve("RepositoryModelLoad"), Need::One(Scope::Admin)),
            (kserve("RepositoryIndex"), Need::One(Scope::Metadata)),
            (kserve("SystemSharedMemoryRegister"), Need::One(Scope::Admin)),
            (kserve("TraceSetting"), Need::One(Scope::Admin)),
            (kserve("LogSettings"), Need::One(Scope::Admin)),
            (kserve("NewMethod"), Need::One(Scope::Metadata)),
            ("/grpc.health.v1.Health/Watch".to_owned(), Need::Nothing),
            ("/grpc.reflection.v1.ServerReflection/S".to_owned(), Need::One(Scope::Metadata)),
        ];
        for (path, need) in table {
            assert_eq!(of_rpc(&path), need, "{path}");
        }
    }

    #[test]
    fn all_scopes_meet_every_need() {
        let either = Need::Either(Scope::Inference, Scope::Metadata);
        assert!(either.is_met(&[Scope::Metadata]) && either.is_met(&[Scope::All]));
        assert!(!either.is_met(&[Scope::Admin]) && !Need::One(Scope::Admin).is_met(&[]));
        assert!(Need::Nothing.is_met(&[]));
    }
}
