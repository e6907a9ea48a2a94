//! `scatter_gather` ops: read from, or write to, places that are computed.
//!
//! Semantics: coremltools, `mil/ops/defs/iOS15/scatter_gather.py`, `iOS16/scatter_gather.py`, `iOS17/scatter_gather.py`.
//!
//! Up to iOS 16 a negative index counts from the end; from iOS 17 on it is out of bounds. An index out of bounds is an error,
//! but for iOS 17's `validate_indices = False`, its default: an answer is given then, and the definition leaves open which.
//! Here a gather reads the nearest place, and a scatter leaves such an update out. Of several updates of one place, later
//! ones come after earlier ones, in the order of the indices.

use rten::PoolRef;
use rten_tensor::prelude::*;
use rten_tensor::{Tensor, TensorView};

use super::strided::{Element, dense_mut, for_each_type, span, take_dense};
use super::{Axis, Input, Kernel, OpBuilder, OpDef, Run, parameter};
use crate::error::{KernelError, OpError};
use crate::ir::Opset::{Ios13, Ios16, Ios17};
use crate::value::{Value, one};

pub(crate) const OPS: &[OpDef] = &[
    OpDef::new("gather", &[Ios13, Ios16, Ios17], gather),
    OpDef::new("gather_along_axis", &[Ios13, Ios16, Ios17], gather_along_axis),
    OpDef::new("gather_nd", &[Ios13, Ios16, Ios17], gather_nd),
    OpDef::new("scatter", &[Ios13, Ios17], scatter),
    OpDef::new("scatter_along_axis", &[Ios13, Ios17], scatter_along_axis),
    OpDef::new("scatter_nd", &[Ios13, Ios17], scatter_nd),
];

/// How the indices of one op are meant.
#[derive(Clone, Copy)]
struct Indices {
    slot: usize,
    bounds: Bounds,
}

/// What becomes of an index that is not one of a dimension's.
#[derive(Clone, Copy)]
enum Bounds {
    /// It counts from the end, or is an error.
    FromEnd,
    /// It is an error.
    Checked,
    /// It is no error.
    Unchecked,
}

impl Indices {
    fn new(op: &mut OpBuilder<'_>) -> Result<Self, OpError> {
        let input = op.input("indices")?;
        if input.ty.dtype.is_float() {
            return Err(parameter("indices", format!("expected integers, found {}", input.ty)));
        }
        let bounds = match op.opset() {
            opset if opset < Ios17 => Bounds::FromEnd,
            _ if op.bool("validate_indices", false)? => Bounds::Checked,
            _ => Bounds::Unchecked,
        };
        Ok(Self { slot: input.slot, bounds })
    }

    /// `index` in a dimension of `size`; `None` if it is out of bounds and nothing is checked.
    fn place(self, index: i32, size: usize) -> Result<Option<usize>, KernelError> {
        let place = match (usize::try_from(index), self.bounds) {
            (Ok(place), _) => Some(place),
            (Err(_), Bounds::FromEnd) => {
                usize::try_from(index.unsigned_abs()).ok().and_then(|n| size.checked_sub(n))
            }
            (Err(_), Bounds::Checked | Bounds::Unchecked) => None,
        };
        match (place.filter(|&place| place < size), self.bounds) {
            (None, Bounds::FromEnd | Bounds::Checked) => Err(out_of_bounds(index, size)),
            (place, _) => Ok(place),
        }
    }

    /// The place to read for `index`: the nearest one where it is out of bounds and nothing is checked.
    fn nearest(self, index: i32, size: usize) -> Result<usize, KernelError> {
        match self.place(index, size)? {
            Some(place) => Ok(place),
            None if index < 0 && size > 0 => Ok(0),
            None => size.checked_sub(1).ok_or_else(|| out_of_bounds(index, size)),
        }
    }
}

fn out_of_bounds(index: i32, size: usize) -> KernelError {
    KernelError::value(format!("index {index} is out of bounds of a dimension of {size}"))
}

/// The number of a block with that next coordinate, among blocks numbered row-major.
fn next(block: usize, size: usize, place: usize) -> usize {
    block.saturating_mul(size).saturating_add(place)
}

