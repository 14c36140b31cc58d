//! Groups of calls that need a header with a secret (Triton's restricted protocols).

use http::HeaderMap;

use crate::support::invalid::Invalid;

/// The groups, by Triton's names.
const GROUPS: [&str; 9] = [
    "health",
    "metadata",
    "inference",
    "shared-memory",
    "model-config",
    "model-repository",
    "statistics",
    "trace",
    "logging",
];

/// Which groups are restricted, each by which header.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Restrictions(Vec<Restriction>);

#[derive(Clone, PartialEq, Eq)]
struct Restriction {
    group: &'static str,
    header: String,
    secret: String,
}

/// The secrets are nobody's to see.
impl std::fmt::Debug for Restrictions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|one| (one.group, &one.header))).finish()
    }
}

impl Restrictions {
    /// Reads rules of the form `GROUP[,GROUP]...:KEY=VALUE`; the header is `prefix` and the key.
    ///
    /// Errors: a rule of another form, an unknown group, a group with two rules.
    pub(crate) fn parse(flag: &str, rules: &[String], prefix: &str) -> Result<Self, Invalid> {
        let mut all = Vec::new();
        for rule in rules {
            let invalid = |why: &str| Invalid(format!("{flag}: {why}"));
            let form = || invalid("expected GROUP[,GROUP]...:KEY=VALUE");
            let (groups, pair) = rule.split_once(':').ok_or_else(form)?;
            let (key, secret) = pair.split_once('=').ok_or_else(form)?;
            let header = format!("{prefix}{}", key.to_ascii_lowercase());
            if key.is_empty() || http::HeaderName::try_from(&header).is_err() {
                return Err(invalid(&format!("`{key}` cannot be part of a header's name")));
            }
            for name in groups.split(',') {
                let known = GROUPS.iter().find(|group| **group == name);
                let group = *known.ok_or_else(|| {
                    invalid(&format!("`{name}` is no group; there are {}", GROUPS.join(", ")))
                })?;
                if all.iter().any(|one: &Restriction| one.group == group) {
                    return Err(invalid(&format!("`{name}` stands in two rules")));
                }
                let (header, secret) = (header.clone(), secret.to_owned());
                all.push(Restriction { group, header, secret });
            }
        }
        Ok(Self(all))
    }

    /// Returns the header that a call of a group lacks; none if it may pass.
    pub(crate) fn lacking(&self, group: &str, headers: &HeaderMap) -> Option<&str> {
        let rule = self.0.iter().find(|rule| rule.group == group)?;
        let given = headers.get(&rule.header).map(http::HeaderValue::as_bytes);
        let is_right = given.is_some_and(|given| is_same(given, rule.secret.as_bytes()));
        (!is_right).then_some(&rule.header)
    }
}

/// Compares in a time that does not tell where the difference is.
fn is_same(given: &[u8], secret: &[u8]) -> bool {
    given.len() == secret.len()
        && given.iter().zip(secret).fold(0, |differences, (a, b)| differences | (a ^ b)) == 0
}

/// Returns the group of a gRPC method's path; none for what cannot be restricted.
pub(crate) fn group_of_rpc(path: &str) -> Option<&'static str> {
    let method = match path.strip_prefix("/inference.GRPCInferenceService/") {
        Some(method) => method,
        None if path.starts_with("/grpc.health.v1.Health/") => return Some("health"),
        None => return None,
    };
    match method {
        "ServerLive" | "ServerReady" | "ModelReady" => Some("health"),
        "ServerMetadata" | "ModelMetadata" => Some("metadata"),
        "ModelInfer" | "ModelStreamInfer" => Some("inference"),
        "ModelConfig" => Some("model-config"),
        "ModelStatistics" => Some("statistics"),
        "TraceSetting" => Some("trace"),
        "LogSettings" => Some("logging"),
        _ if method.starts_with("Repository") => Some("model-repository"),
        _ if method.contains("SharedMemory") => Some("shared-memory"),
        _ => None,
    }
}

/// Returns the group of an HTTP route; none for what cannot be restricted.
pub(crate) fn group_of_route(path: &str) -> Option<&'static str> {
    let path = path.strip_prefix("/v2")?;
    let last = path.rsplit('/').next().unwrap_or_default();
    match last {
        _ if path.starts_with("/repository/") => Some("model-repository"),
        _ if path.starts_with("/systemsharedmemory") => Some("shared-memory"),
        _ if path.starts_with("/cudasharedmemory") => Some("shared-memory"),
        _ if path.starts_with("/logging") => Some("logging"),
        _ if path.ends_with("/trace/setting") => Some("trace"),
        "infer" | "generate" | "generate_stream" => Some("inference"),
        "live" | "ready" => Some("health"),
        "config" => Some("model-config"),
        "stats" => Some("statistics"),
        _ => Some("metadata"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(texts: &[&str]) -> Result<Restrictions, Invalid> {
        let texts: Vec<String> = texts.iter().map(|&text| text.to_owned()).collect();
        Restrictions::parse("--rule", &texts, "triton-grpc-protocol-")
    }

    #[test]
    fn a_group_needs_its_header() {
        let rules = rules(&["model-repository,logging:Admin=s3cret", "health:probe=x"]).unwrap();
        let mut headers = HeaderMap::new();
        let name = "triton-grpc-protocol-admin";
        assert_eq!(rules.lacking("inference", &headers), None);
        assert_eq!(rules.lacking("logging", &headers), Some(name));
        headers.insert(name, "s3creT".parse().unwrap());
        assert_eq!(rules.lacking("logging", &headers), Some(name));
        headers.insert(name, "s3cret".parse().unwrap());
        assert_eq!(rules.lacking("logging", &headers), None);
        assert!(!format!("{rules:?}").contains("s3cret"));
    }

    #[test]
    fn a_rule_says_what_is_wrong_with_it() {
        let table = [
            ("logging", "expected GROUP"),
            ("logging:admin", "expected GROUP"),
            ("loging:admin=x", "`loging` is no group"),
            ("logging:a b=x", "cannot be part of a header"),
            ("logging,logging:a=x", "stands in two rules"),
        ];
        for (text, expected) in table {
            let error = rules(&[text]).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn every_route_has_a_group() {
        let table = [
            ("/v2/models/m/infer", Some("inference")),
            ("/v2/models/m/versions/1/generate_stream", Some("inference")),
            ("/v2/models/m/trace/setting", Some("trace")),
            ("/v2/repository/models/m/load", Some("model-repository")),
            ("/v2/systemsharedmemory/region/r/register", Some("shared-memory")),
            ("/v2/models/m/ready", Some("health")),
            ("/v2/models/stats", Some("statistics")),
            ("/v2", Some("metadata")),
            ("/metrics", None),
        ];
        for (path, group) in table {
            assert_eq!(group_of_route(path), group, "{path}");
        }
    }

    #[test]
    fn every_method_has_a_group() {
        let table = [
            ("/inference.GRPCInferenceService/ModelStreamInfer", Some("inference")),
            ("/inference.GRPCInferenceService/RepositoryModelLoad", Some("model-repository")),
            ("/inference.GRPCInferenceService/CudaSharedMemoryStatus", Some("shared-memory")),
            ("/grpc.health.v1.Health/Watch", Some("health")),
            ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", None),
        ];
        for (path, group) in table {
            assert_eq!(group_of_rpc(path), group, "{path}");
        }
    }
}
