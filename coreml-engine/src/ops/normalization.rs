//! `normalization` ops.
//!
//! Semantics: coremltools, `mil/ops/defs/iOS15/normalization.py`; iOS 17 only lets the parameters have a type of their own.

use rayon::prelude::*;
use rten::ExtractBuffer;
use rten_simd::SimdOp;
use rten_tensor::Tensor;
use rten_tensor::prelude::*;
use rten_vecmath as vecmath;

use super::{Kernel, OpBuilder, OpDef, Run, parameter, resolve_axis};
use crate::error::{KernelError, OpError};
use crate::ir::Opset::{Ios13, Ios17};
use crate::types::element_count;
use crate::value::one;

pub(crate) const OPS: &[OpDef] = &[
    OpDef::new("batch_norm", &[Ios13, Ios17], batch_norm),
    OpDef::new("instance_norm", &[Ios13, Ios17], instance_norm),
    OpDef::new("l2_norm", &[Ios13, Ios17], l2_norm),
    OpDef::new("layer_norm", &[Ios13, Ios17], layer_norm),
    OpDef::new("local_response_norm", &[Ios13, Ios17], local_response_norm),
];

/// Elements below which one thread is faster than several.
const PARALLEL: usize = 1 << 15;

/// Applies `f(group number, elements)` to equal groups of the tensor, on several threads where that pays.
fn for_groups(data: &mut [f32], group: usize, f: impl Fn(usize, &mut [f32]) + Send + Sync) {
    if group == 0 {
        return;
    }
    if data.len() < PARALLEL {
        data.chunks_mut(group).enumerate().for_each(|(i, chunk)| f(i, chunk));
    } else {
        data.par_chunks_mut(group).enumerate().for_each(|(i, chunk)| f(i, chunk));
    }
}

/// The input as an owned dense tensor.
fn dense(run: &mut Run<'_, '_>, slot: usize) -> Result<Tensor<f32>, KernelError> {
    let mut tensor = run.take_f32(slot)?;
    tensor.make_contiguous_in(run.pool());
    Ok(tensor)
}

/// The elements of a tensor that [`dense`] made.
fn elements(tensor: &mut Tensor<f32>) -> &mut [f32] {
    tensor.data_mut().unwrap_or(&mut [])
}

/// Channels and elements per channel of `[n, C, *D]`.
fn channels(shape: &[usize], expected: usize) -> Result<usize, KernelError> {
    match shape {
        [_, c, spatial @ ..] if *c == expected => Ok(spatial.iter().product()),
        _ => Err(KernelError::shape(format!("shape {shape:?} where {expected} channels are expected"))),
    }
}

/// Mean and variance (of the population), in two passes as the definition has it.
fn moments(data: &[f32]) -> (f32, f32) {
    let n = data.len() as f32;
    let mean = vecmath::Sum::new(data).dispatch() / n;
    (mean, vecmath::SumSquareSub::new(data, mean).dispatch() / n)
}

fn batch_norm(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let x = op.float_input("x", 3..=5)?;
    let mean = op.floats_opt("mean")?.ok_or(OpError::Missing("mean"))?;
    let variance = op.floats_opt("variance")?.ok_or(OpError::Missing("variance"))?;
    let gamma = op.floats_opt("gamma")?;
    let beta = op.floats_opt("beta")?;
    let epsilon = op.float("epsilon", 1e-5)?;
    let count = mean.len();
    for (name, values) in [("variance", Some(&variance)), ("gamma", gamma.as_ref()), ("beta", beta.as_ref())]
    {
        if values.is_some_and(|values| values.len() != count) {
            return Err(parameter(name, format!("expected {count} elements, as `mean` has")));
        }
    }
    // y = scale * x + shift, per channel.
    let scale: Vec<f32> = variance
        .iter()
        .enumerate()
        .map(|(i, v)| gamma.as_ref().map_or(1.0, |gamma| gamma[i]) / (v + epsilon).sqrt())
        .collect();
    let shift: Vec<f32> =
        (0..count).map(|i| beta.as_ref().map_or(0.0, |beta| beta[i]) - mean[i] * scale[i]).collect();
    Ok(Box::new(move |run| {
        let mut tensor = dense(run, x.slot)?;
        let area = channels(tensor.shape(), count)?;
        for_groups(elements(&mut tensor), area, |i, plane| {
            let (scale, shift) = (scale[i % count], shift[i % count]);
            plane.iter_mut().for_each(|x| *x = *x * scale + shift);
        });
        Ok(one(tensor))
    }))
}