/// Number of leading dimensions that `x` and the indices share.
fn batch_dims(op: &mut OpBuilder<'_>) -> Result<usize, OpError> {
    let batch = if op.opset() >= Ios16 { op.int("batch_dims", 0)? } else { 0 };
    usize::try_from(batch).map_err(|_| parameter("batch_dims", format!("{batch} dimensions")))
}

/// `x.shape[:axis] + indices.shape[batch:] + x.shape[axis + 1:]`: slices of `x` across `axis`.
fn gather(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    fn slices<T: Element>(
        run: &Run<'_, '_>,
        x: &TensorView<'_, T>,
        indices: Indices,
        axis: usize,
        batch: usize,
    ) -> Result<Tensor<T>, KernelError> {
        let view = run.i32(indices.slot)?;
        let (from, by) = (x.shape(), view.shape());
        if batch > axis || batch > by.len() || from[..batch] != by[..batch] {
            return Err(KernelError::shape(format!(
                "cannot gather from {from:?} at {by:?} across axis {axis} with {batch} batch dimensions"
            )));
        }
        let shape = [&from[..axis], &by[batch..], &from[axis + 1..]].concat();
        let mut data = run.buffer::<T>(&shape)?;
        if !shape.contains(&0) {
            let x = PoolRef::new(run.pool(), x.to_contiguous_in(run.pool()));
            let places = PoolRef::new(run.pool(), view.to_contiguous_in(run.pool()));
            let (outer, size, inner) = (span(&from[batch..axis]), from[axis], span(&from[axis + 1..]));
            for (b, places) in places.data().chunks_exact(span(&by[batch..])).enumerate() {
                for block in b * outer..(b + 1) * outer {
                    let rows = &x.data()[block * size * inner..][..size * inner];
                    if let [] | [1] = from[axis + 1..] {
                        for &index in places {
                            data.push(rows[indices.nearest(index, size)?]);
                        }
                    } else {
                        for &index in places {
                            let row = indices.nearest(index, size)? * inner;
                            data.extend_from_slice(&rows[row..row + inner]);
                        }
                    }
                }
            }
        }
        Tensor::try_from_data(&shape, data).map_err(KernelError::library)
    }
    let x = op.input("x")?;
    let indices = Indices::new(op)?;
    let axis = op.axis("axis", Some(0), x.rank())?;
    let batch = batch_dims(op)?;
    Ok(Box::new(move |run| {
        let view = run.any(x.slot)?;
        let axis = axis.of(view.shape().len())?;
        Ok(one(for_each_type!(view, view => slices(run, &view, indices, axis, batch)?)))
    }))
}

/// An error unless the two shapes have one rank and differ in `axis` only.
fn alike_but_for(axis: usize, data: &[usize], indices: &[usize]) -> Result<(), KernelError> {
    let fits = |(i, (a, b)): (usize, (&usize, &usize))| i == axis || a == b;
    if data.len() == indices.len() && data.iter().zip(indices).enumerate().all(fits) {
        return Ok(());
    }
    Err(KernelError::shape(format!("indices of shape {indices:?} along axis {axis} of shape {data:?}")))
}

/// NumPy's `take_along_axis`.
fn gather_along_axis(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    fn elements<T: Element>(
        run: &Run<'_, '_>,
        x: &TensorView<'_, T>,
        indices: Indices,
        axis: Axis,
    ) -> Result<Tensor<T>, KernelError> {
        let view = run.i32(indices.slot)?;
        let (from, shape) = (x.shape(), view.shape());
        let axis = axis.of(from.len())?;
        alike_but_for(axis, from, shape)?;
        let mut data = run.buffer::<T>(shape)?;
        if !view.is_empty() {
            let x = PoolRef::new(run.pool(), x.to_contiguous_in(run.pool()));
            let places = PoolRef::new(run.pool(), view.to_contiguous_in(run.pool()));
            let (size, inner) = (from[axis], span(&from[axis + 1..]));
            for (block, places) in places.data().chunks_exact(shape[axis] * inner).enumerate() {
                for row in places.chunks_exact(inner) {
                    for (i, &index) in row.iter().enumerate() {
                        data.push(x.data()[(block * size + indices.nearest(index, size)?) * inner + i]);
                    }
                }
            }
        }
        Tensor::try_from_data(shape, data).map_err(KernelError::library)
    }
    let x = op.input("x")?;
    let indices = Indices::new(op)?;
    let axis = op.axis("axis", Some(0), x.rank())?;
    Ok(Box::new(move |run| {
        Ok(one(for_each_type!(run.any(x.slot)?, view => elements(run, &view, indices, axis)?)))
    }))
}

