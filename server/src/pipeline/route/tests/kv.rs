//! Prompts go where their blocks are cached.

use super::*;

fn long_prompt(first: u32) -> GenerateRequest {
    GenerateRequest::new((first..first + 64).collect::<Vec<_>>(), StopConditions::after(1))
}

fn kv_route(fleet: &Arc<Fleet>, prefixes: Prefixes) -> Route {
    let mode = RouterMode::Kv(KvConfig::default());
    let config = RouteConfig { mode, ..RouteConfig::default() };
    route(fleet, config).with_prefixes(Some(Arc::new(prefixes)))
}

#[tokio::test]
async fn a_prompt_goes_where_its_blocks_are_cached() {
    let workers: Vec<_> = (0..4).map(|id| worker(id, None, well)).collect();
    let fleet = fleet(workers.iter().map(|(candidate, _)| candidate.clone()).collect());
    let index = Arc::new(router::PrefixIndex::default());
    let hashes = |tokens: &[u32]| -> Vec<_> {
        engine::prefix_hashes(tokens, 16, engine::Salt::default()).collect()
    };
    let claim = index.claim(WorkerId(2));
    index.replace(claim, &hashes(&long_prompt(0).tokens)[..3]);
    let route = kv_route(&fleet, Prefixes::new(16, Some(index), None));
    for _ in 0..5 {
        ask(&route, long_prompt(0)).await.unwrap();
    }
    let asked = || workers.iter().map(|(_, asked)| asked.load(Relaxed)).collect::<Vec<_>>();
    assert_eq!(asked(), [0, 0, 5, 0]);
    // Nobody has cached this one: it goes to whoever was chosen longest ago, as an embedding does.
    ask(&route, long_prompt(1000)).await.unwrap();
    ask(&route, embed()).await.unwrap();
    assert_eq!(asked(), [1, 1, 5, 0]);
}

#[tokio::test]
async fn without_events_a_prompt_goes_where_it_went_before_and_load_is_given_back() {
    let workers: Vec<_> = (0..4).map(|id| worker(id, None, well)).collect();
    let fleet = fleet(workers.iter().map(|(candidate, _)| candidate.clone()).collect());
    let ttl = Some(Duration::from_secs(3600));
    let route = kv_route(&fleet, Prefixes::new(16, None, ttl));
    for round in 0..24 {
        ask(&route, long_prompt(1000 * (round % 3))).await.unwrap();
    }
    let mut asked: Vec<usize> = workers.iter().map(|(_, asked)| asked.load(Relaxed)).collect();
    asked.sort_unstable();
    assert_eq!(asked, [0, 8, 8, 8]);
    let overlap = Overlap::default();
    let stream = route.call(long_prompt(5000), Context::new("r")).await.unwrap();
    let loads = || workers.iter().map(|(one, _)| one.state(overlap)).collect::<Vec<_>>();
    assert_eq!(loads().iter().map(|one| one.prefill_tokens).sum::<u64>(), 64);
    assert_eq!(loads().iter().map(|one| one.decode_blocks).sum::<u64>(), 4);
    drop(stream);
    assert!(loads().iter().all(|one| one.prefill_tokens == 0 && one.decode_blocks == 0));
}
