//! Walks a tensor's memory by strides: the one kernel behind every op that only moves elements.
//!
//! A transpose, a slice with any step, a reversal, a tile, a window and a broadcast are all the same: read a block of
//! memory at an offset, in an order that is given by a size and a (maybe negative, maybe zero) stride per dimension.

use rten::PoolRef;
use rten_tensor::prelude::*;
use rten_tensor::{Tensor, TensorView};
use smallvec::SmallVec;

use super::Run;
use crate::error::KernelError;
use crate::value::Value;

/// One of the two types that values have at run time.
pub(crate) trait Element: Copy + Default + PartialEq + Send + Sync + 'static {
    /// The tensor as a [`Value`].
    fn value(tensor: Tensor<Self>) -> Value;
}

impl Element for f32 {
    fn value(tensor: Tensor<Self>) -> Value {
        Value::F32(tensor)
    }
}

impl Element for i32 {
    fn value(tensor: Tensor<Self>) -> Value {
        Value::I32(tensor)
    }
}

/// Evaluates `$body`, which makes a tensor of the type of the view `$view`, as a [`Value`].
macro_rules! for_each_type {
    ($value:expr, $view:ident => $body:expr) => {
        match $value {
            $crate::value::ValueView::F32($view) => $crate::value::Value::F32($body),
            $crate::value::ValueView::I32($view) => $crate::value::Value::I32($body),
        }
    };
}

pub(crate) use for_each_type;

/// Number of elements of a block of these sizes. For sizes of a tensor that exists, or that [`Run::check_size`] allowed.
pub(crate) fn span(sizes: &[usize]) -> usize {
    sizes.iter().fold(1, |n: usize, &size| n.saturating_mul(size))
}

/// Strides of a dense tensor. For shapes of a tensor that exists, or that [`Run::check_size`] allowed.
pub(crate) fn dense_strides(shape: &[usize]) -> Strides {
    let mut strides: Strides = shape.iter().map(|_| 0).collect();
    let mut stride = 1_isize;
    for (place, &size) in strides.iter_mut().zip(shape).rev() {
        *place = stride;
        stride = stride.saturating_mul(isize::try_from(size).unwrap_or(isize::MAX));
    }
    strides
}

/// Distance in memory between neighbours, per dimension.
pub(crate) type Strides = SmallVec<[isize; 8]>;

/// Below this, a run of neighbours is too short to be copied by a call of its own.
const SHORT_RUN: usize = 16;

/// An order to visit memory in: row-major over `dims`, each with its size and stride.
#[derive(Clone, Debug)]
pub(crate) struct Walk {
    offset: isize,
    dims: SmallVec<[(usize, isize); 8]>,
}

impl Walk {
    /// Starts at `offset`. Dimensions that lie together in memory are merged.
    pub(crate) fn new(offset: isize, dims: impl IntoIterator<Item = (usize, isize)>) -> Self {
        let mut merged: SmallVec<[(usize, isize); 8]> = SmallVec::new();
        for (size, stride) in dims {
            if size == 1 {
                continue;
            }
            if let Some((outer, outer_stride)) = merged.last_mut()
                && let (Ok(inner), Some(both)) = (isize::try_from(size), outer.checked_mul(size))
                && stride.checked_mul(inner) == Some(*outer_stride)
            {
                (*outer, *outer_stride) = (both, stride);
                continue;
            }
            merged.push((size, stride));
        }
        Self { offset, dims: merged }
    }

    /// Number of elements visited.
    pub(crate) fn count(&self) -> usize {
        self.dims.iter().fold(1, |n: usize, &(size, _)| n.saturating_mul(size))
    }

