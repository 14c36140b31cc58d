//! An adapter's matrices: read, checked against the base, and applied to rows.

use std::collections::BTreeSet;
use std::ops::Range;

use super::Settings;
use crate::Error;
use crate::cpu::linear::Compute;
use crate::cpu::low_rank::{LowRank, add_update};
use crate::weights::{self, Weights};

/// A matrix of a layer that an adapter may update.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// The queries.
    Query,
    /// The keys.
    Key,
    /// The values.
    Value,
    /// What attention gives.
    Output,
    /// The gate of the feed-forward layer.
    Gate,
    /// What it gates.
    Up,
    /// What comes out of it.
    Down,
}

impl Target {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Query, Self::Key, Self::Value, Self::Output, Self::Gate, Self::Up, Self::Down];

    /// Returns the name in an adapter's files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Query => "q_proj",
            Self::Key => "k_proj",
            Self::Value => "v_proj",
            Self::Output => "o_proj",
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
        }
    }

    /// Returns the target of a name.
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|target| target.name() == name)
    }

    /// Returns the part of a layer that it belongs to.
    fn block(self) -> &'static str {
        match self {
            Self::Query | Self::Key | Self::Value | Self::Output => "self_attn",
            Self::Gate | Self::Up | Self::Down => "mlp",
        }
    }
}

/// The sizes of the base that an adapter has to fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of all query heads.
    pub query: usize,
    /// Width of all key heads, and of all value heads.
    pub kv: usize,
    /// Width of the feed-forward layer.
    pub feed_forward: usize,
}

impl Shape {
    /// Returns the columns and rows of a matrix.
    pub(super) fn of(&self, target: Target) -> (usize, usize) {
        match target {
            Target::Query => (self.hidden, self.query),
            Target::Key | Target::Value => (self.hidden, self.kv),
            Target::Output => (self.query, self.hidden),
            Target::Gate | Target::Up => (self.hidden, self.feed_forward),
            Target::Down => (self.feed_forward, self.hidden),
        }
    }
}

/// An adapter's updates, layer by layer.
#[derive(Debug)]
pub struct Adapter {
    /// `[layers * targets]`
    updates: Vec<Option<LowRank>>,
    /// What the whole content comes to: two adapters of one number do the same.
    fingerprint: u64,
}

impl Adapter {
    /// Reads an adapter.
    ///
    /// Errors: a tensor that is missing, of another shape or not known; the text names it.
    pub fn read(weights: &dyn Weights, settings: &Settings, shape: Shape) -> Result<Self, Error> {
        if let Some(layer) = settings.layers.iter().flatten().find(|&&layer| layer >= shape.layers)
        {
            let layers = shape.layers;
            let text = format!("layer {layer} is updated, the base has {layers} layers");
            return Err(Error::Model(text));
        }
        let mut seen = BTreeSet::new();
        let mut updates = Vec::with_capacity(shape.layers * Target::ALL.len());
        for layer in 0..shape.layers {
            for target in Target::ALL {
                let names = names(layer, target);
                let is_there = names.iter().any(|name| weights.has_tensor(name));
                let is_meant = settings.layers.as_ref().is_none_or(|all| all.contains(&layer))
                    && settings.targets.as_ref().is_some_and(|all| all.contains(&target));
                if !is_there && !is_meant {
                    updates.push(None);
                    continue;
                }
                updates.push(Some(read_update(weights, settings, shape.of(target), &names)?));
                seen.extend(names);
            }
        }
        if let Some(name) = weights.names().find(|name| !seen.contains(*name)) {
            let text = format!("tensor `{name}`: is no part of an adapter that is known");
            return Err(Error::Model(text));
        }
        if seen.is_empty() {
            return Err(Error::Model("the adapter updates nothing".into()));
        }
        let fingerprint = fingerprint(&updates);
        Ok(Self { updates, fingerprint })
    }

    /// Returns a number that stands for the content.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// Returns the update of a matrix.
    pub(crate) fn update(&self, layer: usize, target: Target) -> Option<&LowRank> {
        self.updates[layer * Target::ALL.len() + target as usize].as_ref()
    }
}

/// Returns the names of both matrices of an update.
pub(super) fn names(layer: usize, target: Target) -> [String; 2] {
    ["A", "B"].map(|side| {
        let (block, name) = (target.block(), target.name());
        format!("base_model.model.model.layers.{layer}.{block}.{name}.lora_{side}.weight")
    })
}

