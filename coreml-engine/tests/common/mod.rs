//! What the tests of whole models share.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::path::{Path, PathBuf};

use coreml_engine::{Array, ArrayRef, Elements, Input, LoadOptions, Model, Output, Session};

/// A path in the repository.
pub(crate) fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// The cases recorded of coremltools' tests, as far as `T` reads them.
pub(crate) fn corpus<T: serde::de::DeserializeOwned>() -> Vec<T> {
    let mut cases = Vec::new();
    for entry in std::fs::read_dir(repository("conformance/corpus")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension() == Some("jsonl".as_ref()) {
            let text = std::fs::read_to_string(&path).unwrap();
            cases.extend(text.lines().map(|line| serde_json::from_str::<T>(line).unwrap()));
        }
    }
    cases
}

/// A path that `cargo xtask models` brings, if it did. With `COREML_REQUIRE_MODELS` set its absence is a failure.
pub(crate) fn cached(path: &str) -> Option<PathBuf> {
    let path = repository("models/cache").join(path);
    if path.exists() {
        return Some(path);
    }
    assert!(std::env::var_os("COREML_REQUIRE_MODELS").is_none(), "{} is missing", path.display());
    eprintln!("skipped: {} is missing; `cargo xtask models` brings it", path.display());
    None
}

pub(crate) fn load(path: &Path) -> Model {
    Model::load(path, &LoadOptions::default()).unwrap_or_else(|error| panic!("{}", report(&error)))
}

/// An error with all its causes.
pub(crate) fn report(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

pub(crate) fn read_npy<T: npyz::Deserialize>(path: &Path) -> (Vec<usize>, Vec<T>) {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let npy = npyz::NpyFile::new(&bytes[..]).unwrap();
    let shape = npy.shape().iter().map(|&n| usize::try_from(n).unwrap()).collect();
    (shape, npy.into_vec().unwrap())
}

/// A dense input.
pub(crate) fn array<'a>(shape: &'a [usize], elements: &'a Elements) -> Input<'a> {
    Input::Array(ArrayRef { dtype: elements.dtype(), shape, strides: None, bytes: elements.bytes() })
}

/// Predicts and returns the output of that name as floats.
pub(crate) fn predict(
    session: &mut Session,
    inputs: &[(&str, Input<'_>)],
    output: &str,
) -> (Vec<usize>, Vec<f32>) {
    let outputs = session.predict(inputs, None, &[]).unwrap_or_else(|error| panic!("{}", report(&error)));
    let found = outputs.into_iter().find(|(name, _)| name == output).unwrap().1;
    match found {
        Output::Array(Array { shape, elements: Elements::Float32(data) }) => (shape, data),
        Output::Array(Array { shape, elements: Elements::Float16(data) }) => {
            (shape, data.into_iter().map(f32::from).collect())
        }
        other => panic!("{other:?}"),
    }
}

/// The greatest difference between two lists.
pub(crate) fn difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    assert!(found.iter().chain(expected).all(|x| x.is_finite()));
    found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}
