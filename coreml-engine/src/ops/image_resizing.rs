//! `image_resizing` ops: sampling the last two dimensions anew.
//!
//! Semantics: coremltools, `mil/ops/defs/iOS15/image_resizing.py`, `iOS16/image_resizing.py`, `iOS17/image_resizing.py`; the table
//! of sampling modes stands at `resize_bilinear` there.

use rten_tensor::Tensor;
use rten_tensor::prelude::*;

use super::strided::{Element, take_dense};
use super::{Ints, Kernel, OpBuilder, OpDef, Run, parameter};
use crate::error::{KernelError, OpError};
use crate::ir::Opset::{Ios13, Ios15, Ios16, Ios17};
use crate::types::DType;
use crate::value::{Outputs, Value, ValueView, one};

pub(crate) const OPS: &[OpDef] = &[
    OpDef::new("affine", &[Ios15], affine),
    OpDef::new("crop", &[Ios13], crop),
    OpDef::new("crop_resize", &[Ios13, Ios16, Ios17], crop_resize),
    OpDef::new("resample", &[Ios15, Ios16, Ios17], resample),
    OpDef::new("resize", &[Ios17], resize),
    OpDef::new("resize_bilinear", &[Ios13], resize_bilinear),
    OpDef::new("resize_nearest_neighbor", &[Ios13], resize_nearest_neighbor),
    OpDef::new("upsample_bilinear", &[Ios13, Ios16], upsample_bilinear),
    OpDef::new("upsample_nearest_neighbor", &[Ios13], upsample_nearest_neighbor),
];

/// Where samples lie along an edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sampling {
    StrictAlignCorners,
    AlignCorners,
    Default,
    OffsetCorners,
    UnalignCorners,
    /// The nearest pixel at or before.
    Nearest,
}

impl Sampling {
    fn read(op: &mut OpBuilder<'_>) -> Result<Self, OpError> {
        Ok(match op.string("sampling_mode", "DEFAULT")?.as_str() {
            "STRICT_ALIGN_CORNERS" => Self::StrictAlignCorners,
            "ALIGN_CORNERS" => Self::AlignCorners,
            "DEFAULT" => Self::Default,
            "OFFSET_CORNERS" => Self::OffsetCorners,
            "UNALIGN_CORNERS" => Self::UnalignCorners,
            other => return Err(parameter("sampling_mode", format!("`{other}` is not a sampling mode"))),
        })
    }

    /// The places of `target` samples of an edge whose pixels lie at 0 to `last`. A box may end between pixels, or before it starts.
    fn grid(self, last: f64, target: usize) -> Vec<f64> {
        let n = last + 1.0;
        let place = |i: f64| match self {
            Self::AlignCorners if target == 1 => last / 2.0,
            Self::StrictAlignCorners | Self::AlignCorners => i * last / (target - 1).max(1) as f64,
            Self::Default => i * n / target as f64,
            Self::OffsetCorners => (0.5 + i) * last.max(1.0) / target as f64,
            Self::UnalignCorners => (i + 0.5) * n / target as f64 - 0.5,
            Self::Nearest => (i * n / target as f64).floor(),
        };
        // Not `clamp`, which panics where a box is of NaN.
        (0..target).map(|i| place(i as f64).max(last.min(0.0)).min(last.max(0.0))).collect()
    }

    /// The pixels nearest to the places; half-way, it is the one behind. By default it is the one that the middle of a sample lies
    /// in, as coremltools' tests of `resize` have it.
    fn nearest(self, last: f64, target: usize) -> Vec<f64> {
        let sampling = if self == Self::Default { Self::UnalignCorners } else { self };
        sampling.grid(last, target).into_iter().map(|place| (place + 0.5).floor()).collect()
    }
}

/// Two neighbours and the share of the second.
type Tap = (usize, usize, f32);

/// Neighbours of places within `0..=size - 1`.
fn taps(places: &[f64], size: usize) -> Vec<Tap> {
    let tap = |&place: &f64| {
        let low = (place.max(0.0) as usize).min(size.saturating_sub(1));
        (low, (low + 1).min(size.saturating_sub(1)), (place - low as f64) as f32)
    };
    places.iter().map(tap).collect()
}

fn mix(a: f32, b: f32, share: f32) -> f32 {
    if share == 0.0 { a } else { a * (1.0 - share) + b * share }
}

/// Linear interpolation of one plane of `width` at all pairs of rows and columns.
fn sample(plane: &[f32], width: usize, rows: &[Tap], columns: &[Tap], out: &mut Vec<f32>) {
    for &(top, bottom, down) in rows {
        let (top, bottom) = (&plane[top * width..][..width], &plane[bottom * width..][..width]);
        out.extend(columns.iter().map(|&(left, right, across)| {
            mix(mix(top[left], top[right], across), mix(bottom[left], bottom[right], across), down)
        }));
    }
}

