//! Compiled models (`.mlmodelc`): those of Apple's compiler run, and a program in its text is the program in its package.
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod common;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use common::{array, load, predict, read_npy, report, repository};
use coreml_engine::compiled::{self, Compiled};
use coreml_engine::{Elements, LoadError, LoadOptions, Model, Session};
use coreml_proto::proto::{self, mil_spec as mil};
use half::f16;
use prost::Message;

const ONE: NonZeroUsize = NonZeroUsize::MIN;

fn fixture(name: &str) -> PathBuf {
    repository("coreml-engine/tests/fixtures/mlmodelc").join(format!("{name}.mlmodelc"))
}

fn session(name: &str) -> Session {
    load(&fixture(name)).session(ONE)
}

#[test]
fn a_float16_program_of_the_older_text_runs() {
    // 2 x + 1.
    let x = Elements::Float16([1.0, -0.5, 0.0, 100.0].map(f16::from_f32).to_vec());
    let mut session = session("test_linear");
    let (shape, y) = predict(&mut session, &[("input", array(&[1, 4], &x))], "output");
    assert_eq!((shape, y), (vec![1, 4], vec![3.0, 0.0, 1.0, 201.0]));
    let description = session.model().description();
    let version = description.metadata.user.get("com.github.apple.coremltools.version");
    assert_eq!(version.map(String::as_str), Some("9.0"));
}

#[test]
fn several_inputs_and_outputs_keep_their_names() {
    let (a, b) = (Elements::Float32(vec![1.0, 2.0, 3.0, 4.0]), Elements::Float32(vec![5.0, -6.0]));
    let inputs = [("float_input", array(&[1, 4], &a)), ("int_input", array(&[1, 2], &b))];
    let mut session = session("test_multi_io");
    assert_eq!(predict(&mut session, &inputs, "sum_output").1, [3.0, 5.0, 7.0, 9.0]);
    assert_eq!(predict(&mut session, &inputs, "count_output").1, [10.0, -12.0]);
}

#[test]
fn weights_are_those_of_the_folder() {
    // x + [2, -3, 5, -7], for 1 to 4 rows.
    let mut session = session("flexible-weighted-legacy");
    for rows in [1, 3] {
        let x = Elements::Float32(vec![1.0; rows * 4]);
        let (shape, y) = predict(&mut session, &[("input", array(&[rows, 4], &x))], "output");
        assert_eq!((shape, y), (vec![rows, 4], [3.0, -2.0, 6.0, -6.0].repeat(rows)));
    }
    let x = Elements::Float32(vec![1.0; 20]);
    let error = session.predict(&[("input", array(&[5, 4], &x))], None, &[]).unwrap_err();
    assert!(report(&error).contains("[5, 4]"), "{}", report(&error));
}

#[test]
fn quantized_weights_of_a_compiled_program_are_dequantized() {
    // ([-128, -1, 0, 127] + 1) / 2.
    let model = load(&fixture("quantized-constexpr"));
    let x = Elements::Float32(vec![0.0, 1.0, 2.0, 3.0]);
    let (_, y) = predict(&mut model.session(ONE), &[("input", array(&[4], &x))], "output");
    assert_eq!(y, [-63.5, 1.0, 2.5, 67.0]);
}

#[test]
fn the_models_of_a_pipeline_run_one_after_the_other_with_their_own_weights() {
    // x + w as halves, plus w again, with w = [1/4, -1/4, 1/2, -1/2].
    let x = [1.000_3_f32, -1.000_3, 1.000_7, -1.000_7];
    let w = [0.25_f32, -0.25, 0.5, -0.5];
    let rounded = |i: usize| f16::from_f32(x[i] + w[i]).to_f32();
    let mut session = session("pipeline-weighted");
    let input = Elements::Float32(x.to_vec());
    let (_, found) = predict(&mut session, &[("input", array(&[4], &input))], "result");
    assert_eq!(found, [0, 1, 2, 3].map(|i| rounded(i) + w[i]));
}

