//! Depthwise convolution: every input channel has its own outputs.

use rayon::prelude::*;

use super::planes::{Planes, Weighted};
use super::scratch::Scratch;

/// Multiply-adds above which channels are shared out among the threads.
const PARALLEL: usize = 1 << 15;

/// `out` is `[batch, channels * multiplier, ..]`, `input` is `[batch, channels, ..]`, `weight` is `[channels * multiplier, taps]`.
pub(crate) fn depthwise(
    planes: &Planes,
    channels: usize,
    multiplier: usize,
    input: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    let (input_len, output_len) = (planes.input_len(), planes.output_len());
    if out.is_empty() {
        return;
    }
    let taps = planes.taps();
    // A few channels at a time: the scratch is fetched once for all.
    let group = (1 << 14) / (multiplier * output_len * taps).max(1) + 1;
    let block = |(index, out): (usize, &mut [f32])| {
        let mut padded = Scratch::new(planes.padded_len());
        let mut flat = Scratch::new(planes.flat_len());
        for (i, out) in out.chunks_exact_mut(multiplier * output_len).enumerate() {
            let plane = index * group + i;
            let first = (plane % channels) * multiplier;
            let source = &input[plane * input_len..][..input_len];
            planes.fill(&mut padded, source, 0.0, |x| x);
            for (j, out) in out.chunks_exact_mut(output_len).enumerate() {
                let weight = &weight[(first + j) * taps..][..taps];
                let start = bias.map_or(0.0, |bias| bias[first + j]);
                planes.fold(&padded, &mut flat, out, start, Weighted(weight));
            }
        }
    };
    let parallel = rayon::current_num_threads() > 1 && out.len().saturating_mul(taps) >= PARALLEL;
    let size = group * multiplier * output_len;
    if parallel {
        out.par_chunks_mut(size).enumerate().for_each(block);
    } else {
        out.chunks_mut(size).enumerate().for_each(block);
    }
}
