//! `tensor_operation` ops: make, join, repeat, order and choose elements.
//!
//! Semantics: coremltools, `mil/ops/defs/iOS15/tensor_operation.py`, `iOS16/tensor_operation.py`,
//! `iOS17/tensor_operation.py`, `select` of `iOS15/control_flow.py`; what `non_maximum_suppression` pads with and what it
//! does when no box survives is at `NonMaximumSuppressionLayerParams` in `NeuralNetwork.proto`.

use std::cmp::Ordering;

use rten::PoolRef;
use rten_tensor::prelude::*;
use rten_tensor::{Tensor, TensorView};
use smallvec::SmallVec;

use super::strided::{
    Element, Strides, Walk, broadcast_shape, dense_mut, dense_strides, for_each_type, moved, scalar, span,
    take_dense, take_reshaped, with_memory,
};
use super::{Axis, Input, Ints, Kernel, OpBuilder, OpDef, Run, parameter};
use crate::error::{KernelError, OpError};
use crate::ir::Opset::{Ios13, Ios16, Ios17};
use crate::types::DType;
use crate::value::{Outputs, Value, ValueView, one};

pub(crate) const OPS: &[OpDef] = &[
    OpDef::new("argsort", &[Ios13], argsort),
    OpDef::new("band_part", &[Ios13], band_part),
    OpDef::new("concat", &[Ios13], concat),
    OpDef::new("cumsum", &[Ios13], cumsum),
    OpDef::new("fill", &[Ios13], fill),
    OpDef::new("fill_like", &[Ios16], fill_like),
    OpDef::new("flatten2d", &[Ios13], flatten2d),
    OpDef::new("identity", &[Ios13], identity),
    OpDef::new("non_maximum_suppression", &[Ios13, Ios17], non_maximum_suppression),
    OpDef::new("non_zero", &[Ios13], non_zero),
    OpDef::new("one_hot", &[Ios13], one_hot),
    OpDef::new("pad", &[Ios13], pad),
    OpDef::new("range_1d", &[Ios13], range_1d),
    OpDef::new("select", &[Ios13], select),
    OpDef::new("shape", &[Ios13], shape),
    OpDef::new("split", &[Ios13], split),
    OpDef::new("stack", &[Ios13], stack),
    OpDef::new("tile", &[Ios13], tile),
    OpDef::new("topk", &[Ios13, Ios16, Ios17], topk),
];

/// A constant scalar of the type of a result.
#[derive(Clone, Copy)]
enum Scalar {
    F32(f32),
    I32(i32),
}

impl Scalar {
    /// Parameter `name`, as a float or an integer; a float for an integer is an error.
    fn new(op: &mut OpBuilder<'_>, name: &'static str, float: bool, default: i16) -> Result<Self, OpError> {
        Ok(match op.constant_opt(name)? {
            None if float => Self::F32(f32::from(default)),
            None => Self::I32(i32::from(default)),
            Some(constant) if float => Self::F32(only(name, &constant.to_f32()?)?),
            Some(constant) => Self::I32(only(name, &constant.to_i32()?)?),
        })
    }
}

fn only<T: Copy>(name: &'static str, values: &[T]) -> Result<T, OpError> {
    match *values {
        [x] => Ok(x),
        _ => Err(parameter(name, format!("expected a scalar, found {} values", values.len()))),
    }
}

/// Sizes that a program computed, as a shape.
fn sizes(values: &[i32]) -> Result<Vec<usize>, KernelError> {
    let size =
        |&x| usize::try_from(x).map_err(|_| KernelError::value(format!("a size of {x} in {values:?}")));
    values.iter().map(size).collect()
}

/// A size or an index as Core ML returns it.
fn as_i32(x: usize) -> Result<i32, KernelError> {
    i32::try_from(x).map_err(|_| KernelError::value(format!("{x} does not fit 32 bits")))
}

/// Sizes before, at and after `axis`: the tensor is `outer` blocks of `size` rows of `inner` elements.
fn around(shape: &[usize], axis: usize) -> (usize, usize, usize) {
    match (shape.get(..axis), shape.get(axis..)) {
        (Some(before), Some([size, after @ ..])) => (span(before), *size, span(after)),
        _ => (1, 1, span(shape)),
    }
}

fn filled(run: &Run<'_, '_>, shape: &[usize], value: Scalar) -> Result<Value, KernelError> {
    Ok(match value {
        Scalar::F32(x) => Value::F32(run.filled(shape, x)?),
        Scalar::I32(x) => Value::I32(run.filled(shape, x)?),
    })
}

fn fill(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let shape = op.ints_or_input("shape")?;
    let value = Scalar::new(op, "value", op.output_type(0)?.dtype.is_float(), 0)?;
    Ok(Box::new(move |run| Ok(one(filled(run, &sizes(&run.ints(&shape)?)?, value)?))))
}

fn fill_like(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let value = Scalar::new(op, "value", op.output_type(0)?.dtype.is_float(), 0)?;
    if let Some(shape) = op.input_type("ref_tensor")?.fixed_shape() {
        return Ok(Box::new(move |run| Ok(one(filled(run, &shape, value)?))));
    }
    let reference = op.input("ref_tensor")?;
    Ok(Box::new(move |run| Ok(one(filled(run, run.any(reference.slot)?.shape(), value)?))))
}

fn identity(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let x = op.input("x")?;
    Ok(Box::new(move |run| Ok(one(run.take(x.slot)?))))
}

/// A constant where the shape is known at load.
fn shape(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    fn dims(run: &Run<'_, '_>, shape: &[usize]) -> Result<Outputs, KernelError> {
        let mut data = run.buffer(&[shape.len()])?;
        for &dim in shape {
            data.push(as_i32(dim)?);
        }
        Ok(one(Tensor::from_data(&[shape.len()], data)))
    }
    if let Some(shape) = op.input_type("x")?.fixed_shape() {
        return Ok(Box::new(move |run| dims(run, &shape)));
    }
    let x = op.input("x")?;
    Ok(Box::new(move |run| dims(run, run.any(x.slot)?.shape())))
}