#[test]
fn subnormal_halves_are_exact() {
    let x = Elements::Float32(vec![0.0; 5]);
    let (_, y) = predict(&mut session("fp16-subnormal-cast"), &[("input", array(&[5], &x))], "output");
    let powers = [2_f32.powi(-24), 21.0 / 16.0 * 2_f32.powi(-17)];
    assert_eq!(y, [powers[0], powers[1], 1023.0 * powers[0], 2_f32.powi(-14), -powers[1]]);
}

#[test]
fn gather_clamps_and_takes_shapes_within_its_ranges() {
    let data = Elements::Float32(vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    let indices = Elements::Int32(vec![-1, 0, 7]);
    let inputs = [("data", array(&[3, 2], &data)), ("indices", array(&[1, 3], &indices))];
    let (shape, y) = predict(&mut session("flexible-gather"), &inputs, "output");
    assert_eq!((shape, y), (vec![1, 3, 2], vec![4.0, 5.0, 0.0, 1.0, 4.0, 5.0]));
}

#[test]
fn enumerated_shapes_are_all_that_is_taken() {
    let mut session = session("flexible-enumerated");
    for size in [1, 2, 4] {
        let x = Elements::Float32(vec![-1.0; size]);
        assert_eq!(predict(&mut session, &[("input", array(&[size], &x))], "output").1, vec![0.0; size]);
    }
    let x = Elements::Float32(vec![1.0; 3]);
    assert!(session.predict(&[("input", array(&[3], &x))], None, &[]).is_err());
}

#[test]
fn every_function_of_a_program_has_its_own_description() {
    let path = fixture("flexible-multifunction");
    let model = load(&path);
    assert_eq!(model.description().functions, ["first", "second"]);
    for (function, default) in [("first", 4), ("second", 2)] {
        let model = Model::load(&path, &LoadOptions::default().function(function)).unwrap();
        assert_eq!(model.description().function, function);
        let json = serde_json::to_value(model.description()).unwrap();
        assert_eq!(json["inputs"][0]["tensor"]["shape"], serde_json::json!([default]));
        let x = Elements::Float32(vec![-1.0, 2.0, 3.0]);
        let (_, y) = predict(&mut model.session(ONE), &[("input", array(&[3], &x))], "output");
        assert_eq!(y, [0.0, 2.0, 3.0]);
    }
    let error = Model::load(&path, &LoadOptions::default().function("third")).unwrap_err();
    assert!(matches!(error, LoadError::NoFunction { .. }), "{}", report(&error));
}

/// A folder of its own, gone when the test ends.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("coreml-compiled-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn errors_name_the_file_the_line_and_the_column() {
    let folder = Folder::new("errors.mlmodelc");
    let original = fixture("test_linear");
    for file in ["coremldata.bin", "model.mil"] {
        std::fs::copy(original.join(file), folder.0.join(file)).unwrap();
    }
    let text = std::fs::read_to_string(original.join("model.mil")).unwrap();
    std::fs::write(folder.0.join("model.mil"), text.replace("y = var_2_to_fp16", "y = ]")).unwrap();
    let error = report(&Model::load(&folder.0, &LoadOptions::default()).unwrap_err());
    assert!(error.contains("model.mil is damaged"), "{error}");
    assert!(
        error.contains("line 6, column 71: expected the name of a value, or a value, found `]`"),
        "{error}"
    );

    std::fs::write(folder.0.join("model.mil"), text.replace("mul(x", "mull(x")).unwrap();
    let error = report(&Model::load(&folder.0, &LoadOptions::default()).unwrap_err());
    assert!(error.contains("op `mull`") && error.contains("unknown op in opset iOS16"), "{error}");

    std::fs::remove_file(folder.0.join("model.mil")).unwrap();
    let error = report(&Model::load(&folder.0, &LoadOptions::default()).unwrap_err());
    assert!(error.contains("without its text"), "{error}");

    std::fs::write(folder.0.join("coremldata.bin"), [0xf4, 1, 0]).unwrap();
    let error = report(&Model::load(&folder.0, &LoadOptions::default()).unwrap_err());
    assert!(error.contains("coremldata.bin is damaged"), "{error}");
}

