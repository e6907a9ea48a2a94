//! `tensor_transformation` ops: the same elements in another shape or order.
//!
//! Semantics: coremltools, `mil/ops/defs/iOS15/tensor_transformation.py`, `iOS16/tensor_transformation.py` and
//! `iOS17/tensor_transformation.py`; the order of channels in `depth_to_space` and `pixel_shuffle` is that of the examples
//! at `ReorganizeDataLayerParams` in `NeuralNetwork.proto`, the order of batches in `space_to_batch` that of TensorFlow.

use rten::PoolRef;
use rten_tensor::prelude::*;
use rten_tensor::{Tensor, TensorView};
use smallvec::SmallVec;

use super::strided::{Element, Strides, Walk, dense_strides, for_each_type, moved, span, take_reshaped};
use super::{Axis, Ints, Kernel, OpBuilder, OpDef, Run, parameter, resolve_axis};
use crate::error::{KernelError, OpError};
use crate::ir::Constant;
use crate::ir::Opset::{Ios13, Ios16, Ios17};
use crate::types::{DType, TensorType, element_count};
use crate::value::{Value, one};

pub(crate) const OPS: &[OpDef] = &[
    OpDef::new("batch_to_space", &[Ios13], batch_to_space),
    OpDef::new("depth_to_space", &[Ios13], |op| reorganize(op, "block_size", depth_to_space)),
    OpDef::new("expand_dims", &[Ios13, Ios17], expand_dims),
    OpDef::new("pixel_shuffle", &[Ios13], |op| reorganize(op, "upscale_factor", pixel_shuffle)),
    OpDef::new("pixel_unshuffle", &[Ios16], |op| reorganize(op, "downscale_factor", pixel_unshuffle)),
    OpDef::new("reshape", &[Ios13, Ios17], reshape),
    OpDef::new("reshape_like", &[Ios16, Ios17], reshape_like),
    OpDef::new("reverse", &[Ios13, Ios17], reverse),
    OpDef::new("reverse_sequence", &[Ios13, Ios17], reverse_sequence),
    OpDef::new("sliding_windows", &[Ios13, Ios17], sliding_windows),
    OpDef::new("space_to_batch", &[Ios13], space_to_batch),
    OpDef::new("space_to_depth", &[Ios13], |op| reorganize(op, "block_size", space_to_depth)),
    OpDef::new("squeeze", &[Ios13, Ios17], squeeze),
    OpDef::new("transpose", &[Ios13, Ios17], transpose),
];

/// Axes of a tensor of `rank`, made non-negative; each may occur once.
fn distinct_axes(axes: &[i32], rank: usize) -> Result<SmallVec<[usize; 8]>, KernelError> {
    let mut resolved: SmallVec<[usize; 8]> = SmallVec::new();
    for &axis in axes {
        let axis = resolve_axis(axis, rank)?;
        if resolved.contains(&axis) {
            return Err(KernelError::value(format!("axis {axis} occurs twice in {axes:?}")));
        }
        resolved.push(axis);
    }
    Ok(resolved)
}

/// As [`distinct_axes`], at load: checked where the rank is known.
fn check_axes(name: &'static str, axes: &[i32], rank: Option<usize>) -> Result<(), OpError> {
    match rank {
        Some(rank) => distinct_axes(axes, rank).map(|_| ()).map_err(|e| parameter(name, e.to_string())),
        None => Ok(()),
    }
}

/// A dimension of size 1 at each of `axes`, which count in the result. Moves nothing.
fn expand_dims(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let x = op.input("x")?;
    let axes = op.ints_opt("axes")?.ok_or(OpError::Missing("axes"))?;
    check_axes("axes", &axes, x.rank().map(|rank| rank + axes.len()))?;
    Ok(Box::new(move |run| {
        let mut value = run.take(x.slot)?;
        let mut axes = distinct_axes(&axes, value.shape().len() + axes.len())?;
        axes.sort_unstable();
        for axis in axes {
            match &mut value {
                Value::F32(t) => t.insert_axis(axis),
                Value::I32(t) => t.insert_axis(axis),
            }
        }
        Ok(one(value))
    }))
}

/// Removes dimensions of size 1: those of `axes`, or all. Axes of another size stay, as in PyTorch. Moves nothing.
fn squeeze(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let x = op.input("x")?;
    let axes = op.ints_opt("axes")?;
    check_axes("axes", axes.as_deref().unwrap_or_default(), x.rank())?;
    Ok(Box::new(move |run| {
        let mut value = run.take(x.slot)?;
        let rank = value.shape().len();
        let axes = axes.as_ref().map(|axes| distinct_axes(axes, rank)).transpose()?;
        for axis in (0..rank).rev() {
            let wanted = axes.as_ref().is_none_or(|axes| axes.contains(&axis));
            if wanted && value.shape().get(axis) == Some(&1) {
                match &mut value {
                    Value::F32(t) => t.remove_axis(axis),
                    Value::I32(t) => t.remove_axis(axis),
                }
            }
        }
        Ok(one(value))
    }))
}

