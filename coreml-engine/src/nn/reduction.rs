//! Layers that reduce dimensions, or look for the largest and smallest along one.

use coreml_proto::proto as spec;
use spec::reduce_layer_params::{ReduceAxis, ReduceOperation};

use super::LayerDef;
use super::context::{Arg, Blob, Context, Dim, int, invalid, unsupported};
use super::shape::not_scalar;
use crate::error::OpError;
use crate::types::DType;

pub(super) const LAYERS: &[LayerDef] = &[
    layer!("argMax", ArgMax, |cx, p| arg(cx, "reduce_argmax", p.axis, p.remove_dim)),
    layer!("argMin", ArgMin, |cx, p| arg(cx, "reduce_argmin", p.axis, p.remove_dim)),
    layer!("argSort", ArgSort, arg_sort),
    layer!("reduce", Reduce, reduce),
    layer!("reduceL1", ReduceL1, |cx, p| over(cx, "reduce_l1_norm", &p.axes, p.keep_dims, p.reduce_all)),
    layer!("reduceL2", ReduceL2, |cx, p| over(cx, "reduce_l2_norm", &p.axes, p.keep_dims, p.reduce_all)),
    layer!("reduceLogSum", ReduceLogSum, |cx, p| over(
        cx,
        "reduce_log_sum",
        &p.axes,
        p.keep_dims,
        p.reduce_all
    )),
    layer!("reduceLogSumExp", ReduceLogSumExp, |cx, p| {
        over(cx, "reduce_log_sum_exp", &p.axes, p.keep_dims, p.reduce_all)
    }),
    layer!("reduceMax", ReduceMax, |cx, p| over(cx, "reduce_max", &p.axes, p.keep_dims, p.reduce_all)),
    layer!("reduceMean", ReduceMean, |cx, p| over(cx, "reduce_mean", &p.axes, p.keep_dims, p.reduce_all)),
    layer!("reduceMin", ReduceMin, |cx, p| over(cx, "reduce_min", &p.axes, p.keep_dims, p.reduce_all)),
    layer!("reduceProd", ReduceProd, |cx, p| over(cx, "reduce_prod", &p.axes, p.keep_dims, p.reduce_all)),
    layer!("reduceSum", ReduceSum, |cx, p| over(cx, "reduce_sum", &p.axes, p.keep_dims, p.reduce_all)),
    layer!("reduceSumSquare", ReduceSumSquare, |cx, p| {
        over(cx, "reduce_sum_square", &p.axes, p.keep_dims, p.reduce_all)
    }),
    layer!("topK", TopK, top_k),
];

/// Reduces over the axes of a layer; what would be a scalar is a list of one element.
fn over(cx: &mut Context<'_>, kind: &str, axes: &[i64], keep: bool, all: bool) -> Result<Blob, OpError> {
    let x = cx.one()?;
    let mut axes: Vec<usize> = if all {
        (0..x.rank()).collect()
    } else {
        axes.iter().map(|&axis| x.axis(axis)).collect::<Result<_, _>>()?
    };
    axes.sort_unstable();
    axes.dedup();
    if axes.is_empty() {
        return Err(invalid("no axes"));
    }
    let y = cx.reduce(kind, &x, &axes, keep)?;
    not_scalar(cx, y)
}