    /// An error unless every visited place is in `0..len`. After this no index fails.
    fn check(&self, len: usize) -> Result<(), KernelError> {
        let reach = || {
            let (mut low, mut high) = (self.offset, self.offset);
            for &(size, stride) in &self.dims {
                let reach = isize::try_from(size.checked_sub(1)?).ok()?.checked_mul(stride)?;
                low = low.checked_add(reach.min(0))?;
                high = high.checked_add(reach.max(0))?;
            }
            (low >= 0 && usize::try_from(high).ok()? < len).then_some(())
        };
        reach().ok_or_else(|| KernelError::shape("a block reaches outside its tensor"))
    }

    /// Appends the visited elements to `out`.
    pub(crate) fn read<T: Element>(&self, memory: &[T], out: &mut Vec<T>) -> Result<(), KernelError> {
        let count = self.count();
        if count == 0 {
            return Ok(());
        }
        self.check(memory.len())?;
        match self.dims[..] {
            [.., _, (inner, _)] if inner < SHORT_RUN => {
                let start = out.len();
                out.resize(start + count, T::default());
                read_short(memory, self.offset, &self.dims, &mut out[start..]);
            }
            _ => read_long(memory, self.offset, &self.dims, out),
        }
        Ok(())
    }

    /// Writes `values`, in order, to the visited places.
    pub(crate) fn write<T: Element>(&self, memory: &mut [T], values: &[T]) -> Result<(), KernelError> {
        if self.count() != values.len() {
            return Err(KernelError::shape(format!(
                "{} elements for a block of {}",
                values.len(),
                self.count()
            )));
        }
        if values.is_empty() {
            return Ok(());
        }
        self.check(memory.len())?;
        write(memory, self.offset, &self.dims, values);
        Ok(())
    }
}

/// Place of element `i` of a run; [`Walk::check`] has shown that it exists.
fn place(at: isize, i: usize, stride: isize) -> usize {
    (at + i as isize * stride) as usize
}

fn read_long<T: Element>(memory: &[T], at: isize, dims: &[(usize, isize)], out: &mut Vec<T>) {
    match *dims {
        [] => out.push(memory[at as usize]),
        [(size, 1)] => out.extend_from_slice(&memory[at as usize..at as usize + size]),
        [(size, 0)] => out.extend(std::iter::repeat_n(memory[at as usize], size)),
        [(size, stride)] => out.extend((0..size).map(|i| memory[place(at, i, stride)])),
        [(size, stride), ref inner @ ..] => {
            for i in 0..size {
                read_long(memory, at + i as isize * stride, inner, out);
            }
        }
    }
}

/// As [`read_long`], for an innermost dimension so short that the one around it makes the better loop.
fn read_short<T: Element>(memory: &[T], at: isize, dims: &[(usize, isize)], out: &mut [T]) {
    match *dims {
        [(outer, outer_stride), (inner, inner_stride)] => {
            for j in 0..inner {
                let at = at + j as isize * inner_stride;
                let places = out[j..].iter_mut().step_by(inner);
                if outer_stride == 1 {
                    let run = &memory[at as usize..at as usize + outer];
                    places.zip(run).for_each(|(place, &x)| *place = x);
                } else {
                    places.enumerate().for_each(|(i, x)| *x = memory[place(at, i, outer_stride)]);
                }
            }
        }
        [(size, stride), ref inner @ ..] => {
            let block = out.len() / size;
            for (i, out) in out.chunks_exact_mut(block).enumerate() {
                read_short(memory, at + i as isize * stride, inner, out);
            }
        }
        [] => {}
    }
}

fn write<T: Element>(memory: &mut [T], at: isize, dims: &[(usize, isize)], values: &[T]) {
    match *dims {
        [] => memory[at as usize] = values[0],
        [(size, 1)] => memory[at as usize..at as usize + size].copy_from_slice(values),
        [(_, stride)] => {
            values.iter().enumerate().for_each(|(i, &x)| memory[place(at, i, stride)] = x);
        }
        [(size, stride), ref inner @ ..] => {
            for (i, values) in values.chunks_exact(values.len() / size).enumerate() {
                write(memory, at + i as isize * stride, inner, values);
            }
        }
    }
}

