//! `custom`: a layer that the user of the engine supplies.

use std::collections::BTreeMap;
use std::sync::Arc;

use coreml_proto::proto as spec;
use spec::custom_layer_params::custom_layer_param_value::Value;
use spec::neural_network_layer::Layer;

use super::context::{Blob, int, invalid, unsupported};
use super::control_flow::{Lowering, error_of};
use super::{LayerDef, Lower};
use crate::custom::{Custom, CustomParameter, CustomSpec, CustomWeights};
use crate::decode::DecodeError;
use crate::error::OpError;
use crate::ir::Constant;
use crate::ir::widen_halves;
use crate::types::DType;

pub(super) const LAYERS: &[LayerDef] = &[LayerDef { name: "custom", lower: Lower::Flow(custom) }];

fn custom<'a>(cx: &mut Lowering<'a, '_>, layer: &'a spec::NeuralNetworkLayer) -> Result<(), DecodeError> {
    let error = |source| error_of(layer, source);
    let Some(Layer::Custom(parameters)) = &layer.layer else {
        return Err(error(super::misrouted_layer("custom")));
    };
    let inputs = layer.input.iter().map(|name| cx.input(name).cloned());
    let inputs = inputs.collect::<Result<Vec<_>, _>>().map_err(error)?;
    let described = describe(&layer.name, parameters).map_err(error)?;
    let class = || described.class.clone();
    let made = cx.custom.make(&described);
    let made = made
        .ok_or_else(|| error(OpError::Unregistered { class: class(), layer: layer.name.clone() }))?
        .map_err(|source| error(OpError::Custom { class: class(), source }))?;
    let known: Vec<_> = inputs.iter().map(|blob| blob.dims.clone()).collect();
    let shapes =
        made.output_shapes(&known).map_err(|source| error(OpError::Custom { class: class(), source }))?;
    if shapes.len() != layer.output.len() {
        let reason = format!("`{}` makes {} outputs, not {}", class(), shapes.len(), layer.output.len());
        return Err(error(invalid(reason)));
    }
    let number = int(cx.function.customs.len()).map_err(error)?;
    cx.function.customs.push(Custom { class: class().into(), layer: Arc::from(made) });
    let number = cx.function.new_constant("layer", Constant::int(number));
    let mut context = cx.context(layer);
    let mut arguments = vec![("layer", number.into())];
    if !inputs.is_empty() {
        arguments.push(("inputs", inputs.as_slice().into()));
    }
    let made: Vec<Blob> =
        context.ops("#custom", arguments, shapes.into_iter().map(|dims| (DType::F32, dims)).collect());
    cx.bind(layer, made, false)
}

fn describe(name: &str, parameters: &spec::CustomLayerParams) -> Result<CustomSpec, OpError> {
    let spec::CustomLayerParams { class_name, weights, parameters, description } = parameters;
    let value = |value: &Value| match value {
        Value::DoubleValue(x) => CustomParameter::Double(*x),
        Value::StringValue(x) => CustomParameter::String(x.clone()),
        Value::IntValue(x) => CustomParameter::Int((*x).into()),
        Value::LongValue(x) => CustomParameter::Int(*x),
        Value::BoolValue(x) => CustomParameter::Bool(*x),
    };
    let parameters = parameters.iter().map(|(name, parameter)| {
        let parameter = parameter.value.as_ref().map(value);
        let parameter = parameter.ok_or_else(|| invalid(format!("the parameter `{name}` has no value")))?;
        Ok((name.clone(), parameter))
    });
    Ok(CustomSpec {
        name: name.to_owned(),
        class: class_name.clone(),
        description: description.clone(),
        parameters: parameters.collect::<Result<BTreeMap<_, _>, OpError>>()?,
        weights: weights.iter().map(weight).collect::<Result<_, _>>()?,
    })
}

fn weight(weights: &spec::WeightParams) -> Result<CustomWeights, OpError> {
    let spec::WeightParams {
        float_value,
        float16_value,
        raw_value,
        int8_raw_value,
        quantization,
        is_updatable: _,
    } = weights;
    if quantization.is_some() || !int8_raw_value.is_empty() {
        return Err(unsupported("quantised weights of a custom layer"));
    }
    match (float_value.is_empty(), float16_value.is_empty(), raw_value.is_empty()) {
        (_, true, true) => Ok(CustomWeights::Floats(float_value.clone())),
        (true, false, true) => {
            if !float16_value.len().is_multiple_of(2) {
                return Err(invalid(format!("{} bytes of halves", float16_value.len())));
            }
            Ok(CustomWeights::Floats(widen_halves(float16_value)))
        }
        (true, true, false) => Ok(CustomWeights::Bytes(raw_value.clone())),
        _ => Err(invalid("weights of several types")),
    }
}