/// Two dimensions: the product of those before `axis`, and that of the others.
fn flatten2d(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let x = op.input("x")?;
    let axis = op.int("axis", 1)?;
    let resolve = move |rank: usize| {
        let from_start = i64::from(axis) + if axis < 0 { i64::try_from(rank).unwrap_or(i64::MAX) } else { 0 };
        let inside = usize::try_from(from_start).ok().filter(|&axis| axis <= rank);
        inside.ok_or_else(|| KernelError::value(format!("axis {axis} of a tensor of rank {rank}")))
    };
    if let Some(rank) = x.rank() {
        resolve(rank).map_err(|e| parameter("axis", e.to_string()))?;
    }
    Ok(Box::new(move |run| {
        let shape = run.any(x.slot)?.shape().to_vec();
        let (before, after) = shape.split_at(resolve(shape.len())?);
        Ok(one(take_reshaped(run, x.slot, &[span(before), span(after)])?))
    }))
}

/// Keeps the diagonals from `lower` below to `upper` above the main one; the rest becomes zero.
fn band_part(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    fn keep<T: Element>(mut x: Tensor<T>, lower: i32, upper: i32) -> Result<Tensor<T>, KernelError> {
        let &[.., rows, columns] = x.shape() else {
            return Err(KernelError::shape(format!("a band of shape {:?}", x.shape())));
        };
        if x.is_empty() {
            return Ok(x);
        }
        for (i, row) in dense_mut(&mut x)?.chunks_exact_mut(columns).enumerate() {
            let row_index = i % rows;
            let begin = usize::try_from(lower).map_or(0, |n| row_index.saturating_sub(n).min(columns));
            let end = usize::try_from(upper)
                .map_or(columns, |n| row_index.saturating_add(n).saturating_add(1).min(columns));
            row[..begin].fill(T::default());
            row[end..].fill(T::default());
        }
        Ok(x)
    }
    let x = op.input("x")?;
    let (lower, upper) = (op.int("lower", -1)?, op.int("upper", -1)?);
    Ok(Box::new(move |run| {
        Ok(one(match take_dense(run, x.slot)? {
            Value::F32(x) => Value::F32(keep(x, lower, upper)?),
            Value::I32(x) => Value::I32(keep(x, lower, upper)?),
        }))
    }))
}

/// Addition as `cumsum` does it.
trait Sum: Element {
    fn sum(self, other: Self) -> Self;
}

impl Sum for f32 {
    fn sum(self, other: Self) -> Self {
        self + other
    }
}

impl Sum for i32 {
    fn sum(self, other: Self) -> Self {
        self.wrapping_add(other)
    }
}

fn cumsum(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let x = op.input("x")?;
    let axis = op.axis("axis", Some(0), x.rank())?;
    let (exclusive, reverse) = (op.bool("exclusive", false)?, op.bool("reverse", false)?);
    Ok(Box::new(move |run| {
        Ok(one(match take_dense(run, x.slot)? {
            Value::F32(x) => Value::F32(cumulated(run, x, axis, exclusive, reverse)?),
            Value::I32(x) => Value::I32(cumulated(run, x, axis, exclusive, reverse)?),
        }))
    }))
}

fn cumulated<T: Sum>(
    run: &Run<'_, '_>,
    mut x: Tensor<T>,
    axis: Axis,
    exclusive: bool,
    reverse: bool,
) -> Result<Tensor<T>, KernelError> {
    let (_, size, inner) = around(x.shape(), axis.of(x.ndim())?);
    if x.is_empty() {
        return Ok(x);
    }
    let mut sums = PoolRef::new(run.pool(), run.filled(&[inner], T::default())?);
    let sums = dense_mut(&mut sums)?;
    for block in dense_mut(&mut x)?.chunks_exact_mut(size * inner) {
        sums.fill(T::default());
        let mut add = |row: &mut [T]| {
            for (x, sum) in row.iter_mut().zip(&mut *sums) {
                let before = *sum;
                *sum = before.sum(*x);
                *x = if exclusive { before } else { *sum };
            }
        };
        if reverse {
            block.chunks_exact_mut(inner).rev().for_each(&mut add);
        } else {
            block.chunks_exact_mut(inner).for_each(&mut add);
        }
    }
    Ok(x)
}

/// The values of `concat` and `stack`, which must be of one type.
fn values(op: &mut OpBuilder<'_>) -> Result<Vec<Input>, OpError> {
    let values = op.inputs("values")?;
    let Some(first) = values.first() else { return Err(parameter("values", "expected at least one tensor")) };
    match values.iter().find(|value| value.ty.dtype != first.ty.dtype) {
        Some(other) => Err(parameter("values", format!("{} and {} together", first.ty, other.ty))),
        None => Ok(values),
    }
}

/// Joins `outer` blocks of each value, block by block in turn. `runs` are the sizes of the blocks, value by value.
fn joined(
    run: &Run<'_, '_>,
    values: &[Input],
    shape: &[usize],
    outer: usize,
    runs: &[usize],
) -> Result<Value, KernelError> {
    let first = values.first().map_or(0, |value| value.slot);
    Ok(match run.any(first)? {
        ValueView::F32(_) => {
            let views =
                values.iter().map(|value| run.f32(value.slot)).collect::<Result<SmallVec<[_; 4]>, _>>()?;
            Value::F32(join(run, &views, shape, outer, runs)?)
        }
        ValueView::I32(_) => {
            let views =
                values.iter().map(|value| run.i32(value.slot)).collect::<Result<SmallVec<[_; 4]>, _>>()?;
            Value::I32(join(run, &views, shape, outer, runs)?)
        }
    })
}

