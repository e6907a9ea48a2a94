//! `activation` ops.
//!
//! Semantics: coremltools, `mil/ops/defs/iOS15/activation.py`; iOS 17 only lets the parameters have a type of their own.

use rayon::prelude::*;
use rten_simd::SimdOp;
use rten_tensor::prelude::*;
use rten_vecmath as vecmath;

use super::elementwise_unary::{CHUNK, clipped, dense, float, simd};
use super::{Kernel, OpBuilder, OpDef, parameter};
use crate::error::{KernelError, OpError};
use crate::ir::Opset::{Ios13, Ios17};
use crate::value::one;

pub(crate) const OPS: &[OpDef] = &[
    OpDef::new("clamped_relu", &[Ios13, Ios17], |op| {
        two(op, |alpha, beta, x| (if x >= 0.0 { x } else { alpha * x }).min(beta))
    }),
    OpDef::new("elu", &[Ios13, Ios17], |op| {
        one_parameter(op, |alpha, x| if x > 0.0 { x } else { alpha * x.exp_m1() })
    }),
    OpDef::new("gelu", &[Ios13], gelu),
    OpDef::new("leaky_relu", &[Ios13, Ios17], |op| {
        one_parameter(op, |alpha, x| if x >= 0.0 { x } else { alpha * x })
    }),
    OpDef::new("linear_activation", &[Ios13, Ios17], |op| two(op, |alpha, beta, x| alpha * x + beta)),
    OpDef::new("prelu", &[Ios13, Ios17], |op| {
        per_channel(op, &["alpha"], |[alpha, _], x| if x > 0.0 { x } else { alpha * x })
    }),
    OpDef::new("relu", &[Ios13], |op| float(op, |x| if x < 0.0 { 0.0 } else { x })),
    OpDef::new("relu6", &[Ios13], |op| float(op, |x| clipped(x, 0.0, 6.0))),
    OpDef::new("scaled_tanh", &[Ios13, Ios17], |op| two(op, |alpha, beta, x| alpha * (beta * x).tanh())),
    OpDef::new("sigmoid", &[Ios13], |op| simd(op, vecmath::Sigmoid {})),
    OpDef::new("sigmoid_hard", &[Ios13, Ios17], |op| {
        two(op, |alpha, beta, x| clipped(alpha * x + beta, 0.0, 1.0))
    }),
    OpDef::new("silu", &[Ios13], |op| simd(op, vecmath::Silu {})),
    OpDef::new("softmax", &[Ios13], softmax),
    OpDef::new("softplus", &[Ios13], |op| float(op, softplus)),
    OpDef::new("softplus_parametric", &[Ios13, Ios17], |op| {
        per_channel(op, &["alpha", "beta"], |[alpha, beta], x| alpha * softplus(beta * x))
    }),
    OpDef::new("softsign", &[Ios13], |op| float(op, |x| x / (1.0 + x.abs()))),
    OpDef::new("thresholded_relu", &[Ios13, Ios17], |op| {
        one_parameter(op, |alpha, x| if x >= alpha { x } else { 0.0 })
    }),
];

/// `log(1 + e^x)` without overflow.
fn softplus(x: f32) -> f32 {
    (-x.abs()).exp().ln_1p() + x.max(0.0)
}

/// `f(alpha, x)`.
fn one_parameter(
    op: &mut OpBuilder<'_>,
    f: impl Fn(f32, f32) -> f32 + Send + Sync + 'static,
) -> Result<Kernel, OpError> {
    let alpha = op.float_opt("alpha")?.ok_or(OpError::Missing("alpha"))?;
    float(op, move |x| f(alpha, x))
}

/// `f(alpha, beta, x)`.
fn two(
    op: &mut OpBuilder<'_>,
    f: impl Fn(f32, f32, f32) -> f32 + Send + Sync + 'static,
) -> Result<Kernel, OpError> {
    let alpha = op.float_opt("alpha")?.ok_or(OpError::Missing("alpha"))?;
    let beta = op.float_opt("beta")?.ok_or(OpError::Missing("beta"))?;
    float(op, move |x| f(alpha, beta, x))
}