/// Permutes the layout. Moves nothing.
fn transpose(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let x = op.input("x")?;
    let perm = op.ints_opt("perm")?.ok_or(OpError::Missing("perm"))?;
    if x.rank().is_some_and(|rank| rank != perm.len()) {
        return Err(parameter("perm", format!("expected {} axes for {}", x.rank().unwrap_or(0), x.ty)));
    }
    let order = distinct_axes(&perm, perm.len()).map_err(|e| parameter("perm", e.to_string()))?;
    Ok(Box::new(move |run| {
        let mut value = run.take(x.slot)?;
        if value.shape().len() != order.len() {
            return Err(KernelError::shape(format!("{perm:?} does not permute {:?}", value.shape())));
        }
        match &mut value {
            Value::F32(t) => t.permute(&order),
            Value::I32(t) => t.permute(&order),
        }
        Ok(one(value))
    }))
}

/// What `shape` means for elements of shape `from`.
///
/// Up to iOS 16 a 0 keeps the dimension at its place and needs the ranks to be equal; from iOS 17 it takes the dimension
/// that has the same place counted from the right, or 1. One -1 takes what is left.
fn target_shape(from: &[usize], shape: &[i32], zeros_from_right: bool) -> Result<Vec<usize>, KernelError> {
    let refuse = |why: &str| KernelError::shape(format!("cannot reshape {from:?} to {shape:?}: {why}"));
    if !zeros_from_right && shape.contains(&0) && from.len() != shape.len() {
        return Err(refuse("a 0 needs equal ranks"));
    }
    let mut free = None;
    let mut result = Vec::with_capacity(shape.len());
    for (i, &size) in shape.iter().enumerate() {
        result.push(match size {
            0 => (from.len() + i).checked_sub(shape.len()).and_then(|i| from.get(i)).copied().unwrap_or(1),
            -1 if free.replace(i).is_none() => 1,
            -1 => return Err(refuse("more than one -1")),
            size => usize::try_from(size).map_err(|_| refuse("a negative size"))?,
        });
    }
    let (Some(have), Some(rest)) = (element_count(from), element_count(&result)) else {
        return Err(refuse("too many elements"));
    };
    if let Some(place) = free.and_then(|i| result.get_mut(i)) {
        *place = have.checked_div(rest).ok_or_else(|| refuse("-1 could be anything"))?;
    }
    match element_count(&result) {
        Some(count) if count == have => Ok(result),
        _ => Err(refuse("the numbers of elements differ")),
    }
}

fn reshape(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let x = op.input("x")?;
    let shape = op.ints_or_input("shape")?;
    let zeros_from_right = op.opset() >= Ios17;
    if let (Some(from), Ints::Const(shape)) = (x.ty.fixed_shape(), &shape) {
        target_shape(&from, shape, zeros_from_right).map_err(|e| parameter("shape", e.to_string()))?;
    }
    Ok(Box::new(move |run| {
        let shape = run.ints(&shape)?;
        let shape = target_shape(run.any(x.slot)?.shape(), &shape, zeros_from_right)?;
        Ok(one(take_reshaped(run, x.slot, &shape)?))
    }))
}

/// `list[begin:end]` as Python means it.
fn python_slice(list: &[usize], begin: i32, end: Option<i32>) -> &[usize] {
    let clamp = |index: i32| {
        let index = i64::from(index);
        let from_start = if index < 0 { index + list.len() as i64 } else { index };
        usize::try_from(from_start).unwrap_or(0).min(list.len())
    };
    let end = end.map_or(list.len(), clamp);
    list.get(clamp(begin)..end).unwrap_or_default()
}

/// Scalars of a tuple of constants.
fn scalars(name: &'static str, tuple: &[std::sync::Arc<Constant>]) -> Result<Vec<i32>, OpError> {
    tuple
        .iter()
        .map(|constant| match constant.to_i32()?[..] {
            [x] => Ok(x),
            _ => Err(parameter(name, format!("expected scalars, found shape {:?}", constant.shape()))),
        })
        .collect()
}

fn reshape_like(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let x = op.input("x")?;
    let references = op.inputs("ref_tensors")?;
    let begins = scalars("begins", &op.constants("begins")?)?;
    let ends = scalars("ends", &op.constants("ends")?)?;
    let masks = op.constants("end_masks")?;
    if masks.iter().any(|mask| mask.dtype() != DType::Bool) {
        return Err(parameter("end_masks", "expected booleans"));
    }
    let masks = scalars("end_masks", &masks)?;
    if [begins.len(), ends.len(), masks.len()] != [references.len(); 3] {
        return Err(OpError::Invalid(format!(
            "{} ref_tensors, {} begins, {} ends, {} end_masks",
            references.len(),
            begins.len(),
            ends.len(),
            masks.len()
        )));
    }
    let ends: Vec<_> = ends.into_iter().zip(masks).map(|(end, mask)| (mask == 0).then_some(end)).collect();
    Ok(Box::new(move |run| {
        let mut shape = Vec::new();
        for ((reference, &begin), &end) in references.iter().zip(&begins).zip(&ends) {
            shape.extend_from_slice(python_slice(run.any(reference.slot)?.shape(), begin, end));
        }
        let from = run.any(x.slot)?.shape().to_vec();
        if element_count(&from) != element_count(&shape) {
            return Err(KernelError::shape(format!("cannot reshape {from:?} to {shape:?}")));
        }
        Ok(one(take_reshaped(run, x.slot, &shape)?))
    }))
}

