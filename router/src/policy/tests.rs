//! What each policy chooses.

use fastrand::Rng;

use super::*;
use crate::{KvConfig, Overlap, WorkerId};

fn workers(requests: &[u64]) -> Vec<WorkerState> {
    let state = |(index, requests): (usize, &u64)| WorkerState {
        requests: *requests,
        last_chosen: 100 - index as u64,
        ..WorkerState::idle(WorkerId(index as u64))
    };
    requests.iter().enumerate().map(state).collect()
}

fn chosen(policy: &dyn Policy, workers: &[WorkerState]) -> Option<usize> {
    let request = RouteRequest { prompt_tokens: 160, block_tokens: 16 };
    policy.choose(&request, workers, &mut Rng::with_seed(3)).map(|decision| decision.chosen)
}

/// Returns how often each worker is chosen.
fn shares(policy: &dyn Policy, workers: &[WorkerState], draws: usize) -> Vec<usize> {
    let (mut rng, mut counts) = (Rng::with_seed(5), vec![0; workers.len()]);
    for _ in 0..draws {
        let decision = policy.choose(&RouteRequest::default(), workers, &mut rng).unwrap();
        counts[decision.chosen] += 1;
    }
    counts
}

#[test]
fn no_policy_chooses_among_nobody() {
    let all: [&dyn Policy; 5] = [&RoundRobin, &LeastLoaded, &Random, &PowerOfTwo, &Kv::default()];
    for policy in all {
        assert_eq!(chosen(policy, &[]), None);
        assert_eq!(chosen(policy, &workers(&[7])), Some(0));
    }
}

#[test]
fn simple_policies_look_at_requests_and_turns() {
    let check = |policy: &dyn Policy, requests: &[u64], expected: usize| {
        assert_eq!(chosen(policy, &workers(requests)), Some(expected), "{requests:?}");
    };
    check(&RoundRobin, &[0, 0, 9], 2);
    check(&LeastLoaded, &[3, 1, 2], 1);
    check(&LeastLoaded, &[1, 1, 2], 1);
    assert_eq!(shares(&PowerOfTwo, &workers(&[0, 5]), 100), [100, 0]);
    for share in shares(&Random, &workers(&[0, 5, 9, 1]), 10_000) {
        assert!((2_200..2_800).contains(&share), "{share}");
    }
    let two = shares(&PowerOfTwo, &workers(&[0, 5, 9]), 9_000);
    assert!(two[2] == 0 && (5_700..6_300).contains(&two[0]), "{two:?}");
}

#[test]
fn kv_prefers_the_cached_prefix_until_the_load_outweighs_it() {
    let mut all = workers(&[0, 0, 0]);
    all[1].overlap = Overlap { device: 8, ..Overlap::default() };
    assert_eq!(chosen(&Kv::default(), &all), Some(1));
    all[1].prefill_tokens = 7 * 16;
    assert_eq!(chosen(&Kv::default(), &all), Some(1));
    all[1].prefill_tokens = 9 * 16;
    assert_eq!(chosen(&Kv::default(), &all), Some(2), "of equals, the one chosen longest ago");
    let by_load = Kv { config: KvConfig { overlap_credit: 0.0, ..KvConfig::default() } };
    all[1].prefill_tokens = 0;
    all[0].decode_blocks = 2;
    all[2].decode_blocks = 1;
    assert_eq!(chosen(&by_load, &all), Some(1));
}

#[test]
fn a_popular_prefix_does_not_draw_everything_onto_one_worker() {
    let mut all = workers(&[0, 0, 0, 0]);
    all[0].overlap = Overlap { device: 10, ..Overlap::default() };
    let policy = Kv::default();
    let request = RouteRequest { prompt_tokens: 160, block_tokens: 16 };
    let mut rng = Rng::with_seed(1);
    for sent in 0..400 {
        let decision = policy.choose(&request, &all, &mut rng).unwrap();
        all[decision.chosen].requests += 1;
        all[decision.chosen].last_chosen = 1_000 + sent;
    }
    let most = all.iter().map(|worker| worker.requests).max().unwrap();
    assert_eq!(most, 150, "1.5 times the mean of 100");
    all.iter_mut().for_each(|worker| worker.requests = 1_000);
    assert_eq!(chosen(&policy, &all), Some(0), "nobody is better, so nobody is passed over");
}

#[test]
fn a_temperature_spreads_the_choices() {
    let mut all = workers(&[0, 0, 0]);
    all[1].overlap = Overlap { device: 8, ..Overlap::default() };
    let policy = Kv { config: KvConfig { temperature: 0.5, ..KvConfig::default() } };
    let request = RouteRequest { prompt_tokens: 160, block_tokens: 16 };
    let (mut rng, mut counts) = (Rng::with_seed(9), [0; 3]);
    for _ in 0..10_000 {
        counts[policy.choose(&request, &all, &mut rng).unwrap().chosen] += 1;
    }
    // Costs 10, 2, 10 scale to 1, 0, 1, so the weights are e^-2, 1, e^-2.
    let expected = 10_000.0 / (1.0 + 2.0 * (-2.0f64).exp());
    assert!((f64::from(counts[1]) - expected).abs() < 200.0, "{counts:?}");
}
