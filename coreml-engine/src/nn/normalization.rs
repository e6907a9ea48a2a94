//! Normalisation layers.

use coreml_proto::proto as spec;

use super::context::{Arg, Blob, Context, int, ints, invalid, size, sizes};
use super::{LayerDef, weights};
use crate::error::OpError;
use crate::ir::Constant;

pub(super) const LAYERS: &[LayerDef] = &[
    layer!("batchnorm", Batchnorm, batchnorm),
    layer!("l2normalize", L2normalize, l2_normalize),
    layer!("layerNormalization", LayerNormalization, layer_normalization),
    layer!("lrn", Lrn, lrn),
    layer!("mvn", Mvn, mvn),
    layer!("softmax", Softmax, softmax),
    layer!("softmaxND", SoftmaxNd, softmax_nd),
];

/// A parameter whose default the format writes as 0.
fn or(value: f32, default: f32) -> f32 {
    if value == 0.0 { default } else { value }
}

fn batchnorm(cx: &mut Context<'_>, p: &spec::BatchnormLayerParams) -> Result<Blob, OpError> {
    let x = cx.one()?;
    let channels = size(p.channels)?;
    let epsilon = or(p.epsilon, 1e-5);
    let vector = |name: &'static str, weights: Option<&spec::WeightParams>| {
        weights::floats(name, weights, &[channels])
            .and_then(|data| Constant::f32(&[channels], data).map_err(OpError::Invalid))
    };
    let mut arguments: Vec<(&str, Arg)> = vec![("epsilon", epsilon.into())];
    for (name, weights) in [("gamma", p.gamma.as_ref()), ("beta", p.beta.as_ref())] {
        if weights.is_some() {
            arguments.push((name, vector(name, weights)?.into()));
        }
    }
    if !p.compute_mean_var {
        arguments.push(("mean", vector("mean", p.mean.as_ref())?.into()));
        arguments.push(("variance", vector("variance", p.variance.as_ref())?.into()));
    }
    cx.on_rank4(&x, |cx, x| {
        if x.dims[1].is_some_and(|found| found != channels) {
            return Err(invalid(format!("{} where {channels} channels are expected", x.words())));
        }
        let kind = match (p.compute_mean_var, p.instance_normalization) {
            (false, _) => "batch_norm",
            (true, true) => "instance_norm",
            (true, false) => {
                // Over the whole batch: with the channels in front, each is one instance.
                let swapped = cx.transpose(x, &[1, 0, 2, 3])?;
                let axes: Arg = vec![1, 2, 3].into();
                let normal = [("x", (&swapped).into()), ("axes", axes), ("epsilon", epsilon.into())];
                let normal = cx.op("layer_norm", normal, swapped.dims.clone());
                let mut y = cx.transpose(&normal, &[1, 0, 2, 3])?;
                for (name, weights, kind) in
                    [("gamma", p.gamma.as_ref(), "mul"), ("beta", p.beta.as_ref(), "add")]
                {
                    if weights.is_some() {
                        let values = weights::floats(name, weights, &[channels])?;
                        let values = cx.constant(&[channels, 1, 1], values)?;
                        y = cx.binary(kind, &y, &values)?;
                    }
                }
                return Ok(y);
            }
        };
        arguments.push(("x", x.into()));
        Ok(cx.op(kind, arguments, x.dims.clone()))
    })
}

fn mvn(cx: &mut Context<'_>, p: &spec::MeanVarianceNormalizeLayerParams) -> Result<Blob, OpError> {
    let x = cx.one()?;
    x.at_least(3)?;
    let rank = x.rank();
    let axes: Vec<usize> =
        if p.across_channels { (rank - 3..rank).collect() } else { vec![rank - 2, rank - 1] };
    if !p.normalize_variance {
        let mean = cx.reduce("reduce_mean", &x, &axes, true)?;
        return cx.binary("sub", &x, &mean);
    }
    let epsilon = or(p.epsilon, 1e-6);
    let arguments = [("x", (&x).into()), ("axes", ints(&axes)?.into()), ("epsilon", epsilon.into())];
    Ok(cx.op("layer_norm", arguments, x.dims.clone()))
}

fn l2_normalize(cx: &mut Context<'_>, p: &spec::L2NormalizeLayerParams) -> Result<Blob, OpError> {
    let x = cx.one()?;
    let epsilon = or(p.epsilon, 1e-6);
    cx.on_rank4(&x, |cx, x| {
        Ok(cx.op("l2_norm", [("x", x.into()), ("epsilon", epsilon.into())], x.dims.clone()))
    })
}

fn lrn(cx: &mut Context<'_>, p: &spec::LrnLayerParams) -> Result<Blob, OpError> {
    let x = cx.one()?;
    let size = int(size(p.local_size)?)?;
    cx.on_rank4(&x, |cx, x| {
        let arguments = [
            ("x", x.into()),
            ("size", size.into()),
            ("alpha", p.alpha.into()),
            ("beta", p.beta.into()),
            ("k", or(p.k, 1.0).into()),
        ];
        Ok(cx.op("local_response_norm", arguments, x.dims.clone()))
    })
}

fn softmax_on(cx: &mut Context<'_>, axis: i64) -> Result<Blob, OpError> {
    let x = cx.one()?;
    let axis = int(x.axis(axis)?)?;
    Ok(cx.op("softmax", [("x", (&x).into()), ("axis", axis.into())], x.dims.clone()))
}

fn softmax(cx: &mut Context<'_>, _: &spec::SoftmaxLayerParams) -> Result<Blob, OpError> {
    softmax_on(cx, -3)
}

fn softmax_nd(cx: &mut Context<'_>, p: &spec::SoftmaxNdLayerParams) -> Result<Blob, OpError> {
    softmax_on(cx, p.axis)
}

fn layer_normalization(
    cx: &mut Context<'_>,
    p: &spec::LayerNormalizationLayerParams,
) -> Result<Blob, OpError> {
    let x = cx.one()?;
    let shape = sizes(&p.normalized_shape)?;
    if shape.is_empty() || shape.len() > x.rank() {
        return Err(invalid(format!("the normalised shape {shape:?} of {}", x.words())));
    }
    let first = x.rank() - shape.len();
    if x.dims[first..].iter().zip(&shape).any(|(dim, &size)| dim.is_some_and(|dim| dim != size)) {
        return Err(invalid(format!("the normalised shape {shape:?} of {}", x.words())));
    }
    let axes = ints(&(first..x.rank()).collect::<Vec<_>>())?;
    let mut arguments: Vec<(&str, Arg)> =
        vec![("x", (&x).into()), ("axes", axes.into()), ("epsilon", p.eps.into())];
    for (name, weights) in [("gamma", p.gamma.as_ref()), ("beta", p.beta.as_ref())] {
        let data = weights::floats(name, weights, &shape)?;
        arguments.push((name, Constant::f32(&shape, data).map_err(OpError::Invalid)?.into()));
    }
    Ok(cx.op("layer_norm", arguments, x.dims.clone()))
}