fn join<T: Element>(
    run: &Run<'_, '_>,
    views: &[TensorView<'_, T>],
    shape: &[usize],
    outer: usize,
    runs: &[usize],
) -> Result<Tensor<T>, KernelError> {
    /// Blocks that are shorter are not worth a copy each.
    const SHORT_BLOCK: usize = 8;
    let mut data = run.buffer::<T>(shape)?;
    let total = runs.iter().fold(0, |n: usize, &run| n.saturating_add(run));
    if outer == 1 {
        for view in views.iter().filter(|view| !view.is_empty()) {
            with_memory(run, view, |memory, strides| {
                Walk::new(0, view.shape().iter().copied().zip(strides.iter().copied()))
                    .read(memory, &mut data)
            })?;
        }
    } else if total > 0 && outer > 0 {
        let dense: SmallVec<[_; 4]> =
            views.iter().map(|view| PoolRef::new(run.pool(), view.to_contiguous_in(run.pool()))).collect();
        if runs.iter().any(|&run| (1..SHORT_BLOCK).contains(&run)) {
            data.resize(outer.saturating_mul(total), T::default());
            let (mut start, step) = (0_isize, isize::try_from(total).unwrap_or(isize::MAX));
            for (source, &size) in dense.iter().zip(runs) {
                Walk::new(start, [(outer, step), (size, 1)]).write(&mut data, source.data())?;
                start = start.saturating_add(isize::try_from(size).unwrap_or(isize::MAX));
            }
        } else {
            for block in 0..outer {
                for (source, &size) in dense.iter().zip(runs) {
                    data.extend_from_slice(&source.data()[block * size..][..size]);
                }
            }
        }
    }
    Tensor::try_from_data(shape, data).map_err(KernelError::library)
}

/// Joins along an existing dimension; interleaved, the rows of that dimension take turns.
fn concat(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let values = values(op)?;
    let rank = values.iter().find_map(Input::rank);
    // Scalars become a vector, whatever the axis.
    let axis = op.axis("axis", None, rank.filter(|&rank| rank > 0))?;
    let interleave = op.bool("interleave", false)?;
    Ok(Box::new(move |run| {
        let mut shape = run.any(values[0].slot)?.shape().to_vec();
        let axis = if shape.is_empty() {
            shape.push(1);
            0
        } else {
            axis.of(shape.len())?
        };
        let rank = shape.len();
        let mut runs: SmallVec<[usize; 4]> = SmallVec::new();
        let mut total = 0_usize;
        for value in &values {
            let view = run.any(value.slot)?;
            let found = if view.shape().is_empty() { &[1] } else { view.shape() };
            let fits = |(i, (a, b)): (usize, (&usize, &usize))| a == b || (i == axis && !interleave);
            if found.len() != rank || !found.iter().zip(&shape).enumerate().all(fits) {
                return Err(KernelError::shape(format!(
                    "cannot join shapes {shape:?} and {found:?} at {axis}"
                )));
            }
            runs.push(span(&found[if interleave { axis + 1 } else { axis }..]));
            total = total
                .checked_add(found[axis])
                .ok_or_else(|| KernelError::shape("a joined dimension larger than memory"))?;
        }
        let outer = span(&shape[..if interleave { axis + 1 } else { axis }]);
        shape[axis] = total;
        Ok(one(joined(run, &values, &shape, outer, &runs)?))
    }))
}

/// Joins along a new dimension.
fn stack(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let values = values(op)?;
    let axis = op.axis("axis", None, values.iter().find_map(Input::rank).map(|rank| rank + 1))?;
    Ok(Box::new(move |run| {
        let mut shape = run.any(values[0].slot)?.shape().to_vec();
        for value in &values {
            let view = run.any(value.slot)?;
            if view.shape() != shape {
                return Err(KernelError::shape(format!(
                    "cannot stack shapes {shape:?} and {:?}",
                    view.shape()
                )));
            }
        }
        let axis = axis.of(shape.len() + 1)?;
        let (outer, size) = (span(&shape[..axis]), span(&shape[axis..]));
        shape.insert(axis, values.len());
        let runs: SmallVec<[usize; 4]> = values.iter().map(|_| size).collect();
        Ok(one(joined(run, &values, &shape, outer, &runs)?))
    }))
}

/// Cuts a dimension into pieces: of the sizes given, or into equal ones.
fn split(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let x = op.input("x")?;
    let axis = op.axis("axis", None, x.rank())?;
    let count = op.int_opt("num_splits")?;
    let pieces = op.ints_opt("split_sizes")?;
    let outputs = op.output_count();
    let pieces = pieces
        .map(|pieces| sizes(&pieces))
        .transpose()
        .map_err(|e| parameter("split_sizes", e.to_string()))?;
    let named = match (count.map(usize::try_from), &pieces) {
        (Some(Ok(count)), Some(pieces)) if count != pieces.len() => {
            return Err(parameter("num_splits", format!("{count} splits of {} sizes", pieces.len())));
        }
        (Some(Err(_)), _) => return Err(parameter("num_splits", "expected a positive number")),
        (_, Some(pieces)) => pieces.len(),
        (Some(Ok(count)), None) => count,
        (None, None) => return Err(OpError::Invalid("neither num_splits nor split_sizes".into())),
    };
    if named != outputs || outputs == 0 {
        return Err(OpError::Invalid(format!("{named} splits, {outputs} outputs")));
    }
    Ok(Box::new(move |run| {
        let view = run.any(x.slot)?;
        let mut shape = view.shape().to_vec();
        let axis = axis.of(shape.len())?;
        let length = shape[axis];
        let equal = [length / outputs];
        let pieces = pieces.as_deref().unwrap_or(&equal);
        let sum = pieces.iter().try_fold(0_usize, |n, &size| n.checked_add(size));
        let sum = if pieces.len() == outputs { sum } else { sum.and_then(|size| size.checked_mul(outputs)) };
        if sum != Some(length) {
            return Err(KernelError::shape(format!(
                "a dimension of {length} into {outputs} pieces {pieces:?}"
            )));
        }
        let mut start = 0_isize;
        (0..outputs)
            .map(|i| {
                shape[axis] = pieces.get(i).copied().unwrap_or(equal[0]);
                let piece = for_each_type!(view.clone(), view => moved(run, &view, &shape, |strides| {
                    let offset = start.saturating_mul(strides[axis]);
                    Walk::new(offset, shape.iter().copied().zip(strides.iter().copied()))
                })?);
                start = start.saturating_add(isize::try_from(shape[axis]).unwrap_or(isize::MAX));
                Ok(piece)
            })
            .collect()
    }))
}

/// Repeats the whole tensor along each dimension.
fn tile(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let x = op.input("x")?;
    let reps = op.ints_or_input("reps")?;
    if let (Ints::Const(reps), Some(rank)) = (&reps, x.rank())
        && (reps.len() != rank || reps.iter().any(|&n| n <= 0))
    {
        return Err(parameter("reps", format!("{reps:?} for a tensor of rank {rank}")));
    }
    Ok(Box::new(move |run| {
        let reps = run.ints(&reps)?;
        let view = run.any(x.slot)?;
        let sizes_in = view.shape().to_vec();
        if reps.len() != sizes_in.len() || reps.iter().any(|&n| n <= 0) {
            return Err(KernelError::value(format!("{reps:?} repetitions of shape {sizes_in:?}")));
        }
        let reps = sizes(&reps)?;
        let grown: Option<Vec<usize>> =
            sizes_in.iter().zip(&reps).map(|(size, n)| size.checked_mul(*n)).collect();
        let shape =
            grown.ok_or_else(|| KernelError::value(format!("{reps:?} repetitions of {sizes_in:?}")))?;
        Ok(one(for_each_type!(view, view => moved(run, &view, &shape, |strides| {
            let dims = sizes_in.iter().zip(strides).zip(&reps);
            Walk::new(0, dims.flat_map(|((&size, &stride), &n)| [(n, 0), (size, stride)]))
        })?)))
    }))
}

/// Where the elements around a tensor come from.
#[derive(Clone, Copy)]
enum PadMode {
    Constant,
    Reflect,
    Replicate,
}

impl PadMode {
    /// Index in a dimension of `size` (not 0) of the element at `i` after `before` elements of padding; `None`: the constant.
    fn source(self, i: usize, before: usize, size: usize) -> Option<usize> {
        match (self, i.checked_sub(before)) {
            (_, Some(inside)) if inside < size => Some(inside),
            (Self::Constant, _) => None,
            (Self::Replicate, None) => Some(0),
            (Self::Replicate, Some(_)) => Some(size - 1),
            (Self::Reflect, None) => Some((before - i).min(size - 1)),
            (Self::Reflect, Some(beyond)) => Some((2 * size - 2).saturating_sub(beyond)),
        }
    }
}

/// A dimension of a padding: how much before, the size inside, the size outside.
type PadDim = (usize, usize, usize);

/// Pads the last dimensions.
fn pad(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let x = op.input("x")?;
    let amounts = op.ints_or_input("pad")?;
    let value = Scalar::new(op, "constant_val", x.ty.dtype.is_float(), 0)?;
    let mode = match &*op.string("mode", "constant")? {
        "constant" => PadMode::Constant,
        "reflect" => PadMode::Reflect,
        "replicate" => PadMode::Replicate,
        other => return Err(parameter("mode", format!("unknown mode `{other}`"))),
    };
    if let (Ints::Const(amounts), Some(rank)) = (&amounts, x.rank())
        && (amounts.len() % 2 != 0 || amounts.len() / 2 > rank || amounts.iter().any(|&n| n < 0))
    {
        return Err(parameter("pad", format!("{amounts:?} for a tensor of rank {rank}")));
    }
    Ok(Box::new(move |run| {
        let amounts = run.ints(&amounts)?;
        let view = run.any(x.slot)?;
        let dims = padded_dims(view.shape(), &amounts, mode)?;
        Ok(one(match (view, value) {
            (ValueView::F32(view), Scalar::F32(value)) => Value::F32(padded(run, &view, &dims, mode, value)?),
            (ValueView::I32(view), Scalar::I32(value)) => Value::I32(padded(run, &view, &dims, mode, value)?),
            _ => return Err(KernelError::value("the padding is of another type than x")),
        }))
    }))
}

fn padded_dims(
    shape: &[usize],
    amounts: &[i32],
    mode: PadMode,
) -> Result<SmallVec<[PadDim; 8]>, KernelError> {
    let refuse = || KernelError::value(format!("padding {amounts:?} of a tensor of shape {shape:?}"));
    let sizes = sizes(amounts)?;
    let (pairs, odd) = sizes.as_chunks::<2>();
    let Some(unpadded) = shape.len().checked_sub(pairs.len()).filter(|_| odd.is_empty()) else {
        return Err(refuse());
    };
    let mut dims: SmallVec<[PadDim; 8]> = SmallVec::new();
    for (i, &size) in shape.iter().enumerate() {
        let pair = i.checked_sub(unpadded).and_then(|i| pairs.get(i));
        let [before, after] = pair.copied().unwrap_or_default();
        let allowed = match mode {
            PadMode::Constant => true,
            PadMode::Reflect => before.max(after) < size.max(1),
            PadMode::Replicate => size > 0 || before.max(after) == 0,
        };
        let outside = size.checked_add(before).and_then(|size| size.checked_add(after));
        match outside {
            Some(outside) if allowed => dims.push((before, size, outside)),
            _ => return Err(refuse()),
        }
    }
    Ok(dims)
}

fn padded<T: Element>(
    run: &Run<'_, '_>,
    x: &TensorView<'_, T>,
    dims: &[PadDim],
    mode: PadMode,
    value: T,
) -> Result<Tensor<T>, KernelError> {
    let shape: SmallVec<[usize; 8]> = dims.iter().map(|dim| dim.2).collect();
    let mut data = run.buffer::<T>(&shape)?;
    if x.is_empty() {
        data.resize(run.check_size(&shape)?, value);
    } else {
        // Dimensions after the last padded one are one run.
        let last = dims.iter().rposition(|&(_, size, outside)| size != outside);
        let outer = dims.get(..last.map_or(0, |last| last + 1)).unwrap_or_default();
        let dense = PoolRef::new(run.pool(), x.to_contiguous_in(run.pool()));
        pad_dims(dense.data(), outer, mode, value, &mut data);
    }
    Tensor::try_from_data(&shape, data).map_err(KernelError::library)
}

/// Appends `block`, padded in `dims`; what is left of its size is one element of the innermost dimension.
fn pad_dims<T: Element>(block: &[T], dims: &[PadDim], mode: PadMode, value: T, out: &mut Vec<T>) {
    let Some((&(before, size, outside), inner)) = dims.split_first() else {
        return out.extend_from_slice(block);
    };
    let element = block.len() / size;
    let constant = inner.iter().fold(element, |n, &(_, size, outside)| n / size * outside);
    let border = |range: std::ops::Range<usize>, out: &mut Vec<T>| {
        if let PadMode::Constant = mode {
            return out.extend(std::iter::repeat_n(value, range.len() * constant));
        }
        for i in range {
            let at = mode.source(i, before, size).unwrap_or(0);
            pad_dims(&block[at * element..][..element], inner, mode, value, out);
        }
    };
    border(0..before, out);
    if inner.is_empty() {
        out.extend_from_slice(block);
    } else {
        block.chunks_exact(element).for_each(|block| pad_dims(block, inner, mode, value, out));
    }
    border(before + size..outside, out);
}

/// `start`, `start + step`, … before `end`.
fn range_1d(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let (end, start, step) = (op.input("end")?, op.input("start")?, op.input("step")?);
    if [&start, &step].iter().any(|x| x.ty.dtype.is_float() != end.ty.dtype.is_float()) {
        return Err(OpError::Invalid(format!("a range from {} to {} by {}", start.ty, end.ty, step.ty)));
    }
    if end.ty.dtype.is_float() {
        return Ok(Box::new(move |run| {
            let [start, end, step] = [run.f32(start.slot)?, run.f32(end.slot)?, run.f32(step.slot)?]
                .map(|x| scalar(&x).map(f64::from));
            let (start, end, step) = (start?, end?, step?);
            let count = ((end - start) / step).ceil();
            // Also what is not a number.
            if step == 0.0 || !count.is_finite() || !start.is_finite() || !step.is_finite() {
                return Err(KernelError::value(format!("a range from {start} to {end} by {step}")));
            }
            // A float saturates where it does not fit, and then is over the limit.
            let shape = [count.max(0.0) as usize];
            let mut data = run.buffer(&shape)?;
            data.extend((0..shape[0]).map(|i| (start + i as f64 * step) as f32));
            Ok(one(Tensor::from_data(&shape, data)))
        }));
    }
    Ok(Box::new(move |run| {
        let [start, end, step] = [run.i32(start.slot)?, run.i32(end.slot)?, run.i32(step.slot)?]
            .map(|x| scalar(&x).map(i64::from));
        let (start, end, step) = (start?, end?, step?);
        let count = match step {
            0 => return Err(KernelError::value(format!("a range from {start} to {end} by 0"))),
            1.. => (end - start + step - 1) / step,
            ..0 => (start - end - step - 1) / -step,
        };
        let shape = [usize::try_from(count).unwrap_or(0)];
        let mut data = run.buffer(&shape)?;
        data.extend((0..shape[0] as i64).map(|i| (start + i * step) as i32));
        Ok(one(Tensor::from_data(&shape, data)))
    }))
}

/// Indices of the elements that are not zero, one row each.
fn non_zero(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let x = op.input("x")?;
    Ok(Box::new(move |run| Ok(one(indices_of_non_zero(run, x.slot)?))))
}

fn indices_of_non_zero(run: &Run<'_, '_>, slot: usize) -> Result<Tensor<i32>, KernelError> {
    fn find<T: Element>(run: &Run<'_, '_>, x: &TensorView<'_, T>) -> Result<Tensor<i32>, KernelError> {
        let dense = PoolRef::new(run.pool(), x.to_contiguous_in(run.pool()));
        let found = || dense.data().iter().enumerate().filter(|&(_, &x)| x != T::default()).map(|(i, _)| i);
        let shape = [found().count(), x.ndim()];
        let mut data = run.buffer(&shape)?;
        let strides = dense_strides(x.shape());
        for index in found() {
            for (&stride, &size) in strides.iter().zip(x.shape()) {
                data.push(as_i32(index / stride.unsigned_abs() % size)?);
            }
        }
        Ok(Tensor::from_data(&shape, data))
    }
    match run.any(slot)? {
        ValueView::F32(view) => find(run, &view),
        ValueView::I32(view) => find(run, &view),
    }
}

/// `on_value` at the places that the indices name, `off_value` elsewhere. An index outside names no place, as in TensorFlow.
fn one_hot(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    fn set<T: Element>(
        run: &Run<'_, '_>,
        indices: &TensorView<'_, i32>,
        depth: usize,
        axis: Axis,
        [off, on]: [T; 2],
    ) -> Result<Tensor<T>, KernelError> {
        let mut shape = indices.shape().to_vec();
        let axis = axis.of(shape.len() + 1)?;
        let inner = span(&shape[axis..]);
        shape.insert(axis, depth);
        let mut out = run.filled(&shape, off)?;
        if !out.is_empty() {
            let dense = PoolRef::new(run.pool(), indices.to_contiguous_in(run.pool()));
            let blocks = dense_mut(&mut out)?.chunks_exact_mut(depth * inner);
            for (block, indices) in blocks.zip(dense.data().chunks_exact(inner)) {
                for (i, &index) in indices.iter().enumerate() {
                    if let Some(index) = usize::try_from(index).ok().filter(|&index| index < depth) {
                        block[index * inner + i] = on;
                    }
                }
            }
        }
        Ok(out)
    }
    let indices = op.input("indices")?;
    let depth = op.ints_or_input("one_hot_vector_size")?;
    let axis = op.axis("axis", Some(-1), indices.rank().map(|rank| rank + 1))?;
    let float = op.output_type(0)?.dtype.is_float();
    let off = Scalar::new(op, "off_value", float, 0)?;
    let on = Scalar::new(op, "on_value", float, 1)?;
    Ok(Box::new(move |run| {
        let depth = run.ints(&depth)?;
        let &[depth] = &sizes(&depth)?[..] else {
            return Err(KernelError::shape(format!("expected one vector size, found {depth:?}")));
        };
        let indices = run.i32(indices.slot)?;
        Ok(one(match (off, on) {
            (Scalar::F32(off), Scalar::F32(on)) => Value::F32(set(run, &indices, depth, axis, [off, on])?),
            (Scalar::I32(off), Scalar::I32(on)) => Value::I32(set(run, &indices, depth, axis, [off, on])?),
            _ => return Err(KernelError::value("on_value and off_value are of two types")),
        }))
    }))
}

/// NumPy's `where`; without `a` and `b`, the indices where `cond` is true.
fn select(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let cond = op.input("cond")?;
    let (a, b) = match (op.input_opt("a")?, op.input_opt("b")?) {
        (Some(a), Some(b)) => (a, b),
        (None, None) => return Ok(Box::new(move |run| Ok(one(indices_of_non_zero(run, cond.slot)?)))),
        (None, Some(_)) => return Err(OpError::Missing("a")),
        (Some(_), None) => return Err(OpError::Missing("b")),
    };
    if a.ty.dtype.is_float() != b.ty.dtype.is_float() {
        return Err(OpError::Invalid(format!("a choice between {} and {}", a.ty, b.ty)));
    }
    Ok(Box::new(move |run| {
        let cond = run.i32(cond.slot)?;
        Ok(one(match run.any(a.slot)? {
            ValueView::F32(a) => Value::F32(chosen(run, &cond, &a, &run.f32(b.slot)?)?),
            ValueView::I32(a) => Value::I32(chosen(run, &cond, &a, &run.i32(b.slot)?)?),
        }))
    }))
}

/// Size and the three operands' strides of one dimension of a [`chosen`] tensor.
type ChoiceDim = (usize, [isize; 3]);

fn chosen<T: Element>(
    run: &Run<'_, '_>,
    cond: &TensorView<'_, i32>,
    a: &TensorView<'_, T>,
    b: &TensorView<'_, T>,
) -> Result<Tensor<T>, KernelError> {
    let shape = broadcast_shape(&[cond.shape(), a.shape(), b.shape()])?;
    let mut data = run.buffer::<T>(&shape)?;
    if !shape.contains(&0) {
        with_memory(run, cond, |c, c_strides| {
            with_memory(run, a, |x, x_strides| {
                with_memory(run, b, |y, y_strides| {
                    let strides = [
                        broadcast_strides(&shape, cond.shape(), c_strides),
                        broadcast_strides(&shape, a.shape(), x_strides),
                        broadcast_strides(&shape, b.shape(), y_strides),
                    ];
                    let dims = merged(&shape, &strides);
                    choose(c, [x, y], [0; 3], &dims, &mut data);
                });
            });
        });
    }
    Tensor::try_from_data(&shape, data).map_err(KernelError::library)
}

/// Strides with which a tensor is read as one of `shape`.
fn broadcast_strides(shape: &[usize], from: &[usize], strides: &[isize]) -> Strides {
    let mut result: Strides = shape.iter().map(|_| 0).collect();
    let places = result.iter_mut().rev().zip(from.iter().rev()).zip(strides.iter().rev());
    places.filter(|((_, size), _)| **size != 1).for_each(|((place, _), &stride)| *place = stride);
    result
}

/// Dimensions that lie together for all operands are one.
fn merged(shape: &[usize], [c, a, b]: &[Strides; 3]) -> SmallVec<[ChoiceDim; 8]> {
    let mut dims: SmallVec<[ChoiceDim; 8]> = SmallVec::new();
    for (((&size, &c), &a), &b) in shape.iter().zip(c).zip(a).zip(b) {
        let (strides, signed) = ([c, a, b], isize::try_from(size).unwrap_or(isize::MAX));
        match dims.last_mut() {
            _ if size == 1 => {}
            Some((outer, around)) if *around == strides.map(|stride| stride.saturating_mul(signed)) => {
                (*outer, *around) = (outer.saturating_mul(size), strides);
            }
            _ => dims.push((size, strides)),
        }
    }
    dims
}

fn choose<T: Element>(c: &[i32], ab: [&[T]; 2], at: [usize; 3], dims: &[ChoiceDim], out: &mut Vec<T>) {
    /// `size` neighbours from `at`, where they are neighbours.
    fn run_of<T>(memory: &[T], at: usize, size: usize) -> &[T] {
        &memory[at..at + size]
    }
    let [a, b] = ab;
    let [c_at, a_at, b_at] = at;
    match *dims {
        [] => out.push(if c[c_at] != 0 { a[a_at] } else { b[b_at] }),
        [(size, [1, 1, 1])] => {
            let pairs = run_of(a, a_at, size).iter().zip(run_of(b, b_at, size));
            out.extend(
                run_of(c, c_at, size).iter().zip(pairs).map(|(&c, (&a, &b))| if c != 0 { a } else { b }),
            );
        }
        [(size, [1, 1, 0])] => {
            let b = b[b_at];
            let pairs = run_of(c, c_at, size).iter().zip(run_of(a, a_at, size));
            out.extend(pairs.map(|(&c, &a)| if c != 0 { a } else { b }));
        }
        [(size, [1, 0, 1])] => {
            let a = a[a_at];
            let pairs = run_of(c, c_at, size).iter().zip(run_of(b, b_at, size));
            out.extend(pairs.map(|(&c, &b)| if c != 0 { a } else { b }));
        }
        [(size, [1, 0, 0])] => {
            let (a, b) = (a[a_at], b[b_at]);
            out.extend(run_of(c, c_at, size).iter().map(|&c| if c != 0 { a } else { b }));
        }
        [(size, [0, a_stride, b_stride])] => {
            let (memory, at, stride) = if c[c_at] != 0 { (a, a_at, a_stride) } else { (b, b_at, b_stride) };
            match stride {
                1 => out.extend_from_slice(run_of(memory, at, size)),
                stride => out.extend((0..size).map(|i| memory[at + i * stride.unsigned_abs()])),
            }
        }
        [(size, strides), ref inner @ ..] => {
            // Views have no negative strides.
            let steps = strides.map(isize::unsigned_abs);
            for i in 0..size {
                let at = [c_at + i * steps[0], a_at + i * steps[1], b_at + i * steps[2]];
                choose(c, ab, at, inner, out);
            }
        }
    }
}

/// The order that `argsort` and `topk` sort in. What is not a number comes last, as in NumPy.
trait Ranked: Element {
    fn rank(self, other: Self) -> Ordering;
    fn is_last(self) -> bool;
}

impl Ranked for f32 {
    fn rank(self, other: Self) -> Ordering {
        self.partial_cmp(&other).unwrap_or(Ordering::Equal)
    }

    fn is_last(self) -> bool {
        self.is_nan()
    }
}

impl Ranked for i32 {
    fn rank(self, other: Self) -> Ordering {
        self.cmp(&other)
    }

    fn is_last(self) -> bool {
        false
    }
}

fn in_order<T: Ranked>(ascending: bool) -> impl Fn(&(T, i32), &(T, i32)) -> Ordering {
    move |&(a, i), &(b, j)| {
        let by_value = if ascending { a.rank(b) } else { b.rank(a) };
        a.is_last().cmp(&b.is_last()).then(by_value).then(i.cmp(&j))
    }
}

/// The first `k` of each lane along `axis` in order, with their indices; of equal elements the first comes first.
fn first_of_lanes<T: Ranked>(
    run: &Run<'_, '_>,
    x: &TensorView<'_, T>,
    axis: usize,
    k: usize,
    ascending: bool,
) -> Result<(Tensor<T>, Tensor<i32>), KernelError> {
    let (outer, size, inner) = around(x.shape(), axis);
    let mut shape = x.shape().to_vec();
    if let Some(dim) = shape.get_mut(axis) {
        *dim = k;
    }
    let mut values = run.zeros::<T>(&shape)?;
    let mut indices = run.zeros::<i32>(&shape)?;
    if values.is_empty() {
        return Ok((values, indices));
    }
    as_i32(size)?;
    let dense = PoolRef::new(run.pool(), x.to_contiguous_in(run.pool()));
    let data = dense.data();
    let (out, out_indices) = (dense_mut(&mut values)?, dense_mut(&mut indices)?);
    let mut lane = PoolRef::new(run.pool(), run.pool().alloc::<(T, i32)>(size));
    let compare = in_order::<T>(ascending);
    for block in 0..outer {
        for column in 0..inner {
            lane.clear();
            let elements = data[block * size * inner + column..].iter().step_by(inner).take(size);
            lane.extend(elements.copied().zip(0..));
            if k < size {
                lane.select_nth_unstable_by(k, &compare);
            }
            lane[..k].sort_unstable_by(&compare);
            for (i, &(value, index)) in lane[..k].iter().enumerate() {
                let place = (block * k + i) * inner + column;
                out[place] = value;
                out_indices[place] = index;
            }
        }
    }
    Ok((values, indices))
}

fn argsort(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    fn sorted<T: Ranked>(
        run: &Run<'_, '_>,
        x: &TensorView<'_, T>,
        axis: Axis,
        ascending: bool,
    ) -> Result<Tensor<i32>, KernelError> {
        let axis = axis.of(x.ndim())?;
        let (values, indices) = first_of_lanes(run, x, axis, x.size(axis), ascending)?;
        T::value(values).recycle(run.pool());
        Ok(indices)
    }
    let x = op.input("x")?;
    let axis = op.axis("axis", Some(-1), x.rank())?;
    let ascending = op.bool("ascending", false)?;
    Ok(Box::new(move |run| {
        Ok(one(match run.any(x.slot)? {
            ValueView::F32(view) => sorted(run, &view, axis, ascending)?,
            ValueView::I32(view) => sorted(run, &view, axis, ascending)?,
        }))
    }))
}

/// The `k` largest (or smallest) elements along an axis and, if wanted, their indices.
fn topk(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let x = op.input("x")?;
    let k = op.int("k", 1)?;
    let axis = op.axis("axis", Some(-1), x.rank())?;
    let ascending = op.bool("ascending", false)?;
    let mut return_indices = true;
    let mut largest_index = usize::MAX;
    if op.opset() >= Ios16 {
        // Sorted is one of the orders that `sort = False` allows.
        op.bool("sort", true)?;
        return_indices = op.bool("return_indices", true)?;
    }
    if op.opset() >= Ios17
        && let Some(name) = op.string_opt("output_indices_dtype")?
    {
        largest_index = match DType::from_name(&name) {
            _ if !return_indices => {
                return Err(parameter("output_indices_dtype", "given, but return_indices is false"));
            }
            Some(DType::I32) => usize::MAX,
            Some(DType::U16) => usize::from(u16::MAX),
            _ => return Err(parameter("output_indices_dtype", format!("unknown type `{name}`"))),
        };
    }
    let k = match usize::try_from(k) {
        Ok(k) => Some(k),
        Err(_) if k == -1 && op.opset() >= Ios17 => None,
        Err(_) => return Err(parameter("k", format!("{k} elements"))),
    };
    if op.output_count() != 1 + usize::from(return_indices) {
        return Err(OpError::Invalid(format!(
            "{} outputs, return_indices is {return_indices}",
            op.output_count()
        )));
    }
    Ok(Box::new(move |run| {
        let view = run.any(x.slot)?;
        let axis = axis.of(view.shape().len())?;
        let size = view.shape()[axis];
        let k = k.unwrap_or(size);
        if k > size {
            return Err(KernelError::value(format!("the first {k} of a dimension of {size}")));
        }
        if size.saturating_sub(1) > largest_index {
            return Err(KernelError::value(format!("indices of a dimension of {size} do not fit 16 bits")));
        }
        let (values, indices) = match view {
            ValueView::F32(view) => {
                let (values, indices) = first_of_lanes(run, &view, axis, k, ascending)?;
                (Value::F32(values), indices)
            }
            ValueView::I32(view) => {
                let (values, indices) = first_of_lanes(run, &view, axis, k, ascending)?;
                (Value::I32(values), indices)
            }
        };
        let mut outputs = one(values);
        if return_indices {
            outputs.push(Value::I32(indices));
        } else {
            run.recycle(indices);
        }
        Ok(outputs)
    }))
}

/// The parameters of `non_maximum_suppression`.
struct Suppression {
    iou_threshold: f32,
    /// Boxes must score more.
    score_threshold: f32,
    max_boxes: usize,
    per_class: bool,
}

/// Keeps the boxes that score best, without those that overlap a better one too much.
fn non_maximum_suppression(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let boxes = op.float_input("boxes", 3..=3)?;
    let scores = op.float_input("scores", 3..=3)?;
    // From iOS 17 on boxes are columns, there is no score threshold, and the number of boxes is not returned.
    let columns = op.opset() >= Ios17;
    let score_threshold = if columns {
        f32::NEG_INFINITY
    } else {
        op.float_opt("score_threshold")?.ok_or(OpError::Missing("score_threshold"))?
    };
    let max_boxes = op.int_opt("max_boxes")?.ok_or(OpError::Missing("max_boxes"))?;
    let suppression = Suppression {
        iou_threshold: op.float_opt("iou_threshold")?.ok_or(OpError::Missing("iou_threshold"))?,
        score_threshold,
        max_boxes: usize::try_from(max_boxes)
            .map_err(|_| parameter("max_boxes", format!("{max_boxes} boxes")))?,
        per_class: op.bool("per_class_suppression", false)?,
    };
    Ok(Box::new(move |run| {
        let (mut boxes, mut scores) = (run.f32(boxes.slot)?, run.f32(scores.slot)?);
        if columns && boxes.ndim() == 3 && scores.ndim() == 3 {
            boxes.permute(&[0, 2, 1]);
            scores.permute(&[0, 2, 1]);
        }
        suppressed(run, &boxes, &scores, &suppression, columns)
    }))
}

fn suppressed(
    run: &Run<'_, '_>,
    boxes: &TensorView<'_, f32>,
    scores: &TensorView<'_, f32>,
    suppression: &Suppression,
    columns: bool,
) -> Result<Outputs, KernelError> {
    let (batches, count, classes) = match (boxes.shape(), scores.shape()) {
        (&[n, b, 4], &[m, c, k]) if n == m && b == c && k > 0 => (n, b, k),
        (boxes, scores) => {
            return Err(KernelError::shape(format!("boxes of shape {boxes:?}, scores of shape {scores:?}")));
        }
    };
    as_i32(count)?;
    let limit = suppression.max_boxes;
    let mut out_boxes = run.zeros::<f32>(&[batches, limit, 4])?;
    let mut out_scores = run.zeros::<f32>(&[batches, limit, classes])?;
    let mut out_indices = run.filled(&[batches, limit], -1_i32)?;
    let mut out_counts = run.zeros::<i32>(&[batches])?;
    if batches > 0 && count > 0 && limit > 0 {
        let boxes = PoolRef::new(run.pool(), boxes.to_contiguous_in(run.pool()));
        let scores = PoolRef::new(run.pool(), scores.to_contiguous_in(run.pool()));
        let inputs = boxes.data().chunks_exact(count * 4).zip(scores.data().chunks_exact(count * classes));
        let outputs = dense_mut(&mut out_boxes)?
            .chunks_exact_mut(limit * 4)
            .zip(dense_mut(&mut out_scores)?.chunks_exact_mut(limit * classes))
            .zip(dense_mut(&mut out_indices)?.chunks_exact_mut(limit))
            .zip(dense_mut(&mut out_counts)?);
        for ((boxes, scores), (((out_boxes, out_scores), out_indices), out_count)) in inputs.zip(outputs) {
            let kept = survivors(run, boxes, scores, classes, suppression);
            for (i, &index) in kept.iter().enumerate() {
                out_boxes[i * 4..][..4].copy_from_slice(&boxes[index * 4..][..4]);
                out_scores[i * classes..][..classes].copy_from_slice(&scores[index * classes..][..classes]);
                out_indices[i] = as_i32(index)?;
            }
            *out_count = as_i32(kept.len())?;
        }
    }
    if columns {
        out_boxes.permute(&[0, 2, 1]);
        out_scores.permute(&[0, 2, 1]);
        run.recycle(out_counts);
        return Ok([out_boxes.into(), out_scores.into(), out_indices.into()].into_iter().collect());
    }
    Ok([out_boxes.into(), out_scores.into(), out_indices.into(), out_counts.into()].into_iter().collect())
}

/// Indices of the boxes of one batch that survive, best first. There is at least one.
fn survivors(
    run: &Run<'_, '_>,
    boxes: &[f32],
    scores: &[f32],
    classes: usize,
    suppression: &Suppression,
) -> Vec<usize> {
    // Of each box the best score and its class.
    let mut ranked =
        PoolRef::new(run.pool(), run.pool().alloc::<(f32, usize, usize)>(scores.len() / classes));
    ranked.extend(scores.chunks_exact(classes).enumerate().map(|(i, scores)| {
        let (class, best) =
            scores.iter().copied().enumerate().fold((0, f32::NEG_INFINITY), |best, (class, score)| {
                if score > best.1 { (class, score) } else { best }
            });
        (best, i, class)
    }));
    ranked.sort_unstable_by(|a, b| b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal).then(a.1.cmp(&b.1)));
    let corners = |index: usize| match boxes[index * 4..][..4] {
        [x, y, width, height] => {
            let (half_width, half_height) = (0.5 * width, 0.5 * height);
            let ([x0, x1], [y0, y1]) = ([x - half_width, x + half_width], [y - half_height, y + half_height]);
            [x0.min(x1), y0.min(y1), x0.max(x1), y0.max(y1)]
        }
        _ => [0.0; 4],
    };
    let mut kept: Vec<(usize, usize, [f32; 4])> = Vec::new();
    for &(score, index, class) in ranked.iter() {
        if kept.len() == suppression.max_boxes || score <= suppression.score_threshold {
            break;
        }
        let corners = corners(index);
        let overlaps = |&(_, other, box_kept): &(usize, usize, [f32; 4])| {
            (!suppression.per_class || other == class)
                && overlap(&box_kept, &corners) > suppression.iou_threshold
        };
        if !kept.iter().any(overlaps) {
            kept.push((index, class, corners));
        }
    }
    match ranked.first() {
        Some(&(_, best, _)) if kept.is_empty() => vec![best],
        _ => kept.into_iter().map(|(index, ..)| index).collect(),
    }
}

/// Intersection over union; 0 for a box without area.
fn overlap(a: &[f32; 4], b: &[f32; 4]) -> f32 {
    let area = |[x0, y0, x1, y1]: [f32; 4]| (x1 - x0).max(0.0) * (y1 - y0).max(0.0);
    let (area_a, area_b) = (area(*a), area(*b));
    if area_a <= 0.0 || area_b <= 0.0 {
        return 0.0;
    }
    let common = area([a[0].max(b[0]), a[1].max(b[1]), a[2].min(b[2]), a[3].min(b[3])]);
    common / (area_a + area_b - common)
}
