//! Damaged files and wrong inputs give typed errors that name what is wrong. Nothing panics, and what is loaded stays usable.
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use common::{array, load, predict, report, repository};
use coreml_engine::{Elements, Limits, LoadError, LoadOptions, Model, PredictError, SharedBytes};
use coreml_proto::proto as spec;
use coreml_proto::proto::mil_spec as mil;
use prost::Message;

/// Remembers the largest block that each thread asked for.
struct Watching;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system's allocator unchanged; the cell has no destructor and allocates nothing.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.with(|largest| largest.set(largest.get().max(layout.size())));
        // SAFETY: the caller's layout, unchanged.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` is from `alloc`, which is the system's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

/// What `work` returns, and the largest block that it asked for on this thread.
fn largest_block_of<R>(work: impl FnOnce() -> R) -> (R, usize) {
    LARGEST.set(0);
    let made = work();
    (made, LARGEST.get())
}

const PACKAGE: &str = "models/digits/digits-f32.mlpackage";

fn specification() -> Vec<u8> {
    std::fs::read(repository(PACKAGE).join("Data/com.apple.CoreML/model.mlmodel")).unwrap()
}

fn files() -> HashMap<String, SharedBytes> {
    let path = repository(PACKAGE).join("Data/com.apple.CoreML/weights/weight.bin");
    HashMap::from([("@model_path/weights/weight.bin".into(), std::fs::read(path).unwrap().into())])
}

fn load_bytes(specification: &[u8]) -> Result<Model, LoadError> {
    Model::from_memory("test.mlpackage", specification, &files(), &LoadOptions::default())
}

/// The specification after `change` has had its way with it.
fn changed(change: impl FnOnce(&mut spec::Model)) -> Vec<u8> {
    let mut model = spec::Model::decode(&specification()[..]).unwrap();
    change(&mut model);
    model.encode_to_vec()
}

fn operations(model: &mut spec::Model) -> &mut Vec<mil::Operation> {
    let Some(spec::model::Type::MlProgram(program)) = &mut model.r#type else { panic!("a program") };
    let function = program.functions.get_mut("main").unwrap();
    &mut function.block_specializations.values_mut().next().unwrap().operations
}

#[test]
fn a_missing_path_names_the_path() {
    let error = Model::load("/no/such.mlpackage", &LoadOptions::default()).unwrap_err();
    assert!(matches!(&error, LoadError::Io { path, .. } if path.ends_with("such.mlpackage")), "{error}");
}

#[test]
fn an_empty_file_is_not_a_model() {
    let path = std::env::temp_dir().join(format!("coreml-empty-{}.mlmodel", std::process::id()));
    std::fs::write(&path, b"").unwrap();
    let error = Model::load(&path, &LoadOptions::default()).unwrap_err();
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(error, LoadError::NotAModel { .. }), "{error}");
}

#[test]
fn a_folder_without_a_manifest_is_not_a_model() {
    let error = Model::load(repository("models/digits"), &LoadOptions::default()).unwrap_err();
    assert!(error.to_string().contains("Manifest.json"), "{error}");
}

