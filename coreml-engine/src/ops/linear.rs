//! `linear` ops: matrix products. A constant weight is packed once, at load.
//!
//! Semantics: coremltools, `mil/ops/defs/iOS15/linear.py`, `iOS17/linear.py` and `einsum` of
//! `iOS15/tensor_operation.py`'s sibling `linear.py`.

use std::cell::Cell;
use std::mem::MaybeUninit;

use rten::ExtractBuffer;
use rten_gemm::{
    BiasVector, GemmError, GemmExecutor, GemmInputA, GemmInputB, GemmUninitOptions, PackedBMatrix,
};
use rten_tensor::prelude::*;
use rten_tensor::{NdTensorView, Tensor, TensorView};
use rten_vecmath::ExtendInit;
use smallvec::SmallVec;

use super::{Input, Kernel, OpBuilder, OpDef, Run, parameter};
use crate::error::{KernelError, OpError};
use crate::ir::Constant;
use crate::ir::Opset::{Ios13, Ios17};
use crate::types::element_count;
use crate::value::{Value, one};

pub(crate) const OPS: &[OpDef] = &[
    OpDef::new("einsum", &[Ios13], einsum),
    OpDef::new("linear", &[Ios13, Ios17], linear),
    OpDef::new("matmul", &[Ios13, Ios17], matmul),
];

/// Of shapes and orders of axes; long enough for every tensor that Core ML has.
type Dims = SmallVec<[usize; 6]>;

/// The library's best kernel for this processor. Cheap: no memory, and the processor was asked once.
fn gemm() -> GemmExecutor<f32, f32, f32> {
    GemmExecutor::new()
}

/// The right side of a product whose contents are known at load: `[K, N]`.
pub(super) enum Weight {
    /// In the layout that the kernel reads.
    Packed(PackedBMatrix<f32>),
    /// As it is: a row times a matrix reads it once, so packing gains nothing.
    Plain(Tensor<f32>),
}

impl Weight {
    /// `matrix` is `[K, N]`; `rows` is the number of rows of the left side, if known.
    pub(super) fn new(matrix: NdTensorView<'_, f32, 2>, rows: Option<usize>) -> Self {
        if rows == Some(1) || matrix.is_empty() {
            Self::Plain(matrix.as_dyn().to_tensor())
        } else {
            Self::Packed(gemm().prepack_b(matrix))
        }
    }

    fn cols(&self) -> usize {
        match self {
            Self::Packed(b) => b.cols(),
            Self::Plain(b) => b.size(1),
        }
    }

    fn rows(&self) -> usize {
        match self {
            Self::Packed(b) => b.rows(),
            Self::Plain(b) => b.size(0),
        }
    }
}

/// `x [.., K] * weight [K, N] + bias [N]`, as `[.., N]`.
pub(super) fn product(
    run: &Run<'_, '_>,
    x: TensorView<'_, f32>,
    weight: &Weight,
    bias: Option<&[f32]>,
) -> Result<Tensor<f32>, KernelError> {
    let (inner, cols) = (weight.rows(), weight.cols());
    let Some((&k, lead)) = x.shape().split_last() else {
        return Err(KernelError::shape("a matrix product of a scalar"));
    };
    if k != inner {
        return Err(KernelError::shape(format!("x has rows of {k} elements, the weight takes {inner}")));
    }
    let shape = [lead, &[cols]].concat();
    let count = run.check_size(&shape)?;
    if count == 0 || k == 0 {
        let mut out = run.zeros::<f32>(&shape)?;
        if let (Some(bias), Some(data)) = (bias, out.data_mut()) {
            data.chunks_mut(bias.len().max(1)).for_each(|row| row.copy_from_slice(bias));
        }
        return Ok(out);
    }
    let rows = count / cols;
    let dense = x.to_contiguous_in(run.pool());
    let a = NdTensorView::from_data([rows, k], dense.data());
    let b = match weight {
        Weight::Packed(b) => GemmInputB::Packed(b),
        Weight::Plain(b) => GemmInputB::Unpacked(b.nd_view()),
    };
    let options = GemmUninitOptions { bias: bias.map(BiasVector::Row), ..GemmUninitOptions::default() };
    let out = filled(run, &shape, |memory| {
        gemm().gemm_uninit(&mut memory[..count], GemmInputA::Unpacked(a), b, options.clone())
    });
    if let Some(buffer) = dense.into_inner().extract_buffer() {
        run.pool().add(buffer);
    }
    out
}

