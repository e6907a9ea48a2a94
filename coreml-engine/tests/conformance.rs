//! Cases of coremltools' own tests, replayed: `cargo xtask conformance record` keeps whole small models with the inputs and
//! the outputs that those tests found right (`docs/conformance.md`).
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod common;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::num::NonZeroUsize;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use coreml_engine::{ArrayRef, Elements, Input, Key, LoadOptions, Model, Output, SharedBytes, ops};
use coreml_proto::proto::mil_spec as mil;
use coreml_proto::proto::{Model as Proto, model::Type as Kind};
use prost::Message;
use serde::Deserialize;

use common::{report, repository};

#[derive(Deserialize)]
struct Case {
    id: String,
    inputs: BTreeMap<String, Value>,
    outputs: BTreeMap<String, Value>,
    spec: String,
    weights: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Value {
    Array { dtype: String, shape: Vec<usize>, data: String },
    Dictionary { keys: Keys, values: Vec<f64> },
    Int64 { int64: i64 },
    Double { double: f64 },
    String { string: String },
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Keys {
    Strings(Vec<String>),
    Integers(Vec<i64>),
}

impl Keys {
    fn keys(&self) -> Vec<Key> {
        match self {
            Self::Strings(keys) => keys.iter().cloned().map(Key::String).collect(),
            Self::Integers(keys) => keys.iter().copied().map(Key::Int64).collect(),
        }
    }
}

/// What an input borrows from.
enum Held {
    Array(Vec<usize>, Elements),
    Dictionary(Vec<(Key, f64)>),
    Int64(i64),
    Double(f64),
    String(String),
}

impl Held {
    fn of(value: &Value) -> Self {
        match value {
            Value::Array { dtype, shape, data } => Self::Array(shape.clone(), elements(dtype, data)),
            Value::Dictionary { keys, values } => {
                Self::Dictionary(keys.keys().into_iter().zip(values.iter().copied()).collect())
            }
            Value::Int64 { int64 } => Self::Int64(*int64),
            Value::Double { double } => Self::Double(*double),
            Value::String { string } => Self::String(string.clone()),
        }
    }

    fn input(&self) -> Input<'_> {
        match self {
            Self::Array(shape, elements) => Input::Array(ArrayRef {
                dtype: elements.dtype(),
                shape,
                strides: None,
                bytes: elements.bytes(),
            }),
            Self::Dictionary(entries) => Input::Dictionary(entries),
            Self::Int64(number) => Input::Int64(*number),
            Self::Double(number) => Input::Double(*number),
            Self::String(text) => Input::String(text),
        }
    }
}

fn elements(dtype: &str, data: &str) -> Elements {
    let bytes = BASE64_STANDARD.decode(data).unwrap();
    match dtype {
        "float16" => {
            Elements::Float16(bytes.as_chunks().0.iter().map(|&b| half::f16::from_le_bytes(b)).collect())
        }
        "float32" => Elements::Float32(bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()),
        "float64" => Elements::Float64(bytes.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b)).collect()),
        "int8" => Elements::Int8(bytes.iter().map(|&b| i8::from_le_bytes([b])).collect()),
        "int32" => Elements::Int32(bytes.as_chunks().0.iter().map(|&b| i32::from_le_bytes(b)).collect()),
        other => panic!("{other}"),
    }
}

/// The elements as numbers, and whether they are whole.
fn numbers(elements: &Elements) -> (Vec<f64>, bool) {
    match elements {
        Elements::Float16(all) => (all.iter().map(|x| x.to_f64()).collect(), false),
        Elements::Float32(all) => (all.iter().map(|&x| x.into()).collect(), false),
        Elements::Float64(all) => (all.clone(), false),
        Elements::Int8(all) => (all.iter().map(|&x| x.into()).collect(), true),
        Elements::Int32(all) => (all.iter().map(|&x| x.into()).collect(), true),
    }
}

/// Within 2e-3, absolute and relative: a step of float16 and what another order of additions makes of it.
fn close(found: f64, right: f64) -> bool {
    found == right
        || (found.is_nan() && right.is_nan())
        || (found - right).abs() <= 2e-3 * (1.0 + right.abs())
}

