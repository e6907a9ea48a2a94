//! Convolution as a matrix product: the columns of the right side are the windows of the image ("im2col"), written straight into
//! the panels that the product reads.

use std::ops::Range;

use rayon::prelude::*;

use super::gemm::{PackedRows, Panels, multiply, panel_width};
use super::scratch::Scratch;
use super::window::Axis;

/// Elements of columns that exist at a time.
const COLUMNS: usize = 1 << 18;

/// Elements of columns above which panels are shared out among the threads.
const PARALLEL: usize = 1 << 14;

/// The windows of one image, as columns of `channels * taps` elements.
pub(crate) struct Columns<'a> {
    pub(crate) axes: &'a [Axis; 3],
    pub(crate) channels: usize,
    /// `[channels, depth, height, width]`
    pub(crate) image: &'a [f32],
}

/// Columns of a panel that lie in one row of the output.
#[derive(Clone, Copy)]
struct Segment {
    column: usize,
    z: usize,
    y: usize,
    x: usize,
    len: usize,
}

impl Columns<'_> {
    fn count(&self) -> usize {
        self.axes.iter().map(|axis| axis.output).product()
    }

    fn len(&self) -> usize {
        self.channels * self.axes.iter().map(|axis| axis.kernel).product::<usize>()
    }

    /// `out = weight * columns + bias`, `[rows, windows]`.
    pub(crate) fn product(&self, weight: &PackedRows, bias: Option<&[f32]>, out: &mut [f32]) {
        let (count, depth, width) = (self.count(), self.len(), panel_width());
        debug_assert_eq!(depth, weight.depth());
        let block = (COLUMNS / depth.max(1)).next_multiple_of(width);
        for first in (0..count).step_by(block) {
            let columns = first..(first + block).min(count);
            let mut panels = Scratch::new(columns.len().next_multiple_of(width) * depth);
            self.pack(columns.clone(), width, &mut panels);
            let panels = Panels { data: &panels, first, count: columns.len() };
            multiply(weight, panels, bias, out, count);
        }
    }

    fn pack(&self, columns: Range<usize>, width: usize, panels: &mut [f32]) {
        let len = self.len();
        if len == 0 {
            return;
        }
        let plane = self.axes.iter().map(|axis| axis.input).product::<usize>();
        let task = |(index, panel): (usize, &mut [f32])| {
            let first = columns.start + index * width;
            let columns = first..(first + width).min(columns.end);
            if self.axes.iter().all(Axis::is_identity) {
                for (channel, to) in panel.chunks_exact_mut(width).enumerate() {
                    let from = &self.image[channel * plane..][columns.clone()];
                    to[..from.len()].copy_from_slice(from);
                }
            } else {
                self.pack_panel(columns, width, plane, panel);
            }
        };
        if rayon::current_num_threads() > 1 && panels.len() >= PARALLEL {
            panels.par_chunks_exact_mut(width * len).enumerate().for_each(task);
        } else {
            panels.chunks_exact_mut(width * len).enumerate().for_each(task);
        }
    }

    fn pack_panel(&self, columns: Range<usize>, width: usize, plane: usize, panel: &mut [f32]) {
        let [az, ay, ax] = self.axes;
        let taps = az.kernel * ay.kernel * ax.kernel;
        let mut column = columns.start;
        while column < columns.end {
            let x = column % ax.output;
            let row = column / ax.output;
            let segment = Segment {
                column: column - columns.start,
                z: row / ay.output,
                y: row % ay.output,
                x,
                len: (ax.output - x).min(columns.end - column),
            };
            column += segment.len;
            for tap in 0..taps {
                let (tz, ty, tx) =
                    (tap / (ay.kernel * ax.kernel), tap / ax.kernel % ay.kernel, tap % ax.kernel);
                let to = &mut panel[tap * width + segment.column..];
                self.pack_tap(segment, [tz, ty, tx], plane, to, taps * width);
            }
        }
    }

    /// Element `tap` of the windows of a segment, for every channel; channels are `step` apart in `to`.
    fn pack_tap(&self, segment: Segment, tap: [usize; 3], plane: usize, to: &mut [f32], step: usize) {
        let [az, ay, ax] = self.axes;
        let position = |axis: &Axis, window: usize, tap: usize| {
            (window * axis.stride + tap * axis.dilation).checked_sub(axis.before).filter(|&i| i < axis.input)
        };
        let inside = ax.inside(tap[2]);
        let first = inside.start.clamp(segment.x, segment.x + segment.len);
        let end = inside.end.clamp(first, segment.x + segment.len);
        let row =
            position(az, segment.z, tap[0]).zip(position(ay, segment.y, tap[1])).filter(|_| first < end).map(
                |(z, y)| (z * ay.input + y) * ax.input + first * ax.stride + tap[2] * ax.dilation - ax.before,
            );
        let Some(start) = row else {
            for to in to.chunks_mut(step) {
                to[..segment.len].fill(0.0);
            }
            return;
        };
        let (lead, tail) = (first - segment.x, end - segment.x);
        let images = self.image.chunks_exact(plane);
        for (to, image) in to.chunks_mut(step).zip(images) {
            let to = &mut to[..segment.len];
            to[..lead].fill(0.0);
            to[tail..].fill(0.0);
            let to = &mut to[lead..tail];
            let from = &image[start..];
            if ax.stride == 1 {
                to.copy_from_slice(&from[..to.len()]);
            } else {
                to.iter_mut().zip(from.iter().step_by(ax.stride)).for_each(|(to, &x)| *to = x);
            }
        }
    }
}

/// Adds the columns of one image back to where they were taken from: the transpose of [`Columns`].
///
/// `axes` are those of the convolution that would take `image` to the columns; `columns` is `[channels * taps, windows]`.
pub(crate) fn scatter_columns(axes: &[Axis; 3], columns: &[f32], image: &mut [f32]) {
    let [az, ay, ax] = axes;
    let taps = az.kernel * ay.kernel * ax.kernel;
    let windows = az.output * ay.output * ax.output;
    let plane = az.input * ay.input * ax.input;
    if windows == 0 || plane == 0 {
        return;
    }
    let task = |(image, columns): (&mut [f32], &[f32])| {
        for (tap, column) in columns.chunks_exact(windows).enumerate() {
            let (tz, ty, tx) = (tap / (ay.kernel * ax.kernel), tap / ax.kernel % ay.kernel, tap % ax.kernel);
            let inside = ax.inside(tx);
            if inside.is_empty() {
                continue;
            }
            for z in az.inside(tz) {
                let to_z = z * az.stride + tz * az.dilation - az.before;
                for y in ay.inside(ty) {
                    let to_y = y * ay.stride + ty * ay.dilation - ay.before;
                    let to_x = inside.start * ax.stride + tx * ax.dilation - ax.before;
                    let to = &mut image[(to_z * ay.input + to_y) * ax.input + to_x..];
                    let from = &column[(z * ay.output + y) * ax.output..][inside.clone()];
                    to.iter_mut().step_by(ax.stride).zip(from).for_each(|(to, &x)| *to += x);
                }
            }
        }
    };
    let work = image.par_chunks_exact_mut(plane).zip(columns.par_chunks_exact(taps * windows));
    if rayon::current_num_threads() > 1 && columns.len() >= PARALLEL {
        work.for_each(task);
    } else {
        image.chunks_exact_mut(plane).zip(columns.chunks_exact(taps * windows)).for_each(task);
    }
}
