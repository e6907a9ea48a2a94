//! `transformers` ops: `scaled_dot_product_attention`.
//!
//! Semantics: coremltools, `mil/ops/defs/iOS18/transformers.py`. A row in which the mask allows nothing is NaN, as in the formula.
//!
//! The scores exist for a block of rows of one head at a time, so memory grows with the length of the sequence and not with its
//! square.

use rayon::prelude::*;
use rten_gemm::{GemmExecutor, GemmInputA, GemmInputB, GemmOptions};
use rten_simd::SimdOp;
use rten_tensor::NdTensorView;
use rten_tensor::prelude::*;
use rten_vecmath as vecmath;

use super::{Kernel, OpBuilder, OpDef, Run, parameter};
use crate::error::{KernelError, OpError};
use crate::ir::Opset::Ios18;
use crate::kernels::scratch::Scratch;
use crate::types::element_count;
use crate::value::{Outputs, ValueView, one};

pub(crate) const OPS: &[OpDef] =
    &[OpDef::new("scaled_dot_product_attention", &[Ios18], scaled_dot_product_attention)];

/// Rows of scores that exist at a time.
const ROWS: usize = 64;

/// Multiply-adds above which blocks are shared out among the threads.
const PARALLEL: usize = 1 << 17;

fn scaled_dot_product_attention(op: &mut OpBuilder<'_>) -> Result<Kernel, OpError> {
    let query = op.float_input("query", 3..=5)?;
    let key = op.float_input("key", 3..=5)?;
    let value = op.float_input("value", 3..=5)?;
    let mask = op.input_opt("attn_mask")?;
    if let Some(mask) = &mask
        && !mask.ty.dtype.is_float()
        && mask.ty.dtype != crate::types::DType::Bool
    {
        return Err(parameter("attn_mask", format!("expected floats or booleans, found {}", mask.ty)));
    }
    let slots = [query.slot, key.slot, value.slot];
    let mask = mask.map(|mask| mask.slot);
    Ok(Box::new(move |run| attention(run, slots, mask)))
}

/// What is added to the scores, or which scores count; dense, with the step of each dimension of the scores.
struct Mask<'a> {
    elements: MaskElements<'a>,
    steps: Vec<usize>,
}

enum MaskElements<'a> {
    Added(&'a [f32]),
    Allowed(&'a [i32]),
}

impl Mask<'_> {
    /// Applies to row `row` of the scores of `head`, which counts through the dimensions before the last two, `lead`.
    fn apply(&self, lead: &[usize], head: usize, row: usize, scores: &mut [f32]) {
        let (leading, last) = self.steps.split_at(lead.len());
        let mut first = row * last[0];
        let mut rest = head;
        for (dim, step) in lead.iter().zip(leading).rev() {
            first += rest % dim * step;
            rest /= dim;
        }
        let place = |i: usize| first + i * last[1];
        match self.elements {
            MaskElements::Added(data) => {
                scores.iter_mut().enumerate().for_each(|(i, score)| *score += data[place(i)]);
            }
            MaskElements::Allowed(data) => {
                for (i, score) in scores.iter_mut().enumerate() {
                    if data[place(i)] == 0 {
                        *score = f32::NEG_INFINITY;
                    }
                }
            }
        }
    }
}

/// The step of each dimension of `shape` in a dense tensor of the shape `own`, broadcast.
fn steps(own: &[usize], shape: &[usize]) -> Option<Vec<usize>> {
    let missing = shape.len().checked_sub(own.len())?;
    let mut steps = vec![0; shape.len()];
    let mut step = 1;
    for (i, &dim) in own.iter().enumerate().rev() {
        if dim != 1 {
            if dim != shape[missing + i] {
                return None;
            }
            steps[missing + i] = step;
        }
        step *= dim;
    }
    Some(steps)
}

/// Lengths of an attention.
#[derive(Clone, Copy)]
struct Sizes {
    /// Rows of the query.
    rows: usize,
    /// Rows of key and value.
    keys: usize,
    /// Columns of query and key.
    inner: usize,
    /// Columns of the value.
    columns: usize,
}

