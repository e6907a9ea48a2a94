//! `pool` ops, over one, two or three spatial axes.
//!
//! Semantics: coremltools, `mil/ops/defs/iOS15/pool.py`.

use rten_tensor::prelude::*;

use super::{Kernel, OpBuilder, OpDef, parameter};
use crate::error::{KernelError, OpError};
use crate::ir::Opset::Ios13;
use crate::kernels::planes::{Max, Planes, SquareSum, Sum};
use crate::kernels::window::{Axis, Padding, PerShape, Step, positive};
use crate::value::one;

pub(crate) const OPS: &[OpDef] = &[
    OpDef::new("avg_pool", &[Ios13], |op| pool(op, Pool::Average)),
    OpDef::new("l2_pool", &[Ios13], |op| pool(op, Pool::L2)),
    OpDef::new("max_pool", &[Ios13], |op| pool(op, Pool::Max)),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pool {
    Average,
    L2,
    Max,
}

/// What depends on the shape of the input only.
struct Windows {
    planes: Planes,
    /// Of the average: one over the number of elements that count, per window.
    weights: Vec<f32>,
}

impl Windows {
    fn new(planes: Planes, average: bool, exclude_padding: bool) -> Self {
        let mut weights = Vec::new();
        if average {
            let counts = planes.axes().map(|axis| counts(&axis, exclude_padding));
            for &z in &counts[0] {
                for &y in &counts[1] {
                    weights.extend(counts[2].iter().map(|&x| ((z * y * x).max(1) as f32).recip()));
                }
            }
        }
        Self { planes, weights }
    }
}

/// Per window along one axis, how many of its elements count: those inside the input, or inside the padded input. What a window
/// of `ceil_mode` covers beyond the padding never counts.
fn counts(axis: &Axis, exclude_padding: bool) -> Vec<usize> {
    let window = |i: usize| {
        let taps = (0..axis.kernel).map(|tap| i * axis.stride + tap * axis.dilation);
        let (first, end) = if exclude_padding {
            (axis.before, axis.before + axis.input)
        } else {
            (0, axis.before + axis.input + axis.after)
        };
        taps.filter(|position| (first..end).contains(position)).count()
    };
    (0..axis.output).map(window).collect()
}

fn pool(op: &mut OpBuilder<'_>, pool: Pool) -> Result<Kernel, OpError> {
    let x = op.float_input("x", 3..=5)?;
    let sizes = op.ints_opt("kernel_sizes")?.ok_or(OpError::Missing("kernel_sizes"))?;
    let rank = sizes.len();
    if x.rank().is_some_and(|found| found != rank + 2) || !(1..=3).contains(&rank) {
        return Err(parameter("kernel_sizes", format!("{rank} sizes for x {}", x.ty)));
    }
    let sizes = positive(op, "kernel_sizes", rank)?.unwrap_or_default();
    let strides = positive(op, "strides", rank)?.unwrap_or_else(|| vec![1; rank]);
    let padding = Padding::read(op, "valid", rank)?;
    let ceil = op.bool("ceil_mode", false)?;
    let exclude = pool == Pool::Average && op.bool("exclude_padding_from_average", false)?;
    let layouts = PerShape::new();
    Ok(Box::new(move |run| {
        let view = run.f32(x.slot)?;
        let shape = view.shape().to_vec();
        let input = view.to_contiguous_in(run.pool());
        let Some((&[batch, channels], spatial)) =
            shape.split_first_chunk::<2>().filter(|(_, s)| s.len() == rank)
        else {
            return Err(KernelError::shape(format!("shape {shape:?} where rank {} is expected", rank + 2)));
        };
        let layout = layouts.of(&shape, || {
            let mut axes = [Axis::ONE; 3];
            for (i, axis) in axes[3 - rank..].iter_mut().enumerate() {
                let step = Step { kernel: sizes[i], stride: strides[i], dilation: 1 };
                *axis = Axis::new(&padding, i, spatial[i], step, ceil)?;
            }
            run.check_size(&axes.map(|axis| axis.output))?;
            Ok(Windows::new(Planes::banded(run, axes)?, pool == Pool::Average, exclude))
        })?;
        let planes = &layout.planes;
        let outputs: Vec<usize> = planes.axes()[3 - rank..].iter().map(|axis| axis.output).collect();
        let made = [&[batch, channels], &outputs[..]].concat();
        let mut out = run.zeros::<f32>(&made)?;
        let source = input.data();
        if let Some(out) = out.data_mut().filter(|out| !out.is_empty()) {
            match pool {
                Pool::Max => planes.fold(source, out, 1, f32::NEG_INFINITY, |_| (f32::NEG_INFINITY, Max)),
                Pool::Average => {
                    planes.fold(source, out, 1, 0.0, |_| (0.0, Sum));
                    for out in out.chunks_exact_mut(layout.weights.len()) {
                        out.iter_mut().zip(&layout.weights).for_each(|(x, weight)| *x *= weight);
                    }
                }
                Pool::L2 => {
                    planes.fold(source, out, 1, 0.0, |_| (0.0, SquareSum));
                    out.iter_mut().for_each(|x| *x = x.sqrt());
                }
            }
        }
        if let Some(buffer) = rten::ExtractBuffer::extract_buffer(input.into_inner()) {
            run.pool().add(buffer);
        }
        Ok(one(out))
    }))
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::{Case, assert_close};

    const X: [f32; 12] = [1.0, -2.0, 3.0, 0.5, 4.0, -1.0, 2.5, 0.25, -3.0, 1.5, 2.0, -0.5];

    #[test]
    fn max_pool_takes_the_greatest_and_padding_never_wins() {
        let (shape, data) = Case::new("max_pool")
            .input("x", &[1, 1, 3, 4], &X)
            .ints("kernel_sizes", &[2, 2])
            .ints("strides", &[2, 2])
            .string("pad_type", "valid")
            .f32();
        assert_eq!((shape, data), (vec![1, 1, 1, 2], vec![4.0, 3.0]));
        let padded = Case::new("max_pool")
            .input("x", &[1, 1, 2], &[-5.0, -7.0])
            .ints("kernel_sizes", &[3])
            .string("pad_type", "custom")
            .ints("pad", &[1, 1]);
        assert_eq!(padded.f32(), (vec![1, 1, 2], vec![-5.0, -5.0]));
    }

    #[test]
    fn avg_pool_counts_padding_unless_told_not_to() {
        let case = |exclude| {
            Case::new("avg_pool")
                .input("x", &[1, 1, 3], &[3.0, 6.0, 9.0])
                .ints("kernel_sizes", &[3])
                .string("pad_type", "custom")
                .ints("pad", &[1, 1])
                .bool("exclude_padding_from_average", exclude)
                .f32()
                .1
        };
        assert_close(&case(false), &[3.0, 6.0, 5.0], 1e-6);
        assert_close(&case(true), &[4.5, 6.0, 7.5], 1e-6);
    }

    #[test]
    fn l2_pool_is_the_root_of_the_sum_of_squares() {
        let case = Case::new("l2_pool").input("x", &[1, 1, 4], &X[..4]).ints("kernel_sizes", &[2]);
        let case = case.ints("strides", &[2]).string("pad_type", "valid");
        assert_close(&case.f32().1, &[5.0_f32.sqrt(), 9.25_f32.sqrt()], 1e-6);
    }

    #[test]
    fn ceil_mode_adds_a_window_that_is_not_full() {
        let case = |ceil| {
            Case::new("max_pool")
                .input("x", &[1, 1, 5], &X[..5])
                .ints("kernel_sizes", &[2])
                .ints("strides", &[2])
                .string("pad_type", "valid")
                .bool("ceil_mode", ceil)
                .f32()
                .1
        };
        assert_eq!((case(false), case(true)), (vec![1.0, 3.0], vec![1.0, 3.0, 4.0]));
    }

    #[test]
    fn windows_that_do_not_fit_are_refused() {
        let case = Case::new("max_pool").input("x", &[1, 1, 2], &X[..2]).ints("kernel_sizes", &[3]);
        let error = case.string("pad_type", "valid").error();
        assert!(error.contains("no window of 3 elements"), "{error}");
        let case = Case::new("max_pool").input("x", &[1, 1, 2], &X[..2]).ints("kernel_sizes", &[1, 1]);
        assert!(case.string("pad_type", "valid").error().contains("2 sizes for x fp32[1, 1, 2]"));
    }
}
