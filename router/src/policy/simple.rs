//! Policies that look at the number of requests alone.

use fastrand::Rng;

use super::{Decision, Policy, RouteRequest, least};
use crate::WorkerState;

/// Chooses the worker that was chosen longest ago.
#[derive(Clone, Copy, Debug, Default)]
pub struct RoundRobin;

impl Policy for RoundRobin {
    fn choose(&self, _: &RouteRequest, workers: &[WorkerState], _: &mut Rng) -> Option<Decision> {
        least(workers, |worker| worker.last_chosen)
    }
}

/// Chooses the worker with the fewest requests, and among equals the one that was chosen longest
/// ago.
#[derive(Clone, Copy, Debug, Default)]
pub struct LeastLoaded;

impl Policy for LeastLoaded {
    fn choose(&self, _: &RouteRequest, workers: &[WorkerState], _: &mut Rng) -> Option<Decision> {
        least(workers, |worker| (worker.requests, worker.last_chosen))
    }
}

/// Chooses any worker with equal probability.
#[derive(Clone, Copy, Debug, Default)]
pub struct Random;

impl Policy for Random {
    fn choose(&self, _: &RouteRequest, workers: &[WorkerState], rng: &mut Rng) -> Option<Decision> {
        (!workers.is_empty()).then(|| Decision::of(rng.usize(..workers.len())))
    }
}

/// Draws two workers and chooses the one with fewer requests.
#[derive(Clone, Copy, Debug, Default)]
pub struct PowerOfTwo;

impl Policy for PowerOfTwo {
    fn choose(&self, _: &RouteRequest, workers: &[WorkerState], rng: &mut Rng) -> Option<Decision> {
        let count = workers.len();
        if count < 2 {
            return (count == 1).then(|| Decision::of(0));
        }
        let first = rng.usize(..count);
        let second = (first + rng.usize(1..count)) % count;
        let is_better = workers[second].requests < workers[first].requests;
        Some(Decision::of(if is_better { second } else { first }))
    }
}