/// A dimension of a shape with its stride.
type Dim = (usize, isize);

/// Splits a dimension in two: `outer` steps of `inner` elements each.
fn split(dim: Dim, inner: usize) -> [Dim; 2] {
    let outer = dim.0.checked_div(inner).unwrap_or(0);
    [(outer, dim.1.saturating_mul(isize::try_from(inner).unwrap_or(isize::MAX))), (inner, dim.1)]
}

/// `size / by`, or an error where it does not divide.
fn divided(what: &str, size: usize, by: usize) -> Result<usize, KernelError> {
    match size.checked_rem(by) {
        Some(0) => Ok(size / by),
        _ => Err(KernelError::shape(format!("a {what} of {size} is not a multiple of {by}"))),
    }
}

fn times(what: &str, size: usize, by: usize) -> Result<usize, KernelError> {
    size.checked_mul(by).ok_or_else(|| KernelError::shape(format!("a {what} of {size} times {by}")))
}

/// Given the block size and the last three dimensions: those of the result, and how its elements are found (the dimensions,
/// in row-major order of the result).
type Rearrange = fn(usize, [Dim; 3]) -> Result<([usize; 3], SmallVec<[Dim; 6]>), KernelError>;

/// Channel `(i * b + j) * C + c` goes to row `i`, column `j` of the block of channel `c`.
fn depth_to_space(b: usize, [c, h, w]: [Dim; 3]) -> Result<([usize; 3], SmallVec<[Dim; 6]>), KernelError> {
    let channels = divided("depth", c.0, times("block", b, b)?)?;
    let [block, channel] = split(c, channels);
    let [rows, columns] = split((times("block", b, b)?, block.1), b);
    Ok((
        [channels, times("height", h.0, b)?, times("width", w.0, b)?],
        SmallVec::from_slice(&[channel, h, rows, w, columns]),
    ))
}

/// Channel `(c * f + i) * f + j` goes to row `i`, column `j` of the block of channel `c`.
fn pixel_shuffle(f: usize, [c, h, w]: [Dim; 3]) -> Result<([usize; 3], SmallVec<[Dim; 6]>), KernelError> {
    let area = times("block", f, f)?;
    let channels = divided("depth", c.0, area)?;
    let [channel, block] = split(c, area);
    let [rows, columns] = split(block, f);
    Ok((
        [channels, times("height", h.0, f)?, times("width", w.0, f)?],
        SmallVec::from_slice(&[channel, h, rows, w, columns]),
    ))
}

/// The inverse of [`depth_to_space`].
fn space_to_depth(b: usize, [c, h, w]: [Dim; 3]) -> Result<([usize; 3], SmallVec<[Dim; 6]>), KernelError> {
    let (height, width) = (divided("height", h.0, b)?, divided("width", w.0, b)?);
    let ([h, rows], [w, columns]) = (split(h, b), split(w, b));
    let depth = times("depth", c.0, times("block", b, b)?)?;
    Ok(([depth, height, width], SmallVec::from_slice(&[rows, columns, c, h, w])))
}

/// The inverse of [`pixel_shuffle`].
fn pixel_unshuffle(f: usize, [c, h, w]: [Dim; 3]) -> Result<([usize; 3], SmallVec<[Dim; 6]>), KernelError> {
    let (height, width) = (divided("height", h.0, f)?, divided("width", w.0, f)?);
    let ([h, rows], [w, columns]) = (split(h, f), split(w, f));
    let depth = times("depth", c.0, times("block", f, f)?)?;
    Ok(([depth, height, width], SmallVec::from_slice(&[c, rows, columns, h, w])))
}

/// Moves elements between channels and space; all dimensions before the last three are batches.
fn reorganize(op: &mut OpBuilder<'_>, block: &'static str, rearrange: Rearrange) -> Result<Kernel, OpError> {
    let x = op.input("x")?;
    check_rank(&x.ty, |rank| rank >= 3)?;
    let size = op.int_opt(block)?.ok_or(OpError::Missing(block))?;
    let size = usize::try_from(size)
        .ok()
        .filter(|&size| size > 0)
        .ok_or_else(|| parameter(block, format!("expected a positive size, found {size}")))?;
    Ok(Box::new(move |run| {
        let view = run.any(x.slot)?;
        let (lead, last) = match view.shape() {
            &[ref lead @ .., c, h, w] => (lead, [c, h, w]),
            other => return Err(KernelError::shape(format!("expected [.., C, H, W], found {other:?}"))),
        };
        let (last, _) = rearrange(size, last.map(|n| (n, 0)))?;
        let shape = [lead, &last].concat();
        Ok(one(for_each_type!(view, view => {
            let sizes = view.shape().to_vec();
            moved(run, &view, &shape, |strides| {
                let dims: SmallVec<[Dim; 8]> = sizes.iter().copied().zip(strides.iter().copied()).collect();
                match dims[..] {
                    [ref lead @ .., c, h, w] => {
                        let inner = rearrange(size, [c, h, w]).map(|(_, dims)| dims).unwrap_or_default();
                        Walk::new(0, lead.iter().copied().chain(inner))
                    }
                    _ => Walk::new(0, []),
                }
            })?
        })))
    }))
}

