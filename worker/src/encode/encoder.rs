//! An encoder, ready to run: weights, threads, and what becomes of the hidden states.

use std::path::Path;

use engine::{Embedding, ModelCard, TokenId, Vocabulary};

use super::{Pipeline, Pooling};
use crate::Error;
use crate::cpu::Isa;
use crate::cpu::linear::Compute;
use crate::model::bert::{Bert, Buffers, Family, Sizes};
use crate::runner::cpu::start_pool;
use crate::turns::{Client, Demand, PrefillCost};
use crate::weights::{Directory, Json, text};

/// How an encoder is run.
#[derive(Clone, Copy, Debug)]
pub struct EncoderOptions {
    /// Compute threads unless others are given, at least 1.
    pub threads: usize,
    /// Most tokens of one text; none: as the model says.
    pub context_length: Option<usize>,
}

/// A loaded encoder and what its files say of it.
#[derive(Debug)]
pub struct Loaded {
    /// The encoder, ready to run.
    pub encoder: Encoder,
    /// Its card; the name is the directory's.
    pub card: ModelCard,
    /// Its tokenizer.
    pub vocabulary: Vocabulary,
}

/// One encoder on the CPU.
#[derive(Debug)]
pub struct Encoder {
    model: Bert,
    compute: Compute,
    pipeline: Pipeline,
    context_length: usize,
    buffers: Buffers,
    /// Its place among the models on the same threads.
    seat: Client,
    /// What a token adds to the time of a layer.
    price: PrefillCost,
}

/// Returns whether a directory holds an encoder: its `config.json` says so.
///
/// Errors: there is no such file, or it is broken.
pub fn is_encoder(directory: &Path) -> Result<bool, Error> {
    let config = Json::read(&directory.join("config.json"))?;
    let model_type = config.optional_string("model_type")?.unwrap_or_default();
    Ok(Family::of(model_type).is_some())
}

impl Encoder {
    /// Loads an encoder on the best instructions that the processor has.
    ///
    /// Errors: a file is missing or cannot be read or served; the text names it and its field.
    pub fn load(directory: &Path, options: &EncoderOptions) -> Result<Loaded, Error> {
        let compute = Compute { pool: start_pool(options.threads, false)?, isa: Isa::best() };
        Self::load_on(directory, options, compute)
    }

    /// Loads an encoder on the given instructions and threads, which it may have in common with
    /// others.
    pub fn load_on(
        directory: &Path,
        options: &EncoderOptions,
        compute: Compute,
    ) -> Result<Loaded, Error> {
        let config = Json::read(&directory.join("config.json"))?;
        let sizes = Sizes::read(&config)?;
        let pipeline = Pipeline::read(directory, sizes.hidden)?;
        let json = text(&directory.join("tokenizer.json"))?;
        let model = Bert::read(&Directory::open(directory)?, sizes)?;
        let most = options.context_length.unwrap_or(usize::MAX);
        let encoder = Self::new(model, compute, pipeline).with_context_length(most);
        let card = ModelCard {
            name: directory.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            architecture: config.optional_string("model_type")?.unwrap_or_default().to_owned(),
            context_length: encoder.context_length as u32,
            block_size: 1,
            eos_tokens: Vec::new(),
        };
        let vocabulary = Vocabulary { json: Some(json), ..Vocabulary::default() };
        Ok(Loaded { encoder, card, vocabulary })
    }

    /// Puts an encoder together.
    pub fn new(model: Bert, compute: Compute, pipeline: Pipeline) -> Self {
        let own = model.sizes().context_length();
        let context_length = own.min(pipeline.max_tokens.unwrap_or(usize::MAX));
        let seat = compute.pool.turns().join();
        let (buffers, price) = (Buffers::default(), PrefillCost::default());
        Self { model, compute, pipeline, context_length, buffers, seat, price }
    }

    fn with_context_length(self, most: usize) -> Self {
        Self { context_length: self.context_length.min(most), ..self }
    }

