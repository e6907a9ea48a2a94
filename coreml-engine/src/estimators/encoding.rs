//! Features into arrays: one-hot encoder, feature vectorizer, dictionary vectorizer (`OneHotEncoder.proto`,
//! `FeatureVectorizer.proto`, `DictVectorizer.proto`).

use std::collections::HashMap;

use coreml_proto::proto as spec;
use spec::dict_vectorizer::Map;
use spec::one_hot_encoder::{CategoryType, HandleUnknown};

use super::{Answer, Built, Compute, Features, array, numbers, wrong};
use crate::convert;
use crate::decode::DecodeError;
use crate::description::{DictionarySpec, Feature, FeatureKind, KeyType, ModelDescription};
use crate::error::KernelError;
use crate::feature::{Input, Key, Output};
use crate::model::Limits;

/// A categorical value: text or an integer, which may come as a double or an array of one element.
pub(super) fn category(input: &Input<'_>) -> Result<Key, KernelError> {
    match input {
        Input::String(text) => Ok(Key::String((*text).to_owned())),
        Input::Int64(x) => Ok(Key::Int64(*x)),
        other => match numbers(other)?[..] {
            [x] => convert::integer(x).map(Key::Int64).map_err(KernelError::Value),
            _ => Err(wrong("one category", other)),
        },
    }
}

/// The place of every key; none twice.
fn places(keys: impl Iterator<Item = Key>) -> Result<HashMap<Key, usize>, DecodeError> {
    let mut places = HashMap::new();
    for (i, key) in keys.enumerate() {
        if let Some(earlier) = places.insert(key, i) {
            let reason = format!("the places {earlier} and {i} have the same key");
            return Err(DecodeError::corrupt("categories", reason));
        }
    }
    Ok(places)
}

struct OneHot {
    places: HashMap<Key, usize>,
    sparse: bool,
    ignore: bool,
}

pub(super) fn one_hot(
    model: &spec::OneHotEncoder,
    description: &ModelDescription,
) -> Result<Built, DecodeError> {
    let spec::OneHotEncoder { output_sparse, handle_unknown, category_type } = model;
    let places = match category_type {
        Some(CategoryType::StringCategories(keys)) => places(keys.vector.iter().cloned().map(Key::String))?,
        Some(CategoryType::Int64Categories(keys)) => places(keys.vector.iter().copied().map(Key::Int64))?,
        None => return Err(DecodeError::corrupt("one-hot encoder", "it has no categories")),
    };
    let unknown = HandleUnknown::try_from(*handle_unknown).map_err(|_| {
        DecodeError::corrupt("one-hot encoder", "it does not say what to do with the unknown")
    })?;
    // What a sparse output has as its key is the place, which is an integer.
    let text = |kind: &FeatureKind| matches!(kind, FeatureKind::Dictionary { dictionary } if dictionary.key == KeyType::String);
    if *output_sparse && description.outputs.iter().any(|f| text(&f.kind)) {
        return Err(DecodeError::Unsupported("a one-hot encoder whose sparse output has text keys".into()));
    }
    Ok(Built::one(OneHot { places, sparse: *output_sparse, ignore: unknown == HandleUnknown::IgnoreUnknown }))
}

impl Compute for OneHot {
    fn run(&self, features: &Features<'_>) -> Result<Answer, KernelError> {
        let input = features.only()?.ok_or_else(|| KernelError::value("the input is missing"))?;
        let key = category(&input)?;
        let place = self.places.get(&key).copied();
        if place.is_none() && !self.ignore {
            return Err(KernelError::value(format!("{key:?} is not a category")));
        }
        Ok(Answer::One(if self.sparse {
            let key = |place| i64::try_from(place).ok().map(|place| (Key::Int64(place), 1.0));
            Output::Dictionary(place.and_then(key).into_iter().collect())
        } else {
            let mut hot = vec![0.0; self.places.len()];
            if let Some(x) = place.and_then(|place| hot.get_mut(place)) {
                *x = 1.0;
            }
            array(vec![hot.len()], hot)
        }))
    }
}

struct FeatureVectorizer {
    columns: Vec<(String, usize)>,
}

