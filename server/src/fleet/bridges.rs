//! Fetches what frontends need of models, by content, and keeps some of it.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use cluster::card::{Artifact, Card, Sha256};
use cluster::request::RemoteWorker;

use crate::models::tables;

/// How long fetching one artifact may take.
const FETCH_WAIT: Duration = Duration::from_secs(60);

/// Most bytes of artifacts that are kept for models that come again; the oldest go first.
const MAX_KEPT_BYTES: usize = 64 << 20;

/// The artifacts that were fetched last.
#[derive(Default)]
pub(super) struct Fetched(Mutex<VecDeque<(Sha256, Bytes)>>);

impl Fetched {
    /// Returns the content of an artifact of a card; none: the card has none of the name.
    ///
    /// Errors: nobody has it, it is too large, or it is not what its hash says.
    pub(super) async fn get(
        &self,
        card: &Card,
        name: &str,
        workers: &[RemoteWorker],
    ) -> Result<Option<Bytes>, String> {
        let Some(artifact) = card.artifacts.iter().find(|artifact| artifact.name == name) else {
            return Ok(None);
        };
        if let Some(kept) = self.kept(&artifact.sha256) {
            return Ok(Some(kept));
        }
        let mut failure = "no worker has it".to_owned();
        for worker in workers {
            match fetch(worker, artifact).await {
                Ok(content) => {
                    self.keep(artifact.sha256, content.clone());
                    return Ok(Some(content));
                }
                Err(why) => failure = why,
            }
        }
        Err(format!("its `{name}` cannot be fetched: {failure}"))
    }

    fn kept(&self, hash: &Sha256) -> Option<Bytes> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().find(|(known, _)| known == hash).map(|(_, content)| content.clone())
    }

    fn keep(&self, hash: Sha256, content: Bytes) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_back((hash, content));
        let mut bytes: usize = kept.iter().map(|(_, content)| content.len()).sum();
        while bytes > MAX_KEPT_BYTES
            && let Some((_, oldest)) = kept.pop_front()
        {
            bytes -= oldest.len();
        }
    }
}

async fn fetch(worker: &RemoteWorker, artifact: &Artifact) -> Result<Bytes, String> {
    let most = usize::try_from(artifact.bytes).unwrap_or(usize::MAX);
    if most > tables::MAX_BYTES {
        let limit = tables::MAX_BYTES;
        return Err(format!("it has {most} bytes, expected at most {limit}"));
    }
    let hash = artifact.sha256.to_string();
    let content = worker.fetch(&hash, most, FETCH_WAIT).await.map_err(|error| error.to_string())?;
    let expected = artifact.sha256;
    let hashed = tokio::task::spawn_blocking(move || (Sha256::of(&content) == expected, content));
    match hashed.await {
        Ok((true, content)) => Ok(content),
        Ok((false, _)) => Err(format!("worker `{}` has another content for it", worker.address())),
        Err(error) => Err(error.to_string()),
    }
}
