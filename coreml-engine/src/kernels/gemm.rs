//! The matrix product inside convolution: a packed weight times panels of columns that the caller makes from the image.
//!
//! The usual scheme (Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008): a block of the depth at a
//! time, so that a panel of columns stays in the first cache while all rows pass over it. Unlike a general product the columns
//! never exist as a matrix: the caller writes them straight into panels, and the result lands in the output tensor with the bias
//! added.

use std::ops::Range;

use rayon::prelude::*;
use rten_simd::ops::{BitOps, NumOps};
use rten_simd::{Isa, Simd, SimdOp};

use super::scratch::Scratch;

/// Rows of a tile of the weight.
const ROWS: usize = 8;

/// Depth that a panel of columns is read at a time: with 32 columns, 32 KiB.
const DEPTH: usize = 256;

/// Rows of the weight that stay in the second cache.
const ROW_BLOCK: usize = 256;

/// No panel is wider: 3 vectors of 16.
pub(crate) const MAX_WIDTH: usize = 48;

/// The largest tile.
const TILE: usize = ROWS * MAX_WIDTH;

/// Multiply-adds above which rows are shared out among the threads.
const PARALLEL: usize = 1 << 17;

/// Columns in a panel: as many vectors as leave registers for the sums.
pub(crate) fn panel_width() -> usize {
    lanes() * vectors(lanes())
}

/// Numbers in a vector.
fn lanes() -> usize {
    struct Lanes;
    impl SimdOp for Lanes {
        type Output = usize;
        #[inline(always)]
        fn eval<I: Isa>(self, isa: I) -> usize {
            isa.f32().len()
        }
    }
    Lanes.dispatch()
}

/// Vectors across a tile: AVX-512 has 32 registers for 8 x 2 sums, AVX2 16 for 4 x 3.
#[inline(always)]
const fn vectors(lanes: usize) -> usize {
    if lanes >= 16 { 2 } else { 3 }
}

/// A weight `[rows, depth]` in the order in which it is read: by blocks of the depth, tiles of [`ROWS`] rows, depth; absent rows
/// are zero. Weights are read once per prediction and seldom found in a cache, so the order decides how fast they come.
#[derive(Debug)]
pub(crate) struct PackedRows {
    rows: usize,
    depth: usize,
    data: Vec<f32>,
}

impl PackedRows {
    /// Packs into `memory`, whose contents are dropped. Row `r` begins at `source[r * row_step]`, its elements are `step` apart.
    pub(crate) fn new(
        memory: Vec<f32>,
        source: &[f32],
        rows: usize,
        depth: usize,
        row_step: usize,
        step: usize,
    ) -> Self {
        let mut packed = Self { rows, depth, data: memory };
        packed.data.clear();
        packed.data.reserve(Self::len(rows, depth));
        for block in packed.blocks() {
            for first in (0..rows).step_by(ROWS) {
                for k in block.clone() {
                    packed.data.extend(
                        (first..first + ROWS)
                            .map(|row| if row < rows { source[row * row_step + k * step] } else { 0.0 }),
                    );
                }
            }
        }
        packed
    }

    /// Elements that the packed form takes.
    pub(crate) fn len(rows: usize, depth: usize) -> usize {
        rows.next_multiple_of(ROWS) * depth
    }

    /// The memory, to be used again.
    pub(crate) fn into_memory(self) -> Vec<f32> {
        self.data
    }

    pub(crate) fn depth(&self) -> usize {
        self.depth
    }

    /// The depth in equal blocks of at most [`DEPTH`]; one block of nothing if there is no depth.
    fn blocks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let depth = self.depth;
        let count = depth.div_ceil(DEPTH).max(1);
        let step = depth.div_ceil(count);
        (0..count).map(move |i| (i * step).min(depth)..((i + 1) * step).min(depth))
    }

    /// The tiles of rows `rows`, whose start is that of a tile, in a block of the depth.
    fn tiles(&self, block: &Range<usize>, rows: Range<usize>) -> &[f32] {
        let start = self.rows.next_multiple_of(ROWS) * block.start;
        let end = rows.end.next_multiple_of(ROWS) * block.len();
        &self.data[start + rows.start * block.len()..start + end]
    }
}

/// Columns `first..first + count` of the right side, in panels of [`panel_width`]: element `(k, j)` of panel `p` is
/// `data[(p * depth + k) * width + j]`. Columns beyond `count` hold anything.
#[derive(Clone, Copy)]
pub(crate) struct Panels<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) first: usize,
    pub(crate) count: usize,
}