/// The last dimension of the indices names a slice of `x`, after the batch dimensions.
fn gather_nd(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    fn slices<T: Element>(
        run: &Run<'_, '_>,
        x: &TensorView<'_, T>,
        indices: Indices,
        batch: usize,
    ) -> Result<Tensor<T>, KernelError> {
        let view = run.i32(indices.slot)?;
        let (from, by) = (x.shape(), view.shape());
        let refuse = || {
            KernelError::shape(format!("cannot gather from {from:?} at {by:?} with {batch} batch dimensions"))
        };
        let (&depth, tuples) = by.split_last().ok_or_else(refuse)?;
        let end = batch.checked_add(depth).filter(|&end| end <= from.len()).ok_or_else(refuse)?;
        if batch > tuples.len() || from[..batch] != tuples[..batch] {
            return Err(refuse());
        }
        let shape = [tuples, &from[end..]].concat();
        let mut data = run.buffer::<T>(&shape)?;
        if !shape.contains(&0) {
            let x = PoolRef::new(run.pool(), x.to_contiguous_in(run.pool()));
            let places = PoolRef::new(run.pool(), view.to_contiguous_in(run.pool()));
            let (sizes, inner) = (&from[batch..end], span(&from[end..]));
            let per_batch = span(&tuples[batch..]);
            for i in 0..span(tuples) {
                let tuple = &places.data()[i * depth..][..depth];
                let mut block = i / per_batch;
                for (&index, &size) in tuple.iter().zip(sizes) {
                    block = next(block, size, indices.nearest(index, size)?);
                }
                data.extend_from_slice(&x.data()[block * inner..][..inner]);
            }
        }
        Tensor::try_from_data(&shape, data).map_err(KernelError::library)
    }
    let x = op.input("x")?;
    let indices = Indices::new(op)?;
    let batch = batch_dims(op)?;
    Ok(Box::new(move |run| {
        Ok(one(for_each_type!(run.any(x.slot)?, view => slices(run, &view, indices, batch)?)))
    }))
}

/// What an update does to an element.
#[derive(Clone, Copy, Debug)]
enum Mode {
    Add,
    Div,
    Max,
    Min,
    Mul,
    Sub,
    Update,
}

impl Mode {
    /// The default is that of coremltools' `default_inputs`, which its own tests rely on, not that of its documentation.
    fn new(op: &mut OpBuilder<'_>) -> Result<Self, OpError> {
        Ok(match &*op.string("mode", "add")? {
            "add" => Self::Add,
            "div" => Self::Div,
            "max" => Self::Max,
            "min" => Self::Min,
            "mul" => Self::Mul,
            "sub" => Self::Sub,
            "update" => Self::Update,
            other => return Err(parameter("mode", format!("unknown mode `{other}`"))),
        })
    }
}

/// Arithmetic of the modes.
trait Number: Element {
    /// Changes `data` by as many `updates`.
    fn change(mode: Mode, data: &mut [Self], updates: &[Self]) -> Result<(), KernelError>;
}

fn each<T: Element>(data: &mut [T], updates: &[T], f: impl Fn(T, T) -> T) {
    data.iter_mut().zip(updates).for_each(|(x, &update)| *x = f(*x, update));
}

impl Number for f32 {
    fn change(mode: Mode, data: &mut [Self], updates: &[Self]) -> Result<(), KernelError> {
        match mode {
            Mode::Add => each(data, updates, |x, update| x + update),
            Mode::Div => each(data, updates, |x, update| x / update),
            // What is not a number stays so, as in NumPy.
            Mode::Max => each(data, updates, |x, update| if x >= update || x.is_nan() { x } else { update }),
            Mode::Min => each(data, updates, |x, update| if x <= update || x.is_nan() { x } else { update }),
            Mode::Mul => each(data, updates, |x, update| x * update),
            Mode::Sub => each(data, updates, |x, update| x - update),
            Mode::Update => data.copy_from_slice(updates),
        }
        Ok(())
    }
}