fn sizes(q: &[usize], k: &[usize], v: &[usize]) -> Option<Sizes> {
    let (lead, &[rows, inner]) = q.split_last_chunk::<2>()?;
    let (key_lead, &[keys, key_inner]) = k.split_last_chunk::<2>()?;
    let (value_lead, &[value_keys, columns]) = v.split_last_chunk::<2>()?;
    let same = lead == key_lead && lead == value_lead && inner == key_inner && keys == value_keys;
    (same && inner > 0 && keys > 0).then_some(Sizes { rows, keys, inner, columns })
}

/// `softmax(q k^T / sqrt(inner) + mask) v` for each head.
fn attention(run: &mut Run<'_, '_>, slots: [usize; 3], mask: Option<usize>) -> Result<Outputs, KernelError> {
    let [q, k, v] = [run.f32(slots[0])?, run.f32(slots[1])?, run.f32(slots[2])?];
    let sizes = sizes(q.shape(), k.shape(), v.shape()).ok_or_else(|| {
        let (q, k, v) = (q.shape(), k.shape(), v.shape());
        KernelError::shape(format!("attention of a query {q:?}, a key {k:?} and a value {v:?}"))
    })?;
    let lead = q.shape().get(..q.ndim() - 2).unwrap_or_default();
    let shape = [lead, &[sizes.rows, sizes.columns]].concat();
    run.check_size(&[ROWS.min(sizes.rows), sizes.keys])?;
    let mut out = run.zeros::<f32>(&shape)?;
    if out.is_empty() {
        return Ok(one(out));
    }
    let pool = run.pool();
    let (q, k, v) = (q.to_contiguous_in(pool), k.to_contiguous_in(pool), v.to_contiguous_in(pool));
    let scores = [lead, &[sizes.rows, sizes.keys]].concat();
    let mask = mask.map(|slot| run.any(slot)).transpose()?;
    let wrong = |shape: &[usize]| KernelError::shape(format!("a mask {shape:?} of the scores {scores:?}"));
    let (added, allowed);
    let mask = match mask {
        None => None,
        Some(ValueView::F32(view)) => {
            let steps = steps(view.shape(), &scores).ok_or_else(|| wrong(view.shape()))?;
            added = view.to_contiguous_in(pool);
            Some(Mask { elements: MaskElements::Added(added.data()), steps })
        }
        Some(ValueView::I32(view)) => {
            let steps = steps(view.shape(), &scores).ok_or_else(|| wrong(view.shape()))?;
            allowed = view.to_contiguous_in(pool);
            Some(Mask { elements: MaskElements::Allowed(allowed.data()), steps })
        }
    };
    let head = |index: usize, out: &mut [f32], parallel: bool| {
        let part = |rows: usize, columns: usize| index * rows * columns..(index + 1) * rows * columns;
        let q = &q.data()[part(sizes.rows, sizes.inner)];
        let k = &k.data()[part(sizes.keys, sizes.inner)];
        let v = &v.data()[part(sizes.keys, sizes.columns)];
        let k = NdTensorView::from_data([sizes.keys, sizes.inner], k).transposed();
        let v = NdTensorView::from_data([sizes.keys, sizes.columns], v);
        let block = |(i, out): (usize, &mut [f32])| -> Result<(), KernelError> {
            let first = i * ROWS;
            let rows = out.len() / sizes.columns;
            let q = NdTensorView::from_data(
                [rows, sizes.inner],
                &q[first * sizes.inner..(first + rows) * sizes.inner],
            );
            let mut scores = Scratch::new(rows * sizes.keys);
            let alpha = 1.0 / (sizes.inner as f32).sqrt();
            product(&mut scores, q, k, alpha)?;
            for (row, scores) in scores.chunks_exact_mut(sizes.keys).enumerate() {
                if let Some(mask) = &mask {
                    mask.apply(lead, index, first + row, scores);
                }
                vecmath::Softmax::new_mut(scores).dispatch();
            }
            product(out, NdTensorView::from_data([rows, sizes.keys], &scores[..]), v, 1.0)
        };
        let step = ROWS * sizes.columns;
        if parallel {
            out.par_chunks_mut(step).enumerate().try_for_each(block)
        } else {
            out.chunks_mut(step).enumerate().try_for_each(block)
        }
    };
    let work = element_count(&scores).and_then(|n| n.checked_mul(sizes.inner + sizes.columns));
    let step = sizes.rows * sizes.columns;
    let data = out.data_mut().ok_or_else(|| KernelError::shape("memory that is not dense"))?;
    if work.is_none_or(|work| work > PARALLEL) {
        data.par_chunks_mut(step).enumerate().try_for_each(|(i, out)| head(i, out, true))?;
    } else {
        data.chunks_mut(step).enumerate().try_for_each(|(i, out)| head(i, out, false))?;
    }
    Ok(one(out))
}

