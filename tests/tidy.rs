//! The house rules that a compiler does not check: floor plan, lengths, doors, dead files, docs.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "tidy/modules.rs"]
mod modules;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The longest source file, in lines.
const MAX_LINES: usize = 500;

/// Who may import whom: only from floors below, and siblings never meet.
const FLOOR_PLAN: [(&str, &[&str]); 8] = [
    (".", &[]),
    ("tensor", &["proto"]),
    ("engine", &["tensor"]),
    ("openai-bridge", &["engine", "tensor"]),
    ("cluster", &["engine", "tensor", "proto"]),
    ("router", &["engine"]),
    ("worker", &["engine", "tensor"]),
    ("server", &["proto", "tensor", "engine", "openai-bridge", "cluster", "router", "worker"]),
];

/// The files that hold `unsafe` code, each block with its reason.
const UNSAFE_FILES: [&str; 20] = [
    "cluster/src/request/local.rs",
    "server/src/support/shared_memory/guard.rs",
    "server/src/support/shared_memory/cuda.rs",
    "server/src/support/shared_memory/system.rs",
    "worker/src/cpu/activations/quantize.rs",
    "worker/src/cpu/amx.rs",
    "worker/src/cpu/amx/bf16.rs",
    "worker/src/cpu/amx/coded.rs",
    "worker/src/cpu/attention.rs",
    "worker/src/cpu/attention/lanes.rs",
    "worker/src/cpu/avx2.rs",
    "worker/src/cpu/avx512.rs",
    "worker/src/cpu/avx512/bf16.rs",
    "worker/src/cpu/avx512/quantize.rs",
    "worker/src/cpu/isa.rs",
    "worker/src/cpu/linear.rs",
    "worker/src/cpu/memory.rs",
    "worker/src/cpu/neon.rs",
    "worker/src/cpu/pool.rs",
    "tests/tidy.rs",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns the files below a folder with an ending, by their paths from the root.
fn files(folder: &str, ending: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false if path.to_string_lossy().ends_with(ending) => {
                    let path = path.strip_prefix(root()).unwrap();
                    found.push(path.to_string_lossy().into_owned());
                }
                false => {}
            }
        }
    }
    found.sort();
    found
}

fn sources() -> Vec<String> {
    let folders = [
        "proto",
        "tensor",
        "engine",
        "openai-bridge",
        "cluster",
        "router",
        "worker",
        "server",
        "tests",
        "fuzz",
    ];
    let mut sources: Vec<String> = folders.iter().flat_map(|folder| files(folder, ".rs")).collect();
    sources.retain(|path| !path.contains("/target/"));
    sources.push("build.rs".into());
    sources
}

#[test]
fn crates_import_only_from_the_floors_below() {
    let rooms =
        ["proto", "tensor", "engine", "openai-bridge", "cluster", "router", "worker", "server"];
    for (krate, allowed) in FLOOR_PLAN {
        let manifest: toml::Table = read(format!("{krate}/Cargo.toml")).parse().unwrap();
        let dependencies = manifest.get("dependencies").and_then(toml::Value::as_table);
        for name in dependencies.into_iter().flat_map(toml::Table::keys) {
            let is_room = rooms.contains(&name.as_str());
            assert!(!is_room || allowed.contains(&name.as_str()), "{krate} may not import {name}");
        }
    }
    let members: BTreeSet<&str> = FLOOR_PLAN.iter().map(|(krate, _)| *krate).collect();
    let manifest: toml::Table = read("Cargo.toml").parse().unwrap();
    for member in manifest["workspace"]["members"].as_array().unwrap() {
        let member = member.as_str().unwrap();
        assert!(members.contains(member), "{member} has no place in the floor plan");
    }
}

#[test]
fn every_file_is_short_and_says_what_it_is_for() {
    for path in sources() {
        let text = read(&path);
        let lines = text.lines().count();
        assert!(lines <= MAX_LINES, "{path} has {lines} lines, more than {MAX_LINES}");
        let has_door = text.starts_with("//!") || text.starts_with("#![no_main]\n//!");
        assert!(has_door, "{path} does not begin with `//!`");
    }
}

