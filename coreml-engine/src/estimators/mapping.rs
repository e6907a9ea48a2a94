//! Categorical mapping, array feature extractor and identity (`CategoricalMapping.proto`, `ArrayFeatureExtractor.proto`,
//! `Identity.proto`).

use std::collections::HashMap;

use coreml_proto::proto as spec;
use spec::categorical_mapping::{MappingType, ValueOnUnknown};

use super::{Answer, Built, Compute, Features, Makes, numbers, wrong};
use crate::decode::DecodeError;
use crate::description::ModelDescription;
use crate::error::KernelError;
use crate::feature::{Array, Input, Key, Output};

struct Categories {
    map: HashMap<Key, Key>,
    unknown: Option<Key>,
}

pub(super) fn categorical(model: &spec::CategoricalMapping) -> Result<Built, DecodeError> {
    let spec::CategoricalMapping { mapping_type, value_on_unknown } = model;
    let corrupt = |reason: &str| DecodeError::corrupt("categorical mapping", reason);
    let map = match mapping_type {
        Some(MappingType::StringToInt64Map(map)) => {
            map.map.iter().map(|(key, x)| (Key::String(key.clone()), Key::Int64(*x))).collect()
        }
        Some(MappingType::Int64ToStringMap(map)) => {
            map.map.iter().map(|(key, x)| (Key::Int64(*key), Key::String(x.clone()))).collect()
        }
        None => return Err(corrupt("it maps nothing")),
    };
    let unknown = match (value_on_unknown, mapping_type) {
        (None, _) => None,
        (Some(ValueOnUnknown::StrValue(x)), Some(MappingType::Int64ToStringMap(_))) => {
            Some(Key::String(x.clone()))
        }
        (Some(ValueOnUnknown::Int64Value(x)), Some(MappingType::StringToInt64Map(_))) => Some(Key::Int64(*x)),
        _ => return Err(corrupt("the value for what is unknown is of the wrong type")),
    };
    Ok(Built::one(Categories { map, unknown }))
}

impl Compute for Categories {
    fn run(&self, features: &Features<'_>) -> Result<Answer, KernelError> {
        let key = match features.only()? {
            Some(input) => super::encoding::category(&input)?,
            None => return Err(KernelError::value("the input is missing")),
        };
        let found = self.map.get(&key).or(self.unknown.as_ref());
        let found = found.ok_or_else(|| KernelError::value(format!("{key:?} is not in the mapping")))?;
        Ok(Answer::One(Output::Key(found.clone())))
    }
}

struct Extractor(Vec<usize>);

pub(super) fn extractor(model: &spec::ArrayFeatureExtractor) -> Result<Built, DecodeError> {
    if model.extract_index.is_empty() {
        return Err(DecodeError::corrupt("array feature extractor", "it extracts nothing"));
    }
    let indices = model.extract_index.iter().map(|&i| usize::try_from(i).unwrap_or(usize::MAX));
    Ok(Built::one(Extractor(indices.collect())))
}

impl Compute for Extractor {
    fn run(&self, features: &Features<'_>) -> Result<Answer, KernelError> {
        let input = features.only()?.ok_or_else(|| KernelError::value("the input is missing"))?;
        let x = numbers(&input)?;
        let take = |&i: &usize| {
            let text = || format!("no element {i} in an array of {}", x.len());
            x.get(i).copied().ok_or_else(|| KernelError::value(text()))
        };
        Ok(Answer::numbers(self.0.iter().map(take).collect::<Result<_, _>>()?))
    }
}

/// For every output the input that it is.
struct Identity(Vec<(String, String)>);

pub(super) fn identity(description: &ModelDescription) -> Result<Built, DecodeError> {
    let pairs = match (&description.inputs[..], &description.outputs[..]) {
        ([input], [output]) => vec![(output.name.clone(), input.name.clone())],
        (inputs, outputs) => {
            let same = |output: &crate::description::Feature| {
                let known = inputs.iter().any(|input| input.name == output.name);
                let text =
                    || DecodeError::corrupt(format!("output `{}`", output.name), "no input is called so");
                known.then(|| (output.name.clone(), output.name.clone())).ok_or_else(text)
            };
            outputs.iter().map(same).collect::<Result<_, _>>()?
        }
    };
    let names = pairs.iter().map(|(output, _)| output.clone()).collect();
    Ok(Built { compute: Box::new(Identity(pairs)), makes: Makes::Named(names) })
}

impl Compute for Identity {
    fn run(&self, features: &Features<'_>) -> Result<Answer, KernelError> {
        let pairs =
            self.0.iter().map(|(output, input)| Ok((output.clone(), same(&features.required(input)?)?)));
        Ok(Answer::Named(pairs.collect::<Result<_, KernelError>>()?))
    }
}

/// A copy of an input.
fn same(input: &Input<'_>) -> Result<Output, KernelError> {
    Ok(match input {
        Input::Array(array) => {
            let elements = numbers(input)?;
            let elements = crate::convert::elements_of(&elements, array.dtype).map_err(KernelError::Value)?;
            Output::Array(Array { shape: array.shape.to_vec(), elements })
        }
        Input::Image(image) => {
            let row = image.width * image.format.size();
            let rows = image.pixels.chunks(image.row_bytes.max(1)).take(image.height);
            let pixels: Vec<u8> = rows.flat_map(|line| line.get(..row).unwrap_or(line)).copied().collect();
            if pixels.len() != row * image.height {
                return Err(wrong("an image with all its rows", input));
            }
            Output::Image { format: image.format, width: image.width, height: image.height, pixels }
        }
        Input::Int64(x) => Output::Key(Key::Int64(*x)),
        Input::Double(x) => Output::Double(*x),
        Input::String(text) => Output::Key(Key::String((*text).to_owned())),
        Input::Dictionary(entries) => Output::Dictionary(entries.to_vec()),
        Input::Sequence(keys) => Output::Sequence(keys.to_vec()),
    })
}
