//! The subject of bridges that run real models: the committed network for digits, and two fixtures of the engine.

use std::path::{Path, PathBuf};

use coreml_bridge::{Bridge, Tensor};

use crate::suite::Subject;

pub(crate) fn path(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/digits").join(file)
}

/// One of the engine's fixtures.
fn fixture(file: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../coreml-engine/tests/fixtures/features");
    folder.join(file).to_str().expect("the repository's path is UTF-8").to_owned()
}

/// The first numbers of a `.npy` file of little-endian float32.
pub(crate) fn numbers(file: &str, count: usize) -> Vec<f32> {
    let bytes = std::fs::read(path(file)).expect("the model's data is committed");
    let header = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let (numbers, _) = bytes[10 + header..].as_chunks::<4>();
    numbers.iter().take(count).map(|&number| f32::from_le_bytes(number)).collect()
}

pub(crate) fn subject(bridge: Bridge, tolerance: f32, assert_clean: fn()) -> Subject {
    let read = |file: &str| {
        std::fs::read(path("digits-f32.mlpackage/Data/com.apple.CoreML").join(file)).expect("it is committed")
    };
    Subject {
        bridge,
        specification: read("model.mlmodel"),
        files: vec![("@model_path/weights/weight.bin", read("weights/weight.bin"))],
        path: path("digits-f32.mlpackage").to_str().expect("the repository's path is UTF-8").to_owned(),
        input: "image",
        output: "probabilities",
        given: Tensor::from_vec(&[1, 1, 8, 8], numbers("test_images.npy", 64)).unwrap(),
        expected: Tensor::from_vec(&[1, 10], numbers("reference_probabilities.npy", 10)).unwrap(),
        tolerance,
        counter: fixture("counter.mlmodel"),
        every_kind: fixture("every_kind.mlmodel"),
        assert_clean,
    }
}
