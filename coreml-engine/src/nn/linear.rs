//! Matrix products and embeddings.
//!
//! With `int8DynamicQuantize` Core ML rounds the input to 8 bits to multiply faster; how is not documented. Here the input
//! stays as it is, so the product is the one that Core ML's approximates.

use coreml_proto::proto as spec;

use super::context::{Arg, Blob, Context, Dim, broadcast, invalid, size};
use super::{LayerDef, weights};
use crate::error::OpError;
use crate::ir::Constant;

pub(super) const LAYERS: &[LayerDef] = &[
    layer!("batchedMatmul", BatchedMatmul, batched_matmul),
    layer!("embedding", Embedding, embedding),
    layer!("embeddingND", EmbeddingNd, embedding_nd),
    layer!("innerProduct", InnerProduct, inner_product),
];

/// `x [.., in] * weight [out, in]^T + bias [out]`.
fn product(
    cx: &mut Context<'_>,
    x: &Blob,
    weight: Constant,
    bias: Option<Vec<f32>>,
) -> Result<Blob, OpError> {
    let &[outputs, inputs] = weight.shape() else { return Err(invalid("weights that are no matrix")) };
    let mut dims = x.dims.clone();
    match dims.last_mut() {
        Some(last) if last.is_none_or(|last| last == inputs) => *last = Some(outputs),
        _ => return Err(invalid(format!("{} times a matrix of {inputs} rows", x.words()))),
    }
    let mut arguments: Vec<(&str, Arg)> = vec![("x", x.into()), ("weight", weight.into())];
    if let Some(bias) = bias {
        arguments.push(("bias", Constant::f32(&[outputs], bias).map_err(OpError::Invalid)?.into()));
    }
    Ok(cx.op("linear", arguments, dims))
}

fn inner_product(cx: &mut Context<'_>, p: &spec::InnerProductLayerParams) -> Result<Blob, OpError> {
    let x = cx.one()?;
    let (inputs, outputs) = (size(p.input_channels)?, size(p.output_channels)?);
    let data = weights::floats("weights", p.weights.as_ref(), &[outputs, inputs])?;
    let weight = Constant::f32(&[outputs, inputs], data).map_err(OpError::Invalid)?;
    let bias = p.has_bias.then(|| weights::floats("bias", p.bias.as_ref(), &[outputs])).transpose()?;
    match x.rank() {
        1..=3 => product(cx, &x, weight, bias),
        rank @ 4..=5 => {
            let lead = rank - 3;
            let mut dims: Vec<_> = (0..lead).map(|axis| Dim::Of(&x, axis)).collect();
            dims.push(Dim::Known(inputs));
            let rows = cx.reshape(&x, &dims)?;
            let y = product(cx, &rows, weight, bias)?;
            cx.expand(&y, &[rank - 2, rank - 1])
        }
        _ => Err(invalid(format!("rank 1 to 5 is needed, found {}", x.words()))),
    }
}

/// Rows of a table that lies in the file as `[size of a row, rows]`, plus a bias.
fn rows(
    cx: &mut Context<'_>,
    indices: &Blob,
    (rows, row): (u64, u64),
    table: Option<&spec::WeightParams>,
    bias: Option<&spec::WeightParams>,
) -> Result<Blob, OpError> {
    let (rows, row) = (size(rows)?, size(row)?);
    let data = weights::floats("weights", table, &[row, rows])?;
    let mut transposed = Vec::with_capacity(data.len());
    for i in 0..rows {
        transposed.extend((0..row).map(|j| data[j * rows + i]));
    }
    let table = cx.constant(&[rows, row], transposed)?;
    let indices_id = cx.integers(indices);
    let mut dims = indices.dims.clone();
    dims.push(Some(row));
    let y =
        cx.op("gather", [("x", (&table).into()), ("indices", indices_id.into()), ("axis", 0.into())], dims);
    match bias {
        None => Ok(y),
        Some(bias) => {
            let bias = weights::floats("bias", Some(bias), &[row])?;
            let bias = cx.constant(&[row], bias)?;
            cx.binary("add", &y, &bias)
        }
    }
}

/// The bias of a layer that says whether it has one.
fn bias(has: bool, bias: Option<&spec::WeightParams>) -> Result<Option<&spec::WeightParams>, OpError> {
    match (has, bias) {
        (true, None) => Err(OpError::Missing("bias")),
        (true, bias) => Ok(bias),
        (false, _) => Ok(None),
    }
}

fn embedding(cx: &mut Context<'_>, p: &spec::EmbeddingLayerParams) -> Result<Blob, OpError> {
    let x = cx.one()?;
    if !(4..=5).contains(&x.rank()) {
        return Err(invalid(format!("rank 4 or 5 is needed, found {}", x.words())));
    }
    let rank = x.rank();
    let indices = cx.squeeze(&x, &[rank - 3, rank - 2, rank - 1])?;
    let table = (p.input_dim, p.output_channels);
    let y = rows(cx, &indices, table, p.weights.as_ref(), bias(p.has_bias, p.bias.as_ref())?)?;
    cx.expand(&y, &[rank - 2, rank - 1])
}

fn embedding_nd(cx: &mut Context<'_>, p: &spec::EmbeddingNdLayerParams) -> Result<Blob, OpError> {
    let x = cx.one()?;
    x.at_least(2)?;
    let indices = cx.squeeze(&x, &[x.rank() - 1])?;
    let table = (p.vocab_size, p.embedding_size);
    rows(cx, &indices, table, p.weights.as_ref(), bias(p.has_bias, p.bias.as_ref())?)
}

fn batched_matmul(cx: &mut Context<'_>, p: &spec::BatchedMatMulLayerParams) -> Result<Blob, OpError> {
    cx.count(1..=2)?;
    if cx.inputs.len() == 1 {
        let x = cx.one()?;
        let (inputs, outputs) =
            (size(p.weight_matrix_first_dimension)?, size(p.weight_matrix_second_dimension)?);
        // Column-major [X1, X2] is row-major [X2, X1].
        let data = weights::floats("weights", p.weights.as_ref(), &[outputs, inputs])?;
        let weight = Constant::f32(&[outputs, inputs], data).map_err(OpError::Invalid)?;
        let bias = p.has_bias.then(|| weights::floats("bias", p.bias.as_ref(), &[outputs])).transpose()?;
        return product(cx, &x, weight, bias);
    }
    let [a, b] = cx.exactly()?;
    let a = if a.rank() == 1 { cx.expand(&a, &[0])? } else { a };
    let b = if b.rank() == 1 { cx.expand(&b, &[1])? } else { b };
    let matrix = |x: &Blob, transposed: bool| match x.dims[..] {
        [.., rows, cols] => Ok(if transposed { (cols, rows) } else { (rows, cols) }),
        _ => Err(invalid(format!("a matrix product of {}", x.words()))),
    };
    let ((rows, inner), (other, cols)) = (matrix(&a, p.transpose_a)?, matrix(&b, p.transpose_b)?);
    if inner.zip(other).is_some_and(|(x, y)| x != y) {
        return Err(invalid(format!("a matrix product of {} and {}", a.words(), b.words())));
    }
    let mut dims = broadcast(&a.dims[..a.rank() - 2], &b.dims[..b.rank() - 2])?;
    dims.extend([rows, cols]);
    let arguments = [
        ("x", (&a).into()),
        ("y", (&b).into()),
        ("transpose_x", p.transpose_a.into()),
        ("transpose_y", p.transpose_b.into()),
    ];
    Ok(cx.op("matmul", arguments, dims))
}