/// `alpha a b`, into `out`.
fn product(
    out: &mut [f32],
    a: NdTensorView<'_, f32, 2>,
    b: NdTensorView<'_, f32, 2>,
    alpha: f32,
) -> Result<(), KernelError> {
    let options = GemmOptions { alpha, ..GemmOptions::default() };
    GemmExecutor::<f32, f32, f32>::new()
        .gemm(out, GemmInputA::Unpacked(a), GemmInputB::Unpacked(b), options)
        .map_err(KernelError::library)
}

#[cfg(test)]
mod tests {
    use crate::ir::Opset::Ios18;
    use crate::ops::testing::{Case, assert_close};

    /// Numbers without a pattern, between -2 and 2.
    fn numbers(seed: u32, count: usize) -> Vec<f32> {
        let mut state = seed;
        let next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            Some((state >> 8) as f32 / (1 << 22) as f32 - 2.0)
        };
        std::iter::from_fn(next).take(count).collect()
    }

    /// By the definition, for one head; `mask` is added.
    fn reference(
        (q, k, v): (&[f32], &[f32], &[f32]),
        [rows, keys, inner, columns]: [usize; 4],
        mask: impl Fn(usize, usize) -> f64,
    ) -> Vec<f32> {
        let mut out = Vec::new();
        for row in 0..rows {
            let score = |key: usize| {
                let products =
                    (0..inner).map(|e| f64::from(q[row * inner + e]) * f64::from(k[key * inner + e]));
                products.sum::<f64>() / (inner as f64).sqrt() + mask(row, key)
            };
            let scores: Vec<f64> = (0..keys).map(score).collect();
            let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
            let total: f64 = weights.iter().sum();
            for column in 0..columns {
                let sum: f64 = (0..keys).map(|key| weights[key] * f64::from(v[key * columns + column])).sum();
                out.push((sum / total) as f32);
            }
        }
        out
    }

    fn case(lead: &[usize], [rows, keys, inner, columns]: [usize; 4]) -> (Case, [Vec<f32>; 3]) {
        let heads: usize = lead.iter().product();
        let data = [
            numbers(1, heads * rows * inner),
            numbers(2, heads * keys * inner),
            numbers(3, heads * keys * columns),
        ];
        let case = Case::in_opset("scaled_dot_product_attention", Ios18)
            .input("query", &[lead, &[rows, inner]].concat(), &data[0])
            .input("key", &[lead, &[keys, inner]].concat(), &data[1])
            .input("value", &[lead, &[keys, columns]].concat(), &data[2]);
        (case, data)
    }

    #[test]
    fn it_is_its_formula_whatever_the_sizes() {
        // One block, several, several and a rest; one row; work for several threads.
        for (lead, sizes) in [
            (&[2, 3][..], [5, 7, 4, 3]),
            (&[1], [64, 10, 3, 8]),
            (&[2], [150, 33, 16, 5]),
            (&[1, 2, 2], [1, 9, 2, 1]),
            (&[1, 2], [130, 200, 16, 16]),
        ] {
            let [rows, keys, inner, columns] = sizes;
            let (case, [q, k, v]) = case(lead, sizes);
            let (shape, found) = case.f32();
            assert_eq!(shape, [lead, &[rows, columns]].concat());
            let heads = q.chunks(rows * inner).zip(k.chunks(keys * inner)).zip(v.chunks(keys * columns));
            let expected: Vec<f32> =
                heads.flat_map(|((q, k), v)| reference((q, k, v), sizes, |_, _| 0.0)).collect();
            assert_close(&found, &expected, 1e-5);
        }
    }

    #[test]
    fn masks_of_floats_are_added_and_those_of_booleans_choose_and_both_are_broadcast() {
        let (lead, sizes) = ([2, 3], [4, 5, 3, 2]);
        let [rows, keys, inner, columns] = sizes;
        for mask_shape in
            [&[5][..], &[4, 5], &[1, 5], &[4, 1], &[3, 4, 5], &[2, 1, 1, 5], &[2, 3, 4, 5], &[2, 1, 4, 5]]
        {
            let count = mask_shape.iter().product();
            let mask = numbers(9, count);
            // Every row keeps its last key.
            let last = |i: usize| mask_shape.last() == Some(&1) || i % keys == keys - 1;
            let bools: Vec<i32> =
                mask.iter().enumerate().map(|(i, &m)| i32::from(m > 0.0 || last(i))).collect();
            let at = |head: usize, row: usize, key: usize| {
                let index = [head / 3, head % 3, row, key];
                let own = &index[4 - mask_shape.len()..];
                own.iter().zip(mask_shape).fold(0, |n, (&i, &dim)| n * dim + if dim == 1 { 0 } else { i })
            };
            let expect = |value: &dyn Fn(usize) -> f64| -> Vec<f32> {
                let (_, [q, k, v]) = case(&lead, sizes);
                let heads = q.chunks(rows * inner).zip(k.chunks(keys * inner)).zip(v.chunks(keys * columns));
                let each = heads.enumerate().flat_map(|(head, ((q, k), v))| {
                    reference((q, k, v), sizes, |row, key| value(at(head, row, key)))
                });
                each.collect()
            };
            let (_, found) = case(&lead, sizes).0.input("attn_mask", mask_shape, &mask).f32();
            assert_close(&found, &expect(&|i| f64::from(mask[i])), 1e-5);
            let (_, found) = case(&lead, sizes).0.input_bool("attn_mask", mask_shape, &bools).f32();
            assert_close(&found, &expect(&|i| if bools[i] == 0 { f64::NEG_INFINITY } else { 0.0 }), 1e-5);
        }
    }

    #[test]
    fn a_row_that_may_look_at_nothing_is_nan_and_others_are_not() {
        let (_, found) =
            case(&[1], [2, 3, 2, 2]).0.input_bool("attn_mask", &[2, 3], &[0, 0, 0, 1, 0, 1]).f32();
        assert!(
            found[..2].iter().all(|x| x.is_nan()) && found[2..].iter().all(|x| x.is_finite()),
            "{found:?}"
        );
    }

    #[test]
    fn sizes_that_do_not_go_together_are_refused() {
        let of = |q: &[usize], k: &[usize], v: &[usize]| {
            let data = |shape: &[usize]| vec![0.5; shape.iter().product()];
            Case::in_opset("scaled_dot_product_attention", Ios18)
                .input("query", q, &data(q))
                .input("key", k, &data(k))
                .input("value", v, &data(v))
        };
        assert!(of(&[1, 2, 3], &[1, 4, 2], &[1, 4, 2]).error().contains("attention of a query"));
        assert!(of(&[1, 2, 3], &[2, 4, 3], &[2, 4, 2]).error().contains("attention of a query"));
        assert!(of(&[1, 2, 3], &[1, 4, 3], &[1, 5, 2]).error().contains("attention of a query"));
        assert!(of(&[1, 2, 3], &[1, 0, 3], &[1, 0, 2]).error().contains("attention of a query"));
        assert!(of(&[2, 3], &[4, 3], &[4, 2]).error().contains("rank"));
        let fits = || of(&[1, 2, 3], &[1, 4, 3], &[1, 4, 2]);
        assert!(fits().input("attn_mask", &[2, 3], &[0.0; 6]).error().contains("a mask [2, 3]"));
        assert!(fits().input("attn_mask", &[1, 1, 2, 4], &[0.0; 8]).error().contains("a mask"));
        assert!(fits().input_i32("attn_mask", &[2, 4], &[1; 8]).error().contains("booleans"));
        assert_eq!(of(&[1, 0, 3], &[1, 4, 3], &[1, 4, 2]).f32().0, [1, 0, 2]);
    }
}
