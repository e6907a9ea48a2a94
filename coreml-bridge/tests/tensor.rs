//! Tensors against `ndarray`, which computes strides on its own, on random shapes and views.
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

use coreml_bridge::{Dtype, Element, Tensor, TensorError, f16};
use ndarray::{ArrayD, ArrayViewD, Axis, IxDyn, Slice};
use proptest::prelude::*;

/// A view that a tensor and an array are both turned into.
#[derive(Clone, Debug)]
enum Turn {
    /// The dimensions in another order, which is made from these numbers.
    Permute(Vec<usize>),
    /// A part along an axis; numbers are taken modulo what there is.
    Narrow { axis: usize, start: usize, length: usize },
}

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let permute = prop::collection::vec(0_usize..8, 4).prop_map(Turn::Permute);
    let narrow = (0_usize..8, 0_usize..8, 0_usize..8).prop_map(|(axis, start, length)| Turn::Narrow {
        axis,
        start,
        length,
    });
    prop::collection::vec(prop_oneof![permute, narrow], 0..4)
}

fn shapes() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(0_usize..6, 0..5)
}

/// A permutation of the axes: sorted by the keys.
fn axes(rank: usize, keys: &[usize]) -> Vec<usize> {
    let mut axes: Vec<usize> = (0..rank).collect();
    axes.sort_by_key(|&axis| (keys[axis % keys.len()], axis));
    axes
}

fn turn<'a, T>(tensor: &Tensor, array: ArrayViewD<'a, T>, turn: &Turn) -> (Tensor, ArrayViewD<'a, T>) {
    let rank = tensor.rank();
    match turn {
        Turn::Permute(keys) => {
            let axes = axes(rank, keys);
            (tensor.permute(&axes).unwrap(), array.permuted_axes(IxDyn(&axes)))
        }
        Turn::Narrow { .. } if rank == 0 => (tensor.clone(), array),
        &Turn::Narrow { axis, start, length } => {
            let axis = axis % rank;
            let dimension = tensor.shape()[axis];
            let start = start % (dimension + 1);
            let end = start + length % (dimension - start + 1);
            let part = array.slice_axis_move(Axis(axis), Slice::from(start..end));
            (tensor.narrow(axis, start..end).unwrap(), part)
        }
    }
}

fn numbered<T: Element>(shape: &[usize], number: impl Fn(usize) -> T) -> (Tensor, ArrayD<T>) {
    let numbers: Vec<T> = (0..shape.iter().product()).map(number).collect();
    let array = ArrayD::from_shape_vec(IxDyn(shape), numbers.clone()).unwrap();
    (Tensor::from_vec(shape, numbers).unwrap(), array)
}

/// Every way to see the elements gives what `ndarray` gives.
fn assert_same<T: Element>(tensor: &Tensor, array: &ArrayViewD<'_, T>) {
    let expected: Vec<T> = array.iter().copied().collect();
    assert_eq!(tensor.shape(), array.shape());
    assert_eq!((tensor.len(), tensor.is_empty()), (expected.len(), expected.is_empty()));
    assert_eq!(tensor.to_vec::<T>().unwrap(), expected);
    let elements = tensor.iter::<T>().unwrap();
    assert_eq!(elements.len(), expected.len());
    assert_eq!(elements.collect::<Vec<_>>(), expected);
    assert_eq!(tensor.to_dense().as_slice::<T>().unwrap(), expected);
    assert_eq!(&tensor.to_dense(), tensor);
    assert_eq!(tensor.reshape(&[expected.len()]).unwrap().as_slice::<T>().unwrap(), expected);
    // What claims to be contiguous is, and the other way round.
    assert_eq!(tensor.is_contiguous(), expected.is_empty() || array.is_standard_layout());
    match tensor.as_slice::<T>() {
        Ok(elements) => assert_eq!(elements, expected),
        Err(error) => assert!(matches!(error, TensorError::NotContiguous { .. })),
    }
    let mut changed = tensor.clone();
    if let Some(first) = changed.make_mut::<T>().unwrap().first_mut() {
        *first = expected[expected.len() - 1];
    }
    assert_eq!(tensor.to_vec::<T>().unwrap(), expected, "writing a clone leaves the tensor as it is");
}