/// The sizes of the last two dimensions, and the shape with others in their place.
fn resized(shape: &[usize], target: [usize; 2]) -> Result<([usize; 2], Vec<usize>), KernelError> {
    let Some((lead, &[height, width])) = shape.split_last_chunk::<2>() else {
        return Err(KernelError::shape(format!("expected rank 2 or more, found shape {shape:?}")));
    };
    let made = [lead, &target].concat();
    if made.contains(&0) || shape.contains(&0) {
        return Err(KernelError::shape(format!("an image of shape {shape:?} cannot become {made:?}")));
    }
    Ok(([height, width], made))
}

/// Samples the last two dimensions of input `slot` at a grid.
fn on_grid(
    run: &mut Run<'_, '_>,
    slot: usize,
    target: [usize; 2],
    sampling: [Sampling; 2],
) -> Result<Outputs, KernelError> {
    let float = run.any(slot)?.is_float();
    if !float {
        return Err(KernelError::value("sampling of integers"));
    }
    let view = run.f32(slot)?;
    let ([height, width], shape) = resized(view.shape(), target)?;
    let mut data = run.buffer::<f32>(&shape)?;
    let dense = view.to_contiguous_in(run.pool());
    let rows = taps(&sampling[0].grid((height - 1) as f64, target[0]), height);
    let columns = taps(&sampling[1].grid((width - 1) as f64, target[1]), width);
    for plane in dense.data().chunks_exact(height * width) {
        sample(plane, width, &rows, &columns, &mut data);
    }
    if let Some(buffer) = rten::ExtractBuffer::extract_buffer(dense.into_inner()) {
        run.pool().add(buffer);
    }
    Ok(one(Tensor::from_data(&shape, data)))
}

fn positive(name: &'static str, value: i32) -> Result<usize, OpError> {
    usize::try_from(value)
        .ok()
        .filter(|&n| n > 0)
        .ok_or_else(|| parameter(name, format!("expected a positive number, found {value}")))
}

fn size(op: &mut OpBuilder<'_>, name: &'static str, default: Option<i32>) -> Result<usize, OpError> {
    let value = op.int_opt(name)?.or(default).ok_or(OpError::Missing(name))?;
    positive(name, value)
}

fn resize_bilinear(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let x = op.float_input("x", 3..=5)?;
    let target = [size(op, "target_size_height", Some(1))?, size(op, "target_size_width", Some(1))?];
    let sampling = Sampling::read(op)?;
    Ok(Box::new(move |run| on_grid(run, x.slot, target, [sampling; 2])))
}

fn resize_nearest_neighbor(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let x = op.float_input("x", 3..=5)?;
    let target = [size(op, "target_size_height", None)?, size(op, "target_size_width", None)?];
    Ok(Box::new(move |run| on_grid(run, x.slot, target, [Sampling::Nearest; 2])))
}

/// `floor(size * factor)`.
fn scaled(size: usize, factor: f32) -> Result<usize, KernelError> {
    let scaled = size as f64 * f64::from(factor);
    if !(1.0..=1e9).contains(&scaled) {
        return Err(KernelError::value(format!("a factor of {factor} makes {scaled} of {size}")));
    }
    Ok(scaled as usize)
}

fn upsample(op: &mut OpBuilder<'_>, sampling: Sampling) -> Result<Kernel, OpError> {
    let x = op.float_input("x", 3..=5)?;
    let factors = [op.float("scale_factor_height", 1.0)?, op.float("scale_factor_width", 1.0)?];
    Ok(Box::new(move |run| {
        let shape = run.any(x.slot)?.shape().to_vec();
        let ([height, width], _) = resized(&shape, [1, 1])?;
        let target = [scaled(height, factors[0])?, scaled(width, factors[1])?];
        on_grid(run, x.slot, target, [sampling; 2])
    }))
}

fn upsample_bilinear(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let align = op.bool("align_corners", true)?;
    // iOS 16 adds it for `align_corners = false`; absent, pixel centres are half-way.
    let half_pixel = if op.opset() >= Ios16 { op.bool("half_pixel_centers", !align)? } else { !align };
    upsample(
        op,
        match (align, half_pixel) {
            (true, false) => Sampling::StrictAlignCorners,
            (false, true) => Sampling::UnalignCorners,
            (false, false) => Sampling::Default,
            (true, true) => return Err(parameter("half_pixel_centers", "does not go with `align_corners`")),
        },
    )
}

fn upsample_nearest_neighbor(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    upsample(op, Sampling::Nearest)
}

