//! `elementwise_unary` ops: one tensor in, one of the same shape out.
//!
//! Semantics: coremltools, `mil/ops/defs/iOS15/elementwise_unary.py` and `iOS17/elementwise_unary.py`.

use rayon::prelude::*;
use rten_simd::SimdUnaryOp;
use rten_tensor::Tensor;
use rten_tensor::prelude::*;
use rten_vecmath as vecmath;

use super::{Kernel, OpBuilder, OpDef, Run, parameter};
use crate::error::{KernelError, OpError};
use crate::ir::Opset::{Ios13, Ios17};
use crate::ir::round_to_halves;
use crate::types::DType;
use crate::value::{Value, one};

pub(crate) const OPS: &[OpDef] = &[
    OpDef::new("abs", &[Ios13], |op| numeric(op, f32::abs, i32::wrapping_abs)),
    OpDef::new("acos", &[Ios13], |op| float(op, f32::acos)),
    OpDef::new("asin", &[Ios13], |op| float(op, f32::asin)),
    OpDef::new("atan", &[Ios13], |op| float(op, f32::atan)),
    OpDef::new("atanh", &[Ios13], |op| float(op, f32::atanh)),
    OpDef::new("cast", &[Ios13, Ios17], cast),
    OpDef::new("ceil", &[Ios13], |op| float(op, f32::ceil)),
    OpDef::new("clip", &[Ios13, Ios17], clip),
    OpDef::new("cos", &[Ios13], |op| float(op, f32::cos)),
    OpDef::new("cosh", &[Ios13], |op| float(op, f32::cosh)),
    OpDef::new("erf", &[Ios13], |op| simd(op, vecmath::Erf {})),
    OpDef::new("exp", &[Ios13], |op| simd(op, vecmath::Exp {})),
    OpDef::new("exp2", &[Ios13], |op| numeric(op, f32::exp2, |x| f64::from(x).exp2() as i32)),
    OpDef::new("floor", &[Ios13], |op| float(op, f32::floor)),
    OpDef::new("inverse", &[Ios13, Ios17], |op| with_epsilon(op, 1e-4, f32::recip)),
    OpDef::new("log", &[Ios13, Ios17], |op| with_epsilon(op, 1e-45, f32::ln)),
    OpDef::new("logical_not", &[Ios13], logical_not),
    OpDef::new("round", &[Ios13], |op| float(op, f32::round_ties_even)),
    OpDef::new("rsqrt", &[Ios13, Ios17], |op| with_epsilon(op, 1e-12, |x| x.sqrt().recip())),
    OpDef::new("sign", &[Ios13], |op| numeric(op, sign, i32::signum)),
    OpDef::new("sin", &[Ios13], |op| float(op, f32::sin)),
    OpDef::new("sinh", &[Ios13], |op| float(op, f32::sinh)),
    OpDef::new("sqrt", &[Ios13], |op| float(op, f32::sqrt)),
    OpDef::new("square", &[Ios13], |op| numeric(op, |x| x * x, |x: i32| x.wrapping_mul(x))),
    OpDef::new("tan", &[Ios13], |op| float(op, f32::tan)),
    OpDef::new("tanh", &[Ios13], |op| simd(op, vecmath::Tanh {})),
    OpDef::new("threshold", &[Ios13], threshold),
];

/// Elements that one thread takes at a time; below it, one thread takes all.
pub(crate) const CHUNK: usize = 1 << 15;

/// Runs `f` on the elements, in pieces on several threads where there are many.
pub(crate) fn in_pieces<T: Send>(data: &mut [T], f: impl Fn(&mut [T]) + Send + Sync) {
    if data.len() <= CHUNK {
        f(data);
    } else {
        data.par_chunks_mut(CHUNK).for_each(f);
    }
}

/// The input as an owned dense tensor of floats.
pub(crate) fn dense(run: &mut Run<'_, '_>, slot: usize) -> Result<Tensor<f32>, KernelError> {
    let mut tensor = run.take_f32(slot)?;
    tensor.make_contiguous_in(run.pool());
    Ok(tensor)
}

/// Applies `f` to every element of a dense tensor.
fn map_in_place<T: Copy + Send>(tensor: &mut Tensor<T>, f: impl Fn(T) -> T + Send + Sync) {
    if let Some(data) = tensor.data_mut() {
        in_pieces(data, |piece| piece.iter_mut().for_each(|x| *x = f(*x)));
    }
}

