//! Steps that keep the form of a feature: imputer, scaler, normalizer (`Imputer.proto`, `Scaler.proto`, `Normalizer.proto`).

use coreml_proto::proto as spec;
use spec::imputer::{ImputedValue, ReplaceValue};
use spec::normalizer::NormType;

use super::{Answer, Built, Compute, Features, array, numbers, wrong};
use crate::decode::DecodeError;
use crate::error::KernelError;
use crate::feature::{Input, Key, Output};

/// The numbers of the only input, and what makes them an output of the same form.
fn of_form(features: &Features<'_>) -> Result<(Vec<f64>, impl FnOnce(Vec<f64>) -> Answer), KernelError> {
    let input = features.only()?.ok_or_else(|| KernelError::value("the input is missing"))?;
    let shape = match &input {
        Input::Array(array) => Some(array.shape.to_vec()),
        _ => None,
    };
    Ok((numbers(&input)?, |made: Vec<f64>| match shape {
        Some(shape) => Answer::One(array(shape, made)),
        None => Answer::numbers(made),
    }))
}

struct Scaler {
    shift: Vec<f64>,
    scale: Vec<f64>,
}

pub(super) fn scaler(model: &spec::Scaler) -> Built {
    let spec::Scaler { shift_value, scale_value } = model;
    Built::one(Scaler { shift: shift_value.clone(), scale: scale_value.clone() })
}

/// The value for the `i`-th of `n` numbers: the default if there are none, the same for all if there is one.
fn value(values: &[f64], i: usize, n: usize, default: f64) -> Result<f64, KernelError> {
    match values {
        [] => Ok(default),
        [x] => Ok(*x),
        all if all.len() == n => Ok(all[i]),
        all => Err(KernelError::shape(format!("{} values for {n} numbers", all.len()))),
    }
}

impl Compute for Scaler {
    fn run(&self, features: &Features<'_>) -> Result<Answer, KernelError> {
        let (mut x, form) = of_form(features)?;
        let n = x.len();
        for (i, x) in x.iter_mut().enumerate() {
            *x = value(&self.scale, i, n, 1.0)? * (*x + value(&self.shift, i, n, 0.0)?);
        }
        Ok(form(x))
    }
}

struct Normalizer(NormType);

pub(super) fn normalizer(model: &spec::Normalizer) -> Result<Built, DecodeError> {
    let norm = NormType::try_from(model.norm_type)
        .map_err(|_| DecodeError::corrupt("normalizer", format!("unknown norm {}", model.norm_type)))?;
    Ok(Built::one(Normalizer(norm)))
}

impl Compute for Normalizer {
    fn run(&self, features: &Features<'_>) -> Result<Answer, KernelError> {
        let (mut x, form) = of_form(features)?;
        let norm = match self.0 {
            NormType::LMax => x.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            NormType::L1 => x.iter().map(|x| x.abs()).sum(),
            NormType::L2 => x.iter().map(|x| x * x).sum::<f64>().sqrt(),
        };
        // What has no length stays as it is, as in scikit-learn.
        if norm != 0.0 {
            x.iter_mut().for_each(|x| *x /= norm);
        }
        Ok(form(x))
    }
}

struct Imputer {
    imputed: ImputedValue,
    replace: Option<ReplaceValue>,
}

pub(super) fn imputer(model: &spec::Imputer) -> Result<Built, DecodeError> {
    let spec::Imputer { imputed_value, replace_value } = model;
    let corrupt = |reason: &str| DecodeError::corrupt("imputer", reason);
    let imputed = imputed_value.clone().ok_or_else(|| corrupt("it has no value to put in"))?;
    use {ImputedValue as I, ReplaceValue as R};
    let fits = match &imputed {
        I::ImputedDoubleValue(_)
        | I::ImputedDoubleArray(_)
        | I::ImputedStringDictionary(_)
        | I::ImputedInt64Dictionary(_) => matches!(replace_value, Some(R::ReplaceDoubleValue(_)) | None),
        I::ImputedInt64Value(_) | I::ImputedInt64Array(_) => {
            matches!(replace_value, Some(R::ReplaceInt64Value(_)) | None)
        }
        I::ImputedStringValue(_) => matches!(replace_value, Some(R::ReplaceStringValue(_)) | None),
    };
    if !fits {
        return Err(corrupt("the value to replace is not of the type of the one to put in"));
    }
    Ok(Built::one(Imputer { imputed, replace: replace_value.clone() }))
}