/// Gives `f` the memory of `view` and its strides. Copies first only if the view is neither dense nor a permutation of
/// something dense.
pub(crate) fn with_memory<T: Element, R>(
    run: &Run<'_, '_>,
    view: &TensorView<'_, T>,
    f: impl FnOnce(&[T], &[isize]) -> R,
) -> R {
    let mut order: SmallVec<[usize; 8]> = (0..view.ndim()).collect();
    order.sort_by_key(|&dim| std::cmp::Reverse(view.stride(dim)));
    if !view.is_empty()
        && let Some(data) = view.permuted(&order).data()
    {
        // A slice holds less than `isize::MAX` bytes; only a dimension of size 1 can have a larger stride.
        let strides: Strides =
            view.strides().iter().map(|&stride| isize::try_from(stride).unwrap_or(0)).collect();
        return f(data, &strides);
    }
    let dense = PoolRef::new(run.pool(), view.to_contiguous_in(run.pool()));
    f(dense.data(), &dense_strides(view.shape()))
}

/// A tensor of `shape` that holds what `walk` visits in the memory of `view`. `walk` is made from the strides.
pub(crate) fn moved<T: Element>(
    run: &Run<'_, '_>,
    view: &TensorView<'_, T>,
    shape: &[usize],
    walk: impl FnOnce(&[isize]) -> Walk,
) -> Result<Tensor<T>, KernelError> {
    let mut data = run.buffer(shape)?;
    with_memory(run, view, |memory, strides| walk(strides).read(memory, &mut data))?;
    Tensor::try_from_data(shape, data).map_err(KernelError::library)
}

/// Input `slot` as an owned dense value: the value itself where this is its last use and it is dense, else a copy.
pub(crate) fn take_dense(run: &mut Run<'_, '_>, slot: usize) -> Result<Value, KernelError> {
    let value = run.take(slot)?;
    let dense = match &value {
        Value::F32(tensor) => tensor.is_contiguous(),
        Value::I32(tensor) => tensor.is_contiguous(),
    };
    if dense {
        return Ok(value);
    }
    let copy = value.view().to_owned_in(run.pool());
    run.recycle(value);
    Ok(copy)
}

/// A dense tensor with another shape of as many elements; nothing moves.
fn with_shape<T: Element>(tensor: Tensor<T>, shape: &[usize]) -> Result<Tensor<T>, KernelError> {
    Tensor::try_from_data(shape, tensor.into_data())
        .map_err(|_| KernelError::shape(format!("the elements do not fill the shape {shape:?}")))
}

/// Input `slot` with another shape of as many elements. Nothing moves where this is its last use and it is dense.
pub(crate) fn take_reshaped(
    run: &mut Run<'_, '_>,
    slot: usize,
    shape: &[usize],
) -> Result<Value, KernelError> {
    run.check_size(shape)?;
    Ok(match take_dense(run, slot)? {
        Value::F32(tensor) => Value::F32(with_shape(tensor, shape)?),
        Value::I32(tensor) => Value::I32(with_shape(tensor, shape)?),
    })
}

/// The elements of a dense tensor, to be changed in place.
pub(crate) fn dense_mut<T: Element>(tensor: &mut Tensor<T>) -> Result<&mut [T], KernelError> {
    tensor.data_mut().ok_or_else(|| KernelError::shape("a dense tensor is not dense"))
}

/// The one element of a tensor of rank 0, or of one element.
pub(crate) fn scalar<T: Element>(view: &TensorView<'_, T>) -> Result<T, KernelError> {
    match view.len() {
        1 => view.iter().next().copied(),
        _ => None,
    }
    .ok_or_else(|| KernelError::shape(format!("expected a scalar, found shape {:?}", view.shape())))
}