/// `x [.., K] * weight [N, K] ^ T + bias [N]`.
fn linear(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let x = op.input("x")?;
    if x.rank().is_some_and(|rank| !(1..=5).contains(&rank)) {
        return Err(parameter("x", format!("expected rank 1 to 5, found {}", x.ty)));
    }
    let weight = op.constant("weight")?;
    let &[n, k] = weight.shape() else {
        return Err(parameter("weight", format!("expected shape [out, in], found {:?}", weight.shape())));
    };
    if let Some(Some(last)) = x.ty.shape.as_ref().and_then(|dims| dims.last().copied())
        && last != k
    {
        return Err(parameter("weight", format!("expected {last} columns for x {}, found {k}", x.ty)));
    }
    let bias = op.constant_opt("bias")?;
    if bias.as_ref().is_some_and(|bias| element_count(bias.shape()) != Some(n)) {
        return Err(parameter("bias", format!("expected {n} elements, one per row of the weight")));
    }
    if !x.ty.dtype.is_float() {
        let weight = Tensor::from_data(&[n, k], whole("weight", &weight)?);
        let bias = bias.map(|bias| whole("bias", &bias)).transpose()?;
        return Ok(Box::new(move |run| {
            let mut out = matmul_int(run, &run.i32(x.slot)?, &oriented(weight.view(), true))?;
            if let (Some(bias), Some(data)) = (&bias, out.data_mut()) {
                let pairs = data.iter_mut().zip(bias.iter().cycle());
                pairs.for_each(|(sum, &bias)| *sum = sum.wrapping_add(bias));
            }
            Ok(one(out))
        }));
    }
    let bias = bias.map(|bias| bias.to_f32()).transpose()?;
    let rows = x.ty.fixed_shape().and_then(|shape| element_count(shape.split_last()?.1));
    let elements = weight.to_f32()?;
    let weight = Weight::new(NdTensorView::from_data([n, k], &elements[..]).transposed(), rows);
    Ok(Box::new(move |run| {
        let out = product(run, run.f32(x.slot)?, &weight, bias.as_deref())?;
        Ok(one(out))
    }))
}

/// A constant to multiply integers with, or to add to them. Nobody says what becomes of fractions.
fn whole(name: &'static str, constant: &Constant) -> Result<Vec<i32>, OpError> {
    if !constant.dtype().is_float() {
        return constant.to_i32();
    }
    let whole = |x: f32| (x.fract() == 0.0 && x.abs() < 2f32.powi(31)).then_some(x as i32);
    let integers = constant.to_f32()?.into_iter().map(|x| {
        whole(x)
            .ok_or_else(|| parameter(name, format!("{x} where an integer is needed, to multiply integers")))
    });
    integers.collect()
}

/// NumPy's `matmul`, with either side transposed first.
fn matmul(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let x = op.input("x")?;
    let y = op.input("y")?;
    let transpose_x = op.bool("transpose_x", false)?;
    let transpose_y = op.bool("transpose_y", false)?;
    for (name, side) in [("x", &x), ("y", &y)] {
        if side.rank() == Some(0) {
            return Err(parameter(name, "expected rank 1 or more, found a scalar"));
        }
    }
    let (a, b) = (Side::new("x", &x, &y)?, Side::new("y", &y, &x)?);
    let float = if matches!(a, Side::Converted(_)) { &y } else { &x }.ty.dtype.is_float();
    if !float {
        return Ok(Box::new(move |run| {
            matmul_int(run, &oriented(a.i32(run)?, transpose_x), &oriented(b.i32(run)?, transpose_y)).map(one)
        }));
    }
    // A constant matrix on the right is a weight. (The slot stays registered; reading it costs nothing.)
    if let Some(constant) = &y.constant
        && let &[a, b] = constant.shape()
        && x.rank().is_some_and(|rank| rank >= 2)
    {
        let elements = constant.to_f32()?;
        let view = NdTensorView::from_data([a, b], &elements[..]);
        let rows = x.ty.fixed_shape().and_then(|shape| {
            let inner = if transpose_x { shape[shape.len() - 2] } else { shape[shape.len() - 1] };
            element_count(&shape)?.checked_div(inner)
        });
        let weight = Weight::new(if transpose_y { view.transposed() } else { view }, rows);
        return Ok(Box::new(move |run| {
            let out = product(run, oriented(run.f32(x.slot)?, transpose_x), &weight, None)?;
            Ok(one(out))
        }));
    }
    Ok(Box::new(move |run| {
        let a = oriented(a.f32(run)?, transpose_x);
        let b = oriented(b.f32(run)?, transpose_y);
        let shape = product_shape(a.shape(), b.shape())?;
        run.check_size(&shape)?;
        if a.shape().last() == Some(&0) || shape.contains(&0) {
            return Ok(one(run.zeros::<f32>(&shape)?));
        }
        if matrices(&a) > 1 && matrices(&b) > 1 {
            return products(run, &a, &b, &shape).map(one);
        }
        // The library makes one product of many rows out of it, or packs the side that is used again.
        rten::ops::matmul::<f32, f32, f32>(run.pool(), a, b, None).map(one).map_err(KernelError::library)
    }))
}