/// An error unless the rank of `x`, where it is known, is as wanted.
fn check_rank(ty: &TensorType, wanted: impl Fn(usize) -> bool) -> Result<(), OpError> {
    match ty.rank() {
        Some(rank) if !wanted(rank) => Err(parameter("x", format!("unexpected rank of {ty}"))),
        _ => Ok(()),
    }
}

/// The parameters of `space_to_batch` and `batch_to_space`: block sizes, and how much is added or cut before and after.
struct Blocks {
    block: [usize; 2],
    margins: [[usize; 2]; 2],
}

impl Blocks {
    fn new(op: &mut OpBuilder<'_>, margins: &'static str) -> Result<Self, OpError> {
        let positive = |name: &'static str, values: Vec<i32>, least: i32| {
            let sizes = values.iter().map(|&x| usize::try_from(x).ok().filter(|_| x >= least)).collect();
            let sizes: Option<Vec<usize>> = sizes;
            sizes.ok_or_else(|| {
                parameter(name, format!("expected sizes of at least {least}, found {values:?}"))
            })
        };
        let block = op.ints_opt("block_shape")?.ok_or(OpError::Missing("block_shape"))?;
        let amounts = op.constant(margins)?;
        match (&positive("block_shape", block, 1)?[..], amounts.shape()) {
            (&[rows, columns], [2, 2]) => match positive(margins, amounts.to_i32()?, 0)?[..] {
                [top, bottom, left, right] => {
                    Ok(Self { block: [rows, columns], margins: [[top, bottom], [left, right]] })
                }
                _ => Err(parameter(margins, "expected four numbers")),
            },
            (block, amounts) => Err(OpError::Invalid(format!(
                "expected two block sizes and {margins} of shape [2, 2], found {} and {amounts:?}",
                block.len()
            ))),
        }
    }
}

/// `[n, C, H, W]` of a value of rank 4.
fn four(shape: &[usize]) -> Result<[usize; 4], KernelError> {
    shape.try_into().map_err(|_| KernelError::shape(format!("expected rank 4, found shape {shape:?}")))
}

/// Pads with zeros, then moves row `i`, column `j` of every block to batch `(i * columns + j) * n + batch`.
fn space_to_batch(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let x = op.input("x")?;
    check_rank(&x.ty, |rank| rank == 4)?;
    let blocks = Blocks::new(op, "paddings")?;
    Ok(Box::new(move |run| {
        let view = run.any(x.slot)?;
        let [n, c, h, w] = four(view.shape())?;
        let padded = |size: usize, [before, after]: [usize; 2]| {
            size.checked_add(before).and_then(|size| size.checked_add(after))
        };
        let ([bh, bw], [vertical, horizontal]) = (blocks.block, blocks.margins);
        let (Some(ph), Some(pw)) = (padded(h, vertical), padded(w, horizontal)) else {
            return Err(KernelError::shape("padding larger than memory"));
        };
        let (out_h, out_w) = (divided("padded height", ph, bh)?, divided("padded width", pw, bw)?);
        let batches = times("batch", times("batch", n, bh)?, bw)?;
        let shape = [batches, c, out_h, out_w];
        Ok(one(for_each_type!(view, view => {
            let padded = zero_padded(run, &view, [n, c, ph, pw], vertical[0], horizontal[0])?;
            let padded = PoolRef::new(run.pool(), padded);
            moved(run, &padded.view(), &shape, |strides| match *strides {
                [ns, cs, hs, ws] => {
                    let ([h, i], [w, j]) = (split((ph, hs), bh), split((pw, ws), bw));
                    Walk::new(0, [i, j, (n, ns), (c, cs), h, w])
                }
                _ => Walk::new(0, []),
            })?
        })))
    }))
}

/// `x` at `top`, `left` of each plane of a tensor of `shape` that is zero elsewhere.
fn zero_padded<T: Element>(
    run: &Run<'_, '_>,
    x: &TensorView<'_, T>,
    shape: [usize; 4],
    top: usize,
    left: usize,
) -> Result<Tensor<T>, KernelError> {
    let mut padded = run.zeros::<T>(&shape)?;
    if padded.is_empty() || x.is_empty() {
        return Ok(padded);
    }
    let strides = dense_strides(&shape);
    let dense = PoolRef::new(run.pool(), x.to_contiguous_in(run.pool()));
    let start = top.saturating_mul(span(&shape[3..])).saturating_add(left);
    let dims = x.shape().iter().copied().zip(strides.iter().copied());
    Walk::new(isize::try_from(start).unwrap_or(isize::MAX), dims)
        .write(super::strided::dense_mut(&mut padded)?, dense.data())?;
    Ok(padded)
}

