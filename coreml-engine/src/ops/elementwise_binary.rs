//! `elementwise_binary` ops: two tensors in, broadcast against each other as NumPy does it.
//!
//! Semantics: coremltools, `mil/ops/defs/iOS15/elementwise_binary.py`.

use rayon::prelude::*;
use rten_tensor::prelude::*;
use rten_tensor::{Tensor, TensorView};

use super::elementwise_unary::CHUNK;
use super::strided::{Element, broadcast_shape};
use super::{Kernel, OpBuilder, OpDef, Run};
use crate::error::{KernelError, OpError};
use crate::ir::Opset::Ios13;
use crate::value::{Outputs, ValueView, one};

pub(crate) const OPS: &[OpDef] = &[
    OpDef::new("add", &[Ios13], |op| arithmetic(op, |x, y| x + y, i32::wrapping_add)),
    OpDef::new("equal", &[Ios13], |op| comparison(op, |x, y| x == y, |x, y| x == y)),
    OpDef::new("floor_div", &[Ios13], |op| arithmetic(op, |x, y| (x / y).floor(), floor_div)),
    OpDef::new("greater", &[Ios13], |op| comparison(op, |x, y| x > y, |x, y| x > y)),
    OpDef::new("greater_equal", &[Ios13], |op| comparison(op, |x, y| x >= y, |x, y| x >= y)),
    OpDef::new("less", &[Ios13], |op| comparison(op, |x, y| x < y, |x, y| x < y)),
    OpDef::new("less_equal", &[Ios13], |op| comparison(op, |x, y| x <= y, |x, y| x <= y)),
    OpDef::new("logical_and", &[Ios13], |op| logical(op, |x, y| x & y)),
    OpDef::new("logical_or", &[Ios13], |op| logical(op, |x, y| x | y)),
    OpDef::new("logical_xor", &[Ios13], |op| logical(op, |x, y| x ^ y)),
    OpDef::new("maximum", &[Ios13], |op| arithmetic(op, maximum, i32::max)),
    OpDef::new("minimum", &[Ios13], |op| arithmetic(op, minimum, i32::min)),
    OpDef::new("mod", &[Ios13], |op| arithmetic(op, float_mod, int_mod)),
    OpDef::new("mul", &[Ios13], |op| arithmetic(op, |x, y| x * y, i32::wrapping_mul)),
    OpDef::new("not_equal", &[Ios13], |op| comparison(op, |x, y| x != y, |x, y| x != y)),
    OpDef::new("pow", &[Ios13], |op| arithmetic(op, pow, |x, y| f64::from(x).powf(f64::from(y)) as i32)),
    OpDef::new("real_div", &[Ios13], real_div),
    OpDef::new("sub", &[Ios13], |op| arithmetic(op, |x, y| x - y, i32::wrapping_sub)),
];

/// NaN wins, as in NumPy.
fn maximum(x: f32, y: f32) -> f32 {
    if x > y || x.is_nan() { x } else { y }
}

/// NaN wins, as in NumPy.
fn minimum(x: f32, y: f32) -> f32 {
    if x < y || x.is_nan() { x } else { y }
}

/// Squares and roots are common and exact.
fn pow(x: f32, y: f32) -> f32 {
    if y == 2.0 { x * x } else { x.powf(y) }
}

/// Toward minus infinity, as Python's `//`; 0 for a division by zero, as NumPy has it.
fn floor_div(x: i32, y: i32) -> i32 {
    let quotient = x.checked_div(y).unwrap_or(if y == 0 { 0 } else { i32::MIN });
    let inexact = y != 0 && x.wrapping_rem(y) != 0;
    if inexact && (x < 0) != (y < 0) { quotient - 1 } else { quotient }
}

/// With the sign of the divisor, as Python's `%`; 0 for a division by zero, as NumPy has it.
fn int_mod(x: i32, y: i32) -> i32 {
    let rest = if y == 0 { 0 } else { x.wrapping_rem(y) };
    if rest != 0 && (rest < 0) != (y < 0) { rest + y } else { rest }
}

