//! What a request costs on a worker: the formula of the `kv` policy.

use serde::Serialize;

use crate::WorkerState;

/// The parameters of the cost. The defaults and names are those of NVIDIA Dynamo's router, so a
/// setting that works there works here.
///
/// ```text
/// credit = overlap_credit * decay * device + host_credit * host + disk_credit * disk
/// decay  = 1 / (1 + overlap_decay * excess_prefill / request_blocks)
/// cost   = prefill_scale * max(0, (prefill_tokens + prompt_tokens) / block_tokens - credit)
///          + decode_blocks + request_weight * requests
/// ```
///
/// `device`, `host` and `disk` are blocks of the prompt that the worker holds in that tier, and
/// `excess_prefill` is how many blocks of prefill the worker has queued beyond the least loaded one.
/// All terms are in blocks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KvConfig {
    /// Credit of a block in the device's memory, in blocks.
    pub overlap_credit: f64,
    /// How fast that credit falls with the prefill that the worker has queued; 0: not at all.
    pub overlap_decay: f64,
    /// Credit of a block in the host's memory.
    pub host_credit: f64,
    /// Credit of a block on disk.
    pub disk_credit: f64,
    /// Weight of the tokens that are still to be computed.
    pub prefill_scale: f64,
    /// Cost of each request that the worker has.
    pub request_weight: f64,
    /// 0 chooses the lowest cost. Above 0, a worker is drawn by the softmax of the negated costs
    /// (scaled to 0..1) over this temperature.
    pub temperature: f64,
    /// A worker with more than this many times the mean number of requests is passed over while
    /// another one is not, so that a popular prefix does not draw everything onto one worker.
    pub max_load_ratio: f64,
    /// A worker with fewer requests than this is never passed over.
    pub min_requests_for_limit: u64,
}

impl Default for KvConfig {
    fn default() -> Self {
        Self {
            overlap_credit: 1.0,
            overlap_decay: 0.0,
            host_credit: 0.75,
            disk_credit: 0.25,
            prefill_scale: 1.0,
            request_weight: 0.0,
            temperature: 0.0,
            max_load_ratio: 1.5,
            min_requests_for_limit: 8,
        }
    }
}

/// The cost of a request on one worker, with its parts. All numbers are in blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Cost {
    /// The sum; lower is better.
    pub total: f64,
    /// What there is to compute, after the credit.
    pub prefill: f64,
    /// What cached blocks take away.
    pub credit: f64,
    /// What the worker's requests hold.
    pub decode: f64,
    /// The term of the number of requests.
    pub requests: f64,
}

impl KvConfig {
    /// Returns the cost of a prompt on a worker. `least_prefill` is the fewest tokens that any
    /// candidate has still to compute.
    pub fn cost(
        &self,
        worker: &WorkerState,
        prompt_tokens: u64,
        block_tokens: u32,
        least_prefill: u64,
    ) -> Cost {
        let block = f64::from(block_tokens.max(1));
        let request_blocks = (prompt_tokens as f64 / block).max(1.0);
        let excess = worker.prefill_tokens.saturating_sub(least_prefill) as f64 / block;
        let decay = 1.0 / (1.0 + self.overlap_decay * excess / request_blocks);
        let overlap = &worker.overlap;
        let credit = self.overlap_credit * decay * f64::from(overlap.device)
            + self.host_credit * f64::from(overlap.host)
            + self.disk_credit * f64::from(overlap.disk);
        let pending = (worker.prefill_tokens + prompt_tokens) as f64 / block;
        let prefill = self.prefill_scale * (pending - credit).max(0.0);
        let decode = worker.decode_blocks as f64;
        let requests = self.request_weight * worker.requests as f64;
        Cost { total: prefill + decode + requests, prefill, credit, decode, requests }
    }

