//! The comparison of two bridges finds what is there, and nothing that is not.
#![cfg(not(target_vendor = "apple"))]
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

use std::path::{Path, PathBuf};

use coreml_bridge::{Bridge, Dtype, Features, Tensor, Value};
use coreml_testing::{
    FakeBridge,
    differential::{Verdict, compare, difference, inputs},
};

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

#[test]
fn a_bridge_agrees_with_itself_on_every_kind_of_model() {
    let models = [
        "models/digits/digits-f32.mlpackage",
        "models/digits/digits.mlpackage",
        "models/digits/digits.mlmodel",
        "coreml-engine/tests/fixtures/features/image_rgb_to_image.mlmodel",
        "coreml-engine/tests/fixtures/features/image_gray16_to_image.mlmodel",
        "coreml-engine/tests/fixtures/estimators/svm_classifier_rbf.mlmodel",
        "coreml-engine/tests/fixtures/estimators/dict_vectorizer.mlmodel",
    ];
    for model in models {
        let verdict = compare(Bridge::portable(), Bridge::portable(), &repository(model));
        assert!(matches!(verdict, Verdict::Same(1)), "{model}: {verdict:?}");
    }
    let missing = compare(Bridge::portable(), Bridge::portable(), Path::new("no/such.mlmodel"));
    assert!(matches!(&missing, Verdict::NeitherRuns(why) if why.contains("no/such")), "{missing:?}");
}

/// A fake of a model with a state, whose answer after `wrong_after` steps is `off` by so much.
fn counting(wrong_after: f32, off: f32) -> Bridge {
    let json = r#"{
        "inputs": [{ "name": "x", "kind": "tensor", "tensor": { "dtype": "float32", "shape": [2] } }],
        "outputs": [{ "name": "y", "kind": "tensor", "tensor": { "dtype": "float32", "shape": [2] } }],
        "states": [{ "name": "n", "kind": "tensor", "tensor": { "dtype": "float32", "shape": [1] } }] }"#;
    let fake = FakeBridge::builder().description(json).compute_with_states(move |inputs, states| {
        let steps = states.tensor("n").unwrap().to_vec::<f32>().unwrap()[0];
        states.insert("n", Tensor::from_vec(&[1], vec![steps + 1.0]).unwrap());
        let error = if steps >= wrong_after { off } else { 0.0 };
        let x = inputs.tensor("x").unwrap().to_vec::<f32>().unwrap();
        let y = x.iter().map(|x| 2.0 * x + steps + error).collect();
        Ok(Features::new().with("y", Tensor::from_vec(&[2], y).unwrap()))
    });
    fake.build().bridge()
}

#[test]
fn a_planted_difference_is_found_and_both_answers_are_kept() {
    let path = Path::new("a/model");
    let right = || counting(f32::INFINITY, 0.0);
    assert!(matches!(compare(right(), right(), path), Verdict::Same(3)));
    assert!(matches!(compare(right(), counting(0.0, 1e-5), path), Verdict::Same(3)), "within the tolerance");
    // Only the last step is wrong.
    let Verdict::Different(found) = compare(right(), counting(2.0, 0.5), path) else { panic!("it survived") };
    assert!(found.what.starts_with("step 2: `y`: element"), "{}", found.what);

    let folder = std::env::temp_dir().join(format!("coreml-differential-{}", std::process::id()));
    let files = found.keep(&folder).unwrap();
    let kept: Vec<String> = files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
    assert_eq!(kept.len(), 3);
    assert!(kept[0].starts_with("x: float32 [2]\n["), "{}", kept[0]);
    assert!(kept[1].starts_with("y: float32 [2]\n[") && kept[1] != kept[2]);
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn one_that_refuses_is_a_difference() {
    let refuses = FakeBridge::builder().describe(|_| None).build().bridge();
    let Verdict::Different(found) = compare(refuses, counting(0.0, 0.0), Path::new("a/model")) else {
        panic!("it survived")
    };
    assert_eq!(found.what, "only one loads it");
    assert!(found.first.is_err() && found.second.is_ok());
    let verdict = compare(refuses, refuses, Path::new("a/model"));
    assert!(matches!(verdict, Verdict::NeitherRuns(_)), "{verdict:?}");
}

#[test]
fn each_type_has_its_tolerance() {
    let tensor = |dtype, x: f32| Features::new().with("y", Tensor::scalar(x).cast(dtype));
    let cases = [(Dtype::Float16, 1.01, 1.1), (Dtype::Float32, 1.0005, 1.01), (Dtype::Float64, 1.0005, 1.01)];
    for (dtype, near, far) in cases {
        assert_eq!(difference(&tensor(dtype, 1.0), &tensor(dtype, near)), None, "{dtype}");
        assert!(difference(&tensor(dtype, 1.0), &tensor(dtype, far)).is_some(), "{dtype}");
    }
    assert!(difference(&tensor(Dtype::Int32, 1000.0), &tensor(Dtype::Int32, 1001.0)).is_some());
    // Relative to the larger, and NaN is NaN only.
    assert_eq!(difference(&tensor(Dtype::Float32, 1e6), &tensor(Dtype::Float32, 1e6 + 100.0)), None);
    assert_eq!(difference(&tensor(Dtype::Float32, f32::NAN), &tensor(Dtype::Float32, f32::NAN)), None);
    assert!(difference(&tensor(Dtype::Float32, f32::NAN), &tensor(Dtype::Float32, 0.0)).is_some());
    assert!(difference(&tensor(Dtype::Float32, f32::INFINITY), &tensor(Dtype::Float32, 1e30)).is_some());
    // Names, types and kinds.
    let other = Features::new().with("z", Tensor::scalar(1.0_f32));
    assert!(difference(&tensor(Dtype::Float32, 1.0), &other).unwrap().contains("the outputs are"));
    assert!(difference(&tensor(Dtype::Float32, 1.0), &tensor(Dtype::Float64, 1.0)).is_some());
    let text = |text: &str| Features::new().with("y", Value::from(text));
    assert!(difference(&text("cat"), &text("dog")).is_some());
    assert_eq!(difference(&text("cat"), &text("cat")), None);
}

#[test]
fn inputs_are_the_same_for_a_seed_and_other_for_another() {
    let config = coreml_bridge::Config::default();
    let model = Bridge::portable().load(repository("models/digits/digits-f32.mlpackage"), &config).unwrap();
    let of = |seed| inputs(model.description(), seed).unwrap();
    assert_eq!(difference(&of(1), &of(1)), None);
    assert!(difference(&of(1), &of(2)).is_some());
}
