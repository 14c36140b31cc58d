//! Where the routes of the OpenAI API are: each can be moved.

use crate::support::invalid::Invalid;

/// The routes that can be moved, by name, with their usual paths.
pub(crate) const PATHS: [(&str, &str); 22] = [
    ("chat", "/v1/chat/completions"),
    ("completions", "/v1/completions"),
    ("embeddings", "/v1/embeddings"),
    ("responses", "/v1/responses"),
    ("messages", "/v1/messages"),
    ("models", "/v1/models"),
    ("rerank", "/v1/rerank"),
    ("tokenize", "/v1/tokenize"),
    ("detokenize", "/v1/detokenize"),
    ("tokenizer_info", "/v1/tokenizer_info"),
    ("images", "/v1/images/generations"),
    ("videos", "/v1/videos/generations"),
    ("busy_threshold", "/busy_threshold"),
    ("health", "/health"),
    ("live", "/live"),
    ("metrics", "/metrics"),
    ("openapi", "/openapi.json"),
    ("docs", "/docs"),
    ("page", "/"),
    ("load_lora_adapter", "/v1/load_lora_adapter"),
    ("unload_lora_adapter", "/v1/unload_lora_adapter"),
    ("videos_stream", "/v1/videos/generations/stream"),
];

/// Routes that are found without `/v1` too, as vLLM has them, while nothing else is moved there.
pub(crate) const AT_ROOT: [&str; 3] = ["tokenize", "detokenize", "tokenizer_info"];

/// Where the routes are.
#[derive(Clone, Debug)]
pub(crate) struct Paths(Vec<String>);

impl Default for Paths {
    fn default() -> Self {
        Self(PATHS.map(|(_, path)| path.to_owned()).to_vec())
    }
}

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
            let has_children = matches!(name, "models" | "responses" | "messages");
            let is_root = path == "/";
            if !is_path
                || path.starts_with("/v2/")
                || path == "/v2"
                || is_root && has_children
                || !is_root && path.ends_with('/')
            {
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

    /// Returns the usual path of a path, whose route may have been moved.
    pub(crate) fn usual(&self, path: &str) -> String {
        let below = |moved: &str| {
            let rest = path.strip_prefix(moved)?;
            (rest.is_empty() || moved != "/" && rest.starts_with('/')).then_some(rest)
        };
        let routes = self.0.iter().zip(PATHS);
        let found =
            routes.filter_map(|(moved, (_, usual))| Some((moved.len(), usual, below(moved)?)));
        match found.max_by_key(|(length, ..)| *length) {
            Some((_, usual, rest)) => format!("{usual}{rest}"),
            _ if AT_ROOT.iter().any(|name| path.strip_prefix('/') == Some(name)) => {
                format!("/v1{path}")
            }
            _ => path.to_owned(),
        }
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
        assert_eq!(paths.usual("/chat"), "/v1/chat/completions");
        assert_eq!(paths.usual("/v1/chat/completions"), "/v1/completions");
        assert_eq!(paths.usual("/v1/models/a/b"), "/v1/models/a/b");
        assert_eq!(paths.usual("/chatter"), "/chatter");
        assert_eq!(paths.usual("/tokenizer_info"), "/v1/tokenizer_info");
        assert_eq!((paths.usual("/"), paths.usual("/v2/x")), ("/".into(), "/v2/x".into()));
        let table = [
            ("chat", "expected NAME=PATH"),
            ("talk=/x", "`talk` is no route"),
            ("chat=x", "`x` is no path"),
            ("chat=/v2/x", "`/v2/x` is no path"),
            ("chat=/a/{b}", "is no path"),
            ("chat=/a/", "is no path"),
            ("models=/", "is no path"),
            ("chat=/v1/messages/count_tokens", "two routes are at"),
            ("chat=/v1/models", "two routes are at `/v1/models`"),
        ];
        for (given, expected) in table {
            let error = parse(&[given]).unwrap_err();
            assert!(error.contains(expected), "{given}: {error}");
        }
    }
}
