//! `reduction` ops.
//!
//! Semantics: coremltools, `mil/ops/defs/iOS15/reduction.py` and `iOS17/reduction.py`.

use rten_simd::SimdOp;
use rten_tensor::Tensor;
use rten_tensor::prelude::*;
use rten_vecmath as vecmath;

use super::strided::{Element, take_dense};
use super::{Kernel, OpBuilder, OpDef, Run, parameter, resolve_axis};
use crate::error::{KernelError, OpError};
use crate::ir::Opset::{Ios13, Ios17};
use crate::types::{DType, element_count};
use crate::value::{Outputs, Value, one};

pub(crate) const OPS: &[OpDef] = &[
    OpDef::new("reduce_argmax", &[Ios13, Ios17], |op| arg(op, |x, best| x > best, |x, best| x > best)),
    OpDef::new("reduce_argmin", &[Ios13, Ios17], |op| arg(op, |x, best| x < best, |x, best| x < best)),
    OpDef::new("reduce_l1_norm", &[Ios13], |op| {
        reduce(
            op,
            |v| Ok(vecmath::SumAbs::new(v).dispatch()),
            |v| Ok(sum(v.iter().map(|x| x.wrapping_abs()))),
        )
    }),
    OpDef::new("reduce_l2_norm", &[Ios13], |op| {
        reduce(op, |v| Ok(vecmath::SumSquare::new(v).dispatch().sqrt()), |v| Ok(squares(v).sqrt() as i32))
    }),
    OpDef::new("reduce_log_sum", &[Ios13], |op| {
        reduce(op, |v| Ok(vecmath::Sum::new(v).dispatch().ln()), |v| Ok((total(v) as f64).ln() as i32))
    }),
    OpDef::new("reduce_log_sum_exp", &[Ios13], |op| reduce(op, |v| Ok(log_sum_exp(v)), int_log_sum_exp)),
    OpDef::new("reduce_max", &[Ios13], |op| {
        reduce(op, |v| extreme(v, |x, best| x > best), |v| v.iter().copied().max().ok_or_else(empty))
    }),
    OpDef::new("reduce_mean", &[Ios13], |op| {
        reduce(
            op,
            |v| Ok(vecmath::Sum::new(v).dispatch() / v.len() as f32),
            |v| total(v).checked_div(v.len() as i64).map(|mean| mean as i32).ok_or_else(empty),
        )
    }),
    OpDef::new("reduce_min", &[Ios13], |op| {
        reduce(op, |v| extreme(v, |x, best| x < best), |v| v.iter().copied().min().ok_or_else(empty))
    }),
    OpDef::new("reduce_prod", &[Ios13], |op| {
        reduce(op, |v| Ok(v.iter().product()), |v| Ok(v.iter().fold(1, |n: i32, &x| n.wrapping_mul(x))))
    }),
    OpDef::new("reduce_sum", &[Ios13], |op| {
        reduce(op, |v| Ok(vecmath::Sum::new(v).dispatch()), |v| Ok(sum(v.iter().copied())))
    }),
    OpDef::new("reduce_sum_square", &[Ios13], |op| {
        reduce(
            op,
            |v| Ok(vecmath::SumSquare::new(v).dispatch()),
            |v| Ok(sum(v.iter().map(|x| x.wrapping_mul(*x)))),
        )
    }),
];

fn empty() -> KernelError {
    KernelError::shape("a reduction over no elements has no value")
}

fn sum(values: impl Iterator<Item = i32>) -> i32 {
    values.fold(0, i32::wrapping_add)
}

fn total(values: &[i32]) -> i64 {
    values.iter().map(|&x| i64::from(x)).sum()
}

fn squares(values: &[i32]) -> f64 {
    values.iter().map(|&x| f64::from(x) * f64::from(x)).sum()
}

/// Subtracting the greatest element first, so that nothing overflows.
fn log_sum_exp(values: &[f32]) -> f32 {
    let most = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if !most.is_finite() {
        return if values.iter().any(|x| x.is_nan()) { f32::NAN } else { most };
    }
    most + values.iter().map(|x| (x - most).exp()).sum::<f32>().ln()
}

