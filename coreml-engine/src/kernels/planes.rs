//! Windows over one channel at a time: depthwise convolution and pooling.
//!
//! The channel is copied once into a padded plane. With strides it is split by phase (columns `0, s, 2s, ..` then `1, s + 1, ..`),
//! so that element `t` of all windows lies side by side: the result is a fold of shifted contiguous runs, whatever the kernel,
//! stride, dilation, padding and rank. No element is checked against the border of the image and every load is a full vector.

use rayon::prelude::*;
use rten_simd::ops::{BitOps, NumOps};
use rten_simd::{Isa, Simd, SimdOp};

use super::scratch::Scratch;
use super::window::Axis;
use crate::error::KernelError;
use crate::ops::Run;

/// No tile of vectors is longer.
pub(crate) const SLACK: usize = 64;

/// Elements of padded planes that are filled before they are read: they fit the first cache with their result, and are many enough
/// that what is read was not written just before.
const CACHED: usize = 6 << 10;

/// Multiply-adds above which channels are shared out among the threads.
const PARALLEL: usize = 1 << 17;

/// Where the elements of the windows lie in the padded plane. Depends on shapes only.
#[derive(Debug)]
pub(crate) struct Planes {
    axes: [Axis; 3],
    /// Per axis, the phases that some element of the window has.
    phases: [Vec<usize>; 3],
    /// Rows of the result that one filling of the plane serves; all of them, or few enough for the first cache.
    band: usize,
    /// Extent of one phase.
    size: [usize; 3],
    /// Per phase of the last axis, which of its steps are elements of the input.
    spans: Vec<Span>,
    /// Per element of the window, its offset from the window's place.
    offsets: Vec<usize>,
    /// Windows have three rows, each one below the other in the plane.
    three_rows: bool,
}

/// Steps `first..first + count` of a phase are every `stride`-th element of the input from `start` on; the others are padding.
#[derive(Clone, Copy, Debug)]
struct Span {
    first: usize,
    start: usize,
    count: usize,
}

impl Planes {
    /// Planes that hold a whole channel.
    pub(crate) fn whole(run: &Run<'_, '_>, axes: [Axis; 3]) -> Result<Self, KernelError> {
        Self::new(run, axes, axes[1].output)
    }

    /// Planes that hold as many rows as the first cache does.
    pub(crate) fn banded(run: &Run<'_, '_>, axes: [Axis; 3]) -> Result<Self, KernelError> {
        let whole = Self::whole(run, axes)?;
        if whole.padded_len() <= CACHED || axes[0].kernel * axes[0].output > 1 {
            return Ok(whole);
        }
        let rows_of_one = whole.phases[1].len() * whole.phases[2].len() * whole.size[2];
        let halo = whole.size[1] - axes[1].output;
        let band = (CACHED / rows_of_one).saturating_sub(halo).max(4 * halo).next_multiple_of(4);
        Self::new(run, axes, band.clamp(1, axes[1].output))
    }

    fn new(run: &Run<'_, '_>, axes: [Axis; 3], band: usize) -> Result<Self, KernelError> {
        run.check_size(&axes.map(|axis| axis.kernel))?;
        let split = axes.map(|axis| Self::split(&axis));
        let extents = [axes[0].output, band, axes[2].output];
        let size: [usize; 3] = std::array::from_fn(|i| {
            let furthest = split[i].1.iter().map(|&(_, step)| step).max().unwrap_or(0);
            furthest + extents[i]
        });
        let phases = split.each_ref().map(|(phases, _)| phases.clone());
        let [z, y, x] = phases.each_ref().map(Vec::len);
        run.check_size(&[z, y, x, size[0], size[1], size[2]])?;
        let mut offsets = Vec::with_capacity(axes.iter().map(|axis| axis.kernel).product());
        for &(pz, qz) in &split[0].1 {
            for &(py, qy) in &split[1].1 {
                for &(px, qx) in &split[2].1 {
                    let plane = (pz * y + py) * x + px;
                    offsets.push(((plane * size[0] + qz) * size[1] + qy) * size[2] + qx);
                }
            }
        }
        let spans = phases[2].iter().map(|&phase| Self::span(&axes[2], phase, size[2])).collect();
        let [z, y, _] = axes;
        let three_rows = z.kernel == 1 && y.kernel == 3 && y.stride == 1 && y.dilation == 1;
        Ok(Self { axes, phases, band, size, spans, offsets, three_rows })
    }