/// The inverse of [`space_to_batch`]: moves batches back into blocks, then cuts the margins off.
fn batch_to_space(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let x = op.input("x")?;
    check_rank(&x.ty, |rank| rank == 4)?;
    let blocks = Blocks::new(op, "crops")?;
    Ok(Box::new(move |run| {
        let view = run.any(x.slot)?;
        let [n, c, h, w] = four(view.shape())?;
        let ([bh, bw], [vertical, horizontal]) = (blocks.block, blocks.margins);
        let batches = divided("batch", n, times("block", bh, bw)?)?;
        let full = [batches, c, times("height", h, bh)?, times("width", w, bw)?];
        let cut = |size: usize, [before, after]: [usize; 2]| {
            size.checked_sub(before)
                .and_then(|size| size.checked_sub(after))
                .ok_or_else(|| KernelError::shape(format!("cannot cut {before} and {after} from {size}")))
        };
        let shape = [batches, c, cut(full[2], vertical)?, cut(full[3], horizontal)?];
        Ok(one(for_each_type!(view, view => {
            let whole = moved(run, &view, &full, |strides| match *strides {
                [ns, cs, hs, ws] => {
                    let [block, batch] = split((n, ns), batches);
                    let [i, j] = split((bh.saturating_mul(bw), block.1), bw);
                    Walk::new(0, [batch, (c, cs), (h, hs), i, (w, ws), j])
                }
                _ => Walk::new(0, []),
            })?;
            if shape == full {
                whole
            } else {
                let whole = PoolRef::new(run.pool(), whole);
                let start = vertical[0].saturating_mul(full[3]).saturating_add(horizontal[0]);
                moved(run, &whole.view(), &shape, |strides| {
                    let start = isize::try_from(start).unwrap_or(isize::MAX);
                    Walk::new(start, shape.iter().copied().zip(strides.iter().copied()))
                })?
            }
        })))
    }))
}

/// Reverses along `axes`, or all.
fn reverse(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let x = op.input("x")?;
    let axes = op.ints_opt("axes")?;
    check_axes("axes", axes.as_deref().unwrap_or_default(), x.rank())?;
    Ok(Box::new(move |run| {
        let view = run.any(x.slot)?;
        let shape = view.shape().to_vec();
        let axes = match &axes {
            Some(axes) => distinct_axes(axes, shape.len())?,
            None => (0..shape.len()).collect(),
        };
        Ok(one(for_each_type!(view, view => moved(run, &view, &shape, |strides| {
            let mut strides = Strides::from_slice(strides);
            let mut start = 0_isize;
            for &axis in &axes {
                if let (Some(stride), Some(&size)) = (strides.get_mut(axis), shape.get(axis)) {
                    let last = isize::try_from(size.saturating_sub(1)).unwrap_or(isize::MAX);
                    start = start.saturating_add(last.saturating_mul(*stride));
                    *stride = -*stride;
                }
            }
            Walk::new(start, shape.iter().copied().zip(strides))
        })?)))
    }))
}

/// Reverses the first `lengths[i]` elements along `seq_axis` of each slice `i` along `batch_axis`.
fn reverse_sequence(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let x = op.input("x")?;
    let lengths = op.ints_or_input("lengths")?;
    let seq_axis = op.axis("seq_axis", Some(0), x.rank())?;
    let batch_axis = op.axis("batch_axis", Some(0), x.rank())?;
    Ok(Box::new(move |run| {
        let lengths = run.ints(&lengths)?;
        let view = run.any(x.slot)?;
        let rank = view.shape().len();
        let (seq, batch) = (seq_axis.of(rank)?, batch_axis.of(rank)?);
        if seq == batch {
            return Err(KernelError::value("seq_axis and batch_axis are the same"));
        }
        Ok(one(for_each_type!(view, view => sequences_reversed(run, &view, &lengths, seq, batch)?)))
    }))
}

fn sequences_reversed<T: Element>(
    run: &Run<'_, '_>,
    x: &TensorView<'_, T>,
    lengths: &[i32],
    seq: usize,
    batch: usize,
) -> Result<Tensor<T>, KernelError> {
    let (steps, batches) = (x.size(seq), x.size(batch));
    if lengths.len() != batches {
        return Err(KernelError::shape(format!("{} lengths for a batch of {batches}", lengths.len())));
    }
    let mut checked: SmallVec<[usize; 8]> = SmallVec::new();
    for &length in lengths {
        match usize::try_from(length) {
            Ok(length) if length <= steps => checked.push(length),
            _ => return Err(KernelError::value(format!("length {length} is not in 0..={steps}"))),
        }
    }
    let shape = x.shape();
    let mut data = run.buffer::<T>(shape)?;
    if !x.is_empty() {
        let dense = PoolRef::new(run.pool(), x.to_contiguous_in(run.pool()));
        let (seq_block, batch_block) = (span(&shape[seq + 1..]), span(&shape[batch + 1..]));
        let block = seq_block.min(batch_block);
        // In blocks of `block` elements, in which both indices stay the same.
        for start in (0..x.len()).step_by(block) {
            let step = start / seq_block % steps;
            let length = checked[start / batch_block % batches];
            let from = if step < length {
                start - step * seq_block + (length - 1 - step) * seq_block
            } else {
                start
            };
            data.extend_from_slice(&dense.data()[from..from + block]);
        }
    }
    Tensor::try_from_data(shape, data).map_err(KernelError::library)
}