fn read_update(
    weights: &dyn Weights,
    settings: &Settings,
    (columns, rows): (usize, usize),
    [down, up]: &[String; 2],
) -> Result<LowRank, Error> {
    let down = floats(weights, down, [columns, settings.rank])?;
    let up = floats(weights, up, [settings.rank, rows])?;
    Ok(LowRank::new(settings.rank, settings.scale, down, &up))
}

/// Reads a matrix of floats; its columns come first.
fn floats(source: &dyn Weights, name: &str, shape: [usize; 2]) -> Result<Vec<f32>, Error> {
    let stored = source.tensor(name)?;
    if stored.dims != shape {
        let [columns, rows] = shape;
        let text = format!("tensor `{name}`: expected [{columns}, {rows}], got {:?}", stored.dims);
        return Err(Error::Model(text));
    }
    let values = weights::floats(name, &stored)?;
    match values.iter().all(|value| value.is_finite()) {
        true => Ok(values),
        false => Err(Error::Model(format!("tensor `{name}`: holds what is no finite number"))),
    }
}

/// Hashes all numbers (FNV-1a over words, then mixed), so that it is the same on every machine.
fn fingerprint(updates: &[Option<LowRank>]) -> u64 {
    let mut hash = 0xCBF2_9CE4_8422_2325u64;
    let mut take = |word: u64| {
        hash = (hash ^ word).wrapping_mul(0x0000_0100_0000_01B3);
        hash ^= hash >> 29;
    };
    for update in updates {
        match update {
            None => take(1),
            Some(update) => update.words().for_each(|word| take(u64::from(word) << 1)),
        }
    }
    hash
}

/// The adapters of a pass: which of its tokens belong to which.
#[derive(Clone, Debug, Default)]
pub struct Deltas<'a> {
    /// Neighbouring tokens of one adapter.
    spans: Vec<(Range<usize>, &'a Adapter)>,
}

/// Where an update of a product goes: some columns of its rows.
#[derive(Debug)]
pub struct Part<'a> {
    /// `[tokens, stride]`
    pub rows: &'a mut [f32],
    /// The length of a row.
    pub stride: usize,
    /// The first column.
    pub first: usize,
}

impl<'a> Deltas<'a> {
    /// Adds the next `tokens` tokens of the pass, which begin at `start`.
    pub fn push(&mut self, start: usize, tokens: usize, adapter: &'a Adapter) {
        match self.spans.last_mut() {
            Some((span, last)) if span.end == start && std::ptr::eq(*last, adapter) => {
                span.end += tokens;
            }
            _ => self.spans.push((start..start + tokens, adapter)),
        }
    }

    /// Returns those of some of the tokens alone, given in ascending order.
    pub fn narrow(&self, tokens: &[usize]) -> Self {
        let mut narrow = Self::default();
        for (span, adapter) in &self.spans {
            let start = tokens.partition_point(|&token| token < span.start);
            let end = tokens.partition_point(|&token| token < span.end);
            if start < end {
                narrow.push(start, end - start, adapter);
            }
        }
        narrow
    }

    /// Returns whether any of the tokens' adapters updates one of these matrices.
    pub fn touches(&self, layer: usize, targets: &[Target]) -> bool {
        let has = |adapter: &Adapter| {
            targets.iter().any(|target| adapter.update(layer, *target).is_some())
        };
        self.spans.iter().any(|(_, adapter)| has(adapter))
    }

    /// Returns the tokens whose adapters update one of these matrices.
    pub fn spans(
        &self,
        layer: usize,
        targets: [Target; 2],
    ) -> impl Iterator<Item = Range<usize>> + '_ {
        let has = move |adapter: &Adapter| {
            targets.iter().any(|target| adapter.update(layer, *target).is_some())
        };
        self.spans.iter().filter(move |(_, adapter)| has(adapter)).map(|(span, _)| span.clone())
    }

    /// Adds the updates of a matrix: `x` is `[tokens, columns]` of the whole pass.
    pub fn add(
        &self,
        compute: &Compute,
        (layer, target): (usize, Target),
        x: &[f32],
        out: Part<'_>,
    ) {
        let Part { rows, stride, first } = out;
        for (span, adapter) in &self.spans {
            let Some(update) = adapter.update(layer, target) else { continue };
            let own = &mut rows[span.start * stride..span.end * stride];
            let x = x[span.start * update.columns()..].chunks_exact(update.columns());
            let jobs = own.chunks_exact_mut(stride).zip(x);
            compute.pool.each(jobs, |_, (row, x)| {
                let out = &mut row[first..first + update.rows()];
                add_update(compute.isa, update, x, &mut Vec::new(), out);
            });
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
