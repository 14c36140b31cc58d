//! The forward pass of an encoder over texts of different lengths, one behind the other.

use engine::TokenId;

use super::{Bert, Dense, LayerWeights};
use crate::cpu::activations::Activations;
use crate::cpu::bidirectional::{Texts, attend};
use crate::cpu::linear::{Compute, Linear, Product};
use crate::cpu::postnorm::{LayerNorm, add_and_norm, add_bias, add_bias_and_gelu, layer_norm};

/// Rows that a thread takes at once in what is done row by row.
const ROWS: usize = 16;

/// The memory of a forward pass; kept between passes.
#[derive(Debug, Default)]
pub struct Buffers {
    /// The hidden states.
    states: Activations,
    qkv: Vec<f32>,
    keys: Vec<f32>,
    /// What attention and the activation give.
    inner: Activations,
    update: Vec<f32>,
}

impl Bert {
    /// Computes the hidden states of all tokens of some texts: `[tokens, hidden]`, text after text.
    /// A token's result depends on its own text alone, to the last bit.
    ///
    /// Every token is one of the vocabulary, and no text is longer than the context.
    pub fn forward<'a>(
        &self,
        compute: &Compute,
        texts: &[&[TokenId]],
        buffers: &'a mut Buffers,
    ) -> &'a [f32] {
        self.forward_with(compute, texts, buffers, || {})
    }

    /// Does the same, and calls something between two layers, where other models may compute.
    pub fn forward_with<'a>(
        &self,
        compute: &Compute,
        texts: &[&[TokenId]],
        buffers: &'a mut Buffers,
        mut between_layers: impl FnMut(),
    ) -> &'a [f32] {
        let lengths: Vec<usize> = texts.iter().map(|text| text.len()).collect();
        self.embed(compute, texts, buffers);
        for (index, layer) in self.layers.iter().enumerate() {
            if index > 0 {
                between_layers();
            }
            self.attention(compute, layer, &lengths, buffers);
            self.feed_forward(compute, layer, lengths.iter().sum(), buffers);
        }
        buffers.states.rows()
    }

    fn embed(&self, compute: &Compute, texts: &[&[TokenId]], buffers: &mut Buffers) {
        let hidden = self.sizes.hidden;
        let tokens: usize = texts.iter().map(|text| text.len()).sum();
        let states = buffers.states.floats(tokens, hidden);
        let mut rows = states.chunks_exact_mut(hidden);
        for text in texts {
            let positions = self.positions.chunks_exact(hidden).skip(self.sizes.first_position);
            for ((&token, position), row) in text.iter().zip(positions).zip(&mut rows) {
                self.words.unpack_row(token as usize, row);
                row.iter_mut().zip(position).for_each(|(value, place)| *value += place);
            }
        }
        let rows = states.chunks_mut(ROWS * hidden);
        compute.pool.each(rows, |_, rows| layer_norm(compute.isa, rows, &self.norm));
    }

    fn attention(
        &self,
        compute: &Compute,
        layer: &LayerWeights,
        lengths: &[usize],
        buffers: &mut Buffers,
    ) {
        let tokens = lengths.iter().sum::<usize>();
        let Dense { matrix, bias } = &layer.query_key_value;
        buffers.qkv.resize(tokens * matrix.rows(), 0.0);
        multiply(matrix, compute, &mut buffers.states, &mut buffers.qkv);
        let rows = buffers.qkv.chunks_mut(ROWS * matrix.rows());
        compute.pool.each(rows, |_, rows| add_bias(compute.isa, rows, bias));
        attend(
            (&compute.pool, compute.isa),
            self.sizes.heads(),
            Texts { qkv: &buffers.qkv, lengths },
            &mut buffers.keys,
            buffers.inner.floats(tokens, self.sizes.hidden),
        );
        self.add_product(compute, (&layer.attention_output, &layer.attention_norm), buffers);
    }

    fn feed_forward(
        &self,
        compute: &Compute,
        layer: &LayerWeights,
        tokens: usize,
        buffers: &mut Buffers,
    ) {
        let Dense { matrix, bias } = &layer.up;
        let wide = buffers.inner.floats(tokens, matrix.rows());
        multiply(matrix, compute, &mut buffers.states, wide);
        let rows = wide.chunks_mut(ROWS * matrix.rows());
        compute.pool.each(rows, |_, rows| add_bias_and_gelu(compute.isa, rows, bias));
        self.add_product(compute, (&layer.down, &layer.output_norm), buffers);
    }

    /// Adds a product of what is inside to the hidden states, and normalises them.
    fn add_product(
        &self,
        compute: &Compute,
        (Dense { matrix, bias }, norm): (&Dense, &LayerNorm),
        buffers: &mut Buffers,
    ) {
        let (width, count) = (self.sizes.hidden, buffers.states.rows().len());
        buffers.update.resize(count, 0.0);
        multiply(matrix, compute, &mut buffers.inner, &mut buffers.update);
        let states = buffers.states.floats(count / width, width);
        let rows = states.chunks_mut(ROWS * width).zip(buffers.update.chunks(ROWS * width));
        compute.pool.each(rows, |_, (rows, update)| {
            add_and_norm(compute.isa, rows, update, bias, norm);
        });
    }
}

/// Writes `x * W^T`, `[tokens, rows]`.
fn multiply(matrix: &Linear, compute: &Compute, x: &mut Activations, out: &mut [f32]) {
    x.fill(compute, matrix.form(compute.isa), |_, _| {});
    matrix.apply(compute, x, Product::Set(out));
}
