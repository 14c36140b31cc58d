//! The owner of background tasks: each has a name, an owner and an end.

use std::future::Future;
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
        Self { token: self.token.child_token(), tracker: self.tracker.clone() }
    }

    /// Starts a task that runs until it is done or the group is cancelled.
    pub fn spawn<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let token = self.token.clone();
        let span = tracing::debug_span!("task", name);
        self.tracker.spawn(
            async move {
                tokio::select! {
                    () = token.cancelled() => {}
                    () = future => {}
                }
            }
            .instrument(span),
        );
    }

    /// Returns how many tasks have not ended, with those of children and parents.
    pub fn count(&self) -> usize {
        self.tracker.len()
    }

    /// Returns a future that is done when the group is cancelled.
    pub fn cancelled(&self) -> impl Future<Output = ()> + Send + 'static {
        self.token.clone().cancelled_owned()
    }

    /// Returns whether the group was told to end.
    pub fn is_cancelled(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Tells every task of the group to end.
    pub fn cancel(&self) {
        self.token.cancel();
    }

    /// Waits until all tasks have ended, at most `grace`; returns whether they have.
    pub async fn wait(&self, grace: Duration) -> bool {
        self.tracker.close();
        tokio::time::timeout(grace, self.tracker.wait()).await.is_ok()
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