fn instance_norm(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let x = op.float_input("x", 3..=5)?;
    let gamma = op.floats_opt("gamma")?;
    let beta = op.floats_opt("beta")?;
    let epsilon = op.float("epsilon", 1e-5)?;
    Ok(Box::new(move |run| {
        let mut tensor = dense(run, x.slot)?;
        let count = tensor.shape().get(1).copied().unwrap_or(0);
        for values in [&gamma, &beta].into_iter().flatten() {
            channels(tensor.shape(), values.len())?;
        }
        let area = channels(tensor.shape(), count)?;
        for_groups(elements(&mut tensor), area, |i, plane| {
            let channel = i % count.max(1);
            let (mean, variance) = moments(plane);
            let scale = gamma.as_ref().map_or(1.0, |g| g[channel]) / (variance + epsilon).sqrt();
            let shift = beta.as_ref().map_or(0.0, |b| b[channel]);
            plane.iter_mut().for_each(|x| *x = (*x - mean) * scale + shift);
        });
        Ok(one(tensor))
    }))
}

fn l2_norm(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let x = op.float_input("x", 3..=5)?;
    let epsilon = op.float("epsilon", 1e-6)?;
    Ok(Box::new(move |run| {
        let mut tensor = dense(run, x.slot)?;
        let rank = tensor.ndim();
        if rank < 3 {
            return Err(KernelError::shape(format!("rank 3 or more is needed, found {:?}", tensor.shape())));
        }
        let group = tensor.shape()[rank - 3..].iter().product();
        for_groups(elements(&mut tensor), group, |_, values| {
            let norm = (vecmath::SumSquare::new(values).dispatch() + epsilon).sqrt();
            values.iter_mut().for_each(|x| *x /= norm);
        });
        Ok(one(tensor))
    }))
}

fn layer_norm(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let x = op.float_input("x", 1..=5)?;
    let axes = op.ints_opt("axes")?;
    let gamma = op.floats_opt("gamma")?;
    let beta = op.floats_opt("beta")?;
    let epsilon = op.float("epsilon", 1e-5)?;
    Ok(Box::new(move |run| {
        let mut tensor = run.take_f32(x.slot)?;
        let rank = tensor.ndim();
        let mut normalized = match &axes {
            Some(axes) => axes.iter().map(|&axis| resolve_axis(axis, rank)).collect::<Result<Vec<_>, _>>()?,
            None => (0..rank).collect(),
        };
        normalized.sort_unstable();
        normalized.dedup();
        // Bring the normalised axes last: a view, unless they already are.
        let order: Vec<usize> =
            (0..rank).filter(|axis| !normalized.contains(axis)).chain(normalized.iter().copied()).collect();
        let shape: Vec<usize> = normalized.iter().map(|&axis| tensor.size(axis)).collect();
        let group = element_count(&shape).unwrap_or(0);
        for (name, values) in [("gamma", &gamma), ("beta", &beta)] {
            if values.as_ref().is_some_and(|values| values.len() != group) {
                return Err(KernelError::shape(format!(
                    "{name} does not have the shape {shape:?} of the axes"
                )));
            }
        }
        let moved = !order.is_sorted();
        if moved {
            tensor = tensor.into_permuted(&order);
        }
        tensor.make_contiguous_in(run.pool());
        for_groups(elements(&mut tensor), group, |_, values| {
            let (mean, variance) = moments(values);
            let options = vecmath::NormalizeOptions {
                pre_scale_bias: mean,
                scale: 1.0 / (variance + epsilon).sqrt(),
                element_scale: gamma.as_deref(),
                bias: 0.0,
                element_bias: beta.as_deref(),
            };
            vecmath::Normalize::new_mut(values, options).dispatch();
        });
        if moved {
            let mut inverse = vec![0; rank];
            order.iter().enumerate().for_each(|(i, &axis)| inverse[axis] = i);
            tensor = tensor.into_permuted(&inverse);
        }
        Ok(one(tensor))
    }))
}