/// One side of a product. Since iOS 17 a constant may have another type than what it is multiplied with; it is taken in the
/// type of the latter, which is that of the product.
enum Side {
    Slot(usize),
    Converted(Value),
}

impl Side {
    fn new(name: &'static str, side: &Input, other: &Input) -> Result<Self, OpError> {
        let float = other.ty.dtype.is_float();
        let constant = match &side.constant {
            Some(constant) if side.ty.dtype.is_float() != float && other.constant.is_none() => constant,
            _ => return Ok(Self::Slot(side.slot)),
        };
        if float {
            return Ok(Self::Converted(Value::F32(Tensor::from_data(constant.shape(), constant.to_f32()?))));
        }
        Ok(Self::Converted(Value::I32(Tensor::from_data(constant.shape(), whole(name, constant)?))))
    }

    fn f32<'r>(&'r self, run: &'r Run<'_, '_>) -> Result<TensorView<'r, f32>, KernelError> {
        match self {
            Self::Converted(Value::F32(tensor)) => Ok(tensor.view()),
            Self::Converted(Value::I32(_)) => Err(KernelError::value("expected floats, found integers")),
            Self::Slot(slot) => run.f32(*slot),
        }
    }

    fn i32<'r>(&'r self, run: &'r Run<'_, '_>) -> Result<TensorView<'r, i32>, KernelError> {
        match self {
            Self::Converted(Value::I32(tensor)) => Ok(tensor.view()),
            Self::Converted(Value::F32(_)) => Err(KernelError::value("expected integers, found floats")),
            Self::Slot(slot) => run.i32(*slot),
        }
    }
}

/// How many matrices a tensor holds.
fn matrices(view: &TensorView<'_, f32>) -> usize {
    view.shape().split_last_chunk::<2>().map_or(1, |(lead, _)| lead.iter().product())
}

/// A product for each pair of matrices, `shape` in all: attention's heads. As `rten::ops::matmul`, but for as many heads as models
/// have it asks for no memory beside the result's.
fn products(
    run: &Run<'_, '_>,
    a: &TensorView<'_, f32>,
    b: &TensorView<'_, f32>,
    shape: &[usize],
) -> Result<Tensor<f32>, KernelError> {
    const HEADS: usize = 16;
    let count = run.check_size(shape)?;
    let all = |view: &TensorView<'_, f32>| -> Dims {
        let own = view.shape().iter().skip(view.ndim() - 2);
        shape.iter().take(shape.len() - 2).chain(own).copied().collect()
    };
    let (a_shape, b_shape) = (all(a), all(b));
    let (a, b) = (a.broadcast(&a_shape[..]), b.broadcast(&b_shape[..]));
    let a: SmallVec<[_; HEADS]> = a.inner_iter::<2>().map(GemmInputA::Unpacked).collect();
    let b: SmallVec<[_; HEADS]> = b.inner_iter::<2>().map(GemmInputB::Unpacked).collect();
    filled(run, shape, |memory| {
        gemm().batched_gemm_uninit(&mut memory[..count], &a, &b, GemmUninitOptions::default())
    })
}

