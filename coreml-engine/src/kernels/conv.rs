//! Convolution as a matrix product: the columns of the right side are the windows of the image ("im2col"), written straight into
//! the panels that the product reads. The image is padded first, and split by phase where the convolution strides, so that every
//! row of a panel is a few contiguous runs ([`Planes`]).

use std::ops::Range;

use rayon::prelude::*;
use rten_simd::{Isa, SimdOp};

use super::gemm::{MAX_WIDTH, PackedRows, Panels, multiply, panel_width};
use super::planes::{Planes, copy_spilling};
use super::scratch::Scratch;
use super::window::Axis;

/// Elements of columns that exist at a time.
const COLUMNS: usize = 1 << 19;

/// Elements of columns above which panels are shared out among the threads.
const PARALLEL: usize = 1 << 14;

/// The windows of one image, as columns of `channels * taps` elements.
#[derive(Clone, Copy)]
pub(crate) struct Columns<'a> {
    /// Where the windows lie; `None` if they are the pixels themselves.
    pub(crate) planes: Option<&'a Planes>,
    pub(crate) channels: usize,
    /// Number of windows.
    pub(crate) count: usize,
    /// `[channels, depth, height, width]`
    pub(crate) image: &'a [f32],
}

impl Columns<'_> {
    /// `out = weight * columns + bias`, `[rows, windows]`.
    pub(crate) fn product(self, weight: &PackedRows, bias: Option<&[f32]>, out: &mut [f32]) {
        let (depth, width) = (weight.depth(), panel_width());
        let padded_len = self.planes.map_or(0, Planes::padded_len);
        let mut padded = Scratch::new(self.channels * padded_len);
        if let Some(planes) = self.planes {
            planes.fill(&mut padded, self.image);
        }
        let block = (COLUMNS / depth.max(1)).next_multiple_of(width);
        for first in (0..self.count).step_by(block) {
            let columns = first..(first + block).min(self.count);
            let mut panels = Scratch::new(columns.len().next_multiple_of(width) * depth);
            self.pack(columns.clone(), depth, width, &padded, &mut panels);
            let panels = Panels { data: &panels, first, count: columns.len() };
            multiply(weight, panels, bias, out, self.count);
        }
    }

    fn pack(self, columns: Range<usize>, depth: usize, width: usize, padded: &[f32], panels: &mut [f32]) {
        if depth == 0 {
            return;
        }
        let task = |(index, panel): (usize, &mut [f32])| {
            let first = columns.start + index * width;
            let columns = first..(first + width).min(columns.end);
            match self.planes {
                Some(planes) => PackWindows { planes, padded, columns, width, panel }.dispatch(),
                None => {
                    let (image, pixels) = (self.image, self.count);
                    PackPixels { image, pixels, columns, width, panel }.dispatch();
                }
            }
        };
        if rayon::current_num_threads() > 1 && panels.len() >= PARALLEL {
            panels.par_chunks_exact_mut(width * depth).enumerate().for_each(task);
        } else {
            panels.chunks_exact_mut(width * depth).enumerate().for_each(task);
        }
    }
}

/// One panel of pixels.
struct PackPixels<'a> {
    image: &'a [f32],
    pixels: usize,
    columns: Range<usize>,
    width: usize,
    panel: &'a mut [f32],
}

impl SimdOp for PackPixels<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let mut to = self.panel;
        for channel in self.image.chunks_exact(self.pixels) {
            copy_spilling(isa, to, &channel[self.columns.start..], self.columns.len());
            to = &mut to[self.width..];
        }
    }
}

/// One panel of windows.
struct PackWindows<'a> {
    planes: &'a Planes,
    padded: &'a [f32],
    columns: Range<usize>,
    width: usize,
    panel: &'a mut [f32],
}

/// Columns of a panel that lie side by side in the padded plane: those of one row of the output.
#[derive(Clone, Copy)]
struct Segment {
    column: usize,
    place: usize,
    len: usize,
}

impl SimdOp for PackWindows<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let Self { planes, padded, columns, width, panel } = self;
        let [_, height, row_len] = planes.axes().map(|axis| axis.output);
        let mut segments = [Segment { column: 0, place: 0, len: 0 }; MAX_WIDTH];
        let mut count = 0;
        let mut column = columns.start;
        for segment in &mut segments {
            if column >= columns.end {
                break;
            }
            let (row, x) = (column / row_len, column % row_len);
            let len = (row_len - x).min(columns.end - column);
            let place = planes.place([row / height, row % height, x]);
            *segment = Segment { column: column - columns.start, place, len };
            column += len;
            count += 1;
        }
        let segments = &segments[..count];
        let mut to = panel;
        for channel in padded.chunks_exact(planes.padded_len()) {
            for &offset in planes.offsets() {
                for segment in segments {
                    let from = &channel[offset + segment.place..];
                    copy_spilling(isa, &mut to[segment.column..], from, segment.len);
                }
                to = &mut to[width..];
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
