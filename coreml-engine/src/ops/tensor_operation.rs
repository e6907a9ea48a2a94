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

/// Repeats the whole tensor along each dimension. No repetitions, as of a program that counts them, leave nothing.
fn tile(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let x = op.input("x")?;
    let reps = op.ints_or_input("reps")?;
    if let (Ints::Const(reps), Some(rank)) = (&reps, x.rank())
        && (reps.len() != rank || reps.iter().any(|&n| n < 0))
    {
        return Err(parameter("reps", format!("{reps:?} for a tensor of rank {rank}")));
    }
    Ok(Box::new(move |run| {
        let reps = run.ints(&reps)?;
        let view = run.any(x.slot)?;
        let sizes_in = view.shape().to_vec();
        if reps.len() != sizes_in.len() || reps.iter().any(|&n| n < 0) {
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
    let k = op.ints_or_input_opt("k")?.unwrap_or(Ints::Const(vec![1]));
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
    // -1 is all of them.
    let all = op.opset() >= Ios17;
    let count = move |k: &[i32]| match *k {
        [-1] if all => Ok(None),
        [k] => usize::try_from(k).map(Some).map_err(|_| format!("{k} elements")),
        _ => Err(format!("expected one integer, found {}", k.len())),
    };
    if let Ints::Const(k) = &k {
        count(k).map_err(|why| parameter("k", why))?;
    }
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
        let k = count(&run.ints(&k)?).map_err(KernelError::value)?.unwrap_or(size);
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
            [x - half_width, y - half_height, x + half_width, y + half_height]
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

/// Intersection over union; 0 for a box without area, as one of a negative size is: coremltools' converter from TensorFlow, where
/// corners come in any order, takes the amounts of sizes first, that from PyTorch does not.
fn overlap(a: &[f32; 4], b: &[f32; 4]) -> f32 {
    let area = |[x0, y0, x1, y1]: [f32; 4]| (x1 - x0).max(0.0) * (y1 - y0).max(0.0);
    let (area_a, area_b) = (area(*a), area(*b));
    if area_a <= 0.0 || area_b <= 0.0 {
        return 0.0;
    }
    let common = area([a[0].max(b[0]), a[1].max(b[1]), a[2].min(b[2]), a[3].min(b[3])]);
    common / (area_a + area_b - common)
}

#[cfg(test)]
mod tests {
    use rten_tensor::prelude::*;

    use crate::ir::{Constant, Opset};
    use crate::ops::testing::{Case, assert_close};
    use crate::types::DType;
    use crate::value::Value;

    fn ramp(count: usize) -> Vec<f32> {
        (0..count).map(|x| x as f32).collect()
    }

    fn floats(value: &Value) -> (&[usize], Vec<f32>) {
        match value {
            Value::F32(t) => (value.shape(), t.iter().copied().collect()),
            Value::I32(_) => panic!("integers"),
        }
    }

    fn ints(value: &Value) -> (&[usize], Vec<i32>) {
        match value {
            Value::I32(t) => (value.shape(), t.iter().copied().collect()),
            Value::F32(_) => panic!("floats"),
        }
    }

    #[test]
    fn fill_makes_the_type_that_the_program_declares() {
        let case = |shape: &[i32]| Case::new("fill").ints("shape", shape);
        assert_eq!(case(&[2, 2]).float("value", 1.5).f32(), (vec![2, 2], vec![1.5; 4]));
        assert_eq!(case(&[3]).int("value", -7).i32(), (vec![3], vec![-7; 3]));
        assert_eq!(case(&[2]).f32(), (vec![2], vec![0.0; 2]));
        assert_eq!(case(&[2]).i32(), (vec![2], vec![0; 2]));
        assert_eq!(case(&[0, 4]).f32(), (vec![0, 4], vec![]));
        assert!(case(&[-1]).error().contains("a size of -1"));
        assert!(case(&[i32::MAX; 3]).error().contains("over its limit"));
        assert!(case(&[0, i32::MAX, i32::MAX, i32::MAX]).error().contains("over its limit"));
        let computed = Case::new("fill").input_i32("shape", &[2], &[1, 2]).float("value", 2.0);
        assert_eq!(computed.f32(), (vec![1, 2], vec![2.0; 2]));
        let float_for_int = case(&[1]).float("value", 1.5).run(&[DType::I32]);
        assert!(float_for_int.unwrap_err().contains("expected integers"));
    }

    #[test]
    fn fill_like_takes_the_shape_only() {
        let case = || Case::new("fill_like").input("ref_tensor", &[2, 3], &[f32::NAN; 6]);
        assert_eq!(case().int("value", 4).i32(), (vec![2, 3], vec![4; 6]));
        assert_eq!(case().f32(), (vec![2, 3], vec![0.0; 6]));
    }

    #[test]
    fn shape_and_identity_and_flatten() {
        assert_eq!(Case::new("shape").input("x", &[2, 0, 3], &[]).i32(), (vec![3], vec![2, 0, 3]));
        assert_eq!(Case::new("shape").input("x", &[], &[1.0]).i32(), (vec![0], vec![]));
        assert_eq!(Case::new("identity").input_i32("x", &[2], &[1, 2]).i32(), (vec![2], vec![1, 2]));
        let flat = |shape: &[usize], axis: i32| {
            let x = ramp(shape.iter().product());
            Case::new("flatten2d").input("x", shape, &x).int("axis", axis)
        };
        for (shape, axis, expected) in [
            (&[3][..], -1, [1, 3]),
            (&[3], 1, [3, 1]),
            (&[4, 3], -1, [4, 3]),
            (&[2, 3, 2], -1, [6, 2]),
            (&[5, 5, 2], 1, [5, 10]),
            (&[5, 5, 2], 0, [1, 50]),
        ] {
            let elements = shape.iter().product();
            assert_eq!(flat(shape, axis).f32(), (expected.to_vec(), ramp(elements)), "{shape:?} {axis}");
        }
        assert!(flat(&[3], 2).error().contains("axis 2"));
        assert!(flat(&[3], -2).error().contains("axis -2"));
        assert_eq!(Case::new("flatten2d").input("x", &[2, 3, 4], &ramp(24)).f32().0, [2, 12]);
    }

    #[test]
    fn band_part_keeps_a_band_of_each_matrix() {
        let ones: Vec<f32> = (1..=12).map(|x| x as f32).collect();
        let case = |lower, upper| {
            Case::new("band_part").input("x", &[1, 3, 4], &ones).int("lower", lower).int("upper", upper)
        };
        assert_eq!(case(0, -1).f32().1, [1., 2., 3., 4., 0., 6., 7., 8., 0., 0., 11., 12.]);
        assert_eq!(case(-1, 0).f32().1, [1., 0., 0., 0., 5., 6., 0., 0., 9., 10., 11., 0.]);
        assert_eq!(case(0, 0).f32().1, [1., 0., 0., 0., 0., 6., 0., 0., 0., 0., 11., 0.]);
        assert_eq!(case(1, 1).f32().1, [1., 2., 0., 0., 5., 6., 7., 0., 0., 10., 11., 12.]);
        assert_eq!(case(i32::MAX, i32::MAX).f32().1, ones);
        let two = Case::new("band_part").input_i32("x", &[2, 2, 1], &[1, 2, 3, 4]).int("lower", 0);
        assert_eq!(two.i32().1, [1, 0, 3, 0], "each matrix starts at its own first row");
        let nan = Case::new("band_part").input("x", &[2, 1], &[1.0, f32::NAN]).int("lower", 0);
        assert_eq!(nan.f32().1, [1.0, 0.0]);
        assert!(Case::new("band_part").input("x", &[2], &[1., 2.]).error().contains("a band of shape [2]"));
    }

    #[test]
    fn cumsum_runs_along_an_axis_in_both_directions() {
        let case =
            |axis| Case::new("cumsum").input("x", &[2, 3], &[3., 1., 2., 0., 5., 4.]).int("axis", axis);
        assert_eq!(case(0).f32().1, [3., 1., 2., 3., 6., 6.]);
        assert_eq!(case(-1).f32().1, [3., 4., 6., 0., 5., 9.]);
        assert_eq!(case(1).bool("exclusive", true).f32().1, [0., 3., 4., 0., 0., 5.]);
        assert_eq!(case(1).bool("reverse", true).f32().1, [6., 3., 2., 9., 9., 4.]);
        let both = case(1).bool("reverse", true).bool("exclusive", true);
        assert_eq!(both.f32().1, [3., 2., 0., 9., 4., 0.]);
        assert_eq!(case(0).bool("exclusive", true).f32().1, [0., 0., 0., 3., 1., 2.]);
        assert!(case(2).error().contains("axis 2"));
        let wraps = Case::new("cumsum").input_i32("x", &[2], &[i32::MAX, 1]);
        assert_eq!(wraps.i32().1, [i32::MAX, i32::MIN]);
        assert_eq!(Case::new("cumsum").input("x", &[0, 3], &[]).f32(), (vec![0, 3], vec![]));
    }

    #[test]
    fn concat_joins_or_interleaves() {
        let a = (&[3, 2][..], &[1., 2., 3., 4., 5., 6.][..]);
        let b = (&[3, 2][..], &[7., 8., 9., 10., 11., 12.][..]);
        let case = |axis| Case::new("concat").inputs("values", &[a, b]).int("axis", axis);
        assert_eq!(case(0).f32(), (vec![6, 2], vec![1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12.]));
        assert_eq!(case(-1).f32(), (vec![3, 4], vec![1., 2., 7., 8., 3., 4., 9., 10., 5., 6., 11., 12.]));
        assert_eq!(
            case(0).bool("interleave", true).f32(),
            (vec![6, 2], vec![1., 2., 7., 8., 3., 4., 9., 10., 5., 6., 11., 12.])
        );
        assert_eq!(
            case(1).bool("interleave", true).f32(),
            (vec![3, 4], vec![1., 7., 2., 8., 3., 9., 4., 10., 5., 11., 6., 12.])
        );
        assert!(case(2).error().contains("axis 2"));
    }

    #[test]
    fn concat_takes_sizes_that_differ_along_its_axis_only() {
        let case = |b: &[usize]| {
            let b_data = vec![9; b.iter().product()];
            Case::new("concat").inputs_i32("values", &[(&[2, 1], &[1, 2]), (b, &b_data)]).int("axis", 1)
        };
        assert_eq!(case(&[2, 9]).i32().1, [[1].as_slice(), &[9; 9], &[2], &[9; 9]].concat());
        assert_eq!(case(&[2, 0]).i32(), (vec![2, 1], vec![1, 2]));
        assert!(case(&[3, 1]).error().contains("cannot join"));
        assert!(case(&[2]).error().contains("cannot join"));
        assert!(case(&[2, 2]).bool("interleave", true).error().contains("cannot join"));
        let scalars = Case::new("concat").inputs("values", &[(&[], &[1.]), (&[], &[2.])]).int("axis", 0);
        assert_eq!(scalars.f32(), (vec![2], vec![1., 2.]));
        assert!(Case::new("concat").inputs("values", &[]).int("axis", 0).error().contains("at least one"));
        let long: Vec<f32> = ramp(40);
        let blocks = Case::new("concat")
            .inputs("values", &[(&[2, 20], &long), (&[2, 10], &long[..20])])
            .int("axis", 1);
        let expected = [&long[..20], &long[..10], &long[20..], &long[10..20]].concat();
        assert_eq!(blocks.f32(), (vec![2, 30], expected));
    }

    #[test]
    fn stack_adds_a_dimension() {
        let case = |axis| {
            Case::new("stack")
                .inputs("values", &[(&[2, 2], &[1., 2., 3., 4.]), (&[2, 2], &[5., 6., 7., 8.])])
                .int("axis", axis)
        };
        assert_eq!(case(0).f32(), (vec![2, 2, 2], vec![1., 2., 3., 4., 5., 6., 7., 8.]));
        assert_eq!(case(1).f32().1, [1., 2., 5., 6., 3., 4., 7., 8.]);
        assert_eq!(case(-1).f32().1, [1., 5., 2., 6., 3., 7., 4., 8.]);
        assert!(case(3).error().contains("axis 3"));
        let scalars = Case::new("stack").inputs_i32("values", &[(&[], &[1]), (&[], &[2])]).int("axis", 0);
        assert_eq!(scalars.i32(), (vec![2], vec![1, 2]));
        let differ = Case::new("stack").inputs("values", &[(&[1], &[1.]), (&[2], &[1., 2.])]).int("axis", 0);
        assert!(differ.error().contains("cannot stack"));
    }

    #[test]
    fn split_cuts_evenly_or_as_told() {
        let x = || Case::new("split").input("x", &[2, 6], &ramp(12)).int("axis", -1);
        let even = x().int("num_splits", 2).run(&[DType::F32; 2]).unwrap();
        assert_eq!(floats(&even[0]), (&[2, 3][..], vec![0., 1., 2., 6., 7., 8.]));
        assert_eq!(floats(&even[1]), (&[2, 3][..], vec![3., 4., 5., 9., 10., 11.]));
        let told = x().ints("split_sizes", &[1, 0, 5]).run(&[DType::F32; 3]).unwrap();
        assert_eq!(floats(&told[0]), (&[2, 1][..], vec![0., 6.]));
        assert_eq!(floats(&told[1]), (&[2, 0][..], vec![]));
        assert_eq!(floats(&told[2]), (&[2, 5][..], vec![1., 2., 3., 4., 5., 7., 8., 9., 10., 11.]));
        let both = x().int("num_splits", 1).ints("split_sizes", &[6]).run(&[DType::F32]).unwrap();
        assert_eq!(floats(&both[0]), (&[2, 6][..], ramp(12)));
        assert!(x().int("num_splits", 4).run(&[DType::F32; 4]).unwrap_err().contains("into 4 pieces"));
        assert!(
            x().ints("split_sizes", &[1, 2]).run(&[DType::F32; 2]).unwrap_err().contains("pieces [1, 2]")
        );
        assert!(x().ints("split_sizes", &[7, -1]).run(&[DType::F32; 2]).unwrap_err().contains("size of -1"));
        assert!(x().int("num_splits", 2).run(&[DType::F32; 3]).unwrap_err().contains("2 splits, 3 outputs"));
        assert!(x().run(&[DType::F32]).unwrap_err().contains("neither"));
    }

    #[test]
    fn tile_repeats_the_whole() {
        let case = |reps: &[i32]| Case::new("tile").input("x", &[2, 3], &ramp(6)).ints("reps", reps);
        let twice = [0., 1., 2., 0., 1., 2., 3., 4., 5., 3., 4., 5.];
        assert_eq!(case(&[2, 2]).f32(), (vec![4, 6], [twice, twice].concat()));
        assert_eq!(case(&[1, 1]).f32(), (vec![2, 3], ramp(6)));
        assert!(case(&[2]).error().contains("rank 2"));
        assert_eq!(case(&[0, 1]).f32(), (vec![0, 3], vec![]));
        assert!(case(&[-1, 1]).error().contains("reps"));
        assert!(case(&[i32::MAX, i32::MAX]).error().contains("over its limit"));
        let computed = |reps| Case::new("tile").input_i32("x", &[1], &[7]).input_i32("reps", &[1], &[reps]);
        assert_eq!(computed(3).i32(), (vec![3], vec![7; 3]));
        assert_eq!(computed(0).i32(), (vec![0], vec![]));
        assert!(computed(-1).error().contains("[-1] repetitions"));
    }

    #[test]
    fn pad_in_every_mode_is_that_of_numpy() {
        let case = |mode, amounts: &[i32]| {
            Case::new("pad").input("x", &[2, 3], &ramp(6)).string("mode", mode).ints("pad", amounts)
        };
        let (shape, found) = case("reflect", &[1, 1, 2, 2]).f32();
        assert_eq!(shape, [4, 7]);
        #[rustfmt::skip]
        assert_eq!(found, [
            5., 4., 3., 4., 5., 4., 3.,
            2., 1., 0., 1., 2., 1., 0.,
            5., 4., 3., 4., 5., 4., 3.,
            2., 1., 0., 1., 2., 1., 0.,
        ]);
        let edge = case("replicate", &[0, 1, 1, 0]).f32();
        assert_eq!(edge, (vec![3, 4], vec![0., 0., 1., 2., 3., 3., 4., 5., 3., 3., 4., 5.]));
        let last = case("constant", &[1, 0]).float("constant_val", 9.).f32();
        assert_eq!(last, (vec![2, 4], vec![9., 0., 1., 2., 9., 3., 4., 5.]));
        let zero = Case::new("pad").input("x", &[1], &[5.]).ints("pad", &[1, 2]).f32();
        assert_eq!(zero, (vec![4], vec![0., 5., 0., 0.]));
    }

    #[test]
    fn pad_moves_whole_rows_where_inner_dimensions_stay() {
        let case = |mode, amounts: &[i32]| {
            Case::new("pad").input("x", &[2, 2, 2], &ramp(8)).string("mode", mode).ints("pad", amounts)
        };
        let constant = case("constant", &[1, 0, 0, 1, 0, 0]).float("constant_val", 9.).f32();
        assert_eq!(
            constant,
            (vec![3, 3, 2], vec![9., 9., 9., 9., 9., 9., 0., 1., 2., 3., 9., 9., 4., 5., 6., 7., 9., 9.])
        );
        let reflected = case("reflect", &[0, 1, 1, 0, 0, 0]).f32();
        assert_eq!(
            reflected,
            (vec![3, 3, 2], vec![2., 3., 0., 1., 2., 3., 6., 7., 4., 5., 6., 7., 2., 3., 0., 1., 2., 3.])
        );
    }

    #[test]
    fn pad_refuses_what_has_no_meaning() {
        let case = |mode, shape: &[usize], amounts: &[i32]| {
            let x = ramp(shape.iter().product());
            Case::new("pad").input("x", shape, &x).string("mode", mode).ints("pad", amounts)
        };
        assert!(case("reflect", &[3], &[3, 0]).error().contains("padding [3, 0]"));
        assert!(case("reflect", &[0], &[1, 0]).error().contains("padding [1, 0]"));
        assert!(case("replicate", &[0], &[1, 0]).error().contains("padding [1, 0]"));
        assert!(case("constant", &[3], &[-1, 0]).error().contains("`pad`"));
        assert!(case("constant", &[3], &[1]).error().contains("`pad`"));
        assert!(case("constant", &[3], &[0; 4]).error().contains("`pad`"));
        assert!(case("wrap", &[3], &[0, 0]).error().contains("unknown mode"));
        assert!(case("constant", &[1, 1], &[i32::MAX; 4]).error().contains("over its limit"));
        assert!(case("replicate", &[0, 1], &[0, 0, i32::MAX, i32::MAX]).f32().1.is_empty());
        assert_eq!(case("constant", &[0], &[1, 1]).f32(), (vec![2], vec![0., 0.]));
        let computed = Case::new("pad")
            .input_i32("x", &[1], &[5])
            .input_i32("pad", &[2], &[1, 0])
            .int("constant_val", 7);
        assert_eq!(computed.i32(), (vec![2], vec![7, 5]));
        let negative = Case::new("pad").input("x", &[1], &[5.]).input_i32("pad", &[2], &[-1, 0]);
        assert!(negative.error().contains("a size of -1"));
    }

    #[test]
    fn range_1d_is_arange() {
        let floats = |start, end, step| {
            Case::new("range_1d").float("start", start).input("end", &[], &[end]).float("step", step)
        };
        let (shape, found) = floats(0.0, 1.0, 0.1).f32();
        assert_eq!(shape, [10]);
        assert_close(&found, &[0., 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9], 1e-6);
        assert_eq!(floats(1.0, 0.0, 1.0).f32(), (vec![0], vec![]));
        for (start, end, step) in
            [(0., 1., 0.), (f32::NAN, 1., 1.), (0., f32::INFINITY, 1.), (0., 1., f32::NAN)]
        {
            assert!(floats(start, end, step).error().contains("a range from"), "{start} {end} {step}");
        }
        assert!(floats(0.0, 1e30, 1.0).error().contains("over its limit"));
        let ints = |start, end, step| {
            Case::new("range_1d").int("start", start).input_i32("end", &[1], &[end]).int("step", step)
        };
        assert_eq!(ints(5, -4, -3).i32(), (vec![3], vec![5, 2, -1]));
        assert_eq!(ints(0, 7, 3).i32(), (vec![3], vec![0, 3, 6]));
        assert_eq!(ints(0, -1, 1).i32(), (vec![0], vec![]));
        assert_eq!(ints(i32::MIN, i32::MAX, i32::MAX).i32().1, [i32::MIN, -1, i32::MAX - 1]);
        assert!(ints(0, 1, 0).error().contains("by 0"));
        assert!(ints(i32::MIN, i32::MAX, 1).error().contains("over its limit"));
        let mixed = Case::new("range_1d").float("start", 0.).int("end", 1).int("step", 1);
        assert!(mixed.error().contains("a range from"));
    }

    #[test]
    fn non_zero_lists_indices_in_row_major_order() {
        let case = Case::new("non_zero").input("x", &[2, 3], &[0., 2., 0., f32::NAN, -0., -1.]);
        assert_eq!(case.i32(), (vec![3, 2], vec![0, 1, 1, 0, 1, 2]));
        assert_eq!(Case::new("non_zero").input_i32("x", &[3], &[0; 3]).i32(), (vec![0, 1], vec![]));
        assert_eq!(Case::new("non_zero").input_i32("x", &[0, 2], &[]).i32(), (vec![0, 2], vec![]));
    }

    #[test]
    fn one_hot_sets_the_named_places() {
        let case = || Case::new("one_hot").input_i32("indices", &[2], &[1, 0]).int("one_hot_vector_size", 4);
        assert_eq!(case().i32(), (vec![2, 4], vec![0, 1, 0, 0, 1, 0, 0, 0]));
        assert_eq!(case().int("axis", 0).i32(), (vec![4, 2], vec![0, 1, 1, 0, 0, 0, 0, 0]));
        assert_eq!(
            case().float("on_value", 1.0).float("off_value", 0.1).f32().1,
            [0.1, 1.0, 0.1, 0.1, 1.0, 0.1, 0.1, 0.1]
        );
        let computed = Case::new("one_hot")
            .input_i32("indices", &[4], &[1, -1, 2, i32::MIN])
            .input_i32("one_hot_vector_size", &[], &[2])
            .int("on_value", 1)
            .int("off_value", 9);
        assert_eq!(computed.i32(), (vec![4, 2], vec![9, 1, 9, 9, 9, 9, 9, 9]));
        assert!(case().int("axis", 2).error().contains("axis 2"));
        let negative = Case::new("one_hot").input_i32("indices", &[1], &[0]).int("one_hot_vector_size", -1);
        assert!(negative.error().contains("a size of -1"));
        let huge =
            Case::new("one_hot").input_i32("indices", &[9], &[0; 9]).int("one_hot_vector_size", i32::MAX);
        assert!(huge.error().contains("over its limit"));
    }

    #[test]
    fn select_broadcasts_its_three_operands() {
        // np.where([[1], [0]], arange(6).reshape(2, 3), [10, 20, 30])
        let rows = Case::new("select")
            .input_i32("cond", &[2, 1], &[1, 0])
            .input("a", &[2, 3], &ramp(6))
            .input("b", &[3], &[10., 20., 30.]);
        assert_eq!(rows.f32(), (vec![2, 3], vec![0., 1., 2., 10., 20., 30.]));
        let scalar = Case::new("select")
            .input_i32("cond", &[3], &[1, 0, 1])
            .input_i32("a", &[2, 3], &[0, 1, 2, 3, 4, 5])
            .int("b", -1);
        assert_eq!(scalar.i32(), (vec![2, 3], vec![0, -1, 2, 3, -1, 5]));
        let differ = Case::new("select").input_i32("cond", &[2], &[1, 0]).input("a", &[3], &ramp(3)).input(
            "b",
            &[3],
            &ramp(3),
        );
        assert!(differ.error().contains("do not broadcast"));
        let mixed = Case::new("select").input_i32("cond", &[1], &[1]).input("a", &[1], &[1.]).int("b", 1);
        assert!(mixed.error().contains("a choice between"));
        let half = Case::new("select").input_i32("cond", &[1], &[1]).input("a", &[1], &[1.]);
        assert_eq!(half.error(), "parameter `b` is missing");
        assert_eq!(Case::new("select").input_i32("cond", &[3], &[0, 1, 2]).i32(), (vec![2, 1], vec![1, 2]));
    }

    #[test]
    fn select_agrees_with_its_definition_for_every_way_to_broadcast() {
        let shapes: [&[usize]; 5] = [&[2, 3, 4], &[3, 1], &[1, 1, 4], &[2, 1, 1], &[]];
        let at = |shape: &[usize], index: [usize; 3]| {
            shape.iter().rev().zip(index.iter().rev()).fold((0, 1), |(place, step), (&size, &i)| {
                (place + if size == 1 { 0 } else { i * step }, step * size)
            })
        };
        for c in shapes {
            for a in shapes {
                for b in shapes {
                    let count = |shape: &[usize]| shape.iter().product::<usize>();
                    let cond: Vec<i32> = (0..count(c)).map(|i| i32::from(i % 3 != 1)).collect();
                    let x: Vec<f32> = ramp(count(a));
                    let y: Vec<f32> = ramp(count(b)).iter().map(|y| -1.0 - y).collect();
                    let dims = [c, a, b];
                    let size = |dim: usize| {
                        let of = |s: &[usize]| (s.len() + dim).checked_sub(3).map_or(1, |i| s[i]);
                        dims.iter().map(|s| of(s)).max().unwrap()
                    };
                    let mut expected = Vec::new();
                    for i in 0..size(0) {
                        for j in 0..size(1) {
                            for k in 0..size(2) {
                                let index = [i, j, k];
                                let chosen = if cond[at(c, index).0] != 0 {
                                    x[at(a, index).0]
                                } else {
                                    y[at(b, index).0]
                                };
                                expected.push(chosen);
                            }
                        }
                    }
                    let case =
                        Case::new("select").input_i32("cond", c, &cond).input("a", a, &x).input("b", b, &y);
                    assert_eq!(case.f32().1, expected, "{c:?} {a:?} {b:?}");
                }
            }
        }
    }

    #[test]
    fn argsort_puts_the_largest_first_unless_told() {
        let case = || Case::new("argsort").input("x", &[2, 3], &[3., 1., 2., 5., f32::NAN, 5.]);
        assert_eq!(case().i32(), (vec![2, 3], vec![0, 2, 1, 0, 2, 1]));
        assert_eq!(case().bool("ascending", true).i32().1, [1, 2, 0, 0, 2, 1]);
        assert_eq!(case().int("axis", 0).i32().1, [1, 0, 1, 0, 1, 0]);
        let extremes = Case::new("argsort").input_i32("x", &[3], &[i32::MIN, i32::MAX, 0]);
        assert_eq!(extremes.i32().1, [1, 2, 0]);
        assert_eq!(Case::new("argsort").input("x", &[0], &[]).i32(), (vec![0], vec![]));
        assert!(case().int("axis", 2).error().contains("axis 2"));
    }

    #[test]
    fn topk_returns_values_and_indices_in_order() {
        let x = |opset| {
            Case::in_opset("topk", opset).input("x", &[2, 4], &[1., 4., 4., 2., f32::NAN, -1., 0., 7.])
        };
        let both = [DType::F32, DType::I32];
        let found = x(Opset::Ios15).int("k", 3).run(&both).unwrap();
        assert_eq!(floats(&found[0]), (&[2, 3][..], vec![4., 4., 2., 7., 0., -1.]));
        assert_eq!(ints(&found[1]), (&[2, 3][..], vec![1, 2, 3, 3, 2, 1]));
        let found = x(Opset::Ios15).int("k", 1).bool("ascending", true).int("axis", 0).run(&both).unwrap();
        assert_eq!(floats(&found[0]), (&[1, 4][..], vec![1., -1., 0., 2.]));
        assert_eq!(ints(&found[1]), (&[1, 4][..], vec![0, 1, 1, 0]));
        let alone =
            x(Opset::Ios16).bool("return_indices", false).bool("sort", false).run(&[DType::F32]).unwrap();
        assert_eq!(floats(&alone[0]), (&[2, 1][..], vec![4., 7.]));
        let all = x(Opset::Ios17).int("k", -1).string("output_indices_dtype", "uint16");
        let found = all.run(&[DType::F32, DType::U16]).unwrap();
        assert_eq!(ints(&found[1]), (&[2, 4][..], vec![1, 2, 3, 0, 3, 2, 1, 0]));
    }

    #[test]
    fn topk_refuses_what_an_opset_does_not_have_and_what_does_not_fit() {
        let x = |opset| Case::in_opset("topk", opset).input("x", &[4], &ramp(4));
        let both = [DType::F32, DType::I32];
        let refused = |case: Case, why: &str| {
            let error = case.run(&both).unwrap_err();
            assert!(error.contains(why), "{error}");
        };
        refused(x(Opset::Ios17).int("k", 5), "the first 5 of a dimension of 4");
        refused(x(Opset::Ios16).int("k", -1), "`k`");
        refused(x(Opset::Ios17).int("k", -2), "`k`");
        refused(x(Opset::Ios15).bool("sort", true), "unknown parameter");
        refused(x(Opset::Ios16).string("output_indices_dtype", "int32"), "unknown parameter");
        refused(x(Opset::Ios17).string("output_indices_dtype", "int8"), "unknown type `int8`");
        refused(x(Opset::Ios17).bool("return_indices", false), "2 outputs");
        let wide =
            Case::new("topk").input("x", &[65_537], &ramp(65_537)).string("output_indices_dtype", "uint16");
        assert!(wide.run(&both).unwrap_err().contains("do not fit 16 bits"));
    }

    const BOXES: [f32; 24] = [
        10., 10., 4., 4., 11., 10., 4., 4., 10., 11., 4., 6., 30., 30., 2., 2., 30.5, 30., 2., 2., 11., 11.,
        4., 4.,
    ];
    const SCORES: [f32; 12] = [0.9, 0.1, 0.3, 0.8, 0.7, 0.2, 0.1, 0.05, 0.2, 0.6, 0.4, 0.75];

    fn rows(indices: &[i32], from: &[f32], width: usize) -> Vec<f32> {
        let row = |&i: &i32| match usize::try_from(i) {
            Ok(i) => from[i * width..][..width].to_vec(),
            Err(_) => vec![0.0; width],
        };
        indices.iter().flat_map(row).collect()
    }

    #[test]
    fn non_maximum_suppression_agrees_with_the_reference_of_coremltools() {
        // Expected from the NumPy form of `_ref_non_maximum_suppression` of coremltools' own test.
        for (per_class, threshold, max_boxes, expected) in [
            (false, 0.3, 6, &[0, 4, -1, -1, -1, -1][..]),
            (false, 0.5, 6, &[0, 5, 4, -1, -1, -1]),
            (false, 0.5, 2, &[0, 5]),
            (true, 0.3, 6, &[0, 1, 4, -1, -1, -1]),
            (true, 0.3, 2, &[0, 1]),
        ] {
            let case = Case::in_opset("non_maximum_suppression", Opset::Ios15)
                .input("boxes", &[1, 6, 4], &BOXES)
                .input("scores", &[1, 6, 2], &SCORES)
                .float("iou_threshold", threshold)
                .float("score_threshold", 0.15)
                .int("max_boxes", max_boxes)
                .bool("per_class_suppression", per_class);
            let found = case.run(&[DType::F32, DType::F32, DType::I32, DType::I32]).unwrap();
            let n = expected.len();
            assert_eq!(ints(&found[2]), (&[1, n][..], expected.to_vec()));
            assert_eq!(floats(&found[0]), (&[1, n, 4][..], rows(expected, &BOXES, 4)));
            assert_eq!(floats(&found[1]), (&[1, n, 2][..], rows(expected, &SCORES, 2)));
            let count = expected.iter().filter(|&&i| i >= 0).count();
            assert_eq!(ints(&found[3]), (&[1][..], vec![count as i32]));
        }
    }

    #[test]
    fn where_no_box_survives_the_best_is_returned() {
        let case = Case::in_opset("non_maximum_suppression", Opset::Ios15)
            .input("boxes", &[1, 6, 4], &BOXES)
            .input("scores", &[1, 6, 2], &SCORES)
            .float("iou_threshold", 0.3)
            .float("score_threshold", 5.0)
            .int("max_boxes", 3);
        let found = case.run(&[DType::F32, DType::F32, DType::I32, DType::I32]).unwrap();
        assert_eq!(ints(&found[2]).1, [0, -1, -1]);
        assert_eq!(ints(&found[3]).1, [1]);
    }

    #[test]
    fn since_ios_17_boxes_are_columns() {
        let transposed = |data: &[f32], width: usize| -> Vec<f32> {
            (0..width).flat_map(|j| (0..6).map(move |i| data[i * width + j])).collect()
        };
        let case = |boxes: &[usize]| {
            Case::new("non_maximum_suppression")
                .input("boxes", boxes, &transposed(&BOXES, 4))
                .input("scores", &[1, 2, 6], &transposed(&SCORES, 2))
                .float("iou_threshold", 0.5)
                .int("max_boxes", 4)
        };
        let found = case(&[1, 4, 6]).run(&[DType::F32, DType::F32, DType::I32]).unwrap();
        let expected = [0, 5, 4, 3];
        assert_eq!(ints(&found[2]), (&[1, 4][..], vec![0, 5, 4, -1]), "3 overlaps 4 by 0.6");
        let best: Vec<f32> = expected[..3].iter().map(|&i: &usize| BOXES[i * 4]).chain([0.0]).collect();
        assert_eq!(floats(&found[0]).0, [1, 4, 4]);
        assert_eq!(floats(&found[0]).1[..4], best);
        assert_eq!(floats(&found[1]).0, [1, 2, 4]);
        let three = [DType::F32, DType::F32, DType::I32];
        assert!(case(&[1, 6, 4]).run(&three).unwrap_err().contains("boxes of shape"));
        assert!(
            case(&[1, 4, 6])
                .float("score_threshold", 0.1)
                .run(&three)
                .unwrap_err()
                .contains("unknown parameter")
        );
    }

    #[test]
    fn non_maximum_suppression_survives_boxes_that_are_none() {
        let case = |boxes: &[f32], scores: &[f32], max_boxes| {
            Case::in_opset("non_maximum_suppression", Opset::Ios15)
                .input("boxes", &[1, boxes.len() / 4, 4], boxes)
                .input("scores", &[1, boxes.len() / 4, 1], scores)
                .float("iou_threshold", 0.3)
                .float("score_threshold", 0.4)
                .int("max_boxes", max_boxes)
                .run(&[DType::F32, DType::F32, DType::I32, DType::I32])
        };
        // The smoke test of coremltools, with points instead of boxes.
        let points: Vec<f32> = (0..4).flat_map(|i| [i as f32, i as f32, 0.0, 0.0]).collect();
        let found = case(&points, &[-3.5, 9.4, 2.3, 0.7], 2).unwrap();
        assert_eq!(ints(&found[2]).1, [1, 2]);
        let found = case(&[f32::NAN; 8], &[f32::NAN, f32::INFINITY], 2).unwrap();
        assert_eq!(ints(&found[2]).1, [1, -1]);
        let found = case(&[], &[], 2).unwrap();
        assert_eq!((ints(&found[2]).1, ints(&found[3]).1), (vec![-1, -1], vec![0]));
        assert_eq!(floats(&case(&points, &[0.0; 4], 0).unwrap()[0]).0, [1, 0, 4]);
        assert!(case(&points, &[0.0; 4], -1).unwrap_err().contains("max_boxes"));
        assert!(case(&points, &[0.0; 4], i32::MAX).unwrap_err().contains("over its limit"));
    }

    #[test]
    fn a_box_of_negative_size_overlaps_nothing() {
        let boxes =
            [[2.0, 2.0, 4.0, 4.0], [2.0, 2.0, -4.0, 4.0], [2.0, 2.0, -4.0, -4.0], [2.0, 3.0, 4.0, 4.0]];
        let found = Case::in_opset("non_maximum_suppression", Opset::Ios15)
            .input("boxes", &[1, 4, 4], boxes.as_flattened())
            .input("scores", &[1, 4, 1], &[4.0, 3.0, 2.0, 1.0])
            .float("iou_threshold", 0.0)
            .float("score_threshold", 0.0)
            .int("max_boxes", 4)
            .run(&[DType::F32, DType::F32, DType::I32, DType::I32])
            .unwrap();
        assert_eq!(ints(&found[2]).1, [0, 1, 2, -1]);
    }

    #[test]
    fn a_scalar_parameter_must_be_one_value() {
        let two = Constant::f32(&[2], vec![1.0, 2.0]).unwrap();
        let error = Case::new("fill").ints("shape", &[1]).constant("value", two).error();
        assert!(error.contains("expected a scalar, found 2 values"), "{error}");
    }
}