fn reduce(cx: &mut Context<'_>, p: &spec::ReduceLayerParams) -> Result<Blob, OpError> {
    let x = cx.one()?;
    let axes: &[i64] = match ReduceAxis::try_from(p.axis) {
        Ok(ReduceAxis::Chw) => &[-3, -2, -1],
        Ok(ReduceAxis::Hw) => &[-2, -1],
        Ok(ReduceAxis::C) => &[-3],
        Ok(ReduceAxis::H) => &[-2],
        Ok(ReduceAxis::W) => &[-1],
        Err(_) => return Err(invalid(format!("unknown axis {}", p.axis))),
    };
    let mode = ReduceOperation::try_from(p.mode).map_err(|_| invalid(format!("unknown mode {}", p.mode)))?;
    let kind = match mode {
        ReduceOperation::Sum => "reduce_sum",
        ReduceOperation::Avg => "reduce_mean",
        ReduceOperation::Prod => "reduce_prod",
        ReduceOperation::Logsum => {
            // The sum of the logarithms, unlike `reduceLogSum`.
            let epsilon = if p.epsilon == 0.0 { 1e-6 } else { p.epsilon };
            let shifted = cx.with("add", &x, epsilon);
            let logarithms =
                cx.op("log", [("x", (&shifted).into()), ("epsilon", 0.0.into())], x.dims.clone());
            let axes = axes.iter().map(|&axis| x.axis(axis)).collect::<Result<Vec<_>, _>>()?;
            return cx.reduce("reduce_sum", &logarithms, &axes, true);
        }
        ReduceOperation::Sumsquare => "reduce_sum_square",
        ReduceOperation::L1 => "reduce_l1_norm",
        ReduceOperation::L2 => "reduce_l2_norm",
        ReduceOperation::Max => "reduce_max",
        ReduceOperation::Min => "reduce_min",
        ReduceOperation::Argmax => match axes {
            &[axis] => return arg(cx, "reduce_argmax", axis, false),
            _ => return Err(invalid("the place of the largest element along several axes")),
        },
    };
    over(cx, kind, axes, true, false)
}

fn arg(cx: &mut Context<'_>, kind: &str, axis: i64, remove: bool) -> Result<Blob, OpError> {
    let x = cx.one()?;
    let axis = x.axis(axis)?;
    let keep = !remove || x.rank() == 1;
    let mut dims = x.dims.clone();
    if keep {
        dims[axis] = Some(1);
    } else {
        dims.remove(axis);
    }
    let arguments = [("x", (&x).into()), ("axis", int(axis)?.into()), ("keep_dims", keep.into())];
    Ok(cx.discrete(kind, arguments, DType::I32, dims))
}

fn arg_sort(cx: &mut Context<'_>, p: &spec::ArgSortLayerParams) -> Result<Blob, OpError> {
    let x = cx.one()?;
    let axis = int(x.axis(p.axis)?)?;
    let arguments = [("x", (&x).into()), ("axis", axis.into()), ("ascending", (!p.descending).into())];
    Ok(cx.discrete("argsort", arguments, DType::I32, x.dims))
}

fn top_k(cx: &mut Context<'_>, p: &spec::TopKLayerParams) -> Result<Vec<Blob>, OpError> {
    cx.count(1..=2)?;
    let x = cx.inputs[0].clone();
    let axis = x.axis(p.axis)?;
    let mut dims = x.dims.clone();
    let known = match cx.inputs.get(1) {
        None => Some(int(p.k)?),
        Some(input) => match cx.known_ints(input, "k") {
            Ok(k) => match k[..] {
                [k] => Some(k),
                _ => return Err(invalid(format!("k of shape {}", input.words()))),
            },
            Err(_) if input.fixed().is_some_and(|shape| shape.iter().product::<usize>() == 1) => None,
            Err(_) => return Err(invalid(format!("k of shape {}", input.words()))),
        },
    };
    let k: Arg = if let Some(k) = known {
        let count = usize::try_from(k).ok().filter(|&k| k > 0).ok_or_else(|| invalid(format!("k = {k}")))?;
        if x.dims[axis].is_some_and(|n| count > n) {
            return Err(unsupported(format!("the first {k} along axis {axis} of {}", x.words())));
        }
        dims[axis] = Some(count);
        k.into()
    } else {
        dims[axis] = None;
        let k = cx.inputs[1].clone();
        let k = cx.reshape(&k, &[Dim::Known(1)])?;
        cx.integers(&k).into()
    };
    let arguments =
        [("x", (&x).into()), ("k", k), ("axis", int(axis)?.into()), ("ascending", p.use_bottom_k.into())];
    Ok(cx.ops("topk", arguments, vec![(DType::F32, dims.clone()), (DType::I32, dims)]))
}
