//! Depthwise convolution: every input channel has its own outputs.

use rayon::prelude::*;
use rten_simd::{Isa, SimdOp};

use super::planes::{Planes, Weighted};
use super::scratch::Scratch;

/// Multiply-adds above which channels are shared out among the threads.
const PARALLEL: usize = 1 << 17;

/// A depthwise convolution of `[batch, channels, ..]` to `[batch, channels * multiplier, ..]`.
#[derive(Clone, Copy)]
pub(crate) struct Depthwise<'a> {
    pub(crate) planes: &'a Planes,
    pub(crate) channels: usize,
    pub(crate) multiplier: usize,
    /// `[channels * multiplier, taps]`
    pub(crate) weight: &'a [f32],
    pub(crate) bias: Option<&'a [f32]>,
}

impl Depthwise<'_> {
    pub(crate) fn run(self, input: &[f32], out: &mut [f32]) {
        let size = self.multiplier * self.planes.output_len();
        if size == 0 {
            return;
        }
        let threads = rayon::current_num_threads();
        if threads > 1 && out.len().saturating_mul(self.planes.taps()) >= PARALLEL {
            let count = (out.len() / size).div_ceil(2 * threads).max(1);
            out.par_chunks_mut(count * size).enumerate().for_each(|(i, out)| {
                Channels { layer: self, first: i * count, input, out }.dispatch();
            });
        } else {
            Channels { layer: self, first: 0, input, out }.dispatch();
        }
    }
}

/// Some channels of a batch, from number `first`.
struct Channels<'a> {
    layer: Depthwise<'a>,
    first: usize,
    input: &'a [f32],
    out: &'a mut [f32],
}

impl SimdOp for Channels<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let Depthwise { planes, channels, multiplier, weight, bias } = self.layer;
        let (input_len, output_len, taps) = (planes.input_len(), planes.output_len(), planes.taps());
        let mut padded = Scratch::new(planes.padded_len());
        for (i, out) in self.out.chunks_exact_mut(multiplier * output_len).enumerate() {
            let plane = self.first + i;
            let first = (plane % channels) * multiplier;
            planes.fill_in(isa, &mut padded, &self.input[plane * input_len..][..input_len], 0.0);
            for (j, out) in out.chunks_exact_mut(output_len).enumerate() {
                let weight = &weight[(first + j) * taps..][..taps];
                let start = bias.map_or(0.0, |bias| bias[first + j]);
                planes.fold_in(isa, &padded, out, start, Weighted(weight));
            }
        }
    }
}