/// The most columns that are multiplied apart, where they are all that a vector would hold.
const THIN: usize = 4;

impl Panels<'_> {
    /// How many columns are left over by vectors, if so few that the product with the tile of rows as vector is cheaper.
    fn thin(&self) -> usize {
        let rest = self.count % lanes();
        if rest <= THIN { rest } else { 0 }
    }

    /// The last `thin` columns, each element as often as a tile has rows.
    fn spread(&self, thin: usize, depth: usize) -> Scratch {
        let width = panel_width();
        let mut spread = Scratch::new(thin * depth * ROWS);
        for (t, column) in spread.chunks_exact_mut((depth * ROWS).max(1)).enumerate() {
            let column_index = self.count - thin + t;
            let panel = &self.data[column_index / width * width * depth..];
            let elements = panel.iter().skip(column_index % width).step_by(width);
            for (to, &x) in column.as_chunks_mut::<ROWS>().0.iter_mut().zip(elements) {
                *to = [x; ROWS];
            }
        }
        spread
    }
}

/// `out[row * pitch + column] = sum over k of weight[row, k] * columns[k, column] + bias[row]`, for the columns of the panels.
pub(crate) fn multiply(
    weight: &PackedRows,
    panels: Panels<'_>,
    bias: Option<&[f32]>,
    out: &mut [f32],
    pitch: usize,
) {
    let thin = panels.thin();
    let spread = panels.spread(thin, weight.depth);
    let panels = Panels { count: panels.count - thin, ..panels };
    let work = weight.rows.saturating_mul(weight.depth).saturating_mul(panels.count + thin);
    let threads = rayon::current_num_threads();
    let rows = if threads > 1 && work >= PARALLEL {
        weight.rows.div_ceil(threads).next_multiple_of(ROWS)
    } else {
        weight.rows
    };
    let task = |(index, out): (usize, &mut [f32])| {
        let first = index * rows;
        let rows = first..(first + rows).min(weight.rows);
        Multiply { weight, rows, panels, thin, spread: &spread, bias, out, pitch }.dispatch();
    };
    if weight.rows == 0 || panels.count + thin == 0 {
        return;
    }
    if rows < weight.rows {
        out.par_chunks_mut(rows * pitch).enumerate().for_each(task);
    } else {
        task((0, out));
    }
}

struct Multiply<'a> {
    weight: &'a PackedRows,
    /// Those that `out` begins with.
    rows: Range<usize>,
    panels: Panels<'a>,
    /// Number of columns in `spread`, which follow those of the panels.
    thin: usize,
    spread: &'a [f32],
    bias: Option<&'a [f32]>,
    out: &'a mut [f32],
    pitch: usize,
}

impl SimdOp for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let lanes = isa.f32().len();
        if lanes >= 16 {
            self.blocks::<I, 8, 2>(isa);
        } else if cfg!(target_arch = "aarch64") {
            self.blocks::<I, 8, 3>(isa);
        } else {
            self.blocks::<I, 4, 3>(isa);
        }
    }
}

