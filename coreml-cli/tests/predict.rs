//! `coreml predict` with inputs of every form of file, and with a model that has states.
#![cfg(not(target_vendor = "apple"))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::Command;

use npyz::WriterBuilder;
use serde_json::{Value, json};

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// A folder for a test's files, which goes with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("coreml-predict-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn npy<T: npyz::AutoSerialize>(&self, name: &str, shape: &[u64], data: Vec<T>) -> String {
        let path = self.0.join(name);
        let file = std::fs::File::create(&path).unwrap();
        let options = npyz::WriteOptions::<T>::new().default_dtype().shape(shape).writer(file);
        let mut writer = options.begin_nd().unwrap();
        writer.extend(data).unwrap();
        writer.finish().unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// What the command prints as JSON, or its words.
fn predict(model: &str, inputs: &[(&str, &str)], more: &[&str]) -> Result<Value, String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_coreml"));
    command.arg("predict").arg(repository(model)).arg("--json").args(more);
    for (name, file) in inputs {
        command.arg("--input").arg(format!("{name}={file}"));
    }
    let output = command.output().unwrap();
    if output.status.success() {
        Ok(serde_json::from_slice(&output.stdout).unwrap())
    } else {
        Err(String::from_utf8(output.stderr).unwrap())
    }
}

fn numbers(value: &Value) -> Vec<f64> {
    value["data"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

const DIGITS: &str = "models/digits/digits-f32.mlpackage";

#[test]
fn an_array_a_picture_and_json_of_the_same_digit_have_the_same_answer() {
    let folder = Folder::new("digits");
    let picture = repository("models/digits/seven.png");
    let pixels = image::open(&picture).unwrap().to_luma8().into_raw();
    let pixels: Vec<f32> = pixels.into_iter().map(|x| f32::from(x) / 255.0).collect();
    let npy = folder.npy("digit.npy", &[1, 1, 8, 8], pixels.clone());
    let list = folder.0.join("digit.json");
    let rows: Vec<&[f32]> = pixels.chunks(8).collect();
    std::fs::write(&list, json!([[rows]]).to_string()).unwrap();

    let out = folder.0.join("out");
    let of_array = predict(DIGITS, &[("image", &npy)], &["--output", out.to_str().unwrap()]).unwrap();
    let probabilities = numbers(&of_array["probabilities"]);
    let best = (0..10).max_by(|&a, &b| probabilities[a].total_cmp(&probabilities[b]));
    assert_eq!(best, Some(7), "{probabilities:?}");
    assert!(out.join("probabilities.npy").is_file());
    for file in [picture.to_str().unwrap(), list.to_str().unwrap()] {
        assert_eq!(predict(DIGITS, &[("image", file)], &[]).unwrap(), of_array, "{file}");
    }
}

#[test]
fn a_stateful_model_starts_with_an_empty_state() {
    let folder = Folder::new("handbook");
    let ids = folder.npy("ids.npy", &[1, 3], vec![11_i64, 12, 13]);
    let mask = |row: usize| (0..3).map(move |column| if column > row { -3e4_f32 } else { 0.0 });
    let mask = folder.npy("mask.npy", &[1, 1, 3, 3], (0..3).flat_map(mask).collect());
    let model = "models/handbook/handbook.mlpackage";
    let inputs = [("inputIds", ids.as_str()), ("causalMask", mask.as_str())];
    let answer = predict(model, &inputs, &[]).unwrap();
    assert_eq!(answer["logits"]["shape"].as_array().unwrap().last(), Some(&json!(4096)));
    assert!(numbers(&answer["logits"]).iter().all(|x| x.is_finite()));
    assert_eq!(predict(model, &inputs, &[]).unwrap(), answer);

    let large = folder.npy("large.npy", &[1, 3], vec![11_i64, 3_000_000_000, 13]);
    let error = predict(model, &[("inputIds", &large), ("causalMask", &mask)], &[]).unwrap_err();
    assert!(error.contains("3000000000 does not fit int32"), "{error}");
}
