//! The tools that a response may use: functions, those of namespaces among them.
//!
//! Agents offer tools that a server runs itself, which are left out here; what remains is a flat
//! list of functions. A call of a function that came in a namespace is told with it again.

use std::collections::{HashMap, HashSet};

use serde_json::Value as Json;

use super::super::Body;

/// What became of the tools of a body.
#[derive(Debug, Default)]
pub(super) struct Offered {
    /// The namespaces and names of functions, by the names that the model knows.
    spaces: HashMap<String, (String, String)>,
    /// The kinds of tools that were left out, each once.
    left_out: Vec<String>,
}

impl Offered {
    /// Brings the tools of a body to functions. What is malformed stays, to be refused by name.
    pub(super) fn take(body: &mut Body) -> Self {
        let mut offered = Self::default();
        let Some(Json::Array(tools)) = body.get_mut("tools") else { return offered };
        let all = std::mem::take(tools);
        let is_function = |tool: &Json| tool["type"] == "function";
        let own = |tool: &Json| tool["name"].as_str().map(str::to_owned);
        let mut taken: HashSet<String> =
            all.iter().filter(|tool| is_function(tool)).filter_map(own).collect();
        for mut tool in all {
            match tool["type"].as_str() {
                Some("namespace") => {
                    let space = tool["name"].as_str().unwrap_or_default().to_owned();
                    let Json::Array(inner) = tool["tools"].take() else { continue };
                    for function in inner {
                        tools.extend(offered.function(function, &space, &mut taken));
                    }
                }
                Some("function") | None => tools.push(tool),
                Some(kind) => offered.leave_out(kind),
            }
        }
        if tools.is_empty() && !offered.left_out.is_empty() {
            body.remove("tools");
            let is_free = |choice: &Json| choice == "auto" || choice == "none";
            if body.get("tool_choice").is_some_and(is_free) {
                body.remove("tool_choice");
            }
        }
        offered
    }

    /// Returns a tool of a namespace, if it is a function.
    fn function(
        &mut self,
        mut function: Json,
        space: &str,
        taken: &mut HashSet<String>,
    ) -> Option<Json> {
        if function["type"] != "function" {
            self.leave_out(function["type"].as_str().unwrap_or("unknown"));
            return None;
        }
        if let Some(name) = function["name"].as_str().map(str::to_owned) {
            let shown = match taken.contains(&name) {
                true => format!("{space}__{name}"),
                false => name.clone(),
            };
            taken.insert(shown.clone());
            function["name"] = shown.as_str().into();
            self.spaces.insert(shown, (space.to_owned(), name));
        }
        Some(function)
    }

    fn leave_out(&mut self, kind: &str) {
        if !self.left_out.iter().any(|known| known == kind) {
            self.left_out.push(kind.to_owned());
        }
    }

    /// Returns the name that the model knows a function of a namespace by.
    pub(super) fn shown<'a>(&'a self, space: Option<&str>, name: &'a str) -> &'a str {
        let Some(space) = space else { return name };
        let is_it = |(_, (of, own)): &(&String, &(String, String))| of == space && own == name;
        self.spaces.iter().find(is_it).map_or(name, |(shown, _)| shown)
    }

    /// Returns the name of a call as its caller knows it, with the namespace if it has one.
    pub(super) fn own<'a>(&'a self, shown: &'a str) -> (Option<&'a str>, &'a str) {
        match self.spaces.get(shown) {
            Some((space, name)) => (Some(space), name),
            None => (None, shown),
        }
    }

    /// Returns what the client has to know about what was left out.
    pub(super) fn warning(&self) -> Option<String> {
        let kinds = self.left_out.join(", ");
        (!kinds.is_empty()).then(|| {
            format!("tools that the server would have to run are left out, of type: {kinds}")
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn body(tools: Json, choice: &str) -> Body {
        let body = json!({"tools": tools, "tool_choice": choice});
        body.as_object().cloned().unwrap_or_default()
    }

    #[test]
    fn functions_stay_and_namespaces_are_flat() {
        let f = |name: &str| json!({"type": "function", "name": name});
        let space = |name: &str, tools: Json| {
            json!({"type": "namespace", "name": name,
            "tools": tools})
        };
        let mut body = body(
            json!([f("run"), space("a", json!([f("send"), f("run")])), {"type": "web_search"},
                space("b", json!([f("send"), {"type": "custom", "name": "x"}]))]),
            "auto",
        );
        let offered = Offered::take(&mut body);
        let names: Vec<&str> =
            body["tools"].as_array().unwrap().iter().filter_map(|t| t["name"].as_str()).collect();
        assert_eq!(names, ["run", "send", "a__run", "b__send"]);
        assert_eq!(offered.own("b__send"), (Some("b"), "send"));
        assert_eq!(offered.own("run"), (None, "run"));
        assert_eq!(offered.shown(Some("a"), "run"), "a__run");
        assert_eq!(offered.shown(None, "run"), "run");
        let warning = offered.warning().unwrap();
        assert!(warning.ends_with("of type: web_search, custom"), "{warning}");
    }

    #[test]
    fn without_any_function_there_are_no_tools() {
        let mut body = body(json!([{"type": "web_search"}]), "auto");
        assert!(Offered::take(&mut body).warning().is_some());
        assert!(body.is_empty(), "{body:?}");
        let mut none = Body::new();
        assert_eq!(Offered::take(&mut none).warning(), None);
    }
}
