//! `slicing` ops: read or replace a block of a tensor.
//!
//! Semantics: coremltools, `slice_by_index` and `slice_by_size` of `mil/ops/defs/iOS15/tensor_transformation.py`,
//! `slice_update` of `iOS18/tensor_transformation.py`; a block is `solve_slice_by_index_slice` of `_utils.py`, which is a
//! NumPy slice with masks.

use rten::PoolRef;
use rten_tensor::prelude::*;
use rten_tensor::{Tensor, TensorView};
use smallvec::SmallVec;

use super::strided::{Element, Walk, dense_mut, dense_strides, for_each_type, moved, take_dense};
use super::{Ints, Kernel, OpBuilder, OpDef, Run, parameter};
use crate::error::{KernelError, OpError};
use crate::ir::Opset::{Ios13, Ios17, Ios18};
use crate::value::{Value, one};

pub(crate) const OPS: &[OpDef] = &[
    OpDef::new("slice_by_index", &[Ios13, Ios17], slice_by_index),
    OpDef::new("slice_by_size", &[Ios13, Ios17], slice_by_size),
    OpDef::new("slice_update", &[Ios18], slice_update),
];

/// The parameters that name a block: `begin`, `end`, `stride` and the masks.
struct Slice {
    begin: Ints,
    end: Ints,
    stride: Option<Vec<i32>>,
    begin_mask: Vec<bool>,
    end_mask: Vec<bool>,
    squeeze_mask: Vec<bool>,
}

/// A block of a tensor, dimension by dimension.
struct Block {
    dims: SmallVec<[BlockDim; 8]>,
    /// Shape of the block, without the dimensions that are squeezed.
    shape: Vec<usize>,
}

/// `count` places from `start`, `step` apart; all of them exist.
#[derive(Clone, Copy, Debug, PartialEq)]
struct BlockDim {
    start: usize,
    count: usize,
    step: isize,
}

impl Block {
    /// How to visit the block in memory with these strides.
    fn walk(&self, strides: &[isize]) -> Walk {
        let mut offset = 0_isize;
        let dims: SmallVec<[(usize, isize); 8]> = self
            .dims
            .iter()
            .zip(strides)
            .map(|(dim, &stride)| {
                let start = isize::try_from(dim.start).unwrap_or(isize::MAX);
                offset = offset.saturating_add(start.saturating_mul(stride));
                (dim.count, dim.step.saturating_mul(stride))
            })
            .collect();
        Walk::new(offset, dims)
    }
}

/// `range(size)[begin:end:step]` as Python means it; `None` is an absent bound.
fn python_range(
    size: usize,
    begin: Option<i32>,
    end: Option<i32>,
    step: i32,
) -> Result<BlockDim, KernelError> {
    let length = i64::try_from(size).map_err(|_| KernelError::shape("a dimension too large to slice"))?;
    let step = i64::from(step);
    let (low, high) = if step < 0 { (-1, length - 1) } else { (0, length) };
    let clamp = |index: i32| {
        let index = i64::from(index);
        (if index < 0 { index + length } else { index }).clamp(low, high)
    };
    let (first, last) = if step < 0 { (high, low) } else { (low, high) };
    let (begin, end) = (begin.map_or(first, clamp), end.map_or(last, clamp));
    let count = match step {
        0 => return Err(KernelError::value("a stride of 0")),
        1.. if begin < end => (end - begin - 1) / step + 1,
        ..0 if begin > end => (begin - end - 1) / -step + 1,
        _ => 0,
    };
    let as_size = |x: i64| usize::try_from(x).unwrap_or(0);
    Ok(BlockDim { start: as_size(begin), count: as_size(count), step: isize::try_from(step).unwrap_or(1) })
}