impl Number for i32 {
    fn change(mode: Mode, data: &mut [Self], updates: &[Self]) -> Result<(), KernelError> {
        match mode {
            Mode::Add => each(data, updates, Self::wrapping_add),
            Mode::Div if updates.contains(&0) => return Err(KernelError::value("an integer divided by 0")),
            Mode::Div => each(data, updates, Self::wrapping_div),
            Mode::Max => each(data, updates, Self::max),
            Mode::Min => each(data, updates, Self::min),
            Mode::Mul => each(data, updates, Self::wrapping_mul),
            Mode::Sub => each(data, updates, Self::wrapping_sub),
            Mode::Update => data.copy_from_slice(updates),
        }
        Ok(())
    }
}

/// Where updates go: they are blocks of `block` elements, and `place(indices, i)` is the number of the block of data that
/// the `i`-th changes, if it changes any.
struct Target {
    updates: Vec<usize>,
    block: usize,
    place: Box<Place>,
}

type Place = dyn Fn(&[i32], usize) -> Result<Option<usize>, KernelError>;

/// The parameters that all scatters have.
struct Scatter {
    data: Input,
    updates: Input,
    indices: Indices,
    mode: Mode,
}

impl Scatter {
    fn new(op: &mut OpBuilder<'_>) -> Result<Self, OpError> {
        let data = op.input("data")?;
        let indices = Indices::new(op)?;
        let updates = op.input("updates")?;
        if data.ty.dtype != updates.ty.dtype {
            return Err(parameter("updates", format!("{} for data {}", updates.ty, data.ty)));
        }
        Ok(Self { data, updates, indices, mode: Mode::new(op)? })
    }

    /// Changes the data, in place where this is its last use. `target` is given the shapes of the data and the indices.
    fn run(
        &self,
        run: &mut Run<'_, '_>,
        target: impl FnOnce(&[usize], &[usize]) -> Result<Target, KernelError>,
    ) -> Result<Value, KernelError> {
        let (data, updates) = (run.any(self.data.slot)?, run.any(self.updates.slot)?);
        let indices = run.i32(self.indices.slot)?;
        let target = target(data.shape(), indices.shape())?;
        if updates.shape() != target.updates {
            return Err(KernelError::shape(format!(
                "updates of shape {:?}, expected {:?} for data of shape {:?} at indices of shape {:?}",
                updates.shape(),
                target.updates,
                data.shape(),
                indices.shape()
            )));
        }
        Ok(match take_dense(run, self.data.slot)? {
            Value::F32(data) => Value::F32(self.change(run, data, &run.f32(self.updates.slot)?, &target)?),
            Value::I32(data) => Value::I32(self.change(run, data, &run.i32(self.updates.slot)?, &target)?),
        })
    }

    fn change<T: Number>(
        &self,
        run: &Run<'_, '_>,
        mut data: Tensor<T>,
        updates: &TensorView<'_, T>,
        target: &Target,
    ) -> Result<Tensor<T>, KernelError> {
        if !updates.is_empty() {
            let indices = PoolRef::new(run.pool(), run.i32(self.indices.slot)?.to_contiguous_in(run.pool()));
            let updates = PoolRef::new(run.pool(), updates.to_contiguous_in(run.pool()));
            let memory = dense_mut(&mut data)?;
            for (i, updates) in updates.data().chunks_exact(target.block).enumerate() {
                let Some(place) = (target.place)(indices.data(), i)? else { continue };
                let start = place.saturating_mul(target.block);
                let block = memory
                    .get_mut(start..start.saturating_add(target.block))
                    .ok_or_else(|| KernelError::value("an update outside the data"))?;
                T::change(self.mode, block, updates)?;
            }
        }
        Ok(data)
    }
}

/// Changes slices of the data across `axis`.
fn scatter(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let scatter = Scatter::new(op)?;
    let axis = op.axis("axis", Some(0), scatter.data.rank())?;
    let indices = scatter.indices;
    Ok(Box::new(move |run| {
        Ok(one(scatter.run(run, |data, by| {
            let axis = axis.of(data.len())?;
            let (size, count) = (data[axis], span(by));
            Ok(Target {
                updates: [&data[..axis], by, &data[axis + 1..]].concat(),
                block: span(&data[axis + 1..]),
                place: Box::new(move |places, i| {
                    Ok(indices.place(places[i % count], size)?.map(|place| next(i / count, size, place)))
                }),
            })
        })?))
    }))
}

