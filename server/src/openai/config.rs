//! The settings of the OpenAI door.

use std::time::Duration;

use crate::config::Invalid;

/// The routes that can be moved, by name, with their usual paths.
pub(crate) const PATHS: [(&str, &str); 19] = [
    ("chat", "/v1/chat/completions"),
    ("completions", "/v1/completions"),
    ("embeddings", "/v1/embeddings"),
    ("responses", "/v1/responses"),
    ("messages", "/v1/messages"),
    ("models", "/v1/models"),
    ("rerank", "/v1/rerank"),
    ("tokenize", "/v1/tokenize"),
    ("detokenize", "/v1/detokenize"),
    ("images", "/v1/images/generations"),
    ("videos", "/v1/videos/generations"),
    ("busy_threshold", "/busy_threshold"),
    ("health", "/health"),
    ("live", "/live"),
    ("metrics", "/metrics"),
    ("openapi", "/openapi.json"),
    ("docs", "/docs"),
    ("page", "/"),
    ("videos_stream", "/v1/videos/generations/stream"),
];

/// The settings.
#[derive(Clone, Debug)]
pub struct OpenAiConfig {
    /// Where the routes are.
    pub(crate) paths: Paths,
    /// Silence on a stream after which a comment keeps it alive; none: never.
    pub keep_alive: Option<Duration>,
    /// The status of a refusal for overload: 503 or 529.
    pub overload_status: u16,
    /// Most responses that are kept.
    pub stored_responses: usize,
    /// Most bytes of them.
    pub stored_bytes: usize,
}

/// Where the routes are.
#[derive(Clone, Debug)]
pub(crate) struct Paths(Vec<String>);

impl Paths {
    /// Reads moves of the form `NAME=PATH`.
    ///
    /// Errors: an unknown name, what is no path, two routes at one path.
    pub(crate) fn parse(flag: &str, moves: &[String]) -> Result<Self, Invalid> {
        let mut paths = PATHS.map(|(_, path)| path.to_owned()).to_vec();
        for given in moves {
            let invalid = |why: String| Invalid(format!("{flag}: {why}"));
            let (name, path) = given
                .split_once('=')
                .ok_or_else(|| invalid(format!("expected NAME=PATH, got `{given}`")))?;
            let place = PATHS.iter().position(|(known, _)| *known == name).ok_or_else(|| {
                let names = PATHS.map(|(name, _)| name).join(", ");
                invalid(format!("`{name}` is no route; there are {names}"))
            })?;
            let is_path = path.starts_with('/')
                && path.bytes().all(|byte| byte.is_ascii_graphic() && !b"{}*?#%".contains(&byte));
            if !is_path || path.starts_with("/v2/") || path == "/v2" {
                return Err(invalid(format!("`{path}` is no path for a route")));
            }
            paths[place] = path.to_owned();
        }
        let paths = Self(paths);
        let count = format!("{}/count_tokens", paths.get("messages"));
        if paths.0.contains(&count) {
            return Err(Invalid(format!("{flag}: two routes are at `{count}`")));
        }
        for (index, path) in paths.0.iter().enumerate() {
            if paths.0[..index].contains(path) {
                return Err(Invalid(format!("{flag}: two routes are at `{path}`")));
            }
        }
        Ok(paths)
    }

    /// Returns the usual path of the route that a path is at or below; another path is its own.
    pub(crate) fn usual<'a>(&self, path: &'a str) -> &'a str {
        let is_there = |at: &str| {
            let below = path.strip_prefix(at).filter(|_| at != "/");
            path == at || below.is_some_and(|rest| rest.starts_with('/'))
        };
        let places = self.0.iter().enumerate().filter(|(_, at)| is_there(at));
        let nearest = places.max_by_key(|(_, at)| at.len());
        nearest.map_or(path, |(place, _)| PATHS[place].1)
    }

    /// Returns where a route is.
    pub(crate) fn get(&self, name: &str) -> &str {
        let place = PATHS.iter().position(|(known, _)| *known == name);
        place.map_or("/", |place| &self.0[place])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_move_to_paths_that_are_free() {
        let parse = |moves: &[&str]| {
            let moves: Vec<String> = moves.iter().map(|text| (*text).to_owned()).collect();
            Paths::parse("--openai-path", &moves).map_err(|error| error.to_string())
        };
        let paths = parse(&["chat=/chat", "completions=/v1/chat/completions"]).unwrap();
        assert_eq!(paths.get("chat"), "/chat");
        assert_eq!(paths.get("completions"), "/v1/chat/completions");
        assert_eq!(paths.get("models"), "/v1/models");
        let table = [
            ("chat", "expected NAME=PATH"),
            ("talk=/x", "`talk` is no route"),
            ("chat=x", "`x` is no path"),
            ("chat=/v2/x", "`/v2/x` is no path"),
            ("chat=/a/{b}", "is no path"),
            ("chat=/v1/messages/count_tokens", "two routes are at"),
            ("chat=/v1/models", "two routes are at `/v1/models`"),
        ];
        for (given, expected) in table {
            let error = parse(&[given]).unwrap_err();
            assert!(error.contains(expected), "{given}: {error}");
        }
    }

    #[test]
    fn what_a_path_is_for_does_not_change_with_its_place() {
        let moves = ["chat=/live", "live=/chat", "models=/m", "responses=/health/r"];
        let paths = Paths::parse("--openai-path", &moves.map(str::to_owned)).unwrap();
        let table = [
            ("/live", "/v1/chat/completions"),
            ("/chat", "/live"),
            ("/m", "/v1/models"),
            ("/m/a/b", "/v1/models"),
            ("/health", "/health"),
            ("/health/r/1/cancel", "/v1/responses"),
            ("/v1/messages/count_tokens", "/v1/messages"),
            ("/v1/models", "/v1/models"),
            ("/v2/models/m", "/v2/models/m"),
            ("/", "/"),
            ("/lively", "/lively"),
        ];
        for (path, expected) in table {
            assert_eq!(paths.usual(path), expected, "{path}");
        }
    }
}
