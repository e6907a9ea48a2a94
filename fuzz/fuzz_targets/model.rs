//! Any bytes as a specification: decode, validate, plan and, if that succeeds, run, on zeros and on the bytes themselves; and compile.
//! An error is fine; a panic, a hang or memory beyond the limits is not.
#![no_main]

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::LazyLock;

use coreml_engine::compiled::compile;
use coreml_engine::description::{Color, FeatureKind, KeyType};
use coreml_engine::{ArrayRef, ImageRef, Input, Key, Limits, LoadOptions, Model, PixelFormat, SharedBytes};

/// The digits model's weights, so that mutations of its specification find what they refer to.
static FILES: LazyLock<HashMap<String, SharedBytes>> = LazyLock::new(|| {
    let weights =
        include_bytes!("../../models/digits/digits-f32.mlpackage/Data/com.apple.CoreML/weights/weight.bin");
    HashMap::from([("@model_path/weights/weight.bin".to_owned(), SharedBytes::from(weights.to_vec()))])
});

/// More of any input would only cost time.
const MOST: usize = 1 << 20;

/// Values of a feature of any kind, made of the same bytes over and over.
struct Values<'a> {
    kind: &'a FeatureKind,
    bytes: Vec<u8>,
    keys: Vec<Key>,
    entries: Vec<(Key, f64)>,
}

impl<'a> Values<'a> {
    /// `None` if they would be too many.
    fn new(kind: &'a FeatureKind, source: &[u8]) -> Option<Self> {
        let size = match kind {
            FeatureKind::Tensor { tensor } => {
                tensor.shape.iter().try_fold(tensor.dtype.size(), |n, &d| n.checked_mul(d))?
            }
            FeatureKind::Image { image } => {
                image.width.checked_mul(image.height)?.checked_mul(format(image.color).size())?
            }
            _ => 8,
        };
        let bytes: Vec<u8> = (size <= MOST).then(|| source.iter().copied().cycle().take(size).collect())?;
        let (number, text) = (integer(&bytes), source.iter().take(2).map(|&byte| char::from(byte)).collect());
        let key = |of: KeyType| match of {
            KeyType::Int64 => Key::Int64(number),
            KeyType::String => Key::String(text),
        };
        let (mut keys, mut entries) = (Vec::new(), Vec::new());
        match kind {
            FeatureKind::String => keys.push(key(KeyType::String)),
            FeatureKind::Sequence { sequence } => keys.push(key(sequence.element)),
            FeatureKind::Dictionary { dictionary } => {
                entries.push((key(dictionary.key), f64::from_bits(number as u64)));
            }
            _ => {}
        }
        Some(Self { kind, bytes, keys, entries })
    }

    fn input(&self) -> Option<Input<'_>> {
        Some(match self.kind {
            FeatureKind::Int64 => Input::Int64(integer(&self.bytes)),
            FeatureKind::Double => Input::Double(f64::from_bits(integer(&self.bytes) as u64)),
            FeatureKind::String => match &self.keys[..] {
                [Key::String(text)] => Input::String(text),
                _ => return None,
            },
            FeatureKind::Tensor { tensor } => Input::Array(ArrayRef {
                dtype: tensor.dtype,
                shape: &tensor.shape,
                strides: None,
                bytes: &self.bytes,
            }),
            FeatureKind::Image { image } => Input::Image(ImageRef {
                format: format(image.color),
                width: image.width,
                height: image.height,
                row_bytes: image.width * format(image.color).size(),
                pixels: &self.bytes,
            }),
            FeatureKind::Dictionary { .. } => Input::Dictionary(&self.entries),
            FeatureKind::Sequence { .. } => Input::Sequence(&self.keys),
            _ => return None,
        })
    }
}

fn format(color: Color) -> PixelFormat {
    match color {
        Color::Rgb | Color::Bgr => PixelFormat::Bgra8,
        Color::Gray => PixelFormat::Gray8,
        Color::GrayFloat16 => PixelFormat::Gray16F,
    }
}

fn integer(bytes: &[u8]) -> i64 {
    bytes.first_chunk().map_or(0, |bytes| i64::from_le_bytes(*bytes))
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut limits = Limits::default();
    limits.tensor_elements = MOST;
    // A loop that never ends ends here, long before the fuzzer takes it for a hang.
    limits.loop_iterations = 1000;
    let options = LoadOptions::default().limits(limits);
    let Ok(model) = Model::from_memory("fuzz", data, &FILES, &options) else { return };
    let _ = compile(data);
    let mut session = model.session(NonZeroUsize::MIN);
    let mut state = model.new_state();
    // What comes first in a file is alike in all; what comes last are weights, attributes and names.
    let last = &data[data.len().saturating_sub(64)..];
    for source in [&[0][..], last] {
        let features = &model.description().inputs;
        let values: Vec<_> = features
            .iter()
            .filter_map(|feature| Some((feature.name.as_str(), Values::new(&feature.kind, source)?)))
            .collect();
        let inputs: Vec<_> =
            values.iter().filter_map(|(name, values)| Some((*name, values.input()?))).collect();
        let _ = session.predict(&inputs, Some(&mut state), &[]);
    }
});