/// Changes elements along `axis`: the inverse of [`gather_along_axis`].
fn scatter_along_axis(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let scatter = Scatter::new(op)?;
    let axis = op.axis("axis", Some(0), scatter.data.rank())?;
    let indices = scatter.indices;
    Ok(Box::new(move |run| {
        Ok(one(scatter.run(run, |data, by| {
            let axis = axis.of(data.len())?;
            alike_but_for(axis, data, by)?;
            let (size, inner, count) = (data[axis], span(&data[axis + 1..]), span(&by[axis..]));
            Ok(Target {
                updates: by.to_vec(),
                block: 1,
                place: Box::new(move |places, i| {
                    let row = indices.place(places[i], size)?.map(|place| next(i / count, size, place));
                    Ok(row.map(|row| next(row, inner, i % inner)))
                }),
            })
        })?))
    }))
}

/// Changes the slices that the last dimension of the indices names: the inverse of [`gather_nd`].
fn scatter_nd(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let scatter = Scatter::new(op)?;
    let indices = scatter.indices;
    Ok(Box::new(move |run| {
        Ok(one(scatter.run(run, |data, by| {
            let refuse =
                || KernelError::shape(format!("indices of shape {by:?} into data of shape {data:?}"));
            let (&depth, tuples) = by.split_last().ok_or_else(refuse)?;
            let (sizes, inner) = data.split_at_checked(depth).ok_or_else(refuse)?;
            let sizes = sizes.to_vec();
            Ok(Target {
                updates: [tuples, inner].concat(),
                block: span(inner),
                place: Box::new(move |places, i| {
                    let tuple = &places[i * depth..][..depth];
                    tuple.iter().zip(&sizes).try_fold(Some(0), |block, (&index, &size)| {
                        let place = indices.place(index, size)?;
                        Ok(block.zip(place).map(|(block, place)| next(block, size, place)))
                    })
                }),
            })
        })?))
    }))
}

#[cfg(test)]
mod tests {
    use crate::ir::Opset;
    use crate::ops::testing::Case;

    fn ramp(count: usize) -> Vec<f32> {
        (0..count).map(|x| x as f32).collect()
    }

    const MATRIX: [f32; 6] = [1., 2., 3., 4., 5., 6.];

    /// Every op, and a shape of its indices.
    const KINDS: [(&str, &[usize]); 6] = [
        ("gather", &[1]),
        ("gather_along_axis", &[1]),
        ("gather_nd", &[1, 1]),
        ("scatter", &[1]),
        ("scatter_along_axis", &[1]),
        ("scatter_nd", &[1, 1]),
    ];

    /// The op at one index of `[1, 2, 3]`; a scatter adds 10.
    fn at(kind: &'static str, opset: Opset, shape: &[usize], index: i32) -> Case {
        let case = Case::in_opset(kind, opset).input_i32("indices", shape, &[index]);
        if kind.starts_with("gather") {
            case.input("x", &[3], &[1., 2., 3.])
        } else {
            case.input("data", &[3], &[1., 2., 3.]).input("updates", &[1], &[10.])
        }
    }

    #[test]
    fn gather_takes_slices_across_an_axis() {
        let case = |axis: i32| Case::new("gather").input("x", &[2, 3], &MATRIX).int("axis", axis);
        assert_eq!(
            case(0).input_i32("indices", &[3], &[1, 0, 1]).f32(),
            (vec![3, 3], vec![4., 5., 6., 1., 2., 3., 4., 5., 6.])
        );
        assert_eq!(case(-1).input_i32("indices", &[2], &[2, 0]).f32(), (vec![2, 2], vec![3., 1., 6., 4.]));
        assert_eq!(case(1).input_i32("indices", &[], &[1]).f32(), (vec![2], vec![2., 5.]));
        let grid = case(1).input_i32("indices", &[2, 2], &[0, 1, 2, 0]).f32();
        assert_eq!(grid, (vec![2, 2, 2], vec![1., 2., 3., 1., 4., 5., 6., 4.]));
        assert_eq!(case(0).input_i32("indices", &[0], &[]).f32(), (vec![0, 3], vec![]));
        let words =
            Case::new("gather").input_i32("x", &[4], &[10, 11, 12, 13]).input_i32("indices", &[], &[3]);
        assert_eq!(words.i32(), (vec![], vec![13]));
    }