#[test]
fn every_file_is_a_module_of_its_crate() {
    for path in files("", ".rs").iter().filter(|path| path.contains("/src/")) {
        if path.starts_with("target/") {
            continue;
        }
        let file = Path::new(path);
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        let folder = file.parent().unwrap();
        if folder.ends_with("src") && matches!(name.as_str(), "lib" | "main") {
            continue;
        }
        let (module, folder) = match name.as_str() {
            "mod" => (
                folder.file_name().unwrap().to_string_lossy().into_owned(),
                folder.parent().unwrap(),
            ),
            _ => (name, folder),
        };
        let beside = folder.with_extension("rs");
        let parents = ["lib.rs", "main.rs", "mod.rs"].map(|parent| folder.join(parent));
        let declares = |parent: &PathBuf| {
            let text = fs::read_to_string(root().join(parent)).unwrap_or_default();
            text.lines().any(|line| line.trim_start().ends_with(&format!("mod {module};")))
        };
        let is_declared = parents.iter().chain([&beside]).any(declares);
        assert!(is_declared, "{path} is no module of anything");
    }
}

#[test]
fn unsafe_code_is_where_the_plan_has_it_and_says_why() {
    for path in sources() {
        let text = read(&path);
        let code = |line: &&str| !line.trim_start().starts_with("//");
        let count = text.lines().filter(code).filter(|line| line.contains("unsafe ")).count();
        if count == 0 {
            continue;
        }
        assert!(UNSAFE_FILES.contains(&path.as_str()), "{path} may not hold unsafe code");
        let lines: Vec<&str> = text.lines().collect();
        for (index, line) in lines.iter().enumerate().filter(|(_, line)| code(line)) {
            if line.contains("unsafe {") && path != "tests/tidy.rs" {
                let before = &lines[index.saturating_sub(4)..index];
                let has_reason = before.iter().any(|line| line.contains("SAFETY:"));
                assert!(has_reason, "{path}:{} has no SAFETY comment", index + 1);
            }
        }
    }
}

#[test]
fn status_codes_and_the_environment_have_one_home_each() {
    let homes = [
        ("Code::", "server/src/support/status.rs"),
        ("Status::", "server/src/support/status.rs"),
        ("env::var", "server/src/args/"),
        ("env::args", "server/src/args/"),
    ];
    // Counting a call as fine and reading a status that a library wrote are no choices.
    let harmless = ["Code::Ok", "Code::OutOfRange", "Status::from_header_map"];
    let is_code = |path: &&String| path.contains("/src/") && !path.ends_with("/tests.rs");
    for path in sources().iter().filter(is_code) {
        let text = read(path);
        let mut code = text.split("#[cfg(test)]").next().unwrap_or_default().to_owned();
        harmless.iter().for_each(|word| code = code.replace(word, ""));
        for (word, home) in homes {
            let is_free = path.starts_with(home) || !mentions(&code, word);
            assert!(is_free, "{path} holds `{word}`, which lives in {home}");
        }
    }
}

/// Returns whether a word stands in the code, and not as the end of a longer one.
fn mentions(code: &str, word: &str) -> bool {
    let is_part = |before: &str| before.ends_with(|c: char| c.is_alphanumeric() || c == '_');
    code.match_indices(word).any(|(at, _)| !is_part(&code[..at]))
}

#[test]
fn nothing_in_the_bridge_waits_or_opens_sockets() {
    let manifest: toml::Table = read("openai-bridge/Cargo.toml").parse().unwrap();
    let dependencies = manifest["dependencies"].as_table().unwrap();
    for name in ["tokio", "hyper", "tonic", "reqwest", "axum"] {
        assert!(!dependencies.contains_key(name), "openai-bridge may not depend on {name}");
    }
    for path in files("openai-bridge/src", ".rs") {
        let text = read(&path);
        for word in ["std::time::Instant", "SystemTime", "std::net", "std::thread"] {
            assert!(!text.contains(word), "{path} uses {word}");
        }
    }
}

