//! The policy that weighs cached prefixes against load.

use fastrand::Rng;

use super::{Decision, Policy, RouteRequest};
use crate::WorkerState;
use crate::cost::{Cost, KvConfig, softmax};

/// Costs within this many blocks of each other are equal.
const TIE: f64 = 1e-9;

/// Chooses the worker where the prompt costs least: see [`KvConfig`]. Among equal costs it chooses
/// the worker with the fewest requests, and then the one that was chosen longest ago.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kv {
    /// The parameters of the cost.
    pub config: KvConfig,
}

impl Kv {
    /// Returns whether a worker is passed over because it has too much of the fleet's load.
    fn is_overloaded(&self, worker: &WorkerState, limit: u64) -> bool {
        worker.requests >= limit
    }

    fn cheapest(&self, workers: &[WorkerState], costs: &[Cost], open: &[usize]) -> Option<usize> {
        let least = open.iter().map(|index| costs[*index].total).fold(f64::INFINITY, f64::min);
        let equal = open.iter().copied().filter(|index| costs[*index].total <= least + TIE);
        equal.min_by_key(|index| (workers[*index].requests, workers[*index].last_chosen))
    }
}

impl Policy for Kv {
    fn choose(
        &self,
        request: &RouteRequest,
        workers: &[WorkerState],
        rng: &mut Rng,
    ) -> Option<Decision> {
        let least_prefill = workers.iter().map(|worker| worker.prefill_tokens).min()?;
        let (tokens, block) = (request.prompt_tokens, request.block_tokens);
        let costs: Vec<Cost> = workers
            .iter()
            .map(|worker| self.config.cost(worker, tokens, block, least_prefill))
            .collect();
        let total = workers.iter().map(|worker| worker.requests).sum();
        let limit = self.config.request_limit(total, workers.len());
        let is_open = |index: &usize| !self.is_overloaded(&workers[*index], limit);
        let mut open: Vec<usize> = (0..workers.len()).filter(is_open).collect();
        if open.is_empty() {
            open = (0..workers.len()).collect();
        }
        let chosen = match self.config.temperature > 0.0 {
            true => {
                let totals: Vec<f64> = open.iter().map(|index| costs[*index].total).collect();
                open[softmax(&totals, self.config.temperature, rng.f64())?]
            }
            false => self.cheapest(workers, &costs, &open)?,
        };
        Some(Decision { chosen, costs })
    }

    fn uses_prefixes(&self) -> bool {
        true
    }
}