impl Multiply<'_> {
    /// `R` rows, which divide [`ROWS`], and `V` vectors at a time.
    #[inline(always)]
    fn blocks<I: Isa, const R: usize, const V: usize>(self, isa: I) {
        let Self { weight, rows, panels, thin, spread, bias, out, pitch } = self;
        let lanes = isa.f32().len();
        let width = V * lanes;
        let depth = weight.depth;
        let passes = panels.count.div_ceil(width).max(1);
        let mut blocks = weight.blocks().peekable();
        while let Some(block) = blocks.next() {
            for first_row in rows.clone().step_by(ROW_BLOCK) {
                let end_row = (first_row + ROW_BLOCK).min(rows.end);
                let tiles = weight.tiles(&block, first_row..end_row);
                let tile_len = block.len() * ROWS;
                // What is read next, fetched while this is worked on: every tile of every pass fetches its share.
                let ahead = if end_row < rows.end {
                    weight.tiles(&block, end_row..(end_row + ROW_BLOCK).min(rows.end))
                } else if let Some(next) = blocks.peek() {
                    weight.tiles(next, rows.start..(rows.start + ROW_BLOCK).min(rows.end))
                } else {
                    &[]
                };
                let share = ahead.len().div_ceil((end_row - first_row).div_ceil(R) * passes).max(1);
                let mut ahead = ahead.chunks(share);
                let place = |row: usize, column: usize, columns: usize, most: usize| Place {
                    start: (row - rows.start) * pitch + panels.first + column,
                    pitch,
                    rows: (end_row - row).min(most),
                    columns,
                    bias: bias.filter(|_| block.start == 0).map(|bias| &bias[row..]),
                    add: block.start > 0,
                };
                for first in (0..panels.count).step_by(width) {
                    let count = (panels.count - first).min(width);
                    let panel = &panels.data[first * depth..];
                    let b = &panel[block.start * width..block.end * width];
                    for row in (first_row..end_row).step_by(R) {
                        let skip = row % ROWS;
                        let a = &tiles[(row - skip - first_row) * block.len()..][..tile_len];
                        let tile = Tile { a, skip, b, width, ahead: ahead.next().unwrap_or(&[]) };
                        let place = place(row, first, count, R);
                        if count > width - lanes {
                            tile_product::<I, R, V>(isa, tile, place, out);
                        } else if count > lanes {
                            tile_product::<I, R, 2>(isa, tile, place, out);
                        } else {
                            tile_product::<I, R, 1>(isa, tile, place, out);
                        }
                    }
                }
                if thin == 0 {
                    continue;
                }
                let spread = &spread[block.start * ROWS..];
                for row in (first_row..end_row).step_by(ROWS) {
                    let a = &tiles[(row - first_row) * block.len()..][..tile_len];
                    let place = place(row, panels.count, thin, ROWS);
                    match thin {
                        1 => thin_product::<I, 1>(isa, a, spread, depth * ROWS, place, out),
                        2 => thin_product::<I, 2>(isa, a, spread, depth * ROWS, place, out),
                        3 => thin_product::<I, 3>(isa, a, spread, depth * ROWS, place, out),
                        _ => thin_product::<I, THIN>(isa, a, spread, depth * ROWS, place, out),
                    }
                }
            }
        }
    }
}

/// What a tile of the result is the product of.
struct Tile<'a> {
    /// Tile of the weight, depth by depth.
    a: &'a [f32],
    /// The first row in use.
    skip: usize,
    /// Panel of columns, depth by depth.
    b: &'a [f32],
    width: usize,
    /// To be fetched meanwhile.
    ahead: &'a [f32],
}

/// Where a tile of the result goes.
struct Place<'a> {
    start: usize,
    pitch: usize,
    rows: usize,
    columns: usize,
    bias: Option<&'a [f32]>,
    /// To what is there already.
    add: bool,
}

#[inline(always)]
fn tile_product<I: Isa, const R: usize, const V: usize>(
    isa: I,
    tile: Tile<'_>,
    place: Place<'_>,
    out: &mut [f32],
) {
    /// Depth between two fetches ahead.
    const STRIDE: usize = 16;
    /// Elements of a cache line.
    const LINE: usize = 16;
    let ops = isa.f32();
    let lanes = ops.len();
    let mut sums = [[ops.zero(); V]; R];
    let (a, _) = tile.a.as_chunks::<ROWS>();
    let share = (tile.ahead.len() / a.len().div_ceil(STRIDE).max(1)).next_multiple_of(LINE).max(LINE);
    let mut ahead = tile.ahead.chunks(share);
    for (a, b) in a.chunks(STRIDE).zip(tile.b.chunks(STRIDE * tile.width)) {
        for line in ahead.next().unwrap_or(&[]).chunks(LINE) {
            ops.prefetch(line.as_ptr());
        }
        for (a, b) in a.iter().zip(b.chunks_exact(tile.width)) {
            let columns = ops.load_many::<V>(&b[..V * lanes]);
            for r in 0..R {
                let x = ops.splat(a[(tile.skip + r) % ROWS]);
                for v in 0..V {
                    sums[r][v] = ops.mul_add(x, columns[v], sums[r][v]);
                }
            }
        }
    }
    if let Some(bias) = place.bias {
        for (sums, &bias) in sums.iter_mut().zip(bias) {
            for sum in sums {
                *sum = ops.add(*sum, ops.splat(bias));
            }
        }
    }
    if place.rows == R && place.columns >= V * lanes {
        for (r, sums) in sums.iter().enumerate() {
            let row = &mut out[place.start + r * place.pitch..][..V * lanes];
            for (sum, out) in sums.iter().zip(row.chunks_exact_mut(lanes)) {
                let old = if place.add { ops.load(out) } else { ops.zero() };
                ops.store(ops.add(*sum, old), out);
            }
        }
        return;
    }
    let mut edge = [0.0; TILE];
    for (sums, row) in sums.iter().zip(edge.chunks_exact_mut(V * lanes)) {
        for (sum, out) in sums.iter().zip(row.chunks_exact_mut(lanes)) {
            ops.store(*sum, out);
        }
    }
    for (r, row) in edge.chunks_exact(V * lanes).take(place.rows).enumerate() {
        let out = &mut out[place.start + r * place.pitch..][..place.columns];
        for (out, &sum) in out.iter_mut().zip(row) {
            *out = if place.add { *out + sum } else { sum };
        }
    }
}