#[test]
fn an_unknown_op_is_named_with_its_output_and_the_model() {
    let bytes = changed(|model| {
        let op = operations(model).iter_mut().find(|op| op.r#type == "conv").unwrap();
        op.r#type = "transmogrify".into();
    });
    let text = load_bytes(&bytes).unwrap_err().to_string();
    assert!(text.contains("transmogrify") && text.contains("test.mlpackage") && text.contains('`'), "{text}");
}

/// The lowering of networks has ops of its own, which are no part of any opset.
#[test]
fn the_engines_own_ops_have_no_name_in_a_file() {
    for name in ["#integers", "#custom"] {
        let bytes = changed(|model| operations(model).last_mut().unwrap().r#type = name.into());
        let text = report(&load_bytes(&bytes).unwrap_err());
        assert!(text.contains(&format!("`{name}`")) && text.contains("unknown op"), "{text}");
    }
}

#[test]
fn a_weight_beyond_the_file_is_refused() {
    let bytes = changed(|model| {
        for op in operations(model) {
            if let Some(mil::Value { value: Some(mil::value::Value::BlobFileValue(blob)), .. }) =
                op.attributes.get_mut("val")
            {
                blob.offset = 1 << 40;
            }
        }
    });
    let text = report(&load_bytes(&bytes).unwrap_err());
    assert!(text.contains("beyond the weight file"), "{text}");
}

#[test]
fn a_constant_of_2_to_the_60_elements_is_refused_without_allocating_them() {
    let bytes = changed(|model| {
        for op in operations(model) {
            let Some(value) = op.attributes.get_mut("val") else { continue };
            if let Some(mil::value_type::Type::TensorType(ty)) =
                value.r#type.as_mut().and_then(|ty| ty.r#type.as_mut())
            {
                for dimension in &mut ty.dimensions {
                    let size = mil::dimension::ConstantDimension { size: 1 << 60 };
                    dimension.dimension = Some(mil::dimension::Dimension::Constant(size));
                }
            }
        }
    });
    let (refused, largest) = largest_block_of(|| load_bytes(&bytes).unwrap_err());
    assert!(matches!(refused, LoadError::Corrupt { .. }), "{refused}");
    assert!(largest < 1 << 20, "a block of {largest} bytes");
}

/// The specification with that many states of that many elements each, which nothing uses.
fn with_states(count: usize, elements: u64) -> Vec<u8> {
    changed(|model| {
        let Some(spec::model::Type::MlProgram(program)) = &mut model.r#type else { panic!("a program") };
        let size = mil::dimension::ConstantDimension { size: elements };
        let dimension = mil::Dimension { dimension: Some(mil::dimension::Dimension::Constant(size)) };
        let tensor = mil::TensorType {
            data_type: mil::DataType::Float16.into(),
            rank: 1,
            dimensions: vec![dimension],
            ..Default::default()
        };
        let tensor = mil::ValueType { r#type: Some(mil::value_type::Type::TensorType(tensor)) };
        let state = mil::StateType { wrapped_type: Some(Box::new(tensor)) };
        let ty = mil::ValueType { r#type: Some(mil::value_type::Type::StateType(Box::new(state))) };
        let function = program.functions.get_mut("main").unwrap();
        function.inputs.extend(
            (0..count).map(|i| mil::NamedValueType { name: format!("state{i}"), r#type: Some(ty.clone()) }),
        );
        let array = spec::ArrayFeatureType {
            shape: vec![i64::try_from(elements).unwrap()],
            data_type: spec::array_feature_type::ArrayDataType::Float16.into(),
            ..Default::default()
        };
        let kind = spec::state_feature_type::Type::ArrayType(array);
        let kind = spec::feature_type::Type::StateType(spec::StateFeatureType { r#type: Some(kind) });
        let kind = spec::FeatureType { r#type: Some(kind), ..Default::default() };
        model.description.as_mut().unwrap().state.extend((0..count).map(|i| spec::FeatureDescription {
            name: format!("state{i}"),
            r#type: Some(kind.clone()),
            ..Default::default()
        }));
    })
}

#[test]
fn states_that_together_are_over_the_limit_are_refused() {
    let few = load_bytes(&with_states(3, 8)).map_err(|error| report(&error)).unwrap();
    assert_eq!(few.description().states.len(), 3);
    drop(few.new_state());
    let text = report(&load_bytes(&with_states(100, 1 << 28)).unwrap_err());
    assert!(text.contains("`state2`") && text.contains("the states together are over the limit"), "{text}");
}

#[test]
fn a_value_that_nobody_defines_is_refused() {
    let bytes = changed(|model| {
        let op = operations(model).iter_mut().rev().find(|op| op.inputs.contains_key("x")).unwrap();
        op.inputs.get_mut("x").unwrap().arguments[0].binding =
            Some(mil::argument::binding::Binding::Name("nobody".into()));
    });
    let text = load_bytes(&bytes).unwrap_err().to_string();
    assert!(text.contains("`nobody`") && text.contains("never defined"), "{text}");
}

#[test]
fn a_tensor_over_the_limit_is_refused_and_the_session_stays_usable() {
    let mut limits = Limits::default();
    limits.tensor_elements = 100;
    let options = LoadOptions::default().limits(limits);
    let model = match Model::from_memory("test", &specification(), &files(), &options) {
        Ok(model) => model,
        Err(error) => {
            assert!(report(&error).contains("limit"), "{error}");
            return;
        }
    };
    let mut session = model.session(NonZeroUsize::MIN);
    let image = Elements::zeros(coreml_engine::description::ArrayDtype::Float32, 64);
    for _ in 0..2 {
        let error = session.predict(&[("image", array(&[1, 1, 8, 8], &image))], None, &[]).unwrap_err();
        assert!(matches!(error, PredictError::Op { .. }) && report(&error).contains("limit"), "{error}");
    }
}

#[test]
fn wrong_inputs_are_named_with_what_was_expected() {
    let model = load(&repository(PACKAGE));
    let mut session = model.session(NonZeroUsize::MIN);
    let image = Elements::Float32(vec![0.5; 64]);
    let before = predict(&mut session, &[("image", array(&[1, 1, 8, 8], &image))], "probabilities");

    let error = session.predict(&[], None, &[]).unwrap_err().to_string();
    assert!(error.contains("`image` is missing") && error.contains("[1, 1, 8, 8]"), "{error}");
    let wrong = [
        ("imag", array(&[1, 1, 8, 8], &image), "has no input `imag`"),
        ("image", array(&[1, 64], &image), "found tensor float32 [1, 64]"),
        ("image", array(&[8, 8], &image), "found tensor float32 [8, 8]"),
    ];
    for (name, input, expected) in wrong {
        let error = session.predict(&[(name, input)], None, &[]).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let ints = Elements::Int32(vec![0; 64]);
    let error =
        session.predict(&[("image", array(&[1, 1, 8, 8], &ints))], None, &[]).unwrap_err().to_string();
    assert!(error.contains("expected tensor float32") && error.contains("found tensor int32"), "{error}");
    let error = session
        .predict(&[("image", array(&[1, 1, 8, 8], &image))], None, &["probability"])
        .unwrap_err()
        .to_string();
    assert!(error.contains("no output `probability`") && error.contains("probabilities"), "{error}");

    assert_eq!(predict(&mut session, &[("image", array(&[1, 1, 8, 8], &image))], "probabilities"), before);
}

/// Every prefix of the file and many single-bit flips: an error or a model, never a panic.
#[test]
fn truncated_and_flipped_files_never_panic() {
    let good = specification();
    for end in (0..good.len()).step_by(7) {
        drop(load_bytes(&good[..end]));
    }
    let mut random = 0x9E37_79B9_7F4A_7C15_u64;
    for _ in 0..3000 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let mut bytes = good.clone();
        let bit = usize::try_from(random).unwrap() % (bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        let Ok(model) = load_bytes(&bytes) else { continue };
        let image = Elements::Float32(vec![0.5; 64]);
        let mut session = model.session(NonZeroUsize::MIN);
        drop(session.predict(&[("image", array(&[1, 1, 8, 8], &image))], None, &[]));
    }
}

/// A copy of the package in a folder of its own, which goes with it.
struct Copy(PathBuf);

impl Copy {
    fn new(name: &str) -> Self {
        let root = std::env::temp_dir().join(format!("coreml-{name}-{}.mlpackage", std::process::id()));
        for file in [MANIFEST, "Data/com.apple.CoreML/model.mlmodel", WEIGHTS] {
            let to = root.join(file);
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::copy(repository(PACKAGE).join(file), to).unwrap();
        }
        Self(root)
    }

    /// Loads with other bytes in one of the files, and predicts if that goes.
    fn answer(&self, file: &str, bytes: &[u8]) -> Result<(), String> {
        std::fs::write(self.0.join(file), bytes).unwrap();
        let model = Model::load(&self.0, &LoadOptions::default()).map_err(|error| report(&error))?;
        let image = Elements::Float32(vec![0.5; 64]);
        let answer =
            model.session(NonZeroUsize::MIN).predict(&[("image", array(&[1, 1, 8, 8], &image))], None, &[]);
        answer.map(drop).map_err(|error| report(&error))
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

const MANIFEST: &str = "Manifest.json";
const WEIGHTS: &str = "Data/com.apple.CoreML/weights/weight.bin";

/// A weight file that ends too early, or whose headers are damaged, is an error; other bits are other weights. Nothing panics, and
/// nothing large is asked for.
#[test]
fn damaged_weight_files_are_refused_or_are_other_weights() {
    let copy = Copy::new("weights");
    let good = std::fs::read(repository(PACKAGE).join(WEIGHTS)).unwrap();
    let ((), largest) = largest_block_of(|| {
        for end in (0..good.len()).step_by(good.len() / 40 + 1) {
            copy.answer(WEIGHTS, &good[..end]).expect_err("a weight file that ends too early");
        }
        let mut refused = 0;
        // The headers are in the first bytes of the file and of each blob: all of the former, and some of everywhere.
        for byte in (0..128).chain((128..good.len()).step_by(good.len() / 200 + 1)) {
            let mut bytes = good.clone();
            bytes[byte] ^= 1 << (byte % 8);
            refused += usize::from(copy.answer(WEIGHTS, &bytes).is_err());
        }
        assert!(refused > 0, "no damage of the headers was noticed");
    });
    assert!(largest < good.len() * 8 + (1 << 20), "a block of {largest} bytes for a file of {}", good.len());
}

#[test]
fn damaged_manifests_are_refused_or_name_the_same_model() {
    let copy = Copy::new("manifest");
    let good = std::fs::read(repository(PACKAGE).join(MANIFEST)).unwrap();
    let end = good.iter().rposition(|&byte| byte == b'}').unwrap();
    for end in 0..end {
        let error = copy.answer(MANIFEST, &good[..end]).unwrap_err();
        assert!(error.contains("Manifest.json"), "{error}");
    }
    for bit in (0..good.len() * 8).step_by(5) {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        drop(copy.answer(MANIFEST, &bytes));
    }
}

#[test]
fn a_manifest_leads_to_nothing_outside_the_package() {
    let copy = Copy::new("escape");
    let good = std::fs::read_to_string(repository(PACKAGE).join(MANIFEST)).unwrap();
    let inside = "com.apple.CoreML/model.mlmodel";
    assert!(good.contains(inside));
    for outside in ["../../secret", "/etc/passwd", "com.apple.CoreML/../../../secret", "./secret"] {
        let error = copy.answer(MANIFEST, good.replace(inside, outside).as_bytes()).unwrap_err();
        assert!(
            error.contains("Manifest.json") && error.contains("leaves the package"),
            "{outside}: {error}"
        );
    }
}