/// All windows of `size` elements along `axis`, `stride` apart, as a new dimension after it.
fn sliding_windows(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let x = op.input("x")?;
    let axis: Axis = op.axis("axis", None, x.rank())?;
    let positive = |name: &'static str, value: i32| {
        usize::try_from(value)
            .ok()
            .filter(|&value| value > 0)
            .ok_or_else(|| parameter(name, format!("expected a positive number, found {value}")))
    };
    let size = positive("size", op.int_opt("size")?.ok_or(OpError::Missing("size"))?)?;
    let stride = positive("stride", op.int("stride", 1)?)?;
    Ok(Box::new(move |run| {
        let view = run.any(x.slot)?;
        let axis = axis.of(view.shape().len())?;
        let mut shape = view.shape().to_vec();
        let length = shape[axis];
        let rest = length
            .checked_sub(size)
            .ok_or_else(|| KernelError::shape(format!("a window of {size} in a dimension of {length}")))?;
        shape[axis] = rest / stride + 1;
        shape.insert(axis + 1, size);
        Ok(one(for_each_type!(view, view => moved(run, &view, &shape, |strides| {
            let mut strides = Strides::from_slice(strides);
            let step = strides[axis];
            strides[axis] = step.saturating_mul(isize::try_from(stride).unwrap_or(isize::MAX));
            strides.insert(axis + 1, step);
            Walk::new(0, shape.iter().copied().zip(strides))
        })?)))
    }))
}

#[cfg(test)]
mod tests {
    use crate::ir::{Constant, ConstantData, Opset};
    use crate::ops::testing::Case;
    use crate::types::DType;

    fn ramp(count: usize) -> Vec<f32> {
        (0..count).map(|x| x as f32).collect()
    }

    fn matrix(values: [i32; 4]) -> Constant {
        Constant::i32(&[2, 2], values.to_vec()).unwrap()
    }

    #[test]
    fn expand_dims_counts_axes_in_the_result() {
        let case = || Case::new("expand_dims").input("x", &[2, 3], &ramp(6));
        assert_eq!(case().ints("axes", &[0]).f32(), (vec![1, 2, 3], ramp(6)));
        assert_eq!(case().ints("axes", &[-1, 1]).f32(), (vec![2, 1, 3, 1], ramp(6)));
        assert_eq!(case().ints("axes", &[3, -3]).f32(), (vec![2, 1, 3, 1], ramp(6)));
        assert_eq!(case().ints("axes", &[]).f32(), (vec![2, 3], ramp(6)));
        assert!(case().ints("axes", &[4]).error().contains("axis 4"));
        assert!(case().ints("axes", &[0, -4]).error().contains("twice"));
        let scalar = Case::new("expand_dims").input_i32("x", &[], &[7]).ints("axes", &[0]);
        assert_eq!(scalar.i32(), (vec![1], vec![7]));
    }

    #[test]
    fn squeeze_leaves_dimensions_that_are_not_1() {
        let case = || Case::new("squeeze").input("x", &[1, 3, 1, 2], &ramp(6));
        assert_eq!(case().f32(), (vec![3, 2], ramp(6)));
        assert_eq!(case().ints("axes", &[-2, 1]).f32(), (vec![1, 3, 2], ramp(6)));
        assert!(case().ints("axes", &[4]).error().contains("axis 4"));
        assert_eq!(Case::new("squeeze").input_i32("x", &[1, 1], &[7]).i32(), (vec![], vec![7]));
    }

    #[test]
    fn transpose_permutes() {
        let case = || Case::new("transpose").input("x", &[2, 1, 3], &ramp(6));
        assert_eq!(case().ints("perm", &[2, 0, 1]).f32(), (vec![3, 2, 1], vec![0., 3., 1., 4., 2., 5.]));
        assert_eq!(case().ints("perm", &[-1, 1, 0]).f32(), (vec![3, 1, 2], vec![0., 3., 1., 4., 2., 5.]));
        assert!(case().ints("perm", &[0, 1]).error().contains("expected 3 axes"));
        assert!(case().ints("perm", &[0, 0, 1]).error().contains("twice"));
        assert!(case().ints("perm", &[0, 1, 3]).error().contains("axis 3"));
        let empty = Case::new("transpose").input("x", &[0, 2], &[]).ints("perm", &[1, 0]);
        assert_eq!(empty.f32(), (vec![2, 0], vec![]));
    }

    #[test]
    fn reshape_zeros_keep_a_dimension_at_its_place_before_ios_17() {
        let case = |shape: &[i32]| {
            Case::in_opset("reshape", Opset::Ios16).input("x", &[2, 3, 4], &ramp(24)).ints("shape", shape)
        };
        assert_eq!(case(&[0, -1, 2]).f32(), (vec![2, 6, 2], ramp(24)));
        assert_eq!(case(&[0, 0, 0]).f32().0, [2, 3, 4]);
        assert_eq!(case(&[-1]).f32().0, [24]);
        assert!(case(&[0, -1]).error().contains("a 0 needs equal ranks"));
        assert!(case(&[-1, -1, 2]).error().contains("more than one -1"));
        assert!(case(&[5, -1]).error().contains("numbers of elements differ"));
        assert!(case(&[2, 3]).error().contains("numbers of elements differ"));
        assert!(case(&[-2, 12]).error().contains("negative size"));
        assert!(case(&[i32::MAX, i32::MAX, i32::MAX]).error().contains("too many elements"));
    }