/// An op on floats that is `f` on each element.
pub(crate) fn float(
    op: &mut OpBuilder<'_>,
    f: impl Fn(f32) -> f32 + Send + Sync + 'static,
) -> Result<Kernel, OpError> {
    let x = op.float_input("x", 0..=5)?;
    Ok(Box::new(move |run| {
        let mut tensor = dense(run, x.slot)?;
        map_in_place(&mut tensor, &f);
        Ok(one(tensor))
    }))
}

/// An op on floats that the vector library has.
pub(crate) fn simd(
    op: &mut OpBuilder<'_>,
    f: impl SimdUnaryOp<f32> + Send + Sync + 'static,
) -> Result<Kernel, OpError> {
    let x = op.float_input("x", 0..=5)?;
    Ok(Box::new(move |run| {
        let mut tensor = dense(run, x.slot)?;
        if let Some(data) = tensor.data_mut() {
            in_pieces(data, |piece| f.map_mut(piece));
        }
        Ok(one(tensor))
    }))
}

/// An op on floats and integers.
fn numeric(
    op: &mut OpBuilder<'_>,
    float: impl Fn(f32) -> f32 + Send + Sync + 'static,
    int: impl Fn(i32) -> i32 + Send + Sync + 'static,
) -> Result<Kernel, OpError> {
    let x = op.input("x")?;
    Ok(Box::new(move |run| {
        Ok(one(match run.take(x.slot)? {
            Value::F32(mut t) => {
                t.make_contiguous_in(run.pool());
                map_in_place(&mut t, &float);
                Value::F32(t)
            }
            Value::I32(mut t) => {
                t.make_contiguous_in(run.pool());
                map_in_place(&mut t, &int);
                Value::I32(t)
            }
        }))
    }))
}

/// `f(x + epsilon)`.
fn with_epsilon(
    op: &mut OpBuilder<'_>,
    default: f32,
    f: impl Fn(f32) -> f32 + Send + Sync + 'static,
) -> Result<Kernel, OpError> {
    let epsilon = op.float("epsilon", default)?;
    float(op, move |x| f(x + epsilon))
}

/// NumPy's sign: 0 for 0, NaN for NaN.
fn sign(x: f32) -> f32 {
    if x == 0.0 || x.is_nan() { x } else { x.signum() }
}

/// `x` within `alpha..=beta`; NaN stays NaN.
pub(crate) fn clipped(x: f32, alpha: f32, beta: f32) -> f32 {
    if x < alpha {
        alpha
    } else if x > beta {
        beta
    } else {
        x
    }
}

fn clip(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let alpha = op.float("alpha", f32::NEG_INFINITY)?;
    let beta = op.float("beta", f32::INFINITY)?;
    numeric(
        op,
        move |x| clipped(x, alpha, beta),
        // The bounds of an integer clip are integers, which `as` keeps; infinite ones saturate.
        move |x| x.max(alpha as i32).min(beta as i32),
    )
}

fn threshold(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let alpha = op.float_opt("alpha")?.ok_or(OpError::Missing("alpha"))?;
    numeric(op, move |x| if x < alpha { alpha } else { x }, move |x| x.max(alpha as i32))
}

fn logical_not(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let x = op.input("x")?;
    if x.ty.dtype != DType::Bool {
        return Err(parameter("x", format!("expected booleans, found {}", x.ty)));
    }
    Ok(Box::new(move |run| {
        let mut tensor = run.take_i32(x.slot)?;
        tensor.make_contiguous_in(run.pool());
        map_in_place(&mut tensor, |x| i32::from(x == 0));
        Ok(one(tensor))
    }))
}