/// With the sign of the divisor, as Python's `%`.
fn float_mod(x: f32, y: f32) -> f32 {
    let rest = x % y;
    if rest != 0.0 && (rest < 0.0) != (y < 0.0) { rest + y } else { rest }
}

/// How the elements of a smaller tensor meet those of a dense one of the full shape: element `i` of the dense one meets
/// element `i / inner % count`.
struct Blocks {
    count: usize,
    inner: usize,
}

impl Blocks {
    /// If `small` is, but for ones at both ends, a run of the dimensions of `full`.
    fn of(full: &[usize], small: &[usize]) -> Option<Self> {
        let lead = full.len().checked_sub(small.len())?;
        let first = small.iter().position(|&n| n != 1).unwrap_or(small.len());
        let last = small.iter().rposition(|&n| n != 1).map_or(first, |last| last + 1);
        (full[lead + first..lead + last] == small[first..last]).then(|| Self {
            count: small[first..last].iter().product(),
            inner: full[lead + last..].iter().product(),
        })
    }

    /// `f(element, other)` for every element of `data`, which is dense and of the full shape.
    fn apply<T: Element>(&self, data: &mut [T], other: &[T], f: impl Fn(&mut T, T) + Send + Sync) {
        let Self { count, inner } = *self;
        if data.is_empty() || count == 0 || inner == 0 {
            return;
        }
        // Pieces are whole rows of the smaller tensor, so that each begins with its first element.
        let row = count * inner;
        let piece = row.saturating_mul((CHUNK / row).max(1));
        let on_piece = |piece: &mut [T]| {
            if inner == 1 {
                for row in piece.chunks_mut(count) {
                    row.iter_mut().zip(other).for_each(|(x, &y)| f(x, y));
                }
            } else {
                for (block, &y) in piece.chunks_mut(inner).zip(other.iter().cycle()) {
                    block.iter_mut().for_each(|x| f(x, y));
                }
            }
        };
        if data.len() <= CHUNK {
            on_piece(data);
        } else if row == data.len() && inner == 1 {
            // One row of the same size: any cut will do.
            data.par_chunks_mut(CHUNK).zip(other.par_chunks(CHUNK)).for_each(|(data, other)| {
                data.iter_mut().zip(other).for_each(|(x, &y)| f(x, y));
            });
        } else {
            data.par_chunks_mut(piece).for_each(on_piece);
        }
    }
}

/// Either run-time type, with the ways to read an input of it.
trait Typed: Element {
    fn view<'a>(run: &'a Run<'_, '_>, slot: usize) -> Result<TensorView<'a, Self>, KernelError>;
    fn take(run: &mut Run<'_, '_>, slot: usize) -> Result<Tensor<Self>, KernelError>;
}

impl Typed for f32 {
    fn view<'a>(run: &'a Run<'_, '_>, slot: usize) -> Result<TensorView<'a, Self>, KernelError> {
        run.f32(slot)
    }

    fn take(run: &mut Run<'_, '_>, slot: usize) -> Result<Tensor<Self>, KernelError> {
        run.take_f32(slot)
    }
}

impl Typed for i32 {
    fn view<'a>(run: &'a Run<'_, '_>, slot: usize) -> Result<TensorView<'a, Self>, KernelError> {
        run.i32(slot)
    }

    fn take(run: &mut Run<'_, '_>, slot: usize) -> Result<Tensor<Self>, KernelError> {
        run.take_i32(slot)
    }
}

/// `f` on all pairs: in place of an input that has the shape of the result, where the other lies in blocks.
fn zip<T: Typed>(
    run: &mut Run<'_, '_>,
    [x, y]: [usize; 2],
    f: impl Fn(T, T) -> T + Send + Sync + Copy,
) -> Result<Outputs, KernelError> {
    let (x_shape, y_shape) = (T::view(run, x)?.shape().to_vec(), T::view(run, y)?.shape().to_vec());
    let shape = broadcast_shape(&[&x_shape, &y_shape])?;
    run.check_size(&shape)?;
    if x_shape == shape
        && let Some(blocks) = Blocks::of(&shape, &y_shape)
    {
        return in_place(run, x, y, &blocks, move |x, y| *x = f(*x, y));
    }
    if y_shape == shape
        && let Some(blocks) = Blocks::of(&shape, &x_shape)
    {
        return in_place(run, y, x, &blocks, move |y, x| *y = f(x, *y));
    }
    pairs(run, [x, y], &shape, f)
}

