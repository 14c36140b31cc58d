//! Adapters and their bases in a model repository, with a tiny model of the worker's tests.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::args::ControlMode;
use crate::models::loader::{EngineConfig, SharedTexts};
use crate::models::registry::Base;
use crate::support::metrics::Metrics;

/// The columns and rows of the tiny model's query matrix.
const HIDDEN: usize = 32;
const QUERY: usize = 64;

fn engine_config() -> EngineConfig {
    EngineConfig {
        threads: 1,
        pin_threads: false,
        context_length: None,
        kv_cache_bytes: 4 << 20,
        batch_tokens: 64,
        max_running_sequences: 4,
        max_waiting_requests: 4,
        adapters: worker::lora::Limits { max_adapters: 1, max_rank: 4 },
        mixed_prompt_tokens: 64,
        mixed_pass_stretch: 2.0,
        draft_tokens: 0,
        has_prefix_cache: true,
        kv_watermark: 0.01,
        kv_host_bytes: 0,
        kv_disk: None,
        tool_call_parser: None,
        reasoning_parser: None,
        text_rules: openai_bridge::TextRules::default(),
    }
}

/// A repository in a folder of its own, which is looked at every few milliseconds.
fn repository() -> (Arc<Repository>, TempDir) {
    repository_in(ControlMode::Poll)
}

fn repository_in(mode: ControlMode) -> (Arc<Repository>, TempDir) {
    let root = tempfile::tempdir().unwrap();
    let models = Arc::new(Models::default());
    let backends = Backends {
        engine: engine_config(),
        model_dir: PathBuf::new(),
        hub_url: None,
        metrics: Arc::new(Metrics::new(&mut prometheus_client::registry::Registry::default())),
        texts: SharedTexts::default(),
        models: models.clone(),
        pool: Mutex::default(),
        limits: Default::default(),
    };
    let config = RepositoryConfig {
        roots: vec![root.path().to_owned()],
        mode,
        load_models: Vec::new(),
        poll_interval: Duration::from_millis(5),
    };
    let repository =
        Repository::new(config, Vec::new(), models, Some(backends), Tasks::new()).unwrap();
    (Arc::new(repository), root)
}

/// Puts a version of the tiny model into a repository, complete from the first moment on.
fn put_base(root: &TempDir, name: &str, version: u32) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../worker/tests/golden/tiny/llama3");
    let hidden = root.path().join(".base");
    std::fs::create_dir(&hidden).unwrap();
    for entry in std::fs::read_dir(golden).unwrap().flatten() {
        std::fs::copy(entry.path(), hidden.join(entry.file_name())).unwrap();
    }
    place(&hidden, root, name, version);
}

/// Puts an adapter of one matrix in.
fn put_adapter(root: &TempDir, name: &str, seed: u8) {
    let hidden = root.path().join(".adapter");
    std::fs::create_dir(&hidden).unwrap();
    let (mut header, mut data) = (json!({}), Vec::new());
    for (side, shape) in [("A", [1, HIDDEN]), ("B", [QUERY, 1])] {
        let key = format!("base_model.model.model.layers.0.self_attn.q_proj.lora_{side}.weight");
        let start = data.len();
        data.extend((0..shape[0] * shape[1]).flat_map(|_| f32::from(seed).to_le_bytes()));
        header[key] = json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]});
    }
    let header = header.to_string();
    let content = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat();
    std::fs::write(hidden.join("adapter_model.safetensors"), content).unwrap();
    let config = json!({"peft_type": "LORA", "r": 1, "lora_alpha": 1, "layers_to_transform": [0],
        "target_modules": ["q_proj"]});
    std::fs::write(hidden.join("adapter_config.json"), config.to_string()).unwrap();
    place(&hidden, root, name, 1);
}

fn place(hidden: &Path, root: &TempDir, name: &str, version: u32) {
    let folder = root.path().join(name);
    std::fs::create_dir_all(&folder).unwrap();
    let to = folder.join(version.to_string());
    let _ = std::fs::remove_dir_all(&to);
    std::fs::rename(hidden, to).unwrap();
}