/// To another type: floats to integers toward zero (saturating at 32 bits, wrapping below), to float16 rounded to nearest even.
fn cast(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let x = op.input("x")?;
    let name = op.string_opt("dtype")?.ok_or(OpError::Missing("dtype"))?;
    let dtype = DType::from_name(&name)
        .filter(|&dtype| dtype != DType::String)
        .ok_or_else(|| parameter("dtype", format!("`{name}` is not a type to cast to")))?;
    let narrow: fn(i32) -> i32 = match dtype {
        DType::Bool => |x| i32::from(x != 0),
        DType::I8 => |x| i32::from(x as i8),
        DType::U8 => |x| i32::from(x as u8),
        DType::I16 => |x| i32::from(x as i16),
        DType::U16 => |x| i32::from(x as u16),
        DType::I32 | DType::I64 | DType::F16 | DType::F32 | DType::F64 => |x| x,
        other => return Err(OpError::Unsupported(format!("casting to {other}"))),
    };
    if matches!(dtype, DType::I8 | DType::U8 | DType::I16 | DType::U16) && op.opset() < Ios17 {
        return Err(parameter("dtype", format!("{dtype} needs opset iOS17, found {}", op.opset().name())));
    }
    let round = dtype == DType::F16 && x.ty.dtype != DType::F16;
    Ok(Box::new(move |run| {
        let value = run.take(x.slot)?;
        Ok(one(match (value, dtype.is_float()) {
            (Value::F32(tensor), true) if !round => Value::F32(tensor),
            (Value::F32(mut tensor), true) => {
                tensor.make_contiguous_in(run.pool());
                if let Some(data) = tensor.data_mut() {
                    in_pieces(data, round_to_halves);
                }
                Value::F32(tensor)
            }
            (Value::I32(mut tensor), false) => {
                tensor.make_contiguous_in(run.pool());
                map_in_place(&mut tensor, narrow);
                Value::I32(tensor)
            }
            (Value::F32(tensor), false) => {
                let mut data = run.buffer::<i32>(tensor.shape())?;
                if dtype == DType::Bool {
                    data.extend(tensor.iter().map(|&x| i32::from(x != 0.0)));
                } else {
                    data.extend(tensor.iter().map(|&x| narrow(x as i32)));
                }
                let made = Value::I32(Tensor::from_data(tensor.shape(), data));
                run.recycle(tensor);
                made
            }
            (Value::I32(tensor), true) => {
                let mut data = run.buffer::<f32>(tensor.shape())?;
                data.extend(tensor.iter().map(|&x| x as f32));
                if round {
                    round_to_halves(&mut data);
                }
                let made = Value::F32(Tensor::from_data(tensor.shape(), data));
                run.recycle(tensor);
                made
            }
        }))
    }))
}

#[cfg(test)]
mod tests {
    use rten_tensor::prelude::*;

    use crate::ir::Opset;
    use crate::ops::testing::{Case, assert_close};
    use crate::types::DType;
    use crate::value::Value;

    const X: [f32; 6] = [-1.75, -0.5, 0.0, 0.25, 0.5, 2.5];

