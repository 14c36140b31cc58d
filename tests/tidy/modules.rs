//! The floor plan of the modules of each crate.

use std::collections::BTreeMap;

use super::{files, read};

/// The modules of each crate by floors, the lowest first: a module imports only from floors below.
const MODULES: [(&str, &[&str]); 7] = [
    (
        "tensor",
        &[
            "datatype elements error",
            "parameters shape",
            "tensor",
            "classification config contents json wire",
            "metadata request",
        ],
    ),
    (
        "engine",
        &[
            "adapter error flood guided meter sequence tasks token usage",
            "block busy_poll context model sampling waiter",
            "engine event handoff",
            "embed generate infer testing",
            "text",
        ],
    ),
    (
        "openai-bridge",
        &[
            "controls parser profile stop upstream",
            "settings template tokenizer",
            "tools",
            "alternatives chat rules syntax",
            "constraint",
            "completion",
            "delta",
            "answer continuations",
            "bridge",
            "tensors texts",
            "api",
        ],
    ),
    (
        "cluster",
        &["card log_throttle tcp", "instance request vllm", "discovery nats", "events membership"],
    ),
    ("router", &["active overlap", "worker", "cost index", "policy predicted"]),
    (
        "worker",
        &[
            "error guided turns",
            "infer weights",
            "cpu",
            "lora",
            "model",
            "runner",
            "kv",
            "generate",
            "bench encode",
        ],
    ),
    (
        "server",
        &[
            "args",
            "support",
            "pipeline security",
            "models",
            "fleet serving upstream",
            "cli surfaces",
            "roles",
        ],
    ),
];

/// Returns the code of a file, without comments and without its tests.
fn code(path: &str) -> String {
    let text = read(path);
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    let lines = text[..end].lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.map(|line| format!("{line}\n")).collect()
}

/// Returns the names at the beginning of a path: one, or all of a list in braces.
fn heads(path: &str) -> Vec<&str> {
    let word = |text: &str| {
        let is_end = |c: char| !c.is_ascii_alphanumeric() && c != '_';
        text.find(is_end).unwrap_or(text.len())
    };
    let Some(list) = path.strip_prefix('{') else { return vec![&path[..word(path)]] };
    let (mut depth, mut is_head, mut heads) = (0, true, Vec::new());
    for (index, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => is_head = true,
            c if is_head && !c.is_whitespace() => {
                heads.push(&list[index..][..word(&list[index..])]);
                is_head = false;
            }
            _ => {}
        }
    }
    heads
}

/// Returns which module each name is from that a crate's root exports again.
fn exports(krate: &str) -> BTreeMap<String, String> {
    let root = read(format!("{krate}/src/lib.rs"));
    let mut exports = BTreeMap::new();
    for path in root.split("pub use ").skip(1).chain(root.split("pub(crate) use ").skip(1)) {
        let (path, _) = path.split_once(';').unwrap_or((path, ""));
        let Some((module, names)) = path.split_once("::") else { continue };
        for name in heads(names) {
            exports.insert(name.to_owned(), module.to_owned());
        }
    }
    exports
}

#[test]
fn modules_import_only_from_the_floors_below() {
    for (krate, floors) in MODULES {
        let floor_of: BTreeMap<&str, usize> = (floors.iter().enumerate())
            .flat_map(|(floor, modules)| modules.split(' ').map(move |module| (module, floor)))
            .collect();
        let (source, exports) = (format!("{krate}/src/"), exports(krate));
        let mut edges = 0;
        for path in files(&source, ".rs") {
            let inner = &path[source.len()..];
            let module = inner.split(['/', '.']).next().unwrap();
            let is_test = inner.ends_with("tests.rs") || inner.contains("tests/");
            if matches!(module, "lib" | "main") || is_test {
                continue;
            }
            let floor = *floor_of
                .get(module)
                .unwrap_or_else(|| panic!("{krate}: `{module}` has no place in the floor plan"));
            let code = code(&path);
            // Right below the root `super` is the crate.
            let is_top = !inner.contains('/') || inner == format!("{module}/mod.rs");
            let roots = if is_top { &["crate::", "super::"][..] } else { &["crate::"] };
            for rest in roots.iter().flat_map(|root| code.split(root).skip(1)) {
                for name in heads(rest) {
                    let other = exports.get(name).map_or(name, String::as_str);
                    let Some(&below) = floor_of.get(other).filter(|_| other != module) else {
                        continue;
                    };
                    edges += 1;
                    assert!(below < floor, "{path}: `{module}` may not import from `{other}`");
                }
            }
        }
        assert!(edges > 0, "{krate} has no imports");
    }
}
