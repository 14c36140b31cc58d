//! Fetches model files from a Hugging Face hub, with a progress bar and resuming.

use std::path::{Path, PathBuf};

use hf_hub::api::sync::{Api, ApiBuilder};
use hf_hub::{Repo, RepoType};

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