/// The product of a tile with `T` columns, each element of which is repeated for every row: vectors run along rows and depth.
#[inline(always)]
fn thin_product<I: Isa, const T: usize>(
    isa: I,
    a: &[f32],
    spread: &[f32],
    pitch: usize,
    place: Place<'_>,
    out: &mut [f32],
) {
    let ops = isa.f32();
    let lanes = ops.len();
    // Two vectors at a time are whole tiles for any length of vector, so that element i belongs to row i % ROWS.
    let mut sums = [[ops.zero(); 2]; T];
    let columns: [&[f32]; T] = std::array::from_fn(|t| &spread[t * pitch..][..a.len()]);
    let mut i = 0;
    while i + 2 * lanes <= a.len() {
        let x = ops.load_many::<2>(&a[i..][..2 * lanes]);
        for t in 0..T {
            let y = ops.load_many::<2>(&columns[t][i..][..2 * lanes]);
            sums[t][0] = ops.mul_add(x[0], y[0], sums[t][0]);
            sums[t][1] = ops.mul_add(x[1], y[1], sums[t][1]);
        }
        i += 2 * lanes;
    }
    for (t, sums) in sums.into_iter().enumerate() {
        let mut total = [0.0; ROWS];
        for (v, sum) in sums.into_iter().enumerate() {
            for (l, &x) in sum.to_array().as_ref().iter().enumerate() {
                total[(v * lanes + l) % ROWS] += x;
            }
        }
        for (j, (x, y)) in a[i..].iter().zip(&columns[t][i..]).enumerate() {
            total[j % ROWS] += x * y;
        }
        for (r, &sum) in total.iter().take(place.rows).enumerate() {
            let sum = sum + place.bias.map_or(0.0, |bias| bias[r]);
            let out = &mut out[place.start + r * place.pitch + t];
            *out = if place.add { *out + sum } else { sum };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_product_is_that_of_the_definition(
            rows in 1..40_usize, depth in 0..600_usize, columns in 1..90_usize, first in 0..3_usize,
            biased: bool, seed: u32,
        ) {
            let number = |i: usize| ((i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed) >> 24) as f32 / 64.0 - 2.0;
            let a: Vec<f32> = (0..rows * depth).map(number).collect();
            let width = panel_width();
            let panels: Vec<f32> = (0..columns.next_multiple_of(width) * depth).map(|i| number(i + 7)).collect();
            let bias: Vec<f32> = (0..rows).map(number).collect();
            let bias = biased.then_some(&bias[..]);
            let pitch = columns + first + 1;
            let mut out = vec![5.0; rows * pitch];
            let weight = PackedRows::new(Vec::new(), &a, rows, depth, depth, 1);
            multiply(&weight, Panels { data: &panels, first, count: columns }, bias, &mut out, pitch);
            for row in 0..rows {
                for column in 0..pitch {
                    let expected = if (first..first + columns).contains(&column) {
                        let j = column - first;
                        let b = |k: usize| panels[(j / width * depth + k) * width + j % width];
                        (0..depth).map(|k| f64::from(a[row * depth + k]) * f64::from(b(k))).sum::<f64>()
                            + bias.map_or(0.0, |bias| f64::from(bias[row]))
                    } else {
                        5.0
                    };
                    let found = f64::from(out[row * pitch + column]);
                    prop_assert!((found - expected).abs() < 1e-3 * (1.0 + expected.abs()), "{row} {column}: {found} {expected}");
                }
            }
        }
    }
}
