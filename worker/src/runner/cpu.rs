//! The CPU runner: a model from a GGUF file or a directory on threads of its own.

use std::path::Path;
use std::sync::Arc;

use engine::{ModelCard, Vocabulary};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{BlockId, BlockKind, Entry, Limits, Outputs, Runner, Wants};
use crate::Error;
use crate::cpu::Isa;
use crate::cpu::attention::{BLOCK_TOKENS, Cache, Geometry};
use crate::cpu::linear::Compute;
use crate::cpu::pool::Pool;
use crate::lora::{self, Adapter, Adapters, Deltas};
use crate::model::{
    Buffers, Checkpoint, Hyperparameters, Input, Llama, Loading, Position, Precisions,
};
use crate::turns::PassScheduler;

/// The revision of the code that computes and stores keys and values, a part of the fingerprint of
/// KV blocks. Whoever changes a bit of them, or their order in a block, raises it: workers of builds
/// with different revisions then take no blocks of one another. `worker/tests/parity/blocks.rs`
/// pins what blocks hold and fails where this was forgotten.
pub const KV_REVISION: u32 = 2;

/// How a model is run.
#[derive(Clone, Debug)]
pub struct CpuOptions {
    /// Threads that load it, and compute threads unless others are given; at least 1.
    pub threads: usize,
    /// Most tokens of one sequence; none: as the model says.
    pub context_length: Option<usize>,
    /// Bytes of the KV cache; taken from the system as they are used.
    pub kv_cache_bytes: usize,
    /// Most tokens of one forward pass.
    pub batch_tokens: usize,
}

/// A loaded model and what its file says of it.
#[derive(Debug)]
pub struct Loaded {
    /// The model, ready to run.
    pub runner: CpuRunner,
    /// Its card; the name is the file's.
    pub card: ModelCard,
    /// Its tokenizer's tables.
    pub vocabulary: Vocabulary,
}

/// One model on the CPU.
#[derive(Debug)]
pub struct CpuRunner {
    model: Llama,
    compute: Compute,
    cache: Cache,
    limits: Limits,
    kind: BlockKind,
    adapters: Option<Arc<Adapters>>,
    buffers: Buffers,
    logits: Vec<f32>,
    hidden: Vec<f32>,
}

impl CpuRunner {
    /// Loads a model on the best instructions that the processor has.
    ///
    /// `path` is a GGUF file, or a directory of safetensors as Hugging Face publishes it.
    ///
    /// Errors: a file cannot be read or served, or the cache holds not even one block.
    pub fn load(path: &Path, options: &CpuOptions) -> Result<Loaded, Error> {
        Self::load_with(path, options, Isa::best())
    }

    /// Loads a model on the given instructions.
    pub fn load_with(path: &Path, options: &CpuOptions, isa: Isa) -> Result<Loaded, Error> {
        Self::load_on(path, options, Compute { pool: start_pool(options.threads, false)?, isa })
    }

    /// Loads a model on the given instructions and threads, which it may have in common with others.
    pub fn load_on(path: &Path, options: &CpuOptions, compute: Compute) -> Result<Loaded, Error> {
        let checkpoint = Checkpoint::open(path)?;
        let sizes = &checkpoint.sizes;
        let loading = Loading { threads: options.threads, name: checkpoint.name.clone() };
        let model = Llama::read(&checkpoint, &loading)?;
        let vocabulary = &checkpoint.tokens.vocabulary;
        if model.vocabulary() != vocabulary.tokens.len() {
            return Err(Error::Model(format!(
                "`{}` has {} rows, the tokenizer {} tokens",
                checkpoint.names.embedding(),
                model.vocabulary(),
                vocabulary.tokens.len()
            )));
        }
        let context_length = options.context_length.unwrap_or(usize::MAX).min(sizes.context_length);
        let cache = cache(sizes, context_length, options.kv_cache_bytes)?;
        let limits = Limits {
            vocabulary: model.vocabulary(),
            context_length: context_length.min(cache.blocks * BLOCK_TOKENS),
            block_size: BLOCK_TOKENS,
            blocks: cache.blocks,
            batch_tokens: options.batch_tokens,
            dimensions: sizes.hidden,
        };
        let kind = BlockKind {
            fingerprint: fingerprint(KV_REVISION, &checkpoint, compute.isa),
            bytes: cache.block_bytes(),
        };
        let card = ModelCard {
            name: checkpoint.name,
            architecture: sizes.family.name().to_owned(),
            context_length: limits.context_length as u32,
            block_size: BLOCK_TOKENS as u32,
            eos_tokens: checkpoint.tokens.eos,
        };
        let bytes = cache.blocks * cache.block_bytes();
        let cache = Cache::new(cache).map_err(|error| {
            Error::Device(format!("no memory for a KV cache of {bytes} bytes: {error}"))
        })?;
        let runner = Self {
            model,
            compute,
            cache,
            limits,
            kind,
            adapters: None,
            buffers: Buffers::default(),
            logits: Vec::new(),
            hidden: Vec::new(),
        };
        Ok(Loaded { runner, card, vocabulary: checkpoint.tokens.vocabulary })
    }
}