fn int_log_sum_exp(values: &[i32]) -> Result<i32, KernelError> {
    let floats: Vec<f32> = values.iter().map(|&x| x as f32).collect();
    Ok(log_sum_exp(&floats) as i32)
}

/// The greatest or least element; NaN wins, as in NumPy.
fn extreme(values: &[f32], better: fn(f32, f32) -> bool) -> Result<f32, KernelError> {
    let (&first, rest) = values.split_first().ok_or_else(empty)?;
    Ok(rest.iter().fold(first, |best, &x| if better(x, best) || x.is_nan() { x } else { best }))
}

/// Axes in order, without repetition, and the shape of the result.
fn resolve(
    axes: Option<&[i32]>,
    shape: &[usize],
    keep: bool,
) -> Result<(Vec<usize>, Vec<usize>), KernelError> {
    let rank = shape.len();
    let mut axes = match axes {
        Some(axes) => axes.iter().map(|&axis| resolve_axis(axis, rank)).collect::<Result<Vec<_>, _>>()?,
        None => (0..rank).collect(),
    };
    axes.sort_unstable();
    axes.dedup();
    let result = (0..rank)
        .filter(|axis| keep || !axes.contains(axis))
        .map(|axis| if axes.contains(&axis) { 1 } else { shape[axis] })
        .collect();
    Ok((axes, result))
}

/// The input with the reduced axes last, dense.
fn rows(run: &mut Run<'_, '_>, slot: usize, axes: &[usize]) -> Result<Value, KernelError> {
    let rank = run.any(slot)?.shape().len();
    let order: Vec<usize> =
        (0..rank).filter(|axis| !axes.contains(axis)).chain(axes.iter().copied()).collect();
    if order.is_sorted() {
        return take_dense(run, slot);
    }
    Ok(match run.take(slot)? {
        Value::F32(tensor) => {
            let mut tensor = tensor.into_permuted(&order);
            tensor.make_contiguous_in(run.pool());
            Value::F32(tensor)
        }
        Value::I32(tensor) => {
            let mut tensor = tensor.into_permuted(&order);
            tensor.make_contiguous_in(run.pool());
            Value::I32(tensor)
        }
    })
}

/// `f` of every row of `length` elements.
fn each_row<T: Element, U: Element>(
    run: &Run<'_, '_>,
    tensor: &Tensor<T>,
    length: usize,
    shape: &[usize],
    f: impl Fn(&[T]) -> Result<U, KernelError>,
) -> Result<Value, KernelError> {
    let count = run.check_size(shape)?;
    let mut data = run.buffer::<U>(shape)?;
    let source = tensor.data().unwrap_or(&[]);
    for i in 0..count {
        let row = source.get(i * length..(i + 1) * length).ok_or_else(empty)?;
        data.push(f(row)?);
    }
    Ok(U::value(Tensor::from_data(shape, data)))
}

fn reduce(
    op: &mut OpBuilder<'_>,
    float: impl Fn(&[f32]) -> Result<f32, KernelError> + Send + Sync + 'static,
    int: impl Fn(&[i32]) -> Result<i32, KernelError> + Send + Sync + 'static,
) -> Result<Kernel, OpError> {
    let x = op.input("x")?;
    let axes = op.ints_opt("axes")?;
    let keep = op.bool("keep_dims", false)?;
    if let (Some(axes), Some(rank)) = (&axes, x.rank()) {
        for &axis in axes {
            resolve_axis(axis, rank).map_err(|e| parameter("axes", e.to_string()))?;
        }
    }
    Ok(Box::new(move |run| {
        let full = run.any(x.slot)?.shape().to_vec();
        let (axes, shape) = resolve(axes.as_deref(), &full, keep)?;
        let length = element_count(&axes.iter().map(|&axis| full[axis]).collect::<Vec<_>>()).unwrap_or(0);
        let value = rows(run, x.slot, &axes)?;
        let made = match &value {
            Value::F32(tensor) => each_row(run, tensor, length, &shape, &float)?,
            Value::I32(tensor) => each_row(run, tensor, length, &shape, &int)?,
        };
        run.recycle(value);
        Ok(one(made))
    }))
}