/// The last `resized_dims` dimensions become those of `shape`; 0 keeps one.
fn resize(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let x = op.input("x")?;
    let shape: Ints = op.ints_or_input("shape")?;
    let dims = size(op, "resized_dims", None)?;
    let sampling = Sampling::read(op)?;
    let nearest = match op.string("interpolation_mode", "LINEAR")?.as_str() {
        "LINEAR" if x.ty.dtype.is_float() => false,
        // Nobody says what becomes of fractions.
        "LINEAR" => return Err(OpError::Unsupported("linear interpolation of integers".into())),
        "NEAREST_NEIGHBOR" => true,
        other => {
            return Err(parameter("interpolation_mode", format!("`{other}` is not an interpolation mode")));
        }
    };
    Ok(Box::new(move |run| {
        let found = run.any(x.slot)?.shape().to_vec();
        let wanted = run.ints(&shape)?;
        if wanted.len() < dims || wanted.len() > found.len() {
            return Err(KernelError::shape(format!("shape {found:?} cannot be resized to {wanted:?}")));
        }
        let first = found.len() - dims;
        let mut made = found.clone();
        for (place, &n) in made[first..].iter_mut().zip(&wanted[wanted.len() - dims..]) {
            match usize::try_from(n) {
                Ok(0) => {}
                Ok(n) => *place = n,
                Err(_) => return Err(KernelError::value(format!("a dimension of {n}"))),
            }
        }
        if found.contains(&0) {
            return Err(KernelError::shape(format!("an image of shape {found:?} has no pixels")));
        }
        run.check_size(&made)?;
        let place = |(&size, &target): (&usize, &usize)| {
            let last = (size - 1) as f64;
            let grid = if nearest { sampling.nearest(last, target) } else { sampling.grid(last, target) };
            taps(&grid, size)
        };
        let places: Vec<Vec<Tap>> = found[first..].iter().zip(&made[first..]).map(place).collect();
        Ok(one(match take_dense(run, x.slot)? {
            Value::F32(x) if nearest => Value::F32(along_axes(run, x, &places, |x, _, _| x)?),
            Value::F32(x) => Value::F32(along_axes(run, x, &places, mix)?),
            Value::I32(x) => Value::I32(along_axes(run, x, &places, |x, _, _| x)?),
        }))
    }))
}

/// `f` of each place's neighbours and its share, along the last axes one after the other.
fn along_axes<T: Element>(
    run: &Run<'_, '_>,
    mut tensor: Tensor<T>,
    places: &[Vec<Tap>],
    f: impl Fn(T, T, f32) -> T,
) -> Result<Tensor<T>, KernelError> {
    let first = tensor.ndim() - places.len();
    for (axis, taps) in places.iter().enumerate().rev() {
        let mut shape = tensor.shape().to_vec();
        let size = std::mem::replace(&mut shape[first + axis], taps.len());
        let inner: usize = shape[first + axis + 1..].iter().product();
        let mut data = run.buffer::<T>(&shape)?;
        for block in tensor.data().unwrap_or(&[]).chunks_exact(size * inner) {
            for &(low, high, share) in taps {
                let (low, high) = (&block[low * inner..][..inner], &block[high * inner..][..inner]);
                data.extend(low.iter().zip(high).map(|(&low, &high)| f(low, high, share)));
            }
        }
        run.recycle(T::value(std::mem::replace(&mut tensor, Tensor::from_data(&shape, data))));
    }
    Ok(tensor)
}

fn crop(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let x = op.float_input("x", 3..=5)?;
    let mut amounts = [[0_usize; 2]; 2];
    for (amount, name) in amounts.iter_mut().zip(["crop_height", "crop_width"]) {
        let values = op.ints_opt(name)?.ok_or(OpError::Missing(name))?;
        let checked: Option<Vec<usize>> = values.iter().map(|&n| usize::try_from(n).ok()).collect();
        let Some(&[before, after]) = checked.as_deref() else {
            return Err(parameter(name, format!("expected two amounts, found {values:?}")));
        };
        *amount = [before, after];
    }
    Ok(Box::new(move |run| {
        let view = run.f32(x.slot)?;
        let ([height, width], _) = resized(view.shape(), [1, 1])?;
        let left = |n: usize, [before, after]: [usize; 2]| n.checked_sub(before.saturating_add(after));
        let (Some(h), Some(w)) = (left(height, amounts[0]), left(width, amounts[1])) else {
            return Err(KernelError::shape(format!("{amounts:?} is more than there is of {height}x{width}")));
        };
        let rank = view.ndim();
        let [top, first] = [amounts[0][0], amounts[1][0]];
        let part = view.slice_axis(rank - 2, top..top + h).slice_axis(rank - 1, first..first + w);
        Ok(one(Value::F32(part.to_tensor_in(run.pool()))))
    }))
}

/// The elements in row-major order.
fn numbers(run: &Run<'_, '_>, slot: usize) -> Result<Vec<f64>, KernelError> {
    Ok(match run.any(slot)? {
        ValueView::F32(view) => view.iter().map(|&x| f64::from(x)).collect(),
        ValueView::I32(view) => view.iter().map(|&x| f64::from(x)).collect(),
    })
}

