//! Layers of random numbers: see [`crate::ops::random`] for what a seed means.

use coreml_proto::proto as spec;

use super::context::{Arg, Blob, Context, Dims, int, ints, invalid, size, sizes};
use super::{LayerDef, shape::shape_in};
use crate::error::OpError;

pub(super) const LAYERS: &[LayerDef] = &[
    layer!("randomNormalLike", RandomNormalLike, |cx, p: &spec::RandomNormalLikeLayerParams| {
        like(cx)?.normal(cx, p.seed, p.mean, p.std_dev)
    }),
    layer!("randomNormalStatic", RandomNormalStatic, |cx, p: &spec::RandomNormalStaticLayerParams| {
        fixed(cx, &p.output_shape)?.normal(cx, p.seed, p.mean, p.std_dev)
    }),
    layer!("randomNormalDynamic", RandomNormalDynamic, |cx, p: &spec::RandomNormalDynamicLayerParams| {
        computed(cx)?.normal(cx, p.seed, p.mean, p.std_dev)
    }),
    layer!("randomUniformLike", RandomUniformLike, |cx, p: &spec::RandomUniformLikeLayerParams| {
        like(cx)?.uniform(cx, p.seed, p.min_val, p.max_val)
    }),
    layer!("randomUniformStatic", RandomUniformStatic, |cx, p: &spec::RandomUniformStaticLayerParams| {
        fixed(cx, &p.output_shape)?.uniform(cx, p.seed, p.min_val, p.max_val)
    }),
    layer!("randomUniformDynamic", RandomUniformDynamic, |cx, p: &spec::RandomUniformDynamicLayerParams| {
        computed(cx)?.uniform(cx, p.seed, p.min_val, p.max_val)
    }),
    layer!("randomBernoulliLike", RandomBernoulliLike, |cx, p: &spec::RandomBernoulliLikeLayerParams| {
        like(cx)?.bernoulli(cx, p.seed, p.prob)
    }),
    layer!(
        "randomBernoulliStatic",
        RandomBernoulliStatic,
        |cx, p: &spec::RandomBernoulliStaticLayerParams| {
            fixed(cx, &p.output_shape)?.bernoulli(cx, p.seed, p.prob)
        }
    ),
    layer!(
        "randomBernoulliDynamic",
        RandomBernoulliDynamic,
        |cx, p: &spec::RandomBernoulliDynamicLayerParams| { computed(cx)?.bernoulli(cx, p.seed, p.prob) }
    ),
    layer!("categoricalDistribution", CategoricalDistribution, categorical),
];

/// The shape of what a layer makes.
struct Shape {
    argument: Arg,
    dims: Dims,
}

/// That of the input.
fn like(cx: &mut Context<'_>) -> Result<Shape, OpError> {
    let x = cx.one()?;
    Ok(Shape { argument: cx.shape(&x).into(), dims: x.dims })
}

/// One in the file.
fn fixed(cx: &Context<'_>, shape: &[u64]) -> Result<Shape, OpError> {
    cx.count(0..=0)?;
    let shape = sizes(shape)?;
    Ok(Shape { argument: ints(&shape)?.into(), dims: shape.into_iter().map(Some).collect() })
}

/// What the input says.
fn computed(cx: &mut Context<'_>) -> Result<Shape, OpError> {
    let shape = cx.one()?;
    let (argument, dims) = shape_in(cx, shape)?;
    Ok(Shape { argument, dims })
}

impl Shape {
    fn normal(self, cx: &mut Context<'_>, seed: i64, mean: f32, deviation: f32) -> Result<Blob, OpError> {
        self.op(cx, "random_normal", seed, &[("mean", mean), ("stddev", deviation)])
    }

    fn uniform(self, cx: &mut Context<'_>, seed: i64, low: f32, high: f32) -> Result<Blob, OpError> {
        self.op(cx, "random_uniform", seed, &[("low", low), ("high", high)])
    }

    fn bernoulli(self, cx: &mut Context<'_>, seed: i64, prob: f32) -> Result<Blob, OpError> {
        self.op(cx, "random_bernoulli", seed, &[("prob", prob)])
    }

    fn op(
        self,
        cx: &mut Context<'_>,
        kind: &str,
        seed: i64,
        parameters: &[(&'static str, f32)],
    ) -> Result<Blob, OpError> {
        let parameters = parameters.iter().map(|&(name, x)| (name, x.into()));
        let arguments = [("shape", self.argument), ("seed", int(seed)?.into())].into_iter().chain(parameters);
        Ok(cx.op(kind, arguments, self.dims))
    }
}

/// Samples of the last axis. Probabilities become logits: `log(x + eps)`, over the temperature.
fn categorical(cx: &mut Context<'_>, p: &spec::CategoricalDistributionLayerParams) -> Result<Blob, OpError> {
    /// Where the file has none.
    const EPS: f32 = 1e-10;
    let mut x = cx.one()?;
    x.at_least(1)?;
    let samples = size(p.num_samples)?;
    if !p.is_logits {
        let epsilon = if p.eps == 0.0 { EPS } else { p.eps };
        x = cx.op("log", [("x", (&x).into()), ("epsilon", epsilon.into())], x.dims.clone());
    }
    let temperature = if p.temperature == 0.0 { 1.0 } else { p.temperature };
    if !(temperature > 0.0 && temperature.is_finite()) {
        return Err(invalid(format!("a temperature of {temperature}")));
    }
    if temperature != 1.0 {
        x = cx.with("real_div", &x, temperature);
    }
    let mut dims = x.dims.clone();
    dims.pop();
    dims.push(Some(samples));
    let arguments = [
        ("x", (&x).into()),
        ("mode", "logits".into()),
        ("size", int(samples)?.into()),
        ("seed", int(p.seed)?.into()),
    ];
    Ok(cx.op("random_categorical", arguments, dims))
}