async fn eventually(what: &str, is_true: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !is_true() {
        assert!(Instant::now() < end, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn polled_adapters_follow_their_base() {
    let (repository, root) = repository();
    let models = repository.models.clone();
    let tasks = Tasks::new();
    tasks.spawn("poll", repository.clone().poll(Seen::new()));
    put_adapter(&root, "adapter", 1);
    let reason = || match models.list().first() {
        Some((_, _, state)) => state.spell().1.to_owned(),
        None => String::new(),
    };
    eventually("the adapter was tried", || reason().contains("no model that takes")).await;
    put_base(&root, "base", 1);
    eventually("the adapter found its base", || models.get("adapter", "").is_ok()).await;
    // Renewed while there is room for one adapter only.
    let number = models.get("adapter", "").unwrap().adapter;
    put_adapter(&root, "adapter", 2);
    let is_other = || models.get("adapter", "").is_ok_and(|model| model.adapter != number);
    eventually("the adapter was renewed", is_other).await;
    // A base that is loaded anew takes its adapters along, and its old engine ends.
    let old = Arc::downgrade(models.get("base", "").unwrap().base.as_ref().unwrap());
    put_base(&root, "base", 1);
    eventually("somebody holds the old base", || old.strong_count() == 0).await;
    assert!(models.get("adapter", "").is_ok());
    tasks.cancel();
}

#[tokio::test]
async fn versions_of_a_model_are_one_base() {
    let (repository, root) = repository();
    let policy = "version_policy: { all {} }";
    put_base(&root, "base", 1);
    put_base(&root, "base", 2);
    std::fs::write(root.path().join("base/config.pbtxt"), policy).unwrap();
    put_adapter(&root, "adapter", 1);
    for name in ["base", "adapter"] {
        repository.load_declared(name).await.unwrap();
    }
    let adapters = |version: &str| {
        let model = repository.models.get("base", version).unwrap();
        let base: &Arc<Base> = model.base.as_ref().unwrap();
        base.adapters.files().unwrap().len()
    };
    assert_eq!((adapters("1"), adapters("2")), (0, 1), "it stands on the latest");
    // Two names are two bases.
    put_base(&root, "second", 1);
    repository.load_declared("second").await.unwrap();
    let why = repository.load_declared("adapter").await.unwrap_err();
    assert!(why.contains("there are base, second"), "{why}");
}

/// Says which base an adapter stands on.
fn set_base(root: &TempDir, adapter: &str, base: &str) {
    let config = format!(
        "backend: 'lora' parameters: {{ key: 'base_model' value: {{ string_value: '{base}' }} }}"
    );
    std::fs::write(root.path().join(adapter).join("config.pbtxt"), config).unwrap();
}

#[tokio::test]
async fn an_adapter_makes_room_only_where_it_was() {
    let (repository, root) = repository();
    for base in ["base", "second"] {
        put_base(&root, base, 1);
        repository.load_declared(base).await.unwrap();
    }
    // The same content under two names on two bases, each of which has room for one.
    for (adapter, base) in [("one", "base"), ("two", "second")] {
        put_adapter(&root, adapter, 1);
        set_base(&root, adapter, base);
        repository.load_declared(adapter).await.unwrap();
    }
    put_adapter(&root, "one", 2);
    set_base(&root, "one", "second");
    let why = repository.load_declared("one").await.unwrap_err();
    assert!(why.contains("1 adapters are loaded, expected at most 1"), "{why}");
    set_base(&root, "one", "base");
    repository.load_declared("one").await.unwrap();
}

#[tokio::test]
async fn adapters_follow_a_base_that_a_client_loads_anew() {
    let (repository, root) = repository_in(ControlMode::Explicit);
    put_base(&root, "base", 1);
    put_adapter(&root, "listed", 1);
    repository.load("base", Overrides::default()).await.unwrap();
    repository.load("listed", Overrides::default()).await.unwrap();
    let get = |name: &str| repository.models.get(name, "").unwrap();
    let old = Arc::downgrade(get("base").base.as_ref().unwrap());
    repository.load("base", Overrides::default()).await.unwrap();
    eventually("somebody holds the old base", || old.strong_count() == 0).await;
    let now = Arc::downgrade(get("base").base.as_ref().unwrap().adapters.files().unwrap());
    assert!(get("listed").origin.as_ref().unwrap().adapters.ptr_eq(&now), "it was left behind");
    repository.unload("listed").await.unwrap();
    repository.load("base", Overrides::default()).await.unwrap();
    assert!(repository.models.get("listed", "").is_err(), "what was unloaded stays away");
}

#[tokio::test]
async fn a_repository_that_cannot_be_read_changes_nothing() {
    let (repository, root) = repository();
    put_base(&root, "base", 1);
    put_adapter(&root, "adapter", 1);
    for name in ["base", "adapter"] {
        repository.load_declared(name).await.unwrap();
    }
    let hidden = root.path().with_extension("away");
    std::fs::rename(root.path(), &hidden).unwrap();
    assert!(!repository.follow(BTreeSet::from(["adapter".to_owned()])).await);
    assert!(repository.fingerprints().await.is_none());
    let (_, _, state) = &repository.models.list()[0];
    assert_eq!(state.spell(), ("READY", ""), "it was loaded as something else");
    std::fs::rename(&hidden, root.path()).unwrap();
    assert!(repository.follow(BTreeSet::from(["adapter".to_owned()])).await);
}

#[tokio::test]
async fn a_broken_declaration_is_not_passed_over() {
    let (_, root) = repository();
    let folder = root.path().join("m");
    std::fs::create_dir_all(folder.join("1")).unwrap();
    let read = |config: &str| Definition::read("m", &folder, Some(config));
    assert!(read("{}").is_ok(), "a folder needs no declaration");
    std::fs::write(folder.join("config.pbtxt"), "backend: 'identity'").unwrap();
    assert_eq!(read("{}").unwrap().declared.backend, "identity");
    std::fs::write(folder.join("config.pbtxt"), "bakkend: 'identity'").unwrap();
    let why = read("{}").unwrap_err();
    assert!(why.contains("config.pbtxt:1") && why.contains("bakkend"), "{why}");
    assert!(read(r#"{"backend": "identity"}"#).is_ok(), "nothing of it is needed");
}