proptest! {
    #[test]
    fn views_are_those_of_ndarray(shape in shapes(), turns in turns()) {
        let (mut tensor, array) = numbered(&shape, |n| n as i32);
        let mut view = array.view();
        for change in &turns {
            (tensor, view) = turn(&tensor, view, change);
        }
        assert_same(&tensor, &view);

        let (mut tensor, array) = numbered(&shape, |n| f16::from_f32(n as f32));
        let mut view = array.view();
        for change in &turns {
            (tensor, view) = turn(&tensor, view, change);
        }
        assert_same(&tensor, &view);
    }

    #[test]
    fn bytes_with_any_injective_strides_are_read_as_ndarray_reads_them(
        shape in shapes(),
        keys in prop::collection::vec(0_usize..8, 4),
        gaps in prop::collection::vec(0_usize..3, 5),
    ) {
        // Strides of a permuted tensor with gaps between its rows.
        let order = axes(shape.len(), &keys);
        let mut strides = vec![0; shape.len()];
        let mut step = 1;
        for (&axis, gap) in order.iter().rev().zip(&gaps) {
            strides[axis] = step;
            step = step * shape[axis].max(1) + gap;
        }
        let bytes: Vec<u8> = (0..step).flat_map(|n| (n as f32).to_ne_bytes()).collect();
        let tensor = Tensor::from_bytes(Dtype::Float32, &shape, Some(&strides), &bytes).unwrap();
        let mut expected = Vec::new();
        for index in ndarray::indices(IxDyn(&shape)) {
            let offset: usize = (0..shape.len()).map(|axis| index[axis] * strides[axis]).sum();
            expected.push(offset as f32);
        }
        prop_assert_eq!(tensor.to_vec::<f32>().unwrap(), expected);
    }

    #[test]
    fn shapes_strides_and_bytes_that_do_not_agree_are_refused_and_nothing_panics(
        shape in prop::collection::vec(prop_oneof![0_usize..4, any::<usize>()], 0..4),
        strides in prop::collection::vec(prop_oneof![0_usize..40, any::<usize>()], 0..4),
        bytes in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        for strides in [None, Some(&strides[..])] {
            if let Ok(tensor) = Tensor::from_bytes(Dtype::Int8, &shape, strides, &bytes) {
                prop_assert!(tensor.len() <= bytes.len());
                prop_assert_eq!(tensor.to_vec::<i8>().unwrap().len(), tensor.len());
            }
        }
    }

    #[test]
    fn casting_is_the_conversion_of_rust(numbers in prop::collection::vec(any::<f32>(), 0..20)) {
        let tensor = Tensor::from_slice(&[numbers.len()], &numbers).unwrap();
        let same = |found: Vec<f64>, expected: Vec<f64>| {
            let equal = |(a, b): (&f64, &f64)| a == b || a.is_nan() && b.is_nan();
            prop_assert!(found.len() == expected.len() && found.iter().zip(&expected).all(equal), "{found:?} {expected:?}");
            Ok(())
        };
        let ints: Vec<i32> = numbers.iter().map(|&x| x as i32).collect();
        prop_assert_eq!(tensor.cast(Dtype::Int32).to_vec::<i32>().unwrap(), ints);
        let bytes: Vec<i8> = numbers.iter().map(|&x| x as i8).collect();
        prop_assert_eq!(tensor.cast(Dtype::Int8).to_vec::<i8>().unwrap(), bytes);
        let wide: Vec<f64> = numbers.iter().map(|&x| f64::from(x)).collect();
        same(tensor.cast(Dtype::Float64).to_vec().unwrap(), wide)?;
        let halves = numbers.iter().map(|&x| f16::from_f32(x).to_f64()).collect();
        same(tensor.cast(Dtype::Float16).cast(Dtype::Float64).to_vec().unwrap(), halves)?;
        // Strided or dense makes no difference.
        let column = tensor.reshape(&[1, numbers.len()]).unwrap().permute(&[1, 0]).unwrap();
        let dense = tensor.cast(Dtype::Int32).reshape(column.shape()).unwrap();
        prop_assert_eq!(column.cast(Dtype::Int32), dense);
    }

    #[test]
    fn half_precision_survives_single_precision(bits in any::<u16>()) {
        let half = f16::from_bits(bits);
        let back = Tensor::scalar(half).cast(Dtype::Float32).cast(Dtype::Float16);
        let back = back.as_slice::<f16>().unwrap()[0];
        prop_assert!(back == half || back.is_nan() && half.is_nan());
    }
}

