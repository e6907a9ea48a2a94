//! Estimators and pipelines give what scikit-learn gives, or what the comments of the format say. `fixtures/make_estimators.py`
//! makes the models and the answers.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use common::report;
use coreml_engine::description::{ArrayDtype, Feature, FeatureKind, KeyType};
use coreml_engine::{Array, Elements, Key, LoadOptions, Model, Output, estimators};
use serde_json::Value;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/estimators")
}

fn cases() -> serde_json::Map<String, Value> {
    serde_json::from_str(&std::fs::read_to_string(folder().join("cases.json")).unwrap()).unwrap()
}

fn number(value: &Value) -> f64 {
    if value.is_null() { f64::NAN } else { value.as_f64().unwrap() }
}

fn key(text: &str, kind: KeyType) -> Key {
    match kind {
        KeyType::Int64 => Key::Int64(text.parse().unwrap()),
        KeyType::String => Key::String(text.into()),
    }
}

/// What the JSON says, as a feature of that kind. An array is flat and takes the description's shape, if it has one.
fn value(json: &Value, kind: &FeatureKind) -> Output {
    match kind {
        FeatureKind::Int64 => Output::Key(Key::Int64(json.as_i64().unwrap())),
        FeatureKind::Double => Output::Double(number(json)),
        FeatureKind::String => Output::Key(Key::String(json.as_str().unwrap().into())),
        FeatureKind::Tensor { tensor } => {
            let numbers: Vec<f64> = json.as_array().unwrap().iter().map(number).collect();
            let shape = if tensor.shape.is_empty() { vec![numbers.len()] } else { tensor.shape.clone() };
            let elements = match tensor.dtype {
                ArrayDtype::Float32 => Elements::Float32(numbers.iter().map(|&x| x as f32).collect()),
                ArrayDtype::Float64 => Elements::Float64(numbers),
                other => panic!("{other:?}"),
            };
            Output::Array(Array { shape, elements })
        }
        FeatureKind::Dictionary { dictionary } => {
            let entries = json.as_object().unwrap().iter();
            Output::Dictionary(entries.map(|(k, x)| (key(k, dictionary.key), number(x))).collect())
        }
        FeatureKind::Sequence { sequence } => {
            let text = |x: &Value| x.as_str().map_or_else(|| x.to_string(), str::to_owned);
            let keys = json.as_array().unwrap().iter();
            Output::Sequence(keys.map(|x| key(&text(x), sequence.element)).collect())
        }
        other => panic!("{other:?}"),
    }
}

fn close(a: f64, b: f64, tolerance: f64) -> bool {
    a == b || (a - b).abs() <= tolerance * (1.0 + b.abs())
}

fn numbers(array: &Array) -> Vec<f64> {
    match &array.elements {
        Elements::Float32(x) => x.iter().copied().map(f64::from).collect(),
        Elements::Float64(x) => x.clone(),
        other => panic!("{other:?}"),
    }
}

fn same(found: &Output, expected: &Output, tolerance: f64) -> bool {
    match (found, expected) {
        (Output::Array(a), Output::Array(b)) => {
            let (a, b) = (numbers(a), numbers(b));
            a.len() == b.len() && a.iter().zip(b).all(|(&a, b)| close(a, b, tolerance))
        }
        (Output::Double(a), Output::Double(b)) => close(*a, *b, tolerance),
        (Output::Dictionary(a), Output::Dictionary(b)) => {
            let find = |key| b.iter().find(|(k, _)| k == key).map(|(_, x)| *x);
            a.len() == b.len() && a.iter().all(|(k, x)| find(k).is_some_and(|y| close(*x, y, tolerance)))
        }
        (a, b) => a == b,
    }
}

fn of<'a>(features: &'a [Feature], name: &str) -> &'a FeatureKind {
    &features.iter().find(|f| f.name == name).unwrap().kind
}