    /// Returns how many requests a worker may have before it is passed over, where `total` requests
    /// are spread over `workers`.
    pub fn request_limit(&self, total: u64, workers: usize) -> u64 {
        let mean = (total + 1) as f64 / workers.max(1) as f64;
        ((self.max_load_ratio * mean).ceil() as u64).max(self.min_requests_for_limit)
    }
}

/// Draws an index with the softmax probabilities of the negated costs. The costs are scaled to
/// 0..1 first, so the temperature does not depend on their unit. `draw` is uniform in 0..1.
///
/// Returns none for no costs.
pub fn softmax(costs: &[f64], temperature: f64, draw: f64) -> Option<usize> {
    let least = costs.iter().copied().fold(f64::INFINITY, f64::min);
    let most = costs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let span = if most > least { most - least } else { 1.0 };
    let weight = |cost: f64| (-(cost - least) / span / temperature.max(1e-9)).exp();
    let mut left = draw * costs.iter().map(|cost| weight(*cost)).sum::<f64>();
    for (index, cost) in costs.iter().enumerate() {
        left -= weight(*cost);
        if left < 0.0 {
            return Some(index);
        }
    }
    costs.len().checked_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Overlap, WorkerId};

    fn worker(prefill_tokens: u64, decode_blocks: u64, overlap: Overlap) -> WorkerState {
        WorkerState { prefill_tokens, decode_blocks, overlap, ..WorkerState::idle(WorkerId(1)) }
    }

    #[test]
    fn a_cost_is_what_the_formula_says() {
        let check = |config: KvConfig, worker: WorkerState, expected: f64| {
            let cost = config.cost(&worker, 160, 16, 0);
            assert!((cost.total - expected).abs() < 1e-9, "{config:?} {worker:?}: {cost:?}");
        };
        let (config, none) = (KvConfig::default(), Overlap::default());
        let overlap = Overlap { device: 4, host: 2, disk: 4 };
        check(config, worker(0, 0, none), 10.0);
        check(config, worker(32, 5, none), 17.0);
        check(config, worker(0, 0, overlap), 10.0 - 4.0 - 1.5 - 1.0);
        check(KvConfig { overlap_credit: 100.0, ..config }, worker(0, 3, overlap), 3.0);
        check(KvConfig { prefill_scale: 2.0, ..config }, worker(16, 1, none), 23.0);
        // 5 blocks of prefill more than the least are half of the request's 10 blocks.
        let decaying = KvConfig { overlap_decay: 1.0, ..config };
        let device = Overlap { device: 3, ..none };
        check(decaying, worker(80, 0, device), 15.0 - 3.0 / 1.5);
        let weighted = KvConfig { request_weight: 0.5, ..config };
        check(weighted, WorkerState { requests: 4, ..worker(0, 0, none) }, 12.0);
    }

    #[test]
    fn softmax_draws_as_often_as_it_says() {
        let (costs, temperature) = ([10.0, 20.0, 30.0], 0.5);
        let weights = [0.0, -0.5, -1.0].map(|x: f64| (x / temperature).exp());
        let sum: f64 = weights.iter().sum();
        let mut rng = fastrand::Rng::with_seed(7);
        let mut counts = [0u32; 3];
        for _ in 0..100_000 {
            counts[softmax(&costs, temperature, rng.f64()).unwrap()] += 1;
        }
        for (count, weight) in counts.iter().zip(weights) {
            assert!((f64::from(*count) / 1e5 - weight / sum).abs() < 0.01, "{counts:?}");
        }
        assert_eq!(softmax(&[], 1.0, 0.5), None);
        assert_eq!(softmax(&[3.0, 3.0], 1.0, 0.999_999), Some(1));
        assert_eq!(softmax(&[5.0, 1.0], 1e-12, 0.999_999), Some(1));
    }

    #[test]
    fn a_limit_follows_the_mean() {
        let config = KvConfig::default();
        assert_eq!(config.request_limit(0, 4), 8);
        assert_eq!(config.request_limit(39, 4), 15);
        assert_eq!(config.request_limit(39, 0), 60);
    }
}