/// The shape that tensors of these shapes broadcast to, as NumPy does it.
pub(crate) fn broadcast_shape(shapes: &[&[usize]]) -> Result<Vec<usize>, KernelError> {
    let rank = shapes.iter().map(|shape| shape.len()).max().unwrap_or(0);
    let mut result = vec![1; rank];
    for shape in shapes {
        for (place, &size) in result.iter_mut().rev().zip(shape.iter().rev()) {
            match (*place, size) {
                (a, b) if a == b => {}
                (1, b) => *place = b,
                (_, 1) => {}
                _ => return Err(KernelError::shape(format!("shapes {shapes:?} do not broadcast"))),
            }
        }
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(walk: &Walk) -> Vec<i32> {
        let memory: Vec<i32> = (0..24).collect();
        let mut out = Vec::new();
        walk.read(&memory, &mut out).unwrap();
        out
    }

    #[test]
    fn dimensions_that_lie_together_are_walked_as_one() {
        let walk = Walk::new(0, [(2, 12), (1, 99), (3, 4), (4, 1)]);
        assert_eq!(walk.dims[..], [(24, 1)]);
        let backwards = Walk::new(23, [(2, -12), (12, -1)]);
        assert_eq!(backwards.dims[..], [(24, -1)]);
        assert_eq!(read(&backwards), (0..24).rev().collect::<Vec<_>>());
    }

    #[test]
    fn every_order_of_three_dimensions_reads_what_indexing_reads() {
        let dims = [(2_usize, 12_isize), (3, 4), (4, 1)];
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let [a, b, c] = order.map(|i| dims[i]);
            let mut expected = Vec::new();
            for i in 0..a.0 {
                for j in 0..b.0 {
                    for k in 0..c.0 {
                        expected.push(i as i32 * a.1 as i32 + j as i32 * b.1 as i32 + k as i32 * c.1 as i32);
                    }
                }
            }
            let walk = Walk::new(0, [a, b, c]);
            assert_eq!(read(&walk), expected, "{order:?}");
            let mut memory = vec![0; 24];
            walk.write(&mut memory, &expected).unwrap();
            assert_eq!(memory, (0..24).collect::<Vec<_>>(), "{order:?}");
        }
    }

    #[test]
    fn a_long_inner_run_may_be_backwards_or_one_element() {
        let memory: Vec<i32> = (0..64).collect();
        let mut out = Vec::new();
        Walk::new(31, [(2, 32), (32, -1)]).read(&memory, &mut out).unwrap();
        assert_eq!(out, (0..32).rev().chain((32..64).rev()).collect::<Vec<_>>());
        out.clear();
        Walk::new(5, [(2, 7), (20, 0)]).read(&memory, &mut out).unwrap();
        assert_eq!(out, [[5; 20], [12; 20]].concat());
    }

    #[test]
    fn a_walk_that_leaves_the_memory_is_an_error() {
        let memory = [0_i32; 4];
        let mut out = Vec::new();
        for walk in [
            Walk::new(0, [(5, 1)]),
            Walk::new(-1, [(2, 1)]),
            Walk::new(1, [(3, -1)]),
            Walk::new(4, []),
            Walk::new(0, [(3, isize::MAX)]),
            Walk::new(isize::MAX, [(2, 1)]),
        ] {
            assert!(walk.read(&memory, &mut out).is_err(), "{walk:?}");
            let values = vec![0; walk.count()];
            assert!(walk.write(&mut memory.clone(), &values).is_err(), "{walk:?}");
        }
        assert!(out.is_empty());
        Walk::new(-7, [(0, 1), (9, 9)]).read(&memory, &mut out).unwrap();
        assert!(out.is_empty(), "a block without elements touches nothing");
    }

    #[test]
    fn shapes_broadcast_as_in_numpy() {
        assert_eq!(broadcast_shape(&[&[2, 1, 4], &[3, 1], &[]]).unwrap(), [2, 3, 4]);
        assert_eq!(broadcast_shape(&[&[0], &[1]]).unwrap(), [0]);
        assert!(broadcast_shape(&[&[2], &[3]]).is_err());
    }
}
