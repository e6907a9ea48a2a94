//! Any bytes as a specification: decode, validate, plan and, if that succeeds, run on zeros. An error is fine; a panic, a hang
//! or memory beyond the limits is not.
#![no_main]

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::LazyLock;

use coreml_engine::description::FeatureKind;
use coreml_engine::{ArrayRef, Elements, Input, Limits, LoadOptions, Model, SharedBytes};

/// The digits model's weights, so that mutations of its specification find what they refer to.
static FILES: LazyLock<HashMap<String, SharedBytes>> = LazyLock::new(|| {
    let weights =
        include_bytes!("../../models/digits/digits-f32.mlpackage/Data/com.apple.CoreML/weights/weight.bin");
    HashMap::from([("@model_path/weights/weight.bin".to_owned(), SharedBytes::from(weights.to_vec()))])
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut limits = Limits::default();
    limits.tensor_elements = 1 << 20;
    // A loop that never ends ends here, long before the fuzzer takes it for a hang.
    limits.loop_iterations = 1000;
    let options = LoadOptions::default().limits(limits);
    let Ok(model) = Model::from_memory("fuzz", data, &FILES, &options) else { return };
    let zeros: Vec<_> = model
        .description()
        .inputs
        .iter()
        .filter_map(|feature| match &feature.kind {
            FeatureKind::Tensor { tensor } => {
                let count = tensor.shape.iter().try_fold(1_usize, |n, &d| n.checked_mul(d))?;
                let elements = (count <= 1 << 20).then(|| Elements::zeros(tensor.dtype, count))?;
                Some((feature.name.as_str(), tensor.shape.as_slice(), elements))
            }
            _ => None,
        })
        .collect();
    let inputs: Vec<_> = zeros
        .iter()
        .map(|(name, shape, elements)| {
            let array = ArrayRef { dtype: elements.dtype(), shape, strides: None, bytes: elements.bytes() };
            (*name, Input::Array(array))
        })
        .collect();
    let mut session = model.session(NonZeroUsize::MIN);
    let mut state = model.new_state();
    let _ = session.predict(&inputs, Some(&mut state), &[]);
});
