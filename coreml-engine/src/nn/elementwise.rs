//! Layers that work element by element: of one input, of two that are broadcast, of several.

use coreml_proto::proto as spec;
use spec::unary_function_layer_params::Operation;

use super::context::{Blob, Context, broadcast, invalid};
use super::{LayerDef, weights};
use crate::error::OpError;
use crate::types::DType;

pub(super) const LAYERS: &[LayerDef] = &[
    layer!("acos", Acos, |cx, _| same(cx, "acos")),
    layer!("acosh", Acosh, acosh),
    layer!("add", Add, |cx, p| several(cx, "add", Some(p.alpha))),
    layer!("addBroadcastable", AddBroadcastable, |cx, _| two(cx, "add")),
    layer!("asin", Asin, |cx, _| same(cx, "asin")),
    layer!("asinh", Asinh, asinh),
    layer!("atan", Atan, |cx, _| same(cx, "atan")),
    layer!("atanh", Atanh, |cx, _| same(cx, "atanh")),
    layer!("average", Average, average),
    layer!("bias", Bias, bias),
    layer!("ceil", Ceil, |cx, _| same(cx, "ceil")),
    layer!("clip", Clip, clip),
    layer!("cos", Cos, |cx, _| same(cx, "cos")),
    layer!("cosh", Cosh, |cx, _| same(cx, "cosh")),
    layer!("divideBroadcastable", DivideBroadcastable, |cx, _| two(cx, "real_div")),
    layer!("equal", Equal, |cx, p| compare(cx, "equal", p.alpha)),
    layer!("erf", Erf, |cx, _| same(cx, "erf")),
    layer!("exp2", Exp2, |cx, _| same(cx, "exp2")),
    layer!("floor", Floor, |cx, _| same(cx, "floor")),
    layer!("floorDivBroadcastable", FloorDivBroadcastable, |cx, _| two(cx, "floor_div")),
    layer!("greaterEqual", GreaterEqual, |cx, p| compare(cx, "greater_equal", p.alpha)),
    layer!("greaterThan", GreaterThan, |cx, p| compare(cx, "greater", p.alpha)),
    layer!("lessEqual", LessEqual, |cx, p| compare(cx, "less_equal", p.alpha)),
    layer!("lessThan", LessThan, |cx, p| compare(cx, "less", p.alpha)),
    layer!("logicalAnd", LogicalAnd, |cx, _| logical(cx, "logical_and")),
    layer!("logicalNot", LogicalNot, logical_not),
    layer!("logicalOr", LogicalOr, |cx, _| logical(cx, "logical_or")),
    layer!("logicalXor", LogicalXor, |cx, _| logical(cx, "logical_xor")),
    layer!("max", Max, |cx, _| several(cx, "maximum", None)),
    layer!("maxBroadcastable", MaxBroadcastable, |cx, _| two(cx, "maximum")),
    layer!("min", Min, |cx, _| several(cx, "minimum", None)),
    layer!("minBroadcastable", MinBroadcastable, |cx, _| two(cx, "minimum")),
    layer!("modBroadcastable", ModBroadcastable, |cx, _| two(cx, "mod")),
    layer!("multiply", Multiply, |cx, p| several(cx, "mul", Some(p.alpha))),
    layer!("multiplyBroadcastable", MultiplyBroadcastable, |cx, _| two(cx, "mul")),
    layer!("notEqual", NotEqual, |cx, p| compare(cx, "not_equal", p.alpha)),
    layer!("powBroadcastable", PowBroadcastable, |cx, _| two(cx, "pow")),
    layer!("round", Round, |cx, _| same(cx, "round")),
    layer!("scale", Scale, scale),
    layer!("sign", Sign, |cx, _| same(cx, "sign")),
    layer!("sin", Sin, |cx, _| same(cx, "sin")),
    layer!("sinh", Sinh, |cx, _| same(cx, "sinh")),
    layer!("subtractBroadcastable", SubtractBroadcastable, |cx, _| two(cx, "sub")),
    layer!("tan", Tan, |cx, _| same(cx, "tan")),
    layer!("tanh", Tanh, |cx, _| same(cx, "tanh")),
    layer!("unary", Unary, unary),
    layer!("whereBroadcastable", WhereBroadcastable, select),
];