    #[test]
    fn gather_shares_batch_dimensions() {
        // tf.gather(x, indices, axis=2, batch_dims=1) with x = arange(12).reshape(2, 2, 3), indices [[2, 0], [1, 1]]
        let case = |axis: i32| {
            Case::new("gather")
                .input("x", &[2, 2, 3], &ramp(12))
                .input_i32("indices", &[2, 2], &[2, 0, 1, 1])
                .int("axis", axis)
                .int("batch_dims", 1)
        };
        assert_eq!(case(2).f32(), (vec![2, 2, 2], vec![2., 0., 5., 3., 7., 7., 10., 10.]));
        let checked = case(1).bool("validate_indices", true);
        assert!(checked.error().contains("index 2 is out of bounds of a dimension of 2"));
        assert!(case(0).error().contains("1 batch dimensions"));
    }

    #[test]
    fn a_negative_index_counts_from_the_end_before_ios_17_only() {
        let case = |opset| {
            Case::in_opset("gather", opset).input("x", &[2, 3], &MATRIX).input_i32("indices", &[2], &[-1, -2])
        };
        assert_eq!(case(Opset::Ios16).f32().1, [4., 5., 6., 1., 2., 3.]);
        let checked = case(Opset::Ios17).bool("validate_indices", true);
        assert!(checked.error().contains("index -1 is out of bounds"));
        assert_eq!(case(Opset::Ios17).f32().1, [1., 2., 3., 1., 2., 3.]);
        assert!(case(Opset::Ios16).bool("validate_indices", true).error().contains("unknown parameter"));
        assert!(case(Opset::Ios15).int("batch_dims", 0).error().contains("unknown parameter"));
    }

    #[test]
    fn an_index_out_of_bounds_is_an_error_in_every_op_before_ios_17_and_where_indices_are_validated() {
        for index in [3, -4, i32::MAX, i32::MIN] {
            for (kind, shape) in KINDS {
                let (older, checked) =
                    (at(kind, Opset::Ios16, shape, index), at(kind, Opset::Ios17, shape, index));
                for case in [older, checked.bool("validate_indices", true)] {
                    assert_eq!(
                        case.error(),
                        format!("index {index} is out of bounds of a dimension of 3"),
                        "{kind}"
                    );
                }
            }
        }
        let floats = Case::new("gather").input("x", &[3], &[1., 2., 3.]).input("indices", &[1], &[f32::NAN]);
        assert!(floats.error().contains("expected integers"));
        let none = Case::new("gather").input("x", &[0], &[]).input_i32("indices", &[1], &[0]);
        assert_eq!(none.error(), "index 0 is out of bounds of a dimension of 0");
    }

    #[test]
    fn what_is_not_validated_is_read_nearby_and_not_written_since_ios_17() {
        for (index, nearest) in [(3, 3.), (i32::MAX, 3.), (-1, 1.), (i32::MIN, 1.)] {
            for (kind, shape) in KINDS {
                let expected: &[f32] = if kind.starts_with("gather") { &[nearest] } else { &[1., 2., 3.] };
                for opset in [Opset::Ios17, Opset::Ios18] {
                    assert_eq!(at(kind, opset, shape, index).f32().1, expected, "{kind} at {index}");
                    let said = at(kind, opset, shape, index).bool("validate_indices", false);
                    assert_eq!(said.f32().1, expected, "{kind} at {index}");
                }
            }
        }
    }

    #[test]
    fn an_update_out_of_bounds_leaves_the_others_alone() {
        let scatter = |kind| Case::new(kind).input("data", &[2, 3], &MATRIX);
        let rows = scatter("scatter").input_i32("indices", &[2], &[-1, 0]).input(
            "updates",
            &[2, 3],
            &[5., 6., 7., 8., 9., 10.],
        );
        assert_eq!(rows.f32().1, [9., 11., 13., 4., 5., 6.]);
        let columns = scatter("scatter_along_axis")
            .input_i32("indices", &[2, 2], &[3, 0, 1, -1])
            .input("updates", &[2, 2], &[10., 20., 30., 40.])
            .int("axis", 1);
        assert_eq!(columns.f32().1, [21., 2., 3., 4., 35., 6.]);
        // Not one of the tuple's numbers may be out of bounds; `[0, 3]` is not `[1, 0]`.
        let tuples = scatter("scatter_nd").input_i32("indices", &[3, 2], &[0, 3, -1, 1, 1, 2]).input(
            "updates",
            &[3],
            &[10., 20., 30.],
        );
        assert_eq!(tuples.f32().1, [1., 2., 3., 4., 5., 36.]);
        let tuples = Case::new("gather_nd").input("x", &[2, 3], &MATRIX);
        assert_eq!(tuples.input_i32("indices", &[2, 2], &[0, 3, 5, -1]).f32().1, [3., 4.]);
    }

