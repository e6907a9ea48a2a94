//! The suite of all bridges, for Apple's Core ML on a real model: only a Mac runs it.
#![cfg(target_vendor = "apple")]
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

mod suite;

use std::path::Path;

use coreml_bridge::{Bridge, Tensor};
use suite::{Subject, mount};

fn digits(file: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/digits").join(file)
}

/// The first numbers of a `.npy` file of little-endian float32.
fn numbers(file: &str, count: usize) -> Vec<f32> {
    let bytes = std::fs::read(digits(file)).expect("the model's data is committed");
    let header = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let (numbers, _) = bytes[10 + header..].as_chunks::<4>();
    numbers.iter().take(count).map(|&number| f32::from_le_bytes(number)).collect()
}

fn subject() -> Subject {
    Subject {
        bridge: Bridge::coreml(),
        path: digits("digits-f32.mlpackage").to_str().expect("the repository's path is UTF-8").to_owned(),
        input: "image",
        output: "probabilities",
        given: Tensor::from_vec(&[1, 1, 8, 8], numbers("test_images.npy", 64)).unwrap(),
        expected: Tensor::from_vec(&[1, 10], numbers("reference_probabilities.npy", 10)).unwrap(),
        // Core ML may compute in float16.
        tolerance: 1e-2,
        // Core ML counts nothing for us; leaks are shown on the work-alike.
        assert_clean: || (),
    }
}

mount!(subject);
