//! Real models give the answers of whoever trained or shipped them.
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod common;

use std::num::NonZeroUsize;

use common::{array, cached, difference, load, predict, read_npy, repository};
use coreml_engine::structure::Structure;
use coreml_engine::{Elements, LoadError, LoadOptions, Model};

const TWO: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1);

/// The digits model in one of its forms against the training script's own predictions of all held-out images.
fn digits(file: &str, tolerance: f32) {
    let folder = repository("models/digits");
    let (shape, images) = read_npy::<f32>(&folder.join("test_images.npy"));
    let (_, labels) = read_npy::<u8>(&folder.join("test_labels.npy"));
    let (_, reference) = read_npy::<f32>(&folder.join("reference_probabilities.npy"));
    let model = load(&folder.join(file));
    let mut session = model.session(TWO);
    let mut right = 0;
    let mut reference_right = 0;
    let best = |row: &[f32]| (0..10).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
    for (i, &label) in labels.iter().enumerate() {
        let image = Elements::Float32(images[i * 64..][..64].to_vec());
        let (found_shape, found) =
            predict(&mut session, &[("image", array(&[1, 1, 8, 8], &image))], "probabilities");
        let expected = &reference[i * 10..][..10];
        assert_eq!(found_shape, [1, 10]);
        let off = difference(&found, expected);
        assert!(off <= tolerance, "image {i} is off by {off}: {found:?} against {expected:?}");
        right += usize::from(best(&found) == usize::from(label));
        reference_right += usize::from(best(expected) == usize::from(label));
    }
    assert_eq!(shape, [labels.len(), 1, 8, 8]);
    assert_eq!(right, reference_right, "the accuracy is the reference's");
    assert!(right * 100 >= labels.len() * 97, "{right} of {} right", labels.len());
}

#[test]
fn digits_as_a_float32_program_equals_its_reference() {
    digits("digits-f32.mlpackage", 1e-3);
}

#[test]
fn digits_as_a_float16_program_equals_its_reference() {
    digits("digits.mlpackage", 2e-2);
}

#[test]
fn digits_as_a_neural_network_equals_its_reference() {
    digits("digits.mlmodel", 1e-3);
}

/// Spotify's pitch model against ONNX Runtime on its ONNX twin.
#[test]
fn basic_pitch_equals_its_onnx_twin() {
    let Some(folder) = cached("basic-pitch") else { return };
    let (shape, audio) = read_npy::<f32>(&folder.join("input.npy"));
    let model = load(&folder.join("nmp.mlpackage"));
    let mut session = model.session(TWO);
    let audio = Elements::Float32(audio);
    for (output, file) in [("Identity", "contour"), ("Identity_1", "note"), ("Identity_2", "onset")] {
        let (_, expected) = read_npy::<f32>(&folder.join(format!("{file}.npy")));
        let (_, found) = predict(&mut session, &[("input_2", array(&shape, &audio))], output);
        let off = difference(&found, &expected);
        assert!(off <= 2e-2, "{file} is off by {off}");
    }
}

/// The pitch models against NumPy, which evaluates their programs op by op in float64.
#[test]
fn crepe_equals_its_program_in_numpy() {
    let Some(folder) = cached("crepe") else { return };
    let (shape, frames) = read_npy::<f32>(&folder.join("frames.npy"));
    for name in ["tiny", "full"] {
        let (_, expected) = read_npy::<f32>(&folder.join(format!("{name}.npy")));
        let mut session = load(&folder.join(format!("{name}.mlpackage"))).session(TWO);
        for rows in [1, shape[0]] {
            let input = Elements::Float32(frames[..rows * shape[1]].to_vec());
            let size = [rows, shape[1]];
            let given = [("frames", array(&size, &input))];
            let (found_shape, found) = predict(&mut session, &given, "probabilities");
            assert_eq!(found_shape, [rows, 360]);
            let off = difference(&found, &expected[..rows * 360]);
            assert!(off <= 2e-2, "{name}, {rows} frames: off by {off}");
        }
    }
}

/// A network with layers that only its makers know can be looked into, but not run.
#[test]
fn kraken_is_refused_by_name_and_can_be_looked_into() {
    let Some(path) = cached("kraken/blla.mlmodel") else { return };
    let structure = Structure::read(&path).unwrap();
    let counts = structure.functions["main"].histogram();
    assert_eq!((counts["custom"], counts["convolution"], counts["biDirectionalLSTM"]), (6, 7, 4));
    let error = Model::load(&path, &LoadOptions::default()).unwrap_err();
    assert!(matches!(error, LoadError::Unsupported { .. } | LoadError::Op { .. }), "{error:?}");
    assert!(error.to_string().contains("`input`") || error.to_string().contains("custom"), "{error}");
}

/// The sentence encoder against the original implementation's embeddings of 16 sentences.
fn minilm(file: &str, least: f32) {
    let Some(package) = cached(&format!("minilm/{file}")) else { return };
    let folder = repository("models/minilm");
    let (_, ids) = read_npy::<i32>(&folder.join("input_ids.npy"));
    let (_, masks) = read_npy::<i32>(&folder.join("attention_mask.npy"));
    let (shape, expected) = read_npy::<f32>(&folder.join("embeddings.npy"));
    let model = load(&package);
    let mut session = model.session(TWO);
    for i in 0..shape[0] {
        let ids = Elements::Int32(ids[i * 128..][..128].to_vec());
        let mask = Elements::Int32(masks[i * 128..][..128].to_vec());
        let inputs = [("input_ids", array(&[1, 128], &ids)), ("attention_mask", array(&[1, 128], &mask))];
        let (_, found) = predict(&mut session, &inputs, "embedding");
        let expected = &expected[i * 384..][..384];
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let cosine = dot(&found, expected) / (dot(&found, &found) * dot(expected, expected)).sqrt();
        assert!(cosine >= least, "sentence {i}: cosine {cosine}");
    }
}

#[test]
fn minilm_in_float32_equals_the_original() {
    minilm("minilm-f32.mlpackage", 0.9999);
}

#[test]
fn minilm_in_float16_equals_the_original() {
    minilm("minilm-f16.mlpackage", 0.999);
}