pub(super) fn feature_vectorizer(
    model: &spec::FeatureVectorizer,
    description: &ModelDescription,
    limits: &Limits,
) -> Result<Built, DecodeError> {
    let corrupt = |reason: String| DecodeError::corrupt("feature vectorizer", reason);
    let mut all = 0_usize;
    let mut columns = Vec::with_capacity(model.input_list.len());
    for column in &model.input_list {
        let width = usize::try_from(column.input_dimensions).unwrap_or(usize::MAX);
        all = all.saturating_add(width);
        if !description.inputs.iter().any(|f| f.name == column.input_column) {
            return Err(corrupt(format!("no input `{}`", column.input_column)));
        }
        columns.push((column.input_column.clone(), width));
    }
    if all > limits.tensor_elements {
        return Err(corrupt(format!("{all} dimensions, over the limit of {}", limits.tensor_elements)));
    }
    Ok(Built::one(FeatureVectorizer { columns }))
}

impl Compute for FeatureVectorizer {
    fn run(&self, features: &Features<'_>) -> Result<Answer, KernelError> {
        let mut all = Vec::new();
        for (name, width) in &self.columns {
            let input = features.required(name)?;
            if let Input::Dictionary(entries) = input {
                // A sparse vector: its keys are places.
                let start = all.len();
                all.resize(start + width, 0.0);
                for (key, x) in entries {
                    let place = match key {
                        Key::Int64(place) => usize::try_from(*place).ok().filter(|place| place < width),
                        Key::String(_) => None,
                    };
                    let place = place.ok_or_else(|| {
                        KernelError::value(format!("`{name}` has {key:?}, which is no place below {width}"))
                    })?;
                    all[start + place] = *x;
                }
                continue;
            }
            let found = numbers(&input)?;
            if found.len() != *width {
                return Err(KernelError::shape(format!("`{name}` has {} numbers, not {width}", found.len())));
            }
            all.extend(found);
        }
        Ok(Answer::One(array(vec![all.len()], all)))
    }
}

struct DictionaryVectorizer {
    places: HashMap<Key, usize>,
    sparse: bool,
}

/// The output is what the description says: an array with a place for each key of the mapping, or a dictionary by those places,
/// which is what coremltools writes for scikit-learn's. A key without a place is left out, as scikit-learn leaves it: coremltools
/// tests that Core ML does so, whatever `DictVectorizer.proto` says.
pub(super) fn dictionary_vectorizer(
    model: &spec::DictVectorizer,
    description: &ModelDescription,
) -> Result<Built, DecodeError> {
    let places = match &model.map {
        Some(Map::StringToIndex(keys)) => places(keys.vector.iter().cloned().map(Key::String))?,
        Some(Map::Int64ToIndex(keys)) => places(keys.vector.iter().copied().map(Key::Int64))?,
        None => return Err(DecodeError::corrupt("dictionary vectorizer", "it maps nothing")),
    };
    let sparse = match &description.outputs[..] {
        [Feature { kind: FeatureKind::Dictionary { dictionary }, .. }] => {
            if dictionary.key == KeyType::String {
                let what = "a dictionary vectorizer whose sparse output has text keys";
                return Err(DecodeError::Unsupported(what.into()));
            }
            true
        }
        _ => false,
    };
    Ok(Built::one(DictionaryVectorizer { places, sparse }))
}

/// The type of the keys of an input that is vectorized is that of the mapping, whatever the description says: coremltools'
/// converter announces text for every dictionary, and Core ML takes the integers of its test.
pub(super) fn dictionary_keys(model: &spec::DictVectorizer, description: &mut ModelDescription) {
    let found = match &model.map {
        Some(Map::StringToIndex(_)) => KeyType::String,
        Some(Map::Int64ToIndex(_)) => KeyType::Int64,
        None => return,
    };
    if let [Feature { kind: FeatureKind::Dictionary { dictionary: DictionarySpec { key } }, .. }] =
        &mut description.inputs[..]
    {
        *key = found;
    }
}

impl Compute for DictionaryVectorizer {
    fn run(&self, features: &Features<'_>) -> Result<Answer, KernelError> {
        let entries = match features.only()? {
            Some(Input::Dictionary(entries)) => entries,
            Some(other) => return Err(wrong("a dictionary", &other)),
            None => return Err(KernelError::value("the input is missing")),
        };
        let placed = entries.iter().filter_map(|(key, x)| Some((*self.places.get(key)?, *x)));
        Ok(Answer::One(if self.sparse {
            let key = |place| i64::try_from(place).ok().map(Key::Int64);
            Output::Dictionary(placed.filter_map(|(place, x)| Some((key(place)?, x))).collect())
        } else {
            let mut all = vec![0.0; self.places.len()];
            placed.for_each(|(place, x)| all[place] = x);
            array(vec![all.len()], all)
        }))
    }
}