/// Boxes out of images, each resized to the same size.
fn crop_resize(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let x = op.float_input("x", 4..=4)?;
    // iOS 17 has `boxes` and `box_indices` where the versions before have `roi`.
    let by_roi = op.opset() < Ios17;
    let (boxes, indices) = if by_roi {
        (op.float_input("roi", 5..=5)?, None)
    } else {
        (op.input("boxes")?, op.input_opt("box_indices")?)
    };
    let target = [size(op, "target_height", Some(1))?, size(op, "target_width", Some(1))?];
    let normalized = op.bool("normalized_coordinates", false)?;
    if !(boxes.ty.dtype.is_float() || (boxes.ty.dtype == DType::U16 && !normalized)) {
        return Err(parameter("boxes", format!("expected floats, or uint16 of pixels, found {}", boxes.ty)));
    }
    let scale = f64::from(op.float("spatial_scale", 1.0)?);
    let order = op.string("box_coordinate_mode", "CORNERS_HEIGHT_FIRST")?;
    let (center, width_first) = match order.as_str() {
        "CORNERS_HEIGHT_FIRST" => (false, false),
        "CORNERS_WIDTH_FIRST" => (false, true),
        "CENTER_SIZE_HEIGHT_FIRST" => (true, false),
        "CENTER_SIZE_WIDTH_FIRST" => (true, true),
        _ => {
            return Err(parameter(
                "box_coordinate_mode",
                format!("`{order}` is not an order of coordinates"),
            ));
        }
    };
    let sampling = Sampling::read(op)?;
    let pad = if op.opset() >= Ios16 { op.float("pad_value", 0.0)? } else { 0.0 };
    Ok(Box::new(move |run| {
        let view = run.f32(x.slot)?;
        let shape = view.shape().to_vec();
        let [batch, channels, height, width] = shape[..] else {
            return Err(KernelError::shape(format!("expected rank 4, found shape {shape:?}")));
        };
        let images = view.to_contiguous_in(run.pool());
        let list = numbers(run, boxes.slot)?;
        let columns = match *run.any(boxes.slot)?.shape() {
            [_, 4] if !by_roi => 4,
            [_, 1, columns @ (4 | 5), 1, 1] if by_roi => columns,
            ref other => return Err(KernelError::shape(format!("boxes of shape {other:?}"))),
        };
        let rows: Vec<&[f64]> = list.chunks_exact(columns).collect();
        let given: Option<Vec<i32>> =
            indices.as_ref().map(|i| run.i32(i.slot).map(|v| v.iter().copied().collect())).transpose()?;
        // Which image each box is cut from: its own, the one with its number, or (by `roi` without index) all.
        let mut jobs: Vec<(usize, &[f64])> = Vec::new();
        for (n, row) in rows.iter().enumerate() {
            let image = match (&given, columns) {
                (Some(given), _) => given.get(n).map(|&i| i64::from(i)),
                (None, 5) => Some(row[0] as i64),
                (None, _) if by_roi => None,
                (None, _) => i64::try_from(n).ok(),
            };
            match image {
                None if by_roi => jobs.extend((0..batch).map(|image| (image, *row))),
                None => return Err(KernelError::value("fewer box indices than boxes")),
                Some(image) => {
                    let image = usize::try_from(image).ok().filter(|&image| image < batch);
                    let image = image.ok_or_else(|| KernelError::value(format!("box {n} is of no image")))?;
                    jobs.push((image, &row[columns - 4..]));
                }
            }
        }
        let made: Vec<usize> = if !by_roi {
            vec![rows.len(), channels, target[0], target[1]]
        } else {
            vec![rows.len(), if columns == 5 { 1 } else { batch }, channels, target[0], target[1]]
        };
        let mut data = run.buffer::<f32>(&made)?;
        if height == 0 || width == 0 {
            return Err(KernelError::shape(format!("boxes of an empty image {shape:?}")));
        }
        for (image, row) in jobs {
            let mut c = [row[0], row[1], row[2], row[3]];
            if width_first {
                c = [c[1], c[0], c[3], c[2]];
            }
            if center {
                c = [c[0] - c[2] / 2.0, c[1] - c[3] / 2.0, c[0] + c[2] / 2.0, c[1] + c[3] / 2.0];
            }
            let ys = edge(sampling, [c[0], c[2]], height, target[0], normalized, scale);
            let xs = edge(sampling, [c[1], c[3]], width, target[1], normalized, scale);
            let inside = |p: &f64, n: usize| *p >= 0.0 && *p <= (n - 1) as f64;
            let (row_taps, column_taps) = (taps(&ys, height), taps(&xs, width));
            let area = height * width;
            for channel in 0..channels {
                let plane = &images.data()[(image * channels + channel) * area..][..area];
                let start = data.len();
                sample(plane, width, &row_taps, &column_taps, &mut data);
                for (i, y) in ys.iter().enumerate() {
                    for (j, x) in xs.iter().enumerate() {
                        if !(inside(y, height) && inside(x, width)) {
                            data[start + i * xs.len() + j] = pad;
                        }
                    }
                }
            }
        }
        Ok(one(Tensor::from_data(&made, data)))
    }))
}

