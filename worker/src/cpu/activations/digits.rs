//! Digits of activations and the memory that they lie in.

use super::{BLOCK, PANEL_ROWS};

/// A block of some rows: of four, or of as many as an instruction for whole tiles takes.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(in crate::cpu) struct Panel<const N: usize = PANEL_ROWS> {
    /// First digits.
    pub values: [[i8; BLOCK]; N],
    /// What a first digit is worth.
    pub scales: [f32; N],
    /// -8 times the sum of the first digits: where a product with codes of 4 bits begins whose centre
    /// is 8.
    pub starts: [i32; N],
    /// -16 times the sums of the first and of the second 16 of them.
    pub half_starts: [[i16; 2]; N],
}

impl<const N: usize> Default for Panel<N> {
    fn default() -> Self {
        let (scales, starts, half_starts) = ([0.0; N], [0; N], [[0; 2]; N]);
        Self { values: [[0; BLOCK]; N], scales, starts, half_starts }
    }
}

impl<const N: usize> Panel<N> {
    /// Keeps the sums of the two halves of a row's digits.
    #[inline(always)]
    pub(in crate::cpu) fn set_sums(&mut self, row: usize, halves: [i32; 2]) {
        self.starts[row] = -8 * (halves[0] + halves[1]);
        // At most 16 * 16 * 127 of size.
        self.half_starts[row] = halves.map(|half| (-16 * half) as i16);
    }

    /// Returns the sum of a row's digits.
    #[inline(always)]
    pub(in crate::cpu) fn sum(&self, row: usize) -> f32 {
        self.starts[row] as f32 * (-1.0 / 8.0)
    }
}

/// The second digits of a block of one row.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(16))]
pub(in crate::cpu) struct Second {
    /// Second digits.
    pub values: [i8; BLOCK],
    /// What a second digit is worth.
    pub scale: f32,
    /// Which block of the row.
    pub block: u32,
    /// Which row of the panel.
    pub row: u32,
    /// The sums of the first and of the second 16 of them.
    pub half_sums: [i16; 2],
}

impl Second {
    /// Returns the sum of the second digits.
    #[inline(always)]
    pub(in crate::cpu) fn sum(&self) -> i32 {
        i32::from(self.half_sums[0]) + i32::from(self.half_sums[1])
    }
}

/// The digits of rows; the memory is kept between uses.
#[derive(Debug, Default)]
pub(super) struct Digits<const N: usize = PANEL_ROWS> {
    panels: Vec<Panel<N>>,
    seconds: Vec<Second>,
    counts: Vec<u32>,
}

/// Room for the digits of rows.
pub(in crate::cpu) struct DigitsMut<'a, const N: usize = PANEL_ROWS> {
    pub panels: &'a mut [Panel<N>],
    pub seconds: &'a mut [Second],
    pub counts: &'a mut [u32],
}

/// Cuts off the next elements, as many as there are.
pub(super) fn cut<'a, T>(rest: &mut &'a mut [T], count: usize) -> &'a mut [T] {
    let count = count.min(rest.len());
    rest.split_off_mut(..count).unwrap_or_default()
}

/// Makes a vector at least so long; it keeps its length otherwise, since making it longer again
/// would write it anew.
pub(super) fn reserve<T: Clone + Default>(numbers: &mut Vec<T>, length: usize) {
    if numbers.len() < length {
        numbers.resize(length, T::default());
    }
}

impl<const N: usize> Digits<N> {
    /// Makes room for so many rows of so many blocks each.
    pub(super) fn make_room(&mut self, rows: usize, blocks: usize) -> DigitsMut<'_, N> {
        let panels = rows.div_ceil(N);
        reserve(&mut self.panels, panels * blocks);
        reserve(&mut self.seconds, panels * N * blocks);
        reserve(&mut self.counts, panels);
        DigitsMut {
            panels: &mut self.panels[..panels * blocks],
            seconds: &mut self.seconds[..panels * N * blocks],
            counts: &mut self.counts[..panels],
        }
    }

    /// Returns the panels of so many rows, the room of their second digits and how many these are.
    pub(super) fn get(&self, rows: usize, blocks: usize) -> (&[Panel<N>], &[Second], &[u32]) {
        let panels = rows.div_ceil(N);
        let seconds = &self.seconds[..panels * N * blocks];
        (&self.panels[..panels * blocks], seconds, &self.counts[..panels])
    }
}

impl<'a, const N: usize> DigitsMut<'a, N> {
    /// Cuts off the room of the next rows, of whole panels, as much as there is.
    pub(super) fn cut(&mut self, rows: usize, blocks: usize) -> DigitsMut<'a, N> {
        debug_assert!(self.panels.is_empty() || rows.is_multiple_of(N));
        let panels = rows / N;
        DigitsMut {
            panels: cut(&mut self.panels, panels * blocks),
            seconds: cut(&mut self.seconds, panels * N * blocks),
            counts: cut(&mut self.counts, panels),
        }
    }
}