/// Changes the input `full` in place by that of the smaller one.
fn in_place<T: Typed>(
    run: &mut Run<'_, '_>,
    full: usize,
    small: usize,
    blocks: &Blocks,
    f: impl Fn(&mut T, T) + Send + Sync,
) -> Result<Outputs, KernelError> {
    let mut tensor = T::take(run, full)?;
    tensor.make_contiguous_in(run.pool());
    let other = T::view(run, small)?.to_contiguous_in(run.pool());
    if let Some(data) = tensor.data_mut() {
        blocks.apply(data, other.data(), f);
    }
    if let Some(buffer) = rten::ExtractBuffer::extract_buffer(other.into_inner()) {
        run.pool().add(buffer);
    }
    Ok(one(T::value(tensor)))
}

/// `f` on all pairs, into new memory.
fn pairs<T: Typed, U: Element>(
    run: &Run<'_, '_>,
    [x, y]: [usize; 2],
    shape: &[usize],
    f: impl Fn(T, T) -> U,
) -> Result<Outputs, KernelError> {
    let mut data = run.buffer::<U>(shape)?;
    let (x, y) = (T::view(run, x)?, T::view(run, y)?);
    match (x.data(), y.data()) {
        (Some(a), Some(b)) if x.shape() == y.shape() => data.extend(a.iter().zip(b).map(|(&a, &b)| f(a, b))),
        (Some(a), Some(&[b])) if x.shape() == shape => data.extend(a.iter().map(|&a| f(a, b))),
        _ => {
            let (x, y) = (x.broadcast(shape), y.broadcast(shape));
            data.extend(x.iter().zip(y.iter()).map(|(&a, &b)| f(a, b)));
        }
    }
    Ok(one(U::value(Tensor::from_data(shape, data))))
}

/// Both inputs are floats, or both are integers.
fn same_kind(op: &mut OpBuilder<'_>) -> Result<[usize; 2], OpError> {
    let x = op.input("x")?;
    let y = op.input("y")?;
    if x.ty.dtype.is_float() != y.ty.dtype.is_float() {
        return Err(OpError::Invalid(format!("x is {} and y is {}", x.ty, y.ty)));
    }
    Ok([x.slot, y.slot])
}

fn arithmetic(
    op: &mut OpBuilder<'_>,
    float: impl Fn(f32, f32) -> f32 + Send + Sync + Copy + 'static,
    int: impl Fn(i32, i32) -> i32 + Send + Sync + Copy + 'static,
) -> Result<Kernel, OpError> {
    let slots = same_kind(op)?;
    Ok(Box::new(move |run| match run.any(slots[0])? {
        ValueView::F32(_) => zip::<f32>(run, slots, float),
        ValueView::I32(_) => zip::<i32>(run, slots, int),
    }))
}

/// Gives booleans.
fn comparison(
    op: &mut OpBuilder<'_>,
    float: impl Fn(f32, f32) -> bool + Send + Sync + Copy + 'static,
    int: impl Fn(i32, i32) -> bool + Send + Sync + Copy + 'static,
) -> Result<Kernel, OpError> {
    let slots = same_kind(op)?;
    Ok(Box::new(move |run| {
        let shape = broadcast_shape(&[run.any(slots[0])?.shape(), run.any(slots[1])?.shape()])?;
        match run.any(slots[0])? {
            ValueView::F32(_) => pairs::<f32, i32>(run, slots, &shape, |x, y| i32::from(float(x, y))),
            ValueView::I32(_) => pairs::<i32, i32>(run, slots, &shape, |x, y| i32::from(int(x, y))),
        }
    }))
}