impl Imputer {
    /// Whether a number counts as missing; without a word in the model NaN does.
    fn misses(&self, x: f64) -> bool {
        match &self.replace {
            Some(ReplaceValue::ReplaceDoubleValue(y)) => x == *y || (x.is_nan() && y.is_nan()),
            Some(ReplaceValue::ReplaceInt64Value(y)) => x == *y as f64,
            Some(ReplaceValue::ReplaceStringValue(_)) => false,
            None => x.is_nan(),
        }
    }

    /// Numbers with what is missing put in.
    fn fill(&self, features: &Features<'_>, with: &[f64]) -> Result<Answer, KernelError> {
        if features.only()?.is_none() {
            return Ok(match with {
                [x] => Answer::numbers(vec![*x]),
                all => Answer::One(array(vec![all.len()], all.to_vec())),
            });
        }
        let (mut x, form) = of_form(features)?;
        let n = x.len();
        for (i, x) in x.iter_mut().enumerate() {
            let put = value(with, i, n, 0.0)?;
            if self.misses(*x) {
                *x = put;
            }
        }
        Ok(form(x))
    }
}

impl Compute for Imputer {
    fn run(&self, features: &Features<'_>) -> Result<Answer, KernelError> {
        let input = features.only()?;
        match &self.imputed {
            ImputedValue::ImputedDoubleValue(x) => self.fill(features, &[*x]),
            ImputedValue::ImputedDoubleArray(x) if x.vector.is_empty() => {
                Err(KernelError::shape("no values to put in"))
            }
            ImputedValue::ImputedDoubleArray(x) => self.fill(features, &x.vector),
            // A whole int64 must not lose its last digits on the way through a double.
            ImputedValue::ImputedInt64Value(put) => match input {
                None => Ok(Answer::One(Output::Key(Key::Int64(*put)))),
                Some(Input::Int64(x)) => {
                    let missing = matches!(self.replace, Some(ReplaceValue::ReplaceInt64Value(y)) if x == y);
                    Ok(Answer::One(Output::Key(Key::Int64(if missing { *put } else { x }))))
                }
                Some(_) => self.fill(features, &[*put as f64]),
            },
            ImputedValue::ImputedInt64Array(x) if x.vector.is_empty() => {
                Err(KernelError::shape("no values to put in"))
            }
            ImputedValue::ImputedInt64Array(x) => {
                let x: Vec<f64> = x.vector.iter().map(|&x| x as f64).collect();
                self.fill(features, &x)
            }
            ImputedValue::ImputedStringValue(put) => {
                let text = match input {
                    None => put,
                    Some(Input::String(text)) => match &self.replace {
                        Some(ReplaceValue::ReplaceStringValue(missing)) if missing == text => put,
                        _ => text,
                    },
                    Some(other) => return Err(wrong("text", &other)),
                };
                Ok(Answer::One(Output::Key(Key::String(text.to_owned()))))
            }
            ImputedValue::ImputedStringDictionary(put) => {
                let put = |key: &Key| match key {
                    Key::String(key) => put.map.get(key).copied(),
                    Key::Int64(_) => None,
                };
                self.fill_entries(input, put)
            }
            ImputedValue::ImputedInt64Dictionary(put) => {
                let put = |key: &Key| match key {
                    Key::Int64(key) => put.map.get(key).copied(),
                    Key::String(_) => None,
                };
                self.fill_entries(input, put)
            }
        }
    }
}

impl Imputer {
    fn fill_entries(
        &self,
        input: Option<Input<'_>>,
        put: impl Fn(&Key) -> Option<f64>,
    ) -> Result<Answer, KernelError> {
        let entries = match input {
            Some(Input::Dictionary(entries)) => entries,
            Some(other) => return Err(wrong("a dictionary", &other)),
            None => return Err(KernelError::value("the input is missing")),
        };
        let filled = entries.iter().map(|(key, x)| {
            if !self.misses(*x) {
                return Ok((key.clone(), *x));
            }
            put(key).map(|put| (key.clone(), put)).ok_or_else(|| {
                KernelError::value(format!("nothing to put in for {key:?}, whose value is missing"))
            })
        });
        Ok(Answer::One(Output::Dictionary(filled.collect::<Result<_, _>>()?)))
    }
}
