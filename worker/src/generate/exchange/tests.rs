//! Orders for blocks: how many are served between two steps, and who has to wait.

use std::sync::atomic::{AtomicUsize, Ordering};

use engine::{KvEvents, Vocabulary};
use futures_util::FutureExt;

use super::super::SchedulerConfig;
use super::super::counters::Counters;
use super::super::scheduler::Shared;
use super::*;
use crate::kv::Table;
use crate::runner::mock::{MockConfig, MockRunner};
use crate::runner::{BlockId, BlockKind, Entry, Limits, Outputs, Runner};

type Answer = oneshot::Receiver<Copied>;

/// Whole blocks of the prompt that is asked for.
const BLOCKS: usize = 4;

/// A runner whose blocks have some bytes. For each block that it copies it asks for another one.
struct Copier {
    block_bytes: usize,
    copied: Arc<AtomicUsize>,
    waiting: Arc<Waiting>,
    /// How often it still asks, and what is answered.
    asks: usize,
    answers: Vec<Answer>,
}

impl Runner for Copier {
    fn limits(&self) -> Limits {
        Limits {
            vocabulary: 100,
            context_length: 1000,
            block_size: 16,
            blocks: 10,
            batch_tokens: 512,
            dimensions: 1,
        }
    }

    fn forward(&mut self, _: &[Entry<'_>]) -> std::result::Result<Outputs<'_>, crate::Error> {
        Err(crate::Error::Device("nothing is computed here".into()))
    }

    fn copy_block(&mut self, _: BlockId, _: BlockId) -> std::result::Result<(), crate::Error> {
        Ok(())
    }

    fn read_block(
        &mut self,
        _: BlockId,
        bytes: &mut Vec<u8>,
    ) -> std::result::Result<(), crate::Error> {
        self.copied.fetch_add(1, Ordering::Relaxed);
        bytes.resize(bytes.len() + self.block_bytes, 0);
        if let Some(left) = self.asks.checked_sub(1) {
            self.asks = left;
            self.answers.push(order(&self.waiting, 1).unwrap());
        }
        Ok(())
    }

    fn write_block(&mut self, _: BlockId, _: &[u8]) -> std::result::Result<(), crate::Error> {
        Ok(())
    }

    fn block_kind(&self) -> Option<BlockKind> {
        Some(BlockKind { fingerprint: 1, bytes: self.block_bytes })
    }
}

fn tokens() -> Arc<[TokenId]> {
    (0..BLOCKS as TokenId * 16).collect()
}

fn names() -> Vec<SequenceHash> {
    prefix_hashes(&tokens(), 16, Salt::default()).collect()
}

/// Asks for the first blocks of the prompt.
fn order(waiting: &Waiting, most: usize) -> Result<Answer> {
    let (reply, answer) = oneshot::channel();
    let (salt, first) = (Salt::default(), 0);
    waiting.order(Order { tokens: tokens(), names: names(), salt, first, most, reply })?;
    Ok(answer)
}

/// A scheduler in whose cache the prompt is, its queue, and how many blocks it has copied. While it
/// copies somebody asks `asks` times for more.
fn scheduler(block_bytes: usize, asks: usize) -> (Scheduler, Arc<Waiting>, Arc<AtomicUsize>) {
    let (waiting, copied) = (Waiting::new(1), Arc::new(AtomicUsize::new(0)));
    let (own, counted, answers) = (waiting.clone(), copied.clone(), Vec::new());
    let runner = Copier { block_bytes, copied: counted, waiting: own, asks, answers };
    let shared = Shared {
        waiting: waiting.clone(),
        counters: Arc::new(Counters::new(&runner.limits())),
        events: KvEvents::new(1),
        tiers: Default::default(),
    };
    let config = SchedulerConfig::default();
    let mut scheduler = Scheduler::new(Box::new(runner), Vec::new(), config, shared);
    let mut table = Table::new(names(), Some(Salt::default()));
    let tokens = tokens();
    table.grow(&mut scheduler.pool, 0, tokens.len()).unwrap();
    table.commit(&mut scheduler.pool, &tokens, tokens.len());
    table.release(&mut scheduler.pool);
    (scheduler, waiting, copied)
}

#[test]
fn askers_that_come_back_at_once_do_not_keep_the_scheduler() {
    let (mut scheduler, waiting, copied) = scheduler(0, 1000);
    let mut answer = order(&waiting, 1).unwrap();
    for step in 1..=3 {
        scheduler.hand_out();
        assert_eq!(copied.load(Ordering::Relaxed), step * MAX_ORDERS);
    }
    let answer = answer.try_recv().unwrap();
    assert_eq!((answer.held, answer.blocks.len()), (BLOCKS, 1));
}

#[test]
fn the_bytes_between_two_steps_are_bounded() {
    // Two blocks are 8 MiB, what an order may have at most.
    let (mut scheduler, waiting, copied) = scheduler(ORDER_BYTES / 2, 0);
    let mut answers: Vec<Answer> = (0..5).map(|_| order(&waiting, 2).unwrap()).collect();
    for blocks in [4, 8, 10, 10] {
        scheduler.hand_out();
        assert_eq!(copied.load(Ordering::Relaxed), blocks);
    }
    assert_eq!(scheduler.totals.exported_blocks, 10);
    assert!(answers.iter_mut().all(|answer| answer.try_recv().unwrap().blocks.len() == 2));
    // The last order that is served may take it beyond.
    let _answers = [3, 4, 4].map(|most| order(&waiting, most).unwrap());
    scheduler.hand_out();
    assert_eq!(copied.load(Ordering::Relaxed), 10 + 7);
}

/// The blocks of a model with a short context, for which nobody looks.
fn exchange() -> (Exchange, Arc<Waiting>) {
    let runner = Box::new(MockRunner::new(MockConfig::default()));
    let (vocabulary, config) = (Vocabulary::default(), SchedulerConfig::default());
    let engine = GenerateEngine::start(runner, &vocabulary, Vec::new(), config).unwrap();
    let waiting = Waiting::new(1);
    let layout = KvLayout { block_tokens: 16, ..KvLayout::default() };
    (Exchange::new(waiting.clone(), layout, 1000, Arc::new(engine)), waiting)
}

#[test]
fn tokens_behind_the_context_are_not_looked_at() {
    let (exchange, waiting) = exchange();
    for (count, names) in [(999, 62), (1007, 62), (1_000_000, 62), (40, 2), (0, 0)] {
        let tokens: Arc<[TokenId]> = vec![7; count].into();
        let mut asked = exchange.read(&tokens, 0);
        assert!((&mut asked).now_or_never().is_none());
        assert_eq!(waiting.next_order().unwrap().names.len(), names, "{count} tokens");
    }
}

#[test]
fn one_order_too_many_is_refused_unless_somebody_has_left() {
    let (exchange, waiting) = exchange();
    let tokens = tokens();
    let ask = || {
        let mut asked = exchange.held(&tokens);
        match (&mut asked).now_or_never() {
            Some(answer) => Err(answer.unwrap_err()),
            None => Ok(asked),
        }
    };
    let mut asked: Vec<_> = (0..MAX_ORDERS).map(|_| ask().ok().unwrap()).collect();
    for left in [0, 1, 0, 3] {
        asked.truncate(MAX_ORDERS - left);
        asked.extend((0..left).map(|_| ask().ok().unwrap()));
        assert_eq!(ask().err().unwrap().kind(), ErrorKind::Overloaded);
    }
    let orders: Vec<_> = std::iter::from_fn(|| waiting.next_order()).collect();
    assert_eq!(orders.len(), MAX_ORDERS);
    assert!(orders.iter().all(|order| !order.reply.is_closed()));
}