fn same(cx: &mut Context<'_>, kind: &str) -> Result<Blob, OpError> {
    let x = cx.one()?;
    Ok(cx.unary(kind, &x))
}

fn two(cx: &mut Context<'_>, kind: &str) -> Result<Blob, OpError> {
    let [x, y] = cx.exactly()?;
    cx.binary(kind, &x, &y)
}

/// One input and a number (if the layer has one), or any number of inputs.
fn several(cx: &mut Context<'_>, kind: &str, alpha: Option<f32>) -> Result<Blob, OpError> {
    let inputs = cx.inputs.clone();
    match (&inputs[..], alpha) {
        ([], _) | ([_], None) => Err(invalid(format!("{} inputs, expected several", inputs.len()))),
        ([x], Some(alpha)) => Ok(cx.with(kind, x, alpha)),
        ([first, rest @ ..], _) => rest.iter().try_fold(first.clone(), |sum, x| cx.binary(kind, &sum, x)),
    }
}

fn average(cx: &mut Context<'_>, _: &spec::AverageLayerParams) -> Result<Blob, OpError> {
    let sum = several(cx, "add", None)?;
    let count = cx.inputs.len() as f32;
    Ok(cx.with("real_div", &sum, count))
}

/// Compares two inputs, or one with a number: 1 or 0.
fn compare(cx: &mut Context<'_>, kind: &str, alpha: f32) -> Result<Blob, OpError> {
    cx.count(1..=2)?;
    let x = cx.inputs[0].clone();
    let y = match cx.inputs.get(1) {
        Some(y) => y.clone(),
        None => cx.scalar(alpha),
    };
    let dims = broadcast(&x.dims, &y.dims)?;
    Ok(cx.discrete(kind, [("x", (&x).into()), ("y", (&y).into())], DType::Bool, dims))
}

fn logical(cx: &mut Context<'_>, kind: &str) -> Result<Blob, OpError> {
    let [x, y] = cx.exactly()?;
    let dims = broadcast(&x.dims, &y.dims)?;
    let (x, y) = (cx.booleans(&x), cx.booleans(&y));
    Ok(cx.discrete(kind, [("x", x.into()), ("y", y.into())], DType::Bool, dims))
}

fn logical_not(cx: &mut Context<'_>, _: &spec::LogicalNotLayerParams) -> Result<Blob, OpError> {
    let x = cx.one()?;
    let truth = cx.booleans(&x);
    Ok(cx.discrete("logical_not", [("x", truth.into())], DType::Bool, x.dims))
}

fn select(cx: &mut Context<'_>, _: &spec::WhereBroadcastableLayerParams) -> Result<Blob, OpError> {
    let [condition, a, b] = cx.exactly()?;
    let dims = broadcast(&broadcast(&condition.dims, &a.dims)?, &b.dims)?;
    let condition = cx.booleans(&condition);
    Ok(cx.op("select", [("cond", condition.into()), ("a", (&a).into()), ("b", (&b).into())], dims))
}

fn clip(cx: &mut Context<'_>, p: &spec::ClipLayerParams) -> Result<Blob, OpError> {
    let x = cx.one()?;
    let arguments = [("x", (&x).into()), ("alpha", p.min_val.into()), ("beta", p.max_val.into())];
    Ok(cx.op("clip", arguments, x.dims.clone()))
}