#[test]
fn weights_outside_of_the_folder_are_refused() {
    let folder = Folder::new("outside.mlmodelc");
    let original = fixture("flexible-weighted-legacy");
    std::fs::copy(original.join("coremldata.bin"), folder.0.join("coremldata.bin")).unwrap();
    let text = std::fs::read_to_string(original.join("model.mil")).unwrap();
    for path in ["@model_path/../weights.bin", "/etc/hostname", "weights/weights.bin"] {
        let text = text.replace("@model_path/weights/weights.bin", path);
        std::fs::write(folder.0.join("model.mil"), text).unwrap();
        let error = report(&Model::load(&folder.0, &LoadOptions::default()).unwrap_err());
        assert!(error.contains("expected a path below @model_path"), "{error}");
    }
}

/// Any byte of the text or of the data may be another, or missing: the answer is a model or an error.
#[test]
fn damaged_files_give_errors_and_no_panic() {
    let read = |name: &str, file: &str| std::fs::read(fixture(name).join(file)).unwrap();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        usize::try_from(random % below as u64).unwrap()
    };
    let mut loaded = 0;
    for name in ["test_linear", "flexible-gather", "flexible-multifunction", "flexible-weighted-legacy"] {
        let (data, text) = (read(name, "coremldata.bin"), read(name, "model.mil"));
        for round in 0..1500 {
            let (mut data, mut text) = (data.clone(), text.clone());
            let hit = if round % 3 == 0 { &mut data } else { &mut text };
            for _ in 0..=next(3) {
                let at = next(hit.len());
                match next(4) {
                    0 => hit[at] = u8::try_from(next(256)).unwrap(),
                    1 => hit[at] = b"()[]{}<>,=;?-\"019x "[next(19)],
                    2 if hit.len() > 1 => drop(hit.remove(at)),
                    _ => hit.truncate(at + 1),
                }
            }
            let Ok(model) = compiled::specification(&data, &text) else { continue };
            let files = std::collections::HashMap::new();
            loaded +=
                usize::from(Model::from_memory("damaged", &model, &files, &LoadOptions::default()).is_ok());
        }
    }
    assert!(loaded > 0, "some damage does not matter, so that whole models were reached");
}

/// The digits model gives the very answers of its package when it is compiled.
#[test]
fn a_program_and_its_text_give_the_same_answers() {
    for name in ["digits", "digits-f32"] {
        let package = repository(&format!("models/digits/{name}.mlpackage"));
        let folder = Folder::new(&format!("{name}.mlmodelc"));
        compile(&package.join("Data/com.apple.CoreML"), &folder.0);
        let (compiled, original) = (load(&folder.0), load(&package));
        assert_eq!(compiled.description(), original.description());
        let (_, images) = read_npy::<f32>(&repository("models/digits/test_images.npy"));
        let (mut compiled, mut original) = (compiled.session(ONE), original.session(ONE));
        for image in images.chunks_exact(64).take(20) {
            let image = Elements::Float32(image.to_vec());
            let inputs = [("image", array(&[1, 1, 8, 8], &image))];
            let found = predict(&mut compiled, &inputs, "probabilities");
            assert_eq!(found, predict(&mut original, &inputs, "probabilities"));
        }
    }
}

fn compile(package: &Path, folder: &Path) {
    let Compiled { data, program, .. } =
        compiled::compile(&std::fs::read(package.join("model.mlmodel")).unwrap()).unwrap();
    std::fs::write(folder.join("coremldata.bin"), data).unwrap();
    std::fs::write(folder.join("model.mil"), program).unwrap();
    std::fs::create_dir_all(folder.join("weights")).unwrap();
    std::fs::copy(package.join("weights/weight.bin"), folder.join("weights/weight.bin")).unwrap();
}