/// `f([alpha, beta], x)` with parameters per channel of `[n, C, *D]`.
fn per_channel(
    op: &mut OpBuilder<'_>,
    names: &[&'static str],
    f: impl Fn([f32; 2], f32) -> f32 + Send + Sync + 'static,
) -> Result<Kernel, OpError> {
    let x = op.float_input("x", 3..=5)?;
    let mut parameters = Vec::new();
    for &name in names {
        parameters.push(op.floats_opt(name)?.ok_or(OpError::Missing(name))?);
    }
    let count = parameters[0].len();
    if let Some(i) = parameters.iter().position(|values| values.len() != count) {
        return Err(parameter(names[i], format!("expected {count} elements, as `{}` has", names[0])));
    }
    Ok(Box::new(move |run| {
        let mut tensor = dense(run, x.slot)?;
        let area: usize = match tensor.shape() {
            [_, c, spatial @ ..] if *c == count => spatial.iter().product(),
            shape => return Err(KernelError::shape(format!("{count} parameters for shape {shape:?}"))),
        };
        if let Some(data) = tensor.data_mut() {
            for (plane, i) in data.chunks_mut(area.max(1)).zip((0..count).cycle()) {
                let values = [parameters[0][i], parameters.last().map_or(0.0, |values| values[i])];
                plane.iter_mut().for_each(|x| *x = f(values, *x));
            }
        }
        Ok(one(tensor))
    }))
}

fn gelu(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    match op.string("mode", "EXACT")?.as_str() {
        "EXACT" => simd(op, vecmath::Gelu {}),
        "TANH_APPROXIMATION" => simd(op, vecmath::ApproxGelu {}),
        "SIGMOID_APPROXIMATION" => simd(op, vecmath::Swish { alpha: 1.702 }),
        other => Err(parameter(
            "mode",
            format!("`{other}` is not EXACT, TANH_APPROXIMATION or SIGMOID_APPROXIMATION"),
        )),
    }
}

fn softmax(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let x = op.float_input("x", 1..=5)?;
    let axis = op.axis("axis", Some(-1), x.rank())?;
    Ok(Box::new(move |run| {
        let mut tensor = run.take_f32(x.slot)?;
        let rank = tensor.ndim();
        let axis = axis.of(rank)?;
        // Bring the axis last: a view, unless it already is.
        let mut order: Vec<usize> = (0..rank).collect();
        order.swap(axis, rank - 1);
        let moved = axis != rank - 1;
        if moved {
            tensor = tensor.into_permuted(&order);
        }
        tensor.make_contiguous_in(run.pool());
        let row = tensor.size(rank - 1);
        if let Some(data) = tensor.data_mut().filter(|_| row > 0) {
            let on_rows = |rows: &mut [f32]| {
                for row in rows.chunks_mut(row) {
                    vecmath::Softmax::new_mut(row).dispatch();
                }
            };
            if data.len() <= CHUNK {
                on_rows(data);
            } else {
                data.par_chunks_mut(row.saturating_mul((CHUNK / row).max(1))).for_each(on_rows);
            }
        }
        // A swap undoes itself.
        Ok(one(if moved { tensor.into_permuted(&order) } else { tensor }))
    }))
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::{Case, assert_close};

    const X: [f32; 6] = [-3.0, -1.0, -0.25, 0.0, 0.5, 8.0];

    fn check(case: Case, f: impl Fn(f32) -> f32) {
        let (shape, found) = case.input("x", &[2, 3], &X).f32();
        assert_eq!(shape, [2, 3]);
        assert_close(&found, &X.map(f), 2e-6);
    }

    #[test]
    fn ops_without_parameters_are_their_functions() {
        check(Case::new("relu"), |x| x.max(0.0));
        check(Case::new("relu6"), |x| x.clamp(0.0, 6.0));
        check(Case::new("sigmoid"), |x| 1.0 / (1.0 + (-x).exp()));
        check(Case::new("silu"), |x| x / (1.0 + (-x).exp()));
        check(Case::new("softplus"), |x| (1.0 + x.exp()).ln());
        check(Case::new("softsign"), |x| x / (1.0 + x.abs()));
    }

    #[test]
    fn ops_with_parameters_are_their_functions() {
        let both = |name| Case::new(name).float("alpha", 0.5).float("beta", 2.0);
        check(both("clamped_relu"), |x| if x >= 0.0 { x.min(2.0) } else { (0.5 * x).min(2.0) });
        check(both("linear_activation"), |x| 0.5 * x + 2.0);
        check(both("scaled_tanh"), |x| 0.5 * (2.0 * x).tanh());
        check(Case::new("sigmoid_hard").float("alpha", 0.2).float("beta", 0.5), |x| {
            (0.2 * x + 0.5).clamp(0.0, 1.0)
        });
        let alpha = |name| Case::new(name).float("alpha", 0.1);
        check(alpha("elu"), |x| if x > 0.0 { x } else { 0.1 * (x.exp() - 1.0) });
        check(alpha("leaky_relu"), |x| if x >= 0.0 { x } else { 0.1 * x });
        check(alpha("thresholded_relu"), |x| if x >= 0.1 { x } else { 0.0 });
        assert_eq!(Case::new("elu").input("x", &[1], &[1.0]).error(), "parameter `alpha` is missing");
    }

    #[test]
    fn gelu_has_three_modes() {
        // 0.5 x (1 + erf(x / sqrt 2)), from tables.
        let exact = Case::new("gelu").string("mode", "EXACT").input("x", &[3], &[-1.0, 0.5, 2.0]).f32().1;
        assert_close(&exact, &[-0.158_655_25, 0.345_731_23, 1.954_499_7], 1e-6);
        check(Case::new("gelu").string("mode", "TANH_APPROXIMATION"), |x| {
            0.5 * x * (1.0 + ((2.0 / std::f32::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())
        });
        check(Case::new("gelu").string("mode", "SIGMOID_APPROXIMATION"), |x| x / (1.0 + (-1.702 * x).exp()));
        let error = Case::new("gelu").string("mode", "FAST").input("x", &[1], &[1.0]).error();
        assert!(error.contains("`FAST`"), "{error}");
    }

    #[test]
    fn parameters_per_channel_go_to_their_channel() {
        let x = [-1.0, 2.0, -3.0, 4.0];
        let case = Case::new("prelu").input("x", &[1, 2, 2], &x).floats("alpha", &[2], &[0.1, 0.5]);
        assert_close(&case.f32().1, &[-0.1, 2.0, -1.5, 4.0], 1e-6);
        let case = Case::new("softplus_parametric")
            .input("x", &[1, 2, 2], &x)
            .floats("alpha", &[2], &[2.0, 1.0])
            .floats("beta", &[2], &[1.0, 0.5]);
        let soft = |x: f32| (1.0 + x.exp()).ln();
        assert_close(&case.f32().1, &[2.0 * soft(-1.0), 2.0 * soft(2.0), soft(-1.5), soft(2.0)], 1e-6);
        let error = Case::new("prelu").input("x", &[1, 2, 2], &x).floats("alpha", &[3], &[0.0; 3]).error();
        assert_eq!(error, "3 parameters for shape [1, 2, 2]");
    }

    #[test]
    fn softmax_works_along_any_axis_and_keeps_the_shape() {
        let x = [1.0, 2.0, 3.0, 1000.0, 1000.0, -1000.0];
        let row = |v: &[f32]| -> Vec<f32> {
            let most = v.iter().copied().fold(f32::MIN, f32::max);
            let e: Vec<f32> = v.iter().map(|x| (x - most).exp()).collect();
            e.iter().map(|x| x / e.iter().sum::<f32>()).collect()
        };
        let last = Case::new("softmax").input("x", &[2, 3], &x).f32();
        assert_eq!(last.0, [2, 3]);
        assert_close(&last.1, &[row(&x[..3]), row(&x[3..])].concat(), 1e-6);
        let (shape, first) = Case::new("softmax").input("x", &[2, 3], &x).int("axis", 0).f32();
        assert_eq!(shape, [2, 3]);
        for column in 0..3 {
            assert_close(&[first[column], first[3 + column]], &row(&[x[column], x[3 + column]]), 1e-6);
        }
        let error = Case::new("softmax").input("x", &[2, 3], &x).int("axis", 2).error();
        assert!(error.contains("axis 2 of a tensor of rank 2"), "{error}");
    }
}