#[test]
fn every_setting_is_in_the_reference() {
    let reference = read("docs/configuration.md");
    let args: String = files("server/src/args", ".rs").iter().map(read).collect();
    let mut flags = BTreeMap::new();
    let mut is_flag = false;
    for line in args.lines().map(str::trim) {
        if line.starts_with("#[arg(") && line.contains("long") {
            is_flag = true;
        }
        if let Some(name) = line.strip_prefix("pub ").and_then(|rest| rest.split_once(": "))
            && std::mem::take(&mut is_flag)
        {
            flags.insert(name.0.replace('_', "-"), ());
        }
    }
    assert!(flags.len() > 25, "only {} flags were found in args/", flags.len());
    for flag in flags.keys() {
        assert!(reference.contains(&format!("`--{flag}`")), "docs/configuration.md: no `--{flag}`");
    }
}

#[test]
fn every_fuzz_target_is_built_and_its_command_is_told() {
    let (manifest, guide) = (read("fuzz/Cargo.toml"), read("CONTRIBUTING.md"));
    for path in files("fuzz/fuzz_targets", ".rs") {
        let name = Path::new(&path).file_stem().unwrap().to_string_lossy().into_owned();
        assert!(manifest.contains(&format!("name = \"{name}\"")), "fuzz/Cargo.toml: no {name}");
        let commands = guide.lines().filter(|line| line.contains(" fuzz run "));
        let is_told = commands.flat_map(|line| line.split([' ', ','])).any(|word| word == name);
        assert!(is_told, "CONTRIBUTING.md: no command for the fuzz target {name}");
    }
}

#[test]
fn links_of_the_documents_lead_somewhere() {
    let mut documents = files("docs", ".md");
    documents.extend(["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"].map(str::to_owned));
    for document in documents {
        let text = read(&document);
        let folder = Path::new(&document).parent().unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            let path = root().join(folder).join(target);
            assert!(path.exists(), "{document} links to {target}, which does not exist");
        }
    }
}

#[test]
fn every_file_of_a_recipe_exists() {
    let text = read("CONTRIBUTING.md");
    let recipes = text.split("## Recipes").nth(1).unwrap().split("\n## ").next().unwrap();
    let paths: Vec<&str> =
        recipes.split('`').skip(1).step_by(2).filter(|p| p.contains('/')).collect();
    assert!(paths.len() > 30, "{paths:?}");
    for path in paths {
        assert!(root().join(path).exists(), "CONTRIBUTING.md: a recipe names `{path}`");
    }
}

/// Returns what stands between quotes after each occurrence of a word.
fn quoted<'a>(text: &'a str, word: &str) -> Vec<&'a str> {
    let rest = text.split(word).skip(1);
    rest.filter_map(|rest| rest.trim_start().strip_prefix('"')?.split('"').next()).collect()
}

#[test]
fn every_method_route_and_extension_is_in_the_protocol_document() {
    let document = read("docs/protocol.md");
    let proto = read("proto/inference.proto");
    let methods: Vec<&str> = proto
        .lines()
        .filter_map(|line| line.trim().strip_prefix("rpc ")?.split('(').next())
        .collect();
    assert_eq!(methods.len(), 20, "{methods:?}");
    for method in methods {
        assert!(document.contains(&format!("| {method} |")), "docs/protocol.md: no {method}");
    }
    let routes = read("server/src/surfaces/rest/mod.rs");
    let routes = quoted(&routes, ".route(");
    assert!(routes.len() > 25, "only {} routes were found", routes.len());
    for route in routes.into_iter().filter(|route| *route != "/" && *route != "/v2/") {
        let spelled = route.replace("{region}", "REGION").replace("{model}", "MODEL");
        let spelled = spelled.trim_start_matches("/v2");
        let forms = [format!("`/v2{spelled}`"), format!("`M{spelled}`")];
        let is_told = forms.iter().any(|form| document.contains(form));
        assert!(is_told, "docs/protocol.md: no route {route}");
    }
    let catalog = read("server/src/serving/catalog.rs");
    let list = catalog.split("const EXTENSIONS").nth(1).unwrap().split("];").next().unwrap();
    for extension in list.split('"').skip(1).step_by(2) {
        assert!(document.contains(&format!("`{extension}`")), "docs/protocol.md: no {extension}");
    }
}
