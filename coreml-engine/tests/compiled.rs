//! Compiled models (`.mlmodelc`): those of Apple's compiler run, and a program in its text is the program in its package.
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod common;

use std::fmt::Write as _;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use common::{array, load, predict, read_npy, report, repository};
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
            let Ok(model) = coreml_engine::compiled::specification(&data, &text) else { continue };
            let files = std::collections::HashMap::new();
            loaded +=
                usize::from(Model::from_memory("damaged", &model, &files, &LoadOptions::default()).is_ok());
        }
    }
    assert!(loaded > 0, "some damage does not matter, so that whole models were reached");
}

/// The digits model, printed as Apple's compiler prints, gives the very answers of its package.
#[test]
fn a_program_and_its_text_give_the_same_answers() {
    for name in ["digits", "digits-f32"] {
        for newer in [false, true] {
            let package = repository(&format!("models/digits/{name}.mlpackage"));
            let folder = Folder::new(&format!("{name}-{newer}.mlmodelc"));
            print_compiled(&package.join("Data/com.apple.CoreML"), &folder.0, newer);
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
}

/// Writes the program of a package as the compiler does, in the newer or the older form of the text.
fn print_compiled(package: &Path, folder: &Path, newer: bool) {
    let model = proto::Model::decode(&std::fs::read(package.join("model.mlmodel")).unwrap()[..]).unwrap();
    let Some(proto::model::Type::MlProgram(program)) = model.r#type else { panic!("a program") };
    let description = model.description.unwrap().encode_to_vec();
    let mut data = 502_u32.to_le_bytes().to_vec();
    data.extend([0; 24]);
    data.extend(7_u64.to_le_bytes());
    data.extend(b"generic");
    data.extend(u64::try_from(model.specification_version).unwrap().to_le_bytes());
    data.extend([0; 24]);
    data.extend((description.len() as u64).to_le_bytes());
    data.extend(description);
    std::fs::write(folder.join("coremldata.bin"), data).unwrap();
    std::fs::create_dir_all(folder.join("weights")).unwrap();
    std::fs::copy(package.join("weights/weight.bin"), folder.join("weights/weight.bin")).unwrap();
    let printer = Printer { newer };
    let mut text = format!("program({})\n{{\n", if newer { "1.3" } else { "1.0" });
    for (name, function) in &program.functions {
        let tag = match function.opset.as_str() {
            "CoreML5" => "ios15",
            "CoreML6" => "ios16",
            "CoreML7" => "ios17",
            other => panic!("{other}"),
        };
        let block = &function.block_specializations[&function.opset];
        let inputs = printer.declarations(&function.inputs);
        writeln!(text, "    func {name}<{tag}>({inputs}) {{").unwrap();
        for op in &block.operations {
            printer.op(&mut text, op);
        }
        writeln!(text, "        }} -> ({});", block.outputs.join(", ")).unwrap();
    }
    std::fs::write(folder.join("model.mil"), text + "}").unwrap();
}

struct Printer {
    newer: bool,
}

impl Printer {
    fn op(&self, text: &mut String, op: &mil::Operation) {
        let inputs: Vec<_> = op
            .inputs
            .iter()
            .map(|(key, argument)| {
                let bindings: Vec<_> = argument
                    .arguments
                    .iter()
                    .map(|argument| match argument.binding.as_ref().unwrap() {
                        mil::argument::binding::Binding::Name(name) => name.clone(),
                        mil::argument::binding::Binding::Value(value) => self.value(value),
                    })
                    .collect();
                match &bindings[..] {
                    [one] => format!("{key} = {one}"),
                    many => format!("{key} = ({})", many.join(", ")),
                }
            })
            .collect();
        let attributes: Vec<_> =
            op.attributes.iter().map(|(key, value)| format!("{key} = {}", self.value(value))).collect();
        let (outputs, kind) = (self.declarations(&op.outputs), &op.r#type);
        let (inputs, attributes) = (inputs.join(", "), attributes.join(", "));
        writeln!(text, "            {outputs} = {kind}({inputs})[{attributes}];").unwrap();
    }

    fn declarations(&self, values: &[mil::NamedValueType]) -> String {
        let text = values.iter().map(|v| format!("{} {}", self.ty(v.r#type.as_ref().unwrap()), v.name));
        text.collect::<Vec<_>>().join(", ")
    }

    fn ty(&self, ty: &mil::ValueType) -> String {
        let Some(mil::value_type::Type::TensorType(ty)) = &ty.r#type else { panic!("a tensor") };
        let dtype = match mil::DataType::try_from(ty.data_type).unwrap() {
            mil::DataType::Bool => "bool",
            mil::DataType::String => "string",
            mil::DataType::Float16 => "fp16",
            mil::DataType::Float32 => "fp32",
            mil::DataType::Int32 => "int32",
            other => panic!("{other:?}"),
        };
        let dims: Vec<_> = shape(ty).iter().map(ToString::to_string).collect();
        if self.newer && dims.is_empty() {
            dtype.into()
        } else {
            format!("tensor<{dtype}, [{}]>", dims.join(", "))
        }
    }

    fn value(&self, value: &mil::Value) -> String {
        use mil::tensor_value::Value as V;
        use mil::value::Value as Contents;
        let ty = value.r#type.as_ref().unwrap();
        let name = self.ty(ty);
        let (string, uint64) =
            if self.newer { ("string", "uint64") } else { ("tensor<string, []>", "tensor<uint64, []>") };
        let tensor = match value.value.as_ref().unwrap() {
            Contents::BlobFileValue(blob) => {
                let (path, offset) = (&blob.file_name, blob.offset);
                return format!("{name}(BLOBFILE(path = {string}(\"{path}\"), offset = {uint64}({offset})))");
            }
            Contents::ImmediateValue(value) => match value.value.as_ref().unwrap() {
                mil::value::immediate_value::Value::Tensor(tensor) => tensor.value.as_ref().unwrap(),
                other => panic!("{other:?}"),
            },
        };
        let elements: Vec<String> = match tensor {
            V::Floats(v) => v.values.iter().map(|&x| hexadecimal(f64::from(x))).collect(),
            V::Bytes(v) => {
                let halves = v.values.as_chunks::<2>().0.iter();
                halves.map(|&b| hexadecimal(f64::from(f16::from_le_bytes(b)))).collect()
            }
            V::Ints(v) => v.values.iter().map(ToString::to_string).collect(),
            V::Bools(v) => v.values.iter().map(ToString::to_string).collect(),
            V::Strings(v) => v.values.iter().map(|x| format!("\"{x}\"")).collect(),
            other => panic!("{other:?}"),
        };
        let Some(mil::value_type::Type::TensorType(ty)) = &ty.r#type else { panic!("a tensor") };
        format!("{name}({})", nested(&shape(ty), &elements))
    }
}

fn shape(ty: &mil::TensorType) -> Vec<usize> {
    let dims = ty.dimensions.iter().map(|dim| match dim.dimension {
        Some(mil::dimension::Dimension::Constant(size)) => usize::try_from(size.size).unwrap(),
        other => panic!("{other:?}"),
    });
    dims.collect()
}

fn nested(shape: &[usize], elements: &[String]) -> String {
    match shape {
        [] => elements[0].clone(),
        [size, inner @ ..] => {
            let rows = (0..*size).map(|i| {
                let length = elements.len() / size;
                nested(inner, &elements[i * length..][..length])
            });
            format!("[{}]", rows.collect::<Vec<_>>().join(", "))
        }
    }
}

/// As C prints `%a`.
fn hexadecimal(x: f64) -> String {
    let sign = if x.is_sign_negative() { "-" } else { "" };
    if x == 0.0 {
        return format!("{sign}0x0p+0");
    }
    let bits = x.to_bits();
    let exponent = i64::try_from(bits >> 52 & 0x7ff).unwrap() - 1023;
    format!("{sign}0x1.{:013x}p{exponent:+}", bits & ((1 << 52) - 1))
}
