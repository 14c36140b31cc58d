//! The forward pass of an encoder over texts of different lengths, one behind the other.

use engine::TokenId;

use super::{Bert, Dense, LayerWeights};
use crate::cpu::activations::Activations;
use crate::cpu::bidirectional::{Texts, attend};
use crate::cpu::linear::Compute;
use crate::cpu::postnorm::{add_and_norm, add_bias, add_bias_and_gelu, layer_norm};

/// Rows that a thread takes at once in what is done row by row.
const ROWS: usize = 16;

/// The memory of a forward pass; kept between passes.
#[derive(Debug, Default)]
pub struct Buffers {
    residual: Vec<f32>,
    qkv: Vec<f32>,
    keys: Vec<f32>,
    attended: Vec<f32>,
    wide: Vec<f32>,
    update: Vec<f32>,
    activations: Activations,
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
        let lengths: Vec<usize> = texts.iter().map(|text| text.len()).collect();
        self.embed(compute, texts, buffers);
        for layer in &self.layers {
            self.attention(compute, layer, &lengths, buffers);
            self.feed_forward(compute, layer, buffers);
        }
        &buffers.residual
    }

    fn embed(&self, compute: &Compute, texts: &[&[TokenId]], buffers: &mut Buffers) {
        let hidden = self.sizes.hidden;
        let tokens: usize = texts.iter().map(|text| text.len()).sum();
        buffers.residual.resize(tokens * hidden, 0.0);
        let mut rows = buffers.residual.chunks_exact_mut(hidden);
        for text in texts {
            let positions = self.positions.chunks_exact(hidden).skip(self.sizes.first_position);
            for ((&token, position), row) in text.iter().zip(positions).zip(&mut rows) {
                self.words.unpack_row(token as usize, row);
                row.iter_mut().zip(position).for_each(|(value, place)| *value += place);
            }
        }
        let rows = buffers.residual.chunks_mut(ROWS * hidden);
        compute.pool.each(rows, || (), |(), rows| layer_norm(compute.isa, rows, &self.norm));
    }

    fn attention(
        &self,
        compute: &Compute,
        layer: &LayerWeights,
        lengths: &[usize],
        buffers: &mut Buffers,
    ) {
        let Dense { matrix, bias } = &layer.query_key_value;
        let tokens = buffers.residual.len() / self.sizes.hidden;
        buffers.qkv.resize(tokens * matrix.rows(), 0.0);
        matrix.apply(compute, &buffers.residual, &mut buffers.activations, &mut buffers.qkv);
        let rows = buffers.qkv.chunks_mut(ROWS * matrix.rows());
        compute.pool.each(rows, || (), |(), rows| add_bias(compute.isa, rows, bias));
        buffers.attended.resize(buffers.residual.len(), 0.0);
        attend(
            (&compute.pool, compute.isa),
            self.sizes.heads(),
            Texts { qkv: &buffers.qkv, lengths },
            &mut buffers.keys,
            &mut buffers.attended,
        );
        let Dense { matrix, bias } = &layer.attention_output;
        buffers.update.resize(buffers.residual.len(), 0.0);
        matrix.apply(compute, &buffers.attended, &mut buffers.activations, &mut buffers.update);
        let width = ROWS * self.sizes.hidden;
        let rows = buffers.residual.chunks_mut(width).zip(buffers.update.chunks(width));
        compute.pool.each(
            rows,
            || (),
            |(), (rows, update)| {
                add_and_norm(compute.isa, rows, update, bias, &layer.attention_norm);
            },
        );
    }

    fn feed_forward(&self, compute: &Compute, layer: &LayerWeights, buffers: &mut Buffers) {
        let tokens = buffers.residual.len() / self.sizes.hidden;
        let Dense { matrix, bias } = &layer.up;
        buffers.wide.resize(tokens * matrix.rows(), 0.0);
        matrix.apply(compute, &buffers.residual, &mut buffers.activations, &mut buffers.wide);
        let rows = buffers.wide.chunks_mut(ROWS * matrix.rows());
        compute.pool.each(rows, || (), |(), rows| add_bias_and_gelu(compute.isa, rows, bias));
        let Dense { matrix, bias } = &layer.down;
        matrix.apply(compute, &buffers.wide, &mut buffers.activations, &mut buffers.update);
        let width = ROWS * self.sizes.hidden;
        let rows = buffers.residual.chunks_mut(width).zip(buffers.update.chunks(width));
        compute.pool.each(
            rows,
            || (),
            |(), (rows, update)| {
                add_and_norm(compute.isa, rows, update, bias, &layer.output_norm);
            },
        );
    }
}