impl CpuRunner {
    /// Lets entries name adapters, and returns the table that these are loaded into.
    pub fn take_adapters(&mut self, limits: lora::Limits) -> Arc<Adapters> {
        let adapters = Adapters::new(self.model.shape(), limits);
        self.adapters = Some(adapters.clone());
        adapters
    }

    /// Returns the adapter of each entry.
    ///
    /// Errors: one that is not loaded, which whoever asks has to see to.
    fn adapters_of(&self, batch: &[Entry<'_>]) -> Result<Vec<Option<Arc<Adapter>>>, Error> {
        let find = |entry: &Entry<'_>| {
            let Some(id) = entry.adapter else { return Ok(None) };
            let found = self.adapters.as_ref().and_then(|adapters| adapters.get(id));
            let missing = || Error::Device(format!("adapter {:016x} is not loaded", id.0));
            found.ok_or_else(missing).map(Some)
        };
        batch.iter().map(find).collect()
    }

    /// Chooses how exactly activations meet the weights; for measuring what it costs.
    pub fn set_precisions(&mut self, precisions: Precisions) {
        self.model.set_precisions(precisions);
    }

    /// Returns the bytes of weights that a pass with logits reads.
    pub fn bytes_read(&self) -> usize {
        self.model.bytes_read()
    }
}

/// Starts compute threads, which keep to a core each if they are pinned.
///
/// Errors: the system gives no thread, or there are fewer cores than pinned threads.
pub fn start_pool(threads: usize, are_pinned: bool) -> Result<Pool, Error> {
    let pool = if are_pinned { Pool::start_pinned(threads) } else { Pool::start(threads) };
    pool.map_err(|error| Error::Device(format!("cannot start compute threads: {error}")))
}

/// Returns what stands for the bits of a model's KV blocks: its weights, which have been read, and
/// sizes, the instructions and the code that they are computed with.
fn fingerprint(revision: u32, checkpoint: &Checkpoint, isa: Isa) -> u64 {
    let isa = if checkpoint.weights.has_bf16() { isa } else { isa.without_bf16() };
    let own = format!("{revision} {:?} {isa:?}", checkpoint.sizes);
    xxh3_64_with_seed(own.as_bytes(), checkpoint.weights.sum())
}

/// Sizes the cache: what fits into the bytes, and no more than the address space of block ids.
fn cache(sizes: &Hyperparameters, context: usize, bytes: usize) -> Result<Geometry, Error> {
    let mut geometry = Geometry {
        layers: sizes.layers,
        blocks: 1,
        kv_heads: sizes.kv_heads,
        head_dim: sizes.head_dim,
    };
    let needed = geometry.block_bytes();
    geometry.blocks = (bytes / needed).min(u32::MAX as usize);
    if geometry.blocks == 0 {
        let text = format!("a KV cache of {bytes} bytes holds no block; one has {needed} bytes");
        return Err(Error::Device(text));
    }
    let whole = context.div_ceil(BLOCK_TOKENS);
    if geometry.blocks < whole {
        let (tokens, blocks) = (geometry.blocks * BLOCK_TOKENS, geometry.blocks);
        tracing::warn!(tokens, blocks, context, "the KV cache is smaller than one whole context");
    }
    Ok(geometry)
}