    /// The phases in use, and per element of the window the index of its phase and its step in it.
    fn split(axis: &Axis) -> (Vec<usize>, Vec<(usize, usize)>) {
        let mut phases = Vec::new();
        let taps = (0..axis.kernel)
            .map(|tap| {
                let position = tap * axis.dilation;
                let phase = position % axis.stride;
                let index = phases.iter().position(|&p| p == phase).unwrap_or_else(|| {
                    phases.push(phase);
                    phases.len() - 1
                });
                (index, position / axis.stride)
            })
            .collect();
        (phases, taps)
    }

    pub(crate) fn axes(&self) -> &[Axis; 3] {
        &self.axes
    }

    /// Elements of the input.
    pub(crate) fn input_len(&self) -> usize {
        self.axes.iter().map(|axis| axis.input).product()
    }

    /// Elements of the result.
    pub(crate) fn output_len(&self) -> usize {
        self.axes.iter().map(|axis| axis.output).product()
    }

    /// Elements of the padded plane, with room for a vector to be read at each of its elements.
    pub(crate) fn padded_len(&self) -> usize {
        self.phases.iter().map(Vec::len).chain(self.size).product::<usize>() + SLACK
    }

    /// Number of elements of a window.
    pub(crate) fn taps(&self) -> usize {
        self.offsets.len()
    }

    /// Per element of the window, how far it lies from the window's place.
    pub(crate) fn offsets(&self) -> &[usize] {
        &self.offsets
    }

    /// The place of a window in the padded plane of a whole channel.
    pub(crate) fn place(&self, [z, y, x]: [usize; 3]) -> usize {
        (z * self.size[1] + y) * self.size[2] + x
    }

    /// Pads whole channels, each of which takes [`Planes::padded_len`].
    pub(crate) fn fill(&self, padded: &mut [f32], input: &[f32]) {
        let task = |(channel, padded): (usize, &mut [f32])| {
            FillChannel { planes: self, padded, input, start: channel * self.input_len() }.dispatch();
        };
        if rayon::current_num_threads() > 1 && padded.len() >= PARALLEL {
            padded.par_chunks_exact_mut(self.padded_len()).enumerate().for_each(task);
        } else {
            padded.chunks_exact_mut(self.padded_len()).enumerate().for_each(task);
        }
    }

    /// Copies what rows `first..first + band` of the result read of a channel into the padded plane. The channel begins at
    /// `input[start]`; what lies around it is read but not used.
    #[inline(always)]
    fn fill_in<I: Isa>(
        &self,
        isa: I,
        padded: &mut [f32],
        input: &[f32],
        start: usize,
        first: usize,
        padding: f32,
    ) {
        let [_, height, width] = self.axes.map(|axis| axis.input);
        let stride = self.axes[2].stride;
        let pitch = self.size[2];
        let mut row = 0;
        for &pz in &self.phases[0] {
            for &py in &self.phases[1] {
                for span in &self.spans {
                    for z in 0..self.size[0] {
                        let z = Self::source(&self.axes[0], z, pz);
                        for y in 0..self.size[1] {
                            let to = &mut padded[row..];
                            row += pitch;
                            // Each vector may write beyond its row: into the next one, which comes later, or into the slack.
                            match (z, Self::source(&self.axes[1], first + y, py)) {
                                (Some(z), Some(y)) if span.count > 0 => {
                                    let from = start + (z * height + y) * width + span.start;
                                    if stride == 1 {
                                        pad_row(isa, to, pitch, input, from, *span, padding);
                                    } else {
                                        fill_spilling(isa, to, padding, span.first);
                                        let body = &mut to[span.first..];
                                        copy_strided(isa, body, &input[from..], span.count, stride);
                                        let end = span.first + span.count;
                                        fill_spilling(isa, &mut to[end..], padding, pitch - end);
                                    }
                                }
                                _ => fill_spilling(isa, to, padding, pitch),
                            }
                        }
                    }
                }
            }
        }
    }

