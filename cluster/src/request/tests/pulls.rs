//! KV blocks between workers.

use bytes::Bytes;
use engine::{KvLayout, KvStore, Salt, TokenId, WorkerLoad};
use futures_util::StreamExt;

use super::*;

const LAYOUT: KvLayout =
    KvLayout { fingerprint: 7, salt: Salt(3), block_tokens: 16, block_bytes: 300 << 10 };

/// Blocks that say where they stand, in pieces of four; reads are counted.
struct Numbered {
    blocks: usize,
    bytes: usize,
    reads: Arc<AtomicUsize>,
}

#[async_trait]
impl KvStore for Numbered {
    fn layout(&self) -> KvLayout {
        LAYOUT
    }

    async fn held(&self, _: &Arc<[TokenId]>) -> Result<usize> {
        Ok(self.blocks)
    }

    async fn read(&self, tokens: &Arc<[TokenId]>, first: usize) -> Result<Vec<Bytes>> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        if tokens.is_empty() {
            return Err(Error::new(ErrorKind::Overloaded, "too many"));
        }
        let end = (first + 4).min(self.blocks).min(tokens.len() / 16);
        Ok((first..end).map(|place| Bytes::from(vec![place as u8; self.bytes])).collect())
    }
}

fn served(blocks: usize, bytes: usize) -> (Served, Arc<AtomicUsize>) {
    let reads = Arc::<AtomicUsize>::default();
    let store = Numbered { blocks, bytes, reads: reads.clone() };
    (Served { blocks: Some(Arc::new(store)), ..Served::default() }, reads)
}

fn wanted(tokens: u32, first: usize) -> Wanted {
    Wanted { tokens: (0..tokens).collect(), first, layout: LAYOUT }
}

fn soon() -> Instant {
    Instant::now() + LONG
}

#[tokio::test]
async fn blocks_come_in_order_up_to_the_first_that_is_not_there() {
    for (blocks, bytes) in [(10, 300 << 10), (10, 0), (100, 5)] {
        let pair = Pair::new(served(blocks, bytes).0).await;
        for (tokens, first) in [(1000, 0), (1000, 3), (100, 0), (1000, 500), (7, 0)] {
            let stream = pair.worker.pull("model", wanted(tokens, first), soon()).await.unwrap();
            let came: Vec<Bytes> = stream.map(|block| block.unwrap()).collect().await;
            let end = blocks.min(tokens as usize / 16);
            let expected: Vec<Bytes> =
                (first..end).map(|place| Bytes::from(vec![place as u8; bytes])).collect();
            assert!(came == expected, "{tokens} tokens from block {first}: {} came", came.len());
        }
    }
}

#[tokio::test]
async fn what_cannot_be_pulled_is_refused() {
    let pair = Pair::new(served(10, 5).0).await;
    pair.server.insert("bare", Served::default());
    let other = Wanted { layout: KvLayout { salt: Salt(4), ..LAYOUT }, ..wanted(100, 0) };
    for (model, wanted, kind, code) in [
        ("model", other, ErrorKind::InvalidRequest, Some("kv_layout")),
        ("model", wanted(0, 0), ErrorKind::Overloaded, None),
        ("bare", wanted(100, 0), ErrorKind::Unimplemented, None),
        ("none", wanted(100, 0), ErrorKind::NotFound, Some("model_not_found")),
    ] {
        let refused = pair.worker.pull(model, wanted, soon()).await;
        let error = refused.err().expect("it is refused");
        assert_eq!((error.kind(), error.code()), (kind, code), "{error}");
    }
}

#[tokio::test]
async fn whoever_reads_slowly_is_waited_for_and_whoever_leaves_is_not() {
    let (served, reads) = served(200, 300 << 10);
    let pair = Pair::new(served).await;
    let mut stream = pair.worker.pull("model", wanted(3200, 0), soon()).await.unwrap();
    stream.next().await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    // Two pieces and what is in the windows: 8 blocks and 2 MiB.
    let ahead = reads.load(Ordering::SeqCst);
    assert!((1..=5).contains(&ahead), "{ahead} pieces were read for nobody");
    assert_eq!(pair.server.open_calls(), 1);
    drop(stream);
    until(|| pair.server.open_calls() == 0).await;
    // The next one has the whole connection again, and comes while the worker drains.
    pair.server.drain();
    let stream = pair.worker.pull("model", wanted(3200, 0), soon()).await.unwrap();
    assert_eq!(stream.count().await, 200);
}

#[tokio::test]
async fn a_pull_ends_with_its_time_or_its_worker() {
    let pair = Pair::new(served(200, 300 << 10).0).await;
    // The first block, which takes milliseconds, has to come within it.
    let until = Instant::now() + Duration::from_secs(5);
    let mut stream = pair.worker.pull("model", wanted(3200, 0), until).await.unwrap();
    stream.next().await.unwrap().unwrap();
    tokio::time::sleep_until((until + Duration::from_millis(50)).into()).await;
    let error = loop {
        if let Err(error) = stream.next().await.expect("it was cut off") {
            break error;
        }
    };
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    let mut stream = pair.worker.pull("model", wanted(3200, 0), soon()).await.unwrap();
    stream.next().await.unwrap().unwrap();
    pair.there.cancel();
    let error = loop {
        if let Err(error) = stream.next().await.expect("it was cut off") {
            break error;
        }
    };
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn who_comes_during_a_pull_is_told_as_load() {
    let load = Some(Arc::new(WorkerLoad::default) as Arc<dyn Fn() -> WorkerLoad + Send + Sync>);
    let engine = Scripted::new(vec![Step::Output(tokens(&[1])), Step::Sleep(LONG)]);
    let (generate, store) = (generates(engine).generate, served(200, 300 << 10).0);
    let pair = Pair::new(Served { load, generate, ..store }).await;
    let (interval, silence) = (Duration::from_millis(10), Duration::from_millis(150));
    let options = WatchOptions { load_interval: Some(interval), ..WatchOptions::default() };
    let mut news = pair.worker.watch("model", options).await.unwrap();
    news.next().await.unwrap().unwrap();
    assert!(tokio::time::timeout(silence, news.next()).await.is_err(), "nothing has changed");
    let mut pull = pair.worker.pull("model", wanted(3200, 0), soon()).await.unwrap();
    pull.next().await.unwrap().unwrap();
    let mut answer = pair.model().call(prompt(), context()).await.unwrap();
    answer.next().await.unwrap().unwrap();
    assert_eq!(pair.server.open_calls(), 2);
    for _ in 0..3 {
        let told = tokio::time::timeout(Duration::from_secs(10), news.next());
        told.await.expect("a load is told").unwrap().unwrap();
    }
}

#[tokio::test]
async fn tokens_count_as_long_as_their_blocks_are_pulled() {
    let serving = ServerConfig { max_buffered_bytes: 40_000, ..ServerConfig::default() };
    let pair = Pair::between(served(200, 300 << 10).0, ClientConfig::default(), serving).await;
    let pull = || pair.worker.pull("model", wanted(3200, 0), soon());
    let mut first = pull().await.unwrap();
    first.next().await.unwrap().unwrap();
    let error = pull().await.err().expect("it is refused");
    assert_eq!(error.kind(), ErrorKind::Overloaded, "{error}");
    drop(first);
    until(|| pair.server.open_calls() == 0).await;
    assert_eq!(pull().await.unwrap().count().await, 200);
}