/// On booleans, which are 0 and 1.
fn logical(
    op: &mut OpBuilder<'_>,
    f: impl Fn(i32, i32) -> i32 + Send + Sync + Copy + 'static,
) -> Result<Kernel, OpError> {
    let slots = same_kind(op)?;
    Ok(Box::new(move |run| zip::<i32>(run, slots, move |x, y| f(i32::from(x != 0), i32::from(y != 0)))))
}

/// True division; of integers, cut off toward zero if the result is declared an integer.
fn real_div(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let slots = same_kind(op)?;
    let float = op.output_type(0)?.dtype.is_float();
    Ok(Box::new(move |run| match (run.any(slots[0])?, float) {
        (ValueView::F32(_), _) => zip::<f32>(run, slots, |x, y| x / y),
        (ValueView::I32(_), false) => zip::<i32>(run, slots, |x, y| (f64::from(x) / f64::from(y)) as i32),
        (ValueView::I32(_), true) => {
            let shape = broadcast_shape(&[run.any(slots[0])?.shape(), run.any(slots[1])?.shape()])?;
            pairs::<i32, f32>(run, slots, &shape, |x, y| (f64::from(x) / f64::from(y)) as f32)
        }
    }))
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::{Case, assert_close};

    fn ramp(n: usize) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * 0.7).sin() * 3.0).collect()
    }

    /// Element `i` of a tensor of `shape` broadcast to `full`, by the definition.
    fn broadcast(data: &[f32], shape: &[usize], full: &[usize], mut i: usize) -> f32 {
        let (mut index, mut stride) = (0, 1);
        for axis in (0..full.len()).rev() {
            let at = i % full[axis];
            i /= full[axis];
            let Some(own) = (axis + shape.len()).checked_sub(full.len()) else { continue };
            index += if shape[own] == 1 { 0 } else { at * stride };
            stride *= shape[own];
        }
        data[index]
    }

    #[test]
    fn every_way_to_broadcast_agrees_with_the_definition() {
        let shapes: &[(&[usize], &[usize], &[usize])] = &[
            (&[2, 3, 4], &[2, 3, 4], &[2, 3, 4]),
            (&[2, 3, 4], &[4], &[2, 3, 4]),
            (&[2, 3, 4], &[], &[2, 3, 4]),
            (&[], &[2, 3], &[2, 3]),
            (&[2, 3, 4], &[1, 3, 1], &[2, 3, 4]),
            (&[3, 1], &[2, 3, 4], &[2, 3, 4]),
            (&[2, 3, 4], &[2, 1, 4], &[2, 3, 4]),
            (&[2, 1], &[1, 3], &[2, 3]),
            (&[1, 1, 1, 4], &[1, 2, 3, 1], &[1, 2, 3, 4]),
            (&[0, 3], &[3], &[0, 3]),
            (&[300, 200], &[200], &[300, 200]),
            (&[2, 200, 300], &[1, 200, 1], &[2, 200, 300]),
            (&[60_000], &[60_000], &[60_000]),
        ];
        for &(x_shape, y_shape, full) in shapes {
            let (x, y) = (ramp(x_shape.iter().product()), ramp(y_shape.iter().product::<usize>() * 2));
            let y = &y[..y_shape.iter().product()];
            let (shape, found) = Case::new("sub").input("x", x_shape, &x).input("y", y_shape, y).f32();
            assert_eq!(shape, full);
            let expected: Vec<f32> = (0..full.iter().product())
                .map(|i| broadcast(&x, x_shape, full, i) - broadcast(y, y_shape, full, i))
                .collect();
            assert_close(&found, &expected, 1e-6);
        }
    }

    #[test]
    fn float_ops_are_their_functions() {
        let (x, y) = ([-7.5, -2.0, 3.0, 7.0], [2.0, 3.0, -2.0, 2.0]);
        let cases: &[(&'static str, [f32; 4])] = &[
            ("add", [-5.5, 1.0, 1.0, 9.0]),
            ("sub", [-9.5, -5.0, 5.0, 5.0]),
            ("mul", [-15.0, -6.0, -6.0, 14.0]),
            ("real_div", [-3.75, -2.0 / 3.0, -1.5, 3.5]),
            ("floor_div", [-4.0, -1.0, -2.0, 3.0]),
            ("mod", [0.5, 1.0, -1.0, 1.0]),
            ("maximum", [2.0, 3.0, 3.0, 7.0]),
            ("minimum", [-7.5, -2.0, -2.0, 2.0]),
            ("pow", [56.25, -8.0, 1.0 / 9.0, 49.0]),
        ];
        for (name, expected) in cases {
            let found = Case::new(name).input("x", &[4], &x).input("y", &[4], &y).f32().1;
            assert_close(&found, expected, 1e-6);
        }
    }

    #[test]
    fn integer_ops_follow_python_and_never_panic() {
        let int = |name, x: &[i32], y: &[i32]| {
            Case::new(name).input_i32("x", &[x.len()], x).input_i32("y", &[y.len()], y).i32().1
        };
        assert_eq!(int("floor_div", &[-7, 7, -7, 6], &[2, -2, -2, 3]), [-4, -4, 3, 2]);
        assert_eq!(int("mod", &[-7, 7, -7, 6], &[2, -2, -2, 3]), [1, -1, -1, 0]);
        assert_eq!(int("floor_div", &[5, i32::MIN], &[0, -1]), [0, i32::MIN]);
        assert_eq!(int("mod", &[5, i32::MIN], &[0, -1]), [0, 0]);
        assert_eq!(int("real_div", &[7, -7], &[2, 2]), [3, -3]);
        assert_eq!(int("add", &[i32::MAX], &[1]), [i32::MIN]);
        assert_eq!(int("pow", &[3, 2], &[4, -1]), [81, 0]);
    }

    #[test]
    fn comparisons_give_booleans_and_nan_compares_as_unequal() {
        let (x, y) = ([1.0, 2.0, 3.0, f32::NAN], [2.0, 2.0, 2.0, 2.0]);
        let cases: &[(&'static str, [i32; 4])] = &[
            ("equal", [0, 1, 0, 0]),
            ("not_equal", [1, 0, 1, 1]),
            ("less", [1, 0, 0, 0]),
            ("less_equal", [1, 1, 0, 0]),
            ("greater", [0, 0, 1, 0]),
            ("greater_equal", [0, 1, 1, 0]),
        ];
        for (name, expected) in cases {
            assert_eq!(Case::new(name).input("x", &[4], &x).input("y", &[4], &y).i32().1, expected, "{name}");
            assert_eq!(
                Case::new(name).input("x", &[4], &x).input("y", &[], &[2.0]).i32().1,
                expected,
                "{name}"
            );
        }
        let column = Case::new("less").input_i32("x", &[2, 1], &[1, 3]).input_i32("y", &[2], &[2, 4]).i32();
        assert_eq!(column, (vec![2, 2], vec![1, 1, 0, 1]));
    }

    #[test]
    fn logical_ops_are_their_truth_tables() {
        let (x, y) = ([0, 0, 1, 1], [0, 1, 0, 1]);
        for (name, expected) in
            [("logical_and", [0, 0, 0, 1]), ("logical_or", [0, 1, 1, 1]), ("logical_xor", [0, 1, 1, 0])]
        {
            assert_eq!(Case::new(name).input_i32("x", &[4], &x).input_i32("y", &[4], &y).i32().1, expected);
        }
    }

    #[test]
    fn nan_wins_in_maximum_and_minimum() {
        for name in ["maximum", "minimum"] {
            let data =
                Case::new(name).input("x", &[2], &[f32::NAN, 1.0]).input("y", &[2], &[1.0, f32::NAN]).f32().1;
            assert!(data.iter().all(|x| x.is_nan()), "{name}");
        }
    }

    #[test]
    fn shapes_that_do_not_broadcast_are_refused() {
        let error = Case::new("add").input("x", &[2, 3], &ramp(6)).input("y", &[2], &ramp(2)).error();
        assert!(error.contains("do not broadcast"), "{error}");
        let error = Case::new("add").input("x", &[1], &[1.0]).input_i32("y", &[1], &[1]).error();
        assert!(error.contains("x is fp32[1] and y is int32[1]"), "{error}");
    }
}