/// A tensor of `shape` that `fill` writes into memory of the pool.
fn filled(
    run: &Run<'_, '_>,
    shape: &[usize],
    fill: impl for<'m> Fn(&'m mut [MaybeUninit<f32>]) -> Result<&'m mut [f32], GemmError>,
) -> Result<Tensor<f32>, KernelError> {
    let mut data = run.buffer::<f32>(shape)?;
    let failure = Cell::new(None);
    data.extend_init(|memory| {
        fill(memory).unwrap_or_else(|error| {
            failure.set(Some(error));
            &mut []
        })
    });
    match failure.into_inner() {
        None => Ok(Tensor::from_data(shape, data)),
        Some(error) => Err(KernelError::library(error)),
    }
}

/// The last two dimensions swapped, if `transpose` and there are two.
fn oriented<T>(view: TensorView<'_, T>, transpose: bool) -> TensorView<'_, T> {
    let rank = view.ndim();
    if !transpose || rank < 2 {
        return view;
    }
    let mut order: Dims = (0..rank).collect();
    order.swap(rank - 1, rank - 2);
    view.permuted(&order[..])
}

/// Shape of `a @ b` by NumPy's rules.
fn product_shape(a: &[usize], b: &[usize]) -> Result<Vec<usize>, KernelError> {
    let error = || KernelError::shape(format!("shapes {a:?} and {b:?} do not multiply"));
    let (a_lead, m, k) = match a {
        [] => return Err(error()),
        [k] => (&[][..], None, *k),
        [lead @ .., m, k] => (lead, Some(*m), *k),
    };
    let (b_lead, k2, n) = match b {
        [] => return Err(error()),
        [k] => (&[][..], *k, None),
        [lead @ .., k, n] => (lead, *k, Some(*n)),
    };
    if k != k2 {
        return Err(error());
    }
    let rank = a_lead.len().max(b_lead.len());
    let dim = |lead: &[usize], i: usize| (i + lead.len()).checked_sub(rank).map_or(1, |i| lead[i]);
    let mut shape = Vec::with_capacity(rank + 2);
    for i in 0..rank {
        shape.push(match (dim(a_lead, i), dim(b_lead, i)) {
            (x, y) if x == y => x,
            (1, y) => y,
            (x, 1) => x,
            _ => return Err(error()),
        });
    }
    shape.extend(m);
    shape.extend(n);
    Ok(shape)
}

/// Integer products are rare (shapes, masks): exact, with wrap-around as two's complement has it.
fn matmul_int(
    run: &Run<'_, '_>,
    a: &TensorView<'_, i32>,
    b: &TensorView<'_, i32>,
) -> Result<Tensor<i32>, KernelError> {
    let shape = product_shape(a.shape(), b.shape())?;
    run.check_size(&shape)?;
    let a_matrix = if a.ndim() == 1 { a.clone().with_new_axis(0) } else { a.clone() };
    let b_matrix = if b.ndim() == 1 { b.clone().with_new_axis(1) } else { b.clone() };
    let (m, k) = (a_matrix.size(a_matrix.ndim() - 2), a_matrix.size(a_matrix.ndim() - 1));
    let n = b_matrix.size(b_matrix.ndim() - 1);
    let keep = shape.len() - usize::from(a.ndim() > 1) - usize::from(b.ndim() > 1);
    let lead = &shape[..keep];
    let a_all = a_matrix.broadcast([lead, &[m, k]].concat().as_slice());
    let b_all = b_matrix.broadcast([lead, &[k, n]].concat().as_slice());
    let mut data = run.buffer::<i32>(&shape)?;
    for (left, right) in a_all.inner_iter::<2>().zip(b_all.inner_iter::<2>()) {
        for i in 0..m {
            for j in 0..n {
                let terms = (0..k).map(|l| left[[i, l]].wrapping_mul(right[[l, j]]));
                data.push(terms.fold(0_i32, i32::wrapping_add));
            }
        }
    }
    Ok(Tensor::from_data(&shape, data))
}

/// Products and sums over named axes, of two tensors.
fn einsum(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let values = op.inputs("values")?;
    let equation = op.string_opt("equation")?.ok_or(OpError::Missing("equation"))?;
    let [x, y] = &values[..] else {
        return Err(parameter("values", format!("expected two tensors, found {}", values.len())));
    };
    let (x, y) = (x.slot, y.slot);
    let terms = Equation::parse(&equation)?;
    Ok(Box::new(move |run| {
        let (a, b) = (run.f32(x)?, run.f32(y)?);
        let [a_shape, b_shape, shape] = terms.shapes(a.shape(), b.shape())?;
        run.check_size(&shape)?;
        if [a.len(), b.len()].contains(&0) {
            return Ok(one(run.zeros::<f32>(&shape)?));
        }
        let (a, b) = (a.broadcast(a_shape.as_slice()), b.broadcast(b_shape.as_slice()));
        rten::ops::einsum(run.pool(), &[a, b], &equation).map(one).map_err(KernelError::library)
    }))
}

/// The letters of an equation such as `bhqd,bhkd->bhqk`.
struct Equation {
    inputs: [Vec<char>; 2],
    output: Vec<char>,
}

impl Equation {
    fn parse(text: &str) -> Result<Self, OpError> {
        let bad = || parameter("equation", format!("expected `ab,bc->ac` and the like, found `{text}`"));
        let letters = |part: &str| -> Result<Vec<char>, OpError> {
            let letters: Vec<char> = part.trim().chars().collect();
            let distinct: std::collections::HashSet<_> = letters.iter().collect();
            let fine = letters.iter().all(char::is_ascii_alphabetic) && distinct.len() == letters.len();
            fine.then_some(letters).ok_or_else(bad)
        };
        let (inputs, output) = text.split_once("->").ok_or_else(bad)?;
        let (x, y) = inputs.split_once(',').ok_or_else(bad)?;
        let terms = Self { inputs: [letters(x)?, letters(y)?], output: letters(output)? };
        let known = |c: &char| terms.inputs.iter().any(|input| input.contains(c));
        if terms.output.iter().all(known) { Ok(terms) } else { Err(bad()) }
    }

    /// The shapes of the inputs, where an axis of one is as long as its namesake if the output keeps it, and of the output.
    fn shapes(&self, a: &[usize], b: &[usize]) -> Result<[Vec<usize>; 3], KernelError> {
        let mut sizes = std::collections::HashMap::new();
        for (letters, shape) in self.inputs.iter().zip([a, b]) {
            if letters.len() != shape.len() {
                return Err(KernelError::shape(format!(
                    "the equation has {} axes for shape {shape:?}",
                    letters.len()
                )));
            }
            for (&letter, &size) in letters.iter().zip(shape) {
                let known = sizes.entry(letter).or_insert(size);
                let broadcast = self.output.contains(&letter) && [*known, size].contains(&1);
                if *known != size && !broadcast {
                    return Err(KernelError::shape(format!(
                        "axis `{letter}` has two sizes in {a:?} and {b:?}"
                    )));
                }
                if *known == 1 {
                    *known = size;
                }
            }
        }
        let shape = |letters: &[char]| letters.iter().map(|letter| sizes[letter]).collect();
        Ok([shape(&self.inputs[0]), shape(&self.inputs[1]), shape(&self.output)])
    }
}

#[cfg(test)]
mod tests {
    use crate::ir::{Constant, Opset};
    use crate::ops::testing::{Case, assert_close};

    fn ramp(n: usize) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * 0.37).sin()).collect()
    }

    /// The definition, without any library.
    fn naive(a: &[f32], b: &[f32], m: usize, k: usize, n: usize) -> Vec<f32> {
        let at = |i: usize, j: usize| (0..k).map(|l| a[i * k + l] * b[l * n + j]).sum();
        (0..m * n).map(|x| at(x / n, x % n)).collect()
    }

    #[test]
    fn linear_is_x_times_the_weight_transposed_plus_bias() {
        let weight = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let (shape, data) = Case::new("linear")
            .input("x", &[2, 1, 3], &[1.0, 0.0, -1.0, 2.0, 1.0, 0.5])
            .floats("weight", &[2, 3], &weight)
            .floats("bias", &[2], &[10.0, 20.0])
            .f32();
        assert_eq!(shape, [2, 1, 2]);
        assert_close(&data, &[8.0, 18.0, 15.5, 36.0], 1e-6);
    }

    #[test]
    fn linear_of_one_row_equals_linear_of_many() {
        let weight = ramp(70 * 33);
        let x = ramp(33 * 3);
        let many = Case::new("linear").input("x", &[3, 33], &x).floats("weight", &[70, 33], &weight).f32().1;
        for row in 0..3 {
            let one = Case::new("linear")
                .input("x", &[1, 33], &x[row * 33..][..33])
                .floats("weight", &[70, 33], &weight)
                .f32();
            assert_close(&one.1, &many[row * 70..][..70], 1e-5);
        }
    }

    #[test]
    fn linear_of_no_columns_is_its_bias() {
        let case = Case::new("linear").input("x", &[2, 0], &[]).floats("weight", &[3, 0], &[]);
        assert_eq!(case.floats("bias", &[3], &[1.0, 2.0, 3.0]).f32().1, [1.0, 2.0, 3.0, 1.0, 2.0, 3.0]);
    }

    #[test]
    fn linear_refuses_a_weight_that_does_not_fit() {
        let error =
            Case::new("linear").input("x", &[2, 4], &ramp(8)).floats("weight", &[2, 3], &ramp(6)).error();
        assert_eq!(error, "parameter `weight`: expected 4 columns for x fp32[2, 4], found 3");
    }

    #[test]
    fn matmul_agrees_with_the_definition_in_every_orientation() {
        let (m, k, n) = (5, 7, 3);
        let (a, b) = (ramp(m * k), ramp(k * n));
        let expected = naive(&a, &b, m, k, n);
        let swap = |data: &[f32], rows: usize, cols: usize| -> Vec<f32> {
            (0..rows * cols).map(|i| data[(i % rows) * cols + i / rows]).collect()
        };
        for (tx, ty, constant) in itertools(&[false, true]) {
            let (x, x_shape) = if tx { (swap(&a, m, k), [k, m]) } else { (a.clone(), [m, k]) };
            let (y, y_shape) = if ty { (swap(&b, k, n), [n, k]) } else { (b.clone(), [k, n]) };
            let case =
                Case::new("matmul").input("x", &x_shape, &x).bool("transpose_x", tx).bool("transpose_y", ty);
            let case = if constant { case.floats("y", &y_shape, &y) } else { case.input("y", &y_shape, &y) };
            let (shape, data) = case.f32();
            assert_eq!(shape, [m, n]);
            assert_close(&data, &expected, 1e-5);
        }
    }

    fn itertools(values: &[bool]) -> Vec<(bool, bool, bool)> {
        let mut all = Vec::new();
        for &a in values {
            for &b in values {
                all.extend(values.iter().map(|&c| (a, b, c)));
            }
        }
        all
    }

    #[test]
    fn matmul_broadcasts_leading_dimensions_and_takes_vectors() {
        let (shape, data) = Case::new("matmul")
            .input("x", &[2, 1, 1, 2], &[1.0, 2.0, 3.0, 4.0])
            .input("y", &[3, 2, 1], &ramp(6))
            .f32();
        assert_eq!(shape, [2, 3, 1, 1]);
        let y = ramp(6);
        let expected: Vec<f32> = [[1.0, 2.0], [3.0, 4.0]]
            .iter()
            .flat_map(|x| y.chunks(2).map(|y| x[0] * y[0] + x[1] * y[1]).collect::<Vec<_>>())
            .collect();
        assert_close(&data, &expected, 1e-6);
        let (shape, data) =
            Case::new("matmul").input("x", &[2], &[1.0, 2.0]).input("y", &[2, 2], &ramp(4)).f32();
        assert_eq!(shape, [2]);
        assert_close(&data, &naive(&[1.0, 2.0], &ramp(4), 1, 2, 2), 1e-6);
    }

    #[test]
    fn matmul_of_integers_is_exact() {
        let (shape, data) = Case::new("matmul")
            .input_i32("x", &[2, 2], &[1 << 24, 1, 3, 4])
            .input_i32("y", &[2, 2], &[1, 1, 1, 0])
            .i32();
        assert_eq!((shape, data), (vec![2, 2], vec![(1 << 24) + 1, 1 << 24, 7, 3]));
    }

    #[test]
    fn matmul_takes_a_constant_of_another_type_in_the_type_of_the_other_side() {
        let floats = Constant::f32(&[1, 2], vec![3.0, -1.0]).unwrap();
        let case = |kind| Case::in_opset(kind, Opset::Ios17);
        let integers = case("matmul").input_i32("x", &[2, 1], &[1, 2]).constant("y", floats);
        assert_eq!(integers.i32(), (vec![2, 2], vec![3, -1, 6, -2]));
        let column = Constant::i32(&[2, 1], vec![1, 2]).unwrap();
        let floats = case("matmul").constant("x", column).input("y", &[1, 2], &[0.5, 3.0]);
        assert_eq!(floats.f32(), (vec![2, 2], vec![0.5, 3.0, 1.0, 6.0]));
        let fraction = Constant::f32(&[1, 1], vec![0.5]).unwrap();
        let error = case("matmul").input_i32("x", &[1, 1], &[1]).constant("y", fraction).error();
        assert!(error.contains("0.5 where an integer is needed"), "{error}");
    }

    #[test]
    fn linear_of_integers_is_exact() {
        let case = |bias: Constant| {
            let weight = Constant::i32(&[3, 2], vec![1, 1, 1, 0, 2, -1]).unwrap();
            Case::new("linear")
                .input_i32("x", &[2, 2], &[1 << 24, 1, 3, 4])
                .constant("weight", weight)
                .constant("bias", bias)
        };
        let found = case(Constant::i32(&[3], vec![0, 5, i32::MAX]).unwrap()).i32();
        let wrapped = ((1 << 25) - 1_i32).wrapping_add(i32::MAX);
        let expected = vec![(1 << 24) + 1, (1 << 24) + 5, wrapped, 7, 8, 2_i32.wrapping_add(i32::MAX)];
        assert_eq!(found, (vec![2, 3], expected));
        let row = case(Constant::f32(&[3], vec![-1.0, 0.0, 1.0]).unwrap()).i32();
        assert_eq!(row.1[3..], [6, 3, 3]);
        let error = case(Constant::f32(&[3], vec![0.0, 0.5, 0.0]).unwrap()).error();
        assert!(error.contains("`bias`: 0.5 where an integer is needed"), "{error}");
    }

    #[test]
    fn linear_of_floats_takes_a_weight_of_integers() {
        let weight = Constant::i32(&[1, 2], vec![2, -1]).unwrap();
        let case = Case::new("linear").input("x", &[2], &[0.5, 3.0]).constant("weight", weight);
        assert_eq!(case.f32(), (vec![1], vec![-2.0]));
    }

    #[test]
    fn matmul_refuses_shapes_that_do_not_multiply() {
        let error = Case::new("matmul").input("x", &[2, 3], &ramp(6)).input("y", &[2, 3], &ramp(6)).error();
        assert_eq!(error, "shapes [2, 3] and [2, 3] do not multiply");
    }

    #[test]
    fn einsum_agrees_with_matmul() {
        let (x, y) = (ramp(12), ramp(12));
        let (shape, data) = Case::new("einsum")
            .inputs("values", &[(&[2, 2, 3], &x), (&[2, 2, 3], &y)])
            .string("equation", "bqd,bkd->bqk")
            .f32();
        let expected = Case::new("matmul")
            .input("x", &[2, 2, 3], &x)
            .input("y", &[2, 2, 3], &y)
            .bool("transpose_y", true);
        assert_eq!(shape, [2, 2, 2]);
        assert_close(&data, &expected.f32().1, 1e-6);
    }

    #[test]
    fn einsum_broadcasts_an_axis_of_one_that_the_output_keeps() {
        let case = |y: (&[usize], &[f32])| {
            Case::new("einsum")
                .inputs("values", &[(&[2, 2, 3], &ramp(12)), y])
                .string("equation", "vnm,mno->vno")
        };
        let y = [1.0, -1.0, 0.5];
        let twice: Vec<f32> = y.iter().flat_map(|&y| [y, y]).collect();
        let (shape, data) = case((&[3, 1, 1], &y)).f32();
        assert_eq!((&shape, &data), (&vec![2, 2, 1], &case((&[3, 2, 1], &twice)).f32().1));
        // A sum over an axis of one against an axis of three would not be a product of matrices.
        let error = case((&[1, 2, 1], &[1.0, 2.0])).error();
        assert_eq!(error, "axis `m` has two sizes in [2, 2, 3] and [1, 2, 1]");
    }

    #[test]
    fn einsum_refuses_axes_of_two_sizes() {
        let case = Case::new("einsum").inputs("values", &[(&[2, 3], &ramp(6)), (&[2, 2], &ramp(4))]);
        assert_eq!(
            case.string("equation", "ab,bc->ac").error(),
            "axis `b` has two sizes in [2, 3] and [2, 2]"
        );
    }
}