fn unary(cx: &mut Context<'_>, p: &spec::UnaryFunctionLayerParams) -> Result<Blob, OpError> {
    let mut x = cx.one()?;
    let scale = if p.scale == 0.0 { 1.0 } else { p.scale };
    if (scale, p.shift) != (1.0, 0.0) {
        let arguments = [("x", (&x).into()), ("alpha", scale.into()), ("beta", p.shift.into())];
        x = cx.op("linear_activation", arguments, x.dims.clone());
    }
    let epsilon = if p.epsilon == 0.0 { 1e-6 } else { p.epsilon };
    let operation =
        Operation::try_from(p.r#type).map_err(|_| invalid(format!("unknown function {}", p.r#type)))?;
    Ok(match operation {
        Operation::Sqrt => cx.unary("sqrt", &x),
        Operation::Rsqrt => cx.op("rsqrt", [("x", (&x).into()), ("epsilon", epsilon.into())], x.dims.clone()),
        Operation::Inverse => {
            cx.op("inverse", [("x", (&x).into()), ("epsilon", epsilon.into())], x.dims.clone())
        }
        Operation::Power => cx.with("pow", &x, p.alpha),
        Operation::Exp => cx.unary("exp", &x),
        // The format's formula has no epsilon, but coremltools writes one, and its tests on a Mac expect `log(x + epsilon)`.
        Operation::Log => cx.op("log", [("x", (&x).into()), ("epsilon", p.epsilon.into())], x.dims.clone()),
        Operation::Abs => cx.unary("abs", &x),
        Operation::Threshold => {
            cx.op("threshold", [("x", (&x).into()), ("alpha", p.alpha.into())], x.dims.clone())
        }
    })
}

/// `log(x + sqrt(x^2 + 1))`, with the sign taken out so that nothing cancels.
fn asinh(cx: &mut Context<'_>, _: &spec::AsinhLayerParams) -> Result<Blob, OpError> {
    let x = cx.one()?;
    let size = cx.unary("abs", &x);
    let square = cx.binary("mul", &size, &size)?;
    let square = cx.with("add", &square, 1.0);
    let root = cx.unary("sqrt", &square);
    // log(a + r) = log1p(a + a^2 / (1 + r)) in two halves: 2 atanh(a / (1 + r)).
    let below = cx.with("add", &root, 1.0);
    let ratio = cx.binary("real_div", &size, &below)?;
    let half = cx.unary("atanh", &ratio);
    let value = cx.with("mul", &half, 2.0);
    let sign = cx.unary("sign", &x);
    cx.binary("mul", &value, &sign)
}

/// `log(x + sqrt(x^2 - 1))`.
fn acosh(cx: &mut Context<'_>, _: &spec::AcoshLayerParams) -> Result<Blob, OpError> {
    let x = cx.one()?;
    // (x - 1) (x + 1) keeps its digits near 1, where x^2 - 1 does not.
    let below = cx.with("sub", &x, 1.0);
    let above = cx.with("add", &x, 1.0);
    let square = cx.binary("mul", &below, &above)?;
    let root = cx.unary("sqrt", &square);
    let sum = cx.binary("add", &x, &root)?;
    Ok(cx.op("log", [("x", (&sum).into()), ("epsilon", 0.0.into())], x.dims.clone()))
}

/// Weights of one of the shapes `[1]`, `[C]`, `[1, H, W]`, `[C, H, W]`, as a constant that broadcasts.
fn broadcastable(
    cx: &mut Context<'_>,
    name: &'static str,
    values: Option<&spec::WeightParams>,
    shape: &[u64],
) -> Result<Blob, OpError> {
    let shape = super::context::sizes(shape)?;
    let data = weights::floats(name, values, &shape)?;
    match shape[..] {
        [channels] => cx.constant(&[channels, 1, 1], data),
        [_, _, _] => cx.constant(&shape, data),
        _ => Err(invalid(format!("{name} of shape {shape:?}, expected one or three dimensions"))),
    }
}

fn scale(cx: &mut Context<'_>, p: &spec::ScaleLayerParams) -> Result<Blob, OpError> {
    let x = cx.one()?;
    x.at_least(3)?;
    let factor = broadcastable(cx, "scale", p.scale.as_ref(), &p.shape_scale)?;
    let y = keep(cx, "mul", &x, &factor)?;
    if !p.has_bias {
        return Ok(y);
    }
    let bias = broadcastable(cx, "bias", p.bias.as_ref(), &p.shape_bias)?;
    keep(cx, "add", &y, &bias)
}

fn bias(cx: &mut Context<'_>, p: &spec::BiasLayerParams) -> Result<Blob, OpError> {
    let x = cx.one()?;
    x.at_least(3)?;
    let bias = broadcastable(cx, "bias", p.bias.as_ref(), &p.shape)?;
    keep(cx, "add", &x, &bias)
}

/// An op of `x` and weights, which may not be larger than `x`.
fn keep(cx: &mut Context<'_>, kind: &str, x: &Blob, weights: &Blob) -> Result<Blob, OpError> {
    let y = cx.binary(kind, x, weights)?;
    if y.dims.iter().zip(&x.dims).any(|(after, before)| before.is_some() && after != before) {
        return Err(invalid(format!("weights of shape {} for {}", weights.words(), x.words())));
    }
    Ok(y)
}