/// Index of the best element along one axis; of equals, the first; NaN is best, as in NumPy.
fn arg(
    op: &mut OpBuilder<'_>,
    float: fn(f32, f32) -> bool,
    int: fn(i32, i32) -> bool,
) -> Result<Kernel, OpError> {
    let x = op.input("x")?;
    let axis = op.axis("axis", Some(-1), x.rank())?;
    let keep = op.bool("keep_dims", false)?;
    let dtype = if op.opset() >= Ios17 { op.string("output_dtype", "int32")? } else { "int32".to_owned() };
    let narrow = match DType::from_name(&dtype) {
        Some(DType::I32) => i32::MAX as usize,
        Some(DType::U16) => usize::from(u16::MAX),
        _ => return Err(parameter("output_dtype", format!("expected int32 or uint16, found `{dtype}`"))),
    };
    Ok(Box::new(move |run| {
        let full = run.any(x.slot)?.shape().to_vec();
        let axis = axis.of(full.len())?;
        if full[axis] > narrow {
            return Err(KernelError::value(format!(
                "an index into {} elements does not fit {dtype}",
                full[axis]
            )));
        }
        let signed = i32::try_from(axis).unwrap_or(i32::MAX);
        let (axes, shape) = resolve(Some(&[signed]), &full, keep)?;
        let value = rows(run, x.slot, &axes)?;
        let made = match &value {
            Value::F32(tensor) => each_row(run, tensor, full[axis], &shape, |row: &[f32]| {
                best(row, |x, best| float(x, best) || (x.is_nan() && !best.is_nan()))
            })?,
            Value::I32(tensor) => each_row(run, tensor, full[axis], &shape, |row: &[i32]| best(row, int))?,
        };
        run.recycle(value);
        Ok::<Outputs, _>(one(made))
    }))
}

fn best<T: Copy>(row: &[T], better: impl Fn(T, T) -> bool) -> Result<i32, KernelError> {
    let (&first, rest) = row.split_first().ok_or_else(empty)?;
    let mut found = (0, first);
    for (i, &x) in rest.iter().enumerate() {
        if better(x, found.1) {
            found = (i + 1, x);
        }
    }
    Ok(i32::try_from(found.0).unwrap_or(i32::MAX))
}

#[cfg(test)]
mod tests {
    use crate::ir::Opset::{Ios16, Ios17};
    use crate::ops::testing::{Case, assert_close};

    const X: [f32; 12] = [1.0, -2.0, 3.0, 0.5, 4.0, -1.0, 2.5, 0.25, -3.0, 1.5, 2.0, -0.5];

    /// Elements of `[2, 3, 2]` with the middle index `m` free.
    fn middle(i: usize, k: usize) -> Vec<f32> {
        (0..3).map(|m| X[i * 6 + m * 2 + k]).collect()
    }