fn compare(found: &Output, right: &Value) -> Result<(), String> {
    let same = match (found, right) {
        (Output::Array(found), Value::Array { dtype, shape, data }) => {
            // Both forms of a scalar are right.
            let product = |shape: &[usize]| shape.iter().product::<usize>();
            if found.shape != *shape && (product(shape) != 1 || product(&found.shape) != 1) {
                return Err(format!("shape {:?} where {shape:?} is right", found.shape));
            }
            let ((found, _), (right, whole)) = (numbers(&found.elements), numbers(&elements(dtype, data)));
            found.len() == right.len()
                && found.iter().zip(&right).all(|(&f, &r)| if whole { f == r } else { close(f, r) })
        }
        (Output::Key(Key::Int64(found)), Value::Int64 { int64 }) => found == int64,
        (Output::Key(Key::String(found)), Value::String { string }) => found == string,
        (Output::Double(found), Value::Double { double }) => close(*found, *double),
        (Output::Dictionary(found), Value::Dictionary { keys, values }) => {
            let right: Vec<_> = keys.keys().into_iter().zip(values).collect();
            found.len() == right.len()
                && right
                    .iter()
                    .all(|(key, number)| found.iter().any(|(k, n)| k == key && close(*n, **number)))
        }
        _ => false,
    };
    if same { Ok(()) } else { Err(format!("{found:?} differs")) }
}

/// What an engine that is a little wrong would answer: numbers times 1.1 plus 0.05, integers one more.
fn spoil(output: &mut Output) {
    let wrong = |number: f64| number * 1.1 + 0.05;
    match output {
        Output::Array(array) => match &mut array.elements {
            Elements::Float16(all) => {
                all.iter_mut().for_each(|x| *x = half::f16::from_f64(wrong(x.to_f64())));
            }
            Elements::Float32(all) => all.iter_mut().for_each(|x| *x = wrong((*x).into()) as f32),
            Elements::Float64(all) => all.iter_mut().for_each(|x| *x = wrong(*x)),
            Elements::Int8(all) => all.iter_mut().for_each(|x| *x = x.wrapping_add(1)),
            Elements::Int32(all) => all.iter_mut().for_each(|x| *x = x.wrapping_add(1)),
        },
        Output::Key(Key::Int64(number)) => *number = number.wrapping_add(1),
        Output::Double(number) => *number = wrong(*number),
        Output::Dictionary(entries) => entries.iter_mut().for_each(|(_, number)| *number = wrong(*number)),
        _ => {}
    }
}

fn check(case: &Case, spoilt: bool) -> Result<(), String> {
    let spec = BASE64_STANDARD.decode(&case.spec).unwrap();
    let mut files = HashMap::new();
    if let Some(weights) = &case.weights {
        let weights = BASE64_STANDARD.decode(weights).unwrap();
        files.insert("@model_path/weights/weight.bin".to_owned(), SharedBytes::new(weights));
    }
    let model =
        Model::from_memory("case", &spec, &files, &LoadOptions::default()).map_err(|error| report(&error))?;
    let held: Vec<_> = case.inputs.iter().map(|(name, value)| (name.as_str(), Held::of(value))).collect();
    let inputs: Vec<_> = held.iter().map(|(name, held)| (*name, held.input())).collect();
    let mut found =
        model.session(NonZeroUsize::MIN).predict(&inputs, None, &[]).map_err(|error| report(&error))?;
    for (name, right) in &case.outputs {
        let output = found.iter_mut().find(|(found, _)| *found == *name).map(|(_, output)| output);
        let output = output.ok_or_else(|| format!("no output `{name}`"))?;
        if spoilt {
            spoil(output);
        }
        compare(output, right)
            .map_err(|error| format!("`{name}`: {}", error.chars().take(300).collect::<String>()))?;
    }
    Ok(())
}

fn corpus() -> Vec<Case> {
    let mut cases = Vec::new();
    for entry in std::fs::read_dir(repository("conformance/corpus")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension() == Some("jsonl".as_ref()) {
            let text = std::fs::read_to_string(&path).unwrap();
            cases.extend(text.lines().map(|line| serde_json::from_str::<Case>(line).unwrap()));
        }
    }
    cases
}

