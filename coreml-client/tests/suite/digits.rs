//! The subject of bridges that run real models: the committed networks for digits, in two precisions.

use std::path::{Path, PathBuf};

use coreml_client::{Bridge, Tensor};

use crate::suite::Subject;

fn path(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/digits").join(file)
}

/// The first numbers of a `.npy` file of little-endian float32.
fn numbers(file: &str, count: usize) -> Vec<f32> {
    let bytes = std::fs::read(path(file)).expect("the model's data is committed");
    let header = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let (numbers, _) = bytes[10 + header..].as_chunks::<4>();
    numbers.iter().take(count).map(|&number| f32::from_le_bytes(number)).collect()
}

pub(crate) fn subject(bridge: Bridge, stick: fn(bool), assert_clean: fn()) -> Subject {
    let text = |file| path(file).to_str().expect("the repository's path is UTF-8").to_owned();
    Subject {
        bridge,
        path: text("digits-f32.mlpackage"),
        other: text("digits.mlpackage"),
        input: "image",
        output: "probabilities",
        given: Tensor::from_vec(&[1, 1, 8, 8], numbers("test_images.npy", 64)).unwrap(),
        expected: Tensor::from_vec(&[1, 10], numbers("reference_probabilities.npy", 10)).unwrap(),
        tolerance: 1e-2,
        stick,
        assert_clean,
    }
}
