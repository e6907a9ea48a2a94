//! The suite of all bridges, for the fake as it should behave, and for one that makes every allowed difficulty.
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

mod suite;

use std::cell::Cell;

use coreml_bridge::Tensor;
use coreml_testing::{Backings, Behaviour, FakeBridge};
use suite::{Subject, mount};

thread_local! {
    /// The fake of the test that runs on this thread.
    static FAKE: Cell<Option<FakeBridge>> = const { Cell::new(None) };
}

const MODEL: &str = "models/doubler.mlpackage";

fn subject_behaving(behave: fn(&mut Behaviour)) -> Subject {
    let fake = FakeBridge::builder()
        .describe(|path| {
            (path == MODEL).then(|| {
                r#"{
                "inputs": [{ "name": "x", "kind": "tensor", "tensor": { "dtype": "float32", "shape": [3, 5] } }],
                "outputs": [{ "name": "y", "kind": "tensor", "tensor": { "dtype": "float32", "shape": [3, 5] } }],
                "functions": ["main"], "function": "main" }"#
                    .to_owned()
            })
        })
        .behave(behave)
        .build();
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
