//! Activation layers.

use coreml_proto::proto as spec;
use spec::activation_params::NonlinearityType as Kind;
use spec::gelu_layer_params::GeluMode;

use super::context::{Arg, Blob, Context, Dim, invalid};
use super::{LayerDef, weights};
use crate::error::OpError;
use crate::ir::Constant;

pub(super) const LAYERS: &[LayerDef] = &[
    layer!("activation", Activation, activation),
    layer!("clampedReLU", ClampedReLu, clamped_relu),
    layer!("gelu", Gelu, gelu),
];

fn activation(cx: &mut Context<'_>, p: &spec::ActivationParams) -> Result<Blob, OpError> {
    let x = cx.one()?;
    let kind = p.nonlinearity_type.as_ref().ok_or_else(|| invalid("a function that is not known"))?;
    let with = |cx: &mut Context<'_>, kind: &str, alpha: f32, beta: Option<f32>| {
        let mut arguments: Vec<(&str, Arg)> = vec![("x", (&x).into()), ("alpha", alpha.into())];
        arguments.extend(beta.map(|beta| ("beta", beta.into())));
        Ok(cx.op(kind, arguments, x.dims.clone()))
    };
    match kind {
        Kind::Linear(p) => with(cx, "linear_activation", p.alpha, Some(p.beta)),
        Kind::ReLu(_) => Ok(cx.unary("relu", &x)),
        Kind::LeakyReLu(p) => with(cx, "leaky_relu", p.alpha, None),
        Kind::ThresholdedReLu(p) => with(cx, "thresholded_relu", p.alpha, None),
        Kind::PReLu(p) => per_channel(cx, &x, "prelu", &[("alpha", p.alpha.as_ref())]),
        Kind::Tanh(_) => Ok(cx.unary("tanh", &x)),
        Kind::ScaledTanh(p) => with(cx, "scaled_tanh", p.alpha, Some(p.beta)),
        Kind::Sigmoid(_) => Ok(cx.unary("sigmoid", &x)),
        Kind::SigmoidHard(p) => with(cx, "sigmoid_hard", p.alpha, Some(p.beta)),
        Kind::Elu(p) => with(cx, "elu", p.alpha, None),
        Kind::Softsign(_) => Ok(cx.unary("softsign", &x)),
        Kind::Softplus(_) => Ok(cx.unary("softplus", &x)),
        Kind::ParametricSoftplus(p) => {
            let parameters = [("alpha", p.alpha.as_ref()), ("beta", p.beta.as_ref())];
            per_channel(cx, &x, "softplus_parametric", &parameters)
        }
    }
}

/// An op with parameters per channel: one number for all, or one for each of axis -3.
fn per_channel(
    cx: &mut Context<'_>,
    x: &Blob,
    kind: &str,
    parameters: &[(&'static str, Option<&spec::WeightParams>)],
) -> Result<Blob, OpError> {
    x.at_least(3)?;
    let mut values = Vec::new();
    for &(name, parameter) in parameters {
        values.push(match (weights::floats(name, parameter, &[1]), x.dims[x.rank() - 3]) {
            (Ok(one), _) => one,
            (Err(_), Some(channels)) => weights::floats(name, parameter, &[channels])?,
            (Err(_), None) => return Err(invalid("the number of channels is unknown")),
        });
    }
    // What the ops take per channel is as long as the longest list in the file; a single channel is as good as all.
    let channels = values.iter().map(Vec::len).max().unwrap_or(1);
    let mut arguments: Vec<(&str, Arg)> = Vec::new();
    for (&(name, _), values) in parameters.iter().zip(&mut values) {
        values.resize(channels, values[0]);
        arguments.push((name, Constant::f32(&[channels], values.clone()).map_err(OpError::Invalid)?.into()));
    }
    if channels == 1 && x.dims[x.rank() - 3] != Some(1) {
        // All channels as one: the op sees [1, 1, elements].
        let flat = cx.reshape(x, &[Dim::Known(1), Dim::Known(1), Dim::Rest])?;
        arguments.push(("x", (&flat).into()));
        let y = cx.op(kind, arguments, flat.dims.clone());
        let dims: Vec<_> = (0..x.rank()).map(|axis| Dim::Of(x, axis)).collect();
        return cx.reshape(&y, &dims);
    }
    cx.on_rank4(x, |cx, x| {
        arguments.push(("x", x.into()));
        Ok(cx.op(kind, arguments, x.dims.clone()))
    })
}

fn gelu(cx: &mut Context<'_>, p: &spec::GeluLayerParams) -> Result<Blob, OpError> {
    let x = cx.one()?;
    let mode = match GeluMode::try_from(p.mode) {
        Ok(GeluMode::Exact) => "EXACT",
        Ok(GeluMode::TanhApproximation) => "TANH_APPROXIMATION",
        Ok(GeluMode::SigmoidApproximation) => "SIGMOID_APPROXIMATION",
        Err(_) => return Err(invalid(format!("unknown mode {}", p.mode))),
    };
    Ok(cx.op("gelu", [("x", (&x).into()), ("mode", mode.into())], x.dims.clone()))
}

fn clamped_relu(cx: &mut Context<'_>, p: &spec::ClampedReLuLayerParams) -> Result<Blob, OpError> {
    let x = cx.one()?;
    let arguments = [("x", (&x).into()), ("alpha", p.alpha.into()), ("beta", p.beta.into())];
    Ok(cx.op("clamped_relu", arguments, x.dims.clone()))
}