    #[test]
    fn reductions_over_any_axes_are_their_functions() {
        type Reduction = fn(&[f32]) -> f32;
        let cases: &[(&'static str, Reduction)] = &[
            ("reduce_sum", |v| v.iter().sum()),
            ("reduce_mean", |v| v.iter().sum::<f32>() / v.len() as f32),
            ("reduce_prod", |v| v.iter().product()),
            ("reduce_max", |v| v.iter().copied().fold(f32::MIN, f32::max)),
            ("reduce_min", |v| v.iter().copied().fold(f32::MAX, f32::min)),
            ("reduce_l1_norm", |v| v.iter().map(|x| x.abs()).sum()),
            ("reduce_l2_norm", |v| v.iter().map(|x| x * x).sum::<f32>().sqrt()),
            ("reduce_sum_square", |v| v.iter().map(|x| x * x).sum()),
            ("reduce_log_sum_exp", |v| v.iter().map(|x| x.exp()).sum::<f32>().ln()),
        ];
        for (name, f) in cases {
            let (shape, data) = Case::new(name).input("x", &[2, 3, 2], &X).ints("axes", &[1]).f32();
            assert_eq!(shape, [2, 2], "{name}");
            let expected: Vec<f32> = [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(i, k)| f(&middle(i, k))).to_vec();
            assert_close(&data, &expected, 1e-5);

            let kept =
                Case::new(name).input("x", &[2, 3, 2], &X).ints("axes", &[-1, 1]).bool("keep_dims", true);
            let (shape, data) = kept.f32();
            assert_eq!(shape, [2, 1, 1], "{name}");
            assert_close(&data, &[f(&X[..6]), f(&X[6..])], 1e-5);

            let (shape, data) = Case::new(name).input("x", &[2, 3, 2], &X).f32();
            assert_eq!(shape, [] as [usize; 0], "{name}");
            assert_close(&data, &[f(&X)], 1e-5);
        }
        let positive = [1.0, 2.0, 3.0, 4.0];
        let data = Case::new("reduce_log_sum").input("x", &[2, 2], &positive).ints("axes", &[0]).f32().1;
        assert_close(&data, &[4.0_f32.ln(), 6.0_f32.ln()], 1e-6);
    }

    #[test]
    fn the_type_of_an_index_is_asked_for_since_ios_17() {
        for name in ["reduce_argmax", "reduce_argmin"] {
            let case = |opset| {
                let case = Case::in_opset(name, opset).input("x", &[2], &[1.0, 1.0]);
                case.string("output_dtype", "uint16")
            };
            assert_eq!(case(Ios17).i32().1, [0]);
            assert_eq!(case(Ios16).error(), "unknown parameter `output_dtype` in opset iOS16");
        }
    }

    #[test]
    fn integers_are_exact() {
        let x = [1 << 24, 1, -5, 7];
        let int = |name| Case::new(name).input_i32("x", &[2, 2], &x).ints("axes", &[1]).i32().1;
        assert_eq!(int("reduce_sum"), [(1 << 24) + 1, 2]);
        assert_eq!(int("reduce_max"), [1 << 24, 7]);
        assert_eq!(int("reduce_min"), [1, -5]);
        assert_eq!(int("reduce_mean"), [1 << 23, 1]);
        assert_eq!(int("reduce_prod"), [1 << 24, -35]);
    }

    #[test]
    fn arg_takes_the_first_of_equals() {
        let x = [3.0, 5.0, 5.0, -1.0, -1.0, 2.0];
        let case = |name| Case::new(name).input("x", &[2, 3], &x);
        assert_eq!(case("reduce_argmax").i32(), (vec![2], vec![1, 2]));
        assert_eq!(case("reduce_argmin").i32(), (vec![2], vec![0, 0]));
        let kept =
            case("reduce_argmax").int("axis", 0).bool("keep_dims", true).string("output_dtype", "uint16");
        assert_eq!(kept.i32(), (vec![1, 3], vec![0, 0, 0]));
    }

    #[test]
    fn nan_is_the_greatest_and_the_least() {
        let x = [1.0, f32::NAN, 3.0];
        assert!(Case::new("reduce_max").input("x", &[3], &x).f32().1[0].is_nan());
        assert_eq!(Case::new("reduce_argmin").input("x", &[3], &x).i32().1, [1]);
    }

    #[test]
    fn nothing_sums_to_zero_and_has_no_maximum() {
        let (shape, data) = Case::new("reduce_sum").input("x", &[2, 0], &[]).ints("axes", &[1]).f32();
        assert_eq!((shape, data), (vec![2], vec![0.0, 0.0]));
        let error = Case::new("reduce_max").input("x", &[2, 0], &[]).ints("axes", &[1]).error();
        assert!(error.contains("no elements"), "{error}");
        let error = Case::new("reduce_sum").input("x", &[2], &X[..2]).ints("axes", &[1]).error();
        assert!(error.contains("axis 1 of a tensor of rank 1"), "{error}");
    }
}
