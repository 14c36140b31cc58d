//! The policies: each chooses one of the candidates.
//!
//! The caller passes the workers that may take the request and had not been asked before. Filters
//! (draining workers, unhealthy ones) come first, so a policy only ranks.

mod kv;
mod simple;

use fastrand::Rng;

use crate::{Cost, WorkerState};

pub use kv::Kv;
pub use simple::{LeastLoaded, PowerOfTwo, Random, RoundRobin};

/// What a policy knows of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteRequest {
    /// Tokens of the prompt; 0 for a request without tokens.
    pub prompt_tokens: u64,
    /// Tokens of one KV block; 0 where there is no KV cache.
    pub block_tokens: u32,
}

/// A choice.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// The index of the chosen worker among the candidates.
    pub chosen: usize,
    /// The cost of each candidate, in the same order. Only the `kv` policy computes costs.
    pub costs: Vec<Cost>,
}

impl Decision {
    /// Makes a choice without costs.
    pub fn of(chosen: usize) -> Self {
        Self { chosen, costs: Vec::new() }
    }
}

/// A way to choose a worker.
///
/// ```
/// use router::{LeastLoaded, Policy, RouteRequest, WorkerId, WorkerState};
/// let busy = WorkerState { requests: 3, ..WorkerState::idle(WorkerId(1)) };
/// let workers = [busy, WorkerState::idle(WorkerId(2))];
/// let mut rng = fastrand::Rng::with_seed(1);
/// let decision = LeastLoaded.choose(&RouteRequest::default(), &workers, &mut rng).unwrap();
/// assert_eq!(workers[decision.chosen].id, WorkerId(2));
/// ```
pub trait Policy: Send + Sync {
    /// Chooses one of the candidates; none where there are none.
    fn choose(
        &self,
        request: &RouteRequest,
        workers: &[WorkerState],
        rng: &mut Rng,
    ) -> Option<Decision>;

    /// Returns whether it wants to know which prefixes workers hold.
    fn uses_prefixes(&self) -> bool {
        false
    }
}

/// Returns the index of the candidate with the least key.
fn least<K: PartialOrd>(
    workers: &[WorkerState],
    key: impl Fn(&WorkerState) -> K,
) -> Option<Decision> {
    let mut best: Option<(usize, K)> = None;
    for (index, worker) in workers.iter().enumerate() {
        let key = key(worker);
        if best.as_ref().is_none_or(|(_, least)| key < *least) {
            best = Some((index, key));
        }
    }
    best.map(|(index, _)| Decision::of(index))
}

#[cfg(test)]
mod tests;