    /// Each op of one tensor and no parameter against the standard library, element by element.
    #[test]
    fn ops_of_one_tensor_are_their_functions() {
        let cases: &[(&'static str, fn(f32) -> f32)] = &[
            ("abs", f32::abs),
            ("atan", f32::atan),
            ("ceil", f32::ceil),
            ("cos", f32::cos),
            ("cosh", f32::cosh),
            ("exp", f32::exp),
            ("exp2", f32::exp2),
            ("floor", f32::floor),
            ("round", f32::round_ties_even),
            ("sin", f32::sin),
            ("sinh", f32::sinh),
            ("square", |x| x * x),
            ("tan", f32::tan),
            ("tanh", f32::tanh),
            ("sign", |x| if x == 0.0 { 0.0 } else { x.signum() }),
        ];
        for (name, f) in cases {
            let (shape, found) = Case::new(name).input("x", &[2, 3], &X).f32();
            assert_eq!(shape, [2, 3], "{name}");
            assert_close(&found, &X.map(f), 2e-6);
        }
        let inside = [-0.9, -0.5, 0.0, 0.25, 0.5, 0.75];
        for (name, f) in [("acos", f32::acos as fn(f32) -> f32), ("asin", f32::asin), ("atanh", f32::atanh)] {
            assert_close(&Case::new(name).input("x", &[6], &inside).f32().1, &inside.map(f), 1e-6);
        }
        let positive = [0.25, 0.5, 1.0, 2.0, 9.0, 100.0];
        assert_close(&Case::new("sqrt").input("x", &[6], &positive).f32().1, &positive.map(f32::sqrt), 1e-6);
    }

    #[test]
    fn erf_agrees_with_tabulated_values() {
        let data = Case::new("erf").input("x", &[4], &[-1.0, 0.0, 0.5, 2.0]).f32().1;
        assert_close(&data, &[-0.842_700_8, 0.0, 0.520_499_9, 0.995_322_3], 1e-6);
    }

    #[test]
    fn epsilons_are_added_to_the_argument() {
        let x = [0.5, 4.0];
        let inverse = Case::new("inverse").input("x", &[2], &x).float("epsilon", 0.5).f32().1;
        assert_close(&inverse, &[1.0, 1.0 / 4.5], 1e-6);
        let rsqrt = Case::new("rsqrt").input("x", &[2], &x).float("epsilon", 0.5).f32().1;
        assert_close(&rsqrt, &[1.0, 4.5_f32.sqrt().recip()], 1e-6);
        let log = Case::new("log").input("x", &[2], &x).float("epsilon", 0.5).f32().1;
        assert_close(&log, &[0.0, 4.5_f32.ln()], 1e-6);
        assert_close(&Case::new("inverse").input("x", &[1], &[0.0]).f32().1, &[1e4], 1e-4);
    }

    #[test]
    fn integers_stay_integers() {
        assert_eq!(Case::new("abs").input_i32("x", &[2], &[-1, 2]).i32().1, [1, 2]);
        assert_eq!(Case::new("abs").input_i32("x", &[1], &[i32::MIN]).i32().1, [i32::MIN]);
        assert_eq!(Case::new("square").input_i32("x", &[2], &[-3, 1 << 20]).i32().1, [9, 0]);
        assert_eq!(Case::new("sign").input_i32("x", &[3], &[-7, 0, 9]).i32().1, [-1, 0, 1]);
        assert_eq!(Case::new("exp2").input_i32("x", &[2], &[0, 10]).i32().1, [1, 1024]);
        assert_eq!(Case::new("threshold").input_i32("x", &[2], &[-3, 5]).float("alpha", 1.0).i32().1, [1, 5]);
    }

    #[test]
    fn clip_keeps_nan_and_threshold_is_a_lower_bound() {
        let data = Case::new("clip")
            .input("x", &[4], &[-2.0, 0.5, 9.0, f32::NAN])
            .float("alpha", -1.0)
            .float("beta", 1.0)
            .f32()
            .1;
        assert_eq!(data[..3], [-1.0, 0.5, 1.0]);
        assert!(data[3].is_nan());
        assert_eq!(
            Case::new("threshold").input("x", &[2], &[-3.0, 5.0]).float("alpha", 1.5).f32().1,
            [1.5, 5.0]
        );
    }

    #[test]
    fn cast_truncates_wraps_and_rounds() {
        let int =
            |x: &[f32], name: &str| Case::new("cast").input("x", &[x.len()], x).string("dtype", name).i32().1;
        assert_eq!(int(&[-1.9, 1.9, f32::NAN, 3e9], "int32"), [-1, 1, 0, i32::MAX]);
        assert_eq!(int(&[0.0, -0.5, 2.0], "bool"), [0, 1, 1]);
        assert_eq!(int(&[300.0, -1.0], "uint8"), [44, 255]);
        assert_eq!(int(&[200.0, -129.0], "int8"), [-56, 127]);
        let half = Case::new("cast").input("x", &[2], &[0.1, 65536.0]).string("dtype", "fp16");
        match half.run(&[DType::F16]).unwrap().remove(0) {
            Value::F32(t) => assert_eq!(t.to_vec(), [0.099_975_586, f32::INFINITY]),
            Value::I32(_) => panic!("integers"),
        }
        assert_eq!(Case::new("cast").input_i32("x", &[1], &[7]).string("dtype", "fp32").f32().1, [7.0]);
        let error = Case::new("cast").input("x", &[1], &[7.0]).string("dtype", "complex").error();
        assert!(error.contains("`complex` is not a type to cast to"), "{error}");
        let error =
            Case::in_opset("cast", Opset::Ios16).input("x", &[1], &[7.0]).string("dtype", "int8").error();
        assert_eq!(error, "parameter `dtype`: int8 needs opset iOS17, found iOS16");
    }

    #[test]
    fn logical_not_takes_booleans_only() {
        let error = Case::new("logical_not").input("x", &[1], &[1.0]).error();
        assert!(error.contains("expected booleans"), "{error}");
    }

    #[test]
    fn a_parameter_that_the_op_does_not_have_is_refused() {
        let error = Case::new("abs").input("x", &[1], &[1.0]).float("alpha", 1.0).error();
        assert_eq!(error, "unknown parameter `alpha` in opset iOS17");
    }

    #[test]
    fn many_elements_are_shared_out_among_threads() {
        let x: Vec<f32> = (0..100_000).map(|i| i as f32 * 1e-4).collect();
        let expected: Vec<f32> = x.iter().map(|x| x.exp()).collect();
        assert_close(&Case::new("exp").input("x", &[100_000], &x).f32().1, &expected, 1e-5);
    }
}
