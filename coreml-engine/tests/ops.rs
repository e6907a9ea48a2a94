//! Every op against recorded answers: coremltools' own value inference, or an independent reference where it has none.
//!
//! `models/fixtures.py` records the cases in `models/ops`; each is a whole model of one op.
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod common;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::num::NonZeroUsize;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use coreml_engine::{Array, ArrayRef, Elements, Input, LoadOptions, Model, Output, ops};
use serde::Deserialize;

use common::{report, repository};

#[derive(Deserialize)]
struct File {
    op: String,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    opset: String,
    parameters: serde_json::Value,
    inputs: Vec<Recorded>,
    outputs: Vec<Recorded>,
    spec: String,
}

#[derive(Deserialize)]
struct Recorded {
    name: String,
    dtype: String,
    shape: Vec<usize>,
    data: String,
}

impl Recorded {
    fn elements(&self) -> Elements {
        let bytes = BASE64_STANDARD.decode(&self.data).unwrap();
        let words = bytes.as_chunks::<4>().0;
        match self.dtype.as_str() {
            "float32" => Elements::Float32(words.iter().map(|&b| f32::from_le_bytes(b)).collect()),
            "int32" => Elements::Int32(words.iter().map(|&b| i32::from_le_bytes(b)).collect()),
            other => panic!("{other}"),
        }
    }
}

/// Cases that may fail, by op and text of the parameters (empty: all), with the reason. One that passes is a failure too.
const EXPECTED_FAILURES: &[(&str, &str, &str)] = &[];

/// The engine's answer to a case is the recorded one, within 1e-4 (absolute and relative); integers exactly.
fn check(case: &Case) -> Result<(), String> {
    let spec = BASE64_STANDARD.decode(&case.spec).unwrap();
    let model = Model::from_memory("case", &spec, &HashMap::new(), &LoadOptions::default())
        .map_err(|e| report(&e))?;
    let elements: Vec<Elements> = case.inputs.iter().map(Recorded::elements).collect();
    let inputs: Vec<_> = case
        .inputs
        .iter()
        .zip(&elements)
        .map(|(input, elements)| {
            let (dtype, bytes) = (elements.dtype(), elements.bytes());
            (input.name.as_str(), Input::Array(ArrayRef { dtype, shape: &input.shape, strides: None, bytes }))
        })
        .collect();
    let mut session = model.session(NonZeroUsize::MIN);
    let found = session.predict(&inputs, None, &[]).map_err(|e| report(&e))?;
    for expected in &case.outputs {
        let output = found.iter().find(|(name, _)| *name == expected.name).map(|(_, output)| output);
        let Some(Output::Array(Array { shape, elements })) = output else {
            return Err(format!("no array `{}`", expected.name));
        };
        if *shape != expected.shape {
            return Err(format!("shape {shape:?} where {:?} is right", expected.shape));
        }
        let same = match (elements, expected.elements()) {
            (Elements::Float32(found), Elements::Float32(right)) => {
                found.iter().zip(&right).all(|(&f, &r)| {
                    f == r || (f.is_nan() && r.is_nan()) || (f - r).abs() <= 1e-4 * (1.0 + r.abs())
                })
            }
            (Elements::Int32(found), Elements::Int32(right)) => *found == right,
            (found, right) => return Err(format!("{:?} where {:?} is right", found.dtype(), right.dtype())),
        };
        if !same {
            return Err(format!("{elements:?} where {:?} is right", expected.elements()));
        }
    }
    Ok(())
}

#[test]
fn every_op_gives_the_recorded_answers() {
    let known: BTreeSet<&str> = ops::FAMILIES.iter().flat_map(|f| f.ops).map(|op| op.name).collect();
    let mut failures = Vec::new();
    let mut passed: BTreeMap<String, usize> = BTreeMap::new();
    for entry in std::fs::read_dir(repository("models/ops")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension() != Some("json".as_ref()) {
            continue;
        }
        let file: File = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        // The cases cover all of MIL; `docs/ops.md` says what the engine has.
        if !known.contains(file.op.as_str()) {
            continue;
        }
        for case in &file.cases {
            let parameters = case.parameters.to_string();
            let result = check(case);
            let excused =
                EXPECTED_FAILURES.iter().any(|(op, text, _)| *op == file.op && parameters.contains(text));
            match (result, excused) {
                (Ok(()), false) => *passed.entry(file.op.clone()).or_default() += 1,
                (Err(_), true) => {}
                (Ok(()), true) => {
                    failures.push(format!("{} {parameters}: passes, but is expected to fail", file.op))
                }
                (Err(error), false) => {
                    let error: String = error.chars().take(400).collect();
                    failures.push(format!("{} ({}) {parameters}: {error}", file.op, case.opset));
                }
            }
        }
    }
    let total: usize = passed.values().sum();
    println!("{total} cases of {} ops pass", passed.len());
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    assert!(total >= 400, "only {total} cases ran");
}