    /// Which element of the input lies at step `q` of a phase.
    #[inline(always)]
    fn source(axis: &Axis, q: usize, phase: usize) -> Option<usize> {
        (q * axis.stride + phase).checked_sub(axis.before).filter(|&i| i < axis.input)
    }

    /// Which steps of a phase are elements of the input.
    fn span(axis: &Axis, phase: usize, size: usize) -> Span {
        let first = axis.before.saturating_sub(phase).div_ceil(axis.stride).min(size);
        let start = (first * axis.stride + phase).saturating_sub(axis.before);
        let count = axis.input.saturating_sub(start).div_ceil(axis.stride).min(size - first);
        Span { first, start, count }
    }

    /// Folds the windows of every channel of `input` into `multiplier` channels of `out`. `fold` says what a channel of `out`
    /// begins with and what is done with its elements.
    pub(crate) fn fold<F: Fold>(
        &self,
        input: &[f32],
        out: &mut [f32],
        multiplier: usize,
        padding: f32,
        fold: impl Fn(usize) -> (f32, F) + Copy + Sync,
    ) {
        let size = multiplier * self.output_len();
        if size == 0 {
            return;
        }
        let threads = rayon::current_num_threads();
        let channels = if threads > 1 && out.len().saturating_mul(self.taps()) >= PARALLEL {
            (out.len() / size).div_ceil(2 * threads).max(1)
        } else {
            out.len() / size
        };
        let task = |(i, out): (usize, &mut [f32])| {
            let first = i * channels;
            let input = &input[first * self.input_len()..];
            FoldChannels {
                planes: self,
                input,
                out,
                multiplier,
                padding,
                fold: |i| fold(first * multiplier + i),
            }
            .dispatch();
        };
        if channels * size < out.len() {
            out.par_chunks_mut(channels * size).enumerate().for_each(task);
        } else {
            task((0, out));
        }
    }

    /// Folds the windows of rows `first..first + band` into their place in `out`, which begins with the channel; what follows
    /// the channel may be overwritten.
    #[inline(always)]
    fn fold_band<I: Isa, F: Fold>(
        &self,
        isa: I,
        padded: &[f32],
        first: usize,
        out: &mut [f32],
        start: f32,
        fold: F,
    ) {
        let [depth, height, width] = self.axes.map(|axis| axis.output);
        let [_, pitch_y, pitch_x] = self.size;
        let rows = (height - first).min(self.band);
        for z in 0..depth {
            let image = Image {
                padded: &padded[z * pitch_y * pitch_x..],
                pitch: pitch_x,
                offsets: &self.offsets,
                three_rows: self.three_rows,
            };
            fold_image(isa, image, rows, width, &mut out[(z * height + first) * width..], start, fold);
        }
    }
}

struct FillChannel<'a> {
    planes: &'a Planes,
    padded: &'a mut [f32],
    input: &'a [f32],
    start: usize,
}

impl SimdOp for FillChannel<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        self.planes.fill_in(isa, self.padded, self.input, self.start, 0, 0.0);
    }
}

/// [`Planes::fold`] on one thread.
struct FoldChannels<'a, M> {
    planes: &'a Planes,
    input: &'a [f32],
    out: &'a mut [f32],
    multiplier: usize,
    padding: f32,
    fold: M,
}

