//! The owner of background tasks: each has a name, an owner and an end.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// A group of background tasks that end together.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let tasks = engine::Tasks::new();
/// tasks.spawn("waits", std::future::pending::<()>());
/// tasks.cancel();
/// assert!(tasks.wait(std::time::Duration::from_secs(1)).await);
/// # });
/// ```
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    // A clone of the token takes a lock; every call of a server holds clones of a group.
    group: Arc<Group>,
}

#[derive(Debug, Default)]
struct Group {
    token: CancellationToken,
    tracker: TaskTracker,
}

impl Tasks {
    /// Makes an empty group.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a group that this one's cancellation ends and this one's `wait` waits for.
    #[must_use]
    pub fn child(&self) -> Self {
        let Group { token, tracker } = &*self.group;
        let group = Group { token: token.child_token(), tracker: tracker.clone() };
        Self { group: Arc::new(group) }
    }

    /// Starts a task that runs until it is done or the group is cancelled.
    pub fn spawn<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let group = self.group.clone();
        let span = tracing::debug_span!("task", name);
        self.group.tracker.spawn(
            async move {
                tokio::select! {
                    () = group.token.cancelled() => {}
                    () = future => {}
                }
            }
            .instrument(span),
        );
    }

    /// Returns how many tasks have not ended, with those of children and parents.
    pub fn count(&self) -> usize {
        self.group.tracker.len()
    }

    /// Returns a future that is done when the group is cancelled.
    pub fn cancelled(&self) -> impl Future<Output = ()> + Send + 'static {
        let group = self.group.clone();
        async move { group.token.cancelled().await }
    }

    /// Returns whether the group was told to end.
    pub fn is_cancelled(&self) -> bool {
        self.group.token.is_cancelled()
    }

    /// Tells every task of the group to end.
    pub fn cancel(&self) {
        self.group.token.cancel();
    }

    /// Waits until all tasks have ended, at most `grace`; returns whether they have.
    pub async fn wait(&self, grace: Duration) -> bool {
        let tracker = &self.group.tracker;
        tracker.close();
        tokio::time::timeout(grace, tracker.wait()).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_child_ends_with_its_parent_and_not_the_other_way() {
        let parent = Tasks::new();
        let child = parent.child();
        parent.spawn("parent", std::future::pending());
        child.cancel();
        assert_eq!((parent.count(), child.count()), (1, 1));
        assert!(!parent.wait(Duration::from_millis(10)).await);
        parent.cancel();
        assert!(parent.wait(Duration::from_millis(10)).await);
    }
}