    #[test]
    fn gather_along_axis_is_take_along_axis() {
        let case = |axis| {
            Case::in_opset("gather_along_axis", Opset::Ios15).input("x", &[2, 3], &MATRIX).int("axis", axis)
        };
        let rows = case(0).input_i32("indices", &[2, 3], &[1, 0, 1, 1, -1, 0]).f32();
        assert_eq!(rows, (vec![2, 3], vec![4., 2., 6., 4., 5., 3.]));
        let columns = case(1).input_i32("indices", &[2, 4], &[2, 2, 0, 1, 0, 0, 1, -1]).f32();
        assert_eq!(columns, (vec![2, 4], vec![3., 3., 1., 2., 4., 4., 5., 6.]));
        assert!(case(1).input_i32("indices", &[1, 1], &[0]).error().contains("along axis 1"));
        assert!(case(0).input_i32("indices", &[2], &[0, 0]).error().contains("along axis 0"));
    }

    #[test]
    fn gather_nd_takes_what_a_tuple_names() {
        let case = || Case::new("gather_nd").input("x", &[2, 3], &MATRIX);
        assert_eq!(case().input_i32("indices", &[2, 2], &[1, 2, 0, 1]).f32(), (vec![2], vec![6., 2.]));
        assert_eq!(case().input_i32("indices", &[1, 1, 1], &[1]).f32(), (vec![1, 1, 3], vec![4., 5., 6.]));
        assert_eq!(case().input_i32("indices", &[2], &[0, 2]).f32(), (vec![], vec![3.]));
        assert!(case().input_i32("indices", &[1, 3], &[0, 0, 0]).error().contains("cannot gather"));
        assert!(case().input_i32("indices", &[], &[0]).error().contains("cannot gather"));
        // tf.gather_nd(x, [[2], [0]], batch_dims=1)
        let batch = case().input_i32("indices", &[2, 1], &[2, 0]).int("batch_dims", 1);
        assert_eq!(batch.f32(), (vec![2], vec![3., 4.]));
        let many = case().input_i32("indices", &[2, 2, 1], &[2, 0, 1, 1]).int("batch_dims", 1);
        assert_eq!(many.f32(), (vec![2, 2], vec![3., 1., 5., 5.]));
        let too_many = case().input_i32("indices", &[2, 1], &[2, 0]).int("batch_dims", 2);
        assert!(too_many.error().contains("2 batch dimensions"));
    }

    #[test]
    fn scatter_changes_slices_in_every_mode() {
        let case = || {
            Case::new("scatter").input("data", &[2, 3], &MATRIX).input_i32("indices", &[2], &[1, 0]).input(
                "updates",
                &[2, 3],
                &[5., 6., 2., 8., 1., 10.],
            )
        };
        assert_eq!(case().f32(), (vec![2, 3], vec![9., 3., 13., 9., 11., 8.]));
        for (mode, expected) in [
            ("add", [9., 3., 13., 9., 11., 8.]),
            ("sub", [-7., 1., -7., -1., -1., 4.]),
            ("mul", [8., 2., 30., 20., 30., 12.]),
            ("div", [0.125, 2., 0.3, 0.8, 5. / 6., 3.]),
            ("max", [8., 2., 10., 5., 6., 6.]),
            ("min", [1., 1., 3., 4., 5., 2.]),
            ("update", [8., 1., 10., 5., 6., 2.]),
        ] {
            assert_eq!(case().string("mode", mode).f32().1, expected, "{mode}");
        }
        assert!(case().string("mode", "xor").error().contains("unknown mode `xor`"));
    }

