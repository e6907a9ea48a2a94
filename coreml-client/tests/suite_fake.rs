//! The client's suite for the fake bridge as it should behave, and for one that makes every allowed difficulty.
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

mod suite;

use std::cell::Cell;
use std::time::{Duration, Instant};

use coreml_client::Tensor;
use coreml_testing::{Backings, Behaviour, FakeBridge};
use suite::{Subject, mount};

thread_local! {
    /// The fake of the test that runs on this thread.
    static FAKE: Cell<Option<FakeBridge>> = const { Cell::new(None) };
}

const MODELS: [&str; 2] = ["models/doubler.mlpackage", "models/other-doubler.mlpackage"];

fn fake() -> FakeBridge {
    FAKE.get().expect("the test has a fake")
}

fn subject_behaving(behave: fn(&mut Behaviour)) -> Subject {
    let made = FakeBridge::builder()
        .describe(|path| {
            MODELS.contains(&path).then(|| {
                r#"{
                "inputs": [{ "name": "x", "kind": "tensor", "tensor": { "dtype": "float32", "shape": [3, 5] } }],
                "outputs": [{ "name": "y", "kind": "tensor", "tensor": { "dtype": "float32", "shape": [3, 5] } }],
                "functions": ["main"], "function": "main" }"#
                    .to_owned()
            })
        })
        .behave(behave)
        .build();
    FAKE.set(Some(made));
    let numbers: Vec<f32> = (0..15_u8).map(f32::from).collect();
    Subject {
        bridge: made.bridge(),
        path: MODELS[0].to_owned(),
        other: MODELS[1].to_owned(),
        input: "x",
        output: "y",
        given: Tensor::from_slice(&[3, 5], &numbers).unwrap(),
        expected: Tensor::from_vec(&[3, 5], numbers.iter().map(|x| 2.0 * x).collect()).unwrap(),
        tolerance: 0.0,
        stick: |stuck| if stuck { fake().load_gate().close() } else { fake().load_gate().open() },
        assert_clean: || {
            // Threads that a shutdown did not wait for end in their own time.
            let deadline = Instant::now() + Duration::from_secs(30);
            while fake().counts().live_models > 0 {
                assert!(Instant::now() < deadline, "{:?}", fake().counts());
                std::thread::sleep(Duration::from_millis(1));
            }
            fake().assert_clean();
        },
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
            behaviour.keep_inputs = Duration::from_millis(50);
            behaviour.backings = Backings::Ignore;
        })
    }

    mount!(subject);
}