/// The places of samples of a box's edge.
fn edge(
    sampling: Sampling,
    ends: [f64; 2],
    size: usize,
    target: usize,
    normalized: bool,
    scale: f64,
) -> Vec<f64> {
    let extent = if normalized { size.saturating_sub(1) as f64 } else { 1.0 };
    let [start, end] = ends.map(|end| end * scale * extent);
    sampling.grid(end - start, target).into_iter().map(|place| start + place).collect()
}

/// What lies outside an image.
#[derive(Clone, Copy, Debug)]
enum Outside {
    Constant(f32),
    Border,
    Reflection,
    Symmetric,
}

impl Outside {
    /// The pixel that stands for `place` of an edge of `size` pixels; none where the constant does.
    fn index(self, place: i64, size: usize) -> Option<usize> {
        let n = i64::try_from(size).ok()?;
        let index = match self {
            Self::Constant(_) => place,
            Self::Border => place.clamp(0, n - 1),
            Self::Reflection if n == 1 => 0,
            Self::Reflection => (n - 1) - (place.rem_euclid(2 * (n - 1)) - (n - 1)).abs(),
            Self::Symmetric => {
                let turn = place.rem_euclid(2 * n);
                turn.min(2 * n - 1 - turn)
            }
        };
        usize::try_from(index).ok().filter(|&index| index < size)
    }
}

/// How `resample` and `affine` read their coordinates and their image.
struct Resampling {
    nearest: bool,
    outside: Outside,
    /// `[lowest, extent]` of normalised coordinates; pixels if `None`.
    normalized: Option<[f64; 2]>,
    align: bool,
}

impl Resampling {
    fn read(op: &mut OpBuilder<'_>) -> Result<Self, OpError> {
        let value = op.float("padding_value", 0.0)?;
        let one_of = |name: &'static str, text: &str| parameter(name, format!("`{text}` is not a mode"));
        let mode = op.string_opt("sampling_mode")?.ok_or(OpError::Missing("sampling_mode"))?;
        let padding = op.string_opt("padding_mode")?.ok_or(OpError::Missing("padding_mode"))?;
        let coordinates = op.string_opt("coordinates_mode")?.ok_or(OpError::Missing("coordinates_mode"))?;
        Ok(Self {
            nearest: match mode.as_str() {
                "nearest" => true,
                "bilinear" => false,
                other => return Err(one_of("sampling_mode", other)),
            },
            outside: match padding.as_str() {
                "constant" => Outside::Constant(value),
                "border" => Outside::Border,
                "reflection" => Outside::Reflection,
                "symmetric" => Outside::Symmetric,
                other => return Err(one_of("padding_mode", other)),
            },
            normalized: match coordinates.as_str() {
                "unnormalized" => None,
                "normalized_minus_one_to_one" => Some([-1.0, 2.0]),
                "normalized_zero_to_one" => Some([0.0, 1.0]),
                other => return Err(one_of("coordinates_mode", other)),
            },
            align: op.bool("align_corners", false)?,
        })
    }

    /// A coordinate in pixels.
    fn pixels(&self, x: f64, size: usize) -> f64 {
        match self.normalized {
            None => x,
            Some([lowest, extent]) => {
                let share = (x - lowest) / extent;
                if self.align { share * (size as f64 - 1.0) } else { share * size as f64 - 0.5 }
            }
        }
    }

    fn fetch(&self, plane: &[f32], [height, width]: [usize; 2], y: i64, x: i64) -> f32 {
        match (self.outside.index(y, height), self.outside.index(x, width)) {
            (Some(y), Some(x)) => plane[y * width + x],
            _ => match self.outside {
                Outside::Constant(value) => value,
                Outside::Border | Outside::Reflection | Outside::Symmetric => 0.0,
            },
        }
    }

    /// The image at a place given as the program gives it.
    fn at(&self, plane: &[f32], size: [usize; 2], [x, y]: [f64; 2]) -> f32 {
        let (x, y) = (self.pixels(x, size[1]), self.pixels(y, size[0]));
        if self.nearest {
            // The middle between two pixels is of the one further from zero, as coremltools' tests of `resample` have it.
            return self.fetch(plane, size, y.round() as i64, x.round() as i64);
        }
        let (left, top) = (x.floor(), y.floor());
        let (across, down) = ((x - left) as f32, (y - top) as f32);
        // Saturating, so that a neighbour of the furthest place is a number.
        let (left, top) = (left as i64, top as i64);
        let (right, bottom) = (left.saturating_add(1), top.saturating_add(1));
        let upper = self.fetch(plane, size, top, left) * (1.0 - across)
            + self.fetch(plane, size, top, right) * across;
        let lower = self.fetch(plane, size, bottom, left) * (1.0 - across)
            + self.fetch(plane, size, bottom, right) * across;
        upper * (1.0 - down) + lower * down
    }

