//! The suite of all bridges, for the fake as it should behave, and for one that makes every allowed difficulty.
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

mod suite;

use std::cell::Cell;

use coreml_bridge::{Dtype, Features, Tensor};
use coreml_testing::{Backings, Behaviour, FakeBridge};
use serde_json::json;
use suite::{Subject, mount};

thread_local! {
    /// The fake of the test that runs on this thread.
    static FAKE: Cell<Option<FakeBridge>> = const { Cell::new(None) };
}

const MODEL: &str = "models/doubler.mlpackage";
const COUNTER: &str = "models/counter.mlmodel";
const EVERY_KIND: &str = "models/every_kind.mlmodel";

/// What the models are, as the JSON of `docs/abi.md`.
fn description(path: &str) -> Option<String> {
    let described = match path {
        MODEL => json!({
            "inputs": [{ "name": "x", "kind": "tensor", "tensor": { "dtype": "float32", "shape": [3, 5] } }],
            "outputs": [{ "name": "y", "kind": "tensor", "tensor": { "dtype": "float32", "shape": [3, 5] } }],
            "functions": ["main"], "function": "main",
        }),
        COUNTER => {
            let halves = |name| json!([{ "name": name, "kind": "tensor", "tensor": { "dtype": "float16", "shape": [3] } }]);
            json!({ "inputs": halves("x"), "outputs": halves("y"), "states": halves("sum"), "functions": ["main"], "function": "main" })
        }
        EVERY_KIND => {
            let tensor = |name, dtype| json!({ "name": name, "kind": "tensor", "tensor": { "dtype": dtype, "shape": [2, 3] } });
            let image = |name, color| json!({ "name": name, "kind": "image", "image": { "width": 4, "height": 2, "color": color } });
            let dictionary =
                |name, key| json!({ "name": name, "kind": "dictionary", "dictionary": { "key": key } });
            let sequence = |name, of| json!({ "name": name, "kind": "sequence", "sequence": { "element": of, "count": [0] } });
            let features = json!([
                tensor("tensor_float16", "float16"), tensor("tensor_float32", "float32"),
                tensor("tensor_double", "float64"), tensor("tensor_int32", "int32"),
                image("image", "rgb"), image("gray", "gray"),
                { "name": "int64", "kind": "int64" }, { "name": "double", "kind": "double" }, { "name": "string", "kind": "string" },
                dictionary("by_name", "string"), dictionary("by_number", "int64"),
                sequence("names", "string"), sequence("numbers", "int64"),
            ]);
            json!({ "inputs": features, "outputs": features, "functions": [] })
        }
        _ => return None,
    };
    Some(described.to_string())
}

/// Twice x; or the sum so far, for the model that has one; or what was given, for the model that takes every kind.
fn compute(inputs: &Features, states: &mut Features) -> Result<Features, String> {
    let numbers = |tensor: &Tensor| tensor.cast(Dtype::Float32).to_vec::<f32>().unwrap();
    let Ok(x) = inputs.tensor("x") else { return Ok(inputs.clone()) };
    let y = if let Ok(sum) = states.tensor("sum") {
        let total = numbers(sum).iter().zip(numbers(x)).map(|(sum, x)| sum + x).collect();
        let total = Tensor::from_vec(x.shape(), total).unwrap().cast(Dtype::Float16);
        states.insert("sum", total.clone());
        total
    } else {
        Tensor::from_vec(x.shape(), numbers(x).iter().map(|x| 2.0 * x).collect()).unwrap()
    };
    Ok(Features::new().with("y", y))
}

fn subject_behaving(behave: fn(&mut Behaviour)) -> Subject {
    let fake =
        FakeBridge::builder().describe(description).compute_with_states(compute).behave(behave).build();
    FAKE.set(Some(fake));
    let numbers: Vec<f32> = (0..15_u8).map(f32::from).collect();
    Subject {
        bridge: fake.bridge(),
        path: MODEL.to_owned(),
        specification: MODEL.as_bytes().to_vec(),
        files: Vec::new(),
        input: "x",
        output: "y",
        given: Tensor::from_slice(&[3, 5], &numbers).unwrap(),
        expected: Tensor::from_vec(&[3, 5], numbers.iter().map(|x| 2.0 * x).collect()).unwrap(),
        tolerance: 0.0,
        counter: COUNTER.to_owned(),
        every_kind: EVERY_KIND.to_owned(),
        assert_clean: || FAKE.get().expect("the test has a fake").assert_clean(),
    }
}

mod well_behaved {
    use super::*;

    fn subject() -> Subject {
        subject_behaving(|_| ())
    }

    mount!(subject);
}

mod difficult {
    use super::*;

    fn subject() -> Subject {
        subject_behaving(|behaviour| {
            behaviour.row_alignment = 64;
            behaviour.keep_inputs = std::time::Duration::from_millis(50);
            behaviour.backings = Backings::Ignore;
        })
    }

    mount!(subject);
}
