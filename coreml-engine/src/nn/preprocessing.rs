//! What is done to image inputs before the first layer.

use std::collections::HashMap;
use std::sync::Arc;

use coreml_proto::proto as spec;
use spec::neural_network_preprocessing::Preprocessor;

use super::context::{Blob, Context, invalid, unsupported};
use crate::decode::DecodeError;
use crate::description::{Color, Feature, FeatureKind};
use crate::error::OpError;
use crate::ir::Function;

/// Adds the ops of one preprocessor, and puts its result in the place of the input.
pub(super) fn apply<'a>(
    function: &mut Function,
    blobs: &mut HashMap<&'a str, Blob>,
    features: &'a [Feature],
    preprocessing: &spec::NeuralNetworkPreprocessing,
) -> Result<(), DecodeError> {
    let wanted = &preprocessing.feature_name;
    let is_image = |feature: &&Feature| matches!(feature.kind, FeatureKind::Image { .. });
    let feature = if wanted.is_empty() {
        // The first version of the format had no name: the model has one image.
        features.iter().find(is_image).filter(|_| features.iter().filter(is_image).count() == 1)
    } else {
        features.iter().find(|feature| feature.name == *wanted)
    };
    let missing = || DecodeError::corrupt("preprocessing", format!("there is no input `{wanted}`"));
    let feature = feature.ok_or_else(missing)?;
    let x = blobs.get(feature.name.as_str()).cloned().ok_or_else(missing)?;
    let mut cx =
        Context { function, name: Arc::from(feature.name.as_str()), inputs: vec![x.clone()], outputs: 1 };
    let y = match &preprocessing.preprocessor {
        Some(Preprocessor::Scaler(scaler)) => scale(&mut cx, &x, feature, scaler),
        Some(Preprocessor::MeanImage(mean)) => subtract(&mut cx, &x, &mean.mean_image),
        None => Err(unsupported("a preprocessor that is not known")),
    };
    let y = y.map_err(|source| DecodeError::Op {
        op: "preprocessing".into(),
        output: feature.name.clone(),
        source,
    })?;
    blobs.insert(&feature.name, y);
    Ok(())
}

/// `channelScale * x + bias`, with a bias per colour.
fn scale(
    cx: &mut Context<'_>,
    x: &Blob,
    feature: &Feature,
    p: &spec::NeuralNetworkImageScaler,
) -> Result<Blob, OpError> {
    let biases = match &feature.kind {
        FeatureKind::Image { image } => match image.color {
            Color::Rgb => vec![p.red_bias, p.green_bias, p.blue_bias],
            Color::Bgr => vec![p.blue_bias, p.green_bias, p.red_bias],
            Color::Gray | Color::GrayFloat16 => vec![p.gray_bias],
        },
        _ => return Err(unsupported("the scaling of an input that is no image")),
    };
    let y = if p.channel_scale == 1.0 { x.clone() } else { cx.with("mul", x, p.channel_scale) };
    if biases.iter().all(|&bias| bias == 0.0) {
        return Ok(y);
    }
    let biases = cx.constant(&[biases.len(), 1, 1], biases)?;
    cx.binary("add", &y, &biases)
}

/// `x - mean`, where the mean has the shape `[C, H, W]` of the input.
fn subtract(cx: &mut Context<'_>, x: &Blob, mean: &[f32]) -> Result<Blob, OpError> {
    x.at_least(3)?;
    let shape: Option<Vec<usize>> = x.dims[x.rank() - 3..].iter().copied().collect();
    let shape = shape.ok_or_else(|| unsupported(format!("a mean image for {}", x.words())))?;
    if crate::types::element_count(&shape) != Some(mean.len()) {
        return Err(invalid(format!("a mean image of {} elements for {}", mean.len(), x.words())));
    }
    let mean = cx.constant(&shape, mean.to_vec())?;
    cx.binary("sub", x, &mean)
}