    #[test]
    fn reshape_zeros_count_from_the_right_since_ios_17() {
        let case = |shape: &[i32]| Case::new("reshape").input("x", &[2, 50], &ramp(100)).ints("shape", shape);
        assert_eq!(case(&[1, 0, -1, 0]).f32().0, [1, 1, 2, 50]);
        assert_eq!(case(&[0, 0]).f32().0, [2, 50]);
        assert_eq!(case(&[-1, 0]).f32().0, [2, 50]);
        assert!(case(&[0]).error().contains("numbers of elements differ"));
    }

    #[test]
    fn reshape_takes_a_computed_shape_and_refuses_what_cannot_be() {
        let case = |x: &[usize], shape: &[i32]| {
            Case::new("reshape").input_i32("x", x, &vec![3; x.iter().product()]).input_i32(
                "shape",
                &[shape.len()],
                shape,
            )
        };
        assert_eq!(case(&[2, 3], &[3, -1]).i32(), (vec![3, 2], vec![3; 6]));
        assert_eq!(case(&[0, 3], &[3, -1]).i32(), (vec![3, 0], vec![]));
        assert_eq!(case(&[0, 3], &[0, -1, 0]).i32().0, [1, 0, 3]);
        assert!(case(&[2, 3], &[4, -1]).error().contains("numbers of elements differ"));
        assert!(case(&[2, 0], &[-1, 0]).error().contains("could be anything"));
    }

    #[test]
    fn reshape_like_takes_pieces_of_shapes() {
        let case = |begins: [i32; 2], ends: [i32; 2], masks: [bool; 2]| {
            Case::new("reshape_like")
                .input("x", &[180], &ramp(180))
                .inputs("ref_tensors", &[(&[2, 3, 4], &ramp(24)), (&[1, 5, 6], &ramp(30))])
                .constants("begins", &begins.map(Constant::int))
                .constants("ends", &ends.map(Constant::int))
                .constants("end_masks", &masks.map(Constant::bool))
        };
        assert_eq!(case([0, 1], [2, 0], [false, true]).f32(), (vec![2, 3, 5, 6], ramp(180)));
        assert_eq!(case([-3, -2], [-1, 3], [false, false]).f32().0, [2, 3, 5, 6]);
        assert!(case([0, 0], [1, 1], [false, false]).error().contains("cannot reshape"));
    }

    #[test]
    fn depth_to_space_and_its_inverse_follow_the_example_of_the_specification() {
        let depth: Vec<f32> = (1..=16).map(|x| x as f32).collect();
        let space = [1., 5., 2., 6., 9., 13., 10., 14., 3., 7., 4., 8., 11., 15., 12., 16.];
        let (shape, found) =
            Case::new("depth_to_space").input("x", &[1, 8, 1, 2], &depth).int("block_size", 2).f32();
        assert_eq!((&shape[..], &found[..]), (&[1, 2, 2, 4][..], &space[..]));
        let back = Case::new("space_to_depth").input("x", &[1, 2, 2, 4], &space).int("block_size", 2).f32();
        assert_eq!(back, (vec![1, 8, 1, 2], depth));
        let odd = Case::new("space_to_depth").input("x", &[1, 1, 3, 4], &ramp(12)).int("block_size", 2);
        assert!(odd.error().contains("height of 3"));
        let odd = Case::new("depth_to_space").input("x", &[1, 6, 1, 1], &ramp(6)).int("block_size", 2);
        assert!(odd.error().contains("depth of 6"));
        let none = Case::new("depth_to_space").input("x", &[1, 4, 1, 1], &ramp(4)).int("block_size", 0);
        assert!(none.error().contains("positive"));
    }

    #[test]
    fn pixel_shuffle_and_its_inverse_follow_the_example_of_the_specification() {
        let depth: Vec<f32> = (1..=16).map(|x| x as f32).collect();
        let space = [1., 3., 2., 4., 5., 7., 6., 8., 9., 11., 10., 12., 13., 15., 14., 16.];
        let (shape, found) =
            Case::new("pixel_shuffle").input("x", &[1, 8, 1, 2], &depth).int("upscale_factor", 2).f32();
        assert_eq!((&shape[..], &found[..]), (&[1, 2, 2, 4][..], &space[..]));
        let factor = Constant::new(DType::U32, vec![], ConstantData::I32(vec![2])).unwrap();
        let back = Case::new("pixel_unshuffle")
            .input("x", &[1, 2, 2, 4], &space)
            .constant("downscale_factor", factor);
        assert_eq!(back.f32(), (vec![1, 8, 1, 2], depth));
        let empty = Case::new("pixel_shuffle").input("x", &[0, 4, 1, 1], &[]).int("upscale_factor", 2);
        assert_eq!(empty.f32(), (vec![0, 1, 2, 2], vec![]));
        let huge =
            Case::new("pixel_shuffle").input("x", &[1, 4, 1, 1], &ramp(4)).int("upscale_factor", i32::MAX);
        assert!(huge.error().contains("depth of 4"));
    }