impl Slice {
    fn new(op: &mut OpBuilder<'_>, rank: Option<usize>) -> Result<Self, OpError> {
        let slice = Self {
            begin: op.ints_or_input("begin")?,
            end: op.ints_or_input("end")?,
            stride: op.ints_opt("stride")?,
            begin_mask: op.bools_opt("begin_mask")?.unwrap_or_default(),
            end_mask: op.bools_opt("end_mask")?.unwrap_or_default(),
            squeeze_mask: op.bools_opt("squeeze_mask")?.unwrap_or_default(),
        };
        let length = |ints: &Ints| match ints {
            Ints::Const(values) => Some(values.len()),
            Ints::Input(_) => None,
        };
        let mask = |mask: &[bool]| Some(mask.len()).filter(|&length| length > 0);
        let lengths = [
            ("begin", length(&slice.begin)),
            ("end", length(&slice.end)),
            ("stride", slice.stride.as_ref().map(Vec::len)),
            ("begin_mask", mask(&slice.begin_mask)),
            ("end_mask", mask(&slice.end_mask)),
            ("squeeze_mask", mask(&slice.squeeze_mask)),
        ];
        for (name, length) in lengths {
            if let (Some(length), Some(rank)) = (length, rank)
                && length != rank
            {
                return Err(parameter(name, format!("{length} values for a tensor of rank {rank}")));
            }
        }
        if slice.stride.as_ref().is_some_and(|stride| stride.contains(&0)) {
            return Err(parameter("stride", "a stride of 0"));
        }
        Ok(slice)
    }

    /// The block of a tensor of `shape`.
    fn block(&self, run: &Run<'_, '_>, shape: &[usize]) -> Result<Block, KernelError> {
        let (begin, end) = (run.ints(&self.begin)?, run.ints(&self.end)?);
        let stride = self.stride.as_deref();
        let rank = shape.len();
        if begin.len() != rank || end.len() != rank || stride.is_some_and(|stride| stride.len() != rank) {
            return Err(KernelError::shape(format!(
                "begin {begin:?} and end {end:?} for a tensor of shape {shape:?}"
            )));
        }
        let is_set = |mask: &[bool], i: usize| mask.get(i).copied().unwrap_or(false);
        let mut block = Block { dims: SmallVec::new(), shape: Vec::with_capacity(rank) };
        for (i, ((&size, &begin), &end)) in shape.iter().zip(&begin).zip(&end).enumerate() {
            let first = (!is_set(&self.begin_mask, i)).then_some(begin);
            if is_set(&self.squeeze_mask, i) {
                block.dims.push(single(size, first.unwrap_or(0))?);
                continue;
            }
            let last = (!is_set(&self.end_mask, i)).then_some(end);
            let step = stride.and_then(|stride| stride.get(i)).copied().unwrap_or(1);
            let dim = python_range(size, first, last, step)?;
            block.shape.push(dim.count);
            block.dims.push(dim);
        }
        Ok(block)
    }
}

/// The one element at `index`, which may count from the end.
fn single(size: usize, index: i32) -> Result<BlockDim, KernelError> {
    let length = i64::try_from(size).unwrap_or(i64::MAX);
    let from_start = i64::from(index) + if index < 0 { length } else { 0 };
    match usize::try_from(from_start) {
        Ok(start) if start < size => Ok(BlockDim { start, count: 1, step: 1 }),
        _ => Err(KernelError::value(format!("index {index} of a dimension of {size}"))),
    }
}

fn slice_by_index(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let x = op.input("x")?;
    let slice = Slice::new(op, x.rank())?;
    Ok(Box::new(move |run| {
        let view = run.any(x.slot)?;
        let block = slice.block(run, view.shape())?;
        Ok(one(for_each_type!(view, view => {
            moved(run, &view, &block.shape, |strides| block.walk(strides))?
        })))
    }))
}