#[test]
fn a_shape_that_overflows_is_refused_without_an_allocation() {
    let huge = [1 << 60, 1 << 60];
    assert!(matches!(Tensor::zeros(Dtype::Int8, &huge), Err(TensorError::TooLarge { .. })));
    assert!(matches!(Tensor::from_vec::<f32>(&huge, vec![]), Err(TensorError::TooLarge { .. })));
    assert!(matches!(Tensor::zeros(Dtype::Float64, &[1 << 60]), Err(TensorError::TooLarge { .. })));
    assert_eq!(Tensor::zeros(Dtype::Float64, &[1 << 60, 0]).unwrap().len(), 0);
}

#[test]
fn overlapping_elements_and_missing_bytes_are_refused() {
    let bytes = [0; 16];
    let refused = |shape: &[usize], strides: &[usize]| {
        Tensor::from_bytes(Dtype::Float32, shape, Some(strides), &bytes).unwrap_err()
    };
    assert!(matches!(refused(&[2, 2], &[0, 1]), TensorError::Overlapping { .. }));
    assert!(matches!(refused(&[2, 2], &[4, 1]), TensorError::OutOfBounds { available: 4, .. }));
    assert!(matches!(refused(&[2, 2], &[1]), TensorError::Rank { rank: 2, found: 1 }));
    let dense = Tensor::from_bytes(Dtype::Float32, &[3], None, &bytes).unwrap_err();
    assert!(matches!(dense, TensorError::Length { expected: 3, found: 4, .. }));
    let odd = Tensor::from_bytes(Dtype::Float32, &[4], None, &[0; 17]).unwrap_err();
    assert!(matches!(odd, TensorError::Length { expected: 4, .. }));
}

#[test]
fn wrong_axes_and_ranges_are_refused() {
    let tensor = Tensor::zeros(Dtype::Int8, &[2, 3]).unwrap();
    for axes in [&[0][..], &[0, 0], &[0, 2], &[0, 1, 2]] {
        assert!(matches!(tensor.permute(axes), Err(TensorError::Axes { rank: 2, .. })), "{axes:?}");
    }
    let backwards = core::ops::Range { start: 2, end: 1 };
    for (axis, range) in [(2, 0..1), (0, 1..3), (1, backwards)] {
        assert!(matches!(tensor.narrow(axis, range), Err(TensorError::Narrow { .. })));
    }
    assert!(matches!(tensor.reshape(&[5]), Err(TensorError::Length { .. })));
}

#[test]
fn writing_does_not_copy_memory_that_nobody_shares() {
    let mut tensor = Tensor::zeros(Dtype::Float32, &[4]).unwrap();
    let address = tensor.as_slice::<f32>().unwrap().as_ptr();
    tensor.make_mut::<f32>().unwrap()[0] = 1.0;
    assert_eq!(tensor.as_slice::<f32>().unwrap().as_ptr(), address);
    let shared = tensor.clone();
    tensor.make_mut::<f32>().unwrap()[0] = 2.0;
    assert_eq!(shared.as_slice::<f32>().unwrap(), [1.0, 0.0, 0.0, 0.0]);
    assert_ne!(tensor.as_slice::<f32>().unwrap().as_ptr(), address);
}

#[cfg(feature = "ndarray")]
#[test]
fn arrays_convert_both_ways_also_when_they_are_cut_or_turned() {
    let array = ArrayD::from_shape_vec(IxDyn(&[3, 4]), (0..12).collect::<Vec<i32>>()).unwrap();
    let mut cut = array.clone();
    cut.slice_axis_inplace(Axis(0), Slice::from(1..3));
    let mut back_to_front = array.clone();
    back_to_front.invert_axis(Axis(1));
    for array in [array.clone(), cut, back_to_front, array.reversed_axes()] {
        let tensor = Tensor::from(array.clone());
        assert_same(&tensor, &array.as_standard_layout().view());
        assert_eq!(ArrayD::<i32>::try_from(&tensor).unwrap(), array);
        assert_eq!(tensor.view::<i32>().unwrap(), array);
        let turned = tensor.permute(&[1, 0]).unwrap();
        assert_eq!(turned.view::<i32>().unwrap(), array.t());
        assert!(matches!(tensor.view::<f32>(), Err(TensorError::Dtype { .. })));
    }
}