impl<F: Fold, M: Fn(usize) -> (f32, F)> SimdOp for FoldChannels<'_, M> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let Self { planes, input, out, multiplier, padding, fold } = self;
        let (input_len, output_len, padded_len) =
            (planes.input_len(), planes.output_len(), planes.padded_len());
        let height = planes.axes[1].output;
        let batch = (CACHED / padded_len).max(1);
        let mut padded = Scratch::new(batch * padded_len);
        for (group, out) in out.chunks_mut(batch * multiplier * output_len).enumerate() {
            let channels = out.len() / (multiplier * output_len);
            for first in (0..height).step_by(planes.band) {
                for (c, padded) in padded.chunks_exact_mut(padded_len).take(channels).enumerate() {
                    let start = (group * batch + c) * input_len;
                    planes.fill_in(isa, padded, input, start, first, padding);
                }
                for i in 0..channels * multiplier {
                    let (start, step) = fold(group * batch * multiplier + i);
                    let padded = &padded[i / multiplier * padded_len..][..padded_len];
                    planes.fold_band(isa, padded, first, &mut out[i * output_len..], start, step);
                }
            }
        }
    }
}

/// What is done with the elements of a window, in order.
pub(crate) trait Fold: Copy {
    /// Takes element number `tap` of the window in.
    fn step<I: Isa>(self, isa: I, tap: usize, sum: I::F32, x: I::F32) -> I::F32;
}

/// The sum.
#[derive(Clone, Copy)]
pub(crate) struct Sum;

impl Fold for Sum {
    #[inline(always)]
    fn step<I: Isa>(self, isa: I, _: usize, sum: I::F32, x: I::F32) -> I::F32 {
        isa.f32().add(sum, x)
    }
}

/// The sum of squares.
#[derive(Clone, Copy)]
pub(crate) struct SquareSum;

impl Fold for SquareSum {
    #[inline(always)]
    fn step<I: Isa>(self, isa: I, _: usize, sum: I::F32, x: I::F32) -> I::F32 {
        isa.f32().mul_add(x, x, sum)
    }
}

/// The largest; NaN if there is one.
#[derive(Clone, Copy)]
pub(crate) struct Max;

impl Fold for Max {
    #[inline(always)]
    fn step<I: Isa>(self, isa: I, _: usize, max: I::F32, x: I::F32) -> I::F32 {
        let ops = isa.f32();
        // A NaN in the second operand stays; one in `x` is not equal to itself.
        let larger = ops.select(x, max, ops.gt(x, max));
        ops.select(larger, x, ops.eq(x, x))
    }
}

/// The sum of products with the weights.
#[derive(Clone, Copy)]
pub(crate) struct Weighted<'a>(pub(crate) &'a [f32]);

impl Fold for Weighted<'_> {
    #[inline(always)]
    fn step<I: Isa>(self, isa: I, tap: usize, sum: I::F32, x: I::F32) -> I::F32 {
        let ops = isa.f32();
        ops.mul_add(ops.splat(self.0[tap]), x, sum)
    }
}

/// `to[i] = from[i * stride]` for `i` in `0..count`. What follows in `to` may be overwritten: the caller writes it afterwards.
#[inline(always)]
fn copy_strided<I: Isa>(isa: I, to: &mut [f32], from: &[f32], count: usize, stride: usize) {
    const CHUNK: usize = 16;
    match stride {
        1 => copy_spilling(isa, to, from, count),
        2 => {
            for i in (0..count).step_by(CHUNK) {
                let (to, from) = (&mut to[i..], &from[2 * i..]);
                if let (Some(to), Some(from)) =
                    (to.first_chunk_mut::<CHUNK>(), from.first_chunk::<{ 2 * CHUNK }>())
                {
                    for (to, pair) in to.iter_mut().zip(from.as_chunks::<2>().0) {
                        *to = pair[0];
                    }
                } else {
                    let last = &mut to[..count - i];
                    last.iter_mut().zip(from.iter().step_by(2)).for_each(|(to, &x)| *to = x);
                    return;
                }
            }
        }
        _ => to[..count].iter_mut().zip(from.iter().step_by(stride)).for_each(|(to, &x)| *to = x),
    }
}