/// `x_i / (k + alpha / size * sum of x_j^2 over the `size` channels around i) ^ beta`.
fn local_response_norm(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let x = op.float_input("x", 3..=5)?;
    let size = op.int_opt("size")?.ok_or(OpError::Missing("size"))?;
    let size = usize::try_from(size)
        .ok()
        .filter(|&size| size > 0)
        .ok_or_else(|| parameter("size", format!("expected a positive number, found {size}")))?;
    let alpha = op.float("alpha", 1e-4)?;
    let beta = op.float("beta", 0.75)?;
    let k = op.float("k", 1.0)?;
    Ok(Box::new(move |run| {
        let input = run.f32(x.slot)?.to_contiguous_in(run.pool());
        let shape = input.shape().to_vec();
        let count = shape.get(1).copied().unwrap_or(0);
        let area = channels(&shape, count)?;
        let source = input.data();
        let mut out = run.zeros::<f32>(&shape)?;
        let batch = count * area;
        for_groups(elements(&mut out), area, |i, plane| {
            let (n, c) = (i / count.max(1), i % count.max(1));
            let first = c.saturating_sub((size - 1) / 2);
            let last = c.saturating_add(size / 2).min(count - 1);
            for (j, y) in plane.iter_mut().enumerate() {
                let at = |channel: usize| source[n * batch + channel * area + j];
                let sum: f32 = (first..=last).map(|channel| at(channel) * at(channel)).sum();
                *y = at(c) / (k + alpha / size as f32 * sum).powf(beta);
            }
        });
        if let Some(buffer) = input.into_inner().extract_buffer() {
            run.pool().add(buffer);
        }
        Ok(one(out))
    }))
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::{Case, assert_close};

    const X: [f32; 8] = [1.0, -2.0, 3.0, 0.5, -1.5, 2.5, 4.0, -0.5];

    fn normalized(values: &[f32], epsilon: f32) -> Vec<f32> {
        let n = values.len() as f32;
        let mean = values.iter().sum::<f32>() / n;
        let variance = values.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / n;
        values.iter().map(|x| (x - mean) / (variance + epsilon).sqrt()).collect()
    }

    #[test]
    fn batch_norm_scales_and_shifts_each_channel() {
        let (shape, data) = Case::new("batch_norm")
            .input("x", &[1, 2, 4], &X)
            .floats("mean", &[2], &[1.0, -1.0])
            .floats("variance", &[2], &[4.0, 0.25])
            .floats("gamma", &[2], &[2.0, 1.0])
            .floats("beta", &[2], &[0.5, -0.5])
            .float("epsilon", 0.0)
            .f32();
        assert_eq!(shape, [1, 2, 4]);
        let expected = [0.5, -2.5, 2.5, 0.0, -1.5, 6.5, 9.5, 0.5];
        assert_close(&data, &expected, 1e-6);
    }

    #[test]
    fn instance_norm_normalises_each_plane() {
        let data = Case::new("instance_norm")
            .input("x", &[1, 2, 4], &X)
            .floats("gamma", &[2], &[1.0, 2.0])
            .floats("beta", &[2], &[0.0, 1.0])
            .f32()
            .1;
        let mut expected = normalized(&X[..4], 1e-5);
        expected.extend(normalized(&X[4..], 1e-5).iter().map(|x| x * 2.0 + 1.0));
        assert_close(&data, &expected, 1e-5);
    }

    #[test]
    fn l2_norm_normalises_the_last_three_dimensions() {
        let data = Case::new("l2_norm").input("x", &[2, 1, 2, 2], &X).f32().1;
        let norm = |values: &[f32]| (values.iter().map(|x| x * x).sum::<f32>() + 1e-6).sqrt();
        let expected: Vec<f32> =
            X.chunks(4).flat_map(|c| c.iter().map(move |x| x / norm(c)).collect::<Vec<_>>()).collect();
        assert_close(&data, &expected, 1e-6);
    }

    #[test]
    fn layer_norm_normalises_the_axes_it_is_told() {
        let last = Case::new("layer_norm").input("x", &[2, 4], &X).ints("axes", &[-1]).f32().1;
        let expected: Vec<f32> = X.chunks(4).flat_map(|c| normalized(c, 1e-5)).collect();
        assert_close(&last, &expected, 1e-5);

        // Over the first axis: the same as normalising the transposed rows.
        let (shape, first) = Case::new("layer_norm")
            .input("x", &[2, 4], &X)
            .ints("axes", &[0])
            .floats("gamma", &[2], &[2.0, 3.0])
            .floats("beta", &[2], &[0.0, 1.0])
            .f32();
        assert_eq!(shape, [2, 4]);
        for column in 0..4 {
            let rows = normalized(&[X[column], X[4 + column]], 1e-5);
            assert_close(&[first[column], first[4 + column]], &[rows[0] * 2.0, rows[1] * 3.0 + 1.0], 1e-5);
        }
    }

    #[test]
    fn layer_norm_without_axes_normalises_everything() {
        let data = Case::new("layer_norm").input("x", &[2, 4], &X).f32().1;
        assert_close(&data, &normalized(&X, 1e-5), 1e-5);
    }

    #[test]
    fn layer_norm_refuses_a_gamma_of_another_size() {
        let case = Case::new("layer_norm").input("x", &[2, 4], &X).ints("axes", &[-1]);
        assert_eq!(
            case.floats("gamma", &[3], &[1.0; 3]).error(),
            "gamma does not have the shape [4] of the axes"
        );
    }

    #[test]
    fn local_response_norm_sums_neighbouring_channels() {
        let data = Case::new("local_response_norm")
            .input("x", &[1, 4, 2], &X)
            .int("size", 3)
            .float("alpha", 0.3)
            .float("beta", 0.5)
            .float("k", 2.0)
            .f32()
            .1;
        let mut expected = Vec::new();
        for c in 0..4_usize {
            for j in 0..2 {
                let sum: f32 = (c.saturating_sub(1)..=(c + 1).min(3)).map(|c| X[c * 2 + j].powi(2)).sum();
                expected.push(X[c * 2 + j] / (2.0 + 0.1 * sum).sqrt());
            }
        }
        assert_close(&data, &expected, 1e-5);
    }
}
