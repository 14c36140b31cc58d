//! The loads of a model as they are told: one each interval while there is work, and then one more.
//!
//! A worker without work has no timer for this: nothing changes before a call comes, and a process
//! may be a thousand workers.

use std::sync::Arc;
use std::time::Duration;

use engine::WorkerLoad;
use tokio::sync::watch::Receiver;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::shared::Shared;

/// Reads how busy a model is.
pub(crate) type ReadLoad = Arc<dyn Fn() -> WorkerLoad + Send + Sync>;

/// The loads of a model that are still to be told.
pub(crate) struct Loads {
    load: ReadLoad,
    ticks: Interval,
    told: Option<WorkerLoad>,
    /// Whether nothing has to be told before a call comes.
    is_quiet: bool,
    busy: Receiver<()>,
    shared: Arc<Shared>,
}

impl Loads {
    pub(super) fn new(load: ReadLoad, every: Duration, shared: &Arc<Shared>) -> Self {
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (busy, shared) = (shared.busy(), shared.clone());
        Self { load, ticks, told: None, is_quiet: false, busy, shared }
    }

    /// Waits for the next load that is to be told. Cancelling loses nothing.
    async fn next(&mut self) -> WorkerLoad {
        loop {
            if self.is_quiet {
                // It cannot fail, since the server is held here.
                let _ = self.busy.changed().await;
                self.is_quiet = false;
            }
            self.ticks.tick().await;
            // Marked first, so that a call that is not counted yet is noticed later.
            self.busy.mark_unchanged();
            let is_open = self.shared.open_calls() > 0;
            let load = (self.load)();
            // The engine may need a step to let go of a call that has ended.
            self.is_quiet = !is_open && load.waiting_requests + load.running_sequences == 0;
            // While there is work each one is told: frontends compare it with their own calls.
            if !self.is_quiet || self.told != Some(load) {
                self.told = Some(load);
                return load;
            }
        }
    }
}

/// Waits for the next load; for ever where there is none.
pub(crate) async fn next_load(loads: &mut Option<Loads>) -> WorkerLoad {
    match loads {
        Some(loads) => loads.next().await,
        None => std::future::pending().await,
    }
}