/// `size` elements from `begin` on, or all the rest where `size` is -1.
fn slice_by_size(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let x = op.input("x")?;
    let begin = op.ints_or_input("begin")?;
    let size = op.ints_or_input("size")?;
    for (name, ints) in [("begin", &begin), ("size", &size)] {
        if let (Ints::Const(values), Some(rank)) = (ints, x.rank())
            && values.len() != rank
        {
            return Err(parameter(name, format!("{} values for a tensor of rank {rank}", values.len())));
        }
    }
    Ok(Box::new(move |run| {
        let (begin, size) = (run.ints(&begin)?, run.ints(&size)?);
        let view = run.any(x.slot)?;
        let shape = view.shape();
        if [begin.len(), size.len()] != [shape.len(); 2] {
            return Err(KernelError::shape(format!("begin {begin:?} and size {size:?} for shape {shape:?}")));
        }
        let mut block = Block { dims: SmallVec::new(), shape: Vec::with_capacity(shape.len()) };
        for ((&length, &begin), &size) in shape.iter().zip(&begin).zip(&size) {
            let dim = sized(length, begin, size).ok_or_else(|| {
                KernelError::value(format!("{size} elements from {begin} of a dimension of {length}"))
            })?;
            block.shape.push(dim.count);
            block.dims.push(dim);
        }
        Ok(one(for_each_type!(view, view => {
            moved(run, &view, &block.shape, |strides| block.walk(strides))?
        })))
    }))
}

fn sized(length: usize, begin: i32, size: i32) -> Option<BlockDim> {
    let signed = i64::try_from(length).ok()?;
    let start = usize::try_from(i64::from(begin) + if begin < 0 { signed } else { 0 }).ok()?;
    let rest = length.checked_sub(start)?;
    let count = if size == -1 { rest } else { usize::try_from(size).ok()? };
    (count <= rest).then_some(BlockDim { start, count, step: 1 })
}

/// Replaces a block by `update`; in place where this is the last use of `x`.
fn slice_update(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let x = op.input("x")?;
    let update = op.input("update")?;
    let slice = Slice::new(op, x.rank())?;
    if x.ty.dtype != update.ty.dtype {
        return Err(OpError::Invalid(format!(
            "an update of {} in a tensor of {}",
            update.ty.dtype, x.ty.dtype
        )));
    }
    Ok(Box::new(move |run| {
        let block = slice.block(run, run.any(x.slot)?.shape())?;
        let found = run.any(update.slot)?;
        if found.shape() != block.shape {
            return Err(KernelError::shape(format!(
                "an update of shape {:?} for a block of shape {:?}",
                found.shape(),
                block.shape
            )));
        }
        Ok(one(match take_dense(run, x.slot)? {
            Value::F32(tensor) => Value::F32(replaced(run, tensor, &block, run.f32(update.slot)?)?),
            Value::I32(tensor) => Value::I32(replaced(run, tensor, &block, run.i32(update.slot)?)?),
        }))
    }))
}

fn replaced<T: Element>(
    run: &Run<'_, '_>,
    mut tensor: Tensor<T>,
    block: &Block,
    update: TensorView<'_, T>,
) -> Result<Tensor<T>, KernelError> {
    let walk = block.walk(&dense_strides(tensor.shape()));
    let update = PoolRef::new(run.pool(), update.to_contiguous_in(run.pool()));
    walk.write(dense_mut(&mut tensor)?, update.data())?;
    Ok(tensor)
}

#[cfg(test)]
mod tests {
    use super::{BlockDim, python_range};
    use crate::ir::Opset;
    use crate::ops::testing::Case;

    fn ramp(count: usize) -> Vec<f32> {
        (0..count).map(|x| x as f32).collect()
    }

    /// x = np.arange(24).reshape(2, 3, 4)
    fn x() -> Case {
        Case::new("slice_by_index").input("x", &[2, 3, 4], &ramp(24))
    }

