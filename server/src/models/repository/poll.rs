//! Poll mode: what changes in the model repositories is loaded, what leaves them is unloaded. What
//! cannot be read has not left.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Repository, Seen};
use crate::models::definition::{self, Fingerprint};

impl Repository {
    /// Follows the repositories in poll mode, from what was `seen` before the models were loaded,
    /// until the future is dropped.
    pub(crate) async fn poll(self: Arc<Self>, mut seen: Seen) {
        loop {
            tokio::time::sleep(self.config.poll_interval).await;
            let Some(now) = self.fingerprints().await else { continue };
            for name in seen.keys().filter(|name| !now.contains_key(*name)) {
                tracing::info!(model = name, "model left its repository");
                self.models.unload(name);
            }
            let is_changed =
                |(name, print): &(&String, &Fingerprint)| seen.get(*name) != Some(*print);
            let changed = now.iter().filter(is_changed).map(|(name, _)| name.clone());
            let changed: BTreeSet<String> = changed.collect();
            if changed.is_empty() || self.follow(changed).await {
                seen = now;
            } else {
                // What changed has to be seen again.
                seen.retain(|name, _| now.contains_key(name));
            }
        }
    }

    /// Loads what changed, bases first; and with a base, the adapters that wait for one or stand on
    /// what it was before. Returns whether it could be read what is an adapter; nothing is loaded
    /// otherwise.
    pub(super) async fn follow(self: &Arc<Self>, changed: BTreeSet<String>) -> bool {
        let repository = self.clone();
        let all = tokio::task::spawn_blocking(move || repository.adapters());
        let all = match all.await.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(all) => all,
            Err(why) => {
                tracing::warn!(why, "the model repositories cannot be polled");
                return false;
            }
        };
        let mut loaded = BTreeSet::new();
        for name in changed.difference(&all) {
            if self.load_polled(name).await {
                loaded.insert(name.as_str());
            }
        }
        let is_due = |name: &&String| {
            let lacks_base = || match self.models.get(name, "") {
                Ok(model) => model.parent.as_deref().is_some_and(|base| loaded.contains(base)),
                Err(_) => !loaded.is_empty(),
            };
            changed.contains(*name) || lacks_base()
        };
        for name in all.iter().filter(is_due) {
            self.load_polled(name).await;
        }
        true
    }

    /// Returns the names of all adapters; reads files.
    ///
    /// Errors: a repository that cannot be read.
    fn adapters(&self) -> std::result::Result<BTreeSet<String>, String> {
        let folders = self.scan()?;
        let names = self.given.keys().chain(folders.keys());
        Ok(names.filter(|name| self.is_adapter(name, &folders)).cloned().collect())
    }

    async fn load_polled(self: &Arc<Self>, name: &str) -> bool {
        let outcome = self.load_declared(name).await;
        if let Err(why) = &outcome {
            tracing::warn!(model = name, why, "a model could not be loaded");
        }
        outcome.is_ok()
    }

    /// Takes the fingerprints of all model folders; none when the repositories cannot be read.
    pub(crate) async fn fingerprints(self: &Arc<Self>) -> Option<Seen> {
        let repository = self.clone();
        let take = move || match repository.scan() {
            Ok(mut folders) => {
                // What the command line has given is not a repository's to change.
                folders.retain(|name, _| !repository.given.contains_key(name));
                let take =
                    |(name, folder): (String, PathBuf)| (name, definition::fingerprint(&folder));
                Some(folders.into_iter().map(take).collect())
            }
            Err(why) => {
                tracing::warn!(why, "the model repositories cannot be polled");
                None
            }
        };
        tokio::task::spawn_blocking(take).await.ok().flatten()
    }
}
