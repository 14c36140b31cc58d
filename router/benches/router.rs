//! The speed of the index and of a decision.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use engine::{BlockHash, KvEvent, SequenceHash, StoredBlock};
use fastrand::Rng;
use router::{IndexLimits, Kv, Policy, PrefixIndex, RouteRequest, Tier, WorkerId, WorkerState};

const WORKERS: u64 = 1_000;
const BLOCKS: usize = 1_000;

fn hashes(rng: &mut Rng, count: usize) -> Vec<SequenceHash> {
    (0..count).map(|_| SequenceHash(rng.u64(..))).collect()
}

fn stored(blocks: &[SequenceHash]) -> KvEvent {
    let block = |hash: &SequenceHash| StoredBlock { sequence: *hash, block: BlockHash(hash.0) };
    KvEvent::Stored { parent: None, blocks: blocks.iter().map(block).collect(), block_tokens: 16 }
}

/// 1,000 workers that hold beginnings of different lengths of one prompt of 1,000 blocks.
fn decision(c: &mut Criterion) {
    let mut rng = Rng::with_seed(1);
    let prompt = hashes(&mut rng, BLOCKS);
    let index = PrefixIndex::new(IndexLimits::default());
    for worker in 0..WORKERS {
        let claim = index.claim(WorkerId(worker));
        index.apply(claim, Tier::Device, &stored(&prompt[..rng.usize(1..=BLOCKS)]));
        index.apply(claim, Tier::Device, &stored(&hashes(&mut rng, 1_000)));
    }
    let mut workers: Vec<WorkerState> = (0..WORKERS)
        .map(|worker| WorkerState {
            requests: rng.u64(..50),
            prefill_tokens: rng.u64(..10_000),
            decode_blocks: rng.u64(..1_000),
            ..WorkerState::idle(WorkerId(worker))
        })
        .collect();
    let request = RouteRequest { prompt_tokens: 16 * BLOCKS as u64, block_tokens: 16 };
    let policy = Kv::default();
    c.bench_function("decision, 1,000 workers and 1,000 blocks", |bencher| {
        bencher.iter(|| {
            let matches = index.find(black_box(&prompt));
            for worker in &mut workers {
                worker.overlap = matches.of(worker.id);
            }
            policy.choose(&request, &workers, &mut rng)
        });
    });
}

/// Events of 16 workers that share half of their prompts.
fn events(c: &mut Criterion) {
    let mut rng = Rng::with_seed(2);
    let prompts: Vec<Vec<SequenceHash>> = (0..2_000).map(|_| hashes(&mut rng, 64)).collect();
    let events: Vec<KvEvent> = prompts.iter().map(|prompt| stored(prompt)).collect();
    let mut group = c.benchmark_group("index");
    group.throughput(Throughput::Elements((events.len() * 64) as u64));
    group.bench_function("blocks stored", |bencher| {
        bencher.iter_with_setup(
            || PrefixIndex::new(IndexLimits::default()),
            |index| {
                let claims: Vec<_> = (0..16).map(|worker| index.claim(WorkerId(worker))).collect();
                for (number, event) in events.iter().enumerate() {
                    index.apply(claims[number % 16], Tier::Device, event);
                }
                index
            },
        );
    });
    let index = PrefixIndex::new(IndexLimits::default());
    for (number, event) in events.iter().enumerate() {
        index.apply(index.claim(WorkerId(number as u64 % 16)), Tier::Device, event);
    }
    group.bench_function("blocks looked up", |bencher| {
        bencher.iter(|| {
            prompts.iter().map(|prompt| usize::from(index.find(prompt).is_empty())).sum::<usize>()
        });
    });
    group.finish();
}

criterion_group!(benches, decision, events);
criterion_main!(benches);