/// One padded row: elements `from..from + count` of the input from position `first` on, padding around them.
#[inline(always)]
fn pad_row<I: Isa>(
    isa: I,
    to: &mut [f32],
    pitch: usize,
    input: &[f32],
    from: usize,
    span: Span,
    padding: f32,
) {
    let ops = isa.f32();
    let lanes = ops.len();
    let blank = ops.splat(padding);
    let end = span.first + span.count;
    for at in (0..pitch).step_by(lanes) {
        let lead = span.first.saturating_sub(at).min(lanes);
        let used = end.saturating_sub(at).min(lanes);
        let source = (from + at).checked_sub(span.first).and_then(|from| input.get(from..from + lanes));
        let x = match source {
            _ if used <= lead => blank,
            Some(source) => {
                let x = ops.select(ops.load(source), blank, ops.first_n_mask(used));
                if lead > 0 { ops.select(blank, x, ops.first_n_mask(lead)) } else { x }
            }
            // At the very beginning or end of the tensor.
            None => {
                let mut edge = [padding; SLACK];
                edge[lead..used].copy_from_slice(&input[from + at + lead - span.first..][..used - lead]);
                ops.load(&edge)
            }
        };
        match to[at..].get_mut(..lanes) {
            Some(to) => ops.store(x, to),
            None => {
                let rest = &mut to[at..];
                rest.copy_from_slice(&x.to_array().as_ref()[..rest.len()]);
            }
        }
    }
}

/// Writes `count` elements a vector at a time; the last vector may write more than that, where there is room.
#[inline(always)]
fn fill_spilling<I: Isa>(isa: I, to: &mut [f32], value: f32, count: usize) {
    let ops = isa.f32();
    let lanes = ops.len();
    for i in (0..count).step_by(lanes) {
        match to[i..].get_mut(..lanes) {
            Some(to) => ops.store(ops.splat(value), to),
            None => return to[i..count].fill(value),
        }
    }
}

/// Copies `count` elements a vector at a time; the last vector may write more than that, where there is room.
#[inline(always)]
pub(crate) fn copy_spilling<I: Isa>(isa: I, to: &mut [f32], from: &[f32], count: usize) {
    let ops = isa.f32();
    let lanes = ops.len();
    let mut i = 0;
    while i < count {
        match (to[i..].get_mut(..lanes), from[i..].get(..lanes)) {
            (Some(to), Some(from)) => ops.store(ops.load(from), to),
            _ => {
                to[i..count].copy_from_slice(&from[i..count]);
                return;
            }
        }
        i += lanes;
    }
}

/// The part of a padded plane that one image of the result is folded from.
#[derive(Clone, Copy)]
struct Image<'a> {
    padded: &'a [f32],
    pitch: usize,
    offsets: &'a [usize],
    three_rows: bool,
}