    #[test]
    fn a_range_is_that_of_python() {
        let list: Vec<i64> = (0..5).collect();
        let bounds: Vec<Option<i32>> =
            (-7..8).map(Some).chain([None, Some(i32::MIN), Some(i32::MAX)]).collect();
        for &begin in &bounds {
            for &end in &bounds {
                for step in [1, 2, 3, 7, i32::MAX, -1, -2, -3, -7, i32::MIN] {
                    let dim = python_range(5, begin, end, step).unwrap();
                    let found: Vec<i64> =
                        (0..dim.count).map(|i| dim.start as i64 + i as i64 * dim.step as i64).collect();
                    // By the definition in Python's documentation of slices.
                    let bound = |x: i32| if x < 0 { i64::from(x) + 5 } else { i64::from(x) };
                    let expected: Vec<i64> = if step > 0 {
                        let (begin, end) = (begin.map_or(0, bound).max(0), end.map_or(5, bound).min(5));
                        list.iter()
                            .copied()
                            .filter(|&i| i >= begin && i < end && (i - begin) % i64::from(step) == 0)
                            .collect()
                    } else {
                        let (begin, end) = (begin.map_or(4, bound).min(4), end.map_or(-1, bound).max(-1));
                        list.iter()
                            .rev()
                            .copied()
                            .filter(|&i| i <= begin && i > end && (begin - i) % -i64::from(step) == 0)
                            .collect()
                    };
                    assert_eq!(found, expected, "[{begin:?}:{end:?}:{step}]");
                }
            }
        }
        assert_eq!(python_range(0, None, None, -1).unwrap().count, 0);
        assert!(python_range(5, None, None, 0).is_err());
        assert_eq!(python_range(5, None, None, 1).unwrap(), BlockDim { start: 0, count: 5, step: 1 });
    }

    #[test]
    fn slice_by_index_is_a_numpy_slice() {
        // x[1:2, 1:3, 1:3]
        let inner = x().ints("begin", &[1, 1, 1]).ints("end", &[2, 3, 3]);
        assert_eq!(inner.f32(), (vec![1, 2, 2], vec![17., 18., 21., 22.]));
        // x[-1:0:-2, -1:1:-1, -1:-3:-3]
        let back = x().ints("begin", &[-1, -1, -1]).ints("end", &[0, 1, -3]).ints("stride", &[-2, -1, -3]);
        assert_eq!(back.f32(), (vec![1, 1, 1], vec![23.]));
        // x[0:2147483647, 0:-2, -3:-2]
        let clamped = x().ints("begin", &[0, 0, -3]).ints("end", &[i32::MAX, -2, -2]);
        assert_eq!(clamped.f32(), (vec![2, 1, 1], vec![1., 13.]));
        // x[1:1]
        let empty = x().ints("begin", &[1, 0, 0]).ints("end", &[1, 3, 4]);
        assert_eq!(empty.f32(), (vec![0, 3, 4], vec![]));
    }

    #[test]
    fn masks_drop_a_bound_or_a_dimension() {
        // x[1::1, 1, :3:2]
        let case = x()
            .ints("begin", &[1, 1, 1])
            .ints("end", &[2, 3, 3])
            .ints("stride", &[1, 1, 2])
            .bools("begin_mask", &[false, false, true])
            .bools("end_mask", &[true, false, false])
            .bools("squeeze_mask", &[false, true, false]);
        assert_eq!(case.f32(), (vec![1, 2], vec![16., 18.]));
        // x[..., ::-1]
        let case = x()
            .ints("begin", &[0, 0, 0])
            .ints("end", &[0, 0, 0])
            .ints("stride", &[1, 1, -1])
            .bools("begin_mask", &[true; 3])
            .bools("end_mask", &[true; 3]);
        let (shape, found) = case.f32();
        assert_eq!((&shape[..], &found[..6]), (&[2, 3, 4][..], &[3., 2., 1., 0., 7., 6.][..]));
        // x[-1, 0, 2]
        let case = x().ints("begin", &[-1, 0, 2]).ints("end", &[0, 0, 0]).bools("squeeze_mask", &[true; 3]);
        assert_eq!(case.f32(), (vec![], vec![14.]));
        let outside = x().ints("begin", &[2, 0, 0]).ints("end", &[0, 0, 0]).bools("squeeze_mask", &[true; 3]);
        assert_eq!(outside.error(), "index 2 of a dimension of 2");
    }

