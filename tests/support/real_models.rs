//! The real models that tests run: where `scripts/fetch_model.py` and `scripts/fetch_encoder.py`,
//! which `./test` calls, put them.

use std::path::PathBuf;

/// Returns a model of the cache.
///
/// # Panics
/// If it is not there.
#[expect(clippy::disallowed_methods, reason = "the variables say where the cache is")]
pub(crate) fn real_model(name: &str) -> PathBuf {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let cache = || match variable("XDG_CACHE_HOME") {
        Some(cache) => PathBuf::from(cache),
        None => PathBuf::from(variable("HOME").unwrap_or_default()).join(".cache"),
    };
    let folder = variable("STATOR_MODEL_DIR").map(PathBuf::from);
    let path = folder.unwrap_or_else(|| cache().join("stator/models")).join(name);
    assert!(
        path.exists(),
        "{} is not there: run ./test, or scripts/fetch_model.py and scripts/fetch_encoder.py",
        path.display()
    );
    path
}