#[test]
fn every_case_gives_what_is_expected() {
    let mut failed = Vec::new();
    for (name, case) in cases() {
        let model = match Model::load(folder().join(format!("{name}.mlmodel")), &LoadOptions::default()) {
            Ok(model) => model,
            Err(error) => {
                failed.push(format!("{name}: {}", report(&error)));
                continue;
            }
        };
        let mut session = model.session(NonZeroUsize::MIN);
        let description = model.description();
        let tolerance = case["tolerance"].as_f64().unwrap();
        for row in case["rows"].as_array().unwrap() {
            let given = row[0].as_object().unwrap();
            let inputs: Vec<(&str, Output)> =
                given.iter().map(|(k, x)| (k.as_str(), value(x, of(&description.inputs, k)))).collect();
            let inputs: Vec<_> = inputs.iter().map(|(name, x)| (*name, x.as_input())).collect();
            match (session.predict(&inputs, None, &[]), row[1].as_str()) {
                (Err(error), Some(expected)) => {
                    let found = report(&error);
                    if !found.contains(expected) {
                        failed.push(format!("{name}: error {found:?}, expected {expected:?}"));
                    }
                }
                (Ok(found), None) => {
                    let expected = row[1].as_object().unwrap();
                    assert_eq!(found.len(), expected.len(), "{name}");
                    for (output, found) in found {
                        let expected = value(&expected[&output], of(&description.outputs, &output));
                        if !same(&found, &expected, tolerance) {
                            failed.push(format!("{name}: {output}: {found:?}, expected {expected:?}"));
                        }
                    }
                }
                (found, expected) => failed.push(format!("{name}: {found:?}, expected {expected:?}")),
            }
        }
    }
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
}

#[test]
fn every_kind_has_a_case() {
    use coreml_proto::proto::{Model as ModelProto, model::Type};
    use prost::Message;
    fn kinds(model: &ModelProto, found: &mut BTreeSet<String>) {
        let parts = match model.r#type.as_ref().unwrap() {
            Type::Pipeline(pipeline) => Some(pipeline),
            Type::PipelineClassifier(outer) => outer.pipeline.as_ref(),
            Type::PipelineRegressor(outer) => outer.pipeline.as_ref(),
            other => {
                let text = format!("{other:?}");
                found.insert(text.split('(').next().unwrap().to_lowercase());
                None
            }
        };
        parts.into_iter().flat_map(|pipeline| &pipeline.models).for_each(|part| kinds(part, found));
    }
    let mut found = BTreeSet::new();
    for name in cases().keys() {
        let bytes = std::fs::read(folder().join(format!("{name}.mlmodel"))).unwrap();
        kinds(&ModelProto::decode(&bytes[..]).unwrap(), &mut found);
    }
    let missing: Vec<_> =
        estimators::KINDS.iter().filter(|kind| !found.contains(&kind.to_lowercase())).collect();
    assert!(missing.is_empty(), "{missing:?} have no case");
}

#[test]
fn a_wanted_output_comes_alone() {
    let model =
        Model::load(folder().join("glm_classifier_reference.mlmodel"), &LoadOptions::default()).unwrap();
    let x = value(&serde_json::json!([5.1, 3.5, 1.4, 0.2]), of(&model.description().inputs, "x"));
    let mut session = model.session(NonZeroUsize::MIN);
    let found = session.predict(&[("x", x.as_input())], None, &["label"]).unwrap();
    assert_eq!(found, [("label".to_owned(), Output::Key(Key::String("setosa".into())))]);
}

#[test]
fn an_input_of_another_kind_is_refused_and_named() {
    let model = Model::load(folder().join("glm_regressor.mlmodel"), &LoadOptions::default()).unwrap();
    let mut session = model.session(NonZeroUsize::MIN);
    for wrong in [
        Output::Double(1.0),
        Output::Key(Key::String("a".into())),
        Output::Dictionary(vec![(Key::Int64(1), 2.0)]),
        Output::Array(Array { shape: vec![4], elements: Elements::Float32(vec![0.0; 4]) }),
        Output::Array(Array { shape: vec![5], elements: Elements::Float64(vec![0.0; 5]) }),
    ] {
        let text = session.predict(&[("x", wrong.as_input())], None, &[]).unwrap_err().to_string();
        assert!(text.contains("`x`") && text.contains("tensor float64 [4]"), "{text}");
    }
    let text = session.predict(&[], None, &[]).unwrap_err().to_string();
    assert!(text.contains("`x` is missing"), "{text}");
}