#[test]
fn recorded_cases_of_coremltools_tests_give_the_verified_outputs() {
    let cases = corpus();
    let failures: Vec<String> = cases
        .iter()
        .filter_map(|case| check(case, false).err().map(|error| format!("{}: {error}", case.id)))
        .collect();
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    let tests: BTreeSet<&str> = cases.iter().map(|case| case.id.split('[').next().unwrap()).collect();
    println!("{} cases of {} tests", cases.len(), tests.len());
    assert!(tests.len() >= 90, "only {} tests are recorded", tests.len());
}

/// Ops without a case here that wait for a larger sample. Their recorded answers are in `models/ops`, which `tests/ops.rs` replays;
/// the test below demands them.
const NOT_SAMPLED: &str = "\
    affine ceil conv_quantized conv_transpose einsum fill fill_like logical_and logical_not logical_or logical_xor \
    pixel_unshuffle resize_bilinear";
/// Ops without a case here: they make random numbers, have states, which a case does not hold, or no test of them is in the sample
/// with a model small enough. Their tests are in the engine's own files.
const NOT_RECORDABLE: &str = "non_maximum_suppression random_bernoulli random_categorical random_normal random_uniform \
    read_state write_state";

/// Adds the ops of a block of a program, and of the blocks inside.
fn add_ops(block: &mil::Block, ops: &mut BTreeSet<String>) {
    for op in &block.operations {
        ops.insert(op.r#type.clone());
        op.blocks.iter().for_each(|block| add_ops(block, ops));
    }
}

/// An op that is new to the engine is recorded, or is listed with a reason; one that is recorded is not listed.
#[test]
fn every_op_is_recorded_or_listed() {
    let mut recorded = BTreeSet::new();
    for case in corpus() {
        let model = Proto::decode(&BASE64_STANDARD.decode(&case.spec).unwrap()[..]).unwrap();
        let Some(Kind::MlProgram(program)) = model.r#type else { continue };
        let blocks = program.functions.values().flat_map(|function| function.block_specializations.values());
        blocks.for_each(|block| add_ops(block, &mut recorded));
    }
    let ops = ops::FAMILIES.iter().flat_map(|family| family.ops).map(|op| op.name);
    let missing: BTreeSet<&str> = ops.filter(|op| !recorded.contains(*op)).collect();
    let listed: BTreeSet<&str> =
        [NOT_RECORDABLE, NOT_SAMPLED].iter().flat_map(|ops| ops.split_whitespace()).collect();
    let unlisted: Vec<_> = missing.difference(&listed).collect();
    assert!(unlisted.is_empty(), "{} ops are not recorded: {unlisted:?}", unlisted.len());
    let superfluous: Vec<_> = listed.difference(&missing).collect();
    assert!(superfluous.is_empty(), "recorded or unknown, but listed: {superfluous:?}");
    let untested: Vec<_> = NOT_SAMPLED
        .split_whitespace()
        .filter(|op| !repository("models/ops").join(format!("{op}.json")).exists())
        .collect();
    assert!(untested.is_empty(), "neither recorded here nor in models/ops: {untested:?}");
    let sources: Vec<String> = std::fs::read_dir(repository("coreml-engine/src/ops"))
        .unwrap()
        .map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap())
        .collect();
    let tests: Vec<&str> =
        sources.iter().filter_map(|text| Some(text.split_once("#[cfg(test)]")?.1)).collect();
    let untested: Vec<_> = NOT_RECORDABLE
        .split_whitespace()
        .filter(|op| !tests.iter().any(|text| text.contains(&format!("\"{op}\""))))
        .collect();
    assert!(untested.is_empty(), "no test in the engine's own files: {untested:?}");
}

/// What the replay is worth: at most one case in twenty has outputs (none, infinite, text) that [`spoil`] leaves right.
#[test]
fn spoilt_outputs_are_noticed() {
    let cases = corpus();
    let passed = cases.iter().filter(|case| check(case, true).is_ok()).count();
    assert!(passed * 20 <= cases.len(), "{passed} of {} cases pass with wrong outputs", cases.len());
}
