//! Windows over one channel at a time: depthwise convolution and pooling.
//!
//! The channel is copied once into a padded plane. With strides it is split by phase (columns `0, s, 2s, ..` then `1, s + 1, ..`),
//! so that element `t` of all windows lies side by side: the result is a fold of shifted contiguous runs, whatever the kernel,
//! stride, dilation, padding and rank. No element is checked against the border of the image and every load is a full vector.

use rten_simd::ops::{BitOps, NumOps};
use rten_simd::{Isa, Simd, SimdOp};

use super::window::Axis;
use crate::error::KernelError;
use crate::ops::Run;

/// No tile of vectors is longer.
pub(crate) const SLACK: usize = 64;

/// Where the elements of the windows lie in the padded plane. Depends on shapes only.
#[derive(Debug)]
pub(crate) struct Planes {
    axes: [Axis; 3],
    /// Per axis, the phases that some element of the window has.
    phases: [Vec<usize>; 3],
    /// Extent of one phase.
    size: [usize; 3],
    /// Per element of the window, its offset from the window's place.
    offsets: Vec<usize>,
}

impl Planes {
    pub(crate) fn new(run: &Run<'_, '_>, axes: [Axis; 3]) -> Result<Self, KernelError> {
        run.check_size(&axes.map(|axis| axis.kernel))?;
        let split = axes.map(|axis| Self::split(&axis));
        let size: [usize; 3] = std::array::from_fn(|i| {
            let furthest = split[i].1.iter().map(|&(_, step)| step).max().unwrap_or(0);
            furthest + axes[i].output
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
        Ok(Self { axes, phases, size, offsets })
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

    /// Copies a channel into the padded plane, with `map` applied.
    #[inline(always)]
    pub(crate) fn fill(
        &self,
        padded: &mut [f32],
        input: &[f32],
        padding: f32,
        map: impl Fn(f32) -> f32 + Copy,
    ) {
        let [_, height, width] = self.axes.map(|axis| axis.input);
        let mut rows = padded.chunks_exact_mut(self.size[2]);
        for &pz in &self.phases[0] {
            for &py in &self.phases[1] {
                for &px in &self.phases[2] {
                    for z in 0..self.size[0] {
                        let z = Self::source(&self.axes[0], z, pz);
                        for y in 0..self.size[1] {
                            let Some(row) = rows.next() else { return };
                            match (z, Self::source(&self.axes[1], y, py)) {
                                (Some(z), Some(y)) => {
                                    let start = (z * height + y) * width;
                                    let source = &input[start..start + width];
                                    self.fill_row(row, source, px, padding, map);
                                }
                                _ => row.fill(padding),
                            }
                        }
                    }
                }
            }
        }
    }

    /// Which element of the input lies at step `q` of a phase.
    fn source(axis: &Axis, q: usize, phase: usize) -> Option<usize> {
        (q * axis.stride + phase).checked_sub(axis.before).filter(|&i| i < axis.input)
    }

    #[inline(always)]
    fn fill_row(
        &self,
        row: &mut [f32],
        source: &[f32],
        phase: usize,
        padding: f32,
        map: impl Fn(f32) -> f32,
    ) {
        let Axis { before, stride, .. } = self.axes[2];
        let first = before.saturating_sub(phase).div_ceil(stride).min(row.len());
        let (lead, rest) = row.split_at_mut(first);
        lead.fill(padding);
        let from = source.get(first * stride + phase - before.min(first * stride + phase)..).unwrap_or(&[]);
        let count = from.len().div_ceil(stride).min(rest.len());
        let (body, tail) = rest.split_at_mut(count);
        tail.fill(padding);
        match stride {
            1 => body.iter_mut().zip(from).for_each(|(to, &x)| *to = map(x)),
            2 => {
                let (pairs, odd) = from.as_chunks::<2>();
                body.iter_mut().zip(pairs).for_each(|(to, &[x, _])| *to = map(x));
                if let ([x], Some(to)) = (odd, body.get_mut(pairs.len())) {
                    *to = map(*x);
                }
            }
            _ => body.iter_mut().zip(from.iter().step_by(stride)).for_each(|(to, &x)| *to = map(x)),
        }
    }

    /// Folds the windows of a padded plane into `out`, which has [`Planes::output_len`] elements.
    pub(crate) fn fold<F: Fold>(&self, padded: &[f32], out: &mut [f32], start: f32, fold: F) {
        FoldPlane { planes: self, padded, out, start, fold }.dispatch();
    }

    /// As [`Planes::fold`], inside of a vector operation.
    #[inline(always)]
    pub(crate) fn fold_in<I: Isa, F: Fold>(
        &self,
        isa: I,
        padded: &[f32],
        out: &mut [f32],
        start: f32,
        fold: F,
    ) {
        let [_, height, width] = self.axes.map(|axis| axis.output);
        let [_, pitch_y, pitch_x] = self.size;
        for (z, out) in out.chunks_exact_mut(height * width).enumerate() {
            let image =
                Image { padded: &padded[z * pitch_y * pitch_x..], pitch: pitch_x, offsets: &self.offsets };
            fold_image(isa, image, height, width, out, start, fold);
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

struct FoldPlane<'a, F> {
    planes: &'a Planes,
    padded: &'a [f32],
    out: &'a mut [f32],
    start: f32,
    fold: F,
}

impl<F: Fold> SimdOp for FoldPlane<'_, F> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let Self { planes, padded, out, start, fold } = self;
        planes.fold_in(isa, padded, out, start, fold);
    }
}

/// The part of a padded plane that one image of the result is folded from.
#[derive(Clone, Copy)]
struct Image<'a> {
    padded: &'a [f32],
    pitch: usize,
    offsets: &'a [usize],
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
                fold_tile::<I, F, 4, 2>(isa, image, [top, x], width, out, start, fold);
                x += 2 * lanes;
            } else {
                let at = if width >= lanes { x.min(width - lanes) } else { 0 };
                fold_tile::<I, F, 4, 1>(isa, image, [top, at], width, out, start, fold);
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
            let xs = ops.load_many::<V>(&from[r * image.pitch..]);
            for v in 0..V {
                sums[r][v] = fold.step(isa, tap, sums[r][v], xs[v]);
            }
        }
    }
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