    #[test]
    fn space_to_batch_pads_and_batch_to_space_cuts() {
        let x: Vec<f32> = (1..=16).map(|x| x as f32).collect();
        let batches = [
            0., 1., 3., 0., 9., 11., 0., 2., 4., 0., 10., 12., 0., 5., 7., 0., 13., 15., 0., 6., 8., 0., 14.,
            16.,
        ];
        let (shape, found) = Case::new("space_to_batch")
            .input("x", &[2, 1, 2, 4], &x)
            .ints("block_shape", &[2, 2])
            .constant("paddings", matrix([0, 0, 2, 0]))
            .f32();
        assert_eq!((&shape[..], &found[..]), (&[8, 1, 1, 3][..], &batches[..]));
        let back = |crops| {
            Case::new("batch_to_space")
                .input("x", &[8, 1, 1, 3], &batches)
                .ints("block_shape", &[2, 2])
                .constant("crops", matrix(crops))
        };
        assert_eq!(back([0, 0, 2, 0]).f32(), (vec![2, 1, 2, 4], x));
        let whole = back([0; 4]).f32();
        assert_eq!(whole.0, [2, 1, 2, 6]);
        assert_eq!(whole.1[..6], [0., 0., 1., 2., 3., 4.]);
        assert!(back([2, 1, 0, 0]).error().contains("cannot cut"));
        assert!(back([0, 0, -1, 0]).error().contains("at least 0"));
    }

    #[test]
    fn reverse_reverses_the_named_axes_or_all() {
        let case = || Case::new("reverse").input("x", &[2, 3], &ramp(6));
        assert_eq!(case().f32().1, [5., 4., 3., 2., 1., 0.]);
        assert_eq!(case().ints("axes", &[-1]).f32().1, [2., 1., 0., 5., 4., 3.]);
        assert_eq!(case().ints("axes", &[0]).f32().1, [3., 4., 5., 0., 1., 2.]);
        assert!(case().ints("axes", &[2]).error().contains("axis 2"));
        assert_eq!(Case::new("reverse").input("x", &[0, 3], &[]).f32(), (vec![0, 3], vec![]));
    }

    #[test]
    fn reverse_sequence_reverses_each_beginning() {
        #[rustfmt::skip]
        let x = [
            1, 2, 3, 4, 5, 0, 0, 0,
            1, 2, 0, 0, 0, 0, 0, 0,
            1, 2, 3, 4, 0, 0, 0, 0,
            1, 2, 3, 4, 5, 6, 7, 8,
        ];
        #[rustfmt::skip]
        let expected = [
            0, 0, 5, 4, 3, 2, 1, 0,
            2, 1, 0, 0, 0, 0, 0, 0,
            3, 2, 1, 4, 0, 0, 0, 0,
            5, 4, 3, 2, 1, 6, 7, 8,
        ];
        let case = |lengths: &[i32]| {
            Case::new("reverse_sequence")
                .input_i32("x", &[4, 8], &x)
                .ints("lengths", lengths)
                .int("batch_axis", 0)
        };
        assert_eq!(case(&[7, 2, 3, 5]).int("seq_axis", 1).i32().1, expected);
        assert!(case(&[7, 2, 3, 9]).int("seq_axis", 1).error().contains("length 9"));
        assert!(case(&[7, 2, 3, -1]).int("seq_axis", 1).error().contains("length -1"));
        assert!(case(&[7, 2]).int("seq_axis", 1).error().contains("2 lengths"));
        assert!(case(&[7, 2, 3, 5]).error().contains("the same"));
    }

    #[test]
    fn reverse_sequence_works_along_an_outer_axis_and_moves_whole_rows() {
        // x[seq 3, batch 2, 2]; NumPy: out[:l, b] = x[:l, b][::-1]
        let case = Case::new("reverse_sequence")
            .input("x", &[3, 2, 2], &ramp(12))
            .input_i32("lengths", &[2], &[3, 2])
            .int("seq_axis", 0)
            .int("batch_axis", 1);
        assert_eq!(case.f32().1, [8., 9., 6., 7., 4., 5., 2., 3., 0., 1., 10., 11.]);
    }

    #[test]
    fn sliding_windows_overlap() {
        let case = |size, stride| {
            Case::new("sliding_windows")
                .input("x", &[5, 2], &ramp(10))
                .int("axis", 0)
                .int("size", size)
                .int("stride", stride)
        };
        assert_eq!(case(3, 2).f32(), (vec![2, 3, 2], vec![0., 1., 2., 3., 4., 5., 4., 5., 6., 7., 8., 9.]));
        let last = Case::new("sliding_windows").input("x", &[2, 3], &ramp(6)).int("axis", -1).int("size", 2);
        assert_eq!(last.f32(), (vec![2, 2, 2], vec![0., 1., 1., 2., 3., 4., 4., 5.]));
        assert!(case(6, 1).error().contains("window of 6"));
        assert!(case(0, 1).error().contains("positive"));
        assert!(case(1, 0).error().contains("positive"));
    }
}