/// What Apple's compiler wrote is read, printed and read again: the text is the same but for the attributes of the program and of its
/// functions, which are not read.
#[test]
fn what_is_printed_is_the_text_of_apples_compiler() {
    for name in [
        "test_linear",
        "test_multi_io",
        "quantized-constexpr",
        "fp16-subnormal-cast",
        "flexible-weighted-legacy",
        "flexible-gather",
        "flexible-enumerated",
        "flexible-multifunction",
    ] {
        let read = |file: &str| std::fs::read(fixture(name).join(file)).unwrap();
        let specification = compiled::specification(&read("coremldata.bin"), &read("model.mil")).unwrap();
        let printed = compiled::compile(&specification).unwrap();
        let lines = |text: &str| -> Vec<String> {
            // An op without attributes may be written without brackets.
            let body = text.lines().filter(|line| !line.starts_with("[buildInfo"));
            let bare = body.map(|line| match line.find(") [FlexibleShapeInformation") {
                Some(end) => format!("{}) {{", &line[..end]),
                None => line.replace(")[];", ");"),
            });
            bare.collect()
        };
        let original = String::from_utf8(read("model.mil")).unwrap();
        assert_eq!(lines(&printed.program), lines(&original), "{name}");
        // The description is a message with maps: in what order they come, nobody says.
        let (data, original) = (printed.data, read("coremldata.bin"));
        let around = |bytes: &[u8]| {
            let description = usize::from(bytes[75]) + 256 * usize::from(bytes[76]);
            (bytes[..75].to_vec(), bytes[83 + description..].to_vec())
        };
        let version = |bytes: &[u8]| bytes[4];
        assert_eq!(around(&data).1, around(&original).1, "{name}");
        assert_eq!(around(&data).0[5..], around(&original).0[5..], "{name}");
        assert!(
            version(&original) <= version(&data),
            "{name}: the first version is that of Core ML which takes it"
        );
        let again = compiled::specification(&data, printed.program.as_bytes()).unwrap();
        let model = |bytes: &[u8]| proto::Model::decode(bytes).unwrap();
        assert_eq!(model(&again), model(&specification), "{name}");
    }
}

#[test]
fn what_the_text_cannot_hold_is_refused() {
    let package = repository("models/digits/digits.mlpackage/Data/com.apple.CoreML/model.mlmodel");
    let model = proto::Model::decode(&std::fs::read(package).unwrap()[..]).unwrap();
    let refused = |change: &dyn Fn(&mut mil::Operation)| {
        let mut model = model.clone();
        let Some(proto::model::Type::MlProgram(program)) = &mut model.r#type else { panic!("a program") };
        let function = program.functions.get_mut("main").unwrap();
        let block = function.block_specializations.get_mut(&function.opset).unwrap();
        change(&mut block.operations[0]);
        compiled::compile(&model.encode_to_vec()).unwrap_err().to_string()
    };
    for name in ["", "1", "a.b", "a b", "\u{e9}", "a\n"] {
        let error = refused(&|op| op.outputs[0].name = name.into());
        assert_eq!(error, format!("the text has no form for the name `{name}`"));
    }
    let value = |op: &mut mil::Operation| op.attributes.values_mut().next().unwrap().clone();
    let error = refused(&|op| {
        let empty = mil::Value { value: None, ..value(op) };
        op.attributes.insert("val".into(), empty);
    });
    assert_eq!(error, "the text has no form for a value without contents");
    let error = refused(&|op| op.outputs[0].r#type = None);
    assert_eq!(error, "the text has no form for a value without a type");
    let error = refused(&|op| {
        let Some(mil::value_type::Type::TensorType(ty)) = &mut op.outputs[0].r#type.as_mut().unwrap().r#type
        else {
            panic!("a tensor")
        };
        ty.rank = -1;
    });
    assert_eq!(error, "the text has no form for a tensor of unknown rank");
}