    #[test]
    fn scatter_of_integers_wraps_and_refuses_to_divide_by_zero() {
        let case = |mode, update| {
            Case::new("scatter")
                .input_i32("data", &[1], &[i32::MIN])
                .input_i32("indices", &[1], &[0])
                .input_i32("updates", &[1], &[update])
                .string("mode", mode)
        };
        for (mode, update, expected) in [
            ("add", -1, i32::MAX),
            ("sub", 1, i32::MAX),
            ("mul", 2, 0),
            ("div", -1, i32::MIN),
            ("max", 3, 3),
            ("min", 3, i32::MIN),
            ("update", 3, 3),
        ] {
            assert_eq!(case(mode, update).i32().1, [expected], "{mode}");
        }
        assert_eq!(case("div", 0).error(), "an integer divided by 0");
    }

    #[test]
    fn scatter_works_along_inner_axes_with_repeated_indices_of_any_rank() {
        let case = Case::new("scatter")
            .input("data", &[2, 3], &[0.; 6])
            .input_i32("indices", &[2, 2], &[0, 2, 2, 2])
            .input("updates", &[2, 2, 2], &[1., 2., 3., 4., 5., 6., 7., 8.])
            .int("axis", 1);
        assert_eq!(case.f32().1, [1., 0., 9., 5., 0., 21.]);
        let last = Case::new("scatter")
            .input("data", &[2], &[0., 0.])
            .input_i32("indices", &[3], &[1, 1, 1])
            .input("updates", &[3], &[1., 2., 3.])
            .string("mode", "update");
        assert_eq!(last.f32().1, [0., 3.]);
        let wrong = Case::new("scatter")
            .input("data", &[2, 3], &[0.; 6])
            .input_i32("indices", &[1], &[0])
            .input("updates", &[3], &[0.; 3]);
        assert!(wrong.error().contains("updates of shape [3], expected [1, 3]"));
    }

    #[test]
    fn what_is_not_a_number_stays_in_max_and_min() {
        for mode in ["max", "min"] {
            let case = Case::new("scatter")
                .input("data", &[2], &[f32::NAN, 1.])
                .input_i32("indices", &[2], &[0, 1])
                .input("updates", &[2], &[1., f32::NAN])
                .string("mode", mode);
            assert!(case.f32().1.iter().all(|x| x.is_nan()), "{mode}");
        }
    }

    #[test]
    fn scatter_along_axis_is_put_along_axis() {
        let case = |axis| Case::new("scatter_along_axis").input("data", &[2, 3], &MATRIX).int("axis", axis);
        let rows = case(0)
            .input_i32("indices", &[2, 3], &[1, 0, 1, 1, 1, 0])
            .input("updates", &[2, 3], &[5., 6., 7., 8., 9., 10.])
            .string("mode", "update");
        assert_eq!(rows.f32(), (vec![2, 3], vec![1., 6., 10., 8., 9., 7.]));
        let columns = case(-1).input_i32("indices", &[2, 1], &[2, 0]).input("updates", &[2, 1], &[10., 20.]);
        assert_eq!(columns.f32().1, [1., 2., 13., 24., 5., 6.]);
        let wrong = case(0).input_i32("indices", &[2, 2], &[0; 4]).input("updates", &[2, 2], &[0.; 4]);
        assert!(wrong.error().contains("along axis 0"));
    }

    #[test]
    fn scatter_nd_changes_what_a_tuple_names() {
        let case = || Case::new("scatter_nd").input("data", &[2, 3], &MATRIX);
        let elements = case().input_i32("indices", &[2, 2], &[1, 0, 0, 2]).input("updates", &[2], &[5., 10.]);
        assert_eq!(elements.f32().1, [1., 2., 13., 9., 5., 6.]);
        let rows = case()
            .input_i32("indices", &[2, 1], &[1, 1])
            .input("updates", &[2, 3], &[1., 1., 1., 2., 2., 2.])
            .string("mode", "mul");
        assert_eq!(rows.f32().1, [1., 2., 3., 8., 10., 12.]);
        let nothing = case().input_i32("indices", &[0, 2], &[]).input("updates", &[0], &[]);
        assert_eq!(nothing.f32().1, MATRIX);
        let deep = case().input_i32("indices", &[1, 3], &[0; 3]).input("updates", &[1], &[0.]);
        assert!(deep.error().contains("into data of shape [2, 3]"));
        let mixed = case().input_i32("indices", &[1, 2], &[0; 2]).input_i32("updates", &[1], &[0]);
        assert!(mixed.error().contains("`updates`"));
    }
}