    /// All images of `x` at the places that `place(image, row, column)` gives.
    fn run(
        &self,
        run: &Run<'_, '_>,
        x: usize,
        target: [usize; 2],
        place: impl Fn(usize, usize, usize) -> [f64; 2],
    ) -> Result<Outputs, KernelError> {
        let view = run.f32(x)?;
        let shape = view.shape().to_vec();
        let [batch, channels, height, width] = shape[..] else {
            return Err(KernelError::shape(format!("expected rank 4, found shape {shape:?}")));
        };
        if height == 0 || width == 0 {
            return Err(KernelError::shape(format!("an image of shape {shape:?} has no pixels")));
        }
        let made = [batch, channels, target[0], target[1]];
        let mut data = run.buffer::<f32>(&made)?;
        let dense = view.to_contiguous_in(run.pool());
        for (i, plane) in dense.data().chunks_exact(height * width).enumerate() {
            for row in 0..target[0] {
                for column in 0..target[1] {
                    data.push(self.at(plane, [height, width], place(i / channels, row, column)));
                }
            }
        }
        Ok(one(Tensor::from_data(&made, data)))
    }
}

fn resample(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let x = op.float_input("x", 4..=4)?;
    let coordinates = op.input("coordinates")?;
    let resampling = Resampling::read(op)?;
    Ok(Box::new(move |run| {
        let places = numbers(run, coordinates.slot)?;
        let shape = run.any(coordinates.slot)?.shape().to_vec();
        let batch = run.any(x.slot)?.shape().first().copied();
        let [count, height, width, 2] = shape[..] else {
            return Err(KernelError::shape(format!("coordinates of shape {shape:?}, expected [B, H, W, 2]")));
        };
        if batch != Some(count) {
            return Err(KernelError::shape(format!("coordinates for {count} images")));
        }
        resampling.run(run, x.slot, [height, width], |image, row, column| {
            let at = ((image * height + row) * width + column) * 2;
            [places[at], places[at + 1]]
        })
    }))
}