impl Runner for CpuRunner {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn forward(&mut self, batch: &[Entry<'_>]) -> Result<Outputs<'_>, Error> {
        let mut tokens = Vec::new();
        // What is wanted of the pass, and which of that is wanted as logits, and as it is.
        let (mut wanted, mut scored, mut pooled) = (Vec::new(), Vec::new(), Vec::new());
        let adapters = self.adapters_of(batch)?;
        let mut deltas = Deltas::default();
        for (entry, adapter) in batch.iter().zip(&adapters) {
            if let Some(adapter) = adapter {
                deltas.push(tokens.len(), entry.tokens.len(), adapter);
            }
            for (offset, &token) in entry.tokens.iter().enumerate() {
                let position = entry.start + offset;
                tokens.push(Position { token, position, blocks: entry.blocks });
            }
            let mut own = tokens.len() - entry.tokens.len()..tokens.len();
            let rows = match entry.wants {
                Wants::Nothing => continue,
                Wants::Hidden => &mut pooled,
                Wants::All => &mut scored,
                Wants::Last => {
                    own.start = own.start.max(own.end.saturating_sub(1));
                    &mut scored
                }
            };
            rows.extend(wanted.len()..wanted.len() + own.len());
            wanted.extend(own);
        }
        self.compute.pool.keep();
        let input = Input { tokens: &tokens, wanted: &wanted, deltas: &deltas };
        self.model.forward(&self.compute, input, &mut self.cache, &mut self.buffers);
        self.model.hidden(&self.compute, &pooled, &self.buffers, &mut self.hidden);
        self.model.logits(&self.compute, &scored, &mut self.buffers, &mut self.logits);
        Ok(Outputs {
            logits: &self.logits,
            vocabulary: self.limits.vocabulary,
            hidden: &self.hidden,
            dimensions: self.limits.dimensions,
        })
    }

    fn turns(&self) -> PassScheduler {
        self.compute.pool.turns().clone()
    }

    fn copy_block(&mut self, from: BlockId, to: BlockId) -> Result<(), Error> {
        self.cache.copy_block(from, to);
        Ok(())
    }

    fn read_block(&mut self, block: BlockId, bytes: &mut Vec<u8>) -> Result<(), Error> {
        self.cache.read_block(block, bytes);
        Ok(())
    }

    fn write_block(&mut self, block: BlockId, bytes: &[u8]) -> Result<(), Error> {
        self.cache.write_block(block, bytes)
    }

    fn block_kind(&self) -> Option<BlockKind> {
        Some(self.kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_another_revision_or_instruction_set_are_of_another_kind() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny/llama3");
        let options = CpuOptions {
            threads: 1,
            context_length: None,
            kv_cache_bytes: 1 << 20,
            batch_tokens: 8,
        };
        let loaded = CpuRunner::load(&path, &options).unwrap();
        let own = loaded.runner.block_kind().unwrap().fingerprint;
        // Its weights are summed up as they are read.
        let checkpoint = Checkpoint::open(&path).unwrap();
        Llama::read(&checkpoint, &Loading { threads: 1, name: String::new() }).unwrap();
        assert_eq!(own, fingerprint(KV_REVISION, &checkpoint, Isa::best()));
        let mut found = std::collections::BTreeSet::new();
        // No tensor of this model is bf16.
        let mut isas: Vec<Isa> = Isa::available().into_iter().map(Isa::without_bf16).collect();
        isas.dedup();
        for revision in [KV_REVISION, KV_REVISION + 1] {
            found.extend(isas.iter().map(|&isa| fingerprint(revision, &checkpoint, isa)));
        }
        assert_eq!(found.len(), 2 * isas.len());
        found.extend(Isa::available().iter().map(|&isa| fingerprint(0, &checkpoint, isa)));
        assert_eq!(found.len(), 3 * isas.len(), "without bf16 its products change nothing");
    }
    #[cfg(target_os = "linux")]
    #[test]
    fn the_thread_of_a_model_keeps_to_its_core_where_others_do() {
        use crate::cpu::cores::tests::kernel;
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny/llama3");
        let (threads, context_length) = (1, None);
        let options =
            CpuOptions { threads, context_length, kv_cache_bytes: 1 << 20, batch_tokens: 8 };
        for (are_pinned, kept) in [(false, kernel()), (true, vec![kernel()[0]])] {
            let compute = Compute { pool: start_pool(1, are_pinned).unwrap(), isa: Isa::best() };
            let mut runner = CpuRunner::load_on(&path, &options, compute).unwrap().runner;
            let thread = std::thread::spawn(move || {
                let (tokens, blocks) = (&[1][..], &[0][..]);
                let wants = Wants::Last;
                let entry = Entry { tokens, start: 0, blocks, prompt: 1, adapter: None, wants };
                assert!(!runner.forward(&[entry]).unwrap().logits.is_empty());
                kernel()
            });
            assert_eq!(thread.join().unwrap(), kept);
        }
    }
}