/// Tiles of rows and vectors: enough independent sums to hide the latency of one. Where a row or the last rows do not fill a tile,
/// the tile lies further up or left, and what it covers twice comes out the same.
#[inline(always)]
fn fold_image<I: Isa, F: Fold>(
    isa: I,
    image: Image<'_>,
    height: usize,
    width: usize,
    out: &mut [f32],
    start: f32,
    fold: F,
) {
    let lanes = isa.f32().len();
    let mut y = 0;
    while y < height {
        let mut x = 0;
        if height < 4 {
            while x < width {
                if x + 4 * lanes <= width {
                    fold_tile::<I, F, 1, 4>(isa, image, [y, x], width, out, start, fold);
                    x += 4 * lanes;
                } else {
                    let at = if width >= lanes { x.min(width - lanes) } else { 0 };
                    fold_tile::<I, F, 1, 1>(isa, image, [y, at], width, out, start, fold);
                    x = at + lanes;
                }
            }
            y += 1;
            continue;
        }
        let top = y.min(height - 4);
        while x < width {
            if x + 2 * lanes <= width {
                if image.three_rows {
                    fold_tile_of_three::<I, F, 4, 2>(isa, image, [top, x], width, out, start, fold);
                } else {
                    fold_tile::<I, F, 4, 2>(isa, image, [top, x], width, out, start, fold);
                }
                x += 2 * lanes;
            } else {
                let at = if width >= lanes { x.min(width - lanes) } else { 0 };
                if image.three_rows {
                    fold_tile_of_three::<I, F, 4, 1>(isa, image, [top, at], width, out, start, fold);
                } else {
                    fold_tile::<I, F, 4, 1>(isa, image, [top, at], width, out, start, fold);
                }
                x = at + lanes;
            }
        }
        y = top + 4;
    }
}

/// Windows `[y..y + R, x..x + V vectors]`. A vector that is longer than a row spills into the next one, which is written after it;
/// at the end of the image it is cut.
#[inline(always)]
fn fold_tile<I: Isa, F: Fold, const R: usize, const V: usize>(
    isa: I,
    image: Image<'_>,
    [y, x]: [usize; 2],
    width: usize,
    out: &mut [f32],
    start: f32,
    fold: F,
) {
    let ops = isa.f32();
    let lanes = ops.len();
    let mut sums = [[ops.splat(start); V]; R];
    for (tap, &offset) in image.offsets.iter().enumerate() {
        let from = &image.padded[offset + y * image.pitch + x..];
        for r in 0..R {
            // Cut first, so that the load has nothing left to check.
            let xs = ops.load_many::<V>(&from[r * image.pitch..][..V * lanes]);
            for v in 0..V {
                sums[r][v] = fold.step(isa, tap, sums[r][v], xs[v]);
            }
        }
    }
    store_tile(isa, sums, [y, x], width, out);
}

/// [`fold_tile`] for windows of three adjacent rows: rows of the plane that several windows share are read once.
#[inline(always)]
fn fold_tile_of_three<I: Isa, F: Fold, const R: usize, const V: usize>(
    isa: I,
    image: Image<'_>,
    [y, x]: [usize; 2],
    width: usize,
    out: &mut [f32],
    start: f32,
    fold: F,
) {
    let ops = isa.f32();
    let lanes = ops.len();
    let mut sums = [[ops.splat(start); V]; R];
    let columns = image.offsets.len() / 3;
    for (tap, &offset) in image.offsets[..columns].iter().enumerate() {
        let from = &image.padded[offset + y * image.pitch + x..];
        for row in 0..R + 2 {
            let xs = ops.load_many::<V>(&from[row * image.pitch..][..V * lanes]);
            for above in 0..3 {
                if row < above || row - above >= R {
                    continue;
                }
                let sums = &mut sums[row - above];
                for v in 0..V {
                    sums[v] = fold.step(isa, above * columns + tap, sums[v], xs[v]);
                }
            }
        }
    }
    store_tile(isa, sums, [y, x], width, out);
}

#[inline(always)]
fn store_tile<I: Isa, const R: usize, const V: usize>(
    isa: I,
    sums: [[I::F32; V]; R],
    [y, x]: [usize; 2],
    width: usize,
    out: &mut [f32],
) {
    let ops = isa.f32();
    let lanes = ops.len();
    for (r, sums) in sums.into_iter().enumerate() {
        let to = &mut out[(y + r) * width + x..];
        if to.len() >= V * lanes {
            for (sum, to) in sums.into_iter().zip(to.chunks_exact_mut(lanes)) {
                ops.store(sum, to);
            }
        } else {
            for (sum, to) in sums.into_iter().zip(to.chunks_mut(lanes)) {
                to.copy_from_slice(&sum.to_array().as_ref()[..to.len()]);
            }
        }
    }
}
