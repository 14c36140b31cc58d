//! Fetches model files from a Hugging Face hub, with a progress bar and resuming.

use std::path::{Path, PathBuf};

use hf_hub::api::sync::{Api, ApiBuilder};
use hf_hub::{Cache, Repo, RepoType};

/// A file that could not be fetched; the text says what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct HubError(String);

/// Returns the local path of a GGUF file of a repository, fetching what is missing. Blocks.
///
/// Without a file name the repository must hold exactly one GGUF file.
pub(crate) fn fetch(
    repository: &str,
    file: Option<&str>,
    model_dir: &Path,
    hub_url: Option<&str>,
) -> Result<PathBuf, HubError> {
    let failed = |what: &str, error: hf_hub::api::sync::ApiError| {
        HubError(format!("{what} of `{repository}` from the hub failed: {error}"))
    };
    if let Some(path) = cached(repository, file, model_dir) {
        return Ok(path);
    }
    let api = api(model_dir, hub_url).map_err(|error| failed("set-up", error))?;
    let repo = api.repo(Repo::new(repository.to_owned(), RepoType::Model));
    let file = match file {
        Some(file) => file.to_owned(),
        None => {
            let info = repo.info().map_err(|error| failed("listing", error))?;
            choose(repository, info.siblings.into_iter().map(|sibling| sibling.rfilename))?
        }
    };
    tracing::info!(repository, file, "fetching the model");
    repo.get(&file).map_err(|error| failed(&format!("download of `{file}`"), error))
}

/// Returns the file that was fetched before: the named one, or the only one there is. A hub is not
/// asked for what is already here, so a restart needs no network.
fn cached(repository: &str, file: Option<&str>, model_dir: &Path) -> Option<PathBuf> {
    let cache = Cache::new(model_dir.join("hub"));
    let repo = Repo::new(repository.to_owned(), RepoType::Model);
    if let Some(file) = file {
        return cache.repo(repo).get(file);
    }
    let folder = model_dir.join("hub").join(repo.folder_name()).join("snapshots");
    let snapshots = std::fs::read_dir(folder).ok()?.flatten();
    let files =
        snapshots.flat_map(|snapshot| std::fs::read_dir(snapshot.path()).into_iter().flatten());
    let mut models = files
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "gguf"));
    models.next().filter(|_| models.next().is_none())
}

fn api(model_dir: &Path, hub_url: Option<&str>) -> Result<Api, hf_hub::api::sync::ApiError> {
    let builder = ApiBuilder::from_env().with_cache_dir(model_dir.join("hub"));
    match hub_url {
        Some(url) => builder.with_endpoint(url.trim_end_matches('/').to_owned()).build(),
        None => builder.build(),
    }
}

fn choose(repository: &str, files: impl Iterator<Item = String>) -> Result<String, HubError> {
    let mut files: Vec<String> = files.filter(|file| file.ends_with(".gguf")).collect();
    match files.len() {
        0 => Err(HubError(format!("`{repository}` holds no GGUF file"))),
        1 => Ok(files.remove(0)),
        _ => Err(HubError(format!(
            "`{repository}` holds several GGUF files: name one, as `{repository}:{}`; there are {}",
            files[0],
            files.join(", ")
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_file_is_chosen_and_several_are_listed() {
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let pick = |files: &[&str]| choose("o/r", names(files).into_iter()).map_err(|e| e.0);
        assert_eq!(pick(&["README.md", "a.gguf"]).unwrap(), "a.gguf");
        assert!(pick(&["README.md"]).unwrap_err().contains("no GGUF file"));
        assert!(pick(&["a.gguf", "b.gguf"]).unwrap_err().contains("there are a.gguf, b.gguf"));
    }
}