    /// Returns the most tokens of one text.
    pub fn context_length(&self) -> usize {
        self.context_length
    }

    /// Returns the number of tokens in the vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.model.sizes().vocabulary
    }

    /// Returns how many tokens of texts a pass may have, at most `most`. While sequences draw from
    /// other models, these models' passes and a layer of this one's together may take `stretch` times
    /// as long as those alone.
    pub fn pass_tokens(&self, most: usize, stretch: f32) -> usize {
        let others = self.seat.others();
        match others.are_drawing {
            true => self.price.tokens(others.allowance(0.0, stretch.into())).min(most),
            false => most,
        }
    }

    /// Returns the vectors of texts in one pass; each is what it is alone, to the last bit. Every
    /// text has a token and keeps within the context, and all its tokens are in the vocabulary.
    pub fn embed(&mut self, texts: &[&[TokenId]]) -> Vec<Embedding> {
        let hidden = self.model.sizes().hidden;
        self.seat.tell(Demand { drawing: None, has_prompts: true });
        let mut turn = self.seat.begin();
        self.compute.pool.keep();
        // A text cannot be cut, and a long one would hold up who draws from other models.
        let let_by = || turn.let_by();
        let mut states = self.model.forward_with(&self.compute, texts, &mut self.buffers, let_by);
        let tokens = states.len() / hidden;
        let mut vectors = Vec::with_capacity(texts.len());
        for text in texts {
            let (own, rest) = states.split_at(text.len() * hidden);
            vectors.push(self.pipeline.finish(own, hidden));
            states = rest;
        }
        let layers = self.model.sizes().layers as f64;
        self.price.learn(tokens, turn.time().as_secs_f64() / layers, 0.0);
        drop(turn);
        self.seat.tell(Demand::default());
        vectors
    }
}

impl Pipeline {
    /// Makes the vector of a text of its hidden states, `[tokens, hidden]`. Sums are of 64 bits and
    /// in the order of the text.
    fn finish(&self, states: &[f32], hidden: usize) -> Embedding {
        let mut rows = states.chunks_exact(hidden);
        let first = rows.next().unwrap_or_default();
        let mut vector: Vec<f64> = first.iter().map(|&value| f64::from(value)).collect();
        match self.pooling {
            Pooling::First => {}
            Pooling::Mean => {
                let count = states.len() as f64 / hidden as f64;
                for row in rows {
                    vector.iter_mut().zip(row).for_each(|(sum, &value)| *sum += f64::from(value));
                }
                vector.iter_mut().for_each(|value| *value /= count);
            }
            Pooling::Max => {
                for row in rows {
                    let pairs = vector.iter_mut().zip(row);
                    pairs.for_each(|(most, &value)| *most = most.max(f64::from(value)));
                }
            }
        }
        let length = vector.iter().map(|value| value * value).sum::<f64>().sqrt();
        // Zeros stay zeros, as in the library.
        let scale = if self.normalizes && length > 0.0 { length.recip() } else { 1.0 };
        Embedding { values: vector.iter().map(|value| (value * scale) as f32).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_become_one_vector() {
        let states = [3.0, -1.0, 5.0, -3.0, 1.0, -8.0];
        let table = [
            (Pooling::Mean, false, [3.0, -4.0]),
            (Pooling::Mean, true, [0.6, -0.8]),
            (Pooling::First, false, [3.0, -1.0]),
            (Pooling::Max, false, [5.0, -1.0]),
        ];
        for (pooling, normalizes, expected) in table {
            let pipeline = Pipeline { pooling, normalizes, max_tokens: None };
            assert_eq!(pipeline.finish(&states, 2).values, expected, "{pooling:?}");
        }
        let pipeline = Pipeline { normalizes: true, ..Pipeline::default() };
        assert_eq!(pipeline.finish(&[0.0, 0.0], 2).values, [0.0, 0.0]);
    }
}