    #[test]
    fn slice_by_index_takes_computed_bounds_and_integers() {
        let case = Case::new("slice_by_index")
            .input_i32("x", &[5], &[10, 11, 12, 13, 14])
            .input_i32("begin", &[1], &[-4])
            .input_i32("end", &[1], &[-1])
            .ints("stride", &[2]);
        assert_eq!(case.i32(), (vec![2], vec![11, 13]));
    }

    #[test]
    fn slice_by_index_refuses_what_numpy_refuses() {
        assert!(x().ints("begin", &[0, 0]).ints("end", &[1, 1, 1]).error().contains("rank 3"));
        let zero = x().ints("begin", &[0; 3]).ints("end", &[1; 3]).ints("stride", &[1, 0, 1]);
        assert!(zero.error().contains("stride of 0"));
        let short = x().input_i32("begin", &[2], &[0, 0]).ints("end", &[1, 1, 1]);
        assert!(short.error().contains("shape [2, 3, 4]"));
    }

    #[test]
    fn slice_by_size_counts_from_begin() {
        let case = |begin: &[i32], size: &[i32]| {
            Case::new("slice_by_size")
                .input("x", &[2, 3, 4], &ramp(24))
                .ints("begin", begin)
                .ints("size", size)
        };
        assert_eq!(case(&[1, 0, 1], &[-1, 2, 2]).f32(), (vec![1, 2, 2], vec![13., 14., 17., 18.]));
        assert_eq!(case(&[-1, -1, 0], &[1, 1, 4]).f32(), (vec![1, 1, 4], vec![20., 21., 22., 23.]));
        assert_eq!(case(&[2, 0, 0], &[-1, 1, 1]).f32().0, [0, 1, 1]);
        assert!(case(&[1, 0, 0], &[2, 1, 1]).error().contains("2 elements from 1 of a dimension of 2"));
        assert!(case(&[-3, 0, 0], &[1, 1, 1]).error().contains("from -3"));
        assert!(case(&[0, 0, 0], &[-2, 1, 1]).error().contains("-2 elements"));
        let computed = Case::new("slice_by_size")
            .input_i32("x", &[4], &[1, 2, 3, 4])
            .input_i32("begin", &[1], &[1])
            .input_i32("size", &[1], &[2]);
        assert_eq!(computed.i32(), (vec![2], vec![2, 3]));
    }

    #[test]
    fn slice_update_replaces_a_block() {
        let x = || Case::in_opset("slice_update", Opset::Ios18).input("x", &[2, 3], &ramp(6));
        let case =
            x().input("update", &[2, 2], &[10., 11., 12., 13.]).ints("begin", &[0, -1]).ints("end", &[2, 0]);
        assert_eq!(case.ints("stride", &[1, -1]).f32(), (vec![2, 3], vec![0., 11., 10., 3., 13., 12.]));
        let row = x()
            .input("update", &[3], &[7., 8., 9.])
            .ints("begin", &[1, 0])
            .ints("end", &[0, 0])
            .bools("end_mask", &[false, true])
            .bools("squeeze_mask", &[true, false]);
        assert_eq!(row.f32().1, [0., 1., 2., 7., 8., 9.]);
        let wrong = x().input("update", &[3, 1], &[0.; 3]).ints("begin", &[0, 0]).ints("end", &[1, 3]);
        assert!(wrong.error().contains("an update of shape [3, 1] for a block of shape [1, 3]"));
        let mixed = x().input_i32("update", &[1, 3], &[0; 3]).ints("begin", &[0, 0]).ints("end", &[1, 3]);
        assert!(mixed.error().contains("an update of int32"));
        let old = Case::new("slice_update").input("x", &[1], &[0.]).input("update", &[1], &[0.]);
        assert_eq!(old.ints("begin", &[0]).ints("end", &[1]).error(), "unknown op in opset iOS17");
    }
}