fn affine(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let x = op.float_input("x", 4..=4)?;
    let matrix = op.float_input("transform_matrix", 2..=2)?;
    let target = [size(op, "output_height", None)?, size(op, "output_width", None)?];
    let resampling = Resampling::read(op)?;
    Ok(Box::new(move |run| {
        let view = run.f32(matrix.slot)?;
        let batch = run.any(x.slot)?.shape().first().copied().unwrap_or(0);
        let shape = view.shape().to_vec();
        if !matches!(shape[..], [n, 6] if n == 1 || n == batch) {
            return Err(KernelError::shape(format!("matrices of shape {shape:?} for {batch} images")));
        }
        let rows: Vec<f64> = view.iter().map(|&x| f64::from(x)).collect();
        let spread = |i: usize, n: usize| if n == 1 { -1.0 } else { 2.0 * i as f64 / (n - 1) as f64 - 1.0 };
        resampling.run(run, x.slot, target, |image, row, column| {
            let m = if shape[0] == 1 { &rows[..6] } else { &rows[image * 6..][..6] };
            let (x, y) = (spread(column, target[1]), spread(row, target[0]));
            [m[0] * x + m[1] * y + m[2], m[3] * x + m[4] * y + m[5]]
        })
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Constant, ConstantData};
    use crate::ops::testing::{Case, assert_close};

    #[test]
    fn grids_are_those_of_the_documentation() {
        let close = |found: Vec<f64>, expected: &[f64]| {
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 0.005), "{found:?} {expected:?}");
        };
        close(Sampling::UnalignCorners.grid(1.0, 5), &[0.0, 0.1, 0.5, 0.9, 1.0]);
        close(Sampling::StrictAlignCorners.grid(1.0, 5), &[0.0, 0.25, 0.5, 0.75, 1.0]);
        close(Sampling::Default.grid(1.0, 5), &[0.0, 0.4, 0.8, 1.0, 1.0]);
        close(Sampling::OffsetCorners.grid(1.0, 5), &[0.1, 0.3, 0.5, 0.7, 0.9]);
        close(Sampling::AlignCorners.grid(4.0, 1), &[2.0]);
    }

    /// One row of the grid over the box from 0 to 3 of 4x4 pixels, in each mode.
    #[test]
    fn boxes_are_sampled_as_images_are() {
        let x: Vec<f32> = (0..16).map(|i| i as f32).collect();
        let case = |box_: [f32; 4], width: i32| {
            let case = Case::in_opset("crop_resize", Ios15).input("x", &[1, 1, 4, 4], &x);
            case.input("roi", &[1, 1, 4, 1, 1], &box_).int("target_width", width)
        };
        let row = [0.0, 0.0, 0.0, 3.0];
        assert_eq!(case(row, 2).f32(), (vec![1, 1, 1, 1, 2], vec![0.0, 2.0]));
        let found =
            |mode: &str, box_: [f32; 4], width: i32| case(box_, width).string("sampling_mode", mode).f32().1;
        assert_eq!(found("DEFAULT", row, 8), [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.0]);
        assert_eq!(found("STRICT_ALIGN_CORNERS", row, 2), [0.0, 3.0]);
        assert_eq!(found("UNALIGN_CORNERS", row, 2), [0.5, 2.5]);
        assert_eq!(found("UNALIGN_CORNERS", row, 8), [0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]);
        assert_eq!(found("OFFSET_CORNERS", row, 3), [0.5, 1.5, 2.5]);
        // A box of half a pixel is sampled as one of a pixel, and within its bounds.
        assert_eq!(found("OFFSET_CORNERS", [0.0, 1.0, 0.0, 1.5], 4), [1.125, 1.375, 1.5, 1.5]);
        assert_eq!(found("ALIGN_CORNERS", [0.0, 2.0, 0.0, 1.0], 2), [2.0, 1.0]);
        assert_eq!(found("DEFAULT", [f32::NAN, 0.0, f32::INFINITY, 3.0], 2), [0.0, 0.0]);
    }

    #[test]
    fn nearest_neighbours_are_repeated() {
        let case = Case::new("upsample_nearest_neighbor").input("x", &[1, 1, 2], &[1.0, 2.0]);
        let (shape, data) = case.float("scale_factor_height", 2.0).float("scale_factor_width", 2.0).f32();
        assert_eq!((shape, data), (vec![1, 2, 4], vec![1.0, 1.0, 2.0, 2.0, 1.0, 1.0, 2.0, 2.0]));
    }

    #[test]
    fn what_lies_outside_is_mirrored_with_or_without_the_edge() {
        let all = |outside: Outside| -> Vec<Option<usize>> { (-4..7).map(|i| outside.index(i, 3)).collect() };
        let some = |list: [usize; 11]| list.map(Some).to_vec();
        assert_eq!(all(Outside::Reflection), some([0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2]));
        assert_eq!(all(Outside::Symmetric), some([2, 2, 1, 0, 0, 1, 2, 2, 1, 0, 0]));
        assert_eq!(all(Outside::Border), some([0, 0, 0, 0, 0, 1, 2, 2, 2, 2, 2]));
    }

    #[test]
    fn hostile_sizes_and_places_are_refused_or_answered() {
        let x = [1.0, 2.0, 3.0, 4.0];
        let huge =
            Case::new("resize_bilinear").input("x", &[1, 2, 2], &x).int("target_size_height", i32::MAX);
        assert!(huge.int("target_size_width", i32::MAX).error().contains("over its limit"));
        let error =
            Case::new("upsample_bilinear").input("x", &[1, 2, 2], &x).float("scale_factor_height", f32::NAN);
        assert!(error.error().contains("a factor of NaN"));
        let far = Case::new("resample")
            .input("x", &[1, 1, 2, 2], &x)
            .input("coordinates", &[1, 1, 2, 2], &[f32::INFINITY, f32::NAN, 1e30, -1e30])
            .string("sampling_mode", "bilinear")
            .string("padding_mode", "border")
            .string("coordinates_mode", "unnormalized")
            .float("padding_value", 0.0)
            .bool("align_corners", true);
        assert_eq!(far.f32().0, [1, 1, 1, 2]);
    }

    /// As coremltools' `TestResize` has it.
    #[test]
    fn resize_takes_the_pixel_that_the_middle_of_a_sample_lies_in() {
        let case = Case::new("resize")
            .input("x", &[1, 1, 2, 1], &[-6.174, 9.371])
            .ints("shape", &[1, 1, 3, 2])
            .int("resized_dims", 2)
            .string("interpolation_mode", "NEAREST_NEIGHBOR")
            .string("sampling_mode", "DEFAULT");
        assert_eq!(case.f32().1, [-6.174, -6.174, 9.371, 9.371, 9.371, 9.371]);
    }

    #[test]
    fn resize_takes_the_nearest_pixel_in_every_sampling_mode() {
        let found = |mode: &str, target: i32| {
            let case = Case::new("resize").input("x", &[4], &[0.0, 1.0, 2.0, 3.0]).ints("shape", &[target]);
            let case = case.int("resized_dims", 1).string("interpolation_mode", "NEAREST_NEIGHBOR");
            case.string("sampling_mode", mode).f32().1
        };
        // Places 0, 1.5 and 3; 1.5; 0.5, 1.5 and 2.5.
        assert_eq!(found("STRICT_ALIGN_CORNERS", 3), [0.0, 2.0, 3.0]);
        assert_eq!(found("ALIGN_CORNERS", 1), [2.0]);
        assert_eq!(found("OFFSET_CORNERS", 3), [1.0, 2.0, 3.0]);
        // Places 0.5 and 2.5; the middles of the samples are 1 and 3.
        assert_eq!(found("UNALIGN_CORNERS", 2), [1.0, 3.0]);
        assert_eq!(found("DEFAULT", 2), [1.0, 3.0]);
        assert_eq!(found("DEFAULT", 8), [0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0]);
    }

    #[test]
    fn resize_changes_as_many_dimensions_as_it_is_told() {
        let x: Vec<f32> = (0..8).map(|i| i as f32).collect();
        let case = |dims: i32, shape: &[i32]| {
            Case::new("resize").input("x", &[2, 2, 2], &x).ints("shape", shape).int("resized_dims", dims)
        };
        let strict = |case: Case| case.string("sampling_mode", "STRICT_ALIGN_CORNERS").f32();
        let expected = vec![0.0, 1.0, 2.0, 3.0, 2.0, 3.0, 4.0, 5.0, 4.0, 5.0, 6.0, 7.0];
        assert_eq!(strict(case(3, &[3, 0, 2])), (vec![3, 2, 2], expected));
        assert_eq!(strict(case(1, &[7, 7, 3])).1[..6], [0.0, 0.5, 1.0, 2.0, 2.5, 3.0]);
        // What is not resized is not sampled anew either, which would move it.
        assert_eq!(case(1, &[1]).string("sampling_mode", "OFFSET_CORNERS").f32().1, [0.5, 2.5, 4.5, 6.5]);
        assert!(case(3, &[1, 1]).error().contains("cannot be resized"));
        assert!(case(3, &[i32::MAX; 3]).error().contains("over its limit"));
    }

    #[test]
    fn resize_keeps_integers_exact() {
        let case = |mode: &str| {
            let case =
                Case::new("resize").input_i32("x", &[1, 2], &[(1 << 24) + 1, -7]).ints("shape", &[2, 4]);
            case.int("resized_dims", 2).string("interpolation_mode", mode)
        };
        let row = [(1 << 24) + 1, (1 << 24) + 1, -7, -7];
        assert_eq!(case("NEAREST_NEIGHBOR").i32(), (vec![2, 4], [row, row].concat()));
        assert_eq!(case("LINEAR").error(), "not supported: linear interpolation of integers");
    }

    #[test]
    fn boxes_may_be_of_pixels_in_uint16() {
        let x: Vec<f32> = (0..16).map(|i| i as f32).collect();
        let case = || {
            let boxes = ConstantData::I32(vec![1, 0, 1, 3]);
            let case = Case::new("crop_resize").input("x", &[1, 1, 4, 4], &x).int("target_width", 2);
            case.constant("boxes", Constant::new(DType::U16, vec![1, 4], boxes).unwrap())
        };
        assert_eq!(case().f32(), (vec![1, 1, 1, 2], vec![4.0, 6.0]));
        let error = case().bool("normalized_coordinates", true).error();
        assert_eq!(error, "parameter `boxes`: expected floats, or uint16 of pixels, found uint16[1, 4]");
    }

    #[test]
    fn parameters_of_later_opsets_are_unknown() {
        let x = [0.0; 4];
        let boxes = |opset, name| {
            let case = Case::in_opset("crop_resize", opset).input("x", &[1, 1, 2, 2], &x);
            if name == "roi" {
                case.input("roi", &[1, 1, 4, 1, 1], &x)
            } else {
                case.input("boxes", &[1, 4], &x)
            }
        };
        assert_eq!(boxes(Ios16, "boxes").error(), "parameter `roi` is missing");
        assert_eq!(boxes(Ios17, "roi").error(), "parameter `boxes` is missing");
        let unknown = |name: &str| format!("unknown parameter `{name}` in opset iOS15");
        assert_eq!(boxes(Ios15, "roi").float("pad_value", 1.0).error(), unknown("pad_value"));
        let upsample = |opset| {
            let case = Case::in_opset("upsample_bilinear", opset).input("x", &[1, 2, 2], &x);
            case.bool("align_corners", false).bool("half_pixel_centers", false)
        };
        assert_eq!(upsample(Ios15).error(), unknown("half_pixel_centers"));
        assert_eq!(upsample(Ios16).f32().0, [1, 2, 2]);
    }

    /// As coremltools' `TestResample` has it: 3.5 of two pixels is the place 6.5, and 1.2 is 1.9.
    #[test]
    fn the_middle_between_two_pixels_is_of_the_further_one() {
        let case = Case::new("resample")
            .input("x", &[1, 1, 2, 2], &[11.0, 22.0, 33.0, 44.0])
            .input("coordinates", &[1, 2, 2, 2], &[-1.0, -2.0, -3.7, -1.0, 0.0, 0.0, 3.5, 1.2])
            .string("sampling_mode", "nearest")
            .string("padding_mode", "symmetric")
            .string("coordinates_mode", "normalized_zero_to_one")
            .float("padding_value", -1.0)
            .bool("align_corners", false);
        assert_eq!(case.f32().1, [22.0, 33.0, 11.0, 33.0]);
    }

    #[test]
    fn crop_takes_off_its_edges() {
        let x: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let case = Case::new("crop")
            .input("x", &[1, 3, 4], &x)
            .ints("crop_height", &[1, 0])
            .ints("crop_width", &[1, 2]);
        assert_close(&case.f32().1, &[5.0, 9.0], 0.0);
        let case = Case::new("crop")
            .input("x", &[1, 3, 4], &x)
            .ints("crop_height", &[2, 2])
            .ints("crop_width", &[0, 0]);
        assert!(case.error().contains("more than there is"));
    }
}
